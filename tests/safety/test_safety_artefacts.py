"""Array files, models and JSON from a results folder: what was written comes back, or the file is refused by name."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile import REFUSED, Marked, Peak, bounded, flipped, outcome, same, spoilt
from hypothesis import given
from hypothesis import strategies as st

from coalmine import artefacts
from coalmine.checkpoint import Checkpoint
from coalmine.errors import CoalmineError

HEADER = {"stage": "train", "spec": {"seed": 1, "name": "ä"}, "inputs": {"design": "d1"}}
ARRAYS = {
    "images": np.arange(24, dtype=np.uint8).reshape(2, 3, 4, 1),
    "labels": np.array([-1, 7, 2**40]),
    "logits": np.array([[0.5, -2.25], [3.0, 1e-3]], dtype=np.float32),
    "taken": np.array([True, False, True]),
    "empty": np.empty((0, 3), dtype=np.float32),
    "rate": np.array(0.25),
}
JSON = {"stage": "score", "list": [1, 2.5, None, True], "nested": {"text": "café <script>", "number": -3}}


def _npz(path: Path) -> None:
    artefacts.write_npz(path, HEADER, ARRAYS)


def _npy(path: Path) -> None:
    artefacts.write_npy(path, np.asfortranarray(np.arange(6.0, dtype=np.float32).reshape(2, 3)))


def _safetensors(path: Path) -> None:
    artefacts.write_safetensors(path, HEADER, ARRAYS)


def _json(path: Path) -> None:
    artefacts.write_json(path, JSON)


WRITE: dict[str, Callable[[Path], None]] = {"npz": _npz, "npy": _npy, "safetensors": _safetensors, "json": _json}
READ: dict[str, Callable[[Path], Any]] = {
    "npz": artefacts.read_npz,
    "npy": lambda path: artefacts.read_npy(path, "float32", (None, None)),
    "safetensors": artefacts.read_safetensors,
    "json": artefacts.read_json,
}


@pytest.fixture(params=WRITE)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def path(tmp_path: Path, kind: str) -> Path:
    """A whole file of each kind."""
    path = tmp_path / f"artefact.{kind}"
    WRITE[kind](path)
    return path


@given(data=st.data())
@bounded(150)
def test_a_spoilt_file_is_read_or_refused_by_name(path: Path, kind: str, data: st.DataObject) -> None:
    WRITE[kind](path)
    path.write_bytes(data.draw(spoilt(path.read_bytes())))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outcome(READ[kind], path)


@given(noise=st.binary(max_size=300))
@bounded(60)
def test_noise_behind_the_right_first_bytes_is_refused(path: Path, kind: str, noise: bytes) -> None:
    WRITE[kind](path)
    path.write_bytes(path.read_bytes()[:10] + noise)
    assert outcome(READ[kind], path) is REFUSED


def test_every_truncation_is_refused(path: Path, kind: str) -> None:
    whole = path.read_bytes()
    end = len(whole.rstrip()) if kind == "json" else len(whole)  # the last line may lack its end
    for length in range(0, end, 7):
        path.write_bytes(whole[:length])
        assert outcome(READ[kind], path) is REFUSED, length
    path.write_bytes(whole[: end - 1])
    assert outcome(READ[kind], path) is REFUSED


def test_every_flipped_bit_of_an_npz_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "artefact.npz"
    _npz(path)
    whole, written = path.read_bytes(), artefacts.read_npz(path)
    noticed = 0
    for position in range(len(whole)):
        path.write_bytes(flipped(whole, position, position % 8))
        found = outcome(artefacts.read_npz, path)
        noticed += found is REFUSED
        assert found is REFUSED or same(found, written), position
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        content = sum(info.file_size for info in archive.infolist())
    assert noticed > content  # every bit of the arrays, their headers and much of the archive's own records


def test_a_flipped_bit_that_shortens_an_array_is_noticed(tmp_path: Path) -> None:
    """NumPy stops where the header says, before zip compares the sum."""
    path = tmp_path / "artefact.npz"
    artefacts.write_npz(path, HEADER, {"x": np.arange(90_000, dtype=np.float32)})
    whole = path.read_bytes()
    path.write_bytes(flipped(whole, whole.index(b"(90000,)") + 1, 3))
    with np.load(path) as numpys:
        assert numpys["x"].shape == (10_000,)
    assert outcome(artefacts.read_npz, path) is REFUSED


def test_formats_without_a_checksum_do_not_notice_a_flipped_bit_of_their_content(tmp_path: Path) -> None:
    """The records beside them do, which these tests do without."""
    for name in ("npy", "safetensors"):
        path = tmp_path / f"artefact.{name}"
        WRITE[name](path)
        written = READ[name](path)
        whole = path.read_bytes()
        path.write_bytes(flipped(whole, len(whole) - 1, 0))
        found = outcome(READ[name], path)
        assert found is not REFUSED
        assert not same(found, written)


@given(
    value=st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(st.characters(exclude_categories=["Cs"])),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
        max_leaves=10,
    )
)
@bounded(80)
def test_any_json_comes_back_as_it_was_written(tmp_path: Path, value: Any) -> None:
    artefacts.write_json(tmp_path / "a.json", value)
    assert artefacts.read_json(tmp_path / "a.json") == value


@given(data=st.data())
@bounded(80)
def test_any_array_comes_back_as_it_was_written(tmp_path: Path, data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(0, 4), max_size=4)))
    dtype = data.draw(st.sampled_from(["uint8", "int64", "float16", "float32", "float64", "bool", "uint64", "int32"]))
    array = (np.arange(np.prod(shape, dtype=int)) % 2).reshape(shape).astype(dtype)
    if array.ndim > 1 and data.draw(st.booleans()):
        array = np.asfortranarray(array)
    artefacts.write_npz(tmp_path / "a.npz", HEADER, {"x": array})
    artefacts.write_npy(tmp_path / "a.npy", array)
    artefacts.write_safetensors(tmp_path / "a.safetensors", HEADER, {"x": array})
    assert same(artefacts.read_npz(tmp_path / "a.npz", x=(dtype, shape)), (HEADER, {"x": array}))
    assert same(artefacts.read_npz(tmp_path / "a.npz"), (HEADER, {"x": array}))
    assert same(artefacts.read_npy(tmp_path / "a.npy", dtype, shape), array)
    assert same(artefacts.read_safetensors(tmp_path / "a.safetensors"), (HEADER, {"x": array}))


def _npy_bytes(descr: str, shape: str, content: bytes = b"") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + text + b"\n" + content


HOSTILE_NPY = {
    "quadrillion": _npy_bytes("'<f4'", "(1000000000000000,)"),
    "terabyte": _npy_bytes("'|u1'", "(1000000000000,)", b"abc"),
    "negative": _npy_bytes("'<f4'", "(-1, -1)", b"\0" * 4),
    "no bytes": _npy_bytes("'<U0'", "(1000000000000000,)"),
    "wide": _npy_bytes("'<U2000000000'", "(1,)", b"abc"),
    "none of much": _npy_bytes("'<f4'", "(0, 99999999999999999999)"),
    "dimensions": _npy_bytes("'|u1'", "(" + "1, " * 90 + ")", b"a"),
    "nested": _npy_bytes("'|u1'", "(" * 3000 + ")" * 3000),
    "structured": _npy_bytes("[('a', '<f4')]", "(1,)", b"\0" * 4),
    "subarray": _npy_bytes("'(1000000000,)f8'", "(1,)"),
    "objects": _npy_bytes("'|O'", "(1,)", pickle.dumps([1])),
    "dates": _npy_bytes("'<M8[s]'", "(1,)", b"\0" * 8),
    "call": _npy_bytes("__import__('os').getcwd()", "(1,)", b"\0" * 8),
    "unfinished": _npy_bytes("'<f4", "(1,)", b"\0" * 4),
    "magic alone": b"\x93NUMPY",
    "other version": b"\x93NUMPY\x09\x00\x00\x00",
    "long header": b"\x93NUMPY\x02\x00\xff\xff\xff\x7f",
    "empty": b"",
    "zip": b"PK\x03\x04",
}


@pytest.mark.parametrize("name", HOSTILE_NPY)
def test_a_hostile_array_is_refused_without_its_memory(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.npy").write_bytes(HOSTILE_NPY[name])
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("header.npy", _header_array())
        archive.writestr("x.npy", HOSTILE_NPY[name])
    with Peak(4), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert outcome(lambda path: artefacts.read_npy(path, "float32", (None,)), tmp_path / "a.npy") is REFUSED
        assert outcome(artefacts.read_npz, tmp_path / "a.npz") is REFUSED


def _header_array(text: str = "{}") -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array(text), allow_pickle=False)
    return buffer.getvalue()


def test_no_pickle_in_any_place_is_ever_run(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    hostile = np.array([Marked(marker)], dtype=object)
    np.save(tmp_path / "a.npy", hostile, allow_pickle=True)
    np.savez(tmp_path / "a.npz", header=np.array("{}"), x=hostile)
    np.savez(tmp_path / "header.npz", header=hostile)
    for name in ("pickle.npy", "pickle.npz", "pickle.safetensors", "pickle.json"):
        (tmp_path / name).write_bytes(pickle.dumps(Marked(marker)))
    for path in tmp_path.iterdir():
        assert outcome(READ[path.suffix[1:]], path) is REFUSED, path
    assert Checkpoint(tmp_path / "a.npz").load() is None
    assert not marker.exists()
    pickle.loads(pickle.dumps(Marked(marker)))
    assert marker.exists()  # so it would have been seen


def test_a_zip_bomb_is_refused_without_its_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("header.npy", _header_array())
        archive.writestr("x.npy", _npy_bytes("'|u1'", f"({200 << 20},)", bytes(200 << 20)))
    with Peak(2):
        assert outcome(artefacts.read_npz, path) is REFUSED


def test_members_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    """A small file that unpacks to a large one without compression: all entries point at one member."""
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("header.npy", _header_array())
        archive.writestr("x.npy", _npy_bytes("'|u1'", "(100000,)", bytes(100000)))
        for number in range(50):
            info = zipfile.ZipInfo(f"x{number}.npy")
            for field in ("header_offset", "CRC", "compress_size", "file_size", "orig_filename"):
                setattr(info, field, getattr(archive.infolist()[1], field))
            archive.filelist.append(info)
            archive._didModify = True
    assert len(zipfile.ZipFile(path).infolist()) == 52
    with Peak(3):
        assert outcome(artefacts.read_npz, path) is REFUSED


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("second", ["x.npy", "x"])
def test_an_array_that_stands_there_twice_is_refused(tmp_path: Path, second: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name, text in (("header.npy", "{}"), ("x.npy", "one"), (second, "two")):
            archive.writestr(name, _header_array(text))
    assert outcome(artefacts.read_npz, tmp_path / "a.npz") is REFUSED


@pytest.mark.parametrize(
    "header", ["[]", "1", '"text"', "null", "", "{", '{"a": NaN}', '{"a": 1, "a": 2}', "[" * 100_000]
)
def test_a_header_that_is_no_block_is_refused(tmp_path: Path, header: str) -> None:
    from safetensors.numpy import save_file

    np.savez(tmp_path / "a.npz", header=np.array(header))
    save_file({"w": np.ones(2)}, tmp_path / "a.safetensors", metadata={"header": header})
    assert outcome(artefacts.read_npz, tmp_path / "a.npz") is REFUSED
    assert outcome(artefacts.read_safetensors, tmp_path / "a.safetensors") is REFUSED
    assert outcome(artefacts.read_safetensors_header, tmp_path / "a.safetensors") is REFUSED


def test_a_key_that_a_header_lacks_is_told_with_its_file(tmp_path: Path) -> None:
    _npz(tmp_path / "a.npz")
    header, _ = artefacts.read_npz(tmp_path / "a.npz")
    with pytest.raises(CoalmineError, match=r"a\.npz lacks 'settings'.*Delete the file"):
        header["spec"]["settings"]


def _safetensors_bytes(header: dict[str, Any] | str, content: bytes = b"", length: int | None = None) -> bytes:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + content


def _weight(dtype: str, shape: list[int], start: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


META = {"__metadata__": {"header": "{}"}}
HOSTILE_SAFETENSORS = {
    "long header": _safetensors_bytes(META, length=2**63),
    "header beyond the file": _safetensors_bytes(META, length=10**6),
    "no metadata": _safetensors_bytes({"w": _weight("F32", [1], 0, 4)}, bytes(4)),
    "overlap": _safetensors_bytes({**META, "a": _weight("F32", [2], 0, 8), "b": _weight("F32", [2], 4, 12)}, bytes(12)),
    "hole": _safetensors_bytes({**META, "a": _weight("F32", [1], 0, 4), "b": _weight("F32", [1], 8, 12)}, bytes(12)),
    "beyond the end": _safetensors_bytes({**META, "a": _weight("F32", [10**15], 0, 4 * 10**15)}, bytes(4)),
    "backwards": _safetensors_bytes({**META, "a": _weight("F32", [1], 4, 0)}, bytes(4)),
    "other shape": _safetensors_bytes({**META, "a": _weight("F32", [3], 0, 4)}, bytes(4)),
    "overflow": _safetensors_bytes({**META, "a": _weight("F32", [2**62, 2**62], 0, 4)}, bytes(4)),
    "unknown type": _safetensors_bytes({**META, "a": _weight("PICKLE", [1], 0, 4)}, bytes(4)),
    "bfloat16": _safetensors_bytes({**META, "a": _weight("BF16", [2], 0, 4)}, bytes(4)),
    "float8": _safetensors_bytes({**META, "a": _weight("F8_E4M3", [4], 0, 4)}, bytes(4)),
    "not a number": _safetensors_bytes({**META, "a": _weight("F32", [1], 0, 4)}, struct.pack("<f", float("nan"))),
    "neither true nor false": _safetensors_bytes({**META, "a": _weight("BOOL", [1], 0, 1)}, b"\x02"),
    "deep": _safetensors_bytes("[" * 10_000),
    "rest": _safetensors_bytes({**META, "a": _weight("F32", [1], 0, 4)}, bytes(9)),
    "empty": b"",
}


@pytest.mark.parametrize("name", HOSTILE_SAFETENSORS)
def test_hostile_weights_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(HOSTILE_SAFETENSORS[name])
    with Peak(1):
        assert outcome(artefacts.read_safetensors, path) is REFUSED


HOSTILE_JSON = {
    "deep list": "[" * 1_000_000,
    "deep block": '{"a":' * 200_000,
    "key twice": '{"a": 1, "a": 2}',
    "key twice inside": '[{"b": {"a": 1, "a": 1}}]',
    "not a number": '{"a": NaN}',
    "infinite": "[-Infinity]",
    "too large": '{"a": 1e999}',
    "endless digits": "1" * 10_000,
    "half a character": r'["\ud800"]',
    "half a character as a key": r'{"\udfff": 1}',
    "two values": "1 2",
    "empty": "",
}


@pytest.mark.parametrize("name", HOSTILE_JSON)
def test_hostile_json_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.json").write_text(HOSTILE_JSON[name])
    assert outcome(artefacts.read_json, tmp_path / "a.json") is REFUSED


@pytest.mark.parametrize("data", [b"\xff\xfe", b'"\xc3\x28"', b'"\xed\xa0\x80"', b"\x00", b"\xef\xbb\xbf{}"])
def test_json_that_is_no_utf_8_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.json").write_bytes(data)
    assert outcome(artefacts.read_json, tmp_path / "a.json") is REFUSED


def test_folders_and_pipes_are_refused_at_once(path: Path, kind: str) -> None:
    path.unlink()
    path.mkdir()
    assert outcome(READ[kind], path) is REFUSED
    path.rmdir()
    os.mkfifo(path)  # opening it would wait for somebody to write
    assert outcome(READ[kind], path) is REFUSED
    path.unlink()
    path.symlink_to("/dev/zero")
    assert outcome(READ[kind], path) is REFUSED


@pytest.mark.parametrize("byte", [2, 255])
def test_a_byte_that_is_neither_true_nor_false_is_refused(tmp_path: Path, byte: int) -> None:
    array = np.array([0, byte], dtype=np.uint8).view(bool)
    artefacts.write_npy(tmp_path / "a.npy", array)
    assert outcome(lambda path: artefacts.read_npy(path, "bool", (2,)), tmp_path / "a.npy") is REFUSED


@pytest.mark.parametrize("swapped", [">f4", ">i8"])
def test_arrays_of_another_byte_order_are_refused(tmp_path: Path, swapped: str) -> None:
    np.savez(tmp_path / "a.npz", header=np.array("{}"), x=np.arange(3).astype(swapped))
    assert outcome(artefacts.read_npz, tmp_path / "a.npz") is REFUSED


@given(data=st.data())
@bounded(150)
def test_a_spoilt_checkpoint_is_taken_up_as_it_was_or_not_at_all(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "000.checkpoint.npz"
    Checkpoint(path, HEADER).save(ARRAYS)
    path.write_bytes(data.draw(spoilt(path.read_bytes())))
    found = Checkpoint(path, HEADER).load()
    assert found is None or same(found, ARRAYS)
