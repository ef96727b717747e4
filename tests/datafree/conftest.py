"""A small trained teacher with batch norm, and a set-up for its students."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from coalmine.data.sources import digits
from coalmine.models.settings import SmallNet
from coalmine.shadows import Setup, Teacher
from coalmine.training.loop import ModelGenerators, train
from coalmine.training.recipe import Augmentation, Normalisation, Recipe
from coalmine.training.sets import TrainingSet

NORMALISATION = Normalisation(mean=(0.3,), std=(0.35,))
NETWORK = SmallNet(width=8, hidden=32)


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def real() -> tuple[np.ndarray, np.ndarray]:
    """Handwritten digits, images and labels."""
    train_set = digits.load(digits.Settings(), [], np.random.default_rng(0)).train
    return train_set.images[:600], train_set.labels[:600]


@pytest.fixture(scope="session")
def teacher(real: tuple[np.ndarray, np.ndarray]) -> Teacher:
    """The teacher of shadow model 3."""
    images, labels = real
    recipe = Recipe(epochs=12, batch_size=32, schedule="cosine", augmentation=Augmentation(flip=False, shift=0))
    (trained,) = train(
        NETWORK,
        [TrainingSet(images, labels)],
        recipe,
        NORMALISATION,
        [ModelGenerators.named(0, "teacher")],
        10,
        device=torch.device("cpu"),
    )
    return Teacher(3, NETWORK, trained.state, channels=1, image_size=8, classes=10)


@pytest.fixture
def make_setup() -> Callable[..., Setup]:
    """Return a function that makes a set-up for a small student, with changes to its recipe."""

    def setup(**changes: Any) -> Setup:
        recipe = {
            "epochs": 3,
            "batch_size": 32,
            "schedule": "cosine",
            "augmentation": Augmentation(flip=False, shift=1),
        }
        return Setup(
            method="tested",
            seed=0,
            model=NETWORK,
            recipe=Recipe(**{**recipe, **changes}),
            normalisation=NORMALISATION,
            classes=10,
            device=torch.device("cpu"),
            mode="sequential",
            progress=lambda line: None,
        )

    return setup
