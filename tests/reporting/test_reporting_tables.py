import math
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pydantic import ValidationError
from results_folder import PRIMARY, ResultsFolder

from coalmine.errors import CoalmineError
from coalmine.reporting import table1, table5, table6, table7
from coalmine.reporting.published import PUBLISHED
from coalmine.reporting.writers import csv_text, format_table, html_page, latex_text


def built(module: Any, folder: ResultsFolder, **settings: Any) -> Any:
    chosen = module.Settings(**settings)
    return module.build(folder.results(chosen), chosen)


@pytest.fixture
def three_methods(folder: ResultsFolder) -> ResultsFolder:
    folder.metrics("random")
    folder.metrics("novel", claimed={"epsilon": 3557.0, "delta": 1e-5, "accountant": "RDP"})
    folder.metrics("shuffled", membership="shuffled")
    folder.costs("random", synthetic=[1.0, 2.0, 3.0, 4.0], models=[10.0, 20.0, 30.0, 40.0], logits=[5.0] * 4)
    folder.costs("novel", models=[7.0] * 4)
    return folder


METHODS = ("random", "novel", "shuffled")


def test_table1_holds_the_primary_variant_of_the_mislabelled_canaries(three_methods: ResultsFolder) -> None:
    row = built(table1, three_methods, methods=METHODS, labels={"random": "random coreset"}).iloc[0]
    assert (row["method"], row["label"], row["variant"]) == ("random", "random coreset", PRIMARY)
    assert row["tpr_at_fpr_0.001"] == 0.4
    assert row["tpr_at_fpr_0.001_low"] == 0.35
    assert row["tpr_at_fpr_0.001_high"] == 0.45
    assert (row["false_positives"], row["false_positives_allowed"]) == (7, 8)
    assert (row["tpr_at_fpr_0.01"], row["auc"], row["auc_high"]) == (0.5, 0.7, 0.75)
    assert (row["accuracy"], row["accuracy_se"]) == (0.9125, 0.0025)
    assert (row["canaries_selected"], row["canaries_memorised"]) == (0.41, 0.83)
    assert row["empirical_epsilon"] == 2.5
    assert (row["empirical_epsilon_ceiling"], row["confidence"]) == (4.25, 0.95)
    assert (row["peers_maximum_over_variants"], row["peers_maximum_variant"]) == (0.4, PRIMARY)
    assert (row["n_canaries"], row["n_models"]) == (500, 4)


def test_seconds_per_model_are_synthesis_plus_training_without_queries(three_methods: ResultsFolder) -> None:
    seconds = built(table1, three_methods, methods=METHODS)["seconds_per_model"]
    assert seconds[0] == 2.5 + 25.0
    assert seconds[1] == 7.0


def test_a_shuffled_control_costs_nothing_of_its_own(three_methods: ResultsFolder) -> None:
    row = built(table1, three_methods, methods=METHODS).iloc[2]
    assert math.isnan(row["seconds_per_model"])
    assert csv_text(built(table1, three_methods, methods=("shuffled",))).splitlines()[1].split(",")[16:18] == ["", ""]


def test_difference_is_ours_minus_the_papers(three_methods: ResultsFolder) -> None:
    frame = built(table1, three_methods, methods=METHODS)
    assert frame["paper_tpr"][0] == 0.387
    assert frame["difference"][0] == pytest.approx(0.4 - 0.387)
    assert math.isnan(frame["paper_tpr"][1])
    assert math.isnan(frame["difference"][1])


def test_a_paper_number_that_answers_another_question_gets_no_difference(three_methods: ResultsFolder) -> None:
    frame = built(table1, three_methods, methods=("novel",), published={"novel": "dpsgd-high"})
    assert frame["paper_tpr"][0] == 0.095
    assert pd.isna(frame["difference"][0])
    assert "out-of-distribution" in frame["paper_setting"][0]


def test_published_numbers_are_those_of_the_papers() -> None:
    assert PUBLISHED["random"].tpr == 0.3870
    assert PUBLISHED["random"].selected == 0.40
    assert PUBLISHED["forgetting"].tpr == 0.7294
    assert PUBLISHED["forgetting"].selected == 0.74
    assert (PUBLISHED["undefended"].tpr, PUBLISHED["undefended"].accuracy) == (1.0, 0.941)
    assert (PUBLISHED["dfkd"].tpr, PUBLISHED["dfkd"].accuracy) == (0.722, 0.918)
    assert (PUBLISHED["dpsgd-medium"].tpr, PUBLISHED["dpsgd-medium"].accuracy) == (0.027, 0.883)


