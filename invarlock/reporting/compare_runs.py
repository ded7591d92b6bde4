"""An evaluation report out of two run reports that are already there.

A subject's run that ``invarlock evaluate`` made says which run of the baseline it had at hand, and
what it measured together with it: the report is the one that ``evaluate`` wrote. Runs that each
measured their own model (``invarlock run``) show losses, activations and routers. Whatever needs
both models - files, rows, representations, the shift of the predictions, tried scales - was not
measured, the report says so, and it does not pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from invarlock.contracts import validate
from invarlock.errors import ConfigError, ContractError, InputError
from invarlock.files import digest_json
from invarlock.guards import BY_NAME, CONTRACTS
from invarlock.guards.findings import label_of
from invarlock.guards.guard import RUN_SCHEMA
from invarlock.metrics.kinds import METRICS
from invarlock.metrics.perplexity import Bootstrap
from invarlock.pages.reading import REJECTED
from invarlock.policy import Policy, resolve_policy
from invarlock.reporting.evaluation import evaluation_report
from invarlock.reporting.runs import Comparison, RecordedShift, Run

REPLICATES, ALPHA = 2000, 0.05  # of the interval, as ``evaluate`` has them
# Of both runs, by the member of the run report: they have to be the same.
SAME = (
    ("windows", "data", "windows_sha256"),
    ("metric", "meta", "metric"),
    ("tokenizer", "meta", "tokenizer_hash"),
    ("dtype", "meta", "dtype"),
    ("device", "meta", "device"),
)


def compare_runs(
    subject: Run,
    baseline: Run,
    *,
    policy: Policy | None = None,
    preset_sha256: str | None = None,
    policy_pack: Mapping[str, str] | None = None,
    replicates: int = REPLICATES,
    alpha: float = ALPHA,
    profile: str = "",
    accepted: Sequence[str] = (),
    edit_label: str = "",
) -> dict[str, Any]:
    """The evaluation report of a subject's run against the baseline's.

    Args:
        subject: its ``report.json``, of ``invarlock evaluate`` or of ``invarlock run``.
        baseline: the ``report.json`` of the baseline's run.
        policy: limits; None: those of the tier that the subject's run names.
        preset_sha256: digest of the preset that the policy holds.
        policy_pack: name, digest and signer of the policy pack that it holds.
        replicates: of the bootstrap.
        alpha: two-sided error of the interval.
        profile: what verification will demand; empty: the one that the subject's run names.
        accepted: names of differences that are meant.
        edit_label: name of the edit of a run that does not name it.

    Raises:
        InputError: a document that is not a run report, or a run that measured nothing.
        ContractError: runs that measured other things, or in another way.
        ConfigError: limits by which the subject's run did not try what it recorded.
    """
    for run, name in ((subject, "subject"), (baseline, "baseline")):
        if run.get("schema") != RUN_SCHEMA:
            found = str(run.get("schema"))[:80]
            raise ContractError("not a run report", where=name, expected=RUN_SCHEMA, found=found)
    try:
        policy = policy or resolve_policy(str(subject["context"]["tier"]), ())
        profile = profile or str(subject["context"]["profile"])
        _require_windows(subject, baseline)
        against = subject.get("against")
        if against is not None and against["report_sha256"] == digest_json(baseline):
            _require_tried(against, policy)
            runs = _together(subject, against)
        else:
            _require_same(subject, baseline)
            runs = _separate(subject, baseline, edit_label)
        bootstrap = Bootstrap(
            replicates,
            alpha,
            int(subject["meta"]["seed"]),
            METRICS[baseline["meta"]["metric"]].interval,
        )
        comparison = Comparison(
            baseline=baseline,
            bootstrap=bootstrap,
            profile=profile,
            preset_sha256=preset_sha256,
            policy_pack=policy_pack,
            accepted=accepted,
            **runs,
        )
        report = evaluation_report(comparison, policy)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ContractError(
            f"a run report lacks what is compared: {type(error).__name__} {error}",
            hint="measure it again with invarlock run or evaluate",
        ) from error
    validate(report, "evaluation-report", "evaluation.report.json")
    return report


def _require_windows(subject: Run, baseline: Run) -> None:
    if not baseline["evaluation_windows"]:
        raise InputError("the baseline's run measured nothing", where="baseline")
    if not subject["evaluation_windows"] and not subject["guards"]:
        run = str(subject["meta"]["run_id"])
        raise InputError("the subject's run measured nothing", where="subject", found=run)


def _require_tried(against: Mapping[str, Any], policy: Policy) -> None:
    """What guards try while the model is there would be something else by other limits."""
    for name, limits in against["tried_by"].items():
        if limits != BY_NAME[name].limits(policy):
            raise ConfigError(
                f"{name} tried scales by the limits of another tier",
                found=policy.tier,
                hint="name the tier and preset of that run, or evaluate again",
            )


def _together(subject: Run, against: Mapping[str, Any]) -> dict[str, Any]:
    """What ``evaluate`` compared: the subject with what it recorded against this baseline."""
    ran = bool(subject["evaluation_windows"])
    return {
        "subject": subject,
        "shift": RecordedShift(against["distribution"], against["final"])
        if "distribution" in against
        else None,
        "excerpts": against.get("excerpts", ()),
        "reason_not_run": "" if ran else REJECTED,
        "invariants_evaluated": bool(subject["guards"]),
    }


def _separate(subject: Run, baseline: Run, edit_label: str) -> dict[str, Any]:
    """The subject with what a run of it alone shows."""
    label = label_of(edit_label, baseline["checkpoint"], subject["checkpoint"])
    guards = [guard for guard in subject["guards"] if not BY_NAME[guard["name"]].needs_both]
    alone: dict[str, Any] = {
        **subject,
        # a report compares two checkpoints of one model
        "meta": {**subject["meta"], "model_id": baseline["meta"]["model_id"]},
        "edit": {**subject["edit"], "name": label},
        "guards": [{**g, "trial": None} if "trial" in g else g for g in guards],
        "work": {**subject["work"], "trial_tokens": 0},
    }
    return {"subject": alone, "separate": True, "invariants_evaluated": False}


def _require_same(subject: Run, baseline: Run) -> None:
    if not subject["evaluation_windows"]:
        raise InputError(
            "the subject's run holds no windows",
            where="subject",
            hint="compare it with the baseline's run that it was measured with",
        )
    for what, part, member in SAME:
        _require(what, f"/{part}/{member}", subject[part][member], baseline[part][member])
    for name in CONTRACTS:
        if not BY_NAME[name].needs_both:
            mine, theirs = (
                BY_NAME[name].recorded(run).get("measurement_contract_hash")
                for run in (subject, baseline)
            )
            _require(f"definition of what {name} measures", f"/guards/{name}", mine, theirs)


def _require(what: str, where: str, mine: object, theirs: object) -> None:
    if mine != theirs:
        raise ContractError(
            f"the runs have another {what}",
            where=where,
            expected=f"{theirs} (baseline)",
            found=f"{mine} (subject)",
            hint="measure both on one windows.json and one device",
        )
