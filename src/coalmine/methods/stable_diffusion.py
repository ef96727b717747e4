"""Stable Diffusion: a model that was trained on the web's images is fine-tuned on the private ones, and drawn from.

Zhao and Zhang, "Does Training with Synthetic Data Truly Protect Privacy?" (ICLR 2025), the paradigm of pre-trained
generators; fine-tuning and drawing follow diffusers' scripts and Yuan et al., "Real-Fake: Effective Training Data
Synthesis Through Distribution Matching" (ICLR 2024).

    fit:  enlarge the private images to what the model knows, and give each the prompt of its label
          train low-rank changes of the U-Net's attention to remove noise from their latents (LoRA)
    draw: image-to-image (``strength``): the latents of every private image, with noise of that strength, made anew
          or text-to-image: from noise alone, all classes alike
          by a deterministic solver with classifier-free guidance towards the prompt; shrink to the private images' size

Private information enters through the low-rank changes and, image-to-image, through every single image: at a low
strength it is hardly changed. A canary's prompt names its wrong label. The audit asks who was in the fine-tuning set;
images that pre-training saw are known to every shadow model, and are no part of the answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from coalmine.costs.work import INPUT_GRADIENT, Counter, StableDiffusion, Work
from coalmine.diffusion import latent_settings
from coalmine.diffusion.latent_settings import LatentFit, LatentSampling
from coalmine.diffusion.settings import Drawing
from coalmine.shadows import Fitted, Setup, Shadow, Synthetic

if TYPE_CHECKING:
    from coalmine.models.settings import ModelSettings
    from coalmine.outline import Outline
    from coalmine.training.recipe import Recipe

SOURCE = "initialised"


class Settings(Drawing, LatentSampling):
    """Hyper-parameters: whose fine-tuned models, and what is drawn from them (Real-Fake: ``strength`` 0.75)."""

    fit: LatentFit | None = Field(default=None, description="How they are fine-tuned; null with `generator`.")


def objection(settings: Settings, model: ModelSettings, recipe: Recipe, outline: Outline) -> tuple[str, str] | None:
    """Return the field and the reason why these settings cannot work, or None."""
    missing = latent_settings.missing_packages()
    if missing:
        return "module", missing
    if outline.channels not in (1, 3):
        return "module", f"takes grey or RGB images, but the private ones have {outline.channels} channels."
    found = settings.fit and latent_settings.objection(settings.fit)
    return (f"fit.{found[0]}", found[1]) if found else None


def fit(shadows: Sequence[Shadow], own: LatentFit, setup: Setup) -> Iterator[Fitted]:
    """Yield the low-rank changes of each shadow model, in order."""
    from coalmine.diffusion import latent

    return latent.fit(shadows, own, setup)


def synthesize(shadows: Sequence[Shadow], settings: Settings, setup: Setup) -> Iterator[Synthetic]:
    """Yield one synthetic set per shadow model, in order."""
    from coalmine.diffusion import latent
    from coalmine.diffusion.denoiser import asked_for

    model = None
    for shadow in shadows:
        model = latent.read(shadow, settings.lora_scale, setup, model)
        yield latent.draw(model, shadow, asked_for(settings, shadow, setup), settings, setup)


def fit_work(own: LatentFit, counter: Counter) -> Work:
    """Return what the fine-tuning of one shadow model takes: its private images as latents, and steps of the U-Net."""
    unet, encoder = (StableDiffusion(part, own.resolution, own.rank) for part in ("unet", "encoder"))
    latents = counter.looks(encoder, counter.population, at_once=own.batch_size)
    # Back through frozen weights, whose gradients nobody asks for.
    steps = counter.steps(unet, own.steps, own.batch_size, passes=INPUT_GRADIENT)
    return latents + steps + counter.weights(unet)


def work(settings: Settings, counter: Counter) -> Work:
    """Return what the set of one shadow model takes: encoded where images start from others, drawn, and decoded."""
    images = counter.population if settings.images is None else settings.images
    steps = settings.steps if settings.strength is None else round(settings.strength * settings.steps)
    resolution = counter.fitted()["resolution"]
    unet, encoder, decoder = (StableDiffusion(part, resolution) for part in ("unet", "encoder", "decoder"))
    asked = steps * (2 if settings.guidance > 1 else 1)
    made = counter.looks(unet, asked * images, at_once=settings.images_at_once)
    made += counter.looks(decoder, images, at_once=settings.images_at_once)
    if settings.strength is not None:
        made += counter.looks(encoder, images, at_once=settings.images_at_once)
    return made + counter.image_set(images)
