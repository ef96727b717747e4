"""A small run of diffusion methods: what they make, and what reruns when."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from checkouts import Checkout, copy_sources

from coalmine.artefacts import read_json, read_npz, read_safetensors

pytestmark = pytest.mark.xdist_group("diffusion")  # what they share takes long to make

METHODS = {
    "undefended": {"module": "undefended"},
    "tuned": {"module": "diffusion", "fit": {"pretrained": "fonts", "steps": 2}, "strength": 0.5, "levels": 2},
    "drawn": {"module": "diffusion", "generator": "tuned", "images": 20, "levels": 2},
    "private": {
        "module": "dpdiffusion",
        "fit": {"pretrained": "fonts", "noise_multiplier": 2.0, "steps": 2, "batch_size": 16, "views": 2},
        "images": 24,
        "levels": 2,
    },
}
SETS = ["tuned", "drawn", "private"]
RUN = {
    "pretrained": {
        "fonts": {
            "network": {"width": 4, "multipliers": [1, 1], "blocks": 1},
            "objective": {"name": "edm"},
            "steps": 2,
            "batch_size": 8,
        }
    },
    "methods": METHODS,
    "controls": {},
    "experts": {},
    "quality": {"shadows": 2, "images": 20, "neighbours": 2},
    "utility": {
        "shadows": 2,
        "sizes": [10, 20],
        "recipes": [{"learning_rate": 0.01}, {"learning_rate": 0.1}, {"weight_decay": 0.1}],
    },
    "tables": {
        "table1": {"methods": ["undefended", *SETS]},
        "dpdiff_table1": {"methods": ["private"], "real": "undefended", "data": "digits"},
    },
    "figures": {
        "dpdiff_figure2": {"methods": SETS},
        "dpdiff_figure3": {"methods": ["private"], "real": "undefended"},
        "dpdiff_figure4": {"methods": ["private"]},
        "dpdiff_samples": {"methods": SETS, "columns": 2},
    },
    "execution": {"device": "cpu", "batch": 6},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout in which the run of diffusion methods has been made for real."""
    checkout = Checkout(tmp_path_factory.mktemp("diffusion") / "checkout")
    copy_sources(checkout.root)
    checkout.configure(**RUN)
    checkout.snakemake("all", "--cores", "2")
    return checkout.root


@pytest.fixture
def checkout(made: Path, tmp_path: Path) -> Checkout:
    root = tmp_path / "checkout"
    shutil.copytree(made, root, symlinks=True)
    return Checkout(root)


def changed(method: str, **settings: object) -> dict:
    """The run with other settings of one method; a block's settings replace single ones of that block."""
    own = METHODS[method]
    merged = {key: {**own[key], **new} if isinstance(new, dict) else new for key, new in settings.items()}
    return {**RUN, "methods": {**METHODS, method: {**own, **merged}}}


def drawn_anew(method: str) -> Counter[str]:
    """All jobs that follow from other images of a method, its reports left out."""
    stages = ("synthesize", "train", "logits", "score", "resemble")
    return Counter(f"{stage} {method}" for stage in stages)


REPORTS = ("table", "publish_table", "figure", "publish_figure", "all", "configuration", "quality", "sizes", "recipes")


def planned(checkout: Checkout) -> Counter[str]:
    return Counter({job: count for job, count in checkout.planned().items() if job not in REPORTS})


def test_every_target_of_diffusion_is_a_file_with_content(made: Path) -> None:
    names = [f"{table}.{suffix}" for table in RUN["tables"] for suffix in ("csv", "html", "tex")]
    names += [f"{figure}.{suffix}" for figure in RUN["figures"] for suffix in ("png", "pdf", "csv")]
    for name in names:
        assert (made / "results" / name).stat().st_size > 100, name
    table = pd.read_csv(made / "results/dpdiff_table1.csv")
    assert list(table["method"]) == ["private"]


def test_images_come_from_the_generative_models_that_the_configuration_says(made: Path) -> None:
    root = made / "results/small"
    tuned, _ = read_safetensors(root / "generators/tuned/003.safetensors")
    assert (tuned["stage"], tuned["shadow"]) == ("fit", 3)
    for method in ("tuned", "drawn"):
        header, arrays = read_npz(root / f"synthetic/{method}/003.npz")
        assert header["inputs"]["generator"] == tuned
        assert arrays["images"].dtype == np.uint8
    assert not (root / "generators/drawn").exists()
    _, translated = read_npz(root / "synthetic/tuned/003.npz")
    assert (translated["source"] >= 0).all()
    _, drawn = read_npz(root / "synthetic/drawn/003.npz")
    assert (drawn["source"] == -1).all()
    assert len(drawn["labels"]) == 20
    private, _ = read_safetensors(root / "generators/private/000.safetensors")
    account = read_json(root / "privacy/private.json")
    assert private["inputs"]["mechanism"] == account["guarantee"]["mechanism"]
    metrics = read_json(root / "metrics/private.json")
    assert metrics["claimed"]["epsilon"] == account["guarantee"]["epsilon"]
    assert read_json(root / "metrics/drawn.json")["claimed"]["epsilon"] is None


