"""The verdict: what turns PASS into FAIL, what is counted, what is written."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from report_factory import (
    MODEL,
    good_suite,
    make_evaluation,
    make_rejected,
    make_report,
    manifest,
    replace,
    scenario,
    write_evaluation,
)

from invarlock.cli import main
from invarlock.contracts import validate
from invarlock.errors import InputError
from invarlock.verdict.records import Evaluation, load_evaluation
from invarlock.verdict.text import render_verdict
from invarlock.verdict.verdict import compile_verdict

SMOKE = good_suite()
EXPECTED = [e.key for e in SMOKE]
TINY = ["noop_clean", "nan_injection"]


def judge(
    evaluations: Sequence[Evaluation], expected: Sequence[tuple[str, str, int]] = EXPECTED
) -> dict[str, Any]:
    """The verdict on suite smoke."""
    return compile_verdict(manifest(), evaluations, expected)


def with_other(name: str, report: dict[str, Any] | None, **outcome: Any) -> list[Evaluation]:
    """Suite smoke with the evaluation of one scenario replaced."""
    evaluations = [*SMOKE]
    replace(evaluations, name, report, **outcome)
    return evaluations


def failed(verdict: dict[str, Any]) -> set[str]:
    """The requirements that do not hold."""
    assert (verdict["verdict"] == "FAIL") == bool(verdict["failed_requirements"])
    return set(verdict["failed_requirements"])


def test_good_suite_passes() -> None:
    """Every scenario shows what it has to: PASS, and the document follows its contract."""
    verdict = judge(SMOKE)
    assert verdict["verdict"] == "PASS"
    assert all(r["as_expected"] for r in verdict["records"])
    validate(verdict, "final-verdict", "verdict")


@pytest.mark.parametrize("name", [e.scenario for e in SMOKE if scenario(e.scenario).is_error])
def test_harmless_injection_fails_the_suite(name: str) -> None:
    """Swapping any one injection for a harmless one turns PASS into FAIL."""
    verdict = judge(with_other(name, make_report(name)))
    required = {"scenario_primary_guard_signal", "scenario_expected_detectors"}
    if scenario(name).strictness == "must_detect":
        required.add("error_injection_detected")
    assert required <= failed(verdict)


# The report's ratio, the requirements that do not hold, and the false alarms.
UNMET = {
    "a stress edit that passes": ("quant_4bit_stress", 1.01, {"stress_required_fail"}, 0),
    "another one": ("prune_50pct_stress", 1.01, {"stress_required_fail"}, 0),
    "one of another kind": ("svd_stress", 1.01, {"stress_required_fail"}, 0),
    "a clean edit that does not pass": ("quant_8bit_clean", 1.3, {"clean_all_pass"}, 1),
    "a clean edit not shown to be harmless": ("quant_8bit_clean", 1.1005, {"clean_all_pass"}, 0),
    "a no-op that is not exact": ("noop_clean", 1.0 + 1e-9, {"clean_all_pass"}, 1),
}


@pytest.mark.parametrize("case", UNMET)
def test_an_edit_that_shows_something_else_fails_the_suite(case: str) -> None:
    """One report turns PASS into FAIL; what is only undecided is no false alarm."""
    name, ratio, required, alarms = UNMET[case]
    verdict = judge(with_other(name, make_report(name, ratio)))
    assert required <= failed(verdict)
    if scenario(name).category == "clean":
        assert failed(verdict) == required
    assert verdict["false_alarms"]["flagged"] == alarms
    record = next(r for r in verdict["records"] if r["name"] == name)
    assert ("ratio_not_exact" in record["reasons"]) == (name == "noop_clean")


def test_missing_evaluation_fails() -> None:
    """An evaluation that is not there fails the verdict and is named."""
    verdict = judge(SMOKE[:-1])
    assert failed(verdict) == {"scenario_coverage"}
    assert verdict["missing"]["by_model"] == {MODEL: [f"{SMOKE[-1].scenario}/run_1"]}


def test_missing_model_fails() -> None:
    """A model of the suite that produced nothing fails the verdict."""
    expected = [*EXPECTED, *(("acme/other", s, n) for _, s, n in EXPECTED)]
    verdict = judge(SMOKE, expected)
    assert failed(verdict) == {"scenario_coverage"}
    assert len(verdict["missing"]["by_model"]["acme/other"]) == len(EXPECTED)


def test_nothing_at_all_fails() -> None:
    """No evaluation and nothing expected is not a PASS."""
    assert "evidence_present" in failed(judge([], []))


@pytest.mark.parametrize("status", ["crashed", "out_of_memory", "timeout"])
@pytest.mark.parametrize("name", ["nan_injection", "quant_8bit_clean", "quant_4bit_stress"])
def test_crash_is_no_result(name: str, status: str) -> None:
    """A crash neither detects nor passes nor fails as it must, even beside a report."""
    good = next(e for e in SMOKE if e.scenario == name)
    crashed = dataclasses.replace(good, outcome={**good.outcome, "status": status})
    verdict = judge([crashed if e.scenario == name else e for e in SMOKE])
    record = next(r for r in verdict["records"] if r["name"] == name)
    assert "all_measured" in failed(verdict)
    assert [record[k] for k in ("passed", "detectors_hit", "primary_guard_hit")] == [False] * 3
    assert not record["as_expected"]


def test_not_injected_is_not_detected() -> None:
    """A report that shows damage proves nothing when none was injected."""
    good = next(e for e in SMOKE if e.scenario == "nan_injection")
    for injected in (False, None):
        swapped = dataclasses.replace(good, outcome={**good.outcome, "injected": injected})
        verdict = judge([swapped if e.scenario == "nan_injection" else e for e in SMOKE])
        record = next(r for r in verdict["records"] if r["name"] == "nan_injection")
        assert "error_injection_detected" in failed(verdict)
        assert record["why"].startswith("no damage was injected")
        assert record["detectors_hit"] is False


def test_the_named_guard_must_speak() -> None:
    """Damage aimed at the spectral guard that only perplexity shows counts as missed."""
    verdict = judge(with_other("scale_explosion", make_report("scale_explosion", 40.0)))
    assert {"error_injection_detected", "scenario_primary_guard_signal"} <= failed(verdict)
    assert verdict["detection"]["spectral"]["detected"] == 5
    assert verdict["detection"]["spectral"]["total"] == 6  # a probe that it has to see included


def test_rejection_is_not_the_metric_failing() -> None:
    """A stress edit that invariants refuse has not shown that the metric catches it."""
    verdict = judge(with_other("svd_stress", make_rejected("svd_stress")))
    assert {"stress_required_fail", "stress_expected_detectors"} <= failed(verdict)


def test_every_run_counts() -> None:
    """A bad first run is not mended by a good second one."""
    second = [dataclasses.replace(e, run=2) for e in SMOKE]
    expected = [*EXPECTED, *(e.key for e in second)]
    assert judge([*SMOKE, *second], expected)["verdict"] == "PASS"
    first = with_other("nan_injection", make_report("nan_injection"))
    verdict = judge([*first, *second], expected)
    assert "error_injection_detected" in failed(verdict)
    rate = verdict["detection"]["invariants"]
    assert rate["detected"] == rate["total"] - 1


def _other_scenario(evaluation: Evaluation) -> None:
    assert evaluation.report is not None
    evaluation.report["edit"]["scenario"] = "noop_clean"  # type: ignore[index]


def _other_subject(evaluation: Evaluation) -> None:
    assert evaluation.report is not None
    evaluation.report["provenance"]["subject"]["checkpoint_sha256"] = "0" * 64  # type: ignore[index]


def _other_status(evaluation: Evaluation) -> None:
    evaluation.outcome["status"] = "reported"  # type: ignore[index]


@pytest.mark.parametrize("change", [_other_scenario, _other_subject, _other_status])
def test_outcome_and_report_must_agree(change: Callable[[Evaluation], None]) -> None:
    """An outcome that contradicts its report fails the verdict."""
    changed = copy.deepcopy(SMOKE)
    change(next(e for e in changed if e.scenario == "nan_injection"))
    assert "evidence_consistent" in failed(judge(changed))


def test_same_evaluation_twice() -> None:
    """Two evaluations of one run, or one of a foreign scenario, are refused."""
    with pytest.raises(InputError, match="given twice"):
        judge([*SMOKE, SMOKE[0]])
    with pytest.raises(InputError, match="byoe is not in the manifest"):
        judge([make_evaluation(scenario("byoe", "byoe"), make_report("byoe"))])


def test_order_does_not_matter() -> None:
    """The document does not depend on the order of the evaluations."""
    assert json.dumps(judge(SMOKE)) == json.dumps(judge(SMOKE[::-1], EXPECTED[::-1]))


def test_informational_fraction() -> None:
    """At least half of the informational stress evaluations have to give a signal."""
    ids = ["quant_4bit_stress", "fp8_e5m2_stress"]
    quiet = [make_evaluation(scenario(i, "subset"), make_report(i, 1.01)) for i in ids]
    loud = make_evaluation(scenario(ids[0], "subset"), make_report(ids[0], 1.5))
    for evaluations, expected in ((quiet, False), ([loud, quiet[1]], True)):
        verdict = compile_verdict(manifest("subset", ids), evaluations, [e.key for e in quiet])
        ok = "informational_stress_min_signal_fraction" not in verdict["failed_requirements"]
        assert ok is expected


def test_custom_subject_decides() -> None:
    """In suite byoe the user's own subject has to pass, and is no false alarm when it fails."""
    controls = [e for e in good_suite("byoe") if e.scenario != "byoe"]
    for ratio, expected in ((1.01, "PASS"), (1.4, "FAIL")):
        mine = make_evaluation(scenario("byoe", "byoe"), make_report("byoe", ratio))
        evaluations = [*controls, mine]
        verdict = compile_verdict(manifest("byoe"), evaluations, [e.key for e in evaluations])
        assert verdict["verdict"] == expected
        assert verdict["false_alarms"]["flagged"] == 0


