"""Read the files of a folder or an archive one by one, without unpacking anything and without trusting anything.

Nothing is ever written: a hostile name can at worst be refused. Tar archives are streamed, and limits apply to the
bytes that are really read, whatever the headers claim, so a compression bomb ends in a message, not in a full memory.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Self, cast

from coalmine.errors import CoalmineError

# What the standard library raises on archives that are cut off, damaged or of another format.
_DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    ValueError,
    RuntimeError,  # zipfile's, of versions and methods that it does not know
    struct.error,
)
_HEADER_BYTES = 1 << 20
_TAR_CHUNK = 1 << 16


@dataclass(frozen=True)
class Limits:
    """What a container may hold at most; the defaults leave room for every data set that Coalmine names.

    Attributes:
        members: files, folders and whatever else has a name.
        member_bytes: one file, unpacked.
        total_bytes: all files together, unpacked (of a tar, the whole unpacked stream with its headers).
    """

    members: int = 1_000_000
    member_bytes: int = 64 << 20
    total_bytes: int = 32 << 30


@dataclass(frozen=True)
class _Entry:
    """One member as its container describes it; ``refusal`` names what it is if it is no regular file."""

    name: str
    size: int
    refusal: str | None
    open: Callable[[], IO[bytes]]
    is_folder: bool = False


def members(path: Path, limits: Limits | None = None) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Yield the name and content of every regular file of a folder, zip, tar, tar.gz, tar.bz2 or tar.xz.

    The format is recognised by content. The order is deterministic: sorted by name for a folder, the order of the
    archive otherwise. Dot-files and ``__MACOSX`` are left out. One member is in memory at a time.

    Args:
        path: the folder or archive.
        limits: refuse what is larger; by default ``Limits()``.

    Raises:
        CoalmineError: nothing is there; the archive is damaged, cut off, encrypted or over a limit; or a member has an
            absolute name or one with ``..``, is a link (in a folder: one that leaves it), a device or a pipe.
    """
    limits = limits or Limits()
    last = None
    total = 0
    try:
        for count, entry in enumerate(_entries(path, limits), start=1):
            _check(count <= limits.members, path, f"holds more than {limits.members} members")
            name = _safe_name(path, entry.name)
            if entry.is_folder or any(part.startswith(".") or part == "__MACOSX" for part in name.parts):
                continue
            _check(entry.refusal is None, path, f"member {entry.name!r} is {entry.refusal}, expected a regular file")
            data = _read(path, entry, limits)
            total += len(data)
            _check(total <= limits.total_bytes, path, f"unpacks to more than {limits.total_bytes} bytes")
            yield name, data
            last = entry.name
    except _DAMAGE as error:
        place = f"after member {last!r}" if last else "before its first file"
        raise CoalmineError(
            f"{path}: damaged, cut off, or no folder, zip or tar archive: {place}, {error or type(error).__name__}. "
            "Fetch or pack it again."
        ) from error


def _check(holds: bool, path: Path, finding: str) -> None:
    if not holds:
        raise CoalmineError(f"{path}: {finding}. Use the original archive, or pack its regular files again.")


def _safe_name(path: Path, name: str) -> PurePosixPath:
    pure = PurePosixPath(name)
    _check(not pure.is_absolute(), path, f"member {name!r} has an absolute path, expected one inside the archive")
    _check(".." not in pure.parts, path, f"member {name!r} leads out of its folder by '..'")
    return pure


def _read(path: Path, entry: _Entry, limits: Limits) -> bytes:
    _check(entry.size <= limits.member_bytes, path, f"member {entry.name!r} is larger than {limits.member_bytes} bytes")
    with entry.open() as file:
        data = file.read(entry.size + 1)
    _check(
        len(data) == entry.size, path, f"member {entry.name!r} has not the {entry.size} bytes that its header claims"
    )
    return data


