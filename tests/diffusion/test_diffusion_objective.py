"""EDM and DDPM: preconditioning, weights, noise levels and losses, by hand, by naive loops and by simulation."""

from __future__ import annotations

import math

import pytest
import torch
from denoisers import abars, exact_network, gaussian, generator
from scipy import stats

from coalmine.diffusion import objective
from coalmine.diffusion.objective import build, denoising_loss, draw_times
from coalmine.diffusion.settings import DDPM, EDM, Part

LEVELS = (0.002, 0.1, 0.5, 3.0, 80.0)
EDMS = (EDM(name="edm"), EDM(name="edm", sigma_data=0.3))


def ddpm(**changes) -> DDPM:
    return DDPM(name="ddpm", **changes)


def coefficients(own: EDM, sigma: float) -> tuple[float, float, float, float]:
    """c_skip, c_out, c_in and c_noise of an objective, found by asking it with simple networks."""
    x, each, labels = torch.ones(1, 1, 1, 1, dtype=torch.float64), torch.tensor([sigma]).double(), torch.zeros(1).long()
    seen: list[tuple[float, float]] = []

    def constant(value: float):
        def network(scaled, noise, labels):
            seen.append((float(scaled), float(noise)))
            return torch.full_like(scaled, value)

        return network

    skip = float(build(own).denoise(constant(0.0), x, each, labels))
    out = float(build(own).denoise(constant(1.0), x, each, labels)) - skip
    return skip, out, *seen[0]


# --- EDM -------------------------------------------------------------------------------------------------------------


def test_edm_has_the_coefficients_of_table_1() -> None:
    """By hand, at sigma = sigma_data = 1/2 and at sigma = 3/2."""
    assert coefficients(EDM(name="edm"), 0.5) == pytest.approx((0.5, 0.5**1.5, 2**0.5, math.log(0.5) / 4))
    assert coefficients(EDM(name="edm"), 1.5) == pytest.approx((0.1, 0.75 / 2.5**0.5, 1 / 2.5**0.5, math.log(1.5) / 4))


@pytest.mark.parametrize("own", EDMS, ids=["0.5", "0.3"])
@pytest.mark.parametrize("sigma", LEVELS)
def test_inputs_and_targets_of_an_edm_network_have_unit_variance_by_algebra(own: EDM, sigma: float) -> None:
    skip, out, scale, _ = coefficients(own, sigma)
    data, noise = own.sigma_data**2, sigma**2
    assert scale**2 * (data + noise) == pytest.approx(1)
    assert ((1 - skip) ** 2 * data + skip**2 * noise) / out**2 == pytest.approx(1)
    assert (1 - skip) * data == pytest.approx(skip * noise), "c_skip amplifies the network's errors least"


@pytest.mark.parametrize("own", EDMS, ids=["0.5", "0.3"])
@pytest.mark.parametrize("sigma", LEVELS)
def test_inputs_and_targets_of_an_edm_network_have_unit_variance_by_simulation(own: EDM, sigma: float) -> None:
    """Chi-square tests of 20 variances at 1e-4 each, with fixed seeds: false alarms in 1 of 500 runs."""
    n = 40_000
    images = own.sigma_data * torch.randn(n, 1, 1, 1, generator=generator(1), dtype=torch.float64)
    noise = torch.randn(n, 1, 1, 1, generator=generator(2), dtype=torch.float64)
    x, each, labels = images + sigma * noise, torch.full((n,), sigma).double(), torch.zeros(n).long()
    seen: list[torch.Tensor] = []
    skipped = build(own).denoise(lambda scaled, *_: seen.append(scaled) or 0 * scaled, x, each, labels)
    target = (images - skipped) * build(own).weight(each[:1]).sqrt()
    low, high = stats.chi2.ppf([5e-5, 1 - 5e-5], n)
    for values in (seen[0], target):
        assert low < float(values.square().sum()) < high


@pytest.mark.parametrize("own", EDMS, ids=["0.5", "0.3"])
def test_the_weight_of_edm_makes_the_networks_own_error_count_alike_at_every_level(own: EDM) -> None:
    for sigma in LEVELS:
        assert float(build(own).weight(torch.tensor(sigma))) == pytest.approx(1 / coefficients(own, sigma)[1] ** 2)


