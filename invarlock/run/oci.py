"""Podman and Docker in the place of Apptainer: what Snakemake asks of it, in their words.

Snakemake starts containers with ``apptainer`` and nothing else. Where another engine is to run
them, ``tools/engine/apptainer`` comes first on the PATH and hands its words over to :func:`main`:

    --version                                               a version that Snakemake takes
    pull --name FILE URL                                    the image is there; FILE says its name
    [--quiet] exec --home DIR [--bind A:B] FILE sh -c ...   a container, removed when it ends

A container sees the folder that Snakemake runs in, /tmp, and what is bound; it has no network and
none of the host's variables but those that carry the prefix of Apptainer.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from invarlock.errors import ConfigError, InputError, InvarlockError
from invarlock.files import write_text

ENGINES = ("podman", "docker")
VARIABLE = "INVARLOCK_CONTAINER_ENGINE"  # which of them, for the command on the PATH
LOCAL = "docker-daemon://"  # in front of a name in the engine's own storage, for Snakemake
REMOTE = "docker://"
NAME = "invarlock-runtime:local"  # what make image calls the image there
VERSION = "apptainer version 1.3.0"  # the least that knows the options below
SHARED = "/tmp"  # as Apptainer binds it
PREFIXES = ("APPTAINERENV_", "SINGULARITYENV_")


def digest_of(engine: str, name: str) -> str:
    """The digest of an image in the engine's own storage, which is that of its configuration.

    Raises:
        InputError: the engine has no such image, or cannot be asked.
    """
    import subprocess  # here and below: verifiers load this module and start no program

    words = [engine, "image", "inspect", "--format", "{{.Id}}", name]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    found = done.stdout.strip().removeprefix("sha256:")
    if done.returncode or not found:
        said = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        raise InputError(
            f"{engine} has no such container image", where=name, found=said,
            hint=f"run: make image {VARIABLE}={engine}",
        )  # fmt: skip
    return f"sha256:{found}"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(
            f"{message}; {os.environ.get(VARIABLE)} is run in the place of apptainer",
            expected="--home, --bind, --pwd, --env, --cleanenv, --nv",
            hint="leave other options out of apptainer-args",
        )


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="apptainer", add_help=False, allow_abbrev=False)
    for flag in ("--quiet", "--silent"):
        parser.add_argument(flag, action="store_true")
    actions = parser.add_subparsers(dest="action", required=True, parser_class=_Parser)
    pull = actions.add_parser("pull", add_help=False, allow_abbrev=False)
    pull.add_argument("--name", type=Path, required=True)
    pull.add_argument("url")
    run = actions.add_parser("exec", add_help=False, allow_abbrev=False)
    run.add_argument("--home", required=True)
    run.add_argument("--pwd")
    run.add_argument("--bind", action="append", default=[])
    run.add_argument("--env", action="append", default=[])
    run.add_argument("--cleanenv", action="store_true")
    run.add_argument("--nv", action="store_true")
    run.add_argument("image", type=Path)
    run.add_argument("command", nargs=argparse.REMAINDER)
    return parser


def pull(engine: str, url: str, file: Path) -> None:
    """See to an image, and write its name into the file that Snakemake names it by."""
    import subprocess

    if url.startswith(LOCAL):
        name = url.removeprefix(LOCAL)
        digest_of(engine, name)
    else:
        name = url.removeprefix(REMOTE)
        subprocess.run([engine, "pull", name], check=True, stdout=sys.stderr)
    write_text(file, name + "\n")


def run_words(
    engine: str, asked: argparse.Namespace, environment: Mapping[str, str], name: str
) -> list[str]:
    """The command that runs a container.

    Args:
        engine: podman or docker.
        asked: what stood behind ``exec``.
        environment: of this process.
        name: of the container.
    """
    bound = [*asked.bind, *filter(None, environment.get("APPTAINER_BIND", "").split(","))]
    folders = {asked.home: asked.home, SHARED: SHARED}
    for entry in bound:
        source, _, target = entry.partition(":")
        folders[target.partition(":")[0] or source] = f"{source}:{target or source}"
    volumes = [v if ":" in v else f"{v}:{v}" for v in folders.values()]
    given = [
        f"{key.removeprefix(prefix)}={value}"
        for prefix in PREFIXES
        for key, value in sorted(environment.items())
        if key.startswith(prefix)
    ]
    return [
        engine, "run", "--rm", f"--name={name}",
        "--pull=never", "--network=none", "--security-opt=label=disable",
        *_user(engine),
        *(_gpus(engine) if asked.nv else ()),
        f"--workdir={asked.pwd or asked.home}",
        *(f"--env={pair}" for pair in (f"HOME={asked.home}", *given, *asked.env)),
        *(f"--volume={volume}" for volume in volumes),
        _named(asked.image),
        *asked.command,
    ]  # fmt: skip


def _named(image: Path) -> str:
    """The name in the file that stands for an image of the engine.

    Raises:
        InputError: the file is an image itself, pulled for Apptainer.
    """
    try:
        with image.open("rb") as file:
            return file.read(1024).decode().strip()
    except UnicodeDecodeError as error:
        raise InputError(
            "the kept image is one of another engine", where=str(image), hint="remove that file"
        ) from error


def _user(engine: str) -> list[str]:
    """Files belong to the user who runs Snakemake, as with Apptainer."""
    if engine == "docker":
        return [f"--user={os.getuid()}:{os.getgid()}"]
    return ["--userns=keep-id"] if os.getuid() else []  # of podman, root is the user without it


def _gpus(engine: str) -> list[str]:
    return ["--gpus=all"] if engine == "docker" else ["--device=nvidia.com/gpu=all"]


def _run(engine: str, asked: argparse.Namespace) -> int:
    """Run a container; one whose job is ended is ended too, which engines leave to go on."""
    import subprocess

    name = f"invarlock-{uuid.uuid4().hex[:12]}"
    with subprocess.Popen(run_words(engine, asked, os.environ, name)) as running:

        def end(number: int, _: object) -> None:
            signal.signal(number, signal.SIG_IGN)  # it may come again while the engine is asked
            subprocess.run([engine, "kill", name], capture_output=True, check=False)

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, end)
        return running.wait()


def main(words: Sequence[str]) -> int:
    """Do what Snakemake asks of Apptainer; what cannot be done is one line."""
    import subprocess

    engine = os.environ.get(VARIABLE, "")
    try:
        if engine not in ENGINES:
            raise ConfigError(f"{VARIABLE} names no engine", expected=" or ".join(ENGINES))
        if [*words] == ["--version"]:
            print(VERSION)
            return 0
        asked = _parser().parse_args(words)
        if asked.action == "exec":
            return _run(engine, asked)
        pull(engine, asked.url, asked.name)
    except subprocess.CalledProcessError as error:
        return error.returncode
    except InvarlockError as error:
        print(f"invarlock: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
