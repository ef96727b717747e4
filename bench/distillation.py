"""Accuracy and cost of dataset distillation on CIFAR-10: all images, no audit, one seed.

    python bench/distillation.py distil DATA FOLDER --methods dm dsa --images 1 10     (hours; can be taken up again)
    python bench/distillation.py evaluate DATA FOLDER --json FILE                     (trains networks on the sets)
    python bench/distillation.py draw FILE PICTURE                                    (accuracy against iterations)
    python bench/distillation.py stack --json FILE                                    (several shadow models at once)

DATA is CIFAR-10 as an image folder or archive (``coalmine.data.sources.image_folder``). The methods are those of the
package, called as the workflow calls them. The ``cpu`` setting is smaller than the papers' (``SETTINGS``), so that each
run fits an hour on one thread; ``paper`` is theirs. Accuracies are of the last iterate, and of snapshots on the way for
the curves: nothing is chosen by them. A set is evaluated as the papers do, except where stated: fresh networks of the
distillation's architecture, SGD at 0.01 (trajectory methods: their learned rate), momentum 0.9, weight decay 5e-4, rate
divided by 10 at half time, Siamese augmentation.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from coalmine.audit.design import draw_design
from coalmine.audit.visual import Euclidean, nearest
from coalmine.checkpoint import Checkpoint
from coalmine.data.sources import digits, image_folder
from coalmine.distillation import networks as functional
from coalmine.distillation.experts import Training
from coalmine.distillation.sets import Sets
from coalmine.distillation.settings import Experts
from coalmine.distillation.space import Space
from coalmine.distillation.start import Start
from coalmine.distillation.trajectories import write
from coalmine.methods import dm, dsa, mtt
from coalmine.models.settings import ConvNet
from coalmine.shadows import PrivateData, Setup, Shadow
from coalmine.training import whitening
from coalmine.training.device import device_name, resolve_device
from coalmine.training.inference import predict
from coalmine.training.loop import ModelGenerators, train
from coalmine.training.recipe import Augmentation, Normalisation, Recipe, Siamese
from coalmine.training.sets import TrainingSet

NORMALISATION = Normalisation(mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010))
CLASSES = 10

PUBLISHED = {
    "random": {1: 14.4, 10: 26.0},
    "dc": {1: 28.3, 10: 44.9},
    "dsa": {1: 28.8, 10: 52.1},
    "dm": {1: 26.0, 10: 48.9},
    "mtt": {1: 46.3, 10: 65.3},
}
"""CIFAR-10, ConvNet-3 of width 128, test accuracy in % (DC, DSA, DM: DatasetCondensation's readme; MTT: its paper)."""

SETTINGS: dict[str, dict[str, Any]] = {
    "cpu": {
        "width": 32,
        "epochs": 1000,
        "random": {1: {}, 10: {}},
        "dm": {n: {"iterations": 2000, "batch_size": 64} for n in (1, 10)},
        "dsa": {
            1: {"iterations": 1000, "outer_steps": 1, "inner_epochs": 0, "batch_size": 64},
            10: {"iterations": 100, "outer_steps": 10, "inner_epochs": 10, "batch_size": 64},
        },
        "experts": {"experts": 2, "epochs": 6},
        "mtt": {
            1: {"iterations": 300, "steps": 50, "max_start": 2, "step_size": 0.01, "step_rate": 1e-6},
            10: {"iterations": 300, "steps": 10, "expert_epochs": 1, "max_start": 5, "step_size": 0.02},
        },
    },
    "paper": {
        "width": 128,
        "epochs": 1000,
        "random": {1: {}, 10: {}},
        "dm": {n: {} for n in (1, 10)},
        "dsa": {1: {"outer_steps": 1, "inner_epochs": 0}, 10: {}},
        "experts": {},
        "mtt": {1: {"steps": 50, "max_start": 2, "step_size": 0.01, "step_rate": 1e-7}, 10: {}},
    },
}
"""Per setting: width of all networks, epochs of evaluation, and what differs from each method's defaults."""


class Recorder(Checkpoint):
    """A checkpoint that also keeps the images of some iterations."""

    def __init__(self, folder: Path, every: int) -> None:
        super().__init__(folder / "state.npz", {"bench": folder.name})
        self._folder, self._every, self._calls = folder, every, 0
        state = self.load()
        self._calls = int(state["iteration"]) if state else 0

    def due(self) -> bool:
        """Tell whether the iteration that was just made is to be kept."""
        self._calls += 1
        return self._calls % self._every == 0

    def save(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep the state, and the images of this iteration."""
        super().save(arrays)
        kept = {name: arrays[name] for name in arrays if name.endswith("/value")}
        np.savez(self._folder / f"{int(arrays['iteration']):06d}.npz", **kept)


def read_data(path: Path) -> tuple[Shadow, np.ndarray, np.ndarray]:
    """Return all training images as one shadow model's data, and the test images with their labels."""
    data = image_folder.load(image_folder.Settings(path=str(path)), [path], np.random.default_rng(0))
    index = np.arange(len(data.train.labels))
    shadow = Shadow(0, data.train.images, index, data.train.labels, audited=index[:0])
    return shadow, data.test.images, data.test.labels


def setup_of(method: str, device: torch.device, **further: Any) -> Setup:
    """Return what the workflow would give the method."""
    return Setup(
        method=method,
        seed=0,
        model=ConvNet(),
        recipe=Recipe(),
        normalisation=NORMALISATION,
        classes=CLASSES,
        device=device,
        mode="sequential",
        progress=lambda line: print(f"{method}: {line}", flush=True),
        **further,
    )


def experts_of(shadow: Shadow, folder: Path, preset: str, device: torch.device) -> Path:
    """Return the file of the experts; it is made once for all methods that match them."""
    file = folder / "experts.safetensors"
    if file.exists():
        return file
    own = SETTINGS[preset]
    settings = Experts(model=ConvNet(width=own["width"]), zca=True, **own["experts"])
    start = time.perf_counter()
    train_experts(file, shadow, settings, NORMALISATION, device)
    print(f"experts: {time.perf_counter() - start:.0f} s", flush=True)
    return file


def train_experts(
    file: Path, shadow: Shadow, settings: Experts, normalisation: Normalisation, device: torch.device
) -> None:
    """Train a shadow model's experts and write them as the workflow would."""
    whitened = whitening.fit(shadow.images) if settings.zca else None
    space = Space(normalisation, device, whitened)
    training = Training("bench", 0, settings, CLASSES, "sequential", lambda line: print(f"experts: {line}", flush=True))
    found = dict(training.run(shadow, space, range(settings.experts)))
    spec = {"experts": "bench", "settings": settings.model_dump(), "normalisation": normalisation.model_dump()}
    size, channels = shadow.pool.shape[2:]
    header = {"stage": "experts", "spec": spec, "shape": {"channels": channels, "image_size": size, "classes": CLASSES}}
    write(file, header, np.stack([found[expert] for expert in range(settings.experts)]), whitened)


def distil(shadow: Shadow, folder: Path, preset: str, method: str, images: int, device: torch.device) -> None:
    """Make one set, keeping 8 snapshots on the way."""
    folder.mkdir(parents=True, exist_ok=True)
    own = SETTINGS[preset]
    network = ConvNet(width=own["width"])
    start = time.perf_counter()
    if method == "random":
        begun = Sets.begin([shadow], Start(images_per_class=images), setup_of(method, device))
        (made,) = begun.finished(begun.images)
    else:
        module = import_module(f"coalmine.methods.{method}")
        matched = {"experts": "bench"} if "experts" in module.Settings.model_fields else {"network": network}
        settings = module.Settings(images_per_class=images, **matched, **own[method][images])
        recorder = Recorder(folder, max(1, settings.iterations // 8))
        trajectories = experts_of(shadow, folder.parent, preset, device) if "experts" in matched else None
        start = time.perf_counter()
        setup = setup_of(method, device, checkpoint=lambda _: recorder, experts=lambda _: trajectories)
        (made,) = module.synthesize([shadow], settings, setup)
    seconds = time.perf_counter() - start
    np.savez(folder / "final.npz", seconds=np.array(seconds), **made.arrays())
    print(f"{method}, {images} per class: {seconds:.0f} s", flush=True)


def evaluation_recipe(epochs: int) -> Recipe:
    """Return the papers' recipe for training on a distilled set."""
    return Recipe(
        epochs=epochs,
        batch_size=256,
        learning_rate=0.01,
        momentum=0.9,
        weight_decay=5e-4,
        warmup_epochs=0.0,
        schedule="steps",
        milestones=(epochs // 2,),
        gamma=0.1,
        augmentation=Augmentation(flip=False, shift=0, siamese=Siamese()),
    )


def accuracies(
    data: TrainingSet, preset: str, networks: int, test: tuple[np.ndarray, np.ndarray], device: torch.device
) -> list[float]:
    """Train so many fresh networks on a set and return their test accuracies in %."""
    model, recipe = ConvNet(width=SETTINGS[preset]["width"]), evaluation_recipe(SETTINGS[preset]["epochs"])
    generators = [ModelGenerators.named(0, "evaluation", number) for number in range(networks)]
    trained = train(model, [data] * networks, recipe, NORMALISATION, generators, CLASSES, device=device)
    images, labels = test
    found = []
    for one in trained:
        logits = predict(model, one.state, images, NORMALISATION, CLASSES, device=device)[:, 0]
        found.append(100 * float((logits.argmax(axis=1) == labels).mean()))
    return found


def sets_of(folder: Path) -> Iterator[tuple[int | None, TrainingSet]]:
    """Yield the iteration and the set of every snapshot, the finished set last (None)."""
    with np.load(folder / "final.npz", allow_pickle=False) as file:
        final = dict(file)
    whitened = whitening.split(final)[1]
    space = Space(NORMALISATION, torch.device("cpu"), whitened)
    for path in sorted(folder.glob("[0-9]*.npz")):
        with np.load(path, allow_pickle=False) as file:
            images = space.leave(torch.from_numpy(file["images/value"]))
            rate = float(file["rates/value"]) if "rates/value" in file else None
            yield int(path.stem), TrainingSet(images, final["labels"], None, rate, whitened)
    rate = float(final["learning_rate"]) if "learning_rate" in final else None
    yield None, TrainingSet(final["images"], final["labels"], None, rate, whitened)


def evaluate(
    folder: Path,
    preset: str,
    networks: int,
    private: np.ndarray,
    test: tuple[np.ndarray, np.ndarray],
    device: torch.device,
) -> dict[str, Any]:
    """Return the accuracy of a finished set over several networks, and that of its snapshots by one network each.

    ``nearest_is_start`` is the share in % of its images whose nearest private image is the one they started from.
    """
    curve = []
    for iteration, data in sets_of(folder):
        if iteration is not None:
            (accuracy,) = accuracies(data, preset, 1, test, device)
            curve.append({"iteration": iteration, "accuracy": round(accuracy, 2)})
    found = accuracies(data, preset, networks, test, device)
    with np.load(folder / "final.npz", allow_pickle=False) as file:
        seconds, images, source = float(file["seconds"]), file["images"], file["source"]
    shown = images if images.dtype == np.uint8 else np.clip(images, 0, 1)
    return {
        "accuracy": round(float(np.mean(found)), 2),
        "sd": round(float(np.std(found, ddof=1)), 2) if networks > 1 else None,
        "networks": networks,
        "nearest_is_start": round(100 * float((nearest(Euclidean(), shown, private).index == source).mean()), 1),
        "seconds": round(seconds),
        "curve": curve,
    }


def draw(results: dict[str, Any], picture: Path) -> None:
    """Draw accuracy against iterations, with the published value (at full size) as a line."""
    from coalmine.reporting import style

    numbers = sorted({images for own in results["methods"].values() for images in own}, key=int)
    with style.context():
        figure, panels = style.new_figure(height=4.2, panels=(1, len(numbers)), sharey=True)
        for axes, images in zip(panels, numbers, strict=True):
            for index, (method, own) in enumerate(results["methods"].items()):
                if images not in own:
                    continue
                look, entry = style.look(index), own[images]
                points = [(point["iteration"], point["accuracy"]) for point in entry["curve"]]
                if method == "random":
                    said = f"random images: {entry['accuracy']:.1f} (paper {entry['published']:.1f})"
                    axes.axhline(entry["accuracy"], color=look.colour, lw=1.2, label=said)
                else:
                    said = f"{method.upper()}: {entry['accuracy']:.1f} (paper {entry['published']:.1f})"
                    axes.plot(*zip(*points, strict=True), marker=look.marker, color=look.colour, label=said)
                axes.axhline(entry["published"], color=look.colour, lw=1, linestyle=":")
            axes.set_xlabel("iterations")
            axes.set_xscale("log")
            axes.set_title("1 image of each class" if images == "1" else f"{images} images of each class")
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2))
        panels[0].set_ylabel("test accuracy in %")
        style.set_title(
            figure,
            "Distilling CIFAR-10",
            f"{results['setting']}. Solid: ours, last iterates; dotted: published, ConvNet-3 of width 128 and full "
            "schedules.",
        )
        figure.savefig(picture, dpi=160)


def stacked(device: torch.device, models: int, repeats: int) -> dict[str, dict[str, float]]:
    """Return seconds a shadow model of the demo's digits, one after another and ``models`` at once; medians.

    Both ways take turns, so that a busy moment of the machine does not fall on one of them alone.
    """
    train_images = digits.load(digits.Settings(), [], np.random.default_rng(0)).train
    design = draw_design(train_images.labels, CLASSES, max(6, models), 200)
    data = PrivateData(train_images.images, train_images.labels, digits.CLASSES, design)
    shadows = [data.shadow(number) for number in range(models)]
    normalisation = Normalisation(mean=(0.3,), std=(0.35,))
    network = ConvNet(depth=2, width=16)
    matched: dict[str, Any] = {"network": network, "siamese": None}
    followed: dict[str, Any] = {"experts": "bench", "expert_epochs": 1, "max_start": 2, "siamese": None}
    followed |= {"iterations": 10, "steps": 10, "batch_syn": 20, "step_size": 0.1}
    tasks: dict[str, tuple[Any, Any]] = {
        "dm": (dm, dm.Settings(iterations=40, batch_size=64, **matched)),
        "dsa": (dsa, dsa.Settings(iterations=2, outer_steps=5, inner_epochs=5, batch_size=32, **matched)),
        "mtt": (mtt, mtt.Settings(**followed)),
        "mtt, checkpointed": (mtt, mtt.Settings(memory="checkpointed", **followed)),
    }
    found: dict[str, dict[str, list[float]]] = {name: {"sequential": [], "stacked": []} for name in tasks}
    with TemporaryDirectory() as folder:
        files = [Path(folder) / f"{shadow.number}.safetensors" for shadow in shadows]
        experts = Experts(model=network, experts=1, epochs=2, learning_rate=0.05, batch_size=64, siamese=None)
        for file, shadow in zip(files, shadows, strict=True):
            train_experts(file, shadow, experts, normalisation, device)
        for _ in range(repeats):
            for name, (method, settings) in tasks.items():
                for mode, own in found[name].items():
                    setup = setup_of(name, device, experts=lambda shadow: files[shadow.number])
                    setup = replace(setup, mode=mode, normalisation=normalisation)
                    start = clock(device)
                    for _made in method.synthesize(shadows, settings, setup):
                        pass
                    own.append((clock(device) - start) / models)
    return {name: medians(by_mode, 3) for name, by_mode in found.items()}


def vectorised(device: torch.device, models: int, repeats: int) -> dict[str, dict[str, float]]:
    """Return milliseconds a network of the gradients of ``models`` networks, in a loop and by ``vmap``."""
    shapes = [(ConvNet(depth=2, width=16), 1, 8, images) for images in (10, 20, 50, 100, 200, 400)]
    shapes += [(ConvNet(width=32), 3, 32, images) for images in (1, 4, 10, 50)]
    chosen, found = functional.PIXELS_AT_ONCE, {}
    try:
        for model, channels, size, images in shapes:
            stack = functional.Networks(model, channels, size, CLASSES, models, device)
            weights = stack.fresh([torch.Generator().manual_seed(number) for number in range(models)])
            weights = [weight.requires_grad_() for weight in weights]
            x = torch.randn(models, images, channels, size, size, device=device)
            own: dict[str, list[float]] = {"loop": [], "vmap": []}
            for _ in range(repeats + 1):
                for name, limit in (("loop", 0), ("vmap", 1 << 40)):
                    functional.PIXELS_AT_ONCE = limit
                    start = clock(device)
                    torch.autograd.grad(stack.logits(weights, x).square().sum(), weights)
                    own[name].append(1000 * (clock(device) - start) / models)
            found[f"{size}x{size}, {images} images"] = medians({name: times[1:] for name, times in own.items()}, 2)
    finally:
        functional.PIXELS_AT_ONCE = chosen
    return found


def clock(device: torch.device) -> float:
    """Return CPU seconds of this process where the CPU computes, else wall time."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def medians(by_name: Mapping[str, list[float]], digits_kept: int) -> dict[str, float]:
    """Return the median of each entry."""
    return {name: round(float(np.median(values)), digits_kept) for name, values in by_name.items()}


def main() -> None:
    """Run one of the four commands."""
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = command.add_subparsers(dest="part", required=True)
    drawing = parts.add_parser("draw")
    drawing.add_argument("json", type=Path)
    drawing.add_argument("picture", type=Path)
    stacking = parts.add_parser("stack")
    stacking.add_argument("--json", type=Path)
    stacking.add_argument("--device", default="auto")
    stacking.add_argument("--models", type=int, nargs="+", default=[4, 16])
    stacking.add_argument("--repeats", type=int, default=3)
    for name in ("distil", "evaluate"):
        part = parts.add_parser(name)
        part.add_argument("data", type=Path)
        part.add_argument("folder", type=Path)
        part.add_argument("--preset", choices=SETTINGS, default="cpu")
        part.add_argument("--methods", nargs="+", default=["random", "dm", "dsa", "mtt"])
        part.add_argument("--images", nargs="+", type=int, default=[1, 10])
        part.add_argument("--device", default="auto")
        part.add_argument("--threads", type=int, default=1)
        if name == "evaluate":
            part.add_argument("--networks", type=int, default=3)
            part.add_argument("--json", type=Path, required=True)
    arguments = command.parse_args()
    if arguments.part == "draw":
        draw(json.loads(arguments.json.read_text()), arguments.picture)
        return
    device = resolve_device(arguments.device)
    if arguments.part == "stack":
        torch.set_num_threads(1)
        results: dict[str, Any] = {"device": device_name(device), "torch": torch.__version__}
        for models in arguments.models:
            results[f"{models} models"] = stacked(device, models, arguments.repeats)
        results["ms a gradient, 16 networks"] = vectorised(device, 16, 5)
        print(json.dumps(results, indent=1))
        if arguments.json:
            arguments.json.write_text(json.dumps(results, indent=1) + "\n")
        return
    torch.set_num_threads(arguments.threads)
    shadow, test_images, test_labels = read_data(arguments.data)
    for method in arguments.methods:
        for images in arguments.images:
            folder = arguments.folder / f"{method}-{images}"
            if arguments.part == "distil" and not (folder / "final.npz").exists():
                distil(shadow, folder, arguments.preset, method, images, device)
            elif arguments.part == "evaluate" and (folder / "final.npz").exists():
                test = test_images, test_labels
                found = evaluate(folder, arguments.preset, arguments.networks, shadow.pool, test, device)
                keep(arguments.json, arguments.preset, method, images, found, device)
                print(f"{method}, {images} per class: {found}", flush=True)


def keep(file: Path, preset: str, method: str, images: int, found: dict[str, Any], device: torch.device) -> None:
    """Add one result to the file."""
    own = SETTINGS[preset]
    results = json.loads(file.read_text()) if file.exists() else {"methods": {}}
    results |= {
        "setting": f"{preset}: ConvNet-3 of width {own['width']}, {own['epochs']} epochs of evaluation",
        "device": device_name(device),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    entry = {**found, "published": PUBLISHED[method][images], "differs_from_paper": own[method][images]}
    results["methods"].setdefault(method, {})[str(images)] = entry
    file.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
