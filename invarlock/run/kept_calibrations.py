"""Calibrations of a baseline, kept for the next subject.

A calibration depends on the baseline, the windows and how they are measured, and on no subject. It
is kept as ``<key>.json`` in a folder of the user's choice, the key being the digest of all it
depends on, the code and the libraries included: what has changed is measured again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from invarlock.code_digest import code_digest
from invarlock.contracts import violations
from invarlock.errors import InputError
from invarlock.files import digest_json, read_json_object
from invarlock.preset import NULL_EDITS
from invarlock.run.calibrate import Calibration
from invarlock.run.loading import arithmetic
from invarlock.run.surroundings import libraries

Document = dict[str, Any]


def place(folder: Path, plan: Calibration, determinism: Mapping[str, Any]) -> Path:
    """The file for the calibration of a plan.

    Args:
        folder: where calibrations are kept.
        plan: what is measured; its device has to be the one that is used.
        determinism: what ``seed_everything`` put in force.
    """
    import torch

    depends_on = {
        "model_id": plan.model_id,
        "checkpoint_sha256": plan.baseline.digest(),
        "windows": [windows.sha256 for windows in plan.windows],
        "null_edits": list(NULL_EDITS),
        "arithmetic": list(arithmetic(plan.target)),
        "cpu": torch.backends.cpu.get_cpu_capability(),  # other kernels, other last digits
        "allow_remote_code": plan.target.allow_remote_code,
        "token_budget": plan.token_budget,
        "determinism": dict(determinism),
        "libraries": libraries(),
        "code": code_digest("invarlock.cli.calibrate"),
    }
    return folder / f"{digest_json(depends_on)}.json"


def kept(path: Path) -> Document | None:
    """The calibration that is kept there; None: none, or a file that somebody damaged."""
    try:
        found = read_json_object(path)
    except InputError:
        return None
    return None if violations(found, "calibration-stats") else found
