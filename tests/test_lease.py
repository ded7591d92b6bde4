"""GPUs of one machine: one job each, with real processes and pretend devices."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from repository_copy import ROOT, snakemake

from invarlock.errors import ConfigError
from invarlock.run.lease import VISIBLE, lease, visible

LIMIT = 120  # seconds until a process that should go on is given up
# Takes what it is told to, says so, and keeps it until its standard input ends.
JOB = """
import os, sys, time
from invarlock.run.lease import lease
lease("cuda", int(sys.argv[1]))
mine = os.environ["CUDA_VISIBLE_DEVICES"]
with open("events", "a", buffering=1) as events:
    events.write(f"{os.getpid()} takes {mine}\\n")
    print("holding", mine, flush=True)
    sys.stdin.read() if sys.argv[2] == "wait" else time.sleep(0.05)
    events.write(f"{os.getpid()} frees {mine}\\n")
"""


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """A machine with two GPUs, 0 and 1, and nobody on them."""
    made = Machine(tmp_path)
    yield made
    for job in made.jobs:
        job.kill()
        job.wait()
        for stream in (job.stdin, job.stdout):
            assert stream is not None
            stream.close()


class Machine:
    """Starts jobs in one folder, whose locks nobody else sees."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.jobs: list[subprocess.Popen[str]] = []

    def start(
        self, count: int = 1, how: str = "wait", pool: str = "0,1", **more: str
    ) -> subprocess.Popen[str]:
        """A job that wants so many of the devices it sees."""
        known = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
        told = {"TMPDIR": str(self.folder), VISIBLE: pool, "PYTHONPATH": str(ROOT), **more}
        job = subprocess.Popen(
            [sys.executable, "-c", JOB, str(count), how],
            cwd=self.folder,
            env={**known, **told},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.jobs.append(job)
        return job

    def most_at_once(self) -> int:
        """The greatest number of devices in use; fails if one was in use twice."""
        busy: dict[str, str] = {}
        most = 0
        for line in (self.folder / "events").read_text().splitlines():
            job, what, names = line.split()
            for name in names.split(","):
                if what == "takes":
                    assert name not in busy, line
                    busy[name] = job
                else:
                    assert busy.pop(name) == job, line
            most = max(most, len(busy))
        return most


def said(job: subprocess.Popen[str]) -> str:
    """The next line of a job."""
    assert job.stdout is not None
    return job.stdout.readline().strip()


def end(job: subprocess.Popen[str]) -> list[str]:
    """Let a job end; what it said last."""
    assert job.stdin is not None
    assert job.stdout is not None
    job.stdin.close()
    lines = job.stdout.read().splitlines()
    assert job.wait(LIMIT) == 0
    return lines


def test_two_jobs_hold_a_device_each_and_two_wait(machine: Machine) -> None:
    """Four jobs on two devices: the third and the fourth say in one line that they wait."""
    first, second = machine.start(), machine.start()
    assert {said(first), said(second)} == {"GPU 0, leased", "GPU 1, leased"}
    third, fourth = machine.start(how="on"), machine.start(how="on")
    for job in (third, fourth):
        assert said(job) == "waiting for 1 of GPU 0, 1: in use"
    freed = said(first).split()[1]
    end(first)
    # one of the two goes on, on the device of the first, while the second still has its own
    for job in (third, fourth):
        assert end(job) == [f"GPU {freed}, leased", f"holding {freed}"]
    end(second)
    assert machine.most_at_once() == 2


def test_many_jobs_never_share_a_device(machine: Machine) -> None:
    """Jobs of one device and of two, all at once: each ends, and no device has two of them."""
    jobs = [machine.start(count, "on") for count in (2, 1, 2, 1, 1, 2)]
    for job in jobs:
        end(job)
    assert machine.most_at_once() == 2


def test_kill_9_frees_a_device_at_once(machine: Machine) -> None:
    """The kernel drops the lock of a process that had no chance to."""
    first = machine.start(2)
    assert said(first) == "GPU 0, 1, leased"
    second = machine.start(2)
    assert said(second) == "waiting for 2 of GPU 0, 1: in use"
    first.kill()
    assert said(second) == "GPU 0, 1, leased"


def test_the_pool_is_what_the_user_shows(machine: Machine) -> None:
    """Devices outside CUDA_VISIBLE_DEVICES are not taken; uuids are names like others."""
    assert said(machine.start(pool="1")) == "GPU 1, leased"
    assert said(machine.start()) == "GPU 0, leased"
    assert said(machine.start(pool="GPU-8f6c, MIG-GPU-1/2/0")) == "GPU GPU-8f6c, leased"


def test_jobs_of_slurm_never_wait_for_each_other(machine: Machine) -> None:
    """Two jobs may see two devices under the same number, and so may two steps of one job."""
    steps = [{}, {"SLURM_STEP_GPUS": "4"}, {"SLURM_STEP_GPUS": "5"}]
    for job, step in [("7", step) for step in steps] + [("8", {}), ("9", {"SLURM_JOB_GPUS": "4"})]:
        started = machine.start(pool="0", SLURM_JOB_ID=job, **step)
        assert said(started) == "GPU 0, given by SLURM"
        assert said(started) == "holding 0"


def test_local_jobs_inside_an_allocation_take_turns(machine: Machine) -> None:
    """With one device and with two, also where a step shares the devices of the whole job."""
    whole = {"SLURM_JOB_ID": "9", "SLURM_JOB_GPUS": "4,5"}
    for number in ("0", "1"):
        assert said(machine.start(**whole)) == f"GPU {number}, leased"
    assert (
        said(machine.start(**whole, SLURM_STEP_GPUS="4,5")) == "waiting for 1 of GPU 0, 1: in use"
    )
    first = machine.start(pool="0", SLURM_JOB_ID="7")
    assert said(first) == "GPU 0, given by SLURM"
    second = machine.start(pool="0", SLURM_JOB_ID="7")
    assert said(second) == "waiting for 1 of GPU 0: in use"
    first.kill()
    assert said(second) == "GPU 0, given by SLURM"


def test_locks_of_jobs_that_ended_do_not_pile_up(machine: Machine) -> None:
    """Every job of SLURM has names of its own."""
    end(machine.start(how="on", SLURM_JOB_ID="7"))
    held = machine.start(SLURM_JOB_ID="8")
    assert said(held) == "GPU 0, leased"
    end(machine.start(how="on", SLURM_JOB_ID="9"))
    assert said(machine.start(SLURM_JOB_ID="8")) == "GPU 1, leased"
    names = {path.name for path in machine.folder.glob("invarlock-gpus-*/slurm-*")}
    assert names == {"slurm-8--gpu-0", "slurm-8--gpu-1"}


def test_too_few_devices_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, and nothing is waited for."""
    monkeypatch.setenv(VISIBLE, "0,1")
    with pytest.raises(ConfigError, match="too few GPUs for --device cuda --gpus 3; found 2 vis"):
        lease("cuda", 3)
    with pytest.raises(ConfigError, match="--device cuda:2"):
        lease("cuda:2", 1)


@pytest.mark.parametrize(("device", "shown"), [("cpu", "0"), ("mps", "0"), ("cuda", "")])
def test_nothing_is_leased_without_a_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, device: str, shown: str
) -> None:
    """No lock, and the environment stays as it is."""
    monkeypatch.setenv(VISIBLE, shown)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert lease(device, 1) == ()
    assert os.environ[VISIBLE] == shown
    assert list(tmp_path.iterdir()) == []


def test_a_named_device_is_leased_itself(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """cuda:1 is the second of those shown, and stays the second."""
    monkeypatch.setenv(VISIBLE, "4,5")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for descriptor in lease("cuda:1", 1):
        os.close(descriptor)
    assert capsys.readouterr().out == "GPU 5, leased\n"
    assert os.environ[VISIBLE] == "4,5"


@pytest.mark.parametrize(
    ("shown", "devices"),
    [("", []), ("-1", []), ("NoDevFiles", []), ("0, 2,", ["0", "2"]), ("3,-1,0", ["3"])],
)
def test_visible_devices_are_read_as_cuda_does(shown: str, devices: list[str]) -> None:
    """An invalid name ends the list."""
    assert visible({VISIBLE: shown}) == devices


def test_a_folder_of_somebody_else_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A link planted in the shared folder for temporary files is not followed."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"invarlock-gpus-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    monkeypatch.setenv(VISIBLE, "0,1")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(ConfigError, match="belongs to somebody else"):
        lease("cuda", 1)


# --- the workflow -------------------------------------------------------------------------------


def test_a_model_that_needs_more_gpus_than_allowed_is_one_line(repository: Path) -> None:
    """Snakemake would run it with fewer GPUs, and say nothing."""
    done = snakemake(repository, "-n", "--profile", "gpu", config=["suite=full"])
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("invarlock: ")
    assert "needs 2 GPUs; found --resources gpu=1; allow gpu=2" in done.stderr


def test_every_rule_that_asks_for_gpus_passes_on_how_many() -> None:
    """What snakemake grants is what the command leases."""
    texts = [
        text
        for path in sorted((ROOT / "rules").glob("*.smk"))
        for text in re.split(r"^rule ", path.read_text(), flags=re.MULTILINE)[1:]
        if "gpu=gpus" in text
    ]
    assert len(texts) >= 3
    assert [text.split(":")[0] for text in texts if "--gpus {resources.gpu}" not in text] == []
