"""The measuring process of ``invarlock evaluate``: reads a job, writes the results."""

from __future__ import annotations

import ctypes
import functools
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from invarlock.cli import DEBUG
from invarlock.cli.job import EXIT_NOT_LOADED, EXIT_OUT_OF_MEMORY, Job
from invarlock.cli.options import from_json
from invarlock.errors import InputError, InvarlockError
from invarlock.files import read_bytes, write_bytes
from invarlock.loading_faults import LoadingError, lacks_memory
from invarlock.run.lease import lease

if TYPE_CHECKING:
    from invarlock.checkpoints import Checkpoint, Identity
    from invarlock.guards.findings import Failure
    from invarlock.metrics.distribution import TokenShift
    from invarlock.policy import Policy
    from invarlock.run.hidden_states import Place, Source
    from invarlock.run.measure import Looks, Measurement, ReferenceArrays, RunWindows
    from invarlock.run.report import Reference

PR_SET_PDEATHSIG = 1  # prctl(2)


def _die_with_parent() -> None:
    """Ask Linux to end this process with its supervisor, however that ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def work(job: Job) -> None:
    """The job in a process that has not imported torch yet."""
    from invarlock.run.determinism import set_environment

    set_environment(job.determinism, job.threads, job.allow_network)
    measure_and_judge(job)


def measure_and_judge(job: Job) -> None:
    """Measure the subject (and the baseline, if no run of it is given) and write everything."""
    from invarlock.run.determinism import seed_everything

    determinism = seed_everything(job.determinism, job.threads, job.seed)

    from invarlock.alignment import align
    from invarlock.checkpoints import Checkpoint, Identity, file_parts, tokenizer_digest
    from invarlock.guards import findings, invariants_decision
    from invarlock.guards.invariants import check_checkpoint, open_subject, reads_alike
    from invarlock.run.excerpts import excerpts_of
    from invarlock.run.measure import RunWindows
    from invarlock.run.report import Reference, token_shift
    from invarlock.scenarios import CUSTOM_SPEC, NOOP

    baseline = Checkpoint.open(job.baseline)
    windows = RunWindows.read(job.windows, tokenizer_digest(baseline.folder))
    subject: Checkpoint | None = None
    failures: list[Failure] = []
    place = job.subject
    if place is not None:
        subject, failures = open_subject(place, job.baseline, job.allowed)
    if not (job.reference / "report.json").is_file():
        baseline.digest()
        _take_device(job)
        _run_baseline(job, baseline, windows, determinism)
    reference = Reference.read(job.reference)
    reference.require_same_inputs(windows, baseline.digest())
    policy, _ = job.policy(baseline.digest())
    if place is None:
        _evaluate_server(job, baseline, windows, reference, policy, determinism)
        return
    started = time.perf_counter()
    if subject is None:
        job = replace(job, edit_label=job.edit_label or CUSTOM_SPEC)
        identity = Identity(baseline.config, file_parts(place), None, None)
        found = identity, windows, failures, None
        _write(job, reference, found, None, (), policy, determinism)
        return
    identity = subject.identity()
    label = findings.label_of(job.edit_label, baseline.parts(), identity.parts)
    failures = [
        *check_checkpoint(baseline, subject, windows.token_ids()),
        *([findings.unnamed_noop()] if (job.edit_label, label) == ("", NOOP) else []),
        *findings.nothing_edited(label, baseline.parts(), identity.parts),
    ]
    job = replace(job, edit_label=label)
    seconds = time.perf_counter() - started
    measured, shift = None, None
    excerpts: Sequence[Mapping[str, Any]] = ()
    if invariants_decision.judge(failures, job.accept)["passed"]:
        _take_device(job)  # after all that a CPU does
        reference.require_same_arithmetic(*job.arithmetic())
        arrays = replace(
            reference.arrays(), checkpoint=baseline, start=_source(job, baseline, subject)
        )
        aligned = align(baseline, subject).subject  # the guards compare tensors by name
        looks = _looks(job, reference, identity, windows, failures, arrays, policy, determinism)
        measured = _measure(job, aligned, windows, arrays, policy, looks)
        measured.timings["invariants"] += round(seconds, 3)
        shift = token_shift(arrays, measured.arms["final"])
        excerpts = excerpts_of(
            job.excerpts, windows, baseline.folder, arrays.top, measured.arms["final"]
        )
    if reads_alike(failures):  # one tokenizer, whatever the files spell it like
        identity = replace(identity, tokenizer_sha256=tokenizer_digest(baseline.folder))
    run = identity, windows, failures, measured
    _write(job, reference, run, shift, excerpts, policy, determinism)


def _looks(
    job: Job,
    reference: Reference,
    identity: Identity,
    windows: RunWindows,
    failures: Sequence[Failure],
    arrays: ReferenceArrays,
    policy: Policy,
    determinism: dict[str, Any],
) -> Looks | None:
    """When the measurement of a control may end: where the report that would be written fails, and
    shows what the scenario asks for. None: with the last window."""
    from invarlock.cli.evaluate_record import Result, comparison_for
    from invarlock.metrics.looks import SHARES
    from invarlock.reporting.evaluation import evaluation_report
    from invarlock.reporting.outcome import FAIL, outcome
    from invarlock.run.measure import Looks
    from invarlock.run.report import token_shift
    from invarlock.verdict.detectors import settled

    if not job.early_decision:
        return None

    def decides(measured: Measurement, share: float) -> bool:
        shift = token_shift(arrays, measured.arms["final"])
        run = identity, windows, failures, measured
        subject = _run_report(job, reference, run, shift, policy, determinism)
        result = Result(reference.report, subject, "reported", shift=shift, share=share)
        report = evaluation_report(comparison_for(job, result), policy)
        return outcome(report) == FAIL and settled(job.entry.get("requirements", {}), report)

    return Looks(SHARES, decides)


def _source(job: Job, baseline: Checkpoint, subject: Checkpoint) -> Source | None:
    """Hidden states of the baseline that the subject's pass may start from: none where what a pass
    takes is to be compared with what the baseline's took."""
    from invarlock.run.hidden_states import Source, first_changed

    wanted = job.hidden_states_mb and not job.telemetry
    changed = first_changed(baseline, subject) if wanted else None
    return None if changed is None else Source(job.reference, baseline.digest(), changed)


