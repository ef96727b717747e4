"""Measure whether synthetic validation images rank training recipes as real test images do.

Who releases synthetic data under differential privacy cannot let others choose their hyper-parameters on real data.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np

from coalmine.data.images import ImageSet
from coalmine.errors import CoalmineError
from coalmine.stages import _command
from coalmine.stages._utility import Classifiers, parser, part
from coalmine.training.recipe import Recipe
from coalmine.training.sets import TrainingSet


def held_out(whole: TrainingSet, validation: float, method: str) -> tuple[TrainingSet, ImageSet]:
    """Split a synthetic set in what is trained on and the last share, ``validation`` of it.

    Soft labels count as their most probable class in validation.

    Raises:
        CoalmineError: one of the parts would be empty.
    """
    count = round(validation * len(whole))
    if not 0 < count < len(whole):
        raise CoalmineError(
            f"utility.validation, {validation:g}, holds out {count} of {len(whole)} synthetic images of {method}, "
            "expected at least one in each part; set another share, or raise the number of images."
        )
    fitted, rest = part(whole, slice(-count)), part(whole, slice(-count, None))
    labels = rest.labels if rest.labels.ndim == 1 else rest.labels.argmax(axis=1).astype(np.int64)
    return fitted, ImageSet(rest.images, labels)


def given(own: TrainingSet, overrides: dict[str, Any]) -> TrainingSet:
    """Return the set as it is trained on: a recipe that says a learning rate takes the place of the set's own."""
    return replace(own, learning_rate=None) if "learning_rate" in overrides else own


def main() -> None:
    """Train one classifier per recipe and shadow model; measure it on held-out synthetic and on real images."""
    classifiers = Classifiers("recipes", parser(__doc__))
    spec = classifiers.spec
    parts = [held_out(whole, spec["validation"], spec["method"]) for whole in classifiers.sets]
    tests = [[synthetic, classifiers.test] for _, synthetic in parts]
    found = []
    for number, own in enumerate(spec["recipes"]):
        recipe = Recipe.model_validate_json(json.dumps(own["training"]))
        sets = [given(fitted, own["overrides"]) for fitted, _ in parts]
        accuracy = classifiers.accuracies(f"recipe {number}", sets, recipe, tests)
        synthetic, real = accuracy.mean(axis=0)
        classifiers.progress(
            f"recipe {number} {json.dumps(own['overrides'])}: accuracy {synthetic:.1%} on held-out synthetic images, "
            f"{real:.1%} on real ones, mean of {len(sets)} shadow models"
        )
        found.append(accuracy)
    classifiers.finished.publish(
        {
            "method": spec["method"],
            "shadows": list(range(len(parts))),
            "validation": len(parts[0][1]),
            "recipes": [own["overrides"] for own in spec["recipes"]],
            "synthetic": [accuracy[:, 0].tolist() for accuracy in found],
            "real": [accuracy[:, 1].tolist() for accuracy in found],
        }
    )


if __name__ == "__main__":
    _command.run(main)
