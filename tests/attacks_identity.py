"""Attacks by a publisher whose parts are each true in themselves and do not belong together."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import report_factory as factory
from attacks import REPORT, SCENARIOS, VERDICT, Attack, Lab, claim, edit, member
from pack_factory import CLEAN, DAMAGE, MODEL, STRESS, Document, edit_json, write_json

from invarlock import scenarios
from invarlock.verdict import records, summaries, verdict
from invarlock.verdict.records import Evaluation

RANK = f"reports/{MODEL}/errors/rank1_projection/run_1"
BASELINE = f"metadata/baseline.{MODEL}.json"
OTHER = "another edit"  # name of its checkpoint
ELSE = factory.digest("something else")
Change = Callable[[Document], object]


def load(path: Path) -> Document:
    """A JSON object."""
    document: Document = json.loads(path.read_text())
    return document


def recompile(lab: Lab) -> None:
    """Verdict and summaries as the reports and outcomes give them, by the code as it stands."""
    manifest = load(lab.pack / SCENARIOS)
    evaluations = []
    for path in sorted((lab.pack / "reports").rglob("outcome.json")):
        outcome, folder = load(path), path.parent
        key = outcome["model_id"], outcome["scenario"], outcome["run"]
        report = load(folder / "evaluation.report.json")
        done = next(map(load, sorted(folder.glob("e*_metadata.json"))), None)
        place = records.canonical_path(*key)
        evaluations.append(Evaluation(*key, report, outcome, place, done))
    chosen = scenarios.parse_catalogue(manifest, "test").scenarios
    expected = scenarios.expected_evaluations(chosen, {factory.MODEL}, {1})
    compiled = verdict.compile_verdict(manifest, evaluations, expected)
    assert compiled["verdict"] == "PASS"
    write_json(lab.pack / VERDICT, compiled)
    for name, document in summaries.documents(compiled, chosen, evaluations).items():
        write_json(lab.pack / f"results/{name}.json", document)


def subject(folder: str, name: str) -> Callable[[Lab], object]:
    """Another subject in a report and in what lies beside it."""
    digest = factory.checkpoint_sha256(name)

    def change(report: Document) -> None:
        report["meta"]["checkpoint_sha256"] = digest
        stated = report["provenance"]["subject"]
        stated.update(checkpoint_sha256=digest, checkpoint=factory.parts(name))
        if name == "baseline":  # of which no part differs
            report["structure"]["parts_changed"] = []

    def damage(lab: Lab) -> None:
        edit_json(lab.pack / folder / "evaluation.report.json", change)
        edit_json(lab.pack / folder / "outcome.json", lambda d: d.update(subject_sha256=digest))

    return damage


def one_subject(lab: Lab) -> None:
    """One damaged checkpoint stands for two kinds of damage."""
    subject(RANK, OTHER)(lab)
    subject(STRESS, OTHER)(lab)


def other_model(report: Document) -> None:
    """A report of another model than its folder says."""
    report["meta"]["model_id"] = report["baseline_ref"]["model_id"] = "acme/huge-llama"


def other_edit(report: Document) -> None:
    """A report of an edit that another scenario of the pack asks for."""
    report["edit"]["name"] = "quant_rtn"
    report["plugins"]["edits"] = ["quant_rtn"]


def one_more_weight(document: Document) -> None:
    """A matrix of the baseline that no report lists."""
    weight = {"dtype": "BF16", "shape": [2, 2]}
    document["tensors"] = {"model.layers.9.mlp.down_proj.weight": weight}


def undetected(lab: Lab) -> None:
    """A control without damage, detected by a detector that finds that nothing is wrong."""
    clean = load(lab.pack / REPORT)
    clean["edit"]["scenario"] = "rank1_projection"
    write_json(lab.pack / RANK / "evaluation.report.json", clean)
    edit_json(lab.pack / RANK / "error_metadata.json", lambda d: None)
    subject(RANK, OTHER)(lab)

    def lenient(document: Document) -> None:
        entry = next(s for s in document["scenarios"] if s["id"] == "rank1_projection")
        fine = {"kind": "invariants_status", "allowed": ["ok"]}
        needs = {"primary_guard_required": False, "detectors_any_of": [fine]}
        entry["requirements"].update(needs)

    edit_json(lab.pack / SCENARIOS, lenient)
    honest = records._shortfalls

    def shortfalls(*words: Any) -> list[records.Shortfall]:
        return [found for found in honest(*words) if found.text != "no guard spoke"]

    with mock.patch.object(records, "_shortfalls", shortfalls):
        recompile(lab)
    observed = lab.pack / f"reports/{MODEL}/observed/rank1_projection"
    observed.mkdir(parents=True)
    (lab.pack / RANK).rename(observed / "run_1")


def ungated(lab: Lab) -> None:
    """A clean edit that has to be detected and is not, which no requirement looks at."""
    wanted = {"strictness": "must_detect", "intent": "negative_control"}

    def change(document: Document) -> None:
        next(s for s in document["scenarios"] if s["id"] == "quant_8bit_clean").update(wanted)

    edit_json(lab.pack / SCENARIOS, change)

    def asked(case: Any, category: str) -> list[Any]:
        return [r for r in case.of(category=category) if r.strictness == "must_pass"]

    with mock.patch.object(verdict, "_asked", asked):
        recompile(lab)


def reserved(lab: Lab) -> None:
    """A scenario whose folder reads as that of damage, of which nothing is asked."""
    name = "errors"

    def change(document: Document) -> None:
        next(s for s in document["scenarios"] if s["id"] == "quant_8bit_clean")["id"] = name

    edit_json(lab.pack / SCENARIOS, change)
    edit_json(lab.pack / REPORT, member("edit/scenario", name))
    edit_json(lab.pack / CLEAN / "outcome.json", member("scenario", name))
    (lab.pack / CLEAN / "edit_metadata.json").unlink()
    (lab.pack / CLEAN).rename(lab.pack / f"reports/{MODEL}/errors/run_1")
    with mock.patch.object(scenarios, "RESERVED", ()):
        recompile(lab)


def last_run(lab: Lab) -> None:
    """The third run of everything, as if there had been no other."""
    for path in sorted((lab.pack / "reports").rglob("outcome.json")):
        edit_json(path, member("run", 3))
        path.parent.rename(path.parent.with_name("run_3"))

    def expected(chosen: Any, models: Any, _: Any) -> list[Any]:
        return [(m, s.id, 3) for m in models for s in chosen]

    with mock.patch.object(scenarios, "expected_evaluations", expected):
        recompile(lab)


def consistent(damage: Callable[[Lab], object]) -> Callable[[Lab], object]:
    """Damage, and a verdict that speaks of it."""
    return lambda lab: (damage(lab), recompile(lab))


PARTS: dict[str, tuple[str, Callable[[Lab], object]]] = {
    "report of another model": ("identity.same", edit(REPORT, other_model)),
    "outcome of another baseline": ("identity.same", consistent(edit(
        f"{CLEAN}/outcome.json", member("baseline_sha256", ELSE)))),
    "outcome of other windows": ("identity.same", edit(f"{CLEAN}/outcome.json",
                                                       member("windows_sha256", ELSE))),
    "report of another scenario's edit": ("identity.edit",
                                          edit(f"{STRESS}/evaluation.report.json", other_edit)),
    "report of the no-op for an edit": ("identity.noop", consistent(subject(CLEAN, "baseline"))),
    "report of the no-op for damage": ("identity.noop", consistent(subject(DAMAGE, "baseline"))),
    "one subject for two controls": ("identity.subject", consistent(one_subject)),
    "baseline of another model": ("identity.baseline",
                                  edit(BASELINE, member("model_id", "acme/huge-llama"))),
    "weights that no guard looked at": ("identity.weights", edit(BASELINE, one_more_weight)),
}  # fmt: skip
OVERCLAIMS: dict[str, Change] = {
    "model": member("models/0/model_id", "acme/huge-llama"),
    "suite": member("suite", "full"),
    "reports of damage": member("verification/error_injection_reports", 99),
    "clean reports": member("verification/clean_reports", 99),
    "network mode": member("network_mode", "online"),
    "network mode among its parameters": member("invocation/parameters/network_mode", "online"),
    "determinism": member("determinism", "throughput"),
    "number of repeats, of which there are none": member("repeats", 3),
    "revision": member("models/0/revision", "main"),
    "licence": member("model_licenses", {}),
    "list of files": member("artifacts", ["README.md"]),
}
ROWS = [
    *(Attack(f"identity: {k}", "reports", check, damage, "binder")
      for k, (check, damage) in PARTS.items()),
    *(Attack(f"claims: manifest names another {k}", "claims", "claims.manifest", claim(change))
      for k, change in OVERCLAIMS.items()),
    Attack("claims: nothing was found, and that is a detection", "claims", "verdict.silent",
           undetected, "binder"),
    Attack("claims: a clean edit has to be detected and is not", "claims", "verdict.asked",
           ungated, "binder"),
    Attack("claims: the third run alone", "claims", "verdict.runs", last_run, "binder"),
    Attack("claims: a scenario called errors", "claims", "scenarios.reserved", reserved, "binder"),
]  # fmt: skip
HARMLESS = [
    Attack("baseline that lists the weights that were looked at", "", "", edit(
        BASELINE, lambda d: d.update(model_id=factory.MODEL, tensors={
            "model.layers.1.mlp.down_proj.weight": {"dtype": "F32", "shape": [4, 4]},
            "model.norm.weight": {"dtype": "F32", "shape": [4]},
            "model.steps": {"dtype": "I64", "shape": [4, 4]}})), "binder"),
]  # fmt: skip
