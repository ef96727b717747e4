"""A real small run in a copy of the sources, made once; each test works on its own copy of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from checkouts import Checkout, copy_sources


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout in which the small run has been made for real."""
    root = tmp_path_factory.mktemp("finished") / "checkout"
    copy_sources(root)
    checkout = Checkout(root)
    checkout.configure()
    checkout.snakemake("all", "--cores", "2")
    return root


@pytest.fixture
def checkout(finished_run: Path, tmp_path: Path) -> Checkout:
    """A copy of the finished run, file times and Snakemake's records included."""
    root = tmp_path / "checkout"
    shutil.copytree(finished_run, root, symlinks=True)
    return Checkout(root)


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep these tests on one worker: they share one finished run."""
    for item in items:
        if "workflow" in str(item.path.parent.name):
            item.add_marker(pytest.mark.xdist_group("workflow"))
