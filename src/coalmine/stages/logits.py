"""Query the audited models: fixed views of the audited samples; test and synthetic images as they are."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter

from coalmine.artefacts import Header, check_header, read_npz, read_safetensors, write_npz
from coalmine.errors import CoalmineError
from coalmine.models.settings import ModelSettings
from coalmine.progress import reporter
from coalmine.run_files import read_images
from coalmine.stages import _command, _models
from coalmine.stages._batch import Batch
from coalmine.training.augment import fixed_views
from coalmine.training.inference import predict
from coalmine.training.recipe import Normalisation


def main() -> None:
    """Read each model, query it, write its logits."""
    command = _command.parser(__doc__)
    _models.add_private_data(command)
    _models.add_execution(command)
    _command.add_test_data(command)
    command.add_argument("--models", type=Path, nargs="+", required=True, help="models of the shadow models")
    command.add_argument("--synthetic", type=Path, nargs="*", default=[], help="synthetic sets that they learned from")
    arguments = command.parse_args()
    spec = arguments.spec
    outputs = [path for path in arguments.out if path.suffix == ".npz"]
    numbers = [_command.shadow_number(path) for path in outputs]
    progress = reporter(f"{spec['method']} {_command.describe(numbers)}")
    device, _ = _models.execution(arguments)
    data = _models.private_data(arguments)
    test = read_images(*arguments.test)
    digests = data.digests()

    models = _models.by_shadow(arguments.models, ".safetensors")
    synthetic = _models.by_shadow(arguments.synthetic, ".npz")
    contents = {shadow: _read_model(models[shadow], shadow, spec, digests) for shadow in numbers}
    made = {shadow: _synthetic_images(synthetic.get(shadow), models[shadow], contents[shadow][0]) for shadow in numbers}
    base = _command.header("logits", spec)
    batch = Batch(
        outputs,
        lambda shadow: {**base, "shadow": shadow, "inputs": {**digests, "model": contents[shadow][0]}},
        lambda path: read_npz(path)[0],
        progress,
    )

    model = TypeAdapter(ModelSettings).validate_json(json.dumps(spec["model"]))
    normalisation = Normalisation.model_validate_json(json.dumps(spec["normalisation"]))
    views = fixed_views(spec["views"]["flip"], spec["views"]["shift"])
    canaries = data.images[data.design.index]
    watch = _command.Stopwatch()
    for shadow in batch.waiting:
        synthetic_images = made[shadow]
        weights = {name: torch.from_numpy(array) for name, array in contents[shadow][1].items()}
        query = partial(
            predict,
            model,
            weights,
            normalisation=normalisation,
            classes=len(data.classes),
            device=device,
            precision=spec["precision"],
        )
        arrays = {
            "canary_logits": query(canaries, views=views),
            "test_logits": query(test.images)[:, 0],
            "synthetic_logits": query(test.images[:0] if synthetic_images is None else synthetic_images)[:, 0],
        }
        write_npz(batch.stash(shadow), batch.headers[shadow], arrays)
        size = batch.stash(shadow).stat().st_size
        batch.finish(shadow, _models.measurements(watch.lap(), device, size))
    progress(f"{len(views)} views of {len(canaries)} audited samples, {len(test.labels):,} test images queried")
    batch.publish()


def _read_model(
    path: Path, shadow: int, spec: dict[str, Any], digests: dict[str, str]
) -> tuple[Header, dict[str, np.ndarray]]:
    """Read header and weights of a model, and refuse another method's, shadow model's or run's."""
    header, weights = read_safetensors(path)
    check_header(
        path,
        header,
        spec__method=spec["method"],
        spec__model=spec["model"],
        shadow=shadow,
        inputs__design=digests["design"],
        inputs__private=digests["private"],
    )
    return header, weights


def _synthetic_images(path: Path | None, model: Path, header: Header) -> np.ndarray | None:
    """Read the images of the synthetic set that a model learned from, if it did; refuse another set."""
    spec, inputs, distilled = header["spec"], header["inputs"], header["stage"] == "distil"
    if path is None and (distilled or "synthetic" in inputs):
        raise CoalmineError(f"{model} was trained on a synthetic set, which is needed here: --synthetic")
    if path is None:
        return None
    read = _models.read_synthetic(path, spec.get("set", spec["method"]), header["shadow"], inputs["design"])
    if distilled:
        _check_made_together(path, model, header)
    else:
        check_header(model, header, inputs__synthetic=_models.digest_of_set(path))
    return read.images


def _check_made_together(path: Path, model: Path, header: Header) -> None:
    """Refuse a synthetic set and a model that were not made by one and the same ``distil`` job."""
    other, _ = read_npz(path, source=("int64", (None,)))
    differing = sorted(name for name in {*header, *other} if header.get(name) != other.get(name))
    if differing:
        raise CoalmineError(
            f"{path} and {model} were not made together: their headers differ in {', '.join(differing)}. Delete both "
            "and run Snakemake again: it makes them anew."
        )


if __name__ == "__main__":
    _command.run(main)
