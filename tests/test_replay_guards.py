"""Verification of what guards, policy and summaries say: no number of them can be changed alone."""

from __future__ import annotations

import copy
import math

import pytest
from report_factory import (
    BASELINE,
    BOOTSTRAP,
    DOWN,
    PRESET,
    make_crashed,
    make_rejected,
    make_report,
    plain,
    preset_overrides,
    run_report,
    token_shift,
)
from test_replay import altered

from invarlock.evidence.consistency import _rows_left_out
from invarlock.evidence.report_verify import ReportOptions, verify_report
from invarlock.files import canonical_json
from invarlock.policy import load_policy
from invarlock.reporting.evaluation import evaluation_report
from invarlock.reporting.replay import replay
from invarlock.reporting.runs import Comparison

TAU = math.log1p(0.03) / load_policy("balanced").spectral.kappa("attn")
OVERRIDES = preset_overrides({"rmt.epsilon.ffn": 0.15, "spectral.tau.attn": TAU})
ROUTERS = {
    "name": ["model.layers.0.mlp.gate"],
    "layer": [0],
    "tokens": [1000],
    "entropy": [1.2],
    "dead": [[]],
    "utilization": [[0.5, 0.25, 0.25]],
    "top_k": 2,
}
FULL = make_report(
    "full",
    1.004,
    spread={DOWN: 0.81},
    gain=0.02,
    edge={DOWN: 1.1},
    overrides=OVERRIDES,
    preset_sha256=PRESET,
)


def contradictions(report):
    """Everything that verification finds wrong with a report."""
    return replay(report)


def verified(report, profile="dev"):
    """The messages of the whole verification of a report, without a runtime manifest."""
    options = ReportOptions(profile=profile, require_replay=True)
    return [f.message for f in verify_report(canonical_json(report), None, "r", options).findings]


def mixture():
    """The report of a mixture of experts."""
    runs = [run | {"routers": ROUTERS} for run in (BASELINE, run_report("mixture", 0.004))]
    comparison = Comparison(*runs, BOOTSTRAP, "dev", shift=token_shift(0.004))
    return plain(evaluation_report(comparison, load_policy("balanced")))


def accuracy(**how):
    """The report of labelled examples: 180 of each arm, of which the subject loses one."""
    runs = [copy.deepcopy(BASELINE), run_report("accuracy", 0.004)]
    for number, run in enumerate(runs):
        run["meta"] |= {"metric": "accuracy"}
        for arm in run["evaluation_windows"].values():
            arm["correct"] = [i % 4 != 0 and i != 2 * number - 1 for i in range(180)]
    comparison = Comparison(*runs, BOOTSTRAP, "dev", shift=token_shift(0.004))
    return plain(evaluation_report(comparison, load_policy("none")))


@pytest.mark.parametrize(
    "report",
    [FULL, mixture(), accuracy(), make_report(tier="none"), make_report(tier="conservative"),
     make_rejected(), make_crashed(), make_report(assurance="strict", profile="ci")],
    ids=["full", "mixture", "accuracy", "none", "conservative", "rejected", "crashed", "strict"],
)  # fmt: skip
def test_true_reports_have_no_contradictions(report):
    """Every kind of report as it is written."""
    assert contradictions(report) == []


