"""Epsilon against closed forms, quadrature, simulation and published values; and an accountant that always returns."""

import json
import math
import subprocess
import sys
import time
import warnings
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism
from scipy.optimize import brentq
from scipy.special import log_ndtr, logsumexp, ndtr
from scipy.stats import binom

from coalmine import accounting
from coalmine.accounting import AccountingLimit, account, calibrate, pld_epsilon, rdp_epsilon
from coalmine.errors import CoalmineError
from coalmine.mechanism import Mechanism

DE = Mechanism(10.0, 0.08192, 725)
TAN = Mechanism(3.0, 4096 / 50000, 2500)
MEDIUM = Mechanism(0.2, 1 / 25, 5000)
HIGH = Mechanism(0.00625, 1 / 778, 12448)
VERY_HIGH = Mechanism(0.003125, 1 / 778, 19450)
DELTA = 1e-5


def pld(mechanism, delta=DELTA):
    """The PLD's epsilon without the process around it."""
    return accounting._composed_epsilon(mechanism, delta)


def gaussian_delta(mu, epsilon):
    """Balle and Wang (2018), Theorem 8: delta of a Gaussian mechanism whose means are mu standard deviations apart."""
    return ndtr(mu / 2 - epsilon / mu) - np.exp(epsilon + log_ndtr(-mu / 2 - epsilon / mu))


def solve(delta_of, delta, high):
    return brentq(lambda epsilon: delta_of(epsilon) - delta, 0, high, xtol=1e-12, rtol=1e-12)


def densities(mechanism):
    """Outputs of one step, and the log densities without the example and with it, all on a fine grid."""
    q, sigma = mechanism.sampling_rate, mechanism.noise_multiplier
    x = np.linspace(-14 * sigma, 1 + 14 * sigma, 400_001)
    without = -x * x / (2 * sigma**2) - math.log(sigma * math.sqrt(2 * math.pi))
    return x, without, without + np.logaddexp(np.log1p(-q), math.log(q) + (2 * x - 1) / (2 * sigma**2))


def one_step_delta(mechanism, epsilon):
    """The hockey-stick divergence by the trapezium rule, in the worse direction."""
    x, without, with_it = densities(mechanism)
    return max(
        np.trapezoid(np.maximum(0, np.exp(p) - np.exp(epsilon + r)), x)
        for p, r in ((without, with_it), (with_it, without))
    )


def renyi_epsilon(mechanism, delta, orders):
    """The best of ``orders``, with Renyi's divergence by quadrature instead of a series."""
    q, sigma = mechanism.sampling_rate, mechanism.noise_multiplier
    bounds = []
    for order in orders:
        step = sigma * min(sigma, 1) / 50
        x = np.arange(-13 * sigma, order + 13 * sigma, max(step, (order + 26 * sigma) / 2e6))
        log_density = -x * x / (2 * sigma**2) - math.log(sigma * math.sqrt(2 * math.pi)) + math.log(x[1] - x[0])
        log_ratio = np.logaddexp(math.log1p(-q), math.log(q) + (2 * x - 1) / (2 * sigma**2))
        divergence = logsumexp(log_density + order * log_ratio) / (order - 1)
        bounds.append(mechanism.steps * divergence + math.log1p(-1 / order) - math.log(delta * order) / (order - 1))
    assert 0 < np.argmin(bounds) < len(bounds) - 1
    return min(bounds)


def vacuous_epsilon(mechanism, delta):
    """Epsilon where noise is next to nothing, so that an output shows whether the example was in the batch.

    A step's loss is log(1 - q) if it was not, and linear in the noise if it was: given in how many steps it was, the
    loss of all is normal, and delta is a sum over a binomial variable.
    """
    q, sigma, steps = mechanism.sampling_rate, mechanism.noise_multiplier, mechanism.steps
    k = np.arange(1, int(binom.isf(1e-18, steps, q)))
    mean = k * (math.log(q) + 1 / (2 * sigma**2)) + (steps - k) * math.log1p(-q)
    spread = np.sqrt(k) / sigma

    def delta_of(epsilon):
        z = (mean - epsilon) / spread
        return binom.pmf(k, steps, q) @ (ndtr(z) - np.exp(epsilon - mean + spread**2 / 2 + log_ndtr(z - spread)))

    return solve(delta_of, delta, mean[-1])


