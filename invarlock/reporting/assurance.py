"""The ``assurance`` block: what a report claims of itself, for a verifier to confirm."""

from collections.abc import Mapping
from typing import Annotated, Any

from msgspec import UNSET, UnsetType, to_builtins

from invarlock.documents.fields import Needed, Open, Outcome, about
from invarlock.errors import ConfigError
from invarlock.guards import CHAIN
from invarlock.policy import Policy
from invarlock.reporting.judgement import Judgement, passes
from invarlock.reporting.outcome import needed, outcome
from invarlock.reporting.runs import Comparison
from invarlock.run.container import Execution

CLAIM_SET = "invarlock-weight-edit-regression-v1"
STRICT_PROFILES = ("ci", "release")
STRICT_TIERS = ("balanced", "conservative")
MODES = ("off", "strict")


class Assurance(Open):
    """Assurance claims."""

    mode: Annotated[str | UnsetType, about("off or strict")] = UNSET
    report_local_verdict: Annotated[
        str | UnsetType, about("what the report alone gives: pass or fail")
    ] = UNSET
    outcome: Annotated[
        Outcome | UnsetType,
        about(
            "pass: every gate holds; fail: something was measured and found bad; "
            "inconclusive: nothing was, but evidence is lacking"
        ),
    ] = UNSET
    evidence_needed: Annotated[
        list[Needed] | UnsetType,
        about("what an inconclusive report lacks; empty for any other outcome"),
    ] = UNSET
    verdict: Annotated[
        str | UnsetType, about("pass, fail, or pending_verifier for a strict claim")
    ] = UNSET
    canonical_guard_chain_enforced: Annotated[
        bool | UnsetType, about("every guard ran, in order")
    ] = UNSET
    blocking_reasons: Annotated[list[Any] | UnsetType, about("why a strict claim fails")] = UNSET


def require_strict_settings(profile: str, tier: str) -> None:
    """Refuse a strict claim that no run of this profile and tier could make.

    Raises:
        ConfigError: another profile or another tier.
    """
    if profile not in STRICT_PROFILES:
        expected = " or ".join(STRICT_PROFILES)
        raise ConfigError("strict assurance: profile", expected=expected, found=profile)
    if tier not in STRICT_TIERS:
        raise ConfigError("strict assurance: tier", expected=" or ".join(STRICT_TIERS), found=tier)


def require_strict_possible(profile: str, tier: str, execution: Execution) -> None:
    """Refuse, before anything is measured, a strict claim that could never be confirmed.

    Raises:
        ConfigError: another profile, another tier, or no container with a known image.
    """
    require_strict_settings(profile, tier)
    if execution.mode != "container":
        raise ConfigError(
            f"strict assurance needs a container whose image is known: {execution.reason}",
            hint="use the container profile, or assurance: off",
        )


def assurance_block(
    comparison: Comparison, policy: Policy, decided: Judgement, report: Mapping[str, Any]
) -> dict[str, Any]:
    """The claim of a report; in mode ``off`` it is the report's own verdict and no more.

    ``report_local_verdict`` knows pass and fail; ``outcome``, beside it, also knows that there is
    too little evidence for either, and ``evidence_needed`` says how much would do. Both speak of
    the gates alone, not of what a strict claim asks for beyond them.
    """
    observed = [guard["name"] for guard in comparison.subject["guards"]]
    strict = comparison.assurance == "strict"
    reasons = [f"{gate}_not_true" for gate in decided.gates if not decided.validation.get(gate)]
    if strict and tuple(observed) != CHAIN:
        reasons.append("guard_chain_incomplete")
    if strict and comparison.subject["meta"]["determinism"].get("level") != "strict":
        reasons.append("determinism_not_strict")
    local = "pass" if passes(decided) and not reasons else "fail"
    return {
        "mode": comparison.assurance,
        "profile": comparison.profile,
        "tier": policy.tier,
        "claim_set": CLAIM_SET,
        "canonical_guard_chain": list(CHAIN),
        "guard_chain_observed": observed,
        "canonical_guard_chain_enforced": tuple(observed) == CHAIN,
        "fallback_fields_used": False,
        "runtime_provenance_declared": strict,
        "runtime_provenance_verified": False,
        "runtime_provenance_verification_status": "pending",
        "report_local_verdict": local,
        "outcome": outcome(report),
        "evidence_needed": to_builtins(needed(report)),
        "verdict": "pending_verifier" if strict and local == "pass" else local,
        "verified_assurance_verdict": "pending" if local == "pass" else "fail",
        "blocking_reasons": reasons if strict else [],
    }
