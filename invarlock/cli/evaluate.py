"""Measure a subject checkpoint and compare it with its baseline on the same windows."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from invarlock.agreement import check_subject_metadata
from invarlock.cli.judging import Thresholds, add_judging_options, check_judging_options
from invarlock.cli.measuring import add_measuring_options
from invarlock.digests import SWITCH as DIGESTS
from invarlock.errors import ConfigError, InputError, InvarlockError, MeasurementError
from invarlock.files import parse_json, read_json, read_json_object, write_json
from invarlock.model_folder import open_model, refuse_unusable
from invarlock.policy import check_profile
from invarlock.reporting.assurance import MODES, require_strict_possible
from invarlock.reporting.probes import CONTRACTS
from invarlock.reporting.telemetry import telemetry_wanted
from invarlock.run.accept import check_accept
from invarlock.run.container import Execution, detect
from invarlock.scenarios import CUSTOM_SPEC

EXIT_OUT_OF_MEMORY, EXIT_NOT_LOADED = 75, 76  # of the worker
REFUSED = ".refused.json"  # in the folder of results: exit code and line of a refused request
# Everything that this command, and what renders its results, writes in that folder.
RESULTS = (
    "outcome.json", "report.json", "events.jsonl", "evaluation.report.json",
    "runtime.manifest.json", "evaluation.html", "evaluation.md", "verify.json",
    *CONTRACTS,
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """Everything the measuring process needs; travels as JSON on its standard input."""

    baseline: str
    model_id: str
    device: str
    dtype: str
    token_budget: int
    threads: int
    determinism: str
    seed: int
    profile: str
    tier: str
    preset: str  # file, or empty
    tail_mode: str  # or empty: the tier's
    kl_mean_max: float  # nats; 0: the tier's
    flip_fraction_max: float
    replicates: int
    alpha: float
    image_ref: str
    image_digest: str  # empty: outside every image
    allow_network: bool
    allow_remote_code: bool
    # what one evaluation has for itself
    subject: str = ""
    baseline_report: str = ""
    windows: str = ""
    out: str = ""
    assurance: str = "off"
    edit_label: str = ""
    scenario: str = ""  # the catalogue entry as JSON, or empty
    edit_metadata: str = ""
    accept: Sequence[str] = ()  # names of findings of the invariants that do not refuse it
    config_record: str = ""  # file, or empty
    run: int = 1
    attempt: int = 1  # the batch is halved at each from 2 on
    gpus: int = 0  # to wait for once they are needed; 0: the process has what it needs

    @property
    def thresholds(self) -> Thresholds:
        """By what the subject is judged."""
        limits = self.kl_mean_max, self.flip_fraction_max
        return Thresholds(self.tier, self.preset, self.tail_mode, *limits)

    @property
    def execution(self) -> Execution:
        """Where the job runs, as the supervisor found out."""
        return Execution(self.image_ref, self.image_digest)


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of ``invarlock evaluate``."""
    add = parser.add_argument
    add("--baseline", type=Path, required=True, metavar="DIR", help="baseline checkpoint")
    add("--subject", type=Path, required=True, metavar="DIR", help="edited checkpoint")
    add(
        "--baseline-report",
        type=Path,
        metavar="DIR",
        help="folder of invarlock run on the baseline (default: measured first, in OUT/baseline)",
    )
    add_measuring_options(parser)
    add_judging_options(parser)
    add("--assurance", default="off", choices=MODES, help="strict makes the full claim")
    add(
        "--edit-label",
        default="",
        help="name of the edit (default: the scenario's; else noop where no weight differs, "
        "and custom where one does)",
    )
    add(
        "--accept",
        default=[],
        type=_names,
        metavar="NAME[,NAME]",
        help="differences of the subject that are meant: chat_template, generation_config, "
        "tokenizer_config, special_tokens, a field of config.json ...; the report says so",
    )
    add("--scenario", default="", metavar="JSON", help="the scenario's catalogue entry")
    add("--edit-metadata", type=Path, metavar="FILE", help="metadata to keep with the report")
    add("--run-number", type=int, default=1, metavar="N")
    add("--timeout-minutes", type=float, default=0, metavar="M", help="0: none (default)")
    add(
        "--attempt",
        type=int,
        default=1,
        metavar="N",
        help="how often this was started: when memory runs out, the batch is halved N - 1 times",
    )
    add(
        "--record-failure",
        action="store_true",
        help="when the subject cannot be measured, record that as the outcome and exit 0",
    )
    add(
        "--require-container",
        action="store_true",
        help="refuse to run outside the container image that was resolved",
    )
    add(
        "--image",
        type=Path,
        metavar="FILE",
        help="the container image, resolved outside of it (invarlock advanced provenance image)",
    )
    add("--config-record", type=Path, metavar="FILE", help="effective configuration, to be named")