def _evaluate_server(
    job: Job,
    baseline: Checkpoint,
    windows: RunWindows,
    reference: Reference,
    policy: Policy,
    determinism: dict[str, Any],
) -> None:
    """The same of a running server, of which only losses are seen."""
    from invarlock.run.server import identity_of, measure_server
    from invarlock.scenarios import CUSTOM_SPEC

    server, measured = measure_server(job.backend, baseline.folder, windows)
    identity = replace(
        identity_of(server, baseline), tokenizer_sha256=baseline.identity().tokenizer_sha256
    )
    job = replace(job, edit_label=job.edit_label or CUSTOM_SPEC)
    _write(job, reference, (identity, windows, [], measured), None, (), policy, determinism)


def _take_device(job: Job) -> None:
    """Wait for the job's GPUs, if it is to; its time limit stands still meanwhile."""
    if job.gpus:
        _leased(job.device, job.gpus)


@functools.cache  # once in a process, which then keeps the locks to its end
def _leased(device: str, gpus: int) -> tuple[int, ...]:
    left, _ = signal.setitimer(signal.ITIMER_REAL, 0)
    held = lease(device, gpus)
    signal.setitimer(signal.ITIMER_REAL, left)
    return held


def _measure(
    job: Job,
    checkpoint: Checkpoint,
    windows: RunWindows,
    against: ReferenceArrays | None,
    policy: Policy | None,
    looks: Looks | None = None,
    keep: Place | None = None,
) -> Measurement:
    from invarlock.run.measure import measure_checkpoint

    return measure_checkpoint(
        checkpoint,
        windows,
        job.target(),
        token_budget=job.token_budget,
        against=against,
        policy=policy,
        looks=looks,
        keep=keep,
    )


