"""Table 1: leakage, accuracy, cost and guarantee of every method, beside the papers' numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from string import ascii_lowercase
from typing import TYPE_CHECKING, Any

from pydantic import Field

from coalmine.reporting.captions import SECONDS_PER_MODEL, attack_and_design
from coalmine.reporting.columns import METHOD, accuracy_column, auc_column, models_column, tpr_column
from coalmine.reporting.common import WORST_CASE, ReportSettings
from coalmine.reporting.guarantee import accounting_cell, claim_columns, epsilon_cell
from coalmine.reporting.inherited import INHERITED, inherited_columns
from coalmine.reporting.layout import (
    UNKNOWN,
    Cell,
    Column,
    Layout,
    Row,
    Sheet,
    number,
    percent,
    percent_interval,
    points,
    rows_of,
)
from coalmine.reporting.visual import visual_column, visual_columns

if TYPE_CHECKING:
    import pandas as pd

    from coalmine.reporting.results import Results

NEEDS = frozenset({"metrics", "costs", "visual"})


class Settings(ReportSettings):
    """What table 1 may be told."""

    title: str = Field(default="Leakage, accuracy and cost of every method", description="heading of the page")
    seconds: bool = Field(
        default=True,
        description="show what differs from machine to machine, seconds and device; without them, the same run "
        "gives the same bytes everywhere",
    )
    published: dict[str, str] = Field(
        default={},
        description="method -> the key of its number in coalmine.reporting.published (default: its name; a key "
        "without a number shows none)",
    )


def build(results: Results, settings: Settings) -> pd.DataFrame:
    """Return one row per method; fractions, seconds and counts, unknown values missing."""
    import pandas as pd

    rows = [_row(results, settings, method) for method in settings.methods]
    return pd.DataFrame(rows).astype({"claimed_steps": "Int64"})


def layout(frame: pd.DataFrame) -> Layout:
    """Return how people see the frame; the papers' settings and the notes of claims become footnotes."""
    rows = rows_of(frame)
    noted = [row[name] for name in ("paper_setting", "claimed_note") for row in rows if row[name]]
    marks = {note: f"[{ascii_lowercase[index]}]" for index, note in enumerate(dict.fromkeys(noted))}
    shown = [
        {
            **row,
            "paper_mark": marks.get(row["paper_setting"], ""),
            "claimed_mark": marks.get(row["claimed_note"], ""),
        }
        for row in rows
    ]
    footnotes = [f"{mark} {note}" for note, mark in marks.items()]
    return (Sheet(_columns(rows), shown, attack_and_design(frame), footnotes),)


def _columns(rows: Sequence[Row]) -> list[Column]:
    """Return the columns, without those that would be empty in every row."""
    claims = any(math.isfinite(row["claimed_epsilon"]) for row in rows)
    started = any(row["canaries_initialised"] is not None for row in rows)
    taught = any(row["teacher"] is not None for row in rows)
    measured = any(row["seconds_per_model"] is not None for row in rows)
    empty = [*([] if claims else [ACCOUNTING]), *([] if started else [INITIALISED]), *([] if measured else COST)]
    leakage = [METHOD, *models_column(rows, _LEAKAGE), *LEAKAGE]
    columns = [*leakage, *(INHERITED if taught else []), *visual_column(rows, "visual leakage"), *OTHERS]
    return [column for column in columns if column not in empty]


def _row(results: Results, settings: Settings, method: str) -> dict[str, Any]:
    from coalmine.reporting.published import PUBLISHED
    from coalmine.reporting.results import HIGH_FPR, LOW_FPR

    metrics = results.metrics[method]
    group, attack = metrics.group(WORST_CASE), metrics.variant(WORST_CASE)
    low, high = attack.tpr[LOW_FPR], attack.tpr[HIGH_FPR]
    maximum = group.max_over_variants[LOW_FPR]
    seconds, device = results.seconds_per_model(method) if settings.seconds else (None, None)
    paper = PUBLISHED.get(settings.published.get(method, method))
    return {
        "method": method,
        "label": settings.label(method),
        "variant": metrics.primary,
        "tpr_at_fpr_0.001": low.value,
        "tpr_at_fpr_0.001_low": low.low,
        "tpr_at_fpr_0.001_high": low.high,
        "false_positives": low.false_positives,
        "false_positives_allowed": low.allowed,
        "tpr_at_fpr_0.01": high.value,
        "tpr_at_fpr_0.01_low": high.low,
        "tpr_at_fpr_0.01_high": high.high,
        "auc": attack.auc.value,
        "auc_low": attack.auc.low,
        "auc_high": attack.auc.high,
        **visual_columns(results.visual(method)),
        "accuracy": metrics.accuracy.mean,
        "accuracy_se": metrics.accuracy.se,
        "seconds_per_model": seconds,
        "device": device,
        "canaries_selected": group.facts.selected,
        "canaries_initialised": group.facts.initialised,
        "canaries_memorised": group.facts.memorised,
        **inherited_columns(group.inheritance),
        **claim_columns(metrics),
        "empirical_epsilon": attack.epsilon.lower,
        "empirical_epsilon_ceiling": attack.epsilon.ceiling,
        "confidence": attack.epsilon.confidence,
        "peers_maximum_over_variants": maximum.value,
        "peers_maximum_variant": maximum.variant,
        "paper_tpr": paper.tpr if paper else None,
        "paper_setting": f"{paper.setting} ({paper.source})" if paper else None,
        "difference": low.value - paper.tpr if paper and paper.comparable else None,
        "n_canaries": metrics.design.canaries,
        "n_models": metrics.design.models,
    }


