"""How long a run still takes, and how sure that is: jobs done, running and to go in, seconds left out.

No clock, file or event in here. Jobs are priced per shadow model by the nearest thing that was measured:

1. finished jobs of the same stage and method in this run;
2. what records expect of this stage and method, times how this run compares with them so far;
3. finished jobs of the same stage;
4. all finished jobs.

The jobs are then scheduled on what they may share (cores, GPUs, nodes), in the order of what waits for what.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from statistics import fmean

Kind = tuple[str, str]
"""A stage and whom it works for: the method, experts, network, table or figure; empty where that is not known."""

_LEVEL = 1.2816
"""Standard normal quantile of a central 80% interval."""
_CONFIDENCE = 4
"""How many observations a prior spread below counts for."""
_WITHIN, _RECORDS, _STAGE, _RUN = 0.15, 0.5, 0.8, 1.2
"""Prior spread (standard deviation of the log) of: jobs of a kind; kinds about their records, their stage, the run."""
_FIRM = 10.0
"""Expected seconds of finished jobs that count as much as the records' own pace."""
_ALIKE = 0.5
"""Correlation of what kinds to come have that finished ones have not: methods come in families."""
_PACE = 0.1
"""By how much the machine's pace may change (log): others use it, too."""
_NEAR_ZERO = 1e-9


@dataclass(frozen=True)
class Finished:
    """A job that is done.

    Attributes:
        kind: stage and subject.
        size: shadow models that it made, 1 where it made none.
        seconds: how long it took.
    """

    kind: Kind
    size: int
    seconds: float


@dataclass(frozen=True)
class Task:
    """A job that is not done.

    Attributes:
        id: names it in ``after`` of others.
        kind: stage and subject.
        size: shadow models that it makes, 1 where it makes none.
        needs: how much it takes of what jobs share, such as ``{"_cores": 1, "gpu": 1}``.
        after: tasks that have to be done before.
        elapsed: seconds since it began; None if it has not begun.
    """

    id: int
    kind: Kind
    size: int = 1
    needs: Mapping[str, int] = field(default_factory=dict)
    after: frozenset[int] = frozenset()
    elapsed: float | None = None


@dataclass(frozen=True)
class Estimate:
    """Seconds until the last task is done, with an 80% interval.

    Attributes:
        seconds: the estimate.
        low: lower end of the interval.
        high: upper end.
        unpriced: tasks of which nothing is known yet, which count as nothing: the estimate is a lower bound.
    """

    seconds: float
    low: float
    high: float
    unpriced: int = 0


@dataclass(frozen=True)
class _Price:
    """Mean seconds a shadow model, and how wrong that may be, as standard deviations of the log.

    Attributes:
        seconds: the mean.
        spread: between jobs of the kind.
        error: of the mean, independent between kinds.
        basis: what it was taken from.
        common: the error that it shares with all prices of the same basis.
    """

    seconds: float
    spread: float
    error: float
    basis: Kind
    common: float = 0.0


def estimate(
    finished: Sequence[Finished],
    tasks: Sequence[Task],
    capacity: Mapping[str, int],
    expected: Callable[[str, str], float | None] = lambda stage, subject: None,
) -> Estimate | None:
    """Return how long the tasks still take; None while nothing is known of any.

    Jobs scatter independently of each other. The error of a price is common to all jobs of its kind; that of what it
    was taken from (records, the stage, the run) is common to all kinds without a better one; the machine's pace may
    change for all.

    Args:
        finished: the jobs of this run that are done.
        tasks: those that are not.
        capacity: how much there is of what jobs share; what is not named is without limit.
        expected: seconds a shadow model by stage and subject, from earlier records; None where there are none.
    """
    if not tasks:
        return Estimate(0.0, 0.0, 0.0)
    prices = _prices(finished, {task.kind for task in tasks}, expected)
    left = {task.id: _left(task, prices.get(task.kind)) for task in tasks}
    unpriced = sum(task.kind not in prices for task in tasks)
    if unpriced == len(tasks):
        return None
    seconds = makespan(tasks, left, capacity)
    spread = _relative_error(tasks, left, prices)
    return Estimate(seconds, seconds * math.exp(-_LEVEL * spread), seconds * math.exp(_LEVEL * spread), unpriced)


