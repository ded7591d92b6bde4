# Reads: config/*.yaml, scenarios/*.json, the environment
# Writes: .snakemake/invarlock.lock
# Checks the configuration before any job, expands the targets, and builds paths and resources.

import contextlib
import fcntl
import json
import os
import re
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import yaml

sys.path.insert(0, workflow.basedir)  # the package of this checkout, installed or not

from snakemake.settings.types import DeploymentMethod

from invarlock.code_digest import code_digest, package_digest
from invarlock.config import check_release, effective_settings
from invarlock.edits.candidates import CANDIDATES
from invarlock.edits.specs import TRAINED
from invarlock.errors import ConfigError, InvarlockError
from invarlock.files import sha256_file, unreadable, write_text
from invarlock.run.container import check_engine, check_reference
from invarlock.scenarios import CUSTOM_SPEC
from invarlock.sources.spec import parse_model_source, parse_text_source
from invarlock.written import as_written


def here(name):
    """A file of this repository."""
    return Path(workflow.basedir) / name


def stop(*errors):
    """End with a line for each error instead of a traceback; the first says how."""
    for error in errors:
        print(f"invarlock: {error}", file=sys.stderr)
    sys.stderr.flush()
    os._exit(getattr(errors[0], "exit_code", 2))


onstart:
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


CONTAINER = DeploymentMethod.APPTAINER in workflow.deployment_settings.deployment_method

try:
    S = effective_settings(
        config,
        yaml.safe_load(here("config/config.yaml").read_text()),
        yaml.safe_load(here("config/suites.yaml").read_text()),
        os.environ,
        workflow.config_settings.overwrite_config,
        as_written(
            [here("config/config.yaml"), *workflow.config_settings.configfiles],
            workflow.config_settings.config_args or [],
        ),
    )
    if S.values["signing_key"]:
        from invarlock.evidence.keys import load_signing_key

        load_signing_key(Path(S.values["signing_key"]))
    if S.values["accept"]:
        from invarlock.run.accept import check_accept

        check_accept(
            S.values["accept"],
            Path(S.values["baseline"]),
            Path(S.values["subject"]),
            "config/config.yaml",
        )
    for m in S.models:
        parse_model_source(m.source)
    parse_text_source(S.text)
    if CONTAINER:
        check_engine()  # snakemake wants one for a dry run too
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
# So does what changes no result: a parameter would measure again. Containers get it by the second name.
for variable in ("INVARLOCK_TELEMETRY", "APPTAINERENV_INVARLOCK_TELEMETRY"):
    os.environ[variable] = str(int(C["telemetry"]))
for variable in ("INVARLOCK_CALIBRATIONS", "APPTAINERENV_INVARLOCK_CALIBRATIONS"):
    os.environ[variable] = C["calibrations"] and str(Path(C["calibrations"]).resolve())
visible = os.environ.get("CUDA_VISIBLE_DEVICES")
if visible is not None:  # also where it is empty: no GPU
    os.environ.update(APPTAINERENV_CUDA_VISIBLE_DEVICES=visible)
ON_GPU = C["device"] in ("cuda", "mps")
LOGS = OUT / "logs"

# With the container profile rules run in the image, but for those that say on_host. A container
# sees this folder and /tmp; other folders that the settings name are bound.
SOURCES = [parse_model_source(m.source) for m in S.models]
LOCAL = [source.name for source in SOURCES if source.kind == "local"]
if S.text.startswith("local:"):
    LOCAL.append(parse_text_source(S.text).name)
IMAGE = C["container_image"]
IMAGE_RECORD = [OUT / "state/image.json"] if CONTAINER else []
if CONTAINER:
    OUT.mkdir(parents=True, exist_ok=True)
    if C["calibrations"]:
        Path(C["calibrations"]).mkdir(parents=True, exist_ok=True)
    named = [
        C["baseline"],
        C["subject"],
        C["catalogue"],
        C["calibrations"],
        OUT,
        *LOCAL,
    ]
    bound = sorted({str(Path(name).resolve()) for name in named if name})
    variable = "APPTAINER_BIND"
    os.environ[variable] = ",".join(filter(None, [os.environ.get(variable), *bound]))


