"""No defence: the audited model is trained on the private data themselves.

The upper end of every comparison. The training recipe is that of the run (``training`` in the configuration); there
are no hyper-parameters of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from coalmine import settings
from coalmine.costs.work import Counter, Work
from coalmine.shadows import Setup, Shadow

if TYPE_CHECKING:
    from coalmine.training.loop import Trained


class Settings(settings.Settings):
    """No settings of its own."""


def train(shadows: Sequence[Shadow], settings: Settings, setup: Setup) -> Iterator[Trained]:
    """Yield one model per shadow model, trained on all of its private data."""
    return setup.train([shadow.training_set() for shadow in shadows], shadows)


def work(settings: Settings, counter: Counter) -> Work:
    """Return what one shadow model takes."""
    return counter.training(counter.population)
