"""Private diffusion: what its table and figures show, against the files and numbers worked out by hand."""

import math
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic import ValidationError
from results_folder import ResultsFolder, over_models
from scipy.stats import spearmanr

from coalmine.artefacts import write_npz
from coalmine.errors import CoalmineError
from coalmine.reporting import (
    dpdiff_figure2,
    dpdiff_figure3,
    dpdiff_figure4,
    dpdiff_samples,
    dpdiff_table1,
    figure1,
    table1,
    table7,
)
from coalmine.reporting.arrays import RunData
from coalmine.reporting.pictures import tiled
from coalmine.reporting.published import PUBLISHED, published_utility
from coalmine.reporting.results import load_results
from coalmine.reporting.show import show
from coalmine.reporting.writers import csv_text, format_table, html_page, latex_text, write_figure, write_table

GAP = "\N{NO-BREAK SPACE}"
EPSILONS = {"eps10": 9.998, "eps1": 0.998, "scratch": None}
LABELS = {"eps1": "DP, ε = 1", "eps10": "DP, ε = 10", "scratch": "No guarantee", "undefended": "Undefended"}
RECIPES = [{}, {"epochs": 30}, {"learning_rate": 0.3, "epochs": 100}, {"augmentation": {"flip": True, "shift": 2}}]
SYNTHETIC = np.array([[0.70, 0.80, 0.75], [0.90, 0.80, 0.85], [0.60, 0.60, 0.60], [0.80, 0.84, 0.82]])
REAL = np.array([[0.50, 0.60, 0.55], [0.62, 0.60, 0.61], [0.40, 0.44, 0.42], [0.70, 0.62, 0.66]])


def built(module: Any, folder: ResultsFolder, *methods: str, **settings: Any) -> Any:
    needed = {dpdiff_table1: {"data": "CIFAR-10", "real": "undefended"}, dpdiff_figure3: {"real": "undefended"}}
    sets = dict(zip(methods, methods, strict=True))
    chosen = module.Settings(methods=methods, **{"sets": sets, "labels": LABELS, **needed.get(module, {}), **settings})
    return module.build(folder.results(chosen), chosen)


def texts(figure: Figure) -> str:
    return " ".join("\n".join(each.get_text() for each in figure.findobj(lambda it: hasattr(it, "get_text"))).split())


def artist(axes: Axes, gid: str) -> Any:
    (found,) = [each for each in axes.get_children() if each.get_gid() == gid]
    return found


def cell(frame: pd.DataFrame, row: int, heading: str) -> Any:
    (sheet,) = dpdiff_table1.layout(frame)
    return sheet.cells()[row][[column.heading for column in sheet.columns].index(heading)]


@pytest.fixture
def measured(folder: ResultsFolder) -> ResultsFolder:
    """Three methods with what the table and figures need, and one trained on the real data."""
    for number, (method, epsilon) in enumerate(EPSILONS.items()):
        claimed = {"epsilon": epsilon, "delta": 1e-5, "accountant": "pld", "steps": 150} if epsilon else {}
        empty = {"epsilon": None, "delta": None, "accountant": None}
        folder.metrics(
            method,
            claimed={**empty, **claimed},
            accuracy={"mean": 0.8 + 0.01 * number, "se": 0.004, "per_model": [0.8] * 8},
            design={"models": 8, "canaries": 200, "clean": 0, "views": 1},
        )
        folder.quality(method, 10.0 * (number + 1))
        folder.sizes(method, {size: [0.5 + size / 1e4 + 0.01 * number] * 3 for size in (500, 100, 2000)})
        folder.recipes(method, RECIPES, SYNTHETIC, REAL)
    folder.metrics("undefended", accuracy={"mean": 0.95, "se": 0.002, "per_model": [0.95] * 32})
    return folder


METHODS = tuple(EPSILONS)


def test_what_is_told_of_sets_is_told_of_whoever_reuses_them(measured: ResultsFolder) -> None:
    results = load_results(measured.root, ["again"], sets={"again": "eps1"})
    assert results.quality("again").distance.value == pytest.approx(20.0)
    assert [each.size for each in results.sizes("again").sizes] == [500, 100, 2000]
    assert results.recipes("again").recipes == RECIPES
    for read in (results.quality, results.sizes, results.recipes):
        with pytest.raises(CoalmineError, match="plain makes no synthetic images, so they have no"):
            read("plain")


