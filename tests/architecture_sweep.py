"""One causal class of the library through edits, injections, the guards and a pack."""

from __future__ import annotations

import functools
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pack_factory as packs
import report_factory as factory
from causal_models import make_causal
from measuring_factory import SETTINGS, read, write_tiny_windows

from invarlock.begin_of_text import begin_token
from invarlock.cli import main
from invarlock.pages.reading import evaluated
from invarlock.reporting.replay import replay
from invarlock.reporting.signals import CORE_GUARDS, guard_flags
from invarlock.scenarios import Scenario, parse_catalogue
from invarlock.verdict.records import canonical_path
from invarlock.windows import WindowPlan

WINDOWS = WindowPlan(24, 9, 4, 43)
MODEL = SETTINGS[-1]  # the model id
# Scenarios of the shipped catalogue. What spectral finds of an architecture whose wiring nobody
# knows is a lost rank; a block too few is found before anything is run.
REJECTED, COLLAPSED = "missing_tensors", "rank_collapse"
SCENARIOS = ("noop_clean", "quant_8bit_clean", "prune_10pct_clean", REJECTED, COLLAPSED)
GROUPED = "quant_rtn:8:16:all"  # by groups, to which the sizes of a model have to fit


class NotInstantiatedError(Exception):
    """The library builds no model of a small random configuration."""


@dataclass(frozen=True)
class Suite:
    """The folder of a run with all that is in it, as the workflow lays it out."""

    work: Path

    @property
    def model(self) -> Path:
        """The baseline's checkpoint."""
        return self.work / "model"

    @property
    def windows(self) -> Path:
        """A few windows of 24 tokens."""
        return self.work / "windows.json"

    @property
    def out(self) -> Path:
        """The suite's output folder."""
        return self.work / "suite"

    @property
    def scenarios(self) -> Path:
        """The effective manifest."""
        return self.out / "state" / "scenarios.json"

    @property
    def common(self) -> tuple[str, ...]:
        """Options of every measurement; the tier asks for no number of windows."""
        return ("--windows", str(self.windows), *SETTINGS)

    def subject(self, scenario: Scenario) -> Path:
        """The checkpoint of a scenario."""
        return self.work / scenario.id

    def evaluation(self, scenario: Scenario) -> Path:
        """The folder of its evaluation."""
        return self.out / canonical_path(MODEL, scenario.id, 1)

    def metadata(self, scenario: Scenario) -> Path:
        """What its generator wrote about the subject."""
        kind = "error" if scenario.is_error else "edit"
        return self.evaluation(scenario) / f"{kind}_metadata.json"


def sweep(model_type: str, work: Path, key: Path) -> str:
    """The first step that fails for a small model of this type; an empty string where none does.

    Args:
        model_type: of a causal class.
        work: a folder that is made, and removed at the end.
        key: the private key that signs the pack.

    Raises:
        NotInstantiatedError: there is no such model.
    """
    suite = Suite(work)
    try:
        try:
            make_causal(model_type, suite.model)
        except Exception as error:  # whatever a class of the library raises
            raise NotInstantiatedError(f"{type(error).__name__}: {error}") from error
        tokenizer = (suite.model / "tokenizer.json").read_bytes()
        suite.windows.write_bytes(_windows(tokenizer, begin_token(suite.model)))
        return next((failed for failed in _steps(suite, key) if failed), "")
    finally:
        shutil.rmtree(work, ignore_errors=True)


