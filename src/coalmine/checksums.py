"""SHA-256 of every file that Coalmine writes, in a record beside it, so that damage is noticed whatever the format.

The record of ``<folder>/<name>`` is ``<folder>/.sha256/<name>``. Its first line is one of ``sha256sum``, so that files
can be checked where Coalmine is not installed (``sha256sum --quiet --check .sha256/*`` in their folder); the second, a
comment to ``sha256sum``, holds the size, what determines a file that has no header of its own, and a check sum of the
record itself: a damaged record is not taken for a damaged file.

Records are no outputs of Snakemake: measurements beside artefacts have one, too, and those of other machines differ.
They are copied with their folder. A record that is lost costs the check, not the file.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import sys
import zlib
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from coalmine.errors import REMEDY, CoalmineError
from coalmine.provenance import canonical_json

FOLDER = ".sha256"


class Record(NamedTuple):
    """What was written.

    Attributes:
        sha256: of the bytes (64 hexadecimal digits).
        size: number of bytes.
        header: what determines the file: stage, spec and code; None if the file, or one made with it, says so itself.
    """

    sha256: str
    size: int
    header: dict[str, Any] | None = None


def record_path(path: Path) -> Path:
    """Return where the record of a file lies."""
    return path.parent / FOLDER / path.name


def temporary_of(path: Path) -> Path:
    """Return where this process writes what is to become ``path``: hidden, with its number and host in the name."""
    return path.with_name(f".{path.name}.{os.getpid()}@{socket.gethostname()}.tmp")


def measure(file: BinaryIO) -> Record:
    """Return the record of an open file, read in pieces from its start."""
    file.seek(0)
    return Record(hashlib.file_digest(file, "sha256").hexdigest(), file.tell())  # type: ignore[arg-type]


def write(path: Path, record: Record) -> None:
    """Write the record of a file, atomically.

    Raises:
        OSError: the disk is full or the folder cannot be written to.
    """
    target = record_path(path)
    temporary = temporary_of(target)
    try:
        target.parent.mkdir(exist_ok=True)
        temporary.write_bytes(_text(path.name, record))
        os.replace(temporary, target)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def read(path: Path) -> Record | None:
    """Return the record of a file; None if there is none, or an empty one that a power cut left.

    Raises:
        CoalmineError: the record itself is damaged.
    """
    place = record_path(path)
    try:
        content = place.read_bytes()
    except FileNotFoundError:
        return None
    if not content:
        return None
    try:
        line, comment = content.decode().splitlines()
        fields = json.loads(comment.removeprefix("# "))
        record = Record(line[:64], fields["bytes"], fields["header"])
    except (ValueError, KeyError, TypeError) as error:
        raise CoalmineError(f"{place} is not a readable record of a file ({error}). Delete it.") from error
    if content != _text(path.name, record):
        raise CoalmineError(f"{place} is damaged: its own check sum is another one. Delete it.")
    return record


def check(path: Path) -> None:
    """Hold a file against its record; without one, it is believed.

    Raises:
        ValueError: the file is not what was written.
        CoalmineError: the record itself is damaged.
        OSError: the file cannot be read.
    """
    if record := read(path):
        with open(path, "rb") as file:
            if measure(file)[:2] != record[:2]:
                raise ValueError(f"its bytes have changed: {record_path(path)} has another SHA-256")


def holds(path: Path) -> bool:
    """Tell whether a file is what was written, as far as a sound record says so; without one, it is believed."""
    try:
        check(path)
    except (CoalmineError, ValueError):
        return False
    return True


def determine(path: Path, header: dict[str, Any]) -> None:
    """Note what determines a file that has no place for a header inside."""
    with open(path, "rb") as file:
        write(path, measure(file)._replace(header=header))


def carry(source: Path, target: Path) -> None:
    """Give ``target``, a copy of ``source``, its record."""
    record = read(source)
    if record is None:
        forget(target)
    else:
        write(target, record)


def forget(path: Path) -> None:
    """Remove the record of a file that is no more, or is about to become another one."""
    record_path(path).unlink(missing_ok=True)


def _text(name: str, record: Record) -> bytes:
    line = f"{record.sha256}  {name}\n"
    fields = {"bytes": record.size, "header": record.header}
    check = zlib.crc32((line + canonical_json(fields)).encode())
    return f"{line}# {canonical_json({**fields, 'check': f'{check:08x}'})}\n".encode()


def main() -> None:
    """Hold the files that the command line names against their records; exit with 1 at the first that differs."""
    for path in map(Path, sys.argv[1:]):
        try:
            check(path)
        except ValueError as error:
            sys.exit(f"error: {path} is not what was written ({error}). {REMEDY}")
        except (CoalmineError, OSError) as error:
            sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
