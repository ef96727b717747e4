"""Choosing and describing a device."""

from pathlib import Path

import pytest
import torch

from coalmine.errors import CoalmineError
from coalmine.training.device import arithmetic, device_name, peak_memory_mb, resolve_device


@pytest.mark.parametrize(("present", "expected"), [(False, "cpu"), (True, "cuda")])
def test_auto_takes_the_card_if_there_is_one(monkeypatch, present, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: present)
    assert resolve_device("auto").type == expected
    assert resolve_device("cpu").type == "cpu"


def test_a_missing_card_is_refused_with_a_remedy(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(CoalmineError, match="finds no CUDA device here; use device: auto or cpu"):
        resolve_device("cuda")


def test_an_unknown_device_is_refused():
    with pytest.raises(CoalmineError, match="device is 'gpu', expected auto, cpu or cuda"):
        resolve_device("gpu")


def test_the_processor_has_a_name():
    assert device_name(torch.device("cpu"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's account of the process")
def test_peak_memory_is_the_largest_resident_size_in_megabytes():
    block = torch.ones(10_000_000)
    status = Path("/proc/self/status").read_text()
    peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6
    # A process may inherit a larger peak from the one that started it.
    assert 0.99 * peak <= peak_memory_mb(block.device) < 100 * peak


def test_the_tf32_setting_is_restored_after_an_error():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    with pytest.raises(RuntimeError), arithmetic("tf32"):
        raise RuntimeError
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before
