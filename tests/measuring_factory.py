"""A tiny model with windows and a measured baseline, for tests of `run` and `evaluate`."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import warm
from checkpoint_factory import make_llama
from report_factory import Document, catalogue, digest
from safetensors.torch import load_file, save_file

from invarlock.cli import main
from invarlock.windows import WindowPlan, make_windows, write_windows

PYTHON = sys.executable
SEQ_LEN, ARM = 140, 180  # the smallest windows and arms that meet the balanced tier's floors
SETTINGS = ("--device", "cpu", "--dtype", "float32", "--model-id", "acme/tiny")
# Everything that must come out the same a second time; runtime.manifest.json holds timings.
FILES = ("report.json", "events.jsonl", "evaluation.report.json", "outcome.json")


@dataclass(frozen=True)
class World:
    """A folder with a baseline checkpoint, its windows and its run."""

    root: Path

    @property
    def baseline(self) -> Path:
        """The baseline checkpoint."""
        return self.root / "baseline"

    @property
    def windows(self) -> Path:
        """180 + 180 windows of 140 tokens."""
        return self.root / "windows.json"

    @property
    def run(self) -> Path:
        """The run of the baseline."""
        return self.root / "run"

    def command(self, subject: Path, out: Path, *more: str) -> list[str]:
        """An `evaluate` command line with the baseline's run."""
        return self.fresh(subject, out, "--baseline-report", str(self.run), *more)

    def fresh(self, subject: Path, out: Path, *more: str) -> list[str]:
        """An `evaluate` command line that has to measure the baseline itself."""
        paths = ["--baseline", str(self.baseline), "--subject", str(subject)]
        paths += ["--windows", str(self.windows), "--out", str(out)]
        return ["evaluate", *paths, *SETTINGS, *more]

    def evaluate(self, subject: Path, out: Path, *more: str) -> int:
        """Evaluate a subject against the baseline's run; the exit code."""
        return main_forking(self.command(subject, out, *more))


def main_forking(words: list[str]) -> int:
    """A command in this process, whose own processes are forks, unless a test has put another
    program in their place; its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        if sys.executable == PYTHON:
            patch.setattr(sys, "executable", warm.python())
        return main(words)


def documents(n: int = 40, words: int = 620) -> list[str]:
    """Seeded nonsense, different in every document."""
    rng = random.Random(11)
    letters = "etaoinshrdlu"
    return [
        " ".join("".join(rng.choices(letters, k=rng.randint(2, 7))) for _ in range(words))
        for _ in range(n)
    ]


def write_tiny_windows(folder: Path, path: Path, plan: WindowPlan) -> None:
    """Cut ``plan`` from :func:`documents` with the tokenizer of ``folder``."""
    source: Document = {"kind": "local", "name": "nonsense", "version": None, "revision": None}
    source |= {"config": None, "split": None, "field": "text", "max_samples": None}
    source["files"] = {"nonsense.txt": {"bytes": 1, "sha256": digest("nonsense")}}
    write_windows(path, make_windows(folder, documents(), plan, source))


WINDOWS = WindowPlan(SEQ_LEN, ARM, ARM, 43)
FEW = WindowPlan(32, 12, 12, 43)  # below every floor, for what is not about the result


def make_world(root: Path, plan: WindowPlan = WINDOWS) -> World:
    """Make the checkpoint and the windows, and measure the baseline in a process of its own."""
    world = World(root)
    make_llama(world.baseline, hidden=32, seed=1)
    write_tiny_windows(world.baseline, world.windows, plan)
    measure(world.baseline, world.windows, world.run)
    return world


def measure(model: Path, windows: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """`invarlock run`, which has to set the environment before torch is imported."""
    command = [warm.python(), "-m", "invarlock", "run", "--model", str(model)]
    command += ["--windows", str(windows), "--out", str(out), *SETTINGS, *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not more and done.returncode != 0:
        raise AssertionError(done.stderr)
    return done


def change(folder: Path, edit: Callable[[Document], object]) -> Path:
    """Change the dict of tensors of a checkpoint in place; returns the folder."""
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def entry(scenario: str) -> str:
    """A scenario's catalogue entry as the command line takes it."""
    found = next(s for s in catalogue().select("smoke", ()) if s.id == scenario)
    return json.dumps(dict(found.entry))


def read(folder: Path, name: str = "evaluation.report.json") -> Document:
    """A JSON file of an evaluation."""
    document: Document = json.loads((folder / name).read_text())
    return document
