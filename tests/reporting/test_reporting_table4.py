"""Table 4: the nearest baseline, paired differences against naive ones, and verdicts that the statistics support."""

import math
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError
from results_folder import PRIMARY, ResultsFolder
from scipy.stats import ttest_rel

from coalmine.artefacts import place, write_npz
from coalmine.audit.roc import tpr_at_fpr
from coalmine.errors import CoalmineError
from coalmine.reporting import table4
from coalmine.reporting.results import load_results
from coalmine.reporting.show import show
from coalmine.reporting.writers import csv_text, format_table, html_page, latex_text, write_table
from coalmine.seeds import numpy_generator

SPREAD = np.array([-0.004, 0.001, 0.0, 0.003, -0.002, 0.002, 0.004, -0.004])
N_MODELS, N_CANARIES = len(SPREAD), 80
DESIGN = {"models": N_MODELS, "canaries": N_CANARIES, "clean": 0, "views": 18}


def accuracy(mean: float, spread: np.ndarray = SPREAD) -> dict[str, Any]:
    per_model = mean + spread
    return {"mean": mean, "se": float(per_model.std(ddof=1) / math.sqrt(len(per_model))), "per_model": [*per_model]}


def add(folder: ResultsFolder, method: str, leak: float, mean: float, seconds: float = 2.0, **changes: Any) -> None:
    """A method that leaks so much, is so accurate (models differ) and takes so many seconds a model."""
    spread = changes.pop("spread", SPREAD)
    sizes = {"n_canaries": N_CANARIES, "n_models": N_MODELS}
    folder.audit(method, {"mislabelled": leak}, accuracy=accuracy(mean, spread), **sizes, **changes)
    folder.costs(method, models=[seconds] * N_MODELS)


def copy_scores(folder: ResultsFolder, method: str, of: str) -> None:
    place(folder.root / f"scores/{of}.npz", folder.root / f"scores/{method}.npz")


def built(folder: ResultsFolder, *methods: str, baselines: tuple[str, ...] = ("dp",), **settings: Any) -> pd.DataFrame:
    chosen = table4.Settings(methods=methods, baselines=baselines, **{"replicates": 200, **settings})
    return table4.build(folder.results(chosen), chosen)


def claimed(epsilon: float, note: str | None = None) -> dict[str, Any]:
    return {"epsilon": epsilon, "delta": 1e-5, "accountant": "PLD", "noise_multiplier": 2.0, "steps": 100, "note": note}


@pytest.fixture
def compared(folder: ResultsFolder) -> ResultsFolder:
    add(folder, "random", 3.0, 0.93, seconds=1.5)
    add(folder, "dp", 1.0, 0.92, seconds=6.0, claimed=claimed(8.0), spread=SPREAD[::-1])
    add(folder, "dp-vacuous", 2.0, 0.96, claimed=claimed(2444.3, "PLD did not finish, RDP instead"))
    return folder


def test_a_row_holds_both_sides_and_the_claim(compared: ResultsFolder) -> None:
    row = built(compared, "random", labels={"random": "random coreset", "dp": "DP-SGD"}).iloc[0]
    metrics = load_results(compared.root, ["random", "dp"]).metrics
    for prefix, method in (("", "random"), ("baseline_", "dp")):
        tpr = metrics[method].variant("mislabelled").tpr["0.001"]
        names = [f"{prefix}tpr_at_fpr_0.001{end}" for end in ("", "_low", "_high")]
        assert row[names].tolist() == [tpr.value, tpr.low, tpr.high]
        assert row[f"{prefix}accuracy"] == metrics[method].accuracy.mean
        assert row[f"{prefix}accuracy_se"] == metrics[method].accuracy.se
    assert (row["method"], row["label"]) == ("random", "random coreset")
    assert (row["baseline"], row["baseline_label"]) == ("dp", "DP-SGD")
    assert (row["seconds_per_model"], row["baseline_seconds_per_model"], row["seconds_ratio"]) == (1.5, 6.0, 0.25)
    assert (row["baseline_claimed_epsilon"], row["baseline_claimed_steps"]) == (8.0, 100)
    assert (row["variant"], row["n_canaries"], row["n_models"]) == (PRIMARY, N_CANARIES, N_MODELS)
    assert row["confidence"] == 0.95


