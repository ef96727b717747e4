"""``coalmine verify`` on the small run: whole, then with files of every kind damaged, stale, foreign, gone or left."""

from __future__ import annotations

import base64
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from checkouts import SMALL, Checkout
from fault_injection import without_seconds

from coalmine import checksums
from coalmine.artefacts import read_json, read_npz, read_safetensors, write_json, write_npy, write_npz
from coalmine.dag import Graph, read_graph
from coalmine.verification.content import Content, read
from coalmine.verification.inputs import CHECKED
from coalmine.verification.judge import Finding
from coalmine.verification.leftovers import lying
from coalmine.verify import Report, verify

ROOT = Path("results/small")
ONE_OF_EACH = (
    "results/table1.csv",
    "results/figure6.png",
    *(
        f"results/small/{name}"
        for name in (
            "config.json",
            "data/classes.json",
            "data/private/images.npy",
            "data/test/labels.npy",
            "data/public/images.npy",
            "audit/canaries.csv",
            "audit/membership.npy",
            "audit/design.json",
            "pretrained/features.safetensors",
            "pretrained/features.json",
            "privacy/private.json",
            "experts/quick/001.safetensors",
            "synthetic/dm/001.npz",
            "synthetic/dfkd/004.npz",
            "models/random/003.safetensors",
            "models/random/003.json",
            "models/dfkd/002.safetensors",
            "logits/mtt/005.npz",
            "scores/shuffled.npz",
            "metrics/undefended.json",
            "visual/dm.npz",
            "visual/dm.json",
            "table1.csv",
            "table1.html",
            "table1.tex",
            "figure6.png",
            "figure6.pdf",
            "figure6.csv",
        )
    ),
)


@pytest.fixture(scope="module")
def graph(finished_run: Path) -> Graph:
    """The jobs of the finished run, all up to date: reading them takes longer than looking at the files."""
    return graph_of(finished_run)


def graph_of(folder: Path, *targets: str) -> Graph:
    return read_graph(targets, snakefile=folder / "Snakefile", directory=folder, found=[*lying(folder)])


def looked_through(folder: Path, graph: Graph, **options: Any) -> Report:
    return verify(directory=folder, graph_of=lambda *_, **__: graph, **options)


def not_good(report: Report) -> dict[str, Finding]:
    return {str(found.path): found for found in report.findings if found.state != "good"}


def flip(path: Path, bit: int) -> None:
    """Flip a bit as a failing disk would: the time of the file stays."""
    times = path.stat()
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def without_records(folder: Path) -> None:
    for records in [*folder.rglob(checksums.FOLDER)]:
        shutil.rmtree(records)


SHOWING_SECONDS = ("table1", "table4", "figure1")


def artefacts(folder: Path) -> dict[str, bytes | str]:
    """The contents of all files of the run but what was measured: beside artefacts, in columns, and logs."""
    found: dict[str, bytes | str] = {}
    for path in lying(folder):
        if path.suffix == ".json" and (path.stem.isdecimal() or path.stem == "features"):
            continue
        if path.stem not in SHOWING_SECONDS:
            found[str(path)] = (folder / path).read_bytes()
        elif path.suffix == ".csv":
            found[str(path)] = without_seconds((folder / path).read_text(), path.suffix)
    return found


def test_every_file_of_a_finished_run_is_good_and_has_a_checksum(finished_run: Path, graph: Graph) -> None:
    report = looked_through(finished_run, graph)
    assert [found for found in report.findings if found.state != "good" or found.reason] == []
    assert {found.path for found in report.findings} == {*lying(finished_run)}
    assert len(report.findings) > 300
    assert not report.locked


def test_every_input_that_a_header_names_is_checked(finished_run: Path, graph: Graph) -> None:
    contents: list[Content] = [read(finished_run / path) for job in graph.jobs for path in job.outputs]
    noted = {key for one in contents if one.header for key in one.header.get("inputs", {})}
    assert noted == {
        "private", "design", "public", "experts", "synthetic", "teacher", "model", "mechanism", "features"
    }  # fmt: skip
    assert noted < CHECKED.keys()


