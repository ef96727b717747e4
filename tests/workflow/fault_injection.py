"""Faults for a run of Snakemake, the recovery that README describes, and what is left of the run after it.

One run goes through without a fault: the reference. Every fault is injected into another copy of the repository, which
then recovers as README says, by running the same command again. Counted are, against the reference:

- wrong files: any byte of any artefact, table or figure that is another one at the end, and any file that is missing;
- partial files: those that stood under their final name at the moment of a fault and were not whole;
- lost files: those that were finished at the moment of a fault, whole, and were made again nevertheless.

Only what is measured (seconds, memory, time of day) may differ: the measurements beside artefacts, and the columns of
seconds. Needs Linux: processes are found in ``/proc`` by the folder that they work in.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

from checkouts import REPOSITORY, SNAKEMAKE, Checkout, copy_sources, environment

NAME = "faults"
SECONDS_BETWEEN_CHECKPOINTS = 0.1
"""Instead of 60: the computations of this run take seconds."""

_MLP = {"name": "mlp", "hidden": [16]}
RUN: dict[str, Any] = {
    "run": NAME,
    "training": {"epochs": 10, "batch_size": 32, "schedule": "cosine"},
    "experts": {"quick": {"experts": 2, "epochs": 8, "batch_size": 32, "model": _MLP}},
    "pretrained": {
        "fonts": {
            "network": {"width": 4, "multipliers": [1, 1], "blocks": 1},
            "objective": {"name": "edm"},
            "steps": 20,
            "batch_size": 8,
        }
    },
    "methods": {
        "undefended": {"module": "undefended"},
        "forgetting": {"module": "coreset", "selection": "forgetting", "fraction": 0.5, "scoring_epochs": 30},
        "dm": {"module": "dm", "images_per_class": 1, "iterations": 60, "batch_size": 8, "network": {"name": "mlp"}},
        "mtt": {
            "module": "mtt",
            "experts": "quick",
            "images_per_class": 1,
            "iterations": 20,
            "steps": 2,
            "expert_epochs": 1,
            "learning_rate": 1.0,
            "max_start": 2,
        },
        "dfkd": {
            "module": "dfkd",
            "algorithm": "zskt",
            "batch_size": 16,
            "rounds": 3,
            "distillation_steps": 2,
            "latent": 8,
            "width": 8,
            "images": 12,
        },
        "private": {"module": "dpsgd", "noise_multiplier": 2.0, "steps": 80, "batch_size": 32, "model": _MLP},
        "dpdiff": {
            "module": "dpdiffusion",
            "fit": {"pretrained": "fonts", "noise_multiplier": 2.0, "steps": 5, "batch_size": 16, "views": 2},
            "images": 20,
            "levels": 2,
            "images_at_once": 5,
        },
    },
    "controls": {},
    "tables": {
        "table1": {"methods": ["undefended", "forgetting", "dm", "mtt", "dfkd", "private", "dpdiff"]},
        "table3": {"methods": ["dm"]},
    },
    "figures": {
        "figure5": {"methods": ["forgetting", "dm"]},
        "figure6": {"methods": ["dm"], "images": 2},
    },
    "execution": {"device": "cpu", "batch": 6},
}
"""The small run with every kind of stage, long enough for kills to land inside computations."""

PATIENCE = 900.0
"""Seconds; what takes longer hangs."""

PER_SHADOW = ("experts", "generators", "synthetic", "models", "logits")
MEASURED = (*PER_SHADOW, "pretrained")
"""Folders with measurements, ``<name>.json``, beside the artefacts."""

SUFFIXES = (".npy", ".npz", ".safetensors", ".csv", ".json", ".html", ".tex", ".png", ".pdf")

READERS = {
    "data/private/images.npy": ["models/undefended/*"],
    "data/private/labels.npy": ["models/undefended/*"],
    "data/test/images.npy": ["logits/undefended/*"],
    "data/public/images.npy": ["pretrained/features.*"],
    "data/classes.json": ["models/undefended/*"],
    "audit/canaries.csv": ["models/undefended/*"],
    "audit/membership.npy": ["models/undefended/*"],
    "privacy/private.json": ["models/private/*"],
    "experts/quick/*.safetensors": ["synthetic/mtt/*"],
    "pretrained/features.safetensors": ["visual/dm.*"],
    "pretrained/fonts.safetensors": ["generators/dpdiff/*"],
    "generators/dpdiff/*.safetensors": ["synthetic/dpdiff/*"],
    "synthetic/dm/*.npz": ["models/dm/*"],
    "models/undefended/*.safetensors": ["logits/undefended/*"],
    "logits/dm/*.npz": ["scores/dm.npz", "metrics/dm.json"],
    "scores/dm.npz": ["figure5.*"],
    "metrics/dm.json": ["table1.*"],
    "visual/dm.json": ["table1.*"],
    "models/dm/*.json": ["table1.*"],
    "table1.csv": ["../table1.*"],
    "../table1.csv": [],
}
"""Files to damage, every kind of artefact once, and what is made from them, under ``results/<run>``."""


Finished = dict[str, set[tuple[int, int]]]
"""Device and inode of finished files, by their names under ``results``."""

Struck = tuple["subprocess.Popen[bytes]", str, Finished]
"""The killed run, the stage that was hit, and what had been finished by then."""


Case = TypeVar("Case")


@dataclass
class Outcome:
    """What one injected fault came to.

    Attributes:
        fault: its class, a row of the table.
        hit: what it hit: a stage, a file.
        noticed: by what; empty if nothing had to notice it.
        lost: finished, whole files that were made again.
        partial: files that were not whole under their final name.
        wrong: files other than the reference's after recovery.
        seconds: until the run was whole again; of a kill, its share of the runs that were killed.
        remark: anything else that is worth a line.
    """

    fault: str
    hit: str
    noticed: str = ""
    lost: list[str] = field(default_factory=list)
    partial: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0
    remark: str = ""

    @property
    def harmless(self) -> bool:
        """Tell whether nothing was lost, partial or wrong."""
        return not (self.lost or self.partial or self.wrong)


@dataclass(frozen=True)
class Process:
    """A process that works in a checkout."""

    pid: int
    command: tuple[str, ...]

    @property
    def stage(self) -> str | None:
        """The stage that it makes, if it is the Python process of a job."""
        match = re.fullmatch(r"coalmine\.stages\.(\w+)", self.command[2] if len(self.command) > 2 else "")
        return match[1] if match else None


def processes(folder: Path) -> list[Process]:
    """Return the processes whose working directory is ``folder``."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):  # it has ended, or is another user's
            if entry.name.isdecimal() and os.readlink(entry / "cwd") == str(folder):
                command = (entry / "cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
                found.append(Process(int(entry.name), tuple(command)))
    return found


def files_in(folder: Path) -> Iterator[Path]:
    """Return all files in a folder and below, in order, while others may add and remove some."""
    for parent, folders, names in os.walk(folder):
        folders.sort()
        yield from (Path(parent, name) for name in sorted(names))


def kill(pids: list[int], number: signal.Signals) -> None:
    """Send a signal to each process that is still there."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


ORDER = "order"
"""A file beside the Snakefile: a call, its number and stages. The n-th such call of a job of these stages kills it."""

SITECUSTOMIZE = """
'''Kills a job inside a write: in the call, and at its n-th time, that the file `order` asks for.'''
import os, signal, sys

try:
    call, count, *stages = open("order").read().split()
except OSError:
    stages = []
stage = next((stage for stage in stages if f"coalmine.stages.{stage}" in sys.orig_argv), None)
if stage:
    left, original, replace = int(count), getattr(os, call), os.replace

    def dying(*arguments, **options):
        global left
        left -= 1
        if left or not os.path.exists("order"):
            return original(*arguments, **options)
        if call == "fsync":  # half of the file has been written
            os.ftruncate(arguments[0], os.fstat(arguments[0]).st_size // 2)
        try:
            original(*arguments, **options)
        finally:
            replace("order", "obeyed-" + stage)
            os.kill(os.getpid(), signal.SIGKILL)

    setattr(os, call, dying)
"""
WRITING_CALLS = ("fsync", "replace", "link", "unlink")


class Trial(Checkout):
    """A checkout with the run of faults, which is killed, damaged and taken up again."""

    def __init__(self, root: Path, repository: Path = REPOSITORY, run: dict[str, Any] = RUN) -> None:
        super().__init__(root.resolve())
        if not root.exists():
            copy_sources(self.root, repository)
            self.configure(**run)
            self.edit(
                "src/coalmine/checkpoint.py",
                "SECONDS_BETWEEN = 60.0",
                f"SECONDS_BETWEEN = {SECONDS_BETWEEN_CHECKPOINTS}",
            )
            (self.root / "src/sitecustomize.py").write_text(SITECUSTOMIZE)

    @property
    def results(self) -> Path:
        """Everything that is made."""
        return self.root / "results"

    def launch(self, *arguments: str, cores: int = 2) -> subprocess.Popen[bytes]:
        """Start Snakemake in a process group of its own; what it prints is appended to ``printed``."""
        with (self.root / "printed").open("ab") as printed:
            return subprocess.Popen(
                [*SNAKEMAKE, *(arguments or ["all"]), "--cores", str(cores)],
                cwd=self.root,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # shells have the background ignore it
            )

    def printed(self) -> str:
        """Return what all launched runs have printed."""
        return (self.root / "printed").read_text(errors="replace")

    def jobs(self) -> list[Process]:
        """Return the running jobs: their Python processes."""
        return [process for process in processes(self.root) if process.stage]

    def settle(self, pids: list[int] | None = None, patience: float = PATIENCE) -> None:
        """Wait until these processes, or all that work here, have ended."""
        end = time.monotonic() + patience
        while left := [p for p in processes(self.root) if pids is None or p.pid in pids]:
            if time.monotonic() > end:
                raise AssertionError(f"still at work in {self.root}: {[p.command[:3] for p in left]}")
            time.sleep(0.05)

    def attempt(self, *targets: str) -> tuple[int, str]:
        """Run Snakemake; return its exit status and what it printed."""
        command = [*SNAKEMAKE, *targets, "--cores", "2"]
        done = subprocess.run(
            command, cwd=self.root, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        return done.returncode, done.stdout

    def recover(self, *targets: str, unlock: bool = False) -> list[str]:
        """Recover as README says: unlock if Snakemake was killed, run the same command again, do what it asks for.

        That is to delete files that a job refuses by name, or to touch files of the future.

        Returns:
            The files that a job refused by name and that were deleted for it.
        """
        if unlock:
            self.snakemake("--unlock")
        refused: list[str] = []
        for _ in range(4):
            status, printed = self.attempt(*(targets or ["all"]))
            if status == 0:
                return refused
            for name in named_files(printed):
                (self.root / name).unlink(missing_ok=True)
                refused.append(name)
            if "older modification time" in printed:
                self.touch_future()
        raise AssertionError(f"{self.root} did not recover:\n{printed[-4000:]}")

    def touch_future(self) -> None:
        """Do as ``find results -newermt now -exec touch {} +``: Snakemake takes no output older than its input."""
        for path in files_in(self.results):
            if path.stat().st_mtime > time.time():
                os.utime(path)

    def incomplete(self) -> set[str]:
        """Return the files that Snakemake has marked as being made, under ``results``."""
        folder = self.root / ".snakemake/incomplete"
        marks = (path.relative_to(folder).parts for path in files_in(folder))
        names = set()
        for parts in marks:
            with suppress(ValueError):
                encoded = "".join(part.removeprefix("@") for part in parts)
                names.add(urlsafe_b64decode(encoded).decode().removeprefix("results/"))
        return names

    def contents(self) -> dict[str, str]:
        """Return a digest of all that must be the same as in the reference, by its name under ``results``."""
        return {name: fingerprint(path) for name, path in self.artefacts()}

    def artefacts(self) -> Iterator[tuple[str, Path]]:
        """Return artefacts, tables and figures under their final names; measurements and logs are none."""
        for path in files_in(self.results):
            name = path.relative_to(self.results)
            hidden = any(part.startswith(".") for part in name.parts)
            if path.suffix in SUFFIXES and not hidden and "logs" not in name.parts and not is_measured(name):
                yield str(name), path

    def finished(self) -> Finished:
        """Return what is finished, under its final name or kept by an interrupted job.

        A job's files are finished when Snakemake has noted it; those of a shadow model when all of them and their
        measurements are there. Each gets a link, so that no file that is made anew is given its inode.
        """
        found: Finished = {}
        for name, path in self._of_shadow_models():
            if all(file.is_file() for file in together(path)):
                found.setdefault(name, set()).update(identity(path))
        unfinished = self.incomplete()
        for name, path in self.artefacts():
            if Path(name).parts[1:2] not in [(stage,) for stage in PER_SHADOW] and name not in unfinished:
                found[name] = identity(path)
        self._pin(found)
        return found

    def _pin(self, found: Finished) -> None:
        pins = self.root / "pins"
        pins.mkdir(exist_ok=True)
        for name, files in found.items():
            for path in (self.results / name, (self.results / name).parent / ".finished" / Path(name).name):
                for device, inode in identity(path) & files:
                    with suppress(OSError):  # it is pinned, has gone, or lies on a mounted disk, which counts inodes up
                        os.link(path, pins / f"{device}-{inode}")

    def _of_shadow_models(self) -> Iterator[tuple[str, Path]]:
        """Return files of single shadow models, kept ones too, with the names under which they are published."""
        for stage in PER_SHADOW:
            for path in files_in(self.results / NAME / stage):
                kept = path.parent.name == ".finished"
                if re.fullmatch(r"\d+\.(npz|safetensors)", path.name) and (kept or path.parent.name[0] != "."):
                    folder = path.parent.parent if kept else path.parent
                    yield str((folder / path.name).relative_to(self.results)), path


def together(path: Path) -> list[Path]:
    """Return the files that are finished together: with measurements, and both kinds of a data-free method."""
    files = [path]
    for stage, other, suffix in (("synthetic", "models", ".safetensors"), ("models", "synthetic", ".npz")):
        twin = Path(*[other if part == stage else part for part in path.parts]).with_suffix(suffix)
        if "dfkd" in path.parts and stage in path.parts:
            files.append(twin)
    return [*files, *(file.with_suffix(".json") for file in files)]


def identity(path: Path) -> set[tuple[int, int]]:
    """Return device and inode of a file; none if it has gone. (Snakemake sets its times anew when its job is done.)"""
    with suppress(FileNotFoundError):
        stat = path.stat()
        return {(stat.st_dev, stat.st_ino)}
    return set()


def is_measured(name: Path) -> bool:
    """Tell whether a file lies beside an artefact and holds what was measured while that was made."""
    return name.suffix == ".json" and len(name.parts) > 2 and name.parts[1] in MEASURED


def named_files(printed: str) -> list[str]:
    """Return the files that jobs refused by name, with the advice to delete them."""
    refusals = re.findall(r"error: .*Delete the file", printed)
    return [name for refusal in refusals for name in re.findall(r"results/[^\s:,)]+", refusal)[:1]]


def fingerprint(path: Path) -> str:
    """Return the SHA-256 of a file's content, columns of measured seconds left out."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return "gone"
    if path.name.startswith("table1."):
        with suppress(ValueError, IndexError, StopIteration):
            content = without_seconds(content.decode(), path.suffix).encode()
    return hashlib.sha256(content).hexdigest()


def without_seconds(text: str, suffix: str) -> str:
    """Return a table without its columns of seconds."""
    if suffix == ".csv":
        rows = list(csv.reader(io.StringIO(text)))
        shown = [place for place, name in enumerate(rows[0]) if "seconds" not in name]
        return "\n".join("\t".join(row[place] for place in shown) for row in rows)
    cells = r" & | \\\\$" if suffix == ".tex" else r"</t[hd]>"
    lines = [re.split(cells, line) for line in text.splitlines()]
    heads, place = next(
        (line, place) for line in lines for place, cell in enumerate(line) if len(line) > 3 and cell.endswith("s/model")
    )
    kept = [line[:place] + line[place + 1 :] if len(line) == len(heads) else line for line in lines]
    return "\n".join("\t".join(line) for line in kept)


class Workshop:
    """The reference and the trials.

    Args:
        folder: an empty folder for all copies.
        rng: decides where and when faults hit.
        say: prints a line of progress.
        repository: whose sources are copied.
        run: the configuration, as far as it is not that of the small run.
        most: so many cases of each fault, drawn at random; None for all.
    """

    def __init__(
        self,
        folder: Path,
        rng: random.Random,
        say: Callable[[str], None] = print,
        repository: Path = REPOSITORY,
        run: dict[str, Any] = RUN,
        most: int | None = None,
    ) -> None:
        self.folder, self.rng, self.say, self._most = folder, rng, say, most
        copy_sources(folder / "sources", repository)  # once: the repository may be edited meanwhile
        self._sources = (folder / "sources", run)
        self._trials = 0
        start = time.monotonic()
        self.reference = Trial(folder / "reference", *self._sources)
        self.durations = self._run_reference()
        self.seconds = time.monotonic() - start
        self.wanted = self.reference.contents()
        say(f"reference: {len(self.wanted)} files in {self.seconds:.0f} s")

    def _run_reference(self) -> dict[str, float]:
        """Make the reference; return how long a job of each stage took at most, in seconds."""
        controller = self.reference.launch()
        seen: dict[int, tuple[str, float, float]] = {}
        while controller.poll() is None:
            now = time.monotonic()
            for job in self.reference.jobs():
                seen[job.pid] = (str(job.stage), seen.get(job.pid, ("", now, now))[1], now)
            time.sleep(0.05)
        if controller.returncode:
            raise AssertionError(f"the reference failed:\n{self.reference.printed()[-4000:]}")
        durations: dict[str, float] = {}
        for stage, first, last in seen.values():
            durations[stage] = max(durations.get(stage, 0.0), last - first)
        return durations

    def some(self, cases: Iterable[Case]) -> list[Case]:
        """Return the cases to try: all, or as many as there should be."""
        cases = list(cases)
        return cases if self._most is None else self.rng.sample(cases, min(self._most, len(cases)))

    def fresh(self) -> Trial:
        """Return a trial in which nothing has been made."""
        self._trials += 1
        return Trial(self.folder / f"trial{self._trials}", *self._sources)

    def copy(self, of: Trial | None = None) -> Trial:
        """Return a copy of a trial, or one in which everything has been made."""
        self._trials += 1
        root = self.folder / f"trial{self._trials}"
        shutil.copytree((of or self.reference).root, root, symlinks=True, ignore=shutil.ignore_patterns("pins"))
        return Trial(root)

    def begun(self, methods: int = 2) -> Trial:
        """Return a trial in which everything has been made but some methods and the reports."""
        trial = self.copy()
        run = trial.results / NAME
        independent = sorted({path.parent.name for path in run.glob("synthetic/*/*.npz")})
        for method in self.rng.sample(independent, min(methods, len(independent))):
            for path in [*run.glob(f"*/{method}"), *run.glob(f"*/{method}.*")]:
                if path.is_dir() and path.parent.name != "logs":
                    shutil.rmtree(path)
                elif path.is_file() and path.parent.name != "privacy":
                    path.unlink()
        for path in [*trial.results.glob("*.*"), *run.glob("table*"), *run.glob("figure*")]:
            if path.is_file():
                path.unlink()
        return trial

    def partial(self, trial: Trial) -> list[str]:
        """Return files under their final names, or kept by an interrupted job, that are not whole."""
        found = [name for name, digest in trial.contents().items() if digest not in ("gone", self.wanted.get(name))]
        for path in files_in(trial.results):
            if path.parent.name != ".finished":
                continue
            final = str((path.parent.parent / path.name).relative_to(trial.results))
            if path.name[0] != "." and final in self.wanted and fingerprint(path) not in ("gone", self.wanted[final]):
                found.append(str(path.relative_to(trial.results)))
        return found

    def wrong(self, trial: Trial) -> list[str]:
        """Return files that differ from the reference, are missing or should not be there."""
        found = trial.contents()
        return sorted(name for name in self.wanted | found if self.wanted.get(name) != found.get(name))

    def finish(self, trial: Trial, outcome: Outcome) -> None:
        """Compare a trial with the reference and remove it; one that went wrong is kept to be looked at."""
        outcome.wrong = self.wrong(trial)
        self.say(f"{outcome.fault}, {outcome.hit}: {'harmless' if outcome.harmless else outcome}")
        if not outcome.wrong:
            self.close(trial)

    def close(self, trial: Trial) -> None:
        """Remove a trial, as far as nothing is mounted in it."""
        shutil.rmtree(trial.root, ignore_errors=True)


# Kills

KILLS = {
    "SIGKILL of a job": 5,
    "SIGKILL of a job inside a write": 4,
    "SIGKILL of a job and its shell": 2,
    "SIGKILL of Snakemake, run again at once": 3,
    "SIGKILL of Snakemake, run again when its jobs have ended": 3,
    "SIGKILL of Snakemake and all jobs": 4,
    "SIGTERM to Snakemake": 1,
    "SIGINT to Snakemake and all jobs (Ctrl-C)": 1,
}
"""Ways to kill a run, with how often each is chosen."""


class Campaign:
    """Trees that are killed again and again until they are done, then begun anew."""

    def __init__(self, workshop: Workshop) -> None:
        self.workshop, self.rng = workshop, workshop.rng
        self.outcomes: list[Outcome] = []
        self._hits: Counter[str] = Counter(dict.fromkeys(workshop.durations, 0))
        self._ledger: list[tuple[Outcome, Finished]] = []

    def kill(self, kills: int) -> list[Outcome]:
        """Kill so many times; return what it came to."""
        ways = [*KILLS, *self.rng.choices([*KILLS], [*KILLS.values()], k=kills)][:kills]
        while ways:
            start, trial = time.monotonic(), self.workshop.fresh()
            self._ledger = []
            locked = False
            while ways and (outcome := self._strike(trial, ways[0], locked)):
                locked = "Snakemake" in ways.pop(0)
                self.outcomes.append(outcome)
                self.workshop.say(f"{len(ways)} kills left; {outcome.fault}: {outcome.hit} {outcome.remark}")
            trial.settle()
            trial.recover(unlock=True)
            self._close(trial, time.monotonic() - start)
        return self.outcomes

    def _strike(self, trial: Trial, way: str, locked: bool) -> Outcome | None:
        """Run until a job of a stage that was hit seldom is at work, and strike; None if the run ended first."""
        if locked:
            trial.snakemake("--unlock")
        struck = self._inside_a_write(trial) if way.endswith("inside a write") else self._at_a_moment(trial, way)
        if struck is None:
            return None
        controller, stage, finished = struck
        self._hits[stage] += 1
        outcome = Outcome(way, stage, partial=self.workshop.partial(trial), remark=standing(trial))
        if way.endswith("run again at once"):
            self._go_on_beside_orphans(trial)
        else:
            controller.wait(PATIENCE)
            trial.settle()
        # Jobs that outlive their Snakemake finish more: that must not be lost, either.
        self._ledger.append((outcome, trial.finished() if way.endswith("have ended") else finished))
        return outcome

    def _seldom(self) -> list[str]:
        """Return the half of the stages that were hit most seldom."""
        stages = sorted(self._hits, key=lambda stage: (self._hits[stage], self.rng.random()))
        return stages[: len(stages) // 2]

    def _inside_a_write(self, trial: Trial) -> Struck | None:
        """Have a job die in a system call with which it writes."""
        order = trial.root / ORDER
        controller = trial.launch()
        time.sleep(self.rng.uniform(0, 4))
        order.write_text(f"{self.rng.choice(WRITING_CALLS)} {self.rng.randint(1, 8)} {' '.join(self._seldom())}")
        finished: Finished = {}
        while controller.poll() is None and order.exists():
            finished = trial.finished()
            time.sleep(0.01)
        for obeyed in trial.root.glob("obeyed-*"):
            obeyed.unlink()
            return controller, obeyed.name.removeprefix("obeyed-"), finished
        order.unlink()
        return None

    def _at_a_moment(self, trial: Trial, way: str) -> Struck | None:
        """Send a signal at a random moment of a job of a stage that was hit seldom, or of any after a while."""
        controller = trial.launch()
        stages, patience = self._seldom(), time.monotonic() + self.rng.uniform(1, 8)
        while controller.poll() is None:
            jobs = trial.jobs()
            chosen = [job for job in jobs if job.stage in stages] or (jobs if time.monotonic() > patience else [])
            if chosen:
                job = self.rng.choice(chosen)
                time.sleep(self.rng.uniform(0, self.workshop.durations[job.stage or ""]))
                if job in trial.jobs():
                    finished = trial.finished()
                    send(trial, controller.pid, job, way)
                    return controller, job.stage or "", finished
            time.sleep(0.02)
        return None

    def _go_on_beside_orphans(self, trial: Trial) -> None:
        """Run again at once, while the jobs of the killed Snakemake still write, until the run is over."""
        orphans = [process.pid for process in processes(trial.root)]
        trial.snakemake("--unlock")
        controller = trial.launch()
        trial.settle(orphans)
        kill([controller.pid], signal.SIGTERM)  # no new jobs; those that are running come to their end
        controller.wait(PATIENCE)
        trial.settle()

    def _close(self, trial: Trial, seconds: float) -> None:
        """Compare a tree that was killed and has recovered."""
        wrong, now = self.workshop.wrong(trial), trial.finished()
        for place, (outcome, before) in enumerate(self._ledger):
            later = self._ledger[place + 1][1] if place + 1 < len(self._ledger) else {}
            for name, files in before.items():
                again = not files & now.get(name, set())
                if again and not files & later.get(name, set()):  # or the later fault is to blame
                    outcome.lost.append(name)
            outcome.wrong = wrong
            outcome.seconds = seconds / len(self._ledger)
            if not outcome.harmless:
                self.workshop.say(f"  {outcome}")
        self.workshop.say(f"a tree is done after {len(self._ledger)} kills, {seconds:.0f} s")
        if not wrong:
            self.workshop.close(trial)


def standing(trial: Trial) -> str:
    """Tell whether a fault hit a write, or a computation that had saved its state."""
    names = [path.name for path in files_in(trial.results)]
    if any(name.endswith(".tmp") for name in names):
        return "writing"
    return "between checkpoints" if any(".checkpoint." in name for name in names) else ""


def send(trial: Trial, controller: int, job: Process, way: str) -> None:
    """Kill a job, its shell, Snakemake or all of them."""
    everything = processes(trial.root)
    pids = [process.pid for process in everything]
    if way == "SIGKILL of a job":
        kill([job.pid], signal.SIGKILL)
    elif way == "SIGKILL of a job and its shell":
        of_stage = [process.pid for process in everything if f"coalmine.stages.{job.stage}" in str(process.command)]
        kill([pid for pid in of_stage if pid != controller], signal.SIGKILL)
    elif way.startswith("SIGKILL of Snakemake, run again"):
        kill([controller], signal.SIGKILL)
    elif way == "SIGKILL of Snakemake and all jobs":
        kill(pids, signal.SIGKILL)
    elif way == "SIGTERM to Snakemake":
        kill([controller], signal.SIGTERM)
    else:
        kill(pids, signal.SIGINT)


# Damage to files


def cut(path: Path, rng: random.Random) -> None:
    """Keep a random part of a file's beginning."""
    os.truncate(path, rng.randrange(path.stat().st_size))


def flip(path: Path, rng: random.Random) -> None:
    """Turn one bit over."""
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def blank(path: Path, rng: random.Random) -> None:
    """Overwrite up to 512 bytes with zeros, as a file system does that lost a block."""
    content = bytearray(path.read_bytes())
    start = rng.randrange(len(content))
    end = min(start + 512, len(content))
    content[start:end] = bytes(end - start)
    path.write_bytes(content)


def delete(path: Path, rng: random.Random) -> None:
    """Remove a file."""
    path.unlink()


DAMAGES = {"cut short": cut, "one bit flipped": flip, "overwritten with zeros": blank, "deleted": delete}


def damaged(workshop: Workshop, per_kind: int = 2) -> list[Outcome]:
    """Damage finished artefacts of every kind, each before anything reads it again."""
    outcomes, ways = [], [*DAMAGES]
    run = workshop.reference.results / NAME
    there = [pattern for pattern in READERS if any(run.glob(pattern))]
    cases = [
        (pattern, ways[(number + step) % len(ways)]) for number, pattern in enumerate(there) for step in range(per_kind)
    ]
    for pattern, way in workshop.some(cases):
        file = workshop.rng.choice(sorted(run.glob(pattern))).resolve().relative_to(workshop.reference.root)
        outcomes.append(_damage(workshop, file, way, READERS[pattern]))
    return outcomes


def _damage(workshop: Workshop, file: Path, way: str, readers: list[str]) -> Outcome:
    """Damage one file; see who notices, then recover by that."""
    trial, name = workshop.copy(), str(file)
    DAMAGES[way](trial.root / file, workshop.rng)
    outcome = Outcome(f"a file {way}", str(file.relative_to("results")))
    noticed = ["coalmine verify"] if name in verified(trial) else []
    by_reader, outcome.remark = _read(workshop, trial, file, readers)
    outcome.noticed = ", ".join([*noticed, *by_reader])
    finished, start = trial.finished(), time.monotonic()
    if outcome.noticed:
        (trial.root / file).unlink(missing_ok=True)
        # By itself first: within one run, Snakemake makes anew all that follows, whether or not its bytes come back.
        trial.recover(name)
        trial.recover()
    now = trial.finished()
    again = [other for other, files in finished.items() if not files & now.get(other, set())]
    siblings = [other for other in again if of_one_job(Path(other), Path(outcome.hit))]
    if len(siblings) > 1:
        told = f"{len(siblings) - 1} other files of its job made again"
        outcome.remark = f"{outcome.remark}; {told}" if outcome.remark else told
    outcome.lost = [other for other in again if other not in siblings and not shows_results(other)]
    outcome.seconds = time.monotonic() - start
    workshop.finish(trial, outcome)
    return outcome


def _read(workshop: Workshop, damaged: Trial, file: Path, readers: list[str]) -> tuple[list[str], str]:
    """Have what is made from a damaged file made anew, in a copy.

    A job that reads the file refuses it by name, or its outputs are the same nevertheless (the damage hit what it does
    not read, or nothing), or it is fooled: then only ``coalmine verify`` can tell.

    Returns:
        Who noticed the damage, and a remark.
    """
    trial = workshop.copy(damaged)
    made = [path.resolve() for pattern in readers for path in (trial.results / NAME).glob(pattern) if path.is_file()]
    if not made:
        return [], ""
    for path in made:
        path.unlink()
    status, printed = trial.attempt(*(str(path.relative_to(trial.root)) for path in made))
    wanted, there = workshop.wanted, (trial.root / file).is_file()
    wrong = [path for path in made if fingerprint(path) != wanted.get(key(trial, path), fingerprint(path))]
    was_gone = not (damaged.root / file).is_file()
    workshop.close(trial)
    if status:
        return ["its reader" if str(file) in named_files(printed) else "its reader, unnamed"], ""
    if was_gone:
        return ["Snakemake"] if there else [], ""
    return [], "its reader is fooled" if wrong else "its reader does not depend on the damage"


def of_one_job(name: Path, other: Path) -> bool:
    """Tell whether one job makes both files: the shadow models of a method, one data set, or files of one name."""
    if name.parts[1:2] == other.parts[1:2] == ("data",):
        return ("public" in name.parts) == ("public" in other.parts)
    batched = name.parts[1:2] in [(stage,) for stage in (*PER_SHADOW, "audit")]
    return name.parent == other.parent if batched else name.stem == other.stem


def shows_results(name: str) -> bool:
    """Tell whether a file is of a table or figure: they show measured seconds, and take none to make."""
    return Path(name).name.startswith(("table", "figure"))


def key(trial: Trial, path: Path) -> str:
    """Return the name of a file under ``results``."""
    return str(path.relative_to(trial.results))


def verified(trial: Trial) -> list[str]:
    """Return the files that ``coalmine verify`` calls damaged or gone."""
    done = subprocess.run(
        [SNAKEMAKE[0], "-m", "coalmine", "verify", "--json"],
        cwd=trial.root,
        env=environment() | {"PYTHONPATH": str(trial.root / "src")},
        capture_output=True,
        text=True,
    )
    if done.returncode not in (0, 1):
        raise AssertionError(f"coalmine verify failed:\n{done.stderr[-4000:]}")
    files = json.loads(done.stdout)["artefacts"]
    return [file["path"] for file in files if file["state"] in ("damaged", "missing", "absent")]


def unfinished(workshop: Workshop) -> list[Outcome]:
    """Stop a run, damage what it kept for going on (finished files of a batch, checkpoints), and go on."""
    outcomes = []
    patterns = (".finished/*.npz", ".finished/*.safetensors", ".finished/*.checkpoint*.npz", ".finished/*.json")
    for pattern, way in workshop.some(product(patterns, DAMAGES)):
        trial = workshop.begun(1)
        file = _stop_when_there_is(trial, pattern)
        start = time.monotonic()
        if file is None:
            workshop.say(f"{pattern} went before it could be damaged")
            workshop.close(trial)
            continue
        DAMAGES[way](file, workshop.rng)
        outcome = Outcome(f"a kept file {way}", file.name, "the next job")
        trial.recover(unlock=True)
        outcome.seconds = time.monotonic() - start
        outcomes.append(outcome)
        workshop.finish(trial, outcome)
    return outcomes


def _stop_when_there_is(trial: Trial, pattern: str) -> Path | None:
    """Run until a kept file appears, then kill everything; return the file, None if it went before."""
    controller = trial.launch()
    while controller.poll() is None:
        found = [
            path
            for path in files_in(trial.results)
            if path.match(pattern) and path.name[0] != "." and ("checkpoint" in path.name) == ("checkpoint" in pattern)
        ]
        if found:
            kill([process.pid for process in processes(trial.root)], signal.SIGKILL)
            controller.wait()
            trial.settle()
            return next((path for path in found if path.is_file()), None)
        time.sleep(0.005)
    return None


# Snakemake's own records


def records(workshop: Workshop) -> list[Outcome]:
    """Lose or fake what Snakemake keeps in ``.snakemake``."""

    gone: list[str] = []

    def without_metadata(trial: Trial) -> None:
        shutil.rmtree(trial.root / ".snakemake/metadata")

    def without_anything(trial: Trial) -> None:
        shutil.rmtree(trial.root / ".snakemake")

    def marked_incomplete(trial: Trial) -> None:
        # Of a whole job: marks on single finished files would, rightly, have Snakemake make anew what is whole.
        folder = workshop.rng.choice(sorted((trial.results / NAME).glob("logits/*")))
        for path in sorted(folder.glob("*.npz")):
            name = str(path.relative_to(trial.root))
            path.unlink()
            gone.append(name)
            (trial.root / ".snakemake/incomplete" / urlsafe_b64encode(name.encode()).decode()).write_text("{}")

    def broken_metadata(trial: Trial) -> None:
        for path in workshop.rng.sample(sorted((trial.root / ".snakemake/metadata").iterdir()), 5):
            cut(path, workshop.rng)

    faults: dict[str, Callable[[Trial], None]] = {
        "metadata removed": without_metadata,
        ".snakemake removed": without_anything,
        "marks of unfinished jobs left behind, their files gone": marked_incomplete,
        "metadata cut short": broken_metadata,
    }
    outcomes = []
    for fault, inject in workshop.some(faults.items()):
        trial = workshop.copy()
        gone.clear()
        inject(trial)
        for table in (trial.results / NAME / "table1.csv", trial.results / "table1.csv"):
            table.unlink()
        before, start = trial.finished(), time.monotonic()
        if gone:
            trial.recover(*gone)  # nothing but these asks for them: the tables that they led to stand
        outcomes.append(_recovered(workshop, trial, Outcome(fault, ".snakemake"), before, start))
    return [*outcomes, _stale_lock(workshop)]


def _stale_lock(workshop: Workshop) -> Outcome:
    trial = workshop.copy()
    (trial.results / "table1.csv").unlink()
    before, start = trial.finished(), time.monotonic()
    controller = trial.launch()
    while not any((trial.root / ".snakemake/locks").glob("*")) and controller.poll() is None:
        time.sleep(0.01)
    kill([process.pid for process in processes(trial.root)], signal.SIGKILL)
    controller.wait()
    trial.settle()
    _, printed = trial.attempt("all")
    noticed = "Snakemake" if "locked" in printed else ""
    outcome = Outcome("a lock left behind", ".snakemake/locks", noticed)
    return _recovered(workshop, trial, outcome, before, start, unlock=True)


def _recovered(
    workshop: Workshop, trial: Trial, outcome: Outcome, before: Finished, start: float, unlock: bool = False
) -> Outcome:
    """Recover a trial, note what was made again of what is no table or figure, and compare it."""
    trial.recover(unlock=unlock)
    now = trial.finished()
    outcome.lost = [
        name for name, files in before.items() if not files & now.get(name, set()) and not shows_results(name)
    ]
    outcome.seconds = time.monotonic() - start
    workshop.finish(trial, outcome)
    return outcome


# The disk, the clock, and others at work


def full_disk(workshop: Workshop, times: int = 3) -> list[Outcome]:
    """Run on a file system that is too small, then with enough space. Needs the right to mount one."""
    outcomes: list[Outcome] = []
    for _ in workshop.some(range(times)):
        trial = workshop.begun()
        made = trial.results.rename(trial.root / "made")
        trial.results.mkdir()
        files = [*files_in(made)]
        used = sum(-(-path.stat().st_size // 4096) * 4096 for path in files)
        left = workshop.rng.randrange(16, 400) << 10
        with mounted(trial.results, used + left) as possible:
            if not possible:
                workshop.close(trial)
                return outcomes
            shutil.copytree(made, trial.results, dirs_exist_ok=True)
            start = time.monotonic()
            _, printed = trial.attempt("all")
            before = trial.finished()
            told = "disk is full" in printed
            noticed = "the job that writes" if told else "the shell" if "No space left" in printed else ""
            partial = workshop.partial(trial)
            outcome = Outcome("full disk", f"after {left >> 10} KiB", noticed, partial=partial)
            subprocess.run(["mount", "-o", "remount,size=1g", str(trial.results)], check=True)
            outcomes.append(_recovered(workshop, trial, outcome, before, start))
        workshop.close(trial)
    return outcomes


@contextmanager
def mounted(folder: Path, size: int) -> Iterator[bool]:
    """Mount a small file system in memory on a folder; tell whether that is possible."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={max(size, 65536)}", "none", str(folder)]
    possible = shutil.which("mount") is not None and subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield possible
    finally:
        if possible:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def read_only(workshop: Workshop) -> list[Outcome]:
    """Run while the folder of results cannot be written to, then again. Needs the right to mount."""
    trial = workshop.copy()
    for path in (trial.results / NAME / "table1.csv", trial.results / "table1.csv"):
        path.unlink()
    before, start = trial.finished(), time.monotonic()
    bind = ["mount", "--bind", str(trial.results), str(trial.results)]
    if shutil.which("mount") is None or subprocess.run(bind, capture_output=True).returncode:
        workshop.close(trial)
        return []
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(trial.results)], check=True)
        _, printed = trial.attempt("all")
    finally:
        subprocess.run(["umount", "--lazy", str(trial.results)], check=True)
    noticed = "Snakemake or the shell" if "Read-only file system" in printed else ""
    return [_recovered(workshop, trial, Outcome("results read-only", "results", noticed), before, start)]


def two_at_once(workshop: Workshop) -> list[Outcome]:
    """Run two Snakemakes in one folder: with their lock, and without it, where both make the same files."""
    outcomes: list[Outcome] = []
    reports = sorted(f"results/{name}" for name in workshop.wanted if re.fullmatch(r"(table|figure)\d\.csv", name))
    cases: list[tuple[str, tuple[str, str], tuple[str, ...]]] = [
        ("two controllers, one target", ("all", "all"), ()),
        ("two controllers, targets that share files", (reports[0], reports[-1]), ()),
        ("two controllers, lock switched off", ("all", "all"), ("--nolock",)),
    ]
    for fault, targets, options in workshop.some(cases):
        trial, start = workshop.begun(), time.monotonic()
        first = trial.launch(targets[0], *options)
        time.sleep(workshop.rng.uniform(2, 6))
        second = trial.launch(targets[1], *options)
        codes = [first.wait(PATIENCE), second.wait(PATIENCE)]
        trial.settle()
        noticed = "Snakemake" if "locked" in trial.printed() else ""
        remark = f"exit status {codes[0]} and {codes[1]}"
        outcome = Outcome(fault, " and ".join(dict.fromkeys(targets)), noticed, remark=remark)
        outcome.partial = workshop.partial(trial)
        outcomes.append(_recovered(workshop, trial, outcome, trial.finished(), start))
    return outcomes


def clock(workshop: Workshop) -> list[Outcome]:
    """Bring the clock back or forward in the middle of a run: what was made before then lies in the future or past."""
    outcomes = []
    for fault, shift in workshop.some((("clock brought back", 86400.0), ("clock put forward", -86400.0))):
        trial = workshop.begun()
        _stop_when_there_is(trial, ".finished/*")
        start = time.monotonic()
        for path in files_in(trial.results):
            stat = path.stat()
            os.utime(path, (stat.st_atime + shift, stat.st_mtime + shift))
        before = trial.finished()
        trial.recover(unlock=True)
        settled = trial.finished()
        trial.recover()
        outcome = Outcome(fault, "a day, half-way", remark="" if trial.finished() == settled else "reruns for ever")
        outcomes.append(_recovered(workshop, trial, outcome, before, start))
    times = (("times of single files in the future", 86400.0), ("times of single files in the past", -86400.0 * 3650))
    for fault, shift in workshop.some(times):
        trial = workshop.copy()
        for path in workshop.rng.sample([path for _, path in trial.artefacts()], 12):
            stat = path.stat()
            os.utime(path, (stat.st_atime, stat.st_mtime + shift))
        before, start = trial.finished(), time.monotonic()
        outcomes.append(_recovered(workshop, trial, Outcome(fault, "12 files"), before, start))
    return outcomes


def removed(workshop: Workshop) -> list[Outcome]:
    """Remove what nobody needs: logs, intermediates of a finished table."""
    outcomes: list[Outcome] = []
    cases = (("logs removed", ["logs"]), ("intermediates removed", ["models", "synthetic", "experts"]))
    for fault, names in workshop.some(cases):
        trial = workshop.copy()
        for name in names:
            shutil.rmtree(trial.results / NAME / name, ignore_errors=True)
        before, start = trial.finished(), time.monotonic()
        outcome = Outcome(fault, ", ".join(names))
        trial.attempt("all")
        again = [name for name, files in before.items() if not files & trial.finished().get(name, set())]
        outcome.remark = f"{len(again)} files made again" if again else "nothing reruns"
        targets = [f"results/{name}" for name in workshop.wanted if name.split("/")[1:2] in [[n] for n in names]]
        trial.recover(*(targets or ["all"]))
        outcomes.append(_recovered(workshop, trial, outcome, before, start))
    return outcomes


FAULTS: dict[str, Callable[[Workshop], list[Outcome]]] = {
    "damaged": damaged,
    "unfinished": unfinished,
    "records": records,
    "full_disk": full_disk,
    "read_only": read_only,
    "two_at_once": two_at_once,
    "clock": clock,
    "removed": removed,
}
"""All faults but kills."""


def inject(workshop: Workshop, name: str) -> list[Outcome]:
    """Inject all faults of a name; a run that does not recover is an outcome, too."""
    try:
        return FAULTS[name](workshop)
    except AssertionError as error:
        return [Outcome(name, "", wrong=["all: it did not recover"], remark=str(error).splitlines()[0])]
