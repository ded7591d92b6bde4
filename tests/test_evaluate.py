"""`invarlock run` and `invarlock evaluate` end to end on a tiny model."""

from __future__ import annotations

import json
import math
import shutil
import sys

import pytest
import torch
from conftest import measuring_here
from measuring_factory import FILES, change, entry, main_forking, read, write_tiny_windows

from invarlock import contracts
from invarlock.cli import main
from invarlock.cli.compare_options import CompareOptions
from invarlock.cli.compare_told import document, told
from invarlock.cli.comparison import Compared
from invarlock.cli.evaluate_record import summary_line
from invarlock.guards import CHAIN
from invarlock.reporting.outcome import FAIL
from invarlock.reporting.replay import replay
from invarlock.reporting.signals import CORE_GUARDS, guard_flags, pass_reasons
from invarlock.windows import WindowPlan

DOWN = "model.layers.1.mlp.down_proj.weight"
NOOP = ("--edit-label", "noop")


@pytest.fixture(scope="module")
def noop(world, tmp_path_factory):
    """A copy of the baseline, evaluated against its run as scenario noop_clean."""
    root = tmp_path_factory.mktemp("noop")
    subject = shutil.copytree(world.baseline, root / "subject")
    assert world.evaluate(subject, root / "out", "--scenario", entry("noop_clean")) == 0
    return root


@pytest.fixture(scope="module")
def edited(world, tmp_path_factory):
    """Another model in the baseline's clothes: noise on one matrix, which is also scaled."""
    root = tmp_path_factory.mktemp("edited")

    def edit(tensors):
        noise = torch.randn(tensors[DOWN].shape, generator=torch.Generator().manual_seed(2))
        tensors[DOWN] = (tensors[DOWN].float() * 3 + noise).bfloat16()

    subject = change(shutil.copytree(world.baseline, root / "subject"), edit)
    with measuring_here():
        assert world.evaluate(subject, root / "out", "--edit-label", "noise") == 0
    return root


@pytest.fixture(scope="module")
def exchanged(world, tmp_path_factory):
    """A tenth of the token rows in other places, evaluated as the injection it is."""
    root = tmp_path_factory.mktemp("exchanged")
    words = ["inject", "--baseline", str(world.baseline), "--error-type", "token_rows_exchanged"]
    words += ["--out", str(root / "subject"), "--metadata", str(root / "error_metadata.json")]
    assert main(words) == 0
    more = ("--scenario", entry("token_rows_exchanged"))
    more += ("--edit-metadata", str(root / "error_metadata.json"))
    with measuring_here():
        assert world.evaluate(root / "subject", root / "out", *more) == 0
    return root


@pytest.fixture(scope="module")
def rejected(world, tmp_path_factory):
    """A subject with one NaN, evaluated as the injection it is."""
    root = tmp_path_factory.mktemp("rejected")
    subject = shutil.copytree(world.baseline, root / "subject")
    change(subject, lambda t: t[DOWN][0].fill_(math.nan))
    metadata = root / "error_metadata.json"
    made = {"artifact_class": "fault_injection_fixture", "error_type": "nan_injection"}
    metadata.write_text(json.dumps({**made, "injected": True}))
    more = ("--scenario", entry("nan_injection"), "--edit-metadata", str(metadata))
    assert world.evaluate(subject, root / "out", *more) == 0
    return root


@pytest.fixture
def worker(monkeypatch, tmp_path):
    """Replace the measuring process by a shell script; returns how to write it."""

    def install(script):
        path = tmp_path / "worker.sh"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))

    return install


# --- the same from the two run reports -------------------------------------------------------


@pytest.mark.parametrize("name", ["noop", "edited", "rejected"])
def test_the_two_run_reports_give_the_report_of_evaluate(world, name, request, tmp_path):
    """`report --run RUN --baseline RUN` writes, byte for byte, what `evaluate` wrote."""
    out = request.getfixturevalue(name) / "out"
    words = ["report", "--run", str(out), "--baseline", str(world.run), "--output", str(tmp_path)]
    assert main(words) == 0
    report = "evaluation.report.json"
    assert (tmp_path / report).read_bytes() == (out / report).read_bytes()


def test_a_run_against_itself_shows_no_more_than_a_run(world, tmp_path):
    """`run` measures one model: of itself, too, it says neither what files nor what rows are."""
    words = ["report", "--run", str(world.run), "--baseline", str(world.run)]
    assert main([*words, "--output", str(tmp_path)]) == 0
    report = read(tmp_path)
    assert (report["edit"]["name"], report["assurance"]["outcome"]) == ("noop", "inconclusive")
    assert replay(report) == []
    assert main(["verify", str(tmp_path), "--baseline", str(world.run)]) == 0


# --- no-op ----------------------------------------------------------------------------------


