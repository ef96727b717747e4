"""Inject faults into a small run and see what is left of it; write the table of docs/reliability.md.

    python bench/faults.py [--kills 50] [--seed 0] [--out docs/reliability.md] [--folder DIR]

One run of every kind of stage goes through undisturbed. Copies of it are then killed at random moments, damaged,
starved of disk space, and so on (tests/workflow/fault_injection.py holds the faults), recover as README says, and are
compared with it byte for byte. Lines tell how far it is; the exit status is 1 if anything was lost, partial or wrong.
About 40 minutes on two idle cores. As root, file systems that are too small or read-only are among the faults; others
leave these out.
"""

from __future__ import annotations

import argparse
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "tests/workflow"))

from fault_injection import FAULTS, SECONDS_BETWEEN_CHECKPOINTS, Campaign, Outcome, Workshop, inject  # noqa: E402

INTRODUCTION = """# Reliability

**Promised.** A run that is killed, at any moment and in any way, is finished by running the same command again, with
the same bytes as a run that was not. What was finished is not made again. No file under its final name is
half-written. A damaged file is named by `coalmine verify`, and refused by every job that reads it. Where a column of
the table is not 0, the promise is not kept yet.

**Recovery.** Run the same command again. If Snakemake itself was killed: `snakemake --unlock && snakemake …`. If
files may have been damaged (a broken disk, an accident with `rm`): `coalmine verify` names them and tells the command
that makes them anew. (Make such files anew by themselves before the rest, as that command does: within one run,
Snakemake makes all that follows from them anew, too, though their bytes come back.) If the clock was brought back,
Snakemake refuses outputs that are older than their inputs: `find results -newermt now -exec touch {{}} +`.

**Test.** `python bench/faults.py` makes one run of every kind of stage undisturbed ({files} files: data, audit
design, accounting, pre-training, experts, coresets, distillation with and without data, private diffusion, DP-SGD,
queries, attacks, comparison of images, tables, figures). Copies of it, with checkpoints every {interval:g} s instead
of every minute, are hit by the faults below, recover as above, and are compared with it file by file and byte by
byte. Left out is only what is measured: the measurements beside artefacts, and the columns of seconds. Kills come at
random moments of jobs, stages that were hit seldom first; those inside a write come in a system call that writes,
with half of the file written before `fsync`, or right after `rename`, `link` or `unlink`.

**Columns.** *made again*: files that were finished and whole at the moment of the fault, and were made again all the
same. *partial*: files that were not whole under their final name at that moment. *wrong*: files that differed from
the undisturbed run's after recovery, or were missing. All three must be 0. *noticed by*: who told of the fault, where
something had to. Snakemake works by jobs: where one file of a job is damaged, all files of this job are made anew
with it; they are listed under *remarks*, not under *made again*.
"""


def main() -> int:
    """Inject all faults and write the page; return 1 if any did harm."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, metavar="N", help="default: 50")
    parser.add_argument("--seed", type=int, default=0, help="decides where and when faults hit; default: 0")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the page, such as docs/reliability.md")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="keep the trees there; default: a temporary folder")
    parser.add_argument("--only", nargs="*", metavar="FAULTS", default=[*FAULTS], help=f"of {', '.join(FAULTS)}")
    parser.add_argument(
        "--sources", type=Path, default=REPOSITORY, metavar="DIR", help="another copy of the repository"
    )
    options = parser.parse_args()
    start = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - start:6.0f} s  {line}", flush=True)

    with tempfile.TemporaryDirectory(dir=options.folder, ignore_cleanup_errors=True) as folder:
        workshop = Workshop(Path(folder), random.Random(options.seed), say, options.sources)
        outcomes = Campaign(workshop).kill(options.kills)
        for name in [*options.only, ""]:
            if options.out:  # after each part: what has been found is not lost
                options.out.write_text(render(outcomes, workshop, options, time.monotonic() - start))
            if name:
                say(f"— {name}")
                outcomes += inject(workshop, name)
    harm = [outcome for outcome in outcomes if not outcome.harmless]
    for outcome in harm:
        print(outcome)
    say(f"{len(outcomes)} faults, {len(harm)} did harm")
    return bool(harm)


def render(outcomes: list[Outcome], workshop: Workshop, options: argparse.Namespace, seconds: float) -> str:
    """Return the page: what is promised, how it was tested, and one row a fault."""
    lines = [INTRODUCTION.format(files=len(workshop.wanted), interval=SECONDS_BETWEEN_CHECKPOINTS)]
    kills = [outcome for outcome in outcomes if outcome.fault.startswith("SIG")]
    lines += [
        f"**This table**: `python bench/faults.py --kills {options.kills} --seed {options.seed}`, commit `{commit()}`, "
        f"{processor()}, Python {platform.python_version()}, "
        f"{versions('snakemake', 'torch')}: "
        f"{len(outcomes)} faults, {len(kills)} of them kills, {seconds / 60:.0f} min.",
        "",
        "| fault | number | hit | noticed by | made again | partial | wrong | s each | remarks |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for fault in dict.fromkeys(outcome.fault for outcome in outcomes):
        lines.append(row(fault, [outcome for outcome in outcomes if outcome.fault == fault]))
    lines.append(row("**all**", outcomes, brief=True))
    return "\n".join(lines) + "\n"


def row(fault: str, group: list[Outcome], brief: bool = False) -> str:
    """Return one row of the table."""
    lost, partial, wrong = (sum(len(getattr(o, name)) for o in group) for name in ("lost", "partial", "wrong"))
    cells = [
        fault,
        str(len(group)),
        "" if brief else counted(outcome.hit for outcome in group),
        "" if brief else counted(outcome.noticed for outcome in group),
        *map(str, (lost, partial, wrong)),
        f"{sum(outcome.seconds for outcome in group) / max(len(group), 1):.0f}",
        "" if brief else counted(outcome.remark for outcome in group),
    ]
    return f"| {' | '.join(cells)} |"


def counted(words: Iterable[str]) -> str:
    """Return words with how often each came up: ``train 3, fit``."""
    counts = Counter(word for word in words if word)
    return ", ".join(word if number == 1 else f"{word} {number}" for word, number in sorted(counts.items()))


def commit() -> str:
    """Return the commit of the sources, marked if they differ from it."""
    told = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty", "--exclude", "*"]
    return subprocess.run(told, capture_output=True, text=True).stdout.strip() or "unknown"


def versions(*names: str) -> str:
    """Return the versions of installed packages."""
    return ", ".join(f"{name} {version(name)}" for name in names)


def processor() -> str:
    """Return the processor's name as the system states it."""
    info = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in info if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.machine()


if __name__ == "__main__":
    sys.exit(main())
