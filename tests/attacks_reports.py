"""Attacks by a publisher: signed packs whose contents do not bear out what they claim."""

from __future__ import annotations

from collections.abc import Callable

from attacks import (
    NOTHING,
    REPORT,
    RUNTIME,
    SCENARIOS,
    STRICT,
    VERDICT,
    Attack,
    Lab,
    claim,
    edit,
    member,
    write,
)
from pack_factory import CLEAN, DAMAGE, STRESS, Document, edit_json

OUTCOME = f"{CLEAN}/outcome.json"
EDIT = f"{CLEAN}/edit_metadata.json"
ERROR = f"{DAMAGE}/error_metadata.json"
STRESS_REPORT = f"{STRESS}/evaluation.report.json"
DAMAGE_REPORT = f"{DAMAGE}/evaluation.report.json"
Change = Callable[[Document], object]


def believed(lab: Lab) -> None:
    """A pack without outcomes, whose verdict can only be believed."""
    for outcome in lab.pack.rglob("outcome.json"):
        outcome.unlink()


def bare(lab: Lab) -> None:
    """The same with a verdict that says no more than its word, as published ones may."""
    believed(lab)
    write(VERDICT, '{"verdict": "PASS"}')(lab)


def spoken(change: Change) -> Callable[[Lab], object]:
    """Change a verdict that can only be believed."""
    return lambda lab: (believed(lab), edit_json(lab.pack / VERDICT, change))


def of_another_model(document: Document) -> None:
    """A verdict that speaks of another model throughout."""
    for record in document["records"]:
        record["model"] = "acme/huge-llama"


def exchanged(document: Document) -> None:
    """The records of two scenarios under each other's name."""
    one, other = document["records"][:2]
    one["name"], other["name"] = other["name"], one["name"]


def counted(document: Document) -> None:
    """A verdict of one evaluation less, whose counts agree."""
    document["records"].pop()
    document["counts"]["records_total"] -= 1


def as_published(document: Document) -> None:
    """The same verdict in the words of a published version."""
    for name in ("schema", "requirements", "detection"):
        del document[name]
    for record in document["records"]:
        record["model"] = "huge-llama"


def missing_report(lab: Lab) -> None:
    """A believed verdict that speaks of one evaluation more than there are reports."""
    believed(lab)
    no_control(lab)


def high(lab: Lab) -> None:
    """A container pack of level high, of which one runtime manifest is gone."""
    for path in lab.pack.rglob("runtime.manifest.json"):
        edit_json(path, container)
    (lab.pack / RUNTIME).unlink()
    claim(member("evidence_level", "high"))(lab)


def unmeasured(change: Change) -> Callable[[Lab], object]:
    """A report without evidence to replay, and without what v1 requires of it."""

    def both(report: Document) -> None:
        del report["evaluation_windows"]
        change(report)

    return alone(both)


def alone(change: Change, path: str = REPORT) -> Callable[[Lab], object]:
    """Change a report of such a pack: nothing but the report can give the change away."""
    return lambda lab: (bare(lab), edit_json(lab.pack / path, change))


def rows(report: Document) -> Document:
    """The final arm's columns."""
    found: Document = report["evaluation_windows"]["final"]
    return found


def halved(report: Document) -> None:
    """Halve the subject's losses, consistently within the windows."""
    for arm in report["evaluation_windows"].values():
        for column in ("nll_sum", "logloss"):
            arm[column] = [value / 2 for value in arm[column]]


def one_window(report: Document) -> None:
    """One window where the report speaks of many."""
    for column in rows(report).values():
        del column[1:]


def repeated(report: Document) -> None:
    """One window eight times, under other names."""
    for name, column in rows(report).items():
        if name != "window_ids":
            column[:] = [column[0]] * len(column)


def counts(value: object) -> Change:
    """A token count of the first window."""
    return lambda report: rows(report)["token_counts"].__setitem__(0, value)


def fiction(report: Document) -> None:
    """A better point with its ratio and interval, beside a decoy that fits the windows."""
    metric = report["primary_metric"]
    metric["final"] = report["baseline_ref"]["primary_metric"]["final"]
    metric |= {"ratio_vs_baseline": 1.0, "ci": [0.0, 0.0], "display_ci": [1.0, 1.0]}


