"""Tiers, and what may be overridden and how far."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from invarlock.errors import ConfigError
from invarlock.guards import GUARDS
from invarlock.metrics.accuracy import AccuracyPolicy
from invarlock.metrics.kinds import METRICS
from invarlock.policy import (
    MEMBERS,
    Override,
    bounds_of,
    check_profile,
    load_policy,
    resolve_policy,
    tier_names,
)
from invarlock.roles import FAMILIES

STRICTNESS = ("conservative", "balanced", "aggressive")
LOW, HIGH = bounds_of("balanced")["rmt.epsilon"]


def tau(change: float, family: str = "ffn", tier: str = "balanced") -> Override:
    """The override that puts the spectral threshold of a family at a relative change."""
    kappa = load_policy(tier).spectral.kappa(family)
    return Override(f"spectral.tau.{family}", math.log1p(change) / kappa, "preset:x")


def test_published_constants():
    """The constants of the published table that reports are judged by."""
    policies = [load_policy(tier) for tier in STRICTNESS]
    assert [p.tail.quantile_max for p in policies] == [0.12, 0.20, 0.30]
    assert {(p.tail.mode, p.tail.min_windows, p.tail.quantile) for p in policies} == {
        ("warn", 50, 0.95)
    }
    assert {(p.tail.epsilon, p.tail.mass_max) for p in policies} == {(1e-4, 1.0)}
    accuracies = [AccuracyPolicy.of(policy) for policy in policies]
    assert [a.delta_min_pp for a in accuracies] == [-0.5, -1.0, -2.0]
    assert {(a.min_examples, a.hysteresis_delta_pp) for a in accuracies} == {(200, 0.1)}
    assert [p.variance.deadband for p in policies] == [0.03, 0.02, 0.12]
    assert [p.variance.min_effect_lognll for p in policies] == [0.016, 0.0, 0.033]
    assert {p.overhead.threshold for p in policies} == {0.01}
    assert {p.confidence.ppl_ratio_width_max for p in policies} == {0.03}
    assert {p.confidence.accuracy_delta_pp_width_max for p in policies} == {1.0}
    assert [p.distribution.kl_mean_max for p in policies] == [0.122, 0.2383, 0.4558]
    for policy in policies:  # derived from the limit on the metric
        limit = policy.pm_ratio.ratio_limit_base
        assert policy.distribution.kl_mean_max == round(2.5 * math.log(limit), 4)


def test_tiers_are_ordered():
    """A stricter tier is nowhere looser in what a subject may change."""
    for a, b in (("conservative", "balanced"), ("balanced", "aggressive")):
        strict, loose = load_policy(a), load_policy(b)
        assert strict.pm_ratio.ratio_limit_base < loose.pm_ratio.ratio_limit_base
        assert strict.spectral.deadband < loose.spectral.deadband
        assert strict.rmt.epsilon_default < loose.rmt.epsilon_default
        assert strict.moe.entropy_drop_max <= loose.moe.entropy_drop_max
        for name, (_, ceiling) in bounds_of(a).items():
            assert ceiling <= bounds_of(b)[name][1]


def test_tier_none_is_for_exploring():
    """No floors, the guards decide nothing, and their thresholds are those of balanced."""
    none, balanced = load_policy("none"), load_policy("balanced")
    assert not none.enforce_guards
    assert balanced.enforce_guards
    least = none.coverage
    floors = (none.pm_ratio.min_tokens, least.preview, least.final, least.replicates)
    assert floors == (0, 0, 0, 0)
    assert AccuracyPolicy.of(none).min_examples == 0
    assert (none.pm_ratio.ratio_limit_base, none.pm_ratio.hysteresis_ratio) == (1.10, 0.002)
    assert (none.spectral, none.rmt, none.variance) == (
        balanced.spectral,
        balanced.rmt,
        balanced.variance,
    )


def test_every_family_of_the_roles_has_a_cap():
    """A family without a row could not be overridden."""
    assert set(load_policy("balanced").spectral.family_caps) == set(FAMILIES)


@pytest.mark.parametrize("tier", tier_names())
def test_a_tiers_own_values_lie_within_its_bounds(tier: str) -> None:
    """What a preset may set includes what holds without one."""
    policy, bounds = load_policy(tier), bounds_of(tier)
    own = {
        "spectral.threshold": policy.spectral.deadband,
        "rmt.epsilon": policy.rmt.epsilon_default,
        "representation.limit": policy.representation.limit("attention"),
        "drift.half_width": policy.drift.max - 1,
    }
    if tier != "none":
        own["distribution.kl_mean_max"] = policy.distribution.kl_mean_max
    unlimited = {name for name in bounds if name.startswith("distribution.")}
    assert set(bounds) == set(own) | unlimited
    assert policy.distribution.flip_fraction_max is None
    for name, value in own.items():
        assert bounds[name][0] <= value <= bounds[name][1]


@pytest.mark.parametrize("tier", tier_names())
def test_every_row_of_the_table_is_read(tier: str) -> None:
    """By the policy itself, or by the guard or kind of metric that it is the limits of."""
    owners = {g.policy_key for g in GUARDS} | {kind.limits for kind in METRICS.values()}
    assert set(load_policy(tier).resolved) <= MEMBERS | owners


def test_unknown_tier_and_profile_are_refused_with_a_guess():
    """A misspelt word names the near one; nothing falls back to balanced."""
    with pytest.raises(ConfigError, match="agressive") as error:
        load_policy("agressive")
    assert "did you mean aggressive" in str(error.value)
    with pytest.raises(ConfigError, match="relase") as error:
        check_profile("relase")
    assert "did you mean release" in str(error.value)
    assert check_profile("ci") == "ci"


def test_overrides_change_the_policy_and_its_digest():
    """Each override is in force, in the resolved row, in the digest and in the record."""
    overrides = (
        tau(0.05),
        Override("rmt.epsilon.attn", LOW, "preset:x"),
        Override("drift.min", 0.98, "preset:x"),
        Override("drift.max", 1.02, "preset:x"),
        Override("tail.mode", "fail", "config"),
    )
    own, policy = load_policy("balanced"), resolve_policy("balanced", overrides)
    assert policy.spectral.kappa("ffn") * policy.spectral.tau("ffn") == pytest.approx(
        math.log(1.05)
    )
    assert policy.spectral.tau("attn") == own.spectral.tau("attn")
    assert (policy.rmt.epsilon("attn"), policy.rmt.epsilon("ffn")) == (LOW, own.rmt.epsilon("ffn"))
    assert (policy.drift.min, policy.drift.max, policy.tail.mode) == (0.98, 1.02, "fail")
    assert policy.resolved["rmt"]["epsilon_by_family"] == {"attn": LOW}
    assert policy.resolved["pm_tail"]["mode"] == "fail"
    digests = {resolve_policy("balanced", overrides[:n]).digest for n in range(6)}
    assert len(digests) == 6
    records = {r["path"]: r for r in policy.override_records()}
    assert records["rmt.epsilon.attn"] == {
        "path": "rmt.epsilon.attn",
        "value": LOW,
        "tier_value": own.rmt.epsilon("attn"),
        "source": "preset:x",
    }
    assert records["tail.mode"]["tier_value"] == "warn"
    assert records["spectral.tau.ffn"]["tier_value"] == own.spectral.tau("ffn")
    assert load_policy("balanced") == own, "an override leaked into the tier"


@pytest.mark.parametrize(
    "override",
    [
        tau(0.2001),
        tau(0.0199),
        tau(0.15, tier="conservative"),
        Override("rmt.epsilon.ffn", HIGH + 1e-4, "x"),
        Override("rmt.epsilon.ffn", LOW - 1e-4, "x"),
        Override("rmt.epsilon.ffn", math.nan, "x"),
        Override("rmt.epsilon.ffn", math.inf, "x"),
        Override("rmt.epsilon.ffn", "0.1", "x"),
        Override("rmt.epsilon.ffn", True, "x"),
        Override("spectral.tau.ffn", 1e300, "x"),
        Override("drift.min", 0.89, "x"),
        Override("drift.min", 1.02, "x"),
        Override("drift.max", 1.11, "x"),
        Override("drift.max", 0.98, "x"),
        Override("tail.mode", "off", "x"),
        Override("tail.mode", "warn", "x"),
    ],
    ids=lambda o: f"{o.path}={o.value}",
)
def test_values_outside_the_bounds_are_refused(override: Override) -> None:
    """Neither looser nor tighter than the tier admits, and nothing that is no number."""
    tier = "conservative" if override == tau(0.15, tier="conservative") else "balanced"
    with pytest.raises(ConfigError, match="outside what tier"):
        resolve_policy(tier, [override])


@pytest.mark.parametrize(
    "path",
    ["pm_ratio.ratio_limit_base", "spectral.tau.fnn", "spectral.max_caps", "drift.mid", "rmt",
     "spectral.tau.", "enforce_guards", "tail.quantile_max", ""],
)  # fmt: skip
def test_other_paths_cannot_be_overridden(path: str) -> None:
    """What the tier does not name as adjustable stays."""
    with pytest.raises(ConfigError, match="cannot be overridden"):
        resolve_policy("balanced", [Override(path, 0.05, "x")])


def test_a_path_is_overridden_once():
    """Two values for one threshold are a contradiction."""
    twice = [Override("drift.max", v, "x") for v in (1.02, 1.03)]
    with pytest.raises(ConfigError, match="twice"):
        resolve_policy("balanced", twice)


@given(st.sampled_from(tier_names()), st.floats(0, 1), st.sampled_from(sorted(FAMILIES)))
def test_no_override_is_looser_than_the_tier_admits(tier: str, value: float, family: str) -> None:
    """Whatever is accepted keeps the bounds of the tier's table."""
    bounds = bounds_of(tier)
    for path, name in (("spectral.tau", "spectral.threshold"), ("rmt.epsilon", "rmt.epsilon")):
        try:
            policy = resolve_policy(tier, [Override(f"{path}.{family}", value, "x")])
        except ConfigError:
            continue
        spectral = math.expm1(policy.spectral.kappa(family) * policy.spectral.tau(family))
        found = spectral if path == "spectral.tau" else policy.rmt.epsilon(family)
        low, high = bounds[name]
        assert low * (1 - 1e-8) <= found <= high * (1 + 1e-8)


def test_a_limit_on_the_shift_of_predictions_can_be_set() -> None:
    """Tighter or looser, within bounds: a negative one, or one that is no gate, is refused."""
    for value in (0.02, 0.7):
        limit = Override("distribution.kl_mean_max", value, "config")
        limited = resolve_policy("balanced", [limit])
        assert limited.distribution.kl_mean_max == value
        assert limited.digest != load_policy("balanced").digest
        assert limited.override_records()[0]["tier_value"] == 0.2383
    exploring = resolve_policy("none", [Override("distribution.kl_mean_max", 5.0, "config")])
    assert exploring.override_records()[0]["tier_value"] is None
    for value in (-1.0, 0.97, 1e9):
        with pytest.raises(ConfigError, match="kl_mean_max"):
            resolve_policy("balanced", [Override("distribution.kl_mean_max", value, "config")])
