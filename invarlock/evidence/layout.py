"""Where things lie in a pack: the names of its files, the folders of its reports, its scenarios."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from invarlock.errors import InputError
from invarlock.evidence import escape
from invarlock.evidence.findings import dig
from invarlock.evidence.tree import REPORT_NAME, Tree
from invarlock.reporting.runtime_manifest import NAME as RUNTIME_MANIFEST

PACK = "evidence_pack"  # its name in the folder of a run
README = "README.md"
VERDICT_TEXT = "results/final_verdict.txt"
SWEEP = "reports/guard_value_all_guard_probe_sweep.json"
SWEEPS = (SWEEP, "results/guard_value_all_guard_probe_sweep.json")  # the other one in earlier packs
TIMINGS = "results/analysis/evaluation_optimization_summary.json"
REPEATS = "results/analysis/determinism_repeats.json"
SCENARIOS = "metadata/scenarios.json"
CONFIG = "metadata/config.json"
REVISIONS = "metadata/model_revisions.json"
TUNED = "metadata/tuned_edit_params.json"
OUTCOME_NAME = "outcome.json"
VERIFIED = "verify.json"  # beside a report: what verify says of it
EDIT_METADATA, ERROR_METADATA = "edit_metadata.json", "error_metadata.json"
OBSERVED = "observed"  # reports that are neither asked to pass nor to fail
MAX_SCENARIOS = 1_000  # of one pack; the published suites have at most about 70
Entry = Mapping[str, Any]


def baseline_path(model: str) -> str:
    """Where a pack describes the baseline of a model (its folder name)."""
    return f"metadata/baseline.{model}.json"


def preset_path(model: str) -> str:
    """Where a pack keeps the preset of a model."""
    return f"metadata/preset.{model}.json"


def stats_path(model: str) -> str:
    """Where a pack keeps the statistics that the preset was derived from."""
    return f"metadata/calibration_stats.{model}.json"


def run_path(model: str) -> str:
    """Where a pack keeps the run report of a model's baseline."""
    return f"reports/{model}/baseline/report.json"


class ReportPlace(Struct, frozen=True):
    """Where a report lies: ``reports/[<model>/[observed/][errors/]<scenario>/...]``."""

    folder: str  # with a trailing slash
    scenario: str | None
    below_errors: bool
    observed: bool  # neither asked to pass nor to fail: the folder says which it does

    @property
    def model(self) -> str:
        """Name of the model's folder."""
        return self.folder.split("/")[1]

    @property
    def report(self) -> str:
        """Path of the report."""
        return self.folder + REPORT_NAME


def place_of(path: str) -> ReportPlace:
    """The place of a file ``reports/.../<name>``."""
    folders = path.split("/")[1:-1]
    below_errors = "errors" in folders
    observed = len(folders) > 3 and folders[1] == OBSERVED
    at = 2 if observed else 1
    at += len(folders) > at + 1 and folders[at] == "errors"
    scenario = folders[at] if len(folders) > at and path.count("/") > 2 else None
    return ReportPlace(path.rsplit("/", 1)[0] + "/", scenario, below_errors, observed)


def group_of(record: Mapping[str, Any]) -> str:
    """The folder between model and scenario, by the evaluation's record in the verdict.

    Published verifiers know reports that have to pass and reports that have to fail: the latter
    lie below ``errors`` or belong to a ``must_fail`` scenario. A guard that speaks need not make a
    report fail: what is only observed lies where they look up no label and go by the folder.
    """
    passed, strictness = record["passed"], record["strictness"]
    found = strictness == "must_detect" and passed and record["as_expected"]
    if strictness == "informational" or found:
        return f"{OBSERVED}/" if passed else f"{OBSERVED}/errors/"
    return "errors/" if record["category"] == "error_injection" else ""


def places(tree: Tree, name: str = REPORT_NAME) -> list[ReportPlace]:
    """The places of every file called ``name`` below ``reports/``, sorted."""
    return [
        place_of(path)
        for path in sorted(tree.files)
        if path.startswith("reports/") and path.endswith("/" + name)
    ]


def expects_pass(place: ReportPlace, scenarios: Mapping[str, Entry] | None) -> bool:
    """Whether a report has to pass: by its scenario where that says so, else by its folder."""
    entry = (scenarios or {}).get(place.scenario or "")
    strictness = None if entry is None or place.observed else entry["strictness"]
    if strictness in ("must_pass", "must_fail"):
        return bool(strictness == "must_pass")
    return not place.below_errors


def object_in(tree: Tree, path: str) -> dict[str, Any]:
    """A JSON object of the pack; empty where it is not there (if it is no JSON, step 6 says so)."""
    try:
        return tree.json_object(path)
    except InputError:
        return {}


def read_scenarios(tree: Tree) -> tuple[dict[str, Entry] | None, list[str]]:
    """The scenario entries by id (None: the pack has no scenarios), and findings.

    A file that is there and unusable is a finding, never treated as absent.
    """
    if SCENARIOS not in tree.files:
        return None, []
    problems: list[str] = []
    try:
        entries = tree.json_object(SCENARIOS).get("scenarios")
    except InputError as error:
        problems.append(escape(error))  # check: scenarios.object
        return {}, problems
    if not isinstance(entries, list):
        problems.append(f"{SCENARIOS}: /scenarios is no list")  # check: scenarios.list
        return {}, problems
    if len(entries) > MAX_SCENARIOS:  # check: scenarios.number
        return {}, [f"{SCENARIOS}: more than {MAX_SCENARIOS} scenarios"]
    found: dict[str, Entry] = {}
    for index, entry in enumerate(entries):
        name = dig(entry, "id")
        if not isinstance(name, str) or not isinstance(dig(entry, "strictness"), str):
            # check: scenarios.entry
            problems.append(f"{SCENARIOS}: /scenarios/{index} lacks an id or a strictness")
        elif name in found:  # check: scenarios.twice
            problems.append(f"{SCENARIOS}: /scenarios/{index} repeats the id {escape(name)}")
        else:
            found[name] = entry
    return found, problems


def check_json(tree: Tree) -> list[str]:
    """Findings about JSON that has no or more than one reading.

    Reports, and the runtime manifests beside them, have their own step.
    """
    findings = []
    for path in sorted(tree.files):
        folder, _, name = path.rpartition("/")
        beside = name == RUNTIME_MANIFEST and f"{folder}/{REPORT_NAME}" in tree.files
        if name.endswith(".json") and name != REPORT_NAME and not beside:
            try:
                tree.json(path, escape(path))
            except InputError as error:
                findings.append(escape(error))
    return findings
