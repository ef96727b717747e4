"""The sources call nothing that runs what it reads: what no reviewer should have to look for."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = [*sorted((ROOT / "src").rglob("*.py")), *sorted((ROOT / "workflow").rglob("*.py"))]
RULES = [ROOT / "Snakefile", *sorted((ROOT / "workflow/rules").glob("*.smk"))]

MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "joblib",
    "shelve",
    "marshal",
    "code",
    "codeop",
    "pty",
}
MODULES |= {"telnetlib", "ftplib", "xml"}
CALLS = {
    *("eval", "exec", "compile", "__import__", "input", "breakpoint"),
    *("os.system", "os.popen", "os.execv", "os.execvp", "os.spawnl", "os.spawnv", "pty.spawn", "commands.getoutput"),
    *("subprocess.getoutput", "subprocess.getstatusoutput", "tempfile.mktemp", "asyncio.create_subprocess_shell"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "torch.hub.load", "torch.jit.load", "np.fromregex"),
    *("numpy.lib.format.read_array", "np.lib.format.read_array", "np.memmap", "pandas.read_pickle", "pd.read_pickle"),
    *("shutil.unpack_archive", "urllib.request.urlopen", "urlopen", "urllib.request.urlretrieve"),
}
REQUIRED = {
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
    "np.save": ("allow_pickle", False),
    "np.savez": ("allow_pickle", False),
    "torch.load": ("weights_only", True),
}
WITH_TIMEOUT = re.compile(r"requests\.(get|post|put|head|delete|request)")
WITH_FILTER = re.compile(r"\.extract(all)?$")
UNSAFE_WORDS = {"shell": True, "trust_remote_code": True, "verify": False, "allow_pickle": True, "weights_only": False}


def _name(node: ast.expr) -> str:
    """``a.b.c`` of a dotted name, with ``?`` for what is computed."""
    if isinstance(node, ast.Name):
        return node.id
    return f"{_name(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else "?"


def findings(source: str) -> Iterator[str]:
    """Yield what in a source runs what it reads, waits for ever or writes where archives say."""
    tree = ast.parse(source)
    lists = {
        _name(node.targets[0])
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.List)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (f"import {alias.name}" for alias in node.names if alias.name.partition(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom):
            if (node.module or "").partition(".")[0] in MODULES:
                yield f"from {node.module}"
            # Called by its own name, a function would not be known here.
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            yield from sorted(names & {*CALLS, *REQUIRED})
        elif isinstance(node, ast.Call):
            yield from _findings_of_call(node, lists)


def _findings_of_call(node: ast.Call, lists: set[str]) -> Iterator[str]:
    name = _name(node.func)
    given = {word.arg: word.value for word in node.keywords}
    if name in CALLS or name.startswith("os.exec") or name.startswith("os.spawn"):
        yield name
    required = REQUIRED.get(name)
    if required and (required[0] not in given or ast.unparse(given[required[0]]) != str(required[1])):
        yield f"{name} without {required[0]}={required[1]}"
    if WITH_TIMEOUT.fullmatch(name) and "timeout" not in given:
        yield f"{name} without timeout"
    if WITH_FILTER.search(name) and "filter" not in given:
        yield f"{name} without filter"
    for word, value in UNSAFE_WORDS.items():
        if word in given and ast.unparse(given[word]) != str(not value):
            yield f"{name} with {word}={ast.unparse(given[word])}"
    if name.startswith("subprocess.") and not _is_list(node, lists):
        yield f"{name} of no list"
    if name.endswith(".from_pretrained") and "local_files_only" not in given:
        yield f"{name} without local_files_only"
    if name.endswith("snapshot_download") and not {"revision", "allow_patterns"} <= given.keys():
        yield f"{name} without revision and allow_patterns"


def _is_list(node: ast.Call, lists: set[str]) -> bool:
    if _name(node.func) in ("subprocess.CalledProcessError", "subprocess.TimeoutExpired"):
        return True
    return bool(node.args) and (isinstance(node.args[0], ast.List) or _name(node.args[0]) in lists)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_source_calls_nothing_that_runs_what_it_reads(path: Path) -> None:
    assert [*findings(path.read_text())] == []


def test_there_are_sources_to_look_at() -> None:
    assert len(FILES) > 150
    assert len(RULES) > 6


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import joblib.numpy_pickle",
        "eval(x)",
        "exec(x)",
        "os.system(x)",
        "os.execvp(x, y)",
        "subprocess.run(x, shell=True)",
        "subprocess.run('ls x')",
        "subprocess.Popen(f'ls {x}')",
        "asked = 'ls ' + x\nsubprocess.run(asked)",
        "subprocess.run(['ls'], shell=y)",
        "yaml.load(x)",
        "from yaml import load",
        "torch.load(x)",
        "torch.load(x, weights_only=False)",
        "from torch import load",
        "np.load(x)",
        "np.load(x, allow_pickle=True)",
        "np.load(x, allow_pickle=y)",
        "requests.get(x)",
        "requests.get(x, timeout=1, verify=False)",
        "archive.extractall(x)",
        "tarfile.open(x).extractall(y)",
        "tempfile.mktemp()",
        "__import__(x)",
        "kind.from_pretrained(x)",
        "kind.from_pretrained(x, local_files_only=True, trust_remote_code=True)",
        "snapshot_download(x)",
        "urllib.request.urlopen(x)",
    ],
)
def test_the_search_finds_what_it_looks_for(source: str) -> None:
    assert [*findings(source)]


@pytest.mark.parametrize(
    "source",
    [
        "subprocess.run(['git', *x], check=True)",
        "asked = ['git', x]\nsubprocess.run(asked)",
        "np.load(x, allow_pickle=False)",
        "torch.load(x, weights_only=True)",
        "requests.get(x, timeout=3)",
        "json.loads(x)",
        "network.eval()",
        "re.compile(x)",
    ],
)
def test_the_search_finds_nothing_in_what_is_harmless(source: str) -> None:
    assert [*findings(source)] == []


@pytest.mark.parametrize("path", RULES, ids=lambda path: path.name)
def test_rules_hold_shell_commands_of_the_project_and_no_code_of_their_own(path: Path) -> None:
    text = path.read_text()
    for word in (
        r"^\s*run:",
        r"^\s*script:",
        r"^\s*notebook:",
        r"^\s*wrapper:",
        r"\beval\(",
        r"\bexec\(",
        "os.system",
        "pickle",
        "subprocess",
        r"shell\(",
    ):
        assert not re.search(word, text, re.MULTILINE), word


def test_modules_that_are_imported_by_a_computed_name_are_of_this_package() -> None:
    """The name comes from a configuration that was checked against the files of one folder."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not _name(node.func).endswith("import_module"):
                continue
            said = ast.unparse(node.args[0])
            known = {"module", "method_module(spec)", "PACKAGES[section]", "f'{PACKAGES[section]}.{name}'"}
            assert said in known or said.startswith(("f'coalmine.", 'f"coalmine.', "'torch_fidelity.")), (
                f"{path}: {said}"
            )
