"""Students of teachers: what tables and figures 8 and 9 show of them, against the files and naive loops over these."""

import math
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from results_folder import ResultsFolder

from coalmine.artefacts import read_npz, write_npz
from coalmine.audit.design import Design
from coalmine.audit.inheritance import predicts, standardised_rates
from coalmine.errors import CoalmineError
from coalmine.reporting import figure1, figure6, figure7, figure8, figure9, table1, table7
from coalmine.reporting.writers import csv_text, html_page, write_figure

MODELS, CANARIES, CLEAN, IMAGES = 8, 20, 4, 6
GAP = "\N{NO-BREAK SPACE}"
TAUGHT = {"sets": {"dfkd": "dfkd"}, "teachers": {"dfkd": "undefended"}}


def built(module: Any, folder: ResultsFolder, *methods: str, **settings: Any) -> Any:
    chosen = module.Settings(methods=methods, **{**TAUGHT, **settings})
    return module.build(folder.results(chosen), chosen)


def texts(figure: Figure) -> str:
    return " ".join("\n".join(each.get_text() for each in figure.findobj(lambda it: hasattr(it, "get_text"))).split())


@pytest.fixture
def taught(folder: ResultsFolder) -> tuple[ResultsFolder, Design]:
    design = folder.data(canaries=CANARIES, clean=CLEAN, models=MODELS)
    folder.taught("dfkd", "undefended", design, images=IMAGES)
    folder.metrics("undefended")
    folder.costs("dfkd", synthetic=[3.0] * 8, models=[2.0] * 8, logits=[1.0] * 8)
    folder.costs("undefended", models=[10.0] * 8)
    return folder, design


def test_the_teacher_counts_in_full_for_each_of_its_students(taught: tuple[ResultsFolder, Design]) -> None:
    folder, design = taught
    folder.taught("other", "undefended", design)
    folder.costs("other", synthetic=[4.0] * 8, models=[2.0] * 8)
    teachers = {"dfkd": "undefended", "other": "undefended"}
    frame = built(table7, folder, "dfkd", "other", "undefended", teachers=teachers)
    stages = ["teacher", "synthetic", "models", "logits", "total", "teacher", "synthetic", "models", "total"]
    assert frame["stage"].tolist() == [*stages, "models", "total"]
    assert frame["seconds_per_model"].tolist() == [10.0, 3.0, 2.0, 1.0, 16.0, 10.0, 4.0, 2.0, 16.0, 10.0, 10.0]
    (sheet,) = table7.layout(frame)
    assert [cells[1].text for cells in sheet.cells()][:2] == ["teacher", "synthesis"]
    seconds = built(table1, folder, "dfkd", "undefended")["seconds_per_model"]
    assert seconds.tolist() == [15.0, 10.0]


def test_a_teacher_that_was_not_measured_is_named(taught: tuple[ResultsFolder, Design]) -> None:
    folder, _ = taught
    with pytest.raises(CoalmineError, match="models/absent holds no measurement of the teacher of method 'dfkd'"):
        built(table7, folder, "dfkd", teachers={"dfkd": "absent"})


def test_a_row_that_reuses_sets_has_their_costs_and_their_visual_leakage(
    taught: tuple[ResultsFolder, Design],
) -> None:
    folder, _ = taught
    folder.metrics("again")
    folder.costs("again", models=[7.0] * 8)
    sets = {"dfkd": "dfkd", "again": "dfkd"}
    frame = built(table1, folder, "dfkd", "again", sets=sets)
    assert frame["seconds_per_model"].tolist() == [10.0 + 3.0 + 2.0, 3.0 + 7.0]
    assert frame["visual_pixel"].tolist() == [0.1, 0.1]
    assert built(table7, folder, "again", sets=sets)["stage"].tolist() == ["synthetic", "models", "total"]


def test_table1_tells_what_comes_from_the_teacher(taught: tuple[ResultsFolder, Design]) -> None:
    folder, _ = taught
    frame = built(table1, folder, "undefended", "dfkd")
    chosen = table1.Settings(methods=("dfkd",), **TAUGHT)
    found = folder.results(chosen).metrics["dfkd"].group("mislabelled").inheritance
    assert found is not None
    row = frame.iloc[1]
    assert row["teacher"] == "undefended"
    names = ("teacher_wrong_in", "teacher_wrong_out", "student_wrong_in", "student_wrong_out")
    assert [row[name] for name in names] == [
        found.members.teacher,
        found.nonmembers.teacher,
        found.members.student,
        found.nonmembers.student,
    ]
    for what in ("rates", "scores"):
        correlation = getattr(found.members, what)
        ends = [row[f"{what}_correlation_in{end}"] for end in ("", "_low", "_high")]
        assert ends == [correlation.value, correlation.low, correlation.high]
    columns = [name for name in frame if "_wrong_" in name or "_correlation_" in name or name == "teacher"]
    assert len(columns) == 11
    assert frame[columns].iloc[0].isna().all()


