"""Kill -9 in the middle of each kind of rule, then the documented command: the same bytes.

Each start goes on where the one before was killed, up to a rule in which no start was killed yet.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import warm
from conftest import write_tiny_folder
from repository_copy import ROOT, link_repository, quiet_environment, snakemake

from invarlock.cli import main
from invarlock.tuned import TunedParameters, write_tuned

LIMIT = 1800.0  # seconds of one start, on a machine that is busy with other things
# Files that say when a run was made or how long it took, and those that hold their digests.
OF_THE_MOMENT = {"runtime.manifest.json", "evaluation_optimization_summary.json"}
BOUND = {"checksums.sha256", "manifest.json", "verify_pack.json", ".snakemake_timestamp"}
RENAME, START = "os.rename", "subprocess.Popen"
MEASURED = "os.rename evaluation.report.json"  # a candidate: it is judged, nothing is in the table
# Each rule that makes files, in the order of a run: its command, and where that is killed.
RULES = {
    "scenarios": ("invarlock scenarios ", RENAME),
    "source_repo": ("provenance source ", RENAME),
    "environment": ("provenance environment ", RENAME),
    "pin_revisions": ("invarlock pin ", RENAME),
    "baseline": ("invarlock baseline ", RENAME),
    "windows": (r"--out \S+/windows\.json", RENAME),
    "calibration_windows": (r"--out \S+/windows_seed_", RENAME),
    "training_windows": (r"--out \S+/training_windows\.json", RENAME),
    "describe_subject": ("--spec custom", RENAME),  # before the baseline is measured
    "baseline_report": (r"invarlock run .*--out \S+/runs/baseline", RENAME),
    "calibrate": ("advanced calibrate ", RENAME),
    "preset": ("advanced preset ", RENAME),
    "edit": ("invarlock edit .*--spec magnitude_prune", RENAME),
    "tuned_parameters": ("advanced tuned-params .*/state/", RENAME),
    "train": ("invarlock edit .*--spec fine_tune", RENAME),
    "inject": ("invarlock inject ", RENAME),
    "reference": ("provenance reference ", RENAME),
    "evaluate": (r"invarlock evaluate .*/reports/.* invarlock\.cli\.evaluate_worker", RENAME),
    "repeat": ("invarlock evaluate .*/repeat_", START),  # of the worker that measures
    "render": ("advanced pages ", RENAME),
    "determinism": ("analyze repeats ", RENAME),
    "search": ("advanced tune ", MEASURED),
    "verdict": ("invarlock verdict ", RENAME),
    "timings": ("analyze timings ", RENAME),
    "build_pack": ("evidence-pack build ", RENAME),
    "verify_made_pack": ("evidence-pack verify ", RENAME),
}
# One shell command without Python; no files; other branches of the same commands.
OTHERS = {
    "tune", "tuning_windows", "tuning_baseline", "effective_config", "fetch", "release", "image",
    "image_label", "render_together", "guard_value_sweep", "table", "all", "suite", "pack",
    "packed_report", "verify_pack", "pack_weights", "deployable", "sentinels",
}  # fmt: skip


@dataclass(frozen=True)
class World:
    """A working folder and the command that is repeated in it."""

    repository: Path
    words: tuple[str, ...]

    @property
    def out(self) -> Path:
        """The folder of the run."""
        return self.repository / "evidence_pack_runs/byoe"

    @property
    def report(self) -> Path:
        """The run of the baseline."""
        return self.out / "base/runs/baseline/report.json"

    def run(self, *options: str, **variables: str) -> tuple[int, str]:
        """The documented command to its end, whatever that is; exit code and what it printed."""
        command = [
            warm.python(),
            "tools/workflow.py",
            "all",
            "suite",
            "tune",
            "--profile",
            "profiles/cpu",
        ]
        running = subprocess.Popen(
            [*command, *options, "--config", *self.words],
            cwd=self.repository,
            env=quiet_environment() | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
        )
        try:
            printed, _ = running.communicate(timeout=LIMIT)
        finally:
            if running.poll() is None:
                os.killpg(running.pid, signal.SIGKILL)
        return running.returncode, printed

    def forked(self, *options: str) -> subprocess.CompletedProcess[str]:
        """The same without the file that looks after locks, and its jobs, as forks."""
        targets = ("all", "suite", "tune", "--profile", "profiles/cpu")
        return snakemake(self.repository, *targets, *options, config=self.words, timeout=LIMIT)

    def finish(self, *options: str) -> str:
        """The documented command, which has to succeed."""
        code, printed = self.run(*options)
        assert code == 0, printed[-6000:]
        return printed

    def killed(self, marks: Path) -> tuple[set[str], str]:
        """The same, killed in the middle of a rule that has a mark: which one, and the output."""
        before = {path.name for path in marks.iterdir()}
        code, printed = self.run(KILL_MARKS=str(marks))
        assert code == -signal.SIGKILL, f"{before} were not reached: {printed[-6000:]}"
        while alive(int((marks.parent / "killed").read_text())):
            time.sleep(0.05)  # its jobs were killed with it, and may still be ending
        rules = before - {path.name for path in marks.iterdir()}
        for rule in rules:
            assert re.search(rf"^(local)?rule {rule}:$", printed, re.M), (rule, printed[-6000:])
        return rules, printed


def alive(group: int) -> bool:
    """Whether a process of the group goes on; one that nobody asked for its exit code does not."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = path.read_bytes().rpartition(b") ")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(its_group) == group and state not in b"ZX":
            return True
    return False


def digests(out: Path) -> dict[str, str]:
    """SHA-256 of every file of a run that has to be the same in every run."""
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file()
        and path.name not in OF_THE_MOMENT | BOUND
        and path.relative_to(out).parts[0] != "logs"
    }


