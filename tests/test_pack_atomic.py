"""Building packs in real processes: killed, racing, on a full disk; the same bytes every time."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pack_factory as packs
import pytest
from repository_copy import ROOT

from invarlock.evidence import keys

PROCESS = ROOT / "tests" / "build_process.py"
TOKEN = "hf_Zx9KpLqR7sTtUvWwYy0011223344"


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A suite of one scenario, so that a build has few steps."""
    return packs.write_suite(tmp_path_factory.mktemp("suite") / "out", ("noop_clean",))


def in_processes(what: str, suite: Path, key: Path, folder: Path) -> dict[str, Any]:
    """Run one part of ``build_process.py``; what it found."""
    (folder / "to").mkdir()
    command = [sys.executable, str(PROCESS), what, str(suite), str(folder / "to/pack"), str(key)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def command(*words: str | Path) -> list[str]:
    """A command line of the package."""
    return [sys.executable, "-m", "invarlock", "advanced", "evidence-pack", *map(str, words)]


# --- killed and racing ----------------------------------------------------------------------


def test_a_kill_leaves_no_pack_or_a_whole_one(suite: Path, key: Path, tmp_path: Path) -> None:
    """SIGKILL before every change a build makes (files, halves of writes, modes, flushes, folders,
    the rename): no pack or the whole one, beside it at most one hidden stage and a claim, which the
    same command removes when it is run again - and then it makes the same bytes."""
    found = in_processes("kill", suite, key, tmp_path)
    assert found["wrong"] == []
    assert found["code"] == 0  # the build that had no further step to be killed at
    assert found["steps"] > 100
    assert 0 < found["packs"] < 4  # only after the rename
    assert found["stages"] + found["packs"] >= found["steps"] - 1  # before the first there is none


def test_a_live_stage_is_left_alone(suite: Path, key: Path, tmp_path: Path) -> None:
    """A build that only pauses keeps its stage and wins; the other one waits, then ends with 2."""
    found = in_processes("stop", suite, key, tmp_path)
    assert found["codes"] == [0, 2]
    assert found["kept"]
    none, (waits, exists) = found["lines"]
    assert none == []
    assert "is making it" in waits
    assert "exists" in exists
    assert (found["whole"], found["left"]) == (True, [])


def test_of_many_builds_and_keygens_one_wins(suite: Path, key: Path, tmp_path: Path) -> None:
    """Processes that start together: one has exit 0, every other exit 2 and its reason."""
    found = in_processes("race", suite, key, tmp_path)
    for what in ("build", "keygen"):
        codes = sorted(code for code, _ in found[what])
        assert codes == [0, 2, 2, 2]
        for code, lines in found[what]:  # those that came later may have said that they wait
            assert len([line for line in lines if "is making it" not in line]) == (code != 0)
    assert (found["whole"], found["left"]) == (True, [])
    pair = tmp_path / "pair/k.pem"
    assert pair.stat().st_mode & 0o777 == 0o600
    public = keys.parse_public_pem((tmp_path / "pair/k.pub.pem").read_text())
    assert public == keys.load_signing_key(pair).public


# --- the same bytes -------------------------------------------------------------------------


def moved(suite: Path, to: Path) -> Path:
    """The same folder with its files made in another order, at another time."""
    for path in sorted((p for p in suite.rglob("*") if p.is_file()), reverse=True):
        target = to / path.relative_to(suite)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        os.utime(target, (1, 1))
        target.chmod(0o600)
    return to


def contents(pack: Path) -> dict[str, tuple[int, bytes | None]]:
    """Mode and bytes of everything in a pack."""
    return {
        p.relative_to(pack).as_posix(): (p.stat().st_mode, p.read_bytes() if p.is_file() else None)
        for p in [pack, *pack.rglob("*")]
    }


def test_builds_have_the_same_bytes_wherever_they_run(
    suite: Path, key: Path, tmp_path: Path
) -> None:
    """Folder, umask, locale, time zone, hash seed, order and times of the files, the day: with
    SOURCE_DATE_EPOCH nothing of it shows, in no byte and no mode, signature included."""
    surroundings: list[Mapping[str, str]] = [
        {"PYTHONHASHSEED": "0", "TZ": "UTC", "LC_ALL": "C"},
        {"PYTHONHASHSEED": "1", "TZ": "Pacific/Auckland", "LC_ALL": "tr_TR.UTF-8", "LANG": "de_DE"},
        {"PYTHONHASHSEED": "random", "TZ": "America/Lima", "HOME": "/", "USER": "somebody"},
    ]
    built = []
    for number, variables in enumerate(surroundings):
        folder = tmp_path / str(number)
        folder.mkdir()
        run = moved(suite, folder / "run") if number else suite
        old = os.umask((0o022, 0o077, 0o002)[number])
        try:
            done = subprocess.run(
                command("build", "pack", "--run-dir", run, "--signing-key", key),
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(ROOT), "SOURCE_DATE_EPOCH": "1"} | variables,
                capture_output=True,
                text=True,
                check=False,
            )
        finally:
            os.umask(old)
        assert done.returncode == 0, done.stderr
        built.append(contents(folder / "pack"))
        time.sleep(0.01)
    assert built[0] == built[1] == built[2]
    assert {mode & 0o777 for mode, data in built[0].values() if data is not None} == {0o644}
    assert {mode & 0o777 for mode, data in built[0].values() if data is None} == {0o755}


