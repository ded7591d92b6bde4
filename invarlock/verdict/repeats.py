"""``analysis/determinism_repeats.json``: one subject measured again, compared field by field.

Reports hold no time and no run number: repeats that are deterministic have the same bytes, and
where telemetry was asked for, the same bytes without it (``digest_of``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from invarlock.errors import InputError
from invarlock.files import digest_json, sha256_bytes
from invarlock.guards import GUARDS
from invarlock.guards.invariants_decision import Invariants
from invarlock.metrics.cost import costs_of
from invarlock.pages.reading import Report, block, objects
from invarlock.reporting.telemetry import without_costs
from invarlock.scenarios import Scenario

SCHEMA = "invarlock/determinism-repeats-v1"
# What is measured; the rest of a report is settings and digests, which its hash covers.
BLOCKS = (
    "evaluation_windows",
    "primary_metric",
    "primary_metric_tail",
    "distribution",
    *(guard.name for guard in GUARDS),
    "validation",
)
# What repeats must have in common to be repeats of one evaluation.
SAME = (
    "model_id",
    "scenario",
    "windows_sha256",
    "subject_sha256",
    "baseline_sha256",
    "preset_sha256",
)

WINDOWS = "/evaluation_windows/"  # pointers of what was measured begin so
PREFERRED = ("clean", "custom", "stress", "error_injection")  # categories, see subject_of
SHOWN = 3  # differing fields that one line names


@dataclass(frozen=True)
class Repeat:
    """One repeat; ``report`` and its digest are None where there is none."""

    name: str  # repeat_<k>
    outcome: Mapping[str, Any]
    report: Report | None
    sha256: str | None

    @property
    def measured(self) -> Report | None:
        """The report, of a subject that was run: that of one that invariants rejected, and of
        which nothing was measured, can agree with nothing."""
        return self.report if self.report and _ran(self.report) else None


def digest_of(report: Report, data: bytes) -> str:
    """The digest that repeats are compared by.

    Args:
        report: what was read.
        data: its bytes, which count where the report holds no times.
    """
    if "system_overhead" in report or costs_of(block(report, "telemetry")):
        return digest_json(without_costs(report))
    return sha256_bytes(data)


def _ran(report: Report) -> bool:
    windows = block(report, "evaluation_windows")
    return any(isinstance(rows, Mapping) and rows.get("window_ids") for rows in windows.values())


def subject_of(scenarios: Sequence[Scenario]) -> Scenario:
    """What is repeated: the first scenario of the first category in ``PREFERRED`` that is there.

    The no-op, which measures the baseline again, comes after all edits, and damage after it:
    damage that invariants reject is never run, and repeats of it would compare nothing.
    """
    return min(scenarios, key=lambda s: (s.is_error, s.is_noop, PREFERRED.index(s.category)))


def compare(reports: Sequence[Report]) -> dict[str, dict[str, Any]]:
    """JSON pointer -> what the reports hold there; every item of a list is ``*``.

    ``max_abs_delta`` is the largest difference between two reports at the same position; None
    where the values are no numbers or not equally many.
    """
    flat = [_columns(report) for report in reports]
    pointers = dict.fromkeys(pointer for columns in flat for pointer in columns)
    return {pointer: _field([c.get(pointer, []) for c in flat]) for pointer in sorted(pointers)}


def _columns(report: Report) -> dict[str, list[object]]:
    found: dict[str, list[object]] = {}
    for name in BLOCKS:
        for pointer, value in _leaves(block(report, name), f"/{name}"):
            found.setdefault(pointer, []).append(value)
    return found


def _leaves(value: object, pointer: str) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping):
        for key in sorted(value):
            yield from _leaves(value[key], f"{pointer}/{key}")
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item, f"{pointer}/*")
    else:
        yield pointer, value


def _field(columns: Sequence[Sequence[object]]) -> dict[str, Any]:
    same = all(list(map(_typed, c)) == list(map(_typed, columns[0])) for c in columns)
    delta: float | None = None
    if len({len(column) for column in columns}) == 1:
        rows = list(zip(*columns, strict=True))
        if all(isinstance(v, float | int) and not isinstance(v, bool) for row in rows for v in row):
            delta = float(max(max(row) - min(row) for row in rows))
    return {"values": len(columns[0]), "identical": same, "max_abs_delta": delta}


def _typed(value: object) -> tuple[type, object]:
    return type(value), value  # 1, 1.0 and true are three values


def repeats_document(
    repeats: Sequence[Repeat], mode: str, suite: str, generated_at: str | None = None
) -> dict[str, Any]:
    """The document of ``determinism_repeats.json``.

    Raises:
        InputError: no repeat, or repeats of different subjects, windows or thresholds.
    """
    if not repeats:
        raise InputError("no repeat is named", hint="set repeats: 2 or more")
    first = repeats[0].outcome
    for key in SAME:  # null: a subject that could not be read
        if len({r.outcome[key] for r in repeats} - {None}) > 1:
            names = ", ".join(r.name for r in repeats)
            raise InputError(f"these are no repeats of one evaluation: {key} differs", where=names)
    measured = [r for r in repeats if r.measured is not None]
    reports = [r.measured for r in measured if r.measured is not None]
    hashes = [r.sha256 for r in measured]
    ratios = [r for report in reports if (r := _ratio(report)) is not None]
    fields = compare(reports) if len(reports) > 1 else {}
    differing = [pointer for pointer, field in fields.items() if not field["identical"]]
    return {
        "schema": SCHEMA,
        "requested": len(repeats),
        "completed": len(measured),
        "mode": mode,
        "suite": suite,
        "model_id": first["model_id"],
        "edit_name": first["scenario"],
        "cert_hashes_match": len(set(hashes)) == 1 if len(hashes) > 1 else None,
        "cert_hashes": hashes,
        "primary_metric_ratio": {
            "min": min(ratios, default=None),
            "max": max(ratios, default=None),
            "delta": max(ratios) - min(ratios) if ratios else None,
        },
        "measurements_identical": not differing if len(reports) > 1 else None,
        "differing": differing,
        "fields": fields,
        "errors": [_error(r) for r in repeats if r.measured is None],
        **({"generated_at": generated_at} if generated_at else {}),
    }


def _error(repeat: Repeat) -> str:
    """Why a repeat measured nothing: its own word, else the first finding of the invariants."""
    found = objects(block(repeat.report or {}, Invariants.name).get("failures"))
    first = found[0] if found else {}
    why = repeat.outcome["error"] or first.get("message") or "nothing was measured"
    return f"{repeat.name}: {repeat.outcome['status']}: {why}"


def _ratio(report: Report) -> float | None:
    ratio = block(report, "primary_metric").get("ratio_vs_baseline")
    return float(ratio) if isinstance(ratio, float | int) else None


def strict_difference(document: Mapping[str, Any]) -> str:
    """One line where repeats differ although determinism is strict, or where too few were measured
    to say; empty: they agree."""
    if document["mode"] != "strict" or document["cert_hashes_match"] is True:
        return ""
    of = f"strict repeats of {document['edit_name']} on {document['model_id']}"
    if document["cert_hashes_match"] is None:
        measured, asked = document["completed"], document["requested"]
        return f"{of} were not compared: {measured} of {asked} measured anything"
    fields = [
        f"{pointer} by up to {delta}" if delta is not None else pointer
        for pointer in document["differing"][:SHOWN]
        for delta in [document["fields"][pointer]["max_abs_delta"]]
    ]
    what = ", ".join(fields) or "settings or digests, no measurement"
    more = len(document["differing"]) - len(fields)
    what += f" and {more} more" if more > 0 else ""
    return f"{of} differ: {what}"


def in_manifest(document: Mapping[str, Any]) -> dict[str, Any]:
    """What a pack's manifest repeats of it."""
    short = {key: value for key, value in document.items() if key != "fields"}
    return {
        "repeats": document["requested"],
        "determinism": document["mode"],
        "determinism_repeats": short,
    }


def contradictions(document: Mapping[str, Any]) -> list[str]:
    """What such a document says that does not follow from the rest of it."""
    hashes, ratio, fields = (
        document[key] for key in ("cert_hashes", "primary_metric_ratio", "fields")
    )
    several = document["completed"] > 1
    differing = [pointer for pointer, field in sorted(fields.items()) if not field["identical"]]
    delta = None if ratio["max"] is None else ratio["max"] - (ratio["min"] or 0.0)
    expected = {
        "completed": len(hashes),
        "requested": document["completed"] + len(document["errors"]),
        "cert_hashes_match": len(set(hashes)) == 1 if several else None,
        "differing": differing,
        "measurements_identical": not differing if several else None,
        "primary_metric_ratio": {**ratio, "delta": delta},
    }
    found = [f"/{key} does not follow" for key, value in expected.items() if document[key] != value]
    if several and not any(p.startswith(WINDOWS) and f["values"] for p, f in fields.items()):
        found.append("/fields hold no windows: nothing was measured that could agree")
    if document["cert_hashes_match"] and differing:
        found.append("/differing names fields, although the reports have the same bytes")
    return found
