"""Table 2: dataset distillation by what its images start from: private samples, public ones, or noise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from coalmine.reporting.captions import attack_and_design
from coalmine.reporting.columns import METHOD, accuracy_column, auc_column, models_column, tpr_column
from coalmine.reporting.common import WORST_CASE, ReportSettings
from coalmine.reporting.layout import (
    UNKNOWN,
    Cell,
    Column,
    Layout,
    Row,
    Sheet,
    percent,
    percent_interval,
    rows_of,
)
from coalmine.reporting.visual import visual_column, visual_columns

if TYPE_CHECKING:
    import pandas as pd

    from coalmine.reporting.results import Results

NEEDS = frozenset({"metrics", "scores", "visual"})

STARTS = {"private": "private samples", "public": "public samples", "noise": "noise"}


class Settings(ReportSettings):
    """What table 2 may be told."""

    title: str = Field(default="Dataset distillation by what its images start from", description="heading of the page")
    replicates: int = Field(default=1000, ge=1, description="replicates of the bootstrap over canaries that are used")


def build(results: Results, settings: Settings) -> pd.DataFrame:
    """Return one row per method entry: its initialisation, leakage of all canaries and of those used, accuracy."""
    import pandas as pd

    return pd.DataFrame([_row(results, settings, method) for method in settings.methods]).astype(
        {"used_canaries": "Int64", "used_false_positives": "Int64", "used_false_positives_allowed": "Int64"}
    )


def layout(frame: pd.DataFrame) -> Layout:
    """Return how people see the frame."""
    rows = rows_of(frame)
    columns = (
        METHOD,
        STARTS_FROM,
        *models_column(rows, _LEAKAGE),
        *LEAKAGE,
        *visual_column(rows, "visual leakage"),
        *OTHERS,
    )
    return (Sheet(columns, rows, attack_and_design(frame)),)


def _row(results: Results, settings: Settings, method: str) -> dict[str, Any]:
    from coalmine.reporting.results import LOW_FPR
    from coalmine.reporting.used import group_columns, read_groups

    metrics = results.metrics[method]
    attack, facts = metrics.variant(WORST_CASE), metrics.group(WORST_CASE).facts
    tpr, confidence = attack.tpr[LOW_FPR], attack.epsilon.confidence
    groups = read_groups(results, method)
    used = group_columns(
        "used", groups.used if groups else None, method, confidence=confidence, replicates=settings.replicates
    )
    return {
        "method": method,
        "label": settings.label(method),
        "initialisation": settings.initialisation.get(method),
        "variant": metrics.primary,
        "tpr_at_fpr_0.001": tpr.value,
        "tpr_at_fpr_0.001_low": tpr.low,
        "tpr_at_fpr_0.001_high": tpr.high,
        "auc": attack.auc.value,
        "auc_low": attack.auc.low,
        "auc_high": attack.auc.high,
        **used,
        **visual_columns(results.visual(method)),
        "accuracy": metrics.accuracy.mean,
        "accuracy_se": metrics.accuracy.se,
        "canaries_used": facts.selected if facts.initialised is None else facts.initialised,
        "n_canaries": metrics.design.canaries,
        "n_models": metrics.design.models,
        "confidence": confidence,
    }


def _start_cell(row: Row) -> Cell:
    return Cell(STARTS.get(row["initialisation"], UNKNOWN))


def _used_cell(row: Row) -> Cell:
    return percent_interval(row, "used_tpr_at_fpr_0.001")


_LEAKAGE, _USED = "leakage of mislabelled canaries", "canaries that images start from"

STARTS_FROM = Column(
    "starts from",
    _start_cell,
    "What the synthetic images are before the first step: the shadow model's own private samples, public ones (of "
    "another distribution), or noise. A dash: the method makes no images, or starts from nothing.",
    brief=True,
    numeric=False,
)

LEAKAGE = (
    tpr_column(_LEAKAGE),
    auc_column(_LEAKAGE),
    Column(
        "used",
        lambda row: Cell(percent(row["canaries_used"])),
        "Share of (IN canary, model) pairs whose image is where a synthetic image starts from (for a coreset: which is "
        "in it).",
        _USED,
        brief=True,
    ),
    Column(
        "used TPR@0.1%FPR",
        _used_cell,
        "The TPR on canaries that are used in every model that holds them, at a threshold of their own; a dash if "
        "these are fewer than 5.",
        _USED,
        brief=True,
    ),
    Column(
        "n used",
        lambda row: Cell(UNKNOWN if row["used_canaries"] is None else f"{row['used_canaries']:.0f}"),
        "Canaries that are used in every model that holds them.",
        _USED,
    ),
)

OTHERS = (accuracy_column("utility"),)
