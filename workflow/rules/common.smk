"""What all rules share: the checked configuration and the names of files.

In: the merged configuration. Out: `RUN`, what each rule asks for its `spec` and `code`, and helpers for file names.
The whole configuration is checked here, before any job starts.
"""

import os
import shutil

from coalmine.config import check
from coalmine.errors import CoalmineError
from snakemake.exceptions import WorkflowError

try:
    RUN = check(config)
except CoalmineError as error:
    raise WorkflowError(str(error)) from None

ROOT = f"results/{RUN.name}"
SHADOWS = [f"{shadow:03d}" for shadow in RUN.shadows]
EXECUTION = RUN.config.execution
# The GPU token keeps jobs from sharing a device. Without a GPU, one-thread jobs run side by side.
ON_GPU = EXECUTION.device == "cuda" or (
    EXECUTION.device == "auto" and shutil.which("nvidia-smi") is not None
)

PRIVATE = [
    f"{ROOT}/data/private/images.npy",
    f"{ROOT}/data/private/labels.npy",
    f"{ROOT}/data/classes.json",
]
PUBLIC = (
    [f"{ROOT}/data/public/images.npy", f"{ROOT}/data/public/labels.npy"]
    if "public" in RUN.sources
    else []
)
FEATURES = [
    f"{ROOT}/pretrained/features.safetensors",
    f"{ROOT}/pretrained/features.json",
]
TEST = [f"{ROOT}/data/test/images.npy", f"{ROOT}/data/test/labels.npy"]

# glibc keeps freed memory for the next step instead of giving it back to the system: fresh pages cost a quarter of a
# private step on a CPU (bench/README.md). It changes no number.
MEMORY = "MALLOC_TRIM_THRESHOLD_=4294967296 MALLOC_MMAP_THRESHOLD_=33554432"
shell.prefix(f"set -euo pipefail; export PYTHONPATH={workflow.basedir}/src {MEMORY}; ")


wildcard_constraints:
    method="|".join([*RUN.audited, *RUN.config.controls]),
    experts="|".join(RUN.experts) or "none",
    table="|".join(RUN.reports("tables")) or "none",
    figure="|".join(RUN.reports("figures")) or "none",


def methods_that(*kinds):
    """Pattern of the methods whose files are of these kinds (see coalmine/plugins.py)."""
    return (
        "|".join(method for method in RUN.audited if RUN.kind(method) in kinds)
        or "none"
    )


def batches():
    """Shadow models by job. No file name and no parameter depends on the size of a batch."""
    size = EXECUTION.batch
    return [SHADOWS[start : start + size] for start in range(0, len(SHADOWS), size)]


def per_shadow(stage, method, suffix):
    """One artefact a shadow model, each with its measurements beside it."""
    return [
        f"{ROOT}/{stage}/{method}/{shadow}.{ending}"
        for shadow in SHADOWS
        for ending in (suffix, "json")
    ]


def batch_outputs(stage, suffix, batch, of="method"):
    """What one job of a batched stage makes, for every method (or experts)."""
    return [
        f"{ROOT}/{stage}/{{{of}}}/{shadow}.{ending}"
        for shadow in batch
        for ending in (suffix, "json")
    ]


def design_files(case):
    """Canaries and membership of the worst or the average case."""
    folder = f"{ROOT}/audit" if case == "worst" else f"{ROOT}/audit/average"
    return [f"{folder}/canaries.csv", f"{folder}/membership.npy"]


def design_of(wildcards):
    """The audit design under which a method's models, or experts, are made."""
    name = wildcards.get("experts") or RUN.models_of(wildcards.method)
    return design_files("average" if RUN.is_average_case(name) else "worst")


# Batched stages read the files of all shadow models, not just of their own batch: the set of input files must not
# depend on the size of a batch, or another size would rerun everything.
def synthetic_of(wildcards):
    """Synthetic sets that a method's models learned from, whoever made them; none if these are private data."""
    owner = RUN.set_of(RUN.models_of(wildcards.method))
    return per_shadow("synthetic", owner, "npz") if owner else []


