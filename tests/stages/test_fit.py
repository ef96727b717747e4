"""Generative models as commands: pre-trained, accounted for, fitted, drawn from; what each refuses."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from coalmine.artefacts import (
    digest,
    place,
    read_json,
    read_npz,
    read_safetensors,
    write_json,
    write_npy,
    write_safetensors,
)
from coalmine.audit.design import draw_design
from coalmine.config import check
from coalmine.data.sources import digits
from coalmine.errors import CoalmineError
from coalmine.kept import drop_kept
from coalmine.methods import diffusion
from coalmine.provenance import code_hash
from coalmine.run_files import write_design
from coalmine.shadows import Fitted, PrivateData, Setup, Shadow, Synthetic
from coalmine.stages import _command

SHADOWS = (1, 4)
NETWORK = {"width": 4, "multipliers": [1], "blocks": 1}
EDM = {"name": "edm", "sigma_max": 10.0}
RUN = check(
    {
        "run": "small",
        "shadows": 6,
        "data": {
            "private": {"module": "digits"},
            "public": {"module": "rendered_digits"},
            "normalisation": {"mean": [0.3], "std": [0.35]},
        },
        "audit": {"canaries": 10, "views": {"flip": False, "shift": 0}},
        "model": {"name": "mlp", "hidden": [12]},
        "training": {"epochs": 2, "batch_size": 16, "schedule": "cosine", "augmentation": {"flip": False, "shift": 0}},
        "pretrained": {"public": {"network": NETWORK, "objective": EDM, "steps": 4, "batch_size": 8}},
        "methods": {
            "mine": {
                "module": "diffusion",
                "fit": {"pretrained": "public", "steps": 3, "batch_size": 8, "lora": {"rank": 1}},
                "strength": 0.5,
                "images": 12,
                "levels": 4,
                "images_at_once": 5,
            },
            "again": {"module": "diffusion", "generator": "mine", "images": 7, "levels": 2},
            "dp": {
                "module": "dpdiffusion",
                "fit": {
                    "network": NETWORK,
                    "objective": {"name": "ddpm", "steps": 20},
                    "steps": 3,
                    "batch_size": 8,
                    "noise_multiplier": 1.0,
                    "delta": 1e-4,
                    "accountant": "rdp",
                    "views": 2,
                },
                "images": 12,
                "levels": 3,
            },
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
        self.public = [root / name for name in ("public.npy", "public_labels.npy")]
        self.design = [root / "canaries.csv", root / "membership.npy"]
        self.pretrained = [root / "pretrained/public.safetensors", root / "pretrained/public.json"]
        self.privacy = [root / "privacy/dp.json"]
        if not root.joinpath("images.npy").exists():
            write_npy(self.private[0], train.images[:60])
            write_npy(self.private[1], train.labels[:60])
            write_json(self.private[2], {"classes": list(digits.CLASSES)})
            write_npy(self.public[0], train.images[60:90])
            write_npy(self.public[1], train.labels[60:90])
            self.draw(seed=0)

    def draw(self, seed: int) -> None:
        write_design(*self.design, draw_design(np.load(self.private[1]), 10, 6, 10, seed=seed))

    def data(self) -> PrivateData:
        return PrivateData.read(*self.private, *self.design)

    def file(self, folder: str, method: str, shadow: int, suffix: str = "") -> Path:
        ending = suffix or {"generators": ".safetensors"}.get(folder, ".npz")
        return self.root / f"{folder}/{method}/{shadow:03d}{ending}"

    def files(self, folder: str, method: str, shadows: Sequence[int] = SHADOWS) -> list[Path]:
        return [self.file(folder, method, shadow, suffix) for shadow in shadows for suffix in ("", ".json")]

    def call(self, stage: str, spec: dict[str, Any], out: list[Path], **inputs: Any) -> int:
        """Run a stage; return its exit status."""
        line = [stage, "--spec", json.dumps(spec)]
        if stage != "account":
            line += ["--device", "cpu", "--mode", "sequential", "--threads", "1"]
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

    def pretrain(self, **changes: Any) -> int:
        spec = json.loads(RUN.spec("pretrain_denoiser", name="public"))
        spec["settings"] |= changes
        return self.call("pretrain_denoiser", spec, self.pretrained, public=self.public)

    def account(self) -> int:
        spec = json.loads(RUN.spec("account", method="dp"))
        return self.call("account", spec, self.privacy, labels=self.private[1:2], design=self.design)

    def fit(self, method: str, shadows: Sequence[int] = SHADOWS, **given: list[Path]) -> int:
        """Fit with what the rules give to the stage, and ``given`` in its place."""
        usual = {"mine": {"pretrained": self.pretrained}, "dp": {"privacy": self.privacy}}[method]
        spec = json.loads(RUN.spec("fit", method=method))
        out = self.files("generators", method, shadows)
        return self.call("fit", spec, out, private=self.private, design=self.design, **{**usual, **given})

    def synthesize(self, method: str, shadows: Sequence[int] = SHADOWS, spec: dict[str, Any] | None = None) -> int:
        spec = spec or json.loads(RUN.spec("synthesize", method=method))
        out = self.files("synthetic", method, shadows)
        generators = self.files("generators", RUN.generator_of(method), SHADOWS)
        given = {"private": self.private, "design": self.design, "generators": generators}
        return self.call("synthesize", spec, out, **given)


@pytest.fixture(scope="module", autouse=True)
def _threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A run from the pre-trained network to all synthetic sets."""
    folder = Folder(tmp_path_factory.mktemp("fit"))
    assert folder.pretrain() == folder.account() == 0
    assert folder.fit("mine") == folder.fit("dp") == 0
    for method in ("mine", "again", "dp"):
        assert folder.synthesize(method) == 0
    return folder


