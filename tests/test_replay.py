"""Replay: true reports have no contradictions, and what no single leaf shows is found too.

That every leaf counts is shown by ``test_leaves.py``.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import report_factory as factory
from hypothesis import given, settings
from hypothesis import strategies as st
from report_factory import DOWN, PRESET, make_crashed, make_rejected, make_report, plain

from invarlock.cli.evaluate_record import summary_line
from invarlock.errors import InputError
from invarlock.evidence.consistency import _rows_left_out
from invarlock.evidence.report_verify import ReportOptions, verify_report
from invarlock.files import canonical_json, write_json
from invarlock.guards import matrices, rmt
from invarlock.metrics.bootstrap import PLAIN, WIDENED
from invarlock.metrics.kinds import METRICS
from invarlock.metrics.perplexity import Bootstrap
from invarlock.policy import load_policy
from invarlock.reporting.evaluation import evaluation_report
from invarlock.reporting.replay import replay
from invarlock.reporting.runs import Comparison, pairing

WEIGHT = DOWN + ".weight"
FULL = factory.make_full()
CLEAN = make_report("quant_8bit_clean", 1.004)
CAPPED = make_report("one_cap", 1.004, scale={WEIGHT: 1.5})
COLLAPSED = make_report("rank1_projection", 1.09, rank={WEIGHT: 0.05}, scale={WEIGHT: 0.6})
EXCHANGED = make_report("exchanged", 1.004, rows=32)
TRUE = {
    "no-op": make_report(),
    "clean": CLEAN,
    "capped": CAPPED,
    "collapsed": COLLAPSED,
    "damaged": make_report("quant_4bit_stress", 1.6),
    "borderline": make_report("wide", 1.10),
    "exchanged rows": EXCHANGED,
    "rejected": make_rejected(),
    "crashed": make_crashed(),
    "timeout": make_crashed(cause="timeout"),
    "every block": FULL,
    "mixture": factory.make_mixture(),
    "accuracy": factory.make_accuracy(),
    "none": make_report(tier="none"),
    "conservative": make_report(tier="conservative"),
    "strict": make_report(assurance="strict", profile="ci"),
    "timed": factory.make_timed(),
    "timed without its baseline": factory.make_timed({}),
}


def at(document, pointer):
    """The container of a pointer's target, and its last key."""
    *path, last = pointer.strip("/").split("/")
    for key in path:
        document = document[int(key)] if isinstance(document, list) else document[key]
    return document, int(last) if isinstance(document, list) else last


def altered(report, pointer, change):
    """A copy with one value changed; ``change`` is the new value, or a function of the old."""
    document = copy.deepcopy(report)
    parent, key = at(document, pointer)
    parent[key] = change(parent[key]) if callable(change) else change
    return document


def slightly(value):
    """A value changed in its seventh digit."""
    return value * (1 + 1e-7)


def verified(report):
    """The messages of the whole verification of a report, without a runtime manifest."""
    options = ReportOptions(require_replay=True)
    return [f.message for f in verify_report(canonical_json(report), None, "r", options).findings]


@pytest.mark.parametrize("name", TRUE)
def test_a_true_report_has_no_contradictions(name):
    """Every kind of report as it is written."""
    assert replay(TRUE[name]) == []


def test_a_report_written_again_is_still_true():
    """Reading and writing JSON loses no digit that the replay needs."""
    assert replay(json.loads(json.dumps(CLEAN, indent=1, sort_keys=True))) == []


PLAIN_SETTINGS = Bootstrap(1200, 0.05, 7, PLAIN)


def test_a_report_of_the_plain_interval_stays_as_it_was():
    """It records no method, nothing of the tails and no power, and is true; the interval is the
    narrower one."""
    old = make_report("quant_8bit_clean", 1.004, bootstrap=PLAIN_SETTINGS)
    assert replay(old) == []
    assert old["context"]["bootstrap"] == {"replicates": 1200, "alpha": 0.05, "seed": 7}
    assert old["dataset"]["windows"]["stats"]["bootstrap"]["method"] == PLAIN
    assert CLEAN["context"]["bootstrap"]["method"] == WIDENED
    assert CLEAN["primary_metric"].keys() - old["primary_metric"].keys() == {"kurtosis"}
    assert CLEAN["confidence"].keys() - old["confidence"].keys() == {"pass_50", "pass_95"}
    low, high = old["primary_metric"]["ci"]
    assert CLEAN["primary_metric"]["ci"][0] < low < high < CLEAN["primary_metric"]["ci"][1]


