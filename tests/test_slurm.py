"""The profile slurm on a cluster of one node with two pretend GPUs, started for these tests.

Two evaluations run at once; the first attempt of one is cancelled in the middle, that of the other
runs out of time.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from conftest import write_tiny_folder
from repository_copy import ROOT, link_repository, quiet_environment, snakemake
from test_kill_each_rule import digests as digests_of_run

from invarlock.cli import main

LIMIT = 600.0  # seconds of one run, on a machine that is busy with other things
HOOK = ROOT / "tests/poll_hook"
RUN = Path("evidence_pack_runs/byoe")
CANCELLED, OUT_OF_TIME = "noop_clean", "byoe"
SLURM = [
    "--profile", "slurm", "--latency-wait", "5",
    "--slurm-init-seconds-before-status-checks", "1", "--seconds-between-status-checks", "2",
]  # fmt: skip


def why_not() -> str:
    """Why there can be no cluster here, or nothing."""
    daemons = ("munged", "slurmctld", "slurmd", "sbatch")
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    if missing := [name for name in daemons if shutil.which(name, path=path) is None]:
        return f"SLURM is not installed (munge, slurm-wlm): no {', '.join(missing)}"
    return "" if os.getuid() == 0 else "only root can start SLURM's daemons"


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """The cluster; it is stopped when its standard input ends, also if this process is killed."""
    if (reason := why_not()) and not os.environ.get("CI"):
        pytest.skip(reason)
    assert not reason, f"CI is set: {reason}"
    size = {"SLURM_LAB_CPUS": "4", "SLURM_LAB_MEM_MB": "32000", "SLURM_LAB_GPUS": "2"}
    with subprocess.Popen(
        ["bash", "tools/slurm_up.sh", "run", "bash", "-c", "echo ready; exec cat"],
        cwd=ROOT,
        env=os.environ | size,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        yield


@dataclass(frozen=True)
class Job:
    """What SLURM knows of a job."""

    number: int
    rule: str  # rule and wildcards
    state: str
    mem_mb: int
    gpus: str


def jobs() -> list[Job]:
    """All jobs of the cluster, in the order of their submission."""
    text = subprocess.check_output(["scontrol", "show", "job"], text=True)
    records = [dict(re.findall(r"(\w+)=(\S*)", part)) for part in text.split("\n\n")]
    found = [
        Job(
            int(record["JobId"]),
            record["Comment"].replace("_wildcards", ""),
            record["JobState"],
            int(record["MinMemoryNode"].removesuffix("M")),
            record.get("TresPerJob", ""),
        )
        for record in records
        if "Comment" in record
    ]
    return sorted(found, key=lambda job: job.number)


def is_server(process: Path) -> bool:
    """Whether a process is a fork server, or a child of one."""
    return b"invarlock.run.forkserver" in (process / "cmdline").read_bytes()


def parent_of(process: Path) -> str:
    """The number of a process's parent."""
    return (process / "stat").read_text().rpartition(") ")[2].split()[1]


def measuring_process(job: Job) -> int | None:
    """The process of this job that measures, once it is there."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if is_server(folder) and is_server(folder.parent / parent_of(folder)):
                variables = (folder / "environ").read_bytes().split(b"\0")  # the server's
                if f"SLURM_JOB_ID={job.number}".encode() in variables:
                    return int(folder.name)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
    return None


def digests(out: Path) -> dict[str, str]:
    """SHA-256 of every file of a run, but for what says when and how fast it was, and for earlier
    answers, which a run that starts again sets aside."""
    other = ("analysis/", "superseded/")
    return {k: v for k, v in digests_of_run(out).items() if not k.startswith(other)}


@dataclass(frozen=True)
class World:
    """A small byoe run, undisturbed, and again from the baseline's preset on in SLURM."""

    words: list[str]
    calm: Path
    rough: Path

    def start(self, repository: Path, *options: str) -> subprocess.Popen[str]:
        """Start the workflow; its output is written to a file."""
        path = ":".join(filter(None, (str(HOOK), os.environ.get("PYTHONPATH"))))
        with open(repository / "output.txt", "w") as output:
            return subprocess.Popen(
                [sys.executable, "tools/workflow.py", *options, "--config", *self.words],
                cwd=repository,
                env=quiet_environment() | {"PYTHONPATH": path},
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
            )

    def finish(self, running: subprocess.Popen[str], repository: Path, code: int = 0) -> str:
        """Wait for its end; what it printed."""
        try:
            ended = running.wait(LIMIT)
        finally:
            running.kill()
        printed = (repository / "output.txt").read_text()
        assert ended == code, printed[-8000:]
        return printed


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, cluster: None) -> World:
    """The undisturbed run, and a copy of it without edits and evaluations."""
    folder = tmp_path_factory.mktemp("slurm")
    base, mine, text = folder / "base", folder / "mine", folder / "speech.txt"
    write_tiny_folder(base)
    edit = ["edit", "--baseline", str(base), "--spec", "quant_rtn:8:0:all"]
    assert main([*edit, "--out", str(mine), "--metadata", str(folder / "edit.json")]) == 0
    text.write_text(" ".join(f"sentence {n} of {n * n} words." for n in range(60)))
    words = [
        "suite=byoe", f"baseline={base}", f"subject={mine}", f"text=local:{text}",
        "windows={seq_len: 16, preview: 4, final: 4, seed: 43}", "device=auto", "tier=none",
        "bootstrap={replicates: 200, alpha: 0.05}", f"scenarios={CANCELLED},{OUT_OF_TIME}",
        "retries=2", "batch=1",  # the profile's own, which is recorded; and each job for itself
    ]  # fmt: skip
    made = World(words, *(link_repository(folder / name) for name in ("calm", "rough")))
    done = snakemake(made.calm, "suite", "--profile", "profiles/cpu", config=words, timeout=LIMIT)
    assert done.returncode == 0, done.stderr[-6000:]
    for name in (".snakemake", "evidence_pack_runs"):
        shutil.copytree(made.calm / name, made.rough / name, symlinks=True)
    for name in ("reports", "base/reports", "base/edits", "logs"):
        shutil.rmtree(made.rough / RUN / name)
    return made


