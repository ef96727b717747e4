"""The work of every stage, from its spec. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from coalmine.costs.counting import BYTES, LoopCounter, Scene, parsed
from coalmine.costs.work import GRADIENT, Work
from coalmine.diffusion.settings import Pretraining
from coalmine.distillation.settings import Experts
from coalmine.models.settings import ModelSettings
from coalmine.stages._methods import load_fit, load_method
from coalmine.training.recipe import Recipe

FOLDERS = {
    "experts": "experts",
    "fit": "generators",
    "pretrain": "pretrained",
    "pretrain_denoiser": "pretrained",
    "synthesize": "synthetic",
    "train": "models",
    "distil": "models",
    "logits": "logits",
    "resemble": "visual",
    "quality": "quality",
    "sizes": "sizes",
    "recipes": "recipes",
    "score": "scores",
}
"""Where a stage that is priced writes to, under ``results/<run>/``."""

STATISTICS = frozenset({"visual", "quality", "scores"})
"""Those of them whose work is mostly no network's."""

PER_SHADOW = frozenset({"experts", "fit", "synthesize", "train", "distil", "logits"})
"""The stages whose artefacts are one shadow model's; the others make one for a whole method or run."""


class Part(NamedTuple):
    """One kind of artefact that a stage makes, and what one of them takes.

    Attributes:
        folder: under ``results/<run>/``.
        module: what computations of one kind are pooled by: a method's file, or the name of a network.
        work: None if the method's file does not tell.
        disk: bytes of the artefact.
    """

    folder: str
    module: str
    work: Work | None
    disk: float | None


def parts(stage: str, spec: dict[str, Any], scene: Scene) -> list[Part]:
    """Return what one artefact of each kind takes that a stage makes.

    Args:
        stage: its name, one of ``FOLDERS``.
        spec: of the stage.
        scene: of the run.
    """
    found = _STAGES[stage](LoopCounter(scene, spec), spec)
    return [_with_header(part, spec) for part in found]


def _with_header(part: Part, spec: dict[str, Any]) -> Part:
    """Add what an artefact's header takes: the spec and as much again; four bytes a letter in ``.npz`` files."""
    if part.disk is None:
        return part
    letters = len(str(spec)) + 500
    packed = part.folder in ("synthetic", "logits", "scores", "visual")
    return part._replace(disk=part.disk + (4 * letters + 1000 if packed else letters))


def _experts(counter: LoopCounter, spec: dict[str, Any]) -> list[Part]:
    own = parsed(Experts, spec["settings"])
    batch = min(own.batch_size, counter.population)
    passes = GRADIENT * (2 if own.flat else 1)
    steps = own.epochs * counter.population / batch
    work = counter.steps(own.model, steps, batch, passes=passes) * own.experts
    kept = own.experts * (own.epochs + 1) * counter.size(own.model).weights * (2 if own.storage == "float16" else BYTES)
    return [Part("experts", own.model.name, replace(work, memory=work.memory + kept), kept)]


def _fit(counter: LoopCounter, spec: dict[str, Any]) -> list[Part]:
    method, own = load_fit(spec)
    work = method.fit_work(own, counter) if hasattr(method, "fit_work") else None
    return [Part("generators", spec["module"], work, work.disk if work else None)]


def _synthesize(counter: LoopCounter, spec: dict[str, Any]) -> list[Part]:
    work = _own_work(counter, spec)
    return [Part("synthetic", spec["module"], work, work.disk if work else None)]


def _train(counter: LoopCounter, spec: dict[str, Any]) -> list[Part]:
    model = counter.model
    disk = counter.weights(model).disk
    if "module" in spec:
        work = _own_work(counter, spec)
        return [
            Part("models", spec["module"] if work is None or spec["module"] != "undefended" else model.name, work, disk)
        ]
    images = set_size(spec.get("set", spec["method"]), counter.scene)
    return [Part("models", model.name, None if images is None else counter.training(images), disk)]


def _distil(counter: LoopCounter, spec: dict[str, Any]) -> list[Part]:
    method, settings = load_method(spec)
    made, taught = method.work(settings, counter) if hasattr(method, "work") else (None, None)
    return [
        Part("synthetic", spec["module"], made, made.disk if made else None),
        Part("models", spec["module"], taught, counter.weights(counter.model).disk),
    ]


def _logits(counter: LoopCounter, spec: dict[str, Any]) -> list[Part]:
    scene, views = counter.scene, number_of_views(spec["views"])
    # The method's own spec says whether its models learned from a set; only the name is in that of this stage.
    owner = spec.get("set", spec["method"])
    made = set_size(owner, scene) or 0.0
    queries = scene.audited * views + scene.test + made
    work = counter.looks(counter.model, queries)
    # The header holds that of the model, which holds its own spec.
    trainer = "distil" if scene.kind(spec["method"]) == "distil" else "train"
    letters = 4 * (len(str(scene.spec(trainer, spec["method"]))) + 500)
    return [Part("logits", counter.model.name, work, BYTES * queries * scene.classes + letters)]


