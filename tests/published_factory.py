"""Packs as released versions write them: reduced reports, container runs, the harness layout."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pack_factory as packs
import report_factory as factory

from invarlock.verdict.records import Evaluation

DIGEST = "sha256:" + "a" * 64
RUNTIME = {
    "image_ref": "registry.example/invarlock@" + DIGEST,
    "image_digest": DIGEST,
    "container_execution": True,
}
# What a published report holds of ours, and of some of these blocks what it does not.
BLOCKS = (
    "schema_version", "run_id", "artifacts", "plugins", "meta", "dataset", "primary_metric",
    "validation", "baseline_ref", "spectral", "rmt", "variance", "invariants", "guard_overhead",
    "provenance", "resolved_policy", "auto", "evaluation_windows", "assurance", "context",
    "report_build",
)  # fmt: skip
OWN = {
    "context": ("gates", "bootstrap", "execution_log"),
    "meta": ("model_profile", "subject_run_id"),
    "spectral": ("modules", "operators"),
    "rmt": ("modules", "calibration"),
    "variance": ("modules", "trial"),
}
WINDOWS = ("logloss", "token_counts", "window_ids")
Document = dict[str, Any]


def in_container(folder: Path) -> None:
    """Make every runtime manifest below a folder that of a container run."""

    def change(document: Document) -> None:
        document["execution_mode"] = "container"
        document["runtime"].update(RUNTIME)

    for path in folder.rglob("runtime.manifest.json"):
        packs.edit_json(path, change)


def strict_suite(out: Path, ids: Sequence[str]) -> Path:
    """A suite's folder whose reports claim strict assurance and were made in a container."""

    def strictly(evaluations: list[Evaluation]) -> None:
        evaluations[:] = factory.good_suite("smoke", ids, profile="release", assurance="strict")

    in_container(packs.write_suite(out, ids, strictly))
    return out


def reduced(report: Document) -> Document:
    """A report without what the published format lacks: nothing in it can be replayed."""
    kept = {name: report[name] for name in BLOCKS}
    for name, keys in OWN.items():
        kept[name] = {k: v for k, v in kept[name].items() if k not in keys}
    final = report["evaluation_windows"]["final"]
    return kept | {"evaluation_windows": {"final": {name: final[name] for name in WINDOWS}}}


def write_report(folder: Path, report: Document, **manifest: Any) -> Path:
    """A report with the manifest of a container run beside it; ``manifest`` changes members."""
    path = folder / "evaluation.report.json"
    packs.write_json(path, report)
    document = {
        "manifest_version": 1,
        "verifier_contract_version": "runtime-manifest-v1",
        "generated_at_utc": "2026-01-02T03:04:05+00:00",
        "execution_mode": "container",
        "report": {
            "path": path.name,
            "filename": path.name,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        },
        "config": {"path": None, "sha256": None, "source": "missing"},
        "runtime": RUNTIME
        | dict.fromkeys(("allow_network", "allow_remote_code", "allow_third_party_plugins"), False),
    }
    packs.write_json(folder / "runtime.manifest.json", document | manifest)
    return path


def scenario(name: str, strictness: str, edit_spec: str | None) -> Document:
    """An entry of a published catalogue."""
    generation = {"kind": "edit", "edit_spec": edit_spec} if edit_spec else {"kind": "error"}
    return {"id": name, "strictness": strictness, "generation": generation}


def harness_pack(pack: Path, key: Path) -> Path:
    """A pack in the layout of the released harness.

    Checksums with ``./``, a manifest indented by two with a builder, mirrors of the control files,
    the verdict in a folder of its own.
    """
    strict = {"profile": "release", "assurance": "strict"}
    clean = reduced(factory.make_report("quant", 1.004, **strict))
    model = pack / "reports" / "acme__tiny"
    write_report(model / "quant_8bit" / "run_1", clean)
    bad = reduced(factory.make_report("prune", 1.6, **strict))
    write_report(model / "prune_90" / "run_1", bad)
    write_report(model / "errors" / "scaled", bad)
    for name, edit in (("quant_8bit", "quant_rtn"), ("prune_90", "magnitude_prune")):
        metadata = {
            "schema": "invarlock/evidence-pack-edit-metadata-v1",
            "artifact_class": "validation_subject_checkpoint",
            "edit_type": edit,
            "optimized_deployment_backend": False,
            "packed_quantized_storage": False,
        }
        packs.write_json(model / name / "run_1" / "edit_metadata.json", metadata)
    entries = [
        scenario("quant_8bit", "must_pass", "quant_rtn:8"),
        scenario("prune_90", "must_fail", "magnitude_prune:0.9"),
    ]
    packs.write_json(pack / "metadata" / "scenarios.json", {"scenarios": entries})
    packs.write_json(pack / "results" / "verdicts" / "final_verdict.json", {"verdict": "PASS"})
    (pack / "results" / "verdicts" / "final_verdict.txt").write_text("PASS\n")
    (pack / "README.md").write_text("# Evidence pack\n")
    harness_manifest(pack, key)
    return pack


def harness_manifest(pack: Path, key: Path) -> None:
    """Checksums, manifest, signature and mirrors as the harness writes them."""
    listed = sorted(path for path in pack.rglob("*") if path.is_file())
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  ./{path.relative_to(pack).as_posix()}\n"
        for path in listed
    ]
    (pack / "checksums.sha256").write_text("".join(lines))
    subject = pack / "results" / "verdicts" / "final_verdict.json"
    document = {
        "format": "evidence-pack-v1",
        "generated_at": "2026-01-02T03:04:05Z",
        "suite": "subset",
        "network_mode": "offline",
        "determinism": "strict",
        "repeats": 0,
        "determinism_repeats": None,
        "run_dir": "runs/subset",
        "invarlock_version": "0.12.1",
        "model_list": ["acme/tiny"],
        "models": [{"model_id": "acme/tiny", "revision": "main"}],
        "builder": {
            "id": "invarlock/evidence-pack@v1",
            "name": "InvarLock Evidence Pack Runner",
            "version": "0.12.1",
        },
        "subject": {
            "name": "final_verdict",
            "path": subject.relative_to(pack).as_posix(),
            "digest": "sha256:" + hashlib.sha256(subject.read_bytes()).hexdigest(),
        },
        "artifacts": [path.relative_to(pack).as_posix() for path in listed],
        "checksums_sha256": "checksums.sha256",
        "checksums_sha256_digest": hashlib.sha256("".join(lines).encode()).hexdigest(),
        "evidence_level": "medium",
    }
    loaded = packs.keys.load_signing_key(key)
    document["signing_key_fingerprint"] = packs.keys.fingerprint(loaded.public)
    (pack / "manifest.json").write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")
    packs.sign_bytes(pack, key)
    for name in ("manifest.json", "manifest.signature.json", "checksums.sha256"):
        (pack / "metadata" / name).write_bytes((pack / name).read_bytes())
