"""What all rules share: the checked configuration and the names of files.

In: the merged configuration. Out: `RUN`, what each rule asks for its `spec` and `code`, and helpers for file names.
The whole configuration is checked here, before any job starts.
"""

import os
import shlex

from coalmine import devices
from coalmine.config import check
from coalmine.errors import CoalmineError
from coalmine.sections import BLOCK
from snakemake.exceptions import WorkflowError
from snakemake_logger_plugin_coalmine.rule_names import rule_name

try:
    RUN = check(config)
except CoalmineError as error:
    raise WorkflowError(str(error)) from None

ROOT = f"results/{RUN.name}"
EXECUTION = RUN.config.execution
GPUS = devices.gpus() if EXECUTION.device != "cpu" else []
try:
    # Jobs that a cluster runs see what it hands them.
    SLOTS = (
        0
        if workflow.remote_exec
        else devices.slots(EXECUTION.gpus, EXECUTION.jobs_per_gpu, GPUS)
    )
except CoalmineError as error:
    raise WorkflowError(str(error)) from None
# One job asks a cluster for one GPU.
GPU = int(EXECUTION.device == "cuda" or bool(GPUS))


def threads_beside_a_gpu(wildcards):
    """CPU threads of a job that trains on a GPU of this machine.

    Just so many that no more of these jobs run at once than GPUs can take, as Snakemake counts cores on every machine.
    (Each job claims a GPU for itself: coalmine/devices.py.)
    """
    return workflow.cores // (SLOTS + 1) + 1 if workflow.local_exec else 1


# On a CPU one thread, with which the same command gives the same bytes.
THREADS = threads_beside_a_gpu if SLOTS else 1


def asked(stage, mem_mb, **resources):
    """What a job of a stage asks for: the rule's own or the configuration's, and more memory when it is tried again."""
    asked = {"mem_mb": mem_mb, **resources, **EXECUTION.resources.get(stage, {})}
    memory = asked["mem_mb"]
    if isinstance(memory, str):  # with a unit, "24G": as it is
        return asked
    return {**asked, "mem_mb": lambda wildcards, attempt: memory * attempt}


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
# Without its measurements: made anew, they differ, and whatever reads them would be made anew, too.
FEATURES = f"{ROOT}/pretrained/features.safetensors"
TEST = [f"{ROOT}/data/test/images.npy", f"{ROOT}/data/test/labels.npy"]

# glibc keeps freed memory for the next step instead of giving it back to the system: fresh pages cost a quarter of a
# private step on a CPU (bench/README.md). It changes no number.
MEMORY = "MALLOC_TRIM_THRESHOLD_=4294967296 MALLOC_MMAP_THRESHOLD_=33554432"
SOURCES = shlex.quote(f"{workflow.basedir}/src")
SHARING = (
    f"{devices.GPUS}={EXECUTION.gpus} {devices.JOBS_PER_GPU}={EXECUTION.jobs_per_gpu}"
)
shell.prefix(f"set -euo pipefail; export PYTHONPATH={SOURCES} {MEMORY} {SHARING}; ")


wildcard_constraints:
    method="|".join([*RUN.audited, *RUN.config.controls]),
    pretrained="|".join(RUN.pretrained) or "none",
    table="|".join(RUN.reports("tables")) or "none",
    figure="|".join(RUN.reports("figures")) or "none",


def pattern(methods):
    """Pattern of these names, of none if there are none."""
    return "|".join(methods) or "none"


def methods_that(*kinds):
    """Pattern of the methods whose files are of these kinds (see coalmine/plugins.py)."""
    return pattern(method for method in RUN.audited if RUN.kind(method) in kinds)


def names(count):
    """Names of the first so many shadow models, as files have them."""
    return [f"{shadow:03d}" for shadow in range(count)]


def blocks(count):
    """The same in blocks of those whose files are read together."""
    every = names(count)
    return [every[start : start + BLOCK] for start in range(0, count, BLOCK)]


def shadows_of(method):
    """Names of the shadow models that are made for a method or a control."""
    return names(RUN.shadows_of(method))


