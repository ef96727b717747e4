"""What reruns when: each line of the promise, proved on a real small run."""

from __future__ import annotations

import csv
import os
import shutil
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import yaml
from checkouts import SMALL, Checkout, copy_sources

CORESET = "src/coalmine/methods/coreset.py"
UNDEFENDED = "src/coalmine/methods/undefended.py"
PICTURES = Counter(table=3, publish_table=3, figure=1, publish_figure=1, all=1)
"""What reads how images compare: tables 1, 2 and 4, figure 6."""
MAKERS = {"random": "synthesize", "forgetting": "synthesize", "dm": "synthesize", "mtt": "synthesize", "dfkd": "distil"}
"""The methods that make synthetic sets, and the stages that do."""
STUDENTS = ("dfkd", "second")
"""What undefended models teach: the data-free method, and the one that reuses its sets."""


def reports(*methods: str) -> Counter[str]:
    """The tables and figures of the small run that show any of these methods, and what follows from them."""
    jobs = Counter({"all": 1})
    for section, stage in (("tables", "table"), ("figures", "figure")):
        shown = [{*report["methods"], *report.get("baselines", ())} for report in SMALL[section].values()]
        number = sum(not own.isdisjoint(methods) for own in shown)
        jobs += Counter({stage: number, f"publish_{stage}": number})
    return jobs


def downstream(method: str) -> Counter[str]:
    """All jobs of one method: two batches a stage, its score, and the comparison of its images."""
    maker = MAKERS.get(method)
    once = ["score", *(["resemble"] if maker else [])]
    stages = [*([maker] if maker else []), *(["train"] if maker != "distil" else []), "logits"]
    return Counter({f"{stage} {method}": 2 for stage in stages} | {f"{stage} {method}": 1 for stage in once})


def test_the_small_run_tells_reports_apart() -> None:
    """What the other tests count: some reports show a method, others do not."""
    assert reports("mtt") == Counter(table=2, publish_table=2, all=1)
    assert reports("undefended") == Counter(table=2, publish_table=2, figure=2, publish_figure=2, all=1)


def test_a_finished_run_has_nothing_to_do(checkout: Checkout) -> None:
    assert not checkout.planned()


def test_comments_docstrings_and_layout_rerun_nothing(checkout: Checkout) -> None:
    checkout.edit(CORESET, '"""Return the positions of the', '"""Give the positions of the')
    checkout.edit(CORESET, "    return np.lexsort", "    # ties are broken at random\n\n    return np.lexsort")
    checkout.edit("src/coalmine/training/loop.py", '"""The training loop', '"""The one training loop')
    assert not checkout.planned()


def test_touched_files_rerun_nothing(checkout: Checkout) -> None:
    for path in [*checkout.root.rglob("*.py"), *checkout.root.rglob("*.smk"), *checkout.root.rglob("*.yaml")]:
        os.utime(path)
    for path in (checkout.root / "results/small/data").rglob("*.npy"):
        os.utime(path)
    assert not checkout.planned()


@pytest.mark.parametrize("execution", [{"batch": 2}, {"batch": 6}, {"device": "auto"}, {"mode": "stacked"}])
def test_batch_size_device_and_mode_rerun_nothing(checkout: Checkout, execution: dict) -> None:
    checkout.configure(execution={**SMALL["execution"], **execution})
    assert not checkout.planned()


def test_a_methods_code_reruns_that_method_and_its_downstream(checkout: Checkout) -> None:
    checkout.edit(CORESET, "round(fraction * len(members))", "int(fraction * len(members))")
    jobs = checkout.planned()
    # `config.json` states settings, not code.
    assert jobs == downstream("random") + downstream("forgetting") + reports("random", "forgetting")


def test_the_code_of_a_method_that_trains_itself_reruns_only_that_method(checkout: Checkout) -> None:
    checkout.edit(UNDEFENDED, "    return setup.train(", "    shadows = [*shadows]\n    return setup.train(")
    jobs = checkout.planned()
    # The null control scores the logits of undefended models, and their students follow them.
    students = sum(map(downstream, STUDENTS), Counter())
    expected = downstream("undefended") + Counter({"score shuffled": 1}) + students
    assert jobs == expected + reports("undefended", "shuffled", *STUDENTS)


