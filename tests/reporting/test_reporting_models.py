"""Methods with unlike numbers of shadow models: each is taken as it is, and what that means is said."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from results_folder import ResultsFolder
from scipy.stats import ttest_rel

from coalmine.artefacts import read_npz, write_npz
from coalmine.audit.bootstrap import bootstrap
from coalmine.audit.design import training_indices
from coalmine.audit.roc import tpr_at_fpr
from coalmine.errors import CoalmineError
from coalmine.reporting import (
    figure1,
    figure3,
    figure5,
    figure6,
    figure7,
    figure9,
    table1,
    table2,
    table3,
    table4,
    table5,
    table6,
    table7,
)
from coalmine.reporting.captions import models_of
from coalmine.reporting.results import load_results
from coalmine.reporting.used import divide
from coalmine.reporting.writers import format_table, html_page
from coalmine.seeds import numpy_generator, seed_sequence

MANY, FEW, CANARIES = 16, 8, 60


def add(folder: ResultsFolder, method: str, leak: float, mean: float, models: int = MANY, **changes: Any) -> None:
    """A method that was audited with the first so many of the run's shadow models."""
    own = mean + 0.01 * numpy_generator(0, "accuracy", method).normal(size=MANY)
    folder.audit(method, {"mislabelled": leak, "clean": leak / 2}, n_canaries=CANARIES, n_models=MANY, **changes)
    path = folder.root / f"scores/{method}.npz"
    header, arrays = read_npz(path)
    write_npz(path, header, {name: array[:, :models] for name, array in arrays.items()})
    metrics = json.loads((folder.root / f"metrics/{method}.json").read_text())
    metrics["design"]["models"] = models
    values = own[:models]
    error = float(values.std(ddof=1) / models**0.5)
    metrics["accuracy"] = {"mean": float(values.mean()), "se": error, "per_model": values.tolist()}
    folder.write(f"metrics/{method}.json", metrics)
    folder.costs(method, models=[1.0] * models)


@pytest.fixture
def unlike(folder: ResultsFolder) -> ResultsFolder:
    add(folder, "plain", 3.0, 0.90)
    add(folder, "other", 2.0, 0.90)
    add(folder, "costly", 0.2, 0.90, FEW)
    return folder


def built(module: Any, folder: ResultsFolder, *methods: str, **settings: Any) -> Any:
    chosen = module.Settings(methods=methods, labels={"costly": "Costly one"}, **settings)
    return module.build(folder.results(chosen), chosen)


def said(figure: Any) -> str:
    return " ".join("\n".join(each.get_text() for each in figure.findobj(lambda it: hasattr(it, "get_text"))).split())


def cell(sheet: Any, row: int, heading: str) -> Any:
    return sheet.cells()[row][[column.heading for column in sheet.columns].index(heading)]


def test_the_commonest_number_of_models_comes_first_and_exceptions_are_named() -> None:
    assert models_of([("a", 32), ("b", 32)]) == "32 models"
    assert models_of([("a", 8), ("b", 32), ("c", 32), ("d", 6), ("a", 8)]) == "8 models (32: b / c; 6: d)"
    assert models_of([("b", 32), ("c", 32), ("a", 8)]) == "32 models (8: a)"


def test_table1_has_a_column_of_models_only_where_these_differ(unlike: ResultsFolder) -> None:
    frame = built(table1, unlike, "plain", "costly", "other")
    assert frame["n_models"].tolist() == [MANY, FEW, MANY]
    (sheet,) = table1.layout(frame)
    assert [cell(sheet, row, "models").text for row in range(3)] == ["16", "8", "16"]
    assert "60 mislabelled canaries, 16 models (8: Costly one)." in sheet.caption
    assert "understates its leakage" in html_page([sheet], "title", [])
    assert "Costly one" in format_table(frame, [sheet], 150)
    (alike,) = table1.layout(built(table1, unlike, "plain", "other"))
    assert "models" not in [column.heading for column in alike.columns]
    assert "60 mislabelled canaries, 16 models." in alike.caption


@pytest.mark.parametrize("module", [table2, table3, table5])
def test_other_tables_have_it_too(module: Any, unlike: ResultsFolder) -> None:
    (sheet,) = module.layout(built(module, unlike, "plain", "costly"))
    assert [cell(sheet, row, "models").text for row in range(2)] == ["16", "8"]
    (alike,) = module.layout(built(module, unlike, "plain", "other"))
    assert "models" not in [column.heading for column in alike.columns]


