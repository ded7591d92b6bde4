"""Rendered reports: the same facts in HTML and Markdown, harmless, self-contained, repeatable."""

from __future__ import annotations

import copy
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from report_factory import make_crashed, make_rejected, make_report

from invarlock.cli import main
from invarlock.reporting import figures
from invarlock.reporting.checks import checks, visible
from invarlock.reporting.render import (
    escape_markdown,
    explain,
    render_report_html,
    render_report_markdown,
)

DOWN = "model.layers.1.mlp.down_proj.weight"
CLEAN = make_report("quant_8bit_clean", 1.004)
HARMFUL = make_report("prune_50pct_stress", 1.6)
DEGENERATE = make_report("rank1_projection", 1.09, rank={DOWN: 0.05}, scale={DOWN: 0.6})
INCONCLUSIVE = make_report("custom", 1.1005)
REJECTED = make_rejected()
CASES = {
    "PASS": CLEAN,
    "FAIL": HARMFUL,
    "INCONCLUSIVE": INCONCLUSIVE,
    "REJECTED": REJECTED,
    "NOT MEASURED": make_crashed(),
}
VOID = {"meta", "path", "br", "link"}
HOSTILE = "</title><script>alert(1)</script> | `x` [a](http://evil.example) \u202e\x1b[31m\n# h"


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that tags nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        """Attributes of every element of a kind."""
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.mark.parametrize(("verdict", "report"), CASES.items())
def test_verdict_word(verdict: str, report: dict[str, Any]) -> None:
    """Every kind of report renders, and both forms and the explanation open with its verdict."""
    html, markdown = render_report_html(report), render_report_markdown(report)
    assert f'<p class="word">{verdict}</p>' in html
    assert f"**{verdict}**" in markdown
    assert explain(report).startswith(f"{verdict}: ")


@pytest.mark.parametrize("report", CASES.values(), ids=CASES)
def test_page_is_self_contained(report: dict[str, Any]) -> None:
    """No script, no outside reference, and a policy that would forbid both."""
    html = render_report_html(report)
    page = Page(html)
    assert not {"script", "link", "iframe", "img", "object"} & {tag for tag, _ in page.tags}
    for _, attrs in page.tags:
        assert not any(name.startswith("on") or name == "style" for name in attrs)
        assert all(str(attrs.get(k, "#")).startswith("#") for k in ("href", "src"))
    assert "url(" not in html
    assert "@import" not in html
    policies = [m["content"] for m in page.named("meta") if "http-equiv" in m]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]
    assert len(html) < 150_000


@pytest.mark.parametrize("report", CASES.values(), ids=CASES)
def test_page_is_accessible(report: dict[str, Any]) -> None:
    """Language, one h1, scoped table headers, captions, and pictures that are described."""
    page = Page(render_report_html(report))
    assert page.named("html") == [{"lang": "en"}]
    assert len(page.named("h1")) == 1
    assert all(attrs.get("scope") in ("row", "col") for attrs in page.named("th"))
    assert len(page.named("caption")) == len(page.named("table"))
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    for attrs in page.named("svg"):
        assert attrs["role"] == "img"
        assert set(str(attrs["aria-labelledby"]).split()) <= set(ids)
    targets = {str(a["href"])[1:] for a in page.named("a")}
    assert targets <= set(ids)


def test_dashboard_says_what_was_not_evaluated() -> None:
    """RMT, variance, tail and overhead are in the dashboard as not evaluated, never as passed."""
    found = {c.name: c.status for c in checks(CLEAN)}
    left_out = ("RMT (activations)", "Variance", "Tail of the differences", "Guard overhead")
    assert [found[name] for name in left_out] == ["not evaluated"] * 4
    markdown = render_report_markdown(CLEAN)
    for name in left_out:
        assert f"| {name} | not evaluated |" in markdown


