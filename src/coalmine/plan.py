"""``coalmine plan TARGET``: what a run will cost before it starts, by method and stage, and how sure that is.

Snakemake's own graph says which jobs there are and which are up to date. Each is priced from its settings by what
finished runs have measured: those in ``results/`` here, and those that are part of the package (``coalmine.costs``).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coalmine.costs import devices, records
from coalmine.costs.planning import HOUR, LABELS, Line, Plan, plan
from coalmine.costs.pricing import COVERAGE, Prices, Sum, main_device
from coalmine.costs.scenes import RunScene
from coalmine.dag import Graph, Job, read_graph
from coalmine.errors import CoalmineError

if TYPE_CHECKING:
    from coalmine.config import Run

DOES_NOT_FIT = 1
"""Exit status where the disk is too small."""


def describe(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument(
        "targets", nargs="*", help="files or rules, as for snakemake; every table and figure by default"
    )
    parser.add_argument(
        "--configfile", type=Path, nargs="+", action="extend", default=[], help="overlays of config.yaml"
    )
    parser.add_argument("--directory", type=Path, default=Path(), help="where results/ lies")
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1, help="CPU cores (default: all)")
    parser.add_argument("--gpus", type=int, default=1, help="GPUs for jobs that use one (default: 1)")
    parser.add_argument("--device", help="the device's name in the records (default: the one at hand)")
    parser.add_argument("--speed", type=float, default=1.0, help="how many times as fast yours is (default: 1)")
    parser.add_argument("--like", metavar="CARD", help="at best, by the data sheet of a card such as 'NVIDIA H200'")
    parser.add_argument(
        "--records", type=Path, action="append", default=[], help="more records (coalmine.costs collect)"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="for scripts: everything")
    form.add_argument("--csv", action="store_true", help="for scripts: the table")


def execute(arguments: argparse.Namespace) -> int:
    """Print the plan; return 1 if the disk is too small for it."""
    if arguments.speed <= 0:
        raise CoalmineError(f"--speed is {arguments.speed:g}; expected a number above 0: 2 is twice as fast.")
    graph = read_graph(arguments.targets, arguments.configfile, directory=arguments.directory)
    known = gathered(arguments.directory, arguments.records)
    answer = answered(graph, known, arguments)
    if arguments.json:
        print(json.dumps(answer.as_json(), indent=1))
    elif arguments.csv:
        answer.write_csv()
    else:
        print("\n".join(answer.lines()))
    return DOES_NOT_FIT if answer.free_mb < answer.plan.disk_mb else 0


def gathered(directory: Path, files: Sequence[Path] = ()) -> list[records.Record]:
    """Return all records at hand: the package's, those of more files, and those of the runs in ``results/``.

    A run that cannot be read is left out: it tells nothing, and ``coalmine verify`` says what is wrong with it.
    """
    found = records.shipped() + [one for path in files for one in records.read(path)]
    for folder in sorted((directory / "results").glob("*")):
        if (folder / "data" / "private" / "images.npy").is_file():
            try:
                found += [own for own in records.collect(folder) if own.models]
            except CoalmineError as error:
                print(f"no records from {folder}: {error}", file=sys.stderr)
    # The same measurement may lie here and be part of the package.
    return list({(one.run, one.folder, one.module, one.name): one for one in found}.values())


def answered(graph: Graph, known: Sequence[records.Record], arguments: argparse.Namespace) -> Answer:
    """Price the graph's jobs."""
    on_gpu = uses_gpu(graph.jobs, graph.run)
    wanted = arguments.device or device_at_hand(on_gpu)
    prices = Prices(known, wanted, arguments.speed)
    if not prices.known:
        prices = Prices(known, main_device(known) or wanted, arguments.speed)
    if not prices.known:
        raise CoalmineError("There are no records of any device; make some: python -m coalmine.costs collect FOLDER …")
    scene = RunScene(graph.run, arguments.directory)
    planned = plan(graph.jobs, scene, prices, cores=arguments.cores, gpus=arguments.gpus if on_gpu else 0)
    free = shutil.disk_usage(_existing(arguments.directory / "results")).free / 1e6
    targets = arguments.targets or ["every table and figure"]
    counted = sum(one.device == prices.device for one in known)
    return Answer(
        planned, targets, graph.run.name, wanted, prices.device, counted, scene.assumed, free,
        arguments.cores, arguments.gpus if on_gpu else 0, arguments.speed, arguments.like,
    )  # fmt: skip


