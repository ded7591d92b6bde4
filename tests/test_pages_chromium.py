"""The pages as a browser shows them: nothing overflows, nothing runs, nothing is requested."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import chromium
import pytest
from page_factory import make_mixture_report, make_page_report
from report_factory import (
    make_accuracy,
    make_crashed,
    make_excerpted,
    make_packed,
    make_rejected,
    make_sliced,
)

from invarlock.cli import main
from invarlock.pages.passages import BETTER, WORSE
from invarlock.reporting.render import render_report_html

LONG = "long" * 80
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror="alert(1)">',
    "</title></style><script>alert(1)</script>",
    "{{ 7 * 7 }}{% raw %}&lt;b&gt;",
    "\u202egnp.exe\u2066 \u200b\x1b[31m",
    "line\nbreak\r\n\u2028tail",
    LONG,
)
CHANGES = (0.2, 0.7, 3.0, 0.0, -0.2, -0.7, -3.0)
REPORTS = {
    "clean": make_page_report(),
    "harmful": make_page_report(harm=0.3, ratio=1.6),
    "large": make_page_report(windows=400, layers=500, harm=0.3),
    "mixture": make_mixture_report(layers=16),
    "accuracy": make_accuracy(),
    "excerpts": make_excerpted(),
    "slices": make_sliced({"prose": 0.98, "code": 1.14}, kl={"code": 0.3}),
    "packed": make_packed(),
    "rejected": make_rejected(),
    "crashed": make_crashed(),
}
# A report with every mark of an excerpt; one that was not verified is a page too.
SHADES = copy.deepcopy(REPORTS["harmful"]) | {
    "excerpts": [
        {
            "window_id": "x",
            "tokens": [f" {change}" for change in CHANGES],
            "nll": [max(change, 0.0) for change in CHANGES],
            "baseline_nll": [max(-change, 0.0) for change in CHANGES],
        }
    ]
}
MODULES = {"clean": 138, "large": 1002}
# What is wrong with the layout, as words; empty where nothing is. Half a pixel is rounding.
LAYOUT = """
(() => {
  const wrong = [], page = document.scrollingElement;
  if (page.scrollWidth > page.clientWidth) wrong.push(`page ${page.scrollWidth}`);
  for (const element of document.body.querySelectorAll('*')) {
    const box = element.getBoundingClientRect();
    const scrolls = element.closest('.scroll') && matchMedia('screen').matches;
    if (!scrolls && box.width && (box.right > page.clientWidth + .5 || box.left < -.5))
      wrong.push(`${element.tagName} ${element.textContent.slice(0, 40)}: ${box.right}`);
  }
  for (const svg of document.querySelectorAll('svg')) {
    const frame = svg.getBoundingClientRect();
    const texts = [...svg.querySelectorAll('text')]
      .map(t => [t.textContent, t.getBoundingClientRect()]);
    for (const [text, box] of texts)
      if (box.left < frame.left - .5 || box.right > frame.right + .5
          || box.top < frame.top - .5 || box.bottom > frame.bottom + .5)
        wrong.push(`outside: ${text}`);
    texts.forEach(([text, a], i) => texts.slice(i + 1).forEach(([other, b]) => {
      const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      // a line box is taller than its glyphs
      if (wide > 1 && high > .35 * Math.min(a.height, b.height)) wrong.push(`${text} on ${other}`);
    }));
    for (const path of svg.querySelectorAll('path')) {
      const box = path.getBoundingClientRect();
      if (box.left < frame.left - 1 || box.right > frame.right + 1
          || box.top < frame.top - 1 || box.bottom > frame.bottom + 1)
        wrong.push(`mark outside: ${path.getAttribute('class')} ${path.textContent}`);
    }
  }
  return wrong;
})()
"""

# Kinds of text with too little contrast to what they stand on.
CONTRAST = """
(() => {
  const parts = colour => colour.match(/[\\d.]+/g).map(Number);
  const light = colour => {
    const linear = c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4;
    const [r, g, b] = parts(colour).map(c => linear(c / 255));
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const ground = e => {
    for (; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor;
      if (parts(colour)[3] !== 0) return colour;
    }
    return 'rgb(255, 255, 255)';
  };
  const wrong = new Set();
  const kinds = 'h1, h2, p, a, th, td, span, dt, dd, figcaption, text, caption';
  for (const e of document.querySelectorAll(kinds)) {
    const style = getComputedStyle(e);
    const [a, b] = [light(e.tagName === 'text' ? style.fill : style.color), light(ground(e))];
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5) wrong.add(`${e.tagName}.${e.getAttribute('class')} ${ratio.toFixed(2)}`);
  }
  return [...wrong];
})()
"""


def browser_path() -> str:
    """The browser; without one the tests are skipped, but not where CI is set."""
    path = chromium.find()
    if path is None and not os.environ.get("CI"):
        pytest.skip("no Chromium on PATH (apt-get install chromium); pages are not looked at")
    assert path is not None, "CI is set and there is no Chromium on PATH"
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Browser]:
    """One browser for all tests."""
    found = chromium.Browser(browser_path(), tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


def write(report: dict[str, Any], folder: Path) -> Path:
    """The page of a report as a file."""
    page = folder / "evaluation.html"
    page.write_text(render_report_html(report), encoding="utf-8")
    return page


def hostile() -> dict[str, Any]:
    """A report whose every text a stranger can choose is an attack, modules and windows too."""
    report = copy.deepcopy(REPORTS["harmful"])
    # of another report: a page is made of what was never verified too
    report["excerpts"] = make_excerpted(1.6, HOSTILE)["excerpts"]
    report["excerpts"][0]["tokens"] = ["\u05e9\u05dc\u05d5\u05dd", "Z\u0301\u0302\u0303" * 30] * 80
    everything = " ".join(HOSTILE)
    report["meta"]["execution"] = {
        "title": everything,
        "schemes": {everything: {"bits": 4, "bytes": 1}},
        "backend": everything,
        "versions": {LONG: everything},
        "kernels": {everything: 3},
        "detail": {LONG: LONG},
    }
    report["meta"]["model_id"] = report["edit"]["scenario"] = everything
    report["dataset"]["provider"] = report["auto"]["tier"] = everything
    report["policy_provenance"]["overrides"][0] |= {"path": everything, "source": everything}
    report["telemetry"]["summary_line"] = LONG
    for guard in ("spectral", "rmt", "variance"):
        table = report[guard]["modules"]
        table["name"] = [HOSTILE[i % len(HOSTILE)] + str(i) for i in range(len(table["name"]))]
        table["family"][0] = HOSTILE[0]
    for violation in report["rmt"]["epsilon_violations"]:
        violation["module"] = everything
    final = report["evaluation_windows"]["final"]
    final["clusters"] = [HOSTILE[i % len(HOSTILE)] for i in range(len(final["clusters"]))]
    return report


SIZES = [(1280, "screen"), (375, "screen"), (720, "print")]


@pytest.mark.parametrize(("width", "media"), SIZES)
@pytest.mark.parametrize("name", REPORTS)
def test_nothing_overflows(
    name: str, width: int, media: str, browser: chromium.Browser, tmp_path: Path
) -> None:
    """On a wide screen, on a phone and on paper: nothing sticks out, no two labels overlap.

    The browser asks for the file and for nothing else, and nothing offends its policy.
    """
    page = write(REPORTS[name], tmp_path)
    events = browser.open(page, width, media)
    assert chromium.requests(events) == [page.as_uri()]
    assert [e for e in events if not e["method"].startswith("Network.")] == []
    assert browser.evaluate(f"matchMedia('{media}').matches") is True
    assert browser.evaluate(LAYOUT) == []


def test_layout_check_can_fail(browser: chromium.Browser, tmp_path: Path) -> None:
    """The check of the layout finds a wide element, a label outside and two that overlap."""
    page = tmp_path / "bad.html"
    page.write_text(
        "<div style='width: 3000px'>wide</div><svg viewBox='0 0 100 100' width='100'>"
        "<text x='0' y='50'>first</text><text x='4' y='52'>second</text>"
        "<text x='95' y='90'>outside</text></svg>"
    )
    browser.open(page)
    found = " ".join(browser.evaluate(LAYOUT))
    assert "wide" in found
    assert "first on second" in found
    assert "outside: outside" in found


@pytest.mark.parametrize(("width", "media"), SIZES)
def test_hostile_names(width: int, media: str, browser: chromium.Browser, tmp_path: Path) -> None:
    """Hostile names are text: they make no element, run nothing, ask for nothing, fit the page."""
    events = browser.open(write(hostile(), tmp_path), width, media)
    names = "script, img, b, iframe, object, embed, link, form, audio, video"
    assert browser.evaluate(f"document.querySelectorAll('{names}').length") == 0
    assert [e["method"] for e in events if not e["method"].startswith("Network.")] == []
    assert chromium.requests(events) == [(tmp_path / "evaluation.html").as_uri()]
    text = browser.evaluate("document.body.textContent")
    for shown in (
        *HOSTILE[:4],
        "\\u202egnp.exe\\u2066 \\u200b\\u001b[31m",
        "line\\u000abreak",
        LONG,
    ):
        assert shown in text
    assert browser.evaluate("document.title").count("<script>alert(1)</script>") == 4
    assert browser.evaluate(LAYOUT) == []


def test_network_log_is_empty(tmp_path: Path) -> None:
    """Chromium's own log of the network holds no connection, while a page with an image has one."""
    path = browser_path()
    asked: list[str] = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    loud = tmp_path / "loud.html"
    loud.write_text(f"<img src='{address}/seen.png'>")
    logged = {}
    for page in (write(REPORTS["harmful"], tmp_path), loud):
        log = tmp_path / "net.json"
        found = chromium.Browser(path, tmp_path / page.stem, f"--log-net-log={log}")
        found.open(page)
        found.close()
        logged[page.stem] = chromium.logged_addresses(log)
    server.shutdown()
    server.server_close()
    assert asked == ["/seen.png"]
    assert f"{address}/seen.png" in logged["loud"]
    assert [a for a in logged["evaluation"] if a.startswith(("http", "ws"))] == []


