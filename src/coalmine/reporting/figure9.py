"""Figure 9: data-free students beside their teachers: confidence in true and wrong labels, and rates model by model.

A teacher that was trained on a canary's wrong label is sure of it. Its student saw only images that were made from the
teacher, and the teacher's answers to them. Where it is surer of the wrong label of canaries that are IN than of others,
that came through the teacher: on images that show no canary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import Field

from coalmine.reporting import confidence
from coalmine.reporting.common import WORST_CASE, ReportSettings
from coalmine.reporting.confidence import KINDS

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from coalmine.audit.design import Design
    from coalmine.reporting.arrays import RunData
    from coalmine.reporting.results import Correlation, Inheritance, Results

NEEDS = frozenset({"metrics", "synthetic", "logits", "data", "teachers"})

GROUPS = {"in": "IN", "out": "OUT", "synthetic": "synthetic"}
"""What confidence is shown of, and its name for people."""

TEACHERS = "teacher's"
"""The label that confidence in a synthetic image is in: its teacher's likeliest class, as it has no true one."""

MODELS = ("teacher", "student")
MARKERS = {"in": "o", "out": "s"}


class Settings(ReportSettings):
    """What figure 9 may be told."""

    title: str = Field(
        default="What students without private data take over from their teachers", description="title of the figure"
    )


class Answers(NamedTuple):
    """What the models of a method and their teachers, in the order of ``MODELS``, answer.

    Attributes:
        canaries: float32 (canary, model, class) each, logits of the mislabelled canaries as they are.
        synthetic: floats (image,) each, probabilities of the teacher's likeliest class; empty where it is not known.
    """

    canaries: tuple[np.ndarray, ...]
    synthetic: tuple[np.ndarray, ...]


def build(results: Results, settings: Settings) -> tuple[Figure, pd.DataFrame]:
    """Return the figure and what it draws: ``drawn`` tells a point of a curve (``curve``) from a model (``model``).

    Curves: label_kind, group, of (teacher or student), n, mean, confidence, share (at least as confident). Models:
    group, shadow, n (canaries), teacher_rate and student_rate of the wrong label, standardised.

    Raises:
        CoalmineError: a method is a control or has no teacher, or a file is missing, broken or of another design.
    """
    import pandas as pd

    from coalmine.reporting import style
    from coalmine.reporting.arrays import RunData
    from coalmine.reporting.captions import confidence as level_of
    from coalmine.reporting.captions import design_of

    confidence.refuse_controls(results, settings, "figure9")
    inherited = {method: _inheritance(results, settings, method) for method in settings.methods}
    data = RunData(results.root)
    sizes = {method: results.metrics[method].design.models for method in settings.methods}
    frame = pd.concat([_frame(data, settings, method, models) for method, models in sizes.items()], ignore_index=True)
    attacks = [results.metrics[method].variant(WORST_CASE) for method in settings.methods]
    level = level_of(pd.DataFrame({"confidence": [attack.epsilon.confidence for attack in attacks]}))
    with style.context():
        figure, panels = style.new_figure(1.95 * len(inherited) + 0.8, (len(inherited), 3), sharex="col")
        for row, (method, found) in enumerate(inherited.items()):
            part, (*sure, rates) = frame[frame["method"] == method], panels[3 * row : 3 * row + 3]
            for kind, axes in zip(KINDS, sure, strict=True):
                _draw_curves(axes, part[part["drawn"] == "curve"], kind)
            _draw_models(rates, part[part["drawn"] == "model"])
            sure[0].set_title(settings.label(method), loc="left")
            _head(rates, _correlations(found))
        _dress(figure, panels)
        style.set_title(
            figure,
            settings.title,
            f"{design_of((results.metrics[method] for method in inherited), settings.label)} Curves: one query per "
            "canary (IN, OUT) and model, and one per synthetic image, in its teacher's label; further to the upper "
            "right: surer. Points: shadow models, how often teacher and student predict the wrong label, as if all "
            "held the same canaries. r: correlation of these rates, and of scores, beyond what IN and OUT explain, "
            f"with {level} interval; –: one of the two does not vary.",
        )
    return figure, frame


