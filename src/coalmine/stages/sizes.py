"""Measure how accurate classifiers are that learn from the first synthetic images of a method, by their number."""

from __future__ import annotations

import json

from coalmine.errors import CoalmineError
from coalmine.stages import _command
from coalmine.stages._per_model import summary
from coalmine.stages._utility import Classifiers, parser, part
from coalmine.training.recipe import Recipe


def check_sizes(classifiers: Classifiers) -> None:
    """Refuse sizes that some set does not have."""
    largest, method = max(classifiers.spec["sizes"]), classifiers.spec["method"]
    for path, own in zip(classifiers.paths, classifiers.sets, strict=True):
        if len(own) < largest:
            raise CoalmineError(
                f"utility.sizes asks for {largest:,} synthetic images of {method}, but {path} holds {len(own):,}; "
                f"raise images of {method}, or lower utility.sizes."
            )


def main() -> None:
    """Train classifiers on so many synthetic images and measure them on the real test images."""
    classifiers = Classifiers("sizes", parser(__doc__))
    spec = classifiers.spec
    check_sizes(classifiers)
    recipe = Recipe.model_validate_json(json.dumps(spec["training"]))
    tests = [[classifiers.test]] * len(classifiers.sets)
    found = []
    for size in spec["sizes"]:
        sets = [part(whole, slice(size)) for whole in classifiers.sets]
        accuracy = summary(classifiers.accuracies(f"{size} images", sets, recipe, tests)[:, 0].tolist())
        classifiers.progress(f"{size:,} images: accuracy {accuracy['value']:.1%}, mean of {len(sets)} shadow models")
        found.append({"size": size, "accuracy": accuracy})
    classifiers.finished.publish({"method": spec["method"], "shadows": list(range(len(tests))), "sizes": found})


if __name__ == "__main__":
    _command.run(main)
