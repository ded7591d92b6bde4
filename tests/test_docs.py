"""The documents are true: commands, options, keys, paths and tables in them exist."""

from __future__ import annotations

import argparse
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from repository_copy import program

from invarlock.cli import ALIASES, COMMANDS, parser_of
from invarlock.formats.kinds import formats
from invarlock.guards import GUARDS
from invarlock.metrics.accuracy import AccuracyPolicy
from invarlock.policy import bounds_of, load_policy, tier_names
from invarlock.scenarios import load_catalogue

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        ROOT / "config/README.md",
        ROOT / "contracts/README.md",
    ]
)
# every line of it is run by tests/test_coming_from.py, what others call so too
RUN = ROOT / "docs/coming_from.md"
CHECKED = [page for page in PAGES if page != RUN]
MAX_DECISION = 60  # lines
FIRST_COMMAND = 18  # the line by which the README shows one
FENCE = re.compile(r"^```.*?^```$", re.M | re.S)
SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
PLACEHOLDER = re.compile(r"[<>*{}\[|…]|NNNN|\.\.\.")

ids = [str(page.relative_to(ROOT)) for page in CHECKED]


def commands(text: str) -> Iterator[list[str]]:
    """The words of every make, invarlock and snakemake command in code blocks and code spans."""
    blocks = FENCE.findall(text)
    lines = [line for block in blocks for line in block.splitlines()[1:-1]]
    lines += SPAN.findall(FENCE.sub("", text))
    for line in lines:
        for part in re.split(r" && | \|\| ", line):
            if part.split(" ")[0] in ("make", "invarlock", "snakemake"):
                yield shlex.split(part, comments=True)


