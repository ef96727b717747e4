"""Archives and images from anywhere: what they hold is read, or they are refused by name, and nothing else happens."""

from __future__ import annotations

import gzip
import io
import os
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hostile import REFUSED, Peak, bounded, outcome, spoilt
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from coalmine.data import class_folders
from coalmine.data.archives import members
from coalmine.data.class_folders import FORMATS, decode
from coalmine.data.images import Splits
from coalmine.data.sources import camelyon17, cifar10, cinic10, image_folder, mnist
from coalmine.errors import CoalmineError


def image(kind: str = "PNG", side: int = 8, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    pixels = np.arange(side * side * 3, dtype=np.uint8).reshape(side, side, 3)
    Image.fromarray(pixels).convert(mode).save(buffer, format=kind)
    return buffer.getvalue()


def idx(array: np.ndarray) -> bytes:
    shape = b"".join(struct.pack(">I", length) for length in array.shape)
    return bytes([0, 0, 8, array.ndim]) + shape + array.tobytes()


METADATA = (
    b",patient,node,x_coord,y_coord,tumor,slide,center,split\n0,4,4,1,2,1,0,0,0\n1,4,4,3,4,0,0,2,0\n2,4,4,5,6,0,0,3,0\n"
)
FILES: dict[str, dict[str, bytes]] = {
    "cifar10": {f"c/{name}": bytes([index]) + bytes(3072) for index, name in enumerate(cifar10.BATCHES)},
    "cinic10": {
        f"{split}/{name}/n0000000{k}_1.png": image()
        for split in ("train", "valid", "test")
        for k, name in enumerate(("cat", "dog"))
    },
    "mnist": {
        name: gzip.compress(idx(np.zeros((2, 28, 28) if "images" in name else 2, np.uint8))) for name in mnist.NAMES
    },
    "camelyon17": {
        "metadata.csv": METADATA,
        **{
            f"patches/patient_004_node_4/patch_patient_004_node_4_x_{x}_y_{x + 1}.png": image(side=96)
            for x in (1, 3, 5)
        },
    },
    "image_folder": {f"{name}/{k}.png": image() for name in ("a", "b") for k in range(3)},
}
SOURCES: dict[str, tuple[ModuleType, dict[str, Any]]] = {
    "cifar10": (cifar10, {"official": False}),
    "cinic10": (cinic10, {}),
    "mnist": (mnist, {"official": False}),
    "camelyon17": (camelyon17, {"official": False}),
    "image_folder": (image_folder, {"test_fraction": 0.34}),
}


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def tarred(files: dict[str, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


PACKED: dict[str, Callable[[dict[str, bytes]], bytes]] = {
    "zip": zipped,
    "tar": tarred,
    "tar.gz": lambda files: gzip.compress(tarred(files), mtime=0),
}


def load(source: str, path: Path) -> Splits:
    module, changes = SOURCES[source]
    splits: Splits = module.load(module.Settings(path=str(path), **changes), [], np.random.default_rng(0))
    splits.train.check(str(path), len(splits.classes))
    return splits


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("kind", PACKED)
@given(data=st.data())
@bounded(40)
def test_a_spoilt_archive_is_read_or_refused_by_name(
    tmp_path: Path, source: str, kind: str, data: st.DataObject
) -> None:
    path = tmp_path / "archive"
    whole = PACKED[kind](FILES[source])
    path.write_bytes(whole)
    assert outcome(lambda path: load(source, path), path) is not REFUSED
    path.write_bytes(data.draw(spoilt(whole)))
    outcome(lambda path: load(source, path), path)


@pytest.mark.parametrize("source", SOURCES)
@given(data=st.data())
@bounded(60)
def test_a_spoilt_file_of_a_data_set_is_read_or_refused_by_name(
    tmp_path: Path, source: str, data: st.DataObject
) -> None:
    files = FILES[source]
    name = data.draw(st.sampled_from([*files]))
    path = tmp_path / "archive"
    path.write_bytes(tarred({**files, name: data.draw(spoilt(files[name]))}))
    outcome(lambda path: load(source, path), path)


@given(data=st.data())
@bounded(150)
def test_a_zip_whose_records_are_spoilt_is_read_or_refused_by_name(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "archive"
    whole = bytearray(zipped({"a": b"1" * 50, "b": b"2" * 50}))
    start = whole.index(b"PK\1\2")
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(start, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(whole)
    outcome(lambda path: [*members(path)], path)


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@given(data=st.data())
@bounded(80)
def test_a_tar_whose_headers_are_spoilt_is_read_or_refused_by_name(
    tmp_path: Path, format: int, data: st.DataObject
) -> None:
    """With sums that hold, so that nothing but the values themselves can tell."""
    path = tmp_path / "archive"
    whole = bytearray(tarred({"long/" * 30 + "a": b"1" * 50, "b": b"2" * 50}, format))
    for start in range(0, len(whole) - 1024, 512):
        if bytes(whole[start + 257 : start + 262]) == b"ustar" and data.draw(st.booleans()):
            position = start + data.draw(st.sampled_from([0, 100, 124, 125, 135, 156, 157, 257, 345]))
            whole[position] = data.draw(st.sampled_from([0, 0x30, 0x31, 0x37, 0x4C, 0x53, 0x78, 0x67, 0x80, 0xFF]))
            whole[start + 148 : start + 156] = b" " * 8
            whole[start + 148 : start + 156] = b"%06o\0 " % sum(whole[start : start + 512])
    path.write_bytes(whole)
    outcome(lambda path: [*members(path)], path)


@pytest.mark.parametrize("header", ["size=abc", "size=-1", "GNU.sparse.map=x", "GNU.sparse.size=9" * 9, "hdrcharset=x"])
def test_a_hostile_pax_header_is_read_or_refused_by_name(tmp_path: Path, header: str) -> None:
    path = tmp_path / "archive"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("a")
        key, _, value = header.partition("=")
        info.pax_headers, info.size = {key: value}, 3
        archive.addfile(info, io.BytesIO(b"abc"))
    outcome(lambda path: [*members(path)], path)


def test_a_sparse_file_in_a_tar_is_no_larger_than_any_other(tmp_path: Path) -> None:
    """A header of 512 bytes that unpacks to a terabyte of zeros."""
    header = bytearray(tarfile.TarInfo("a").tobuf(tarfile.GNU_FORMAT))
    header[156:157] = b"S"
    header[386:410] = b"00000000000\0" + b"00000000000\0"
    header[483:495] = b"\x80" + (10**12).to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "archive").write_bytes(bytes(header) + bytes(1024))
    with Peak(5):
        assert outcome(lambda path: [*members(path)], tmp_path / "archive") is REFUSED


@pytest.mark.parametrize("name", ["../a", "/a", "a/../../b", "..", "./../a"])
@pytest.mark.parametrize("kind", PACKED)
def test_reading_writes_nothing_wherever_names_lead(tmp_path: Path, kind: str, name: str) -> None:
    folder = tmp_path / "inner/most"
    folder.mkdir(parents=True)
    path = folder / "archive"
    path.write_bytes(PACKED[kind]({name: b"1"}))
    assert outcome(lambda path: [*members(path)], path) is REFUSED
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [path]


@pytest.mark.parametrize("source", SOURCES)
def test_pipes_and_devices_are_refused_at_once(tmp_path: Path, source: str) -> None:
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for somebody to write
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        assert outcome(lambda path: load(source, path), tmp_path / name) is REFUSED


@pytest.mark.parametrize("kind", FORMATS)
@given(data=st.data())
@bounded(80)
def test_a_spoilt_image_is_decoded_or_refused_by_name(kind: str, data: st.DataObject) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            pixels = decode(data.draw(spoilt(image(kind))), "x.png")
        except CoalmineError as error:
            assert "x.png" in str(error)  # noqa: PT017
        else:
            assert pixels.dtype == np.uint8
            assert pixels.ndim == 3


def _png(width: int, height: int, *further: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + b"".join(further)
        + chunk(b"IDAT", zlib.compress(bytes(100)))
        + chunk(b"IEND", b"")
    )


BOMBS = {
    "png": _png(60_000, 60_000),
    "widest png": _png(2**31 - 1, 1),
    "ppm": b"P6 100000 100000 255\n",
    "bmp": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 50_000, 50_000, 1, 24, 0, 0, 0, 0, 0, 0),
    "tiff": b"II*\0\x08\0\0\0\x03\0"
    + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in ((256, 90_000), (257, 90_000), (262, 1)))
    + bytes(4),
    "webp": b"RIFF"
    + struct.pack("<I", 30)
    + b"WEBPVP8X"
    + struct.pack("<I", 10)
    + bytes(4)
    + b"\xff\x3f\0" * 2
    + bytes(8),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", BOMBS)
def test_an_image_bomb_is_refused_without_its_memory(name: str) -> None:
    with Peak(5), pytest.raises(CoalmineError, match=r"x\.png"):
        decode(BOMBS[name], "x.png")


def test_images_are_refused_together_before_they_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(class_folders, "MAX_BYTES", 5 * 8 * 8 * 3)
    (tmp_path / "archive").write_bytes(zipped(FILES["image_folder"]))
    with pytest.raises(CoalmineError, match=r"archive: .*more than 960 bytes.*image_size"):
        class_folders.read_class_folders(tmp_path / "archive")
    monkeypatch.setattr(class_folders, "MAX_BYTES", 6 * 8 * 8 * 3)
    assert len(class_folders.read_class_folders(tmp_path / "archive").splits[""]) == 6


@given(table=st.lists(st.lists(st.text(max_size=4), max_size=10), max_size=4))
@bounded(80)
def test_any_table_of_patches_is_read_or_refused(table: list[list[str]]) -> None:
    text = METADATA.decode() + "\n".join(",".join(row) for row in table)
    data = text.encode("utf-8", errors="replace")
    try:
        camelyon17.parse_metadata(data, "metadata.csv")
    except CoalmineError as error:
        assert "metadata.csv" in str(error)  # noqa: PT017


@given(noise=st.binary(max_size=64), dimensions=st.integers(1, 3))
@bounded(80)
def test_any_idx_file_is_read_whole_or_refused(noise: bytes, dimensions: int) -> None:
    data = bytes([0, 0, 8, dimensions]) + noise
    try:
        array = mnist.parse(data, dimensions, "x")
    except CoalmineError:
        return
    assert data[4 + 4 * dimensions :] == array.tobytes()