@functools.cache
def _windows(tokenizer: bytes, bos: int | None) -> bytes:
    """The file of the windows, which is the same for all models with one tokenizer."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "tokenizer.json").write_bytes(tokenizer)
        write_tiny_windows(folder, folder / "windows.json", replace(WINDOWS, bos=bos))
        return (folder / "windows.json").read_bytes()


def _invarlock(step: str, *words: str) -> str:
    """Nothing where the command went well, else what it was."""
    return "" if main([*step.split(), *words]) == 0 else " ".join((step, *words[-2:]))


def _steps(suite: Suite, key: Path) -> Iterator[str]:
    """What each step had to say: nothing where it went well."""
    manifest = factory.manifest("smoke-all", SCENARIOS)
    scenarios = parse_catalogue(manifest, "sweep").scenarios
    packs.write_json(suite.scenarios, manifest)
    grouped = ("--metadata", str(suite.work / "grouped.json"))
    yield _invarlock(
        "edit", "--baseline", str(suite.model), "--spec", GROUPED, "--out",
        str(suite.work / "grouped"), *grouped,
    )  # fmt: skip
    yield from (failed for scenario in scenarios for failed in _made(suite, scenario))
    out = ("--out", str(suite.work / "run"))
    yield _invarlock("run", "--model", str(suite.model), *suite.common, *out)
    for scenario in scenarios:
        yield _evaluated(suite, scenario)
        yield from _looked_at(suite, scenario)
    yield from _packed(suite, scenarios, key)


def _made(suite: Suite, scenario: Scenario) -> Iterator[str]:
    suite.evaluation(scenario).mkdir(parents=True)
    files = ("--out", str(suite.subject(scenario)), "--metadata", str(suite.metadata(scenario)))
    common = ("--baseline", str(suite.model), *files)
    if scenario.is_error:
        parameters = ("--parameters", json.dumps(dict(scenario.parameters)))
        yield _invarlock("inject", *common, *parameters, "--error-type", str(scenario.error_type))
        return
    yield _invarlock("edit", *common, "--spec", str(scenario.edit_spec))
    done = read(suite.evaluation(scenario), suite.metadata(scenario).name)
    if scenario.edit_type != "noop" and not done["coverage"]["coverage_ratio"]:
        yield f"{scenario.edit_spec} edits nothing"


def _evaluated(suite: Suite, scenario: Scenario) -> str:
    return _invarlock(
        "evaluate", "--baseline", str(suite.model), "--baseline-report", str(suite.work / "run"),
        *suite.common, "--tier", "none", "--subject", str(suite.subject(scenario)),
        "--scenario", json.dumps(dict(scenario.entry)),
        "--edit-metadata", str(suite.metadata(scenario)),
        "--out", str(suite.evaluation(scenario)),
        "--edit-label", str(scenario.error_type or scenario.edit_type),
    )  # fmt: skip


def _looked_at(suite: Suite, scenario: Scenario) -> Iterator[str]:
    """What a report says that it should not."""
    report = read(suite.evaluation(scenario))
    yield from (f"the report of {scenario.id} does not replay: {line}" for line in replay(report))
    if report["dataset"].get("bos_token_id") != begin_token(suite.model):
        yield f"the report of {scenario.id} does not say what its windows begin with"
    flags, expected = guard_flags(report), scenario.id != REJECTED
    missing = [name for name in CORE_GUARDS if evaluated(report, name) != expected]
    if expected and missing:
        yield f"guards of {scenario.id} not evaluated: {missing}"
    if scenario.edit_type == "noop" and (
        report["primary_metric"]["ratio_vs_baseline"] != 1.0 or any(flags.values())
    ):
        yield f"a copy is not the baseline: {flags}"
    if scenario.id == COLLAPSED and not flags["spectral"]:
        yield "matrices of rank one are not found"


def _packed(suite: Suite, scenarios: Sequence[Scenario], key: Path) -> Iterator[str]:
    """The verdict, and a signed pack of it whose reports are judged again."""
    folders = [str(suite.evaluation(scenario)) for scenario in scenarios]
    yield _invarlock(
        "verdict", "--scenarios", str(suite.scenarios), "--out-dir", str(suite.out / "reports"),
        "--analysis-dir", str(suite.out / "analysis"), "--evaluation", *folders,
    )  # fmt: skip
    verdict = json.loads((suite.out / "reports" / "final_verdict.json").read_text())
    if verdict["verdict"] != "PASS":
        failed = [f"{r['name']}: {r['why']}" for r in verdict["records"] if not r["passed"]]
        yield f"the verdict is {verdict['verdict']}: {failed}"
    pack = suite.work / "pack"
    if packs.build(suite.out, pack, key=key):
        yield "the pack is not built"
    if packs.verify(pack, "--strict", "--replay"):
        yield "the pack does not verify"
