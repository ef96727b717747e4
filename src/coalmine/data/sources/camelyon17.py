"""Camelyon17 (Bandi et al. 2018), release of WILDS (Koh et al. 2021): 455,954 patches 96x96 of lymph nodes, in colour.

A patch is ``tumor`` if any tumour tissue lies in its central 32x32. The patches come from five hospitals, the centres
0 .. 4. WILDS's official split trains on centres 0, 3 and 4, validates on 1 and tests on 2; of the centres trained on,
the column ``split`` of ``metadata.csv`` holds a tenth out for validation (1, ``id_val``). In centres 1 and 2 it says
nothing. That, the columns and the names of the patches are read off WILDS's code (``camelyon17_dataset.py`` and the
scripts in ``dataset_preprocessing/camelyon17``). The numbers of patches are those that users of the release report,
which add up; they were not counted here.

The download is a CodaLab bundle, which its server packs; no hash of it is known. WILDS's code gives 10,658,709,504
bytes for it, a multiple of 4,096, hence rather its room on a disk than the archive's length, so no size is checked
either. A damaged archive is noticed when it is read, another one by the numbers of patches; ``sha256`` pins one's own
copy. Nothing is unpacked to disk: patches are decoded in the stream, and only their 32x32 pixels are kept (1.2 GB for
the official split).
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, NamedTuple, Self

import numpy as np
from pydantic import Field, field_validator, model_validator

import coalmine.settings
from coalmine.data.archives import members
from coalmine.data.class_folders import decode
from coalmine.data.download import RemoteFile
from coalmine.data.images import ImageSet, Splits
from coalmine.errors import CoalmineError

CLASSES = ("normal", "tumor")
URL = "https://worksheets.codalab.org/rest/bundles/0xe45e15f39fb54e9d9e919556af67aabe/contents/blob/"
METADATA = "metadata.csv"
COLUMNS = ("patient", "node", "x_coord", "y_coord", "tumor", "center", "split")
Centre = Literal[0, 1, 2, 3, 4]
Centres = Annotated[tuple[Centre, ...], Field(strict=False)]  # not strict: YAML and JSON have lists but no tuples

PATCH_SIDE = 96
SIDE = 32
PATCHES = {0: 59_436, 1: 34_904, 2: 85_054, 3: 129_838, 4: 146_722}  # by centre
TRAIN_CENTRES: tuple[Centre, ...] = (0, 3, 4)
TRAIN_PATCHES = 302_436  # of these centres, without the 33,560 held out


class Settings(coalmine.settings.Settings):
    """What may be set for Camelyon17."""

    path: str | None = Field(
        default=None,
        min_length=1,
        description="WILDS's camelyon17_v1.0 at hand, a folder or archive with metadata.csv and patches/; read in "
        "place of a download.",
    )
    url: str = Field(default=URL, min_length=1, description="Where to fetch the archive (about 10 GB), e.g. a mirror.")
    sha256: str | None = Field(
        default=None,
        pattern="^[0-9a-f]{64}$",
        description="What the fetched archive must hash to; null takes any, because none is published.",
    )
    private_centres: Centres = Field(
        default=TRAIN_CENTRES, min_length=1, description="Hospitals whose patches are the private data."
    )
    test_centres: Centres = Field(
        default=(2,), min_length=1, description="Hospitals whose patches are the test data; none of the private ones."
    )
    id_val: bool = Field(
        default=False,
        description="Take the tenth of the private centres' patches, too, that WILDS holds out for validation.",
    )
    official: bool = Field(
        default=True,
        description="Refuse metadata with other numbers of patches than the release has; false takes any, e.g. of a "
        "part of it.",
    )

    @field_validator("private_centres", "test_centres")
    @classmethod
    def _each_once(cls, centres: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(centres)) < len(centres):
            raise ValueError(f"names a centre twice: {', '.join(map(str, centres))}; expected each at most once")
        return centres

    @model_validator(mode="after")
    def _apart(self) -> Self:
        both = sorted(set(self.private_centres) & set(self.test_centres))
        if both:
            raise ValueError(f"centre {both[0]} is among private_centres and test_centres; expected it in one of them")
        return self


class Patch(NamedTuple):
    """What ``metadata.csv`` says of a patch.

    Attributes:
        label: 1 if its middle holds tumour tissue, else 0.
        centre: the hospital, 0 .. 4.
        held_out: whether WILDS holds it out for validation if its centre is trained on.
    """

    label: int
    centre: int
    held_out: bool


def files(settings: Settings) -> list[RemoteFile]:
    """Return the archive, or nothing if a local path replaces it. Neither its size nor a hash is published."""
    if settings.path is not None:
        return []
    return [RemoteFile(name="camelyon17_v1.0.tar.gz", url=settings.url, size=None, sha256=settings.sha256)]


def expected_size(settings: Settings) -> int | None:
    """Return the number of private patches, or None if it is not known before they are read."""
    if not settings.official:
        return None
    if settings.id_val:
        return sum(PATCHES[centre] for centre in settings.private_centres)
    return TRAIN_PATCHES if set(settings.private_centres) == set(TRAIN_CENTRES) else None


def expected_shape(settings: Settings) -> tuple[int, int, int]:
    """Return height, width and channels of an image."""
    return SIDE, SIDE, 3


def load(settings: Settings, files: Sequence[Path], rng: np.random.Generator) -> Splits:
    """Return images uint8 (n, 32, 32, 3) in the order of ``metadata.csv``; nothing is drawn at random.

    The archive is read twice, for the metadata (up to where they are) and for the patches: only patches of the chosen
    centres are decoded.

    Raises:
        CoalmineError: the metadata are missing, there twice, malformed or, although ``settings.official`` asks for it,
            not those of the release; a chosen centre has no patches; or a patch is missing, there twice, broken or
            not 96x96.
    """
    path = Path(settings.path).expanduser() if settings.path is not None else files[0]
    metadata, content = _find_metadata(path)
    patches = parse_metadata(content, f"{path}: {metadata}")
    if settings.official:
        _check_official(patches, f"{path}: {metadata}")
    private = _of(patches, settings.private_centres, with_held_out=settings.id_val)
    test = _of(patches, settings.test_centres, with_held_out=True)
    for setting, names in (("private_centres", private), ("test_centres", test)):
        if not names:
            raise CoalmineError(
                f"{path}: {metadata} lists no patches for {setting}: {list(getattr(settings, setting))}, expected at "
                "least one; choose other centres or give the whole release."
            )
    images = _read_patches(path, metadata, [*private, *test])
    labels = np.array([patches[name].label for name in (*private, *test)], dtype=np.int64)
    n = len(private)
    return Splits(ImageSet(images[:n], labels[:n]), ImageSet(images[n:], labels[n:]), CLASSES)


def public_objection(settings: Settings) -> str | None:
    """Why these data may not serve as public data."""
    return "Camelyon17 shows tissue of patients; use cinic10 with part: imagenet as public data."


def parse_metadata(data: bytes, where: str) -> dict[str, Patch]:
    """Read ``metadata.csv``; ``where`` names it in the message of a failure.

    Returns:
        What it says of each patch, by the patch's name beside ``metadata.csv``, in its order.

    Raises:
        CoalmineError: it is no CSV text, lacks a column, has a value that cannot be, or names a patch twice.
    """
    patches: dict[str, Patch] = {}
    try:
        rows = csv.DictReader(io.StringIO(data.decode(), newline=""))
        missing = [column for column in COLUMNS if column not in (rows.fieldnames or ())]
        if missing:
            raise CoalmineError(
                f"{where}: column {missing[0]!r} is missing, expected {', '.join(COLUMNS)}; give the metadata.csv of "
                "WILDS's camelyon17_v1.0."
            )
        for row in rows:
            name, patch = _patch(row, f"{where}: line {rows.line_num}")
            if name in patches:
                raise CoalmineError(
                    f"{where}: line {rows.line_num} names {name}, as another line does, expected each patch once; "
                    "fetch the file again."
                )
            patches[name] = patch
    except (UnicodeDecodeError, csv.Error) as error:
        raise CoalmineError(f"{where} is no CSV text in UTF-8 ({error}); fetch it again.") from error
    return patches


def _patch(row: Mapping[str, str], where: str) -> tuple[str, Patch]:
    try:
        patient, node, x, y, tumor, centre, split = (int(row[column]) for column in COLUMNS)
    except (TypeError, ValueError) as error:  # a short row has None for what it lacks
        found = ", ".join(f"{column}: {row[column]!r}" for column in COLUMNS)
        raise CoalmineError(f"{where} has {found}, expected whole numbers; fetch the file again.") from error
    if tumor not in (0, 1) or centre not in PATCHES or split not in (0, 1):
        raise CoalmineError(
            f"{where} has tumor {tumor}, center {centre}, split {split}, expected tumor 0 or 1, center 0 .. 4, split 0 "
            "or 1; give the metadata.csv of WILDS's camelyon17_v1.0."
        )
    slide = f"patient_{patient:03d}_node_{node}"
    return f"patches/{slide}/patch_{slide}_x_{x}_y_{y}.png", Patch(tumor, centre, split == 1)


def shrink(data: bytes, where: str) -> np.ndarray:
    """Decode a patch and resize it to uint8 (32, 32, 3) with Pillow's Lanczos filter, which averages before it samples.

    Raises:
        CoalmineError: it is broken or not 96x96; ``where`` names it.
    """
    from PIL import Image

    pixels = decode(data, where)  # drops the alpha channel that the patches have
    if pixels.shape != (PATCH_SIDE, PATCH_SIDE, 3):
        raise CoalmineError(
            f"{where} is {pixels.shape[0]} x {pixels.shape[1]} (height x width), expected {PATCH_SIDE} x {PATCH_SIDE}; "
            "give WILDS's original patches, or use image_folder for others."
        )
    return np.asarray(Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def _find_metadata(path: Path) -> tuple[PurePosixPath, bytes]:
    for name, data in members(path):
        if name.name == METADATA:
            return name, data
    raise CoalmineError(
        f"{path}: {METADATA} is missing, expected it beside patches/; give WILDS's camelyon17_v1.0, a folder or an "
        "archive."
    )


def _of(patches: Mapping[str, Patch], centres: Sequence[int], *, with_held_out: bool) -> list[str]:
    return [
        name for name, patch in patches.items() if patch.centre in centres and (with_held_out or not patch.held_out)
    ]


def _check_official(patches: Mapping[str, Patch], where: str) -> None:
    remedy = "fetch WILDS's camelyon17_v1.0 again, or set official: false if other patches are meant"
    counts = Counter(patch.centre for patch in patches.values())
    for centre, expected in PATCHES.items():
        if counts[centre] != expected:
            raise CoalmineError(
                f"{where} lists {counts[centre]} patches of centre {centre}, expected {expected}; {remedy}."
            )
    train = len(_of(patches, TRAIN_CENTRES, with_held_out=False))
    if train != TRAIN_PATCHES:
        raise CoalmineError(
            f"{where} lists {train} patches of split 0 in centres {', '.join(map(str, TRAIN_CENTRES))}, expected "
            f"{TRAIN_PATCHES}; {remedy}."
        )


def _read_patches(path: Path, metadata: PurePosixPath, names: Sequence[str]) -> np.ndarray:
    """Return the named patches, uint8 (n, 32, 32, 3) in the order of ``names``."""
    images = np.empty((len(names), SIDE, SIDE, 3), dtype=np.uint8)
    seen = np.zeros(len(names), dtype=bool)
    rows = {str(metadata.parent / name): row for row, name in enumerate(names)}
    metadata_files = 0
    for member, data in members(path):
        name = str(member)
        row = rows.get(name)
        metadata_files += member.name == METADATA
        if metadata_files > 1 or (row is not None and seen[row]):
            raise CoalmineError(
                f"{path}: {name} is a second {METADATA if row is None else 'file of its name'}, expected one; give the "
                "folder or archive of camelyon17_v1.0 alone."
            )
        if row is not None:
            images[row] = shrink(data, f"{path}: patch {name!r}")
            seen[row] = True
    if not seen.all():
        missing = list(rows)[int(np.argmin(seen))]
        raise CoalmineError(
            f"{path}: patch {missing!r} is missing, and {np.count_nonzero(~seen)} of {len(names)} in all, expected "
            f"every patch that {METADATA} lists of the chosen centres; fetch or unpack it again."
        )
    return images