@pytest.mark.parametrize(
    ("mechanism", "rdp", "tight"), [(DE, (0.8924, 0.8927), (0.8148, 0.8152)), (TAN, (7.09, 7.10), (6.575, 6.585))]
)
def test_published_settings_have_their_known_epsilons(mechanism, rdp, tight):
    """0.893 and 0.815; 7.10, and 6.59 by opacus' PRV."""
    assert rdp[0] < rdp_epsilon(mechanism, DELTA) < rdp[1]
    assert tight[0] < pld(mechanism) < tight[1]


@pytest.mark.parametrize(
    ("sigma", "steps", "delta"),
    [(5.0, 1, 1e-5), (10.0, 100, 1e-5), (10.0, 10_000, 1e-7), (1.0, 3, 1e-10), (0.02, 4, 1e-5)],
)
def test_without_sampling_epsilon_is_that_of_one_gaussian_mechanism(sigma, steps, delta):
    mu = math.sqrt(steps) / sigma
    truth = solve(lambda epsilon: gaussian_delta(mu, epsilon), delta, mu * mu + 20 * mu)
    mechanism = Mechanism(sigma, 1.0, steps)
    assert truth <= pld(mechanism, delta) <= 1.001 * truth
    assert truth <= rdp_epsilon(mechanism, delta) <= 1.2 * truth


@pytest.mark.parametrize(
    ("sigma", "q", "delta"),
    [(1.0, 0.5, 1e-5), (0.5, 0.01, 1e-5), (2.0, 0.3, 1e-4), (0.3, 0.9, 1e-6), (1.0, 0.001, 1e-5)],
)
def test_one_step_is_bounded_from_just_above(sigma, q, delta):
    mechanism = Mechanism(sigma, q, 1)
    truth = solve(lambda epsilon: one_step_delta(mechanism, epsilon), delta, 200.0)
    assert (1 - 1e-6) * truth <= pld(mechanism, delta) <= 1.001 * truth
    assert rdp_epsilon(mechanism, delta) >= (1 - 1e-6) * truth


def test_twenty_steps_are_bounded_and_not_by_much():
    """Simulated delta in both directions; each of the two claims may fail by chance with probability 3e-7."""
    mechanism, delta, draws = Mechanism(1.0, 0.1, 20), 1e-3, 500_000
    rng = np.random.default_rng(0)
    sums = np.zeros((2, draws))
    for _ in range(mechanism.steps):
        noise = rng.standard_normal((2, draws))
        noise[0] += rng.random(draws) < mechanism.sampling_rate  # what is seen if the example is in the data
        loss = np.log(1 - mechanism.sampling_rate + mechanism.sampling_rate * np.exp(noise - 0.5))
        sums += [[1], [-1]] * loss

    def simulated(epsilon):
        exceeding = np.maximum(0, -np.expm1(epsilon - sums))
        return exceeding.mean(axis=1), exceeding.std(axis=1) / math.sqrt(draws)

    tight = pld(mechanism, delta)
    mean, error = simulated(tight)
    assert np.all(mean - 5 * error <= delta)
    mean, error = simulated(0.9 * tight)
    assert np.any(mean - 5 * error > delta)
    assert rdp_epsilon(mechanism, delta) > tight


@pytest.mark.parametrize(
    ("mechanism", "orders"),
    [
        (DE, np.linspace(15, 25, 41)),
        (TAN, np.linspace(3, 6, 61)),
        (Mechanism(50.0, 0.5, 100), np.linspace(30, 70, 41)),
        (Mechanism(5.0, 0.9, 50), np.linspace(3, 12, 61)),
        (Mechanism(100.0, 0.01, 100), np.linspace(1500, 8000, 27)),
        (MEDIUM, 1 + np.geomspace(0.005, 0.1, 31)),
    ],
)
def test_rdp_is_the_best_over_all_orders(mechanism, orders):
    """Never below quadrature with fractional orders; above it by what whole orders from 11 on cost."""
    truth = renyi_epsilon(mechanism, DELTA, orders)
    assert (1 - 1e-3) * truth <= rdp_epsilon(mechanism, DELTA) <= 1.005 * truth


