"""The configuration: typed, checked as a whole before any job starts, and cut into one spec per stage.

``config.yaml`` is the complete default run; presets overlay it (Snakemake merges them, lists are replaced whole, and
``null`` removes an entry). Modules of methods, data sources, tables and figures bring their own ``Settings``; there is
no registry: a name in the configuration is the name of a file.

This module is not imported by any stage, so that a new option here retrains nothing.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Annotated, Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from coalmine import plugins, provenance, texts
from coalmine.crosscheck import AVERAGE_SUFFIX, blocks, cross_check, methods_of
from coalmine.diffusion.settings import Pretraining
from coalmine.distillation.settings import Experts
from coalmine.errors import CoalmineError
from coalmine.plugins import available, load
from coalmine.problems import ConfigurationError, Problem, read, suggestion
from coalmine.sections import Config, Control, Data, Features, Method, Modules, Shared
from coalmine.settings import Settings
from coalmine.training.recipe import Recipe

_DEEPEST = 32
_MOST_BITS = 63


def check(raw: Mapping[str, Any]) -> Run:
    """Check a merged configuration and return it as a run.

    Raises:
        ConfigurationError: lists every problem with its path, and a suggestion for misspelt names.
    """
    raw = _without_null_entries(_plain_data(raw))
    # Told alone: other messages quote what they find, and other checks look whether files are there.
    refused = [*texts.secrets(raw)] or [*texts.objections(raw)]
    if refused:
        raise ConfigurationError(refused)
    checker = _Checker()
    config = checker.read(Config, raw, "")
    # The rest is checked even when something is wrong already, so that all problems are told at once.
    sound = dict(config) if config else _sound_sections(raw)
    modules = checker.modules(raw, sound)
    checker.problems += cross_check(raw, sound, modules)
    if checker.problems or config is None:
        raise ConfigurationError(checker.problems)
    return Run(config, modules)


def _plain_data(value: Any, depth: int = 0) -> Any:
    """Return what YAML delivers as JSON has it: keys are text, and a date is the text that it was written as."""
    if depth > _DEEPEST:  # YAML's aliases may even lead back to where they stand
        raise ConfigurationError([Problem("(top)", f"is nested more than {_DEEPEST} levels deep.")])
    if isinstance(value, Mapping):
        return {_plain_key(key): _plain_data(entry, depth + 1) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_data(entry, depth + 1) for entry in value]
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        return f"a number of {value.bit_length()} bits"
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def _plain_key(key: Any) -> str:
    plain = _plain_data(key)
    return plain if isinstance(plain, str) else str(plain)


def _without_null_entries(raw: dict[str, Any]) -> dict[str, Any]:
    """Drop what an overlay set to null: methods, experts, controls, tables, figures, and settings of a model.

    The latter lets an overlay name another architecture, whose settings are others.
    """
    cleaned = dict(raw)
    for section in ("methods", "experts", "pretrained", "controls", "tables", "figures", "model"):
        cleaned |= {section: _without_nulls(raw[section])} if section in raw else {}
    for section in ("methods", "experts"):
        if isinstance(cleaned.get(section), dict):
            cleaned[section] = {name: _with_clean_model(entry) for name, entry in cleaned[section].items()}
    visual = cleaned.get("visual")
    if isinstance(visual, dict) and "features" in visual:
        cleaned["visual"] = {**visual, "features": _with_clean_model(visual["features"])}
    return cleaned


def _without_nulls(block: Any) -> Any:
    return {key: value for key, value in block.items() if value is not None} if isinstance(block, dict) else block


def _with_clean_model(entry: Any) -> Any:
    has_one = isinstance(entry, dict) and "model" in entry
    return {**entry, "model": _without_nulls(entry["model"])} if has_one else entry


def _sound_sections(raw: dict[str, Any]) -> dict[str, Any]:
    """Return the sections that are in order by themselves."""
    fields = {name: field for name, field in Config.model_fields.items() if name in raw}
    found = {name: read(Annotated[field.annotation, field], raw[name], name)[0] for name, field in fields.items()}
    return {name: section for name, section in found.items() if section is not None}


def _overlaid(base: dict[str, Any], overlay: dict[str, Any]) -> dict[str, Any]:
    """Return ``base`` with the values of ``overlay``, block by block, as Snakemake merges configurations."""
    merged = dict(base)
    for key, value in overlay.items():
        inner = merged.get(key)
        merged[key] = _overlaid(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged


class _Checker:
    """Reads parts of a configuration and notes what is wrong with them."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def read(self, model: Any, value: Any, path: str) -> Any:
        """Validate ``value``, which stands at ``path``; return None if there are problems."""
        found, problems = read(model, value, path)
        self.problems += problems
        return found

    def modules(self, raw: dict[str, Any], sound: Mapping[str, Any]) -> Modules:
        """Read the entries whose settings belong to modules."""
        sources = {
            role: (entry["module"], settings)
            for role, entry in blocks(raw, "data")
            if role in ("private", "public") and (settings := self._read_entry("data", f"data.{role}", entry))
        }
        tables, figures = (
            {
                name: settings
                for name, entry in blocks(raw, section)
                if (settings := self._read_settings(section, path := f"{section}.{name}", name, entry, path))
            }
            for section in ("tables", "figures")
        )
        methods = [self._read_method(name, entry, raw, sound) for name, entry in blocks(raw, "methods")]
        features = self._read_features(raw, sound)
        recipes = self._read_recipes(raw, sound)
        named = {method.name: method for method in methods if method}
        return Modules(named, sources, tables, figures, features, recipes)

    def _read_recipes(self, raw: dict[str, Any], sound: Mapping[str, Any]) -> tuple[Recipe, ...]:
        """Read the recipes that are ranked, if there are any."""
        utility = sound.get("utility")
        if utility is None or not isinstance(raw.get("training"), dict):
            return ()
        read = [
            self._read_override(raw["training"], override, f"utility.recipes.{number}")
            for number, override in enumerate(utility.recipes)
        ]
        return tuple(recipe for recipe in read if recipe)

    def _read_features(self, raw: dict[str, Any], sound: Mapping[str, Any]) -> Recipe | None:
        """Read the recipe of the network that compares images, if there is one."""
        visual = sound.get("visual")
        if visual is None or visual.features is None or not isinstance(raw.get("training"), dict):
            return None
        return self._read_override(raw["training"], visual.features.training, "visual.features.training")

    def _read_method(
        self, name: str, entry: dict[str, Any], raw: dict[str, Any], sound: Mapping[str, Any]
    ) -> Method | None:
        path = f"methods.{name}"
        own = {key: value for key, value in entry.items() if key not in Shared.model_fields}
        settings = self._read_entry("methods", path, own)
        shared = self.read(Shared, {key: value for key, value in entry.items() if key not in own}, path)
        model = (shared and shared.model) or sound.get("model")
        recipe = sound.get("training")
        if shared and settings:
            used = getattr(load("methods", own["module"]), "RECIPE", None)
            self.problems += _unused_overrides(shared.training, used, own["module"], f"{path}.training")
        if shared and shared.training and isinstance(raw.get("training"), dict):
            recipe = self._read_override(raw["training"], shared.training, f"{path}.training")
        if settings is None or shared is None or model is None or recipe is None:
            return None
        return Method(name, shared.label or name, own["module"], settings, model, recipe, shared.shadows)

    def _read_override(self, base: dict[str, Any], override: dict[str, Any], path: str) -> Recipe | None:
        """Read a recipe that replaces values of the run's; what is wrong with the latter is not told again."""
        _, told = read(Recipe, base, path)
        recipe, problems = read(Recipe, _overlaid(base, override), path)
        whole = path in {problem.path for problem in told}  # the values of the run's recipe do not go together
        self.problems += [one for one in problems if one not in told and not (whole and one.path == path)]
        return typing.cast(Recipe | None, recipe)

    def _read_entry(self, section: str, path: str, entry: dict[str, Any]) -> Settings | None:
        """Read an entry that names its module."""
        own = {key: value for key, value in entry.items() if key != "module"}
        if "module" in entry:
            return self._read_settings(section, path, entry["module"], own, f"{path}.module")
        known = ", ".join(available(section))
        message = f"is required: a file in {plugins.folder(section)}; there is {known}."
        self.problems.append(Problem(f"{path}.module", message))
        return None

    def _read_settings(
        self, section: str, path: str, module: Any, own: dict[str, Any], named_at: str
    ) -> Settings | None:
        """Read a module's own settings."""
        if module not in plugins.files(section):
            known = suggestion(module, available(section))
            self.problems.append(Problem(named_at, f"names no file {plugins.folder(section)}/{module}.py{known}"))
            return None
        try:
            model = load(section, module).Settings
        except CoalmineError as error:
            self.problems.append(Problem(named_at, str(error)))
            return None
        settings: Settings | None = self.read(model, own, path)
        return settings


