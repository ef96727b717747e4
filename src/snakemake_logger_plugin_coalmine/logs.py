"""What running and failed jobs printed, from the end of their logs."""

from __future__ import annotations

import os
import re
from collections import deque
from pathlib import Path

from snakemake_logger_plugin_coalmine.run import Progress

_TAIL_BYTES = 16384


def log_began(progress: Progress) -> float | None:
    """Return when a submitted job began to write to its log; None if it has not."""
    if progress.job.log is None:
        return progress.submitted
    try:
        written = progress.job.log.stat().st_mtime
    except OSError:
        return None
    return written if written >= progress.submitted else None


def note(progress: Progress) -> str:
    """Return the last line that a job printed, without its name; nothing from the log of an earlier run."""
    log = progress.job.log
    if log is None or log_began(progress) is None:
        return ""
    line = next(iter(last_lines(log, 1)), "")
    told = re.match(rf"(\w+ )?{re.escape(progress.job.subject)} [\d-]+: ", line)
    return line[told.end() :] if told else line


def last_lines(log: Path, count: int) -> list[str]:
    """Return the last lines of a text file that are not empty; none if it cannot be read."""
    try:
        with log.open("rb") as file:
            file.seek(max(os.fstat(file.fileno()).st_size - _TAIL_BYTES, 0))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return list(deque((line.rstrip() for line in text.splitlines() if line.strip()), maxlen=count))
