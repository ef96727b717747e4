"""Quality of synthetic images: closed forms, naive loops, and simulations in which the truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist

from coalmine.audit import quality
from coalmine.audit.quality import frechet_distance, nearest_ratio, neighbour_distances, precision_recall


def gaussian_like(rng, n, mean, covariance):
    """Return features whose mean and unbiased covariance are exactly the given ones."""
    d = len(mean)
    z = rng.normal(size=(n, d))
    columns = np.linalg.qr(np.column_stack([np.ones(n), z]))[0][:, 1:] * np.sqrt(n - 1)
    return columns @ np.linalg.cholesky(covariance).T + mean


def naive_frechet(first, second):
    """The equation as it stands, with NumPy's covariances and SciPy's root of a matrix."""
    (m1, s1), (m2, s2) = ((one.mean(axis=0), np.cov(one, rowvar=False)) for one in (first, second))
    return np.sum((m1 - m2) ** 2) + np.trace(s1 + s2 - 2 * sqrtm(s1 @ s2).real)


def true_frechet(m1, s1, m2, s2):
    return np.sum((m1 - m2) ** 2) + np.trace(s1 + s2 - 2 * sqrtm(s1 @ s2).real)


def covariance(rng, d):
    root = rng.normal(size=(d, d))
    return root @ root.T + 0.1 * np.eye(d)


# --- Frechet distance --------------------------------------------------------------------------------------------


def test_on_a_line_it_is_the_squared_difference_of_means_and_of_standard_deviations():
    rng = np.random.default_rng(0)
    first = gaussian_like(rng, 30, np.array([1.0]), np.array([[4.0]]))
    second = gaussian_like(rng, 70, np.array([-2.0]), np.array([[0.25]]))
    assert frechet_distance(first, second) == pytest.approx(3**2 + (2 - 0.5) ** 2, rel=1e-12)


def test_with_diagonal_covariances_axes_add_up():
    rng = np.random.default_rng(1)
    m1, m2 = rng.normal(size=(2, 5))
    v1, v2 = rng.uniform(0.1, 4, size=(2, 5))
    first, second = gaussian_like(rng, 40, m1, np.diag(v1)), gaussian_like(rng, 25, m2, np.diag(v2))
    expected = np.sum((m1 - m2) ** 2) + np.sum((np.sqrt(v1) - np.sqrt(v2)) ** 2)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-12)


def test_with_any_covariances_it_is_the_formula_of_dowson_and_landau():
    rng = np.random.default_rng(2)
    m1, m2, s1, s2 = *rng.normal(size=(2, 6)), covariance(rng, 6), covariance(rng, 6)
    first, second = gaussian_like(rng, 50, m1, s1), gaussian_like(rng, 80, m2, s2)
    assert frechet_distance(first, second) == pytest.approx(true_frechet(m1, s1, m2, s2), rel=1e-10)
    assert frechet_distance(first, second) == pytest.approx(naive_frechet(first, second), rel=1e-8)


def test_a_shift_adds_its_squared_length_and_a_scale_its_square():
    rng = np.random.default_rng(3)
    features = rng.normal(size=(60, 4)) @ rng.normal(size=(4, 4))
    shift = np.array([3.0, 0, -4, 0])
    assert frechet_distance(features, features + shift) == pytest.approx(25, rel=1e-10)
    centred = features - features.mean(axis=0)
    assert frechet_distance(centred, 3 * centred) == pytest.approx(4 * np.trace(np.cov(features.T)), rel=1e-10)
    other = rng.normal(size=(30, 4))
    assert frechet_distance(3 * features, 3 * other) == pytest.approx(9 * frechet_distance(features, other), rel=1e-10)


def test_it_is_0_of_a_set_and_itself_in_any_order_and_the_same_both_ways():
    rng = np.random.default_rng(4)
    first, second = rng.normal(size=(50, 20)), rng.normal(size=(35, 20)) + 1
    assert frechet_distance(first, rng.permutation(first)) == pytest.approx(0, abs=1e-11)
    assert frechet_distance(first, second) == pytest.approx(frechet_distance(second, first), rel=1e-12)


@pytest.mark.parametrize("n", [3, 12, 100])
def test_covariances_without_full_rank_are_those_of_the_space_that_they_fill(n):
    rng = np.random.default_rng(5)
    low1, low2 = rng.normal(size=(n, 3)), 2 * rng.normal(size=(n + 4, 3)) + 1
    embedding = np.linalg.qr(rng.normal(size=(60, 3)))[0].T
    high = frechet_distance(low1 @ embedding + 5, low2 @ embedding + 5)
    assert high == pytest.approx(frechet_distance(low1, low2), rel=1e-12)
    assert high == pytest.approx(naive_frechet(low1, low2), rel=1e-7)
    assert frechet_distance(low1 @ embedding, low1 @ embedding) == pytest.approx(0, abs=1e-11)


def test_orthogonal_sets_have_the_distance_of_their_spreads():
    rng = np.random.default_rng(6)
    first, second = np.zeros((2, 20, 10))
    first[:, :5], second[:, 5:] = rng.normal(size=(2, 20, 5))
    first, second = first - first.mean(axis=0), second - second.mean(axis=0)
    expected = np.trace(np.cov(first.T)) + np.trace(np.cov(second.T))
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-12)


def test_blocks_and_single_precision_change_nothing(monkeypatch):
    rng = np.random.default_rng(7)
    first, second = (rng.normal(size=(n, 4)).astype(np.float32) + 3 for n in (101, 57))
    whole = frechet_distance(first.astype(np.float64), second.astype(np.float64))
    monkeypatch.setattr(quality, "ROWS_AT_ONCE", 1)
    assert frechet_distance(first, second) == pytest.approx(whole, rel=1e-12)


def test_the_estimate_reaches_the_distance_of_the_populations():
    # The relative error has standard deviation 1.3% here: of 300 other samples, none was off by 5%.
    rng = np.random.default_rng(8)
    m1, m2, s1, s2 = np.zeros(3), np.array([0.5, 0, 1]), covariance(rng, 3), covariance(rng, 3)
    first, second = rng.multivariate_normal(m1, s1, 40_000), rng.multivariate_normal(m2, s2, 40_000)
    assert frechet_distance(first, second) == pytest.approx(true_frechet(m1, s1, m2, s2), rel=0.06)


def test_two_samples_of_one_gaussian_are_apart_by_the_known_bias():
    # |m1 - m2|^2 gives d (1/n + 1/m), the covariances d (d + 1) / 4 of it, to first order. The mean of 300 has a
    # standard error of 2.3% of it: of 100 other seeds, none was off by 7%.
    rng = np.random.default_rng(9)
    n, m, d = 400, 800, 4
    found = np.mean([frechet_distance(rng.normal(size=(n, d)), rng.normal(size=(m, d))) for _ in range(300)])
    assert found == pytest.approx((d + d * (d + 1) / 4) * (1 / n + 1 / m), rel=0.1)


# --- precision and recall ----------------------------------------------------------------------------------------


def naive_precision_recall(real, synthetic, k):
    def radius(points, own):
        return sorted(np.linalg.norm(points[own] - other) for i, other in enumerate(points) if i != own)[k - 1]

    def share_on(points, manifold):
        balls = [(centre, radius(manifold, own)) for own, centre in enumerate(manifold)]
        return np.mean([any(np.linalg.norm(point - centre) <= far for centre, far in balls) for point in points])

    return share_on(synthetic, real), share_on(real, synthetic)


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_equal_the_naive_loop(k):
    rng = np.random.default_rng(10)
    real, synthetic = rng.normal(size=(60, 3)), 0.7 * rng.normal(size=(45, 3)) + 0.6
    found = precision_recall(real, synthetic, k)
    assert found == pytest.approx(naive_precision_recall(real, synthetic, k))
    assert 0.1 < found.recall < found.precision < 1


def test_blocks_change_nothing(monkeypatch):
    rng = np.random.default_rng(11)
    real, synthetic = rng.normal(size=(37, 4)), rng.normal(size=(23, 4))
    whole, radii = precision_recall(real, synthetic, 2), neighbour_distances(real, 2)
    monkeypatch.setattr(quality, "DISTANCES_AT_ONCE", 100)
    assert precision_recall(real, synthetic, 2) == whole
    np.testing.assert_allclose(neighbour_distances(real, 2), radii, rtol=1e-12)
    np.testing.assert_allclose(radii, np.sort(cdist(real, real), axis=1)[:, 2], rtol=1e-12)


def test_precision_and_recall_swap_with_the_sets_and_are_1_of_a_set_and_itself():
    rng = np.random.default_rng(12)
    real, synthetic = rng.normal(size=(80, 2)), rng.normal(size=(50, 2)) + 1
    there, back = precision_recall(real, synthetic, 3), precision_recall(synthetic, real, 3)
    assert there == (back.recall, back.precision)
    assert there.precision != there.recall
    assert precision_recall(real, real, 1) == (1, 1)


def test_the_border_of_a_ball_belongs_to_it_and_twins_have_no_ball():
    real = np.array([[0.0], [1], [10], [10]])
    assert np.array_equal(neighbour_distances(real, 1), [1, 1, 0, 0])
    synthetic = np.array([[2.0], [2.0001], [10], [10.5]])
    assert precision_recall(real, synthetic, 1).precision == 2 / 4


def test_without_overlap_both_are_0_and_a_collapsed_set_is_precise_only():
    rng = np.random.default_rng(13)
    real = rng.normal(size=(100, 2))
    assert precision_recall(real, real + 100, 3) == (0, 0)
    collapsed = real[0] + 1e-6 * rng.normal(size=(100, 2))
    assert precision_recall(real, collapsed, 3) == (1, 0.01)


def test_half_of_what_is_real_is_covered_by_a_set_from_one_half():
    # On a line, uniform: of 300 other seeds, none was off by 0.05 in either.
    rng = np.random.default_rng(14)
    real, synthetic = rng.uniform(size=(1500, 1)), rng.uniform(0, 0.5, size=(1500, 1))
    found = precision_recall(real, synthetic, 3)
    assert found.precision == pytest.approx(0.98, abs=0.05)
    assert found.recall == pytest.approx(0.49, abs=0.05)


# --- nearness ----------------------------------------------------------------------------------------------------


def test_ratio_and_balance_equal_the_naive_loop():
    rng = np.random.default_rng(15)
    images, members, nonmembers = (rng.normal(size=(n, 5)) for n in (30, 12, 12))
    near, far = cdist(images, members).min(axis=1), cdist(images, nonmembers).min(axis=1)
    found = nearest_ratio(images, members, nonmembers)
    np.testing.assert_allclose(found.ratio, near / far, rtol=1e-10)
    np.testing.assert_allclose(found.balance, near / ((near + far) / 2), rtol=1e-10)
    back = nearest_ratio(images, nonmembers, members)
    np.testing.assert_allclose(back.ratio, 1 / found.ratio, rtol=1e-10)
    np.testing.assert_allclose(back.balance, 2 - found.balance, rtol=1e-10)


def test_copies_have_ratio_0_and_those_of_both_or_of_strangers_are_told_apart():
    members, nonmembers = np.array([[0.0], [5]]), np.array([[1.0], [5]])
    found = nearest_ratio(np.array([[0.0], [1], [5]]), members, nonmembers)
    assert found.ratio.tolist() == [0, np.inf, 1]
    assert found.balance.tolist() == [0, 2, 1]


def test_if_nothing_leaks_the_balance_is_1_on_average_and_the_ratio_more():
    # Means over 200 draws of 100 images; the balance's has standard error 0.002: of 100 other seeds, none was off by
    # 0.007, and the mean ratio was always above 1.09.
    rng = np.random.default_rng(16)
    draws = [nearest_ratio(*(rng.normal(size=(n, 4)) for n in (100, 50, 50))) for _ in range(200)]
    assert np.mean([draw.balance for draw in draws]) == pytest.approx(1, abs=0.009)
    assert np.mean([draw.ratio for draw in draws]) > 1.05


# --- refusals ----------------------------------------------------------------------------------------------------


def test_what_cannot_be_compared_is_refused():
    few = np.zeros((3, 2))
    with pytest.raises(ValueError, match=r"shapes \(3, 2\) and \(3, 4\) cannot be compared"):
        frechet_distance(few, np.zeros((3, 4)))
    with pytest.raises(ValueError, match="1 and 3 images: at least 2 of each are needed"):
        frechet_distance(few[:1], few)
    with pytest.raises(ValueError, match="3 and 3 images: at least 4 of each are needed"):
        precision_recall(few, few, 3)
    with pytest.raises(ValueError, match="the neighbour k is 0"):
        precision_recall(few, few, 0)
    with pytest.raises(ValueError, match="3 members and 2 non-members: the larger set is nearer by its size alone"):
        nearest_ratio(few, few, few[:2])
    broken = few.copy()
    broken[1, 0] = np.nan
    with pytest.raises(ValueError, match="the features of image 1 are not finite"):
        frechet_distance(few, broken)
