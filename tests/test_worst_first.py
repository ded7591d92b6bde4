"""The worst finding is named first, and how much of the vocabulary was used is said everywhere."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from report_factory import DOWN, make_rejected, make_report
from test_outcome import gate, text_of, windows
from test_verdict import SMOKE, judge, with_other

from invarlock.evidence.report_verify import ReportOptions, verify_report
from invarlock.files import canonical_json
from invarlock.reporting import signals
from invarlock.reporting.dashboard import all_checks, headline
from invarlock.reporting.render import render_report_html, render_report_markdown
from invarlock.reporting.replay import replay
from invarlock.verdict.text import render_verdict

assert windows  # a fixture of this module too

Document = dict[str, Any]

# --- the worst first ----------------------------------------------------------------------------

NOTE = {"type": "dtype_changed", "severity": "warning", "message": "2 tensors changed type"}
FATAL = {"type": "missing_tensors", "severity": "fatal", "message": "1 tensor is missing: x"}
SECOND = {"type": "layer_count", "severity": "fatal", "message": "declares 3 layers"}


def test_the_fatal_finding_is_the_reason_and_not_the_first() -> None:
    """A warning that was found first is named last, on every page, line and record."""
    report = make_rejected("custom", failures=[NOTE, FATAL, SECOND])
    found = [f["message"] for f in report["invariants"]["failures"]]
    assert found == [FATAL["message"], SECOND["message"], NOTE["message"]]
    assert "1 tensor is missing: x" in headline(report)
    assert NOTE["message"] not in headline(report)
    row = next(c for c in all_checks(report) if c.name == "Invariants")
    assert row.note == FATAL["message"]
    assert signals.pass_reasons(report)[0] == "rejected_by_invariants"
    verdict = judge(with_other("quant_8bit_clean", report, status="rejected_by_invariants"))
    record = next(r for r in verdict["records"] if r["name"] == "quant_8bit_clean")
    assert record["finding"] == FATAL["message"]
    assert record["why"] == f"did not pass: rejected_by_invariants ({FATAL['message']})"
    assert FATAL["message"] in " ".join(render_verdict(verdict).split())
    reordered = copy.deepcopy(report)  # as older versions wrote them, or by hand
    reordered["invariants"]["failures"].reverse()
    assert (
        next(c for c in all_checks(reordered) if c.name == "Invariants").note == (SECOND["message"])
    )
    assert replay(reordered) != []


def test_the_gate_names_the_fatal_finding(tmp_path, capsys) -> None:
    """So does its line."""
    assert gate(make_rejected("custom", failures=[NOTE, FATAL]), tmp_path) == 1
    assert f"rejected_by_invariants ({FATAL['message']})" in capsys.readouterr().out


def test_reasons_name_what_is_bad_before_what_is_lacking(windows) -> None:
    """And of what is bad the most basic first, whatever the flags are called."""
    windows(60)
    report = make_report("custom", 1.6, edge={DOWN: 2.0}, failures=[NOTE])
    reasons = signals.pass_reasons(report)
    bad = [r for r in reasons if not signals.lacks_evidence(r)]
    assert reasons == [*bad, *(r for r in reasons if signals.lacks_evidence(r))]
    assert reasons[0] == "primary_metric_fail"
    assert bad.index("primary_metric_fail") < bad.index("rmt_fail")


def test_fatal_modules_are_listed_before_caps() -> None:
    """A page lists twenty violations: a degenerate module is among them, however many caps."""
    report = make_report("custom", 1.004)
    caps = [
        {"type": "family_z_cap", "module": f"m{i}", "severity": "budgeted", "z_score": 9.0,
         "kappa": 3.0}
        for i in range(40)
    ]  # fmt: skip
    worst = {"type": "degenerate_row_min", "module": "the fatal one", "severity": "fatal",
             "ratio": 0.01, "threshold": 0.1}  # fmt: skip
    report["spectral"]["violations"] = [*caps, worst]
    for page in (render_report_markdown(report), render_report_html(report)):
        assert "the fatal one" in page


# --- how much of the vocabulary -----------------------------------------------------------------


def test_every_place_says_how_much_of_the_vocabulary_was_used() -> None:
    """Report, page, verdict and its text."""
    report = make_report("custom", 1.004)
    assert report["vocabulary"] == {"used": 211, "size": 320}
    words = "211 of 320 token ids (65.9 %)"
    for page in (render_report_markdown(report), render_report_html(report)):
        assert page.count(words) == 2  # what was compared, and the limitations
    verdict = judge(SMOKE)
    assert verdict["vocabulary"] == {"acme/tiny-llama": {"used": 211, "size": 320}}
    assert words in text_of(verdict)


@pytest.mark.parametrize(
    "claimed",
    [{"used": 321, "size": 320}, {"used": 0, "size": 320}, {"used": True, "size": 320}, {}, None],
)
def test_an_impossible_vocabulary_does_not_verify(claimed) -> None:
    """More ids than there are, none at all, or nothing said."""
    report = make_report("custom", 1.004) | {"vocabulary": claimed}
    options = ReportOptions(provenance="host", assurance="off")
    assert not verify_report(canonical_json(report), None, "r", options).ok


def test_a_model_may_not_state_the_size_of_its_vocabulary() -> None:
    """Then only what is used is known."""
    report = make_report("custom", 1.004) | {"vocabulary": {"used": 9, "size": None}}
    assert "9 token ids of a vocabulary of unknown size" in render_report_markdown(report)
