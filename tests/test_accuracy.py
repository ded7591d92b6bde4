"""Paired accuracy: exact enumeration, McNemar, the decision and what is refused."""

import itertools
import math
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from scipy.stats import binomtest

from invarlock.errors import InputError
from invarlock.metrics.accuracy import (
    Examples,
    compare_accuracy,
    labelled,
    lower_tail,
    mcnemar_exact,
)
from invarlock.metrics.bootstrap import (
    PLAIN,
    effective_clusters,
    expanded_quantile,
    jackknife_acceleration,
    resample_counts,
)
from invarlock.metrics.perplexity import Bootstrap
from invarlock.policy import load_policy

POLICY = load_policy("balanced")
SETTINGS = Bootstrap(2000, 0.05, 43, PLAIN)


def examples(lost=0, gained=0, n=400, clusters=None):
    """The subject loses and gains some examples of a baseline that is right on half."""
    base = np.arange(n) % 2 == 0
    subject = base.copy()
    subject[np.flatnonzero(base)[:lost]] = False
    subject[np.flatnonzero(~base)[:gained]] = True
    names = [f"{i:016x}" for i in range(n)]
    return Examples(names, clusters or names, subject, base)


def test_replicates_are_the_enumerated_distribution():
    """All 5^5 resamples of five clusters, against the drawn ones: at most 2 % apart anywhere.

    Kolmogorov distance; a true sampler of 20,000 exceeds 2 % less than once in a million.
    """
    d, n = np.array([-1.0, 0.0, 2.0, -2.0, 1.0]), np.array([1.0, 2.0, 3.0, 2.0, 4.0])
    picks = np.array(list(itertools.product(range(5), repeat=5)))
    exact = np.sort(np.round(d[picks].sum(axis=1) / n[picks].sum(axis=1), 9))
    counts = resample_counts(5, 20_000, 7)
    drawn = np.sort(np.round((counts @ d) / (counts @ n), 9))
    at = np.unique(exact)
    assert set(drawn) <= set(exact)
    shares = [np.searchsorted(v, at, side="right") / len(v) for v in (exact, drawn)]
    assert np.abs(shares[0] - shares[1]).max() < 0.02


def test_interval_is_that_of_the_enumerated_distribution():
    """Limits from all 6^6 resamples of six examples lie on the same or the next step."""
    subject = np.array([True, False, False, True, True, False])
    base = np.array([True, True, False, False, True, True])
    names = list("abcdef")
    arm = Examples(names, names, subject, base)
    d, one, normal = arm.difference, np.ones(6), NormalDist()
    picks = np.array(list(itertools.product(range(6), repeat=6)))
    theta = np.sort(d[picks].mean(axis=1))
    point = d.mean()
    tie = np.isclose(theta, point)
    z0 = normal.inv_cdf(np.mean((theta < point) & ~tie) + 0.5 * np.mean(tie))
    a = jackknife_acceleration(d, one)
    q = expanded_quantile(0.975, effective_clusters(one) - 1)
    levels = [normal.cdf(z0 + (z0 + s * q) / (1 - a * (z0 + s * q))) for s in (-1, 1)]
    expected = np.quantile(theta, levels)
    plain = Bootstrap(40_000, 0.05, 1, PLAIN)
    interval = compare_accuracy(arm, arm, POLICY, plain).interval
    step = 100 / 6 + 1e-6
    assert abs(interval.low - expected[0]) <= step
    assert abs(interval.high - expected[1]) <= step


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 200), st.integers(0, 200))
def test_mcnemar_is_the_exact_binomial_test(gained, lost):
    """Two-sided p of a fair coin over the discordant examples, as SciPy computes it."""
    expected = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert mcnemar_exact(gained, lost) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("n", [4900, 5000, 5001, 5300])
