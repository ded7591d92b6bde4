"""The interval of the primary metric: known answers and cross-checks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import asdict

from invarlock.metrics import bootstrap
from invarlock.metrics.bootstrap import (
    bca_interval,
    cluster_sums,
    delta_method_error,
    jackknife_acceleration,
    kurtosis,
    quantile_of_sorted,
    resample_counts,
    widened_interval,
)


def draw(rng, clusters=60):
    """Clustered, unequal windows: a cluster effect, 1-6 windows a cluster, 20-140 tokens each."""
    names, differences, tokens = [], [], []
    for c in range(clusters):
        effect = rng.normal(0.01, 0.02)
        for _ in range(rng.integers(1, 7)):
            n = int(rng.integers(20, 141))
            names.append(f"doc-{c}")
            tokens.append(n)
            differences.append(n * (effect + rng.normal(0, 0.02)))
    return names, np.array(differences), np.array(tokens, dtype=float)


def test_agrees_with_scipy_on_unclustered_equal_windows():
    """With one window a cluster and equal tokens it is scipy's BCa of the mean."""
    from scipy.stats import bootstrap

    rng = np.random.default_rng(3)
    values = rng.gamma(2.0, 0.01, 120)
    ours = bca_interval(values * 50, np.full(120, 50.0), replicates=20000, alpha=0.05, seed=1)
    theirs = bootstrap(
        (values,), np.mean, n_resamples=20000, method="BCa", random_state=2
    ).confidence_interval
    width = theirs.high - theirs.low
    assert ours.low == pytest.approx(theirs.low, abs=0.03 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.03 * width)


def test_standard_error_agrees_with_the_delta_method():
    """Bootstrap and linearization tell the same standard error within 10 %."""
    sums = cluster_sums(*draw(np.random.default_rng(5), clusters=200))
    interval = bca_interval(*sums, replicates=4000, alpha=0.05, seed=0)
    assert interval.standard_error == pytest.approx(delta_method_error(*sums), rel=0.1)


def test_jackknife_is_leave_one_cluster_out():
    """The closed form equals deleting each cluster by hand."""
    d, n = np.array([1.0, -2.0, 0.5, 3.0]), np.array([10.0, 20.0, 5.0, 7.0])
    loo = np.array([np.delete(d, i).sum() / np.delete(n, i).sum() for i in range(4)])
    centred = loo.mean() - loo
    expected = (centred**3).sum() / (6 * (centred**2).sum() ** 1.5)
    assert jackknife_acceleration(d, n) == pytest.approx(expected, rel=1e-12)


def test_no_change_gives_a_point_interval():
    """Two identical runs: the interval is exactly zero, whatever the clusters."""
    interval = bca_interval(np.zeros(9), np.arange(1.0, 10.0), replicates=100, alpha=0.05, seed=0)
    assert (interval.low, interval.point, interval.high) == (0.0, 0.0, 0.0)


def test_one_cluster_has_no_interval():
    """A single document says nothing about the variation between documents."""
    assert bca_interval(np.ones(1), np.ones(1), replicates=100, alpha=0.05, seed=0) is None


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 40), st.integers(1, 50), st.integers(0, 2**31))
def test_every_replicate_draws_as_many_clusters_as_there_are(clusters, replicates, seed):
    """Each row of the resampling matrix sums to the number of clusters."""
    counts = resample_counts(clusters, replicates, seed)
    assert counts.shape == (replicates, clusters)
    assert (counts.sum(axis=1) == clusters).all()


def test_resampling_stream_is_fixed():
    """Other versions of NumPy must draw the same: the first rows are pinned."""
    assert resample_counts(4, 3, 43).astype(int).tolist() == PINNED


@given(st.integers(1, 30), st.integers(0, 30), st.integers(2, 20), st.integers(0, 9))
def test_replicates_can_be_drawn_in_parts(replicates, skip, clusters, seed):
    """Those after the first ``skip`` are the same as when all are drawn at once."""
    both = resample_counts(clusters, skip + replicates, seed)
    assert (resample_counts(clusters, replicates, seed, skip) == both[skip:]).all()


