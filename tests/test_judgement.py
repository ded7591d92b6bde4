"""From evidence to gates: which flags decide, in which tier, and who speaks."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from report_factory import (
    BASELINE,
    BOOTSTRAP,
    CALIBRATION,
    DOWN,
    PRESET,
    TOKENS,
    make_rejected,
    make_report,
    plain,
    preset_overrides,
    run_report,
    token_shift,
)

from invarlock.cli.compare_told import spoken
from invarlock.errors import ConfigError
from invarlock.guards import CHAIN
from invarlock.policy import Override, load_policy, resolve_policy
from invarlock.reporting.assurance import require_strict_possible
from invarlock.reporting.evaluation import evaluation_report
from invarlock.reporting.gates import EXPLORING_GATES, GATES
from invarlock.reporting.replay import replay
from invarlock.reporting.runs import Comparison
from invarlock.reporting.signals import guard_flags, pass_reasons
from invarlock.reporting.telemetry import telemetry_wanted
from invarlock.run.container import Execution

WORSE = 24  # windows per arm
FAIL_MODE = (Override("tail.mode", "fail", "config"),)
WEIGHT = DOWN + ".weight"


def heavy_tail(run):
    """Every arm gets a few windows that are much worse, so that the mean hardly moves."""
    for arm in run["evaluation_windows"].values():
        for row in range(WORSE):
            arm["nll_sum"][row * 7] += 0.35 * TOKENS
        arm["logloss"] = [total / TOKENS for total in arm["nll_sum"]]
    losses = run["evaluation_windows"]["preview"]["nll_sum"]
    run["work"]["bare_nll"] = [losses[row] for row in CALIBRATION]


def refused(report):
    """The gates that do not hold."""
    return [gate for gate in report["context"]["gates"] if report["validation"][gate] is not True]


def spoke(report):
    """Everyone who found something bad."""
    return {name for name, flag in guard_flags(report).items() if flag}


def test_a_clean_report_holds_every_gate():
    """All six, each from a block that was evaluated."""
    report = make_report("quant_8bit_clean", 1.004)
    assert report["context"]["gates"] == list(GATES)
    assert len(GATES) == 6
    assert refused(report) == []
    assert pass_reasons(report) == []
    assert report["assurance"]["report_local_verdict"] == "pass"
    assert spoke(report) == set()


DAMAGE = [
    ({"ratio": 1.6}, "primary_metric_acceptable", {"primary_metric", "primary_metric_tail"}),
    ({"edge": {DOWN: 1.21}}, "rmt_stable", {"rmt"}),
    ({"rank": {WEIGHT: 0.2}}, "spectral_stable", {"spectral"}),
    ({"overrides": FAIL_MODE, "subject": heavy_tail}, "primary_metric_tail_acceptable",
     {"primary_metric_tail"}),
]  # fmt: skip
COSTS = [
    lambda run: run["work"].update(trial_tokens=26000),
    lambda run: run["work"].update(bare_nll=[0.98 * nll for nll in run["work"]["bare_nll"]]),
    lambda run: run["work"].update(bare_nll=[None] * len(run["work"]["bare_nll"])),
]


@pytest.mark.parametrize(("how", "gate", "who"), DAMAGE, ids=[gate for _, gate, _ in DAMAGE])
def test_each_damage_is_seen_by_its_gate(how, gate, who):
    """Its own flag is false, the report fails, and the right one has spoken."""
    report = make_report("damaged", **({"ratio": 1.004} | how))
    assert gate in refused(report)
    assert report["assurance"]["report_local_verdict"] == "fail"
    assert spoke(report) <= who | {"drift"}
    if "ratio" not in how:
        assert refused(report) == [gate]
        assert spoke(report) == who


@pytest.mark.parametrize("cost", COSTS, ids=["work", "metric", "not finite"])
def test_the_cost_of_measuring_never_speaks_against_a_subject(cost):
    """The published flag is false and the block says why; the subject passes all the same."""
    report = make_report("dear", 1.004, subject=cost)
    assert report["validation"]["guard_overhead_acceptable"] is False
    assert report["guard_overhead"].get("decision") in ("monitor", None)
    assert "guard_overhead_acceptable" not in report["context"]["gates"]
    assert not any(
        "overhead" in lint["path"] for lint in report["meta"]["model_profile"]["cert_lints"]
    )
    assert (pass_reasons(report), spoke(report)) == ([], set())
    assert report["assurance"]["outcome"] == report["assurance"]["report_local_verdict"] == "pass"
    assert not report["guard_warnings"]["present"]  # which a verifier may be asked to refuse
    listed = [*GATES, "guard_overhead_acceptable"]  # as reports of older versions list it
    older = report | {"context": {**report["context"], "gates": listed}}
    assert pass_reasons(older) == []


@pytest.mark.parametrize(("overrides", "holds"), [((), True), (FAIL_MODE, False)])
def test_a_heavy_tail_warns_or_fails(overrides, holds):
    """The same windows: acceptable with a warning in the tier's mode, a failure where asked for."""
    report = make_report("tail", 1.001, overrides=overrides, subject=heavy_tail)
    tail = report["primary_metric_tail"]
    assert len(tail["violations"]) == 1
    assert (tail["passed"], tail["warned"]) == (False, holds)
    assert report["validation"]["primary_metric_tail_acceptable"] is holds
    assert report["validation"]["primary_metric_acceptable"] is True
    assert report["guard_warnings"]["present"] is holds
    assert (pass_reasons(report) == []) is holds


