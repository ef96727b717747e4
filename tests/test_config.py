"""The configuration: every mistake is told at once, where it stands; each stage's spec holds only what it uses."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
import yaml
from snakemake.common.configfile import load_configfile
from snakemake.utils import update_config

import coalmine.methods
from coalmine import config
from coalmine.config import ConfigurationError, Problem, Run, available, check, schema
from coalmine.outline import Outline
from coalmine.sections import Stage

REPOSITORY = Path(__file__).resolve().parents[1]
PRESETS = sorted((REPOSITORY / "workflow/presets").glob("*.yaml"))
DEFAULT = load_configfile(REPOSITORY / "config.yaml")
BASE = yaml.safe_load(
    """
    run: demo
    shadows: 32
    data: {private: {module: digits}, public: {module: rendered_digits}, normalisation: {mean: [0.3], std: [0.35]}}
    audit: {canaries: 200, average: {models: shared, samples: 200}, views: {flip: false, shift: 0}}
    model: {name: small-cnn}
    training: {epochs: 60, batch_size: 128, schedule: cosine, augmentation: {flip: false, shift: 0}}
    methods:
      undefended: {module: undefended, label: Undefended}
      random: {module: coreset, label: Random, selection: random, training: {epochs: 100}}
      forgetting: {module: coreset, selection: forgetting, scoring_epochs: 20, training: {epochs: 100}}
      herding: {module: coreset, selection: herding, training: {epochs: 100}}
      el2n: {module: coreset, selection: el2n, scoring_epochs: 5, proxies: 3}
    controls:
      shuffled: {of: undefended, label: "Null: membership shuffled"}
    tables:
      table1: {methods: [undefended, random, forgetting, herding, shuffled]}
      table5: {methods: [undefended, random, forgetting]}
      table6: {methods: [undefended, random, forgetting, herding, shuffled]}
      table7: {methods: [undefended, random, forgetting, herding]}
    figures:
      figure1: {methods: [undefended, random, forgetting, herding, shuffled]}
      figure3: {methods: [undefended, random, forgetting]}
      figure4: {methods: [undefended]}
      figure5: {methods: [random, forgetting]}
    execution: {device: auto, batch: 16, mode: auto}
    """
)


def merged(*overlays: str | dict[str, Any], base: dict[str, Any] = BASE) -> dict[str, Any]:
    """A configuration with overlays, merged as Snakemake's ``--configfile`` does."""
    raw = copy.deepcopy(base)
    for overlay in overlays:
        update_config(raw, yaml.safe_load(overlay) if isinstance(overlay, str) else copy.deepcopy(overlay))
    return raw


def problems(*overlays: str) -> list[tuple[str, str]]:
    with pytest.raises(ConfigurationError) as caught:
        check(merged(*overlays))
    return list(caught.value.problems)


def only_problem(*overlays: str) -> str:
    (problem,) = problems(*overlays)
    return ": ".join(problem)


def run(*overlays: str) -> Run:
    return check(merged(*overlays))


SEPARATE = "audit: {average: {models: separate, samples: null}}"


def test_the_default_configuration_is_in_order() -> None:
    default = check(merged(base=DEFAULT))
    assert default.name == "demo"
    assert set(default.config.methods) == set(default.methods)
    assert [*default.shadows] == [*range(default.config.shadows)]


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_every_preset_is_in_order_over_the_default(preset: Path) -> None:
    overlay = load_configfile(preset)
    assert check(merged(overlay, base=DEFAULT)).name == overlay["run"] != "demo"


# --- every mistake, at once, where it stands --------------------------------------------------------------------


def test_all_mistakes_are_told_at_once_with_their_paths() -> None:
    found = problems(
        """
        sedd: 1
        shadows: 7
        data: {public: {module: cinic10, part: all}, privat_size: 3}
        audit: {canaries: 0, views: {flp: true}}
        training: {epoch: 3, learning_rate: 1e-3}
        model: {widht: 3}
        methods:
          random: {module: corset}
          forgetting: {fractoin: 0.3, training: {epohcs: 3}}
          My_Own: {module: undefended}
        controls: {shuffled: {of: undefnded}}
        tables: {table1: {methods: [nobody], tilte: x}, tabel2: {methods: [random]}}
        execution: {device: gpu}
        """
    )
    assert sorted(path for path, _ in found) == sorted(
        [
            "sedd",
            "shadows",
            "data.privat_size",
            "audit.canaries",
            "audit.views.flp",
            "training.epoch",
            "training.learning_rate",
            "model.widht",
            "methods.My_Own",
            "methods.random.module",
            "methods.forgetting.fractoin",
            "methods.forgetting.training.epohcs",
            "controls.shuffled.of",
            "tables.table1.methods",
            "tables.table1.tilte",
            "tables.tabel2",
            "execution.device",
        ]
    )


def test_the_message_counts_the_mistakes_and_says_that_nothing_was_started() -> None:
    with pytest.raises(ConfigurationError, match=r"has 1 error; nothing was started\.\n  sedd: "):
        check(merged("sedd: 1"))
    with pytest.raises(ConfigurationError, match="has 2 errors; nothing"):
        check(merged("{sedd: 1, sahdows: 8}"))


def test_a_mistake_in_one_section_does_not_hide_what_is_wrong_between_sound_ones() -> None:
    found = dict(problems("{training: {epochs: 0}, audit: {canaries: 1200}, data: {public: {module: digits}}}"))
    assert found.keys() == {"training.epochs", "audit.canaries", "data.public"}


@pytest.mark.parametrize(
    ("overlay", "told"),
    [
        ("sedd: 1", "sedd: is not a known key; did you mean seed?"),
        ("data: {privat_size: 3}", "data.privat_size: is not a known key; did you mean private_size?"),
        ("data: {pubilc: null}", "data.pubilc: is not a known key; did you mean public?"),
        (
            "data: {private: {tset_size: 30}}",
            "data.private.tset_size: is not a known key; did you mean test_size?",
        ),
        (
            "data: {normalisation: {maen: [0.5]}}",
            "data.normalisation.maen: is not a known key; did you mean mean?",
        ),
        ("audit: {views: {flp: true}}", "audit.views.flp: is not a known key; did you mean flip?"),
        (
            "audit: {average: {sampels: 3}}",
            "audit.average.sampels: is not a known key; did you mean samples?",
        ),
        ("training: {epoch: 3}", "training.epoch: is not a known key; did you mean epochs?"),
        (
            "training: {augmentation: {flop: true}}",
            "training.augmentation.flop: is not a known key; did you mean flip?",
        ),
        ("model: {widht: 3}", "model.widht: is not a known key; did you mean width?"),
        (
            "model: {name: wide-resnet, width: 3}",
            "model.width: is not a known key; did you mean widen?",
        ),
        (
            "methods: {random: {fractoin: 0.3}}",
            "methods.random.fractoin: is not a known key; did you mean fraction?",
        ),
        (
            "methods: {random: {training: {epohcs: 3}}}",
            "methods.random.training.epohcs: is not a known key; did you mean epochs?",
        ),
        (
            "methods: {random: {training: {augmentation: {shfit: 1}}}}",
            "methods.random.training.augmentation.shfit: is not a known key; did you mean shift?",
        ),
        (
            "methods: {random: {model: {name: mlp, hiden: [3]}}}",
            "methods.random.model.hiden: is not a known key; did you mean hidden?",
        ),
        (
            "controls: {shuffled: {lable: x}}",
            "controls.shuffled.lable: is not a known key; did you mean label?",
        ),
        ("tables: {table1: {tilte: x}}", "tables.table1.tilte: is not a known key; did you mean title?"),
        ("figures: {figure1: {tilte: x}}", "figures.figure1.tilte: is not a known key; did you mean title?"),
        ("execution: {devcie: cpu}", "execution.devcie: is not a known key; did you mean device?"),
        # Nothing is near: the keys that there are.
        ("audit: {views: {zzz: 1}}", "audit.views.zzz: is not a known key; there is flip, shift."),
    ],
)
def test_a_misspelt_key_is_told_where_it_stands_with_a_suggestion(overlay: str, told: str) -> None:
    assert only_problem(overlay) == told


@pytest.mark.parametrize(
    ("overlay", "told"),
    [
        (
            "methods: {random: {module: corset}}",
            "methods.random.module: names no file src/coalmine/methods/corset.py; did you mean coreset?",
        ),
        (
            "data: {private: {module: digit}}",
            "data.private.module: names no file src/coalmine/data/sources/digit.py; did you mean digits?",
        ),
        (
            "tables: {tabel1: {methods: [random]}}",
            "tables.tabel1: names no file src/coalmine/reporting/tabel1.py; did you mean table1?",
        ),
        (
            "figures: {figur1: {methods: [random]}}",
            "figures.figur1: names no file src/coalmine/reporting/figur1.py; did you mean figure1?",
        ),
        ("methods: {new: {label: x}}", "methods.new.module: is required: a file in src/coalmine/methods; there is "),
        ("model: {name: small-cn}", 'model.name: is unknown (found "small-cn"); did you mean small-cnn?'),
        ("methods: {random: {model: {width: 3}}}", "methods.random.model.name: is required; there is convnet, mlp, "),
    ],
)
def test_an_unknown_module_or_model_names_the_folder_and_a_suggestion(overlay: str, told: str) -> None:
    assert only_problem(overlay).startswith(told)


