"""Thousands of evaluations: what the rules pass to one command still fits into one, and a plan is
not longer than somebody reads."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from repository_copy import ROOT, link_repository, snakemake
from test_workflow import SMOLLM2

from invarlock.scenarios import load_catalogue

RUNS = 24
LARGE = 40  # runs of each scenario of suite smoke: more than a thousand jobs
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


def test_a_plan_that_nobody_reads_is_counted(tmp_path: Path) -> None:
    """Of a thousand jobs and more, a dry run says how many and why; with -p it lists each, as
    it does a shorter plan without."""
    repository = link_repository(tmp_path / "folder")

    def planned(runs: int, *words: str) -> tuple[str, int, int]:
        """What is said, how many jobs are counted, and how many are listed."""
        config = ["suite=smoke", f"runs={{clean: {runs}, stress: {runs}, error_injection: {runs}}}"]
        done = snakemake(repository, "suite", "-n", "--profile", "profiles/cpu", *words,
                         config=config)  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        total = int(re.findall(r"^total +(\d+)$", done.stdout, flags=re.M)[-1])
        return done.stdout, total, len(re.findall(r"^rule \w+:$", done.stdout, flags=re.M))

    said, total, listed = planned(LARGE)
    assert total > 1000
    assert listed == 0
    assert f"invarlock: {total} jobs are counted" in said
    assert "output files have to be generated:" in said
    assert planned(LARGE, "-p")[1:] == (total, total)
    said, total, listed = planned(1)
    assert listed == total < 1000
    assert "invarlock:" not in said
