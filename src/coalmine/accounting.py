"""What a mechanism guarantees: its (epsilon, delta)-differential privacy.

DP-SGD publishes, at every step, the clipped gradients of a Poisson sample plus Gaussian noise. Two accountants bound
the epsilon of all steps together. Both are upper bounds, for adding or removing one example:

rdp: Renyi differential privacy of the subsampled Gaussian (Mironov, Talwar and Zhang 2019) by opacus, turned into
    (epsilon, delta) by Balle et al. (2020), Theorem 21. Milliseconds, but usually 4 to 20 % loose. The best order nears
    1 as the noise vanishes: opacus' own orders begin at 1.1, which for next to no noise makes epsilon hundreds of times
    too large. Ours begin at 1 + 1e-12 and end at 10^6.
pld: the privacy loss distribution (Koskela et al. 2020), composed by FFT, by dp_accounting. Tight: it is rounded with
    "connect the dots" (Doroshenko et al. 2022), which only ever adds to epsilon.

Such an FFT may take any time and memory, so the PLD has limits. How fine its grid is follows from the mechanism alone:
it adds 0.06 % to epsilon, for extreme mechanisms up to 1 % (``FINEST``, ``COARSEST``), or the accountant refuses. What
it accepts takes up to 5 s and 300 MB. It runs in a process of its own, which is killed when its time is over; only
this last resort depends on the speed of the machine.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, logsumexp

from coalmine.errors import CoalmineError
from coalmine.mechanism import Mechanism

Accountant = Literal["pld", "rdp"]

SECONDS = 300.0
"""How long the PLD may run; alone on one core it takes a few seconds at most, calibration a minute."""

FINEST, COARSEST = 0.05, 0.2
"""The grid's interval over the scale of the loss, where it may choose and at most.

A ratio k adds at most about k^2 / 4 of epsilon: 0.06 % and 1 %.
"""

LONGEST_INTERVAL = 4.0
"""The largest interval, in units of the loss: e^interval enters the rounding."""

MOST_POINTS, MOST_POINTS_OF_ONE_STEP = 2**21, 2**18
"""Limits on the grid of all steps (80 bytes and a microsecond a point) and of one step (10 microseconds a point)."""

TAIL = 10.0
"""One step's noise is cut at so many standard deviations (dp_accounting cuts off e^-50)."""

CUT_MASS = 1e-15
"""The probability that dp_accounting cuts off all steps together, and counts as infinite loss."""

LARGEST_EPSILON = 1e12
"""What the PLD looks for; far beyond what its grid admits."""

ROUNDING = float(np.finfo(np.float64).eps)
"""What one step may add to the rounding error of delta; four times what is seen against the closed form."""

ORDERS = (
    *(1 + 10.0 ** (np.arange(-2400, 200) / 200)).tolist(),
    *np.unique(np.round(np.geomspace(11, 1e6, 1000))).tolist(),
)
"""Renyi orders, ever larger; their excess above 1 grows by 1.2 % or to the next whole number.

From 11 on they are whole, as in opacus' own list: its series for other large orders stops before it begins, and
returns far too little (q 0.5, order 65.5: a negative divergence).
"""

ORDER_2 = ORDERS.index(2.0)

STRIDES = (128, 32, 8, 2, 1)

OPACUS_ORDERS_TO = 1000.0
"""Beyond, opacus' binomial coefficients overflow."""

LEAST_NOISE, MOST_NOISE = 1e-3, 1e6
"""What calibration considers, as multiples of the clipping norm."""


class AccountingLimit(CoalmineError):  # noqa: N818 (a limit met, and answered by the other accountant)
    """The PLD accountant gives no epsilon within its limits; RDP does."""


@dataclass(frozen=True)
class Guarantee:
    """(epsilon, delta) of a mechanism and how it was found.

    Attributes:
        mechanism: what is guaranteed.
        delta: in (0, 1).
        epsilon: an upper bound, by ``accountant``.
        accountant: the one that gave ``epsilon``: the one asked for, or RDP in place of a PLD that met its limits.
        by_accountant: epsilon by "rdp" and by "pld"; None for a PLD that met its limits.
        note: empty, or a sentence: why another accountant than the one asked for.
    """

    mechanism: Mechanism
    delta: float
    epsilon: float
    accountant: Accountant
    by_accountant: dict[str, float | None]
    note: str


