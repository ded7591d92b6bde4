"""What a comparison says when it has ended: the verdict for a terminal, and the same as JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from invarlock.evidence import escape
from invarlock.evidence.layout import PACK
from invarlock.guards.guard import NAME_WEIGHTS, SERVED
from invarlock.guards.invariants_decision import accepted_names
from invarlock.metrics.kinds import METRICS
from invarlock.pages.parts import FAIL as BAD
from invarlock.pages.reading import NOT_RUN, REJECTED, block, objects
from invarlock.reporting import signals
from invarlock.reporting.dashboard import all_checks, gates, headline
from invarlock.reporting.judged import served_line
from invarlock.reporting.outcome import FAIL, INCONCLUSIVE, PASS, needed, too_little

if TYPE_CHECKING:
    from invarlock.cli.comparison import Compared

FORMAT = "comparison-v1"
LISTED = 4  # notes that are shown
WIDTH, TEXT = 12, 84  # characters of the names in front of the lines, and behind them
DENSE = {"format": "safetensors", "backend": "transformers"}
COLOURS = {PASS: "32", FAIL: "31", INCONCLUSIVE: "33"}


def document(result: Compared) -> dict[str, Any]:
    """The result as the object that ``--json`` prints."""
    report, options = result.report, result.options
    metric = report["primary_metric"]
    meta = report["meta"]
    pack = result.out / PACK if options.pack else None
    return {
        "format_version": FORMAT,
        "ok": result.outcome == PASS,
        "exit_code": result.exit_code,
        "errors": [],
        "outcome": result.outcome,
        "why": _why(result),
        "reasons": signals.pass_reasons(report),
        "model_id": meta.get("model_id"),
        "edit": block(report, "edit").get("name"),
        "tier": options.tier,
        "quick": options.quick,
        "metric": {
            "kind": metric.get("kind"),
            "value": metric.get("ratio_vs_baseline"),
            "interval": metric.get("display_ci"),
            "decision": metric.get("decision"),
        },
        "guards": spoken(report),
        "accepted": list(accepted_names(report)),
        "notes": notes(report),
        "judged": block(meta, "execution") or (None if _has_ended(report) else DENSE),
        "report": str(result.out / "evaluation.report.json"),
        "page": str(result.out / "evaluation.html"),
        "pack": str(pack) if pack else None,
        "signer": result.signer,
        "seconds": result.seconds,
    }


def told(result: Compared, coloured: bool = False) -> str:
    """The result for people, a line each: the verdict, why, what was judged, what to do next."""
    word = result.outcome.upper()
    head = f"\033[1;{COLOURS[result.outcome]}m{word}\033[0m" if coloured else word
    lines = [f"{head}: {escape(_what(result))}"]
    for name, text in _rows(result):
        # paths stay whole, for whoever copies them
        rows = textwrap.wrap(escape(text), TEXT, break_long_words=False, break_on_hyphens=False)
        names = [name, *[""] * len(rows)]
        lines += [f"  {n:<{WIDTH}}{row}" for n, row in zip(names, rows, strict=False)]
    return "\n".join(lines) + "\n"


def _what(result: Compared) -> str:
    model, name = result.report["meta"].get("model_id"), result.options.name
    quick = " (quick)" if result.options.quick else ""
    return f"{name} against {model}, tier {result.options.tier}{quick}"


def _rows(result: Compared) -> Iterator[tuple[str, str]]:
    report, out = result.report, result.out
    for number, reason in enumerate(_reasons(result)):
        yield "" if number else "why", reason
    yield from _metric(report["primary_metric"])
    yield "guards", ", ".join(spoken(report)) or "none spoke"
    if accepted := accepted_names(report):
        yield "accepted", ", ".join(accepted)
    noted = notes(report)
    more = [f"{len(noted) - LISTED} more on the page"] if len(noted) > LISTED else []
    for number, note in enumerate([*noted[:LISTED], *more]):
        yield "" if number else "noted", note
    yield "judged", _judged(report)
    yield "page", str(out / "evaluation.html")
    yield "report", str(out / "evaluation.report.json")
    if result.signer:
        yield "pack", str(out / PACK)
        yield "signed by", result.signer
    yield "next", _next(result)


def _reasons(result: Compared) -> list[str]:
    """What was found bad, each by itself; else the one sentence of the report."""
    found = [
        f"{check.name}: {check.note or check.status}"
        for check in all_checks(result.report)
        if check.status == BAD and gates(check, result.report)
    ]
    return found or [_why(result)]


def _why(result: Compared) -> str:
    """The report's own words; of a quick comparison that found nothing bad, that it is one."""
    report = result.report
    if result.outcome == INCONCLUSIVE and result.options.quick:
        lack = too_little(needed(report), signals.pass_reasons(report))
        return f"nothing that was measured is bad, and --quick never passes: {lack}"
    return headline(report)


