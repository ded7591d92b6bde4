"""Target release: settings no review accepts stop it before any job, results after the verdict."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pack_factory as packs
import published_factory as published
import pytest
import yaml
from repository_copy import ROOT, engine_of_a_version, link_repository, snakemake
from settings_factory import settings

from invarlock.config import check_release
from invarlock.errors import ConfigError
from invarlock.evidence import keys

OUT = "evidence_pack_runs/smoke"
PROFILE = ("--profile", "profiles/release")
UNMET = {
    "signing_key": "a signing_key",
    "profile": "profile ci or release, not dev",
    "assurance": "assurance strict",
    "defer_rendering": "defer_rendering true",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, key: Path) -> Path:
    """A working folder with an image's name and an engine that is asked for its version only."""
    folder = link_repository(tmp_path_factory.mktemp("release") / "repository")
    (folder / "image.sif").write_bytes(b"image")
    engine_of_a_version(folder)
    return folder


def release(folder: Path, key: Path | None, *options: str) -> subprocess.CompletedProcess[str]:
    """Ask for the target alone: what it rests on is there or is not."""
    words = ["release", *options, "--cores", "1", "--allowed-rules", "release"]
    config = ["suite=smoke", "container_image=image.sif"]
    config += [f"signing_key={key}"] if key else []
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return snakemake(folder, *words, config=config, PATH=path)


def put_pack(folder: Path, suite: Path, key: Path) -> Path:
    """Make the pack of ``suite`` that of the run."""
    out = folder / OUT
    out.mkdir(parents=True, exist_ok=True)
    pack = out / "evidence_pack"
    shutil.rmtree(pack, ignore_errors=True)
    assert packs.build(suite, pack, key=key) == 0
    (out / "verify_pack.json").write_text("{}\n")
    return pack


def test_what_can_be_known_stops_before_the_first_job(folder: Path) -> None:
    """Everything that the shipped settings lack, in one line."""
    done = release(folder, None)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("invarlock: ")]
    assert "target release needs " in line
    for what in (*UNMET.values(), "the image for everything that measures"):
        assert what in line
    assert "release --profile profiles/release" in line


@pytest.mark.usefixtures("in_repository")
@pytest.mark.parametrize("lacking", UNMET)
def test_each_setting_is_demanded(lacking: str, key: Path) -> None:
    """One that the command line takes back is named, and no other; the rest is enough."""
    enough = yaml.safe_load((ROOT / "profiles/release/settings.yaml").read_text())
    enough |= {"signing_key": str(key)}
    check_release(settings(**enough), container=True)
    less = {"require_signature": False, lacking: settings().values[lacking]}
    with pytest.raises(ConfigError) as caught:
        check_release(settings(**enough | less), container=True)
    assert [what for what in UNMET.values() if what in str(caught.value)] == [UNMET[lacking]]


def test_the_profile_demands_a_key(folder: Path) -> None:
    """Also for every other target."""
    done = release(folder, None, *PROFILE)
    assert done.returncode == 2
    assert "require_signature is on and no signing_key is given" in done.stderr


def test_a_strict_signed_pack_that_passes(folder: Path, key: Path, tmp_path: Path) -> None:
    """Reports of the image, the full claim, the verdict PASS."""
    put_pack(folder, published.strict_suite(tmp_path / "strict", packs.IDS), key)
    done = release(folder, key, *PROFILE)
    assert done.returncode == 0, done.stderr + done.stdout
    log = (folder / OUT / "logs/release.log").read_text()
    assert "PASS: " in log
    assert keys.fingerprint(keys.load_signing_key(key).public) in log


def test_a_verdict_that_fails(folder: Path, key: Path, tmp_path: Path) -> None:
    """The target fails with the verdict's line; the pack is still there."""
    pack = put_pack(folder, packs.write_suite(tmp_path / "bad", packs.IDS, packs.failed_clean), key)
    done = release(folder, key, *PROFILE)
    assert done.returncode == 1
    shown = done.stderr + done.stdout
    (line,) = [line for line in shown.splitlines() if line.strip().startswith("FAIL: ")]
    assert "evaluations as expected; failed: " in line
    assert "clean_all_pass" in line
    assert (pack / "manifest.json").is_file()


def test_reports_of_the_host(folder: Path, key: Path, tmp_path: Path) -> None:
    """A PASS whose reports were not made in the image is refused."""
    put_pack(folder, packs.write_suite(tmp_path / "host", packs.IDS), key)
    done = release(folder, key, *PROFILE)
    assert done.returncode == 1
    assert "container" in done.stderr + done.stdout
