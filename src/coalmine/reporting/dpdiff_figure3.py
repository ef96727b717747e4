"""Figure 3 of private diffusion: accuracy of classifiers by the number of synthetic images that they learn from."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from pydantic import Field

from coalmine.reporting.common import ReportSettings

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from coalmine.reporting.results import Accuracy, Results

NEEDS = frozenset({"metrics", "sizes"})

MOST_TICKS, CLOSEST_TICKS = 8, 1.5
"""Every size has a tick if there are no more of them, and each is larger than the last by this factor at least."""


class Settings(ReportSettings):
    """What figure 3 of private diffusion may be told."""

    title: str = Field(default="Accuracy by the number of synthetic images", description="title of the figure")
    real: str = Field(description="method that is trained on the real data, whose accuracy is the line across")

    @property
    def needed(self) -> tuple[str, ...]:
        """Every method whose files must exist: those shown and the one trained on the real data."""
        return tuple(dict.fromkeys([*self.methods, self.real]))


def build(results: Results, settings: Settings) -> tuple[Figure, pd.DataFrame]:
    """Return the figure and what it draws: a row per method and size, and one of the method trained on real data.

    Columns: method, label, size (missing: the real data), accuracy, accuracy_se, n_models.

    Raises:
        CoalmineError: a file is missing or broken.
    """
    import pandas as pd

    from coalmine.reporting import style
    from coalmine.reporting.captions import models_of

    rows = [row for method in settings.methods for row in _rows(results, settings, method)]
    real = results.metrics[settings.real]
    name = settings.label(settings.real)
    across = {
        "method": settings.real,
        "label": name,
        "size": None,
        "accuracy": real.accuracy.mean,
        "accuracy_se": real.accuracy.se,
        "n_models": real.design.models,
    }
    frame = pd.DataFrame([*rows, across]).astype({"size": "Int64"})
    with style.context():
        figure, (axes,) = style.new_figure(3.6, width=5.6)
        for index, method in enumerate(settings.methods):
            _draw(axes, [row for row in rows if row["method"] == method], style.look(index))
        _draw_real(axes, real.accuracy, f"real data ({name})")
        _dress(axes, [row["size"] for row in rows])
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, handlelength=3)
        style.set_title(
            figure,
            settings.title,
            f"Classifiers trained on the first so many images of synthetic sets, tested on real images. Mean over "
            f"{models_of((row['label'], row['n_models']) for row in rows)}, on real data over {real.design.models}; "
            "bars and band: ± standard error over models.",
        )
    return figure, frame


def _rows(results: Results, settings: Settings, method: str) -> list[dict[str, Any]]:
    found = results.sizes(method)
    return [
        {
            "method": method,
            "label": settings.label(method),
            "size": each.size,
            "accuracy": each.accuracy.value,
            "accuracy_se": each.accuracy.se,
            "n_models": len(found.shadows),
        }
        for each in sorted(found.sizes, key=lambda each: each.size)
    ]


def _draw(axes: Axes, rows: Sequence[dict[str, Any]], look: Any) -> None:
    sizes, accuracies = [row["size"] for row in rows], [row["accuracy"] for row in rows]
    errors = [row["accuracy_se"] or 0.0 for row in rows]
    axes.errorbar(sizes, accuracies, errors, fmt="none", ecolor=look.colour, elinewidth=1.2, capsize=2)
    axes.plot(
        sizes,
        accuracies,
        color=look.colour,
        linestyle=look.dashes,
        marker=look.marker,
        markeredgecolor="white",
        markeredgewidth=0.6,
        label=rows[0]["label"],
        gid=rows[0]["method"],
        zorder=3,
    )


def _draw_real(axes: Axes, accuracy: Accuracy, name: str) -> None:
    """Draw a line at the accuracy on real data, with a band of a standard error to either side."""
    from coalmine.reporting.style import INK

    error = accuracy.se or 0.0
    axes.axhspan(accuracy.mean - error, accuracy.mean + error, color=INK, alpha=0.12, linewidth=0, zorder=1)
    axes.axhline(accuracy.mean, color=INK, linewidth=1.1, dashes=(4, 3), label=name, gid="real", zorder=2)


def _dress(axes: Axes, sizes: Sequence[int]) -> None:
    """A logarithmic axis of sizes with ticks at them, if they are few enough, and accuracy in percent."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

    from coalmine.reporting.style import percent_axis

    known = sorted(set(sizes))
    apart = all(later >= CLOSEST_TICKS * earlier for earlier, later in pairwise(known))
    axes.set_xscale("log")
    axes.set_xlim(known[0] / 1.3, known[-1] * 1.3)
    if apart and len(known) <= MOST_TICKS:
        axes.xaxis.set_major_locator(FixedLocator(known))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:,.0f}"))
    axes.margins(y=0.12)
    percent_axis(axes.yaxis)
    axes.set_xlabel("synthetic images")
    axes.set_ylabel("test accuracy")
