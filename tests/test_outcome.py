"""The third outcome: too little evidence is not a bad model, and the worst finding comes first."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pack_factory as packs
import pytest
import report_factory as factory
from report_factory import DOWN, make_crashed, make_evaluation, make_report, scenario
from test_verdict import SMOKE, judge, with_other

from invarlock import contracts
from invarlock.cli import main as cli
from invarlock.files import canonical_json
from invarlock.metrics.perplexity import Bootstrap
from invarlock.reporting import signals
from invarlock.reporting.dashboard import all_checks, headline, verdict_word
from invarlock.reporting.outcome import needed, outcome, outcome_of, too_little
from invarlock.reporting.render import explain, render_report_html, render_report_markdown
from invarlock.reporting.replay import replay
from invarlock.verdict.text import render_verdict

Document = dict[str, Any]


@pytest.fixture
def windows() -> Iterator[Callable[[int], None]]:
    """A function that makes the factory's runs as short as it is told."""
    with ExitStack() as stack:
        yield lambda count: stack.enter_context(factory.sized(count))


def gate(document: Document, folder: Path, *options: str) -> int:
    """The exit code of `invarlock gate` on a report or verdict."""
    path = folder / "evaluation.report.json"
    path.write_bytes(canonical_json(document))
    return cli(["gate", str(path), *options])


# --- a report -----------------------------------------------------------------------------------


def test_too_few_windows_are_inconclusive(windows, tmp_path, capsys) -> None:
    """Nothing is bad, the floors are not met: every place says so, and what would do."""
    windows(90)
    report = make_report("custom", 1.004)
    assert (verdict_word(report), outcome(report)) == ("INCONCLUSIVE", "inconclusive")
    assert report["assurance"]["report_local_verdict"] == "fail"  # the published word
    assert report["assurance"]["outcome"] == "inconclusive"
    needs = {n["what"]: (n["have"], n["need"]) for n in report["assurance"]["evidence_needed"]}
    assert needs == {
        "tokens": (25920, 50000),
        "preview_windows": (90, 180),
        "final_windows": (90, 180),
    }
    words = "too little evidence (25,920 of 50,000 tokens, 90 of 180 preview windows"
    assert gate(report, tmp_path) == 8
    assert capsys.readouterr().out.startswith(f"INCONCLUSIVE: custom on acme/tiny-llama: {words}")
    for page in (explain(report), render_report_markdown(report), render_report_html(report)):
        assert "25,920 of 50,000 tokens" in page
        assert "INCONCLUSIVE" in page
    contracts.validate(report, "evaluation-report", "report")
    assert replay(report) == []


@pytest.mark.parametrize(
    ("ratio", "count", "expected", "reason"),
    [
        (1.004, 180, "pass", None),
        (1.004, 40, "inconclusive", "tokens_below_floor"),  # the tail is not judged either
        (1.1005, 180, "inconclusive", "primary_metric_inconclusive"),
        (1.1005, 40, "inconclusive", "primary_metric_inconclusive"),
        (1.6, 180, "fail", "primary_metric_fail"),
        (1.6, 40, "fail", "primary_metric_fail"),  # bad is bad, on few windows too
    ],
)
def test_outcome_by_evidence(windows, ratio, count, expected, reason) -> None:
    """Pass needs everything, fail needs something bad, the rest is inconclusive."""
    windows(count)
    report = make_report("custom", ratio)
    reasons = signals.pass_reasons(report)
    assert outcome(report) == report["assurance"]["outcome"] == expected
    assert reasons[:1] == ([] if reason is None else [reason])
    assert bool(needed(report)) == (expected == "inconclusive")
    assert replay(report) == []


def test_a_guard_that_found_something_is_no_lack_of_evidence(windows) -> None:
    """Too few windows beside an activation edge that grew: fail, and the guard is the reason."""
    windows(60)
    report = make_report("custom", 1.004, edge={DOWN: 2.0})
    assert outcome(report) == "fail"
    assert signals.pass_reasons(report)[0] == "rmt_fail"
    assert headline(report).startswith("RMT (activations): fail")


