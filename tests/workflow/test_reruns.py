"""What reruns when: each line of the promise, proved on a real small run."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
import yaml
from checkouts import SMALL, Checkout, copy_sources

CORESET = "src/coalmine/methods/coreset.py"
REPORTS = Counter({"table": 2, "figure": 2, "publish_table": 2, "publish_figure": 2, "all": 1})


def downstream(method: str, *, synthetic: bool = True) -> Counter[str]:
    """All jobs of one method: two batches a stage, and its score."""
    stages = (["synthesize"] if synthetic else []) + ["train", "logits"]
    return Counter({f"{stage} {method}": 2 for stage in stages} | {f"score {method}": 1})


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
    assert jobs == downstream("random") + downstream("forgetting") + REPORTS


def test_the_code_of_a_method_that_trains_itself_reruns_only_that_method(checkout: Checkout) -> None:
    checkout.edit(
        "src/coalmine/methods/undefended.py",
        "    return setup.train(",
        "    shadows = [*shadows]\n    return setup.train(",
    )
    jobs = checkout.planned()
    # The null control scores the logits of undefended models; figure 5 does not show them.
    reports = REPORTS - Counter({"figure": 1, "publish_figure": 1})
    assert jobs == downstream("undefended", synthetic=False) + Counter({"score shuffled": 1}) + reports


def test_a_change_of_the_training_loop_retrains_all_but_keeps_data_and_design(checkout: Checkout) -> None:
    checkout.edit("src/coalmine/training/sgd.py", "class SGD", "UNUSED = 1\n\n\nclass SGD")
    jobs = checkout.planned()
    assert jobs["train undefended"] == jobs["train random"] == 2
    assert not {"prepare_private", "design_worst"} & jobs.keys()


def test_a_private_methods_settings_rerun_its_account_and_it_alone(checkout: Checkout) -> None:
    private = {**SMALL["methods"]["private"], "steps": 5}
    checkout.configure(methods={**SMALL["methods"], "private": private})
    expected = downstream("private", synthetic=False) + Counter({"account private": 1, "configuration": 1})
    # Neither figure shows the method.
    assert checkout.planned() == expected + REPORTS - Counter({"figure": 2, "publish_figure": 2})


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
    checkout.edit("src/coalmine/audit/roc.py", "\ndef auc(", "\nUNUSED = 1\n\n\ndef auc(")
    scores = Counter({f"score {method}": 1 for method in ("undefended", "random", "forgetting", "private", "shuffled")})
    assert checkout.planned() == scores + REPORTS


def test_a_hyper_parameter_reruns_that_method_only(checkout: Checkout) -> None:
    methods = {**SMALL["methods"], "forgetting": {**SMALL["methods"]["forgetting"], "scoring_epochs": 3}}
    checkout.configure(methods=methods)
    assert checkout.planned() == downstream("forgetting") + REPORTS + Counter({"configuration": 1})


def test_two_swapped_values_rerun_both_methods(checkout: Checkout) -> None:
    methods = SMALL["methods"]
    methods = {
        **methods,
        "random": {**methods["random"], "selection": "forgetting", "scoring_epochs": 2},
        "forgetting": {**methods["forgetting"], "selection": "random"},
    }
    checkout.configure(methods=methods)
    jobs = checkout.planned()
    assert jobs == downstream("random") + downstream("forgetting") + REPORTS + Counter({"configuration": 1})


def test_swapped_values_within_one_spec_are_seen(checkout: Checkout) -> None:
    # The number of canaries and of clean samples trade places: the set of values in the spec stays the same.
    checkout.configure(methods={**SMALL["methods"], "random": {**SMALL["methods"]["random"], "scoring_epochs": 5}})
    before = checkout.planned()
    assert before == downstream("random") + REPORTS + Counter({"configuration": 1})
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
    expected = downstream("mine") + Counter({"table": 1, "publish_table": 1, "configuration": 1, "all": 1})
    assert checkout.planned() == expected


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
    assert clone.planned() == downstream("random") + downstream("forgetting") + REPORTS


def test_a_deleted_final_table_is_rebuilt_from_what_is_there(checkout: Checkout) -> None:
    (checkout.root / "results/table1.csv").unlink()
    assert checkout.planned(target="results/table1.csv") == Counter({"publish_table": 1})