def test_a_data_free_methods_settings_distil_again_and_train_no_teacher(checkout: Checkout) -> None:
    methods = {**SMALL["methods"], "dfkd": {**SMALL["methods"]["dfkd"], "distillation_steps": 3}}
    checkout.configure(methods=methods)
    # Whoever reuses its sets follows.
    expected = downstream("dfkd") + downstream("second") + Counter({"configuration": 1})
    assert checkout.planned() == expected + reports(*STUDENTS)


def test_a_data_free_methods_code_reruns_it_and_what_follows_from_its_sets(checkout: Checkout) -> None:
    checkout.edit("src/coalmine/methods/dfkd.py", "    for teacher in teachers:", "    for teacher in [*teachers]:")
    assert checkout.planned() == downstream("dfkd") + downstream("second") + reports(*STUDENTS)


def test_another_student_of_the_same_teachers_is_all_that_is_made(checkout: Checkout) -> None:
    other = {**SMALL["methods"]["dfkd"], "model": {"name": "mlp", "hidden": [8]}}
    checkout.configure(methods={**SMALL["methods"], "other": other}, tables={"table1": {"methods": ["dfkd", "other"]}})
    expected = Counter(
        {"distil other": 2, "logits other": 2, "score other": 1, "resemble other": 1, "configuration": 1}
    )
    assert checkout.planned() == expected + Counter(table=1, publish_table=1, all=1)


def test_another_model_on_reused_sets_is_trained_without_making_them_again(checkout: Checkout) -> None:
    second = {**SMALL["methods"]["second"], "model": {"name": "mlp", "hidden": [9]}}
    checkout.configure(methods={**SMALL["methods"], "second": second})
    assert checkout.planned() == downstream("second") + reports("second") + Counter({"configuration": 1})


def test_the_job_that_distils_is_given_models_of_teachers_and_no_private_data(checkout: Checkout) -> None:
    printed = checkout.snakemake("results/small/models/dfkd/000.safetensors", "--detailed-summary")
    rows = csv.DictReader(printed[printed.index("output_file\t") :].splitlines(), delimiter="\t")
    (job,) = [row for row in rows if row["output_file"] == "results/small/models/dfkd/000.safetensors"]
    teachers = {f"results/small/models/undefended/00{shadow}" for shadow in range(6)}
    assert {*job["input-file(s)"].split(",")} == {f"{teacher}.safetensors" for teacher in teachers}
    assert not {"--private", "--design"} & {*job["shellcmd"].split()}


def test_the_twin_of_a_student_learns_from_the_twin_of_its_teacher(checkout: Checkout) -> None:
    audit = yaml.safe_load((checkout.root / "config.yaml").read_text())["audit"]
    checkout.configure(
        audit={**audit, "average": {"models": "separate", "samples": None}}, controls={}, tables={}, figures={}
    )
    jobs = checkout.planned(target="results/small/scores/second-average.npz")
    stages = ("train undefended", "logits undefended", "distil dfkd", "train second", "logits second")
    twins = {f"{stage}-average": 2 for stage in stages}
    assert jobs == Counter({**twins, "score second-average": 1, "design_average": 1})


def test_a_change_of_the_training_loop_retrains_all_but_keeps_data_and_design(checkout: Checkout) -> None:
    checkout.edit("src/coalmine/training/sgd.py", "class SGD", "UNUSED = 1\n\n\nclass SGD")
    jobs = checkout.planned()
    assert jobs["train undefended"] == jobs["train random"] == 2
    assert not {"prepare_private", "design_worst"} & jobs.keys()


def test_a_private_methods_settings_rerun_its_account_and_it_alone(checkout: Checkout) -> None:
    private = {**SMALL["methods"]["private"], "steps": 5}
    checkout.configure(methods={**SMALL["methods"], "private": private})
    expected = downstream("private") + Counter({"account private": 1, "configuration": 1})
    assert checkout.planned() == expected + reports("private")


def test_the_runs_epochs_do_not_retrain_a_private_method(checkout: Checkout) -> None:
    recipe = yaml.safe_load((checkout.root / "config.yaml").read_text())["training"]
    checkout.configure(training={**recipe, "epochs": 3})
    jobs = checkout.planned()
    assert jobs["train undefended"] == 2
    assert not {"account private", "train private", "logits private", "score private"} & jobs.keys()


