"""One causal class of the library through edits, an injection and the guards; how far it gets."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from causal_models import make_causal
from measuring_factory import SETTINGS, read, write_tiny_windows

from invarlock.begin_of_text import begin_token
from invarlock.cli import main
from invarlock.pages.reading import evaluated
from invarlock.reporting.replay import replay
from invarlock.reporting.signals import CORE_GUARDS, guard_flags
from invarlock.windows import WindowPlan

WINDOWS = WindowPlan(24, 9, 4, 43)
EDITS = {"quant": "quant_rtn:8:16:all", "prune": "magnitude_prune:0.1:all"}
INJECTIONS = ("missing_tensors", "scale_explosion")


def sweep(model_type: str, work: Path) -> str:
    """The first step that fails for a small model of this type; an empty string where none does."""
    model, windows = work / "model", work / "windows.json"
    try:
        make_causal(model_type, model)
        write_tiny_windows(model, windows, replace(WINDOWS, bos=begin_token(model)))
        return next((failed for failed in _steps(model, windows, work) if failed), "")
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _steps(model: Path, windows: Path, work: Path) -> Iterator[str]:
    """What each step had to say: nothing where it went well."""

    def invarlock(step: str, *words: str) -> str:
        return "" if main([step, *words]) == 0 else " ".join((step, *words[-2:]))

    def made(out: str, *words: str) -> str:
        files = ("--out", str(work / out), "--metadata", str(work / f"{out}.json"))
        return invarlock(words[0], "--baseline", str(model), *files, *words[1:])

    yield made("noop", "edit", "--spec", "noop")
    for name, spec in EDITS.items():
        yield made(name, "edit", "--spec", spec)
        edited = json.loads((work / f"{name}.json").read_text())["coverage"]["coverage_ratio"]
        if not edited:
            yield f"{spec} edits nothing"
    for name in INJECTIONS:
        yield made(name, "inject", "--error-type", name)
    common = ("--windows", str(windows), *SETTINGS)
    yield invarlock("run", "--model", str(model), "--out", str(work / "run"), *common)
    for subject in ("noop", "scale_explosion"):
        out = work / f"{subject} report"
        given = ("--baseline-report", str(work / "run"), "--subject", str(work / subject))
        yield invarlock(
            "evaluate", "--baseline", str(model), *given, "--out", str(out),
            "--edit-label", subject, *common,
        )  # fmt: skip
        report = read(out)
        if replay(report):
            yield f"the report of {subject} does not replay"
        if report["dataset"].get("bos_token_id") != begin_token(model):
            yield f"the report of {subject} does not say what its windows begin with"
        missing = [name for name in CORE_GUARDS if not evaluated(report, name)]
        if missing:
            yield f"guards of {subject} not evaluated: {missing}"
        flags = guard_flags(report)
        if subject == "noop":
            if report["primary_metric"]["ratio_vs_baseline"] != 1.0 or any(flags.values()):
                yield f"a copy is not the baseline: {flags}"
        elif not flags["spectral"]:
            yield "a hundredfold matrix is not found"
