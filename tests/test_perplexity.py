"""The primary metric and its three-way decision."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from invarlock.metrics.bootstrap import Interval
from invarlock.metrics.perplexity import Arm, Bootstrap, compare, decide, windows_needed
from invarlock.policy import load_policy, tier_names

POLICY = load_policy("balanced")
SETTINGS = Bootstrap(replicates=1200, alpha=0.05, seed=43)


def arm(n=180, shift=0.0, tokens=143, spread=0.0, seed=0):
    """An arm whose subject loses ``shift`` nats per token more than the baseline."""
    rng = np.random.default_rng(seed)
    counts = np.full(n, float(tokens))
    base = counts * rng.normal(3.2, 0.4, n)
    return Arm(
        window_ids=[f"{i:016x}" for i in range(n)],
        clusters=[f"doc-{i}" for i in range(n)],
        token_counts=counts,
        subject_nll=base + counts * (shift + rng.normal(0, spread, n)),
        baseline_nll=base,
    )


def test_ratio_is_the_quotient_of_perplexities():
    """exp(delta) and ppl_s / ppl_b are one number."""
    final = arm(shift=0.03, spread=0.02)
    result = compare(arm(seed=1), final, POLICY, SETTINGS)
    assert math.exp(result.delta) == pytest.approx(result.final / result.baseline_final, rel=1e-12)


def test_known_answer():
    """Two windows by hand: perplexity weighs tokens, not windows."""
    a = Arm(["a", "b"], ["x", "y"], np.array([1.0, 3.0]), np.array([2.0, 3.0]), np.ones(2))
    assert a.perplexity(a.subject_nll) == pytest.approx(math.exp(5 / 4))


def test_identical_runs_pass_at_exactly_one():
    """A no-op: ratio 1, interval [1, 1], drift 1, acceptable."""
    result = compare(arm(seed=1), arm(), POLICY, SETTINGS)
    assert (result.delta, result.interval.low, result.interval.high) == (0.0, 0.0, 0.0)
    assert result.drift == 1.0
    assert result.acceptable


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.01, 0.05, "pass"), (0.05, 0.12, "inconclusive"), (0.11, 0.2, "fail"), (0.1, 0.1, "pass")],
)
def test_decision_is_three_way(low, high, expected):
    """Below the limit, across it, above it; the limit itself passes."""
    interval = Interval((low + high) / 2, low, high, 0.01, 10)
    assert decide((low + high) / 2, interval, 0.1) == expected


def test_no_interval_is_inconclusive():
    """Absent evidence never passes."""
    assert decide(0.0, None, 0.1) == "inconclusive"


@given(st.floats(0.001, 0.2), st.floats(0.0, 0.3), st.floats(0.01, 0.3))
def test_windows_needed_would_settle_it(half, delta, limit):
    """With that many windows a half-width that shrinks as 1/sqrt(n) no longer reaches the limit."""
    interval = Interval(delta, delta - half, delta + half, half / 2, 50)
    needed = windows_needed(delta, interval, limit, 100)
    if delta == limit:
        assert needed is None
    else:
        assert half * math.sqrt(100 / needed) <= abs(limit - delta)


def test_inconclusive_says_how_many_windows():
    """An interval across the limit is not acceptable and names a larger number."""
    result = compare(arm(seed=1), arm(shift=0.09, spread=0.5), POLICY, SETTINGS)
    assert result.decision == "inconclusive"
    assert not result.acceptable
    assert result.windows_needed > 180


@pytest.mark.parametrize(
    ("preview", "final", "replicates"), [(179, 181, 1200), (181, 179, 1200), (180, 180, 1199)]
)
def test_floors_are_required(preview, final, replicates):
    """One window or one replicate below the tier's floor is not acceptable, even for a no-op."""
    result = compare(arm(preview, seed=1), arm(final), POLICY, Bootstrap(replicates, 0.05, 43))
    assert result.decision == "pass"
    assert not result.acceptable


def test_token_floor_is_required():
    """Enough windows of too few tokens are not acceptable."""
    result = compare(arm(tokens=138, seed=1), arm(tokens=138), POLICY, SETTINGS)
    assert not result.tokens_ok
    assert not result.acceptable


def test_drift_is_relative_to_the_baseline():
    """Arms that differ for both runs alike do not drift; a subject that changes does."""
    easy, hard = arm(seed=1), arm(seed=2)
    assert compare(easy, hard, POLICY, SETTINGS).drift == 1.0
    moved = compare(easy, arm(shift=0.06), POLICY, SETTINGS)
    assert moved.drift == pytest.approx(math.exp(0.06))
    assert not moved.drift_ok


def test_hysteresis_is_reported_when_it_decided():
    """An upper bound between the limit and the limit plus hysteresis passes and says so."""
    shift = math.log(1.101)
    result = compare(arm(shift=shift, seed=1), arm(shift=shift), POLICY, SETTINGS)
    assert result.decision == "pass"
    assert result.hysteresis_applied


def test_tiers_are_the_published_ones():
    """The constants that reports are judged by."""
    assert tier_names() == ["balanced", "conservative", "aggressive", "none"]
    limits = [load_policy(t).pm_ratio.ratio_limit_base for t in tier_names()]
    assert limits == [1.10, 1.05, 1.20, 1.10]
    floors = [load_policy(t).pm_ratio.min_tokens for t in tier_names()]
    assert floors == [50000, 20000, 50000, 0]


def test_a_laxer_interval_is_not_acceptable():
    """An interval of 90 % instead of 95 % is narrower, and is refused even for a no-op."""
    result = compare(arm(seed=1), arm(), POLICY, Bootstrap(1200, 0.10, 43))
    assert result.decision == "pass"
    assert not result.acceptable
