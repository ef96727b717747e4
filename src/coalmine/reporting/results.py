"""A run's results folder, read lazily and checked: metrics, scores, what images are like and good for, costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from coalmine.artefacts import read_json, read_npz
from coalmine.errors import REMEDY, CoalmineError

if TYPE_CHECKING:
    import pandas as pd


class _OfMethod(Protocol):
    """What a file tells of one method."""

    @property
    def method(self) -> str: ...


T = TypeVar("T")
Told = TypeVar("Told", bound=_OfMethod)

LOW_FPR = "0.001"
HIGH_FPR = "0.01"
COST_STAGES = ("teacher", "experts", "generators", "synthetic", "models", "logits")
MADE = ("teacher", "experts", "generators", "synthetic", "models")
"""The stages that make an audited model; the rest is the audit's. Pre-training on public data is none of them."""

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0)]
Coefficient = Annotated[float, Field(ge=-1, le=1)]
Size = Annotated[int, Field(ge=1)]
Finite = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class Interval:
    """An estimate with its bootstrap interval (``None`` if none was computed)."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Rate(Interval):
    """TPR at a fixed FPR, with the false positives that its threshold let through and those that were allowed."""

    value: Share
    low: Share | None
    high: Share | None
    false_positives: Count
    allowed: Count


@dataclass(frozen=True)
class EmpiricalEpsilon:
    """Lower bound on epsilon at ``delta``, and the highest bound that ``canaries`` canaries could have given."""

    lower: Amount
    confidence: Share
    delta: Share
    ceiling: Amount
    canaries: Count


@dataclass(frozen=True)
class Variant:
    """What one attack variant reached; ``tpr`` is keyed by the FPR as text (``"0.001"``, ``"0.01"``)."""

    auc: Interval
    tpr: dict[str, Rate]
    epsilon: EmpiricalEpsilon


@dataclass(frozen=True)
class Maximum:
    """The highest TPR of all variants, chosen after the fact, and the variant that reached it."""

    value: Share
    variant: str


@dataclass(frozen=True)
class Facts:
    """Shares of the canaries: used by the method (``None`` where that means nothing) and memorised by the models.

    ``memorised`` is the share of (IN canary, model) pairs whose query label the model predicts, ``memorised_out`` the
    same over OUT pairs; ``selected`` and ``initialised`` are the shares of IN pairs that entered the synthetic set.
    """

    selected: Share | None
    initialised: Share | None
    memorised: Share
    memorised_out: Share


@dataclass(frozen=True)
class Correlation(Interval):
    """A correlation between teachers and students, with its bootstrap interval."""

    value: Coefficient
    low: Coefficient | None
    high: Coefficient | None


@dataclass(frozen=True)
class Inherited:
    """Teachers and students on one side, IN or OUT: the shares of pairs whose query label they predict.

    ``rates`` is the correlation of these shares over shadow models, ``scores`` that of the scores over pairs; ``None``
    where either does not vary. See :mod:`coalmine.audit.inheritance`.
    """

    pairs: Count
    teacher: Share
    student: Share
    rates: Correlation | None
    scores: Correlation | None


@dataclass(frozen=True)
class Followed:
    """Shares of IN pairs whose query label the student predicts, by whether its teacher does (taught) or not."""

    taught: Share | None
    taught_pairs: Count
    untaught: Share | None
    untaught_pairs: Count


@dataclass(frozen=True)
class Inheritance:
    """What students take over from the models of ``teacher``, another method."""

    teacher: str
    members: Inherited
    nonmembers: Inherited
    followed: Followed


@dataclass(frozen=True)
class Group:
    """The audit of one kind of canary: (canary, model) pairs, members among them, and every attack variant.

    ``inheritance`` is ``None`` for a method without a teacher.
    """

    pairs: Count
    members: Count
    variants: dict[str, Variant]
    max_over_variants: dict[str, Maximum]
    facts: Facts
    inheritance: Inheritance | None = None


@dataclass(frozen=True)
class Accuracy:
    """Test accuracy over models: mean, standard error of the mean (``None`` for one model), and each model's."""

    mean: Share
    se: float | None
    per_model: list[float]


