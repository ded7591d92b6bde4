"""Verification of what a report repeats of its runs: ids, digests, counts and keys."""

from __future__ import annotations

import copy

import pytest
from report_factory import (
    BASELINE,
    BOOTSTRAP,
    DOWN,
    make_rejected,
    make_report,
    plain,
    run_report,
    token_shift,
)
from test_replay import altered
from test_replay_guards import FULL, accuracy, verified

from invarlock.cli.evaluate_record import summary_line
from invarlock.errors import InputError
from invarlock.evidence.report_verify import ReportOptions, verify_report
from invarlock.files import canonical_json, write_json
from invarlock.policy import load_policy
from invarlock.reporting.evaluation import evaluation_report
from invarlock.reporting.runs import Comparison, pairing

STATS = "/dataset/windows/stats"
FORGED = [
    ("/dataset/seq_len", 2048),
    ("/dataset/hash/dataset", "0" * 64),
    ("/baseline_ref/run_id", "0" * 16),
    ("/meta/run_id", "0" * 16),
    ("/meta/subject_run_id", "0" * 16),
    ("/meta/subject_run_id", None),
    ("/meta/model_id", "acme/other"),
    ("/meta/adapter", "hf_mlm"),
    ("/rmt/calibration", {**FULL["rmt"]["calibration"], "windows": 1,
                          "window_ids": FULL["rmt"]["calibration"]["window_ids"][:1]}),
    ("/rmt/calibration/tokens", 1025),
    ("/guard_overhead/bare_nll", []),
    ("/distribution/top_k", 0),
    ("/distribution/top_k", 65),
    ("/context/execution_log/1/digest", "0" * 64),
    ("/context/execution_log/3/digest", "0" * 64),
]  # fmt: skip


@pytest.mark.parametrize(("pointer", "value"), FORGED, ids=[p for p, _ in FORGED])
def test_a_forged_record_is_found(pointer, value):
    """Each id, digest, count and length, changed alone."""
    assert not any(m.startswith("replay: ") for m in verified(FULL))
    assert any(m.startswith("replay: ") for m in verified(altered(FULL, pointer, value)))


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
    subject = copy.deepcopy(run_report("other", 0.004))
    change(subject["evaluation_windows"]["final"])
    return Comparison(BASELINE, subject, BOOTSTRAP, "dev", shift=token_shift(0.004))


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
    other = BASELINE["evaluation_windows"]["preview"]["window_ids"][0]
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
    (accuracy, "accuracy -0.56 points [-"),
    (lambda: altered(accuracy(), "/primary_metric/display_ci", None), "points without interval"),
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
