"""The command line. One module a command; only the one that is asked for is imported."""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import itertools
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, NoReturn

from invarlock import __version__
from invarlock.cli.options import add_options, outputs, parsed
from invarlock.cli.output import flush_output
from invarlock.errors import InputError, InvarlockError
from invarlock.output_locks import claimed
from invarlock.variables import SETTINGS, warnings


class Command(NamedTuple):
    """A command's module and its one-line help.

    The module has ``OPTIONS``, the record of its options, and ``main(options)``; sub-commands stand
    in ``ACTIONS``, by their names. A module may have both.
    """

    module: str
    summary: str
    loads: bool = False  # torch, in its own process, so that a run's fork server is of use


COMMANDS: dict[str, Command] = {
    "compare": Command("compare", "one command from two models to a verdict"),
    "run": Command("run", "measure one checkpoint on the windows", loads=True),
    "evaluate": Command("evaluate", "measure a subject and compare it with its baseline"),
    "report": Command("report", "render or explain an evaluation report"),
    "verify": Command("verify", "re-check evaluation reports from their recorded evidence"),
    "policy": Command("policy", "make and verify policy packs"),
    "gate": Command("gate", "turn a verdict, a report or a pack into an exit code"),
    "scenarios": Command("scenarios", "write the effective scenario manifest"),
    "pin": Command("pin", "pin models and data sets by revision and digest"),
    "baseline": Command("baseline", "place the pinned baseline checkpoint"),
    "windows": Command("windows", "cut the evaluation windows"),
    "edit": Command("edit", "make an edited checkpoint", loads=True),
    "inject": Command("inject", "make a deliberately damaged checkpoint", loads=True),
    "verdict": Command("verdict", "judge all evaluations of a suite"),
    "doctor": Command("doctor", "say what works on this machine and what to do"),
    "advanced calibrate": Command(
        "calibrate", "measure what null edits change in a baseline", loads=True
    ),
    "advanced preset": Command("preset", "derive thresholds for one baseline from calibration"),
    "advanced tune": Command("tune", "find parameters of clean edits that pass"),
    "advanced tuned-params": Command("tuned_params", "join tables of tuned parameters"),
    "advanced pages": Command("pages", "render and re-check evaluation reports in their folders"),
    "advanced analyze": Command("analyze", "guards, repeats and times of a suite's evaluations"),
    "advanced deployable": Command(
        "deployable", "load and ask a packed subject in fresh processes; record what it takes"
    ),
    "advanced pack-weights": Command("pack_weights", "pack a baseline by a deployment backend"),
    "advanced sentinels": Command(
        "sentinels", "evaluate and verify the kept subjects of a finished run again"
    ),
    "advanced disk": Command("disk", "wait until an edited checkpoint fits on the disk"),
    "advanced provenance": Command("provenance", "record image, source and machine of a run"),
    "advanced evidence-pack": Command(
        "evidence_pack", "make keys; build, inspect and verify packs"
    ),
    "advanced proof-pack": Command("proof_pack", "verify a pack of the older format"),
    "advanced runtime-verify": Command("runtime_verify", "check a report's runtime manifest"),
}

# Published names of commands that stand elsewhere here; each is the command, by another word.
ALIASES: dict[str, str] = {
    "calibrate": "advanced calibrate",
    "keygen": "advanced evidence-pack keygen",
}

DEBUG = "INVARLOCK_DEBUG"  # set for processes that a command with --debug starts
ADVANCED = "advanced "  # what the names of commands begin with that few call by hand
ABOUT = """\
Is an edited language-model checkpoint as good as its baseline? The workflow (snakemake) calls
these commands one by one. By hand, mostly: compare and gate; to check a pack of somebody else,
invarlock advanced evidence-pack verify PACK."""


def _overview(group: str = "") -> str:
    """All commands, or those of a group: their names begin with it, which is left out."""
    width = max(map(len, COMMANDS)) + 2
    usage = f"invarlock {group}COMMAND"
    lines = [f"usage: {usage} [OPTIONS]", "", *([] if group else [ABOUT, ""])]
    for name, command in COMMANDS.items():
        if name.startswith(group):
            lines.append(f"  {name.removeprefix(group):<{width}}{command.summary}")
    more = "" if group else "; also --version, --debug (tracebacks)"
    lines += ["", f"{usage} --help lists its options{more}"]
    short = ", ".join(f"{alias} for {name}" for alias, name in ALIASES.items())
    return "\n".join([*lines, *([] if group else [f"shorter: {short}"])])


def _split(argv: Sequence[str]) -> tuple[str, list[str]] | None:
    for words in (2, 1):
        name = " ".join(argv[:words])
        if name in COMMANDS:
            return name, list(argv[words:])
    return None


class UsageError(SystemExit):
    """Words that a command does not know; they have been told on standard error."""

    def __init__(self, message: str) -> None:
        super().__init__(2)
        self.message = message


class _Parser(argparse.ArgumentParser):
    """A parser, and those of sub-commands, that keep what they tell for :func:`_refuse`.

    How wide the terminal is, which argparse asks once an option, is asked where help is shown.
    """

    def __init__(self, **given: Any) -> None:
        fixed = functools.partial(argparse.HelpFormatter, width=80)
        super().__init__(formatter_class=fixed, **given)

    def format_usage(self) -> str:
        self.formatter_class = argparse.HelpFormatter
        return super().format_usage()

    def format_help(self) -> str:
        self.formatter_class = argparse.HelpFormatter
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        print(f"{self.prog}: error: {message}", file=sys.stderr)
        raise UsageError(message)


