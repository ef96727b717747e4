"""What earlier runs took, and the profile that turns the display on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yte
from snakemake_interface_logger_plugins.registry import LoggerPluginRegistry

from snakemake_logger_plugin_coalmine.records import Records

PROFILE = Path(__file__).resolve().parents[2] / "profiles/default/config.yaml"


def note(root: Path, name: str, seconds: object) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"seconds": seconds}))


def test_a_method_is_expected_to_take_the_median_of_its_shadow_models(tmp_path: Path) -> None:
    for shadow, seconds in enumerate((1.0, 2.0, 60.0)):
        note(tmp_path, f"models/dm/{shadow:03d}.json", seconds)
        note(tmp_path, f"synthetic/dm/{shadow:03d}.json", 10 * seconds)
    note(tmp_path, "models/random/000.json", 5.0)
    expected = Records(tmp_path).expected_seconds
    assert expected("train", "dm") == 2.0
    assert expected("synthesize", "dm") == 20.0
    assert expected("distil", "dm") == 22.0  # makes both
    assert expected("train", "") == 3.5
    assert expected("train", "absent") is None
    assert expected("score", "dm") is None


def test_what_is_no_measurement_is_no_record(tmp_path: Path) -> None:
    for shadow, seconds in enumerate(("4", None, -1.0, True, 0)):
        note(tmp_path, f"models/dm/{shadow:03d}.json", seconds)
    (tmp_path / "models/dm/009.json").write_text('{"seconds": 3')
    (tmp_path / "models/dm/010.json").write_text("[]")
    assert Records(tmp_path).expected_seconds("train", "dm") is None


def test_records_survive_the_files_that_snakemake_removes_when_a_job_begins(tmp_path: Path) -> None:
    note(tmp_path, "models/dm/000.json", 7.0)
    records = Records(tmp_path)
    assert records.expected_seconds("train", "dm") == 7.0
    (tmp_path / "models/dm/000.json").unlink()
    assert records.expected_seconds("train", "dm") == 7.0


def test_the_profile_names_the_display_only_where_snakemake_finds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def profile() -> dict[str, object]:
        with PROFILE.open() as stream:
            return dict(yte.process_yaml(stream, require_use_yte=True))

    assert profile()["logger"] == ["coalmine"]
    monkeypatch.setattr(LoggerPluginRegistry(), "plugins", {})
    assert "logger" not in profile()
    assert profile()["quiet"] == ["host", "reason", "rules"]
