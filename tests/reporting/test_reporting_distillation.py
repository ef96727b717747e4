"""Tables 2 and 3: canaries that images start from, and those that were only trained on, against naive computations."""

from io import StringIO
from typing import Any

import numpy as np
import pandas as pd
import pytest
from results_folder import PRIMARY, ResultsFolder

from coalmine.artefacts import write_npz
from coalmine.audit.metrics import evaluate
from coalmine.errors import CoalmineError
from coalmine.reporting import table2, table3
from coalmine.reporting.results import load_results
from coalmine.reporting.used import FEWEST, divide
from coalmine.reporting.writers import csv_text, format_table, html_page, latex_text

N_CANARIES, N_MODELS = 90, 16
TAKEN = np.arange(N_CANARIES) % 3 == 0
SIZES = {"n_canaries": N_CANARIES, "n_models": N_MODELS}
LABELS = {"dm": "DM, private", "dm-public": "DM, public"}
GAP = "\N{NO-BREAK SPACE}"


def built(module: Any, folder: ResultsFolder, *methods: str, **settings: Any) -> pd.DataFrame:
    chosen = module.Settings(methods=methods, labels=LABELS, **{"replicates": 100, **settings})
    return module.build(folder.results(chosen), chosen)


def naive_auc(scores: np.ndarray, membership: np.ndarray) -> float:
    members, others = scores[membership], scores[~membership]
    above = (members[:, None] > others[None, :]).mean()
    return float(above + 0.5 * (members[:, None] == others[None, :]).mean())


def scores_of(folder: ResultsFolder, method: str) -> tuple[np.ndarray, np.ndarray]:
    return load_results(folder.root, [method]).scores(method).read("mislabelled", PRIMARY)


@pytest.fixture
def distilled(folder: ResultsFolder) -> ResultsFolder:
    facts = {"selected": None, "initialised": 1 / 3, "memorised": 0.8, "memorised_out": 0.02}
    folder.audit("dm", {"mislabelled": 4.0}, taken=TAKEN, only_taken=True, facts=facts, **SIZES)
    nothing = {**facts, "initialised": 0.0}
    folder.audit("dm-public", {"mislabelled": 0.3}, taken=np.zeros(N_CANARIES, bool), facts=nothing, **SIZES)
    folder.visual("dm", pixel=0.5, features=0.7)
    folder.visual("dm-public", pixel=0.04, features=0.03)
    return folder


def test_canaries_are_divided_by_the_models_that_hold_them() -> None:
    membership = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1]], bool)
    taken = np.array([[1, 1, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1]], bool)
    division = divide(taken, membership)
    assert division.used.tolist() == [True, False, False, True]
    assert division.unused.tolist() == [False, True, False, False]
    assert division.sometimes.tolist() == [False, False, True, False]


def test_table3_audits_each_group_on_its_own_rows(distilled: ResultsFolder) -> None:
    row = built(table3, distilled, "dm").iloc[0]
    scores, membership = scores_of(distilled, "dm")
    assert (row["used_canaries"], row["unused_canaries"], row["sometimes_canaries"]) == (30, 60, 0)
    for name, rows in (("used", TAKEN), ("unused", ~TAKEN)):
        assert row[f"{name}_auc"] == pytest.approx(naive_auc(scores[rows], membership[rows]))
        alone = evaluate(scores[rows], membership[rows], replicates=0, seed=0)
        for fpr in ("0.001", "0.01"):
            assert row[f"{name}_tpr_at_fpr_{fpr}"] == alone["tpr"][fpr]["value"]
            assert row[f"{name}_tpr_at_fpr_{fpr}_low"] <= alone["tpr"][fpr]["value"]
            assert row[f"{name}_tpr_at_fpr_{fpr}_high"] >= alone["tpr"][fpr]["value"]
    assert row["auc_difference"] == pytest.approx(row["used_auc"] - row["unused_auc"])