def test_near_copies_stand_beside_the_score_of_a_method_that_makes_images(compared: ResultsFolder) -> None:
    compared.visual("random", pixel=0.25, ssim=0.4)
    frame = built(compared, "random", sets={"random": "random"})
    assert frame["visual_pixel"].tolist() == [0.25]
    for shown, expected in ((frame, ["near-copies"]), (built(compared, "random"), [])):
        (sheet,) = table4.layout(shown)
        headings = [column.heading for column in sheet.columns]
        assert headings[: 3 + len(expected)] == ["method", "TPR@0.1%FPR", *expected, "accuracy"]


def test_the_tpr_difference_equals_a_naive_paired_bootstrap(compared: ResultsFolder) -> None:
    row = built(compared, "random", replicates=60).iloc[0]
    results = load_results(compared.root, ["random", "dp"])
    audits = [results.scores(name).read("mislabelled", PRIMARY) for name in ("random", "dp")]
    rng = numpy_generator(0, "reporting", "table4")
    naive = []
    for drawn in rng.integers(N_CANARIES, size=(60, N_CANARIES)):
        ours, theirs = (tpr_at_fpr(scores[drawn], membership[drawn], 0.001).tpr for scores, membership in audits)
        naive.append(ours - theirs)
    values = [tpr_at_fpr(*audit, 0.001).tpr for audit in audits]
    assert row["tpr_difference"] == pytest.approx(values[0] - values[1])
    assert [row["tpr_difference_low"], row["tpr_difference_high"]] == pytest.approx(np.quantile(naive, [0.025, 0.975]))


def test_the_interval_has_the_level_of_the_metrics(compared: ResultsFolder, metrics_of) -> None:
    groups = metrics_of("random")["groups"]
    groups["mislabelled"]["variants"][PRIMARY]["epsilon"]["confidence"] = 0.5
    wide = built(compared, "random").iloc[0]
    compared.metrics("random", groups=groups, accuracy=accuracy(0.93), design=DESIGN)
    narrow = built(compared, "random").iloc[0]
    assert narrow["confidence"] == 0.5
    for name in ("tpr_difference", "accuracy_difference"):
        widths = [row[f"{name}_high"] - row[f"{name}_low"] for row in (narrow, wide)]
        assert 0 < widths[0] < 0.6 * widths[1]


def test_the_accuracy_difference_is_paired_by_model(compared: ResultsFolder) -> None:
    row = built(compared, "random").iloc[0]
    test = ttest_rel(0.93 + SPREAD, 0.92 + SPREAD[::-1])
    interval = test.confidence_interval(0.95)
    assert row["accuracy_difference"] == pytest.approx(0.01)
    assert row["accuracy_difference_se"] == pytest.approx(0.01 / test.statistic)
    assert [row["accuracy_difference_low"], row["accuracy_difference_high"]] == pytest.approx([*interval])


def test_what_models_share_does_not_blur_the_accuracy_difference(compared: ResultsFolder) -> None:
    add(compared, "parallel", 3.0, 0.921, spread=SPREAD[::-1] * 1.01)
    row = built(compared, "parallel").iloc[0]
    assert row["accuracy_difference_se"] < 0.02 * row["accuracy_se"]
    assert row["accuracy_difference_low"] > 0


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_one_model_has_no_error_and_shows_no_difference_of_accuracy(folder: ResultsFolder) -> None:
    for method, mean in (("random", 0.95), ("dp", 0.90)):
        add(folder, method, 3.0, 0.9)
        design = {**DESIGN, "models": 1}
        folder.metrics(method, accuracy={"mean": mean, "se": None, "per_model": [mean]}, design=design)
    row = built(folder, "random").iloc[0]
    assert row["accuracy_difference"] == pytest.approx(0.05)
    assert row[["accuracy_difference_se", "accuracy_difference_low", "accuracy_difference_high"]].isna().all()
    assert "accurate" not in row["verdict"]


def test_the_baseline_is_the_one_nearest_in_accuracy(folder: ResultsFolder) -> None:
    for method, mean in (("high", 0.95), ("low", 0.80), ("dp-a", 0.79), ("dp-b", 0.90), ("dp-c", 0.97)):
        add(folder, method, 1.0, mean)
    frame = built(folder, "high", "low", baselines=("dp-a", "dp-b", "dp-c"))
    assert frame["baseline"].tolist() == ["dp-c", "dp-a"]


