"""Train a classifier on public data, whose features compare images: made once, shared by all shadow models."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import TypeAdapter

from coalmine.artefacts import digest, sidecar, write_json, write_safetensors
from coalmine.checkpoint import Checkpoint
from coalmine.data.images import ImageSet
from coalmine.errors import CoalmineError
from coalmine.models.settings import ModelSettings
from coalmine.progress import reporter
from coalmine.run_files import read_images
from coalmine.stages import _command, _models
from coalmine.training.inference import predict
from coalmine.training.loop import ModelGenerators, train
from coalmine.training.recipe import Normalisation, Recipe
from coalmine.training.sets import TrainingSet


def class_count(public: ImageSet, path: Path) -> int:
    """Return the number of classes of the public labels, refused where there is nothing to tell apart."""
    classes = int(public.labels.max(initial=-1)) + 1
    if classes < 2:
        raise CoalmineError(
            f"{path}: {len(public.labels)} public labels of {classes} classes; a network learns features by telling at "
            "least 2 classes apart. Choose other public data, or leave the network out (visual.features: null)."
        )
    return classes


def main() -> None:
    """Read the public images, train, write weights and measurements."""
    command = _command.parser(__doc__)
    _models.add_execution(command)
    command.add_argument("--public", type=Path, nargs=2, metavar=("IMAGES", "LABELS"), required=True, help="its data")
    arguments = command.parse_args()
    spec = arguments.spec
    progress = reporter(f"pretrain {spec['name']}")
    device, mode = _models.execution(arguments)
    public = read_images(*arguments.public)
    classes = spec.get("classes") or class_count(public, arguments.public[1])

    model = TypeAdapter(ModelSettings).validate_json(json.dumps(spec["model"]))
    recipe = Recipe.model_validate_json(json.dumps(spec["training"]))
    normalisation = Normalisation.model_validate_json(json.dumps(spec["normalisation"]))
    (weights,) = (path for path in arguments.out if path.suffix == ".safetensors")
    inputs = {"public": digest(public.images, public.labels)}
    header = _command.header("pretrain", spec, classes=classes, inputs=inputs)
    # Snakemake deletes the declared outputs of a job that is killed, so the checkpoint is none of them.
    checkpoint = Checkpoint(weights.parent / ".unfinished" / f"{weights.stem}.npz", header)
    (trained,) = train(
        model,
        [TrainingSet(images=public.images, labels=public.labels)],
        recipe,
        normalisation,
        [ModelGenerators.named(spec["seed"], "pretrain", spec["name"])],
        classes,
        device=device,
        mode=mode,
        progress=progress,
        names=[spec["name"]],
        checkpoint=lambda _: checkpoint,
    )
    write_safetensors(weights, header, {name: tensor.numpy() for name, tensor in trained.state.items()})
    write_json(sidecar(weights), _models.measurements(trained.seconds, device, weights.stat().st_size))
    checkpoint.remove()

    logits = predict(
        model, trained.state, public.images, normalisation, classes, device=device, precision=recipe.precision
    )
    right = (logits[:, 0].argmax(axis=1) == public.labels).mean()
    progress(f"{model.name} trained on {len(public):,} public images of {classes} classes, {right:.1%} of them right")


if __name__ == "__main__":
    _command.run(main)
