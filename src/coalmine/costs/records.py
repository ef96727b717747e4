"""Measurements of finished runs, each with the work that it took: what predictions rest on.

From ``results/<run>/``: the measurements beside artefacts, with the specs that the artefacts carry, and for stages
without measurements the durations that Snakemake has kept. From ``results/published/<run>/``: ``table7.csv`` with
``config.json`` or ``overlay.yaml``. ``python -m coalmine.costs collect FOLDER …`` writes them to ``records.json``, a
part of this package.
"""

from __future__ import annotations

import ast
import csv
import json
import re
from base64 import b64decode
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import ValidationError

from coalmine.artefacts import read_json, read_npz, read_safetensors_header, write_bytes
from coalmine.costs.scenes import FolderScene, RunScene
from coalmine.costs.stages import FOLDERS, PER_SHADOW, Part, parts
from coalmine.errors import CoalmineError
from coalmine.provenance import canonical_json

SHIPPED = Path(__file__).with_name("records.json")

START, FIXED = "start", "fixed"
"""Kinds of records that are no artefacts': what a job of a stage takes beside its models, and jobs without models."""

MEASURED = PER_SHADOW | {"pretrain", "pretrain_denoiser"}
"""Stages that write their measurements beside their artefacts."""

_PROGRAM = re.compile(r"python -m coalmine\.stages\.(\w+)")

_NPZ_FIELD = {"synthetic": ("source", "int64", (None,)), "logits": ("test_logits", "float32", (None, None))}
"""A small field of an artefact, to read its header by."""


@dataclass(frozen=True)
class Record:
    """What one method's artefacts of one kind took, mean over shadow models.

    Attributes:
        run: where it was measured.
        folder: the kind of artefact, as in ``coalmine.costs.stages.Part``.
        module: what computations of one kind are pooled by.
        name: the method, experts or network.
        device: the processor's or card's name.
        models: shadow models that the mean is over; 1 for what is made for a whole method.
        seconds: of one.
        operations: multiply-adds of one, None if not known.
        launches: calls of one.
        peak_memory_mb: of the process, in 10^6 bytes; None if not measured.
        memory_mb: of that, by count, what is held beyond the libraries.
        disk_mb: of one artefact.
        counted_mb: the same by count.
    """

    run: str
    folder: str
    module: str
    name: str
    device: str
    models: int
    seconds: float
    operations: float | None = None
    launches: float | None = None
    peak_memory_mb: float | None = None
    memory_mb: float | None = None
    disk_mb: float | None = None
    counted_mb: float | None = None


def shipped() -> list[Record]:
    """Return the records that are part of the package."""
    return read(SHIPPED)


def read(path: Path) -> list[Record]:
    """Read a file that ``write`` wrote.

    Raises:
        CoalmineError: it is missing or broken.
    """
    try:
        return [Record(**row) for row in read_json(path)["records"]]
    except (KeyError, TypeError) as error:
        raise CoalmineError(
            f"{path} is no file of cost records ({error}). Make it anew: python -m coalmine.costs collect FOLDER …"
        ) from error


def write(path: Path, records: Iterable[Record]) -> None:
    """Write records, one a line, in a fixed order and rounded: the same measurements give the same bytes."""
    rows = sorted({(one.run, one.folder, one.module, one.name): one for one in records}.items())
    lines = [json.dumps(_rounded(asdict(one)), ensure_ascii=False) for _, one in rows]
    write_bytes(path, ('{"records": [\n' + ",\n".join(lines) + "\n]}\n").encode(), recorded=False)


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {
        key: float(f"{value:.6g}") if isinstance(value, float) else value
        for key, value in row.items()
        if value is not None
    }


def collect(folder: Path) -> list[Record]:
    """Return what a folder of results tells: a run's own, or a published one.

    Raises:
        CoalmineError: it is neither.
    """
    if (folder / "data" / "private" / "images.npy").is_file():
        return [*_measured(folder), *_timed(folder)]
    if (folder / "table7.csv").is_file():
        return list(_published(folder))
    raise CoalmineError(
        f"{folder} is neither the folder of a run (data/private/images.npy) nor a published one (table7.csv)."
    )


