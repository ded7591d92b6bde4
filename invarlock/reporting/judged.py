"""What was judged where weights are packed: the weights, and what multiplied by them; and what of
a running server was.

A report of such a subject has two views of it that never stand for each other. Invariants, spectral
and rows look at the numbers that the packed weights stand for; metric, distribution, activations
and representation come from what ran.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from invarlock.guards.guard import SERVED
from invarlock.pages.parts import Section, Table
from invarlock.pages.reading import Report, block
from invarlock.pages.wording import number
from invarlock.shown import listed

SHOWN = 12  # schemes, kernels or packages that a page lists
BY_WEIGHTS = "invariants, spectral and rows"
BY_EXECUTION = "metric, distribution, RMT and representation"


def judged_line(report: Report) -> str:
    """Weights and execution in one line; empty where the weights are dense."""
    found = block(block(report, "meta"), "execution")
    if is_served(report):
        return f"Judged: {served_line(found)}."
    return f"Judged: {_weights(found)}; {_ran(found)}." if found else ""


def is_served(report: Report) -> bool:
    """Whether the subject is a running server."""
    return block(block(report, "meta"), "execution").get("format") == SERVED


def served_line(found: Mapping[str, Any]) -> str:
    """What was judged of a running server, by ``meta.execution``."""
    return f"what {named_server(found)} gave as log-probabilities of the text, and no weights"


def named_server(found: Mapping[str, Any]) -> str:
    """A server as it was named: nothing says what it runs."""
    detail = block(found, "detail")
    return f"the server at {detail.get('url', '-')} (model {detail.get('model', '-')})"


def judged(report: Report) -> tuple[Section, ...]:
    """The section on packed weights and their execution, or on a running server; none where the
    weights are dense."""
    found = block(block(report, "meta"), "execution")
    if is_served(report):
        said = (
            ("Subject", named_server(found)),
            *((str(k), str(v)) for k, v in sorted(block(found, "detail").items())[:SHOWN]
              if k not in ("url", "model")),
            ("Judged by its log-probabilities", "metric, tail and drift"),
            ("Weights, activations and whole distributions", "not seen"),
            ("What it runs", "as it says itself: no digest of it is known"),
        )  # fmt: skip
        return (Section("judged", "What was judged", facts=said),)
    if not found:
        return ()
    kernels = _counts(block(found, "kernels"))
    facts = [
        ("Weights", _weights(found)),
        ("Judged by these weights, unpacked", BY_WEIGHTS),
        ("Execution", _ran(found)),
        *([("Device of the execution", str(found["device"]))] if found.get("device") else []),
        *([("Multiplied by", kernels)] if kernels else []),
        *((str(k), str(v)) for k, v in sorted(block(found, "detail").items())[:SHOWN]),
        ("Judged by this execution", BY_EXECUTION),
    ]
    schemes = _schemes(found)
    rows = tuple(
        (name, _number(row, "bits"), _number(row, "tensors"), _megabytes(row.get("bytes")))
        for name, row in schemes[:SHOWN]
    )
    header = ("Scheme", "Bits of a value", "Tensors", "Stored in")
    caption = f"How the weights are packed ({len(rows)} of {len(schemes)})"
    tables = (Table(caption, header, rows, stacked=True),) if rows else ()
    return (Section("judged", "What was judged", facts=tuple(facts), tables=tables),)


def _schemes(found: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The ways to pack a tensor, the one of most elements first."""
    rows = [(str(k), v) for k, v in block(found, "schemes").items() if isinstance(v, Mapping)]
    return sorted(rows, key=lambda row: (-(number(row[1].get("elements")) or 0), row[0]))


def _weights(found: Mapping[str, Any]) -> str:
    schemes = _schemes(found)
    ways = listed([name for name, _ in schemes], 2, "; ")
    bits = sorted({b for _, row in schemes if (b := number(row.get("bits"))) is not None})
    width = f"{bits[0]:g}" + (f" to {bits[-1]:g}" if len(bits) > 1 else "") if bits else "-"
    name = str(found.get("title") or found.get("format") or "packed")
    return (
        f"{name} weights of {width} bits ({ways}), {_megabytes(found.get('bytes_packed'))} "
        f"packed, {_megabytes(found.get('bytes_dense'))} as 16-bit numbers"
    )


def _ran(found: Mapping[str, Any]) -> str:
    if "backend" not in found:
        return "not executed"
    versions = [f"{k} {v}" for k, v in sorted(block(found, "versions").items())[:SHOWN]]
    return f"executed by {found['backend']}" + (f" ({', '.join(versions)})" if versions else "")


def _counts(kernels: Mapping[str, Any]) -> str:
    ordered = sorted(kernels.items(), key=lambda kernel: (-(number(kernel[1]) or 0), kernel[0]))
    return ", ".join(f"{name} x {number(n) or 0:g}" for name, n in ordered[:SHOWN])


def _number(row: Mapping[str, Any], key: str) -> str:
    found = number(row.get(key))
    return "-" if found is None else f"{found:,g}"


def _megabytes(value: object) -> str:
    found = number(value)
    return "-" if found is None else f"{found / 1e6:,.1f} MB"
