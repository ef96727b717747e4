"""Measure how near the synthetic images of a method are to private ones: pixels, structure (SSIM) and features."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from coalmine.artefacts import digest, write_json, write_npz
from coalmine.audit.visual import (
    Euclidean,
    Metric,
    Structural,
    Surroundings,
    copied_share,
    mean_share,
    nearest,
    require_reachable,
    resemblance,
    surroundings,
)
from coalmine.data.images import ImageSet
from coalmine.errors import CoalmineError
from coalmine.progress import reporter
from coalmine.run_files import read_images
from coalmine.seeds import numpy_generator, seed_sequence
from coalmine.shadows import PrivateData
from coalmine.stages import _command, _models
from coalmine.stages._features import read_features
from coalmine.stages._synthetic import read_arrays

SECONDS_BETWEEN_LINES = 30


@dataclass(frozen=True, eq=False)
class Shown:
    """The synthetic images of one shadow model that are compared.

    Attributes:
        shadow: the shadow model.
        position: int64 (k,), their places in its synthetic set, ascending.
        source: int64 (k,), the private index that each was made from, else -1.
        images: (k, height, width, channel), uint8, or float32 from 0 to 1.
        digest: of the whole set's images and sources.
    """

    shadow: int
    position: np.ndarray
    source: np.ndarray
    images: np.ndarray
    digest: str


def read_shown(path: Path, spec: dict[str, Any], data: PrivateData, digests: dict[str, str]) -> Shown:
    """Read a synthetic set and draw the images that are compared, all if there are not more than that.

    Raises:
        CoalmineError: the set is another's, is empty, or its images are no images like the private ones.
    """
    shadow, arrays = read_arrays(path, spec["method"], data, digests)
    images, source = arrays["images"], arrays["source"]
    position = np.arange(len(images))
    if len(images) > spec["images"]:
        rng = numpy_generator(spec["seed"], spec["method"], shadow, "visual")
        position = np.sort(rng.choice(len(images), spec["images"], replace=False))
    chosen = images[position]
    shown = chosen if chosen.dtype == np.uint8 else np.clip(chosen, 0, 1)
    return Shown(shadow, position, source[position], shown, digest(images, source))


class Comparison:
    """Compares synthetic images with private (and public) ones by one metric.

    Args:
        metric: the distance.
        represent: turns images (n, height, width, channel) into what the metric compares.
        data: the private samples and which of them each shadow model holds.
        public: public images, if there are any, as a reference.
    """

    def __init__(
        self,
        metric: Metric,
        represent: Callable[[np.ndarray], np.ndarray],
        data: PrivateData,
        public: ImageSet | None,
    ) -> None:
        self._metric, self._represent, self._design = metric, represent, data.design
        self._private = represent(data.images)
        self._public = represent(public.images) if public else None
        self._audited = self._surroundings(self._private[data.design.index])

    def _surroundings(self, represented: np.ndarray) -> Surroundings:
        return surroundings(self._metric, represented, self._private, self._design.index)

    def __call__(self, shown: Shown) -> dict[str, np.ndarray]:
        """Return distances (float64), indices (int64) and p-values (float64), (k,) each."""
        represented = self._represent(shown.images)
        inside = self._design.membership[:, shown.shadow]
        found = resemblance(self._surroundings(represented), self._audited, inside)
        near = {"private": found.private, "held_out": found.held_out}
        if self._public is not None:
            near["public"] = nearest(self._metric, represented, self._public)
        distances = {name: one.distance for name, one in near.items()}
        return {**distances, **{f"{name}_index": one.index for name, one in near.items()}, "p": found.p}


def compared(
    compare: Comparison, sets: Sequence[Shown], name: str, progress: Callable[[str], None]
) -> list[dict[str, np.ndarray]]:
    """Return what ``compare`` finds for each set; tell every half minute how far it is."""
    found: list[dict[str, np.ndarray]] = []
    told = time.monotonic()
    for done, shown in enumerate(sets, start=1):
        found.append(compare(shown))
        if time.monotonic() - told > SECONDS_BETWEEN_LINES:
            told = time.monotonic()
            progress(f"{name}: {done} of {len(sets)} shadow models compared")
    return found


def read_public(paths: Sequence[Path], data: PrivateData) -> ImageSet | None:
    """Read the public images, if any are given; they must be of the private ones' shape."""
    if not paths:
        return None
    public = read_images(*paths)
    if public.images.shape[1:] != data.images.shape[1:]:
        raise CoalmineError(
            f"{paths[0]}: public images of shape {public.images.shape[1:]} cannot be compared with private ones of "
            f"shape {data.images.shape[1:]}; choose public data of that size."
        )
    return public


