"""One record per evaluation: what its scenario asks for and whether the report shows it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from msgspec import UNSET
from msgspec.structs import asdict, replace

from invarlock.errors import InputError
from invarlock.files import read_json_object, slug
from invarlock.guards.detector import Reading
from invarlock.guards.invariants_decision import accepted_names, findings, status_in, unedited
from invarlock.guards.spectral import caps_applied
from invarlock.metrics.kinds import metric_named
from invarlock.pages.reading import NOT_TRIED, REJECTED, Report, block
from invarlock.reporting import signals
from invarlock.reporting.deployable import VALIDATION
from invarlock.reporting.documents.final_verdict import Record, Stated
from invarlock.reporting.outcome import (
    INCONCLUSIVE,
    EvidenceNeed,
    needed,
    outcome_of,
    too_little,
)
from invarlock.scenarios import Scenario
from invarlock.severity import NOTHING_EDITED
from invarlock.verdict import MEASURED
from invarlock.verdict.detectors import read_all

# What a report of unchanged bytes says to the detectors: no guard fired, nothing is capped.
NOTHING_FOUND: Report = {"spectral": {"caps_applied": 0, "violations": []}}
# Reasons that a scenario gives, and no report.
NOT_EXACT = "ratio_not_exact"
NOT_DEPLOYABLE = "not_deployable"  # does not load or answer, or is larger than it claims
OF_INVARIANTS = (REJECTED, "invariants_fail")
WITH_FINDING = (*OF_INVARIANTS, NOT_DEPLOYABLE)
MAX_FINDING = 300  # characters of a finding that a verdict repeats
METADATA_FILES = {"edit": "edit_metadata.json", "error": "error_metadata.json"}


@dataclass(frozen=True)
class Evaluation:
    """One evaluation as read from its folder; ``report`` is None where nothing was measured.

    ``model`` is the model id; ``path`` the folder below the suite's output folder.
    """

    model: str
    scenario: str
    run: int
    report: Report | None
    outcome: Mapping[str, Any]
    path: str = ""
    metadata: Mapping[str, Any] | None = None
    deployable: Mapping[str, Any] | None = None  # deployable_artifact_validation.json

    @property
    def key(self) -> tuple[str, str, int]:
        """(model, scenario, run)."""
        return self.model, self.scenario, self.run

    @property
    def measured(self) -> bool:
        """Whether there is a report that may count as a pass or a detection."""
        return self.report is not None and self.outcome.get("status") in MEASURED


def canonical_path(model: str, scenario: str, run: int) -> str:
    """Folder of an evaluation below the suite's output folder."""
    return f"{slug(model)}/reports/{scenario}/run_{run}"


def load_evaluation(folder: Path) -> Evaluation:
    """Read one ``run_<n>`` folder: ``outcome.json``, the report and the metadata file.

    Raises:
        InputError: a file is missing or unreadable, the outcome departs from its contract,
            claims a report that is not there, or names another scenario or run than the folder.
    """
    from invarlock.contracts import validate

    outcome = read_json_object(folder / "outcome.json")
    validate(outcome, "outcome", str(folder / "outcome.json"))
    model, scenario, run = outcome["model_id"], outcome["scenario"], outcome["run"]
    resolved = folder.resolve()
    if (resolved.parent.name, resolved.name) != (scenario, f"run_{run}"):
        raise InputError(
            "outcome.json belongs to another evaluation",
            where=str(folder),
            expected=f"{resolved.parent.name}/{resolved.name}",
            found=f"{scenario}/run_{run}",
        )
    report_file = folder / "evaluation.report.json"
    report = None
    if outcome["status"] in MEASURED:
        report = read_json_object(report_file)
    metadata = next(
        (read_json_object(folder / n) for n in METADATA_FILES.values() if (folder / n).is_file()),
        None,
    )
    validated = folder / VALIDATION
    deployable = read_json_object(validated) if validated.is_file() else None
    return Evaluation(
        model=model,
        scenario=scenario,
        run=run,
        report=report,
        outcome=outcome,
        path=canonical_path(model, scenario, run),
        metadata=metadata,
        deployable=deployable,
    )


def stated_by(report: Report | None) -> Stated:
    """What a report states; of None, that nothing was measured and no guard fired."""
    metric = block(report or {}, "primary_metric")
    decision = metric.get("decision")
    return Stated(
        invariants_status=status_in(report or {}),
        guard_flags=signals.guard_flags(report),
        spectral_caps_applied=caps_applied(report or {}),
        metric=metric.get("kind"),
        ratio_vs_baseline=_number(metric.get("ratio_vs_baseline")),
        display_ci=_interval(metric.get("display_ci")),
        decision=decision if isinstance(decision, str) else None,
    )