def _names(text: str) -> list[str]:
    """``A,B`` as sorted names, each once."""
    return sorted({word.strip() for word in text.split(",") if word.strip()})


def main(args: argparse.Namespace) -> int:
    """Run the worker, classify how it ended, and show the result."""
    check_options(args)
    for name in RESULTS:  # of an earlier subject: no answer about this one, also if it is refused
        (args.out / name).unlink(missing_ok=True)
    refused = args.out / REFUSED
    if args.attempt > 1 and refused.is_file():  # a scheduler starts again whatever ended
        code, line = read_json(refused)
        if code == EXIT_NOT_LOADED and args.record_failure:
            return _record(_job(args), code, line)
        print(f"invarlock evaluate: {line} (not tried again)", file=sys.stderr)
        return InputError.exit_code if code == EXIT_NOT_LOADED else int(code)
    refused.unlink(missing_ok=True)
    try:
        job = _job(args)
    except (ConfigError, InputError) as error:
        _remember(refused, error.exit_code, str(error))
        raise
    return _evaluate(job, args)


def _remember(path: Path, code: int, line: str) -> None:
    """Keep why the request is refused, so that another start does not measure to say the same."""
    with contextlib.suppress(InvarlockError, OSError):  # the refusal itself is what matters
        if path.parent.is_dir():
            write_json(path, [code, line])


def _evaluate(job: Job, args: argparse.Namespace) -> int:
    """Measure. What goes wrong here is no fault of the request: another start may help."""
    for attempt in range(1, max(1, args.attempt) + 1):
        # whatever ended an earlier start (a scheduler too), the whole batch comes first
        job = replace(job, attempt=attempt, token_budget=max(1, args.token_budget >> attempt - 1))
        before = oom_kills()
        code, error = _supervise(job, args.timeout_minutes * 60)
        if code == -signal.SIGKILL:
            error = how_killed(before, oom_kills())
        if _status(code) != "out_of_memory":
            break
    error = error.removeprefix("invarlock evaluate: ")
    if code in (2, 3):  # the worker has already said what is wrong with the request
        _remember(Path(job.out) / REFUSED, code, error)
        return code
    if code == EXIT_NOT_LOADED:
        if not args.record_failure:
            _remember(Path(job.out) / REFUSED, code, error)
            return InputError.exit_code
        return _record(job, code, error)
    out = Path(job.out)
    if code != 0:
        status = _status(code)
        line = f"the subject could not be measured: {status} ({error})"
        if not args.record_failure:
            raise MeasurementError(line, where=job.subject, hint="repeat the command to try again")
        return _record(job, code, error)
    from invarlock.cli.evaluate_record import summary_line, telemetry_line

    print(summary_line(out))
    if telemetry_wanted(os.environ):
        print(telemetry_line(out))
    return 0


def _record(job: Job, code: int, error: str) -> int:
    """Record that the subject could not be measured; the exit code of that."""
    from invarlock.cli.evaluate_record import record_failure

    error = error.removeprefix(f"{job.subject}: ")  # no path: it is of this machine
    record_failure(job, _status(code), code, error)
    print(f"{_status(code)}: {error}")
    return 0


def check_options(args: argparse.Namespace) -> None:
    """What is misspelt must not cost a measurement, nor the results that are there.

    Raises:
        ConfigError: see :func:`check_profile` and :func:`check_judging_options`.
    """
    check_profile(args.profile)
    check_judging_options(args)
    if args.baseline_report and args.baseline_report.resolve() == args.out.resolve():
        raise ConfigError(
            "--out is the folder of the baseline's run", where=str(args.out), hint="name another"
        )


