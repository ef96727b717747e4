"""Kept results say what made them."""

import json
import subprocess
from pathlib import Path

import pytest

from coalmine import keep
from coalmine.artefacts import write_json
from coalmine.errors import CoalmineError


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run in a repository of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "src").mkdir()
    (tmp_path / "src/code.py").write_text("x = 1\n")
    for command in ("init -q", "add src", "-c user.name=a -c user.email=a@b commit -qm first"):
        subprocess.run(["git", *command.split()], check=True)
    folder = tmp_path / "results/demo"
    for shadow, seconds in (("000", 1.5), ("001", 2.5)):
        measured = {
            "seconds": seconds,
            "device": "a card",
            "versions": {"numpy": "2"},
            "finished": f"2026-01-0{shadow}",
        }
        write_json(folder / f"models/undefended/{shadow}.json", measured)
    write_json(folder / "metrics/undefended.json", {"code": "abc"})
    for name in ("table1.csv", "dpdiff_table1.csv", "dpdiff_samples.png", "config.json", "notes.txt"):
        (folder / name).write_text("a\n1\n")
    return folder


def test_tables_are_kept_with_commit_code_and_cost(run: Path, tmp_path: Path) -> None:
    keep.keep(run, tmp_path / "kept")
    kept = {"table1.csv", "dpdiff_table1.csv", "dpdiff_samples.png", "config.json", "provenance.json"}
    assert {path.name for path in (tmp_path / "kept").iterdir() if path.is_file()} == kept
    assert (tmp_path / "kept/table1.csv").read_text() == "a\n1\n"
    record = json.loads((tmp_path / "kept/provenance.json").read_text())
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert record["commit"] == head
    assert record["code"] == {"undefended": "abc"}
    assert record["cost"]["device_seconds"] == {"models": 4.0}
    assert record["cost"]["devices"] == ["a card"]
    assert record["cost"]["finished"] == "2026-01-0001"


def test_results_of_changed_sources_are_not_kept_under_their_commit(run: Path, tmp_path: Path) -> None:
    (tmp_path / "src/code.py").write_text("x = 2\n")
    with pytest.raises(CoalmineError, match=r"sources differ from their commit(.|\n)*src/code\.py"):
        keep.keep(run, tmp_path / "kept")


def test_a_run_without_tables_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CoalmineError, match="no finished table"):
        keep.keep(tmp_path, tmp_path / "kept")