@pytest.mark.parametrize(("gain", "signal"), [(0.02, True), (0.0, False), (-0.02, False)])
def test_variance_speaks_without_blocking(gain, signal):
    """A proposed scale alone is a remark; one that is shown to help is a signal; none blocks."""
    report = make_report("ve", 1.004, spread={DOWN: 0.81}, gain=gain)
    assert list(report["variance"]["proposed_scales"]) == [DOWN]
    assert report["variance"]["signal"] is signal
    assert refused(report) == []
    assert spoke(report) == ({"variance"} if signal else set())
    assert report["guard_warnings"]["warning_count"] == 1


def test_tier_none_measures_and_decides_less():
    """Every guard is evaluated and recorded; two gates decide."""
    report = make_report("damaged", 1.004, tier="none", edge={DOWN: 3.0})
    assert report["context"]["gates"] == list(EXPLORING_GATES)
    assert report["validation"]["rmt_stable"] is False
    assert pass_reasons(report) == []


def shifted(kl: float) -> Comparison:
    """A subject as good as its baseline on the text, whose predictions moved by a mean KL."""
    moved = token_shift(0.004)
    moved = replace(moved, kl=np.full_like(moved.kl, kl))
    return Comparison(BASELINE, run_report("shifted", 0.004), BOOTSTRAP, "dev", shift=moved)


@pytest.mark.parametrize("tier", ["conservative", "balanced", "aggressive"])
def test_predictions_that_moved_are_refused_by_default(tier):
    """Exchanged rows of tokens that the windows never ask for: the ratio is 1, the mean KL 0.97."""
    policy = load_policy(tier)
    report = plain(evaluation_report(shifted(0.967), policy))
    assert report["distribution"]["gated"]
    assert report["primary_metric"]["decision"] == "pass"
    assert refused(report) == ["primary_metric_acceptable"]
    assert pass_reasons(report)[0] == "distribution_fail"
    assert "primary_metric" in spoke(report)
    assert report["assurance"]["outcome"] == "fail"
    assert replay(report) == []
    for change in ({"gated": False, "passed": True}, {"passed": True}):
        forged = report | {"distribution": report["distribution"] | change}
        assert replay(forged) != []
    limit = policy.distribution.kl_mean_max
    near = evaluation_report(shifted(limit * 0.999), policy)
    assert near["distribution"]["passed"]
    assert "distribution_fail" not in pass_reasons(near)


def test_the_limit_on_the_shift_can_be_moved_and_says_so():
    """A recorded override, which the verifier applies; tier none has no limit at all."""
    loose = resolve_policy("balanced", [Override("distribution.kl_mean_max", 0.5, "config")])
    report = plain(evaluation_report(shifted(0.4), loose))
    assert pass_reasons(report) == []
    assert report["policy_provenance"]["overrides"] == [
        {"path": "distribution.kl_mean_max", "value": 0.5, "tier_value": 0.2383, "source": "config"}
    ]
    assert replay(report) == []
    hidden = report | {"policy_provenance": report["policy_provenance"] | {"overrides": []}}
    assert any("/distribution" in line for line in replay(hidden))
    exploring = evaluation_report(shifted(5.0), load_policy("none"))
    assert not exploring["distribution"]["gated"]
    assert pass_reasons(exploring) == []


def test_a_shift_that_was_not_measured_never_passes():
    """Where there is a limit, absent evidence is not acceptable, and says nothing bad either."""
    report = evaluation_report(replace(shifted(0.0), shift=None), load_policy("balanced"))
    assert refused(report) == ["primary_metric_acceptable"]
    assert pass_reasons(report) == ["not_evaluated:distribution"]
    assert report["assurance"]["outcome"] == "inconclusive"


def test_an_unchanged_subject_shifts_nothing():
    """Exactly 0 in every number of the block."""
    shift = make_report()["distribution"]
    assert shift["kl"] == {"mean": 0.0, "p99": 0.0, "max": 0.0}
    assert shift["flips"]["count"] == 0
    assert set(shift["probability_change"].values()) == {0.0}


def test_nothing_passes_for_a_subject_that_was_not_run():
    """Absent evidence: every gate is false, and only the guard that looked has spoken."""
    report = make_rejected()
    assert refused(report) == list(GATES)
    assert spoke(report) == {"invariants", "invariants_fail"}


