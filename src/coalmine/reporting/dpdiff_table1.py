"""Table 1 of private diffusion: how good synthetic images are, by data set and epsilon.

What Ghalebikesabi et al. (2023) report (distance of images, accuracy of a classifier that learned from them), with what
they do not: whether generative models hold more of the private data than they should, by the audit of these classifiers
and by how near images lie to private ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from string import ascii_lowercase
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from coalmine.reporting.captions import attack_and_design
from coalmine.reporting.columns import tpr_column
from coalmine.reporting.common import WORST_CASE, ReportSettings
from coalmine.reporting.guarantee import accounting_cell, claim_columns, epsilon_cell
from coalmine.reporting.layout import (
    UNKNOWN,
    Cell,
    Column,
    Layout,
    Row,
    Sheet,
    number,
    number_with_error,
    percent,
    percent_with_error,
    rows_of,
    text,
)
from coalmine.reporting.quality import UNLIKE, compared, distance_name, quality_columns, unlike

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

    from coalmine.reporting.results import Results

NEEDS = frozenset({"metrics", "quality"})

NAME = "dpdiff_table1"

WHOLE = ("claimed_steps", "synthetic_images")
TEXTS = (
    "run",
    "data",
    "method",
    "label",
    "variant",
    "space",
    "real",
    "real_label",
    "claimed_accountant",
    "claimed_note",
    "paper_setting",
)


class Settings(ReportSettings):
    """What table 1 of private diffusion may be told."""

    title: str = Field(default="Synthetic images by data set and privacy", description="heading of the page")
    data: str = Field(min_length=1, description="name of the run's data set for people, such as CIFAR-10")
    real: str = Field(description="method that is trained on the real data, whose accuracy stands beside")
    runs: Annotated[tuple[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")], ...], Field(strict=False)] = Field(
        default=(),
        description=f"further runs, whose finished results/<run>/{NAME}.csv stand underneath; made before, each with "
        "its own configuration",
    )

    @property
    def needed(self) -> tuple[str, ...]:
        """Every method whose files must exist: those shown and the one trained on the real data."""
        return tuple(dict.fromkeys([*self.methods, self.real]))


def build(results: Results, settings: Settings) -> pd.DataFrame:
    """Return one row per method by rising epsilon, those without a guarantee last; then those of other runs.

    Raises:
        CoalmineError: a method makes no synthetic images, or the table of another run is missing or broken.
    """
    import pandas as pd

    own = sorted((_row(results, settings, method) for method in settings.methods), key=_epsilon)
    others = [row for run in settings.runs for row in _rows_of_run(results.root, run, [*own[0]])]
    return pd.DataFrame([*own, *others]).astype(dict.fromkeys(WHOLE, "Int64"))


def layout(frame: pd.DataFrame) -> Layout:
    """Return how people see the frame; papers' settings, notes of claims and what limits comparisons are footnotes."""
    rows = rows_of(frame)
    noted = [row[name] for name in ("paper_setting", "claimed_note") for row in rows if row[name]]
    marks = {note: f"[{ascii_lowercase[index]}]" for index, note in enumerate(dict.fromkeys(noted))}
    shown = [
        {
            **row,
            "data": "" if before and before["data"] == row["data"] else row["data"],
            "paper_mark": marks.get(row["paper_setting"], ""),
            "claimed_mark": marks.get(row["claimed_note"], ""),
        }
        for before, row in zip([None, *rows], rows, strict=False)
    ]
    named = frame.assign(label=frame["label"] + (" on " + frame["data"] if frame["data"].nunique() > 1 else ""))
    footnotes = [*(f"{mark} {note}" for note, mark in marks.items()), *([UNLIKE] if unlike(rows) else [])]
    caption = f"{attack_and_design(named)} {'; '.join(compared(rows))}, mean ± standard error."
    return (Sheet(_columns(rows), shown, caption, footnotes),)


def _columns(rows: Sequence[Row]) -> list[Column]:
    """Return the columns, without those that would be empty in every row."""
    optional = {
        ACCOUNTING: any(math.isfinite(row["claimed_epsilon"]) for row in rows),
        BALANCED: any(row["nearest_balanced"] is not None for row in rows),
        SYNTHETIC: any(row["synthetic_images"] is not None for row in rows),
    }
    papers = [column for name, column in PAPER.items() if any(row[name] is not None for row in rows)]
    distance = _distance_column(distance_name(rows))
    return [column for column in (*CLAIM, distance, *FOUND, *papers, *AUDIT) if optional.get(column, True)]


