"""An evaluation in a batch: what is finished is found by the next start, and only that."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import measuring_here
from measuring_factory import FEW, World, change, make_world, read

from invarlock.cli import evaluate

DOWN = "model.layers.0.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A measured baseline on few windows, and a subject with one NaN."""
    made = make_world(tmp_path_factory.mktemp("world"), FEW)
    subject = shutil.copytree(made.baseline, made.root / "subject")
    change(subject, lambda t: t[DOWN][0].fill_(math.nan))
    return made


@pytest.fixture
def start(world: World, tmp_path: Path) -> Callable[..., int]:
    """Evaluate the subject as one of a batch."""
    more = ("--record-failure", "--finished", str(tmp_path / "finished"))
    return lambda *words: world.evaluate(world.root / "subject", tmp_path / "out", *more, *words)


def written(folder: Path) -> dict[str, bytes]:
    """The files of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def never(*_: object) -> tuple[int, str]:
    """In place of a measurement."""
    raise AssertionError("it is measured again")


def test_a_finished_evaluation_is_found(
    start: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Its outputs are removed, as a workflow does, and written again with the same bytes; also at
    a third start, and whatever settings are recorded."""
    with measuring_here():
        assert start() == 0
    first = written(tmp_path / "out")
    assert json.loads(first["outcome.json"])["status"] == "rejected_by_invariants"
    monkeypatch.setattr(evaluate, "_supervise", never)
    for attempt in ("2", "3"):
        shutil.rmtree(tmp_path / "out")
        assert start("--attempt", attempt) == 0
        assert written(tmp_path / "out") == first
        assert capsys.readouterr().out.rstrip().endswith("(finished at an earlier start)")


@pytest.mark.parametrize("what", ["subject", "windows", "option", "code"])
def test_another_evaluation_is_not(
    world: World,
    start: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    """Another state of a file that it reads, another option, other code: measured again."""
    with measuring_here():
        assert start() == 0
    shutil.rmtree(tmp_path / "out")
    words: tuple[str, ...] = ()
    if what == "option":
        words = ("--seed", "44")
    elif what == "code":
        monkeypatch.setattr("invarlock.run.finished.state_of_code", lambda: [["other", 1, 1]])
    else:
        file = {"subject": world.root / "subject/config.json", "windows": world.windows}[what]
        os.utime(file, (1, 1))
    monkeypatch.setattr(evaluate, "_supervise", never)
    with pytest.raises(AssertionError, match="measured again"):
        start(*words)


def test_a_failure_is_recorded_and_not_kept(
    start: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory that runs out: three sizes of batch at the first start; and the next start tries."""
    script = tmp_path / "worker.sh"
    script.write_text(f"#!/bin/sh\ncat >> {tmp_path}/jobs; echo >> {tmp_path}/jobs; exit 75\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    for starts in (1, 2):
        assert start("--attempt", str(starts)) == 0
        assert read(tmp_path / "out", "outcome.json")["status"] == "out_of_memory"
        jobs = [json.loads(line) for line in (tmp_path / "jobs").read_text().splitlines()]
        assert [job["token_budget"] for job in jobs] == [1024, 512, 256] * starts
