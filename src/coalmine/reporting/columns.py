"""Columns that several tables show, each under its own group."""

from __future__ import annotations

from collections.abc import Sequence

from coalmine.reporting.captions import FEWER_MODELS, differ
from coalmine.reporting.layout import Cell, Column, Row, fixed_interval, percent_interval, percent_with_error, text

METHOD = Column("method", text("label"), brief=True, numeric=False)


def tpr_column(group: str) -> Column:
    """Return the primary attack's TPR at 0.1 % FPR."""
    return Column(
        "TPR@0.1%FPR",
        lambda row: percent_interval(row, "tpr_at_fpr_0.001"),
        "Share of members that the attack recognises while at most 0.1 % of non-members are accused, with its "
        "interval. Without leakage: about 0.1 %.",
        group,
        brief=True,
    )


def auc_column(group: str) -> Column:
    """Return the primary attack's AUC."""
    return Column(
        "AUC",
        lambda row: fixed_interval(row, "auc"),
        "Area under the ROC curve; 0.5 is guessing.",
        group,
        brief=True,
    )


def models_column(rows: Sequence[Row], group: str = "") -> list[Column]:
    """Return how many models each row has, if these numbers differ; nothing otherwise, as the caption says it."""
    if not differ(row["n_models"] for row in rows):
        return []
    explanation = f"Audited shadow models: {FEWER_MODELS}."
    return [Column("models", lambda row: Cell(f"{row['n_models']:.0f}"), explanation, group, brief=True)]


def accuracy_column(group: str) -> Column:
    """Return the test accuracy."""
    return Column(
        "accuracy",
        lambda row: percent_with_error(row, "accuracy"),
        "Test accuracy: mean over the models ± its standard error.",
        group,
        brief=True,
    )
