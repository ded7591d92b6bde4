"""Write docs/results.md from finished run folders: tables, and what they say in words.

    python tools/results_page.py [--page FILE] RUN [RUN ...]

Runs of suite ``detection``, one a seed of the windows, make the page (``make results``). A run of
another suite makes the part between two markers, a row a scenario (``make smoke-all``). Either
leaves the other as it is.
"""

from __future__ import annotations

import argparse
import math
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detection_readings import (
    SHORT,
    Reading,
    fired,
    reading_of,
    refusing,
    rmt_reading,
    sigma_reading,
    spoke,
    variance_reading,
)
from make_detection import SUITE, Case, cases, catalogued

from invarlock.errors import InputError
from invarlock.files import read_json_object, slug, write_text
from invarlock.pages.reading import Report, block, evaluated
from invarlock.reporting.signals import guard_flags
from invarlock.scenarios import Catalogue, Scenario, load_catalogue
from invarlock.tuned import MARK, spec_of
from invarlock.verdict.intervals import clopper_pearson
from invarlock.verdict.records import Evaluation, load_evaluation

PAGE = Path(__file__).resolve().parent.parent / "docs/results.md"
BEGIN, END = "<!-- catalogue: begin -->", "<!-- catalogue: end -->"
# parts that other runs, and benchmarks/engines.py, make
PARTS = re.compile(r"<!-- (?P<name>\w+): begin -->.*?<!-- (?P=name): end -->", re.DOTALL)
TIME_MAX, MEMORY_MAX = 0.35, 1.3  # wanted of the guards, over the bare pass
RANK1 = "rank1_projection"
INTRO = """# What the checks see

Made by `make results`: suite `detection` on the embedded model, {model}, {dtype}, once for each
seed of the windows, damage with the first of them; `tools/results_page.py` writes this page from
the reports. Thresholds: tier {tier}, with the preset derived from this model on the seeds that
follow a run's own. Tier none has the thresholds of balanced without its floors and its limit on
the KL divergence.
"""
CLEAN = """
## Clean edits: nothing may refuse

{preview} + {final} windows of {seq_len} tokens, fewer than tier balanced asks for: *pass* is the
decision of the interval. *ln sigma ratio*: of the module whose largest singular value moved most,
in units of its limit. *Edge ratio*: largest singular value of activations, subject over baseline;
its limit is 1 + epsilon of the family. *Output scale*: what would restore the variance of a
feed-forward output; outside 1 +- the deadband it is tried on held-out windows.
"""
DAMAGE = """
## Damage: the check aimed at has to speak

The same number of windows, seed {seed}. Half and double scale the deviation from doing nothing:
factors f below 10 become 1 + (f - 1) / 2 and 1 + 2 (f - 1). *Margin*: the statistic over its
threshold, above 1 beyond it; |ln sigma ratio|; fatal limit over the ratio of ranks and norms;
growth of an edge over epsilon; |scale - 1| over the deadband (the variance guard speaks when the
trial confirms it too); lower bound of the perplexity ratio over its limit. *fail* is a detection,
*inconclusive* and *pass* are none. Of the two scenarios `spectral_moderate_scale` it is that of
suite `smoke`, which hits the last four layers.
"""
COST = """
## Cost of the guards

Over the bare pass of the same run, from `runtime.manifest.json` of the clean evaluations: median
(range) of wall time and peak memory, other evaluations on the machine.
`benchmarks/speed.py --only guards` compares whole runs with a bare pass.
"""
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


