"""Where training runs: choosing a device, naming it, and its peak memory and arithmetic."""

from __future__ import annotations

import platform
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from coalmine.errors import CoalmineError
from coalmine.training.recipe import Precision


def resolve_device(name: str) -> torch.device:
    """Return the device called ``auto`` (a CUDA device if there is one, else the CPU), ``cpu`` or ``cuda``.

    Raises:
        CoalmineError: for another name, or for ``cuda`` where there is none.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise CoalmineError(f"device is {name!r}, expected auto, cpu or cuda")
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise CoalmineError("device is cuda, but PyTorch finds no CUDA device here; use device: auto or cpu")
    return torch.device("cuda" if name != "cpu" and available else "cpu")


def device_name(device: torch.device) -> str:
    """Return the card's or the processor's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def peak_memory_mb(device: torch.device) -> float:
    """Return the most memory this process has held so far, in MB (10^6 bytes): on the card, or resident on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


@contextmanager
def arithmetic(precision: Precision) -> Iterator[None]:
    """Allow TF32 on CUDA devices exactly when ``precision`` is ``tf32``, and restore the setting afterwards."""
    products, convolutions = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = products, convolutions


def parameter_dtype(precision: Precision) -> torch.dtype:
    """Return the dtype of weights and network inputs; bfloat16 keeps float32 ones and casts inside the network."""
    return torch.float64 if precision == "float64" else torch.float32
