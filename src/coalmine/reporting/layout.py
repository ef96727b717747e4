"""How a table is shown to people: columns that turn a row of plain numbers into text with units and intervals.

The same layout serves the HTML page, the LaTeX tabular and the terminal. A table module says in its ``layout`` how its
frame is shown; a frame without a layout is shown by :func:`plain_layout`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

Row = Mapping[str, Any]

UNKNOWN = "–"
MINUS = "−"
SPACE = "\N{NO-BREAK SPACE}"
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Cell:
    """Text of one cell; ``aside`` (an interval, a qualifier) stands behind it, less prominent.

    ``warning`` sets the cell off where that is possible; its text must say what is wrong all the same.
    """

    text: str
    aside: str = ""
    warning: bool = False


@dataclass(frozen=True)
class Column:
    """One column as people see it.

    Attributes:
        heading: short heading.
        cell: turns a row of the frame into a cell; missing values arrive as ``None``.
        explanation: one sentence printed underneath the table.
        group: heading shared by neighbouring columns.
        brief: also shown where space is short (terminal, LaTeX).
        numeric: right-aligned.
    """

    heading: str
    cell: Callable[[Row], Cell]
    explanation: str = ""
    group: str = ""
    brief: bool = False
    numeric: bool = True


@dataclass(frozen=True)
class Sheet:
    """One table of a page; rows for which ``is_total`` holds are set off from those above."""

    columns: Sequence[Column]
    rows: Sequence[Row]
    caption: str = ""
    footnotes: Sequence[str] = ()
    is_total: Callable[[Row], bool] = lambda row: False

    def cells(self, brief: bool = False) -> list[list[Cell]]:
        """Return the cells row by row, of all columns or of the brief ones."""
        return [[column.cell(row) for column in self.shown(brief)] for row in self.rows]

    def shown(self, brief: bool = False) -> list[Column]:
        """Return all columns, or the brief ones (all, if none is marked so)."""
        return [column for column in self.columns if column.brief or not brief] or list(self.columns)


Layout = Sequence[Sheet]


def rows_of(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the frame's rows as mappings in which every missing value is ``None``."""
    return [
        {str(name): None if is_missing(value) else value for name, value in row.items()}
        for row in frame.to_dict("records")
    ]


def is_missing(value: Any) -> bool:
    """Tell whether a scalar is ``None``, NaN or pandas' NA."""
    return value is None or str(value) in ("<NA>", "NaT") or (isinstance(value, float) and math.isnan(value))


def plain_layout(frame: pd.DataFrame) -> Layout:
    """Lay out a frame by its column names alone: ``x``, ``x_low``, ``x_high`` become one column with an interval."""
    names = [str(name) for name in frame.columns]
    bounds = {f"{name}{end}" for name in names for end in ("_low", "_high")}

    def column(name: str) -> Column:
        def cell(row: Row) -> Cell:
            low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
            known = low is not None and high is not None
            return Cell(general(row[name]), f"[{general(low)}, {general(high)}]" if known else "")

        numeric = frame[name].dtype.kind in "iufb"
        return Column(name.replace("_", " "), cell, numeric=numeric)

    return (Sheet([column(name) for name in names if name not in bounds], rows_of(frame)),)


def general(value: Any) -> str:
    """Format any scalar: numbers to four significant digits, the rest as text."""
    if value is None:
        return UNKNOWN
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    shown = number(value, 4)
    return shown.rstrip("0").rstrip(".") if "." in shown and "e" not in shown else shown


def number(value: float | None, digits: int = 3) -> str:
    """Format to so many significant digits: ``1,234``, ``0.0123``, ``1.74e8``, ``∞``."""
    if value is None:
        return UNKNOWN
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    rounded = float(f"{value:.{digits - 1}e}")
    exponent = math.floor(math.log10(abs(rounded))) if rounded else 0
    if -4 <= exponent < 6:
        return _minus(f"{rounded:,.{max(0, digits - 1 - exponent)}f}")
    mantissa, _, power = f"{rounded:.{digits - 1}e}".partition("e")
    return _minus(f"{mantissa.rstrip('0').rstrip('.')}e{int(power)}")


