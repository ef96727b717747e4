from pathlib import Path
from types import SimpleNamespace

import pytest

jinja2 = pytest.importorskip("jinja2")
docutils_core = pytest.importorskip("docutils.core")

CAPTIONS = Path(__file__).parents[2] / "workflow" / "report"
CONFIG = {"run": "demo", "seed": 0, "shadows": 32}
NAMES = (
    "table1",
    "table2",
    "table3",
    "table4",
    "table5",
    "table6",
    "table7",
    "table99",
    "dpdiff_table1",
    "figure1",
    "figure3",
    "figure4",
    "figure5",
    "figure6",
    "figure7",
    "figure8",
    "figure9",
    "figure99",
    "dpdiff_figure2",
    "dpdiff_figure3",
    "dpdiff_figure4",
    "dpdiff_samples",
)


def rendered(name: str, **wildcards: str) -> str:
    template = jinja2.Environment(undefined=jinja2.StrictUndefined).from_string((CAPTIONS / name).read_text())
    text = template.render(snakemake=SimpleNamespace(config=CONFIG, wildcards=SimpleNamespace(**wildcards)))
    strict = {"halt_level": 2, "report_level": 2}
    return docutils_core.publish_parts(text, writer="html", settings_overrides=strict)["body"]


@pytest.mark.parametrize("name", NAMES)
def test_every_table_and_figure_has_a_caption_that_renders(name: str) -> None:
    kind = "table" if "table" in name else "figure"
    html = rendered(f"{kind}.rst", **{kind: name})
    assert f"{name}.csv" in html
    assert ">demo<" in html
    assert ("of the audit." in html) == name.endswith("99")


def test_the_front_page_names_the_run() -> None:
    assert "32 shadow models" in " ".join(rendered("workflow.rst").split())
