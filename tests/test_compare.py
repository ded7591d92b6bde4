"""`invarlock compare`: started as a user starts it, on a tiny model."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import warm
from checkpoint_factory import make_llama
from hypothesis import given
from hypothesis import strategies as st
from measuring_factory import change, documents
from repository_copy import ROOT, quiet_environment

from invarlock.cli import main
from invarlock.cli.compare_display import Display, Stage
from invarlock.cli.comparison import QUICK, answer
from invarlock.cli.gate import CODES
from invarlock.errors import InputError
from invarlock.metrics.kinds import ASKED, METRICS
from invarlock.policy import load_policy, tier_names
from invarlock.progress import Progress
from invarlock.reporting.outcome import FAIL, INCONCLUSIVE, PASS
from invarlock.run.kept_baselines import LISTING, KeptBaselines

WORDS = ("--threads", "1", "--device", "cpu", "--text", "text.jsonl")


@dataclass
class Desk:
    """A working folder of a user: models, a text, a key, and a cache of its own."""

    root: Path
    cache: str = "cache"
    running: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(
        self, *words: str, cache: str = "", stderr: int = subprocess.PIPE, python: str = ""
    ) -> subprocess.Popen[str]:
        """Start a comparison in the folder, forked unless a Python is named."""
        home = {"XDG_CACHE_HOME": str(self.root / (cache or self.cache))}
        command = [python or warm.python(), "-m", "invarlock", "compare", *words]
        found = quiet_environment() | home | {"PYTHONPATH": str(ROOT)}
        return subprocess.Popen(
            command, cwd=self.root, env=found, text=True,
            stdout=subprocess.PIPE, stderr=stderr, start_new_session=True,
            # a shell that runs tests in the background lets its children ignore it
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
        )  # fmt: skip

    def compare(self, *words: str, cache: str = "") -> tuple[int, str, str]:
        """Exit code, standard output and standard error of a comparison."""
        process = self.start(*words, cache=cache)
        out, err = process.communicate()
        return process.returncode, out, err

    def json(self, *words: str, cache: str = "") -> dict:
        """The one object that a comparison prints."""
        code, out, _ = self.compare(*words, *WORDS, "--json", cache=cache)
        document = json.loads(out)
        assert document["exit_code"] == code
        return document


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A baseline, an edit that is harmless, one that is not, and a text."""
    root = tmp_path_factory.mktemp("desk")
    make_llama(root / "base", hidden=32, seed=1)
    rows = (json.dumps({"text": text}) for text in documents())
    (root / "text.jsonl").write_text("\n".join(rows) + "\n")
    words = ["edit", "--baseline", str(root / "base"), "--spec", "quant_rtn:8:32:all"]
    assert main([*words, "--out", str(root / "good"), "--metadata", str(root / "good.json")]) == 0

    def edit(tensors):  # surer of everything, and no more often right
        tensors["model.norm.weight"] *= 8

    change(shutil.copytree(root / "base", root / "bad"), edit)
    odd = shutil.copytree(root / "good", root / "odd") / "config.json"
    settings = json.loads(odd.read_text())
    settings["rope_parameters"] = {"rope_type": "of-tomorrow", "rope_theta": 10000.0}
    odd.write_text(json.dumps(settings))
    assert main(["keygen", str(root / "key.pem")]) == 0
    return Desk(root)


@pytest.fixture(scope="module")
def first(desk):
    """The first subject of the baseline, in a new folder, with a signed pack."""
    code, out, err = desk.compare("base", "good", *WORDS, "--pack", "key.pem")
    assert code == 0, err
    return out, err


# --- from two folders to a verdict ---------------------------------------------------------------