def on_host(wildcards):
    """No image: for rules that need the network, the key, git, or the image's own bytes."""
    return None


# what may have to reach the hub runs here, with the network on or off: one place, no new run
HUB = any(name.startswith("hub:") for name in (S.text, *(m.source for m in S.models)))
FETCHING_IMAGE = on_host if HUB else IMAGE
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


def each(option, values):
    """`option` with each of the values, as words of a shell command."""
    return [f"{option} {shlex.quote(str(value))}" for value in values]


def given(option, value):
    """`option` with its value where there is one: a shell loses an empty word, and the option would
    take the next one."""
    return each(option, [value] if value else [])


def state_of(*paths):
    """Name, size and time of these files and of those in these folders. To Snakemake the time of a
    folder is its own, which a file that is written over does not change. In whole seconds, which
    is what archives keep: a run that was moved by one is not made again."""
    found = []
    for path in map(Path, filter(None, paths)):
        try:
            for file in sorted(path.iterdir()) if path.is_dir() else [path]:
                if file.is_file() and not file.name.startswith("."):
                    stat = file.stat()
                    found.append(f"{file.name} {stat.st_size} {int(stat.st_mtime)}")
        except OSError as error:
            stop(unreadable(path, error))
    return found


def evaluations(wildcards=None):
    """Folders of all evaluations: every scenario of every model, every run."""
    return [
        OUT / m.slug / "reports" / s.id / f"run_{n}"
        for m in S.models
        for s in S.scenarios
        for n in S.runs(s)
    ]


def braces(words):
    """Alternatives of a shell word; a single one needs no braces, which bash would leave."""
    return words[0] if len(words) == 1 else "{" + ",".join(words) + "}"


def evaluation_words(wildcards=None, name=""):
    """The same folders, or a file in each, for bash to expand: thousands of paths do not fit into
    the one argument that a shell gets its command line as."""
    by_runs = {}
    for s in S.scenarios:
        by_runs.setdefault(len(S.runs(s)), []).append(s.id)
    models = braces([m.slug for m in S.models])
    out, end = shlex.quote(str(OUT)), [name] if name else []
    return [
        str(Path(out, models, "reports", braces(ids), f"run_{{1..{runs}}}", *end))
        for runs, ids in by_runs.items()
    ]


def geometry(wildcards, preview, final=None):
    """Length of the windows of a model, and how many of each arm."""
    arms = f"--preview {preview} --final {preview if final is None else final}"
    return f"--seq-len {S.model(wildcards.model).seq_len} {arms}"


def judged_geometry(wildcards):
    """That of the windows that scenarios are judged on."""
    model = S.model(wildcards.model)
    return geometry(wildcards, model.preview, model.final)


def window_files(wildcards=None):
    """Everything that is cut from the text."""
    names = [
        "windows.json",
        *[f"presets/windows_seed_{seed}.json" for seed in S.calibration_seeds()],
        *(["training_windows.json"] if TRAINING else []),
    ]
    return [OUT / m.slug / name for m in S.models for name in names]


def rendered(wildcards=None):
    """The pages that people read, and the re-check of every report."""
    names = ("evaluation.html", "evaluation.md", "verify.json")
    return [folder / name for folder in evaluations() for name in names]


def arithmetic(wildcards):
    """How a checkpoint is measured: the same for baseline, null edits and subjects."""
    model_id = shlex.quote(S.model(wildcards.model).model_id)
    return f"--model-id {model_id} {loading(wildcards)}"


def loading(wildcards):
    """How a model is loaded and run."""
    budget = C["token_budget"] or (16384 if ON_GPU else 1024)
    options = (
        f"--device {C['device']} --dtype {C['dtype']} --token-budget {budget} --threads {C['threads']}"
        f" --determinism {C['determinism']} --seed {C['seed']}"
    )
    return options + (" --allow-remote-code" if C["allow_remote_code"] else "")


