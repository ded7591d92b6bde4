"""Detector kinds, the signals of a report, and the exact interval."""

from __future__ import annotations

import copy
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_factory import make_rejected, make_report

from invarlock.reporting import signals
from invarlock.reporting.documents.scenarios import Detector
from invarlock.reporting.gates import GATES
from invarlock.verdict.detectors import DETECTOR_KINDS, evaluate_detectors
from invarlock.verdict.intervals import clopper_pearson

DOWN = "model.layers.1.mlp.down_proj.weight"
PM_FAIL = {"kind": "validation_flag", "flag": "primary_metric_acceptable", "expected": False}
DEGRADED = {"kind": "primary_metric", "field": "degraded", "expected": True}
UNSTABLE = {"kind": "validation_flag", "flag": "spectral_stable", "expected": False}
CAPS = {"kind": "spectral_caps_applied", "min": 1}
BROKEN = {"kind": "invariants_status", "allowed": ["fail", "error"]}
NEW_CAPS = {"kind": "spectral_caps_baseline_relative", "min_new_modules": 1, "min_delta_count": 1}

CLEAN, BAD = make_report("noop_clean"), make_report("x", 1.6)
CAPPED = make_report("x", 1.01, scale={DOWN: 1.5})
COLLAPSED = make_report("x", 1.01, rank={DOWN: 0.01})
REJECTED = make_rejected()
INCONCLUSIVE = make_report("x", 1.1005)


def hits(
    detector: dict[str, Any], report: dict[str, Any], noop: dict[str, Any] | None = None
) -> bool:
    """Whether the detector alone is satisfied."""
    return evaluate_detectors({"detectors_any_of": [detector]}, report, noop).satisfied


@pytest.mark.parametrize(
    ("detector", "yes", "no"),
    [
        (PM_FAIL, BAD, CLEAN),
        (UNSTABLE, COLLAPSED, CLEAN),
        (CAPS, CAPPED, CLEAN),
        (BROKEN, REJECTED, CLEAN),
        ({**UNSTABLE, "expected": True}, CAPPED, COLLAPSED),
        ({"kind": "primary_metric", "field": "decision", "expected": "fail"}, BAD, CLEAN),
        ({"kind": "spectral_caps_applied", "min": 2}, make_report("x", 1.0, scale={
            DOWN: 2.0, "model.layers.0.mlp.up_proj.weight": 2.0}), CAPPED),
    ],
)  # fmt: skip
def test_kinds(detector: dict[str, Any], yes: dict[str, Any], no: dict[str, Any]) -> None:
    """Each kind is true on a report that shows it and false on one that does not."""
    assert hits(detector, yes)
    assert not hits(detector, no)


def test_non_finite_losses_are_degraded() -> None:
    """A subject whose losses are not numbers makes the metric speak."""
    report = copy.deepcopy(CLEAN)
    report["primary_metric"] = {
        "kind": "ppl_causal", "invalid": True, "degraded": True, "degraded_reason": "non_finite_pm",
    }  # fmt: skip
    report["validation"]["primary_metric_acceptable"] = False
    assert hits(DEGRADED, report)
    assert hits(PM_FAIL, report)


@pytest.mark.parametrize("detector", [PM_FAIL, DEGRADED, UNSTABLE, CAPS])
def test_what_was_not_measured_detects_nothing(detector: dict[str, Any]) -> None:
    """A rejected subject has no metric and no spectrum, so neither can have caught it."""
    result = evaluate_detectors({"detectors_any_of": [detector]}, REJECTED)
    assert not result.satisfied
    assert "not evaluated" in result.missed[0]


def test_inconclusive_is_no_detection() -> None:
    """An interval that contains the limit neither passes nor shows harm."""
    assert INCONCLUSIVE["primary_metric"]["decision"] == "inconclusive"
    assert INCONCLUSIVE["validation"]["primary_metric_acceptable"] is False
    assert not hits(PM_FAIL, INCONCLUSIVE)
    assert signals.pass_reasons(INCONCLUSIVE) == ["primary_metric_inconclusive"]


def test_too_few_tokens_is_no_detection() -> None:
    """A metric that is refused only for lack of tokens has not shown harm."""
    report = copy.deepcopy(CLEAN)
    report["validation"]["primary_metric_acceptable"] = False
    assert not hits(PM_FAIL, report)
    assert signals.pass_reasons(report) == ["primary_metric_fail"]


def test_relative_to_the_noop() -> None:
    """Baseline-relative kinds need the no-op's report and count only what it does not show."""
    signal = {"kind": "guard_signal_baseline_relative", "guard": "spectral"}
    for detector in (NEW_CAPS, signal):
        assert hits(detector, CAPPED, CLEAN)
        assert not hits(detector, CAPPED, CAPPED)
        result = evaluate_detectors({"detectors_any_of": [detector]}, CAPPED, None)
        assert not result.satisfied
        assert result.missed[0].endswith("no no-op report")


