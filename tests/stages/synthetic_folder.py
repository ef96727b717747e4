"""A folder with private digits, an audit design and synthetic sets, and a call of a stage on it in this process."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coalmine.artefacts import read_json, write_json, write_npy, write_npz
from coalmine.audit.design import draw_design
from coalmine.data.images import ImageSet
from coalmine.data.sources import digits
from coalmine.run_files import write_design
from coalmine.shadows import PrivateData
from coalmine.stages import _command
from coalmine.training.recipe import Normalisation

SHADOWS = 3
NORMALISATION = Normalisation(mean=(0.3,), std=(0.35,))


class Folder:
    """Private, test and public data, and one synthetic set per shadow model: real digits that nobody holds."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, size: int = 100) -> None:
        self.root, self.patch = root, monkeypatch
        train = digits.load(digits.Settings(), [], np.random.default_rng(0)).train
        self.private = train.take(np.arange(120))
        self.test = train.take(np.arange(200, 300))
        self.public = train.take(np.arange(300, 500))
        self.design = draw_design(self.private.labels, 10, SHADOWS + 1, 30, 20)
        for name in ("private", "test", "public"):
            data = getattr(self, name)
            write_npy(root / f"{name}-images.npy", data.images)
            write_npy(root / f"{name}-labels.npy", data.labels)
        write_json(root / "classes.json", {"classes": list(digits.CLASSES)})
        write_design(root / "canaries.csv", root / "membership.npy", self.design)
        self.sets: dict[int, ImageSet] = {}
        for shadow in range(SHADOWS):
            first = 600 + size * shadow
            self.write(shadow, train.take(np.arange(first, first + size)))

    def data(self) -> PrivateData:
        return PrivateData(self.private.images, self.private.labels, digits.CLASSES, self.design)

    def write(self, number: int, own: ImageSet, further: dict[str, np.ndarray] | None = None, **header: Any) -> None:
        """Write a synthetic set, and a file of measurements beside it, which stages leave alone."""
        self.sets[number] = own
        made_by = {
            "stage": "synthesize",
            "spec": {"method": "tried"},
            "shadow": number,
            "inputs": self.data().digests(),
        }
        arrays = {"images": own.images, "labels": own.labels, "source": np.full(len(own.images), -1)}
        write_npz(self.synthetic(number), made_by | header, arrays | (further or {}))
        write_json(self.synthetic(number).with_suffix(".json"), {"seconds": 1})

    def synthetic(self, shadow: int) -> Path:
        return self.root / f"synthetic/tried/{shadow:03d}.npz"

    def files(self, name: str) -> list[str]:
        return [str(self.root / f"{name}-{kind}.npy") for kind in ("images", "labels")]

    def run(self, stage: Any, spec: dict[str, Any], further: list[str], mode: str = "sequential") -> int:
        """Call a stage on the private data and all synthetic sets; return its exit status."""
        line = ["--spec", json.dumps(spec), "--private", *self.files("private"), str(self.root / "classes.json")]
        line += ["--design", str(self.root / "canaries.csv"), str(self.root / "membership.npy"), "--synthetic"]
        line += [str(path) for path in sorted((self.root / "synthetic/tried").iterdir(), reverse=True)]
        line += [*further, "--mode", mode, "--out", str(self.out)]
        return self.call(stage, line)

    def call(self, stage: Any, line: list[str]) -> int:
        self.patch.setattr(sys, "argv", [stage.__name__, *line, "--device", "cpu", "--threads", "1"])
        try:
            _command.run(stage.main)
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    @property
    def out(self) -> Path:
        return self.root / "found/tried.json"

    @property
    def kept(self) -> Path:
        """Where an interrupted job leaves what it has finished."""
        return self.root / "found/.finished/tried.checkpoint.npz"

    def found(self) -> Any:
        return read_json(self.out)


class Killed(BaseException):
    """Stands for a signal: nothing catches it."""


def killed_after(calls: int, function: Any) -> Any:
    """Return the function, which from some call on kills the job."""
    made = []

    def until(*arguments: Any, **options: Any) -> Any:
        made.append(None)
        if len(made) > calls:
            raise Killed
        return function(*arguments, **options)

    return until
