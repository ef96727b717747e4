"""Images drawn in panels: one, or many as tiles of one panel, with a heading above."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def head(axes: Axes, heading: str) -> None:
    """Write a heading above a block; it takes height, but no width from the column that it begins in."""
    axes.set_title(" ", fontsize=8, pad=12)
    text = axes.annotate(heading, (0, 1), (0, 6), xycoords="axes fraction", textcoords="offset points", fontsize=8)
    text.set_in_layout(False)


def unit_scale(images: np.ndarray) -> np.ndarray:
    """Return images, uint8 or float on the scale from 0 to 1, as floats clamped to that scale."""
    scaled: np.ndarray = np.clip(images / 255 if images.dtype == np.uint8 else images, 0, 1)
    return scaled


def show(axes: Axes, picture: np.ndarray, framed: bool) -> None:
    """Show one image, uint8 or float on the scale from 0 to 1, (height, width, channel), each pixel as a square."""
    from coalmine.reporting.style import FAINT, look

    values = unit_scale(picture)
    grey = values.shape[-1] == 1
    axes.imshow(values[..., 0] if grey else values, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(visible=True, edgecolor=look(1).colour if framed else FAINT, linewidth=2 if framed else 0.5)


def tiled(images: np.ndarray, rows: list[np.ndarray], columns: int, gap: int) -> np.ndarray:
    """Return one picture, float (height, width, channel) from 0 to 1, of images in rows; white where there is none.

    Args:
        images: uint8, or float on the scale from 0 to 1, (n, height, width, channel).
        rows: positions of the images in each row, int64, ``columns`` at most.
        columns: images a row.
        gap: pixels between two images.
    """
    height, width, channels = images.shape[1:]
    picture = np.ones((len(rows) * (height + gap) - gap, columns * (width + gap) - gap, channels))
    for row, positions in enumerate(rows):
        top = row * (height + gap)
        for column, image in enumerate(unit_scale(images[positions])):
            left = column * (width + gap)
            picture[top : top + height, left : left + width] = image
    return picture
