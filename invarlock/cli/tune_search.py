"""The search of ``invarlock advanced tune``: candidates are made, measured and judged in turn.

A candidate is judged as any subject is: the same measurement, thresholds and gates, on windows
that no scenario is judged on. The first that passes on the selection windows has to pass on the
confirmation windows too; otherwise the search goes on. Everything that was tried is in the log.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from invarlock import __version__
from invarlock.checkpoints import Checkpoint
from invarlock.cli.evaluate_record import EVALUATION_NAME
from invarlock.cli.evaluate_worker import measure_and_judge
from invarlock.cli.job import Job
from invarlock.cli.options import shared
from invarlock.documents.windows import WindowSet
from invarlock.edits.kind import EditSpec, TrainedEdit
from invarlock.edits.specs import candidates, parse_edit_spec
from invarlock.errors import ConfigError
from invarlock.files import read_json_object, sha256_file
from invarlock.metrics.kinds import metric_for
from invarlock.pages.reading import Report, block
from invarlock.reporting.signals import CORE_GUARDS, guard_flags, pass_reasons
from invarlock.run.container import detect
from invarlock.tuned import SELECTED, SKIPPED
from invarlock.windows import read_windows, set_of_ids

if TYPE_CHECKING:
    from invarlock.cli.tune import TuneOptions

Document = dict[str, Any]
SELECTION, CONFIRMATION = "selection", "confirmation"
PASSED, FAILED, NOT_APPLICABLE = "passed", "failed", "not_applicable"


@dataclass(frozen=True)
class WindowFile:
    """Windows that candidates are measured on, and the baseline's run on them."""

    name: str  # SELECTION or CONFIRMATION
    path: Path
    baseline_run: Path  # measured first where it is not there
    content: WindowSet

    @classmethod
    def read(cls, name: str, path: Path, baseline_run: Path, tokenizer: str | None) -> WindowFile:
        """Read and check the file.

        Raises:
            InputError: see :func:`invarlock.windows.read_windows`.
        """
        return cls(name, path, baseline_run, read_windows(path, tokenizer))

    @property
    def ids(self) -> set[str]:
        """The ids of all its windows."""
        return {w.window_id for w in (*self.content.preview, *self.content.final)}

    def to_json(self) -> Document:
        """What the log says of them."""
        return {
            "seed": self.content.seed,
            "windows_sha256": sha256_file(self.path),
            "ids_sha256": set_of_ids(self.ids)["ids_sha256"],
            "preview": len(self.content.preview),
            "final": len(self.content.final),
        }


@dataclass(frozen=True)
class Bench:
    """With what candidates are made, measured and judged."""

    options: TuneOptions
    baseline: Checkpoint
    selection: WindowFile
    confirmation: WindowFile
    kept_apart: frozenset[str]  # ids of windows that neither of them may hold
    stage: Path  # folder for a candidate and its measurements, one at a time

    @property
    def model_id(self) -> str:
        """The name of the baseline in the table and in reports."""
        return self.options.name_of(self.options.baseline)

    def job(self, edit_type: str, subject: Path, windows: WindowFile) -> Job:
        """The evaluation of a candidate, measured with the devices that this process has."""
        execution = detect(None)
        own = {
            "model_id": self.model_id,
            "baseline_report": windows.baseline_run,
            "edit_label": edit_type,
            "gpus": 0,
            "out": self.stage / "evaluation",
        }
        return Job(
            **{**shared(self.options, Job), **own},
            subject=subject,
            windows=windows.path,
            image_ref=execution.image_ref,
            image_digest=execution.image_digest,
        )

    def require_disjoint(self) -> None:
        """Refuse windows that would let a candidate be chosen by what it is judged on.

        Raises:
            ConfigError: two sets share a window or a seed.
        """
        first, second = self.selection, self.confirmation
        pairs = (
            (first, second.ids, "those of confirmation"),
            (first, self.kept_apart, "those to be kept apart"),
            (second, self.kept_apart, "those to be kept apart"),
        )
        for file, others, of in pairs:
            shared = len(file.ids & others)
            if shared:
                raise ConfigError(
                    f"{shared} of the {file.name} windows are also among {of}",
                    where=str(file.path),
                    expected="disjoint windows",
                    hint="cut them with invarlock windows --exclude FILE and another --seed",
                )
        if first.content.seed == second.content.seed:
            raise ConfigError(
                "selection and confirmation windows have one seed",
                where=str(second.path),
                expected=f"another than {first.content.seed}",
            )