def _row(results: Results, settings: Settings, method: str) -> dict[str, Any]:
    from coalmine.reporting.published import published_utility
    from coalmine.reporting.results import LOW_FPR

    metrics, real, quality = results.metrics[method], results.metrics[settings.real], results.quality(method)
    attack = metrics.variant(WORST_CASE)
    tpr = attack.tpr[LOW_FPR]
    paper = published_utility(settings.data, metrics.claimed.epsilon)
    return {
        "run": results.root.name,
        "data": settings.data,
        "method": method,
        "label": settings.label(method),
        **claim_columns(metrics),
        **quality_columns(quality),
        "synthetic_images": quality.synthetic,
        "accuracy": metrics.accuracy.mean,
        "accuracy_se": metrics.accuracy.se,
        "real": settings.real,
        "real_label": settings.label(settings.real),
        "real_accuracy": real.accuracy.mean,
        "real_accuracy_se": real.accuracy.se,
        "real_n_models": real.design.models,
        "paper_fid": paper.fid if paper else None,
        "paper_accuracy": paper.accuracy if paper else None,
        "paper_real_accuracy": paper.real_accuracy if paper else None,
        "paper_setting": f"{paper.setting} ({paper.source})" if paper else None,
        "variant": metrics.primary,
        "tpr_at_fpr_0.001": tpr.value,
        "tpr_at_fpr_0.001_low": tpr.low,
        "tpr_at_fpr_0.001_high": tpr.high,
        "false_positives": tpr.false_positives,
        "false_positives_allowed": tpr.allowed,
        "n_canaries": metrics.design.canaries,
        "n_models": metrics.design.models,
        "confidence": attack.epsilon.confidence,
    }


def _epsilon(row: Row) -> float:
    epsilon: float = row["claimed_epsilon"]
    return epsilon


def _rows_of_run(root: Path, run: str, names: list[str]) -> list[dict[str, Any]]:
    """Read the rows of another run from its finished table, without those that it took from further runs.

    Args:
        root: results folder of this run.
        run: name of the other one.
        names: the columns that the table must have.

    Raises:
        CoalmineError: there is no such table, it is broken, or was made by another version.
    """
    import pandas as pd

    from coalmine.errors import CoalmineError

    path = root.parent / run / f"{NAME}.csv"
    command = f"snakemake {path} --cores all --configfile <configuration of the run {run}>"
    if run == root.name:
        raise CoalmineError(f"{NAME}.runs lists {run}, which is this run itself. Leave it out.")
    if not path.is_file():
        raise CoalmineError(f"{NAME} lists the run {run}, but there is no {path}. Make it: {command}")
    try:
        frame = pd.read_csv(path, keep_default_na=False, na_values=[""])
    except ValueError as error:  # an empty, cut or binary file
        raise CoalmineError(f"{path} is no readable table ({error}). Delete it and make it anew: {command}") from error
    if [*frame.columns] != names:
        missing = ", ".join(name for name in names if name not in frame) or "none"
        beyond = ", ".join(name for name in frame.columns if name not in names) or "none"
        raise CoalmineError(
            f"{path} was made by another version: of the columns of this one it lacks {missing}, and it has {beyond} "
            f"beyond them, or another order. Make it anew: {command}"
        )
    wrong = [
        name
        for name in names
        if name not in TEXTS and not pd.api.types.is_numeric_dtype(frame[name]) and frame[name].notna().any()
    ]
    rows = rows_of(frame[frame["run"] == run])
    if wrong or not rows:
        fault = (
            f"the column {wrong[0]} holds something that is no number" if wrong else f"it has no row of the run {run}"
        )
        raise CoalmineError(f"{path} is broken: {fault}. Delete it and make it anew: {command}")
    return rows


def _marked(row: Row, name: str, said: str) -> Cell:
    """Return a paper's number with the mark of its footnote, a dash where it is not known."""
    return Cell(UNKNOWN if row[name] is None else f"{said} {row['paper_mark']}")


_PRIVACY, _IMAGES, _UTILITY, _PAPER, _AUDIT = "privacy", "images", "downstream", "published", "audit"


