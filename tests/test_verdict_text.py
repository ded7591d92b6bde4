"""The verdict as people read it: ``final_verdict.txt``."""

from __future__ import annotations

from typing import Any

from report_factory import make_evaluation, make_report, manifest
from test_verdict import SMOKE, TINY, judge, scenario, with_other

from invarlock.verdict.text import render_verdict
from invarlock.verdict.verdict import compile_verdict

GOLDEN = """\
VERDICT: FAIL
Suite smoke, 1 model, 2 of 2 evaluations; 1 did not show what its scenario asks for.

What failed (paths are below the output folder)
  nan_injection on acme/tiny-llama, run 1: not detected; invariants did not speak
      see acme__tiny-llama/reports/nan_injection/run_1/evaluation.html
What to do
  Damage went unnoticed: it is too weak for this model, or the limits are too wide. Until that is
       settled, it shows little that an edit of this model passes.

Model acme/tiny-llama
  scenario       category  expects            ratio [95% interval]  spoke  outcome
  -------------  --------  -----------------  --------------------  -----  -------
  noop_clean     clean     pass               1.000 [1.000, 1.000]  -      ok
  nan_injection  damage    catch: invariants  1.000 [1.000, 1.000]  -      NOT OK
      why: not detected; invariants did not speak

Did the checks work on this model? (95% Clopper-Pearson; one count per model and scenario)
  invariants   caught 0 of 1   [0.000, 0.975]
  spectral     nothing was aimed at it
  rmt          nothing was aimed at it
  variance     nothing was aimed at it
  metric       nothing was aimed at it
  false alarms 0 of 1 clean   [0.000, 0.975]

Requirements
  ok      evidence_present
  ok      scenario_coverage
  ok      all_measured
  ok      evidence_consistent
  ok      clean_all_pass
  ok      custom_all_pass
  ok      stress_required_fail
  ok      stress_expected_detectors
  FAILED  error_injection_detected
          acme/tiny-llama nan_injection run_1: not detected; invariants did not speak
  FAILED  scenario_primary_guard_signal
          acme/tiny-llama nan_injection run_1: invariants did not speak
  FAILED  scenario_expected_detectors
          acme/tiny-llama nan_injection run_1: invariants_status=fail|error
  FAILED  guard_primary_demonstrated
          invariants caught none of its 1 scenarios
  ok      informational_stress_min_signal_fraction
"""


def test_text() -> None:
    """The text of a small verdict is what people read."""
    tiny = [
        make_evaluation(scenario("noop_clean"), make_report("noop_clean")),
        make_evaluation(scenario("nan_injection"), make_report("nan_injection")),
    ]
    verdict = compile_verdict(manifest(ids=TINY), tiny, [e.key for e in tiny])
    assert render_verdict(verdict) == GOLDEN


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


def test_a_pass_needs_no_list_of_requirements() -> None:
    """A PASS says that all requirements hold, in one line, and nothing about failures."""
    text = render_verdict(judge(SMOKE))
    assert text.endswith(f"Requirements: all {len(judge(SMOKE)['requirements'])} hold.\n")
    assert "What" not in text


def test_a_fail_names_the_log_of_what_has_no_report() -> None:
    """A crash points to its log and asks for more memory; nothing is said about its edit."""
    text = opening(judge(with_other("quant_8bit_clean", None, status="crashed")))
    assert "logs/acme__tiny-llama/quant_8bit_clean/evaluate.1.log" in text
    assert "timeout_minutes" in text
    assert "harmless" not in text


def test_a_fail_gives_advice_by_what_failed() -> None:
    """A refused clean edit, unnoticed damage, and what is missing each have their line."""
    refused = opening(judge(with_other("quant_8bit_clean", make_report("quant_8bit_clean", 1.3))))
    assert "A harmless edit was refused" in refused
    assert "reports/quant_8bit_clean/run_1/evaluation.html" in refused
    unnoticed = opening(judge(with_other("nan_injection", make_report("nan_injection"))))
    assert unnoticed.count("Damage went unnoticed") == 1
    absent = opening(judge(SMOKE[:-3]))
    assert "3 evaluations are missing" in absent
    assert "it makes only what is missing" in absent


def test_a_fail_names_the_first_few() -> None:
    """Of many failures the opening names some and says how many more there are."""
    text = opening(judge([make_evaluation(scenario(e.scenario), None) for e in SMOKE]))
    assert f"and {len(SMOKE) - 8} more" in text
    assert text.count("see logs/") == 8
