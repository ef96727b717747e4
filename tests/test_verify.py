"""Files looked through piece by piece: what is whole, what is not, and the digests that other files carry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from coalmine import artefacts
from coalmine.artefacts import write_npy, write_npz, write_safetensors
from coalmine.verification import content
from coalmine.verification.content import DamageError
from coalmine.verification.inputs import changed

ARRAYS = arrays_of.arrays(
    st.sampled_from(["uint8", "int64", "float32", "float64", "bool"]),
    arrays_of.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    elements={"allow_nan": False, "allow_infinity": False},
)
FOLDER = settings(
    max_examples=40, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def check(path: Path) -> None:
    content.check_numbers(content.read(path))


@FOLDER
@given(first=ARRAYS, second=ARRAYS)
def test_digests_are_those_that_stages_write_whatever_the_format(
    tmp_path: Path, first: np.ndarray, second: np.ndarray
) -> None:
    expected = artefacts.digest(first, second)
    write_npz(tmp_path / "a.npz", {"stage": "s", "é": 1}, {"x": first, "y": second})
    read = content.read(tmp_path / "a.npz")
    assert read.header == {"stage": "s", "é": 1}
    assert content.digest([read.fields["x"], read.fields["y"]]) == expected
    assert content.digest([read.fields["y"], read.fields["x"]]) == artefacts.digest(second, first)
    write_npy(tmp_path / "x.npy", first)
    write_npy(tmp_path / "y.npy", second)
    fields = [content.read(tmp_path / f"{name}.npy").fields[name] for name in "xy"]
    assert content.digest(fields) == expected
    write_safetensors(tmp_path / "a.safetensors", {"stage": "s"}, {"x": first, "y": second})
    stored = content.read(tmp_path / "a.safetensors").fields
    assert content.digest([stored["x"], stored["y"]]) == expected


def test_arrays_larger_than_a_piece_and_in_columns_have_the_same_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content, "CHUNK", 64)
    array = np.arange(300, dtype=np.int64).reshape(20, 15)
    for name, own in (("rows", array), ("columns", np.asfortranarray(array))):
        np.save(tmp_path / f"{name}.npy", own)
        assert content.digest(content.read(tmp_path / f"{name}.npy").fields.values()) == artefacts.digest(own)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_found_in_every_format(tmp_path: Path, bad: float) -> None:
    array = np.ones(1000, np.float32)
    array[777] = bad
    write_npy(tmp_path / "a.npy", array)
    write_npz(tmp_path / "a.npz", {}, {"fine": np.ones(3), "x": array})
    write_safetensors(tmp_path / "a.safetensors", {}, {"fine": np.ones(3), "x": array})
    for suffix, name in ((".npy", "a"), (".npz", "x"), (".safetensors", "x")):
        with pytest.raises(DamageError, match=f"^{name} holds NaN"):
            check(tmp_path / f"a{suffix}")


@FOLDER
@given(data=st.data())
def test_of_mangled_files_nothing_comes_but_damage(tmp_path: Path, data: st.DataObject) -> None:
    arrays = {"x": np.arange(6.0).reshape(2, 3), "y": np.ones(2, np.uint8)}
    write_npz(tmp_path / "a.npz", {"stage": "s"}, arrays)
    write_safetensors(tmp_path / "a.safetensors", {"stage": "s"}, arrays)
    write_npy(tmp_path / "a.npy", arrays["x"])
    artefacts.write_json(tmp_path / "a.json", {"stage": "s"})
    path = tmp_path / data.draw(st.sampled_from(["a.npz", "a.safetensors", "a.npy", "a.json"]))
    whole = path.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    how = data.draw(st.sampled_from(["flip", "cut", "zero", "grow"]))
    mangled = bytearray(whole)
    if how == "flip":
        mangled[place] ^= 1 << data.draw(st.integers(0, 7))
    elif how == "zero":
        mangled[place:] = bytes(len(whole) - place)
    path.write_bytes({"cut": whole[:place], "grow": whole + b"\0" * place}.get(how, bytes(mangled)))
    try:
        check(path)
    except DamageError:
        return
    assert how != "cut", "a file that was cut short is never whole"


@pytest.mark.parametrize(
    ("name", "whole"),
    [
        ("a.csv", b"a,b\n1,2\n"),
        ("a.html", b"<!DOCTYPE html>\n<html></html>\n"),
        ("a.tex", b"\\end{tabular}\n"),
        ("a.png", b"\x89PNG\r\n\x1a\n....IEND\xaeB`\x82"),
        ("a.pdf", b"%PDF-1.4\n%%EOF\n"),
    ],
)
def test_tables_and_figures_without_a_checksum_are_told_from_cut_ones(tmp_path: Path, name: str, whole: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(whole)
    check(path)
    for cut in (b"", whole[:-1], whole[: len(whole) // 2 - 1]):  # at the end of a line it could not be told
        path.write_bytes(cut)
        with pytest.raises(DamageError, match="begin or end"):
            check(path)


@pytest.mark.parametrize(
    ("was", "now", "told"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"a": 1}, {"a": 2}, ["a 1, now 2"]),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}, ["a.c 2, now 3"]),
        ({"a": 1}, {}, ["a 1, now nothing"]),
        ({}, {"a": [1]}, ["a nothing, now [1]"]),
        ({"a": {"b": 1}}, {"a": None}, ["a {'b': 1}, now nothing"]),
    ],
)
def test_differences_are_told_by_key_with_old_and_new_value(was: Any, now: Any, told: list[str]) -> None:
    assert changed(was, now) == told


def test_long_values_are_told_shortly() -> None:
    (told,) = changed({"a": "x" * 500}, {"a": "y"})
    assert len(told) < 60
    assert told.endswith(", now y")
