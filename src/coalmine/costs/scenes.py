"""What a run's data are like, known from prepared files, from the configuration, or from a finished run's files."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coalmine.artefacts import read_json
from coalmine.errors import CoalmineError
from coalmine.plugins import load

if TYPE_CHECKING:
    from coalmine.config import Run

_TEST_IMAGES = {"cifar10": 10_000, "mnist": 10_000, "camelyon17": 85_054}
_PUBLIC_IMAGES = {"cinic10": 70_000}  # of CINIC-10's ImageNet part, in each of three splits
_ASSUMED_SIDE, _ASSUMED_CLASSES, _ASSUMED_IMAGES = 32, 10, 50_000


class RunScene:
    """The data of a checked configuration: from its prepared files where they are there, else from its settings.

    Args:
        run: the configuration.
        directory: where ``results/`` lies; None looks at no file.

    Attributes:
        assumed: what is neither known before the data are read nor prepared yet, in words.
    """

    def __init__(self, run: Run, directory: Path | None = None) -> None:
        self._run = run
        self._data = None if directory is None else directory / "results" / run.name / "data"
        self.assumed: list[str] = []
        self._specs: dict[tuple[str, str], dict[str, Any]] = {}

    def spec(self, stage: str, name: str) -> dict[str, Any]:
        """Return the spec of another stage, of a method, of experts or of a pre-trained network."""
        if (stage, name) not in self._specs:
            word = {"experts": "name", "pretrain_denoiser": "name"}.get(stage, "method")
            self._specs[stage, name] = json.loads(self._run.spec(stage, **{word: name}))
        return self._specs[stage, name]

    def kind(self, method: str) -> str:
        """Return which function a method's file defines (``coalmine.plugins.Kind``)."""
        return self._run.kind(method)

    def shadows_of(self, method: str) -> int:
        """Return how many shadow models a method has."""
        return self._run.shadows_of(method)

    @cached_property
    def population(self) -> float:
        """Private samples of a shadow model on average over the audit design: half of the audited are left out."""
        return self.private - self.audited / 2

    @cached_property
    def audited(self) -> float:
        """Samples whose membership is asked for."""
        audit = self._run.config.audit
        return audit.canaries + ((audit.average.samples or 0) if audit.average else 0)

    @cached_property
    def channels(self) -> int:
        """Channels of an image."""
        return len(self._run.config.data.normalisation.mean)

    @cached_property
    def private(self) -> float:
        """Private samples."""
        known = self._run.config.data.private_size or self._told("private", "expected_size")
        return self._size("private", known, "private images")

    @cached_property
    def test(self) -> float:
        """Test images."""
        module, settings = self._run.sources["private"]
        known = self._run.config.data.test_size or getattr(settings, "test_size", None) or _TEST_IMAGES.get(module)
        return self._size("test", known, "test images", self.private / 5)

    @cached_property
    def public(self) -> float:
        """Public images, 0 if there are none."""
        if "public" not in self._run.sources:
            return 0
        module, settings = self._run.sources["public"]
        known = self._run.config.data.public_size or getattr(settings, "size", None)
        if known is None and module in _PUBLIC_IMAGES:
            known = _PUBLIC_IMAGES[module] * len(getattr(settings, "splits", ()) or (0,))
        return self._size("public", known, "public images")

    @cached_property
    def side(self) -> int:
        """Height and width of an image in pixels."""
        shape = self._prepared("private")
        if shape:
            return shape[1]
        known = self._told("private", "expected_shape")
        return known[0] if known else int(self._assume(f"images of {_ASSUMED_SIDE} pixels a side", _ASSUMED_SIDE))

    @cached_property
    def classes(self) -> int:
        """Number of classes."""
        path = self._data and self._data / "classes.json"
        if path and path.is_file():
            return len(read_json(path)["classes"])
        known = getattr(load("data", self._run.sources["private"][0]), "CLASSES", None)
        return len(known) if known else int(self._assume(f"{_ASSUMED_CLASSES} classes", _ASSUMED_CLASSES))

    def _size(self, role: str, known: float | None, what: str, guess: float = _ASSUMED_IMAGES) -> float:
        shape = self._prepared(role)
        if shape:
            return shape[0]
        return known if known is not None else self._assume(f"{guess:,.0f} {what}", guess)

    def _told(self, role: str, function: str) -> Any:
        module, settings = self._run.sources[role]
        source = load("data", module)
        return getattr(source, function)(settings) if hasattr(source, function) else None

    def _prepared(self, role: str) -> tuple[int, ...] | None:
        """Return the shape of prepared images, without reading them."""
        path = self._data and self._data / role / "images.npy"
        return npy_shape(path) if path and path.is_file() else None

    def _assume(self, what: str, value: float) -> float:
        self.assumed.append(what)
        return value


class FolderScene:
    """The data of a finished run, from its files alone; specs of stages are those that its artefacts carry.

    Args:
        root: ``results/<run>/``.
        headers: reads the header of the first artefact of a folder of ``root``.

    Raises:
        CoalmineError: a file that every run has is missing or broken.
    """

    def __init__(self, root: Path, headers: Mapping[str, str]) -> None:
        self._root, self._folders = root, headers
        shape = npy_shape(root / "data" / "private" / "images.npy")
        self.private, self.side, self.channels = float(shape[0]), int(shape[1]), int(shape[3])
        self.test = self._count("test")
        self.public = self._count("public")
        self.classes = len(read_json(root / "data" / "classes.json")["classes"])
        design = root / "audit" / "canaries.csv"
        self.audited = float(len(design.read_text(encoding="utf-8").splitlines()) - 1)
        self.population = self.private - self.audited / 2

    def spec(self, stage: str, name: str) -> dict[str, Any]:
        """Return the spec of another stage of the run."""
        from coalmine.costs.records import header_of

        folder = self._folders.get(stage, stage)
        own = self._root / folder
        paths = [
            own / f"{name}.safetensors",
            *sorted((own / name).glob("*.safetensors")),
            *sorted((own / name).glob("*.npz")),
        ]
        path = next((one for one in paths if one.is_file()), None)
        if path is None:
            raise CoalmineError(f"{own / name} has no artefact, but the cost of others depends on how it was made.")
        made: dict[str, Any] = header_of(path)["spec"]
        return made

    def kind(self, method: str) -> str:
        """Return which function the method's file defined that made a method's models."""
        from coalmine.costs.records import header_of

        header = header_of(next(iter(sorted((self._root / "models" / method).glob("*.safetensors")))))
        if header["stage"] == "distil":
            return "distil"
        return "train" if "module" in header["spec"] else "synthesize"

    def shadows_of(self, method: str) -> int:
        """Return how many shadow models a method has."""
        return len([*(self._root / "models" / method).glob("*.safetensors")])

    def _count(self, role: str) -> float:
        path = self._root / "data" / role / "images.npy"
        return float(npy_shape(path)[0]) if path.is_file() else 0.0


def npy_shape(path: Path) -> tuple[int, ...]:
    """Return the shape of an array in an ``.npy`` file, from its header alone.

    Raises:
        CoalmineError: the file is missing or none.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(8)
            length = int.from_bytes(file.read(2 if magic[6] == 1 else 4), "little")
            shape: tuple[int, ...] = ast.literal_eval(file.read(length).decode("latin1"))["shape"]
    except (OSError, ValueError, SyntaxError, LookupError) as error:
        raise CoalmineError(
            f"{path} is not a readable .npy file ({error}). Delete it and run Snakemake again."
        ) from error
    return shape
