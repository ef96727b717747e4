"""The state of a run as Snakemake's events tell it: which jobs are to be done, running, done and failed.

Times are seconds since the epoch and come with the events: there is no clock in here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from snakemake_logger_plugin_coalmine.estimate import Finished, Kind, Task
from snakemake_logger_plugin_coalmine.rule_names import stage_of, subject_of


@dataclass(frozen=True)
class Job:
    """A job of Snakemake.

    Attributes:
        id: Snakemake's number.
        rule: the rule's name, such as ``train.undefended.016``.
        subject: the method, experts, network, table or figure that it works for; empty where there is but one.
        shadows: the shadow models that it makes files of, as files have them.
        inputs: files that it reads.
        outputs: files that it makes.
        log: what it prints.
        needs: what it takes of what jobs share.
        after: the jobs that it waits for, if they are known.
        expected: seconds that it is predicted to take, if that is known.
    """

    id: int
    rule: str
    subject: str = ""
    shadows: tuple[str, ...] = ()
    inputs: tuple[str, ...] = field(default=(), repr=False)
    outputs: tuple[str, ...] = ()
    log: Path | None = None
    needs: Mapping[str, int] = field(default_factory=dict)
    after: frozenset[int] = frozenset()
    expected: float | None = None

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Job:
        """Read the fields of a ``JOB_INFO`` event."""
        outputs = tuple(told.get("output") or ())
        log = next(iter(told.get("log") or ()), None)
        return cls(
            id=told["jobid"],
            rule=told["rule_name"],
            subject=subject_of(told["rule_name"], told.get("wildcards") or {}),
            shadows=tuple(sorted({stem for path in outputs if (stem := Path(path).stem).isdecimal()})),
            inputs=tuple(told.get("input") or ()),
            outputs=outputs,
            log=Path(log) if log else None,
            needs=amounts(told.get("resources")),
            after=frozenset(told.get("after") or ()),
            expected=told.get("expected"),
        )

    @property
    def stage(self) -> str:
        """What it does: the rule's name without method and shadow models."""
        return stage_of(self.rule)

    @property
    def kind(self) -> Kind:
        """What jobs of about the same cost have in common."""
        return self.stage, self.subject

    @property
    def size(self) -> int:
        """Number of shadow models that it makes, 1 if none."""
        return len(self.shadows) or 1

    @property
    def name(self) -> str:
        """What people call it: ``train random 16-31``."""
        if not self.shadows:
            return f"{self.stage} {self.subject}".rstrip()
        first, last = int(self.shadows[0]), int(self.shadows[-1])
        return f"{self.stage} {self.subject} {first}" + (f"-{last}" if last > first else "")


def amounts(resources: Any) -> dict[str, int]:
    """Return the resources that are numbers."""
    values = {name: getattr(amount, "value", amount) for name, amount in dict((resources or {}).items()).items()}
    return {name: amount for name, amount in values.items() if type(amount) is int}


@dataclass
class Progress:
    """A job that was begun.

    Attributes:
        job: the job.
        submitted: when Snakemake began it.
        began: when it began to run: later, where it waits in the queue of a cluster; None while it does.
    """

    job: Job
    submitted: float
    began: float | None