@dataclass(frozen=True)
class Claim:
    """Claimed differential privacy and the mechanism behind it; ``epsilon`` is ``None`` without a guarantee.

    ``noise_multiplier`` is the noise's standard deviation in units of ``clip``, the largest norm of one example's
    gradient; ``sampling_rate`` is per step. ``note`` is what a reader of the claim must also know.
    """

    epsilon: Amount | None
    delta: Share | None
    accountant: str | None
    noise_multiplier: Amount | None = None
    sampling_rate: Share | None = None
    steps: Count | None = None
    clip: Amount | None = None
    note: str | None = None


@dataclass(frozen=True)
class Design:
    """The audit's size: models, mislabelled canaries, clean canaries and views per query."""

    models: Count
    canaries: Count
    clean: Count
    views: Count


@dataclass(frozen=True)
class MethodMetrics:
    """Everything in ``metrics/<method>.json``; ``membership`` is ``"shuffled"`` for a null control."""

    method: str
    membership: Literal["true", "shuffled"]
    design: Design
    accuracy: Accuracy
    claimed: Claim
    primary: str
    groups: dict[str, Group]

    def group(self, name: str) -> Group:
        """Return the audit of one kind of canary (``"mislabelled"`` or ``"clean"``).

        Raises:
            CoalmineError: the method was not audited with that kind.
        """
        if name not in self.groups:
            raise CoalmineError(
                f"Method {self.method!r} was not audited on {name} canaries (its metrics hold: "
                f"{', '.join(sorted(self.groups)) or 'none'}). Set a number of {name} canaries in the configuration, "
                "name under `average` a method entry that has them, or leave the method out."
            )
        return self.groups[name]

    def variant(self, group: str, name: str | None = None) -> Variant:
        """Return one attack variant of a group, by default the primary one.

        Raises:
            CoalmineError: the group or the variant was not computed.
        """
        variants = self.group(group).variants
        name = name or self.primary
        if name not in variants:
            raise CoalmineError(
                f"The metrics of method {self.method!r} hold no attack variant {name!r} for {group} canaries; they "
                f"hold {', '.join(sorted(variants))}. Choose one of these."
            )
        return variants[name]


@dataclass(frozen=True)
class FlaggedShare(Interval):
    """Share of synthetic images that are nearer to a private image than chance allows, bootstrap over models."""

    value: Share
    low: Share | None
    high: Share | None


@dataclass(frozen=True)
class Resemblance:
    """Visual leakage by one distance: the share flagged, mean over models, and each model's."""

    share: FlaggedShare
    per_model: list[Share]


@dataclass(frozen=True)
class Visual:
    """Everything in ``visual/<method>.json``: how near synthetic images are to private ones, by every distance.

    ``images`` were compared per shadow model, against ``held_out`` audited samples on average that the model never saw.
    A fresh image of the same distribution is flagged with probability ``level`` at most. ``metrics`` is keyed by
    ``"pixel"``, ``"ssim"`` and, where a network was trained on public data, ``"features"``.
    """

    method: str
    images: Count
    level: Share
    held_out: Amount
    metrics: dict[str, Resemblance]


@dataclass(frozen=True)
class OverModels:
    """A quantity over shadow models: mean, standard error of the mean (``None`` for one model), and each model's."""

    value: Finite
    se: Finite | None
    per_model: list[Finite]


@dataclass(frozen=True)
class ShareOverModels(OverModels):
    """The same of a share."""

    value: Share
    per_model: list[Share]


@dataclass(frozen=True)
class Space:
    """The features that images are compared by: their name for people, and whether they are Inception's (FID)."""

    name: str
    inception: bool


@dataclass(frozen=True)
class Quality:
    """Everything in ``quality/<method>.json``: how good the images of synthetic sets are, over ``shadows``.

    Of each set, ``images`` were compared with private images, ``reference`` of them for the first shadow model.
    ``distance`` is the Frechet distance; ``precision`` and ``recall`` are those of Kynkaanniemi et al. (2019) with
    ``neighbours``. ``nearest`` is the mean ratio a / b of the distances to the nearest private and the nearest held-out
    image, a little above 1 without leakage, and ``nearest_balanced`` the mean of 2 a / (a + b), 1 without.
    ``synthetic`` is the number of images of a whole set. The last two are ``None`` where they were not written down.
    """

    method: str
    space: Space
    images: Size
    reference: Size
    neighbours: Size
    shadows: list[Count]
    distance: OverModels
    precision: ShareOverModels
    recall: ShareOverModels
    nearest: OverModels
    nearest_balanced: OverModels | None = None
    synthetic: Size | None = None


