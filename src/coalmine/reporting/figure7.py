"""Figure 7: confidence in the true and in the wrong label, of canaries and of the images that started from them.

A model that was taught a canary's wrong label is sure of it. A model that was trained on a synthetic image which
started from the canary may be sure of it on that image only, and not on the canary: then the attack, which asks about
the canary, finds little, and the image gives it away all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from coalmine.reporting import confidence
from coalmine.reporting.common import ReportSettings
from coalmine.reporting.confidence import KINDS

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from coalmine.reporting.arrays import RunData
    from coalmine.reporting.results import Results

NEEDS = frozenset({"metrics", "synthetic", "logits", "data"})

GROUPS = {
    "used": "canary IN, a synthetic image starts from it",
    "unused": "canary IN, no synthetic image starts from it",
    "out": "canary OUT",
    "synthetic": "synthetic image that started from a canary",
}
"""What confidence is shown of, and its name for people."""

BRIEF = {"used": "IN (start)", "unused": "IN (no start)", "out": "OUT", "synthetic": "synthetic"}


class Settings(ReportSettings):
    """What figure 7 may be told."""

    title: str = Field(
        default="Confidence in the true and in the wrong label of mislabelled canaries",
        description="title of the figure",
    )


def build(results: Results, settings: Settings) -> tuple[Figure, pd.DataFrame]:
    """Return the figure and its curves: method, kind of label, group, confidence, share (at least as confident).

    Raises:
        CoalmineError: a method is a control, or a file is missing, broken or of another design.
    """
    import pandas as pd

    from coalmine.reporting import style
    from coalmine.reporting.arrays import RunData
    from coalmine.reporting.captions import design_of

    confidence.refuse_controls(results, settings, "figure7")
    data = RunData(results.root)
    found = {
        method: confidences(data, method, settings.sets.get(method), results.metrics[method].design.models)
        for method in settings.methods
    }
    frame: pd.DataFrame = pd.concat(
        [
            confidence.curves(each, ("label_kind", "group"), method=method, label=settings.label(method))
            for method, each in found.items()
        ]
    )
    with style.context():
        figure, panels = style.new_figure(1.7 * len(found) + 0.8, (len(found), 2), sharex=True, sharey=True)
        for row, method in enumerate(found):
            part = frame[frame["method"] == method]
            left, right = panels[2 * row : 2 * row + 2]
            for kind, axes in zip(KINDS, (left, right), strict=True):
                _draw(axes, part[part["label_kind"] == kind])
            left.set_title(settings.label(method), loc="left")
            right.set_title(_sizes(part), loc="right", fontsize=7, color=style.QUIET)
            left.set_ylabel("share at least so sure")
        _dress(figure, panels)
        style.set_title(
            figure,
            settings.title,
            f"{design_of((results.metrics[method] for method in found), settings.label)} One query per canary and "
            "model, one per synthetic image to the model trained on it. The wrong label is the one that a model learns "
            "if the canary is IN. A curve further to the upper right: surer.",
        )
    return figure, frame.reset_index(drop=True)


def confidences(data: RunData, method: str, owner: str | None, models: int) -> dict[tuple[str, str], np.ndarray]:
    """Return the probability that models give to either label, float64 (query,), by kind of label and group.

    Args:
        data: of the run.
        method: whose models are asked.
        owner: the method whose synthetic sets they learned from; without any, every canary that is IN counts as unused.
        models: their number, the first of the run's shadow models.
    """
    import numpy as np

    design = data.design
    rows = np.flatnonzero(design.mislabelled)
    labels = {"true": design.true_label[rows], "wrong": design.canary_label[rows]}
    canary_of = np.full(len(data.private) + 1, -1)  # the last entry is that of source -1
    canary_of[design.index[rows]] = np.arange(len(rows))
    parts: dict[tuple[str, str], list[np.ndarray]] = {(kind, group): [] for kind in KINDS for group in GROUPS}
    for shadow in range(models):
        logits = data.logits(method, shadow)
        source = data.source(owner, shadow) if owner else np.empty(0, dtype=np.int64)
        confidence.require_as_many(data, method, shadow, len(logits.synthetic), len(source))
        inside, taken = design.membership[rows, shadow], np.isin(design.index[rows], source)
        chosen = {"used": inside & taken, "unused": inside & ~taken, "out": ~inside}
        started = canary_of[source]
        asked, made = confidence.softmax(logits.canaries[rows]), confidence.softmax(logits.synthetic)[started >= 0]
        for kind, label in labels.items():
            of_canaries = asked[np.arange(len(rows)), label]
            for group, mask in chosen.items():
                parts[kind, group].append(of_canaries[mask])
            parts[kind, "synthetic"].append(made[np.arange(len(made)), label[started[started >= 0]]])
    return {key: np.concatenate(each) for key, each in parts.items()}


def _draw(axes: Axes, part: pd.DataFrame) -> None:
    from coalmine.reporting.style import QUIET, look

    for index, (group, name) in enumerate(GROUPS.items()):
        shape = look(index)
        colour = QUIET if group == "out" else shape.colour
        curve = part[part["group"] == group]
        confidence.plot(axes, curve, name, color=colour, linestyle=shape.dashes, gid=group)


def _sizes(part: pd.DataFrame) -> str:
    """Return how many queries each curve is of."""
    counts = part.groupby("group", sort=False)["n"].first()
    return "queries: " + ", ".join(f"{n:,} {BRIEF[str(group)]}" for group, n in counts.items())


def _dress(figure: Figure, panels: Sequence[Axes]) -> None:
    """Percent axes, their names, and one legend of all the curves that some panel has."""
    confidence.dress(panels)
    for kind, axes in zip(KINDS, panels[-2:], strict=True):
        axes.set_xlabel(f"confidence in the {kind} label")
    figure.legend(*confidence.named(panels, [*GROUPS.values()]), loc="outside lower center", ncols=2, handlelength=3)