class Run:
    """All jobs of a run.

    Args:
        started: when it began.
        rules: numbers of jobs by rule, in their order.
        capacity: how much there is of what jobs share, such as ``{"_cores": 2, "gpu": 1}``.
        remote: whether jobs are submitted to a cluster, where they may wait.

    Attributes:
        planned: jobs that are known to come, by number.
        expected: seconds a shadow model that were predicted for them.
        begun: running and waiting jobs.
        seconds: how long the finished jobs took.
        failed: jobs that failed and have not been begun again.
    """

    def __init__(self, started: float, rules: Mapping[str, int], capacity: Mapping[str, int], remote: bool) -> None:
        self.started = started
        self.rules = Counter(rules)
        self.capacity = dict(capacity)
        self.remote = remote
        self.planned: dict[int, Job] = {}
        self.expected: dict[Kind, float] = {}
        self.begun: dict[int, Progress] = {}
        self.seconds: dict[int, float] = {}
        self.failed: dict[int, Job] = {}
        self._finished: list[Finished] = []
        self._sizes: dict[str, int] = {}
        self._seen: Counter[str] = Counter()
        self._by_stage: Counter[str] = Counter()
        self._read: set[str] = set()

    @property
    def total(self) -> int:
        """Number of jobs."""
        return self.rules.total()

    @property
    def done(self) -> int:
        """Number of finished jobs."""
        return len(self.seconds)

    def plan(self, jobs: Iterable[Job]) -> None:
        """Learn all jobs that are to come."""
        for job in jobs:
            self._know(job)
        for job in self.planned.values():
            if job.expected:
                self.expected.setdefault(job.kind, job.expected / job.size)
        counts = Counter(job.rule for job in self.planned.values())
        self.rules = Counter({rule: counts[rule] for rule in [*self.rules, *counts]})

    def begin(self, job: Job, now: float, *, local: bool = True) -> None:
        """A job began, or was submitted."""
        job = self._know(job)
        self.failed.pop(job.id, None)
        self.begun[job.id] = Progress(job, now, now if local or not self.remote else None)

    def observe(self, when_log_began: Callable[[Progress], float | None]) -> None:
        """Ask since when waiting jobs run: they write to their logs."""
        for progress in self.begun.values():
            if progress.began is None:
                progress.began = when_log_began(progress)

    def finish(self, number: int, now: float) -> tuple[Job, float] | None:
        """A job is done. Return it and its seconds; None for a job that was never begun."""
        progress = self.begun.pop(number, None)
        if progress is None:
            return None
        seconds = max(now - (progress.began or progress.submitted), 0.0)
        if number not in self.seconds:
            self._by_stage[progress.job.stage] += 1
        self.seconds[number] = seconds
        self._finished.append(Finished(progress.job.kind, progress.job.size, seconds))
        return progress.job, seconds

    def fail(self, number: int, now: float) -> tuple[Job, float] | None:
        """A job failed. Return it and its seconds; None if that is known, or it was never begun."""
        progress = self.begun.pop(number, None)
        if progress is None:
            return None
        self.failed[number] = progress.job
        return progress.job, max(now - (progress.began or progress.submitted), 0.0)

    def stages(self) -> dict[str, tuple[int, int]]:
        """Return done and all jobs of each stage, in the order of the rules."""
        totals: Counter[str] = Counter()
        for rule, count in self.rules.items():
            totals[stage_of(rule)] += count
        return {stage: (self._by_stage[stage], total) for stage, total in totals.items()}

    def finished(self) -> list[Finished]:
        """Return the finished jobs, priced."""
        return self._finished

    def tasks(self, now: float) -> list[Task]:
        """Return the jobs that are not done, failed ones and those behind them excluded where that is known."""
        running = [self._task(progress.job, progress.began, now) for progress in self.begun.values()]
        lost = self._lost()
        known = [
            self._task(job, None, now)
            for number, job in self.planned.items()
            if number not in self.begun and number not in self.seconds and number not in lost
        ]
        return [*running, *known, *self._unknown()]

    def capacity_now(self) -> dict[str, int]:
        """Return how much there is of what jobs share; of a busy cluster, as many nodes as it gives at the moment."""
        running = sum(progress.began is not None for progress in self.begun.values())
        if running < len(self.begun):
            return {**self.capacity, "_nodes": max(running, 1)}
        return self.capacity

    def products(self) -> list[str]:
        """Return the files of the finished jobs that no job works on: what the run was for."""
        made = (self.planned[number].outputs for number in self.seconds)
        return [path for outputs in made if self._read.isdisjoint(outputs) for path in outputs]

    def root(self) -> Path | None:
        """Return the folder of the run, ``results/<run>``, where the first of its files with measurements lies."""
        paths = (Path(path) for job in self.planned.values() if job.shadows for path in job.outputs)
        return next((path.parents[2] for path in paths if len(path.parents) > 2), None)

    def _know(self, job: Job) -> Job:
        """Remember a job, with the jobs it waits for if they had been told before."""
        if job.id not in self.planned:
            self._seen[job.rule] += 1
            if job.outputs:  # a job such as `all` only collects
                self._read.update(job.inputs)
            self.planned[job.id] = job
            self._sizes[job.stage] = job.size
        return self.planned[job.id]

    def _task(self, job: Job, began: float | None, now: float) -> Task:
        elapsed = None if began is None else max(now - began, 0.0)
        return Task(job.id, job.kind, job.size, self._shared(job.needs), job.after, elapsed)

    def _shared(self, needs: Mapping[str, int]) -> dict[str, int]:
        return {name: amount for name, amount in needs.items() if name in self.capacity and amount}

    def _unknown(self) -> list[Task]:
        """Return tasks for the jobs of which only the rule is told."""
        missing = [
            (stage_of(rule), index) for rule, count in self.rules.items() for index in range(count - self._seen[rule])
        ]
        one = self._shared({"_cores": 1, "_nodes": 1})
        return [
            Task(-1 - number, (stage, ""), self._sizes.get(stage, 1), one) for number, (stage, _) in enumerate(missing)
        ]

    def _lost(self) -> set[int]:
        """Return the failed jobs and those that wait for them."""
        lost = set(self.failed)
        grown = bool(lost)
        while grown:
            behind = {number for number, job in self.planned.items() if number not in lost and job.after & lost}
            lost |= behind
            grown = bool(behind)
        return lost
