"""What no single section of a configuration can tell: whether its sections go together.

Each check yields problems, in the words of ``config.yaml``; none stops at the first. Not imported by any stage.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from coalmine.audit.visual import require_reachable
from coalmine.outline import Outline
from coalmine.plugins import Kind, claims_privacy, experts_of, kind, load, set_of, teacher_of, uses_public
from coalmine.problems import Problem, suggestion
from coalmine.sections import Audit, AverageCase, Data, Method, Modules, Visual
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
    yield from _check_experts(raw, modules)
    yield from _check_references(raw, modules)
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
    for method in modules.methods.values():
        module = load("methods", method.module)
        fit = experts_of(method) in (None, *outline.experts) and teacher_of(method) in (None, *teachers)
        if fit and hasattr(module, "objection"):
            objection = module.objection(method.settings, method.model, method.recipe, outline)
            if objection:
                field, reason = objection
                yield Problem(f"methods.{method.name}.{field}", reason)


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
        if not uses_public(method):
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


def _check_experts(raw: dict[str, Any], modules: Modules) -> Iterator[Problem]:
    """Check that the experts which methods name are there, in ``raw``: a broken entry is no unknown one."""
    experts = raw.get("experts", {})
    for method in modules.methods.values() if isinstance(experts, dict) else ():
        name = experts_of(method)
        if name is not None and name not in experts:
            message = f"names no experts {name}{suggestion(name, experts)}"
            yield Problem(f"methods.{method.name}.experts", message)


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
            for method in listed:
                if method in controls or (method in modules.methods and set_of(modules.methods[method]) is None):
                    message = f"lists {method}, which makes no synthetic images; leave it out."
                    yield Problem(f"figures.{name}.methods", message)
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
    """Return the texts of a list, or of the values of a block; nothing if it is neither."""
    entries = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
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