@pytest.fixture
def copied(finished: Folder, tmp_path: Path) -> Folder:
    """The same, for a test to change."""
    shutil.copytree(finished.root, tmp_path / "run")
    return Folder(tmp_path / "run")


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Callable[[int], str]:
    """Return the one sentence that a stage failed with."""

    def sentence(status: int) -> str:
        printed = capsys.readouterr().err
        assert (status, printed[:7]) == (1, "error: "), printed
        return printed.removeprefix("error: ").strip()

    return sentence


# --- what is made ----------------------------------------------------------------------------------------------------


def test_the_pretrained_network_carries_what_determines_it(finished: Folder) -> None:
    header, weights = read_safetensors(finished.pretrained[0])
    assert header == {
        "stage": "pretrain_denoiser",
        "spec": json.loads(RUN.spec("pretrain_denoiser", name="public")),
        "code": code_hash("coalmine.stages.pretrain_denoiser"),
        "shape": {"channels": 1, "image_size": 8, "classes": 10},
        "inputs": {"public": digest(*map(np.load, finished.public))},
    }
    assert weights["unet.class_embedding.weight"].shape == (11, 16)
    assert read_json(finished.pretrained[1])["bytes"] == finished.pretrained[0].stat().st_size
    assert not (finished.pretrained[0].parent / ".unfinished" / "public.npz").exists()


def test_the_account_carries_the_guarantee_of_fitting_alone(finished: Folder) -> None:
    account = read_json(finished.privacy[0])
    assert account["spec"] == json.loads(RUN.spec("account", method="dp"))
    assert [*account["spec"]["settings"]] == ["fit"]
    assert account["code"] == code_hash("coalmine.stages.account", "coalmine.methods.dpdiffusion")
    assert (account["population"], account["clip"]) == (55.0, 1.0)  # 50 samples, and half of 10
    assert account["guarantee"]["mechanism"] == {"noise_multiplier": 1.0, "sampling_rate": 8 / 55, "steps": 3}


