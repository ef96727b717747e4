"""How sure models are of a label: probabilities, curves over them, and the panels that show these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from coalmine.reporting.common import ReportSettings

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.axes import Axes

    from coalmine.reporting.arrays import RunData
    from coalmine.reporting.results import Results

KINDS = ("true", "wrong")
"""The labels of a canary that confidence is shown in."""

STEPS = 200


def refuse_controls(results: Results, settings: ReportSettings, name: str) -> None:
    """Refuse controls, which have no models of their own, on behalf of the figure ``name``."""
    from coalmine.errors import CoalmineError

    for method in settings.methods:
        if results.metrics[method].membership == "shuffled":
            raise CoalmineError(
                f"{name} lists {method}, a control that reuses another method's models. Leave it out of the figure's "
                "methods."
            )


def require_as_many(data: RunData, method: str, shadow: int, asked: int, images: int) -> None:
    """Refuse logits of other synthetic images than those of the set that the model learned from."""
    from coalmine.errors import CoalmineError

    if asked != images:
        raise CoalmineError(
            f"{data.root / 'logits' / method}: model {shadow} was asked about {asked} synthetic images, but its set "
            f"has {images}. Delete the method's logits and run Snakemake again."
        )


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return float64 probabilities ``(..., class)`` from logits of that shape."""
    import numpy as np

    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    probabilities: np.ndarray = shifted / shifted.sum(axis=-1, keepdims=True)
    return probabilities


def curves(found: Mapping[Any, np.ndarray], keys: Sequence[str], **head: str) -> pd.DataFrame:
    """Return, for each entry with queries, the share of them at least as confident as each step from 0 to 1.

    Args:
        found: probabilities ``(query,)`` by what they are of, a tuple of texts.
        keys: the columns that tell what that is.
        head: columns in front, the same for all.
    """
    import numpy as np
    import pandas as pd

    steps = np.arange(STEPS + 1) / STEPS
    return pd.concat(
        [
            pd.DataFrame(
                {
                    **head,
                    **dict(zip(keys, key, strict=True)),
                    "n": len(values),
                    "mean": values.mean(),
                    "confidence": steps,
                    "share": 1 - np.searchsorted(np.sort(values), steps, side="left") / len(values),
                }
            )
            for key, values in found.items()
            if len(values)
        ]
    )


def plot(axes: Axes, curve: pd.DataFrame, name: str, **drawn: Any) -> None:
    """Draw one curve of :func:`curves`, if there is one."""
    if len(curve):
        axes.plot(curve["confidence"], curve["share"], label=name, **drawn)


def dress(panels: Sequence[Axes]) -> None:
    """Make both axes of panels of curves percent axes from 0 to 100 %."""
    from coalmine.reporting.style import percent_axis

    for axes in panels:
        percent_axis(axes.xaxis)
        percent_axis(axes.yaxis)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.02)


def named(panels: Sequence[Axes], names: Sequence[str]) -> tuple[list[Any], list[str]]:
    """Return one line of each of ``names`` that some panel draws, and these names, for a legend."""
    lines = {str(line.get_label()): line for axes in panels for line in axes.get_lines()}
    drawn = [name for name in names if name in lines]
    return [lines[name] for name in drawn], drawn
