"""Synthetic images beside the private images that they are nearest to, and the nearest public ones.

A membership attack asks the models; this asks the eye. The images of one shadow model are shown, the nearest first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from coalmine.reporting.common import ReportSettings
from coalmine.reporting.visual import METRICS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from coalmine.reporting.arrays import RunData, SyntheticSet
    from coalmine.reporting.results import Results, Visual

ROWS = {"synthetic": "synthetic", "private": "nearest\nprivate", "public": "nearest\npublic"}


class Settings(ReportSettings):
    """What a figure of images and their nearest neighbours may be told."""

    shadow: int = Field(default=0, ge=0, description="the shadow model whose synthetic images are shown")
    images: int = Field(default=10, ge=1, le=20, description="synthetic images shown of each method, the nearest first")
    metric: Literal["pixel", "ssim", "features"] = Field(
        default="pixel", description="what nearness means: pixels (L2), SSIM, or features of a public network"
    )


def draw(results: Results, settings: Settings, name: str) -> tuple[Figure, pd.DataFrame]:
    """Return the figure and one row per synthetic image drawn: what is nearest to it, how near, and how surprising.

    Args:
        results: of the run.
        settings: of the figure.
        name: of the figure, for messages.

    Raises:
        CoalmineError: a method makes no synthetic images, the shadow model or the distance is not there, or a file is
            missing or broken.
    """
    import pandas as pd

    from coalmine.reporting import pictures, style
    from coalmine.reporting.arrays import RunData

    data = RunData(results.root)
    visuals = {method: _visual(results, method, name) for method in settings.methods}
    _check_shadow(visuals, settings, name)
    _check_metric(visuals, settings, name)
    metric = settings.metric
    sets = {method: data.synthetic(settings.sets[method], settings.shadow) for method in settings.methods}
    frame = pd.concat([_frame(data, sets[method], method, metric, settings) for method in sets], ignore_index=True)
    kinds = [kind for kind in ROWS if kind != "public" or "public_index" in frame]
    with style.context():
        figure, blocks = _grid(len(sets), kinds, int(frame["rank"].max()))
        for method, block in zip(sets, blocks, strict=True):
            part = frame[frame["method"] == method]
            _show_block(block, part, sets[method], data, visuals[method].level)
            pictures.head(block["synthetic"][0], f"{settings.label(method)}: {_found(part, visuals[method], metric)}")
        style.set_title(figure, settings.title, _explained(settings, frame, visuals, kinds))
    return figure, frame


def _check_shadow(visuals: dict[str, Visual], settings: Settings, name: str) -> None:
    """Refuse a shadow model that some method does not have."""
    from coalmine.errors import CoalmineError

    for method, visual in visuals.items():
        models = min(len(each.per_model) for each in visual.metrics.values())
        if settings.shadow >= models:
            raise CoalmineError(
                f"{name}.shadow is {settings.shadow}, but {method} has the shadow models 0 to {models - 1}. Choose one "
                "of them."
            )


def _visual(results: Results, method: str, name: str) -> Visual:
    from coalmine.errors import CoalmineError

    visual = results.visual(method)
    if visual is None:
        raise CoalmineError(
            f"{name} lists {method}, of which no synthetic images were compared with private ones: it makes none, or "
            "`visual` is null. Leave it out of the figure's methods, or set `visual`."
        )
    return visual


def _check_metric(visuals: dict[str, Visual], settings: Settings, name: str) -> None:
    """Refuse a distance that was not computed for every method."""
    from coalmine.errors import CoalmineError

    known = [metric for metric in METRICS if all(metric in each.metrics for each in visuals.values())]
    if settings.metric not in known:
        raise CoalmineError(
            f"{name} shows the distance by {settings.metric}, but computed for all its methods were "
            f"{', '.join(known) or 'none'}. Choose {name}.metric among them, or set visual.features."
        )


def _frame(data: RunData, synthetic: SyntheticSet, method: str, metric: str, settings: Settings) -> pd.DataFrame:
    """Return the images drawn of one method, the nearest first."""
    import numpy as np
    import pandas as pd

    from coalmine.errors import CoalmineError

    owner = settings.sets[method]
    near = data.neighbours(owner, metric, synthetic, settings.shadow)
    if not len(near.position):
        raise CoalmineError(
            f"No synthetic image of {owner} for shadow model {settings.shadow} was compared with private ones. Delete "
            f"{data.root / 'visual' / owner}.npz and run Snakemake again."
        )
    first = np.lexsort((near.position, near.private.distance))[: settings.images]
    position, names = near.position[first], np.array(data.classes)
    columns = {
        "method": method,
        "label": settings.label(method),
        "shadow": settings.shadow,
        "rank": np.arange(1, len(first) + 1),
        "position": position,
        "class": names[synthetic.labels[position]],
        "source": synthetic.source[position],
        "metric": metric,
        "p": near.p[first],
    }
    for kind, nearest in (("private", near.private), ("held_out", near.held_out), ("public", near.public)):
        if nearest is not None:
            columns[f"{kind}_index"] = nearest.index[first]
            columns[f"{kind}_distance"] = nearest.distance[first]
    columns["private_class"] = names[data.private.labels[near.private.index[first]]]
    return pd.DataFrame({**columns, "n_compared": len(near.position), "n_synthetic": len(synthetic.source)})


def _grid(methods: int, kinds: Sequence[str], columns: int) -> tuple[Figure, list[dict[str, list[Axes]]]]:
    """Return a figure with one block of axes per method: a row per kind of image, a column per synthetic image."""
    from coalmine.reporting import style

    side = (style.WIDTH - 0.9) / max(columns, 8) - 0.12
    height = methods * (0.24 + len(kinds) * (side + 0.24))
    figure, panels = style.new_figure(height, (methods * len(kinds), columns))
    rows = [panels[start : start + columns] for start in range(0, len(panels), columns)]
    starts = range(0, len(rows), len(kinds))
    return figure, [dict(zip(kinds, rows[start : start + len(kinds)], strict=True)) for start in starts]


def _show_block(
    block: dict[str, list[Axes]], part: pd.DataFrame, synthetic: SyntheticSet, data: RunData, level: float
) -> None:
    """Draw the images of one method, with the distance or p-value underneath each."""
    from coalmine.reporting import pictures
    from coalmine.reporting.layout import number
    from coalmine.reporting.style import INK, QUIET

    for kind, row in block.items():
        row[0].set_ylabel(ROWS[kind], rotation=0, ha="right", va="center", fontsize=7, color=QUIET)
        for axes in row[len(part) :]:
            axes.remove()
        for axes, image in zip(row, part.to_dict("records"), strict=False):
            flagged = image["p"] <= level
            if kind == "synthetic":
                picture, said = synthetic.images[image["position"]], number(image["p"], 2)
            else:
                pool = data.private if kind == "private" else data.public
                picture, said = pool.images[image[f"{kind}_index"]], number(image[f"{kind}_distance"], 3)
            pictures.show(axes, picture, framed=kind == "private" and image["private_index"] == image["source"])
            loud = kind == "synthetic" and flagged
            axes.set_xlabel(
                said, fontsize=6, labelpad=2, color=INK if loud else QUIET, fontweight="bold" if loud else "normal"
            )
            axes.set_gid(f"{image['method']}/{image['rank']}/{kind}")


def _found(part: pd.DataFrame, visual: Visual, metric: str) -> str:
    """Return how many images are shown of how many, and how many of all are as near as chance brings few."""
    from coalmine.reporting.layout import general, percent

    level, share = f"{general(100 * visual.level)} %", percent(visual.metrics[metric].share.value)
    shown = f"nearest {len(part)} of {part['n_compared'].iloc[0]}"
    return f"{shown}; over all models, p ≤ {level} for {share} (by chance {level} at most)"


def _explained(settings: Settings, frame: pd.DataFrame, visuals: dict[str, Visual], kinds: Sequence[str]) -> str:
    from coalmine.reporting.layout import general

    levels = " or ".join(dict.fromkeys(f"{general(100 * each.level)} %" for each in visuals.values()))
    started = (frame["source"] >= 0).any()
    framed = " Framed: the very image that the synthetic one started from, or copies." if started else ""
    reference = "" if "public" in kinds else " The run has no public images to compare with."
    return (
        f"Shadow model {settings.shadow}. Under synthetic images p: how rarely a fresh image would be as near to a "
        f"private one; bold: {levels} or less. Under the others: {METRICS[settings.metric]}.{framed}{reference}"
    )