def test_a_figure_among_the_tables_is_sent_to_its_place() -> None:
    told = "src/coalmine/reporting/figure1.py makes a figure; move it to `figures`."
    assert only_problem("tables: {figure1: {methods: [random]}}") == f"tables.figure1: {told}"
    told = "src/coalmine/reporting/table1.py makes a table; move it to `tables`."
    assert only_problem("figures: {table1: {methods: [random]}}") == f"figures.table1: {told}"
    assert "none of the tables" in only_problem("tables: {writers: {methods: [random]}}")


@pytest.fixture
def own_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Writes the method file ``own.py``, as if it lay beside the others."""
    monkeypatch.setattr(coalmine.methods, "__path__", [*coalmine.methods.__path__, str(tmp_path)])
    yield (tmp_path / "own.py").write_text
    sys.modules.pop("coalmine.methods.own", None)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("import no_such_package", "cannot be imported (ModuleNotFoundError: No module named 'no_such_package')"),
        ("def train(: pass", "cannot be imported (SyntaxError: "),
        ("def train(): pass", "it does not define Settings"),
        (
            "from coalmine.settings import Settings\ndef train(): pass\ndef synthesize(): pass",
            "must define exactly one of `synthesize`, `train` and `distil`, or none of them and Settings with a field",
        ),
        (
            "from coalmine.settings import Settings\ndef train(): pass\ndef distil(): pass",
            "must define exactly one of `synthesize`, `train` and `distil`, or none of them and Settings with a field",
        ),
        (
            "from coalmine.settings import Settings",
            "must define exactly one of `synthesize`, `train` and `distil`, or none of them and Settings with a field",
        ),
        (
            "from coalmine.settings import Settings\ndef distil(): pass",
            "distils models of another method, so its Settings need `teacher`, the name of that method.",
        ),
        (
            "import coalmine.settings\nclass Settings(coalmine.settings.Settings):\n    teacher: str = 'undefended'\n"
            "def distil(): pass\ndef guarantee(): pass",
            "defines `guarantee`, but is given neither private nor public data; leave it out.",
        ),
        (
            "import coalmine.settings\nclass Settings(coalmine.settings.Settings):\n    set: str = 'random'\n"
            "def uses_public(settings): return True",
            "defines `uses_public`, but is given neither private nor public data; leave it out.",
        ),
        (
            "from coalmine.settings import Settings\ndef train(): pass\ndef guarantee(): pass",
            "claims differential privacy by its `guarantee`, so its Settings need `clip`",
        ),
        (
            "from coalmine.settings import Settings\ndef train(): pass\ndef fit(): pass",
            "defines `fit`, whose generative models only `synthesize` can use: it must define that, too, and its",
        ),
        (
            "from coalmine.settings import Settings\ndef synthesize(): pass\ndef fit(): pass",
            "it must define that, too, and its Settings need a block `fit`.",
        ),
    ],
)
def test_a_broken_method_file_is_told_like_any_mistake(
    own_method: Callable[[str], Any], source: str, told: str
) -> None:
    own_method(source)
    message = only_problem("methods: {mine: {module: own}}")
    assert message.startswith("methods.mine.module: src/coalmine/methods/own.py ")
    assert told in message


def test_a_new_file_and_an_entry_make_a_new_method(own_method: Callable[[str], Any]) -> None:
    own_method(
        "import coalmine.settings\ndef uses_public(settings): return True\n"
        "class Settings(coalmine.settings.Settings):\n    strength: int = 3\n"
        "def synthesize(shadows, settings, setup): ..."
    )
    mine = run("methods: {mine: {module: own}}")
    assert json.loads(mine.spec("synthesize", method="mine"))["settings"] == {"strength": 3}
    assert mine.uses_public("mine")
    assert not mine.uses_public("random")
    told = "methods.mine: needs public data, but data.public is null."
    assert only_problem("{methods: {mine: {module: own}}, data: {public: null}}") == told


STARTER = """
import coalmine.settings
SOURCE = "initialised"
class Settings(coalmine.settings.Settings):
    initialisation: str = "private"
def uses_public(settings): return settings.initialisation == "public"
def objection(settings, model, recipe, outline):
    return "initialisation", f"{outline._replace(models=sorted(outline.models), settings=sorted(outline.settings))}"
def synthesize(shadows, settings, setup): ...
"""
"""A method that starts from images; its objection tells the outline that it was given."""


MATCHER = """
import coalmine.settings
class Settings(coalmine.settings.Settings):
    experts: str
def objection(settings, model, recipe, outline):
    if outline.experts[settings.experts].epochs < 9: return "experts", "are too short."
