"""Thousands of evaluations: what the rules pass to one command still fits into one."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from repository_copy import ROOT, link_repository, snakemake
from test_workflow import SMOLLM2

from invarlock.scenarios import load_catalogue

RUNS = 24
ARGUMENT = 128 * 1024  # bytes of one argument on Linux; a shell's command line is one


def test_every_evaluation_is_named_in_a_short_command(tmp_path: Path) -> None:
    """The verdict, the timings and the pages get each folder once, in order, by bash's own braces;
    the length of the command follows the scenarios, not the evaluations."""
    repository = link_repository(tmp_path / "a folder")
    out = repository / "evidence_pack_runs/it's here"
    runs = f"runs={{clean: {RUNS}, stress: {RUNS}, error_injection: 1}}"
    config = ["suite=smoke", f"out={out}", runs, "defer_rendering=true"]
    done = snakemake(repository, "-n", "-p", "--profile", "profiles/cpu", "--config", *config)
    assert done.returncode == 0, done.stderr[-3000:]
    scenarios = load_catalogue(ROOT / "scenarios/scenarios.json").select("smoke", ())
    expected = [
        out / SMOLLM2 / "reports" / scenario.id / f"run_{n}"
        for scenario in scenarios
        for n in range(1, 2 if scenario.is_error else RUNS + 1)
    ]
    pattern = r"python -m invarlock (?:verdict|advanced (?:analyze timings|pages)) .*"
    commands = re.findall(pattern, done.stdout + done.stderr)
    assert len(commands) == 3
    for command in commands:
        assert len(command) < ARGUMENT / 20 < sum(len(str(folder)) for folder in expected)
        echoed = command.partition(" > ")[0].replace("python -m invarlock", "printf '%s\\n'")
        words = subprocess.run(["bash", "-c", echoed], capture_output=True, text=True, check=True)
        named = [Path(word) for word in words.stdout.splitlines() if "/run_" in word]
        folders = [p.parent if p.name.endswith(".json") else p for p in named]
        assert sorted(folders) == sorted(expected)
