"""Thresholds for one model, derived from what harmless edits do to it.

Null edits (identical weights in other batches; 8-bit rounding) are measured on several window
seeds. Per family an upper tolerance bound of their effect becomes the threshold, within the
tier's ``adjustable`` bounds; it may tighten as well as loosen. The derivation is a pure function,
and a preset is accepted only where it follows from the statistics it states.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from invarlock.contracts import check, validate
from invarlock.errors import ContractError, InputError
from invarlock.files import digest_json, parse_json, read_bytes
from invarlock.guards import CHAIN
from invarlock.policy import (
    Override,
    Policy,
    PresetPolicy,
    bounds_of,
    load_policy,
    resolve_policy,
)

STATS_SCHEMA = "invarlock/calibration-stats-v1"
PRESET_SCHEMA = "invarlock/calibrated-preset-v1"
STATS_CONTRACT = "calibration-stats"  # the contract of what a preset is derived from
NULL_EDITS = ("noop", "quant_rtn:8:0:all")
# What is bounded by family, and the bounds of the tier table on it, as relative change.
STATISTICS = {
    "spectral": "spectral.threshold",
    "rmt": "rmt.epsilon",
    "representation": "representation.limit",  # as ln(1 + distance), so that it is one too
}
MIN_VALUES = 3  # below this the closed form of the tolerance factor has no solution
DIGITS = 9  # significant digits of a derived number
# What a preset takes over from the statistics; the rest of its head is derived.
META = ("model_name", "checkpoint_sha256", "tier", "dtype", "device", "null_edits", "seeds",
        "num_runs", "calibration_stats_sha256")  # fmt: skip

Document = dict[str, Any]


@dataclass(frozen=True)
class Preset:
    """A preset that follows from its statistics."""

    document: Mapping[str, Any]
    sha256: str  # of the content, the same for YAML and JSON
    model_id: str
    tier: str
    checkpoint_sha256: str
    overrides: tuple[Override, ...]

    def policy(self) -> Policy:
        """The tier's policy with the preset's thresholds."""
        return resolve_policy(self.tier, self.overrides)

    def require_for(self, checkpoint_sha256: str, tier: str) -> None:
        """Refuse to judge by thresholds of another baseline or tier, or of other statistics.

        Raises:
            InputError: it belongs to another baseline checkpoint or another tier, or was derived
                when the guards measured in another way.
        """
        if missing := STATISTICS.keys() - self.document["null_statistics"].keys():
            raise InputError(
                "the preset is of a version whose guards measured in another way",
                expected=f"null statistics of {', '.join(sorted(STATISTICS))}",
                found=f"none of {', '.join(sorted(missing))}",
                hint="derive one: invarlock advanced calibrate, then advanced preset",
            )
        for what, mine, wanted in (
            ("baseline checkpoint", self.checkpoint_sha256, checkpoint_sha256),
            ("tier", self.tier, tier),
        ):
            if mine != wanted:
                raise InputError(
                    f"the preset was derived for another {what}",
                    expected=wanted,
                    found=mine,
                    hint="derive one: invarlock advanced calibrate, then advanced preset",
                )


def tolerance_factor(n: int, content: float, confidence: float) -> float:
    """k such that mean + k sd bounds ``content`` of a normal population.

    One-sided, closed form (Natrella, Experimental Statistics, NBS Handbook 91, 1963; NIST/SEMATECH
    e-Handbook 7.2.6.3). Against the exact factor (noncentral t) it is at most 1.5 % too small from
    5 values on, and too large below (4 % for 4, 27 % for 3 values).

    Args:
        n: sample size, at least 3 at confidence 0.95.
        content: share of the population to be bounded.
        confidence: share of samples for which that holds.
    """
    normal = statistics.NormalDist()
    z_content, z_confidence = normal.inv_cdf(content), normal.inv_cdf(confidence)
    a = 1 - z_confidence**2 / (2 * (n - 1))
    b = z_content**2 - z_confidence**2 / n
    return (z_content + math.sqrt(z_content**2 - a * b)) / a


def zero_mean_factor(n: int, content: float, confidence: float) -> float:
    """k such that k s bounds ``content`` of a normal population of mean 0.

    ``s`` is the root mean square of ``n`` values: with the mean known, n s^2 / variance is
    chi-square with n degrees of freedom, whose lower quantile is taken from Wilson and Hilferty
    (PNAS 17, 1931; at n = 3 it makes the factor 4 % too large, less from then on).
    """
    normal = statistics.NormalDist()
    spread = 2 / (9 * n)
    chi_square = n * (1 - spread - normal.inv_cdf(confidence) * math.sqrt(spread)) ** 3
    return normal.inv_cdf(content) * math.sqrt(n / chi_square)


def drift_bound(sample: Mapping[str, Any], rule: PresetPolicy) -> float | None:
    """Upper bound of |ln drift|; its mean is 0, as the arms sample the same documents alike.

    With as few values as there are seeds that knowledge halves the factor. None where the edit
    moved nothing. Never below the largest value seen.
    """
    n, mean, sd = sample["n"], sample["mean"], sample["sd"]
    if n < MIN_VALUES or mean == sd == sample["max"] == 0:
        return None
    size = math.sqrt(((n - 1) * sd**2 + n * mean**2) / n)
    factor = zero_mean_factor(n, 1 - rule.false_alarm / 2, rule.confidence)
    return float(max(factor * size, sample["max"]))


def null_bound(
    sample: Mapping[str, Any], modules: int, rule: PresetPolicy, *, two_sided: bool
) -> float | None:
    """Upper bound of a null statistic (logarithm) that all ``modules`` keep together.

    Each module gets its share of the false alarms (Bonferroni); a two-sided bound, of the absolute
    value, halves it for either side. Never below the largest value seen.

    Args:
        sample: ``n``, ``mean``, ``sd``, ``max`` (of the absolute value where two-sided).
        modules: how many are tested at once.
        rule: false alarms of a family, and the confidence.
        two_sided: bound the absolute value.

    Returns:
        the bound; None with fewer than ``MIN_VALUES`` values, or where the edit moved nothing:
        what it left alone says nothing of what an edit that touches it does.
    """
    if sample["n"] < MIN_VALUES or sample["mean"] == sample["sd"] == sample["max"] == 0:
        return None
    content = 1 - rule.false_alarm / modules / (2 if two_sided else 1)
    centre = abs(sample["mean"]) if two_sided else sample["mean"]
    factor = tolerance_factor(sample["n"], content, rule.confidence)
    return float(max(centre + factor * sample["sd"], sample["max"]))


def summarise(stats: Mapping[str, Any]) -> Document:
    """``null_statistics`` of a preset: per statistic, family and null edit n, mean, sd and max.

    ``n`` counts what varies independently at best: modules, or seeds where there are more of them.
    Spectral values depend on the weights alone, so that one run of an edit holds all of them.

    Raises:
        ContractError: runs of an edit that list different numbers of modules.
    """
    seen = [guard for guard in STATISTICS if any(guard in run for run in stats["runs"])]
    result: Document = {guard: {} for guard in seen}
    result["drift"] = {"modules": 1, "edits": {}}
    for edit in stats["null_edits"]:
        runs = [run for run in stats["runs"] if run["edit"] == edit]
        for guard in seen:
            for family in sorted({f for run in runs for f in run.get(guard, {})}):
                values = [run.get(guard, {}).get(family, []) for run in runs]
                modules = len(values[0])
                if any(len(v) != modules for v in values) or not modules:
                    raise ContractError(f"runs of {edit} differ in modules of {guard} {family}")
                kept = values[:1] if guard == "spectral" else values
                row = result[guard].setdefault(family, {"modules": modules, "edits": {}})
                pooled = [x for v in kept for x in v]
                n = max(modules, len(kept))
                row["edits"][edit] = _sample(pooled, n, absolute=guard == "spectral")
        drifts = [run["drift"] for run in runs]
        result["drift"]["edits"][edit] = _sample(drifts, len(drifts), absolute=True)
    return result


def _sample(values: Sequence[float], n: int, *, absolute: bool) -> Document:
    sizes = [abs(v) for v in values] if absolute else values
    return {
        "n": n,
        "mean": _round(statistics.fmean(values)),
        "sd": _round(statistics.stdev(values)) if len(values) > 1 else 0.0,
        "max": _round(max(sizes)),
    }


def _round(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def derive(stats: Mapping[str, Any], tier: str, where: str) -> Document:
    """The preset document of a tier from ``calibration_stats.json``.

    Raises:
        ConfigError: no such tier.
        ContractError: the statistics depart from their contract or contradict themselves.
    """
    check(stats, STATS_CONTRACT, where)
    meta = {
        "model_name": stats["model_id"],
        "checkpoint_sha256": stats["checkpoint_sha256"],
        "tier": tier,
        "dtype": stats["dtype"],
        "device": stats["device"],
        "null_edits": list(stats["null_edits"]),
        "seeds": list(stats["seeds"]),
        "num_runs": len(stats["runs"]),
        "calibration_stats_sha256": digest_json(stats),
    }
    return _build(meta, stats["dataset"], summarise(stats))


def _build(
    meta: Mapping[str, Any], dataset: Mapping[str, Any], null: Mapping[str, Any]
) -> Document:
    """The document as a function of its own facts, so that a reader can repeat it."""
    tier = meta["tier"]
    own, bounds = load_policy(tier), bounds_of(tier)
    rows = [_drift_row(null["drift"], own, bounds["drift.half_width"])]
    for guard, bound in STATISTICS.items():
        # statistics of an older version lack what came later, and so does what follows from them
        for family, numbers in sorted(null.get(guard, {}).items()):
            if guard == "representation" and own.representation.limit(family) is None:
                continue  # a kind of block that is named and never blocks
            rows.append(_family_row(guard, family, numbers, own, bounds[bound]))
    overrides = [Override(o["path"], o["value"], "preset") for r in rows for o in r["overrides"]]
    policy = resolve_policy(tier, overrides)
    widest = max(null["drift"]["edits"].values(), key=lambda sample: float(sample["sd"]))
    band = {"min": policy.drift.min, "max": policy.drift.max}
    families = sorted({*null["spectral"], *null["rmt"]})
    later: Document = {}
    if "representation" in null:
        limits = policy.representation.limit_by_kind
        given = {kind: limit for kind, limit in limits.items() if limit is not None}
        later["representation"] = {"limit_by_kind": given}
    return {
        "schema": PRESET_SCHEMA,
        "_calibration_meta": {
            **meta,
            "drift_mean": _round(math.exp(widest["mean"])),
            "drift_std": widest["sd"],
            "drift_band_compatible": rows[0]["clipped"] != "ceiling",
            "suggested_drift_band": [band["min"], band["max"]],
            "false_alarm": own.preset.false_alarm,
            "confidence": own.preset.confidence,
        },
        "model": {"id": meta["model_name"]},
        "dataset": dict(dataset),
        "primary_metric": {"drift_band": band},
        "guards": {
            "order": list(CHAIN),
            "spectral": {
                "family_caps": {f: {"kappa": policy.spectral.kappa(f)} for f in families},
                "tau_by_family": {f: policy.spectral.tau(f) for f in families},
                "deadband": policy.spectral.deadband,
                "max_caps": policy.spectral.max_caps,
            },
            "rmt": {"epsilon_by_family": {f: policy.rmt.epsilon(f) for f in families}},
            "variance": {
                "deadband": policy.variance.deadband,
                "min_effect_lognll": policy.variance.min_effect_lognll,
            },
            **later,
        },
        "null_statistics": dict(null),
        "derivation": rows,
        "clipped": [_name(row) for row in rows if row["clipped"] == "ceiling"],
    }


def _name(row: Mapping[str, Any]) -> str:
    return ".".join(filter(None, (row["statistic"], row["family"])))


def _family_row(
    guard: str, family: str, numbers: Mapping[str, Any], own: Policy, bounds: tuple[float, float]
) -> Document:
    found = {
        edit: null_bound(sample, numbers["modules"], own.preset, two_sided=guard == "spectral")
        for edit, sample in numbers["edits"].items()
    }
    if guard == "representation":
        row = _row(found, own.representation.limit_by_kind[family] or 0.0, bounds)
        override = {f"representation.limit.{family}": row["value"]}
        return _with_overrides(guard, family, row, override)
    if guard == "rmt":
        row = _row(found, own.rmt.epsilon(family), bounds)
        return _with_overrides(guard, family, row, {f"rmt.epsilon.{family}": row["value"]})
    kappa = own.spectral.kappa(family)
    tier_value = math.expm1(kappa * own.spectral.tau(family))
    row = _row(found, tier_value, bounds)
    tau = math.log1p(row["value"]) / kappa
    return _with_overrides(guard, family, row, {f"spectral.tau.{family}": tau})


def _drift_row(numbers: Mapping[str, Any], own: Policy, bounds: tuple[float, float]) -> Document:
    found = {edit: drift_bound(sample, own.preset) for edit, sample in numbers["edits"].items()}
    row = _row(found, own.drift.max - 1, bounds)
    band = {"drift.min": 1 - row["value"], "drift.max": 1 + row["value"]}
    return _with_overrides("drift", None, row, band)


def _with_overrides(
    statistic: str, family: str | None, row: Document, values: Mapping[str, float]
) -> Document:
    changed = [{"path": path, "value": _round(value)} for path, value in values.items()]
    kept = changed if row["direction"] != "unchanged" else []
    return {"statistic": statistic, "family": family, **row, "overrides": kept}


def _row(
    found: Mapping[str, float | None], tier_value: float, bounds: tuple[float, float]
) -> Document:
    """One threshold as relative change: the worst null edit's bound, from floor to ceiling."""
    floor, ceiling = bounds
    known = {edit: bound for edit, bound in found.items() if bound is not None}
    edit = max(known, key=lambda e: (known[e], e), default=None)
    null = None if edit is None else _round(math.expm1(min(known[edit], 700.0)))
    tier_value = _round(tier_value)
    value = tier_value if null is None else min(max(null, floor), ceiling)
    clipped = None if null is None or null == value else "floor" if null < floor else "ceiling"
    moved = value - tier_value
    return {
        "null_bound": null,
        "from_edit": edit,
        "floor": floor,
        "ceiling": ceiling,
        "tier_value": tier_value,
        "value": value,
        "clipped": clipped,
        "direction": "unchanged" if not moved else "loosened" if moved > 0 else "tightened",
    }


