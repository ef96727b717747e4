"""The DP step: against plain SGD, a naive loop, its own bounds, and the distribution of its noise."""

import math

import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn import functional as F

from coalmine.errors import CoalmineError
from coalmine.models.build import build
from coalmine.models.settings import MLP, SmallNet
from coalmine.training.average import MovingAverage
from coalmine.training.dp_step import DPStep, per_example_gradients
from coalmine.training.private import mean_cross_entropy

CLASSES = 4
NO_LIMIT = 1e9


def network(model=None, seed: int = 0) -> nn.Module:
    model = model or SmallNet(width=4, hidden=8, norm="group")
    return build(model, 1, 8, CLASSES, torch.Generator().manual_seed(seed)).double()


def examples(n: int, views: int = 1, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, views, 1, 8, 8, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, CLASSES, (n,), generator=generator)


def step_of(net: nn.Module, **changes) -> DPStep:
    """A step of rate 1 that divides by 1 and adds no noise, unless told otherwise."""
    options = {"clip": 1.0, "noise_multiplier": 0.0, "expected_batch_size": 1, "micro_batch": 3} | changes
    optimiser = options.pop("optimiser", None) or torch.optim.SGD(net.parameters(), lr=1.0)
    options.setdefault("generator", torch.Generator().manual_seed(5))
    return DPStep(net, mean_cross_entropy, optimiser, **options)


def flat(parameters) -> torch.Tensor:
    return torch.cat([one.detach().flatten() for one in parameters])


def update_of(net: nn.Module, *batch: torch.Tensor, **changes) -> torch.Tensor:
    """What one step subtracts from the weights."""
    before = flat(net.parameters())
    step_of(net, **changes)(*batch)
    return before - flat(net.parameters())


def gradient_of(net: nn.Module, views: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """The plain gradient of one example, by autograd."""
    loss = F.cross_entropy(net(views), label.expand(len(views)))
    return flat(torch.autograd.grad(loss, list(net.parameters())))


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-9, atol=1e-12)


def test_without_noise_and_clipping_and_with_one_view_it_is_sgd() -> None:
    private, plain = network(), network()
    x, y = examples(10)
    ours = step_of(
        private,
        clip=NO_LIMIT,
        expected_batch_size=10,
        optimiser=torch.optim.SGD(private.parameters(), lr=0.3, momentum=0.9),
    )
    theirs = torch.optim.SGD(plain.parameters(), lr=0.3, momentum=0.9)
    for _ in range(4):
        ours(x, y)
        theirs.zero_grad()
        F.cross_entropy(plain(x.flatten(0, 1)), y).backward()
        theirs.step()
    assert close(flat(private.parameters()), flat(plain.parameters()))
    assert not close(flat(private.parameters()), flat(network().parameters()))


def test_the_sum_is_that_of_a_naive_loop_over_clipped_gradients() -> None:
    net = network()
    x, y = examples(7, views=3)
    gradients = [gradient_of(net, *example) for example in zip(x, y, strict=True)]
    norms = torch.stack([one.norm() for one in gradients])
    clip = float(norms.median())  # some are clipped, some are not
    assert (norms > clip).any()
    assert (norms < clip).any()
    naive = sum(one * min(1.0, clip / (float(one.norm()) + 1e-6)) for one in gradients) / 5
    assert close(update_of(net, x, y, clip=clip, expected_batch_size=5), naive)


@pytest.mark.parametrize("views", [1, 4])
@pytest.mark.parametrize("model", [SmallNet(width=4, hidden=8, norm="group"), MLP(hidden=(8,))], ids=lambda m: m.name)
def test_no_example_moves_the_sum_by_more_than_the_clipping_norm(model, views) -> None:
    x, y = examples(12, views)
    x = x * torch.logspace(-2, 2, 12, dtype=torch.float64)[:, None, None, None, None]
    whole = update_of(network(model), x, y, clip=0.5)
    for out in range(12):
        rest = [i for i in range(12) if i != out]
        contribution = whole - update_of(network(model), x[rest], y[rest], clip=0.5)
        norm = float(gradient_of(network(model), x[out], y[out]).norm())
        assert contribution.norm() <= 0.5 * (1 + 1e-9)
        assert contribution.norm() == pytest.approx(min(norm, 0.5), rel=1e-5)


def test_views_are_averaged_before_the_norm_is_taken() -> None:
    net = network()
    x, y = examples(5, views=6)
    many = per_example_gradients(net, mean_cross_entropy)(x, y)
    single = [per_example_gradients(net, mean_cross_entropy)(x[:, [view]], y) for view in range(6)]
    for name, gradients in many.items():
        assert gradients.shape == (5, *dict(net.named_parameters())[name].shape)
        assert close(gradients, torch.stack([one[name] for one in single]).mean(0))


def test_micro_batches_change_nothing_and_bound_what_is_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = examples(11, views=2)
    held: list[int] = []

    def update(micro_batch: int) -> torch.Tensor:
        net = network()
        step = step_of(net, micro_batch=micro_batch, noise_multiplier=0.7, clip=0.3)
        gradients = step._gradients
        step._gradients = lambda *part: held.append(len(part[0])) or gradients(*part)
        before = flat(net.parameters())
        for _ in range(2):
            step(x, y)
        return before - flat(net.parameters())

    whole = update(11)
    assert held == [11, 11]
    for size in (1, 4, 100):
        held.clear()
        assert close(update(size), whole)
        assert max(held) <= size
        assert sum(held) == 22