def test_the_first_command_answers_with_a_verdict_a_page_and_a_report(desk, first):
    """In a folder named after the subject; on standard error a line a stage."""
    out, err = first
    folder = desk.root / "compare-good"
    assert out.startswith("PASS: good against base, tier balanced\n")
    ratio = re.search(r"ratio +(\S+) \[(\S+), (\S+)\], limit 1.1", out)
    assert ratio, out
    assert float(ratio[2]) <= float(ratio[1]) <= float(ratio[3])
    for row in ("why", "guards", "judged", "page", "report", "pack", "next"):
        assert re.search(rf"^  {row} ", out, re.M), row
    stages = [re.sub(r"[0-9,]+", "N", line) for line in err.splitlines()]
    assert stages == [
        f"invarlock compare: {name}: N windows" for name in ("baseline", "null edits", "subject")
    ]
    assert "PASS" in (folder / "evaluation.html").read_text()
    assert {p.name for p in desk.root.iterdir() if p.name.startswith(".")} == set()


def test_gate_and_the_verification_of_the_pack_agree(desk, first, capsys):
    """A strict verification with replay, as whoever gets the pack does it."""
    folder = desk.root / "compare-good"
    assert main(["gate", str(folder / "evaluation.report.json")]) == 0
    pack = str(folder / "evidence_pack")
    words = ["advanced", "evidence-pack", "verify", pack, "--strict", "--replay"]
    fingerprint = re.search(r"signed by +(\S+)", first[0])[1]
    assert main([*words, "--expected-fingerprint", fingerprint]) == 0, capsys.readouterr().out
    assert "VERIFIED: verdict PASS" in capsys.readouterr().out


@pytest.mark.usefixtures("first")
def test_the_second_subject_costs_only_its_own_measurement(desk):
    """Baseline and null edits are those of the first; what is bad is told, by exit code 1."""
    found = desk.json("base", "bad", "--out", "second")
    assert (found["outcome"], found["exit_code"], found["ok"]) == ("fail", 1, False)
    assert set(found["seconds"]) == {"subject"}
    assert "primary_metric_fail" in found["reasons"]
    assert found["metric"]["interval"][0] > 1.1
    assert json.loads((desk.root / "second/evaluation.report.json").read_text())["context"]
    # again, and into the same folder: it is replaced, never mixed
    assert desk.json("base", "good", "--out", "second")["outcome"] == "pass"


@pytest.mark.usefixtures("first")
def test_what_is_kept_is_what_would_be_measured(desk):
    """Without the cache everything is measured, and the report is the same byte for byte."""
    found = desk.json("base", "good", "--out", "anew", "--no-cache", cache="untouched")
    assert set(found["seconds"]) == {"baseline", "null edits", "subject"}
    assert not (desk.root / "untouched/invarlock/compare").exists()
    reports = [desk.root / d / "evaluation.report.json" for d in ("anew", "compare-good")]
    assert reports[0].read_bytes() == reports[1].read_bytes()


# --- quick ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("subject", "code"), [("good", 8), ("bad", 1)])
def test_quick_accuses_or_leaves_it_open(desk, subject, code):
    """The report itself says so, not only the command."""
    found = desk.json("base", subject, "--quick", "--out", f"quick-{subject}")
    assert found["exit_code"] == code
    assert "null edits" not in found["seconds"]
    report = desk.root / f"quick-{subject}" / "evaluation.report.json"
    assert main(["gate", str(report)]) == code
    assert json.loads(report.read_text())["policy_provenance"]["preset_sha256"] is None


@pytest.mark.usefixtures("first")
def test_what_refuses_nothing_is_told_with_the_verdict(desk):
    """Whoever ships the subject reads it there, not only on the page."""
    path = shutil.copytree(desk.root / "good", desk.root / "noted") / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"padding_side": "left"}))
    words = ("base", "noted", "--quick")
    (note,) = desk.json(*words, "--out", "noted-json")["notes"]
    assert "padding_side was 'right', is 'left'" in note
    code, out, _ = desk.compare(*words, *WORDS, "--out", "noted-out")
    assert code == 8
    assert re.search(r"^  noted +tokenizer_config.json is spelled otherwise", out, re.M), out


