# Reads: <model>/baseline.json, where it is there
# Writes: state/disk.json, where disk is short
# Memory, disk, GPUs and time that the rules ask for, as functions of the size of the weights.

import functools

from invarlock.files import remove_leftovers
from invarlock.preflight import doubts, refusals, size_of_pack, will_fail
from invarlock.run import packed_weights
from invarlock.sources.disk import (
    half_written,
    known_pins,
    model_bytes,
    plan_disk,
    write_plan,
)
from invarlock.sources.preflight import check_start
from invarlock.superseded import ANSWERS, record_asked, set_aside, supersede
from invarlock.variables import warnings

if ROOT_PROCESS:
    for line in warnings(os.environ):
        print(f"invarlock: warning: {line}", file=sys.stderr)

try:
    PINS = known_pins(OUT)
    PLAN = plan_disk(S)
    SIZES = {m.slug: model_bytes(S, m, PINS) / 1e6 for m in S.models}
except InvarlockError as error:
    stop(error)

# Checkpoints that are written at the same time fit together. Subjects live longer than the jobs
# that make them: where not all fit, they are made one after another and wait for their place.
# A run that does not fit at all is refused; a dry run shows its sizes.
FITS = PLAN.refusal(OUT) is None
if ROOT_PROCESS and FITS and workflow.resource_settings.nodes is None:
    if workflow.global_resources.get("disk_mb").value is None:
        room = (PLAN.free_bytes - PLAN.min_free_bytes) // 10**6
        workflow.global_resources["disk_mb"] = max(1, room)
if PLAN.tight:
    workflow.global_resources["subject_writers"] = 1
cores = workflow.resource_settings.cores
# Nothing else runs while a job waits.
ALONE = cores is not None and cores <= C["threads"]
ROOM_MINUTES = (1 if ALONE else int(C["timeout_minutes"])) if PLAN.tight else 0
ROOM = (
    "[ {resources.room_minutes} -eq 0 ] || python -m invarlock advanced disk"
    " --subject {output.folder:q} --wait-minutes {resources.room_minutes} > {log[0]:q} 2>&1 && "
)
# Files in which a command says what it took, and how far it is.
USAGE = 'log={log[0]:q} && INVARLOCK_USAGE="${{log%.log}}.benchmark.tsv" '
PROGRESS = "INVARLOCK_PROGRESS={log[0]:q}.progress "


def is_away():
    """Whether jobs run on other machines; a dry run is told so by --jobs alone."""
    plugin, nodes = workflow.executor_plugin, workflow.resource_settings.nodes
    remote = workflow.dryrun or plugin.common_settings.non_local_exec
    return nodes is not None and remote


PLACES = {
    scenario: place
    for place, scenario in enumerate(
        L.edits + L.damage + L.custom + L.packed_by_backend
    )
}


# "local": of the jobs within one submission, one has its turn
resource_scopes:
    turn="local",


@functools.cache
def batched():
    """Whether subjects of a model share jobs of a cluster: a start of Snakemake, a place in the
    queue and a load of the libraries for several of them. Known once an executor is."""
    if ROOT_PROCESS and not is_away():
        return False
    workflow.global_resources["turn"] = 1
    os.environ.update(for_jobs({"INVARLOCK_FINISHED": str(FINISHED.resolve())}))
    return True


def batch(what):
    """The job of a cluster that a subject shares; the same subjects are made and evaluated in one,
    so that no evaluation waits for the edits of others. All windows of a model share one. Where
    subjects take turns on the disk, each needs its own.
    """
    if C["batch"] == 1 or PLAN.tight:
        return None  # no question for each job of a plan

    def group(wildcards):
        if not batched():
            return None
        name = f"{what}_{wildcards.model}"
        if hasattr(wildcards, "scenario"):
            name += f"_{PLACES[wildcards.scenario] // C['batch']}"
        if hasattr(wildcards, "run"):  # repeats do not make it longer
            name += f"_{wildcards.run}"
        # jobs that do not depend on each other share a group only as its components
        settings = workflow.group_settings
        if name not in settings.group_components:
            settings.group_components = {**settings.group_components, name: 10**6}
        return name

    return group