@pytest.mark.parametrize("method", ["mine", "dp"])
def test_each_shadow_model_gets_a_generative_model_with_what_determines_it(finished: Folder, method: str) -> None:
    module = {"mine": "diffusion", "dp": "dpdiffusion"}[method]
    mechanism = read_json(finished.privacy[0])["guarantee"]["mechanism"]
    given = {"mine": {"pretrained": read_safetensors(finished.pretrained[0])[0]}, "dp": {"mechanism": mechanism}}
    states = []
    for shadow in SHADOWS:
        path = finished.file("generators", method, shadow)
        header, weights = read_safetensors(path)
        assert header == {
            "stage": "fit",
            "spec": json.loads(RUN.spec("fit", method=method)),
            "code": code_hash("coalmine.stages.fit", f"coalmine.methods.{module}"),
            "shape": {"channels": 1, "image_size": 8, "classes": 10},
            "inputs": {**finished.data().digests(), "classes": [*digits.CLASSES], **given[method]},
            "shadow": shadow,
        }
        assert [*header["spec"]["settings"]] == ["fit"], "nothing of how images are drawn"
        measured = read_json(finished.file("generators", method, shadow, ".json"))
        assert measured["seconds"] > 0
        assert measured["bytes"] == path.stat().st_size
        states.append(weights)
    assert states[0].keys() == states[1].keys() == read_safetensors(finished.pretrained[0])[1].keys()
    names = ["unet.class_embedding.weight", "unet.mid_block.resnets.0.conv1.weight"]
    assert all(np.abs(states[0][name] - states[1][name]).max() > 0 for name in names)


def test_each_shadow_model_gets_a_set_with_the_model_that_it_was_drawn_from(finished: Folder) -> None:
    for method, owner, module in (
        ("mine", "mine", "diffusion"),
        ("again", "mine", "diffusion"),
        ("dp", "dp", "dpdiffusion"),
    ):
        for shadow in SHADOWS:
            header, arrays = read_npz(finished.file("synthetic", method, shadow))
            generator = read_safetensors(finished.file("generators", owner, shadow))[0]
            assert header == {
                "stage": "synthesize",
                "spec": json.loads(RUN.spec("synthesize", method=method)),
                "code": code_hash("coalmine.stages.synthesize", f"coalmine.methods.{module}"),
                "shadow": shadow,
                "inputs": {**finished.data().digests(), "generator": generator},
            }
            mine = finished.data().shadow(shadow)
            count = {"mine": 12, "again": 7, "dp": 12}[method]
            assert arrays["images"].shape == (count, 8, 8, 1)
            assert arrays["images"].dtype == np.uint8
            if method == "mine":
                positions = np.searchsorted(mine.index, arrays["source"])
                assert np.array_equal(mine.index[positions], arrays["source"])
                assert np.array_equal(mine.labels[positions], arrays["labels"])
                assert len(np.unique(positions)) == 12
            else:
                assert (arrays["source"] == -1).all()
                assert np.array_equal(arrays["labels"], np.arange(count) % 10)


def test_the_same_command_gives_the_same_bytes_whatever_the_batch(finished: Folder, copied: Folder) -> None:
    for path in (copied.root / "generators", copied.root / "synthetic", copied.root / "pretrained"):
        shutil.rmtree(path)
    assert copied.pretrain() == 0
    assert copied.pretrained[0].read_bytes() == finished.pretrained[0].read_bytes()
    for method in ("mine", "dp"):
        for shadow in reversed(SHADOWS):
            assert copied.fit(method, [shadow]) == 0
    for method in ("mine", "again", "dp"):
        for shadow in reversed(SHADOWS):
            assert copied.synthesize(method, [shadow]) == 0
    for folder, methods in (("generators", ("mine", "dp")), ("synthetic", ("mine", "again", "dp"))):
        for method in methods:
            for shadow in SHADOWS:
                ours, theirs = (one.file(folder, method, shadow) for one in (copied, finished))
                assert ours.read_bytes() == theirs.read_bytes(), (folder, method, shadow)


