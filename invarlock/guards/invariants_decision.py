"""What the invariants guard decides from its findings (no checkpoint needed)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Failure = dict[str, Any]  # {type, severity: fatal | warning, message}


def judge(failures: Sequence[Failure]) -> dict[str, Any]:
    """The decided part of the report's ``invariants`` block."""
    fatal = [f for f in failures if f["severity"] == "fatal"]
    status = "fail" if fatal else "warn" if failures else "ok"
    return {
        "evaluated": True,
        "passed": not fatal,
        "decision": "block" if fatal else "monitor" if failures else "allow",
        "status": status,
        "failures": list(failures),
        "summary": {
            "violations_found": len(failures),
            "fatal_violations": len(fatal),
            "warning_violations": len(failures) - len(fatal),
        },
    }
