"""``verify --baseline``: whether a report's baseline is the run that is named beside it.

A run report of ours (``report.json``) holds everything that an evaluation report repeats of its
baseline: identity, text, windows, losses and the statistics of the guards; all of it is compared.
Of other reports the published provider digest is: windows, tokenizer, masks (row 3 of the matrix).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from invarlock.evidence.findings import Finding, dig, first_text
from invarlock.files import digest_json
from invarlock.guards import GUARDS
from invarlock.guards.guard import RUN_SCHEMA, SEPARATE, SERVED
from invarlock.metrics import ARMS

# Error code, member of the run report, and where the evaluation report repeats it.
REPEATED = (
    ("E006", "meta/run_id", "baseline_ref/run_id"),
    ("E006", "meta/model_id", "baseline_ref/model_id"),
    ("E006", "meta/adapter", "baseline_ref/adapter"),
    ("E006", "meta/metric", "baseline_ref/primary_metric/kind"),
    ("E002", "meta/tokenizer_hash", "baseline_ref/tokenizer_hash"),
    ("E006", "meta/checkpoint_sha256", "baseline_ref/checkpoint_sha256"),
    ("E006", "data/windows_sha256", "provenance/windows_sha256"),
    ("E006", "data/source", "dataset/source"),
    ("E006", "data/seq_len", "dataset/seq_len"),
    ("E006", "data/stride", "dataset/stride"),
    ("E006", "data/seed", "dataset/windows/seed"),
    ("E006", "data/slices", "dataset/slices"),
    ("E006", "data/vocabulary", "vocabulary"),
    ("E002", "data/processor_sha256", "provenance/provider_digest/processor_sha256"),
    ("E006", "checkpoint", "provenance/baseline/checkpoint"),
)
# Column of an arm in the run report, and in the evaluation report.
COLUMNS = (
    ("window_ids", "window_ids"),
    ("clusters", "clusters"),
    ("token_counts", "token_counts"),
    ("nll_sum", "baseline_nll_sum"),
    ("correct", "baseline_correct"),
    ("slices", "slices"),
)
PUBLISHED = (
    ("E006", "ids_sha256"),
    ("E002", "tokenizer_sha256"),
    ("E002", "processor_sha256"),
    ("E003", "masking_sha256"),
)
Report = Mapping[str, Any]


def check(report: Report, baseline: Report) -> list[Finding]:
    """How a report departs from the baseline that is named beside it.

    Raises:
        LookupError, TypeError, ValueError, AttributeError: a run report of an impossible shape.
    """
    if baseline.get("schema") == RUN_SCHEMA:
        lines = [*_identity(report, baseline), *_windows(report, baseline)]
        if dig(report, "rmt", "evaluated") is True:
            lines += [("E006", line) for line in _guards(report, baseline)]
        return [
            Finding(code, "contradiction", f"{line} is not that of the baseline run (mismatch)")
            for code, line in lines
        ]
    return _published(report, baseline)


def _published(report: Report, baseline: Report) -> list[Finding]:
    mine = dig(report, "provenance", "provider_digest")
    theirs = dig(baseline, "provenance", "provider_digest")
    if not first_text(dig(theirs, "ids_sha256")):
        return [Finding("E004", "missing", "the baseline report records no provider digest")]
    return [
        Finding(
            code,
            "contradiction",
            f"/provenance/provider_digest/{key} differs from the baseline's (mismatch)",
        )
        for code, key in PUBLISHED
        if (dig(mine, key) or dig(theirs, key)) and dig(mine, key) != dig(theirs, key)
    ]


def _identity(report: Report, run: Report) -> Iterator[tuple[str, str]]:
    for code, theirs, mine in REPEATED:
        if dig(report, *mine.split("/")) != dig(run, *theirs.split("/")):
            yield code, f"/{mine}"
    ids = [i for arm in ARMS for i in run["evaluation_windows"][arm]["window_ids"]]
    if dig(report, "provenance", "provider_digest", "ids_sha256") != digest_json(sorted(ids)):
        yield "E006", "/provenance/provider_digest/ids_sha256"


def _windows(report: Report, run: Report) -> Iterator[tuple[str, str]]:
    """Windows and losses, of a subject that was run."""
    windows = report.get("evaluation_windows")
    if not dig(windows, "final", "window_ids"):
        return
    for arm in ARMS:
        rows = run["evaluation_windows"][arm]
        if dig(report, "context", "early_decision"):
            rows = _looked_at(report, arm, rows)
        for theirs, mine in COLUMNS:
            if dig(windows, arm, mine) != rows.get(theirs):
                yield "E006", f"/evaluation_windows/{arm}/{mine}"


def _looked_at(report: Report, arm: str, rows: Mapping[str, Any]) -> dict[str, Any]:
    """What a look at a control sees of the baseline's windows: those of its share, and of the
    warm-up windows also those of the calibration."""
    from invarlock.metrics.looks import SHARES, rows_of

    share = dig(report, "context", "early_decision", "share")
    seen = set(rows_of(share if share in SHARES else 1.0, rows["clusters"], rows.get("slices", ())))
    if arm == "preview":
        guarded = dig(report, "rmt", "calibration", "window_ids")
        kept = set(guarded if isinstance(guarded, list) else ())
        seen |= {i for i, window in enumerate(rows["window_ids"]) if window in kept}
    return {name: [column[i] for i in sorted(seen)] for name, column in rows.items()}


def _guards(report: Report, run: Report) -> Iterator[str]:
    """What each guard recorded of the baseline; beside a running server, nothing."""
    if dig(report, "context", "runs") == SERVED:
        return
    guards = {guard["name"]: guard for guard in run["guards"] if "modules" in guard}
    compared = dig(report, "spectral", "evaluated") is True
    weights = guards["spectral"]["modules"] if compared else {}
    head = ("name", "family", "layer")
    for column, values in weights.items():
        mine = report["spectral"]["modules"]
        if mine[column if column in head else f"baseline_{column}"] != values:
            yield f"/spectral/modules/baseline_{column}"
    # of older runs there are none
    products = guards["spectral"].get("operators", {}) if compared else {}
    for column, values in products.items():
        mine = report["spectral"]["operators"]
        if mine[column if column in (*head, "kind") else f"baseline_{column}"] != values:
            yield f"/spectral/operators/baseline_{column}"
    separate = dig(report, "context", "runs") == SEPARATE
    for guard in GUARDS:
        if separate and guard.needs_both:
            continue
        recorded, mine = guard.recorded(run), guard.baseline_record(report)
        stated = dig(report, guard.name, "measurement_contract_hash")
        if guard.contract is not None and recorded.get("measurement_contract_hash") != stated:
            yield f"/{guard.name}/measurement_contract_hash"
        elif guard.beside and mine is not None and mine != recorded:
            yield f"/{guard.name}"
    seen = guards["rmt"]["modules"]
    for owner, column in (("rmt", "edge"), ("variance", "variance")):
        table = report[owner]["modules"]
        names = table.get("baseline_name", table["name"])
        values_of = dict(zip(seen["name"], seen[column], strict=True))
        if owner == "rmt" and names != seen["name"]:
            yield f"/{owner}/modules/baseline_name"
        elif table[f"baseline_{column}"] != [values_of.get(name) for name in names]:
            yield f"/{owner}/modules/baseline_{column}"
