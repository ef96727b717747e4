"""Query the audited models: fixed views of the audited samples, and the test images as they are."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import torch
from pydantic import TypeAdapter

from coalmine.artefacts import check_header, read_npz, read_safetensors, write_npz
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
    arguments = command.parse_args()
    spec = arguments.spec
    outputs = [path for path in arguments.out if path.suffix == ".npz"]
    numbers = [_command.shadow_number(path) for path in outputs]
    progress = reporter(f"{spec['method']} {_command.describe(numbers)}")
    device, _ = _models.execution(arguments)
    data = _models.private_data(arguments)
    test = read_images(*arguments.test)
    digests = data.digests()

    models = {_command.shadow_number(path): path for path in arguments.models if path.suffix == ".safetensors"}
    contents = {}
    for shadow in numbers:
        header, state = read_safetensors(models[shadow])
        check_header(
            models[shadow],
            header,
            spec__method=spec["method"],
            spec__model=spec["model"],
            shadow=shadow,
            inputs__design=digests["design"],
            inputs__private=digests["private"],
        )
        contents[shadow] = header, state
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
        arrays = {"canary_logits": query(canaries, views=views), "test_logits": query(test.images)[:, 0]}
        write_npz(batch.stash(shadow), batch.headers[shadow], arrays)
        size = batch.stash(shadow).stat().st_size
        batch.finish(shadow, _models.measurements(watch.lap(), device, size))
    progress(f"{len(views)} views of {len(canaries)} audited samples, {len(test.labels):,} test images queried")
    batch.publish()


if __name__ == "__main__":
    _command.run(main)
