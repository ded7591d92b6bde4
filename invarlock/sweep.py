"""Values of a tier from sweeps: what finished runs of harmless edits say of its limits.

A run says of each limit which value would just not have flagged it. Of those values an order
statistic bounds, whatever their distribution, what all but the aim's share of such runs need
(Conover, Practical Nonparametric Statistics, 3rd ed., 1999, 3.3). Below the number of runs that
this takes nothing is proposed. Nothing here changes a tier.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import ROUND_CEILING, Context
from pathlib import Path
from typing import Any, NamedTuple

from invarlock.contracts import check, validate
from invarlock.errors import ConfigError, ContractError, InputError
from invarlock.evidence.findings import UNREADABLE
from invarlock.files import parse_json, read_bytes, read_json_object, sha256_bytes
from invarlock.guards import contract_fields
from invarlock.pages.reading import block, evaluated, objects
from invarlock.policy import Policy, bounds_of, load_policy
from invarlock.preset import STATISTICS, STATS_CONTRACT, STATS_SCHEMA
from invarlock.verdict.intervals import binomial_tail, rate

SCHEMA = "invarlock/tier-proposal-v1"
REPORT, STATS = "evaluation.report.json", "calibration_stats.json"
SWEEPS = ("null", "variance")
DIGITS = 6  # significant digits of a value, rounded up
EXACT = 12  # digits up to which a number is taken for itself: 1.1 - 1 is 0.1
# Depend on the weights alone: a second run of a checkpoint on other windows shows nothing more.
OF_WEIGHTS = ("spectral",)
SCENARIOS = ("state/scenarios.json", "metadata/scenarios.json")  # of a suite, and of a pack

Document = dict[str, Any]


class Run(NamedTuple):
    """One run of a harmless edit."""

    model: str
    weights: str  # baseline and subject
    measured: str  # on which windows, and how
    needed: Mapping[str, float]  # by limit, the value that just does not flag it; infinity: none


class Sweep(NamedTuple):
    """The runs that were found."""

    runs: Sequence[Run]
    inputs: Sequence[str]
    left_out: int


# --- what one run says ---------------------------------------------------------------------------


def _of_report(report: Mapping[str, Any], policy: Policy) -> dict[str, float]:
    """Of the limits of gates."""
    found: dict[str, float | None] = {}
    if evaluated(report, "spectral"):
        caps = report["spectral"]["family_caps"]
        for family, row in report["spectral"]["family_z_summary"].items():
            moved = row["max"] * caps[family]["tau"]
            found[f"spectral.tau.{family}"] = moved / policy.spectral.kappa(family)
    if evaluated(report, "rmt"):
        for family, row in report["rmt"]["families"].items():
            ratio = row["ratio"]
            found[f"rmt.epsilon.{family}"] = None if ratio is None else ratio - 1
    if evaluated(report, "representation"):
        for kind, row in report["representation"]["kinds"].items():
            found[f"representation.limit.{kind}"] = row["excess"]
    metric = block(report, "primary_metric")
    if metric.get("unit") == "ppl" and evaluated(report, "primary_metric"):
        found["drift.half_width"] = abs(metric["drift"]["ratio"] - 1)
    if evaluated(report, "distribution"):
        shift = report["distribution"]
        # of a text of slices, each is held to the limit by itself
        means = [part["kl_mean"] for part in objects(metric.get("slices")) if "kl_mean" in part]
        found["distribution.kl_mean_max"] = max(shift["kl"]["mean"], *means, 0.0)
        found["distribution.flip_fraction_max"] = shift["flips"]["fraction"]
    if evaluated(report, "primary_metric_tail"):
        found["pm_tail.quantile_max"] = report["primary_metric_tail"]["stats"]["quantile_low"]
    if evaluated(report, "moe"):
        found["moe.entropy_drop_max"] = report["moe"]["max_entropy_drop"]
    return _numbers(found)


def _of_variance(report: Mapping[str, Any], policy: Policy) -> dict[str, float]:
    """Of the limits of the variance guard.

    A trial is of the scales that its deadband let through: of another deadband it says nothing.
    """
    if not evaluated(report, "variance"):
        return {}
    section, own = report["variance"], policy.variance
    table = section["modules"]
    pairs = zip(table["baseline_variance"], table["variance"], strict=True)
    scales = [math.sqrt(before / now) for before, now in pairs if before and now]
    found: dict[str, float | None] = {}
    if scales:
        found["variance.deadband"] = max(abs(scale - 1) for scale in scales)
    gate = section["predictive_gate"]
    judged = report["auto"]["tier"]
    if (
        gate["evaluated"]
        and (section["deadband"], gate["alpha"]) == (own.deadband, own.alpha)
        and load_policy(judged).variance.max_adjusted_modules == own.max_adjusted_modules
    ):
        found["variance.min_effect_lognll"] = gate["gain_ci"][0]
    return _numbers(found)


def _of_calibration(run: Mapping[str, Any], policy: Policy) -> dict[str, float]:
    """Of the limits that a calibration measures: logarithms of ratios, one a module."""
    found: dict[str, float | None] = {"drift.half_width": abs(math.expm1(run["drift"]))}
    for family, values in run["spectral"].items():
        moved = max(map(abs, values))
        found[f"spectral.tau.{family}"] = moved / policy.spectral.kappa(family)
    for family, values in run["rmt"].items():
        found[f"rmt.epsilon.{family}"] = math.expm1(max(values))
    for kind, values in run["representation"].items():
        found[f"representation.limit.{kind}"] = math.expm1(max(values))
    return _numbers(found)


def _numbers(found: Mapping[str, float | None]) -> dict[str, float]:
    """Without what moved nothing: it says nothing of edits that do. What got better needs 0."""
    numbers = {path: math.inf if v is None else float(v) for path, v in found.items()}
    return {path: max(v, 0.0) for path, v in numbers.items() if v != 0.0}


# --- finding the runs ----------------------------------------------------------------------------


def collect(paths: Sequence[Path], sweep: str, policy: Policy) -> Sweep:
    """The runs of files, and of all that lie in folders.

    Args:
        paths: a report or calibration that is named is taken as one of harmless edits; of a
            suite's or pack's folder those of its clean scenarios are.
        sweep: one of ``SWEEPS``.
        policy: whose limits they are held against.

    Raises:
        InputError: a file is unreadable, no evaluation or calibration, of damage, or of a version
            whose guards measured in another way; or nothing is left.
    """
    runs: list[Run] = []
    inputs: set[str] = set()
    left_out = 0
    for path in paths:
        named = not path.is_dir()
        for file in [path] if named else _below(path):
            if not named and not _harmless(file):
                left_out += 1
                continue
            if _damaged(file):
                raise InputError(
                    "is of injected damage", where=str(file), expected="a run of a harmless edit"
                )
            data = read_bytes(file)
            found = [*_runs_of(parse_json(data, str(file)), str(file), sweep, policy)]
            if found or named:
                inputs.add(sha256_bytes(data))
            runs += found
    if not runs:
        where = " ".join(map(str, paths))
        wanted = REPORT if sweep == "variance" else f"{REPORT} or {STATS}"
        found_none = f"{left_out} of damage or of other edits" if left_out else ""
        raise InputError(
            "no run of a harmless edit", where=where, expected=wanted, found=found_none
        )
    return Sweep(runs, sorted(inputs), left_out)


def _below(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*.json") if p.name in (REPORT, STATS))


def _damaged(file: Path) -> bool:
    """Whether the folder of a run says that damage was injected."""
    outcome = file.with_name("outcome.json")
    if file.with_name("error_metadata.json").is_file():
        return True
    return outcome.is_file() and read_json_object(outcome).get("injected") is not None


def _harmless(file: Path) -> bool:
    """Whether a file of a folder is of an edit that has to pass, as far as the folder says it."""
    if file.name == STATS:
        return True
    if _damaged(file):
        return False
    scenarios = _scenarios_of(file)
    if scenarios is None:
        return True
    from invarlock.scenarios import parse_catalogue

    known = parse_catalogue(read_json_object(scenarios), str(scenarios)).scenarios
    name = file.resolve().parent.parent.name  # SCENARIO/run_1
    return any(s.id == name and s.category == "clean" for s in known)


def _scenarios_of(file: Path) -> Path | None:
    """The scenarios of the suite or pack that a file lies in; of the nearest one."""
    places = (above / name for above in file.resolve().parents for name in SCENARIOS)
    return next((place for place in places if place.is_file()), None)


def _runs_of(document: Any, where: str, sweep: str, policy: Policy) -> Iterator[Run]:
    """The runs of a report or of a calibration."""
    if isinstance(document, dict) and document.get("schema") == STATS_SCHEMA:
        validate(document, STATS_CONTRACT, where)
        if sweep == "null":
            yield from _calibrated(document, where, policy)
        return
    if not (isinstance(document, dict) and "schema_version" in document):
        raise ContractError(
            "is no finished run", where=where, expected=f"an evaluation report or {STATS}"
        )
    check(document, "evaluation-report", where)
    guards = ("variance",) if sweep == "variance" else tuple(STATISTICS)
    for guard in guards:
        stated = block(document, guard).get("measurement_contract_hash")
        if stated not in (None, contract_fields(guard)["measurement_contract_hash"]):
            raise _measured_otherwise(where, guard)
    try:
        read = _of_variance if sweep == "variance" else _of_report
        needed = read(document, policy)
        provenance, meta = document["provenance"], document["meta"]
        sides = (provenance[side]["checkpoint_sha256"] for side in ("baseline", "subject"))
        how = (provenance["windows_sha256"], meta["dtype"], meta["device"])
        yield Run(str(meta["model_id"]), " ".join(sides), " ".join(map(str, how)), needed)
    except UNREADABLE as error:  # follows its schema, and holds records of an impossible shape
        raise ContractError(f"cannot be read: {type(error).__name__}", where=where) from error


def _measured_otherwise(where: str, guard: str) -> ContractError:
    return ContractError(
        f"is of a version whose {guard} guard measured in another way", where=where,
        hint="measure it again with this version",
    )  # fmt: skip


def _calibrated(stats: Mapping[str, Any], where: str, policy: Policy) -> Iterator[Run]:
    for run in stats["runs"]:
        if missing := sorted(STATISTICS.keys() - run.keys()):
            raise _measured_otherwise(where, missing[0])
        weights = f"{stats['checkpoint_sha256']} {run['edit']}"
        how = f"{run['windows_sha256']} {stats['dtype']} {stats['device']}"
        yield Run(stats["model_id"], weights, how, _of_calibration(run, policy))


# --- what the runs say together ------------------------------------------------------------------


def kept(values: Sequence[float], false_alarm: float) -> float:
    """The smallest of the values that no more than this share of them exceeds."""
    ordered = sorted(values)
    above = math.floor(false_alarm * len(ordered) + 1e-9)  # 0.01 * 300 is a little below 3
    return ordered[len(ordered) - 1 - above]


def upper_bound(values: Sequence[float], false_alarm: float, confidence: float) -> float | None:
    """Upper confidence bound of the quantile ``1 - false_alarm``; None: too few values.

    The k-th smallest of n independent values is below the quantile where at least k of them are,
    with probability P(Binomial(n, 1 - false_alarm) >= k): the smallest k is taken for which that
    is at most 1 - confidence.
    """
    ordered = sorted(values)
    n, found = len(ordered), None
    for k in range(n, 0, -1):
        if binomial_tail(k, n, 1 - false_alarm) > 1 - confidence:
            break
        found = ordered[k - 1]
    return found


def runs_needed(false_alarm: float, confidence: float) -> int:
    """The fewest values whose largest is a bound."""
    return math.ceil(math.log1p(-confidence) / math.log1p(-false_alarm) - 1e-9)


def propose(
    found: Sweep, sweep: str, policy: Policy, false_alarm: float, confidence: float
) -> Document:
    """The proposal's document.

    Raises:
        ConfigError: an aim or confidence that is no share.
    """
    for name, value in (("--false-alarm", false_alarm), ("--confidence", confidence)):
        if not 0 < value < 1:
            raise ConfigError("not a share", where=name, expected="between 0 and 1",
                              found=str(value))  # fmt: skip
    different = {(run.weights, run.measured): run for run in found.runs}
    limits = [
        _limit(path, values, len(different), policy, false_alarm, confidence)
        for path, values in sorted(_by_limit(different.values()).items())
        if _in_force(path, policy) is not None or _adjustable(path, policy)
    ]
    return {
        "schema": SCHEMA,
        "sweep": sweep,
        "tier": policy.tier,
        "false_alarm": false_alarm,
        "confidence": confidence,
        "models": sorted({run.model for run in found.runs}),
        "runs": len(different),
        "repeats": len(found.runs) - len(different),
        "left_out": found.left_out,
        "inputs": list(found.inputs),
        "limits": limits,
        "values": _values(limits),
    }


def _by_limit(runs: Iterable[Run]) -> dict[str, list[float]]:
    """The values of each limit; of what depends on weights alone, one of each weights."""
    found: dict[str, dict[tuple[str, str], float]] = {}
    for run in runs:
        for path, value in run.needed.items():
            of_weights = path.partition(".")[0] in OF_WEIGHTS
            found.setdefault(path, {})[run.weights, "" if of_weights else run.measured] = value
    return {path: list(values.values()) for path, values in found.items()}


def _limit(
    path: str,
    values: Sequence[float],
    runs: int,
    policy: Policy,
    false_alarm: float,
    confidence: float,
) -> Document:
    in_force, bounds = _in_force(path, policy), _adjustable(path, policy)
    bound = upper_bound(values, false_alarm, confidence)
    bound = None if bound is None or math.isinf(bound) else rounded_up(bound)
    floor, ceiling = bounds or (None, None)
    proposed, clipped = bound, None
    if bound is not None and floor is not None and bound < floor:
        proposed, clipped = floor, "floor"
    if bound is not None and ceiling is not None and bound > ceiling:
        proposed, clipped = ceiling, "ceiling"
    flags = [in_force is not None and value > in_force for value in values]
    return {
        "path": path,
        "in_force": in_force,
        "floor": floor,
        "ceiling": ceiling,
        "runs": len(values),
        "silent": runs - len(values),
        "alarms": None if in_force is None else rate("flagged", flags),
        "largest": rounded_up(max(values)),
        "kept": rounded_up(kept(values, false_alarm)),
        "bound": bound,
        "runs_needed": runs_needed(false_alarm, confidence),
        "proposed": proposed,
        "clipped": clipped,
    }


def rounded_up(value: float) -> float | None:
    """The next larger number of few digits, which flags what the value itself would not."""
    if math.isinf(value):
        return None
    exact = Context(prec=DIGITS, rounding=ROUND_CEILING).create_decimal(f"{value:.{EXACT}g}")
    return float(exact)


def _in_force(path: str, policy: Policy) -> float | None:
    """The tier's value of a limit; None where it sets none."""
    group, _, name = path.rpartition(".")
    if path == "drift.half_width":
        return round(max(policy.drift.max - 1, 1 - policy.drift.min), EXACT)
    if group == "spectral.tau":
        return policy.spectral.tau(name)
    if group == "rmt.epsilon":
        return policy.rmt.epsilon(name)
    if group == "representation.limit":
        return policy.representation.limit(name)
    value = policy.resolved[group][name]
    return None if value is None else float(value)