class VerdictRecord(Record, kw_only=True):
    """A judged evaluation, with members that verdicts of older versions do not have."""

    evidence_needed: Sequence[EvidenceNeed]
    undecided: bool

    @property
    def measured(self) -> bool:
        """Whether the outcome may count as a pass or a detection."""
        return self.status in MEASURED

    @property
    def fired(self) -> tuple[str, ...]:
        """The core guards that fired, in their order."""
        return tuple(g for g in signals.CORE_GUARDS if self.guard_flags[g])


def make_record(scenario: Scenario, evaluation: Evaluation, noop: Report | None) -> VerdictRecord:
    """Judge one evaluation by its scenario; ``noop`` is the no-op's report of the same model."""
    report = evaluation.report if evaluation.measured else None
    status = evaluation.outcome["status"]
    injected = evaluation.outcome.get("injected")
    if report is not None and unedited(report) and scenario.error_type != NOTHING_EDITED:
        injected = False  # whatever the injector says: that nothing was done is no detection
    reasons = [status] if report is None else signals.pass_reasons(report)
    readings_any = read_all(scenario.detectors_any_of, report, noop) if report else []
    readings_all = read_all(scenario.detectors_all_of, report, noop) if report else []
    listed = [*readings_any, *readings_all]
    satisfied = (
        bool(listed)
        and (not readings_any or any(r.hit for r in readings_any))
        and all(r.hit for r in readings_all)
        and (injected is True or not scenario.is_error)
    )
    stated = stated_by(report)
    flags, ratio = stated.guard_flags, stated.ratio_vs_baseline
    exact = None if ratio is None else metric_named(stated.metric).as_ratio(ratio)
    if scenario.exact_ratio is not None and report is not None and exact != scenario.exact_ratio:
        reasons = sorted([*reasons, NOT_EXACT], key=signals.lacks_evidence)
    if scenario.is_deployable and report is not None and not _deployable(evaluation):
        reasons = sorted([*reasons, NOT_DEPLOYABLE], key=signals.lacks_evidence)
    base = VerdictRecord(
        model=evaluation.model,
        category=scenario.category,
        name=scenario.id,
        strictness=scenario.strictness,
        intent=scenario.intent,
        primary_guard=scenario.primary_guard,
        failure_class=str(scenario.entry["failure_class"]),
        run_num=evaluation.run,
        family=scenario.edit_type or scenario.error_type,
        status=status,
        injected=injected if isinstance(injected, bool) else None,
        passed=not reasons,
        outcome=outcome_of(reasons),
        reasons=reasons,
        finding=_worst_finding(report) or _first_issue(scenario, evaluation),
        evidence_needed=needed(report or {}),
        detectors_hit=satisfied,
        detectors=[r.label for r in readings_any if r.hit],
        detectors_all_of=[r.label for r in readings_all if r.hit],
        detectors_missed=[str(r) for r in listed if not r.hit],
        primary_guard_required=scenario.primary_guard_required,
        primary_guard_hit=signals.spoke(flags, scenario.primary_guard),
        any_core_guard_flag=any(flags[g] for g in signals.CORE_GUARDS),
        **asdict(stated),
        baseline_sha256=evaluation.outcome.get("baseline_sha256"),
        subject_sha256=evaluation.outcome.get("subject_sha256"),
        as_expected=False,
        undecided=False,
        why="",
        path=canonical_path(*evaluation.key),
        accepted=accepted_names(report or {}) or UNSET,
    )
    shortfalls = _shortfalls(scenario, base, listed)
    return replace(
        base,
        as_expected=not shortfalls,
        undecided=bool(shortfalls) and all(found.open for found in shortfalls),
        why="; ".join(found.text for found in shortfalls),
    )


def _deployable(evaluation: Evaluation) -> bool:
    """Whether the subject was seen to load and to answer, and is as small as it claims."""
    return evaluation.deployable is not None and evaluation.deployable.get("ok") is True


def _first_issue(scenario: Scenario, evaluation: Evaluation) -> str | None:
    """What is wrong with a deployable subject; None where nothing is, and for any other."""
    if not scenario.is_deployable or _deployable(evaluation):
        return None
    listed = (evaluation.deployable or {}).get("issues")
    first = str(listed[0]) if isinstance(listed, list) and listed else f"no {VALIDATION}"
    return first[:MAX_FINDING]


def noop_reports(
    scenarios: Sequence[Scenario], evaluations: Sequence[Evaluation]
) -> dict[str, Report]:
    """The no-op's report of each model that has one: what the others are compared with.

    Where none was asked for, it is the baseline compared with itself, whose every ratio is 1.
    """
    names = {s.id for s in scenarios if s.is_noop}
    if not names:
        return {evaluation.model: NOTHING_FOUND for evaluation in evaluations}
    found: dict[str, Report] = {}
    for evaluation in sorted(evaluations, key=lambda e: e.key):
        if evaluation.scenario in names and evaluation.measured and evaluation.report:
            found.setdefault(evaluation.model, evaluation.report)
    return found


