"""What makes images: generators that last, start anew or are meta-learned, and pixels."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from coalmine.datafree.generator import Generator
from coalmine.datafree.settings import DataFree
from coalmine.datafree.sources import Fresh, Lasting, Meta, Pixels, make_source
from coalmine.training.recipe import Normalisation

SHAPE = (2, 8, 8)
NORMALISATION = Normalisation(mean=(0.3, 0.5), std=(0.35, 0.2))
CPU = torch.device("cpu")


def settings(algorithm: str, **changes: Any) -> DataFree:
    return DataFree(algorithm=algorithm, **{"batch_size": 6, "latent": 5, "width": 4, **changes})


def source(algorithm: str, seed: int = 0, **changes: Any) -> Any:
    return make_source(settings(algorithm, **changes), SHAPE, NORMALISATION, CPU, stream(seed))


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def brightness(images: torch.Tensor) -> torch.Tensor:
    """A loss with a known minimum: all black."""
    return images.mean()


def weights(network: torch.nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in network.parameters()]


# --- the generator -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 32), (1, 28)])
def test_the_generator_makes_images_from_0_to_1_of_any_size_that_4_divides(channels, size) -> None:
    network = Generator(5, 4, channels, size)
    network.draw(stream())
    images = network(torch.randn(3, 5, generator=stream(1)))
    assert images.shape == (3, channels, size, size)
    assert 0 < images.min() < images.max() < 1


def test_the_generator_has_the_weights_of_the_public_code() -> None:
    """Linear to 128 maps of 8x8, three norms with scale and offset, two convolutions without bias and one with."""
    counted = sum(parameter.numel() for parameter in Generator(256, 64, 3, 32).parameters())
    linear, norms = 257 * 128 * 64, 2 * (128 + 128 + 64)
    assert counted == linear + norms + 9 * (128 * 128 + 128 * 64 + 64 * 3) + 3


def test_drawing_the_generator_takes_all_weights_from_the_given_stream_and_resetting_the_first_layer_only_those() -> (
    None
):
    network, twin = Generator(5, 4, 1, 8), Generator(5, 4, 1, 8)
    network.draw(stream(3)), twin.draw(stream(3))
    assert all(torch.equal(*pair) for pair in zip(weights(network), weights(twin), strict=True))
    network.draw_first_layer(stream(4))
    changed = {
        name
        for (name, own), other in zip(network.named_parameters(), weights(twin), strict=True)
        if not torch.equal(own, other)
    }
    assert changed == {"linear.weight", "linear.bias"}


# --- each source -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["dfq", "cmi", "fast", "reduced", "deepinversion"])
def test_every_source_follows_a_loss_of_its_images(algorithm) -> None:
    made = source(algorithm, rate=0.05)
    attempt = made.begin(stream(1))
    first = brightness(attempt.images()).item()
    for _ in range(30):
        attempt.step(brightness(attempt.images()))
    images = attempt.images()
    assert images.shape == (6, *SHAPE)
    assert brightness(images).item() < first - 0.2


def test_pixels_start_as_normal_noise_where_networks_look_and_stay_images() -> None:
    pixels = source("deepinversion", batch_size=200, rate=3.0)
    assert isinstance(pixels, Pixels)
    attempt = pixels.begin(stream(1))
    mean, std = (torch.tensor(values).view(1, 2, 1, 1) for values in (NORMALISATION.mean, NORMALISATION.std))
    seen = (attempt.images() - mean) / std
    drawn = torch.randn(200, *SHAPE, generator=stream(1))
    torch.testing.assert_close(seen.detach(), drawn, atol=1e-5, rtol=1e-5)
    for sign in (1, -1):
        attempt.step(sign * attempt.images().sum())
        assert attempt.images().min() >= -1e-6
        assert attempt.images().max() <= 1 + 1e-6


def test_a_lasting_generator_draws_new_inputs_at_each_step_unless_it_learns_them() -> None:
    fresh, learned = source("dfq"), source("reduced")
    for made, moves in ((fresh, True), (learned, False)):
        attempt = made.begin(stream(1))
        one, other = attempt.images(), attempt.images()
        assert bool((one - other).abs().max() > 1e-4) == moves


def test_a_lasting_generator_goes_on_from_batch_to_batch_and_a_fresh_one_begins_anew() -> None:
    for algorithm, kind, kept in (("dfq", Lasting, True), ("cmi", Fresh, False)):
        made = source(algorithm)
        assert type(made) is kind
        attempt = made.begin(stream(1))
        attempt.step(brightness(attempt.images()))
        made.finish()
        before = weights(made.network)
        made.begin(stream(2))
        same = all(torch.equal(*pair) for pair in zip(before, weights(made.network), strict=True))
        assert same == kept


def test_a_sample_is_what_the_generator_makes_of_fresh_inputs() -> None:
    made = source("dfq")
    expected = made.network(torch.randn(6, 5, generator=stream(9)))
    torch.testing.assert_close(made.sample(stream(9)), expected.detach())
    assert not made.sample(stream(9)).requires_grad


def test_weights_are_drawn_on_the_cpu_whatever_the_device() -> None:
    """A device without numbers stands for a card, which cannot draw from a stream on the CPU."""
    for algorithm in ("cmi", "fast"):
        for renew in (lambda made: made.begin(stream(1)), lambda made: made.reset()):
            states = []
            for device in ("cpu", "meta"):
                drawn = stream(5)
                made = make_source(settings(algorithm), SHAPE, NORMALISATION, torch.device(device), drawn)
                renew(made)
                states.append(drawn.get_state())
                assert {parameter.device.type for parameter in made.network.parameters()} == {device}
            assert torch.equal(*states)


@pytest.mark.parametrize("algorithm", ["dfq", "fast"])
def test_a_reset_draws_the_first_layer_and_its_norm_anew_and_leaves_the_rest(algorithm) -> None:
    made = source(algorithm)
    with torch.no_grad():
        for parameter in made.network.parameters():
            parameter += 0.5
    before = weights(made.network)
    made.reset()
    after = dict(made.network.named_parameters())
    changed = {name for (name, own), old in zip(after.items(), before, strict=True) if not torch.equal(own, old)}
    assert changed == {"linear.weight", "linear.bias", "norm0.weight", "norm0.bias"}
    assert (after["norm0.weight"] == 1).all()
    assert (after["norm0.bias"] == 0).all()


@pytest.mark.parametrize(
    ("algorithm", "expected"),
    [
        ("dafl", [(0.001, 0.999)]),
        ("dfad", [(0.001, 0.999)]),
        ("zskt", [(0.001, 0.999)]),
        ("dfq", [(0.001, 0.999)]),
        ("deepinversion", [(0.1, 0.99)]),
        ("cmi", [(0.001, 0.999), (0.001, 0.999)]),
        ("fast", [(0.003, 0.999), (0.01, 0.999)]),
        ("reduced", [(0.005, 0.999), (0.015, 0.999)]),
    ],
)
def test_adam_has_the_published_rates_and_decays_for_generator_or_pixels_and_for_inputs(algorithm, expected) -> None:
    """What is moved: the generator or the pixels, then the generator's input; the first decay is 0.5 everywhere."""
    attempt = source(algorithm).begin(stream(1))
    groups = [group for optimiser in attempt.optimisers for group in optimiser.param_groups]
    assert [(group["lr"], *group["betas"]) for group in groups] == [(rate, 0.5, second) for rate, second in expected]


