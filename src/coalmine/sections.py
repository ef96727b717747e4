"""The sections of ``config.yaml`` as typed blocks: what may be set, with its default, range and meaning.

Not imported by any stage, so that a new option here retrains nothing.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, PositiveInt, field_validator, model_validator

from coalmine.diffusion.settings import Pretraining
from coalmine.distillation.settings import Experts
from coalmine.models.settings import ModelSettings
from coalmine.settings import Settings
from coalmine.training.recipe import Normalisation, Recipe

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=64)]

_SHARED_FOLDERS = ("data", "logs", "published")  # of results/, beside those of the runs


class Data(Settings):
    """The data of a run."""

    private: dict[str, Any] = Field(description="The private data: `module` names a file in coalmine/data/sources.")
    public: dict[str, Any] | None = Field(
        default=None, description="Public data, or null. Never derived from private data."
    )
    private_size: int | None = Field(default=None, ge=1, description="Keep so many private samples, drawn at random.")
    test_size: int | None = Field(default=None, ge=1, description="Keep so many test samples, drawn at random.")
    public_size: int | None = Field(default=None, ge=1, description="Keep so many public samples, drawn at random.")
    normalisation: Normalisation = Field(description="Constants of the input normalisation, for pixels from 0 to 1.")


class AverageCase(Settings):
    """The second audit design: labels left right."""

    models: Literal["shared", "separate"] = Field(
        description="shared: further samples, labels left right, audited in the same models as the canaries (saves "
        "time). separate: the canaries themselves with their right labels, in models of their own."
    )
    samples: int | None = Field(default=None, ge=5, description="How many further samples (shared only).")

    @model_validator(mode="after")
    def _samples_only_if_shared(self) -> AverageCase:
        if self.models == "shared" and self.samples is None:
            raise ValueError("models: shared needs `samples`, the number of further samples to audit.")
        if self.models == "separate" and self.samples is not None:
            raise ValueError("models: separate audits the canaries themselves; set `samples: null`.")
        return self


class Views(Settings):
    """The fixed query views: flip x vertical shift x horizontal shift."""

    flip: bool = Field(description="Also query mirrored images.")
    shift: int = Field(ge=0, description="Shift by this many pixels up, down, left and right (the papers: 4).")


class Audit(Settings):
    """The audit design and its statistics."""

    canaries: int = Field(ge=5, description="Number of mislabelled canaries.")
    average: AverageCase | None = Field(default=None, description="The average-case audit, or null.")
    views: Views
    bootstrap: int = Field(default=1000, ge=1, description="Replicates of the bootstrap over canaries.")
    confidence: float = Field(
        default=0.95, gt=0.5, lt=1, description="Level of intervals and of the epsilon lower bound."
    )
    delta: float = Field(default=1e-5, ge=0, lt=1, description="Delta of the empirical epsilon.")


class Control(Settings):
    """A null control: another method's logits, scored with something broken on purpose."""

    of: Name = Field(description="The method whose logits are used.")
    membership: Literal["shuffled"] = Field(default="shuffled", description="Each canary's membership is permuted.")
    label: str | None = Field(default=None, description="Name in tables and figures.")


class Features(Settings):
    """The network whose features tell how alike two images look. It is trained on public data only."""

    model: ModelSettings = Field(description="Its architecture.")
    training: dict[str, Any] = Field(default_factory=dict, description="Replaces single values of the run's recipe.")


class Visual(Settings):
    """How near synthetic images are to private ones, whatever an attack on the models makes of them."""

    images: int = Field(
        default=200, ge=1, description="Synthetic images compared per shadow model, drawn at random if there are more."
    )
    level: float = Field(
        default=0.05, gt=0, lt=1, description="An image counts as too near if chance brings it so near this rarely."
    )
    features: Features | None = Field(
        default=None, description="Network for a distance of features, besides pixels and SSIM; null: no such distance."
    )


class Inception(Settings):
    """The network behind the Fréchet inception distance (FID)."""

    path: str | None = Field(
        default=None, min_length=1, description="Its weights at hand (safe to read, no code); null: they are fetched."
    )


class Quality(Settings):
    """How good synthetic images are as images, whatever a classifier makes of them."""

    shadows: int = Field(default=4, ge=1, description="Shadow models whose sets are looked at: the first so many.")
    images: int = Field(default=1000, ge=2, description="Images of a set that are looked at: the first so many.")
    neighbours: int = Field(default=3, ge=1, description="k of precision and recall; Kynkäänniemi et al.: 3.")
    inception: Inception | None = Field(
        default=None,
        description="Measure in the features of Inception-v3, which gives the FID; null: in those of the network that "
        "public data have trained (visual.features).",
    )


class Utility(Settings):
    """What synthetic sets are good for: classifiers of the run's recipe, trained on parts of them."""

    shadows: int = Field(default=4, ge=1, description="Shadow models whose sets are used: the first so many.")
    sizes: Annotated[tuple[PositiveInt, ...], Field(strict=False, min_length=1)] = Field(
        description="Train on the first so many images of a set, for each of these."
    )
    recipes: Annotated[tuple[dict[str, Any], ...], Field(strict=False)] = Field(
        default=(), description="Settings to be ranked, each replacing single values of the run's recipe."
    )
    validation: float = Field(
        default=0.2, gt=0, lt=1, description="Share of a set kept as synthetic validation data when recipes are ranked."
    )


