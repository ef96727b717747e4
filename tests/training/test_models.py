"""Networks: sizes, initialisation, features and head, refusals."""

import math
import subprocess
import sys

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch.func import functional_call

from coalmine.errors import CoalmineError
from coalmine.models.build import build, restore
from coalmine.models.layers import normaliser
from coalmine.models.settings import MLP, ConvNet, ModelSettings, ResNet, SmallNet, WideResNet

SMALL = [
    ResNet(width=4, blocks=(1, 1, 1)),
    ResNet(width=4, blocks=(1, 2), norm="group"),
    WideResNet(depth=10, widen=1),
    WideResNet(depth=10, widen=1, bias=True, downsample="second", norm="group"),
    WideResNet(depth=10, widen=1, norm="group", order="relu-norm", initialisation="normal"),
    WideResNet(
        depth=10, widen=1, norm="group", bias=True, weight_standardisation=True, initialisation="truncated-normal"
    ),
    ConvNet(depth=2, width=6),
    ConvNet(depth=3, width=6, norm="none"),
    SmallNet(width=4, hidden=8),
    SmallNet(width=4, hidden=8, norm="none"),
    MLP(hidden=(12, 7)),
]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def weights(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("model", "channels", "size", "expected"),
    [
        (ResNet(), 3, 32, 11_173_962),
        (WideResNet(), 3, 32, 2_748_890),
        (WideResNet(bias=True, downsample="second"), 3, 32, 2_751_146),
        (WideResNet(bias=True, downsample="second", norm="group"), 3, 32, 2_751_146),
        (ConvNet(), 3, 32, 320_010),
        (SmallNet(), 1, 8, 70_186),
        (MLP(), 1, 8, 64 * 256 + 256 + 256 * 256 + 256 + 2570),
    ],
)
def test_networks_have_the_published_number_of_weights(model, channels, size, expected):
    assert weights(build(model, channels, size, 10, generator())) == expected


@pytest.mark.parametrize("model", SMALL, ids=repr)
def test_forward_is_the_head_of_the_features(model):
    network = build(model, 3, 8, 5, generator()).eval()
    x = torch.randn(2, 3, 8, 8, generator=generator(1))
    features = network.features(x)
    assert features.shape == (2, network.head.in_features)
    assert network.head.out_features == 5
    assert torch.equal(network(x), network.head(features))


@pytest.mark.parametrize("model", SMALL, ids=repr)
def test_every_weight_gets_a_gradient(model):
    network = build(model, 3, 8, 5, generator())
    network(torch.randn(4, 3, 8, 8, generator=generator(1))).logsumexp(1).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters())


@pytest.mark.parametrize("model", SMALL, ids=repr)
def test_the_generator_alone_decides_the_weights(model):
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = build(model, 3, 8, 5, generator(7)).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    second = build(model, 3, 8, 5, generator(7)).state_dict()
    other = build(model, 3, 8, 5, generator(8)).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_weights_are_uniform_within_one_over_the_root_of_the_fan_in():
    network = build(ResNet(width=32, blocks=(1, 1)), 3, 32, 10, generator())
    conv = dict(network.named_parameters())["blocks.1.conv2.weight"]
    bound = 1 / math.sqrt(64 * 9)
    assert conv.abs().max() <= bound
    assert conv.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.01)
    assert conv.mean().item() == pytest.approx(0, abs=0.02 * bound)
    state = network.state_dict()
    assert torch.equal(state["norm.weight"], torch.ones(32))
    assert torch.equal(state["norm.bias"], torch.zeros(32))
    assert torch.equal(state["norm.running_var"], torch.ones(32))
    assert torch.equal(state["norm.running_mean"], torch.zeros(32))


@pytest.mark.parametrize("downsample", ["first", "second"])
def test_the_wide_network_halves_the_image_twice_and_where_it_is_told(downsample):
    network = build(WideResNet(depth=10, widen=1, downsample=downsample), 3, 16, 10, generator())
    assert network.blocks(network.stem(torch.zeros(1, 3, 16, 16))).shape == (1, 64, 4, 4)
    strides = [network.blocks[1].conv1.stride, network.blocks[1].conv2.stride]
    assert strides == ([(2, 2), (1, 1)] if downsample == "first" else [(1, 1), (2, 2)])


