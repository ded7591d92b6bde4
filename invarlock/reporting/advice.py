"""What to do next: advice on each reason and on what each guard found, in one table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from invarlock.guards import GUARDS
from invarlock.guards.guard import NAME_WEIGHTS
from invarlock.guards.invariants_decision import accepted_names
from invarlock.metrics.kinds import metric_named
from invarlock.pages.parts import Advice, Section, Table
from invarlock.pages.reading import NOT_RUN, Report, block, objects
from invarlock.pages.wording import number
from invarlock.reporting import signals
from invarlock.reporting.outcome import PASS, needed, outcome
from invarlock.severity import worst_first
from invarlock.shown import listed, shortened

NAMED = 3  # places that a row names
LONGEST = 240  # characters of a finding that a row repeats


# By the reason for which a report does not pass; what a guard found, the guard gives advice on.
ADVICE: Mapping[str, Advice] = {
    "primary_metric_fail": Advice(
        "The subject predicts worse than the limit allows",
        "Edit less: more bits, smaller groups, lower sparsity, a lower learning rate. Begin with"
        " the matrices and blocks that guards name, and with the text that lost most.",
    ),
    "distribution_fail": Advice(
        "Predictions moved further than their limit",
        "Read the windows that lost most, edit less, and begin with the blocks that moved most; a"
        " loss that stays can hide it.",
    ),
    "primary_metric_degraded": Advice(
        "Losses are no numbers",
        "Look for NaN, infinity or overflow: measure in another precision (setting dtype), and"
        " check the scales of packed weights.",
    ),
    "tail_fail": Advice(
        "Few windows lost much more than the rest",
        "Read the windows that lost most: what do they share - a language, numbers, code, length?"
        " Add such text to what the edit is calibrated on.",
    ),
    "drift_fail": Advice(
        "Warm-up and scored windows disagree",
        "Look at the text of both samples, and cut the windows with another seed (windows.seed).",
    ),
    "drift_inconclusive": Advice(
        "Too few windows to compare both samples", "Measure more windows (windows.final)."
    ),
    "primary_metric_inconclusive": Advice(
        "Too little evidence to decide", "Measure more windows of more documents (windows.final)."
    ),
    "tokens_below_floor": Advice(
        "Fewer tokens than the tier asks for", "Measure more windows (windows.final)."
    ),
    "examples_below_floor": Advice(
        "Fewer examples than the tier asks for", "Measure more labelled examples (windows.final)."
    ),
    "coverage_below_floor": Advice(
        "Fewer windows or replicates than the tier asks for",
        "Measure more windows (windows.preview, windows.final), with more replicates"
        " (bootstrap.replicates).",
    ),
    "no_labelled_examples": Advice(
        "No example has a label", "Name a text whose records have labels."
    ),
    "metric_only": Advice(
        "Only losses were seen: a server shows no weights",
        f"{NAME_WEIGHTS.capitalize()} as well.",
    ),
    "crashed": Advice(
        "The subject could not be loaded or run", "Read the error in outcome.json; load the subject"
        " with the library that made it.",
    ),
    "out_of_memory": Advice(
        "Memory ran out", "Lower token_budget, or measure on a machine with more memory."
    ),
    "timeout": Advice("Time ran out", "Raise timeout_minutes, or measure fewer windows."),
    "not_evaluated": Advice(
        "A check that decides had no evidence",
        "Measure the subject against the baseline: invarlock evaluate.",
    ),
    "gate_missing": Advice(
        "The report does not ask all that its tier asks", "Evaluate again with this version."
    ),
}  # fmt: skip
NOTED = Advice(
    "A difference that refuses nothing",
    "Read it before the subject is used.",
)
# Reasons that the row of a guard says already.
_OF_GUARDS = {guard.fails_as for guard in GUARDS} - {""}


def next_steps(report: Report) -> tuple[Section, ...]:
    """One row a finding: what it is, where, and what to do; none where nothing was found.

    Of a report that passes nothing has to be done; steps are for whoever wants the finding gone.
    """
    rows = (*_of_reasons(report), *_of_guards(report))
    if outcome(report) == PASS:
        title, step = "What was noticed", "What can be done"
        caption = "Findings; none refuses the subject, and the verdict stands without a step"
    else:
        title, step = "What to do next", "What to do"
        caption = "Findings, the one that decides first"
    table = Table(caption, ("Finding", "Where", step), rows, stacked=True)
    return (Section("next-steps", title, tables=(table,)),) if rows else ()


def _of_reasons(report: Report) -> Iterator[tuple[str, str, str]]:
    """Rows of what decides and is no guard's, the worst first."""
    run = block(report, "primary_metric").get("degraded_reason") not in NOT_RUN
    codes = [reason.split(":")[0] for reason in signals.pass_reasons(report)]
    if not run or signals.METRIC_ONLY in codes:  # what was not measured follows from that
        codes = [code for code in codes if code != "not_evaluated"]
    for code in dict.fromkeys(codes):
        if code in ADVICE and code not in _OF_GUARDS:
            yield ADVICE[code].finding, _of_text(report, code), ADVICE[code].step


def _of_text(report: Report, code: str) -> str:
    """The slice that lost most, or how much evidence there has to be."""
    if code in signals.LACKING:
        return ", ".join(map(str, needed(report)[:NAMED])) or "-"
    kind = metric_named(block(report, "primary_metric").get("kind"))
    parts = [
        (value, str(part.get("name")))
        for part in objects(block(report, "primary_metric").get("slices"))
        if (value := number(part.get("ratio_vs_baseline"))) is not None
    ]
    if not parts:
        return "-"
    value, name = (max if kind.direction == "lower" else min)(parts)
    return f"most in slice {name} ({kind.noun} {kind.words(value)}{kind.suffix})"


def _of_guards(report: Report) -> Iterator[tuple[str, str, str]]:
    """Rows of the guards that found something, with the modules that they name; what refuses
    nothing comes last."""
    notes: list[str] = []
    found = objects(block(report, "guard_warnings").get("warnings"))
    through = accepted_names(report)
    for guard in GUARDS:
        section = block(report, guard.name)
        mine = [w for w in found if w.get("guard") == guard.name]
        failed = section.get("passed") is False and guard.flag and guard.gates
        # findings of files name no module
        files = [f for f in objects(section.get("failures")) if f.get("accept") not in through]
        noted = [f for f in files if f.get("severity") == "warning"]
        notes += map(_message, noted)
        places = [str(w["module"]) for w in mine if w.get("module")]
        places += [_message(f) for f in worst_first(files) if f not in noted]
        if guard.advice is not None and (places or failed):
            yield guard.advice.finding, _places(places) or "-", guard.advice.step
    if notes:
        yield NOTED.finding, _places(notes), NOTED.step


def _message(finding: Mapping[str, object]) -> str:
    """What a finding says, cut where it is longer than a row."""
    return shortened(str(finding.get("message")), LONGEST)


def _places(found: list[str]) -> str:
    """The first places, each once, and how many more there are."""
    return listed([*dict.fromkeys(found)], NAMED, "; ")