def test_exchanging_examples_changes_nothing() -> None:
    x, y = examples(6, views=2)
    x[4], y[4] = x[1], y[1]
    order = torch.tensor([0, 4, 2, 3, 1, 5])
    one, other = update_of(network(), x, y), update_of(network(), x[order], y[order])
    assert torch.equal(one, other)  # equal examples, the same bits
    assert close(update_of(network(), x.flip(0), y.flip(0)), one)


def test_the_sum_is_divided_by_the_expected_batch_size_whatever_was_drawn() -> None:
    x, y = examples(4)
    reference = update_of(network(), x, y, expected_batch_size=1)
    assert close(update_of(network(), x, y, expected_batch_size=7.5), reference / 7.5)
    doubled = update_of(network(), torch.cat([x, x]), torch.cat([y, y]), expected_batch_size=7.5)
    assert close(doubled, 2 * reference / 7.5)


@pytest.mark.parametrize("drawn", [0, 5])
def test_noise_is_gaussian_with_the_stated_variance(drawn: int) -> None:
    """Chi-square and Kolmogorov-Smirnov tests at 1e-4 each, with a fixed seed: false alarms in 1 of 2,500 runs."""
    x, y = examples(5)
    x, y = x[:drawn], y[:drawn]
    model = MLP(hidden=(64, 64))
    still = update_of(network(model), x, y, clip=0.5, expected_batch_size=20)
    noisy = update_of(network(model), x, y, clip=0.5, expected_batch_size=20, noise_multiplier=3.0)
    noise = (noisy - still) * 20 / (0.5 * 3.0)
    n = len(noise)
    low, high = stats.chi2.ppf([5e-5, 1 - 5e-5], n)
    assert low < float((noise**2).sum()) < high
    assert stats.kstest(noise.numpy(), "norm").pvalue > 1e-4


def test_noise_is_drawn_anew_for_each_update_and_from_its_generator_alone() -> None:
    net = network()
    nothing = examples(5)[0][:0], examples(5)[1][:0]
    step = step_of(net, noise_multiplier=1.0)
    state = torch.get_rng_state()
    updates = []
    for _ in range(2):
        before = flat(net.parameters())
        step(*nothing)
        updates.append(before - flat(net.parameters()))
    n = len(updates[0])
    correlation = float(torch.dot(updates[0], updates[1]) / n)
    assert abs(correlation) < 5 / math.sqrt(n)  # five standard deviations
    assert torch.equal(torch.get_rng_state(), state)
    again = network()
    step_of(again, noise_multiplier=1.0)(*nothing)
    assert close(flat(network().parameters()) - flat(again.parameters()), updates[0])


def test_frozen_parameters_stay_and_take_no_part_in_the_norm() -> None:
    net = network(MLP(hidden=(8,)))
    net.layers.requires_grad_(False)
    x, y = examples(1)
    features = net.features(x[0]).detach()
    loss = F.cross_entropy(net.head(features), y)
    norm = float(flat(torch.autograd.grad(loss, list(net.head.parameters()))).norm())
    before = {name: one.detach().clone() for name, one in net.named_parameters()}
    step_of(net, clip=norm / 2, optimiser=torch.optim.SGD(net.head.parameters(), lr=1.0))(x, y)
    moved = {name: one.detach() - before[name] for name, one in net.named_parameters()}
    assert not any(moved[name].any() for name in moved if name.startswith("layers"))
    assert flat(moved[name] for name in ("head.weight", "head.bias")).norm() == pytest.approx(norm / 2, rel=1e-4)


@pytest.mark.parametrize(
    "layer", [nn.BatchNorm2d(4), nn.SyncBatchNorm(4), nn.InstanceNorm2d(4, track_running_stats=True)]
)
def test_layers_with_statistics_of_the_batch_are_refused(layer: nn.Module) -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), layer)
    with pytest.raises(CoalmineError, match=r"layer 1 .* keeps statistics of the batch.*norm: group"):
        step_of(net)


def test_layers_that_look_at_one_example_only_are_accepted() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(144, 4))
    x, y = examples(3)
    before = flat(net.parameters())
    step_of(net)(x.float(), y)
    assert not torch.equal(before, flat(net.parameters()))


def test_dropout_is_refused_because_its_randomness_would_not_be_the_examples_own() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 4))
    x, y = examples(3)
    with pytest.raises(RuntimeError, match="randomness"):
        step_of(net)(x.float(), y)


def test_the_moving_average_is_that_of_a_naive_loop() -> None:
    net = nn.Linear(3, 2).double()
    average = MovingAverage(net, decay=0.5)
    weights = expected = net.weight.detach().clone()
    for update in range(20):
        with torch.no_grad():
            net.weight.add_(update + 1.0)
        weights = weights + update + 1.0
        decay = min(0.5, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * weights
        average.update()
    assert close(dict(average.items())["weight"], expected)
    assert not close(expected, weights)
