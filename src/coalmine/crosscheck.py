"""What no single section of a configuration can tell: whether its sections go together.

Each check yields problems, in the words of ``config.yaml``; none stops at the first. Not imported by any stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from coalmine.audit.design import draw_design, fewest_on_a_side
from coalmine.audit.visual import require_reachable
from coalmine.outline import Outline
from coalmine.plugins import (
    Kind,
    claims_privacy,
    experts_of,
    generator_of,
    kind,
    load,
    pretrained_of,
    set_of,
    teacher_of,
    uses_public,
)
from coalmine.problems import Problem, suggestion
from coalmine.sections import Audit, AverageCase, Data, Method, Modules, Quality, Visual
from coalmine.settings import Settings

AVERAGE_SUFFIX = "-average"
TEACHERS: tuple[Kind, ...] = ("train",)
"""The kinds of methods whose models can be distilled: a teacher is what private data taught."""
MAKERS: tuple[Kind, ...] = ("synthesize", "distil")
"""The kinds of methods that make synthetic sets themselves."""


def cross_check(raw: dict[str, Any], sound: Mapping[str, Any], modules: Modules) -> Iterator[Problem]:
    """Yield what no single section can tell, from the sections that are in order."""
    audit = sound.get("audit")
    average = audit.average if audit else None
    if "data" in sound:
        yield from _check_data(sound["data"], audit, modules)
        yield from _check_visual(sound["data"], audit, sound.get("visual"), modules)
        yield from _check_methods(modules, _outline(sound, modules))
    yield from _check_names(raw, separate=average is not None and average.models == "separate")
    yield from _check_named(raw, "experts", "experts", experts_of, modules)
    yield from _check_named(raw, "pretrained", "fit.pretrained", pretrained_of, modules)
    yield from _check_references(raw, modules)
    yield from _check_shadows(sound, modules)
    yield from _check_sides(sound, modules)
    yield from _check_measures(sound, modules)
    yield from _check_baselines(sound.get("controls", ()), modules)
    yield from _check_pictures(sound, modules)
    if audit:
        yield from _check_average_case(average, sound.get("controls", ()), modules)


def _sizes(data: Data, modules: Modules) -> tuple[int | None, int | None]:
    """Return how many private samples the run keeps and its source has at most, as far as is known before reading."""
    most = None
    if "private" in modules.sources:
        module, settings = modules.sources["private"]
        source = load("data", module)
        most = source.expected_size(settings) if hasattr(source, "expected_size") else None
    return min(filter(None, (data.private_size, most)), default=None), most


def _clean_samples(audit: Audit) -> int:
    return (audit.average.samples or 0) if audit.average else 0


def _outline(sound: Mapping[str, Any], modules: Modules) -> Outline:
    """Return what is known about the run before its data are read."""
    data, audit = sound["data"], sound.get("audit")
    size, _ = _sizes(data, modules)
    shape = _shape("private", modules)
    return Outline(
        # See ``coalmine.audit.design.population``.
        population=size - (audit.canaries + _clean_samples(audit)) / 2 if audit and size is not None else None,
        classes=_classes(modules),
        channels=len(data.normalisation.mean),
        experts=sound.get("experts", {}),
        image_size=shape[:2] if shape else None,
        models={name: method.model for name, method in modules.methods.items()},
        settings={name: method.settings for name, method in modules.methods.items()},
        pretrained=sound.get("pretrained", {}),
    )


def _classes(modules: Modules) -> int | None:
    """Return the number of classes, if the private data's source knows it."""
    if "private" not in modules.sources:
        return None
    names = getattr(load("data", modules.sources["private"][0]), "CLASSES", None)
    return names and len(names)


def _shape(role: str, modules: Modules) -> tuple[int, int, int] | None:
    """Return height, width and channels of the private or public images, if that is known before they are read."""
    if role not in modules.sources:
        return None
    module, settings = modules.sources[role]
    source = load("data", module)
    return source.expected_shape(settings) if hasattr(source, "expected_shape") else None


def _check_methods(modules: Modules, outline: Outline) -> Iterator[Problem]:
    """Ask the methods that can tell whether their settings will work, unless what they name is unknown or unfit."""
    teachers = [method.name for method in modules.methods.values() if kind(method) in TEACHERS]
    fitting = [method.name for method in modules.methods.values() if generator_of(method) == method.name]
    for method in modules.methods.values():
        module = load("methods", method.module)
        fit = (
            experts_of(method) in (None, *outline.experts)
            and teacher_of(method) in (None, *teachers)
            and generator_of(method) in (None, *fitting)
            and all(pretrained_of(one) in (None, *outline.pretrained) for one in _with_generator(method, modules))
        )
        if fit and hasattr(module, "objection"):
            objection = module.objection(method.settings, method.model, method.recipe, outline)
            if objection:
                field, reason = objection
                yield Problem(f"methods.{method.name}.{field}", reason)


