"""Two finished runs that are compared: what they show is judged, and nothing more passes."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from pack_factory import new_key
from report_factory import (
    BASELINE,
    BOOTSTRAP,
    DOWN,
    FATAL,
    Document,
    parts,
    plain,
    run_report,
    token_shift,
)

from invarlock.cli import main
from invarlock.errors import ConfigError, InputError
from invarlock.evidence.report_verify import ReportOptions, verify_report
from invarlock.files import canonical_json
from invarlock.policy import load_policy
from invarlock.reporting.compare_runs import compare_runs
from invarlock.reporting.evaluation import evaluation_report
from invarlock.reporting.replay import replay
from invarlock.reporting.runs import Comparison
from invarlock.reporting.signals import guard_flags, pass_reasons
from invarlock.run.report import SCHEMA, against

CONTEXT = {"profile": "dev", "tier": "balanced"}
WHOLE = {"schema": SCHEMA, "context": CONTEXT}
BASE = plain(BASELINE | WHOLE)
BALANCED = load_policy("balanced")


def alone(name: str = "alone", ratio: float = 1.0, **how: object) -> Document:
    """The report of ``invarlock run`` on the subject."""
    return plain(run_report(name, math.log(ratio), **how) | WHOLE)


def together(name: str = "together", ratio: float = 1.0, **how: object) -> Document:
    """The report of a subject's run that ``invarlock evaluate`` made."""
    run = run_report(name, math.log(ratio), **how) | WHOLE
    shift = token_shift(math.log(ratio)) if run["evaluation_windows"] else None
    return plain(run | against(BASE, shift, BALANCED))


def write(folder: Path, run: Document) -> Path:
    """A run folder."""
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps(run))
    return folder


# --- runs of evaluate ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how",
    [{}, {"ratio": 1.004, "spread": {DOWN: 0.81}, "gain": 0.02}, {"ratio": 1.4, "rows": 3},
     {"windows": False, "failures": [FATAL]}],
    ids=["equal", "scales tried", "worse", "rejected"],
)  # fmt: skip
def test_a_run_of_evaluate_gives_the_report_that_evaluate_wrote(how: Document) -> None:
    """The same bytes: nothing that decides is lost between the two runs and the report."""
    subject = together(**how)
    ran = bool(subject["evaluation_windows"])
    comparison = Comparison(
        baseline=BASELINE,
        subject=subject,
        bootstrap=BOOTSTRAP,
        profile="dev",
        shift=token_shift(math.log(how.get("ratio", 1.0))) if ran else None,
        reason_not_run="" if ran else "rejected_by_invariants",
    )
    wanted = canonical_json(evaluation_report(comparison, BALANCED))
    assert canonical_json(compare_runs(subject, BASE, replicates=1200)) == wanted


def test_another_baseline_run_is_not_the_one_it_was_measured_with() -> None:
    """What was measured with one baseline says nothing of another: it counts as not measured."""
    other = copy.deepcopy(BASE)
    other["meta"]["run_id"] = "another"
    report = compare_runs(together(ratio=1.0), other)
    assert report["context"]["runs"] == "separate"
    assert report["assurance"]["outcome"] == "inconclusive"
    assert compare_runs(together(ratio=1.0), BASE)["assurance"]["outcome"] == "pass"


def test_scales_that_were_tried_hold_for_the_limits_of_then() -> None:
    """Other limits would have tried others."""
    with pytest.raises(ConfigError, match="variance tried scales by the limits of another"):
        compare_runs(together(), BASE, policy=load_policy("conservative"))


# --- runs that each measured their own model ----------------------------------------------------


@pytest.mark.parametrize("tier", ["none", "aggressive", "balanced", "conservative"])
@pytest.mark.parametrize("ratio", [0.8, 1.0, 1.0001])
def test_separate_runs_never_pass(tier: str, ratio: float) -> None:
    """However good the losses are: what needs both models is lacking, and that is all."""
    report = compare_runs(alone(ratio=ratio), BASE, policy=load_policy(tier))
    assert report["assurance"]["outcome"] == "inconclusive"
    assert {"not_evaluated:invariants_pass"} <= set(pass_reasons(report))
    assert not any(guard_flags(report).values())
    for name in ("invariants", "spectral", "representation", "distribution"):
        assert report[name]["evaluated"] is False, name
    assert replay(report) == []


def test_what_separate_runs_show_is_judged() -> None:
    """A subject that is worse fails, and so does one whose activations left their limit."""
    worse = compare_runs(alone(ratio=1.4), BASE)
    assert worse["assurance"]["outcome"] == "fail"
    assert guard_flags(worse)["primary_metric"]
    moved = compare_runs(alone(edge={DOWN: 2.0}), BASE)
    assert moved["assurance"]["outcome"] == "fail"
    found = guard_flags(moved)
    assert (found["rmt"], found["representation"]) == (True, False)
    assert replay(worse) == replay(moved) == []


