"""The small run as its users meet it: files, bytes, crashes and messages."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from checkouts import SMALL, Checkout

from coalmine.accounting import pld_epsilon
from coalmine.artefacts import place, read_json, read_npz, read_safetensors, write_json
from coalmine.mechanism import Mechanism
from coalmine.run_files import read_design


def files(root: Path, *patterns: str) -> dict[str, bytes]:
    found = [path for pattern in patterns for path in root.glob(pattern) if path.is_file()]
    paths = [path for path in found if ".sha256" not in path.parts]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


ARTEFACTS = (
    "data/**/*.npy",
    "privacy/*.json",
    "audit/*",
    "experts/*/*.safetensors",
    "pretrained/*.safetensors",
    "visual/*",
    "synthetic/*/*.npz",
    "models/*/*.safetensors",
    "logits/*/*.npz",
    "scores/*.npz",
)


def test_every_target_is_a_file_with_content(finished_run: Path) -> None:
    names = [f"{table}.{suffix}" for table in SMALL["tables"] for suffix in ("csv", "html", "tex")]
    names += [f"{figure}.{suffix}" for figure in SMALL["figures"] for suffix in ("png", "pdf", "csv")]
    for name in names:
        assert (finished_run / "results" / name).stat().st_size > 100, name
    table = pd.read_csv(finished_run / "results/table1.csv")
    assert list(table["method"]) == SMALL["tables"]["table1"]["methods"]


def test_artefacts_carry_what_determines_them(finished_run: Path) -> None:
    root = finished_run / "results/small"
    header, _ = read_safetensors(root / "models/random/003.safetensors")
    assert (header["stage"], header["shadow"], header["spec"]["method"]) == ("train", 3, "random")
    synthetic, _ = read_npz(root / "synthetic/random/003.npz")
    assert synthetic["inputs"]["design"] == header["inputs"]["design"]
    logits, _ = read_npz(root / "logits/random/003.npz")
    assert logits["inputs"]["model"] == header
    measured = json.loads((root / "models/random/003.json").read_text())
    assert {"seconds", "device", "peak_memory_mb", "versions", "finished", "bytes"} <= measured.keys()


def test_a_guarantee_goes_from_its_account_to_training_scores_and_table(finished_run: Path) -> None:
    root = finished_run / "results/small"
    account = read_json(root / "privacy/private.json")
    # 120 samples, 24 of them audited and so in half of the models: 108 on average.
    mechanism = {"noise_multiplier": 2.0, "sampling_rate": 32 / 108, "steps": 4}
    assert account["population"] == 108
    assert account["guarantee"]["mechanism"] == mechanism
    assert account["guarantee"]["epsilon"] == pytest.approx(pld_epsilon(Mechanism(**mechanism), 1e-5))
    header, _ = read_safetensors(root / "models/private/002.safetensors")
    assert header["inputs"]["mechanism"] == mechanism
    claimed = read_json(root / "metrics/private.json")["claimed"]
    assert claimed == {
        **mechanism,
        "epsilon": account["guarantee"]["epsilon"],
        "delta": 1e-5,
        "accountant": "pld",
        "clip": 1.0,
        "note": None,
    }
    for unprotected in ("undefended", "shuffled"):
        assert set(read_json(root / f"metrics/{unprotected}.json")["claimed"].values()) == {None}
    table = pd.read_csv(finished_run / "results/table1.csv").set_index("method")
    assert table.loc["private", "claimed_epsilon"] == pytest.approx(claimed["epsilon"])
    assert np.isinf(table.loc["undefended", "claimed_epsilon"])
    assert pd.read_csv(finished_run / "results/table4.csv")["baseline"].tolist() == ["private"] * 3


def test_a_guarantee_of_another_method_or_design_is_refused(checkout: Checkout) -> None:
    account = checkout.root / "results/small/privacy/private.json"
    for field, value, told in (("spec", {"method": "other"}, "other"), ("inputs", {"design": "0"}, "design")):
        shutil.rmtree(checkout.root / "results/small/models/private", ignore_errors=True)
        content = read_json(account)
        write_json(account, content | {field: content[field] | value})
        printed = checkout.snakemake(
            "results/small/models/private/000.safetensors", "--cores", "1", "--rerun-triggers", "mtime", check=False
        )
        assert "error: results/small/privacy/private.json" in printed
        assert told in printed
        write_json(account, content)


def test_no_model_and_no_coreset_saw_a_sample_that_its_membership_excludes(finished_run: Path) -> None:
    root = finished_run / "results/small"
    labels = np.load(root / "data/private/labels.npy")
    design = read_design(root / "audit/canaries.csv", root / "audit/membership.npy", labels)
    for method in ("random", "forgetting"):
        for model in range(6):
            _, arrays = read_npz(root / f"synthetic/{method}/{model:03d}.npz")
            excluded = design.index[~design.membership[:, model]]
            assert not np.isin(arrays["source"], excluded).any()
            wrong = dict(zip(design.index.tolist(), design.canary_label.tolist(), strict=True))
            expected = [wrong.get(index, labels[index]) for index in arrays["source"].tolist()]
            assert np.array_equal(arrays["labels"], expected)


def test_the_same_command_gives_the_same_bytes(checkout: Checkout) -> None:
    before = files(checkout.root / "results/small", *ARTEFACTS)
    shutil.rmtree(checkout.root / "results")
    # Another batch size on the way: it must not matter either.
    checkout.configure(execution={**SMALL["execution"], "batch": 2})
    checkout.snakemake("all", "--cores", "2")
    after = files(checkout.root / "results/small", *ARTEFACTS)
    assert len(before) == 162
    assert [name for name in before if before[name] != after.get(name)] == []


def test_models_finished_before_a_crash_are_kept(checkout: Checkout) -> None:
    results = checkout.root / "results/small"
    shutil.rmtree(results / "models/undefended")
    # The fifth model of the batch cannot be trained: four are finished by then.
    checkout.configure(execution={**SMALL["execution"], "batch": 6})
    checkout.edit(
        "src/coalmine/stages/train.py",
        "shadow = batch.waiting[trained.position]",
        "shadow = batch.waiting[trained.position]; assert shadow != 4",
    )
    target = "results/small/models/undefended/000.safetensors"
    printed = checkout.snakemake(target, "--cores", "1", check=False)
    assert "AssertionError" in printed
    assert not list((results / "models/undefended").glob("*.safetensors"))
    # The same code again, without the accident (an environment that now has memory, say).
    checkout.edit("src/coalmine/stages/train.py", "assert shadow != 4", "assert shadow != 99")
    checkout.snakemake(target, "--cores", "1")
    told = (results / "logs/train/undefended-000.log").read_text()
    assert "finished by an interrupted job" not in told, "other code must not take the files over"


def test_an_interrupted_batch_goes_on_where_it_stopped(checkout: Checkout) -> None:
    folder = checkout.root / "results/small/models/undefended"
    stash = folder / ".finished"
    stash.mkdir()
    before = files(folder, "*.safetensors")
    for number in range(3):
        for suffix in ("safetensors", "json"):
            (folder / f"{number:03d}.{suffix}").rename(stash / f"{number:03d}.{suffix}")
    # A file of another spec must not be taken over.
    shutil.copy(folder / "003.safetensors", stash / "002.safetensors")
    checkout.snakemake("results/small/models/undefended/000.safetensors", "--cores", "1")
    told = (checkout.root / "results/small/logs/train/undefended-000.log").read_text()
    assert "2 of 3 were finished by an interrupted job and are kept" in told
    assert files(folder, "*.safetensors") == before
    assert not stash.exists()


def test_an_artefact_of_another_design_is_refused_by_name(checkout: Checkout) -> None:
    folder = checkout.root / "results/small/logits/random"
    place(folder / "001.npz", folder / "002.npz")
    printed = checkout.snakemake(
        "results/small/metrics/random.json", "--cores", "1", "--forcerun", "score", check=False
    )
    assert "002.npz was made with shadow = 1, but 2 is needed here" in printed


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        ({"shadows": 5}, ["shadows: is 5; an even number is needed"]),
        ({"shadows": 4}, ["shadows: is 4; LiRA needs at least 6"]),
        ({"audit": {"canaries": 200}}, ["audit.views: is required", "200 samples"]),
        ({"sedd": 1}, ["sedd: is not a known key; did you mean seed?"]),
    ],
)
def test_a_bad_configuration_is_told_before_any_job(checkout: Checkout, changes: dict, messages: list[str]) -> None:
    checkout.configure(**changes)
    printed = checkout.snakemake("--dry-run", "--cores", "1", check=False)
    assert "nothing was started" in printed
    assert messages[0] in printed
