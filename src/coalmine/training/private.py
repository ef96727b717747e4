"""DP-SGD training of classifiers: Poisson samples of the private data, ``dp_step`` on each, the average published.

Nothing that depends on the private data but the noisy updates leaves this loop: no loss is printed, no step is skipped,
no iterate is chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from opacus.utils.uniform_sampler import UniformWithReplacementSampler
from torch.nn import functional as F

from coalmine.checkpoint import Checkpoint, without
from coalmine.errors import CoalmineError
from coalmine.models.build import build
from coalmine.models.layers import Classifier
from coalmine.models.settings import ModelSettings
from coalmine.training.augment import draw_and_augment, normalise
from coalmine.training.average import MovingAverage
from coalmine.training.clock import Clock
from coalmine.training.device import arithmetic, parameter_dtype
from coalmine.training.dp_step import DPStep
from coalmine.training.loop import ModelGenerators, Trained
from coalmine.training.recipe import Augmentation, Normalisation, Precision
from coalmine.training.sets import DeviceImages, Samples, TrainingSet, check_set
from coalmine.training.state import as_arrays, as_tensors, of_optimiser, prefixed, restore_optimiser, under


@dataclass(frozen=True)
class PrivateRecipe:
    """How a classifier is trained with DP-SGD.

    Attributes:
        steps: updates.
        sampling_rate: the probability with which each example enters each batch, independently.
        expected_batch_size: what the noisy sum of gradients is divided by, a public constant.
        noise_multiplier: standard deviation of the noise in units of ``clip``.
        clip: largest norm of one example's gradient.
        views: K, augmented views of an example, whose gradients are averaged before clipping.
        learning_rate: constant.
        momentum: of the optimiser.
        average: decay of the moving average of weights; None publishes the last iterate.
        micro_batch: examples whose gradients are held at once.
        augmentation: of the views.
        precision: of the network; bfloat16 is not available.
    """

    steps: int
    sampling_rate: float
    expected_batch_size: float
    noise_multiplier: float
    clip: float
    views: int
    learning_rate: float
    momentum: float
    average: float | None
    micro_batch: int
    augmentation: Augmentation
    precision: Precision


def train_privately(
    model: ModelSettings,
    sets: Sequence[TrainingSet],
    recipe: PrivateRecipe,
    normalisation: Normalisation,
    generators: Sequence[ModelGenerators],
    classes: int,
    *,
    device: torch.device,
    progress: Callable[[str], None] | None = None,
    names: Sequence[str] | None = None,
    checkpoint: Callable[[int], Checkpoint] = without,
) -> Iterator[Trained]:
    """Train one model on each set with DP-SGD, one after the other, each from its own generators.

    Args:
        model: the architecture, without batch norm.
        sets: what each model is trained on, with hard labels.
        recipe: how.
        normalisation: of the images' channels; public constants.
        generators: each model's randomness, advanced by training: ``order`` draws the batches and the augmentation.
        classes: the number of classes.
        device: where.
        progress: called every few seconds with a line of text.
        names: what progress and errors call the models; their positions by default.
        checkpoint: opens the place where a model, by its position, saves its state. It is as private as the data.

    Yields:
        The trained models in the order of ``sets``.

    Raises:
        CoalmineError: if sets and classes do not fit each other, the network couples examples, or the weights are no
            longer finite.
    """
    images = DeviceImages(device)
    for position, data in enumerate(sets):
        check_set(position, data, normalisation, classes)
        _refuse_distilled(data, recipe)
    for position, data in enumerate(sets):
        name = names[position] if names else f"model {position}"
        with arithmetic(recipe.precision):
            training = _Training(model, data, recipe, normalisation, generators[position], classes, images, name)
            trained = training.run(position, progress, checkpoint(position))
        yield trained


def _refuse_distilled(data: TrainingSet, recipe: PrivateRecipe) -> None:
    """Refuse what belongs to distilled sets."""
    if data.whitening is not None or data.learning_rate is not None:
        raise CoalmineError(
            "DP-SGD trains on private data as they are: a set with a whitening or a learning rate of its own, both of "
            "which were computed from private data, is not covered by the guarantee"
        )
    if recipe.augmentation.siamese is not None:
        raise CoalmineError(
            "augmentation.siamese is not available with DP-SGD, which augments each sample by itself; set siamese: null"
        )


class _Training:
    """The private training of one model."""

    def __init__(
        self,
        model: ModelSettings,
        data: TrainingSet,
        recipe: PrivateRecipe,
        normalisation: Normalisation,
        generators: ModelGenerators,
        classes: int,
        images: DeviceImages,
        name: str,
    ) -> None:
        self.recipe, self.normalisation, self.name, self.size = recipe, normalisation, name, len(data)
        self.device, self.dtype = images.device, parameter_dtype(recipe.precision)
        self.order = generators.order
        self.samples = Samples([data], images, self.dtype)
        channels, size = self.samples.images.shape[1:3]
        self.network = build(model, channels, size, classes, generators.initialisation).to(self.device, self.dtype)
        self.average = MovingAverage(self.network, recipe.average) if recipe.average is not None else None
        self.noise = torch.Generator(self.device).manual_seed(generators.noise.initial_seed())
        self.optimiser = torch.optim.SGD(self.network.parameters(), recipe.learning_rate, recipe.momentum)
        self.step = DPStep(
            self.network,
            mean_cross_entropy,
            self.optimiser,
            clip=recipe.clip,
            noise_multiplier=recipe.noise_multiplier,
            expected_batch_size=recipe.expected_batch_size,
            generator=self.noise,
            micro_batch=recipe.micro_batch,
        )

        @cache
        def fingerprint() -> str:
            seeds = [own.initial_seed() for own in (generators.initialisation, generators.order, generators.noise)]
            return data.fingerprint(model, recipe, normalisation, classes, seeds)

        self.fingerprint = fingerprint

    def run(self, position: int, progress: Callable[[str], None] | None, checkpoint: Checkpoint) -> Trained:
        """Train to the end, from the last checkpoint on if there is one."""
        steps, before = self.recipe.steps, self._take_up(checkpoint)
        if progress and before:
            progress(f"{self.name}: taken up after step {before:,} of {steps:,}")
        batches = UniformWithReplacementSampler(
            num_samples=self.size,
            sample_rate=self.recipe.sampling_rate,
            steps=steps - before,
            generator=self.order,
        )
        clock = Clock(steps - before, round(self.recipe.expected_batch_size * self.recipe.views))
        for done, drawn in enumerate(batches, start=before + 1):
            self.step(*self._examples(torch.tensor(drawn, dtype=torch.int64)))
            if self.average:
                self.average.update()
            if progress and clock.is_time_to_report():
                progress(f"{self.name}, {clock.report(done - before, f'step {done} of {steps}')}")
            if done < steps and checkpoint.due():
                self._save(checkpoint, done)
        if before < steps and checkpoint.exists():
            self._save(checkpoint, steps)
        return Trained(position, self._export(), steps, checkpoint.before + clock.seconds())

    def _streams(self) -> dict[str, torch.Generator]:
        return {"order": self.order, "noise": self.noise}

    def _save(self, checkpoint: Checkpoint, done: int) -> None:
        """Save all that the steps after the first ``done`` depend on."""
        tensors = {
            **prefixed("network", self.network.state_dict()),
            **prefixed("optimiser", of_optimiser(self.optimiser)),
            **prefixed("average", self.average.state() if self.average else {}),
            **prefixed("stream", {name: stream.get_state() for name, stream in self._streams().items()}),
        }
        numbers = {"done": np.array(done), "fingerprint": np.array(self.fingerprint())}
        checkpoint.save({**numbers, **as_arrays(tensors)})

    def _take_up(self, checkpoint: Checkpoint) -> int:
        """Restore what was saved; return the steps made, 0 if nothing was, or on a device with other generators."""
        saved = checkpoint.load()
        if saved is None or str(saved["fingerprint"]) != self.fingerprint():
            return 0
        tensors = as_tensors(saved)
        states = under("stream", tensors)
        if any(states[name].shape != stream.get_state().shape for name, stream in self._streams().items()):
            return 0
        for name, stream in self._streams().items():
            stream.set_state(states[name])
        self.network.load_state_dict(under("network", tensors))
        restore_optimiser(self.optimiser, under("optimiser", tensors))
        if self.average:
            self.average.restore(under("average", tensors))
        return int(saved["done"])

    def _examples(self, drawn: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return K augmented views ``(n, view, channel, height, width)`` of the samples drawn, and labels ``(n,)``."""
        views, augmentation = self.recipe.views, self.recipe.augmentation
        images, labels = self.samples[drawn.to(self.device)[None]]
        images = images[0][:, None].expand(-1, views, -1, -1, -1)
        if len(drawn) and (augmentation.flip or augmentation.shift):
            images = draw_and_augment(images, augmentation, self.order)
        return normalise(images, self.normalisation, self.dtype), labels[0]

    def _export(self) -> dict[str, torch.Tensor]:
        state = self.network.state_dict() | dict(self.average.items() if self.average else ())
        if not all(bool(torch.isfinite(tensor).all()) for tensor in state.values()):
            raise CoalmineError(
                f"training of {self.name}: some weights are not finite after {self.recipe.steps} steps; lower "
                f"learning_rate (now {self.recipe.learning_rate:g})"
            )
        return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}


def mean_cross_entropy(network: Classifier, views: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Return one example's loss: the mean cross-entropy over its views ``(view, channel, height, width)``."""
    logits = network(views)
    return F.cross_entropy(logits, label.expand(len(views)))