def test_counts_and_summaries() -> None:
    """The published counts and summaries say what the suite holds."""
    verdict = judge(SMOKE)
    counts, held = verdict["counts"], [scenario(e.scenario) for e in SMOKE]
    clean = sum(s.category == "clean" for s in held)
    stress = sum(s.strictness == "must_fail" for s in held)
    damage = sum(s.strictness == "must_detect" for s in held)
    guards = [s.primary_guard for s in held if s.is_error]
    assert (counts["clean_pass"], counts["clean_total"]) == (clean, clean)
    assert (counts["stress_fail"], counts["catastrophic_required_fail"]) == (stress, stress)
    assert counts["error_injection_detected"] == counts["error_injection_total"] == damage
    assert (counts["expected_failure_reports"], counts["failed_reports"]) == (stress + damage, 0)
    seen = guards.count("invariants")
    signals = verdict["guard_signal_summary"]["signals"]
    assert signals["invariants"] == {"flagged": seen, "unique": seen}
    assert verdict["category_summary"]["stress"]["primary_metric_fail"] == stress
    rows = {row["id"]: row for row in verdict["scenario_signal_summary"]}
    assert rows["rank1_projection"]["primary_guard_hits"] == 1
    caps = verdict["guard_intervention_summary"]["signals"]["spectral_caps"]
    assert caps["flagged"] == guards.count("spectral") - 1  # exchanged rows cap no matrix


