"""What the rules of the workflow make of the settings: targets, paths, and words of commands.

Functions that take ``wildcards`` are input and parameter functions of rules; what they raise ends
the run with a line (``rules/common.smk``).
"""

from __future__ import annotations

import functools
import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from invarlock.cli.inject import InjectOptions
from invarlock.cli.job_words import JobWords, Wildcards
from invarlock.code_digest import code_digest
from invarlock.config import Settings
from invarlock.edits.specs import FROM_TEXT
from invarlock.errors import ConfigError
from invarlock.evidence.layout import PACK
from invarlock.files import unreadable
from invarlock.pictures import folder_of
from invarlock.reporting.deployable import FORMATS
from invarlock.run.container import Runtime, find_runtime
from invarlock.scenarios import CUSTOM_SPEC
from invarlock.sources.spec import parse_model_source, parse_slices

PAGES = ("evaluation.html", "evaluation.md", "verify.json")  # of an evaluation, for people
DEPLOYABLE_RECORDS = tuple(FORMATS)  # beside the evaluation of a deployable subject
# Commands whose code decides what is measured.
MEASURING = (
    "baseline", "windows", "run", "calibrate", "edit", "inject", "evaluate", "evaluate_worker",
)  # fmt: skip


class Inputs(Protocol):
    """The files that an evaluation takes of its subject; nothing of a server."""

    subject: str
    metadata: str


def any_of(names: Iterable[str]) -> str:
    """A wildcard constraint: one of these, or nothing at all."""
    return "|".join(map(re.escape, names)) or "(?!)"


def each(option: str, values: Iterable[object]) -> list[str]:
    """``option`` with each of the values, as words of a shell command."""
    return [f"{option} {shlex.quote(str(value))}" for value in values]


def code(*verbs: str) -> str:
    """Digest of the modules behind these commands: a change of code reruns what it touches."""
    return code_digest(*(f"invarlock.cli.{verb}" for verb in verbs))


def state_of(*paths: str | Path) -> list[str]:
    """Name, size and time of these files and of those in these folders.

    To Snakemake the time of a folder is its own, which a file that is written over does not
    change. In whole seconds, which is what archives keep: a run that was moved by one is not made
    again.

    Raises:
        InputError: a folder or file cannot be read.
    """
    found: list[str] = []
    for path in (Path(path) for path in paths if path):
        try:
            for file in sorted(path.iterdir()) if path.is_dir() else [path]:
                if file.is_file() and not file.name.startswith("."):
                    stat = file.stat()
                    found.append(f"{file.name} {stat.st_size} {int(stat.st_mtime)}")
        except OSError as error:
            raise unreadable(path, error) from error
    return found


def check_settings(settings: Settings, container: bool) -> Runtime | None:
    """Refuse what only other parts of the package know to be wrong.

    Args:
        settings: the effective configuration.
        container: whether a profile runs the rules in the image.

    Returns:
        what runs the image; None where nothing has to (snakemake wants it for a dry run too).

    Raises:
        InvarlockError: the key, a difference to accept, a server's address, a source or the image.
    """
    values = settings.values
    if values["signing_key"]:
        from invarlock.evidence.keys import load_signing_key

        load_signing_key(Path(values["signing_key"]))
    if values["accept"]:
        from invarlock.run.accept import check_accept

        folders = Path(values["baseline"]), Path(values["subject"])
        check_accept(values["accept"], *folders, settings.where("accept"))
    if values["backend"]:
        from invarlock.run.server import Address

        Address.read(values["backend"], settings.where("backend"))
    for model in settings.models:
        parse_model_source(model.source)
    parse_slices(settings.text)
    if not container:
        return None
    return find_runtime(
        values["container_engine"], values["container_image"], values["container_digest"]
    )