def test_table5_tells_how_many_models_an_average_case_of_its_own_has(unlike: ResultsFolder) -> None:
    frame = built(table5, unlike, "plain", "other", average={"plain": "costly", "other": "plain"})
    assert frame["average_n_models"].tolist() == [FEW, MANY]
    assert frame["note"].tolist() == ["separate models (Costly one, 8)", "separate models (plain)"]


def test_table6_says_whose_number_is_another(unlike: ResultsFolder) -> None:
    frame = built(table6, unlike, "plain", "costly", "other")
    assert frame.groupby("method")["n_models"].unique().map(list).to_dict() == {
        "plain": [MANY],
        "costly": [FEW],
        "other": [MANY],
    }
    assert all("16 models (8: Costly one)" in sheet.caption for sheet in table6.layout(frame))
    assert all("models" not in sheet.caption for sheet in table6.layout(built(table6, unlike, "plain", "other")))


def test_costs_are_those_of_the_methods_own_models(unlike: ResultsFolder) -> None:
    unlike.costs("shared", generators=[10.0] * FEW + [1000.0] * FEW)
    frame = built(table7, unlike, "costly", generators={"costly": "shared"})
    assert frame["n_models"].tolist() == [FEW] * 3
    assert frame["seconds_per_model"].tolist() == [10.0, 1.0, 11.0]


def test_figures_of_the_attack_say_whose_number_is_another(unlike: ResultsFolder) -> None:
    for module in (figure1, figure3, figure5):
        figure, _ = built(module, unlike, "plain", "costly", "other")
        assert "16 models (8: Costly one). With fewer models the attack is weaker." in said(figure)
        alike, _ = built(module, unlike, "plain", "other")
        assert "weaker" not in said(alike)
    _, frame = built(figure1, unlike, "plain", "costly")
    assert frame["n_models"].tolist() == [MANY, FEW]


def test_table4_compares_the_models_that_both_have(unlike: ResultsFolder) -> None:
    add(unlike, "dp", 2.5, 0.89)
    row = built(table4, unlike, "costly", baselines=("dp",)).iloc[0]
    assert (row["n_models"], row["baseline_n_models"], row["n_models_compared"]) == (FEW, MANY, FEW)
    results = load_results(unlike.root, ["costly", "dp"])
    ours, theirs = (np.array(results.metrics[name].accuracy.per_model[:FEW]) for name in ("costly", "dp"))
    assert row["accuracy_difference"] == pytest.approx((ours - theirs).mean())
    interval = ttest_rel(ours, theirs).confidence_interval(0.95)
    bounds = [row["accuracy_difference_low"], row["accuracy_difference_high"]]
    assert bounds == pytest.approx([interval.low, interval.high])
    # Each side's own numbers are of all of its models.
    assert row["baseline_accuracy"] == results.metrics["dp"].accuracy.mean
    sides = [results.scores(name).read("mislabelled", results.metrics[name].primary) for name in ("costly", "dp")]
    first = [(each.scores[:, :FEW], each.membership[:, :FEW]) for each in sides]
    difference = tpr_at_fpr(*first[0], 0.001).tpr - tpr_at_fpr(*first[1], 0.001).tpr
    assert row["tpr_difference"] == pytest.approx(difference)
    samples = [bootstrap(*each, (0.001,), 1000, seed_sequence(0, "reporting", "table4"))[:, 1] for each in first]
    low, high = np.quantile(samples[0] - samples[1], [0.025, 0.975])
    assert [row["tpr_difference_low"], row["tpr_difference_high"]] == pytest.approx([low, high])


def test_table4_says_that_a_method_which_leaks_less_was_attacked_less(unlike: ResultsFolder) -> None:
    add(unlike, "dp", 9.0, 0.90)
    frame = built(table4, unlike, "costly", "other", baselines=("dp",))
    assert frame["tpr_difference_high"].max() < 0
    assert frame["weaker_attack"].tolist() == [True, False]
    (sheet,) = table4.layout(frame)
    verdicts = [cell(sheet, row, "verdict").text for row in range(2)]
    assert [verdict.endswith("(weaker attack)") for verdict in verdicts] == [True, False]
    assert sheet.footnotes[0] == "Costly one: 8 models, dp: 16; differences are those of the first 8."
    assert sheet.footnotes[1].startswith("Weaker attack: every model is the target once")
    assert "16 models (8: Costly one)." in sheet.caption


