"""Modules that the configuration names: methods, data sources, tables, figures. A name is the name of a file.

Not imported by any stage, so that what is checked here retrains nothing.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from types import ModuleType
from typing import Any, Literal, get_args

from coalmine.errors import CoalmineError
from coalmine.sections import Method

PACKAGES = {
    "methods": "coalmine.methods",
    "data": "coalmine.data.sources",
    "tables": "coalmine.reporting",
    "figures": "coalmine.reporting",
}

Kind = Literal["synthesize", "train", "distil", "reuse"]
"""What a method file is: the function that it defines, or ``reuse``, whose settings name another method's ``set``."""


def available(section: str) -> list[str]:
    """Names of the modules that a section of the configuration may use."""
    return [name for name in files(section) if _objection(section, name) is None]


def load(section: str, name: str) -> ModuleType:
    """Import a module that a section of the configuration names.

    Raises:
        CoalmineError: it cannot be imported, or lacks what such a module must define.
    """
    objection = _objection(section, name)
    if objection:
        raise CoalmineError(objection)
    return _import(section, name)


def _objection(section: str, name: str) -> str | None:
    """Say why a module cannot serve a section, or None."""
    file = f"{folder(section)}/{name}.py"
    try:
        module = _import(section, name)
    except Exception as error:  # a module may be anyone's, and fail in any way
        return f"{file} cannot be imported ({type(error).__name__}: {error})."
    required = {"methods": ("Settings",), "data": ("Settings", "load", "files", "public_objection")}
    missing = [name for name in required.get(section, ("Settings", "build", "NEEDS")) if not hasattr(module, name)]
    if missing:
        return f"{file} is none of the {section}: it does not define {', '.join(missing)}."
    if section == "methods":
        return _objection_to_method(module, file)
    if section in ("tables", "figures"):
        returns = module.build.__annotations__.get("return")
        draws = str(returns).startswith("tuple")
        if returns and draws != (section == "figures"):
            return f"{file} makes a {'figure' if draws else 'table'}; move it to `{'figures' if draws else 'tables'}`."
    return None


def _objection_to_method(module: ModuleType, file: str) -> str | None:
    """Say why a module is no method file, or None."""
    kinds, fields = _kinds(module), module.Settings.model_fields
    if len(kinds) != 1:
        return (
            f"{file} must define exactly one of `synthesize`, `train` and `distil`, or none of them and Settings with "
            f"a field `set`, see {folder('methods')}/__init__.py."
        )
    if kinds == ["distil"] and "teacher" not in fields:
        return f"{file} distils models of another method, so its Settings need `teacher`, the name of that method."
    for needs_data in ("guarantee", "uses_public"):
        if hasattr(module, needs_data) and kinds[0] in ("distil", "reuse"):
            return f"{file} defines `{needs_data}`, but is given neither private nor public data; leave it out."
    if hasattr(module, "fit") and (kinds != ["synthesize"] or "fit" not in fields):
        return (
            f"{file} defines `fit`, whose generative models only `synthesize` can use: it must define that, too, and "
            "its Settings need a block `fit`."
        )
    private = _fit_fields(module) if hasattr(module, "fit") else fields
    if hasattr(module, "guarantee") and "clip" not in private:
        return f"{file} claims differential privacy by its `guarantee`, so its Settings need `clip`."
    return None


def _fit_fields(module: ModuleType) -> Mapping[str, Any]:
    """Return the fields of the block ``fit`` of a method's settings."""
    annotation = module.Settings.model_fields["fit"].annotation
    blocks = [one for one in (annotation, *get_args(annotation)) if hasattr(one, "model_fields")]
    return blocks[0].model_fields if blocks else {}


def _kinds(module: ModuleType) -> list[Kind]:
    """Return what kinds of method file a module could be: a sound one is of one kind."""
    functions: tuple[Kind, ...] = ("synthesize", "train", "distil")
    defined = [name for name in functions if hasattr(module, name)]
    return defined or (["reuse"] if "set" in module.Settings.model_fields else [])


def _import(section: str, name: str) -> ModuleType:
    return importlib.import_module(f"{PACKAGES[section]}.{name}")


def files(section: str) -> list[str]:
    """Names of the files in the folder of a section, whether or not they serve it."""
    package = importlib.import_module(PACKAGES[section])
    return [module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_")]


def folder(section: str) -> str:
    """Return the folder of a section's modules, as people write it."""
    return "src/" + PACKAGES[section].replace(".", "/")


def kind(method: Method) -> Kind:
    """Return of which kind the file of a method is."""
    (only,) = _kinds(load("methods", method.module))
    return only


def claims_privacy(method: Method) -> bool:
    """Tell whether a method has a guarantee of differential privacy, vacuous or not."""
    return hasattr(load("methods", method.module), "guarantee")


def uses_public(method: Method) -> bool:
    """Tell whether a method needs the run's public data with its settings."""
    module = load("methods", method.module)
    return hasattr(module, "uses_public") and bool(module.uses_public(method.settings))


def experts_of(method: Method) -> str | None:
    """Return the entry of ``experts`` that a method matches, if it matches one."""
    name: str | None = getattr(method.settings, "experts", None)
    return name


def teacher_of(method: Method) -> str | None:
    """Return the method whose models a data-free method distils; None for any other kind of method."""
    # A field of that name is something else in other methods' settings, such as RDED's.
    name: str | None = getattr(method.settings, "teacher", None) if kind(method) == "distil" else None
    return name


def generator_of(method: Method) -> str | None:
    """Return the method whose generative models sets are drawn from: its own name, another's, or None."""
    if not hasattr(load("methods", method.module), "fit"):
        return None
    other: str | None = getattr(method.settings, "generator", None)
    return other or method.name


def pretrained_of(method: Method) -> str | None:
    """Return the entry of ``pretrained`` that the fitting of a method's generative models starts from, if any."""
    name: str | None = getattr(getattr(method.settings, "fit", None), "pretrained", None)
    return name


def set_of(method: Method) -> str | None:
    """Return the method whose synthetic sets the models learn from: its own name, another's, or None."""
    reused: str | None = getattr(method.settings, "set", None)
    return {"train": None, "reuse": reused}.get(kind(method), method.name)