def synthesize(shadows, settings, setup): ...
"""
"""A method that matches experts."""
MATCHED = """
experts: {quick: {experts: 2, epochs: 9, model: {name: mlp}}, slow: {epochs: 99}}
methods: {mine: {module: own, experts: quick}}
"""


def test_a_method_judges_its_settings_by_the_outline_of_the_run(own_method: Callable[[str], Any]) -> None:
    own_method(STARTER)
    told = only_problem("methods: {mine: {module: own}}")
    # 1,400 samples, 400 of them audited and so in half of the models.
    models = sorted([*BASE["methods"], "mine"])
    named = {"models": models, "settings": models, "pretrained": {}}
    outline = Outline(population=1200.0, classes=10, channels=1, experts={}, image_size=(8, 8), **named)
    assert told == f"methods.mine.initialisation: {outline}"
    folder = "{private: {module: image_folder, path: .}, normalisation: {mean: [0, 0, 0], std: [1, 1, 1]}}"
    told = only_problem(f"{{methods: {{mine: {{module: own}}}}, data: {folder}}}")
    assert told == f"methods.mine.initialisation: {Outline(None, None, 3, {}, None, **named)}"


def test_settings_decide_whether_a_method_uses_public_data(own_method: Callable[[str], Any]) -> None:
    own_method(STARTER.replace("def objection", "def no_objection"))
    entries = "methods: {mine: {module: own}, others: {module: own, initialisation: public}}"
    both = run(entries)
    assert (both.uses_public("mine"), both.uses_public("others")) == (False, True)
    told = "methods.others: needs public data, but data.public is null."
    assert only_problem(entries, "data: {public: null}") == told
    told = only_problem(entries, "data: {public: {image_size: 12}}")
    assert told.startswith("methods.others: uses public data, whose images (12x12 pixels, 1 channel) do not fit ")
    assert run("data: {public: {image_size: 12}}"), "nobody uses them"
    folder = "data: {public: {module: image_folder, path: ., image_size: %s, grey: true}}"
    assert run(entries, folder % 8)
    assert run(entries, folder % "null"), "not known before the images are read"
    assert "8x8 pixels, 3 channels" in only_problem(entries, folder.replace("grey: true", "grey: false") % 8)


def test_what_the_source_of_an_image_means_is_told_to_the_scores(own_method: Callable[[str], Any]) -> None:
    own_method(STARTER.replace("def objection", "def no_objection"))
    mine = run("{methods: {mine: {module: own}}, controls: {broken: {of: mine}}}")
    told = {name: json.loads(mine.spec("score", method=name))["source"] for name in ("mine", "broken", "random")}
    assert told == {"mine": "initialised", "broken": "initialised", "random": "copied"}


@pytest.mark.parametrize(
    ("overlay", "told"),
    [
        (
            "tables: {table1: {methods: [random, undefnded]}}",
            "tables.table1.methods: names no method or control undefnded; did you mean undefended?",
        ),
        (
            "figures: {figure5: {methods: [shufled]}}",
            "figures.figure5.methods: names no method or control shufled; did you mean shuffled?",
        ),
        (
            "tables: {table5: {average: {random: forgeting}}}",
            "tables.table5.average: names no method forgeting; did you mean forgetting?",
        ),
        (
            "controls: {shuffled: {of: undefnded}}",
            "controls.shuffled.of: names no method undefnded; did you mean undefended?",
        ),
        (
            "controls: {random: {of: undefended}}",
            "controls.random: has the name of a method; give it another.",
        ),
        (
            "{controls: {twice: {of: shuffled}}}",
            "controls.twice.of: names no method shuffled; there is el2n, ",
        ),
    ],
)
def test_a_name_that_no_method_has_is_told_where_it_is_used(overlay: str, told: str) -> None:
    assert only_problem(overlay).startswith(told)


def test_a_local_file_that_is_not_there_is_told_before_any_job() -> None:
    told = only_problem("data: {private: {module: image_folder, path: my_images.zip}}")
    assert told.startswith("data.private.path: is 'my_images.zip', which does not exist")


def test_a_broken_method_is_no_unknown_one() -> None:
    assert [path for path, _ in problems("methods: {random: {module: corset}}")] == ["methods.random.module"]


@pytest.mark.parametrize(
    ("overlay", "told"),
    [
        ("shadows: 7", "shadows: is 7; an even number is needed, as each canary is in exactly half."),
        ("shadows: 1", "shadows: is 1; an even number is needed, as each canary is in exactly half."),
        ("shadows: 4", "shadows: is 4; LiRA needs at least 6: "),
        ("shadows: 0", "shadows: is 0; LiRA needs at least 6: "),
        # Digits: 1,797 images, 397 of them for the test.
        (
            "audit: {canaries: 1200}",
            "audit.canaries: 1200 canaries and 200 samples of `average` are audited, but there are only 1400 private ",
        ),
        ("data: {private_size: 400}", "audit.canaries: 200 canaries and 200 samples of `average` are audited, "),
        (
            "data: {private: {test_size: 1397}}",
            "audit.canaries: 200 canaries and 200 samples of `average` are audited, but there are only 400 private ",
        ),
        ("data: {private_size: 1401}", "data.private_size: is 1401, but digits has only 1400 private samples."),
        (
            "{data: {private: {module: cifar10}}, audit: {canaries: 49800}}",
            "audit.canaries: 49800 canaries and 200 samples of `average` are audited, but there are only 50000 ",
        ),
        (
            "{data: {private: {module: cifar10}, private_size: 50001}}",
            "data.private_size: is 50001, but cifar10 has only 50000 private samples.",
        ),
        ("{data: {public: {module: cinic10, part: all}}}", "data.public: CINIC-10 with part: all holds images of "),
        ("{data: {public: {module: cinic10, part: cifar}}}", "data.public: CINIC-10 with part: cifar holds images "),
        ("{data: {public: {module: digits}}}", "data.public: the handwritten digits come from real people "),
        ("run: data", "run: is data, but results/data is kept for what runs share; name the run otherwise."),
        ("run: My Run", 'run: may hold lower-case letters, digits and hyphens only (found "My Run").'),
        ("training: {epochs: 1}", "training: warmup_epochs (1) must be fewer than epochs (1)"),
        ("methods: {random: {training: {epochs: 1}}}", "methods.random.training: warmup_epochs (1) must be fewer "),
        ("model: {name: wide-resnet, depth: 11}", "model.depth: a wide residual network has 6 n + 4 layers "),
        ("audit: {average: {samples: null}}", "audit.average: models: shared needs `samples`, "),
        ("audit: {average: {models: separate}}", "audit.average: models: separate audits the canaries themselves; "),
        ("tables: {table1: {methods: []}}", "tables.table1.methods: must not be empty."),
        ("methods: {random: {fraction: 3}}", "methods.random.fraction: should be less than 1 (found 3)."),
        ("methods: {random: {selection: best}}", "methods.random.selection: should be 'random', 'forgetting', "),
    ],
)
def test_numbers_that_cannot_be_are_told_with_what_is_possible(overlay: str, told: str) -> None:
    assert only_problem(overlay).startswith(told)


@pytest.mark.parametrize(
    "overlay",
    [
        "shadows: 6",
        "audit: {canaries: 1199}",
        "data: {private_size: 401}",
        "data: {private_size: 1400}",
        "{data: {private: {module: cifar10}}, audit: {canaries: 49799}}",
        # Not the official files: their number is not known before they are read.
        "{data: {private: {module: cifar10, official: false}, private_size: 50001}}",
        "{data: {private: {module: image_folder, path: .}}, audit: {canaries: 100000}}",
        "{data: {public: {module: cinic10}}}",
        "{data: {public: null}}",
    ],
)
def test_the_largest_possible_numbers_are_accepted(overlay: str) -> None:
    assert run(overlay)


def test_a_mistake_of_the_runs_recipe_is_told_once_not_for_every_method_that_overrides_it() -> None:
    assert only_problem("training: {learning_rate: 0}") == "training.learning_rate: should be greater than 0 (found 0)."
    # Values that do not go together, too; every other coreset here overrides the number of epochs.
    (only,) = problems("training: {schedule: steps, milestones: [50, 150]}")
    assert only[0] == "training"
    assert "epochs is 60" in only[1], "and not the 100 of the coresets"
    both = problems("{training: {gamma: 3}, methods: {random: {training: {momentum: 2}}}}")
    assert [path for path, _ in both] == ["training.gamma", "methods.random.training.momentum"]


@pytest.mark.parametrize(
    ("overlay", "told"),
    [
        (
            "training: {learning_rate: 1e-3}",
            'training.learning_rate: should be a number (found "1e-3"). YAML reads 1e-3 as text; write 1.0e-3.',
        ),
        ("training: {learning_rate: 2.5E5}", "YAML reads 2.5E5 as text; write 2.5e+5."),
        ("training: {epochs: 2e1}", "YAML reads 2e1 as text; write 20."),
        ('training: {epochs: "20"}', 'training.epochs: should be a whole number (found "20"). Leave out the quotes.'),
        ("run: 012", "run: should be text (found 10). Put text in quotes: YAML reads yes, no, on and off as true"),
        ("run: on", "run: should be text (found true). Put text in quotes: "),
        ("methods: {on: {module: undefended}}", "methods.True: may hold lower-case letters, digits and hyphens only"),
        ("methods: {random: {label: no}}", "methods.random.label: should be text (found false). Put text in quotes"),
        ("training: {warmup_epochs: on}", "training.warmup_epochs: should be a number (found true)."),
        ("training: {learning_rate: .nan}", "training.learning_rate: should be a finite number"),
        ("shadows: 32.0", "shadows: should be a whole number (found 32.0)."),
        ("shadows:", "shadows: should be a whole number (found null)."),
        ("data: 5", "data: should be a block of `key: value` (found 5)."),
        ("methods: [random]", "methods: should be a block of `key: value`."),
        ("methods: {random: 3}", "methods.random: should be a block of `key: value` (found 3)."),
        ("methods: {random: {training: 3}}", "methods.random.training: should be a block of `key: value` (found 3)."),
        ("tables: {table1: {methods: random}}", 'tables.table1.methods: should be a list (found "random").'),
        ("training: {milestones: [1, 2.5]}", "training.milestones.1: should be a whole number (found 2.5)."),
    ],
)
def test_what_yaml_makes_of_a_value_is_explained(overlay: str, told: str) -> None:
    assert told in only_problem(overlay)


def test_a_date_is_the_text_that_it_was_written_as() -> None:
    assert run("run: 2024-01-31").name == "2024-01-31"


# --- overlays ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("section", ["methods", "controls", "tables", "figures"])
def test_null_removes_an_entry(section: str) -> None:
    tables = "tables: {table1: {methods: [undefended]}, table5: null, table6: null, table7: null}"
    figures = "figures: {figure1: null, figure3: null, figure5: null}"
    name = {"methods": "random", "controls": "shuffled", "tables": "table1", "figures": "figure4"}[section]
    shorter = run(tables, figures, f"{section}: {{{name}: null}}")
    listed = {
        "methods": [*shorter.methods],
        "controls": [*shorter.config.controls],
        "tables": shorter.reports("tables"),
        "figures": shorter.reports("figures"),
    }
    assert name not in listed[section]
    assert sum(map(len, listed.values())) == 5 + 1 + 1 + 1 - 1


def test_a_removed_method_is_missed_where_it_is_listed() -> None:
    assert {path for path, _ in problems("methods: {herding: null}")} == {
        "tables.table1.methods",
        "tables.table6.methods",
        "tables.table7.methods",
        "figures.figure1.methods",
    }


def test_null_removes_settings_of_a_module_or_model_that_an_overlay_replaces() -> None:
    first = "{data: {private: {test_size: 300}}, model: {hidden: 64}}"
    second = "{data: {private: {module: cifar10}}, model: {name: resnet}}"
    assert {path for path, _ in problems(first, second)} == {"data.private.test_size", "model.hidden"}
    third = "{data: {private: {test_size: null}}, model: {width: 8, hidden: null}}"
    replaced = run(first, second, third)
    assert replaced.sources["private"][0] == "cifar10"
    assert (replaced.config.model.name, replaced.config.model.width) == ("resnet", 8)


def test_a_methods_recipe_replaces_single_values_of_the_runs_block_by_block() -> None:
    changed = (
        run("methods: {random: {training: {learning_rate: 0.7, augmentation: {shift: 2}}}}").method("random").recipe
    )
    assert (changed.learning_rate, changed.augmentation.shift) == (0.7, 2)
    assert changed.augmentation.flip is False, "the default of `flip` is true, the run says false"
    assert (changed.epochs, changed.batch_size) == (100, 128)
    assert run().config.training.learning_rate == 0.1


def test_a_methods_model_replaces_the_runs_whole() -> None:
    changed = run("methods: {random: {model: {name: mlp, hidden: [5]}}}")
    assert changed.method("random").model.model_dump() == {"name": "mlp", "hidden": (5,)}
    assert changed.method("herding").model.name == "small-cnn"


def test_checking_leaves_the_configuration_as_it_was() -> None:
    raw = merged("methods: {random: {training: {augmentation: {shift: 2}}}}", "figures: {figure1: null}")
    before = copy.deepcopy(raw)
    check(raw)
    assert raw == before


def test_no_module_has_a_setting_that_every_method_has() -> None:
    for name in available("methods"):
        assert not {"module", *config.Shared.model_fields} & config.load("methods", name).Settings.model_fields.keys()


# --- the average case --------------------------------------------------------------------------------------------


def test_shared_average_case_models_add_no_method() -> None:
    assert run().audited == [*run().methods]
    assert not any(map(run().is_average_case, run().audited))


def test_separate_average_case_models_are_twins_of_all_methods() -> None:
    separate = run(SEPARATE)
    assert separate.audited == [*separate.methods, *(f"{name}-average" for name in separate.methods)]
    assert separate.is_average_case("random-average")
    assert not separate.is_average_case("random")
    assert separate.method("random-average") is separate.method("random")
    assert separate.kind("random-average") == "synthesize"
    assert separate.kind("undefended-average") == "train"


def test_tables_that_compare_cases_are_pointed_at_the_twins() -> None:
    separate = run(SEPARATE, "tables: {table5: {average: {random: herding-average}}}")
    settings = json.loads(separate.spec("table", name="table5"))["settings"]
    assert settings["average"] == {
        "undefended": "undefended-average",
        "random": "herding-average",
        "forgetting": "forgetting-average",
    }
    _, methods = separate.report_needs("tables", "table5")
    listed = ("undefended", "random", "forgetting")
    assert methods == (*listed, "undefended-average", "herding-average", "forgetting-average")
    assert run().report_needs("tables", "table5") == (frozenset({"metrics"}), listed)


def test_twins_are_trained_with_their_own_random_streams_and_the_average_design() -> None:
    separate = run(SEPARATE)
    mine, twin = (json.loads(separate.spec("train", method=name)) for name in ("random", "random-average"))
    assert {key for key in mine if mine[key] != twin[key]} == {"method"}
    worst, average = (json.loads(separate.spec("design", case=case)) for case in ("worst", "average"))
    assert {key for key in worst if worst[key] != average[key]} == {"average"}
    assert (worst["average"], average["average"]) == (False, True)
    assert (worst["clean"], json.loads(run().spec("design", case="worst"))["clean"]) == (0, 200)


def test_what_compares_with_the_average_case_needs_one() -> None:
    found = problems("audit: {average: null}")
    assert [path for path, _ in found] == ["tables.table5", "figures.figure3", "figures.figure4"]
    assert found[0][1].endswith("but audit.average is null; set it, or tables.table5 to null.")
    assert run("{audit: {average: null}, tables: {table5: null}, figures: {figure3: null, figure4: null}}").audited == [
        *run().methods
    ]
    told = "tables.table5.methods: lists the control shuffled, which has no average-case models."
    assert only_problem(SEPARATE, "tables: {table5: {methods: [random, shuffled]}}") == told


def test_no_method_may_have_the_name_of_a_twin() -> None:
    entry = "methods: {random-average: {module: undefended}}"
    assert only_problem(SEPARATE, entry).startswith("methods.random-average: ends in -average, which is kept for ")
    assert run(entry).method("random-average").module == "undefended"


# --- experts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overlay", "told"),
    [
        ("methods: {mine: {experts: quik}}", "methods.mine.experts: names no experts quik; did you mean quick?"),
        ("experts: {quick: null, slow: null}", "methods.mine.experts: names no experts quick; there is none."),
        ("experts: {quick: {epochs: 3}}", "methods.mine.experts: are too short."),
        ("experts: {quick: {epoch: 3}}", "experts.quick.epoch: is not a known key; did you mean epochs?"),
        ("experts: {slow: {model: {name: small-cnn}}}", "experts.slow.model: has batch norm, "),
        ("experts: {quick: {siamese: {flpi: 0}}}", "experts.quick.siamese.flpi: is not a known key; did you mean "),
        ("experts: {Quick: {}}", "experts.Quick: may hold lower-case letters, digits and hyphens only"),
        ("experts: 3", "experts: should be a block of `key: value` (found 3)."),
        ("methods: {mine: {experts: null}}", "methods.mine.experts: should be text (found null)."),
    ],
)
def test_what_is_wrong_with_experts_is_told_once_and_where(
    own_method: Callable[[str], Any], overlay: str, told: str
) -> None:
    own_method(MATCHER)
    assert only_problem(MATCHED, overlay).startswith(told)


def test_experts_are_made_where_a_method_matches_them(own_method: Callable[[str], Any]) -> None:
    own_method(MATCHER)
    matched = run(MATCHED, "methods: {again: {module: own, experts: quick}}")
    assert matched.experts == ["quick"], "nobody matches the slow ones, and two methods share the quick ones"
    methods = ("mine", "again", "random", "undefended")
    assert [matched.experts_of(name) for name in methods] == ["quick", "quick", None, None]
    assert run("experts: {slow: {}}").experts == []


def test_experts_of_the_separate_average_case_are_their_own(own_method: Callable[[str], Any]) -> None:
    own_method(MATCHER)
    separate = run(MATCHED, SEPARATE)
    assert separate.experts == ["quick", "quick-average"]
    assert separate.experts_of("mine-average") == "quick-average"
    assert [separate.is_average_case(name) for name in separate.experts] == [False, True]
    worst, average = (json.loads(separate.spec("experts", name=name)) for name in separate.experts)
    assert worst.pop("experts") != average.pop("experts")
    assert worst == average
    told = "experts.slow-average: ends in -average, which is kept for the separate average-case models."
    assert only_problem(MATCHED, SEPARATE, "experts: {slow-average: {}}") == told


def test_null_removes_experts_and_settings_of_their_model() -> None:
    changed = run("experts: {mine: {model: {name: mlp, hidden: [8]}}, other: {}}", "experts: {other: null}")
    assert [*changed.config.experts] == ["mine"]
    changed = run(
        "experts: {mine: {model: {name: mlp, hidden: [8]}}}",
        "experts: {mine: {model: {name: convnet, width: 8, hidden: null}}}",
    )
    assert changed.config.experts["mine"].model.name == "convnet"


def test_a_change_of_experts_changes_their_spec_and_that_of_nothing_else(own_method: Callable[[str], Any]) -> None:
    own_method(MATCHER)
    before = specs(run(MATCHED))
    after = specs(run(MATCHED, "experts: {quick: {learning_rate: 0.1}}"))
    assert {name for name in before if before[name] != after[name]} == {"experts quick", "configuration"}
    after = specs(run(MATCHED, "experts: {slow: {learning_rate: 0.1}}"))
    assert {name for name in before if before[name] != after[name]} == {"configuration"}
    assert json.loads(before["experts quick"])["settings"]["learning_rate"] == 0.01


# --- data-free methods, and sets that others reuse ---------------------------------------------------------------

DISTILLER = """
import coalmine.settings
RECIPE = ("epochs", "precision")
class Settings(coalmine.settings.Settings):
    teacher: str = "undefended"
    steps: int = 3
