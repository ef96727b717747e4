"""Records of check sums: written with every file, readable by sha256sum, and not to be taken for the file itself."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coalmine import checksums
from coalmine.artefacts import (
    place,
    read_json,
    read_npy,
    read_npz,
    read_safetensors,
    read_safetensors_header,
    read_text,
    write_bytes,
    write_json,
    write_npy,
    write_npz,
    write_safetensors,
)
from coalmine.errors import CoalmineError


def write_one_of_each(folder: Path) -> list[Path]:
    write_json(folder / "a.json", {"a": 1})
    write_npy(folder / "b.npy", np.arange(5))
    write_npz(folder / "c.npz", {"stage": "s"}, {"x": np.ones(3)})
    write_safetensors(folder / "d.safetensors", {"stage": "s"}, {"w": np.ones(3, np.float32)})
    write_bytes(folder / "é f.csv", b"1,2\n")
    return [folder / name for name in ("a.json", "b.npy", "c.npz", "d.safetensors", "é f.csv")]


def test_every_writer_leaves_a_record_of_size_and_sha256(tmp_path: Path) -> None:
    for path in write_one_of_each(tmp_path):
        content = path.read_bytes()
        assert checksums.read(path) == (hashlib.sha256(content).hexdigest(), len(content), None)
        assert checksums.holds(path)


def test_every_reader_notices_any_flipped_bit(tmp_path: Path) -> None:
    readers: dict[str, Callable[[Path], Any]] = {
        ".json": read_json,
        ".npy": lambda path: read_npy(path, "int64", (None,)),
        ".npz": read_npz,
        ".safetensors": read_safetensors,
        ".csv": read_text,
    }
    for path in write_one_of_each(tmp_path):
        readers[path.suffix](path)
        whole = path.read_bytes()
        for bit in range(8 * len(whole)):
            flipped = bytearray(whole)
            flipped[bit // 8] ^= 1 << bit % 8
            path.write_bytes(flipped)
            with pytest.raises(CoalmineError, match=re.escape(f"{path} is not ")):
                readers[path.suffix](path)
        path.write_bytes(whole)


def test_a_damaged_record_is_named_instead_of_its_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", 1)
    record = checksums.record_path(tmp_path / "a.json")
    record.write_bytes(b"0" + record.read_bytes()[1:])
    with pytest.raises(CoalmineError, match=re.escape(f"{record} is damaged")):
        read_json(tmp_path / "a.json")


def test_the_command_tells_the_file_that_has_changed(tmp_path: Path) -> None:
    whole, damaged, *_ = write_one_of_each(tmp_path)

    def told(*paths: Path) -> tuple[int, str]:
        command = [sys.executable, "-m", "coalmine.checksums", *map(str, paths)]
        done = subprocess.run(command, capture_output=True, text=True)
        return done.returncode, done.stderr

    assert told(whole, damaged) == (0, "")
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\xff")
    status, message = told(whole, damaged)
    assert status == 1
    assert message.startswith(f"error: {damaged} is not what was written (its bytes have changed: ")
    record = checksums.record_path(whole)
    record.write_bytes(b"")
    assert told(whole) == (0, ""), "a power cut leaves such records"
    record.write_bytes(b"x")
    assert told(whole)[1].startswith(f"error: {record} is not a readable record of a file")


def test_a_header_is_read_without_the_weights_unless_the_whole_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"stage": "s"}, {"w": np.ones(3, np.float32)})
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    assert read_safetensors_header(path) == {"stage": "s"}
    with pytest.raises(CoalmineError, match="its bytes have changed"):
        read_safetensors_header(path, whole=True)


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs sha256sum")
def test_sha256sum_checks_the_files_without_coalmine(tmp_path: Path) -> None:
    write_one_of_each(tmp_path)
    checked = ["sh", "-c", "sha256sum --strict --check .sha256/*"]
    done = subprocess.run(checked, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout.count(": OK")) == (0, 5), done.stderr
    (tmp_path / "a.json").write_text("{}")
    assert subprocess.run(checked, cwd=tmp_path, capture_output=True).returncode == 1


def test_a_rewritten_file_has_the_record_of_its_new_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, 1)
    old = checksums.read(path)
    write_json(path, 2)
    assert checksums.read(path) != old
    assert checksums.holds(path)


def test_no_record_is_better_than_a_wrong_one_if_the_write_is_cut_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    write_json(path, 1)

    def killed(path: Path, record: checksums.Record) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checksums, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        write_json(path, 2)
    assert path.read_text() == "2\n"
    assert checksums.read(path) is None
    assert checksums.holds(path), "a file without a record is believed"


def test_every_flipped_bit_of_a_record_is_told_from_damage_to_its_file(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    write_bytes(path, b"1\n")
    checksums.determine(path, {"stage": "table", "spec": {"a": 1.5}, "code": "0"})
    record = checksums.record_path(path)
    content = record.read_bytes()
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        record.write_bytes(flipped)
        with pytest.raises(CoalmineError, match=r"\.sha256.*Delete it"):
            checksums.read(path)
        assert not checksums.holds(path)


def test_an_empty_record_that_a_power_cut_left_counts_as_none(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    write_bytes(path, b"1\n")
    checksums.record_path(path).write_bytes(b"")
    assert checksums.read(path) is None


def test_a_file_that_is_put_in_place_keeps_its_record_and_what_determines_it(tmp_path: Path) -> None:
    source, target = tmp_path / "one/a.csv", tmp_path / "two/b.csv"
    write_bytes(source, b"1\n")
    write_bytes(target, b"22\n")
    checksums.determine(source, {"stage": "table"})
    place(source, target)
    assert checksums.read(target) == checksums.read(source)
    assert checksums.holds(target)
    checksums.forget(source)
    place(source, target)
    assert checksums.read(target) is None, "the record of what lay there before must not stay"


def test_what_is_gone_when_a_run_is_finished_needs_no_record(tmp_path: Path) -> None:
    write_npz(tmp_path / "a.npz", {}, {"x": np.ones(3)}, recorded=False)
    assert not checksums.record_path(tmp_path / "a.npz").exists()
