"""``final_verdict.txt``: the verdict as plain ASCII, at most ``WIDTH`` columns."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from invarlock.reporting.signals import CORE_GUARDS

WIDTH = 108  # columns
EXPECTS = {"must_pass": "pass", "must_fail": "fail", "informational": "(reported)"}
GUARD_SHORT = {"primary_metric": "metric"}
CATEGORY_SHORT = {"error_injection": "damage"}
HEADER = ("scenario", "category", "expects", "ratio [95% interval]", "spoke", "outcome")


def ascii_only(text: str) -> str:
    """Printable ASCII; anything else (control characters too) as a backslash escape."""
    escaped = text.encode("ascii", "backslashreplace").decode()
    return "".join(c if 32 <= ord(c) < 127 else f"\\x{ord(c):02x}" for c in escaped)


def number(value: float | None) -> str:
    """Three decimals below 10, fewer above, one significant decimal from 10,000 on."""
    if value is None:
        return "-"
    for limit, form in ((10, ".3f"), (100, ".1f"), (10_000, ".0f")):
        if abs(value) < limit:
            return f"{value:{form}}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def render_verdict(verdict: Mapping[str, Any]) -> str:
    """The text form of a ``final_verdict.json`` document, ending in a line feed."""
    lines = [*_opening(verdict)]
    records: Sequence[Mapping[str, Any]] = verdict["records"]
    models = list(dict.fromkeys(str(r["model"]) for r in records))
    for model in models:
        lines += ["", *_wrap(f"Model {model}", "  ")]
        lines += _table([r for r in records if r["model"] == model])
    lines += _missing(verdict)
    lines += ["", *_controls(verdict)]
    lines += ["", *_requirements(verdict)]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _opening(verdict: Mapping[str, Any]) -> list[str]:
    counts = verdict["counts"]
    unexpected = counts["failed_reports"]
    rest = (
        "every one showed what its scenario asks for"
        if not unexpected
        else f"{unexpected} did not show what their scenario asks for"
    )
    models = counts["models_total"]
    return [
        f"VERDICT: {verdict['verdict']}",
        *_wrap(
            f"Suite {verdict['suite'] or '-'}, {models} model{'s' if models != 1 else ''}, "
            f"{counts['records_total']} of {counts['expected_total']} evaluations; {rest}."
        ),
    ]


def _wrap(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(ascii_only(text), WIDTH, subsequent_indent=indent, break_on_hyphens=False)


def _row(record: Mapping[str, Any], several: bool) -> tuple[str, ...]:
    name = f"{record['name']}#{record['run_num']}" if several else str(record["name"])
    ratio = number(record["ratio_vs_baseline"])
    ratio += " pp" if record["metric"] == "accuracy" else ""
    if record["display_ci"]:
        low, high = record["display_ci"]
        ratio += f" [{number(low)}, {number(high)}]"
    flags = record["guard_flags"]
    spoke = [GUARD_SHORT.get(g, g) for g in CORE_GUARDS if flags[g]]
    guard = str(record["primary_guard"])
    catch = f"catch: {GUARD_SHORT.get(guard, guard)}"
    aimed = record["category"] == "error_injection" and record["primary_guard_required"]
    expects = catch if aimed else EXPECTS.get(record["strictness"], catch)
    category = str(record["category"])
    return tuple(
        ascii_only(cell)
        for cell in (
            name,
            CATEGORY_SHORT.get(category, category),
            expects,
            ratio,
            "+".join(name[:3] for name in spoke) if len(spoke) > 2 else "+".join(spoke) or "-",
            "ok" if record["as_expected"] else "NOT OK",
        )
    )


def _table(records: Sequence[Mapping[str, Any]]) -> list[str]:
    several = any(r["run_num"] != 1 for r in records)
    rows = [_row(r, several) for r in records]
    widths = [max(map(len, column)) for column in zip(HEADER, *rows, strict=True)]
    widths[0] = min(widths[0], WIDTH - sum(widths[1:]) - 2 * len(widths))
    lines = [_line(HEADER, widths), _line(["-" * w for w in widths], widths)]
    for row, record in zip(rows, records, strict=True):
        if len(row[0]) > widths[0]:  # a long name gets a line of its own
            lines += [f"  {row[0]}", _line(("", *row[1:]), widths)]
        else:
            lines.append(_line(row, widths))
        if not record["as_expected"]:
            lines += ["      " + part for part in _wrap_to("why: " + record["why"], WIDTH - 6)]
    return lines


def _wrap_to(text: str, width: int) -> list[str]:
    return textwrap.wrap(ascii_only(text), width, subsequent_indent="     ", break_on_hyphens=False)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True))


def _missing(verdict: Mapping[str, Any]) -> list[str]:
    by_model = verdict["missing"]["by_model"]
    if not by_model:
        return []
    lines = ["", "Missing evaluations"]
    for model, names in sorted(by_model.items()):
        lines += ["  " + part for part in _wrap_to(f"{model}: {', '.join(names)}", WIDTH - 2)]
    return lines


def _controls(verdict: Mapping[str, Any]) -> list[str]:
    """What the controls show about the checks themselves."""
    lines = [
        "Did the checks work on this model? (95% Clopper-Pearson; one count per model and scenario)"
    ]
    for guard in verdict["core_guard_order"]:
        rate = verdict["detection"][guard]
        name = GUARD_SHORT.get(guard, guard)
        if rate["total"]:
            lines.append(
                f"  {name:<12} caught {rate['detected']} of {rate['total']}"
                f"   [{rate['lower']:.3f}, {rate['upper']:.3f}]"
            )
        else:
            lines.append(f"  {name:<12} nothing was aimed at it")
    alarms = verdict["false_alarms"]
    if alarms["total"]:
        lines.append(
            f"  {'false alarms':<12} {alarms['flagged']} of {alarms['total']} clean"
            f"   [{alarms['lower']:.3f}, {alarms['upper']:.3f}]"
        )
    if verdict["not_evaluated"]:
        text = "Not evaluated, and not counted as passed: " + ", ".join(verdict["not_evaluated"])
        lines += _wrap(text, "  ")
    return lines


def _requirements(verdict: Mapping[str, Any]) -> list[str]:
    lines = ["Requirements"]
    for requirement in verdict["requirements"]:
        lines.append(f"  {'ok' if requirement['ok'] else 'FAILED':<8}{requirement['id']}")
        for detail in requirement["details"]:
            lines += ["          " + part for part in _wrap_to(detail, WIDTH - 10)]
    return lines