def test_a_step_moves_what_losses_learn_by_the_gradient_of_this_step_alone() -> None:
    weight = torch.ones(1, requires_grad=True)
    other = torch.optim.SGD([weight], lr=1.0)
    attempt = source("deepinversion").begin(stream(1))
    for expected in (0.0, -1.0):
        attempt.step(attempt.images().sum() * 0 + weight.sum(), [other])
        assert weight.item() == expected


def test_learned_inputs_move_and_every_batch_starts_adam_anew() -> None:
    """Adam's first step has the size of its rate, whatever came before: as in the predecessor's code."""
    made = source("reduced")
    for seed in (1, 2):
        before = weights(made.network)
        attempt = made.begin(stream(seed))
        latent = attempt.optimisers[-1].param_groups[-1]["params"][0]
        start = latent.detach().clone()
        attempt.step(brightness(attempt.images()))
        assert (latent - start).abs().max().item() == pytest.approx(0.015, rel=1e-3)
        moved = max((own - old).abs().max().item() for own, old in zip(made.network.parameters(), before, strict=True))
        assert moved == pytest.approx(0.005, rel=1e-3)


# --- meta-learning -----------------------------------------------------------------------------------------------


def inner_gradients(made: Meta, steps: int) -> list[torch.Tensor]:
    """Redo the inner loop by hand: the sum of the gradients of the copy on its way."""
    chosen = made._settings
    adapted = copy.deepcopy(made.network)
    latent = torch.randn(6, 5, generator=stream(1)).requires_grad_()
    betas = (0.5, 0.999)
    optimiser = torch.optim.Adam(adapted.parameters(), lr=chosen.rate, betas=betas)
    of_latent = torch.optim.Adam([latent], lr=chosen.latent_rate, betas=betas)
    total = [torch.zeros_like(parameter) for parameter in adapted.parameters()]
    for _ in range(steps):
        gradients = torch.autograd.grad(brightness(adapted(latent)), [*adapted.parameters(), latent])
        for parameter, gradient in zip([*adapted.parameters(), latent], gradients, strict=True):
            parameter.grad = gradient
        total = [before + gradient for before, gradient in zip(total, gradients[:-1], strict=True)]
        optimiser.step()
        of_latent.step()
    return total


