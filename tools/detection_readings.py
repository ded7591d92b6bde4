"""What an evaluation report says of each check: whether it spoke, and by which margin."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from invarlock.guards import BY_NAME, GUARDS
from invarlock.guards.operators import MATRIX
from invarlock.pages.reading import Report, block, evaluated
from invarlock.reporting.signals import guard_flags

OF_METRIC = ("primary_metric", "primary_metric_tail", "drift")
# In the order of pages: what looks at the files, the metric, what looks at the model.
CHECKS = (
    *(guard.name for guard in GUARDS if guard.of_files),
    *OF_METRIC,
    *(guard.name for guard in GUARDS if not guard.of_files),
)
SHORT = {"primary_metric": "metric", "primary_metric_tail": "tail"}


@dataclass(frozen=True)
class Reading:
    """The statistic of a check with the threshold it is held against."""

    what: str
    value: float
    threshold: float
    margin: float  # above 1: beyond the threshold
    more: str = ""


def fired(flags: Mapping[str, bool]) -> list[str]:
    """The checks that fired, by the flags of a report or a record."""
    # what is never a finding, the cost of the guards, has no flag of its name
    return [name for name in CHECKS if flags.get(name)]


def spoke(report: Report) -> list[str]:
    """The checks that spoke, by short names."""
    names = [SHORT.get(name, name) for name in fired(guard_flags(report))]
    warned = block(report, "primary_metric_tail").get("warned") is True
    return [*names, "tail (warning)"] if warned and "tail" not in names else names


def refusing(report: Report) -> list[str]:
    """The checks for which the subject would not pass, by short names: the others only tell."""
    refused = {guard.name for guard in GUARDS if guard.flag and guard.refused(report)}
    flags = {"primary_metric": "primary_metric_acceptable",
             "primary_metric_tail": "primary_metric_tail_acceptable",
             "drift": "preview_final_drift_acceptable"}  # fmt: skip
    said = block(report, "validation")
    refused |= {name for name, flag in flags.items() if said.get(flag) is False}
    return [SHORT.get(name, name) for name in CHECKS if name in refused]


def sigma_reading(report: Report) -> Reading | None:
    """The operator whose largest singular value moved most, in units of its family's threshold."""
    table = block(report, "spectral").get("operators")
    if not table:
        return None
    caps = report["resolved_policy"]["spectral"]["family_caps"]
    found = []
    stats = ("sigma_max", "sigma_mean")
    columns = (table[key] for s in stats for key in (s, f"baseline_{s}"))
    for family, kind, *numbers in zip(table["family"], table["kind"], *columns, strict=True):
        if kind == MATRIX:  # judged by its rank alone
            continue
        pairs = (numbers[:2], numbers[2:])
        change = max(abs(math.log(n / b)) if n and b else math.inf for n, b in pairs)
        limit = caps[family]["kappa"] * caps[family]["tau"]
        found.append(Reading("ln sigma ratio", change, limit, change / limit))
    return max(found, key=lambda r: r.margin)


def spectral_reading(report: Report) -> Reading | None:
    """The largest margin of sigma, stable rank, weakest members and rows."""
    sigma = sigma_reading(report)
    if sigma is None:
        return None
    found, table = [sigma], report["spectral"]["operators"]
    limits = report["resolved_policy"]["spectral"]["degeneracy"]
    fields = {
        "stable_rank": ("stable rank ratio", limits["stable_rank"]["fatal_ratio"]),
        "sigma_min": ("weakest member's ratio", limits["norm_collapse"]["fatal_ratio"]),
    }
    for column, (what, limit) in fields.items():
        rows = zip(table["kind"], table[column], table[f"baseline_{column}"], strict=True)
        judged = [(now, before) for kind, now, before in rows if kind != MATRIX]
        low = min((now / before for now, before in judged if before), default=1.0)
        found.append(Reading(what, low, limit, limit / low if low else math.inf))
    for rows in report["spectral"]["row_changes"]:
        if rows["largest"] is not None:
            margin = rows["largest"] / rows["limit"]
            found.append(Reading("change of a row", rows["largest"], rows["limit"], margin))
    return max(found, key=lambda r: r.margin)


def rmt_reading(report: Report) -> Reading | None:
    """The largest growth of an edge over the baseline's, in units of its family's epsilon."""
    families = block(report, "rmt").get("families")
    if not families:
        return None
    found = []
    for family in families.values():
        growth = math.inf if family["ratio"] is None else family["ratio"] - 1
        epsilon = family["epsilon"]
        found.append(Reading("edge growth", growth, epsilon, growth / epsilon))
    return max(found, key=lambda r: r.margin)


def variance_reading(report: Report) -> Reading | None:
    """The output scale furthest from 1, against the deadband; and what the trial said."""
    section = block(report, "variance")
    table = section.get("modules")
    if not table:
        return None
    pairs = zip(table["variance"], table["baseline_variance"], strict=True)
    scales = [math.sqrt(before / now) for now, before in pairs if now and before]
    scale = max(scales, key=lambda s: abs(math.log(s)), default=1.0)
    limit, gate = section["deadband"], str(section["predictive_gate"]["reason"])
    return Reading("output scale", scale, limit, abs(scale - 1) / limit, gate.replace("_", " "))


def metric_reading(report: Report) -> Reading | None:
    """The lower bound of the perplexity ratio against the limit."""
    metric = block(report, "primary_metric")
    if not evaluated(report, "primary_metric"):
        return None
    if "display_ci" not in metric:
        return Reading("losses that are not finite", math.inf, 0.0, math.inf)
    low, limit = metric["display_ci"][0], metric["limit"]
    return Reading("lower bound of the ratio", low, limit, low / limit)


def invariants_reading(report: Report) -> Reading | None:
    """How many findings, of which kind; none is admitted."""
    failures = block(report, "invariants").get("failures", [])
    kinds = sorted({f"{f['type']} ({f['severity']})" for f in failures})
    return Reading("findings", len(failures), 0, math.nan, ", ".join(kinds))


# Of these the page says more than the one number that the guard decides by.
READINGS = {
    "invariants": invariants_reading,
    "primary_metric": metric_reading,
    "spectral": spectral_reading,
    "rmt": rmt_reading,
    "variance": variance_reading,
}


def reading_of(check: str, report: Report) -> Reading | None:
    """What a report says of a check; None where nothing was measured."""
    if check in READINGS:
        return READINGS[check](report)
    section = block(report, check)
    found = BY_NAME[check].statistic(section) if evaluated(report, check) else None
    if found is None:
        return None
    margin = found.value / found.threshold if found.threshold else math.nan
    return Reading(found.name, found.value, found.threshold, margin)
