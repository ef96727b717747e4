"""Tables and figures as files: the same content gives the same bytes, and no file is ever half written."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from coalmine.artefacts import write_bytes
from coalmine.reporting.layout import SPACE, UNKNOWN, Cell, Column, Layout, Sheet, is_missing, plain_layout

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

PNG_DPI = 200
_FORMULA = ("=", "+", "-", "@", "\t", "\r")

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    SPACE: "~",
    UNKNOWN: "--",
    "−": "$-$",
    "±": r"$\pm$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "∞": r"$\infty$",
    "×": r"$\times$",
    "ε": r"$\varepsilon$",
    "δ": r"$\delta$",
    "Δ": r"$\Delta$",
    "⁻": "$^-$",
    **{raised: f"$^{digit}$" for digit, raised in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
}

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1e; --quiet: #5d6066; --line: #d5d7db; --strong: #1c1c1e;
  --page: #ffffff; --row: #f5f6f8; --warning: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e9e9ec; --quiet: #a3a7ae; --line: #3b3e44; --strong: #c9cbd0;
  --page: #17181b; --row: #202226; --warning: #ff8a80; } }
body { margin: 0; padding: 2rem; background: var(--page); color: var(--ink);
  font: 15px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.25rem; margin: 0 0 .4rem; max-width: 60rem; }
.scroll { overflow-x: auto; margin: 0 0 1.6rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .88rem; }
caption { caption-side: top; text-align: left; color: var(--quiet); padding: .5rem 0 .7rem; }
th, td { padding: .38rem .65rem; text-align: left; white-space: nowrap; vertical-align: baseline; }
th { font-weight: 600; }
thead tr:first-child th { border-top: 2px solid var(--strong); }
thead tr:last-child th { border-bottom: 1px solid var(--strong); vertical-align: bottom; }
thead th.group { border-bottom: 1px solid var(--line); color: var(--quiet); font-weight: 500; text-align: center; }
tbody tr:last-child > * { border-bottom: 2px solid var(--strong); }
tbody tr:nth-child(even) > * { background: var(--row); }
tbody tr.total > * { font-weight: 600; }
tbody tr.total:not(:last-child) > * { border-bottom: 1px solid var(--line); }
th.n, td.n { text-align: right; }
th:first-child { position: sticky; left: 0; background: var(--page); }
thead th { white-space: normal; min-width: 3.5rem; }
.footnote { margin: .35rem 0 0; color: var(--quiet); font-size: .88rem; }
.aside { color: var(--quiet); font-size: .88em; margin-left: .5em; }
td.n .aside { display: inline-block; min-width: var(--aside, 0); text-align: left; }
.warning, .warning .aside { color: var(--warning); }
.warning { font-weight: 600; }
.notes { max-width: 60rem; color: var(--quiet); font-size: .9rem; }
.notes dt { color: var(--ink); font-weight: 600; float: left; clear: left; margin-right: .5em; }
.notes dd { margin: 0 0 .35rem; }
@media print { body { padding: 0; font-size: 10px; } .scroll { overflow: visible; } }
"""


def write_table(
    frame: pd.DataFrame, title: str, notes: Sequence[str], stem: Path, layout: Layout | None = None
) -> None:
    """Write ``<stem>.csv`` (numbers for programs), ``.html`` (a page for people) and ``.tex`` (a booktabs tabular).

    Args:
        frame: the table's plain numbers (fractions, seconds, counts); missing values are unknown.
        title: heading of the page.
        notes: sentences printed underneath the table, e.g. the run's data and design.
        stem: path without suffix.
        layout: how people see the frame, ``layout(frame)`` of the table's module; by default one column per column.

    Raises:
        CoalmineError: a file cannot be written.
    """
    layout = layout or plain_layout(frame)
    _write(stem, ".csv", csv_text(frame).encode())
    _write(stem, ".html", html_page(layout, title, notes).encode())
    _write(stem, ".tex", latex_text(layout, title).encode())


def write_figure(figure: Figure, frame: pd.DataFrame, stem: Path) -> None:
    """Write ``<stem>.png`` (200 dpi), ``.pdf`` (vector, without dates) and ``.csv`` (the numbers drawn).

    Raises:
        CoalmineError: a file cannot be written.
    """
    from coalmine.reporting import style

    with style.context():
        for suffix, metadata in ((".png", {"Software": None}), (".pdf", {"CreationDate": None})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=suffix[1:], dpi=PNG_DPI, metadata=metadata)
            _write(stem, suffix, buffer.getvalue())
    _write(stem, ".csv", csv_text(frame).encode())


def format_table(frame: pd.DataFrame, layout: Layout | None = None, width: int = 110) -> str:
    """Return the brief columns as aligned text; where too wide, asides are dropped from the right until it fits."""
    return "\n\n".join(_text_sheet(sheet, width) for sheet in layout or plain_layout(frame))


