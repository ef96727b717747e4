"""Records of finished runs: collected, written, and what the package's own say about its predictions."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scene import MODEL, MadeUp, recipe

from coalmine.artefacts import write_json, write_npy, write_safetensors
from coalmine.costs import records
from coalmine.costs.pricing import Prices, main_device
from coalmine.costs.records import Record, collect, read, shipped, write
from coalmine.costs.scenes import npy_shape
from coalmine.costs.stages import Part, parts
from coalmine.costs.work import Work
from coalmine.errors import CoalmineError

SPEC = {
    "method": "undefended",
    "module": "undefended",
    "settings": {},
    "model": MODEL.model_dump(mode="json"),
    "training": recipe().model_dump(mode="json"),
}


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A run's folder with two trained models of made-up data."""
    root = tmp_path / "results" / "done"
    write_npy(root / "data/private/images.npy", np.zeros((110, 8, 8, 1), np.uint8))
    write_npy(root / "data/test/images.npy", np.zeros((40, 8, 8, 1), np.uint8))
    write_json(root / "data/classes.json", {"classes": list("abcde")})
    (root / "audit").mkdir()
    (root / "audit/canaries.csv").write_text("canary\n" + "0\n" * 20)
    for shadow, seconds in enumerate((2.0, 4.0)):
        path = root / f"models/undefended/{shadow:03d}.safetensors"
        header = {"stage": "train", "spec": SPEC, "shadow": shadow}
        write_safetensors(path, header, {"weight": np.zeros(3, np.float32)})
        told = {"seconds": seconds, "device": "cpu", "peak_memory_mb": 600.0 + shadow, "bytes": 1000}
        write_json(path.with_suffix(".json"), told)
    return root


def test_a_run_tells_means_over_models_and_the_work_of_its_own_settings(finished: Path) -> None:
    (found,) = collect(finished)
    (part,) = parts("train", SPEC, MadeUp())
    assert part.work
    assert (found.run, found.folder, found.name, found.models) == ("done", "models", "undefended", 2)
    assert (found.seconds, found.peak_memory_mb, found.disk_mb) == (3.0, 601.0, 0.001)
    assert (found.operations, found.launches) == (part.work.operations, part.work.launches)


def test_models_without_measurements_and_those_of_two_devices_tell_nothing(finished: Path) -> None:
    sidecar = finished / "models/undefended/001.json"
    told = json.loads(sidecar.read_text())
    write_json(sidecar, {**told, "device": "a card"})
    assert collect(finished) == []
    sidecar.unlink()
    (found,) = collect(finished)
    assert found.models == 1


def test_a_run_of_older_settings_tells_nothing(finished: Path) -> None:
    for path in (finished / "models/undefended").glob("*.safetensors"):
        old = {key: value for key, value in SPEC.items() if key != "training"}
        write_safetensors(path, {"stage": "train", "spec": old}, {"weight": np.zeros(3, np.float32)})
    assert collect(finished) == []


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CoalmineError, match=r"neither the folder of a run .* nor a published one"):
        collect(tmp_path)


def test_records_are_written_in_one_order_and_read_as_they_were(tmp_path: Path) -> None:
    some = [Record("run", "models", "mlp", name, "cpu", 2, 1.25, 1e9, 10.0) for name in "cab"]
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    write(first, some)
    write(second, reversed(some))
    assert first.read_bytes() == second.read_bytes()
    assert read(first) == sorted(some, key=lambda one: one.name)


def test_a_broken_file_of_records_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "records.json").write_text('{"records": [{"run": "x"}]}')
    with pytest.raises(CoalmineError, match=r"no file of cost records .*coalmine.costs collect"):
        read(tmp_path / "records.json")


def test_the_shape_of_an_array_is_read_from_its_header(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((3, 5, 7), np.float32))
    assert npy_shape(tmp_path / "a.npy") == (3, 5, 7)
    (tmp_path / "a.npy").write_bytes(b"none")
    with pytest.raises(CoalmineError, match=r"not a readable .npy file"):
        npy_shape(tmp_path / "a.npy")


# --- what the package's records say ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cifar10-jpeg", "cifar10-dp"])
def test_the_packages_records_are_those_of_the_published_tables(name: str) -> None:
    published = collect(records.SHIPPED.parents[3] / "results" / "published" / name)
    known = {(one.folder, one.name): one for one in shipped() if one.run == name}
    assert len(published) == len(known) > 5
    for one in published:
        same = known[one.folder, one.name]
        assert same.seconds == pytest.approx(one.seconds, rel=1e-5), "collect them anew"
        assert same.operations == pytest.approx(one.operations, rel=1e-5), "the arithmetic changed: collect them anew"
        assert same.launches == pytest.approx(one.launches, rel=1e-5)


def test_sizes_are_known_to_a_tenth_before_anything_is_made() -> None:
    artefacts = {"experts", "generators", "synthetic", "models", "pretrained"}
    known = [one for one in shipped() if one.folder in artefacts and one.disk_mb and one.counted_mb]
    assert len(known) > 40
    assert {one.folder for one in known} == artefacts
    for one in known:
        assert one.counted_mb
        assert one.disk_mb == pytest.approx(one.counted_mb, rel=0.1), one


def test_peak_memory_is_known_within_a_half_before_anything_is_made() -> None:
    everything = shipped()
    device = main_device(everything)
    assert device
    for one in everything:
        if one.peak_memory_mb is None or one.memory_mb is None:
            continue
        others = [other for other in everything if other is not one]
        part = Part(one.folder, one.module, Work(1.0, 1.0, 1e6 * one.memory_mb), None)
        assert Prices(others, device).memory(part) == pytest.approx(one.peak_memory_mb, rel=0.5), one


def test_a_laptops_demo_predicts_cifar10_within_its_intervals() -> None:
    """8x8 digits and CIFAR-10 differ in the operations of a call by a factor of 40, in seconds by one of 80."""
    everything = shipped()
    device = main_device(everything)
    assert device
    demo = Prices([one for one in everything if one.run == "demo"], device)
    held = []
    for one in everything:
        if one.run != "demo" and one.operations is not None:
            disk = 1e6 * (one.counted_mb or 0)
            estimate = demo.price(Part(one.folder, one.module, Work(one.operations, one.launches or 0), disk))
            assert estimate
            low, high = estimate.interval()
            held.append(low <= one.seconds <= high)
            assert abs(math.log(one.seconds / estimate.seconds)) < math.log(4), one
    assert len(held) >= 13
    assert np.mean(held) > 0.6