def test_an_interval_needs_little_memory_at_a_time(monkeypatch):
    """Drawn a few replicates at a time, the interval is the same."""
    sums = cluster_sums(*draw(np.random.default_rng(2)))
    settings = {"replicates": 999, "alpha": 0.05, "seed": 4}
    at_once = widened_interval(*sums, **settings)
    monkeypatch.setattr(bootstrap, "MOST_DRAWS", 7 * 60)
    in_parts = widened_interval(*sums, **settings)
    assert asdict(in_parts) == pytest.approx(asdict(at_once), rel=1e-13)


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40),
    st.floats(0, 1) | st.sampled_from([0.025, 0.5, 0.975]),
)
def test_quantiles_are_those_of_numpy(values, level):
    """Bit for bit, at the ends and between values."""
    ordered = np.sort(values)
    assert quantile_of_sorted(ordered, level) == np.quantile(ordered, level)


def test_clusters_are_summed_by_name():
    """Windows of one document add up, in sorted order of the names."""
    sums = cluster_sums(["b", "a", "b"], np.array([1.0, 10.0, 2.0]), np.array([3.0, 4.0, 5.0]))
    assert sums[0].tolist() == [10.0, 3.0]
    assert sums[1].tolist() == [4.0, 8.0]


def test_two_more_documents_widen_the_interval():
    """By hand: residuals -3, -1, 0, 4 weigh 9 + 1 + 0 + 16, and two more as far out as 4 add 32."""
    d, n = np.array([-3.0, -1.0, 0.0, 4.0]) + 20.0, np.full(4, 10.0)
    settings = {"replicates": 500, "alpha": 0.05, "seed": 6}
    plain, wide = bca_interval(d, n, **settings), widened_interval(d, n, **settings)
    factor = np.sqrt((26 + 32) / 26)
    assert wide.point - wide.low == pytest.approx(factor * (plain.point - plain.low), rel=1e-12)
    assert wide.high - wide.point == pytest.approx(factor * (plain.high - plain.point), rel=1e-12)
    assert (wide.point, wide.standard_error) == (plain.point, plain.standard_error)
    assert wide.kurtosis == pytest.approx((81 + 1 + 256) / 4 / (26 / 4) ** 2)


@settings(max_examples=30, deadline=None)
@given(st.floats(-0.1, 0.1), st.integers(3, 40), st.integers(0, 99))
def test_the_widened_interval_moves_with_the_differences(shift, clusters, seed):
    """What is added to every token is added to both bounds, to rounding: of few clusters some
    samples are the sample itself, and rounding says whether they lie below it."""
    rng = np.random.default_rng(seed)
    n = rng.integers(50, 150, clusters).astype(float)
    d = n * rng.normal(0.0, 0.02, clusters)
    settings = {"replicates": 200, "alpha": 0.05, "seed": 1}
    here, there = (widened_interval(x, n, **settings) for x in (d, d + shift * n))
    assert [there.low, there.high] == pytest.approx([here.low + shift, here.high + shift], abs=1e-3)


def test_the_widened_interval_of_no_change_is_a_point():
    """Nothing differs: nothing is far out."""
    still = widened_interval(np.zeros(9), np.ones(9), replicates=100, alpha=0.05, seed=0)
    assert (still.low, still.high, still.kurtosis) == (0.0, 0.0, None)
    assert widened_interval(np.ones(1), np.ones(1), replicates=100, alpha=0.05, seed=0) is None


def test_kurtosis_is_that_of_scipy():
    """Fisher's definition plus 3, of values about their mean."""
    from scipy.stats import kurtosis as theirs

    values = np.random.default_rng(8).standard_t(5, 400)
    values -= values.mean()
    assert kurtosis(values) == pytest.approx(theirs(values, fisher=False), rel=1e-12)


PINNED = [[2, 0, 1, 1], [1, 1, 1, 1], [0, 2, 0, 2]]
