"""The optimiser against ``torch.optim.SGD``."""

import pytest
import torch

from coalmine.training.sgd import SGD

SHAPES = [(3, 2, 3, 3), (5,), (4, 6)]


def tensors(generator, lead=()):
    return [torch.randn(*lead, *shape, generator=generator, dtype=torch.float64) for shape in SHAPES]


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_every_step_equals_torch_sgd(momentum, nesterov, weight_decay):
    generator = torch.Generator().manual_seed(0)
    mine = tensors(generator)
    theirs = [parameter.clone().requires_grad_() for parameter in mine]
    reference = torch.optim.SGD(theirs, lr=1.0, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)
    sgd = SGD(mine, momentum, nesterov, weight_decay)
    for rate in (0.1, 0.3, 0.02, 0.5):
        gradients = tensors(generator)
        for parameter, gradient in zip(theirs, gradients, strict=True):
            parameter.grad = gradient.clone()
        reference.param_groups[0]["lr"] = rate
        reference.step()
        sgd.step(gradients, rate)
        for one, other in zip(mine, theirs, strict=True):
            torch.testing.assert_close(one, other.detach(), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("nesterov", [False, True])
def test_each_model_of_a_stack_follows_its_own_learning_rate(nesterov):
    generator = torch.Generator().manual_seed(0)
    stacked = tensors(generator, lead=(2,))
    alone = [[parameter[model].clone() for parameter in stacked] for model in range(2)]
    together = SGD(stacked, 0.9, nesterov, 0.1)
    singles = [SGD(parameters, 0.9, nesterov, 0.1) for parameters in alone]
    for rates in ((0.1, 0.3), (0.2, 0.0), (0.05, 0.7)):
        gradients = tensors(generator, lead=(2,))
        together.step(gradients, torch.tensor(rates, dtype=torch.float64))
        for model, single in enumerate(singles):
            single.step([gradient[model] for gradient in gradients], rates[model])
            for parameter, own in zip(stacked, alone[model], strict=True):
                torch.testing.assert_close(parameter[model], own, rtol=1e-13, atol=1e-13)
