"""The README of a pack: the verdict in its first line, what is in it, how to check it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from invarlock.counts import counted
from invarlock.evidence import escape
from invarlock.evidence.findings import dig, number
from invarlock.metrics.kinds import metric_named
from invarlock.verdict.text import word_of

NOT_CLAIMED = (
    "A pass is about the risk of regression of these edits on these windows, compared with "
    "this baseline. It says nothing about safety, alignment, tasks outside the windows or the "
    "baseline itself."
)


@dataclass(frozen=True)
class Summary:
    """What the README states."""

    verdict: Mapping[str, Any]
    level: str
    signer: str | None
    reports: int
    generated_at: str | None


def render(summary: Summary) -> bytes:
    """Markdown, UTF-8, LF."""
    verdict = summary.verdict
    suite = dig(verdict, "suite")
    title = f"# Evidence pack: {escape(word_of(verdict))}"
    lines = [title + (f" (suite {_cell(suite)})" if suite else ""), ""]
    signed = f"signed by `{summary.signer}`" if summary.signer else "**not signed**"
    lines += [
        f"Evidence level {summary.level}, {counted(summary.reports, 'report')}, {signed}.",
        "",
    ]
    if summary.generated_at:
        lines += [f"Generated at {summary.generated_at}.", ""]
    failed = verdict.get("failed_requirements")
    if isinstance(failed, list) and failed:
        lines += ["Requirements that failed:", ""]
        lines += [f"- {_cell(name)}" for name in failed] + [""]
    lines += _accepted(verdict.get("records"))
    lines += _records(verdict.get("records"))
    lines += ["## Limitations", "", NOT_CLAIMED, ""]
    verify = "invarlock advanced evidence-pack verify . --replay"
    if summary.signer:
        verify += f" --strict --expected-fingerprint {summary.signer}"
    else:  # a signature is asked for otherwise
        verify = f"INVARLOCK_ALLOW_UNVERIFIED_PROVENANCE=1 {verify}"
    lines += [
        "## Verify",
        "",
        "```",
        "sha256sum --check --quiet checksums.sha256",
        "invarlock advanced evidence-pack inspect .",
        verify,
        "```",
    ]
    if summary.signer:
        lines += [
            "",
            "Get the fingerprint from its owner through a separate channel, not from this file.",
        ]
    return ("\n".join(lines) + "\n").encode()


def _accepted(records: object) -> list[str]:
    rows = [r for r in records if isinstance(r, Mapping)] if isinstance(records, list) else []
    lines = [
        f"- {_cell(row.get('name'))} run {_cell(row.get('run_num'))}: "
        + ", ".join(map(_cell, row["accepted"]))
        for row in rows
        if isinstance(row.get("accepted"), list) and row["accepted"]
    ]
    return ["Differences that the user accepted by name:", "", *lines, ""] if lines else []


def _records(records: object) -> list[str]:
    rows = [r for r in records if isinstance(r, Mapping)] if isinstance(records, list) else []
    if not rows:
        return []
    lines = [
        "| model | scenario | expected | ratio | as expected | why not |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        ratio = number(row.get("ratio_vs_baseline"))
        cells = (
            row.get("model"),
            f"{row.get('name')} run {row.get('run_num')}",
            str(row.get("strictness")).replace("_", " "),
            "-" if ratio is None else f"{ratio:.4g}{metric_named(row.get('metric')).suffix}",
            "yes" if row.get("as_expected") is True else "**no**",
            row.get("why") or "",
        )
        lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    return [*lines, ""]


def _cell(value: object) -> str:
    """Text that cannot break a table row or start markup."""
    text = escape(value)
    return "".join("\\" + c if c in "|`<[" else c for c in text)
