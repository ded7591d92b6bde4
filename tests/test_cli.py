"""The front of the command line: what it lists, and what it says to words it does not know."""

from __future__ import annotations

import os

import pytest

from invarlock.cli import ALIASES, COMMANDS, DEBUG, main
from invarlock.errors import InputError

USUAL = [name for name in COMMANDS if " " not in name]
ADVANCED = [name.partition(" ")[2] for name in COMMANDS if " " in name]


def listed(text: str) -> list[str]:
    """The first words of the indented lines of an overview."""
    return [line[2:].split("  ")[0] for line in text.splitlines() if line.startswith("  ")]


@pytest.mark.parametrize(
    ("words", "code"), [("", 2), ("-h", 0), ("--help", 0), ("help", 0), ("--debug help", 0)]
)
def test_all_commands_are_listed(words: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a command, and asked for help: every command with its help."""
    assert main(words.split()) == code
    printed = capsys.readouterr().out
    assert printed.startswith("usage: invarlock COMMAND ")
    assert listed(printed) == list(COMMANDS)
    assert all(command.summary in printed for command in COMMANDS.values())
    assert DEBUG not in os.environ, "what --debug sets outlives its command"


@pytest.mark.parametrize(
    ("words", "code"), [("", 2), ("-h", 0), ("--help", 0), ("help", 0), ("--help tune", 0)]
)
def test_the_advanced_commands_are_listed(
    words: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """``invarlock advanced`` lists what may follow it, and nothing else."""
    assert main(["advanced", *words.split()]) == code
    printed = capsys.readouterr().out
    assert printed.startswith("usage: invarlock advanced COMMAND ")
    assert listed(printed) == ADVANCED
    assert all(f"  {COMMANDS[f'advanced {name}'].summary}\n" in printed for name in ADVANCED)
    assert main(["help", "advanced"]) == 0
    assert listed(capsys.readouterr().out) == ADVANCED


@pytest.mark.parametrize(
    "words",
    ["gate --help", "help gate", "advanced evidence-pack --help", "help advanced evidence-pack",
     "advanced help evidence-pack", "help advanced evidence-pack verify"],
)  # fmt: skip
def test_help_of_a_command(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """``help`` before a command, or --help behind it: its options."""
    with pytest.raises(SystemExit) as done:
        main(words.split())
    assert done.value.code == 0
    name = " ".join(word for word in words.split() if word not in ("help", "--help"))
    assert capsys.readouterr().out.startswith(f"usage: invarlock {name} [-h]")


@pytest.mark.parametrize("alias", ALIASES)
def test_an_alias_is_its_command(alias: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It shows the help of the command that it stands for, and is told of in the overview."""
    with pytest.raises(SystemExit) as done:
        main([alias, "--help"])
    assert done.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: invarlock {ALIASES[alias]} [-h]")
    assert main([]) == 2
    assert f"{alias} for {ALIASES[alias]}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("verfy", "verfy is not a command; did you mean verify?"),
        ("evidence-pack verify", "evidence-pack is not a command; did you mean advanced evidence-"),
        (
            "advanced evidence-pak",
            "advanced evidence-pak is not a command; did you mean advanced e",
        ),
        ("advanced verify", "advanced verify is not a command; did you mean verify?"),
        ("advanced xyz", "advanced xyz is not a command; see invarlock advanced --help"),
        ("xyz", "xyz is not a command; see invarlock --help"),
        ("help xyz", "xyz is not a command; see invarlock --help"),
    ],
)
def test_unknown_words(words: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A word that is no command: one line, the nearest command or where they are listed."""
    assert main(words.split()) == 2
    assert capsys.readouterr().err.startswith(f"invarlock: {line}")


def test_the_lists_are_not_empty() -> None:
    """Both kinds of command are there."""
    assert {"evaluate", "gate"} <= set(USUAL)
    assert {"evidence-pack", "tune"} <= set(ADVANCED)


def test_what_files_say_reaches_no_terminal_as_it_is() -> None:
    """Names and values of other people's files: control characters become their escapes."""
    line = str(InputError("tensor a\x1b[31m\x00b", where="x\ry", found="ü\u202e日"))
    assert line == "x\\ry: tensor a\\x1b[31m\\x00b; found ü\\u202e日"