def test_mcnemar_of_many_discordant_is_the_exact_one(n):
    """The term by term sum agrees with whole numbers to 1e-12 around where it takes over."""
    for k in (n // 2, n // 2 - 1, n // 2 - 40, n // 2 - 200, n // 2 - 500, n // 3, n // 4):
        exact = sum(itertools.accumulate(range(k), lambda t, i: t * (n - i) // (i + 1), initial=1))
        assert lower_tail(n, k) == pytest.approx(exact / (1 << n), rel=1e-12)
        assert mcnemar_exact(n - k, k) == pytest.approx(min(1, 2 * exact / (1 << n)), rel=1e-12)
    assert lower_tail(n, 0) == mcnemar_exact(n, 0) == 2.0 ** (1 - n) == 0


def test_mcnemar_of_millions_takes_few_terms():
    """The normal law with its continuity correction, at four million."""
    n, k = 4_000_000, 1_998_500
    normal = NormalDist().cdf((k + 0.5 - n / 2) / math.sqrt(n / 4))
    assert mcnemar_exact(k, n - k) == pytest.approx(2 * normal, rel=1e-4)


def test_mcnemar_by_hand():
    """Nine lost and one gained: 2 (1 + 10) / 1024."""
    assert mcnemar_exact(1, 9) == 22 / 1024


def test_everything_is_in_percentage_points():
    """Eight lost of 400 is -2 points; shares stay shares."""
    result = compare_accuracy(examples(), examples(lost=8), POLICY, SETTINGS)
    assert result.delta_pp == pytest.approx(-2.0)
    assert result.final == pytest.approx(0.48)
    assert result.baseline_final == pytest.approx(0.5)
    assert result.interval.low < -2.0 < result.interval.high
    assert (result.gained, result.lost) == (0, 8)
    assert result.limit_pp == pytest.approx(-1.1)


@pytest.mark.parametrize(
    ("lost", "gained", "n", "decision"),
    [
        (0, 0, 400, "pass"),
        (5, 5, 4000, "pass"),
        (4, 0, 400, "inconclusive"),
        (40, 0, 400, "fail"),
        (0, 40, 400, "pass"),
    ],
)
def test_decision_is_three_way(lost, gained, n, decision):
    """Above the limit, across it, below it; a gain passes."""
    result = compare_accuracy(examples(n=n), examples(lost, gained, n), POLICY, SETTINGS)
    assert result.decision == decision
    assert (result.examples_needed is not None) is (decision == "inconclusive")
    if decision == "inconclusive":
        assert result.examples_needed > n
        assert not result.acceptable


def test_hysteresis_is_reported_when_it_decided():
    """A lower bound between the limit and the limit less hysteresis passes and says so."""
    row = POLICY.resolved["accuracy"] | {"hysteresis_delta_pp": 90.0}
    policy = structs.replace(POLICY, resolved=POLICY.resolved | {"accuracy": row})
    result = compare_accuracy(examples(), examples(lost=20), policy, SETTINGS)
    assert result.decision == "pass"
    assert result.hysteresis_applied


@pytest.mark.parametrize(
    ("n", "setting"),
    [
        (199, SETTINGS),
        (200, Bootstrap(1199, 0.05, 43, PLAIN)),
        (200, Bootstrap(1200, 0.1, 43, PLAIN)),
    ],
)
def test_floors_are_required(n, setting):
    """Too few examples or replicates, or a laxer interval: not acceptable, even for a no-op."""
    result = compare_accuracy(examples(n=n), examples(n=n), POLICY, setting)
    assert result.decision == "pass"
    assert not result.acceptable
    assert compare_accuracy(examples(), examples(n=200), POLICY, SETTINGS).acceptable


def test_clusters_widen_the_interval():
    """Answers that fall together by document say less than as many independent ones."""
    paired = examples(lost=40)
    by_document = replace(paired, clusters=[f"doc-{i // 20}" for i in range(400)])
    widths = [
        r.interval.high - r.interval.low
        for r in (compare_accuracy(paired, arm, POLICY, SETTINGS) for arm in (paired, by_document))
    ]
    assert widths[1] > 1.5 * widths[0]


def test_one_cluster_is_inconclusive():
    """A single document has no interval, and absent evidence never passes."""
    arm = examples(clusters=["doc"] * 400)
    result = compare_accuracy(arm, arm, POLICY, SETTINGS)
    assert result.interval is None
    assert not result.acceptable


def test_drift_is_relative_to_the_baseline():
    """Losing a tenth on one arm alone drifts; losing it on both does not."""
    moved = compare_accuracy(examples(), examples(lost=40), POLICY, SETTINGS)
    assert moved.drift_pp == pytest.approx(-10.0)
    assert not moved.drift_ok
    assert compare_accuracy(examples(40), examples(40), POLICY, SETTINGS).drift_ok


@pytest.mark.parametrize("missing", [None, 1, "yes", float("nan")])
def test_unlabelled_examples_are_refused(missing):
    """What has no true or false is an error that names the first, in one line."""
    with pytest.raises(InputError, match="1 of 3 examples are unlabelled, first b") as error:
        labelled(["a", "b", "c"], [True, missing, False])
    assert "\n" not in str(error.value)


def test_another_number_of_answers_is_refused():
    """One answer for each example."""
    with pytest.raises(InputError, match="expected 2; found 1"):
        labelled(["a", "b"], [True])
    assert labelled(["a", "b"], [True, np.False_]).tolist() == [True, False]
