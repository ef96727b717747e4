"""Nothing in a configuration or in the names of data is a command to the shell, or a wildcard to Snakemake."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

sys.path.append(str(Path(__file__).resolve().parents[1] / "workflow"))
from checkouts import SMALL, Checkout, copy_sources

pytestmark = pytest.mark.xdist_group("safety-shell")

NASTY = (
    'it\'s "quoted" $(touch marker) `touch marker`; touch marker | & > x {input} {wildcards.method} {0} {{}} %s \\ *'
)
FOLDER = "it's a \"folder\" $(touch marker) `touch marker`; touch marker & [a-z] * 'x"
CLASSES = ("$(touch marker)", "`touch marker`", "<script>alert(1)<", "=cmd() {input}")


def _metrics(method: str) -> dict[str, Any]:
    """What the score stage would write, in short."""
    interval = {"value": 0.5, "low": 0.4, "high": 0.6}
    rate = {**interval, "false_positives": 1, "allowed": 1}
    epsilon = {"lower": 0.1, "confidence": 0.95, "delta": 1e-5, "ceiling": 3.0, "canaries": 12}
    name = "lira-online-persample-logit-1v"
    variant = {"auc": interval, "tpr": {"0.001": rate, "0.01": rate}, "epsilon": epsilon}
    best = {"value": 0.5, "variant": name}
    facts = {"selected": None, "initialised": None, "memorised": 0.5, "memorised_out": 0.1}
    group = {
        "pairs": 72,
        "members": 36,
        "variants": {name: variant},
        "max_over_variants": {"0.001": best, "0.01": best},
        "facts": facts,
        "inheritance": None,
    }
    return {
        "method": method,
        "membership": "shuffled" if method == "shuffled" else "true",
        "design": {"models": 6, "canaries": 12, "clean": 0, "views": 1},
        "accuracy": {"mean": 0.9, "se": 0.01, "per_model": [0.9] * 6},
        "claimed": {"epsilon": None, "delta": None, "accountant": None},
        "primary": name,
        "groups": {"mislabelled": group},
    }


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A copy of the repository whose configuration is as nasty as it may be wherever text is free."""
    root = tmp_path_factory.mktemp("nasty") / "checkout"
    copy_sources(root)
    folder = root / FOLDER
    pixels = np.random.default_rng(0).integers(0, 256, (4, 45, 8, 8), dtype=np.uint8)
    for name, images in zip(CLASSES, pixels, strict=True):
        (folder / name).mkdir(parents=True)
        for number, image in enumerate(images):
            Image.fromarray(image).save(folder / name / f"{number}.png")
    checkout = Checkout(root)
    labelled = {name: {**entry, "label": f"{NASTY} {name}"} for name, entry in SMALL["methods"].items()}  # type: ignore[attr-defined]
    data = {
        "private": {"module": "image_folder", "path": FOLDER, "grey": True, "test_fraction": 0.25},
        "public": {"module": "rendered_digits", "size": 40},
        "private_size": 120,
        "test_size": 40,
        "normalisation": {"mean": [0.3], "std": [0.35]},
    }
    checkout.configure(
        methods=labelled,
        controls={"shuffled": {"of": "undefended", "label": NASTY}},
        data=data,
        tables={**SMALL["tables"], "table6": {"methods": ["undefended", "random", "shuffled"], "title": NASTY}},  # type: ignore[dict-item]
    )
    return checkout


def _commands(printed: str) -> list[str]:
    """Return the shell commands that a dry run printed."""
    blocks = re.findall(r"^Shell command: (.*?)(?=^\[\w{3} |^Job stats:)", printed, re.MULTILINE | re.DOTALL)
    assert len(blocks) == printed.count("Shell command: ")
    return [block for block in blocks if block.strip() != "None"]


@pytest.fixture(scope="module")
def commands(checkout: Checkout) -> list[str]:
    return _commands(checkout.snakemake("all", "--dry-run", "--printshellcmds", "--cores", "1", "--quiet", "host"))


