"""ROC curves on a common logarithmic grid of FPR, with bootstrap bands over canaries, and how they are drawn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from coalmine.audit.bootstrap import bootstrap, percentile_interval
from coalmine.audit.roc import roc_curve
from coalmine.seeds import seed_sequence

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from coalmine.reporting.results import Audited
    from coalmine.reporting.style import Look

REPLICATES = 1000  # as in the tables: 200 leave the lower end at few false positives to chance
CONFIDENCE = 0.95
STEPS_PER_DECADE = 40
OPERATING_FPR = 0.001


@dataclass(frozen=True)
class Band:
    """A pooled ROC curve at fixed FPRs with its pointwise 95 % band; all arrays of shape ``(grid,)``."""

    fpr: np.ndarray
    tpr: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def index(self, fpr: float) -> int:
        """Return the position of a grid point."""
        return int(np.argmin(np.abs(self.fpr - fpr)))

    def at(self, fpr: float) -> float:
        """Return the TPR at a grid point."""
        return float(self.tpr[self.index(fpr)])


def fpr_grid(audits: Iterable[Audited]) -> np.ndarray:
    """Return FPRs up to 1, evenly spaced in the logarithm through every decade.

    They begin at the finest that an audit resolves (one of its non-members), and at the operating point at the latest.
    """
    finest = max(1 / OPERATING_FPR, *(int((~audit.membership).sum()) for audit in audits))
    first = int(np.ceil(-STEPS_PER_DECADE * np.log10(finest)))
    return np.asarray(10.0 ** (np.arange(first, 1) / STEPS_PER_DECADE))


def roc_band(audit: Audited, grid: np.ndarray, *stream: str, seed: int = 0) -> Band:
    """Return the pooled ROC curve on ``grid`` with the 2.5 % and 97.5 % quantiles over resampled canaries.

    Args:
        audit: scores and membership, ``(canary, model)``.
        grid: FPRs in increasing order.
        stream: name of the random stream, e.g. the figure, the method and the case.
        seed: the figure's seed.
    """
    roc = roc_curve(audit.scores, audit.membership)
    tpr = np.array([roc.at_fpr(float(fpr)).tpr for fpr in grid])
    replicates = bootstrap(
        audit.scores, audit.membership, grid.tolist(), REPLICATES, seed_sequence(seed, "reporting", "roc-band", *stream)
    )
    low, high = percentile_interval(replicates[:, 1:], CONFIDENCE)
    return Band(grid, tpr, low, high)


def band_frame(band: Band, **columns: Any) -> pd.DataFrame:
    """Return what one curve draws: ``columns`` (method, group, ...), fpr, tpr, tpr_low, tpr_high."""
    import pandas as pd

    return pd.DataFrame({**columns, "fpr": band.fpr, "tpr": band.tpr, "tpr_low": band.low, "tpr_high": band.high})


def draw_band(axes: Axes, band: Band, look: Look, label: str, dashes: Any, gid: str) -> None:
    """Draw one curve as steps, with its band and a mark at the operating point (TPR at 0.1 % FPR)."""
    axes.fill_between(band.fpr, band.low, band.high, step="post", color=look.colour, alpha=0.16, linewidth=0)
    axes.plot(
        band.fpr,
        band.tpr,
        color=look.colour,
        linestyle=dashes,
        drawstyle="steps-post",
        marker=look.marker,
        markevery=[band.index(OPERATING_FPR)],
        markeredgecolor="white",
        markeredgewidth=0.7,
        label=label,
        gid=gid,
        zorder=3,
    )


def dress(axes_list: Sequence[Axes], grid: np.ndarray) -> None:
    """Give panels logarithmic percent axes, the diagonal of chance and the line of the operating point."""
    from coalmine.reporting.style import QUIET, log_percent_axis

    low = float(grid[0])
    for axes in axes_list:
        log_percent_axis(axes.xaxis, low)
        log_percent_axis(axes.yaxis, low, high=1.2)
        axes.set_box_aspect(1)
        axes.set_anchor("N")
        axes.plot([low, 1], [low, 1], color=QUIET, linewidth=1, dashes=(4, 3), zorder=1, gid="chance")
        axes.axvline(OPERATING_FPR, color=QUIET, linewidth=0.7, linestyle=":", zorder=1)
        axes.set_xlabel("false-positive rate")
