"""The sections on what was compared, by which thresholds, and its limitations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from invarlock.metrics.cost import LATENCY, MEMORY, THROUGHPUT, costs_of
from invarlock.metrics.kinds import metric_named
from invarlock.pages.parts import LISTED, NOT_EVALUATED, Section, Table, not_evaluated
from invarlock.pages.reading import Report, block, objects
from invarlock.pages.wording import fixed, number, vocabulary_use, yes
from invarlock.reporting.dashboard import all_checks
from invarlock.reporting.judged import is_served, named_server


def compared(report: Report) -> Section:
    """Model, checkpoints, text and windows."""
    meta, data = block(report, "meta"), block(report, "dataset")
    provenance, windows = block(report, "provenance"), block(data, "windows")
    edit = block(report, "edit")
    sides = {side: block(provenance, side) for side in ("baseline", "subject")}
    facts = [
        ("Model", str(meta.get("model_id", "-"))),
        ("Scenario", str(edit.get("scenario", "-"))),
        ("Edit", str(edit.get("name", "-"))),
        ("Baseline checkpoint", _digest(sides["baseline"].get("checkpoint_sha256"))),
        *_subject(report, sides),
        ("Text", f"{data.get('provider', '-')}, split {data.get('split', '-')}"),
        (
            "Windows",
            f"{windows.get('preview', '-')} warm-up + {windows.get('final', '-')} scored, of "
            f"{data.get('seq_len', '-')} tokens, stride {data.get('stride', '-')}, "
            f"seed {windows.get('seed', '-')}{_head(data)}",
        ),
        ("Vocabulary in the windows", _vocabulary(report)),
        ("Windows file", _digest(provenance.get("windows_sha256"))),
        ("Tokenizer", _digest(meta.get("tokenizer_hash"))),
        ("Device and precision", f"{meta.get('device', '-')}, {meta.get('dtype', '-')}"),
        ("Execution", str(meta.get("execution_mode", "-"))),
        *_started(block(meta, "started")),
        ("InvarLock", str(meta.get("invarlock_version", "-"))),
    ]
    return Section("compared", "What was compared", facts=tuple(facts))


def _subject(report: Report, sides: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Its digest and files; of a running server, which shows neither, how it was named."""
    if is_served(report):
        yield "Subject", named_server(block(block(report, "meta"), "execution"))
        return
    yield "Subject checkpoint", _digest(sides["subject"].get("checkpoint_sha256"))
    yield "Files beside the weights", _shipped(*(block(s, "checkpoint") for s in sides.values()))


