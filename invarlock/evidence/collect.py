"""Which files become a pack: an allow-list, from a suite's output folder or from named reports.

Nothing is found by searching: a run folder also holds checkpoints, logs and run reports, and
none of them may get in.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from invarlock.contracts import violations
from invarlock.errors import InputError, InvarlockError
from invarlock.evidence import Code, PackError
from invarlock.evidence.checksums import CHECKSUMS, CONTROL_FILES, MANIFEST, MIRRORS, SIGNATURE
from invarlock.evidence.findings import dig
from invarlock.evidence.layout import (
    EDIT_METADATA,
    ERROR_METADATA,
    OUTCOME_NAME,
    README,
    TIMINGS,
    VERIFIED,
    group_of,
    run_path,
)
from invarlock.evidence.manifest import ENVIRONMENT, SOURCE_REPO, VERDICT
from invarlock.evidence.published.deployable import DEPLOYABLE_SIDECARS
from invarlock.evidence.tree import MAX_PARSED_FILE, REPORT_NAME, read_source
from invarlock.files import parse_json
from invarlock.policy import POLICY_PACK
from invarlock.preset import read_preset
from invarlock.reporting.probes import FILES
from invarlock.reporting.runtime_manifest import NAME as RUNTIME_MANIFEST
from invarlock.subject_metadata import takes_tuned
from invarlock.verdict.summaries import ANALYSIS, DOCUMENTS

PROBES = tuple(FILES)
OPTIONAL_SIDECARS = (EDIT_METADATA, ERROR_METADATA, POLICY_PACK, *PROBES, *DEPLOYABLE_SIDECARS)
STATS = "calibration_stats.json"
RESULTS = ("final_verdict.txt", *(f"{name}.json" for name in DOCUMENTS))  # beside the verdict
PAGE = "evaluation.html"
RENDERED = (PAGE, "evaluation.md")
# Documents that a run has only when they were asked for: name -> folder in a pack.
ANALYSES = {
    "determinism_repeats.json": "results/analysis/",
    "guard_value_all_guard_probe_sweep.json": "reports/",
}
_RECORD_PATH = re.compile(r"([a-z0-9][a-z0-9._-]*)/reports/([A-Za-z0-9._-]+)/(run_[1-9][0-9]*)")
_MATERIAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
MEASURED = ("reported", "rejected_by_invariants")


@dataclass
class Inputs:
    """The files of a pack: ``{path in the pack: source}``, and the named materials among them."""

    files: dict[str, Path] = field(default_factory=dict)
    materials: dict[str, str] = field(default_factory=dict)  # name -> path in the pack

    def add(self, path: str, source: Path) -> None:
        """Add one file; PackError (exit 4) when the path is taken or is a control file's."""
        if path in self.files or path in MIRRORS or path in CONTROL_FILES:
            raise PackError(
                Code.MANIFEST, f"two inputs for {path}, or a reserved name", where=str(source)
            )
        self.files[path] = source

    def add_material(self, name: str, source: Path) -> None:
        """Add ``metadata/<name><suffix>``; PackError (exit 4) for a bad or taken name.

        Naming a file again that is already this material changes nothing.
        """
        taken = self.files.get(self.materials.get(name, ""))
        if taken is not None and taken.resolve() == source.resolve():
            return
        if not _MATERIAL.fullmatch(name) or name in self.materials:
            raise PackError(Code.MANIFEST, f"a bad or repeated material name: {name!r}")
        path = f"metadata/{name}{source.suffix or '.json'}"
        self.add(path, source)
        self.materials[name] = path

    def add_analysis(self, source: Path) -> None:
        """Add a document of ``ANALYSES``, known by its name; PackError (exit 4) for another."""
        if source.name not in ANALYSES:
            raise PackError(
                Code.MANIFEST,
                f"is no analysis that packs hold; known: {', '.join(ANALYSES)}",
                where=str(source),
            )
        self.add(ANALYSES[source.name] + source.name, source)

    def replace(self, path: str, source: Path | None) -> None:
        """Take ``source`` for ``path`` where one is named on the command line."""
        if source is not None:
            self.files[path] = source


def foreseen(models: Iterable[str], *, tuned: bool, signed: bool) -> list[str]:
    """The files that the pack of a run of the workflow has whatever comes out, the manifest first.

    What lies below ``reports/`` depends on what the evaluations show.

    Args:
        models: their folder names.
        tuned: whether a scenario takes tuned parameters.
        signed: whether there is a key.
    """
    materials = [
        "scenarios",
        "config",
        "model_revisions",
        *(["tuned_edit_params"] if tuned else []),
    ]
    materials += [name for model in models for name in _of_model(Path(), model)]
    return [
        MANIFEST,
        CHECKSUMS,
        *([SIGNATURE] if signed else []),
        README,
        VERDICT,
        *(f"results/{name}" for name in RESULTS),
        TIMINGS,
        SOURCE_REPO,
        ENVIRONMENT,
        *(f"metadata/{name}.json" for name in materials),
    ]


def _of_model(out: Path, model: str) -> dict[str, Path]:
    """The materials of one model, and where a run has them."""
    presets = out / model / "presets"
    return {
        f"baseline.{model}": out / model / "baseline.json",
        f"preset.{model}": presets / f"calibrated_preset_{model}.json",
        f"calibration_stats.{model}": presets / STATS,
    }


def read_object(source: Path) -> dict[str, Any]:
    """An input that must be a JSON object; PackError (exit 4) for anything else."""
    try:
        document = parse_json(read_source(source, MAX_PARSED_FILE), str(source))
    except InputError as error:
        raise PackError(Code.MANIFEST, str(error)) from error
    if not isinstance(document, dict):
        raise PackError(Code.MANIFEST, "is not a JSON object", where=str(source))
    return document