def test_what_may_be_missing_from_quality_is_none(measured: ResultsFolder) -> None:
    results = load_results(measured.root, ["eps1"], sets={"eps1": "eps1"})
    assert (results.quality("eps1").nearest_balanced, results.quality("eps1").synthetic) == (None, None)
    measured.quality("eps1", 3.0, models=1, nearest_balanced=over_models([0.99]), synthetic=2000)
    quality = results.quality("eps1")
    assert quality.nearest_balanced is not None
    assert (quality.nearest_balanced.value, quality.synthetic, quality.distance.se) == (0.99, 2000, None)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"precision": over_models([0.5, 0.6, 1.1, 0.5])}, r"precision\.per_model\.2: .*less than or equal to 1"),
        ({"distance": over_models([-1.0] * 4)}, r"distance\.value: .*greater than or equal to 0"),
        ({"distance": {"value": math.inf, "se": 0.0, "per_model": [1.0] * 4}}, r"Infinity is no finite number"),
        ({"images": 0}, r"images: .*greater than or equal to 1"),
        ({"space": {"name": "FD"}}, r"space\.inception: Field required"),
        ({"recall": over_models([0.5] * 3)}, r"recall\.per_model: 3 entries, but shadows has 4"),
        ({"nearest_balanced": over_models([1.0])}, r"nearest_balanced\.per_model: 1 entries, but shadows has 4"),
        ({"method": "eps10"}, "holds the quality of 'eps10', not of 'eps1'"),
    ],
)
def test_broken_quality_is_refused_with_the_field(measured: ResultsFolder, changes: dict[str, Any], fault: str) -> None:
    measured.quality("eps1", 3.0, **changes)
    with pytest.raises(CoalmineError, match=fault):
        load_results(measured.root, ["eps1"], sets={"eps1": "eps1"}).quality("eps1")


def test_broken_sizes_and_recipes_are_refused_with_the_field(measured: ResultsFolder) -> None:
    results = load_results(measured.root, ["eps1"], sets={"eps1": "eps1"})
    for sizes, fault in (
        ([{"size": 0, "accuracy": over_models([0.5])}], r"sizes\.0\.size: .*greater"),
        ([{"size": 9, "accuracy": over_models([50.0])}], r"sizes\.0\.accuracy\.value: .*less"),
        ([{"size": 9, "accuracy": over_models([0.5] * 2)}], r"sizes\.0\.accuracy\.per_model: 2 entries"),
    ):
        measured.write("sizes/eps1.json", {"method": "eps1", "shadows": [0], "sizes": sizes})
        with pytest.raises(CoalmineError, match=fault):
            results.sizes("eps1")
    for synthetic, real, fault in (
        (SYNTHETIC[:3], REAL, "synthetic: 3 entries, but recipes has 4"),
        (SYNTHETIC[:, :2], REAL, r"synthetic\.0: 2 entries, but shadows has 3"),
        (SYNTHETIC, 100 * REAL, r"real\.0\.0: .*less"),
    ):
        measured.recipes("eps1", RECIPES, synthetic, real)
        with pytest.raises(CoalmineError, match=fault):
            results.recipes("eps1")


def test_generators_cost_every_method_that_draws_from_them(folder: ResultsFolder) -> None:
    for method in ("diffusion", "guided"):
        folder.metrics(method)
        folder.costs(method, synthetic=[3.0] * 4, models=[2.0] * 4)
    folder.costs("diffusion", generators=[10.0, 20.0, 30.0, 40.0])
    drawn = {"generators": {"diffusion": "diffusion", "guided": "diffusion"}}
    frame = built(table7, folder, "diffusion", "guided", **drawn)
    assert frame["stage"].tolist() == ["generators", "synthetic", "models", "total"] * 2
    assert frame["seconds_per_model"].tolist() == [25.0, 3.0, 2.0, 30.0] * 2
    (sheet,) = table7.layout(frame)
    assert sheet.cells()[0][1].text == "generator"
    assert "Pre-training on public data is shared work" in html_page([sheet], "title", [])
    assert built(table1, folder, "guided", visual=False, **drawn)["seconds_per_model"].tolist() == [30.0]
    figure, _ = built(figure1, folder, "guided", **drawn)
    assert "times: generator (in full for each method), synthesis and training" in texts(figure)
    with pytest.raises(CoalmineError, match="generators/absent holds no measurement of the generators of method"):
        built(table7, folder, "guided", generators={"guided": "absent"})


