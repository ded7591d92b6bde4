"""docs/coming_from.md: each line of it is run."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from repository_copy import ROOT, quiet_environment, snakemake

from invarlock.cli import ALIASES, COMMANDS, main, parser_of
from invarlock.variables import VARIABLES

PAGE = ROOT / "docs/coming_from.md"
SAME = "the same"
SPAN = re.compile(r"`([^`]+)`")


def section(name: str) -> str:
    """The text below a heading."""
    found = re.search(rf"^## {name}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.M | re.S)
    assert found, name
    return found[1]


def rows(name: str) -> list[tuple[str, ...]]:
    """The rows of the tables below a heading; of those whose thing is there."""
    found = []
    for line in section(name).splitlines():
        if line.startswith("| ") and not line.startswith("| then"):
            row = tuple(cell.strip() for cell in line.strip("|").split("|"))
            found.append(row)
    assert found, name
    return found


def meant(row: tuple[str, ...]) -> list[str]:
    """What stands as code in the cell; where it says the same, in the first cell."""
    return SPAN.findall(row[0] if row[1].startswith(SAME) else row[1])


def fenced() -> Iterator[str]:
    """The lines of code blocks."""
    for block in re.findall(r"^```\n(.*?)^```$", PAGE.read_text(), re.M | re.S):
        yield from block.splitlines()


def spans() -> Iterator[str]:
    """Everything that is code and is to be run: what is for now, in blocks, and in sentences."""
    for name in ("Commands", "Variables", "Words", "Pages", "Archive and clean up"):
        for row in rows(name):
            yield from meant(row)
            for cell in row[2:]:
                yield from SPAN.findall(cell)
    yield from fenced()
    yield from SPAN.findall(re.sub(r"^[|`].*$", "", PAGE.read_text(), flags=re.M))


def lines(program: str) -> list[str]:
    """The command lines of a program on the page, each once."""
    return sorted({span for span in spans() if span.split()[0] == program})


def parse(line: str) -> None:
    """What the command line itself makes of a line; nothing is run."""
    words = shlex.split(line)[1:]
    if words == ["--help"]:
        assert main(words) == 0
        return
    words[:1] = ALIASES.get(words[0], words[0]).split()
    name = next(n for n in (" ".join(words[:2]), words[0]) if n in COMMANDS)
    rest = words[len(name.split()) :]
    if "--help" in rest or (not rest and name == "doctor"):
        parser_of(name, rest)
        return
    try:
        parser_of(name, rest).parse_args(rest)
    except SystemExit as ended:
        pytest.fail(f"{line}: exit {ended.code}")


@pytest.mark.parametrize("line", lines("invarlock"))
def test_the_command_line_takes_each_line(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every command of the page is parsed by its own parser, every option with its value."""
    if line in ("invarlock advanced proof-pack verify",):  # named without its pack
        line += " PACK"
    parse(line)
    assert "error" not in capsys.readouterr().err


@pytest.mark.parametrize("line", ["invarlock evaluate --execution-modus host", "invarlock gate"])
def test_a_wrong_line_is_found(line: str) -> None:
    """The test above can fail."""
    with pytest.raises((pytest.fail.Exception, StopIteration)):
        parse(line)


def test_the_workflow_plans_each_line(repository: Path) -> None:
    """Every snakemake line of the page is a dry run that ends with 0, or with the one refusal that
    the page's stand-ins bring about: KEY.pem is no key."""
    (repository / "tests").symlink_to(ROOT / "tests")
    asked = lines("snakemake")
    assert len(asked) >= 7

    def planned(line: str) -> str:
        words = [word for word in shlex.split(line)[1:] if word != "-n"]
        done = snakemake(repository, "-n", *words, "--nolock", "--quiet", "all")
        known = "KEY.pem" in line and "KEY.pem: the signing key cannot be read" in done.stderr
        return "" if done.returncode == 0 or known else f"{line}: {done.stderr}{done.stdout}"

    with ThreadPoolExecutor(2) as pool:
        assert list(filter(None, pool.map(planned, asked))) == []


def test_make_knows_each_target() -> None:
    """Every make line of the page is a dry run."""
    asked = [line for line in lines("make") if line != "make"]
    assert {"make dev-install", "make runtime-image", "make telemetry"} <= set(asked)
    for line in asked:
        done = subprocess.run(
            [*shlex.split(line), "--dry-run"],
            cwd=ROOT, env=quiet_environment(), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{line}: {done.stderr}"


def test_each_variable_stands_in_the_table() -> None:
    """What the page says acts is read, and what it says does nothing is inert."""
    for row in rows("Variables"):
        for name in SPAN.findall(row[0]):
            assert name in VARIABLES, name
            assert VARIABLES[name].inert == row[1].startswith("nothing"), row


def test_each_file_of_the_repository_is_there() -> None:
    """The first table of files: paths as they are now."""
    text, _, _ = section("Files").partition("Of a run")
    for row in rows("Files"):
        if row[0] in text:
            for path in meant(row):
                assert (ROOT / path).exists(), path


def test_each_file_of_a_run_is_made_by_a_rule_and_each_of_a_pack_is_packed() -> None:
    """The other tables of files: their names stand in rules, in what a command writes, or in a
    pack of the tests."""
    text, _, after = section("Files").partition("Of a run")
    sources = [*(ROOT / "rules").glob("*.smk"), *(ROOT / "invarlock").rglob("*.py")]
    written = "\n".join(path.read_text() for path in sources)
    packed = {path.name for path in (ROOT / "tests/packs").rglob("*") if path.is_file()}
    checked = 0
    for row in rows("Files"):
        if row[0] in text or row[1].startswith("read in old packs"):
            continue
        assert row[0] in after
        for path in meant(row):
            name = Path(path).name
            stem = re.sub(r"<\w+>.*", "", name)  # calibrated_preset_<model>.yaml
            if path.endswith("/"):
                stem = path.rstrip("/")
            assert name in packed or stem in written, path
            checked += 1
    assert checked > 25


def test_each_name_is_imported() -> None:
    """Modules and what is in them."""
    for row in rows("Python"):
        for name in meant(row):
            try:
                importlib.import_module(name)
            except ModuleNotFoundError:
                module, _, member = name.rpartition(".")
                assert hasattr(importlib.import_module(module), member), name


def test_each_link_leads_somewhere() -> None:
    """Pages, and headings of this page and of others."""
    links = re.findall(r"\]\(([^)\s]+)\)", PAGE.read_text())
    assert len(links) > 12
    for link in links:
        path, _, heading = link.partition("#")
        page = PAGE.parent / path if path else PAGE
        assert page.is_file(), link
        titles = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
        assert not heading or heading in [t.lower().replace(" ", "-") for t in titles], link


def test_each_rule_is_one() -> None:
    """What the page calls a rule."""
    known = {
        name
        for path in [ROOT / "Snakefile", *(ROOT / "rules").glob("*.smk")]
        for name in re.findall(r"^\s*rule (\w+):", path.read_text(), re.M)
    }
    named = {
        name
        for sentence in re.findall(r"rules? ((?:`\w+`(?: and )?)+)", section("Words"))
        for name in SPAN.findall(sentence)
    }
    assert named >= {"calibrate", "preset", "scenarios", "determinism"}
    assert named <= known