@dataclass(frozen=True)
class Disturbed:
    """What was seen while two evaluations were on the cluster, and what came out."""

    seen: dict[str, str]  # scenario: log of its first attempt, while both were running
    jobs: list[Job]
    digests: dict[str, str]

    def of(self, rule: str) -> list[Job]:
        """The jobs of one rule and its wildcards, one an attempt."""
        return [job for job in self.jobs if job.rule == rule]


@pytest.fixture(scope="module")
def disturbed(world: World) -> Disturbed:
    """Stop both first attempts in the middle of their measurement, then let SLURM end them."""
    gpus = "evaluate:gpu=1"  # pretend GPUs compute nothing: device is auto, and that is the CPU
    running = world.start(world.rough, "suite", *SLURM, "--set-resources", gpus)
    stopped: dict[str, Job] = {}
    logs = world.rough / RUN / "logs/base"
    end = time.monotonic() + LIMIT
    while len(stopped) < 2:
        assert running.poll() is None, (world.rough / "output.txt").read_text()[-8000:]
        assert time.monotonic() < end
        time.sleep(0.05)
        # it asks for a device once the subject's files have been looked at
        files = {name: logs / name / "evaluate.1.log" for name in (CANCELLED, OUT_OF_TIME)}
        asking = {name for name, log in files.items() if log.is_file() and log.read_text()}
        for job in jobs() if asking - stopped.keys() else ():
            scenario = job.rule.removeprefix("rule_evaluate_base_").removesuffix("_1")
            if scenario in asking - stopped.keys():
                process = measuring_process(job)
                if process is not None:
                    os.kill(process, signal.SIGSTOP)
                    stopped[scenario] = job
    seen = {name: (logs / name / "evaluate.1.log").read_text() for name in stopped}
    subprocess.run(["scancel", str(stopped[CANCELLED].number)], check=True)
    limit = [f"JobId={stopped[OUT_OF_TIME].number}", "EndTime=now+1"]
    subprocess.run(["scontrol", "update", *limit], check=True)
    world.finish(running, world.rough)
    return Disturbed(seen, jobs(), digests(world.rough / RUN))


def test_a_killed_evaluation_is_run_again(disturbed: Disturbed) -> None:
    """Cancelled, or out of time: the next attempt completes."""
    for scenario, state in ((CANCELLED, "CANCELLED"), (OUT_OF_TIME, "TIMEOUT")):
        attempts = disturbed.of(f"rule_evaluate_base_{scenario}_1")
        assert [job.state for job in attempts] == [state, "COMPLETED"]


def test_its_bytes_are_those_of_an_undisturbed_run(world: World, disturbed: Disturbed) -> None:
    """Reports, outcomes and verdict, of a run that no scheduler touched."""
    assert disturbed.digests == digests(world.calm / RUN)
    assert f"base/reports/{CANCELLED}/run_1/outcome.json" in disturbed.digests
    assert "reports/final_verdict.json" in disturbed.digests


def test_memory_grows_on_retry(disturbed: Disturbed) -> None:
    """The second attempt asks for twice the memory of the first."""
    for scenario in (CANCELLED, OUT_OF_TIME):
        first, second = disturbed.of(f"rule_evaluate_base_{scenario}_1")
        assert second.mem_mb == 2 * first.mem_mb > 0


def test_each_gpu_job_has_a_device_of_its_own(disturbed: Disturbed) -> None:
    """Two at once, each on the device that SLURM gave it; what needs none holds none."""
    found = {text.splitlines()[0] for text in disturbed.seen.values()}
    assert found == {"GPU 0, given by SLURM", "GPU 1, given by SLURM"}
    for job in disturbed.jobs:
        wanted = "gres:gpu:1" if job.rule.startswith("rule_evaluate") else ""
        assert job.gpus == wanted, job
    assert [job.gpus for job in disturbed.of(f"rule_edit_base_{CANCELLED}")] == [""]


