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
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from coalmine.errors import CoalmineError
from coalmine.provenance import canonical_json

Header = dict[str, Any]
Shape = tuple[int | None, ...]

_HEADER = "header"
_REMEDY = "Delete the file and run Snakemake again: it makes the file anew."


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically: to a temporary file in the same folder, synced, then renamed.

    Raises:
        CoalmineError: the disk is full or the folder cannot be written to; no partial file remains.
    """
    with _replacing(path, f" ({len(data):,} bytes)") as file:
        file.write(data)


@contextmanager
def _replacing(path: Path, size: str = "") -> Iterator[BinaryIO]:
    """Open a temporary file that takes the place of ``path`` when all has been written to it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CoalmineError(
                f"The disk is full: {path}{size} could not be written. Free some space and run again; everything that "
                "was finished is kept."
            ) from error
        raise CoalmineError(f"{path} could not be written: {error.strerror}.") from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write JSON with sorted keys, indented for people; NaN is refused."""
    write_bytes(path, (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read a JSON file, or say which file is missing or broken."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise _missing(path) from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CoalmineError(f"{path} is not valid JSON ({error}). {_REMEDY}") from error


def write_npy(path: Path, array: np.ndarray) -> None:
    """Write one array as ``.npy``."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    write_bytes(path, buffer.getvalue())


def read_npy(path: Path, dtype: str, shape: Shape) -> np.ndarray:
    """Read one array and check it against ``dtype`` and ``shape`` (``None`` is any length)."""
    try:
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise _missing(path) from error
    except (ValueError, EOFError, OSError) as error:
        raise CoalmineError(f"{path} is not a readable .npy file ({error}). {_REMEDY}") from error
    return _checked(array, dtype, shape, str(path))


def write_npz(path: Path, header: Header, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays and their header; equal content gives equal bytes. Mapped arrays never fill the memory."""
    with _replacing(path) as file:
        np.savez(file, allow_pickle=False, **{_HEADER: np.array(canonical_json(header))}, **arrays)


def read_npz(path: Path, **fields: tuple[str, Shape]) -> tuple[Header, dict[str, np.ndarray]]:
    """Read the header and the named fields, each checked against its ``(dtype, shape)``.

    Without ``fields`` every array is read, and checked for finite values only.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            header = json.loads(str(file[_HEADER]))
            names = list(fields) or [name for name in file.files if name != _HEADER]
            arrays = {name: file[name] for name in names}
    except FileNotFoundError as error:
        raise _missing(path) from error
    except KeyError as error:
        raise CoalmineError(f"{path} lacks the field {error}. {_REMEDY}") from error
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise CoalmineError(f"{path} is not a readable .npz file ({error}). {_REMEDY}") from error
    for name, array in arrays.items():
        dtype, shape = fields.get(name, (array.dtype.name, array.shape))
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


def read_safetensors_header(path: Path) -> Header:
    """Read the header alone, whatever the size of the weights."""
    with _opened(path) as (header, _):
        return header


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Header, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            yield json.loads((file.metadata() or {})[_HEADER]), file
    except FileNotFoundError as error:
        raise _missing(path) from error
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise CoalmineError(f"{path} is not a readable Coalmine model ({error}). {_REMEDY}") from error


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
            raise CoalmineError(f"{path} was made with {name} = {found!r}, but {want!r} is needed here. {_REMEDY}")


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
            f"{what}: found {array.dtype.name} of shape {array.shape}, expected {dtype} of shape {wanted}. {_REMEDY}"
        )
    if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
        raise CoalmineError(f"{what}: holds NaN or infinite values. {_REMEDY}")
    return array
