"""Every preset and every target can be planned, and the environments hold the lock's pins."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import yaml
from checkouts import REPOSITORY, Checkout, copy_sources

PRESETS = sorted(path.name for path in (REPOSITORY / "workflow/presets").glob("*.yaml"))
WHOLE = [name for name in PRESETS if not name.startswith("dpdiff-")]
"""Presets with all targets; the others have those of private diffusion models."""
TABLES = (*(f"table{number}" for number in (1, 2, 3, 4, 5, 6, 7)), "dpdiff_table1")
FIGURES = (
    *(f"figure{number}" for number in (1, 3, 4, 5, 6, 7, 8, 9)),
    *(f"dpdiff_{name}" for name in ("figure2", "figure3", "figure4", "samples")),
)
LOCK = (REPOSITORY / "requirements.lock").read_text()


@pytest.mark.parametrize("preset", [None, *WHOLE])
def test_every_target_of_every_preset_can_be_planned(tmp_path: Path, preset: str | None) -> None:
    checkout = Checkout(tmp_path / "checkout")
    copy_sources(checkout.root)
    overlay = ["--configfile", f"workflow/presets/{preset}"] if preset else []
    targets = [f"results/{name}.csv" for name in (*TABLES, *FIGURES)]
    printed = checkout.snakemake(*targets, "--dry-run", "--cores", "1", *overlay)
    jobs = dict(re.findall(r"^(\w+) +(\d+)$", printed, flags=re.MULTILINE))
    assert (int(jobs["publish_table"]), int(jobs["publish_figure"])) == (len(TABLES), len(FIGURES))
    assert ("download_cifar_10_binary" in jobs) == (preset is not None)
    assert ("design_average" in jobs) == (preset == "paper.yaml")


@pytest.mark.parametrize("preset", sorted({*PRESETS} - {*WHOLE}))
def test_the_runs_of_private_diffusion_can_be_planned(tmp_path: Path, preset: str) -> None:
    checkout = Checkout(tmp_path / "checkout")
    copy_sources(checkout.root)
    printed = checkout.snakemake("all", "--dry-run", "--cores", "1", "--configfile", f"workflow/presets/{preset}")
    jobs = dict(re.findall(r"^(\w+) +(\d+)$", printed, flags=re.MULTILINE))
    assert {"account", "pretrain_denoiser", "quality", "sizes", "recipes"} <= jobs.keys()
    named = yaml.safe_load((REPOSITORY / "workflow/presets" / preset).read_text())
    shown = [sum(one is not None for one in named[section].values()) for section in ("tables", "figures")]
    assert [int(jobs["publish_table"]), int(jobs["publish_figure"])] == shown


def generate():
    """The module that writes envs/coalmine.yaml."""
    specification = importlib.util.spec_from_file_location("generate", REPOSITORY / "envs/generate.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_conda_environment_holds_exactly_the_pins_of_the_lock() -> None:
    text = (REPOSITORY / "envs/coalmine.yaml").read_text()
    assert text == generate().environment(LOCK)
    pip = yaml.safe_load(text)["dependencies"][-1]["pip"]
    locked = {line.split("==")[0] for line in LOCK.splitlines() if "==" in line and not line.startswith(" ")}
    assert {pin.split("==")[0] for pin in pip} == locked
    assert len(locked) > 80


def test_the_container_installs_from_the_lock_with_hashes() -> None:
    recipe = (REPOSITORY / "envs/Dockerfile").read_text()
    assert "pip install --no-cache-dir --require-hashes -r requirements.lock" in recipe


def test_every_pin_of_the_lock_has_a_hash_and_no_host_is_named() -> None:
    entries = re.split(r"\n(?=[a-z0-9])", LOCK.strip())
    assert all("--hash=sha256:" in entry for entry in entries)
    assert "://" not in LOCK
    assert "--index-url" not in LOCK


def test_the_lock_satisfies_what_the_project_asks_for() -> None:
    import tomllib

    from packaging.requirements import Requirement

    pinned = {match[1]: match[2] for match in re.finditer(r"^([a-z0-9-]+)==([^ ;\\]+)", LOCK, flags=re.MULTILINE)}
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    itself = [one for one in map(Requirement, extras["dev"]) if one.name == project["name"]]
    assert {extra for one in itself for extra in one.extras} == {*extras} - {"dev"}, "the lock holds all extras"
    wanted_by = [*map(Requirement, [*project["dependencies"], *(one for own in extras.values() for one in own)])]
    assert len(wanted_by) > 20
    for wanted in wanted_by:
        if wanted in itself:
            continue
        assert wanted.specifier.contains(pinned[wanted.name.lower()]), wanted
