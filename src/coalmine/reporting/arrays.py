"""What figures draw besides scores, read and checked: images, synthetic sets, their nearest neighbours, logits."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from coalmine.artefacts import check_header, digest, read_npz
from coalmine.audit.design import Design
from coalmine.data.images import ImageSet
from coalmine.errors import REMEDY, CoalmineError
from coalmine.run_files import design_digest, read_classes, read_design, read_images


@dataclass(frozen=True, eq=False)
class SyntheticSet:
    """The synthetic set of one shadow model.

    Attributes:
        path: its file.
        images: uint8, or float32 on the scale from 0 to 1 and not clamped, (m, height, width, channel).
        labels: int64 (m,), the class of each image; of a soft label, the likeliest.
        source: int64 (m,), the private index that an image was copied or started from, else -1.
        confidence: float32 (m,), what soft labels give to that class; None without soft labels.
    """

    path: Path
    images: np.ndarray
    labels: np.ndarray
    source: np.ndarray
    confidence: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Neighbour:
    """The image nearest to each synthetic one: its distance, float64 (k,), and its index, int64 (k,)."""

    distance: np.ndarray
    index: np.ndarray


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The synthetic images of one shadow model that were compared, and what is nearest to each by one distance.

    Attributes:
        position: int64 (k,), in the synthetic set.
        p: float64 (k,), how rarely a fresh image would be as near to the private ones, compared with held-out ones.
        private: among the shadow model's private images.
        held_out: among the audited samples that it never saw.
        public: among the public images; None for a run without any.
    """

    position: np.ndarray
    p: np.ndarray
    private: Neighbour
    held_out: Neighbour
    public: Neighbour | None


class Logits(NamedTuple):
    """One model's logits, float32.

    Attributes:
        canaries: (canary, class), of the audited samples as they are.
        synthetic: (image, class), of the images that the model was trained on.
    """

    canaries: np.ndarray
    synthetic: np.ndarray


