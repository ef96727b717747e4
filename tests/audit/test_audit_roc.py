"""The ROC is the exact step function, ties included."""

import numpy as np
import pytest

from coalmine.audit.roc import allowed_false_positives, auc, roc_curve, tpr_at_fpr


def audits():
    """Return scores without ties, with some, with many and with nothing else; balanced and unbalanced."""
    rng = np.random.default_rng(0)
    result = []
    for share in (0.5, 0.2):
        member = rng.random((30, 8)) < share
        smooth = rng.normal(size=(30, 8)) + member
        result += [(np.round(smooth, digits), member) for digits in (12, 1, 0)]
        result.append((np.zeros((30, 8)), member))
    return result


def by_brute_force(scores, membership):
    points = [(np.inf, 0, 0)]
    for threshold in sorted(set(scores.ravel().tolist()), reverse=True):
        accepted = scores >= threshold
        points.append((threshold, int((accepted & ~membership).sum()), int((accepted & membership).sum())))
    return points


@pytest.mark.parametrize("audit", audits())
def test_the_curve_equals_a_loop_over_all_thresholds(audit):
    roc = roc_curve(*audit)
    points = by_brute_force(*audit)
    np.testing.assert_array_equal(roc.thresholds, [threshold for threshold, _, _ in points])
    np.testing.assert_array_equal(roc.false_positives, [false for _, false, _ in points])
    np.testing.assert_array_equal(roc.true_positives, [true for _, _, true in points])
    np.testing.assert_allclose(roc.fpr, roc.false_positives / (~audit[1]).sum())
    np.testing.assert_allclose(roc.tpr, roc.true_positives / audit[1].sum())


@pytest.mark.parametrize("audit", audits())
@pytest.mark.parametrize("fpr", [0.0, 0.001, 0.01, 0.1, 0.37, 1.0])
def test_tpr_at_fpr_is_the_best_threshold_within_the_limit(audit, fpr):
    members, nonmembers = audit[1].sum(), (~audit[1]).sum()
    within = [(true / members, false, t) for t, false, true in by_brute_force(*audit) if false / nonmembers <= fpr]
    point = tpr_at_fpr(*audit, fpr)
    assert point.tpr == max(true for true, _, _ in within)
    assert (point.tpr, point.false_positives, point.threshold) in within
    accepted = audit[0] >= point.threshold
    assert (accepted & ~audit[1]).sum() == point.false_positives <= point.allowed
    assert point.allowed / nonmembers <= fpr < (point.allowed + 1) / nonmembers


def eight_thousand_pairs_a_side(false_positives):
    """All members score 1; so many non-members score more, the others less."""
    member = np.tile([True, False], (500, 16))
    scores = np.where(member, 1.0, 0.0)
    scores[:, 1][:false_positives] = 2.0
    return scores, member


def test_eight_false_positives_in_8000_are_within_one_in_a_thousand():
    point = tpr_at_fpr(*eight_thousand_pairs_a_side(8), 0.001)
    assert (point.tpr, point.false_positives, point.allowed, point.threshold) == (1.0, 8, 8, 1.0)


def test_nine_false_positives_in_8000_are_not():
    point = tpr_at_fpr(*eight_thousand_pairs_a_side(9), 0.001)
    assert (point.tpr, point.false_positives, point.allowed) == (0.0, 0, 8)


def test_a_member_tied_with_one_false_positive_too_many_is_not_accepted():
    member = np.array([[True, True, False, False]])
    scores = np.array([[3.0, 2.0, 2.0, 1.0]])
    assert tpr_at_fpr(scores, member, 0.49).tpr == 0.5
    assert tpr_at_fpr(scores, member, 0.5).tpr == 1.0


@pytest.mark.parametrize("fpr", [0.001, 0.0011, 0.01, 0.05, 0.1, 0.29, 0.57, 1.0, 0.0])
def test_allowed_counts_are_exact_for_every_number_of_nonmembers(fpr):
    nonmembers = np.arange(1, 20_000)
    allowed = allowed_false_positives(nonmembers, fpr)
    assert np.all(allowed / nonmembers <= fpr)
    assert np.all((allowed + 1) / nonmembers > fpr)


def test_allowed_counts_are_exact_where_the_product_is_rounded():
    """Just below 9 / 10, the product with 10 rounds to 9, but 9 are too many; with 0.29 x 100 it rounds down."""
    below = np.nextafter(0.9, 0)
    assert below * 10 == 9
    assert allowed_false_positives(np.array([10]), below) == 8
    assert allowed_false_positives(np.array([10]), 0.9) == 9
    assert 0.29 * 100 < 29
    assert allowed_false_positives(np.array([100]), 0.29) == 29


@pytest.mark.parametrize("audit", audits())
def test_the_auc_is_the_share_of_pairs_won_with_ties_half(audit):
    scores, member = audit
    difference = scores[member][:, None] - scores[~member]
    assert auc(scores, member) == pytest.approx(np.mean((difference > 0) + (difference == 0) / 2), rel=1e-14)


@pytest.mark.parametrize("audit", audits())
def test_reversing_a_score_mirrors_the_auc(audit):
    scores, member = audit
    assert auc(-scores, member) == pytest.approx(1 - auc(scores, member), rel=1e-14)
    assert auc(scores, ~member) == pytest.approx(1 - auc(scores, member), rel=1e-14)


def test_a_perfect_attack_and_a_perfectly_wrong_one():
    member = np.tile([True, False], (10, 4))
    assert auc(member.astype(float), member) == 1.0
    assert auc(-member.astype(float), member) == 0.0
    assert tpr_at_fpr(member.astype(float), member, 0.0).tpr == 1.0


def test_an_infinite_or_missing_score_is_named():
    member = np.tile([True, False], (3, 2))
    for bad in (np.nan, np.inf):
        scores = np.zeros((3, 4))
        scores[2, 1] = bad
        with pytest.raises(ValueError, match="score of canary 2, model 1"):
            roc_curve(scores, member)


def test_one_sided_audits_and_impossible_rates_are_refused():
    for member in (np.ones((2, 2), bool), np.zeros((2, 2), bool)):
        with pytest.raises(ValueError, match="members and non-members"):
            roc_curve(np.zeros((2, 2)), member)
    for fpr in (-0.1, 1.1):
        with pytest.raises(ValueError, match="from 0 to 1"):
            tpr_at_fpr(np.zeros((1, 2)), np.array([[True, False]]), fpr)