def test_the_page_says_attack_design_and_level_of_the_intervals(three_methods: ResultsFolder) -> None:
    page = html_page(table1.layout(built(table1, three_methods, methods=METHODS)), "title", [])
    assert f"Attack: {PRIMARY}. 500 mislabelled canaries, 4 models. Intervals: 95\N{NO-BREAK SPACE}%" in page


def test_table1_fits_a_terminal_of_150_columns(three_methods: ResultsFolder) -> None:
    frame = built(table1, three_methods, methods=METHODS, labels={"random": "random coreset (40 %)"})
    printed = format_table(frame, table1.layout(frame), 150)
    assert max(map(len, printed.splitlines())) <= 150
    header, rule, first = printed.split("\n\n")[1].splitlines()[:3]
    headings = "method TPR@0.1%FPR TPR@1% AUC accuracy s/model selected claimed ε paper"
    assert header.split() == headings.split()
    assert set(rule) == {"-", " "}
    assert first.split("  ")[0] == "random coreset (40 %)"
    assert "40.0 % [35.0, 45.0]" in first
    assert "38.7 % [a]" in first
    assert "\n[a] CIFAR-10, ResNet-18, 500 canaries, 32 shadow models" in printed


def test_table1_sets_visual_leakage_beside_the_attack(folder: ResultsFolder) -> None:
    folder.metrics("dm")
    folder.metrics("undefended")
    folder.costs("dm", models=[1.0] * 4)
    folder.costs("undefended", models=[1.0] * 4)
    folder.visual("dm", level=0.02, pixel=0.25, ssim=0.4, features=0.6)
    frame = built(table1, folder, methods=("dm", "undefended"), sets={"dm": "dm"})
    shares = [frame[f"visual_{name}"][0] for name in ("pixel", "ssim", "features")]
    assert shares == [0.25, 0.4, 0.6]
    assert (frame["visual_features_low"][0], frame["visual_features_high"][0]) == (0.59, 0.62)
    assert frame["visual_level"][0] == 0.02
    assert frame.filter(like="visual_").iloc[1].isna().all()
    (sheet,) = table1.layout(frame)
    columns = [column for column in sheet.columns if column.group == "visual leakage"]
    shown, dash = ([column.cell(row) for column in columns] for row in sheet.rows)
    assert [cell.text for cell in shown] == [f"{share}\N{NO-BREAK SPACE}%" for share in ("25.0", "40.0", "60.0")]
    assert (shown[2].aside, {cell.text for cell in dash}) == ("[59.0, 62.0]", {"–"})
    assert "By chance at most 2 %" in columns[0].explanation
    assert "public data" in columns[2].explanation
    assert [column in sheet.shown(brief=True) for column in columns] == [True, False, False]


def test_table1_has_no_column_of_features_where_no_network_was_trained(folder: ResultsFolder) -> None:
    folder.metrics("dm")
    folder.costs("dm", models=[1.0] * 4)
    folder.visual("dm", pixel=0.25, ssim=0.4)
    frame = built(table1, folder, methods=("dm",), sets={"dm": "dm"})
    (sheet,) = table1.layout(frame)
    columns = [column for column in sheet.columns if column.group == "visual leakage"]
    assert [column.cell(sheet.rows[0]).text for column in columns] == [
        "25.0\N{NO-BREAK SPACE}%",
        "40.0\N{NO-BREAK SPACE}%",
    ]
    assert pd.isna(frame["visual_features"][0])


def test_table1_without_comparison_of_images_has_no_such_column(folder: ResultsFolder) -> None:
    folder.metrics("dm")
    folder.costs("dm", models=[1.0] * 4)
    (sheet,) = table1.layout(built(table1, folder, methods=("dm",), sets={"dm": "dm"}, visual=False))
    assert "visual leakage" not in {column.group for column in sheet.columns}
    assert "initialised" not in {column.heading for column in sheet.columns}


def test_table1_tells_copied_canaries_from_those_that_images_start_from(folder: ResultsFolder, metrics_of) -> None:
    groups = metrics_of("dm")["groups"]
    groups["mislabelled"]["facts"] |= {"selected": None, "initialised": 0.37}
    folder.metrics("dm", groups=groups)
    folder.metrics("random")
    for method in ("dm", "random"):
        folder.costs(method, models=[1.0] * 4)
    frame = built(table1, folder, methods=("dm", "random"))
    (sheet,) = table1.layout(frame)
    headings = [column.heading for column in sheet.columns]
    place = headings.index("selected")
    assert headings[place + 1] == "initialised"
    assert [[cell.text for cell in row[place : place + 2]] for row in sheet.cells()] == [
        ["–", "37.0\N{NO-BREAK SPACE}%"],
        ["41.0\N{NO-BREAK SPACE}%", "–"],
    ]