def test_not_evaluated_is_listed() -> None:
    """Gates that some report leaves out are named."""
    assert judge(SMOKE)["not_evaluated"] == []
    exploring = make_report("noop_clean", tier="none")
    verdict = judge([make_evaluation(scenario("noop_clean"), exploring), *SMOKE[1:]])
    assert {"rmt_stable", "primary_metric_tail_acceptable"} <= set(verdict["not_evaluated"])


def test_rates_of_guards() -> None:
    """A probe that its guard has to see counts; a guard that nothing aims at has no rate."""
    assert judge(SMOKE)["detection"]["rmt"]["total"] == 2  # one seen by the guard beside it
    assert judge(SMOKE)["detection"]["variance"]["detected"] == 1
    few = [e for e in SMOKE if e.scenario in TINY]
    none = judge(few, [e.key for e in few])["detection"]["rmt"]
    assert (none["total"], none["lower"]) == (0, None)


def test_command(tmp_path: Path) -> None:
    """The command writes verdict, text and summaries, twice the same bytes, and exits 0 on FAIL."""
    suite = good_suite(ids=TINY)
    folders = [str(write_evaluation(e, tmp_path / "out")) for e in suite]
    effective = tmp_path / "scenarios.json"
    effective.write_text(json.dumps(manifest(ids=TINY)))

    def run(name: str, chosen: list[str]) -> dict[str, bytes]:
        out = tmp_path / name
        argv = ["verdict", "--scenarios", str(effective), "--evaluation", *chosen]
        argv += ["--out-dir", str(out), "--analysis-dir", str(out / "analysis")]
        assert main(argv) == 0
        files = sorted(p for p in out.rglob("*") if p.is_file())
        return {str(p.relative_to(out)): p.read_bytes() for p in files}

    first, second = run("a", folders), run("b", folders[::-1])
    assert first == second
    assert set(first) == {
        "analysis/edit_artifact_summary.json",
        "category_summary.json",
        "final_verdict.json",
        "final_verdict.txt",
        "guard_intervention_summary.json",
        "guard_signal_summary.json",
        "scenario_signal_summary.json",
        "verification_summary.json",
    }
    assert json.loads(first["final_verdict.json"])["verdict"] == "PASS"
    assert json.loads(run("c", folders[:1])["final_verdict.json"])["verdict"] == "FAIL"


def test_load_refuses_the_wrong_folder(tmp_path: Path) -> None:
    """An outcome in another scenario's folder, or without its report, is refused."""
    folder = write_evaluation(good_suite(ids=["noop_clean"])[0], tmp_path)
    assert load_evaluation(folder).scenario == "noop_clean"
    elsewhere = folder.parent.parent / "nan_injection" / "run_1"
    elsewhere.parent.mkdir()
    folder.rename(elsewhere)
    with pytest.raises(InputError, match="belongs to another evaluation"):
        load_evaluation(elsewhere)
    elsewhere.rename(folder)
    (folder / "evaluation.report.json").unlink()
    with pytest.raises(InputError, match=r"evaluation\.report\.json"):
        load_evaluation(folder)


def test_damage_that_a_guard_beside_sees_counts_for_the_one_that_is_named() -> None:
    """Representation has no name in the published format, and shares the flag of RMT."""
    name = "value_heads_shifted"
    report = make_report(name, 1.07, moved={"model.layers.1.self_attn.o_proj": 0.8})
    verdict = judge(with_other(name, report))
    (record,) = (r for r in verdict["records"] if r["name"] == name)
    assert (record["guard_flags"]["rmt"], record["primary_guard_hit"]) == (False, True)
    assert record["as_expected"]
    row = next(line for line in render_verdict(verdict).splitlines() if name in line)
    assert "represent." in row.split()
