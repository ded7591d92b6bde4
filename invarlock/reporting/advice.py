"""What to do about each finding, in one table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from invarlock.guards import GUARDS
from invarlock.guards.invariants_decision import Invariants
from invarlock.metrics.kinds import metric_named
from invarlock.pages.parts import Section, Table
from invarlock.pages.reading import NOT_RUN, Report, block, objects
from invarlock.pages.wording import number
from invarlock.reporting import signals
from invarlock.reporting.outcome import needed
from invarlock.severity import worst_first

NAMED = 3  # places that a row names
LONGEST = 160  # characters of a finding that a row repeats


class Advice(NamedTuple):
    """A finding in words, and the next step."""

    finding: str
    step: str


LESS = "leave it out of the edit, or edit it less (more bits, smaller groups, lower sparsity)"
# By the name of the guard that spoke, or the reason for which the report does not pass.
ADVICE: Mapping[str, Advice] = {
    "invariants": Advice(
        "A file or tensor is not what it has to be",
        "Mend what the finding names and make the subject again. A difference that is meant and"
        " has a name can be accepted by it: --accept NAME.",
    ),
    "spectral": Advice(
        "A weight matrix has another scale, rank or other rows",
        f"Begin with the matrix that is named: {LESS}. Where rows are named, look at the embedding"
        " of these tokens.",
    ),
    "rmt": Advice(
        "What a module puts out has another spread",
        f"Look at the module that is named and the matrices that feed it: {LESS}.",
    ),
    "representation": Advice(
        "A block no longer tells tokens apart as it did",
        f"Begin with the first block that is named: {LESS}. A whole block that moved alone points"
        " to copied, exchanged or misplaced weights.",
    ),
    "variance": Advice(
        "A scale would win back some of the loss",
        "Multiply the matrix that is named by the scale in the guard's section, and evaluate"
        " again.",
    ),
    "moe": Advice(
        "A router sends tokens elsewhere",
        "Leave the router that is named as it was: routers are small and gain nothing from fewer"
        " bits.",
    ),
    "guard_overhead": Advice(
        "Measuring took more than its limit", "Nothing: it decides nothing about the subject."
    ),
    "primary_metric_fail": Advice(
        "The subject predicts worse than the limit allows",
        "Edit less: more bits, smaller groups, lower sparsity, a lower learning rate. Begin with"
        " the matrices and blocks that guards name, and with the text that lost most.",
    ),
    "distribution_fail": Advice(
        "Predictions moved further than their limit",
        "Read the excerpts, edit less, and begin with the blocks that moved most; a loss that stays"
        " can hide it.",
    ),
    "primary_metric_degraded": Advice(
        "Losses are no numbers",
        "Look for NaN, infinity or overflow: measure in another precision (setting dtype), and"
        " check the scales of packed weights.",
    ),
    "tail_fail": Advice(
        "Few windows lost much more than the rest",
        "Read the excerpts: what do they share - a language, numbers, code, length? Add such text"
        " to what the edit is calibrated on.",
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
# Reasons that the row of a guard says already.
_OF_GUARDS = {guard.fails_as for guard in GUARDS} - {""}


def next_steps(report: Report) -> tuple[Section, ...]:
    """One row a finding: what it is, where, and what to do; none where nothing was found."""
    rows = (*_of_reasons(report), *_of_guards(report))
    header = ("Finding", "Where", "What to do")
    table = Table("Findings, the one that decides first", header, rows, stacked=True)
    return (Section("next-steps", "What to do next", tables=(table,)),) if rows else ()


def _of_reasons(report: Report) -> Iterator[tuple[str, str, str]]:
    """Rows of what decides and is no guard's, the worst first."""
    run = block(report, "primary_metric").get("degraded_reason") not in NOT_RUN
    codes = [reason.split(":")[0] for reason in signals.pass_reasons(report)]
    if not run:  # what was not measured follows from that
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
    """Rows of the guards that found something, with the modules that they name."""
    found = objects(block(report, "guard_warnings").get("warnings"))
    for guard in GUARDS:
        section = block(report, guard.name)
        mine = [w for w in found if w.get("guard") == guard.name]
        failed = section.get("passed") is False and guard.flag and guard.gates
        if not (mine or failed) or guard.name not in ADVICE:
            continue
        places = dict.fromkeys(str(w["module"]) for w in mine if w.get("module"))
        if guard.name == Invariants.name:
            failures = worst_first(objects(section.get("failures")))
            places = dict.fromkeys(str(f.get("message"))[:LONGEST] for f in failures)
        more = len(places) - NAMED
        words = "; ".join([*places][:NAMED]) + (f"; and {more} more" if more > 0 else "")
        yield ADVICE[guard.name].finding, words or "-", ADVICE[guard.name].step
