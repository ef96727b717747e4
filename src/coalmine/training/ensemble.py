"""Models that compute as one: a single network, or several of one architecture with their weights stacked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap


class Ensemble(Protocol):
    """Independent models in training mode; the gradient of a sum over models is each model's own."""

    parameters: list[torch.Tensor]
    """Leaves that require gradients; of several models, the first dimension is the model."""

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Map images ``(model, batch, channel, height, width)`` to logits ``(model, batch, class)``."""
        ...

    def state(self, model: int) -> dict[str, torch.Tensor]:
        """Return a copy on the CPU of one model's parameters and buffers, named as in its ``state_dict``."""
        ...

    def restore(self, model: int, state: Mapping[str, torch.Tensor]) -> None:
        """Overwrite one model's parameters and buffers with what :meth:`state` returned, of whatever ensemble."""
        ...

    def part(self, model: int, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return views of one model's part of tensors that are shaped like ``parameters``."""
        ...


class Single:
    """One network, called as it is, with channels last in memory: convolutions and pooling are faster so."""

    def __init__(self, network: nn.Module) -> None:
        """Train ``network`` itself."""
        self._network = network.train().to(memory_format=torch.channels_last)
        self.parameters: list[torch.Tensor] = list(network.parameters())

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """See ``Ensemble.logits``, for one model."""
        logits: torch.Tensor = self._network(x[0].contiguous(memory_format=torch.channels_last))
        return logits[None]

    def state(self, model: int) -> dict[str, torch.Tensor]:
        """See ``Ensemble.state``, for model 0."""
        return {name: exported(tensor) for name, tensor in self._network.state_dict().items()}

    def restore(self, model: int, state: Mapping[str, torch.Tensor]) -> None:
        """See ``Ensemble.restore``, for model 0."""
        self._network.load_state_dict(state)

    def part(self, model: int, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """See ``Ensemble.part``, for model 0."""
        return list(tensors)


class Stack:
    """Several networks of one architecture: stacked weights under ``torch.func.vmap``.

    One kernel serves all models, which pays where launching kernels dominates, as for small networks on a GPU.
    Running statistics of batch norm are stacked, too, and updated in place.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        """Stack copies of the networks' parameters and buffers, where they are."""
        stacked, self._buffers = stack_module_state([network.train() for network in networks])
        self._parameters = stacked
        self._names = list(networks[0].state_dict())
        self.parameters: list[torch.Tensor] = list(stacked.values())
        shapes = networks[0].to("meta")
        self._forward = vmap(
            lambda parameters, buffers, x: functional_call(shapes, (parameters, buffers), (x,)), randomness="error"
        )

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """See ``Ensemble.logits``."""
        logits: torch.Tensor = self._forward(self._parameters, self._buffers, x)
        return logits

    def state(self, model: int) -> dict[str, torch.Tensor]:
        """See ``Ensemble.state``."""
        tensors = {**self._parameters, **self._buffers}
        return {name: exported(tensors[name][model]) for name in self._names}

    @torch.no_grad()
    def restore(self, model: int, state: Mapping[str, torch.Tensor]) -> None:
        """See ``Ensemble.restore``."""
        tensors = {**self._parameters, **self._buffers}
        for name in self._names:
            tensors[name][model] = state[name]

    def part(self, model: int, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """See ``Ensemble.part``."""
        return [tensor[model] for tensor in tensors]


def exported(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy on the CPU, laid out as safetensors requires."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
