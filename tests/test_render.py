"""Rendered reports: the same facts in HTML and Markdown, harmless, self-contained, repeatable."""

from __future__ import annotations

import copy
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from report_factory import make_crashed, make_rejected, make_report

from invarlock.cli import main
from invarlock.pages.wording import visible
from invarlock.reporting.outline import outline
from invarlock.reporting.render import (
    escape_markdown,
    explain,
    render_report_html,
    render_report_markdown,
)

CLEAN = make_report("quant_8bit_clean", 1.004)
HARMFUL = make_report("prune_50pct_stress", 1.6)
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
    assert not {"script", "code", "img"} & {tag for tag, _ in page.tags}
    own = {section.id for section in outline(hostile()).sections}
    links = page.named("a")
    assert {a["id"] for a in links if "id" in a} == own  # where the list of contents leads
    assert {str(a["href"])[1:] for a in links if "href" in a} == own
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
    """Without its style sheet the page links to one beside it and has the same content."""
    plain, styled = (
        Page(render_report_html(CLEAN, embed_css=False)),
        Page(render_report_html(CLEAN)),
    )
    assert not plain.named("style")
    assert plain.named("link") == [{"rel": "stylesheet", "href": "report.css"}]
    assert "".join(plain.text).split() == "".join(styled.text).split()


@pytest.mark.parametrize(
    "words",
    [
        ["report", "--format", "markdown"],
        ["report", "--format", "json"],
        ["report", "--format", "report"],
        ["report", "html"],
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


def test_style_sheet_beside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The style sheet is written beside the page, shared by pages, and replaced only by force."""
    source, styles = tmp_path / "evaluation.report.json", tmp_path / "report.css"
    source.write_text(json.dumps(CLEAN))
    argv = ["report", "html", "--no-embed-css", "--report", str(source)]
    assert main(argv) == 2
    assert "--out" in capsys.readouterr().err
    assert main([*argv, "--out", str(tmp_path / "a.html")]) == 0
    assert main([*argv, "--out", str(tmp_path / "b.html")]) == 0
    assert f"<style>\n{styles.read_text()}" in render_report_html(CLEAN)
    styles.write_text("mine")
    assert main([*argv, "--out", str(tmp_path / "c.html")]) == 2
    assert not (tmp_path / "c.html").exists()
    assert styles.read_text() == "mine"
    assert main([*argv, "--out", str(tmp_path / "c.html"), "--force"]) == 0
    assert styles.read_text() != "mine"


def test_public_function() -> None:
    """The page is had from the package, too."""
    import invarlock.reporting

    assert invarlock.reporting.render_report_html(CLEAN) == render_report_html(CLEAN)


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
