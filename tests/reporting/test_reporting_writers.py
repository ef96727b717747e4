import math
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest

from coalmine.reporting.writers import csv_text, format_table, write_table


@pytest.fixture
def frame() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "method": ["random, 40 %", "ε-private"],
            "tpr": [0.123456789, 1e-7],
            "seconds": [None, 1234567.0],
            "epsilon": [math.inf, 8.0],
            "n": pd.array([16000, None], dtype="Int64"),
        }
    )


class Balance(HTMLParser):
    """Fails on a tag that closes what is not open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.external: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.external += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_csv_holds_plain_numbers_of_six_digits(frame: pd.DataFrame) -> None:
    assert csv_text(frame).splitlines() == [
        "method,tpr,seconds,epsilon,n",
        '"random, 40 %",0.123457,,inf,16000',
        "ε-private,1e-07,1.23457e+06,8,",
    ]


def test_csv_reads_back(frame: pd.DataFrame) -> None:
    read = pd.read_csv(StringIO(csv_text(frame)))
    assert read["method"].tolist() == frame["method"].tolist()
    assert read["tpr"].tolist() == pytest.approx(frame["tpr"].tolist(), rel=5e-6)
    assert math.isinf(read["epsilon"][0])
    assert math.isnan(read["seconds"][0])


def test_a_table_is_three_files_with_the_same_bytes_every_time(frame: pd.DataFrame, tmp_path: Path) -> None:
    for name in ("one/table9", "two/table9"):
        write_table(frame, "A title", ["A note."], tmp_path / name)
    first, second = (sorted((tmp_path / name).glob("*.*[a-z]")) for name in ("one", "two"))
    assert [path.name for path in first] == ["table9.csv", "table9.html", "table9.tex"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_a_stem_with_a_dot_keeps_its_name(frame: pd.DataFrame, tmp_path: Path) -> None:
    write_table(frame, "A title", [], tmp_path / "v1.5")
    assert (tmp_path / "v1.5.csv").exists()


def test_the_page_is_well_formed_and_needs_no_other_file(frame: pd.DataFrame, tmp_path: Path) -> None:
    write_table(frame, "Ours & theirs", ["Run <demo>."], tmp_path / "table9")
    page = (tmp_path / "table9.html").read_text(encoding="utf-8")
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    assert parser.external == []
    assert "<title>Ours &amp; theirs</title>" in page
    assert "Run &lt;demo&gt;." in page
    assert "prefers-color-scheme: dark" in page


def test_latex_is_a_booktabs_tabular_with_symbols_escaped(frame: pd.DataFrame, tmp_path: Path) -> None:
    write_table(frame, "A title", [], tmp_path / "table9")
    lines = (tmp_path / "table9.tex").read_text(encoding="utf-8").splitlines()
    assert lines[2] == r"\begin{tabular}{@{}lrrrr@{}}"
    assert r"random, 40 \% & 0.1235 & -- & $\infty$ & 16,000 \\" in lines
    assert any(line.startswith(r"$\varepsilon$-private & 1e$-$7") for line in lines)
    assert lines[-1] == r"\end{tabular}"


def test_the_terminal_table_is_aligned_and_drops_intervals_that_do_not_fit() -> None:
    frame = pd.DataFrame({"method": ["a", "bb"], "tpr": [0.5, 0.25], "tpr_low": [0.4, 0.2], "tpr_high": [0.6, 0.3]})
    assert format_table(frame).splitlines() == [
        "method              tpr",
        "------  ---------------",
        "a        0.5 [0.4, 0.6]",
        "bb      0.25 [0.2, 0.3]",
    ]
    assert format_table(frame, width=15).splitlines()[2:] == ["a        0.5", "bb      0.25"]
