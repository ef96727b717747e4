"""The stage that distils students out of teachers alone, and what later stages make of its files."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from coalmine.artefacts import (
    place,
    read_json,
    read_npz,
    read_safetensors,
    write_json,
    write_npy,
    write_npz,
    write_safetensors,
)
from coalmine.audit.design import draw_design
from coalmine.config import check
from coalmine.data.sources import digits
from coalmine.kept import drop_kept
from coalmine.methods import dfkd
from coalmine.provenance import code_hash
from coalmine.run_files import write_design
from coalmine.shadows import Distilled, PrivateData, Setup, Synthetic, Teacher
from coalmine.stages import _command, _models
from coalmine.training.whitening import fit, unit_scale

SHADOWS = (1, 4, 5)
RUN = check(
    {
        "run": "small",
        "shadows": 6,
        "data": {"private": {"module": "digits"}, "normalisation": {"mean": [0.3], "std": [0.35]}},
        "audit": {"canaries": 10, "views": {"flip": False, "shift": 0}},
        "model": {"name": "mlp", "hidden": [12]},
        "training": {"epochs": 2, "batch_size": 16, "schedule": "cosine", "augmentation": {"flip": False, "shift": 0}},
        "methods": {
            "undefended": {"module": "undefended"},
            "mine": {
                "module": "dfkd",
                "algorithm": "zskt",
                "batch_size": 16,
                "rounds": 2,
                "distillation_steps": 2,
                "width": 8,
                "latent": 8,
                "images": 20,
                "model": {"name": "mlp", "hidden": [8]},
            },
            "again": {"module": "reuse", "set": "mine", "model": {"name": "mlp", "hidden": [5]}},
        },
        "tables": {},
        "figures": {},
    }
)


class Folder:
    """A run's folder with data and design, and calls of the stages in this process."""

    def __init__(self, root: Path) -> None:
        self.root = root
        train = digits.load(digits.Settings(), [], np.random.default_rng(0)).train
        self.private = [root / name for name in ("images.npy", "labels.npy", "classes.json")]
        self.design = [root / "canaries.csv", root / "membership.npy"]
        if not root.joinpath("images.npy").exists():
            write_npy(self.private[0], train.images[:60])
            write_npy(self.private[1], train.labels[:60])
            write_json(self.private[2], {"classes": list(digits.CLASSES)})
            self.draw(seed=0)

    def draw(self, seed: int) -> None:
        write_design(*self.design, draw_design(np.load(self.private[1]), 10, 6, 10, seed=seed))

    def data(self) -> PrivateData:
        return PrivateData.read(*self.private, *self.design)

    def file(self, folder: str, shadow: int, method: str = "mine", suffix: str = "") -> Path:
        ending = suffix or {"models": ".safetensors"}.get(folder, ".npz")
        return self.root / f"{folder}/{method}/{shadow:03d}{ending}"

    def files(self, folder: str, shadows: Sequence[int], method: str = "mine") -> list[Path]:
        return [self.file(folder, shadow, method, suffix) for shadow in shadows for suffix in ("", ".json")]

    def call(self, stage: str, method: str, out: list[Path], spec: dict[str, Any] | None = None, **inputs: Any) -> int:
        """Run a stage; return its exit status."""
        text = json.dumps(spec) if spec else RUN.spec(stage, method=method)
        line = [stage, "--spec", text, "--device", "cpu", "--mode", "sequential", "--threads", "1"]
        for option, values in {**inputs, "out": out}.items():
            line += [f"--{option}", *map(str, values)]
        module = importlib.import_module(f"coalmine.stages.{stage}")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", line)
            try:
                _command.run(module.main)
            except SystemExit as end:
                return int(end.code or 0)
        drop_kept(self.root)  # as Snakemake does after a run
        return 0

    def train(self, method: str, **synthetic: list[Path]) -> int:
        out = self.files("models", SHADOWS, method)
        return self.call("train", method, out, private=self.private, design=self.design, **synthetic)

    def distil(self, *shadows: int, **changes: Any) -> int:
        """Distil students; the teachers of all shadow models are given, as the rules do."""
        out = self.files("synthetic", shadows) + self.files("models", shadows)
        spec = json.loads(RUN.spec("distil", method="mine")) | changes
        return self.call("distil", "mine", out, spec, teachers=self.files("models", SHADOWS, "undefended"))

    def logits(self, method: str, owner: str | None, shadows: Sequence[int] = SHADOWS) -> int:
        return self.call(
            "logits",
            method,
            self.files("logits", shadows, method),
            private=self.private,
            design=self.design,
            test=self.private[:2],
            models=self.files("models", SHADOWS, method),
            synthetic=self.files("synthetic", SHADOWS, owner) if owner else [],
        )


