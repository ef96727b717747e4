import json
from pathlib import Path

import numpy as np
import pytest
from results_folder import PRIMARY, ResultsFolder

from coalmine.artefacts import place, write_npz
from coalmine.errors import CoalmineError
from coalmine.reporting.results import load_results


def test_a_missing_results_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CoalmineError, match=r"no results folder .*nowhere\. Run Snakemake"):
        load_results(tmp_path / "nowhere", ["random"])


def test_nothing_is_read_before_it_is_asked_for(folder: ResultsFolder) -> None:
    results = load_results(folder.root, ["random", "absent"])
    folder.metrics("random")
    assert results.metrics["random"].design.canaries == 500
    assert list(results.metrics) == ["random", "absent"]


def test_a_missing_metrics_file_is_named_with_the_remedy(folder: ResultsFolder) -> None:
    with pytest.raises(CoalmineError, match=r"metrics/random\.json does not exist\. Run Snakemake"):
        load_results(folder.root, ["random"]).metrics["random"]


def test_a_method_that_was_not_asked_for_is_no_key(folder: ResultsFolder) -> None:
    folder.metrics("random")
    with pytest.raises(KeyError):
        load_results(folder.root, ["forgetting"]).metrics["random"]


def test_a_broken_field_is_named_by_its_path(folder: ResultsFolder, metrics_of) -> None:
    metrics = metrics_of("random")
    metrics["groups"]["mislabelled"]["variants"][PRIMARY]["tpr"]["0.001"]["value"] = 38.7
    folder.write("metrics/random.json", metrics)
    with pytest.raises(CoalmineError, match=rf"groups.mislabelled.variants.{PRIMARY}.tpr.0.001.value: .*less than"):
        load_results(folder.root, ["random"]).metrics["random"]


def test_a_claim_without_its_mechanism_is_read_and_one_out_of_range_is_not(folder: ResultsFolder) -> None:
    claimed = {"epsilon": 8.0, "delta": 1e-5, "accountant": "PLD"}
    folder.metrics("old", claimed=claimed)
    claim = load_results(folder.root, ["old"]).metrics["old"].claimed
    assert (claim.noise_multiplier, claim.sampling_rate, claim.steps, claim.clip, claim.note) == (None,) * 5
    folder.metrics("wrong", claimed={**claimed, "sampling_rate": 1.5})
    with pytest.raises(CoalmineError, match=r"claimed\.sampling_rate: .*less than"):
        load_results(folder.root, ["wrong"]).metrics["wrong"]


def test_truncated_json_is_refused(folder: ResultsFolder, metrics_of) -> None:
    folder.write("metrics/random.json", 0).write_text(json.dumps(metrics_of("random"))[:100])
    with pytest.raises(CoalmineError, match=r"random\.json is not valid JSON .*Delete the file"):
        load_results(folder.root, ["random"]).metrics["random"]


def test_metrics_of_another_method_are_refused(folder: ResultsFolder, metrics_of) -> None:
    folder.write("metrics/random.json", metrics_of("forgetting"))
    with pytest.raises(CoalmineError, match="holds the metrics of 'forgetting', not of 'random'"):
        load_results(folder.root, ["random"]).metrics["random"]


def test_a_group_that_was_not_audited_is_named_with_the_remedy(folder: ResultsFolder, metrics_of) -> None:
    groups = metrics_of("random")["groups"]
    folder.metrics("random", groups={"mislabelled": groups["mislabelled"]})
    with pytest.raises(CoalmineError, match=r"'random' was not audited on clean canaries .*hold: mislabelled"):
        load_results(folder.root, ["random"]).metrics["random"].group("clean")


def test_an_unknown_variant_lists_the_known_ones(folder: ResultsFolder) -> None:
    folder.metrics("random")
    with pytest.raises(CoalmineError, match=f"no attack variant 'rmia'.*global-logit-1v, {PRIMARY}"):
        load_results(folder.root, ["random"]).metrics["random"].variant("mislabelled", "rmia")


