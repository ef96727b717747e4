"""The stages as anyone can call them: command lines, without Snakemake."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from coalmine.artefacts import place, read_json, read_npz, read_safetensors, write_npy, write_npz
from coalmine.audit.design import draw_design
from coalmine.checksums import FOLDER
from coalmine.config import Run, check
from coalmine.data.sources import digits
from coalmine.kept import drop_kept
from coalmine.methods import coreset
from coalmine.progress import reporter
from coalmine.provenance import code_hash
from coalmine.run_files import read_design
from coalmine.shadows import PrivateData
from coalmine.stages import _command
from coalmine.training.augment import View, fixed_views
from coalmine.training.whitening import Whitening, fit

SHADOWS = range(6)
CONFIGURATION: dict[str, Any] = {
    "run": "small",
    "shadows": 6,
    "data": {
        "private": {"module": "digits"},
        "public": {"module": "rendered_digits", "size": 30},
        "private_size": 90,
        "test_size": 40,
        "normalisation": {"mean": [0.3], "std": [0.35]},
    },
    "audit": {
        "canaries": 16,
        "average": {"models": "shared", "samples": 12},
        "views": {"flip": False, "shift": 1},
        "bootstrap": 20,
    },
    "model": {"name": "mlp", "hidden": [12]},
    "training": {"epochs": 3, "batch_size": 16, "schedule": "cosine", "augmentation": {"flip": False, "shift": 0}},
    "methods": {
        "undefended": {"module": "undefended"},
        "random": {"module": "coreset", "selection": "random", "fraction": 0.5},
    },
    "controls": {"shuffled": {"of": "undefended"}},
    "tables": {},
    "figures": {},
}


def command(name: str, spec: str, **arguments: Any) -> list[str]:
    """The command line of a stage; each argument is one value or a list of them."""
    line = [f"coalmine.stages.{name}", "--spec", spec]
    for option, values in arguments.items():
        line += [f"--{option}", *map(str, values if isinstance(values, list) else [values])]
    return line


def call(line: list[str]) -> int:
    """Run a command line in this process, as ``python -m`` does; return its exit status."""
    module = importlib.import_module(line[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", line)
        try:
            _command.run(module.main)
        except SystemExit as end:
            return int(end.code or 0)
    return 0


class Folder:
    """A run's folder, and the command lines that fill it, as the rules write them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.run: Run = check(CONFIGURATION)
        data = root / "data"
        self.private = [data / "private/images.npy", data / "private/labels.npy", data / "classes.json"]
        self.test = [data / "test/images.npy", data / "test/labels.npy"]
        self.design = [root / "audit/canaries.csv", root / "audit/membership.npy"]

    def files(self, stage: str, method: str, suffix: str, shadows: Any = SHADOWS) -> list[Path]:
        return [self.root / f"{stage}/{method}/{shadow:03d}.{suffix}" for shadow in shadows]

    def prepare(self) -> list[str]:
        return command("prepare", self.run.spec("prepare", role="private"), out=[*self.private, *self.test])

    def draw(self) -> list[str]:
        _, labels, classes = self.private
        out = [*self.design, self.root / "audit/design.json"]
        return command("design", self.run.spec("design", case="worst"), labels=labels, classes=classes, out=out)

    def batched(self, stage: str, method: str, folder: str, suffix: str, shadows: Any, **inputs: Any) -> list[str]:
        return command(
            stage,
            self.run.spec(stage, method=method),
            private=self.private,
            design=self.design,
            **inputs,
            device="cpu",
            mode="sequential",
            threads=1,
            out=self.files(folder, method, suffix, shadows) + self.files(folder, method, "json", shadows),
        )

    def synthesize(self, method: str = "random", shadows: Any = SHADOWS) -> list[str]:
        return self.batched("synthesize", method, "synthetic", "npz", shadows)

    def train(self, method: str, shadows: Any = SHADOWS) -> list[str]:
        synthetic = self.files("synthetic", method, "npz") if method == "random" else []
        return self.batched("train", method, "models", "safetensors", shadows, synthetic=synthetic)

    def logits(self, method: str, shadows: Any = SHADOWS) -> list[str]:
        models = self.files("models", method, "safetensors")
        synthetic = self.files("synthetic", method, "npz") if method == "random" else []
        return self.batched(
            "logits", method, "logits", "npz", shadows, test=self.test, models=models, synthetic=synthetic
        )

    def score(self, method: str, of: str) -> list[str]:
        return command(
            "score",
            self.run.spec("score", method=method),
            labels=self.private[1],
            design=self.design,
            test=self.test,
            logits=self.files("logits", of, "npz"),
            synthetic=self.files("synthetic", of, "npz") if of == "random" else [],
            out=[self.root / f"scores/{method}.npz", self.root / f"metrics/{method}.json"],
        )

    def everything(self) -> Iterator[list[str]]:
        yield self.prepare()
        yield self.draw()
        yield self.synthesize()
        for method in ("undefended", "random"):
            yield self.train(method)
            yield self.logits(method)
            yield self.score(method, of=method)
        yield self.score("shuffled", of="undefended")

    def data(self) -> PrivateData:
        return PrivateData.read(*self.private, *self.design)

    def contents(self, *patterns: str) -> dict[str, bytes]:
        """The bytes of all artefacts; what was only measured is left out."""
        patterns = patterns or ("**/*.npy", "**/*.npz", "**/*.safetensors", "audit/*", "metrics/*", "data/*.json")
        found = {path for pattern in patterns for path in self.root.glob(pattern)}
        files = {path for path in found if path.is_file() and FOLDER not in path.parts}
        return {str(path.relative_to(self.root)): path.read_bytes() for path in files}


