"""Configurations to be priced that are not the run's own: presets, and those of published results."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import yaml

from coalmine.config import Run, check
from coalmine.config import _overlaid as overlaid
from coalmine.errors import CoalmineError
from coalmine.plugins import load
from coalmine.provenance import SOURCE_ROOT

REPOSITORY = SOURCE_ROOT.parent


def preset_run(name: str) -> Run:
    """Return the checked configuration of ``workflow/presets/<name>.yaml`` over ``config.yaml``.

    Raises:
        CoalmineError: there is no such preset, or it is not sound.
    """
    path = REPOSITORY / "workflow" / "presets" / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(one.stem for one in path.parent.glob("*.yaml"))) or "none"
        raise CoalmineError(f"There is no preset {name} ({path}); there is {known}.")
    return check(overlaid(_yaml(REPOSITORY / "config.yaml"), _yaml(path)))


def published_run(folder: Path) -> Run:
    """Return the configuration of a published folder: its ``config.json``, or ``overlay.yaml`` over ``config.yaml``."""
    whole, overlay = folder / "config.json", folder / "overlay.yaml"
    if whole.is_file():
        return check(_at_hand(_as_written(json.loads(whole.read_text(encoding="utf-8")))))
    if overlay.is_file():
        raw = _only(overlaid(_yaml(REPOSITORY / "config.yaml"), _yaml(overlay)), _methods(folder / "table7.csv"))
        return check(_at_hand(raw))
    raise CoalmineError(f"{folder} has neither config.json nor overlay.yaml, so its settings are not known.")


def _yaml(path: Path) -> dict[str, Any]:
    block: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return block


def _methods(table: Path) -> set[str]:
    with table.open(encoding="utf-8", newline="") as file:
        return {row["method"] for row in csv.DictReader(file)}


def _only(raw: dict[str, Any], methods: set[str]) -> dict[str, Any]:
    """Return a configuration with these methods alone: what it says of others may no longer go together."""
    kept = {name: entry for name, entry in raw["methods"].items() if name in methods}
    left_out: dict[str, Any] = {
        "tables": {},
        "figures": {},
        "controls": {},
        "visual": None,
        "quality": None,
        "utility": None,
    }
    return {**raw, "methods": kept, **left_out}


def _as_written(effective: dict[str, Any]) -> dict[str, Any]:
    """Return a whole configuration as people write it: without what a method's file does not take."""
    written: dict[str, Any] = json.loads(json.dumps(effective))
    for entry in written["methods"].values():
        used = getattr(load("methods", entry["module"]), "RECIPE", None)
        if used is not None:
            entry["training"] = {key: value for key, value in entry["training"].items() if key in used}
    return written


def _at_hand(raw: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration whose data need not be there: CIFAR-10 stands for a folder of images that is not."""
    raw = json.loads(json.dumps(raw))
    for role in ("private", "public"):
        source = (raw.get("data") or {}).get(role)
        if source and source.get("module") == "image_folder" and not Path(source["path"]).exists():
            raw["data"][role] = {"module": "cifar10"}
    return raw