def test_differences_of_answers_are_not_widened():
    """No example can be further out than one that is lost; losses of a text can."""
    report = factory.make_accuracy()
    assert "method" not in report["context"]["bootstrap"]
    assert not {"pass_50", "pass_95"} & report["confidence"].keys()
    assert {kind.name for kind in METRICS.values() if kind.interval == PLAIN} == {"accuracy"}


@pytest.mark.parametrize(
    ("method", "found"),
    [
        (None, "/primary_metric/ci"),  # the older one is claimed
        (PLAIN, "/context/bootstrap"),  # reports of it do not name it
        ("bayes", "/context/bootstrap/method: no method of this version"),
        ([], "cannot be read"),
    ],
)
def test_the_method_of_an_interval_is_held_to_it(method, found):
    """An interval by another method than the report names contradicts it."""
    document = copy.deepcopy(CLEAN)
    settings = document["context"]["bootstrap"]
    if method is None:
        del settings["method"]
    else:
        settings["method"] = method
    assert any(found in line for line in replay(document))


PACKS = Path(__file__).parent / "packs"
KEPT = sorted(PACKS.glob("v1-*/reports/**/evaluation.report.json"))


@pytest.mark.parametrize("path", KEPT, ids=lambda p: f"{p.relative_to(PACKS)}")
def test_a_report_without_operators_is_judged_by_the_rule_of_its_time(path):
    """Every decision that it states follows from its matrices; its contract says so."""
    old = json.loads(path.read_text())
    assert replay(old) == []
    assert "operators" not in old["spectral"]
    assert old["resolved_policy"]["spectral"]["measurement_contract"] == matrices.CONTRACT
    assert old["resolved_policy"]["rmt"]["measurement_contract"] == rmt.BY_COLUMNS


def test_a_report_says_by_which_rule_it_is_judged():
    """Operators without their contract, or a contract without operators, contradict it."""
    without = copy.deepcopy(CLEAN)
    del without["spectral"]["operators"]
    assert replay(without) != []
    claimed = copy.deepcopy(CLEAN)
    claimed["resolved_policy"]["spectral"]["measurement_contract"] = matrices.CONTRACT
    assert replay(claimed) == ["/spectral/measurement_contract: not the one of this version"]
    claimed["spectral"]["measurement_contract"] = matrices.CONTRACT
    assert any("/spectral/operators" in line for line in replay(claimed))


def test_a_report_says_where_activations_were_watched():
    """The contract decides how many tokens there can be, and which modules leave a block."""
    claimed = copy.deepcopy(CLEAN)
    claimed["resolved_policy"]["rmt"]["measurement_contract"] = rmt.BY_COLUMNS
    assert replay(claimed) == ["/rmt/measurement_contract: not the one of this version"]
    claimed["rmt"]["measurement_contract"] = rmt.BY_COLUMNS
    assert any("/rmt/calibration" in line for line in replay(claimed))
    many = altered(CLEAN, "/rmt/calibration/tokens", lambda value: 2 * value)
    assert any("/rmt/calibration" in line for line in replay(many))


def earlier(report):
    """The report as versions before costs, structure and published names wrote it."""
    old = copy.deepcopy(report)
    del old["structure"], old["telemetry"]["times_in"], old["policy_digest"]["min_effective"]
    del old["artifacts"]["report_path"], old["artifacts"]["events_path"]
    old["policy_digest"]["changed"] = False
    return old


def test_a_report_from_before_members_were_added_is_as_true():
    """It lacks what it could not know; half of it is no excuse for another value."""
    assert FULL["policy_digest"]["changed"] is True
    assert replay(earlier(FULL)) == []
    assert replay(altered(FULL, "/policy_digest/changed", False))
    assert replay(altered(earlier(FULL), "/policy_digest/changed", True))


def test_the_policy_says_in_short_whether_it_is_the_tiers():
    """Thresholds of a preset are not, unless they have the tier's own value."""
    assert CLEAN["policy_digest"]["changed"] is False
    same = load_policy("balanced").rmt.epsilon("ffn")
    overrides = factory.preset_overrides({"rmt.epsilon.ffn": same})
    report = make_report("x", 1.004, overrides=overrides, preset_sha256=PRESET)
    assert report["policy_digest"]["changed"] is False
    assert [t["policy_digest"]["min_effective"] for t in (CLEAN, TRUE["conservative"])] == [
        0,
        0.016,
    ]


