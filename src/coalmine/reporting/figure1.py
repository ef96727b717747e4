"""Figure 1: leakage against accuracy against cost of every method."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from pydantic import Field

from coalmine.reporting.common import WORST_CASE, ReportSettings

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from coalmine.reporting.results import Results

NEEDS = frozenset({"metrics", "costs"})

FPR = 0.001
TPR = "tpr_at_fpr_0.001"


class Settings(ReportSettings):
    """What figure 1 may be told."""

    title: str = Field(default="Leakage against accuracy and cost, method by method", description="title of the figure")


def build(results: Results, settings: Settings) -> tuple[Figure, pd.DataFrame]:
    """Return the figure and one row per method: what is drawn."""
    from coalmine.reporting import style
    from coalmine.reporting.captions import confidence, design_of
    from coalmine.reporting.labels import place_labels

    frame = _frame(results, settings)
    ringed = " Ringed: with a guarantee (ε) that is not vacuous." if frame["guaranteed"].any() else ""
    with style.context():
        figure, (axes,) = style.new_figure(height=4.6)
        obstacles = _draw(axes, frame) + _dress(axes)
        style.set_title(
            figure,
            settings.title,
            f"{design_of((results.metrics[each] for each in settings.methods), settings.label, attack=True)} "
            f"Bars: {confidence(frame)} interval of the TPR, ± standard error of the accuracy; times: "
            f"{_timed(settings)}. Best is low and right.{ringed}",
        )
        place_labels(axes, _labels(frame), obstacles)
    return figure, frame


def _timed(settings: Settings) -> str:
    """Return what the seconds per model are of."""
    known = {"teacher": settings.teachers, "experts": settings.experts, "generator": settings.generators}
    shared = ", ".join(name for name, used in known.items() if used)
    shared = " and ".join(shared.rsplit(", ", 1))
    return f"{shared} (in full for each method), synthesis and training" if shared else "synthesis and training"


def _frame(results: Results, settings: Settings) -> pd.DataFrame:
    import pandas as pd

    from coalmine.reporting.guarantee import is_meaningful, is_refuted
    from coalmine.reporting.results import LOW_FPR

    rows = []
    for method in settings.methods:
        metrics = results.metrics[method]
        attack = metrics.variant(WORST_CASE)
        tpr = attack.tpr[LOW_FPR]
        seconds, _ = results.seconds_per_model(method)
        rows.append(
            {
                "method": method,
                "label": settings.label(method),
                "accuracy": metrics.accuracy.mean,
                "accuracy_se": metrics.accuracy.se,
                TPR: tpr.value,
                f"{TPR}_low": tpr.low,
                f"{TPR}_high": tpr.high,
                "seconds_per_model": seconds,
                "confidence": attack.epsilon.confidence,
                "claimed_epsilon": math.inf if metrics.claimed.epsilon is None else metrics.claimed.epsilon,
                "guaranteed": is_meaningful(metrics.claimed) and not is_refuted(metrics.claimed, attack.epsilon),
                "n_models": metrics.design.models,
                "control": metrics.membership == "shuffled",
            }
        )
    return pd.DataFrame(rows)


def _draw(axes: Axes, frame: pd.DataFrame) -> list[Any]:
    """Draw every method with its bars, ringed if it has a guarantee; return what labels should keep clear of."""
    from coalmine.reporting.layout import rows_of
    from coalmine.reporting.style import QUIET, look

    drawn: list[Any] = []
    for index, row in enumerate(rows_of(frame)):
        x, y, shape = row["accuracy"], row[TPR], look(index)
        colour = QUIET if row["control"] else shape.colour
        low, high = (y if bound is None else bound for bound in (row[f"{TPR}_low"], row[f"{TPR}_high"]))
        error = row["accuracy_se"] or 0.0
        drawn += axes.plot([x, x], [low, high], color=colour, linewidth=1.2, zorder=2, gid=f"{row['method']}/interval")
        drawn += axes.plot([x - error, x + error], [y, y], color=colour, linewidth=1.2, zorder=2)
        axes.plot(
            x,
            y,
            shape.marker,
            color="white" if row["control"] else colour,
            markeredgecolor=colour if row["control"] else "white",
            markeredgewidth=1.4 if row["control"] else 0.6,
            markersize=8,
            zorder=3,
            clip_on=False,
            gid=row["method"],
        )
        if row["guaranteed"]:
            drawn += _ring(axes, row)
    return drawn


def _ring(axes: Axes, row: dict[str, Any]) -> list[Any]:
    from coalmine.reporting.style import INK

    return axes.plot(
        row["accuracy"],
        row[TPR],
        "o",
        fillstyle="none",
        color=INK,
        markeredgewidth=0.9,
        markersize=14,
        zorder=3,
        clip_on=False,
        gid=f"{row['method']}/guarantee",
    )


def _dress(axes: Axes) -> list[Any]:
    """Axes, ticks and the line of chance: linear up to 0.1 % so that zero has a place, logarithmic above.

    Returns the line and its name, for labels to keep clear of.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    from coalmine.reporting.style import QUIET, percent_axis, percent_label

    axes.set_yscale("symlog", linthresh=FPR, linscale=0.5)
    axes.set_ylim(0, 1.5)
    axes.yaxis.set_major_locator(FixedLocator([0, 0.001, 0.01, 0.1, 1]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(percent_label))
    percent_axis(axes.xaxis)
    axes.margins(x=0.2)
    chance = axes.axhline(FPR, color=QUIET, linewidth=1, dashes=(4, 3), zorder=1)
    axes.set_xlabel("test accuracy")
    axes.set_ylabel("TPR at 0.1 % FPR, mislabelled canaries")
    name = axes.text(
        0.995,
        FPR,
        "chance",
        transform=axes.get_yaxis_transform(),
        color=QUIET,
        fontsize=8,
        ha="right",
        va="bottom",
    )
    return [chance, name]


def _labels(frame: pd.DataFrame) -> list[Any]:
    from coalmine.reporting.labels import Label
    from coalmine.reporting.layout import rows_of

    return [Label(_said(row), row["accuracy"], row[TPR]) for row in rows_of(frame)]


def _said(row: dict[str, Any]) -> str:
    from coalmine.reporting.layout import general, number

    told = not row["guaranteed"] or "ε" in row["label"]
    facts = [
        "" if told else f"ε = {general(row['claimed_epsilon'])}",
        "" if row["seconds_per_model"] is None else f"{number(row['seconds_per_model'], 2)} s/model",
    ]
    return "\n".join(filter(None, [row["label"], ", ".join(filter(None, facts))]))
