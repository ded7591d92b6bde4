"""What the pictures and tables of a page show, read from the columns of a report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from invarlock.guards.rows import ROW_FINDINGS
from invarlock.reporting import signals
from invarlock.reporting.signals import Report, block
from invarlock.reporting.wording import number

FAR = 20.0  # |ln ratio| of what vanished or appeared, as the spectral guard counts it


@dataclass(frozen=True)
class WindowDifference:
    """Loss of the subject minus loss of the baseline on one window, nats per token."""

    window_id: str
    cluster: str
    tokens: float
    nats: float


@dataclass(frozen=True)
class Change:
    """A statistic of a module: subject over baseline; no layer: outside the blocks."""

    name: str
    family: str
    layer: int | None
    log_ratio: float
    stable_rank_ratio: float | None = None


def window_differences(report: Report) -> list[WindowDifference]:
    """The final arm's windows, worst first; windows without a finite loss are left out."""
    final = block(block(report, "evaluation_windows"), "final")
    names = ("window_ids", "clusters", "token_counts", "nll_sum", "baseline_nll_sum")
    found = []
    for name, cluster, tokens, mine, base in rows(final, names):
        n, subject, reference = number(tokens), number(mine), number(base)
        if n and n > 0 and subject is not None and reference is not None:
            difference = (subject - reference) / n
            found.append(WindowDifference(str(name), str(cluster), n, difference))
    return sorted(found, key=lambda d: (-d.nats, d.window_id))


def weighted_mean(differences: Sequence[WindowDifference]) -> float:
    """Token-weighted mean difference, nats per token: the logarithm of the ratio."""
    return sum(d.nats * d.tokens for d in differences) / sum(d.tokens for d in differences)


def quantile(ascending: Sequence[float], q: float) -> float:
    """Linear interpolation between order statistics."""
    place = q * (len(ascending) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ascending) - 1)
    return ascending[low] + (place - low) * (ascending[high] - ascending[low])


def module_changes(report: Report, guard: str, statistic: str) -> list[Change]:
    """The modules of a guard's table, largest change of the statistic first.

    Args:
        guard: ``spectral``, ``rmt`` or ``variance``.
        statistic: the column; ``baseline_`` + its name holds the reference.
    """
    if not signals.evaluated(report, guard):
        return []
    table = block(block(report, guard), "modules")
    # The baseline's names stand in a column of their own where its modules are others.
    theirs = "baseline_name" if "baseline_name" in table else "name"
    before = dict(rows(table, (theirs, "baseline_" + statistic)))
    ranks = rows(table, ("stable_rank", "baseline_stable_rank"))
    found = [
        Change(
            name=str(name),
            family=str(family),
            layer=layer if isinstance(layer, int) else None,
            log_ratio=_log_ratio(number(mine), number(before[name])),
            stable_rank_ratio=_ratio(*ranks[i]) if i < len(ranks) else None,
        )
        for i, (name, family, layer, mine) in enumerate(
            rows(table, ("name", "family", "layer", statistic))
        )
        if name in before
    ]
    return sorted(found, key=lambda m: (-abs(m.log_ratio), m.name))


def rows(table: Mapping[str, Any], names: Sequence[str]) -> list[tuple[Any, ...]]:
    """The rows of named columns; none when a column is missing or the lengths differ."""
    columns = [table.get(name) for name in names]
    lists = [column for column in columns if isinstance(column, list)]
    if len(lists) != len(names) or len({len(column) for column in lists}) != 1:
        return []
    return list(zip(*lists, strict=True))


def _log_ratio(mine: float | None, base: float | None) -> float:
    """ln(mine / base) within +-FAR; a number that was lost lies at the far end."""
    if mine is None:
        return FAR
    if base is None or mine <= 0 or base <= 0:
        return 0.0 if mine == base else math.copysign(FAR, mine - (base or 0.0))
    return max(-FAR, min(FAR, math.log(mine / base)))


def _ratio(mine: object, base: object) -> float | None:
    subject, reference = number(mine), number(base)
    return subject / reference if subject is not None and reference else None


def router_changes(report: Report) -> list[Change]:
    """Entropy of each router, subject over baseline."""
    columns = ("name", "layer", "entropy", "baseline_entropy")
    return [
        Change(
            name=str(name),
            family="router",
            layer=layer if isinstance(layer, int) else None,
            log_ratio=_log_ratio(number(mine), number(base)),
        )
        for name, layer, mine, base in rows(block(block(report, "moe"), "routers"), columns)
    ]


def spectral_limits(report: Report) -> dict[str, tuple[float, float]]:
    """ln(sigma ratio) of each family beyond which a module is capped: kappa * tau."""
    section = block(report, "spectral")
    deadband = number(section.get("deadband"))
    found = {}
    for family, row in block(section, "family_caps").items():
        kappa, tau = (number(row.get(key)) for key in ("kappa", "tau"))
        if kappa is not None and tau is not None:
            found[family] = (-kappa * tau, kappa * tau)
        elif deadband is not None:
            found[family] = (-math.log1p(deadband), math.log1p(deadband))
    return found


def row_findings(report: Report) -> list[Mapping[str, Any]]:
    """Tables with rows that changed far beyond the others; of a shape that can be put in words."""
    found = block(report, "spectral").get("violations")
    return [
        v
        for v in (found if isinstance(found, list) else [])
        if isinstance(v, Mapping)
        and v.get("type") in ROW_FINDINGS
        and None not in [number(v.get(key)) for key in ("rows", "compared", "typical", "limit")]
        and isinstance(listed := v.get("listed"), list)
        and all(isinstance(row, Mapping) and {"row", "token"} <= row.keys() for row in listed)
    ]


def edge_violations(report: Report) -> list[Mapping[str, Any]]:
    """The modules beyond 1 + epsilon, the furthest first; a lost number is furthest."""
    found = block(report, "rmt").get("epsilon_violations")
    violations = [v for v in found if isinstance(v, Mapping)] if isinstance(found, list) else []

    def excess(v: Mapping[str, Any]) -> tuple[float, str]:
        change = _log_ratio(number(v.get("edge_cur")), number(v.get("allowed")))
        return -change, str(v.get("module"))

    return sorted(violations, key=excess)


def edge_limits(report: Report) -> dict[str, tuple[float, float]]:
    """ln(1 + epsilon) of each family of the RMT guard; activations may shrink."""
    epsilons = block(block(report, "rmt"), "epsilon_by_family").items()
    return {
        family: (-math.inf, math.log1p(epsilon))
        for family, value in epsilons
        if (epsilon := number(value)) is not None and epsilon > 0
    }


def variance_limits(report: Report, families: Iterable[str]) -> dict[str, tuple[float, float]]:
    """ln(variance ratio) that needs no scale: sqrt(base / subject) within deadband of 1."""
    deadband = number(block(report, "variance").get("deadband"))
    if deadband is None or not 0 < deadband < 1:
        return {}
    limits = -2 * math.log1p(deadband), -2 * math.log1p(-deadband)
    return dict.fromkeys(families, limits)


def router_limits(report: Report) -> dict[str, tuple[float, float]]:
    """ln(entropy ratio) of the largest fall that is allowed."""
    drop = number(block(report, "moe").get("entropy_drop_max"))
    return {"router": (math.log1p(-drop), math.inf)} if drop and 0 < drop < 1 else {}