def _adjustable(path: str, policy: Policy) -> tuple[float, float] | None:
    """From where to where an override may set a limit; None where none may."""
    group, _, name = path.rpartition(".")
    known = bounds_of(policy.tier)
    if group == "spectral.tau":  # whose bounds are a relative change, of kappa times tau
        low, high = known["spectral.threshold"]
        kappa = policy.spectral.kappa(name)
        return math.log1p(low) / kappa, math.log1p(high) / kappa
    if group == "representation.limit" and policy.representation.limit(name) is None:
        return None
    return known.get(path, known.get(group))


def _values(limits: Sequence[Document]) -> dict[str, float]:
    """What is proposed, as overrides."""
    found: dict[str, float] = {}
    for row in limits:
        value = row["proposed"]
        if value is None or row["in_force"] is None or row["floor"] is None:
            continue
        if row["path"] == "drift.half_width":
            found |= {"drift.min": round(1 - value, EXACT), "drift.max": round(1 + value, EXACT)}
        else:
            found[row["path"]] = value
    return found


# --- reading and showing it ----------------------------------------------------------------------


def table(document: Mapping[str, Any]) -> Iterator[str]:
    """A proposal as lines for a terminal."""
    head = ("limit", "runs", "flagged", "in force", "largest", "kept", "bound", "proposed")
    rows = [head, *(tuple(_cells(row)) for row in document["limits"])]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        first, *others = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join((first, *others))


def _cells(row: Mapping[str, Any]) -> Iterator[str]:
    alarms, clipped = row["alarms"], row["clipped"]
    yield row["path"]
    yield str(row["runs"])
    yield "-" if alarms is None else f"{alarms['flagged']} (at most {alarms['upper']:.1%})"
    for key in ("in_force", "largest", "kept"):
        yield _cell(row[key])
    few = row["runs"] < row["runs_needed"]
    yield f"needs {row['runs_needed']} runs" if few else _cell(row["bound"])
    yield _cell(row["proposed"]) + (f" ({clipped})" if clipped else "")


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def read_proposal(path: Path) -> Document:
    """A proposal's file, JSON or YAML.

    Raises:
        InputError: unreadable, or no proposal.
    """
    from invarlock.preset import from_yaml

    data = read_bytes(path)
    document = parse_json(data, str(path)) if path.suffix == ".json" else from_yaml(data, path)
    validate(document, "tier-proposal", str(path))
    assert isinstance(document, dict)
    return document