def objection(settings, model, recipe, outline):
    if outline.models[settings.teacher].name == "mlp": return "teacher", "has no batch norm."
def distil(teachers, settings, setup): ...
"""
"""A data-free method, which does not work with every teacher."""
STUDENTS = """
methods:
  mine: {module: own, training: {epochs: 9}, model: {name: mlp}}
  again: {module: reuse, set: mine, model: {name: convnet}}
  coreset: {module: reuse, set: random}
"""


@pytest.mark.parametrize(
    ("overlay", "told"),
    [
        ("{mine: {teacher: undefnded}}", "methods.mine.teacher: names no method undefnded; did you mean undefended?"),
        ("{mine: {teacher: zzz}}", "methods.mine.teacher: names no method zzz; there is undefended."),
        *(
            (
                f"{{mine: {{teacher: {name}}}}}",
                f"methods.mine.teacher: names {name}, which does not train on the private data itself; name a method "
                "that does: undefended.",
            )
            for name in ("random", "mine", "again")
        ),
        ("{mine: {teacher: null}}", "methods.mine.teacher: should be text (found null)."),
        ("{mine: {teachr: undefended}}", "methods.mine.teachr: is not a known key; did you mean teacher?"),
        ("{mine: {training: {momentum: 0}}}", "methods.mine.training.momentum: is not used by own, which takes only "),
        ("{undefended: {model: {name: mlp}}}", "methods.mine.teacher: has no batch norm."),
        # Not told what it named, an objection of its own is not asked for.
        ("{undefended: {module: undefnded}}", "methods.undefended.module: names no file"),
        ("{again: {set: mien}}", "methods.again.set: names no method mien; did you mean mine?"),
        *(
            (
                f"{{again: {{set: {name}}}}}",
                f"methods.again.set: names {name}, which makes no synthetic sets itself; name a method that does: "
                "el2n, forgetting, herding, mine, random.",
            )
            for name in ("undefended", "again", "coreset")
        ),
        ("{again: {set: null}}", "methods.again.set: should be text (found null)."),
        ("{again: {steps: 3}}", "methods.again.steps: is not a known key; "),
    ],
)
def test_what_is_wrong_with_a_teacher_or_a_set_is_told_once_and_where(
    own_method: Callable[[str], Any], overlay: str, told: str
) -> None:
    own_method(DISTILLER)
    assert only_problem(STUDENTS, f"methods: {overlay}").startswith(told)


def test_there_may_be_no_method_that_could_teach_or_lend_its_set(own_method: Callable[[str], Any]) -> None:
    own_method(DISTILLER)
    only = {
        **BASE,
        "methods": {"mine": {"module": "own", "teacher": "again"}, "again": {"module": "reuse", "set": "x"}},
    }
    only |= {"controls": {}, "tables": {}, "figures": {}}
    with pytest.raises(ConfigurationError) as caught:
        check(only)
    assert [*map(": ".join, caught.value.problems)] == [
        "methods.mine.teacher: names again, which does not train on the private data itself; name a method that does: "
        "there is none.",
        "methods.again.set: names no method x; there is mine.",
    ]


def test_a_method_is_what_its_file_defines(own_method: Callable[[str], Any]) -> None:
    own_method(DISTILLER)
    students = run(STUDENTS)
    names = ("undefended", "random", "mine", "again", "coreset")
    assert [students.kind(name) for name in names] == ["train", "synthesize", "distil", "reuse", "reuse"]
    assert [students.teacher_of(name) for name in names] == [None, None, "undefended", "undefended", None]
    assert [students.set_of(name) for name in names] == [None, "random", "mine", "mine", "random"]


def test_a_field_called_teacher_of_a_method_that_is_not_data_free_names_no_method() -> None:
    assert run("methods: {rded: {module: rded, teacher: {epochs: 3, schedule: cosine}}}").teacher_of("rded") is None


def test_twins_learn_from_the_twins_of_teachers_and_of_sets(own_method: Callable[[str], Any]) -> None:
    own_method(DISTILLER)
    separate = run(STUDENTS, SEPARATE)
    names = ("undefended", "random", "mine", "again", "coreset")
    twins = [f"{name}-average" for name in names]
    teachers = [None, None, "undefended-average", "undefended-average", None]
    assert [separate.teacher_of(name) for name in twins] == teachers
    sets = [None, "random-average", "mine-average", "mine-average", "random-average"]
    assert [separate.set_of(name) for name in twins] == sets
    mine, twin = (json.loads(separate.spec("distil", method=name)) for name in ("mine", "mine-average"))
    assert {key for key in mine if mine[key] != twin[key]} == {"method", "teacher"}
    assert twin["teacher"] == {**mine["teacher"], "method": "undefended-average"}


def test_each_stage_is_told_of_teachers_and_sets_what_it_needs(own_method: Callable[[str], Any]) -> None:
    own_method(DISTILLER)
    students = run(STUDENTS, "controls: {broken: {of: mine}}")
    distil = json.loads(students.spec("distil", method="mine"))
    assert distil == {
        "seed": 0,
        "method": "mine",
        "model": {"name": "mlp", "hidden": [128]} | distil["model"],
        "training": {"epochs": 9, "precision": "float32"},
        "normalisation": {"mean": [0.3], "std": [0.35]},
        "module": "own",
        "settings": {"teacher": "undefended", "steps": 3},
        "teacher": {
            "method": "undefended",
            "model": students.method("undefended").model.model_dump(mode="json"),
        },
    }
    for stage in ("train", "logits"):
        told = {
            name: json.loads(students.spec(stage, method=name)).get("set") for name in ("random", "again", "coreset")
        }
        assert told == {"random": None, "again": "mine", "coreset": "random"}
    assert "module" not in json.loads(students.spec("train", method="again"))
    names = ("undefended", "coreset", "mine", "again", "broken", "shuffled")
    teachers = {name: json.loads(students.spec("score", method=name))["teacher"] for name in names}
    assert teachers == dict.fromkeys(names) | {"mine": "undefended", "again": "undefended"}


def test_a_student_depends_on_its_own_settings_and_on_its_teachers_architecture(
    own_method: Callable[[str], Any],
) -> None:
    own_method(DISTILLER)

    def changed(overlay: str) -> bool:
        before, after = run(STUDENTS), run(STUDENTS, overlay)
        return before.spec("distil", method="mine") != after.spec("distil", method="mine")

    assert changed("methods: {mine: {steps: 4}}")
    assert changed("methods: {mine: {training: {epochs: 8}}}")
    assert changed("methods: {undefended: {model: {name: convnet}}}")
    # Its teacher is trained again, and the student because of that.
    assert not changed("methods: {undefended: {training: {epochs: 70}}}")
    assert not changed("methods: {random: {fraction: 0.3}}")
    assert not changed("training: {momentum: 0.5}")


def test_what_a_reused_set_starts_from_is_told_to_the_scores_of_whoever_reuses_it(
    own_method: Callable[[str], Any],
) -> None:
    own_method(STARTER.replace("def objection", "def no_objection"))
    started = run("methods: {mine: {module: own}, again: {module: reuse, set: mine}}")
    assert json.loads(started.spec("score", method="again"))["source"] == "initialised"


def test_the_code_of_the_method_counts_where_it_runs(own_method: Callable[[str], Any]) -> None:
    students = run("methods: {again: {module: reuse, set: random}}")
    own = {name: students.method_code("train", name) for name in ("undefended", "random", "again")}
    assert own["random"] == own["again"] == students.code("train") != own["undefended"]


def test_tables_and_figures_are_told_whose_sets_and_teachers_their_methods_have(
    own_method: Callable[[str], Any],
) -> None:
    own_method(DISTILLER.replace("steps: int = 3", "initialisation: str = 'noise'"))
    table = "tables: {table1: {methods: [undefended, again, coreset]}}"
    told = json.loads(run(STUDENTS, table).spec("table", name="table1"))["settings"]
    assert told["sets"] == {"again": "mine", "coreset": "random", "mine": "mine", "random": "random"}
    assert told["teachers"] == {"again": "undefended", "mine": "undefended"}
    assert told["initialisation"] == {"again": "noise", "mine": "noise"}
    shown = "figures: {figure6: {methods: [mine, again, coreset]}}"
    assert run(STUDENTS, "visual: {}", shown), "they have synthetic images"
    separate = run(STUDENTS, SEPARATE, "tables: {table5: {methods: [mine]}}")
    assert separate.report("tables", "table5").teachers == {"mine": "undefended", "mine-average": "undefended-average"}


# --- visual leakage ----------------------------------------------------------------------------------------------

VISUAL = "visual: {images: 50, features: {model: {name: mlp, hidden: [8]}, training: {epochs: 20}}}"


def test_images_are_compared_as_the_configuration_says() -> None:
    assert (run().compares_images, run().compares_features) == (False, False)
    assert (run("visual: {}").compares_images, run("visual: {}").compares_features) == (True, False)
    compared = run(VISUAL)
    assert (compared.compares_images, compared.compares_features) == (True, True)
    assert (run(VISUAL, "visual: null").compares_images, run(VISUAL, "visual: {features: null}").compares_features) == (
        False,
        False,
    )
    recipe = json.loads(compared.spec("pretrain"))["training"]
    assert (recipe["epochs"], recipe["batch_size"]) == (20, 128), "the run's recipe, but for what replaces it"
    assert json.loads(compared.spec("resemble", method="random"))["images"] == 50
    changed = run(VISUAL, "visual: {features: {model: {name: convnet, width: 8, hidden: null}}}")
    assert json.loads(changed.spec("pretrain"))["model"]["name"] == "convnet"


@pytest.mark.parametrize(
    ("overlay", "told"),
    [
        ("visual: {imges: 3}", "visual.imges: is not a known key; did you mean images?"),
        ("visual: {level: 1}", "visual.level: should be less than 1 (found 1)."),
        ("visual: {features: {training: {epochs: 5}}}", "visual.features.model: is required."),
        ("visual: {features: {model: {name: mpl}}}", 'visual.features.model.name: is unknown (found "mpl"); did you '),
        (
            "visual: {features: {model: {name: mlp}, training: {epohcs: 5}}}",
            "visual.features.training.epohcs: is not a known key; did you mean epochs?",
        ),
        (
            "{visual: {features: {model: {name: mlp}}}, data: {public: null}}",
            "visual.features: is trained on public data, but data.public is null; set it, or visual.features to null.",
        ),
        (
            "{visual: {}, data: {public: {image_size: 9}}}",
            "visual: compares images with public ones, too, but these (9x9 pixels, 1 channel) do not fit ",
        ),
        (
            "{visual: {}, audit: {canaries: 17, average: {samples: 20}}}",
            "visual.level: is 0.05; with 18 held-out images a p-value is 1/19 at least, ",
        ),
    ],
)
def test_what_is_wrong_with_the_comparison_of_images_is_told_before_any_job(overlay: str, told: str) -> None:
    assert only_problem(overlay).startswith(told)


@pytest.mark.parametrize(
    ("overlay", "told"),
    [
        (
            "{visual: null, figures: {figure6: {methods: [random]}}}",
            "figures.figure6: shows what images resemble, but visual is null; set it, or figures.figure6 to null.",
        ),
        (
            "figures: {figure6: {methods: [random, undefended]}}",
            "figures.figure6.methods: lists undefended, which makes no synthetic images; leave it out.",
        ),
        (
            "figures: {figure6: {methods: [shuffled]}}",
            "figures.figure6.methods: lists shuffled, which makes no synthetic images; leave it out.",
        ),
        (
            "figures: {figure6: {methods: [random], shadow: 32}}",
            "figures.figure6.shadow: is 32, but the shadow models are 0 to 31.",
        ),
        (
            "figures: {figure6: {methods: [random], metric: features}}",
            "figures.figure6.metric: is features, but visual.features is null; set it, or choose pixel or ssim.",
        ),
        (
            "figures: {figure7: {methods: [undefended, shuffled]}}",
            "figures.figure7.methods: lists the control shuffled, which reuses another method's models; leave it out.",
        ),
        ("figures: {figure7: {methods: [random], shadow: 40}}", "figures.figure7.shadow: is not a known key"),
        (
            "figures: {figure9: {methods: [random]}}",
            "figures.figure9.methods: lists random, whose models no teacher has taught; leave it out.",
        ),
        (
            "{methods: {again: {module: reuse, set: random}}, figures: {figure9: {methods: [again]}}}",
            "figures.figure9.methods: lists again, whose models no teacher has taught; leave it out.",
        ),
    ],
)
def test_figures_of_images_that_could_not_be_drawn_are_told_before_any_job(overlay: str, told: str) -> None:
    assert only_problem("visual: {}", overlay).startswith(told)


def test_figure9_shows_students_and_those_that_learned_from_the_images_of_one() -> None:
    taught = "dream: {module: dfkd, algorithm: zskt, images: 10}, again: {module: reuse, set: dream}"
    found = run(f"{{methods: {{{taught}}}, figures: {{figure9: {{methods: [dream, again]}}}}}}")
    assert found.report_needs("figures", "figure9")[1] == ("dream", "again")


def test_tables_and_figures_are_told_what_their_methods_do(own_method: Callable[[str], Any]) -> None:
    own_method(MATCHER.replace("experts: str", "experts: str\n    initialisation: str = 'noise'"))
    shown = "[undefended, mine, random, shuffled]"
    matched = run(VISUAL, MATCHED, f"tables: {{table1: {{methods: {shown}}}, table7: {{methods: [undefended]}}}}")
    told = json.loads(matched.spec("table", name="table1"))["settings"]
    assert told["sets"] == {"mine": "mine", "random": "random"}
    assert told["teachers"] == {}
    assert told["experts"] == {"mine": "quick"}
    assert told["initialisation"] == {"mine": "noise"}
    assert told["visual"] is True
    assert json.loads(run(MATCHED).spec("table", name="table1"))["settings"]["visual"] is False
    told = json.loads(matched.spec("table", name="table7"))["settings"]
    assert (told["experts"], told["initialisation"]) == ({}, {})
    assert run().spec("table", name="table7") == run("visual: {}").spec("table", name="table7"), "it shows no images"
    separate = run(MATCHED, SEPARATE, "tables: {table5: {methods: [mine]}}")
    assert separate.report("tables", "table5").experts == {"mine": "quick", "mine-average": "quick-average"}


# --- methods with generative models ------------------------------------------------------------------------------

DRAWN = """
pretrained:
  fonts: {network: &unet {width: 8, multipliers: [1, 2], blocks: 1}, objective: {name: edm}, steps: 9}
