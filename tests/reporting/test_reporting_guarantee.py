"""What a claim allows, whether it says anything, and whether the audit refutes it."""

import math
from dataclasses import replace
from io import StringIO
from typing import Any

import pandas as pd
import pytest
from results_folder import ResultsFolder

from coalmine.reporting import table1
from coalmine.reporting.guarantee import claim_columns, claimed_tpr_bound, epsilon_cell, is_meaningful, is_refuted
from coalmine.reporting.results import Claim, EmpiricalEpsilon, load_results
from coalmine.reporting.writers import csv_text, format_table, html_page, latex_text

FOUND = EmpiricalEpsilon(lower=2.5, confidence=0.95, delta=1e-5, ceiling=4.25, canaries=400)
MECHANISM = {"noise_multiplier": 3.125, "sampling_rate": 0.0512, "steps": 1_234_567, "clip": 1.5}
NOTE = "PLD did not finish, RDP instead"


def claim(epsilon: float, **further: Any) -> dict[str, Any]:
    return {"epsilon": epsilon, "delta": 1e-5, "accountant": "pld", **MECHANISM, "note": None, **further}


@pytest.fixture
def claiming(folder: ResultsFolder) -> ResultsFolder:
    """Four methods, of which the audit finds epsilon to be at least 2.5."""
    folder.metrics("random")
    folder.metrics("eight", claimed=claim(8.0, note=NOTE))
    folder.metrics("huge", claimed=claim(531_234.0))
    folder.metrics("broken", claimed=claim(1.0))
    for method in ("random", "eight", "huge", "broken"):
        folder.costs(method, models=[1.0] * 4)
    return folder


def table(folder: ResultsFolder, *methods: str) -> Any:
    return table1.build(load_results(folder.root, methods), table1.Settings(methods=methods))


def test_the_tpr_that_a_guarantee_allows_follows_from_both_inequalities() -> None:
    def bound(epsilon: float | None, delta: float | None = 0.0) -> float:
        return claimed_tpr_bound(Claim(epsilon, delta, None), 0.001)

    assert bound(None) == 1.0
    assert bound(0.0) == pytest.approx(0.001)
    assert bound(1.0, 1e-5) == pytest.approx(math.e * 0.001 + 1e-5)
    assert bound(8.0) == pytest.approx(1 - math.exp(-8.0) * 0.999)
    assert bound(1e9) == 1.0


def test_a_guarantee_is_meaningful_up_to_an_epsilon_of_about_nine() -> None:
    assert [is_meaningful(Claim(epsilon, 1e-5, "PLD")) for epsilon in (1.0, 8.0, 9.1, 9.3, 2444.0, None)] == [
        *[True] * 3,
        *[False] * 3,
    ]


@pytest.mark.parametrize(
    ("epsilon", "delta", "refuted"),
    [
        (2.4, 1e-5, True),
        (2.5, 1e-5, False),
        (2.6, 1e-5, False),
        (2.4, 1e-6, True),  # holds at 1e-5 too
        (2.4, 1e-4, False),  # says nothing at 1e-5
        (2.4, None, True),
        (0.0, 0.0, True),
        (None, None, False),
    ],
)
def test_an_audit_refutes_a_smaller_epsilon_at_a_delta_no_larger(
    epsilon: float | None, delta: float | None, refuted: bool
) -> None:
    assert is_refuted(Claim(epsilon, delta, "PLD"), FOUND) is refuted


def test_a_refutation_rests_on_the_primary_attack_on_mislabelled_canaries(claiming: ResultsFolder, metrics_of) -> None:
    metrics = load_results(claiming.root, ["broken"]).metrics["broken"]
    assert claim_columns(metrics)["claim_exceeded"]
    other_group = replace(metrics, groups={"mislabelled": metrics.groups["clean"], "clean": metrics.groups["clean"]})
    found = other_group.variant("mislabelled").epsilon.lower
    assert 1.0 < found < 2.5
    between = replace(other_group, claimed=replace(metrics.claimed, epsilon=(found + 2.5) / 2))
    assert not claim_columns(between)["claim_exceeded"]
    assert claim_columns(replace(metrics, claimed=between.claimed))["claim_exceeded"]