def test_drift_without_enough_windows_decides_nothing(windows) -> None:
    """It has no interval: the same drift fails on enough windows and is open on too few."""

    def moved(run: Document) -> None:
        arm = run["evaluation_windows"]["preview"]
        arm["nll_sum"] = [
            nll - 0.06 * n for nll, n in zip(arm["nll_sum"], arm["token_counts"], strict=True)
        ]
        run["work"]["bare_nll"] = [arm["nll_sum"][row] for row in factory.CALIBRATION]

    enough = make_report("custom", 1.004, subject=moved)
    assert signals.pass_reasons(enough) == ["drift_fail"]
    windows(60)
    few = make_report("custom", 1.004, subject=moved)
    assert few["validation"]["preview_final_drift_acceptable"] is False
    assert outcome(few) == "inconclusive"
    assert "drift_inconclusive" in signals.pass_reasons(few)
    row = next(c for c in all_checks(few) if c.flag == "preview_final_drift_acceptable")
    assert row.status == "inconclusive"


@pytest.mark.parametrize(
    ("settings", "what"),
    [(Bootstrap(400, 0.05, 7), "replicates"), (Bootstrap(1200, 0.1, 7), "alpha")],
)
def test_a_weak_interval_is_inconclusive(monkeypatch, settings, what) -> None:
    """Fewer replicates than the tier asks for, or a wider error, are no fault of the subject."""
    monkeypatch.setattr(factory, "BOOTSTRAP", settings)
    report = make_report("custom", 1.004)
    assert outcome(report) == "inconclusive"
    assert [n.what for n in needed(report)] == [what]
    assert replay(report) == []


def test_one_document_is_inconclusive(monkeypatch) -> None:
    """A text file without paragraphs is one document, of whose variation nothing is known."""

    def one(name: str, shift: float) -> Document:
        found = dict(plain_arm(name, shift))
        found["clusters"] = ["doc-0"] * len(found["window_ids"])
        return found

    plain_arm = factory.arm
    monkeypatch.setattr(factory, "arm", one)
    monkeypatch.setattr(factory, "BASELINE", factory.run_report("baseline"))
    report = make_report("custom", 1.004)
    assert outcome(report) == "inconclusive"
    assert [(n.what, n.have, n.need) for n in needed(report)] == [("documents", 1, 2)]
    assert "1 of 2 documents" in headline(report)


@pytest.mark.parametrize(
    ("status", "expected"),
    [("out_of_memory", "inconclusive"), ("timeout", "inconclusive"), ("crashed", "fail")],
)
def test_what_this_machine_could_not_run_is_not_bad(status, expected) -> None:
    """Memory and time are the machine's; a subject that cannot be loaded is at fault itself."""
    report = make_crashed("quant_8bit_clean", status)
    assert (outcome(report), verdict_word(report)) == (expected, "NOT MEASURED")
    verdict = judge(with_other("quant_8bit_clean", report, status=status))
    assert (verdict["verdict"], verdict["outcome"]) == ("FAIL", expected)


def test_losses_that_are_not_finite_are_bad() -> None:
    """A subject that predicts nothing is no lack of evidence."""

    def broken(run: Document) -> None:
        run["evaluation_windows"]["final"]["nll_sum"][0] = None

    report = make_report("custom", 1.004, subject=broken)
    assert outcome(report) == "fail"
    assert signals.pass_reasons(report)[0] == "primary_metric_degraded"


def test_no_reason_is_both() -> None:
    """Every reason either names something bad or evidence that is lacking."""
    assert outcome_of([]) == "pass"
    assert outcome_of(["tokens_below_floor", "rmt_fail"]) == "fail"
    assert outcome_of(["tokens_below_floor", "not_evaluated:rmt_stable"]) == "inconclusive"
    assert too_little([], ["timeout"]) == "the subject was not measured (timeout)"


# --- a suite ------------------------------------------------------------------------------------


def text_of(verdict: Document) -> str:
    """The text, contracts checked on the way."""
    contracts.validate(json.loads(json.dumps(verdict)), "final-verdict", "verdict")
    return render_verdict(verdict)


def test_a_suite_is_inconclusive_where_only_evidence_is_lacking(tmp_path) -> None:
    """The published member says FAIL; nothing failed in JUnit's words. For the text: golden."""
    verdict = judge(with_other("quant_8bit_clean", make_report("quant_8bit_clean", 1.1005)))
    assert (verdict["verdict"], verdict["outcome"]) == ("FAIL", "inconclusive")
    record = next(r for r in verdict["records"] if r["name"] == "quant_8bit_clean")
    assert (record["outcome"], record["undecided"]) == ("inconclusive", True)
    assert verdict["false_alarms"]["flagged"] == 0  # nothing was alarmed
    assert verdict["false_alarms"]["total"] == judge(SMOKE)["false_alarms"]["total"] - 1
    junit = tmp_path / "junit.xml"
    assert gate(verdict, tmp_path, "--junit", str(junit)) == 8
    root = ElementTree.fromstring(junit.read_text())
    assert root.get("failures") == "0"
    assert root.get("errors") == "2"  # the evaluation, and the requirement it leaves open
    assert len(root.findall(".//error")) == 2


