"""What the tests of hostile input share: ways to spoil a file, and the one property that every reader has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from coalmine.errors import CoalmineError

REFUSED = object()
"""What :func:`outcome` returns for a file that was refused as it should be."""


def bounded(examples: int) -> settings:
    """Return the settings of a fuzz test: the same so many examples every time."""
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )


def outcome(read: Callable[[Path], Any], path: Path) -> Any:
    """Return what was read, or ``REFUSED`` if the file was refused by a message that names it.

    Any other exception, which a user would see as a traceback, is a failure of the test.
    """
    try:
        return read(path)
    except CoalmineError as error:
        if str(path) not in str(error) and f"{path.parent}/" not in str(error):  # a design is two files
            raise AssertionError(f"the message does not name {path}: {error}") from error
        return REFUSED


@st.composite
def spoilt(draw: st.DrawFn, whole: bytes) -> bytes:
    """A file with one bit flipped, cut off, cut in the middle, grown, or replaced by other bytes."""
    kind = draw(st.sampled_from(["flip", "cut", "tail", "middle", "grow", "noise"]))
    position = draw(st.integers(0, len(whole) - 1))
    if kind == "flip":
        return flipped(whole, position, draw(st.integers(0, 7)))
    if kind == "cut":
        return whole[:position]
    if kind == "tail":
        return whole[position:]
    if kind == "middle":
        return whole[:position] + whole[draw(st.integers(position, len(whole))) :]
    if kind == "grow":
        return whole[:position] + draw(st.binary(min_size=1, max_size=8)) + whole[position:]
    return draw(st.binary(max_size=200))


def flipped(whole: bytes, position: int, bit: int) -> bytes:
    """Return a file with one bit changed."""
    return whole[:position] + bytes([whole[position] ^ 1 << bit]) + whole[position + 1 :]


class Marked:
    """An object that creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.marker,)


def same(one: Any, other: Any) -> bool:
    """Tell whether two things that a reader returned are equal, arrays by type and bytes."""
    if isinstance(one, np.ndarray):
        return (
            isinstance(other, np.ndarray)
            and (one.dtype, one.shape) == (other.dtype, other.shape)
            and one.tobytes() == other.tobytes()
        )
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and bool(one == other)


class Peak:
    """Fails where more memory was asked for inside the block than allowed."""

    def __init__(self, megabytes: float) -> None:
        self.allowed = megabytes

    def __enter__(self) -> None:
        import tracemalloc

        tracemalloc.start()

    def __exit__(self, *raised: object) -> None:
        import tracemalloc

        peak = tracemalloc.get_traced_memory()[1] / 1e6
        tracemalloc.stop()
        if raised[0] is None and peak > self.allowed:
            pytest.fail(f"{peak:.0f} MB were used, expected at most {self.allowed:.0f}")
