"""Table 4: each empirical method against the DP-SGD setting nearest in accuracy.

The baseline is chosen by accuracy alone, so the choice does not favour either side's leakage. Both sides are audited on
the same canaries with the same membership, hence every difference is a paired one: that of TPRs is bootstrapped by
drawing the same canaries for both, that of accuracies is taken model by model. Where one side has more shadow models
than the other, the models that both have are compared. The attack on the side with more of them learned from more,
though, so that a difference of leakage in favour of the other side is said to come from a weaker attack.

Simulated without any difference (200 and 500 canaries, 32 models, TPRs from 0.2 % to 96 %, 500 audits each), the
interval of the difference of TPRs at 95 % excluded zero in 1 % to 5 % of the audits; real differences of 5 to 39
points it covered in 96 % to 99 %. Rows are not corrected for their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, model_validator

from coalmine.reporting.captions import FEWER_MODELS, SECONDS_PER_MODEL, attack_and_design
from coalmine.reporting.columns import METHOD, accuracy_column, tpr_column
from coalmine.reporting.common import WORST_CASE, Methods, ReportSettings
from coalmine.reporting.guarantee import FPR, claim_columns, epsilon_cell
from coalmine.reporting.layout import (
    SPACE,
    UNKNOWN,
    Cell,
    Column,
    Layout,
    Row,
    Sheet,
    general,
    number,
    percent_interval,
    percent_with_error,
    points_interval,
    points_with_error,
    rows_of,
    text,
)
from coalmine.reporting.visual import visual_column, visual_columns

if TYPE_CHECKING:
    import pandas as pd

    from coalmine.reporting.results import MethodMetrics, Results

NEEDS = frozenset({"metrics", "costs", "scores", "visual"})

VERDICTS = {
    (-1, 1): "dominates",
    (-1, 0): "leaks less",
    (-1, -1): "leaks less, less accurate",
    (0, 1): "more accurate",
    (0, 0): "not distinguishable",
    (0, -1): "less accurate",
    (1, 1): "leaks more, more accurate",
    (1, 0): "leaks more",
    (1, -1): "dominated",
}
"""What is said of a method by the signs of its differences of TPR and of accuracy from the baseline; 0 if unclear."""

_IN_FULL = {"dominates": "leaks less, more accurate", "dominated": "leaks more, less accurate"}


class Settings(ReportSettings):
    """What table 4 may be told."""

    title: str = Field(
        default="Empirical methods against the DP-SGD setting nearest in accuracy", description="heading of the page"
    )
    baselines: Methods = Field(
        description="DP-SGD settings, named as in the configuration; of several that are as near, the first is taken"
    )
    tolerance: float = Field(
        default=0.02,
        ge=0,
        le=1,
        description="largest difference of mean accuracies, as a fraction, at which two methods count as matched",
    )
    replicates: int = Field(default=1000, ge=1, description="replicates of the paired bootstrap over canaries")

    @model_validator(mode="after")
    def _no_method_is_its_own_baseline(self) -> Self:
        if both := [name for name in self.baselines if name in self.methods]:
            raise ValueError(f"{', '.join(both)}: listed in methods and in baselines; name each in one of them")
        return self

    @property
    def needed(self) -> tuple[str, ...]:
        """Every method whose files must exist: methods and baselines."""
        return tuple(dict.fromkeys([*self.methods, *self.baselines]))


def build(results: Results, settings: Settings) -> pd.DataFrame:
    """Return one row per method: both sides' numbers, their differences with intervals, and the verdict.

    Raises:
        CoalmineError: a method and its baseline were not audited on the same canaries and models.
    """
    import pandas as pd

    rows = [_row(results, settings, method) for method in settings.methods]
    return pd.DataFrame(rows).astype({"baseline_claimed_steps": "Int64"})


def layout(frame: pd.DataFrame) -> Layout:
    """Return how people see the frame; the notes of claims become footnotes."""
    rows = rows_of(frame)
    tolerance = general(100 * float(frame["tolerance"].iloc[0]))
    baselines = [(row["baseline_label"], row["baseline_n_models"]) for row in rows]
    caption = (
        f"{attack_and_design(frame, baselines)} Matched: mean accuracies at most {tolerance} percentage points apart."
    )
    notes = {row["baseline_label"]: row["baseline_claimed_note"] for row in rows if row["baseline_claimed_note"]}
    footnotes = [*(f"{label}: {note}" for label, note in notes.items()), *_unlike(rows)]
    near_copies = (column for column in visual_column(rows, _OURS) if column.brief)
    return (Sheet((*LEAKAGE, *near_copies, *OTHERS), rows, caption, footnotes),)


def _unlike(rows: Sequence[Row]) -> list[str]:
    """Return a footnote for each row whose sides have unlike numbers of models, and one that says what this means."""
    notes = [
        f"{row['label']}: {row['n_models']} models, {row['baseline_label']}: {row['baseline_n_models']}; differences "
        f"are those of the first {row['n_models_compared']}."
        for row in rows
        if row["n_models"] != row["baseline_n_models"]
    ]
    return [*notes, f"Weaker attack: {FEWER_MODELS}."] if notes else []


def _row(results: Results, settings: Settings, method: str) -> dict[str, Any]:
    baseline = _nearest(results, settings, method)
    ours, theirs = results.metrics[method], results.metrics[baseline]
    confidence = ours.variant(WORST_CASE).epsilon.confidence
    numbers, baseline_numbers = _numbers(results, method), _numbers(results, baseline) | claim_columns(theirs)
    models = min(ours.design.models, theirs.design.models)
    accuracy = _accuracy_difference(ours, theirs, models, confidence)
    tpr = _tpr_difference(results, method, baseline, models, settings.replicates, confidence)
    matched = _distance(ours, theirs) <= settings.tolerance
    return {
        "method": method,
        "label": settings.label(method),
        "variant": ours.primary,
        **numbers,
        **visual_columns(results.visual(method)),
        "baseline": baseline,
        "baseline_label": settings.label(baseline),
        **{f"baseline_{name}": value for name, value in baseline_numbers.items()},
        **accuracy,
        **tpr,
        "seconds_ratio": _ratio(numbers["seconds_per_model"], baseline_numbers["seconds_per_model"]),
        "tolerance": settings.tolerance,
        "matched": matched,
        "verdict": VERDICTS[_sign(tpr, "tpr_difference"), _sign(accuracy, "accuracy_difference")],
        "weaker_attack": _sign(tpr, "tpr_difference") * (ours.design.models - theirs.design.models) > 0,
        "n_canaries": ours.design.canaries,
        "n_models": ours.design.models,
        "baseline_n_models": theirs.design.models,
        "n_models_compared": models,
        "confidence": confidence,
    }


def _nearest(results: Results, settings: Settings, method: str) -> str:
    """Return the baseline whose mean accuracy is nearest, the first of several."""
    return min(settings.baselines, key=lambda name: _distance(results.metrics[method], results.metrics[name]))


def _distance(ours: MethodMetrics, theirs: MethodMetrics) -> float:
    """Return how far mean accuracies are apart, without the rounding of binary fractions: 0.92 - 0.9 is 0.02."""
    return round(abs(ours.accuracy.mean - theirs.accuracy.mean), 9)


def _numbers(results: Results, method: str) -> dict[str, Any]:
    from coalmine.reporting.results import LOW_FPR

    metrics = results.metrics[method]
    tpr = metrics.variant(WORST_CASE).tpr[LOW_FPR]
    seconds, device = results.seconds_per_model(method)
    return {
        "tpr_at_fpr_0.001": tpr.value,
        "tpr_at_fpr_0.001_low": tpr.low,
        "tpr_at_fpr_0.001_high": tpr.high,
        "accuracy": metrics.accuracy.mean,
        "accuracy_se": metrics.accuracy.se,
        "seconds_per_model": seconds,
        "device": device,
    }


def _accuracy_difference(
    ours: MethodMetrics, theirs: MethodMetrics, models: int, confidence: float
) -> dict[str, float | None]:
    """Return the mean difference over the first models, its standard error and Student's t interval.

    Model i of both methods has the same members and its own seed, so that models are paired by index.
    """
    import numpy as np
    from scipy.special import stdtrit

    from coalmine.errors import REMEDY, CoalmineError

    for each in (ours, theirs):
        if len(each.accuracy.per_model) != each.design.models:
            raise CoalmineError(
                f"The metrics of {each.method!r} hold the accuracy of {len(each.accuracy.per_model)} models, but its "
                f"audit has {each.design.models}. {REMEDY}"
            )
    differences = np.subtract(ours.accuracy.per_model[:models], theirs.accuracy.per_model[:models])
    n, mean = len(differences), float(differences.mean())
    error = float(differences.std(ddof=1) / np.sqrt(n)) if n > 1 else None
    reach = None if error is None else float(stdtrit(n - 1, (1 + confidence) / 2)) * error
    return {
        "accuracy_difference": mean,
        "accuracy_difference_se": error,
        "accuracy_difference_low": None if reach is None else mean - reach,
        "accuracy_difference_high": None if reach is None else mean + reach,
    }


def _tpr_difference(
    results: Results, method: str, baseline: str, models: int, replicates: int, confidence: float
) -> dict[str, float]:
    """Return the difference of TPRs at 0.1 % FPR of the first models, and its interval by a bootstrap of canaries."""
    import numpy as np

    from coalmine.audit.bootstrap import bootstrap, percentile_interval
    from coalmine.audit.roc import tpr_at_fpr
    from coalmine.errors import CoalmineError
    from coalmine.reporting.results import Audited
    from coalmine.seeds import seed_sequence

    files = [results.scores(name) for name in (method, baseline)]
    names = [results.metrics[name].primary for name in (method, baseline)]
    read = [file.read(WORST_CASE, variant) for file, variant in zip(files, names, strict=True)]
    audits = [Audited(each.scores[:, :models], each.membership[:, :models]) for each in read]
    if not np.array_equal(audits[0].membership, audits[1].membership):
        raise CoalmineError(
            f"{files[0].path} and {files[1].path} hold different memberships: methods are compared on the same "
            f"canaries in the same models only. Take {method!r} or {baseline!r} out of the table if it is a control "
            "with shuffled membership; otherwise delete both files and run Snakemake again."
        )
    seed = seed_sequence(0, "reporting", "table4")  # one seed: the same canaries are drawn for both sides
    ours, theirs = (bootstrap(*audit, (FPR,), replicates, seed)[:, 1] for audit in audits)
    low, high = percentile_interval(ours - theirs, confidence)
    values = [tpr_at_fpr(*audit, FPR).tpr for audit in audits]
    return {
        "tpr_difference": values[0] - values[1],
        "tpr_difference_low": float(low),
        "tpr_difference_high": float(high),
    }


def _sign(difference: Row, name: str) -> int:
    """Return the sign of a difference whose interval excludes zero; 0 if it does not, or there is none."""
    low, high = difference[f"{name}_low"], difference[f"{name}_high"]
    return 0 if low is None or high is None else int(low > 0) - int(high < 0)


def _ratio(ours: float | None, theirs: float | None) -> float | None:
    return ours / theirs if ours is not None and theirs else None


def _ratio_cell(row: Row) -> Cell:
    ratio = row["seconds_ratio"]
    if ratio is None:
        return Cell(UNKNOWN)
    return Cell(f"{number(ratio, 2)}{SPACE}×", "" if row["device"] == row["baseline_device"] else "other device")


def _verdict_cell(row: Row) -> Cell:
    verdict = row["verdict"]
    reserved = ["" if row["matched"] else "unmatched", "weaker attack" if row["weaker_attack"] else ""]
    reservations = ", ".join(filter(None, reserved))
    return Cell(f"{verdict} ({reservations})" if reservations else verdict, _IN_FULL.get(verdict, ""))


_OURS, _THEIRS, _BETWEEN = "empirical method", "nearest DP-SGD setting", "method − DP-SGD"

LEAKAGE = (METHOD, tpr_column(_OURS))

OTHERS = (
    accuracy_column(_OURS),
    Column(
        "s/model",
        lambda row: Cell(number(row["seconds_per_model"])),
        SECONDS_PER_MODEL,
        _OURS,
    ),
    Column(
        "baseline",
        text("baseline_label"),
        "The DP-SGD setting whose mean accuracy is nearest, whatever it leaks.",
        _THEIRS,
        brief=True,
        numeric=False,
    ),
    Column(
        "claimed ε",
        lambda row: epsilon_cell(row, "baseline_"),
        "Its guarantee, with the TPR at 0.1 % FPR that it allows at most; vacuous if that is 99.99 % or more.",
        _THEIRS,
        brief=True,
        numeric=False,
    ),
    Column("its TPR", lambda row: percent_interval(row, "baseline_tpr_at_fpr_0.001"), "", _THEIRS),
    Column("its accuracy", lambda row: percent_with_error(row, "baseline_accuracy"), "", _THEIRS),
    Column("its s/model", lambda row: Cell(number(row["baseline_seconds_per_model"])), "", _THEIRS),
    Column(
        "Δ TPR",
        lambda row: points_interval(row, "tpr_difference"),
        "Percentage points, with the interval of a bootstrap that draws the same canaries for both; given these "
        "models, those that both have. Negative: the method leaks less.",
        _BETWEEN,
        brief=True,
    ),
    Column(
        "Δ accuracy",
        lambda row: points_with_error(row, "accuracy_difference"),
        "Percentage points ± standard error of the mean difference, models paired by index, those that both have.",
        _BETWEEN,
        brief=True,
    ),
    Column(
        "time ratio",
        _ratio_cell,
        "Seconds per model of the method, over those of the baseline.",
        _BETWEEN,
    ),
    Column(
        "verdict",
        _verdict_cell,
        "Names each difference whose interval excludes zero, and no other (for accuracy: Student's t over models); "
        "cost is not weighed. Unmatched: no DP-SGD setting is near enough in accuracy, so leakage is not compared at "
        "equal utility. Weaker attack: the side that leaks less has fewer models, so that part or all of the "
        "difference may be the attack's. Rows are not corrected for their number, and what an audit sees is no "
        "guarantee.",
        brief=True,
        numeric=False,
    ),
)
