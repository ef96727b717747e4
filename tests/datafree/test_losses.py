"""The losses of data-free methods against naive loops, closed forms and finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from coalmine.datafree import losses, statistics
from coalmine.datafree.statistics import History, Inputs, Moments
from coalmine.models.build import build
from coalmine.models.settings import SmallNet


def normal(*shape: int, seed: int = 0, scale: float = 2.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax(logits: np.ndarray) -> np.ndarray:
    exponents = np.exp(logits - logits.max())
    return exponents / exponents.sum()


def network(seed: int = 0):
    return build(SmallNet(width=4, hidden=8), 1, 8, 10, torch.Generator().manual_seed(seed)).eval().double()


def naive_kl(p: np.ndarray, q: np.ndarray) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


# --- divergences -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 3.0, 20.0])
def test_kl_with_temperature_equals_a_naive_computation(temperature) -> None:
    teacher, student = normal(5, 7, seed=1), normal(5, 7, seed=2)
    found = losses.kl(teacher, student, temperature)
    for row in range(5):
        p, q = (softmax(one[row].numpy() / temperature) for one in (teacher, student))
        assert float(found[row]) == pytest.approx(temperature**2 * naive_kl(p, q), rel=1e-10)


def test_the_gradient_of_kl_at_high_temperature_is_that_of_matching_centred_logits() -> None:
    """Hinton et al. (2015), section 2.1: it tends to (student - teacher) / classes if logits are centred."""
    teacher, student = (one - one.mean(dim=1, keepdim=True) for one in (normal(3, 6, seed=1), normal(3, 6, seed=2)))
    student.requires_grad_()
    losses.kl(teacher, student, 1e6).sum().backward()
    torch.testing.assert_close(student.grad, (student - teacher).detach() / 6, rtol=1e-3, atol=1e-5)


def test_js_equals_a_naive_computation_is_symmetric_and_at_most_ln_2() -> None:
    teacher, student = normal(4, 5, seed=1, scale=9.0), normal(4, 5, seed=2, scale=9.0)
    found = losses.js(teacher, student, 2.0)
    for row in range(4):
        p, q = (softmax(one[row].numpy() / 2) for one in (teacher, student))
        middle = (p + q) / 2
        assert float(found[row]) == pytest.approx((naive_kl(p, middle) + naive_kl(q, middle)) / 2, rel=1e-9)
    torch.testing.assert_close(found, losses.js(student, teacher, 2.0))
    opposite = torch.tensor([[900.0, -900.0]])
    assert float(losses.js(opposite, -opposite)) == pytest.approx(math.log(2), rel=1e-6)


def test_js_softens_answers_by_3_unless_told_otherwise() -> None:
    teacher, student = normal(4, 5, seed=1), normal(4, 5, seed=2)
    torch.testing.assert_close(losses.DIVERGENCES["js"](teacher, student), losses.js(teacher / 3, student / 3, 1.0))


def test_l1_is_the_mean_absolute_difference_of_logits() -> None:
    teacher, student = torch.tensor([[1.0, -2.0], [0.5, 0.0]]), torch.tensor([[3.0, 1.0], [0.5, 1.0]])
    assert losses.l1(teacher, student).tolist() == [2.5, 0.5]


@pytest.mark.parametrize("divergence", ["kl", "l1", "js"])
def test_every_divergence_is_zero_for_equal_answers_and_positive_otherwise(divergence) -> None:
    logits = normal(6, 4)
    assert losses.DIVERGENCES[divergence](logits, logits).abs().max() < 1e-12
    assert losses.DIVERGENCES[divergence](logits, normal(6, 4, seed=9)).min() > 1e-3


# --- the adversarial loss ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("divergence", ["kl", "l1", "js"])
def test_the_adversarial_gradient_is_minus_that_of_the_divergence_and_descent_raises_disagreement(divergence) -> None:
    x = normal(6, 1, 8, 8).requires_grad_()
    teacher, student = network(1), network(2)
    disagreement = losses.DIVERGENCES[divergence](teacher(x), student(x)).mean()
    (up,) = torch.autograd.grad(disagreement, x)
    (down,) = torch.autograd.grad(losses.adversarial(teacher(x), student(x), divergence, masked=False), x)
    torch.testing.assert_close(down, -up)
    moved = x - 1e-3 * down / down.norm()
    assert losses.DIVERGENCES[divergence](teacher(moved), student(moved)).mean() > disagreement


@pytest.mark.parametrize("divergence", ["kl", "l1", "js"])
def test_the_adversarial_loss_vanishes_where_the_teacher_is_passed_as_its_own_student(divergence) -> None:
    """The bug of public code: with all its gradients."""
    x = normal(6, 1, 8, 8).requires_grad_()
    answer = network(1)(x)
    loss = losses.adversarial(answer, answer, divergence, masked=False)
    assert abs(loss.item()) < 1e-12
    assert torch.autograd.grad(loss, x)[0].abs().max() < 1e-9


def test_the_mask_keeps_images_on_which_both_name_the_same_class() -> None:
    teacher = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 0.0]])
    student = torch.tensor([[1.0, 0.0], [2.0, 0.0], [4.0, 0.0]])
    each = losses.kl(teacher, student)
    found = losses.adversarial(teacher, student, "kl", masked=True)
    assert float(found) == pytest.approx(-float(each[0] + each[2]) / 3)


# --- the other terms ---------------------------------------------------------------------------------------------


def test_one_hot_is_the_mean_cross_entropy() -> None:
    logits, labels = normal(3, 4), torch.tensor([1, 3, 0])
    expected = np.mean([-math.log(softmax(logits[i].numpy())[label]) for i, label in enumerate(labels)])
    assert float(losses.one_hot(logits, labels)) == pytest.approx(expected, rel=1e-10)


def test_balance_is_the_negative_entropy_of_the_mean_answer() -> None:
    logits = normal(5, 4)
    mean = np.mean([softmax(row.numpy()) for row in logits], axis=0)
    assert float(losses.balance(logits)) == pytest.approx(float((mean * np.log(mean)).sum()), rel=1e-10)
    even = 50 * torch.eye(4)
    assert float(losses.balance(even)) == pytest.approx(-math.log(4), abs=1e-5)
    one_class = 200.0 * torch.nn.functional.one_hot(torch.zeros(4, dtype=torch.int64), 4)
    assert float(losses.balance(one_class)) == 0.0
    # Its gradient pushes answers towards the classes that are missing.
    skewed = torch.tensor([[3.0, 0.0], [3.0, 0.0]], requires_grad=True)
    losses.balance(skewed).backward()
    assert (skewed.grad[:, 0] > 0).all()


def test_balance_has_a_gradient_where_a_class_is_so_unlikely_that_its_mean_is_0() -> None:
    logits = torch.tensor([[200.0, 0.0, 199.0], [200.0, 0.0, 199.0]], requires_grad=True)
    losses.balance(logits).backward()
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad[:, 0] > 0).all()


def test_activation_is_minus_the_mean_absolute_feature() -> None:
    assert float(losses.activation(torch.tensor([[1.0, -3.0], [0.0, 4.0]]))) == -2.0


def test_total_variation_equals_a_naive_loop_over_pixels() -> None:
    x = normal(2, 1, 4, 5)
    squares = np.zeros(4)
    for image in x[:, 0].numpy():
        for row in range(4):
            for column in range(5):
                here = image[row, column]
                right, below = column + 1 < 5, row + 1 < 4
                squares[0] += (image[row, column + 1] - here) ** 2 if right else 0
                squares[1] += (image[row + 1, column] - here) ** 2 if below else 0
                squares[2] += (image[row + 1, column + 1] - here) ** 2 if right and below else 0
                squares[3] += (image[row + 1, column] - image[row, column + 1]) ** 2 if right and below else 0
    assert float(losses.total_variation(x)) == pytest.approx(np.sqrt(squares).sum(), rel=1e-10)


def test_contrast_equals_a_naive_computation_and_prefers_the_own_image() -> None:
    local, whole = (torch.nn.functional.normalize(normal(n, 6, seed=n), dim=1) for n in (3, 5))
    expected = 0.0
    for i in range(3):
        similarities = np.array([float(local[i] @ other) / 0.2 for other in whole])
        expected -= math.log(softmax(similarities)[i]) / 3
    assert float(losses.contrast(local, whole, 0.2)) == pytest.approx(expected, rel=1e-9)
    turned = whole[:3].roll(1, dims=0)
    assert losses.contrast(whole[:3], whole, 0.2) < losses.contrast(turned, whole, 0.2)


# --- batch norm --------------------------------------------------------------------------------------------------


def judged(net, x):
    inputs = Inputs(net)
    with inputs.seen(wanted=True) as maps:
        net(x)
    return [statistics.moments(each) for each in maps]


def test_the_batch_norm_loss_is_zero_for_a_batch_whose_statistics_are_the_running_ones() -> None:
    net, x = network().requires_grad_(False), normal(9, 1, 8, 8)
    # Layer by layer, since each layer's output depends on its statistics.
    for layer, norm in enumerate(statistics.norms(net)):
        own = judged(net, x)[layer]
        norm.running_mean.copy_(own.mean)
        norm.running_var.copy_(own.variance)
    assert float(losses.batch_norm(judged(net, x), statistics.running(net))) < 1e-12
    assert float(losses.batch_norm(judged(net, normal(9, 1, 8, 8, seed=4)), statistics.running(net))) > 0.01


def test_the_batch_norm_loss_has_a_gradient_where_it_is_zero() -> None:
    own = Moments(torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True))
    losses.batch_norm([own], [Moments(torch.ones(3), torch.ones(3))]).backward()
    assert torch.isfinite(own.mean.grad).all()


def test_the_batch_norm_loss_equals_a_naive_loop_over_layers_and_channels() -> None:
    net, x = network(), normal(4, 1, 8, 8)
    maps = []
    hooks = [norm.register_forward_hook(lambda _, inputs, __: maps.append(inputs[0])) for norm in statistics.norms(net)]
    net(x)
    for hook in hooks:
        hook.remove()
    expected = 0.0
    for each, norm in zip(maps, statistics.norms(net), strict=True):
        means = variances = 0.0
        for channel in range(each.shape[1]):
            values = each[:, channel].detach().flatten().numpy()
            means += (values.mean() - float(norm.running_mean[channel])) ** 2
            variances += (values.var() - float(norm.running_var[channel])) ** 2
        expected += math.sqrt(means) + math.sqrt(variances)
    assert len(maps) == 2
    assert losses.batch_norm(judged(net, x), statistics.running(net)).item() == pytest.approx(expected, rel=1e-9)


def test_the_gradient_of_the_batch_norm_loss_agrees_with_finite_differences() -> None:
    net, x = network(), normal(3, 1, 8, 8)

    def loss(images):
        return losses.batch_norm(judged(net, images), statistics.running(net))

    x.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x), x)
    for direction in range(3):
        step = 1e-6 * torch.nn.functional.normalize(normal(3, 1, 8, 8, seed=direction), dim=0)
        difference = (loss(x.detach() + step) - loss(x.detach() - step)).item() / 2
        assert difference == pytest.approx(float((gradient * step).sum()), rel=1e-4)


def test_statistics_of_earlier_batches_are_blended_as_a_moving_average() -> None:
    """A naive loop over one number a batch: what is compared, and what is kept."""
    history = History(0.9)
    values, before = [3.0, 1.0, -2.0, 5.0], None
    for value in values:
        own = [Moments(torch.tensor([value]), torch.tensor([value**2]))]
        expected = value if before is None else 0.9 * before + 0.1 * value
        assert float(history.blend(own)[0].mean) == pytest.approx(expected)
        assert float(history.blend(own)[0].mean) == pytest.approx(expected), "looking changes nothing"
        history.add(own)
        before = expected
    assert float(history.before[0].mean) == pytest.approx(before)
    again = History(0.9)
    again.restore(history.state())
    assert torch.equal(again.before[0].variance, history.before[0].variance)


def test_without_momentum_every_batch_stands_for_itself() -> None:
    history = History(0.0)
    history.add([Moments(torch.tensor([3.0]), torch.tensor([9.0]))])
    assert float(history.blend([Moments(torch.tensor([1.0]), torch.tensor([1.0]))])[0].mean) == 1.0


def test_inputs_are_kept_only_when_wanted_and_describe_each_image() -> None:
    net, x = network(), normal(4, 1, 8, 8)
    inputs = Inputs(net)
    with inputs.seen(wanted=False) as maps:
        net(x)
    assert maps == []
    with inputs.seen(wanted=True) as maps:
        net(x)
    net(x)
    assert [each.shape[1] for each in maps] == [4, 8]
    means = statistics.instance_means(maps)
    assert means.shape == (4, 12)
    assert means[2, 5].item() == pytest.approx(maps[1][2, 1].mean().item())
