"""Sentences that say under which attack and design the numbers of a table or figure were made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from coalmine.reporting.layout import SPACE

if TYPE_CHECKING:
    import pandas as pd

    from coalmine.reporting.results import MethodMetrics

SECONDS_PER_MODEL = (
    "Seconds on the device to make one audited model: its teacher, its experts, its generator, its synthetic set and "
    "its training. Work that several models share is divided among them; methods that share a teacher, experts, "
    "generators or synthetic sets each count them in full, as none could do without. Pre-training on public data, done "
    "once for all, is not counted."
)

FEWER_MODELS = (
    "every model is the target once and the others are what the attacker learns from, so that the attack on a method "
    "with fewer models is weaker and understates its leakage beside that of others"
)
"""Why methods with unlike numbers of shadow models are not attacked alike."""

WEAKER = "With fewer models the attack is weaker."


def attack_and_design(frame: pd.DataFrame, others: Iterable[tuple[str, int]] = ()) -> str:
    """Caption of a frame with the columns ``label``, ``variant``, ``n_canaries``, ``n_models`` and ``confidence``.

    Args:
        frame: of a table, one method a row.
        others: the name for people of further methods that it tells of, and their numbers of models.
    """
    models = [*zip(frame["label"], frame["n_models"], strict=True), *others]
    return (
        f"Attack: {_listed(frame['variant'])}. {_size(frame['n_canaries'], models)} "
        f"Intervals: {confidence(frame)}, bootstrap over canaries."
    )


def design_of(metrics: Iterable[MethodMetrics], label: Callable[[str], str] = str, attack: bool = False) -> str:
    """Caption of what shows the mislabelled canaries of several methods.

    Args:
        metrics: of the methods.
        label: returns the name for people of a method.
        attack: what is shown comes from an attack, which is weaker with fewer models.
    """
    every = [*metrics]
    models = [(label(each.method), each.design.models) for each in every]
    said = _size((each.design.canaries for each in every), models)
    return f"{said} {WEAKER}" if attack and differ(number for _, number in models) else said


def models_of(models: Iterable[tuple[str, int]]) -> str:
    """Return how many models methods have, such as ``32 models``, or ``32 models (8: DM / DSA)`` if they differ.

    The commonest number comes first, then the exceptions with their names.

    Args:
        models: the name for people of each method, and its number of models.
    """
    named = [(name, int(number)) for name, number in models]
    (usual, _), *rest = Counter(number for _, number in named).most_common()
    exceptions = [
        f"{number}: {' / '.join(dict.fromkeys(name for name, own in named if own == number))}" for number, _ in rest
    ]
    return f"{usual} models" + (f" ({'; '.join(exceptions)})" if exceptions else "")


def differ(numbers: Iterable[int]) -> bool:
    """Tell whether methods have unlike numbers of models."""
    return len(set(numbers)) > 1


def confidence(frame: pd.DataFrame) -> str:
    """Return the level of a frame's intervals, such as ``95 %``, from its column ``confidence``."""
    return _listed(f"{100 * level:.6g}{SPACE}%" for level in frame["confidence"].dropna())


def _size(canaries: Iterable[int], models: Iterable[tuple[str, int]]) -> str:
    return f"{_listed(canaries)} mislabelled canaries, {models_of(models)}."


def _listed(values: Iterable[object]) -> str:
    return " or ".join(str(value) for value in dict.fromkeys(values))