def test_table1_stands_in_order_of_epsilon_with_what_was_measured(measured: ResultsFolder) -> None:
    frame = built(dpdiff_table1, measured, *METHODS)
    assert frame["method"].tolist() == ["eps1", "eps10", "scratch"]
    assert frame["claimed_epsilon"].tolist() == [0.998, 9.998, math.inf]
    row = frame.iloc[0]
    per_model = [20.0 * (1 + 0.02 * step) for step in (-1.5, -0.5, 0.5, 1.5)]
    assert row["distance"] == pytest.approx(20.0)
    assert row["distance_se"] == pytest.approx(np.std(per_model, ddof=1) / 2)
    assert row["precision"] == pytest.approx(0.9 / 2)
    assert row["recall"] == pytest.approx(0.7 / 3)
    assert (row["space"], row["images"], row["reference"]) == ("FD, small-cnn on public data", 1000, 1400)
    assert (row["accuracy"], row["accuracy_se"], row["real_accuracy"], row["real_n_models"]) == (0.81, 0.004, 0.95, 4)
    assert (row["tpr_at_fpr_0.001"], row["tpr_at_fpr_0.001_low"], row["n_models"]) == (0.4, 0.35, 8)
    assert (row["run"], row["data"], row["quality_models"]) == ("test", "CIFAR-10", 4)
    assert pd.isna(row["synthetic_images"])


def test_table1_sets_the_papers_numbers_beside_the_same_data_and_epsilon(measured: ResultsFolder) -> None:
    frame = built(dpdiff_table1, measured, *METHODS)
    assert frame["paper_fid"].isna().tolist() == [True, False, True]
    assert (frame["paper_fid"][1], frame["paper_accuracy"][1]) == (9.8, 0.88)
    assert frame["paper_real_accuracy"].isna().all()
    assert cell(frame, 1, "its FID").text == "9.8 [a]"
    assert cell(frame, 0, "its FID").text == "–"
    other = built(dpdiff_table1, measured, *METHODS, data="Camelyon17")
    assert (other["paper_accuracy"][1], other["paper_real_accuracy"][1]) == (0.911, 0.965)
    assert [cell(other, 1, name).text for name in ("its accuracy", "its real data")] == [
        f"91.1{GAP}% [a]",
        f"96.5{GAP}% [a]",
    ]
    digits = built(dpdiff_table1, measured, *METHODS, data="Digits")
    assert "published" not in {column.group for column in dpdiff_table1.layout(digits)[0].columns}


def test_papers_numbers_are_known_for_two_data_sets_at_epsilon_10_only() -> None:
    for data in ("CIFAR-10", "cifar10", "Camelyon17", "CAMELYON-17"):
        assert published_utility(data, 9.95) is not None
        for epsilon in (1.0, 5.0, 10.2, None):
            assert published_utility(data, epsilon) is None
    assert published_utility("CIFAR-100", 10.0) is None
    assert not {"diffusion-scratch", "diffusion-finetune-i2i", "diffusion-finetune-t2i"} & PUBLISHED.keys()


def test_a_distance_is_called_fid_only_by_the_features_of_inception(measured: ResultsFolder) -> None:
    inception = {"name": "FID, Inception-v3", "inception": True}
    frame = built(dpdiff_table1, measured, "eps1")
    headings = [column.heading for column in dpdiff_table1.layout(frame)[0].columns]
    assert "Fréchet distance" in headings
    assert "FID" not in headings
    measured.quality("eps1", 9.8, space=inception)
    (sheet,) = dpdiff_table1.layout(built(dpdiff_table1, measured, "eps1"))
    assert "FID" in [column.heading for column in sheet.columns]
    assert sheet.footnotes == []
    (mixed,) = dpdiff_table1.layout(built(dpdiff_table1, measured, "eps1", "scratch"))
    assert "Fréchet distance" in [column.heading for column in mixed.columns]
    assert mixed.footnotes == ["Distances by other features, or of other numbers of images, cannot be compared."]


