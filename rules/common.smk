# Reads: config/*.yaml, scenarios/*.json, the environment
# Writes: nothing
# Checks the configuration before any job, expands the targets, and builds paths and resources.

import json
import os
import re
import sys
from pathlib import Path

import yaml

sys.path.insert(0, workflow.basedir)  # the package of this checkout, installed or not

from snakemake.settings.types import DeploymentMethod

from invarlock.code_digest import code_digest, package_digest
from invarlock.config import CUSTOM_SPEC, effective_settings
from invarlock.errors import InvarlockError
from invarlock.run.container import check_reference


def here(name):
    """A file of this repository."""
    return Path(workflow.basedir) / name


def stop(error):
    """End with one line instead of a traceback."""
    print(f"invarlock: {error}", file=sys.stderr)
    sys.stderr.flush()
    os._exit(getattr(error, "exit_code", 2))


CONTAINER = DeploymentMethod.APPTAINER in workflow.deployment_settings.deployment_method

try:
    S = effective_settings(
        config,
        yaml.safe_load(here("config/config.yaml").read_text()),
        yaml.safe_load(here("config/suites.yaml").read_text()),
        os.environ,
        workflow.config_settings.overwrite_config,
    )
    if S.values["signing_key"]:
        from invarlock.evidence.keys import load_signing_key

        load_signing_key(Path(S.values["signing_key"]))
    if CONTAINER:
        check_reference(S.values["container_image"], S.values["container_digest"])
except (InvarlockError, OSError) as error:
    stop(error)

# A plain `snakemake` uses all cores, as the profiles do. With --jobs (a cluster) or --cores nothing
# is changed; a default profile would override every other one.
if (
    workflow.resource_settings.cores is None
    and workflow.resource_settings.nodes is None
):
    workflow.resource_settings.cores = os.cpu_count() or 1
    workflow.global_resources["_cores"] = workflow.resource_settings.cores

C = S.values
OUT = S.out
# Jobs run the interpreter and the package of this snakemake (inside a container, the image's).
for variable, first in (
    ("PATH", Path(sys.executable).parent),
    ("PYTHONPATH", workflow.basedir),
):
    os.environ[variable] = os.pathsep.join(
        filter(None, [str(first), os.environ.get(variable)])
    )
# The key travels in the environment: parameters and shell commands are recorded and logged.
os.environ.update(INVARLOCK_SIGNING_KEY=C["signing_key"])
ON_GPU = C["device"] in ("cuda", "mps")
LOGS = OUT / "logs"

# With the container profile rules run in the image, but for those that say on_host. A container
# sees this folder and /tmp; other folders that the settings name are bound.
IMAGE = C["container_image"]
IMAGE_RECORD = [OUT / "state/image.json"] if CONTAINER else []
if CONTAINER:
    OUT.mkdir(parents=True, exist_ok=True)
    named = [C["baseline"], C["subject"], C["catalogue"], OUT]
    if S.text.startswith("local:"):
        named.append(S.text.removeprefix("local:").partition("?")[0])
    bound = sorted({str(Path(name).resolve()) for name in named if name})
    variable = "APPTAINER_BIND"
    os.environ[variable] = ",".join(filter(None, [os.environ.get(variable), *bound]))


def on_host(wildcards):
    """No image: for rules that need the network, the key, git, or the image's own bytes."""
    return None


FETCHING_IMAGE = on_host if C["net"] else IMAGE
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


MEASURING_CODE = code(
    "baseline",
    "windows",
    "run",
    "calibrate",
    "edit",
    "inject",
    "evaluate",
    "evaluate_worker",
)


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


def arithmetic(wildcards):
    """How a checkpoint is measured: the same for baseline, null edits and subjects."""
    budget = C["token_budget"] or (16384 if ON_GPU else 1024)
    options = (
        f"--model-id '{S.model(wildcards.model).model_id}' --device {C['device']}"
        f" --dtype {C['dtype']} --token-budget {budget} --threads {C['threads']}"
        f" --determinism {C['determinism']} --seed {C['seed']}"
    )
    return options + (" --allow-remote-code" if C["allow_remote_code"] else "")


def measuring(wildcards):
    """The same, with what a run is for."""
    return f"{arithmetic(wildcards)} --profile {C['profile']} --tier {C['tier']}"


def fingerprint_of(key):
    """The public fingerprint of a signing key, or nothing."""
    if not key:
        return ""
    from invarlock.evidence.keys import fingerprint, load_signing_key

    return fingerprint(load_signing_key(Path(key)).public)


def expected_signer():
    """The pin of the signer: given, or our own key's."""
    pin = C["expected_fingerprint"] or (
        "" if C["pack"] else fingerprint_of(C["signing_key"])
    )
    return f"--expected-fingerprint {pin}" if pin else ""


def passing(path):
    """A checkpoint that is not kept after its last use, unless the user wants it."""
    return directory(path) if C["keep_subjects"] else temp(directory(path))


def subject(wildcards):
    """The checkpoint under test: made by a rule, or the user's own folder."""
    if wildcards.scenario in CUSTOM:
        return C["subject"]
    return OUT / wildcards.model / "models" / wildcards.scenario


def metadata(wildcards):
    """What was done to it."""
    name = (
        "error_metadata.json" if wildcards.scenario in DAMAGE else "edit_metadata.json"
    )
    return OUT / wildcards.model / "edits" / wildcards.scenario / name