def test_rejected_subject_was_not_measured() -> None:
    """What could not be measured on a rejected subject is neither passed nor failed."""
    found = {c.name: c.status for c in checks(REJECTED)}
    assert found["Primary metric"] == "not measured"
    assert found["Spectral (weights)"] == "not measured"
    assert found["Invariants"] == "fail"
    assert "<svg" not in render_report_html(REJECTED)


def test_numbers_are_those_of_the_report() -> None:
    """The ratio, its interval, the limit and the windows needed are printed as recorded."""
    metric = INCONCLUSIVE["primary_metric"]
    text = explain(INCONCLUSIVE)
    low, high = metric["display_ci"]
    assert f"ratio {metric['ratio_vs_baseline']:.4f}, 95 % interval {low:.4f} to {high:.4f}" in text
    assert f"upper bound at most {metric['limit']:.4f}" in text
    assert f"about {metric['windows_needed']} final windows" in text


def test_explain_names_the_gate_and_the_distance() -> None:
    """A failure names its gate, the module and how far it is from the threshold."""
    harm, rank = explain(HARMFUL), explain(DEGENERATE)
    low = HARMFUL["primary_metric"]["display_ci"][0] - HARMFUL["primary_metric"]["limit"]
    assert f"the whole interval is above the limit, by {low:.4f} or more" in harm
    assert f"{DOWN}: stable rank is 0.0500 of the baseline's, fatal below 0.25" in rank
    assert "Primary metric: pass" in rank


def test_window_picture() -> None:
    """One dot a window, and the mean line is the logarithm of the ratio."""
    differences = figures.window_differences(HARMFUL)
    assert figures.weighted_mean(differences) == pytest.approx(math.log(1.6))
    plot = figures.windows_plot(differences, HARMFUL["primary_metric"]["limit"])
    assert plot is not None
    assert len(plot.marks) == len(HARMFUL["evaluation_windows"]["final"]["window_ids"])
    assert [level.label for level in plot.levels] == [
        f"mean {math.log(1.6):+.4f}",
        f"limit {math.log(1.102):+.4f}",
    ]
    assert plot.levels[0].y < plot.levels[1].y  # the mean is drawn above the limit


def test_many_windows_are_aggregated() -> None:
    """Thousands of windows are drawn as at most 400 quantiles."""
    many = [figures.WindowDifference(f"{i}", "d", 100.0, i / 1000) for i in range(5000)]
    plot = figures.windows_plot(many, 1.1)
    assert plot is not None
    assert len(plot.marks) == figures.MAX_DOTS
    assert "5000 windows" in plot.description


def test_spectral_picture() -> None:
    """One mark a module; the one beyond the cap is marked as such, by shape of line and words."""
    changes = figures.module_changes(DEGENERATE)
    assert changes[0].name == DOWN
    assert changes[0].log_ratio == pytest.approx(math.log(0.6))
    plot = figures.spectral_plot(changes, DEGENERATE["spectral"]["deadband"])
    assert plot is not None
    assert len(plot.marks) == len(DEGENERATE["spectral"]["modules"]["name"])
    assert [m.style for m in plot.marks].count("beyond") == 1
    assert {level.label for level in plot.levels} == {"cap +0.0953", "cap -0.0953"}


@pytest.mark.parametrize("ratio", [0.0, 1e-30, 1e30])
def test_extreme_modules_stay_in_the_picture(ratio: float) -> None:
    """A vanished or exploded matrix is drawn inside the frame."""
    report = make_report("x", 1.01, scale={DOWN: ratio})
    plot = figures.spectral_plot(figures.module_changes(report), 0.1)
    assert plot is not None
    tops = [float(re.match(r"M[\d.-]+ ([\d.-]+)", m.path).group(1)) for m in plot.marks]  # type: ignore[union-attr]
    assert all(0 <= top <= figures.HEIGHT for top in tops)