def _pretrain(counter: LoopCounter, spec: dict[str, Any]) -> list[Part]:
    return [
        Part(
            "pretrained",
            counter.model.name,
            counter.training(counter.scene.public),
            counter.weights(counter.model).disk,
        )
    ]


def _pretrain_denoiser(counter: LoopCounter, spec: dict[str, Any]) -> list[Part]:
    own = parsed(Pretraining, spec["settings"])
    work = counter.steps(own.network, own.steps, own.batch_size)
    return [Part("pretrained", "unet", work, counter.weights(own.network).disk)]


def _resemble(counter: LoopCounter, spec: dict[str, Any]) -> list[Part]:
    scene = counter.scene
    models = _models(spec, scene)
    pixels = scene.side**2 * scene.channels
    shown = min(spec["images"], set_size(spec["method"], scene) or spec["images"])
    # Squared distances are one product a pair; SSIM compares windows of both images by five moments.
    pairs = (shown * models + scene.audited) * (scene.private + scene.public)
    rows = 4 * shown * models * 3 * 4 * 8
    return [Part("visual", "resemble", Work(pairs * pixels * 6, 100 * models, 8 * pixels * scene.private), rows)]


def _quality(counter: LoopCounter, spec: dict[str, Any]) -> list[Part]:
    scene, shown = counter.scene, min(spec["images"], set_size(spec["method"], counter.scene) or spec["images"])
    images = scene.private + shown * spec["shadows"]
    if spec["inception"]:
        look, dimension = Work(5.7e9 * images, 300 * images / 64, 64 * 2e7), 2048
    else:
        features = parsed(ModelSettings, scene.spec("pretrain", "features")["model"])
        look, dimension = counter.looks(features, images), 512
    pairs = spec["shadows"] * (scene.population + shown) ** 2
    return [Part("quality", "quality", look + Work(pairs * dimension, 100, 8 * dimension * images), 3000)]


def _sizes(counter: LoopCounter, spec: dict[str, Any]) -> list[Part]:
    made = set_size(spec["method"], counter.scene)
    if made is None:
        return [Part("sizes", counter.model.name, None, None)]
    work = Work()
    for size in spec["sizes"]:
        work += counter.training(min(size, made)) + counter.looks(counter.model, counter.scene.test)
    return [Part("sizes", counter.model.name, work * spec["shadows"], 3000)]


def _recipes(counter: LoopCounter, spec: dict[str, Any]) -> list[Part]:
    made = set_size(spec["method"], counter.scene)
    if made is None:
        return [Part("recipes", counter.model.name, None, None)]
    held = spec["validation"] * made
    work = Work()
    for one in spec["recipes"]:
        recipe = parsed(Recipe, one["training"])
        work += counter.training(made - held, recipe=recipe)
        work += counter.looks(counter.model, counter.scene.test + held)
    return [Part("recipes", counter.model.name, work * spec["shadows"], 3000)]


def _score(counter: LoopCounter, spec: dict[str, Any]) -> list[Part]:
    pairs = counter.scene.audited * spec["shadows"]
    # Every variant scores each pair against all other models, and sorts the pairs of each bootstrap replicate.
    variants = 13.5  # as many scores of each pair are kept, in float64
    work = Work(variants * pairs * (spec["shadows"] + spec["bootstrap"] / 10), 1000)
    return [Part("scores", "score", work, variants * pairs * 8)]


def _models(spec: dict[str, Any], scene: Scene) -> int:
    return scene.shadows_of(spec["method"])


_STAGES: dict[str, Callable[[LoopCounter, dict[str, Any]], list[Part]]] = {
    "experts": _experts,
    "fit": _fit,
    "pretrain": _pretrain,
    "pretrain_denoiser": _pretrain_denoiser,
    "synthesize": _synthesize,
    "train": _train,
    "distil": _distil,
    "logits": _logits,
    "resemble": _resemble,
    "quality": _quality,
    "sizes": _sizes,
    "recipes": _recipes,
    "score": _score,
}


def _own_work(counter: LoopCounter, spec: dict[str, Any]) -> Work | None:
    method, settings = load_method(spec)
    return method.work(settings, counter) if hasattr(method, "work") else None


def set_size(method: str, scene: Scene) -> float | None:
    """Return how many images a method's set has; 0 if it makes none, None if its file does not tell."""
    kind = scene.kind(method)
    if kind == "train":
        return 0.0
    stage = "distil" if kind == "distil" else "synthesize"
    work = parts(stage, scene.spec(stage, method), scene)[0].work
    return None if work is None else work.images


def number_of_views(views: dict[str, Any]) -> int:
    """Return under how many views a sample is queried (``coalmine.training.augment.fixed_views``)."""
    return (2 if views["flip"] else 1) * (9 if views["shift"] else 1)