def test_table3_says_how_many_false_positives_each_group_allows(distilled: ResultsFolder) -> None:
    frame = built(table3, distilled, "dm")
    outside = {"used": 30 * N_MODELS // 2, "unused": 60 * N_MODELS // 2}
    for name, pairs in outside.items():
        assert frame[f"{name}_false_positives_allowed"][0] == pairs // 1000
        assert frame[f"{name}_false_positives"][0] <= pairs // 1000
    (sheet,) = table3.layout(frame)
    place = [column.heading for column in sheet.columns].index("used false positives")
    assert sheet.cells()[0][place].text == "0 of 0"


def test_table3_finds_a_leak_in_used_canaries_and_none_in_the_others(distilled: ResultsFolder) -> None:
    row = built(table3, distilled, "dm", replicates=400).iloc[0]
    assert row["used_auc_low"] > 0.8
    assert row["unused_auc_low"] < 0.5 < row["unused_auc_high"]
    assert 0.25 < row["auc_difference_low"] < row["auc_difference"] < row["auc_difference_high"] < 0.6


def test_the_interval_of_the_difference_is_that_of_two_samples_of_canaries(distilled: ResultsFolder) -> None:
    """The naive bootstrap draws whole canaries of each group and takes AUCs apart."""
    row = built(table3, distilled, "dm", replicates=2000).iloc[0]
    scores, membership = scores_of(distilled, "dm")
    rng = np.random.default_rng(1)
    differences = []
    for _ in range(400):
        drawn = [rng.choice(np.flatnonzero(rows), rows.sum()) for rows in (TAKEN, ~TAKEN)]
        aucs = [naive_auc(scores[each], membership[each]) for each in drawn]
        differences.append(aucs[0] - aucs[1])
    naive = np.quantile(differences, [0.025, 0.975])
    spread = np.std(differences)
    assert [row["auc_difference_low"], row["auc_difference_high"]] == pytest.approx(naive, abs=0.35 * spread)


def test_canaries_used_by_some_models_only_are_counted_and_in_no_group(folder: ResultsFolder) -> None:
    folder.audit("dm", {"mislabelled": 2.0}, **SIZES)
    scores, membership = scores_of(folder, "dm")
    taken = membership & TAKEN[:, None]
    for canary in (0, 3, 6):
        taken[canary, np.flatnonzero(membership[canary])[0]] = False
    arrays = {f"mislabelled/{PRIMARY}": scores, "mislabelled/membership": membership, "mislabelled/taken": taken}
    write_npz(folder.root / "scores/dm.npz", {}, arrays)
    row = built(table3, folder, "dm").iloc[0]
    assert (row["used_canaries"], row["unused_canaries"], row["sometimes_canaries"]) == (27, 60, 3)


@pytest.mark.parametrize(
    ("used", "said"),
    [
        (0, "too few canaries are used in every model that holds them (0, 5 are needed)"),
        (1, "too few canaries are used in every model that holds them (1, 5 are needed)"),
        (FEWEST - 1, "too few canaries are used in every model that holds them (4, 5 are needed)"),
        (N_CANARIES, "too few canaries are used in no model (0, 5 are needed)"),
    ],
)
def test_table3_says_which_group_is_too_small_to_compare(folder: ResultsFolder, used: int, said: str) -> None:
    folder.audit("dm", {"mislabelled": 2.0}, taken=np.arange(N_CANARIES) < used, **SIZES)
    frame = built(table3, folder, "dm")
    assert frame["note"][0] == said
    assert frame["used_canaries"][0] == used
    assert frame.filter(like="auc_difference").iloc[0].isna().all()
    assert pd.isna(frame["unused_auc" if used == N_CANARIES else "used_auc"][0])
    assert not pd.isna(frame["used_auc" if used == N_CANARIES else "unused_auc"][0])
    assert f"DM, private: {said}." in html_page(table3.layout(frame), "title", [])


def test_as_many_canaries_as_are_needed_are_compared(folder: ResultsFolder) -> None:
    folder.audit("dm", {"mislabelled": 2.0}, taken=np.arange(N_CANARIES) < FEWEST, **SIZES)
    frame = built(table3, folder, "dm")
    assert pd.isna(frame["note"][0])
    assert not frame[["used_auc", "used_tpr_at_fpr_0.01_low", "auc_difference_low"]].iloc[0].isna().any()
    assert table3.layout(frame)[0].footnotes == []


def test_table3_does_not_divide_the_canaries_of_a_shuffled_control(distilled: ResultsFolder) -> None:
    distilled.audit("shuffled", {"mislabelled": 0.0}, membership="shuffled", taken=TAKEN, **SIZES)
    frame = built(table3, distilled, "dm", "shuffled")
    assert pd.isna(frame["note"][0])
    assert "membership is shuffled" in frame["note"][1]
    assert frame[["used_canaries", "unused_auc", "auc_difference"]].iloc[1].isna().all()


def test_table3_needs_to_know_what_was_taken(folder: ResultsFolder) -> None:
    folder.audit("dm", {"mislabelled": 2.0}, **SIZES)
    scores, membership = scores_of(folder, "dm")
    write_npz(
        folder.root / "scores/dm.npz", {}, {f"mislabelled/{PRIMARY}": scores, "mislabelled/membership": membership}
    )
    with pytest.raises(CoalmineError, match=r"dm\.npz lacks the field .*mislabelled/taken"):
        built(table3, folder, "dm")


def test_table2_sets_each_initialisation_beside_its_leakage(distilled: ResultsFolder) -> None:
    starts = {"dm": "private", "dm-public": "public"}
    frame = built(
        table2, distilled, "dm", "dm-public", initialisation=starts, sets={"dm": "dm", "dm-public": "dm-public"}
    )
    scores, membership = scores_of(distilled, "dm")
    alone = evaluate(scores[TAKEN], membership[TAKEN], replicates=0, seed=0)["tpr"]["0.001"]["value"]
    everything = evaluate(scores, membership, replicates=0, seed=0)
    row = frame.iloc[0]
    assert (row["initialisation"], row["used_canaries"], row["used_tpr_at_fpr_0.001"]) == ("private", 30, alone)
    assert row["tpr_at_fpr_0.001"] == everything["tpr"]["0.001"]["value"]
    assert row["auc"] == pytest.approx(everything["auc"]["value"])
    assert row["used_tpr_at_fpr_0.001_low"] <= alone <= row["used_tpr_at_fpr_0.001_high"]
    assert row["canaries_used"] == 1 / 3
    assert frame["canaries_used"][1] == 0.0
    assert frame["visual_features"].tolist() == [0.7, 0.03]
    assert pd.isna(frame["used_tpr_at_fpr_0.001"][1])
    (sheet,) = table2.layout(frame)
    headings = [column.heading for column in sheet.columns]
    shown = [dict(zip(headings, (cell.text for cell in cells), strict=True)) for cells in sheet.cells()]
    assert [row["starts from"] for row in shown] == ["private samples", "public samples"]
    assert [row["near-copies"] for row in shown] == [f"50.0{GAP}%", f"4.0{GAP}%"]
    assert (shown[0]["used"], shown[1]["used TPR@0.1%FPR"]) == (f"33.3{GAP}%", "–")


def test_table2_shows_what_a_coreset_copies_and_a_dash_for_its_start(distilled: ResultsFolder) -> None:
    facts = {"selected": 0.4, "initialised": None, "memorised": 0.8, "memorised_out": 0.02}
    distilled.audit("random", {"mislabelled": 3.0}, taken=TAKEN, facts=facts, **SIZES)
    frame = built(table2, distilled, "random")
    assert (frame["canaries_used"][0], frame["initialisation"][0]) == (0.4, None)
    (sheet,) = table2.layout(frame)
    assert sheet.cells()[0][1].text == "–"
    assert "visual leakage" not in {column.group for column in sheet.columns}


def test_both_tables_and_the_same_groups_have_the_same_intervals(distilled: ResultsFolder) -> None:
    names = [f"used_tpr_at_fpr_0.001{end}" for end in ("", "_low", "_high")]
    two, three = built(table2, distilled, "dm"), built(table3, distilled, "dm")
    assert two[names].iloc[0].tolist() == three[names].iloc[0].tolist()


@pytest.mark.parametrize("module", [table2, table3])
def test_a_table_read_back_from_csv_is_shown_in_150_columns(module: Any, distilled: ResultsFolder) -> None:
    frame = built(
        module,
        distilled,
        "dm",
        "dm-public",
        initialisation={"dm": "private"},
        sets={"dm": "dm", "dm-public": "dm-public"},
    )
    frame = pd.read_csv(StringIO(csv_text(frame)))
    printed = format_table(frame, module.layout(frame), 150)
    assert max(map(len, printed.splitlines())) <= 150
    assert "DM, public" in printed
    assert "DM, private" in latex_text(module.layout(frame), "title")
