"""GPUs are shared by locks. No GPU is needed: a pretended `nvidia-smi` lists some."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from coalmine import devices
from coalmine.errors import CoalmineError

SOURCES = Path(devices.__file__).resolve().parents[1]

TWO = """GPU 0: NVIDIA H200 (UUID: GPU-aaaa-1)
GPU 1: NVIDIA H200 (UUID: GPU-bbbb-2)
"""
WITH_PARTS = """GPU 0: NVIDIA H200 (UUID: GPU-aaaa-1)
  MIG 1g.18gb     Device  0: (UUID: MIG-cccc-1)
  MIG 1g.18gb     Device  1: (UUID: MIG-cccc-2)
GPU 1: NVIDIA H200 (UUID: GPU-bbbb-2)
"""

CLAIM = """
import os, sys, time
from coalmine import devices
print(devices.claim(lambda line: print(line, flush=True)), os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Pretends that a machine has the GPUs of a listing; returns its environment."""

    def pretend(listing: str, **variables: str) -> dict[str, str]:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        program = folder / "nvidia-smi"
        program.write_text(f"#!/bin/sh\ncat <<'END'\n{listing}END\n")
        program.chmod(0o755)
        for name in (devices.VISIBLE, devices.GPUS, devices.JOBS_PER_GPU):
            monkeypatch.delenv(name, raising=False)
        new = {"PATH": f"{folder}:{os.environ['PATH']}", "TMPDIR": str(tmp_path), **variables}
        for name, value in new.items():
            monkeypatch.setenv(name, value)
        return {**os.environ, "PYTHONPATH": str(SOURCES)}

    return pretend


class Job:
    """A process that claims a GPU and holds it until it is told to end, or killed."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLAIM],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def says(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def job():
    started: list[Job] = []

    def start(environment: dict[str, str]) -> Job:
        started.append(Job(environment))
        return started[-1]

    yield start
    for one in started:
        one.kill()


def test_a_machine_without_gpus_has_none_and_claims_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert devices.gpus() == []
    assert devices.claim(print) is None
    assert devices.slots("auto", 4, []) == 0


def test_gpus_are_known_by_uuid_in_the_driver_s_order(machine):
    machine(TWO)
    assert devices.gpus() == ["GPU-aaaa-1", "GPU-bbbb-2"]


def test_instances_stand_for_the_gpu_that_is_cut_into_them(machine):
    machine(WITH_PARTS)
    assert devices.gpus() == ["MIG-cccc-1", "MIG-cccc-2", "GPU-bbbb-2"]


@pytest.mark.parametrize(
    ("visible", "usable"),
    [
        ("1", ["GPU-bbbb-2"]),
        ("1,0", ["GPU-bbbb-2", "GPU-aaaa-1"]),
        ("GPU-bbbb", ["GPU-bbbb-2"]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
    ],
)
def test_only_what_cuda_may_see_is_used(machine, visible, usable):
    machine(TWO, CUDA_VISIBLE_DEVICES=visible)
    assert devices.gpus() == usable


@pytest.mark.parametrize("visible", ["2", "GPU-cccc", "GPU-"])
def test_a_gpu_that_is_not_there_is_refused_by_name(machine, visible):
    machine(TWO, CUDA_VISIBLE_DEVICES=visible)
    with pytest.raises(
        CoalmineError, match=rf"names '{visible}', but there is no such GPU here; there are 2: GPU-aaaa-1"
    ):
        devices.gpus()


def test_slots_are_gpus_times_the_jobs_that_share_one():
    assert devices.slots("auto", 1, ["a", "b"]) == 2
    assert devices.slots("auto", 3, ["a", "b"]) == 6
    assert devices.slots(1, 3, ["a", "b"]) == 3


def test_more_gpus_than_there_are_are_refused():
    with pytest.raises(CoalmineError, match=r"execution.gpus is 3, but this process can use 2 GPUs here"):
        devices.slots(3, 1, ["a", "b"])
    with pytest.raises(CoalmineError, match=r"execution.gpus is 1, but this process can use 0 GPUs here"):
        devices.slots(1, 1, [])


def test_two_jobs_have_two_gpus_and_a_third_waits_until_one_is_killed(machine, job):
    environment = machine(TWO)
    first, second = job(environment), job(environment)
    held = {first.says(), second.says()}
    assert held == {"GPU-aaaa-1 GPU-aaaa-1", "GPU-bbbb-2 GPU-bbbb-2"}
    third = job(environment)
    assert third.says() == ("waiting, as 2 jobs can use the GPUs of this machine, and do (GPU-aaaa-1, GPU-bbbb-2)")
    first.kill()  # nothing of it runs any more that could give its GPU back
    assert third.says() in held


def test_jobs_share_a_gpu_only_when_every_gpu_has_one(machine, job):
    environment = machine(TWO, COALMINE_JOBS_PER_GPU="2")
    jobs = [job(environment) for _ in range(4)]
    held = [one.says().split()[0] for one in jobs]
    assert sorted(held) == ["GPU-aaaa-1", "GPU-aaaa-1", "GPU-bbbb-2", "GPU-bbbb-2"]
    assert job(environment).says().startswith("waiting, as 4 jobs can use")


def test_the_second_job_takes_the_second_gpu_although_the_first_has_room(machine, job):
    environment = machine(TWO, COALMINE_JOBS_PER_GPU="2")
    assert job(environment).says().startswith("GPU-aaaa-1")
    assert job(environment).says().startswith("GPU-bbbb-2")


def test_no_more_gpus_are_used_than_asked_for(machine, job):
    environment = machine(TWO, COALMINE_GPUS="1")
    assert job(environment).says().startswith("GPU-aaaa-1")
    assert job(environment).says().startswith("waiting, as 1 job can use")


def test_a_lock_folder_of_somebody_else_is_refused(machine, tmp_path, monkeypatch):
    machine(TWO)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / f"coalmine-gpus-{os.getuid()}").symlink_to(tmp_path)
    with pytest.raises(CoalmineError, match="is not a folder of yours"):
        devices.claim(print)


def test_many_jobs_on_few_gpus_never_overlap(machine, job, tmp_path):
    environment = machine(TWO)
    work = (
        "import os, time\n"
        "from coalmine import devices\n"
        "gpu = devices.claim(lambda line: None)\n"
        f"marker = {str(tmp_path)!r} + '/in-use-' + gpu\n"
        "os.close(os.open(marker, os.O_CREAT | os.O_EXCL))\n"  # fails if another job is on this GPU
        "time.sleep(0.2)\n"
        "os.unlink(marker)\n"
    )
    started = [subprocess.Popen([sys.executable, "-c", work], env=environment) for _ in range(8)]
    deadline = time.monotonic() + 60
    assert [process.wait(timeout=deadline - time.monotonic()) for process in started] == [0] * 8


def test_neither_torch_nor_numpy_is_needed_to_claim_a_gpu():
    code = "import sys, coalmine.devices; sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(SOURCES)}).returncode == 0