def is_start():
    """Whether this process plans a run: no job on a cluster, and nothing that runs no job."""
    return ROOT_PROCESS and workflow.executor_plugin is not None and not workflow.touch


@functools.cache
def refuse_what_cannot_be_judged(judged):
    """End, a dry run too, with a line for everything that keeps the run from an answer."""
    if not is_start():
        return
    folders = [C["baseline"], C["subject"]]
    asked = [
        C["baseline"],
        C["subject"] or C["backend"],
        state_of(*folders),
        C["edit_label"],
    ]
    kept = C["suite"] == "byoe" and not workflow.dryrun
    if kept:
        forget_others(asked)
    found, doubted = refusals(S, CONTAINER, judged, is_away()), (
        doubts(S, is_away()) if judged else []
    )
    if found or (doubted and not workflow.dryrun):
        stop(*found, *doubted)
    for error in doubted:
        print(f"invarlock: warning: {error}", file=sys.stderr)
    if kept:
        record_asked(OUT, asked)


def forget_others(asked):
    """Set aside what was said of other folders, or other states of them, than are asked about.

    The description of the subject stays: it is no answer, its rule makes it anew, and without the
    file snakemake would measure the baseline and every control again (see opened_subjects).
    """
    custom = [
        f"{m.slug}/{kind}/{s}"
        for m in S.models
        for kind in ("reports", "determinism")
        for s in L.custom
    ]
    place = supersede(OUT, asked, custom)
    if place is not None:
        look_again()
    say_where(place)


def look_again():
    """Snakemake may have looked at what was moved or removed. Its own way to forget that keeps the
    folders whose files it knows, so that all of them would be missing."""
    workflow.iocache.clear()
    workflow.iocache.exists_local.has_inventory.clear()


def say_where(place):
    """Tell where answers are that were set aside."""
    if place is not None:
        line = f"earlier answers are set aside in {place}"
        print(f"invarlock: {line}", file=sys.stderr)


def judged_outcomes(wildcards):
    """The outcomes that the verdict needs, if any evaluation of these settings could pass."""
    refuse_what_cannot_be_judged(True)
    return of_evaluations("outcome.json")(wildcards)


def refused_pack(wildcards):
    """Nothing; a pack that no verifier would read ends the run, as what cannot be judged does."""
    if is_start() and (large := [*size_of_pack(S)]):
        stop(*refusals(S, CONTAINER, True, is_away()), *large)
    return []


@functools.cache
def check_before_first_job():
    """Tell what keeps the run from ending; a dry run goes on where only this machine lacks it."""
    if not is_start():
        return
    refuse_what_cannot_be_judged(False)
    try:
        if not workflow.dryrun:
            remove_leftovers(half_written(OUT))  # which the plan counts as free
            if L.forget_references():
                look_again()
        lacking = check_start(S, PLAN, L.window_files())
        if lacking and not workflow.dryrun:
            stop(lacking[0])
        why = "" if workflow.dryrun else will_fail(S)
        if why:
            line = f"warning: the subject will fail, whatever is measured: {why}"
            print(f"invarlock: {line}", file=sys.stderr)
        for error in lacking:
            print(f"invarlock: warning: {error}", file=sys.stderr)
        if PLAN.tight and not workflow.dryrun:
            write_plan(OUT, PLAN)
    except InvarlockError as error:
        stop(error)


def pins(wildcards):
    """The pins; whoever places a model comes by here."""
    check_before_first_job()
    return OUT / "state/model_revisions.json"


def opened_subjects(wildcards):
    """The user's subject is opened before the baseline costs anything; another one, or another
    state of it, is no reason to measure the baseline again."""
    folder = OUT / wildcards.model / "edits"
    return [
        ancient(folder / scenario / "edit_metadata.json") for scenario in L.described
    ]


def weights_mb(wildcards):
    """Size of a model in MB: as recorded, else as pinned, else as planned."""
    return SIZES[wildcards.model]


def placing_mb(wildcards):
    """Disk of a download and of the copy of it."""
    copies = S.model(wildcards.model).source.startswith("hub:") + (
        C["baseline_storage"] == "snapshot_copy"
    )
    return int(copies * weights_mb(wildcards))