def test_table1_with_every_column_fits_a_terminal_of_150_columns(folder: ResultsFolder, metrics_of) -> None:
    groups = metrics_of("dm")["groups"]
    groups["mislabelled"]["facts"] |= {"selected": None, "initialised": 0.37}
    folder.metrics("dm", groups=groups)
    folder.metrics("random")
    for method in ("dm", "random"):
        folder.costs(method, models=[1.0] * 4)
    folder.visual("dm", pixel=0.25)
    labels = {"dm": "Distribution matching, private", "random": "random coreset (40 %)"}
    frame = built(table1, folder, methods=("dm", "random"), sets={"dm": "dm"}, labels=labels)
    read_back = pd.read_csv(StringIO(csv_text(frame)))
    printed = format_table(read_back, table1.layout(read_back), 150)
    assert max(map(len, printed.splitlines())) <= 150
    assert "40.0 % [35.0, 45.0]" in printed
    assert "25.0 %" in printed


def test_table5_sets_worst_against_average_case(folder: ResultsFolder) -> None:
    folder.metrics("random")
    row = built(table5, folder, methods=("random",)).iloc[0]
    assert (row["worst_tpr_at_fpr_0.001"], row["average_tpr_at_fpr_0.001"]) == (0.4, 0.25)
    assert (row["worst_auc"], row["average_auc"]) == (0.7, pytest.approx(0.55))
    assert row["average_auc_low"] == pytest.approx(0.5)
    assert (row["note"], row["n_canaries"], row["n_clean"]) == ("same models", 500, 300)


def test_table5_takes_the_average_case_from_another_entry(folder: ResultsFolder, metrics_of) -> None:
    groups = metrics_of("random")["groups"]
    folder.metrics("random", groups={"mislabelled": groups["mislabelled"]})
    folder.metrics(
        "random-clean", groups={"clean": groups["clean"]}, accuracy={"mean": 0.93, "se": None, "per_model": [0.93]}
    )
    settings: dict[str, Any] = {"methods": ("random",), "average": {"random": "random-clean"}}
    row = built(table5, folder, labels={"random-clean": "random, clean"}, **settings).iloc[0]
    assert row["note"] == "separate models (random, clean)"
    assert (row["worst_accuracy"], row["average_accuracy"]) == (0.9125, 0.93)
    assert table5.Settings(**settings).needed == ("random", "random-clean")


def test_table5_without_an_average_case_says_what_to_do(folder: ResultsFolder, metrics_of) -> None:
    folder.metrics("random", groups={"mislabelled": metrics_of("random")["groups"]["mislabelled"]})
    with pytest.raises(CoalmineError, match="name under `average` a method entry that has them"):
        built(table5, folder, methods=("random",))


def test_an_average_case_of_an_unlisted_method_is_refused() -> None:
    with pytest.raises(ValidationError, match="average names rnadom, not listed in methods"):
        table5.Settings(methods=("random",), average={"rnadom": "random"})


def test_table6_lists_every_variant_primary_first_and_the_maximum_last(folder: ResultsFolder) -> None:
    folder.metrics("random")
    frame = built(table6, folder, methods=("random",))
    assert frame["variant"].tolist() == [PRIMARY, "global-logit-1v", table6.MAXIMUM]
    assert frame["primary"].tolist() == [True, False, False]
    assert frame["tpr_at_fpr_0.001"].tolist() == pytest.approx([0.4, 0.3, 0.4])
    assert frame["tpr_at_fpr_0.001_false_positives"][0] == 7
    assert frame["tpr_at_fpr_0.01_reached_by"][2] == PRIMARY
    assert frame["empirical_epsilon"][:2].tolist() == pytest.approx([2.5, 2.4])
    assert frame[["auc", "tpr_at_fpr_0.001_low"]].iloc[2].isna().all()


