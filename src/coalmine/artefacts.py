"""Files that Coalmine makes: written whole or not at all, read with checks, never a pickle.

An artefact carries inside (npz field ``header``, safetensors metadata) what determines it: stage, spec, code hash,
method, shadow model and the digests of its inputs. What was only measured while making it (seconds, device, memory,
versions, time of day) lies beside it as ``<name>.json``, so that the same command gives the same artefact bytes.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import os
import re
import shutil
import socket
import stat
import struct
import time
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np

from coalmine import checksums
from coalmine.errors import REMEDY, CoalmineError
from coalmine.provenance import canonical_json

Header = dict[str, Any]
Shape = tuple[int | None, ...]

_HEADER = "header"
_CHUNK = 1 << 24
_END_OF_ZIP = struct.Struct("<4s6xH8xH")
_ATTEMPTS = 3
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<process>\d+)@(?P<host>[^@]+)\.tmp")

SECONDS_UNTIL_LEFT_OVER = 24 * 3600.0
"""When a temporary file that nobody writes to counts as left over, whoever its writer was."""


def write_bytes(path: Path, data: bytes, *, recorded: bool = True) -> None:
    """Write a file atomically, to a temporary file in the same folder, synced, then renamed; and its check sum.

    Args:
        path: the file.
        data: its content.
        recorded: whether a record of its check sum lies beside it; not of what version control brings up to date.

    Raises:
        CoalmineError: the disk is full or the folder cannot be written to; no partial file remains.
    """
    with _replacing(path, f" ({len(data):,} bytes)", recorded=recorded) as file:
        file.write(data)


@contextmanager
def _replacing(path: Path, size: str = "", *, recorded: bool = True) -> Iterator[BinaryIO]:
    """Open a temporary file that takes the place of ``path`` when all has been written to it.

    The old record of its check sum goes first and the new one comes last: a crash in between leaves none, never a wrong
    one.
    """
    path = Path(path)
    temporary = checksums.temporary_of(path)
    try:
        with _created(temporary) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            record = checksums.measure(file) if recorded else None
        checksums.forget(path)
        os.replace(temporary, path)
        if record:
            checksums.write(path, record)
    except OSError as error:
        _drop(temporary)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CoalmineError(
                f"The disk is full: {path}{size} could not be written. Free some space and run again; everything that "
                "was finished is kept."
            ) from error
        raise CoalmineError(f"{path} could not be written: {error.strerror}.") from error
    except BaseException:
        _drop(temporary)
        raise
    sync_folder(path.parent)
    remove_leftovers(path.parent, path.name)


def place(source: Path, target: Path) -> None:
    """Put a finished file at ``target``, too, whole or not at all; as a hard link where the file system has them.

    When all files are in place, :func:`sync_folder` makes them last.
    """
    temporary = checksums.temporary_of(target)
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        with open(source, "rb") as original, _replacing(target) as file:
            shutil.copyfileobj(original, file)
        return
    checksums.forget(target)
    try:
        os.replace(temporary, target)
        checksums.carry(source, target)
    finally:
        # Renaming does nothing, and says nothing, where the target is a link to the same file already.
        temporary.unlink(missing_ok=True)
    remove_leftovers(target.parent, target.name)


def sync_folder(folder: Path) -> None:
    """Make what was renamed in a folder outlast a power cut, where the file system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove the temporary files of writers that were killed: those of one file, or of all files in a folder.

    A writer is known to be gone if its process runs no more on this host. What another host's process writes, or one
    that goes by the number of a dead one, is removed when nothing has been written to it for a day.

    Args:
        folder: where the files are; the records of their check sums are looked at, too.
        name: of the file that was to be written; None for any.
    """
    for here in (folder, folder / checksums.FOLDER):
        with suppress(FileNotFoundError), os.scandir(here) as entries:
            for entry in entries:
                found = _TEMPORARY.fullmatch(entry.name)
                if found and name in (None, found["name"]):
                    with suppress(FileNotFoundError):  # its writer has just finished, or another job removes it, too
                        if _is_left_over(found, entry.stat(follow_symlinks=False).st_mtime):
                            os.unlink(entry.path)


def _created(temporary: Path) -> BinaryIO:
    """Open a temporary file; its folder is made, and made again if another job has just removed it as empty."""
    for _ in range(_ATTEMPTS - 1):
        temporary.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            return open(temporary, "w+b")
    return open(temporary, "w+b")


def is_left_over(path: Path) -> bool:
    """Tell whether a temporary file was left by a writer that was killed, see :func:`remove_leftovers`."""
    found = _TEMPORARY.fullmatch(path.name)
    return found is not None and _is_left_over(found, path.stat().st_mtime)


def _drop(temporary: Path) -> None:
    with suppress(OSError):  # what cannot be written to may be no folder, or one that nothing can be removed from
        temporary.unlink()


def _is_left_over(found: re.Match[str], written: float) -> bool:
    """Tell whether the writer of a temporary file, last written to at a time in seconds, is gone."""
    dead = found["host"] == socket.gethostname() and not _is_running(int(found["process"]))
    return dead or time.time() - written > SECONDS_UNTIL_LEFT_OVER


def _is_running(process: int) -> bool:
    """Tell whether a process of this number runs on this host."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # somebody else's
    return True


