"""What the stages share that make or query models."""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable, Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from coalmine import devices
from coalmine.artefacts import check_header, digest, read_npz
from coalmine.errors import CoalmineError
from coalmine.mechanism import Mechanism
from coalmine.models.settings import ModelSettings
from coalmine.progress import reporter
from coalmine.run_files import read_account
from coalmine.shadows import PrivateData, Setup
from coalmine.stages import _command
from coalmine.training.device import device_name, peak_memory_mb, resolve_device
from coalmine.training.loop import Mode
from coalmine.training.recipe import Normalisation, Recipe
from coalmine.training.sets import TrainingSet
from coalmine.training.whitening import split


def add_private_data(command: argparse.ArgumentParser) -> None:
    """Add the files of the ``prepare`` and ``design`` stages."""
    files = ("IMAGES", "LABELS", "CLASSES")
    command.add_argument("--private", type=Path, nargs=3, metavar=files, required=True, help="private data")
    _command.add_design(command)


def private_data(arguments: argparse.Namespace) -> PrivateData:
    """Read what :func:`add_private_data` names."""
    return PrivateData.read(*arguments.private, *arguments.design)


def add_execution(command: argparse.ArgumentParser) -> None:
    """Add what changes no number: device, mode and threads."""
    command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute")
    command.add_argument(
        "--mode", choices=("auto", "sequential", "stacked"), default="auto", help="how to batch models"
    )
    command.add_argument("--threads", type=int, default=1, help="CPU threads of this job")


def by_shadow(paths: Iterable[Path], suffix: str) -> dict[int, Path]:
    """Return the files with a suffix, without the measurements beside them, by shadow model."""
    return {_command.shadow_number(path): path for path in paths if path.suffix == suffix}


def add_guarantee(command: argparse.ArgumentParser) -> None:
    """Add the file of the ``account`` stage, which methods with a guarantee have."""
    command.add_argument("--privacy", type=Path, nargs="*", default=[], help="privacy/<method>.json, if there is one")


def mechanism(arguments: argparse.Namespace, method: str, design: str) -> Mechanism | None:
    """Read the mechanism that :func:`add_guarantee` names, made for this method and this audit design."""
    if not arguments.privacy:
        return None
    (path,) = arguments.privacy
    account = read_account(path, method, design)
    try:
        return Mechanism(**account["guarantee"]["mechanism"])
    except (KeyError, TypeError) as error:
        raise CoalmineError(f"{path} holds no mechanism of a guarantee ({error}). Delete it and run again.") from error


def execution(arguments: argparse.Namespace) -> tuple[torch.device, Mode]:
    """Claim a device, set the number of threads and return the device and how models are batched on it."""
    torch.set_num_threads(arguments.threads)
    if arguments.device != "cpu":
        devices.claim(reporter("device"))
    device = resolve_device(arguments.device)
    mode = arguments.mode
    if mode == "auto":
        mode = "stacked" if device.type == "cuda" else "sequential"
    return device, mode


def made_from(data: PrivateData, mechanism: Mechanism | None) -> dict[str, Any]:
    """Return what determines a method's artefacts besides spec and code, as their headers carry it."""
    return {**data.digests(), **({"mechanism": asdict(mechanism)} if mechanism else {})}


class _NotGiven:
    """Stands for what a stage's spec leaves out, since it must not matter there: any use is refused."""

    def __init__(self, name: str, method: str) -> None:
        self._what = f"{method} asks for the {name}, which its generative models and sets must not depend on"

    def __getattr__(self, name: str) -> Any:
        raise CoalmineError(f"{self._what}; use its own settings instead.")


def setup(
    spec: dict[str, Any],
    classes: int,
    device: torch.device,
    mode: Mode,
    progress: Callable[[str], None],
    mechanism: Mechanism | None = None,
    **further: Any,
) -> Setup:
    """Return what methods are given besides private data, from a ``fit``, ``synthesize``, ``train`` or ``distil`` spec.

    ``further`` are those fields of ``Setup`` that training has not. Methods with generative models are not told how the
    audited model is trained when they fit and draw from these.
    """

    def told(name: str, kind: Any) -> Any:
        method = spec["method"]
        return TypeAdapter(kind).validate_json(json.dumps(spec[name])) if name in spec else _NotGiven(name, method)

    return Setup(
        method=spec["method"],
        seed=spec["seed"],
        model=told("model", ModelSettings),
        recipe=told("training", Recipe),
        normalisation=told("normalisation", Normalisation),
        classes=classes,
        mechanism=mechanism,
        device=device,
        mode=mode,
        progress=progress,
        **further,
    )


def read_synthetic(path: Path, method: str, shadow: int, design: str) -> TrainingSet:
    """Read one synthetic set as a training set.

    Args:
        path: the set.
        method: the one that made it.
        shadow: the shadow model that it was made for.
        design: digest of the audit design.

    Raises:
        CoalmineError: it is another method's, shadow model's or design's.
    """
    header, arrays = read_npz(path)
    check_header(path, header, spec__method=method, shadow=shadow, inputs__design=design)
    rate = arrays.get("learning_rate")
    return TrainingSet(
        images=arrays["images"],
        labels=arrays["labels"],
        learning_rate=None if rate is None else float(rate),
        whitening=split(arrays)[1],
    )


def digest_of_set(path: Path) -> str:
    """Digest of a synthetic set, as its model carries it."""
    arrays = read_npz(path)[1]
    return digest(*(array for name, array in sorted(arrays.items()) if name != "source"))


def measurements(seconds: float, device: torch.device, size: int) -> dict[str, Any]:
    """Return what lies beside an artefact: seconds of this model, device, peak memory, bytes, versions, time of day."""
    return {
        "seconds": round(seconds, 3),
        "device": device_name(device),
        "peak_memory_mb": round(peak_memory_mb(device), 1),
        "bytes": size,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("numpy", "torch")},
        },
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
