"""The moving average of weights: what is evaluated and published instead of the last iterate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import nn


class MovingAverage:
    """Exponential moving average of parameters: what is evaluated and published instead of the last iterate.

    After update ``t`` (from 0) it moves to the parameters by ``1 - d`` of the way, with
    ``d = min(decay, (1 + t) / (10 + t))`` (De et al. 2022, section 3.3). It is a function of the noisy iterates only,
    so it costs no privacy.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        """Start at the parameters that ``network`` has now."""
        self._parameters = dict(network.named_parameters())
        self._averages = {name: one.detach().clone() for name, one in self._parameters.items()}
        self._decay, self._updates = decay, 0

    @torch.no_grad()
    def update(self) -> None:
        """Take one update of the parameters into account."""
        decay = min(self._decay, (1 + self._updates) / (10 + self._updates))
        torch._foreach_lerp_(list(self._averages.values()), list(self._parameters.values()), 1 - decay)
        self._updates += 1

    def items(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the averages by the names of their parameters."""
        yield from self._averages.items()

    def state(self) -> dict[str, torch.Tensor]:
        """Return all state by name, for a checkpoint."""
        return {**self._averages, "updates": torch.tensor(self._updates)}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take up what :meth:`state` returned."""
        for name, average in self._averages.items():
            average.copy_(state[name])
        self._updates = int(state["updates"])
