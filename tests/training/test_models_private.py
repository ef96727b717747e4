"""Networks for DP-SGD: De et al.'s wide network and the predecessor's, and gradients of single examples."""

import math
from itertools import pairwise

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load, save
from scipy import stats
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from coalmine.models.build import build, restore
from coalmine.models.layers import StandardisedConv2d
from coalmine.models.settings import MLP, ConvNet, ResNet, SmallNet, WideResNet
from coalmine.training.ensemble import Stack

DE = {
    "norm": "group",
    "bias": True,
    "order": "relu-norm",
    "weight_standardisation": True,
    "initialisation": "truncated-normal",
}
PREDECESSOR = {
    "norm": "group",
    "bias": True,
    "downsample": "second",
    "order": "relu-norm",
    "initialisation": "normal",
}
FALSE_ALARM = 1e-6
"""Of each statistical check, had its seed not been fixed."""


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randomised(network: torch.nn.Module, seed: int = 3) -> torch.nn.Module:
    """Move norms, gains and biases off their initial 0 and 1, where mistakes with them would not show."""
    noise = generator(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape, generator=noise), alpha=0.3)
    return network


def test_the_new_options_are_off_unless_asked_for():
    plain = WideResNet()
    assert (plain.weight_standardisation, plain.order, plain.initialisation) == (False, "norm-relu", "uniform")


def test_default_networks_draw_their_weights_as_before_the_new_options():
    model = WideResNet(depth=16, widen=2, bias=True, norm="group")
    state = build(model, 3, 8, 10, generator(7)).state_dict()
    shapes, norms = {"stem": (16, 3, 3, 3)}, {"norm": 128}
    inputs = 16
    for block, outputs in enumerate([32, 32, 64, 64, 128, 128]):
        name = f"blocks.{block}"
        shapes |= {f"{name}.conv1": (outputs, inputs, 3, 3), f"{name}.conv2": (outputs, outputs, 3, 3)}
        shapes |= {f"{name}.projection": (outputs, inputs, 1, 1)} if inputs != outputs else {}
        norms |= {f"{name}.norm1": inputs, f"{name}.norm2": outputs}
        inputs = outputs
    shapes["head"] = (10, 128)
    expected, draws = {}, generator(7)
    for name, shape in shapes.items():
        bound = 1 / math.sqrt(math.prod(shape[1:]))
        expected[f"{name}.weight"] = torch.empty(shape).uniform_(-bound, bound, generator=draws)
        expected[f"{name}.bias"] = torch.empty(shape[0]).uniform_(-bound, bound, generator=draws)
    for name, channels in norms.items():
        expected |= {f"{name}.weight": torch.ones(channels), f"{name}.bias": torch.zeros(channels)}
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def expected_weights(depth: int, widen: int, *, bias: bool, skip_norms: bool, gains: bool) -> int:
    """Count the weights by the papers: convolutions, norms (2 a channel), head."""
    blocks, widths = (depth - 4) // 6, [16, 16 * widen, 32 * widen, 64 * widen]
    convolutions, normed = [(9 * 3, 16)], [widths[-1]]
    for inputs, outputs in pairwise(widths):
        convolutions += [(inputs, outputs), (9 * inputs, outputs)] + (2 * blocks - 1) * [(9 * outputs, outputs)]
        normed += [inputs] * (1 + skip_norms) + (2 * blocks - 1) * [outputs]
    kernels = sum((fan_in + bias + gains) * outputs for fan_in, outputs in convolutions)
    return kernels + 2 * sum(normed) + 10 * (widths[-1] + 1)


@pytest.mark.parametrize("depth", [10, 16, 40])
@pytest.mark.parametrize(
    ("options", "counted"),
    [
        ({"norm": "group"}, {"bias": False, "skip_norms": False, "gains": False}),
        ({**PREDECESSOR, "order": "norm-relu"}, {"bias": True, "skip_norms": False, "gains": False}),
        (PREDECESSOR, {"bias": True, "skip_norms": True, "gains": False}),
        (DE, {"bias": True, "skip_norms": True, "gains": True}),
    ],
)
def test_private_networks_have_the_number_of_weights_of_an_independent_count(depth, options, counted):
    network = build(WideResNet(depth=depth, **options), 3, 32, 10, generator())
    assert sum(parameter.numel() for parameter in network.parameters()) == expected_weights(depth, 4, **counted)


