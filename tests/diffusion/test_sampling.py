"""Samplers: against diffusers', against Gaussians whose score is known, and what strength and guidance do."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from denoisers import SMALL_EDM, TINY, abars, exact_network, gaussian, generator, unet
from diffusers import DDIMScheduler, EDMEulerScheduler
from scipy import stats

from coalmine.diffusion.objective import build
from coalmine.diffusion.sampling import conditional, followed, from_pixels, sample, solve, start, to_pixels
from coalmine.diffusion.settings import DDPM, EDM, Sampling

EDM_LEVELS = build(EDM(name="edm")).levels


def normal(n: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, *(shape or (1, 2, 2)), generator=generator(seed), dtype=torch.float64)


def exact_end(x: torch.Tensor, mean: float, std: float, first: float, last: float) -> torch.Tensor:
    """Where the ODE of N(mean, std^2) leads: every x keeps its quantile."""
    return mean + (x - mean) * math.sqrt((std**2 + last**2) / (std**2 + first**2))


# --- the ODE ---------------------------------------------------------------------------------------------------------


FINE = DDPM(name="ddpm", steps=200)


@pytest.mark.parametrize("own", [EDM(name="edm"), FINE, FINE.model_copy(update={"prediction": "v"})])
def test_noise_becomes_images_with_the_right_mean_and_variance(own: EDM | DDPM) -> None:
    """Data N(0.2, 0.3^2): z and chi-square tests at 1e-4 for 3 objectives, fixed seed: false alarms in 1 of 1,700."""
    n, levels = 3_000, build(own).levels(200)
    labels = torch.zeros(n).long()
    denoise = conditional(build(own), exact_network(own, 0.2, 0.3), labels, 1, 0.0, clip=False)
    images = solve(denoise, start(levels, normal(n, 1, 1, 1), None, 1.0), levels, "euler")
    standard = ((images - 0.2) / 0.3).flatten()
    assert abs(float(standard.mean())) * math.sqrt(n) < stats.norm.ppf(1 - 5e-5)
    low, high = stats.chi2.ppf([5e-5, 1 - 5e-5], n)
    assert low < float(standard.square().sum()) < high


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
def test_the_error_falls_with_the_order_of_the_solver(solver: str, order: int) -> None:
    errors = []
    for steps in (40, 80, 160):
        levels = EDM_LEVELS(steps)[:-1]  # the step to 0 is Euler's always
        x = float(levels[0]) * normal(5)
        end = solve(gaussian(0.2, 0.3), x, levels, solver)
        errors.append(float((end - exact_end(x, 0.2, 0.3, 80, 0.002)).abs().max()))
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(2**order, rel=0.15)


def test_heun_steps_are_those_of_algorithm_1() -> None:
    """By hand, for D(x; sigma) = x / (1 + sigma): the trapezoid between two levels, Euler's step to 0."""

    def denoise(x, sigma):
        return x / (1 + sigma)

    x = normal(3)
    first = (x - x / 4) / 3  # at sigma = 3
    euler = x + (1 - 3) * first
    second = (euler - euler / 2) / 1  # at sigma = 1
    there = x + (1 - 3) * (first + second) / 2
    expected = there - 1 * (there - there / 2) / 1
    torch.testing.assert_close(solve(denoise, x, torch.tensor([3.0, 1.0, 0.0]), "heun"), expected)
    torch.testing.assert_close(solve(denoise, x, torch.tensor([3.0, 1.0]), "euler"), euler)


@pytest.mark.parametrize("guidance", [0.0, 1.5])
@pytest.mark.parametrize(("solver", "per_step", "last"), [("euler", 1, 1), ("heun", 2, 1)])
def test_solvers_evaluate_the_network_as_often_as_they_say(
    solver: str, per_step: int, last: int, guidance: float
) -> None:
    calls = []
    own = Sampling(solver=solver, levels=6, guidance=guidance)
    counted = lambda x, *_: calls.append(len(x)) or x  # noqa: E731
    sample(build(SMALL_EDM), counted, torch.zeros(3).long(), 1, normal(3), own)
    assert calls == [3] * ((5 * per_step + last) * (2 if guidance else 1))


# --- diffusers' schedulers -------------------------------------------------------------------------------------------