def magnitude(value: float) -> str:
    """Format a number of any size as people read it: ``0.5``, ``2,444``, ``5.3 × 10⁵``, ``10⁻⁵``."""
    if 1e-4 <= abs(value) < 1e5 or not value or math.isinf(value):
        return general(value)
    mantissa, _, power = f"{value:.1e}".partition("e")
    raised = f"10{str(int(power)).translate(_RAISED)}"
    leading = mantissa.removesuffix(".0")
    return raised if leading == "1" else f"{_minus(leading)}{SPACE}×{SPACE}{raised}"


def percent(value: float | None, digits: int | None = None) -> str:
    """Format a fraction as percent: one decimal, two below 1 %."""
    if value is None:
        return UNKNOWN
    return f"{_minus(f'{100 * value:.{_percent_digits(value) if digits is None else digits}f}')}{SPACE}%"


def percent_interval(row: Row, name: str) -> Cell:
    """Return ``38.7 %`` with ``[35.1, 42.0]`` from the columns ``name``, ``name_low`` and ``name_high``."""
    value = row[name]
    digits = _percent_digits(value or 0.0)
    return Cell(percent(value), _bounds(row, name, 100, digits))


def fixed_interval(row: Row, name: str, digits: int = 3) -> Cell:
    """Return a number and its interval to so many decimals."""
    value = row[name]
    return Cell(UNKNOWN if value is None else _minus(f"{value:.{digits}f}"), _bounds(row, name, 1, digits))


def percent_with_error(row: Row, name: str) -> Cell:
    """Return ``94.1 %`` with ``± 0.2`` from the columns ``name`` and ``name_se``."""
    return Cell(percent(row[name]), _error(row, name))


def number_with_error(row: Row, name: str) -> Cell:
    """Return ``9.81`` with ``± 0.12`` from the columns ``name`` and ``name_se``."""
    value, error = row[name], row[f"{name}_se"]
    return Cell(number(value), "" if value is None or error is None else f"± {number(error, 2)}")


def points(value: float | None, digits: int = 1) -> str:
    """Format a difference of fractions in percentage points, with its sign."""
    if value is None:
        return UNKNOWN
    rounded = round(100 * value, digits) + 0.0  # turns -0.0 into 0.0
    return f"{_minus(f'{rounded:+.{digits}f}')}{SPACE}pp"


def points_interval(row: Row, name: str) -> Cell:
    """Return ``−4.2 pp`` with ``[−6.0, −2.5]`` from ``name``, ``name_low``, ``name_high``; two decimals below 1."""
    digits = _percent_digits(row[name] or 0.0)
    return Cell(points(row[name], digits), _bounds(row, name, 100, digits))


def points_with_error(row: Row, name: str) -> Cell:
    """Return ``+1.3 pp`` with ``± 0.2`` from the columns ``name`` and ``name_se``."""
    return Cell(points(row[name]), _error(row, name))


def text(name: str) -> Callable[[Row], Cell]:
    """Return a cell function that shows a column's text."""
    return lambda row: Cell(UNKNOWN if row[name] is None else str(row[name]))


def _percent_digits(value: float) -> int:
    return 2 if abs(value) < 0.01 else 1


def _minus(formatted: str) -> str:
    return formatted.replace("-", MINUS)


def _bounds(row: Row, name: str, factor: float, digits: int) -> str:
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    if low is None or high is None:
        return ""
    return _minus(f"[{factor * low:.{digits}f}, {factor * high:.{digits}f}]")


def _error(row: Row, name: str) -> str:
    error = row[f"{name}_se"]
    return "" if row[name] is None or error is None else f"± {100 * error:.1f}"