def parsers(parser: argparse.ArgumentParser, words: list[str]) -> list[argparse.ArgumentParser]:
    """The parser and those of the sub-commands that ``words`` name."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction) and words:
            names = [n for n in words[0].split("|") if n in action.choices]
            assert names == words[0].split("|") or not action.required, words
            return [parser, *(action.choices[name] for name in names)]
    return [parser]


def check_invarlock(words: list[str]) -> None:
    """The command, its sub-command and every option exist."""
    if not words or words[0].startswith(("-", "<", "COMMAND")):
        return
    words = [*ALIASES.get(words[0], words[0]).split(), *words[1:]]
    name = next((n for n in (" ".join(words[:2]), words[0]) if n in COMMANDS), None)
    assert name, f"no command {words[0]}"
    parser = parser_of(name)
    known = {
        option
        for p in parsers(parser, words[len(name.split()) :])
        for action in p._actions
        for option in action.option_strings
    }
    given = {word.split("=")[0] for word in words if word.startswith("--")}
    assert given <= known, f"{name}: {given - known}"


@cache
def rules() -> set[str]:
    """Names of all rules of the workflow."""
    text = "\n".join(p.read_text() for p in [ROOT / "Snakefile", *ROOT.glob("rules/*.smk")])
    return set(re.findall(r"^\s*rule (\w+):", text, re.M))


@cache
def settings() -> dict[str, Any]:
    """``config/config.yaml``."""
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    return loaded


def check_snakemake(words: list[str]) -> None:
    """Targets are rules or paths; profiles, keys and suites exist."""
    suites = yaml.safe_load((ROOT / "config/suites.yaml").read_text())["suites"]
    takes_value = {"--profile", "--cores", "--configfile", "--resources", "--default-resources"}
    option = ""
    for word in words:
        if word.startswith("-"):
            option = word
        elif option == "--config":
            key, _, value = word.partition("=")
            assert key in settings(), f"no key {key}"
            assert key != "suite" or value in (*suites, "..."), f"no suite {value}"
        elif option == "--profile":
            assert (ROOT / word / "profile.v9+.yaml").is_file(), f"no profile {word}"
            option = ""
        elif option in takes_value:
            option = ""
        else:
            assert word in rules() or "/" in word or PLACEHOLDER.search(word), f"no rule {word}"


def check_make(words: list[str]) -> None:
    """Targets and variables stand in the Makefile."""
    text = (ROOT / "Makefile").read_text()
    for word in words:
        name, assigns, _ = word.partition("=")
        pattern = rf"^{name} \?=" if assigns else rf"^{name}:"
        assert re.search(pattern, text, re.M), f"make knows no {name}"


CHECKS = {"invarlock": check_invarlock, "snakemake": check_snakemake, "make": check_make}


@pytest.mark.parametrize("page", CHECKED, ids=ids)
def test_commands_exist(page: Path) -> None:
    """Every command in a document exists with its options, targets, keys and profiles."""
    for first, *rest in commands(page.read_text()):
        CHECKS[first](rest)


@pytest.mark.parametrize(
    "line",
    [
        "invarlock evalute",
        "invarlock gate X --strictly",
        "invarlock advanced evidence-pack sign X",
        "snakemake packs",
        "snakemake --profile tpu",
        "snakemake --config sweet=smoke",
        "snakemake --config suite=smoky",
        "make smokes",
        "make smoke TROCH=x",
    ],
)
def test_wrong_commands_are_found(line: str) -> None:
    """The check above can fail."""
    [(first, *rest)] = commands(f"```\n{line}\n```")
    with pytest.raises(AssertionError):
        CHECKS[first](rest)


@pytest.mark.parametrize("page", CHECKED, ids=ids)
def test_named_files_exist(page: Path) -> None:
    """Every relative link, and every path below a folder of this repository, exists."""
    text = FENCE.sub("", page.read_text())
    links = [target for target in LINK.findall(text) if "://" not in target]
    folders = tuple(f"{path.name}/" for path in ROOT.iterdir() if path.is_dir())
    named = [s for s in SPAN.findall(text) if s.startswith(folders) and " " not in s]
    missing = [target for target in links if not (page.parent / target).exists()]
    missing += [
        path
        for path in named
        if not PLACEHOLDER.search(path)
        and not path.startswith(("evidence_pack_runs/", ".venv/"))
        and not (ROOT / path).exists()
    ]
    assert not missing


def test_folder_map_is_the_disk() -> None:
    """The README lists every folder of the repository, and no other."""
    [block] = [b for b in FENCE.findall((ROOT / "README.md").read_text()) if "\nrules/" in b]
    listed = set(re.findall(r"^(\w+)/ ", block, re.M))
    ignored = set((ROOT / ".gitignore").read_text().replace("/", "").split())
    there = {
        path.name
        for path in ROOT.iterdir()
        if path.is_dir() and not path.is_symlink() and not path.name.startswith(".")
    }
    assert listed == {name for name in there - ignored if not name.endswith(".egg-info")}


def test_every_contract_is_listed() -> None:
    """The table of contracts/README.md names every contract once, and no other."""
    listed = re.findall(r"`([\w-]+\.schema\.json)` \|", (ROOT / "contracts/README.md").read_text())
    assert sorted(listed) == sorted(p.name for p in ROOT.glob("contracts/*.schema.json"))


def test_what_is_made_of_the_settings_is_current() -> None:
    """The page and the contract are what their generator makes now."""
    module = program("tools/make_config.py")
    assert module.page() == (ROOT / "config/README.md").read_text(), "run: make docs"
    made = module.contract((ROOT / "config/config.yaml").read_text())
    assert made == (ROOT / "contracts/config.schema.json").read_text(), "run: make docs"


def test_what_kinds_say_elsewhere_is_current() -> None:
    """The page and the table of edits and damage are what their generator makes now."""
    module = program("tools/make_kinds.py")
    stale = [str(path) for path, text in module.made() if path.read_text() != text]
    assert not stale, "run: make docs"


def test_the_command_line_page_is_current() -> None:
    """It is what the parsers say, and names every command and option."""
    text = (ROOT / "docs/cli.md").read_text()
    assert program("tools/make_cli.py").page() == text, "run: make docs"
    assert all(f"\n## `invarlock {name}`\n" in text for name in COMMANDS)


def test_contracts_are_current() -> None:
    """Each contract but that of the settings is made of its struct, and none is left over."""
    made = dict(program("tools/make_contracts.py").made())
    stale = [str(path) for path, text in made.items() if path.read_text() != text]
    assert not stale, "run: make docs"
    assert set(ROOT.glob("contracts/*.json")) - set(made) == {ROOT / "contracts/config.schema.json"}


def test_threshold_table_is_the_tier_table() -> None:
    """docs/guards.md shows the numbers of tiers.yaml."""
    text = (ROOT / "docs/guards.md").read_text()
    policies = [load_policy(tier) for tier in ("balanced", "conservative", "aggressive")]
    assert [*(p.tier for p in policies), "none"] == tier_names()
    bounds = [bounds_of(p.tier) for p in policies]
    names = {"bh": "BH", "bonferroni": "Bonferroni"}
    rows = [
        [f"{p.pm_ratio.ratio_limit_base:.2f}" for p in policies],
        [f"{p.pm_ratio.min_tokens:,}" for p in policies],
        [f"{p.coverage.final} / {p.coverage.replicates}" for p in policies],
        [f"{p.drift.min} - {p.drift.max}" for p in policies],
        [f"{p.spectral.deadband:.2f} / {p.spectral.max_caps}" for p in policies],
        [" / ".join(str(p.spectral.kappa(f)) for f in ("ffn", "attn", "embed", "other"))
         for p in policies],
        [f"{a.delta_min_pp} / {a.min_examples}" for a in map(AccuracyPolicy.of, policies)],
        [f"{p.tail.quantile_max:.2f} / {p.tail.min_windows}" for p in policies],
        [f"{p.rmt.epsilon_default:.2f}" for p in policies],
        [f"{p.representation.limit('attention'):.2f} / {(r := p.representation).warn:.2f}"
         for p in policies],
        [f"{p.variance.deadband} / {p.variance.min_effect_lognll}" for p in policies],
        [f"{p.moe.entropy_drop_max:.2f} / {p.moe.new_dead_experts_max}" for p in policies],
        *([f"{b[name][0]:.2f} - {b[name][1]:.2f}" for b in bounds]
          for name in bounds[0] if not name.startswith("distribution.")),
        [f"{names[(m := p.spectral.multiple_testing).method]} {m.alpha:.8f}".rstrip("0")
         for p in policies],
        [f"{(d := p.spectral.degeneracy.stable_rank).warn_ratio} / {d.fatal_ratio}"
         for p in policies],
        [f"{(d := p.spectral.degeneracy.norm_collapse).warn_ratio} / {d.fatal_ratio:.2f}"
         for p in policies],
        [f"{(r := p.spectral.rows).factor}, {r.limit_min:.2f} - {r.limit_max:.2f} / {r.moved_min},"
         f" {r.nearer:.2f}" for p in policies],
    ]  # fmt: skip
    assert not [row for row in rows if f"| {' | '.join(row)} |" not in text]


def test_what_can_be_read_is_listed() -> None:
    """The README's table has every format, and docs/guards.md a section of every guard."""
    text = (ROOT / "README.md").read_text().partition("## What it reads")[2].partition("\n## ")[0]
    named = [{word.lower() for word in (form.name, form.title) if word} for form in formats()]
    assert not [words for words in named if not any(word in text.lower() for word in words)]
    headings = re.findall(r"^## \d+\. (.+)$", (ROOT / "docs/guards.md").read_text().lower(), re.M)
    assert not [g.name for g in GUARDS if not any(h in g.title.lower() for h in headings)]


