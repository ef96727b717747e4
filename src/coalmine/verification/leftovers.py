"""Files in a folder of results that no job declares: what unfinished jobs keep, temporary files, and foreign ones."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from coalmine.artefacts import is_left_over
from coalmine.checksums import FOLDER
from coalmine.dag import Graph, Job
from coalmine.keep import REPORTS
from coalmine.verification.disk import Disk
from coalmine.verification.judge import Finding, Remedy, State

_TEMPORARY = re.compile(r"\..+\.tmp")


def lying(folder: Path, run: str | None = None) -> Iterator[Path]:
    """Yield files of results, relative to ``folder``: of one run or of all, those that all share, and published ones.

    Logs, records of check sums and what is kept under ``results/published`` are left out.
    """
    results = folder / "results"
    if not results.is_dir():
        return
    for entry in sorted(results.iterdir()):
        if entry.is_file() and entry.suffix in REPORTS:
            yield entry.relative_to(folder)
        elif entry.is_dir() and entry.name in (run or entry.name, "data") and entry.name not in ("published", "logs"):
            yield from (path.relative_to(folder) for path in _under(entry))


def _under(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if Path(parent, name) != folder / "logs")
        records = Path(parent).name == FOLDER
        yield from (Path(parent, name) for name in sorted(names) if not records or _TEMPORARY.fullmatch(name))


def undeclared(graph: Graph, disk: Disk, known: Iterable[Path]) -> list[Finding]:
    """Return findings on files of the run that are no outputs of its jobs.

    Args:
        graph: the jobs.
        disk: the files.
        known: outputs of the jobs.
    """
    declared = set(known)
    others = [path for path in lying(disk.folder, graph.run.name) if path not in declared]
    kept: dict[tuple[Path, str], list[Path]] = defaultdict(list)
    found = []
    for path in others:
        inside = path.relative_to("results").parts
        if _TEMPORARY.fullmatch(path.name):
            found.append(_temporary(disk.folder, path))
        elif any(part.startswith(".") for part in inside):
            kept[_owner(path)].append(path)
        else:
            reason = "no job of this configuration makes it"
            found.append(Finding(path, State.FOREIGN, reason, Remedy.MOVE))
    makers = {(out.parent, out.name.split(".")[0]): job for job in graph.jobs for out in job.outputs}
    for owner, paths in kept.items():
        found += _kept(paths, makers.get(owner), disk)
    return found


def _temporary(folder: Path, path: Path) -> Finding:
    if is_left_over(folder / path):
        return Finding(path, State.UNFINISHED, "left by a job that was killed while it wrote", Remedy.DELETE)
    return Finding(path, State.UNFINISHED, "a job may be writing it now", Remedy.NONE)


def _owner(path: Path) -> tuple[Path, str]:
    """Return the folder and the name without suffix of the artefact that a file is kept for."""
    folder = path.parent
    while folder.name.startswith("."):
        folder = folder.parent
    return folder, path.name.lstrip(".").split(".")[0]


def _kept(paths: list[Path], job: Job | None, disk: Disk) -> Iterator[Finding]:
    """Yield findings on what is kept for one artefact: finished files of an unfinished job, and checkpoints."""
    if job is None:
        reason = "kept for a file that no job of this configuration makes"
        yield from (Finding(path, State.UNFINISHED, reason, Remedy.DELETE) for path in paths)
        return
    headers = [disk.says(path) for path in paths]
    fits = all(one["spec"] == job.spec and one["code"] == job.code for one in headers if one and "spec" in one)
    finished = all((disk.folder / out).is_file() for out in job.outputs) and not job.incomplete
    for path in paths:
        if damage := disk[path].damage:
            reason, remedy = f"damaged and not taken up: {damage}", Remedy.DELETE
        elif finished:
            reason, remedy = "what it was kept for is finished", Remedy.DELETE
        elif not fits:
            reason, remedy = "of other settings or code, and not taken up", Remedy.DELETE
        else:
            reason, remedy = "of an unfinished job, which goes on from it", Remedy.KEEP
        yield Finding(path, State.UNFINISHED, reason, remedy, job.stage, job.subject)