def test_a_flipped_bit_in_any_file_is_told_of_that_file_and_no_other(checkout: Checkout, graph: Graph) -> None:
    rng = random.Random(0)
    others = sorted({*map(str, lying(checkout.root))} - {*ONE_OF_EACH})
    for name in [*ONE_OF_EACH, *rng.sample(others, 20)]:
        path = checkout.root / name
        bit = rng.randrange(8 * path.stat().st_size)
        flip(path, bit)
        report = looked_through(checkout.root, graph)
        found = not_good(report)
        assert list(found) == [name], f"bit {bit} of {name}: {found}"
        assert report.wrong == [found[name]]
        # The configuration is stored in plain words, so that most of its bits make another configuration.
        assert found[name].state in ("damaged", "stale" if name.endswith("config.json") else "damaged")
        flip(path, bit)
    assert not_good(looked_through(checkout.root, graph)) == {}


def test_a_flipped_bit_in_a_record_is_told_of_the_record(checkout: Checkout, graph: Graph) -> None:
    for name in ("results/small/models/dm/001.safetensors", "results/small/table1.csv"):
        record = checksums.record_path(Path(name))
        flip(checkout.root / record, 77)
        report = looked_through(checkout.root, graph)
        assert {path: one.state for path, one in not_good(report).items()} == {str(record): "damaged"}
        flip(checkout.root / record, 77)


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.999])
def test_a_cut_file_is_damaged_with_a_checksum_and_without_it_also_in_a_hurry(
    checkout: Checkout, graph: Graph, kept: float
) -> None:
    told_by_size = [name for name in ONE_OF_EACH if "/data/" not in name]
    for name in told_by_size:
        path = checkout.root / name
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    report = looked_through(checkout.root, graph, quick=True)
    assert {path for path, one in not_good(report).items() if one.state == "damaged"} == {*told_by_size}
    without_records(checkout.root)
    found = not_good(looked_through(checkout.root, graph))
    assert {path for path in told_by_size if path not in found and not path.endswith((".csv", ".tex"))} == set()


def test_in_a_hurry_bytes_are_believed_and_headers_are_not(checkout: Checkout, graph: Graph) -> None:
    path = checkout.root / ROOT / "models/dm/001.safetensors"
    flip(path, 8 * path.stat().st_size - 9)
    assert not_good(looked_through(checkout.root, graph, quick=True)) == {}
    shutil.copy(checkout.root / ROOT / "models/dm/002.safetensors", path)
    (found,) = looked_through(checkout.root, graph, quick=True).wrong
    assert (found.state, found.reason) == ("foreign", "made by train for dm of shadow model 2")


def test_files_from_before_checksums_are_good_as_far_as_can_be_told(checkout: Checkout, graph: Graph) -> None:
    without_records(checkout.root)
    report = looked_through(checkout.root, graph)
    assert not_good(report) == {}
    unsure = {found.stage for found in report.findings if found.reason == "no checksum"}
    assert unsure == {job.stage for job in graph.jobs if job.program}


@pytest.mark.parametrize(
    "name", ["data/private/images.npy", "data/test/labels.npy", "audit/canaries.csv", "audit/membership.npy"]
)
def test_without_checksums_data_and_design_are_held_against_what_was_noted(
    checkout: Checkout, graph: Graph, name: str
) -> None:
    without_records(checkout.root)
    path = checkout.root / ROOT / name
    if path.suffix == ".npy":
        array = np.load(path)
        changed = ~array if array.dtype == bool else (array + 1) % 10
        np.save(path, changed.astype(array.dtype))
    else:
        lines = path.read_text().splitlines()
        path.write_text("\n".join([lines[0], *lines[2:], lines[1]]) + "\n")
    wrong = {str(found.path) for found in looked_through(checkout.root, graph).wrong}
    assert str(ROOT / name) in wrong
    assert {Path(one).parent.parent if "data" in one else Path(one).parent for one in wrong} <= {
        ROOT / "data", ROOT / "audit"
    }, "nothing is wrong with what was made from the right ones"  # fmt: skip


