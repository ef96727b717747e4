"""Coalmine: how much does a model that was trained on synthetic data leak about the private data behind it?

    snakemake results/table1.csv --cores all

makes everything that table 1 of the default run (config.yaml) needs. Overlay a preset with
`--configfile workflow/presets/lite.yaml`; list all targets with `snakemake --list-target-rules`.
"""

import sys
from pathlib import Path

from snakemake.utils import min_version

min_version("9.20")

# The package beside this Snakefile, whether or not another copy of it is installed.
sys.path.insert(0, f"{workflow.basedir}/src")


configfile: f"{workflow.basedir}/config.yaml"


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/methods.smk"
include: "workflow/rules/audit.smk"
include: "workflow/rules/visual.smk"
include: "workflow/rules/quality.smk"
include: "workflow/rules/report.smk"


# An included file cannot set the default target.
rule all:
    """Every table and figure of the run, and its whole configuration."""
    default_target: True
    input:
        targets(),
        f"{ROOT}/config.json",
    localrule: True


onstart:
    # On a cluster, this machine's GPUs say nothing about those of others.
    if workflow.non_local_exec and EXECUTION.device == "auto":
        raise WorkflowError(
            "Jobs run on other machines, but execution.device is auto: say whether they ask for a GPU each "
            "(execution: {device: cuda}) or not (execution: {device: cpu}), for example in an overlay for --configfile."
        )
    # Snakemake's events count jobs by rule; the display (--logger coalmine) prices them by method and order.
    from coalmine.dag import read_job
    from coalmine.plan import expected_seconds
    from snakemake_logger_plugin_coalmine.announce import announce

    announce(
        workflow.dag,
        lambda jobs: expected_seconds(
            {number: read_job(job) for number, job in jobs.items()}, RUN
        ),
    )


onsuccess:
    from coalmine.kept import drop_kept

    # With remote storage, jobs work on copies below .snakemake.
    for run in (Path(ROOT), *Path(".snakemake/storage").glob(f"**/{ROOT}")):
        drop_kept(run)
