"""Every leaf of a report is held to its evidence, or is on the list of what is only believed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import leaves
import pytest
import report_factory as factory
from conftest import Golden
from pack_factory import Document

from invarlock.reporting.replay import BELIEVED, NOT_RUN, believed, replay

FULL, EXCHANGED = factory.make_full(), factory.make_report("exchanged", 1.004, rows=32)
MIXTURE, ACCURACY = factory.make_mixture(), factory.make_accuracy()
EXCERPTED = factory.make_excerpted()
SLICED = factory.make_sliced({"code": 1.14})


def pattern(report: Document, place: leaves.Place) -> str:
    """A pointer whatever the row; of windows also the metric, which looks at its own columns."""
    kind = report["primary_metric"]["kind"] if place[0] == "evaluation_windows" else ""
    return kind + re.sub(r"/\d+", "/0", leaves.pointer(place))


def test_every_leaf_counts_or_is_said_to_be_believed(golden: Golden) -> None:
    """Reports with every block; of those after the first, the leaves that are new in them.

    The golden file lists what is not noticed, so that a check of what is believed elsewhere
    cannot get lost either. No entry of the list stands for a member whose change is noticed.
    """
    seen: set[str] = set()
    open_: list[str] = []
    reports = [FULL, EXCHANGED, ACCURACY, MIXTURE, SLICED]
    reports += [factory.make_timed({}), factory.make_timed(), factory.make_overlaid()]
    reports += [EXCERPTED, factory.make_packed()]
    reports += [factory.make_rejected(), factory.make_crashed()]
    for report in reports:
        assert replay(report) == []
        rejected = not report["evaluation_windows"]["final"]["window_ids"]
        places = [p for p in leaves.leaves(report) if rejected or pattern(report, p) not in seen]
        seen |= {pattern(report, p) for p in places}
        open_ += [leaves.pointer(p) for p in places if not leaves.noticed(report, p)]
    assert [where for where in open_ if not leaves.believed(where)] == []
    entries = {p for pointers in BELIEVED.values() for p in pointers}
    assert {p for p in entries if not any(leaves.names(p, where) for where in open_)} == set()
    assert len(seen) > 500
    rows = {re.sub(r"/\d+", "/*", where) for where in open_}
    golden("believed.txt", "\n".join(sorted(rows)))


def containers(value: object, at: leaves.Place = ()) -> Iterator[leaves.Place]:
    """The places of all objects and lists that hold something, but for the rows of columns."""
    if isinstance(value, dict | list) and value:
        yield at
        rows = value.items() if isinstance(value, dict) else list(enumerate(value))[:1]
        for key, inner in rows:
            yield from containers(inner, (*at, key))


def test_no_container_may_be_emptied_or_hold_more() -> None:
    """Each object has the members that its evidence gives, and no other; no list is shortened."""
    seen: set[str] = set()
    for report in (FULL, EXCHANGED, MIXTURE, ACCURACY, EXCERPTED):
        places = [p for p in containers(report) if p and pattern(report, p) not in seen]
        seen |= {pattern(report, p) for p in places}
        for place in places:
            for change in (lambda inner: inner.clear(), one_more):
                changed = factory.plain(report)
                inner: Any = changed
                for part in place:
                    inner = inner[part]
                change(inner)
                where = leaves.pointer(place)
                more = f"{where}/looks_good" if isinstance(inner, dict) and inner else where
                assert replay(changed) or leaves.believed(more), more
    assert len(seen) > 150


def one_more(inner: Any) -> None:
    """A member that nothing gives, or the last entry once more."""
    if isinstance(inner, dict):
        inner["looks_good"] = True
    else:
        inner.append(inner[-1])


# Other values of the right kind, where the walk only tries one that nothing could be.
OTHERS = {
    "text that was generated": ("evaluation_realism/metric_is_generation_realistic", True),
    "a warning of generated text": ("evaluation_realism/proxy_metric_warning", "was generated"),
    "other text": ("dataset/provider", "wikitext"),
    "other text, as a source": ("dataset/source/name", "wikitext"),
    "no lints": ("meta/model_profile/cert_lints", []),
    "another metric": ("meta/model_profile/default_metric", "accuracy"),
    "a field that was filled in": ("report_build/fallback_fields", [{"field": "x"}]),
    "a stricter tier": ("auto/tier", "conservative"),
    "a looser tier": ("auto/tier", "aggressive"),
    "no tier": ("auto/tier", "none"),
    "no id of a run": ("meta/subject_run_id", None),
    "no preset": ("policy_provenance/preset_sha256", None),
    "another preset": ("policy_provenance/preset_sha256", "f" * 64),
    "a threshold by hand": ("policy_provenance/overrides/0/source", "config"),
    "losses that are not finite": ("evaluation_windows/final/nll_sum/7", None),
    "a window of another document": ("evaluation_windows/final/clusters/7", "doc-59"),
    "a fatal finding": (
        "invariants/failures", [{"type": "x", "severity": "fatal", "message": ""}]),
    "a family that is not its own": ("spectral/modules/family/1", "embed"),
    "a sample twice": ("rmt/calibration/window_ids/1", FULL["rmt"]["calibration"]["window_ids"][0]),
    "a sample of one window": ("rmt/calibration", FULL["rmt"]["calibration"] | {
        "windows": 1, "window_ids": FULL["rmt"]["calibration"]["window_ids"][:1]}),
    "a sample of no token": ("rmt/calibration/tokens", 0),
    "no trial": ("variance/trial", None),
    "a trial on the sample": (
        "variance/trial/window_ids/5", FULL["rmt"]["calibration"]["window_ids"][0]),
    "a trial on what decides": (
        "variance/trial/window_ids/5", FULL["evaluation_windows"]["final"]["window_ids"][0]),
    "another tap": ("variance/tap", "up_proj"),
    "no shift": ("distribution", {
        "evaluated": False, "reason": "lost", "gated": False, "passed": True}),
    "a mean below all": ("distribution/kl/mean", 0.0),
    "a quantile below the mean": ("distribution/kl/p99", 0.0),
    "a largest value beyond the bins": ("distribution/kl/max", 90.0),
    "no mean change": ("distribution/probability_change/mean", 0.0),
    "a quantile beyond its bin": ("distribution/probability_change/q05", 0.5),
    "a shift by no token": ("distribution/top_k", 0),
    "no losses of a bare pass": ("guard_overhead/bare_nll", []),
    "1 for true": ("validation/spectral_stable", 1),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_another_value_of_the_right_kind_is_noticed(name: str) -> None:
    """Of the same type and shape, and not what the evidence gives."""
    path, value = OTHERS[name]
    report = factory.plain(FULL)
    inner: Any = report
    *parents, last = [int(part) if part.isdigit() else part for part in path.split("/")]
    for part in parents:
        inner = inner[part]
    inner[last] = value
    assert replay(report)


def test_the_output_names_what_was_only_believed() -> None:
    """The list of the verifier is that of the report's own kinds of evidence."""
    assert NOT_RUN not in believed(FULL)
    assert NOT_RUN in believed(factory.make_rejected())
    assert len(believed(FULL)) >= 6