methods:
  scratch: {module: diffusion, fit: {network: *unet, objective: {name: ddpm}, steps: 9}, images: 60}
  tuned: {module: diffusion, fit: {pretrained: fonts, steps: 9}, strength: 0.2, shadows: 16}
  others: {module: diffusion, generator: tuned, images: 60, shadows: 16}
  private: {module: dpdiffusion, fit: {pretrained: fonts, epsilon: 8, steps: 9, batch_size: 64}, images: 9, shadows: 12}
  second: {module: reuse, set: others, shadows: 14}
visual: {features: {model: {name: small-cnn}}}
"""
"""A configuration with every kind of diffusion method."""


def test_generative_models_belong_to_the_method_that_fits_them() -> None:
    drawn = run(DRAWN)
    names = ("scratch", "tuned", "others", "private", "random")
    assert [drawn.generator_of(name) for name in names] == ["scratch", "tuned", "tuned", "private", None]
    assert [drawn.fits(name) for name in names] == [True, True, False, True, False]
    assert [drawn.pretrained_of(name) for name in names] == [None, "fonts", None, "fonts", None]
    assert drawn.pretrained == ["fonts"]
    assert run().pretrained == []
    twins = run(DRAWN, SEPARATE)
    assert twins.generator_of("others-average") == "tuned-average"
    assert twins.pretrained_of("private-average") == "fonts"


def test_what_is_drawn_and_how_classifiers_learn_is_no_concern_of_fitting() -> None:
    stages = ("fit", "account", "synthesize", "train")

    def told(*overlays: str) -> dict[str, str]:
        drawn = run(DRAWN, *overlays)
        return {stage: drawn.spec(stage, method="private") for stage in stages}

    def changed(overlay: str) -> list[str]:
        before, after = told(), told(overlay)
        return [stage for stage in stages if before[stage] != after[stage]]

    assert changed("methods: {private: {guidance: 1.0}}") == ["synthesize"]
    assert changed("methods: {private: {images: 90}}") == ["synthesize"]
    assert changed("methods: {private: {shadows: 14}}") == []
    assert changed("methods: {private: {fit: {clip: 2.0}}}") == ["fit", "account", "synthesize"]
    assert changed("pretrained: {fonts: {steps: 10}}") == ["fit"]
    assert changed("training: {epochs: 3}") == ["train"]
    assert changed("model: {width: 8}") == ["train"]
    assert changed("data: {normalisation: {mean: [0.4]}}") == ["train"]
    before, after = run(DRAWN), run(DRAWN, "pretrained: {fonts: {steps: 10}}")
    assert before.spec("pretrain_denoiser", name="fonts") != after.spec("pretrain_denoiser", name="fonts")


def test_methods_may_have_fewer_shadow_models_than_the_run() -> None:
    drawn = run(DRAWN, "controls: {chance: {of: private}}")
    counts = {
        name: drawn.shadows_of(name) for name in ("undefended", "tuned", "private", "chance", "second", "shuffled")
    }
    assert counts == {"undefended": 32, "tuned": 16, "private": 12, "chance": 12, "second": 14, "shuffled": 32}
    assert json.loads(drawn.spec("score", method="chance"))["shadows"] == 12
    assert check(json.loads(drawn.spec("configuration"))).shadows_of("tuned") == 16


def test_experts_of_the_same_name_do_not_change_the_number_of_a_methods_shadow_models(
    own_method: Callable[[str], Any],
) -> None:
    own_method(MATCHER)
    both = run(MATCHED, "methods: {mine: null, quick: {module: own, experts: quick, shadows: 16}}")
    assert both.experts == ["quick"]
    assert both.shadows_of("quick") == 16


@pytest.mark.parametrize(
    ("overlay", "told"),
    [
        (
            "{methods: {tuned: {fit: {pretrained: fonds}}}}",
            "methods.tuned.fit.pretrained: names no pretrained fonds; did you mean fonts?",
        ),
        (
            "{methods: {others: {generator: tunde}}}",
            "methods.others.generator: names no method tunde; did you mean tuned?",
        ),
        (
            "{methods: {others: {generator: random}}}",
            "methods.others.generator: names random, which is no diffusion with a block `fit`; name an entry that "
            "does: scratch, tuned.",
        ),
        (
            "{methods: {others: {shadows: 18}, second: null}}",
            "methods.others.shadows: is 18, but tuned, on which it builds, has only 16; lower it to that.",
        ),
        (
            "{methods: {second: {shadows: 18}}}",
            "methods.second.shadows: is 18, but others, on which it builds, has only 16; lower it to that.",
        ),
        (
            "{methods: {scratch: {shadows: 34}}}",
            "methods.scratch.shadows: is 34, but the run has only 32 shadow models",
        ),
        (
            "{methods: {scratch: {shadows: 8}}}",
            "methods.scratch.shadows: is 8: some audited sample is in, or out of, only 0 of these models, but an "
            "attack needs 3 on each side; set 12 or more.",
        ),
        (
            "{methods: {scratch: {solver: heun}}}",
            "methods.scratch.solver: is heun, whose steps are unstable along DDPM's noise levels; take euler",
        ),
        (
            "{methods: {scratch: {fit: {network: {multipliers: [1, 1, 1, 1, 1]}}}}}",
            "methods.scratch.fit.network.multipliers: halves images 4 times, which 8x8 do not allow.",
        ),
        (
            "{methods: {private: {fit: {batch_size: 5000}}}}",
            "methods.private.fit.batch_size: is 5000, but a shadow model has only 1200 samples on average.",
        ),
        ("{methods: {private: {fit: {delta: 0.1}}}}", "methods.private.fit.delta: is 0.1; a guarantee that means"),
        ("{methods: {scratch: {generator: tuned}}}", "methods.scratch: set either fit, or generator"),
        ("{methods: {scratch: {images: null}}}", "methods.scratch: images is required where they are drawn from noise"),
        (
            "{methods: {tuned: {fit: {network: {width: 8}}}}}",
            "methods.tuned.fit: the pre-trained network brings its own",
        ),
        (
            "{pretrained: {features: {network: {}, objective: {name: edm}, steps: 1}}}",
            "pretrained: has an entry features, the name of the network of visual.features; name it otherwise.",
        ),
        (
            "{quality: {}, visual: null, figures: {dpdiff_figure2: {methods: [private]}}}",
            "quality.inception: needs a network: set visual.features, or inception: {} for Inception-v3 (FID).",
        ),
        (
            "{quality: {inception: {path: nowhere.pth}}}",
            "quality.inception.path: is 'nowhere.pth', which is no file",
        ),
        (
            "{utility: {sizes: [10], recipes: [{epochz: 3}]}}",
            "utility.recipes.0.epochz: is not a known key; did you mean epochs?",
        ),
        ("{utility: {sizes: []}}", "utility.sizes: "),
    ],
)
def test_what_diffusion_cannot_do_is_told_before_any_job(overlay: str, told: str) -> None:
    assert only_problem(DRAWN, overlay).startswith(told)


def test_generators_of_another_kind_are_no_ones_to_draw_from() -> None:
    told = [": ".join(problem) for problem in problems(DRAWN, "{methods: {others: {generator: private}}}")]
    assert any("names private, which is no diffusion with a block `fit`" in one for one in told)


def test_public_data_are_needed_for_what_they_train() -> None:
    told = [path for path, _ in problems(DRAWN, "{data: {public: null}, visual: null}")]
    assert told == ["methods.tuned", "methods.private"]


# --- specs -------------------------------------------------------------------------------------------------------


def specs(checked: Run) -> dict[str, str]:
    """Every spec of a run, by stage and what it is of."""
    found = {f"prepare {role}": checked.spec("prepare", role=role) for role in checked.sources}
    found |= {f"design {case}": checked.spec("design", case=case) for case in ("worst", "average")}
    for method in checked.audited:
        for stage in ("synthesize", "train", "logits"):
            found[f"{stage} {method}"] = checked.spec(stage, method=method)
    for method in [*checked.audited, *checked.config.controls]:
        found[f"score {method}"] = checked.spec("score", method=method)
    found |= {f"experts {name}": checked.spec("experts", name=name) for name in checked.experts}
    if checked.compares_images:
        synthetic = [name for name in checked.audited if checked.kind(name) == "synthesize"]
        found |= {f"resemble {method}": checked.spec("resemble", method=method) for method in synthetic}
    if checked.compares_features:
        found |= {"pretrain": checked.spec("pretrain")}
    for stage in ("table", "figure"):
        found |= {f"{stage} {name}": shown(checked.spec(stage, name=name)) for name in checked.reports(f"{stage}s")}
    return found | {"configuration": checked.spec("configuration")}


def shown(spec: str) -> str:
    """The spec of a table without the costs that are predicted for its methods, which follow all of their settings."""
    report = json.loads(spec)
    report["settings"].pop("predicted", None)
    return json.dumps(report, sort_keys=True)


def of(*stages: str, method: str = "") -> Callable[[str], bool]:
    """Tell whether a spec is of one of the stages, and of ``method`` if given."""
    return lambda name: name.split()[0] in stages and (not method or name.split()[1] == method)


def one_of(*names: str) -> Callable[[str], bool]:
    return lambda name: name in names


@pytest.mark.parametrize(
    ("overlay", "changed"),
    [
        ("audit: {bootstrap: 17}", of("score")),
        ("audit: {confidence: 0.9}", of("score")),
        ("audit: {delta: 1.0e-6}", of("score")),
        ("audit: {views: {shift: 1}}", of("logits")),
        ("audit: {canaries: 100}", of("design")),
        ("audit: {average: {samples: 100}}", of("design")),
        ("shadows: 16", of("design", "score")),
        ("seed: 1", of("prepare", "design", "synthesize", "train", "score")),
        ("data: {private: {test_size: 100}}", one_of("prepare private")),
        ("data: {private_size: 1000}", one_of("prepare private")),
        ("data: {test_size: 100}", one_of("prepare private")),
        ("data: {public: {size: 100}}", one_of("prepare public")),
        ("data: {public_size: 100}", one_of("prepare public")),
        ("data: {normalisation: {mean: [0.4]}}", of("synthesize", "train", "logits")),
        ("model: {width: 8}", of("synthesize", "train", "logits")),
        ("training: {learning_rate: 0.2}", of("synthesize", "train")),
        ("training: {precision: bfloat16}", of("synthesize", "train", "logits")),
        ("methods: {random: {fraction: 0.3}}", of("synthesize", method="random")),
        ("methods: {random: {training: {epochs: 9}}}", of("synthesize", "train", method="random")),
        (
            "methods: {random: {model: {name: mlp}}}",
            of("synthesize", "train", "logits", method="random"),
        ),
        (
            "methods: {herding: {label: H}}",
            one_of("table table1", "table table6", "table table7", "figure figure1"),
        ),
        ("controls: {shuffled: {label: S}}", one_of("table table1", "table table6", "figure figure1")),
        ("controls: {shuffled: {of: random}}", one_of("score shuffled")),
        ("tables: {table1: {title: T}}", one_of("table table1")),
        ("figures: {figure5: {title: T}}", one_of("figure figure5")),
        ("tables: {table1: {methods: [undefended]}}", one_of("table table1")),
        ("run: other", one_of()),
    ],
)
def test_a_change_changes_the_specs_of_what_uses_it_and_the_written_configuration_only(
    overlay: str, changed: Callable[[str], bool]
) -> None:
    before, after = specs(run()), specs(run(overlay))
    differing = {name for name in before if before[name] != after[name]}
    assert differing == {name for name in before if changed(name)} | {"configuration"}


@pytest.mark.parametrize(
    ("overlay", "changes"),
    [
        ("methods: {random: {training: {epochs: 9}}}", {"random"}),
        ("audit: {views: {shift: 1}}", {"undefended", "random", "forgetting", "herding"}),
        ("methods: {el2n: {training: {epochs: 9}}}", set()),
        ("audit: {bootstrap: 17}", set()),
        ("{execution: {batch: 3, device: cuda}, seed: 1}", set()),
    ],
)
def test_table7_is_told_anew_what_its_methods_are_predicted_to_cost(overlay: str, changes: set[str]) -> None:
    def predicted(checked: Run) -> list[dict[str, Any]]:
        rows = json.loads(checked.spec("table", name="table7"))["settings"]["predicted"]
        return [row for row in rows if row["preset"] is None]

    before, after = predicted(run()), predicted(run(overlay))
    assert {row["method"] for row in before} == {"undefended", "random", "forgetting", "herding"}
    assert {one["method"] for one, other in zip(before, after, strict=True) if one != other} == changes


@pytest.mark.parametrize("overlay", ["{device: cuda}", "{batch: 3}", "{mode: stacked}", "{device: cpu, batch: 1}"])
def test_how_jobs_run_changes_no_spec_at_all(overlay: str) -> None:
    assert specs(run(f"execution: {overlay}")) == specs(run())


def test_a_value_written_as_its_default_or_in_another_order_changes_no_spec() -> None:
    shuffled = dict(reversed(merged("training: {gamma: 0.2, nesterov: false}").items()))
    assert specs(check(shuffled)) == specs(run())


def test_a_spec_is_sorted_compact_json() -> None:
    spec = run().spec("score", method="shuffled")
    assert spec == json.dumps(json.loads(spec), sort_keys=True, separators=(",", ":"))
    assert json.loads(spec) | {"of": "undefended", "membership": "shuffled"} == json.loads(spec)
    assert json.loads(run().spec("score", method="random")) | {"of": "random", "membership": "true"} == json.loads(
        run().spec("score", method="random")
    )


def test_a_file_to_download_is_specified_with_its_hash() -> None:
    cifar = run("data: {private: {module: cifar10}}")
    (remote,) = cifar.downloads("private")
    spec = json.loads(cifar.download_spec(remote))
    assert spec["name"] == "cifar-10-binary.tar.gz"
    assert len(spec["sha256"]) == 64
    assert run().downloads("private") == []


def test_the_written_configuration_is_complete_and_gives_the_same_run_again() -> None:
    written = json.loads(run().spec("configuration"))
    assert "execution" not in written
    assert written["audit"]["delta"] == 1e-5
    assert written["methods"]["random"]["balanced"] is True
    assert specs(check(written)) == specs(run())


def test_the_rules_ask_a_run_for_what_it_offers() -> None:
    rules = "".join(path.read_text() for path in (REPOSITORY / "workflow/rules").glob("*.smk"))
    asked = set(re.findall(r"\bRUN\.(\w+)", rules))
    assert len(asked) > 10
    assert {name for name in asked if not hasattr(run(), name)} == set()


# --- the schema for editors --------------------------------------------------------------------------------------

SCHEMA_FILE = REPOSITORY / "workflow/schemas/config.schema.json"
VALIDATOR = jsonschema.Draft202012Validator(json.loads(SCHEMA_FILE.read_text()))


def test_the_schema_file_is_in_step_with_the_code() -> None:
    remedy = "run: python -m coalmine.config > workflow/schemas/config.schema.json"
    assert json.loads(SCHEMA_FILE.read_text()) == json.loads(json.dumps(schema())), remedy


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())


@pytest.mark.parametrize("path", [REPOSITORY / "config.yaml", *PRESETS], ids=lambda path: path.stem)
def test_the_schema_accepts_the_default_configuration_and_every_preset(path: Path) -> None:
    assert [error.message for error in VALIDATOR.iter_errors(yaml.safe_load(path.read_text()))] == []


@pytest.mark.parametrize(
    "overlay",
    [
        "sedd: 1",
        "shadows: 7",
        "data: {privat_size: 3}",
        "data: {private: {module: digits, tset_size: 30}}",
        "data: {public: {module: cinic10, prt: all}}",
        "audit: {views: {flp: true}}",
        "training: {epoch: 3}",
        "training: {augmentation: {flop: true}}",
        "training: {learning_rate: 1e-3}",
        "model: {widht: 3}",
        "model: {name: small-cn}",
        "methods: {random: {module: coreset, fractoin: 0.3}}",
        "methods: {random: {module: corset}}",
        "methods: {random: {fractoin: 0.3}}",
        "methods: {random: {module: coreset, training: {epohcs: 3}}}",
        "methods: {My_Own: {module: undefended}}",
        "controls: {shuffled: {fo: undefended}}",
        "experts: {slow: {epohcs: 3}}",
        "experts: {slow: {model: {name: mpl}}}",
        "visual: {imges: 3}",
        "visual: {features: {training: {epohcs: 3}}}",
        "tables: {tabel1: {methods: [random]}}",
        "tables: {figure1: {methods: [random]}}",
        "tables: {table1: {tilte: x}}",
        "execution: {device: gpu}",
    ],
)
def test_the_schema_rejects_a_mistake(overlay: str) -> None:
    assert not VALIDATOR.is_valid(yaml.safe_load(overlay))


@pytest.mark.parametrize(
    "overlay",
    [
        "{methods: {random: null}, tables: {table1: null}, controls: {shuffled: null}, data: {public: null}}",
        "{experts: {slow: null}, visual: null}",
        "{experts: {slow: {epochs: 3, model: {width: 8}}}, visual: {features: {training: {epochs: 3}}}}",
        "{visual: {features: null}}",
        "{methods: {random: {fraction: 0.2, training: {epochs: 3}}}, model: {width: 3}, training: {epochs: 3}}",
    ],
)
def test_the_schema_accepts_parts_as_overlays_hold_them(overlay: str) -> None:
    assert VALIDATOR.is_valid(yaml.safe_load(overlay))


# --- before any job ----------------------------------------------------------------------------------------------


def test_checking_a_configuration_imports_nothing_heavy() -> None:
    program = (
        "import sys, yaml, coalmine.config as config\n"
        f"run = config.check(yaml.safe_load(open({str(REPOSITORY / 'config.yaml')!r})))\n"
        "[run.spec('train', method=name) + run.method_code('train', name) for name in run.methods]\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"torch", "sklearn", "matplotlib", "pandas", "seaborn", "PIL"} & set(done.stdout.split())


def test_a_problem_is_a_path_and_a_sentence() -> None:
    assert problems("seed: -1") == [Problem("seed", "should be greater than or equal to 0 (found -1).")]


# --- differential privacy ---------------------------------------------------------------------------------------

DPSGD = """
methods:
  private: {module: dpsgd, label: Private, epsilon: 8, steps: 10, batch_size: 100, model: {name: mlp}}
