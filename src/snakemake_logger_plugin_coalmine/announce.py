"""Tell the display which jobs a run has. Snakemake's own events count them by rule, without methods or order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from snakemake.logging import logger

JOBS = "coalmine_jobs"
"""Name of the event."""


def announce(dag: Any, price: Callable[[Mapping[int, Any]], Mapping[int, float]] = lambda jobs: {}) -> None:
    """Log all jobs that are to be made, each with the fields of Snakemake's ``JOB_INFO`` and the jobs it waits for.

    Called by ``onstart`` of the Snakefile. Without the display, nothing is printed.

    Args:
        dag: Snakemake's graph of jobs, complete.
        price: given Snakemake's jobs by their numbers, returns the seconds that they are expected to take.
    """
    needed = list(dag.needrun_jobs(exclude_finished=False))
    expected: Mapping[int, float] = {}
    try:
        expected = price({job.jobid: job for job in needed})
    except Exception as error:  # no reason not to make them
        logger.warning(f"How long jobs will take cannot be predicted: {error!r}")
    jobs = [
        {
            "jobid": job.jobid,
            "rule_name": job.rule.name,
            "wildcards": job.wildcards_dict,
            "input": list(map(str, job.input)),
            "output": list(map(str, job.output)),
            "log": list(map(str, job.log)),
            "threads": job.threads,
            "resources": dict(job.resources.items()),
            "after": [before.jobid for before in dag.dependencies[job]],
            "expected": expected.get(job.jobid),
        }
        for job in needed
    ]
    logger.info(None, extra={"event": JOBS, "jobs": jobs})
