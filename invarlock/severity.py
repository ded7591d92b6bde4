"""The one order in which findings of guards are named: the worst first."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar

# A module beyond its cap is "budgeted": so many of them may be, and the guard fails beyond that.
NOTHING_EDITED = "nothing_edited"  # type of the finding that a label says more than was done
SEVERITIES = ("fatal", "budgeted", "warning")

Finding = TypeVar("Finding", bound=Mapping[str, Any])


def worst_first(
    findings: Sequence[Finding], accepted: Collection[str] = frozenset()
) -> list[Finding]:
    """Findings by weight: fatal, budgeted, warning, then those that the user accepted.

    Whoever names "the reason" takes the first of these. Findings of one weight keep their order,
    which is that of the checks that made them, the most basic first.

    Args:
        findings: with a ``severity``; one that is not known is as bad as fatal.
        accepted: names that the user accepts; a finding with such a name in ``accept`` is last.
    """

    def weight(finding: Finding) -> int:
        if finding.get("accept") in accepted:
            return len(SEVERITIES)
        severity = finding.get("severity")
        return SEVERITIES.index(severity) if severity in SEVERITIES else 0

    return sorted(findings, key=weight)
