"""Where a long computation on one shadow model stands, so that a kill costs minutes, not hours.

A checkpoint lies beside the artefact that is being made and carries the very header that the artefact will have (spec,
code hash, digests of its inputs): one that was made from anything else is not taken up. It holds the whole state,
generators included, so that an interrupted computation ends with the same bytes as one that was not.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from coalmine.artefacts import Header, read_npz, remove_leftovers, write_npz
from coalmine.errors import CoalmineError

SECONDS_BETWEEN = 60.0
"""The least time between two saves of one computation."""

LONG_SAVE = 3.0
"""Seconds; what takes longer to save is saved more rarely, so that saving takes a twentieth of the time at most."""

_SPENT = "checkpoint/seconds"


class Checkpoint:
    """The saved state of one shadow model's computation; without a file, it saves nothing.

    Args:
        path: an ``.npz`` file of its own, or None.
        header: of the artefact that is being made.
        seconds: the least time between two checkpoints that are :meth:`due`; None for ``SECONDS_BETWEEN``. It changes
            no result.

    Attributes:
        before: seconds that interrupted attempts had spent on what :meth:`load` returned, from the opening of their
            checkpoint to its last save.
    """

    def __init__(self, path: Path | None = None, header: Header | None = None, seconds: float | None = None) -> None:
        self._path, self._header = path, header or {}
        self._seconds = SECONDS_BETWEEN if seconds is None else seconds
        self._start = self._last = time.perf_counter()
        self._interval = self._seconds
        self.before = 0.0

    def load(self) -> dict[str, np.ndarray] | None:
        """Return the state that an interrupted run of the same computation saved, or None."""
        if not self.exists():
            return None
        assert self._path is not None
        try:
            header, arrays = read_npz(self._path)
        except CoalmineError:
            return None  # cut off by a crash of the file system: begin anew
        if header != self._header:
            return None
        self.before = float(arrays.pop(_SPENT, 0.0))
        return arrays

    def exists(self) -> bool:
        """Tell whether something is saved, be it this computation's state or another's."""
        return self._path is not None and self._path.is_file()

    def due(self) -> bool:
        """Tell whether enough time has passed since the last save, or since the start."""
        return self._path is not None and time.perf_counter() - self._last >= self._interval

    def save(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Replace the saved state."""
        start = time.perf_counter()
        if self._path is not None:
            spent = np.array(self.before + start - self._start)
            write_npz(self._path, self._header, {**arrays, _SPENT: spent}, recorded=False)
        self._last = time.perf_counter()
        self._interval = self._seconds * max(1.0, (self._last - start) / LONG_SAVE)

    def canvas(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """Return an array that is filled bit by bit, on disk, so that it may be larger than memory.

        What was written to it before the last :meth:`save` is there again when the computation is taken up. There is
        one for a computation; without a file it lies in memory.
        """
        if self._path is None:
            return np.zeros(shape, dtype)
        path = self._canvas()
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file() and self.load() is not None:
            with suppress(ValueError, OSError):  # damaged: begin anew
                kept = np.lib.format.open_memmap(path, mode="r+")
                if (kept.shape, kept.dtype) == (shape, np.dtype(dtype)):
                    return kept
        self._path.unlink(missing_ok=True)  # a state without the canvas that it tells of
        path.unlink(missing_ok=True)  # not written over: a job that goes on without its Snakemake may have it mapped
        return np.lib.format.open_memmap(path, mode="w+", shape=shape, dtype=dtype)

    def remove(self) -> None:
        """Forget the saved state: its artefact is finished."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            self._canvas().unlink(missing_ok=True)
            remove_leftovers(self._path.parent, self._path.name)

    def _canvas(self) -> Path:
        assert self._path is not None
        return self._path.with_suffix(".canvas.npy")


def checkpoint_of(path: Path, header: Header, purpose: str = "") -> Checkpoint:
    """Return the checkpoint beside a file that is being made; each purpose, where there are several, has its own."""
    if not purpose:
        return Checkpoint(path.with_suffix(".checkpoint.npz"), header)
    name = re.sub(r"\W+", "-", purpose)
    return Checkpoint(path.with_suffix(f".checkpoint.{name}.npz"), {**header, "purpose": purpose})


def without(shadow: object, purpose: str = "") -> Checkpoint:
    """Return a checkpoint that keeps nothing, for computations that nobody will take up again."""
    return Checkpoint()
