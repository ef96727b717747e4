"""Figure 3: ROC curves of the worst-case and the average-case audit, one panel per method."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from coalmine.reporting.common import AVERAGE_CASE, WORST_CASE, AverageCaseSettings

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from coalmine.reporting.results import Audited, Results

NEEDS = frozenset({"metrics", "scores"})

MOST_PER_ROW = 3
WIDTHS = {1: 4.4, 2: 6.2, 3: 6.9}


class Settings(AverageCaseSettings):
    """What figure 3 may be told."""

    title: str = Field(default="What an average-case audit hides", description="title of the figure")
    seed: int = Field(default=0, ge=0, description="seed of the bootstrap bands")


def build(results: Results, settings: Settings) -> tuple[Figure, pd.DataFrame]:
    """Return the figure and its curves: method, label, case, fpr, tpr, tpr_low, tpr_high."""
    import pandas as pd

    from coalmine.reporting import roc_panel, style

    audits = _audits(results, settings)
    grid = roc_panel.fpr_grid(audits.values())
    rows = -(-len(settings.methods) // MOST_PER_ROW)
    columns = -(-len(settings.methods) // rows)
    frames = []
    with style.context():
        width = WIDTHS[columns]
        panel = (width - 0.6) / columns - 0.33
        figure, panels = style.new_figure(rows * (panel + 0.66) + 0.3, (rows, columns), width, sharey=True)
        for axes, method in zip(panels, settings.methods, strict=False):
            axes.set_title(settings.label(method), loc="left")
            for index, (case, dashes) in enumerate((("worst case", "-"), ("average case", (0, (4, 1.5))))):
                band = roc_panel.roc_band(audits[method, case], grid, "figure3", method, case, seed=settings.seed)
                roc_panel.draw_band(axes, band, style.look(index), case, dashes, gid=f"{method}/{case}")
                frames.append(roc_panel.band_frame(band, method=method, label=settings.label(method), case=case))
        drawn = panels[: len(settings.methods)]
        for unused in panels[len(settings.methods) :]:
            unused.remove()
        roc_panel.dress(drawn, grid)
        for axes in drawn[::columns]:
            axes.set_ylabel("true-positive rate")
        figure.legend(*drawn[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, handlelength=3)
        style.set_title(
            figure,
            settings.title,
            "Solid: mislabelled canaries (worst case); dashed: clean canaries (average case). Bands: 95 % intervals "
            f"over canaries. Marks: TPR at 0.1 % FPR.{_numbers(results, settings)}",
        )
    return figure, pd.concat(frames, ignore_index=True)


def _numbers(results: Results, settings: Settings) -> str:
    """Return how many models each method has if they differ, nothing otherwise."""
    from coalmine.reporting.captions import WEAKER, differ, models_of

    models = {settings.label(method): results.metrics[method].design.models for method in settings.needed}
    return f" {models_of(models.items())}. {WEAKER}" if differ(models.values()) else ""


def _audits(results: Results, settings: Settings) -> dict[tuple[str, str], Audited]:
    audits = {}
    for method in settings.methods:
        for case, entry, group in (
            ("worst case", method, WORST_CASE),
            ("average case", settings.average_of(method), AVERAGE_CASE),
        ):
            metrics = results.metrics[entry]
            metrics.variant(group)
            audits[method, case] = results.scores(entry).read(group, metrics.primary)
    return audits