def _started(said: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """From which block on a pass ran, where it was not the first."""
    if said:
        at = f"block {said.get('block')} of {said.get('blocks')}"
        if said.get("block") == said.get("blocks"):
            at = f"the end of the last of {said.get('blocks')} blocks"
        yield (
            "Pass",
            f"{said.get('windows')} windows from {at} on, with the hidden states that the "
            f"baseline's run kept; {said.get('checked')} ran whole and gave the same bits",
        )


def inference(report: Report) -> Section:
    """What went through the model, and what that took where the report states it."""
    meta, telemetry = block(report, "meta"), block(report, "telemetry")
    overhead, costs = block(report, "system_overhead"), costs_of(telemetry)
    facts = [
        ("Loss", str(telemetry.get("loss_type", "-"))),
        *(
            (f"Predicted tokens, {what} windows", str(telemetry.get(f"{arm}_total_tokens", "-")))
            for arm, what in (("preview", "warm-up"), ("final", "scored"))
        ),
        ("Determinism", str(block(meta, "determinism").get("level", "-"))),
    ]
    for name, what, unit in (
        (LATENCY, "Latency", "ms a token"),
        (THROUGHPUT, "Throughput", "tokens a second"),
        (MEMORY, "Peak memory", "MiB"),
    ):
        if name in costs:
            ratio = number(block(overhead, name).get("ratio"))
            times = "" if ratio is None else f", {fixed(ratio, 3)} times the baseline's"
            facts.append((what, f"{_value(costs[name])} {unit}{times}"))
    if not costs:
        facts.append(("Latency, throughput, memory", str(telemetry.get("times_in", "-"))))
    if telemetry.get("summary_line"):
        facts.append(("Telemetry", str(telemetry["summary_line"])))
    return Section("inference", "Inference diagnostics", facts=tuple(facts))


def _head(data: Mapping[str, Any]) -> str:
    """The token that each window begins with, where there is one."""
    bos = data.get("bos_token_id")
    return "" if bos is None else f", each after the begin-of-text token {bos}"


def _shipped(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Which of the files that ship are not the same bytes on both sides."""
    mine, theirs = block(after, "files"), block(before, "files")
    changed = sorted(n for n in {*mine, *theirs} if mine.get(n) != theirs.get(n))
    if not changed:
        return f"{len(mine)}, the same bytes on both sides" if mine else "-"
    return f"{len({*mine, *theirs})}, of which not the same bytes: {', '.join(changed)}"


def _vocabulary(report: Report) -> str:
    section = block(report, "vocabulary")
    return vocabulary_use(section.get("used"), section.get("size"))


def _digest(value: object) -> str:
    return f"sha256:{value}" if isinstance(value, str) and value else "-"


def policy(report: Report) -> Section:
    """The thresholds in force, and those that are not the tier's own."""
    auto, context = block(report, "auto"), block(report, "context")
    provenance = block(report, "policy_provenance")
    stats = block(block(block(report, "dataset"), "windows"), "stats")
    bootstrap = block(stats, "bootstrap")
    changed = tuple(
        (str(o.get("path", "-")), _value(o.get("tier_value")), _value(o.get("value")),
         str(o.get("source", "-")))
        for o in objects(provenance.get("overrides"))
    )  # fmt: skip
    tables = []
    if changed:
        header = ("Threshold", "Of the tier", "In force", "Source")
        tables.append(Table("Thresholds that are not the tier's own", header, changed))
    in_force = tuple(_leaves(block(report, "resolved_policy")))
    if in_force:
        tables.append(Table("Thresholds in force", ("Threshold", "Value"), in_force))
    tier, preset = str(auto.get("tier", "-")), provenance.get("preset_sha256")
    return Section(
        id="policy",
        title="Policy configuration",
        notes=() if changed else (f"Every threshold is that of tier {tier}.",),
        facts=(
            ("Tier", tier),
            ("Policy digest", str(auto.get("policy_digest", "-"))),
            ("Preset", _digest(preset) if preset else "none"),
            ("Profile", str(context.get("profile", "-"))),
            (
                "Interval",
                f"{bootstrap.get('method', '-')}, {bootstrap.get('replicates', '-')} replicates, "
                f"seed {bootstrap.get('seed', '-')}",
            ),
            ("Gates", ", ".join(map(str, context.get("gates", []))) or "none"),
        ),
        tables=tuple(tables),
    )  # fmt: skip


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "none" if value is None else str(value)


def _leaves(tree: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, str]]:
    """Every threshold of the resolved policy with its path; measurement contracts left out."""
    for key, value in sorted(tree.items()):
        if isinstance(value, Mapping):
            if key != "measurement_contract":
                yield from _leaves(value, f"{at}{key}.")
        else:
            yield at + str(key), _value(value)


def assurance(report: Report) -> Section:
    """What the report claims about how it came to be."""
    section = block(report, "assurance")
    if not section:
        note = "Not evaluated: the report has no assurance block."
        return Section("assurance", "Assurance", notes=(note,))
    named = (
        ("Mode", "mode"),
        ("Claim", "claim_set"),
        ("Verdict of this report", "report_local_verdict"),
        ("Outcome", "outcome"),
        ("Verdict", "verdict"),
        ("Verified verdict", "verified_assurance_verdict"),
        ("Runtime provenance", "runtime_provenance_verification_status"),
    )
    facts = [(name, str(section[key])) for name, key in named if key in section]
    for name, key in (
        ("Guard chain, canonical", "canonical_guard_chain"),
        ("Guard chain, observed", "guard_chain_observed"),
        ("Blocking reasons", "blocking_reasons"),
    ):
        found = section.get(key)
        if isinstance(found, list):
            facts.append((name, ", ".join(map(str, found)) or "none"))
    for name, key in (
        ("Guard chain enforced", "canonical_guard_chain_enforced"),
        ("Fallback values used", "fallback_fields_used"),
    ):
        facts.append((name, yes(section.get(key))))
    return Section("assurance", "Assurance", facts=tuple(facts))


def warnings(report: Report) -> Section:
    """What guards noticed."""
    section = block(report, "guard_warnings")
    found = objects(section.get("warnings"))
    if not section:
        return not_evaluated(report, "guard_warnings", "Guard warnings")
    keys = ("guard", "kind", "message")
    found = sorted(found, key=lambda w: w.get("policy_gate") != "fail")  # guards that do not pass
    rows = tuple(tuple(str(w.get(key, "-")) for key in keys) for w in found[: 2 * LISTED])
    table = Table(f"Warnings ({len(rows)} of {len(found)})", ("Guard", "Kind", "What"), rows)
    note = "A warning alone blocks nothing; verification can be asked to refuse any."
    return Section(
        id="guard-warnings",
        title="Guard warnings",
        notes=(note if found else "None.",),
        tables=(table,) if found else (),
    )


def does_not_show(report: Report) -> Section:
    """What nobody should read into the result."""
    kind = metric_named(block(report, "primary_metric").get("kind"))
    left_out = [c.name for c in all_checks(report) if c.status == NOT_EVALUATED]
    seen = kind.shows if is_served(report) else f"{kind.shows}, weights and activations"
    notes = [
        f"{seen} only: no safety, no speed, no {kind.leaves_open}.",
        "The result holds for this tokenizer, precision and window length.",
    ]
    if block(report, "vocabulary"):
        notes.append(
            f"The windows use {_vocabulary(report)}: the others are never read and never the "
            "right answer."
        )
    if left_out:
        notes.append(f"Not evaluated, and not counted as passed: {', '.join(left_out)}.")
    return Section("limits", "Limitations", notes=tuple(notes))
