"""Flips, shifts and normalisation: random for training, fixed for the audit's queries.

Shifts move the crop: the image is padded with zeros, *before* normalisation (a black border), and a window of its own
size is cut whose origin is moved by ``(dy, dx)`` pixels, so that ``out[y, x] = image[y + dy, x + dx]``. The flip comes
first. Training and queries share this code, so their borders agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch.nn import functional as F

from coalmine.training.recipe import Augmentation, Normalisation


@dataclass(frozen=True)
class View:
    """One deterministic variant of an image: mirrored or not, the crop moved by ``(dy, dx)`` pixels."""

    flip: bool = False
    dy: int = 0
    dx: int = 0


def fixed_views(flip: bool, shift: int) -> list[View]:
    """Return the views under which a sample is queried, in the protocol's order, the identity first.

    The protocol (predecessor's ``_predict``): flip in (no, yes), then vertical shift in (0, -shift, +shift), then
    horizontal shift in the same; 18 views for ``flip=True, shift=4``. Without shift only the flips remain.
    """
    flips = (False, True) if flip else (False,)
    shifts = (0, -shift, shift) if shift else (0,)
    return [View(mirrored, dy, dx) for mirrored in flips for dy in shifts for dx in shifts]


def apply_view(images: torch.Tensor, view: View) -> torch.Tensor:
    """Return ``images``, ``(n, channel, height, width)`` of any dtype, under one view."""
    if view.flip:
        images = images.flip(-1)
    if view.dy or view.dx:
        # Negative padding crops: rows leave on one side, black ones enter on the other.
        images = F.pad(images, (-view.dx, view.dx, -view.dy, view.dy))
    return images


def draw_plan(generator: torch.Generator, n: int, augmentation: Augmentation) -> torch.Tensor:
    """Draw one epoch: an order of the samples and each one's augmentation.

    Args:
        generator: the model's own CPU generator, advanced by this call.
        n: the number of samples.
        augmentation: what to draw; what it leaves out is 0 and takes nothing from the generator.

    Returns:
        int64 ``(n, 4)``: sample, flip (0 or 1), dy, dx (each uniform in -shift..shift).
    """
    order = torch.randperm(n, generator=generator)
    return torch.cat([order[:, None], draw_augmentation(generator, n, augmentation)], dim=1)


def draw_augmentation(generator: torch.Generator, n: int, augmentation: Augmentation) -> torch.Tensor:
    """Draw the augmentation of ``n`` images.

    Returns:
        int64 ``(n, 3)``: flip (0 or 1), dy, dx (each uniform in -shift..shift); 0 what ``augmentation`` leaves out.
    """
    drawn = torch.zeros(n, 3, dtype=torch.int64)
    if augmentation.flip:
        drawn[:, 0] = torch.randint(0, 2, (n,), generator=generator)
    if augmentation.shift:
        size = augmentation.shift
        drawn[:, 1:] = torch.randint(-size, size + 1, (n, 2), generator=generator)
    return drawn


def random_augment(
    images: torch.Tensor, flip: torch.Tensor | None, dy: torch.Tensor, dx: torch.Tensor, shift: int | None = None
) -> torch.Tensor:
    """Flip and shift every image of a batch by its own amounts, in one gather for the whole batch.

    Args:
        images: ``(..., channel, height, width)``, any dtype.
        flip: int or bool ``(...)``, nonzero mirrors; None mirrors none.
        dy: int64 ``(...)``, how far each image's crop moves down.
        dx: int64 ``(...)``, how far it moves right.
        shift: the largest absolute ``dy`` and ``dx``, 0 for no shift at all; None looks it up, which makes a CUDA
            device wait.

    Returns:
        The augmented images, in the shape and dtype of ``images``.
    """
    if flip is not None:
        images = torch.where(flip.bool()[..., None, None, None], images.flip(-1), images)
    if shift is None:
        shift = int(torch.maximum(dy.abs().max(), dx.abs().max()))
    if shift == 0:
        return images
    height, width = images.shape[-2:]
    padded = F.pad(images.flatten(0, -4), (shift, shift, shift, shift))
    if images.requires_grad:
        # A view of every crop would have a gradient (2 shift + 1)^2 times as large as the images.
        n, channels, _, wide = padded.shape
        rows = dy.flatten()[:, None] + shift + torch.arange(height, device=images.device)
        columns = dx.flatten()[:, None] + shift + torch.arange(width, device=images.device)
        strips = padded.gather(2, rows[:, None, :, None].expand(n, channels, height, wide))
        return strips.gather(3, columns[:, None, None, :].expand(n, channels, height, width)).view(images.shape)
    crops = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view of every crop: (n, c, dy, dx, height, width)
    each = torch.arange(len(padded), device=images.device)
    return crops[each, :, dy.flatten() + shift, dx.flatten() + shift].view(images.shape)


def draw_and_augment(images: torch.Tensor, augmentation: Augmentation, generator: torch.Generator) -> torch.Tensor:
    """Augment every image by amounts drawn for it.

    Args:
        images: ``(..., channel, height, width)``, any dtype.
        augmentation: what to draw.
        generator: a CPU generator, advanced by this call.

    Returns:
        The augmented images, in the shape and dtype of ``images``.
    """
    each = images.shape[:-3]
    drawn = draw_augmentation(generator, each.numel(), augmentation).to(images.device)
    flip, dy, dx = drawn.view(*each, 3).unbind(-1)
    return random_augment(images, flip if augmentation.flip else None, dy, dx, augmentation.shift)


def normalise(images: torch.Tensor, normalisation: Normalisation, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return what a network sees: ``(pixel - mean) / std`` per channel, pixels from 0 to 1.

    Args:
        images: uint8 ``(..., channel, height, width)``, 0 to 255, or floats on the scale from 0 to 1 (values outside
            are kept, as distilled images have them).
        normalisation: of these channels.
        dtype: of the result.
    """
    scale, offset = _affine(normalisation, images.dtype == torch.uint8, images.device, dtype)
    return torch.addcmul(offset, images.to(dtype), scale)


@lru_cache(maxsize=16)
def _affine(
    normalisation: Normalisation, of_bytes: bool, device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scale and offset ``(channel, 1, 1)`` with ``(pixel - mean) / std == offset + pixel * scale``."""
    with torch.inference_mode(False):  # the tensors are kept, and must serve autograd later
        mean = torch.tensor(normalisation.mean, dtype=torch.float64)[:, None, None]
        std = torch.tensor(normalisation.std, dtype=torch.float64)[:, None, None]
        scale = 1 / (std * (255 if of_bytes else 1))
        return scale.to(device, dtype), (-mean / std).to(device, dtype)