def test_structure_says_what_of_the_checkpoint_is_another():
    """Parts of the digest by name; nothing where the subject could not be read."""
    assert CLEAN["structure"]["parts_changed"] == ["weights"]
    assert "structure" not in TRUE["crashed"] or TRUE["crashed"]["structure"]["parts_changed"]


TIMED = TRUE["timed"]


def test_costs_are_copied_and_compared():
    """Those of the subject's run, and over the baseline's where that states them too."""
    assert {k: TIMED["telemetry"][k] for k in factory.SLOWER} == factory.SLOWER
    assert TIMED["telemetry"]["times_in"] == "here"
    ratios = {name: row["ratio"] for name, row in TIMED["system_overhead"].items()}
    assert ratios == {
        "latency_ms_per_tok": 1.25, "throughput_tok_per_s": 0.8, "memory_mb_peak": 2.0
    }  # fmt: skip
    assert "system_overhead" not in TRUE["timed without its baseline"]
    assert CLEAN["telemetry"]["times_in"] == "runtime.manifest.json"
    assert not set(CLEAN["telemetry"]) & set(factory.COSTS)


@pytest.mark.parametrize(
    ("pointer", "value"),
    [("/telemetry/throughput_tok_per_s", 1601.0), ("/telemetry/latency_ms_per_tok", 0.0),
     ("/telemetry/memory_mb_peak", None), ("/telemetry/memory_mb_peak", True),
     ("/system_overhead/latency_ms_per_tok/ratio", 1.0),
     ("/system_overhead/latency_ms_per_tok/subject", 0.5),
     ("/system_overhead/memory_mb_peak/baseline", -1.0), ("/telemetry/times_in", "nowhere")],
)  # fmt: skip
def test_costs_that_no_run_has_are_found(pointer, value):
    """Not positive, no inverse, another quotient."""
    assert replay(altered(TIMED, pointer, value))


def test_a_subject_that_was_not_run_took_no_time():
    """Times of it are invented."""
    rejected = copy.deepcopy(TRUE["rejected"])
    rejected["telemetry"] |= factory.COSTS | {"times_in": "here"}
    assert any("not run" in line for line in replay(rejected))


def test_the_tolerance_is_the_callers():
    """What a wide tolerance allows, the default does not: it names the place."""
    document = altered(CLEAN, "/primary_metric/ratio_vs_baseline", slightly)
    assert replay(document, tolerance=1e-6) == []
    assert [line.split(" is ")[0] for line in replay(document)] == [
        "/primary_metric/ratio_vs_baseline"
    ]


def test_one_changed_measurement_contradicts_a_conclusion():
    """Evidence that was changed after the decision no longer gives it."""
    found = replay(altered(CLEAN, "/evaluation_windows/final/nll_sum/7", slightly))
    assert any(line.startswith("/primary_metric/ratio_vs_baseline") for line in found), found


@pytest.mark.parametrize("arm", ["preview", "final"])
@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows["nll_sum"].pop(),
        lambda rows: rows["clusters"].pop(),
        lambda rows: rows["window_ids"].__setitem__(1, rows["window_ids"][0]),
        lambda rows: rows["token_counts"].__setitem__(0, 0),
        lambda rows: rows["token_counts"].__setitem__(0, -144),
        lambda rows: rows["token_counts"].__setitem__(0, 144.5),
    ],
)
def test_impossible_windows_are_refused(arm, change):
    """Columns of different lengths, a window twice, token counts that count nothing."""
    document = copy.deepcopy(CLEAN)
    change(document["evaluation_windows"][arm])
    assert any(line.startswith("/evaluation_windows") for line in replay(document))


def test_a_missing_flag_is_named():
    """A flag that is left out is not one that holds."""
    document = copy.deepcopy(CLEAN)
    del document["validation"]["spectral_stable"]
    assert any(line.startswith("/validation/spectral_stable") for line in replay(document))


def test_a_whitewashed_collapse_is_found():
    """Every conclusion changed together, the evidence kept: the decision does not hold."""
    document = copy.deepcopy(COLLAPSED)
    document["spectral"] |= {"passed": True, "decision": "allow", "status": "stable"}
    document["spectral"] |= {"caps_applied": 0, "fatal_violations": 0, "violations": []}
    document["validation"]["spectral_stable"] = True
    assert len(replay(document)) >= 6