@pytest.mark.parametrize(
    ("thresholds", "how", "passes"),
    [
        ({"rmt.epsilon.ffn": 0.15}, {"edge": {DOWN: 1.18}}, False),
        ({"drift.max": 1.02}, {"subject": lambda run: _worse(run, "final", 0.03)}, False),
        ({"rmt.epsilon.ffn": 0.4}, {"edge": {DOWN: 1.3}}, True),
        ({"drift.max": 1.10}, {"subject": lambda run: _worse(run, "final", 0.06)}, True),
    ],
    ids=["rmt tighter", "drift tighter", "rmt looser", "drift looser"],
)
def test_a_preset_moves_thresholds_both_ways(thresholds, how, passes):
    """What the tier lets pass, a preset that knows the model better does not, or the other way
    round, within what the tier admits."""
    asked = {"overrides": preset_overrides(thresholds), "preset_sha256": PRESET}
    own, moved = make_report("moved", 1.001, **how), make_report("moved", 1.001, **how, **asked)
    assert len(refused(moved if not passes else own)) == 1
    assert pass_reasons(own if not passes else moved) == []
    (record,) = moved["policy_provenance"]["overrides"]
    assert record["tier_value"] != thresholds.popitem()[1]


@pytest.mark.parametrize(("threshold", "caps"), [(0.02, 1), (0.20, 0)])
def test_a_preset_moves_the_spectral_cap(threshold, caps):
    """sigma_max 12 % up: capped by a threshold of 2 %, not by one of 20 %, by the tier's 10 %."""
    kappa = load_policy("balanced").spectral.kappa("ffn")
    tau = preset_overrides({"spectral.tau.ffn": math.log1p(threshold) / kappa})
    report = make_report("s", 1.001, scale={WEIGHT: 1.12}, overrides=tau, preset_sha256=PRESET)
    assert report["spectral"]["caps_applied"] == caps
    assert make_report("s", 1.001, scale={WEIGHT: 1.12})["spectral"]["caps_applied"] == 1


def _worse(run, arm, nats):
    rows = run["evaluation_windows"][arm]
    rows["nll_sum"] = [total + nats * TOKENS for total in rows["nll_sum"]]
    rows["logloss"] = [total / TOKENS for total in rows["nll_sum"]]


# --- claims -----------------------------------------------------------------------------------


def test_a_strict_claim_waits_for_its_verifier():
    """A complete, deterministic and passing run claims no more than that."""
    claim = make_report(assurance="strict", profile="ci")["assurance"]
    assert (claim["report_local_verdict"], claim["verdict"]) == ("pass", "pending_verifier")
    assert claim["guard_chain_observed"] == list(CHAIN)
    assert claim["blocking_reasons"] == []


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"edge": {DOWN: 3.0}}, "rmt_stable_not_true"),
        ({"subject": lambda run: run["guards"].pop()}, "guard_chain_incomplete"),
        ({"subject": lambda run: run["meta"].update(determinism={"level": "off"})},
         "determinism_not_strict"),
    ],
)  # fmt: skip
def test_a_strict_claim_says_why_it_fails(how, reason):
    """A gate, the chain, determinism."""
    claim = make_report(assurance="strict", profile="ci", **how)["assurance"]
    assert claim["verdict"] == claim["report_local_verdict"] == "fail"
    assert claim["blocking_reasons"] == [reason]


INSIDE = Execution("image.sif", "sha256:" + "1" * 64)


@pytest.mark.parametrize(
    "asked",
    [("dev", "balanced", INSIDE), ("ci", "aggressive", INSIDE), ("ci", "none", INSIDE),
     ("release", "balanced", Execution(reason="no mark"))],
)  # fmt: skip
def test_an_impossible_claim_is_refused_before_measuring(asked):
    """Profile, tier, no container: one line each."""
    with pytest.raises(ConfigError, match="strict assurance") as caught:
        require_strict_possible(*asked)
    assert "\n" not in str(caught.value)
    require_strict_possible("ci", "balanced", INSIDE)


def test_telemetry_is_asked_for_by_its_variable():
    """Unset, empty and every way to say no ask for nothing."""
    values = dict.fromkeys(["", "0", "false", "False", "off", "OFF", "no", " No "], False)
    values |= {"1": True, "true": True, "on": True}
    assert {v: telemetry_wanted({"INVARLOCK_TELEMETRY": v}) for v in values} == values
    assert not telemetry_wanted({})


def test_the_summary_line_is_that_of_the_report():
    """One line, words with values, no time in it."""
    report = make_report("quant_8bit_clean", 1.004)
    line = report["telemetry"]["summary_line"]
    fields = dict(word.split("=") for word in line.split()[1:])
    assert line.startswith("INVARLOCK_TELEMETRY ")
    assert fields["gate"] == "pass"
    assert float(fields["ratio"]) == pytest.approx(1.004, abs=1e-4)
    assert int(fields["tokens"]) == 2 * 180 * TOKENS
    assert json.dumps(line).isascii()


def test_a_warning_is_no_guard_that_spoke() -> None:
    """A note on the kernels that ran, beside guards that found nothing."""

    def note(run):
        kernels = {"type": "dense_kernels", "severity": "warning", "message": "dense kernels"}
        run["guards"][0]["failures"] = [kernels]

    noted = make_report("noted", subject=note)
    assert guard_flags(noted)["invariants_warn"] is True
    assert spoken(noted) == []
    assert spoken(make_rejected("refused")) == ["invariants"]
