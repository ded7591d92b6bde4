"""The steps of ``invarlock compare``: the commands behind the rules, in their order.

A temporary folder beside the results is laid out as the output folder of a suite with one
scenario, the user's own subject, so that a pack is built of it as of any run. What measures runs in
a process of its own, as a job of the workflow does.
"""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, NoReturn

import yaml

from invarlock import evidence_pack
from invarlock.cli import DEBUG, module_of, parser_of
from invarlock.cli.baseline import BaselineOptions
from invarlock.cli.calibrate import CalibrateOptions
from invarlock.cli.compare_display import Stage, display
from invarlock.cli.compare_options import CompareOptions
from invarlock.cli.edit import EditOptions
from invarlock.cli.gate import CODES, EXIT_INCONCLUSIVE
from invarlock.cli.job import EvaluateOptions
from invarlock.cli.job_words import JobWords
from invarlock.cli.options import parsed
from invarlock.cli.pages import PagesOptions
from invarlock.cli.pin import PinOptions
from invarlock.cli.preset import PresetOptions
from invarlock.cli.run import RunOptions
from invarlock.code_digest import code_digest
from invarlock.config import SHIPPED, Settings, shipped_settings
from invarlock.errors import ConfigError, InputError, InvarlockError, MeasurementError
from invarlock.evidence import PackError
from invarlock.evidence.keys import load_signing_key
from invarlock.evidence.layout import EDIT_METADATA, PACK, VERIFIED
from invarlock.evidence.tree import REPORT_NAME
from invarlock.files import atomic_directory, read_json_object, temporary_sibling, write_json
from invarlock.folders import no_folder
from invarlock.formats.kinds.pickle import Pickle
from invarlock.guards.invariants import rejected
from invarlock.metrics.kinds import ASKED, metric_of
from invarlock.models import is_elsewhere, meant_elsewhere
from invarlock.output_locks import claimed
from invarlock.pictures import folder_of
from invarlock.policy import POLICY_PACK, load_policy
from invarlock.preflight import doubts, refusals, size_of_pack
from invarlock.preset import NULL_EDITS
from invarlock.progress import FILE as PROGRESS
from invarlock.progress import Progress
from invarlock.reporting.outcome import INCONCLUSIVE, PASS, outcome
from invarlock.run.accept import check_accept
from invarlock.run.kept_baselines import KeptBaselines, default_folder, key_of
from invarlock.run.server import Address
from invarlock.run.surroundings import environment
from invarlock.sources.spec import TEXT_SUFFIXES, parse_slices
from invarlock.windows import read_windows

QUICK = 48  # windows of each arm
SCENARIO = "byoe"
# Of the results, what the user gets.
SHOWN = (
    REPORT_NAME, "runtime.manifest.json", "outcome.json", "evaluation.html", "evaluation.md",
    VERIFIED, EDIT_METADATA, POLICY_PACK,
)  # fmt: skip
TICK = 0.25  # seconds between two looks at a measuring process


class NotMeasuredError(MeasurementError):
    """A model could not be measured, which says nothing of the subject."""

    exit_code = EXIT_INCONCLUSIVE


@dataclass
class Job:
    """The one job of a comparison, as the words of commands ask for it."""

    model: str
    scenario: str = SCENARIO
    set: str = ""


@dataclass(frozen=True)
class Compared:
    """What came of a comparison."""

    report: dict[str, Any]
    options: CompareOptions
    out: Path
    outcome: str
    signer: str | None
    seconds: dict[str, float]  # by stage; what was taken from an earlier comparison has none

    @property
    def exit_code(self) -> int:
        """0 PASS, 1 FAIL, 8 INCONCLUSIVE."""
        return CODES[self.outcome]


def answer(found: str, quick: bool) -> str:
    """The outcome of a report as a comparison tells it: a quick one never passes.

    Its windows are below the floors of the tier, so that no report of it says pass; should one, it
    is not believed.
    """
    return INCONCLUSIVE if quick and found == PASS else found


class _Kept(NamedTuple):
    """Whether something was taken from an earlier comparison; if not, how to keep it."""

    there: bool
    keep: Callable[[], None]


NOTHING_KEPT = _Kept(False, lambda: None)


