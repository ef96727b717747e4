"""Images, accuracy and cost of diffusion on CIFAR-10: from scratch, and differentially private. No audit, one seed.

    python bench/diffusion.py fit DATA FOLDER --row scratch              (an hour on one thread, resumable)
    python bench/diffusion.py fit DATA FOLDER --row public               (pre-training for the next)
    python bench/diffusion.py fit DATA FOLDER --row private
    python bench/diffusion.py draw DATA FOLDER --row scratch             (and private)
    python bench/diffusion.py measure DATA FOLDER
    python bench/diffusion.py report FOLDER --json FILE --picture FILE

DATA is CIFAR-10 as an image folder or archive (``coalmine.data.sources.image_folder``). Half of the training images are
private; the other half stands for public data, so that there is no gap between the two, which flatters the private row:
real public data are further away. Everything is the package's, called as the workflow calls it. ``cpu`` shrinks images
to 16x16 and has a small network and short schedules; ``paper`` keeps 32x32. Test data are looked at once, by the
finished classifiers.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from coalmine import budget
from coalmine.artefacts import read_json, read_npz, write_json, write_npz, write_safetensors
from coalmine.audit.quality import frechet_distance, nearest_ratio, precision_recall
from coalmine.checkpoint import Checkpoint
from coalmine.data.images import ImageSet, Splits
from coalmine.data.sources import image_folder
from coalmine.diffusion import denoiser
from coalmine.diffusion.settings import Fit, Pretraining, PrivateFit, Sampling
from coalmine.models.settings import ModelSettings, ResNet, WideResNet
from coalmine.shadows import Setup, Shadow
from coalmine.training.device import device_name, resolve_device
from coalmine.training.inference import embed, predict
from coalmine.training.loop import ModelGenerators, train
from coalmine.training.recipe import Augmentation, Normalisation, Recipe
from coalmine.training.sets import TrainingSet

CLASSES = 10
NORMALISATION = Normalisation(mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010))
ROWS = ("scratch", "private")
SHOWN = 10

FLIP = Augmentation(flip=True, shift=0)
MODERATE: dict[str, Any] = {
    "network": {"width": 32, "multipliers": (1, 2, 2), "blocks": 1, "attention": (2,)},
    "objective": {"name": "edm"},
}
LARGE: dict[str, Any] = {
    "network": {"width": 128, "multipliers": (2, 2, 2), "blocks": 2, "attention": (1,)},
    "objective": {"name": "edm"},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "cpu": {
        "size": 16,
        "start": MODERATE,
        "scratch": {"steps": 1000, "batch_size": 64, "learning_rate": 1e-3, "warmup": 200, "augmentation": FLIP},
        "public": {"steps": 2500, "batch_size": 64, "learning_rate": 1e-3, "warmup": 200, "augmentation": FLIP},
        "private": {
            **{"epsilon": 10.0, "steps": 60, "batch_size": 256, "views": 4, "clip": 0.1, "micro_batch": 32},
            **{"learning_rate": 1e-3, "average": 0.95, "augmentation": FLIP},
        },
        "sampling": Sampling(levels=15, clip=True, images_at_once=256),
        "images": 4000,
        "classifier": ResNet(width=16, blocks=(1, 1, 1)),
        "recipe": Recipe(epochs=10, batch_size=128, schedule="cosine", milestones=(), augmentation={"shift": 2}),
    },
    "paper": {
        "size": 32,
        "start": LARGE,
        "scratch": {"steps": 200_000, "batch_size": 512, "warmup": 5000, "average": 0.9999, "augmentation": FLIP},
        "public": {"steps": 200_000, "batch_size": 512, "warmup": 5000, "average": 0.9999, "augmentation": FLIP},
        "private": {
            **{"epsilon": 10.0, "steps": 1800, "batch_size": 2048, "views": 32, "clip": 0.001, "micro_batch": 16},
            **{"learning_rate": 3e-4, "augmentation": FLIP},
        },
        "sampling": Sampling(levels=18, solver="heun", guidance=0.5, images_at_once=1024),
        "images": 50_000,
        "classifier": WideResNet(depth=40, widen=4),
        "recipe": Recipe(),
    },
}
"""Per setting: size of the images, network, the three schedules, sampling, and the downstream classifier."""


def read_data(path: Path, size: int) -> tuple[ImageSet, ImageSet, ImageSet]:
    """Return private, public and test images: the training images are halved at random."""
    own = image_folder.Settings(path=str(path), image_size=size)
    whole: Splits = image_folder.load(own, [path], np.random.default_rng(0))
    order = np.random.default_rng(0).permutation(len(whole.train.labels))
    halves = np.array_split(order, 2)
    private, public = (ImageSet(whole.train.images[half], whole.train.labels[half]) for half in halves)
    return private, public, whole.test


def setup_of(row: str, folder: Path, preset: str, device: torch.device, **further: Any) -> Setup:
    """Return what the package's functions are given."""
    own = SETTINGS[preset]
    return Setup(
        method=row,
        seed=0,
        model=own["classifier"],
        recipe=own["recipe"],
        normalisation=NORMALISATION,
        classes=CLASSES,
        device=device,
        mode="sequential",
        progress=lambda line: print(f"{row}: {line}", flush=True),
        generator=lambda _: folder / f"{row}.safetensors",
        **further,
    )


