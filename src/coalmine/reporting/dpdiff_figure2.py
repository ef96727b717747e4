"""Figure 2 of private diffusion: distance of synthetic images from private ones, precision and recall, by epsilon."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import Field

from coalmine.reporting.common import ReportSettings

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from coalmine.reporting.results import Results

NEEDS = frozenset({"metrics", "quality"})

SHARES: dict[str, Any] = {"precision": "-", "recall": (0, (3, 1.5))}
"""The quantities of the second panel, and their dashes."""

MARGIN = 1.6
"""Room beside the outermost points, as a factor of epsilon."""


class Settings(ReportSettings):
    """What figure 2 of private diffusion may be told."""

    title: str = Field(default="Quality of synthetic images by privacy", description="title of the figure")
    curves: dict[str, str] = Field(
        default={}, description="method -> name of the curve that its point lies on (default: one curve for all)"
    )


class Scale(NamedTuple):
    """Where points lie on the axis of epsilon: those without a guarantee have a place of their own at the right.

    Attributes:
        ticks: name of each place with points, and its position.
        border: position of the line in front of points without a guarantee; None without such points, or others.
        low, high: limits of the axis.
    """

    ticks: dict[str, float]
    border: float | None
    low: float
    high: float


def build(results: Results, settings: Settings) -> tuple[Figure, pd.DataFrame]:
    """Return the figure and one row per method: what is drawn.

    Raises:
        CoalmineError: a method makes no synthetic images, its results are missing or broken, or methods were measured
            by different features.
    """
    import pandas as pd

    from coalmine.reporting import style
    from coalmine.reporting.labels import Label, place_labels
    from coalmine.reporting.layout import rows_of
    from coalmine.reporting.quality import compared, distance_name, unlike

    frame = pd.DataFrame([_row(results, settings, method) for method in settings.methods])
    _require_one_space(frame)
    rows = rows_of(frame)
    scale = _scale(row["claimed_epsilon"] for row in rows)
    with style.context():
        figure, (left, right) = style.new_figure(3.3, (1, 2))
        obstacles = _draw(left, rows, scale, "distance")
        for name, dashes in SHARES.items():
            _draw(right, rows, scale, name, dashes)
        _dress(left, right, scale, distance_name(rows))
        _explain(figure, right, rows)
        reserve = " Distances of other numbers of images cannot be compared." if unlike(rows) else ""
        style.set_title(
            figure,
            settings.title,
            f"{'; '.join(compared(rows))}. Bars: ± standard error over models. Distance: lower is better; precision "
            f"and recall: higher.{reserve}",
        )
        places = [_place(row["claimed_epsilon"], scale) for row in rows]
        named = [Label(row["label"], x, row["distance"]) for row, x in zip(rows, places, strict=True)]
        place_labels(left, named, obstacles)
    return figure, frame


def _row(results: Results, settings: Settings, method: str) -> dict[str, Any]:
    from coalmine.reporting.quality import quality_columns

    claimed = results.metrics[method].claimed.epsilon
    return {
        "method": method,
        "label": settings.label(method),
        "curve": settings.curves.get(method, ""),
        "claimed_epsilon": math.inf if claimed is None else claimed,
        **quality_columns(results.quality(method)),
    }


def _require_one_space(frame: pd.DataFrame) -> None:
    from coalmine.errors import CoalmineError

    spaces = frame.groupby("space", sort=False)["method"].first()
    if len(spaces) > 1:
        (space, method), (other_space, other) = list(spaces.items())[:2]
        raise CoalmineError(
            f"dpdiff_figure2 compares distances, but those of {method} are by {space}, those of {other} by "
            f"{other_space}. Delete the quality files of both and run Snakemake again."
        )


def _scale(epsilons: Any) -> Scale:
    """Return the axis for these epsilons, infinity for no guarantee."""
    known = sorted(set(epsilons))
    finite = [each for each in known if math.isfinite(each)]
    ticks = {_said(each): each for each in finite}
    if not finite:
        return Scale({"no privacy": 1.0}, None, 1 / MARGIN, MARGIN)
    low, high = finite[0] / MARGIN, finite[-1] * MARGIN
    if len(known) == len(finite):
        return Scale(ticks, None, low, high)
    step = max(MARGIN**2, (finite[-1] / finite[0]) ** 0.3)
    beyond = finite[-1] * step
    return Scale({**ticks, "no\nprivacy": beyond}, finite[-1] * math.sqrt(step), low, beyond * MARGIN)


def _said(epsilon: float) -> str:
    """Return epsilon for people; met by calibration, it misses its target by a hair, and 9.998 is called 10."""
    from coalmine.reporting.layout import magnitude

    short = float(f"{epsilon:.2g}")
    return magnitude(short if math.isclose(short, epsilon, rel_tol=0.01) else float(f"{epsilon:.3g}"))


def _place(epsilon: float, scale: Scale) -> float:
    return epsilon if math.isfinite(epsilon) else list(scale.ticks.values())[-1]


def _curves(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of each curve by rising epsilon."""
    names = dict.fromkeys(row["curve"] for row in rows)
    return {
        name: sorted((row for row in rows if row["curve"] == name), key=lambda row: row["claimed_epsilon"])
        for name in names
    }


