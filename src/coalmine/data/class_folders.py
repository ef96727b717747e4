"""Read PNG, JPEG and the like from class folders, in any container, into arrays.

The layout is ``[wrapper/]class/file`` or ``[wrapper/]{train,test,val,valid}/class/file``. The sorted class names are
the labels, and files are sorted by name, so the arrays depend neither on the container nor on its order.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from coalmine.data.archives import Limits, members
from coalmine.data.images import ImageSet
from coalmine.errors import CoalmineError

if TYPE_CHECKING:
    from PIL import Image

LAYOUT = "[wrapper/]class/file or [wrapper/]{train,test,val,valid}/class/file"
SPLITS = {"train": "train", "test": "test", "val": "valid", "valid": "valid"}
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".webp", ".tif", ".tiff"})
FORMATS = ("PNG", "JPEG", "BMP", "PPM", "WEBP", "TIFF")
MAX_PIXELS = 32 << 20
MAX_BYTES = 16 << 30  # of all images of a container, decoded
UNSPLIT = ""


@dataclass(frozen=True, eq=False)
class ClassFolders:
    """The images of class folders.

    Attributes:
        splits: images by split (``"train"``, ``"valid"``, ``"test"``), or all under ``UNSPLIT``.
        classes: the sorted class names, the same for every split.
    """

    splits: Mapping[str, ImageSet]
    classes: tuple[str, ...]


def read_class_folders(
    path: Path,
    *,
    image_size: int | None = None,
    grey: bool = False,
    wanted: Callable[[PurePosixPath], bool] | None = None,
    limits: Limits | None = None,
) -> ClassFolders:
    """Read all images of class folders.

    Args:
        path: folder, zip or tar archive.
        image_size: crop to the centred square and resize to this height and width; None takes images as they are.
        grey: one channel instead of three.
        wanted: which files to read, by name; all if None.
        limits: of the container.

    Raises:
        CoalmineError: an image is broken, too large or of another size than the first; the layout is another one;
            there are fewer than two classes; or a class is missing from a split.
    """
    pixels: dict[PurePosixPath, np.ndarray] = {}
    for name, data in members(path, limits):
        if name.suffix.lower() not in SUFFIXES or (wanted is not None and not wanted(name)):
            continue
        where = f"{path}: image {str(name)!r}"
        if name in pixels:
            raise CoalmineError(f"{where} is there twice, expected each name once; pack the archive again.")
        pixels[name] = decode(data, where, image_size=image_size, grey=grey)
        _check_same_size(path, pixels, name)
        if len(pixels) * pixels[name].nbytes > MAX_BYTES:
            raise CoalmineError(f"{path}: its images take more than {MAX_BYTES} bytes of memory; set image_size.")
    if not pixels:
        raise CoalmineError(f"{path}: no images of the wanted kind, expected {LAYOUT}; mend the path or the layout.")
    return _arrange(path, pixels)


def decode(data: bytes, where: str, *, image_size: int | None = None, grey: bool = False) -> np.ndarray:
    """Decode one image file to uint8 (height, width, channel); ``where`` names it in the message of a failure."""
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_decodable(image, where)  # size and mode come from the header: nothing is decoded yet
            converted = image.convert("L" if grey else "RGB")
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise CoalmineError(f"{where} is broken ({error}); replace the file or take it out.") from error
    if image_size is not None:
        converted = ImageOps.fit(converted, (image_size, image_size), Image.Resampling.LANCZOS)
    return np.asarray(converted).reshape(converted.height, converted.width, -1)


def _check_decodable(image: Image.Image, where: str) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise CoalmineError(
            f"{where} claims {image.width} x {image.height} pixels, expected at most {MAX_PIXELS} in all; shrink it "
            "or take it out."
        )
    if image.mode.startswith(("I", "F")):
        raise CoalmineError(f"{where} has more than 8 bits a channel (mode {image.mode}); convert it to 8 bits.")


def _check_same_size(path: Path, pixels: Mapping[PurePosixPath, np.ndarray], name: PurePosixPath) -> None:
    first = next(iter(pixels))
    if pixels[name].shape != pixels[first].shape:
        height, width, _ = pixels[first].shape
        other_height, other_width, _ = pixels[name].shape
        raise CoalmineError(
            f"{path}: image {str(first)!r} is {height} x {width} (height x width) and {str(name)!r} is "
            f"{other_height} x {other_width}, expected one size; set image_size to resize all of them."
        )


def _arrange(path: Path, pixels: dict[PurePosixPath, np.ndarray]) -> ClassFolders:
    names = sorted(pixels)
    places = _places(path, names)
    classes = tuple(sorted({class_name for _, class_name in places.values()}))
    _check_classes(path, set(places.values()), classes)
    splits = {}
    for split in sorted({split for split, _ in places.values()}):
        chosen = [name for name in names if places[name][0] == split]
        labels = np.array([classes.index(places[name][1]) for name in chosen], dtype=np.int64)
        splits[split] = ImageSet(np.stack([pixels.pop(name) for name in chosen]), labels)
    return ClassFolders(splits, classes)


def _places(path: Path, names: Sequence[PurePosixPath]) -> dict[PurePosixPath, tuple[str, str]]:
    """Return (split, class) of every name; the first one shows whether all share a wrapper."""
    first = names[0].parts[:-1]
    wrapped = len(first) == 3 or (len(first) == 2 and first[0].lower() not in SPLITS)
    wrapper = first[:1] if wrapped else ()
    places = {}
    for name in names:
        place = _place(name.parts[:-1], wrapper, depth=len(first) - len(wrapper))
        if place is None:
            raise CoalmineError(
                f"{path}: image {str(name)!r} does not fit the layout that {str(names[0])!r} begins, expected "
                f"{LAYOUT} for all; move or remove what does not belong."
            )
        places[name] = place
    return places


def _place(folders: tuple[str, ...], wrapper: tuple[str, ...], depth: int) -> tuple[str, str] | None:
    inner = folders[len(wrapper) :]
    if folders[: len(wrapper)] != wrapper or len(inner) != depth:
        return None
    match inner:
        case (class_name,):
            return UNSPLIT, class_name
        case (split, class_name) if split.lower() in SPLITS:
            return SPLITS[split.lower()], class_name
    return None


def _check_classes(path: Path, places: set[tuple[str, str]], classes: tuple[str, ...]) -> None:
    hidden = next((name for name in classes if not name.isprintable()), None)
    if hidden is not None:
        raise CoalmineError(f"{path}: the class {hidden!r} has a name that cannot be printed; rename its folder.")
    if len(classes) < 2:
        raise CoalmineError(f"{path}: {classes[0]!r} is the only class, expected at least two; add class folders.")
    for split in sorted({split for split, _ in places}):
        for class_name in classes:
            if (split, class_name) not in places:
                raise CoalmineError(
                    f"{path}: class {class_name!r} has no images in split {split!r}, expected the same classes in "
                    "every split; add its folder or take the class out everywhere."
                )