def makespan(tasks: Sequence[Task], seconds: Mapping[int, float], capacity: Mapping[str, int]) -> float:
    """Return when the last task ends if each begins as soon as it may, the longest first.

    Args:
        tasks: running ones have begun and hold what they need.
        seconds: how long each takes from now on, by its id.
        capacity: how much there is of what tasks need. One that needs more than all of it gets all of it.
    """
    free = dict(capacity)
    needs = {
        task.id: {name: min(amount, capacity[name]) for name, amount in task.needs.items() if name in capacity}
        for task in tasks
    }
    waits, followers = _order(tasks)
    # Tasks with the same needs stand in one queue: if its first does not fit, none of it does.
    queues: dict[tuple[tuple[str, int], ...], list[tuple[float, int]]] = defaultdict(list)
    ends: list[tuple[float, int]] = []

    def begin(task: int, now: float) -> None:
        for name, amount in needs[task].items():
            free[name] -= amount
        heappush(ends, (now + seconds[task], task))

    def queue(task: int) -> None:
        heappush(queues[tuple(sorted(needs[task].items()))], (-seconds[task], task))

    for task in tasks:
        if task.elapsed is not None:
            begin(task.id, 0.0)
        elif not waits[task.id]:
            queue(task.id)
    now = 0.0
    while ends or any(queues.values()):
        for wanted, waiting in queues.items():
            while waiting and (all(free[name] >= amount for name, amount in wanted) or not ends):
                begin(heappop(waiting)[1], now)
        now, done = heappop(ends)
        for name, amount in needs[done].items():
            free[name] += amount
        for follower in followers[done]:
            waits[follower] -= 1
            if not waits[follower]:
                queue(follower)
    return now


def remaining(mean: float, spread: float, elapsed: float) -> float:
    """Return the expected seconds that a job still takes which has run for ``elapsed`` seconds.

    Durations are log-normal: ``E[T - t | T > t]``. A job that has run for longer than expected still takes a while,
    the longer, the less is known of it.

    Args:
        mean: expected seconds of such a job, > 0.
        spread: standard deviation of the log of its duration, > 0.
        elapsed: seconds so far, >= 0.
    """
    if elapsed <= 0:
        return mean
    location = math.log(mean) - spread**2 / 2
    distance = (math.log(elapsed) - location) / spread
    survival = _upper_tail(distance)
    if survival < _NEAR_ZERO:  # the limit of the formula below, which loses all digits here
        return elapsed * spread / distance
    return max(mean * _upper_tail(distance - spread) / survival - elapsed, 0.0)


def _upper_tail(value: float) -> float:
    return math.erfc(value / math.sqrt(2)) / 2


def _order(tasks: Sequence[Task]) -> tuple[dict[int, int], dict[int, list[int]]]:
    """Return how many tasks each waits for, and who waits for it."""
    known = {task.id for task in tasks}
    followers: dict[int, list[int]] = {task.id: [] for task in tasks}
    for task in tasks:
        for before in task.after & known:
            followers[before].append(task.id)
    return {task.id: len(task.after & known) for task in tasks}, followers


def _left(task: Task, price: _Price | None) -> float:
    if price is None:
        return 0.0
    return remaining(price.seconds * task.size, math.hypot(price.spread, price.error), task.elapsed or 0.0)