@pytest.fixture
def fakes(tmp_path: Path) -> Path:
    """Programs of the commands' names that only write down their arguments."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("python", "cp", "mv"):
        file = folder / name
        file.write_text(
            f"#!{sys.executable} -IS\nimport json, sys\n"
            f"open({str(tmp_path / 'calls')!r}, 'a').write(json.dumps([{name!r}, *sys.argv[1:]]) + '\\n')\n"
            "sys.stdin.read() if sys.argv[-2:-1] != ['--out'] and not sys.stdin.isatty() else None\n"
        )
        file.chmod(0o755)
    return folder


def test_every_command_calls_what_it_says_with_the_texts_as_they_are(
    commands: list[str], fakes: Path, tmp_path: Path
) -> None:
    place = tmp_path / "place"
    for log in {*re.findall(r"> *(results/small/logs/\S+)", "\n".join(commands))}:
        (place / log).parent.mkdir(parents=True, exist_ok=True)  # as Snakemake does before a job
    environment = {"PATH": f"{fakes}:{os.defpath}"}
    script = "\n".join(f"({command}\n) </dev/null" for command in commands)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=place, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert not [*tmp_path.rglob("marker")]
    calls = [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]
    stages = [call for call in calls if call[0] == "python" and "--spec" in call]
    specs = [json.loads(call[call.index("--spec") + 1]) for call in stages]
    called = Counter(call[0] for call in calls)
    assert called["mv"] == called["cp"] + 1  # config.json is put in its place, too
    assert called["python"] == len(commands)
    checked = [call[3:] for call in calls if call[1:3] == ["-m", "coalmine.checksums"]]
    assert called["cp"] == sum(map(len, checked)) == 3 * len(checked)  # a table or figure is published as three files
    tables = [spec for spec in specs if spec.get("name") == "table6"]
    assert tables[0]["settings"]["labels"] == {
        "undefended": f"{NASTY} undefended",
        "random": f"{NASTY} random",
        "shuffled": NASTY,
    }
    assert tables[0]["settings"]["title"] == NASTY
    (prepared,) = [call for call in stages if call[2] == "coalmine.stages.prepare" and FOLDER in call]
    assert prepared[prepared.index("--files") + 1] == FOLDER
    assert {call[2].rpartition(".")[2] for call in stages} >= {"prepare", "design", "train", "logits", "score", "table"}
    written = [*place.rglob("*")]
    assert all(re.fullmatch(r"[a-z0-9_/.-]+", str(path.relative_to(place))) for path in written), written


def test_cheap_rules_run_for_real_and_execute_nothing(checkout: Checkout) -> None:
    checkout.snakemake("results/small/config.json", "results/small/data/classes.json", "--cores", "1")
    written = json.loads((checkout.root / "results/small/config.json").read_text())
    assert written["methods"]["undefended"]["label"] == f"{NASTY} undefended"
    assert written["data"]["private"]["path"] == FOLDER
    classes = json.loads((checkout.root / "results/small/data/classes.json").read_text())["classes"]
    assert classes == sorted(CLASSES)
    assert not [*checkout.root.rglob("marker")]


def test_a_table_of_nasty_labels_is_written_and_executes_nothing(checkout: Checkout) -> None:
    for method in ("undefended", "random", "shuffled"):
        path = checkout.root / f"results/small/metrics/{method}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(_metrics(method)))
    checkout.snakemake("results/table6.csv", "--allowed-rules", "table", "publish_table", "--cores", "1")
    assert not [*checkout.root.rglob("marker")]
    page = (checkout.root / "results/table6.html").read_text()
    assert "$(touch marker) `touch marker`" in page
    assert "{input} {wildcards.method} {0} {{}}" in page


def test_the_workflow_quotes_whatever_it_puts_into_a_command() -> None:
    """But for what the configuration allows a few words for: device, mode, threads."""
    rules = Path(__file__).resolve().parents[2] / "workflow/rules"
    plain = {"{resources.device}", "{resources.mode}", "{threads}"}
    found = 0
    for file in rules.glob("*.smk"):
        for command in re.findall(r'shell:\s*("""(.*?)"""|"(.*?)"\n)', file.read_text(), re.DOTALL):
            fields = set(re.findall(r"\{[^{}]*\}", command[0]))
            found += len(fields)
            assert all(field.endswith(":q}") or field in plain for field in fields), (file.name, fields)
    assert found > 60


def test_no_free_text_is_a_plain_parameter_of_a_rule() -> None:
    """In a parameter that is a text, Snakemake takes braces for wildcards; in what a function returns, it does not."""
    rules = Path(__file__).resolve().parents[2] / "workflow/rules"
    plain = [match for file in rules.glob("*.smk") for match in re.findall(r"spec=(RUN\.\w+\(.*)", file.read_text())]
    # Numbers alone, and addresses without braces.
    assert sorted(plain) == ["RUN.download_spec(remote),", 'RUN.spec("design", case=case),']


@pytest.mark.parametrize("run", ["..", ".", "a/b", "a b", "$(x)", "{run}", "-x", "data", "logs", ""])
def test_a_run_of_another_name_never_starts(checkout: Checkout, run: str) -> None:
    from coalmine.config import check
    from coalmine.problems import ConfigurationError

    configuration = yaml.safe_load((checkout.root / "config.yaml").read_text())
    with pytest.raises(ConfigurationError, match=r"  run: "):
        check({**configuration, "run": run})
