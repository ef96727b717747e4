"""The differentially private step that every DP method takes: DP-SGD with augmentation multiplicity.

Abadi et al., "Deep Learning with Differential Privacy" (CCS 2016), algorithm 1, with the augmentation multiplicity of
De et al., "Unlocking High-Accuracy Differentially Private Image Classification through Scale" (2022), section 3.2.
For a Poisson sample ``S`` of examples, each of which brings ``K`` views,

    g_i = the gradient of example i's loss, a mean over its K views
    g   = (sum over i in S of g_i min(1, C / |g_i|) + N(0, (noise_multiplier C)^2 I)) / expected batch size

and ``g`` goes to an ordinary optimiser. One example can change the sum by at most ``C``, whatever ``K`` is. Per-example
gradients are ``torch.func``'s; clipping, noise and scaling are opacus' ``DPOptimizer``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from opacus.optimizers import DPOptimizer
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from coalmine.errors import CoalmineError

Loss = Callable[..., torch.Tensor]
"""``loss(network, *example)``, a scalar: the mean over one example's views.

``network`` is called like the module itself; ``example`` are that example's tensors, without the batch dimension. All
randomness (augmentation, time steps, noise of a diffusion loss) comes as tensors in ``example``.
"""


class DPStep:
    """Updates a module with clipped and noised per-example gradients.

    Args:
        network: a module that does not couple the examples of a batch; its parameters are updated in place.
        loss: of one example.
        optimiser: over the parameters of ``network`` that are to be trained.
        clip: C, the largest norm of one example's gradient over all parameters.
        noise_multiplier: standard deviation of the noise, in units of ``clip``.
        expected_batch_size: what the noisy sum is divided by: sampling rate times the *public* number of examples,
            never the number of examples drawn.
        generator: of the noise, on the device of the parameters.
        micro_batch: examples whose gradients are held at once. Memory grows with it, not with the batch.

    Raises:
        CoalmineError: for a module with batch or instance statistics, in which examples see each other.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: Loss,
        optimiser: torch.optim.Optimizer,
        *,
        clip: float,
        noise_multiplier: float,
        expected_batch_size: float,
        generator: torch.Generator,
        micro_batch: int,
    ) -> None:
        _refuse_coupled_examples(network)
        self._parameters = _trained(network)
        self._gradients = per_example_gradients(network, loss)
        self._optimiser = DPOptimizer(
            optimiser,
            noise_multiplier=noise_multiplier,
            max_grad_norm=clip,
            expected_batch_size=expected_batch_size,
            generator=generator,
        )
        self._micro_batch = micro_batch

    def __call__(self, *examples: torch.Tensor) -> None:
        """Make one update from the examples that were drawn, none at all included.

        Args:
            examples: the arguments of the loss, each ``(n, ...)`` on the device of the parameters; ``n`` may be 0:
                the update is then noise alone, as the guarantee demands.
        """
        parts = list(zip(*(torch.split(tensor, self._micro_batch) for tensor in examples), strict=True))
        for part in parts[:-1]:
            self._accumulate(part)
            self._optimiser.signal_skip_step()
            self._step()
        self._accumulate(parts[-1])
        self._step()

    def _accumulate(self, examples: tuple[torch.Tensor, ...]) -> None:
        """Put each parameter's per-example gradients where the optimiser looks for them."""
        if len(examples[0]):
            gradients = self._gradients(*examples)
        else:
            gradients = {name: one.new_zeros((0, *one.shape)) for name, one in self._parameters.items()}
        for name, parameter in self._parameters.items():
            parameter.grad_sample = gradients[name]  # type: ignore[attr-defined]

    def _step(self) -> None:
        """Clip and add up; on the last part of a batch add the noise, divide and update."""
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)


def per_example_gradients(network: nn.Module, loss: Loss) -> Callable[..., dict[str, torch.Tensor]]:
    """Return a function from examples to their gradients, with the parameters that ``network`` has when it is called.

    The function maps the arguments of the loss, each ``(n, ...)``, to a gradient ``(n, *parameter.shape)`` for each
    parameter that requires one.
    """
    trained = _trained(network)

    def loss_of(parameters: dict[str, torch.Tensor], *example: torch.Tensor) -> torch.Tensor:
        def called(*inputs: torch.Tensor) -> torch.Tensor:
            output: torch.Tensor = functional_call(network, parameters, inputs)
            return output

        return loss(called, *example)

    def gradients(*examples: torch.Tensor) -> dict[str, torch.Tensor]:
        parameters = {name: one.detach() for name, one in trained.items()}
        each = vmap(grad(loss_of), in_dims=(None, *[0] * len(examples)), randomness="error")
        found: dict[str, torch.Tensor] = each(parameters, *examples)
        return found

    return gradients


def _trained(network: nn.Module) -> dict[str, nn.Parameter]:
    return {name: one for name, one in network.named_parameters() if one.requires_grad}


def _refuse_coupled_examples(network: nn.Module) -> None:
    for name, layer in network.named_modules():
        couples = isinstance(layer, _BatchNorm) or (isinstance(layer, _NormBase) and layer.track_running_stats)
        if couples:
            raise CoalmineError(
                f"layer {name} ({type(layer).__name__}) keeps statistics of the batch: one example changes what others "
                "contribute, and clipping them bounds nothing; use norm: group for DP-SGD"
            )