def test_people_see_means_with_errors_and_columns_that_hold_something(measured: ResultsFolder) -> None:
    frame = built(dpdiff_table1, measured, *METHODS)
    (sheet,) = dpdiff_table1.layout(frame)
    headings = [column.heading for column in sheet.columns]
    assert not {"balanced", "its real data"} & set(headings)
    assert headings.count("images") == 0
    distance = cell(frame, 0, "Fréchet distance")
    assert (distance.text, distance.aside) == ("20.0", "± 0.26")
    assert cell(frame, 0, "accuracy").text == f"81.0{GAP}%"
    assert (cell(frame, 0, "on real data").text, cell(frame, 0, "on real data").aside) == (f"95.0{GAP}%", "± 0.2")
    assert cell(frame, 0, "models").text == "8"
    assert cell(frame, 2, "claimed ε").text == "∞"
    assert cell(frame, 0, "accounting").text == "δ = 10⁻⁵, PLD, 150 steps"
    assert [row[0].text for row in sheet.cells()] == ["CIFAR-10", "", ""]
    assert "1,000 images of each set against 1,400 private ones, 4 models" in sheet.caption
    measured.quality("eps1", 3.0, nearest_balanced=over_models([0.9, 0.9, 0.9, 0.9]), synthetic=2000)
    fuller = built(dpdiff_table1, measured, *METHODS)
    assert (cell(fuller, 0, "balanced").text, cell(fuller, 1, "balanced").text) == ("0.900", "–")
    assert (cell(fuller, 0, "images").text, cell(fuller, 1, "images").text) == ("2,000", "–")


def test_the_table_reads_back_as_it_was_shown(measured: ResultsFolder, tmp_path: Path) -> None:
    frame = built(dpdiff_table1, measured, *METHODS)
    read = pd.read_csv(StringIO(csv_text(frame)))
    assert format_table(read, dpdiff_table1.layout(read), 150) == format_table(frame, dpdiff_table1.layout(frame), 150)
    write_table(frame, "title", [], tmp_path / "dpdiff_table1", dpdiff_table1.layout(frame))
    printed = show(tmp_path / "dpdiff_table1.csv")
    assert max(map(len, printed.splitlines()[:8])) <= 150
    assert r"$\varepsilon$" in latex_text(dpdiff_table1.layout(frame), "title")


def other_run(folder: ResultsFolder, name: str, **changes: Any) -> pd.DataFrame:
    """Make and publish the table of another run beside the folder's."""
    other = ResultsFolder(folder.root.parent / name)
    other.metrics("far", claimed={"epsilon": 10.0, "delta": 1e-5, "accountant": "rdp"})
    other.metrics("undefended", accuracy={"mean": 0.965, "se": None, "per_model": [0.965]})
    other.quality("far", 55.0, **changes)
    frame = built(dpdiff_table1, other, "far", data="Camelyon17")
    write_table(frame, "title", [], other.root / "dpdiff_table1", dpdiff_table1.layout(frame))
    return frame


def test_finished_tables_of_other_runs_stand_underneath(measured: ResultsFolder) -> None:
    theirs = other_run(measured, "camelyon", images=500)
    frame = built(dpdiff_table1, measured, *METHODS, runs=["camelyon"])
    assert frame["run"].tolist() == ["test"] * 3 + ["camelyon"]
    assert list(frame.columns) == list(theirs.columns)
    row = frame.iloc[3]
    assert (row["data"], row["method"], row["real_accuracy"], row["paper_accuracy"]) == (
        "Camelyon17",
        "far",
        0.965,
        0.911,
    )
    assert row["distance"] == pytest.approx(55.0)
    assert pd.isna(row["real_accuracy_se"])
    assert pd.isna(row["claimed_steps"])
    (sheet,) = dpdiff_table1.layout(frame)
    assert [cells[0].text for cells in sheet.cells()] == ["CIFAR-10", "", "", "Camelyon17"]
    assert "8 models (4: far on Camelyon17)" in sheet.caption
    assert sheet.footnotes[-1].startswith("Distances by other features, or of other numbers of images")
    assert csv_text(frame).splitlines()[0] == csv_text(theirs).splitlines()[0]


def test_rows_that_another_run_took_from_a_third_are_left_to_that(measured: ResultsFolder) -> None:
    other_run(measured, "camelyon")
    frame = built(dpdiff_table1, measured, *METHODS, runs=["camelyon"])
    (measured.root / "dpdiff_table1.csv").write_text(csv_text(frame))
    third = ResultsFolder(measured.root.parent / "third")
    third.metrics("own")
    third.metrics("undefended")
    third.quality("own", 5.0)
    both = built(dpdiff_table1, third, "own", runs=["test", "camelyon"])
    assert both["run"].tolist() == ["third", "test", "test", "test", "camelyon"]


def test_a_missing_table_of_another_run_is_named_with_the_command(measured: ResultsFolder) -> None:
    with pytest.raises(
        CoalmineError,
        match=r"lists the run absent, but there is no .*absent/dpdiff_table1\.csv\. Make it: snakemake .*absent/dpdiff_"
        r"table1\.csv --cores all --configfile <configuration of the run absent>",
    ):
        built(dpdiff_table1, measured, *METHODS, runs=["absent"])
    with pytest.raises(CoalmineError, match="lists test, which is this run itself"):
        built(dpdiff_table1, measured, *METHODS, runs=["test"])


