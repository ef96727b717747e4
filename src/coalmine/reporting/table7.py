"""Table 7: measured cost of every method and stage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from coalmine.reporting.columns import METHOD
from coalmine.reporting.common import ReportSettings
from coalmine.reporting.layout import Cell, Column, Layout, Row, Sheet, general, number, rows_of, text

if TYPE_CHECKING:
    import pandas as pd

    from coalmine.reporting.results import Results

NEEDS = frozenset({"metrics", "costs"})

TOTAL = "total"
MEASURED = (
    "n_models",
    "seconds_per_model",
    "seconds_per_model_sd",
    "seconds_all_models",
    "peak_memory_mb",
    "disk_mb",
    "device",
)
STAGE_LABELS = {
    "teacher": "teacher",
    "experts": "experts",
    "generators": "generator",
    "synthetic": "synthesis",
    "models": "training",
    "logits": "queries",
    TOTAL: TOTAL,
}


class Settings(ReportSettings):
    """What table 7 may be told."""

    title: str = Field(default="Measured cost of every method and stage", description="heading of the page")


def build(results: Results, settings: Settings) -> pd.DataFrame:
    """Return one row per method and stage, and a total per method.

    A shuffled control reuses another method's models: its only row is a total without numbers.
    """
    import pandas as pd

    names = ["method", "label", "stage", *MEASURED]
    rows = [row for method in settings.methods for row in _rows(results, settings, method)]
    return pd.DataFrame(rows, columns=names).astype({"n_models": "Int64"})


def layout(frame: pd.DataFrame) -> Layout:
    """Return how people see the frame."""
    rows = rows_of(frame)
    shown = [
        {**row, "label": "" if before and before["method"] == row["method"] else row["label"]}
        for before, row in zip([None, *rows], rows, strict=False)
    ]
    return (Sheet(COLUMNS, shown, is_total=lambda row: row["stage"] == TOTAL),)


def _rows(results: Results, settings: Settings, method: str) -> list[dict[str, Any]]:
    head = {"method": method, "label": settings.label(method)}
    if results.metrics[method].membership == "shuffled":
        return [{**head, "stage": TOTAL}]
    costs = results.costs(method)
    stages = [*costs.groupby("stage", sort=False), (TOTAL, costs)]
    return [{**head, "stage": stage, **_measured(part)} for stage, part in stages]


def _measured(costs: pd.DataFrame) -> dict[str, Any]:
    """Summarise the costs of one stage, or of all: seconds of a model are summed over its stages."""
    seconds = costs.groupby("shadow")["seconds"].sum()
    return {
        "n_models": len(seconds),
        "seconds_per_model": seconds.mean(),
        "seconds_per_model_sd": seconds.std(),
        "seconds_all_models": seconds.sum(),
        "peak_memory_mb": costs["peak_memory_mb"].max(),
        "disk_mb": costs["bytes"].sum() / 1e6,
        "device": ", ".join(sorted(set(costs["device"]))),
    }


def _seconds_cell(row: Row) -> Cell:
    spread = row["seconds_per_model_sd"]
    return Cell(number(row["seconds_per_model"]), "" if spread is None else f"± {number(spread, 2)}")


COLUMNS = (
    METHOD,
    Column(
        "stage",
        lambda row: Cell(STAGE_LABELS[row["stage"]]),
        "The teacher is the model that a data-free method learns from, experts are the training runs that a method "
        "matches, the generator is the generative model that images are drawn from; methods that share these, or "
        "synthetic sets, each count them in full, as none could do without. Synthesis makes the set that a model is "
        "trained on, queries are the audit's; the total holds all stages. Pre-training on public data is shared work, "
        "done once for all models and methods, and not counted per model.",
        brief=True,
        numeric=False,
    ),
    Column("models", lambda row: Cell(general(row["n_models"])), "Audited models measured.", brief=True),
    Column(
        "s/model",
        _seconds_cell,
        "Seconds on the device per model, mean ± standard deviation over models; work shared by several models is "
        "divided among them.",
        brief=True,
    ),
    Column("s, all models", lambda row: Cell(number(row["seconds_all_models"])), "Sum over models.", brief=True),
    Column("peak MB", lambda row: Cell(number(row["peak_memory_mb"])), "Highest memory use of any model.", brief=True),
    Column(
        "disk MB", lambda row: Cell(number(row["disk_mb"])), "Size of all artefacts (1 MB = 10⁶ bytes).", brief=True
    ),
    Column("device", text("device"), numeric=False),
)
