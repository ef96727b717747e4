"""The student: learns the teacher's answers to images, with the recipe of the audited models."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from coalmine.datafree import losses
from coalmine.datafree.settings import DataFree
from coalmine.models.layers import Classifier
from coalmine.training.recipe import Recipe
from coalmine.training.sgd import SGD
from coalmine.training.state import prefixed, under


class Student:
    """A network in training.

    Args:
        network: with its first weights, on the device; moved in place.
        recipe: of its training.
        settings: what it minimises.
    """

    def __init__(self, network: Classifier, recipe: Recipe, settings: DataFree) -> None:
        self.network = network
        self._recipe, self._settings = recipe, settings
        self._parameters = list(network.parameters())
        self._sgd = SGD(self._parameters, recipe.momentum, recipe.nesterov, recipe.weight_decay)

    def learn(self, teacher: Classifier, x: torch.Tensor, rate: float) -> torch.Tensor:
        """Make one step and return the loss before it.

        Args:
            teacher: frozen, in evaluation mode.
            x: images as networks see them, (image, channel, height, width).
            rate: the learning rate.
        """
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self._recipe.precision == "bfloat16"):
            with torch.no_grad():
                target = teacher(x).to(x.dtype)
            answer = self.network(x).to(x.dtype)
        loss = self.distance(target, answer).mean()
        self._sgd.step(torch.autograd.grad(loss, self._parameters), rate)
        return loss.detach()

    def distance(self, target: torch.Tensor, answer: torch.Tensor) -> torch.Tensor:
        """Return what is minimised, (image,), of logits (image, class)."""
        if self._settings.criterion == "l1":
            return losses.l1(target, answer)
        return losses.kl(target, answer, self._settings.temperature)

    def state(self) -> dict[str, torch.Tensor]:
        """Return weights, buffers and velocities by name."""
        velocities = {str(number): tensor for number, tensor in enumerate(self._sgd.velocity)}
        return prefixed("network", self.network.state_dict()) | prefixed("velocity", velocities)

    @torch.no_grad()
    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take up what ``state`` returned."""
        self.network.load_state_dict(under("network", state))
        for number, tensor in under("velocity", state).items():
            self._sgd.velocity[int(number)].copy_(tensor)