def test_rdp_agrees_with_quadrature_at_any_order():
    rdp_epsilon(DE, DELTA)  # imports may warn
    warnings.simplefilter("error")  # pytest restores it
    rng = np.random.default_rng(1)
    for _ in range(60):
        order = accounting.ORDERS[rng.integers(1200, 3000)]
        q, sigma = float(rng.choice([10 ** rng.uniform(-5, 0), rng.uniform(0.2, 0.8)])), 10 ** rng.uniform(-0.7, 2)
        x = np.arange(-13 * sigma, order + 13 * sigma, sigma * min(sigma, 1) / 50)
        log_ratio = np.logaddexp(math.log1p(-q), math.log(q) + (2 * x - 1) / (2 * sigma**2))
        log_density = -x * x / (2 * sigma**2) - math.log(sigma * math.sqrt(2 * math.pi)) + math.log(x[1] - x[0])
        truth = logsumexp(log_density + order * log_ratio) / (order - 1)
        assert accounting._rdp(Mechanism(sigma, q, 1), order) == pytest.approx(truth, rel=1e-6, abs=1e-10 / (order - 1))


def test_rdp_is_never_looser_than_opacus_and_far_tighter_for_next_to_no_noise():
    from opacus.accountants import RDPAccountant

    def opacus(mechanism):
        accountant = RDPAccountant()
        accountant.history = [(mechanism.noise_multiplier, mechanism.sampling_rate, mechanism.steps)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return accountant.get_epsilon(DELTA)

    for mechanism in (DE, TAN, Mechanism(1.0, 0.01, 1000), Mechanism(0.7, 0.001, 500)):
        assert rdp_epsilon(mechanism, DELTA) <= opacus(mechanism) * (1 + 1e-3)
    assert opacus(VERY_HIGH) == pytest.approx(1.09e9, rel=0.01)
    assert rdp_epsilon(VERY_HIGH, DELTA) < opacus(VERY_HIGH) / 300


@pytest.mark.parametrize(
    ("mechanism", "most", "truth"),
    [
        (MEDIUM, 2444, (2.3e3, 2.4e3)),
        (HIGH, 5.3e5, vacuous_epsilon(HIGH, DELTA) * np.array([1, 1.01])),
        (VERY_HIGH, 2.8e6, vacuous_epsilon(VERY_HIGH, DELTA) * np.array([1, 1.01])),
    ],
    ids=["medium", "high", "veryhigh"],
)
def test_vacuous_settings_have_an_epsilon_within_seconds(mechanism, most, truth):
    """Opacus' PRV hangs on these; 1e7 and more simulated runs put epsilon at 2.3e3, 4.6e5 and 2.5e6."""
    rdp_epsilon(DE, DELTA)  # so that the clock does not measure imports
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        start = time.perf_counter()
        rdp = rdp_epsilon(mechanism, DELTA)
        assert time.perf_counter() - start < 1
        tight = pld(mechanism)
        assert time.perf_counter() - start < 15
    assert truth[0] <= tight <= truth[1]
    assert tight <= rdp <= most


def test_the_vacuous_closed_form_is_what_simulation_found():
    assert vacuous_epsilon(HIGH, DELTA) == pytest.approx(4.6e5, rel=0.01)
    assert vacuous_epsilon(VERY_HIGH, DELTA) == pytest.approx(2.5e6, rel=0.01)


@pytest.mark.parametrize(("sigma", "q", "steps"), [(100.0, 0.01, 100), (10.0, 1e-4, 100_000), (100.0, 1e-5, 100_000)])
def test_many_tiny_losses_add_up_to_a_gaussian_mechanism(sigma, q, steps):
    """Bu et al. (2020): in the limit mu = q sqrt(steps (e^(1 / sigma^2) - 1)). Small losses suffer from rounding."""
    mu = q * math.sqrt(steps * math.expm1(1 / sigma**2))
    limit = solve(lambda epsilon: gaussian_delta(mu, epsilon), 1e-6, 5.0)
    assert pld(Mechanism(sigma, q, steps), 1e-6) == pytest.approx(limit, rel=0.01)
    assert rdp_epsilon(Mechanism(sigma, q, steps), 1e-6) > limit


@pytest.mark.parametrize(("sigma", "steps"), [(10.0, 100), (100.0, 100_000)])
def test_rounding_errors_are_set_aside(sigma, steps, monkeypatch):
    """Where delta is far below what the FFT resolves, its error is seen; epsilon is asked at a delta less than that."""
    mechanism, mu = Mechanism(sigma, 1.0, steps), math.sqrt(steps) / sigma
    far = mu * mu / 2 + np.linspace(7.8, 9, 13) * mu
    composed = from_gaussian_mechanism(sigma, value_discretization_interval=0.02 / sigma).self_compose(steps)
    error = np.abs(composed.get_delta_for_epsilon(far) - gaussian_delta(mu, far))
    assert 0 < error.max() < accounting._allowance(mechanism)
    epsilon = pld(mechanism, 0.99e-5)
    monkeypatch.setattr(accounting, "_allowance", lambda _: 1e-7)
    assert pld(mechanism, 1e-5) == pytest.approx(epsilon, rel=1e-6)


@pytest.mark.parametrize("mechanism", [DE, TAN, MEDIUM, Mechanism(1.0, 0.02, 1000), Mechanism(10.0, 1.0, 10_000)])
@pytest.mark.parametrize("ratio", ["FINEST", "COARSEST"])
def test_the_grid_costs_no_more_than_it_says(mechanism, ratio, monkeypatch):
    interval = getattr(accounting, ratio)
    monkeypatch.setattr(accounting, "FINEST", interval)
    chosen = pld(mechanism)
    monkeypatch.setattr(accounting, "FINEST", 0.01)
    fine = pld(mechanism)
    assert fine < chosen < (1 + interval**2 / 4) * fine


@pytest.mark.parametrize(
    "mechanism", [VERY_HIGH, Mechanism(0.5, 1e-4, 10_000), Mechanism(0.001, 1.0, 3), Mechanism(10.0, 0.001, 200_000)]
)
def test_the_grid_is_no_larger_than_its_limit(mechanism):
    interval = accounting._interval(mechanism, DELTA)
    one_step = from_gaussian_mechanism(
        mechanism.noise_multiplier, sampling_prob=mechanism.sampling_rate, value_discretization_interval=interval
    )
    assert one_step._pmf_remove.size < 1.01 * accounting.MOST_POINTS_OF_ONE_STEP
    for direction in (one_step._pmf_remove, one_step._pmf_add):
        composed = direction.to_dense_pmf().self_compose(mechanism.steps, accounting.CUT_MASS)
        assert composed.size < 1.01 * accounting.MOST_POINTS


@pytest.mark.parametrize("epsilon_of", [rdp_epsilon, pld], ids=["rdp", "pld"])
def test_epsilon_moves_the_right_way(epsilon_of):
    base = epsilon_of(Mechanism(2.0, 0.05, 300), 1e-5)
    assert epsilon_of(Mechanism(2.02, 0.05, 300), 1e-5) < base
    assert epsilon_of(Mechanism(2.0, 0.051, 300), 1e-5) > base
    assert epsilon_of(Mechanism(2.0, 0.05, 310), 1e-5) > base
    assert epsilon_of(Mechanism(2.0, 0.05, 300), 1.1e-5) < base


@pytest.mark.parametrize(("sigma", "steps"), [(0.8, 910), (0.2, 50), (0.016, 4)])
def test_epsilon_is_finite_where_its_exponential_is_not(sigma, steps):
    """dp_accounting's own inverse returns infinity for these."""
    mu = math.sqrt(steps) / sigma
    truth = solve(lambda epsilon: gaussian_delta(mu, epsilon), 8e-7, mu * mu + 20 * mu)
    assert truth > 700
    assert truth <= pld(Mechanism(sigma, 1.0, steps), 8e-7) <= 1.001 * truth


def test_the_epsilon_found_has_its_delta_and_the_next_smaller_has_not():
    def delta_of(epsilon):
        asked.append(epsilon)
        return 0.5 * math.exp(-epsilon / 30)

    for delta in (0.5, 0.6, 0.4999, 0.4, 1e-5, 1e-9):
        asked = []
        found = accounting._smallest_epsilon(delta_of, delta)
        assert delta_of(found) <= delta
        assert found == 0 or delta_of(found * (1 - 2e-9)) > delta
        assert len(asked) < 60


def test_a_delta_that_is_never_reached_is_a_limit():
    for never in (1.0, math.nan):
        with pytest.raises(AccountingLimit, match=r"no epsilon below 1e\+12"):
            accounting._smallest_epsilon(lambda _, delta=never: delta, 0.5)


def test_epsilon_is_zero_where_delta_covers_everything():
    """An example that is sampled with probability q cannot change any probability by more."""
    assert pld(Mechanism(10.0, 1e-7, 1), 1e-5) == 0
    assert pld(Mechanism(0.00625, 1 / 778, 1), 0.01) == 0
    assert rdp_epsilon(Mechanism(1.0, 1.0, 1), 0.99) == 0


def test_account_gives_both_and_counts_the_one_asked_for():
    tight, loose = account(DE, DELTA), account(DE, DELTA, "rdp")
    assert tight.by_accountant == loose.by_accountant == {"rdp": rdp_epsilon(DE, DELTA), "pld": pld(DE)}
    assert (tight.epsilon, tight.accountant, tight.note) == (pld(DE), "pld", "")
    assert (loose.epsilon, loose.accountant, loose.note) == (rdp_epsilon(DE, DELTA), "rdp", "")
    assert (tight.mechanism, tight.delta) == (DE, DELTA)


@pytest.mark.parametrize("accountant", ["rdp", "pld"])
def test_calibrated_noise_is_the_least_that_meets_the_target(accountant):
    epsilon_of = {"rdp": rdp_epsilon, "pld": pld}[accountant]
    found = calibrate(3.0, 1e-5, 0.05, 400, accountant)
    sigma = found.mechanism.noise_multiplier
    assert found.mechanism == Mechanism(float(f"{sigma:.3e}"), 0.05, 400)
    assert (found.accountant, found.note) == (accountant, "")
    assert found.epsilon == found.by_accountant[accountant] == epsilon_of(found.mechanism, 1e-5) <= 3.0
    assert epsilon_of(Mechanism(sigma - 10 ** (math.floor(math.log10(sigma)) - 3), 0.05, 400), 1e-5) > 3.0
    assert epsilon_of(Mechanism(0.99 * sigma, 0.05, 400), 1e-5) > 3.0


@pytest.mark.parametrize("epsilon", [0.01, 1.0, 30.0, 1e4])
def test_calibration_reaches_small_and_large_targets(epsilon):
    start = Mechanism(1.0, 0.02, 100)
    mechanism, found = accounting._least_noise(rdp_epsilon, start, DELTA, epsilon)
    assert found == rdp_epsilon(mechanism, DELTA) <= epsilon
    assert rdp_epsilon(Mechanism(0.99 * mechanism.noise_multiplier, 0.02, 100), DELTA) > epsilon


def test_numbers_of_four_digits_are_numbered():
    assert [accounting._number(place) for place in (-1, 0, 1, 8999, 9000, -27000)] == [
        0.9999,
        1,
        1.001,
        9.999,
        10,
        0.001,
    ]
    for place in (-20_000, -1, 0, 1, 4321, 40_000):
        assert accounting._place(accounting._number(place)) == place


@pytest.fixture
def children(monkeypatch):
    """Every process that the module starts."""
    started = []

    class Recorded(subprocess.Popen):
        def __init__(self, *args, **keywords):
            super().__init__(*args, **keywords)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Recorded)
    return started


