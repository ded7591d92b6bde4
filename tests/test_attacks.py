"""Every attack of the table is caught by the documented step, quickly, in one clear line."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import attacks_beside
import attacks_deployable
import attacks_identity
import attacks_json
import attacks_reports
import attacks_signature
import attacks_tree
import pack_factory as packs
import pytest
from attacks import (
    CODES,
    MEMORY,
    NOTHING,
    OUTPUT,
    REPORT,
    ROOT,
    SECONDS,
    VERDICT,
    Attack,
    Lab,
    Outcome,
    Verifier,
    laboratory,
)
from mutants import ALSO_OFF, names_in, without

from invarlock.contracts import validate
from invarlock.evidence import consistency, layout, report_verify, result, tree

THEMES = (
    attacks_tree, attacks_signature, attacks_json, attacks_reports, attacks_identity,
    attacks_beside, attacks_deployable,
)  # fmt: skip
ROWS = [row for theme in THEMES for row in theme.ROWS]
HARMLESS = [row for theme in THEMES for row in theme.HARMLESS]


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    """A process that runs command lines."""
    started = Verifier()
    yield started
    started.close()


def sound(outcome: Outcome, step: str) -> None:
    """What holds for every outcome: code, lines, time, memory, nothing unprintable."""
    shown = outcome.output + outcome.errors
    assert outcome.code == CODES[step], shown[-2000:]
    assert "Traceback" not in shown
    assert outcome.cpu <= SECONDS
    assert outcome.memory <= MEMORY
    assert len(shown) <= OUTPUT
    assert re.fullmatch(r"[\n -~]*", shown), "an unprintable character"
    if outcome.document is None:  # refused before the steps
        assert step in ("options", "open")
        assert len(outcome.errors.splitlines()) == 1
        return
    if not step:
        assert outcome.output.splitlines()[-1].startswith("VERIFIED: ")
        return
    assert step in outcome.steps, outcome.document["errors"][:5]
    found = next(s["findings"] for s in outcome.document["steps"] if s["name"] == step)
    assert all(f and "\n" not in f and f"    {f}\n" in outcome.output for f in found)
    assert outcome.output.splitlines()[-1].startswith(f"NOT VERIFIED (exit {outcome.code}, ")


@pytest.mark.parametrize("row", [*ROWS, *HARMLESS], ids=lambda row: row.name)
def test_the_step_catches_the_attack(
    signed: Path, key: Path, verifier: Verifier, row: Attack
) -> None:
    """The row's step finds it, with its exit code; a harmless row verifies."""
    with laboratory(signed, key) as lab:
        row.inflict(lab)
        sound(verifier.verify(lab, row.options, row.environment), row.step)


def test_records_of_a_deployable_subject_that_fit_are_not_refused(
    signed: Path, key: Path, verifier: Verifier
) -> None:
    """Without a lie in them, the step that finds the lies finds nothing."""
    with laboratory(signed, key) as lab:
        Attack("", "", "", attacks_deployable.deployable, "binder").inflict(lab)
        assert "scenarios" not in verifier.verify(lab).steps


def test_every_file_counts(signed: Path, key: Path, verifier: Verifier) -> None:
    """Deleting, truncating, flipping or swapping any file of the pack is caught."""
    whole = packs.snapshot(signed)
    with laboratory(signed, key) as lab:
        for path in sorted(whole):
            for row in attacks_tree.every_way(path):
                row.inflict(lab)
                outcome = verifier.verify(lab)
                for name in (path, VERDICT, "README.md"):
                    (lab.pack / name).write_bytes(whole[name])
                assert outcome.code == CODES[row.step], row.name
                assert row.step in outcome.steps
        sound(verifier.verify(lab), "")


def test_every_row_names_a_check_that_can_be_switched_off() -> None:
    """Each check that a row names stands in the package, and each one there has a row."""
    assert len({row.name for row in ROWS}) == len(ROWS)
    there, rows = set(names_in(ROOT / "invarlock")), {row.check for row in ROWS} - {NOTHING}
    others = {name for check in rows for name in ALSO_OFF.get(check, ())}
    assert rows - there == {name for name in ALSO_OFF if name not in there}
    assert there - rows <= others
    assert others <= there
    assert set(ALSO_OFF) <= rows


