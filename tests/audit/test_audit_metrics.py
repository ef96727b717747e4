"""The reported dictionary holds what the parts compute."""

import json

import numpy as np
import pytest

from coalmine.audit.bootstrap import bootstrap, percentile_interval
from coalmine.audit.design import shuffled_membership
from coalmine.audit.epsilon import epsilon_lower_bound
from coalmine.audit.metrics import evaluate, max_over_variants, memorised
from coalmine.audit.roc import auc, tpr_at_fpr

RNG = np.random.default_rng(0)
MEMBER = shuffled_membership(np.tile([True, False, False], (40, 4)), RNG)
SCORES = RNG.normal(size=(40, 12)) + 2 * MEMBER


def test_values_are_those_of_the_parts():
    result = evaluate(SCORES, MEMBER, fprs=(0.01, 0.1), replicates=0, delta=1e-3, confidence=0.9, seed=1)
    assert result["auc"] == {"value": auc(SCORES, MEMBER), "low": None, "high": None}
    assert list(result["tpr"]) == ["0.01", "0.1"]
    for key, entry in result["tpr"].items():
        point = tpr_at_fpr(SCORES, MEMBER, float(key))
        assert entry == {
            "value": point.tpr,
            "low": None,
            "high": None,
            "false_positives": point.false_positives,
            "allowed": point.allowed,
        }
    seed = np.random.SeedSequence(1).spawn(2)[1]
    bound = epsilon_lower_bound(SCORES, MEMBER, confidence=0.9, delta=1e-3, seed=seed)
    assert bound.lower > 0
    assert result["epsilon"] == {
        "lower": bound.lower,
        "confidence": 0.9,
        "delta": 1e-3,
        "ceiling": bound.ceiling,
        "canaries": 32,
    }
    assert (result["pairs"], result["members"]) == (480, 160)


@pytest.mark.parametrize("two_way", [False, True])
def test_intervals_are_those_of_the_bootstrap(two_way):
    result = evaluate(SCORES, MEMBER, fprs=(0.01, 0.1), replicates=100, confidence=0.8, seed=1, two_way=two_way)
    seed = np.random.SeedSequence(1).spawn(2)[0]
    values = bootstrap(SCORES, MEMBER, (0.01, 0.1), 100, seed, two_way)
    low, high = percentile_interval(values, 0.8)
    reported = [result["auc"], *result["tpr"].values()]
    np.testing.assert_array_equal([entry["low"] for entry in reported], low)
    np.testing.assert_array_equal([entry["high"] for entry in reported], high)
    assert all(entry["low"] <= entry["value"] <= entry["high"] for entry in reported)


def test_the_result_survives_json_and_the_defaults_are_the_protocols():
    result = evaluate(SCORES, MEMBER, replicates=20, seed=0)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert list(result["tpr"]) == ["0.001", "0.01"]
    assert (result["epsilon"]["confidence"], result["epsilon"]["delta"]) == (0.95, 1e-5)


def test_a_seed_sequence_is_not_used_up():
    seed = np.random.SeedSequence(3, spawn_key=(1, 2))
    first = evaluate(SCORES, MEMBER, replicates=20, seed=seed)
    assert evaluate(SCORES, MEMBER, replicates=20, seed=seed) == first
    assert evaluate(SCORES, MEMBER, replicates=20, seed=np.random.SeedSequence(3, spawn_key=(1, 3))) != first
    assert evaluate(SCORES, MEMBER, replicates=20, seed=3) == evaluate(
        SCORES, MEMBER, replicates=20, seed=np.random.SeedSequence(3)
    )


def test_the_maximum_over_variants_names_its_variant():
    results = {
        name: evaluate(scores, MEMBER, replicates=0, seed=0)
        for name, scores in {"weak": SCORES * 0, "strong": SCORES, "reversed": -SCORES}.items()
    }
    best = max_over_variants(results, 0.01)
    assert best == {"value": tpr_at_fpr(SCORES, MEMBER, 0.01).tpr, "variant": "strong"}
    assert max_over_variants({"a": results["strong"], "b": results["strong"]}, 0.001)["variant"] == "a"


def test_a_maximum_that_cannot_be_taken_is_refused():
    with pytest.raises(ValueError, match="at least one result"):
        max_over_variants({}, 0.001)
    with pytest.raises(ValueError, match=r"primary was evaluated at FPR 0\.001, 0\.01, not at 0\.05"):
        max_over_variants({"primary": evaluate(SCORES, MEMBER, replicates=0, seed=0)}, 0.05)


def test_memorised_counts_predictions_of_the_canary_label_at_view_0():
    labels = RNG.integers(4, size=40)
    logits = RNG.normal(size=(40, 12, 2, 4))
    right = np.array([[logits[c, m, 0].argmax() == labels[c] for m in range(12)] for c in range(40)])
    shares = memorised(logits, labels, MEMBER)
    assert shares == {"members": right[MEMBER].mean(), "nonmembers": right[~MEMBER].mean()}
    assert shares["members"] != shares["nonmembers"]


def test_memorised_refuses_arrays_that_do_not_fit():
    logits, labels = np.zeros((40, 12, 2, 4)), np.zeros(40, int)
    for bad_logits, bad_labels in ((logits[:, :, 0], labels), (logits[:5], labels), (logits, labels[:5])):
        with pytest.raises(ValueError, match="do not fit"):
            memorised(bad_logits, bad_labels, MEMBER)
    with pytest.raises(ValueError, match="members and non-members"):
        memorised(logits, labels, np.ones_like(MEMBER))