@pytest.mark.parametrize(("block", "projects"), [(1, False), (2, True)])
def test_the_wide_block_equals_its_formula_with_an_identity_or_projected_shortcut(block, projects):
    layer = build(WideResNet(depth=16, widen=1), 3, 8, 10, generator()).eval().blocks[block]
    x = torch.randn(2, 16, 8, 8, generator=generator(1))
    active = torch.relu(x / math.sqrt(1 + 1e-5))
    inner = torch.relu(layer.conv1(active) / math.sqrt(1 + 1e-5))
    shortcut = layer.projection(active) if projects else x
    torch.testing.assert_close(layer(x), shortcut + layer.conv2(inner))


def test_samples_do_not_see_each_other_without_batch_norm():
    x = torch.randn(3, 3, 8, 8, generator=generator(1))
    for norm in ("group", "instance", "none"):
        network = build(ConvNet(depth=2, width=6, norm=norm), 3, 8, 5, generator())
        torch.testing.assert_close(network(x)[:1], network(x[:1]))


def test_instance_norm_standardises_each_channel_of_each_image():
    x = torch.randn(2, 6, 8, 8, generator=generator(1)) * 3 + 1
    normed = normaliser("instance", 6)(x)
    torch.testing.assert_close(normed.mean((-2, -1)), torch.zeros(2, 6), atol=1e-6, rtol=0)
    torch.testing.assert_close(normed.var((-2, -1), correction=0), torch.ones(2, 6), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("channels", "groups"), [(64, 16), (16, 16), (24, 12), (17, 1), (6, 6)])
def test_group_norm_has_sixteen_groups_or_the_most_that_divide(channels, groups):
    assert normaliser("group", channels).num_groups == groups


@pytest.mark.parametrize("model", SMALL, ids=repr)
def test_a_restored_network_computes_the_same(model):
    network = build(model, 3, 8, 5, generator())
    x = torch.randn(4, 3, 8, 8, generator=generator(1))
    network(x)
    again = restore(model, 3, 8, 5, network.state_dict())
    assert not again.training
    assert torch.equal(again(x), network.eval()(x))


def test_weights_of_another_network_are_refused():
    state = build(SmallNet(width=4), 1, 8, 10, generator()).state_dict()
    with pytest.raises(CoalmineError, match=r"do not fit a small-cnn for 1x8x8 images and 10 classes.*train it again"):
        restore(SmallNet(width=8), 1, 8, 10, state)


def test_a_convnet_too_deep_for_the_image_is_refused():
    with pytest.raises(CoalmineError, match="needs 16x16 pixels, these images have 8x8"):
        build(ConvNet(depth=4), 1, 8, 10, generator())


def test_per_sample_gradients_work_through_vmap():
    network = build(ResNet(width=4, blocks=(1, 1), norm="group"), 3, 8, 5, generator())
    parameters = {name: parameter.detach() for name, parameter in network.named_parameters()}
    x = torch.randn(3, 3, 8, 8, generator=generator(1))

    def loss(parameters, image):
        return functional_call(network, parameters, (image[None],)).logsumexp(1).sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    network(x).logsumexp(1).sum().backward()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(each[name].sum(0), parameter.grad, atol=1e-4, rtol=1e-4)


def test_settings_are_told_apart_by_name_and_refuse_what_they_do_not_know():
    adapter = TypeAdapter(ModelSettings)
    read = adapter.validate_python({"name": "resnet", "width": 16, "blocks": [1, 1, 1]})
    assert read == ResNet(width=16, blocks=(1, 1, 1))
    with pytest.raises(ValidationError, match="breadth"):
        adapter.validate_python({"name": "mlp", "breadth": 3})
    with pytest.raises(ValidationError, match=r"6 n \+ 4 layers .* not 17"):
        adapter.validate_python({"name": "wide-resnet", "depth": 17})


@pytest.mark.parametrize("module", ["coalmine.models.settings", "coalmine.training.recipe"])
def test_settings_import_without_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