def test_scales_that_nobody_tried_are_proposed_only() -> None:
    """The variance guard says that no run has tried them; a trial against another is dropped."""
    for subject in (alone(spread={DOWN: 0.5}), alone(spread={DOWN: 0.5}, gain=0.3)):
        variance = compare_runs(subject, BASE)["variance"]
        assert (list(variance["proposed_scales"]), variance["trial"]) == ([DOWN], None)
        assert variance["signal"] is False
        assert "needs both" in variance["predictive_gate"]["reason"]


def test_the_edit_of_separate_runs_is_what_the_weights_show() -> None:
    """``run`` names no edit: equal weights are a no-op, others somebody's own edit."""
    assert compare_runs(alone(), BASE)["edit"]["name"] == "custom"
    same = alone() | {"checkpoint": parts("baseline")}
    assert compare_runs(same, BASE)["edit"]["name"] == "noop"
    assert compare_runs(alone(), BASE, edit_label="quant")["edit"]["name"] == "quant"


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda r: r["context"].pop("runs"), "/distribution is left out"),
        (lambda r: r["context"].update(runs="apart"), "runs"),
        (lambda r: r["validation"].update(rmt_stable=True), "/validation/rmt_stable"),
        (lambda r: r["invariants"].update(evaluated=True, passed=True), "/invariants/"),
        (lambda r: r["spectral"].update(evaluated=True, passed=True), "cannot be read"),
        (lambda r: r["distribution"].update(passed=True), "/distribution/passed"),
        (lambda r: r["assurance"].update(outcome="pass"), "/assurance/outcome"),
    ],
)
def test_a_separate_report_cannot_say_more(change: Callable[[Document], None], found: str) -> None:
    """Each claim of something that was not measured is a finding of ``verify``."""
    report = plain(compare_runs(alone(), BASE))
    change(report)
    checked = verify_report(
        canonical_json(report), None, "report", ReportOptions(provenance="host", truth_only=True)
    )
    assert any(found in finding.message for finding in checked.findings), checked.findings


def test_no_report_of_evaluate_passes_for_being_called_separate() -> None:
    """Leaving out the guard that refuses a subject leaves out its flag too."""
    report = plain(compare_runs(together(rows=3), BASE))
    assert report["assurance"]["outcome"] == "fail"
    report["context"]["runs"] = "separate"
    assert replay(report) != []
    assert pass_reasons(report) != []


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda r: r.update(schema="x"), f"subject: not a run report; expected {SCHEMA}; found x"),
        (lambda r: r["data"].update(windows_sha256="0"), "/data/windows_sha256: the runs have"),
        (lambda r: r["meta"].update(dtype="bfloat16"), "/meta/dtype: the runs have another dtype"),
        (lambda r: r["meta"].update(metric="accuracy"), "/meta/metric: the runs have another met"),
        (lambda r: r["guards"][2].update(measurement_contract_hash="0"), "/guards/rmt: the runs"),
        (lambda r: r.update(evaluation_windows={}), "subject: the subject's run holds no windows"),
        (lambda r: r.update(evaluation_windows={}, guards=[]), "the subject's run measured noth"),
        (lambda r: r.pop("work"), "a run report lacks what is compared: KeyError 'work'"),
        (lambda r: r["evaluation_windows"]["final"].pop("nll_sum"), "lacks what is compared"),
    ],
)
def test_runs_that_cannot_be_compared(change: Callable[[Document], None], line: str) -> None:
    """One line says what differs, and where."""
    subject = alone()
    change(subject)
    with pytest.raises(InputError) as refused:
        compare_runs(subject, BASE)
    assert line in str(refused.value)


# --- the command --------------------------------------------------------------------------------


def test_the_published_line_writes_a_report_that_verifies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``report --run R --baseline B --format F --output DIR``: report, page, and the run's report;
    folders and their files name the same run."""
    run, base = write(tmp_path / "run", alone()), write(tmp_path / "base", BASE)
    words = ["report", "--run", str(run), "--baseline", str(base / "report.json"), "--format"]
    assert main([*words, "report", "--output", str(tmp_path / "a")]) == 0
    told = capsys.readouterr().out
    assert "inconclusive: too little evidence (not_evaluated:invariants_pass" in told
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [
        "evaluation.report.json", "report.json", "runtime.manifest.json",
    ]  # fmt: skip
    assert main(["verify", str(tmp_path / "a"), "--baseline", str(base), "--replay"]) == 0
    assert main(["verify", str(tmp_path / "a"), "--profile", "ci"]) == 1
    assert main(["gate", str(tmp_path / "a" / "evaluation.report.json")]) == 8
    for form, name in (("markdown", "evaluation.md"), ("html", "evaluation.html")):
        assert main([*words, form, "--output", str(tmp_path / form)]) == 0
        assert (tmp_path / form / name).is_file()
        assert (tmp_path / form / "evaluation.report.json").read_bytes() == (
            tmp_path / "a/evaluation.report.json"
        ).read_bytes()


def test_a_comparison_is_printed_where_no_folder_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the published quick start has it."""
    run, base = write(tmp_path / "run", together()), write(tmp_path / "base", BASE)
    assert main(["report", "--run", str(run), "--baseline", str(base), "--format", "report"]) == 0
    assert json.loads(capsys.readouterr().out)["assurance"]["outcome"] == "pass"


