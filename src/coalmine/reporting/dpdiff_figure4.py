"""Figure 4 of private diffusion: do training recipes rank the same on synthetic as on real images?

Spearman's rank correlation is of the means over shadow models, one point a recipe. Its interval is a bootstrap over
shadow models: it covers what varies from one to the next, given these recipes and this data set, and not the choice of
recipes; with few models it is coarse, and where recipes are hard to tell apart it lies too near 0. See
:mod:`coalmine.audit.ranking`, also for the regret: the real accuracy that is given away by the recipe which is best on
synthetic images, against the best of all.
"""

from __future__ import annotations

from textwrap import fill
from typing import TYPE_CHECKING, Any

from pydantic import Field

from coalmine.reporting.common import ReportSettings

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from coalmine.reporting.results import Recipes, Results

NEEDS = frozenset({"recipes"})

CONFIDENCE = 0.95
MOST_PER_ROW = 3
WIDTHS = {1: 4.6, 2: 6.2, 3: 6.9}
LETTERS_PER_INCH = 14
UNCHANGED = "the run's recipe"


class Settings(ReportSettings):
    """What figure 4 of private diffusion may be told."""

    title: str = Field(
        default="Do recipes rank the same on synthetic as on real images?", description="title of the figure"
    )
    replicates: int = Field(default=1000, ge=1, description="replicates of the bootstrap over shadow models")
    seed: int = Field(default=0, ge=0, description="seed of the bootstrap")


