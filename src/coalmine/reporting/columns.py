"""Columns that several tables show, each under its own group."""

from __future__ import annotations

from coalmine.reporting.layout import Column, fixed_interval, percent_interval, percent_with_error, text

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


def accuracy_column(group: str) -> Column:
    """Return the test accuracy."""
    return Column(
        "accuracy",
        lambda row: percent_with_error(row, "accuracy"),
        "Test accuracy: mean over the models ± its standard error.",
        group,
        brief=True,
    )
