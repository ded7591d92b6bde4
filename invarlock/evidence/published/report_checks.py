"""The check matrix of ``verify`` for one evaluation report: what the report says of itself.

Numbers in brackets are the rows of the published matrix. Rows that hold only in profiles ``ci``
and ``release``, or only in ``release``, are marked C and R. What is recomputed from the recorded
evidence and the verifier's own tier table is in ``invarlock.reporting.replay``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from invarlock.errors import ConfigError
from invarlock.evidence.findings import Finding, Kind, dig, first_text, number, numbers
from invarlock.files import contract_hash
from invarlock.metrics.kinds import METRICS
from invarlock.pages.reading import block
from invarlock.policy import load_policy
from invarlock.reporting import signals

RATIO_TOLERANCE = 1e-6  # relative or absolute, of ratio against final / baseline
INTERVAL_TOLERANCE = 5e-4  # of display_ci against exp(ci), times max(1, |exp(ci)|)
MIN_MATCH = 0.999999  # share of windows that must be paired
MAX_OVERLAP = 1e-9  # share of windows that may be in both arms
MEASURED = ("preview", "final", "ratio_vs_baseline", "display_ci")
OTHER = "other"  # family of metrics that nothing is recomputed of
RELEASE_GATES = (
    "primary_metric_acceptable",
    "preview_final_drift_acceptable",
    "invariants_pass",
    "spectral_stable",
    "rmt_stable",
)

Report = Mapping[str, Any]


def report_passes(report: Report) -> bool:
    """Whether the report passes as a verdict counts it; a flag that is absent is false.

    Reports of published versions name no gates of their own: theirs are those of ``release``.
    """
    if signals.gates(report):
        return not signals.pass_reasons(report)
    metric = block(report, "primary_metric")
    sound = metric.get("invalid") is not True and metric.get("degraded") is not True
    return sound and all(dig(report, "validation", gate) is True for gate in RELEASE_GATES)


def rejected(report: Report) -> bool:
    """Whether the report says itself that it holds no usable measurement."""
    metric = report.get("primary_metric")
    return isinstance(metric, Mapping) and metric.get("invalid") is True


def check(report: Report, profile: str) -> list[Finding]:
    """Every finding of the matrix for a report that follows its schema, in row order."""
    rows: list[Callable[[Report, str], list[Finding]]] = [
        _measured,  # check: matrix.measured
        _digests,
        _ratio,  # check: matrix.ratio
        _pairing,  # check: matrix.pairing
        _interval,  # check: matrix.interval
        _gates,
        _lints,  # check: matrix.lints
        _tokenizer,  # check: matrix.tokenizer
        _contracts,
        _release,
    ]
    return [finding for row in rows for finding in row(report, profile)]


def _measured(report: Report, _: str) -> list[Finding]:
    """[4] what v1 requires of a metric, unless it says itself that it has no usable value.

    One cluster of windows has no interval, and its comparison decides nothing.
    """
    metric = report["primary_metric"]
    if metric.get("invalid") is True or metric.get("degraded") is True:
        return []
    undecided = metric.get("decision") == "inconclusive"
    needed = MEASURED[:-1] if undecided else MEASURED
    return [
        Finding("E601", "malformed", f"/primary_metric lacks the key {name}")
        for name in needed
        if name not in metric
    ]


def _digests(report: Report, profile: str) -> list[Finding]:
    """[2, C] the digest of the window ids."""
    if profile != "dev" and not first_text(
        dig(report, "provenance", "provider_digest", "ids_sha256")
    ):
        return [Finding("E004", "missing", "/provenance/provider_digest/ids_sha256 is missing")]
    return []


def _ratio(report: Report, _: str) -> list[Finding]:
    """[6, 7] the ratio is final over baseline; without a baseline nothing is compared."""
    metric = report["primary_metric"]
    final = number(metric.get("final"))
    if rejected(report) and final is None:
        return []  # declared; the pairing row says what it means
    if _family(metric["kind"]) != "ppl":
        return []
    base = number(dig(report, "baseline_ref", "primary_metric", "final"))
    ratio = number(metric.get("ratio_vs_baseline"))
    if final is None or base is None or ratio is None:
        return []  # what has to be there is row 4
    if base <= 0 or final <= 0:
        text = "/primary_metric/final and its baseline must be positive"
        return [Finding("E602", "contradiction", text)]
    wanted = final / base
    if not math.isclose(ratio, wanted, rel_tol=RATIO_TOLERANCE, abs_tol=RATIO_TOLERANCE):
        text = f"/primary_metric/ratio_vs_baseline is {ratio}; expected {wanted} (mismatch)"
        return [Finding("E602", "contradiction", text)]
    return []


def _pairing(report: Report, _: str) -> list[Finding]:
    """[9, 10] both runs saw the same windows, and the counts agree."""
    windows = report["dataset"]["windows"]
    if rejected(report) and windows["final"] == 0:
        reason = str(report["primary_metric"].get("degraded_reason"))[:80]
        return [Finding("E001", "policy", f"/primary_metric: nothing was measured: {reason}")]
    stats, at = windows["stats"], "/dataset/windows/stats"
    found = []

    def expect(holds: bool, text: str, kind: Kind = "incomparable") -> None:
        if not holds:
            found.append(Finding("E001", kind, text))

    reason = stats.get("window_pairing_reason")
    expect(reason is None, f"{at}/window_pairing_reason is {str(reason)[:80]!r}; expected null")
    paired = number(stats.get("paired_windows"))
    some = paired is not None and paired > 0
    expect(some, f"{at}/paired_windows is not above 0")
    match = number(stats.get("window_match_fraction"))
    expect(
        match is not None and match >= MIN_MATCH,
        f"{at}/window_match_fraction is {match}; expected at least {MIN_MATCH}",
    )
    overlap = number(stats.get("window_overlap_fraction"))
    expect(
        overlap is not None and overlap <= MAX_OVERLAP,
        f"{at}/window_overlap_fraction is {overlap}; expected at most {MAX_OVERLAP}",
    )
    for arm in ("preview", "final"):
        count, used = windows[arm], dig(stats, "coverage", arm, "used")
        text = f"/dataset/windows/{arm} is {count}; coverage used {used} (mismatch)"
        expect(count == used, text, "contradiction")
    expect(  # published: compared with preview, although the pairs come from final
        not some or paired in (windows["preview"], windows["final"]),
        f"{at}/paired_windows is {paired}; expected {windows['final']} (mismatch)",
        "contradiction",
    )
    return found


def _interval(report: Report, profile: str) -> list[Finding]:
    """[11; 12 C] display_ci is exp(ci)."""
    metric = report["primary_metric"]
    base = number(dig(report, "baseline_ref", "primary_metric", "final"))
    if rejected(report) or base is None or _family(metric["kind"]) != "ppl":
        return []
    ci, shown = numbers(metric.get("ci")), numbers(metric.get("display_ci"))
    if ci is None or shown is None:
        if profile == "dev":
            return []
        return [Finding("POLICY", "missing", "/primary_metric/ci or display_ci is missing")]
    found = []
    for index, (low, display) in enumerate(zip(ci, shown, strict=True)):
        wanted = math.exp(low) if low < 700 else math.inf
        if not abs(display - wanted) <= INTERVAL_TOLERANCE * max(1.0, wanted):
            text = f"/primary_metric/display_ci/{index} is {display}; expected {wanted} (mismatch)"
            found.append(Finding("E602", "contradiction", text))
    if ci[0] > ci[1]:
        found.append(Finding("E602", "contradiction", "/primary_metric/ci is not ordered"))
    return found


def _gates(report: Report, profile: str) -> list[Finding]:
    """[13, 14 C] metric and drift are within the report's own limits, in a real tier.

    The replay holds them against the verifier's limits. A flag may be absent except in release.
    """
    if profile == "dev":
        return []
    exploring = "/auto/tier enforces no guard; it is for exploring"
    texts = [] if signals.enforces_guards(report) else [exploring]
    flags = report.get("validation") or {}
    for gate in ("primary_metric_acceptable", "preview_final_drift_acceptable"):
        if flags.get(gate, profile != "release") is not True:
            texts.append(f"/validation/{gate} is not true")
    if not rejected(report):
        texts += [text for text in (_limit(report), _drift(report)) if text]
    return [Finding("POLICY", "policy", text) for text in texts]


def _limit(report: Report) -> str:
    """How the metric departs from its limit, where that is a ratio or a difference."""
    value = number(report["primary_metric"].get("ratio_vs_baseline"))
    if value is None:
        return ""
    try:
        tier = load_policy(str(dig(report, "auto", "tier")))
    except ConfigError:
        tier = load_policy("balanced")

    def limit(group: str, name: str) -> float:
        stated = number(dig(report, "resolved_policy", "metrics", group, name))
        return float(getattr(getattr(tier, group), name)) if stated is None else stated

    if _family(report["primary_metric"]["kind"]) == "ppl":
        most = limit("pm_ratio", "ratio_limit_base")
        most += limit("pm_ratio", "hysteresis_ratio")
        beyond = not value <= most
    else:
        most = limit("accuracy", "delta_min_pp")
        most -= limit("accuracy", "hysteresis_delta_pp")
        beyond = not value >= most
    return f"/primary_metric/ratio_vs_baseline is {value}; the limit is {most}" if beyond else ""


def _drift(report: Report) -> str:
    """How final and preview depart from the report's own band; 0.95 to 1.05 without one."""
    metric = report["primary_metric"]
    preview, final = number(metric.get("preview")), number(metric.get("final"))
    if preview is None or final is None:
        return "/primary_metric/preview or final is missing"
    own = metric.get("drift_band")
    band = [dig(own, "min"), dig(own, "max")] if isinstance(own, Mapping) else own
    ratio = _family(metric["kind"]) == "ppl"
    low, high = numbers(band) or ([0.95, 1.05] if ratio else [0.9, 1.1])
    drift = final / preview if ratio and preview else 1 + final - preview
    if low <= drift <= high:
        return ""
    return (
        f"/primary_metric: drift {drift} from warm-up to scored windows is not in {low} to {high}"
    )


