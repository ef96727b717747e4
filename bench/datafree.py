"""Accuracy and cost of data-free distillation on CIFAR-10: one teacher, one student a method, no audit, one seed.

    python bench/datafree.py teach DATA FOLDER                                  (minutes)
    python bench/datafree.py distil DATA FOLDER --methods fast dfq              (an hour or so each, resumable)
    python bench/datafree.py report FOLDER --json FILE --picture FILE

DATA is CIFAR-10 as an image folder or archive (``coalmine.data.sources.image_folder``). The loop is the package's,
called as the workflow calls it. ``cpu`` has small residual networks and short schedules, so that each run fits an hour
on one thread; ``paper`` has WRN-40-2 teach WRN-16-1 with the published settings. Test data are looked at once, by the
finished networks.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from coalmine.artefacts import read_json, read_npz, read_safetensors, write_json, write_npz, write_safetensors
from coalmine.audit.visual import Euclidean, nearest
from coalmine.checkpoint import Checkpoint
from coalmine.data.images import Splits
from coalmine.data.sources import image_folder
from coalmine.datafree.settings import ALGORITHMS
from coalmine.methods import dfkd
from coalmine.models.settings import ModelSettings, ResNet, WideResNet
from coalmine.shadows import Setup, Teacher
from coalmine.training.device import device_name, resolve_device
from coalmine.training.inference import predict
from coalmine.training.loop import ModelGenerators, train
from coalmine.training.recipe import Normalisation, Recipe
from coalmine.training.sets import TrainingSet

NORMALISATION = Normalisation(mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010))
CLASSES = 10

PUBLISHED = {
    "teacher": 94.87,
    "dafl": 65.71,
    "zskt": 83.74,
    "deepinversion": 83.04,
    "dfq": 86.14,
    "cmi": 90.01,
    "fast": 88.90,
}
"""CIFAR-10, WRN-40-2 teaches WRN-16-1, test accuracy in % (Fast-Datafree's readme; ``fast`` with 5 steps)."""

COLUMNS = 16
"""Images of each method that are drawn."""

SMALL = {"batch_size": 128, "width": 32}

SETTINGS: dict[str, dict[str, Any]] = {
    "cpu": {
        "teacher": ResNet(width=16, blocks=(1, 1, 1)),
        "student": ResNet(width=16, blocks=(1, 1, 1)),
        "teaching": {"epochs": 20, "batch_size": 128, "schedule": "cosine", "milestones": ()},
        "dafl": (60, {**SMALL, "rounds": 20}),
        "dfad": (60, {**SMALL, "rounds": 20}),
        "zskt": (60, {**SMALL, "rounds": 10}),
        "dfq": (60, {**SMALL, "rounds": 10}),
        "deepinversion": (60, {**SMALL, "generator_steps": 100, "distillation_steps": 100}),
        "cmi": (60, {**SMALL, "generator_steps": 50, "distillation_steps": 100, "negatives": 1024}),
        "fast": (180, {**SMALL, "distillation_steps": 50}),
        "reduced": (180, {**SMALL, "passes": None, "distillation_steps": 50}),
    },
    "paper": {
        "teacher": WideResNet(depth=40, widen=2),
        "student": WideResNet(depth=16, widen=1),
        "teaching": {"epochs": 200},
        **{name: (200, {}) for name in ("dafl", "dfad", "zskt", "dfq", "deepinversion", "cmi", "fast")},
        "reduced": (220, {}),
    },
}
"""Per setting: networks, the teacher's recipe, and each method's epochs and what differs from its published row."""


def recipe_of(epochs: int) -> Recipe:
    """Return the students' recipe: that of the public code, but for the rate's course at the very end."""
    return Recipe(epochs=epochs, batch_size=128, learning_rate=0.1, weight_decay=1e-4, schedule="cosine", milestones=())


def read_data(path: Path) -> Splits:
    """Return training and test images."""
    return image_folder.load(image_folder.Settings(path=str(path)), [path], np.random.default_rng(0))


def accuracy(model: ModelSettings, state: dict[str, torch.Tensor], data: Splits, device: torch.device) -> float:
    """Return the test accuracy in %."""
    logits = predict(model, state, data.test.images, NORMALISATION, CLASSES, device=device)[:, 0]
    return round(100 * float((logits.argmax(axis=1) == data.test.labels).mean()), 2)


def teach(data: Splits, folder: Path, preset: str, device: torch.device) -> None:
    """Train the teacher on all training images."""
    own = SETTINGS[preset]
    (trained,) = train(
        own["teacher"],
        [TrainingSet(data.train.images, data.train.labels)],
        Recipe(**own["teaching"]),
        NORMALISATION,
        [ModelGenerators.named(0, "bench", "teacher")],
        CLASSES,
        device=device,
        progress=lambda line: print(line, flush=True),
    )
    weights = {name: tensor.numpy() for name, tensor in trained.state.items()}
    found = {"accuracy": accuracy(own["teacher"], trained.state, data, device), "seconds": round(trained.seconds)}
    write_safetensors(folder / "teacher.safetensors", {"preset": preset, "device": device_name(device)}, weights)
    write_json(folder / "teacher.json", found)
    print(found, flush=True)


def distil(data: Splits, folder: Path, preset: str, method: str, device: torch.device) -> None:
    """Make one student and keep what is to be reported of it."""
    own = SETTINGS[preset]
    epochs, changes = own[method]
    _, weights = read_safetensors(folder / "teacher.safetensors")
    teacher = Teacher(
        number=0,
        model=own["teacher"],
        state={name: torch.from_numpy(array) for name, array in weights.items()},
        channels=3,
        image_size=data.train.images.shape[1],
        classes=CLASSES,
    )
    settings = dfkd.Settings(algorithm=method, **changes)
    where = folder / f"{method}.checkpoint.npz"
    setup = Setup(
        method=method,
        seed=0,
        model=own["student"],
        recipe=recipe_of(epochs),
        normalisation=NORMALISATION,
        classes=CLASSES,
        device=device,
        mode="sequential",
        progress=lambda line: print(f"{method}: {line}", flush=True),
        checkpoint=lambda _: Checkpoint(where, {"bench": method, "settings": settings.model_dump(mode="json")}),
    )
    (made,) = dfkd.distil([teacher], settings, setup)
    images = made.synthetic.images
    near = nearest(Euclidean(), images, data.train.images)
    held_out = nearest(Euclidean(), images, data.test.images)
    found = {
        "accuracy": accuracy(own["student"], dict(made.state), data, device),
        "synthesis_seconds": round(made.synthesis_seconds),
        "training_seconds": round(made.training_seconds),
        "confidence": round(float(made.synthetic.labels.max(axis=1).mean()), 4),
        "classes": np.bincount(made.synthetic.labels.argmax(axis=1), minlength=CLASSES).tolist(),
        # Of 50,000 and of 10,000 images: the former are the nearer ones by their number alone.
        "distance_to_training": round(float(near.distance.mean()), 3),
        "distance_to_test": round(float(held_out.distance.mean()), 3),
        "epochs": epochs,
        "settings": settings.model_dump(mode="json"),
    }
    shown = {"images": images[:COLUMNS], "nearest": data.train.images[near.index[:COLUMNS]]}
    write_npz(folder / f"{method}.npz", {"preset": preset}, shown)
    write_json(folder / f"{method}.json", found)
    where.unlink(missing_ok=True)
    print(method, {name: value for name, value in found.items() if name != "settings"}, flush=True)


def report(folder: Path, preset: str, file: Path, picture: Path) -> None:
    """Gather what was found into one file, and draw images of each method above their nearest training images."""
    from coalmine.reporting import style

    found = {name: read_json(folder / f"{name}.json") for name in ALGORITHMS if (folder / f"{name}.json").exists()}
    header, _ = read_safetensors(folder / "teacher.safetensors")
    results = {
        "preset": preset,
        "device": header["device"],
        "torch": torch.__version__,
        "published": PUBLISHED,
        "teacher": read_json(folder / "teacher.json"),
        "students": found,
    }
    write_json(file, results)
    with style.context():
        figure, panels = style.new_figure(1.35 * len(found) + 0.2, (2 * len(found), COLUMNS))
        for row, name in enumerate(found):
            _, shown = read_npz(folder / f"{name}.npz")
            for part, kind in enumerate(("images", "nearest")):
                for column in range(COLUMNS):
                    axes = panels[(2 * row + part) * COLUMNS + column]
                    axes.imshow(shown[kind][column], interpolation="nearest")
                    axes.set_axis_off()
            head = f"{name}: early images above the training images that they are nearest to"
            text = panels[2 * row * COLUMNS].annotate(
                head, (0, 1), (0, 4), xycoords="axes fraction", textcoords="offset points", fontsize=8
            )
            text.set_in_layout(False)
        figure.savefig(picture, dpi=160)


def main() -> None:
    """Read the command line."""
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    stages = command.add_subparsers(dest="stage", required=True)
    for name in ("teach", "distil", "report"):
        stage = stages.add_parser(name)
        if name != "report":
            stage.add_argument("data", type=Path)
        stage.add_argument("folder", type=Path)
        stage.add_argument("--setting", choices=SETTINGS, default="cpu")
        stage.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
        stage.add_argument("--threads", type=int, default=1)
        if name == "distil":
            stage.add_argument("--methods", nargs="+", default=["fast"])
        if name == "report":
            stage.add_argument("--json", type=Path, required=True)
            stage.add_argument("--picture", type=Path, required=True)
    arguments = command.parse_args()
    torch.set_num_threads(arguments.threads)
    device = resolve_device(arguments.device)
    if arguments.stage == "report":
        report(arguments.folder, arguments.setting, arguments.json, arguments.picture)
        return
    arguments.folder.mkdir(parents=True, exist_ok=True)
    data = read_data(arguments.data)
    if arguments.stage == "teach":
        teach(data, arguments.folder, arguments.setting, device)
        return
    for method in arguments.methods:
        distil(data, arguments.folder, arguments.setting, method, device)


if __name__ == "__main__":
    main()
