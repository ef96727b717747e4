"""Prices work in seconds, with honest intervals, by what finished runs have measured. Pure: records in, numbers out.

On one device, seconds of one artefact are

    (start + operations / rate + launches x latency + bytes written / 200 MB/s) x factor,

with a factor for every group of computations: the kind of artefact and the module that makes it. The three constants
are fitted to all records, in logarithms, every group counting alike. The factor is that of the nearest level that has
records:

- ``module``: the group's own records, mean of ``log(measured / base)``;
- ``stage``: if it has none, the mean over the other modules that make that kind of artefact;
- ``device``: if there are none either, the mean over all kinds.

How wrong that is, is measured, level by level, by leaving out: a computation from its group, a module from its stage, a
stage from its device, and predicting it from the rest. The errors' variance is taken to be

    s_level^2 (1 + 1/n) + t^2 d^2 + r^2

for n records at the level used and the distance d, in logarithms, between the operations of one launch there and here.
r is how far all predictions of a run are off together, since machines are busier at one time than at another: it is
measured by predicting whole runs from the others.
Work that is the same, only more often, has d = 0: twice the epochs is twice the seconds. Larger networks and batches
are an extrapolation, of which t says how much it has misled before. Fitted by maximum likelihood, with floors.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from scipy.optimize import least_squares, minimize
from scipy.special import stdtrit

from coalmine.costs.records import FIXED, START, Record, by_group
from coalmine.costs.stages import STATISTICS, Part
from coalmine.costs.work import Work

Level = Literal["module", "stage", "device"]
LEVELS: tuple[Level, ...] = ("module", "stage", "device")

COVERAGE = 0.8
"""Of all intervals."""

LEAST_SPREAD: dict[Level, float] = {"module": 0.1, "stage": 0.25, "device": 0.4}
"""Floors of s: machines are shared, and few records may agree by luck."""

LEAST_SLOPE = 0.05
"""Floor of t."""

LEAST_RUN = 0.2
"""Floor of r."""

WRITTEN = 2e8
"""Bytes a second, synced to disk: what is all that a random choice of images takes."""

_FIRST_GUESS = np.log([1e-3, 1e10, 2e-5])
"""Seconds to start, operations a second, seconds a launch: of a CPU core."""

_PRIOR_SPREAD = np.log(1000.0)
"""How far from these a device may be, before it has told otherwise: a factor of 1,000 either way at one sigma."""


class Estimate(NamedTuple):
    """Predicted seconds of one artefact.

    Attributes:
        seconds: the median.
        own: standard deviation of the logarithm, of the group's factor.
        slope: of the logarithm, by extrapolation; alike for all groups.
        run: of the logarithm, by how busy the machine is; alike for all groups.
        freedom: degrees of freedom of both.
        level: where the factor is from; None where the work is not known ("unscaled").
        records: how many it rests on.
    """

    seconds: float
    own: float
    slope: float
    run: float
    freedom: float
    level: Level | None
    records: int

    def interval(self, coverage: float = COVERAGE) -> tuple[float, float]:
        """Return the interval that holds the truth with this probability."""
        spread = math.hypot(self.own, self.slope, self.run) * float(stdtrit(self.freedom, (1 + coverage) / 2))
        return self.seconds * math.exp(-spread), self.seconds * math.exp(spread)


class _Point(NamedTuple):
    """A record as the model sees it."""

    run: str
    folder: str
    module: str
    work: Work
    seconds: float


class Spread(NamedTuple):
    """How far predictions have been off: by level, by extrapolation, by run; and how many were tried at each level."""

    level: dict[Level, float]
    slope: float
    run: float
    tried: dict[Level, int]


class Prices:
    """Prices on one device.

    Args:
        records: of any devices; those of others are left out.
        device: its name.
        speed: how many times as fast the device is at hand as that of the records.
    """

    def __init__(self, records: Sequence[Record], device: str, speed: float = 1.0) -> None:
        self.device, self._speed = device, speed
        self._records = [one for one in records if one.device == device]
        self._points = _points(self._records)
        self._refitted: dict[tuple[str, str, float], np.ndarray] = {}

    @property
    def known(self) -> bool:
        """Tell whether there are enough records to say anything."""
        return len(self._points) >= 3

    @cached_property
    def constants(self) -> np.ndarray:
        """Seconds to start, operations a second and seconds a launch, float64 (3,), in logarithms."""
        return _fitted_constants(self._points)

    @cached_property
    def spread(self) -> Spread:
        """How far predictions have been off that did not know what they predicted."""
        return measured_spread(self._points)

    def price(self, part: Part, *, without: bool = False) -> Estimate | None:
        """Return what one artefact takes, or None if nothing is known.

        Args:
            part: its kind and its work; without work, records of its module say what it takes, unscaled.
            without: leave out records of the very same work, to see how well it would have been predicted.
        """
        if part.work is None:
            return self._unscaled(part)
        points = [one for one in self._points if not (without and _same(one, part))]
        if len(points) < 3:
            return None
        constants = self.constants if len(points) == len(self._points) else self._constants_without(part, points)
        level, used = _nearest(points, part.folder, part.module)
        work = replace(part.work, disk=part.disk or 0.0)
        factor, distance, count = _factor(used, level, work, constants)
        seconds = _base(work, constants) * math.exp(factor) / self._speed
        own = self.spread.level[level] * math.sqrt(1 + 1 / count)
        freedom = max(3.0, self.spread.tried[level] - 1)
        slope = self.spread.slope * distance
        return Estimate(seconds, own, slope, self.spread.run, freedom, level, len(used))

    def _constants_without(self, part: Part, points: Sequence[_Point]) -> np.ndarray:
        assert part.work
        key = part.folder, part.module, part.work.operations
        if key not in self._refitted:
            self._refitted[key] = _fitted_constants(points)
        return self._refitted[key]

    def _unscaled(self, part: Part) -> Estimate | None:
        found = [one.seconds for one in self._records if (one.folder, one.module) == (part.folder, part.module)]
        found = found or [one.seconds for one in self._records if one.folder == part.folder]
        if not found:
            return None
        logs = np.log(found)
        own = max(1.0, float(logs.std(ddof=1)) if len(logs) > 1 else 0.0)
        return Estimate(math.exp(logs.mean()) / self._speed, own, 0.0, self.spread.run, 3.0, None, len(found))

    def beside(self, stage: str) -> float:
        """Return the seconds of a job beside its models, or in all if it makes none; 0 if that is not known."""
        own = [one.seconds for one in self._records if one.folder in (START, FIXED) and one.module == stage]
        start = [one.seconds for one in self._records if one.folder == START]
        found = own or start
        return float(np.median(found)) if found else 0.0

    def memory(self, part: Part) -> float | None:
        """Return the peak memory of a job in MB: what is counted, and the libraries as records of its kind have it."""
        if part.work is None:
            same = [
                one.peak_memory_mb for one in self._records if (one.folder, one.module) == (part.folder, part.module)
            ]
            return max((one for one in same if one is not None), default=None)
        for level in LEVELS:
            bases = [
                one.peak_memory_mb - one.memory_mb
                for one in self._records
                if one.peak_memory_mb is not None and one.memory_mb is not None and _matches(one, level, part)
            ]
            if bases:
                return float(np.median(bases)) + part.work.memory / 1e6
        return None


def _matches(one: Record | _Point, level: str, part: Part) -> bool:
    return level == "device" or (one.folder == part.folder and (level == "stage" or one.module == part.module))


def measured_spread(points: Sequence[_Point]) -> Spread:
    """Leave out computations, modules, stages and runs, predict them from the rest, and return how far that is off."""
    errors = left_out(points)
    tried = {level: len({one.key for one in errors if one.level == level}) for level in LEVELS}

    def surprise(logs: np.ndarray) -> float:
        level, slope = dict(zip(LEVELS, np.exp(logs[:3]), strict=True)), math.exp(logs[3])
        total = 0.0
        for one in errors:
            variance = level[one.level] ** 2 * (1 + 1 / one.values) + (slope * one.distance) ** 2
            total += one.weight * (math.log(variance) + one.error**2 / variance)
        # One more observation each, at a typical value, so that a level without errors has a spread, too.
        typical = np.log([0.3, 0.6, 0.9, 0.15])
        return total + float(np.square(logs - typical).sum())

    found = np.exp(minimize(surprise, np.log([0.3, 0.6, 0.9, 0.15]), method="Nelder-Mead").x)
    level = {name: max(LEAST_SPREAD[name], float(one)) for name, one in zip(LEVELS, found[:3], strict=True)}
    # Farther levels are no surer than nearer ones.
    level["stage"] = max(level["stage"], level["module"])
    level["device"] = max(level["device"], level["stage"])
    slope = max(LEAST_SLOPE, float(found[3]))
    return Spread(level, slope, _spread_of_runs(points, slope), tried)


class LeftOut(NamedTuple):
    """One prediction of what was left out, ``key``: the error in logarithms, and what it was made from."""

    level: Level
    key: object
    error: float
    distance: float
    values: int
    weight: float


def left_out(points: Sequence[_Point]) -> list[LeftOut]:
    """Return the errors of predictions at every level that did not know what they predicted."""
    found = []
    for level, same in _LEFT_OUT.items():
        groups: dict[object, list[_Point]] = defaultdict(list)
        for one in points:
            groups[same(one)].append(one)
        for key in groups:
            rest = [one for one in points if same(one) != key]
            if len(rest) < 3:
                continue
            used_by = [(one, *_nearest(rest, one.folder, one.module)) for one in groups[key]]
            used_by = [each for each in used_by if each[1] == level]
            if not used_by:
                continue
            constants = _fitted_constants(rest)
            for one, _, used in used_by:
                factor, distance, count = _factor(used, level, one.work, constants)
                error = math.log(one.seconds / _base(one.work, constants)) - factor
                found.append(LeftOut(level, key, error, distance, count, 1 / len(used_by)))
    return found


def _spread_of_runs(points: Sequence[_Point], slope: float) -> float:
    """Return how far whole runs are off together, predicted from the others' records of the same modules.

    What extrapolation between them explains is not counted again.
    """
    constants, means = _fitted_constants(points), []
    for run in sorted({one.run for one in points}):
        rest = [one for one in points if one.run != run]
        offs: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
        for one in points:
            level, used = _nearest(rest, one.folder, one.module) if rest else ("device", [])
            if one.run == run and level == "module":
                factor, distance, _ = _factor(used, level, one.work, constants)
                off = math.log(one.seconds / _base(one.work, constants)) - factor
                offs[one.folder, one.module].append((off, slope * distance))
        if offs:
            error, explained = np.mean([np.mean(own, axis=0) for own in offs.values()], axis=0)
            means.append(max(0.0, error**2 - explained**2))
    return max(LEAST_RUN, math.sqrt(float(np.mean(means)))) if means else LEAST_RUN


def _work_of(one: _Point) -> object:
    return one.folder, one.module, one.work.operations, one.work.launches


_LEFT_OUT: dict[Level, Callable[[_Point], object]] = {
    "module": _work_of,
    "stage": lambda one: (one.folder, one.module),
    "device": lambda one: one.folder,
}
"""What is left out to see how well a level predicts it."""


def _same(one: _Point, part: Part) -> bool:
    assert part.work
    alike = math.isclose(one.work.operations, part.work.operations, rel_tol=1e-5)
    return (one.folder, one.module) == (part.folder, part.module) and alike


def _points(records: Sequence[Record]) -> list[_Point]:
    return [
        _Point(
            one.run,
            one.folder,
            one.module,
            Work(one.operations, one.launches or 0.0, disk=1e6 * (one.counted_mb or 0.0)),
            max(one.seconds, 1e-3),
        )
        for one in records
        if one.operations is not None
    ]


def _base(work: Work, constants: np.ndarray) -> float:
    start, rate, latency = np.exp(constants)
    return float(start + work.operations / rate + work.launches * latency + work.disk / WRITTEN)


def _fitted_constants(points: Sequence[_Point]) -> np.ndarray:
    """Return start, rate and latency in logarithms, by least squares of the logarithms; every group counts alike."""
    operations = np.array([one.work.operations for one in points])
    launches = np.array([one.work.launches for one in points])
    written = np.array([one.work.disk for one in points]) / WRITTEN
    measured = np.log([one.seconds for one in points])
    sizes: dict[tuple[str, str], int] = defaultdict(int)
    for one in points:
        sizes[one.folder, one.module] += 1
    weights = np.sqrt([1 / sizes[one.folder, one.module] for one in points])

    def residuals(constants: np.ndarray) -> np.ndarray:
        start, rate, latency = np.exp(constants)
        off = weights * (np.log(start + operations / rate + launches * latency + written) - measured)
        return np.concatenate([off, (constants - _FIRST_GUESS) / _PRIOR_SPREAD])

    fitted: np.ndarray = least_squares(residuals, _FIRST_GUESS).x
    return fitted


def _nearest(points: Sequence[_Point], folder: str, module: str) -> tuple[Level, list[_Point]]:
    """Return the nearest level that has records, and these."""
    of_stage = [one for one in points if one.folder == folder]
    of_module = [one for one in of_stage if one.module == module]
    if of_module:
        return "module", of_module
    if of_stage:
        return "stage", of_stage
    # Distances and intervals are no networks: an operation is another one there.
    alike = [one for one in points if (one.folder in STATISTICS) == (folder in STATISTICS)]
    return "device", alike or list(points)


def _factor(used: Sequence[_Point], level: Level, work: Work, constants: np.ndarray) -> tuple[float, float, int]:
    """Return the factor's logarithm, the distance of the extrapolation and how many values the mean is over."""
    offs: dict[str, list[float]] = defaultdict(list)
    for one in used:
        off = math.log(one.seconds / _base(one.work, constants))
        key = {"module": str(_work_of(one)), "stage": one.module, "device": one.folder}[level]
        offs[key].append(off)
    here = _intensity(work)
    distance = min(abs(_intensity(one.work) - here) for one in used)
    return float(np.mean([np.mean(own) for own in offs.values()])), distance, len(offs)