def _empirical_cell(row: Row) -> Cell:
    found = f"{row['empirical_epsilon']:.2f}"
    said = f"{found} exceeds the claim" if row["claim_exceeded"] else found
    return Cell(said, f"of {row['empirical_epsilon_ceiling']:.2f}", warning=bool(row["claim_exceeded"]))


def _maximum_cell(row: Row) -> Cell:
    return Cell(percent(row["peers_maximum_over_variants"]))


def _false_positives_cell(row: Row) -> Cell:
    return Cell(f"{row['false_positives']} of {row['false_positives_allowed']}")


def _device_cell(row: Row) -> Cell:
    return Cell(row["device"] or UNKNOWN)


_LEAKAGE = "leakage of mislabelled canaries"

ACCOUNTING = Column(
    "accounting",
    accounting_cell,
    "What the claimed ε holds for and was computed with: δ, accountant, noise multiplier σ (noise over clipping norm), "
    "sampling rate q of each step, number of steps, clipping norm C.",
    "privacy",
    numeric=False,
)

INITIALISED = Column(
    "initialised",
    lambda row: Cell(percent(row["canaries_initialised"])),
    "Share of (IN canary, model) pairs whose image is where a synthetic image starts from; a dash for a method that "
    "copies images or makes none.",
    "canaries",
    brief=True,
)

LEAKAGE = (
    tpr_column(_LEAKAGE),
    Column(
        "false positives",
        _false_positives_cell,
        "Non-members accused at that threshold, of those that 0.1 % allows: the whole estimate hangs on these few.",
        _LEAKAGE,
    ),
    Column(
        "TPR@1%",
        lambda row: percent_interval(row, "tpr_at_fpr_0.01"),
        "The same at 1 % FPR.",
        _LEAKAGE,
        brief=True,
    ),
    auc_column(_LEAKAGE),
    Column(
        "peers' maximum over variants",
        _maximum_cell,
        "Highest TPR@0.1%FPR of all attack variants, chosen after the fact as earlier papers do: biased upwards, for "
        "comparison only.",
        _LEAKAGE,
    ),
)

COST = (
    Column(
        "s/model",
        lambda row: Cell(number(row["seconds_per_model"])),
        f"{SECONDS_PER_MODEL} Unknown for a control, which reuses another method's models.",
        "cost",
        brief=True,
    ),
    Column("device", _device_cell, "", "cost", numeric=False),
)
OTHERS = (
    accuracy_column("utility"),
    *COST,
    Column(
        "selected",
        lambda row: Cell(percent(row["canaries_selected"])),
        "Share of (IN canary, model) pairs whose image is, as it is, in the set that the model was trained on.",
        "canaries",
        brief=True,
    ),
    INITIALISED,
    Column(
        "memorised",
        lambda row: Cell(percent(row["canaries_memorised"])),
        "Share of (IN canary, model) pairs for which the model predicts the canary's wrong label.",
        "canaries",
    ),
    Column(
        "claimed ε",
        lambda row: epsilon_cell(row, mark=row["claimed_mark"]),
        "Guarantee of differential privacy that the method claims, with the TPR at 0.1 % FPR that it allows at most; "
        "vacuous if that is 99.99 % or more; ∞ if there is none.",
        "privacy",
        brief=True,
        numeric=False,
    ),
    ACCOUNTING,
    Column(
        "empirical ε\N{NO-BREAK SPACE}≥",
        _empirical_cell,
        "Lower bound on ε that the audit proves, at the confidence of the intervals, of the highest bound that this "
        "many canaries could have given. A bound that exceeds the claimed ε tells of a bug or of a guarantee that does "
        "not hold.",
        "privacy",
    ),
    Column(
        "paper",
        lambda row: Cell(f"{percent(row['paper_tpr'])} {row['paper_mark']}".rstrip()),
        "TPR@0.1%FPR that a paper prints, in the setting of its footnote; unknown where no paper states one.",
        "published",
        brief=True,
    ),
    Column(
        "ours − paper",
        lambda row: Cell(points(row["difference"])),
        "Percentage points; left out where the paper's number answers another question.",
        "published",
    ),
)
