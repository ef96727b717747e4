"""Multiply-adds, weights and layers in closed form, against PyTorch's networks and its own counter."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from coalmine.costs.networks import network
from coalmine.costs.work import ImageGenerator
from coalmine.datafree.generator import Generator
from coalmine.diffusion.network import ConditionalUNet
from coalmine.diffusion.settings import UNet
from coalmine.errors import CoalmineError
from coalmine.models import settings
from coalmine.models.build import skeleton
from coalmine.models.settings import MLP, ConvNet, ResNet, SmallNet, WideResNet

CLASSIFIERS = [
    ResNet(),
    ResNet(width=16, blocks=(1, 1, 1), norm="group"),
    WideResNet(),
    WideResNet(norm="group", bias=True, order="relu-norm", downsample="second"),
    WideResNet(depth=40, norm="group", bias=True, order="relu-norm", weight_standardisation=True),
    WideResNet(widen=1),
    ConvNet(),
    ConvNet(depth=2, width=16, norm="none"),
    SmallNet(),
    SmallNet(width=8, hidden=16, norm="none"),
    MLP(hidden=(64, 32)),
]
UNETS = [
    UNet(width=16, multipliers=(1, 2), blocks=1),
    UNet(width=32, multipliers=(1, 2, 2), blocks=1, attention=(2,)),
    UNet(width=16, multipliers=(2, 2, 3), blocks=2, attention=(0, 1)),
]


def counted(module: torch.nn.Module, *inputs: torch.Tensor) -> float:
    """Multiply-adds of one image by PyTorch's counter; all inputs hold two."""
    with FlopCounterMode(display=False) as counter:
        module(*inputs)
    return counter.get_total_flops() / 2 / 2


@pytest.mark.parametrize(("channels", "side"), [(3, 32), (1, 8)])
@pytest.mark.parametrize("own", CLASSIFIERS, ids=lambda own: own.name)
def test_a_classifier_is_counted_as_pytorch_counts_it(own: Any, channels: int, side: int) -> None:
    module = skeleton(own, channels, side, 10).eval()
    found = network(own, channels, side, 10)
    assert found.operations == counted(module, torch.zeros(2, channels, side, side, device="meta"))
    assert found.weights == sum(one.numel() for one in module.parameters())
    assert found.tensors == len(list(module.parameters()))
    running = sum(one.numel() for name, one in module.named_buffers() if "running" in name)
    assert found.statistics == running


@pytest.mark.parametrize("own", UNETS, ids=["flat", "attends-last", "attends-often"])
def test_a_unet_is_counted_as_pytorch_counts_it(own: UNet) -> None:
    module = ConditionalUNet(own, 3, 16, 7).eval().to("meta")
    labels = torch.zeros(2, dtype=torch.int64, device="meta")
    inputs = torch.zeros(2, 3, 16, 16, device="meta"), torch.zeros(2, device="meta"), labels
    found = network(own, 3, 16, 7)
    assert found.operations == counted(module, *inputs)
    assert found.weights == sum(one.numel() for one in module.parameters())


def test_the_generator_of_data_free_methods_is_counted_as_pytorch_counts_it() -> None:
    module = Generator(32, 8, 3, 16)
    found = network(ImageGenerator(32, 8), 3, 16, 10)
    assert found.operations == counted(module, torch.zeros(2, 32))
    assert found.weights == sum(one.numel() for one in module.parameters())


def test_a_multilayer_perceptron_is_counted_as_by_hand() -> None:
    found = network(MLP(hidden=(5,)), 1, 2, 3)
    assert found.operations == 4 * 5 + 5 * 3
    assert found.weights == (4 * 5 + 5) + (5 * 3 + 3)
    assert found.layers == 3, "linear, ReLU, linear"
    assert found.activations == 5 + 5 + 3


def test_a_convolution_is_counted_as_by_hand() -> None:
    found = network(ConvNet(depth=1, width=4, norm="none"), 3, 8, 2)
    assert found.operations == 3 * 4 * 9 * 64 + 4 * 16 * 2
    assert found.weights == (3 * 4 * 9 + 4) + (4 * 16 * 2 + 2)


def test_every_classifier_of_the_settings_is_known() -> None:
    union = settings.ModelSettings.__args__[0].__args__  # type: ignore[attr-defined]
    for kind in union:
        assert network(kind(), 3, 32, 10).operations > 0


def test_an_unknown_network_is_refused_by_name() -> None:
    with pytest.raises(CoalmineError, match="arithmetic of a str is not known"):
        network("resnet", 3, 32, 10)


def test_counting_imports_no_torch() -> None:
    import subprocess

    code = "import coalmine.plan, coalmine.costs.table, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
