"""What stages share that train classifiers on synthetic sets, only to see how well they do."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from coalmine.artefacts import digest
from coalmine.data.images import ImageSet
from coalmine.models.settings import ModelSettings
from coalmine.progress import reporter
from coalmine.run_files import read_images
from coalmine.stages import _command, _models
from coalmine.stages._per_model import Finished
from coalmine.stages._synthetic import in_turn, read_arrays, sets_of
from coalmine.training.inference import predict
from coalmine.training.loop import ModelGenerators, Trained, train
from coalmine.training.recipe import Normalisation, Recipe
from coalmine.training.sets import TrainingSet


def parser(description: str | None) -> Namespace:
    """Read the command line, the same for all of these stages."""
    command = _command.parser(description)
    _models.add_private_data(command)
    _models.add_execution(command)
    _command.add_test_data(command)
    command.add_argument("--synthetic", type=Path, nargs="+", required=True, help="synthetic sets of the shadow models")
    return command.parse_args()


class Classifiers:
    """Trains classifiers on (parts of) the synthetic sets of a method and measures their accuracy.

    All classifiers of a shadow model start from the same weights, and draw batches from the same stream, so that they
    differ in what they are given alone. Their accuracies are kept as soon as they are there, and where the training of
    the next one stands: an interrupted job goes on from there.

    Args:
        stage: the name of the stage; it names the random streams, too.
        arguments: the command line.

    Attributes:
        spec: of the stage.
        progress: prints a line.
        test: the real test images.
        paths: the synthetic sets, in the order of the shadow models 0, 1, ...
        sets: what they hold, images of all classes in turn (``in_turn``).
        finished: the accuracies that are there already, by choice and shadow model.
    """

    def __init__(self, stage: str, arguments: Namespace) -> None:
        spec = arguments.spec
        self._stage, self.spec = stage, spec
        self.progress: Callable[[str], None] = reporter(f"{stage} {spec['method']}")
        self._device, self._mode = _models.execution(arguments)
        data = _models.private_data(arguments)
        self._classes = len(data.classes)
        self.test = read_images(*arguments.test)
        self.paths = sets_of(arguments.synthetic, spec["method"], spec["shadows"])
        self.sets: list[TrainingSet] = []
        digests = data.digests()
        for path in self.paths:
            shadow, arrays = read_arrays(path, spec["method"], data, digests)
            whole = _models.read_synthetic(path, spec["method"], shadow, digests["design"])
            self.sets.append(part(whole, in_turn(arrays["labels"])))
        inputs = {
            **digests,
            "test": digest(self.test.images, self.test.labels),
            "synthetic": [_models.digest_of_set(path) for path in self.paths],
        }
        (out,) = arguments.out
        self.finished = Finished(out, _command.header(stage, spec, inputs=inputs), self.progress)
        self._model = TypeAdapter(ModelSettings).validate_json(json.dumps(spec["model"]))
        self._normalisation = Normalisation.model_validate_json(json.dumps(spec["normalisation"]))

    def accuracies(
        self, choice: str, sets: Sequence[TrainingSet], recipe: Recipe, tests: Sequence[Sequence[ImageSet]]
    ) -> np.ndarray:
        """Train one classifier on each set, those apart that were finished before; return their accuracies.

        Args:
            choice: what is tried, in words; it names what is kept.
            sets: of the shadow models 0, 1, ...
            recipe: how to train.
            tests: what each classifier is measured on, equally many.

        Returns:
            float64 (shadow model, test).
        """
        waiting = [shadow for shadow in range(len(sets)) if _name(choice, shadow) not in self.finished]
        # A stack is kept as a whole: one of fewer models would round differently.
        groups = [waiting] if self._mode == "stacked" and waiting else [[shadow] for shadow in waiting]
        for group in groups:
            done = {}
            for trained in self._train(choice, [sets[shadow] for shadow in group], recipe, group):
                shadow = group[trained.position]
                right = np.array([self._accuracy(trained, one, recipe) for one in tests[shadow]])
                done[_name(choice, shadow)] = right
                self.progress(
                    f"{choice}, model {shadow}: trained on {len(sets[shadow]):,} images, accuracy "
                    f"{' and '.join(f'{one:.1%}' for one in right)}"
                )
            self.finished.add(done)
        return np.stack([self.finished[_name(choice, shadow)] for shadow in range(len(sets))])

    def _train(
        self, choice: str, sets: Sequence[TrainingSet], recipe: Recipe, shadows: Sequence[int]
    ) -> Iterator[Trained]:
        method, seed = self.spec["method"], self.spec["seed"]
        names = [_name(choice, shadow) for shadow in shadows]
        return train(
            self._model,
            sets,
            recipe,
            self._normalisation,
            [ModelGenerators.named(seed, method, shadow, self._stage) for shadow in shadows],
            self._classes,
            device=self._device,
            mode=self._mode,
            progress=self.progress,
            names=names,
            checkpoint=lambda position: self.finished.checkpoint(names[position]),
        )

    def _accuracy(self, trained: Trained, test: ImageSet, recipe: Recipe) -> float:
        logits = predict(
            self._model,
            trained.state,
            test.images,
            self._normalisation,
            self._classes,
            device=self._device,
            precision=recipe.precision,
        )
        return float((logits[:, 0].argmax(axis=1) == test.labels).mean())


def _name(choice: str, shadow: int) -> str:
    return f"{choice}, model {shadow}"


def part(whole: TrainingSet, rows: np.ndarray | slice) -> TrainingSet:
    """Return some of the samples of a synthetic set, trained with its own rate and whitening."""
    return TrainingSet(
        images=whole.images[rows],
        labels=whole.labels[rows],
        learning_rate=whole.learning_rate,
        whitening=whole.whitening,
    )
