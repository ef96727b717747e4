"""CMI's contrastive loss: what tells images apart, and the features of earlier images that they are told apart from.

Fang et al., "Contrastive Model Inversion for Data-Free Knowledge Distillation" (IJCAI 2021). An image is described by
the spatial means of what flows into each batch norm layer of the teacher, projected by a small head that learns along.
A random part of the image must be nearer to the whole of it than to the other images of the batch and to earlier ones.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional as F

from coalmine.datafree import losses
from coalmine.datafree.settings import DataFree
from coalmine.models.layers import initialise
from coalmine.training.state import of_optimiser, prefixed, restore_optimiser, under

HEAD = 256
"""Units of the head, hidden and out."""

LEAST_AREA = 0.25
"""Smallest share of an image that a local view covers."""


class Contrast:
    """The head, the bank of earlier images' descriptions, and the loss.

    Args:
        settings: of the method.
        dimension: of a description.
        device: where to compute.
        weights: draws the head.
    """

    def __init__(self, settings: DataFree, dimension: int, device: torch.device, weights: torch.Generator) -> None:
        self._settings = settings
        self._head = nn.Sequential(nn.Linear(dimension, HEAD), nn.ReLU(), nn.Linear(HEAD, HEAD))
        initialise(self._head, weights)
        self._head.to(device)
        self.optimiser = torch.optim.Adam(self._head.parameters(), lr=settings.rate)
        self.bank = torch.empty(0, dimension, device=device)

    def loss(self, local: torch.Tensor, whole: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return InfoNCE of descriptions (image, dimension) of local views and of whole images.

        Earlier images, and whole ones, are what the views are compared with: no gradient reaches them.
        """
        drawn = torch.randperm(len(self.bank), generator=generator)[: self._settings.negatives]
        others = torch.cat([whole.detach(), self.bank[drawn.to(self.bank.device)]])
        return losses.contrast(
            self._project(local), self._project(others).detach(), self._settings.contrast_temperature
        )

    def _project(self, descriptions: torch.Tensor) -> torch.Tensor:
        return F.normalize(self._head(descriptions.float()), dim=1)

    def remember(self, descriptions: torch.Tensor) -> None:
        """Add the descriptions of finished images to the bank; the oldest leave."""
        self.bank = torch.cat([self.bank, descriptions.detach().float()])[-self._settings.bank :]

    def state(self) -> dict[str, torch.Tensor]:
        """Return head, optimiser and bank."""
        return {
            **prefixed("head", self._head.state_dict()),
            **prefixed("optimiser", of_optimiser(self.optimiser)),
            "bank": self.bank,
        }

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take up what ``state`` returned."""
        self._head.load_state_dict(under("head", state))
        restore_optimiser(self.optimiser, under("optimiser", state))
        self.bank = state["bank"].to(self.bank.device)


def local_view(images: torch.Tensor, generator: torch.Generator, *, flip: bool) -> torch.Tensor:
    """Return a random square of each image, scaled to its size (bilinear), mirrored at random if ``flip``.

    The share of the area is uniform from ``LEAST_AREA`` to 1, the place uniform.
    """
    count = len(images)
    side = torch.empty(count).uniform_(LEAST_AREA, 1, generator=generator).sqrt()
    centre = (1 - side)[:, None] * torch.empty(count, 2).uniform_(-1, 1, generator=generator)
    mirrored = torch.randint(0, 2, (count,), generator=generator) if flip else torch.zeros(count)
    affine = torch.zeros(count, 2, 3)
    affine[:, 0, 0], affine[:, 1, 1] = side * (1 - 2 * mirrored), side
    affine[:, :, 2] = centre
    grid = F.affine_grid(affine.to(images.device), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
