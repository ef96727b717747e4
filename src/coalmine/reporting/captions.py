"""Sentences that say under which attack and design the numbers of a table or figure were made."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from coalmine.reporting.layout import SPACE

if TYPE_CHECKING:
    import pandas as pd

    from coalmine.reporting.results import MethodMetrics

SECONDS_PER_MODEL = (
    "Seconds on the device to make one audited model: its teacher, its experts, its synthetic set and its training. "
    "Work that several models share is divided among them; methods that share a teacher, experts or synthetic sets "
    "each count them in full, as none could do without."
)


def attack_and_design(frame: pd.DataFrame) -> str:
    """Caption of a frame with the columns ``variant``, ``n_canaries``, ``n_models`` and ``confidence``."""
    return (
        f"Attack: {_listed(frame['variant'])}. {_size(frame['n_canaries'], frame['n_models'])} "
        f"Intervals: {confidence(frame)}, bootstrap over canaries."
    )


def design_of(metrics: Iterable[MethodMetrics]) -> str:
    """Caption of what shows the mislabelled canaries of several methods."""
    designs = [each.design for each in metrics]
    return _size((each.canaries for each in designs), (each.models for each in designs))


def confidence(frame: pd.DataFrame) -> str:
    """Return the level of a frame's intervals, such as ``95 %``, from its column ``confidence``."""
    return _listed(f"{100 * level:.6g}{SPACE}%" for level in frame["confidence"].dropna())


def _size(canaries: Iterable[int], models: Iterable[int]) -> str:
    return f"{_listed(canaries)} mislabelled canaries, {_listed(models)} models."


def _listed(values: Iterable[object]) -> str:
    return " or ".join(str(value) for value in dict.fromkeys(values))