def test_a_job_that_outlived_its_workflow_is_waited_for(world: World, disturbed: Disturbed) -> None:
    """The workflow is killed alone and started again: its evaluation waits for the one that goes
    on, which it names by its job; the bytes are the same."""
    assert disturbed.jobs  # after the others, in their folder
    name = f"rule_evaluate_base_{CANCELLED}_1"
    before = {job.number for job in jobs()}
    shutil.rmtree(world.rough / RUN / "base/reports" / CANCELLED)
    first = world.start(world.rough, "suite", *SLURM)
    end = time.monotonic() + LIMIT
    claim = world.rough / RUN / "base/reports" / CANCELLED / ".run_1.claim"
    process, found = None, []
    while process is None or not (claim.is_file() and claim.read_text()):
        assert first.poll() is None, (world.rough / "output.txt").read_text()[-8000:]
        assert time.monotonic() < end
        time.sleep(0.05 if found else 0.2)
        if not found:
            found = [job for job in jobs() if job.rule == name and job.number not in before]
        process = measuring_process(found[0]) if found else None
    os.kill(process, signal.SIGSTOP)  # before it ends
    first.kill()  # it alone
    first.wait(LIMIT)
    (orphan,) = found
    second = world.start(world.rough, "suite", *SLURM)
    log = world.rough / RUN / "logs/base" / CANCELLED / "evaluate.1.log"
    try:
        while not (log.is_file() and "waiting for" in log.read_text()):
            assert second.poll() is None, (world.rough / "output.txt").read_text()[-8000:]
            assert time.monotonic() < end + LIMIT
            time.sleep(0.05)
        assert f", SLURM job {orphan.number} is making it" in log.read_text()
    finally:
        os.kill(process, signal.SIGCONT)
    world.finish(second, world.rough)
    assert digests(world.rough / RUN) == digests(world.calm / RUN)


def test_what_a_batch_had_finished_is_not_measured_again(
    world: World, disturbed: Disturbed
) -> None:
    """Both evaluations in one job, which is cancelled in the middle of the second: its next start
    measures that one alone, and the bytes are those of an undisturbed run."""
    assert disturbed.jobs  # after the others, in their folder
    before = {job.number for job in jobs()}
    shutil.rmtree(world.rough / RUN / "base/reports")
    batched = replace(world, words=[*world.words, "batch=8"])
    running = batched.start(world.rough, "suite", *SLURM, "--set-resources", "evaluate:gpu=1")
    logs = world.rough / RUN / "logs/base"
    end = time.monotonic() + LIMIT

    def ours() -> list[Job]:
        found = (job for job in jobs() if job.number not in before)
        return [job for job in found if "evaluations" in job.rule]

    stopped = None
    while stopped is None:
        assert running.poll() is None, (world.rough / "output.txt").read_text()[-8000:]
        assert time.monotonic() < end
        time.sleep(0.05)
        done = list((world.rough / RUN / "base/reports").glob("*/run_1/outcome.json"))
        if len(done) == 1 and list((world.rough / RUN / "state/finished").glob("[!.]*")):
            (job,) = ours()
            stopped = measuring_process(job)
    os.kill(stopped, signal.SIGSTOP)
    first = done[0].parents[1].name
    subprocess.run(["scancel", str(job.number)], check=True)
    batched.finish(running, world.rough)
    assert [job.state for job in ours()] == ["CANCELLED", "COMPLETED"]
    assert {job.gpus for job in ours()} == {"gres:gpu:1"}
    said = {name: (logs / name / "evaluate.1.log").read_text() for name in (CANCELLED, OUT_OF_TIME)}
    again = "(finished at an earlier start)"
    assert [name for name in said if again in said[name]] == [first]
    rough, calm = (digests(folder / RUN) for folder in (world.rough, world.calm))
    assert {k for k in rough.keys() | calm if rough.get(k) != calm.get(k)} == {"state/config.json"}
    assert not (world.rough / RUN / "state/finished").exists()


def test_the_message_names_the_log_of_a_job_that_failed(world: World, disturbed: Disturbed) -> None:
    """Windows that cannot be read: the error stands in the log that the message names."""
    assert disturbed.jobs  # after the others, in their folder
    (world.rough / RUN / "base/windows.json").write_text("broken")
    target = RUN / "base/runs/baseline/report.json"
    running = world.start(world.rough, str(target), *SLURM, "--retries", "0")
    printed = world.finish(running, world.rough, 1)
    (message,) = re.findall(r"SLURM-job '\d+' failed.*?\n((?:    .*\n)+)", printed)
    (named,) = re.findall(r"    log: (.*) \(check log file", message)
    ours, theirs = (world.rough / name for name in named.split(", "))
    assert ours == world.rough / RUN / "logs/base/baseline_report.log"
    assert "invarlock run: " in ours.read_text()
    assert ours.read_text().strip() in printed  # and it is shown
    assert theirs.is_file()