"""


def with_dpsgd(settings: str) -> list[str]:
    return [DPSGD, f"methods: {{private: {settings}}}"]


def test_a_private_method_is_in_order() -> None:
    private = run(DPSGD)
    assert private.claims_privacy("private")
    assert not private.claims_privacy("undefended")
    assert private.kind("private") == "train"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ("{model: {name: small-cnn}}", "methods.private.model: has batch norm.*model: {name: small-cnn, norm: group}"),
        ("{training: {precision: bfloat16}}", "methods.private.training.precision: is bfloat16.*set float32 or tf32"),
        ("{views: 4}", "methods.private.views: is 4, but without augmentation .*shift: 1"),
        ("{batch_size: 1201}", "methods.private.batch_size: is 1201, but a shadow model has only 1200 samples"),
        ("{delta: 1.0e-3}", "methods.private.delta: is 0.001; .* needs less than 1 / 1200"),
        ("{noise_multiplier: 1.0}", "methods.private: .*either epsilon .* or noise_multiplier, not both"),
        ("{epsilon: null}", "methods.private: .*either epsilon .* or noise_multiplier, not both"),
        ("{training: {epochs: 3}}", "training.epochs: is not used by dpsgd, .* only augmentation and precision"),
    ],
)
def test_settings_that_cannot_give_a_guarantee_are_refused_before_any_job(settings: str, told: str) -> None:
    assert re.search(told, only_problem(*with_dpsgd(settings)))


def test_views_need_an_augmentation_of_the_entrys_own_or_of_the_run() -> None:
    run(*with_dpsgd("{views: 4, training: {augmentation: {shift: 1}}}"))
    run("training: {augmentation: {flip: true}}", *with_dpsgd("{views: 4}"))


def test_a_run_with_batch_norm_needs_no_other_model_for_its_other_methods() -> None:
    assert run(DPSGD).method("undefended").model.name == "small-cnn"


def test_private_training_depends_on_two_fields_of_the_recipe_only() -> None:
    before, after = run(DPSGD), run(DPSGD, "training: {epochs: 61, learning_rate: 0.2}")
    assert before.spec("train", method="private") == after.spec("train", method="private")
    assert before.spec("train", method="undefended") != after.spec("train", method="undefended")
    changed = run(DPSGD, "training: {augmentation: {shift: 1}}")
    assert before.spec("train", method="private") != changed.spec("train", method="private")


def test_the_account_of_a_method_depends_on_its_settings_and_not_on_its_recipe_or_model() -> None:
    before = run(DPSGD).spec("account", method="private")
    assert run(DPSGD, "training: {augmentation: {shift: 1}}").spec("account", method="private") == before
    assert run(*with_dpsgd("{model: {name: mlp, hidden: [8]}}")).spec("account", method="private") == before
    assert run(*with_dpsgd("{epsilon: 1}")).spec("account", method="private") != before


def test_baselines_are_private_methods_and_are_compared_with_methods_only() -> None:
    found = problems(DPSGD, "tables: {table4: {methods: [undefended, shuffled], baselines: [random, private, gone]}}")
    assert {path for path, _ in found} == {"tables.table4.baselines", "tables.table4.methods"}
    told = "\n".join(message for _, message in found)
    assert "lists random, which claims no differential privacy" in told
    assert "lists the control shuffled, which no baseline can be compared with" in told
    assert "names no method gone" in told


def test_baselines_get_their_labels() -> None:
    compared = run(DPSGD, "tables: {table4: {methods: [undefended], baselines: [private]}}")
    assert compared.report("tables", "table4").labels == {"undefended": "Undefended", "private": "Private"}
    needs, methods = compared.report_needs("tables", "table4")
    assert methods == ("undefended", "private")
    assert "scores" in needs


def test_an_overlay_may_take_another_architecture_and_remove_settings_that_it_lacks() -> None:
    changed = run(
        *with_dpsgd("{model: {hidden: [8]}}"), "methods: {private: {model: {name: convnet, norm: group, hidden: null}}}"
    )
    assert changed.method("private").model.name == "convnet"
    assert run("model: {name: resnet, width: 8}", "model: {name: mlp, width: null}").config.model.name == "mlp"


def test_resources_can_be_set_for_every_stage_and_every_rule_asks_for_them() -> None:
    repository = Path(__file__).parents[1]
    stages = {path.stem for path in (repository / "src/coalmine/stages").glob("[a-z]*.py")}
    rules = "".join(path.read_text() for path in (repository / "workflow/rules").glob("*.smk"))
    assert {*get_args(Stage)} == stages == {*re.findall(r"asked\(\"(\w+)\"", rules)}