def test_a_finished_run_of_diffusion_has_nothing_to_do(checkout: Checkout) -> None:
    assert not checkout.planned()


def test_another_strength_draws_again_and_fits_nothing(checkout: Checkout) -> None:
    checkout.configure(**changed("tuned", strength=1.0))
    assert planned(checkout) == drawn_anew("tuned")


def test_another_fit_draws_all_sets_from_it_again(checkout: Checkout) -> None:
    checkout.configure(**changed("tuned", fit={"steps": 3}))
    assert planned(checkout) == Counter(["fit tuned"]) + drawn_anew("tuned") + drawn_anew("drawn")


def test_other_pre_training_fits_all_that_starts_from_it(checkout: Checkout) -> None:
    fonts = {**RUN["pretrained"]["fonts"], "steps": 3}
    checkout.configure(**{**RUN, "pretrained": {"fonts": fonts}})
    expected = Counter(["fit tuned", "fit private", "pretrain_denoiser"])
    assert planned(checkout) == expected + sum(map(drawn_anew, SETS), Counter())


def test_how_classifiers_learn_draws_no_image(checkout: Checkout) -> None:
    training = yaml.safe_load((checkout.root / "config.yaml").read_text())["training"]
    checkout.configure(**RUN, training={**training, "epochs": 3})
    stages = ("train", "logits", "score")
    expected = Counter(f"{stage} {method}" for stage in stages for method in METHODS)
    assert planned(checkout) == expected + Counter(pretrain=1) + Counter(f"resemble {method}" for method in SETS)


def test_the_private_mechanism_is_accounted_anew_with_its_fit_only(checkout: Checkout) -> None:
    checkout.configure(**changed("private", fit={"noise_multiplier": 3.0}))
    assert planned(checkout) == Counter(["account private", "fit private"]) + drawn_anew("private")
    checkout.configure(**changed("private", guidance=1.0))
    assert planned(checkout) == drawn_anew("private")


def test_more_sizes_and_recipes_draw_and_audit_nothing(checkout: Checkout) -> None:
    checkout.configure(**{**RUN, "utility": {**RUN["utility"], "sizes": [5, 10, 20]}})
    jobs = checkout.planned()
    assert (jobs["sizes"], jobs["recipes"], jobs["quality"]) == (1, 0, 0)
    assert not planned(checkout)
    checkout.configure(**{**RUN, "quality": {**RUN["quality"], "neighbours": 1}})
    jobs = checkout.planned()
    assert (jobs["sizes"], jobs["recipes"], jobs["quality"]) == (0, 0, 3)
    assert not planned(checkout)


@pytest.mark.parametrize(("batch", "jobs"), [(16, 1), (5, 4), (32, 1)])
def test_a_method_may_have_fewer_shadow_models_than_the_run(checkout: Checkout, batch: int, jobs: int) -> None:
    methods = {**METHODS, "private": {**METHODS["private"], "shadows": 16}}
    run = {**RUN, "methods": methods, "shadows": 32, "execution": {"device": "cpu", "batch": batch}}
    checkout.configure(**run)
    whole = -(-32 // batch)
    found = checkout.planned()
    for stage in ("fit", "synthesize", "train", "logits"):
        assert (found[f"{stage} private"], found[f"{stage} tuned"]) == (jobs, whole), stage


def test_made_anew_in_other_batches_generators_and_sets_have_the_same_bytes(checkout: Checkout) -> None:
    root = checkout.root / "results/small"
    patterns = ("generators/*/*.safetensors", "synthetic/*/*.npz", "pretrained/fonts.safetensors")
    before = {path: path.read_bytes() for pattern in patterns for path in root.glob(pattern)}
    for folder in ("generators", "synthetic"):
        shutil.rmtree(root / folder)
    (root / "pretrained/fonts.safetensors").unlink()
    checkout.configure(**{**RUN, "execution": {"device": "cpu", "batch": 4}})
    checkout.snakemake(*(str(path.relative_to(checkout.root)) for path in before), "--cores", "2")
    assert [path.name for path, content in before.items() if path.read_bytes() != content] == []
