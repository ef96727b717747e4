"""Randomness keyed by names: one seed, one independent stream per (method, shadow model, purpose).

Streams are children of ``numpy.random.SeedSequence`` addressed by what they are for, never by position or time, so
that adding a method, a shadow model or a purpose changes no other number (design, section 4).
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def seed_sequence(seed: int, *names: str | int) -> np.random.SeedSequence:
    """Return the seed sequence of one named stream.

    Args:
        seed: the run's seed, a non-negative integer.
        names: what the stream is for, outermost first, e.g. ``("random", 7, "training")``.
    """
    key = "\x1f".join(f"{type(name).__name__}:{name}" for name in names)
    words = np.frombuffer(hashlib.sha256(key.encode()).digest(), dtype="<u4")
    return np.random.SeedSequence(entropy=seed, spawn_key=tuple(int(word) for word in words))


def numpy_generator(seed: int, *names: str | int) -> np.random.Generator:
    """Return the NumPy generator of one named stream."""
    return np.random.default_rng(seed_sequence(seed, *names))


def torch_generator(seed: int, *names: str | int) -> torch.Generator:
    """Return the CPU torch generator of one named stream (draws are made on the CPU, so devices agree)."""
    import torch

    state = seed_sequence(seed, *names).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) | int(state[1] & 0x7FFFFFFF) << 32)