def from_reports(reports: Iterable[Path], final_verdict: Path) -> Inputs:
    """Named reports, as ``reports/report-NNN/`` with what lies beside each of them.

    Raises:
        PackError: a folder instead of a report, or no runtime manifest beside one (exit 4).
    """
    inputs = Inputs()
    inputs.add(VERDICT, final_verdict)
    for number, report in enumerate(reports, 1):
        if report.is_dir():
            raise PackError(Code.MANIFEST, "is a folder; name the report itself", where=str(report))
        folder = f"reports/report-{number:03d}/"
        inputs.add(folder + REPORT_NAME, report)
        inputs.add(folder + RUNTIME_MANIFEST, _beside(report, RUNTIME_MANIFEST))
        for name in (*OPTIONAL_SIDECARS, OUTCOME_NAME, *RENDERED):
            if (report.parent / name).exists():
                inputs.add(folder + name, report.parent / name)
    return inputs


def add_presets(inputs: Inputs, reports: Sequence[Path]) -> None:
    """The preset that each named report was judged by, and the statistics it was derived from,
    where they lie beside the report or where a suite keeps them; what was named stays.

    What is not found is left to the verification of the pack, which asks for it.
    """
    for number, report in enumerate(reports, 1):
        stated = dig(read_object(report), "policy_provenance", "preset_sha256")
        named = f"preset.report-{number:03d}"
        if not isinstance(stated, str) or named in inputs.materials:
            continue
        preset = next((p for p in _presets_near(report) if _digest_of_preset(p) == stated), None)
        if preset is None:
            continue
        inputs.add_material(named, preset)
        stats, name = preset.with_name(STATS), f"calibration_stats.report-{number:03d}"
        if stats.is_file() and name not in inputs.materials:
            inputs.add_material(name, stats)


def _presets_near(report: Path) -> Iterator[Path]:
    """Presets in the folder of a report, and in ``presets/`` of those above it: a report of a suite
    is MODEL/reports/SCENARIO/run_N/evaluation.report.json."""
    folder = report.resolve().parent
    for place in (folder, *(above / "presets" for above in (folder, *folder.parents[:3]))):
        yield from sorted(place.glob("calibrated_preset_*.json"))


def _digest_of_preset(path: Path) -> str:
    try:
        return read_preset(path).sha256
    except InvarlockError:
        return ""  # of no report


def _beside(report: Path, name: str) -> Path:
    path = report.parent / name
    if not path.is_file():
        raise PackError(Code.MANIFEST, f"there is no {name} beside it", where=str(report))
    return path


def from_run(out: Path) -> Inputs:
    """The files of a suite's output folder, by the records of its verdict.

    Raises:
        PackError: a file that has to be there is missing or unusable (exit 4).
    """
    inputs = Inputs()
    verdict = out / "reports" / "final_verdict.json"
    document = read_object(verdict)
    wrong = violations(document, "final-verdict")
    if wrong:
        raise PackError(Code.MANIFEST, wrong[0], where=str(verdict))
    inputs.add(VERDICT, verdict)
    for name in RESULTS:
        folder = out if name.startswith(ANALYSIS) else out / "reports"
        inputs.add(f"results/{name}", _needed(folder / name))
    models = {_add_record(inputs, out, record) for record in document["records"]}
    scenarios = _needed(out / "state" / "scenarios.json")
    inputs.add_material("scenarios", scenarios)
    if any(map(takes_tuned, read_object(scenarios).get("scenarios", ()))):
        inputs.add_material("tuned_edit_params", _needed(out / "state" / "tuned_edit_params.json"))
    for name in ("config", "model_revisions"):
        if (out / "state" / f"{name}.json").exists():
            inputs.add_material(name, out / "state" / f"{name}.json")
    for path in (SOURCE_REPO, ENVIRONMENT):
        source = out / "state" / Path(path).name
        if source.exists():
            inputs.add(path, source)
    for path, source in (
        (TIMINGS, out / TIMINGS.removeprefix("results/")),
        *((run_path(model), out / model / "runs/baseline/report.json") for model in models),
    ):
        if source.exists():
            inputs.add(path, source)
    for model in sorted(models):
        for name, source in _of_model(out, model).items():
            if source.exists():
                inputs.add_material(name, source)
    return inputs


def _needed(path: Path) -> Path:
    if not path.is_file():
        raise PackError(Code.MANIFEST, "is missing", where=str(path), hint="run the suite first")
    return path


def _add_record(inputs: Inputs, out: Path, record: Mapping[str, Any]) -> str:
    """Add the files of one evaluation; returns the model's folder name."""
    match = _RECORD_PATH.fullmatch(record["path"])
    if not match:
        raise PackError(
            Code.MANIFEST, f"a record with the path {record['path']!r}", where="final_verdict.json"
        )
    model, scenario, run = match.groups()
    source, target = out / record["path"], f"reports/{model}/{group_of(record)}{scenario}/{run}/"
    needed = {OUTCOME_NAME}
    if record["status"] in MEASURED:
        needed |= {REPORT_NAME, RUNTIME_MANIFEST}
    for name in (
        OUTCOME_NAME,
        REPORT_NAME,
        RUNTIME_MANIFEST,
        EDIT_METADATA,
        ERROR_METADATA,
        POLICY_PACK,
        *PROBES,
        *DEPLOYABLE_SIDECARS,
        *RENDERED,
        VERIFIED,
    ):
        if name in needed or (source / name).exists():
            inputs.add(target + name, _needed(source / name))
    return model
