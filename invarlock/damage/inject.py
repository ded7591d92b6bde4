"""One injection, from its parameters to a damaged checkpoint folder and its metadata."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from invarlock.checkpoints import Checkpoint
from invarlock.contracts import validate
from invarlock.damage.kind import Damage
from invarlock.edits.blocks import one_thread
from invarlock.edits.stream import CheckpointChange, Subject, write_subject
from invarlock.subject_metadata import ERROR_SCHEMA


@dataclass(frozen=True)
class Injected:
    """The result of an injection: what was meant and what was written."""

    damage: Damage
    seed: int
    change: CheckpointChange
    subject: Subject


def inject(baseline: Checkpoint, damage: Damage, out: Path, seed: int = 0) -> Injected:
    """Write the damaged checkpoint to ``out``.

    Raises:
        ConfigError: no target, or nothing would change.
        InputError: a file cannot be read or written, or the weights cannot be damaged this way.
    """
    checked = damage.check(baseline)
    change = checked.change(baseline, seed)
    with one_thread():
        subject = write_subject(baseline, change, out)
    return Injected(checked, seed, change, subject)


def error_metadata(baseline: Checkpoint, injected: Injected) -> dict[str, object]:
    """The document ``error_metadata.json``, valid against its contract."""
    subject, change = injected.subject, injected.change
    config = baseline.config if change.config is None else change.config
    keys = {*config, *baseline.config}
    # all of them where only a configuration says otherwise: a head stored though it was tied
    changed = {n: s for n, s in subject.written.items() if n in subject.differing}
    changed = changed or subject.written
    targets = {*changed, *change.dropped, *change.cut, *subject.files, *change.removed}
    document: dict[str, object] = {
        "schema": ERROR_SCHEMA,
        "artifact_class": "fault_injection_fixture",
        **injected.damage.describe(),
        "injected": True,
        "targets": sorted(targets or {"config.json"}),
        "seed": injected.seed,
        "changed_tensors": changed,
        "changed_files": subject.files,
        "dropped_tensors": sorted(change.dropped),
        "changed_config_keys": sorted(k for k in keys if config.get(k) != baseline.config.get(k)),
        "baseline_checkpoint_sha256": baseline.digest(),
        "subject_checkpoint_sha256": subject.digest,
    }
    validate(document, "error-metadata", "error_metadata.json")
    return document
