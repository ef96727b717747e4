"""Files of a run that several stages read: designs, classes, accounts, logits, synthetic sets, experts, metrics."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile import REFUSED, Marked, bounded, outcome, spoilt
from hypothesis import given
from hypothesis import strategies as st

from coalmine.artefacts import read_npz, write_json, write_npy, write_npz, write_safetensors
from coalmine.audit.design import draw_design
from coalmine.distillation.trajectories import Trajectories
from coalmine.keep import cost
from coalmine.reporting import results
from coalmine.reporting.arrays import RunData
from coalmine.run_files import read_account, read_classes, read_design, read_images, write_design
from coalmine.stages._models import read_synthetic
from coalmine.stages.score import read_logits

LABELS = np.arange(60) % 4
DESIGN = draw_design(LABELS, n_classes=4, n_models=6, n_canaries=8, n_clean=4, seed=1)
HEADER = {"stage": "synthesize", "spec": {"method": "dm"}, "shadow": 0, "inputs": {"design": "d"}}
SYNTHETIC = {"images": np.zeros((3, 4, 4, 1), np.uint8), "labels": np.arange(3), "source": np.arange(3) - 1}
ACCOUNT = {
    "stage": "account",
    "spec": {"method": "private"},
    "inputs": {"design": "d"},
    "guarantee": {"epsilon": 1.0, "mechanism": {"noise_multiplier": 1.0, "sampling_rate": 0.5, "steps": 3}},
}
VISUAL = {
    "method": "dm",
    "images": 3,
    "level": 0.05,
    "held_out": 6.0,
    "metrics": {"pixel": {"share": {"value": 0.5, "low": 0.25, "high": None}, "per_model": [0.5, 0.5]}},
}
COST = {"seconds": 1.5, "device": "cpu", "peak_memory_mb": 3.0, "bytes": 12, "versions": {}, "finished": "2026"}


def _write_design(path: Path) -> None:
    write_design(path, path.parent / "membership.npy", DESIGN)


def _write_npz(arrays: dict[str, np.ndarray]) -> Callable[[Path], None]:
    return lambda path: write_npz(path, HEADER, arrays)


def _write_json(value: Any) -> Callable[[Path], None]:
    return lambda path: write_json(path, value)


READERS: dict[str, tuple[str, Callable[[Path], None], Callable[[Path], Any]]] = {
    "design": (
        "canaries.csv",
        _write_design,
        lambda path: read_design(path, path.parent / "membership.npy", LABELS),
    ),
    "classes": ("classes.json", _write_json({"classes": ["a", "b"]}), read_classes),
    "account": ("private.json", _write_json(ACCOUNT), lambda path: read_account(path, "private", "d")),
    "synthetic": ("000.npz", _write_npz(SYNTHETIC), lambda path: read_synthetic(path, "dm", 0, "d")),
    "logits": (
        "000.npz",
        _write_npz({"canary_logits": np.zeros((5, 1, 4), np.float32), "test_logits": np.zeros((9, 4), np.float32)}),
        lambda path: read_logits([path], "dm", "d"),
    ),
    "experts": (
        "000.safetensors",
        lambda path: write_safetensors(path, HEADER, {"weights": np.zeros((1, 2, 3), np.float32)}),
        Trajectories,
    ),
    "visual": ("dm.json", _write_json(VISUAL), lambda path: results._read(path, results.Visual)),
    "cost": ("000.json", _write_json(COST), lambda path: results._read(path, results.Cost)),
}


@pytest.fixture(params=READERS)
def reader(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@given(data=st.data())
@bounded(80)
def test_a_spoilt_file_of_a_run_is_read_or_refused_by_name(tmp_path: Path, reader: str, data: st.DataObject) -> None:
    name, write, read = READERS[reader]
    path = tmp_path / name
    write(path)
    path.write_bytes(data.draw(spoilt(path.read_bytes())))
    outcome(read, path)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def _replaced(value: Any, path: list[Any], by: Any) -> Any:
    if not path:
        return by
    return {key: _replaced(own, path[1:], by) if key == path[0] else own for key, own in value.items()}


def _paths(value: Any) -> list[list[Any]]:
    inner = value.items() if isinstance(value, dict) else []
    return [[], *([key, *path] for key, own in inner for path in _paths(own))]


@pytest.mark.parametrize("which", ["classes", "account", "visual", "cost"])
@given(data=st.data())
@bounded(60)
def test_json_of_another_shape_is_read_or_refused_by_name(tmp_path: Path, which: str, data: st.DataObject) -> None:
    whole = {"classes": {"classes": ["a", "b"]}, "account": ACCOUNT, "visual": VISUAL, "cost": COST}[which]
    name, _, read = READERS[which]
    path = tmp_path / name
    path.write_text(json.dumps(_replaced(whole, data.draw(st.sampled_from(_paths(whole))), data.draw(VALUES))))
    outcome(read, path)


@pytest.mark.parametrize(
    "rows",
    [
        "0,-1,3,1,1",  # counted from the end, it is a sample as well
        "0,5,1,2,0",
        "0,5,1,1,1",
        "1,5,1,2,1",
        "0,5,1,2,1\n1,5,1,2,1",
        "0,99999999999999999999,1,2,1",
        "0,5,1,-2,1",
        "0,5,1,2",
        "0,5,1,2,1,6",
        "0,5.0,1,2,1",
        "0,5,1,2,\x00",
        '0,"5,1,2,1',
        "0,5,1,2," + "1" * 200_000,
        "",
    ],
)
def test_a_table_of_canaries_that_cannot_be_is_refused(tmp_path: Path, rows: str) -> None:
    path = tmp_path / "canaries.csv"
    path.write_text(f"canary,index,true_label,canary_label,mislabelled\n{rows}\n")
    write_npy(tmp_path / "membership.npy", np.ones((rows.count("\n") + 1, 6), dtype=bool))
    assert outcome(READERS["design"][2], path) is REFUSED


def test_a_design_comes_back_as_it_was_written(tmp_path: Path) -> None:
    _write_design(tmp_path / "canaries.csv")
    found = read_design(tmp_path / "canaries.csv", tmp_path / "membership.npy", LABELS)
    for name, array in vars(DESIGN).items():
        assert np.array_equal(getattr(found, name), array)


@pytest.mark.parametrize(
    "membership", [np.ones((12, 6), np.uint8), np.ones((12, 6, 1), bool), np.ones((11, 6), bool), np.ones(12, bool)]
)
def test_membership_of_another_type_or_shape_is_refused(tmp_path: Path, membership: np.ndarray) -> None:
    _write_design(tmp_path / "canaries.csv")
    path = tmp_path / "membership.npy"
    write_npy(path, membership)
    assert outcome(lambda path: read_design(tmp_path / "canaries.csv", path, LABELS), path) is REFUSED


@pytest.mark.parametrize("classes", [[], ["a", "a"], ["a", 1], "ab", {"a": 1}, None, [["a"]], 3])
def test_classes_are_different_names(tmp_path: Path, classes: Any) -> None:
    write_json(tmp_path / "classes.json", {"classes": classes})
    assert outcome(read_classes, tmp_path / "classes.json") is REFUSED


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (np.zeros((3, 4, 4), np.uint8), np.zeros(3, np.int64)),
        (np.zeros((3, 4, 4, 1), np.float32), np.zeros(3, np.int64)),
        (np.zeros((3, 4, 4, 1), np.uint8), np.zeros(4, np.int64)),
        (np.zeros((3, 4, 4, 1), np.uint8), np.zeros(3, np.float64)),
        (np.array([[[[Path]]]], dtype=object), np.zeros(1, np.int64)),
    ],
)
def test_images_of_another_type_or_shape_are_refused(tmp_path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    np.save(tmp_path / "images.npy", images)
    np.save(tmp_path / "labels.npy", labels)
    refused = [outcome(lambda path: read_images(tmp_path / "images.npy", tmp_path / "labels.npy"), tmp_path)]
    assert refused == [REFUSED]


@pytest.mark.parametrize(
    "number", ["NaN", "Infinity", "-Infinity", "1e400", "-0.25", "1.5", '"0.5"x', "true" * 2, "[]", "null"]
)
def test_metrics_hold_finite_numbers_in_their_range(tmp_path: Path, number: str) -> None:
    path = tmp_path / "dm.json"
    path.write_text(json.dumps(VISUAL).replace('"level": 0.05', f'"level": {number}'))
    assert outcome(READERS["visual"][2], path) is REFUSED


def test_an_object_array_among_logits_is_never_unpickled(tmp_path: Path) -> None:
    marker, path = tmp_path / "marker", tmp_path / "000.npz"
    hostile = np.array([Marked(marker)], dtype=object)
    np.savez(path, header=np.array(json.dumps(HEADER)), canary_logits=hostile, test_logits=hostile, source=hostile)
    assert outcome(READERS["logits"][2], path) is REFUSED
    assert outcome(READERS["synthetic"][2], path) is REFUSED
    assert outcome(read_npz, path) is REFUSED
    assert not marker.exists()


@pytest.mark.parametrize("rows", [0, 1])
def test_images_of_a_run_that_do_not_fit_its_sets_are_refused(tmp_path: Path, rows: int) -> None:
    folder = tmp_path / "data/private"
    write_npy(folder / "images.npy", np.zeros((60, 4, 4, 1), np.uint8))
    write_npy(folder / "labels.npy", LABELS)
    path = tmp_path / "synthetic/dm/000.npz"
    write_npz(path, HEADER, {**SYNTHETIC, "source": SYNTHETIC["source"][:rows]})
    assert outcome(lambda _: RunData(tmp_path).synthetic("dm", 0), path) is REFUSED


@pytest.mark.parametrize("measured", [{}, {"seconds": "1"}, {**COST, "device": None}, [], 3, {**COST, "versions": 1}])
def test_measurements_that_are_none_are_refused_when_a_run_is_kept(tmp_path: Path, measured: Any) -> None:
    path = tmp_path / "models/dm/000.json"
    write_json(path, measured)
    assert outcome(lambda _: cost(tmp_path), path) is REFUSED