def header_of(path: Path) -> dict[str, Any]:
    """Return the header of an artefact without reading its arrays."""
    if path.suffix == ".safetensors":
        return read_safetensors_header(path)
    name, dtype, shape = _NPZ_FIELD[path.parent.parent.name]
    return read_npz(path, **{name: (dtype, shape)})[0]


# A run's own folder.


def _measured(root: Path) -> Iterator[Record]:
    """Yield a record for every method's folder of artefacts with measurements beside them."""
    scene = FolderScene(root, FOLDERS)
    for folder in ("experts", "generators", "synthetic", "models", "logits"):
        for own in sorted(path for path in (root / folder).glob("*") if path.is_dir()):
            yield from _of_folder(root.name, folder, own, scene)
    for path in sorted((root / "pretrained").glob("*.safetensors")):
        yield from _of_artefacts(root.name, "pretrained", path.stem, [path], scene)


def _of_folder(run: str, folder: str, own: Path, scene: FolderScene) -> Iterator[Record]:
    suffix = ".npz" if folder in _NPZ_FIELD else ".safetensors"
    artefacts = [path for path in sorted(own.glob(f"*{suffix}")) if path.with_suffix(".json").is_file()]
    if artefacts:
        yield from _of_artefacts(run, folder, own.name, artefacts, scene)


def _of_artefacts(run: str, folder: str, name: str, artefacts: list[Path], scene: FolderScene) -> Iterator[Record]:
    """Yield the record of artefacts of one kind; none if settings or devices differ among them."""
    headers = [header_of(path) for path in (artefacts[0], artefacts[-1])]
    sidecars = [read_json(path.with_suffix(".json")) for path in artefacts]
    devices = {one["device"] for one in sidecars}
    if len(devices) != 1 or any(one["spec"] != headers[0]["spec"] for one in headers):
        return
    counted = _counted(headers[0]["stage"], headers[0]["spec"], scene)
    part = next((one for one in counted if one.folder == folder), None)
    if part is None:
        return
    yield _record(
        run,
        part,
        name,
        device=devices.pop(),
        models=len(sidecars),
        seconds=fmean(one["seconds"] for one in sidecars),
        peak=max(one["peak_memory_mb"] for one in sidecars),
        disk=fmean(one["bytes"] for one in sidecars) / 1e6,
    )


def _counted(stage: str, spec: dict[str, Any], scene: FolderScene) -> list[Part]:
    """Return what a stage's artefacts took; nothing if older code made them, whose settings were others."""
    try:
        return parts(stage, spec, scene)
    except (LookupError, TypeError, AttributeError, ValidationError, CoalmineError):
        return []


def _record(
    run: str,
    part: Part,
    name: str,
    *,
    device: str,
    seconds: float,
    models: int = 1,
    peak: float | None = None,
    disk: float | None = None,
) -> Record:
    work = part.work
    return Record(
        run=run,
        folder=part.folder,
        module=part.module,
        name=name,
        device=device,
        models=models,
        seconds=seconds,
        operations=work.operations if work else None,
        launches=work.launches if work else None,
        peak_memory_mb=peak,
        memory_mb=work.memory / 1e6 if work else None,
        disk_mb=disk,
        counted_mb=None if part.disk is None else part.disk / 1e6,
    )


def _timed(root: Path) -> Iterator[Record]:
    """Yield records of what has no measurements, by how long Snakemake's jobs took.

    Of stages with measurements, it is what a job takes beside them: to start, to read and to write.
    """
    scene = FolderScene(root, FOLDERS)
    device = next((one.device for one in _measured(root)), "unknown")
    for rule, stage, spec, outputs, seconds in _jobs(root):
        name = spec.get("method") or spec.get("name") or stage
        beside = [path.with_suffix(".json") for path in outputs if path.suffix in (".npz", ".safetensors")]
        if stage in MEASURED:
            measured = sum(read_json(path)["seconds"] for path in beside if path.is_file())
            if measured < seconds:
                part = Part(START, stage, None, None)
                yield _record(root.name, part, f"{name} {rule}", device=device, seconds=seconds - measured)
        elif stage in FOLDERS:
            size = sum(path.stat().st_size for path in outputs) / 1e6
            for part in _counted(stage, spec, scene):
                yield _record(root.name, part, name, device=device, seconds=seconds, disk=size)
        else:
            yield _record(root.name, Part(FIXED, stage, None, None), name, device=device, seconds=seconds)


