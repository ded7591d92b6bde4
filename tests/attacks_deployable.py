"""Lies in the records beside a deployable subject: each contradicts another, or the report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from attacks import REPORT, SCENARIOS, Attack, Lab
from pack_factory import CLEAN, Document, edit_json, write_json
from test_deployable import (
    INFERENCE,
    INVENTORY,
    LOAD,
    MEMORY,
    RAN,
    VALIDATION,
    WHO,
    five,
    modules,
    packing,
)

from invarlock.scenarios import DEPLOYABLE

LIES: dict[str, tuple[str, Callable[[Document], object]]] = {
    "another subject": (LOAD, lambda d: d.update(subject_checkpoint_sha256="d" * 64)),
    "another subject is asked": (INFERENCE, lambda d: d.update(subject_checkpoint_sha256="d" * 64)),
    "another baseline": (INVENTORY, lambda d: d.update(baseline_checkpoint_sha256="d" * 64)),
    "loaded although weights lack": (LOAD, lambda d: d["missing"].append("x")),
    "not from the files": (LOAD, lambda d: d.update(loaded_from_saved_checkpoint=False)),
    "another backend loads": (LOAD, lambda d: d.update(backend="vllm")),
    "another version loads": (LOAD, lambda d: d.update(backend_version="9")),
    "another version runs": (INVENTORY, lambda d: d["versions"].update(gguf="9")),
    "other kernels": (INVENTORY, lambda d: d.update(kernels={"torch.Linear": 2})),
    "another format": (INVENTORY, lambda d: d.update(format="awq")),
    "a module left out": (INVENTORY, lambda d: d["modules"].popitem()),
    "a module of fewer bytes": (INVENTORY, lambda d: _first(d).update(bytes=512)),
    "a module of other bits": (INVENTORY, lambda d: _first(d).update(bits=2.0)),
    "a module that is dense": (INVENTORY, lambda d: _first(d).update(packed=False)),
    "more modules": (INVENTORY, lambda d: d.update(quantized_module_count=3)),
    "other types": (INVENTORY, lambda d: d.update(quantized_module_types=["int4"])),
    "fewer bits": (INVENTORY, lambda d: d.update(stored_bits=4.0)),
    "smaller files": (INVENTORY, lambda d: d.update(bytes_packed=10)),
    "larger dense weights": (INVENTORY, lambda d: d.update(bytes_dense=10**9)),
    "a smoke that was none": (INVENTORY, lambda d: d.update(inference_smoke=False)),
    "a smaller footprint": (INVENTORY, lambda d: d["memory_footprint"].update(reported_bytes=1)),
    "smaller on disk": (MEMORY, lambda d: d["subject"].update(file_bytes=10)),
    "smaller in memory": (MEMORY, lambda d: d.update(quantized_reported_bytes=10)),
    "a larger baseline": (MEMORY, lambda d: d.update(baseline_reported_bytes=10**9)),
    "both of them": (MEMORY, lambda d: (d.update(quantized_reported_bytes=10),
                                        d["subject"].update(reported_bytes=10))),
    "a larger reduction": (MEMORY, lambda d: d.update(reduction_bytes=7000)),
    "a larger ratio": (MEMORY, lambda d: d.update(reduction_ratio=0.7)),
    "a reduction that is none": (MEMORY, lambda d: d.update(
        runtime_memory_reduction_observed=False)),
    "more agreement": (INFERENCE, lambda d: d.update(agreement=1.0)),
    "a better answer": (INFERENCE, lambda d: d["answers"][0].update(agreed=3)),
    "another answer": (INFERENCE, lambda d: d["answers"][0].update(subject=[7, 9, 9])),
    "numbers that were none": (INFERENCE, lambda d: d["answers"][0].update(logits_finite=False)),
    "no answer": (INFERENCE, lambda d: d["answers"].clear()),
    "in order": (VALIDATION, lambda d: d.update(ok=False)),
    "an issue": (VALIDATION, lambda d: d["issues"].append("slow")),
    "another backend is named": (VALIDATION, lambda d: d.update(backend="vllm")),
    "less memory": (VALIDATION, lambda d: d.update(runtime_memory_reduction_observed=False)),
    "storage": (VALIDATION, lambda d: d.update(packed_quantized_storage=False)),
}  # fmt: skip


def _first(inventory: Document) -> Document:
    found: Document = next(iter(inventory["modules"].values()))
    return found


def deployable(lab: Lab) -> None:
    """A pack whose clean edit is packed for another program, with all five records."""

    def packed(report: Document) -> None:
        report["meta"]["execution"] = {**packing(modules()), **RAN}

    def of_class(document: Document) -> None:
        (entry,) = (e for e in document["scenarios"] if f"/{e['id']}/" in CLEAN)
        entry["artifact_class"] = DEPLOYABLE

    edit_json(lab.pack / REPORT, packed)
    edit_json(lab.pack / SCENARIOS, of_class)
    edit_json(lab.pack / CLEAN / "edit_metadata.json", lambda d: d.update(
        artifact_class=DEPLOYABLE, packed_quantized_storage=True, optimized_deployment_backend=True,
    ))  # fmt: skip
    sides = json.loads((lab.pack / REPORT).read_text())["provenance"]
    text = json.dumps(five())
    for side, stated in (("baseline", WHO.baseline), ("subject", WHO.subject)):
        text = text.replace(stated, sides[side]["checkpoint_sha256"])
    for name, document in json.loads(text).items():
        write_json(lab.pack / CLEAN / name, document)


def told(name: str, change: Callable[[Document], object]) -> Callable[[Lab], object]:
    """One of the five records is changed."""

    def damage(lab: Lab) -> None:
        deployable(lab)
        edit_json(Path(lab.pack / CLEAN / name), change)

    return damage


ROWS = [
    Attack(f"deployable: {lie}", "scenarios", "deployable.records", told(*LIES[lie]), "binder")
    for lie in LIES
]
HARMLESS: list[Attack] = []