def shadow_of(data: ImageSet) -> Shadow:
    """Return all of the data as those of one shadow model; nothing is audited."""
    index = np.arange(len(data.labels))
    return Shadow(0, data.images, index, data.labels, index[:0])


def fit(row: str, data: ImageSet, folder: Path, preset: str, device: torch.device) -> None:
    """Train one denoiser, from the last checkpoint on."""
    own = SETTINGS[preset]
    block: Fit | PrivateFit
    if row == "private":
        block = PrivateFit(pretrained="public", classes="kept", **own["private"])
    else:
        block = Fit(**own["start"], **own[row])
    fitting = block.model_dump(mode="json")
    start = {"name": "public", "settings": read_header(folder, "public")["settings"]} if row == "private" else None
    spec = {"settings": {"fit": fitting}, "pretrained": start}
    mechanism = budget.guarantee(block, len(data.labels)) if isinstance(block, PrivateFit) else None
    setup = setup_of(
        row,
        folder,
        preset,
        device,
        mechanism=mechanism and mechanism.mechanism,
        pretrained=folder / "public.safetensors" if row == "private" else None,
        checkpoint=lambda _: Checkpoint(folder / f"{row}.checkpoint.npz", {"bench": row, **spec}),
    )
    (fitted,) = denoiser.fit([shadow_of(data)], block, setup)
    shape = {"channels": data.images.shape[3], "image_size": data.images.shape[1], "classes": CLASSES}
    if row == "public":
        spec["settings"] = as_pretraining(fitting)
    weights = {name: tensor.numpy() for name, tensor in fitted.state.items()}
    write_safetensors(folder / f"{row}.safetensors", {"spec": spec, "shape": shape}, weights)
    found: dict[str, Any] = {
        "images": len(data.labels),
        "seconds": round(fitted.seconds),
        "settings": fitting,
        "parameters": sum(array.size for array in weights.values()),
    }
    if mechanism:
        found["guarantee"] = {"epsilon": mechanism.epsilon, "delta": mechanism.delta, **vars(mechanism.mechanism)}
    write_json(folder / f"{row}.fit.json", found)
    (folder / f"{row}.checkpoint.npz").unlink(missing_ok=True)
    print(row, found, flush=True)


def read_header(folder: Path, row: str) -> dict[str, Any]:
    """Return the spec in the header of a denoiser."""
    from coalmine.artefacts import read_safetensors_header

    spec: dict[str, Any] = read_safetensors_header(folder / f"{row}.safetensors")["spec"]
    return spec


def as_pretraining(block: dict[str, Any]) -> dict[str, Any]:
    """Return what an entry of `pretrained` would say of a denoiser that was trained by this block."""
    known = {name: block[name] for name in Pretraining.model_fields}
    settings: dict[str, Any] = json.loads(Pretraining.model_validate_json(json.dumps(known)).model_dump_json())
    return settings


def draw(row: str, data: ImageSet, folder: Path, preset: str, device: torch.device) -> None:
    """Draw the synthetic set of a denoiser."""
    import time

    own = SETTINGS[preset]
    header = {"bench": row, "spec": read_header(folder, row), "sampling": own["sampling"].model_dump(mode="json")}
    where = Checkpoint(folder / f"{row}.drawing.npz", header)
    setup = setup_of(row, folder, preset, device, checkpoint=lambda _: where)
    start = time.perf_counter()
    wanted = denoiser.from_noise(own["images"], CLASSES)
    made = denoiser.draw(shadow_of(data), wanted, own["sampling"], setup)
    write_npz(folder / f"{row}.npz", {**header, "seconds": round(time.perf_counter() - start)}, made.arrays())
    where.remove()


def classifier(name: str, data: ImageSet, preset: str, device: torch.device) -> dict[str, torch.Tensor]:
    """Train the downstream classifier."""
    own = SETTINGS[preset]
    (trained,) = train(
        own["classifier"],
        [TrainingSet(data.images, data.labels)],
        own["recipe"],
        NORMALISATION,
        [ModelGenerators.named(0, "bench", name)],
        CLASSES,
        device=device,
        progress=lambda line: print(f"classifier of {name}: {line}", flush=True),
    )
    return trained.state