def looser(report: Document) -> None:
    """A limit above the tier's, wherever the report states it."""
    report["primary_metric"]["limit"] = 9.0
    report["resolved_policy"]["metrics"]["pm_ratio"]["ratio_limit_base"] = 9.0


def another_report(lab: Lab) -> None:
    """The runtime manifest of another evaluation beside a report."""
    other = lab.pack / STRESS / "runtime.manifest.json"
    (lab.pack / RUNTIME).write_bytes(other.read_bytes())


def container(document: Document) -> None:
    """A host run that says it was made in a container."""
    document["execution_mode"] = "container"
    digest = "sha256:" + "a" * 64
    document["runtime"] |= {"container_execution": True, "image_digest": digest}


def on_a_host(lab: Lab) -> None:
    """A report that says it was made on a host, beside a manifest that says container."""
    alone(lambda r: r["context"].update(runtime={"execution_mode": "host-bypass"}))(lab)
    edit_json(lab.pack / RUNTIME, container)


def pinned(document: Document) -> None:
    """An image reference that is pinned to another digest than the recorded one."""
    digests = ["sha256:" + digit * 64 for digit in "ab"]
    document["runtime"] |= {"image_ref": f"image@{digests[0]}", "image_digest": digests[1]}


def no_control(lab: Lab) -> None:
    """One evaluation removed from the pack."""
    for path in (lab.pack / DAMAGE).iterdir():
        path.unlink()


def passing(lab: Lab) -> None:
    """Reports that have to fail replaced by one that passes, in a pack without outcomes."""
    bare(lab)
    clean = (lab.pack / REPORT).read_bytes()
    (lab.pack / STRESS_REPORT).write_bytes(clean)
    edit_json(
        lab.pack / STRESS / "edit_metadata.json", lambda m: m.pop("baseline_checkpoint_sha256")
    )


def garbage(path: str, data: str) -> Callable[[Lab], object]:
    """An expected failure that is no report, in a pack without outcomes."""
    return lambda lab: (bare(lab), write(path, data)(lab))


def extra_report(lab: Lab) -> None:
    """A report that is none, in a place of its own."""
    bare(lab)
    folder = lab.pack / "reports/x/y/run_1"
    folder.mkdir(parents=True)
    (folder / "evaluation.report.json").write_text("{}")
    (folder / "runtime.manifest.json").write_bytes((lab.pack / RUNTIME).read_bytes())


def only_damage(lab: Lab) -> None:
    """Nothing that has to pass, in a pack that nobody can replay the verdict of."""
    bare(lab)
    for folder in (lab.pack / "reports").glob("*/*"):
        if folder.name != "errors":
            for path in [p for p in folder.rglob("*") if p.is_file()]:
                path.unlink()
    edit_json(lab.pack / SCENARIOS, lambda d: d.update(scenarios=[]))
    claim(member("evidence_level", "low"))(lab)


def explosion(lab: Lab) -> None:
    """Models and runs that ask for billions of evaluations."""
    models = {f"acme/m{index}": {"revision": None} for index in range(30_000)}
    edit_json(lab.pack / "metadata/model_revisions.json", lambda d: d.update(models=models))


def padded(lab: Lab) -> None:
    """Reports with many values where a verdict has to look."""
    for report in (lab.pack / "reports").rglob("evaluation.report.json"):
        edit_json(report, lambda r: r["meta"].update(x=[[]] * 400_000))


def many_scenarios(document: Document) -> None:
    """More scenarios than anybody can look at."""
    for index in range(5000):
        document["scenarios"].append(document["scenarios"][0] | {"id": f"s{index}"})


def stronger(document: Document) -> None:
    """Damage that is asked for with another number than it was done with."""
    entry = next(s for s in document["scenarios"] if s["id"] == "nan_injection")
    entry["generation"]["env"] = {"factor": 1.5}


def unevaluated(report: Document) -> None:
    """A trial of the variance guard as large as the limits on a file admit."""
    report["variance"]["trial"] = {name: [0.5] * 150_000 for name in (
        "window_ids", "clusters", "token_counts", "plain_nll", "scaled_nll")}  # fmt: skip


def many_events(report: Document) -> None:
    """A finding of strict assurance for every one of them."""
    report["context"]["assurance"]["mode"] = report["assurance"]["mode"] = "strict"
    report["primary_metric"]["ratio_vs_baseline"] = 1.0
    report["report_build"]["fallback_fields"] = [{"field": "x" * 20}] * 200_000