@dataclass(frozen=True)
class Run:
    """The output folder of a finished run."""

    folder: Path

    @property
    def suite(self) -> str:
        """The suite that was run."""
        return str(self.catalogue.document["_meta"]["applied_suite"])

    @property
    def catalogue(self) -> Catalogue:
        """The scenarios that were selected."""
        return load_catalogue(self.folder / "state/scenarios.json")

    @property
    def verdict(self) -> Document:
        """The verdict, with a record an evaluation."""
        return read_json_object(self.folder / "reports/final_verdict.json")

    def measured(self) -> list[Measured]:
        """Every evaluation that the verdict has seen."""
        scenarios = {s.id: s for s in self.catalogue.scenarios}
        found = []
        for record in self.verdict["records"]:
            folder = self.folder / record["path"]
            manifest = read_json_object(folder / "runtime.manifest.json")
            overhead = manifest["context"].get("guard_overhead") or {}
            scenario = scenarios[record["name"]]
            found.append(Measured(scenario, load_evaluation(folder), overhead))
        return found

    def provenance(self) -> list[str]:
        """Commit, machine and versions; no host name."""
        state = self.folder / "state"
        source = read_json_object(state / "source_repo.json")
        machine = read_json_object(state / "environment.json")
        changed = " (files changed since)" if source["dirty"] else ""
        libraries = machine["libraries"]
        versions = [f"{name} {libraries[name]}" for name in ("torch", "transformers", "numpy")]
        python = f"Python {machine['python_version']}"
        return [
            f"* measured at commit {source['commit'] or 'unknown'}{changed}",
            f"* {', '.join([machine['cpu_model'] or machine['machine'], *machine['gpus']])}",
            f"* {', '.join([python, *versions])}",
        ]


@dataclass(frozen=True)
class Measured:
    """An evaluation of suite ``detection``."""

    scenario: Scenario
    evaluation: Evaluation
    overhead: Document  # of runtime.manifest.json

    @property
    def report(self) -> Report:
        """The report; empty where nothing was measured."""
        return self.evaluation.report or {}

    @property
    def windows(self) -> Document:
        """Of the report: how many there are of each arm, and their seed."""
        return block(block(self.report, "dataset"), "windows")

    @property
    def found(self) -> bool:
        """Whether the check spoke that the damage is aimed at."""
        return guard_flags(self.report)[self.scenario.primary_guard]


@dataclass(frozen=True)
class Damaged:
    """A damage at one strength, evaluated; without a result there is no such strength."""

    case: Case
    result: Measured | None


# --- cells -----------------------------------------------------------------------------------


def number(value: float) -> str:
    """Three significant digits, without an exponent where one can do without."""
    if not math.isfinite(value):
        return "-" if math.isnan(value) else "infinite"
    text = f"{value:.3g}" if 1e-4 <= abs(value) < 1e3 or value == 0 else f"{value:.1e}"
    return text if "e" not in text else text.replace("e+0", "e").replace("e-0", "e-")


def ratio_text(value: float) -> str:
    """A perplexity ratio to four decimals; a large one to three digits."""
    return f"{value:.4f}" if value < 100 else number(value)


def ratio_cell(metric: Document) -> str:
    """Ratio and interval, of a report's metric or of a record; a dash where there is none."""
    ratio, interval = metric.get("ratio_vs_baseline"), metric.get("display_ci")
    shown = "-" if ratio is None else ratio_text(ratio)
    return shown + (f" [{', '.join(map(ratio_text, interval))}]" if interval else "")


def metric_cell(report: Report) -> str:
    """Ratio, interval and decision."""
    metric = block(report, "primary_metric")
    if not evaluated(report, "primary_metric"):
        return "not run"
    if "ratio_vs_baseline" not in metric:
        return "not finite"
    return f"{ratio_cell(metric)} {metric['decision']}"


def reading_cell(reading: Reading | None) -> str:
    """``value / threshold``."""
    if reading is None:
        return "not measured"
    return f"{number(reading.value)} / {number(reading.threshold)}"


def statistic_cell(reading: Reading | None) -> str:
    """What was looked at and its value."""
    if reading is None:
        return "not measured"
    more = f"; {reading.more}" if reading.more else ""
    return f"{reading.what} {number(reading.value)}{more}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    every = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in every]


def proportion(hits: int, total: int) -> str:
    """``k of n`` with the exact 95 % interval."""
    interval = clopper_pearson(hits, total)
    if interval is None:
        return "0 of 0"
    low, high = (100 * bound for bound in interval)
    return f"{hits} of {total} ({low:.0f} - {high:.0f} %)"


# --- clean edits and damage ------------------------------------------------------------------