def test_table1_shows_a_group_of_columns_only_if_some_row_has_a_teacher(taught: tuple[ResultsFolder, Design]) -> None:
    folder, _ = taught
    frame = pd.read_csv(StringIO(csv_text(built(table1, folder, "undefended", "dfkd"))))
    (sheet,) = table1.layout(frame)
    columns = [column for column in sheet.columns if column.group == "from the teacher"]
    blank, shown = ([column.cell(row) for column in columns] for row in sheet.rows)
    assert [(cell.text, cell.aside) for cell in blank] == [("", "")] * 3
    row = frame.iloc[1]
    for cell, of in zip(shown[:2], ("teacher", "student"), strict=True):
        assert float(cell.text.removesuffix(f"{GAP}%")) == pytest.approx(100 * row[f"{of}_wrong_in"], abs=0.06)
        assert cell.aside.startswith("OUT ")
    assert shown[2].text == f"{row['scores_correlation_in']:.2f}"
    assert shown[2].aside == f"[{row['scores_correlation_in_low']:.2f}, {row['scores_correlation_in_high']:.2f}]"
    assert "from the teacher" in html_page([sheet], "title", [])
    alone = built(table1, folder, "undefended")
    assert alone["teacher"].isna().all()
    assert "from the teacher" not in html_page(table1.layout(alone), "title", [])


def test_a_correlation_that_is_undefined_is_a_dash(taught: tuple[ResultsFolder, Design], metrics_of) -> None:
    folder, _ = taught
    groups = metrics_of("dfkd")["groups"]
    side = {"pairs": 80, "teacher": 1.0, "student": 0.5, "rates": None, "scores": None}
    followed = {"taught": 0.5, "taught_pairs": 80, "untaught": None, "untaught_pairs": 0}
    told = {"teacher": "undefended", "members": side, "nonmembers": {**side, "teacher": 0.0}, "followed": followed}
    folder.metrics("dfkd", groups={"mislabelled": {**groups["mislabelled"], "inheritance": told}})
    (sheet,) = table1.layout(built(table1, folder, "dfkd"))
    (correlation,) = [column for column in sheet.columns if column.heading == "r of scores"]
    assert correlation.cell(sheet.rows[0]).text == "–"
    figure, _ = built(figure9, folder, "dfkd")
    assert "r of rates over models: IN –, OUT –" in texts(figure)


def test_figure1_says_that_times_hold_the_teacher(taught: tuple[ResultsFolder, Design]) -> None:
    folder, _ = taught
    folder.costs("plain", experts=[1.0] * 8)
    said = texts(built(figure1, folder, "dfkd")[0])
    assert "times: teacher (in full for each method), synthesis and training" in said
    both = texts(built(figure1, folder, "dfkd", experts={"dfkd": "plain"})[0])
    assert "times: teacher and experts (in full for each method), synthesis and training" in both


def test_figure8_is_figure6_under_its_own_name(taught: tuple[ResultsFolder, Design]) -> None:
    folder, _ = taught
    figure, frame = built(figure8, folder, "dfkd", images=4, shadow=2)
    _, other = built(figure6, folder, "dfkd", images=4, shadow=2)
    pd.testing.assert_frame_equal(frame, other)
    assert (frame["source"] == -1).all()
    assert "Images made from a teacher alone" in texts(figure)
    assert "Framed" not in texts(figure)
    with pytest.raises(CoalmineError, match=r"figure8\.shadow is 8, but dfkd has the shadow models 0 to 7"):
        built(figure8, folder, "dfkd", shadow=8)
    with pytest.raises(CoalmineError, match="figure8 lists undefended, of which no synthetic images were compared"):
        built(figure8, folder, "undefended")