def test_broken_tables_of_other_runs_are_refused(measured: ResultsFolder) -> None:
    frame = other_run(measured, "camelyon")
    path = measured.root.parent / "camelyon/dpdiff_table1.csv"

    def refused(content: str, fault: str) -> None:
        path.write_text(content)
        with pytest.raises(CoalmineError, match=rf"{fault}.*ake it anew: snakemake .*camelyon/dpdiff_table1\.csv"):
            built(dpdiff_table1, measured, *METHODS, runs=["camelyon"])

    refused("", "no readable table")
    refused(csv_text(frame.drop(columns="recall")), "it lacks recall, and it has none beyond them")
    refused(csv_text(frame.assign(extra=1)), "it lacks none, and it has extra beyond them")
    refused(csv_text(frame.assign(distance="near")), "the column distance holds something that is no number")
    refused(csv_text(frame.assign(run="else")), "it has no row of the run camelyon")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CoalmineError, match="no readable table"):
        built(dpdiff_table1, measured, *METHODS, runs=["camelyon"])


def test_methods_without_synthetic_images_are_refused(measured: ResultsFolder) -> None:
    for module in (dpdiff_table1, dpdiff_figure2, dpdiff_figure3, dpdiff_figure4):
        with pytest.raises(CoalmineError, match="undefended makes no synthetic images"):
            built(module, measured, "undefended", sets={})


def test_the_method_on_real_data_is_needed_too() -> None:
    for module in (dpdiff_table1, dpdiff_figure3):
        given = {"data": "x"} if module is dpdiff_table1 else {}
        assert module.Settings(methods=["a", "r"], real="r", **given).needed == ("a", "r")
        assert module.Settings(methods=["a"], real="r", **given).needed == ("a", "r")
        with pytest.raises(ValidationError, match="real"):
            module.Settings(methods=["a"], **given)


def test_figure2_draws_its_frame_and_puts_no_privacy_at_the_right(measured: ResultsFolder) -> None:
    figure, frame = built(dpdiff_figure2, measured, *METHODS)
    left, right = figure.axes
    by_epsilon = frame.sort_values("claimed_epsilon")
    assert by_epsilon["distance"].tolist() == pytest.approx([20.0, 10.0, 30.0])
    for axes, name in ((left, "distance"), (right, "precision"), (right, "recall")):
        points = artist(axes, f"/{name}")
        assert list(points.get_ydata()) == by_epsilon[name].tolist()
        assert list(points.get_xdata())[:2] == [0.998, 9.998]
        assert points.get_xdata()[2] > 9.998
        assert axes.get_xscale() == "log"
    assert [tick.get_text() for tick in left.get_xticklabels()] == ["1", "10", "no\nprivacy"]
    assert left.get_ylabel() == "Fréchet distance"
    assert left.get_ylim()[0] == 0
    said = texts(figure)
    assert "1,000 images of each set against 1,400 private ones, 4 models" in said
    assert "DP, ε = 10" in said


def test_figure2_bars_are_standard_errors_over_models(measured: ResultsFolder) -> None:
    figure, frame = built(dpdiff_figure2, measured, "eps1")
    (bars,) = [each for each in figure.axes[0].collections if len(each.get_segments())]
    (low, high) = bars.get_segments()[0][:, 1]
    error = frame["distance_se"][0]
    assert (low, high) == pytest.approx((20.0 - error, 20.0 + error))


def test_figure2_joins_points_of_a_curve_that_have_a_guarantee(measured: ResultsFolder) -> None:
    measured.metrics("eps1-scratch", claimed={"epsilon": 1.0, "delta": 1e-5, "accountant": "pld"})
    measured.quality("eps1-scratch", 90.0)
    curves = {"eps1": "fine-tuned", "eps10": "fine-tuned", "eps1-scratch": "from scratch"}
    figure, _ = built(dpdiff_figure2, measured, *METHODS, "eps1-scratch", curves=curves)
    left = figure.axes[0]
    joined = [list(line.get_ydata()) for line in left.get_lines() if line.get_linestyle() == "-" and line.get_visible()]
    assert [20.0, 10.0] in [[pytest.approx(value) for value in line] for line in joined]
    assert not any(30.0 in line and len(line) > 1 for line in joined)
    assert list(artist(left, "from scratch/distance").get_ydata()) == pytest.approx([90.0])
    (legend,) = figure.legends
    entries = [text.get_text() for text in legend.get_texts()]
    assert entries == ["fine-tuned", "others", "from scratch", "precision", "recall"]


