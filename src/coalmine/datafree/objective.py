"""The loss of synthetic images: the terms of a method's row of the table, weighted and added."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import nn

from coalmine.datafree import losses, statistics
from coalmine.datafree.contrast import Contrast, local_view
from coalmine.datafree.settings import DataFree
from coalmine.models.layers import Classifier
from coalmine.training.augment import draw_and_augment, normalise
from coalmine.training.recipe import Augmentation, Normalisation
from coalmine.training.state import prefixed, under


class Judgement(NamedTuple):
    """What the teacher makes of images.

    Attributes:
        features: (image, dimension), the input of its head.
        logits: (image, class).
        moments: of the inputs of each batch norm layer.
        means: (image, channel), each image's spatial means of these inputs in all layers.
    """

    features: torch.Tensor
    logits: torch.Tensor
    moments: list[statistics.Moments]
    means: torch.Tensor | None


class Objective:
    """What a method asks of a batch of images.

    Args:
        settings: of the method.
        teacher: frozen, in evaluation mode.
        student: asked by the adversarial loss, in evaluation mode.
        normalisation: of images.
        augmentation: of the student's recipe.
        weights: draws what the contrastive loss learns.
    """

    def __init__(
        self,
        settings: DataFree,
        teacher: Classifier,
        student: nn.Module,
        normalisation: Normalisation,
        augmentation: Augmentation,
        weights: torch.Generator,
    ) -> None:
        self._settings, self._teacher, self._student = settings, teacher, student
        self._normalisation, self._augmentation = normalisation, augmentation
        self._inputs = statistics.Inputs(teacher)
        self._running = statistics.running(teacher)
        self._history = statistics.History(settings.statistics_momentum)
        self._last: list[statistics.Moments] = []
        self._contrast = None
        if settings.contrastive:
            dimension = sum(len(layer.mean) for layer in self._running)
            self._contrast = Contrast(settings, dimension, self._running[0].mean.device, weights)

    @property
    def optimisers(self) -> list[torch.optim.Optimizer]:
        """Of what the losses themselves learn."""
        return [self._contrast.optimiser] if self._contrast else []

    def __call__(
        self, images: torch.Tensor, labels: torch.Tensor, generator: torch.Generator, *, adversarial: bool
    ) -> torch.Tensor:
        """Return the loss of a batch.

        Args:
            images: from 0 to 1, (image, channel, height, width).
            labels: int64 (image,), the classes drawn for them.
            generator: a CPU generator, for augmentation and negatives.
            adversarial: whether there is a student to be asked yet.
        """
        settings = self._settings
        x = self.seen(self._varied(images, generator))
        judged = self._judge(x)
        labels = labels if settings.target == "drawn" else judged.logits.detach().argmax(dim=1)
        loss = x.new_zeros(())
        if settings.one_hot:
            loss = loss + settings.one_hot * losses.one_hot(judged.logits, labels)
        if settings.activation:
            loss = loss + settings.activation * losses.activation(judged.features)
        if settings.balance:
            loss = loss + settings.balance * losses.balance(judged.logits)
        if settings.batch_norm:
            self._last = judged.moments
            loss = loss + settings.batch_norm * losses.batch_norm(self._history.blend(self._last), self._running)
        if settings.adversarial and adversarial:
            answer = self._student(x)
            disagreement = losses.adversarial(judged.logits, answer, settings.divergence, masked=settings.masked)
            loss = loss + settings.adversarial * disagreement
        if self._contrast and judged.means is not None:
            local = local_view(images, generator, flip=self._augmentation.flip)
            loss = loss + settings.contrastive * self._contrast.loss(self._described(local), judged.means, generator)
        if settings.total_variation:
            loss = loss + settings.total_variation * losses.total_variation(x)
        return loss

    def seen(self, images: torch.Tensor) -> torch.Tensor:
        """Return images from 0 to 1 as networks see them."""
        return normalise(images, self._normalisation, self._teacher.head.weight.dtype)

    def _judge(self, x: torch.Tensor) -> Judgement:
        """Ask the teacher about images as networks see them."""
        settings = self._settings
        with self._inputs.seen(wanted=bool(settings.batch_norm or settings.contrastive)) as maps:
            features = self._teacher.features(x)
        moments = [statistics.moments(each) for each in maps] if settings.batch_norm else []
        means = statistics.instance_means(maps) if settings.contrastive else None
        return Judgement(features, self._teacher.head(features), moments, means)

    def _described(self, images: torch.Tensor) -> torch.Tensor:
        """Return the spatial means of what images bring into the teacher's batch norm layers, (image, channel)."""
        with self._inputs.seen(wanted=True) as maps:
            self._teacher.features(self.seen(images))
        return statistics.instance_means(maps)

    def _varied(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Roll and mirror the batch as a whole, augment each image, as the method has it."""
        if self._settings.roll:
            most = self._settings.roll
            down, right = torch.randint(-most, most + 1, (2,), generator=generator).tolist()
            images = images.roll((down, right), dims=(2, 3))
            if self._augmentation.flip and torch.randint(0, 2, (), generator=generator):
                images = images.flip(3)
        return draw_and_augment(images, self._augmentation, generator) if self._settings.augmented else images

    @torch.no_grad()
    def finish(self, images: torch.Tensor) -> None:
        """Take note of a finished batch."""
        self._history.add(self._last)
        if self._contrast:
            self._contrast.remember(self._described(images))

    def state(self) -> dict[str, torch.Tensor]:
        """Return what lasts from batch to batch, by name."""
        learned = prefixed("contrast", self._contrast.state()) if self._contrast else {}
        return prefixed("history", self._history.state()) | learned

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take up what ``state`` returned."""
        device = self._teacher.head.weight.device
        self._history.restore({name: tensor.to(device) for name, tensor in under("history", state).items()})
        if self._contrast:
            self._contrast.restore(under("contrast", state))