def test_numbers_that_are_none_are_damage_though_they_were_written_so(checkout: Checkout, graph: Graph) -> None:
    path = checkout.root / ROOT / "logits/dm/002.npz"
    header, arrays = read_npz(path)
    arrays["test_logits"][0, 0] = np.nan
    write_npz(path, header, arrays)
    (found,) = looked_through(checkout.root, graph).wrong
    assert (found.path, found.state, found.reason) == (
        ROOT / "logits/dm/002.npz", "damaged", "test_logits holds NaN or infinite values"
    )  # fmt: skip


def test_changed_settings_make_stale_what_depends_on_them_and_tell_which(checkout: Checkout) -> None:
    methods = SMALL["methods"]
    assert isinstance(methods, dict)
    checkout.configure(methods={**methods, "private": {**methods["private"], "steps": 5}})
    found = not_good(verify(directory=checkout.root, graph_of=lambda *_, **__: graph_of(checkout.root)))
    assert {one.state for one in found.values()} == {"stale"}
    assert found["results/small/config.json"].reason == "methods.private.steps 4, now 5"
    assert found["results/small/privacy/private.json"].reason == "settings.steps 4, now 5"
    assert "settings.steps 4, now 5" in found["results/small/models/private/001.safetensors"].reason
    assert found["results/small/logits/private/001.npz"].reason == (
        "made from results/small/models/private/001.safetensors, which is stale"
    )
    methods_told = {one.method for one in found.values() if one.stage in ("train", "logits", "score")}
    assert methods_told == {"private"}
    assert "results/table1.csv" in found
    assert "results/table2.csv" not in found


def test_changed_code_makes_stale_what_it_makes(checkout: Checkout) -> None:
    checkout.edit(
        "src/coalmine/methods/dm.py", "from __future__ import annotations", "from __future__ import annotations\nX = 1"
    )
    status, printed = command(checkout, "results/small/synthetic", "--json")
    found = {Path(one["path"]): one for one in json.loads(printed)["artefacts"] if one["state"] != "good"}
    assert status == 1
    assert {path.parent for path in found} == {ROOT / "synthetic/dm"}
    assert all(one["state"] == "stale" and one["reason"].startswith("code ") for one in found.values())


def test_another_membership_makes_all_models_stale_and_no_data(checkout: Checkout, graph: Graph) -> None:
    audit = checkout.root / ROOT / "audit"
    record = read_json(audit / "design.json")
    was = record["digests"]["design"]
    write_npy(audit / "membership.npy", np.roll(np.load(audit / "membership.npy"), 1, axis=1))
    write_json(audit / "design.json", {**record, "digests": {**record["digests"], "design": "0" * 16}})
    report = looked_through(checkout.root, graph)
    found = not_good(report)
    assert {one.state for one in found.values()} == {"stale"}
    expected = f"inputs.design {was}, now {'0' * 16}"
    assert found["results/small/models/undefended/000.safetensors"].reason == expected
    assert found["results/small/privacy/private.json"].reason == expected
    assert not [path for path in found if "/data/" in path or "/audit/" in path]
    unaffected = {one.stage for one in report.findings} - {one.stage for one in found.values()}
    assert unaffected == {"configuration", "prepare_private", "prepare_public", "design_worst", "pretrain"}


def test_a_model_of_a_set_that_was_replaced_is_stale_with_what_follows_from_it(
    checkout: Checkout, graph: Graph
) -> None:
    path = checkout.root / ROOT / "synthetic/dm/002.npz"
    header, arrays = read_npz(path)
    arrays["images"] = arrays["images"] // 2
    write_npz(path, header, arrays)
    found = not_good(looked_through(checkout.root, graph))
    assert {one.state for one in found.values()} == {"stale"}
    assert found["results/small/models/dm/002.safetensors"].reason.startswith("inputs.synthetic ")
    direct = {path for path in found if "/models/" in path or "/logits/" in path or "/visual/" in path}
    names = ("models/dm/002.safetensors", "logits/dm/002.npz", "visual/dm.npz", "visual/dm.json")
    assert direct == {str(ROOT / name) for name in names}
    assert "results/small/metrics/dm.json" in found
    assert "results/small/metrics/random.json" not in found


