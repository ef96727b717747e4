"""Jobs priced, summed by method and stage, and laid out in time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from scene import MODEL, OPERATIONS, MadeUp, recipe

from coalmine.costs.planning import SIDECAR, artefacts, plan, schedule
from coalmine.costs.pricing import Prices
from coalmine.costs.records import FIXED, START, Record
from coalmine.dag import Job


def job(name: str, inputs: tuple[str, ...] = (), outputs: tuple[str, ...] = (), *, gpu: int = 0, **other: Any) -> Job:
    known = {"subject": "", "spec": None, "code": None, "needed": True, "program": name, **other}
    return Job(
        rule=name,
        stage=name,
        inputs=tuple(map(Path, inputs)),
        outputs=tuple(map(Path, outputs)),
        threads=1,
        resources={"gpu": gpu},
        **known,
    )


CHAIN = [job("a", (), ("1",)), job("b", ("1",), ("2",)), job("c", (), ("3",)), job("d", ("2", "3"), ())]


def test_the_longest_chain_bounds_the_time_whatever_the_cores() -> None:
    seconds = [5.0, 7.0, 4.0, 2.0]
    assert schedule(CHAIN, seconds, cores=100, gpus=0) == (14.0, 14.0)
    assert schedule(CHAIN, seconds, cores=1, gpus=0) == (14.0, 18.0), "one core does one job after the other"
    assert schedule(CHAIN, seconds, cores=2, gpus=0) == (14.0, 14.0)


def test_independent_jobs_share_the_cores() -> None:
    jobs = [job(f"{n}") for n in range(10)]
    assert schedule(jobs, [3.0] * 10, cores=5, gpus=0) == (3.0, 6.0)


def test_jobs_with_a_gpu_wait_for_one() -> None:
    jobs = [job(f"{n}", gpu=n % 2) for n in range(8)]
    assert schedule(jobs, [3.0] * 8, cores=8, gpus=1) == (3.0, 12.0)
    assert schedule(jobs, [3.0] * 8, cores=8, gpus=4) == (3.0, 3.0)
    assert schedule(jobs, [3.0] * 8, cores=8, gpus=0) == (3.0, 3.0), "without any, they take cores"


def test_measurements_beside_artefacts_are_no_artefacts() -> None:
    outputs = [Path(f"results/run/{kind}/dfkd/{n:03d}.{end}") for n in range(3) for kind, end in KINDS]
    assert artefacts(outputs, "models") == 3
    assert artefacts(outputs, "synthetic") == 3
    assert artefacts(outputs, "logits") == 0


KINDS = (("models", "safetensors"), ("models", "json"), ("synthetic", "npz"), ("synthetic", "json"))


def records() -> list[Record]:
    """A processor that makes 10^9 multiply-adds a second in calls of 1,600, and needs 3 s to start a job."""
    made = [
        Record("run", folder, "mlp", f"{size:g}", "cpu", 4, size / 1e9, size, size / 1600)
        for folder in ("models", "logits")
        for size in (1e8, 1e9, 1e10)
    ]
    return [
        *made,
        Record("run", START, "train", "any", "cpu", 1, 3.0),
        Record("run", FIXED, "table", "t", "cpu", 1, 2.0),
    ]


def training(method: str, shadows: range, **other: Any) -> Job:
    spec = {
        "method": method,
        "module": "undefended",
        "settings": {},
        "model": MODEL.model_dump(mode="json"),
        "training": recipe(epochs=100).model_dump(mode="json"),
    }
    outputs = tuple(
        f"results/run/models/{method}/{shadow:03d}.{end}" for shadow in shadows for end in ("safetensors", "json")
    )
    return job("train", (), outputs, subject=method, spec=spec, **other)


def test_jobs_are_summed_by_method_and_stage() -> None:
    jobs = [training("one", range(4)), training("one", range(4, 6)), training("two", range(6)), job("all")]
    found = plan(jobs, MadeUp(), Prices(records(), "cpu"), cores=2, gpus=0)
    first, second = found.lines
    assert [(line.method, line.folder, line.jobs, line.artefacts) for line in found.lines] == [
        ("one", "models", 2, 6),
        ("two", "models", 1, 6),
    ]
    operations = 100 * 3 * OPERATIONS * 100
    assert first.operations == 6 * operations
    assert first.seconds
    assert second.seconds
    assert first.seconds == second.seconds
    assert first.seconds.low < first.seconds.median < first.seconds.high
    assert first.seconds.median == pytest.approx(6 * operations / 1e9, rel=0.5)
    assert found.beside == 3 * 3.0
    assert found.total.median == pytest.approx(first.seconds.median + second.seconds.median + found.beside, rel=0.01)
    weights = 4 * (64 * 16 + 16 + 16 * 5 + 5)
    assert first.disk_mb
    assert 6 * (weights + SIDECAR) < 1e6 * first.disk_mb < 6 * (weights + SIDECAR + 2500)
    assert found.wall.median < found.total.median
    assert found.unpriced == {}


def test_what_is_up_to_date_costs_nothing() -> None:
    jobs = [training("one", range(4), needed=False), training("two", range(4))]
    found = plan(jobs, MadeUp(), Prices(records(), "cpu"), cores=1, gpus=0)
    assert [line.method for line in found.lines] == ["two"]
    assert (found.needed, found.whole) == (1, 2)
    nothing = plan(jobs[:1], MadeUp(), Prices(records(), "cpu"), cores=1, gpus=0)
    assert (nothing.lines, nothing.total.median, nothing.wall.median, nothing.disk_mb) == ([], 0, 0, 0)


def test_what_has_no_price_is_said() -> None:
    jobs = [job("table", spec={"name": "table1"}), job("download", spec={}), training("one", range(2))]
    without_start = [one for one in records() if one.folder != START]
    found = plan(jobs, MadeUp(), Prices(without_start, "cpu"), cores=1, gpus=0)
    assert found.unpriced == {"download": 1}
    assert found.beside == 2.0
