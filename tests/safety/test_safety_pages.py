"""Texts from configurations and data are shown as they are: no page, table or figure takes them for code."""

from __future__ import annotations

import csv
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hostile import bounded
from hypothesis import given
from hypothesis import strategies as st

from coalmine.reporting.layout import Cell, Column, Sheet
from coalmine.reporting.writers import csv_text, html_page, latex_text, write_figure, write_table

SOURCES = Path(__file__).resolve().parents[2] / "src/coalmine"
NASTY = [
    "<script>alert(1)</script>",
    "</style><script>",
    "<img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)',
    "' onclick='x",
    "&lt;b&gt; & &amp; &#60;",
    "<!-- -->",
    "]]>",
    "javascript:alert(1)",
    "https://host/x.png",
    r"\input{/etc/passwd} \write18{touch marker}",
    r"100% $x$ #1 a_b ~ ^^M {x} \\",
    "[b] & *",
    "*",
    "=cmd|' /C calc'!A0",
    "+1+1",
    "-2+3",
    "@SUM(A1)",
    "a\nb",
    "a,b\"c'd;e",
    "\u202eevil",
    "ε ≤ 8 ± ∞",
]
ALLOWED_TAGS = {
    *("html", "head", "meta", "title", "style", "body", "h1", "div", "table", "caption", "thead", "tbody"),
    *("tr", "th", "td", "p", "span", "dl", "dt", "dd"),
}
ALLOWED_ATTRIBUTES = {"lang", "charset", "name", "content", "class", "colspan", "style"}


class Page(HTMLParser):
    """Collects the texts of a page, and refuses whatever is not a plain table."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.styles: list[str] = []
        self.inside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ALLOWED_TAGS
        for name, value in attrs:
            assert name in ALLOWED_ATTRIBUTES
            assert name != "style" or re.fullmatch(r"--aside: [\d.]+em", value or "")
            assert name != "class" or re.fullmatch(r"[a-z ]+", value or "")
        if tag != "meta":
            self.inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.inside.pop() == tag

    def handle_comment(self, data: str) -> None:
        pytest.fail(f"the page has a comment: {data}")

    def handle_data(self, data: str) -> None:
        (self.styles if self.inside[-1:] == ["style"] else self.texts).append(data)


def parsed(page: str) -> Page:
    found = Page()
    found.feed(page)
    found.close()
    assert found.inside == []
    (style,) = found.styles
    assert "url(" not in style
    assert "@import" not in style
    return found


def sheet(text: str) -> Sheet:
    """A table that shows a text in every place that it has for one."""
    columns = [
        Column(text, lambda row: Cell(row["a"], aside=text), text, group=text),
        Column(text, lambda row: Cell(row["a"], aside=text, warning=True), text, numeric=True),
    ]
    return Sheet(columns, [{"a": text}, {"a": text}], caption=text, footnotes=(text,))


ANY_TEXT = st.sampled_from(NASTY) | st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30)


@given(text=ANY_TEXT)
@bounded(120)
def test_a_page_shows_every_text_as_it_is_and_runs_nothing(text: str) -> None:
    page = parsed(html_page([sheet(text)], text, [text]))
    shown = [one for one in page.texts if one.strip()]
    assert set(shown) == ({text} if text.strip() else set())


@given(text=ANY_TEXT)
@bounded(120)
def test_latex_holds_no_command_that_a_text_brought(text: str) -> None:
    lines = latex_text([sheet(text)], text).splitlines()
    typeset = "\n".join(line for line in lines if not line.startswith("%"))  # to the end of a line, nothing is read
    known = r"\\(textbackslash|textasciitilde|textasciicircum|toprule|midrule|bottomrule|addlinespace|begin|end|par|"
    known += r"smallskip|usepackage|pm|leq|geq|infty|times|varepsilon|delta|Delta|[&%$#_{}\\])"
    assert re.sub(known, "", typeset).count("\\") == 0
    assert not any(line.startswith(("[", "*")) for line in lines)  # arguments of the row before
    balance = re.sub(r"\\[{}]", "", typeset)
    assert balance.count("{") == balance.count("}")


@given(text=ANY_TEXT | st.floats() | st.integers())
@bounded(120)
def test_no_cell_of_a_csv_is_a_formula(text: Any) -> None:
    written = csv_text(pd.DataFrame({"label": [text, "x"], "value": [-1.5, 2]}))
    header, first, _ = csv.reader(io.StringIO(written))
    assert header == ["label", "value"]
    assert first[1] == "-1.5"
    if isinstance(text, str):
        assert not first[0].startswith(("=", "+", "-", "@"))
        assert first[0] in (text, f"'{text}")
    elif text == text:
        assert float(first[0]) == pytest.approx(text, rel=1e-5)


def test_numbers_below_zero_are_written_as_numbers() -> None:
    assert csv_text(pd.DataFrame({"a": [-0.5], "b": [-3], "c": [float("-inf")]})) == "a,b,c\n-0.5,-3,-inf\n"


def test_a_heading_of_a_csv_is_no_formula() -> None:
    assert csv_text(pd.DataFrame({"=a": [1]})).splitlines()[0] == "'=a"


@pytest.mark.parametrize("text", NASTY)
def test_files_of_a_table_are_three_whatever_its_texts_are(text: str, tmp_path: Path) -> None:
    write_table(pd.DataFrame({"label": [text], "value": [1.0]}), text, [text], tmp_path / "table9", [sheet(text)])
    assert {path.name for path in tmp_path.glob("table9*")} == {"table9.csv", "table9.html", "table9.tex"}
    parsed((tmp_path / "table9.html").read_text(encoding="utf-8"))


@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.parametrize("text", [r"$\frac{$", "$x$ and $y$", r"\$", "$$", "<b>", "_hidden", "a{b}c"])
def test_a_figure_draws_dollars_as_dollars(text: str, tmp_path: Path) -> None:
    from coalmine.reporting import style

    with style.context():
        figure, (axes,) = style.new_figure(2.0)
        axes.plot([1, 2], [0.1, 0.2], label=text)
        axes.set_xlabel(text)
        drawn = axes.text(1, 0.1, text)
        style.set_title(figure, text, text)
        write_figure(figure, pd.DataFrame({"label": [text]}), tmp_path / "figure9")
    assert not drawn.get_parse_math()
    assert {path.suffix for path in tmp_path.glob("figure9*")} == {".png", ".pdf", ".csv"}


def test_powers_of_ten_are_labelled_without_mathematical_markup() -> None:
    from coalmine.reporting.style import power_label

    assert [power_label(value) for value in (1e-12, 0.001, 1.0, 10.0, 1e15)] == ["10⁻¹²", "10⁻³", "10⁰", "10¹", "10¹⁵"]


def test_pages_are_written_in_one_place_only() -> None:
    """Where every text is escaped."""
    tags = re.compile(r"</(td|th|tr|p|span|div|table|script|html|body)>")
    reporting = (SOURCES / "reporting").rglob("*.py")
    assert [path.name for path in reporting if tags.search(path.read_text())] == ["writers.py"]
