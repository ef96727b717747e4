"""Table 5: what the worst-case audit (mislabelled canaries) sees and the average case (clean canaries) hides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from coalmine.reporting.columns import METHOD, models_column
from coalmine.reporting.common import AVERAGE_CASE, WORST_CASE, AverageCaseSettings
from coalmine.reporting.layout import (
    Cell,
    Column,
    Layout,
    Sheet,
    fixed_interval,
    percent_interval,
    percent_with_error,
    rows_of,
)

if TYPE_CHECKING:
    import pandas as pd

    from coalmine.reporting.results import MethodMetrics, Results

NEEDS = frozenset({"metrics"})


class Settings(AverageCaseSettings):
    """What table 5 may be told."""

    title: str = Field(default="Worst-case against average-case audit", description="heading of the page")


def build(results: Results, settings: Settings) -> pd.DataFrame:
    """Return one row per method: TPR, AUC and accuracy of the worst case and of its average case.

    Raises:
        CoalmineError: the average case of a method was not audited.
    """
    import pandas as pd

    return pd.DataFrame([_row(results, settings, method) for method in settings.methods])


def layout(frame: pd.DataFrame) -> Layout:
    """Return how people see the frame."""
    from coalmine.reporting.captions import attack_and_design

    rows = rows_of(frame)
    return (Sheet((METHOD, *models_column(rows), *CASES), rows, attack_and_design(frame)),)


def _row(results: Results, settings: Settings, method: str) -> dict[str, Any]:
    average = settings.average_of(method)
    worst_metrics, average_metrics = results.metrics[method], results.metrics[average]
    return {
        "method": method,
        "label": settings.label(method),
        "variant": worst_metrics.primary,
        **_audit("worst", worst_metrics, WORST_CASE),
        "average_method": average,
        **_audit("average", average_metrics, AVERAGE_CASE),
        "note": _note(worst_metrics, average_metrics, settings),
        "n_canaries": worst_metrics.design.canaries,
        "n_clean": average_metrics.design.clean,
        "n_models": worst_metrics.design.models,
        "average_n_models": average_metrics.design.models,
        "confidence": worst_metrics.variant(WORST_CASE).epsilon.confidence,
    }


def _note(worst: MethodMetrics, average: MethodMetrics, settings: Settings) -> str:
    """Return in which models the average case was audited, and how many they are if not as many."""
    if average.method == worst.method:
        return "same models"
    number = average.design.models
    return f"separate models ({settings.label(average.method)}{f', {number}' if number != worst.design.models else ''})"


def _audit(case: str, metrics: MethodMetrics, group: str) -> dict[str, float | None]:
    from coalmine.reporting.results import LOW_FPR

    attack = metrics.variant(group)
    tpr = attack.tpr[LOW_FPR]
    return {
        f"{case}_tpr_at_fpr_0.001": tpr.value,
        f"{case}_tpr_at_fpr_0.001_low": tpr.low,
        f"{case}_tpr_at_fpr_0.001_high": tpr.high,
        f"{case}_auc": attack.auc.value,
        f"{case}_auc_low": attack.auc.low,
        f"{case}_auc_high": attack.auc.high,
        f"{case}_accuracy": metrics.accuracy.mean,
        f"{case}_accuracy_se": metrics.accuracy.se,
    }


def _columns(case: str, group: str, canaries: str) -> tuple[Column, ...]:
    return (
        Column(
            f"{case} TPR@0.1%FPR",
            lambda row: percent_interval(row, f"{case}_tpr_at_fpr_0.001"),
            f"Share of {canaries} recognised as members at 0.1 % FPR, with its interval. Without leakage: about 0.1 %.",
            group,
            brief=True,
        ),
        Column(
            f"{case} AUC",
            lambda row: fixed_interval(row, f"{case}_auc"),
            f"Area under the ROC curve over {canaries}; 0.5 is guessing.",
            group,
            brief=True,
        ),
        Column(
            f"{case} accuracy",
            lambda row: percent_with_error(row, f"{case}_accuracy"),
            "Test accuracy of the models audited: mean ± its standard error.",
            group,
        ),
    )


CASES = (
    *_columns("worst", "worst case (mislabelled canaries)", "mislabelled canaries"),
    *_columns("average", "average case (clean canaries)", "clean canaries"),
    Column(
        "average case audited in",
        lambda row: Cell(str(row["note"])),
        "Whether clean and mislabelled canaries were audited in the same models, or the clean ones in models of their "
        "own that saw no wrong label (their number, if it is another).",
        numeric=False,
    ),
)
