"""The verdict of a suite, from all runs of all scenarios on all models.

``verdict`` is PASS or FAIL, as published. ``outcome``, beside it, knows a third: *inconclusive*
where no requirement failed for anything but evidence that is lacking. A control that was measured
well enough and did not show what it had to is a failure, like a subject that is bad.

Differences to the published harness, all of them stricter: a missing evaluation fails (a model
of the suite too), every run counts, a crash neither passes nor detects, a must_detect scenario
gates whatever its category, and a required guard has to speak in every evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from msgspec import Struct, to_builtins

from invarlock.errors import InputError
from invarlock.files import digest_json
from invarlock.guards import GUARDS
from invarlock.pages.reading import block, evaluated
from invarlock.reporting import signals
from invarlock.reporting.gates import GATES
from invarlock.reporting.outcome import FAIL, INCONCLUSIVE, PASS
from invarlock.scenarios import Scenario, parse_catalogue
from invarlock.verdict import VERDICT_SCHEMA, summaries
from invarlock.verdict.intervals import rate
from invarlock.verdict.records import (
    Evaluation,
    VerdictRecord,
    consistency_problems,
    in_every_run,
    make_record,
    noop_reports,
)

MANIFEST_PATH = "state/scenarios.json"
MIN_SIGNAL_FRACTION = 0.5  # of the evaluations of informational stress scenarios
Key = tuple[str, str, int]


class _Case(Struct, frozen=True):
    """Everything a requirement looks at."""

    scenarios: Sequence[Scenario]
    evaluations: Sequence[Evaluation]
    expected: Sequence[Key]
    records: Sequence[VerdictRecord]

    def of(self, *, category: str = "", strictness: str = "") -> list[VerdictRecord]:
        return [
            r
            for r in self.records
            if category in ("", r.category) and strictness in ("", r.strictness)
        ]

    @property
    def missing(self) -> list[Key]:
        present = {e.key for e in self.evaluations}
        return [key for key in self.expected if key not in present]


def compile_verdict(
    manifest: Mapping[str, Any],
    evaluations: Sequence[Evaluation],
    expected: Sequence[Key],
) -> dict[str, Any]:
    """The document of ``final_verdict.json``.

    Args:
        manifest: the effective manifest (``state/scenarios.json``).
        evaluations: every evaluation there is.
        expected: every (model id, scenario, run) that has to be there.

    Raises:
        ConfigError: the manifest departs from its contract.
        InputError: two evaluations of one (model, scenario, run), or one of a scenario that
            the manifest does not hold.
    """
    scenarios = parse_catalogue(manifest, MANIFEST_PATH).scenarios
    case = _Case(scenarios, evaluations, expected, judge_all(scenarios, evaluations))
    broken = {name: rule(case) for name, rule in _REQUIREMENTS.items()}
    requirements = [
        {"id": name, "ok": not found, "details": [b.text for b in found]}
        for name, found in broken.items()
    ]
    failed = [name for name, found in broken.items() if found]
    records = case.records
    return {
        "schema": VERDICT_SCHEMA,
        "verdict": "FAIL" if failed else "PASS",
        "outcome": _outcome([b for found in broken.values() for b in found]),
        "suite": manifest["_meta"].get("applied_suite"),
        **({"exploring": True} if _explores(evaluations) else {}),
        "manifest": {
            "path": MANIFEST_PATH,
            "schema": manifest["schema"],
            "schema_version": manifest["schema_version"],
            "sha256": digest_json(manifest),
        },
        "criteria": {
            "clean_all_pass": True,
            "stress_required_fail": True,
            "error_injection_detected": True,
            "informational_stress_min_signal_fraction": MIN_SIGNAL_FRACTION,
            "primary_guard_signal_required": True,
        },
        "counts": _counts(case),
        "core_guard_order": list(signals.CORE_GUARDS),
        "detection": {g: _detection(records, g) for g in signals.CORE_GUARDS},
        "false_alarms": _false_alarms(case.of(category="clean")),
        "not_evaluated": _not_evaluated(evaluations),
        "vocabulary": _vocabulary(evaluations),
        "category_summary": summaries.category_summary(records),
        "guard_signal_summary": summaries.guard_signal_summary(records),
        "guard_intervention_summary": summaries.guard_intervention_summary(records),
        "scenario_signal_summary": summaries.scenario_signal_summary(scenarios, records),
        "records": to_builtins(list(records)),
        "missing": {"by_model": _missing_by_model(case)},
        "requirements": requirements,
        "failed_requirements": failed,
    }


def judge_all(
    scenarios: Sequence[Scenario], evaluations: Sequence[Evaluation]
) -> tuple[VerdictRecord, ...]:
    """One record per evaluation, by model, then in manifest order, then by run.

    Raises:
        InputError: see :func:`compile_verdict`.
    """
    place = {s.id: i for i, s in enumerate(scenarios)}
    seen: set[Key] = set()
    for evaluation in evaluations:
        if evaluation.scenario not in place:
            raise InputError(
                f"scenario {evaluation.scenario} is not in the manifest", where=evaluation.path
            )
        if evaluation.key in seen:
            raise InputError("the same evaluation is given twice", where=evaluation.path)
        seen.add(evaluation.key)
    ordered = sorted(evaluations, key=lambda e: (e.model, place[e.scenario], e.run))
    noops = noop_reports(scenarios, ordered)
    return tuple(make_record(scenarios[place[e.scenario]], e, noops.get(e.model)) for e in ordered)


# --- requirements: each returns what broke it -----------------------------------------------


class Broken(NamedTuple):
    """Something that breaks a requirement, and whether more evidence could still mend it."""

    text: str
    open: bool


def _outcome(broken: Sequence[Broken]) -> str:
    if not broken:
        return PASS
    return INCONCLUSIVE if all(b.open for b in broken) else FAIL


def _at(record: VerdictRecord) -> str:
    return f"{record.model} {record.name} run_{record.run_num}"


def _bad(records: Iterable[VerdictRecord]) -> list[Broken]:
    return [Broken(f"{_at(r)}: {r.why}", r.undecided) for r in records if not r.as_expected]


def _evidence_present(case: _Case) -> list[Broken]:
    present = any(r.measured for r in case.records)
    return [] if present else [Broken("no evaluation has a report", True)]


def _coverage(case: _Case) -> list[Broken]:
    return [Broken(f"{m} {s} run_{n} is missing", True) for m, s, n in case.missing]


def _all_measured(case: _Case) -> list[Broken]:
    return [Broken(f"{_at(r)}: {r.status}", r.undecided) for r in case.records if not r.measured]


def _consistent(case: _Case) -> list[Broken]:
    return [
        Broken(f"{e.model} {e.scenario} run_{e.run}: {problem}", False)
        for e in sorted(case.evaluations, key=lambda e: e.key)
        for problem in consistency_problems(e)
    ]


def _stress_detectors(case: _Case) -> list[Broken]:
    by_id = {s.id: s for s in case.scenarios}
    return [
        Broken(f"{_at(r)}: {', '.join(r.detectors_missed) or r.why}", r.undecided)
        for r in case.of(category="stress")
        if r.strictness in ("must_fail", "must_detect")
        and (by_id[r.name].detectors_any_of or by_id[r.name].detectors_all_of)
        and not r.detectors_hit
    ]


def _guard_signal(case: _Case) -> list[Broken]:
    return [
        Broken(f"{_at(r)}: {r.primary_guard} did not speak", r.undecided)
        for r in case.records
        if r.primary_guard_required and not r.primary_guard_hit
    ]


def _guard_detectors(case: _Case) -> list[Broken]:
    return [
        Broken(f"{_at(r)}: {', '.join(r.detectors_missed) or r.why}", r.undecided)
        for r in case.records
        if r.primary_guard_required and not r.detectors_hit
    ]


def _guard_demonstrated(case: _Case) -> list[Broken]:
    found: list[Broken] = []
    for guard in signals.CORE_GUARDS:
        wanted = [
            s for s in case.scenarios if s.primary_guard_required and s.primary_guard == guard
        ]
        records = [r for r in case.records if r.name in {s.id for s in wanted}]
        if wanted and not any(r.primary_guard_hit for r in records):
            text = f"{guard} caught none of its {len(wanted)} scenarios"
            found.append(Broken(text, not records or any(r.undecided for r in records)))
    return found


def _informational(case: _Case) -> list[Broken]:
    members = case.of(category="stress", strictness="informational")
    hits = sum(r.detectors_hit for r in members)
    if not members or hits / len(members) >= MIN_SIGNAL_FRACTION:
        return []
    text = f"{hits} of {len(members)} hit their detectors, at least {MIN_SIGNAL_FRACTION:g} must"
    # If the undecided ones could still reach the fraction, the suite lacks evidence, not signals.
    could = hits + sum(r.outcome == INCONCLUSIVE and not r.detectors_hit for r in members)
    return [Broken(text, could / len(members) >= MIN_SIGNAL_FRACTION)]


def _asked(case: _Case, category: str) -> list[VerdictRecord]:
    """The evaluations of a category that have to show something."""
    asking = (
        "must_pass",
        "must_detect",  # check: verdict.asked
        "must_fail",  # check: verdict.asked
    )
    return [r for r in case.of(category=category) if r.strictness in asking]


def _undone(case: _Case) -> list[VerdictRecord]:
    """The measured evaluations of damage that was not done, where nothing else is asked."""
    found = case.of(category="error_injection", strictness="informational")
    return [r for r in found if r.measured and r.injected is not True]


_REQUIREMENTS: Mapping[str, Callable[[_Case], list[Broken]]] = {
    "evidence_present": _evidence_present,
    "scenario_coverage": _coverage,
    "all_measured": _all_measured,
    "evidence_consistent": _consistent,
    "clean_all_pass": lambda c: _bad(_asked(c, "clean")),
    "custom_all_pass": lambda c: _bad(_asked(c, "custom")),
    "stress_required_fail": lambda c: _bad(_asked(c, "stress")),
    "stress_expected_detectors": _stress_detectors,
    "error_injection_detected": lambda c: _bad([*_asked(c, "error_injection"), *_undone(c)]),
    "scenario_primary_guard_signal": _guard_signal,
    "scenario_expected_detectors": _guard_detectors,
    "guard_primary_demonstrated": _guard_demonstrated,
    "informational_stress_min_signal_fraction": _informational,
}


# --- counts and rates -----------------------------------------------------------------------


def _detection(records: Sequence[VerdictRecord], guard: str) -> dict[str, Any]:
    """How often a guard caught the damage that is aimed at it and that it has to catch."""
    aimed = [
        r
        for r in records
        if r.primary_guard == guard
        and (
            r.strictness == "must_detect"
            or (r.category == "error_injection" and r.primary_guard_required)
        )
    ]
    return rate("detected", in_every_run(aimed, lambda r: r.detectors_hit and r.primary_guard_hit))


def _false_alarms(clean: Sequence[VerdictRecord]) -> dict[str, Any]:
    """Harmless edits on which a guard fired, or that failed, in any run.

    One on which too little was measured is neither an alarm nor the absence of one.
    """
    # An inconclusive run counts only if a guard fired in it: more windows would not undo that.
    decided = [
        r for r in clean if r.measured and (r.outcome != INCONCLUSIVE or r.any_core_guard_flag)
    ]
    quiet = in_every_run(decided, lambda r: r.passed and not r.any_core_guard_flag)
    return rate("flagged", [not value for value in quiet])


def _not_evaluated(evaluations: Sequence[Evaluation]) -> list[str]:
    """Gates that some measured, not rejected report left out, and core guards without a flag."""
    reports = [e.report for e in evaluations if e.report and e.outcome.get("status") == "reported"]
    left_out = [
        name for name in GATES if any(name not in signals.gates(report) for report in reports)
    ]
    unflagged = [guard.name for guard in GUARDS if guard.core and not guard.flag]
    return left_out + [
        name for name in unflagged if any(not evaluated(report, name) for report in reports)
    ]


def _explores(evaluations: Sequence[Evaluation]) -> bool:
    """Whether guards decide nothing in some evaluation, as its tier has it."""
    reports = [evaluation.report for evaluation in evaluations if evaluation.report]
    return not all(map(signals.enforces_guards, reports))


def _vocabulary(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """By model, how many of how many token ids the windows use."""
    found: dict[str, Any] = {}
    for evaluation in sorted(evaluations, key=lambda e: e.key):
        section = block(evaluation.report or {}, "vocabulary")
        if section:
            use = {key: section.get(key) for key in ("used", "size")}
            found.setdefault(evaluation.model, use)
    return found


def _missing_by_model(case: _Case) -> dict[str, list[str]]:
    result: dict[str, list[str]] = {}
    for model, scenario, run in case.missing:
        result.setdefault(model, []).append(f"{scenario}/run_{run}")
    return result


def _counts(case: _Case) -> dict[str, int]:
    catastrophic = {s.id for s in case.scenarios if s.catastrophic_required}
    severe = [r for r in case.records if r.name in catastrophic]
    clean, custom = case.of(category="clean"), case.of(category="custom")
    stress = case.of(category="stress", strictness="must_fail")
    informational = case.of(category="stress", strictness="informational")
    errors = [
        r
        for r in case.of(category="error_injection")
        if r.strictness in ("must_detect", "must_fail")
    ]
    guarded = [r for r in case.records if r.primary_guard_required]
    return {
        "models_total": len({m for m, _, _ in case.expected} | {r.model for r in case.records}),
        "records_total": len(case.records),
        "expected_total": len(case.expected),
        "clean_total": len(clean),
        "clean_pass": sum(r.passed for r in clean),
        "custom_total": len(custom),
        "custom_pass": sum(r.passed for r in custom),
        "stress_total": len(stress),
        "stress_fail": sum(r.measured and r.outcome == FAIL for r in stress),
        "catastrophic_required_total": sum(s in catastrophic for _, s, _ in case.expected),
        "catastrophic_required_present": len(severe),
        "catastrophic_required_fail": sum(r.guard_flags["primary_metric"] for r in severe),
        "error_injection_total": len(errors),
        "error_injection_detected": sum(r.as_expected for r in errors),
        "informational_stress_total": len(informational),
        "informational_stress_fail": sum(r.measured and r.outcome == FAIL for r in informational),
        "informational_stress_signaled": sum(r.detectors_hit for r in informational),
        "primary_guard_required_scenarios": sum(s.primary_guard_required for s in case.scenarios),
        "primary_guard_required_records": len(guarded),
        "primary_guard_required_hits": sum(r.primary_guard_hit for r in guarded),
        "primary_guard_required_scenarios_hit": len(
            {r.name for r in guarded} - {r.name for r in guarded if not r.primary_guard_hit}
        ),
        **summaries.verification_counts(case.records),
    }