def answers(data: RunData, method: str, teacher: str, owner: str | None, models: int) -> Answers:
    """Read what a method's models and their teachers answer.

    Args:
        data: of the run.
        method: whose models are asked.
        teacher: the method whose models taught them.
        owner: the method whose synthetic sets they learned from, if any.
        models: the number of the method's models, the first of the run's shadow models; there may be more teachers.
    """
    import numpy as np

    rows = data.design.mislabelled
    asked: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    sure: tuple[list[np.ndarray], list[np.ndarray]] = ([np.empty(0)], [np.empty(0)])
    for shadow in range(models):
        student = data.logits(method, shadow)
        for stack, logits in zip(asked, (data.logits(teacher, shadow), student), strict=True):
            stack.append(logits.canaries[rows])
        if owner is None:
            continue
        made = data.synthetic(owner, shadow)
        confidence.require_as_many(data, method, shadow, len(student.synthetic), len(made.labels))
        if made.confidence is not None:
            sure[0].append(made.confidence)
        sure[1].append(confidence.softmax(student.synthetic)[np.arange(len(made.labels)), made.labels])
    return Answers(
        tuple(np.stack(each, axis=1) for each in asked),
        tuple(np.concatenate(each) for each in sure),
    )


def _inheritance(results: Results, settings: Settings, method: str) -> Inheritance:
    from coalmine.errors import CoalmineError

    teacher = settings.teachers.get(method)
    if teacher is None:
        raise CoalmineError(
            f"figure9 lists {method}, whose models no other models taught. Leave it out of the figure's methods."
        )
    found = results.metrics[method].group(WORST_CASE).inheritance
    if found is None or found.teacher != teacher:
        raise CoalmineError(
            f"{results.root / 'metrics' / method}.json has {found.teacher if found else 'none'} as the teacher of "
            f"{method}, but the configuration has {teacher}. Delete the file and run Snakemake again: it makes the "
            "file anew."
        )
    return found


def _frame(data: RunData, settings: Settings, method: str, models: int) -> pd.DataFrame:
    """Return the curves and the models of one method."""
    import pandas as pd

    from coalmine.audit.design import first_models

    found = answers(data, method, settings.teachers[method], settings.sets.get(method), models)
    design = first_models(data.design, models)
    head = {"method": method, "label": settings.label(method)}
    names = ("label_kind", "group", "of")
    curves = confidence.curves(_probabilities(found, design), names, drawn="curve", **head)
    return pd.concat([curves, pd.DataFrame({"drawn": "model", **head, **_rates(found, design)})])


def _probabilities(found: Answers, design: Design) -> dict[tuple[str, ...], np.ndarray]:
    """Return probabilities, float64 (query,), by kind of label, group and model."""
    import numpy as np

    rows = design.mislabelled
    member = design.membership[rows]
    labels = dict(zip(KINDS, (design.true_label[rows], design.canary_label[rows]), strict=True))
    parts: dict[tuple[str, ...], np.ndarray] = {}
    for of, logits, made in zip(MODELS, *found, strict=True):
        sure = confidence.softmax(logits)
        for kind, label in labels.items():
            asked = np.take_along_axis(sure, label[:, None, None], axis=-1)[..., 0]
            parts |= {(kind, "in", of): asked[member], (kind, "out", of): asked[~member]}
        parts[TEACHERS, "synthetic", of] = made
    return parts


def _rates(found: Answers, design: Design) -> dict[str, Any]:
    """Return columns with the rates of the wrong label of each shadow model, IN and OUT."""
    import numpy as np

    from coalmine.audit.inheritance import predicts, standardised_rates

    rows = design.mislabelled
    member, label = design.membership[rows], design.canary_label[rows]
    sides = {"in": member, "out": ~member}
    models = member.shape[1]
    columns: dict[str, Any] = {
        "group": np.repeat([*sides], models),
        "shadow": np.tile(np.arange(models), len(sides)),
        "n": np.concatenate([side.sum(axis=0) for side in sides.values()]),
    }
    for of, logits in zip(MODELS, found.canaries, strict=True):
        hits = predicts(logits, label)
        columns[f"{of}_rate"] = np.concatenate([standardised_rates(hits, side) for side in sides.values()])
    return columns