def clean_table(results: Sequence[Measured]) -> list[str]:
    """One row an evaluation of a clean edit."""
    head = ["edit", "seed", "ratio [95 % interval]", "ln sigma ratio / limit", "edge ratio / limit",
            "output scale, deadband; trial", "tail q95 / limit", "drift", "spoke"]  # fmt: skip
    rows = []
    for result in results:
        report = result.report
        rmt, variance = rmt_reading(report), variance_reading(report)
        tail = block(report, "primary_metric_tail")
        stats = tail.get("stats") or {}
        drift = block(report, "primary_metric").get("drift", {}).get("ratio", math.nan)
        rows.append(
            [
                f"`{result.scenario.edit_spec}`",
                str(result.windows["seed"]),
                metric_cell(report),
                reading_cell(sigma_reading(report)),
                f"{1 + rmt.value:.3f} / {1 + rmt.threshold:.3f}" if rmt else "not measured",
                f"{variance.value:.3f}, {number(variance.threshold)}; {variance.more}"
                if variance
                else "not measured",
                f"{number(stats['q95'])} / {number(tail['policy']['quantile_max'])}"
                if evaluated(report, "primary_metric_tail") and "q95" in stats
                else "not measured",
                f"{drift:.4f}",
                ", ".join(spoke(report)) or "none",
            ]
        )
    return table(head, rows)


def damage_table(results: Sequence[Damaged]) -> list[str]:
    """One row a damage and strength."""
    head = ["damage", "strength", "aimed at", "ratio [95 % interval]", "spoke",
            "statistic of the check aimed at", "threshold", "margin", "found by it"]  # fmt: skip
    return table(head, map(damage_row, results))


def damage_row(damaged: Damaged) -> list[str]:
    """The cells of a damage at one strength."""
    case, result = damaged.case, damaged.result
    strength = ", ".join(filter(None, (case.strength, case.setting, case.note)))
    aimed = case.entry["primary_guard"]
    row = [case.entry["id"], strength, SHORT.get(aimed, aimed)]
    if result is None:
        return [*row, *[""] * 6]
    if not result.evaluation.measured:
        status = str(result.evaluation.outcome["status"])
        return [*row, status, "none", "not measured", "", "", "no"]
    reading = reading_of(aimed, result.report)
    return [
        *row,
        metric_cell(result.report),
        ", ".join(spoke(result.report)) or "none",
        statistic_cell(reading),
        number(reading.threshold) if reading else "",
        number(reading.margin) if reading else "",
        "yes" if result.found else "no",
    ]


def summary(clean: Sequence[Measured], damaged: Sequence[Damaged]) -> list[str]:
    """What the tables say, in words."""
    at: dict[str, list[Measured]] = {"published": [], "half": [], "double": []}
    for one in damaged:
        if one.result is not None:
            at[one.case.strength].append(one.result)
    published = at["published"]
    must = [r for r in published if r.scenario.strictness == "must_detect"]
    return [
        f"* False alarms: a check refused {count(bool(refusing(r.report)) for r in clean)} of the"
        " clean evaluations (in brackets: the 95 % interval of a proportion).",
        *(f"  * {line}" for r in clean for line in alarms(r)),
        f"* A check spoke on {count(bool(spoke(r.report)) for r in clean)} of them. Most only tell:"
        " a cap that the tier allows, a scale worth trying, another spelling.",
        *(f"  * {line}" for r in clean for line in noise(r)),
        "",
        "  Edits and windows of one model are no independent draws: take the interval as rough.",
        "* The check aimed at found",
        f"  * {count(r.found for r in published)} at published strength;",
        f"  * {count(r.found for r in must)} of those that the catalogue says must be detected",
        f"    (some check refused {count(bool(refusing(r.report)) for r in must)} of them"
        f"{let_through([r for r in must if not refusing(r.report)])});",
        f"  * {count(r.found for r in at['half'])} at half strength;",
        f"  * {count(r.found for r in at['double'])} at double strength.",
        f"* Any check spoke on {count(bool(spoke(r.report)) for r in published)} at"
        " published strength.",
        *(rank1(r) for r in published if r.scenario.id == RANK1),
        *unseen([r for r in published if not r.found]),
    ]


def count(hits: Iterable[bool]) -> str:
    """How many are true, with the interval."""
    values = list(hits)
    return proportion(sum(values), len(values))


def named(result: Measured) -> str:
    """A clean edit on the windows of a seed."""
    return f"`{result.scenario.edit_spec}`, seed {result.windows['seed']}"


