"""Make docs/cli.md from the parsers of the commands.

``make docs`` writes it; ``--check`` exits with 1 when it is stale.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from generated import write_or_check
from make_config import code, table

from invarlock.cli import COMMANDS, module_of, parser_of

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/cli.md"
HEAD = """# Command line

Made by `make docs` from the commands' own options; a test fails when it is stale. The workflow
calls most of them: its settings stand in [config/README.md](../config/README.md). A command
whose name begins with `advanced` is one that few call by hand.

Every command takes `--help`, and `--debug` for tracebacks. What goes wrong is one line on standard
error. Exit codes: 0 done; 1 the policy says no (`verify`, `gate`, `compare`); 2 usage or
configuration; 3 an input is missing or unusable. `gate` and `compare` say 8 where there is too
little evidence; the commands of evidence packs have their own: [pack format](pack-format.md),
[CI](ci.md).
"""


def page() -> str:
    """The whole page."""
    lines = [HEAD, "## Commands", ""]
    rows = [(f"[`{name}`](#{anchor(name)})", command.summary) for name, command in COMMANDS.items()]
    lines += [*table("command | what it does", rows), ""]
    for name in COMMANDS:
        lines += command(name)
    return "\n".join(lines).rstrip() + "\n"


def anchor(name: str) -> str:
    """The place of a command's section, as GitHub calls it."""
    return f"invarlock-{name.replace(' ', '-')}"


def command(name: str) -> Iterator[str]:
    """The section of a command, and those of its sub-commands."""
    parser = parser_of(name)
    yield from (f"## `invarlock {name}`", "", prose(module_of(name).__doc__ or ""), "")
    yield from options(parser)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub, under in action.choices.items():
                yield from (f"### `invarlock {name} {sub}`", "")
                yield from (sentence(under.description or ""), "", *options(under))


def options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """The options of a parser as a table; nothing where it has none of its own."""
    rows = [
        (written(action), default(action), prose(action.help or ""))
        for action in parser._actions
        if not isinstance(action, argparse._HelpAction | argparse._SubParsersAction)
    ]
    if rows:
        yield from (*table("option | default | meaning", rows), "")


def written(action: argparse.Action) -> str:
    """An option as it is written on the command line."""
    value = "|".join(map(str, action.choices)) if action.choices else action.metavar
    value = value or action.dest.upper()
    if action.nargs == "+":
        value = f"{value} ..."
    if not action.option_strings:
        return code(value)
    names = ", ".join(action.option_strings)
    return code(names if action.nargs == 0 else f"{names} {value}")


def default(action: argparse.Action) -> str:
    """What holds without the option."""
    if action.required:
        return "required"
    known = action.default
    if known in (None, "", False, argparse.SUPPRESS) or known == ():
        return "-"
    return "on" if known is True else code(known)


def prose(text: str) -> str:
    """A text on one line."""
    return " ".join(text.replace("``", "`").split())


def sentence(text: str) -> str:
    """A summary as a sentence."""
    return text[:1].upper() + text[1:] + "."


if __name__ == "__main__":
    sys.exit(write_or_check([(PAGE, page())]))