def build(results: Results, settings: Settings) -> tuple[Figure, pd.DataFrame]:
    """Return the figure and one row per method and recipe, with the method's correlation and regret in each.

    Raises:
        CoalmineError: a file is missing or broken, or methods were asked for different recipes.
    """
    import pandas as pd

    from coalmine.reporting import style
    from coalmine.reporting.captions import models_of

    found = {method: results.recipes(method) for method in settings.methods}
    _require_the_same_recipes(found)
    frame = pd.concat([_frame(settings, method, each) for method, each in found.items()], ignore_index=True)
    numbers = ((settings.label(method), len(each.shadows)) for method, each in found.items())
    rows = -(-len(found) // MOST_PER_ROW)
    columns = -(-len(found) // rows)
    with style.context():
        width = WIDTHS[columns]
        panel = (width - 0.6) / columns - 0.45
        legend = 0.2 * -(-len(frame["recipe"].unique()) // 2)
        figure, panels = style.new_figure(rows * (panel + 0.95) + legend + 0.55, (rows, columns), width)
        for axes, method in zip(panels, found, strict=False):
            _draw(axes, frame[frame["method"] == method])
            _head(axes, settings.label(method), frame[frame["method"] == method], panel)
        for unused in panels[len(found) :]:
            unused.remove()
        for axes in panels[: len(found) : columns]:
            axes.set_ylabel("accuracy on real images")
        for axes in panels[max(0, len(found) - columns) : len(found)]:
            axes.set_xlabel("accuracy on held-out\nsynthetic images")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, handlelength=1.5)
        style.set_title(
            figure,
            settings.title,
            f"Points: recipes, mean over {models_of(numbers)}; bars: ± standard error. Ringed: chosen on synthetic "
            "images; square: the best on real ones. ρ: Spearman's rank correlation over recipes with its 95 % interval "
            "over shadow models, given these recipes; –: one side does not vary. Regret: real accuracy that the chosen "
            "recipe gives away, ± standard error.",
        )
    return figure, frame


def recipe_name(overrides: dict[str, Any]) -> str:
    """Return what a recipe changes of the run's, such as ``learning rate 0.1, epochs 30``."""
    return ", ".join(f"{key.replace('_', ' ')} {_value(value)}" for key, value in overrides.items()) or UNCHANGED


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return f"({recipe_name(value)})"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _require_the_same_recipes(found: dict[str, Recipes]) -> None:
    from coalmine.errors import CoalmineError

    (first, expected), *others = found.items()
    for method, each in others:
        if each.recipes != expected.recipes:
            raise CoalmineError(
                f"dpdiff_figure4 shows one list of recipes, but those of {method} are others than those of {first}. "
                f"Delete recipes/{first}.json and recipes/{method}.json and run Snakemake again."
            )


def _frame(settings: Settings, method: str, found: Recipes) -> pd.DataFrame:
    import numpy as np
    import pandas as pd

    from coalmine.audit.ranking import rank_recipes
    from coalmine.seeds import seed_sequence

    ranking = rank_recipes(
        found.synthetic,
        found.real,
        replicates=settings.replicates,
        confidence=CONFIDENCE,
        seed=seed_sequence(settings.seed, "reporting", "dpdiff_figure4", method),
    )
    columns: dict[str, Any] = {"method": method, "label": settings.label(method)}
    columns |= {"recipe": np.arange(len(found.recipes)), "overrides": [recipe_name(each) for each in found.recipes]}
    for name in ("synthetic", "real"):
        accuracies = np.array(getattr(found, name))
        columns[name] = accuracies.mean(axis=1)
        columns[f"{name}_se"] = _errors(accuracies)
    return pd.DataFrame(
        {
            **columns,
            "chosen": np.isin(columns["recipe"], ranking.chosen),
            "best": np.isin(columns["recipe"], ranking.best),
            "correlation": ranking.correlation,
            "correlation_low": ranking.low,
            "correlation_high": ranking.high,
            "confidence": CONFIDENCE,
            "regret": ranking.regret,
            "regret_se": ranking.regret_se,
            "n_models": len(found.shadows),
            "validation": found.validation,
        }
    )


def _errors(accuracies: Any) -> Any:
    """Return standard errors over models, float (recipe,); None for one model."""
    models = accuracies.shape[1]
    return accuracies.std(axis=1, ddof=1) / models**0.5 if models > 1 else None


def _draw(axes: Axes, part: pd.DataFrame) -> None:
    """Draw the recipes of one method."""
    from coalmine.reporting.layout import rows_of
    from coalmine.reporting.style import INK, look, percent_axis

    rows = rows_of(part)
    for row in rows:
        x, y, shape = row["synthetic"], row["real"], look(row["recipe"])
        axes.errorbar(
            x, y, row["real_se"] or 0.0, row["synthetic_se"] or 0.0, fmt="none", ecolor=shape.colour, elinewidth=1
        )
        axes.plot(
            x,
            y,
            shape.marker,
            color=shape.colour,
            markeredgecolor="white",
            markeredgewidth=0.6,
            label=row["overrides"],
            gid=f"{row['method']}/{row['recipe']}",
            zorder=3,
        )
        for name, marker, size in (("chosen", "o", 12), ("best", "s", 15)):
            if row[name]:
                axes.plot(
                    x,
                    y,
                    marker,
                    fillstyle="none",
                    color=INK,
                    markeredgewidth=0.9,
                    markersize=size,
                    gid=f"{row['method']}/{name}",
                )
    percent_axis(axes.xaxis)
    percent_axis(axes.yaxis)
    axes.margins(0.16)
    axes.locator_params(nbins=3)
    axes.set_box_aspect(1)


def _head(axes: Axes, label: str, part: pd.DataFrame, width: float) -> None:
    """Write above a panel, so many inches wide, whose recipes these are and how they rank."""
    from coalmine.reporting.layout import rows_of
    from coalmine.reporting.style import QUIET

    axes.set_title(fill(label, int(LETTERS_PER_INCH * width)) + "\n\n", loc="left", linespacing=1.1)
    text = axes.annotate(
        _ranked(rows_of(part)[0]),
        (0, 1),
        (0, 5),
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=7.5,
        linespacing=1.25,
        color=QUIET,
    )
    text.set_in_layout(False)


def _ranked(row: dict[str, Any]) -> str:
    """Return two lines: the correlation with its interval, and the regret."""
    from coalmine.reporting.layout import fixed_interval, points_with_error

    correlation, regret = fixed_interval(row, "correlation", 2), points_with_error(row, "regret")
    return f"ρ = {correlation.text} {correlation.aside}".rstrip() + f"\nregret {regret.text.lstrip('+')} {regret.aside}"
