"""The verdict as people read it: ``final_verdict.txt``."""

from __future__ import annotations

import functools
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from report_factory import (
    DOWN,
    catalogue,
    expected_report,
    make_evaluation,
    make_rejected,
    make_report,
    manifest,
    probed_report,
    scenario,
)
from test_verdict import SMOKE, judge, with_other

from invarlock.reporting.dashboard import headline
from invarlock.verdict.records import Evaluation
from invarlock.verdict.text import render_verdict, word_of
from invarlock.verdict.verdict import compile_verdict


def test_text_is_plain() -> None:
    """The text is ASCII of at most 108 columns, whatever the model is called."""
    name = "acme/\u202eevil\x1b[31m" + "x" * 200
    evaluations = [make_evaluation(scenario(e.scenario), e.report, model_id=name) for e in SMOKE]
    text = render_verdict(judge(evaluations, []))
    assert text.isascii()
    assert all(c.isprintable() or c == "\n" for c in text)
    assert max(map(len, text.splitlines())) <= 108


# --- a FAIL tells first what failed and what to do ----------------------------------------------


def opening(verdict: dict[str, Any]) -> str:
    """The text before the first table."""
    return render_verdict(verdict).partition("\nModel ")[0]


def test_a_fail_names_the_first_few() -> None:
    """Of many failures the opening names some and says how many more there are."""
    text = opening(judge([make_evaluation(scenario(e.scenario), None) for e in SMOKE]))
    assert f"and {len(SMOKE) - 8} more" in text
    assert text.count("see logs/") == 8


def test_a_fail_asks_for_more_windows_where_they_would_decide() -> None:
    """An interval across the limit, of a no-op too, is no edit that is too strong."""
    across = opening(judge(with_other("quant_8bit_clean", make_report("quant_8bit_clean", 1.1005))))
    noop = make_report("noop_clean")
    noop["primary_metric"] |= {"decision": "inconclusive", "display_ci": None}
    noop["validation"]["primary_metric_acceptable"] = False
    for text in (across, opening(judge(with_other("noop_clean", noop)))):
        assert "windows.final" in text
        assert "too strong" not in text
    inexact = opening(judge(with_other("noop_clean", make_report("noop_clean", 1.0 + 1e-9))))
    assert "Unchanged weights did not pass" in inexact
    assert "too strong" not in inexact


def test_a_tier_that_explores_is_said_under_the_verdict() -> None:
    """A PASS of guards that decide nothing must not read like one that says something."""
    plain = judge(SMOKE)
    assert "exploring" not in plain
    verdict = judge(with_other("noop_clean", make_report("noop_clean", tier="none")))
    first, second = render_verdict(verdict).splitlines()[:2]
    assert first == f"VERDICT: {word_of(verdict)}"
    assert second.startswith("Tier none explores: no floors hold")
    assert headline(make_report("noop_clean", tier="none")).startswith("The metric holds, and")


def test_informational_stress_is_told_by_its_detectors() -> None:
    """Another guard that spoke is no hit, and neither row nor requirement says it was."""
    report = make_report(STRESS, 1.004, edge={DOWN: 1.5})
    found = make_evaluation(scenario(STRESS, "smoke-all"), report)
    verdict = compile_verdict(manifest("smoke-all", [STRESS]), [found], [found.key])
    assert verdict["scenario_signal_summary"][0]["signaled"] == 1
    assert verdict["counts"]["informational_stress_signaled"] == 0
    text = render_verdict(verdict)
    row = next(line for line in text.splitlines() if line.startswith(f"  {STRESS} "))
    assert row.split()[-2:] == ["rmt", "missed"]
    assert "0 of 1 hit their detectors" in text.partition("\nModel ")[0]
    assert "hit the detectors that their scenarios name" in text


# --- whatever the evaluations show ----------------------------------------------------------------

PROBE, STRESS = "spectral_moderate_scale", "lora_rank8_stress"
NAMES = (
    *("noop_clean", "prune_clean", "prune_50pct_stress", STRESS, "nan_injection", "extreme_quant"),
    *(PROBE, "rmt_norm_noise_l31_ffn_up_b030", "rmt_norm_noise_strong"),
    "spectral_moderate_scale_attn_l31_o_s105",
)
SHAPES = (
    *("expected", "harmless", "harmful", "undecided", "caught", "caught and harmful"),
    *("rejected", "crashed", "missing", "not injected", "contradictory"),
)
CHANGED: dict[str, dict[str, Any]] = {  # outcomes beside a report that shows what it has to
    "expected": {},
    "not injected": {"injected": False},
    "contradictory": {"subject_sha256": "0" * 64},
}
EVERY = "every one met the expectations of its scenario"


@functools.cache
def shaped(name: str, shape: str) -> Evaluation | None:
    """The evaluation of a scenario that shows one of SHAPES; None where it is missing."""
    held = catalogue().select("smoke-all", [name])[0]
    speak: dict[str, Any] = {"scale": {DOWN + ".weight": 1.5}, "edge": {DOWN: 1.5}}
    if shape == "missing":
        return None
    if shape == "crashed":
        return make_evaluation(held, None)
    if shape == "rejected":
        return make_evaluation(held, make_rejected(name))
    if shape in CHANGED and name != STRESS:
        changed = {} if shape == "not injected" and not held.is_error else CHANGED[shape]
        weak = held.is_error and held.intent == "subtle_detectable"
        return make_evaluation(held, (probed_report if weak else expected_report)(held), **changed)
    ratio = {"harmless": 1.004, "undecided": 1.1005, "caught": 1.03}.get(shape, 1.5)
    return make_evaluation(held, make_report(name, ratio, **(speak if "caught" in shape else {})))


def check_text(other: dict[str, str]) -> bool:
    """FAIL iff the text shows what is not ok, by evaluation where one is at fault."""
    suite = [shaped(name, other.get(name, "expected")) for name in NAMES]
    found = [e for e in suite if e is not None]
    expected = [(SMOKE[0].model, name, 1) for name in NAMES]
    verdict = compile_verdict(manifest("smoke-all", list(NAMES)), found, expected)
    text = render_verdict(verdict)
    fails = bool(verdict["verdict"] == "FAIL")
    assert any(mark in text for mark in ("  FAILED  ", "  open  ", "NOT OK")) == fails
    assert text.startswith(f"VERDICT: {word_of(verdict)}\n")
    assert (EVERY in text) != fails
    assert ("What to do" in text) == fails
    assert not fails or text.partition("What to do\n")[2].startswith("  ")
    wrong = {r["name"] for r in verdict["records"] if not r["as_expected"]}
    decided = {r["name"] for r in verdict["records"] if not (r["as_expected"] or r["undecided"])}
    assert sum(line.endswith("  NOT OK") for line in text.splitlines()) == len(decided)
    for requirement in verdict["requirements"]:
        for name in NAMES:  # a row is not ok under a requirement that it breaks
            broken = any(f" {name} run_1" in detail for detail in requirement["details"])
            apart = requirement["id"] in ("scenario_coverage", "evidence_consistent")
            assert not broken or apart or name in wrong
    return fails


def test_one_evaluation_differs() -> None:
    """Every shape of every scenario alone; none of them differing is a PASS."""
    assert not check_text({})
    fails = [check_text({name: shape}) for name in NAMES for shape in SHAPES]
    assert any(fails)
    assert not all(fails)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES), st.sampled_from(SHAPES), min_size=2))
def test_several_evaluations_differ(other: dict[str, str]) -> None:
    """Any shapes of any scenarios together."""
    check_text(other)