def _relative_error(tasks: Sequence[Task], left: Mapping[int, float], prices: Mapping[Kind, _Price]) -> float:
    """Return the standard deviation of the log of the tasks' total."""
    kinds: dict[Kind, float] = defaultdict(float)
    bases: dict[Kind, float] = defaultdict(float)
    variance = 0.0
    for task in tasks:
        if price := prices.get(task.kind):
            kinds[task.kind] += left[task.id]
            bases[price.basis] += left[task.id] * price.common
            variance += (left[task.id] * price.spread) ** 2
    variance += sum((seconds * prices[kind].error) ** 2 for kind, seconds in kinds.items())
    variance += sum(error**2 for error in bases.values())
    total = sum(kinds.values())
    return math.hypot(math.sqrt(math.log1p(variance / total**2)), _PACE) if total > 0 else 0.0


def _prices(
    finished: Sequence[Finished], kinds: set[Kind], expected: Callable[[str, str], float | None]
) -> dict[Kind, _Price]:
    """Return the price of every kind of which something is known."""
    observed: dict[Kind, list[float]] = defaultdict(list)
    sizes: Counter[Kind] = Counter()
    for job in finished:
        observed[job.kind].append(max(job.seconds, _NEAR_ZERO) / job.size)
        sizes[job.kind] += job.size
    means = {kind: fmean(values) for kind, values in observed.items()}
    within = _spread([math.log(v / means[kind]) for kind, values in observed.items() for v in values], _WITHIN)
    stages: dict[str, list[float]] = defaultdict(list)
    for (stage, _), mean in means.items():
        stages[stage].append(mean)
    # Of jobs of a second, the ratio tells how fast Python starts: long jobs tell the pace.
    compared = [
        (math.log(mean / told), told * sizes[kind]) for kind, mean in means.items() if (told := expected(*kind))
    ]
    ratios, weights = [ratio for ratio, _ in compared], [weight for _, weight in compared]
    pace = math.exp(sum(ratio * weight for ratio, weight in compared) / (sum(weights) + _FIRM))
    prices = {}
    for kind in kinds:
        akin = stages.get(kind[0])
        if kind in means:
            prices[kind] = _Price(means[kind], within, within / math.sqrt(len(observed[kind])), kind)
        elif told := expected(*kind):
            prices[kind] = _Price(told * pace, within, *_transferred(ratios, _RECORDS, ("", "records"), weights))
        elif akin:
            prices[kind] = _Price(fmean(akin), within, *_transferred(_logs(akin), _STAGE, (kind[0], "")))
        elif means:
            every = list(means.values())
            prices[kind] = _Price(fmean(every), within, *_transferred(_logs(every), _RUN, ("", "run")))
    return prices


def _logs(values: Sequence[float]) -> list[float]:
    return [math.log(value) for value in values]


def _transferred(
    logs: Sequence[float], prior: float, basis: Kind, weights: Sequence[float] = ()
) -> tuple[float, Kind, float]:
    """Return the error of a price that is taken from others, what it is taken from, and the error of that."""
    spread = _spread(logs, prior, weights)
    count = max(_count(weights or [1.0] * len(logs)), 1)
    return spread, basis, spread * math.sqrt(1 / count + _ALIKE)


def _spread(logs: Sequence[float], prior: float, weights: Sequence[float] = ()) -> float:
    """Return the standard deviation of these values, drawn towards ``prior`` while there are few."""
    weights = weights or [1.0] * len(logs)
    count, total = _count(weights), sum(weights) or 1.0
    centre = sum(weight * value for weight, value in zip(weights, logs, strict=True)) / total
    squares = sum(weight * (value - centre) ** 2 for weight, value in zip(weights, logs, strict=True)) * count / total
    return math.sqrt((squares + _CONFIDENCE * prior**2) / (max(count - 1, 0) + _CONFIDENCE))


def _count(weights: Sequence[float]) -> float:
    """Return how many equal values weigh as much as these together (Kish's effective sample size)."""
    return sum(weights) ** 2 / sum(weight**2 for weight in weights) if weights else 0.0
