"""What a graph of jobs will take: priced, summed by method and stage, and laid out in time. Imports no torch."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from coalmine.costs.counting import Scene
from coalmine.costs.pricing import Draws, Estimate, Portion, Prices, Sum
from coalmine.costs.stages import FOLDERS, PER_SHADOW, Part, parts
from coalmine.dag import Job

HOUR = 3600.0

SIDECAR = 400
"""Bytes of the measurements beside an artefact."""

LABELS = {
    "pretrained": "pre-training",
    "experts": "experts",
    "generators": "generator",
    "synthetic": "synthesis",
    "models": "training",
    "logits": "queries",
    "visual": "resemblance",
    "quality": "quality",
    "sizes": "sizes",
    "recipes": "recipes",
    "scores": "attacks",
}
"""What people call the kinds of artefacts, in the order in which they are made."""


@dataclass
class Line:
    """What one method's artefacts of one kind will take.

    Attributes:
        method: or experts, or a network.
        folder: the kind of artefact.
        artefacts: how many will be made.
        jobs: that make them.
        portion: their price; None if nothing is known.
        seconds: of all; None likewise.
        operations: multiply-adds of all.
        peak_mb: peak memory of a job, None if not known.
        disk_mb: of all artefacts, None likewise.
        scaled: whether the price follows the settings.
    """

    method: str
    folder: str
    artefacts: int = 0
    jobs: int = 0
    portion: Portion | None = None
    seconds: Sum | None = None
    operations: float = 0.0
    peak_mb: float | None = None
    disk_mb: float | None = None
    scaled: bool = True

    @property
    def estimate(self) -> Estimate | None:
        """The price of one artefact."""
        return self.portion.estimate if self.portion else None


@dataclass
class Plan:
    """What jobs will take.

    Attributes:
        lines: by method and kind of artefact.
        total: device-seconds of all lines, with what jobs take beside their models.
        beside: seconds of that.
        wall: seconds from beginning to end on the slots given.
        longest: seconds of the longest chain of jobs that wait for each other.
        unpriced: jobs without a price, by what they run.
        needed: jobs to be run.
        whole: all jobs.
    """

    lines: list[Line]
    total: Sum
    beside: float
    wall: Sum
    longest: float
    unpriced: Mapping[str, int]
    needed: int
    whole: int
    seconds_of: Mapping[int, float] = field(default_factory=dict, repr=False)

    @property
    def disk_mb(self) -> float:
        """Of all artefacts whose size is known."""
        return sum(line.disk_mb or 0.0 for line in self.lines)

    @property
    def peak_mb(self) -> float | None:
        """Highest peak memory of a job."""
        return max((line.peak_mb for line in self.lines if line.peak_mb is not None), default=None)


def plan(jobs: Sequence[Job], scene: Scene, prices: Prices, *, cores: int, gpus: int) -> Plan:
    """Price all jobs that are needed.

    Args:
        jobs: those before others first.
        scene: of the run.
        prices: on the device at hand.
        cores: CPU cores for jobs without a GPU.
        gpus: cards for jobs with one.
    """
    needed = [(number, job) for number, job in enumerate(jobs) if job.needed]
    lines: dict[tuple[str, str], Line] = {}
    unpriced: dict[str, int] = defaultdict(int)
    seconds_of: dict[int, float] = {}
    beside = 0.0
    for number, job in needed:
        stage = job.program or job.stage
        around = prices.beside(stage) if job.spec is not None else 0.0
        beside += around
        seconds_of[number] = around
        if stage in FOLDERS and job.spec is not None:
            known = [_add(lines, job, stage, part, prices) for part in parts(stage, job.spec, scene)]
            seconds_of[number] += sum(one or 0.0 for one in known)
            missing = any(one is None for one in known)
        else:
            missing = job.spec is not None and not around
        if missing:
            unpriced[stage] += 1
    draws = Draws()
    for line in lines.values():
        line.seconds = draws.total([line.portion]) if line.portion else None
    order = list(LABELS)
    ordered = sorted(lines.values(), key=lambda line: order.index(line.folder))
    total = draws.total([line.portion for line in lines.values() if line.portion])
    total = Sum(total.median + beside, total.low + beside, total.high + beside)
    longest, end = schedule([job for _, job in needed], [seconds_of[number] for number, _ in needed], cores, gpus)
    # What is wrong is mostly wrong for all jobs together, so that the end moves with the total.
    middle = sum(seconds_of.values()) or 1.0
    wall = Sum(end, end * total.low / middle, end * total.high / middle)
    return Plan(ordered, total, beside, wall, longest, dict(unpriced), len(needed), len(jobs), seconds_of)


def _add(lines: dict[tuple[str, str], Line], job: Job, stage: str, part: Part, prices: Prices) -> float | None:
    """Add what a job makes of one kind to its line; return its seconds, None if they are not known."""
    name = job.subject or str((job.spec or {}).get("name") or stage)
    line = lines.setdefault((name, part.folder), Line(name, part.folder))
    made = artefacts(job.outputs, part.folder) if stage in PER_SHADOW else 1
    line.artefacts += made
    line.jobs += 1
    line.scaled = part.work is not None
    line.operations += made * part.work.operations if part.work else 0.0
    estimate = prices.price(part)
    if estimate:
        line.portion = Portion((part.folder, part.module), line.artefacts, estimate)
    line.peak_mb = prices.memory(part)
    if part.disk is not None:
        line.disk_mb = line.artefacts * (part.disk + SIDECAR) / 1e6
    return made * estimate.seconds if estimate else None


def artefacts(outputs: Sequence[Path], folder: str) -> int:
    """Return how many artefacts of one kind, measurements aside, are among a job's outputs."""
    return sum(path.suffix != ".json" and path.parent.parent.name == folder for path in outputs)


def schedule(jobs: Sequence[Job], seconds: Sequence[float], cores: int, gpus: int) -> tuple[float, float]:
    """Lay jobs out in time, each as soon as what it reads is there and a slot is free.

    Args:
        jobs: those before others first.
        seconds: of each.
        cores: slots of jobs without a GPU.
        gpus: slots of jobs with one; without any, they take cores.

    Returns:
        Seconds of the longest chain, which no number of slots can shorten, and of the whole.
    """
    maker = {path: number for number, job in enumerate(jobs) for path in job.outputs}
    chain, ends = [0.0] * len(jobs), [0.0] * len(jobs)
    slots = {True: [0.0] * max(1, gpus), False: [0.0] * max(1, cores)}
    for number, job in enumerate(jobs):
        before = {maker[path] for path in job.inputs if path in maker}
        chain[number] = seconds[number] + max((chain[one] for one in before), default=0.0)
        ready = max((ends[one] for one in before), default=0.0)
        free = slots[bool(job.resources.get("gpu")) and gpus > 0]
        ends[number] = max(ready, heapq.heappop(free)) + seconds[number]
        heapq.heappush(free, ends[number])
    return max(chain, default=0.0), max(ends, default=0.0)