def uses_gpu(jobs: Sequence[Job], run: Run) -> bool:
    """Tell whether some of the jobs run on a GPU."""
    return any(job.resources.get("gpu") for job in jobs) or run.config.execution.device == "cuda"


def device_at_hand(on_gpu: bool) -> str:
    """Return what the records call the device that jobs will run on."""
    return (devices.card() or "a GPU") if on_gpu else devices.processor()


def expected_seconds(jobs: Mapping[int, Job], run: Run, directory: Path = Path()) -> dict[int, float]:
    """Return what jobs will take by the package's records: the display of a run begins with it.

    Seconds of another processor are better than none, as the display compares them with the first jobs. Those of a
    processor say nothing of a GPU, nor those of a GPU of another.

    Args:
        jobs: to be made, by any number.
        run: the configuration.
        directory: where ``results/`` lies.

    Returns:
        Seconds of each job by its number; nothing where there are no records of such a device.
    """
    known, on_gpu = records.shipped(), uses_gpu([*jobs.values()], run)
    prices = Prices(known, device_at_hand(on_gpu))
    if not prices.known and not on_gpu:
        prices = Prices(known, main_device(known) or "")
    if not prices.known:
        return {}
    planned = plan([*jobs.values()], RunScene(run, directory), prices, cores=1, gpus=1)
    return {number: planned.seconds_of[place] for place, number in enumerate(jobs) if place in planned.seconds_of}


def _existing(folder: Path) -> Path:
    """Return a folder, or the nearest one above it that is there."""
    return folder if folder.exists() else _existing(folder.parent.resolve())


