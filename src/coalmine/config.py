"""The configuration: typed, checked as a whole before any job starts, and cut into one spec per stage.

``config.yaml`` is the complete default run; presets overlay it (Snakemake merges them, lists are replaced whole, and
``null`` removes an entry). Modules of methods, data sources, tables and figures bring their own ``Settings``; there is
no registry: a name in the configuration is the name of a file.

This module is not imported by any stage, so that a new option here retrains nothing.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import json
import pkgutil
import types
import typing
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, Field, TypeAdapter, ValidationError, model_validator

from coalmine import provenance
from coalmine.errors import CoalmineError
from coalmine.models.settings import ModelSettings
from coalmine.settings import Settings
from coalmine.training.recipe import Normalisation, Recipe

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
ModuleName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]

_METHOD_FIELDS = ("module", "label", "model", "training")
_PACKAGES = {
    "methods": "coalmine.methods",
    "data": "coalmine.data.sources",
    "tables": "coalmine.reporting",
    "figures": "coalmine.reporting",
}


class Data(Settings):
    """The data of a run."""

    private: dict[str, Any] = Field(description="The private data: `module` names a file in coalmine/data/sources.")
    public: dict[str, Any] | None = Field(None, description="Public data, or null. Never derived from private data.")
    private_size: int | None = Field(None, ge=1, description="Keep so many private samples, drawn at random.")
    test_size: int | None = Field(None, ge=1, description="Keep so many test samples, drawn at random.")
    public_size: int | None = Field(None, ge=1, description="Keep so many public samples, drawn at random.")
    normalisation: Normalisation = Field(description="Constants of the input normalisation, per channel, in [0, 1].")


class AverageCase(Settings):
    """The second audit design: labels left right."""

    models: Literal["shared", "separate"] = Field(
        description="shared: further samples, labels left right, audited in the same models as the canaries (saves "
        "time). separate: the canaries themselves with their right labels, in models of their own."
    )
    samples: int | None = Field(None, ge=1, description="How many further samples (shared only).")

    @model_validator(mode="after")
    def _samples_only_if_shared(self) -> AverageCase:
        if (self.models == "shared") != (self.samples is not None):
            raise ValueError("`samples` belongs to `models: shared`, and only there.")
        return self


class Views(Settings):
    """The fixed query views: flip x vertical shift x horizontal shift."""

    flip: bool = Field(description="Also query mirrored images.")
    shift: int = Field(ge=0, description="Shift by this many pixels up, down, left and right (the papers: 4).")


class Audit(Settings):
    """The audit design and its statistics."""

    canaries: int = Field(ge=1, description="Number of mislabelled canaries.")
    average: AverageCase | None = Field(None, description="The average-case audit, or null.")
    views: Views
    bootstrap: int = Field(1000, ge=1, description="Replicates of the bootstrap over canaries.")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="Level of intervals and of the epsilon lower bound.")
    delta: float = Field(1e-5, ge=0, lt=1, description="Delta of the empirical epsilon.")


class Control(Settings):
    """A null control: another method's logits, scored with something broken on purpose."""

    of: Name = Field(description="The method whose logits are used.")
    membership: Literal["shuffled"] = Field("shuffled", description="Each canary's membership is permuted.")
    label: str | None = Field(None, description="Name in tables and figures.")


class Execution(Settings):
    """How jobs run. Nothing here changes a number beyond rounding, so nothing here reruns a job."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where models are trained.")
    batch: int = Field(16, ge=1, description="Shadow models made by one job.")
    mode: Literal["auto", "sequential", "stacked"] = Field(
        "auto", description="Train a batch one after another or as one stacked ensemble (auto: stacked on a GPU)."
    )


class Config(Settings):
    """A whole run."""

    run: Name = Field(description="Names the run: everything lies under results/<run>/.")
    seed: int = Field(0, ge=0, description="The one seed.")
    shadows: int = Field(ge=2, description="Number of shadow models; even.")
    data: Data
    audit: Audit
    model: ModelSettings = Field(description="Architecture of the audited models.")
    training: Recipe = Field(description="Training recipe of the audited models.")
    methods: dict[Name, dict[str, Any]] = Field(description="Methods by name; `module` names a file in methods/.")
    controls: dict[Name, Control] = Field(default_factory=dict, description="Null controls by name.")
    tables: dict[Name, dict[str, Any]] = Field(description="Tables by name, a file in reporting/ each.")
    figures: dict[Name, dict[str, Any]] = Field(description="Figures by name, a file in reporting/ each.")
    execution: Execution = Field(default_factory=Execution)


class Problem(NamedTuple):
    """One thing wrong with a configuration."""

    path: str
    message: str


class ConfigurationError(CoalmineError):
    """Everything that is wrong with a configuration, at once."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(dict.fromkeys(problems))
        count = f"{len(self.problems)} error{'s' if len(self.problems) > 1 else ''}"
        lines = "".join(f"\n  {path}: {message}" for path, message in self.problems)
        super().__init__(f"The configuration has {count}; nothing was started.{lines}")