def account(
    mechanism: Mechanism, delta: float, accountant: Accountant = "pld", *, seconds: float = SECONDS
) -> Guarantee:
    """Return epsilon of a mechanism at ``delta``, by both accountants.

    Args:
        mechanism: what to account for.
        delta: in (0, 1).
        accountant: whose epsilon counts. A PLD that meets its limits is replaced by RDP, and the note says so.
        seconds: limit on the PLD's time.

    Raises:
        CoalmineError: if delta is outside its range, or the noise is too little for any accountant.
    """
    _require_accountant(accountant)
    rdp = rdp_epsilon(mechanism, delta)
    try:
        pld, limit = pld_epsilon(mechanism, delta, seconds=seconds), ""
    except AccountingLimit as met:
        pld, limit = None, str(met)
    return _guarantee(mechanism, delta, accountant, rdp, pld, limit)


def calibrate(
    epsilon: float,
    delta: float,
    sampling_rate: float,
    steps: int,
    accountant: Accountant = "pld",
    *,
    seconds: float = SECONDS,
) -> Guarantee:
    """Return the mechanism of least noise whose epsilon is at most the one asked for.

    The noise multiplier has 4 significant digits and the next smaller such number misses the target. If the PLD meets
    its limits, RDP chooses: that is more noise, and the guarantee holds as well.

    Args:
        epsilon: the target, above 0.
        delta: in (0, 1).
        sampling_rate: probability of each example to take part in a step, in (0, 1].
        steps: number of steps, at least 1.
        accountant: whose epsilon has to meet the target.
        seconds: limit on the PLD's time, over the whole search.

    Raises:
        CoalmineError: if an argument is outside its range, or no noise multiplier from ``LEAST_NOISE`` to
            ``MOST_NOISE`` has this epsilon.
    """
    _require_accountant(accountant)
    if not 0 < epsilon < math.inf:
        raise CoalmineError(f"epsilon is {epsilon}: give a finite number above 0, the guarantee to reach")
    mechanism = _least_noise(rdp_epsilon, Mechanism(1.0, sampling_rate, steps), delta, epsilon)[0]
    if accountant == "rdp":
        return account(mechanism, delta, "rdp", seconds=seconds)
    try:
        _interval(mechanism, delta)
        mechanism, pld = _in_child(mechanism, delta, epsilon, seconds)
    except AccountingLimit as met:
        return _guarantee(mechanism, delta, "pld", rdp_epsilon(mechanism, delta), None, str(met))
    return _guarantee(mechanism, delta, "pld", rdp_epsilon(mechanism, delta), pld, "")


def rdp_epsilon(mechanism: Mechanism, delta: float) -> float:
    """Return an upper bound on epsilon by Renyi differential privacy, the best over all orders.

    Mironov, Talwar and Zhang, "Renyi Differential Privacy of the Sampled Gaussian Mechanism" (2019). Over the orders,
    epsilon is a convex function divided by the order's excess above 1, so it falls to a single minimum and rises: the
    search walks downhill, in ever shorter strides. That orders end at 10^6 costs at most log(1 / delta) 10^-6.

    Args:
        mechanism: what to account for.
        delta: in (0, 1).

    Raises:
        CoalmineError: if delta is outside its range, or there is so little noise that the best order is the first.
    """
    _require_delta(delta)

    @cache
    def bound(place: int) -> float:
        return _rdp_bound(mechanism, delta, ORDERS[place]) if 0 <= place < len(ORDERS) else math.inf

    best = ORDER_2
    for stride in STRIDES:
        for direction in (-stride, stride):
            while bound(best + direction) < bound(best):
                best += direction
    if best == 0:
        raise CoalmineError(
            f"noise_multiplier is {mechanism.noise_multiplier}: epsilon is so large that it cannot be computed, and "
            f"there is no guarantee to state; give more noise, {LEAST_NOISE} or above"
        )
    return max(0.0, bound(best))


