"""A run that is killed and repeated ends with the bytes of a run that nobody disturbed."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import write_tiny_folder
from repository_copy import link_repository, quiet_environment

from invarlock.cli import main

LIMIT = 240.0  # seconds of one run, on a machine that is busy with other things
# Files that say when a run was made, and those that hold their digests or sizes.
OF_THE_MOMENT = {"runtime.manifest.json", ".snakemake_timestamp"}
BOUND = {"checksums.sha256", "manifest.json", "verify_pack.json"}


def start(repository: Path, words: list[str]) -> subprocess.Popen[bytes]:
    """Start the workflow in a process group of its own."""
    with open(repository / "output.txt", "ab") as output:
        return subprocess.Popen(
            [sys.executable, "tools/workflow.py", "--profile", "cpu", "--config", *words],
            cwd=repository,
            env=quiet_environment(),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def finish(repository: Path, words: list[str]) -> str:
    """Run the workflow to its end; what it printed."""
    before = len(printed(repository))
    running = start(repository, words)
    try:
        code = running.wait(LIMIT)
    finally:
        kill(running)
    text = printed(repository)[before:]
    assert code == 0, text[-6000:]
    return text


def printed(repository: Path) -> str:
    """What the runs in this folder have printed so far."""
    path = repository / "output.txt"
    return path.read_text() if path.exists() else ""


def kill(running: subprocess.Popen[bytes]) -> None:
    """Kill the whole process group, whatever it is doing."""
    if running.poll() is None:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()


def kill_when(repository: Path, words: list[str], happened: Path) -> None:
    """Start the workflow and kill it as soon as ``happened`` exists."""
    running = start(repository, words)
    try:
        end = time.monotonic() + LIMIT
        while not happened.exists():
            assert running.poll() is None, printed(repository)[-6000:]
            assert time.monotonic() < end, f"{happened} did not appear"
            time.sleep(0.02)
    finally:
        kill(running)


def digests(out: Path) -> dict[str, str]:
    """SHA-256 of every file of a run that has to be the same in every run."""
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file()
        and path.name not in OF_THE_MOMENT | BOUND
        and path.relative_to(out).parts[0] != "logs"
    }


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """The configuration of a small byoe run: a tiny model and an edited copy of it."""
    base, mine = tmp_path / "base", tmp_path / "mine"
    write_tiny_folder(base)
    edit = ["edit", "--baseline", str(base), "--spec", "quant_rtn:8:0:all"]
    assert main([*edit, "--out", str(mine), "--metadata", str(tmp_path / "edit.json")]) == 0
    text = tmp_path / "speech.txt"
    text.write_text(" ".join(f"sentence {n} of {n * n} words." for n in range(60)))
    return [
        "suite=byoe",
        f"baseline={base}",
        f"subject={mine}",
        f"text=local:{text}",
        "windows={seq_len: 16, preview: 4, final: 4, seed: 43}",
        "bootstrap={replicates: 200, alpha: 0.05}",
        "scenarios=byoe,noop_clean",
    ]


def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path: Path, words: list[str]) -> None:
    """Killed while placing the baseline and again while evaluating, then repeated: all the same."""
    calm, rough = (link_repository(tmp_path / name) for name in ("calm", "rough"))
    out = rough / "evidence_pack_runs/byoe"
    kill_when(rough, words, out / "logs/base/baseline_report.log")
    assert not (out / "base/runs/baseline/report.json").exists()
    kill_when(rough, words, out / "logs/base/byoe/evaluate.1.log")
    assert not (out / "base/reports/byoe/run_1/outcome.json").exists()
    baseline = (out / "base/runs/baseline/report.json").stat().st_mtime_ns

    assert "An earlier run was interrupted" in finish(rough, words)
    finish(calm, words)

    assert (out / "base/runs/baseline/report.json").stat().st_mtime_ns == baseline  # not again
    found = digests(out)
    assert found == digests(calm / "evidence_pack_runs/byoe")
    assert {"reports/final_verdict.json", "base/windows.json"} <= set(found)
    assert not [name for name in found if ".tmp." in name]
    assert "Nothing to be done" in finish(rough, words)