def catalogue(folder: Path) -> Path:
    """The catalogue with an edit by tuned arithmetic and one by training in suite byoe."""
    document = json.loads((ROOT / "scenarios/scenarios.json").read_text())
    for entry in document["scenarios"]:
        if entry["id"] in ("prune_clean", "fine_tune_step3_stress"):
            entry["suites"] = ["byoe"]
    path = folder / "scenarios.json"
    path.write_text(json.dumps(document))
    return path


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """A small byoe run: every kind of subject, and two repeats."""
    root = tmp_path_factory.mktemp("inputs")
    base, mine = root / "base", root / "mine"
    write_tiny_folder(base)
    edit = ["edit", "--baseline", str(base), "--spec", "quant_rtn:8:0:all"]
    assert main([*edit, "--out", str(mine), "--metadata", str(root / "edit.json")]) == 0
    text = root / "speech.txt"
    text.write_text(" ".join(f"sentence {n} of {n * n} words." for n in range(300)))
    tuned = {"status": "selected", "reason": "given", "sparsity": 0.02, "scope": "ffn"}
    write_tuned(root / "tuned.json", TunedParameters("", {}, {"magnitude_prune": tuned}, ()))
    scenarios = "byoe,prune_clean,fine_tune_step3_stress,nan_injection"
    return (
        "suite=byoe", f"baseline={base}", f"subject={mine}", f"text=local:{text}",
        f"catalogue={catalogue(root)}", f"scenarios={scenarios}", "keep_subjects=true",
        "windows={seq_len: 16, preview: 4, final: 4, seed: 43}", "training={windows: 4}",
        "bootstrap={replicates: 200, alpha: 0.05}", "calibration={seeds: 3, windows: 8}",
        "repeats=2", "tier=none", f"tuned_edit_params={root / 'tuned.json'}",
        # what kills looks at each command that starts; forks of ours are killed in
        # test_forkserver.py
        "one_load=false",
    )  # fmt: skip


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory, words: tuple[str, ...]) -> dict[str, str]:
    """What a run leaves that nobody disturbs; its jobs are forks."""
    world = World(link_repository(tmp_path_factory.mktemp("calm") / "repository"), words)
    done = world.forked()
    assert done.returncode == 0, done.stderr[-6000:]
    return digests(world.out)


@pytest.fixture(scope="module")
def rough(tmp_path_factory: pytest.TempPathFactory, words: tuple[str, ...]) -> World:
    """A run that is killed again and again."""
    return World(link_repository(tmp_path_factory.mktemp("rough") / "repository"), words)


def test_no_rule_is_left_out() -> None:
    """Every rule that the workflow has is killed below, or said not to be."""
    found: set[str] = set()
    for path in (ROOT / "Snakefile", *(ROOT / "rules").glob("*.smk")):
        text = path.read_text()
        found |= set(re.findall(r"^ *(?:use )?rule (?:\w+ as )?(\w+)", text, re.M))
        found |= set(re.findall(r'^ *name:\n.* else "(\w+)"$', text, re.M))  # of several alike
    assert found == {*RULES, *OTHERS}


def hidden(name: str) -> bool:
    """Whether a file is, or lies in, what a writer renames once it is whole."""
    return any(part.startswith(".") for part in Path(name).parts)


def test_rules_that_were_killed_are_made_again_and_nothing_twice(
    rough: World, calm: dict[str, str], tmp_path: Path
) -> None:
    """Once in each rule, when its temporary file was written and its output was not: only whole
    files are left, a later start makes it again, and in the end all bytes are the same."""
    marks = tmp_path / "marks"
    marks.mkdir()
    for rule, lines in RULES.items():
        (marks / rule).write_text("\n".join(lines))
    measured = 0  # when the baseline was, once its job is known to have ended
    killed: set[str] = set()
    while killed != set(RULES):
        rules, printed = rough.killed(marks)
        assert ("An earlier run was interrupted" in printed) is bool(killed), rules
        killed |= rules
        left = {k: v for k, v in digests(rough.out).items() if not hidden(k)}
        assert left.items() <= calm.items(), (rules, sorted(set(left.items()) - set(calm.items())))
        if measured:  # it is not measured again
            assert rough.report.stat().st_mtime_ns == measured, rules
        elif "(Rule: baseline_report)" in printed:
            measured = rough.report.stat().st_mtime_ns
    assert "An earlier run was interrupted" in rough.finish()
    assert digests(rough.out) == calm
    assert rough.report.stat().st_mtime_ns == measured
    assert {"reports/final_verdict.json", "base/windows.json"} <= set(calm)
    assert "Nothing to be done" in rough.finish()


def test_a_changed_setting_hides_nothing_that_is_missing(rough: World) -> None:
    """Another setting in a finished run: what is missing is made, and what it judges is planned."""
    told = dataclasses.replace(rough, words=(*rough.words, "telemetry=true"))
    missing = [rough.out / "base/reports/byoe/run_1/outcome.json",
               rough.out / "reports/final_verdict.json"]  # fmt: skip
    for path in missing:
        path.unlink()
    done = told.forked()
    assert done.returncode == 0, done.stderr[-6000:]
    assert all(path.is_file() for path in missing)
    record = json.loads((rough.out / "state/config.json").read_text())
    assert record["values"]["telemetry"] is True
    packed = json.loads((rough.out / "evidence_pack/metadata/config.json").read_text())
    assert packed == record

    limits = "distribution={kl_mean_max: 0.5, flip_fraction_max: 0}"
    strict = dataclasses.replace(told, words=(*told.words, limits))
    done = strict.forked("-n")
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed
    assert re.search(r"^evaluate +4$", printed, re.M), printed[-3000:]