def test_without_time_rdp_answers_and_no_process_is_left(children):
    rdp = rdp_epsilon(DE, DELTA)
    start = time.perf_counter()
    with pytest.raises(AccountingLimit, match=r"did not finish in 0\.05 s"):
        pld_epsilon(DE, DELTA, seconds=0.05)
    found = account(DE, DELTA, seconds=0.05)
    assert (found.epsilon, found.accountant, found.by_accountant) == (rdp, "rdp", {"rdp": rdp, "pld": None})
    assert "by RDP in place of the PLD" in found.note
    assert "0.05 s" in found.note
    chosen = calibrate(1.0, DELTA, 0.08192, 725, seconds=0.05)
    assert chosen.accountant == "rdp"
    assert chosen.by_accountant["pld"] is None
    assert "0.05 s" in chosen.note
    assert time.perf_counter() - start < 5
    assert chosen.mechanism == calibrate(1.0, DELTA, 0.08192, 725, "rdp", seconds=0.05).mechanism
    assert len(children) == 4
    assert all(child.returncode is not None for child in children)


def test_a_grid_beyond_the_limit_is_refused_before_any_process_starts(children):
    found = account(Mechanism(0.001, 1 / 778, 19450), DELTA)
    assert found.accountant == "rdp"
    assert 2.4e7 < found.epsilon < 2.7e7
    assert "times larger than the limit" in found.note
    chosen = calibrate(2e7, DELTA, 1 / 778, 19450)
    assert chosen.accountant == "rdp"
    assert chosen.epsilon <= 2e7
    assert "times larger than the limit" in chosen.note
    assert children == []