class Part:
    """One job of a stage that makes shadow models: those of one method (or of experts) that it makes at once.

    Rules are made for each part, not matched by wildcards: among a thousand shadow models of twenty methods, Snakemake
    would look for the maker of each file among all rules of its stage.

    No file name and no parameter depends on the size of a part, `execution.batch`. Nor does the set of its input files,
    or another size would rerun everything: a job reads the files of its whole block of shadow models, not just of its
    part. (Those of all shadow models would be too many: their number grows with its square.)
    """

    def __init__(self, stage, of, block, shadows):
        self.stage, self.of, self.block, self.shadows = stage, of, block, shadows
        self.rule = rule_name(stage, of, shadows[0])
        self.told = f"{shadows[0]} to {shadows[-1]}"
        self.log = f"{ROOT}/logs/{stage}/{of}-{shadows[0]}.log"
        self.design = design_of(of)

    def outputs(self, folder, suffix):
        """What it makes: files in a folder of the run, each with its measurements beside it."""
        return [
            f"{ROOT}/{folder}/{self.of}/{shadow}.{ending}"
            for shadow in self.shadows
            for ending in (suffix, "json")
        ]

    def spec(self, wildcards):
        """The configuration that it uses."""
        return RUN.spec(self.stage, self.of)

    def code(self, wildcards):
        """The hash of the code that it runs."""
        return RUN.method_code(self.stage, self.of)

    def privacy(self, wildcards):
        """What the method guarantees, where it claims differential privacy and this stage shows it private data."""
        return (
            guarantee_of(self.of) if RUN.shows_private_data(self.stage, self.of) else []
        )

    def public(self, wildcards):
        """Public data, if the method needs them."""
        return PUBLIC if RUN.uses_public(self.of) else []

    def pretrained(self, wildcards):
        """The network that fitting starts from, if public data have trained one."""
        name = RUN.pretrained_of(self.of)
        return [f"{ROOT}/pretrained/{name}.safetensors"] if name else []

    def synthetic(self, wildcards):
        """Synthetic sets that the models learned from, whoever made them; none if these are private data."""
        return self._of_block("synthetic", RUN.set_of(self.of), "npz")

    def models(self, wildcards):
        """The models."""
        return self._of_block("models", self.of, "safetensors")

    def teachers(self, wildcards):
        """The models that a data-free method distils."""
        return self._of_block("models", RUN.teacher_of(self.of), "safetensors")

    def experts(self, wildcards):
        """Trajectories that the method matches, if it matches any."""
        return self._of_block("experts", RUN.experts_of(self.of), "safetensors")

    def generators(self, wildcards):
        """Generative models that the method draws its sets from, if it draws from any."""
        return self._of_block("generators", RUN.generator_of(self.of), "safetensors")

    def _of_block(self, folder, owner, suffix):
        return artefacts(folder, owner, suffix, self.block) if owner else []


def parts(stage):
    """The jobs of a stage that makes shadow models, method by method."""
    return [
        Part(stage, name, block, block[start : start + EXECUTION.batch])
        for name, count in RUN.made_by(stage).items()
        for block in blocks(count)
        for start in range(0, len(block), EXECUTION.batch)
    ]


def artefacts(folder, owner, suffix, shadows):
    """One artefact a shadow model, without the measurements beside it."""
    return [f"{ROOT}/{folder}/{owner}/{shadow}.{suffix}" for shadow in shadows]


def design_files(case):
    """Canaries and membership of the worst or the average case."""
    folder = f"{ROOT}/audit" if case == "worst" else f"{ROOT}/audit/average"
    return [f"{folder}/canaries.csv", f"{folder}/membership.npy"]


def design_of(name):
    """The audit design under which a method's models, or experts, are made."""
    return design_files("average" if RUN.is_average_case(name) else "worst")


def audit_design_of(wildcards):
    """The same for a method or a control."""
    return design_of(RUN.models_of(wildcards.method))


def synthetic_of(wildcards):
    """All synthetic sets that a method's models learned from, whoever made them; none if these are private data."""
    method = RUN.models_of(wildcards.method)
    owner = RUN.set_of(method)
    return artefacts("synthetic", owner, "npz", shadows_of(method)) if owner else []


def teacher_logits_of(wildcards):
    """Logits of the models that taught a method's; none if none did, and for controls."""
    method = wildcards.method
    teacher = RUN.teacher_of(method) if method in RUN.audited else None
    return artefacts("logits", teacher, "npz", shadows_of(method)) if teacher else []


def guarantee_of(method):
    """What a method guarantees, if it claims differential privacy."""
    claims = method in RUN.audited and RUN.claims_privacy(method)
    return [f"{ROOT}/privacy/{method}.json"] if claims else []


def privacy_of(wildcards):
    """The same for the method that is scored."""
    return guarantee_of(wildcards.method)


def logits_of(wildcards):
    """Logits of a method, or of the method that a control borrows them from."""
    method = RUN.models_of(wildcards.method)
    return artefacts("logits", method, "npz", shadows_of(method))


def on_this_machine(path):
    """A file or folder that the configuration names, wherever results are stored (`--default-storage-provider`)."""
    return local(os.path.expanduser(path))


def source_files(role):
    """Archives of a data source: downloaded, or the local file or folder that the configuration names."""
    path = getattr(RUN.sources[role][1], "path", None)
    if path is not None:
        return [on_this_machine(path)]
    return [f"results/data/raw/{remote.name}" for remote in RUN.downloads(role)]


def inception_weights():
    """Weights of Inception-v3: downloaded, or the local file that the configuration names."""
    path = RUN.config.quality.inception.path
    if path is not None:
        return [on_this_machine(path)]
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
            measured
            for method in audited
            for stage, name in cost_stages(method)
            for measured in artefacts(stage, name, "json", shadows_of(method))
        ]
    if "synthetic" in needs:
        files += [PRIVATE[2]]
        files += [
            made
            for owner in owners
            for made in artefacts("synthetic", owner, "npz", shadows_of(owner))
        ]
    if "logits" in needs:
        teachers = [
            teacher for method in audited if (teacher := RUN.teacher_of(method))
        ]
        files += [
            answers
            for name in [*map(RUN.models_of, methods), *teachers]
            for answers in artefacts("logits", name, "npz", shadows_of(name))
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