NUMBERS = [
    ("/rmt/modules/edge/3", lambda v: v * 1.3),
    ("/rmt/modules/baseline_edge/3", lambda v: v * 0.5),
    ("/rmt/modules/name/3", "model.layers.9.mlp.up_proj"),
    ("/rmt/modules/family/3", "embed"),
    ("/rmt/calibration/window_ids/0", "0" * 16),
    ("/rmt/calibration/window_ids/1", FULL["rmt"]["calibration"]["window_ids"][0]),
    ("/rmt/calibration/windows", 9),
    ("/rmt/calibration/tokens", 0),
    ("/rmt/measurement_contract/estimator/residual_tolerance", 0.5),
    ("/variance/modules/variance/1", lambda v: v * 1.2),
    ("/variance/modules/baseline_variance/1", lambda v: v * 0.8),
    ("/variance/modules/name/1", "model.layers.7.mlp.down_proj"),
    ("/variance/tap", "up_proj"),
    ("/variance/trial/scaled_nll/5", lambda v: v + 9.0),
    ("/variance/trial/token_counts/5", 143),
    ("/variance/trial/window_ids/5", FULL["rmt"]["calibration"]["window_ids"][0]),
    ("/variance/trial/window_ids/5", FULL["evaluation_windows"]["final"]["window_ids"][0]),
    ("/variance/trial", None),
    ("/variance/evaluated", False),
    ("/evaluation_windows/final/kl_sum/3", lambda v: v + 1.0),
    ("/evaluation_windows/final/probability_change_sum/3", lambda v: v + 1.0),
    ("/evaluation_windows/final/top1_agreement/3", lambda v: v - 1),
    ("/distribution/kl/mean", 0.0),
    ("/distribution/kl/p99", 0.0),
    ("/distribution/kl/max", 90.0),
    ("/distribution/flips/count", 0),
    ("/distribution/probability_change/mean", 0.0),
    ("/distribution/probability_change/q05", 0.5),
    ("/distribution/histograms/kl/counts/20", lambda v: v + 1),
    ("/distribution/histograms/kl/edges/3", 7.0),
    ("/distribution/histograms/probability_change/counts/3", lambda v: v + 1),
    ("/distribution/tokens", 1),
    ("/distribution/passed", False),
    ("/distribution/gated", False),
    ("/distribution", {"evaluated": False, "reason": "lost", "gated": False, "passed": True}),
    ("/policy_provenance/preset_sha256", None),
    ("/policy_provenance/preset_sha256", "f" * 64),
    ("/policy_provenance/overrides", []),
    ("/policy_provenance/overrides/0/value", 0.2),
    ("/policy_provenance/overrides/0/source", "config"),
    ("/policy_provenance/overrides/0/source", "preset:" + "f" * 12),
    ("/context/execution_log/2/guard", "spectral"),
    ("/context/execution_log", []),
]


@pytest.mark.parametrize(("pointer", "change"), NUMBERS, ids=[f"{p}#{i}" for i, (p, _) in
                                                             enumerate(NUMBERS)])  # fmt: skip
def test_one_changed_value_is_found(pointer, change):
    """Each new number, name, digest or decision, changed alone."""
    assert contradictions(altered(FULL, pointer, change)) != []


EXCHANGED = make_report("exchanged", 1.004, rows=32)
ROWS = [
    ("/spectral/row_tables", []),
    ("/spectral/row_tables/0/above", []),
    ("/spectral/row_tables/0/above/7", 31),
    ("/spectral/row_tables/0/typical", 0.5),
    ("/spectral/row_tables/0/typical", lambda v: v + 1e-4),
    ("/spectral/row_tables/0/rows", 321),
    ("/spectral/row_tables/0/kind", "other"),
    ("/spectral/row_tables/0/transform", "rotation"),
    ("/spectral/row_tables/0/listed", []),
    ("/spectral/row_tables/0/listed/3/change", 0.1),
    ("/spectral/row_tables/0/listed/3/token", " another"),
    ("/spectral/row_tables/0/listed/3/nearest_change", 9.0),
    ("/spectral/row_tables/0/listed/3/row", 300),
]


def test_exchanged_rows_are_told_and_replayed():
    """A finding, a warning that names tokens, a gate that does not hold; all of it follows."""
    assert contradictions(EXCHANGED) == []
    assert EXCHANGED["validation"]["spectral_stable"] is False
    [warning] = EXCHANGED["guard_warnings"]["warnings"]
    assert (warning["kind"], warning["policy_gate"]) == ("token_rows", "fail")
    assert "32 of 320 token rows" in warning["message"]
    assert "40 ' t0' (now closest to 41 ' t')" in warning["message"]


@pytest.mark.parametrize(("pointer", "change"), ROWS, ids=[f"{p}#{i}" for i, (p, _) in
                                                           enumerate(ROWS)])  # fmt: skip
def test_one_changed_value_of_the_rows_is_found(pointer, change):
    """What was counted, listed and decided of them, each changed alone."""
    assert contradictions(altered(EXCHANGED, pointer, change)) != []


