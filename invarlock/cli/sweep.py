"""Propose values of a tier from finished runs of harmless edits; no tier is changed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from invarlock.cli.options import option
from invarlock.contracts import validate
from invarlock.counts import counted
from invarlock.files import write_json, write_text


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """Options of ``invarlock advanced calibrate null-sweep`` and ``ve-sweep``."""

    runs: tuple[Path, ...] = option(
        metavar="PATH",
        help="evaluation.report.json or calibration_stats.json of harmless edits, or folders with "
        "them: of a suite's or pack's folder its clean scenarios count",
    )
    tier: str = option("balanced", help="tier whose limits they are held against")
    false_alarm: float | None = option(
        None, metavar="SHARE", help="aim of each limit (default: the tier's, preset.false_alarm)"
    )
    confidence: float | None = option(
        None, metavar="SHARE", help="of each bound (default: the tier's, preset.confidence)"
    )
    out: Path = option(metavar="FILE", help="proposal to write, JSON", writes=True)
    out_yaml: Path | None = option(
        None, metavar="FILE", help="the same content as YAML", writes=True
    )


def null_sweep(options: SweepOptions) -> int:
    """Of the limits of gates."""
    return _propose(options, "null")


def ve_sweep(options: SweepOptions) -> int:
    """Of the variance guard's deadband and least gain."""
    return _propose(options, "variance")


def _propose(options: SweepOptions, sweep: str) -> int:
    """Write the proposal, and show it beside what is in force."""
    from invarlock.policy import load_policy
    from invarlock.preset import to_yaml
    from invarlock.sweep import collect, propose, table

    policy = load_policy(options.tier)
    aim, confidence = options.false_alarm, options.confidence
    aim = policy.preset.false_alarm if aim is None else aim
    confidence = policy.preset.confidence if confidence is None else confidence
    document = propose(collect(options.runs, sweep, policy), sweep, policy, aim, confidence)
    validate(document, "tier-proposal", str(options.out))
    write_json(options.out, document)
    if options.out_yaml is not None:
        write_text(options.out_yaml, to_yaml(document))
    runs, models = counted(document["runs"], "run"), counted(len(document["models"]), "model")
    print(
        f"tier {policy.tier}: {runs} of harmless edits of {models}; aim {aim:g} false alarms of "
        f"each limit, confidence {confidence:g}"
    )
    for line in table(document):
        print(line)
    for key, what in (
        ("repeats", "repeated another one"),
        ("left_out", "of damage or of other edits left out"),
    ):
        if number := document[key]:
            print(f"{counted(number, 'run')} {what}")
    print(f"{options.out}: {_next(options, document['values'])}")
    return 0


def _next(options: SweepOptions, values: dict[str, float]) -> str:
    """What can be done with the proposal."""
    if not values:
        return "no value that a policy pack may set; the tier is as it was"
    return (
        f"{counted(len(values), 'value')} for invarlock policy create --proposal {options.out} "
        f"--tier {options.tier}; the tier is as it was"
    )


ACTIONS = {
    "null-sweep": (
        SweepOptions,
        null_sweep,
        "propose limits of a tier from finished runs of harmless edits; change none",
    ),
    "ve-sweep": (
        SweepOptions,
        ve_sweep,
        "propose the variance guard's deadband and least gain from them; change none",
    ),
}