def preview_count(report: Document) -> None:
    """The numbers of windows that the report states, made consistent with each other."""
    report["dataset"]["windows"] |= {"preview": 8, "final": 8}
    stats = report["dataset"]["windows"]["stats"]
    stats["paired_windows"] = 8
    for arm in ("preview", "final"):
        stats["coverage"][arm] |= {"used": 8}


def swap(one: str, other: str) -> Callable[[Lab], object]:
    """Two reports in each other's place."""

    def damage(lab: Lab) -> None:
        data = [(lab.pack / path).read_bytes() for path in (one, other)]
        (lab.pack / one).write_bytes(data[1])
        (lab.pack / other).write_bytes(data[0])

    return damage


CLAIMS = {
    "verdict": ("claims.compare", VERDICT, member("verdict", "FAIL")),
    "a record made nicer": ("claims.compare", VERDICT, member("records/1/ratio_vs_baseline", 1.0)),
    "a summary": ("claims.compare", "results/category_summary.json",
                  member("clean/reports", 99)),
    "a control left out": ("claims.outcomes", SCENARIOS, lambda d: d["scenarios"].pop()),
    "a control made lenient": ("claims.compare", SCENARIOS,
                               member("scenarios/2/strictness", "informational")),
    "outcome of another run": ("claims.folder", OUTCOME, member("run", 2)),
    "outcome of another model": ("claims.folder", OUTCOME, member("model_id", "a/b")),
    "outcome of an unknown shape": ("claims.contract", OUTCOME, member("status", 7)),
    "damage that was not done": ("claims.compare", f"{DAMAGE}/outcome.json",
                                 member("injected", False)),
    "the ratio": ("claims.compare", REPORT, member("primary_metric/ratio_vs_baseline", 1.0)),
    "the interval": ("claims.compare", REPORT, member("primary_metric/display_ci", [0.9, 1.0])),
    "no report at all": ("claims.compare", REPORT, lambda r: r.clear()),
}  # fmt: skip
META = {
    "scenarios without a list": ("scenarios.list", SCENARIOS, member("scenarios", 3)),
    "a scenario twice": ("scenarios.twice", SCENARIOS,
                         lambda d: d["scenarios"].append(d["scenarios"][0])),
    "a scenario without an id": ("scenarios.entry", SCENARIOS, member("scenarios/0/id", None)),
    "5,000 scenarios": ("scenarios.number", SCENARIOS, many_scenarios),
    "edit of another type": ("scenarios.metadata", EDIT, member("edit_type", "noop")),
    "edit of another schema": ("scenarios.metadata", EDIT, member("schema", "v0")),
    "edit of another class": ("scenarios.metadata", EDIT,
                              member("artifact_class", "deployable_optimized_subject")),
    "packed storage": ("scenarios.metadata", EDIT, member("packed_quantized_storage", True)),
    "0 for false": ("scenarios.metadata", EDIT, member("optimized_deployment_backend", 0)),
    "metadata of another baseline": ("scenarios.checkpoint", EDIT,
                                     member("baseline_checkpoint_sha256", "0" * 64)),
    "evidence alone, of a subject": ("scenarios.metadata", SCENARIOS,
                                     member("scenarios/1/artifact_class", "evidence_only_pack")),
    "another number of bits": ("scenarios.parameters", EDIT, member("parameters/bits", 4)),
    "no parameters": ("scenarios.parameters", EDIT, lambda document: document.pop("parameters")),
    "no number of bits": ("scenarios.parameters", EDIT, member("parameters/bits", None)),
    "parameters that are none": ("scenarios.parameters", EDIT, member("parameters", 8)),
    "another scope": ("scenarios.parameters", EDIT, member("scope", "attn")),
    "another sparsity": ("scenarios.parameters", f"{STRESS}/edit_metadata.json",
                         member("parameters/sparsity", 0.99)),
    "damage of another strength": ("scenarios.parameters", SCENARIOS, stronger),
    "another damage": ("scenarios.metadata", ERROR, member("error_type", "inf_injection")),
    "damage not injected": ("scenarios.metadata", ERROR, member("injected", False)),
}  # fmt: skip
# In a pack whose verdict can only be believed, so that the report itself has to give it away.
LIES: dict[str, tuple[str, Change]] = {
    "ratio": ("matrix.ratio", member("primary_metric/ratio_vs_baseline", 1.0)),
    "interval": ("matrix.interval", member("primary_metric/display_ci", [0.9, 1.0])),
    "a fitting fiction beside a decoy point": ("report.evidence", fiction),
    "decoy point": ("report.evidence", member("primary_metric/analysis_point_final", 1.0)),
    "losses of windows": ("report.evidence", halved),
    "losses in another order": ("report.replay",
                                lambda r: [rows(r)[c].reverse() for c in ("nll_sum", "logloss")]),
    "logloss beside other sums": ("report.replay", lambda r: rows(r)["nll_sum"].reverse()),
    "one window for many": ("report.evidence", one_window),
    "one window many times": ("report.evidence", repeated),
    "fewer windows than it says": ("report.replay", preview_count),
    "zero tokens": ("report.evidence", counts(0)),
    "negative tokens": ("report.evidence", counts(-144)),
    "a third of a token": ("report.evidence", counts(0.3)),
    "tokens beyond a double": ("report.evidence", counts(10**31)),
    "tokens near infinity": ("report.evidence", counts(1.7e308)),
    "tokens that are words": ("report.evidence", counts("144")),
    "losses that are words": ("report.evidence", lambda r: rows(r).update(nll_sum=["x"])),
    "a loss that is a list": ("report.evidence", lambda r: rows(r)["logloss"].__setitem__(0, [1])),
    "windows by one name": ("report.evidence",
                            lambda r: rows(r).update(window_ids=["a"] * 180)),
    "paired windows": ("matrix.pairing", member("dataset/windows/stats/paired_windows", 7)),
    "flag that contradicts the numbers": (
        "report.flags", member("validation/primary_metric_acceptable", False)),
    "a gate left out": ("report.replay", lambda r: r["context"]["gates"].pop()),
    "looser limit": ("report.replay", looser),
    "absurd bootstrap": ("report.draws", member("context/bootstrap/replicates", 10**12)),
    "the largest bootstrap": ("report.evidence", member("context/bootstrap/replicates", 100_000)),
    "negative bootstrap": ("report.draws", member("context/bootstrap/replicates", -1)),
    "a trial of 150,000 windows": ("report.draws", unevaluated),
    "200,000 events of its making": (NOTHING, many_events),
    "another tokenizer": ("matrix.tokenizer", member("meta/tokenizer_hash", "0" * 64)),
    "a run id of three letters": ("report.schema", member("run_id", "abc")),
    "windows of no token": ("report.schema", member("dataset/seq_len", 0)),
    "no windows and no word of it": ("report.schema", member("dataset/windows", None)),
    "metric of no kind": ("report.schema", member("primary_metric/kind", "magic")),
    "a flag that nobody knows": ("report.schema", member("validation/all_good", True)),
}  # fmt: skip
SPOKEN: dict[str, Change] = {
    "about another model": of_another_model,
    "about scenarios in each other's place": exchanged,
    "about one report less": counted,
    "about another subject": member("records/1/subject_sha256", "0" * 64),
    "about another baseline": member("records/1/baseline_sha256", "0" * 64),
    "with another ratio": member("records/1/ratio_vs_baseline", 1.0),
    "with another guard's signal": member("records/1/guard_flags/rmt", True),
    "about one report twice": lambda d: d["records"].__setitem__(1, d["records"][0]),
    "whose count is not its own": member("counts/records_total", 99),
    "PASS above what failed": member("failed_requirements", ["clean_all_pass"]),
    "PASS above a record that is not as expected": member("records/0/as_expected", False),
    "about 5,000 evaluations": lambda d: d.update(records=d["records"] * 1000),
    "about another model, as published": as_published,
    "without records, and of fewer": lambda d: (
        d.pop("records"), d.pop("schema"), member("counts/records_total", 1)(d)),
}  # fmt: skip
RUNTIMES: dict[str, tuple[str, Change]] = {
    "container in one place": ("runtime.rules", member("execution_mode", "container")),
    "pinned to another image": ("runtime.rules", pinned),
    "unknown member": ("runtime.contract", member("extra", True)),
    "other contract version": ("runtime.contract", member("manifest_version", 2)),
    "date that is prose": ("runtime.rules", member("generated_at_utc", "some time in the spring")),
    "date without offset": ("runtime.rules", member("generated_at_utc", "2026-01-01T00:00:00.0")),
    "config digest of no file": ("runtime.rules", member("config/sha256", "0" * 64)),
    "report digest": ("runtime.digest", member("report/sha256", "0" * 64)),
    "speed that no time gives": ("runtime.telemetry", member("context/telemetry", {
        "latency_ms_per_tok": 0.001, "throughput_tok_per_s": 1e6, "memory_mb_peak": 1.0})),
}  # fmt: skip