def pld_epsilon(mechanism: Mechanism, delta: float, *, seconds: float = SECONDS) -> float:
    """Return an upper bound on epsilon by the privacy loss distribution, at most 1 % above the truth.

    Doroshenko et al., "Connect the Dots: Tighter Discrete Approximations of Privacy Loss Distributions" (2022). The
    larger epsilon of both directions: the example is added, or removed.

    Args:
        mechanism: what to account for.
        delta: in (0, 1).
        seconds: limit on the time, the start of a process (about 1.5 s) included.

    Raises:
        AccountingLimit: if the grid cannot be fine enough, delta is too small for floating point, or time is over.
        CoalmineError: if delta or seconds are outside their ranges.
    """
    _interval(mechanism, delta)
    return _in_child(mechanism, delta, None, seconds)[1]


def _require_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise CoalmineError(
            f"delta is {delta}: give a probability above 0 and below 1, well below one over the number of examples"
        )


def _require_accountant(accountant: str) -> None:
    if accountant not in ("pld", "rdp"):
        raise CoalmineError(f"accountant is {accountant!r}: give 'pld' or 'rdp'")


def _guarantee(
    mechanism: Mechanism, delta: float, asked: Accountant, rdp: float, pld: float | None, limit: str
) -> Guarantee:
    """Return the guarantee by the accountant asked for, or by RDP where the PLD met ``limit``."""
    found: dict[str, float | None] = {"rdp": rdp, "pld": pld}
    if asked == "pld" and pld is not None:
        return Guarantee(mechanism, delta, pld, "pld", found, "")
    note = "" if asked == "rdp" else f"epsilon is by RDP in place of the PLD: {limit}"
    return Guarantee(mechanism, delta, rdp, "rdp", found, note)


def _least_noise(
    epsilon_of: Callable[[Mechanism, float], float], start: Mechanism, delta: float, target: float
) -> tuple[Mechanism, float]:
    """Return the mechanism whose noise is the least of 4 digits that meets ``target``, and its epsilon.

    The place of a number among those of 4 digits is searched, in growing strides from ``start`` and then by bisection.
    """
    found: dict[int, float] = {}
    lowest, highest = _place(LEAST_NOISE), _place(MOST_NOISE)

    def enough(place: int) -> bool:
        found[place] = epsilon_of(replace(start, noise_multiplier=_number(place)), delta)
        return found[place] <= target

    stride = 64
    least = most = _place(start.noise_multiplier)  # too little; enough
    if enough(most):
        while enough(least := max(least - stride, lowest)):
            most, stride = least, 2 * stride
            if most == lowest:
                raise CoalmineError(
                    f"epsilon is {target}: a noise multiplier of {LEAST_NOISE} meets it; give a smaller epsilon"
                )
    else:
        while not enough(most := min(most + stride, highest)):
            least, stride = most, 2 * stride
            if least == highest:
                raise CoalmineError(
                    f"epsilon is {target}: a noise multiplier of {MOST_NOISE:.0f} only reaches {found[highest]:.3g}; "
                    "give a larger epsilon or delta, or a smaller sampling_rate or number of steps"
                )
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (least, middle) if enough(middle) else (middle, most)
    return replace(start, noise_multiplier=_number(most)), found[most]


def _number(place: int) -> float:
    """Return the number of 4 significant digits at a place among them; 1 is at 0, 1.001 at 1, 0.9999 at -1."""
    return float(f"{1000 + place % 9000}e{place // 9000 - 3}")


def _place(number: float) -> int:
    """Return the place of a number of 4 significant digits: the inverse of ``_number``."""
    mantissa, exponent = f"{number:.3e}".split("e")
    return 9000 * int(exponent) + round(1000 * float(mantissa)) - 1000


def _rdp_bound(mechanism: Mechanism, delta: float, order: float) -> float:
    """Return epsilon by one order: Balle et al. (2020), Theorem 21; it may be negative."""
    return _rdp(mechanism, order) + math.log((order - 1) / order) - (math.log(delta) + math.log(order)) / (order - 1)


