"""Reading folders and archives: what comes out, and what is refused."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from coalmine.data.archives import Limits, members
from coalmine.errors import CoalmineError

FILES = {"set/b/2.bin": b"two" * 500, "set/a/1.bin": b"one" * 700, "set/empty": b""}
TARS = ["tar", "tar.gz", "tar.bz2", "tar.xz"]

Pack = Callable[[str, dict[str, bytes]], Path]


def entry(name: str, data: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def tar(path: Path, entries: Iterable[tuple[tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for info, data in entries:
            archive.addfile(info, io.BytesIO(data))
    return path


def read(path: Path, **limits: int) -> dict[str, bytes]:
    return {str(name): data for name, data in members(path, Limits(**limits))}


@pytest.mark.parametrize("kind", ["folder", "zip", *TARS])
def test_every_container_gives_the_same_files(tmp_path: Path, kind: str, pack: Pack) -> None:
    path = pack(kind, FILES)
    before = sorted(tmp_path.rglob("*"))
    assert read(path) == FILES
    assert sorted(tmp_path.rglob("*")) == before  # nothing was unpacked


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_an_archive_is_known_by_its_content_not_by_its_name(tmp_path: Path, kind: str, pack: Pack) -> None:
    assert read(pack(kind, FILES).rename(tmp_path / "data")) == FILES


def test_an_archive_keeps_its_order_and_a_folder_is_sorted(pack: Pack) -> None:
    names = ["b/1", "a/2", "c", "a/1"]
    files = dict.fromkeys(names, b"x")
    assert list(read(pack("tar", files))) == names
    assert list(read(pack("zip", files))) == names
    assert list(read(pack("folder", files))) == ["a/1", "a/2", "b/1", "c"]


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_dot_files_and_mac_leftovers_are_left_out(kind: str, pack: Pack) -> None:
    extra = {".DS_Store": b"x", "__MACOSX/set/1.bin": b"x", "set/._1.bin": b"x", ".git/config": b"x"}
    assert read(pack(kind, FILES | extra)) == FILES


def test_folders_inside_archives_are_no_files(tmp_path: Path) -> None:
    path = tar(tmp_path / "data.tar", [entry("./set", type=tarfile.DIRTYPE), entry("./set/1", b"1")])
    assert read(path) == {"set/1": b"1"}
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.mkdir("set")
        archive.writestr("set/1", b"1")
    assert read(tmp_path / "data.zip") == {"set/1": b"1"}


@pytest.mark.parametrize("name", ["/etc/passwd", "../up", "set/../../up", "set/../inside"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_name_that_leads_elsewhere_is_refused(kind: str, name: str, pack: Pack) -> None:
    path = pack(kind, {"set/1": b"1", name: b"2"})
    with pytest.raises(CoalmineError, match=rf"data.{kind}: member '{name}' (has an absolute path|leads out)"):
        read(path)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ({"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "is a link to '/etc/passwd'"),
        ({"type": tarfile.SYMTYPE, "linkname": "1"}, "is a link to '1'"),
        ({"type": tarfile.LNKTYPE, "linkname": "set/1"}, "is a link to 'set/1'"),
        ({"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 5}, "is a device or a pipe"),
        ({"type": tarfile.BLKTYPE}, "is a device or a pipe"),
        ({"type": tarfile.FIFOTYPE}, "is a device or a pipe"),
    ],
)
def test_links_devices_and_pipes_in_a_tar_are_refused(tmp_path: Path, kind: dict[str, object], message: str) -> None:
    path = tar(tmp_path / "data.tar", [entry("set/1", b"1"), entry("set/odd", **kind)])
    with pytest.raises(CoalmineError, match=f"data.tar: member 'set/odd' {message}.*, expected a regular file"):
        read(path)


@pytest.mark.parametrize("mode", [0o120777, 0o020666])
def test_links_and_devices_in_a_zip_are_refused(tmp_path: Path, mode: int) -> None:
    info = zipfile.ZipInfo("set/odd")
    info.external_attr = mode << 16
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr(info, b"/etc/passwd")
    with pytest.raises(CoalmineError, match="member 'set/odd' is a link or a device"):
        read(tmp_path / "data.zip")


def test_regular_files_in_a_zip_may_carry_their_mode(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("set/1")
    info.external_attr = 0o100644 << 16
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr(info, b"1")
    assert read(tmp_path / "data.zip") == {"set/1": b"1"}


def test_links_that_leave_a_folder_are_refused_and_others_followed(tmp_path: Path, pack: Pack) -> None:
    path = pack("folder", {"a/1": b"1"})
    (path / "inside").symlink_to("a/1")
    assert read(path) == {"a/1": b"1", "inside": b"1"}
    (tmp_path / "data.folder-secret").write_bytes(b"secret")
    (path / "outside").symlink_to("../data.folder-secret")
    with pytest.raises(CoalmineError, match="member 'outside' is a link that leaves the folder"):
        read(path)


def test_a_folder_may_be_reached_by_a_link(tmp_path: Path, pack: Pack) -> None:
    path = pack("folder", {"a/1": b"1"})
    (path / "inside").symlink_to("a/1")
    (tmp_path / "link").symlink_to(path)
    assert read(tmp_path / "link") == {"a/1": b"1", "inside": b"1"}


def test_links_to_folders_or_to_nothing_and_pipes_in_a_folder_are_refused(pack: Pack) -> None:
    path = pack("folder", {"a/1": b"1"})
    for make in (
        lambda odd: odd.symlink_to("a"),
        lambda odd: odd.symlink_to("nothing"),
        lambda odd: odd.symlink_to("odd"),
        os.mkfifo,
    ):
        make(path / "odd")
        with pytest.raises(
            CoalmineError, match="member 'odd' is a device, a pipe, or a link to a folder or to nothing"
        ):
            read(path)
        (path / "odd").unlink()


def test_dangling_dot_links_in_a_folder_do_no_harm(pack: Pack) -> None:
    path = pack("folder", {"a/1": b"1"})
    (path / ".#lock").symlink_to("user@host")
    assert read(path) == {"a/1": b"1"}


@pytest.mark.parametrize("kind", ["folder", "zip", "tar.gz"])
def test_the_number_of_members_is_limited(kind: str, pack: Pack) -> None:
    path = pack(kind, FILES)
    assert read(path, members=3) == FILES
    with pytest.raises(CoalmineError, match=rf"data.{kind}: holds more than 2 members"):
        read(path, members=2)


@pytest.mark.parametrize("kind", ["folder", "zip", "tar.gz"])
def test_the_size_of_a_member_is_limited(kind: str, pack: Pack) -> None:
    path = pack(kind, FILES)
    assert read(path, member_bytes=2100) == FILES
    with pytest.raises(CoalmineError, match=r"member 'set/a/1.bin' is larger than 2099 bytes"):
        read(path, member_bytes=2099)


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_the_size_of_all_members_is_limited(kind: str, pack: Pack) -> None:
    path = pack(kind, FILES)
    assert read(path, total_bytes=3600) == FILES
    with pytest.raises(CoalmineError, match="unpacks to more than 3599 bytes"):
        read(path, total_bytes=3599)


@pytest.mark.parametrize("kind", TARS)
def test_the_size_of_a_tar_is_that_of_its_unpacked_stream(kind: str, pack: Pack) -> None:
    path = pack(kind, FILES)
    assert read(path, total_bytes=10_240) == FILES
    with pytest.raises(CoalmineError, match="unpacks to more than 10239 bytes"):
        read(path, total_bytes=10_239)


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_a_bomb_is_refused_before_it_fills_the_memory(kind: str, pack: Pack) -> None:
    path = pack(kind, {"bomb": bytes(64 << 20)})
    assert path.stat().st_size < 1 << 17
    tracemalloc.start()
    try:
        with pytest.raises(CoalmineError, match="member 'bomb' is larger than 1048576 bytes"):
            read(path, member_bytes=1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_a_bomb_of_many_members_is_refused(pack: Pack) -> None:
    path = pack("zip", {f"{i}": bytes(1 << 20) for i in range(9)})
    with pytest.raises(CoalmineError, match="unpacks to more than 8388608 bytes"):
        read(path, total_bytes=8 << 20)


def test_members_of_a_tar_that_are_left_out_count_as_well(pack: Pack) -> None:
    path = pack("tar.gz", {f".{i}": bytes(1 << 20) for i in range(9)})
    with pytest.raises(CoalmineError, match="unpacks to more than 8388608 bytes"):
        read(path, total_bytes=8 << 20)


def test_a_zip_that_claims_less_than_it_holds_is_refused(pack: Pack) -> None:
    path = pack("zip", {"bomb": bytes(1 << 20)})
    claimed = path.read_bytes().replace((1 << 20).to_bytes(4, "little"), (100).to_bytes(4, "little"))
    path.write_bytes(claimed)
    with pytest.raises(CoalmineError, match=r"data.zip: damaged"):
        read(path)


def test_a_file_that_is_not_as_long_as_announced_is_refused(monkeypatch: pytest.MonkeyPatch, pack: Pack) -> None:
    path = pack("folder", {"a/1": b"12"})
    for content in (b"1", b"123"):
        monkeypatch.setattr("coalmine.data.archives._plain", lambda _, content=content: io.BytesIO(content))
        with pytest.raises(CoalmineError, match="member 'a/1' has not the 2 bytes that its header claims"):
            read(path)


def test_a_bomb_in_a_tar_header_is_refused(tmp_path: Path) -> None:
    """A long name is read into memory by tarfile itself, before any member can be judged."""
    path = tmp_path / "data.tar.gz"
    with tarfile.open(path, "w:gz", format=tarfile.GNU_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("x" * (8 << 20)))
    tracemalloc.start()
    try:
        with pytest.raises(CoalmineError, match="has members or headers of more than 2097152 bytes"):
            read(path, member_bytes=1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_a_bomb_behind_the_last_member_is_refused(tmp_path: Path, pack: Pack) -> None:
    path = pack("tar", FILES)
    bomb = tmp_path / "data.tar.gz"
    bomb.write_bytes(gzip.compress(path.read_bytes() + bytes(4 << 20), 1))
    with pytest.raises(CoalmineError, match="has members or headers of more than 2097152 bytes"):
        read(bomb, member_bytes=1 << 20)


def test_members_of_a_long_tar_do_not_add_up_to_a_header(pack: Pack) -> None:
    files = {f"{i}": bytes(1 << 20) for i in range(5)}
    assert read(pack("tar", files), member_bytes=1 << 20) == files


def test_memory_is_that_of_one_member(pack: Pack) -> None:
    path = pack("tar.gz", {f"{i}": bytes(1 << 20) for i in range(24)})
    tracemalloc.start()
    try:
        assert sum(len(data) for _, data in members(path)) == 24 << 20
        assert tracemalloc.get_traced_memory()[1] < 6 << 20
    finally:
        tracemalloc.stop()


def test_headers_of_a_long_tar_are_not_kept(tmp_path: Path) -> None:
    path = tar(tmp_path / "data.tar", (entry(f"set/{i}") for i in range(2000)))
    tracemalloc.start()
    try:
        assert sum(1 for _ in members(path)) == 2000
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def cut_at(path: Path, size: int) -> Path:
    path.write_bytes(path.read_bytes()[:size])
    return path


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar.bz2", "tar.xz"])
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.9, -1])
def test_a_cut_archive_is_refused(kind: str, kept: float, pack: Pack) -> None:
    path = pack(kind, {name: os.urandom(20_000) for name in FILES})
    size = path.stat().st_size
    cut_at(path, size - 1 if kept == -1 else int(kept * size))
    with pytest.raises(CoalmineError, match=rf"data.{kind}: damaged, cut off, .* Fetch or pack it again"):
        read(path)


@pytest.mark.parametrize("size", [100, 512, 700, 512 + 1536, 512 + 1536 + 100, 512 + 1536 + 512 + 2560])
def test_a_tar_cut_anywhere_is_refused(size: int, pack: Pack) -> None:
    """Also between two members, where tarfile alone would see a shorter archive."""
    path = cut_at(pack("tar", dict(list(FILES.items())[:2])), size)
    with pytest.raises(CoalmineError, match=r"data.tar: damaged, cut off"):
        read(path)


def test_a_broken_header_in_the_middle_is_refused(pack: Pack) -> None:
    path = pack("tar", FILES)
    content = bytearray(path.read_bytes())
    content[512 + 1536] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(CoalmineError, match=r"after member 'set/b/2.bin', no end-of-archive mark, but bad checksum"):
        read(path)


@pytest.mark.parametrize("kind", ["tar.gz", "tar.bz2", "tar.xz", "zip"])
def test_a_flipped_bit_is_noticed(kind: str, pack: Pack) -> None:
    path = pack(kind, {"1": os.urandom(50_000)})
    content = bytearray(path.read_bytes())
    content[25_000] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(CoalmineError, match=f"data.{kind}: damaged"):
        read(path)


@pytest.mark.parametrize("kind", ["tar.gz", "tar.xz"])
def test_the_checksum_behind_the_last_member_is_checked(kind: str, pack: Pack) -> None:
    path = pack("tar", FILES)
    packed = bytearray({"tar.gz": gzip.compress, "tar.xz": lzma.compress}[kind](path.read_bytes() + bytes(1 << 20)))
    packed[-6 if kind == "tar.gz" else -30] ^= 0x01
    path.write_bytes(packed)
    with pytest.raises(CoalmineError, match="damaged"):
        read(path)


def test_an_encrypted_zip_is_refused(pack: Pack) -> None:
    path = pack("zip", {"set/1": b"1"})
    content = bytearray(path.read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(CoalmineError, match=r"data.zip: member 'set/1' is encrypted"):
        read(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_packed_by_an_unbounded_method_is_refused(tmp_path: Path, method: int) -> None:
    with zipfile.ZipFile(tmp_path / "data.zip", "w", method) as archive:
        archive.writestr("1", bytes(1000))
    with pytest.raises(CoalmineError, match="member '1' is packed by a method other than deflate"):
        read(tmp_path / "data.zip")


def test_an_empty_zip_has_no_files(pack: Pack) -> None:
    assert read(pack("zip", {})) == {}


def test_what_is_no_archive_or_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing packed\n" * 100)
    with pytest.raises(CoalmineError, match=r"notes.txt: damaged, cut off, or no folder, zip or tar archive"):
        read(tmp_path / "notes.txt")
    with pytest.raises(CoalmineError, match=r"missing.zip: no such file or folder"):
        read(tmp_path / "missing.zip")


def test_the_default_limits_hold_every_named_data_set() -> None:
    limits = Limits()
    assert limits.members >= 460_000  # Camelyon17's patches
    assert limits.member_bytes >= 30_730_000  # a batch of CIFAR-10
    assert limits.total_bytes >= 12 << 30  # Camelyon17