def test_table4_keeps_a_verdict_that_holds_against_the_weaker_attack(unlike: ResultsFolder) -> None:
    """A method that leaks more although fewer models attack it, and one that leaks less although more do."""
    add(unlike, "leaky", 9.0, 0.90, FEW)
    add(unlike, "dp", 0.5, 0.90)
    row = built(table4, unlike, "leaky", baselines=("dp",)).iloc[0]
    assert row["tpr_difference_low"] > 0
    assert not row["weaker_attack"]
    add(unlike, "dp-few", 9.0, 0.90, FEW)
    row = built(table4, unlike, "other", baselines=("dp-few",)).iloc[0]
    assert row["tpr_difference_high"] < 0
    assert not row["weaker_attack"]
    add(unlike, "dp-few", 0.2, 0.90, FEW)
    row = built(table4, unlike, "plain", baselines=("dp-few",)).iloc[0]
    assert row["tpr_difference_low"] > 0
    assert row["weaker_attack"]


def test_a_canary_that_no_model_holds_is_in_no_group() -> None:
    membership = np.array([[True, False], [False, True], [False, False], [True, True]])
    taken = np.array([[True, False], [False, False], [False, False], [True, False]])
    division = divide(taken, membership)
    assert division.used.tolist() == [True, False, False, False]
    assert division.unused.tolist() == [False, True, False, False]
    assert division.sometimes.tolist() == [False, False, False, True]


@pytest.fixture
def few_of_many(folder: ResultsFolder) -> ResultsFolder:
    """A run of four shadow models, the first two of which a method has."""
    design = folder.data(canaries=12, clean=4, models=4)
    sources = [[-1, *training_indices(design, 60, shadow)[shadow::3].tolist()] for shadow in range(2)]
    folder.images("dm", design, sources, noise=0.2)
    folder.metrics("dm", design={"models": 2, "canaries": 12, "clean": 4, "views": 2})
    return folder


def test_figure6_knows_the_shadow_models_of_each_method(few_of_many: ResultsFolder) -> None:
    sets = {"sets": {"dm": "dm"}}
    _, frame = built(figure6, few_of_many, "dm", shadow=1, **sets)
    assert set(frame["shadow"]) == {1}
    with pytest.raises(CoalmineError, match=r"figure6\.shadow is 2, but dm has the shadow models 0 to 1"):
        built(figure6, few_of_many, "dm", shadow=2, **sets)


def test_figure7_asks_the_models_that_a_method_has(few_of_many: ResultsFolder) -> None:
    _, frame = built(figure7, few_of_many, "dm", sets={"dm": "dm"})
    counts = frame[frame["label_kind"] == "true"].groupby("group")["n"].first()
    assert counts["used"] + counts["unused"] + counts["out"] == 12 * 2


def test_figure9_asks_the_models_that_a_student_has(folder: ResultsFolder) -> None:
    design = folder.data(canaries=20, clean=4, models=8)
    folder.taught("dfkd", "undefended", design, images=6)
    metrics = json.loads((folder.root / "metrics/dfkd.json").read_text())
    folder.metrics("dfkd", groups=metrics["groups"], design={**metrics["design"], "models": 6})
    for folder_of in ("logits", "synthetic"):
        for shadow in (6, 7):
            (folder.root / folder_of / f"dfkd/{shadow:03d}.npz").unlink()
    facts: dict[str, Any] = {"sets": {"dfkd": "dfkd"}, "teachers": {"dfkd": "undefended"}}
    _, frame = built(figure9, folder, "dfkd", **facts)
    points = frame[frame["drawn"] == "model"]
    member = design.membership[design.mislabelled, :6]
    assert points[points["group"] == "in"]["n"].tolist() == member.sum(axis=0).tolist()
    curves = frame[(frame["drawn"] == "curve") & (frame["label_kind"] == "wrong")]
    assert curves.groupby("group")["n"].first().to_dict() == {"in": member.sum(), "out": (~member).sum()}


def test_finished_tables_of_unlike_methods_print(unlike: ResultsFolder, tmp_path: Path) -> None:
    from coalmine.reporting.show import show
    from coalmine.reporting.writers import write_table

    add(unlike, "dp", 2.5, 0.89)
    for module, name in ((table1, "table1"), (table4, "table4"), (table6, "table6")):
        frame = built(module, unlike, "plain", "costly", **({"baselines": ("dp",)} if module is table4 else {}))
        write_table(frame, "title", [], tmp_path / name, module.layout(frame))
        assert "16 models (8: Costly one)" in " ".join(show(tmp_path / f"{name}.csv").split())
        assert len(pd.read_csv(tmp_path / f"{name}.csv")) == len(frame)