def check(raw: Mapping[str, Any]) -> Run:
    """Check a merged configuration and return it as a run.

    Raises:
        ConfigurationError: lists every problem with its path, and a suggestion for misspelt names.
    """
    problems: list[Problem] = []
    merged = _without_null_entries(dict(raw))
    config = _validate(Config, merged, "", problems)
    # Modules are checked even when something else is wrong, so that all problems are told at once.
    modules = _Modules(merged, problems)
    if config is not None:
        problems += _cross_check(config, modules)
    if problems or config is None:
        raise ConfigurationError(problems)
    return Run(config, modules)


def _without_null_entries(raw: dict[str, Any]) -> dict[str, Any]:
    """Drop methods, controls, tables and figures that an overlay set to null."""
    for section in ("methods", "controls", "tables", "figures"):
        if isinstance(raw.get(section), Mapping):
            raw[section] = {name: entry for name, entry in raw[section].items() if entry is not None}
    return raw


def _validate(model: Any, value: Any, path: str, problems: list[Problem]) -> Any:
    """Validate ``value`` against ``model``; note the problems and return None if there are any."""
    try:
        # By way of JSON, so that strict mode takes YAML's lists for tuples.
        return TypeAdapter(model).validate_json(json.dumps(value))
    except ValidationError as error:
        problems += [_problem(details, model, path) for details in error.errors()]
    except (TypeError, ValueError) as error:
        problems.append(Problem(path or "(top)", f"cannot be read as plain YAML data ({error})."))
    return None