def test_policy_keeps_our_style_and_stops_the_rest(
    browser: chromium.Browser, tmp_path: Path
) -> None:
    """The page's own policy lets its style through and would stop a script and an image."""
    page = write(REPORTS["clean"], tmp_path)
    browser.open(page)
    assert browser.evaluate("getComputedStyle(document.querySelector('nav ul')).display") == "flex"
    planted = "<script>document.title = 'ran'</script><img src='http://127.0.0.1:9/x.png'>"
    page.write_text(page.read_text().replace("</main>", planted + "</main>"))
    events = browser.open(page)
    assert browser.evaluate("document.title") != "ran"
    logged = [e["params"]["entry"]["text"] for e in events if e["method"] == "Log.entryAdded"]
    assert len(logged) == 2
    assert all("Content Security Policy" in text for text in logged)
    failed = [e["params"] for e in events if e["method"] == "Network.loadingFailed"]
    assert [f.get("blockedReason") for f in failed] == ["csp"]


def test_style_sheet_beside_the_page(browser: chromium.Browser, tmp_path: Path) -> None:
    """Without an embedded style sheet the page loads the one that was written beside it."""
    source, page = tmp_path / "evaluation.report.json", tmp_path / "out" / "evaluation.html"
    source.write_text(json.dumps(REPORTS["rejected"]))
    words = ["report", "html", "--no-embed-css", "--report", str(source), "--out", str(page)]
    assert main(words) == 0
    events = browser.open(page)
    assert chromium.requests(events) == [page.as_uri(), (page.parent / "report.css").as_uri()]
    assert browser.evaluate("getComputedStyle(document.querySelector('nav ul')).display") == "flex"
    assert not [e for e in events if e["method"] == "Log.entryAdded"]


