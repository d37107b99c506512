"""Statistics against values worked out by hand or printed in the literature."""

from __future__ import annotations

import math

import numpy as np
import pytest

from regaze.eval import statistics


def test_wilson_is_the_published_example():
    # Newcombe, Statistics in Medicine 17 (1998) 857-872, table I: 81 of 263.
    assert statistics.wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


def test_wilson_at_the_edges_by_hand():
    z2 = 1.959963984540054**2
    assert statistics.wilson(0, 20) == pytest.approx((0.0, z2 / (20 + z2)))
    assert statistics.wilson(20, 20) == pytest.approx((20 / (20 + z2), 1.0))


def test_mcnemar_is_a_sign_test_on_the_discordant_pairs():
    assert statistics.mcnemar(5, 0) == pytest.approx(2 / 2**5)
    assert statistics.mcnemar(1, 3) == pytest.approx(2 * (1 + 4) / 2**4)
    assert statistics.mcnemar(3, 1) == statistics.mcnemar(1, 3)
    assert statistics.mcnemar(4, 4) == 1.0
    assert statistics.mcnemar(0, 0) == 1.0


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
    assert statistics.paired_difference(*cells) == pytest.approx(expected, abs=5e-4)


def test_paired_difference_is_antisymmetric_and_keeps_a_width():
    low, high = statistics.paired_difference(30, 7, 3, 10)
    assert statistics.paired_difference(30, 3, 7, 10) == pytest.approx((-high, -low))
    low, high = statistics.paired_difference(50, 0, 0, 50)
    assert low < 0 < high
    low, high = statistics.paired_difference(50, 0, 0, 0)  # a margin of zero: no correlation to speak of
    assert low < 0 < high


def test_bootstrap_sums_draw_whole_clusters():
    counts = np.diag([1, 10, 100])
    sums = statistics.bootstrap_sums(counts, resamples=500, seed=3)
    assert sums.shape == (500, 3)
    drawn = sums / [1, 10, 100]
    assert np.all(drawn == drawn.round())
    assert np.all(drawn.sum(1) == 3)
    assert drawn.mean(0) == pytest.approx([1, 1, 1], abs=0.15)
    np.testing.assert_array_equal(sums, statistics.bootstrap_sums(counts, resamples=500, seed=3))
    assert not np.array_equal(sums, statistics.bootstrap_sums(counts, resamples=500, seed=4))


def test_bootstrap_interval_has_the_width_theory_gives():
    generator = np.random.default_rng(0)
    values = generator.random((400, 1))
    means = statistics.bootstrap_sums(values, resamples=4000, seed=1)[:, 0] / 400
    low, high = statistics.percentile_interval(means)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / math.sqrt(400), rel=0.05)


def test_one_cluster_says_nothing_about_spread():
    assert np.isnan(statistics.bootstrap_sums(np.ones((1, 2)), resamples=5, seed=0)).all()
    assert np.isnan(statistics.percentile_interval(np.full(5, np.nan))).all()


def test_percentile_interval_leaves_undefined_replicates_out():
    replicates = np.concatenate([np.linspace(0, 1, 1001), np.full(50, np.nan)])
    assert statistics.percentile_interval(replicates) == pytest.approx((0.025, 0.975))
