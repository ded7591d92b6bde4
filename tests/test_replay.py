"""Replay: a true report has no contradictions, and one changed number gives at least one."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_factory import make_crashed, make_rejected, make_report

from invarlock.reporting.replay import replay

DOWN = "model.layers.1.mlp.down_proj.weight"
CLEAN = make_report("quant_8bit_clean", 1.004)
CAPPED = make_report("one_cap", 1.004, scale={DOWN: 1.5})
COLLAPSED = make_report("rank1_projection", 1.09, rank={DOWN: 0.05}, scale={DOWN: 0.6})
DAMAGED = make_report("quant_4bit_stress", 1.6)
WIDE = make_report("wide", 1.10)


def at(document, pointer):
    """The container of a pointer's target, and its last key."""
    *path, last = pointer.strip("/").split("/")
    for key in path:
        document = document[int(key)] if isinstance(document, list) else document[key]
    return document, int(last) if isinstance(document, list) else last


def altered(report, pointer, change):
    """A copy with one value changed; ``change`` is the new value, or a function of the old."""
    document = copy.deepcopy(report)
    parent, key = at(document, pointer)
    parent[key] = change(parent[key]) if callable(change) else change
    return document


def slightly(value):
    """A value changed in its seventh digit."""
    return value * (1 + 1e-7)


@pytest.mark.parametrize(
    "report",
    [
        make_report(),
        CLEAN,
        CAPPED,
        COLLAPSED,
        DAMAGED,
        WIDE,
        make_rejected(),
        make_crashed(),
        make_crashed(cause="timeout"),
    ],
    ids=lambda r: r["edit"]["scenario"],
)
def test_a_true_report_has_no_contradictions(report):
    """No-op, clean, capped, collapsed, damaged, borderline, rejected and crashed."""
    assert replay(report) == []


def test_a_report_written_again_is_still_true():
    """Reading and writing JSON loses no digit that the replay needs."""
    assert replay(json.loads(json.dumps(CLEAN, indent=1, sort_keys=True))) == []


METRIC = [
    ("/primary_metric/ratio_vs_baseline", slightly),
    ("/primary_metric/ci/0", lambda v: v + 1e-6),
    ("/primary_metric/ci/1", lambda v: v + 1e-6),
    ("/primary_metric/display_ci/1", slightly),
    ("/primary_metric/drift/raw", slightly),
    ("/primary_metric/preview", slightly),
    ("/primary_metric/final", slightly),
    ("/primary_metric/analysis_point_final", slightly),
    ("/primary_metric/standard_error", lambda v: v + 1e-6),
    ("/baseline_ref/primary_metric/final", slightly),
]


@pytest.mark.parametrize(("pointer", "change"), METRIC, ids=[p for p, _ in METRIC])
def test_one_changed_conclusion_is_named(pointer, change):
    """A stated number or decision that the evidence does not give, by its own pointer."""
    found = replay(altered(CLEAN, pointer, change))
    assert any(line.startswith(f"{pointer} is ") for line in found), found


EVIDENCE = [
    ("/evaluation_windows/final/nll_sum/7", slightly, "/primary_metric/ratio_vs_baseline"),
    ("/evaluation_windows/final/baseline_nll_sum/7", slightly, "/primary_metric/ratio_vs_baseline"),
    ("/evaluation_windows/preview/nll_sum/7", lambda v: v + 0.01, "/primary_metric/drift/ratio"),
    ("/evaluation_windows/final/token_counts/7", 143, "/primary_metric/ratio_vs_baseline"),
    ("/evaluation_windows/final/clusters/7", "doc-59", "/primary_metric/ci"),
    ("/spectral/modules/sigma_max/3", lambda v: v * 1.01, "/spectral/summary/max_abs_log_ratio"),
    ("/spectral/modules/baseline_sigma_max/3", lambda v: v * 2, "/spectral/caps_applied"),
    ("/spectral/modules/stable_rank/3", lambda v: v / 100, "/spectral/passed"),
    ("/spectral/modules/family/1", "attn", "/spectral/family_z_summary"),
    ("/context/bootstrap/seed", 8, "/primary_metric/ci"),
    ("/context/bootstrap/alpha", 0.1, "/primary_metric/ci"),
    ("/context/bootstrap/replicates", 1300, "/primary_metric/reps"),
    ("/auto/tier", "conservative", "/primary_metric/limit"),
    ("/auto/tier", "aggressive", "/primary_metric/limit"),
    ("/invariants/failures", [{"type": "x", "severity": "fatal", "message": ""}], "/validation"),
    ("/invariants/evaluated", False, "/invariants"),
    ("/spectral/evaluated", False, "/guards"),
    ("/evaluation_windows/final/nll_sum/7", None, "/primary_metric/degraded"),
]


@pytest.mark.parametrize(
    ("pointer", "change", "named"), EVIDENCE, ids=[f"{p}->{n}" for p, _, n in EVIDENCE]
)
def test_one_changed_measurement_contradicts_a_conclusion(pointer, change, named):
    """Evidence that was changed after the decision no longer gives it."""
    found = replay(altered(CLEAN, pointer, change))
    assert any(line.startswith(named) for line in found), found