def _lints(report: Report, _: str) -> list[Finding]:
    """[15] the model profile's own lints: a dotted path equals, is at least or at most a value."""
    lints = dig(report, "meta", "model_profile", "cert_lints")
    found = []
    for index, lint in enumerate(lints if isinstance(lints, list) else []):
        path, kind, wanted = (dig(lint, key) for key in ("path", "type", "value"))
        value = dig(report, *str(path).split("."))
        have, limit = number(value), number(wanted)
        known = have is not None and limit is not None
        holds = {
            "equals": value == wanted,
            "gte": known and have >= limit,  # type: ignore[operator]
            "lte": known and have <= limit,  # type: ignore[operator]
        }.get(str(kind), False)
        if not holds:
            text = f"/meta/model_profile/cert_lints/{index} does not hold for {str(path)[:80]}"
            found.append(Finding("POLICY", "policy", text))
    return found


def _tokenizer(report: Report, _: str) -> list[Finding]:
    """[16] the subject and its baseline used the same tokenizer."""
    own = first_text(
        dig(report, "meta", "tokenizer_hash"), dig(report, "dataset", "tokenizer", "hash")
    )
    base = first_text(dig(report, "baseline_ref", "tokenizer_hash"))
    if own and base and own != base:
        text = "/baseline_ref/tokenizer_hash differs from the subject's tokenizer (mismatch)"
        return [Finding("E002", "policy" if rejected(report) else "incomparable", text)]
    return []


