"""What decides the rows of a page; its words are those of tests/golden."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
from page_factory import make_mixture_report, make_page_report
from report_factory import (
    make_accuracy,
    make_crashed,
    make_rejected,
    make_report,
    make_sliced,
    make_timed,
)

from invarlock.pages.parts import Check
from invarlock.reporting import signals
from invarlock.reporting.dashboard import all_checks, dashboard, gates, headline, verdict_word
from invarlock.reporting.outline import outline
from invarlock.reporting.render import render_report_html, render_report_markdown

PAGE = make_page_report()
HARM = make_page_report(harm=0.2, ratio=1.6)
REPORTS = {
    "page": PAGE,
    "harm": HARM,
    "mixture": make_mixture_report(layers=4),
    "accuracy": make_accuracy(),
    "rejected": make_rejected(),
    "crashed": make_crashed(),
}


def check(report: dict[str, Any], name: str) -> Check:
    """The row of a name."""
    return next(c for c in all_checks(report) if c.name == name)


@pytest.mark.parametrize("name", REPORTS)
def test_same_outline_in_both_forms(name: str) -> None:
    """HTML and Markdown have the same sections, tables and pictures, in the same order."""
    page = outline(REPORTS[name])
    html, markdown = render_report_html(REPORTS[name]), render_report_markdown(REPORTS[name])
    titles = [s.title for s in page.sections]
    assert re.findall(r"<h2>(.*?)</h2>", html) == titles
    head = ["## Evaluation dashboard", "## Contents"]
    parts = dict.fromkeys(s.part for s in page.sections if s.part)
    shown = re.findall(r"^##.*$", markdown, re.M)
    assert shown[:2] == head
    assert [t.lstrip("# ") for t in shown[2:] if t.lstrip("# ") not in parts] == titles
    assert [t[3:] for t in shown if t[3:] in parts] == list(parts)
    captions = [t.caption for s in page.sections for t in s.tables]
    assert html.count("<caption>") == len(captions) + 1
    assert len(re.findall(r"^\*[^*]+\*$", markdown, re.M)) == len(captions) + 1
    pictures = [p.title for s in page.sections for p in s.plots]
    assert re.findall(r"<figcaption>(.*?)</figcaption>", html) == pictures.copy() or "&" in html
    assert html.count("<svg") == len(pictures)
    assert all(f"{title}: " in markdown for title in pictures)


@pytest.mark.parametrize("name", REPORTS)
def test_contents_lead_to_every_section_and_tables_of_guards_are_folded(name: str) -> None:
    """Each entry of the list has its place; thresholds and guards' tables stand in details."""
    markdown = render_report_markdown(REPORTS[name])
    contents = markdown.partition("## Contents")[2].partition("<a id")[0]
    linked = re.findall(r"^ *\* \[.+\]\(#([a-z-]+)\)$", contents, re.M)
    assert linked == re.findall(r'^<a id="([a-z-]+)"></a>$', markdown, re.M)
    assert linked == [s.id for s in outline(REPORTS[name]).sections]
    folded = re.findall(r"^<details>$.*?^</details>$", markdown, re.M | re.S)
    assert markdown.count("<details>") == markdown.count("</details>") == len(folded)
    thresholds = next(f for f in folded if "| spectral.deadband |" in f)
    assert thresholds.startswith("<details>\n<summary>Details: Policy configuration</summary>\n\n")
    assert "| spectral.deadband |" not in re.sub(r"(?ms)^<details>$.*?^</details>$", "", markdown)
    assert "| Primary metric |" in markdown.partition("<details>")[0]


def test_what_a_run_took_is_told_where_it_is_stated() -> None:
    """With the baseline's beside it; else where it stands."""
    timed = render_report_markdown(make_timed())
    assert "* Latency: 0.625 ms a token, 1.250 times the baseline's" in timed
    assert "* Peak memory: 1624.5 MiB, 2.000 times the baseline's" in timed
    plain = render_report_markdown(make_report("noop_clean"))
    assert "* Latency, throughput, memory: runtime.manifest.json" in plain


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
    assert verdict_word(report) == "PASS"


