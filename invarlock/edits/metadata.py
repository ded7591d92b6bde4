"""``edit_metadata.json``: what was edited, how, and the digests that identify the result."""

from __future__ import annotations

from invarlock.checkpoints import Checkpoint
from invarlock.contracts import validate
from invarlock.deployment import PackingSpec
from invarlock.documents.kinds import CUSTOM
from invarlock.edits.apply import Edited, six_digits
from invarlock.scenarios import DEPLOYABLE, VALIDATION
from invarlock.subject_metadata import EDIT_SCHEMA


def edit_metadata(baseline: Checkpoint, edited: Edited) -> dict[str, object]:
    """The document, valid against its contract; nothing in it depends on where or when.

    What was trained has values that depend on the arithmetic, which its record names.
    """
    spec, subject = edited.spec, edited.subject
    from_text = [edited.given.section] if edited.given else []
    n_edited = sum(info.numel for info in edited.targets)
    return _document(
        baseline,
        n_edited,
        {
            **spec.describe(),
            "run_directory_contains_edit_artifacts": True,
            "seed": edited.seed,
            "details": _details(edited, n_edited),
            "edited_tensors": subject.written,
            "unchanged_tensors": sorted(set(subject.written) - set(subject.differing)),
            "subject_checkpoint_sha256": subject.digest,
            **dict(from_text),
        },
        len(edited.targets),
    )


def custom_metadata(
    baseline: Checkpoint,
    subject: Checkpoint,
    label: str,
    artifact_class: str = VALIDATION,
    packing: PackingSpec | None = None,
) -> dict[str, object]:
    """The document of a subject that no edit made: which tensors differ, by content.

    Args:
        baseline: what it came from.
        subject: what somebody brought, or what a backend packed.
        label: what was done to a subject that somebody brought.
        artifact_class: what it is for.
        packing: what a backend of ours packed it as.
    """
    shared = sorted(set(baseline.tensors) & set(subject.tensors))
    differing = {
        name: subject.tensor_digest(name)
        for name in shared
        if baseline.tensors[name].nbytes != subject.tensors[name].nbytes
        or baseline.tensor_digest(name) != subject.tensor_digest(name)
    }
    return _document(
        baseline,
        sum(baseline.tensors[name].numel for name in differing),
        {
            **_storage(subject, artifact_class),
            "edit_type": packing.backend if packing else CUSTOM,
            "storage_format": CUSTOM,
            "run_directory_contains_edit_artifacts": packing is not None,
            "scope": "none",
            "parameters": _packed_as(packing) if packing else {"label": label},
            "seed": 0,
            "details": {},
            "edited_tensors": differing,
            "unchanged_tensors": [],
            "subject_checkpoint_sha256": subject.digest(),
        },
        len(differing),
    )


def _storage(subject: Checkpoint, artifact_class: str) -> dict[str, object]:
    """How a subject stores its weights, and what for."""
    held = subject.packing()
    deployable = artifact_class == DEPLOYABLE
    return {
        "artifact_class": artifact_class,
        "edit_semantics": "backend_deployable_edit"
        if deployable
        else "external_subject_validation_edit",
        "deployable_as_hf_checkpoint": subject.form.configured,
        "optimized_deployment_backend": deployable,
        "backend": held["format"] if held else None,
        "actual_storage_format": held["format"] if held else CUSTOM,
        "packed_quantized_storage": bool(held),
        "runtime_memory_reduction_expected": bool(held)
        and held["bytes_packed"] < held["bytes_dense"],
    }


def _packed_as(packing: PackingSpec) -> dict[str, str]:
    """Form and damage of a packing, as metadata state parameters."""
    return {"form": packing.form} | ({"damage": packing.damage} if packing.damage else {})


def _document(
    baseline: Checkpoint, n_edited: int, own: dict[str, object], n_tensors: int
) -> dict[str, object]:
    """What every subject's metadata says, with what is ``own`` to one; checked."""
    document: dict[str, object] = {
        "schema": EDIT_SCHEMA,
        "artifact_class": VALIDATION,
        "edit_semantics": "external_subject_validation_edit",
        "deployable_as_hf_checkpoint": True,
        "optimized_deployment_backend": False,
        "backend": None,
        "packed_quantized_storage": False,
        "runtime_memory_reduction": False,
        "runtime_memory_reduction_expected": False,
        "coverage": {
            "edited_tensors": n_tensors,
            "edited_params": n_edited,
            "total_params": baseline.n_parameters,
            "coverage_ratio": n_edited / baseline.n_parameters,
        },
        "baseline_checkpoint_sha256": baseline.digest(),
        **own,
    }
    validate(document, "edit-metadata", "edit_metadata.json")
    return document


def _details(edited: Edited, n_edited: int) -> dict[str, float]:
    """What the edit did to its targets together."""
    own = edited.spec.details(edited.loss, n_edited)
    details = {"relative_error": edited.loss.relative, **own}
    return {name: six_digits(value) for name, value in details.items()}
