"""How stages load the method file that a spec names. Light: imports no torch by itself."""

from __future__ import annotations

import importlib
import json
from types import ModuleType
from typing import Any

from pydantic import TypeAdapter

from coalmine.settings import Settings


def method_module(spec: dict[str, Any]) -> str:
    """Return the full name of the method file that a spec names."""
    return f"coalmine.methods.{spec['module']}"


def load_fit(spec: dict[str, Any]) -> tuple[ModuleType, Settings]:
    """Return the method file that a spec names and the checked block of its settings that ``fit`` uses."""
    method = importlib.import_module(method_module(spec))
    annotation: Any = method.Settings.model_fields["fit"].annotation
    own: Settings = TypeAdapter(annotation).validate_json(json.dumps(spec["settings"]["fit"]))
    return method, own


def load_method(spec: dict[str, Any]) -> tuple[ModuleType, Settings]:
    """Return the method file that a spec names and its checked settings."""
    method = importlib.import_module(method_module(spec))
    return method, method.Settings.model_validate_json(json.dumps(spec["settings"]))
