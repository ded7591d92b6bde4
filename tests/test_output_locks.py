"""One process at a time makes an output: real processes, kernel locks, and jobs of SLURM."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType

import pytest
from repository_copy import ROOT

from invarlock import output_locks
from invarlock.cli import COMMANDS, main, module_of
from invarlock.cli.options import _options
from invarlock.errors import InputError
from invarlock.output_locks import Owner, claimed, slurm_state

LIMIT = 120  # seconds until a process that should go on is given up
# Claims an output, says so, and keeps it until its standard input ends.
JOB = """
import sys
from pathlib import Path
from invarlock.output_locks import claimed
with claimed("job", [Path(name) for name in sys.argv[1:]]):
    print("mine", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def jobs() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that are ended with the test."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for job in started:
        job.kill()
        job.communicate()


def start(jobs: list[subprocess.Popen[str]], *outputs: Path, **more: str) -> subprocess.Popen[str]:
    """A process that claims these outputs."""
    jobs.append(
        subprocess.Popen(
            [sys.executable, "-c", JOB, *map(str, outputs)],
            env={**os.environ, "PYTHONPATH": str(ROOT), **more},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    )
    return jobs[-1]


def said(job: subprocess.Popen[str], stream: str = "stdout") -> str:
    """The next line of a process."""
    found = getattr(job, stream)
    assert found is not None
    line: str = found.readline()
    return line.strip()


def finish(job: subprocess.Popen[str]) -> str:
    """Let a process end; what it still said on standard output."""
    out, _ = job.communicate("", timeout=LIMIT)
    assert job.returncode == 0
    return out.strip()


def claim_of(output: Path) -> Path:
    """The file beside an output."""
    return output.with_name(f".{output.name}.claim")


def write_claim(output: Path, owner: Owner) -> None:
    """What another process would have left."""
    claim_of(output).write_text(json.dumps(asdict(owner)))


ELSEWHERE = replace(Owner.of_this_process(), host="node7", machine="00000000", pid=1)


def test_a_second_process_waits_and_then_has_it(
    jobs: list[subprocess.Popen[str]], tmp_path: Path
) -> None:
    """It names the first in one line; nothing is left of either."""
    out = tmp_path / "sub" / "result.json"
    first = start(jobs, out)
    assert said(first) == "mine"
    second = start(jobs, out)
    line = said(second, "stderr")
    host = os.uname().nodename
    assert line == (f"invarlock job: waiting for {out}: process {first.pid} of {host} is making it")
    other = start(jobs, out.with_name("other.json"))  # an output beside it is free
    assert said(other) == "mine"
    finish(other)
    finish(first)
    assert said(second) == "mine"
    assert json.loads(claim_of(out).read_text())["pid"] == second.pid
    finish(second)
    assert list(out.parent.iterdir()) == []


def test_kill_9_gives_a_claim_back_at_once(
    jobs: list[subprocess.Popen[str]], tmp_path: Path
) -> None:
    """What is left of it says nothing: the lock has ended with the process."""
    out = tmp_path / "model"
    first = start(jobs, out)
    assert said(first) == "mine"
    second = start(jobs, out)
    assert f"process {first.pid}" in said(second, "stderr")
    first.send_signal(signal.SIGKILL)
    assert said(second) == "mine"
    finish(second)
    assert not claim_of(out).exists()


def test_many_processes_take_turns(jobs: list[subprocess.Popen[str]], tmp_path: Path) -> None:
    """Claims on two outputs in either order: never two holders, and nobody waits for ever."""
    a, b = tmp_path / "a", tmp_path / "b"
    waiting = [start(jobs, *pair) for pair in ((a, b), (b, a), (a, b), (b, a))]
    for job in waiting:
        assert job.stdin is not None
        job.stdin.close()  # each lets go at once
    for job in waiting:
        job.stdin = None
        assert job.wait(LIMIT) == 0
    assert list(tmp_path.iterdir()) == []


def test_one_process_may_nest(tmp_path: Path) -> None:
    """A command that calls another one for the same output does not wait for itself."""
    with claimed("a", [tmp_path / "x"]), claimed("b", [tmp_path / "x"]):
        assert claim_of(tmp_path / "x").is_file()
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_claimed_is_made_unclaimed(tmp_path: Path) -> None:
    """A device, a name that is too long, and a folder that cannot be made."""
    (tmp_path / "file").write_text("")
    outputs = [Path("/dev/null"), tmp_path / ("n" * 250), tmp_path / "file" / "in" / "it"]
    with claimed("a", outputs):
        assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert not Path("/dev/.null.claim").exists()


# --- where locks do not tell ----------------------------------------------------------------


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A queue of jobs: the file says what `squeue` answers for every one."""
    answer, program = tmp_path / "answer", tmp_path / "bin" / "squeue"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n. {answer}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return answer


@pytest.mark.parametrize(
    ("answer", "state", "lives"),
    [
        ("echo RUNNING", "RUNNING", (True, True)),
        ("echo COMPLETING", "COMPLETING", (True, True)),
        ("echo CANCELLED", "CANCELLED", (False, False)),
        ("echo PENDING", "PENDING", (False, False)),  # started again, and not there yet
        ("", "", (False, False)),
        ("echo 'error: Invalid job id specified' >&2; exit 1", "", (False, False)),
        ("echo 'Unable to contact slurm controller' >&2; exit 1", None, (False, True)),
    ],
)
def test_an_owner_on_another_node_is_asked_for(
    squeue: Path, answer: str, state: str | None, lives: tuple[bool, bool]
) -> None:
    """By SLURM; where that cannot be asked a lock tells, and without one the owner may live."""
    squeue.write_text(answer)
    owner = replace(ELSEWHERE, job="77")
    assert slurm_state("77") == state
    assert (owner.lives(locks=True), owner.lives(locks=False)) == lives
    assert "--jobs 77" in (squeue.parent / "asked").read_text()


def test_a_job_waits_for_one_of_another_node(
    jobs: list[subprocess.Popen[str]],
    squeue: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Although this node's kernel gives the lock; once that job has ended the claim is free."""
    monkeypatch.setattr(output_locks, "ASK_AGAIN", 0.1)
    out, owner = tmp_path / "run_1", replace(ELSEWHERE, job="77")
    squeue.write_text("echo RUNNING")
    write_claim(out, owner)
    job = start(jobs, out, SLURM_JOB_ID="78")
    assert said(job, "stderr").endswith("process 1 of node7, SLURM job 77 is making it")
    assert json.loads(claim_of(out).read_text()) == asdict(owner)
    job.kill()
    squeue.write_text("echo COMPLETED")
    job = start(jobs, out, SLURM_JOB_ID="78")
    assert said(job) == "mine"
    assert json.loads(claim_of(out).read_text())["job"] == "78"
    finish(job)


def test_a_job_that_slurm_starts_again_takes_its_own_claim(
    squeue: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failed node the same job runs elsewhere, and is RUNNING."""
    squeue.write_text("echo RUNNING")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    assert not replace(ELSEWHERE, job="77").lives(locks=False)
    assert replace(ELSEWHERE, job="76").lives(locks=False)


def test_without_locks_a_process_of_this_machine_is_asked_for(
    jobs: list[subprocess.Popen[str]], tmp_path: Path
) -> None:
    """By number and start: a later process of that number is another one."""
    job = start(jobs, tmp_path / "x")
    assert said(job) == "mine"
    owner = Owner(**json.loads(claim_of(tmp_path / "x").read_text()))
    assert owner.pid == job.pid
    assert owner.lives(locks=False)
    assert not replace(owner, started="1").lives(locks=False)
    job.kill()
    job.wait()
    assert not owner.lives(locks=False)


def no_locks(*_: object) -> None:
    """What a file system says that has none."""
    raise OSError(37, "No locks available")


def test_without_locks_nobody_guesses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An owner of another machine, outside SLURM: one line that says what to do."""
    monkeypatch.setattr(output_locks.fcntl, "flock", no_locks)
    write_claim(tmp_path / "x", ELSEWHERE)
    with pytest.raises(InputError) as caught, claimed("a", [tmp_path / "x"]):
        raise AssertionError("claimed")
    line = str(caught.value)
    assert "\n" not in line
    for part in ("process 1 of node7", str(tmp_path / "x"), str(claim_of(tmp_path / "x"))):
        assert part in line
    claim_of(tmp_path / "x").unlink()
    with claimed("a", [tmp_path / "x"]):  # free, and taken without a lock
        assert json.loads(claim_of(tmp_path / "x").read_text())["pid"] == os.getpid()
    assert not claim_of(tmp_path / "x").exists()


# --- commands -------------------------------------------------------------------------------


def written(tree: ast.AST) -> set[str]:
    """Names ``x`` of every ``options.x`` that a call which writes gets first."""
    return {
        argument.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).rpartition(".")[2].lstrip("_").startswith("write_")
        for argument in node.args[:1]
        if isinstance(argument, ast.Attribute) and ast.unparse(argument.value) == "options"
    }


def records(module: ModuleType) -> list[type]:
    """The options of a command, or of each of its sub-commands."""
    own = [module.OPTIONS] if hasattr(module, "OPTIONS") else []
    return own + [record for record, _, _ in getattr(module, "ACTIONS", {}).values()]


def test_every_command_claims_what_it_writes() -> None:
    """An option that a command writes to is declared as one that is written."""
    seen = set()
    for name in COMMANDS:
        module = module_of(name)
        assert module.__file__ is not None
        found = written(ast.parse(Path(module.__file__).read_text()))
        declared = {o.name: o.writes for record in records(module) for o in _options(record)}
        assert found <= {name for name, writes in declared.items() if writes}, name
        seen |= found
    assert {"out", "metadata", "junit"} <= seen


def test_a_command_waits_for_its_output(jobs: list[subprocess.Popen[str]], tmp_path: Path) -> None:
    """`invarlock scenarios` writes its file once the process that claimed it has ended."""
    out = tmp_path / "manifest.json"
    holder = start(jobs, out)
    assert said(holder) == "mine"
    command = [sys.executable, "-m", "invarlock", "scenarios", "--suite", "smoke"]
    command += ["--catalogue", "scenarios/scenarios.json", "--out", str(out)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as waiting:
        assert waiting.stderr is not None
        assert "waiting for" in waiting.stderr.readline()
        assert not out.exists()
        finish(holder)
        assert waiting.wait(LIMIT) == 0
    assert out.is_file()
    assert [p.name for p in tmp_path.iterdir()] == [out.name]


def test_a_refused_command_leaves_no_folder(tmp_path: Path) -> None:
    """Neither the claim nor the folders that were made for it."""
    words = ["run", "--model", str(tmp_path / "none"), "--windows", str(tmp_path / "w.json")]
    assert main([*words, "--out", str(tmp_path / "a" / "b"), "--tier", "no such tier"]) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_place_where_no_file_can_be_made_is_not_waited_for() -> None:
    """The kernel's folders answer that there is no such file, as after a lost race."""
    with output_locks.claimed("verify", [Path("/proc/result.json")]):
        assert not Path("/proc/.result.json.claim").exists()
