"""Strict assurance: everything that a report which claims it must show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from invarlock.evidence.findings import Finding, dig, first_text

CLAIM_SET = "invarlock-weight-edit-regression-v1"
GUARD_CHAIN = ["invariants", "spectral", "rmt", "variance", "invariants"]
GUARDS = ("spectral", "rmt", "variance", "invariants")
TIERS = ("balanced", "conservative")
MAX_EVENTS = 1000  # that are not allowed, and then no more are looked for
_DEGRADED = ("degraded", "monitor-only", "monitor_only")
_FINE = ("ok", "pass", "passed")


def claimed_mode(report: Mapping[str, Any]) -> str | None:
    """``assurance.mode``, else ``context.assurance.mode``."""
    return first_text(dig(report, "assurance", "mode"), dig(report, "context", "assurance", "mode"))


def check(report: Mapping[str, Any], demanded: str, provenance_verified: bool) -> list[Finding]:
    """Findings of strict assurance; none when neither the caller nor the report asks for it."""
    claims = claimed_mode(report) == "strict"
    if demanded == "off" or (demanded == "report" and not claims):
        return []
    problems = [] if claims else ["the report does not claim strict assurance"]
    section = report.get("assurance")
    if not isinstance(section, Mapping):
        problems.append("/assurance is missing")
    else:
        problems += _section(report, section, provenance_verified)
    if not provenance_verified:
        problems.append("the runtime manifest does not verify a container run")
    problems += _events(report)
    for guard in GUARDS:
        problems += _guard(guard, report.get(guard))
    return [Finding("ASSURANCE", "policy", f"strict assurance: {text}") for text in problems]


def _section(
    report: Mapping[str, Any], section: Mapping[str, Any], provenance_verified: bool
) -> list[str]:
    context = report.get("context")
    verdict, local = section.get("verdict"), section.get("report_local_verdict")
    profile = first_text(section.get("profile"), dig(context, "profile"))
    tier = first_text(
        section.get("tier"),
        dig(report, "auto", "tier"),
        dig(context, "auto", "tier"),
        dig(context, "tier"),
    )
    pending = verdict == "pending_verifier" and provenance_verified
    rules = [
        (section.get("claim_set") == CLAIM_SET, f"/assurance/claim_set is not {CLAIM_SET}"),
        (section.get("mode") == "strict", "/assurance/mode is not strict"),
        (verdict in ("pass", "pending_verifier"), "/assurance/verdict is not pass"),
        (not pending or local in (None, "pass"), "/assurance/report_local_verdict is not pass"),
        (
            section.get("canonical_guard_chain_enforced") is True,
            "/assurance/canonical_guard_chain_enforced is not true",
        ),
        (section.get("fallback_fields_used") is not True, "fallback fields were used"),
        (profile in ("ci", "release"), "the profile is neither ci nor release"),
        (tier in TIERS, "the tier is neither balanced nor conservative"),
        (_chain(report, section) == GUARD_CHAIN, "the observed guard chain is not canonical"),
    ]
    reasons = section.get("blocking_reasons")
    blocking = (
        [f"/assurance/blocking_reasons: {str(r)[:120]}" for r in reasons or []]
        if (isinstance(reasons, list))
        else []
    )
    return [text for holds, text in rules if not holds] + blocking


def _chain(report: Mapping[str, Any], section: Mapping[str, Any]) -> object:
    guards = report.get("guards")
    names = [dig(guard, "name") for guard in guards] if isinstance(guards, list) else None
    return (
        section.get("guard_chain_observed")
        or dig(report, "context", "guard_chain_observed")
        or names
        or dig(report, "plugins", "guards")
    )


def _events(report: Mapping[str, Any]) -> list[str]:
    found = []
    for kind in ("synthesized_fields", "repaired_fields", "fallback_fields"):
        events = dig(report, "report_build", kind)
        for event in events if isinstance(events, list) else []:
            allowed = (
                dig(event, "field") == "primary_metric.display_ci"
                and dig(event, "reason") == "computed_from_primary_metric_ci"
            )
            if not allowed:
                found.append(f"/report_build/{kind} names {str(dig(event, 'field'))[:80]}")
            if len(found) >= MAX_EVENTS:
                return found
    return found


def _guard(name: str, block: object) -> list[str]:
    if not isinstance(block, Mapping) or not block:
        return [f"/{name} is missing"]
    found = []
    status = block.get("status")
    if block.get("evaluated") is False:
        found.append(f"/{name} was not evaluated")
    if block.get("supported") is False and block.get("assurance_blocking") is True:
        found.append(f"/{name} is not supported, and that blocks")
    if status in _DEGRADED:
        found.append(f"/{name}/status is {status}")
    if not any(key in block for key in ("decision", "passed", "supported")) and (
        status not in _FINE
    ):
        found.append(f"/{name} records no outcome")
    if block.get("decision") == "block" or block.get("passed") is False:
        found.append(f"/{name} blocks")
    return found