def test_figures_of_images_show_the_sets_that_a_row_reuses(taught: tuple[ResultsFolder, Design]) -> None:
    folder, _ = taught
    sets = {"dfkd": "dfkd", "again": "dfkd"}
    _, frame = built(figure8, folder, "dfkd", "again", sets=sets)
    own, reused = (part.drop(columns=["method", "label"]) for _, part in frame.groupby("method", sort=False))
    pd.testing.assert_frame_equal(own.reset_index(drop=True), reused.reset_index(drop=True))
    for shadow in range(MODELS):
        header, arrays = read_npz(folder.root / f"logits/dfkd/{shadow:03d}.npz")
        write_npz(folder.root / f"logits/again/{shadow:03d}.npz", {**header, "spec": {"method": "again"}}, arrays)
    folder.metrics("again")
    _, curves = built(figure7, folder, "again", sets=sets)
    assert set(curves["group"]) == {"unused", "out"}


def naive_confidences(folder: ResultsFolder, design: Design) -> dict[tuple[str, str, str], list[float]]:
    """Loop over models, canaries and synthetic images."""
    found: dict[tuple[str, str, str], list[float]] = {}
    for shadow in range(MODELS):
        for of, method in (("teacher", "undefended"), ("student", "dfkd")):
            _, logits = read_npz(folder.root / f"logits/{method}/{shadow:03d}.npz")
            for canary in np.flatnonzero(design.mislabelled):
                odds = [math.exp(float(value)) for value in logits["canary_logits"][canary, 0]]
                group = "in" if design.membership[canary, shadow] else "out"
                for kind, label in (("true", design.true_label[canary]), ("wrong", design.canary_label[canary])):
                    found.setdefault((kind, group, of), []).append(odds[label] / sum(odds))
        _, made = read_npz(folder.root / f"synthetic/dfkd/{shadow:03d}.npz")
        for soft, row in zip(made["labels"], logits["synthetic_logits"], strict=True):
            odds = [math.exp(float(value)) for value in row]
            found.setdefault(("teacher's", "synthetic", "teacher"), []).append(float(max(soft)))
            found.setdefault(("teacher's", "synthetic", "student"), []).append(odds[int(soft.argmax())] / sum(odds))
    return found


def test_figure9_draws_the_share_of_queries_at_least_as_confident(taught: tuple[ResultsFolder, Design]) -> None:
    folder, design = taught
    figure, frame = built(figure9, folder, "dfkd", labels={"dfkd": "DFKD"})
    curves = frame[frame["drawn"] == "curve"]
    naive = naive_confidences(folder, design)
    groups = curves.groupby(["label_kind", "group", "of"])
    assert set(groups.groups) == set(naive)
    for (kind, group, of), part in groups:
        values = np.array(naive[kind, group, of])
        assert part["n"].unique().tolist() == [len(values)]
        assert part["mean"].iloc[0] == pytest.approx(values.mean(), rel=1e-6)
        for row in part.iloc[::20].itertuples():
            assert row.share == pytest.approx((values >= row.confidence).mean(), abs=1e-9)
        axes = figure.axes[1 if kind == "wrong" else 0]
        (line,) = [each for each in axes.get_lines() if each.get_gid() == f"{group}/{of}"]
        np.testing.assert_array_equal(line.get_xdata(), part["confidence"])
        np.testing.assert_array_equal(line.get_ydata(), part["share"])
    assert len(naive["teacher's", "synthetic", "student"]) == MODELS * IMAGES
    assert figure.axes[0].get_title(loc="left") == "DFKD"
    assert figure.axes[1].get_xlabel() == "confidence in the wrong label"


def test_figure9_draws_a_point_for_every_shadow_model(taught: tuple[ResultsFolder, Design]) -> None:
    folder, design = taught
    figure, frame = built(figure9, folder, "dfkd")
    points = frame[frame["drawn"] == "model"]
    rows = design.mislabelled
    member, label = design.membership[rows], design.canary_label[rows]
    for group, side in (("in", member), ("out", ~member)):
        own = points[points["group"] == group]
        assert own["shadow"].tolist() == list(range(MODELS))
        assert own["n"].tolist() == side.sum(axis=0).tolist()
        for of, method in (("teacher", "undefended"), ("student", "dfkd")):
            files = [read_npz(folder.root / f"logits/{method}/{shadow:03d}.npz")[1] for shadow in range(MODELS)]
            logits = np.stack([file["canary_logits"][rows, 0] for file in files], axis=1)
            np.testing.assert_array_equal(own[f"{of}_rate"], standardised_rates(predicts(logits, label), side))
        (line,) = [each for each in figure.axes[2].get_lines() if each.get_gid() == f"{group}/models"]
        np.testing.assert_array_equal(line.get_xdata(), own["teacher_rate"])
        np.testing.assert_array_equal(line.get_ydata(), own["student_rate"])
        assert own["student_rate"].nunique() > 1