def test_a_noop_is_exactly_one_and_passes_every_gate(noop):
    """Not nearly: the same bytes in the same arithmetic, at each of the 139 positions of a window;
    floors included."""
    report = read(noop / "out")
    metric = report["primary_metric"]
    assert (metric["ratio_vs_baseline"], metric["display_ci"]) == (1.0, [1.0, 1.0])
    assert (metric["drift"]["ratio"], metric["decision"]) == (1.0, "pass")
    assert pass_reasons(report) == []
    assert all(report["validation"][gate] is True for gate in report["context"]["gates"])
    assert report["spectral"]["summary"]["max_abs_log_ratio"] == 0.0
    final = report["evaluation_windows"]["final"]
    assert final["top1_agreement"] == final["token_counts"] == [139] * 180


def test_the_report_says_how_much_of_the_vocabulary_the_windows_use(world, noop):
    """Counted from the windows of both arms."""
    arms = read(world.root, "windows.json")
    used = {t for row in arms["preview"] + arms["final"] for t in row["tokens"]}
    assert read(noop / "out")["vocabulary"] == {"used": len(used), "size": 320}


def test_every_guard_has_run_and_found_nothing(noop):
    """No edge moved, no scale is proposed, no prediction shifted, in the canonical order."""
    report = read(noop / "out")
    assert (report["rmt"]["stable"], report["rmt"]["max_edge_ratio"]) == (True, 1.0)
    assert (report["variance"]["proposed_scales"], report["variance"]["trial"]) == ({}, None)
    assert report["distribution"]["kl"] == {"mean": 0.0, "p99": 0.0, "max": 0.0}
    assert [guard["name"] for guard in report["guards"]] == list(CHAIN)
    assert not report["guard_warnings"]["present"]


def test_exchanged_token_rows_are_what_the_spectral_guard_names(exchanged, noop):
    """How many and which, in the report and in its warnings; nothing of the kind in a copy."""
    report = read(exchanged / "out")
    assert report["validation"]["spectral_stable"] is False
    assert guard_flags(report)["spectral"]
    [finding] = [v for v in report["spectral"]["violations"] if v["type"] == "token_rows"]
    assert (finding["rows"], finding["compared"], finding["severity"]) == (32, 320, "fatal")
    assert all(row["token"] and row["closest_token"] for row in finding["listed"])
    [told] = [w for w in report["guard_warnings"]["warnings"] if w["kind"] == "token_rows"]
    first = finding["listed"][0]
    assert f"{first['row']} '{first['token']}'" in told["message"]
    assert replay(report) == []
    outcome = read(exchanged / "out", "outcome.json")
    assert outcome["detectors_hit"] == ["spectral_stable=false"]
    [clean] = read(noop / "out")["spectral"]["row_tables"]
    assert (clean["typical"], clean["above"], clean["listed"]) == (0.0, [], [])


def test_the_written_files_follow_their_contracts(noop, edited, rejected, exchanged):
    """Report, manifest and outcome of each kind of ending."""
    for root in (noop, edited, rejected, exchanged):
        for name, contract in {
            "evaluation.report.json": "evaluation-report",
            "runtime.manifest.json": "runtime-manifest",
            "outcome.json": "outcome",
        }.items():
            contracts.validate(read(root / "out", name), contract, name)


def test_reports_replay_without_contradiction(noop, edited, rejected):
    """Evidence gives decisions."""
    assert [replay(read(root / "out")) for root in (noop, edited, rejected)] == [[], [], []]


def test_no_output_names_the_machine(noop, world):
    """No absolute path in what is meant to be compared between machines."""
    for name in FILES:
        assert str(world.root.parent) not in (noop / "out" / name).read_text()


def test_a_baseline_is_measured_first_when_no_run_is_given(world, noop, tmp_path):
    """The run made on the way is byte for byte that of `invarlock run`, and so is the rest."""
    more = ("--scenario", entry("noop_clean"))
    assert main_forking(world.fresh(noop / "subject", tmp_path / "out", *more)) == 0
    for name in ("report.json", "events.jsonl", "guards.safetensors"):
        made = (tmp_path / "out" / "baseline" / name).read_bytes()
        assert made == (world.run / name).read_bytes(), name
    for name in FILES:  # a second evaluation of the same subject
        assert (tmp_path / "out" / name).read_bytes() == (noop / "out" / name).read_bytes(), name


def test_a_rejection_twice_is_the_same_bytes(world, rejected, tmp_path):
    """Also what was never run is written the same way again."""
    metadata = str(rejected / "error_metadata.json")
    more = ("--scenario", entry("nan_injection"), "--edit-metadata", metadata)
    assert world.evaluate(rejected / "subject", tmp_path / "out", *more) == 0
    for name in (*FILES, "error_metadata.json"):
        again = (tmp_path / "out" / name).read_bytes()
        assert again == (rejected / "out" / name).read_bytes(), name