def make_everything(folder: Folder) -> None:
    for line in folder.everything():
        assert call(line) == 0, line[0]
    drop_kept(folder.root)  # as Snakemake does after a run


@pytest.fixture(scope="module", autouse=True)
def _threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """All stages run once, in one process."""
    folder = Folder(tmp_path_factory.mktemp("stages"))
    make_everything(folder)
    return folder


@pytest.fixture
def copied(finished: Folder, tmp_path: Path) -> Folder:
    shutil.copytree(finished.root, tmp_path / "run")
    return Folder(tmp_path / "run")


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Callable[[list[str]], str]:
    """Run a command line that must fail in one sentence, and return the sentence."""

    def fail(line: list[str]) -> str:
        capsys.readouterr()
        assert call(line) == 1
        printed = capsys.readouterr().err
        assert printed.startswith("error: ")
        assert "Traceback" not in printed
        return printed.removeprefix("error: ").strip()

    return fail


# --- what the stages make ----------------------------------------------------------------------------------------


def test_private_and_test_images_are_different_real_digits(finished: Folder) -> None:
    whole = digits.load(digits.Settings(test_size=10), [], np.random.default_rng(0))
    known = {image.tobytes(): int(label) for image, label in zip(whole.train.images, whole.train.labels, strict=True)}
    parts = [np.load(finished.private[0]), np.load(finished.test[0])]
    labels = [np.load(finished.private[1]), np.load(finished.test[1])]
    assert [len(part) for part in parts] == [90, 40]
    for images, own in zip(parts, labels, strict=True):
        pairs = [(known.get(image.tobytes()), int(label)) for image, label in zip(images, own, strict=True)]
        assert sum(one is not None for one, _ in pairs) > 0.9 * len(pairs)
        assert all(one in (None, label) for one, label in pairs)
    assert not {image.tobytes() for image in parts[0]} & {image.tobytes() for image in parts[1]}
    assert read_json(finished.private[2])["classes"] == list("0123456789")


def test_the_design_is_the_protocols_for_the_private_labels(finished: Folder) -> None:
    labels = np.load(finished.private[1])
    expected = draw_design(labels, 10, 6, 16, 12, seed=0)
    found = read_design(*finished.design, labels)
    for name in ("index", "canary_label", "mislabelled", "membership"):
        assert np.array_equal(getattr(found, name), getattr(expected, name))