# --- what must not get in -------------------------------------------------------------------


def plant(suite: Path, private: bytes) -> None:
    """Secrets in places and under names that invite copying."""
    folders = [p for p in suite.rglob("*") if p.is_dir()] + [suite]
    names = (".env", "token", "id_ed25519", "pack.pem", "events.jsonl", "report.json~", "-rf.json")
    names += ("evaluation.report.json.bak", ".evaluation.report.json.swp", "outcome (1).json")
    names += ("EVALUATION.REPORT.JSON", "notes\n.md", "manifest.json", "state.json")
    for folder in folders:
        for name in names:
            (folder / name).write_bytes(private + TOKEN.encode())
    (suite / "state" / "hf").mkdir()
    (suite / "state/hf/token").write_text(TOKEN)
    (suite / "runs").mkdir()
    (suite / "runs/model.safetensors").write_bytes(TOKEN.encode() * 100)
    deep = suite / packs.MODEL / "reports/noop_clean/run_1/reports/x/run_1"
    deep.mkdir(parents=True)
    (deep / "evaluation.report.json").write_text(json.dumps({"token": TOKEN}))


@pytest.mark.parametrize("named", [False, True])
def test_no_secret_gets_into_a_pack(
    key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    """Keys, tokens, weights and odd files in every folder, and in the environment: no byte of
    them, of the host's paths and of the user's name is in the pack, nor is the signing key."""
    scenarios = ("noop_clean",) if named else ("noop_clean", "nan_injection")
    suite = packs.write_suite(tmp_path / "secretive" / "out", scenarios)
    private = key.read_bytes()
    plant(suite, private)
    user = "somebody-or-other"
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(variable, TOKEN)
    monkeypatch.setenv("INVARLOCK_SIGNING_KEY", str(key))
    monkeypatch.setenv("USER", user)
    monkeypatch.setenv("HOME", str(tmp_path / user))
    pack = tmp_path / "pack"
    if named:
        report = suite / packs.MODEL / "reports/noop_clean/run_1/evaluation.report.json"
        words = command("build", pack, "--final-verdict", suite / "reports/final_verdict.json")
        words += ["--report", str(report), "--signing-key", str(key)]
        assert packs.cli(words[3:]) == 0
    else:
        assert packs.build(suite, pack, key=key) == 0
    seed = keys.load_signing_key(key).seed
    secrets = [TOKEN.encode(), seed, seed.hex().encode(), base64.b64encode(seed)[:40]]
    secrets += [b"PRIVATE KEY", str(tmp_path).encode(), user.encode()]
    for path, data in packs.snapshot(pack).items():
        shown = [secret for secret in secrets if secret in data or secret in path.encode()]
        assert not shown, path


@pytest.mark.parametrize("where", ["home", "here", "run"])
def test_a_path_of_this_machine_is_warned_of(
    key: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    where: str,
) -> None:
    """An input that names the home folder, the working folder or the run's gives a warning."""
    suite = packs.write_suite(tmp_path / "run", ("noop_clean",))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    packs.write_json(suite / packs.MODEL / "baseline.json", {"path": str(tmp_path / where)})
    assert packs.build(suite, tmp_path / "pack", key=key) == 0
    shown = capsys.readouterr().err
    assert f"names the folder {tmp_path / where}" in shown


@pytest.mark.parametrize("name", ["error_metadata.json", "outcome.json", "evaluation.html"])
def test_a_link_beside_a_report_is_not_followed(
    key: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A link in place of an input is refused with its path: exit 4, no pack."""
    suite = packs.write_suite(tmp_path / "out", ("noop_clean", "nan_injection"))
    (tmp_path / "secret").write_text(json.dumps({"token": TOKEN}))
    place = suite / packs.MODEL / "reports/nan_injection/run_1" / name
    place.unlink()
    place.symlink_to(tmp_path / "secret")
    assert packs.build(suite, tmp_path / "pack", key=key) == 4
    assert name in capsys.readouterr().err
    assert not (tmp_path / "pack").exists()


# --- a full disk ----------------------------------------------------------------------------

FULL = """
mount -t tmpfs -o size=64k tmpfs "$1" || exit 99
"$2" -m invarlock advanced evidence-pack build "$1/pack" --run-dir "$3" --signing-key "$4"
echo "code $?, left: $(ls -A "$1")"
mount -o remount,size=16m "$1"
"$2" -m invarlock advanced evidence-pack build "$1/pack" --run-dir "$3" --signing-key "$4"
echo "code $?, left: $(ls -A "$1")"
"""


def test_a_full_disk_leaves_nothing_and_works_once_there_is_space(
    suite: Path, key: Path, tmp_path: Path
) -> None:
    """A file system that is too small: one line that says so, exit 3, nothing half-written; the
    same command works after space was made."""
    if shutil.which("unshare") is None:
        pytest.skip("no unshare to mount a small file system with")
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c", FULL, "sh"]
    command += [str(tmp_path), sys.executable, str(suite), str(key)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip(f"no small file system can be mounted here: {done.stderr.strip()[:80]}")
    assert "code 3, left: \n" in done.stdout
    assert "code 0, left: pack\n" in done.stdout
    lines = done.stderr.splitlines()
    assert len(lines) == 1
    assert "No space left on device" in lines[0]
    assert "make space and repeat the command" in lines[0]