def let_through(results: Sequence[Measured]) -> str:
    """The damage that no check refused, with what spoke."""
    said = (f"`{r.scenario.id}` ({', '.join(spoke(r.report)) or 'none'} spoke)" for r in results)
    return f", not {', '.join(said)}" if results else ""


def alarms(result: Measured) -> list[str]:
    """By which checks a clean evaluation would not pass, with what decided."""
    said = []
    for check in refusing(result.report):
        reading = reading_of(check, result.report)
        said.append(f"{check} ({statistic_cell(reading)}, threshold {number(reading.threshold)})"
                    if reading else check)  # fmt: skip
    return [f"{named(result)}: {', '.join(said)}"] if said else []


def noise(result: Measured) -> list[str]:
    """What is not as wanted about a clean evaluation."""
    metric = block(result.report, "primary_metric").get("decision")
    names = spoke(result.report)
    lines = [f"{named(result)}: {', '.join(names)} spoke"] if names else []
    if metric != "pass":
        lines.append(f"{named(result)}: the metric says {metric}")
    return lines


def unseen(results: Sequence[Measured]) -> list[str]:
    """The damage that the check aimed at did not see, with its margin."""
    if not results:
        return ["* Nothing escaped the check aimed at, at published strength."]
    return [
        "* Not seen by the check aimed at, at published strength, on this model:",
        *(f"  * {missed(r)}" for r in results),
    ]


def rank1(result: Measured) -> str:
    """Whether the collapse of one matrix is found although perplexity need not show it."""
    decision = block(result.report, "primary_metric").get("decision", "nothing")
    names = [n for n in spoke(result.report) if n != "metric"]
    found = ", ".join(names) or "no other check"
    return f"* One matrix of rank 1: the metric says {decision}; found by {found}."


def missed(result: Measured) -> str:
    """One line on a damage that its check did not see."""
    name = f"`{result.scenario.id}`"
    if not result.evaluation.measured:
        return f"{name}: {result.evaluation.outcome['status']}"
    aimed = result.scenario.primary_guard
    reading, others = reading_of(aimed, result.report), ", ".join(spoke(result.report)) or "none"
    if reading is None:
        return f"{name} ({aimed}): not measured; spoke: {others}."
    return (
        f"{name} ({aimed}): {statistic_cell(reading)}, threshold"
        f" {number(reading.threshold)}, margin {number(reading.margin)}; spoke: {others}."
    )


def cost_lines(clean: Sequence[Measured]) -> list[str]:
    """Median and range of what the guards cost."""
    lines = []
    wanted = {"time_ratio": ("time", TIME_MAX), "memory_ratio": ("peak memory", MEMORY_MAX)}
    for key, (what, most) in wanted.items():
        values = [float(r.overhead[key]) for r in clean if r.overhead]
        if values:
            middle, low, high = statistics.median(values), min(values), max(values)
            lines.append(
                f"* {what}: {middle:.3f} ({low:.3f} - {high:.3f}), wanted at most {most:g}"
            )
    return lines


def sorted_out(results: Sequence[Measured]) -> tuple[list[Measured], list[Damaged]]:
    """Clean evaluations, by edit and seed, and damage, by strength; of several seeds the first."""
    clean_entries, damage_entries = catalogued()
    order = [entry["id"] for entry in clean_entries]
    clean = [r for r in results if r.scenario.id in order]
    clean.sort(key=lambda r: (order.index(r.scenario.id), r.windows["seed"]))
    there: dict[str, Measured] = {}
    for result in results:
        there.setdefault(result.scenario.id, result)
    damaged = []
    for case in (case for entry in damage_entries for case in cases(entry)):
        if case.id in there or (case.parameters is None and case.entry["id"] in there):
            damaged.append(Damaged(case, there.get(case.id)))
    return clean, damaged


