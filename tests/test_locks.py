"""What is installed for a run, for packed subjects, a cluster and tests: locks without gaps."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

from checkpoint_factory import make_llama
from measuring_factory import SETTINGS, write_tiny_windows
from packaging.requirements import Requirement
from repository_copy import ROOT, quiet_environment

from invarlock.windows import WindowPlan

ENVS = ROOT / "envs"
# Runs a command although nothing can be imported that only the lock of the tests names.
PROGRAM = """
import importlib.metadata, sys
tops = {top for top, names in importlib.metadata.packages_distributions().items()
        if {name.lower() for name in names} & set(sys.argv[1].split())}
assert "scipy" in tops and "numpy" not in tops, tops
for top in tops:
    sys.modules[top] = None
from invarlock.cli import main
sys.exit(main(sys.argv[2:]))
"""


def normal(name: str) -> str:
    """A package's name in the one spelling that compares."""
    return re.sub(r"[-_.]+", "-", name).lower()


def names(file: str) -> set[str]:
    """The packages that a file of envs/ names."""
    lines = (ENVS / file).read_text().splitlines()
    return {normal(re.split(r"[=<>]", line)[0]) for line in lines if line and line[0] != "#"}


def needed(asked: set[str]) -> set[str]:
    """These packages and all that they require, by what is installed."""
    seen: set[tuple[str, tuple[str, ...]]] = set()
    todo = [(name, ("",)) for name in asked]
    while todo:
        name, extras = item = todo.pop()
        if item in seen:
            continue
        seen.add(item)
        for text in importlib.metadata.requires(name) or ():
            wanted = Requirement(text)
            if not wanted.marker or any(wanted.marker.evaluate({"extra": e}) for e in extras):
                todo.append((normal(wanted.name), tuple(sorted(wanted.extras)) or ("",)))
    return {name for name, _ in seen}


def test_each_lock_holds_what_is_asked_for_and_no_more() -> None:
    """A run's lock holds no package of the tests; torch, and what builds it, come by themselves."""
    asked, tests = names("requirements.in"), names("requirements-test.in")
    run, test = names("requirements.lock"), names("requirements-test.lock")
    own = needed({"torch"})
    assert run >= needed(asked) - own - {"setuptools"}
    assert run <= needed(asked) | own
    assert test == needed(tests) - needed(asked) - own
    packed = names("requirements-formats.lock")
    assert packed == needed(names("requirements-formats.in")) - needed(asked) - own
    cluster = names("requirements-slurm.lock")
    if importlib.util.find_spec("snakemake_executor_plugin_slurm") is not None:
        assert cluster == needed(names("requirements-slurm.in")) - needed(asked) - own
    engines = names("requirements-backends.lock")
    if importlib.util.find_spec("llama_cpp") is not None:
        assert engines == needed(names("requirements-backends.in")) - needed(asked) - own
    assert "scipy" in test


def test_a_run_on_this_machine_installs_no_plugin_of_snakemake() -> None:
    """Snakemake imports each at every start, whatever the profile."""
    brought = [name for name in names("requirements.lock") if "-plugin-" in name]
    assert brought == []
    assert "snakemake-executor-plugin-slurm" in names("requirements-slurm.lock")


def test_a_run_needs_nothing_of_the_tests(tmp_path: Path) -> None:
    """Dense models are measured with every package blocked that tests or packed ones need."""
    folder, windows = make_llama(tmp_path / "model"), tmp_path / "windows.json"
    write_tiny_windows(folder, windows, WindowPlan(24, 10, 10, 43))
    words = ["--baseline", folder, "--subject", folder, "--windows", windows]
    words += ["--out", tmp_path / "out", *SETTINGS, "--tier", "none"]
    locks = ("test", "formats", "slurm")
    others = set().union(*(names(f"requirements-{lock}.lock") for lock in locks))
    blocked = " ".join(sorted(others))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, blocked, "evaluate", *map(str, words)],
        cwd=ROOT, env=quiet_environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_text_of_both_lists_has_one_version() -> None:
    """A text that Snakemake brings along is the one that the image gets."""
    lines = {
        file: set((ENVS / file).read_text().splitlines())
        for file in ("requirements.lock", "requirements-embedded.lock")
    }
    both = names("requirements.lock") & names("requirements-embedded.lock")
    assert both == {"docutils"}
    assert {line for line in lines["requirements-embedded.lock"] if "docutils==" in line} <= lines[
        "requirements.lock"
    ]
