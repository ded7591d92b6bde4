"""Attacks on what lies beside the reports: their re-check, the baseline's run, times."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable

import report_factory as factory
from attacks import Attack, Lab
from pack_factory import CLEAN, DAMAGE, MODEL, STRESS, Document, write_json

from invarlock.evidence.layout import TIMINGS, run_path
from invarlock.evidence.parity import RUN_SCHEMA
from invarlock.evidence.report_verify import envelope, page_options, verify_report
from invarlock.verdict.timings import timings_document

Change = Callable[[Document], object]


def nothing(_: Document) -> None:
    """No change."""


def said(change: Change, profile: str = "dev", folder: str = CLEAN) -> Callable[[Lab], object]:
    """``verify.json`` beside a report, as its re-check writes it, and then changed."""

    def damage(lab: Lab) -> None:
        report = lab.pack / folder / "evaluation.report.json"
        manifest = lab.pack / folder / "runtime.manifest.json"
        found = verify_report(
            report.read_bytes(), manifest.read_bytes(), report.name, page_options(profile)
        )
        document = json.loads(json.dumps(envelope([found], profile)))
        change(document)
        write_json(lab.pack / folder / "verify.json", document)

    return damage


def run(change: Change) -> Callable[[Lab], object]:
    """The run report of the baseline that all reports are of, and then changed."""

    def damage(lab: Lab) -> None:
        document = copy.deepcopy(factory.BASELINE) | {"schema": RUN_SCHEMA}
        change(document)
        write_json(lab.pack / run_path(MODEL), document)

    return damage


def times(change: Change) -> Callable[[Lab], object]:
    """The summary of times of the evaluations, of jobs that nobody timed, and then changed."""

    def damage(lab: Lab) -> None:
        folders = [path.parent for path in sorted(lab.pack.rglob("outcome.json"))]
        document = timings_document(lab.pack, folders, deferred=False)
        change(document)
        write_json(lab.pack / TIMINGS, document)

    return damage


def better(document: Document) -> None:
    """Another ratio than the report's."""
    document["results"][0]["ratio_vs_baseline"] = 1.0


def guards_quiet(document: Document) -> None:
    """Warnings that are not told."""
    document["results"][0].update(replayed=False, believed=["all"])


def loss(document: Document) -> None:
    """One loss of the baseline."""
    document["evaluation_windows"]["final"]["nll_sum"][0] += 1.0


def weight(document: Document) -> None:
    """What a guard measured of the baseline."""
    guard = next(g for g in document["guards"] if "modules" in g)
    guard["modules"]["sigma_max"][0] *= 2


ROWS = [
    Attack("verify.json: of no profile", "reports", "said.profile",
           said(lambda d: d.update(profile="lenient")), "publisher"),
    Attack("verify.json: that is no object", "reports", "said.profile",
           lambda b: (b.pack / CLEAN / "verify.json").write_text("[]"), "publisher"),
    *(Attack(f"verify.json: {name}", "reports", "said.same", said(change), "publisher")
      for name, change in {
          "another ratio": better,
          "less than was replayed": guards_quiet,
          "a failure that is none": lambda d: d["summary"].update(ok=False),
          "a result too many": lambda d: d["results"].append(d["results"][0]),
      }.items()),
    Attack("verify.json: of another profile than it says", "reports", "said.same",
           said(lambda d: d.update(profile="ci"), folder=STRESS), "publisher"),
    Attack("run of the baseline: of another format", "reports", "run.schema",
           run(lambda d: d.update(schema="invarlock/run-report-v0")), "publisher"),
    *(Attack(f"run of the baseline: {name}", "reports", "run.parity", run(change), "publisher")
      for name, change in {
          "another model's": lambda d: d["meta"].update(model_id="acme/other"),
          "another checkpoint's": lambda d: d["meta"].update(checkpoint_sha256=factory.digest("x")),
          "another loss": loss,
          "another weight": weight,
      }.items()),
    *(Attack(f"summary of times: {name}", "claims", "claims.timings", times(change), "publisher")
      for name, change in {
          "more evaluations than there are": lambda d: d.update(evaluation_reports_timed=99),
          "a guard's time that none took":
              lambda d: d["run_timing_totals_seconds"].update(guards=50.0, execute=50.0),
          "a total that is no sum": lambda d: d["timing_totals_seconds"].update(total=5.0),
          "times beyond what a number holds": lambda d: d["timing_totals_seconds"].update(
              total=1e308, baseline=1e308, subject=1e308),
      }.items()),
]  # fmt: skip
HARMLESS = [
    Attack("a true verify.json", "", "", said(nothing), "publisher"),
    *(Attack(f"a true verify.json of profile ci in {folder}", "", "",
             said(nothing, "ci", folder), "publisher") for folder in (CLEAN, STRESS, DAMAGE)),
    Attack("a true run of the baseline", "", "", run(nothing), "publisher"),
    Attack("a true summary of times", "", "", times(nothing), "publisher"),
]  # fmt: skip
