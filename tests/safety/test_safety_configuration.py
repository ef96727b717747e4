"""Whatever stands in a configuration, it is a run or refused by a sentence, and nothing in it becomes a command."""

from __future__ import annotations

import copy
import datetime
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hostile import bounded
from hypothesis import given
from hypothesis import strategies as st

from coalmine.config import Run, _overlaid, check
from coalmine.problems import ConfigurationError

ROOT = Path(__file__).resolve().parents[2]
DEFAULT = yaml.safe_load((ROOT / "config.yaml").read_text())
CONFIGURATIONS = {"config.yaml": DEFAULT} | {
    preset.name: _overlaid(DEFAULT, yaml.safe_load(preset.read_text()))
    for preset in sorted((ROOT / "workflow/presets").glob("*.yaml"))
}
STRICT = re.compile(r"[a-z0-9][a-z0-9-]*")
"""What names may be that become file names and shell words."""

NASTY = [
    "$(touch marker)",
    "`touch marker`",
    "a b; rm -rf .",
    "'; touch marker; '",
    '"; touch marker; "',
    "{input}",
    "{wildcards.method}",
    "{0.__class__.__mro__}",
    "{{braces}}",
    "%(name)s",
    "../../x",
    "..",
    ".",
    "/etc/passwd",
    "-rf",
    "--out",
    "a\nb",
    "a\0b",
    "\x1b]0;title\x07",
    "\u202eevil",
    "\ud800",
    "é" * 5000,
    "__proto__",
    "__class__",
    "coalmine.keep",
    "os",
    "<script>alert(1)</script>",
    "https://user:token@host/x",
    "=cmd()",
    "",
    " ",
    "yes",
    "1e3",
]
VALUES: list[Any] = [
    *NASTY,
    None,
    True,
    0,
    -1,
    1,
    2**31,
    2**62,
    2**64,
    10**400,
    1 << 20_000,
    0.5,
    -0.0,
    1e308,
    5e-324,
    math.nan,
    math.inf,
    -math.inf,
    [],
    {},
    [[[]]],
    {"a": {"b": {}}},
    [None],
    {"name": None},
    {"module": ["undefended"]},
    {"module": "undefended"},
    {1: 2},
    {None: None},
    datetime.date(2026, 1, 1),
    b"bytes",
    {"a", "b"},
    object,
]