def environment(settings: Settings, outer: Mapping[str, str]) -> dict[str, str]:
    """Variables of the jobs: what is no parameter, so that a change of it measures nothing again.
    Telemetry is a parameter too, since it is in reports; here it asks for the line in the log.

    Args:
        settings: the effective configuration.
        outer: the environment of this process.
    """
    values = settings.values
    kept = values["calibrations"] and str(Path(values["calibrations"]).resolve())
    shared = {
        "INVARLOCK_TELEMETRY": str(int(values["telemetry"])),
        "INVARLOCK_CALIBRATIONS": kept,
    }
    if "CUDA_VISIBLE_DEVICES" in outer:  # also where it is empty: no GPU
        shared["CUDA_VISIBLE_DEVICES"] = outer["CUDA_VISIBLE_DEVICES"]
    return {
        **for_jobs(shared),
        # parameters and shell commands are recorded and logged; the key is not
        "INVARLOCK_SIGNING_KEY": values["signing_key"],
        # Not a parameter: a changed parameter makes Snakemake run the rule of the record again.
        # The rules behind it take the record as an ancient input, whose other inputs Snakemake
        # then no longer looks at, so that it would not notice missing evaluations.
        "INVARLOCK_SETTINGS": recorded(settings),
    }


def for_jobs(variables: Mapping[str, str]) -> dict[str, str]:
    """Variables, and the same under the names by which containers get them."""
    return {**variables, **{f"APPTAINERENV_{name}": text for name, text in variables.items()}}


def recorded(settings: Settings) -> str:
    """The text of ``state/config.json``."""
    return f"{json.dumps(settings.recorded(), sort_keys=True, indent=2)}\n"


def fingerprint_of(key: str) -> str:
    """The public fingerprint of a signing key, or nothing."""
    if not key:
        return ""
    from invarlock.evidence.keys import fingerprint, load_signing_key

    return fingerprint(load_signing_key(Path(key)).public)


