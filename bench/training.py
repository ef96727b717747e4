"""Training throughput of this package's loop beside a plain ``DataLoader`` loop, in images a second.

    python bench/training.py [--device auto] [--threads 1] [--repeats 5] [--json FILE]

Every way trains the same network on the same random images for the same number of samples, with crop and flip and
SGD with momentum. Ways take turns, so that a busy moment of the machine does not fall on one of them alone; medians
over the repeats are printed with the slowest and the fastest, and so are ratios to the plain loop. On one CPU thread
the seconds are this process's CPU seconds, which other programs disturb less; else they are wall time.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from coalmine.models.build import build
from coalmine.models.settings import ModelSettings, ResNet, SmallNet
from coalmine.training.device import device_name, resolve_device
from coalmine.training.loop import Mode, ModelGenerators, train
from coalmine.training.recipe import Augmentation, Normalisation, Recipe
from coalmine.training.sets import TrainingSet

CLASSES = 10


@dataclass(frozen=True)
class Task:
    """What is trained: network, images, and for how long."""

    name: str
    model: ModelSettings
    image_size: int
    channels: int
    samples: int
    recipe: Recipe
    stacks: tuple[int, ...]

    @property
    def normalisation(self) -> Normalisation:
        """Any; the images are random."""
        return Normalisation(mean=(0.5,) * self.channels, std=(0.25,) * self.channels)

    def data(self) -> TrainingSet:
        """Random images with random labels."""
        rng = np.random.default_rng(0)
        shape = (self.samples, self.image_size, self.image_size, self.channels)
        return TrainingSet(rng.integers(0, 256, shape, dtype=np.uint8), rng.integers(0, CLASSES, self.samples))


class PerImage(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Flip, padded crop and normalisation of one image at a time, as transforms in a data set do it."""

    def __init__(self, task: Task, data: TrainingSet) -> None:
        """Hold the images of a task, channels first."""
        self.task = task
        self.images = torch.from_numpy(data.images).movedim(-1, 1).contiguous()
        self.labels = torch.from_numpy(data.labels)
        self.mean = torch.tensor(task.normalisation.mean)[:, None, None]
        self.std = torch.tensor(task.normalisation.std)[:, None, None]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return one image, augmented and normalised, and its label."""
        image, augmentation, size = self.images[i], self.task.recipe.augmentation, self.task.image_size
        if augmentation.flip and torch.rand(()) < 0.5:
            image = image.flip(-1)
        if augmentation.shift:
            dy, dx = torch.randint(0, 2 * augmentation.shift + 1, (2,)).tolist()
            image = F.pad(image, [augmentation.shift] * 4)[:, dy : dy + size, dx : dx + size]
        return (image / 255 - self.mean) / self.std, self.labels[i]


def plain_loop(task: Task, data: TrainingSet, device: torch.device) -> int:
    """Train one model with ``DataLoader`` and ``torch.optim.SGD``; return the number of images seen."""
    recipe = task.recipe
    network = build(task.model, task.channels, task.image_size, CLASSES, torch.Generator().manual_seed(0)).to(device)
    optimiser = torch.optim.SGD(network.parameters(), recipe.learning_rate, recipe.momentum, 0, recipe.weight_decay)
    loader = DataLoader(PerImage(task, data), recipe.batch_size, shuffle=True)
    for _ in range(recipe.epochs):
        for images, labels in loader:
            optimiser.zero_grad()
            F.cross_entropy(network(images.to(device)), labels.to(device)).backward()
            optimiser.step()
    return task.samples * recipe.epochs


def our_loop(task: Task, data: TrainingSet, device: torch.device, mode: Mode, models: int) -> int:
    """Train ``models`` models with the package's loop; return the number of images seen by all."""
    generators = [ModelGenerators.named(0, "bench", model) for model in range(models)]
    sets = [data] * models
    trained = train(task.model, sets, task.recipe, task.normalisation, generators, CLASSES, device=device, mode=mode)
    return sum(model.steps for model in trained) * task.recipe.batch(task.samples)


def measure(ways: dict[str, Callable[[], int]], clock: Callable[[], float], repeats: int) -> dict[str, list[float]]:
    """Return the images a second of every way, one value a repeat, after one round of warming up."""
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, way in ways.items():
            start = clock()
            images = way()
            if repeat:
                speeds[name].append(images / (clock() - start))
    return speeds


def wall_clock(device: torch.device) -> float:
    """Return the time in seconds at which the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def tasks(device: torch.device) -> list[Task]:
    """Return the two tasks, longer on a card."""
    scale = 8 if device.type == "cuda" else 1
    common = Recipe(batch_size=128, learning_rate=0.01, schedule="constant", warmup_epochs=0.0)
    digits = common.model_copy(update={"epochs": 4 * scale, "augmentation": Augmentation(flip=False, shift=1)})
    photos = common.model_copy(update={"epochs": scale, "augmentation": Augmentation(flip=True, shift=4)})
    return [
        Task("small-cnn, 8x8 grey", SmallNet(), 8, 1, 1400, digits, stacks=(8, 32)),
        Task("resnet 16-32-64, 32x32 colour", ResNet(width=16, blocks=(1, 1, 1)), 32, 3, 512 * scale, photos, (8,)),
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each way")
    parser.add_argument("--json", type=Path, help="save all values here")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = resolve_device(arguments.device)
    alone = device.type == "cpu" and arguments.threads == 1
    clock = time.process_time if alone else partial(wall_clock, device)
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    images_per_s: dict[str, dict[str, list[float]]] = {}
    seconds = "CPU seconds" if alone else "wall seconds"
    print(
        f"{device_name(device)}, {arguments.threads} thread(s), {seconds}, {', '.join(map(' '.join, versions.items()))}"
    )
    for task in tasks(device):
        data = task.data()
        ways: dict[str, Callable[[], int]] = {
            "plain DataLoader loop": partial(plain_loop, task, data, device),
            "sequential": partial(our_loop, task, data, device, "sequential", 1),
        }
        for models in task.stacks:
            ways[f"stacked, {models} models"] = partial(our_loop, task, data, device, "stacked", models)
        speeds = measure(ways, clock, arguments.repeats)
        images_per_s[task.name] = speeds
        plain = statistics.median(speeds["plain DataLoader loop"])
        print(f"\n{task.name}, batch {task.recipe.batch_size}: images/s, median (slowest to fastest), ratio to plain")
        for name, values in speeds.items():
            median = statistics.median(values)
            print(f"  {name:24}{median:10,.0f}  ({min(values):,.0f} to {max(values):,.0f})  {median / plain:.2f}x")
    if arguments.json:
        facts = {"device": device_name(device), "threads": arguments.threads, "seconds": seconds, "versions": versions}
        arguments.json.write_text(json.dumps({**facts, "images_per_s": images_per_s}, indent=1) + "\n")


if __name__ == "__main__":
    main()