@dataclass(frozen=True)
class AccuracyOfSize:
    """Test accuracy of classifiers that were trained on the first ``size`` images of synthetic sets."""

    size: Size
    accuracy: ShareOverModels


@dataclass(frozen=True)
class Sizes:
    """Everything in ``sizes/<method>.json``: accuracy by the number of synthetic images, over ``shadows``."""

    method: str
    shadows: list[Count]
    sizes: list[AccuracyOfSize]


@dataclass(frozen=True)
class Recipes:
    """Everything in ``recipes/<method>.json``: what training recipes reach on synthetic and on real images.

    ``recipes`` are overrides of the run's recipe; ``synthetic`` (on ``validation`` held-out images of a set) and
    ``real`` (on the test images) are accuracies, ``(recipe, model)``.
    """

    method: str
    shadows: list[Count]
    validation: Size
    recipes: list[dict[str, Any]]
    synthetic: list[list[Share]]
    real: list[list[Share]]


@dataclass(frozen=True)
class Cost:
    """What making one artefact of one shadow model took."""

    seconds: Amount
    device: str
    peak_memory_mb: Amount
    bytes: Count


class Audited(NamedTuple):
    """Scores of one attack variant and the true membership, both ``(canary, model)``; larger = more likely IN."""

    scores: np.ndarray
    membership: np.ndarray


@dataclass(frozen=True)
class Scores:
    """The score file of one method."""

    path: Path

    def read(self, group: str, variant: str) -> Audited:
        """Read one variant's scores (float64) and the membership (bool), both of shape ``(canary, model)``.

        Raises:
            CoalmineError: the file or one of the arrays is missing, has another type or shape, or holds NaN.
        """
        scores_name, membership_name = f"{group}/{variant}", f"{group}/membership"
        fields = {scores_name: ("float64", (None, None)), membership_name: ("bool", (None, None))}
        _, arrays = read_npz(self.path, **fields)
        scores, membership = arrays[scores_name], arrays[membership_name]
        if scores.shape != membership.shape:
            raise CoalmineError(
                f"{self.path}: {scores_name} has shape {scores.shape}, but {membership_name} has {membership.shape}. "
                f"{REMEDY}"
            )
        return Audited(scores, membership)

    def read_taken(self, group: str) -> np.ndarray:
        """Read bool ``(canary, model)``: the model's synthetic set holds something made from that canary's image.

        Raises:
            CoalmineError: the file or the array is missing, or has another type.
        """
        name = f"{group}/taken"
        _, arrays = read_npz(self.path, **{name: ("bool", (None, None))})
        return arrays[name]


@dataclass(frozen=True)
class _Metrics(Mapping[str, MethodMetrics]):
    """``metrics/<method>.json`` by method, read once, when asked for."""

    root: Path
    methods: tuple[str, ...]
    read: dict[str, MethodMetrics] = field(default_factory=dict)

    def __getitem__(self, method: str) -> MethodMetrics:
        if method not in self.methods:
            raise KeyError(method)
        if method not in self.read:
            self.read[method] = _read_metrics(self.root, method)
        return self.read[method]

    def __iter__(self) -> Iterator[str]:
        return iter(self.methods)

    def __len__(self) -> int:
        return len(self.methods)