def _unused_overrides(
    override: dict[str, Any], used: tuple[str, ...] | None, module: str, path: str
) -> Iterator[Problem]:
    """Yield what an entry sets in the recipe although its method takes something else."""
    for key in override:
        if used is not None and key in Recipe.model_fields and key not in used:
            message = f"is not used by {module}, which takes only {' and '.join(used)} from the recipe."
            yield Problem(f"{path}.{key}", message)


class Run:
    """A checked configuration, and what each stage needs of it as a canonical JSON string."""

    def __init__(self, config: Config, modules: Modules) -> None:
        self.config = config
        self.methods = modules.methods
        self.sources = modules.sources
        self._features = modules.features
        self._recipes = modules.recipes
        self._reports = {"tables": modules.tables, "figures": modules.figures}
        self._predictions: dict[tuple[tuple[str, ...], tuple[str, ...]], list[dict[str, Any]]] = {}
        self._code: dict[tuple[str, str | None], str] = {}

    @property
    def name(self) -> str:
        """The run's name."""
        return self.config.run

    @property
    def shadows(self) -> range:
        """The shadow models."""
        return range(self.config.shadows)

    def shadows_of(self, name: str) -> int:
        """Return how many shadow models are made for a method or a control: the first so many of the run's."""
        return self.method(self.models_of(name)).shadows or self.config.shadows

    @cached_property
    def audited(self) -> list[str]:
        """All methods with models of their own, the separate average-case ones included."""
        separate = self.config.audit.average is not None and self.config.audit.average.models == "separate"
        return [*self.methods, *(name + AVERAGE_SUFFIX for name in self.methods)] if separate else [*self.methods]

    def models_of(self, name: str) -> str:
        """Return the method whose models are audited under ``name``: a control borrows another's."""
        control = self.config.controls.get(name)
        return control.of if control else name

    def is_average_case(self, name: str) -> bool:
        """Tell whether ``name`` is the separate average-case twin of a method or of experts."""
        return name not in {*self.methods, *self.config.experts} and name.endswith(AVERAGE_SUFFIX)

    def method(self, name: str) -> Method:
        """Return the entry of a method or of its average-case twin."""
        return self.methods[name.removesuffix(AVERAGE_SUFFIX) if self.is_average_case(name) else name]

    @cached_property
    def experts(self) -> list[str]:
        """All experts that some method matches, the separate average-case ones included."""
        return [*dict.fromkeys(name for method in self.audited if (name := self.experts_of(method)))]

    def experts_of(self, method: str) -> str | None:
        """Return the experts that a method matches, if it matches any: a twin has experts of its own."""
        return self._twin_aware(plugins.experts_of(self.method(method)), method)

    def kind(self, name: str) -> plugins.Kind:
        """Return what a method is: which function its file defines, or that it reuses another's synthetic sets."""
        return plugins.kind(self.method(name))

    def teacher_of(self, name: str) -> str | None:
        """Return the method whose models taught those of a data-free method, None for others: a twin's is a twin.

        The models of a method that reuses the sets of a data-free one were taught by that one's teacher, too.
        """
        return self._twin_aware(plugins.teacher_of(self.method(self.set_of(name) or name)), name)

    def set_of(self, name: str) -> str | None:
        """Return the method that makes the synthetic sets which a method's models learn from.

        It is the method itself unless that reuses another's, and None if it trains on the private data. A twin that
        reuses sets learns from those of the other method's twin.
        """
        return self._twin_aware(plugins.set_of(self.method(name)), name)

    def _twin_aware(self, named: str | None, by: str) -> str | None:
        """Return what a method names, or its twin if the method is one itself."""
        return named + AVERAGE_SUFFIX if named and self.is_average_case(by) else named

    def generator_of(self, name: str) -> str | None:
        """Return the method whose generative models a method draws its sets from, itself perhaps; None for others."""
        return self._twin_aware(plugins.generator_of(self.method(name)), name)

    def fits(self, name: str) -> bool:
        """Tell whether a method fits generative models of its own."""
        return self.generator_of(name) == name

    def pretrained_of(self, name: str) -> str | None:
        """Return the entry of ``pretrained`` that the fitting of a method starts from, if any."""
        return plugins.pretrained_of(self.method(name)) if self.fits(name) else None

    @cached_property
    def pretrained(self) -> list[str]:
        """All networks of the section ``pretrained`` that some method starts from."""
        return [*dict.fromkeys(name for method in self.audited if (name := self.pretrained_of(method)))]

    def claims_privacy(self, name: str) -> bool:
        """Tell whether a method has a guarantee of differential privacy, vacuous or not."""
        return plugins.claims_privacy(self.method(name))

    def uses_public(self, name: str) -> bool:
        """Tell whether a method needs the run's public data."""
        return plugins.uses_public(self.method(name))

    @property
    def compares_images(self) -> bool:
        """Tell whether synthetic images are compared with private ones."""
        return self.config.visual is not None

    @property
    def compares_features(self) -> bool:
        """Tell whether they are compared by the features of a network, too."""
        return self.config.visual is not None and self.config.visual.features is not None

    def reports(self, section: str) -> list[str]:
        """Names of the tables or figures of this run."""
        return list(self._reports[section])

    def report_settings(self, section: str, name: str) -> Settings:
        """Return the settings of a table or figure as they are configured."""
        return self._reports[section][name]

    def report(self, section: str, name: str) -> Settings:
        """Return the settings of a table or figure, with what it must know about its methods filled in."""
        settings = self._reports[section][name]
        fields, changes = type(settings).model_fields, {}
        entries: dict[str, Any] = {**self.methods, **self.config.controls}
        if "labels" in fields:
            shown = getattr(settings, "needed", methods_of(settings))
            labels = {name: entries[name].label for name in shown if name in entries and entries[name].label}
            changes["labels"] = labels | settings.labels  # type: ignore[attr-defined]
        if "average" in fields:
            twins = {method: method + AVERAGE_SUFFIX for method in methods_of(settings)}
            known = {method: twin for method, twin in twins.items() if twin in self.audited}
            changes["average"] = known | settings.average  # type: ignore[attr-defined]
        if "predicted" in fields:
            changes["predicted"] = self._predicted(settings)
        settings = settings.model_copy(update=changes)
        facts = self._facts(getattr(settings, "needed", methods_of(settings)))
        if "visual" in load(section, name).NEEDS:
            facts["visual"] = self.compares_images
        return settings.model_copy(update={name: fact for name, fact in facts.items() if name in fields})

    def _predicted(self, settings: Settings) -> tuple[Settings, ...]:
        """Return what the methods of a table are predicted to cost, and those of the presets that it names."""
        from coalmine.costs.table import predictions

        methods, presets = methods_of(settings), tuple(getattr(settings, "presets", ()))
        if (methods, presets) not in self._predictions:
            self._predictions[methods, presets] = predictions(self, methods, presets)
        rows = {"predicted": self._predictions[methods, presets], "methods": methods}
        own: tuple[Settings, ...] = type(settings).model_validate(rows).predicted  # type: ignore[attr-defined]
        return own

    def _facts(self, names: Iterable[str]) -> dict[str, Any]:
        """Return what tables and figures must know about methods (controls have nothing of their own)."""
        listed = [name for name in names if name in self.audited]
        owners = {name: owner for name in listed if (owner := self.set_of(name))}
        # Sets are looked up by their owner, whether or not it is listed beside a method that reuses them.
        methods = [*dict.fromkeys([*listed, *owners.values()])]
        # What is behind the sets that a method reuses is behind it, too.
        origins = {name: owners.get(name, name) for name in methods}
        starts = {name: getattr(self.method(one).settings, "initialisation", None) for name, one in origins.items()}
        return {
            "sets": {name: one for name, one in origins.items() if self.set_of(name)},
            "experts": {name: experts for name, one in origins.items() if (experts := self.experts_of(one))},
            "teachers": {name: teacher for name in methods if (teacher := self.teacher_of(name))},
            "generators": {name: one for name, own in origins.items() if (one := self.generator_of(own))},
            "initialisation": {name: start for name, start in starts.items() if start},
        }

    def report_needs(self, section: str, name: str) -> tuple[frozenset[str], tuple[str, ...]]:
        """Return what a table or figure reads (see ``report_inputs``), and of which methods and controls."""
        settings = self.report(section, name)
        spared = set() if getattr(settings, "seconds", True) else {"costs"}
        return load(section, name).NEEDS - spared, getattr(settings, "needed", methods_of(settings))

    def code(self, stage: str, module: str | None = None) -> str:
        """Return the code hash of a stage, with the module that it loads by name."""
        if (stage, module) not in self._code:
            self._code[stage, module] = provenance.code_hash(f"coalmine.stages.{stage}", *([module] if module else []))
        return self._code[stage, module]

    def method_code(self, stage: str, method: str) -> str:
        """Return the code hash of a stage on a method (or experts), with the method's file where the stage runs it."""
        trains = stage == "train" and self.kind(method) == "train"
        runs_method = trains or stage in ("account", "fit", "synthesize", "distil")
        return self.code(stage, f"coalmine.methods.{self.method(method).module}" if runs_method else None)

    def made_by(self, stage: str) -> dict[str, int]:
        """Return whose shadow models have files from a stage, and how many: methods, or the experts of that stage."""
        if stage == "experts":
            return dict.fromkeys(self.experts, self.config.shadows)
        makers: dict[str, Callable[[str], bool]] = {
            "fit": self.fits,
            "synthesize": lambda name: self.kind(name) == "synthesize",
            "train": lambda name: self.kind(name) != "distil",
            "distil": lambda name: self.kind(name) == "distil",
            "logits": lambda name: True,
        }
        return {name: self.shadows_of(name) for name in self.audited if makers[stage](name)}

    def shows_private_data(self, stage: str, name: str) -> bool:
        """Tell whether a stage shows private data to what a method makes: a guarantee is kept there."""
        if stage == "synthesize":
            return self.generator_of(name) is None
        return stage == "fit" or (stage == "train" and self.kind(name) == "train")

    def source_module(self, role: str) -> str:
        """Full name of the module that reads the private or public data."""
        return f"{plugins.PACKAGES['data']}.{self.sources[role][0]}"

    def downloads(self, role: str) -> list[Any]:
        """Files that must be downloaded for the private or public data."""
        module, settings = self.sources[role]
        return list(load("data", module).files(settings))

    @property
    def quality_network(self) -> str | None:
        """The network in whose features the quality of images is measured: ``inception``, ``features`` or None."""
        quality = self.config.quality
        if quality is None:
            return None
        return "inception" if quality.inception else "features"

    def inception_downloads(self) -> list[Any]:
        """Return the file of Inception's weights if it must be downloaded."""
        if not (self.config.quality and self.config.quality.inception and self.config.quality.inception.path is None):
            return []
        from coalmine.diffusion.inception import REMOTE

        return [REMOTE]

    def all_downloads(self) -> list[Any]:
        """Return every file that must be downloaded."""
        return [*(remote for role in self.sources for remote in self.downloads(role)), *self.inception_downloads()]

    def download_spec(self, remote: Any) -> str:
        """Return the sorted JSON of one file to download."""
        return provenance.canonical_json(dataclasses.asdict(remote))

    def spec(self, stage: str, *of: str, **which: Any) -> str:
        """Return the sorted JSON of just the configuration that ``stage`` uses."""
        return provenance.canonical_json(getattr(self, f"_{stage}_spec")(*of, **which))

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

    def _account_spec(self, method: str) -> dict[str, Any]:
        return {"method": method} | (self._fitted_spec(method) if self.fits(method) else self._module_spec(method))

    def _fit_spec(self, method: str) -> dict[str, Any]:
        name = self.pretrained_of(method)
        start = {"name": name, "settings": _plain(self.config.pretrained[name])} if name else None
        seed = {"seed": self.config.seed, "method": method}
        return seed | self._fitted_spec(method) | {"pretrained": start}

    def _synthesize_spec(self, method: str) -> dict[str, Any]:
        generator = self.generator_of(method)
        if generator:
            # Images are drawn from what was fitted; how a classifier is trained on them is no concern of theirs.
            seed = {"seed": self.config.seed, "method": method, "generator": generator}
            return seed | self._module_spec(method)
        return self._setup_spec(method) | self._module_spec(method)

    def _experts_spec(self, name: str) -> dict[str, Any]:
        entry = self.config.experts[name.removesuffix(AVERAGE_SUFFIX) if self.is_average_case(name) else name]
        return {
            "seed": self.config.seed,
            "experts": name,
            "settings": _plain(entry),
            "normalisation": _plain(self.config.data.normalisation),
        }

    def _train_spec(self, method: str) -> dict[str, Any]:
        # Of a method that makes synthetic sets, its settings have done their work when models are trained on these.
        own = self._module_spec(method) if self.kind(method) == "train" else self._reused(method)
        return self._setup_spec(method) | own

    def _reused(self, method: str) -> dict[str, Any]:
        """Return whose synthetic sets a method reuses, if it does."""
        return {"set": self.set_of(method)} if self.kind(method) == "reuse" else {}

    def _distil_spec(self, method: str) -> dict[str, Any]:
        name = self.teacher_of(method)
        assert name, "only data-free methods have a teacher"
        entry = self.method(name)
        teacher = {"method": name, "model": _plain(entry.model)}
        return self._setup_spec(method) | self._module_spec(method) | {"teacher": teacher}

    def _module_spec(self, method: str) -> dict[str, Any]:
        entry = self.method(method)
        return {"module": entry.module, "settings": _plain(entry.settings)}

    def _fitted_spec(self, method: str) -> dict[str, Any]:
        """Return a method's file and what its generative models are fitted by: not what is drawn from them."""
        spec = self._module_spec(method)
        return spec | {"settings": {"fit": spec["settings"]["fit"]}}

    def _setup_spec(self, method: str) -> dict[str, Any]:
        entry = self.method(method)
        used = getattr(load("methods", entry.module), "RECIPE", None)
        return {
            "seed": self.config.seed,
            "method": method,
            "model": _plain(entry.model),
            "training": {key: value for key, value in _plain(entry.recipe).items() if used is None or key in used},
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
            **self._reused(method),
        }

    def _score_spec(self, method: str) -> dict[str, Any]:
        control = self.config.controls.get(method)
        audit = self.config.audit
        models = self.models_of(method)
        made_by = self.method(self.set_of(models) or models)
        return {
            "seed": self.config.seed,
            "method": method,
            "of": models,
            "source": getattr(load("methods", made_by.module), "SOURCE", "copied"),
            "teacher": None if control else self.teacher_of(method),
            "membership": control.membership if control else "true",
            "shadows": self.shadows_of(method),
            "bootstrap": audit.bootstrap,
            "confidence": audit.confidence,
            "delta": audit.delta,
        }

    def _pretrain_denoiser_spec(self, name: str) -> dict[str, Any]:
        return {"seed": self.config.seed, "name": name, "settings": _plain(self.config.pretrained[name])}

    def _quality_spec(self, method: str) -> dict[str, Any]:
        quality = self.config.quality
        assert quality, "only where the quality of images is measured"
        return {
            "seed": self.config.seed,
            "method": method,
            "shadows": min(quality.shadows, self.shadows_of(method)),
            "images": quality.images,
            "neighbours": quality.neighbours,
            "inception": quality.inception is not None,
            "normalisation": _plain(self.config.data.normalisation),
        }

    def _sizes_spec(self, method: str) -> dict[str, Any]:
        utility = self.config.utility
        assert utility, "only where sets are put to use"
        return self._utility_spec(method) | {
            "training": _plain(self.method(method).recipe),
            "sizes": list(utility.sizes),
        }

    def _recipes_spec(self, method: str) -> dict[str, Any]:
        utility = self.config.utility
        assert utility, "only where sets are put to use"
        ranked = zip(utility.recipes, self._recipes, strict=True)
        return self._utility_spec(method) | {
            "validation": utility.validation,
            "recipes": [{"overrides": override, "training": _plain(recipe)} for override, recipe in ranked],
        }

    def _utility_spec(self, method: str) -> dict[str, Any]:
        assert self.config.utility
        return {
            "seed": self.config.seed,
            "method": method,
            "model": _plain(self.method(method).model),
            "normalisation": _plain(self.config.data.normalisation),
            "shadows": min(self.config.utility.shadows, self.shadows_of(method)),
        }

    def _pretrain_spec(self) -> dict[str, Any]:
        assert self._features, "only where there is such a network"
        assert self.config.visual
        assert self.config.visual.features
        return {
            "seed": self.config.seed,
            "name": "features",
            "model": _plain(self.config.visual.features.model),
            "training": _plain(self._features),
            "normalisation": _plain(self.config.data.normalisation),
        }

    def _resemble_spec(self, method: str) -> dict[str, Any]:
        assert self.config.visual, "only where images are compared"
        return {
            "seed": self.config.seed,
            "method": method,
            "shadows": self.shadows_of(method),
            "public": "public" in self.sources,
            "features": self.compares_features,
            "images": self.config.visual.images,
            "level": self.config.visual.level,
            "confidence": self.config.audit.confidence,
            "bootstrap": self.config.audit.bootstrap,
            "normalisation": _plain(self.config.data.normalisation),
        }

    def _table_spec(self, name: str) -> dict[str, Any]:
        return self._report_spec("tables", name)

    def _figure_spec(self, name: str) -> dict[str, Any]:
        return self._report_spec("figures", name)

    def _report_spec(self, section: str, name: str) -> dict[str, Any]:
        return {"name": name, "settings": _plain(self.report(section, name))}

    def _configuration_spec(self) -> dict[str, Any]:
        return self.effective()

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
                **({"shadows": entry.shadows} if entry.shadows else {}),
                **_plain(entry.settings),
            }
            for name, entry in self.methods.items()
        }
        if self._features:
            plain["visual"]["features"]["training"] = _plain(self._features)
        for role, (module, settings) in self.sources.items():
            plain["data"][role] = {"module": module, **_plain(settings)}
        for section, reports in self._reports.items():
            plain[section] = {name: _plain(report) for name, report in reports.items()}
        return plain


