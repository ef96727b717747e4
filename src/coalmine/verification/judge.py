"""The state of every file in a folder of results, and what is to be done about it."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from coalmine.artefacts import Header
from coalmine.checksums import record_path
from coalmine.dag import Graph, Job
from coalmine.run_files import design_digest
from coalmine.verification import inputs
from coalmine.verification.disk import Disk

DIFFERENCES_TOLD = 3


class State(StrEnum):
    """What a file is."""

    GOOD = "good"
    DAMAGED = "damaged"
    STALE = "stale"
    FOREIGN = "foreign"
    MISSING = "missing"
    ABSENT = "absent"
    UNFINISHED = "unfinished"


class Remedy(StrEnum):
    """What is to be done about a file."""

    NONE = ""
    MAKE = "delete it and make it anew"
    DELETE = "delete it: nothing uses it"
    MOVE = "move it away, or delete it if it is not wanted"
    RUN = "run Snakemake: it makes it"
    KEEP = "run Snakemake: it goes on from it"


@dataclass(frozen=True)
class Finding:
    """What has been found about a file.

    Attributes:
        path: the file.
        state: what it is.
        reason: why, in words; of a good file, what could not be checked.
        remedy: what is to be done.
        stage: the stage that makes it; empty if none does.
        method: whom it is for: method, experts, network, table or figure.
    """

    path: Path
    state: State
    reason: str = ""
    remedy: Remedy = Remedy.NONE
    stage: str = ""
    method: str = ""

    @property
    def is_wrong(self) -> bool:
        """Whether results are not as they should be: what nothing uses does no harm."""
        return self.state in (State.DAMAGED, State.STALE, State.FOREIGN, State.MISSING) and bool(self.stage)


class Judge:
    """Judges the outputs of all jobs, those first that others are made from.

    Args:
        graph: the jobs, and the configuration.
        disk: the files.
    """

    def __init__(self, graph: Graph, disk: Disk) -> None:
        self._disk = disk
        self._jobs = [job for job in graph.jobs if job.outputs]
        self._consumers: dict[Path, list[Job]] = defaultdict(list)
        for job in self._jobs:
            for path in job.inputs:
                self._consumers[path].append(job)
        self.found: dict[Path, Finding] = {}

    def __call__(self) -> list[Finding]:
        """Return a finding a file, and one for each record of a check sum that is damaged itself."""
        known = {
            record.sha256: path for job in self._jobs for path in job.outputs if (record := self._disk[path].record)
        }
        for job in self._jobs:
            for path in job.outputs:
                state, reason, remedy = self._judge(job, path, known)
                if state is State.FOREIGN:
                    self._disk.misplaced.add(path)
                self.found[path] = Finding(path, state, reason, remedy, job.stage, job.subject)
        records = [
            Finding(record_path(path), State.DAMAGED, reason, Remedy.DELETE, found.stage, found.method)
            for path, found in self.found.items()
            if (reason := self._disk[path].record_damage)
        ]
        return [*self.found.values(), *records]

    def _judge(self, job: Job, path: Path, known: dict[str, Path]) -> tuple[State, str, Remedy]:
        file = self._disk[path]
        if not file.exists:
            return self._absent(job, path)
        if path in job.incomplete:
            return State.UNFINISHED, "its job was killed; Snakemake makes it anew", Remedy.RUN
        damage = file.damage or self._misfit(job, path)
        if damage:
            copied = known.get(file.now.sha256) if file.record else None
            if copied not in (None, path):
                return State.FOREIGN, f"a copy of {copied}", Remedy.MAKE
            return State.DAMAGED, damage, Remedy.MAKE
        header = self._header(job, path)
        shadow = _shadow(path)
        if header is not None and (other := _identity(job, shadow, header)):
            return State.FOREIGN, other, Remedy.MAKE
        if reason := self._stale(job, path, shadow, header):
            return State.STALE, reason, Remedy.MAKE
        checked = file.record or not self._wants_record(job)
        return State.GOOD, "" if checked else "no checksum", Remedy.NONE

    def _absent(self, job: Job, path: Path) -> tuple[State, str, Remedy]:
        consumers = self._consumers[path] or [one for out in job.outputs for one in self._consumers[out]]
        made = [out for consumer in consumers for out in consumer.outputs if self._disk[out].exists]
        if not consumers:
            return State.MISSING, "a target that has not been made", Remedy.RUN
        if not made:
            return State.ABSENT, "not made yet", Remedy.NONE
        if job.needed:
            return State.MISSING, f"{made[0]} is there, which is made from it", Remedy.RUN
        return State.ABSENT, "not needed: what is made from it is there", Remedy.NONE

    def _wants_record(self, job: Job) -> bool:
        """Tell whether the files of a job have check sums beside them: those of stages, but what others pin or copy."""
        return bool(job.program) and job.program != "download"

    def _misfit(self, job: Job, path: Path) -> str:
        """Return what is wrong with a file that is whole by itself, held against what else lies there."""
        if job.program == "download":
            return self._not_pinned(job, path)
        if job.stage == "configuration":
            # As `python -m json.tool` writes it.
            text = json.dumps(job.spec, indent=4, sort_keys=True) + "\n"
            same = self._disk[path].now.sha256 == hashlib.sha256(text.encode()).hexdigest()
            return "" if same or self._disk.says(path) != job.spec else "not as it was written"
        if job.program == "prepare" and path.suffix == ".npy":
            return self._other_data(path.parent.name)
        if job.program == "design" and path.suffix != ".json":
            return self._other_design(path.parent)
        if job.stage.startswith("publish") and not self._older(job, path):
            return self._other_copy(job, path)
        return ""

    def _not_pinned(self, job: Job, path: Path) -> str:
        pinned, file = job.spec or {}, self._disk[path]
        if pinned.get("size") not in (None, (self._disk.folder / path).stat().st_size):
            return f"another size than the {pinned['size']:,} bytes that were to be downloaded"
        if not self._disk.quick and pinned.get("sha256") not in (None, file.now.sha256):
            return "other bytes than were to be downloaded (SHA-256)"
        return ""

    def _other_data(self, part: str) -> str:
        if self._disk.quick or any(
            self._disk[self._disk.run / "data" / part / name].record for name in ("images.npy", "labels.npy")
        ):
            return ""
        now, noted = self._disk.images_now(part), self._disk.images(part)
        return "" if now in (None, noted) else f"images or labels are others than when prepared ({noted}, now {now})"

    def _other_design(self, folder: Path) -> str:
        names = ("canaries.csv", "membership.npy")
        if self._disk.quick or any(self._disk[folder / name].record for name in names):
            return ""
        design, noted = self._disk.design_now(folder), self._disk.design(folder)
        if isinstance(design, str):
            return design
        now = design_digest(design)
        return "" if now == noted else f"canaries or membership are others than when drawn ({noted}, now {now})"

    def _other_copy(self, job: Job, path: Path) -> str:
        source = _original(job, path)
        original = self._disk[source]
        if not original.exists:
            return ""
        if self._disk.quick:
            same = self._disk[path].now.size == (original.record or original.now).size
        else:
            same = self._disk[path].now.sha256 == (original.record or original.now).sha256
        return "" if same else f"differs from {source}, which it is a copy of"

    def _older(self, job: Job, path: Path) -> bool:
        """Tell whether a published copy was made before its original was made anew."""
        original = self._disk.folder / _original(job, path)
        return original.exists() and (self._disk.folder / path).stat().st_mtime < original.stat().st_mtime

    def _header(self, job: Job, path: Path) -> Header | None:
        """Return what determines a file: said by itself, by the file that its job made with it, or by its record."""
        file = self._disk[path]
        if job.program in ("prepare", "design"):
            said = next((self._disk.says(out) for out in job.outputs if out.suffix == ".json"), None)
        elif file.record and file.record.header:
            said = file.record.header
        else:
            said = self._disk.says(path)
        # What was measured beside an artefact is of its shadow model's job, and says nothing about it.
        return said if said and "stage" in said else None

    def _stale(self, job: Job, path: Path, shadow: int | None, header: Header | None) -> str:
        if job.stage == "configuration":
            return _told(inputs.changed(self._disk.says(path), job.spec))
        if job.stage.startswith("publish") and self._older(job, path) and (differs := self._other_copy(job, path)):
            return differs
        if path.suffix == ".json" and header is None:
            return ""  # measurements beside an artefact, which is judged itself
        if header is not None:
            found = inputs.changed(header.get("spec"), job.spec)
            if header.get("code") != job.code:
                found += inputs.changed(header.get("code"), job.code, "code")
            found += self._other_labels(job, header)
            found += inputs.differences(job, shadow, header.get("inputs", {}), self._disk)
            if found:
                return _told(found)
        sources = [_original(job, path)] if job.stage.startswith("publish") else inputs.of_shadow(job.inputs, shadow)
        for source in sources:
            judged = self.found.get(source)
            if judged and judged.state is State.STALE:
                return f"made from {source}, which is stale"
        # Tables and figures do not say what numbers they were made from: Snakemake notes that, or goes by time.
        if job.program in ("table", "figure") and job.needed:
            return _by_snakemake(job)
        return ""

    def _other_labels(self, job: Job, header: Header) -> list[str]:
        """Return how the labels that a design was drawn for differ from those that lie there."""
        if job.program != "design" or self._disk.quick:
            return []
        labels = next(path for path in job.inputs if path.name == "labels.npy")
        now = self._disk.digest(labels)
        return [] if now is None else inputs.changed(header["digests"].get("labels"), now, "labels")


def _original(job: Job, path: Path) -> Path:
    """Return what a published file is a copy of."""
    (source,) = [source for source in job.inputs if source.name == path.name]
    return source


def _by_snakemake(job: Job) -> str:
    """Return why Snakemake would make the files of a job anew that are there; empty if it is for others' sake."""
    reasons = [one for one in job.reason.split("; ") if "generated" not in one and "another job" not in one]
    return f"Snakemake: {'; '.join(reasons)}" if any(reasons) else ""


def _shadow(path: Path) -> int | None:
    return int(path.stem) if path.stem.isdecimal() else None


def _identity(job: Job, shadow: int | None, header: Header) -> str:
    """Return whose file it is by its header, if it is none of this job; empty if it is."""
    spec = header.get("spec")
    spec = spec if isinstance(spec, dict) else {}
    own = job.spec or {}
    owner = [key for key in ("method", "experts", "name") if spec.get(key) != own.get(key)]
    if header.get("stage") == job.program and not owner and header.get("shadow", shadow) == shadow:
        return ""
    named = next((spec[key] for key in ("method", "experts", "name") if key in spec), "")
    of = f" of shadow model {header['shadow']}" if "shadow" in header else ""
    return f"made by {header.get('stage')} for {named or 'the run'}{of}"


def _told(differences: Sequence[str]) -> str:
    told = "; ".join(differences[:DIFFERENCES_TOLD])
    more = len(differences) - DIFFERENCES_TOLD
    return f"{told}; and {more} more" if more > 0 else told
