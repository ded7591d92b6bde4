"""Write what a run of suite smoke-all found into docs/results.md, between two markers.

``make smoke-all`` calls it. The numbers are those of ``reports/final_verdict.json``.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from invarlock.files import read_json_object, slug, write_text
from invarlock.reporting.signals import CORE_GUARDS
from invarlock.scenarios import Scenario, load_catalogue
from invarlock.tuned import MARK, spec_of

PAGE = Path(__file__).resolve().parent.parent / "docs/results.md"
BEGIN, END = "<!-- catalogue: begin -->", "<!-- catalogue: end -->"
BLOCK = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
SPEAKERS = (*CORE_GUARDS, "primary_metric_tail", "drift", "moe")
HEAD = """## Every scenario of the catalogue

Made by `make smoke-all` on {models}: {total} evaluations of {scenarios} scenarios, verdict
{verdict}. *Asked for* is the scenario's strictness. Of what is informational the verdict demands
two things: where *guard* is added, the detectors and the guard; and the detectors of half of the
stress edits. All else that is informational is reported only. *hit*, *missed*: whether the
scenario's own detectors were true, whichever guards fired; a negative control has to leave the
metric acceptable. *Ratio* is that of the perplexities with its 95 % interval; a subject that the
invariants reject is not run.

* Damage found, where it has to be: {detected}.
* Detectors hit on informational scenarios, negative controls aside: {hinted} of {informational}.
* False alarms on clean edits: {alarms}.
"""
COLUMNS = "id | category | asked for | edit or damage | ratio [95 % interval] | fired | outcome"

Document = Mapping[str, Any]


def part(run: Path) -> str:
    """The part of the page, markers included, from the output folder of a run."""
    verdict = read_json_object(run / "reports/final_verdict.json")
    scenarios = {s.id: s for s in load_catalogue(run / "state/scenarios.json").scenarios}
    records = verdict["records"]
    told = [r for r in records if r["strictness"] == "informational" and not is_control(r)]
    rates = [f"{guard} {rate_of(rate, 'detected')}" for guard, rate in verdict["detection"].items()
             if rate["total"]]  # fmt: skip
    head = HEAD.format(
        models=", ".join(sorted({r["model"] for r in records})),
        total=len(records),
        scenarios=len(scenarios),
        verdict=verdict["verdict"],
        detected="; ".join(rates) or "none of the scenarios asks for it",
        hinted=sum(r["detectors_hit"] for r in told),
        informational=len(told),
        alarms=rate_of(verdict["false_alarms"], "flagged"),
    )
    rows = [f"| {' | '.join(row(run, r, scenarios[r['name']]))} |" for r in records]
    failed = [f"* {line}" for line in missed(verdict)]
    lines = [head, f"| {COLUMNS} |", "|" + "---|" * (COLUMNS.count("|") + 1), *rows]
    if failed:
        lines += ["", "Requirements that failed:", "", *failed]
    return "\n".join([BEGIN, *lines, END])


def rate_of(rate: Document, name: str) -> str:
    """k of n with the exact interval."""
    if rate["lower"] is None:
        return "0 of 0"
    low, high = 100 * rate["lower"], 100 * rate["upper"]
    return f"{rate[name]} of {rate['total']} ({low:.0f} - {high:.0f} %)"


def is_control(record: Document) -> bool:
    """Whether the change is meant to be too small to matter: its detectors say that it is."""
    return bool(record["intent"] == "negative_control")


def row(run: Path, record: Document, scenario: Scenario) -> Iterator[str]:
    """The cells of one evaluation."""
    yield f"`{record['name']}`" + (f" run {record['run_num']}" if record["run_num"] > 1 else "")
    yield record["category"]
    required = record["strictness"] == "informational" and record["primary_guard_required"]
    yield record["strictness"] + (", guard" if required else "")
    yield f"`{what(run, record, scenario)}`"
    ratio, interval = record["ratio_vs_baseline"], record["display_ci"]
    shown = "-" if ratio is None else f"{ratio:.4f}"
    yield shown + (f" [{interval[0]:.4f}, {interval[1]:.4f}]" if interval else "")
    yield ", ".join(name for name in SPEAKERS if record["guard_flags"][name]) or "none"
    yield outcome(record)


def what(run: Path, record: Document, scenario: Scenario) -> str:
    """The edit with its numbers, tuned ones too, or the damage with what is not its default."""
    if scenario.is_error:
        numbers = [f"{key}={value}" for key, value in scenario.parameters.items()]
        return " ".join([str(scenario.error_type), *numbers])
    kind, _, rest = str(scenario.edit_spec).partition(":")
    if rest != MARK:
        return str(scenario.edit_spec)
    folder = run / slug(record["model"]) / "edits" / record["name"]
    metadata = read_json_object(folder / "edit_metadata.json")
    return spec_of(kind, {**metadata["parameters"], "scope": metadata["scope"]})


def outcome(record: Document) -> str:
    """What the evaluation showed of what it was asked for."""
    if record["as_expected"] and record["strictness"] == "informational":
        if is_control(record):
            return "control held" if record["detectors_hit"] else "control not held"
        return "hit" if record["detectors_hit"] else "missed"
    if record["as_expected"]:
        return "as expected" + (", rejected" if record["status"] != "reported" else "")
    return f"**not as expected**: {record['why']}".replace("|", "\\|")


def missed(verdict: Document) -> Iterator[str]:
    """The requirements of the verdict that failed, with what broke them."""
    for requirement in verdict["requirements"]:
        if not requirement["ok"]:
            yield f"{requirement['id']}: {'; '.join(requirement['details'])}"


def place(page: str, block: str) -> str:
    """``page`` with ``block`` in place of what the markers enclose, or at the end."""
    if BLOCK.search(page):
        return BLOCK.sub(lambda _: block, page)
    return f"{page.rstrip()}\n\n{block}\n"


def kept(old: str, new: str) -> str:
    """``new`` with the part that ``old`` holds."""
    found = BLOCK.search(old)
    return place(new, found[0]) if found else new


def main() -> None:
    """Write the part into the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="output folder of the run")
    parser.add_argument("--page", type=Path, default=PAGE, help="page to write into")
    args = parser.parse_args()
    write_text(args.page, place(args.page.read_text(), part(args.run)))
    print(f"{args.page}: {args.run / 'reports/final_verdict.json'}")


if __name__ == "__main__":
    main()
