"""``edit_metadata.json``: what was edited, how, and the digests that identify the result."""

from __future__ import annotations

from invarlock.checkpoints import Checkpoint
from invarlock.contracts import validate
from invarlock.documents.kinds import CUSTOM
from invarlock.edits.apply import Edited, six_digits
from invarlock.subject_metadata import EDIT_SCHEMA, VALIDATION


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


def custom_metadata(baseline: Checkpoint, subject: Checkpoint, label: str) -> dict[str, object]:
    """The document of a subject that somebody else made: which tensors differ, by content."""
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
            "edit_type": CUSTOM,
            "storage_format": CUSTOM,
            "actual_storage_format": CUSTOM,
            "run_directory_contains_edit_artifacts": False,
            "scope": "none",
            "parameters": {"label": label},
            "seed": 0,
            "details": {},
            "edited_tensors": differing,
            "unchanged_tensors": [],
            "subject_checkpoint_sha256": subject.digest(),
        },
        len(differing),
    )


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