def places(value: Any) -> list[tuple[Any, ...]]:
    """Where every value of nested blocks and lists stands."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [(), *((key, *place) for key, entry in entries for place in places(entry))]


PLACES = {name: places(configuration)[1:] for name, configuration in CONFIGURATIONS.items()}


def changed(configuration: Any, place: tuple[Any, ...], value: Any, kind: str) -> Any:
    """Return a copy in which a value is replaced, removed, renamed, wrapped or doubled."""
    copied = copy.deepcopy(configuration)
    owner = copied
    for key in place[:-1]:
        owner = owner[key]
    last = place[-1]
    if kind == "rename" and isinstance(owner, dict) and value.__hash__:
        owner[value] = owner.pop(last)
    elif kind == "add" and isinstance(owner[last], dict) and value.__hash__:
        owner[last][value] = value
    elif kind == "wrap":
        owner[last] = [owner[last]]
    elif kind == "remove":
        del owner[last]
    else:
        owner[last] = value
    return copied


def checked(configuration: Any) -> Run | None:
    """Return the run, or None for one that is refused as it should be; anything else is a failure."""
    try:
        return check(configuration)
    except ConfigurationError as error:
        assert error.problems  # noqa: PT017
        assert str(error).replace("\n", "").isprintable()  # noqa: PT017
        str(error).encode()
        return None


@pytest.mark.parametrize("name", CONFIGURATIONS)
@given(data=st.data())
@bounded(35)
def test_a_mutated_configuration_is_a_run_or_refused(name: str, data: st.DataObject) -> None:
    configuration = CONFIGURATIONS[name]
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from(places(configuration)[1:]))
        kind = data.draw(st.sampled_from(["replace", "replace", "rename", "add", "wrap", "remove"]))
        configuration = changed(configuration, place, data.draw(st.sampled_from(VALUES)), kind)
    run = checked(configuration)
    if run:
        assert_names_are_strict(run)


def assert_names_are_strict(run: Run) -> None:
    config = run.config
    named = [config.run, *config.experts, *config.pretrained, *config.controls, *run.audited]
    assert all(STRICT.fullmatch(name) and len(name) <= 64 + len("-average") for name in named)
    for section in ("tables", "figures"):
        assert all(re.fullmatch(r"[a-z0-9_]+", name) for name in run.reports(section))


@given(data=st.data())
@bounded(60)
def test_every_section_may_hold_anything(data: st.DataObject) -> None:
    section = data.draw(st.sampled_from([*DEFAULT]))
    plain = st.sampled_from(VALUES)
    value = data.draw(plain | st.lists(plain, max_size=3) | st.dictionaries(st.sampled_from(NASTY), plain, max_size=3))
    checked({**DEFAULT, section: value})


@pytest.mark.parametrize("name", [name for name in NASTY if not STRICT.fullmatch(name)])
@pytest.mark.parametrize("section", ["run", "methods", "experts", "pretrained", "controls", "tables", "figures"])
def test_names_that_become_files_hold_letters_digits_and_hyphens_only(section: str, name: str) -> None:
    if section == "run":
        assert checked({**DEFAULT, "run": name}) is None
    else:
        first = next(iter(DEFAULT[section].values()))
        assert checked({**DEFAULT, section: {**DEFAULT[section], name: first}}) is None


def test_names_are_short_enough_for_file_systems() -> None:
    assert checked({**DEFAULT, "run": "a" * 64}) is not None
    assert checked({**DEFAULT, "run": "a" * 65}) is None


def test_a_run_is_named_by_no_folder_that_runs_share() -> None:
    for name in ("data", "logs", "published", "..", "."):
        assert checked({**DEFAULT, "run": name}) is None


@pytest.mark.parametrize(
    "module", ["os", "../errors", "coalmine.keep", "__init__", "sources.digits", "_x", "a\0", ["dm"]]
)
def test_modules_are_files_of_their_own_folder_only(module: Any) -> None:
    for changes in (
        {"methods": {**DEFAULT["methods"], "new": {"module": module}}},
        {"data": {**DEFAULT["data"], "private": {"module": module}}},
    ):
        assert checked({**DEFAULT, **changes}) is None


def test_other_runs_of_a_table_are_named_strictly() -> None:
    table = DEFAULT["tables"]["dpdiff_table1"]
    for name, told in (
        ("other-run", "make it first"),
        ("../other", "lower-case letters"),
        ("/etc", "lower-case letters"),
        ("a b", "lower-case letters"),
        ("{run}", "lower-case letters"),
    ):
        configuration = {**DEFAULT, "tables": {**DEFAULT["tables"], "dpdiff_table1": {**table, "runs": [name]}}}
        with pytest.raises(ConfigurationError, match=told):
            check(configuration)


def _with_path(path: str) -> dict[str, Any]:
    return {**DEFAULT, "data": {**DEFAULT["data"], "private": {"module": "image_folder", "path": path}, "test_size": 9}}


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("--help", "hyphen"),
        ("-x.zip", "hyphen"),
        ("a{input}b", "brace"),
        ("https://host/x.zip", "address"),
        ("s3://bucket/x", "address"),
        ("a\nb", "control character"),
        ("a\0b", "control character"),
        ("a\x7f", "control character"),
        ("a" * 5000, "5000 characters"),
        ("a" * 1000, "cannot be looked up"),
        ("~nobody-of-this-name/x", "cannot be looked up"),
    ],
)
def test_a_path_that_means_something_else_to_a_command_is_refused(path: str, told: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"data\.private\.path: .*{told}"):
        check(_with_path(path))


SECRET = "s3cr3tT0ken"


@pytest.mark.parametrize(
    "text",
    [
        f"https://user:{SECRET}@host/x.tar.gz",
        f"https://{SECRET}@host/x.tar.gz",
        f"https://host/x.tar.gz?token={SECRET}",
        f"https://host/x.tar.gz?a=1&X-Amz-Signature={SECRET}",
        f"s3://key:{SECRET}@bucket/x",
        f"hf_{SECRET * 3}",
        f"label ghp_{SECRET * 3}",
    ],
)
@pytest.mark.parametrize("where", ["path", "url", "label", "key"])
def test_a_secret_is_refused_wherever_it_stands_and_never_repeated(where: str, text: str) -> None:
    changes: dict[str, Any] = {
        "path": {"data": {**DEFAULT["data"], "private": {"module": "image_folder", "path": text, "bad": 1}}},
        "url": {"data": {**DEFAULT["data"], "private": {"module": "cifar10", "url": text, "size": text}}},
        "label": {
            "methods": {**DEFAULT["methods"], "undefended": {"module": "undefended", "label": text, "x": [text]}}
        },
        "key": {"training": {**DEFAULT["training"], "epochs": text}},
    }[where]
    with pytest.raises(ConfigurationError, match="looks like a password or token") as told:
        check({**DEFAULT, **changes})
    assert SECRET not in str(told.value)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host/x",
        "file:///etc/passwd",
        "https://",
        "https://host/x?a=1",
        "https://host/x#a",
        "x",
        "https://ho st/x",
        "https://host:99999/x",
    ],
)
def test_addresses_are_plain_ones_of_the_web(url: str) -> None:
    configuration = {**DEFAULT, "data": {**DEFAULT["data"], "private": {"module": "cifar10", "url": url}}}
    with pytest.raises(ConfigurationError, match=r"data\.private\.url: "):
        check(configuration)


def test_nothing_in_the_environment_is_part_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HTTPS_PROXY", "GITHUB_TOKEN"):
        monkeypatch.setenv(name, SECRET)
    assert SECRET not in json.dumps(check(DEFAULT).effective())


def test_aliases_that_lead_back_to_themselves_are_refused() -> None:
    endless = yaml.safe_load("&a {run: demo, data: *a}")
    with pytest.raises(ConfigurationError, match="levels deep"):
        check({**DEFAULT, "data": endless})


def test_paths_and_labels_with_spaces_quotes_and_letters_of_any_script_are_taken() -> None:
    label = 'ε ≤ 8, "it\'s" {input} $(x) `y` \\ & <b>'
    changes = {"undefended": {**DEFAULT["methods"]["undefended"], "label": label}}
    run = check({**DEFAULT, "methods": {**DEFAULT["methods"], **changes}})
    assert run.effective()["methods"]["undefended"]["label"] == label