@dataclass(frozen=True)
class RunData:
    """The data, synthetic sets and logits below ``root``; each is read when asked for, and checked against the data."""

    root: Path

    @cached_property
    def private(self) -> ImageSet:
        """The private images with their true labels."""
        return self._images("private")

    @cached_property
    def public(self) -> ImageSet:
        """The public images with their labels."""
        return self._images("public")

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        return read_classes(self.root / "data" / "classes.json")

    @cached_property
    def design(self) -> Design:
        """The audit design of the worst case."""
        folder = self.root / "audit"
        return read_design(folder / "canaries.csv", folder / "membership.npy", self.private.labels)

    def synthetic(self, method: str, shadow: int) -> SyntheticSet:
        """Read a method's synthetic set for one shadow model.

        Raises:
            CoalmineError: the file is missing or broken, or was made from other private data.
        """
        source = self.source(method, shadow)
        return _read_set(self._file("synthetic", method, shadow), source, self.private.images.shape[1:])

    def synthetic_alone(self, method: str, shadow: int) -> SyntheticSet:
        """Read the same set without a look at the private data, which then cannot be told to be what it came from.

        Raises:
            CoalmineError: the file is missing or broken, or is another method's or shadow model's.
        """
        path = self._file("synthetic", method, shadow)
        header, arrays = read_npz(path, source=("int64", (None,)))
        check_header(path, header, spec__method=method, shadow=shadow)
        made = _read_set(path, arrays["source"], (None, None, None))
        if (made.labels < 0).any() or (made.labels >= len(self.classes)).any():
            raise CoalmineError(
                f"{path}, field labels: classes from {made.labels.min()} to {made.labels.max()}, but the data have "
                f"{len(self.classes)}. {REMEDY}"
            )
        return made

    def source(self, method: str, shadow: int) -> np.ndarray:
        """Read int64 (m,): the private index that each image of a synthetic set was copied or started from, else -1."""
        path = self._file("synthetic", method, shadow)
        header, arrays = read_npz(path, source=("int64", (None,)))
        check_header(path, header, spec__method=method, shadow=shadow, inputs__private=self._private_digest)
        source: np.ndarray = arrays["source"]
        _check_indices(path, "source", source[source >= 0], len(self.private))
        return source

    def neighbours(self, method: str, metric: str, synthetic: SyntheticSet, shadow: int) -> Neighbours:
        """Read what is nearest, by one distance, to the images of the synthetic set of one shadow model.

        Raises:
            CoalmineError: the file is missing or broken, or tells of other images than those of the set.
        """
        path = self.root / "visual" / f"{method}.npz"
        header, every = read_npz(path)
        check_header(path, header, spec__method=method, inputs__private=self._private_digest)
        if digest(synthetic.images, synthetic.source) not in header["inputs"].get("synthetic", ()):
            raise CoalmineError(f"{path} tells of other images than {synthetic.path} holds. {REMEDY}")
        kinds = ["private", "held_out", *(["public"] if f"{metric}/public" in every else [])]
        fields: dict[str, Any] = {f"{metric}/{kind}": ("float64", (None,)) for kind in (*kinds, "p")}
        fields |= {f"{metric}/{kind}_index": ("int64", (None,)) for kind in kinds}
        fields |= dict.fromkeys(("shadow", "position"), ("int64", (None,)))
        _, arrays = read_npz(path, **fields)
        of_model = arrays["shadow"] == shadow
        for name, array in arrays.items():
            if len(array) != len(of_model):
                raise CoalmineError(
                    f"{path}, field {name}: {len(array)} entries, but shadow has {len(of_model)}. {REMEDY}"
                )
        own = {name: array[of_model] for name, array in arrays.items()}
        _check_indices(path, "position", own["position"], len(synthetic.source))
        for kind in kinds:
            pool = self.public if kind == "public" else self.private
            _check_indices(path, f"{metric}/{kind}_index", own[f"{metric}/{kind}_index"], len(pool))
        near = {kind: Neighbour(own[f"{metric}/{kind}"], own[f"{metric}/{kind}_index"]) for kind in kinds}
        return Neighbours(own["position"], own[f"{metric}/p"], near["private"], near["held_out"], near.get("public"))

    def logits(self, method: str, shadow: int) -> Logits:
        """Read one model's logits; of the audited samples those of the first view, the image as it is.

        Raises:
            CoalmineError: the file is missing or broken, or of another method, model or design.
        """
        path = self._file("logits", method, shadow)
        audited, classes = len(self.design.index), len(self.classes)
        header, arrays = read_npz(
            path,
            canary_logits=("float32", (audited, None, classes)),
            synthetic_logits=("float32", (None, classes)),
        )
        check_header(path, header, spec__method=method, shadow=shadow, inputs__design=design_digest(self.design))
        return Logits(arrays["canary_logits"][:, 0], arrays["synthetic_logits"])

    @cached_property
    def _private_digest(self) -> str:
        return digest(self.private.images, self.private.labels)

    def _images(self, role: Literal["private", "public"]) -> ImageSet:
        folder = self.root / "data" / role
        return read_images(folder / "images.npy", folder / "labels.npy")

    def _file(self, stage: str, method: str, shadow: int) -> Path:
        return self.root / stage / method / f"{shadow:03d}.npz"


def _read_set(path: Path, source: np.ndarray, shape: tuple[int | None, ...]) -> SyntheticSet:
    """Read a synthetic set with images of this (height, width, channel), as many as ``source`` has entries."""
    _, every = read_npz(path)
    images, labels = every.get("images", source), every.get("labels", source)
    kind = "uint8" if images.dtype == np.uint8 else "float32"
    soft = labels.ndim == 2
    _, arrays = read_npz(
        path,
        images=(kind, (len(source), *shape)),
        labels=("float32", (len(source), None)) if soft else ("int64", (len(source),)),
    )
    images, labels = arrays["images"], arrays["labels"]
    if soft:
        return SyntheticSet(path, images, labels.argmax(axis=1), source, labels.max(axis=1))
    return SyntheticSet(path, images, labels, source, None)


def _check_indices(path: Path, name: str, index: np.ndarray, length: int) -> None:
    if len(index) and (index.min() < 0 or index.max() >= length):
        raise CoalmineError(
            f"{path}, field {name}: indices from {index.min()} to {index.max()} into {length} images. {REMEDY}"
        )
