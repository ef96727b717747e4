"""What stages share that compare images by the features of a network that public data have trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter

from coalmine.artefacts import Header, check_header, read_safetensors
from coalmine.models.settings import ModelSettings
from coalmine.training.inference import embed
from coalmine.training.recipe import Normalisation, Recipe


def read_features(
    path: Path, spec: dict[str, Any], device: torch.device
) -> tuple[Header, Callable[[np.ndarray], np.ndarray]]:
    """Read a network of the ``pretrain`` stage; return its header and what maps images to its features."""
    header, weights = read_safetensors(path)
    check_header(path, header, stage="pretrain", spec__normalisation=spec["normalisation"])
    model = TypeAdapter(ModelSettings).validate_json(json.dumps(header["spec"]["model"]))
    recipe = Recipe.model_validate_json(json.dumps(header["spec"]["training"]))
    normalisation = Normalisation.model_validate_json(json.dumps(spec["normalisation"]))
    state = {name: torch.from_numpy(array) for name, array in weights.items()}

    def features(images: np.ndarray) -> np.ndarray:
        of_images, _ = embed(
            model, state, images, normalisation, header["classes"], device=device, precision=recipe.precision
        )
        return of_images

    return header, features