def test_every_artefact_carries_the_spec_and_the_code_that_made_it(finished: Folder) -> None:
    digests = finished.data().digests()
    for shadow in SHADOWS:
        (synthetic,) = finished.files("synthetic", "random", "npz", [shadow])
        assert read_npz(synthetic)[0] == {
            "stage": "synthesize",
            "spec": json.loads(finished.run.spec("synthesize", method="random")),
            "code": code_hash("coalmine.stages.synthesize", "coalmine.methods.coreset"),
            "inputs": digests,
            "shadow": shadow,
        }
        (model,) = finished.files("models", "undefended", "safetensors", [shadow])
        header = read_safetensors(model)[0]
        assert header == {
            "stage": "train",
            "spec": json.loads(finished.run.spec("train", method="undefended")),
            "code": code_hash("coalmine.stages.train", "coalmine.methods.undefended"),
            "inputs": digests,
            "shadow": shadow,
            "shape": {"channels": 1, "image_size": 8, "classes": 10},
        }
        (logits,) = finished.files("logits", "undefended", "npz", [shadow])
        assert read_npz(logits)[0]["inputs"] == {**digests, "model": header}
        for path in (synthetic, model, logits):
            measured = read_json(path.with_suffix(".json"))
            assert measured["seconds"] >= 0
            assert measured["bytes"] == path.stat().st_size


def test_a_model_is_trained_on_its_own_synthetic_set(finished: Folder) -> None:
    seen = set()
    for shadow in SHADOWS:
        inputs = read_safetensors(finished.files("models", "random", "safetensors", [shadow])[0])[0]["inputs"]
        seen.add(inputs["synthetic"])
        assert inputs["design"] == finished.data().digests()["design"]
    assert len(seen) == len(SHADOWS)


def test_logits_are_those_of_all_views_of_all_audited_samples_and_of_test_and_synthetic_images(
    finished: Folder,
) -> None:
    _, arrays = read_npz(finished.files("logits", "random", "npz")[2])
    assert arrays["canary_logits"].shape == (28, 9, 10)
    assert arrays["test_logits"].shape == (40, 10)
    synthetic = read_npz(finished.files("synthetic", "random", "npz")[2])[1]["images"]
    assert arrays["synthetic_logits"].shape == (len(synthetic), 10)
    assert arrays["synthetic_logits"].dtype == np.float32
    # The two layers of the network, written out.
    _, weights = read_safetensors(finished.files("models", "random", "safetensors")[2])
    data, view = finished.data(), fixed_views(False, 1).index(View())
    for images, logits in (
        (data.images[data.design.index], arrays["canary_logits"][:, view]),
        (np.load(finished.test[0]), arrays["test_logits"]),
        (synthetic, arrays["synthetic_logits"]),
    ):
        x = (images.reshape(len(images), -1) / 255 - 0.3) / 0.35
        hidden = np.maximum(x @ weights["layers.0.weight"].T + weights["layers.0.bias"], 0)
        expected = hidden @ weights["head.weight"].T + weights["head.bias"]
        np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_a_model_that_learned_from_private_data_has_no_synthetic_logits(finished: Folder) -> None:
    for path in finished.files("logits", "undefended", "npz"):
        assert read_npz(path)[1]["synthetic_logits"].shape == (0, 10)


def whiten(copied: Folder) -> Whitening:
    """Give the random coresets a whitening and a learning rate, and images outside of 0 to 1, as distilled ones are."""
    whitening = fit(copied.data().images)
    for path in copied.files("synthetic", "random", "npz"):
        header, arrays = read_npz(path)
        arrays["images"] = (arrays["images"] / 255 * 1.2 - 0.1).astype(np.float32)
        arrays["learning_rate"] = np.array(0.05)
        write_npz(path, header, arrays | whitening.state())
    for folder in ("models", "logits"):
        shutil.rmtree(copied.root / folder / "random")
    return whitening