def _rdp(mechanism: Mechanism, order: float) -> float:
    """Return the Renyi divergence of all steps together, the larger one of both directions."""
    from opacus.accountants.analysis.rdp import compute_rdp

    q, sigma = mechanism.sampling_rate, mechanism.noise_multiplier
    if order > OPACUS_ORDERS_TO and q < 1:
        return mechanism.steps * _log_moment(q, sigma, int(order)) / (order - 1)
    return float(compute_rdp(q=q, noise_multiplier=sigma, steps=mechanism.steps, orders=order))


def _log_moment(q: float, sigma: float, order: int) -> float:
    """Return log A of a whole order: Mironov, Talwar and Zhang (2019), section 3.3, without overflow.

    A is the mean of e^((k^2 - k) / 2 sigma^2) over k of Binomial(order, q); A - 1 is summed, as A is close to 1.
    """
    k = np.arange(2.0, order + 1)
    log_choose = gammaln(order + 1) - gammaln(k + 1) - gammaln(order - k + 1)
    power = (k * k - k) / (2 * sigma**2)
    log_excess = power + np.log(-np.expm1(-power))
    return float(np.logaddexp(0, logsumexp(log_choose + k * math.log(q) + (order - k) * math.log1p(-q) + log_excess)))


class _Losses(NamedTuple):
    """Privacy losses of one step on a grid of outputs, and the probability of each."""

    values: NDArray[np.float64]
    weights: NDArray[np.float64]


def _interval(mechanism: Mechanism, delta: float) -> float:
    """Return the interval of the PLD's grid, in units of the privacy loss; no clock and no measurement enter.

    Rounding moves the mean loss by at most h^2 / 8 a step and adds at most h^2 / 4 to its variance. With
    h = k min(sd of a step, sqrt(epsilon / steps)), both together add about k^2 / 4 of epsilon at most. Rounding errors
    of one step's probabilities are of the order of span / h^2, so that tiny losses need a coarser grid.

    Raises:
        AccountingLimit: if delta is too small for floating point, or no interval is both fine and coarse enough.
    """
    _require_delta(delta)
    if _allowance(mechanism) > delta / 100:
        raise AccountingLimit(
            f"delta is {delta}, too small for the PLD of {mechanism.steps} steps in floating point; give "
            f"{100 * _allowance(mechanism):.0e} or more, or use accountant rdp"
        )
    removed, added = _losses(mechanism)
    steps, span = mechanism.steps, float(np.ptp(removed.values))
    mean = float(removed.weights @ removed.values)
    deviation = math.sqrt(float(removed.weights @ (removed.values - mean) ** 2))
    epsilon = steps * mean + math.sqrt(2 * math.log(1 / delta) * steps) * deviation
    scale = min(deviation, math.sqrt(epsilon / steps), LONGEST_INTERVAL / COARSEST)
    width = max(_width(removed, steps, span), _width(added, steps, span))
    needed = max(width / MOST_POINTS, span / MOST_POINTS_OF_ONE_STEP, 2 * math.sqrt(ROUNDING * steps * span))
    if needed > COARSEST * scale:
        raise AccountingLimit(
            f"a PLD of noise_multiplier {mechanism.noise_multiplier:g}, sampling_rate {mechanism.sampling_rate:g} and "
            f"{steps} steps that is right to 1 % needs a grid {needed / (COARSEST * scale):.1f} times larger than the "
            "limit; use accountant rdp"
        )
    return max(FINEST * scale, needed)


def _losses(mechanism: Mechanism) -> tuple[_Losses, _Losses]:
    """Return the privacy losses of one step, if the example is removed and if it is added."""
    q, sigma = mechanism.sampling_rate, mechanism.noise_multiplier
    z = np.linspace(-TAIL, TAIL, 4001)
    normal = np.exp(-z * z / 2)
    normal /= normal.sum()

    def loss(output: NDArray[np.float64]) -> NDArray[np.float64]:
        ratio = math.log(q) + (2 * output - 1) / (2 * sigma**2)
        return ratio if q == 1 else np.logaddexp(math.log1p(-q), ratio)

    without, sampled = loss(sigma * z), loss(1 + sigma * z)
    mixture = np.concatenate([(1 - q) * normal, q * normal])
    return _Losses(np.concatenate([without, sampled]), mixture), _Losses(-without, normal)