def measuring(wildcards):
    """The same, with what a run is for."""
    return f"{arithmetic(wildcards)} --profile {C['profile']} --tier {C['tier']}"


def judging(wildcards):
    """By what a subject is judged, beside preset and tier."""
    options = (
        "--kl-mean-max {kl_mean_max} --flip-fraction-max {flip_fraction_max}"
        " --replicates {replicates} --alpha {alpha}"
    ).format(**C["distribution"], **C["bootstrap"])
    return options + (f" --tail-mode {C['tail_mode']}" if C["tail_mode"] else "")


# As a parameter they would run the rule again, and Snakemake then looks at nothing behind an ancient
# input: a changed setting would hide that evaluations are missing.
SETTINGS = f"{json.dumps(S.recorded(), sort_keys=True, indent=2)}\n"
os.environ.update(INVARLOCK_SETTINGS=SETTINGS)


def refreshed_settings(wildcards):
    """Nothing; a record of other settings is brought up to date before the run is planned."""
    record = OUT / "state/config.json"
    if ROOT_PROCESS and not workflow.dryrun and record.is_file():
        if record.read_text() != SETTINGS:
            write_text(record, SETTINGS)
    return []


def edit_spec(wildcards):
    """The spec of an edit; without the parameters that it takes no job is started."""
    try:
        return S.edit_spec(wildcards.model, wildcards.scenario)
    except InvarlockError as error:
        stop(error)


def edited_baseline(wildcards):
    """The checkpoint to edit; asked for before the first job, unlike parameters of a rule."""
    edit_spec(wildcards)
    return OUT / wildcards.model / "models/baseline"


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
    return each("--expected-fingerprint", [pin] if pin else [])


def reviewed(wildcards):
    """The pack and its verification; settings that no review accepts stop before any job."""
    try:
        check_release(S, CONTAINER)
    except InvarlockError as error:
        stop(error)
    return [OUT / "evidence_pack/manifest.json", OUT / "verify_pack.json"]


def asked(rule, path):
    """Whether the command names a target, by its rule or by its file; known in input functions."""
    named = workflow.dag_settings.targets
    return rule in named or os.path.abspath(path) in map(os.path.abspath, named)


def analyses(wildcards):
    """What a pack holds beside the verdict: the repeats that are set; the sweep where this command
    asks for it, and once it is there, as it is kept up to date."""
    swept = SWEEP.exists() or asked("guard_value_sweep", SWEEP)
    return [*REPEATS, *([SWEEP] if swept else [])]


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


def edit_label(wildcards):
    """What is said to have been done to the subject; of the user's maybe nothing."""
    scenario = S.scenario(wildcards.scenario)
    own = wildcards.scenario in CUSTOM
    label = C["edit_label"] if own else scenario.error_type or scenario.edit_type
    return given("--edit-label", label)


def trained_on(wildcards):
    """The windows that edits are trained on, where some are."""
    return [OUT / wildcards.model / "training_windows.json"] if TRAINING else []


def kept_apart(wildcards):
    """Windows that a set may not hold."""
    others = [OUT / wildcards.model / "windows.json", *trained_on(wildcards)]
    if wildcards.set == "confirmation":
        others.append(OUT / wildcards.model / "tuning/windows_selection.json")
    return others


def repeated(wildcards):
    """The outcomes of the repeats; without repeats there is nothing to compare."""
    if not REPEAT_FOLDERS:
        hint = "snakemake determinism --config repeats=3"
        stop(
            ConfigError(
                "repeats is 0", where="determinism", expected="2 and more", hint=hint
            )
        )
    return [folder / "outcome.json" for folder in REPEAT_FOLDERS]


def searches(wildcards):
    """A table for each model and edit type whose tuned parameters the selected scenarios take."""
    if not TUNED:
        stop(ConfigError("no selected scenario takes tuned parameters", where="tune"))
    return [OUT / m.slug / f"tuning/{edit}.json" for m in S.models for edit in TUNED]
