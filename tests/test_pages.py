"""What a page says of each block of a full report, in HTML and Markdown alike."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
from page_factory import make_accuracy_report, make_page_report, with_mixture
from report_factory import make_crashed, make_rejected, make_report

from invarlock.pages.parts import Check
from invarlock.reporting import signals
from invarlock.reporting.dashboard import all_checks, dashboard, gates, headline, verdict_word
from invarlock.reporting.outline import outline
from invarlock.reporting.render import explain, render_report_html, render_report_markdown

PAGE = make_page_report()
HARM = make_page_report(harm=0.2, ratio=1.6)
MIXTURE = with_mixture(make_page_report(layers=4))
ACCURACY = make_accuracy_report()
REPORTS = {
    "page": PAGE,
    "harm": HARM,
    "mixture": MIXTURE,
    "accuracy": ACCURACY,
    "rejected": make_rejected(),
    "crashed": make_crashed(),
}


def check(report: dict[str, Any], name: str) -> Check:
    """The row of a name."""
    return next(c for c in all_checks(report) if c.name == name)


def facts(report: dict[str, Any], section: str) -> dict[str, str]:
    """The facts of a section."""
    return dict(next(s.facts for s in outline(report).sections if s.id == section))


def test_dashboard_has_every_row() -> None:
    """The overall result first, then the metric, its tail and drift, the guards and the rest."""
    rows = [row[0] for row in dashboard(MIXTURE).rows]
    assert rows == [
        "Overall",
        "Primary metric",
        "Tail of the differences",
        "Consistency of the two samples (drift)",
        "Invariants",
        "Spectral (weights)",
        "RMT (activations)",
        "Variance",
        "Guard overhead",
        "Distribution shift",
        "Mixture of experts",
    ]
    assert "Mixture of experts" not in [row[0] for row in dashboard(PAGE).rows]
    assert dashboard(PAGE).rows[0][1:4] == ("pass", "6 of 6 gates hold", "every gate")
    assert dashboard(HARM).rows[0][4] == "failed gates: primary metric, rmt stable"


@pytest.mark.parametrize("name", REPORTS)
def test_same_outline_in_both_forms(name: str) -> None:
    """HTML and Markdown have the same sections, tables and pictures, in the same order."""
    page = outline(REPORTS[name])
    html, markdown = render_report_html(REPORTS[name]), render_report_markdown(REPORTS[name])
    titles = [s.title for s in page.sections]
    assert re.findall(r"<h2>(.*?)</h2>", html) == titles
    assert re.findall(r"^## (.*)$", markdown, re.M) == titles
    captions = [t.caption for s in page.sections for t in s.tables]
    assert html.count("<caption>") == len(captions) + 1
    assert len(re.findall(r"^\*[^*]+\*$", markdown, re.M)) == len(captions) + 1
    pictures = [p.title for s in page.sections for p in s.plots]
    assert re.findall(r"<figcaption>(.*?)</figcaption>", html) == pictures.copy() or "&" in html
    assert html.count("<svg") == len(pictures)
    assert all(f"{title}: " in markdown for title in pictures)


def test_every_picture_is_there() -> None:
    """A full report shows its windows, tail, weights, activations, outputs and distribution."""
    pictures = [p.id for s in outline(MIXTURE).sections for p in s.plots]
    assert pictures == [
        *("windows", "tail", "spectral", "edges", "output-variance", "kl", "probability"),
        "routers",
    ]


@pytest.mark.parametrize("tier", ["none", "balanced"])
def test_a_check_that_is_no_gate_says_so(tier: str) -> None:
    """A failed check that the tier does not ask for says on both pages that it decides nothing."""
    report = make_report("noop_clean", tier=tier)
    report["validation"]["rmt_stable"] = False
    row = next(row for row in dashboard(report).rows if row[0] == "RMT (activations)")
    assert row[1] == "fail"
    assert row[4].endswith("; does not gate") == (tier == "none")
    for page in (render_report_html(report), render_report_markdown(report)):
        assert ("does not gate" in page) == (tier == "none")


def test_the_cost_of_measuring_is_a_warning() -> None:
    """More work than the limit is shown and blocks nothing."""
    report = make_report("noop_clean")
    report["guard_overhead"] |= {"passed": False, "work_ratio": 0.9}
    report["validation"]["guard_overhead_acceptable"] = False
    row = check(report, "Guard overhead")
    assert row.status == "warning"
    assert row.note == "55 points above the limit; a cost of measuring; never blocks"
    assert verdict_word(report) == "PASS"


def test_tail_row() -> None:
    """Measured, bounds, threshold and distance; a policy that only warns says warning."""
    tail = PAGE["primary_metric_tail"]
    row, stats = check(PAGE, "Tail of the differences"), tail["stats"]
    low, high = stats["quantile_low"], stats["quantile_high"]
    assert row.measured == (
        f"95 % quantile {stats['quantile_point']:.4f} nats per token, "
        f"bounds {low:.4f} to {high:.4f}"
    )
    assert row.threshold == "lower bound at most 0.2000"
    assert row.note == f"the lower bound is {0.2 - low:.4f} below the limit"
    report = copy.deepcopy(PAGE)
    report["primary_metric_tail"] |= {"passed": False, "warned": True, "mode": "warn"}
    row = check(report, "Tail of the differences")
    assert (row.status, "only warns" in row.note) == ("warning", True)
    report["validation"]["primary_metric_tail_acceptable"] = False
    assert check(report, "Tail of the differences").status == "fail"


def test_activation_rows() -> None:
    """The RMT row names the module furthest beyond its limit, which heads the violations."""
    ratios = {v["module"]: v["edge_cur"] / v["allowed"] for v in HARM["rmt"]["epsilon_violations"]}
    worst = max(ratios, key=lambda module: ratios[module])
    row = check(HARM, "RMT (activations)")
    assert row.status == "fail"
    assert row.note == f"{len(ratios)} modules beyond, the furthest {worst}"
    section = next(s for s in outline(HARM).sections if s.id == "rmt")
    assert section.tables[1].rows[0][0] == worst
    assert "attn 1.0300, embed 1.1000" in check(PAGE, "RMT (activations)").threshold


def test_variance_speaks_but_never_blocks() -> None:
    """A variance guard that found a helpful scale is a warning, not a failure."""
    assert check(PAGE, "Variance").status == "pass"
    row = check(HARM, "Variance")
    assert (row.status, row.measured) == ("warning", "scales proposed: 1")
    assert not gates(row, HARM)
    assert "never blocks" in row.note


def test_distribution_is_reported_or_decides() -> None:
    """Without limits the shift is reported; with them it passes or fails, with the distance."""
    assert check(PAGE, "Distribution shift").status == "reported"
    report = copy.deepcopy(PAGE)
    report["resolved_policy"]["distribution"] = {"kl_mean_max": 1.0, "flip_fraction_max": 0.02}
    report["distribution"] |= {"gated": True, "passed": False}
    row = check(report, "Distribution shift")
    assert row.status == "fail"
    assert row.threshold == "mean KL at most 1.0000; flips at most 2 %"
    assert row.note.endswith("0.0050 above")
    report["validation"]["primary_metric_acceptable"] = False
    assert check(report, "Primary metric").status == "pass"  # the ratio itself is
    assert signals.pass_reasons(report) == ["distribution_fail"]
    assert headline(report).startswith("Distribution shift: fail")


def test_overhead_and_mixture_rows() -> None:
    """Work against its limit; fallen entropy and dead experts against theirs."""
    assert check(PAGE, "Guard overhead").note == (
        "13.7 points below the limit; a cost of measuring; never blocks"
    )
    row = check(MIXTURE, "Mixture of experts")
    assert row.status == "fail"
    assert "2 new dead experts" in row.measured
    assert row.note == "the largest fall of a router's entropy is 40 %, 30 % above the limit"


def test_accuracy_in_percentage_points() -> None:
    """An accuracy report speaks of percentage points and McNemar, never of perplexity."""
    row = check(ACCURACY, "Primary metric")
    assert row.measured == "difference -0.25 pp, 95 % interval -0.83 to +0.31"
    assert row.threshold == "lower bound at least -1.10 pp"
    assert row.note == "the lower bound is 0.27 pp above the limit"
    found = facts(ACCURACY, "primary-metric")
    assert found["Subject, scored windows"] == "72.80 %"
    assert found["Baseline, scored windows"] == "73.05 %"
    assert found["McNemar's exact p (no difference)"] == "0.4800"
    assert check(ACCURACY, "Consistency of the two samples (drift)").measured.startswith("+0.31 pp")
    for text in (render_report_markdown(ACCURACY), explain(ACCURACY)):
        assert "erplexity" not in text


def test_policy_states_both_numbers() -> None:
    """Every threshold that is not the tier's own stands with the tier's and its source."""
    section = next(s for s in outline(PAGE).sections if s.id == "policy")
    rows = section.tables[0].rows
    assert ("drift.max", "1.05", "1.03", "preset:0123456789ab") in rows
    assert ("tail.mode", "warn", "fail", "config") in rows
    in_force = {row[0]: row[1] for row in section.tables[1].rows}
    assert in_force["spectral.deadband"] == "0.1"
    assert not any("measurement_contract" in name for name in in_force)
    plain = copy.deepcopy(PAGE)
    plain["policy_provenance"] |= {"overrides": [], "preset_sha256": None}
    assert facts(plain, "policy")["Preset"] == "none"
    notes = next(s.notes for s in outline(plain).sections if s.id == "policy")
    assert notes == ("Every threshold is that of tier balanced.",)


def test_confidence_assurance_telemetry() -> None:
    """The label with its width, the claim with its verdict, and the summary line are shown."""
    found = facts(PAGE, "primary-metric")
    assert found["Confidence label"] == "High (interval width 0.0041; High needs 0.0300 or less)"
    assert facts(PAGE, "compared")["Telemetry"] == PAGE["telemetry"]["summary_line"]
    assert facts(PAGE, "assurance")["Verdict of this report"] == "pass"


def test_guard_warnings_are_listed() -> None:
    """What guards noticed is a table of at most twenty rows that states how many there are."""
    section = next(s for s in outline(HARM).sections if s.id == "guard-warnings")
    total = len(HARM["rmt"]["epsilon_violations"])
    assert section.tables[0].caption == f"Warnings (20 of {total})"
    assert len(section.tables[0].rows) == 20


@pytest.mark.parametrize("name", ["rejected", "crashed"])
def test_a_subject_that_was_not_run_has_a_page(name: str) -> None:
    """Nothing is passed that was not measured, and the reason is said in words."""
    report = REPORTS[name]
    status = {c.name: c.status for c in all_checks(report)}
    assert "pass" not in status.values()
    assert status["Spectral (weights)"] == "not measured"
    reason = "rejected by invariants" if name == "rejected" else "crashed"
    assert f"the subject was not run ({reason})" in render_report_markdown(report)