def accuracy(model: ModelSettings, state: dict[str, torch.Tensor], test: ImageSet, device: torch.device) -> float:
    """Return the test accuracy in %."""
    logits = predict(model, state, test.images, NORMALISATION, CLASSES, device=device)[:, 0]
    return round(100 * float((logits.argmax(axis=1) == test.labels).mean()), 2)


def sets(folder: Path) -> Iterator[tuple[str, ImageSet, int]]:
    """Yield the synthetic sets that there are, with the seconds that they took to draw."""
    for row in ROWS:
        if (folder / f"{row}.npz").exists():
            header, arrays = read_npz(folder / f"{row}.npz")
            yield row, ImageSet(arrays["images"], arrays["labels"]), header["seconds"]


def measure(data: tuple[ImageSet, ImageSet, ImageSet], folder: Path, preset: str, device: torch.device) -> None:
    """Measure every synthetic set: distance, precision and recall, nearness, and what a classifier learns from it."""
    private, public, test = data
    model = SETTINGS[preset]["classifier"]
    features = classifier("public", public, preset, device)

    def represented(images: np.ndarray) -> np.ndarray:
        found, _ = embed(model, features, images, NORMALISATION, CLASSES, device=device)
        return np.asarray(found, dtype=np.float64)

    real, held_out = represented(private.images), represented(test.images)
    count = len(test.labels)
    reference = {
        "accuracy": accuracy(model, classifier("private", private, preset, device), test, device),
        "public_accuracy": accuracy(model, features, test, device),
        "distance_of_test": round(frechet_distance(real, held_out), 4),
    }
    found: dict[str, Any] = {"real": reference}
    for row, made, seconds in sets(folder):
        seen = represented(made.images)
        precision, recall = precision_recall(real[:count], seen[:count], 3)
        near = nearest_ratio(seen, real[:count], held_out)
        found[row] = {
            **read_json(folder / f"{row}.fit.json"),
            "drawn": len(made.labels),
            "drawing_seconds": seconds,
            "distance": round(frechet_distance(real, seen), 4),
            "precision": round(precision, 4),
            "recall": round(recall, 4),
            "nearest_balanced": round(float(near.balance.mean()), 4),
            "accuracy": accuracy(model, classifier(row, made, preset, device), test, device),
        }
        print(row, {name: value for name, value in found[row].items() if name != "settings"}, flush=True)
    write_json(folder / "measured.json", found)


def report(folder: Path, preset: str, file: Path, picture: Path) -> None:
    """Gather what was found into one file, and draw ten images of each class."""
    from coalmine.reporting import style

    results = {
        "preset": preset,
        "device": device_name(resolve_device("auto")),
        "torch": torch.__version__,
        "space": "features of the classifier, trained on the public half",
        **read_json(folder / "measured.json"),
        "public": read_json(folder / "public.fit.json"),
    }
    write_json(file, results)
    made = [*sets(folder)]
    with style.context():
        figure, panels = style.new_figure(3.4, (1, len(made)))
        for axes, (row, data, _) in zip(panels, made, strict=True):
            axes.imshow(tiles(data), interpolation="nearest")
            axes.set_title(row, loc="left", fontsize=9)
            axes.set_axis_off()
        figure.savefig(picture, dpi=160)


def tiles(data: ImageSet) -> np.ndarray:
    """Return the first images of each class side by side, one row a class, (height, width, channel)."""
    rows = [data.images[data.labels == label][:SHOWN] for label in range(CLASSES)]
    return np.concatenate([np.concatenate([*row], axis=1) for row in rows], axis=0)


def main() -> None:
    """Read the command line."""
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    stages = command.add_subparsers(dest="stage", required=True)
    for name in ("fit", "draw", "measure", "report"):
        stage = stages.add_parser(name)
        if name != "report":
            stage.add_argument("data", type=Path)
        stage.add_argument("folder", type=Path)
        stage.add_argument("--setting", choices=SETTINGS, default="cpu")
        stage.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
        stage.add_argument("--threads", type=int, default=1)
        if name in ("fit", "draw"):
            rows = ("scratch", "public", "private") if name == "fit" else ROWS
            stage.add_argument("--row", choices=rows, required=True)
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
    private, public, test = read_data(arguments.data, SETTINGS[arguments.setting]["size"])
    if arguments.stage == "measure":
        measure((private, public, test), arguments.folder, arguments.setting, device)
        return
    stage = {"fit": fit, "draw": draw}[arguments.stage]
    data = public if arguments.row == "public" else private
    stage(arguments.row, data, arguments.folder, arguments.setting, device)


if __name__ == "__main__":
    main()
