"""A made-up run for tests of costs: 100 samples of 8x8 grey pixels in 5 classes."""

from __future__ import annotations

from typing import Any

from coalmine.costs.counting import LoopCounter
from coalmine.models.settings import MLP
from coalmine.training.recipe import Recipe


class MadeUp:
    """A scene with round numbers."""

    population, private, test, public = 100.0, 110.0, 40.0, 60.0
    classes, channels, side, audited = 5, 1, 8, 20.0

    def __init__(self, **specs: dict[str, Any]) -> None:
        self._specs = specs

    def spec(self, stage: str, name: str) -> dict[str, Any]:
        """Return the spec given for a stage."""
        return self._specs[stage]

    def kind(self, method: str) -> str:
        """Every method makes synthetic sets."""
        return "synthesize"

    def shadows_of(self, method: str) -> int:
        """Return a number of shadow models."""
        return 6


MODEL = MLP(hidden=(16,))
OPERATIONS = 64 * 16 + 16 * 5
"""Of one image in a forward pass of ``MODEL``."""
WEIGHTS = 64 * 16 + 16 + 16 * 5 + 5


def recipe(**changes: Any) -> Recipe:
    """A short recipe."""
    return Recipe(**{"epochs": 4, "batch_size": 20, "warmup_epochs": 0, "schedule": "constant", **changes})


def counter(scene: MadeUp | None = None, **spec: Any) -> LoopCounter:
    """Return a counter of a method's spec."""
    whole = {"model": MODEL.model_dump(mode="json"), "training": recipe().model_dump(mode="json"), **spec}
    return LoopCounter(scene or MadeUp(), whole)
