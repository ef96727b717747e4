import subprocess
import sys
from pathlib import Path

import pytest

import coalmine.reporting

FOLDER = Path(coalmine.reporting.__file__).parent
MODULES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")
PLANNED = [name for name in MODULES if name.startswith(("table", "figure", "dpdiff_"))]


def imported_by(*modules: str) -> set[str]:
    program = f"import sys\nimport {', '.join(f'coalmine.reporting.{name}' for name in modules)}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_no_reporting_module_imports_torch_or_snakemake() -> None:
    assert not {"torch", "snakemake"} & imported_by(*MODULES)


def test_planning_a_table_or_figure_imports_nothing_heavy() -> None:
    assert not {"matplotlib", "seaborn", "pandas", "numpy", "scipy", "torch"} & imported_by(*PLANNED)


@pytest.mark.parametrize("name", PLANNED)
def test_every_table_and_figure_says_what_it_needs(name: str) -> None:
    module = __import__(f"coalmine.reporting.{name}", fromlist=["NEEDS"])
    known = {"metrics", "scores", "costs", "visual", "synthetic", "logits", "data", "teachers"}
    assert known | {"quality", "sizes", "recipes"} >= module.NEEDS
    values = {"baselines": ("b",), "real": "r", "data": "Digits"}
    required = {field: value for field, value in values.items() if field in module.Settings.model_fields}
    assert module.Settings(methods=("a",), **required).title
    assert all(field.description for field in module.Settings.model_fields.values())
    assert "table" not in name or callable(module.layout)