@pytest.mark.parametrize(
    ("depth", "counted", "count"),
    [
        (16, {"bias": False, "skip_norms": False, "gains": False}, 2_748_890),
        (16, {"bias": True, "skip_norms": False, "gains": False}, 2_751_146),
        (16, {"bias": True, "skip_norms": True, "gains": False}, 2_751_562),
        (16, {"bias": True, "skip_norms": True, "gains": True}, 2_753_818),
        (40, {"bias": True, "skip_norms": True, "gains": True}, 8_961_306),
    ],
)
def test_the_independent_count_gives_the_numbers_of_the_docstring(depth, counted, count):
    assert expected_weights(depth, 4, **counted) == count


def naive_kernel(weight: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    """Standardise filter by filter, in plain Python numbers."""
    kernel = torch.empty_like(weight)
    for channel, entries in enumerate(weight.flatten(1).tolist()):
        mean = sum(entries) / len(entries)
        energy = sum((entry - mean) ** 2 for entry in entries)  # fan-in times variance
        scale = gain[channel].item() / math.sqrt(max(energy, 1e-4))
        kernel[channel] = weight.new_tensor([(entry - mean) * scale for entry in entries]).view(weight.shape[1:])
    return kernel


@pytest.fixture
def standardised() -> StandardisedConv2d:
    layer = StandardisedConv2d(5, 7, 3, padding=1).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator(parameter.numel()), dtype=torch.float64))
    return layer


def test_weight_standardisation_equals_a_loop_over_filters(standardised):
    with torch.no_grad():
        standardised.weight[0] *= 1e-4  # below the floor of the variance
        standardised.weight[1] = 0.7  # without variance
    kernel = naive_kernel(standardised.weight, standardised.gain)
    x = torch.randn(2, 5, 6, 6, generator=generator(1), dtype=torch.float64)
    torch.testing.assert_close(standardised(x), F.conv2d(x, kernel, standardised.bias, padding=1))
    assert standardised.kernel()[0].abs().max() > 0
    torch.testing.assert_close(standardised.kernel()[1], torch.zeros(5, 3, 3, dtype=torch.float64))


def test_a_standardised_filter_has_mean_zero_and_variance_gain_squared_over_fan_in(standardised):
    filters = standardised.kernel().flatten(1)
    zeros = torch.zeros(7, dtype=torch.float64)
    torch.testing.assert_close(filters.mean(1), zeros)
    torch.testing.assert_close(filters.var(1, correction=0), standardised.gain.square() / 45)


def test_a_standardised_convolution_ignores_the_scale_and_offset_of_each_raw_filter(standardised):
    x = torch.randn(2, 5, 6, 6, generator=generator(1), dtype=torch.float64)
    before = standardised(x)
    with torch.no_grad():
        scale = torch.linspace(0.2, 5, 7, dtype=torch.float64)[:, None, None, None]
        offset = torch.linspace(-3, 3, 7, dtype=torch.float64)[:, None, None, None]
        standardised.weight.mul_(scale).add_(offset)
    torch.testing.assert_close(standardised(x), before)


def test_a_filter_without_variance_has_a_finite_gradient(standardised):
    with torch.no_grad():
        standardised.weight.fill_(0.7)
    x = torch.randn(2, 5, 6, 6, generator=generator(1), dtype=torch.float64)
    standardised(x).square().sum().backward()
    assert standardised.weight.grad.isfinite().all()


def test_weight_standardisation_is_of_every_convolution_and_never_of_the_head():
    network = build(WideResNet(depth=10, widen=2, **DE), 3, 8, 10, generator())
    convolutions = [layer for layer in network.modules() if isinstance(layer, torch.nn.Conv2d)]
    assert len(convolutions) == 1 + 3 * 3
    assert all(isinstance(layer, StandardisedConv2d) for layer in convolutions)
    assert all(torch.equal(layer.gain, torch.ones(layer.out_channels)) for layer in convolutions)
    assert type(network.head) is torch.nn.Linear