def in_every_run(
    records: Sequence[VerdictRecord], rule: Callable[[VerdictRecord], bool]
) -> list[bool]:
    """One truth value per (model, scenario): the rule holds in every run.

    Runs repeat the same windows, so they are no further evidence about the guard.
    """
    runs: dict[tuple[str, str], list[bool]] = {}
    for record in records:
        runs.setdefault((record.model, record.name), []).append(rule(record))
    return [all(values) for values in runs.values()]


class Shortfall(NamedTuple):
    """Something that an evaluation did not show, and whether more evidence could still show it."""

    text: str
    open: bool


def _shortfalls(
    scenario: Scenario, record: VerdictRecord, readings: Sequence[Reading]
) -> list[Shortfall]:
    """What the evaluation did not show of what its scenario asks for.

    A detector or guard that was measured and stayed silent has missed; one that looks at a metric
    on which nothing is decided has not.
    """
    if not record.measured:
        text = f"nothing was measured ({record.status})"
        return [Shortfall(text, record.status in NOT_TRIED)]
    undecided = record.outcome == INCONCLUSIVE
    unread = undecided and any(reading.open for reading in readings if not reading.hit)
    by_metric = undecided and record.primary_guard == "primary_metric"
    found: list[Shortfall] = []
    if scenario.is_error and record.injected is not True:
        found.append(Shortfall("no damage was injected", False))
    if record.strictness == "must_pass" and not record.passed:
        found.append(Shortfall("did not pass: " + _why(record), undecided))
    if record.strictness == "must_fail" and record.passed:
        found.append(Shortfall("passed, but has to fail", False))
    elif record.strictness == "must_fail" and undecided:  # not refused: nothing shows it is bad
        found.append(Shortfall("has to fail, but is " + _why(record), True))
    if scenario.catastrophic_required and not record.guard_flags["primary_metric"]:
        found.append(Shortfall("the primary metric did not fail", undecided))
    asks = bool(scenario.detectors_any_of or scenario.detectors_all_of)
    if record.strictness == "must_detect" and not record.detectors_hit and not found:
        found.append(Shortfall("not detected", unread))
    silent = record.passed and not any(record.guard_flags.values())
    # check: verdict.silent
    if record.strictness in ("must_detect", "must_fail") and silent and not found:
        found.append(Shortfall("no guard spoke", False))  # whatever its detectors look at
    if record.strictness == "must_fail" and asks and not record.detectors_hit and not found:
        found.append(Shortfall("no detector was true", unread))
    if scenario.primary_guard_required and not record.primary_guard_hit:
        found.append(Shortfall(f"{record.primary_guard} did not speak", by_metric))
    if scenario.primary_guard_required and not record.detectors_hit and not found:
        missed = ", ".join(record.detectors_missed)
        found.append(Shortfall(f"{record.primary_guard} spoke, but not true: {missed}", unread))
    return found


def _why(record: VerdictRecord) -> str:
    """The reasons of a report that does not pass; a rejection with the finding behind it."""
    if record.outcome == INCONCLUSIVE:
        return f"{INCONCLUSIVE}, {too_little(record.evidence_needed, record.reasons)}"
    named = [
        f"{reason} ({record.finding})" if reason in WITH_FINDING and record.finding else reason
        for reason in record.reasons
    ]
    first = next((r for r in record.reasons if r in OF_INVARIANTS), None)
    if record.status == REJECTED and first:  # all others only follow from it
        return named[record.reasons.index(first)]
    return ", ".join(named)


def _worst_finding(report: Report | None) -> str | None:
    """The message of the worst finding of the invariants; None where there is none."""
    found = findings(report or {})
    return str(found[0].get("message"))[:MAX_FINDING] if found else None


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _interval(value: object) -> list[float] | None:
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        return None
    low, high = _number(value[0]), _number(value[1])
    return [low, high] if low is not None and high is not None else None


def consistency_problems(evaluation: Evaluation) -> list[str]:
    """Contradictions between an outcome and its report."""
    outcome, report = evaluation.outcome, evaluation.report
    if report is None:
        return []
    found: list[str] = []
    rejected = block(report, "primary_metric").get("degraded_reason") == REJECTED
    if rejected != (outcome.get("status") == REJECTED):
        found.append("outcome and report disagree on whether the subject was rejected")
    named = block(report, "edit").get("scenario")
    if named is not None and named != evaluation.scenario:
        found.append(f"the report is about scenario {named}")
    subject = block(block(report, "provenance"), "subject").get("checkpoint_sha256")
    recorded = outcome.get("subject_sha256")
    if subject is not None and recorded is not None and subject != recorded:
        found.append("outcome and report name different subject digests")
    return found
