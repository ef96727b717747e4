"""Table 7: cost of every method and stage, measured beside predicted, and predicted for presets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from coalmine.reporting.columns import METHOD
from coalmine.reporting.common import ReportSettings
from coalmine.reporting.layout import Cell, Column, Layout, Row, Sheet, general, number, rows_of, text
from coalmine.settings import Settings as Block

if TYPE_CHECKING:
    from collections.abc import Sequence

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
PREDICTED = ("predicted_seconds", "predicted_low", "predicted_high", "measured_over_predicted", "scaled_from")
STAGE_LABELS = {
    "teacher": "teacher",
    "experts": "experts",
    "generators": "generator",
    "synthetic": "synthesis",
    "models": "training",
    "logits": "queries",
    TOTAL: TOTAL,
}


SCALED_FROM = {
    "module": "same module",
    "stage": "other modules",
    "device": "other stages",
    "unscaled": "unscaled",
}


class Predicted(Block):
    """What one stage of a method is predicted to cost per model (``coalmine.costs``)."""

    preset: str | None = Field(description="the preset; null for the run itself")
    method: str = Field(description="the method")
    label: str = Field(description="its name for people")
    models: int = Field(description="audited models")
    stage: str = Field(description="the stage, or total")
    seconds: float = Field(description="device-seconds per model, the median")
    low: float = Field(description="lower end of the 80% interval")
    high: float = Field(description="upper end of it")
    scaled_from: str | None = Field(description="the level of the records that it rests on; null for sums")
    peak_memory_mb: float | None = Field(description="peak memory")
    disk_mb: float | None = Field(description="size of one model's artefacts")
    device: str = Field(description="the device that these seconds are of")


class Settings(ReportSettings):
    """What table 7 may be told."""

    title: str = Field(default="Cost of every method and stage", description="heading of the page")
    presets: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        default=("paper",), description="presets whose cost is predicted, too, where they go with config.yaml"
    )
    predicted: Annotated[tuple[Predicted, ...], Field(strict=False)] = Field(
        default=(), description="predicted costs (filled in by the workflow)"
    )

    def predictions(self, preset: str | None) -> dict[tuple[str, str], Predicted]:
        """Return what a preset, or with None the run itself, is predicted to cost, by method and stage."""
        return {(one.method, one.stage): one for one in self.predicted if one.preset == preset}


def build(results: Results, settings: Settings) -> pd.DataFrame:
    """Return one row per method and stage, and a total per method; then the same of presets, predicted only.

    A shuffled control reuses another method's models: its only row is a total without numbers.
    """
    import pandas as pd

    names = ["preset", "method", "label", "stage", *MEASURED, *PREDICTED]
    rows = [row for method in settings.methods for row in _rows(results, settings, method)]
    rows += [_elsewhere(one) for preset in settings.presets for one in settings.predictions(preset).values()]
    return pd.DataFrame(rows, columns=names).astype({"n_models": "Int64"})


def layout(frame: pd.DataFrame) -> Layout:
    """Return how people see the frame."""
    rows = rows_of(frame)
    own = [row for row in rows if row["preset"] is None]
    presets = dict.fromkeys(row["preset"] for row in rows if row["preset"] is not None)
    columns = COLUMNS if any(row["predicted_seconds"] is not None for row in own) else MEASURED_COLUMNS
    return (
        _sheet(columns, own),
        *(_sheet(PRESET_COLUMNS, [row for row in rows if row["preset"] == one], _caption(one)) for one in presets),
    )


def _sheet(columns: Sequence[Column], rows: Sequence[Row], caption: str = "") -> Sheet:
    """Return rows as people see them, each method named once."""
    shown = [
        {**row, "label": "" if before and before["method"] == row["method"] else row["label"]}
        for before, row in zip([None, *rows], rows, strict=False)
    ]
    return Sheet(columns, shown, caption, is_total=lambda row: row["stage"] == TOTAL)


def _caption(preset: str) -> str:
    return (
        f"Predicted for the preset {preset}, of which nothing was measured: seconds of the device named, whatever the "
        "preset runs on. Networks and batches are larger there than in any record, which the intervals allow for."
    )


def _rows(results: Results, settings: Settings, method: str) -> list[dict[str, Any]]:
    head = {"method": method, "label": settings.label(method)}
    if results.metrics[method].membership == "shuffled":
        return [{**head, "stage": TOTAL}]
    costs = results.costs(method)
    stages = [*costs.groupby("stage", sort=False), (TOTAL, costs)]
    predicted = settings.predictions(None)
    return [
        {
            **head,
            "stage": stage,
            **(measured := _measured(part)),
            **_beside(measured, predicted.get((method, str(stage)))),
        }
        for stage, part in stages
    ]


def _beside(measured: dict[str, Any], predicted: Predicted | None) -> dict[str, Any]:
    """Return what stands beside a measurement; a ratio only where both are of one device."""
    if predicted is None:
        return {}
    alike = predicted.device == measured["device"]
    ratio = measured["seconds_per_model"] / predicted.seconds if alike and predicted.seconds else None
    return {**_seconds(predicted), "measured_over_predicted": ratio}


def _elsewhere(predicted: Predicted) -> dict[str, Any]:
    """Return the row of a preset: sizes are those of all models, as in rows that were measured."""
    return {
        "preset": predicted.preset,
        "method": predicted.method,
        "label": predicted.label,
        "stage": predicted.stage,
        "n_models": predicted.models,
        "seconds_all_models": predicted.models * predicted.seconds,
        "peak_memory_mb": predicted.peak_memory_mb,
        "disk_mb": None if predicted.disk_mb is None else predicted.models * predicted.disk_mb,
        "device": predicted.device,
        **_seconds(predicted),
    }


def _seconds(predicted: Predicted) -> dict[str, Any]:
    return {
        "predicted_seconds": predicted.seconds,
        "predicted_low": predicted.low,
        "predicted_high": predicted.high,
        "scaled_from": predicted.scaled_from,
    }


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


def _predicted_cell(row: Row) -> Cell:
    if row["predicted_seconds"] is None:
        return Cell(number(None))
    low, high = (number(row[f"predicted_{end}"], 2) for end in ("low", "high"))
    return Cell(number(row["predicted_seconds"], 2), f"[{low}, {high}]")


def _scaled_cell(row: Row) -> Cell:
    return Cell(SCALED_FROM[row["scaled_from"]] if row["scaled_from"] else "")


_HEAD = (
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
    Column("models", lambda row: Cell(general(row["n_models"])), "Audited models.", brief=True),
)
_SECONDS = (
    Column(
        "s/model",
        _seconds_cell,
        "Seconds on the device per model, mean ± standard deviation over models; work shared by several models is "
        "divided among them.",
        brief=True,
    ),
)
_PREDICTED = (
    Column(
        "predicted",
        _predicted_cell,
        "Seconds per model that the settings would have let expect, with an interval that holds 80%: the multiply-adds "
        "and the calls that the method needs, priced by what other computations took (coalmine plan). Records of the "
        "very same computation are left out.",
        brief=True,
    ),
)
_RATIO = (
    Column(
        "ratio",
        lambda row: Cell(number(row["measured_over_predicted"], 2)),
        "Measured over predicted seconds; empty where they are of different devices.",
        brief=True,
    ),
)
_SCALED = (
    Column(
        "scaled from",
        _scaled_cell,
        "What the prediction rests on: records of the same module, of other modules of the stage, or of other stages; "
        "unscaled where a method's file does not tell its work.",
        numeric=False,
    ),
)
_SIZES = (
    Column("s, all models", lambda row: Cell(number(row["seconds_all_models"])), "Sum over models.", brief=True),
    Column("peak MB", lambda row: Cell(number(row["peak_memory_mb"])), "Highest memory use of any model.", brief=True),
    Column(
        "disk MB", lambda row: Cell(number(row["disk_mb"])), "Size of all artefacts (1 MB = 10⁶ bytes).", brief=True
    ),
    Column("device", text("device"), numeric=False),
)
MEASURED_COLUMNS = (*_HEAD, *_SECONDS, *_SIZES)
COLUMNS = (*_HEAD, *_SECONDS, *_PREDICTED, *_RATIO, *_SIZES, *_SCALED)
PRESET_COLUMNS = (*_HEAD, *_PREDICTED, *_SIZES, *_SCALED)