def _distance_column(heading: str) -> Column:
    return Column(
        heading,
        lambda row: number_with_error(row, "distance"),
        "Fréchet distance of the Gaussians fitted to features of synthetic images and of the shadow model's private "
        "ones, mean over models ± its standard error; lower is better. Called FID only in the features of "
        "Inception-v3; others are on other scales. Fewer images make it larger.",
        _IMAGES,
        brief=True,
    )


ACCOUNTING = Column(
    "accounting",
    accounting_cell,
    "What the claimed ε holds for and was computed with: δ, accountant, noise multiplier σ (noise over clipping norm), "
    "sampling rate q of each step, number of steps, clipping norm C.",
    _PRIVACY,
    numeric=False,
)

CLAIM = (
    Column("data set", text("data"), brief=True, numeric=False),
    Column("method", text("label"), brief=True, numeric=False),
    Column(
        "claimed ε",
        lambda row: epsilon_cell(row, mark=row["claimed_mark"]),
        "Guarantee of differential privacy that the method claims, with the TPR at 0.1 % FPR that it allows at most; "
        "vacuous if that is 99.99 % or more; ∞ if there is none.",
        _PRIVACY,
        brief=True,
        numeric=False,
    ),
    ACCOUNTING,
)

BALANCED = Column(
    "balanced",
    lambda row: number_with_error(row, "nearest_balanced"),
    "The same by 2a / (a + b): 1 without leakage.",
    _IMAGES,
)

SYNTHETIC = Column(
    "images",
    lambda row: Cell(UNKNOWN if row["synthetic_images"] is None else f"{row['synthetic_images']:,.0f}"),
    "Synthetic images of a set, on which a classifier is trained.",
    _UTILITY,
)

FOUND = (
    Column(
        "compared",
        lambda row: Cell(f"{row['space']}, {row['images']:,.0f}"),
        "The features that the distance, precision and recall, and the nearest images are of, and how many images of "
        "each set.",
        _IMAGES,
        numeric=False,
    ),
    Column(
        "precision",
        lambda row: percent_with_error(row, "precision"),
        "Share of synthetic images that lie among private ones, within reach of the k-th neighbour (Kynkäänniemi et "
        "al. 2019): are they realistic?",
        _IMAGES,
    ),
    Column(
        "recall",
        lambda row: percent_with_error(row, "recall"),
        "Share of private images that lie among synthetic ones: are all kinds covered?",
        _IMAGES,
    ),
    Column(
        "nearest ratio",
        lambda row: number_with_error(row, "nearest"),
        "Distance a of a synthetic image to the nearest private image, over the distance b to the nearest held-out "
        "one, among equally many audited samples; mean. Below 1: nearer to what was trained on. Without leakage a "
        "little above 1, as a mean of ratios is.",
        _IMAGES,
    ),
    BALANCED,
    SYNTHETIC,
    Column(
        "accuracy",
        lambda row: percent_with_error(row, "accuracy"),
        "Test accuracy, on real images, of classifiers trained on synthetic sets: mean over the models ± its standard "
        "error.",
        _UTILITY,
        brief=True,
    ),
    Column(
        "on real data",
        lambda row: percent_with_error(row, "real_accuracy"),
        "The same of classifiers trained on the private images themselves, without any protection.",
        _UTILITY,
        brief=True,
    ),
)

PAPER = {
    "paper_fid": Column(
        "its FID",
        lambda row: _marked(row, "paper_fid", number(row["paper_fid"], 2)),
        "FID that the paper prints for this data set and ε, in the setting of its footnote. Of another number of "
        "images, or by other features, ours cannot be compared with it.",
        _PAPER,
    ),
    "paper_accuracy": Column(
        "its accuracy",
        lambda row: _marked(row, "paper_accuracy", percent(row["paper_accuracy"])),
        "Downstream accuracy that the paper prints for this data set and ε; unknown where we know of none.",
        _PAPER,
        brief=True,
    ),
    "paper_real_accuracy": Column(
        "its real data",
        lambda row: _marked(row, "paper_real_accuracy", percent(row["paper_real_accuracy"])),
        "Accuracy on real data that it sets beside that.",
        _PAPER,
    ),
}

AUDIT = (
    tpr_column(_AUDIT),
    Column(
        "models",
        lambda row: Cell(f"{row['n_models']:.0f}"),
        "Audited shadow models; with fewer of them the attack is weaker.",
        _AUDIT,
        brief=True,
    ),
)