def csv_text(frame: pd.DataFrame) -> str:
    """Return CSV: fractions as they are, floats to six significant digits, nothing for an unknown value.

    Before a text that begins like a formula stands an apostrophe, by which spreadsheets know a text.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(map(_csv_value, frame.columns))
    writer.writerows([_csv_value(value) for value in row] for row in frame.itertuples(index=False, name=None))
    return buffer.getvalue()


def html_page(layout: Layout, title: str, notes: Sequence[str]) -> str:
    """Return a page that needs no other file, with every column explained underneath."""
    explained = {
        column.heading: column.explanation for sheet in layout for column in sheet.columns if column.explanation
    }
    legend = "".join(f"<dt>{escape(heading)}</dt><dd>{escape(said)}</dd>\n" for heading, said in explained.items())
    remarks = "".join(f"<p>{escape(note)}</p>\n" for note in notes)
    sheets = "".join(_html_sheet(sheet) for sheet in layout)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n"
        f'{sheets}<div class="notes">\n{remarks}<dl>\n{legend}</dl>\n</div>\n</body>\n</html>\n'
    )


def latex_text(layout: Layout, title: str) -> str:
    """Return one booktabs tabular per sheet, with the brief columns, to be set inside a table environment."""
    heading = f"% {' '.join(title.split())}\n% needs \\usepackage{{booktabs}}\n"
    return heading + "\n".join(_latex_sheet(sheet) for sheet in layout)


def _write(stem: Path, suffix: str, data: bytes) -> None:
    write_bytes(stem.with_name(stem.name + suffix), data)


def _csv_value(value: Any) -> str:
    if is_missing(value):
        return ""
    if isinstance(value, float):
        return "inf" if math.isinf(value) and value > 0 else f"{value:.6g}"
    # Spreadsheets take such a text for a formula, and formulas can run commands and send cells away.
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else str(value)


def _html_sheet(sheet: Sheet) -> str:
    columns, table = sheet.shown(), sheet.cells()
    asides = [max((len(cells[i].aside) for cells in table), default=0) for i in range(len(columns))]
    footnotes = "".join(f'<p class="footnote">{escape(note)}</p>\n' for note in sheet.footnotes)
    caption = f"<caption>{escape(sheet.caption)}</caption>\n" if sheet.caption else ""
    head = "".join(f"<th{_kind(column)}>{escape(column.heading)}</th>" for column in columns)
    body = "".join(
        ('<tr class="total">' if sheet.is_total(row) else "<tr>")
        + "".join(_html_cell(*part) for part in zip(cells, columns, asides, range(len(cells)), strict=True))
        + "</tr>\n"
        for row, cells in zip(sheet.rows, table, strict=True)
    )
    return (
        f'<div class="scroll"><table>\n{caption}<thead>\n{_html_groups(columns)}<tr>{head}</tr>\n</thead>\n'
        f"<tbody>\n{body}</tbody>\n</table>\n{footnotes}</div>\n"
    )


def _html_groups(columns: Sequence[Column]) -> str:
    if not any(column.group for column in columns):
        return ""
    cells = (
        f'<th class="group" colspan="{n}">{escape(group)}</th>' if group else f'<th colspan="{n}"></th>'
        for group, n in _runs(columns)
    )
    return f"<tr>{''.join(cells)}</tr>\n"


def _html_cell(cell: Cell, column: Column, widest_aside: int, position: int) -> str:
    tag = "th" if position == 0 else "td"
    aside = ""
    if widest_aside and column.numeric:
        aside = f'<span class="aside" style="--aside: {widest_aside * 0.56:.1f}em">{escape(cell.aside)}</span>'
    elif cell.aside:
        aside = f'<span class="aside">{escape(cell.aside)}</span>'
    return f"<{tag}{_kind(column, cell.warning)}>{escape(cell.text)}{aside}</{tag}>"


def _kind(column: Column, warning: bool = False) -> str:
    names = [*(["n"] if column.numeric else []), *(["warning"] if warning else [])]
    return f' class="{" ".join(names)}"' if names else ""


def _runs(columns: Sequence[Column]) -> list[tuple[str, int]]:
    return [(group, len(list(run))) for group, run in groupby(columns, lambda column: column.group)]


def _latex_sheet(sheet: Sheet) -> str:
    columns = sheet.shown(brief=True)
    lines = [
        *([f"% {' '.join(sheet.caption.split())}"] if sheet.caption else []),
        rf"\begin{{tabular}}{{@{{}}{''.join('r' if column.numeric else 'l' for column in columns)}@{{}}}}",
        r"\toprule",
        _latex_row(column.heading for column in columns),
        r"\midrule",
        *(
            (r"\addlinespace" + "\n" if sheet.is_total(row) else "")
            + _latex_row(f"{cell.text} {cell.aside}".rstrip() for cell in cells)
            for row, cells in zip(sheet.rows, sheet.cells(brief=True), strict=True)
        ),
        r"\bottomrule",
        r"\end{tabular}",
        *(rf"\par\smallskip {_latex(note)}" for note in sheet.footnotes),
    ]
    return "\n".join(lines) + "\n"


def _latex_row(texts: Iterable[str]) -> str:
    row = " & ".join(map(_latex, texts)) + r" \\"
    return "{}" + row if row.startswith(("[", "*")) else row  # the row before would take them for arguments of its end


def _latex(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)


def _text_sheet(sheet: Sheet, width: int) -> str:
    columns, cells = sheet.shown(brief=True), sheet.cells(brief=True)
    with_aside = len(columns)
    while True:
        texts = [[column.heading for column in columns]] + [
            [f"{cell.text} {cell.aside}".rstrip() if i < with_aside else cell.text for i, cell in enumerate(row)]
            for row in cells
        ]
        widths = [max(len(row[i]) for row in texts) for i in range(len(columns))]
        if sum(widths) + 2 * (len(widths) - 1) <= width or not with_aside:
            break
        with_aside -= 1
    lines = [
        "  ".join(
            part.rjust(size) if column.numeric else part.ljust(size)
            for part, size, column in zip(row, widths, columns, strict=True)
        ).rstrip()
        for row in texts
    ]
    lines.insert(1, "  ".join("-" * size for size in widths))
    caption = [fill(sheet.caption, width), ""] if sheet.caption else []
    footnotes = (
        ["", *(fill(note, width, subsequent_indent="    ") for note in sheet.footnotes)] if sheet.footnotes else []
    )
    return "\n".join(caption + lines + footnotes).replace(SPACE, " ")
