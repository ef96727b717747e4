"""MTT and TESLA: trajectory matching.

Cazenavette et al., "Dataset Distillation by Matching Training Trajectories" (CVPR 2022):

    for every iteration:
        pick an expert and an epoch t < max_start; the student starts from the expert's weights after epoch t
        train the student for N steps on (augmented) batches of the synthetic set, with a learned step size
        loss = ||student - expert after epoch t + M||^2 / ||expert after epoch t - expert after epoch t + M||^2
        move the synthetic images and the step size against the gradient of loss

``coalmine.distillation.matching`` takes that gradient: exactly, or (``estimator: tesla``) as Cui et al., "Scaling Up
Dataset Distillation to ImageNet-1K with Constant Memory" (ICML 2023), estimate it. A row called TESLA is
``{module: mtt, estimator: tesla}``. The audited model is trained with the learned step size as its base rate, on the
images of the last iteration (the papers report the best one on test data).

Private information enters through the experts' weights, and through the images that the optimisation starts from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from coalmine.costs.work import Counter, Work
from coalmine.distillation import imitation
from coalmine.distillation.start import uses_public
from coalmine.models.settings import ModelSettings
from coalmine.shadows import Setup, Shadow, Synthetic
from coalmine.training.recipe import Recipe

if TYPE_CHECKING:
    import torch

    from coalmine.outline import Outline

__all__ = ["SOURCE", "Settings", "objection", "synthesize", "uses_public"]

SOURCE = "initialised"


class Settings(imitation.Imitation):
    """Hyper-parameters of MTT; the defaults are the paper's for CIFAR-10 at 10 images per class."""


def objection(settings: Settings, model: ModelSettings, recipe: Recipe, outline: Outline) -> tuple[str, str] | None:
    """Return the field and the reason why these settings cannot work, or None."""
    return imitation.objection(settings, outline)


def synthesize(shadows: Sequence[Shadow], settings: Settings, setup: Setup) -> Iterator[Synthetic]:
    """Yield one synthetic set per shadow model, in order."""
    for group in setup.groups(shadows):
        yield from _distil(group, settings, setup)


def work(settings: Settings, counter: Counter) -> Work:
    """Return what one shadow model takes: students' steps."""
    images = counter.classes * settings.images_per_class
    matched = imitation.work(settings, counter.experts(settings.experts).model, images, counter)
    return matched + counter.image_set(images, floats=True)


def _distil(shadows: Sequence[Shadow], settings: Settings, setup: Setup) -> list[Synthetic]:
    import torch

    from coalmine.distillation.optimise import Variable, optimise
    from coalmine.distillation.sets import Sets
    from coalmine.training.device import arithmetic

    students = imitation.Students(shadows, settings, setup)
    sets = Sets.begin(shadows, settings, setup, students.spaces)
    labels = torch.from_numpy(sets.labels).to(setup.device).expand(len(shadows), -1)
    images = Variable(sets.images, settings.learning_rate, settings.momentum)
    rates = imitation.step_sizes(settings, len(shadows), setup)

    def iterate(iteration: int, generators: Sequence[torch.Generator]) -> torch.Tensor:
        pieces = students.draw(0, settings.max_start, generators)
        matched = students.match(pieces, images.value, labels, rates.value, generators)
        images.step(matched.variables[0])
        rates.step(matched.rate)
        imitation.check_step_sizes(rates, iteration, shadows, setup)
        return matched.loss

    with arithmetic("float32"):
        optimise({"images": images, "rates": rates}, iterate, settings.iterations, shadows, setup)
    made = zip(sets.finished(images.result), rates.result.tolist(), strict=True)
    return [replace(synthetic, learning_rate=rate) for synthetic, rate in made]