def test_the_accountants_code_reruns_private_methods_only(checkout: Checkout) -> None:
    checkout.edit("src/coalmine/accounting.py", "\ndef account(", "\nUNUSED = 1\n\n\ndef account(")
    assert {job.split()[-1] for job in checkout.planned() if " " in job} == {"private"}


def test_a_change_of_an_attack_scores_again_and_trains_nothing(checkout: Checkout) -> None:
    checkout.edit("src/coalmine/audit/lira.py", "\ndef ", "\nUNUSED = 1\n\n\ndef ")
    every = [*SMALL["methods"], *SMALL["controls"]]
    # Figure 6 shows images and no score.
    shown = reports(*every) - Counter(figure=1, publish_figure=1)
    assert checkout.planned() == Counter({f"score {method}": 1 for method in every}) + shown


def test_a_hyper_parameter_reruns_that_method_only(checkout: Checkout) -> None:
    methods = {**SMALL["methods"], "forgetting": {**SMALL["methods"]["forgetting"], "scoring_epochs": 3}}
    checkout.configure(methods=methods)
    assert checkout.planned() == downstream("forgetting") + reports("forgetting") + Counter({"configuration": 1})


def test_two_swapped_values_rerun_both_methods(checkout: Checkout) -> None:
    methods = SMALL["methods"]
    methods = {
        **methods,
        "random": {**methods["random"], "selection": "forgetting", "scoring_epochs": 2},
        "forgetting": {**methods["forgetting"], "selection": "random"},
    }
    checkout.configure(methods=methods)
    jobs = checkout.planned()
    both = ("random", "forgetting")
    assert jobs == downstream("random") + downstream("forgetting") + reports(*both) + Counter({"configuration": 1})


def test_swapped_values_within_one_spec_are_seen(checkout: Checkout) -> None:
    # The number of canaries and of clean samples trade places: the set of values in the spec stays the same.
    checkout.configure(methods={**SMALL["methods"], "random": {**SMALL["methods"]["random"], "scoring_epochs": 5}})
    before = checkout.planned()
    assert before == downstream("random") + reports("random") + Counter({"configuration": 1})
    checkout.snakemake("results/small/metrics/random.json", "--cores", "2")
    swapped = {**SMALL["methods"]["random"], "scoring_epochs": 5, "proxies": 5}
    checkout.configure(methods={**SMALL["methods"], "random": swapped})
    assert "synthesize random" in checkout.planned()


def test_a_new_method_makes_only_itself(checkout: Checkout) -> None:
    shutil.copy(checkout.root / CORESET, checkout.root / "src/coalmine/methods/defence.py")
    methods = {**SMALL["methods"], "mine": {"module": "defence", "selection": "random", "fraction": 0.3}}
    checkout.configure(
        methods=methods,
        tables={"table1": {"methods": ["undefended", "random", "forgetting", "mine", "shuffled"]}},
    )
    # Figures do not list the new method, so they stay; only the table is rebuilt.
    expected = downstream("mine") + Counter({"resemble mine": 1, "synthesize mine": 2})
    expected += Counter({"table": 1, "publish_table": 1, "configuration": 1, "all": 1})
    assert checkout.planned() == expected


def test_the_settings_of_experts_rerun_them_and_the_methods_that_match_them(checkout: Checkout) -> None:
    checkout.configure(experts={"quick": {**SMALL["experts"]["quick"], "learning_rate": 0.02}})
    expected = Counter({"experts quick": 2, "configuration": 1}) + downstream("mtt") + reports("mtt")
    assert checkout.planned() == expected


def test_the_code_that_trains_experts_reruns_no_other_method(checkout: Checkout) -> None:
    checkout.edit("src/coalmine/distillation/experts.py", "STACKED_AT_ONCE = 10", "STACKED_AT_ONCE = 11")
    assert checkout.planned() == Counter({"experts quick": 2}) + downstream("mtt") + reports("mtt")


def test_experts_that_no_method_matches_are_not_made(checkout: Checkout) -> None:
    checkout.configure(experts={**SMALL["experts"], "idle": {"experts": 1, "epochs": 2}})
    assert checkout.planned() == Counter({"configuration": 1, "all": 1})


