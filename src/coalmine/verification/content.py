"""Files looked through piece by piece: whether they are whole, their header, the digests that other files carry.

The readers of stages (``coalmine.artefacts``) hold a file in memory; these hold 8 MB of it, whatever its size.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from coalmine.artefacts import Header
from coalmine.errors import CoalmineError

CHUNK = 1 << 23

_SAFETENSORS = {
    "BOOL": "|b1",
    "U8": "|u1",
    "I8": "|i1",
    "I16": "<i2",
    "I32": "<i4",
    "I64": "<i8",
    "F16": "<f2",
    "F32": "<f4",
    "F64": "<f8",
    "BF16": "<u2",  # NumPy has no such numbers: they are not looked at one by one
}

_ENDS = {
    ".csv": (b"", b"\n"),
    ".html": (b"<!DOCTYPE html>", b"</html>\n"),
    ".tex": (b"", b"\n"),
    ".png": (b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"),
    ".pdf": (b"%PDF-", b"%%EOF\n"),
}
"""How files begin and end that have no header."""


class DamageError(CoalmineError):
    """A file is not whole; the message goes after its name."""


@dataclass(frozen=True)
class Field:
    """One array of a file.

    Attributes:
        dtype: of its numbers, as NumPy has it.
        shape: its lengths.
        chunks: opens it and yields its bytes in row-major order.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    chunks: Callable[[], Iterator[bytes]]


@dataclass(frozen=True)
class Content:
    """What a file says about itself.

    Attributes:
        header: what determines it; of JSON, all that it holds; None if it has no place for one.
        fields: its arrays by name.
    """

    header: Header | None
    fields: dict[str, Field]


def read(path: Path) -> Content:
    """Read what a file says about itself: its structure must be whole, its numbers are not looked at.

    Raises:
        DamageError: it is not what its suffix says.
    """
    reader = _READERS.get(path.suffix, _read_ends)
    with _damage():
        return reader(path)


def check_numbers(content: Content) -> None:
    """Look through all numbers of a file.

    Raises:
        DamageError: some cannot be read, or are NaN or infinite.
    """
    with _damage():
        for name, field in content.fields.items():
            for chunk in field.chunks():
                if field.dtype.kind == "f" and not np.isfinite(np.frombuffer(chunk, field.dtype)).all():
                    raise DamageError(f"{name} holds NaN or infinite values")


def digest(fields: Iterable[Field]) -> str:
    """Return what ``coalmine.artefacts.digest`` returns for these arrays.

    Raises:
        DamageError: some cannot be read.
    """
    state = hashlib.sha256()
    with _damage():
        for field in fields:
            state.update(f"{field.dtype.str}{field.shape}".encode())
            for chunk in field.chunks():
                state.update(chunk)
    return state.hexdigest()[:16]


@contextmanager
def _damage() -> Iterator[None]:
    """Tell whatever the libraries make of bytes that are not what they seem."""
    try:
        yield
    except (DamageError, FileNotFoundError):
        raise
    except (OSError, EOFError, zipfile.BadZipFile, struct.error, ValueError, KeyError, TypeError) as error:
        raise DamageError(f"not readable ({error or type(error).__name__})") from error
    except (RecursionError, NotImplementedError, RuntimeError, SyntaxError, MemoryError) as error:
        raise DamageError(f"not readable ({error or type(error).__name__})") from error


def _read_json(path: Path) -> Content:
    text = path.read_bytes()
    if not text.endswith(b"\n"):
        raise DamageError("cut short: it does not end with a line")
    value = json.loads(text)
    if not isinstance(value, dict):
        raise DamageError(f"a {type(value).__name__}, expected a block of JSON")
    return Content(value, {})


def _read_npy(path: Path) -> Content:
    with open(path, "rb") as file:
        field = _field(file, path.stat().st_size, partial(open, path, "rb"))
    return Content(None, {path.stem: field})


