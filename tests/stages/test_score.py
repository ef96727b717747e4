"""What the score stage makes of synthetic sets and of teachers' logits."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coalmine.artefacts import read_json, read_npz, write_npy, write_npz
from coalmine.audit.design import Design, draw_design
from coalmine.audit.inheritance import inheritance
from coalmine.errors import CoalmineError
from coalmine.run_files import design_digest, write_design
from coalmine.seeds import seed_sequence
from coalmine.stages import score
from coalmine.stages.score import read_teachers, taken_share

MODELS, CLASSES = 8, 3
SPEC: dict[str, Any] = {
    "seed": 0,
    "method": "dfkd",
    "of": "dfkd",
    "source": "copied",
    "teacher": "undefended",
    "membership": "true",
    "bootstrap": 20,
    "shadows": MODELS,
    "confidence": 0.9,
    "delta": 1e-5,
}


def test_the_share_of_members_taken_is_told_as_what_it_means_for_the_method() -> None:
    membership = np.array([[True, False, True], [True, True, False]])
    taken = np.array([[True, False, False], [False, False, False]])
    assert taken_share(taken, membership, "copied") == {"selected": 0.25, "initialised": None}
    assert taken_share(taken, membership, "initialised") == {"selected": None, "initialised": 0.25}


class Folder:
    """The inputs of the stage: design, test data, and logits of a student and of its teacher."""

    def __init__(self, root: Path) -> None:
        self.root = root
        rng = np.random.default_rng(0)
        labels = rng.integers(CLASSES, size=60)
        write_npy(root / "labels.npy", labels)
        write_npy(root / "images.npy", np.zeros((20, 4, 4, 1), np.uint8))
        write_npy(root / "test.npy", rng.integers(CLASSES, size=20))
        self.design: Design = draw_design(labels, CLASSES, MODELS, 12, 8)
        write_design(root / "canaries.csv", root / "membership.npy", self.design)
        shape = (len(self.design.index), MODELS, 2, CLASSES)
        teacher = rng.normal(size=shape)
        self.logits = {"undefended": teacher, "dfkd": teacher + rng.normal(size=shape)}
        for method in self.logits:
            self.write(method)

    def write(self, method: str, **changes: Any) -> None:
        for shadow in range(MODELS):
            header = {
                "spec": {"method": method},
                "shadow": shadow,
                "inputs": {"design": design_digest(self.design)},
                **changes,
            }
            logits = self.logits[method][:, shadow].astype(np.float32)
            arrays = {"canary_logits": logits, "test_logits": np.zeros((20, CLASSES), np.float32)}
            write_npz(self.file(method, shadow), header, arrays)

    def file(self, method: str, shadow: int) -> Path:
        return self.root / f"logits/{method}/{shadow:03d}.npz"

    def files(self, method: str) -> list[Path]:
        return [self.file(method, shadow) for shadow in range(MODELS)]

    def metrics(self, monkeypatch: pytest.MonkeyPatch, spec: dict[str, Any], teacher: list[Path]) -> Any:
        """Run the stage and return what it writes to the metrics."""
        options = {
            "labels": ["labels.npy"],
            "design": ["canaries.csv", "membership.npy"],
            "test": ["images.npy", "test.npy"],
            "logits": self.files(spec["of"]),
            "teacher": teacher,
            "out": ["scores.npz", "metrics.json"],
        }
        line = ["score", "--spec", json.dumps(spec)]
        for option, values in options.items():
            line += [f"--{option}", *(str(self.root / value) for value in values)]
        monkeypatch.setattr(sys, "argv", line)
        score.main()
        return read_json(self.root / "metrics.json")


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_what_students_take_over_is_told_for_each_group(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = folder.metrics(monkeypatch, SPEC, folder.files("undefended"))
    design = folder.design
    for group, rows in (("mislabelled", design.mislabelled), ("clean", ~design.mislabelled)):
        expected = inheritance(
            folder.logits["undefended"][rows, :, 0].astype(np.float32),
            folder.logits["dfkd"][rows, :, 0].astype(np.float32),
            design.canary_label[rows],
            design.membership[rows],
            replicates=20,
            confidence=0.9,
            seed=seed_sequence(0, "dfkd", group, "inheritance", "bootstrap"),
        )
        assert metrics["groups"][group]["inheritance"] == {"teacher": "undefended", **expected}
        assert expected["members"]["student"] == metrics["groups"][group]["facts"]["memorised"]
    said = [line for line in capsys.readouterr().out.splitlines() if "IN teacher" in line]
    assert len(said) == 2
    assert "IN scores correlate with the teacher's by 0." in said[0]


def test_a_method_without_a_teacher_takes_nothing_over(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = {**SPEC, "method": "undefended", "of": "undefended", "teacher": None}
    metrics = folder.metrics(monkeypatch, spec, [])
    assert {group["inheritance"] for group in metrics["groups"].values()} == {None}


def test_a_method_may_have_the_first_models_of_a_design_only(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    fewer = MODELS - 1
    spec = {**SPEC, "method": "undefended", "of": "undefended", "teacher": None, "shadows": fewer}
    files = folder.files("undefended")
    monkeypatch.setattr(folder, "files", lambda method: files[:fewer])
    metrics = folder.metrics(monkeypatch, spec, [])
    assert metrics["design"]["models"] == fewer
    assert metrics["groups"]["mislabelled"]["pairs"] == fewer * int(folder.design.mislabelled.sum())
    _, arrays = read_npz(folder.root / "scores.npz")
    whole = folder.design.membership[folder.design.mislabelled]
    np.testing.assert_array_equal(arrays["mislabelled/membership"], whole[:, :fewer])
    monkeypatch.setattr(folder, "files", lambda method: files)
    with pytest.raises(CoalmineError, match=f"--logits lists {MODELS} files for {fewer} shadow models"):
        folder.metrics(monkeypatch, spec, [])


def test_teachers_that_are_missing_or_not_wanted_are_named(folder: Folder) -> None:
    student, drawn_for = folder.logits["dfkd"], design_digest(folder.design)
    with pytest.raises(CoalmineError, match="lists 0 files of logits for dfkd, but the spec calls for those of undef"):
        read_teachers([], SPEC, student, drawn_for)
    with pytest.raises(CoalmineError, match="lists 8 files of logits for dfkd, but the spec calls for none"):
        read_teachers(folder.files("undefended"), {**SPEC, "teacher": None}, student, drawn_for)
    with pytest.raises(CoalmineError, match=r"of shape \(20, 7, 3\), but those of the models that undefended taught"):
        read_teachers(folder.files("undefended")[:-1], SPEC, student, drawn_for)


def test_logits_of_another_teacher_shadow_model_or_design_are_refused(folder: Folder) -> None:
    student, drawn_for = folder.logits["dfkd"], design_digest(folder.design)
    with pytest.raises(CoalmineError, match=r"dfkd/000\.npz was made with spec.method = 'dfkd'"):
        read_teachers(folder.files("dfkd"), SPEC, student, drawn_for)
    with pytest.raises(CoalmineError, match=r"001\.npz was made with shadow = 1, but 0 is needed"):
        read_teachers(folder.files("undefended")[1:], SPEC, student, drawn_for)
    folder.write("undefended", inputs={"design": "0" * 16})
    with pytest.raises(CoalmineError, match=r"000\.npz was made with inputs.design = '0000000000000000'"):
        read_teachers(folder.files("undefended"), SPEC, student, drawn_for)
