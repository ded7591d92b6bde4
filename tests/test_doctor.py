"""``invarlock doctor``: what it says of this machine, and that each fault it looks for is seen."""

from __future__ import annotations

import json
from collections import namedtuple
from pathlib import Path

import pytest
from repository_copy import ROOT

from invarlock.cli import doctor, main
from invarlock.evidence import keys

pytestmark = pytest.mark.usefixtures("in_repository")


def found(folder: Path = ROOT) -> dict[str, doctor.Check]:
    """The checks by name."""
    return {check.name: check for check in doctor.checks(folder)}


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH of no programs but those that a test puts there."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def program(folder: Path, name: str, script: str) -> None:
    """An executable that runs this."""
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_this_machine_can_run_the_main_job(capsys: pytest.CaptureFixture[str]) -> None:
    """The tests run here, so a main job does: 0, a line for each check, and the same as JSON."""
    assert main(["doctor"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert last == "The main job (make smoke) can run here."
    assert main(["doctor", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["main_job"] is True
    assert len(document["checks"]) == len(lines)
    for check, line in zip(document["checks"], lines, strict=True):
        assert line.split()[0] == check["state"]
        assert check["name"] in line
    names = {check["name"] for check in document["checks"]}
    assert names >= {
        "python", "environment", "packages", "lock", "cpu", "gpu", "containers",
        "packed models", "hub cache", "disk", "signing key", "slurm",
    }  # fmt: skip


def test_a_missing_package_keeps_the_main_job_from_running(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """1, the package's name, and what to do."""
    monkeypatch.setattr(doctor, "NEEDED", {"no-such-package": "no_such_module"})
    assert main(["doctor"]) == 1
    said = capsys.readouterr().out
    assert "fails packages       not installed: no-such-package; make setup" in said
    assert "cannot run here" in said


def test_other_versions_than_the_lock_names_are_told(tmp_path: Path) -> None:
    """By name, what is wanted and what is here; extras of a package are no part of its name."""
    (tmp_path / "requirements.lock").write_text("# pins\nnumpy==0.0.1\nnosuch[extra]==2.0 ; x\n")
    (lock,) = [c for c in doctor._packages(tmp_path) if c.name == "lock"]
    assert lock.state == doctor.NOTE
    assert "numpy 0.0.1 (" in lock.found
    assert "nosuch 2.0 (not installed here)" in lock.found


def test_too_little_disk_keeps_the_main_job_from_running(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the suite wants and what is free; larger suites are only noted."""
    monkeypatch.setattr(doctor, "free_bytes", lambda _: 10**9)
    assert found()["disk"].state == doctor.BAD
    monkeypatch.setattr(doctor, "free_bytes", lambda _: 50 * 10**9)
    disk = found()["disk"]
    assert disk.state == doctor.NOTE
    assert "subset" in disk.todo
    monkeypatch.setattr(doctor, "free_bytes", lambda _: 10**13)
    assert found()["disk"].state == doctor.OK


def test_an_old_python_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the versions that will do."""
    version = namedtuple("version", "major minor")
    monkeypatch.setattr(doctor.sys, "version_info", version(3, 10))
    assert doctor._python().state == doctor.BAD


def test_engines_are_asked_whether_they_work(programs: Path) -> None:
    """A client without its service is no engine; one that works is enough."""
    assert "none of apptainer" in found()["containers"].found
    program(programs, "docker", "echo 'Cannot connect to the Docker daemon' >&2; exit 1")
    engines = found()["containers"]
    assert engines.state == doctor.NOTE
    assert "docker: fails (1): Cannot connect to the Docker daemon" in engines.found
    program(programs, "apptainer", "echo apptainer version 1.3.4")
    engines = found()["containers"]
    assert engines.state == doctor.OK
    assert "apptainer: apptainer version 1.3.4" in engines.found


def test_gpus_and_the_build_of_torch(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that this torch cannot use is told from one that it can."""
    program(programs, "nvidia-smi", "echo 'GPU A, 80000 MiB'")
    (_, gpu) = doctor._devices(["GPU A, 80000 MiB"], "2.13.0+cpu")
    assert (gpu.state, "cannot use" in gpu.found) == (doctor.NOTE, True)
    (_, gpu) = doctor._devices(["GPU A, 80000 MiB"], "2.13.0")
    assert gpu.state == doctor.OK
    assert "1 GPU" in found()["gpu"].found or "GPU A" in found()["gpu"].found


def test_a_cluster_is_asked_whether_it_answers(programs: Path) -> None:
    """No sbatch, an sbatch without a cluster, and one with it."""
    assert "no sbatch" in found()["slurm"].found
    program(programs, "sbatch", "exit 0")
    program(programs, "sinfo", "echo 'sinfo: error: no controller' >&2; exit 1")
    slurm = found()["slurm"]
    if "plugin" not in slurm.found:
        assert (slurm.state, slurm.todo) == (doctor.NOTE, "no cluster answers")
        program(programs, "sinfo", "echo 'debug* up'")
        assert found()["slurm"].state == doctor.OK


def test_the_signing_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None, one, and one that others can read."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert "unsigned" in found()["signing key"].found
    key = tmp_path / "invarlock/signing-key.pem"
    key.parent.mkdir()
    name = keys.generate(key, tmp_path / "key.pub.pem")
    assert name in found()["signing key"].found
    key.chmod(0o644)
    assert "can be read by others" in found()["signing key"].found
    monkeypatch.setenv("PACK_SIGNING_KEY", str(tmp_path / "nosuch.pem"))
    assert "nosuch.pem" in found()["signing key"].found


def test_the_cache_and_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models in the cache are counted, and a variable without effect is named."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert "0 models" in found()["hub cache"].found
    (tmp_path / "models--own--new").mkdir()
    assert "1 model" in found()["hub cache"].found
    monkeypatch.setenv("INVARLOCK_TEIR", "x")
    assert "INVARLOCK_TIER" in found()["variables"].found


def test_elsewhere_the_way_to_a_checkout_is_told(tmp_path: Path) -> None:
    """A folder without the Snakefile runs nothing."""
    workflow = found(tmp_path)["workflow"]
    assert workflow.state == doctor.NOTE
    assert str(ROOT) in workflow.todo
