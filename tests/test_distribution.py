"""Distribution shift: the bound on the divergence, the block, and its check from the windows."""

import copy
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from invarlock.errors import MeasurementError
from invarlock.metrics.distribution import (
    CHANGE_EDGES,
    KL_EDGES,
    TokenShift,
    check,
    not_evaluated,
    summarize,
    truncated_kl,
    window_sums,
)
from invarlock.policy import DistributionPolicy

REPORTED = DistributionPolicy(None, None)
COUNTS = [40, 1, 90, 69]


def logits(seed, tokens=20, vocabulary=50, scale=3.0, moved=1.0):
    """Log-probabilities of two models on some tokens, the baseline's order best first."""
    rng = np.random.default_rng(seed)
    base = rng.normal(0, scale, (tokens, vocabulary))
    both = np.stack([base, base + rng.normal(0, moved, base.shape)])
    both -= np.log(np.exp(both).sum(axis=2, keepdims=True))
    order = np.argsort(-both[0], axis=1)
    return [np.take_along_axis(lp, order, axis=1) for lp in both]


def full_kl(base, subject):
    """KL over the whole vocabulary."""
    return (np.exp(base) * (base - subject)).sum(axis=1)


def shift(seed=0):
    """200 tokens in four windows."""
    rng = np.random.default_rng(seed)
    n = sum(COUNTS)
    return TokenShift(
        kl=np.where(rng.random(n) < 0.2, 0, 10 ** rng.uniform(-8, 2.2, n)).astype(np.float32),
        probability_change=rng.uniform(-1, 1, n).astype(np.float32),
        flips=rng.random(n) < 0.1,
        token_counts=COUNTS,
        top_k=64,
    )


def recorded(moved):
    """The columns of a report that belong to it."""
    ends = np.cumsum(moved.token_counts)[:-1]
    agreement = [int((~part).sum()) for part in np.split(moved.flips, ends)]
    return {"token_counts": COUNTS, "top1_agreement": agreement, **window_sums(moved)}


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 50), st.floats(0.1, 8), st.floats(0, 4), st.booleans())
def test_truncated_divergence_is_a_lower_bound(seed, k, scale, moved, coarse):
    """Whatever the models, K and the floor: between 0 and the full divergence."""
    base, subject = logits(seed, scale=scale, moved=moved)
    floor = 2.0**-12 if coarse else 1e-7
    bound = truncated_kl(base[:, :k], subject[:, :k], floor)
    assert (bound >= 0).all()
    assert (bound <= full_kl(base, subject) + 1e-9).all()


def test_the_whole_vocabulary_gives_the_divergence():
    """With K = vocabulary nothing is lumped together."""
    base, subject = logits(3)
    assert truncated_kl(base, subject) == pytest.approx(full_kl(base, subject), abs=1e-12)


def test_known_answer():
    """Two buckets by hand: 3/4 ln(3/4 / 1/2) + 1/4 ln(1/4 / 1/2)."""
    got = truncated_kl(np.log([[0.75]]), np.log([[0.5]]))
    assert got[0] == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("k", [1, 30, 50])
def test_no_change_is_exactly_zero(dtype, k):
    """Rounded alike, equal distributions differ by exactly nothing."""
    base = logits(1)[0][:, :k].astype(dtype)
    assert (truncated_kl(base, base.copy()) == 0.0).all()


def test_storing_float16_costs_little():
    """The error that rounding both sides makes stays below 1e-4 nats on average."""
    base, subject = logits(5, tokens=400, vocabulary=2000, moved=0.001)
    exact = truncated_kl(base[:, :64], subject[:, :64])
    stored = truncated_kl(base[:, :64].astype(np.float16), subject[:, :64].astype(np.float16))
    assert abs(stored - exact).mean() < 1e-4


def test_a_broken_subject_is_seen():
    """A token that the subject rules out is infinitely far; NaN stays NaN."""
    base, subject = logits(1, tokens=2)
    subject[0, 0], subject[1, 0] = -np.inf, np.nan
    got = truncated_kl(base[:, :4], subject[:, :4])
    assert math.isinf(got[0])
    assert math.isnan(got[1])


