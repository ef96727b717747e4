"""The training loop: every classifier of every method and shadow model is trained here.

Images stay on the device as bytes; a batch is gathered, augmented and normalised there, all models at once.
``recipe`` explains what an epoch is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, NoReturn, Protocol

import numpy as np
import torch
from torch.nn import functional as F

from coalmine.checkpoint import Checkpoint, without
from coalmine.errors import CoalmineError
from coalmine.models.build import build
from coalmine.models.settings import ModelSettings
from coalmine.seeds import torch_generator
from coalmine.training.augment import draw_plan, normalise, random_augment
from coalmine.training.clock import Clock
from coalmine.training.device import arithmetic, parameter_dtype
from coalmine.training.ensemble import Ensemble, Single, Stack
from coalmine.training.recipe import Augmentation, Normalisation, Recipe
from coalmine.training.sets import DeviceImages, Samples, TrainingSet, check_set, input_normalisation
from coalmine.training.sgd import SGD
from coalmine.training.siamese import Drawn, apply_each, draw
from coalmine.training.state import as_arrays, as_tensors, prefixed, under

Mode = Literal["sequential", "stacked"]
"""How several models are trained: one after the other, or at once with stacked weights."""

SAMPLES_PLANNED_AT_ONCE = 8192
"""For each model: few enough to be little memory, enough to make planning and its copy to the device rare."""


@dataclass(frozen=True)
class ModelGenerators:
    """One model's randomness: CPU generators of its weights, of its samples' order and augmentation, of DP noise."""

    initialisation: torch.Generator
    order: torch.Generator
    noise: torch.Generator

    @classmethod
    def named(cls, seed: int, *names: str | int) -> ModelGenerators:
        """Return the generators of the model called ``names`` in the run with ``seed`` (``coalmine.seeds``)."""
        return cls(
            initialisation=torch_generator(seed, *names, "initialisation"),
            order=torch_generator(seed, *names, "order"),
            noise=torch_generator(seed, *names, "noise"),
        )


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained model.

    Attributes:
        position: of its set in ``sets``.
        state: its parameters and buffers, on the CPU.
        steps: the updates made.
        seconds: wall time of its training, interrupted attempts included; of a stack, each model's equal share of the
            stack's.
    """

    position: int
    state: dict[str, torch.Tensor]
    steps: int
    seconds: float


