"""The variance guard: which scales it proposes, and when it has spoken."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from report_factory import make_report

from invarlock.guards.rmt import Activation
from invarlock.guards.variance import (
    Trial,
    Variance,
    judge,
    propose,
    targets,
    trial_from,
    trial_json,
)
from invarlock.policy import load_policy, tier_names

POLICY = load_policy("balanced").variance
WINDOWS, TOKENS = 72, 127


def run(*variances):
    """Targets with these output variances."""
    return [
        Activation(f"model.layers.{i}.mlp.down_proj", "ffn", i, 1.0, v)
        for i, v in enumerate(variances)
    ]


def trial(change, clusters=40):
    """Held-out windows whose loss changes by ``change`` (windows,) nats a token."""
    rng = np.random.default_rng(3)
    plain = rng.uniform(2.5, 3.5, WINDOWS) * TOKENS
    return Trial(
        window_ids=[f"{i:016x}" for i in range(WINDOWS)],
        clusters=[f"doc-{i % clusters}" for i in range(WINDOWS)],
        token_counts=[TOKENS] * WINDOWS,
        plain_nll=plain.tolist(),
        scaled_nll=(plain + np.asarray(change) * TOKENS).tolist(),
    )


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.1, 9.0), st.floats(0.1, 9.0)), min_size=1, max_size=8),
    st.integers(0, 3),
)
def test_proposals_against_brute_force(pairs, most):
    """sqrt(baseline / subject) outside the deadband, the farthest from 1 first, at most so many."""
    base, mine = run(*[b for b, _ in pairs]), run(*[s for _, s in pairs])
    policy = replace(POLICY, max_adjusted_modules=most)
    scales = [(math.sqrt(b / s), f"model.layers.{i}.mlp.down_proj")
              for i, (b, s) in enumerate(pairs)]  # fmt: skip
    outside = sorted((-abs(math.log(s)), n) for s, n in scales if abs(s - 1) > 0.02)
    expected = {n for _, n in outside[: most or len(outside)]}
    found = propose(base, mine, policy)
    assert set(found) == expected
    assert all(v == pytest.approx(dict(map(reversed, scales))[n]) for n, v in found.items())


@pytest.mark.parametrize("lost", [0.0, math.inf, math.nan])
def test_no_scale_mends_what_is_not_a_number(lost):
    """A vanished or infinite variance is for the other gates."""
    assert propose(run(1.0), run(lost), POLICY) == {}
    assert propose(run(lost), run(1.0), POLICY) == {}


def test_targets_leave_a_feed_forward_block():
    """By family; of a report whose run watched every projection by name, where attention's of the
    same name is none."""
    output = Activation("bert.encoder.layer.0.output.dense", "ffn", 0, 1.0, 1.0)
    attention = Activation("bert.encoder.layer.0.attention.output.dense", "attn", 0, 1.0, 1.0)
    inside = Activation("bert.encoder.layer.0.intermediate.dense", "ffn", 0, 1.0, 1.0)
    experts = Activation("model.layers.0.mlp.experts", "expert", 0, 1.0, 1.0)
    mixture = Activation("model.layers.0.mlp", "expert", 0, 1.0, 1.0)
    assert targets([output, attention, mixture], None) == [output, mixture]
    assert targets([output, attention, inside, experts], "output.dense") == [output, experts]


@pytest.mark.parametrize(
    ("gain", "spread", "reason", "spoke"),
    [
        (0.02, 0.02, "ci_gain_met", True),
        (0.001, 0.05, "ci_contains_zero", False),
        (-0.02, 0.02, "mean_not_negative", False),
        (0.0, 0.0, "mean_not_negative", False),
    ],
)
def test_the_guard_speaks_when_a_scale_is_shown_to_help(gain, spread, reason, spoke):
    """A gain, one that may be none, a loss, and nothing."""
    noise = np.random.default_rng(8).normal(0.0, spread, WINDOWS)
    block = judge(run(1.0), run(0.8), trial(noise - noise.mean() - gain), POLICY)
    assert (block["predictive_gate"]["reason"], block["signal"]) == (reason, spoke)


def test_a_gain_below_the_least_is_not_enough():
    """A tier may ask for more than more than nothing."""
    policy = replace(POLICY, min_effect_lognll=0.016)
    noise = np.random.default_rng(8).normal(0.0, 0.005, WINDOWS)
    block = judge(run(1.0), run(0.8), trial(noise - 0.01), policy)
    assert block["predictive_gate"]["reason"] == "gain_below_threshold"
    assert not block["signal"]


def test_the_gate_is_one_sided_at_its_level():
    """Without an effect it passes in about 5 % of 1000 trials.

    Clustered windows, skewed noise. Counts outside 30 to 72 have probability 0.004 at a true
    level of 5 %; a bound at 2.5 % would give 25, one at 10 % would give 100.
    """
    rng, passed = np.random.default_rng(17), 0
    for _ in range(1000):
        shared = rng.normal(0.0, 0.02, 40)[np.arange(WINDOWS) % 40]
        own = rng.gamma(4.0, 0.01, WINDOWS) - 0.04
        passed += judge(run(1.0), run(0.8), trial(shared + own), POLICY)["signal"]
    assert 30 <= passed <= 72


@pytest.mark.parametrize("tier", tier_names())
@pytest.mark.parametrize("lost", [None, math.nan])
def test_it_never_blocks(tier, lost):
    """Whatever it finds, in every tier: the damage itself is for the other gates."""
    policy = load_policy(tier).variance
    change = np.full(WINDOWS, -0.5)
    change[0] = change[0] if lost is None else lost
    for tried in (None, trial(change)):
        block = judge(run(1.0, 1.0), run(0.25, 0.25), tried, policy)
        assert block["passed"] is True
        assert block["decision"] == "monitor"
        assert block["enabled"] is False
        assert block["signal"] is (tried is not None and lost is None)


def test_quiet_without_a_trial_or_scales():
    """Nothing proposed, nothing tried, one document only: no signal, and the reason says which."""
    improved = trial(np.full(WINDOWS, -0.5))
    alone = trial(np.full(WINDOWS, -0.5), clusters=1)
    gates = [
        judge(run(1.0), run(subject), tried, POLICY)["predictive_gate"]
        for subject, tried in ((0.99, improved), (0.8, None), (0.8, alone))
    ]
    assert [gate["reason"] for gate in gates] == [
        "no_scales",
        "insufficient_coverage",
        "insufficient_coverage",
    ]
    assert not any(gate["evaluated"] or gate["passed"] for gate in gates)


def test_a_trial_reads_back():
    """Losses that are not finite are null in the record."""
    change = np.zeros(WINDOWS)
    change[2] = math.nan
    recorded = trial_json(trial(change))
    assert recorded["scaled_nll"][2] is None
    back = trial_from(recorded)
    assert math.isnan(back.scaled_nll[2])
    assert back.plain_nll == trial(change).plain_nll


def test_scales_are_tried_but_where_another_program_runs_the_model():
    """Without a trial a report of the library's own run hides something."""
    report = make_report()
    report["variance"] |= {"trial": None, "proposed_scales": {"model.layers.0.mlp.down_proj": 1.2}}
    assert [line for line in Variance().impossible(report) if "trial is missing" in line]
    report["meta"]["execution"] = {"backend": "llama.cpp"}
    assert not list(Variance().impossible(report))
    report["meta"]["execution"] = {"backend": "transformers"}
    assert list(Variance().impossible(report))
