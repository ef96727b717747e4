"""What a shadow model took before, by stage and method: the expectation of jobs of which this run has finished none."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from statistics import median

FOLDERS = {
    "experts": ("experts",),
    "fit": ("generators",),
    "synthesize": ("synthetic",),
    "train": ("models",),
    "distil": ("synthetic", "models"),
    "logits": ("logits",),
}
"""Where a stage puts its files, with their measurements beside them."""


class Records:
    """Seconds a shadow model in an earlier, or interrupted, run of the same name.

    Args:
        root: the folder of the run, ``results/<run>``. Another run's methods of the same name may be of another size.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        # Snakemake removes the files of a job when it begins: what is asked for is read once, before.
        self.expected_seconds = cache(self._expected_seconds)

    def _expected_seconds(self, stage: str, subject: str) -> float | None:
        """Return the median over what lies beside artefacts; None where there is nothing.

        Args:
            stage: such as ``train``.
            subject: the method or experts; all of them if empty.
        """
        parts = [
            [seconds for path in (self._root / folder).glob(f"{subject or '*'}/*.json") if (seconds := _seconds(path))]
            for folder in FOLDERS.get(stage, ())
        ]
        return sum(map(median, parts)) if parts and all(parts) else None


def _seconds(path: Path) -> float | None:
    """Return what is measured there; None for a file that is being written, is not ours or says nothing."""
    try:
        seconds = json.loads(path.read_text())["seconds"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return float(seconds) if type(seconds) in (int, float) and seconds > 0 else None
