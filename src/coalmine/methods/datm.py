"""DATM: difficulty-aligned trajectory matching.

Guo et al., "Towards Lossless Dataset Distillation via Difficulty-Aligned Trajectory Matching" (ICLR 2024). It is MTT
(``coalmine.methods.mtt``) with

- experts in flat minima (FTD: ``flat`` in the section ``experts``),
- a window of epochs that trajectories start from, whose upper end grows: easy patterns are matched first,
- soft labels that are learned, starting from what the experts believe,
- initial images that an expert classifies correctly,
- no update where the loss is above a threshold, and a moving average of the images as the result.

Two of these bear on privacy. The filter drops mislabelled canaries that the expert has not memorised, so that fewer of
them start an image (the progress lines count them); and soft labels are beliefs of networks in place of given labels.
The average over images is of the last iterations (the paper reports the best one on test data).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from coalmine.costs.work import Counter, Work
from coalmine.distillation import imitation
from coalmine.distillation.start import uses_public
from coalmine.models.settings import ModelSettings
from coalmine.shadows import Setup, Shadow, Synthetic
from coalmine.training.recipe import Recipe

if TYPE_CHECKING:
    import torch

    from coalmine.distillation.optimise import Variable
    from coalmine.outline import Outline

__all__ = ["SOURCE", "Settings", "objection", "synthesize", "uses_public"]

SOURCE = "initialised"


class Settings(imitation.Imitation):
    """Hyper-parameters of DATM; the defaults are the paper's for CIFAR-10 at 10 images per class."""

    iterations: PositiveInt = Field(10_000, description="Pieces of trajectories, one an iteration (10,000).")
    steps: PositiveInt = Field(80, description="N, steps of a student on the synthetic set (80).")
    step_size: PositiveFloat = Field(0.01, description="First size of a student's step; it is learned (0.01).")
    min_start: NonNegativeInt = Field(0, description="Lower end of the window: the first epoch to start after (0).")
    early_max_start: PositiveInt | None = Field(
        10, description="First upper end, the last being max_start (10; 50 per class: 20); null: max_start at once."
    )
    expansion: PositiveInt = Field(
        1000, description="Iterations in which the upper end reaches max_start (1,000; 50 per class: 2,000)."
    )
    label_rate: float = Field(2.0, ge=0, description="Learning rate of the labels' logits (2; 1 per class: 5).")
    label_momentum: float = Field(0.9, ge=0, lt=1, description="Of the labels' logits (0.9).")
    threshold: PositiveFloat | None = Field(1.0, description="No update where the loss is above it (1); null: always.")
    average: float | None = Field(
        0.9995, gt=0, lt=1, description="Decay of the images' moving average (0.9995); null: the last images."
    )

    @model_validator(mode="after")
    def _has_a_window(self) -> Settings:
        first = self.max_start if self.early_max_start is None else self.early_max_start
        if not self.min_start < first <= self.max_start:
            raise ValueError(
                f"the window starts after epochs from min_start ({self.min_start}) to below early_max_start "
                f"({self.early_max_start}) and later max_start ({self.max_start}); these must increase in this order"
            )
        return self

    def window_end(self, iteration: int) -> int:
        """Return the epoch below which trajectories start in an iteration (counted from 0)."""
        first = self.max_start if self.early_max_start is None else self.early_max_start
        return min(self.max_start, first + (self.max_start - first) * iteration // self.expansion)


def objection(settings: Settings, model: ModelSettings, recipe: Recipe, outline: Outline) -> tuple[str, str] | None:
    """Return the field and the reason why these settings cannot work, or None."""
    return imitation.objection(settings, outline)


def synthesize(shadows: Sequence[Shadow], settings: Settings, setup: Setup) -> Iterator[Synthetic]:
    """Yield one synthetic set per shadow model, in order."""
    for group in setup.groups(shadows):
        yield from _distil(group, settings, setup)


def work(settings: Settings, counter: Counter) -> Work:
    """Return what one shadow model takes: students' steps, and looks of experts at what images start from."""
    experts, images = counter.experts(settings.experts), counter.classes * settings.images_per_class
    matched = imitation.work(settings, experts.model, images, counter)
    looks = counter.looks(experts.model, counter.population + experts.experts * images)
    return matched + looks + counter.image_set(images, soft=True, floats=True)


def _distil(shadows: Sequence[Shadow], settings: Settings, setup: Setup) -> list[Synthetic]:
    import torch

    from coalmine.distillation.optimise import Variable, optimise
    from coalmine.distillation.sets import Sets
    from coalmine.training.device import arithmetic

    students = imitation.Students(shadows, settings, setup)
    with arithmetic("float32"):
        filtered = [_allowed(model, shadow, students, settings, setup) for model, shadow in enumerate(shadows)]
        sets = Sets.begin(shadows, settings, setup, students.spaces, filtered)
        beliefs = [_beliefs(model, own, sets.labels, students) for model, own in enumerate(sets.images)]
    labels = Variable(torch.stack(beliefs), settings.label_rate, settings.label_momentum)
    images = Variable(sets.images, settings.learning_rate, settings.momentum, settings.average)
    rates = imitation.step_sizes(settings, len(shadows), setup)
    skipped = torch.zeros(len(shadows), dtype=torch.int64, device=setup.device)

    def iterate(iteration: int, generators: Sequence[torch.Generator]) -> torch.Tensor:
        pieces = students.draw(settings.min_start, settings.window_end(iteration), generators)
        matched = students.match(pieces, images.value, labels.value, rates.value, generators)
        near = matched.loss <= (settings.threshold or torch.inf)
        skipped.add_(~near)
        for variable, gradient in zip((images, labels, rates), [*matched.variables, matched.rate], strict=True):
            step_where(near, variable, gradient)
        imitation.check_step_sizes(rates, iteration, shadows, setup)
        return matched.loss

    with arithmetic("float32"):
        variables = {"images": images, "labels": labels, "rates": rates}
        optimise(variables, iterate, settings.iterations, shadows, setup)
    for shadow, count in zip(shadows, skipped.tolist(), strict=True):
        setup.progress(f"model {shadow.number}: {count:,} updates were skipped, their loss above {settings.threshold}")
    probabilities = labels.result.softmax(-1).cpu().numpy()
    made = zip(sets.finished(images.result), probabilities, rates.result.tolist(), strict=True)
    return [replace(synthetic, labels=own, learning_rate=rate) for synthetic, own, rate in made]


def step_where(moved: torch.Tensor, variable: Variable, gradient: torch.Tensor) -> None:
    """Step a variable; what is of models that are not ``moved``, bool (model,), is left alone, velocity included."""
    before = {name: tensor.detach().clone() for name, tensor in variable.tensors().items()}
    variable.step(gradient)
    for name, tensor in variable.tensors().items():
        tensor.detach()[~moved] = before[name][~moved]


def _allowed(
    model: int, shadow: Shadow, students: imitation.Students, settings: Settings, setup: Setup
) -> np.ndarray | None:
    """Return which samples of a shadow model may start an image, bool (m,), or None if none does.

    They are those that the first expert classifies as their labels say, in the end; for classes with too few of them
    also those of the second, and so on.
    """
    if settings.initialisation != "private":
        return None
    images = students.spaces[model].enter(shadow.images)
    right, audited = np.zeros(len(shadow.index), dtype=bool), np.isin(shadow.index, shadow.audited)
    for expert in range(students.trajectories[model].experts):
        # Audited samples that are kept apart on purpose may not be there to start from.
        surely = right if settings.canaries is None else right & ~audited
        counts = np.bincount(shadow.labels[surely], minlength=setup.classes)
        short = counts < settings.images_per_class
        if not short.any():
            break
        guesses = students.final_logits(model, expert, images).argmax(1).cpu().numpy()
        right |= (guesses == shadow.labels) & short[shadow.labels]
    setup.progress(
        f"model {shadow.number}: images may start from {right.sum():,} of {len(right):,} samples, which an expert "
        f"classifies correctly, {right[audited].sum()} of the {audited.sum()} audited ones among them"
    )
    return right


def _beliefs(model: int, images: torch.Tensor, labels: np.ndarray, students: imitation.Students) -> torch.Tensor:
    """Return the first logits of the soft labels (image, class), what a shadow model's experts believe in the end."""
    import torch

    experts = range(students.trajectories[model].experts)
    logits = torch.stack([students.final_logits(model, expert, images) for expert in experts])
    return mean_belief(logits, torch.from_numpy(labels).to(logits.device))


def mean_belief(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean logits of the experts that classify an image correctly (image, class).

    Where none does, as on noise, which the paper does not start from, it is the mean of all experts with the entries
    of the label and of the largest logit exchanged, so that the image stands for its class with their confidence.

    Args:
        logits: (expert, image, class).
        labels: int64 (image,).
    """
    import torch

    right = (logits.argmax(2) == labels).to(logits.dtype)
    mean = (right[..., None] * logits).sum(0) / right.sum(0).clamp(min=1)[:, None]
    everyone = logits.mean(0)
    rows, guess = torch.arange(len(labels), device=labels.device), everyone.argmax(1)
    swapped = everyone.clone()
    swapped[rows, labels], swapped[rows, guess] = everyone[rows, guess], everyone[rows, labels]
    return torch.where(right.any(0)[:, None], mean, swapped)