def _intensity(work: Work) -> float:
    """Return the logarithm of the operations of one launch; the least that occurs for work without networks."""
    return math.log(max(work.operations, 1e4) / max(work.launches, 1.0)) if work.launches else math.log(1e4)


class Portion(NamedTuple):
    """Some artefacts of one kind: what they are pooled by, how many, and what one takes."""

    group: tuple[str, str]
    artefacts: float
    estimate: Estimate


class Sum(NamedTuple):
    """Seconds of many artefacts: median and interval."""

    median: float
    low: float
    high: float


class Draws:
    """Random errors of all groups, drawn once, so that sums over jobs know what is wrong together.

    All of a group's artefacts are off by one and the same factor, groups independently of each other; what is
    extrapolated is off by one and the same slope everywhere, and everything by how busy the machine is. What is left,
    the spread from model to model, is nothing beside these. Sums are therefore drawn, not added up.

    Args:
        draws: how many; the seed is fixed, the same question has the same answer.
    """

    def __init__(self, draws: int = 2000) -> None:
        self._draws = draws
        self._slope, self._run = np.random.default_rng(0).standard_normal((2, draws))
        self._groups: dict[tuple[str, str], np.ndarray] = {}

    def factors(self, group: tuple[str, str], estimate: Estimate) -> np.ndarray:
        """Return the errors of a group as factors, (draw,)."""
        if group not in self._groups:
            seed = [ord(letter) for letter in "/".join(group)]
            rng = np.random.default_rng(seed)
            self._groups[group] = rng.uniform(size=self._draws)
        chance = self._groups[group]
        together = estimate.slope * self._slope + estimate.run * self._run
        factors: np.ndarray = np.exp(estimate.own * stdtrit(estimate.freedom, chance) + together)
        return factors

    def total(self, portions: Sequence[Portion]) -> Sum:
        """Return the sum of many artefacts with its interval."""
        total = np.zeros(self._draws)
        for one in portions:
            total += one.artefacts * one.estimate.seconds * self.factors(one.group, one.estimate)
        return summary(total)


def summary(draws: np.ndarray) -> Sum:
    """Return median and interval of draws."""
    low, median, high = np.quantile(draws, [(1 - COVERAGE) / 2, 0.5, (1 + COVERAGE) / 2])
    return Sum(float(median), float(low), float(high))


def main_device(records: Sequence[Record]) -> str | None:
    """Return the device with most records."""
    counts: dict[str, int] = defaultdict(int)
    for one in records:
        counts[one.device] += 1
    return max(sorted(counts), key=lambda name: counts[name], default=None)


__all__ = ["COVERAGE", "Draws", "Estimate", "Level", "Portion", "Prices", "Sum", "by_group", "main_device", "summary"]
