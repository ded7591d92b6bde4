"""``edit_metadata.json``: what was edited, how, and the digests that identify the result."""

from __future__ import annotations

from invarlock.checkpoints import Checkpoint
from invarlock.contracts import validate
from invarlock.edits.apply import Edited
from invarlock.edits.blocks import Loss
from invarlock.edits.specs import LowRankSvd, MagnitudePrune

SCHEMA = "invarlock/evidence-pack-edit-metadata-v1"


def edit_metadata(baseline: Checkpoint, edited: Edited) -> dict[str, object]:
    """The document, valid against its contract; nothing in it depends on where or when."""
    spec, subject = edited.spec, edited.subject
    n_edited = sum(info.numel for info in edited.targets)
    document: dict[str, object] = {
        "schema": SCHEMA,
        "artifact_class": "validation_subject_checkpoint",
        "edit_type": spec.edit_type,
        "edit_semantics": "external_subject_validation_edit",
        "deployable_as_hf_checkpoint": True,
        "optimized_deployment_backend": False,
        "backend": None,
        "storage_format": spec.storage_format,
        "actual_storage_format": spec.storage_format,
        "packed_quantized_storage": False,
        "runtime_memory_reduction": False,
        "runtime_memory_reduction_expected": False,
        "run_directory_contains_edit_artifacts": True,
        "scope": str(getattr(spec, "scope", "none")),
        "parameters": spec.parameters(),
        "seed": edited.seed,
        "coverage": {
            "edited_tensors": len(edited.targets),
            "edited_params": n_edited,
            "total_params": baseline.n_parameters,
            "coverage_ratio": n_edited / baseline.n_parameters,
        },
        "details": _details(edited, n_edited),
        "edited_tensors": subject.written,
        "unchanged_tensors": sorted(set(subject.written) - set(subject.differing)),
        "baseline_checkpoint_sha256": baseline.digest(),
        "subject_checkpoint_sha256": subject.digest,
    }
    validate(document, "edit-metadata", "edit_metadata.json")
    return document


def _details(edited: Edited, n_edited: int) -> dict[str, float]:
    """Six significant digits: enough to read, and the same on machines that sum differently."""
    loss: Loss = edited.loss
    details = {"relative_error": loss.relative}
    if isinstance(edited.spec, MagnitudePrune):
        details["target_sparsity"] = edited.spec.sparsity
        details["actual_sparsity"] = loss.zeros / n_edited
    if isinstance(edited.spec, LowRankSvd):
        details["avg_energy_retained"] = 1.0 - loss.relative**2
    return {name: float(f"{value:.6g}") for name, value in details.items()}
