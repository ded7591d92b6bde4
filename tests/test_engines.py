"""Podman and Docker in the place of Apptainer, by an engine that records what it is asked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from repository_copy import ROOT, quiet_environment, snakemake

from invarlock.errors import ConfigError, InputError
from invarlock.files import write_json
from invarlock.run import oci
from invarlock.run.container import SIF, find_runtime, new_label

ID = "5" * 64
DIGEST = f"sha256:{ID}"
STAND_IN = ROOT / "tools/engine/apptainer"
# Says what it was asked, knows one image, and runs commands here instead of in a container; what
# they read of the image is in the folder that IMAGE names.
ENGINE = """#!/bin/sh
{ for word in "$@"; do printf '%s\\n' "$word"; done; echo; } >> "$RECORD"
case "$1 $2" in
"image inspect")
  [ "$5" = invarlock-runtime:local ] || { echo "Error: no such image $5" >&2; exit 125; }
  echo ID ;;
run\\ *)
  echo $$ > "$RECORD.pid"
  for last; do :; done
  exec bash -c "$(printf %s "$last" | sed "s|/usr/local/share|$IMAGE/usr/local/share|g")" ;;
kill\\ *) kill "$(cat "$RECORD.pid")" ;;
esac
"""


@pytest.fixture(params=oci.ENGINES)
def engine(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The engine's name; a recording one of that name is the only engine on the PATH."""
    name: str = request.param
    folder = tmp_path / "bin"
    folder.mkdir()
    prefix = "sha256:" if name == "docker" else ""
    (folder / name).write_text(ENGINE.replace("ID", prefix + ID))
    (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{Path(sys.executable).parent}:/usr/bin:/bin")
    monkeypatch.setenv("RECORD", str(tmp_path / "record"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv(oci.VARIABLE, name)
    return name


def recorded(folder: Path) -> list[list[str]]:
    """The calls of the engine, each as its words."""
    return [call.split("\n") for call in (folder / "record").read_text().strip().split("\n\n")]


def stand_in(*words: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """The command that Snakemake takes for Apptainer."""
    return subprocess.run(
        [STAND_IN, *map(str, words)],
        env=os.environ | variables, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_container_is_asked_for_in_the_engines_words(engine: str, tmp_path: Path) -> None:
    """What Snakemake says of Apptainer: folder, bound folders, variables, image, command."""
    image = tmp_path / "image.simg"
    assert (
        stand_in("pull", "--name", image, "docker-daemon://invarlock-runtime:local").returncode == 0
    )
    words = ("--quiet", "--silent", "exec", "--home", tmp_path, "--cleanenv", "--nv")
    bound = ("--bind", "/data:/in:ro", "--bind", "/more")
    command = ("bash", "-c", "echo 'a b' -c --home; exit 3")
    variables = {"APPTAINERENV_INVARLOCK_TELEMETRY": "1", "APPTAINER_BIND": "/bound,/x:/y"}
    done = stand_in(*words, *bound, image, *command, **variables)
    assert (done.returncode, done.stdout) == (3, "a b -c --home\n")
    assert recorded(tmp_path)[0][:2] == ["image", "inspect"]
    asked = recorded(tmp_path)[-1]
    assert asked[0] == "run"
    at = asked.index("invarlock-runtime:local")
    assert asked[at + 1 :] == [*command]
    options = set(asked[1:at])
    assert options > {
        "--rm", "--network=none", "--pull=never", f"--workdir={tmp_path}",
        f"--env=HOME={tmp_path}", "--env=INVARLOCK_TELEMETRY=1",
    }  # fmt: skip
    volumes = {option.removeprefix("--volume=") for option in options if "--volume" in option}
    assert volumes == {
        f"{tmp_path}:{tmp_path}", "/tmp:/tmp", "/data:/in:ro", "/more:/more", "/bound:/bound",
        "/x:/y",
    }  # fmt: skip
    gpus = {"podman": "--device=nvidia.com/gpu=all", "docker": "--gpus=all"}
    assert gpus[engine] in options


def test_files_belong_to_the_user(engine: str, tmp_path: Path, monkeypatch) -> None:
    """Docker's daemon is root, and Podman maps users."""
    image = tmp_path / "image.simg"
    image.write_text("invarlock-runtime:local\n")
    for user, mapped in ((0, []), (1000, ["--userns=keep-id"])):
        monkeypatch.setattr(os, "getuid", lambda user=user: user)
        monkeypatch.setattr(os, "getgid", lambda user=user: user)
        asked = oci._parser().parse_args(["exec", "--home", "/w", str(image), "sh", "-c", "x"])
        words = oci.run_words(engine, asked, {}, "name")
        wanted = [f"--user={user}:{user}"] if engine == "docker" else mapped
        assert [w for w in words if w.startswith("--user")] == wanted


@pytest.mark.usefixtures("engine")
def test_what_the_engine_cannot_do_is_one_line(tmp_path: Path) -> None:
    """Another option of Apptainer, an image that is not there."""
    for words, line in (
        (
            ("exec", "--home", "/w", "--fakeroot", "i", "sh"),
            "in the place of apptainer; expected --",
        ),
        (("pull", "--name", tmp_path / "f", "docker-daemon://other:1"), "no such image other:1"),
    ):
        done = stand_in(*words)
        assert done.returncode in (2, 3)
        assert len(done.stderr.splitlines()) == 1
        assert line in done.stderr
    assert stand_in("--version").stdout.startswith("apptainer version 1.")
    assert stand_in("--version", **{oci.VARIABLE: "lxc"}).returncode == 2


def test_a_job_that_is_ended_ends_its_container(engine: str, tmp_path: Path) -> None:
    """Engines go on with a container when their client ends."""
    image = tmp_path / "image.simg"
    image.write_text("invarlock-runtime:local\n")
    words = [STAND_IN, "exec", "--home", str(tmp_path), str(image), "sh", "-c", "exec sleep 600"]
    with subprocess.Popen(words) as running:
        while not (tmp_path / "record").exists():
            time.sleep(0.05)
        time.sleep(0.3)
        running.send_signal(signal.SIGTERM)
        running.wait(timeout=20)
    name = next(word for word in recorded(tmp_path)[0] if word.startswith("--name="))
    assert recorded(tmp_path)[-1] == ["kill", name.removeprefix("--name=")]


def test_which_engine_and_which_image(engine: str, tmp_path: Path, monkeypatch) -> None:
    """The engine that is there, with the image of make image by its local name, or a pinned one."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))  # the machine may have the other one
    for wanted in ("auto", engine):
        found = find_runtime(wanted, SIF)
        assert (found.engine, found.image, found.digest) == (
            engine, "docker-daemon://invarlock-runtime:local", DIGEST,
        )  # fmt: skip
    pinned = f"docker://ghcr.io/acme/run:1@{DIGEST}"
    assert find_runtime(engine, pinned, DIGEST).image == pinned
    other = next(name for name in oci.ENGINES if name != engine)
    for wanted in (other, "apptainer"):
        with pytest.raises(ConfigError, match="no engine on the PATH"):
            find_runtime(wanted, SIF)
    with pytest.raises(ConfigError, match="container_digest"):
        find_runtime(engine, SIF, "sha256:" + "6" * 64)
    with pytest.raises(InputError, match=f"run: make image {oci.VARIABLE}={engine}"):
        find_runtime(engine, "other:1")
    with pytest.raises(ConfigError, match="is a file, which"):
        find_runtime(engine, str(tmp_path / "own.sif"))


def test_apptainer_comes_first(engine: str, tmp_path: Path, monkeypatch) -> None:
    """Where several engines are there and none is named."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin/apptainer").symlink_to(tmp_path / "bin" / engine)
    (tmp_path / SIF).parent.mkdir()
    (tmp_path / SIF).write_bytes(b"image")
    assert find_runtime("auto", str(tmp_path / SIF)).engine == "apptainer"
    assert find_runtime(engine, SIF).engine == engine


def test_the_workflow_runs_in_the_engine(engine: str, tmp_path: Path, repository: Path) -> None:
    """A job of the container profile asks the engine, and the record has the engine's digest."""
    label = tmp_path / "usr/local/share/invarlock/image.json"
    label.parent.mkdir(parents=True)
    write_json(label, new_label((ROOT / "envs/requirements.lock",)))
    words = ("out/state/image.json", "--profile", "profiles/container")
    config = ("suite=smoke", "out=out", f"container_engine={engine}")
    kept = {name: os.environ[name] for name in ("PATH", "RECORD")}
    assert oci.VARIABLE not in quiet_environment()
    done = snakemake(repository, *words, config=config, IMAGE=str(tmp_path), **kept)
    assert done.returncode == 0, done.stderr
    record = json.loads((repository / "out/state/image.json").read_text())
    assert record["reference"] == f"invarlock-runtime:local@{DIGEST}"
    assert record["label"] == json.loads(label.read_text())
    run = next(call for call in recorded(tmp_path) if call[0] == "run")
    assert {f"--workdir={repository}", "invarlock-runtime:local"} < set(run)
