"""Figure 5: ROC curves of methods side by side, by default the random and the forgetting coreset."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from coalmine.reporting.common import WORST_CASE, ReportSettings

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from coalmine.reporting.results import Results
    from coalmine.reporting.style import Look

NEEDS = frozenset({"metrics", "scores"})


class Settings(ReportSettings):
    """What figure 5 may be told."""

    title: str = Field(default="Leakage of mislabelled canaries, method by method", description="title of the figure")
    published: dict[str, str] = Field(
        default={},
        description="method -> the key of its number in coalmine.reporting.published (default: its name; a key "
        "without a number shows none)",
    )
    seed: int = Field(default=0, ge=0, description="seed of the bootstrap bands")


def build(results: Results, settings: Settings) -> tuple[Figure, pd.DataFrame]:
    """Return the figure and its curves: method, label, fpr, tpr, tpr_low, tpr_high, paper_tpr (at 0.1 % FPR only)."""
    import numpy as np
    import pandas as pd

    from coalmine.reporting import roc_panel, style
    from coalmine.reporting.captions import design_of
    from coalmine.reporting.layout import percent

    metrics = {method: results.metrics[method] for method in settings.methods}
    for each in metrics.values():
        each.variant(WORST_CASE)
    audits = {method: results.scores(method).read(WORST_CASE, each.primary) for method, each in metrics.items()}
    grid = roc_panel.fpr_grid(audits.values())
    papers = {method: _paper_tpr(settings.published.get(method, method)) for method in settings.methods}
    frames = []
    with style.context():
        figure, (axes,) = style.new_figure(height=4.6, width=5.0)
        for index, method in enumerate(settings.methods):
            look, label, paper = style.look(index), settings.label(method), papers[method]
            band = roc_panel.roc_band(audits[method], grid, "figure5", method, seed=settings.seed)
            said = percent(band.at(roc_panel.OPERATING_FPR)) + (f" (paper: {percent(paper)})" if paper else "")
            roc_panel.draw_band(axes, band, look, f"{label}: {said}", look.dashes, gid=method)
            if paper is not None:
                _draw_paper(axes, paper, look, gid=f"{method}/paper")
            at_operating_point = abs(band.fpr - roc_panel.OPERATING_FPR) < 1e-9
            frames.append(
                roc_panel.band_frame(band, method=method, label=label).assign(
                    paper_tpr=np.where(at_operating_point, np.nan if paper is None else paper, np.nan)
                )
            )
        roc_panel.dress([axes], grid)
        axes.set_ylabel("true-positive rate")
        axes.legend(loc="lower right", handlelength=3.2)
        style.set_title(
            figure,
            settings.title,
            f"{design_of(metrics.values(), settings.label, attack=True)} Bands: 95 % intervals over canaries. Marks "
            "and numbers: TPR at 0.1 % FPR"
            + ("; short bars there: the paper's (CIFAR-10)." if any(papers.values()) else "."),
        )
    return figure, pd.concat(frames, ignore_index=True)


def _paper_tpr(key: str) -> float | None:
    from coalmine.reporting.published import PUBLISHED

    published = PUBLISHED.get(key)
    return published.tpr if published and published.comparable else None


def _draw_paper(axes: Axes, tpr: float, look: Look, gid: str) -> None:
    """Draw a paper's TPR as a short bar across the line of the operating point."""
    from coalmine.reporting.roc_panel import OPERATING_FPR

    axes.plot(OPERATING_FPR, tpr, "_", color=look.colour, markersize=17, markeredgewidth=2, zorder=5, gid=gid)