def _metric(metric: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if "ratio_vs_baseline" not in metric:
        yield "metric", f"not measured ({metric.get('degraded_reason')})"
        return
    name, form, unit = METRICS[metric["kind"]].short
    interval = metric.get("display_ci")
    shown = "[" + ", ".join(format(v, form) for v in interval) + "]" if interval else "no interval"
    limit = metric.get("limit")
    more = f", limit {limit:{form}}{unit}" if isinstance(limit, int | float) else ""
    yield name, f"{metric['ratio_vs_baseline']:{form}}{unit} {shown}{more}"


def spoken(report: Mapping[str, Any]) -> list[str]:
    """The guards that found something bad; the metric is no guard, a warning nothing bad."""
    found = signals.guard_flags(report)
    found["invariants"] = found.pop("invariants_fail")
    silent = ("primary_metric", "invariants_warn")
    return [name for name, fired in found.items() if fired and name not in silent]


def notes(report: Mapping[str, Any]) -> list[str]:
    """What refuses nothing and people should know before they use the subject."""
    failures = objects(block(report, "invariants").get("failures"))
    return [str(f.get("message")) for f in failures if f.get("severity") == "warning"]


def _has_ended(report: Mapping[str, Any]) -> bool:
    """Whether the process that measures ended without a word of the weights."""
    reason = report["primary_metric"].get("degraded_reason")
    return reason in NOT_RUN and reason != REJECTED


def _judged(report: Mapping[str, Any]) -> str:
    """Which weights, and what multiplied them."""
    meta = report["meta"]
    ran = block(meta, "execution")
    where = f"on {meta['device']}, {meta.get('dtype')}" if meta.get("device") else ""
    if ran.get("format") == SERVED:
        return served_line(ran)
    if not ran and _has_ended(report):
        return "nothing: what measures ended before it was done"
    if not ran:
        return "dense weights, " + (f"run by transformers {where}" if where else "not run")
    schemes = ", ".join(
        f"{row['tensors']} of {scheme}" for scheme, row in block(ran, "schemes").items()
    )
    kernels = ", ".join(f"{kernel} {count}" for kernel, count in block(ran, "kernels").items())
    backend = ran.get("backend", "nothing")
    version = block(ran, "versions").get(backend, "")
    by = f"{backend} {version}".strip() + (f" ({kernels})" if kernels else "")
    return f"{ran.get('title')} ({schemes}), " + (f"run by {by} {where}" if where else "not run")


def _next(result: Compared) -> str:
    """What to do with it."""
    served = bool(result.options.backend)
    if result.outcome == PASS:
        key = "" if result.options.pack else "; --pack KEY makes a signed proof of it"
        return f"use the subject for what the text stands for{key}"
    if result.outcome == FAIL:
        failures = objects(block(result.report, "invariants").get("failures"))
        named = any("accept" in failure for failure in failures)
        accept = "; --accept NAME takes a difference that is meant" if named else ""
        return f"open the page, it says where{accept}"
    if served:
        return f"{NAME_WEIGHTS}: a server never passes"
    if result.options.quick:
        return "leave out --quick for a verdict"
    return "give more text, or change fewer weights: the page says what is lacking"
