"""The measurements behind docs/results.md: clean edits and damage of the embedded model.

Every step is a command of the package. A step is skipped when its output is there and was made
by the same words and the same code from steps of which this holds too (the code is not asked when
results are to be kept); an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from detection_plan import CALIBRATION_SEEDS, ROOT, Plan

from invarlock.code_digest import code_digest
from invarlock.files import digest_json, read_json_object, write_json
from invarlock.scenarios import Scenario

PACKAGE = ("invarlock", "config", "scenarios", "contracts")


@dataclass(frozen=True)
class Stamp:
    """What a step is made of."""

    words: str  # digest of the command and of those before it
    code: str  # digest of the modules behind all of them
    commit: str  # at which it was made


class Runner:
    """Runs commands of the package, each once."""

    def __init__(self, work: Path, keep: bool) -> None:
        self.work, self.keep = work, keep
        self.done: dict[str, Stamp] = {}
        self.commit = commit()
        work.mkdir(parents=True, exist_ok=True)
        # Inherited by every command: what an interrupted run left going is waited for.
        self.lock = os.open(work / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(self.lock, fcntl.LOCK_EX)

    def stamp(self, words: Sequence[object], needs: Sequence[Stamp]) -> Stamp:
        """What a step is made of, after the steps it needs."""
        verb = str(words[1] if words[0] == "advanced" else words[0])
        modules = ("evaluate", "evaluate_worker", "evaluate_record")
        code = code_digest(
            *(f"invarlock.cli.{m}" for m in (modules if verb == "evaluate" else (verb,)))
        )
        return Stamp(
            digest_json([[str(w) for w in words], [n.words for n in needs]]),
            digest_json([code, [n.code for n in needs]]),
            self.commit,
        )

    def is_done(self, name: str, stamp: Stamp, made: Path) -> bool:
        """Whether the step's output is there and of this stamp, whatever the commit."""
        there = read_stamp(self.work, name) if made.exists() else None
        if there is None or there.words != stamp.words:
            return False
        return self.keep or there.code == stamp.code

    def mark(self, name: str, stamp: Stamp) -> None:
        """Say that the step is done."""
        write_json(self.work / "done" / f"{name}.json", dataclasses.asdict(stamp))

    def step(self, name: str, words: Sequence[object], made: Path, needs: Sequence[str]) -> None:
        """Run a command of the package unless that was done."""
        stamp = self.stamp(words, [self.done[n] for n in needs])
        if not self.is_done(name, stamp, made):
            self.run(name, words)
            self.mark(name, stamp)
        self.done[name] = stamp

    def run(self, name: str, words: Sequence[object]) -> None:
        """Run a command of the package; what it says goes to a file of ``logs``."""
        log = self.work / "logs" / f"{name}.log"
        log.parent.mkdir(exist_ok=True)
        started = time.monotonic()
        with log.open("w") as out:
            code = subprocess.run(
                [sys.executable, "-m", "invarlock", *map(str, words)],
                check=False,
                cwd=ROOT,
                stdout=out,
                stderr=subprocess.STDOUT,
                pass_fds=(self.lock,),
            ).returncode
        if code != 0:
            raise SystemExit(f"{name} ended with {code}:\n{log.read_text()[-1500:]}")
        print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)


def read_stamp(work: Path, name: str) -> Stamp | None:
    """The stamp that a step left."""
    mark = work / "done" / f"{name}.json"
    return Stamp(**read_json_object(mark)) if mark.is_file() else None


def commit() -> str:
    """The commit, and whether the package differs from it."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(ROOT), *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", *PACKAGE)
        state = "package changed since" if changed else "package as committed"
        return f"{git('rev-parse', 'HEAD')} ({state})"
    except (OSError, subprocess.CalledProcessError):
        return "unknown (not a git checkout)"


def in_parallel(jobs: Sequence[Callable[[], None]]) -> None:
    """Run jobs, one a core; the first that fails ends the run."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        waiting = [pool.submit(job) for job in jobs]
        try:
            for job in as_completed(waiting):
                job.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def run_all(plan: Plan, keep: bool = False) -> None:
    """Everything that the page shows; ``keep``: what older code made is good enough."""
    print(f"results in {plan.work}; what is there already is not made again", flush=True)
    runner = Runner(plan.work, keep)
    prepare(plan, runner)
    seeds = tuple(f"seed_{n}" for n in plan.seeds)
    clean = [Subject(plan, runner, s, s.id, seeds) for s in plan.clean]
    damage = [
        Subject(plan, runner, c.scenario, c.name, (plan.windows_of(c),), c.parameters)
        for c in plan.damage
        if c.parameters is not None
    ]
    in_parallel([subject.evaluate for subject in (*clean, *damage)])


def arithmetic(plan: Plan) -> list[object]:
    """How everything is measured; evaluations run side by side, each on one core."""
    return ["--model-id", plan.model_id, "--threads", 1]


