"""Tell the display which jobs a run has. Snakemake's own events count them by rule, without methods or order."""

from __future__ import annotations

from typing import Any

from snakemake.logging import logger

JOBS = "coalmine_jobs"
"""Name of the event."""


def announce(dag: Any) -> None:
    """Log all jobs that are to be made, each with the fields of Snakemake's ``JOB_INFO`` and the jobs it waits for.

    Called by ``onstart`` of the Snakefile. Without the display, nothing is printed.

    Args:
        dag: Snakemake's graph of jobs, complete.
    """
    needed = list(dag.needrun_jobs(exclude_finished=False))
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
        }
        for job in needed
    ]
    logger.info(None, extra={"event": JOBS, "jobs": jobs})
