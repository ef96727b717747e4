"""Table 7: predicted cost beside what was measured, and what presets would cost."""

from __future__ import annotations

import json
import math
from typing import Any

import pandas as pd
import pytest
import yaml
from results_folder import ResultsFolder

from coalmine.config import check
from coalmine.costs.presets import REPOSITORY
from coalmine.reporting import table7
from coalmine.reporting.writers import html_page, latex_text


def predicted(method: str, stage: str, seconds: float, **other: Any) -> dict[str, Any]:
    known = {"preset": None, "label": method, "models": 4, "scaled_from": "module", "device": "cpu"}
    sizes = {"peak_memory_mb": 600.0, "disk_mb": 0.5}
    whole = {**known, **sizes, "method": method, "stage": stage, "seconds": seconds, **other}
    return {"low": whole["seconds"] / 2, "high": whole["seconds"] * 2, **whole}


@pytest.fixture
def measured(folder: ResultsFolder) -> ResultsFolder:
    folder.metrics("random")
    folder.costs("random", synthetic=[1.0] * 4, models=[20.0] * 4)
    return folder


def built(folder: ResultsFolder, *rows: dict[str, Any], **other: Any) -> pd.DataFrame:
    settings = table7.Settings(methods=("random",), predicted=[table7.Predicted(**row) for row in rows], **other)
    return table7.build(folder.results(settings), settings)


def test_the_prediction_stands_beside_the_measurement_of_its_stage_with_their_ratio(measured: ResultsFolder) -> None:
    frame = built(measured, predicted("random", "models", 16.0), predicted("random", "total", 40.0)).set_index("stage")
    training, total = frame.loc["models"], frame.loc["total"]
    assert (training["predicted_seconds"], training["predicted_low"], training["predicted_high"]) == (16.0, 8.0, 32.0)
    assert training["measured_over_predicted"] == 20 / 16
    assert total["measured_over_predicted"] == pytest.approx(21 / 40)
    assert math.isnan(frame.loc["synthetic"]["predicted_seconds"])


def test_seconds_of_different_devices_have_no_ratio(measured: ResultsFolder) -> None:
    frame = built(measured, predicted("random", "models", 16.0, device="a card")).set_index("stage")
    assert frame.loc["models"]["predicted_seconds"] == 16.0
    assert math.isnan(frame.loc["models"]["measured_over_predicted"])


def test_presets_follow_with_sizes_of_all_models_and_without_a_measurement(measured: ResultsFolder) -> None:
    rows = [predicted("dm", stage, 3.0, preset="paper", models=32) for stage in ("models", "total")]
    frame = built(measured, *rows)
    told = frame[frame["preset"] == "paper"]
    assert told["stage"].tolist() == ["models", "total"]
    assert told["seconds_all_models"].tolist() == [96.0, 96.0]
    assert told["disk_mb"].tolist() == [16.0, 16.0]
    assert told["seconds_per_model"].isna().all()
    assert frame["preset"].isna().sum() == 3, "synthesis, training and total of the run itself"
    assert built(measured, *rows, presets=())["preset"].isna().all(), "only the presets that are asked for"


def test_the_page_shows_predictions_and_a_table_of_its_own_for_each_preset(measured: ResultsFolder) -> None:
    rows = [predicted("random", "models", 16.0), predicted("dm", "total", 3.0, preset="paper", label="DM")]
    own, paper = table7.layout(built(measured, *rows))
    headings = [column.heading for column in own.columns]
    training = dict(zip(headings, own.cells()[1], strict=True))
    assert (training["predicted"].text, training["predicted"].aside) == ("16", "[8.0, 32]")
    assert training["ratio"].text == "1.2"
    assert training["scaled from"].text == "same module"
    assert [cells[0].text for cells in own.cells()] == ["random", "", ""]
    assert [cells[0].text for cells in paper.cells()] == ["DM"]
    assert "Predicted for the preset paper" in paper.caption
    page, latex = html_page([own, paper], "Cost", []), latex_text([own, paper], "Cost")
    assert "Predicted for the preset paper" in page
    assert latex.count("begin{tabular}") == 2


def test_without_predictions_the_page_shows_what_was_measured_alone(measured: ResultsFolder) -> None:
    (sheet,) = table7.layout(built(measured))
    assert not {"predicted", "ratio", "scaled from"} & {column.heading for column in sheet.columns}


def test_the_configured_table_predicts_its_methods_and_the_paper(tmp_path: Any) -> None:
    raw = yaml.safe_load((REPOSITORY / "config.yaml").read_text())
    run = check(raw)
    spec = run.spec("table", name="table7")
    rows = json.loads(spec)["settings"]["predicted"]
    own = {row["method"] for row in rows if row["preset"] is None and row["stage"] == "total"}
    assert own == set(raw["tables"]["table7"]["methods"])
    paper = {row["method"] for row in rows if row["preset"] == "paper" and row["stage"] == "total"}
    assert {"undefended", "dm", "mtt", "dpsgd-eps8", "stable-diffusion-i2i", "dpdm-eps10"} <= paper
    assert all(0 < row["low"] <= row["seconds"] <= row["high"] for row in rows)
    assert all(row["scaled_from"] != "unscaled" for row in rows)
    # Linux allows one argument of a command 128 KiB, and the spec is one.
    assert len(spec) < 100_000
    assert check(raw).spec("table", name="table7") == spec, "the same configuration has the same spec"
