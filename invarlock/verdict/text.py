"""``final_verdict.txt``: the verdict as plain ASCII, at most ``WIDTH`` columns.

A FAIL says first what failed, where to look and what to do; the tables follow. Where nothing
but evidence is lacking, the first line says INCONCLUSIVE in place of FAIL.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from invarlock.counts import counted
from invarlock.guards import GUARDS
from invarlock.guards.guard import NAME_WEIGHTS
from invarlock.metrics.kinds import metric_named
from invarlock.pages.wording import vocabulary_use
from invarlock.reporting.gates import COST_FLAGS
from invarlock.reporting.signals import CORE_GUARDS, METRIC_ONLY
from invarlock.verdict import MEASURED

WIDTH = 108  # columns
EXPECTS = {"must_pass": "pass", "must_fail": "fail", "informational": "(reported)"}
GUARD_SHORT = {"primary_metric": "metric", "representation": "represent."}
# Guards whose word decides; those that came later than the published ones share a flag with one.
_LATER = {g.name: g.flag for g in GUARDS if g.flag and not g.core}
SHOWN = (*CORE_GUARDS, *(name for name, flag in _LATER.items() if flag not in COST_FLAGS))
CATEGORY_SHORT = {"error_injection": "damage"}
OPEN = (
    "Too little evidence: nothing that was measured is bad, and nothing shows that it is good"
    " enough (final_verdict.json: verdict FAIL, outcome inconclusive)."
)
EXPLORED = (
    "Tier none explores: no floors hold, and guards are measured without deciding. Whether a"
    " subject is as good as its baseline, only another tier says (tier=balanced)."
)
MAX_NAMED = 8  # evaluations that a FAIL names before its tables
REPEAT = "Repeat the command: it makes only what is missing."
SIGNALS = "informational_stress_min_signal_fraction"
# What to do about a requirement of the suite as a whole; ``_advice_on`` has the single evaluations.
SUITE_ADVICE = {
    "evidence_present": REPEAT,
    "scenario_coverage": REPEAT,
    "all_measured": (
        "An evaluation ended without a result: its log says why. Give it more memory, more time"
        " (timeout_minutes) or smaller batches (token_budget), remove its run folder, and repeat"
        " the command."
    ),
    "evidence_consistent": (
        "Files of an evaluation do not belong together: remove its run folder and repeat the"
        " command."
    ),
    SIGNALS: (
        "Too few of the informational stress edits hit the detectors that their scenarios name,"
        " whichever guards fired: the edits are too mild for this model, or its detectors do not"
        " fit."
    ),
}
# What to do about an evaluation that did not meet the expectations of its scenario.
UNDECIDED = (
    "Too little was measured to judge an edit: give more windows (windows.preview, windows.final),"
    " or longer ones (windows.seq_len), and repeat the command."
)
SERVER = f"A running server never passes: {NAME_WEIGHTS} (subject in place of backend)."
NOOP = (
    "Unchanged weights did not pass, so trust no other result: the windows are too few, or this"
    " machine measures differently each time (see determinism)."
)
REFUSED = (
    "A harmless edit was refused: it is too strong for this model, or the limits are too narrow"
    " (more windows make intervals narrower)."
)
CUSTOM = "Your subject is worse than its baseline allows: its page says by which measurement."
MILD = "A harmful edit was not refused: it is too mild for this model, or the windows are too few."
OTHER_SIGNALS = "A harmful edit was noticed by other signals than its scenario names, or by none."
NO_DAMAGE = (
    "Nothing was damaged where damage was asked for: remove the run folder, and repeat the command."
)
CAUGHT = (
    "The guard that should catch this damage fired, but its scenario asks for more: where the"
    " metric has to stay acceptable, the damage is too strong for this model."
)
UNNOTICED = (
    "Damage went unnoticed: it is too weak for this model, or the limits are too wide. Until that"
    " is known, it means little that an edit of this model passes."
)
OF_NO_RECORD = ("evidence_present", "evidence_consistent", SIGNALS)  # no row shows them
HEADER = ("scenario", "category", "expects", "ratio [95% interval]", "guards fired", "outcome")


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
    lines = [*_opening(verdict), *_what_failed(verdict)]
    records: Sequence[Mapping[str, Any]] = verdict["records"]
    models = list(dict.fromkeys(str(r["model"]) for r in records))
    for model in models:
        lines += ["", *_wrap(f"Model {model}", "  ")]
        lines += _table([r for r in records if r["model"] == model])
    lines += _missing(verdict)
    lines += ["", *_controls(verdict)]
    lines += ["", *_requirements(verdict)]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def word_of(verdict: Mapping[str, Any]) -> str:
    """PASS, FAIL or INCONCLUSIVE; the published member knows only the first two."""
    if verdict.get("outcome") == "inconclusive":
        return "INCONCLUSIVE"
    return str(verdict.get("verdict"))


def first_line(verdict: Mapping[str, Any]) -> str:
    """The first line of ``final_verdict.txt``, which a pack's verification compares."""
    return f"VERDICT: {word_of(verdict)}"


