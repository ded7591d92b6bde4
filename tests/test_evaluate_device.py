"""When an evaluation asks for a GPU: after all that a CPU does, and outside its time limit."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import warm
from measuring_factory import FEW, World, change, make_world, read
from repository_copy import ROOT

DOWN = "model.layers.0.mlp.down_proj.weight"
# Takes the only GPU and keeps it until its standard input ends.
HOLDER = """
import sys
from invarlock.run.lease import lease
lease("cuda", 1)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A measured baseline on few windows."""
    return make_world(tmp_path_factory.mktemp("world"), FEW)


@pytest.fixture
def busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[str]]:
    """The only GPU of this machine, a pretended one, in use by another process."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "GPU 6, leased\n"
        yield holder
        holder.kill()


def start(words: list[str], python: str) -> subprocess.Popen[str]:
    """A command of the package."""
    command = [python, "-m", "invarlock", *words]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def line(running: subprocess.Popen[str]) -> str:
    """The next line that it prints."""
    assert running.stdout is not None
    return running.stdout.readline().strip()


def children(pid: int) -> list[int]:
    """The processes that a process started."""
    return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def free(holder: subprocess.Popen[str]) -> None:
    """Let the other process end."""
    assert holder.stdin is not None
    holder.stdin.close()


def test_a_rejected_subject_never_asks_for_a_gpu(
    world: World, busy: subprocess.Popen[str], tmp_path: Path
) -> None:
    """A subject with one NaN is rejected while the only GPU is in use."""
    subject = change(
        shutil.copytree(world.baseline, tmp_path / "subject"), lambda t: t[DOWN][0].fill_(math.nan)
    )
    words = world.command(subject, tmp_path / "out", "--device", "auto")
    with start(words, warm.python()) as running:
        assert running.wait(600) == 0
    assert read(tmp_path / "out", "outcome.json")["status"] == "rejected_by_invariants"


def test_waiting_for_a_gpu_is_no_part_of_the_time(
    world: World, busy: subprocess.Popen[str], tmp_path: Path
) -> None:
    """The measuring process takes the lock itself; the kernel's timer stands still meanwhile."""
    words = world.command(world.baseline, tmp_path / "out", "--device", "auto")
    # of its own, so that the child that measures is its own, too
    with start([*words, "--timeout-minutes", "600"], sys.executable) as running:
        assert line(running) == "waiting for 1 of GPU 6: in use"
        (worker,) = children(running.pid)
        free(busy)
        assert line(running) == "GPU 6, leased"
        files = [os.readlink(f) for f in Path(f"/proc/{worker}/fd").iterdir()]
        assert any(name.endswith("/gpu-6") for name in files)
        assert running.wait(600) == 0
    assert read(tmp_path / "out", "outcome.json")["status"] == "reported"


def test_the_clock_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of the time before a lease is what is left after it."""
    import signal

    from invarlock.cli import evaluate_worker

    seen: list[float] = []

    def leased(_: str, __: int) -> tuple[int, ...]:
        seen.append(signal.getitimer(signal.ITIMER_REAL)[0])
        return ()

    monkeypatch.setattr(evaluate_worker, "lease", leased)
    signal.setitimer(signal.ITIMER_REAL, 500)
    try:
        evaluate_worker._leased.__wrapped__("cuda", 1)
        assert seen == [0.0]
        assert 490 < signal.getitimer(signal.ITIMER_REAL)[0] <= 500
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def test_a_baseline_is_checked_before_a_gpu_is_asked_for(
    world: World, busy: subprocess.Popen[str], tmp_path: Path
) -> None:
    """`run` refuses a damaged checkpoint while the only GPU is in use."""
    damaged = change(
        shutil.copytree(world.baseline, tmp_path / "damaged"), lambda t: t[DOWN][0].fill_(math.nan)
    )
    words = ["run", "--model", str(damaged), "--windows", str(world.windows)]
    words += ["--out", str(tmp_path / "out"), "--device", "auto"]
    with start(words, warm.python()) as running:
        assert running.wait(600) == 3
    assert not (tmp_path / "out").exists()
