"""Expert trajectories as they lie in a file: all weights of every expert at the start and after every epoch.

A file holds one tensor, ``weights`` (expert, snapshot, weight), each snapshot a network's parameters one after the
other in the order of ``Networks``, and the whitening if the experts saw whitened images. It may be large (100 experts
of 320,010 weights for 50 epochs: 6.5 GB), so only the snapshots that are asked for are read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from coalmine.artefacts import Header, read_safetensors_header, write_safetensors
from coalmine.distillation.networks import Networks
from coalmine.distillation.settings import Experts
from coalmine.errors import REMEDY, CoalmineError
from coalmine.models.build import skeleton
from coalmine.training.recipe import Normalisation
from coalmine.training.whitening import MATRIX, MEAN, Whitening

_WEIGHTS = "weights"


class Trajectories:
    """The experts of one shadow model.

    Attributes:
        path: the file.
        header: what determines it; readers check it.
        settings: how the experts were trained.
        normalisation: of the images that they were trained on, unless these were whitened.
        whitening: of these images, or None.
        experts: number of experts.
        epochs: of each; there is one snapshot more.

    Raises:
        CoalmineError: if the file is missing, or is none.
    """

    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError

        self.path = path
        self.header = read_safetensors_header(path, whole=True)  # weights are read piece by piece
        try:
            spec, shape = self.header["spec"], self.header["shape"]
            self.settings = Experts.model_validate_json(json.dumps(spec["settings"]))
            self.normalisation = Normalisation.model_validate_json(json.dumps(spec["normalisation"]))
            self._shape = (int(shape["channels"]), int(shape["image_size"]), int(shape["classes"]))
            self._file = _open(path)
            self._weights = self._file.get_slice(_WEIGHTS)
            self.experts, snapshots, _ = self._weights.get_shape()
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            raise _unreadable(path, error) from error
        self.epochs = snapshots - 1
        self.whitening = self._whitening()
        self._shapes = [tuple(one.shape) for one in skeleton(self.settings.model, *self._shape).parameters()]

    def networks(self, count: int, device: torch.device) -> Networks:
        """Return networks of the experts' architecture, for weights of this file."""
        return Networks(self.settings.model, *self._shape, count, device)

    def snapshot(self, expert: int, epoch: int) -> list[torch.Tensor]:
        """Return an expert's weights after so many epochs, 0 for its first ones: float32, on the CPU, as copies.

        Raises:
            CoalmineError: if there is no such snapshot, or if it is not finite.
        """
        if not (0 <= expert < self.experts and 0 <= epoch <= self.epochs):
            raise CoalmineError(
                f"{self.path} has {self.experts} experts of {self.epochs} epochs, so there is no expert {expert} "
                f"after {epoch} epochs (both are counted from 0)"
            )
        row = self._weights[expert : expert + 1, epoch : epoch + 1].reshape(-1).astype(np.float32)
        if not np.isfinite(row).all():
            raise CoalmineError(f"{self.path}: weights of expert {expert} after epoch {epoch} are NaN or infinite")
        return unflatten(torch.from_numpy(row), self._shapes)

    def _whitening(self) -> Whitening | None:
        if not self.settings.zca:
            return None
        return Whitening(mean=self._file.get_tensor(MEAN), matrix=self._file.get_tensor(MATRIX))


def write(path: Path, header: Header, weights: np.ndarray, whitening: Whitening | None) -> None:
    """Write the trajectories of one shadow model.

    Args:
        path: the file.
        header: what determines it, with ``spec`` and ``shape`` (channels, image_size, classes).
        weights: float32 or float16 (expert, epoch + 1, weight).
        whitening: of the images, if the experts saw whitened ones.
    """
    write_safetensors(path, header, {_WEIGHTS: weights, **(whitening.state() if whitening else {})})


def flatten(weights: list[torch.Tensor]) -> torch.Tensor:
    """Return the weights ``(model, *shape)`` of networks one after the other, ``(model, weight)``."""
    return torch.cat([weight.detach().flatten(1) for weight in weights], dim=1)


def unflatten(row: torch.Tensor, shapes: list[tuple[int, ...]]) -> list[torch.Tensor]:
    """Return one network's weights in their shapes; the inverse of :func:`flatten` for one row."""
    sizes = [int(np.prod(shape)) for shape in shapes]
    return [part.reshape(shape) for part, shape in zip(torch.split(row, sizes), shapes, strict=True)]


def _open(path: Path) -> Any:
    from safetensors import safe_open

    return safe_open(path, framework="numpy")


def _unreadable(path: Path, error: Exception) -> CoalmineError:
    return CoalmineError(f"{path} is not a readable file of expert trajectories ({error}). {REMEDY}")
