"""What the stages share that build tables and figures."""

from __future__ import annotations

import argparse
import importlib
import json
from types import ModuleType
from typing import Any

from coalmine import checksums
from coalmine.reporting.results import Results, load_results
from coalmine.stages import _command


def determine(arguments: argparse.Namespace, stage: str) -> None:
    """Note beside the files of a table or figure what determines them: they have no place for it inside."""
    spec = arguments.spec
    header = _command.header(stage, spec, f"coalmine.reporting.{spec['name']}")
    for path in arguments.out:
        checksums.determine(path, header)


def load(arguments: argparse.Namespace) -> tuple[ModuleType, Any, Results]:
    """Return the module of a table or figure, its checked settings, and the results of the methods it shows.

    Tables and figures are written into the folder of the run whose results they show.
    """
    module = importlib.import_module(f"coalmine.reporting.{arguments.spec['name']}")
    settings = module.Settings.model_validate_json(json.dumps(arguments.spec["settings"]))
    methods = getattr(settings, "needed", settings.methods)
    facts = ("experts", "generators", "sets", "teachers", "visual")
    known = {name: getattr(settings, name) for name in facts if hasattr(settings, name)}
    return module, settings, load_results(arguments.out[0].parent, methods, **known)