def test_table6_is_shown_as_matrices_of_variants_by_methods(folder: ResultsFolder) -> None:
    folder.metrics("random")
    folder.metrics("novel")
    layout = table6.layout(built(table6, folder, methods=("random", "novel")))
    tpr, _, auc, epsilon = layout
    assert [column.heading for column in tpr.columns] == ["attack variant", "random", "novel"]
    assert [cells[0].text for cells in tpr.cells()] == [PRIMARY, "global-logit-1v", table6.MAXIMUM]
    assert tpr.cells()[1][2].aside == "[25.0, 35.0]"
    assert [cells[0].text for cells in auc.cells()] == [PRIMARY, "global-logit-1v"]
    assert epsilon.cells()[0][1].text == "2.50"


def test_table7_sums_stages_per_model(three_methods: ResultsFolder) -> None:
    frame = built(table7, three_methods, methods=METHODS).set_index(["method", "stage"])
    training, total = frame.loc[("random", "models")], frame.loc[("random", "total")]
    assert (training["n_models"], training["seconds_per_model"], training["seconds_all_models"]) == (4, 25.0, 100.0)
    assert training["seconds_per_model_sd"] == pytest.approx(math.sqrt(500 / 3))
    assert (training["peak_memory_mb"], training["disk_mb"], training["device"]) == (103.0, 2.0, "cpu")
    assert total["seconds_per_model"] == 32.5
    assert total["seconds_per_model_sd"] == pytest.approx(math.sqrt(605 / 3))
    assert total["disk_mb"] == 6.0
    assert frame.loc["novel"].index.tolist() == ["models", "total"]
    assert frame.loc[("shuffled", "total")].drop("label").isna().all()


def test_table7_counts_experts_in_full_for_every_method_that_uses_them(folder: ResultsFolder) -> None:
    folder.costs("plain", experts=[3.0] * 4)
    for method in ("mtt", "tesla"):
        folder.metrics(method)
        folder.costs(method, synthetic=[1.0] * 4, models=[2.0] * 4)
    frame = built(table7, folder, methods=("mtt", "tesla"), experts={"mtt": "plain", "tesla": "plain"})
    assert frame["stage"].tolist() == ["experts", "synthetic", "models", "total"] * 2
    assert frame["seconds_per_model"].tolist() == [3.0, 1.0, 2.0, 6.0] * 2
    (sheet,) = table7.layout(frame)
    assert [cells[1].text for cells in sheet.cells()][:2] == ["experts", "synthesis"]


def test_table7_names_each_method_once_on_the_page(three_methods: ResultsFolder) -> None:
    (sheet,) = table7.layout(built(table7, three_methods, methods=METHODS))
    assert [cells[0].text for cells in sheet.cells()] == ["random", "", "", "", "novel", "", "shuffled"]


@pytest.mark.parametrize("module", [table1, table5, table6, table7])
def test_labels_are_escaped_on_the_page_and_in_latex(module: Any, folder: ResultsFolder) -> None:
    folder.metrics("random")
    folder.costs("random", models=[1.0] * 4)
    frame = built(module, folder, methods=("random",), labels={"random": "<b>50% & more_</b>"})
    page, latex = html_page(module.layout(frame), "<i>", []), latex_text(module.layout(frame), "100 %\nsafe")
    assert "&lt;b&gt;50% &amp; more_&lt;/b&gt;" in page
    assert "<b>" not in page
    assert r"$<$b$>$50\% \& more\_$<$/b$>$" in latex
    assert latex.startswith("% 100 % safe\n")


@pytest.mark.parametrize("module", [table1, table5, table6, table7])
def test_settings_accept_lists_and_refuse_what_they_do_not_know(module: Any) -> None:
    assert module.Settings(methods=["a", "b"]).methods == ("a", "b")
    with pytest.raises(ValidationError):
        module.Settings(methods=["a", 1])
    with pytest.raises(ValidationError):
        module.Settings(methods=[])
    with pytest.raises(ValidationError):
        module.Settings(methods=["a"], colour="red")


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        ([], 2, "the following arguments are required: table"),
        (["nothing.csv"], 1, "error: There is no table nothing.csv. Make it: snakemake nothing.csv --cores all"),
        (["figure1.csv"], 1, "error: figure1.csv is no table of Coalmine's"),
        (["other.csv"], 1, "error: other.csv is no table of Coalmine's"),
    ],
)
def test_what_is_no_table_is_not_shown(tmp_path: Path, arguments: list[str], status: int, told: str) -> None:
    for name in ("figure1.csv", "other.csv"):
        (tmp_path / name).write_text("a,b\n1,2\n")
    command = [sys.executable, "-m", "coalmine.reporting.show", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == status
    assert told in done.stderr
    assert "Traceback" not in done.stderr