def test_a_delta_that_floating_point_cannot_resolve_is_refused():
    with pytest.raises(AccountingLimit, match=r"delta is 1e-09, too small for the PLD of 1000000 steps .* rdp"):
        pld_epsilon(Mechanism(10.0, 0.001, 1_000_000), 1e-9)


def test_a_killed_process_is_a_limit_and_a_broken_one_is_loud(monkeypatch):
    said = '{"limit": "told by the process"}'

    def ends_with(code):
        monkeypatch.setattr(
            subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], code, said, "Traceback")
        )

    ends_with(-9)
    with pytest.raises(AccountingLimit, match="killed by signal 9"):
        pld_epsilon(DE, DELTA)
    ends_with(1)
    with pytest.raises(RuntimeError, match="Traceback"):
        pld_epsilon(DE, DELTA)
    ends_with(0)
    with pytest.raises(AccountingLimit, match="told by the process"):
        pld_epsilon(DE, DELTA)


def test_a_limit_met_in_the_process_is_told():
    limit = accounting._answer(
        json.dumps({"mechanism": vars(Mechanism(0.001, 0.1, 10_000)), "delta": 1e-5, "target": None})
    )
    assert "times larger than the limit" in json.loads(limit)["limit"]


def test_a_script_without_a_guard_gets_the_same_bits(tmp_path):
    script = """
from coalmine.accounting import pld_epsilon
from coalmine.mechanism import Mechanism
print(pld_epsilon(Mechanism(10.0, 0.08192, 725), 1e-5).hex())
"""
    (tmp_path / "script.py").write_text(script)
    (tmp_path / "json.py").write_text("raise ImportError('not the json that is meant')")
    done = subprocess.run([sys.executable, "-P", "script.py"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == pld(DE).hex()


def test_importing_is_light_and_the_process_never_needs_torch():
    question = json.dumps({"mechanism": vars(DE), "delta": DELTA, "target": None})
    script = f"""
import sys
from coalmine import accounting
assert not {{"torch", "opacus", "dp_accounting"}} & set(sys.modules)
print(accounting._answer({question!r}))
assert "dp_accounting" in sys.modules and not {{"torch", "opacus"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"mechanism": vars(DE), "epsilon": pld(DE)}


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ((0, 0.1, 1), "noise_multiplier is 0: give a finite number above 0"),
        ((math.nan, 0.1, 1), "noise_multiplier is nan"),
        ((math.inf, 0.1, 1), "noise_multiplier is inf"),
        ((1.0, 1.2, 1), "sampling_rate is 1.2: give a probability"),
        ((1.0, 0.0, 1), "sampling_rate is 0.0"),
        ((1.0, 0.1, 0), "steps is 0: give a whole number"),
        ((1.0, 0.1, 2.5), "steps is 2.5"),
    ],
)
def test_a_mechanism_outside_its_range_is_refused(values, sentence):
    with pytest.raises(CoalmineError, match=sentence):
        Mechanism(*values)


@pytest.mark.parametrize("delta", [0, 1, -1e-5, math.nan])
@pytest.mark.parametrize("epsilon_of", [rdp_epsilon, pld_epsilon, account])
def test_a_delta_outside_its_range_is_refused(epsilon_of, delta):
    with pytest.raises(CoalmineError, match=f"delta is {delta}: give a probability above 0"):
        epsilon_of(DE, delta)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((0, 1e-5, 0.1, 10), "epsilon is 0: give a finite number above 0"),
        ((math.inf, 1e-5, 0.1, 10), "epsilon is inf"),
        ((1e-7, 1e-5, 1.0, 10_000), "a noise multiplier of 1000000 only reaches .*; give a larger epsilon"),
        ((1e12, 1e-5, 0.1, 10), "a noise multiplier of 0.001 meets it; give a smaller epsilon"),
        ((1.0, 0, 0.1, 10), "delta is 0"),
        ((1.0, 1e-5, 1.2, 10), "sampling_rate is 1.2"),
        ((1.0, 1e-5, 0.1, 10, "prv"), "accountant is 'prv': give 'pld' or 'rdp'"),
    ],
)
def test_a_target_that_cannot_be_met_is_refused(arguments, sentence):
    with pytest.raises(CoalmineError, match=sentence):
        calibrate(*arguments)


def test_other_mistakes_are_refused():
    with pytest.raises(CoalmineError, match="noise_multiplier is 1e-09: epsilon is so large"):
        rdp_epsilon(Mechanism(1e-9, 0.1, 10), DELTA)
    with pytest.raises(CoalmineError, match="seconds is 0: give a finite number above 0"):
        pld_epsilon(DE, DELTA, seconds=0)
    with pytest.raises(CoalmineError, match="accountant is 'gdp'"):
        account(DE, DELTA, "gdp")
    with pytest.raises(FrozenInstanceError):
        DE.steps = 3
