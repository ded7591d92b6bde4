# Reads: config/*.yaml, scenarios/*.json, the environment
# Writes: .snakemake/invarlock.lock
# Checks the configuration before any job. What rules make of it is in invarlock/workflow.py.

import contextlib
import fcntl
import functools
import gc
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import yaml

sys.path.insert(0, workflow.basedir)  # the package of this checkout, installed or not

from snakemake.settings.types import DeploymentMethod
from snakemake_interface_executor_plugins.settings import ExecMode

from invarlock.cli.baseline import BaselineOptions
from invarlock.cli.calibrate import CalibrateOptions
from invarlock.cli.edit import EditOptions
from invarlock.cli.job import EvaluateOptions
from invarlock.cli.pin import PinOptions
from invarlock.cli.preset import PresetOptions
from invarlock.cli.run import RunOptions
from invarlock.cli.tune import TuneOptions
from invarlock.code_digest import package_digest
from invarlock.config import AUTO, check_release, effective_settings
from invarlock.edits.specs import CANDIDATES, FROM_TEXT, IN_MEMORY
from invarlock.errors import ConfigError, InputError, InvarlockError
from invarlock.files import sha256_file, write_text
from invarlock.run.forkserver import VARIABLE as ONE_LOAD
from invarlock.run.oci import ENGINES as OCI_ENGINES, VARIABLE as OCI_VARIABLE
from invarlock.workflow import (
    DEPLOYABLE_RECORDS,
    MEASURING,
    PAGES,
    Layout,
    any_of,
    check_settings,
    code,
    each,
    environment,
    fingerprint_of,
    for_jobs,
    recorded,
    state_of,
)
from invarlock.written import as_written, read_yaml, take_tags

take_tags()
ROOT_PROCESS = workflow.exec_mode == ExecMode.DEFAULT  # not that of a job on a cluster
if ROOT_PROCESS:
    # Planning makes millions of objects and few cycles; the collector would look at all of them
    # again and again, a third of the time. It is back once the plan stands (onstart).
    gc.disable()


configfile: "config/config.yaml"


def here(name):
    """A file of this repository."""
    return Path(workflow.basedir) / name


def stop(*errors):
    """End with a line for each error instead of a traceback; the first says how."""
    for error in errors:
        print(f"invarlock: {error}", file=sys.stderr)
    sys.stderr.flush()
    os._exit(getattr(errors[0], "exit_code", 2))


def stopping(function):
    """The function, whose errors end the run with their line."""

    @functools.wraps(function)
    def guarded(*arguments, **named):
        try:
            return function(*arguments, **named)
        except InvarlockError as error:
            stop(error)

    return guarded


state_of = stopping(state_of)


def once(function):
    """The function of a model and a scenario, whose answer is the same in all runs: asked once,
    and kept once instead of in each of thousands of jobs."""
    found = {}

    def shared(wildcards):
        key = wildcards.model, wildcards.scenario
        if key not in found:
            found[key] = function(wildcards)
        return found[key]

    return shared


