"""What a person sees, to the column."""

from __future__ import annotations

import pytest

from snakemake_logger_plugin_coalmine.display import (
    Running,
    Style,
    View,
    block,
    clean,
    columns,
    cut,
    duration,
    time_left,
)
from snakemake_logger_plugin_coalmine.estimate import Estimate

PLAIN = Style()
ASCII = Style(unicode=False)
VIEW = View(
    done=7,
    total=20,
    elapsed=75.0,
    stages={"prepare": (1, 1), "design": (1, 1), "fit": (1, 4), "train": (4, 8), "score": (0, 6)},
    running=[
        Running("fit ddpm 0-15", 65.0, "2 of 16: epoch 31.0: loss 0.12"),
        Running("train random 16-31", None),
    ],
    left=Estimate(240.0, 181.0, 330.0),
)


def test_stages_running_jobs_counts_and_time_stand_below_each_other() -> None:
    assert block(VIEW, 79, 24, PLAIN) == [
        "done: prepare, design",
        "fit    ██████░░░░░░░░░░░░░░░░░░  1/4",
        "train  ████████████░░░░░░░░░░░░  4/8",
        "score  ░░░░░░░░░░░░░░░░░░░░░░░░  0/6",
        "> fit ddpm 0-15       1 min 5 s  2 of 16: epoch 31.0: loss 0.12",
        "> train random 16-31     queued",
        "7 of 20 jobs done, 1 running, 1 queued, 11 to go",
        "1 min 15 s elapsed, about 4 min left (3 min 1 s to 5 min 30 s)",
    ]


def test_a_narrow_terminal_loses_notes_and_bars_before_names() -> None:
    assert block(VIEW, 24, 24, PLAIN) == [
        "done: prepare, design",
        "fit    ███░░░░░░░░░  1/4",
        "train  ██████░░░░░░  4/8",
        "score  ░░░░░░░░░░░░  0/6",
        "> fit ddpm 0…  1 min 5 s",
        "> train rand…     queued",
        "7 of 20 jobs done, 1 ru…",
        "1 min 15 s elapsed, abo…",
    ]
    assert block(VIEW, 12, 24, PLAIN)[1:4] == ["fit    1/4", "train  4/8", "score  0/6"]


def test_a_low_terminal_keeps_what_runs_and_what_is_left() -> None:
    assert block(VIEW, 79, 6, PLAIN) == [
        "done: prepare, design",
        "(3 more)",
        "> fit ddpm 0-15       1 min 5 s  2 of 16: epoch 31.0: loss 0.12",
        "> train random 16-31     queued",
        "7 of 20 jobs done, 1 running, 1 queued, 11 to go",
        "1 min 15 s elapsed, about 4 min left (3 min 1 s to 5 min 30 s)",
    ]
    assert block(VIEW, 79, 1, PLAIN) == ["1 min 15 s elapsed, about 4 min left (3 min 1 s to 5 min 30 s)"]


def test_names_of_double_width_line_up_and_are_cut_between_characters() -> None:
    view = View(2, 4, 1.0, {"訓練": (1, 2), "fit": (1, 2)}, [Running("訓練 合成データ 0-3", 3.0, "損失 0.12 と 0.34")])
    assert block(view, 40, 24, PLAIN)[:3] == [
        "訓練  ████████████░░░░░░░░░░░░  1/2",
        "fit   ████████████░░░░░░░░░░░░  1/2",
        "> 訓練 合成データ 0-3  3 s  損失 0.12 …",
    ]
    assert [columns(line) for line in block(view, 30, 24, PLAIN)[:2]] == [30, 30]
    assert cut("訓練データ", 6, PLAIN) == "訓練…"
    assert cut("訓練データ", 10, PLAIN) == "訓練データ"
    assert columns("e\u0301") == 1


@pytest.mark.parametrize("width", range(1, 100))
@pytest.mark.parametrize("style", [PLAIN, ASCII])
def test_no_line_is_ever_wider_or_lower_than_the_terminal(width: int, style: Style) -> None:
    view = View(
        done=3,
        total=1_000,
        elapsed=1e6,
        stages={"a-stage-with-a-name-of-some-length": (3, 900), "合成": (0, 100)},
        running=[Running("train " + "very-" * 30 + "long 0-15", 5e5, "x" * 300), Running("合成 m", None, "合" * 99)],
        failed=["fit " + "y" * 99],
        left=None,
    )
    for height in (1, 2, 5, 24):
        lines = block(view, width, height, style)
        assert len(lines) <= height
        assert all(columns(line) <= width for line in lines), lines


def test_without_unicode_everything_is_ascii() -> None:
    view = View(1, 2, 1.0, {"合成": (1, 2)}, [Running("合成 m", 3.0, "ε = 8")])
    assert all(line.isascii() for line in block(view, 60, 24, ASCII))
    assert "############............" in block(view, 60, 24, ASCII)[0]


def test_colours_change_no_column_and_are_absent_where_they_are_not_wanted() -> None:
    coloured = block(VIEW, 79, 24, Style(colour=True))
    assert [clean(line, PLAIN) for line in coloured] == block(VIEW, 79, 24, PLAIN)
    assert any("\x1b[" in line for line in coloured)
    assert not any("\x1b" in line for line in block(VIEW, 79, 24, PLAIN))


def test_what_a_log_prints_cannot_move_the_cursor() -> None:
    hostile = "\x1b[2J\x1b]0;title\x07 50%\r\x1b[31mred\x1b[0m\ttab\x9b5A"
    assert clean(hostile, PLAIN) == " 50% red tab 5A"


def test_failures_are_named_and_counted() -> None:
    view = View(5, 9, 60.0, failed=["train dm 0-15"], left=Estimate(60.0, 60.0, 60.0))
    assert block(view, 79, 24, PLAIN) == [
        "failed: train dm 0-15",
        "5 of 9 jobs done, 0 running, 1 failed, 3 to go",
        "1 min elapsed, about 1 min left",
    ]


def test_the_time_left_says_how_sure_it_is() -> None:
    assert time_left(None) == "time left not known yet"
    assert time_left(Estimate(90.0, 60.0, 135.0)) == "about 1 min 30 s left (1 min to 2 min 15 s)"
    assert time_left(Estimate(90.0, 60.0, 135.0, unpriced=2)) == "at least 1 min 30 s left (1 min to 2 min 15 s)"
    assert time_left(Estimate(0.0, 0.0, 0.0)) == "no time left"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (61, "1 min 1 s"),
        (599, "9 min 59 s"),
        (629, "10 min"),
        (3599, "1 h"),
        (5400, "1 h 30 min"),
        (86_370, "1 d"),
        (100_000, "1 d 4 h"),
    ],
)
def test_durations_have_two_units_at_most(seconds: float, text: str) -> None:
    assert duration(seconds) == text