def page(results: Sequence[Measured], where: Sequence[str]) -> str:
    """The whole page, but for the part between the markers.

    Args:
        results: evaluations of suite ``detection``.
        where: lines on commit and machine.
    """
    clean, damaged = sorted_out(results)
    ran = [r for r in results if r.windows]
    if not ran:
        raise InputError("no subject was run: there is nothing to make the page of")
    first = ran[0]
    windows, report = first.windows, first.report
    parts = [
        INTRO.format(
            model=first.evaluation.model, dtype=report["meta"]["dtype"], tier=report["auto"]["tier"]
        ),
        *where,
        "",
        "## Summary",
        "",
        *summary(clean, damaged),
        CLEAN.format(
            preview=windows["preview"],
            final=windows["final"],
            seq_len=report["dataset"]["seq_len"],
        ),
        *clean_table(clean),
        DAMAGE.format(seed=windows["seed"]),
        *damage_table(damaged),
        COST,
        *cost_lines(clean),
    ]
    return "\n".join(parts) + "\n"


# --- every scenario of a suite ---------------------------------------------------------------


def part(run: Run) -> str:
    """The part of the page, markers included; the numbers are those of the verdict."""
    verdict, scenarios = run.verdict, {s.id: s for s in run.catalogue.scenarios}
    records = verdict["records"]
    told = [r for r in records if r["strictness"] == "informational" and not is_control(r)]
    rates = [f"{guard} {proportion(rate['detected'], rate['total'])}"
             for guard, rate in verdict["detection"].items() if rate["total"]]  # fmt: skip
    alarms = verdict["false_alarms"]
    head = HEAD.format(
        models=", ".join(sorted({r["model"] for r in records})),
        total=len(records),
        scenarios=len(scenarios),
        verdict=verdict["verdict"],
        detected="; ".join(rates) or "none of the scenarios asks for it",
        hinted=sum(r["detectors_hit"] for r in told),
        informational=len(told),
        alarms=proportion(alarms["flagged"], alarms["total"]),
    )
    rows = [list(row(run, record, scenarios[record["name"]])) for record in records]
    lines = [head, *table(COLUMNS.split(" | "), rows)]
    failed = [f"* {line}" for line in broken(verdict)]
    if failed:
        lines += ["", "Requirements that failed:", "", *failed]
    return "\n".join([BEGIN, *lines, END])


def is_control(record: Document) -> bool:
    """Whether the change is meant to be too small to matter: its detectors say that it is."""
    return bool(record["intent"] == "negative_control")


def row(run: Run, record: Document, scenario: Scenario) -> Iterator[str]:
    """The cells of one evaluation."""
    yield f"`{record['name']}`" + (f" run {record['run_num']}" if record["run_num"] > 1 else "")
    yield record["category"]
    required = record["strictness"] == "informational" and record["primary_guard_required"]
    yield record["strictness"] + (", guard" if required else "")
    yield f"`{what(run.folder, record, scenario)}`"
    yield ratio_cell(record)
    yield ", ".join(fired(record["guard_flags"])) or "none"
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
    return f"**not as expected**: {record['why']}"


def broken(verdict: Document) -> Iterator[str]:
    """The requirements of the verdict that failed, with what broke them."""
    for requirement in verdict["requirements"]:
        if not requirement["ok"]:
            yield f"{requirement['id']}: {'; '.join(requirement['details'])}"


# --- the file --------------------------------------------------------------------------------


def place(text: str, marked: str) -> str:
    """``text`` with ``marked`` in place of what the markers enclose, or at the end."""
    own = marked.partition("\n")[0]
    for found in PARTS.finditer(text):
        if found[0].startswith(own):
            return text[: found.start()] + marked + text[found.end() :]
    return f"{text.rstrip()}\n\n{marked}\n"


def kept(old: str, new: str) -> str:
    """``new`` with the parts that ``old`` holds."""
    for found in PARTS.finditer(old):
        new = place(new, found[0])
    return new


def renewed(old: str, runs: Sequence[Run]) -> str:
    """The text of the page after these runs."""
    detection = [run for run in runs if run.suite == SUITE]
    text = old
    if detection:
        where = list(dict.fromkeys(line for run in detection for line in run.provenance()))
        text = kept(old, page([r for run in detection for r in run.measured()], where))
    for run in runs:
        if run not in detection:
            text = place(text, part(run))
    return text


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, nargs="+", help="output folder of a finished run")
    parser.add_argument("--page", type=Path, default=PAGE, help="page to write")
    args = parser.parse_args()
    old = args.page.read_text() if args.page.is_file() else ""
    write_text(args.page, renewed(old, [Run(folder) for folder in args.run]))
    print(f"written: {args.page}")


if __name__ == "__main__":
    main()