def test_levels_of_edm_are_those_of_equation_5() -> None:
    def levels(steps: int, **changes) -> list[float]:
        return build(EDM(name="edm", **changes)).levels(steps).tolist()

    assert levels(4, sigma_min=1.0, sigma_max=10.0, rho=1.0) == pytest.approx([10, 7, 4, 1, 0])
    assert levels(4, sigma_min=1.0, sigma_max=16.0, rho=2.0) == pytest.approx([16, 9, 4, 1, 0])
    assert levels(1, sigma_min=1.0, sigma_max=16.0) == pytest.approx([16, 0])
    ours = levels(18)
    naive = [(80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(18)]
    assert ours == pytest.approx([*naive, 0])
    assert ours[-1] == 0
    assert build(EDM(name="edm")).levels(5).dtype == torch.float64


def test_levels_that_edm_trains_on_are_lognormal() -> None:
    """Kolmogorov-Smirnov at 1e-4, with a fixed seed."""
    sigma = build(EDM(name="edm", p_mean=-0.7, p_std=1.6)).draw((100, 70), generator(0))
    assert sigma.shape == (100, 70)
    assert stats.kstest(sigma.log().flatten().numpy(), "norm", (-0.7, 1.6)).pvalue > 1e-4
    other = build(EDM(name="edm", p_mean=-0.7, p_std=1.6)).draw((100, 70), generator(1))
    assert not torch.equal(sigma, other)


# --- DDPM ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("schedule", "steps"), [("cosine", 1000), ("cosine", 30), ("linear", 1000), ("linear", 100)])
def test_levels_of_ddpm_are_those_of_its_schedule(schedule: str, steps: int) -> None:
    own = ddpm(schedule=schedule, steps=steps)
    naive = [math.sqrt((1 - abar) / abar) for abar in abars(own)]
    torch.testing.assert_close(build(own).levels(steps).tolist(), [*reversed(naive), 0.0], rtol=2e-3, atol=0)


def test_the_schedules_are_those_of_the_papers() -> None:
    """Ho et al.: the signal that is left after 1,000 linear steps; Nichol and Dhariwal: equation 17 itself."""
    left = 1 / (1 + float(build(ddpm(schedule="linear")).levels(1)[0]) ** 2)
    assert left == pytest.approx(4.04e-5, rel=0.01)
    sigma = build(ddpm()).levels(1000)[1000 - 500]  # time step 499, u = 500/1000
    cosine = math.cos((0.5 + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    assert 1 / (1 + float(sigma) ** 2) == pytest.approx(cosine, rel=1e-4)


def test_the_linear_schedule_ends_in_noise_however_many_steps_it_has() -> None:
    for steps in (50, 1000, 4000):
        assert float(build(ddpm(schedule="linear", steps=steps)).levels(1)[0]) > 100


def test_sampling_steps_of_ddpm_are_spread_evenly_from_the_last_time_step_to_the_first() -> None:
    own = build(ddpm())
    every = own.levels(1000).flip(0)  # 0, then the levels of time steps 0, 1, ...
    assert torch.equal(own.levels(4), every[[1000, 667, 334, 1, 0]])
    assert torch.equal(own.levels(1), every[[1000, 0]])
    assert own.levels(7).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_the_time_step_of_a_level_is_found_again(schedule: str, dtype: torch.dtype) -> None:
    own = build(ddpm(schedule=schedule, steps=500))
    levels = own.levels(500)[:-1]
    time = own.time(levels.to(dtype))
    assert time.dtype == dtype
    assert torch.equal(time, torch.arange(499, -1, -1).to(dtype))
    for share, lowest in ((0.45, 0), (0.55, 1)):  # of the way from a level to the next one up, in logarithms
        between = (levels[1:].log() * (1 - share) + levels[:-1].log() * share).exp()
        assert torch.equal(own.time(between.to(dtype)), torch.arange(498 + lowest, lowest - 1, -1).to(dtype))


def waves(x: torch.Tensor, time: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """A network by which any mix-up of images, times or labels is noticed."""
    return torch.sin(1.3 * x) + (0.03 * time - 0.2 * labels).reshape(-1, 1, 1, 1) * x.cos()


def batch(n: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    images = torch.rand(n, 2, 3, 3, generator=generator(1), dtype=torch.float64) * 2 - 1
    noise = torch.randn(n, 2, 3, 3, generator=generator(2), dtype=torch.float64)
    return images, noise, torch.randint(0, 4, (n,), generator=generator(3))


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_the_loss_of_ddpm_is_the_plain_error_of_the_networks_prediction(prediction: str, schedule: str) -> None:
    """Ho et al.'s equation 14 and Salimans and Ho's v, image by image."""
    own = ddpm(prediction=prediction, schedule=schedule, steps=40)
    times = [0, 3, 39, 20, 7, 31]
    images, noise, labels = batch()
    total = 0.0
    for image, epsilon, label, t in zip(images, noise, labels, times, strict=True):
        abar = abars(own)[t]
        x_t = math.sqrt(abar) * image + math.sqrt(1 - abar) * epsilon
        v = math.sqrt(abar) * epsilon - math.sqrt(1 - abar) * image
        predicted = waves(x_t[None], torch.tensor([float(t)]), label[None])[0]
        total += float(((v if prediction == "v" else epsilon) - predicted).square().mean())
    sigma = build(own).levels(40).flip(0)[1:][torch.tensor(times)]
    loss = denoising_loss(build(own), waves, images, sigma, noise, labels)
    assert float(loss) == pytest.approx(total / 6, rel=1e-3)


def test_the_loss_of_edm_is_that_of_a_naive_loop() -> None:
    """Karras et al.'s equation 8: lambda(sigma) c_out^2 |F(c_in (y + n)) - (y - c_skip (y + n)) / c_out|^2."""
    own = EDM(name="edm", sigma_data=0.4)
    images, noise, labels = batch()
    total = 0.0
    for image, normal, label, sigma in zip(images, noise, labels, [*LEVELS, 0.7], strict=True):
        skip, out, scale, c_noise = coefficients(own, sigma)
        x = image + sigma * normal
        found = waves((scale * x)[None], torch.tensor([c_noise]), label[None])[0]
        total += float((found - (image - skip * x) / out).square().mean())
    loss = denoising_loss(build(own), waves, images, torch.tensor([*LEVELS, 0.7]).double(), noise, labels)
    assert float(loss) == pytest.approx(total / 6, rel=1e-5)


OBJECTIVES = [EDM(name="edm", sigma_data=0.3), ddpm(steps=50), ddpm(steps=50, prediction="v")]


@pytest.mark.parametrize("own", OBJECTIVES, ids=["edm", "epsilon", "v"])
def test_the_exact_network_of_gaussian_images_denoises_them_exactly(own: EDM | DDPM) -> None:
    images, noise, labels = batch()
    sigma = build(own).levels(50)[[1, 10, 20, 30, 40, 49]]
    x = images + sigma.reshape(-1, 1, 1, 1) * noise
    found = build(own).denoise(exact_network(own, 0.2, 0.4), x, sigma, labels)
    torch.testing.assert_close(found, gaussian(0.2, 0.4)(x, sigma), rtol=1e-4, atol=1e-4)


def test_a_network_of_zeros_is_exact_for_edm_and_has_loss_1() -> None:
    """Images N(0, sigma_data^2): the normalised errors are standard normal. A chi-square test at 1e-4, fixed seed."""
    own, n = EDM(name="edm"), 30_000
    images = 0.5 * torch.randn(n, 1, 1, 1, generator=generator(1), dtype=torch.float64)
    noise = torch.randn(n, 1, 1, 1, generator=generator(2), dtype=torch.float64)
    sigma = build(own).draw((n,), generator(3)).double()
    loss = denoising_loss(build(own), lambda x, *_: 0 * x, images, sigma, noise, torch.zeros(n).long())
    low, high = stats.chi2.ppf([5e-5, 1 - 5e-5], n) / n
    assert low < float(loss) < high


# --- which time steps ------------------------------------------------------------------------------------------------

MIXTURE = (Part(weight=1.0, low=0, high=3), Part(weight=4.5, low=5, high=9), Part(weight=2.5, low=8, high=10))


@pytest.mark.parametrize("times", [(), MIXTURE], ids=["uniform", "mixture"])
def test_time_steps_are_drawn_from_the_mixture_of_uniforms(times: tuple[Part, ...]) -> None:
    """A chi-square test at 1e-4 for each of two distributions, with a fixed seed: false alarms in 1 of 5,000 runs."""
    expected = [0.0] * 12
    for part in times or (Part(weight=1.0, low=0, high=12),):
        for t in range(part.low, part.high):
            expected[t] += part.weight / sum(one.weight for one in times or [part]) / (part.high - part.low)
    drawn = draw_times(ddpm(steps=12, times=times), (150, 200), generator(7))
    assert drawn.shape == (150, 200)
    assert drawn.dtype == torch.int64
    counts = torch.bincount(drawn.flatten(), minlength=12).tolist()
    assert len(counts) == 12
    possible = [t for t in range(12) if expected[t] > 0]
    assert all(counts[t] == 0 for t in range(12) if t not in possible)
    found = stats.chisquare([counts[t] for t in possible], [30_000 * expected[t] for t in possible])
    assert found.pvalue > 1e-4


def test_no_draw_leaves_its_part_whatever_rounding_does(monkeypatch: pytest.MonkeyPatch) -> None:
    own = ddpm(times=(Part(weight=1.0, low=300, high=1000),))
    for value, time in ((0.0, 300), (1 - 2**-24, 999), (1.0, 999)):
        monkeypatch.setattr(torch, "rand", lambda shape, value=value, **_: torch.full(shape, value))
        assert draw_times(own, (3,), generator()).tolist() == [time] * 3


def test_training_levels_of_ddpm_are_those_of_the_time_steps_drawn() -> None:
    own = ddpm(steps=12, times=MIXTURE)
    sigma = build(own).draw((5, 40), generator(4))
    time = draw_times(own, (5, 40), generator(4))
    assert sigma.dtype == torch.float32
    assert torch.equal(sigma, build(own).levels(12).flip(0)[1:].float()[time])
    seen: list[torch.Tensor] = []
    x = torch.zeros(40, 1, 1, 1)
    build(own).denoise(lambda x, time, _: seen.append(time) or x, x, sigma[2], torch.zeros(40).long())
    assert torch.equal(seen[0], time[2].float()), "the network is told the time step"


def test_objectives_are_built_from_their_own_settings() -> None:
    assert isinstance(build(EDM(name="edm")), objective.EDM)
    assert isinstance(build(ddpm()), objective.DDPM)
