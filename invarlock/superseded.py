"""Answers about an earlier subject are set aside before anything is said of the next one.

A run that is refused or fails leaves its folder as it was. What lies there as a verdict, a report
or a pack would be read as the answer to what was asked last. It is moved, not removed: a signed
pack may be the only copy.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from invarlock.files import digest_json, write_text

FOLDER = "superseded"  # in the folder of a run; holds the answers that were set aside last
RECORD = "state/asked.txt"  # digest of what the answers in the folder are about
# What follows from evaluations, and nothing else is made from but these.
ANSWERS = (
    "reports/final_verdict.json",
    "reports/final_verdict.txt",
    "reports/category_summary.json",
    "reports/guard_signal_summary.json",
    "reports/guard_intervention_summary.json",
    "reports/scenario_signal_summary.json",
    "reports/verification_summary.json",
    "analysis/edit_artifact_summary.json",
    "evidence_pack",
    "verify_pack.json",
)


def supersede(out: Path, asked: object, evaluations: Iterable[str]) -> Path | None:
    """Set the answers in ``out`` aside if they are about something else than ``asked``.

    Args:
        out: folder of the run.
        asked: what is asked about, as JSON: the user's folders, and the state of their files.
        evaluations: folders below ``out`` that are about it too.

    Returns:
        where they are now; None where nothing was set aside.
    """
    record = out / RECORD
    if record.is_file() and record.read_text().strip() == digest_json(asked):
        return None
    return set_aside(out, [*ANSWERS, *evaluations])


def record_asked(out: Path, asked: object) -> None:
    """Record what the answers will be about that the run in ``out`` now makes."""
    write_text(out / RECORD, digest_json(asked) + "\n")


def set_aside(out: Path, names: Iterable[str]) -> Path | None:
    """Move what is there of ``names`` into the folder of superseded answers, emptied first.

    Returns:
        that folder; None where nothing is there to be moved.
    """
    there = [name for name in names if os.path.lexists(out / name)]
    if not there:
        return None
    place = out / FOLDER
    shutil.rmtree(place, ignore_errors=True)
    for name in there:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).rename(place / name)
    return place