def write_json(path: Path, value: Any) -> None:
    """Write JSON with sorted keys, indented for people; NaN is refused."""
    write_bytes(path, (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read a JSON file, or say which file is missing or broken; keys that its blocks lack are told by name, too."""
    with _reading(path, "valid JSON") as file:
        return _json(file.read().decode(), path)


def as_block(path: Path, value: Any) -> dict[str, Any]:
    """Return what was read from a JSON file if it is a block of keys, or refuse it."""
    if not isinstance(value, dict):
        raise CoalmineError(f"{path} holds a {type(value).__name__}, expected a block of JSON. {REMEDY}")
    return value


def read_text(path: Path) -> str:
    """Read a text file in UTF-8, or say which file is missing or broken."""
    with _reading(path, "a readable text file in UTF-8") as file:
        return file.read().decode()


def write_npy(path: Path, array: np.ndarray) -> None:
    """Write one array as ``.npy``."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    write_bytes(path, buffer.getvalue())


def read_npy(path: Path, dtype: str, shape: Shape) -> np.ndarray:
    """Read one array and check it against ``dtype`` and ``shape`` (``None`` is any length)."""
    with _reading(path, "a readable .npy file") as file:
        array = _array(file, os.fstat(file.fileno()).st_size)
    return _checked(array, dtype, shape, str(path))


def write_npz(path: Path, header: Header, arrays: Mapping[str, np.ndarray], *, recorded: bool = True) -> None:
    """Write arrays and their header; equal content gives equal bytes. Mapped arrays never fill the memory.

    What is gone when the run is finished needs no record of its check sum: zip has check sums of its own.
    """
    with _replacing(path, recorded=recorded) as file:
        np.savez(file, allow_pickle=False, **{_HEADER: np.array(canonical_json(header))}, **arrays)


def read_npz(path: Path, **fields: tuple[str, Shape]) -> tuple[Header, dict[str, np.ndarray]]:
    """Read the header and the named fields, each checked against its ``(dtype, shape)``.

    Without ``fields`` every array is read, and checked for finite values only.
    """
    with _reading(path, "a readable .npz file") as file, zipfile.ZipFile(file) as archive:
        members = _members(archive, file)
        missing = [name for name in (_HEADER, *fields) if name not in members]
        if missing:
            raise CoalmineError(f"{path} lacks the field {missing[0]!r}. {REMEDY}")
        header = _header(str(_member(archive, members.pop(_HEADER))), path)
        arrays = {name: _member(archive, members[name]) for name in fields or members}
    for name, array in arrays.items():
        dtype, shape = fields.get(name, (array.dtype.newbyteorder("=").str, array.shape))
        _checked(array, dtype, shape, f"{path}, field {name}")
    return header, arrays


def write_safetensors(path: Path, header: Header, tensors: Mapping[str, np.ndarray]) -> None:
    """Write named weights; the header goes into the metadata."""
    from safetensors.numpy import save

    contiguous = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    write_bytes(path, save(contiguous, metadata={_HEADER: canonical_json(header)}))


def read_safetensors(path: Path) -> tuple[Header, dict[str, np.ndarray]]:
    """Read header and weights; weights that are not finite are refused."""
    with _opened(path) as (header, file):
        tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
    for name, array in tensors.items():
        _checked(array, array.dtype.name, array.shape, f"{path}, weight {name}")
    return header, tensors


def read_safetensors_header(path: Path, *, whole: bool = False) -> Header:
    """Read the header alone, whatever the size of the weights, which are believed unless the ``whole`` is checked."""
    with _opened(path, whole=whole) as (header, _):
        return header


@contextmanager
def _opened(path: Path, *, whole: bool = True) -> Iterator[tuple[Header, Any]]:
    from safetensors import SafetensorError, safe_open

    with _reading(path, "a readable Coalmine model", whole=whole):
        try:
            with safe_open(path, framework="numpy") as file:
                yield _header((file.metadata() or {})[_HEADER], path), file
        except SafetensorError as error:
            raise ValueError(error) from error


_BROKEN = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    SyntaxError,
    MemoryError,
    RuntimeError,  # also of unknown zip methods and of nesting without end
    AttributeError,  # safetensors asks NumPy for types that it lacks
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What the libraries raise on bytes that are not what they seem."""


@contextmanager
def _reading(path: Path, kind: str, *, whole: bool = True) -> Iterator[BinaryIO]:
    """Open a file; say by its name that it is missing, or no ``kind``, whatever the libraries make of it.

    All its bytes are held against the record of its SHA-256 first, unless it is not read as a ``whole``.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for ever
            raise ValueError("it is a folder, a pipe or a device")
        if whole:
            checksums.check(path)
        with open(path, "rb") as file:
            yield file
    except FileNotFoundError as error:
        raise _missing(path) from error
    except _BROKEN as error:
        raise CoalmineError(f"{path} is not {kind} ({error or type(error).__name__}). {REMEDY}") from error


class _Block(dict[str, Any]):
    """A block of JSON that names its file where a key is missing."""

    def __init__(self, path: Path, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self._path = path
        if len(self) < len(pairs):
            raise ValueError("a key stands there twice")

    def __missing__(self, key: str) -> Any:
        raise CoalmineError(f"{self._path} lacks {key!r}. {REMEDY}")


def _json(text: str, path: Path) -> Any:
    """Parse JSON in the one way that no two readers differ about: each key once, finite numbers, whole characters."""

    def finite(number: str) -> float:
        if not math.isfinite(float(number)):
            raise ValueError(f"{number} is no finite number")
        return float(number)

    value = json.loads(
        text, object_pairs_hook=lambda pairs: _Block(path, pairs), parse_float=finite, parse_constant=finite
    )
    if "\\u" in text:
        json.dumps(value, ensure_ascii=False).encode()  # refuses halves of surrogate pairs, which no file can hold
    return value


def _header(text: str, path: Path) -> Header:
    header = _json(text, path)
    if not isinstance(header, dict):
        raise ValueError("its header is no block of JSON")
    return header


def _members(archive: zipfile.ZipFile, file: BinaryIO) -> dict[str, zipfile.ZipInfo]:
    """Return the arrays of an ``.npz`` file by name; together they must fit into it."""
    infos = archive.infolist()
    members = {info.filename.removesuffix(".npy"): info for info in infos}
    if len(members) < len(infos):
        raise ValueError("an array stands there twice")
    size = file.seek(-_END_OF_ZIP.size, os.SEEK_END) + _END_OF_ZIP.size
    signature, counted, comment = _END_OF_ZIP.unpack(file.read())
    # zipfile does not miss entries that a wrong length of the one before has swallowed.
    if (signature, counted, comment) != (b"PK\5\6", len(infos), 0):
        raise ValueError(f"{counted} arrays are announced, but {len(infos)} listed")
    if any(info.compress_type != zipfile.ZIP_STORED for info in infos):
        raise ValueError("it is compressed; write it with numpy.savez")
    if sum(info.file_size for info in infos) > size:
        raise ValueError("it declares more than it holds")
    return members


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(info) as file:
        return _array(file, info.file_size)


def _array(file: IO[bytes], size: int) -> np.ndarray:
    """Read an array that fills ``size`` bytes with its header.

    NumPy's own reader allocates whatever a header declares. Of a shorter array it would not read to the end, where zip
    checks the content.
    """
    version = np.lib.format.read_magic(file)
    if version != (1, 0):  # what NumPy writes; in later versions, headers may be as long as memory
        raise ValueError(f"its header has version {version}")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype.kind not in "biufU" or not dtype.itemsize:
        raise ValueError(f"it holds {dtype}, expected numbers")
    declared, held = math.prod(shape) * dtype.itemsize, size - file.tell()
    if declared != held or min(shape, default=0) < 0:
        raise ValueError(f"{held} bytes of content, expected {declared} for {dtype} of shape {shape}")
    array = np.empty(math.prod(shape), dtype)
    content = array.view(np.uint8)
    for start in range(0, held, _CHUNK):
        part = content[start : start + _CHUNK]
        if file.readinto(part.data) < len(part):  # type: ignore[attr-defined]
            raise EOFError("it ends too early")
    return array.reshape(shape, order="F" if fortran_order else "C")


def digest(*arrays: np.ndarray) -> str:
    """SHA-256 over dtype, shape and content of arrays, in the order given (16 hexadecimal digits)."""
    state = hashlib.sha256()
    for array in arrays:
        state.update(f"{array.dtype.str}{array.shape}".encode())
        state.update(np.ascontiguousarray(array).data)
    return state.hexdigest()[:16]


def check_header(path: Path, header: Header, **expected: Any) -> None:
    """Refuse an artefact whose header differs from what its reader relies on.

    Nested fields are addressed by a double underscore: ``inputs__design="…"``.
    """
    for key, want in expected.items():
        found: Any = header
        for part in key.split("__"):
            found = found.get(part) if isinstance(found, dict) else None
        if found != want:
            name = key.replace("__", ".")
            raise CoalmineError(f"{path} was made with {name} = {found!r}, but {want!r} is needed here. {REMEDY}")


def sidecar(path: Path) -> Path:
    """Return where the measurements of an artefact lie: ``000.safetensors`` -> ``000.json``."""
    return path.with_suffix(".json")


def _missing(path: Path) -> CoalmineError:
    return CoalmineError(f"{path} does not exist. Run Snakemake for the target that you want; it makes what it needs.")


def _checked(array: np.ndarray, dtype: str, shape: Shape, what: str) -> np.ndarray:
    fits = len(array.shape) == len(shape) and all(
        want is None or have == want for have, want in zip(array.shape, shape, strict=True)
    )
    if array.dtype != np.dtype(dtype) or not fits:
        wanted = str(tuple("any" if want is None else want for want in shape)).replace("'", "")
        raise CoalmineError(
            f"{what}: found {array.dtype.name} of shape {array.shape}, expected {dtype} of shape {wanted}. {REMEDY}"
        )
    if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
        raise CoalmineError(f"{what}: holds NaN or infinite values. {REMEDY}")
    if array.dtype == np.bool_ and array.view(np.uint8).max(initial=0) > 1:
        raise CoalmineError(f"{what}: holds bytes that are neither true nor false. {REMEDY}")
    return array
