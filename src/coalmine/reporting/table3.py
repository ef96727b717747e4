"""Table 3: canaries that synthetic images start from against canaries that were only trained on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pydantic import Field

from coalmine.reporting.captions import attack_and_design
from coalmine.reporting.columns import METHOD, models_column
from coalmine.reporting.common import WORST_CASE, ReportSettings
from coalmine.reporting.layout import (
    UNKNOWN,
    Cell,
    Column,
    Layout,
    Row,
    Sheet,
    fixed_interval,
    percent_interval,
    rows_of,
)

if TYPE_CHECKING:
    import pandas as pd

    from coalmine.reporting.results import Results
    from coalmine.reporting.used import Groups

NEEDS = frozenset({"metrics", "scores"})

COUNTS = tuple(
    f"{group}_{count}"
    for group in ("used", "unused")
    for count in ("canaries", "false_positives", "false_positives_allowed")
)


class Settings(ReportSettings):
    """What table 3 may be told."""

    title: str = Field(
        default="Canaries that synthetic images start from, against those only trained on",
        description="heading of the page",
    )
    replicates: int = Field(default=1000, ge=1, description="replicates of the bootstrap over the canaries of a group")


def build(results: Results, settings: Settings) -> pd.DataFrame:
    """Return one row per method: what the attack reaches on either group of canaries, and by how much they differ."""
    import pandas as pd

    rows = [_row(results, settings, method) for method in settings.methods]
    return pd.DataFrame(rows).astype(dict.fromkeys((*COUNTS, "sometimes_canaries"), "Int64"))


def layout(frame: pd.DataFrame) -> Layout:
    """Return how people see the frame; why something could not be compared is said in a footnote."""
    rows = rows_of(frame)
    footnotes = [f"{row['label']}: {row['note']}." for row in rows if row["note"]]
    columns = (METHOD, *models_column(rows), *GROUPS)
    return (Sheet(columns, rows, attack_and_design(frame), footnotes),)


def _row(results: Results, settings: Settings, method: str) -> dict[str, Any]:
    from coalmine.reporting.used import difference_columns, group_columns, read_groups

    metrics = results.metrics[method]
    confidence, replicates = metrics.variant(WORST_CASE).epsilon.confidence, settings.replicates
    groups = read_groups(results, method)
    return {
        "method": method,
        "label": settings.label(method),
        "variant": metrics.primary,
        **group_columns("used", groups.used if groups else None, method, confidence=confidence, replicates=replicates),
        **group_columns(
            "unused", groups.unused if groups else None, method, confidence=confidence, replicates=replicates
        ),
        "sometimes_canaries": len(groups.sometimes.scores) if groups else None,
        **difference_columns(groups, method, confidence=confidence, replicates=replicates),
        "note": _note(groups),
        "n_canaries": metrics.design.canaries,
        "n_models": metrics.design.models,
        "confidence": confidence,
    }


def _note(groups: Groups | None) -> str | None:
    """Return why there is nothing to compare, None if there is."""
    from coalmine.reporting.used import FEWEST

    if groups is None:
        return "a control: membership is shuffled, so which models hold a canary is not known"
    counts = {
        "used in every model that holds them": len(groups.used.scores),
        "used in no model": len(groups.unused.scores),
    }
    few = {what: count for what, count in counts.items() if count < FEWEST}
    return "; ".join(f"too few canaries are {what} ({n}, {FEWEST} are needed)" for what, n in few.items()) or None


def _count(name: str) -> Callable[[Row], Cell]:
    return lambda row: Cell(UNKNOWN if row[name] is None else f"{row[name]:.0f}")


def _false_positives(row: Row, group: str) -> Cell:
    found, allowed = row[f"{group}_false_positives"], row[f"{group}_false_positives_allowed"]
    return Cell(UNKNOWN if found is None else f"{found:.0f} of {allowed:.0f}")


def _columns(group: str, heading: str, definition: str) -> tuple[Column, ...]:
    return (
        Column(
            f"n {group}",
            _count(f"{group}_canaries"),
            definition,
            heading,
            brief=True,
        ),
        Column(
            f"{group} TPR@0.1%FPR",
            lambda row: percent_interval(row, f"{group}_tpr_at_fpr_0.001"),
            f"Share of {group} canaries recognised as members while at most 0.1 % of their own non-members are "
            "accused, with its interval. Without leakage: about 0.1 %.",
            heading,
            brief=True,
        ),
        Column(
            f"{group} false positives",
            lambda row: _false_positives(row, group),
            "Non-members of this group accused at that threshold, of those that 0.1 % allows: a small group allows "
            "none.",
            heading,
        ),
        Column(
            f"{group} TPR@1%",
            lambda row: percent_interval(row, f"{group}_tpr_at_fpr_0.01"),
            "The same at 1 % FPR.",
            heading,
        ),
        Column(
            f"{group} AUC",
            lambda row: fixed_interval(row, f"{group}_auc"),
            f"Area under the ROC curve over {group} canaries; 0.5 is guessing.",
            heading,
            brief=True,
        ),
    )


GROUPS = (
    *_columns(
        "used",
        "canaries that images start from",
        "Canaries from whose image a synthetic image starts, in every model that holds them (for a coreset: that it "
        "takes).",
    ),
    *_columns(
        "unused", "canaries only trained on", "Canaries that models hold, but from which no synthetic image starts."
    ),
    Column(
        "in between",
        _count("sometimes_canaries"),
        "Canaries that are used in some of the models that hold them and not in others: in neither group, like those "
        "that no model holds.",
    ),
    Column(
        "Δ AUC",
        lambda row: fixed_interval(row, "auc_difference"),
        "AUC of used canaries minus that of unused ones, with the interval of a bootstrap that draws the canaries of "
        "each group. Above zero: starting from a sample gives it away more than training on it does.",
        "used − unused",
        brief=True,
    ),
)
