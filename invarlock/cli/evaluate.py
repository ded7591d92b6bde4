"""Measure a subject checkpoint and compare it with its baseline on the same windows."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO

from invarlock.cli.edit_config import EditConfig, label_of_folder, read_edit_config
from invarlock.cli.evaluate_record import record_failure, summary_line, telemetry_line
from invarlock.cli.job import EXIT_NOT_LOADED, EXIT_OUT_OF_MEMORY, EvaluateOptions, Job
from invarlock.cli.options import to_json
from invarlock.digests import SWITCH as DIGESTS
from invarlock.errors import ConfigError, InputError, InvarlockError, MeasurementError
from invarlock.files import parse_json, read_json, read_json_object, write_json
from invarlock.guards.guard import NO_WEIGHTS
from invarlock.model_folder import open_model, refuse_unusable
from invarlock.policy import POLICY_PACK
from invarlock.reporting.assurance import require_strict_possible
from invarlock.reporting.probes import CONTRACTS
from invarlock.reporting.telemetry import telemetry_wanted
from invarlock.run import finished, forkserver
from invarlock.run.accept import check_accept
from invarlock.run.container import Execution, detect
from invarlock.scenarios import label_of_entry
from invarlock.subject_metadata import check_subject_metadata

OPTIONS = EvaluateOptions
WORKER = "invarlock.cli.evaluate_worker"  # the measuring process
NOT_MEASURED = ("crashed", "out_of_memory", "timeout")
BATCH_STARTS = 3  # of one in a batch whose memory runs out: nobody starts it alone again
REFUSED = ".refused.json"  # in the folder of results: exit code and line of a refused request
# Everything that this command, and what renders its results, writes in that folder.
RESULTS = (
    "outcome.json", "report.json", "events.jsonl", "evaluation.report.json",
    "runtime.manifest.json", POLICY_PACK, "evaluation.html", "evaluation.md", "verify.json",
    *CONTRACTS,
)  # fmt: skip


def main(options: EvaluateOptions) -> int:
    """Run the worker, classify how it ended, and show the result."""
    check_options(options)
    for name in RESULTS:  # of an earlier subject: no answer about this one, also if it is refused
        (options.out / name).unlink(missing_ok=True)
    refused = options.out / REFUSED
    if options.attempt > 1 and refused.is_file():  # a scheduler starts again whatever ended
        code, line = read_json(refused)
        if code == EXIT_NOT_LOADED and options.record_failure:
            return _record(replace(_job(options), attempt=1), code, line)  # the one that was made
        print(f"invarlock evaluate: {line} (not tried again)", file=sys.stderr)
        return InputError.exit_code if code == EXIT_NOT_LOADED else int(code)
    refused.unlink(missing_ok=True)
    try:
        job = _job(options)
    except (ConfigError, InputError) as error:
        _remember(refused, error.exit_code, str(error))
        raise
    if options.finished is None:
        return _evaluate(job, options)
    return _finish(job, options, options.finished)


def _finish(job: Job, options: EvaluateOptions, folder: Path) -> int:
    """Measure what no earlier start of the whole batch has finished."""
    unsaid = ("attempt", "record_failure", "finished", "config_record")  # they change no result
    said = {name: value for name, value in to_json(job).items() if name not in unsaid}
    given = (getattr(job, name) for name in said if name != "out")
    place = finished.place(folder, said, [path for path in given if isinstance(path, Path)])
    if finished.publish(place, job.out):
        print(f"{summary_line(job.out)} (finished at an earlier start)")
        return 0
    code = _evaluate(job, options)
    if code == 0 and read_json_object(job.out / "outcome.json")["status"] not in NOT_MEASURED:
        metadata = [job.edit_metadata.name] if job.edit_metadata else []
        finished.keep(place, job.out, [*RESULTS, *metadata])
    return code


def _remember(path: Path, code: int, line: str) -> None:
    """Keep why the request is refused, so that another start does not measure to say the same."""
    with contextlib.suppress(InvarlockError, OSError):  # the refusal itself is what matters
        if path.parent.is_dir():
            write_json(path, [code, line])


def _evaluate(job: Job, options: EvaluateOptions) -> int:
    """Measure. What goes wrong here is no fault of the request: another start may help."""
    starts = max(1, options.attempt, BATCH_STARTS if options.finished else 1)
    for attempt in range(1, starts + 1):
        # whatever ended an earlier start (a scheduler too), the whole batch comes first
        job = replace(
            job, attempt=attempt, token_budget=max(1, options.token_budget >> attempt - 1)
        )
        before = oom_kills()
        code, error = _supervise(job, options.timeout_minutes * 60)
        if code == -signal.SIGKILL:
            error = how_killed(before, oom_kills())
        if _status(code) != "out_of_memory":
            break
    error = error.removeprefix("invarlock evaluate: ")
    if code in (2, 3):  # the worker has already said what is wrong with the request
        _remember(job.out / REFUSED, code, error)
        return code
    if code == EXIT_NOT_LOADED:
        if not options.record_failure:
            _remember(job.out / REFUSED, code, error)
            return InputError.exit_code
        return _record(job, code, error)
    if code != 0:
        status = _status(code)
        line = f"the subject could not be measured: {status} ({error})"
        # a server that was not there says nothing of what it serves, and is asked again
        if not options.record_failure or options.backend:
            raise MeasurementError(line, where=job.named, hint="repeat the command to try again")
        return _record(job, code, error)
    print(summary_line(job.out))
    if telemetry_wanted(os.environ):
        print(telemetry_line(job.out))
    return 0


def _record(job: Job, code: int, error: str) -> int:
    """Record that the subject could not be measured; the exit code of that."""
    error = error.removeprefix(f"{job.named}: ")  # no path: it is of this machine
    record_failure(job, _status(code), code, error)
    print(f"{_status(code)}: {error}")
    return 0


def check_options(options: EvaluateOptions) -> None:
    """What is misspelt must not cost a measurement, nor the results that are there.

    Raises:
        ConfigError: see :meth:`EvaluateOptions.check_judging`.
    """
    options.check_judging()
    if bool(options.subject) is bool(options.backend):
        both = "both" if options.subject else "neither"
        raise ConfigError("name a subject or a backend", expected="one of the two", found=both)
    if options.backend:
        from invarlock.run.server import Address

        Address.read(options.backend)
        if options.assurance == "strict":
            raise ConfigError(
                f"strict assurance is about weights too: {NO_WEIGHTS}", where="--backend",
                hint="use --assurance off, or name the folder that is served with --subject",
            )  # fmt: skip
        if options.accept:
            raise ConfigError("--accept is about files, which a server does not show")
    if options.baseline_report and options.baseline_report.resolve() == options.out.resolve():
        raise ConfigError(
            "--out is the folder of the baseline's run", where=str(options.out), hint="name another"
        )


def _job(options: EvaluateOptions) -> Job:
    execution = _execution(options)
    open_model(options.baseline)
    if options.subject:
        refuse_unusable(options.subject, options.baseline, options.allowed)
    if options.accept and options.subject:
        check_accept(options.accept, options.baseline, options.subject, "--accept")
    scenario = _scenario(options.scenario)
    for file in (options.edit_metadata, options.config_record):
        if file and not file.is_file():
            raise InputError("no such file", where=str(file))
    if scenario and options.edit_metadata:
        metadata = read_json_object(options.edit_metadata)
        check_subject_metadata(scenario, metadata, str(options.edit_metadata))
    named = read_edit_config(options.edit_config) if options.edit_config else EditConfig("", {})
    if options.edit_label and named.label not in ("", options.edit_label):
        raise ConfigError(
            "--edit-label and --edit-config name two edits",
            expected=options.edit_label,
            found=named.label,
        )
    label = options.edit_label or label_of_entry(scenario) or named.label
    of_folder = label_of_folder(options.subject) if options.subject else ""
    if not (label or scenario) and (label := of_folder):
        line = f"edit label {label}, by the folder's name; name another with --edit-label"
        print(f"invarlock evaluate: {line}", file=sys.stderr)
    reference = options.baseline_report
    if reference and not (reference / "report.json").is_file():
        raise InputError("no run of the baseline is there", where=str(reference))
    return Job(
        **vars(
            replace(
                options,
                model_id=options.name_of(options.baseline),
                baseline_report=options.reference,
                edit_label=label,
                scenario=json.dumps(scenario, sort_keys=True) if scenario else "",
                gpus=max(1, options.gpus),
                telemetry=options.telemetry or telemetry_wanted(os.environ),
            )
        ),
        image_ref=execution.image_ref,
        image_digest=execution.image_digest,
    )


def _execution(options: EvaluateOptions) -> Execution:
    """Where this runs; refused where the caller demands an image and this is not it."""
    host = options.execution_mode == "host"
    if host and options.require_container:
        raise ConfigError("--execution-mode host goes without --require-container")
    execution = Execution(reason="--execution-mode host") if host else detect(options.image)
    if options.assurance == "strict":
        require_strict_possible(options.profile, options.tier, execution)
        os.environ[DIGESTS] = "none"  # every byte that the claim is about is read
    if options.execution_mode == "container" and execution.reason:
        raise ConfigError(
            f"--execution-mode container, and this is not the image: {execution.reason}",
            hint="measure in it: snakemake --profile profiles/container, or "
            "apptainer exec images/invarlock-runtime.sif invarlock evaluate ... --image FILE",
        )
    if options.require_container and execution.reason:
        raise ConfigError(
            f"host execution is not allowed, and this is not the image: {execution.reason}",
            hint="use the container profile, or allow_host_execution: true",
        )
    if options.image and execution.reason and not host:
        line = f"recorded as {execution.mode}: {execution.reason}"
        print(f"invarlock evaluate: warning: {line}", file=sys.stderr)
    return execution


def _scenario(text: str) -> dict[str, Any]:
    """The catalogue entry given on the command line; empty when none is."""
    if not text:
        return {}
    try:
        entry = parse_json(text.encode(), "--scenario")
    except InputError as error:
        raise ConfigError(str(error)) from error
    if not isinstance(entry, dict) or not isinstance(entry.get("id"), str):
        raise ConfigError("not a catalogue entry", where="--scenario", expected="an object with id")
    return entry


def _supervise(job: Job, timeout_seconds: float, share: bool = True) -> tuple[int, str]:
    """Run the worker to its end; return its exit code and the last line it wrote to stderr.

    A crash of the measuring process must not take the record of it along, and nothing that
    happens there may be mistaken for a result. The kernel ends the worker when its time is over;
    the worker lets the clock stand still while it waits for a GPU.

    Args:
        job: what to measure.
        timeout_seconds: the time of the worker; 0: it has no end.
        share: take a child of the run's fork server, where the run has one.
    """
    running: list[forkserver.Child | subprocess.Popen[bytes]] = []

    def stop(number: int, _: FrameType | None) -> None:
        for worker in running:
            worker.kill()
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    try:
        reader, writer = os.pipe()
        with open(reader, errors="replace") as said, tempfile.TemporaryFile() as given:
            given.write(json.dumps(to_json(job)).encode())
            given.seek(0)
            try:
                running.append(_start(job, timeout_seconds, given, writer, share))
            finally:
                os.close(writer)
            stderr = said.read()
        code = running[0].wait()
    except forkserver.NoServer as error:
        forkserver.tell(error)
        return _supervise(job, timeout_seconds, share=False)
    except KeyboardInterrupt:
        for worker in running:
            worker.kill()
        raise
    sys.stderr.write(stderr)
    if code == -signal.SIGTERM:  # a scheduler ends all processes of a job at once
        stop(signal.SIGTERM, None)
    if code == -signal.SIGALRM:
        return 124, f"no result after {timeout_seconds / 60:g} minutes"
    lines = [line for line in stderr.splitlines() if line.strip()]
    return code, lines[-1][:300] if lines else f"exit code {code}"


def _start(
    job: Job, seconds: float, given: BinaryIO, errors: int, share: bool
) -> forkserver.Child | subprocess.Popen[bytes]:
    """The measuring process, which reads ``given``: a child of the run's fork server, or ours.

    Raises:
        NoServer: the run has a server, and it does not answer.
    """
    if share and forkserver.wanted():
        listed = read_json_object(job.baseline / "config.json").get("architectures")
        classes = tuple(map(str, listed)) if isinstance(listed, list) else ()
        setting = forkserver.Setting(job.determinism, job.threads, job.allow_network)
        call = forkserver.Call(WORKER, seconds=seconds, classes=classes)
        return forkserver.start(call, setting, (given.fileno(), 1, errors))
    return subprocess.Popen(
        [sys.executable, "-m", WORKER],
        stdin=given,
        stderr=errors,
        # the timer survives the start of the program; this process has one thread
        preexec_fn=lambda: signal.setitimer(signal.ITIMER_REAL, seconds),  # noqa: PLW1509
    )


def _status(code: int) -> str:
    """Outcome status of a worker that did not measure."""
    if code == 124:
        return "timeout"
    # SIGKILL from outside is, in practice, whoever watches over memory; the line says how sure
    return "out_of_memory" if code in (EXIT_OUT_OF_MEMORY, -signal.SIGKILL) else "crashed"


def how_killed(before: int | None, after: int | None) -> str:
    """The line for a worker that ended by SIGKILL, given the kernel's counts around it.

    The kernel counts the processes that it kills for memory; schedulers and daemons that watch
    memory kill too, and nothing counts that.
    """
    if before is not None and after is not None and after > before:
        return "killed by the kernel (signal 9) because memory ran out"
    return "killed (signal 9), perhaps because memory ran out"


def oom_kills(root: Path = Path("/")) -> int | None:
    """Processes that the kernel killed for memory: in this control group, else on this machine.

    None where neither is told.
    """
    places = [root / "proc/vmstat"]
    try:
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if not controllers:  # version 2; its folder is the root of what a container sees
                places.insert(0, root / "sys/fs/cgroup" / group.lstrip("/") / "memory.events")
            elif controllers == "memory":
                folder = root / "sys/fs/cgroup/memory" / group.lstrip("/")
                places.insert(0, folder / "memory.oom_control")
    except (OSError, ValueError):
        pass
    for place in places:
        with contextlib.suppress(OSError, ValueError):
            counts = dict(line.split() for line in place.read_text().splitlines())
            if "oom_kill" in counts:
                return int(counts["oom_kill"])
    return None