@dataclass(frozen=True)
class Results:
    """The results of a run's methods; nothing is read before it is asked for."""

    root: Path
    methods: tuple[str, ...]
    metrics: Mapping[str, MethodMetrics] = field(repr=False)
    experts: Mapping[str, str] = field(default_factory=dict)
    sets: Mapping[str, str] = field(default_factory=dict)
    teachers: Mapping[str, str] = field(default_factory=dict)
    generators: Mapping[str, str] = field(default_factory=dict)
    compares_images: bool = True

    def visual(self, method: str) -> Visual | None:
        """Return the visual leakage of a method's sets, None where no synthetic images were compared with private ones.

        A method that reuses another's sets has that one's.

        Raises:
            CoalmineError: the file is missing, broken or another method's.
        """
        owner = self.sets.get(method)
        if owner is None or not self.compares_images:
            return None
        return _read_of(self.root / "visual" / f"{owner}.json", Visual, owner, "visual leakage")

    def quality(self, method: str) -> Quality:
        """Return how good the images of a method's sets are; a method that reuses another's sets has that one's.

        Raises:
            CoalmineError: the method has no synthetic sets, or the file is missing, broken or another method's.
        """
        path, quality = self._of_sets("quality", method, Quality)
        for name, found in vars(quality).items():
            if isinstance(found, OverModels):
                _check_length(path, f"{name}.per_model", found.per_model, len(quality.shadows), "shadows")
        return quality

    def sizes(self, method: str) -> Sizes:
        """Return the accuracy of classifiers by the number of synthetic images of a method's sets.

        They are trained as those of the method that made the sets.

        Raises:
            CoalmineError: the method has no synthetic sets, or the file is missing, broken or another method's.
        """
        path, sizes = self._of_sets("sizes", method, Sizes)
        for number, each in enumerate(sizes.sizes):
            models = each.accuracy.per_model
            _check_length(path, f"sizes.{number}.accuracy.per_model", models, len(sizes.shadows), "shadows")
        return sizes

    def recipes(self, method: str) -> Recipes:
        """Return what training recipes reach with a method's sets.

        Raises:
            CoalmineError: the method has no synthetic sets, or the file is missing, broken or another method's.
        """
        path, recipes = self._of_sets("recipes", method, Recipes)
        for name in ("synthetic", "real"):
            accuracies = getattr(recipes, name)
            _check_length(path, name, accuracies, len(recipes.recipes), "recipes")
            for number, models in enumerate(accuracies):
                _check_length(path, f"{name}.{number}", models, len(recipes.shadows), "shadows")
        return recipes

    def _of_sets(self, stage: str, method: str, kind: type[Told]) -> tuple[Path, Told]:
        """Return what a stage found of a method's synthetic sets, whoever made them, and the file it is from."""
        owner = self.sets.get(method)
        if owner is None:
            raise CoalmineError(f"{method} makes no synthetic images, so they have no {stage}. Leave it out.")
        path = self.root / stage / f"{owner}.json"
        return path, _read_of(path, kind, owner, stage)

    def scores(self, method: str) -> Scores:
        """Return the score file of a method."""
        return Scores(self.root / "scores" / f"{method}.npz")

    def costs(self, method: str) -> pd.DataFrame:
        """Return what was measured while making a method's artefacts, one row per stage and shadow model.

        Columns: stage (one of ``COST_STAGES``; a stage the method lacks has no rows), shadow, seconds (of this model,
        shared work divided), device, peak_memory_mb, bytes. A teacher, experts, generators or synthetic sets that
        several methods share count fully for each of them: it could not do without. Files of shadow models beyond the
        method's number, left over from a larger run or made for another method, are not counted.

        Raises:
            CoalmineError: there is no measurement of training, of the teacher, of the experts or of the generators,
                one shadow model's is missing, or a file is broken.
        """
        import pandas as pd

        n_models = self.metrics[method].design.models
        rows = [
            {"stage": stage, "shadow": shadow, **vars(_read(path, Cost))}
            for stage, folder in self._made_in(method)
            for shadow, path in _measurements(folder, n_models).items()
        ]
        if not any(row["stage"] == "models" for row in rows):
            folder = self.root / "models" / method
            raise CoalmineError(
                f"{folder} holds no measurement of training (<shadow>.json). Run Snakemake for method {method!r}; if "
                "it is a control that reuses another method's models, leave it out of the cost table."
            )
        for stage, folder in self._made_in(method):
            if stage in ("teacher", "experts", "generators") and not any(row["stage"] == stage for row in rows):
                raise CoalmineError(
                    f"{folder} holds no measurement of the {stage} of method {method!r} (<shadow>.json). Run Snakemake "
                    "for the target that you want; it makes what it needs."
                )
        return pd.DataFrame(rows)

    def _made_in(self, method: str) -> list[tuple[str, Path]]:
        """Return each stage and the folder of what it made for the method."""
        names = dict.fromkeys(COST_STAGES, method) | {
            "teacher": self.teachers.get(method),
            "experts": self.experts.get(method),
            "generators": self.generators.get(method),
            "synthetic": self.sets.get(method, method),
        }
        folders = {"teacher": "models"}
        return [
            (stage, self.root / folders.get(stage, stage) / name) for stage, name in names.items() if name is not None
        ]

    def seconds_per_model(self, method: str) -> tuple[float | None, str | None]:
        """Return mean seconds to make one audited model, with all that ``MADE`` lists, and the device.

        Both are ``None`` for a shuffled control, which reuses another method's models.
        """
        if self.metrics[method].membership == "shuffled":
            return None, None
        costs = self.costs(method)
        made = costs[costs["stage"].isin(MADE)]
        return float(made.groupby("stage")["seconds"].mean().sum()), ", ".join(sorted(set(made["device"])))


