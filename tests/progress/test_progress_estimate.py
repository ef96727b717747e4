"""How long a run still takes: against naive schedules, closed forms and simulated runs whose end is known."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from snakemake_logger_plugin_coalmine.estimate import Finished, Task, estimate, makespan, remaining

CORE = {"_cores": 1}


def task(number: int, kind: tuple[str, str] = ("train", "a"), **fields: object) -> Task:
    return Task(number, kind, **{"needs": CORE, **fields})  # type: ignore[arg-type]


def test_one_core_takes_the_sum_and_many_cores_the_longest() -> None:
    tasks = [task(number) for number in range(4)]
    seconds = {0: 5.0, 1: 1.0, 2: 2.0, 3: 3.0}
    assert makespan(tasks, seconds, {"_cores": 1}) == 11.0
    assert makespan(tasks, seconds, {"_cores": 9}) == 5.0
    assert makespan(tasks, seconds, {}) == 5.0
    assert makespan(tasks, seconds, {"_cores": 2}) == 6.0  # 5 and 3 begin; 2 and 1 follow the 3


def test_tasks_wait_for_those_before_them() -> None:
    tasks = [task(0), task(1, after=frozenset({0})), task(2, after=frozenset({1, 77})), task(3)]
    seconds = {0: 1.0, 1: 10.0, 2: 100.0, 3: 50.0}
    assert makespan(tasks, seconds, {"_cores": 2}) == 111.0


def test_a_gpu_is_held_by_one_task_while_cores_serve_others() -> None:
    on_gpu = {"_cores": 1, "gpu": 1}
    tasks = [task(0, needs=on_gpu), task(1, needs=on_gpu), task(2), task(3)]
    seconds = {0: 4.0, 1: 4.0, 2: 3.0, 3: 3.0}
    assert makespan(tasks, seconds, {"_cores": 4, "gpu": 1}) == 8.0
    assert makespan(tasks, seconds, {"_cores": 4, "gpu": 2}) == 4.0


def test_a_running_task_holds_its_core_and_one_that_needs_too_much_gets_all() -> None:
    tasks = [task(0, elapsed=7.0), task(1, needs={"_cores": 64})]
    assert makespan(tasks, {0: 2.0, 1: 3.0}, {"_cores": 2}) == 5.0


def test_the_remainder_of_a_job_is_the_conditional_mean_of_a_log_normal() -> None:
    draws = np.random.default_rng(0).lognormal(math.log(100) - 0.4**2 / 2, 0.4, 1_000_000)
    for elapsed in (0.0, 30.0, 100.0, 160.0):
        left = draws[draws > elapsed] - elapsed
        assert remaining(100.0, 0.4, elapsed) == pytest.approx(left.mean(), rel=0.01), elapsed


def test_a_job_that_is_far_overdue_still_takes_a_while_and_the_limit_is_smooth() -> None:
    beyond = [remaining(10.0, 0.15, elapsed) for elapsed in (20.0, 24.0, 24.5, 25.0, 40.0, 1e4)]
    assert all(left > 0.1 for left in beyond)
    assert beyond[1] == pytest.approx(beyond[3], rel=0.15)


def test_nothing_is_known_at_the_start_and_nothing_is_left_at_the_end() -> None:
    assert estimate([], [task(0)], {}) is None
    done = estimate([], [], {})
    assert done is not None
    assert (done.seconds, done.low, done.high) == (0.0, 0.0, 0.0)


def test_long_jobs_tell_the_pace_and_short_ones_hardly() -> None:
    records = {("prepare", ""): 3.0, ("design", ""): 3.0, ("fit", "a"): 3000.0, ("train", "a"): 1000.0}

    def left(*finished: Finished) -> float:
        told = estimate(finished, [task(0, ("train", "a"))], {}, lambda *kind: records.get(kind))
        assert told is not None
        return told.seconds

    short = [Finished(("prepare", ""), 1, 1.0), Finished(("design", ""), 1, 0.5)]
    assert left() == pytest.approx(1000)
    assert 500 < left(*short) < 900
    assert left(*short, Finished(("fit", "a"), 1, 6000.0)) == pytest.approx(2000, rel=0.02)


def test_finished_jobs_of_the_method_come_before_records_and_records_before_the_stage() -> None:
    finished = [Finished(("train", "a"), 4, 40.0), Finished(("train", "b"), 4, 80.0)]

    records = {("train", "a"): 5.0, ("train", "c"): 7.0}

    def seconds(kind: tuple[str, str], size: int = 1) -> float:
        told = estimate(finished, [task(0, kind, size=size)], {}, lambda *kind: records.get(kind))
        assert told is not None
        return told.seconds

    assert seconds(("train", "a"), size=3) == pytest.approx(30.0)
    # This run is twice as slow as the records by a job of 20 expected seconds; 10 more stand for the records' own pace.
    assert seconds(("train", "c")) == pytest.approx(7.0 * 2 ** (20 / 30))
    assert seconds(("train", "new")) == pytest.approx((10.0 + 20.0) / 2)
    assert seconds(("fit", "new")) == pytest.approx((10.0 + 20.0) / 2)


def test_the_less_is_known_the_wider_is_the_interval() -> None:
    finished = [Finished(("train", "a"), 1, 10.0), Finished(("train", "a"), 1, 10.0), Finished(("fit", "b"), 1, 9.0)]

    def width(kind: tuple[str, str]) -> float:
        told = estimate(finished, [task(0, kind)], {}, lambda stage, subject: 10.0 if subject == "recorded" else None)
        assert told is not None
        assert told.low < told.seconds < told.high
        return told.high / told.low

    widths = [width(kind) for kind in (("train", "a"), ("train", "recorded"), ("train", "new"), ("score", "new"))]
    assert widths == sorted(widths)
    assert len(set(widths)) == 4


def test_tasks_without_a_price_make_the_estimate_a_lower_bound() -> None:
    told = estimate([], [task(0), task(1, ("score", "a"))], CORE, lambda stage, _: 8.0 if stage == "train" else None)
    assert told is not None
    assert (told.seconds, told.unpriced) == (8.0, 1)


def simulated(rng: np.random.Generator) -> tuple[list[Task], dict[int, float]]:
    """Tasks of a run, by method: fit, two trainings, logits of both, a score; and how long they really take."""
    tasks: list[Task] = []
    seconds: dict[int, float] = {}

    def add(kind: tuple[str, str], mean: float, after: Sequence[int]) -> int:
        number = len(tasks)
        tasks.append(task(number, kind, after=frozenset(after)))
        seconds[number] = mean * rng.lognormal(0.0, 0.15)
        return number

    for method in range(10):
        cost = {stage: rng.lognormal(scale, 0.6) for stage, scale in (("fit", 4), ("train", 3), ("logits", 1))}
        fits = [add(("fit", str(method)), cost["fit"], []) for _ in range(2)]
        trained = [add(("train", str(method)), cost["train"], [fit]) for fit in fits]
        asked = [add(("logits", str(method)), cost["logits"], [model]) for model in trained]
        add(("score", str(method)), 2.0, asked)
    return tasks, seconds


def test_intervals_hold_the_end_of_simulated_runs_as_often_as_they_say() -> None:
    rng = np.random.default_rng(3)
    inside = total = 0
    errors = []
    for _ in range(150):
        tasks, seconds = simulated(rng)
        # In the order of a list: 30% of the jobs are done, two run, as after a while on two cores.
        done = {number for number in range(len(tasks)) if number % 10 in (0, 1, 2)}
        done = {n for n in done if tasks[n].after <= done}
        finished = [Finished(tasks[number].kind, 1, seconds[number]) for number in sorted(done)]
        left = [other for other in tasks if other.id not in done]
        truth = makespan(left, seconds, {"_cores": 2})
        told = estimate(finished, left, {"_cores": 2})
        assert told is not None
        inside += told.low <= truth <= told.high
        errors.append(math.log(told.seconds / truth))
        total += 1
    # 86% to 90% over four seeds of 300 runs: somewhat wide, as the pace of a machine is allowed to change. Intervals of
    # exactly 80% would fall below 72% in one of 100 such tests.
    assert 0.72 <= inside / total <= 0.96
    assert abs(float(np.median(errors))) < 0.1


def test_an_estimate_of_ten_thousand_jobs_is_a_matter_of_a_fraction_of_a_second() -> None:
    import time

    kinds = [("train", str(number % 40)) for number in range(10_000)]
    tasks = [
        task(number, kind, after=frozenset({number - 40} if number >= 40 else ())) for number, kind in enumerate(kinds)
    ]
    finished = [Finished(kind, 1, 3.0) for kind in kinds[:500]]
    begun = time.perf_counter()
    told = estimate(finished, tasks, {"_cores": 16})
    assert time.perf_counter() - begun < 5.0  # 0.1 s on an idle machine
    assert told is not None
    assert told.seconds == pytest.approx(3.0 * 10_000 / 16, rel=0.01)