def _jobs(root: Path) -> Iterator[tuple[str, str, dict[str, Any], list[Path], float]]:
    """Yield rule, stage, spec, outputs and seconds of the last job of each kind that Snakemake remembers."""
    metadata, base = root.parent.parent / ".snakemake" / "metadata", root.parent.parent
    jobs: dict[tuple[str, str], tuple[str, dict[str, Any], list[Path], float]] = {}
    for path in sorted(metadata.rglob("*")):
        if not path.is_file():
            continue
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            made = Path(b64decode(path.relative_to(metadata).as_posix().replace("/@", "")).decode())
            spec = next(block for one in told["params"] if (block := _block(one)) is not None)
            stage = _PROGRAM.findall(told["shellcmd"])[0]
            seconds = told["endtime"] - told["starttime"]
        except (ValueError, LookupError, TypeError, StopIteration):
            continue  # another format of Snakemake's, or a job without a spec
        if made.parts[:2] == ("results", root.name) and (base / made).is_file():
            key = told["rule"], canonical_json(spec)
            jobs.setdefault(key, (stage, spec, [], seconds))[2].append(base / made)
    for (rule, _), (stage, spec, outputs, seconds) in sorted(jobs.items(), key=lambda job: job[0]):
        yield rule, stage, spec, outputs, seconds


def _block(text: str) -> dict[str, Any] | None:
    """Return the JSON block that a parameter of a rule is, as Snakemake wrote it down; None if it is none."""
    value = ast.literal_eval(text)
    if not (isinstance(value, str) and value.startswith("{")):
        return None
    block: dict[str, Any] = json.loads(value)
    return block


# A published folder.


def _published(folder: Path) -> Iterator[Record]:
    """Yield a record for every line of a published ``table7.csv``; what methods share comes once."""
    from coalmine.costs.presets import published_run

    run = published_run(folder)
    scene = RunScene(run)
    with (folder / "table7.csv").open(encoding="utf-8", newline="") as file:
        rows = [
            row for row in csv.DictReader(file) if row["stage"] not in ("total", "teacher") and row["seconds_per_model"]
        ]
    seen: set[tuple[str, str]] = set()
    for row in rows:
        stage, name = _stage_of(run, row["stage"], row["method"])
        if (row["stage"], name) in seen:
            continue
        seen.add((row["stage"], name))
        spec = scene.spec(stage, name)
        part = next(one for one in parts(stage, spec, scene) if one.folder == row["stage"])
        models = int(row["n_models"])
        yield _record(
            folder.name,
            part,
            name,
            device=row["device"],
            models=models,
            seconds=float(row["seconds_per_model"]),
            peak=float(row["peak_memory_mb"]),
            disk=float(row["disk_mb"]) / models,
        )


def _stage_of(run: Any, folder: str, method: str) -> tuple[str, str]:
    """Return the stage that made a line of table 7, and of which method or experts."""
    owner = run.set_of(method) or method
    match folder:
        case "experts":
            return "experts", run.experts_of(owner)
        case "generators":
            return "fit", run.generator_of(owner)
        case "synthetic":
            return ("distil" if run.kind(owner) == "distil" else "synthesize"), owner
        case "models":
            return ("distil" if run.kind(method) == "distil" else "train"), method
        case _:
            return folder, method


def by_group(records: Iterable[Record]) -> Mapping[tuple[str, str], list[Record]]:
    """Return records by what they are pooled by first: folder and module."""
    groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for one in records:
        groups[one.folder, one.module].append(one)
    return groups
