"""Where a long computation on one shadow model stands, so that a kill costs minutes, not hours.

A checkpoint lies beside the artefact that is being made and carries the very header that the artefact will have (spec,
code hash, digests of its inputs): one that was made from anything else is not taken up. It holds the whole state,
generators included, so that an interrupted computation ends with the same bytes as one that was not.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from coalmine.artefacts import Header, read_npz, write_npz
from coalmine.errors import CoalmineError

SECONDS_BETWEEN = 60.0


class Checkpoint:
    """The saved state of one shadow model's computation; without a file, it saves nothing.

    Args:
        path: an ``.npz`` file of its own, or None.
        header: of the artefact that is being made.
        seconds: the least time between two checkpoints that are :meth:`due`. It changes no result.
    """

    def __init__(
        self, path: Path | None = None, header: Header | None = None, seconds: float = SECONDS_BETWEEN
    ) -> None:
        self._path, self._header, self._seconds = path, header or {}, seconds
        self._last = time.perf_counter()

    def load(self) -> dict[str, np.ndarray] | None:
        """Return the state that an interrupted run of the same computation saved, or None."""
        if self._path is None or not self._path.is_file():
            return None
        try:
            header, arrays = read_npz(self._path)
        except CoalmineError:
            return None  # cut off by a crash of the file system: begin anew
        return arrays if header == self._header else None

    def due(self) -> bool:
        """Tell whether enough time has passed since the last save, or since the start."""
        return self._path is not None and time.perf_counter() - self._last >= self._seconds

    def save(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Replace the saved state."""
        if self._path is not None:
            write_npz(self._path, self._header, arrays)
        self._last = time.perf_counter()

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
            return np.lib.format.open_memmap(path, mode="r+")
        self._path.unlink(missing_ok=True)  # a state without the canvas that it tells of
        return np.lib.format.open_memmap(path, mode="w+", shape=shape, dtype=dtype)

    def remove(self) -> None:
        """Forget the saved state: its artefact is finished."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            self._canvas().unlink(missing_ok=True)

    def _canvas(self) -> Path:
        assert self._path is not None
        return self._path.with_suffix(".canvas.npy")


def without(shadow: object) -> Checkpoint:
    """Return a checkpoint that keeps nothing, for computations that nobody will take up again."""
    return Checkpoint()