def test_settings_of_a_method_that_matches_experts_keep_these(checkout: Checkout) -> None:
    methods = {**SMALL["methods"], "mtt": {**SMALL["methods"]["mtt"], "iterations": 3}}
    checkout.configure(methods=methods)
    assert checkout.planned() == downstream("mtt") + reports("mtt") + Counter({"configuration": 1})


@pytest.mark.parametrize("change", [{"level": 0.3}, {"images": 2}, {"features": None}])
def test_how_images_are_compared_compares_them_again_and_trains_nothing(checkout: Checkout, change: dict) -> None:
    checkout.configure(visual={**SMALL["visual"], **change})
    compared = Counter({f"resemble {method}": 1 for method in MAKERS})
    assert checkout.planned() == compared + Counter(configuration=1) + PICTURES


def test_a_run_without_the_comparison_needs_its_tables_only(checkout: Checkout) -> None:
    figures = {name: figure for name, figure in SMALL["figures"].items() if name != "figure6"}
    checkout.configure(visual=None, figures=figures)
    assert checkout.planned() == Counter(configuration=1, table=3, publish_table=3, all=1)
    checkout.snakemake("results/table1.csv", "--cores", "1")
    table = pd.read_csv(checkout.root / "results/table1.csv")
    assert table["visual_pixel"].isna().all()


def test_the_network_that_compares_images_is_pretrained_once(checkout: Checkout) -> None:
    features = {**SMALL["visual"]["features"], "training": {"epochs": 3}}
    checkout.configure(visual={**SMALL["visual"], "features": features})
    compared = Counter({f"resemble {method}": 1 for method in MAKERS})
    assert checkout.planned() == compared + Counter(pretrain=1, configuration=1) + PICTURES


def test_a_plot_option_redraws_that_figure_only(checkout: Checkout) -> None:
    figures = {**SMALL["figures"], "figure1": {**SMALL["figures"]["figure1"], "title": "Another title"}}
    checkout.configure(figures=figures)
    assert checkout.planned() == Counter({"figure": 1, "publish_figure": 1, "configuration": 1, "all": 1})


def test_an_edit_that_is_reverted_reruns_nothing(checkout: Checkout) -> None:
    original = (checkout.root / CORESET).read_text()
    checkout.edit(CORESET, "-scores", "+scores")
    assert "synthesize random" in checkout.planned()
    (checkout.root / CORESET).write_text(original)
    assert not checkout.planned()


def test_a_fresh_clone_adopts_copied_results_with_one_command(checkout: Checkout, tmp_path: Path) -> None:
    clone = Checkout(tmp_path / "clone")
    copy_sources(clone.root)
    clone.configure()
    shutil.copytree(checkout.root / "results", clone.root / "results", copy_function=shutil.copy)
    clone.snakemake("all", "--touch", "--forceall", "--cores", "2")
    assert not clone.planned()
    clone.edit(CORESET, "-scores", "+scores")
    assert clone.planned() == downstream("random") + downstream("forgetting") + reports("random", "forgetting")


def test_a_deleted_final_table_is_rebuilt_from_what_is_there(checkout: Checkout) -> None:
    (checkout.root / "results/table1.csv").unlink()
    assert checkout.planned(target="results/table1.csv") == Counter({"publish_table": 1})


def test_the_published_tables_of_another_run_do_not_pass_for_this_ones(checkout: Checkout) -> None:
    """Both are results/table1.csv: who has made it must count, not whether it is there."""
    (checkout.root / "results/small").rename(checkout.root / "results/other")
    checkout.configure(run="other")
    jobs = checkout.planned("--rerun-triggers", "code", "params", "software-env", target="results/table1.csv")
    assert jobs["publish_table"] == 1


def test_images_are_compared_again_when_their_network_or_the_number_of_sets_is_another(checkout: Checkout) -> None:
    checkout.configure(visual={**SMALL["visual"], "features": None})
    assert checkout.planned()["resemble dm"] == 1
    checkout.configure(data={**yaml.safe_load((checkout.root / "config.yaml").read_text())["data"], "public": None})
    changed = checkout.snakemake("all", "--dry-run", "--cores", "1", check=False)
    assert "public" in changed  # refused, as the network that compares images learns from public data