# --- an edit --------------------------------------------------------------------------------


def test_the_ratio_is_that_of_the_recorded_losses(world, edited):
    """exp of the mean difference over the final arm, from the two runs' own files."""
    arms = [read(folder, "report.json")["evaluation_windows"]["final"]
            for folder in (world.run, edited / "out")]  # fmt: skip
    base, subject = (math.fsum(arm["nll_sum"]) for arm in arms)
    expected = math.exp((subject - base) / sum(arms[0]["token_counts"]))
    found = read(edited / "out")["primary_metric"]
    assert found["ratio_vs_baseline"] == pytest.approx(expected, rel=1e-9)
    assert abs(expected - 1) > 1e-3
    low, high = found["display_ci"]
    assert low < found["ratio_vs_baseline"] < high


def test_the_scaled_matrix_is_the_one_that_is_capped(edited):
    """Only what was touched moved."""
    section = read(edited / "out")["spectral"]
    assert [v["module"] for v in section["violations"] if v["type"] == "family_z_cap"] == [
        "model.layers.1.mlp:down"
    ]


def test_the_outcome_carries_label_and_digests(world, edited):
    """Without a scenario the edit's label is its name."""
    outcome = read(edited / "out", "outcome.json")
    assert (outcome["status"], outcome["exit_code"]) == ("reported", 0)
    assert outcome["scenario"] == "noise"
    report = read(edited / "out", "report.json")
    assert outcome["subject_sha256"] == report["meta"]["checkpoint_sha256"]
    run = read(world.run, "report.json")
    assert outcome["baseline_sha256"] == run["meta"]["checkpoint_sha256"]
    assert outcome["subject_sha256"] != outcome["baseline_sha256"]


# --- a damaged subject ----------------------------------------------------------------------


def test_a_damaged_subject_is_rejected_without_a_forward_pass(rejected):
    """No losses, no spectral statistics, no time spent on a pass."""
    report = read(rejected / "out", "report.json")
    assert report["evaluation_windows"] == {}
    assert [guard["name"] for guard in report["guards"]] == ["invariants"]
    manifest = (rejected / "out" / "runtime.manifest.json").read_text()
    assert '"forward"' not in manifest


def test_a_rejection_fails_every_gate_and_is_a_detection(rejected):
    """The guard spoke, and nothing that was not measured passes."""
    report, outcome = read(rejected / "out"), read(rejected / "out", "outcome.json")
    assert report["invariants"]["failures"][0]["type"] == "non_finite_tensor"
    assert not any(report["validation"][gate] for gate in report["context"]["gates"])
    assert (outcome["status"], outcome["injected"]) == ("rejected_by_invariants", True)
    assert outcome["detectors_hit"] != []
    assert report["invariants"]["failures"][0]["message"] in summary_line(rejected / "out")


# --- conditions that differ -----------------------------------------------------------------


@pytest.fixture(scope="module")
def other_windows(world, tmp_path_factory):
    """Windows of another seed."""
    path = tmp_path_factory.mktemp("other") / "windows.json"
    write_tiny_windows(world.baseline, path, WindowPlan(32, 4, 4, 44))
    return path


@pytest.mark.parametrize("subject", ["noop", "rejected"])
def test_a_baseline_run_of_other_windows_is_refused(
    world, other_windows, request, tmp_path, capsys, subject
):
    """Exit 3 and no outcome, also for a subject that is never run."""
    folder = request.getfixturevalue(subject) / "subject"
    command = world.command(folder, tmp_path / "out")
    command[command.index("--windows") + 1] = str(other_windows)
    assert main_forking(command) == 3
    assert "another windows" in capsys.readouterr().err
    assert not (tmp_path / "out" / "outcome.json").exists()


def test_a_baseline_run_in_another_dtype_is_refused(world, noop, tmp_path, capsys):
    """float32 losses are not compared with bfloat16 ones."""
    assert world.evaluate(noop / "subject", tmp_path / "out", *NOOP, "--dtype", "bfloat16") == 3
    assert "another dtype" in capsys.readouterr().err
    assert not (tmp_path / "out" / "outcome.json").exists()


# --- a worker that does not measure ---------------------------------------------------------

ENDINGS = {
    "crashed": "echo 'RuntimeError: boom' >&2; exit 1",
    "out_of_memory": "kill -9 $$",
    "timeout": "exec sleep 60",
}
SHORT = ("--timeout-minutes", "0.02")


@pytest.mark.parametrize("status", ENDINGS)
def test_an_ending_without_a_result_is_an_error(world, noop, tmp_path, worker, capsys, status):
    """Exit 1, one line that names the ending, and no outcome that could be counted."""
    worker(ENDINGS[status])
    assert world.evaluate(noop / "subject", tmp_path / "out", *SHORT) == 1
    assert status in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("status", ENDINGS)
