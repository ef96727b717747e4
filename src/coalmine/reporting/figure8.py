"""Figure 8: images that data-free methods make, beside their nearest private images, and the nearest public ones.

Nothing of a private image goes into them but what the teacher's weights hold. What the eye does not see leaks all the
same, see figure 9.
"""

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
    """What figure 8 may be told."""

    title: str = Field(
        default="Images made from a teacher alone, above the nearest private ones",
        description="title of the figure",
    )


def build(results: Results, settings: Settings) -> tuple[Figure, pd.DataFrame]:
    """Return the figure and one row per synthetic image drawn, see :func:`coalmine.reporting.neighbours.draw`."""
    return neighbours.draw(results, settings, "figure8")