@pytest.mark.parametrize("order", [("below", "above"), ("above", "below")])
def test_of_baselines_as_near_the_first_is_taken_whatever_binary_fractions_say(
    folder: ResultsFolder, order: tuple[str, ...]
) -> None:
    assert abs(0.93 - 0.92) != abs(0.93 - 0.94)
    for method, mean in (("random", 0.93), ("below", 0.92), ("above", 0.94)):
        add(folder, method, 1.0, mean)
    assert built(folder, "random", baselines=order)["baseline"].tolist() == [order[0]]


@pytest.mark.parametrize(
    ("leak", "mean", "verdict"),
    [
        (0.2, 0.91, "dominates"),
        (0.2, 0.90, "leaks less"),
        (0.2, 0.89, "leaks less, less accurate"),
        (3.0, 0.91, "more accurate"),
        (3.0, 0.90, "not distinguishable"),
        (3.0, 0.89, "less accurate"),
        (9.0, 0.91, "leaks more, more accurate"),
        (9.0, 0.90, "leaks more"),
        (9.0, 0.89, "dominated"),
    ],
)
def test_the_verdict_names_what_the_statistics_support(
    folder: ResultsFolder, leak: float, mean: float, verdict: str
) -> None:
    add(folder, "method", leak, mean)
    add(folder, "dp", 3.0, 0.90, spread=SPREAD[::-1])
    if leak == 3.0:
        copy_scores(folder, "method", "dp")
    frame = built(folder, "method")
    assert frame["verdict"].tolist() == [verdict]
    page = html_page(table4.layout(frame), "title", [])
    full = {"dominates": "leaks less, more accurate", "dominated": "leaks more, less accurate"}.get(verdict)
    assert f"<td>{verdict}" + (f'<span class="aside">{full}</span>' if full else "") + "</td>" in page


def test_an_interval_that_touches_zero_shows_no_difference() -> None:
    signs = {(0.0, 0.1): 0, (-0.1, 0.0): 0, (-0.1, 0.1): 0, (0.01, 0.1): 1, (-0.1, -0.01): -1, (None, None): 0}
    for (low, high), sign in signs.items():
        assert table4._sign({"gap_low": low, "gap_high": high}, "gap") == sign


def test_a_small_difference_of_accuracy_is_no_finding(folder: ResultsFolder) -> None:
    add(folder, "method", 3.0, 0.9005)
    add(folder, "dp", 3.0, 0.90, spread=SPREAD[::-1])
    copy_scores(folder, "method", "dp")
    row = built(folder, "method").iloc[0]
    assert row["accuracy_difference_low"] < 0 < row["accuracy_difference_high"]
    assert row["verdict"] == "not distinguishable"


@pytest.mark.parametrize(("mean", "matched"), [(0.92, True), (0.88, True), (0.921, False), (0.879, False)])
def test_accuracies_further_apart_than_the_tolerance_are_flagged(
    folder: ResultsFolder, mean: float, matched: bool
) -> None:
    add(folder, "method", 9.0, mean)
    add(folder, "dp", 1.0, 0.90)
    frame = built(folder, "method")
    assert frame["matched"].tolist() == [matched]
    assert frame["tolerance"].tolist() == [0.02]
    (sheet,) = table4.layout(frame)
    assert sheet.cells()[0][-1].text.endswith("(unmatched)") is not matched
    assert sheet.caption.endswith("Matched: mean accuracies at most 2 percentage points apart.")
    assert built(folder, "method", tolerance=0.03)["matched"].tolist() == [True]


