"""Stochastic gradient descent, for one model or for a stack of models with a learning rate each."""

from __future__ import annotations

from collections.abc import Sequence

import torch


class SGD:
    """The update of ``torch.optim.SGD`` (no dampening), with a learning rate for each model of a stack.

    With gradient ``g``, weights ``p``, weight decay ``w``, momentum ``m``, velocity ``v`` (0 at first) and rate ``r``:
    ``g += w p``, ``v = m v + g``, then ``p -= r v``, or with Nesterov's momentum ``p -= r (g + m v)``.
    """

    def __init__(
        self, parameters: Sequence[torch.Tensor], momentum: float, nesterov: bool = False, weight_decay: float = 0.0
    ) -> None:
        """Update ``parameters`` in place; of a stack, each one's first dimension is the model."""
        self.parameters = list(parameters)
        self.momentum, self.nesterov, self.weight_decay = momentum, nesterov, weight_decay
        self.velocity = [torch.zeros_like(parameter) for parameter in self.parameters]

    @torch.no_grad()
    def step(self, gradients: Sequence[torch.Tensor], rate: float | torch.Tensor) -> None:
        """Update every parameter once.

        Args:
            gradients: one for each parameter, in order.
            rate: the learning rate, or, for a stack, one for each model: ``(model,)`` on the parameters' device.
        """
        gradients = list(gradients)
        if self.weight_decay:
            gradients = list(torch._foreach_add(gradients, self.parameters, alpha=self.weight_decay))
        torch._foreach_mul_(self.velocity, self.momentum)
        torch._foreach_add_(self.velocity, gradients)
        descent = self.velocity
        if self.nesterov:
            descent = list(torch._foreach_add(gradients, self.velocity, alpha=self.momentum))
        if isinstance(rate, torch.Tensor):
            rates = [rate.view(-1, *[1] * (parameter.ndim - 1)) for parameter in self.parameters]
            torch._foreach_addcmul_(self.parameters, descent, rates, value=-1)
        else:
            torch._foreach_add_(self.parameters, descent, alpha=-rate)