def prepare(plan: Plan, runner: Runner) -> None:
    """Baseline, windows, runs of the baseline, and the preset."""
    work, model = plan.work, plan.work / "baseline"
    revisions, named = work / "model_revisions.json", f"{plan.model_id}={plan.source}"
    pin = ["pin", "--suite", "results", "--model", named, "--text", plan.text, "--out", revisions]
    runner.step("pin", pin, revisions, [])
    record = work / "baseline.json"
    place = ["baseline", "--model", named, "--revisions", revisions, "--out", model]
    runner.step("baseline", [*place, "--record", record], model, ["pin"])
    cuts = {f"seed_{n}": (plan.arm, n) for n in plan.seeds}
    cuts["damage"] = (plan.damage_arm, plan.seeds[0])
    calibration = [f"calibration_{n}" for n in CALIBRATION_SEEDS]
    pairs = zip(calibration, CALIBRATION_SEEDS, strict=True)
    for name, (arm, seed) in (cuts | {c: (plan.calibration_arm, n) for c, n in pairs}).items():
        made = work / "windows" / f"{name}.json"
        cut = ["windows", "--tokenizer", model, "--text", plan.text, "--revisions", revisions]
        cut += ["--seq-len", plan.seq_len, "--preview", arm, "--final", arm, "--seed", seed]
        runner.step(f"windows-{name}", [*cut, "--out", made], made, ["baseline"])

    def baseline_run(name: str) -> Callable[[], None]:
        made = work / "runs" / name
        run = ["run", "--model", model, "--windows", work / "windows" / f"{name}.json"]
        run += [*arithmetic(plan), "--tier", "balanced", "--out", made]
        return partial(runner.step, f"run-{name}", run, made / "report.json", [f"windows-{name}"])

    stats, preset = work / "calibration_stats.json", work / "preset.json"
    files = [work / "windows" / f"{name}.json" for name in calibration]
    measure = ["advanced", "calibrate", "--baseline", model, "--windows", *files]
    measure += [*arithmetic(plan), "--out", stats]
    needs = [f"windows-{name}" for name in calibration]
    calibrate = partial(runner.step, "calibrate", measure, stats, needs)
    in_parallel([calibrate, *map(baseline_run, cuts)])
    derive = ["advanced", "preset", "--stats", stats, "--tier", "balanced"]
    derive += ["--out-yaml", work / "preset.yaml", "--out-json", preset]
    runner.step("preset", derive, preset, ["calibrate"])


@dataclass(frozen=True)
class Subject:
    """An edited checkpoint that exists only while it is evaluated."""

    plan: Plan
    runner: Runner
    scenario: Scenario
    name: str
    windows: tuple[str, ...]
    parameters: Mapping[str, Any] | None = None  # of a damage

    @property
    def folder(self) -> Path:
        """The checkpoint."""
        return self.plan.work / "subjects" / self.name

    def evaluate(self) -> None:
        """Make the checkpoint, evaluate it on all windows, remove it; nothing if all is there."""
        done = self.runner.done
        made = self.runner.stamp(self.making(), [done["baseline"]])
        todo = []
        for windows in self.windows:
            words = self.evaluating(windows)
            stamp = self.runner.stamp(words, [made, done["preset"], done[f"run-{windows}"]])
            outcome = self.plan.folder(self.name, windows) / "outcome.json"
            if not self.runner.is_done(f"{self.name}-{windows}", stamp, outcome):
                todo.append((f"{self.name}-{windows}", words, outcome, stamp))
        if not todo:
            return
        self.runner.run(f"make-{self.name}", self.making())
        for name, words, outcome, stamp in todo:
            self.runner.run(name, words)
            if read_json_object(outcome)["status"] in ("reported", "rejected_by_invariants"):
                self.runner.mark(name, stamp)
        shutil.rmtree(self.folder)

    def making(self) -> list[str]:
        """The command that makes the checkpoint."""
        if self.parameters is None:
            words = ["edit", "--spec", str(self.scenario.edit_spec)]
        else:
            parameters = json.dumps(self.parameters, sort_keys=True)
            words = ["inject", "--error-type", str(self.scenario.error_type)]
            words += ["--parameters", parameters]
        words += ["--baseline", str(self.plan.work / "baseline"), "--out", str(self.folder)]
        return [*words, "--metadata", f"{self.folder}.json"]

    def evaluating(self, windows: str) -> list[object]:
        """The command of an evaluation."""
        work, label = self.plan.work, self.scenario.error_type or self.scenario.edit_type
        words: list[object] = ["evaluate", "--baseline", work / "baseline"]
        words += ["--subject", self.folder, "--baseline-report", work / "runs" / windows]
        words += ["--windows", work / "windows" / f"{windows}.json", "--tier", "balanced"]
        words += ["--preset", work / "preset.json", *arithmetic(self.plan), "--edit-label", label]
        words += ["--edit-metadata", f"{self.folder}.json"]
        # a damaged checkpoint may fail to run; that a clean one does is an error
        words += ["--record-failure"] if self.parameters is not None else []
        return [*words, "--out", self.plan.folder(self.name, windows)]