def test_methods_with_another_membership_are_refused(compared: ResultsFolder) -> None:
    rng = np.random.default_rng(0)
    membership = rng.permuted(np.tile([True, False], (N_CANARIES, N_MODELS // 2)), axis=1)
    arrays = {f"mislabelled/{PRIMARY}": rng.normal(size=membership.shape), "mislabelled/membership": membership}
    write_npz(compared.root / "scores/random.npz", {}, arrays)
    with pytest.raises(CoalmineError, match=r"random\.npz and .*dp\.npz hold different memberships.*Take 'random' or"):
        built(compared, "random")


def test_methods_with_other_canaries_are_refused(compared: ResultsFolder) -> None:
    compared.audit("more", {"mislabelled": 1.0}, n_canaries=N_CANARIES + 1, n_models=N_MODELS, accuracy=accuracy(0.92))
    compared.costs("more", models=[1.0] * N_MODELS)
    with pytest.raises(CoalmineError, match="different memberships"):
        built(compared, "more")


def test_accuracies_of_other_models_than_those_audited_are_refused(compared: ResultsFolder) -> None:
    metrics = {"accuracy": {"mean": 0.92, "se": 0.01, "per_model": [0.91, 0.93]}, "design": DESIGN}
    compared.metrics("random", **metrics)
    with pytest.raises(CoalmineError, match="'random' hold the accuracy of 2 models, but its audit has 8"):
        built(compared, "random")


def test_seconds_on_another_device_are_said_to_be(compared: ResultsFolder) -> None:
    def shown() -> Any:
        (sheet,) = table4.layout(built(compared, "random"))
        return sheet.cells()[0][[column.heading for column in sheet.columns].index("time ratio")]

    assert (shown().text, shown().aside) == ("0.25\N{NO-BREAK SPACE}×", "")
    for shadow in range(N_MODELS):
        measured = {"seconds": 1.0, "device": "gpu", "peak_memory_mb": 1.0, "bytes": 1}
        compared.write(f"models/dp/{shadow:03d}.json", measured)
    assert (shown().text, shown().aside) == ("1.5\N{NO-BREAK SPACE}×", "other device")


def test_people_see_differences_with_sign_and_interval(compared: ResultsFolder) -> None:
    frame = built(compared, "random")
    page = html_page(table4.layout(frame), "title", [])
    row = frame.iloc[0]
    low, high = (100 * row[f"tpr_difference_{end}"] for end in ("low", "high"))
    assert f"+{100 * row['tpr_difference']:.1f}\N{NO-BREAK SPACE}pp<span" in page
    assert f">[{low:.1f}, {high:.1f}]</span>" in page
    assert "+1.0\N{NO-BREAK SPACE}pp<span" in page
    assert f"± {100 * row['accuracy_difference_se']:.1f}</span>" in page


def test_a_vacuous_baseline_is_called_so_and_its_note_told(compared: ResultsFolder) -> None:
    add(compared, "herding", 1.0, 0.955)
    frame = built(compared, "herding", baselines=("dp", "dp-vacuous"), labels={"dp-vacuous": "DP-SGD medium"})
    page = html_page(table4.layout(frame), "title", [])
    assert "<td>2,444 vacuous</td>" in page
    assert "DP-SGD medium: PLD did not finish, RDP instead" in page
    assert "2,444 vacuous" in latex_text(table4.layout(frame), "title")


def test_steps_stay_whole_beside_a_baseline_without_a_claim(compared: ResultsFolder) -> None:
    add(compared, "unclaimed", 1.0, 0.80)
    add(compared, "weak", 1.0, 0.81)
    changed = {**claimed(8.0), "steps": 1_234_567}
    add(compared, "dp", 1.0, 0.92, claimed=changed)
    lines = csv_text(built(compared, "random", "weak", baselines=("dp", "unclaimed"))).splitlines()
    position = lines[0].split(",").index("baseline_claimed_steps")
    assert [line.split(",")[position] for line in lines[1:]] == ["1234567", ""]


def test_the_table_reads_back_as_it_was_shown_and_fits_the_terminal(compared: ResultsFolder, tmp_path: Path) -> None:
    labels = {"random": "Distribution matching", "dp": "DP-SGD medium"}
    frame = built(compared, "random", labels=labels)
    read = pd.read_csv(StringIO(csv_text(frame)))
    assert format_table(read, table4.layout(read), 150) == format_table(frame, table4.layout(frame), 150)
    write_table(frame, "title", [], tmp_path / "table4", table4.layout(frame))
    printed = show(tmp_path / "table4.csv")
    assert max(map(len, printed.splitlines()[:8])) <= 150
    assert "Distribution matching" in printed


def test_a_method_cannot_be_its_own_baseline() -> None:
    with pytest.raises(ValidationError, match="dp: listed in methods and in baselines"):
        table4.Settings(methods=["random", "dp"], baselines=["dp"])


def test_at_least_one_baseline_is_needed() -> None:
    for settings in ({}, {"baselines": []}):
        with pytest.raises(ValidationError, match="baselines"):
            table4.Settings(methods=["random"], **settings)


def test_methods_and_baselines_are_needed_once_each() -> None:
    settings = table4.Settings(methods=["b", "a", "b"], baselines=["d", "c", "d"])
    assert settings.needed == ("b", "a", "d", "c")