@dataclass(frozen=True)
class Answer:
    """A plan and what it rests on, ready to be told."""

    plan: Plan
    targets: Sequence[str]
    run: str
    wanted: str
    device: str
    records: int
    assumed: Sequence[str]
    free_mb: float
    cores: int
    gpus: int
    speed: float
    like: str | None
    load: float = field(default_factory=lambda: os.getloadavg()[0])
    busy_from: int = field(default_factory=lambda: os.cpu_count() or 1)

    def lines(self) -> Iterator[str]:
        """Yield the lines that people read."""
        own = self.plan
        yield f"{', '.join(self.targets)} of the run {self.run}"
        yield f"jobs: {own.needed} to be run, {own.whole - own.needed} up to date"
        yield ""
        yield from _table([_HEADS, *(_cells(line) for line in own.lines)])
        yield ""
        beside = f"{_sure(own.beside / HOUR)} of them to start jobs, read and write"
        yield f"total: {_hours(own.total)} device-hours, {beside}"
        slots = f"{self.gpus} GPUs and {self.cores} cores" if self.gpus else f"{self.cores} cores"
        end = f"{_hours(own.wall)} hours; the longest chain of jobs takes {_sure(own.longest / HOUR)}"
        yield f"time to the end with {slots}: {end}"
        if own.peak_mb is not None:
            yield f"memory: {_sure(own.peak_mb)} MB for the largest job"
        yield f"disk: {_sure(own.disk_mb)} MB to be written, {self.free_mb:,.0f} MB are free"
        yield from self._warnings()

    def _warnings(self) -> Iterator[str]:
        own = self.plan
        yield ""
        yield (
            f"Intervals hold {COVERAGE:.0%}. They rest on {self.records} records of {self.device}, and say how far "
            "such predictions have been off that did not know what they predicted. 'scaled from': computations of the "
            "same module, of others of its stage, or of the device at all."
        )
        if self.load > self.busy_from:
            yield (
                f"This machine is busy: {self.load:.1f} processes want its {self.busy_from} cores. The records are of "
                "machines with a core for every job; here everything takes longer as long as that lasts."
            )
        if self.wanted != self.device:
            yield (
                f"No record of {self.wanted}: hours are those of {self.device} "
                f"{'' if self.speed == 1 else f'made {self.speed:g} times as fast '}"
                "and the intervals do not hold. Run a part, and its measurements count; or give --speed or --device."
            )
        elif self.speed != 1:
            yield f"Hours are divided by --speed {self.speed:g}."
        if self.like:
            best = devices.peak(self.like)
            operations = 2 * sum(line.operations for line in own.lines) / 1e12 / HOUR
            float32, tensor = (_sure(operations / one) for one in best)
            yield (
                f"{self.like}, at its data sheet's peak, which no training reaches: {float32} hours in float32, "
                f"{tensor} in tensor cores; it cannot take less."
            )
        unscaled = [f"{line.method} {LABELS[line.folder]}" for line in own.lines if not line.scaled]
        if unscaled:
            yield f"Unscaled, their files say nothing of their work: {', '.join(unscaled)}."
        if self.assumed:
            yield f"Not known before the data are read, and assumed: {', '.join(dict.fromkeys(self.assumed))}."
        if own.unpriced:
            yield f"Not priced: {', '.join(f'{name} ({count} jobs)' for name, count in own.unpriced.items())}."
        if self.free_mb < own.disk_mb:
            yield f"WARNING: the disk is too small; {own.disk_mb - self.free_mb:,.0f} MB more are needed."

    def as_json(self) -> dict[str, Any]:
        """Return everything, in seconds and MB."""
        own = self.plan
        return {
            "targets": list(self.targets),
            "run": self.run,
            "jobs": {"needed": own.needed, "all": own.whole},
            "coverage": COVERAGE,
            "device": {"wanted": self.wanted, "of_records": self.device, "records": self.records, "speed": self.speed},
            "lines": [_row(line) for line in own.lines],
            "seconds": own.total._asdict(),
            "seconds_beside_models": own.beside,
            "wall_seconds": {
                "cores": self.cores,
                "gpus": self.gpus,
                **own.wall._asdict(),
                "longest_chain": own.longest,
            },
            "peak_memory_mb": own.peak_mb,
            "disk_mb": {"needed": own.disk_mb, "free": self.free_mb, "fits": self.free_mb >= own.disk_mb},
            "assumed": list(self.assumed),
            "unpriced": dict(own.unpriced),
        }

    def write_csv(self) -> None:
        """Print the table for scripts."""
        rows = [_row(line) for line in self.plan.lines]
        writer = csv.DictWriter(sys.stdout, fieldnames=list(_row(Line("", "scores"))), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


_HEADS = ("method", "stage", "jobs", "made", "device time", "peak MB", "disk MB", "scaled from")


def _cells(line: Line) -> tuple[str, ...]:
    hours = _duration(line.seconds) if line.seconds else "not known"
    used = line.estimate
    basis = "" if used is None else f"{used.level or 'unscaled'}, {used.records}"
    peak, disk = (_sure(one) if one is not None else "" for one in (line.peak_mb, line.disk_mb))
    return line.method, LABELS[line.folder], str(line.jobs), str(line.artefacts), hours, peak, disk, basis


def _row(line: Line) -> dict[str, Any]:
    seconds, used = line.seconds, line.estimate
    return {
        "method": line.method,
        "stage": line.folder,
        "jobs": line.jobs,
        "artefacts": line.artefacts,
        "seconds": seconds and seconds.median,
        "seconds_low": seconds and seconds.low,
        "seconds_high": seconds and seconds.high,
        "peak_memory_mb": line.peak_mb,
        "disk_mb": line.disk_mb,
        "multiply_adds": line.operations if line.scaled else None,
        "level": used and (used.level or "unscaled"),
        "records": used and used.records,
    }


def _hours(seconds: Sum) -> str:
    """Return hours with their interval."""
    middle, low, high = (_sure(one / HOUR) for one in seconds)
    return f"{middle} [{low}, {high}]"


def _duration(seconds: Sum) -> str:
    """Return a duration with its interval, in seconds, minutes or hours."""
    unit, size = next((name, size) for name, size, most in _UNITS if seconds.median < most)
    middle, low, high = (_sure(one / size) for one in seconds)
    return f"{middle} {unit} [{low}, {high}]"


_UNITS = (("s", 1.0, 100.0), ("min", 60.0, 6000.0), ("h", HOUR, float("inf")))
"""Name, seconds, and up to how many seconds it is used."""


def _sure(value: float) -> str:
    """Return a number with the two digits that are known."""
    rounded = float(f"{value:.2g}")
    return f"{rounded:,.0f}" if rounded >= 10 else f"{rounded:g}"


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield rows with their columns aligned, words to the left and numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = (0, 1, 7)
    for row in rows:
        cells = (
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()