def test_decisions_are_short() -> None:
    """Each within its limit, and numbered without a gap."""
    decisions = sorted((ROOT / "docs/decisions").glob("*.md"))
    long = [p.name for p in decisions if len(p.read_text().splitlines()) > MAX_DECISION]
    assert not long
    assert [int(p.name[:4]) for p in decisions] == list(range(1, len(decisions) + 1))


def test_readme_counts_what_the_suite_holds() -> None:
    """Edits that pass, edits that fail, and faults, as the catalogue has them for `make smoke`."""
    chosen = load_catalogue(ROOT / "scenarios/scenarios.json").select("smoke", ())
    count = Counter(scenario.category for scenario in chosen)
    stated = re.search(
        r"(\d+) harmless edits .*?(\d+) destructive ones .*?(\d+) faults",
        (ROOT / "README.md").read_text(),
        re.S,
    )
    assert stated is not None
    expected = (count["clean"], count["stress"], count["error_injection"])
    assert tuple(map(int, stated.groups())) == expected


def test_readme_comes_to_the_point() -> None:
    """What goes in and out stands in at most 25 words, the first command by line 18."""
    text = (ROOT / "README.md").read_text()
    assert len(text.split("\n\n")[1].split()) <= 25
    first = next(n for n, line in enumerate(text.splitlines(), 1) if line.startswith("make "))
    assert first <= FIRST_COMMAND