def test_scores_come_back_as_written(folder: ResultsFolder) -> None:
    scores = np.arange(6.0).reshape(2, 3)
    membership = np.array([[True, False, True], [False, True, False]])
    write_npz(folder.root / "scores/random.npz", {}, {"clean/global-logit-1v": scores, "clean/membership": membership})
    audited = load_results(folder.root, ["random"]).scores("random").read("clean", "global-logit-1v")
    np.testing.assert_array_equal(audited.scores, scores)
    np.testing.assert_array_equal(audited.membership, membership)


def test_scores_that_do_not_fit_the_membership_are_refused(folder: ResultsFolder) -> None:
    arrays = {"clean/global-logit-1v": np.zeros((2, 3)), "clean/membership": np.zeros((3, 2), bool)}
    write_npz(folder.root / "scores/random.npz", {}, arrays)
    with pytest.raises(CoalmineError, match=r"random\.npz: clean/global-logit-1v has shape \(2, 3\)"):
        load_results(folder.root, ["random"]).scores("random").read("clean", "global-logit-1v")


def test_missing_scores_are_named(folder: ResultsFolder) -> None:
    scores = load_results(folder.root, ["random"]).scores("random")
    with pytest.raises(CoalmineError, match=r"scores/random\.npz does not exist"):
        scores.read("clean", "global-logit-1v")
    write_npz(scores.path, {}, {"clean/membership": np.zeros((2, 2), bool)})
    with pytest.raises(CoalmineError, match=r"lacks the field .*clean/global-logit-1v"):
        scores.read("clean", "global-logit-1v")


def test_costs_hold_one_row_per_stage_and_model(folder: ResultsFolder) -> None:
    folder.metrics("random")
    folder.costs("random", synthetic=[1.0, 2.0, 3.0, 4.0], models=[10.0, 20.0, 30.0, 40.0])
    costs = load_results(folder.root, ["random"]).costs("random")
    assert list(costs.columns) == ["stage", "shadow", "seconds", "device", "peak_memory_mb", "bytes"]
    assert costs[costs["stage"] == "models"]["seconds"].tolist() == [10.0, 20.0, 30.0, 40.0]
    assert costs["shadow"].tolist() == [0, 1, 2, 3] * 2


def test_costs_left_over_from_a_larger_run_are_not_counted(folder: ResultsFolder) -> None:
    folder.metrics("random")
    folder.costs("random", models=[1.0, 1.0, 1.0, 1.0, 1000.0])
    assert load_results(folder.root, ["random"]).costs("random")["seconds"].max() == 1.0


def test_a_missing_measurement_of_one_model_is_named(folder: ResultsFolder) -> None:
    folder.metrics("random")
    folder.costs("random", models=[1.0, 1.0, 1.0])
    with pytest.raises(CoalmineError, match=r"models/random holds no measurement .* of shadow models 3"):
        load_results(folder.root, ["random"]).costs("random")


def test_no_measurement_of_training_is_an_error(folder: ResultsFolder) -> None:
    folder.metrics("random")
    folder.costs("random", synthetic=[1.0] * 4)
    with pytest.raises(CoalmineError, match="models/random holds no measurement of training"):
        load_results(folder.root, ["random"]).costs("random")


def test_experts_are_measured_in_the_folder_of_their_own_name(folder: ResultsFolder) -> None:
    folder.metrics("mtt")
    folder.costs("mtt", synthetic=[1.0] * 4, models=[10.0] * 4, logits=[100.0] * 4)
    folder.costs("plain", experts=[2.0, 4.0, 6.0, 8.0])
    results = load_results(folder.root, ["mtt"], experts={"mtt": "plain"})
    costs = results.costs("mtt")
    assert costs["stage"].unique().tolist() == ["experts", "synthetic", "models", "logits"]
    assert costs[costs["stage"] == "experts"]["seconds"].tolist() == [2.0, 4.0, 6.0, 8.0]
    assert results.seconds_per_model("mtt") == (5.0 + 1.0 + 10.0, "cpu")