class Observer(Protocol):
    """Sees every batch before its update, e.g. to count forgetting events."""

    def __call__(self, models: list[int], samples: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Look at one step of the models that are still in training.

        Args:
            models: the positions of their sets, M of them.
            samples: int64 ``(M, batch)``, positions within each model's set, on the device.
            logits: ``(M, batch, class)`` in training mode, before the update, detached, on the device.
            labels: int64 ``(M, batch)`` or float ``(M, batch, class)``, on the device.
        """
        ...

    def state(self, model: int) -> dict[str, torch.Tensor]:
        """Return all that was learned about the model of one set, by its position, for a checkpoint."""
        ...

    def restore(self, model: int, state: Mapping[str, torch.Tensor]) -> None:
        """Take up what :meth:`state` returned."""
        ...


def train(
    model: ModelSettings,
    sets: Sequence[TrainingSet],
    recipe: Recipe,
    normalisation: Normalisation,
    generators: Sequence[ModelGenerators],
    classes: int,
    *,
    device: torch.device,
    mode: Mode = "sequential",
    observe: Observer | None = None,
    progress: Callable[[str], None] | None = None,
    names: Sequence[str] | None = None,
    checkpoint: Callable[[int], Checkpoint] = without,
) -> Iterator[Trained]:
    """Train one model on each set, each from its own generators, so that none depends on the others.

    Args:
        model: the architecture.
        sets: what each model is trained on.
        recipe: how.
        normalisation: of the images' channels.
        generators: each model's randomness, advanced by training.
        classes: the number of classes.
        device: where.
        mode: ``sequential`` trains one model after the other. ``stacked`` trains at once what can share its batches:
            sets with images and labels of one kind and the same batch size, not in bfloat16 (``vmap`` has no
            autocast); what cannot is trained by itself. The models are the same up to rounding.
        observe: called before every update.
        progress: called every few seconds with a line of text.
        names: what progress and errors call the models; their positions by default.
        checkpoint: opens the place where a model, by its position, saves its state. Each model has one of its own, and
            goes on from it whatever it is stacked with then: to the same bytes in a stack of as many.

    Yields:
        The trained models in the order of ``sets``, each as soon as it and those before it are done.

    Raises:
        CoalmineError: if sets, labels and classes do not fit each other, or if the loss is no longer finite.
    """
    if len(generators) != len(sets):
        raise CoalmineError(f"{len(sets)} training sets need as many generators, not {len(generators)}")
    for position, data in enumerate(sets):
        check_set(position, data, normalisation, classes)
    normalisation = input_normalisation(sets, normalisation)
    names = names or [f"model {position}" for position in range(len(sets))]
    images = DeviceImages(device)
    done: dict[int, Trained] = {}
    due = 0
    for positions in _stacks(sets, recipe, mode):
        training = _Training(model, sets, positions, recipe, normalisation, generators, classes, images, names)
        with arithmetic(recipe.precision):
            finished = training.run(observe, progress, [checkpoint(position) for position in positions])
        done |= {trained.position: trained for trained in finished}
        while due in done:
            yield done.pop(due)
            due += 1


def _stacks(sets: Sequence[TrainingSet], recipe: Recipe, mode: Mode) -> list[list[int]]:
    """Return the positions of the sets that are trained together, each stack in order."""
    if mode == "sequential" or recipe.precision == "bfloat16":
        return [[position] for position in range(len(sets))]
    stacks: dict[Hashable, list[int]] = {}
    for position, data in enumerate(sets):
        kind = (data.images.dtype, data.images.shape[1:], data.labels.dtype, recipe.batch(len(data)))
        stacks.setdefault(kind, []).append(position)
    return list(stacks.values())


class _Training:
    """The training of one ensemble: one set and one model for each of ``positions``."""

    def __init__(
        self,
        model: ModelSettings,
        sets: Sequence[TrainingSet],
        positions: list[int],
        recipe: Recipe,
        normalisation: Normalisation,
        generators: Sequence[ModelGenerators],
        classes: int,
        images: DeviceImages,
        names: Sequence[str],
    ) -> None:
        self.names = [names[position] for position in positions]
        self.positions, self.recipe, self.normalisation = positions, recipe, normalisation
        self.recipes = [sets[position].recipe(recipe) for position in positions]
        self.whitenings = [sets[position].whitening for position in positions]
        self.sizes = [len(sets[position]) for position in positions]
        self.steps = [recipe.steps(size) for size in self.sizes]
        self.batch = recipe.batch(self.sizes[0])
        self.device = images.device
        self.dtype = parameter_dtype(recipe.precision)
        self.samples = Samples([sets[position].whitened() for position in positions], images, self.dtype)
        self.streams = [
            _Stream(generators[position].order, size, recipe.augmentation)
            for position, size in zip(positions, self.sizes, strict=True)
        ]
        channels, image_size = self.samples.images.shape[1:3]
        networks = [
            build(model, channels, image_size, classes, generators[position].initialisation).to(self.device, self.dtype)
            for position in positions
        ]
        self.ensemble: Ensemble = Single(networks[0]) if len(networks) == 1 else Stack(networks)
        self.sgd = SGD(self.ensemble.parameters, recipe.momentum, recipe.nesterov, recipe.weight_decay)
        self.first = [0] * len(positions)  # each model's steps in interrupted attempts
        self.finished: dict[int, dict[str, torch.Tensor]] = {}

        @cache
        def fingerprint(number: int) -> str:
            own = generators[positions[number]]
            seeds = own.initialisation.initial_seed(), own.order.initial_seed()
            return sets[positions[number]].fingerprint(model, recipe, normalisation, classes, seeds)

        self.fingerprint = fingerprint

    def run(
        self, observe: Observer | None, progress: Callable[[str], None] | None, checkpoints: Sequence[Checkpoint]
    ) -> list[Trained]:
        """Train to the end and return the models in order; each is exported at its own last step."""
        self.first = [self._take_up(model, checkpoint, observe) for model, checkpoint in enumerate(checkpoints)]
        left = [steps - first for steps, first in zip(self.steps, self.first, strict=True)]
        last = left.index(max(left))  # the model that is done last
        if progress and any(self.first):
            progress(f"{self._name()}: taken up after step {self.first[last]:,} of {self.steps[last]:,}")
        clock = Clock(left[last], len(self.positions) * self.batch)
        for step, (plan, rate, unused) in enumerate(self._plans(left[last])):
            loss = self._update(step, plan, rate, observe)
            for model in self._finished_by(step):
                self._check_loss(loss, model, step)
                self.finished[model] = self._export(model)
            if clock.is_time_to_report():
                for model in self._active(step):
                    self._check_loss(loss, model, step)
                if progress:
                    what = f"epoch {self._epoch(0, step + 1):.1f}: loss {float(loss.mean()):.4f}"
                    progress(f"{self._name()}, {clock.report(step + 1, what)}")
            if step + 1 < left[last] and checkpoints[last].due():
                self._save(checkpoints, step + 1, unused, observe)
        if left[last] and any(checkpoint.exists() for checkpoint in checkpoints):
            # Whatever the caller does with the models, and with others of the same shadow models, may take long, too.
            self._save(checkpoints, left[last], 0, observe)
        return [
            Trained(position, self._published(model), self.steps[model], seconds / len(self.positions))
            for model, position in enumerate(self.positions)
            for seconds in [checkpoints[model].before + clock.seconds()]
        ]

    def _update(
        self, step: int, plan: torch.Tensor, rate: float | torch.Tensor, observe: Observer | None
    ) -> torch.Tensor:
        """Make one step with ``plan``, int64 ``(model, batch, 4)``; return each model's mean loss before it."""
        augmentation = self.recipe.augmentation
        samples, flip, dy, dx = plan.unbind(-1)
        images, labels = self.samples[samples]
        images = random_augment(images, flip if augmentation.flip else None, dy, dx, augmentation.shift)
        x = normalise(images, self.normalisation, self.dtype)
        if augmentation.siamese:
            x = apply_each(x, augmentation.siamese, [stream.transformation(self.batch) for stream in self.streams])
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bfloat16"):
            logits = self.ensemble.logits(x)
        logits = logits.to(self.dtype)
        if observe:
            active = self._active(step)
            models = [self.positions[model] for model in active]
            observe(models, samples[active], logits.detach()[active], labels[active])
        losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(0, 1), reduction="none")
        loss = losses.view(samples.shape).mean(1)
        # The models are independent, so the gradient of the sum holds each model's own.
        self.sgd.step(torch.autograd.grad(loss.sum(), self.ensemble.parameters), rate)
        return loss.detach()

    def _plans(self, total: int) -> Iterator[tuple[torch.Tensor, float | torch.Tensor, int]]:
        """Yield each step's samples with their augmentation, int64 ``(model, batch, 4)``, and its learning rate.

        The last of the three is how many samples of each model are drawn, but for later steps.
        """
        block = max(1, SAMPLES_PLANNED_AT_ONCE // self.batch)
        for start in range(0, total, block):
            steps = range(start, min(start + block, total))
            drawn = [stream.take(len(steps) * self.batch).view(len(steps), self.batch, 4) for stream in self.streams]
            plans = torch.stack(drawn, dim=1).to(self.device)
            unused = range((len(steps) - 1) * self.batch, -1, -self.batch)
            yield from zip(plans, self._rates(steps), unused, strict=True)

    def _rates(self, steps: range) -> Iterable[float | torch.Tensor]:
        """Return the learning rate of each step: a number, or of several models a vector; 0 once a model is done."""
        rates = [
            [recipe.learning_rate_at(first + step, size) if first + step < own else 0.0 for step in steps]
            for recipe, size, own, first in zip(self.recipes, self.sizes, self.steps, self.first, strict=True)
        ]
        return rates[0] if len(rates) == 1 else torch.tensor(rates, dtype=self.dtype).T.contiguous().to(self.device)

    def _active(self, step: int) -> list[int]:
        return [model for model, steps in enumerate(self.steps) if self.first[model] + step < steps]

    def _finished_by(self, step: int) -> list[int]:
        return [model for model, steps in enumerate(self.steps) if self.first[model] + step + 1 == steps]

    def _name(self) -> str:
        return self.names[0] if len(self.names) == 1 else f"{len(self.names)} models"

    def _epoch(self, model: int, step: int) -> float:
        return (self.first[model] + step) * self.batch / self.sizes[model]

    def _check_loss(self, loss: torch.Tensor, model: int, step: int) -> None:
        if not torch.isfinite(loss[model]):
            self._refuse(model, step, f"the loss is {float(loss[model])}")

    def _export(self, model: int) -> dict[str, torch.Tensor]:
        state = self.ensemble.state(model)
        if not all(bool(torch.isfinite(tensor).all()) for tensor in state.values()):
            self._refuse(model, self.steps[model] - self.first[model] - 1, "some weights are not finite")
        return state

    def _published(self, model: int) -> dict[str, torch.Tensor]:
        """Return the weights of a finished model, with its whitening."""
        whitening = self.whitenings[model]
        carried = whitening.state() if whitening else {}
        return self.finished[model] | {name: torch.from_numpy(array) for name, array in carried.items()}

    def _save(self, checkpoints: Sequence[Checkpoint], steps: int, unused: int, observe: Observer | None) -> None:
        """Save the state of every model after ``steps`` of this attempt; ``unused`` samples are drawn, not used."""
        for model, checkpoint in enumerate(checkpoints):
            if model in self.finished:
                tensors = prefixed("weights", self.finished[model])
            else:
                velocity = self.ensemble.part(model, self.sgd.velocity)
                tensors = {
                    **prefixed("weights", self.ensemble.state(model)),
                    **prefixed("velocity", {str(number): tensor for number, tensor in enumerate(velocity)}),
                    **prefixed("stream", self.streams[model].state(unused)),
                }
            if observe:
                tensors |= prefixed("observer", observe.state(self.positions[model]))
            numbers = {
                "made": np.array(min(self.first[model] + steps, self.steps[model])),
                "fingerprint": np.array(self.fingerprint(model)),
            }
            checkpoint.save({**numbers, **as_arrays(tensors)})

    def _take_up(self, model: int, checkpoint: Checkpoint, observe: Observer | None) -> int:
        """Restore what was saved of a model; return the steps that it has made, 0 if nothing was saved."""
        saved = checkpoint.load()
        if saved is None or str(saved["fingerprint"]) != self.fingerprint(model):
            return 0
        tensors = as_tensors(saved)
        seen, weights = under("observer", tensors), under("weights", tensors)
        if bool(seen) != bool(observe):
            return 0
        if observe:
            observe.restore(self.positions[model], seen)
        self.ensemble.restore(model, weights)
        made = int(saved["made"])
        if made == self.steps[model]:
            self.finished[model] = weights
            return made
        velocity = under("velocity", tensors)
        for number, tensor in enumerate(self.ensemble.part(model, self.sgd.velocity)):
            tensor.copy_(velocity[str(number)])
        self.streams[model].restore(under("stream", tensors))
        return made

    def _refuse(self, model: int, step: int, what: str) -> NoReturn:
        raise CoalmineError(
            f"training of {self.names[model]}: {what} at step {self.first[model] + step + 1} of {self.steps[model]} "
            f"(epoch {self._epoch(model, step + 1):.1f}); lower learning_rate (now "
            f"{self.recipes[model].learning_rate:g}) or raise warmup_epochs (now {self.recipe.warmup_epochs:g})"
        )


class _Stream:
    """One model's samples without end: shuffled epochs, one after the other."""

    def __init__(self, generator: torch.Generator, n: int, augmentation: Augmentation) -> None:
        self._generator, self._n, self._augmentation = generator, n, augmentation
        self._taken = self._drawn = torch.empty(0, 4, dtype=torch.int64)
        if augmentation.siamese:
            # A stream of its own: epochs are drawn many batches ahead.
            seed = int(torch.randint(2**62, (), generator=generator))
            self._transformations = torch.Generator().manual_seed(seed)

    def take(self, count: int) -> torch.Tensor:
        """Return the next ``count`` samples with their augmentation, int64 ``(count, 4)`` as in ``draw_plan``."""
        missing = max(0, count - len(self._drawn))
        epochs = math.ceil(missing / self._n)
        parts = [draw_plan(self._generator, self._n, self._augmentation) for _ in range(epochs)]
        drawn = torch.cat([self._drawn, *parts])
        self._taken, self._drawn = drawn[:count], drawn[count:]
        return self._taken

    def transformation(self, images: int) -> Drawn:
        """Return what Siamese augmentation does to each of the next so many images."""
        assert self._augmentation.siamese is not None
        return draw(self._augmentation.siamese, self._transformations, images)

    def state(self, unused: int) -> dict[str, torch.Tensor]:
        """Return all state, for a checkpoint, as if the last ``unused`` samples had not been taken."""
        back = self._taken[len(self._taken) - unused :]
        state = {"generator": self._generator.get_state(), "drawn": torch.cat([back, self._drawn])}
        if self._augmentation.siamese:
            state["transformations"] = self._transformations.get_state()
        return state

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take up what :meth:`state` returned."""
        self._generator.set_state(state["generator"])
        self._drawn = state["drawn"]
        if self._augmentation.siamese:
            self._transformations.set_state(state["transformations"])