def test_one_real_failure_makes_the_suite_fail() -> None:
    """Beside an open evaluation, damage that went unnoticed is a FAIL, and is named first."""
    both = [
        e
        for e in with_other("quant_8bit_clean", make_report("quant_8bit_clean", 1.1005))
        if e.scenario != "nan_injection"
    ]
    both.append(make_evaluation(scenario("nan_injection"), make_report("nan_injection")))
    verdict = judge(both)
    assert (verdict["verdict"], verdict["outcome"]) == ("FAIL", "fail")
    text = text_of(verdict)
    assert text.startswith("VERDICT: FAIL\n")
    named = text.partition("What failed")[2]
    assert named.index("nan_injection") < named.index("quant_8bit_clean")


def test_a_stress_edit_that_is_only_open_was_not_refused() -> None:
    """An interval across the limit is no refusal: neither counted nor called as expected."""
    name = "prune_50pct_stress"
    report = make_report(name, 1.1005, scale={DOWN + ".weight": 1.5})  # one cap, in the budget
    verdict = judge(with_other(name, report))
    record = next(r for r in verdict["records"] if r["name"] == name)
    assert (record["as_expected"], record["undecided"]) == (False, True)
    assert verdict["counts"]["stress_fail"] == judge(SMOKE)["counts"]["stress_fail"] - 1
    assert verdict["outcome"] == "inconclusive"


def test_a_guard_that_was_silent_on_enough_has_missed(windows) -> None:
    """Weights are looked at whatever the windows: damage that spectral missed stays a FAIL."""
    windows(60)
    name = "rank_collapse"
    report = make_report(name, 1.004)
    assert outcome(report) == "inconclusive"
    verdict = judge(with_other(name, report))
    record = next(r for r in verdict["records"] if r["name"] == name)
    assert (record["undecided"], verdict["outcome"]) == (False, "fail")


def test_missing_evaluations_are_inconclusive(tmp_path) -> None:
    """What is not there says nothing."""
    verdict = judge(SMOKE[:-1])
    assert (verdict["verdict"], verdict["outcome"]) == ("FAIL", "inconclusive")
    assert gate(verdict, tmp_path) == 8


def test_the_gate_refuses_an_outcome_that_contradicts_its_records(tmp_path) -> None:
    """Inconclusive above a record that failed, or above a PASS: exit 3."""
    bad = judge(with_other("nan_injection", make_report("nan_injection")))
    assert gate(bad, tmp_path) == 1
    assert gate(bad | {"outcome": "inconclusive"}, tmp_path) == 3
    assert gate(judge(SMOKE) | {"outcome": "inconclusive"}, tmp_path) == 3


def test_an_older_verdict_has_no_outcome(tmp_path) -> None:
    """FAIL is 1 as before; a PASS without the evaluations beside it is only believed."""
    for verdict, code in ((judge(SMOKE), 7), (judge(SMOKE[:-1]), 1)):
        older = {key: value for key, value in verdict.items() if key != "outcome"}
        assert gate(older, tmp_path) == code


def test_a_pack_of_an_inconclusive_verdict(tmp_path, capsys) -> None:
    """It is built and verifies; its published word is FAIL. The rest is in tests/golden."""
    suite = packs.write_suite(tmp_path / "out", packs.IDS, packs.open_clean)
    pack = tmp_path / "pack"
    assert packs.build(suite, pack, key=packs.new_key(tmp_path / "key.pem")) == 0
    assert "verdict INCONCLUSIVE" in capsys.readouterr().out
    assert packs.verify(pack, "--strict", "--replay", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"] == {
        "recorded": "FAIL",
        "recomputed": "FAIL",
        "outcome": "inconclusive",
    }


@pytest.mark.parametrize("written", ["FAIL", "INCONCLUSIVE"])
def test_an_outcome_is_recomputed(tmp_path, capsys, written) -> None:
    """A FAIL that is called inconclusive, and the other way round, is refused with exit 6."""
    change = packs.open_clean if written == "FAIL" else packs.failed_clean
    suite = packs.write_suite(tmp_path / "out", packs.IDS, change)
    path = suite / "reports/final_verdict.json"
    verdict = json.loads(path.read_text())
    packs.write_json(path, verdict | {"outcome": written.lower()})
    assert packs.build(suite, tmp_path / "pack") != 0
    assert "/outcome is" in capsys.readouterr().err
