"""Measure how good the synthetic images of a method are, and whether they are nearer to what was trained on."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from coalmine.artefacts import digest
from coalmine.audit.quality import frechet_distance, nearest_ratio, precision_recall
from coalmine.diffusion import inception
from coalmine.errors import CoalmineError
from coalmine.progress import reporter
from coalmine.seeds import numpy_generator
from coalmine.shadows import PrivateData
from coalmine.stages import _command, _models
from coalmine.stages._features import read_features
from coalmine.stages._per_model import Finished, summary
from coalmine.stages._synthetic import in_turn, read_arrays, sets_of

SECONDS_BETWEEN_LINES = 30

IMAGES_AT_ONCE = 4096
"""Images between two looks at the clock: a multiple of those that networks take at once."""

MEASURES = ("distance", "precision", "recall", "nearest", "nearest_balanced")
"""In the order in which the numbers of a shadow model are kept."""


@dataclass(frozen=True)
class Space:
    """Where images are compared.

    Attributes:
        name: for people.
        features: maps images to floats (n, d).
        made_from: what determines the features besides the images.
    """

    name: str
    features: Callable[[np.ndarray], np.ndarray]
    made_from: Any


def read_space(arguments: Namespace, device: torch.device) -> Space:
    """Read the network that the spec asks for.

    Raises:
        CoalmineError: it is not given, or it is another one.
    """
    spec = arguments.spec
    if spec["inception"]:
        if not arguments.inception:
            raise CoalmineError("the spec asks for the FID, which needs the file of the Inception network: --inception")
        network = inception.read(arguments.inception[0], device)
        return Space("FID, Inception-v3", lambda images: network(as_bytes(images)), {"sha256": inception.REMOTE.sha256})
    weights = [path for path in arguments.features if path.suffix == ".safetensors"]
    if len(weights) != 1:
        raise CoalmineError(
            f"--features lists {len(weights)} networks, expected pretrained/features.safetensors: images are compared "
            "by its features"
        )
    header, features = read_features(weights[0], spec, device)
    return Space(f"FD, {header['spec']['model']['name']} on public data", features, header)


def as_bytes(images: np.ndarray) -> np.ndarray:
    """Return uint8 images; float ones are clamped to the scale from 0 to 1 and rounded."""
    return images if images.dtype == np.uint8 else np.rint(255 * np.clip(images, 0, 1)).astype(np.uint8)


def represented(space: Space, images: np.ndarray, what: str, progress: Callable[[str], None]) -> np.ndarray:
    """Return the features of images; tell every half minute how far they are."""
    told = time.monotonic()
    parts = []
    for start in range(0, len(images), IMAGES_AT_ONCE):
        parts.append(space.features(images[start : start + IMAGES_AT_ONCE]))
        if time.monotonic() - told > SECONDS_BETWEEN_LINES:
            told = time.monotonic()
            progress(f"features of {start + len(parts[-1]):,} of {len(images):,} {what}")
    return np.concatenate(parts)


def read_compared(
    path: Path, spec: dict[str, Any], data: PrivateData, digests: dict[str, str]
) -> tuple[np.ndarray, str, int]:
    """Return the images of a set that are compared, the first when classes take turns, its digest, and its size.

    Raises:
        CoalmineError: the set is another's or no set of such images, or too few are compared.
    """
    _, arrays = read_arrays(path, spec["method"], data, digests)
    images = arrays["images"]
    compared = images[np.sort(in_turn(arrays["labels"])[: spec["images"]])]
    if len(compared) <= spec["neighbours"]:
        raise CoalmineError(
            f"{path}: {len(compared)} images are compared, each with the {spec['neighbours']} nearest of the others; "
            f"raise images of {spec['method']} or quality.images, or lower quality.neighbours."
        )
    shown = compared if compared.dtype == np.uint8 else np.clip(compared, 0, 1)
    return shown, digest(images, arrays["labels"]), len(images)


def audited_alike(data: PrivateData, shadow: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return private indices, int64 (n,) each: audited samples that a shadow model holds, and as many it does not.

    The draw is the same for all methods, so that they are compared with the same images.

    Raises:
        CoalmineError: it holds all of them or none.
    """
    inside = data.design.membership[:, shadow]
    sides = data.design.index[inside], data.design.index[~inside]
    count = min(map(len, sides))
    if not count:
        raise CoalmineError(
            f"shadow model {shadow} holds {len(sides[0])} of {len(inside)} audited samples, so there is nothing to "
            "compare with; draw more of them (audit.canaries, audit.average.samples)."
        )
    rng = numpy_generator(seed, "quality", shadow, "audited")
    members, nonmembers = (rng.choice(side, count, replace=False) for side in sides)
    return members, nonmembers


