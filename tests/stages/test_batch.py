"""A job of several shadow models loses no finished file, and takes over none that it would not write itself."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from coalmine import artefacts
from coalmine.artefacts import Header, read_json, read_npz, read_safetensors, write_npz, write_safetensors
from coalmine.checksums import FOLDER
from coalmine.errors import CoalmineError
from coalmine.kept import drop_kept
from coalmine.shadows import Numbered
from coalmine.stages._batch import Batch

HEADER = {"stage": "made", "spec": {"a": 1}, "code": "c0de"}


class Job:
    """A batch of three files, with what it printed."""

    def __init__(self, folder: Path, shadows: tuple[int, ...] = (4, 5, 6), **changes: Any) -> None:
        self.printed: list[str] = []
        self.outputs = [folder / f"{shadow:03d}.npz" for shadow in shadows]
        base = {**HEADER, **changes}
        self.batch = Batch(
            self.outputs,
            lambda shadow: {**base, "shadow": shadow},
            lambda path: read_npz(path)[0],
            self.printed.append,
        )

    def make(self, *shadows: int) -> None:
        for shadow in shadows:
            arrays = {"values": np.array([shadow])}
            write_npz(self.batch.stash(shadow), self.batch.headers[shadow], arrays)
            self.batch.finish(shadow, {"seconds": shadow})


class Pair(Job):
    """A batch of two files for each of three shadow models, in folders of their own, listed with measurements."""

    def __init__(self, folder: Path, shadows: tuple[int, ...] = (4, 5, 6), **changes: Any) -> None:
        self.printed = []
        names = [f"{shadow:03d}" for shadow in shadows]
        self.outputs = [folder / f"sets/{name}.{end}" for name in names for end in ("npz", "json")]
        self.outputs += [folder / f"models/{name}.{end}" for name in names for end in ("safetensors", "json")]
        base = {**HEADER, **changes}
        self.batch = Batch(self.outputs, lambda shadow: {**base, "shadow": shadow}, read_header, self.printed.append)

    def make(self, *shadows: int) -> None:
        for shadow in shadows:
            self.write(shadow)
            self.batch.finish(shadow, {"seconds": shadow}, ".npz")
            self.batch.finish(shadow, {"seconds": 10 * shadow}, ".safetensors")

    def write(self, shadow: int) -> None:
        arrays = {"values": np.array([shadow])}
        write_npz(self.batch.stash(shadow, ".npz"), self.batch.headers[shadow], arrays)
        write_safetensors(self.batch.stash(shadow, ".safetensors"), self.batch.headers[shadow], arrays)


def publish(job: Job) -> None:
    """Put a job's files in place, and let Snakemake note that all went well."""
    job.batch.publish()
    drop_kept(job.outputs[0].parents[2])


def read_header(path: Path) -> Header:
    return (read_npz(path) if path.suffix == ".npz" else read_safetensors(path))[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "method").mkdir()
    return tmp_path / "method"