def _plain(settings: BaseModel) -> dict[str, Any]:
    return settings.model_dump(mode="json")


def schema() -> dict[str, Any]:
    """Return the JSON schema of ``config.yaml`` for editors, with the settings of every module that there is.

    No key is required, so that the schema serves overlays too; ``check`` tells what is missing in the end.
    """
    known = {section: available(section) for section in plugins.PACKAGES}
    modules = {(section, name): load(section, name).Settings for section, names in known.items() for name in names}
    typed = (Config, Shared, Data, Experts, Pretraining, Control, Features, Recipe, *modules.values())
    references, document = models_json_schema([(block, "validation") for block in typed])
    document = _relaxed(document)

    def properties(block: type[BaseModel]) -> dict[str, Any]:
        definition = references[block, "validation"]["$ref"].rpartition("/")[2]
        found: dict[str, Any] = document["$defs"][definition]["properties"]
        return found

    def block(properties: dict[str, Any]) -> dict[str, Any]:
        return {"type": ["object", "null"], "properties": properties, "additionalProperties": False}

    def named_module(section: str, shared: Mapping[str, Any]) -> dict[str, Any]:
        """An entry with ``module``: that module's settings are allowed. Overlays may leave it out, then any's are."""
        own = {name: {"module": {}, **shared, **properties(modules[section, name])} for name in known[section]}
        branches = [
            {
                "if": {"properties": {"module": {"const": name}}, "required": ["module"]},
                "then": {"properties": allowed, "additionalProperties": False},
            }
            for name, allowed in own.items()
        ]
        keys = sorted({key for allowed in own.values() for key in allowed})
        branches.append({"if": {"not": {"required": ["module"]}}, "then": {"propertyNames": {"enum": keys}}})
        return {"type": ["object", "null"], "properties": {"module": {"enum": [*own]}}, "allOf": branches}

    config, data = properties(Config), properties(Data)
    for owner in (Shared, Features):
        properties(owner)["training"] = references[Recipe, "validation"]
    data["public"] = named_module("data", {}) | {"description": data["public"]["description"]}
    data["private"] |= named_module("data", {}) | {"type": "object"}
    entries = {
        "experts": block(properties(Experts)),
        "pretrained": block(properties(Pretraining)),
        "methods": named_module("methods", properties(Shared)),
        "controls": block(properties(Control)),
    }
    for section, entry in entries.items():
        patterns = dict.fromkeys(config[section].pop("patternProperties"), entry)
        config[section] |= {"patternProperties": patterns, "additionalProperties": False}
    for section in ("tables", "figures"):
        reports = {name: block(properties(modules[section, name])) for name in known[section]}
        config[section] |= {"properties": reports, "additionalProperties": False}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **references[Config, "validation"], **document}


def _relaxed(schema: Any) -> Any:
    """Return a schema without required keys; without its tag, a union's member is then any that fits."""
    if isinstance(schema, list):
        return [_relaxed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: part for key, part in schema.items() if key not in ("required", "discriminator")}
    return {
        "anyOf" if key == "oneOf" else key: {name: _relaxed(own) for name, own in part.items()}
        if key in ("properties", "$defs")
        else _relaxed(part)
        for key, part in kept.items()
    }


if __name__ == "__main__":
    print(json.dumps(schema(), indent=1, sort_keys=True))
