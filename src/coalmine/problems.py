"""What is wrong with a configuration, in the words of ``config.yaml``: paths as people wrote them, and suggestions.

Not imported by any stage, so that a better message retrains nothing.
"""

from __future__ import annotations

import difflib
import json
import re
import typing
from collections.abc import Iterable
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, TypeAdapter, ValidationError

from coalmine.errors import CoalmineError


class Problem(NamedTuple):
    """One thing wrong with a configuration."""

    path: str
    message: str


class ConfigurationError(CoalmineError):
    """Everything that is wrong with a configuration, at once."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        told = (Problem(_printable(path), _printable(message)) for path, message in problems)
        self.problems = tuple(dict.fromkeys(told))
        count = f"{len(self.problems)} error{'s' if len(self.problems) > 1 else ''}"
        lines = "".join(f"\n  {path}: {message}" for path, message in self.problems)
        super().__init__(f"The configuration has {count}; nothing was started.{lines}")


def read(model: Any, value: Any, path: str) -> tuple[Any, list[Problem]]:
    """Validate plain data against a model.

    Args:
        model: a class of settings or an annotation.
        value: blocks with text keys, lists, texts, numbers, booleans and null.
        path: where the value stands in the configuration; empty for the whole.

    Returns:
        What was read, or None if there are problems; and the problems.
    """
    try:
        # By way of JSON, so that strict mode takes YAML's lists for tuples.
        return TypeAdapter(model).validate_json(json.dumps(value)), []
    except ValidationError as error:
        details = error.errors(include_url=False)
    unknown = [_steps(value, one) for one in details if one["type"] == "extra_forbidden" and one["input"] is None]
    # An overlay that changes the module or the model removes settings of the former one by null.
    removed = [steps for steps in unknown if not _near(steps[-1], _known_keys(model, value, steps))]
    if removed:
        for steps in removed:
            value = _without(value, steps)
        return read(model, value, path)
    return None, [_problem(model, value, path, one) for one in details]


def suggestion(name: Any, known: Iterable[str]) -> str:
    """Return ``; did you mean ...?`` for a near miss, else what there is."""
    close = _near(name, known)
    return f"; did you mean {close[0]}?" if close else f"; there is {', '.join(sorted(known)) or 'none'}."


def _problem(model: Any, value: Any, path: str, details: Any) -> Problem:
    """Say in the words of ``config.yaml`` what pydantic found."""
    steps = _steps(value, details)
    where = ".".join(map(str, [path, *steps] if path else steps)) or "(top)"
    kind, given = details["type"], details["input"]
    match kind:
        case "missing":
            return Problem(where, "is required.")
        case "extra_forbidden":
            return Problem(where, f"is not a known key{suggestion(steps[-1], _known_keys(model, value, steps))}")
        case "union_tag_not_found" | "union_tag_invalid":
            known = [block.model_fields["name"].default for block in _allowed_at(model, value, steps)]
            what = "is required" if kind == "union_tag_not_found" else f"is unknown{_quoted(given['name'])}"
            return Problem(f"{where}.name", f"{what}{suggestion(given.get('name', ''), known)}")
        case "value_error":
            return Problem(where, f"{details['msg'].removeprefix('Value error, ').rstrip('.')}.")
        case "string_pattern_mismatch":
            message = "may hold lower-case letters, digits and hyphens only"
        case "too_short":
            message = "must not be empty"
        case _:
            message = _WORDING.get(kind) or details["msg"].removeprefix("Input ").rstrip(".")
    return Problem(where, f"{message}{_quoted(given)}.{_yaml_hint(kind, given)}")


_WORDING = {
    "dict_type": "should be a block of `key: value`",
    "model_type": "should be a block of `key: value`",
    "tuple_type": "should be a list",
    "string_type": "should be text",
    "int_type": "should be a whole number",
    "int_from_float": "should be a whole number",
    "float_type": "should be a number",
    "bool_type": "should be true or false",
}
"""Kinds of pydantic's errors that it tells in the words of Python or JSON."""


def _steps(value: Any, details: Any) -> list[Any]:
    """Return the keys that lead to an error, without what pydantic puts between them: tags of unions, ``[key]``."""
    steps = []
    for step in details["loc"]:
        if (isinstance(value, dict) and step in value) or (isinstance(value, list) and isinstance(step, int)):
            steps.append(step)
            value = value[step]
    return [*steps, details["loc"][-1]] if details["type"] == "missing" else steps


def _without(value: Any, steps: list[Any]) -> Any:
    """Return a copy of nested blocks without the key that ``steps`` lead to."""
    first, *rest = steps
    if isinstance(value, list):
        return [_without(entry, rest) if number == first else entry for number, entry in enumerate(value)]
    kept = {key: entry for key, entry in value.items() if key != first}
    return {**kept, first: _without(value[first], rest)} if rest else kept


def _known_keys(model: Any, value: Any, steps: list[Any]) -> Iterable[str]:
    """Return the keys that are known beside the unknown one that ``steps`` lead to."""
    return _allowed_at(model, value, steps[:-1])[0].model_fields


def _allowed_at(model: Any, value: Any, steps: list[Any]) -> list[type[BaseModel]]:
    """Return the blocks of settings that ``model`` allows where ``steps`` lead, the one that is meant first."""
    for step in steps:
        if typing.get_origin(model) is Annotated:
            model = typing.get_args(model)[0]
        if typing.get_origin(model) is dict:
            model = typing.get_args(model)[1]
        else:
            model = _allowed_at(model, value, [])[0].model_fields[step].annotation
        value = value[step]
    if isinstance(model, type) and issubclass(model, BaseModel):
        return [model]
    blocks = [block for part in typing.get_args(model) for block in _allowed_at(part, value, [])]
    name = value.get("name") if isinstance(value, dict) else None
    return sorted(blocks, key=lambda block: block.model_fields["name"].default != name) if len(blocks) > 1 else blocks


def _printable(text: str) -> str:
    """Return a text for a terminal, with what would change how it shows written as escapes."""
    shown = (letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)
    return "".join(shown)


def _quoted(given: Any) -> str:
    return "" if isinstance(given, dict | list) else f" (found {json.dumps(given, ensure_ascii=False)})"


def _yaml_hint(kind: str, given: Any) -> str:
    """Explain what YAML silently made of a value."""
    if (kind == "string_type" and isinstance(given, bool | int | float)) or given in ("True", "False"):
        return " Put text in quotes: YAML reads yes, no, on and off as true and false, and 012 as the number 10."
    if kind in ("int_type", "float_type") and isinstance(given, str):
        exponent = re.fullmatch(r"([-+]?\d+)(\.\d*)?e([-+]?)(\d+)", given, flags=re.IGNORECASE)
        if exponent and kind == "int_type":
            return f" YAML reads {given} as text; write {float(given):.0f}."
        if exponent:
            whole, fraction, sign, power = exponent.groups()
            return f" YAML reads {given} as text; write {whole}{fraction or '.0'}e{sign or '+'}{power}."
        if re.fullmatch(r"[-+]?[\d.]+", given):
            return " Leave out the quotes."
    return ""


def _near(name: Any, known: Iterable[str]) -> list[str]:
    return difflib.get_close_matches(str(name), sorted(known), n=1)