def test_block_by_brute_force():
    """Means, ranks and counts equal what loops over the tokens find."""
    moved = shift()
    block = summarize(moved, REPORTED)
    kl = sorted(float(v) for v in moved.kl)
    assert block["tokens"] == 200
    assert block["kl"]["mean"] == pytest.approx(sum(kl) / 200)
    assert block["kl"]["p99"] == kl[197]  # the 198th of 200
    assert block["kl"]["max"] == kl[-1]
    change = sorted(float(v) for v in moved.probability_change)
    assert [block["probability_change"][q] for q in ("q01", "q50", "q99")] == [
        change[1],
        change[99],
        change[197],
    ]
    assert block["flips"] == {"count": int(moved.flips.sum()), "fraction": moved.flips.mean()}
    bins = block["histograms"]["kl"]
    for i, count in enumerate(bins["counts"]):
        last = i == len(bins["counts"]) - 1
        low, high = KL_EDGES[i], math.inf if last else KL_EDGES[i + 1]
        assert count == sum(low <= v < high for v in kl)
    assert json.loads(json.dumps(block)) == block


def test_edges_are_documented_and_ascend():
    """From 1e-6 to 100 nats in steps 1-2-5 after the underflow; probability in steps of 0.05."""
    assert KL_EDGES[:5] == (0.0, 1e-6, 2e-6, 5e-6, 1e-5)
    assert KL_EDGES[-1] == 100.0
    assert (CHANGE_EDGES[0], CHANGE_EDGES[20], CHANGE_EDGES[-1]) == (-1.0, 0.0, 1.0)
    assert all(np.diff(KL_EDGES) > 0)
    assert len(KL_EDGES) == 26
    assert np.diff(CHANGE_EDGES) == pytest.approx(0.05)


def test_every_extreme_has_a_bin():
    """Zero, beyond the last edge, and changes of exactly -1 and 1 are counted."""
    n = len(COUNTS)
    moved = TokenShift(
        np.array([0.0, 1e-9, 250.0, 100.0]),
        np.array([-1.0, 1.0, 0.0, 1.0]),
        np.zeros(n, bool),
        [2, 2],
        64,
    )
    tables = summarize(moved, REPORTED)["histograms"]
    assert (tables["kl"]["counts"][0], tables["kl"]["counts"][-1]) == (2, 2)
    change = tables["probability_change"]["counts"]
    assert (change[0], change[20], change[-1]) == (1, 1, 2)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31))
def test_an_honest_block_agrees_with_its_windows(seed):
    """Replay finds nothing, whatever was measured."""
    moved = shift(seed)
    assert check(summarize(moved, REPORTED), recorded(moved), REPORTED) == []


def test_moved_counts_contradict_the_quantiles():
    """Counts that add up but push the tail into the first bin contradict the quantiles."""
    moved = shift()
    block = copy.deepcopy(summarize(moved, REPORTED))
    block["histograms"]["kl"]["counts"] = [200] + [0] * 24
    assert check(block, recorded(moved), REPORTED) == ["/kl/p99", "/kl/max"]


@pytest.mark.parametrize(
    ("policy", "gated", "passed"),
    [
        (DistributionPolicy(None, None), False, True),
        (DistributionPolicy(1e3, None), True, True),
        (DistributionPolicy(1e-3, None), True, False),
        (DistributionPolicy(None, 1e-3), True, False),
        (DistributionPolicy(1e3, 1.0), True, True),
    ],
)
def test_gated_only_where_the_policy_says(policy, gated, passed):
    """A limit that is None never decides; one that is exceeded does."""
    block = summarize(shift(), policy)
    assert (block["gated"], block["passed"]) == (gated, passed)


def test_numbers_that_are_none_are_no_evidence():
    """A NaN or an infinity leaves the block unevaluated, and a gate unpassed."""
    broken = shift()
    broken.kl[7] = np.inf
    assert summarize(broken, REPORTED) == not_evaluated("values that are not finite", REPORTED)
    gate = DistributionPolicy(1.0, None)
    assert summarize(broken, gate)["passed"] is False
    assert summarize(broken, REPORTED)["passed"] is True


def test_one_value_per_token_is_required():
    """Counts that do not add up are refused, and so is an empty arm."""
    with pytest.raises(MeasurementError, match="one value per token"):
        summarize(replace(shift(), token_counts=[10, 20]), REPORTED)
    nothing = np.zeros(0)
    with pytest.raises(MeasurementError, match="no predicted token"):
        summarize(TokenShift(nothing, nothing, nothing.astype(bool), [], 64), REPORTED)
