"""States of networks and optimisers as flat dictionaries of tensors, and these as arrays, for a checkpoint to hold."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch


def as_arrays(tensors: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Return tensors of any device as arrays, which may share their memory."""
    return {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in tensors.items()}


def as_tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Return copies of the arrays that are numbers as tensors on the CPU."""
    return {name: torch.from_numpy(array.copy()) for name, array in arrays.items() if array.dtype.kind in "biuf"}


def prefixed(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors under ``prefix/name``."""
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return what stands under a prefix, by the names without it."""
    start = f"{prefix}/"
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def of_optimiser(optimiser: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return an optimiser's moments and counts, as ``parameter/quantity``."""
    state = optimiser.state_dict()["state"]
    return {f"{number}/{name}": tensor for number, own in state.items() for name, tensor in own.items()}


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """Take up what ``of_optimiser`` returned."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        number, quantity = name.split("/")
        state.setdefault(int(number), {})[quantity] = tensor
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
