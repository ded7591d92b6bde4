"""From changes of singular values to caps and a decision: what every rule of the guard shares.

Per matrix or product of matrices ``r`` is ln(sigma_s / sigma_b) and ``z = r / tau`` with the tau of
the family: a preset's, or ``ln(1 + deadband) / kappa``, so that ``|z| > kappa`` says that sigma
moved by more than the deadband. A cap is applied where ``|z| > kappa`` **and** the change survives
multiple testing, ``p = erfc(|z| / sqrt(2))`` (Benjamini-Hochberg: JRSS B 57, 1995; or Bonferroni).
More than ``max_caps`` caps block, and so does any finding that is fatal.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from invarlock.guards import rows
from invarlock.policy import SpectralPolicy

CAPPED = "family_z_cap"  # type of a violation


class Change(NamedTuple):
    """How far the largest singular value of a matrix or product moved."""

    name: str
    family: str
    log_ratio: float  # of subject over baseline, which may be that of another statistic of it
    sigma: float
    baseline_sigma: float


def family_caps(policy: SpectralPolicy) -> dict[str, dict[str, float]]:
    """``kappa`` and ``tau`` of every family that has its own."""
    families = sorted({*policy.family_caps, *policy.tau_by_family})
    return {f: {"kappa": policy.kappa(f), "tau": policy.tau(f)} for f in families}


def log_ratio(subject: float, baseline: float) -> float:
    """``ln(subject / baseline)``, finite: a vanished or newborn sigma counts as e**(+-20)."""
    if subject <= 0 or baseline <= 0:
        return 0.0 if subject == baseline else math.copysign(20.0, subject - baseline)
    return math.log(subject / baseline)


def selected(p_values: Sequence[float], method: str, alpha: float) -> list[bool]:
    """Which hypotheses survive multiple testing (``bh`` or ``bonferroni``) at level ``alpha``."""
    m = len(p_values)
    if method == "bonferroni":
        return [p <= alpha / m for p in p_values]
    # Benjamini and Hochberg (JRSS B 57, 1995): up to the last p below its line, not to the first
    # one above, so that a p above its own line is kept if a later one is below.
    order = sorted(range(m), key=p_values.__getitem__)
    rank = max((k for k, i in enumerate(order, 1) if p_values[i] <= alpha * k / m), default=0)
    keep = set(order[:rank])
    return [i in keep for i in range(m)]


def decide(
    changes: Sequence[Change],
    found: Sequence[Mapping[str, Any]],
    policy: SpectralPolicy,
    row_tables: Sequence[rows.RowTable],
    counts: Mapping[str, int],
    accepted: Collection[str] = (),
) -> dict[str, Any]:
    """The decided part of the report's ``spectral`` block.

    Args:
        changes: in the order of their names.
        found: matrices or products that collapsed, made by :func:`collapsed`.
        policy: the limits.
        row_tables: how far rows of tables moved.
        counts: what the summary says was checked.
        accepted: names of findings that the user accepts, which then block nothing.
    """
    kappas = [policy.kappa(one.family) for one in changes]
    z = [one.log_ratio / policy.tau(one.family) for one in changes]
    testing = policy.multiple_testing
    p_values = [math.erfc(abs(v) / math.sqrt(2)) for v in z]
    survives = selected(p_values, testing.method, testing.alpha)
    capped = [i for i, v in enumerate(z) if abs(v) > kappas[i] and survives[i]]
    violations = [
        {
            "type": CAPPED,
            "module": changes[i].name,
            "family": changes[i].family,
            "z_score": round(z[i], 6),
            "kappa": kappas[i],
            "sigma": changes[i].sigma,
            "baseline_sigma": changes[i].baseline_sigma,
            "severity": "budgeted",
        }
        for i in capped
    ]
    row_changes = rows.judge(row_tables, policy.rows)
    others = [*found, *rows.findings(row_changes)]
    through = sorted({d["accept"] for d in others if d.get("accept") in accepted})
    fatal = [d for d in others if d["severity"] == "fatal" and d.get("accept") not in through]
    exceeded = len(capped) > policy.max_caps
    passed = not fatal and not exceeded
    return {
        "evaluated": True,
        "passed": passed,
        "decision": "block" if not passed else "monitor" if capped or others else "allow",
        "status": "unstable" if not passed else "capped" if capped else "stable",
        "caps_applied": len(capped),
        "max_caps": policy.max_caps,
        "caps_exceeded": exceeded,
        "fatal_violations": len(fatal),
        "violations": violations + others,
        **({"accepted": through} if through else {}),
        "row_changes": row_changes,
        "family_caps": family_caps(policy),
        "family_z_summary": _family_summary(changes, z, kappas, capped),
        "multiple_testing": {
            "method": testing.method,
            "alpha": testing.alpha,
            "m": len(changes),
        },
        "deadband": policy.deadband,
        "summary": {
            **counts,
            "max_abs_log_ratio": round(max((abs(c.log_ratio) for c in changes), default=0.0), 9),
            "max_abs_z": round(max(map(abs, z), default=0.0), 6),
        },
    }


def fell(
    name: str,
    family: str,
    values: Sequence[tuple[str, float, float]],
    policy: SpectralPolicy,
) -> list[dict[str, Any]]:
    """Findings where a statistic fell below its warning or fatal fraction of the baseline's.

    Args:
        name: of the matrix or product.
        family: of it.
        values: name of each statistic, of the baseline and of the subject.
        policy: the limits; those of ``norm_collapse`` hold for all but the stable rank.
    """
    limits = policy.degeneracy
    found: list[dict[str, Any]] = []
    for field, base, mine in values:
        limit = limits.stable_rank if field == "stable_rank" else limits.norm_collapse
        if base <= 0:  # the baseline itself is degenerate here: nothing to fall from
            continue
        ratio = mine / base
        if ratio < limit.warn_ratio:
            fatal = ratio < limit.fatal_ratio
            threshold = limit.fatal_ratio if fatal else limit.warn_ratio
            severity = "fatal" if fatal else "warning"
            found.append(collapsed(name, family, field, ratio, threshold, severity))
    return found


def collapsed(
    name: str, family: str, field: str, ratio: float, threshold: float, severity: str
) -> dict[str, Any]:
    """A finding: ``field`` of the subject is only this ``ratio`` of the baseline's."""
    return {
        "type": "degenerate_" + field,
        "module": name,
        "family": family,
        "ratio": round(ratio, 9),
        "threshold": round(threshold, 9),
        "severity": severity,
    }


def _family_summary(
    changes: Sequence[Change],
    z: Sequence[float],
    kappas: Sequence[float],
    capped: Sequence[int],
) -> dict[str, dict[str, Any]]:
    summary: dict[str, dict[str, Any]] = {}
    for family in sorted({one.family for one in changes}):
        members = [i for i, one in enumerate(changes) if one.family == family]
        scores = [abs(z[i]) for i in members]
        summary[family] = {
            "max": round(max(scores), 6),
            "mean": round(sum(scores) / len(scores), 6),
            "count": len(members),
            "violations": sum(i in capped for i in members),
            "kappa": kappas[members[0]],
        }
    return summary