def preset_of(document: Mapping[str, Any], where: str) -> Preset:
    """Accept a preset document whose thresholds follow from its own statistics.

    Raises:
        ConfigError: it names no tier of ours.
        ContractError: it departs from its contract, or states other thresholds than its
            statistics and the tier table give.
    """
    check(document, "calibrated-preset", where)
    recorded = document["_calibration_meta"]
    meta = {key: recorded[key] for key in META}
    try:
        derived = _build(meta, document["dataset"], document["null_statistics"])
    except ArithmeticError as error:
        raise ContractError("its statistics are of no null edit", where=where) from error
    wrong = next(_differences(document, derived), None)
    if wrong is not None:
        raise ContractError(
            f"{wrong} does not follow from the preset's own statistics and the tier table",
            where=where,
            hint="derive it again: invarlock advanced preset",
        )
    sha256 = digest_json(document)
    return Preset(
        document=document,
        sha256=sha256,
        model_id=meta["model_name"],
        tier=meta["tier"],
        checkpoint_sha256=meta["checkpoint_sha256"],
        overrides=tuple(
            Override(o["path"], o["value"], f"preset:{sha256[:12]}")
            for row in document["derivation"]
            for o in row["overrides"]
        ),
    )


def _differences(mine: object, theirs: object, at: str = "") -> Iterator[str]:
    """Pointers at which two documents differ, floats by more than their rounding."""
    if isinstance(mine, dict) and isinstance(theirs, dict) and set(mine) == set(theirs):
        for key in mine:
            yield from _differences(mine[key], theirs[key], f"{at}/{key}")
    elif isinstance(mine, list) and isinstance(theirs, list) and len(mine) == len(theirs):
        for i, (a, b) in enumerate(zip(mine, theirs, strict=True)):
            yield from _differences(a, b, f"{at}/{i}")
    elif isinstance(mine, float) and isinstance(theirs, float | int):
        if not math.isclose(mine, theirs, rel_tol=10.0 ** (1 - DIGITS), abs_tol=1e-12):
            yield at
    elif mine != theirs:
        yield at or "/"


def read_preset(path: Path) -> Preset:
    """Read a preset, JSON or YAML.

    Raises:
        InputError: unreadable, or not the preset it says it is (see :func:`preset_of`).
        ConfigError: it names no tier of ours.
    """
    data = read_bytes(path)
    document = parse_json(data, str(path)) if path.suffix == ".json" else from_yaml(data, path)
    validate(document, "calibrated-preset", str(path))
    return preset_of(document, str(path))


def from_yaml(data: bytes, path: Path) -> Any:
    """Decode YAML.

    Raises:
        InputError: it is none.
    """
    import yaml

    try:
        return yaml.safe_load(data)
    except yaml.YAMLError as error:
        line = str(error).splitlines()[0]
        raise InputError("not YAML", where=str(path), found=line) from error


def to_yaml(document: Mapping[str, Any]) -> str:
    """The document as YAML that reads back to the same content."""
    import yaml

    return yaml.safe_dump(dict(document), sort_keys=True, width=100)
