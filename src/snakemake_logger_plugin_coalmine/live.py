"""A run on a stream, event by event and second by second."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Event, RLock, Thread
from typing import Any, TextIO

from snakemake_interface_logger_plugins.common import LogEvent

from snakemake_logger_plugin_coalmine.announce import JOBS
from snakemake_logger_plugin_coalmine.display import Running, Style, View, block, clean, duration, time_left
from snakemake_logger_plugin_coalmine.estimate import Estimate, estimate
from snakemake_logger_plugin_coalmine.logs import last_lines, log_began, note
from snakemake_logger_plugin_coalmine.records import Records
from snakemake_logger_plugin_coalmine.run import Job, Run
from snakemake_logger_plugin_coalmine.terminal import Block

_TICK = 1.0
"""Seconds between two drawings."""
_ESTIMATE = 0.02
"""Share of the time that may be spent on estimating what is left: of many thousand jobs, that takes a while."""
_HEARTBEAT = 60.0
"""Seconds of silence after which a run without a terminal says that it is alive."""
_TAIL = 15
"""Lines of a failed job's log that are shown."""


class Live:
    """A run on a stream: drawn in place in a terminal, line by line elsewhere.

    Args:
        run: its state.
        stream: where it is shown.
        nocolor: whether it must not be coloured.
        on_error: is told what went wrong between events.
    """

    def __init__(self, run: Run, stream: TextIO, *, nocolor: bool, on_error: Callable[[Exception], None]) -> None:
        self._run = run
        self._stream = stream
        self._on_error = on_error
        self._lock = RLock()
        terminal = stream.isatty() and os.environ.get("TERM") != "dumb"
        self._style = Style(
            colour=terminal and not nocolor and not os.environ.get("NO_COLOR"),
            unicode=(getattr(stream, "encoding", None) or "ascii").lower().replace("-", "").startswith("utf"),
        )
        self._block = Block(stream) if terminal else None
        self._records: Records | None = None
        self._left: Estimate | None = None
        self._estimate_again = self._spoke = run.started
        self._interrupted = False
        self._stopped = Event()
        self._clock = Thread(target=self._tick, name="coalmine-display", daemon=True)
        self._clock.start()

    def tell(self, event: str, told: Mapping[str, Any], now: float) -> None:
        """Take in an event of a run, and say what it says."""
        with self._lock:
            if event == JOBS:
                self._run.plan(map(Job.of, told["jobs"]))
                self._estimate_again = now
            elif event == LogEvent.JOB_INFO:
                self._run.begin(Job.of(told), now, local=bool(told.get("local", True)))
            elif event == LogEvent.JOB_FINISHED:
                if (finished := self._run.finish(told["job_id"], now)) and self._block is None:
                    job, seconds = finished
                    self._say_line(f"{job.name}: {duration(seconds)}", now)
            elif event == LogEvent.JOB_ERROR:
                failed = self._run.fail(told["jobid"], now)
                if failed and not self._interrupted:
                    self.say(self._failure(*failed), now)

    def say(self, text: str, now: float) -> None:
        """Print lines that stay."""
        with self._lock:
            self._spoke = now
            if self._block is not None:
                self._block.draw(self._lines(now), above=text)
            else:
                self._stream.write(f"{text}\n")
                self._stream.flush()

    def interrupt(self) -> None:
        """The user stops the run: jobs that fail from now on are at no fault."""
        self._interrupted = True

    def stop(self) -> None:
        """Draw no more."""
        self._stopped.set()

    def close(self, now: float) -> None:
        """Replace the display by one line that says how the run ended, once."""
        with self._lock:
            if self._stopped.is_set():
                return
            self.stop()
            if self._block is not None:
                self._block.draw([], above=self._ending(now))
            else:
                self.say(self._ending(now), now)

    def _tick(self) -> None:
        while not self._stopped.wait(_TICK):
            with self._lock:
                if self._stopped.is_set():
                    return
                try:
                    self.refresh(time.time())
                except Exception as error:
                    self._on_error(error)

    def refresh(self, now: float) -> None:
        """Draw anew, or say a line if nothing was said for a while."""
        self._run.observe(log_began)
        if self._block is not None:
            self._block.draw(self._lines(now))
        elif now - self._spoke >= _HEARTBEAT:
            running = ", ".join(
                f"{job.name} {'queued' if job.seconds is None else 'for ' + duration(job.seconds)}"
                for job in self._view(now).running[:4]
            )
            self._say_line(f"running: {running}" if running else "nothing is running", now)

    def _say_line(self, text: str, now: float) -> None:
        clock = time.strftime("%H:%M:%S", time.localtime(now))
        self.say(
            clean(
                f"{clock}  {text}; {self._run.done} of {self._run.total} jobs, {time_left(self._left_now(now))}",
                self._style,
            ),
            now,
        )

    def _lines(self, now: float) -> list[str]:
        width, height = self._block.size() if self._block else (80, 24)
        return block(self._view(now), width, height, self._style)

    def _view(self, now: float) -> View:
        run = self._run
        return View(
            done=run.done,
            total=run.total,
            elapsed=now - run.started,
            stages=run.stages(),
            running=[
                Running(
                    progress.job.name,
                    None if progress.began is None else max(now - progress.began, 0.0),
                    note(progress) if self._block else "",
                )
                for progress in run.begun.values()
            ],
            failed=[job.name for job in run.failed.values()],
            left=self._left_now(now),
        )

    def _left_now(self, now: float) -> Estimate | None:
        run = self._run
        if now >= self._estimate_again or run.done >= run.total:
            begun = time.perf_counter()
            self._left = estimate(run.finished(), run.tasks(now), run.capacity_now(), self._expected)
            self._estimate_again = now + (time.perf_counter() - begun) / _ESTIMATE
        return self._left

    def _expected(self, stage: str, subject: str) -> float | None:
        """Return expected seconds a shadow model: from records of this run, else the predicted ones."""
        if self._records is None and (root := self._run.root()):
            self._records = Records(root)
        recorded = self._records.expected_seconds(stage, subject) if self._records else None
        return self._run.expected.get((stage, subject)) if recorded is None else recorded

    def _failure(self, job: Job, seconds: float) -> str:
        head = self._style.paint(f"FAILED: {job.name}", "red") + f" (rule {job.rule}) after {duration(seconds)}"
        if job.log is None:
            return head
        lines = last_lines(job.log, _TAIL)
        if not lines:
            return f"{head}; its log {job.log} is empty"
        shown = "\n".join(f"  | {clean(line, self._style)}" for line in lines)
        return f"{head}; the end of {job.log}:\n{shown}"

    def _ending(self, now: float) -> str:
        run = self._run
        elapsed = duration(now - run.started)
        if run.done >= run.total:
            products = _listed(run.products())
            return self._style.paint(f"Done: {run.total} jobs in {elapsed}", "green") + f"{products}"
        how, failed = "Interrupted", ""
        if run.failed and not self._interrupted:
            how = "Stopped"
            failed = f", {len(run.failed)} failed ({', '.join(job.name for job in run.failed.values())})"
        told = f"{how} after {elapsed}: {run.done} of {run.total} jobs done{failed}."
        return f"{self._style.paint(told, 'red')} What is finished is kept: the same command goes on from here."


def _listed(paths: list[str]) -> str:
    """Return the files that a run was for: one name for those that differ in their suffix, three names at most."""
    stems: dict[Path, list[str]] = {}
    for path in map(Path, paths):
        stems.setdefault(path.with_suffix(""), []).append(path.suffix.lstrip("."))
    names = [
        f"{stem}.{suffixes[0]}" if len(suffixes) == 1 else f"{stem}.{{{','.join(sorted(suffixes))}}}"
        for stem, suffixes in sorted(stems.items())
    ]
    if not names:
        return ""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f": {', '.join(names[:3])}{more}"
