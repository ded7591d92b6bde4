"""Output folders of invented suites, packs of them, and ways to damage and re-sign a pack."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import report_factory as factory

from invarlock.cli import main as cli
from invarlock.cli.verdict import write_verdict
from invarlock.edits.specs import parse_edit_spec
from invarlock.evidence import keys, manifest
from invarlock.evidence.parity import RUN_SCHEMA
from invarlock.files import slug
from invarlock.reporting.runtime_manifest import Circumstances, write_runtime_manifest
from invarlock.scenarios import Scenario, expected_evaluations, parse_catalogue
from invarlock.verdict.records import Evaluation
from invarlock.verdict.timings import timings_document

IDS = ("noop_clean", "quant_8bit_clean", "prune_50pct_stress", "nan_injection", "rank1_projection")
MODEL = slug(factory.MODEL)
CLEAN = f"reports/{MODEL}/quant_8bit_clean/run_1"
STRESS = f"reports/{MODEL}/prune_50pct_stress/run_1"
DAMAGE = f"reports/{MODEL}/errors/nan_injection/run_1"
Document = dict[str, Any]


def write_json(path: Path, document: object) -> None:
    """Write JSON, making the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, sort_keys=True) + "\n")


def metadata(scenario: Scenario) -> Document:
    """The metadata that goes with a scenario's subject, as far as the verifier reads it."""
    common = {"baseline_checkpoint_sha256": factory.checkpoint_sha256("baseline")}
    if scenario.is_error:
        return common | {
            "schema": "invarlock/error-metadata-v1",
            "artifact_class": scenario.artifact_class,
            "error_type": scenario.error_type,
            "injected": True,
            "parameters": dict(scenario.parameters),
        }
    spec = parse_edit_spec(str(scenario.edit_spec))
    return common | {
        "schema": "invarlock/evidence-pack-edit-metadata-v1",
        "artifact_class": scenario.artifact_class,
        "edit_type": scenario.edit_type,
        "scope": str(getattr(spec, "scope", "none")),
        "parameters": spec.parameters(),
        "optimized_deployment_backend": False,
        "packed_quantized_storage": False,
    }


def write_suite(
    out: Path, ids: Sequence[str] = IDS, change: Callable[[list[Evaluation]], None] | None = None
) -> Path:
    """A suite's output folder, with things in it that must never get into a pack."""
    manifest_document = factory.manifest("smoke", ids)
    evaluations = factory.good_suite("smoke", ids)
    if change:
        change(evaluations)
    scenarios = parse_catalogue(manifest_document, "test").scenarios
    by_id = {s.id: s for s in scenarios}
    for index, evaluation in enumerate(evaluations):
        folder = factory.write_evaluation(evaluation, out)
        scenario = by_id[evaluation.scenario]
        kind = "error" if scenario.is_error else "edit"
        write_json(folder / f"{kind}_metadata.json", metadata(scenario))
        evaluations[index] = dataclasses.replace(evaluation, metadata=metadata(scenario))
        if evaluation.report is not None:
            write_runtime_manifest(
                folder / "evaluation.report.json", Circumstances(False, False), {}
            )
        (folder / "evaluation.html").write_text("<p>report</p>\n")
        (folder / "events.jsonl").write_text("{}\n")
        (folder / "report.json").write_text("{}\n")
    write_json(out / "state" / "scenarios.json", manifest_document)
    pinned = {"models": {factory.MODEL: {"revision": None, "license": "mit"}}}
    write_json(out / "state" / "model_revisions.json", pinned)
    settings = {"net": 0, "determinism": "strict", "repeats": 0}
    write_json(out / "state" / "config.json", {"values": settings})
    write_json(out / MODEL / "baseline.json", {"schema": "invarlock/baseline-v1"})
    (out / MODEL / "models").mkdir()
    (out / MODEL / "models" / "model.safetensors").write_bytes(b"weights")
    expected = expected_evaluations(scenarios, {factory.MODEL}, {1})
    write_verdict(manifest_document, evaluations, expected, out / "reports", out / "analysis")
    return out


def add_records(out: Path) -> Path:
    """What a run has beside its reports too: the baseline's run, re-checks, pages and times."""
    write_json(out / MODEL / "runs/baseline/report.json", factory.BASELINE | {"schema": RUN_SCHEMA})
    reports = sorted(out.rglob("evaluation.report.json"))
    assert cli(["advanced", "pages", *map(str, reports)]) == 0
    folders = [path.parent for path in sorted(out.rglob("outcome.json"))]
    times = timings_document(out, folders, deferred=False)
    write_json(out / "analysis/evaluation_optimization_summary.json", times)
    return out