CHECKED = """
def look(found, stated):
    if stated < 0:  # check: a.condition
        found.append("below")
    elif stated > 9:
        found.append("above")  # check: a.statement
    # check: a.condition_below
    if stated == 5:
        found.append(
            "five",
        )
    rows = [
        "first",
        "second",  # check: an.element
    ]
    return found + rows
"""


@pytest.mark.parametrize(
    ("name", "stated", "found"),
    [
        ("none", -1, ["below", "first", "second"]),
        ("a.condition", -1, ["first", "second"]),
        ("a.condition", 10, ["above", "first", "second"]),
        ("a.statement", 10, ["first", "second"]),
        ("a.condition_below", 5, ["first", "second"]),
        ("an.element", -1, ["below", "first"]),
    ],
)
def test_a_check_is_switched_off_by_its_name(name: str, stated: int, found: list[str]) -> None:
    """What the name stands at no longer happens, and nothing else changes."""
    module: dict[str, Callable[[list[str], int], list[str]]] = {}
    exec(without(CHECKED, {name}), module)  # type: ignore[arg-type]
    assert module["look"]([], stated) == found


SAMPLE = {row.step: row for row in ROWS}  # the last row of each step


@pytest.mark.parametrize("step", SAMPLE)
def test_a_process_of_its_own_says_the_same(
    signed: Path, key: Path, verifier: Verifier, step: str
) -> None:
    """The command as a user starts it ends like the rows do; --json is one object and no more."""
    row = SAMPLE[step]
    with laboratory(signed, key) as lab:
        row.inflict(lab)
        wanted = verifier.verify(lab, row.options, row.environment)
        options = [word.format(scratch=lab.scratch, signer="") for word in row.options]
        words = ["advanced", "evidence-pack", "verify", str(lab.pack), *options, "--json"]
        done = subprocess.run(
            [sys.executable, "-m", "invarlock", *words],
            check=False,
            capture_output=True,
            text=True,
            env=os.environ | dict(row.environment) | {"HOME": str(lab.scratch)},
        )
    assert done.returncode == wanted.code == CODES[step]
    if wanted.document is not None:
        shown = json.loads(done.stdout)
        validate(shown, "evidence-pack-verify", "output")
        assert shown["errors"] == wanted.document["errors"]
        assert len(done.stdout.splitlines()) == 1


def test_a_flood_of_findings_is_cut(signed: Path, key: Path, verifier: Verifier) -> None:
    """A step lists so many findings of such a length and says how many more there are."""
    with laboratory(signed, key) as lab:
        for index in range(result.MAX_LISTED + 5):
            (lab.pack / f"{index}{'n' * 200}").touch()
        (lab.pack / ("\u00e9" * 120)).touch()
        outcome = verifier.verify(lab, ["--strict"])
    assert outcome.document is not None
    found = outcome.document["errors"]
    assert len(found) == result.MAX_LISTED + 1
    assert found[-1] == "and 6 more"
    assert max(map(len, found)) <= result.MAX_LINE
    assert outcome.output.count("\n") < result.MAX_LISTED + 20


def rewrite(path: Path, contents: list[bytes]) -> None:
    """Put one of several contents into a file again and again, until killed."""
    while True:
        for content in contents:
            path.write_bytes(content)


def grow(path: Path, contents: list[bytes]) -> None:
    """Let a file grow without end; started again before it fills the disk."""
    while True:
        with open(path, "ab", buffering=0) as handle:
            while handle.tell() < 50 << 20:
                handle.write(contents[0])
        path.write_bytes(contents[0])


@pytest.mark.parametrize("act", [rewrite, grow])
def test_a_file_that_changes_while_it_is_read(
    signed: Path, key: Path, verifier: Verifier, act: object
) -> None:
    """The result is that of the bytes that were hashed: verified, or an integrity failure."""
    with laboratory(signed, key) as lab:
        honest = (lab.pack / REPORT).read_bytes()
        forged = honest.replace(b'"invalid": false', b'"invalid": true ')
        process = multiprocessing.get_context("fork").Process(
            target=act, args=(lab.pack / REPORT, [honest, forged])
        )
        process.start()
        outcomes = [verifier.verify(lab) for _ in range(10)]
        process.kill()
        process.join()
    for outcome in outcomes:
        sound(outcome, outcome.steps[0] if outcome.steps else "")
        assert outcome.steps[:1] in ((), ("tree",), ("checksums",), ("references",))