def measure(
    synthetic: np.ndarray, private: np.ndarray, data: PrivateData, shadow: int, spec: dict[str, Any]
) -> np.ndarray:
    """Return the numbers of one shadow model, float64 (measure,), in the order of ``MEASURES``.

    Args:
        synthetic: features of its synthetic images.
        private: features of all private samples.
        data: the private samples and which of them each shadow model holds.
        shadow: the shadow model.
        spec: of this stage.
    """
    held = private[data.shadow(shadow).index]
    members, nonmembers = audited_alike(data, shadow, spec["seed"])
    near = nearest_ratio(synthetic, private[members], private[nonmembers])
    finite = near.ratio[np.isfinite(near.ratio)]
    if not len(finite):
        raise CoalmineError(
            f"all synthetic images of shadow model {shadow} equal audited samples that it does not hold: its set was "
            "made from other private data. Delete it and run Snakemake again."
        )
    quality = precision_recall(held, synthetic, spec["neighbours"])
    distance = frechet_distance(held, synthetic)
    return np.array([distance, quality.precision, quality.recall, finite.mean(), near.balance.mean()])


def told(numbers: np.ndarray) -> str:
    """Return one line about the numbers of a shadow model, or their means."""
    distance, precision, recall, nearest, balanced = numbers
    return (
        f"distance {distance:.4g}, precision {precision:.1%}, recall {recall:.1%}, nearest private over nearest "
        f"held-out image {nearest:.3f} ({balanced:.3f} balanced)"
    )


def main() -> None:
    """Read synthetic sets and private images, compare their features, write the numbers of all shadow models."""
    command = _command.parser(__doc__)
    _models.add_private_data(command)
    _models.add_execution(command)
    command.add_argument("--synthetic", type=Path, nargs="+", required=True, help="synthetic sets of the shadow models")
    command.add_argument("--features", type=Path, nargs="*", default=[], help="a network trained on public data")
    command.add_argument(
        "--inception", type=Path, nargs="*", default=[], help="the weights of the FID's Inception network, in its place"
    )
    arguments = command.parse_args()
    spec, (out,) = arguments.spec, arguments.out
    progress = reporter(f"quality {spec['method']}")
    device, _ = _models.execution(arguments)
    data = _models.private_data(arguments)
    digests = data.digests()
    space = read_space(arguments, device)
    paths = sets_of(arguments.synthetic, spec["method"], spec["shadows"])
    sets = [read_compared(path, spec, data, digests) for path in paths]

    inputs = {**digests, "synthetic": [own for _, own, _ in sets], "features": space.made_from}
    finished = Finished(out, _command.header("quality", spec, inputs=inputs), progress)
    waiting = [shadow for shadow in range(len(sets)) if str(shadow) not in finished]
    if waiting:
        private = represented(space, data.images, "private images", progress)
    for shadow in waiting:
        synthetic = represented(space, sets[shadow][0], f"synthetic images of model {shadow}", progress)
        finished.add({str(shadow): measure(synthetic, private, data, shadow, spec)})
        progress(f"model {shadow}: {told(finished[str(shadow)])}")

    numbers = np.stack([finished[str(shadow)] for shadow in range(len(sets))])
    progress(f"{space.name}, mean of {len(sets)} shadow models: {told(numbers.mean(axis=0))}")
    finished.publish(
        {
            "method": spec["method"],
            "space": {"name": space.name, "inception": spec["inception"]},
            "images": len(sets[0][0]),
            "synthetic": sets[0][2],
            "reference": len(data.shadow(0).index),
            "neighbours": spec["neighbours"],
            "shadows": list(range(len(sets))),
            **{name: summary(numbers[:, column].tolist()) for column, name in enumerate(MEASURES)},
        }
    )


if __name__ == "__main__":
    _command.run(main)
