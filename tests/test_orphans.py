"""A snakemake that is killed alone leaves its jobs behind: its successor never runs beside them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from conftest import write_tiny_folder
from repository_copy import link_repository, quiet_environment
from test_kill_each_rule import digests

LIMIT = 600.0  # seconds of one start, on a machine that is busy with other things


def measuring(folder: Path) -> list[int]:
    """The processes that measure a baseline in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            mine = os.readlink(process / "cwd") == str(folder)
        except (FileNotFoundError, PermissionError, ProcessLookupError):
            continue  # it ended meanwhile
        if mine and words[1:4] == [b"-m", b"invarlock", b"run"]:
            found.append(int(process.name))
    return sorted(found)


def wait_until(condition: Callable[[], bool], running: subprocess.Popen[bytes]) -> None:
    """Wait while the workflow runs."""
    end = time.monotonic() + LIMIT
    while not condition():
        assert running.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_job_that_outlived_its_workflow_is_waited_for(tmp_path: Path) -> None:
    """The measurement of the baseline, with the repeated command beside it; the bytes are those of
    a run that nobody disturbed."""
    base, text = tmp_path / "base", tmp_path / "speech.txt"
    write_tiny_folder(base)
    text.write_text(" ".join(f"sentence {n} of {n * n} words." for n in range(60)))
    words = ["suite=byoe", f"baseline={base}", f"subject={base}", f"text=local:{text}",
             "windows={seq_len: 16, preview: 4, final: 4, seed: 43}"]  # fmt: skip
    calm, rough = (link_repository(tmp_path / name) for name in ("calm", "rough"))
    run = "evidence_pack_runs/byoe"
    log = rough / run / "logs/base/baseline_report.log"

    def start(folder: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "tools/workflow.py", "--profile", "profiles/cpu"]
        command += [f"{run}/base/runs/baseline/report.json", "--config", *words]
        return subprocess.Popen(
            command,
            cwd=folder,
            env=quiet_environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    assert start(calm).wait(LIMIT) == 0
    first = start(rough)
    wait_until(lambda: len(measuring(rough)) == 1, first)
    (orphan,) = measuring(rough)
    claim = rough / run / "base/runs/.baseline.claim"
    wait_until(claim.is_file, first)
    first.send_signal(signal.SIGKILL)  # it alone
    first.wait(LIMIT)
    os.kill(orphan, signal.SIGSTOP)  # a stopped process would not outlive the leader of its session
    second = start(rough)
    try:
        wait_until(lambda: log.is_file() and "waiting for" in log.read_text(), second)
        assert f"process {orphan} of " in log.read_text()
        assert len(measuring(rough)) == 2
        assert not (rough / run / "base/runs/baseline/report.json").exists()
        os.kill(orphan, signal.SIGCONT)
        assert second.wait(LIMIT) == 0
        assert orphan not in measuring(rough)
        assert not claim.exists()
        assert digests(rough / run) == digests(calm / run)
    finally:
        for group in (first, second):
            for number in (signal.SIGCONT, signal.SIGKILL):
                try:
                    os.killpg(group.pid, number)
                except ProcessLookupError:
                    break