def test_whitened_float_images_are_trained_on_and_queried_as_whitened(copied: Folder) -> None:
    whitening, data = whiten(copied), copied.data()
    for line in (copied.train("random"), copied.logits("random")):
        assert call(line) == 0
    synthetic = read_npz(copied.files("synthetic", "random", "npz")[4])[1]
    _, weights = read_safetensors(copied.files("models", "random", "safetensors")[4])
    assert np.array_equal(weights["whitening.matrix"], whitening.matrix)
    _, arrays = read_npz(copied.files("logits", "random", "npz")[4])
    view = fixed_views(False, 1).index(View())
    for images, logits in (
        (synthetic["images"], arrays["synthetic_logits"]),
        (data.images[data.design.index], arrays["canary_logits"][:, view]),
        (np.load(copied.test[0]), arrays["test_logits"]),
    ):
        x = whitening.forward(images).reshape(len(images), -1)
        hidden = np.maximum(x @ weights["layers.0.weight"].T + weights["layers.0.bias"], 0)
        expected = hidden @ weights["head.weight"].T + weights["head.bias"]
        np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_metrics_tell_the_share_of_member_canaries_in_the_coresets(finished: Folder) -> None:
    metrics = read_json(finished.root / "metrics/random.json")
    design = finished.data().design
    taken = total = 0
    for shadow in SHADOWS:
        source = read_npz(finished.files("synthetic", "random", "npz")[shadow])[1]["source"]
        members = design.index[:16][design.membership[:16, shadow]]
        taken, total = taken + np.isin(members, source).sum(), total + len(members)
    assert metrics["groups"]["mislabelled"]["facts"]["selected"] == pytest.approx(taken / total)
    assert metrics["groups"]["mislabelled"]["members"] == total == 48
    assert metrics["groups"]["clean"]["pairs"] == 12 * 6
    undefended = read_json(finished.root / "metrics/undefended.json")
    assert undefended["groups"]["mislabelled"]["facts"]["selected"] == 1.0
    labels = np.load(finished.test[1])
    logits = [read_npz(path)[1]["test_logits"] for path in finished.files("logits", "undefended", "npz")]
    accuracy = [(one.argmax(axis=1) == labels).mean() for one in logits]
    assert undefended["accuracy"]["per_model"] == pytest.approx(accuracy)
    assert undefended["accuracy"]["se"] == pytest.approx(np.std(accuracy, ddof=1) / 6**0.5)


def test_the_null_control_scores_the_same_logits_with_shuffled_membership(finished: Folder) -> None:
    truth, shuffled = (read_npz(finished.root / f"scores/{name}.npz")[1] for name in ("undefended", "shuffled"))
    assert truth.keys() == shuffled.keys()
    mine, theirs = truth["mislabelled/membership"], shuffled["mislabelled/membership"]
    assert (mine != theirs).any()
    assert np.array_equal(mine.sum(axis=1), theirs.sum(axis=1))


def test_the_same_commands_give_the_same_bytes(finished: Folder, copied: Folder) -> None:
    before = finished.contents()
    for name in ("data", "audit", "synthetic", "models", "logits", "scores", "metrics"):
        shutil.rmtree(copied.root / name)
    make_everything(copied)
    assert len(before) > 30
    assert copied.contents() == before


def test_smaller_batches_in_another_order_give_the_same_bytes(finished: Folder, copied: Folder) -> None:
    for stage, suffix in (("synthetic", "npz"), ("models", "safetensors"), ("logits", "npz")):
        shutil.rmtree(copied.root / stage / "random")
        for shadows in ([5, 3], [0], [1, 2, 4]):
            lines = {"synthetic": copied.synthesize, "models": copied.train, "logits": copied.logits}
            assert call(lines[stage]("random", shadows)) == 0
        drop_kept(copied.root)  # as Snakemake does after a run
        pattern = f"{stage}/random/*.{suffix}"
        assert copied.contents(pattern) == finished.contents(pattern)
        assert not list(copied.root.rglob(".finished"))


