"""Faults injected into a run: bench/faults.py in small. Nothing is lost, nothing partial, nothing wrong."""

from __future__ import annotations

import random

import pytest
from fault_injection import DAMAGES, FAULTS, KILLS, RUN, Campaign, Workshop, without_seconds

pytestmark = pytest.mark.xdist_group("faults")  # what they share takes long to make

METHODS = ("undefended", "dm")
BRIEF = {
    **RUN,
    "methods": {name: RUN["methods"][name] for name in METHODS},
    "experts": {},
    "pretrained": {},
    "tables": {"table1": {"methods": [*METHODS]}},
    "figures": {},
}


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """A reference run of two methods, and copies of it."""
    return Workshop(tmp_path_factory.mktemp("faults"), random.Random(1), run=BRIEF, most=1)


def test_a_run_that_is_killed_a_dozen_times_loses_nothing_and_ends_with_the_same_bytes(workshop: Workshop) -> None:
    outcomes = Campaign(workshop).kill(12)
    assert {outcome.fault for outcome in outcomes} == KILLS.keys()
    assert [outcome for outcome in outcomes if not outcome.harmless] == []


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_every_other_fault_is_harmless_after_recovery(workshop: Workshop, fault: str) -> None:
    outcomes = FAULTS[fault](workshop)
    if not outcomes and fault in ("full_disk", "read_only"):
        pytest.skip("mounting a file system is not allowed here")
    assert outcomes
    assert [outcome for outcome in outcomes if not outcome.harmless] == []


def test_every_damage_changes_a_file(workshop: Workshop) -> None:
    for damage in DAMAGES.values():
        trial = workshop.copy()
        table = trial.results / "table1.csv"
        before = table.read_bytes()
        damage(table, random.Random(0))
        assert not table.is_file() or table.read_bytes() != before
        assert workshop.wrong(trial) == ["table1.csv"]
        workshop.close(trial)


def test_only_measured_seconds_are_left_out_of_the_comparison() -> None:
    table = "method,seconds_per_model,auc\ndm,{seconds},{auc}\n"
    kept = without_seconds(table.format(seconds=1.5, auc=0.7), ".csv")
    assert kept == without_seconds(table.format(seconds=2.5, auc=0.7), ".csv")
    assert kept != without_seconds(table.format(seconds=1.5, auc=0.8), ".csv")
    row = "method & AUC & s/model & paper \\\\\ndm & {auc} & {seconds} & -- \\\\"
    kept = without_seconds(row.format(auc=0.7, seconds=1.5), ".tex")
    assert kept == without_seconds(row.format(auc=0.7, seconds=2.5), ".tex")
    assert kept != without_seconds(row.format(auc=0.8, seconds=1.5), ".tex")
