"""Samples of private diffusion: the first synthetic images of every class, method by method, as they come."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from coalmine.reporting.common import ReportSettings

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from coalmine.reporting.arrays import RunData, SyntheticSet
    from coalmine.reporting.results import Results

NEEDS = frozenset({"synthetic"})

NAMES, GAP = 0.75, 0.2
"""Room for the names of classes, and between blocks, in inches."""

SMALLEST, LARGEST = 0.3, 0.5
"""Width of an image in inches: as many blocks stand side by side as leave it that."""


class Settings(ReportSettings):
    """What the samples may be told."""

    title: str = Field(default="Synthetic images, class by class", description="title of the figure")
    shadow: int = Field(default=0, ge=0, description="the shadow model whose synthetic images are shown")
    columns: int = Field(default=8, ge=1, le=20, description="images of each class")


def build(results: Results, settings: Settings) -> tuple[Figure, pd.DataFrame]:
    """Return the figure and one row per image drawn.

    Columns: method, label (name for people), shadow, class, column, position (in the set), source (the private index
    that the image started from, else -1).

    Raises:
        CoalmineError: a method makes no synthetic images, or a file is missing, broken or another's.
    """
    import pandas as pd

    from coalmine.reporting import style
    from coalmine.reporting.arrays import RunData

    data = RunData(results.root)
    sets = {method: _read(data, settings, method) for method in settings.methods}
    chosen = {method: _first(made.labels, len(data.classes), settings.columns) for method, made in sets.items()}
    frames = [_frame(data, settings, method, sets[method], chosen[method]) for method in sets]
    with style.context():
        figure, panels, across = _blocks([*sets.values()], len(data.classes), settings.columns)
        for number, (axes, (method, made)) in enumerate(zip(panels, sets.items(), strict=False)):
            _draw(axes, made, chosen[method], settings.columns, data.classes if number % across == 0 else ())
            axes.set_title(settings.label(method), fontsize=8.5, loc="left")
            axes.set_gid(method)
        for unused in panels[len(sets) :]:
            unused.remove()
        style.set_title(figure, settings.title, _explained(settings, sets, chosen))
    return figure, pd.concat(frames, ignore_index=True)


def _read(data: RunData, settings: Settings, method: str) -> SyntheticSet:
    from coalmine.errors import CoalmineError

    owner = settings.sets.get(method)
    if owner is None:
        raise CoalmineError(f"dpdiff_samples lists {method}, which makes no synthetic images. Leave it out.")
    return data.synthetic_alone(owner, settings.shadow)


def _first(labels: np.ndarray, classes: int, columns: int) -> list[np.ndarray]:
    """Return the positions of the first so many images of each class, int64."""
    import numpy as np

    return [np.flatnonzero(labels == number)[:columns] for number in range(classes)]


def _frame(
    data: RunData, settings: Settings, method: str, made: SyntheticSet, chosen: list[np.ndarray]
) -> pd.DataFrame:
    """Return the images drawn of one method, class by class."""
    import numpy as np
    import pandas as pd

    positions = np.concatenate(chosen)
    return pd.DataFrame(
        {
            "method": method,
            "label": settings.label(method),
            "shadow": settings.shadow,
            "class": np.array(data.classes)[made.labels[positions]],
            "column": np.concatenate([np.arange(1, len(each) + 1) for each in chosen]),
            "position": positions,
            "source": made.source[positions],
        }
    )


def _blocks(sets: list[SyntheticSet], classes: int, columns: int) -> tuple[Figure, list[Axes], int]:
    """Return a figure, a panel for each block, row by row, and how many blocks stand side by side."""
    from coalmine.reporting import style

    room = style.WIDTH - NAMES
    across = min(len(sets), max(1, int(room // (columns * SMALLEST + GAP))))
    side = min(LARGEST, (room / across - GAP) / columns)
    rows = -(-len(sets) // across)
    tallest = max(made.images.shape[1] / made.images.shape[2] for made in sets)
    height = rows * (classes * side * tallest + 0.35)
    width = max(NAMES + across * (columns * side + GAP), 4.0)
    figure, panels = style.new_figure(height, (rows, across), width)
    return figure, panels, across


def _draw(axes: Axes, made: SyntheticSet, chosen: list[np.ndarray], columns: int, classes: tuple[str, ...]) -> None:
    """Draw one block: a row a class, with the names of these at the left if they are given."""
    from coalmine.reporting import pictures

    height = made.images.shape[1]
    gap = max(1, height // 16)
    pictures.show(axes, pictures.tiled(made.images, chosen, columns, gap), framed=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0)
    axes.set_yticks([row * (height + gap) + (height - 1) / 2 for row in range(len(classes))], classes, fontsize=7.5)


def _explained(settings: Settings, sets: dict[str, SyntheticSet], chosen: dict[str, list[np.ndarray]]) -> str:
    short = any(len(each) < settings.columns for rows in chosen.values() for each in rows)
    soft = any(made.confidence is not None for made in sets.values())
    return (
        f"Shadow model {settings.shadow}. Of each class the first {settings.columns} images of the set, none picked"
        + ("; of soft labels, the likeliest class" if soft else "")
        + ("; blank where a class has fewer." if short else ".")
    )