def _contracts(report: Report, profile: str) -> list[Finding]:
    """[18, C] spectral and rmt were measured as the resolved policy says."""
    found: list[Finding] = []
    for guard in ("spectral", "rmt") if profile != "dev" else ():
        block = report.get(guard)
        if dig(block, "evaluated") is False:
            continue
        own = dig(block, "measurement_contract")
        policy = dig(report, "resolved_policy", guard, "measurement_contract")
        if not (isinstance(own, Mapping) and own and isinstance(policy, Mapping)):
            text = f"/{guard}/measurement_contract or that of /resolved_policy is missing"
            found.append(Finding("POLICY", "missing", text))
            continue
        recorded = dig(block, "measurement_contract_hash")
        same = contract_hash(own) == contract_hash(policy) == recorded
        if not same or dig(block, "measurement_contract_match") is not True:
            text = f"/{guard}/measurement_contract differs from the resolved policy (mismatch)"
            admitted = dig(block, "measurement_contract_match") is False
            found.append(Finding("E602", "incomparable" if admitted else "contradiction", text))
    return found


def _release(report: Report, profile: str) -> list[Finding]:
    """[19, 20, 21 R] every guard was evaluated and passed, the overhead was measured."""
    if profile != "release":
        return []
    flags = report.get("validation")
    gates = dict.fromkeys(RELEASE_GATES)
    if "primary_metric_tail" in report or dig(flags, "primary_metric_tail_acceptable") is not None:
        gates["primary_metric_tail_acceptable"] = None
    overhead = report.get("guard_overhead")
    if not isinstance(overhead, Mapping) or not overhead:
        found = [Finding("POLICY", "missing", "/guard_overhead is missing")]
    elif overhead.get("skipped") is True or rejected(report):
        found = []  # of a subject that was not run nothing was measured, and row 9 says so
    else:
        found = []
        gates["guard_overhead_acceptable"] = None
        measured = number(overhead.get("overhead_ratio", overhead.get("ratio"))) is not None
        if overhead.get("evaluated") is not True or not measured:
            found.append(Finding("POLICY", "missing", "/guard_overhead was not evaluated"))
    return found + [
        Finding("POLICY", "policy", f"/validation/{gate} is not true")
        for gate in gates
        if dig(flags, gate) is not True
        and gate not in ("primary_metric_acceptable", "preview_final_drift_acceptable")  # [13, 14]
    ]


