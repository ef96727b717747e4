"""What the tests of tables and figures share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from results_folder import ResultsFolder, known_metrics


@pytest.fixture
def folder(tmp_path: Path) -> ResultsFolder:
    """An empty results folder."""
    return ResultsFolder(tmp_path / "results" / "test")


@pytest.fixture
def metrics_of() -> Callable[[str], dict[str, Any]]:
    """Return known metrics of a method, to be changed by the test."""
    return known_metrics
