"""A snakemake that is killed alone leaves its jobs behind: its successor never runs beside them."""

from __future__ import annotations

import json
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

RUN = "evidence_pack_runs/byoe"
LIMIT = 600.0  # seconds of one start, on a machine that is busy with other things


def processes(folder: Path, *words: bytes) -> list[int]:
    """The processes that run in a folder, whose command line begins with these words."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            said = (process / "cmdline").read_bytes().split(b"\0")
            mine = os.readlink(process / "cwd") == str(folder)
        except (FileNotFoundError, PermissionError, ProcessLookupError):
            continue  # it ended meanwhile
        if mine and said[1 : 1 + len(words)] == list(words):
            found.append(int(process.name))
    return sorted(found)


def jobs(folder: Path) -> list[int]:
    """The commands that have a baseline measured in a folder, by a fork of their run's server."""
    return processes(folder, b"-m", b"invarlock", b"run")


def wait_until(condition: Callable[[], bool], running: subprocess.Popen[bytes]) -> None:
    """Wait while the workflow runs."""
    end = time.monotonic() + LIMIT
    while not condition():
        assert running.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)


def starter(tmp_path: Path) -> Callable[[Path], subprocess.Popen[bytes]]:
    """How to have a tiny baseline measured in a folder."""
    base, text = tmp_path / "base", tmp_path / "speech.txt"
    write_tiny_folder(base)
    text.write_text(" ".join(f"sentence {n} of {n * n} words." for n in range(60)))
    words = ["suite=byoe", f"baseline={base}", f"subject={base}", f"text=local:{text}",
             "windows={seq_len: 16, preview: 4, final: 4, seed: 43}"]  # fmt: skip

    def start(folder: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "tools/workflow.py", "--profile", "profiles/cpu"]
        command += [f"{RUN}/base/runs/baseline/report.json", "--config", *words]
        return subprocess.Popen(
            command,
            cwd=folder,
            env=quiet_environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    return start


def test_a_job_that_outlived_its_workflow_is_waited_for(tmp_path: Path) -> None:
    """The measurement of the baseline, with the repeated command beside it; the bytes are those of
    a run that nobody disturbed."""
    calm, rough = (link_repository(tmp_path / name) for name in ("calm", "rough"))
    start, run = starter(tmp_path), RUN
    log = rough / run / "logs/base/baseline_report.log"
    assert start(calm).wait(LIMIT) == 0
    first = start(rough)
    wait_until(lambda: len(jobs(rough)) == 1, first)
    claim = rough / run / "base/runs/.baseline.claim"
    wait_until(lambda: claim.is_file() and bool(claim.read_text()), first)
    orphan = json.loads(claim.read_text())["pid"]
    first.send_signal(signal.SIGKILL)  # it alone
    first.wait(LIMIT)
    os.kill(orphan, signal.SIGSTOP)  # a stopped process would not outlive the leader of its session
    second = start(rough)
    try:
        wait_until(lambda: log.is_file() and "waiting for" in log.read_text(), second)
        assert f"process {orphan} of " in log.read_text()
        assert len(jobs(rough)) == 2
        assert not (rough / run / "base/runs/baseline/report.json").exists()
        os.kill(orphan, signal.SIGCONT)
        assert second.wait(LIMIT) == 0
        assert not Path(f"/proc/{orphan}").exists()
        assert not claim.exists()
        assert digests(rough / run) == digests(calm / run)
    finally:
        for group in (first, second):
            for number in (signal.SIGCONT, signal.SIGKILL):
                try:
                    os.killpg(group.pid, number)
                except ProcessLookupError:
                    break


def test_ctrl_c_leaves_no_process(tmp_path: Path) -> None:
    """Neither the job, nor the fork that measures for it, nor the server of the forks."""
    folder = link_repository(tmp_path / "repository")
    running = starter(tmp_path)(folder)
    claim = folder / RUN / "base/runs/.baseline.claim"
    wait_until(lambda: claim.is_file() and bool(claim.read_text()), running)
    measuring = json.loads(claim.read_text())["pid"]
    assert measuring in processes(folder, b"-m", b"invarlock.run.forkserver")
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does, to all that it started
    assert running.wait(LIMIT) != 0
    end = time.monotonic() + LIMIT
    while processes(folder):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert not claim.exists()
    assert not (folder / RUN / "base/runs/baseline/report.json").exists()
