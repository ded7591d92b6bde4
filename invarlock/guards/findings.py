"""Findings on checkpoints: their form, and those that digests alone give.

Apart from the guard that judges them: who only looks or describes depends on no threshold.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from invarlock.scenarios import CUSTOM_SPEC, NOOP
from invarlock.severity import NOTHING_EDITED

# {type, severity: fatal | warning, message} and, where a user may accept it, accept: NAME
Failure = dict[str, Any]


def label_of(given: str, baseline: Mapping[str, Any], subject: Mapping[str, Any]) -> str:
    """What is said to have been done to a subject that somebody else made.

    Where nothing is said, what can be seen of it: a no-op where every weight is the baseline's.

    Args:
        given: the label, or nothing.
        baseline: parts of the baseline's digest (``invarlock.checkpoints.checkpoint_parts``).
        subject: those of the subject.
    """
    same = baseline["weights_sha256"] == subject["weights_sha256"]
    return given or (NOOP if same else CUSTOM_SPEC)


def unnamed_noop() -> Failure:
    """The note that a subject was taken for a no-op because nobody said what it is."""
    message = (
        "no weight differs from the baseline's and no label says what was done: judged as a no-op;"
        " if an edit was meant, it was never applied"
    )
    return {"type": "unnamed_noop", "severity": "warning", "message": message}


def nothing_edited(
    label: str, baseline: Mapping[str, Any] | None, subject: Mapping[str, Any] | None
) -> list[Failure]:
    """The finding that an edit was never applied.

    Args:
        label: what is said to have been done to the subject.
        baseline: parts of the baseline's digest (``invarlock.checkpoints.checkpoint_parts``).
        subject: those of the subject; None where it was not looked at.
    """
    weights = subject and subject.get("weights_sha256")
    if label == NOOP or not weights or not baseline or baseline.get("weights_sha256") != weights:
        return []
    message = (
        f"nothing was edited: every weight is byte for byte the baseline's, and the label says"
        f" {label}; apply the edit, or label an unedited checkpoint {NOOP}"
    )
    return [{"type": NOTHING_EDITED, "severity": "fatal", "message": message}]