def listing(folder: Path) -> list[str]:
    """All files and folders but the records of check sums."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if FOLDER not in path.parts)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and FOLDER not in path.parts)


def shadow(number: int) -> Numbered:
    return SimpleNamespace(number=number)


def test_nothing_is_where_snakemake_looks_until_the_whole_job_is_done(folder: Path) -> None:
    job = Job(folder)
    assert (job.batch.waiting, job.printed) == ([4, 5, 6], [])
    job.make(4, 5)
    assert not list(folder.glob("*.*z"))
    job.make(6)
    publish(job)
    assert listing(folder) == ["004.json", "004.npz", "005.json", "005.npz", "006.json", "006.npz"]
    for shadow, path in zip((4, 5, 6), job.outputs, strict=True):
        header, arrays = read_npz(path)
        assert header == {**HEADER, "shadow": shadow}
        assert arrays["values"].tolist() == [shadow]
        assert read_json(path.with_suffix(".json")) == {"seconds": shadow}


def test_finished_files_of_an_interrupted_job_are_taken_over_byte_for_byte(folder: Path) -> None:
    Job(folder).make(5, 6)
    kept = (folder / ".finished/005.npz").read_bytes()
    again = Job(folder)
    assert again.batch.waiting == [4]
    assert again.printed == ["2 of 3 were finished by an interrupted job and are kept"]
    again.make(4)
    publish(again)
    assert (folder / "005.npz").read_bytes() == kept
    assert read_json(folder / "006.json") == {"seconds": 6}
    assert not (folder / ".finished").exists()


def test_a_job_of_another_batch_size_takes_over_its_share_and_leaves_the_rest(folder: Path) -> None:
    Job(folder).make(4, 5, 6)
    smaller = Job(folder, shadows=(4, 5))
    assert smaller.batch.waiting == []
    publish(smaller)
    assert listing(folder) == [".finished", ".finished/006.json", ".finished/006.npz"] + [
        f"00{shadow}.{suffix}" for shadow in (4, 5) for suffix in ("json", "npz")
    ]
    assert Job(folder, shadows=(6, 7)).batch.waiting == [7]


@pytest.mark.parametrize(
    "changes", [{"spec": {"a": 2}}, {"code": "0ther"}, {"stage": "other"}, {"inputs": {"design": "d"}}]
)
def test_a_file_with_another_header_is_made_anew(folder: Path, changes: dict[str, Any]) -> None:
    Job(folder).make(4, 5, 6)
    other = Job(folder, **changes)
    assert (other.batch.waiting, other.printed) == ([4, 5, 6], [])
    other.make(4, 5, 6)
    publish(other)
    assert read_npz(folder / "005.npz")[0] == {**HEADER, **changes, "shadow": 5}


def test_the_file_of_another_shadow_model_is_made_anew(folder: Path) -> None:
    Job(folder).make(4, 5)
    os.replace(folder / ".finished/005.npz", folder / ".finished/004.npz")
    assert Job(folder).batch.waiting == [4, 5, 6]


def test_a_broken_or_half_finished_file_is_made_anew(folder: Path) -> None:
    Job(folder).make(4, 5, 6)
    stash = folder / ".finished"
    (stash / "004.npz").write_bytes((stash / "004.npz").read_bytes()[:100])
    # Without its measurements a file was not finished.
    (stash / "005.json").unlink()
    assert Job(folder).batch.waiting == [4, 5]


def test_files_are_put_in_place_by_copies_where_there_are_no_hard_links(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> None:
        raise OSError("this file system has no hard links")

    monkeypatch.setattr(os, "link", refuse)
    job = Job(folder)
    job.make(4, 5, 6)
    publish(job)
    assert listing(folder) == ["004.json", "004.npz", "005.json", "005.npz", "006.json", "006.npz"]
    assert read_npz(folder / "006.npz")[1]["values"].tolist() == [6]


def test_files_in_place_are_replaced_not_written_into(folder: Path) -> None:
    # A hard link to a former output, as a backup may hold it, keeps its content.
    (folder / "004.npz").write_bytes(b"former")
    os.link(folder / "004.npz", folder / "backup")
    job = Job(folder)
    job.make(4, 5, 6)
    publish(job)
    assert (folder / "backup").read_bytes() == b"former"
    assert read_npz(folder / "004.npz")[0]["shadow"] == 4


def test_nothing_is_dropped_before_everything_is_in_place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(folder)
    job.make(4, 5, 6)
    replace = os.replace

    def fail_on_the_last(source: Any, target: Any) -> None:
        if Path(target).name == "006.npz":
            raise OSError("the disk is gone")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail_on_the_last)
    with pytest.raises(OSError, match="the disk is gone"):
        publish(job)
    monkeypatch.undo()
    assert Job(folder).batch.waiting == []


def test_a_file_name_that_is_no_number_is_refused(folder: Path) -> None:
    with pytest.raises(CoalmineError, match=r"first\.npz: the file name must be the number of a shadow model, such as"):
        Batch([folder / "first.npz"], lambda shadow: {}, lambda path: {}, print)


# --- several files of each shadow model --------------------------------------------------------------------------


def test_all_files_of_all_shadow_models_are_published_each_with_its_own_measurements(tmp_path: Path) -> None:
    job = Pair(tmp_path)
    assert job.batch.waiting == [4, 5, 6]
    job.make(4, 5, 6)
    assert not [path for path in files(tmp_path) if ".finished" not in path.parts]
    publish(job)
    assert files(tmp_path) == sorted(job.outputs)
    assert not list(tmp_path.rglob(".finished"))
    assert read_npz(tmp_path / "sets/005.npz")[1]["values"].tolist() == [5]
    assert read_safetensors(tmp_path / "models/005.safetensors")[0] == {**HEADER, "shadow": 5}
    measured = [read_json(tmp_path / folder / "005.json")["seconds"] for folder in ("sets", "models")]
    assert measured == [5, 50]


@pytest.mark.parametrize("lost", ["sets/.finished/005.npz", "models/.finished/005.safetensors"])
@pytest.mark.parametrize("measurements", [False, True])
def test_a_shadow_model_is_finished_only_with_all_of_its_files(tmp_path: Path, lost: str, measurements: bool) -> None:
    Pair(tmp_path).make(4, 5, 6)
    path = tmp_path / lost
    (path.with_suffix(".json") if measurements else path).unlink()
    again = Pair(tmp_path)
    assert again.batch.waiting == [5]
    again.make(5)
    publish(again)
    assert files(tmp_path) == sorted(again.outputs)


@pytest.mark.parametrize("name", ["sets/.finished/{}.npz", "models/.finished/{}.safetensors"])
def test_a_pair_with_one_file_of_another_shadow_model_or_a_broken_one_is_made_anew(tmp_path: Path, name: str) -> None:
    Pair(tmp_path).make(4, 5, 6)
    os.replace(tmp_path / name.format("006"), tmp_path / name.format("004"))
    broken = tmp_path / name.format("005")
    broken.write_bytes(broken.read_bytes()[:80])
    assert Pair(tmp_path).batch.waiting == [4, 5, 6]


def test_a_pair_that_was_written_but_not_finished_is_made_anew(tmp_path: Path) -> None:
    job = Pair(tmp_path)
    job.make(4)
    job.write(5)
    job.batch.finish(5, {"seconds": 5}, ".npz")
    assert Pair(tmp_path).batch.waiting == [5, 6]


def test_a_kill_while_files_are_put_in_place_loses_none_of_any_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Pair(tmp_path)
    job.make(4, 5, 6)
    replace, left = os.replace, iter(range(7))

    def fail(source: Any, target: Any) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        replace(source, target)

    for _ in range(2):  # and once more, in the job that takes the files over
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", fail)
            with pytest.raises(KeyboardInterrupt):
                publish(job)
        for path in job.outputs:  # as Snakemake does
            path.unlink(missing_ok=True)
        job = Pair(tmp_path)
        assert job.batch.waiting == []
    publish(job)
    assert all(path.is_file() for path in job.outputs)


def test_a_checkpoint_is_kept_until_all_files_of_its_shadow_model_are_finished(tmp_path: Path) -> None:
    job = Pair(tmp_path)
    job.batch.checkpoint(shadow(4)).save({"step": np.array(3)})
    job.write(4)
    job.batch.finish(4, {"seconds": 1}, ".npz")
    assert job.batch.checkpoint(shadow(4)).load() is not None
    job.batch.finish(4, {"seconds": 1}, ".safetensors")
    assert job.batch.checkpoint(shadow(4)).load() is None


def test_measurements_of_another_jobs_file_do_not_pass_for_those_of_a_new_one(folder: Path) -> None:
    Job(folder).make(4)
    other = Job(folder, code="0ther")
    write_npz(other.batch.stash(4), other.batch.headers[4], {"values": np.array([4])})
    # Killed before it was finished.
    assert Job(folder, code="0ther").batch.waiting == [4, 5, 6]


# --- checkpoints of several computations, leftovers, orphans -------------------------------------------------------


def test_computations_with_different_purposes_have_different_checkpoints(folder: Path) -> None:
    batch = Job(folder).batch
    for value, purpose in enumerate(("", "teacher", "proxy 1", "proxy 2")):
        batch.checkpoint(shadow(4), purpose).save({"step": np.array(value)})
    again = Job(folder).batch
    for value, purpose in enumerate(("", "teacher", "proxy 1", "proxy 2")):
        saved = again.checkpoint(shadow(4), purpose).load()
        assert saved is not None
        assert int(saved["step"]) == value
        assert again.checkpoint(shadow(5), purpose).load() is None
        assert Job(folder, code="0ther").batch.checkpoint(shadow(4), purpose).load() is None
    # A name that says the same in a file name is another purpose all the same.
    assert again.checkpoint(shadow(4), "proxy-1").load() is None


def test_a_finished_shadow_model_takes_all_of_its_checkpoints_along(folder: Path) -> None:
    job = Job(folder)
    for number in (4, 5):
        for purpose in ("", "teacher", "of former settings"):
            checkpoint = job.batch.checkpoint(shadow(number), purpose)
            checkpoint.canvas((3,), "uint8")
            checkpoint.save({"step": np.array(number)})
    job.make(4)
    assert {path.name for path in (folder / ".finished").glob("*.checkpoint*")} == {
        f"005.checkpoint{purpose}.{end}"
        for purpose in ("", ".teacher", ".of-former-settings")
        for end in ("npz", "canvas.npy")
    }
    job.make(5, 6)
    publish(job)
    assert not (folder / ".finished").exists()


def test_what_a_kill_after_the_last_file_leaves_is_gone_when_the_job_is_done(folder: Path) -> None:
    """A checkpoint of a finished model, and a half-written file of a process that is no more."""
    Job(folder).make(4, 5, 6)
    job = Job(folder)
    job.batch.checkpoint(shadow(5), "training").save({"step": np.array(1)})
    (folder / f".finished/.005.checkpoint.npz.{2**22 + 1}@{socket.gethostname()}.tmp").write_bytes(b"half")
    publish(job)
    assert not (folder / ".finished").exists()
    assert listing(folder) == ["004.json", "004.npz", "005.json", "005.npz", "006.json", "006.npz"]


def test_a_job_that_goes_on_without_its_snakemake_does_not_disturb_the_one_that_is_run_again(folder: Path) -> None:
    orphan, job = Job(folder), Job(folder)
    job.make(4)
    orphan.make(4, 5, 6)
    job.make(5)
    publish(orphan)  # and takes the kept files away
    job.make(6)
    publish(job)
    assert listing(folder) == ["004.json", "004.npz", "005.json", "005.npz", "006.json", "006.npz"]
    assert [read_npz(path)[1]["values"].tolist() for path in job.outputs] == [[4], [5], [6]]


def test_files_that_vanish_and_were_published_by_nobody_are_missed(folder: Path) -> None:
    job, other = Job(folder), Job(folder, code="0ther")
    other.make(4, 5, 6)
    publish(other)
    job.make(4, 5, 6)
    (folder / ".finished/005.npz").unlink()
    with pytest.raises(FileNotFoundError, match=r"005\.npz"):
        publish(job)


def test_publishing_again_what_is_in_place_already_leaves_no_second_name_of_it(folder: Path) -> None:
    """A rename onto another link of the same file does nothing, not even remove the old name."""
    job = Job(folder)
    job.make(4, 5, 6)
    for kept in sorted((folder / ".finished").glob("00*.*")):
        artefacts.place(kept, folder / kept.name)
    publish(job)
    assert listing(folder) == ["004.json", "004.npz", "005.json", "005.npz", "006.json", "006.npz"]


def test_the_seconds_of_interrupted_jobs_are_those_of_all_checkpoints_taken_up(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    for spent in (7.0, 11.0):
        batch = Job(folder).batch
        opened = [batch.checkpoint(shadow(4), purpose) for purpose in ("teacher", "training")]
        for checkpoint in opened:
            checkpoint.load()
        now[0] += spent
        for checkpoint in opened:
            checkpoint.save({})
        now[0] += 100
    batch = Job(folder).batch
    assert batch.before(4) == 0
    assert [batch.checkpoint(shadow(4), purpose).load() for purpose in ("teacher", "training")] == [{}, {}]
    assert batch.before(4) == 2 * (7.0 + 11.0)
    assert batch.before(5) == 0


def test_what_is_published_is_kept_until_snakemake_has_noted_it(folder: Path) -> None:
    """Snakemake deletes the outputs of a job if it is killed before that, and starts the job again."""
    job = Job(folder)
    job.make(4, 5, 6)
    job.batch.publish()
    published = {path.name: path.read_bytes() for path in folder.glob("00*")}
    assert len(published) == 6
    for name in published:
        (folder / name).unlink()
    again = Job(folder)
    assert again.batch.waiting == []
    publish(again)
    assert {path.name: path.read_bytes() for path in folder.glob("00*")} == published
    assert not (folder / ".finished").exists()


def test_kept_files_that_are_not_published_are_not_dropped(folder: Path) -> None:
    Job(folder).make(4, 5)
    drop_kept(folder.parents[1])
    assert Job(folder).batch.waiting == [6]


@pytest.mark.parametrize("suffix", ["npz", "json"])
def test_a_kept_file_whose_bytes_have_changed_is_made_anew(folder: Path, suffix: str) -> None:
    Job(folder).make(4, 5)
    damaged = folder / f".finished/004.{suffix}"
    damaged.write_bytes(damaged.read_bytes().replace(b"4", b"5"))
    assert Job(folder).batch.waiting == [4, 6]
