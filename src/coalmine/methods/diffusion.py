"""Diffusion: a class-conditional diffusion model learns the private images, and new ones are drawn from it.

Zhao and Zhang, "Does Training with Synthetic Data Truly Protect Privacy?" (ICLR 2025), audit images of a pre-trained
diffusion model that was fine-tuned on private data, and call one that was trained from scratch the comparison that they
would like to see. Both are entries with this file; Stable Diffusion is ``stable_diffusion``.

    fit:  start from a new U-Net, or from one that public data have trained (``pretrained``)
          train it to remove noise from the private images, given their labels (``coalmine.diffusion.training``)
    draw: image-to-image (``strength``): every private image, with noise of that strength, made anew with its label
          or class-conditional: from noise alone, all classes alike
          by a deterministic solver with classifier-free guidance (``coalmine.diffusion.sampling``)

Private information enters through the weights and, image-to-image, through every single image: at a low strength it is
hardly changed. Its label is the one that training was given, so a canary's is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from coalmine.costs.work import Counter, Work
from coalmine.diffusion.settings import Drawing, Fit, Sampling, unfit
from coalmine.shadows import Fitted, Setup, Shadow, Synthetic

if TYPE_CHECKING:
    from coalmine.models.settings import ModelSettings
    from coalmine.outline import Outline
    from coalmine.training.recipe import Recipe

SOURCE = "initialised"


class Settings(Drawing, Sampling):
    """Hyper-parameters: whose denoisers, and what is drawn from them."""

    fit: Fit | None = Field(default=None, description="How the denoisers are trained; null with `generator`.")


def objection(settings: Settings, model: ModelSettings, recipe: Recipe, outline: Outline) -> tuple[str, str] | None:
    """Return the field and the reason why these settings cannot work, or None."""
    own = settings.fit or outline.settings[str(settings.generator)].fit
    return unfit(own, settings, outline)


def fit(shadows: Sequence[Shadow], own: Fit, setup: Setup) -> Iterator[Fitted]:
    """Yield one denoiser per shadow model, in order."""
    from coalmine.diffusion import denoiser

    return denoiser.fit(shadows, own, setup)


def synthesize(shadows: Sequence[Shadow], settings: Settings, setup: Setup) -> Iterator[Synthetic]:
    """Yield one synthetic set per shadow model, in order."""
    from coalmine.diffusion.denoiser import asked_for, draw

    for shadow in shadows:
        yield draw(shadow, asked_for(settings, shadow, setup), settings, setup)


def fit_work(own: Fit, counter: Counter) -> Work:
    """Return what the denoiser of one shadow model takes."""
    network = counter.denoiser(own)
    return counter.steps(network, own.steps, own.batch_size) + counter.weights(network)


def work(settings: Settings, counter: Counter) -> Work:
    """Return what the set of one shadow model takes, given its denoiser."""
    images = counter.population if settings.images is None else settings.images
    steps = settings.levels if settings.strength is None else round(settings.strength * settings.levels)
    drawn = settings.evaluations(steps) * images
    look = counter.looks(counter.denoiser(counter.fitted()), drawn, at_once=settings.images_at_once)
    return look + counter.image_set(images)
