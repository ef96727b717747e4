"""The statistics of prices: known truths, simulated coverage, and how far extrapolation widens an interval."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from coalmine.costs.pricing import COVERAGE, LEAST_SPREAD, Draws, Estimate, Portion, Prices, main_device
from coalmine.costs.records import FIXED, START, Record
from coalmine.costs.stages import Part
from coalmine.costs.work import Work

DEVICE = "a processor"
RATE, LATENCY, BEGIN = 2e10, 3e-5, 5e-3


def once(operations: float, launches: float) -> float:
    """What the device takes for some work."""
    return BEGIN + operations / RATE + launches * LATENCY


def record(
    folder: str, module: str, operations: float, launches: float, factor: float = 1.0, **other: object
) -> Record:
    """A record of a device with known constants."""
    seconds = factor * once(operations, launches)
    known = {"run": "run", "name": f"{module} {operations:g}", "device": DEVICE, "models": 4, **other}
    return Record(folder=folder, module=module, seconds=seconds, operations=operations, launches=launches, **known)  # type: ignore[arg-type]


def exact() -> list[Record]:
    """Records without any error, of work that tells rate and latency apart."""
    work = [(1e9, 10.0), (1e12, 1e3), (1e8, 1e6), (1e10, 1e5), (1e6, 1.0)]
    return [record(folder, module, *one) for folder in ("models", "synthetic") for module in "ab" for one in work]


def part(folder: str, module: str, operations: float, launches: float) -> Part:
    return Part(folder, module, Work(operations, launches), None)


def priced(prices: Prices, *what: object) -> Estimate:
    estimate = prices.price(part(*what))  # type: ignore[arg-type]
    assert estimate
    return estimate


def test_constants_are_those_that_made_the_records() -> None:
    begin, rate, latency = np.exp(Prices(exact(), DEVICE).constants)
    assert rate == pytest.approx(RATE, rel=0.02)
    assert latency == pytest.approx(LATENCY, rel=0.02)
    assert begin == pytest.approx(BEGIN, rel=0.05)


def test_new_work_of_a_known_module_is_predicted_exactly_where_nothing_errs() -> None:
    estimate = priced(Prices(exact(), DEVICE), "models", "a", 3e11, 2e4)
    assert estimate.seconds == pytest.approx(BEGIN + 3e11 / RATE + 2e4 * LATENCY, rel=0.02)
    assert estimate.level == "module"
    assert estimate.records == 5


def test_a_modules_own_factor_is_found_and_others_keep_theirs() -> None:
    slow = [record("models", "slow", operations, 1e4, factor=7.0) for operations in (1e10, 4e10)]
    prices = Prices([*exact(), *slow], DEVICE)
    assert priced(prices, "models", "slow", 2e10, 1e4).seconds == pytest.approx(7 * once(2e10, 1e4), rel=0.1)
    assert priced(prices, "models", "a", 2e10, 1e4).seconds == pytest.approx(once(2e10, 1e4), rel=0.4)


def test_the_nearest_level_that_has_records_is_used() -> None:
    prices = Prices(exact(), DEVICE)
    assert priced(prices, "models", "new", 1e10, 1e4).level == "stage"
    assert priced(prices, "experts", "new", 1e10, 1e4).level == "device"


def test_farther_levels_have_wider_intervals() -> None:
    prices = Prices(exact(), DEVICE)
    near, farther, farthest = (
        priced(prices, folder, module, 1e10, 1e5)
        for folder, module in (("models", "a"), ("models", "n"), ("experts", "n"))
    )
    widths = [high / low for low, high in (one.interval() for one in (near, farther, farthest))]
    assert widths == sorted(widths)
    assert widths[0] > math.exp(2 * LEAST_SPREAD["module"]), "even perfect records are not believed to the last digit"


def test_the_same_work_done_more_often_is_no_extrapolation_and_larger_work_is() -> None:
    prices = Prices(exact(), DEVICE)
    often = priced(prices, "models", "a", 1e12 * 1000, 1e3 * 1000)
    large = priced(prices, "models", "a", 1e12 * 1000, 1e3)
    assert often.slope == pytest.approx(0, abs=1e-9)
    assert large.slope > 0.3
    assert large.interval()[1] / large.interval()[0] > often.interval()[1] / often.interval()[0]


def test_a_prediction_without_its_own_record_does_not_know_it() -> None:
    wild = [*exact(), record("models", "a", 5e11, 1e4, factor=50.0)]
    prices = Prices(wild, DEVICE)
    without = prices.price(part("models", "a", 5e11, 1e4), without=True)
    assert without
    assert without.seconds == pytest.approx(BEGIN + 5e11 / RATE + 1e4 * LATENCY, rel=0.05)
    assert priced(prices, "models", "a", 5e11, 1e4).seconds > 1.5 * without.seconds


def test_a_faster_device_divides_seconds_and_nothing_else() -> None:
    plain, fast = (priced(Prices(exact(), DEVICE, speed), "models", "a", 1e11, 1e4) for speed in (1.0, 8.0))
    assert fast.seconds == pytest.approx(plain.seconds / 8)
    assert fast[1:] == plain[1:]


def test_records_of_other_devices_are_left_out() -> None:
    other = [Record(**{**vars(one), "device": "a card", "seconds": one.seconds / 100}) for one in exact()]
    assert priced(Prices([*exact(), *other], DEVICE), "models", "a", 1e11, 1e4) == priced(
        Prices(exact(), DEVICE), "models", "a", 1e11, 1e4
    )
    assert not Prices(exact(), "another").known
    assert Prices(exact(), "another").price(part("models", "a", 1e11, 1e4)) is None


def test_what_does_not_tell_its_work_is_what_it_was_before_and_very_unsure() -> None:
    own = [Record("run", "synthetic", "own", f"{n}", DEVICE, 4, seconds) for n, seconds in enumerate((2.0, 8.0))]
    found = Prices([*exact(), *own], DEVICE).price(Part("synthetic", "own", None, None))
    assert found
    assert found.seconds == pytest.approx(4.0), "the geometric mean"
    assert found.level is None
    assert found.interval()[1] / found.interval()[0] > 20


def test_what_jobs_take_beside_their_models_is_the_median_of_their_stage() -> None:
    kinds = [
        (START, "train", 4.0),
        (START, "train", 6.0),
        (START, "train", 50.0),
        (START, "fit", 9.0),
        (FIXED, "table", 1.0),
    ]
    beside = [Record("run", *kind[:2], f"{n}", DEVICE, 1, kind[2]) for n, kind in enumerate(kinds)]
    prices = Prices([*exact(), *beside], DEVICE)
    assert (prices.beside("train"), prices.beside("table"), prices.beside("unknown")) == (6.0, 1.0, 7.5)
    assert Prices(exact(), DEVICE).beside("train") == 0


def test_memory_is_what_is_counted_on_top_of_the_libraries() -> None:
    sizes = {"peak_memory_mb": 640.0, "memory_mb": 40.0}
    records = [*exact(), record("models", "big", 1e9, 10, **sizes)]
    asked = Part("models", "big", Work(1e9, 10, memory=250e6), None)
    assert Prices(records, DEVICE).memory(asked) == pytest.approx(600 + 250)
    assert Prices(records, DEVICE).memory(asked._replace(module="other")) == pytest.approx(600 + 250)
    assert Prices(exact(), DEVICE).memory(asked) is None


MODULES, WORKS, DEVICES = 4, 3, 15


def simulated(rng: np.random.Generator) -> tuple[list[Record], list[tuple[Part, float, str]]]:
    """Records of a device whose modules and computations err by known spreads, and truths that are still to come."""
    works = [(10 ** rng.uniform(9, 12), 10 ** rng.uniform(3, 5)) for _ in range(WORKS + 1)]
    records, truths = [], []
    for folder in ("models", "synthetic", "generators"):
        stage = rng.normal(0, 0.3)
        for number in range(MODULES + 1):
            module = stage + rng.normal(0, 0.4)
            for place, (operations, launches) in enumerate(works):
                own = math.exp(module + rng.normal(0, 0.25))
                if number == MODULES or place == WORKS:
                    seconds = own * (BEGIN + operations / RATE + launches * LATENCY)
                    level = "stage" if number == MODULES else "module"
                    truths.append((part(folder, str(number), operations, launches), seconds, level))
                else:
                    records.append(record(folder, str(number), operations, launches, own))
    return records, truths


def test_intervals_hold_as_often_as_they_say() -> None:
    held: dict[str, list[float]] = {"module": [], "stage": []}
    for seed in range(DEVICES):
        records, truths = simulated(np.random.default_rng(seed))
        prices = Prices(records, DEVICE)
        by_level: dict[str, list[bool]] = {"module": [], "stage": []}
        for asked, seconds, level in truths:
            estimate = prices.price(asked)
            assert estimate
            assert estimate.level == level
            low, high = estimate.interval()
            by_level[level].append(low <= seconds <= high)
        for level, hits in by_level.items():
            held[level].append(float(np.mean(hits)))
    # The floor of what all of a run is off by, of which this simulation has nothing, makes them hold a little more. The
    # shares of 15 independent devices have a standard error of 4% at most: a false alarm in 1 of 1,000.
    for level, shares in held.items():
        assert COVERAGE - 0.12 < np.mean(shares) < COVERAGE + 0.18, level


def test_a_leave_one_out_error_grows_with_the_true_spread() -> None:
    spreads = []
    for sigma in (0.05, 0.6):
        rng = np.random.default_rng(1)
        work = itertools.product("abcdef", [(n * 1e10, n * 1e4) for n in (1, 2, 4, 8, 16)])
        records = [record("models", module, *one, math.exp(rng.normal(0, sigma))) for module, one in work]
        spreads.append(Prices(records, DEVICE).spread.level["module"])
    assert spreads[0] < 0.2 < spreads[1]
    assert spreads[1] == pytest.approx(0.6, rel=0.35)


def test_sums_of_one_group_are_off_together_and_of_many_groups_are_surer() -> None:
    estimate = Estimate(10.0, 0.5, 0.0, 0.0, 20.0, "module", 3)
    draws = Draws()
    one = draws.total([Portion(("models", "a"), 1, estimate)])
    many = draws.total([Portion(("models", "a"), 50, estimate)])
    spread = draws.total([Portion(("models", str(n)), 1, estimate) for n in range(50)])
    assert many.high / many.low == pytest.approx(one.high / one.low), "more of the same is no surer"
    assert spread.high / spread.low < 1.4 < one.high / one.low
    assert one.median == pytest.approx(10, rel=0.05)
    assert one.low == pytest.approx(estimate.interval()[0], rel=0.1)


def test_what_is_extrapolated_is_off_together_in_all_groups() -> None:
    estimate = Estimate(10.0, 0.01, 0.8, 0.0, 20.0, "module", 3)
    many = Draws().total([Portion(("models", str(n)), 1, estimate) for n in range(50)])
    assert many.high / many.low == pytest.approx(math.exp(2 * 0.8 * 1.2816), rel=0.1)


def test_the_same_question_has_the_same_answer() -> None:
    first, second = (priced(Prices(exact(), DEVICE), "models", "a", 1e11, 1e4) for _ in range(2))
    assert first == second
    portion = [Portion(("models", "a"), 3, first)]
    assert Draws().total(portion) == Draws().total(portion)


def test_the_main_device_is_the_one_with_most_records() -> None:
    other = [Record(**{**vars(one), "device": "a card"}) for one in exact()[:3]]
    assert main_device([*other, *exact()]) == DEVICE
    assert main_device([]) is None
