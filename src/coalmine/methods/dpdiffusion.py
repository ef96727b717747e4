"""Differentially private diffusion: a model pre-trained on public data is fine-tuned privately, and images are drawn.

Ghalebikesabi et al., "Differentially Private Diffusion Models Generate Useful Synthetic Images" (2023):

    pre-train a diffusion model on public data, once (``pretrained``)
    fine-tune all of it with DP-SGD (``coalmine.training.dp_step``), where
        each example brings K copies with an augmentation, a time step and noise of their own, whose gradients are
        averaged before clipping, and
        time steps come from a mixture of uniforms that favours those that matter (``objective.times``)
    draw as many images as the downstream classifier can use: post-processing costs no privacy

``vary: noise`` is the noise multiplicity of DPDM (Dockhorn et al. 2023), whose copies share one augmentation; with
``network`` and ``objective`` in place of ``pretrained`` nothing public is used, which is DPDM's setting.

The guarantee covers the weights, hence every image drawn from them: images are drawn without a look at private data,
with labels of all classes alike. It covers no choice of hyper-parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pydantic import Field, PositiveInt

from coalmine import budget
from coalmine.costs.work import Counter, Work
from coalmine.diffusion.settings import PrivateFit, Sampling, unfit
from coalmine.shadows import Fitted, Setup, Shadow, Synthetic

if TYPE_CHECKING:
    from coalmine.accounting import Guarantee
    from coalmine.models.settings import ModelSettings
    from coalmine.outline import Outline
    from coalmine.training.recipe import Recipe


class Settings(Sampling):
    """Hyper-parameters of private fine-tuning, and what is drawn."""

    fit: PrivateFit = Field(description="How the denoisers are trained.")
    images: PositiveInt = Field(description="Images of a set.")


def objection(settings: Settings, model: ModelSettings, recipe: Recipe, outline: Outline) -> tuple[str, str] | None:
    """Return the field and the reason why these settings cannot work, or None."""
    found = budget.objection(settings.fit, outline.population)
    return (f"fit.{found[0]}", found[1]) if found else unfit(settings.fit, settings, outline)


def guarantee(own: PrivateFit, population: float) -> Guarantee:
    """Return the guarantee, see :func:`coalmine.budget.guarantee`."""
    return budget.guarantee(own, population)


def fit(shadows: Sequence[Shadow], own: PrivateFit, setup: Setup) -> Iterator[Fitted]:
    """Yield one privately trained denoiser per shadow model, in order."""
    from coalmine.diffusion import denoiser

    return denoiser.fit(shadows, own, setup)


def synthesize(shadows: Sequence[Shadow], settings: Settings, setup: Setup) -> Iterator[Synthetic]:
    """Yield one synthetic set per shadow model, in order; of a shadow model, only its number and image size matter."""
    from coalmine.diffusion.denoiser import draw, from_noise

    for shadow in shadows:
        yield draw(shadow, from_noise(settings.images, setup.classes), settings, setup)


def fit_work(own: PrivateFit, counter: Counter) -> Work:
    """Return what the denoiser of one shadow model takes."""
    network = counter.denoiser(own)
    steps = counter.private_steps(network, own.steps, own.batch_size, own.views, own.micro_batch)
    return steps + counter.weights(network)


def work(settings: Settings, counter: Counter) -> Work:
    """Return what the set of one shadow model takes, given its denoiser."""
    drawn = settings.evaluations(settings.levels) * settings.images
    look = counter.looks(counter.denoiser(counter.fitted()), drawn, at_once=settings.images_at_once)
    return look + counter.image_set(settings.images)