def _refuse(module: ModuleType, words: Sequence[str], line: str, code: int) -> None:
    """Say to a script that asked for JSON what the line on standard error says to a person.

    Commands that know ``--json`` make the document: ``refused(words, line, code)``.
    """
    refused = getattr(module, "refused", None)
    if "--json" in words and refused is not None and sys.stdout is not None:
        import json

        with contextlib.suppress(OSError):  # standard error has said it, and the code says it
            print(json.dumps(refused(words, line, code), sort_keys=True), flush=True)
        flush_output()


def module_of(name: str) -> ModuleType:
    """The module of a command."""
    return importlib.import_module(f"invarlock.cli.{COMMANDS[name].module}")


def parser_of(name: str, words: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The parser of a command.

    Args:
        name: the command.
        words: what follows it on the command line. Where they begin with a sub-command, that one
            alone is declared; else the command's own options and all sub-commands.
    """
    module = module_of(name)
    parser = _Parser(prog=f"invarlock {name}", description=module.__doc__, allow_abbrev=False)
    asked = [action for action in words[:1] if action in getattr(module, "ACTIONS", {})]
    if hasattr(module, "OPTIONS") and not asked:  # what it requires, a sub-command does not
        add_options(parser, module.OPTIONS)
    if hasattr(module, "ACTIONS"):
        names = parser.add_subparsers(
            dest="action", required=not hasattr(module, "OPTIONS"), metavar="|".join(module.ACTIONS)
        )
        for action in asked or module.ACTIONS:
            record, _, summary = module.ACTIONS[action]
            about = {"help": summary, "description": summary}
            add_options(names.add_parser(action, allow_abbrev=False, **about), record)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; expected errors become one line on stderr."""
    started = time.monotonic()
    argv = list(sys.argv[1:] if argv is None else argv)
    if (code := _on_one_load(argv)) is None:
        if "--debug" in argv:
            with _debugging():
                code = _run([word for word in argv if word != "--debug"], debug=True)
        else:
            code = _run(argv, debug=False)
    if (file := os.environ.get("INVARLOCK_USAGE")) and code == 0:
        from invarlock.run import usage

        usage.write(Path(file), time.monotonic() - started)
    return code


def _on_one_load(argv: Sequence[str]) -> int | None:
    """Run a command that loads torch in a child of the run's fork server; its exit code.

    None where the run has no server, and where the words do not say plainly how torch is set up.
    """
    if "INVARLOCK_ONE_LOAD" not in os.environ or (found := _split(argv)) is None:
        return None
    name, words = found
    if not COMMANDS[name].loads:
        return None
    from invarlock.run import forkserver

    given = dict(itertools.pairwise(words))
    threads = given.get("--threads", "1")
    if not forkserver.wanted() or os.environ.get("OMP_NUM_THREADS") != threads:
        return None
    level = given.get("--determinism", "strict")
    setting = forkserver.Setting(level, int(threads), "--allow-network" in words)
    return forkserver.relay(argv, setting)


@contextlib.contextmanager
def _debugging() -> Iterator[None]:
    """Let the processes that a command starts show tracebacks too, for as long as it runs."""
    before = os.environ.get(DEBUG)
    os.environ[DEBUG] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[DEBUG]
        else:
            os.environ[DEBUG] = before


def _run(argv: list[str], *, debug: bool) -> int:
    if "help" in argv[: 2 if argv[:1] == [ADVANCED.strip()] else 1]:
        argv.remove("help")  # help COMMAND is COMMAND --help
        argv.append("--help")
    if argv[:1] and argv[0] in ALIASES:
        argv[:1] = ALIASES[argv[0]].split()
    group = ADVANCED if argv[:1] == [ADVANCED.strip()] else ""
    rest = argv[1:] if group else argv
    if not rest or rest[0] in ("-h", "--help"):
        print(_overview(group))
        return 0 if rest else 2
    if argv[0] in ("--version", "version"):
        print(f"invarlock {__version__}")
        return 0
    chosen = _split(argv)
    if chosen is None:
        import difflib

        known = {known.removeprefix(group): known for known in COMMANDS}
        near = difflib.get_close_matches(rest[0], known, n=1)
        guess = f"did you mean {known[near[0]]}?" if near else f"see invarlock {group}--help"
        print(f"invarlock: {group}{rest[0]} is not a command; {guess}", file=sys.stderr)
        return 2
    name, rest = chosen
    if SETTINGS not in os.environ:  # of a job, for which the workflow has said it
        for line in warnings(os.environ, ours=True):
            print(f"invarlock: warning: {line}", file=sys.stderr)
    # NumPy's algebra is small here: starting its threads would take longer. torch has its own.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    module, parser = module_of(name), parser_of(name, rest)
    try:
        args = parser.parse_args(rest)
    except UsageError as error:
        _refuse(module, rest, error.message, 2)
        raise
    if action := getattr(args, "action", None):
        record, run, _ = module.ACTIONS[action]
    else:
        record, run = module.OPTIONS, module.main
    options: Any = parsed(record, args)
    code = 0  # of a command whose reader goes away before it knows better
    try:
        with claimed(name, outputs(options)):
            code = int(run(options))
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except InvarlockError as error:
        if debug:
            raise
        print(f"invarlock {name}: {error}", file=sys.stderr)
        _refuse(module, rest, str(error), error.exit_code)
        return error.exit_code
    except BrokenPipeError:  # the reader of our output went away
        flush_output()
        return code
    except OSError as error:  # what no reader or writer of ours has worded
        where = error.filename or "a file"
        line = f"{where}: {error.strerror or error}"
        print(f"invarlock {name}: {line}", file=sys.stderr)
        _refuse(module, rest, line, InputError.exit_code)
        flush_output()
        return InputError.exit_code
    except KeyboardInterrupt:
        print(f"invarlock {name}: interrupted", file=sys.stderr)
        _refuse(module, rest, "interrupted", 130)
        return 130
