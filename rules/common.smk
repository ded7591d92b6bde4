# Reads: config/*.yaml, scenarios/*.json, the environment
# Writes: nothing
# Checks the configuration before any job, expands the targets, and builds paths and resources.

import json
import os
import re
import shlex
import sys
from pathlib import Path

import yaml

sys.path.insert(0, workflow.basedir)  # the package of this checkout, installed or not

from invarlock.code_digest import code_digest
from invarlock.config import CUSTOM_SPEC, effective_settings
from invarlock.errors import InvarlockError


def here(name):
    """A file of this repository."""
    return Path(workflow.basedir) / name


def stop(error):
    """End with one line instead of a traceback."""
    print(f"invarlock: {error}", file=sys.stderr)
    sys.stderr.flush()
    os._exit(getattr(error, "exit_code", 2))


try:
    S = effective_settings(
        config,
        yaml.safe_load(here("config/config.yaml").read_text()),
        yaml.safe_load(here("config/suites.yaml").read_text()),
        os.environ,
    )
    if S.values["signing_key"]:
        from invarlock.evidence.keys import load_signing_key

        load_signing_key(Path(S.values["signing_key"]))
except InvarlockError as error:
    stop(error)

C = S.values
OUT = S.out
INVARLOCK = f"{sys.executable} -m invarlock"
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [workflow.basedir, os.environ.get("PYTHONPATH")])
)
ON_GPU = C["device"] in ("cuda", "mps")
IMAGE = C["container_image"]
LOGS = OUT / "logs"

EDITS = [s.id for s in S.scenarios if s.is_edit and s.edit_spec != CUSTOM_SPEC]
DAMAGE = [s.id for s in S.scenarios if s.is_error]
CUSTOM = [s.id for s in S.scenarios if s.edit_spec == CUSTOM_SPEC]


def any_of(names):
    """A wildcard constraint: one of these, or nothing at all."""
    return "|".join(map(re.escape, names)) or "(?!)"


wildcard_constraints:
    model=any_of([m.slug for m in S.models]),
    scenario=any_of(EDITS + DAMAGE + CUSTOM),
    run=r"[1-9][0-9]?",


def code(*verbs):
    """Digest of the modules behind these commands: a change of code reruns what it touches."""
    return code_digest(*(f"invarlock.cli.{verb}" for verb in verbs))


def on(flag, option):
    """`option` where the setting is on."""
    return option if C[flag] else ""


def evaluations(wildcards=None):
    """Folders of all evaluations: every scenario of every model, every run."""
    return [
        OUT / m.slug / "reports" / s.id / f"run_{n}"
        for m in S.models
        for s in S.scenarios
        for n in S.runs(s)
    ]


def rendered(wildcards=None):
    """The pages that people read, and the re-check of every report."""
    names = ("evaluation.html", "evaluation.md", "verify.json")
    return [folder / name for folder in evaluations() for name in names]


def weights_mb(wildcards):
    """Weights of a model in MB: recorded if the baseline is there, planned otherwise."""
    record = OUT / wildcards.model / "baseline.json"
    if record.is_file():
        return json.loads(record.read_text())["weight_bytes"] / 1e6
    return S.model(wildcards.model).weights_gb * 1e3


def edit_mb(wildcards, attempt):
    """Memory of a streamed edit: torch and a few copies of the largest tensor, not the model."""
    return int(900 + 0.15 * weights_mb(wildcards)) * attempt


def run_mb(wildcards, attempt):
    """Host memory of a run: torch, one batch, and on a CPU the model (twice the bytes in float32)."""
    model = weights_mb(wildcards) * (0.3 if ON_GPU else 2.2)
    return int(1500 + model) * attempt


def gpus(wildcards):
    """GPUs of a run: enough for the weights and a fifth more."""
    if not ON_GPU:
        return 0
    return max(1, -int(-1.2 * weights_mb(wildcards) // (1e3 * C["gpu_memory_gb"])))


def run_minutes(wildcards, attempt):
    """Wall time asked of a scheduler: loading, and the pass over all windows."""
    m = S.model(wildcards.model)
    tokens = m.seq_len * (m.preview + m.final)
    per_second = 4e6 / weights_mb(wildcards) if ON_GPU else 6e4 / weights_mb(wildcards)
    minutes = 10 + weights_mb(wildcards) / 3e3 + tokens / per_second / 60
    return min(int(minutes * attempt), int(C["timeout_minutes"]) + 10)


def measuring(wildcards):
    """How a checkpoint is measured: the same for baseline and subjects."""
    budget = C["token_budget"] or (16384 if ON_GPU else 1024)
    options = (
        f"--model-id '{S.model(wildcards.model).model_id}' --device {C['device']}"
        f" --dtype {C['dtype']} --token-budget {budget} --threads {C['threads']}"
        f" --determinism {C['determinism']} --seed {C['seed']}"
        f" --profile {C['profile']} --tier {C['tier']}"
    )
    return options + (" --allow-remote-code" if C["allow_remote_code"] else "")


def fingerprint_of(key):
    """The public fingerprint of a signing key, or nothing."""
    if not key:
        return ""
    from invarlock.evidence.keys import fingerprint, load_signing_key

    return fingerprint(load_signing_key(Path(key)).public)


SIGN_WITH = "--signing-key " + shlex.quote(C["signing_key"]) if C["signing_key"] else ""


def expected_signer():
    """The pin of the signer: given, or our own key's."""
    pin = C["expected_fingerprint"] or (
        "" if C["pack"] else fingerprint_of(C["signing_key"])
    )
    return f"--expected-fingerprint {pin}" if pin else ""
