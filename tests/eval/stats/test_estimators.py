"""Statistics against values worked out by hand or printed in the literature."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from regaze.eval.stats import estimators


def test_wilson_is_the_published_example():
    # Newcombe, Statistics in Medicine 17 (1998) 857-872, table I: 81 of 263.
    assert estimators.wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


def test_wilson_at_the_edges_by_hand():
    z2 = 1.959963984540054**2
    assert estimators.wilson(0, 20) == pytest.approx((0.0, z2 / (20 + z2)))
    assert estimators.wilson(20, 20) == pytest.approx((20 / (20 + z2), 1.0))


def test_mcnemar_is_a_sign_test_on_the_discordant_pairs():
    assert estimators.mcnemar(5, 0) == pytest.approx(2 / 2**5)
    assert estimators.mcnemar(1, 3) == pytest.approx(2 * (1 + 4) / 2**4)
    assert estimators.mcnemar(3, 1) == estimators.mcnemar(1, 3)
    assert estimators.mcnemar(4, 4) == 1.0
    assert estimators.mcnemar(0, 0) == 1.0


def test_holm_by_hand():
    assert estimators.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert estimators.holm([0.6, 0.7]) == [1.0, 1.0]
    assert (estimators.holm([0.3]), estimators.holm([])) == ([0.3], [])


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        # Altman et al., Statistics with Confidence (2000), table 6.2: first - second 0.122, 0.011 to 0.226.
        ((14, 5, 0, 22), (-0.226, -0.011)),
        # Newcombe, Statistics in Medicine 17 (1998) 2635-2650, table II, method 10: 0.0569 to 0.3404.
        ((36, 12, 2, 0), (-0.3404, -0.0569)),
    ],
)
def test_paired_difference_is_the_published_example(cells, expected):
    assert estimators.paired_difference(*cells) == pytest.approx(expected, abs=5e-4)


def test_paired_difference_is_antisymmetric_and_keeps_a_width():
    low, high = estimators.paired_difference(30, 7, 3, 10)
    assert estimators.paired_difference(30, 3, 7, 10) == pytest.approx((-high, -low))
    low, high = estimators.paired_difference(50, 0, 0, 50)
    assert low < 0 < high
    low, high = estimators.paired_difference(50, 0, 0, 0)  # a margin of zero: no correlation to speak of
    assert low < 0 < high


@pytest.mark.parametrize(
    "changes", [[1, 1, -1], [6, -2, 0, 0, 3, 1, -1], [0, 0], [], [4], [2, -2], [5, 4, 3, 2, 1]]
)
def test_sign_flip_counts_every_arrangement(changes):
    sums = [
        sum(s * c for s, c in zip(signs, changes, strict=True))
        for signs in itertools.product((1, -1), repeat=len(changes))
    ]
    expected = np.mean([abs(each) >= abs(sum(changes)) for each in sums])
    assert estimators.sign_flip(changes) == pytest.approx(expected)


def test_sign_flip_agrees_with_scipy_and_is_mcnemar_for_single_questions():
    changes = np.random.default_rng(1).integers(-3, 4, 9)
    exact = stats.permutation_test(
        (changes, np.zeros_like(changes)),
        lambda x, y, axis: (x - y).sum(axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf,
    )
    assert estimators.sign_flip(changes.tolist()) == pytest.approx(exact.pvalue)
    assert estimators.sign_flip([1] * 311 + [-1] * 47) == pytest.approx(estimators.mcnemar(311, 47), rel=1e-6)


def test_sign_flip_keeps_its_level_where_mcnemar_does_not():
    """Images whose six questions change as one: without a difference, 5 % of tests may find one."""
    generator = np.random.default_rng(0)
    clustered, by_question = 0, 0
    for _ in range(400):
        changes = 6 * generator.choice([-1, 0, 1], 40, p=[0.2, 0.6, 0.2])
        clustered += estimators.sign_flip(changes.tolist()) < 0.05
        gained, lost = int(changes[changes > 0].sum()), int(-changes[changes < 0].sum())
        by_question += estimators.mcnemar(lost, gained) < 0.05
    assert clustered / 400 <= 0.07
    assert by_question / 400 > 0.3


def test_the_clustered_interval_covers_the_truth():
    """Accuracy over images that are right or wrong as a whole, drawn anew 300 times."""
    generator = np.random.default_rng(0)
    covered = []
    for seed in range(300):
        right = 6 * (generator.random(60) < 0.7)
        means = estimators.bootstrap_sums(right[:, None], resamples=500, seed=seed)[:, 0] / 360
        low, high = estimators.percentile_interval(means)
        covered.append(low <= 0.7 <= high)
    assert np.mean(covered) == pytest.approx(0.95, abs=0.03)


def test_the_design_effect_is_one_for_independent_questions_and_the_size_of_whole_clusters():
    changes = np.random.default_rng(0).choice([-1, 0, 1], 3000)
    assert estimators.design_effect(changes, np.arange(3000)) == pytest.approx(1.0)
    assert estimators.design_effect(changes, np.arange(3000) // 6) == pytest.approx(1.0, abs=0.15)
    assert estimators.design_effect(changes.repeat(6), np.arange(18000) // 6) == pytest.approx(6.0, rel=0.01)
    assert math.isnan(estimators.design_effect(np.zeros(4), [0, 0, 1, 1]))
    assert math.isnan(estimators.design_effect(np.array([0, 1]), [0, 0]))


def mean(sums: np.ndarray) -> np.ndarray:
    return np.divide(sums[..., 0], sums[..., 1], out=np.full(sums.shape[:-1], np.nan), where=sums[..., 1] > 0)


def test_permutation_exchanges_conditions_within_clusters():
    plain = np.array([[2.0, 4], [1, 4], [3, 4]])
    edited = np.array([[4.0, 4], [4, 4], [4, 4]])
    # Of eight arrangements two are as extreme.
    assert estimators.permutation(mean, plain, edited, resamples=100, seed=0) == pytest.approx(2 / 8)
    assert estimators.permutation(mean, plain, plain, resamples=100, seed=0) == 1.0
    assert estimators.permutation(mean, plain[:1], edited[:1], resamples=100, seed=0) == 1.0
    assert math.isnan(estimators.permutation(mean, 0 * plain, edited, resamples=100, seed=0))
    many = np.tile(plain, (30, 1)), np.tile(edited, (30, 1))
    assert estimators.permutation(mean, *many, resamples=999, seed=0) == pytest.approx(2 / 1000)
    assert estimators.permutation(mean, *many, resamples=999, seed=0) == estimators.permutation(
        mean, *many, resamples=999, seed=0
    )


def test_bootstrap_sums_draw_whole_clusters():
    counts = np.diag([1, 10, 100])
    sums = estimators.bootstrap_sums(counts, resamples=500, seed=3)
    assert sums.shape == (500, 3)
    drawn = sums / [1, 10, 100]
    assert np.all(drawn == drawn.round())
    assert np.all(drawn.sum(1) == 3)
    assert drawn.mean(0) == pytest.approx([1, 1, 1], abs=0.15)
    np.testing.assert_array_equal(sums, estimators.bootstrap_sums(counts, resamples=500, seed=3))
    assert not np.array_equal(sums, estimators.bootstrap_sums(counts, resamples=500, seed=4))


def test_bootstrap_interval_has_the_width_theory_gives():
    generator = np.random.default_rng(0)
    values = generator.random((400, 1))
    means = estimators.bootstrap_sums(values, resamples=4000, seed=1)[:, 0] / 400
    low, high = estimators.percentile_interval(means)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / math.sqrt(400), rel=0.05)


def test_one_cluster_says_nothing_about_spread():
    assert np.isnan(estimators.bootstrap_sums(np.ones((1, 2)), resamples=5, seed=0)).all()
    assert np.isnan(estimators.percentile_interval(np.full(5, np.nan))).all()


def test_percentile_interval_leaves_undefined_replicates_out():
    replicates = np.concatenate([np.linspace(0, 1, 1001), np.full(50, np.nan)])
    assert estimators.percentile_interval(replicates) == pytest.approx((0.025, 0.975))