@pytest.mark.parametrize("records", [True, False])
@pytest.mark.parametrize(
    ("source", "target", "told"),
    [
        ("models/random/001.safetensors", "models/random/002.safetensors", "train for random of shadow model 1"),
        ("models/dm/002.safetensors", "models/random/002.safetensors", "train for dm of shadow model 2"),
        ("logits/dm/000.npz", "logits/mtt/000.npz", "logits for dm of shadow model 0"),
        ("metrics/dm.json", "metrics/mtt.json", "score for dm"),
    ],
)
def test_a_file_in_the_place_of_another_is_foreign_and_says_whose_it_is(
    checkout: Checkout, graph: Graph, source: str, target: str, told: str, records: bool
) -> None:
    source_file, target_file = checkout.root / ROOT / source, checkout.root / ROOT / target
    shutil.copy(source_file, target_file)
    if not records:
        without_records(checkout.root)
    (found,) = looked_through(checkout.root, graph).wrong
    assert (found.path, found.state) == (ROOT / target, "foreign")
    assert found.reason == (f"a copy of {ROOT / source}" if records else f"made by {told}")


def test_files_that_no_job_makes_are_foreign_and_do_no_harm(checkout: Checkout) -> None:
    methods = SMALL["methods"]
    assert isinstance(methods, dict)
    fewer = {name: one for name, one in methods.items() if name != "mtt"}
    tables = {"table3": {"methods": ["dm"]}}
    checkout.configure(methods=fewer, tables=tables, figures={})
    (checkout.root / ROOT / "notes.txt").write_text("mine\n")
    (checkout.root / ROOT / "models/dm/006.safetensors").write_bytes(b"?")
    report = verify(directory=checkout.root, graph_of=lambda *_, **__: graph_of(checkout.root))
    foreign = {str(found.path) for found in report.findings if found.state == "foreign"}
    assert {"results/small/notes.txt", "results/small/models/dm/006.safetensors"} < foreign
    assert {"results/small/models/mtt/000.safetensors", "results/small/table2.csv", "results/table2.csv"} < foreign
    assert "results/small/models/random/000.safetensors" not in foreign, "a rule makes it, though no table needs it"
    assert {str(found.path) for found in report.wrong} == {"results/small/config.json"}
    assert not [found for found in report.to_delete if found.state == "foreign"], "what is unknown is not deleted"


def test_what_was_pruned_is_absent_and_what_is_needed_is_missing(checkout: Checkout) -> None:
    shutil.rmtree(checkout.root / ROOT / "models/undefended")
    report = verify(directory=checkout.root, graph_of=lambda *_, **__: graph_of(checkout.root))
    assert {(str(found.path.parent), found.state) for found in not_good(report).values()} == {
        ("results/small/models/undefended", "absent")
    }
    assert report.wrong == []
    gone = {"results/figure5.png", "results/small/figure5.png", "results/small/scores/random.npz"}
    for name in gone:
        (checkout.root / name).unlink()
    report = verify(directory=checkout.root, graph_of=lambda *_, **__: graph_of(checkout.root))
    missing = {str(found.path): found.reason for found in report.wrong}
    assert gone < missing.keys()
    # Its models' costs stand in table 1, which is made anew as one of its methods is scored anew.
    assert {Path(name).parent for name in missing.keys() - gone} == {ROOT / "models/undefended"}
    assert missing["results/figure5.png"] == "a target that has not been made"
    assert missing["results/small/scores/random.npz"].endswith(" is there, which is made from it")