# --- recomputation from the recorded windows (24) -------------------------------------------


def recompute(
    report: Report, profile: str, tolerance: float
) -> tuple[dict[str, Any], list[Finding]]:
    """The point of the primary metric from the recorded windows, and how it departs."""
    metric = report["primary_metric"]
    family = _family(metric["kind"])
    if family == "accuracy":
        wanted = _accuracy(report)
        pairs = [("final", wanted)] if wanted is not None else []
        problems: list[str] = []
    else:
        pairs, problems = _weighted_mean(report) if family == "ppl" else ([], [])
    skipped = {"family": family, "ok": False, "reason": "skipped"}
    if problems:
        return (
            {"family": family, "ok": False, "reason": "mismatch"},
            [Finding("E602", "contradiction", text) for text in problems],
        )
    if not pairs:
        if profile == "dev" or rejected(report):
            return skipped, []
        text = "/evaluation_windows/final has no evidence to recompute the metric from"
        return skipped, [Finding("E004", "missing", text)]
    found = []
    for name, wanted in pairs:
        value = number(metric.get(name))
        bound = max(1e-12, tolerance) * max(1.0, abs(wanted))
        if value is not None and not abs(value - wanted) <= bound < math.inf:
            text = f"/primary_metric/{name} is {value}; the windows give {wanted} (mismatch)"
            found.append(Finding("E602", "contradiction", text))
    return {"family": family, "ok": not found, "reason": "mismatch" if found else None}, found


def _accuracy(report: Report) -> float | None:
    correct = number(dig(report, "metrics", "classification", "n_correct"))
    total = number(dig(report, "metrics", "classification", "n_total"))
    return correct / total if correct is not None and total else None


def _weighted_mean(report: Report) -> tuple[list[tuple[str, float]], list[str]]:
    """``(field, expected)`` pairs from token-weighted mean log loss, and what is wrong with it."""
    arm = dig(report, "evaluation_windows", "final")
    losses, counts = numbers(dig(arm, "logloss")), numbers(dig(arm, "token_counts"))
    ids, at = dig(arm, "window_ids"), "/evaluation_windows/final"
    if not (losses or counts or ids) or None in (dig(arm, "logloss"), dig(arm, "token_counts")):
        return [], []
    if not losses or not counts or len(losses) != len(counts):
        return [], [f"{at}: logloss and token_counts are no lists of numbers of one length"]
    unique = isinstance(ids, list) and len(ids) == len(losses) == len(set(map(str, ids)))
    if ids is not None and not unique:
        return [], [f"{at}/window_ids are not unique or not as many as the losses"]
    total = math.fsum(counts)
    if min(counts) < 0 or total <= 0:
        return [], [f"{at}/token_counts hold no tokens"]
    try:
        mean = math.fsum(loss * n for loss, n in zip(losses, counts, strict=True)) / total
    except (OverflowError, ValueError):  # beyond a double, or infinities of both signs
        mean = math.inf
    if not math.isfinite(mean):
        return [], [f"{at}/logloss has no finite mean"]
    point = math.exp(mean) if mean < 700 else math.inf
    return [("analysis_point_final", mean), ("final", point)], []


def _family(kind: str) -> str:
    """How the point of a metric is recomputed; published reports may have kinds of their own."""
    if kind in METRICS:
        return METRICS[kind].family
    return "ppl" if kind.startswith("ppl") else OTHER