@pytest.mark.parametrize("methods", [("eps1",), ("scratch",), ("eps1", "eps10")])
def test_figure2_takes_guarantees_alone_or_none_at_all(methods: tuple[str, ...], measured: ResultsFolder) -> None:
    figure, frame = built(dpdiff_figure2, measured, *methods)
    ticks = [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
    assert len(ticks) == len(methods)
    assert ("privacy" in ticks[-1]) == (methods == ("scratch",))
    assert len(frame) == len(methods)


def test_figure2_refuses_distances_by_different_features(measured: ResultsFolder) -> None:
    measured.quality("eps1", 9.8, space={"name": "FID, Inception-v3", "inception": True})
    with pytest.raises(CoalmineError, match="those of eps10 are by FD, small-cnn on public data, those of eps1 by FID"):
        built(dpdiff_figure2, measured, *METHODS)
    measured.quality("eps1", 20.0, images=500)
    figure, _ = built(dpdiff_figure2, measured, *METHODS)
    assert "Distances of other numbers of images cannot be compared." in texts(figure)


def test_figure3_draws_accuracy_by_size_and_the_real_data_across(measured: ResultsFolder) -> None:
    measured.sizes("eps1", {100: [0.50, 0.60, 0.55], 2000: [0.80, 0.82, 0.84], 500: [0.7, 0.7, 0.7]})
    figure, frame = built(dpdiff_figure3, measured, *METHODS)
    (axes,) = figure.axes
    own = frame[frame["method"] == "eps1"]
    assert own["size"].tolist() == [100, 500, 2000]
    assert own["accuracy"].tolist() == pytest.approx([0.55, 0.7, 0.82])
    assert own["accuracy_se"].tolist() == pytest.approx([0.05 / math.sqrt(3), 0.0, 0.02 / math.sqrt(3)])
    assert own["n_models"].tolist() == [3] * 3
    line = artist(axes, "eps1")
    assert list(line.get_xdata()) == [100, 500, 2000]
    assert list(line.get_ydata()) == own["accuracy"].tolist()
    assert list(artist(axes, "real").get_ydata()) == [0.95, 0.95]
    last = frame.iloc[-1]
    assert (last["method"], last["accuracy"], last["n_models"]) == ("undefended", 0.95, 4)
    assert pd.isna(last["size"])
    assert axes.get_xscale() == "log"
    assert axes.get_xticks().tolist() == [100, 500, 2000]
    assert "real data (Undefended)" in texts(figure)
    assert "Mean over 3 models, on real data over 4" in texts(figure)


def test_figure3_names_the_numbers_of_models_if_they_differ(measured: ResultsFolder) -> None:
    measured.sizes("eps1", {100: [0.5] * 5, 110: [0.6] * 5})
    figure, _ = built(dpdiff_figure3, measured, *METHODS)
    assert "Mean over 3 models (5: DP, ε = 1), on real data over 4" in texts(figure)
    assert figure.axes[0].get_xticks().tolist() != [110, 100]


def test_figure4_draws_means_and_tells_the_correlation_and_the_regret(measured: ResultsFolder) -> None:
    figure, frame = built(dpdiff_figure4, measured, "eps1")
    assert frame["synthetic"].tolist() == pytest.approx([0.75, 0.85, 0.60, 0.82])
    assert frame["real"].tolist() == pytest.approx([0.55, 0.61, 0.42, 0.66])
    assert frame["real_se"].tolist() == pytest.approx((REAL.std(axis=1, ddof=1) / math.sqrt(3)).tolist())
    correlation = spearmanr(SYNTHETIC.mean(axis=1), REAL.mean(axis=1)).statistic
    assert frame["correlation"].tolist() == pytest.approx([correlation] * 4)
    assert frame["chosen"].tolist() == [False, True, False, False]
    assert frame["best"].tolist() == [False, False, False, True]
    assert frame["regret"].tolist() == pytest.approx([0.05] * 4)
    (axes,) = figure.axes
    for row in frame.to_dict("records"):
        point = artist(axes, f"eps1/{row['recipe']}")
        assert (point.get_xdata()[0], point.get_ydata()[0]) == (row["synthetic"], row["real"])
    assert artist(axes, "eps1/chosen").get_ydata()[0] == pytest.approx(0.61)
    assert artist(axes, "eps1/best").get_ydata()[0] == pytest.approx(0.66)
    low, high = frame["correlation_low"][0], frame["correlation_high"][0]
    error = 100 * frame["regret_se"][0]
    said = texts(figure)
    assert f"ρ = {correlation:.2f} [{low:.2f}, {high:.2f}] regret 5.0 pp ± {error:.1f}" in said.replace("−", "-")
    assert "mean over 3 models" in said


def test_figure4_names_recipes_by_what_they_change(measured: ResultsFolder) -> None:
    figure, frame = built(dpdiff_figure4, measured, "eps1", "scratch")
    names = ["the run's recipe", "epochs 30", "learning rate 0.3, epochs 100", "augmentation (flip true, shift 2)"]
    assert frame["overrides"].tolist() == names * 2
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == names


def test_figure4_without_variation_has_no_correlation(measured: ResultsFolder) -> None:
    measured.recipes("eps1", RECIPES, np.full((4, 3), 0.7), REAL)
    figure, frame = built(dpdiff_figure4, measured, "eps1")
    assert frame[["correlation", "correlation_low", "correlation_high"]].isna().all(axis=None)
    assert frame["chosen"].all()
    assert frame["regret"][0] == pytest.approx(0.66 - REAL.mean())
    assert "ρ = –" in texts(figure)


def test_figure4_of_one_model_has_no_errors(measured: ResultsFolder) -> None:
    measured.recipes("eps1", RECIPES, SYNTHETIC[:, :1], REAL[:, :1])
    figure, frame = built(dpdiff_figure4, measured, "eps1")
    assert frame[["synthetic_se", "real_se", "regret_se", "correlation_low"]].isna().all(axis=None)
    assert "regret" in texts(figure)


def test_figure4_refuses_methods_with_different_recipes(measured: ResultsFolder) -> None:
    measured.recipes("eps1", [{"epochs": 1}, *RECIPES[1:]], SYNTHETIC, REAL)
    with pytest.raises(CoalmineError, match="those of eps1 are others than those of eps10"):
        built(dpdiff_figure4, measured, "eps10", "eps1")


@pytest.mark.parametrize(("number", "panels"), [(1, 1), (4, 4), (5, 5)])
def test_figure4_has_a_panel_for_every_method(number: int, panels: int, folder: ResultsFolder) -> None:
    methods = [f"m{index}" for index in range(number)]
    for method in methods:
        folder.recipes(method, RECIPES, SYNTHETIC, REAL)
    figure, _ = built(dpdiff_figure4, folder, *methods)
    assert len(figure.axes) == panels
    assert [axes.get_title(loc="left").strip() for axes in figure.axes] == methods


def write_set(folder: ResultsFolder, method: str, labels: np.ndarray, shape: tuple[int, ...] = (6, 5, 1)) -> np.ndarray:
    """Write a synthetic set of random images with these labels; return the images."""
    rng = np.random.default_rng(len(method))
    images = rng.uniform(-0.2, 1.2, (len(labels), *shape)).astype(np.float32)
    arrays = {"images": images, "labels": labels, "source": np.arange(len(labels)) - 1}
    write_npz(folder.root / f"synthetic/{method}/001.npz", {"spec": {"method": method}, "shadow": 1}, arrays)
    folder.write("data/classes.json", {"classes": ["cat", "dog", "owl"]})
    return images


LABELS_OF_SET = np.array([2, 0, 0, 2, 2, 0, 0, 2])


def test_samples_list_and_draw_the_first_images_of_each_class(folder: ResultsFolder) -> None:
    images = write_set(folder, "eps1", LABELS_OF_SET)
    figure, frame = built(dpdiff_samples, folder, "eps1", shadow=1, columns=3)
    assert frame["position"].tolist() == [1, 2, 5, 0, 3, 4]
    assert frame["class"].tolist() == ["cat"] * 3 + ["owl"] * 3
    assert frame["column"].tolist() == [1, 2, 3] * 2
    assert frame["source"].tolist() == [0, 1, 4, -1, 2, 3]
    assert set(frame["method"]) == {"eps1"}
    assert set(frame["shadow"]) == {1}
    (axes,) = figure.axes
    picture = np.asarray(axes.images[0].get_array())
    assert picture.shape == (3 * 6 + 2, 3 * 5 + 2)
    for row, column, position in ((0, 0, 1), (0, 2, 5), (2, 1, 3)):
        part = picture[row * 7 : row * 7 + 6, column * 6 : column * 6 + 5]
        np.testing.assert_array_equal(part, np.clip(images[position, ..., 0], 0, 1))
    assert (picture[7:13] == 1).all()  # there is no dog
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["cat", "dog", "owl"]
    assert axes.get_title(loc="left") == "DP, ε = 1"
    assert "blank where a class has fewer" in texts(figure)


def test_samples_need_no_private_data_but_the_names_of_classes(folder: ResultsFolder) -> None:
    write_set(folder, "eps1", LABELS_OF_SET)
    assert not (folder.root / "data/private").exists()
    built(dpdiff_samples, folder, "eps1", shadow=1)
    (folder.root / "data/classes.json").unlink()
    with pytest.raises(CoalmineError, match=r"classes\.json"):
        built(dpdiff_samples, folder, "eps1", shadow=1)


def test_samples_of_soft_labels_are_of_the_likeliest_class(folder: ResultsFolder) -> None:
    write_set(folder, "hard", LABELS_OF_SET)
    soft = (0.6 * np.eye(3)[LABELS_OF_SET] + 0.4 / 3).astype(np.float32)
    write_set(folder, "soft", soft)
    figure, frame = built(dpdiff_samples, folder, "hard", "soft", shadow=1)
    hard, likeliest = (frame[frame["method"] == name]["position"].tolist() for name in ("hard", "soft"))
    assert hard == likeliest
    assert "of soft labels, the likeliest class" in texts(figure)


def test_samples_show_colour_and_the_set_that_a_row_reuses(folder: ResultsFolder) -> None:
    images = write_set(folder, "eps1", LABELS_OF_SET, shape=(4, 4, 3))
    sets = {"eps1": "eps1", "again": "eps1"}
    figure, frame = built(dpdiff_samples, folder, "eps1", "again", shadow=1, columns=1, sets=sets)
    own, reused = (part["position"].tolist() for _, part in frame.groupby("method", sort=False))
    assert own == reused == [1, 0]
    first, second = (np.asarray(axes.images[0].get_array()) for axes in figure.axes)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first[:4], np.clip(images[1], 0, 1))