def _colour(group: str) -> Any:
    from coalmine.reporting.style import QUIET, look

    return {"in": look(0).colour, "out": QUIET, "synthetic": look(3).colour}[group]


def _draw_curves(axes: Axes, part: pd.DataFrame, kind: str) -> None:
    """Draw confidence in one kind of label; that in synthetic images stands beside the canaries' true label."""
    shown = {"in": kind, "out": kind, **({"synthetic": TEACHERS} if kind == KINDS[0] else {})}
    drawn: dict[str, dict[str, Any]] = {
        "teacher": {"linestyle": (0, (4, 1.3)), "linewidth": 1.1},
        "student": {"linewidth": 1.9},
    }
    for group, label in shown.items():
        for of, how in drawn.items():
            curve = part[(part["label_kind"] == label) & (part["group"] == group) & (part["of"] == of)]
            confidence.plot(axes, curve, f"{GROUPS[group]}, {of}", color=_colour(group), gid=f"{group}/{of}", **how)


def _draw_models(axes: Axes, part: pd.DataFrame) -> None:
    """Draw a point for each shadow model, IN and OUT, and where student and teacher would be alike."""
    from coalmine.reporting.style import FAINT

    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, zorder=1)
    for group, marker in reversed(MARKERS.items()):
        own = part[part["group"] == group]
        axes.plot(
            own["teacher_rate"],
            own["student_rate"],
            linestyle="",
            marker=marker,
            markersize=3.5,
            markerfacecolor="none",
            markeredgewidth=0.8,
            color=_colour(group),
            label=f"model, {GROUPS[group]}",
            gid=f"{group}/models",
            clip_on=False,
        )


def _head(axes: Axes, said: str) -> None:
    """Write two lines above the last panel of a row; they take height, but no width from the panel."""
    from coalmine.reporting.style import QUIET

    font: dict[str, Any] = {"fontsize": 7, "linespacing": 1.25}
    axes.set_title(" \n ", **font)
    text = axes.annotate(
        said, (1, 1), (0, 6), xycoords="axes fraction", textcoords="offset points", ha="right", color=QUIET, **font
    )
    text.set_in_layout(False)


def _correlations(found: Inheritance) -> str:
    """Return two lines: the correlations of rates and of scores, IN and OUT, with their intervals."""
    names = {"rates": "r of rates over models", "scores": "r of scores over pairs"}
    return "\n".join(
        f"{name}: IN {_told(getattr(found.members, what))}, OUT {_told(getattr(found.nonmembers, what))}"
        for what, name in names.items()
    )


def _told(correlation: Correlation | None) -> str:
    from coalmine.reporting.layout import fixed_interval

    columns = {"r": "value", "r_low": "low", "r_high": "high"}
    cell = fixed_interval({name: getattr(correlation, end, None) for name, end in columns.items()}, "r", 2)
    return f"{cell.text} {cell.aside}".rstrip()


def _dress(figure: Figure, panels: Sequence[Axes]) -> None:
    """Percent axes, their names, and one legend of everything that some panel has."""
    from coalmine.reporting.style import percent_axis

    columns = panels[0::3], panels[1::3], panels[2::3]
    confidence.dress([*columns[0], *columns[1]])
    for left, middle, right in zip(*columns, strict=True):
        left.set_ylabel("share at least so sure")
        middle.tick_params(labelleft=False)
        right.set_ylabel("student: wrong label")
        for axis in (right.xaxis, right.yaxis):
            percent_axis(axis)
        # Standardised rates may lie a little beyond 0 and 1.
        right.set_xlim(-0.07, 1.07)
        right.set_ylim(-0.07, 1.07)
    for axes in panels:
        axes.set_xticks([0, 0.5, 1])
    names = [f"confidence in the {kind} label" for kind in KINDS]
    for axes, name in zip(panels[-3:], [*names, "teacher: wrong label"], strict=True):
        axes.set_xlabel(name)
    entries = [f"{name}, {of}" for name in GROUPS.values() for of in MODELS]
    entries += [f"model, {GROUPS[group]}" for group in MARKERS]
    figure.legend(*confidence.named(panels, entries), loc="outside lower center", ncols=4, handlelength=2.4)