def test_a_private_set_depends_on_private_data_through_its_generative_model_only(copied: Folder) -> None:
    """Everything private is exchanged; headers apart, the set remains."""
    before = read_npz(copied.file("synthetic", "dp", 4))[1]
    generators = {shadow: read_safetensors(copied.file("generators", "dp", shadow)) for shadow in SHADOWS}
    write_npy(copied.private[0], 255 - np.load(copied.private[0])[::-1])
    write_npy(copied.private[1], np.load(copied.private[1])[::-1].copy())
    copied.draw(seed=5)
    for shadow, (header, weights) in generators.items():
        inputs = {**header["inputs"], **copied.data().digests()}
        write_safetensors(copied.file("generators", "dp", shadow), {**header, "inputs": inputs}, weights)
    assert copied.synthesize("dp", [4]) == 0
    after = read_npz(copied.file("synthetic", "dp", 4))[1]
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_methods_are_given_what_they_need_and_no_more(copied: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Setup] = []

    def spying(shadows: Sequence[Shadow], own: Any, setup: Setup) -> Iterator[Fitted]:
        given.append(setup)
        assert own == RUN.method("mine").settings.fit
        for shadow in shadows:
            yield Fitted({"a": torch.full((2,), float(shadow.number))}, 1.5)

    def looking(shadows: Sequence[Shadow], settings: Any, setup: Setup) -> Iterator[Synthetic]:
        given.append(setup)
        for shadow in shadows:
            assert read_safetensors(setup.generator(shadow))[1]["a"][0] == shadow.number
            yield Synthetic(np.zeros((1, 8, 8, 1), np.uint8), np.zeros(1, np.int64), np.full(1, -1))

    monkeypatch.setattr(diffusion, "fit", spying)
    monkeypatch.setattr(diffusion, "synthesize", looking)
    assert copied.fit("mine") == copied.synthesize("mine") == 0
    fitting, drawing = given
    assert fitting.pretrained == copied.pretrained[0]
    assert fitting.class_names == drawing.class_names == tuple("0123456789")
    assert fitting.generator is fitting.mechanism is fitting.experts is drawing.pretrained is None
    assert (fitting.method, fitting.classes, drawing.classes) == ("mine", 10, 10)
    assert read_json(copied.file("generators", "mine", 4, ".json"))["seconds"] == 1.5
    for setup in given:
        for name in ("model", "recipe", "normalisation"):
            with pytest.raises(CoalmineError, match="its generative models and sets must not depend on"):
                getattr(setup, name).name  # noqa: B018


# --- what is refused -------------------------------------------------------------------------------------------------


def test_private_fitting_needs_its_guarantee(copied: Folder, told: Callable[[int], str]) -> None:
    assert told(copied.fit("dp", privacy=[])) == "dp needs its guarantee, privacy/dp.json (--privacy)"


def test_a_guarantee_for_another_design_or_method_is_refused(copied: Folder, told: Callable[[int], str]) -> None:
    account = read_json(copied.privacy[0])
    write_json(copied.privacy[0], {**account, "spec": {**account["spec"], "method": "other"}})
    assert "dp.json was made with spec.method = 'other', but 'dp' is needed here" in told(copied.fit("dp"))
    write_json(copied.privacy[0], account)
    copied.draw(seed=3)
    assert "dp.json was made with inputs.design = " in told(copied.fit("dp"))


def test_a_guarantee_for_fewer_steps_is_refused(copied: Folder, told: Callable[[int], str]) -> None:
    account = read_json(copied.privacy[0])
    account["guarantee"]["mechanism"]["steps"] = 2
    write_json(copied.privacy[0], account)
    assert told(copied.fit("dp")) == "privacy/dp.json accounts for 2 steps, but fit.steps is 3"


def test_fitting_a_pretrained_network_needs_it(copied: Folder, told: Callable[[int], str]) -> None:
    assert told(copied.fit("mine", pretrained=[])) == "mine needs pretrained/public.safetensors (--pretrained)"


def test_another_pretrained_network_than_the_spec_says_is_refused(copied: Folder, told: Callable[[int], str]) -> None:
    """Its objective and architecture are taken from the spec when images are drawn."""
    header, weights = read_safetensors(copied.pretrained[0])
    for stage in ("fit", "pretrain"):
        write_safetensors(copied.pretrained[0], {**header, "stage": stage}, weights)
        assert f"public.safetensors was made with stage = '{stage}'" in told(copied.fit("mine"))
    write_safetensors(copied.pretrained[0], {**header, "spec": {**header["spec"], "name": "b"}}, weights)
    assert "public.safetensors was made with spec.name = 'b', but 'public' is needed" in told(copied.fit("mine"))
    assert copied.pretrain(objective={"name": "ddpm"}) == 0
    assert "public.safetensors was made with spec.settings = " in told(copied.fit("mine"))