def test_the_rows_of_an_embedding_cannot_be_left_out():
    """The baseline's description says how many there are."""
    report = altered(EXCHANGED, "/spectral/modules/family/0", "embed")
    name = report["spectral"]["modules"]["name"][0]
    report["spectral"]["row_tables"][0]["name"] = name
    told = {size: list(_rows_left_out(report, {name: [size, 16]})) for size in (12, 320, 384)}
    assert (told[12], told[320], len(told[384])) == ([], [], 1)
    report["spectral"]["row_tables"][0]["baseline_only"] = 64
    assert list(_rows_left_out(report, {name: [384, 16]})) == []
    report["spectral"]["row_tables"] = []
    assert len(list(_rows_left_out(report, {name: [384, 16]}))) == 1


LOOSER = [
    ("rmt.epsilon.ffn", 0.9),
    ("spectral.tau.attn", 1.0),
    ("drift.max", 1.5),
    ("tail.mode", "off"),
    ("pm_ratio.ratio_limit_base", 3.0),
]


@pytest.mark.parametrize(("path", "value"), LOOSER, ids=[p for p, _ in LOOSER])
def test_a_threshold_looser_than_its_tier_admits_is_refused(path, value):
    """The verifier resolves overrides by its own table."""
    record = {"path": path, "value": value, "tier_value": 0, "source": f"preset:{PRESET[:12]}"}
    report = altered(FULL, "/policy_provenance/overrides", [record])
    assert any(path in line for line in verified(report))


def test_a_report_cannot_choose_another_tier():
    """Neither by naming it, nor by an honest report of tier none in a real profile."""
    report = altered(FULL, "/auto/tier", "none")
    assert contradictions(report) != []
    honest = make_report(tier="none")
    assert [m for m in verified(honest) if "manifest" not in m] == []
    for profile in ("ci", "release"):
        assert any("/auto/tier" in message for message in verified(honest, profile))


@pytest.mark.parametrize(
    "gates",
    [["primary_metric_acceptable", "invariants_pass"], ["guard_warnings_present"] * 7, []],
    ids=["exploring", "decoys", "none"],
)
def test_decoy_gates_are_found(gates):
    """A failing report that names only gates which hold."""
    bad = altered(make_report("bad", 1.004, edge={DOWN: 3.0}), "/context/gates", gates)
    assert any(line.startswith("/context/gates") for line in contradictions(bad))


def test_a_trial_cannot_be_hidden_together_with_its_consequences():
    """Scales are proposed, so there has to be a trial, whatever the gate says."""
    report = make_report("full", 1.004, spread={DOWN: 0.81}, gain=0.02)

    def hide(run):
        run["guards"][3]["trial"] = None
        run["work"]["trial_tokens"] = 0

    hidden = make_report("full", 1.004, spread={DOWN: 0.81}, gain=0.02, subject=hide)
    assert contradictions(report) == []
    assert contradictions(hidden) == ["/variance/trial is missing, although scales are proposed"]


MIXTURE = [
    ("/moe/routers/entropy/0", 0.4),
    ("/moe/routers/utilization/0", [1.0, 0.0, 0.0]),
    ("/moe/routers/baseline_tokens/0", 5),
]


@pytest.mark.parametrize(("pointer", "change"), MIXTURE, ids=[p for p, _ in MIXTURE])
def test_routers_are_replayed(pointer, change):
    """A mixture has one gate more, which follows from both runs' routers."""
    report = mixture()
    assert report["context"]["gates"][-1] == "moe_identity_ok"
    assert contradictions(altered(report, pointer, change)) != []


def test_routers_without_their_block_are_found():
    """A report that leaves its routers out is not that of a dense model."""
    report = mixture()
    report["spectral"]["modules"]["family"][0] = "router"
    del report["moe"]
    assert any(line.startswith("/moe is missing") for line in replay(report))


ANSWERS = [
    ("/evaluation_windows/final/correct/4", True),
    ("/evaluation_windows/final/baseline_correct/4", True),
    ("/evaluation_windows/preview/correct", []),
]


@pytest.mark.parametrize(("pointer", "change"), ANSWERS, ids=[p for p, _ in ANSWERS])
def test_answers_are_replayed(pointer, change):
    """An accuracy follows from the answers of both runs."""
    report = accuracy()
    assert report["primary_metric"]["lost"] == 1
    assert contradictions(altered(report, pointer, change)) != []
