"""What the command lines of all stages share.

Imports only what every stage needs: what is imported here is part of every stage's code hash.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from coalmine.artefacts import Header
from coalmine.errors import CoalmineError
from coalmine.provenance import code_hash


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with what every stage takes: its spec and where to write."""
    command = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("--spec", type=json.loads, required=True, help="the configuration of this stage, as JSON")
    command.add_argument("--out", type=Path, nargs="+", required=True, help="files to write")
    return command


def add_design(command: argparse.ArgumentParser) -> None:
    """Add the files of the ``design`` stage."""
    files = ("CANARIES", "MEMBERSHIP")
    command.add_argument("--design", type=Path, nargs=2, metavar=files, required=True, help="audit design")


def add_test_data(command: argparse.ArgumentParser) -> None:
    """Add the test images and their labels."""
    command.add_argument("--test", type=Path, nargs=2, metavar=("IMAGES", "LABELS"), required=True, help="test data")


def header(stage: str, spec: dict[str, Any], module: str | None = None, **fields: Any) -> Header:
    """Return what determines an artefact: stage, spec, the hash of the code that is running, and ``fields``."""
    modules = [f"coalmine.stages.{stage}", *([module] if module else [])]
    return {"stage": stage, "spec": spec, "code": code_hash(*modules), **fields}


def shadow_number(path: Path) -> int:
    """Return the shadow model that a file is of: ``…/007.safetensors`` -> 7."""
    if not path.stem.isdecimal():
        raise CoalmineError(f"{path}: the file name must be the number of a shadow model, such as 007{path.suffix}.")
    return int(path.stem)


class Stopwatch:
    """Measures laps."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        """Return the seconds since the last lap, or since the start."""
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds


def run(main: Callable[[], None]) -> None:
    """Run a stage; what a user can mend is told in one sentence, without a traceback."""
    try:
        main()
    except CoalmineError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(1)


def describe(shadows: list[int]) -> str:
    """``[0, 1, 2, 5]`` -> ``0-2, 5``: the shadow models of a job, for progress lines."""
    runs: list[list[int]] = []
    for number in shadows:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