def _read_npz(path: Path) -> Content:
    fields = {}
    header: Header | None = None
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            if name in fields or info.compress_type != zipfile.ZIP_STORED:
                raise DamageError(f"{name} stands there twice, or compressed")
            with archive.open(info) as member:
                fields[name] = _field(member, info.file_size, partial(_Member, path, info))
    if "header" not in fields:
        raise DamageError("it has no header")
    text = b"".join(fields.pop("header").chunks()).decode("utf-32-le")
    header = json.loads(text)
    if not isinstance(header, dict):
        raise DamageError("its header is no block of JSON")
    return Content(header, fields)


class _Member:
    """An array in an ``.npz`` file, opened with the file and closed with it."""

    def __init__(self, path: Path, info: zipfile.ZipInfo) -> None:
        self._archive = zipfile.ZipFile(path)
        self._file = self._archive.open(info)
        self.read, self.tell = self._file.read, self._file.tell

    def __enter__(self) -> IO[bytes]:
        return self._file

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._archive.close()


def _field(file: IO[bytes], size: int, reopen: Callable[[], Any]) -> Field:
    """Return the array of an ``.npy`` stream of ``size`` bytes, which must be what its header declares."""
    version = np.lib.format.read_magic(file)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, fortran_order, dtype = read_header[version](file)
    start = file.tell()
    declared = math.prod(shape) * dtype.itemsize
    if dtype.kind not in "biufU" or min(shape, default=0) < 0 or declared != size - start:
        raise DamageError(f"{size - start:,} bytes, expected {declared:,} for {dtype} of shape {shape}")

    def chunks() -> Iterator[bytes]:
        with reopen() as again:
            again.read(start)
            parts = _parts(again, declared)
            if fortran_order and len(shape) > 1:
                whole = np.frombuffer(b"".join(parts), dtype).reshape(shape, order="F")
                yield np.ascontiguousarray(whole).tobytes()
            else:
                yield from parts
            if again.read(1):  # reads to the end, where zip compares its check sum
                raise DamageError("longer than its header says")

    return Field(dtype, shape, chunks)


def _read_safetensors(path: Path) -> Content:
    size = path.stat().st_size
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > size - 8:
            raise DamageError("cut short, or its header is damaged")
        described = json.loads(file.read(length))
    header = json.loads(described.pop("__metadata__")["header"])
    start, end = 8 + length, 0
    fields = {}
    for name, one in sorted(described.items(), key=lambda item: item[1]["data_offsets"]):
        dtype, shape = np.dtype(_SAFETENSORS[one["dtype"]]), tuple(one["shape"])
        first, last = one["data_offsets"]
        if first != end or last - first != math.prod(shape) * dtype.itemsize:
            raise DamageError(f"{name} is not where, or as long as, its header says")
        fields[name] = Field(dtype, shape, _between(path, start + first, start + last))
        end = last
    if start + end != size:
        raise DamageError(f"{size:,} bytes, expected {start + end:,}")
    return Content(header, fields)


def _between(path: Path, first: int, last: int) -> Callable[[], Iterator[bytes]]:
    def chunks() -> Iterator[bytes]:
        with open(path, "rb") as file:
            file.seek(first)
            yield from _parts(file, last - first)

    return chunks


def _parts(file: IO[bytes], size: int) -> Iterator[bytes]:
    while size:
        part = file.read(min(size, CHUNK))
        if not part:
            raise DamageError("cut short")
        size -= len(part)
        yield part


def _read_ends(path: Path) -> Content:
    begin, end = _ENDS.get(path.suffix, (b"", b""))
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(len(begin))
        file.seek(max(0, size - len(end)))
        tail = file.read()
    if not size or head != begin or tail != end:
        raise DamageError("empty, or it does not begin or end as such a file does")
    return Content(None, {})


_READERS: dict[str, Callable[[Path], Content]] = {
    ".json": _read_json,
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
}
