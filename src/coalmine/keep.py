"""Keep the finished tables and figures of a run, with what made them.

``python -m coalmine.keep results/demo results/published/demo``
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from coalmine import checksums
from coalmine.artefacts import as_block, read_json, write_json
from coalmine.errors import CoalmineError

REPORTS = (".csv", ".html", ".tex", ".png", ".pdf")
"""What finished tables and figures are written as."""


class _Measured(BaseModel):
    """What the cost of a run is made of, of one artefact."""

    seconds: float
    device: str
    versions: dict[str, str]
    finished: str


def keep(run: Path, target: Path) -> list[Path]:
    """Copy tables, figures and the configuration of a run into ``target`` and write ``provenance.json``.

    Raises:
        CoalmineError: the run has no finished table or figure, one is a link, or the sources differ from their commit.
    """
    finished = sorted(path for path in run.glob("*.*") if path.suffix in REPORTS)
    for path in (*finished, run / "config.json"):
        if path.is_symlink():  # it could lead to any file of this machine, which would be published
            raise CoalmineError(f"{path} is a link, expected a file that Snakemake made. Delete it and run it again.")
        if path.is_file() and not checksums.holds(path):
            raise CoalmineError(f"{path} is not as it was written. `coalmine verify` says what to do.")
    if not finished:
        raise CoalmineError(f"{run} holds no finished table or figure. Make them first: snakemake --cores all")
    record = {"commit": commit(), "code": code_hashes(run), "cost": cost(run)}
    target.mkdir(parents=True, exist_ok=True)
    finished += sorted(run.glob("config.json"))
    for path in finished:
        shutil.copyfile(path, target / path.name)
        checksums.carry(path, target / path.name)
    write_json(target / "provenance.json", record)
    return finished


def commit() -> str:
    """Return the commit of the sources.

    Raises:
        CoalmineError: the sources were changed after it.
    """
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", "src", "workflow", "config.yaml", "Snakefile")
    if changed:
        raise CoalmineError(f"The sources differ from their commit, so it would not name what made the run:\n{changed}")
    return _git("rev-parse", "HEAD")


def _git(*arguments: str) -> str:
    try:
        return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        raise CoalmineError(f"git does not tell the commit of the sources ({error}). Keep runs of a clone.") from error


def code_hashes(run: Path) -> dict[str, str]:
    """Return the code hash that each method's metrics carry: that of the ``score`` stage."""
    return {path.stem: as_block(path, read_json(path))["code"] for path in sorted(run.glob("metrics/*.json"))}


def cost(run: Path) -> dict[str, Any]:
    """Return device-seconds by stage, the devices and the versions, from the measurements beside all artefacts."""
    seconds: dict[str, float] = defaultdict(float)
    devices, versions, last = set(), set(), ""
    for stage in ("experts", "generators", "synthetic", "models", "logits"):
        for path in run.glob(f"{stage}/*/*.json"):
            measured = _read(path)
            seconds[stage] += measured.seconds
            devices.add(measured.device)
            versions.add(json.dumps(measured.versions, sort_keys=True))
            last = max(last, measured.finished)
    return {
        "device_seconds": {stage: round(total, 1) for stage, total in seconds.items()},
        "devices": sorted(devices),
        "versions": [json.loads(text) for text in sorted(versions)],
        "finished": last,
    }


def _read(path: Path) -> _Measured:
    try:
        return _Measured.model_validate(read_json(path))
    except ValidationError as error:
        raise CoalmineError(f"{path} holds no measurements ({error}). Delete it and run Snakemake again.") from error


def main() -> None:
    """Keep what the command line names."""
    parser = argparse.ArgumentParser(prog="python -m coalmine.keep", description="Keep finished tables and figures.")
    parser.add_argument("run", type=Path, help="folder of the run: results/demo")
    parser.add_argument("target", type=Path, help="where to keep them: results/published/demo")
    named = parser.parse_args()
    try:
        for kept in keep(named.run, named.target):
            print(f"kept {kept.name}")
    except CoalmineError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
