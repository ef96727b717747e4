"""Tiny real data with an audit design, and what methods are given besides."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from coalmine.audit.design import draw_design
from coalmine.data.sources import digits
from coalmine.models.settings import MLP
from coalmine.shadows import PrivateData, Setup
from coalmine.training.recipe import Augmentation, Normalisation, Recipe

sys.path.append(str(Path(__file__).parents[1] / "diffusion"))  # tiny.py


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def private_digits() -> Callable[..., PrivateData]:
    """Return a function that lays a design over the first handwritten digits."""
    train = digits.load(digits.Settings(), [], np.random.default_rng(0)).train

    def private(samples: int, canaries: int, shadows: int = 6) -> PrivateData:
        images, labels = train.images[:samples], train.labels[:samples]
        return PrivateData(images, labels, digits.CLASSES, draw_design(labels, 10, shadows, canaries))

    return private


@pytest.fixture
def make_setup() -> Callable[..., Setup]:
    """Return a function that makes a set-up for a small network, with changes to its recipe."""

    def setup(mode: str = "sequential", hidden: int = 16, **changes: Any) -> Setup:
        recipe = {"epochs": 4, "batch_size": 32, "schedule": "cosine", "augmentation": Augmentation(flip=True, shift=1)}
        return Setup(
            method="tested",
            seed=0,
            model=MLP(hidden=(hidden,)),
            recipe=Recipe(**{**recipe, **changes}),
            normalisation=Normalisation(mean=(0.3,), std=(0.35,)),
            classes=10,
            public=None,
            device=torch.device("cpu"),
            mode=mode,
            progress=lambda line: None,
        )

    return setup