def _draw(axes: Axes, rows: Sequence[dict[str, Any]], scale: Scale, name: str, dashes: Any = "-") -> list[Any]:
    """Draw one quantity of every method with its bars; join those of a curve that have a guarantee.

    Returns what labels should keep clear of.
    """
    from coalmine.reporting.style import look

    drawn: list[Any] = []
    curves = _curves(rows)
    for index, (curve, points) in enumerate(curves.items()):
        # Of one curve, colours tell the quantities apart; of several, the curves.
        shape = look(index if len(curves) > 1 or name != "recall" else 1)
        x = [_place(row["claimed_epsilon"], scale) for row in points]
        guaranteed = [place for place, row in zip(x, points, strict=True) if math.isfinite(row["claimed_epsilon"])]
        joined = [row[name] for row in points[: len(guaranteed)]]
        axes.plot(guaranteed, joined, color=shape.colour, linestyle=dashes)
        drawn += _pieces(axes, guaranteed, joined)
        errors = [row[f"{name}_se"] or 0.0 for row in points]
        axes.errorbar(x, [row[name] for row in points], errors, fmt="none", ecolor=shape.colour, elinewidth=1.2)
        axes.plot(
            x,
            [row[name] for row in points],
            linestyle="",
            marker=shape.marker,
            color=shape.colour,
            markerfacecolor="white" if name == "recall" else shape.colour,
            markeredgecolor=shape.colour if name == "recall" else "white",
            markeredgewidth=1.3 if name == "recall" else 0.6,
            zorder=3,
            clip_on=False,
            gid=f"{curve}/{name}",
        )
    return drawn


def _pieces(axes: Axes, x: Sequence[float], y: Sequence[float]) -> list[Any]:
    """Return short unseen lines along a line on the logarithmic axis: its own extent would be all that it spans."""
    import numpy as np

    pieces: list[Any] = []
    for (left, low), (right, high) in pairwise(zip(x, y, strict=True)):
        ends = np.geomspace(left, right, 13), np.linspace(low, high, 13)
        for start in range(12):
            pieces += axes.plot(*(each[start : start + 2] for each in ends), visible=False)
    return pieces


def _dress(left: Axes, right: Axes, scale: Scale, distance: str) -> None:
    """Give both panels the axis of epsilon and a vertical axis from 0."""
    from matplotlib.ticker import FixedLocator, NullLocator

    from coalmine.reporting.style import FAINT, percent_axis

    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xlim(scale.low, scale.high)
        axes.xaxis.set_major_locator(FixedLocator([*scale.ticks.values()]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticklabels([*scale.ticks])
        axes.grid(visible=False, axis="x")
        if scale.border is not None:
            axes.axvline(scale.border, color=FAINT, linewidth=1, dashes=(4, 3), zorder=0)
        axes.set_xlabel("claimed ε")
    left.set_ylabel(distance)
    left.set_ylim(0, 1.12 * left.get_ylim()[1])
    right.set_ylabel("share of images")
    right.set_ylim(0, 1.0)
    percent_axis(right.yaxis)


def _explain(figure: Figure, right: Axes, rows: Sequence[dict[str, Any]]) -> None:
    """Write one legend underneath: which quantity is which, and which curve, if there are several."""
    from matplotlib.lines import Line2D

    from coalmine.reporting.style import INK, look

    curves = [*_curves(rows)]
    several = len(curves) > 1
    entries: list[Line2D] = [
        Line2D([], [], color=look(index).colour, marker=look(index).marker, label=curve or "others")
        for index, curve in enumerate(curves if several else [])
    ]
    for index, (name, dashes) in enumerate(SHARES.items()):
        colour = INK if several else look(index).colour
        marker = "" if several else look(index).marker
        entries.append(
            Line2D(
                [],
                [],
                color=colour,
                linestyle=dashes,
                marker=marker,
                markerfacecolor="white" if name == "recall" else colour,
                label=name,
            )
        )
    figure.legend(handles=entries, loc="outside lower center", ncols=3, handlelength=3)