def test_what_unfinished_jobs_keep_is_told_from_what_was_left_behind(checkout: Checkout) -> None:
    models = checkout.root / ROOT / "models/random"
    kept = models / ".finished"
    kept.mkdir()
    for number in (0, 1):
        for suffix in (".safetensors", ".json"):
            shutil.move(models / f"{number:03d}{suffix}", kept / f"{number:03d}{suffix}")
    header, weights = read_safetensors(models / "002.safetensors")
    (models / "002.safetensors").unlink()
    write_npz(kept / "002.checkpoint.npz", {**header, "code": "0"}, weights, recorded=False)
    write_npz(kept / "004.checkpoint.npz", header, weights, recorded=False)
    (models / ".003.safetensors.999999999@nowhere.tmp").write_bytes(b"half")
    os.utime(models / ".003.safetensors.999999999@nowhere.tmp", (0, 0))
    (models / f".003.json.{os.getpid()}@{os.uname().nodename}.tmp").write_bytes(b"half")
    flip(kept / "001.json", 3)
    found = not_good(verify(directory=checkout.root, graph_of=lambda *_, **__: graph_of(checkout.root)))
    unfinished = {Path(path).name: one for path, one in found.items() if one.state == "unfinished"}
    told = {name: one.remedy.partition(":")[0] for name, one in unfinished.items()}
    assert told == {
        "000.safetensors": "run Snakemake",
        "000.json": "run Snakemake",
        "001.safetensors": "run Snakemake",
        "001.json": "delete it",
        "002.checkpoint.npz": "delete it",
        "004.checkpoint.npz": "delete it",
        ".003.safetensors.999999999@nowhere.tmp": "delete it",
        f".003.json.{os.getpid()}@{os.uname().nodename}.tmp": "",
    }
    assert unfinished["002.checkpoint.npz"].reason == "of other settings or code, and not taken up"
    assert unfinished["004.checkpoint.npz"].reason == "what it was kept for is finished"


def test_files_that_snakemake_has_marked_as_incomplete_are_unfinished(checkout: Checkout) -> None:
    name = "results/small/logits/dm/001.npz"
    marker = checkout.root / ".snakemake/incomplete" / base64.urlsafe_b64encode(name.encode()).decode()
    marker.write_text("{}")
    found = not_good(verify(directory=checkout.root, graph_of=lambda *_, **__: graph_of(checkout.root)))
    assert (found[name].state, found[name].remedy.partition(":")[0]) == ("unfinished", "run Snakemake")


def test_nothing_is_deleted_while_a_run_may_be_going_on(checkout: Checkout) -> None:
    locks = checkout.root / ".snakemake/locks"
    (locks / "0.output.lock").write_text("results/small/logits/dm/001.npz\n")
    target = checkout.root / "results/small/logits/dm/001.npz"
    flip(target, 900)
    status, printed = command(checkout)
    assert status == 1
    assert "Snakemake's lock lies on them" in printed
    status, printed = command(checkout, "--delete")
    assert status == 2
    assert "nothing is deleted while a run may be making them" in printed
    assert target.exists()


