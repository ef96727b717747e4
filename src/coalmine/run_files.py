"""The files of a run that several stages read: images with labels, and the audit design."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np

from coalmine.artefacts import as_block, check_header, digest, read_json, read_npy, read_text, write_bytes, write_npy
from coalmine.audit.design import Design
from coalmine.data.images import ImageSet
from coalmine.errors import REMEDY, CoalmineError

_COLUMNS = ("canary", "index", "true_label", "canary_label", "mislabelled")


def read_classes(path: Path) -> tuple[str, ...]:
    """Read the class names that the ``prepare`` stage wrote.

    Raises:
        CoalmineError: the file is missing or broken, or does not list different names.
    """
    classes = as_block(path, read_json(path))["classes"]
    texts = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    if not texts or not 0 < len(set(classes)) == len(classes):
        raise CoalmineError(f"{path}: classes are {classes!r}, expected a list of different names. {REMEDY}")
    return tuple(classes)


def read_images(images: Path, labels: Path) -> ImageSet:
    """Read ``images.npy`` (uint8 (n, height, width, channel)) and ``labels.npy`` (int64 (n,))."""
    pixels = read_npy(images, "uint8", (None, None, None, None))
    return ImageSet(pixels, read_npy(labels, "int64", (len(pixels),)))


def write_design(canaries: Path, membership: Path, design: Design) -> None:
    """Write ``canaries.csv`` and ``membership.npy``."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(_COLUMNS)
    columns = (design.index, design.true_label, design.canary_label, design.mislabelled.astype(np.int64))
    writer.writerows([number, *map(int, row)] for number, row in enumerate(zip(*columns, strict=True)))
    write_bytes(canaries, table.getvalue().encode())
    write_npy(membership, design.membership)


def read_design(canaries: Path, membership: Path, labels: np.ndarray) -> Design:
    """Read the audit design and check it against the true labels of the private data.

    Raises:
        CoalmineError: the table is malformed, or it was drawn for other data.
    """
    try:
        rows = list(csv.reader(io.StringIO(read_text(canaries), newline="")))
        table = np.array(rows[1:], dtype=np.int64).reshape(-1, len(_COLUMNS))
    except (csv.Error, OverflowError, ValueError) as error:
        raise CoalmineError(f"{canaries} is not a readable table of canaries ({error}). {REMEDY}") from error
    columns = rows[0] if rows else []
    if columns != list(_COLUMNS):
        raise CoalmineError(f"{canaries}: the columns are {columns}, expected {list(_COLUMNS)}. {REMEDY}")
    number, index, true_label, canary_label, mislabelled = table.T.copy()
    if not np.array_equal(number, np.arange(len(index))) or len(np.unique(index)) < len(index):
        raise CoalmineError(f"{canaries}: expected the canaries 0, 1, 2 and so on, each another sample. {REMEDY}")
    if not np.array_equal(mislabelled, canary_label != true_label) or canary_label.min(initial=0) < 0:
        raise CoalmineError(f"{canaries}: mislabelled must be 1 where the two labels differ, else 0. {REMEDY}")
    inside = index.min(initial=0) >= 0 and index.max(initial=-1) < len(labels)
    if not inside or not np.array_equal(labels[index], true_label):
        raise CoalmineError(
            f"{canaries} was drawn for other private data: its true labels are not those of the data at hand. "
            "Delete the run's audit folder and run Snakemake again."
        )
    included = read_npy(membership, "bool", (len(index), None))
    try:
        return Design(index, true_label, canary_label, mislabelled.astype(bool), included)
    except ValueError as error:
        raise CoalmineError(f"{canaries} and {membership} are no audit design ({error}). {REMEDY}") from error


def read_account(path: Path, method: str, design: str) -> dict[str, Any]:
    """Read what the ``account`` stage wrote for a method under the design with this digest.

    Raises:
        CoalmineError: the file is missing, broken, or another method's or design's.
    """
    account = as_block(path, read_json(path))
    check_header(path, account, stage="account", spec__method=method, inputs__design=design)
    return account


def design_digest(design: Design) -> str:
    """Digest of everything that the design fixes."""
    return digest(design.index, design.true_label, design.canary_label, design.mislabelled, design.membership)