def test_figure9_prints_the_correlations_of_the_metrics_which_are_those_of_its_points(
    taught: tuple[ResultsFolder, Design],
) -> None:
    folder, _ = taught
    figure, frame = built(figure9, folder, "dfkd")
    chosen = figure9.Settings(methods=("dfkd",), **TAUGHT)
    found = folder.results(chosen).metrics["dfkd"].group("mislabelled").inheritance
    assert found is not None
    points = frame[(frame["drawn"] == "model") & (frame["group"] == "out")]
    rates, scores = found.nonmembers.rates, found.members.scores
    assert rates is not None
    assert scores is not None
    assert np.corrcoef(points["teacher_rate"], points["student_rate"])[0, 1] == pytest.approx(rates.value)
    said = texts(figure).replace("−", "-")
    assert f"OUT {rates.value:.2f} [{rates.low:.2f}, {rates.high:.2f}]" in said
    assert f"r of scores over pairs: IN {scores.value:.2f} [{scores.low:.2f}, {scores.high:.2f}]" in said
    assert "with 95 % interval" in said


def test_figure9_has_a_row_for_each_method_and_one_legend(taught: tuple[ResultsFolder, Design]) -> None:
    folder, design = taught
    folder.taught("other", "undefended", design)
    methods = {"dfkd": "dfkd", "other": "other"}
    figure, frame = built(figure9, folder, "dfkd", "other", sets=methods, teachers=dict.fromkeys(methods, "undefended"))
    assert len(figure.axes) == 6
    assert frame["method"].unique().tolist() == ["dfkd", "other"]
    (legend,) = figure.legends
    entries = [text.get_text() for text in legend.get_texts()]
    assert len(entries) == len(set(entries)) == 8


def test_figure9_shows_what_there_is_of_synthetic_images(taught: tuple[ResultsFolder, Design]) -> None:
    """Hard labels do not tell how sure the teacher is; without sets there is no curve at all."""
    folder, _ = taught
    for shadow in range(MODELS):
        path = folder.root / f"synthetic/dfkd/{shadow:03d}.npz"
        header, arrays = read_npz(path)
        write_npz(path, header, {**arrays, "labels": arrays["labels"].argmax(axis=1)})
    _, frame = built(figure9, folder, "dfkd")
    assert frame[frame["group"] == "synthetic"]["of"].unique().tolist() == ["student"]
    _, frame = built(figure9, folder, "dfkd", sets={})
    assert "synthetic" not in set(frame["group"])


def test_figure9_refuses_what_it_cannot_show(taught: tuple[ResultsFolder, Design], metrics_of) -> None:
    folder, _ = taught
    with pytest.raises(CoalmineError, match="figure9 lists undefended, whose models no other models taught"):
        built(figure9, folder, "dfkd", "undefended")
    folder.metrics("shuffled", membership="shuffled")
    with pytest.raises(CoalmineError, match="figure9 lists shuffled, a control"):
        built(figure9, folder, "shuffled")
    with pytest.raises(CoalmineError, match=r"dfkd\.json has undefended as the teacher of dfkd, but .* has other"):
        built(figure9, folder, "dfkd", teachers={"dfkd": "other"})
    path = folder.root / "logits/dfkd/001.npz"
    header, arrays = read_npz(path)
    write_npz(path, header, {**arrays, "synthetic_logits": arrays["synthetic_logits"][:-1]})
    with pytest.raises(CoalmineError, match="model 1 was asked about 5 synthetic images, but its set has 6"):
        built(figure9, folder, "dfkd")
    folder.metrics("dfkd", groups=metrics_of("dfkd")["groups"])
    with pytest.raises(CoalmineError, match=r"dfkd\.json has none as the teacher of dfkd"):
        built(figure9, folder, "dfkd")


@pytest.mark.parametrize("module", [figure8, figure9])
def test_figures_of_data_free_methods_have_the_same_bytes_every_time(
    module: Any, taught: tuple[ResultsFolder, Design], tmp_path: Path
) -> None:
    for name in ("one", "two"):
        write_figure(*built(module, taught[0], "dfkd"), tmp_path / name / "figure")
    for suffix in (".png", ".pdf", ".csv"):
        first, second = ((tmp_path / name / f"figure{suffix}").read_bytes() for name in ("one", "two"))
        assert first == second
        assert first
