"""Checkpoints: what is taken up, when they are due, what they leave."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from coalmine import checkpoint as module
from coalmine.checkpoint import Checkpoint, without


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    moment = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: moment[0])
    return moment


def test_what_is_saved_is_loaded_by_the_same_computation_alone(tmp_path: Path) -> None:
    path, arrays = tmp_path / "deep/a.npz", {"x": np.arange(3), "generator/state": np.zeros(2, np.uint8)}
    assert not Checkpoint(path, {"code": "a"}).exists()
    assert Checkpoint(path, {"code": "a"}).load() is None
    Checkpoint(path, {"code": "a"}).save(arrays)
    again = Checkpoint(path, {"code": "a"})
    loaded = again.load()
    assert loaded is not None
    assert {name: one.tolist() for name, one in loaded.items()} == {name: one.tolist() for name, one in arrays.items()}
    other = Checkpoint(path, {"code": "b"})
    assert other.exists()
    assert (other.load(), other.before) == (None, 0.0)


@pytest.mark.parametrize("keep", [0, 1, 200, -1])
def test_a_cut_file_is_no_state(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "a.npz"
    Checkpoint(path).save({"x": np.arange(100)})
    path.write_bytes(path.read_bytes()[:keep])
    assert Checkpoint(path).load() is None
    path.unlink()
    path.mkdir()
    assert Checkpoint(path).load() is None


def test_a_checkpoint_without_a_file_is_never_due_and_keeps_nothing(tmp_path: Path, now: list[float]) -> None:
    for one in (Checkpoint(), without("shadow"), without("shadow", "purpose")):
        now[0] += 1e6
        assert not one.due()
        one.save({"x": np.arange(3)})
        assert one.load() is None
        assert not one.exists()
        one.remove()


def test_a_minute_lies_between_two_saves(tmp_path: Path, now: list[float]) -> None:
    one = Checkpoint(tmp_path / "a.npz")
    for _ in range(2):
        now[0] += 59.9
        assert not one.due()
        now[0] += 0.1
        assert one.due()
        one.save({})
    assert not one.due()


def test_the_time_between_saves_is_looked_up_when_a_checkpoint_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SECONDS_BETWEEN", 0.0)
    assert Checkpoint(tmp_path / "a.npz").due()
    assert not Checkpoint(tmp_path / "a.npz", seconds=1000.0).due()


@pytest.mark.parametrize(("lasts", "pause"), [(0.0, 60.0), (3.0, 60.0), (6.0, 120.0), (30.0, 600.0)])
def test_what_takes_long_to_save_is_saved_more_rarely(
    tmp_path: Path, now: list[float], monkeypatch: pytest.MonkeyPatch, lasts: float, pause: float
) -> None:
    monkeypatch.setattr(module, "write_npz", lambda *_, **__: now.__setitem__(0, now[0] + lasts))
    one = Checkpoint(tmp_path / "a.npz")
    one.save({})
    now[0] += pause - 0.01
    assert not one.due()
    now[0] += 0.01
    assert one.due()


def test_it_knows_the_seconds_of_all_attempts_until_their_last_saves(tmp_path: Path, now: list[float]) -> None:
    path = tmp_path / "a.npz"
    first = Checkpoint(path)
    for spent in (10.0, 5.0):
        now[0] += spent
        first.save({})
    now[0] += 1000.0  # lost
    second = Checkpoint(path)
    assert second.before == 0.0
    assert second.load() == {}
    assert second.before == 15.0
    now[0] += 4.0
    second.save({})
    third = Checkpoint(path)
    third.load()
    assert third.before == 19.0
    # Beginning anew, nothing was spent before.
    now[0] += 1.0
    fresh = Checkpoint(path)
    now[0] += 2.0
    fresh.save({})
    last = Checkpoint(path)
    last.load()
    assert last.before == 2.0