def _opening(verdict: Mapping[str, Any]) -> list[str]:
    counts = verdict["counts"]
    unexpected = counts["failed_reports"]
    whose = "its" if unexpected == 1 else "their"
    if unexpected:
        rest = f"{unexpected} did not meet the expectations of {whose} scenario"
    elif verdict["verdict"] == "PASS":
        rest = "every one met the expectations of its scenario"
    else:
        rest = "the suite as a whole falls short"
    models = counts["models_total"]
    return [
        first_line(verdict),
        *(_wrap(OPEN) if word_of(verdict) == "INCONCLUSIVE" else []),
        *(_wrap(EXPLORED) if verdict.get("exploring") else []),
        *_wrap(
            f"Suite {verdict['suite'] or '-'}, {counted(models, 'model')}, "
            f"{counts['records_total']} of {counts['expected_total']} evaluations; {rest}."
        ),
        *_accepted(verdict["records"]),
        *[
            line
            for model, use in sorted(verdict.get("vocabulary", {}).items())
            for line in _wrap(
                f"Windows of {model}: {vocabulary_use(use.get('used'), use.get('size'))}.", "  "
            )
        ],
    ]


def _accepted(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the user accepted by name, which would have refused the subject."""
    return [
        line
        for row in records
        if row.get("accepted")
        for line in _wrap(
            f"Accepted by name: {', '.join(row['accepted'])} ({row['name']} on {row['model']}, "
            f"run {row['run_num']})."
        )
    ]


def _what_failed(verdict: Mapping[str, Any]) -> list[str]:
    """What failed, where to look, and what to do; nothing for a PASS."""
    failed = [r for r in verdict["requirements"] if not r["ok"]]
    if not failed:
        return []
    bad = [r for r in verdict["records"] if not r["as_expected"]]
    bad.sort(key=lambda r: r["undecided"])  # what is bad before what is not decided
    open_only = word_of(verdict) == "INCONCLUSIVE"
    what = "is not decided" if open_only else "failed"
    lines = ["", f"What {what} (paths are below the output folder)"]
    for record in bad[:MAX_NAMED]:
        name = f"{record['name']} on {record['model']}, run {record['run_num']}"
        lines += ["  " + part for part in _wrap_to(f"{name}: {record['why']}", WIDTH - 2)]
        lines += ["      " + part for part in _wrap_to(f"see {_look_at(record)}", WIDTH - 6)]
    if len(bad) > MAX_NAMED:
        lines.append(f"  and {len(bad) - MAX_NAMED} more: NOT OK or open below")
    missing = sum(map(len, verdict["missing"]["by_model"].values()))
    if missing:
        lines.append(f"  {counted(missing, 'evaluation')} missing: listed below")
    for requirement in failed:
        if requirement["id"] in OF_NO_RECORD:
            text = f"{requirement['id']}: {requirement['details'][0]}"
            lines += ["  " + part for part in _wrap_to(text, WIDTH - 2)]
    lines.append("What to do")
    ids = [r["id"] for r in failed if r["id"] in SUITE_ADVICE]
    # where evidence is lacking, too few signals mean nothing yet
    advice = [SUITE_ADVICE[name] for name in ids if name != SIGNALS or ids == [SIGNALS]]
    advice += [_advice_on(r) for r in bad if r["status"] in MEASURED]
    for text in dict.fromkeys(advice):
        lines += ["  " + part for part in _wrap_to(text, WIDTH - 12)]
    return lines


def _advice_on(record: Mapping[str, Any]) -> str:
    """What to do about a measured evaluation that did not meet expectations."""
    category = record["category"]
    if record["undecided"]:
        return SERVER if METRIC_ONLY in record["reasons"] else UNDECIDED
    if category == "clean":
        return NOOP if record["family"] == "noop" else REFUSED
    if category == "custom":
        return CUSTOM
    if category == "stress":
        return MILD if record["passed"] else OTHER_SIGNALS
    if category == "error_injection" and record["injected"] is not True:
        return NO_DAMAGE
    return CAUGHT if record["primary_guard_hit"] else UNNOTICED


def _look_at(record: Mapping[str, Any]) -> str:
    """The page of an evaluation, or the log of one that has none."""
    if record["status"] in MEASURED:
        return f"{record['path']}/evaluation.html"
    model = str(record["path"]).partition("/")[0]
    return f"logs/{model}/{record['name']}/evaluate.{record['run_num']}.log"


def _wrap(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(ascii_only(text), WIDTH, subsequent_indent=indent, break_on_hyphens=False)


def _row(record: Mapping[str, Any], several: bool) -> tuple[str, ...]:
    name = f"{record['name']}#{record['run_num']}" if several else str(record["name"])
    ratio = number(record["ratio_vs_baseline"])
    ratio += metric_named(record["metric"]).suffix
    if record["display_ci"]:
        low, high = record["display_ci"]
        ratio += f" [{number(low)}, {number(high)}]"
    flags = record["guard_flags"]
    fired = [GUARD_SHORT.get(g, g) for g in SHOWN if flags.get(g)]  # an older verdict lacks some
    guard = str(record["primary_guard"])
    catch = f"catch: {GUARD_SHORT.get(guard, guard)}"
    aimed = record["category"] == "error_injection" and record["primary_guard_required"]
    expects = catch if aimed else EXPECTS.get(record["strictness"], catch)
    outcome = "ok" if record["as_expected"] else "open" if record["undecided"] else "NOT OK"
    if record["category"] == "stress" and record["strictness"] == "informational":
        expects = "half hit"  # of these together
        if record["as_expected"]:
            outcome = "hit" if record["detectors_hit"] else "missed"
    category = str(record["category"])
    return tuple(
        ascii_only(cell)
        for cell in (
            name,
            CATEGORY_SHORT.get(category, category),
            expects,
            ratio,
            "+".join(name[:3] for name in fired) if len(fired) > 2 else "+".join(fired) or "-",
            outcome,
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
            lines.append(f"  {name:<12} not tested in this run")
    alarms = verdict["false_alarms"]
    if alarms["total"]:
        lines.append(
            f"  {'false alarms':<12} {alarms['flagged']} of {alarms['total']} clean"
            f"   [{alarms['lower']:.3f}, {alarms['upper']:.3f}]"
        )
    if verdict["not_evaluated"]:
        text = "Not judged in some evaluation, and not counted as passed: " + ", ".join(
            verdict["not_evaluated"]
        )
        lines += _wrap(text, "  ")
    return lines


def _requirements(verdict: Mapping[str, Any]) -> list[str]:
    if verdict["verdict"] == "PASS":
        return [f"Requirements: all {len(verdict['requirements'])} hold."]
    lines = ["Requirements"]
    broken = "open" if word_of(verdict) == "INCONCLUSIVE" else "FAILED"
    for requirement in verdict["requirements"]:
        lines.append(f"  {'ok' if requirement['ok'] else broken:<8}{requirement['id']}")
        for detail in requirement["details"]:
            lines += ["          " + part for part in _wrap_to(detail, WIDTH - 10)]
    return lines
