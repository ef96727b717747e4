"""``coalmine verify``: are results whole, and do they belong to this configuration, code, membership and data?

Snakemake says which files each job makes, from which inputs, settings and code; every file says, in its header or in
the record of its check sum, what it was made from. This command holds the two against each other and computes nothing
anew.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from coalmine import checksums
from coalmine.dag import Graph, read_graph
from coalmine.errors import CoalmineError
from coalmine.verification.disk import Disk
from coalmine.verification.judge import Finding, Judge, Remedy, State
from coalmine.verification.leftovers import lying, undeclared

WHOLE, WRONG = 0, 1
"""Exit statuses; 2 is left to what could not be done."""

PATHS_SHOWN = 12
"""With more files than that to be made anew, the command that is told lists them itself."""


@dataclass(frozen=True)
class Report:
    """What has been found.

    Attributes:
        run: the name of the run.
        locked: another run makes these files now, or was killed.
        findings: one a file.
    """

    run: str
    locked: bool
    findings: tuple[Finding, ...]

    @property
    def wrong(self) -> list[Finding]:
        """The files that are not as they should be."""
        return [found for found in self.findings if found.is_wrong]

    @property
    def to_delete(self) -> list[Finding]:
        """The files that ``--delete`` removes."""
        return [found for found in self.findings if found.remedy in (Remedy.MAKE, Remedy.DELETE)]

    @property
    def to_make(self) -> list[Path]:
        """The files that Snakemake is then asked for."""
        return [found.path for found in self.findings if found.is_wrong and found.remedy in (Remedy.MAKE, Remedy.RUN)]


def describe(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.add_argument(
        "targets", nargs="*", metavar="TARGET", help="files, rules or folders of results; everything if there are none"
    )
    parser.add_argument(
        "--configfile", nargs="+", action="extend", type=Path, default=[], metavar="OVERLAY", help="as for snakemake"
    )
    parser.add_argument("--directory", type=Path, metavar="FOLDER", help="where results/ lies, as for snakemake")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="check headers and sizes, but not every byte",
    )
    parser.add_argument(
        "--delete", action="store_true", help="delete what is damaged, stale, in a wrong place or left over"
    )
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--json", action="store_true", help="every file, for scripts")
    shown.add_argument("--paths", action="store_true", help="only the files to be made anew, one a line, for snakemake")


def execute(arguments: argparse.Namespace) -> int:
    """Look through the files, tell what is wrong, delete it if asked to."""
    report = verify(arguments.targets, arguments.configfile, directory=arguments.directory, quick=arguments.quick)
    if arguments.delete:
        delete(report, arguments.directory or Path())
    if arguments.json:
        print(json.dumps(as_json(report, arguments), indent=1))
    elif arguments.paths:
        print(*report.to_make, sep="\n", end="\n" if report.to_make else "")
    else:
        print("\n".join(told(report, arguments)))
    return WRONG if report.wrong else WHOLE


def verify(
    targets: Sequence[str] = (),
    configfiles: Iterable[Path] = (),
    *,
    directory: Path | None = None,
    quick: bool = False,
    graph_of: Callable[..., Graph] = read_graph,
) -> Report:
    """Return the state of every file of a run, or of those behind some targets.

    Args:
        targets: files or rules of Snakemake, or folders of results; everything if there are none.
        configfiles: overlays on ``config.yaml``.
        directory: where ``results/`` lies; the current folder by default.
        quick: see :class:`coalmine.verification.disk.File`.
        graph_of: how Snakemake's jobs are read.

    Raises:
        CoalmineError: Snakemake refuses the configuration or a target, or nothing of this run has been made.
    """
    folder = (directory or Path()).resolve()
    folders = [_inside(folder, target) for target in targets if (folder / target).is_dir()]
    names = [target for target in targets if not (folder / target).is_dir()]
    everything = not names
    found = [*lying(folder)] if everything else []
    graph = graph_of(names, configfiles, found=found, directory=directory)
    run = Path("results") / graph.run.name
    _check_made(folder, run, folders)
    disk = Disk(folder, run, quick=quick)
    findings = Judge(graph, disk)()
    if everything:
        findings += undeclared(graph, disk, [found.path for found in findings])
    if folders:
        findings = [one for one in findings if any(one.path.is_relative_to(inside) for inside in folders)]
    return Report(graph.run.name, graph.locked, tuple(findings))


def delete(report: Report, folder: Path) -> None:
    """Delete what is to be deleted, records of check sums and folders that are empty then included.

    Raises:
        CoalmineError: a run may be going on.
    """
    if report.locked:
        raise CoalmineError(
            "Snakemake's lock lies on these files: nothing is deleted while a run may be making them. Wait for its "
            "end; if it was killed: snakemake --unlock"
        )
    for found in report.to_delete:
        path = folder / found.path
        path.unlink(missing_ok=True)
        checksums.forget(path)
        for emptied in (path.parent / checksums.FOLDER, path.parent):
            with suppress(OSError):  # it holds other files
                emptied.rmdir()


def as_json(report: Report, arguments: argparse.Namespace) -> dict[str, object]:
    """Return all findings for scripts."""
    return {
        "run": report.run,
        "locked": report.locked,
        "counts": dict(sorted(Counter(found.state for found in report.findings).items())),
        "wrong": len(report.wrong),
        "command": remedy(report, arguments),
        "artefacts": [
            {
                "path": str(found.path),
                "state": found.state,
                "wrong": found.is_wrong,
                "reason": found.reason,
                "remedy": found.remedy,
                "stage": found.stage,
                "method": found.method,
            }
            for found in report.findings
        ],
    }


def told(report: Report, arguments: argparse.Namespace) -> list[str]:
    """Return what people read: counts, what is not good, and the command that mends it."""
    lines = [f"results/{report.run}: {len(report.findings):,} files", ""]
    if report.locked:
        lines[1:1] = ["Snakemake's lock lies on them: a run is making them now, or was killed (snakemake --unlock)."]
    lines += _counts(report.findings)
    others = [found for found in report.findings if found.state not in (State.GOOD, State.ABSENT)]
    if others:
        lines += ["", *_listed(others)]
    command = remedy(report, arguments)
    if arguments.delete and report.to_delete:
        lines += ["", f"{len(report.to_delete)} files are deleted."]
    if command:
        lines += ["", "To mend it:", f"  {command}"]
    elif not report.wrong:
        lines += ["", "All is well."]
    return lines


def remedy(report: Report, arguments: argparse.Namespace) -> str:
    """Return the command that mends what is wrong, for a shell; empty if nothing is.

    First what was deleted is made and nothing else, so that the second run finds the files that others were made from,
    compares their bytes, and makes nothing anew that was made from the same ones.
    """
    options = [*(["--configfile", *map(str, arguments.configfile)] if arguments.configfile else [])]
    options += ["--directory", str(arguments.directory)] if arguments.directory else []
    snakemake = shlex.join(["snakemake", "--cores", "all", *options])
    own = shlex.join(["coalmine", "verify", *arguments.targets, *options, "--delete"])
    pending = report.to_delete if not arguments.delete else []
    if not report.to_make:
        return own if pending else ""
    if len(report.to_make) <= PATHS_SHOWN:
        first = shlex.join(["snakemake", *map(str, report.to_make), "--cores", "all", *options])
        steps = [f"{own};", first] if pending else [first]
    elif pending:
        steps = [f"{own} --paths | xargs {shlex.join(['snakemake', '--cores', 'all', *options, '--'])}"]
    else:
        return snakemake
    return f"{' '.join(steps)} && {snakemake}"


def _inside(folder: Path, target: str) -> Path:
    path = (folder / target).resolve()
    if not path.is_relative_to(folder):
        raise CoalmineError(f"{target} lies outside of {folder}: give --directory, the folder that results/ lies in.")
    return path.relative_to(folder)


def _check_made(folder: Path, run: Path, asked: Sequence[Path]) -> None:
    """Refuse to judge a run of which there is nothing, or another one."""
    for path in asked:
        parts = path.parts[:2]
        if len(parts) == 2 and parts[1] not in (run.name, "data"):
            raise CoalmineError(
                f"{path} is of another run: this configuration is run {run.name!r}. Give the overlay that made it: "
                "coalmine verify --configfile workflow/presets/….yaml"
            )
    if not (folder / run).is_dir():
        others = sorted(path.parent.name for path in (folder / "results").glob("*/config.json"))
        known = f". There are results of {', '.join(others)}: give their overlay with --configfile." if others else ""
        raise CoalmineError(
            f"{folder / run} does not exist: nothing of run {run.name!r} has been made here. Make it: "
            f"snakemake --cores all{known}"
        )


def _counts(findings: Sequence[Finding]) -> list[str]:
    """Return a table of counts by stage, and by method where not all is good."""
    states = [state for state in State if any(found.state is state for found in findings)]
    rows = []
    by_stage: dict[str, list[Finding]] = {}
    for found in findings:
        by_stage.setdefault(found.stage or "(no job)", []).append(found)
    for stage, own in by_stage.items():
        rows.append((stage, own))
        rest = sorted({found.method for found in own if found.method and found.state is not State.GOOD})
        rows += [(f"  {method}", [found for found in own if found.method == method]) for method in rest]
    width = max(len(name) for name, _ in rows)
    lines = [" " * width + "".join(f"{state:>12}" for state in states)]
    for name, own in rows:
        counts = Counter(found.state for found in own)
        lines.append(f"{name:<{width}}" + "".join(f"{counts[state] or '':>12}" for state in states))
    return lines


def _listed(findings: Sequence[Finding]) -> list[str]:
    """Return a line a file, causes before what follows from them; files of one folder that are alike share one."""
    alike: dict[tuple[object, ...], list[Finding]] = {}
    for found in findings:
        reason = found.reason.replace(found.path.stem, "…")
        alike.setdefault((found.state, found.path.parent, reason, found.remedy), []).append(found)
    lines = []
    for first, *rest in alike.values():
        name = f"{first.path} to {rest[-1].path.name} ({len(rest) + 1} files)" if rest else str(first.path)
        lines.append(f"{first.state:<11}{name}: {first.reason}" + (f" → {first.remedy}" if first.remedy else ""))
    return lines


if __name__ == "__main__":
    from coalmine.__main__ import main

    sys.exit(main(["verify", *sys.argv[1:]]))
