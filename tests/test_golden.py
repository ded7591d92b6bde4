"""Everything that people read, word by word: pages, lines of commands, help, verdicts.

The expected texts lie in tests/golden. After a change of wording
``pytest tests/test_golden.py --update-golden`` writes all of them anew; read the difference.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pack_factory as packs
import pytest
import report_factory as factory
from conftest import GOLDEN, Golden
from page_factory import make_mixture_report
from test_edits_bytes import KERNELS as WITH_KERNELS

from invarlock.cli import COMMANDS, main, parser_of
from invarlock.evidence.readme import Summary, render
from invarlock.files import canonical_json
from invarlock.reporting.render import explain, render_report_html, render_report_markdown
from invarlock.reporting.runtime_manifest import Circumstances, write_runtime_manifest
from invarlock.verdict.records import Evaluation
from invarlock.verdict.text import render_verdict
from invarlock.verdict.verdict import compile_verdict

REPORTS: dict[str, Callable[[], dict[str, Any]]] = {
    "noop": lambda: factory.make_report("noop_clean"),
    "every_block": lambda: make_mixture_report(layers=2),
    "failed_metric": lambda: factory.make_report("prune_50pct_stress", 1.6),
    "failed_guard": lambda: factory.make_report(
        "rank1_projection",
        1.09,
        rank={factory.DOWN + ".weight": 0.05},
        scale={factory.DOWN + ".weight": 0.6},
        edge={factory.DOWN: 1.5},
        spread={factory.DOWN: 0.81},
        gain=0.02,
        rows=32,
    ),
    "rejected": factory.make_rejected,
    "crashed": factory.make_crashed,
    "inconclusive": lambda: factory.make_report("custom", 1.1005),
    "accepted": lambda: factory.make_accepting(("chat_template", "generation_config")),
    "accuracy": factory.make_accuracy,
    "sliced": lambda: factory.make_sliced({"prose": 0.98, "code": 1.14}, kl={"code": 0.3}),
    "not_evaluated": factory.make_unevaluated,
    "excerpted": factory.make_excerpted,
    "packed": factory.make_packed,
}

# Both forms are rendered from one outline; these together show every section and picture.
IN_HTML = ("every_block", "failed_guard", "rejected", "accepted", "accuracy", "excerpted", "packed")


class VisibleText(HTMLParser):
    """The words of a page: a line a block, cells of a row beside each other."""

    CELLS = ("td", "th")
    INLINE = ("a", "span", "strong", "em", "b", "code", "br", *CELLS)

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.hidden = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.hidden = tag == "style"
        self.words.append(" | " if tag in self.CELLS else "" if tag in self.INLINE else "\n")

    def handle_endtag(self, tag: str) -> None:
        self.words.append("" if tag in self.INLINE else "\n")

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.words.append(" ".join(data.split()) or " ")

    def lines(self) -> str:
        """The lines that hold anything."""
        found = (" ".join(line.split()) for line in "".join(self.words).splitlines())
        return "\n".join(line.removeprefix("| ") for line in found if line)


@pytest.mark.parametrize("name", REPORTS)
def test_pages(name: str, golden: Golden) -> None:
    """Both forms of the page of a report, and its explanation."""
    report = REPORTS[name]()
    golden(f"pages/{name}.md", render_report_markdown(report))
    golden(f"pages/{name}.explain.txt", explain(report))
    if name in IN_HTML:
        golden(f"pages/{name}.html.txt", VisibleText(render_report_html(report)).lines())


# --- verdicts -----------------------------------------------------------------------------------


def harmful_clean(evaluations: list[Evaluation]) -> None:
    """A clean edit fails, another evaluation crashes, and one is missing."""
    packs.failed_clean(evaluations)
    del evaluations[2]


def unnoticed(evaluations: list[Evaluation]) -> None:
    """Damage that no guard sees."""
    factory.replace(evaluations, "nan_injection", factory.make_report("nan_injection"))


def too_strong(evaluations: list[Evaluation]) -> None:
    """A probe that its guard sees, and the metric refuses too."""
    loud = {factory.DOWN + ".weight": 1.5}
    factory.replace(evaluations, SUITE[5], factory.make_report(SUITE[5], 1.5, scale=loud))


def accepted(evaluations: list[Evaluation]) -> None:
    """The difference of a clean edit was accepted by name."""
    factory.replace(evaluations, "quant_8bit_clean", factory.make_accepting(("chat_template",)))


def crashed(evaluations: list[Evaluation]) -> None:
    """Nothing was measured."""
    for name in SUITE:
        factory.replace(evaluations, name, None)


SUITE = (*packs.IDS, "spectral_moderate_scale")
SUITES: dict[str, Callable[[list[Evaluation]], None]] = {
    "pass": lambda evaluations: None,
    "fail": harmful_clean,
    "unnoticed": unnoticed,
    "too_strong": too_strong,
    "inconclusive": packs.open_clean,
    "accepted": accepted,
    "everything_crashed": crashed,
}


@pytest.mark.parametrize("name", SUITES)
def test_verdicts(name: str, golden: Golden) -> None:
    """``final_verdict.txt`` of a suite, and the README of its pack, signed and unsigned."""
    evaluations = factory.good_suite("smoke", SUITE)
    expected = [evaluation.key for evaluation in evaluations]
    evaluations.sort(key=lambda e: SUITE.index(e.scenario))
    SUITES[name](evaluations)
    verdict = compile_verdict(factory.manifest("smoke", SUITE), evaluations, expected)
    golden(f"verdicts/{name}.txt", render_verdict(verdict))
    signer = "sha256:" + "5" * 64 if name == "pass" else None
    golden(f"packs/{name}.md", render(Summary(verdict, "low", signer, 1, None)).decode())


# --- commands -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with suites ``good`` and ``bad``, their packs, and single reports."""
    folder = tmp_path_factory.mktemp("place")
    key = packs.new_key(folder / "key.pem")
    for name, change in (("good", None), ("bad", packs.failed_clean), ("open", packs.open_clean)):
        packs.write_suite(folder / name, change=change)
        assert packs.build(folder / name, folder / f"{name}.pack", key=key) == 0
    assert packs.build(folder / "good", folder / "unsigned.pack") == 0
    shutil.copytree(folder / "good.pack", folder / "changed.pack")
    (folder / "changed.pack" / "README.md").write_text("changed")
    for name in ("noop", "failed_metric", "failed_guard", "rejected", "inconclusive", "accepted"):
        path = folder / "reports" / name / "evaluation.report.json"
        path.parent.mkdir(parents=True)
        path.write_bytes(canonical_json(REPORTS[name]()))
        write_runtime_manifest(path, Circumstances(False, False), {})
    forged = REPORTS["failed_metric"]()
    forged["spectral"]["max_caps"] = 99
    packs.write_json(folder / "reports" / "forged.json", forged)
    (folder / "reports" / "text.json").write_text("{")
    return folder