def test_the_outer_gradient_of_fomaml_is_the_sum_of_the_inner_ones() -> None:
    made = source("fast", generator_steps=4)
    assert isinstance(made, Meta)
    expected, before = inner_gradients(made, 4), weights(made.network)
    attempt = made.begin(stream(1))
    for _ in range(4):
        attempt.step(brightness(attempt.images()))
    assert all(torch.equal(*pair) for pair in zip(before, weights(made.network), strict=True)), "the copy moves alone"
    for parameter, total in zip(made.network.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, total)
    made.finish()
    # Adam's first step: the rate of all inner steps together, against the sign of the gradient.
    for start, parameter, total in zip(before, made.network.parameters(), expected, strict=True):
        moved, sure = parameter.detach() - start, total.abs() > 1e-5
        torch.testing.assert_close(moved[sure], -4 * 0.003 * total.sign()[sure], rtol=1e-2, atol=1e-6)


def test_reptile_moves_the_generator_towards_where_its_copy_arrived() -> None:
    made = source("fast", generator_steps=3, meta="reptile")
    before = weights(made.network)
    attempt = made.begin(stream(1))
    for _ in range(3):
        attempt.step(brightness(attempt.images()))
    arrived = weights(made._adapted)
    made.finish()
    for start, end, parameter in zip(before, arrived, made.network.parameters(), strict=True):
        direction = end - start
        sure = direction.abs() > 1e-5
        moved = (parameter.detach() - start)[sure]
        assert (moved.sign() == direction[sure].sign()).all()


def test_gradients_of_one_batch_do_not_reach_the_next() -> None:
    made = source("fast", generator_steps=1)
    for _ in range(2):
        attempt = made.begin(stream(1))
        assert all(parameter.grad is None for parameter in made.network.parameters())
        attempt.step(brightness(attempt.images()))
        made.finish()


# --- taking up ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["dfq", "cmi", "fast", "reduced", "deepinversion"])
def test_a_restored_source_goes_on_with_the_same_numbers(algorithm) -> None:
    def batch(made: Any, seed: int) -> torch.Tensor:
        attempt = made.begin(stream(seed))
        for _ in range(2):
            attempt.step(brightness(attempt.images()))
        images: torch.Tensor = attempt.images().detach()
        made.finish()
        return images

    drawn, again = stream(0), stream(7)
    first = make_source(settings(algorithm), SHAPE, NORMALISATION, CPU, drawn)
    batch(first, 1)
    saved = {name: tensor.clone() for name, tensor in first.state().items()}
    other = make_source(settings(algorithm), SHAPE, NORMALISATION, CPU, again)
    other.restore(saved)
    again.set_state(drawn.get_state())
    for seed in (2, 3):
        assert torch.equal(batch(first, seed), batch(other, seed))
