"""A real small run in a copy of the sources, made once for all workers; each test works on its own copy of it."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

import pytest
from checkouts import Checkout, copy_sources


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout in which the small run has been made for real, by the first worker that needs it."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    root, done = shared / "finished/checkout", shared / "finished.done"
    with (shared / "finished.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(root, ignore_errors=True)  # another worker failed to make it
            copy_sources(root)
            checkout = Checkout(root)
            checkout.configure()
            checkout.snakemake("all", "--cores", "2")
            done.touch()
    return root


@pytest.fixture
def checkout(finished_run: Path, tmp_path: Path) -> Checkout:
    """A copy of the finished run, file times and Snakemake's records included."""
    root = tmp_path / "checkout"
    shutil.copytree(finished_run, root, symlinks=True)
    return Checkout(root)