def _problem(details: Any, model: Any, path: str) -> Problem:
    location = [str(part) for part in details["loc"] if not _is_union_tag(part, model, details["loc"])]
    where = ".".join(filter(None, [path, *location])) or "(top)"
    kind, given = details["type"], details.get("input")
    if kind == "extra_forbidden":
        known = _fields_at(model, details["loc"][:-1])
        return Problem(where, f"is not a known key{_suggestion(location[-1], known)}.")
    if kind == "missing":
        return Problem(where, "is required.")
    if kind == "union_tag_invalid":
        context = details["ctx"]
        known = [tag.strip("' ") for tag in context["expected_tags"].split(",")]
        return Problem(f"{where}.name", f"is {context['tag']!r}, which is unknown{_suggestion(context['tag'], known)}.")
    message = details["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(given, (dict, list)) else f" (found {given!r})"
    hint = " Write 1.0e-3, not 1e-3: YAML reads the latter as text." if _looks_numeric(given) else ""
    return Problem(where, f"{message.rstrip('.')}{shown}.{hint}")


def _looks_numeric(given: Any) -> bool:
    if not isinstance(given, str):
        return False
    try:
        float(given)
    except ValueError:
        return False
    return True


def _is_union_tag(part: Any, model: Any, location: tuple[Any, ...]) -> bool:
    """Pydantic puts a union's tag into the location (``model.resnet.width``); people did not write it there."""
    position = location.index(part)
    parent = _resolve(model, location[:position])
    return bool(_union_members(parent)) and part in {_tag(member) for member in _union_members(parent)}


def _tag(member: type[BaseModel]) -> str | None:
    field = member.model_fields.get("name")
    return None if field is None else str(field.default)


def _union_members(annotation: Any) -> list[type[BaseModel]]:
    if typing.get_origin(annotation) is Annotated:
        annotation = typing.get_args(annotation)[0]
    if typing.get_origin(annotation) not in (typing.Union, types.UnionType):
        return []
    return [arg for arg in typing.get_args(annotation) if isinstance(arg, type) and issubclass(arg, BaseModel)]


def _resolve(model: Any, location: tuple[Any, ...]) -> Any:
    """Follow a pydantic location from a model to the annotation that it points at."""
    for part in location:
        members = _union_members(model)
        if members:
            tagged = [member for member in members if _tag(member) == part]
            model = tagged[0] if tagged else members[0]
            if tagged:
                continue
        if isinstance(model, type) and issubclass(model, BaseModel):
            field = model.model_fields.get(str(part))
            model = None if field is None else field.annotation
        else:
            arguments = typing.get_args(model)
            model = arguments[-1] if arguments else None
    return model


def _fields_at(model: Any, location: tuple[Any, ...]) -> list[str]:
    target = _resolve(model, location)
    members = _union_members(target)
    target = members[0] if members else target
    return list(target.model_fields) if isinstance(target, type) and issubclass(target, BaseModel) else []


def _suggestion(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean ...?`` for a near miss, else the list of what there is."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; there is {', '.join(known)}" if known else ""


def available(section: str) -> list[str]:
    """Names of the modules that a section of the configuration may use."""
    package = importlib.import_module(_PACKAGES[section])
    names = [module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_")]
    if section in ("tables", "figures"):
        names = [name for name in names if hasattr(_module(section, name), "build")]
    return names


def _module(section: str, name: str) -> types.ModuleType:
    return importlib.import_module(f"{_PACKAGES[section]}.{name}")


class _Modules:
    """The modules that a configuration names, with their own settings checked."""

    def __init__(self, raw: Mapping[str, Any], problems: list[Problem]) -> None:
        self.methods: dict[str, Method] = {}
        self.sources: dict[str, tuple[str, Settings]] = {}
        self.reports: dict[str, dict[str, Settings]] = {"tables": {}, "figures": {}}
        for name, entry in _entries(raw.get("methods")):
            self._read_method(name, entry, raw, problems)
        data = raw.get("data") if isinstance(raw.get("data"), Mapping) else {}
        for role in ("private", "public"):
            entry = typing.cast(Mapping[str, Any], data).get(role)
            if isinstance(entry, Mapping):
                found = self._read_entry("data", f"data.{role}", entry, (), problems)
                if found:
                    self.sources[role] = found
        for section in ("tables", "figures"):
            for name, entry in _entries(raw.get(section)):
                found = self._read_entry(section, f"{section}.{name}", {"module": name, **entry}, (), problems)
                if found:
                    self.reports[section][name] = found[1]

    def _read_method(
        self, name: str, entry: Mapping[str, Any], raw: Mapping[str, Any], problems: list[Problem]
    ) -> None:
        path = f"methods.{name}"
        found = self._read_entry("methods", path, entry, _METHOD_FIELDS, problems)
        recipe = model = None
        if isinstance(raw.get("training"), Mapping):
            override = entry.get("training", {})
            if isinstance(override, Mapping):
                # The run's own recipe is checked elsewhere: without an override there is nothing new to tell.
                fields = {**raw["training"], **override}
                recipe = _validate(Recipe, fields, f"{path}.training", problems if override else [])
        if isinstance(raw.get("model"), Mapping):
            override = entry.get("model", raw["model"])
            model = _validate(ModelSettings, override, f"{path}.model", problems if "model" in entry else [])
        if found and recipe is not None and model is not None:
            module, settings = found
            self.methods[name] = Method(name, entry.get("label") or name, module, settings, model, recipe)

    @staticmethod
    def _read_entry(
        section: str, path: str, entry: Mapping[str, Any], reserved: tuple[str, ...], problems: list[Problem]
    ) -> tuple[str, Settings] | None:
        module = entry.get("module")
        known = available(section)
        if not isinstance(module, str):
            problems.append(
                Problem(f"{path}.module", f"is required: a file in {_folder(section)}{_suggestion('', known)}.")
            )
            return None
        if module not in known:
            where = path if section in ("tables", "figures") else f"{path}.module"
            problems.append(
                Problem(where, f"names no file {_folder(section)}/{module}.py{_suggestion(module, known)}.")
            )
            return None
        loaded = _module(section, module)
        settings = getattr(loaded, "Settings", None)
        if settings is None:
            problems.append(Problem(f"{path}.module", f"{_folder(section)}/{module}.py defines no class Settings."))
            return None
        if section == "methods" and hasattr(loaded, "synthesize") == hasattr(loaded, "train"):
            rule = "must define either `synthesize` or `train`, see src/coalmine/methods/__init__.py"
            problems.append(Problem(f"{path}.module", f"{_folder(section)}/{module}.py {rule}."))
            return None
        own = {key: value for key, value in entry.items() if key not in (*reserved, "module")}
        before = len(problems)
        checked = _validate(settings, own, path, problems)
        return None if len(problems) > before else (module, checked)


def _entries(section: Any) -> list[tuple[str, Mapping[str, Any]]]:
    """The well-formed entries of a section; the others are told by the typed model."""
    if not isinstance(section, Mapping):
        return []
    return [(str(name), entry) for name, entry in section.items() if isinstance(entry, Mapping)]


def _folder(section: str) -> str:
    return "src/" + _PACKAGES[section].replace(".", "/")


class Method(NamedTuple):
    """One row: a method file with its settings, and how the audited model is trained."""

    name: str
    label: str
    module: str
    settings: Settings
    model: Any
    recipe: Recipe


def _cross_check(config: Config, modules: _Modules) -> Iterable[Problem]:
    """Yield what no single field can tell."""
    if config.shadows % 2:
        yield Problem("shadows", f"is {config.shadows}; an even number is needed, as each canary is in exactly half.")
    elif config.shadows < 6:
        yield Problem(
            "shadows",
            f"is {config.shadows}; LiRA needs at least 6: a target aside, two models with and two without each canary.",
        )
    yield from _check_sizes(config, modules)
    if config.audit.average and config.audit.average.models == "separate":
        taken = [name for name in modules.methods if name.endswith("-average")]
        for name in taken:
            yield Problem(f"methods.{name}", "ends in -average, which is kept for the separate average-case models.")
    for name, control in config.controls.items():
        if name in config.methods:
            yield Problem(f"controls.{name}", "has the name of a method; give it another.")
        if control.of not in config.methods:
            yield Problem(f"controls.{name}.of", f"names no method{_suggestion(control.of, config.methods)}.")
    known = [*config.methods, *config.controls]
    for section, reports in modules.reports.items():
        for name, report in reports.items():
            for method in _methods_of(report):
                if method not in known:
                    yield Problem(
                        f"{section}.{name}.methods", f"names no method or control {method}{_suggestion(method, known)}."
                    )


def _check_sizes(config: Config, modules: _Modules) -> Iterable[Problem]:
    average = config.audit.average
    audited = config.audit.canaries + ((average.samples or 0) if average else 0)
    size = config.data.private_size
    if "private" in modules.sources:
        module, settings = modules.sources["private"]
        expected = getattr(_module("data", module), "expected_size", None)
        available_size = expected(settings) if expected else None
        if size is not None and available_size is not None and size > available_size:
            yield Problem("data.private_size", f"is {size}, but {module} has only {available_size} private samples.")
        size = min(filter(None, (size, available_size)), default=None)
    if size is not None and audited >= size:
        yield Problem("audit.canaries", f"{audited} samples are audited, but there are only {size} private samples.")
    if "public" in modules.sources:
        module, settings = modules.sources["public"]
        objection = _module("data", module).public_objection(settings)
        if objection:
            yield Problem("data.public", objection)


def _methods_of(report: Settings) -> tuple[str, ...]:
    """The methods and controls that a table or figure shows."""
    return tuple(getattr(report, "methods", ()))


AVERAGE_SUFFIX = "-average"


class Run:
    """A checked configuration, and what each stage needs of it as a canonical JSON string."""

    def __init__(self, config: Config, modules: _Modules) -> None:
        self.config = config
        self.methods = modules.methods
        self.sources = modules.sources
        self._reports = modules.reports

    @property
    def name(self) -> str:
        """The run's name."""
        return self.config.run

    @property
    def shadows(self) -> range:
        """The shadow models."""
        return range(self.config.shadows)

    @cached_property
    def audited(self) -> list[str]:
        """All methods with models of their own, the separate average-case ones included."""
        separate = self.config.audit.average is not None and self.config.audit.average.models == "separate"
        return [*self.methods, *(name + AVERAGE_SUFFIX for name in self.methods)] if separate else [*self.methods]

    def is_average_case(self, method: str) -> bool:
        """Tell whether ``method`` is the separate average-case twin of another."""
        return method not in self.methods and method.endswith(AVERAGE_SUFFIX)

    def method(self, name: str) -> Method:
        """Return the entry of a method or of its average-case twin."""
        return self.methods[name.removesuffix(AVERAGE_SUFFIX) if self.is_average_case(name) else name]

    def synthesizes(self, name: str) -> bool:
        """Tell whether a method replaces the private data (else it trains on them)."""
        return hasattr(_module("methods", self.method(name).module), "synthesize")

    def uses_public(self, name: str) -> bool:
        """Tell whether a method needs the run's public data."""
        return getattr(_module("methods", self.method(name).module), "USES_PUBLIC", False)

    def reports(self, section: str) -> list[str]:
        """Names of the tables or figures of this run."""
        return list(self._reports[section])

    def report(self, section: str, name: str) -> Settings:
        """Return the settings of a table or figure, with labels and average-case twins filled in."""
        settings = self._reports[section][name]
        fields, changes = type(settings).model_fields, {}
        entries: dict[str, Any] = {**self.methods, **self.config.controls}
        if "labels" in fields:
            labels = {method: entries[method].label for method in _methods_of(settings) if entries[method].label}
            changes["labels"] = labels | settings.labels  # type: ignore[attr-defined]
        if "average" in fields:
            twins = {method: method + AVERAGE_SUFFIX for method in _methods_of(settings)}
            known = {method: twin for method, twin in twins.items() if twin in self.audited}
            changes["average"] = known | settings.average  # type: ignore[attr-defined]
        return settings.model_copy(update=changes)

    def report_needs(self, section: str, name: str) -> tuple[frozenset[str], tuple[str, ...]]:
        """Return what a table or figure reads (metrics, scores, costs), and of which methods and controls."""
        settings = self.report(section, name)
        return _module(section, name).NEEDS, getattr(settings, "needed", _methods_of(settings))

    def code(self, stage: str, module: str | None = None) -> str:
        """Return the code hash of a stage, with the module that it loads by name."""
        return provenance.code_hash(f"coalmine.stages.{stage}", *([module] if module else []))

    def method_code(self, stage: str, method: str) -> str:
        """Return the code hash of ``synthesize`` or ``train``, with the method's file where the stage runs it."""
        runs_method = stage == "synthesize" or not self.synthesizes(method)
        return self.code(stage, f"coalmine.methods.{self.method(method).module}" if runs_method else None)

    def source_module(self, role: str) -> str:
        """Full name of the module that reads the private or public data."""
        return f"{_PACKAGES['data']}.{self.sources[role][0]}"

    def downloads(self, role: str) -> list[Any]:
        """Files that must be downloaded for the private or public data."""
        module, settings = self.sources[role]
        return list(_module("data", module).files(settings))

    def spec(self, stage: str, **which: Any) -> str:
        """Return the sorted JSON of just the configuration that ``stage`` uses."""
        return provenance.canonical_json(getattr(self, f"_{stage}_spec")(**which))

    def _prepare_spec(self, role: str) -> dict[str, Any]:
        module, settings = self.sources[role]
        data = self.config.data
        sizes = (
            {"private": data.private_size, "test": data.test_size}
            if role == "private"
            else {"public": data.public_size}
        )
        return {"seed": self.config.seed, "module": module, "settings": _plain(settings), "sizes": sizes}

    def _design_spec(self, case: str) -> dict[str, Any]:
        audit = self.config.audit
        shared = audit.average.samples if audit.average and audit.average.models == "shared" else None
        return {
            "seed": self.config.seed,
            "shadows": self.config.shadows,
            "canaries": audit.canaries,
            "clean": shared or 0,
            "average": case == "average",
        }

    def _synthesize_spec(self, method: str) -> dict[str, Any]:
        return self._setup_spec(method) | self._module_spec(method)

    def _train_spec(self, method: str) -> dict[str, Any]:
        return self._setup_spec(method) | ({} if self.synthesizes(method) else self._module_spec(method))

    def _module_spec(self, method: str) -> dict[str, Any]:
        entry = self.method(method)
        return {"module": entry.module, "settings": _plain(entry.settings)}

    def _setup_spec(self, method: str) -> dict[str, Any]:
        entry = self.method(method)
        return {
            "seed": self.config.seed,
            "method": method,
            "model": _plain(entry.model),
            "training": _plain(entry.recipe),
            "normalisation": _plain(self.config.data.normalisation),
        }

    def _logits_spec(self, method: str) -> dict[str, Any]:
        entry = self.method(method)
        return {
            "method": method,
            "model": _plain(entry.model),
            "normalisation": _plain(self.config.data.normalisation),
            "precision": entry.recipe.precision,
            "views": _plain(self.config.audit.views),
        }

    def _score_spec(self, method: str) -> dict[str, Any]:
        control = self.config.controls.get(method)
        audit = self.config.audit
        return {
            "seed": self.config.seed,
            "method": method,
            "of": control.of if control else method,
            "membership": control.membership if control else "true",
            "bootstrap": audit.bootstrap,
            "confidence": audit.confidence,
            "delta": audit.delta,
        }

    def _table_spec(self, name: str) -> dict[str, Any]:
        return self._report_spec("tables", name)

    def _figure_spec(self, name: str) -> dict[str, Any]:
        return self._report_spec("figures", name)

    def _report_spec(self, section: str, name: str) -> dict[str, Any]:
        return {"name": name, "settings": _plain(self.report(section, name))}

    def _configuration_spec(self) -> dict[str, Any]:
        return self.effective()

    def _download_spec(self, remote: Any) -> dict[str, Any]:
        return dataclasses.asdict(remote)

    def effective(self) -> dict[str, Any]:
        """Return the whole checked configuration with every default filled in, but for how jobs are run."""
        plain = _plain(self.config)
        del plain["execution"]
        plain["methods"] = {
            name: {
                "module": entry.module,
                "label": entry.label,
                "model": _plain(entry.model),
                "training": _plain(entry.recipe),
                **_plain(entry.settings),
            }
            for name, entry in self.methods.items()
        }
        for role, (module, settings) in self.sources.items():
            plain["data"][role] = {"module": module, **_plain(settings)}
        for section, reports in self._reports.items():
            plain[section] = {name: _plain(report) for name, report in reports.items()}
        return plain


def _plain(settings: BaseModel) -> dict[str, Any]:
    return settings.model_dump(mode="json")


def schema() -> dict[str, Any]:
    """Return the JSON schema of ``config.yaml`` for editors, with the settings of every module that there is."""
    document = Config.model_json_schema()
    properties = document["properties"]
    definitions = document["$defs"]

    def module_schema(section: str, name: str, reserved: Mapping[str, Any]) -> dict[str, Any]:
        own = _module(section, name).Settings.model_json_schema()
        definitions.update(own.pop("$defs", {}))
        own["properties"] = {**reserved, **own.get("properties", {})}
        own["title"] = f"{section}: {name}"
        return own

    recipe = {**definitions["Recipe"], "required": []}
    shared = {
        "label": {"type": "string", "description": "Name in tables and figures."},
        "model": properties["model"],
        "training": {**recipe, "description": "Replaces single fields of the run's recipe."},
    }
    for section, target in (("methods", properties["methods"]), ("data", None)):
        variants = []
        for name in available(section):
            reserved = {"module": {"const": name}, **(shared if section == "methods" else {})}
            variant = module_schema(section, name, reserved)
            variant["required"] = ["module", *variant.get("required", [])]
            variants.append(variant)
        entry = {"anyOf": [*variants, {"type": "null"}]}
        if target is not None:
            _set_values(target, entry)
        else:
            definitions["Data"]["properties"]["private"] = {"anyOf": variants}
            definitions["Data"]["properties"]["public"] = entry
    for section in ("tables", "figures"):
        prefix = section.removesuffix("s")
        properties[section] = {
            "type": "object",
            "description": properties[section]["description"],
            "properties": {
                name: {"anyOf": [module_schema(section, name, {}), {"type": "null"}]}
                for name in available(section)
                if name.startswith(prefix) or not name.startswith(("table", "figure"))
            },
            "additionalProperties": False,
        }
    return document


def _set_values(target: dict[str, Any], entry: dict[str, Any]) -> None:
    """Give a mapping with patterned names its values' schema."""
    for patterns in target.get("patternProperties", {}):
        target["patternProperties"][patterns] = entry
    target.pop("additionalProperties", None)
    target["additionalProperties"] = False


if __name__ == "__main__":
    print(json.dumps(schema(), indent=1, sort_keys=True))
