"""Figure 6: synthetic images of each method beside their nearest private images, and the nearest public ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from coalmine.reporting import neighbours

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from coalmine.reporting.results import Results

NEEDS = frozenset({"visual", "synthetic", "data"})


class Settings(neighbours.Settings):
    """What figure 6 may be told."""

    title: str = Field(
        default="Synthetic images above the private images that they are nearest to",
        description="title of the figure",
    )


def build(results: Results, settings: Settings) -> tuple[Figure, pd.DataFrame]:
    """Return the figure and one row per synthetic image drawn, see :func:`coalmine.reporting.neighbours.draw`."""
    return neighbours.draw(results, settings, "figure6")