def test_a_stage_runs_as_a_command_of_its_own(finished: Folder, tmp_path: Path) -> None:
    public = [tmp_path / name for name in ("public/images.npy", "public/labels.npy", "public/classes.json")]
    line = command("prepare", finished.run.spec("prepare", role="public"), out=public)
    done = subprocess.run([sys.executable, "-m", *line], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "prepare public: 30 public images of 8x8x1 in 10 classes\n"
    assert np.load(public[0]).shape == (30, 8, 8, 1)


def test_every_stage_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(_command.__file__).parent
    for name in sorted(path.stem for path in folder.glob("[a-z]*.py")):
        assert call([f"coalmine.stages.{name}", "--help"]) == 0
        printed = " ".join(capsys.readouterr().out.split())
        module = importlib.import_module(f"coalmine.stages.{name}")
        assert " ".join(str(module.__doc__).split()) in printed
        assert "--spec" in printed


# --- what the stages refuse --------------------------------------------------------------------------------------


def test_an_output_that_is_no_shadow_models_is_refused(
    copied: Folder, told: Callable[[list[str]], str], tmp_path: Path
) -> None:
    line = copied.synthesize(shadows=[0])
    wrong = [value.replace("000.", "first.") for value in line]
    message = "first.npz: the file name must be the number of a shadow model, such as 007.npz."
    assert told(wrong).endswith(message)


def test_a_method_that_names_foreign_samples_as_sources_is_refused(
    copied: Folder, told: Callable[[list[str]], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = coreset.synthesize
    foreign = int(np.setdiff1d(np.arange(90), copied.data().shadow(1).index)[0])

    def leaking(shadows: Any, settings: Any, setup: Any) -> Iterator[Any]:
        for shadow, synthetic in zip(shadows, original(shadows, settings, setup), strict=True):
            source = synthetic.source.copy()
            if shadow.number == 1:
                source[:2] = foreign, -1
            yield replace(synthetic, source=source)

    monkeypatch.setattr(coreset, "synthesize", leaking)
    shutil.rmtree(copied.root / "synthetic")
    message = told(copied.synthesize())
    assert message == (
        "random names 1 private samples as sources that its shadow model must not see (first: "
        f"{foreign}). A method may use the samples of its own shadow model only."
    )
    assert not list((copied.root / "synthetic/random").glob("*.npz"))


def test_a_synthetic_set_of_another_shadow_model_is_refused(copied: Folder, told: Callable[[list[str]], str]) -> None:
    first, second = copied.files("synthetic", "random", "npz")[:2]
    place(first, second)
    assert "001.npz was made with shadow = 0, but 1 is needed here" in told(copied.train("random"))


def test_a_synthetic_set_of_another_design_is_refused(copied: Folder, told: Callable[[list[str]], str]) -> None:
    line = copied.draw()
    spec = json.loads(line[2])
    assert call([*line[:2], json.dumps({**spec, "seed": 1}), *line[3:]]) == 0
    assert "000.npz was made with inputs.design = " in told(copied.train("random"))


def test_a_model_of_another_shadow_model_method_or_data_is_refused(
    copied: Folder, told: Callable[[list[str]], str]
) -> None:
    first, second = copied.files("models", "undefended", "safetensors")[:2]
    place(first, second)
    assert "001.safetensors was made with shadow = 0, but 1 is needed here" in told(copied.logits("undefended"))
    mine, theirs = (copied.files("models", method, "safetensors")[0] for method in ("random", "undefended"))
    place(theirs, mine)
    assert "000.safetensors was made with spec.method = 'undefended', but 'random'" in told(copied.logits("random"))
    images = np.load(copied.private[0])
    images[0, 0, 0, 0] += 1
    write_npy(copied.private[0], images)
    assert "000.safetensors was made with inputs.private = " in told(copied.logits("undefended"))


def test_a_synthetic_set_that_a_model_did_not_learn_from_is_refused(
    copied: Folder, told: Callable[[list[str]], str]
) -> None:
    line = copied.logits("random")
    without = line.index("--synthetic")
    message = "000.safetensors was trained on a synthetic set, which is needed here: --synthetic"
    assert told(line[: without + 1] + line[without + 7 :]).endswith(message)
    first, second = copied.files("synthetic", "random", "npz")[:2]
    header, arrays = read_npz(second)
    place(first, second)
    assert "001.npz was made with shadow = 0, but 1 is needed here" in told(line)
    arrays["images"][0, 0, 0, 0] ^= 1
    write_npz(second, header, arrays)
    assert "001.safetensors was made with inputs.synthetic = " in told(line)


def test_logits_in_the_wrong_order_are_refused(copied: Folder, told: Callable[[list[str]], str]) -> None:
    line = copied.score("random", of="random")
    first, second = (line.index(str(path)) for path in copied.files("logits", "random", "npz")[:2])
    line[first], line[second] = line[second], line[first]
    assert "001.npz was made with shadow = 1, but 0 is needed here" in told(line)


def test_a_synthetic_set_with_a_sample_that_its_shadow_model_excludes_is_refused(
    copied: Folder, told: Callable[[list[str]], str]
) -> None:
    path = copied.files("synthetic", "random", "npz")[3]
    header, arrays = read_npz(path)
    design = copied.data().design
    arrays["source"][0] = design.index[~design.membership[:, 3]][0]
    write_npz(path, header, arrays)
    assert "random: synthetic sets hold samples that their shadow models must not see" in told(
        copied.score("random", of="random")
    )


def test_a_missing_input_is_told_with_what_makes_it(copied: Folder, told: Callable[[list[str]], str]) -> None:
    copied.test[0].unlink()
    message = told(copied.logits("random"))
    assert message.endswith(
        "test/images.npy does not exist. Run Snakemake for the target that you want; it makes what it needs."
    )


def test_more_samples_than_there_are_cannot_be_kept(copied: Folder, told: Callable[[list[str]], str]) -> None:
    line = copied.prepare()
    spec = json.loads(line[2])
    spec["sizes"]["private"] = 5000
    message = "data.private_size is 5000, but there are only 1400 private samples."
    assert told([*line[:2], json.dumps(spec), *line[3:]]).startswith(message)


def test_a_source_without_test_images_cannot_be_private(copied: Folder, told: Callable[[list[str]], str]) -> None:
    line = copied.prepare()
    spec = {**json.loads(line[2]), "module": "rendered_digits", "settings": {}}
    assert told([*line[:2], json.dumps(spec), *line[3:]]).startswith(
        "The data source rendered_digits has no test images"
    )


def test_a_spec_that_is_no_json_is_an_error_of_the_command_line(
    copied: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    line = copied.draw()
    assert call([*line[:2], "{seed: 1}", *line[3:]]) == 2
    assert "argument --spec: invalid loads value: '{seed: 1}'" in capsys.readouterr().err


# --- small parts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shadows", "text"),
    [([0, 1, 2, 5], "0-2, 5"), ([7], "7"), ([3, 4], "3-4"), ([4, 3], "4, 3"), ([1, 3, 5, 6], "1, 3, 5-6"), ([], "")],
)
def test_shadow_models_are_described_by_their_ranges(shadows: list[int], text: str) -> None:
    assert _command.describe(shadows) == text


def test_progress_names_the_job_it_belongs_to(capsys: pytest.CaptureFixture[str]) -> None:
    reporter("random 0-2")("half done")
    assert capsys.readouterr().out == "random 0-2: half done\n"


def test_a_subset_keeps_the_order_and_everything_is_kept_as_it_is() -> None:
    from coalmine.data.images import ImageSet
    from coalmine.stages.prepare import subset

    whole = ImageSet(np.arange(40, dtype=np.uint8).reshape(10, 2, 2, 1), np.arange(10))
    assert subset(whole, None, np.random.default_rng(0), "test") is whole
    assert subset(whole, 10, np.random.default_rng(0), "test") is whole
    drawn = {tuple(subset(whole, 4, np.random.default_rng(seed), "test").labels.tolist()) for seed in range(30)}
    assert len(drawn) > 20
    for labels in drawn:
        assert list(labels) == sorted(set(labels))
    part = subset(whole, 4, np.random.default_rng(0), "test")
    assert np.array_equal(part.images[:, 0, 0, 0] // 4, part.labels)


@pytest.mark.parametrize("mode", ["sequential", "stacked"])
def test_the_seconds_of_synthetic_sets_add_up_to_what_was_spent(
    finished: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    original = coreset.synthesize

    def slow(*arguments: Any) -> Iterator[Any]:
        # As in a stack: all of the work is done before the first set is handed over.
        time.sleep(0.6)
        yield from original(*arguments)

    monkeypatch.setattr(coreset, "synthesize", slow)
    line = finished.synthesize()
    line[line.index("--mode") + 1] = mode
    first = line.index("--out") + 1
    line[first:] = [str(tmp_path / Path(name).name) for name in line[first:]]
    assert call(line) == 0
    seconds = [read_json(path)["seconds"] for path in sorted(tmp_path.glob("*.json"))]
    assert 0.6 <= sum(seconds) < 3
    assert (max(seconds) - min(seconds) < 0.01) == (mode == "stacked")