def of_shadow(folder: Folder, path: Path) -> None:
    place(folder.file("generators", "mine", 1), path)


def of_method(folder: Folder, path: Path) -> None:
    place(folder.file("generators", "dp", 4), path)


def no_generator(folder: Folder, path: Path) -> None:
    header, weights = read_safetensors(path)
    write_safetensors(path, {**header, "stage": "train"}, weights)


def of_design(folder: Folder, path: Path) -> None:
    folder.draw(seed=3)


def of_data(folder: Folder, path: Path) -> None:
    write_npy(folder.private[0], 255 - np.load(folder.private[0]))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (of_shadow, "004.safetensors was made with shadow = 1, but 4 is needed here"),
        (of_method, "004.safetensors was made with spec.method = 'dp', but 'mine' is needed here"),
        (no_generator, "004.safetensors was made with stage = 'train', but 'fit' is needed here"),
        (of_design, "004.safetensors was made with inputs.design = "),
        (of_data, "004.safetensors was made with inputs.private = "),
        (lambda folder, path: path.unlink(), "004.safetensors does not exist. Run Snakemake for the target"),
    ],
    ids=["shadow", "method", "stage", "design", "data", "missing"],
)
@pytest.mark.parametrize("method", ["mine", "again"])
def test_generative_models_of_anything_else_are_refused(
    copied: Folder, told: Callable[[int], str], method: str, spoil: Callable[[Folder, Path], None], message: str
) -> None:
    spoil(copied, copied.file("generators", "mine", 4))
    assert message in told(copied.synthesize(method, [4]))


def test_drawing_needs_generative_models(copied: Folder, told: Callable[[int], str]) -> None:
    spec = json.loads(RUN.spec("synthesize", method="again"))
    out = copied.files("synthetic", "again")
    status = copied.call("synthesize", spec, out, private=copied.private, design=copied.design)
    assert told(status) == "again needs the denoisers of its shadow models (--generators)"


# --- interrupted jobs ------------------------------------------------------------------------------------------------


class KilledError(Exception):
    """Stands for a kill."""


def killed_after(monkeypatch: pytest.MonkeyPatch, saves: int) -> None:
    """Let checkpoints be due always, and kill the job after so many of them."""
    from coalmine.checkpoint import Checkpoint

    left, save = [saves], Checkpoint.save

    def saving(self: Checkpoint, arrays: Any) -> None:
        save(self, arrays)
        left[0] -= 1
        if left[0] == 0:
            raise KilledError

    monkeypatch.setattr(Checkpoint, "save", saving)
    monkeypatch.setattr(Checkpoint, "due", lambda self: True)


@pytest.mark.parametrize("stage", ["fit mine", "fit dp", "synthesize mine", "pretrain"])
def test_jobs_that_are_killed_go_on_where_they_were_and_end_with_the_same_bytes(
    stage: str, copied: Folder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name, _, method = stage.partition(" ")
    folder = {"fit": "generators", "synthesize": "synthetic"}.get(name)
    paths = [copied.file(folder, method, shadow) for shadow in SHADOWS] if folder else [copied.pretrained[0]]
    before = [path.read_bytes() for path in paths]
    for path in paths:
        path.unlink()

    def job() -> int:
        return getattr(copied, name)(*([method] if method else []))

    with monkeypatch.context() as patch:
        killed_after(patch, saves=5 if folder else 2)  # 3 a shadow model: within the second one
        with pytest.raises(KilledError):
            job()
    assert not any(path.exists() for path in paths)
    capsys.readouterr()
    assert job() == 0
    assert [path.read_bytes() for path in paths] == before
    printed = capsys.readouterr().out
    taken = {"synthesize mine": "taken up after 10 of 12 images"}.get(stage, "taken up after step 2 of")
    assert taken in printed
    assert ("1 of 2 were finished by an interrupted job and are kept" in printed) is (folder is not None)
    assert not [
        *copied.root.rglob(".finished"),
        *copied.root.rglob("*.npz.canvas.npy"),
        *copied.root.rglob("*.canvas*"),
    ]