ROWS = [
    *(Attack(f"claims: {k}", "claims", check, edit(path, change), "binder")
      for k, (check, path, change) in CLAIMS.items()),
    *(Attack(f"metadata: {k}", "scenarios", check, edit(path, change), "publisher")
      for k, (check, path, change) in META.items()),
    *(Attack(f"claims: believed verdict {k}", "claims", "claims.spoken", spoken(change), "binder")
      for k, change in SPOKEN.items()),
    Attack("claims: believed verdict of an evaluation that is not there", "reports",
           "claims.absent", missing_report, "binder"),
    Attack("claims: two verdicts that differ", "claims", "claims.two",
           write("results/verdicts/final_verdict.json", '{"verdict": "FAIL"}'), "publisher"),
    *(Attack(f"report: without evidence and {name}", "reports", "matrix.measured",
             unmeasured(lambda r, name=name: r["primary_metric"].pop(name)), "binder")
      for name in ("preview", "final", "ratio_vs_baseline", "display_ci")),
    Attack("runtime: none, of a pack that claims level high", "reports", "runtime.missing", high),
    Attack("metadata: none for an edit", "scenarios", "scenarios.needed",
           lambda b: (b.pack / EDIT).unlink(), "publisher"),
    *(Attack(f"report: {k}", "reports", check, alone(change), "binder")
      for k, (check, change) in LIES.items()),
    *(Attack(f"runtime: {k}", "reports", check, edit(RUNTIME, change), "publisher")
      for k, (check, change) in RUNTIMES.items()),
    Attack("runtime: another mode than the report's", "reports", "runtime.mode", on_a_host,
           "binder"),
    Attack("runtime: of another report", "reports", "runtime.digest", another_report, "publisher"),
    Attack("runtime: none", "reports", "runtime.missing", lambda b: (b.pack / RUNTIME).unlink(),
           "publisher"),
    Attack("claims: a deleted evaluation", "claims", "claims.compare", no_control, "binder"),
    Attack("claims: reports in each other's place", "claims", "claims.compare",
           swap(REPORT, STRESS_REPORT), "binder"),
    Attack("claims: billions of evaluations", "claims", "claims.number", explosion, "publisher"),
    Attack("claims: millions of values", "claims", "claims.judged", padded, "binder"),
    Attack("claims: README says FAIL above a PASS", "claims", "claims.readme",
           write("README.md", "# Evidence pack: FAIL\n"), "publisher"),
    Attack("claims: text says FAIL", "claims", "claims.text",
           write("results/final_verdict.txt", "VERDICT: FAIL\n"), "publisher"),
    Attack("expected failure that is no report", "reports", "report.schema",
           garbage(STRESS_REPORT, "{}"), "binder"),
    Attack("expected failure that is no JSON", "reports", "report.json",
           garbage(DAMAGE_REPORT, "garbage"), "publisher"),
    Attack("expected failure that is empty", "reports", "report.json",
           garbage(DAMAGE_REPORT, ""), "publisher"),
    Attack("expected failure that passes", "reports", "expectation.fails", passing, "binder"),
    Attack("nothing has to pass", "reports", "expectation.passes", only_damage, "publisher"),
    Attack("strict assurance of a host run", "reports", "runtime.container", lambda b: None,
           options=("--report-assurance", "strict")),
    Attack("evidence left out, with --replay", "reports", "report.missing",
           alone(lambda r: r.pop("evaluation_windows")), "binder", ("--replay",)),
    Attack("an extra report that is none", "reports", "report.schema", extra_report, "binder"),
]  # fmt: skip
HARMLESS = [
    Attack("a believed verdict about the reports of the pack", "", "", believed, "publisher",
           STRICT),
    Attack("a believed verdict of an earlier version", "", "", spoken(
        lambda d: [r.pop(n) for r in d["records"] for n in ("subject_sha256", "baseline_sha256")]
    ), "publisher", STRICT),
    Attack("evidence left out is said to be believed", "", "",
           alone(lambda r: r.pop("evaluation_windows")), "binder"),
]  # fmt: skip
