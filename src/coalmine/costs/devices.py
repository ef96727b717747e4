"""Which device jobs will run on, and how fast cards are at best. Imports no torch."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from coalmine.errors import CoalmineError


class Peak(NamedTuple):
    """What a card's data sheet promises, in 10^12 operations a second (a multiply-add is two).

    Attributes:
        float32: outside of tensor cores.
        tensor: bfloat16 or float16 in tensor cores, without sparsity.
    """

    float32: float
    tensor: float


PEAKS = {
    "NVIDIA H200": Peak(67, 989),
    "NVIDIA H100": Peak(67, 989),
    "NVIDIA A100": Peak(19.5, 312),
    "NVIDIA L40S": Peak(91.6, 362),
    "NVIDIA A10": Peak(31.2, 125),
    "Tesla V100": Peak(15.7, 125),
    "Tesla T4": Peak(8.1, 65),
}
"""By the beginning of the card's name. No training reaches them; half of them is good."""


def peak(name: str) -> Peak:
    """Return the peak of a card.

    Raises:
        CoalmineError: its data sheet is not known here.
    """
    found = [key for key in PEAKS if name.lower().startswith(key.lower())]
    if not found:
        raise CoalmineError(f"The peak of {name!r} is not known; there is {', '.join(PEAKS)}.")
    return PEAKS[max(found, key=len)]


def card() -> str | None:
    """Return the name of the first GPU here, None if there is none."""
    if shutil.which("nvidia-smi") is None:
        return None
    asked = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    told = subprocess.run(asked, capture_output=True, text=True, check=False)
    names = told.stdout.strip().splitlines() if told.returncode == 0 else []
    return names[0].strip() if names else None


def processor() -> str:
    """Return the processor's name, as ``coalmine.training.device.device_name`` writes it beside artefacts."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