def _with_generator(method: Method, modules: Modules) -> tuple[Method, ...]:
    """Return a method and, if it draws from generative models that another one fits, that one."""
    other = modules.methods.get(generator_of(method) or "")
    return (method, other) if other else (method,)


def _check_data(data: Data, audit: Audit | None, modules: Modules) -> Iterator[Problem]:
    size, most = _sizes(data, modules)
    if data.private_size is not None and most is not None and data.private_size > most:
        module, _ = modules.sources["private"]
        yield Problem("data.private_size", f"is {data.private_size}, but {module} has only {most} private samples.")
    if audit and size is not None:
        clean = _clean_samples(audit)
        if audit.canaries + clean >= size:
            total = f"{audit.canaries} canaries" + (f" and {clean} samples of `average`" if clean else "")
            yield Problem("audit.canaries", f"{total} are audited, but there are only {size} private samples.")
    for role, (_, settings) in modules.sources.items():
        path = getattr(settings, "path", None)
        if path is not None and not Path(path).expanduser().exists():
            yield Problem(f"data.{role}.path", f"is {path!r}, which does not exist (looked from {Path.cwd()}).")
    if "public" in modules.sources:
        module, settings = modules.sources["public"]
        objection = load("data", module).public_objection(settings)
        if objection:
            yield Problem("data.public", objection)
    yield from _check_public(data, modules)


def _check_public(data: Data, modules: Modules) -> Iterator[Problem]:
    """Check that methods which use public data find some, with images like the private ones."""
    private, public = _shape("private", modules), _shape("public", modules)
    for method in modules.methods.values():
        if not (uses_public(method) or pretrained_of(method)):
            continue
        if data.public is None:
            yield Problem(f"methods.{method.name}", "needs public data, but data.public is null.")
        elif private and public and private != public:
            yield Problem(
                f"methods.{method.name}",
                f"uses public data, whose images ({_size(public)}) do not fit the private ones ({_size(private)}); set "
                "data.public to images of that size, or let the method start from something else.",
            )


