"""Table 1: leakage, accuracy, cost and guarantee of every method, beside the papers' numbers."""

from __future__ import annotations

import math
from string import ascii_lowercase
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
    general,
    number,
    percent,
    percent_interval,
    percent_with_error,
    points,
    rows_of,
    text,
)

if TYPE_CHECKING:
    import pandas as pd

    from coalmine.reporting.results import Claim, MethodMetrics, Results

NEEDS = frozenset({"metrics", "costs"})

VACUOUS = 0.9999
"""A guarantee is called vacuous if it allows a TPR of at least this at 0.1 % FPR (epsilon above about 9.2)."""


class Settings(ReportSettings):
    """What table 1 may be told."""

    title: str = Field(default="Leakage, accuracy and cost of every method", description="heading of the page")
    published: dict[str, str] = Field(
        default={},
        description="method -> the key of its number in coalmine.reporting.published (default: its name; a key "
        "without a number shows none)",
    )


def build(results: Results, settings: Settings) -> pd.DataFrame:
    """Return one row per method; fractions, seconds and counts, unknown values missing."""
    import pandas as pd

    return pd.DataFrame([_row(results, settings, method) for method in settings.methods])


def layout(frame: pd.DataFrame) -> Layout:
    """Return how people see the frame; the papers' settings become footnotes."""
    from coalmine.reporting.captions import attack_and_design

    rows = rows_of(frame)
    settings = [*dict.fromkeys(row["paper_setting"] for row in rows if row["paper_setting"])]
    marks = {setting: f"[{ascii_lowercase[index]}]" for index, setting in enumerate(settings)}
    shown = [{**row, "paper_mark": marks.get(row["paper_setting"], "")} for row in rows]
    footnotes = [f"{mark} {setting}" for setting, mark in marks.items()]
    return (Sheet(COLUMNS, shown, attack_and_design(frame), footnotes),)


def claimed_tpr_bound(claim: Claim, fpr: float) -> float:
    """Return the largest TPR at ``fpr`` that (epsilon, delta)-differential privacy allows.

    Kairouz, Oh & Viswanath, "The Composition Theorem for Differential Privacy" (ICML 2015), theorem 2.1: both
    ``tpr <= e^epsilon fpr + delta`` and ``1 - fpr <= e^epsilon (1 - tpr) + delta``.
    """
    if claim.epsilon is None:
        return 1.0
    delta = claim.delta or 0.0
    low = math.exp(min(claim.epsilon, 700.0)) * fpr + delta
    high = 1 - math.exp(-claim.epsilon) * (1 - fpr - delta)
    return min(1.0, low, high)


def seconds_per_model(results: Results, method: str) -> tuple[float | None, str | None]:
    """Return mean seconds to synthesise for and train one audited model, and the device.

    Both are ``None`` for a shuffled control, which reuses another method's models.
    """
    if results.metrics[method].membership == "shuffled":
        return None, None
    costs = results.costs(method)
    made = costs[costs["stage"].isin(["synthetic", "models"])]
    return float(made.groupby("stage")["seconds"].mean().sum()), ", ".join(sorted(set(made["device"])))


def _row(results: Results, settings: Settings, method: str) -> dict[str, Any]:
    from coalmine.reporting.published import PUBLISHED
    from coalmine.reporting.results import HIGH_FPR, LOW_FPR

    metrics = results.metrics[method]
    group, attack = metrics.group(WORST_CASE), metrics.variant(WORST_CASE)
    low, high = attack.tpr[LOW_FPR], attack.tpr[HIGH_FPR]
    maximum = group.max_over_variants[LOW_FPR]
    seconds, device = seconds_per_model(results, method)
    paper = PUBLISHED.get(settings.published.get(method, method))
    return {
        "method": method,
        "label": settings.label(method),
        "variant": metrics.primary,
        "tpr_at_fpr_0.001": low.value,
        "tpr_at_fpr_0.001_low": low.low,
        "tpr_at_fpr_0.001_high": low.high,
        "false_positives": low.false_positives,
        "false_positives_allowed": low.allowed,
        "tpr_at_fpr_0.01": high.value,
        "tpr_at_fpr_0.01_low": high.low,
        "tpr_at_fpr_0.01_high": high.high,
        "auc": attack.auc.value,
        "auc_low": attack.auc.low,
        "auc_high": attack.auc.high,
        "accuracy": metrics.accuracy.mean,
        "accuracy_se": metrics.accuracy.se,
        "seconds_per_model": seconds,
        "device": device,
        "canaries_selected": group.facts.selected,
        "canaries_memorised": group.facts.memorised,
        **_claimed(metrics),
        "empirical_epsilon": attack.epsilon.lower,
        "empirical_epsilon_ceiling": attack.epsilon.ceiling,
        "confidence": attack.epsilon.confidence,
        "peers_maximum_over_variants": maximum.value,
        "peers_maximum_variant": maximum.variant,
        "paper_tpr": paper.tpr if paper else None,
        "paper_setting": f"{paper.setting} ({paper.source})" if paper else None,
        "difference": low.value - paper.tpr if paper and paper.comparable else None,
        "n_canaries": metrics.design.canaries,
        "n_models": metrics.design.models,
    }