def test_prints(browser: chromium.Browser, tmp_path: Path) -> None:
    """The page prints to a PDF of a few pages, on white, without its navigation."""
    browser.open(write(REPORTS["harmful"], tmp_path), 720, "print")
    assert browser.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert (
        browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    )
    assert 4 <= len(browser.pdf_pages()) <= 20


MARKS = """
Object.fromEntries([...document.querySelectorAll('.passage span')].map(e => {
  const s = getComputedStyle(e);
  return [e.className, [s.backgroundColor, s.borderBottomStyle, s.borderBottomWidth, e.title]];
}))
"""


@pytest.mark.parametrize("media", ["screen", "print"])
def test_marks_differ_without_their_colour(
    media: str, browser: chromium.Browser, tmp_path: Path
) -> None:
    """Each step of worse and better has a line of its own, on paper too, and says its number."""
    browser.open(write(SHADES, tmp_path), 720, media)
    found = browser.evaluate(MARKS)
    assert set(found) == {*WORSE, *BETTER}
    lines = {name: (style, width) for name, (_, style, width, _) in found.items()}
    assert len({*lines.values()}) == 6
    assert {lines[name][0] for name in WORSE} == {"solid"}
    assert {lines[name][0] for name in BETTER} == {"dotted"}
    assert all(title.endswith(" nats") for *_, title in found.values())


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(scheme: str, browser: chromium.Browser, tmp_path: Path) -> None:
    """All text has the contrast of WCAG AA, 4.5 to 1, on light and on dark ground."""
    browser.open(write(SHADES, tmp_path))
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.call("Emulation.setEmulatedMedia", features=[feature])
    assert browser.evaluate(f"matchMedia('(prefers-color-scheme: {scheme})').matches") is True
    assert browser.evaluate(CONTRAST) == []


@pytest.mark.parametrize("name", MODULES)
def test_size(name: str) -> None:
    """A page of 274 modules, and one of 400 windows and 2,002 modules, stay below 1 MB."""
    assert len(REPORTS[name]["rmt"]["modules"]["name"]) == MODULES[name]
    assert len(render_report_html(REPORTS[name]).encode()) < 1_000_000