def edit_mb(wildcards, attempt):
    """Memory of a streamed edit: torch and a few copies of the largest tensor, not the model."""
    whole = S.scenario(wildcards.scenario).edit_type in IN_MEMORY
    return int(900 + (1.2 if whole else 0.15) * weights_mb(wildcards)) * attempt


def edit_minutes(wildcards, attempt):
    """Reading and writing a checkpoint once, and the wait for its place."""
    return int(10 + weights_mb(wildcards) / 1000) * attempt + ROOM_MINUTES


def run_mb(wildcards, attempt):
    """Host memory of a run: torch, one batch, and on a CPU the model (twice the bytes in float32),
    of which a part stands there a second time, sorted for the processor."""
    weights = weights_mb(wildcards)
    model = 0.3 * weights if ON_GPU else 2.2 * weights
    packed = 0 if ON_GPU else min(2 * weights, packed_weights.LARGEST / 1e6)
    return int(1500 + model + packed) * attempt


def train_mb(wildcards, attempt):
    """Host memory of a training edit: what is trained, and the optimizer's moments, in float32."""
    edit = getattr(wildcards, "edit", None) or S.scenario(wildcards.scenario).edit_type
    tuned = edit == "fine_tune"
    factor = (10 if tuned else 4) if ON_GPU else (14 if tuned else 9)
    return int(1500 + factor * weights_mb(wildcards)) * attempt


def gpus(wildcards):
    """GPUs of a run: enough for the weights and a fifth more."""
    if not ON_GPU:
        return 0
    needed = max(1, -int(-1.2 * weights_mb(wildcards) // (1e3 * C["gpu_memory_gb"])))
    limit = workflow.global_resources.get("gpu").value
    if limit is not None and limit < needed:  # snakemake would run the job with fewer
        raise ConfigError(
            f"{wildcards.model} needs {needed} GPUs",
            found=f"--resources gpu={limit}",
            hint=f"allow gpu={needed}, or name the memory of one GPU (gpu_memory_gb)",
        )
    return needed


try:
    for model in S.models:
        gpus(SimpleNamespace(model=model.slug))
except ConfigError as error:
    stop(error)


def run_minutes(wildcards, attempt):
    """Wall time asked of a scheduler: loading, and the pass over all windows."""
    m, long = S.model(wildcards.model), S.long_windows
    tokens = m.seq_len * (m.preview + m.final) + long.seq_len * 2 * long.final
    minutes = pass_minutes(wildcards, tokens)
    return int(min(minutes, C["timeout_minutes"] + 10) * attempt)


def pass_minutes(wildcards, tokens):
    """Loading a checkpoint and one pass over so many tokens."""
    per_second = 4e6 / weights_mb(wildcards) if ON_GPU else 6e4 / weights_mb(wildcards)
    return 10 + weights_mb(wildcards) / 3e3 + tokens / per_second / 60


def train_minutes(wildcards, attempt):
    """A few steps forward and back, and the optimizer on the host."""
    tokens = 64 * S.model(wildcards.model).seq_len
    return int(
        (pass_minutes(wildcards, 3 * tokens) + weights_mb(wildcards) / 200) * attempt
    )


def search_mb(wildcards, attempt):
    """Host memory of a search: what making or measuring a candidate takes."""
    trained = train_mb(wildcards, attempt) if wildcards.edit in FROM_TEXT else 0
    return max(trained, run_mb(wildcards, attempt))


def search_minutes(wildcards, attempt):
    """Every candidate of an edit type, made and measured, and some of them twice."""
    m = S.model(wildcards.model)
    tries = len(CANDIDATES[wildcards.edit]) + 2
    minutes = pass_minutes(wildcards, m.seq_len * (m.preview + m.final))
    return int(tries * minutes * attempt)


def null_runs(model):
    """The runs of a calibration, baseline and two null edits on the windows of every seed, and the
    tokens of each."""
    null = C["calibration"]
    return 3 * null["seeds"], model.seq_len * 2 * null["windows"]


def calibrate_minutes(wildcards, attempt):
    """All runs of a calibration."""
    runs, tokens = null_runs(S.model(wildcards.model))
    return int(runs * pass_minutes(wildcards, tokens) * attempt)