def _claimed(metrics: MethodMetrics) -> dict[str, Any]:
    claim = metrics.claimed
    return {
        "claimed_epsilon": math.inf if claim.epsilon is None else claim.epsilon,
        "claimed_delta": claim.delta,
        "claimed_accountant": claim.accountant,
        "claimed_tpr_bound": claimed_tpr_bound(claim, 0.001),
    }


def _claimed_cell(row: Row) -> Cell:
    if math.isinf(row["claimed_epsilon"]):
        return Cell("∞")
    bound = row["claimed_tpr_bound"]
    said = [
        "vacuous" if bound >= VACUOUS else f"TPR ≤ {percent(bound, 2)}",
        f"δ = {number(row['claimed_delta'], 1)}",
        row["claimed_accountant"] or "accountant not stated",
    ]
    return Cell(general(row["claimed_epsilon"]), ", ".join(said))


def _empirical_cell(row: Row) -> Cell:
    return Cell(f"{row['empirical_epsilon']:.2f}", f"of {row['empirical_epsilon_ceiling']:.2f}")


def _maximum_cell(row: Row) -> Cell:
    return Cell(percent(row["peers_maximum_over_variants"]))


def _false_positives_cell(row: Row) -> Cell:
    return Cell(f"{row['false_positives']} of {row['false_positives_allowed']}")


def _device_cell(row: Row) -> Cell:
    return Cell(row["device"] or UNKNOWN)


_LEAKAGE = "leakage of mislabelled canaries"

COLUMNS = (
    Column("method", text("label"), brief=True, numeric=False),
    Column(
        "TPR@0.1%FPR",
        lambda row: percent_interval(row, "tpr_at_fpr_0.001"),
        "Share of members that the attack recognises while at most 0.1 % of non-members are accused, with its "
        "interval. Without leakage: about 0.1 %.",
        _LEAKAGE,
        brief=True,
    ),
    Column(
        "false positives",
        _false_positives_cell,
        "Non-members accused at that threshold, of those that 0.1 % allows: the whole estimate hangs on these few.",
        _LEAKAGE,
    ),
    Column(
        "TPR@1%",
        lambda row: percent_interval(row, "tpr_at_fpr_0.01"),
        "The same at 1 % FPR.",
        _LEAKAGE,
        brief=True,
    ),
    Column(
        "AUC",
        lambda row: fixed_interval(row, "auc"),
        "Area under the ROC curve; 0.5 is guessing.",
        _LEAKAGE,
        brief=True,
    ),
    Column(
        "peers' maximum over variants",
        _maximum_cell,
        "Highest TPR@0.1%FPR of all attack variants, chosen after the fact as earlier papers do: biased upwards, for "
        "comparison only.",
        _LEAKAGE,
    ),
    Column(
        "accuracy",
        lambda row: percent_with_error(row, "accuracy"),
        "Test accuracy: mean over the models ± its standard error.",
        "utility",
        brief=True,
    ),
    Column(
        "s/model",
        lambda row: Cell(number(row["seconds_per_model"])),
        "Seconds on the device to synthesise for and train one audited model, shared work divided by who shares it; "
        "unknown for a control, which reuses another method's models.",
        "cost",
        brief=True,
    ),
    Column("device", _device_cell, "", "cost", numeric=False),
    Column(
        "selected",
        lambda row: Cell(percent(row["canaries_selected"])),
        "Share of (IN canary, model) pairs whose image was taken into the set that the model was trained on.",
        "canaries",
        brief=True,
    ),
    Column(
        "memorised",
        lambda row: Cell(percent(row["canaries_memorised"])),
        "Share of (IN canary, model) pairs for which the model predicts the canary's wrong label.",
        "canaries",
    ),
    Column(
        "claimed ε",
        _claimed_cell,
        "Guarantee of differential privacy that the method claims, with δ, its accountant, and the TPR at 0.1 % FPR "
        "that it allows at most; vacuous if that is 99.99 % or more; ∞ if there is none.",
        "privacy",
    ),
    Column(
        "empirical ε\N{NO-BREAK SPACE}≥",
        _empirical_cell,
        "Lower bound on ε that the audit proves, at the confidence of the intervals, of the highest bound that this "
        "many canaries could have given.",
        "privacy",
    ),
    Column(
        "paper",
        lambda row: Cell(f"{percent(row['paper_tpr'])} {row['paper_mark']}".rstrip()),
        "TPR@0.1%FPR that a paper prints, in the setting of its footnote; unknown where no paper states one.",
        "published",
        brief=True,
    ),
    Column(
        "ours − paper",
        lambda row: Cell(points(row["difference"])),
        "Percentage points; left out where the paper's number answers another question.",
        "published",
    ),
)
