"""What stages share that look at the images of synthetic sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from coalmine.artefacts import check_header, read_npz
from coalmine.errors import CoalmineError
from coalmine.shadows import PrivateData
from coalmine.stages._command import shadow_number


def read_arrays(
    path: Path, method: str, data: PrivateData, digests: Mapping[str, str]
) -> tuple[int, dict[str, np.ndarray]]:
    """Read the shadow model and the arrays of a synthetic set, whichever stage made it.

    Args:
        path: the set.
        method: the one that made it.
        data: the private data of the run.
        digests: theirs, see :meth:`PrivateData.digests`.

    Raises:
        CoalmineError: the set is another's, is empty, or its images are no images like the private ones.
    """
    header, arrays = read_npz(path)
    shadow = shadow_number(path)
    made_from = {f"inputs__{name}": value for name, value in digests.items()}
    maker = "distil" if header.get("stage") == "distil" else "synthesize"
    check_header(path, header, stage=maker, spec__method=method, shadow=shadow, **made_from)
    images = arrays["images"]
    if images.dtype not in (np.uint8, np.float32) or images.shape[1:] != data.images.shape[1:] or not len(images):
        raise CoalmineError(
            f"{path}: the synthetic images are {images.dtype} of shape {images.shape}, expected at least one, uint8 or "
            f"float32, like the private ones: (n, {', '.join(map(str, data.images.shape[1:]))}). Mend the method."
        )
    return shadow, arrays


def sets_of(paths: Sequence[Path], method: str, shadows: int) -> list[Path]:
    """Return the synthetic sets of the first so many shadow models, in order.

    Raises:
        CoalmineError: one of them is missing.
    """
    found = {shadow_number(path): path for path in paths if path.suffix == ".npz"}
    missing = [number for number in range(shadows) if number not in found]
    if missing:
        raise CoalmineError(
            f"--synthetic lists no set of shadow model {missing[0]} of {method}, expected those of the first {shadows} "
            f"shadow models: 000.npz to {shadows - 1:03d}.npz."
        )
    return [found[number] for number in range(shadows)]


def in_turn(labels: np.ndarray) -> np.ndarray:
    """Return the order in which the classes of a synthetic set take turns, int64 ``(n,)``.

    Every beginning of it, and every end, holds the classes in nearly the proportions of the whole set, where those of
    a set that a method (or the folders of private data) has sorted by class would hold one class only. Images of one
    class keep their order, and a set whose classes take turns already keeps it altogether.

    Args:
        labels: int64 ``(n,)``, or soft ones, float32 ``(n, class)``, which count as their most probable class.
    """
    hard = labels if labels.ndim == 1 else labels.argmax(axis=1)
    counts = np.bincount(hard)
    rank = np.empty(len(hard))
    by_class = np.argsort(hard, kind="stable")
    rank[by_class] = np.arange(len(hard)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.argsort((rank + 0.5) / counts[hard], kind="stable")