def test_exchanged_rows_are_told():
    """A finding, a warning that names tokens, a gate that does not hold."""
    assert EXCHANGED["validation"]["spectral_stable"] is False
    [warning] = EXCHANGED["guard_warnings"]["warnings"]
    assert (warning["kind"], warning["policy_gate"]) == ("token_rows", "fail")
    assert "32 of 320 token rows" in warning["message"]
    assert "40 ' t0' (now closest to 41 ' t')" in warning["message"]


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


def test_a_trial_cannot_be_hidden_together_with_its_consequences():
    """Scales are proposed, so there has to be a trial, whatever the gate says."""

    def hide(run):
        run["guards"][3]["trial"] = None
        run["work"]["trial_tokens"] = 0

    hidden = make_report("full", 1.004, spread={DOWN: 0.81}, gain=0.02, subject=hide)
    assert replay(hidden) == ["/variance/trial is missing, although scales are proposed"]


def test_routers_without_their_block_are_found():
    """A report that leaves its routers out is not that of a dense model."""
    report = factory.make_mixture()
    assert report["context"]["gates"][-1] == "moe_identity_ok"
    report["spectral"]["modules"]["family"][0] = "router"
    del report["moe"]
    assert any(line.startswith("/moe is missing") for line in replay(report))


HUGE = [
    ([1e308] * 180, [1] * 180),
    ([1e308, -1e308] * 90, [1] * 180),
    ([1e308] * 180, [10**9] * 180),
    ([800.0] * 180, [144] * 180),
]


@pytest.mark.parametrize(("losses", "counts"), HUGE, ids=["sum", "cancel", "product", "exp"])
def test_losses_beyond_a_double_are_findings(losses, counts):
    """Sums that overflow are no traceback and no agreement."""
    report = altered(FULL, "/evaluation_windows/final/logloss", losses)
    report["evaluation_windows"]["final"]["token_counts"] = counts
    result = verify_report(canonical_json(report), None, "r", ReportOptions())
    assert result.recompute is not None
    assert (result.recompute["ok"], result.recompute["reason"]) == (False, "mismatch")
    assert "E602" in {f.code for f in result.findings if "manifest" not in f.message}


@pytest.mark.parametrize("windows", [181, 20_000])
def test_a_trial_of_more_windows_than_there_are_is_not_bootstrapped(windows, monkeypatch):
    """It is refused before anything is drawn, whichever column is long."""
    from invarlock.reporting import replay

    monkeypatch.setattr(replay, "evaluation_report", lambda *_: pytest.fail("was judged"))
    for column in ("window_ids", "scaled_nll"):
        report = copy.deepcopy(FULL)
        rows = report["variance"]["trial"][column]
        report["variance"]["trial"][column] = (rows * windows)[:windows]
        assert any(f"of {windows} windows" in line for line in verified(report))


def test_what_cannot_be_recomputed_is_named():
    """A report alone shows neither its preset nor the files that the invariants saw."""
    data = canonical_json(FULL)
    believed = verify_report(data, None, "r", ReportOptions()).believed
    for word in ("preset", "invariants", "probes", "quantiles"):
        assert sum(word in claim for claim in believed) == 1
    plainer = verify_report(canonical_json(make_report()), None, "r", ReportOptions()).believed
    assert not any("preset" in claim for claim in plainer)


# --- pairing, before there is a report ---------------------------------------------------------


def compared(change):
    """A comparison whose subject's windows were changed."""
    subject = copy.deepcopy(factory.run_report("other", 0.004))
    change(subject["evaluation_windows"]["final"])
    return Comparison(
        factory.BASELINE, subject, factory.BOOTSTRAP, "dev", shift=factory.token_shift(0.004)
    )


OTHER = [
    (lambda rows: rows["window_ids"].reverse(), "windows"),
    (lambda rows: rows["window_ids"].pop(), "windows"),
    (lambda rows: rows["token_counts"].__setitem__(0, 3), "tokens"),
]


@pytest.mark.parametrize(("change", "what"), OTHER, ids=["order", "fewer", "tokens"])
def test_runs_on_other_windows_are_not_compared(change, what):
    """One line, and no report."""
    with pytest.raises(InputError, match=f"the same {what}") as caught:
        evaluation_report(compared(change), load_policy("balanced"))
    assert "\n" not in str(caught.value)


