"""The tail of the per-window differences: quantiles, their bounds, and what they decide."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from scipy.stats import binom

from invarlock.metrics.perplexity import Arm
from invarlock.metrics.tail import Tail, judge_tail, judge_tails, tail_acceptable
from invarlock.policy import load_policy

POLICY = load_policy("balanced").tail
FAIL = replace(POLICY, mode="fail")


def arm(values, tokens=None, clusters=None):
    """An arm whose windows differ by ``values`` nats per token."""
    values = np.asarray(values, dtype=float)
    n = len(values)
    counts = np.full(n, 127.0) if tokens is None else np.asarray(tokens, dtype=float)
    return Arm(
        window_ids=[f"{i:016x}" for i in range(n)],
        clusters=clusters or [f"doc-{i}" for i in range(n)],
        token_counts=counts,
        subject_nll=3.0 * counts + values * counts,
        baseline_nll=3.0 * counts,
    )


def damaged(share, n=200, worse=0.5):
    """A share of the windows got worse by half a nat, the others by next to nothing."""
    return arm([worse if i < round(share * n) else 0.001 for i in range(n)])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-3, 3), st.integers(1, 9)), min_size=1, max_size=25),
    st.integers(1, 100),
)
def test_quantile_is_that_of_the_tokens(windows, percent):
    """Weights are repetitions: the quantile equals the order statistic of the repeated values."""
    values, tokens = zip(*windows, strict=True)
    repeated = np.sort(np.repeat(np.array(values) / 4, tokens))
    expected = repeated[math.ceil(percent * len(repeated) / 100) - 1]
    got = Tail.of(arm(np.array(values) / 4, tokens)).quantile(percent / 100)
    assert got == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("n", "q"), [(50, 0.95), (60, 0.95), (180, 0.95), (400, 0.9), (30, 0.5)])
def test_bounds_are_the_binomial_order_statistics(n, q):
    """With equal, independent windows the ranks are the textbook ones, found by search."""
    low = max(k for k in range(1, n + 1) if binom.cdf(k - 1, n, q) <= 0.05)
    high = [k for k in range(1, n + 1) if binom.cdf(k - 1, n, q) >= 0.95]
    ranks = np.random.default_rng(n).permutation(np.arange(1.0, n + 1))
    lower, upper = Tail.of(arm(ranks)).bounds(q)
    assert lower == pytest.approx(low)
    assert upper == (pytest.approx(high[0]) if high else None)


def test_dependent_windows_count_for_less():
    """Five equal windows of each document are worth one: the bounds move apart."""
    values = np.random.default_rng(2).normal(size=60)
    once = Tail.of(arm(values))
    copies = Tail.of(
        arm(np.repeat(values, 5), None, [f"doc-{i}" for i in range(60) for _ in "12345"])
    )
    assert once.effective_windows(0.9) == 60
    assert 55 <= copies.effective_windows(0.9) <= 61
    assert Tail.of(arm(np.repeat(values, 5))).effective_windows(0.9) == 300


def test_ties_have_no_order():
    """Equal windows in any order give the same block, and bounds that are windows."""
    values = [0.0] * 30 + [0.1] * 40 + [0.3] * 30
    tokens = np.arange(1, 101)
    turned = np.random.default_rng(0).permutation(100)
    a = judge_tail(arm(values, tokens), FAIL)
    b = judge_tail(arm(np.array(values)[turned], tokens[turned]), FAIL)
    a["stats"].pop("n_effective")
    assert a["stats"] == pytest.approx({k: b["stats"][k] for k in a["stats"]}, nan_ok=True)


@pytest.mark.parametrize(
    ("share", "violated", "reason"),
    [(0.0, False, False), (0.04, False, False), (0.06, False, True), (0.12, True, False)],
)
def test_the_lower_bound_decides(share, violated, reason):
    """A quantile just across the limit is said, one shown to be across is a violation."""
    block = judge_tail(damaged(share), FAIL)
    assert block["evaluated"] is True
    assert block["passed"] is not violated
    assert bool(block["reason"]) is reason
    assert bool(block["violations"]) is violated


@pytest.mark.parametrize(
    ("mode", "passed", "warned", "acceptable"),
    [("warn", False, True, True), ("fail", False, False, False)],
)
def test_modes(mode, passed, warned, acceptable):
    """``warn`` records the violation, ``fail`` lets it block."""
    block = judge_tail(damaged(0.2), replace(POLICY, mode=mode))
    assert (block["passed"], block["warned"]) == (passed, warned)
    assert tail_acceptable(block) is acceptable
    (violation,) = block["violations"]
    assert violation["type"] == "quantile_max_exceeded"
    assert violation["observed"] == pytest.approx(0.5)
    assert violation["threshold"] == POLICY.quantile_max


@pytest.mark.parametrize("mode", ["warn", "fail", "off"])
def test_absent_evidence_is_not_acceptable(mode):
    """No run, too few windows, losses that are no numbers, or the gate off: never acceptable."""
    policy = replace(POLICY, mode=mode)
    broken = damaged(0.0)
    broken.subject_nll[3] = math.nan
    for given_arm in (None, damaged(0.0, n=49), broken):
        block = judge_tail(given_arm, policy)
        assert block["evaluated"] is False
        assert block["passed"] is True
        assert block["reason"]
        assert not tail_acceptable(block)


def test_no_change_passes():
    """A no-op: every quantile and both bounds are exactly zero."""
    block = judge_tail(arm(np.zeros(200)), FAIL)
    stats = block["stats"]
    assert {stats[k] for k in ("max", "q50", "q99", "quantile_low", "quantile_high")} == {0.0}
    assert tail_acceptable(block)


def test_all_windows_and_slices_share_the_error():
    """A tail that the error of 5 % shows and half of it does not violates without slices alone."""
    whole = next(
        a
        for a in (damaged(k / 200) for k in range(1, 40))
        if Tail.of(a).shown_above(POLICY.quantile, POLICY.quantile_max)
    )
    assert not Tail.of(whole).shown_above(POLICY.quantile, POLICY.quantile_max, 0.975)
    short = arm([0.001] * (POLICY.min_windows - 1))
    for parts in ({}, {"short": short}):
        assert judge_tails(whole, parts, FAIL) == judge_tail(whole, FAIL)
        assert not judge_tails(whole, parts, FAIL)["passed"]
    calm = arm([0.001] * 100)
    found = judge_tails(whole, {"prose": calm, "code": calm, "short": short}, FAIL)
    assert found["passed"]
    assert {name: part["level"] for name, part in found["slices"].items()} == pytest.approx(
        {"prose": 1 - 0.05 / 4, "code": 1 - 0.05 / 4}
    )
    assert judge_tails(None, {"prose": calm}, FAIL) == judge_tail(None, FAIL)


def test_tail_mass_is_gated_where_asked():
    """More than a tenth of the tokens above epsilon is shown at a fifth, not at an eighth."""
    policy = replace(FAIL, quantile_max=9.0, epsilon=0.1, mass_max=0.1)
    assert judge_tail(damaged(0.12), policy)["passed"]
    (violation,) = judge_tail(damaged(0.2), policy)["violations"]
    assert violation["type"] == "tail_mass_exceeded"
    assert violation["observed"] == pytest.approx(0.2)