def _entries(path: Path, limits: Limits) -> Iterator[_Entry]:
    if path.is_dir():
        return _folder_entries(path, path)
    if not path.exists():
        raise CoalmineError(f"{path}: no such file or folder, expected a folder, zip or tar archive; mend the path.")
    _check(path.is_file(), path, "is a device or a pipe, expected a file")  # reading one might never end
    with path.open("rb") as file:
        magic = file.read(6)
    if magic.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _zip_entries(path)
    return _tar_entries(path, _unpacker(magic), limits)


def _folder_entries(root: Path, folder: Path) -> Iterator[_Entry]:
    with os.scandir(folder) as found:
        children = sorted(found, key=lambda child: child.name)
    for child in children:
        path = Path(child)
        if child.is_dir(follow_symlinks=False):
            yield from _folder_entries(root, path)
        else:
            refusal = _folder_refusal(root, path)
            size = 0 if refusal else path.stat().st_size
            yield _Entry(path.relative_to(root).as_posix(), size, refusal, partial(_plain, path))


def _folder_refusal(root: Path, path: Path) -> str | None:
    if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
        return "a link that leaves the folder"
    if not path.is_file():
        return "a device, a pipe, or a link to a folder or to nothing"
    return None


def _zip_entries(path: Path) -> Iterator[_Entry]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            is_folder = info.is_dir()
            yield _Entry(info.filename, info.file_size, _zip_refusal(info), partial(archive.open, info), is_folder)


def _zip_refusal(info: zipfile.ZipInfo) -> str | None:
    if info.flag_bits & 0x1:
        return "encrypted"
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
        return "a link or a device"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "packed by a method other than deflate"  # zipfile unpacks the others without any bound on memory
    return None


def _unpacker(magic: bytes) -> Callable[[Path], IO[bytes]]:
    """Choose what undoes the compression of a tar archive, by the first bytes of the file."""
    for signature, opened in ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\x00", lzma.open)):
        if magic.startswith(signature):
            return cast(Callable[[Path], IO[bytes]], opened)
    return _plain


def _plain(path: Path) -> IO[bytes]:
    return path.open("rb")


def _tar_entries(path: Path, unpack: Callable[[Path], IO[bytes]], limits: Limits) -> Iterator[_Entry]:
    with unpack(path) as unpacked:
        stream = _Metered(unpacked, path, limits)
        with tarfile.open(
            fileobj=cast(IO[bytes], stream), mode="r|", bufsize=_TAR_CHUNK, tarinfo=_StrictHeader
        ) as archive:
            while (member := archive.next()) is not None:
                # tarfile keeps every header that it has seen, in an attribute that typeshed lacks.
                archive.members.clear()  # type: ignore[attr-defined]
                stream.since_member = 0
                opened = cast(Callable[[], IO[bytes]], partial(archive.extractfile, member))
                yield _Entry(member.name, member.size, _tar_refusal(member), opened, member.isdir())
        while stream.read(_TAR_CHUNK):  # the checksum of the compressed stream stands behind the last member
            pass


def _tar_refusal(member: tarfile.TarInfo) -> str | None:
    if member.issym() or member.islnk():
        return f"a link to {member.linkname!r}"
    return None if member.isreg() or member.isdir() else "a device or a pipe"


class _StrictHeader(tarfile.TarInfo):
    """Takes a broken or missing header for damage, where tarfile would take it for the end of the archive."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # typeshed lacks it
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"no end-of-archive mark, but {error}") from error


class _Metered:
    """A stream that counts what is really read: in all, and since the last member began.

    The second count stops headers and padding of endless length, which tarfile would read into memory.
    """

    def __init__(self, stream: IO[bytes], path: Path, limits: Limits) -> None:
        self.stream, self.path, self.limits = stream, path, limits
        self.total = self.since_member = 0

    def read(self, size: int) -> bytes:
        data = self.stream.read(size)
        self.total += len(data)
        self.since_member += len(data)
        between = self.limits.member_bytes + _HEADER_BYTES
        _check(
            self.total <= self.limits.total_bytes, self.path, f"unpacks to more than {self.limits.total_bytes} bytes"
        )
        _check(self.since_member <= between, self.path, f"has members or headers of more than {between} bytes")
        return data