def teachers_of(wildcards):
    """The models that a data-free method distils."""
    return per_shadow("models", RUN.teacher_of(wildcards.method), "safetensors")


def teacher_logits_of(wildcards):
    """Logits of the models that taught a method's; none if none did, and for controls."""
    method = wildcards.method
    teacher = RUN.teacher_of(method) if method in RUN.audited else None
    return (
        [f"{ROOT}/logits/{teacher}/{shadow}.npz" for shadow in SHADOWS]
        if teacher
        else []
    )


def experts_of(wildcards):
    """Trajectories that a method matches, if it matches any."""
    experts = RUN.experts_of(wildcards.method)
    return per_shadow("experts", experts, "safetensors") if experts else []


def privacy_of(wildcards):
    """What a method guarantees, if it claims differential privacy."""
    claims = wildcards.method in RUN.audited and RUN.claims_privacy(wildcards.method)
    return [f"{ROOT}/privacy/{wildcards.method}.json"] if claims else []


def training_privacy_of(wildcards):
    """The same for a method that trains on the private data itself."""
    return privacy_of(wildcards) if RUN.kind(wildcards.method) == "train" else []


def public_of(wildcards):
    """Public data, if the method needs them."""
    return PUBLIC if RUN.uses_public(wildcards.method) else []


def models_of(wildcards):
    """Models of a method."""
    return per_shadow("models", wildcards.method, "safetensors")


def logits_of(wildcards):
    """Logits of a method, or of the method that a control borrows them from."""
    method = RUN.models_of(wildcards.method)
    return [f"{ROOT}/logits/{method}/{shadow}.npz" for shadow in SHADOWS]


def source_files(role):
    """Archives of a data source: downloaded, or the local file or folder that the configuration names."""
    local = getattr(RUN.sources[role][1], "path", None)
    if local is not None:
        return [os.path.expanduser(local)]
    return [f"results/data/raw/{remote.name}" for remote in RUN.downloads(role)]


def cost_stages(method):
    """What had to be made for the audit of a method, as stage and method or experts."""
    owner = RUN.set_of(method)
    experts, teacher = RUN.experts_of(owner or method), RUN.teacher_of(method)
    stages = [("models", method), ("logits", method)]
    stages += [("synthetic", owner)] if owner else []
    stages += [("experts", experts)] if experts else []
    stages += [("models", teacher)] if teacher else []
    return stages


def report_inputs(section, name):
    """What a table or figure reads, by the tokens in its `NEEDS`."""
    needs, methods = RUN.report_needs(section, name)
    audited = [method for method in methods if method in RUN.audited]
    owners = [owner for method in audited if (owner := RUN.set_of(method))]
    files = []
    if "data" in needs:
        files += [*PRIVATE, *design_files("worst")]
    if "metrics" in needs:
        files += [f"{ROOT}/metrics/{method}.json" for method in methods]
    if "scores" in needs:
        files += [f"{ROOT}/scores/{method}.npz" for method in methods]
    if "costs" in needs:
        files += [
            f"{ROOT}/{stage}/{name}/{shadow}.json"
            for method in audited
            for stage, name in cost_stages(method)
            for shadow in SHADOWS
        ]
    if "synthetic" in needs:
        files += [
            f"{ROOT}/synthetic/{owner}/{shadow}.npz"
            for owner in owners
            for shadow in SHADOWS
        ]
    if "logits" in needs:
        teachers = [
            teacher for method in audited if (teacher := RUN.teacher_of(method))
        ]
        files += [
            f"{ROOT}/logits/{name}/{shadow}.npz"
            for name in [*map(RUN.models_of, methods), *teachers]
            for shadow in SHADOWS
        ]
    if "visual" in needs and RUN.compares_images:
        files += [
            f"{ROOT}/visual/{owner}.{ending}"
            for owner in owners
            for ending in ("npz", "json")
        ]
        files += PUBLIC if "data" in needs else []
    return list(dict.fromkeys(files))


def targets():
    """All finished tables and figures."""
    return [
        f"results/{name}.csv"
        for section in ("tables", "figures")
        for name in RUN.reports(section)
    ]
