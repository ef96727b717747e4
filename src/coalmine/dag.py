"""Snakemake's own graph of jobs, read without running any: what `coalmine plan` prices and `coalmine verify` expects.

This is the one place that touches Snakemake's Python interface. Its documented part builds a graph and prints it; the
jobs themselves are reached through `Workflow._prepare_dag` and `_build_dag`, as all of its own commands reach them. The
version of Snakemake is pinned, and tests hold this module against `snakemake --dry-run`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coalmine.errors import CoalmineError
from snakemake_logger_plugin_coalmine.rule_names import stage_of, subject_of

if TYPE_CHECKING:
    from coalmine.config import Run

_PROGRAM = re.compile(r"python -m coalmine\.stages\.(?P<program>\w+)")


@dataclass(frozen=True)
class Job:
    """One job of Snakemake.

    Attributes:
        rule: the rule's name, such as ``train.undefended.016``.
        stage: what it does: the rule's name without method and shadow models, such as ``train``.
        subject: whom it does it for: the method, experts, network, table or figure; empty where there is but one.
        inputs: files that it reads.
        outputs: files that it makes.
        spec: the configuration that its stage uses; None for a job that only collects files.
        code: hash of the code that it runs; None likewise.
        threads: CPU threads that it is given.
        resources: what else it is given: ``mem_mb``, ``runtime`` in minutes, ``gpu``.
        needed: whether Snakemake would run it now.
        reason: why it would, in Snakemake's words; empty if it would not.
        program: the module of ``coalmine.stages`` that it runs; empty if it runs none.
        incomplete: outputs that are there, but that Snakemake has marked as unfinished: the job was killed.
    """

    rule: str
    stage: str
    subject: str
    inputs: tuple[Path, ...] = field(repr=False)
    outputs: tuple[Path, ...]
    spec: dict[str, Any] | None = field(repr=False)
    code: str | None
    threads: int
    resources: dict[str, Any]
    needed: bool
    reason: str = ""
    program: str = ""
    incomplete: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Graph:
    """The jobs behind some targets.

    Attributes:
        run: the checked configuration.
        jobs: those before others first.
        locked: Snakemake's lock lies on their files: another run makes them now, or was killed.
    """

    run: Run
    jobs: tuple[Job, ...]
    locked: bool = False


def read_graph(
    targets: Sequence[str] = (),
    configfiles: Iterable[Path] = (),
    *,
    found: Iterable[Path] = (),
    directory: Path | None = None,
    snakefile: Path = Path("Snakefile"),
    max_checksum_file_size: int = 10**9,
) -> Graph:
    """Let Snakemake build its graph of all jobs behind ``targets``, those that are up to date included.

    Args:
        targets: files or rules; every table and figure if there are none.
        configfiles: overlays on ``config.yaml``, the last one wins, as for ``snakemake --configfile``.
        found: files whose jobs are wanted as well, if there is a rule that makes them; other files are passed over.
        directory: where ``results/`` lies; the current folder by default. Paths in the graph are relative to it.
        snakefile: the workflow.
        max_checksum_file_size: up to how many bytes Snakemake compares files by content, not by time; that of
            ``profiles/default`` by default.

    Raises:
        CoalmineError: with Snakemake's own words, if it refuses the configuration or a target.
    """
    from snakemake.api import SnakemakeApi
    from snakemake.exceptions import RuleException, WorkflowError
    from snakemake.settings.enums import Quietness
    from snakemake.settings.types import ConfigSettings, DAGSettings, OutputSettings, ResourceSettings

    if not snakefile.is_file():
        raise CoalmineError(f"There is no {snakefile.resolve()}: run this command in the folder of the Snakefile.")
    overlays = [_existing(path) for path in configfiles]
    try:
        with _quiet(), SnakemakeApi(OutputSettings(quiet=frozenset({Quietness.ALL}))) as api:
            workflow_api = api.workflow(
                resource_settings=ResourceSettings(cores=os.cpu_count() or 1),
                config_settings=ConfigSettings(configfiles=overlays),
                snakefile=snakefile.resolve(),
                workdir=directory and directory.resolve(),
            )
            workflow = workflow_api._workflow
            further = _producible(workflow, map(str, found))
            wanted = frozenset([*(targets or [workflow.default_target]), *further])
            workflow_api.dag(
                DAGSettings(targets=wanted, max_checksum_file_size=max_checksum_file_size, force_incomplete=True)
            )
            workflow._prepare_dag(forceall=False, ignore_incomplete=False, lock_warn_only=True, nolock=True)
            workflow._build_dag()
            jobs = tuple(_read_job(workflow, job) for job in _in_order(workflow.dag))
            return Graph(workflow.globals["RUN"], jobs, workflow.persistence.locked)
    except (WorkflowError, RuleException) as error:
        raise CoalmineError(_words(error)) from None


def _producible(workflow: Any, paths: Iterable[str]) -> list[str]:
    """Return the files that some rule makes."""
    named = {str(product) for rule in workflow.rules if not rule.has_wildcards() for product in rule.products()}
    patterns = [rule for rule in workflow.rules if rule.has_wildcards()]
    return [path for path in paths if path in named or any(rule.is_producer(path) for rule in patterns)]


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise CoalmineError(f"{path}, given as --configfile, does not exist.")
    return path.resolve()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Snakemake's notices ("Building DAG of jobs...") to itself."""
    with redirect_stderr(StringIO()):
        yield


def _words(error: Exception) -> str:
    """Return what an error of Snakemake says, without its traceback."""
    return "\n".join(str(part) for part in error.args) or type(error).__name__


def _in_order(dag: Any) -> list[Any]:
    """Return all jobs, those before others first."""
    return [
        job for level in dag.toposorted() for job in sorted(level, key=lambda job: (job.rule.name, str(job.output)))
    ]


def _read_job(workflow: Any, job: Any) -> Job:
    needed = workflow.dag.needrun(job)
    return replace(
        read_job(job),
        needed=needed,
        reason="; ".join(workflow.dag.reason(job).get_names()) if needed else "",
        incomplete=tuple(map(Path, workflow.async_run(workflow.persistence.incomplete(job)))),
    )


def read_job(job: Any) -> Job:
    """Read one of Snakemake's jobs, which it is about to run."""
    name = job.rule.name
    parameters: Mapping[str, Any] = dict(job.params.items())
    program = _PROGRAM.search(job.rule.shellcmd or "")
    return Job(
        rule=name,
        stage=stage_of(name),
        subject=subject_of(name, job.wildcards_dict),
        inputs=tuple(map(Path, job.input)),
        outputs=tuple(map(Path, job.output)),
        spec=json.loads(parameters["spec"]) if "spec" in parameters else None,
        code=parameters.get("code"),
        threads=job.threads,
        resources={key: value for key, value in job.resources.items() if not key.startswith("_")},
        needed=True,
        program=program["program"] if program else "",
    )
