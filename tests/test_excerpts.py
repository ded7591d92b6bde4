"""Excerpts of a report: what its evidence has to say of them, and how a page shows them."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
import report_factory as factory
from report_factory import Document

from invarlock.contracts import violations
from invarlock.evidence.report_verify import ReportOptions, verify_report
from invarlock.metrics import excerpts
from invarlock.pages.passages import PART, passage, style_of
from invarlock.reporting.outline import outline
from invarlock.reporting.render import render_report_html, render_report_markdown
from invarlock.reporting.replay import believed, replay

REPORT = factory.make_excerpted()
TEXTS = "texts of the tokens in excerpts, and how the loss of a window lies on them"


def other_token(found: list[Document]) -> None:
    found[1]["nll"][7] += 0.001


def other_baseline(found: list[Document]) -> None:
    found[3]["baseline_nll"][0] *= 1.01


def other_rest(found: list[Document]) -> None:
    found[0]["rest"]["nll"] += 1e-5


def no_rest(found: list[Document]) -> None:
    del found[0]["rest"]


def other_order(found: list[Document]) -> None:
    found[0], found[1] = found[1], found[0]


def one_less(found: list[Document]) -> None:
    del found[3]


def one_twice(found: list[Document]) -> None:
    found[3] = copy.deepcopy(found[0])


def harmless_window(found: list[Document]) -> None:
    final = REPORT["evaluation_windows"]["final"]
    change = [m - b for m, b in zip(final["nll_sum"], final["baseline_nll_sum"], strict=True)]
    mildest = final["window_ids"][change.index(min(change))]
    found[3] = factory.excerpt(final, mildest, factory.WORDS, excerpts.TOKENS)


def fewer_tokens(found: list[Document]) -> None:
    for column in ("tokens", "nll", "baseline_nll"):
        del found[0][column][-1]


def more_texts(found: list[Document]) -> None:
    del found[0]["tokens"][-1]


def far_start(found: list[Document]) -> None:
    found[0]["before"] = 41  # only 40 tokens are not shown


def too_large(found: list[Document]) -> None:
    found[0]["nll"][0] = 1e300


TAMPERED = (
    *(other_token, other_baseline, other_rest, no_rest, other_order, one_less, one_twice),
    *(harmless_window, fewer_tokens, more_texts, far_start, too_large),
)


def test_an_honest_report_replays_and_says_what_is_believed() -> None:
    """The texts are believed; a report without excerpts has nothing of the kind to believe."""
    assert violations(REPORT, "evaluation-report") == []
    assert replay(REPORT) == []
    assert TEXTS in believed(REPORT)
    without = {k: v for k, v in REPORT.items() if k != "excerpts"}
    assert replay(without) == []
    assert TEXTS not in believed(without)


@pytest.mark.parametrize("tamper", TAMPERED, ids=lambda tamper: tamper.__name__)
def test_tampered_excerpts_are_found(tamper: Callable[[list[Document]], None]) -> None:
    """Other losses, other windows, and tokens that the window does not have."""
    report = copy.deepcopy(REPORT)
    tamper(report["excerpts"])
    assert [line for line in replay(report) if line.startswith("/excerpts")]


def test_no_excerpts_of_what_records_no_losses_of_tokens() -> None:
    """Records, runs apart, and a subject that was not run."""
    for report in (factory.make_accuracy(), factory.make_rejected()):
        report["excerpts"] = copy.deepcopy(REPORT["excerpts"])
        assert [line for line in replay(report) if line.startswith("/excerpts")]
    apart = copy.deepcopy(REPORT)
    apart["context"]["runs"] = "separate"
    assert [line for line in replay(apart) if line.startswith("/excerpts")]


def many(found: list[Document]) -> None:
    found += [found[0]] * 996


def a_million_tokens(found: list[Document]) -> None:
    found[0]["tokens"] = [""] * 1_000_000


def a_million_losses(found: list[Document]) -> None:
    found[0]["nll"] = [0.0] * 1_000_000


def a_long_token(found: list[Document]) -> None:
    found[0]["tokens"][0] = "x" * 65


def a_number_for_a_text(found: list[Document]) -> None:
    found[0]["tokens"][0] = 7


def a_lost_loss(found: list[Document]) -> None:
    found[0]["nll"][0] = None


def a_gain(found: list[Document]) -> None:
    found[0]["nll"][0] = -0.1


def another_member(found: list[Document]) -> None:
    found[0]["html"] = "<script>"


BEYOND = (many, a_million_tokens, a_million_losses, a_long_token, a_number_for_a_text, a_lost_loss,
          a_gain, another_member)  # fmt: skip


@pytest.mark.parametrize("change", BEYOND, ids=lambda change: change.__name__)
def test_the_contract_bounds_excerpts(change: Callable[[list[Document]], None]) -> None:
    """Such a report is malformed: nothing of it is replayed."""
    report = copy.deepcopy(REPORT)
    change(report["excerpts"])
    assert violations(report, "evaluation-report")


@pytest.mark.parametrize("text", ["NaN", "Infinity", '"\\ud800"', "1e999"])
def test_what_is_no_number_and_no_text_is_malformed(text: str) -> None:
    """Half a surrogate pair and numbers that JSON does not have."""
    report = copy.deepcopy(REPORT)
    column = "tokens" if text.startswith('"') else "nll"
    report["excerpts"][0][column][0] = "MARK"
    data = json.dumps(report).replace('"MARK"', text).encode()
    found = verify_report(data, None, "report", ReportOptions())
    assert (found.reason, found.exit_code("dev")) == ("malformed", 2)


def test_a_page_of_a_report_that_was_not_verified_is_bounded() -> None:
    """Whoever renders a report that breaks its contract gets a page of the usual size."""
    report = copy.deepcopy(REPORT)
    report["excerpts"] = copy.deepcopy(report["excerpts"][:2]) + report["excerpts"] * 500
    for one in report["excerpts"][:2]:
        one["tokens"], one["nll"], one["baseline_nll"] = (["x" * 500] * 5000, [9.0] * 5000,
                                                          [1.0] * 5000)  # fmt: skip
    usual, found = len(render_report_html(REPORT)), len(render_report_html(report))
    assert found < usual + 100_000
    for broken in ("text", [1], [{"tokens": 3}], [{"tokens": ["a"], "nll": [None]}], {}):
        assert render_report_html(report | {"excerpts": broken})


# --- the stretch and the windows ----------------------------------------------------------------


def test_the_stretch_is_the_one_that_lost_most() -> None:
    """By brute force, the first of equals; a window that is short enough is whole."""
    change = [((i * 7919) % 101 - 50) / 10 for i in range(400)]
    sums = [sum(change[i : i + excerpts.TOKENS]) for i in range(401 - excerpts.TOKENS)]
    assert excerpts.stretch(change) == max(range(len(sums)), key=lambda i: (sums[i], -i))
    assert excerpts.stretch([1.0] * 300) == 0
    assert excerpts.stretch([-1.0, 2.0]) == 0


def test_the_worst_windows_are_those_that_lost() -> None:
    """By loss per token; what did not lose or has no finite loss is none."""
    final: dict[str, Any] = {
        "window_ids": ["a", "b", "c", "d", "e", "f", "g"],
        "clusters": ["x"] * 7,
        "token_counts": [10, 100, 10, 10, 10, 10, 10],
        "nll_sum": [11.0, 120.0, 9.0, None, 15.0, 11.0, 10.5],
        "baseline_nll_sum": [10.0, 100.0, 10.0, 10.0, 10.0, 10.0, 10.0],
    }
    assert excerpts.worst(final) == ["e", "b", "a", "f"]


# --- the page -------------------------------------------------------------------------------------


def test_marks_follow_the_change() -> None:
    """Better and worse have marks of their own, in three steps; others are joined."""
    assert [style_of(v) for v in (0.0, 0.09, 0.1, 0.5, 2.0, -0.1, -0.6, -9.0)] == [
        "", "", "worse-1", "worse-2", "worse-3", "better-1", "better-2", "better-3",
    ]  # fmt: skip
    found = passage("x", ["a", "b", "c\n d", "", "e"], [0.0, 0.01, -0.7, 3.0, 0.0])
    assert [(m.text, m.style, m.ends_line) for m in found.marks] == [
        ("ab", "", False),
        ("c↵", "better-2", True),
        (" d", "better-2", False),
        (PART, "worse-3", False),
        ("e", "", False),
    ]
    assert found.marks[1].words == "-0.70 nats"


def test_the_page_shows_each_excerpt_with_its_numbers() -> None:
    """As marked text, and as a table of the tokens that lost most, which needs no colour."""
    html = render_report_html(REPORT)
    one = REPORT["excerpts"][0]
    changes = [m - b for m, b in zip(one["nll"], one["baseline_nll"], strict=True)]
    marked = sum(abs(change) >= 0.1 for change in changes)
    first = html.partition('<p class="passage"')[2].partition("</p>")[0]
    titles = re.findall(r'title="([+-][0-9.]+) nats"', first)
    lines = sum("\n" in t and abs(c) >= 0.1 for t, c in zip(one["tokens"], changes, strict=True))
    assert len(titles) == marked + lines
    assert f"{max(changes):+.2f}" in titles
    section = next(s for s in outline(REPORT).sections if s.id == "where")
    assert [row[3] for row in section.tables[0].rows] == [
        f"{change:+.2f}" for change in sorted(changes, reverse=True)[:5]
    ]
    final = REPORT["evaluation_windows"]["final"]
    document = dict(zip(final["window_ids"], final["clusters"], strict=True))
    assert document[one["window_id"]] in section.passages[0].caption
    assert "160 tokens, after 3 others" in section.passages[0].caption


def test_both_forms_escape_what_a_token_says() -> None:
    """Markup, controls, overrides of direction and links in a token stay text."""
    texts = (
        "<b>x</b>",
        "\u202egnp",
        "\x1b[31m",
        "[a](http://x)",
        "| b",
        "`c`",
        "{{ 7 }}",
        "\u2028",
    )
    report = factory.make_excerpted(1.6, texts)
    html, markdown = render_report_html(report), render_report_markdown(report)
    for page in (html, markdown):
        assert not any(c in page for c in "\u202e\x1b\u2028")
    assert "<b>x</b>" not in html
    assert "&lt;b&gt;x&lt;/b&gt;" in html
    assert "\\<b\\>x" in markdown
    assert "](http://x)" not in markdown
    assert replay(report) == []