@pytest.mark.usefixtures("first")
def test_a_terminal_shows_a_bar_with_the_time_left(desk):
    """And the object on standard output is alone there all the same."""
    ours, theirs = pty.openpty()
    words = ["base", "bad", *WORDS, "--quick", "--json", "--out", "bar", "--no-cache"]
    process = desk.start(*words, stderr=theirs)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # the end of a terminal whose other side is closed
        while found := os.read(ours, 4096):
            shown += found
    out, _ = process.communicate()
    os.close(ours)
    text = shown.decode()
    done = [int(number) for number in re.findall(r"(\d+) of 192 windows", text)]
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, 192)
    assert "subject" in text
    assert " left" in text
    assert json.loads(out)["outcome"] == "fail"


@pytest.mark.usefixtures("first")
def test_a_subject_that_its_files_reject_is_said_not_to_have_run(desk):
    """With the setting that another one misspells, and no device that nothing ran on."""
    path = shutil.copytree(desk.root / "good", desk.root / "misspelt") / "config.json"
    path.write_text(path.read_text().replace('"num_hidden_layers"', '"num_hiden_layers"'))
    code, out, err = desk.compare("base", "misspelt", *WORDS)
    assert code == 1, err
    assert re.search(r"^  why +Invariants: .*num_hidden_layers was 2, is 32$", out, re.M), out
    assert "num_hiden_layers was left out, is 2" in out
    assert re.search(r"^  judged +dense weights, not run$", out, re.M), out


def test_what_will_refuse_a_subject_is_said_before_its_baseline_is_measured(desk):
    """A report holds the baseline's run, which takes minutes; --accept takes the line away."""
    path = shutil.copytree(desk.root / "good", desk.root / "silent") / "chat_template.jinja"
    path.write_text("{{ messages }}")
    line = "the subject will fail, whatever is measured: the chat template is new"
    code, _, err = desk.compare("base", "silent", *WORDS, "--quick", cache="first time")
    lines = [text.partition(": ")[2] for text in err.splitlines()]
    told = next(n for n, text in enumerate(lines) if text.startswith(line))
    measured = next(n for n, text in enumerate(lines) if text.startswith("baseline: "))
    assert (code, told < measured) == (1, True), err
    words = (*WORDS, "--quick", "--accept", "chat_template")
    code, _, err = desk.compare("base", "silent", *words, cache="second time")
    assert (code, "will fail" in err) == (8, False), err


def test_a_log_says_once_a_minute_how_far_a_stage_is(capsys):
    """And the time left of all stages, by the tokens that were measured so far."""
    seconds = 0.0
    shown = Display(clock=lambda: seconds)
    first, second = Stage("baseline", 100, 1000), Stage("subject", 100, 3000)
    shown.plan([first, second])
    shown.stage(first)
    for seconds in range(10, 191, 10):  # 4 tokens a second
        shown.show(Progress(int(seconds / 2.5), 100, 4 * seconds, 1000))
    shown.whole(first)
    seconds = 250.0
    shown.stage(second)
    seconds = 309.0
    shown.show(Progress(1, 100, 30, 3000))
    seconds = 500.0
    shown.show(Progress(33, 100, 1000, 3000))
    assert capsys.readouterr().err.splitlines() == [
        f"invarlock compare: {line}" for line in (
            "baseline: 100 windows",
            "baseline: 24 of 100 windows, about 16 min left",  # 60 s for 240 of 4,000 tokens
            "baseline: 48 of 100 windows, about 15 min left",
            "baseline: 72 of 100 windows, about 14 min left",
            "subject: 100 windows",
            "subject: 33 of 100 windows, about 8 min left",  # 500 s for 2,000
        )
    ]  # fmt: skip


@given(st.sampled_from([PASS, FAIL, INCONCLUSIVE]), st.booleans())
def test_no_outcome_of_a_quick_comparison_is_a_pass(found, quick):
    """Whatever a report says; and nothing else is changed."""
    told = answer(found, quick)
    assert not (quick and CODES[told] == 0)
    assert told == found or (quick, found) == (True, PASS)


