"""Figure 4: loss of members and non-members, average case against worst case."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from coalmine.reporting.common import AVERAGE_CASE, WORST_CASE, AverageCaseSettings

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from coalmine.reporting.results import Results

NEEDS = frozenset({"metrics", "scores"})

LOGIT_SCORE = "global-logit-1v"
BINS = 48
LOWEST_LOSS = 1e-8


class Settings(AverageCaseSettings):
    """What figure 4 may be told; ``methods`` holds the one method it shows."""

    title: str = Field(
        default="Loss of members and non-members: average case against worst case", description="title of the figure"
    )

    methods: tuple[str] = Field(strict=False, description="the one method to show")


def build(results: Results, settings: Settings) -> tuple[Figure, pd.DataFrame]:
    """Return the figure and its histograms: case, membership, loss_low, loss_high, share (of that side's queries)."""
    import pandas as pd

    from coalmine.reporting import style

    (method,) = settings.methods
    average = settings.average_of(method)
    losses = {("average case", side): values for side, values in _losses(results, average, AVERAGE_CASE).items()} | {
        ("worst case", side): values for side, values in _losses(results, method, WORST_CASE).items()
    }
    edges = loss_edges(list(losses.values()))
    frame = pd.concat([_histogram(values, edges, *key) for key, values in losses.items()], ignore_index=True)
    with style.context():
        figure, panels = style.new_figure(3.4, (1, 2), sharex=True, sharey=True)
        for axes, (case, canaries) in zip(
            panels, (("average case", "clean canaries"), ("worst case", "mislabelled canaries")), strict=True
        ):
            _draw(axes, frame[frame["case"] == case])
            axes.set_title(f"{case}: {canaries}", loc="left")
        panels[0].set_ylabel("share of queries")
        panels[0].legend(loc="upper left")
        style.set_title(
            figure,
            settings.title,
            f"{settings.label(method)}: cross-entropy of the queried label, one query per canary and model; "
            "outer bins hold all beyond.",
        )
    return figure, frame


def loss_edges(losses: list[np.ndarray]) -> np.ndarray:
    """Return bin edges, even in the logarithm, between the 0.5 % quantile of all losses and the largest."""
    import numpy as np

    pooled = np.concatenate(losses)
    low = max(float(np.quantile(pooled, 0.005)), LOWEST_LOSS)
    high = max(float(pooled.max()), 10 * low)
    return np.geomspace(low, high, BINS + 1)


def _losses(results: Results, method: str, group: str) -> dict[str, np.ndarray]:
    """Return the cross-entropy of every query: ``log(1 + exp(-(z_y - logsumexp(z_other))))``."""
    import numpy as np

    audit = results.scores(method).read(group, LOGIT_SCORE)
    loss = np.logaddexp(0.0, -audit.scores)
    return {"member": loss[audit.membership], "non-member": loss[~audit.membership]}


def _histogram(losses: np.ndarray, edges: np.ndarray, case: str, side: str) -> pd.DataFrame:
    import numpy as np
    import pandas as pd

    counts, _ = np.histogram(np.clip(losses, edges[0], edges[-1]), edges)
    return pd.DataFrame(
        {
            "case": case,
            "membership": side,
            "loss_low": edges[:-1],
            "loss_high": edges[1:],
            "share": counts / len(losses),
        }
    )


def _draw(axes: Axes, frame: pd.DataFrame) -> None:
    import numpy as np
    from matplotlib.ticker import FuncFormatter, NullFormatter

    from coalmine.reporting.style import look, percent_axis, power_label

    for index, (side, dashes) in enumerate((("member", "-"), ("non-member", (0, (4, 1.5))))):
        part, colour = frame[frame["membership"] == side], look(index).colour
        edges = np.append(part["loss_low"].to_numpy(), part["loss_high"].iloc[-1])
        axes.stairs(part["share"].to_numpy(), edges, fill=True, color=(*colour, 0.22))
        axes.stairs(
            part["share"].to_numpy(),
            edges,
            color=colour,
            linewidth=1.5,
            linestyle=dashes,
            label=f"{side}s ({'IN' if side == 'member' else 'OUT'})",
            gid=side,
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(power_label))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(frame["loss_low"].min(), frame["loss_high"].max())
    axes.set_xlabel("cross-entropy loss")
    percent_axis(axes.yaxis)
