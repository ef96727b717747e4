"""Artefacts are whole or absent, and are refused when they are not what their reader relies on."""

import errno
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from coalmine import artefacts
from coalmine.checksums import FOLDER
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
    assert [file.name for file in tmp_path.iterdir() if file.name != FOLDER] == ["a.json"]


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


# --- temporary files ---------------------------------------------------------------------------------------------


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != FOLDER)


def write_for_ever(path: Path) -> subprocess.Popen[str]:
    """Return another process that has begun to write a file."""
    code = (
        "import sys, time, pathlib\n"
        "from coalmine import artefacts\n"
        "with artefacts._replacing(pathlib.Path(sys.argv[1])) as file:\n"
        "    file.write(b'half')\n"
        "    file.flush()\n"
        "    print('writing', flush=True)\n"
        "    time.sleep(600)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "writing\n"
    return writer


def test_what_a_killed_writer_leaves_goes_with_the_next_write_of_that_file_and_not_before(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with write_for_ever(path) as writer:
        (half,) = names(tmp_path)
        assert half == f".a.json.{writer.pid}@{socket.gethostname()}.tmp"
        artefacts.write_json(path, 1)
        assert names(tmp_path) == [half, "a.json"]  # its writer lives
        writer.send_signal(signal.SIGKILL)
    assert names(tmp_path) == [half, "a.json"]
    artefacts.write_json(tmp_path / "b.json", 1)
    assert names(tmp_path) == [half, "a.json", "b.json"]  # not that file
    artefacts.write_json(path, 2)
    assert names(tmp_path) == ["a.json", "b.json"]


def age(path: Path, hours: float) -> None:
    then = time.time() - 3600 * hours
    os.utime(path, (then, then))


@pytest.mark.parametrize(
    ("writer", "hours", "goes"),
    [
        ("{dead}@{here}", 0, True),
        ("{dead}@{here}", -48, True),  # the clock was brought back
        ("{alive}@{here}", 23, False),
        ("{alive}@{here}", 25, True),  # somebody else's number by now
        ("{dead}@elsewhere", 23, False),
        ("{alive}@elsewhere", 25, True),
        ("{dead}@elsewhere", -48, False),
        ("99999999999999999999@{here}", 0, True),
        ("1@{here}", 0, False),  # not ours to signal, but running
        ("x{dead}@{here}", 48, False),  # of another file, a.json.x…
        ("", 48, False),
    ],
)
def test_a_temporary_file_is_left_over_when_its_writer_is_gone(
    tmp_path: Path, writer: str, hours: float, goes: bool
) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    who = writer.format(dead=gone.pid, alive=os.getppid(), here=socket.gethostname())
    left = tmp_path / f".a.json.{who}.tmp"
    left.write_bytes(b"half")
    age(left, hours)
    artefacts.write_json(tmp_path / "a.json", 1)
    assert left.exists() != goes


def test_names_with_special_characters_have_leftovers_of_their_own(tmp_path: Path) -> None:
    for name in ("a[0].json", "a*.json", "a.json", "a0.json"):
        (tmp_path / f".{name}.{2**22 + 1}@{socket.gethostname()}.tmp").touch()
    artefacts.write_json(tmp_path / "a[0].json", 1)
    assert len(names(tmp_path)) == 4
    artefacts.write_json(tmp_path / "a*.json", 1)
    assert names(tmp_path)[:2] == [
        f".a.json.{2**22 + 1}@{socket.gethostname()}.tmp",
        f".a0.json.{2**22 + 1}@{socket.gethostname()}.tmp",
    ]


def test_all_leftovers_of_a_folder_can_be_removed_at_once(tmp_path: Path) -> None:
    for name in ("a.json", "b.npz"):
        (tmp_path / f".{name}.{2**22 + 1}@{socket.gethostname()}.tmp").touch()
    (tmp_path / ".hidden.tmp").touch()
    artefacts.remove_leftovers(tmp_path)
    artefacts.remove_leftovers(tmp_path / "missing")
    assert names(tmp_path) == [".hidden.tmp"]


def test_a_folder_that_another_job_removes_while_a_file_is_opened_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mkdir, removed = Path.mkdir, []

    def vanish(folder: Path, *arguments: object, **options: object) -> None:
        mkdir(folder, *arguments, **options)  # type: ignore[arg-type]
        if not removed:
            removed.append(folder)
            folder.rmdir()

    monkeypatch.setattr(Path, "mkdir", vanish)
    artefacts.write_json(tmp_path / "new/a.json", 1)
    assert removed == [tmp_path / "new"]
    assert artefacts.read_json(tmp_path / "new/a.json") == 1


def test_a_folder_that_cannot_be_made_is_told_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CoalmineError, match=re.escape(f"{tmp_path}/file/a.json could not be written: File exists")):
        artefacts.write_json(tmp_path / "file/a.json", 1)


def test_file_and_folder_are_synced_around_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        events.append("folder" if path == str(tmp_path) else "file" if path.endswith(".tmp") else path)
        fsync(descriptor)

    def renamed(source: Path, target: Path) -> None:
        if Path(target) == tmp_path / "a.npz":
            events.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    artefacts.write_npz(tmp_path / "a.npz", HEADER, {})
    assert events == ["file", "rename", "folder"]


def test_a_file_is_placed_as_a_link_or_a_copy_and_replaces_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = tmp_path / "kept.npz", tmp_path / "a.npz"
    artefacts.write_npz(source, HEADER, {"x": np.arange(3)})
    for links in (True, False):
        target.write_bytes(b"former")
        with monkeypatch.context() as patch:
            if not links:
                patch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("no hard links here")))
            artefacts.place(source, target)
            artefacts.place(source, target)
        assert target.samefile(source) == links
        assert target.read_bytes() == source.read_bytes()
        assert names(tmp_path) == ["a.npz", "kept.npz"]
        target.unlink()


def test_what_a_kill_leaves_of_the_record_of_a_check_sum_goes_with_the_next_write(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    left = [tmp_path / FOLDER / f".{name}.{2**22 + 1}@{socket.gethostname()}.tmp" for name in ("a.json", "b.json")]
    for path in left:
        path.touch()
    artefacts.write_json(tmp_path / "a.json", 1)
    assert [path.exists() for path in left] == [False, True]
    artefacts.remove_leftovers(tmp_path)
    assert names(tmp_path / FOLDER) == ["a.json"]
