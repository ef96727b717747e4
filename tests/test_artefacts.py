"""Artefacts are whole or absent, and are refused when they are not what their reader relies on."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from coalmine import artefacts
from coalmine.errors import CoalmineError

HEADER = {"stage": "train", "spec": {"seed": 1}, "code": "abc", "inputs": {"design": "d1"}}


def test_npz_round_trip_keeps_header_and_arrays(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    arrays = {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "y": np.array([True, False])}
    artefacts.write_npz(path, HEADER, arrays)
    header, read = artefacts.read_npz(path, x=("float32", (2, None)), y=("bool", (2,)))
    assert header == HEADER
    assert all(np.array_equal(read[name], arrays[name]) for name in arrays)


def test_safetensors_round_trip_keeps_header_and_weights(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    weights = {"w": np.eye(3, dtype=np.float32)[:, ::2], "n": np.array(7)}
    artefacts.write_safetensors(path, HEADER, weights)
    header, read = artefacts.read_safetensors(path)
    assert header == HEADER
    assert all(np.array_equal(read[name], weights[name]) for name in weights)


@pytest.mark.parametrize("write", [artefacts.write_npz, artefacts.write_safetensors])
def test_the_same_content_gives_the_same_bytes(tmp_path: Path, write) -> None:
    content = {"b": np.ones(3, dtype=np.float32), "a": np.zeros(2, dtype=np.float32)}
    write(tmp_path / "one", HEADER, content)
    write(tmp_path / "two", dict(reversed(HEADER.items())), content)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"x": ("float64", (None,))}, "found float32 of shape .3,., expected float64"),
        ({"x": ("float32", (4,))}, "expected float32 of shape .4,."),
        ({"x": ("float32", (None, None))}, "expected float32 of shape .any, any"),
        ({"z": ("float32", (3,))}, "lacks the field"),
    ],
)
def test_wrong_types_shapes_and_missing_fields_are_refused_by_name(tmp_path: Path, field, message: str) -> None:
    artefacts.write_npz(tmp_path / "a.npz", HEADER, {"x": np.ones(3, dtype=np.float32)})
    with pytest.raises(CoalmineError, match=message):
        artefacts.read_npz(tmp_path / "a.npz", **field)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, bad: float) -> None:
    array = np.array([0.0, bad], dtype=np.float32)
    artefacts.write_npz(tmp_path / "a.npz", HEADER, {"x": array})
    artefacts.write_npy(tmp_path / "a.npy", array)
    artefacts.write_safetensors(tmp_path / "a.safetensors", HEADER, {"x": array})
    for read in (
        lambda: artefacts.read_npz(tmp_path / "a.npz"),
        lambda: artefacts.read_npy(tmp_path / "a.npy", "float32", (2,)),
        lambda: artefacts.read_safetensors(tmp_path / "a.safetensors"),
    ):
        with pytest.raises(CoalmineError, match="NaN or infinite"):
            read()


@pytest.mark.parametrize("keep", [0, 10, -10])
@pytest.mark.parametrize("suffix", ["npz", "npy", "safetensors", "json"])
def test_a_cut_file_is_refused_with_the_remedy(tmp_path: Path, suffix: str, keep: int) -> None:
    path = tmp_path / f"a.{suffix}"
    array = np.arange(100, dtype=np.float32)
    write = {
        "npz": lambda: artefacts.write_npz(path, HEADER, {"x": array}),
        "npy": lambda: artefacts.write_npy(path, array),
        "safetensors": lambda: artefacts.write_safetensors(path, HEADER, {"x": array}),
        "json": lambda: artefacts.write_json(path, {"value": list(range(30))}),
    }
    read = {
        "npz": lambda: artefacts.read_npz(path),
        "npy": lambda: artefacts.read_npy(path, "float32", (None,)),
        "safetensors": lambda: artefacts.read_safetensors(path),
        "json": lambda: artefacts.read_json(path),
    }
    write[suffix]()
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CoalmineError, match=r"a\.\w+ is not .*Delete the file"):
        read[suffix]()
    path.unlink()
    with pytest.raises(CoalmineError, match="does not exist"):
        read[suffix]()


def test_a_pickle_inside_an_array_file_is_never_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(CoalmineError, match="not a readable"):
        artefacts.read_npy(tmp_path / "a.npy", "float32", (None,))


def test_a_full_disk_leaves_the_old_file_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    artefacts.write_json(path, {"old": True})

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CoalmineError, match=r"disk is full.*Free some space"):
        artefacts.write_json(path, {"new": True})
    assert artefacts.read_json(path) == {"old": True}
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_a_header_that_differs_is_refused_by_field_and_value(tmp_path: Path) -> None:
    artefacts.check_header(tmp_path, HEADER, stage="train", inputs__design="d1", spec__seed=1)
    with pytest.raises(CoalmineError, match=r"inputs\.design = 'd1', but 'd2' is needed"):
        artefacts.check_header(tmp_path, HEADER, inputs__design="d2")
    with pytest.raises(CoalmineError, match=r"shadow = None, but 3"):
        artefacts.check_header(tmp_path, HEADER, shadow=3)


def test_a_digest_sees_content_type_shape_and_order() -> None:
    x = np.arange(6, dtype=np.int64)
    others = [x + 1, x.astype(np.int32), x.reshape(2, 3), x.reshape(3, 2), x[::-1]]
    assert len({artefacts.digest(array) for array in [x, *others]}) == 6
    assert artefacts.digest(x, x + 1) != artefacts.digest(x + 1, x)
    assert artefacts.digest(x.reshape(2, 3).T) == artefacts.digest(np.ascontiguousarray(x.reshape(2, 3).T))