def harmless_stress(evaluations: list[Evaluation]) -> None:
    """Swap the stress edit for one that changes nothing."""
    name = "prune_50pct_stress"
    factory.replace(evaluations, name, factory.make_report(name, 1.001))


def failed_clean(evaluations: list[Evaluation]) -> None:
    """Let a clean edit be bad, and another crash."""
    name = "quant_8bit_clean"
    factory.replace(evaluations, name, factory.make_report(name, 1.5))
    factory.replace(evaluations, "rank1_projection", None)


def open_clean(evaluations: list[Evaluation]) -> None:
    """Let nothing be decided about a clean edit."""
    name = "quant_8bit_clean"
    factory.replace(evaluations, name, factory.make_report(name, 1.1005))


def build(out: Path, pack: Path, *options: str, key: Path | None = None) -> int:
    """``evidence-pack build`` of a suite's folder; the exit code."""
    signing = ["--signing-key", str(key)] if key else []
    words = ["advanced", "evidence-pack", "build", str(pack), "--run-dir", str(out)]
    return cli([*words, *signing, *options])


def verify(pack: Path, *options: str) -> int:
    """``evidence-pack verify``; the exit code."""
    return cli(["advanced", "evidence-pack", "verify", str(pack), *options])


def new_key(path: Path) -> Path:
    """A key pair; the private key's path."""
    keys.generate(path, keys.default_public_path(path))
    return path


def edit_json(path: Path, change: Callable[[Document], object]) -> None:
    """Change a JSON file in place."""
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document, sort_keys=True) + "\n")


def rebind(pack: Path) -> None:
    """Bind every runtime manifest to its report again, as a publisher could."""
    for report in pack.rglob("evaluation.report.json"):
        digest = hashlib.sha256(report.read_bytes()).hexdigest()
        edit_json(
            report.with_name("runtime.manifest.json"),
            lambda m, digest=digest: m["report"].update(sha256=digest),  # type: ignore[misc]
        )


def resign(pack: Path, key: Path, change: Callable[[Document], object] | None = None) -> None:
    """Make runtime manifests, checksums and signature fit the files, as a publisher could."""
    rebind(pack)
    relist(pack, key, change)


def relist(pack: Path, key: Path, change: Callable[[Document], object] | None = None) -> None:
    """Make checksums, references, manifest and signature fit the files."""
    skip = {"manifest.json", "manifest.signature.json", "checksums.sha256"}
    files = sorted(p.relative_to(pack).as_posix() for p in pack.rglob("*") if p.is_file())
    digests = {
        f: hashlib.sha256((pack / f).read_bytes()).hexdigest() for f in files if f not in skip
    }
    listing = "".join(f"{digests[f]}  {f}\n" for f in sorted(digests)).encode()
    (pack / "checksums.sha256").write_bytes(listing)

    def fit(document: Document) -> None:
        document["checksums_sha256_digest"] = hashlib.sha256(listing).hexdigest()
        if "artifacts" in document:
            document["artifacts"] = sorted(f for f in digests if not f.startswith("reports/"))
        for _, reference in manifest.references(document):
            if reference.get("path") in digests:
                reference["digest"] = "sha256:" + digests[reference["path"]]  # type: ignore[index]
        if change:
            change(document)

    sign_manifest(pack, key, fit)


def sign_manifest(pack: Path, key: Path, change: Callable[[Document], object]) -> None:
    """Change the manifest and sign it."""
    document = json.loads((pack / "manifest.json").read_text())
    loaded = keys.load_signing_key(key)
    document["signing_key_fingerprint"] = keys.fingerprint(loaded.public)
    change(document)
    (pack / "manifest.json").write_bytes(manifest.render(document))
    sign_bytes(pack, key)


def sign_bytes(pack: Path, key: Path) -> None:
    """Sign ``manifest.json`` as it is, whatever it is."""
    signature = manifest.sign((pack / "manifest.json").read_bytes(), keys.load_signing_key(key))
    (pack / "manifest.signature.json").write_bytes(signature)


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by relative path."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def copy(pack: Path, to: Path) -> Path:
    """A fresh copy of a pack."""
    shutil.copytree(pack, to)
    return to