@dataclass
class Comparison:
    """One comparison; ``out`` appears when it is whole."""

    options: CompareOptions
    out: Path
    threads: int
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self) -> Compared:
        """Refuse, then measure, then judge.

        Raises:
            InvarlockError: something that was named cannot be used.
            NotMeasuredError: the baseline could not be measured.
        """
        self._check_names()
        self.settings = self._settings()
        self._refuse()
        self.words, self.job = JobWords(self.settings), Job(self.settings.models[0].slug)
        with _stopped_by_sigterm(), self._work() as self.work:
            self.state, self.model = self.work / "state", self.work / self.job.model
            self.results = self.model / "reports" / SCENARIO / "run_1"
            with display() as self.display:
                self._pin()
                self._place()
                self._describe()
                self._baseline()
                self._subject()
            _call("advanced pages", self.words.options(PagesOptions), self.results / REPORT_NAME)
            return self._finish()

    # --- before anything is measured ------------------------------------------------------------

    def _check_names(self) -> None:
        """What is named has to be there, and what is made must replace nothing else."""
        baseline, subject = self.options.baseline, self.options.folder
        if not (Path(baseline).is_dir() or is_elsewhere(baseline)):
            found = no_folder(Path(baseline))
            found.hint = found.hint or meant_elsewhere(baseline)
            raise found
        if (
            subject and not subject.exists()
        ):  # it may be one file: what opens it says whether it can be read
            raise no_folder(subject)
        if self.options.backend:
            Address.read(self.options.backend, "SUBJECT")
            if self.options.accept:
                raise ConfigError("--accept is about files, which a server does not show")
        text = self.options.text
        if text.endswith(TEXT_SUFFIXES) and not ({":", "="} & {*text} or Path(text).is_file()):
            raise InputError("no such file", where=text)
        if self.options.pack:
            try:
                load_signing_key(self.options.pack)
            except PackError as error:
                raise InputError(str(error)) from error
        known = {*SHOWN, PACK}
        if os.path.lexists(self.out) and (not self.out.is_dir() or {*os.listdir(self.out)} - known):
            raise ConfigError(
                "holds something else than a comparison, and is not replaced",
                where=str(self.out),
                hint="name another folder with --out",
            )

    def _settings(self) -> Settings:
        """Those of suite byoe, with this baseline and subject, and windows that meet the floors of
        the tier, or with --quick do not."""
        options = self.options
        given: dict[str, Any] = {
            "suite": "byoe",
            "scenarios": [SCENARIO],
            "baseline": options.baseline,
            "subject": str(options.folder or ""),
            "backend": options.backend,
            "out": str(self.out),
            "text": _source(options.text),
            "tier": options.tier,
            "accept": list(options.accept),
            "edit_label": options.edit_label,
            "device": options.device,
            "threads": self.threads,
            "seed": options.seed,
            "net": int(options.net),
            "allow_remote_code": options.allow_remote_code,
            "allow_pickle_checkpoints": options.allow_pickle,
            "baseline_storage": "snapshot_symlink",
            "calibrations": "",
        }
        policy, settings = load_policy(options.tier), shipped_settings(given)
        asked = ASKED.get(next(iter(parse_slices(settings.text).values())).metric)
        kind, model = asked or metric_of(_config(options.baseline)), settings.models[0]
        arms = (QUICK, QUICK) if options.quick else (model.preview, model.final)
        short = kind.shortage(arms, model.seq_len, policy)
        if options.quick:
            if short is None:
                raise ConfigError(
                    f"--quick could pass: tier {options.tier} has no floors above its {QUICK}"
                    f" + {QUICK} windows",
                    hint="leave out --quick, or name another --tier",
                )
            given["long_context"] = {**settings.values["long_context"], "windows": 0}
            cut = {"preview": QUICK, "final": QUICK}
        else:
            cut = yaml.safe_load(short.windows) if short else {}
        return shipped_settings({**given, "windows": {**settings.values["windows"], **cut}})

    def _refuse(self) -> None:
        found = [*refusals(self.settings, False, not self.options.quick), *doubts(self.settings)]
        found += size_of_pack(self.settings) if self.options.pack else ()
        if found:
            raise found[0]
        if self.options.folder:
            folders = Path(self.options.baseline), self.options.folder
            check_accept(self.options.accept, *folders, "--accept")

    @contextlib.contextmanager
    def _work(self) -> Iterator[Path]:
        folder = temporary_sibling(self.out.resolve())
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            where = str(self.out.parent)
            raise InputError(f"cannot be written: {error.strerror}", where=where) from error
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    # --- what no subject has a part in ----------------------------------------------------------

    def _pin(self) -> None:
        """Digests of baseline and text; and the documents that go with a run."""
        model = self.settings.models[0]
        named = [f"{model.model_id}={model.source}"]
        words = self.words.options(PinOptions, model=named, text=self.words.text_sources)
        try:
            _call("pin", words, *self._net, "--out", self._revisions)
        except InputError as error:
            if self.options.net or "network" not in error.what:
                raise
            hint = "allow it for once with --net"
            raise InputError(error.what, where=error.where, hint=hint) from error
        write_json(self.state / "config.json", self.settings.recorded())
        _call("scenarios", self.words.selection(), "--out", self.state / "scenarios.json")

    @property
    def _net(self) -> tuple[str, ...]:
        return ("--net",) if self.options.net else ()

    @property
    def _revisions(self) -> Path:
        return self.state / "model_revisions.json"

    @contextlib.contextmanager
    def _kept(
        self, what: str, words: Sequence[str], verbs: Sequence[str], paths: Sequence[str]
    ) -> Iterator[_Kept]:
        """What an earlier comparison kept, put in its place; others that need the same wait.

        Args:
            what: a word for it.
            words: of the commands that make it, without paths of this comparison.
            verbs: the commands.
            paths: the files and folders, below the model's.
        """
        folder = None if self.options.no_cache else default_folder()
        if folder is None:
            yield NOTHING_KEPT
            return
        kept = KeptBaselines(folder)
        depends_on = {
            "pins": read_json_object(self._revisions),
            "words": list(words),
            "code": code_digest(*(f"invarlock.cli.{verb}" for verb in verbs)),
            "machine": environment(),
            "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
        }
        key = key_of(what, depends_on)

        def keep() -> None:
            try:
                kept.keep(key, self.model, paths)
            except InputError as error:
                self.display.line(f"warning: not kept: {error}")

        with claimed("compare", [kept.place(key)]):
            yield _Kept(kept.take(key, self.model), keep)

    def _place(self) -> None:
        """The baseline's folder: links to the user's files, or what was converted from others."""
        model, words = self.settings.models[0], self.words.options(BaselineOptions)
        named, record = f"{model.model_id}={model.source}", "baseline.json"
        with contextlib.ExitStack() as stack:
            kept = NOTHING_KEPT
            if model.source.startswith("package:"):  # all others are made of links
                paths = ["models/baseline", record]
                kept = stack.enter_context(self._kept("model", [named], ["baseline"], paths))
            if not kept.there:
                _call(
                    "baseline", words, *self._net, "--model", named, "--revisions", self._revisions,
                    "--min-free-gb", self.settings.min_free_disk_gb,
                    "--out", self._baseline_folder, "--record", self.model / record,
                )  # fmt: skip
                kept.keep()
        if self.options.folder:
            folders = self._baseline_folder, self.options.folder
            check_accept(self.options.accept, *folders, "--accept")

    def _describe(self) -> None:
        """Say what of the subject differs, as far as its files show it, and what they refuse: here,
        in seconds, before minutes go into its baseline."""
        self._rejected = ""
        if not self.options.folder:
            return
        baseline, subject = self._baseline_folder, self.options.folder
        given = ("--baseline", baseline, "--subject", subject)
        label = self.settings.values["edit_label"]
        words = self.words.options(EditOptions, "allow_remote_code", label=label)
        _call("edit", words, "--spec", "custom", *given, "--metadata", self._description)
        allowed = (Pickle.switch,) if self.options.allow_pickle else ()
        self._rejected = rejected(baseline, subject, self.options.accept, allowed)

    @property
    def _description(self) -> Path:
        return self.model / "edits" / SCENARIO / EDIT_METADATA

    @property
    def _baseline_folder(self) -> Path:
        return self.model / "models/baseline"

    @property
    def _windows(self) -> Path:
        return self.model / "windows.json"

    @property
    def _run(self) -> Path:
        return self.model / "runs/baseline"

    def _preset(self, end: str = "json") -> Path:
        return self.model / f"presets/calibrated_preset_{self.job.model}.{end}"

    def _baseline(self) -> None:
        """Windows, the baseline's run and null edits, each from an earlier comparison if it is
        there; then the thresholds that follow."""
        run, calibrate = (
            self.words.measuring(record, self.job) for record in (RunOptions, CalibrateOptions)
        )
        cut, cuts, stats = self.words.judged_cut(self.job), self._cuts(), "calibration_stats.json"
        with contextlib.ExitStack() as stack:
            files = [*_with_pictures("windows.json", self.settings.text), "runs/baseline"]
            ran = stack.enter_context(self._kept("run", [cut, run], ["windows", "run"], files))
            if not ran.there:
                self._cut(cut, self._windows)
            judged = self._stage("baseline", [self._windows])
            stages, tried = [] if ran.there else [judged], _Kept(True, lambda: None)
            if cuts:
                files = [f for name in cuts for f in _with_pictures(name, self.settings.text)]
                words, verbs = [*cuts.values(), calibrate], ["windows", "calibrate"]
                files.append(f"presets/{stats}")
                tried = stack.enter_context(self._kept("null-edits", words, verbs, files))
            null_windows = [self.model / name for name in cuts]
            if not tried.there:
                for file, words_of in zip(null_windows, cuts.values(), strict=True):
                    self._cut(words_of, file)
                # the baseline itself, then each null edit
                stages.append(self._stage("null edits", null_windows, 1 + len(NULL_EDITS)))
            self.display.plan([*stages, judged._replace(name="subject")])
            if stages and self._rejected:
                text = f"the subject will fail, whatever is measured: {self._rejected}"
                self.display.line(text)
            found = [name for name, kept in (("run", ran), ("null edits", tried)) if kept.there]
            if found := found if cuts else found[:-1]:
                self.display.line(f"the baseline's {' and '.join(found)}: of an earlier comparison")
            if not ran.there:
                self._measure(
                    judged, "run", run, "--model", self._baseline_folder,
                    "--windows", self._windows, "--out", self._run,
                )  # fmt: skip
                ran.keep()
            if not tried.there:
                self._measure(
                    stages[-1], "advanced calibrate", calibrate,
                    "--baseline", self._baseline_folder, "--windows", *null_windows,
                    "--out", self.model / "presets" / stats,
                )  # fmt: skip
                tried.keep()
        if cuts:
            _call(
                "advanced preset", self.words.options(PresetOptions),
                "--stats", self.model / "presets" / stats,
                "--out-yaml", self._preset("yaml"), "--out-json", self._preset(),
            )  # fmt: skip

    def _cuts(self) -> dict[str, str]:
        """How the windows of null edits are cut, by their files; a quick comparison has none."""
        if self.options.quick:
            return {}
        size = int(self.settings.values["calibration"]["windows"])
        return {
            f"presets/windows_seed_{seed}.json": self.words.cut(self.job, size, seed=seed)
            for seed in self.settings.calibration_seeds()
        }

    def _cut(self, words: str, out: Path) -> None:
        given = ("--tokenizer", self._baseline_folder, "--revisions", self._revisions)
        _call("windows", words, *self._net, *given, "--out", out)

    def _stage(self, name: str, files: Sequence[Path], times: int = 1) -> Stage:
        """How much there is to measure on these windows."""
        lengths = [
            len(row.tokens)
            for content in map(read_windows, files)
            for row in (*content.preview, *content.final)
        ]
        return Stage(name, times * len(lengths), times * sum(lengths))

    # --- the subject ----------------------------------------------------------------------------

    def _subject(self) -> None:
        """Measure the subject, and judge it."""
        given: tuple[object, ...] = ("--baseline", self._baseline_folder)
        if self.options.folder:
            given = (*given, "--subject", self.options.folder)
            described: tuple[object, ...] = ("--edit-metadata", self._description)
        else:
            given, described = (*given, "--backend", self.options.backend), ()
        own = self.words.of_scenario(self.job)
        preset = () if self.options.quick else ("--preset", self._preset())
        self._measure(
            self._stage("subject", [self._windows]),
            "evaluate", self.words.measuring(EvaluateOptions, self.job, **own), *given, *preset,
            "--baseline-report", self._run, "--windows", self._windows,
            *described, "--config-record", self.state / "config.json",
            # as the workflow does: once more in smaller batches where memory runs out, then said
            "--attempt", 2, "--record-failure", "--out", self.results,
        )  # fmt: skip

    # --- a measuring process --------------------------------------------------------------------

    def _measure(self, stage: Stage, name: str, words: str, *more: object) -> None:
        """Run a command that measures to its end, showing how far it is.

        Raises:
            InvarlockError: it refuses what it was given, in its own words.
            NotMeasuredError: it ended without a result.
        """
        self.display.stage(stage)
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            told, said = Path(folder, "progress"), Path(folder, "stderr")
            with open(said, "wb") as errors:
                process = subprocess.Popen(
                    [sys.executable, "-m", "invarlock", *name.split(), *_argv(words, *more)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    env={**os.environ, PROGRESS: str(told)},
                )
            try:
                while process.poll() is None:
                    self.display.show(Progress.read(told))
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(TICK)
            finally:
                _end(process)
            lines = said.read_text(errors="replace").splitlines()
        self.seconds[stage.name] = round(time.monotonic() - started, 1)
        if os.environ.get(DEBUG):
            print("\n".join(lines), file=sys.stderr)
        ours = [line.partition(": ")[2] for line in lines if line.startswith("invarlock ")]
        if process.returncode:
            raise _error(process.returncode, stage.name, ours or lines)
        for line in ours:
            self.display.line(line)
        self.display.whole(stage)

    # --- the results ----------------------------------------------------------------------------

    def _finish(self) -> Compared:
        """Put the results in place, whole or not at all."""
        report = read_json_object(self.results / REPORT_NAME)
        signer = None
        with atomic_directory(self.out.resolve()) as stage:
            for name in SHOWN:
                if (self.results / name).is_file():
                    shutil.copyfile(self.results / name, stage / name)
            if self.options.pack:
                signer = self._pack(self.options.pack, stage / PACK)
        found = answer(outcome(report), self.options.quick)
        return Compared(report, self.options, self.out, found, signer, self.seconds)

    def _pack(self, key: Path, out: Path) -> str | None:
        """A signed pack of this comparison, which verifies, or there is none; its signer."""
        model = self.settings.models[0].model_id
        _call(
            "verdict", "", "--scenarios", self.state / "scenarios.json", "--model", model,
            "--evaluation", self.results, "--out-dir", self.work / "reports",
            "--analysis-dir", self.work / "analysis",
        )  # fmt: skip
        provenance = "advanced provenance"
        _call(provenance, "environment", "--out", self.state / "environment.json")
        source = ("--checkout", SHIPPED, "--out", self.state / "source_repo.json")
        _call(provenance, "source", *source)
        return evidence_pack.build(out, run_dir=self.work, signing_key=key).signer


def _source(text: str) -> str:
    """What ``--text`` names, as a source: a file needs no word before it."""
    return f"local:{text}" if text and Path(text).is_file() else text


def _config(baseline: str) -> dict[str, Any]:
    """``config.json`` of a folder; empty where there is none to be read."""
    with contextlib.suppress(InputError):
        return read_json_object(Path(baseline) / "config.json")
    return {}


def _with_pictures(windows: str, text: str) -> list[str]:
    """The file of windows, and the folder beside it that holds the pictures of records."""
    pictured = any(source.image for source in parse_slices(text).values())
    return [windows, folder_of(Path(windows)).as_posix()] if pictured else [windows]


def _argv(words: str, *more: object) -> list[str]:
    return [*shlex.split(words), *map(str, more)]


def _call(name: str, words: str, *more: object) -> None:
    """A command that measures nothing, in this process, without what it prints."""
    argv = _argv(words, *more)
    module, args = module_of(name), parser_of(name, argv).parse_args(argv)
    if action := getattr(args, "action", None):
        record, main, _ = module.ACTIONS[action]
    else:
        record, main = module.OPTIONS, module.main
    with contextlib.redirect_stdout(io.StringIO()):
        main(parsed(record, args))


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process that is still there; one that has a worker ends it too."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _error(code: int, stage: str, lines: Sequence[str]) -> InvarlockError:
    """The line for a measuring process that ended without a result."""
    last = lines[-1] if lines else f"exit code {code}"
    for kind in (ConfigError, InputError):
        if code == kind.exit_code:
            return kind(last)
    if code == -signal.SIGKILL:
        last = "killed (signal 9), perhaps because memory ran out"
    return NotMeasuredError(f"the {stage} could not be measured: {last}")


@contextlib.contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end a comparison as Ctrl-C does: with nothing left behind."""

    def stop(number: int, _: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