@pytest.mark.parametrize("options", [DE, PREDECESSOR])
def test_a_private_network_survives_safetensors(options):
    model = WideResNet(depth=10, widen=2, **options)
    network = randomised(build(model, 3, 8, 10, generator())).eval()
    x = torch.randn(2, 3, 8, 8, generator=generator(1))
    again = restore(model, 3, 8, 10, load(save(network.state_dict())))
    assert torch.equal(again(x), network(x))
    assert torch.equal(network(x), network(x))


def distribution(initialisation: str, std: float) -> stats.rv_continuous:
    """Return what a layer's weights should follow: std after truncation, which is at 2 of the std before it."""
    if initialisation == "normal":
        return stats.norm(scale=std)
    before = std / stats.truncnorm.std(-2, 2)
    return stats.truncnorm(-2, 2, scale=before)


@pytest.mark.parametrize("initialisation", ["normal", "truncated-normal"])
@pytest.mark.parametrize("layer", ["blocks.1.conv1", "blocks.2.projection", "head"])
def test_normal_weights_have_the_moments_bounds_and_shape_they_should(initialisation, layer):
    model = WideResNet(depth=10, widen=8, bias=True, initialisation=initialisation)
    state = build(model, 3, 8, 100, generator(5)).state_dict()
    weights = state[f"{layer}.weight"].double()
    law = distribution(initialisation, 1 / math.sqrt(weights[0].numel()))
    count, tail = weights.numel(), stats.norm.isf(FALSE_ALARM / 2)
    assert abs(weights.mean()) < tail * law.std() / math.sqrt(count)
    kurtosis = law.stats(moments="k") + 2
    assert abs(weights.square().mean() / law.var() - 1) < tail * math.sqrt(kurtosis / count)
    assert stats.kstest(weights.flatten().numpy(), law.cdf).pvalue > FALSE_ALARM
    assert weights.abs().max() <= law.support()[1] * (1 + 1e-6)
    assert weights.abs().max() > 2.2 / math.sqrt(weights[0].numel())  # missed with probability < exp(-count / 100)
    assert not state[f"{layer}.bias"].any()


@pytest.mark.parametrize("initialisation", ["normal", "truncated-normal"])
def test_normal_initialisation_without_biases_leaves_norms_at_one_and_zero(initialisation):
    network = build(WideResNet(depth=10, widen=1, initialisation=initialisation), 3, 8, 10, generator())
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            assert torch.equal(layer.weight, torch.ones_like(layer.weight))
            assert not layer.bias.any()


