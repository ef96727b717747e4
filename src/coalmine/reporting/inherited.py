"""What students without private data take over from their teachers, in a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from coalmine.reporting.layout import Cell, Column, Row, fixed_interval, percent

if TYPE_CHECKING:
    from coalmine.reporting.results import Inheritance

GROUP = "from the teacher"


def inherited_columns(found: Inheritance | None) -> dict[str, Any]:
    """Return the teacher's name, both rates of the wrong label, IN and OUT, and the correlations of IN pairs."""
    columns: dict[str, Any] = {"teacher": found.teacher if found else None}
    for of in ("teacher", "student"):
        for side, key in (("in", "members"), ("out", "nonmembers")):
            columns[f"{of}_wrong_{side}"] = getattr(getattr(found, key), of) if found else None
    for what in ("rates", "scores"):
        correlation = getattr(found.members, what) if found else None
        for end in ("value", "low", "high"):
            name = f"{what}_correlation_in" if end == "value" else f"{what}_correlation_in_{end}"
            columns[name] = getattr(correlation, end, None)
    return columns


def _rates_cell(row: Row, of: str) -> Cell:
    if row["teacher"] is None:
        return Cell("")
    return Cell(percent(row[f"{of}_wrong_in"]), f"OUT {percent(row[f'{of}_wrong_out'])}")


def _correlation_cell(row: Row) -> Cell:
    return Cell("") if row["teacher"] is None else fixed_interval(row, "scores_correlation_in", 2)


INHERITED = (
    Column(
        "teacher's",
        lambda row: _rates_cell(row, "teacher"),
        "Share of (IN canary, model) pairs for which the teacher, the only one of the two that saw private data, "
        "predicts the canary's wrong label; beside it the share of OUT pairs. Blank for a method without a teacher.",
        GROUP,
    ),
    Column(
        "student's",
        lambda row: _rates_cell(row, "student"),
        "The same for the student, which is the audited model.",
        GROUP,
    ),
    Column(
        "r of scores",
        _correlation_cell,
        "Correlation of the student's and its own teacher's scores of the wrong label over IN pairs, after the mean of "
        "each canary over models, with its interval over canaries and models. Students of independent teachers: about "
        "0. More tells that students copy just what their own teacher happens to believe. –: one of them never varies.",
        GROUP,
    ),
)