def test_table1_holds_the_whole_claim(claiming: ResultsFolder) -> None:
    frame = table(claiming, "eight", "random")
    row, none = frame.iloc[0], frame.iloc[1]
    assert (row["claimed_epsilon"], row["claimed_delta"], row["claimed_accountant"]) == (8.0, 1e-5, "pld")
    assert {name: row[f"claimed_{name}"] for name in MECHANISM} == MECHANISM
    assert row["claimed_note"] == NOTE
    assert none["claimed_epsilon"] == math.inf
    names = [f"claimed_{name}" for name in (*MECHANISM, "note", "delta", "accountant")]
    assert none[names].isna().all()
    header, first, second = csv_text(frame).splitlines()
    position = header.split(",").index("claimed_steps")
    assert (first.split(",")[position], second.split(",")[position]) == ("1234567", "")


def test_a_vacuous_epsilon_is_called_so_with_its_number(claiming: ResultsFolder) -> None:
    layout = table1.layout(table(claiming, "random", "eight", "huge"))
    page, latex = html_page(layout, "title", []), latex_text(layout, "title")
    assert "<td>∞</td>" in page
    assert "<td>5.3\N{NO-BREAK SPACE}×\N{NO-BREAK SPACE}10⁵ vacuous</td>" in page
    assert '<td>8 [b]<span class="aside">(TPR ≤ 99.97\N{NO-BREAK SPACE}%)</span></td>' in page
    assert r"5.3~$\times$~10$^5$ vacuous" in latex
    assert "vacuous" not in html_page(table1.layout(table(claiming, "eight")), "title", []).partition("<dl")[0]


def test_the_accounting_stands_beside_the_claim(claiming: ResultsFolder) -> None:
    (sheet,) = table1.layout(table(claiming, "random", "eight"))
    position = [column.heading for column in sheet.columns].index("accounting")
    said = "δ = 10⁻⁵, PLD, σ = 3.125, q = 0.0512, 1,234,567 steps, C = 1.5"
    assert [cells[position].text for cells in sheet.cells()] == ["–", said]
    (without,) = table1.layout(table(claiming, "random"))
    assert "accounting" not in [column.heading for column in without.columns]


def test_a_finished_table_reads_back_as_it_was_shown(claiming: ResultsFolder) -> None:
    frame = table(claiming, "random", "eight", "huge", "broken")
    read = pd.read_csv(StringIO(csv_text(frame)))
    assert html_page(table1.layout(read), "title", []) == html_page(table1.layout(frame), "title", [])


def test_what_a_claim_leaves_open_is_said(folder: ResultsFolder) -> None:
    folder.metrics("old", claimed={"epsilon": 2.0, "delta": None, "accountant": None})
    folder.costs("old", models=[1.0] * 4)
    page = html_page(table1.layout(table(folder, "old")), "title", [])
    assert "δ not stated, accountant not stated</td>" in page


def test_the_note_of_a_claim_is_a_footnote(claiming: ResultsFolder) -> None:
    printed = format_table(frame := table(claiming, "random", "eight"), table1.layout(frame))
    assert printed.splitlines()[-1] == f"[b] {NOTE}"
    assert "8 [b]" in printed


def test_a_claim_that_the_audit_refutes_is_marked_everywhere(claiming: ResultsFolder) -> None:
    frame = table(claiming, "eight", "broken")
    assert frame["claim_exceeded"].tolist() == [False, True]
    layout = table1.layout(frame)
    page = html_page(layout, "title", [])
    assert '<td class="n">2.50<span' in page
    assert '<td class="warning">1 exceeded by the audit' in page
    assert '<td class="n warning">2.50 exceeds the claim' in page
    assert page.count('warning">') == 2  # in the table; the style sheet names it otherwise
    assert "1 exceeded by the audit" in format_table(frame, layout)
    assert "1 exceeded by the audit" in latex_text(layout, "title")


def test_no_claim_is_infinite_whatever_the_audit_found() -> None:
    row = {"claimed_epsilon": math.inf, "claimed_tpr_bound": 1.0, "claim_exceeded": False}
    assert epsilon_cell(row).text == "∞"