@pytest.mark.parametrize("arm", ["preview", "final"])
@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows["nll_sum"].pop(),
        lambda rows: rows["clusters"].pop(),
        lambda rows: rows["window_ids"].__setitem__(1, rows["window_ids"][0]),
        lambda rows: rows["token_counts"].__setitem__(0, 0),
        lambda rows: rows["token_counts"].__setitem__(0, -144),
        lambda rows: rows["token_counts"].__setitem__(0, 144.5),
    ],
)
def test_impossible_windows_are_refused(arm, change):
    """Columns of different lengths, a window twice, token counts that count nothing."""
    document = copy.deepcopy(CLEAN)
    change(document["evaluation_windows"][arm])
    assert any(line.startswith("/evaluation_windows") for line in replay(document))


def test_a_flag_without_evidence_is_named():
    """A flag that this version cannot know is not believed, even if no gate asks for it."""
    found = replay(altered(CLEAN, "/validation", lambda v: {**v, "moe_identity_ok": True}))
    assert any("moe_identity_ok" in line for line in found)


def test_a_missing_flag_is_named():
    """A flag that is left out is not one that holds."""
    document = copy.deepcopy(CLEAN)
    del document["validation"]["spectral_stable"]
    assert any(line.startswith("/validation/spectral_stable") for line in replay(document))


def test_an_unknown_tier_is_refused():
    """Thresholds that do not exist judge nothing."""
    assert replay(altered(CLEAN, "/auto/tier", "lenient")) != []


def test_another_estimator_is_refused():
    """Statistics of another definition are not comparable."""
    found = replay(altered(CLEAN, "/spectral/measurement_contract/estimator/type", "power"))
    assert any(line.startswith("/spectral/measurement_contract") for line in found)


def test_a_whitewashed_collapse_is_found():
    """Every conclusion changed together, the evidence kept: the decision does not hold."""
    document = copy.deepcopy(COLLAPSED)
    document["spectral"] |= {"passed": True, "decision": "allow", "status": "stable"}
    document["spectral"] |= {"caps_applied": 0, "fatal_violations": 0, "violations": []}
    document["validation"]["spectral_stable"] = True
    assert len(replay(document)) >= 6


def test_a_rejection_cannot_be_turned_into_a_pass():
    """No evidence, no flag."""
    found = replay(altered(make_rejected(), "/validation/primary_metric_acceptable", True))
    assert any(line.startswith("/validation/primary_metric_acceptable") for line in found)


def test_true_is_not_one():
    """A flag has to be a boolean."""
    found = replay(altered(CLEAN, "/validation/spectral_stable", 1))
    assert any(line.startswith("/validation/spectral_stable") for line in found)


def test_the_tolerance_is_the_callers():
    """What a wide tolerance allows, the default does not."""
    document = altered(CLEAN, "/primary_metric/ratio_vs_baseline", slightly)
    assert replay(document, tolerance=1e-6) == []
    assert replay(document) != []


# --- garbage --------------------------------------------------------------------------------


def pointers(value, prefix="") -> Iterator[str]:
    """Every place of a document, with the first two entries of each list."""
    items = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list):
        items = list(enumerate(value))[:2]
    for key, inner in items:
        yield f"{prefix}/{key}"
        yield from pointers(inner, f"{prefix}/{key}")


PLACES = sorted(
    p
    for p in pointers(CAPPED)
    if p.split("/")[1]
    in ("auto", "baseline_ref", "context", "evaluation_windows", "invariants", "spectral")
    or p.split("/")[1] in ("primary_metric", "validation")
)
GARBAGE = [None, True, -1, 0, 1e308, 10**400, "", "x", [], [None], {}, {"a": []}, [[1]], math.inf]


def survives(document):
    """The replay gives lines, whatever it was given."""
    found = replay(document)
    assert isinstance(found, list)
    assert all(isinstance(line, str) and line for line in found)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.sampled_from(PLACES), st.sampled_from(GARBAGE))
def test_garbage_in_one_place_never_raises(pointer, value):
    """Any value of any type in any place the replay reads."""
    survives(altered(CAPPED, pointer, lambda _: value))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.sampled_from(PLACES))
def test_a_missing_place_never_raises(pointer):
    """Any key or entry left out."""
    document = copy.deepcopy(CAPPED)
    parent, key = at(document, pointer)
    del parent[key]
    survives(document)


@pytest.mark.parametrize("section", sorted({p.split("/")[1] for p in PLACES}))
@pytest.mark.parametrize("value", [[], "x", None, 3], ids=repr)
def test_a_section_of_another_type_never_raises(section, value):
    """A whole section that is a list, a word, nothing or a number."""
    survives(altered(CLEAN, f"/{section}", lambda _: value))


@pytest.mark.parametrize("document", [{}, {"auto": {}}, {"evaluation_windows": []}])
def test_what_is_no_report_never_raises(document):
    """Nothing to read is a line, not an exception."""
    assert replay(document) != []
