"""How good synthetic images are, in tables and figures: plain columns, and what was compared with what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from coalmine.reporting.layout import Row

if TYPE_CHECKING:
    from coalmine.reporting.results import OverModels, Quality

MEASURES = ("distance", "precision", "recall", "nearest", "nearest_balanced")

UNLIKE = "Distances by other features, or of other numbers of images, cannot be compared."


def quality_columns(quality: Quality) -> dict[str, Any]:
    """Return what was compared with what, and every measure: its mean over models and its standard error."""
    columns: dict[str, Any] = {
        "space": quality.space.name,
        "inception": quality.space.inception,
        "images": quality.images,
        "reference": quality.reference,
        "neighbours": quality.neighbours,
        "quality_models": len(quality.shadows),
    }
    for name in MEASURES:
        found: OverModels | None = getattr(quality, name)
        columns[name] = found.value if found else None
        columns[f"{name}_se"] = found.se if found else None
    return columns


def distance_name(rows: Sequence[Row]) -> str:
    """Return the name of the distance: FID only by the features of Inception-v3."""
    return "FID" if all(row["inception"] for row in rows) else "Fréchet distance"


def compared(rows: Sequence[Row]) -> list[str]:
    """Return the features that images were compared by, and the numbers of images and models, each kind once.

    Args:
        rows: hold :func:`quality_columns`.
    """
    return list(
        dict.fromkeys(
            f"{row['space']}: {row['images']:,.0f} images of each set against {row['reference']:,.0f} private ones, "
            f"{row['quality_models']:.0f} {'models' if row['quality_models'] > 1 else 'model'}"
            for row in rows
        )
    )


def unlike(rows: Sequence[Row]) -> bool:
    """Tell whether distances cannot be compared, as other features or numbers of images are behind them."""
    return len({(row["space"], row["images"], row["reference"]) for row in rows}) > 1
