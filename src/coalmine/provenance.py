"""What a result depends on: canonical specs and code hashes (standard library only).

Snakemake sees files and parameters, never Python imports. Every rule therefore carries two strings: ``spec``, the
sorted JSON of just the configuration that its stage uses, and ``code``, a hash of the stage's import closure inside
this package. Comments, docstrings and layout are left out of the hash, and it is the same on every CPython from 3.11.
"""

from __future__ import annotations

import ast
import hashlib
import json
from functools import cache
from importlib.util import resolve_name
from pathlib import Path
from typing import Any

from coalmine.errors import CoalmineError

SOURCE_ROOT = Path(__file__).resolve().parents[1]

_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_NOT_MEANING = frozenset({"kind", "type_comment", "type_ignores"})


def canonical_json(value: Any) -> str:
    """Return sorted, compact JSON: equal values give equal strings, so a string comparison is a value comparison."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def code_hash(*modules: str) -> str:
    """Hash the import closure of ``modules`` inside this package (16 hexadecimal digits).

    Modules that are imported by a computed name, as method files are, must be given explicitly.

    Raises:
        CoalmineError: a module has no file, or a file does not parse.
    """
    for module in modules:
        if _path_of(module) is None:
            expected = SOURCE_ROOT.joinpath(*module.split(".")).with_suffix(".py")
            raise CoalmineError(f"There is no module {module}: {expected} does not exist.")
    digests: dict[str, str] = {}
    waiting = {name for module in modules for name in _with_parents(module)}
    while waiting:
        name = waiting.pop()
        digests[name], imported = _read_module(name)
        waiting |= imported - digests.keys()
    return hashlib.sha256(canonical_json(digests).encode()).hexdigest()[:16]


def _path_of(module: str) -> Path | None:
    stem = SOURCE_ROOT.joinpath(*module.split("."))
    candidates = (stem / "__init__.py", stem.with_suffix(".py"))
    return next((path for path in candidates if path.is_file()), None)


def _with_parents(module: str) -> list[str]:
    """``a.b.c`` -> ``a``, ``a.b``, ``a.b.c``: importing a module runs its packages' ``__init__`` too."""
    parts = module.split(".")
    return [".".join(parts[: end + 1]) for end in range(len(parts))]


def _parse(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    except SyntaxError as error:
        raise CoalmineError(f"{path}, line {error.lineno}: {error.msg}. Mend the file and run again.") from error


@cache
def _read_module(module: str) -> tuple[str, frozenset[str]]:
    """Return the digest of one module and the modules of this package that it imports."""
    path = _path_of(module)
    assert path is not None, module
    tree = _parse(path)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    imported: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package) if node.level else node.module or ""
            imported.add(base)
            # ``from package import name`` imports a module where ``name`` is one.
            imported.update(f"{base}.{alias.name}" for alias in node.names)
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    digest = hashlib.sha256(repr(_canonical(tree)).encode()).hexdigest()
    inside = {name for target in imported for name in _with_parents(target) if _path_of(name)}
    return digest, frozenset(inside)


def _canonical(node: Any) -> Any:
    """Return a nested structure that depends on the meaning of the code only.

    ``ast.dump`` differs between Python versions in how it shows empty and newly added fields, so empty fields and
    those without meaning are dropped here.
    """
    if isinstance(node, ast.AST):
        fields = [
            (name, _canonical(value))
            for name, value in ast.iter_fields(node)
            if value is not None and value != [] and name not in _NOT_MEANING
        ]
        return type(node).__name__, fields
    if isinstance(node, list):
        return [_canonical(item) for item in node]
    return repr(node)