def _settings(job: Job, edit: str) -> Any:
    from invarlock.cli.edit_config import read_edit_config
    from invarlock.run.report import RunSettings

    config = job.edit_config if edit != "noop" else None
    return RunSettings(
        model_id=job.model_id,
        seed=job.seed,
        token_budget=job.token_budget,
        profile=job.profile,
        tier=job.tier,
        edit_name=edit,
        scenario=job.scenario_id if edit != "noop" else None,
        accepted=job.accept if edit != "noop" else (),
        edit_config=read_edit_config(config).recorded if config else None,
        telemetry=job.telemetry,
    )


def _run_baseline(
    job: Job, baseline: Checkpoint, windows: RunWindows, determinism: dict[str, Any]
) -> None:
    from invarlock.policy import load_policy
    from invarlock.run.hidden_states import Place
    from invarlock.run.report import run_report, write_reference, write_run

    keep = Place(job.reference, baseline.digest(), job.hidden_states_mb * 10**6)
    measured = _measure(job, baseline, windows, None, None, keep=keep)
    settings, identity = _settings(job, "noop"), baseline.identity()
    policy = load_policy(job.tier)
    report = run_report(settings, identity, windows, [], measured, determinism, policy)
    write_reference(job.reference, measured)
    write_run(job.reference, report)


def _write(
    job: Job,
    reference: Reference,
    run: tuple[Identity, RunWindows, Sequence[Failure], Measurement | None],
    shift: TokenShift | None,
    excerpts: Sequence[Mapping[str, Any]],
    policy: Policy,
    determinism: dict[str, Any],
) -> None:
    from invarlock.cli.evaluate_record import Result, write_results
    from invarlock.run.report import write_run

    report = _run_report(job, reference, run, shift, policy, determinism, excerpts)
    measured = run[3]
    job.out.mkdir(parents=True, exist_ok=True)
    write_run(job.out, report)
    if job.edit_metadata:
        write_bytes(job.out / job.edit_metadata.name, read_bytes(job.edit_metadata))
    write_results(
        job,
        Result(
            baseline=reference.report,
            subject=report,
            status="reported" if measured else "rejected_by_invariants",
            shift=shift,
            excerpts=excerpts,
            timings=measured.timings if measured else {},
            memory_mb=measured.memory_mb if measured else {},
            share=measured.share if measured else None,
        ),
    )


def _run_report(
    job: Job,
    reference: Reference,
    run: tuple[Identity, RunWindows, Sequence[Failure], Measurement | None],
    shift: TokenShift | None,
    policy: Policy,
    determinism: dict[str, Any],
    excerpts: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """The report of the subject's run, with what was measured against the baseline's."""
    from invarlock.run.report import against, run_report

    settings = _settings(job, job.edit_label)
    report = run_report(settings, *run, determinism, policy)
    return report | against(reference.report, shift, policy, excerpts)


def main() -> int:
    """Read the job from standard input; expected errors become one line and their exit code."""
    _die_with_parent()
    job = from_json(Job, json.load(sys.stdin))
    try:
        work(job)
    except InvarlockError as error:
        if os.environ.get(DEBUG):
            traceback.print_exc()
        print(f"invarlock evaluate: {error}", file=sys.stderr)
        return EXIT_NOT_LOADED if isinstance(error, LoadingError) else error.exit_code
    except (MemoryError, OSError, RuntimeError) as error:
        if lacks_memory(error):
            told = next(iter(str(error).splitlines()), "")
            print(f"invarlock evaluate: out of memory: {told}", file=sys.stderr)
            return EXIT_OUT_OF_MEMORY
        if not isinstance(error, OSError):
            raise
        print(f"invarlock evaluate: {error.filename}: {error.strerror or error}", file=sys.stderr)
        return InputError.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