def hostile() -> dict[str, Any]:
    """A rejected report whose every free text is an attack."""
    report = copy.deepcopy(REJECTED)
    report["meta"]["model_id"] = report["edit"]["scenario"] = HOSTILE
    report["dataset"]["provider"] = report["auto"]["tier"] = HOSTILE
    report["invariants"]["failures"][0]["message"] = HOSTILE
    return report


def test_hostile_names_in_html() -> None:
    """Names from a report cannot open a tag, leave an attribute or hide themselves."""
    html = render_report_html(hostile())
    page = Page(html)
    assert "script" not in {tag for tag, _ in page.tags}
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)" in html
    assert "\u202e" not in html
    assert "\x1b" not in html


def test_hostile_names_in_markdown() -> None:
    """Names from a report make no HTML, link, code, table cell or heading."""
    from markdown_it import MarkdownIt

    text = render_report_markdown(hostile())
    assert "\x1b" not in text
    assert "\u202e" not in text
    html = MarkdownIt("commonmark", {"html": True, "linkify": False}).enable("table").render(text)
    page = Page(html.replace("<hr />", ""))
    assert not {"script", "a", "code", "img"} & {tag for tag, _ in page.tags}
    assert [t for t, _ in page.tags].count("h1") == 1
    assert "alert(1)</script>" in "".join(page.text)


def test_hostile_names_in_explain() -> None:
    """The explanation holds no control characters but its line ends."""
    assert all(c.isprintable() or c == "\n" for c in explain(hostile()))


def test_markdown_keeps_plain_names() -> None:
    """Ordinary names stay readable; only what Markdown would interpret is escaped."""
    assert escape_markdown("quant_8bit_clean 1.5 %") == "quant_8bit_clean 1.5 %"
    assert escape_markdown("_a_ *b* |") == "\\_a\\_ \\*b\\* \\|"
    assert visible("a\u200bb\nc") == "a\\u200bb\\u000ac"


@pytest.mark.parametrize("report", CASES.values(), ids=CASES)
def test_same_bytes(report: dict[str, Any]) -> None:
    """Rendering twice, and rendering a re-read copy, gives the same bytes."""
    again = json.loads(json.dumps(report, sort_keys=True))
    assert render_report_html(report) == render_report_html(again)
    assert render_report_markdown(report) == render_report_markdown(again)


def test_without_css() -> None:
    """Without its style sheet the page has no style at all and the same content."""
    plain, styled = (
        Page(render_report_html(CLEAN, embed_css=False)),
        Page(render_report_html(CLEAN)),
    )
    assert not plain.named("style")
    assert "".join(plain.text).split() == "".join(styled.text).split()


@pytest.mark.parametrize(
    "words",
    [
        ["report", "--format", "markdown"],
        ["report", "--format", "json"],
        ["report", "--format", "report"],
        ["report", "html"],
        ["report", "html", "--no-embed-css"],
        ["report", "explain"],
    ],
)
def test_command(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each form prints, writes the same to a file, and overwrites only with --force."""
    source, target = tmp_path / "evaluation.report.json", tmp_path / "out"
    source.write_text(json.dumps(CLEAN))
    argv = [*words, "--report", str(source)]
    assert main(argv) == 0
    printed = capsys.readouterr().out
    assert main([*argv, "--out", str(target)]) == 0
    assert target.read_text() == printed
    target.write_text("mine")
    assert main([*argv, "--out", str(target)]) == 2
    assert "--force" in capsys.readouterr().err
    assert target.read_text() == "mine"
    assert main([*argv, "--out", str(target), "--force"]) == 0
    assert target.read_text() == printed


@pytest.mark.parametrize("content", ["{", "[]", '{"schema_version": "v2"}', "{}"])
def test_command_refuses_other_files(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that is no evaluation report is one line, exit 3, and nothing is written."""
    source, target = tmp_path / "x.json", tmp_path / "out"
    source.write_text(content)
    assert main(["report", "html", "--report", str(source), "--out", str(target)]) == 3
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert str(source) in line
    assert not target.exists()
