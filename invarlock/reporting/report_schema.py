"""The contract of ``evaluation.report.json``, as constants and as a check."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from invarlock.contracts import load_contract, violations

CONTRACT = "evaluation-report"

REPORT_SCHEMA_VERSION = "v1"
"""What ``schema_version`` of a report says."""

REPORT_JSON_SCHEMA: dict[str, Any] = copy.deepcopy(load_contract(CONTRACT))
"""The contract as JSON Schema, draft 2020-12: what ``contracts/evaluation-report.schema.json``
holds. It is a copy; changing it changes no verification."""


def departures(report: Mapping[str, Any]) -> list[str]:
    """How a report departs from its contract, as ``/pointer what`` lines; none where it does not.

    Args:
        report: a report, as JSON is read.
    """
    return violations(report, CONTRACT)