def search(edit_type: str, bench: Bench) -> Document:
    """The tuned entry of one edit type: the first candidate that passes twice, or none."""
    log: list[Document] = []
    for text in candidates(edit_type, bench.baseline):
        spec = parse_edit_spec(text)
        subject = bench.stage / "subject"
        try:
            _make(spec, bench, subject)
        except ConfigError as error:  # it does not fit this model, or changes nothing
            log.append(_row(text, None, NOT_APPLICABLE, [error.what]))
            print(f"{text}: not applicable: {error.what}", flush=True)
            continue
        for windows in (bench.selection, bench.confirmation):
            report = _evaluate(edit_type, bench, subject, windows)
            log.append(_judged(text, windows.name, report))
            print(f"{text}: {windows.name}: {log[-1]['result']}", flush=True)
            if log[-1]["result"] != PASSED:
                break
        else:
            return _entry(spec, log, _search(bench, log))
    return {"status": SKIPPED, "reason": _why_none(log), "search": _search(bench, log)}


def _make(spec: EditSpec, bench: Bench, out: Path) -> None:
    """Write the edited checkpoint, as ``invarlock edit`` does."""
    from invarlock.edits.apply import apply_edit

    options, trained = bench.options, None
    if isinstance(spec, TrainedEdit) and options.training_windows:
        from invarlock.run.determinism import seed_everything
        from invarlock.run.train import Training, train

        seed_everything(options.determinism, options.threads, options.seed)
        target, windows = options.target(), options.training_windows
        training = Training(windows, target, options.token_budget, options.seed)
        trained = train(bench.baseline, spec, training)
    apply_edit(bench.baseline, spec, out, options.seed, trained)


def _evaluate(edit_type: str, bench: Bench, subject: Path, windows: WindowFile) -> Report:
    """The evaluation report of a candidate on one of the two sets of windows."""
    job = bench.job(edit_type, subject, windows)
    shutil.rmtree(job.out, ignore_errors=True)
    measure_and_judge(job)
    return read_json_object(job.out / EVALUATION_NAME)


def _judged(spec: str, windows: str, report: Report) -> Document:
    reasons = pass_reasons(report)
    metric, flags = block(report, "primary_metric"), guard_flags(report)
    interval = metric.get("display_ci")
    return {
        **_row(spec, windows, FAILED if reasons else PASSED, reasons),
        "subject_sha256": report["provenance"]["subject"]["checkpoint_sha256"],
        "ratio": metric.get("ratio_vs_baseline"),
        "interval": list(interval) if interval else None,
        "decision": metric.get("decision"),
        "guards": [guard for guard in CORE_GUARDS if flags[guard]],
    }


def _row(spec: str, windows: str | None, result: str, reasons: Sequence[str]) -> Document:
    """A line of the log for what was not measured."""
    return {
        "spec": spec,
        "windows": windows,
        "result": result,
        "subject_sha256": None,
        "ratio": None,
        "interval": None,
        "decision": None,
        "reasons": list(reasons),
        "guards": [],
    }


def _search(bench: Bench, log: Sequence[Document]) -> Document:
    options, baseline_sha256 = bench.options, bench.baseline.digest()
    policy, preset_sha256 = options.policy(baseline_sha256)
    dtype, device = options.arithmetic()
    training = options.training_windows
    return {
        "model_id": bench.model_id,
        "baseline_sha256": baseline_sha256,
        "preset_sha256": preset_sha256,
        "tier": policy.tier,
        "policy_digest": policy.digest,
        "metric": metric_for(bench.baseline.config, bench.selection.content.kind).name,
        "dtype": dtype,
        "device": device,
        "seed": options.seed,
        "replicates": options.replicates,
        "alpha": options.alpha,
        "invarlock_version": __version__,
        "selection": bench.selection.to_json(),
        "confirmation": bench.confirmation.to_json(),
        "training_windows_sha256": sha256_file(training) if training else None,
        "excluded": set_of_ids(bench.kept_apart),
        "candidates": list(log),
    }


def _entry(spec: EditSpec, log: Sequence[Document], found: Document) -> Document:
    """The entry of a candidate that passed twice."""
    values = {**spec.parameters(), "scope": str(spec.reach or "")}
    tried = len({row["spec"] for row in log})
    return {
        "status": SELECTED,
        "reason": f"candidate {tried}, the first that passes on both sets of windows",
        **{name: values[name] for name in spec.types()},
        "search": found,
    }


def _why_none(log: Sequence[Document]) -> str:
    fitting = {row["spec"] for row in log if row["result"] != NOT_APPLICABLE}
    if not fitting:
        return f"no candidate fits the model: {log[-1]['reasons'][0]}"
    chosen = sum(row["windows"] == CONFIRMATION for row in log)
    return (
        f"none of {len(fitting)} candidates passes on both sets of windows; "
        f"{chosen} passed on the selection windows alone"
    )
