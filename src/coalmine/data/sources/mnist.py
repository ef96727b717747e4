"""MNIST (LeCun et al. 1998) and Fashion-MNIST (Xiao et al. 2017): 60,000 training and 10,000 test images 28x28, grey.

Both consist of four gzipped IDX files of the same names. The position in the training file is the index that canaries
are named by. Addresses and MD5 sums of the gzipped files are those of ``torchvision.datasets``. A gzipped file's sum
changes with every packing, so what is read is known by the MD5 sum of its unpacked content. Fashion-MNIST's sums were
computed from Debian's package ``dataset-fashion-mnist``, whose files give torchvision's once gzip's name and time are
put back; MNIST's are those that public download scripts check beside torchvision's.

The images are framed with zeros to 32x32 unless ``size`` says otherwise, because U-Nets halve it several times.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from pydantic import Field

import coalmine.settings
from coalmine.data.archives import Limits, members
from coalmine.data.download import RemoteFile
from coalmine.data.images import ImageSet, Splits
from coalmine.errors import CoalmineError

CLASSES = tuple("0123456789")
"""Names of MNIST's classes. Fashion-MNIST has as many, and ``load`` names them."""

TRAIN = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
TEST = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
NAMES = (*TRAIN, *TEST)
TRAIN_SIZE = 60_000
SIDE = 28
UNSIGNED_BYTE = 0x08  # IDX's code of the type
MAX_BYTES = Limits().member_bytes  # unpacked; the largest official file has 47,040,016


@dataclass(frozen=True)
class Variant:
    """One data set in MNIST's format; tuples are in the order of ``NAMES``.

    Attributes:
        prefix: begins the names of downloaded files, because all data sets share one folder.
        url: the folder that holds the gzipped files.
        classes: the name of each label.
        sizes: bytes of each gzipped file.
        md5: of each gzipped file.
        content_md5: of each file, unpacked.
    """

    prefix: str
    url: str
    classes: tuple[str, ...]
    sizes: tuple[int, ...]
    md5: tuple[str, ...]
    content_md5: tuple[str, ...]


