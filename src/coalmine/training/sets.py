"""What a model is trained on, and how it lies on the device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from coalmine.artefacts import digest
from coalmine.errors import CoalmineError
from coalmine.training.recipe import Normalisation, Recipe
from coalmine.training.whitening import Whitening


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """What one model is trained on: sample ``i`` is ``images[index[i]]`` with ``labels[i]``.

    Attributes:
        images: uint8 ``(image, height, width, channel)``, height = width, or float32 on the scale from 0 to 1
            (distilled images, which may lie outside it). Sets may share one array; it is put on the device once.
        labels: int64 ``(n,)``, or float32 ``(n, class)``: the probabilities of soft labels.
        index: int64 ``(n,)`` into ``images``; None for all of them in order.
        learning_rate: takes the place of the recipe's for this model, whose schedule stays (a distilled step size).
        whitening: the model is trained on whitened images, in place of normalised ones, and carries the whitening.
            Sets that are trained by one call are all whitened or none is.
    """

    images: np.ndarray
    labels: np.ndarray
    index: np.ndarray | None = None
    learning_rate: float | None = None
    whitening: Whitening | None = None

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.labels)

    def recipe(self, common: Recipe) -> Recipe:
        """Return the recipe of this model's training, given that of all."""
        if self.learning_rate is None:
            return common
        return common.model_copy(update={"learning_rate": self.learning_rate})

    def fingerprint(self, *further: object) -> str:
        """Return a digest of all that a model trained on this set learns from, and of the texts of ``further``.

        A checkpoint carries it, so that no training takes up another's, whatever the two are called.
        """
        whitening = self.whitening.state().values() if self.whitening else ()
        index = np.arange(len(self)) if self.index is None else self.index
        text = repr((self.learning_rate, *further)).encode()
        return digest(np.frombuffer(text, np.uint8), self.images, self.labels, index, *whitening)

    def whitened(self) -> TrainingSet:
        """Return the set as the network is to see it: itself, or one with images of its own, whitened."""
        if self.whitening is None:
            return self
        images = self.images if self.index is None else self.images[self.index]
        return replace(self, images=self.whitening.forward(images), index=None)


def check_set(position: int, data: TrainingSet, normalisation: Normalisation, classes: int) -> None:
    """Refuse a set whose arrays do not fit each other."""
    where = f"training set {position}"
    if data.images.ndim != 4 or data.images.shape[1] != data.images.shape[2]:
        raise CoalmineError(f"{where}: images have shape {data.images.shape}, expected (image, size, size, channel)")
    if data.images.dtype not in (np.uint8, np.float32):
        raise CoalmineError(f"{where}: images are {data.images.dtype}, expected uint8, or float32 from 0 to 1")
    if data.images.shape[3] != len(normalisation.mean):
        raise CoalmineError(
            f"{where}: images have {data.images.shape[3]} channels but the normalisation has {len(normalisation.mean)}"
        )
    if len(data) == 0:
        raise CoalmineError(f"{where}: no samples; a model needs at least one")
    hard = data.labels.dtype == np.int64 and data.labels.ndim == 1
    soft = data.labels.dtype == np.float32 and data.labels.shape[1:] == (classes,)
    if not (hard or soft):
        raise CoalmineError(
            f"{where}: labels are {data.labels.dtype} {data.labels.shape}, expected int64 (n,) "
            f"or float32 (n, {classes})"
        )
    if hard and (data.labels.min() < 0 or data.labels.max() >= classes):
        raise CoalmineError(f"{where}: labels must be from 0 to {classes - 1}")
    count = len(data.images) if data.index is None else len(data.index)
    if count != len(data):
        raise CoalmineError(f"{where}: {len(data)} labels for {count} images")
    if data.index is not None and (data.index.min() < 0 or data.index.max() >= len(data.images)):
        raise CoalmineError(f"{where}: index must be from 0 to {len(data.images) - 1}, the last image")
    if data.learning_rate is not None and not (math.isfinite(data.learning_rate) and data.learning_rate > 0):
        raise CoalmineError(f"{where}: learning_rate is {data.learning_rate:g}, expected a positive number")


def input_normalisation(sets: Sequence[TrainingSet], normalisation: Normalisation) -> Normalisation:
    """Return what normalises the images of :meth:`TrainingSet.whitened`: nothing does if they are whitened.

    Raises:
        CoalmineError: if some sets are whitened and others are not.
    """
    whitened = {data.whitening is not None for data in sets}
    if len(whitened) > 1:
        raise CoalmineError(
            f"{len(sets)} training sets, some whitened and some not; train the two kinds in two calls, since whitened "
            "images are not normalised"
        )
    return Normalisation.identity(len(normalisation.mean)) if whitened == {True} else normalisation


class DeviceImages:
    """Puts images on the device, channels first; an array used twice in a row is put there once."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._arrays: list[np.ndarray] = []
        self._images = torch.empty(0)

    def load(self, arrays: list[np.ndarray]) -> torch.Tensor:
        """Return the arrays' images one after the other, ``(image, channel, height, width)``."""
        if [id(array) for array in arrays] != [id(array) for array in self._arrays]:
            self._images = torch.empty(0)
            tensors = [torch.tensor(array).to(self.device).movedim(-1, 1).contiguous() for array in arrays]
            self._images = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
            self._arrays = arrays
        return self._images


class Samples:
    """The sets of an ensemble on the device."""

    def __init__(self, sets: Sequence[TrainingSet], images: DeviceImages, dtype: torch.dtype) -> None:
        arrays = list({id(data.images): data.images for data in sets}.values())
        starts = dict(zip(map(id, arrays), np.cumsum([0, *map(len, arrays)]), strict=False))
        self.images = images.load(arrays)
        longest = max(map(len, sets))
        rows = np.zeros((len(sets), longest), dtype=np.int64)
        labels = np.zeros((len(sets), longest, *sets[0].labels.shape[1:]), dtype=sets[0].labels.dtype)
        for model, data in enumerate(sets):
            index = np.arange(len(data)) if data.index is None else data.index
            rows[model, : len(data)] = index + starts[id(data.images)]
            labels[model, : len(data)] = data.labels
        self._rows = torch.from_numpy(rows).to(images.device)
        self._labels = torch.from_numpy(labels).to(images.device)
        if self._labels.is_floating_point():
            self._labels = self._labels.to(dtype)
        self._models = torch.arange(len(sets), device=images.device)[:, None]

    def __getitem__(self, samples: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images ``(model, batch, channel, height, width)`` and labels of ``samples`` ``(model, batch)``."""
        return self.images[self._rows[self._models, samples]], self._labels[self._models, samples]