@pytest.mark.parametrize("tier", tier_names())
@pytest.mark.parametrize("kind", {**METRICS, **ASKED}.values(), ids=lambda kind: kind.name)
@pytest.mark.parametrize("length", [16, 144, 1024, 1_048_576])
def test_quick_windows_are_below_the_floors_of_every_tier_that_has_some(tier, kind, length):
    """However long they are; a tier without floors is refused."""
    short = kind.shortage((QUICK, QUICK), length, load_policy(tier))
    assert (short is None) == (tier == "none")


def test_quick_needs_a_tier_with_floors(desk):
    """Else it could pass."""
    code, out, err = desk.compare("base", "good", *WORDS, "--quick", "--tier", "none")
    assert (code, out) == (2, "")
    assert "--quick could pass" in err


# --- on the real model ----------------------------------------------------------------------------


@pytest.mark.cases
@pytest.mark.parametrize(("spec", "more", "code"), [
    ("quant_rtn:8:0:all", (), 0), ("quant_rtn:3:64:all", ("--quick",), 1),
])  # fmt: skip
def test_edits_of_the_embedded_model(smollm2, tmp_path, spec, more, code):
    """With the texts of installed packages: eight bits pass, three fail even a quick look."""
    words = ["edit", "--baseline", str(smollm2), "--spec", spec, "--out", str(tmp_path / "edited")]
    assert main([*words, "--metadata", str(tmp_path / "edit.json")]) == 0
    found, out, err = Desk(tmp_path).compare(str(smollm2), "edited", *more)
    assert found == code, out + err


# --- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (("nothing", "good"), 3, "nothing"),
        (("base", "nothing"), 3, "nothing: no such checkpoint folder"),
        (
            ("acme/none", "good"),
            3,
            "none: no such checkpoint folder; if a model of the hub is meant: hub:",
        ),
        (("file:///no/m%20x", "good"), 3, "name the path, not a URL: '/no/m x'"),
        (("base", "file:///no/m"), 3, "name the path, not a URL: /no/m"),
        (("base", "good", "--tier", "strict"), 2, "strict"),
        (("base", "good", "--pack", "nothing.pem"), 3, "nothing.pem"),
        (("base", "good", "--accept", "chat_templat"), 2, "did you mean chat_template?"),
        (("base", "good", "--out", "base"), 2, "holds something else"),
        (("base", "good", "--threads", "-1"), 2, "--threads"),
        (("base", "good", "--text", "nothing.jsonl"), 3, "nothing.jsonl: no such file"),
        (("hub:acme/none", "good"), 3, "--net"),
        (("package:none", "good"), 2, "none"),
    ],
)
def test_bad_input_gets_one_line_before_anything_is_measured(desk, words, code, line):
    """The same line on standard error and in the object; nothing is left in the folder."""
    before = sorted(p.name for p in desk.root.iterdir())
    found, out, err = desk.compare(*WORDS, *words, "--json", cache="unused")
    assert found == code
    assert len(err.splitlines()) == 1, err
    assert line in err
    document = json.loads(out)
    assert (document["ok"], document["exit_code"]) == (False, found)
    assert document["errors"][0] in err
    assert sorted(p.name for p in desk.root.iterdir()) == before


def test_a_subject_that_no_library_builds_is_refused(desk):
    """Before its baseline is measured."""
    code, out, err = desk.compare("base", "odd", *WORDS, cache="unused")
    assert (code, out, len(err.splitlines())) == (3, "", 1), err
    assert "of-tomorrow" in err
    assert not list(desk.root.glob(".compare*"))


