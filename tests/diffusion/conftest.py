"""What all tests of diffusion share."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Compute on one thread; import what takes seconds before the first test does."""
    import diffusers.models.unets.unet_2d  # noqa: F401
    import peft  # noqa: F401

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