VARIANTS = {
    "digits": Variant(
        prefix="mnist-",
        url="https://ossci-datasets.s3.amazonaws.com/mnist/",
        classes=CLASSES,
        sizes=(9_912_422, 28_881, 1_648_877, 4_542),
        md5=(
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
        content_md5=(
            "6bbc9ace898e44ae57da46a324031adb",
            "a25bea736e30d166cdddb491f175f624",
            "2646ac647ad5339dbf082846283269ea",
            "27ae3e4e09519cfbb04c329615203637",
        ),
    ),
    "fashion": Variant(
        prefix="fashion-mnist-",
        url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        classes=(
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
        sizes=(26_421_880, 29_515, 4_422_102, 5_148),
        md5=(
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
        content_md5=(
            "f4a8712d7a061bf5bd6d2ca38dc4d50a",
            "9018921c3c673c538a1fc5bad174d6f9",
            "8181f5470baa50b63fa0f6fddb340f0a",
            "15d484375f8d13e6eb1aabb0c3f46965",
        ),
    ),
}


class Settings(coalmine.settings.Settings):
    """What may be set for MNIST and Fashion-MNIST."""

    path: str | None = Field(
        default=None,
        min_length=1,
        description="A folder or archive with the four IDX files, gzipped or not, at hand; read in place of a "
        "download. Debian's package dataset-fashion-mnist installs /usr/share/datasets/fashion-mnist.",
    )
    url: str | None = Field(
        default=None,
        min_length=1,
        description="Folder to fetch the four gzipped files from, e.g. the mirror http://yann.lecun.com/exdb/mnist/; "
        "null takes torchvision's. The hashes must hold anyway.",
    )
    variant: Literal["digits", "fashion"] = Field(
        default="digits", description="Which data set: MNIST's handwritten digits or Fashion-MNIST's clothes."
    )
    size: int = Field(
        default=32,
        ge=SIDE,
        le=64,
        multiple_of=2,
        description="Height and width in pixels that images are framed to with zeros; 28 takes them as they are.",
    )
    official: bool = Field(
        default=True,
        description="Refuse files whose content is not the official one, whose order gives the canaries their indices; "
        "false takes any files of the same names and format.",
    )


def files(settings: Settings) -> list[RemoteFile]:
    """Return the four gzipped files, or nothing if a local path replaces them. Only their MD5 sums are published."""
    if settings.path is not None:
        return []
    variant = VARIANTS[settings.variant]
    folder = (settings.url or variant.url).rstrip("/")
    return [
        RemoteFile(f"{variant.prefix}{name}.gz", f"{folder}/{name}.gz", size, sha256=None, md5=md5)
        for name, size, md5 in zip(NAMES, variant.sizes, variant.md5, strict=True)
    ]


def expected_size(settings: Settings) -> int | None:
    """Return the number of training images, or None if the files need not be the official ones."""
    return TRAIN_SIZE if settings.official else None


def expected_shape(settings: Settings) -> tuple[int, int, int]:
    """Return height, width and channels of an image."""
    return settings.size, settings.size, 1


def load(settings: Settings, files: Sequence[Path], rng: np.random.Generator) -> Splits:
    """Return images uint8 (n, size, size, 1) in the order of the files; nothing is drawn at random.

    Raises:
        CoalmineError: a file is missing, there twice or damaged; it is no IDX file of its kind; images and labels do
            not fit together; or the content is not the official one although ``settings.official`` asks for it.
    """
    variant = VARIANTS[settings.variant]
    if settings.path is not None:
        found = _local(Path(settings.path).expanduser(), variant)
    else:
        found = {name: (str(file), file.read_bytes()) for name, file in zip(NAMES, files, strict=True)}
    md5 = dict(zip(NAMES, variant.content_md5, strict=True)) if settings.official else {}
    train, test = (_part(*names, found, md5, settings.size) for names in (TRAIN, TEST))
    return Splits(train, test, variant.classes)


def public_objection(settings: Settings) -> str | None:
    """Why these data with these settings may not serve as public data, or None."""
    if settings.variant == "fashion":  # photographs of goods; whether they differ from the private data, the user knows
        return None
    return (
        "MNIST's digits come from real people and stand for private data; use rendered_digits, which are drawn from "
        f"fonts, with image_size: {settings.size} as public data."
    )


def parse(data: bytes, n_dims: int, where: str) -> np.ndarray:
    """Decode an IDX file of unsigned bytes.

    The format: two zero bytes, the type, the number of dimensions, each dimension as a big-endian 32-bit number, then
    the values, the last dimension running fastest.

    Args:
        data: the file, unpacked.
        n_dims: the number of dimensions that it must have: 3 for images (image, row, column), 1 for labels.
        where: names the file in the message of a failure.

    Returns:
        uint8 array of ``n_dims`` dimensions.

    Raises:
        CoalmineError: the file is of another type, or shorter or longer than its header says.
    """
    magic = bytes([0, 0, UNSIGNED_BYTE, n_dims])
    if data[:4] != magic:
        raise CoalmineError(
            f"{where} begins with {data[:4].hex() or 'nothing'}, expected {magic.hex()}, which marks an IDX file of "
            f"unsigned bytes in {n_dims} dimensions; fetch it again, or give it the name of what it holds."
        )
    header = len(magic) + 4 * n_dims
    shape = [int.from_bytes(data[k : k + 4], "big") for k in range(len(magic), header, 4)]
    expected = header + math.prod(shape)
    if len(data) != expected:
        raise CoalmineError(
            f"{where} has {len(data)} bytes unpacked, expected {expected} for its shape {tuple(shape)}; it is cut "
            "off or damaged: fetch it again."
        )
    return np.frombuffer(data, dtype=np.uint8, offset=header).reshape(shape)


def _unpacked(data: bytes, where: str) -> bytes:
    """Undo gzip, if it is used, up to a size that no such file reaches unless it is a compression bomb."""
    if not data.startswith(b"\x1f\x8b"):
        return data
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise CoalmineError(f"{where} is damaged or cut off ({error}); fetch it again.") from error
    if len(content) > MAX_BYTES:
        raise CoalmineError(f"{where} unpacks to more than {MAX_BYTES} bytes; use the original file.")
    return content


def _local(path: Path, variant: Variant) -> dict[str, tuple[str, bytes]]:
    """Find the four files in a folder or archive: name -> (where it is, for messages, and its bytes)."""
    pattern = re.compile(rf"(?:{variant.prefix})?((?:train|t10k)-(?:images[-.]idx3|labels[-.]idx1)-ubyte)(?:\.gz)?")
    if path.is_file() and pattern.fullmatch(path.name):
        raise CoalmineError(
            f"{path} is one of four files, expected the folder or archive that holds them all; set path: {path.parent}."
        )
    found: dict[str, tuple[PurePosixPath, bytes]] = {}
    for member, data in members(path):
        match = pattern.fullmatch(member.name)
        if match is None:
            continue
        name = match[1].replace(".", "-")
        if name in found and not _is_packed(member, found[name][0]):
            raise CoalmineError(
                f"{path}: {member} is there twice, the other one is {found[name][0]}, expected one {name}; remove one "
                "of them, or give the folder of one data set."
            )
        found[name] = member, data
    missing = [name for name in NAMES if name not in found]
    if missing:
        raise CoalmineError(
            f"{path}: {missing[0]} is missing, expected {', '.join(NAMES)}, each with or without .gz; add it, or give "
            "the folder or archive that holds all four."
        )
    return {name: (f"{path}: {member}", data) for name, (member, data) in found.items()}


def _is_packed(one: PurePosixPath, other: PurePosixPath) -> bool:
    """Tell whether one file is the other one gzipped: torchvision keeps both, side by side."""
    return f"{one}.gz" == str(other) or f"{other}.gz" == str(one)


def _read(data: bytes, n_dims: int, where: str, md5: str | None) -> np.ndarray:
    """Unpack and decode a file, and check the hash of its content unless that may be any."""
    content = _unpacked(data, where)
    values = parse(content, n_dims, where)  # first, because it tells more of a file that is cut off than a wrong hash
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if md5 not in (None, found):
        raise CoalmineError(
            f"{where}: MD5 of the unpacked file is {found}, expected {md5}; fetch it again, mend the setting "
            "`variant`, or set official: false if other data in this format are meant."
        )
    return values


def _part(
    images_name: str,
    labels_name: str,
    found: Mapping[str, tuple[str, bytes]],
    md5: Mapping[str, str],
    size: int,
) -> ImageSet:
    """Return the training or the test images from their two files, with their labels."""
    (where_images, images_file), (where_labels, labels_file) = found[images_name], found[labels_name]
    images = _read(images_file, 3, where_images, md5.get(images_name))
    labels = _read(labels_file, 1, where_labels, md5.get(labels_name))
    _check_images(images, where_images)
    _check_labels(labels, where_labels, len(images), where_images)
    return ImageSet(_framed(images, size), labels.astype(np.int64))


def _check_images(images: np.ndarray, where: str) -> None:
    if images.shape[1:] != (SIDE, SIDE) or not len(images):
        raise CoalmineError(
            f"{where} has shape {images.shape}, expected at least one image of {SIDE} x {SIDE}; give files of MNIST's "
            "format, or use image_folder for images of another size."
        )


def _check_labels(labels: np.ndarray, where: str, n_images: int, where_images: str) -> None:
    if len(labels) != n_images:
        raise CoalmineError(
            f"{where} has {len(labels)} labels, expected {n_images}, one for each image of {where_images}; take both "
            "files from the same release."
        )
    if labels.max() >= len(CLASSES):
        record = int(np.argmax(labels >= len(CLASSES)))
        raise CoalmineError(
            f"{where}: record {record} has label {labels[record]}, expected 0 .. 9; fetch the file again, or give one "
            "with ten classes."
        )


def _framed(images: np.ndarray, size: int) -> np.ndarray:
    """Return uint8 (n, size, size, 1): the images (n, 28, 28) in the middle of zeros."""
    margin = (size - SIDE) // 2
    return np.pad(images, ((0, 0), (margin, margin), (margin, margin)))[..., np.newaxis]