def test_a_text_that_is_too_short_is_refused(desk):
    """Before the model is loaded."""
    (desk.root / "short.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    code, _, err = desk.compare("base", "good", "--text", "short.jsonl", cache="unused")
    assert (code, len(err.splitlines())) == (3, 1)
    assert "short.jsonl" in err


# --- interrupts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_what_is_whole(desk, number):
    """One line and no folder; the baseline's run is kept, and a second start goes on from it."""
    cache = f"interrupted-{number}"
    words = [*WORDS, "--out", f"broken-{number}"]
    process = desk.start("base", "good", *words, cache=cache, python=sys.executable)
    lines = []
    while not (lines and "null edits" in lines[-1]):
        lines.append(process.stderr.readline())
        assert lines[-1], lines
    time.sleep(1)
    process.send_signal(number)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 128 + number
    assert (out, err) == ("", "invarlock compare: interrupted\n" if number == 2 else "")
    assert not (desk.root / f"broken-{number}").exists()
    assert [p.name for p in desk.root.iterdir() if p.name.startswith(".")] == []
    with pytest.raises(ProcessLookupError):  # nobody of its session is left
        os.killpg(process.pid, 0)
    kept = [p.name.rpartition("-")[0] for p in (desk.root / cache / "invarlock/compare").iterdir()]
    assert kept == ["run"]
    if number == signal.SIGINT:
        found = desk.json("base", "good", "--out", f"broken-{number}", cache=cache)
        assert set(found["seconds"]) == {"null edits", "subject"}


# --- what is kept -----------------------------------------------------------------------------


@pytest.fixture
def made(tmp_path):
    """A folder with two files, one in a folder."""
    (tmp_path / "made/inner").mkdir(parents=True)
    (tmp_path / "made/a").write_bytes(b"a" * 10)
    (tmp_path / "made/inner/b").write_bytes(b"b" * 1000)
    return tmp_path / "made"


def test_what_is_kept_comes_back(made, tmp_path):
    """Files and folders, and only those that are named."""
    kept = KeptBaselines(tmp_path / "kept")
    kept.keep("k", made, ["inner"])
    assert not kept.take("other", tmp_path / "into")
    assert kept.take("k", tmp_path / "into")
    assert [p.name for p in (tmp_path / "into").rglob("*")] == ["inner", "b"]
    assert (tmp_path / "into/inner/b").read_bytes() == b"b" * 1000


@pytest.mark.parametrize("damage", ["content", "gone", "listing"])
def test_what_somebody_changed_is_not_taken(made, tmp_path, damage):
    """It is measured again instead, and nothing of it stays where it was wanted."""
    kept = KeptBaselines(tmp_path / "kept")
    kept.keep("k", made, ["a", "inner"])
    place = kept.place("k")
    (made / "a").unlink()
    if damage == "content":
        (place / "a").write_bytes(b"c" * 10)
    elif damage == "gone":
        (place / "inner/b").unlink()
    else:
        (place / LISTING).write_text("{")
    assert not kept.take("k", tmp_path / "into")
    assert [p for p in (tmp_path / "into").rglob("*") if p.is_file()] == []


def test_the_least_recently_used_goes_first(made, tmp_path):
    """The one that was kept last stays, whatever its size."""
    kept = KeptBaselines(tmp_path / "kept", most_bytes=2500)
    for number, key in enumerate("abc"):
        kept.keep(key, made, ["inner"])
        os.utime(kept.place(key), (number, number))
    assert {p.name for p in kept.folder.iterdir()} == {"b", "c"}
    assert kept.take("b", tmp_path / "into")
    kept.keep("d", made, ["inner"])
    assert {p.name for p in kept.folder.iterdir()} == {"b", "d"}
    KeptBaselines(kept.folder, most_bytes=1).keep("e", made, ["inner"])
    assert {p.name for p in kept.folder.iterdir()} == {"e"}


def test_a_cache_that_cannot_be_written_is_an_input_error(made, tmp_path):
    """Which a comparison tells as a warning, and goes on."""
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError):
        KeptBaselines(tmp_path / "file/kept").keep("k", made, ["a"])