def naive_logits(state: dict[str, torch.Tensor], x: torch.Tensor, second: bool, standardise: bool) -> torch.Tensor:
    """Compute the relu-norm WRN-16-2 from its weights alone."""

    def conv(name: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
        weight = state[f"{name}.weight"]
        kernel = naive_kernel(weight, state[f"{name}.gain"]) if standardise else weight
        return F.conv2d(x, kernel, state[f"{name}.bias"], stride=stride, padding=weight.shape[-1] // 2)

    def relu_norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.group_norm(x.clamp(min=0), 16, state[f"{name}.weight"], state[f"{name}.bias"])

    x = conv("stem", x)
    for block in range(6):
        name, stride, projects = f"blocks.{block}", 2 if block in (2, 4) else 1, block % 2 == 0
        skip = conv(f"{name}.projection", relu_norm(f"{name}.projection_norm", x), stride) if projects else x
        x = conv(f"{name}.conv1", relu_norm(f"{name}.norm1", x), 1 if second else stride)
        x = conv(f"{name}.conv2", relu_norm(f"{name}.norm2", x), stride if second else 1) + skip
    features = relu_norm("norm", x).mean((2, 3))
    return features @ state["head.weight"].T + state["head.bias"]


@pytest.mark.parametrize(("options", "second", "standardise"), [(DE, False, True), (PREDECESSOR, True, False)])
def test_relu_norm_networks_equal_a_forward_written_by_hand(options, second, standardise):
    network = randomised(build(WideResNet(depth=16, widen=2, **options), 3, 8, 10, generator())).double()
    x = torch.randn(3, 3, 8, 8, generator=generator(1), dtype=torch.float64)
    torch.testing.assert_close(network(x), naive_logits(network.state_dict(), x, second, standardise))


def test_relu_norm_before_pooling_is_refused_for_instance_norm():
    with pytest.raises(ValidationError, match=r"relu-norm with instance norm.*use norm: group"):
        WideResNet(order="relu-norm", norm="instance")


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_weight_standardisation_is_refused_where_a_norm_undoes_it(norm):
    with pytest.raises(ValidationError, match=rf"with {norm} norm, .* use norm: group or norm: none"):
        WideResNet(weight_standardisation=True, norm=norm)


def families(norm: str) -> list:
    wide = {"depth": 10, "norm": norm}
    models = [
        ResNet(width=4, blocks=(1, 2), norm=norm),
        WideResNet(widen=1, **wide),
        WideResNet(widen=2, bias=True, downsample="second", **wide),
        ConvNet(depth=2, width=32, norm=norm),
        SmallNet(width=32, hidden=12, norm=norm),
    ]
    if norm != "instance":
        models += [WideResNet(widen=2, **options | wide) for options in (DE, PREDECESSOR)]
        models += [WideResNet(widen=2, weight_standardisation=True, **wide)]
    return models


ALL = [model for norm in ("group", "instance", "none") for model in families(norm)] + [MLP(hidden=(12, 7))]


def cancelled(model, network: torch.nn.Module) -> set[str]:
    """Name what only shifts or scales channels that an instance norm then standardises: biases, gains.

    Group norm with one channel a group is instance norm, as on the 16 channels of a wide network's stem.
    """
    layers = {name for name, layer in network.named_modules() if isinstance(layer, torch.nn.Conv2d)}
    match model:
        case ConvNet(norm="instance") | WideResNet(norm="instance", bias=True):
            return {f"{layer}.bias" for layer in layers}
        case WideResNet(norm="group", widen=2, order="norm-relu"):
            return {"stem.bias", "stem.gain"} & network.state_dict().keys()
    return set()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("model", ALL, ids=repr)
def test_gradients_of_single_examples_add_up_to_the_gradient_of_the_batch(model, layout):
    network = randomised(build(model, 3, 8, 5, generator())).to(memory_format=layout)
    x = torch.randn(6, 3, 8, 8, generator=generator(1)).contiguous(memory_format=layout)
    y = torch.arange(6) % 5

    def loss(parameters, image, label):
        return F.cross_entropy(functional_call(network, parameters, (image[None],)), label[None])

    parameters = {name: parameter.detach() for name, parameter in network.named_parameters()}
    each = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, x, y)
    F.cross_entropy(network(x), y, reduction="sum").backward()
    for name, parameter in network.named_parameters():
        largest = each[name].abs().max().item()
        torch.testing.assert_close(each[name].sum(0), parameter.grad, rtol=0, atol=1e-4 * largest + 1e-6)
    zero = {name for name, gradients in each.items() if gradients.abs().max() < 1e-5}
    assert zero == cancelled(model, network)


@pytest.mark.parametrize("model", ALL, ids=repr)
def test_the_gradient_is_that_of_finite_differences(model):
    network = randomised(build(model, 3, 8, 5, generator())).double()
    x = torch.randn(3, 3, 8, 8, generator=generator(1), dtype=torch.float64)
    point = {name: parameter.detach() for name, parameter in network.named_parameters()}
    step, noise = 1e-8, generator(2)  # so small a step crosses no kink of a ReLU
    direction = {
        name: torch.randn(tensor.shape, generator=noise, dtype=torch.float64) for name, tensor in point.items()
    }

    def loss(distance: float) -> torch.Tensor:
        moved = {name: tensor + distance * direction[name] for name, tensor in point.items()}
        return F.cross_entropy(functional_call(network, moved, (x,)), torch.arange(3))

    F.cross_entropy(network(x), torch.arange(3)).backward()
    slope = sum((parameter.grad * direction[name]).sum() for name, parameter in network.named_parameters())
    torch.testing.assert_close((loss(step) - loss(-step)) / (2 * step), slope, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("options", [DE, PREDECESSOR])
def test_stacked_private_networks_compute_as_each_alone(options):
    model = WideResNet(depth=10, widen=1, **options)
    networks = [randomised(build(model, 3, 8, 5, generator(seed)), seed) for seed in range(2)]
    x = torch.randn(2, 3, 3, 8, 8, generator=generator(1))
    alone = torch.stack([network(images) for network, images in zip(networks, x, strict=True)])
    torch.testing.assert_close(Stack(networks).logits(x), alone, atol=1e-4, rtol=1e-4)