onstart:
    gc.freeze()  # the plan lives as long as this process
    gc.enable()
    # Runs share this kernel lock, which ends with the process; tools/workflow.py takes it alone to
    # clear what a dead run left. Some file systems have none.
    starting = ConfigError("another run is starting here; repeat the command")
    with contextlib.suppress(OSError):
        held = os.open(".snakemake/invarlock.lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(held, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            workflow.persistence.unlock()  # snakemake's own, taken just before
            stop(starting)
    # what an evaluation that now runs again has said before is no answer any more, also if it fails
    planned = {job.rule.name for job in workflow.dag.needrun_jobs()}
    if planned & {"evaluate", "verdict"}:
        say_where(set_aside(OUT, ANSWERS))
    show_progress()


onsuccess:
    end_progress()
    shutil.rmtree(FINISHED, ignore_errors=True)


onerror:
    end_progress()


CONTAINER = DeploymentMethod.APPTAINER in workflow.deployment_settings.deployment_method

try:
    S = effective_settings(
        config,
        read_yaml(here("config/config.yaml")),
        yaml.safe_load(here("config/suites.yaml").read_text()),
        os.environ,
        workflow.config_settings.overwrite_config,
        as_written(
            [here("config/config.yaml"), *workflow.config_settings.configfiles],
            workflow.config_settings.config_args or [],
        ),
    )
    RUNTIME = check_settings(S, CONTAINER)
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
L = Layout(S)
# The folder of a start (out: auto) is that of its jobs too, which read the settings again.
if C["out"] == AUTO:
    said = workflow.config_settings.config_args or []
    others = [word for word in said if not word.startswith("out=")]
    workflow.config_settings.config_args = [*others, f"out={OUT}"]
    if ROOT_PROCESS:
        print(f"invarlock: to go on with this run: out={OUT}", file=sys.stderr)
LOGS = OUT / "logs"
ON_GPU = L.on_gpu
FINISHED = OUT / "state/finished"  # evaluations, while others of their job are not
MEASURING_CODE = code(*MEASURING)
OCI = RUNTIME is not None and RUNTIME.engine in OCI_ENGINES
# Jobs run the interpreter and the package of this snakemake (inside a container, the image's).
for variable, first in (
    ("PATH", Path(sys.executable).parent),
    ("PYTHONPATH", workflow.basedir),
    # snakemake starts containers with apptainer alone
    *([("PATH", here("tools/engine"))] if OCI else []),
):
    os.environ[variable] = os.pathsep.join(
        filter(None, [str(first), os.environ.get(variable)])
    )
os.environ.update(environment(S, os.environ))
# Jobs of this process on this machine take their libraries from one fork server, which ends with
# it; those of a container from nowhere: its processes end with it.
os.environ.pop(ONE_LOAD, None)
if C["one_load"] and not CONTAINER:
    os.environ[ONE_LOAD] = str(os.getpid())

# With the container profile rules run in the image, but for those that say on_host. A container
# sees this folder and /tmp; other folders that the settings name are bound.
IMAGE = RUNTIME.image if RUNTIME else C["container_image"]
IMAGE_RECORD = [OUT / "state/image.json"] if CONTAINER else []
if CONTAINER:
    OUT.mkdir(parents=True, exist_ok=True)
    if C["calibrations"]:
        Path(C["calibrations"]).mkdir(parents=True, exist_ok=True)
    os.environ[OCI_VARIABLE] = RUNTIME.engine
    variable = "APPTAINER_BIND"
    os.environ[variable] = ",".join(
        filter(None, [os.environ.get(variable), *L.bound()])
    )


def on_host(wildcards):
    """No image: for rules that need the network, the key, git, or the image's own bytes."""
    return None


# what may have to reach the hub runs here, with the network on or off: one place, no new run
FETCHING_IMAGE = on_host if L.uses_hub else IMAGE


wildcard_constraints:
    model=any_of(L.slugs),
    scenario=any_of(L.edits + L.damage + L.custom + L.packed_by_backend),
    run=r"[1-9][0-9]?",


def of_evaluations(*names):
    """These files of every evaluation; a function, so that a rule that is not asked for needs none
    of the thousands."""
    return lambda wildcards: [f"{f}/{name}" for f in L.evaluations for name in names]


def of_runs(runs, *names):
    """These files of every run of a scenario."""
    folder = OUT / "{model}/reports/{scenario}"
    return [folder / f"run_{n}" / name for n in range(1, runs + 1) for name in names]


def first_pages(wildcards):
    """A page of each scenario, with which all others of its runs are made."""
    return [f"{f}/{PAGES[0]}" for f in L.evaluations if f.name == "run_1"]


# Of the user's own subject, whose files no rule makes; a function costs each job of a plan its part.
own_state = (
    (lambda wc: state_of(C["subject"] if wc.scenario in L.custom else ""))
    if L.custom
    else []
)


def refreshed_settings(wildcards):
    """Nothing; a record of other settings is brought up to date before the run is planned."""
    record = OUT / "state/config.json"
    if ROOT_PROCESS and not workflow.dryrun and record.is_file():
        if record.read_text() != recorded(S):
            write_text(record, recorded(S))
    return []


@stopping
def reviewed(wildcards):
    """The pack and its verification; settings that no review accepts stop before any job."""
    check_release(S, CONTAINER)
    return [OUT / "evidence_pack/manifest.json", OUT / "verify_pack.json"]


def asked(rule, path):
    """Whether the command names a target, by its rule or by its file; known in input functions."""
    named = workflow.dag_settings.targets
    return rule in named or os.path.abspath(path) in map(os.path.abspath, named)


def analyses(wildcards):
    """What a pack holds beside the verdict: the repeats that are set; the sweep where this command
    asks for it, and once it is there, as it is kept up to date."""
    packed = OUT / "evidence_pack/reports" / SWEEP.name
    swept = SWEEP.exists() or asked("guard_value_sweep", SWEEP) or asked("", packed)
    return [*REPEATS, *([SWEEP] if swept else [])]


@stopping
def made_before(wildcards):
    """Nothing, if there is a pack to verify: asking for its verification alone makes none. A
    command that makes the run's own pack too verifies it when it is made."""
    makes = set(workflow.dag_settings.targets) - {"verify_pack"}
    if makes and not C["pack"]:
        return [OUT / "evidence_pack/manifest.json"]
    if not (L.named_pack / "manifest.json").exists():
        raise InputError(
            "verify_pack: there is no pack",
            where=str(L.named_pack),
            hint="name one: snakemake verify_pack --config pack=DIR; or make this one: snakemake",
        )
    return []


def passing(path):
    """A checkpoint that is not kept after its last use, unless the user wants it."""
    return directory(path) if C["keep_subjects"] else temp(directory(path))


@stopping
def repeated(wildcards):
    """The outcomes of the repeats; without repeats there is nothing to compare."""
    if not REPEAT_FOLDERS:
        hint = "snakemake determinism --config repeats=3"
        raise ConfigError(
            "repeats is 0", where="determinism", expected="2 and more", hint=hint
        )
    return [folder / "outcome.json" for folder in REPEAT_FOLDERS]