BLOCK = 32
"""Shadow models whose files a job may read, its own among them. Fixed: what a job reads must not depend on how many
shadow models it makes, nor grow with how many there are."""

Stage = Literal[
    "account", "design", "distil", "download", "experts", "figure", "fit", "logits", "prepare", "pretrain",
    "pretrain_denoiser", "quality", "recipes", "resemble", "score", "sizes", "synthesize", "table", "train",
]  # fmt: skip
"""The stages whose jobs can be asked for other resources: the files of coalmine/stages."""

ResourceName = Annotated[str, Field(pattern=r"^[a-z][a-z_]*$", max_length=32)]
# It ends in a command line of the cluster's.
ResourceText = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.,:@+/-]+$", max_length=128)]


class Execution(Settings):
    """How jobs run. Nothing here changes a number beyond rounding, so nothing here reruns a job."""

    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="Where models are trained.")
    batch: int = Field(default=16, ge=1, le=BLOCK, description="Shadow models made by one job.")
    mode: Literal["auto", "sequential", "stacked"] = Field(
        default="auto",
        description="Train a batch one after another or as one stacked ensemble (auto: stacked on a GPU).",
    )
    gpus: PositiveInt | Literal["auto"] = Field(
        default="auto",
        description="How many of this machine's GPUs may be used (auto: all that CUDA_VISIBLE_DEVICES leaves). "
        "Clusters hand out their own.",
    )
    jobs_per_gpu: int = Field(
        default=1, ge=1, le=16, description="Jobs that share a GPU, for networks that do not fill one."
    )
    resources: dict[Stage, dict[ResourceName, PositiveInt | ResourceText]] = Field(
        default_factory=dict,
        description="What the jobs of a stage ask of a cluster in place of the rules' own: runtime (minutes), mem_mb, "
        "gpu, slurm_partition, ...",
    )


class Config(Settings):
    """A whole run."""

    run: Name = Field(description="Names the run: everything lies under results/<run>/.")
    seed: int = Field(default=0, ge=0, description="The one seed.")
    shadows: int = Field(
        le=10_000,
        description="Number of shadow models, even.",
        json_schema_extra={"minimum": 6, "multipleOf": 2},
    )
    data: Data
    audit: Audit
    model: ModelSettings = Field(description="Architecture of the audited models.")
    training: Recipe = Field(description="Training recipe of the audited models.")
    experts: dict[Name, Experts] = Field(
        default_factory=dict,
        description="Training trajectories by name, which methods match; made where a method's `experts` names them.",
    )
    pretrained: dict[Name, Pretraining] = Field(
        default_factory=dict,
        description="Denoisers by name that public data train, shared by all shadow models; made where a method's "
        "`fit.pretrained` names them.",
    )
    methods: dict[Name, dict[str, Any]] = Field(
        min_length=1, description="Methods by name; `module` names a file in coalmine/methods."
    )
    controls: dict[Name, Control] = Field(default_factory=dict, description="Null controls by name.")
    visual: Visual | None = Field(default=None, description="The comparison of synthetic with private images, or null.")
    quality: Quality | None = Field(default=None, description="The quality of synthetic images, or null.")
    utility: Utility | None = Field(default=None, description="What synthetic sets are good for, or null.")
    tables: dict[str, dict[str, Any]] = Field(description="Tables by name, a file in coalmine/reporting each.")
    figures: dict[str, dict[str, Any]] = Field(description="Figures by name, a file in coalmine/reporting each.")
    execution: Execution = Execution()

    @field_validator("run")
    @classmethod
    def _has_a_folder_of_its_own(cls, run: str) -> str:
        if run in _SHARED_FOLDERS:
            raise ValueError(f"is {run}, but results/{run} is kept for what runs share; name the run otherwise.")
        return run

    @field_validator("pretrained")
    @classmethod
    def _leaves_features_alone(cls, pretrained: dict[str, Pretraining]) -> dict[str, Pretraining]:
        if "features" in pretrained:
            raise ValueError("has an entry features, the name of the network of visual.features; name it otherwise.")
        return pretrained

    @field_validator("shadows")
    @classmethod
    def _can_be_halved(cls, shadows: int) -> int:
        if shadows % 2:
            raise ValueError(f"is {shadows}; an even number is needed, as each canary is in exactly half.")
        if shadows < 6:
            raise ValueError(
                f"is {shadows}; LiRA needs at least 6: a target aside, two models with and two without each canary."
            )
        return shadows


class Shared(Settings):
    """What every method may set beside its own settings."""

    label: str | None = Field(default=None, description="Name in tables and figures.")
    model: ModelSettings | None = Field(default=None, description="Another architecture than the run's, given whole.")
    training: dict[str, Any] = Field(default_factory=dict, description="Replaces single values of the run's recipe.")
    shadows: int | None = Field(
        default=None,
        ge=6,
        description="Make and audit only the first so many of the run's shadow models, for an expensive method.",
    )


class Method(NamedTuple):
    """One row: a method file with its settings, and how the audited model is trained."""

    name: str
    label: str
    module: str
    settings: Settings
    model: ModelSettings
    recipe: Recipe
    shadows: int | None = None


class Modules(NamedTuple):
    """What the configuration names, each with its own settings checked."""

    methods: dict[str, Method]
    sources: dict[str, tuple[str, Settings]]
    tables: dict[str, Settings]
    figures: dict[str, Settings]
    features: Recipe | None
    recipes: tuple[Recipe, ...] = ()