def test_the_result_never_replaces_a_link_of_the_pack(
    signed: Path, key: Path, verifier: Verifier
) -> None:
    """What a write replaces is the link and not what it points to."""
    with laboratory(signed, key) as lab:
        link = lab.pack / "v.json"
        link.symlink_to(lab.scratch / "v.json")
        sound(verifier.verify(lab, ["--json-out", str(link)]), "options")
        assert link.is_symlink()
        assert not list(lab.scratch.iterdir())


def test_the_result_never_replaces_a_device_or_pipe(
    signed: Path, key: Path, verifier: Verifier
) -> None:
    """As root, a rename would put a file in place of /dev/null."""
    with laboratory(signed, key) as lab:
        pipe = lab.scratch / "pipe"
        os.mkfifo(pipe)
        assert verifier.verify(lab, ["--json-out", str(pipe)]).code == CODES["options"]
        assert pipe.is_fifo()


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [("--strict",), ("--json",)])
@pytest.mark.parametrize("output", ["pipe", "/dev/full"])
def test_no_output_is_no_success(
    signed: Path, key: Path, words: tuple[str, ...], unbuffered: str, output: str
) -> None:
    """A reader that goes away leaves the exit code as it is; a full disk is an error."""
    with laboratory(signed, key) as lab:
        (lab.pack / "README.md").write_text("# Another\n")
        if output == "pipe":
            reader, writer = os.pipe()
            os.close(reader)
        else:
            writer = os.open(output, os.O_WRONLY)
        with os.fdopen(writer, "wb") as stdout:
            done = subprocess.run(
                [sys.executable, "-m", "invarlock", "advanced", "evidence-pack", "verify",
                 str(lab.pack), *words],
                check=False, stdout=stdout, stderr=subprocess.PIPE, text=True,
                env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
            )  # fmt: skip
    assert done.returncode == (CODES["checksums"] if output == "pipe" else CODES["open"])
    assert len(done.stderr.splitlines()) == (output != "pipe")


KEPT = ROOT / "tests" / "packs"
EXPECTED = json.loads((KEPT / "expected.json").read_text())


@pytest.mark.parametrize("name", EXPECTED)
def test_kept_packs_are_verified_for_ever(verifier: Verifier, name: str) -> None:
    """What earlier versions published still verifies, with the same result."""
    wanted = EXPECTED[name]
    lab = Lab(KEPT / name, Path(), Path())
    for kind, options in (("plain", []), ("replay", ["--strict", "--replay"])):
        outcome = verifier.run("advanced", "evidence-pack", "verify", str(lab.pack), *options,
                               "--json-out", "{json}")  # fmt: skip
        assert outcome.code == wanted["exit"][kind], outcome.output
        assert outcome.document is not None
        if outcome.code != CODES["signature"]:
            assert outcome.document["verdict"]["recorded"] == wanted["verdict"]
            assert outcome.document["evidence_level"] == wanted["evidence_level"]
            assert outcome.document.get("signer_fingerprint") == wanted["signer"]


def test_the_table_names_every_kept_pack() -> None:
    """No pack is kept that nothing is expected of."""
    assert sorted(EXPECTED) == sorted(path.name for path in KEPT.iterdir() if path.is_dir())


def test_the_documented_limits_are_those_of_the_code() -> None:
    """Every limit of the pages is a constant, and the other way round."""
    page = (ROOT / "docs" / "pack-format.md").read_text()
    stated = dict(re.findall(r"^\| `(MAX_[A-Z_]+)` \| ([\d,]+) ", page, re.MULTILINE))
    modules = (tree, result, layout, consistency, report_verify)
    names = [
        "ENTRIES", "REPORTS", "DEPTH", "NAME", "PATH", "FILE", "PACK", "PARSED_FILE", "PARSED",
        "VALUES", "LISTED", "LINE", "SCENARIOS", "EXPECTED", "JUDGED",
        "REPLICATES", "DRAWS", "FINDINGS",
    ]  # fmt: skip
    constants = {
        f"MAX_{name}": getattr(module, f"MAX_{name}")
        for name in names
        for module in modules
        if hasattr(module, f"MAX_{name}")
    }
    assert {name: int(text.replace(",", "")) for name, text in stated.items()} == constants