def test_a_recorded_ending_neither_passes_nor_detects(world, noop, tmp_path, worker, status):
    """Exit 0, an outcome of that name, no gate held, no guard said to have spoken."""
    worker(ENDINGS[status])
    more = ("--record-failure", "--scenario", entry("quant_4bit_stress"), *SHORT)
    assert world.evaluate(noop / "subject", tmp_path / "out", *more) == 0
    report, outcome = read(tmp_path / "out"), read(tmp_path / "out", "outcome.json")
    contracts.validate(outcome, "outcome", "outcome.json")
    contracts.validate(report, "evaluation-report", "evaluation.report.json")
    assert (outcome["status"], outcome["scenario"]) == (status, "quant_4bit_stress")
    assert outcome["exit_code"] != 0
    assert outcome["error"]
    assert outcome["detectors_hit"] == []
    assert pass_reasons(report) != []
    assert not any(report["validation"][gate] for gate in report["context"]["gates"])
    spoke = guard_flags(report)
    assert not any(spoke[guard] for guard in CORE_GUARDS)
    assert replay(report) == []
    options = CompareOptions(baseline="base", subject="mine", text="text.jsonl")
    compared = Compared(report, options, tmp_path, FAIL, None, {})
    assert "  judged      nothing: what measures ended before it was done\n" in told(compared)
    assert document(compared)["judged"] is None


def test_a_worker_that_says_out_of_memory_is_believed(world, noop, tmp_path, worker):
    """Its own exit code for a failed allocation."""
    worker("echo 'invarlock evaluate: out of memory' >&2; exit 75")
    assert world.evaluate(noop / "subject", tmp_path / "out", "--record-failure") == 0
    outcome = read(tmp_path / "out", "outcome.json")
    assert (outcome["status"], outcome["token_budget"]) == ("out_of_memory", 1024)


def test_a_retry_halves_the_batch_when_memory_runs_out(world, noop, tmp_path, worker):
    """The third start tries the whole batch, a half and a quarter, everything else alike."""
    worker(f"cat >> {tmp_path}/jobs; echo >> {tmp_path}/jobs; exit 75")
    more = ("--attempt", "3", "--record-failure")
    assert world.evaluate(noop / "subject", tmp_path / "out", *more) == 0
    jobs = [json.loads(line) for line in (tmp_path / "jobs").read_text().splitlines()]
    assert [job.pop("token_budget") for job in jobs] == [1024, 512, 256]
    assert [job.pop("attempt") for job in jobs] == [1, 2, 3]
    assert jobs[0] == jobs[1] == jobs[2]
    assert read(tmp_path / "out", "outcome.json")["attempt"] == 3


@pytest.mark.parametrize(("attempt", "end"), [("3", "exit 1"), ("1", "exit 75")])
def test_nothing_else_changes_the_batch(world, noop, tmp_path, worker, attempt, end):
    """A crash, and running out of memory at the first start: measured once, in whole batches."""
    worker(f"cat >> {tmp_path}/jobs; echo >> {tmp_path}/jobs; {end}")
    assert world.evaluate(noop / "subject", tmp_path / "out", "--attempt", attempt) == 1
    (line,) = (tmp_path / "jobs").read_text().splitlines()
    assert json.loads(line)["token_budget"] == 1024


def test_an_end_by_a_scheduler_is_never_recorded(world, noop, tmp_path, worker):
    """SIGTERM reaches all processes of a job: that of the measuring one is no crash."""
    worker("kill -TERM $$")
    more = ("--attempt", "2", "--record-failure")
    with pytest.raises(SystemExit) as ended:
        world.evaluate(noop / "subject", tmp_path / "out", *more)
    assert ended.value.code == 143
    assert not (tmp_path / "out").exists()


# --- bad requests ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "code"),
    [
        *((("--scenario", scenario), 2)
          for scenario in ("{", "nonsense", "[]", "3", '{"strictness": "must_pass"}')),
        (("--tier", "balancd"), 2),
        (("--alpha", "1"), 2),
        (("--alpha", "nan"), 2),
        (("--require-container",), 2),
        (("--subject", "/no/such/folder"), 3),
        (("--baseline-report", "/no/such/run"), 3),
        (("--edit-metadata", "/no/such/file"), 3),
    ],
)  # fmt: skip
def test_a_bad_request_costs_no_measurement(world, noop, tmp_path, worker, capsys, more, code):
    """One line, its exit code, and no process started."""
    worker(f"touch {tmp_path}/started; exit 1")
    assert world.evaluate(noop / "subject", tmp_path / "out", *more) == code
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "started").exists()
