"""Every leaf of a report is held to its evidence, or is on the list of what is only believed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import leaves
import report_factory as factory
from pack_factory import Document
from test_replay_guards import EXCHANGED, FULL, accuracy, mixture

from invarlock.reporting.replay import BELIEVED, NOT_RUN, believed, replay


def pattern(report: Document, place: leaves.Place) -> str:
    """A pointer whatever the row; of windows also the metric, which looks at its own columns."""
    kind = report["primary_metric"]["kind"] if place[0] == "evaluation_windows" else ""
    return kind + re.sub(r"/\d+", "/0", leaves.pointer(place))


def test_every_leaf_counts_or_is_said_to_be_believed() -> None:
    """Reports with every block; of those after the first, the leaves that are new in them. No
    entry of the list stands for a member whose change is noticed."""
    seen: set[str] = set()
    open_: list[str] = []
    reports = [FULL, EXCHANGED, accuracy(), mixture()]
    reports += [factory.make_rejected(), factory.make_crashed()]
    for report in reports:
        assert replay(report) == []
        rejected = not report["evaluation_windows"]["final"]["window_ids"]
        places = [p for p in leaves.leaves(report) if rejected or pattern(report, p) not in seen]
        seen |= {pattern(report, p) for p in places}
        open_ += [leaves.pointer(p) for p in places if not replay(leaves.changed(report, p))]
    assert [where for where in open_ if not leaves.believed(where)] == []
    entries = {p for pointers in BELIEVED.values() for p in pointers}
    assert {p for p in entries if not any(leaves.names(p, where) for where in open_)} == set()
    assert len(seen) > 500


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
    for report in (FULL, EXCHANGED, mixture(), accuracy()):
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


def test_what_stands_for_generated_text_is_refused() -> None:
    """A report of teacher-forced losses cannot say that text was generated, of other text, by
    other lints than those of its gates."""
    for path, value in (
        ("evaluation_realism/metric_is_generation_realistic", True),
        ("evaluation_realism/proxy_metric_warning", "text was generated"),
        ("dataset/provider", "wikitext"),
        ("dataset/source/name", "wikitext"),
        ("meta/model_profile/cert_lints", []),
        ("meta/model_profile/default_metric", "accuracy"),
        ("report_build/fallback_fields", [{"field": "x"}]),
        ("artifacts/report", "elsewhere.json"),
    ):
        report = factory.plain(FULL)
        *parents, last = path.split("/")
        inner: Document = report
        for part in parents:
            inner = inner[part]
        inner[last] = value
        assert replay(report), path


def test_the_output_names_what_was_only_believed() -> None:
    """The list of the verifier is that of the report's own kinds of evidence."""
    assert NOT_RUN not in believed(FULL)
    assert NOT_RUN in believed(factory.make_rejected())
    assert len(believed(FULL)) >= 6
