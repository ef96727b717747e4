"""The loss of synthetic images: which terms count, who is asked, and what lasts from batch to batch."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import nn

from coalmine.datafree import losses, statistics
from coalmine.datafree.contrast import local_view
from coalmine.datafree.objective import Objective
from coalmine.datafree.settings import TERMS, DataFree
from coalmine.models.build import build, restore
from coalmine.models.settings import SmallNet
from coalmine.training.augment import draw_augmentation, normalise, random_augment
from coalmine.training.recipe import Augmentation, Normalisation

NORMALISATION = Normalisation(mean=(0.3,), std=(0.35,))
PLAIN = Augmentation(flip=False, shift=0)


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def networks(teacher):
    frozen = restore(teacher.model, 1, 8, 10, teacher.state).requires_grad_(False)
    student = build(SmallNet(width=4, hidden=8), 1, 8, 10, stream(5)).eval()
    return frozen, student


def objective(networks: Any, augmentation: Augmentation = PLAIN, **changes: Any) -> Objective:
    base = {
        "one_hot": 0.0,
        "batch_norm": 0.0,
        "adversarial": 0.0,
        "statistics_momentum": 0.0,
        "augmented": False,
        "warmup": 0,
    }
    settings = DataFree(algorithm="fast", **{**base, **changes})
    return Objective(settings, *networks, NORMALISATION, augmentation, stream(6))


def batch(seed: int = 1, images: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    drawn = torch.rand(images, 1, 8, 8, generator=stream(seed))
    return drawn, torch.randint(10, (images,), generator=stream(seed))


def value(chosen: Objective, images: torch.Tensor, labels: torch.Tensor, adversarial: bool = True) -> float:
    return chosen(images, labels, stream(2), adversarial=adversarial).item()


def test_the_loss_is_the_weighted_sum_of_its_terms(networks) -> None:
    images, labels = batch()
    alone = {name: value(objective(networks, **{name: 1.0}), images, labels) for name in TERMS}
    weights = {name: 0.5 + number for number, name in enumerate(TERMS)}
    together = value(objective(networks, **weights), images, labels)
    assert together == pytest.approx(sum(weights[name] * alone[name] for name in TERMS), rel=1e-5)
    assert all(abs(one) > 1e-4 for one in alone.values())


def test_each_term_is_asked_of_the_network_that_it_is_about(networks) -> None:
    frozen, student = networks
    images, labels = batch()
    x = normalise(images, NORMALISATION)
    taught, learned = frozen(x), student(x)
    inputs = statistics.Inputs(frozen)
    with inputs.seen(wanted=True) as maps:
        frozen(x)
    own = [statistics.moments(each) for each in maps]
    expected = {
        "one_hot": losses.one_hot(taught, labels),
        "activation": losses.activation(frozen.features(x)),
        "balance": losses.balance(taught),
        "batch_norm": losses.batch_norm(own, statistics.running(frozen)),
        "adversarial": losses.adversarial(taught, learned, "kl", masked=True),
        "total_variation": losses.total_variation(x),
    }
    for name, loss in expected.items():
        assert value(objective(networks, **{name: 1.0}), images, labels) == pytest.approx(loss.item(), rel=1e-5), name


def test_predicted_labels_are_those_of_the_teacher_whatever_was_drawn(networks) -> None:
    images, labels = batch()
    named = networks[0](normalise(images, NORMALISATION)).argmax(dim=1)
    predicted = objective(networks, one_hot=1.0, target="predicted")
    assert value(predicted, images, labels) == pytest.approx(value(objective(networks, one_hot=1.0), images, named))
    assert value(predicted, images, labels) == value(predicted, images, (labels + 1) % 10)


def test_without_a_student_the_adversarial_loss_is_left_out(networks) -> None:
    images, labels = batch()
    both = objective(networks, one_hot=1.0, adversarial=5.0)
    alone = value(objective(networks, one_hot=1.0), images, labels)
    assert value(both, images, labels, adversarial=False) == pytest.approx(alone)
    assert value(both, images, labels) < alone


def test_images_receive_gradients_and_the_teacher_none(networks) -> None:
    images, labels = batch()
    images.requires_grad_()
    every = objective(networks, **dict.fromkeys(TERMS, 1.0), augmented=True, roll=1)
    every(images, labels, stream(), adversarial=True).backward()
    assert (images.grad.flatten(1).abs().sum(dim=1) > 0).all()
    assert all(parameter.grad is None for parameter in networks[0].parameters())


def test_the_gradient_of_images_comes_through_teacher_and_student(networks) -> None:
    """Half of it, through the student alone or the teacher alone, would be another direction."""
    frozen, student = networks
    images, labels = batch()
    images.requires_grad_()
    loss = objective(networks, adversarial=1.0, masked=False)(images, labels, stream(), adversarial=True)
    x = normalise(images, NORMALISATION)
    naive = -losses.kl(frozen(x), student(x)).mean()
    torch.testing.assert_close(*(torch.autograd.grad(one, images)[0] for one in (loss, naive)))


@pytest.mark.parametrize("flip", [False, True])
def test_teacher_and_student_judge_the_same_images_each_augmented_as_in_training(networks, flip) -> None:
    augmentation, seen = Augmentation(flip=flip, shift=2), []
    for network in networks:
        first = next(layer for layer in network.modules() if isinstance(layer, nn.Conv2d))
        first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images, labels = batch(images=40)
    objective(networks, augmentation, adversarial=1.0, augmented=True)(images, labels, stream(2), adversarial=True)
    mirrored, dy, dx = draw_augmentation(stream(2), 40, augmentation).unbind(-1)
    expected = normalise(random_augment(images, mirrored, dy, dx, 2), NORMALISATION)
    assert len(seen) == 2
    assert all(torch.equal(each, expected) for each in seen)


def test_rolling_moves_all_images_alike_and_mirrors_them_where_the_recipe_does(networks) -> None:
    """60 draws: each of 25 x 2 outcomes is a roll of the batch; a fair coin shows both sides but for 2 in 10^18."""
    images, _ = batch(images=3)
    mirrored, amounts = {False: 0, True: 0}, set()
    for flip in (False, True):
        chosen = objective(networks, Augmentation(flip=flip, shift=0), one_hot=1.0, roll=2)
        for seed in range(60):
            found = chosen._varied(images, stream(seed))
            rolls = rolls_that_give(found, images)
            ((down, right, mirror),) = rolls
            mirrored[flip] += mirror
            amounts |= {("down", down), ("right", right)}
    assert mirrored[False] == 0
    assert 0 < mirrored[True] < 60
    # 120 draws of five amounts: one is missing with a probability below 10^-10.
    assert amounts == {*product(("down", "right"), range(-2, 3))}


def rolls_that_give(found: torch.Tensor, images: torch.Tensor) -> set[tuple[int, int, bool]]:
    """All ways to roll, and mirror, the batch that give what was found."""
    ways = set()
    for down, right, mirror in product(range(-2, 3), range(-2, 3), (False, True)):
        rolled = images.roll((down, right), (2, 3))
        if torch.equal(found, rolled.flip(3) if mirror else rolled):
            ways.add((down, right, mirror))
    return ways


def test_finished_batches_count_in_the_statistics_of_later_ones(networks) -> None:
    images, labels = batch()
    later = 0.2 * images
    chosen = objective(networks, batch_norm=1.0, statistics_momentum=0.9)
    first = value(chosen, images, labels)
    chosen.finish(images)
    # A batch like the one before leaves the blend where it is; another moves it by a tenth only.
    assert value(chosen, images, labels) == pytest.approx(first, rel=1e-4)
    alone = value(objective(networks, batch_norm=1.0), later, labels)
    assert abs(value(chosen, later, labels) - first) < 0.2 * abs(alone - first)


# --- the contrastive loss ----------------------------------------------------------------------------------------


def test_a_local_view_is_a_square_of_the_image_scaled_up() -> None:
    """On a ramp, whose values tell where they are from: areas from a quarter to all, inside the image."""
    ramp = torch.arange(16.0).view(1, 1, 1, 16).expand(500, 1, 16, 16)
    views = local_view(ramp, stream(), flip=False)
    slopes = (views[:, 0, 8, 12] - views[:, 0, 8, 4]) / 8
    assert 0.499 < slopes.min() < 0.52
    assert 0.98 < slopes.max() < 1.001
    # The area is uniform from 1/4 to 1; mean within 5 standard deviations (6e-7).
    assert abs(slopes.square().mean().item() - 0.625) < 5 * 0.75 / (12 * 500) ** 0.5
    torch.testing.assert_close(views[:, 0, 0], views[:, 0, 15])
    # What is left beside the square is divided anywhere: the middle is uniform within it, on both axes.
    for own in (views, local_view(ramp.movedim(2, 3), stream(), flip=False).movedim(2, 3)):
        shifts = (own[:, 0, 8, 7] + own[:, 0, 8, 8]) / 2 - 7.5
        most = 8 * (1 - slopes)
        assert (shifts.abs() <= most + 1e-3).all()
        share = shifts[most > 1] / most[most > 1]
        assert abs(share.mean().item()) < 5 * (1 / 3 / len(share)) ** 0.5
        assert share.min() < -0.9
        assert share.max() > 0.9
    mirrored = local_view(ramp, stream(), flip=True)
    falling = (mirrored[:, 0, 8, 12] < mirrored[:, 0, 8, 4]).float().mean().item()
    assert abs(falling - 0.5) < 5 * 0.5 / 500**0.5


def test_the_bank_keeps_the_last_images_and_makes_telling_apart_harder(networks) -> None:
    chosen = objective(networks, contrastive=1.0, bank=20, negatives=15)
    images, labels = batch()
    alone = value(chosen, images, labels)
    for seed in (3, 4):
        chosen.finish(batch(seed)[0])
    bank = chosen.state()["contrast/bank"]
    assert bank.shape == (20, 24), "8 and 16 channels flow into the two layers"
    fresh = objective(networks, contrastive=1.0)
    fresh.finish(batch(4)[0])
    torch.testing.assert_close(bank[-12:], fresh.state()["contrast/bank"])
    assert value(chosen, images, labels) > alone


def test_views_are_told_apart_from_as_many_earlier_images_as_are_named_drawn_anew(networks, monkeypatch) -> None:
    compared = []
    contrast = losses.contrast

    def looking(local: torch.Tensor, whole: torch.Tensor, temperature: float) -> torch.Tensor:
        compared.append((local, whole))
        return contrast(local, whole, temperature)

    monkeypatch.setattr(losses, "contrast", looking)
    chosen = objective(networks, contrastive=1.0, negatives=5)
    images, labels = batch()
    chosen.finish(batch(3)[0])
    for seed in (1, 2):
        chosen(images, labels, stream(seed), adversarial=True)
    (local, first), (_, second) = compared
    assert (len(local), len(first), len(second)) == (12, 12 + 5, 12 + 5)
    torch.testing.assert_close(first[:12], second[:12])
    assert not torch.allclose(first[12:], second[12:])
    for each in (local, first, second):
        torch.testing.assert_close(each.norm(dim=1), torch.ones(len(each)), msg="of unit length")


def test_what_views_are_compared_with_receives_no_gradient(networks) -> None:
    """Neither the whole images, nor the head by way of them."""
    chosen = objective(networks, contrastive=1.0)._contrast
    local, whole = (torch.randn(6, 24, generator=stream(seed)).requires_grad_() for seed in (1, 2))
    head = [*chosen._head.parameters()]
    found = torch.autograd.grad(chosen.loss(local, whole, stream()), [*head, local, whole], allow_unused=True)
    assert found[-1] is None
    naive = losses.contrast(chosen._project(local), chosen._project(whole).detach(), 0.2)
    for gradient, expected in zip(found, torch.autograd.grad(naive, [*head, local]), strict=False):
        torch.testing.assert_close(gradient, expected)


def test_images_receive_the_gradient_of_their_local_views_which_are_mirrored_where_the_recipe_does(networks) -> None:
    images, labels = batch()
    images.requires_grad_()
    for flip in (False, True):
        augmentation = Augmentation(flip=flip, shift=0)
        chosen = objective(networks, augmentation, contrastive=1.0)
        (found,) = torch.autograd.grad(chosen(images, labels, stream(3), adversarial=True), images)
        views = local_view(images, again := stream(3), flip=flip)
        parts, wholes = (chosen._judge(chosen.seen(each)).means for each in (views, images))
        (expected,) = torch.autograd.grad(chosen._contrast.loss(parts, wholes, again), images)
        torch.testing.assert_close(found, expected)
        assert found.abs().max() > 1e-5


def test_the_head_learns_to_tell_images_apart(networks) -> None:
    chosen = objective(networks, contrastive=1.0, rate=0.002)
    (optimiser,) = chosen.optimisers
    assert (optimiser.defaults["lr"], optimiser.defaults["betas"]) == (0.002, (0.9, 0.999)), "as in the public code"
    images, labels = batch(images=40)
    before = value(chosen, images, labels)
    for step in range(60):
        optimiser.zero_grad()
        chosen(images, labels, stream(100 + step), adversarial=True).backward()
        optimiser.step()
    assert value(chosen, images, labels) < 0.9 * before


def test_a_restored_objective_goes_on_with_the_same_numbers(networks) -> None:
    changes = {"contrastive": 1.0, "batch_norm": 1.0, "statistics_momentum": 0.9}
    images, labels = batch()
    first = objective(networks, **changes)
    (optimiser,) = first.optimisers
    first(images, labels, stream(), adversarial=True).backward()
    optimiser.step()
    first.finish(images)
    other = objective(networks, **changes)
    other.restore({name: tensor.clone() for name, tensor in first.state().items()})
    assert value(other, *batch(seed=8)) == value(first, *batch(seed=8))
    for each in (first, other):
        each.optimisers[0].zero_grad()
        each(images, labels, stream(1), adversarial=True).backward()
        each.optimisers[0].step()
    assert value(other, *batch(seed=8)) == value(first, *batch(seed=8))


def test_a_state_saved_on_the_cpu_goes_back_to_the_device_of_the_teacher(networks) -> None:
    """A device without numbers stands for a card: what is blended there must lie there, too."""
    changes = {"contrastive": 1.0, "batch_norm": 1.0, "statistics_momentum": 0.9}
    first = objective(networks, **changes)
    first(*batch(), stream(), adversarial=True)
    first.finish(batch()[0])
    saved = {name: tensor.clone() for name, tensor in first.state().items()}
    frozen, student = networks
    elsewhere = objective((frozen.to("meta"), student), **changes)
    elsewhere._contrast.restore = lambda state: None  # type: ignore[union-attr]
    elsewhere.restore(saved)
    assert {each.device.type for layer in elsewhere._history.before for each in layer} == {"meta"}
