"""Turn a data source into arrays: private and test images, or public images."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np

from coalmine.artefacts import digest, write_json, write_npy
from coalmine.data.images import ImageSet
from coalmine.errors import CoalmineError
from coalmine.progress import reporter
from coalmine.seeds import numpy_generator
from coalmine.stages import _command


def subset(data: ImageSet, size: int | None, rng: np.random.Generator, what: str) -> ImageSet:
    """Return ``size`` samples drawn at random, in their order; all of them, with their indices kept, if None."""
    if size is None or size == len(data.labels):
        return data
    if size > len(data.labels):
        raise CoalmineError(
            f"data.{what}_size is {size}, but there are only {len(data.labels)} {what} samples. Lower it or drop it."
        )
    chosen = np.sort(rng.choice(len(data.labels), size, replace=False))
    return ImageSet(data.images[chosen], data.labels[chosen])


def main() -> None:
    """Read the source, keep the sizes asked for, write images, labels and class names."""
    command = _command.parser(__doc__)
    command.add_argument("--files", type=Path, nargs="*", default=[], help="downloaded archives, if the source has any")
    arguments = command.parse_args()
    spec = arguments.spec
    sizes: dict[str, int | None] = spec["sizes"]
    progress = reporter(f"prepare {', '.join(sizes)}")

    module = f"coalmine.data.sources.{spec['module']}"
    source = importlib.import_module(module)
    settings = source.Settings.model_validate_json(json.dumps(spec["settings"]))
    splits = source.load(settings, arguments.files, numpy_generator(spec["seed"], "data", *sizes, "split"))

    folders = {path.parent.name: path.parent for path in arguments.out if path.suffix == ".npy"}
    digests = {}
    for part, size in sizes.items():
        whole = splits.test if part == "test" else splits.train
        if whole is None:
            raise CoalmineError(f"The data source {spec['module']} has no {part} images; choose another source.")
        whole.check(f"{part} data", len(splits.classes))
        data = subset(whole, size, numpy_generator(spec["seed"], "data", part, "subset"), part)
        write_npy(folders[part] / "images.npy", data.images)
        write_npy(folders[part] / "labels.npy", data.labels)
        digests[part] = digest(data.images, data.labels)
        shape = "x".join(map(str, data.images.shape[1:]))
        progress(f"{len(data.labels):,} {part} images of {shape} in {len(splits.classes)} classes")

    record = _command.header("prepare", spec, module, digests=digests)
    write_json(next(path for path in arguments.out if path.suffix == ".json"), {**record, "classes": splits.classes})


if __name__ == "__main__":
    _command.run(main)
