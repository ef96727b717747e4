"""Snakemake itself with the display, in a pseudo-terminal and without one, on a workflow of a few short jobs."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from screens import Screen

SNAKEFILE = """
import sys

sys.path.insert(0, {source!r})


rule score:
    input:
        expand("results/run/models/{{method}}/{{shadow}}.json", method=["plain", "合成"], shadow=["000", "001"]),
    output:
        "results/score.csv",
    shell:
        "touch {{output}}"


rule train:
    output:
        "results/run/models/{{method}}/000.json",
        "results/run/models/{{method}}/001.json",
    log:
        "results/run/logs/{{method}}.log",
    params:
        seconds=config.get("seconds", 2),
        status=config.get("status", 0),
    shell:
        "echo '{{wildcards.method}} 0-1: epoch 31.0: loss 0.12' > {{log}}; sleep {{params.seconds}}; "
        "echo 'ValueError: no such thing' >> {{log}}; touch {{output}}; exit {{params.status}}"


onstart:
    from snakemake_logger_plugin_coalmine.announce import announce

    announce(workflow.dag)
"""
COLUMNS, ROWS = 70, 16
LIMIT = 120.0
"""Seconds after which a run hangs."""


@pytest.fixture
def workflow(tmp_path: Path) -> Path:
    source = Path(__file__).resolve().parents[2] / "src"
    (tmp_path / "Snakefile").write_text(SNAKEFILE.format(source=str(source)))
    return tmp_path


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "snakemake", "--cores", "2", *arguments]


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "TERM", "PYTHONPATH")}
    return {**kept, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8", "HOME": os.environ.get("HOME", "/")}


def in_terminal(folder: Path, *arguments: str, interrupt_at: str | None = None) -> tuple[list[str], Screen]:
    """Run in a pseudo-terminal. Return what stood on the screen after every write, and the screen at the end."""
    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    process = subprocess.Popen(
        command(*arguments),
        cwd=folder,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=side,
        stderr=side,
        start_new_session=True,
    )
    os.close(side)
    screen, states, data, began = Screen(COLUMNS, ROWS), [], b"", time.monotonic()
    while chunk := read(main):
        data += chunk
        text = data.decode(errors="ignore")
        if text.endswith("\n") or text.endswith("J"):  # a whole drawing
            states.append(screen.feed(text).text())
            data = b""
        if interrupt_at and interrupt_at in "".join(states[-1:]):
            os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
            interrupt_at = None
        if time.monotonic() - began > LIMIT:
            process.kill()
            raise AssertionError(f"Snakemake hangs:\n{screen.text()}")
    screen.feed(data.decode())
    process.wait()
    return states, screen


def read(terminal: int) -> bytes:
    """Return what the terminal shows next; nothing once no program has it open."""
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""


def without_terminal(folder: Path, *arguments: str, stderr: int = subprocess.STDOUT) -> list[str]:
    done = subprocess.run(
        command(*arguments),
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        timeout=LIMIT,
    )
    return [*done.stdout.splitlines(), *(done.stderr or "").splitlines()]


def test_a_run_in_a_terminal_is_drawn_in_place_and_ends_as_one_line(workflow: Path) -> None:
    states, screen = in_terminal(workflow, "--logger", "coalmine")
    assert re.fullmatch(r"Building DAG of jobs\.\.\.\nDone: 3 jobs in \d+ s: results/score\.csv", screen.text()), (
        screen.text()
    )
    assert screen.modes == []
    middle = next(state.splitlines() for state in states if "loss" in state)
    assert middle[0] == "Building DAG of jobs..."
    assert sorted(middle[1:3]) == [
        "score  ░░░░░░░░░░░░░░░░░░░░░░░░  0/1",
        "train  ░░░░░░░░░░░░░░░░░░░░░░░░  0/2",
    ]
    running = sorted(middle[3:5])
    assert re.fullmatch(r"> train plain 0-1  \d s  epoch 31\.0: loss 0\.12", running[0])
    assert re.fullmatch(r"> train 合成 0-1   \d s  epoch 31\.0: loss 0\.12", running[1])
    assert middle[5] == "0 of 3 jobs done, 2 running, 1 to go"


def test_a_run_without_a_terminal_is_one_line_a_job(workflow: Path) -> None:
    lines = without_terminal(workflow, "--logger", "coalmine")
    assert lines[0] == "Building DAG of jobs..."
    clock = r"\d\d:\d\d:\d\d  "
    for line, name, done in zip(lines[1:], ("train .* 0-1", "train .* 0-1", "score"), (1, 2, 3), strict=False):
        assert re.fullmatch(rf"{clock}{name}: \d+ s; {done} of 3 jobs, .*left.*", line), line
    assert re.fullmatch(r"Done: 3 jobs in \d+ s: results/score\.csv", lines[4])
    assert len(lines) == 5
    assert "Nothing to be done (all requested files are present and up to date)." in without_terminal(
        workflow, "--logger", "coalmine"
    )


def test_a_failure_is_told_with_the_end_of_its_log_and_nothing_of_the_command(workflow: Path) -> None:
    lines = without_terminal(workflow, "--logger", "coalmine", "--keep-going", "--config", "status=3", "seconds=0")
    text = "\n".join(lines)
    for method in ("plain", "合成"):
        assert (
            f"FAILED: train {method} 0-1 (rule train) after 0 s; the end of results/run/logs/{method}.log:\n"
            f"  | {method} 0-1: epoch 31.0: loss 0.12\n"
            "  | ValueError: no such thing\n"
        ) in text
    assert re.match(r"Stopped after \d+ s: 0 of 3 jobs done, 2 failed \(train .* 0-1, train .* 0-1\)\. ", lines[-1])
    assert "sleep" not in text
    assert len(lines) == 1 + 2 * 3 + 1


def test_an_interrupted_run_leaves_a_sane_terminal(workflow: Path) -> None:
    states, screen = in_terminal(workflow, "--logger", "coalmine", "--config", "seconds=60", interrupt_at="loss")
    assert screen.modes == []
    assert screen.column == 0
    assert any("loss" in state for state in states)
    assert re.search(r"\nInterrupted after \d+ s: 0 of 3 jobs done\. What is finished is kept", screen.text())
    assert "FAILED" not in screen.text()
    assert "> train" not in screen.text()


@pytest.mark.parametrize("arguments", [["--dry-run"], ["--summary"], ["nosuch.csv"], ["--lint"]])
def test_what_is_no_run_says_the_same_with_and_without_the_display(workflow: Path, arguments: list[str]) -> None:
    def told(*more: str) -> list[str]:
        # Each stream by itself: in one, a line of the other may begin in the middle of a line.
        lines = without_terminal(workflow, *arguments, "--quiet", "host", *more, stderr=subprocess.PIPE)
        # Times of day and the order of files in a reason are not compared.
        passing = ("[", "Assuming unrestricted", "    reason: ")
        return sorted(line for line in lines if line and not line.startswith(passing))

    assert told() == told("--logger", "coalmine")
    assert told() != []