def test_shares_of_windows_are_counted():
    """One window of 360 differs; one is in both arms."""
    report = plain(evaluation_report(compared(lambda rows: None), load_policy("balanced")))
    stats = report["dataset"]["windows"]["stats"]
    assert (stats["window_match_fraction"], stats["window_overlap_fraction"]) == (1.0, 0.0)
    other = factory.BASELINE["evaluation_windows"]["preview"]["window_ids"][0]
    changed = compared(lambda rows: rows["window_ids"].__setitem__(0, other))
    assert pairing(changed) == (359 / 360, 1 / 360)


def test_a_violation_that_blocks_is_marked():
    """An output over its limit fails the RMT guard; one capped weight does not fail its own."""
    blocked = make_report("edge", 1.004, edge={DOWN: 3.0})["guard_warnings"]["warnings"]
    capped = make_report("cap", 1.004, scale={DOWN + ".weight": 1.5})["guard_warnings"]["warnings"]
    assert [(w["guard"], w["policy_gate"]) for w in blocked] == [("rmt", "fail")]
    assert blocked[0]["message"].endswith("the guard does not pass")
    assert [(w["guard"], w["policy_gate"]) for w in capped] == [("spectral", "pass")]


POINTS = [
    (lambda: make_report("clean", 1.004), "ratio 1.0040 [1.00"),
    (factory.make_accuracy, "accuracy -0.56 points [-"),
    (
        lambda: altered(factory.make_accuracy(), "/primary_metric/display_ci", None),
        "points without interval",
    ),
    (make_rejected, "not measured (rejected_by_invariants)"),
]


@pytest.mark.parametrize(("report", "words"), POINTS, ids=["ratio", "accuracy", "none", "rejected"])
def test_the_line_for_the_person_who_asked(report, words, tmp_path):
    """The metric in its own unit, and no interval that is not a number."""
    write_json(tmp_path / "evaluation.report.json", report())
    write_json(tmp_path / "outcome.json", {"scenario": "s", "status": "reported"})
    line = summary_line(tmp_path)
    assert words in line
    assert "nan" not in line


# --- garbage --------------------------------------------------------------------------------


def pointers(value, prefix="") -> Iterator[str]:
    """Every place of a document, with the first two entries of each list."""
    items = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list):
        items = list(enumerate(value))[:2]
    for key, inner in items:
        yield f"{prefix}/{key}"
        yield from pointers(inner, f"{prefix}/{key}")


PLACES = sorted(
    p
    for p in pointers(CAPPED)
    if p.split("/")[1]
    in ("auto", "baseline_ref", "context", "evaluation_windows", "invariants", "spectral")
    or p.split("/")[1] in ("primary_metric", "validation")
)
GARBAGE = [None, True, -1, 0, 1e308, 10**400, "", "x", [], [None], {}, {"a": []}, [[1]], math.inf]


def survives(document):
    """The replay gives lines, whatever it was given."""
    found = replay(document)
    assert isinstance(found, list)
    assert all(isinstance(line, str) and line for line in found)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.sampled_from(PLACES), st.sampled_from(GARBAGE))
def test_garbage_in_one_place_never_raises(pointer, value):
    """Any value of any type in any place the replay reads."""
    survives(altered(CAPPED, pointer, lambda _: value))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.sampled_from(PLACES))
def test_a_missing_place_never_raises(pointer):
    """Any key or entry left out."""
    document = copy.deepcopy(CAPPED)
    parent, key = at(document, pointer)
    del parent[key]
    survives(document)


@pytest.mark.parametrize("section", sorted({p.split("/")[1] for p in PLACES}))
@pytest.mark.parametrize("value", [[], "x", None, 3], ids=repr)
def test_a_section_of_another_type_never_raises(section, value):
    """A whole section that is a list, a word, nothing or a number."""
    survives(altered(CLEAN, f"/{section}", lambda _: value))


@pytest.mark.parametrize("document", [{}, {"auto": {}}, {"evaluation_windows": []}])
def test_what_is_no_report_never_raises(document):
    """Nothing to read is a line, not an exception."""
    assert replay(document) != []


def test_packed_files_do_not_pass_for_dense_ones() -> None:
    """A report that names packed files has to say how they are packed."""
    report = make_report("plain", 1.004)
    report["provenance"]["subject"]["checkpoint"]["packed_files"] = {"model.gguf": "0" * 64}
    assert any(line.startswith("/meta/execution does not say") for line in replay(report))
    report["meta"]["execution"] = {"schemes": {"Q8_0": {}}}
    assert not any(line.startswith("/meta/execution") for line in replay(report))
