"""Spectral guard: did the largest singular value or the rank of a weight matrix change?

Per module: ``r = ln(sigma_s / sigma_b)`` and ``z = r / tau`` with the tau of the module's family:
a preset's, or ``ln(1 + deadband) / kappa``, so that ``|z| > kappa`` says that sigma moved by more
than the deadband. A cap is applied where ``|z| > kappa`` **and** the module
survives multiple testing over all modules, ``p = erfc(|z| / sqrt(2))`` (Benjamini-Hochberg:
JRSS B 57, 1995; or Bonferroni). More than ``max_caps`` caps block. A stable rank or a row or
column norm that fell below its fatal ratio to the baseline blocks at once, and so does a row of an
embedding, head or position table that changed far beyond the others (``invarlock.guards.rows``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from invarlock.guards import rows
from invarlock.guards.weight_stats import WeightStats
from invarlock.policy import SpectralPolicy

SIGNIFICANT = 9  # digits kept of a recorded statistic; far below the estimator's error


class Module(NamedTuple):
    """A weight matrix with its family and its statistics."""

    name: str
    family: str
    layer: int | None
    stats: WeightStats


def to_table(modules: Sequence[Module]) -> dict[str, list[Any]]:
    """Modules as columns: compact, sorted by name, numbers to ``SIGNIFICANT`` digits."""
    ordered = sorted(modules, key=lambda m: m.name)
    table: dict[str, list[Any]] = {
        "name": [m.name for m in ordered],
        "family": [m.family for m in ordered],
        "layer": [m.layer for m in ordered],
    }
    for field in WeightStats.fields():
        table[field] = [rounded(getattr(m.stats, field)) for m in ordered]
    return table


def rounded(value: float) -> float | None:
    """A statistic as it is recorded: ``SIGNIFICANT`` digits; null where it is not finite."""
    return float(f"{value:.{SIGNIFICANT}g}") if math.isfinite(value) else None


def from_table(table: Mapping[str, Sequence[Any]]) -> list[Module]:
    """The inverse of :func:`to_table`."""
    columns = (map(float, table[field]) for field in WeightStats.fields())
    stats = map(WeightStats._make, zip(*columns, strict=True))
    head = (table[key] for key in ("name", "family", "layer"))
    return [
        Module(str(name), str(family), layer, one)
        for name, family, layer, one in zip(*head, stats, strict=True)
    ]


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
    order = sorted(range(m), key=p_values.__getitem__)
    rank = max((k for k, i in enumerate(order, 1) if p_values[i] <= alpha * k / m), default=0)
    keep = set(order[:rank])
    return [i in keep for i in range(m)]


def judge(
    baseline: Sequence[Module],
    subject: Sequence[Module],
    policy: SpectralPolicy,
    row_tables: Sequence[rows.RowTable] = (),
) -> dict[str, Any]:
    """Compare the modules of two runs, both lists of the same names, and the rows of tables.

    Returns:
        the decided part of the report's ``spectral`` block.
    """
    reference = {module.name: module for module in baseline}
    pairs = [(reference[module.name], module) for module in sorted(subject, key=lambda m: m.name)]
    changes = [log_ratio(s.stats.sigma_max, b.stats.sigma_max) for b, s in pairs]
    kappas = [policy.kappa(s.family) for _, s in pairs]
    z = [r / policy.tau(s.family) for r, (_, s) in zip(changes, pairs, strict=True)]
    survives = selected([math.erfc(abs(v) / math.sqrt(2)) for v in z], policy.method, policy.alpha)
    capped = [i for i, v in enumerate(z) if abs(v) > kappas[i] and survives[i]]
    violations = [
        {
            "type": "family_z_cap",
            "module": pairs[i][1].name,
            "family": pairs[i][1].family,
            "z_score": round(z[i], 6),
            "kappa": kappas[i],
            "sigma": pairs[i][1].stats.sigma_max,
            "baseline_sigma": pairs[i][0].stats.sigma_max,
            "severity": "budgeted",
        }
        for i in capped
    ]
    row_changes = rows.judge(row_tables, policy.rows)
    found = [d for b, s in pairs for d in _degeneracy(b, s, policy)] + rows.findings(row_changes)
    fatal = [d for d in found if d["severity"] == "fatal"]
    exceeded = len(capped) > policy.max_caps
    passed = not fatal and not exceeded
    return {
        "evaluated": True,
        "passed": passed,
        "decision": "block" if not passed else "monitor" if capped or found else "allow",
        "status": "unstable" if not passed else "capped" if capped else "stable",
        "caps_applied": len(capped),
        "max_caps": policy.max_caps,
        "caps_exceeded": exceeded,
        "fatal_violations": len(fatal),
        "violations": violations + found,
        "row_changes": row_changes,
        "family_caps": family_caps(policy),
        "family_z_summary": _family_summary(pairs, z, kappas, capped),
        "multiple_testing": {
            "method": policy.method,
            "alpha": policy.alpha,
            "m": len(pairs),
        },
        "deadband": policy.deadband,
        "summary": {
            "modules_checked": len(pairs),
            "max_abs_log_ratio": round(max(map(abs, changes), default=0.0), 9),
            "max_abs_z": round(max(map(abs, z), default=0.0), 6),
        },
    }


def _degeneracy(b: Module, s: Module, policy: SpectralPolicy) -> list[dict[str, Any]]:
    """Stable rank and norms of one module against the baseline's, warn or fatal."""
    limits = policy.degeneracy
    checks = [
        ("stable_rank", limits.stable_rank_warn, limits.stable_rank_fatal),
        ("row_min", limits.norm_warn, limits.norm_fatal),
        ("column_min", limits.norm_warn, limits.norm_fatal),
    ]
    found: list[dict[str, Any]] = []
    for field, warn, fatal in checks:
        base, now = getattr(b.stats, field), getattr(s.stats, field)
        if base <= 0:  # the baseline itself is degenerate here: nothing to fall from
            continue
        ratio = now / base
        if ratio < warn:
            found.append(
                {
                    "type": "degenerate_" + field,
                    "module": s.name,
                    "family": s.family,
                    "ratio": round(ratio, 9),
                    "threshold": fatal if ratio < fatal else warn,
                    "severity": "fatal" if ratio < fatal else "warning",
                }
            )
    return found


def _family_summary(
    pairs: Sequence[tuple[Module, Module]],
    z: Sequence[float],
    kappas: Sequence[float],
    capped: Sequence[int],
) -> dict[str, dict[str, Any]]:
    summary: dict[str, dict[str, Any]] = {}
    for family in sorted({s.family for _, s in pairs}):
        members = [i for i, (_, s) in enumerate(pairs) if s.family == family]
        scores = [abs(z[i]) for i in members]
        summary[family] = {
            "max": round(max(scores), 6),
            "mean": round(sum(scores) / len(scores), 6),
            "count": len(members),
            "violations": sum(i in capped for i in members),
            "kappa": kappas[members[0]],
        }
    return summary
