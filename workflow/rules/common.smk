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
    pretrained="|".join(RUN.pretrained) or "none",
    experts="|".join(RUN.experts) or "none",
    table="|".join(RUN.reports("tables")) or "none",
    figure="|".join(RUN.reports("figures")) or "none",


def pattern(methods):
    """Pattern of these names, of none if there are none."""
    return "|".join(methods) or "none"


def methods_that(*kinds, shadows=None):
    """Pattern of the methods whose files are of these kinds (see coalmine/plugins.py), with so many shadow models."""
    return pattern(
        method
        for method in RUN.audited
        if RUN.kind(method) in kinds and shadows in (None, RUN.shadows_of(method))
    )


def methods_with(shadows):
    """Pattern of the methods with so many shadow models."""
    return pattern(
        method for method in RUN.audited if RUN.shadows_of(method) == shadows
    )


def methods_that_fit(shadows):
    """Pattern of the methods that fit generative models of their own, for so many shadow models."""
    return pattern(
        method
        for method in RUN.audited
        if RUN.fits(method) and RUN.shadows_of(method) == shadows
    )


def shadow_names(count):
    """Names of the first so many shadow models, as files have them."""
    return [f"{shadow:03d}" for shadow in range(count)]


def shadows_of(method):
    """Names of the shadow models that are made for a method or a control."""
    return shadow_names(RUN.shadows_of(method))


class Part:
    """The shadow models of one job, of methods that have `count` of them in all.

    No file name and no parameter depends on the size of a part, `execution.batch`.
    """

    def __init__(self, count, shadows):
        self.count, self.shadows = count, shadows
        # Rules are named after their first shadow model, and the total where that is not the run's.
        of = "" if count == len(RUN.shadows) else f"_of_{count}"
        self.name = f"{shadows[0]}{of}"
        self.told = f"{shadows[0]} to {shadows[-1]}"

    def outputs(self, stage, suffix, of="method"):
        """What one job of a stage makes, for every method (or experts)."""
        return [
            f"{ROOT}/{stage}/{{{of}}}/{shadow}.{ending}"
            for shadow in self.shadows
            for ending in (suffix, "json")
        ]


def parts():
    """Shadow models by job, for every number of shadow models that some method has."""
    counts = sorted({len(RUN.shadows), *map(RUN.shadows_of, RUN.audited)}, reverse=True)
    size = EXECUTION.batch
    return [
        Part(count, shadow_names(count)[start : start + size])
        for count in counts
        for start in range(0, count, size)
    ]


def per_shadow(stage, method, suffix):
    """One artefact a shadow model, each with its measurements beside it; experts are made for all of the run's."""
    every = stage == "experts"
    return [
        f"{ROOT}/{stage}/{method}/{shadow}.{ending}"
        for shadow in (shadow_names(len(RUN.shadows)) if every else shadows_of(method))
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
        [f"{ROOT}/logits/{teacher}/{shadow}.npz" for shadow in shadows_of(method)]
        if teacher
        else []
    )


def experts_of(wildcards):
    """Trajectories that a method matches, if it matches any."""
    experts = RUN.experts_of(wildcards.method)
    return per_shadow("experts", experts, "safetensors") if experts else []


def generators_of(wildcards):
    """Generative models that a method draws its sets from, if it draws from any."""
    owner = RUN.generator_of(wildcards.method)
    return per_shadow("generators", owner, "safetensors") if owner else []


def pretrained_of(wildcards):
    """The network that the fitting of a method starts from, if public data have trained one."""
    name = RUN.pretrained_of(wildcards.method)
    files = (f"{ROOT}/pretrained/{name}.{ending}" for ending in ("safetensors", "json"))
    return [*files] if name else []


def privacy_of(wildcards):
    """What a method guarantees, if it claims differential privacy."""
    claims = wildcards.method in RUN.audited and RUN.claims_privacy(wildcards.method)
    return [f"{ROOT}/privacy/{wildcards.method}.json"] if claims else []


def training_privacy_of(wildcards):
    """The same for a method that trains on the private data itself."""
    return privacy_of(wildcards) if RUN.kind(wildcards.method) == "train" else []


def synthesis_privacy_of(wildcards):
    """The same for a method whose sets are made from private data, not drawn from generative models."""
    return [] if RUN.generator_of(wildcards.method) else privacy_of(wildcards)


def public_of(wildcards):
    """Public data, if the method needs them."""
    return PUBLIC if RUN.uses_public(wildcards.method) else []


def models_of(wildcards):
    """Models of a method."""
    return per_shadow("models", wildcards.method, "safetensors")


def logits_of(wildcards):
    """Logits of a method, or of the method that a control borrows them from."""
    method = RUN.models_of(wildcards.method)
    return [f"{ROOT}/logits/{method}/{shadow}.npz" for shadow in shadows_of(method)]


def source_files(role):
    """Archives of a data source: downloaded, or the local file or folder that the configuration names."""
    local = getattr(RUN.sources[role][1], "path", None)
    if local is not None:
        return [os.path.expanduser(local)]
    return [f"results/data/raw/{remote.name}" for remote in RUN.downloads(role)]


def inception_weights():
    """Weights of Inception-v3: downloaded, or the local file that the configuration names."""
    local = RUN.config.quality.inception.path
    if local is not None:
        return [os.path.expanduser(local)]
    return [f"results/data/raw/{remote.name}" for remote in RUN.inception_downloads()]


def cost_stages(method):
    """What had to be made for the audit of a method, as stage and method or experts."""
    owner = RUN.set_of(method)
    experts, teacher = RUN.experts_of(owner or method), RUN.teacher_of(method)
    generator = RUN.generator_of(owner or method)
    stages = [("models", method), ("logits", method)]
    stages += [("generators", generator)] if generator else []
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
            for shadow in shadows_of(method)
        ]
    if "synthetic" in needs:
        files += [PRIVATE[2]]
        files += [
            f"{ROOT}/synthetic/{owner}/{shadow}.npz"
            for owner in owners
            for shadow in shadows_of(owner)
        ]
    if "logits" in needs:
        teachers = [
            teacher for method in audited if (teacher := RUN.teacher_of(method))
        ]
        files += [
            f"{ROOT}/logits/{name}/{shadow}.npz"
            for name in [*map(RUN.models_of, methods), *teachers]
            for shadow in shadows_of(name)
        ]
    for measured in ("quality", "sizes", "recipes"):
        if measured in needs:
            files += [f"{ROOT}/{measured}/{owner}.json" for owner in owners]
    others = getattr(RUN.report(section, name), "runs", ())
    files += [f"results/{run}/{name}.csv" for run in others]
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