def predicted(x: torch.Tensor, time: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return torch.sin(1.3 * x) + (0.05 * time).reshape(-1, 1, 1, 1) * torch.cos(x) / 3


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_euler_steps_of_ddpm_are_those_of_ddim(prediction: str, schedule: str, clip: bool) -> None:
    """Step by step against diffusers, where x_t = x / sqrt(1 + sigma^2)."""
    own = DDPM(name="ddpm", steps=25, schedule=schedule, prediction=prediction)
    theirs = DDIMScheduler(
        25,
        0.0001 * 40,
        0.02 * 40,
        {"cosine": "squaredcos_cap_v2", "linear": "linear"}[schedule],
        clip_sample=clip,
        set_alpha_to_one=True,
        prediction_type={"epsilon": "epsilon", "v": "v_prediction"}[prediction],
        timestep_spacing="trailing",
    )
    theirs.set_timesteps(25)
    levels, noise = build(own).levels(25), normal(4)
    denoise = conditional(build(own), predicted, torch.zeros(4).long(), 1, 0.0, clip=clip)
    x = start(levels, noise, None, 1.0)
    x_t = x / (1 + levels[0] ** 2).sqrt()
    for step, time in enumerate(theirs.timesteps):
        output = predicted(x_t, time.double().expand(4), torch.zeros(4))
        x_t = theirs.step(output, int(time), x_t, use_clipped_model_output=True).prev_sample
        x = solve(denoise, x, levels[step : step + 2], "euler")
        torch.testing.assert_close(x / (1 + levels[step + 1] ** 2).sqrt(), x_t, rtol=1e-3, atol=1e-4)
    assert float(x.abs().max()) <= 1 or not clip


def test_fewer_steps_of_ddpm_are_those_of_ddims_equation_12() -> None:
    own, times = DDPM(name="ddpm", steps=50), [49, 37, 24, 12, 0]  # 24.5 is rounded to even
    abar = dict(enumerate(abars(own))) | {-1: 1.0}
    x_t = normal(3) * math.sqrt(1 - abar[49])
    sigma = math.sqrt(1 / abar[49] - 1)
    for t, following in pairwise([*times, -1]):
        epsilon = predicted(x_t, torch.full((3,), float(t)), torch.zeros(3))
        x_0 = (x_t - math.sqrt(1 - abar[t]) * epsilon) / math.sqrt(abar[t])
        x_t = math.sqrt(abar[following]) * x_0 + math.sqrt(1 - abar[following]) * epsilon
    denoise = conditional(build(own), predicted, torch.zeros(3).long(), 1, 0.0, clip=False)
    ours = solve(denoise, sigma * normal(3), build(own).levels(5), "euler")
    torch.testing.assert_close(ours, x_t, rtol=1e-3, atol=1e-3)


def test_euler_steps_of_edm_are_those_of_diffusers() -> None:
    own = EDM(name="edm", sigma_data=0.4, sigma_min=0.01, sigma_max=30.0, rho=5.0)
    theirs = EDMEulerScheduler(sigma_min=0.01, sigma_max=30.0, sigma_data=0.4, rho=5.0)
    theirs.set_timesteps(12)
    levels = build(own).levels(12)
    torch.testing.assert_close(levels.float(), theirs.sigmas)
    noise = normal(4)
    x = start(levels, noise, None, 1.0)
    their_x = x.clone()
    denoise = conditional(build(own), predicted, torch.zeros(4).long(), 1, 0.0, clip=False)
    for step, time in enumerate(theirs.timesteps):
        scaled = theirs.scale_model_input(their_x, time)
        output = predicted(scaled, time.double().expand(4), torch.zeros(4))
        their_x = theirs.step(output, time, their_x).prev_sample
        x = solve(denoise, x, levels[step : step + 2], "euler")
        torch.testing.assert_close(x, their_x, rtol=1e-4, atol=1e-5)


# --- guidance --------------------------------------------------------------------------------------------------------


def labelled(x: torch.Tensor, time: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return torch.sin(x) * (1 + labels).reshape(-1, 1, 1, 1)


def test_guidance_is_linear_and_leads_away_from_no_class() -> None:
    x, sigma, labels = normal(3), torch.tensor(0.7).double(), torch.tensor([0, 2, 1])

    def guided(w: float, clip: bool = False) -> torch.Tensor:
        return conditional(build(SMALL_EDM), labelled, labels, 3, w, clip=clip)(x, sigma)

    each = sigma.expand(3)
    of_class = build(SMALL_EDM).denoise(labelled, x, each, labels)
    of_none = build(SMALL_EDM).denoise(labelled, x, each, torch.full((3,), 3))
    assert torch.equal(guided(0.0), of_class)
    for w in (0.5, 2.0):
        torch.testing.assert_close(guided(w), of_class + w * (of_class - of_none))
    assert (guided(2.0).abs() > 1).any()
    assert torch.equal(guided(2.0, clip=True), guided(2.0).clamp(-1, 1)), "clipped after guidance"


def test_without_guidance_no_class_is_never_asked_for() -> None:
    seen = []
    spy = lambda x, _, labels: seen.append(labels) or x  # noqa: E731
    labels = torch.tensor([2, 0])
    sample(build(SMALL_EDM), spy, labels, 5, normal(2), Sampling(levels=3))
    assert all(torch.equal(one, labels) for one in seen)
    seen.clear()
    sample(build(SMALL_EDM), spy, labels, 5, normal(2), Sampling(levels=1, guidance=0.3))
    assert [one.tolist() for one in seen] == [[2, 0], [5, 5]]


# --- image-to-image --------------------------------------------------------------------------------------------------


def images(n: int = 4) -> torch.Tensor:
    return torch.rand(n, 1, 2, 2, generator=generator(9)) * 2 - 1


@pytest.mark.parametrize("objective", [SMALL_EDM, DDPM(name="ddpm", steps=50)], ids=["edm", "ddpm"])
@pytest.mark.parametrize(
    ("strength", "evaluations"), [(0.0, 0), (0.04, 0), (0.06, 1), (0.34, 3), (0.36, 4), (0.96, 10), (1.0, 10)]
)
def test_strength_is_the_share_of_steps_that_are_made(strength: float, evaluations: int, objective) -> None:
    seen: list[torch.Tensor] = []
    own = build(objective)
    network = lambda x, time, _: seen.append(x) or torch.zeros_like(x)  # noqa: E731
    noise, levels = normal(4).float(), own.levels(10)
    sample(own, network, torch.zeros(4).long(), 1, noise, Sampling(levels=10), images=images(), strength=strength)
    assert len(seen) == evaluations
    assert torch.equal(followed(levels, strength), levels[10 - evaluations :])
    if evaluations and strength < 1:
        x = images() + levels[10 - evaluations].float() * noise
        own.denoise(network, x, levels[10 - evaluations].float().expand(4), torch.zeros(4))
        torch.testing.assert_close(seen[0], seen[-1], rtol=0, atol=0)  # the noised image, as the network is shown it


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("objective", [SMALL_EDM, DDPM(name="ddpm", steps=50)], ids=["edm", "ddpm"])
def test_strength_0_returns_the_images_bit_for_bit(objective, clip: bool) -> None:
    own = Sampling(levels=5, guidance=2.0, clip=clip)
    network = unet(TINY, size=2)
    found = sample(
        build(objective), network, torch.zeros(4).long(), 3, normal(4).float(), own, images=images(), strength=0.0
    )
    assert torch.equal(found, images())


def test_strength_1_forgets_the_images() -> None:
    network, labels, noise = unet(TINY, size=2), torch.tensor([0, 1, 2, 0]), normal(4).float()

    def drawn(start: torch.Tensor | None, strength: float) -> torch.Tensor:
        own = Sampling(levels=5)
        return sample(build(SMALL_EDM), network, labels, 3, noise, own, images=start, strength=strength)

    assert torch.equal(drawn(images(), 1.0), drawn(-images(), 1.0))
    assert torch.equal(drawn(images(), 1.0), drawn(None, 1.0))
    assert not torch.equal(drawn(images(), 0.9), drawn(-images(), 0.9))


def test_what_is_drawn_stays_in_the_range_of_pixels_and_needs_no_gradient() -> None:
    factor = torch.full((), 9.0, requires_grad=True)
    drawn = sample(
        build(SMALL_EDM), lambda x, *_: factor * x, torch.zeros(4).long(), 3, normal(4).float(), Sampling(levels=4)
    )
    assert drawn.abs().max() == 1
    assert not drawn.requires_grad


def test_an_image_depends_on_its_own_noise_and_label_only() -> None:
    network, noise = unet(TINY, size=2), normal(3).float()

    def drawn(noise: torch.Tensor, labels: list[int]) -> torch.Tensor:
        own = Sampling(levels=4, guidance=1.0)
        return sample(build(SMALL_EDM), network, torch.tensor(labels), 3, noise, own)

    before = drawn(noise, [0, 1, 2])
    for after in (drawn(torch.cat([noise[:2], -noise[2:]]), [0, 1, 2]), drawn(noise, [0, 1, 1])):
        torch.testing.assert_close(after[:2], before[:2])
        assert not torch.allclose(after[2], before[2])
    torch.testing.assert_close(drawn(noise[1:2], [1]), before[1:2])


# --- pixels ----------------------------------------------------------------------------------------------------------


def test_all_256_values_of_a_pixel_survive_the_round_trip() -> None:
    pixels = np.arange(256 * 3, dtype=np.int64).reshape(16, 8, 2, 3).astype(np.uint8)
    there = from_pixels(torch.from_numpy(pixels).movedim(-1, 1))
    assert there.dtype == torch.float32
    assert there.shape == (16, 3, 8, 2)
    assert (float(there.min()), float(there.max())) == (-1, 1)
    assert torch.equal(to_pixels(there), torch.from_numpy(pixels))


def test_images_become_the_nearest_pixels() -> None:
    values = torch.tensor([-1.5, -1.0, -0.9965, -0.9955, 0.1, 1.0, 7.0]).reshape(1, 1, 1, 7)
    assert to_pixels(values).flatten().tolist() == [0, 0, 0, 1, 140, 255, 255]
    assert to_pixels(values).dtype == torch.uint8