PROBED = CLEAN | {
    "rmt": {"evaluated": True, "stable": False, "epsilon_violations": [{}, {}]},
    "variance": {"evaluated": True, "signal": True, "proposed_scales": {DOWN: 1.1}},
}
UNPROBED = CLEAN | {"rmt": {"evaluated": False, "stable": False}, "variance": {}}


@pytest.mark.parametrize(
    ("detector", "hit"),
    [
        ({"kind": "rmt_probe", "field": "stable", "expected": False}, True),
        ({"kind": "rmt_probe", "field": "stable", "expected": True}, False),
        ({"kind": "rmt_probe", "field": "epsilon_violations", "expected": 2}, True),
        ({"kind": "ve_probe", "field": "proposed_scales", "min": 1}, True),
        ({"kind": "ve_probe", "field": "proposed_scales", "min": 2}, False),
        ({"kind": "ve_probe", "field": "would_enable", "expected": True}, True),
        ({"kind": "ve_probe", "field": "signal", "expected": 1}, False),
    ],
)
def test_probes(detector: dict[str, Any], hit: bool) -> None:
    """A probe's field is compared, or counted; without evidence it is missed, and says why."""
    assert hits(detector, PROBED) is hit
    result = evaluate_detectors({"detectors_all_of": [detector]}, UNPROBED)
    assert not result.satisfied
    assert result.missed[0].endswith(": no probe evidence")


def test_any_and_all() -> None:
    """At least one of any_of and each of all_of; no detector at all is never satisfied."""
    both = {"detectors_any_of": [PM_FAIL, CAPS], "detectors_all_of": [BROKEN]}
    assert not evaluate_detectors(both, CAPPED).satisfied
    result = evaluate_detectors({**both, "detectors_all_of": []}, CAPPED)
    assert result.satisfied
    assert result.hit == ["spectral_caps_applied>=1"]
    assert result.missed[0].startswith("primary_metric_acceptable=false")
    assert not evaluate_detectors({}, BAD).satisfied


def test_kinds_are_those_of_the_contract() -> None:
    """The contract and the code know the same detector kinds."""
    kinds = [str(form.__struct_config__.tag) for form in get_args(Detector)]
    assert sorted(kinds) == sorted(DETECTOR_KINDS)


@pytest.mark.parametrize("gate", GATES)
def test_absent_gate_never_passes(gate: str) -> None:
    """Neither a flag that is missing nor a gate that was left out lets a report pass."""
    assert signals.pass_reasons(CLEAN) == []
    without_flag, without_gate = copy.deepcopy(CLEAN), copy.deepcopy(CLEAN)
    del without_flag["validation"][gate]
    without_gate["context"]["gates"].remove(gate)
    assert signals.pass_reasons(without_flag) != []
    assert signals.pass_reasons(without_gate) == [f"gate_missing:{gate}"]


def test_a_mixture_has_a_gate_more() -> None:
    """A report with routers that does not gate on them has not been judged."""
    mixture = CLEAN | {"moe": {"evaluated": True}}
    assert signals.pass_reasons(mixture) == ["gate_missing:moe_identity_ok"]


def test_only_tier_none_asks_for_less() -> None:
    """A report of a tier that does not exist is asked for every gate; tier none for two."""
    exploring = make_report(tier="none")
    assert signals.pass_reasons(exploring) == []
    claimed = exploring | {"auto": {"tier": "balanced"}}
    assert len(signals.pass_reasons(claimed)) == len(GATES) - 2
    assert len(signals.pass_reasons(exploring | {"auto": {"tier": "x"}})) == 4


@pytest.mark.parametrize("value", [1, "true", None])
def test_true_means_true(value: object) -> None:
    """A flag that is only truthy does not pass."""
    report = copy.deepcopy(CLEAN)
    report["validation"]["spectral_stable"] = value
    assert signals.pass_reasons(report) != []


def test_empty_report_says_nothing() -> None:
    """A report without sections passes no gate and raises no signal."""
    assert len(signals.pass_reasons({})) == len(GATES)
    assert not any(signals.guard_flags({}).values())


@given(n=st.integers(1, 400), data=st.data(), level=st.sampled_from([0.8, 0.95, 0.99]))
@settings(max_examples=60, deadline=None)
def test_interval_against_scipy(n: int, data: st.DataObject, level: float) -> None:
    """The Clopper-Pearson bounds equal scipy's."""
    from scipy.stats import binomtest

    k = data.draw(st.integers(0, n))
    expected = binomtest(k, n).proportion_ci(level, method="exact")
    assert clopper_pearson(k, n, level) == pytest.approx(
        (expected.low, expected.high), rel=1e-7, abs=1e-9
    )


def test_interval_by_hand() -> None:
    """Nine of nine: the lower bound is the ninth root of 0.025; nothing seen: no interval."""
    assert clopper_pearson(9, 9) == pytest.approx((0.025 ** (1 / 9), 1.0), rel=1e-12)
    assert clopper_pearson(0, 0) is None
    with pytest.raises(ValueError, match="k=3, n=2"):
        clopper_pearson(3, 2)
