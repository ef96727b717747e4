"""What a person sees of a run: its state in, lines of text of a given width out."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field

from snakemake_logger_plugin_coalmine.estimate import Estimate

_BAR = 24
"""Columns of a bar at most."""
_ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|.)")
_CODES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "cyan": "36"}


@dataclass(frozen=True)
class Style:
    """What the terminal can show.

    Attributes:
        colour: whether it may be coloured.
        unicode: whether characters beyond ASCII can be written.
    """

    colour: bool = False
    unicode: bool = True

    def paint(self, text: str, colour: str) -> str:
        """Return text in a colour, if there are any."""
        return f"\x1b[{_CODES[colour]}m{text}\x1b[0m" if self.colour and text else text


@dataclass(frozen=True)
class Running:
    """A job that runs or waits in the queue of a cluster.

    Attributes:
        name: what people call it.
        seconds: since it began; None while it waits.
        note: the last line of its log.
    """

    name: str
    seconds: float | None
    note: str = ""


@dataclass(frozen=True)
class View:
    """What there is to see of a run at one moment.

    Attributes:
        done: finished jobs.
        total: all jobs.
        elapsed: seconds since the run began.
        stages: done and all jobs of each stage, in order.
        running: jobs that were begun, the oldest first.
        failed: names of jobs that failed.
        left: how long the run still takes; None while that is not known.
    """

    done: int
    total: int
    elapsed: float
    stages: dict[str, tuple[int, int]] = field(default_factory=dict)
    running: Sequence[Running] = ()
    failed: Sequence[str] = ()
    left: Estimate | None = None


def block(view: View, width: int, height: int, style: Style) -> list[str]:
    """Return the lines of the display.

    Args:
        view: the run.
        width: columns that a line may take.
        height: number of lines at most. Stages give way first, then running jobs; the last two lines always stay.
        style: what the terminal can show.
    """
    stages = _stages(view, width, style)
    running = _running(view, width, style)
    closing = [
        style.paint(cut(_counts(view), width, style), "bold"),
        cut(time_left(view.left, elapsed=view.elapsed), width, style),
    ]
    if view.failed:
        closing.insert(0, style.paint(cut(f"failed: {', '.join(view.failed)}", width, style), "red"))
    # A terminal of few lines: what runs now matters more than the stages.
    room = max(height - len(closing), 0)
    running = _shorten(running, room, width, style)
    stages = _shorten(stages, room - len(running), width, style)
    return [*stages, *running, *closing][-max(height, 1) :]


def time_left(left: Estimate | None, elapsed: float | None = None) -> str:
    """Return how long a run still takes, as a sentence, behind how long it took so far."""
    before = "" if elapsed is None else f"{duration(elapsed)} elapsed, "
    if left is None:
        return f"{before}time left not known yet"
    if not left.seconds and not left.unpriced:
        return f"{before}no time left"
    bound = "at least" if left.unpriced else "about"
    low, high = duration(left.low), duration(left.high)
    between = f" ({low} to {high})" if low != high else ""
    return f"{before}{bound} {duration(left.seconds)} left{between}"


def duration(seconds: float) -> str:
    """Return seconds in two units at most, with no more digits than matter."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 600:
        return f"{whole // 60} min" + (f" {whole % 60} s" if whole % 60 else "")
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h" + (f" {minutes % 60} min" if minutes % 60 else "")
    hours = round(seconds / 3600)
    return f"{hours // 24} d" + (f" {hours % 24} h" if hours % 24 else "")


def columns(text: str) -> int:
    """Return how many columns a terminal takes for a text without control characters."""
    return sum(map(_columns, text))


def cut(text: str, width: int, style: Style) -> str:
    """Return a text that takes ``width`` columns at most, its end replaced by an ellipsis if it is longer."""
    text = clean(text, style)
    if columns(text) <= width:
        return text
    dots = "…" if style.unicode else "..."
    room = width - columns(dots)
    kept = ""
    for character in text:
        room -= _columns(character)
        if room < 0:
            break
        kept += character
    return (kept + dots)[: max(width, 0)] if width < len(dots) else kept + dots


def clean(text: str, style: Style) -> str:
    """Return a text without colours and control characters, which could not be put in a line of its own."""
    shown = "".join(c if c.isprintable() else " " for c in _ESCAPES.sub("", text))
    return shown if style.unicode else shown.encode("ascii", "replace").decode()


def _columns(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _counts(view: View) -> str:
    running = sum(job.seconds is not None for job in view.running)
    queued = len(view.running) - running
    to_go = view.total - view.done - len(view.running) - len(view.failed)
    parts = [f"{view.done} of {view.total} jobs done", f"{running} running"]
    parts += [f"{queued} queued"] if queued else []
    parts += [f"{len(view.failed)} failed"] if view.failed else []
    return ", ".join([*parts, f"{max(to_go, 0)} to go"])


def _stages(view: View, width: int, style: Style) -> list[str]:
    """Return one line a stage that is not done, under one line for those that are."""
    done = [name for name, (finished, total) in view.stages.items() if finished >= total]
    open_ = {name: counts for name, counts in view.stages.items() if name not in done}
    lines = [style.paint(cut(f"done: {', '.join(done)}", width, style), "green")] if done else []
    if not open_:
        return lines
    # Name, bar and numbers: a narrow terminal loses bars first, then parts of names.
    numbers = {name: f"{finished}/{total}" for name, (finished, total) in open_.items()}
    wide = max(map(len, numbers.values()))
    label = min(max(map(columns, open_)), max(width - wide - 2, 1))
    bar = min(_BAR, width - label - wide - 4)
    for name, (finished, total) in open_.items():
        text = _padded(cut(name, label, style), label)
        number = numbers[name].rjust(wide)
        drawn = f"{text}  {_bar(finished, total, bar, style)}  {number}"
        lines.append(drawn if bar >= 4 else cut(f"{text}  {number}", width, style))
    return lines


def _running(view: View, width: int, style: Style) -> list[str]:
    """Return one line a job: name, since when, last line of its log."""
    if not view.running:
        return []
    since = ["queued" if job.seconds is None else duration(job.seconds) for job in view.running]
    wide = max(map(len, since))
    label = min(max(columns(job.name) for job in view.running), max(width - wide - 4, 1))
    lines = []
    for job, seconds in zip(view.running, since, strict=True):
        head = cut(f"> {_padded(cut(job.name, label, style), label)}  {seconds.rjust(wide)}", width, style)
        room = width - columns(head) - 2
        note = f"  {cut(job.note, room, style)}" if job.note and room >= 8 else ""
        lines.append(style.paint(head, "cyan") + style.paint(note, "dim"))
    return lines


def _bar(done: int, total: int, width: int, style: Style) -> str:
    full, empty = "█░" if style.unicode else "#."
    filled = width * done // total
    return style.paint(full * filled, "green") + empty * (width - filled)


def _padded(text: str, width: int) -> str:
    return text + " " * (width - columns(text))


def _shorten(lines: list[str], room: int, width: int, style: Style) -> list[str]:
    """Return as many lines as there is room for, the last of which says how many are missing."""
    if len(lines) <= room:
        return lines
    if room <= 0:
        return []
    return [*lines[: room - 1], cut(f"({len(lines) - room + 1} more)", width, style)]
