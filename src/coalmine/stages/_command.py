"""What the command lines of all stages share."""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from coalmine.artefacts import Header
from coalmine.errors import CoalmineError
from coalmine.provenance import code_hash

if TYPE_CHECKING:
    import torch

    from coalmine.data.images import ImageSet
    from coalmine.reporting.results import Results
    from coalmine.settings import Settings
    from coalmine.shadows import PrivateData, Setup
    from coalmine.training.loop import Mode


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with what every stage takes: its spec and where to write."""
    command = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("--spec", type=json.loads, required=True, help="the configuration of this stage, as JSON")
    command.add_argument("--out", type=Path, nargs="+", required=True, help="files to write")
    return command


def add_private_data(command: argparse.ArgumentParser) -> None:
    """Add the files of the ``prepare`` and ``design`` stages."""
    files = ("IMAGES", "LABELS", "CLASSES")
    command.add_argument("--private", type=Path, nargs=3, metavar=files, required=True, help="private data")
    add_design(command)


def add_design(command: argparse.ArgumentParser) -> None:
    """Add the files of the ``design`` stage."""
    files = ("CANARIES", "MEMBERSHIP")
    command.add_argument("--design", type=Path, nargs=2, metavar=files, required=True, help="audit design")


def add_test_data(command: argparse.ArgumentParser) -> None:
    """Add the test images and their labels."""
    command.add_argument("--test", type=Path, nargs=2, metavar=("IMAGES", "LABELS"), required=True, help="test data")


def private_data(arguments: argparse.Namespace) -> PrivateData:
    """Read what :func:`add_private_data` names."""
    from coalmine.shadows import PrivateData

    return PrivateData.read(*arguments.private, *arguments.design)


def add_execution(command: argparse.ArgumentParser) -> None:
    """Add what changes no number: device, mode and threads."""
    command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute")
    command.add_argument(
        "--mode", choices=("auto", "sequential", "stacked"), default="auto", help="how to batch models"
    )
    command.add_argument("--threads", type=int, default=1, help="CPU threads of this job")


def execution(arguments: argparse.Namespace) -> tuple[torch.device, Mode]:
    """Set the number of threads and return the device and how models are batched on it."""
    import torch

    from coalmine.training.device import resolve_device

    torch.set_num_threads(arguments.threads)
    device = resolve_device(arguments.device)
    mode = arguments.mode
    if mode == "auto":
        mode = "stacked" if device.type == "cuda" else "sequential"
    return device, mode


def setup(
    spec: dict[str, Any],
    classes: int,
    device: torch.device,
    mode: Mode,
    progress: Callable[[str], None],
    public: ImageSet | None = None,
) -> Setup:
    """Return what methods are given besides private data, read from a ``synthesize`` or ``train`` spec."""
    from pydantic import TypeAdapter

    from coalmine.models.settings import ModelSettings
    from coalmine.shadows import Setup
    from coalmine.training.recipe import Normalisation, Recipe

    return Setup(
        method=spec["method"],
        seed=spec["seed"],
        model=TypeAdapter(ModelSettings).validate_json(json.dumps(spec["model"])),
        recipe=Recipe.model_validate_json(json.dumps(spec["training"])),
        normalisation=Normalisation.model_validate_json(json.dumps(spec["normalisation"])),
        classes=classes,
        public=public,
        device=device,
        mode=mode,
        progress=progress,
    )


def load_method(spec: dict[str, Any]) -> tuple[ModuleType, Settings]:
    """Return the method file that a spec names and its checked settings."""
    method = importlib.import_module(method_module(spec))
    return method, method.Settings.model_validate_json(json.dumps(spec["settings"]))


def method_module(spec: dict[str, Any]) -> str:
    """Return the full name of the method file that a spec names."""
    return f"coalmine.methods.{spec['module']}"


def header(stage: str, spec: dict[str, Any], module: str | None = None, **fields: Any) -> Header:
    """Return what determines an artefact: stage, spec, the hash of the code that is running, and ``fields``."""
    modules = [f"coalmine.stages.{stage}", *([module] if module else [])]
    return {"stage": stage, "spec": spec, "code": code_hash(*modules), **fields}


def shadow_number(path: Path) -> int:
    """Return the shadow model that a file is of: ``…/007.safetensors`` -> 7."""
    if not path.stem.isdecimal():
        raise CoalmineError(f"{path}: the file name must be the number of a shadow model, such as 007{path.suffix}.")
    return int(path.stem)


def measurements(seconds: float, device: torch.device, size: int) -> dict[str, Any]:
    """Return what lies beside an artefact: seconds of this model, device, peak memory, bytes, versions, time of day."""
    from coalmine.training.device import device_name, peak_memory_mb

    return {
        "seconds": round(seconds, 3),
        "device": device_name(device),
        "peak_memory_mb": round(peak_memory_mb(device), 1),
        "bytes": size,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("coalmine", "numpy", "torch")},
        },
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def add_results(command: argparse.ArgumentParser) -> None:
    """Add the folder that tables and figures read."""
    command.add_argument("--results", type=Path, required=True, help="the run's folder, results/<run>")


def report(arguments: argparse.Namespace) -> tuple[ModuleType, Any, Results]:
    """Return the module of a table or figure, its checked settings, and the results of the methods it shows."""
    from coalmine.reporting.results import load_results

    module = importlib.import_module(f"coalmine.reporting.{arguments.spec['name']}")
    settings = module.Settings.model_validate_json(json.dumps(arguments.spec["settings"]))
    methods = getattr(settings, "needed", settings.methods)
    return module, settings, load_results(arguments.results, methods)


class Stopwatch:
    """Measures laps."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        """Return the seconds since the last lap, or since the start."""
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds


def run(main: Callable[[], None]) -> None:
    """Run a stage; what a user can mend is told in one sentence, without a traceback."""
    try:
        main()
    except CoalmineError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(1)


def describe(shadows: list[int]) -> str:
    """``[0, 1, 2, 5]`` -> ``0-2, 5``: the shadow models of a job, for progress lines."""
    runs: list[list[int]] = []
    for number in shadows:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