@dataclass(frozen=True)
class Layout(JobWords):
    """The targets of a run, and what its jobs need."""

    # --- what there is to make -----------------------------------------------------------------

    @functools.cached_property
    def edits(self) -> list[str]:
        """Ids of the scenarios whose subject an edit makes."""
        found = [s for s in self.settings.scenarios if s.is_edit]
        return [s.id for s in found if s.edit_spec != CUSTOM_SPEC]

    @functools.cached_property
    def damage(self) -> list[str]:
        """Ids of the scenarios whose subject is damaged."""
        return [s.id for s in self.settings.scenarios if s.is_error]

    @functools.cached_property
    def custom(self) -> list[str]:
        """Ids of the scenarios whose subject the user brings."""
        return [s.id for s in self.settings.scenarios if s.edit_spec == CUSTOM_SPEC]

    @property
    def described(self) -> list[str]:
        """Those of them that are folders or files, of which is said what differs."""
        return [] if self.settings.values["backend"] else self.custom

    @functools.cached_property
    def packed_by_backend(self) -> list[str]:
        """Ids of the scenarios whose subject a deployment backend makes."""
        return [s.id for s in self.settings.scenarios if s.is_packed_by_backend]

    @functools.cached_property
    def deployable(self) -> list[str]:
        """Ids of the scenarios whose subject has to load and answer as it is served."""
        return [s.id for s in self.settings.scenarios if s.is_deployable]

    @functools.cached_property
    def training(self) -> list[str]:
        """Ids of the scenarios whose edit is trained."""
        return [s for s in self.edits if self.settings.scenario(s).edit_type in FROM_TEXT]

    @functools.cached_property
    def slugs(self) -> list[str]:
        """Folder names of the models."""
        return [m.slug for m in self.settings.models]

    @property
    def on_gpu(self) -> bool:
        """Whether measurements ask for a GPU."""
        return self.settings.values["device"] in ("cuda", "mps")

    @property
    def uses_hub(self) -> bool:
        """Whether a source may have to reach the hub, with the network on or off."""
        sources = *self.text_sources, *(m.source for m in self.settings.models)
        return any(name.startswith("hub:") for name in sources)

    def local_sources(self) -> list[str]:
        """Folders and files of this machine that models and text come from."""
        sources = [parse_model_source(m.source) for m in self.settings.models]
        found = [str(source.folder) for source in sources if source.folder]
        texts = parse_slices(self.settings.text).values()
        for text in texts:
            if text.kind == "local":
                found.append(text.name)
                if text.image:  # pictures lie below the folder of their records
                    found.append(str(Path(text.name).parent))
        return found

    def bound(self) -> list[str]:
        """Folders that a container has to see beside the one that snakemake runs in, and /tmp."""
        values = self.settings.values
        keys = ("baseline", "subject", "catalogue", "calibrations", "policy_pack")
        named = [values[key] for key in keys]
        named += [self.settings.out, *self.local_sources()]
        return sorted({str(Path(name).resolve()) for name in named if name})

    # --- files of the run ----------------------------------------------------------------------

    @functools.cached_property
    def evaluations(self) -> list[Path]:
        """Folders of all evaluations: every scenario of every model, every run."""
        s = self.settings
        return [
            s.out / slug / "reports" / scenario.id / f"run_{n}"
            for slug in self.slugs
            for scenario in s.scenarios
            for n in s.runs(scenario)
        ]

    def deployable_records(self) -> list[Path]:
        """The first of the five records beside each evaluation of a deployable subject."""
        named = set(self.deployable)
        folders = [f for f in self.evaluations if f.parent.name in named]
        return [folder / DEPLOYABLE_RECORDS[0] for folder in folders]

    def by_runs(self) -> dict[int, list[str]]:
        """The scenarios by the number of their evaluations."""
        found: dict[int, list[str]] = {}
        for scenario in self.settings.scenarios:
            found.setdefault(len(self.settings.runs(scenario)), []).append(scenario.id)
        return found

    def evaluation_words(self, name: str = "") -> list[str]:
        """The same folders, or a file in each, for bash to expand: thousands of paths do not fit
        into the one argument that a shell gets its command line as."""
        out, models = shlex.quote(str(self.settings.out)), _braces(self.slugs)
        end = [name] if name else []
        return [
            str(Path(out, models, "reports", _braces(ids), f"run_{{1..{runs}}}", *end))
            for runs, ids in self.by_runs().items()
        ]

    def window_files(self) -> list[Path]:
        """Everything that is cut from the text."""
        names = ["windows.json", *self.calibration_windows()]
        names += ["training_windows.json"] if self.training else []
        return [self.settings.out / slug / name for slug in self.slugs for name in names]

    def calibration_windows(self) -> list[str]:
        """The windows of null edits, below the folder of a model."""
        seeds = self.settings.calibration_seeds()
        return [f"presets/windows_seed_{seed}.json" for seed in seeds]

    def subject(self, wildcards: Wildcards) -> str | Path | list[str]:
        """The checkpoint under test: made by a rule, or the user's own folder; none of a server."""
        if wildcards.scenario in self.custom:
            return str(self.settings.values["subject"]) or []
        return self.settings.out / wildcards.model / "models" / wildcards.scenario

    def metadata(self, wildcards: Wildcards) -> Path | list[str]:
        """What was done to it; nothing is known of what a server runs."""
        if wildcards.scenario in self.custom and not self.described:
            return []
        name = "error" if wildcards.scenario in self.damage else "edit"
        folder = self.settings.out / wildcards.model / "edits" / wildcards.scenario
        return folder / f"{name}_metadata.json"

    def compared_with(self, slug: str) -> dict[str, Path]:
        """Options of the evaluations of a model that name what a subject is compared with."""
        folder = self.settings.out / slug
        return {
            "baseline": folder / "models/baseline",
            "baseline_report": folder / "runs/baseline",
            "windows": folder / "windows.json",
            "preset": folder / f"presets/calibrated_preset_{slug}.json",
            "config_record": self.settings.out / "state/config.json",
        }

    def reference(self, slug: str) -> Path:
        """The digests of what the evaluations of a model are compared with."""
        return self.settings.out / slug / "reference.sha256"

    def reference_files(self, slug: str) -> list[Path]:
        """The files among it: the baseline's record, the windows, its run on them, the preset."""
        given = self.compared_with(slug)
        run = given["baseline_report"]
        files = [given["windows"], given["preset"], run / "report.json", run / "guards.safetensors"]
        return [given["baseline"].parent.parent / "baseline.json", *files]

    def reference_folders(self, slug: str) -> list[Path]:
        """The folders among it. The record says what the checkpoint is, windows say what their
        pictures are, and hidden states change no number."""
        given = self.compared_with(slug)
        states = given["baseline_report"] / "hidden_states"
        return [given["baseline"], states, *self.with_pictures(given["windows"])]

    def forget_references(self) -> bool:
        """Remove digests of what is no longer there, so that it is made again where it is needed:
        evaluations look at the digests alone. Whether any were removed."""
        gone = [
            self.reference(slug)
            for slug in self.slugs
            if self.reference(slug).exists()
            and not all(
                path.exists()
                for path in (
                    self.compared_with(slug)["config_record"],
                    *self.reference_files(slug),
                    *self.reference_folders(slug),
                )
            )
        ]
        for path in gone:
            path.unlink(missing_ok=True)
        return bool(gone)

    def edit_spec(self, wildcards: Wildcards) -> str:
        """The spec of an edit.

        Raises:
            ConfigError: it takes tuned parameters, and the model has none.
        """
        return self.settings.edit_spec(wildcards.model, wildcards.scenario)

    def edited_baseline(self, wildcards: Wildcards) -> Path:
        """The checkpoint to edit; asked for before the first job, unlike parameters of a rule.

        Raises:
            ConfigError: see :meth:`edit_spec`.
        """
        self.edit_spec(wildcards)
        return self.settings.out / wildcards.model / "models/baseline"

    def trained_on(self, wildcards: Wildcards) -> list[Path]:
        """The windows that edits are trained on, where some are."""
        file = self.settings.out / wildcards.model / "training_windows.json"
        return [file] if self.training else []

    def kept_apart(self, wildcards: Wildcards) -> list[Path]:
        """Windows that a set of a search may not hold."""
        folder = self.settings.out / wildcards.model
        others = [folder / "windows.json", *self.trained_on(wildcards)]
        if wildcards.set == "confirmation":
            others.append(folder / "tuning/windows_selection.json")
        return others

    def searches(self, wildcards: Wildcards) -> list[Path]:
        """A table for each model and edit type whose tuned parameters the scenarios take.

        Raises:
            ConfigError: none takes any.
        """
        types = self.settings.tuned_types()
        if not types:
            raise ConfigError("no selected scenario takes tuned parameters", where="tune")
        return [self.settings.out / m / f"tuning/{edit}.json" for m in self.slugs for edit in types]

    # --- words of commands ---------------------------------------------------------------------

    def with_pictures(self, windows: str | Path) -> list[Path]:
        """The folder beside windows whose records have pictures; of other windows there is none."""
        texts = parse_slices(self.settings.text).values()
        return [folder_of(Path(windows))] if any(text.image for text in texts) else []

    def under_test(self, wildcards: Wildcards, input: Inputs) -> str:
        """Options that name the subject of an evaluation."""
        if not input.subject:
            return shlex.join(["--backend", self.settings.values["backend"]])
        return shlex.join(["--subject", input.subject, "--edit-metadata", input.metadata])

    def injection(self, wildcards: Wildcards) -> str:
        """Options of making a damaged checkpoint."""
        scenario = self.settings.scenario(wildcards.scenario)
        parameters = json.dumps(dict(scenario.parameters), sort_keys=True)
        return self.options(InjectOptions, error_type=scenario.error_type, parameters=parameters)

    # --- the pack ------------------------------------------------------------------------------

    def packed(self, analyses: Iterable[Path]) -> list[Path]:
        """The files that the pack of this run has whatever comes out, the manifest first."""
        from invarlock.evidence.collect import ANALYSES, foreseen

        s = self.settings
        names = foreseen(
            self.slugs, tuned=bool(s.tuned_types()), signed=bool(s.values["signing_key"])
        )
        names += [ANALYSES[path.name] + path.name for path in analyses]
        return [s.out / PACK / name for name in names]

    @property
    def named_pack(self) -> Path:
        """The pack that verify_pack is about: a received one, or that of the run."""
        return Path(self.settings.values["pack"] or self.settings.out / PACK)

    def verifying(self, *, own: bool) -> str:
        """Options of verifying the pack of this run, or the one that is named."""
        from invarlock.cli.evidence_pack import VerifyPackOptions

        values = self.settings.values
        # without a key the run's own pack is unsigned, which strict verification refuses
        strict = values["verify_strict"] and bool(values["signing_key"] or not own)
        signer = self._signer(values["pack"] and not own)
        return self.options(VerifyPackOptions, strict=strict, expected_fingerprint=signer)

    def expected_signer(self) -> list[str]:
        """The pin of the run's own pack: given, or our own key's."""
        pin = self._signer(received=False)
        return each("--expected-fingerprint", [pin] if pin else [])

    def _signer(self, received: bool) -> str:
        values = self.settings.values
        own = "" if received else fingerprint_of(values["signing_key"])
        return str(values["expected_fingerprint"] or own)


def _braces(names: Sequence[str]) -> str:
    """Alternatives of a shell word; a single one needs no braces, which bash would leave."""
    return names[0] if len(names) == 1 else "{" + ",".join(names) + "}"