def command(checkout: Checkout, *arguments: str) -> tuple[int, str]:
    """Run ``coalmine verify`` as users do, on the code of the checkout."""
    done = subprocess.run(
        [sys.executable, "-m", "coalmine", "verify", *arguments],
        cwd=checkout.root,
        env={**os.environ, "PYTHONPATH": str(checkout.root / "src"), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if "--json" not in arguments and "--paths" not in arguments else None,
        text=True,
    )
    return done.returncode, done.stdout


def test_the_command_that_is_told_brings_every_byte_back_and_makes_nothing_else_anew(checkout: Checkout) -> None:
    before = artefacts(checkout.root)
    broken = ("synthetic/dm/001.npz", "models/random/003.safetensors", "logits/mtt/005.npz", "audit/canaries.csv")
    for name in broken:
        path = checkout.root / ROOT / name
        flip(path, 8 * path.stat().st_size // 2)
    shutil.copy(checkout.root / "results/table1.csv", checkout.root / "results/table2.csv")
    made_elsewhere = checkout.root / ROOT / "models/undefended/000.safetensors"
    when = made_elsewhere.stat().st_mtime_ns
    status, printed = command(checkout)
    assert status == 1
    assert [line.split()[0] for line in printed.splitlines() if " → " in line].count("damaged") == 5
    line = printed.splitlines()[-1].strip()
    assert "snakemake" in line
    tools = checkout.root / "bin"
    tools.mkdir()
    for name, module in (("coalmine", "coalmine"), ("snakemake", "snakemake")):
        (tools / name).write_text(f'#!/bin/sh\nPYTHONPATH=src exec "{sys.executable}" -m {module} "$@"\n')
        (tools / name).chmod(0o755)
    python = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{tools}:{python}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, shell=True, cwd=checkout.root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert artefacts(checkout.root) == before
    assert made_elsewhere.stat().st_mtime_ns == when, "a model was made anew from the same data"
    assert command(checkout)[0] == 0


def test_scripts_get_every_file_its_state_and_the_command(checkout: Checkout) -> None:
    path = checkout.root / ROOT / "scores/dm.npz"
    flip(path, 8 * path.stat().st_size // 2)
    status, printed = command(checkout, "--json")
    report = json.loads(printed)
    assert status == 1
    assert (report["run"], report["wrong"], report["locked"]) == ("small", 1, False)
    assert report["counts"]["damaged"] == 1
    (one,) = [one for one in report["artefacts"] if one["state"] == "damaged"]
    assert (one["path"], one["stage"], one["method"]) == ("results/small/scores/dm.npz", "score", "dm")
    assert report["command"] == (
        "coalmine verify --delete; snakemake results/small/scores/dm.npz --cores all && snakemake --cores all"
    )
    assert command(checkout, "--paths") == (1, "results/small/scores/dm.npz\n")
    assert command(checkout, "results/table2.csv", "--paths") == (1, "results/small/scores/dm.npz\n")
    assert command(checkout, "results/table4.csv", "--quick")[0] == 0, "only what is behind the target counts"
    assert command(checkout, "results/small/models")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "prepare", "told"),
    [
        ((), lambda root: shutil.rmtree(root / "results"), "nothing of run 'small' has been made here"),
        (("results/lite",), lambda root: (root / "results/lite").mkdir(), "results/lite is of another run"),
        (("results/nothing.csv",), lambda root: None, "results/nothing.csv"),
        (("--configfile", "no.yaml"), lambda root: None, "no.yaml"),
        (("--directory", ".."), lambda root: None, "nothing of run 'small'"),
    ],
)
def test_mistakes_get_a_sentence_and_a_status_of_their_own(
    checkout: Checkout, arguments: tuple[str, ...], prepare: Callable[[Path], object], told: str
) -> None:
    prepare(checkout.root)
    status, printed = command(checkout, *arguments)
    assert status == 2
    assert printed.startswith("error: ")
    assert told in printed
    assert "Traceback" not in printed


def test_an_overlay_is_taken_and_repeated_in_the_command(checkout: Checkout) -> None:
    (checkout.root / "mine.yaml").write_text(yaml.safe_dump({"audit": {"bootstrap": 21}}))
    status, printed = command(checkout, "results/small/metrics", "--configfile", "mine.yaml")
    assert status == 1
    assert "bootstrap 20, now 21" in printed
    assert printed.splitlines()[-1].count("--configfile mine.yaml") == 3


def test_no_torch_is_imported(checkout: Checkout) -> None:
    program = (
        "import sys; from coalmine.__main__ import main; status = main(['verify', '--quick', '--json']); "
        "sys.exit(3 if 'torch' in sys.modules else status)"
    )
    environment = {**os.environ, "PYTHONPATH": str(checkout.root / "src")}
    done = subprocess.run([sys.executable, "-c", program], cwd=checkout.root, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