def test_samples_refuse_what_they_cannot_show(folder: ResultsFolder) -> None:
    write_set(folder, "eps1", LABELS_OF_SET)
    with pytest.raises(CoalmineError, match="dpdiff_samples lists undefended, which makes no synthetic images"):
        built(dpdiff_samples, folder, "undefended", sets={})
    with pytest.raises(CoalmineError, match=r"synthetic/eps1/000\.npz does not exist"):
        built(dpdiff_samples, folder, "eps1")
    write_set(folder, "eps1", LABELS_OF_SET + 1)
    with pytest.raises(CoalmineError, match=r"field labels: classes from 1 to 3, but the data have 3"):
        built(dpdiff_samples, folder, "eps1", shadow=1)
    write_npz(
        folder.root / "synthetic/eps1/001.npz",
        {"spec": {"method": "other"}, "shadow": 1},
        {"source": np.zeros(1, dtype=np.int64)},
    )
    with pytest.raises(CoalmineError, match=r"001\.npz was made with spec\.method = 'other'"):
        RunData(folder.root).synthetic_alone("eps1", 1)


def test_tiles_are_separated_by_white(folder: ResultsFolder) -> None:
    images = np.zeros((3, 2, 2, 1), dtype=np.uint8)
    picture = tiled(images, [np.array([0, 1]), np.array([2])], columns=2, gap=1)
    dark = [[1, 1, 0, 1, 1], [1, 1, 0, 1, 1], [0] * 5, [1, 1, 0, 0, 0], [1, 1, 0, 0, 0]]
    np.testing.assert_array_equal(picture[..., 0], 1 - np.array(dark))


@pytest.mark.parametrize("module", [dpdiff_figure2, dpdiff_figure3, dpdiff_figure4, dpdiff_samples])
def test_figures_are_written_and_have_the_same_bytes_every_time(
    module: Any, measured: ResultsFolder, tmp_path: Path
) -> None:
    for method in METHODS:
        write_set(measured, method, LABELS_OF_SET)
    settings = {"shadow": 1} if module is dpdiff_samples else {}
    for name in ("one", "two"):
        write_figure(*built(module, measured, *METHODS, **settings), tmp_path / name / "figure")
    for suffix in (".png", ".pdf", ".csv"):
        first, second = ((tmp_path / name / f"figure{suffix}").read_bytes() for name in ("one", "two"))
        assert first == second
        assert first