PINNED = ("--expected-fingerprint", "sha256:" + "0" * 64)
LINES: dict[str, Sequence[Sequence[str]]] = {
    "verify": [
        ("verify", "reports/noop"),
        *(("verify", f"reports/{name}") for name in ("failed_metric", "rejected", "inconclusive")),
        ("verify", "reports/noop", "reports/accepted"),
        ("verify", "reports/noop", "--replay", "--runtime-provenance", "host"),
        ("verify", "reports/noop", "--runtime-provenance", "container"),
        ("verify", "reports/noop", "--assurance", "strict"),
        ("verify", "reports/failed_guard", "--warning-policy", "fail"),
        ("verify", "reports/failed_metric", "--profile", "ci"),
        ("verify", "reports/forged.json", "--runtime-provenance", "host"),
        ("verify", "reports/text.json"),
        ("verify", "reports/missing.json"),
    ],
    "gate": [
        *(("gate", suite) for suite in ("good", "bad", "open")),
        *(("gate", f"{suite}.pack") for suite in ("good", "bad", "open")),
        ("gate", "good/reports/final_verdict.json"),
        ("gate", "good.pack", *PINNED),
        ("gate", "unsigned.pack"),
        ("gate", "changed.pack"),
        *(("gate", f"reports/{name}") for name in ("noop", "failed_metric", "failed_guard")),
        *(("gate", f"reports/{name}") for name in ("rejected", "inconclusive", "accepted")),
        ("gate", "reports/forged.json"),
        ("gate", "reports/missing.json"),
    ],
    "evidence-pack": [
        *(
            ("advanced", "evidence-pack", "verify", f"{pack}.pack")
            for pack in ("good", "bad", "open", "unsigned", "changed")
        ),
        ("advanced", "evidence-pack", "verify", "good.pack", *PINNED),
        ("advanced", "evidence-pack", "verify", "missing.pack"),
        ("advanced", "evidence-pack", "inspect", "good.pack"),
        ("advanced", "evidence-pack", "inspect", "changed.pack"),
        ("advanced", "runtime-verify", "--report", "reports/noop/evaluation.report.json",
         "--manifest", "reports/noop/runtime.manifest.json"),
    ],
}  # fmt: skip


def shown(words: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """A command line, what it printed on both streams, and its exit code if it is not 0."""
    try:
        code = main(words)
    except SystemExit as stop:
        code = int(stop.code or 0)
    printed = capsys.readouterr()
    end = f"[exit {code}]\n" if code else ""
    return f"$ invarlock {' '.join(words)}\n{printed.out}{printed.err}{end}"


@pytest.mark.parametrize("name", LINES)
def test_lines_of_verification(
    name: str,
    place: Path,
    golden: Golden,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What the commands print that people judge reports, suites and packs by."""
    monkeypatch.chdir(place)
    capsys.readouterr()
    golden(f"commands/{name}.txt", "\n".join(shown(w, capsys) for w in LINES[name]), place=place)


def test_help(
    golden: Golden, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The help of every command."""
    monkeypatch.setenv("COLUMNS", "10000")  # versions of Python wrap lines differently
    lines = [["--help"], ["advanced", "--help"]]
    for name in COMMANDS:
        lines += [[*name.split(), *words] for words in asking_for_help(name)]
    golden("commands/help.txt", "\n".join(shown(words, capsys) for words in lines))


def asking_for_help(name: str) -> list[list[str]]:
    """The words behind a command that ask it and each of its sub-commands for help."""
    found = [["--help"]]
    for action in parser_of(name)._actions:
        if isinstance(action, argparse._SubParsersAction):
            found += [[word, "--help"] for word in action.choices]
    return found


def test_every_golden_file_has_a_test() -> None:
    """A file whose case is gone goes with it."""
    pages = {f"pages/{name}{end}" for name in REPORTS for end in (".md", ".explain.txt")}
    pages |= {f"pages/{name}.html.txt" for name in IN_HTML}
    suites = {f"{kind}/{name}{end}" for name in SUITES
              for kind, end in (("verdicts", ".txt"), ("packs", ".md"))}  # fmt: skip
    lines = {f"commands/{name}.txt" for name in (*LINES, "help")}
    found = {p.relative_to(GOLDEN).as_posix() for p in GOLDEN.rglob("*") if p.is_file()}
    # of test_leaves.py and test_edits_bytes.py
    others = {"believed.txt", *(f"edits/{edit}.json" for edit in WITH_KERNELS)}
    assert found == pages | suites | lines | others