def _width(losses: _Losses, steps: int, span: float) -> float:
    """Return how wide dp_accounting's grid of all steps is: Chernoff's bound at its 20 orders on either side."""
    orders = np.arange(1, 21) / span
    cut = math.log(2 / CUT_MASS)
    upper, lower = (
        (steps * logsumexp(np.outer(signed, losses.values), b=losses.weights, axis=1) + cut) / orders
        for signed in (orders, -orders)
    )
    return min(steps * span, float(upper.min() + lower.min()))


def _allowance(mechanism: Mechanism) -> float:
    """Return the part of delta that is kept for rounding errors of the FFT."""
    return ROUNDING * (mechanism.steps + 100)


def _composed_epsilon(mechanism: Mechanism, delta: float) -> float:
    """Return epsilon by the PLD; to be run where it may take time and memory."""
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism

    one_step = from_gaussian_mechanism(
        mechanism.noise_multiplier,
        sampling_prob=mechanism.sampling_rate,
        value_discretization_interval=_interval(mechanism, delta),
        pessimistic_estimate=True,
        use_connect_dots=True,
    )
    composed = one_step.self_compose(mechanism.steps, tail_mass_truncation=CUT_MASS)
    return _smallest_epsilon(composed.get_delta_for_epsilon, delta - _allowance(mechanism))


def _smallest_epsilon(delta_of: Callable[[float], float], delta: float) -> float:
    """Return epsilon with ``delta_of(epsilon) <= delta``, by bisection and rounded up.

    dp_accounting's own inverse divides by masses that underflow where epsilon is above 700, and then returns infinity.
    """
    if delta_of(0.0) <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while not delta_of(high) <= delta:
        low, high = high, 2 * high
        if high > LARGEST_EPSILON:
            raise AccountingLimit(f"the PLD has no epsilon below {LARGEST_EPSILON:.0e}; use accountant rdp")
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if delta_of(middle) <= delta else (middle, high)
    return high


def _in_child(mechanism: Mechanism, delta: float, target: float | None, seconds: float) -> tuple[Mechanism, float]:
    """Return what ``_answer`` does, from a process of its own that is killed after ``seconds``."""
    if not 0 < seconds < math.inf:
        raise CoalmineError(f"seconds is {seconds}: give a finite number above 0, the PLD's limit of time")
    question = json.dumps({"mechanism": asdict(mechanism), "delta": delta, "target": target})
    package = str(Path(__file__).parents[1])
    path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "coalmine.accounting", question],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise AccountingLimit(
            f"the PLD did not finish in {seconds:g} s; use accountant rdp or give more time"
        ) from None
    if done.returncode < 0:
        raise AccountingLimit(f"the PLD's process was killed by signal {-done.returncode}, perhaps for its memory")
    if done.returncode > 0:
        raise RuntimeError(f"the PLD of {question} failed:\n{done.stderr}")
    answer: dict[str, Any] = json.loads(done.stdout)
    if "limit" in answer:
        raise AccountingLimit(answer["limit"])
    return Mechanism(**answer["mechanism"]), answer["epsilon"]


def _answer(question: str) -> str:
    """Return, as JSON, epsilon of a mechanism by the PLD; or with a target the mechanism that meets it and epsilon."""
    asked = json.loads(question)
    mechanism, delta, target = Mechanism(**asked["mechanism"]), asked["delta"], asked["target"]
    try:
        if target is None:
            epsilon = _composed_epsilon(mechanism, delta)
        else:
            mechanism, epsilon = _least_noise(_composed_epsilon, mechanism, delta, target)
    except CoalmineError as limit:
        return json.dumps({"limit": str(limit)})
    return json.dumps({"mechanism": asdict(mechanism), "epsilon": epsilon})


if __name__ == "__main__":
    print(_answer(sys.argv[1]))