def load_results(
    root: Path,
    methods: Sequence[str],
    *,
    experts: Mapping[str, str] | None = None,
    sets: Mapping[str, str] | None = None,
    teachers: Mapping[str, str] | None = None,
    generators: Mapping[str, str] | None = None,
    visual: bool = True,
) -> Results:
    """Open the results folder of one run (``results/<run>/``) for the methods named.

    Args:
        root: the folder.
        methods: their names.
        experts: method -> the experts that it matches.
        sets: method -> the method whose synthetic sets its models learned from.
        teachers: method -> the method whose models taught its own.
        generators: method -> the method whose generative models its sets are drawn from.
        visual: whether synthetic images were compared with private ones.

    Raises:
        CoalmineError: the folder does not exist; later, when a file that is asked for is missing or broken.
    """
    root = Path(root)
    if not root.is_dir():
        raise CoalmineError(f"There is no results folder {root}. Run Snakemake for the target that you want first.")
    names = tuple(dict.fromkeys(methods))
    return Results(
        root,
        names,
        _Metrics(root, names),
        experts=dict(experts or {}),
        sets=dict(sets or {}),
        teachers=dict(teachers or {}),
        generators=dict(generators or {}),
        compares_images=visual,
    )


def _read(path: Path, kind: type[T]) -> T:
    """Read JSON into a dataclass; further keys in the file are ignored."""
    try:
        return TypeAdapter(kind).validate_python(read_json(path))
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc'])) or 'file'}: {problem['msg']}" for problem in error.errors()[:5]
        )
        raise CoalmineError(f"{path} is broken ({problems}). {REMEDY}") from error


def _read_of(path: Path, kind: type[Told], method: str, what: str) -> Told:
    """Read what a file tells of a method, and refuse another's."""
    told = _read(path, kind)
    if told.method != method:
        raise CoalmineError(f"{path} holds the {what} of {told.method!r}, not of {method!r}. {REMEDY}")
    return told


def _check_length(path: Path, name: str, values: Sequence[object], expected: int, of: str) -> None:
    if len(values) != expected:
        raise CoalmineError(f"{path} is broken ({name}: {len(values)} entries, but {of} has {expected}). {REMEDY}")


def _read_metrics(root: Path, method: str) -> MethodMetrics:
    return _read_of(root / "metrics" / f"{method}.json", MethodMetrics, method, "metrics")


def _measurements(folder: Path, n_models: int) -> dict[int, Path]:
    """Return the sidecar of each of the first ``n_models`` shadow models; empty if the stage made nothing."""
    found = {int(path.stem): path for path in folder.glob("*.json") if path.stem.isdecimal()}
    if missing := [shadow for shadow in range(n_models) if found and shadow not in found]:
        raise CoalmineError(
            f"{folder} holds no measurement <shadow>.json of shadow models {', '.join(map(str, missing[:8]))} "
            f"(the design has {n_models} models). Delete those models' files there and run Snakemake again."
        )
    return {shadow: found[shadow] for shadow in range(n_models) if found}