def _job(args: argparse.Namespace) -> Job:
    execution = _execution(args)
    open_model(args.baseline)
    refuse_unusable(args.subject, args.baseline)
    if args.accept:
        check_accept(args.accept, args.baseline, args.subject, "--accept")
    scenario = _scenario(args.scenario)
    for file in (args.edit_metadata, args.config_record):
        if file and not file.is_file():
            raise InputError("no such file", where=str(file))
    if scenario and args.edit_metadata:
        metadata = read_json_object(args.edit_metadata)
        check_subject_metadata(scenario, metadata, str(args.edit_metadata))
    reference = args.baseline_report or args.out / "baseline"
    if args.baseline_report and not (reference / "report.json").is_file():
        raise InputError("no run of the baseline is there", where=str(reference))
    return replace(
        common_job(args, execution),
        subject=str(args.subject),
        baseline_report=str(reference),
        windows=str(args.windows),
        out=str(args.out),
        assurance=args.assurance,
        edit_label=args.edit_label or _label(scenario),
        accept=args.accept,
        scenario=json.dumps(scenario, sort_keys=True) if scenario else "",
        edit_metadata=str(args.edit_metadata or ""),
        config_record=str(args.config_record or ""),
        run=args.run_number,
        gpus=max(1, args.gpus),
    )


def common_job(args: argparse.Namespace, execution: Execution) -> Job:
    """What the options of measuring and judging say of every evaluation of a baseline."""
    return Job(
        baseline=str(args.baseline),
        model_id=args.model_id or args.baseline.resolve().name,
        device=args.device,
        dtype=args.dtype,
        token_budget=args.token_budget,
        threads=args.threads,
        determinism=args.determinism,
        seed=args.seed,
        profile=args.profile,
        tier=args.tier,
        preset=str(args.preset or ""),
        tail_mode=args.tail_mode,
        kl_mean_max=args.kl_mean_max,
        flip_fraction_max=args.flip_fraction_max,
        replicates=args.replicates,
        alpha=args.alpha,
        image_ref=execution.image_ref,
        image_digest=execution.image_digest,
        allow_network=args.allow_network,
        allow_remote_code=args.allow_remote_code,
    )


def _execution(args: argparse.Namespace) -> Execution:
    """Where this runs; refused where the caller demands an image and this is not it."""
    execution = detect(args.image)
    if args.assurance == "strict":
        require_strict_possible(args.profile, args.tier, execution)
        os.environ[DIGESTS] = "none"  # every byte that the claim is about is read
    if args.require_container and execution.reason:
        raise ConfigError(
            f"host execution is not allowed, and this is not the image: {execution.reason}",
            hint="use the container profile, or allow_host_execution: true",
        )
    if args.image and execution.reason:
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


def _label(scenario: dict[str, Any]) -> str:
    """What a scenario does to the baseline; empty where the user brings the subject."""
    made = scenario.get("generation", {})
    done = str(made.get("edit_spec", "")).partition(":")[0] or made.get("error_type")
    return "" if done in (None, CUSTOM_SPEC) else str(done)


def _supervise(job: Job, timeout_seconds: float) -> tuple[int, str]:
    """Run the worker to its end; return its exit code and the last line it wrote to stderr.

    A crash of the measuring process must not take the record of it along, and nothing that
    happens there may be mistaken for a result. The kernel ends the worker when its time is over;
    the worker lets the clock stand still while it waits for a GPU.
    """
    worker = subprocess.Popen(
        [sys.executable, "-m", "invarlock.cli.evaluate_worker"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # the timer survives the start of the program; this process has one thread
        preexec_fn=lambda: signal.setitimer(signal.ITIMER_REAL, timeout_seconds),  # noqa: PLW1509
    )

    def stop(number: int, _: FrameType | None) -> None:
        worker.kill()
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    try:
        _, stderr = worker.communicate(json.dumps(asdict(job)))
    except KeyboardInterrupt:
        worker.kill()
        raise
    sys.stderr.write(stderr)
    if worker.returncode == -signal.SIGTERM:  # a scheduler ends all processes of a job at once
        stop(signal.SIGTERM, None)
    if worker.returncode == -signal.SIGALRM:
        return 124, f"no result after {timeout_seconds / 60:g} minutes"
    lines = [line for line in stderr.splitlines() if line.strip()]
    return worker.returncode, lines[-1][:300] if lines else f"exit code {worker.returncode}"


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


def from_json(document: dict[str, Any]) -> Job:
    """The job the supervisor sent."""
    return Job(**document)