def dreamed(teachers: Sequence[Teacher], settings: Any, setup: Setup) -> Iterator[Distilled]:
    """A data-free method that takes no time: the student is drawn at random, and so are three images."""
    for teacher in teachers:
        rng = setup.rng(teacher, "all")
        state = {"head.weight": torch.from_numpy(rng.normal(size=(10, 8)).astype(np.float32))}
        images = rng.random((3, 8, 8, 1), dtype=np.float32)
        yield Distilled(state, Synthetic(images, np.arange(3), np.full(3, -1)), 1.5, 2.25)


@pytest.fixture(scope="module", autouse=True)
def _threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Teachers, their students, models of another architecture on the students' images, and all their logits."""
    folder = Folder(tmp_path_factory.mktemp("distil"))
    assert folder.train("undefended") == 0
    assert folder.distil(*SHADOWS) == 0
    assert folder.train("again", synthetic=folder.files("synthetic", SHADOWS)) == 0
    assert folder.logits("mine", "mine") == folder.logits("again", "mine") == 0
    return folder


@pytest.fixture
def copied(finished: Folder, tmp_path: Path) -> Folder:
    """The same, for a test to change."""
    shutil.copytree(finished.root, tmp_path / "run")
    return Folder(tmp_path / "run")


@pytest.fixture
def taught(copied: Folder, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """Teachers without students, and a method that takes no time."""
    for name in ("synthetic/mine", "models/mine"):
        shutil.rmtree(copied.root / name)
    monkeypatch.setattr(dfkd, "distil", dreamed)
    return copied


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Callable[[int], str]:
    """Return the one sentence that a stage failed with."""

    def sentence(status: int) -> str:
        printed = capsys.readouterr().err
        assert (status, printed[:7]) == (1, "error: "), printed
        return printed.removeprefix("error: ").strip()

    return sentence


# --- what it makes -----------------------------------------------------------------------------------------------


def test_each_teacher_gets_a_student_and_its_images_with_what_determines_them(finished: Folder) -> None:
    for shadow in SHADOWS:
        teacher, _ = read_safetensors(finished.file("models", shadow, "undefended"))
        assert teacher["shape"] == {"channels": 1, "image_size": 8, "classes": 10}
        header, weights = read_safetensors(finished.file("models", shadow))
        assert header == {
            "stage": "distil",
            "spec": json.loads(RUN.spec("distil", method="mine")),
            "code": code_hash("coalmine.stages.distil", "coalmine.methods.dfkd"),
            "shadow": shadow,
            "inputs": {**finished.data().digests(), "teacher": teacher},
        }
        assert weights["head.weight"].shape == (10, 8), "the student's own architecture"
        other, arrays = read_npz(finished.file("synthetic", shadow))
        assert other == header
        assert arrays["images"].shape == (20, 8, 8, 1)
        np.testing.assert_allclose(arrays["labels"].sum(axis=1), 1, rtol=1e-5)
        assert (arrays["source"] == -1).all()
        for folder in ("synthetic", "models"):
            measured = read_json(finished.file(folder, shadow, suffix=".json"))
            assert measured["seconds"] > 0
            assert measured["bytes"] == finished.file(folder, shadow).stat().st_size
    students = [read_safetensors(finished.file("models", shadow))[1]["head.weight"] for shadow in SHADOWS]
    assert all(np.abs(one - other).max() > 1e-3 for one, other in pairwise(students))


def test_making_images_and_teaching_are_measured_apart(taught: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    assert taught.distil(1, 4) == 0
    seconds = [read_json(taught.file(folder, 4, suffix=".json"))["seconds"] for folder in ("synthetic", "models")]
    assert seconds == [1.5, 2.25]
    assert "mine 1, 4: 2 of 2 students: 3 images of shadow model 4 are kept" in capsys.readouterr().out


def test_the_same_command_gives_the_same_bytes_whatever_the_batch(finished: Folder, copied: Folder) -> None:
    for folder in ("synthetic", "models"):
        shutil.rmtree(copied.root / folder / "mine")
    assert copied.distil(5) == copied.distil(4, 1) == 0
    for folder in ("synthetic", "models"):
        for shadow in SHADOWS:
            assert copied.file(folder, shadow).read_bytes() == finished.file(folder, shadow).read_bytes()


def test_a_method_is_given_models_of_its_own_shadow_models_and_nothing_else(
    taught: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Teacher] = []
    given: list[Setup] = []

    def looking(teachers: Sequence[Teacher], settings: Any, setup: Setup) -> Iterator[Distilled]:
        seen.extend(teachers)
        given.append(setup)
        return dreamed(teachers, settings, setup)

    monkeypatch.setattr(dfkd, "distil", looking)
    for path in (*taught.private, *taught.design):
        path.unlink()
    assert taught.distil(4, 5) == 0
    assert [teacher.number for teacher in seen] == [4, 5]
    for teacher in seen:
        weights = read_safetensors(taught.file("models", teacher.number, "undefended"))[1]
        assert teacher.state.keys() == weights.keys()
        assert all(np.array_equal(teacher.state[name].numpy(), weights[name]) for name in weights)
        shape = (teacher.channels, teacher.image_size, teacher.classes)
        assert shape == (1, 8, 10)
        assert teacher.model == RUN.method("undefended").model
    (setup,) = given
    assert (setup.method, setup.model, setup.classes) == ("mine", RUN.method("mine").model, 10)
    assert setup.public is setup.mechanism is setup.experts is None


def test_the_command_takes_no_private_data(finished: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    assert finished.call("distil", "mine", finished.files("models", [1]), private=finished.private, teachers=["x"]) == 2
    assert "unrecognized arguments: --private" in capsys.readouterr().err


# --- what it refuses ---------------------------------------------------------------------------------------------


def other_shadow(folder: Folder, path: Path) -> None:
    place(folder.file("models", 1, "undefended"), path)


def other_method(folder: Folder, path: Path) -> None:
    place(folder.file("models", 4, "again"), path)


def with_header(**changes: Any) -> Callable[[Folder, Path], None]:
    def write(folder: Folder, path: Path) -> None:
        header, weights = read_safetensors(path)
        write_safetensors(path, {**header, **{name: header[name] | value for name, value in changes.items()}}, weights)

    return write


def whitened(folder: Folder, path: Path) -> None:
    header, weights = read_safetensors(path)
    write_safetensors(path, header, weights | fit(folder.data().images).state())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (other_shadow, "004.safetensors was made with shadow = 1, but 4 is needed here"),
        (other_method, "004.safetensors was made with spec.method = 'again', but 'undefended' is needed here"),
        (
            with_header(spec={"model": {"name": "mlp", "hidden": [3]}}),
            "made with spec.model = {'hidden': [3], 'name': 'mlp'}, but ",
        ),
        (with_header(spec={"normalisation": {}}), "004.safetensors was made with spec.normalisation = {}, but "),
        (with_header(inputs={"design": "0"}), "004.safetensors was made with inputs.design = '0', but "),
        (with_header(inputs={"private": "0"}), "004.safetensors was made with inputs.private = '0', but "),
        (with_header(shape={"classes": 9}), "004.safetensors was made with shape = "),
        (whitened, "004.safetensors was trained on whitened images, but a data-free method makes images that are not"),
        (lambda folder, path: path.unlink(), "004.safetensors does not exist. Run Snakemake for the target"),
    ],
    ids=["shadow", "method", "architecture", "normalisation", "design", "data", "shape", "whitened", "missing"],
)
def test_a_teacher_that_cannot_be_one_is_refused(
    taught: Folder, told: Callable[[int], str], spoil: Callable[[Folder, Path], None], message: str
) -> None:
    spoil(taught, taught.file("models", 4, "undefended"))
    assert message in told(taught.distil(1, 4))
    assert not list((taught.root / "models").glob("mine/*.safetensors"))


def test_a_student_of_a_method_that_is_none_is_no_teacher(taught: Folder, told: Callable[[int], str]) -> None:
    taught.distil(4)
    place(taught.file("models", 4), taught.file("models", 4, "undefended"))
    assert "004.safetensors was made with stage = 'distil', but 'train' is needed here" in told(taught.distil(4))


def test_images_that_name_a_private_sample_are_refused(
    taught: Folder, told: Callable[[int], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def naming(teachers: Sequence[Teacher], settings: Any, setup: Setup) -> Iterator[Distilled]:
        for made in dreamed(teachers, settings, setup):
            yield replace(made, synthetic=replace(made.synthetic, source=np.array([-1, 7, -1])))

    monkeypatch.setattr(dfkd, "distil", naming)
    message = told(taught.distil(1))
    assert message.startswith("mine names private samples as the source of its images, but is given none: ")
    assert not list(taught.root.glob("*/mine/.finished/*"))


# --- interrupted jobs --------------------------------------------------------------------------------------------


class KilledError(Exception):
    """Stands for a kill."""


def test_students_finished_before_a_kill_are_kept(
    taught: Folder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert taught.distil(*SHADOWS) == 0
    paths = [taught.file(folder, shadow) for folder in ("synthetic", "models") for shadow in SHADOWS]
    before = {path: path.read_bytes() for path in paths}
    for path in paths:
        path.unlink()
        path.with_suffix(".json").unlink()

    def killed(teachers: Sequence[Teacher], settings: Any, setup: Setup) -> Iterator[Distilled]:
        yield from dreamed(teachers[:2], settings, setup)
        setup.checkpoint(teachers[2]).save({"step": np.array(3)})
        raise KilledError

    asked: list[int] = []

    def going_on(teachers: Sequence[Teacher], settings: Any, setup: Setup) -> Iterator[Distilled]:
        asked.extend(teacher.number for teacher in teachers)
        saved = setup.checkpoint(teachers[0]).load()
        assert saved is not None
        assert saved["step"] == 3
        return dreamed(teachers, settings, setup)

    monkeypatch.setattr(dfkd, "distil", killed)
    with pytest.raises(KilledError):
        taught.distil(*SHADOWS)
    assert not any(path.exists() for path in paths)
    capsys.readouterr()
    monkeypatch.setattr(dfkd, "distil", going_on)
    assert taught.distil(*SHADOWS) == 0
    assert asked == [5]
    assert "mine 1, 4-5: 2 of 3 were finished by an interrupted job and are kept" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in paths} == before
    assert not list(taught.root.rglob(".finished"))


def test_students_of_another_teacher_are_not_taken_over(taught: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(teachers: Sequence[Teacher], settings: Any, setup: Setup) -> Iterator[Distilled]:
        yield from dreamed(teachers[:1], settings, setup)
        raise KilledError

    monkeypatch.setattr(dfkd, "distil", killed)
    with pytest.raises(KilledError):
        taught.distil(1, 4)
    path = taught.file("models", 1, "undefended")
    header, weights = read_safetensors(path)
    write_safetensors(path, {**header, "code": "0ther"}, weights)
    asked: list[int] = []

    def looking(teachers: Sequence[Teacher], settings: Any, setup: Setup) -> Iterator[Distilled]:
        asked.extend(teacher.number for teacher in teachers)
        return dreamed(teachers, settings, setup)

    monkeypatch.setattr(dfkd, "distil", looking)
    assert taught.distil(1, 4) == 0
    assert asked == [1, 4]


# --- what others make of students and of their images ------------------------------------------------------------


def test_a_student_is_queried_with_its_own_images(finished: Folder) -> None:
    header, arrays = read_npz(finished.file("logits", 4))
    assert header["inputs"]["model"] == read_safetensors(finished.file("models", 4))[0]
    images = read_npz(finished.file("synthetic", 4))[1]["images"]
    _, weights = read_safetensors(finished.file("models", 4))
    x = (unit_scale(images).reshape(len(images), -1) - 0.3) / 0.35
    hidden = np.maximum(x @ weights["layers.0.weight"].T + weights["layers.0.bias"], 0)
    expected = hidden @ weights["head.weight"].T + weights["head.bias"]
    np.testing.assert_allclose(arrays["synthetic_logits"], expected, atol=1e-4)


def test_a_set_that_was_not_made_together_with_its_student_is_refused(
    copied: Folder, told: Callable[[int], str]
) -> None:
    path = copied.file("synthetic", 4)
    header, arrays = read_npz(path)
    write_npz(path, {**header, "code": "0ther"}, arrays)
    message = told(copied.logits("mine", "mine"))
    assert message.startswith(f"{path} and {copied.file('models', 4)} were not made together: their headers differ in ")
    assert "differ in code. Delete both and run Snakemake again" in message
    place(copied.file("synthetic", 5), path)
    assert "004.npz was made with shadow = 5, but 4 is needed here" in told(copied.logits("mine", "mine"))
    message = "001.safetensors was trained on a synthetic set, which is needed here: --synthetic"
    assert told(copied.logits("mine", None)).endswith(message)


def test_a_method_that_reuses_sets_trains_its_own_models_on_them(finished: Folder) -> None:
    for shadow in SHADOWS:
        header, weights = read_safetensors(finished.file("models", shadow, "again"))
        assert (header["stage"], header["spec"]["method"], header["spec"]["set"]) == ("train", "again", "mine")
        assert header["code"] == code_hash("coalmine.stages.train")
        assert header["inputs"]["synthetic"] == _models.digest_of_set(finished.file("synthetic", shadow))
        assert weights["head.weight"].shape == (10, 5)
        assert read_npz(finished.file("logits", shadow, "again"))[1]["synthetic_logits"].shape == (20, 10)
    assert not (finished.root / "synthetic/again").exists()


def test_a_set_of_another_method_than_the_one_named_is_refused(copied: Folder, told: Callable[[int], str]) -> None:
    for shadow in SHADOWS:
        path = copied.file("synthetic", shadow)
        header, arrays = read_npz(path)
        write_npz(path, {**header, "spec": header["spec"] | {"method": "other"}}, arrays)
    needed = "001.npz was made with spec.method = 'other', but 'mine' is needed here"
    assert needed in told(copied.train("again", synthetic=copied.files("synthetic", SHADOWS)))
    assert needed in told(copied.logits("again", "mine"))


def test_a_set_that_a_reusing_model_did_not_learn_from_is_refused(copied: Folder, told: Callable[[int], str]) -> None:
    path = copied.file("synthetic", 4)
    header, arrays = read_npz(path)
    arrays["images"][0] = 0
    write_npz(path, header, arrays)
    assert "004.safetensors was made with inputs.synthetic = " in told(copied.logits("again", "mine"))