def check_level(level: float, data: PrivateData, shadows: Sequence[int]) -> None:
    """Refuse a level that no image could reach with the audited samples that a shadow model does not hold."""
    for shadow in shadows:
        try:
            require_reachable(level, int(np.count_nonzero(~data.design.membership[:, shadow])))
        except ValueError as error:
            raise CoalmineError(
                f"visual.level cannot be used for shadow model {shadow}: {error} (audit.canaries, "
                "audit.average.samples, visual.level)."
            ) from error


def main() -> None:
    """Read synthetic sets and what they are compared with, compare, write distances and shares."""
    command = _command.parser(__doc__)
    _models.add_private_data(command)
    _models.add_execution(command)
    command.add_argument("--synthetic", type=Path, nargs="+", required=True, help="synthetic sets of all shadow models")
    command.add_argument("--features", type=Path, nargs="*", default=[], help="a network trained on public data")
    command.add_argument(
        "--public", type=Path, nargs="*", default=[], help="public images and labels, if there are any"
    )
    arguments = command.parse_args()
    spec = arguments.spec
    progress = reporter(f"resemble {spec['method']}")
    device, _ = _models.execution(arguments)
    data = _models.private_data(arguments)
    digests = data.digests()
    public = read_public(arguments.public, data)
    synthetic = sorted((path for path in arguments.synthetic if path.suffix == ".npz"), key=_command.shadow_number)
    check_level(spec["level"], data, [_command.shadow_number(path) for path in synthetic])
    sets = [read_shown(path, spec, data, digests) for path in synthetic]

    inputs: dict[str, Any] = {**digests, "synthetic": [shown.digest for shown in sets]}
    if public:
        inputs["public"] = digest(public.images, public.labels)
    kinds: dict[str, tuple[Metric, Callable[[np.ndarray], np.ndarray]]] = {
        "pixel": (Euclidean(), lambda images: images),
        "ssim": (Structural(), lambda images: images),
    }
    for path in arguments.features:
        if path.suffix == ".safetensors":
            inputs["features"], features = read_features(path, spec, device)
            kinds["features"] = Euclidean(), features

    arrays = {
        "shadow": np.repeat([shown.shadow for shown in sets], [len(shown.position) for shown in sets]),
        "position": np.concatenate([shown.position for shown in sets]),
        "source": np.concatenate([shown.source for shown in sets]),
    }
    metrics = {}
    for name, (metric, represent) in kinds.items():
        compare = Comparison(metric, represent, data, public)
        found = compared(compare, sets, name, progress)
        arrays |= {f"{name}/{field}": np.concatenate([one[field] for one in found]) for field in found[0]}
        per_model = copied_share([one["p"] for one in found], spec["level"])
        seed = seed_sequence(spec["seed"], spec["method"], "visual", "bootstrap")
        share = mean_share(per_model, spec["bootstrap"], spec["confidence"], seed)
        metrics[name] = {"share": share._asdict(), "per_model": per_model.tolist()}
        progress(
            f"{name}: {share.value:.1%} ({share.low:.1%} to {share.high:.1%}) of {len(arrays['shadow']):,} images are "
            f"nearer to a private image than chance allows; {spec['level']:.0%} at most would be without any copying"
        )

    header = _command.header("resemble", spec, inputs=inputs)
    held_out = [np.count_nonzero(~data.design.membership[:, shown.shadow]) for shown in sets]
    distances_file, shares_file = arguments.out
    write_npz(distances_file, header, arrays)
    write_json(
        shares_file,
        {
            **header,
            "method": spec["method"],
            "images": spec["images"],
            "level": spec["level"],
            "confidence": spec["confidence"],
            "held_out": float(np.mean(held_out)),
            "metrics": metrics,
        },
    )


if __name__ == "__main__":
    _command.run(main)