def test_a_tail_beyond_its_limit_warns_or_fails() -> None:
    """A policy that only warns says warning, unless the gate does not hold."""
    report = copy.deepcopy(PAGE)
    report["primary_metric_tail"] |= {"passed": False, "warned": True, "mode": "warn"}
    row = check(report, "Tail of the differences")
    assert (row.status, "only warns" in row.note) == ("warning", True)
    report["validation"]["primary_metric_tail_acceptable"] = False
    assert check(report, "Tail of the differences").status == "fail"


def test_a_pass_without_a_passing_slice_is_a_page_too() -> None:
    """Pages are made of reports that were not verified: what contradicts itself is said."""
    report = make_sliced({})
    for part in report["primary_metric"]["slices"]:
        part["decision"] = "fail"
    assert report["primary_metric"]["decision"] == "pass"
    assert "contradicts the decision" in check(report, "Primary metric").note


def test_activation_rows() -> None:
    """The RMT row names the module furthest beyond its limit, which heads the violations."""
    ratios = {v["module"]: v["edge_cur"] / v["allowed"] for v in HARM["rmt"]["epsilon_violations"]}
    worst = max(ratios, key=lambda module: ratios[module])
    row = check(HARM, "RMT (activations)")
    assert row.status == "fail"
    assert row.note == f"{len(ratios)} modules beyond, the furthest {worst}"
    section = next(s for s in outline(HARM).sections if s.id == "rmt")
    assert section.tables[1].rows[0][0] == worst


def test_variance_speaks_but_never_blocks() -> None:
    """A variance guard that found a helpful scale is a warning, not a failure."""
    assert check(PAGE, "Variance").status == "pass"
    row = check(HARM, "Variance")
    assert (row.status, row.measured) == ("warning", "scales proposed: 1")
    assert not gates(row, HARM)
    assert "never blocks" in row.note


def test_distribution_is_reported_or_decides() -> None:
    """Without limits the shift is reported; with them it passes or fails, with the distance."""
    assert check(make_report(tier="none"), "Distribution shift").status == "reported"
    report = copy.deepcopy(PAGE)
    report["resolved_policy"]["distribution"] = {"kl_mean_max": 1.0, "flip_fraction_max": 0.001}
    report["distribution"] |= {"gated": True, "passed": False}
    row = check(report, "Distribution shift")
    assert row.status == "fail"
    assert row.threshold == "mean KL at most 1.0000; flips at most 0.1 %"
    above = report["distribution"]["flips"]["fraction"] - 0.001
    assert row.note.endswith(f"; {above:.6f} above")
    report["validation"]["primary_metric_acceptable"] = False
    assert check(report, "Primary metric").status == "pass"  # the ratio itself is
    assert signals.pass_reasons(report) == ["distribution_fail"]
    assert headline(report).startswith("Distribution shift: fail")


def test_guard_warnings_are_listed() -> None:
    """What guards noticed is a table of at most twenty rows that states how many there are."""
    section = next(s for s in outline(HARM).sections if s.id == "guard-warnings")
    total = HARM["guard_warnings"]["warning_count"]
    assert section.tables[0].caption == f"Warnings (20 of {total})"
    assert len(section.tables[0].rows) == 20


@pytest.mark.parametrize(("kurtosis", "warned"), [(3.0, False), (17.9, False), (18.6, True)])
def test_heavy_tails_say_how_many_pass_at_the_limit(kurtosis: float, warned: bool) -> None:
    """The page states the false passes where the differences have heavy tails, not elsewhere."""
    report = copy.deepcopy(PAGE)
    report["primary_metric"]["kurtosis"] = kurtosis
    page = render_report_markdown(report)
    assert f"kurtosis {kurtosis:.1f} over documents" in page
    assert ("at exactly the limit 3 % pass" in page) is warned