def test_a_report_that_is_there_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same bytes leave its manifest alone; others want --force."""
    base, out = write(tmp_path / "base", BASE), tmp_path / "out"
    words = ["--baseline", str(base), "--format", "report", "--output", str(out)]
    run = write(tmp_path / "run", alone())
    assert main(["report", "--run", str(run), *words]) == 0
    (out / "runtime.manifest.json").write_text("evaluate's own")
    assert main(["report", "--run", str(run), *words]) == 0
    assert (out / "runtime.manifest.json").read_text() == "evaluate's own"
    other = write(tmp_path / "other", alone("other", 1.4))
    assert main(["report", "--run", str(other), *words]) == 2
    assert "overwrite it with --force" in capsys.readouterr().err
    assert main(["report", "--run", str(other), *words, "--force"]) == 0
    assert json.loads((out / "evaluation.report.json").read_text())["assurance"]["outcome"] == (
        "fail"
    )


def test_the_report_of_one_run_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``report --run B --format report --output DIR`` without a baseline archives report.json."""
    base = write(tmp_path / "base", BASE)
    assert main(["report", "--run", str(base), "--format", "report", "--output",
                 str(tmp_path / "kept")]) == 0  # fmt: skip
    assert "without --baseline nothing is compared" in capsys.readouterr().out
    kept = (tmp_path / "kept/report.json").read_bytes()
    assert kept == (base / "report.json").read_bytes()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--baseline", "b"], "no run is named; expected --run RUN"),
        (["--run", "r", "--report", "x"], "--run goes with --baseline and --output"),
        (["--run", "{run}"], "no baseline is named; expected --baseline RUN, or --output DIR"),
        (["--run", "{run}", "--baseline", "{run}", "--tier", "best"], "best"),
    ],
)
def test_options_that_do_not_go_together(
    words: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each is one line, exit 2."""
    run = write(tmp_path / "run", BASE)
    assert main(["report", *(word.format(run=run) for word in words)]) == 2
    assert line in capsys.readouterr().err


def test_a_comparison_by_a_policy_pack_verifies(tmp_path: Path) -> None:
    """The report names the pack, and a copy of it lies beside the report."""
    run, base = write(tmp_path / "run", alone()), write(tmp_path / "base", BASE)
    key, pack = new_key(tmp_path / "key.pem"), tmp_path / "policy.json"
    create = ["policy", "create", "--name", "acme", "--set", "rmt.epsilon.ffn=0.16"]
    assert main([*create, "--signing-key", str(key), "--out", str(pack)]) == 0
    words = ["report", "--run", str(run), "--baseline", str(base), "--policy-pack", str(pack)]
    assert main([*words, "--output", str(tmp_path / "a")]) == 0
    assert (tmp_path / "a/policy_pack.json").read_bytes() == pack.read_bytes()
    assert main(["verify", str(tmp_path / "a"), "--replay"]) == 0


def test_a_comparison_of_timed_runs_verifies(tmp_path: Path) -> None:
    """What the runs took is in the report and in the manifest beside it."""
    costs = {"latency_ms_per_tok": 2.5, "throughput_tok_per_s": 400.0, "memory_mb_peak": 900.0}
    timed = [copy.deepcopy(one) for one in (alone(), BASE)]
    for one in timed:
        one["metrics"] = {**one.get("metrics", {}), **costs}
    run, base = write(tmp_path / "run", timed[0]), write(tmp_path / "base", timed[1])
    words = ["report", "--run", str(run), "--baseline", str(base)]
    assert main([*words, "--output", str(tmp_path / "a")]) == 0
    report = json.loads((tmp_path / "a/evaluation.report.json").read_text())
    assert report["telemetry"]["latency_ms_per_tok"] == 2.5
    assert main(["verify", str(tmp_path / "a")]) == 0


@pytest.mark.parametrize(
    ("member", "value"), [("meta", 3), ("meta", []), ("evaluation_windows", []), ("guards", 0)]
)
def test_a_run_report_of_another_shape_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], member: str, value: object
) -> None:
    """One line, whatever stands there."""
    run, base = write(tmp_path / "run", alone()), write(tmp_path / "base", BASE)
    for folder in (run, base):
        bad = json.loads((folder / "report.json").read_text()) | {member: value}
        (tmp_path / "bad.json").write_text(json.dumps(bad))
        both = (tmp_path / "bad.json", base) if folder == run else (run, tmp_path / "bad.json")
        words = ["report", "--run", str(both[0]), "--baseline", str(both[1])]
        assert main([*words, "--output", str(tmp_path / "a")]) in (2, 3)
        assert capsys.readouterr().err.count("\n") == 1
