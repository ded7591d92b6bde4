"""Every environment variable that InvarLock knows, in one table.

A variable gives settings of ``config/config.yaml``, or commands and libraries read it, or it does
nothing and the table says why. The workflow and the command line warn of one that does nothing,
and of a name that looks like one of ours and is none (:func:`warnings`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from invarlock.errors import ConfigError

ON, OFF = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
OURS = re.compile(r"(INVARLOCK|PACK)_\w+|MODEL_\d+")
SETTINGS = "INVARLOCK_SETTINGS"  # in the environment of every job: the workflow has warned

MODEL_SLOTS = tuple(f"MODEL_{n}" for n in range(1, 9))

Given = Mapping[str, Any]


def flag(text: str) -> bool:
    """Whether a word says yes.

    Raises:
        ValueError: it says neither yes nor no.
    """
    word = text.strip().lower()
    if word not in (*ON, *OFF):
        raise ValueError(text)
    return word in ON


def _free_gb(text: str) -> float:
    """GB; the contract of settings cannot refuse NaN, which JSON cannot hold."""
    value = float(text)
    if value != -1 and not 0 <= value < math.inf:
        raise ValueError(text)
    return value


class Variable(NamedTuple):
    """A variable and what it does."""

    name: str
    does: str  # for people; of one that does nothing, why
    gives: Callable[[str], Given] | None = None  # settings that a text stands for
    read: bool = False  # by commands, by libraries or by the workflow itself
    expected: str = ""  # what a text may be, where a setting does not say it

    @property
    def inert(self) -> bool:
        """Whether it does nothing, whatever it says."""
        return self.gives is None and not self.read

    def changes_nothing(self, text: str) -> bool:
        """Whether it does nothing with this text."""
        try:
            return self.inert or (self.gives is not None and not self.gives(text))
        except ValueError:  # refused where settings are read
            return False


def _sets(
    name: str, key: str, read: Callable[[str], Any] = str, note: str = "", expected: str = ""
) -> Variable:
    """A variable that gives the value of one setting."""
    does = f"`{key}`{'; ' if note else ''}{note}"
    return Variable(
        name, does, lambda text: {key: read(text)}, False, expected or f"a value for {key}"
    )


def _read(name: str, does: str) -> Variable:
    return Variable(name, does, read=True)


def _inert(why: str, *names: str) -> list[Variable]:
    return [Variable(name, why) for name in names]


def _signing(text: str) -> Given:
    return {"require_signature": True} if flag(text) else _unsigned(text)


def _unsigned(text: str) -> Given:
    return {} if flag(text) else {"require_signature": False, "signing_key": ""}


def _strict(text: str) -> Given:
    return {"require_signature": True} if flag(text) else {}


_YES_NO = "0 or 1"
# Where two give the same setting, the upper one counts.
_TABLE: tuple[Variable, ...] = (
    # --- settings -----------------------------------------------------------------------------
    _sets("PACK_SUITE", "suite"),
    *(Variable(name, "`models`: its place of the list; empty turns the place off", read=True)
      for name in MODEL_SLOTS),
    _sets("PACK_MODELS", "models"),
    _sets("PACK_MODELS_CSV", "models"),
    _sets("PACK_SCENARIO_IDS", "scenarios"),
    _sets("PACK_SCENARIOS_MANIFEST_FILE", "catalogue"),
    _sets("PACK_INCLUDE_DEPLOYABLE_EDITS", "deployable_edits", flag),
    _sets("PACK_DEPLOY_BACKENDS", "deploy_backends"),
    _sets("OUTPUT_DIR", "out", note="`auto`: a folder with the time in its name"),
    _sets("PACK_OUTPUT_DIR", "out"),
    _sets("PACK_NET", "net", lambda text: int(flag(text))),
    _sets("INVARLOCK_ALLOW_NETWORK", "net", lambda text: int(flag(text))),
    _sets("PACK_TUNED_EDIT_PARAMS_FILE", "tuned_edit_params"),
    _sets("PACK_DETERMINISM", "determinism"),
    _sets("INVARLOCK_DETERMINISM", "determinism"),
    _sets("INVARLOCK_OMP_THREADS", "threads", int),
    _sets("PACK_REPEATS", "repeats", int),
    _sets("PACK_DEFER_REPORT_RENDERING", "defer_rendering", flag),
    _sets("PACK_BASELINE_STORAGE_MODE", "baseline_storage"),
    _sets("PACK_CLEANUP_MODELS", "keep_subjects", lambda text: not flag(text),
          "0 keeps the edited checkpoints"),
    _sets("PACK_VERIFY_PROFILE", "profile"),
    _sets("PACK_EVALUATE_ASSURANCE", "assurance"),
    _sets("PACK_REPORT_ASSURANCE", "verify_assurance"),
    Variable("PACK_STRICT_MODE", "1: `require_signature`; 0 changes nothing: `snakemake"
             " verify_pack` is strict unless `verify_strict` is false", _strict, expected=_YES_NO),
    Variable("PACK_SIGN_MANIFEST", "1: `require_signature`; 0: no signature, whatever"
             " `signing_key` says in the file", _signing, expected=_YES_NO),
    Variable("PACK_GPG_SIGN", "0: no signature; 1 changes nothing, since signatures are Ed25519,"
             " made where `signing_key` names a key", _unsigned, expected=_YES_NO),
    _sets("PACK_SIGNING_KEY", "signing_key"),
    _sets("MIN_FREE_DISK_GB", "min_free_disk_gb", _free_gb,
          expected="GB that must stay free, 0 or more, or -1 for the suite's"),
    _sets("INVARLOCK_TIER", "tier"),
    _sets("INVARLOCK_ALLOW_REMOTE_CODE", "allow_remote_code", flag,
          "asked for only where a model brings code of its own"),
    _sets("INVARLOCK_ALLOW_HOST_EXECUTION", "allow_host_execution", flag),
    _sets("INVARLOCK_TELEMETRY", "telemetry", flag, "`invarlock run` and `evaluate` read it too"),
    _sets("INVARLOCK_ALLOW_CONFIG_INCLUDE_OUTSIDE", "allow_config_include_outside", flag),
    _sets("INVARLOCK_CONTAINER_ENGINE", "container_engine"),
    _sets("INVARLOCK_RUNTIME_IMAGE", "container_image"),
    _sets("INVARLOCK_RUNTIME_IMAGE_DIGEST", "container_digest"),
    # --- read by commands and libraries ---------------------------------------------------------
    _read("INVARLOCK_ALLOW_UNVERIFIED_PROVENANCE", "1: an unsigned pack is a warning of `invarlock"
          " advanced evidence-pack verify`, not exit 5, unless `--strict`"),
    _read("INVARLOCK_BACKEND_KEY", "key that a running server is asked with (`--backend`)"),
    _read("INVARLOCK_DIGESTS", "`none`: digests of weight files are computed each time, and none"
          " is kept"),
    _read("INVARLOCK_DEBUG", "1: processes that a command starts show tracebacks; set by"
          " `--debug`"),
    _read("INVARLOCK_PROGRESS", "a file that measuring processes add a line to after each batch:"
          " windows done, of all, tokens done, of all; set by `invarlock compare` and by the"
          " workflow"),
    _read("CI", "set: progress of a run is a plain line now and then, also on a terminal"),
    _read("TERM", "dumb: the same"),
    _read("INVARLOCK_ONE_LOAD", "set by the workflow for its jobs: the process whose jobs take"
          " their libraries from one fork server (`one_load`)"),
    _read("INVARLOCK_FINISHED", "set by the workflow for jobs of a cluster that hold several"
          " evaluations (`batch`): where finished ones are kept until the run ends"),
    _read("INVARLOCK_USAGE", "a file that a command says its time and memory in, in the form of"
          " Snakemake's benchmark files; set by the workflow's rules"),
    _read("INVARLOCK_CALIBRATIONS", "set by the workflow for its jobs: `calibrations`"),
    _read("INVARLOCK_SIGNING_KEY", "set by the workflow for its jobs: `signing_key`"),
    _read(SETTINGS, "set by the workflow for its jobs: the settings in force"),
    _read("INVARLOCK_TEST_MODEL", "of the tests: a folder of the embedded model that is ready"),
    _read("HF_HOME", "folder of the hub's library; its cache is `hub` in it"),
    _read("HF_HUB_CACHE", "cache of the hub, for models and data sets"),
    _read("HUGGINGFACE_HUB_CACHE", "the older name of `HF_HUB_CACHE`"),
    _read("HF_DATASETS_CACHE", "where the library datasets keeps what it learns of a data set; the"
          " files are in the hub's cache"),
    _read("HF_ENDPOINT", "address of the hub, read by its library"),
    _read("HF_HUB_OFFLINE", "set by the commands: `net`"),
    _read("HF_DATASETS_OFFLINE", "set by the commands: `net`"),
    _read("TRANSFORMERS_OFFLINE", "set by the commands: `net`"),
    _read("HF_HUB_DISABLE_TELEMETRY", "set by the commands: 1"),
    _read("HF_UPDATE_DOWNLOAD_COUNTS", "set by the commands: 0"),
    _read("HF_HUB_VERBOSITY", "what the hub's library tells; `error` where it is not set"),
    _read("DATASETS_VERBOSITY", "what the library datasets tells; `critical` where it is not set"),
    _read("DO_NOT_TRACK", "set by the commands: 1"),
    _read("XDG_CONFIG_HOME", "folder of what a user sets up (`~/.config`): key, trusted signers"),
    _read("XDG_CACHE_HOME", "folder of caches (`~/.cache`)"),
    _read("TMPDIR", "folder of temporary files"),
    _read("SOURCE_DATE_EPOCH", "the time that a pack states, in seconds of 1970"),
    _read("CUDA_VISIBLE_DEVICES", "GPUs that jobs share; empty: none"),
    *(Variable(name, "set by the commands: `threads`", read=True) for name in
      ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS",
       "VECLIB_MAXIMUM_THREADS")),
    *(Variable(name, "set by the commands: `determinism`", read=True) for name in
      ("CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE", "TORCHINDUCTOR_DETERMINISTIC",
       "TOKENIZERS_PARALLELISM")),
    _read("PYTORCH_NVML_BASED_CUDA_CHECK", "set by the commands: GPUs are counted without CUDA"),
    _read("TORCH_DEVICE_BACKEND_AUTOLOAD", "set by the commands: torch loads no plugins"),
    _read("SLURM_JOB_ID", "set by SLURM: whose leases and locks these are"),
    _read("SLURM_RESTART_COUNT", "set by SLURM: a job that starts again takes its locks back"),
    _read("SLURM_STEP_GPUS", "set by SLURM: GPUs of a job"),
    _read("SLURM_JOB_GPUS", "set by SLURM: GPUs of a job"),
    _read("APPTAINER_BIND", "further folders that containers see; the workflow adds its own"),
    _read("PATH", "where programs are; the workflow puts its interpreter first"),
    _read("PYTHONPATH", "where packages are; the workflow puts its checkout first"),
    # --- without effect ---------------------------------------------------------------------------
    *_inert("attention is torch's own (sdpa); flash-attn is never loaded", "SKIP_FLASH_ATTN"),
    *_inert("the cache of the hub serves models too: `HF_HUB_CACHE`", "TRANSFORMERS_CACHE"),
    *_inert("settings are read from config/config.yaml, further ones from --configfile FILE, and"
            " limits of a tier come with the package", "INVARLOCK_CONFIG_ROOT"),
    *_inert("every report holds its windows: they are what verification replays",
            "INVARLOCK_STORE_EVAL_WINDOWS"),
    *_inert("whether a run is in a container is found out, not claimed",
            "INVARLOCK_CONTAINER_EXECUTION"),
    *_inert("each evaluation is a job of its own; they share a load of the libraries: `one_load`,"
            " and jobs of a cluster: `batch`", "PACK_GROUP_EVALUATIONS",
            "PACK_USE_BATCH_EDITS", "PACK_BATCH_EDIT_STRATEGY"),
    *_inert("the baseline's report is a job of its own, and others wait for it",
            "PACK_EAGER_BASELINE_REPORT", "PACK_BASELINE_REPORT_WAIT_SECS",
            "PACK_BASELINE_REPORT_WAIT_HEAVY_WINDOW_TOTAL_MIN"),
    *_inert("pins are in state/model_revisions.json of the output folder",
            "PACK_MODEL_REVISIONS_FILE"),
    *_inert("paths are taken as they are", "PACK_OUTPUT_DIR_ABSOLUTE"),
    *_inert("name the target: snakemake suite, or snakemake pack", "PACK_SUITE_MODE"),
    *_inert("any table of tuned parameters is taken, and its digest is recorded",
            "PACK_ALLOW_NONCANONICAL_TUNED_EDIT_PARAMS"),
    *_inert("calibrations are kept and found again by the setting calibrations",
            "PACK_CALIBRATION_PRESET_DIR", "PACK_CALIBRATION_PRESET_FILE"),
    *_inert("the order of the guards is fixed", "PACK_GUARDS_ORDER"),
    *_inert("limits come from the tier and from the baseline's calibration",
            "PACK_SPECTRAL_MAX_CAPS", "INVARLOCK_PM_ACCEPTANCE_MIN", "INVARLOCK_PM_ACCEPTANCE_MAX",
            "INVARLOCK_CERT_MIN_WINDOWS", "INVARLOCK_TINY_RELAX",
            "INVARLOCK_ALLOW_PSEUDO_ACCURACY"),
    *_inert("the preset comes from null edits of the baseline, whatever is edited",
            "PACK_PRESET_EDIT_TYPES"),
    *_inert("a scenario says whether it is probed", "PACK_ENABLE_RMT_CROSS_PROBE",
            "PACK_RMT_PROBE_WINDOWS", "PACK_ENABLE_VE_CROSS_PROBE", "PACK_VE_PROBE_WINDOWS"),
    *_inert("there is one image: container_image", "PACK_RUNTIME_IMAGE_FLAVOR"),
    *_inert("a repeated command makes again what failed", "PACK_RETRY_FAILED_ON_RESUME"),
    *_inert("the pack is evidence_pack in the output folder", "PACK_DIR", "PACK_PACK_LAYOUT"),
    *_inert("pages are made for every report", "PACK_SKIP_HTML"),
    *_inert("snakemake release demands it: --profile profiles/release", "PACK_RELEASE_REVIEW",
            "PACK_REQUIRE_PASS", "PACK_REQUIRE_RUNTIME_MANIFESTS"),
    *_inert("ask the verdict: invarlock gate FILE", "PACK_FAILED_VERDICT_FILE"),
    *_inert("min_free_disk_gb says how much must stay free", "PACK_SKIP_DISK_PREFLIGHT"),
    *_inert("packages are those of the lock: invarlock doctor", "PACK_SKIP_TORCH_CHECK"),
    *_inert("memory is planned from the size of the weights", "INVARLOCK_OVERHEAD_GB"),
    *_inert("the setting text names the data set", "INVARLOCK_DATASET",
            "INVARLOCK_DATASET_PROVIDER_YAML", "INVARLOCK_HF_DATASET_NAME",
            "INVARLOCK_HF_DATASET_REVISION", "INVARLOCK_LOCAL_JSONL_FILE"),
    *_inert("a window whose tokens were seen before is left out in any case",
            "INVARLOCK_DEDUP_TEXTS"),
    *_inert("the setting windows says it", "INVARLOCK_PREVIEW_WINDOWS", "INVARLOCK_FINAL_WINDOWS",
            "INVARLOCK_SEQ_LEN", "INVARLOCK_STRIDE"),
    *_inert("the setting token_budget says it", "INVARLOCK_EVAL_BATCH"),
    *_inert("the setting bootstrap says it", "INVARLOCK_BOOTSTRAP_N"),
    *_inert("what guards measured is in every report", "INVARLOCK_EVIDENCE_DEBUG"),
    *_inert("windows are counted exactly", "INVARLOCK_CAPACITY_FAST"),
    *_inert("any checkout will do", "INVARLOCK_SOURCE_REPO_MARKER"),
)  # fmt: skip
VARIABLES: dict[str, Variable] = {variable.name: variable for variable in _TABLE}


def given_by(environment: Mapping[str, str]) -> Iterator[tuple[str, str, Any]]:
    """Variable, setting and value of those that are set, in the order in which they count.

    Raises:
        ConfigError: a text that cannot be read.
    """
    for name, variable in VARIABLES.items():
        text = environment.get(name)
        if variable.gives is None or not text:
            continue
        try:
            found = variable.gives(text)
        except ValueError as error:
            raise ConfigError(
                f"{name} cannot be read", expected=variable.expected, found=repr(text)
            ) from error
        for key, value in found.items():
            yield name, key, value


def warnings(environment: Mapping[str, str], ours: bool = False) -> list[str]:
    """A line for each variable that does nothing, and for each that looks like ours and is none.

    Args:
        environment: the environment.
        ours: say it only of names that nobody else would set for a purpose of their own.
    """
    found = []
    for name in sorted(environment):
        known, is_ours = VARIABLES.get(name), OURS.fullmatch(name)
        if not environment[name] or (ours and not is_ours):
            continue
        if known is None:
            if is_ours:
                found.append(f"{name} is no variable that InvarLock knows; {_nearest(name)}")
        elif known.changes_nothing(environment[name]):
            found.append(
                f"{name}={environment[name]} changes nothing: {known.does.replace('`', '')}"
            )
    return found


def _nearest(name: str) -> str:
    import difflib

    near = difflib.get_close_matches(name, [n for n in VARIABLES if OURS.fullmatch(n)], n=1)
    return f"the nearest is {near[0]}" if near else "config/README.md lists them"
