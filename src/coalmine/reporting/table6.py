"""Table 6: every attack variant against every method."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pydantic import Field

from coalmine.reporting.common import WORST_CASE, ReportSettings
from coalmine.reporting.layout import (
    UNKNOWN,
    Cell,
    Column,
    Layout,
    Row,
    Sheet,
    fixed_interval,
    percent_interval,
    rows_of,
    text,
)

if TYPE_CHECKING:
    import pandas as pd

    from coalmine.reporting.results import Results, Variant

NEEDS = frozenset({"metrics"})

MAXIMUM = "maximum over variants (post hoc)"


class Settings(ReportSettings):
    """What table 6 may be told."""

    title: str = Field(default="Every attack variant against every method", description="heading of the page")


def build(results: Results, settings: Settings) -> pd.DataFrame:
    """Return one row per method and variant, the primary variant first, the maximum over variants last."""
    import pandas as pd

    return pd.DataFrame([row for method in settings.methods for row in _rows(results, settings, method)])


def layout(frame: pd.DataFrame) -> Layout:
    """Return one matrix (variants by methods) per quantity."""
    from coalmine.reporting.captions import FEWER_MODELS, confidence, differ, models_of

    rows, level = rows_of(frame), confidence(frame)
    sizes = dict(zip(frame["label"], frame["n_models"], strict=True))
    unlike = f". {models_of(sizes.items())}: {FEWER_MODELS}" if differ(sizes.values()) else ""
    return tuple(
        _matrix(rows, caption + unlike, cell)
        for caption, cell in (
            (f"TPR@0.1%FPR with its {level} interval", lambda row: percent_interval(row, "tpr_at_fpr_0.001")),
            (f"TPR@1%FPR with its {level} interval", lambda row: percent_interval(row, "tpr_at_fpr_0.01")),
            (f"AUC with its {level} interval", lambda row: fixed_interval(row, "auc")),
            (f"Empirical ε ≥, at {level} confidence", lambda row: fixed_interval(row, "empirical_epsilon", 2)),
        )
    )


def _rows(results: Results, settings: Settings, method: str) -> list[dict[str, Any]]:
    from coalmine.reporting.results import HIGH_FPR, LOW_FPR

    metrics = results.metrics[method]
    group = metrics.group(WORST_CASE)
    metrics.variant(WORST_CASE)
    head = {"method": method, "label": settings.label(method), "n_models": metrics.design.models}
    names = sorted(group.variants, key=lambda name: name != metrics.primary)
    rows = [
        {**head, "variant": name, "primary": name == metrics.primary, **_numbers(group.variants[name])}
        for name in names
    ]
    maximum = {f"tpr_at_fpr_{fpr}": group.max_over_variants[fpr] for fpr in (LOW_FPR, HIGH_FPR)}
    last = {f"{name}_reached_by": best.variant for name, best in maximum.items()}
    return [
        *rows,
        {**head, "variant": MAXIMUM, "primary": False, **{k: best.value for k, best in maximum.items()}, **last},
    ]


def _numbers(attack: Variant) -> dict[str, Any]:
    from coalmine.reporting.results import HIGH_FPR, LOW_FPR

    numbers: dict[str, Any] = {}
    for fpr in (LOW_FPR, HIGH_FPR):
        rate, name = attack.tpr[fpr], f"tpr_at_fpr_{fpr}"
        numbers |= {
            name: rate.value,
            f"{name}_low": rate.low,
            f"{name}_high": rate.high,
            f"{name}_false_positives": rate.false_positives,
            f"{name}_allowed": rate.allowed,
        }
    return numbers | {
        "auc": attack.auc.value,
        "auc_low": attack.auc.low,
        "auc_high": attack.auc.high,
        "empirical_epsilon": attack.epsilon.lower,
        "empirical_epsilon_ceiling": attack.epsilon.ceiling,
        "confidence": attack.epsilon.confidence,
    }


def _matrix(rows: list[dict[str, Any]], caption: str, cell: Callable[[Row], Cell]) -> Sheet:
    from coalmine.audit.labelfree import NAME

    cells = {(row["variant"], row["method"]): cell(row) for row in rows}
    methods = {row["method"]: row["label"] for row in rows}
    variants = dict.fromkeys(row["variant"] for row in rows if row["variant"] != MAXIMUM)
    shown = [
        name for name in (*variants, MAXIMUM) if any(cells[key].text != UNKNOWN for key in cells if key[0] == name)
    ]

    def column(method: str, label: str) -> Column:
        return Column(label, lambda row: cells.get((row["variant"], method), Cell(UNKNOWN)), brief=True)

    explained = (
        f"The first is the primary one, fixed in advance. {NAME}-… is the attack on the whole logit vector, which "
        "asks for no label: a TPR well above the primary attack's means models that give a canary away without "
        "learning its label, such as those that un-learn it. The maximum is chosen after the fact, as earlier papers "
        "do: biased upwards, for comparison only."
    )
    columns = [Column("attack variant", text("variant"), explained, brief=True, numeric=False)]
    columns += [column(method, label) for method, label in methods.items()]
    return Sheet(
        columns, [{"variant": name} for name in shown], caption, is_total=lambda row: row["variant"] == MAXIMUM
    )