def test_experts_that_a_method_does_not_use_cost_it_nothing(folder: ResultsFolder) -> None:
    folder.metrics("dm")
    folder.costs("dm", models=[10.0] * 4)
    folder.costs("plain", experts=[2.0] * 4)
    assert load_results(folder.root, ["dm"], experts={"mtt": "plain"}).seconds_per_model("dm") == (10.0, "cpu")


def test_experts_that_were_not_measured_are_named(folder: ResultsFolder) -> None:
    folder.metrics("mtt")
    folder.costs("mtt", models=[10.0] * 4)
    with pytest.raises(CoalmineError, match="experts/plain holds no measurement of the experts of method 'mtt'"):
        load_results(folder.root, ["mtt"], experts={"mtt": "plain"}).costs("mtt")


def test_visual_leakage_is_read_for_methods_with_images_only(folder: ResultsFolder) -> None:
    folder.visual("dm", pixel=0.3, features=0.5)
    results = load_results(folder.root, ["dm", "undefended"], sets={"dm": "dm"})
    visual = results.visual("dm")
    assert visual is not None
    assert (visual.level, visual.held_out) == (0.05, 6.0)
    assert {name: found.share.value for name, found in visual.metrics.items()} == {"pixel": 0.3, "features": 0.5}
    assert results.visual("undefended") is None
    assert load_results(folder.root, ["dm"]).visual("dm") is None


def test_visual_leakage_of_another_method_or_out_of_range_is_refused(folder: ResultsFolder) -> None:
    folder.visual("dm", pixel=0.3)
    place(folder.root / "visual/dm.json", folder.root / "visual/dsa.json")
    results = load_results(folder.root, ["dm", "dsa", "mtt"], sets={name: name for name in ("dm", "dsa", "mtt")})
    with pytest.raises(CoalmineError, match="holds the visual leakage of 'dm', not of 'dsa'"):
        results.visual("dsa")
    folder.visual("mtt", pixel=30.0)
    with pytest.raises(CoalmineError, match=r"metrics\.pixel\.share\.value: .*less than"):
        results.visual("mtt")


def test_a_correlation_with_a_teacher_that_is_out_of_range_is_refused(folder: ResultsFolder, metrics_of) -> None:
    groups = metrics_of("dfkd")["groups"]
    folder.metrics("dfkd", groups=groups)
    assert load_results(folder.root, ["dfkd"]).metrics["dfkd"].group("mislabelled").inheritance is None
    wrong = {"value": 1.5, "low": None, "high": None}
    side = {"pairs": 8, "teacher": 1.0, "student": 0.5, "rates": None, "scores": wrong}
    followed = {"taught": 0.5, "taught_pairs": 8, "untaught": None, "untaught_pairs": 0}
    groups["clean"]["inheritance"] = {"teacher": "t", "members": side, "nonmembers": side, "followed": followed}
    folder.metrics("dfkd", groups=groups)
    with pytest.raises(CoalmineError, match=r"groups\.clean\.inheritance\.members\.scores\.value: .*less than"):
        load_results(folder.root, ["dfkd"]).metrics["dfkd"]


def test_what_was_taken_comes_back_as_written(folder: ResultsFolder) -> None:
    taken = np.array([[True, False, False], [False, True, True]])
    write_npz(folder.root / "scores/dm.npz", {}, {"mislabelled/taken": taken})
    results = load_results(folder.root, ["dm"])
    np.testing.assert_array_equal(results.scores("dm").read_taken("mislabelled"), taken)
    with pytest.raises(CoalmineError, match=r"lacks the field .*clean/taken"):
        results.scores("dm").read_taken("clean")