def _check_visual(data: Data, audit: Audit | None, visual: Visual | None, modules: Modules) -> Iterator[Problem]:
    """Check that images can be compared: with held-out ones, with public ones, by a network that learns from these."""
    if visual is None:
        return
    if audit:
        try:
            # A shadow model leaves out half of the audited samples on average.
            require_reachable(visual.level, (audit.canaries + _clean_samples(audit)) // 2)
        except ValueError as error:
            yield Problem("visual.level", f"is {visual.level:g}; {error}.")
    if visual.features and data.public is None:
        message = "is trained on public data, but data.public is null; set it, or visual.features to null."
        yield Problem("visual.features", message)
    private, public = _shape("private", modules), _shape("public", modules)
    if private and public and private != public:
        yield Problem(
            "visual",
            f"compares images with public ones, too, but these ({_size(public)}) do not fit the private ones "
            f"({_size(private)}); set data.public to images of that size, or to null.",
        )


def _check_named(
    raw: dict[str, Any], section: str, field: str, named_by: Callable[[Method], str | None], modules: Modules
) -> Iterator[Problem]:
    """Check that what methods name in a section is there, in ``raw``: a broken entry is no unknown one."""
    entries = raw.get(section, {})
    for method in modules.methods.values() if isinstance(entries, dict) else ():
        name = named_by(method)
        if name is not None and name not in entries:
            yield Problem(f"methods.{method.name}.{field}", f"names no {section} {name}{suggestion(name, entries)}")


def _check_shadows(sound: Mapping[str, Any], modules: Modules) -> Iterator[Problem]:
    """Check that methods have no more shadow models than the run, and than the methods whose results they build on."""
    most = sound.get("shadows")
    if most is None:
        return
    for method in modules.methods.values():
        own, path = method.shadows or most, f"methods.{method.name}.shadows"
        if own > most:
            yield Problem(path, f"is {own}, but the run has only {most} shadow models (shadows).")
        for name in {teacher_of(method), set_of(method), generator_of(method)} - {None, method.name}:
            other = modules.methods.get(name or "")
            if other is not None and (other.shadows or most) < own:
                message = f"is {own}, but {name}, on which it builds, has only {other.shadows}; lower it to that."
                yield Problem(path, message)


LEAST_ON_A_SIDE = 3
"""Models with and without a canary that LiRA needs: a target, and two for a variance."""


def _check_sides(sound: Mapping[str, Any], modules: Modules) -> Iterator[Problem]:
    """Check that methods with fewer shadow models have enough with and enough without each audited sample."""
    reduced = [method for method in modules.methods.values() if method.shadows]
    size = _sizes(sound["data"], modules)[0] if "data" in sound else None
    if not reduced or size is None or not {"audit", "seed", "shadows"} <= {*sound}:
        return
    audit, models = sound["audit"], sound["shadows"]
    clean = _clean_samples(audit)
    if audit.canaries + clean >= size:
        return
    # Who is in which model depends on the number of samples only, not on their labels.
    design = draw_design(np.zeros(size, dtype=np.int64), 2, models, audit.canaries, clean, sound["seed"])
    fewest = {count: fewest_on_a_side(design.membership[:, :count]) for count in range(6, models + 1)}
    for method in reduced:
        own = method.shadows or models
        least = fewest.get(own, LEAST_ON_A_SIDE)
        if least < LEAST_ON_A_SIDE:
            enough = min(
                (count for count in fewest if fewest[count] >= LEAST_ON_A_SIDE and count > own), default=models
            )
            message = (
                f"is {own}: some audited sample is in, or out of, only {least} of these models, but an attack needs "
                f"{LEAST_ON_A_SIDE} on each side; set {enough} or more."
            )
            yield Problem(f"methods.{method.name}.shadows", message)


def _check_measures(sound: Mapping[str, Any], modules: Modules) -> Iterator[Problem]:
    """Check that what tables and figures show of synthetic sets is measured, and of methods that make some."""
    measured_by = {"quality": "quality", "sizes": "utility", "recipes": "utility"}
    for section, reports in (("tables", modules.tables), ("figures", modules.figures)):
        for name, report in reports.items():
            owners = {measured_by[need] for need in load(section, name).NEEDS if need in measured_by}
            for owner in sorted(owners):
                if owner in sound and sound[owner] is None:
                    message = f"shows what `{owner}` measures, but that is null; set it, or {section}.{name} to null."
                    yield Problem(f"{section}.{name}", message)
            if owners or not load(section, name).NEEDS - {"synthetic", "data"}:
                yield from _check_makes_images(f"{section}.{name}", report, sound.get("controls", ()), modules)
            yield from _check_runs(f"{section}.{name}.runs", getattr(report, "runs", ()), name)
            utility = sound.get("utility")
            if "sizes" in load(section, name).NEEDS and utility is not None:
                yield from _check_sizes(max(utility.sizes), report, modules)
            if "recipes" in load(section, name).NEEDS and utility is not None and len(utility.recipes) < 3:
                yield Problem("utility.recipes", f"has {len(utility.recipes)} entries; a ranking needs at least 3.")
    measured = {*_needs("tables", modules.tables), *_needs("figures", modules.figures)}
    if sound.get("quality") is not None:
        yield from _check_space(sound["quality"], sound.get("visual"), measured="quality" in measured)


def _needs(section: str, reports: Iterable[str]) -> Iterator[str]:
    """Yield what the reports of a section read."""
    for name in reports:
        yield from load(section, name).NEEDS


def _check_makes_images(path: str, report: Settings, controls: Iterable[str], modules: Modules) -> Iterator[Problem]:
    """Check that all methods which a report lists make synthetic images."""
    for method in getattr(report, "methods", ()):
        if method in controls or (method in modules.methods and set_of(modules.methods[method]) is None):
            yield Problem(f"{path}.methods", f"lists {method}, which makes no synthetic images; leave it out.")


def _check_runs(path: str, runs: Iterable[str], name: str) -> Iterator[Problem]:
    """Check that other runs, whose results stand beside this one's, are finished."""
    for run in runs:
        file = Path("results") / run / f"{name}.csv"
        if not file.is_file():
            message = (
                f"names the run {run}, but {file} is not there (looked from {Path.cwd()}); make it first, with that "
                f"run's configuration: snakemake {file} --cores all --configfile FILE."
            )
            yield Problem(path, message)


def _check_sizes(most: int, report: Settings, modules: Modules) -> Iterator[Problem]:
    """Check that the sets of which ever more images are trained on are large enough, where that is known."""
    for name in methods_of(report):
        images = getattr(modules.methods[name].settings, "images", None) if name in modules.methods else None
        if images is not None and images < most:
            message = f"is {images}, but utility.sizes asks for {most} images of a set; raise it, or lower the latter."
            yield Problem(f"methods.{name}.images", message)


def _check_space(quality: Quality, visual: Visual | None, *, measured: bool) -> Iterator[Problem]:
    """Check that there is a network in whose features images can be compared, if they are."""
    if quality.inception is None:
        if measured and (visual is None or visual.features is None):
            message = "needs a network: set visual.features, or inception: {} for Inception-v3 (FID)."
            yield Problem("quality.inception", message)
        return
    path = quality.inception.path
    if path is not None and not Path(path).expanduser().is_file():
        yield Problem("quality.inception.path", f"is {path!r}, which is no file (looked from {Path.cwd()}).")
    if find_spec("torch_fidelity") is None:
        message = "needs the package torch-fidelity; install it: pip install 'coalmine[fid]'"
        yield Problem("quality.inception", message)


def _check_references(raw: dict[str, Any], modules: Modules) -> Iterator[Problem]:
    """Check that the methods which other methods name, as teachers or for their sets, are there and have what it takes.

    They are looked up in ``raw``: a broken entry is no unknown one.
    """
    entries = raw.get("methods")
    written = entries if isinstance(entries, dict) else {}
    references = {
        "distil": ("teacher", teacher_of, TEACHERS, "does not train on the private data itself"),
        "reuse": ("set", set_of, MAKERS, "makes no synthetic sets itself"),
    }
    for method in modules.methods.values():
        yield from _check_generator(method, written, modules)
        if kind(method) not in references:
            continue
        field, named_by, kinds, lacks = references[kind(method)]
        name, path = named_by(method), f"methods.{method.name}.{field}"
        possible = sorted(one.name for one in modules.methods.values() if kind(one) in kinds)
        if name not in written:
            yield Problem(path, f"names no method {name}{suggestion(name, possible)}")
        elif name in modules.methods and name not in possible:
            remedy = f"name a method that does: {', '.join(possible) or 'there is none'}."
            yield Problem(path, f"names {name}, which {lacks}; {remedy}")


def _check_generator(method: Method, written: Mapping[str, Any], modules: Modules) -> Iterator[Problem]:
    """Check that a method which draws from another's generative models names one of the same file that fits some."""
    name, path = generator_of(method), f"methods.{method.name}.generator"
    if name in (None, method.name):
        return
    possible = sorted(
        one.name for one in modules.methods.values() if one.module == method.module and generator_of(one) == one.name
    )
    if name not in written:
        yield Problem(path, f"names no method {name}{suggestion(name, possible)}")
    elif name in modules.methods and name not in possible:
        remedy = f"name an entry that does: {', '.join(possible) or 'there is none'}."
        yield Problem(path, f"names {name}, which is no {method.module} with a block `fit`; {remedy}")


def _size(shape: tuple[int, int, int]) -> str:
    height, width, channels = shape
    return f"{height}x{width} pixels, {channels} channel{'s' if channels > 1 else ''}"


def _check_names(raw: dict[str, Any], *, separate: bool) -> Iterator[Problem]:
    """Check the names that entries give each other, in ``raw``: a broken entry is no unknown one."""
    methods, controls = raw.get("methods"), raw.get("controls", {})
    if not (isinstance(methods, dict) and isinstance(controls, dict)):
        return
    experts = raw.get("experts", {})
    for section, names in (("methods", methods), ("controls", controls), ("experts", experts)):
        for name in names if isinstance(names, dict) else ():
            if separate and name.endswith(AVERAGE_SUFFIX):
                message = f"ends in {AVERAGE_SUFFIX}, which is kept for the separate average-case models."
                yield Problem(f"{section}.{name}", message)
    for name, control in blocks(raw, "controls"):
        if name in methods:
            yield Problem(f"controls.{name}", "has the name of a method; give it another.")
        of = control.get("of")
        if isinstance(of, str) and of not in methods:
            yield Problem(f"controls.{name}.of", f"names no method {of}{suggestion(of, methods)}")
    twins = [name + AVERAGE_SUFFIX for name in methods] if separate else []
    allowed = {
        "methods": ("method or control", [*methods, *controls]),
        "baselines": ("method", [*methods]),
        "average": ("method", [*methods, *twins]),
        "real": ("method", [*methods]),
    }
    for section in ("tables", "figures"):
        for name, report in blocks(raw, section):
            for key, (what, known) in allowed.items():
                for method in _texts(report.get(key)):
                    if method not in known:
                        message = f"names no {what} {method}{suggestion(method, known)}"
                        yield Problem(f"{section}.{name}.{key}", message)


def _check_baselines(controls: Iterable[str], modules: Modules) -> Iterator[Problem]:
    """Check what is compared with differentially private methods, and that these are."""
    for section, reports in (("tables", modules.tables), ("figures", modules.figures)):
        for name, report in reports.items():
            baselines = getattr(report, "baselines", ())
            for baseline in baselines:
                if baseline in modules.methods and not claims_privacy(modules.methods[baseline]):
                    message = f"lists {baseline}, which claims no differential privacy; take a method that does."
                    yield Problem(f"{section}.{name}.baselines", message)
            for control in set(controls) & set(getattr(report, "methods", ())) if baselines else ():
                message = f"lists the control {control}, which no baseline can be compared with; leave it out."
                yield Problem(f"{section}.{name}.methods", message)


def _check_pictures(sound: Mapping[str, Any], modules: Modules) -> Iterator[Problem]:
    """Check that figures which show images or single queries will find them."""
    visual, shadows, controls = sound.get("visual"), sound.get("shadows"), sound.get("controls", ())
    for name, report in modules.figures.items():
        needs, listed = load("figures", name).NEEDS, methods_of(report)
        if {"visual", "synthetic"} <= needs:
            if visual is None:
                message = f"shows what images resemble, but visual is null; set it, or figures.{name} to null."
                yield Problem(f"figures.{name}", message)
            elif getattr(report, "metric", None) == "features" and visual.features is None:
                message = "is features, but visual.features is null; set it, or choose pixel or ssim."
                yield Problem(f"figures.{name}.metric", message)
            yield from _check_makes_images(f"figures.{name}", report, controls, modules)
        elif "logits" in needs:
            for control in set(controls) & set(listed):
                message = f"lists the control {control}, which reuses another method's models; leave it out."
                yield Problem(f"figures.{name}.methods", message)
        for method in listed if "teachers" in needs else ():
            if method in modules.methods and not _is_taught(modules.methods[method], modules):
                message = f"lists {method}, whose models no teacher has taught; leave it out."
                yield Problem(f"figures.{name}.methods", message)
        shown = getattr(report, "shadow", None)
        if shown is not None and shadows is not None and shown >= shadows:
            yield Problem(f"figures.{name}.shadow", f"is {shown}, but the shadow models are 0 to {shadows - 1}.")


def _is_taught(method: Method, modules: Modules) -> bool:
    """Tell whether a method's models learned from a teacher's answers, or from the set of one whose models did."""
    owner = modules.methods.get(set_of(method) or method.name, method)
    return teacher_of(owner) is not None


def _texts(value: Any) -> list[str]:
    """Return a text, the texts of a list, or of the values of a block; nothing if it is none of these."""
    entries = value.values() if isinstance(value, dict) else value if isinstance(value, list) else (value,)
    return [entry for entry in entries if isinstance(entry, str)]


def _check_average_case(average: AverageCase | None, controls: Iterable[str], modules: Modules) -> Iterator[Problem]:
    """Check that tables and figures which compare with the average case will find one."""
    for section, reports in (("tables", modules.tables), ("figures", modules.figures)):
        for name, report in reports.items():
            own = getattr(report, "average", None)
            if own is None:
                continue
            if average is None:
                yield Problem(
                    f"{section}.{name}",
                    f"compares with the average case, but audit.average is null; set it, or {section}.{name} to null.",
                )
            elif average.models == "separate":
                for control in set(controls) & set(methods_of(report)) - set(own):
                    yield Problem(
                        f"{section}.{name}.methods", f"lists the control {control}, which has no average-case models."
                    )


def methods_of(report: Settings) -> tuple[str, ...]:
    """The methods and controls that a table or figure shows."""
    return (*getattr(report, "methods", ()), *getattr(report, "baselines", ()))


def blocks(raw: Mapping[str, Any], section: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the well-formed entries of a section; the others are told by the typed model."""
    entries = raw.get(section)
    return [(k, v) for k, v in entries.items() if isinstance(v, dict)] if isinstance(entries, dict) else []
