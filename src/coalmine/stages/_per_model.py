"""What stages share that measure several shadow models in one job and write one file about all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from coalmine.artefacts import Header, remove_leftovers, write_json
from coalmine.checkpoint import Checkpoint, checkpoint_of


def summary(per_model: Sequence[float]) -> dict[str, Any]:
    """Return the mean over shadow models, its standard error (None of a single one), and the values themselves."""
    values = np.asarray(per_model, dtype=np.float64)
    error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
    return {"value": float(values.mean()), "se": error, "per_model": values.tolist()}


class Finished:
    """The parts of a job that are finished, by name, kept on disk until its file is written; and where others stand.

    All lies where Snakemake deletes nothing (``.finished`` beside the file), and is taken up again only by a job with
    the same header: spec, code and inputs.

    Args:
        out: the file that the job will write.
        header: the header that it will have.
        progress: prints a line.
    """

    def __init__(self, out: Path, header: Header, progress: Callable[[str], None]) -> None:
        self._out, self._header = out, header
        self._kept = out.parent / ".finished" / out.name
        self._checkpoint = checkpoint_of(self._kept, header)
        self._unfinished: dict[str, Checkpoint] = {}
        self._numbers = self._checkpoint.load() or {}
        if self._numbers:
            progress(f"{len(self._numbers)} parts were finished by an interrupted job and are kept")

    def __contains__(self, name: str) -> bool:
        """Tell whether a part is finished."""
        return name in self._numbers

    def __getitem__(self, name: str) -> np.ndarray:
        """Return the numbers of a finished part, float64 ``(k,)``."""
        return self._numbers[name]

    def checkpoint(self, name: str) -> Checkpoint:
        """Return where the computation of a part saves its state until the part is finished."""
        return self._unfinished.setdefault(name, checkpoint_of(self._kept, self._header, name))

    def add(self, numbers: Mapping[str, np.ndarray]) -> None:
        """Keep the numbers of parts that are finished now."""
        self._numbers |= numbers
        self._checkpoint.save(self._numbers)
        for name in numbers.keys() & self._unfinished.keys():
            self._unfinished.pop(name).remove()

    def publish(self, content: dict[str, Any]) -> None:
        """Write the file: its header and what is found; then forget the parts, those of another spec, too."""
        write_json(self._out, {**self._header, **content})
        folder = self._kept.parent
        for part in folder.glob(f"{self._kept.stem}.checkpoint.*"):
            part.unlink(missing_ok=True)
        remove_leftovers(folder)
        with suppress(OSError):  # nothing was kept, or another method's job uses it
            folder.rmdir()
