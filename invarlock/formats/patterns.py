"""Patterns of module names that come with a subject, looked at before anything here matches them.

A pattern such as ``(.*)*x`` takes years to say that a name does not match, and loaders match every
module of a model with it. Whether a pattern ends is no matter of its looks, so it is tried: on the
names that it is for, in a process whose CPU time the kernel bounds.
"""

from __future__ import annotations

import functools
import json
import re
import resource
import subprocess
import sys
from collections.abc import Iterable

from invarlock.errors import InputError

SECONDS = 5  # of CPU time for all patterns on all names; those that people write take milliseconds
LONGEST = 10_000  # characters of a pattern
# Without a group that holds what repeats, or many repetitions, a pattern cannot take long.
REPEATS, FEW = re.compile(r"[*+{]"), 3
SCRIPT = """
import json, re, sys
patterns, names = json.load(sys.stdin)
for pattern in map(re.compile, patterns):
    for name in names:
        pattern.match(name)
        pattern.fullmatch(name)
        pattern.search(name)
"""


def require_patterns(patterns: Iterable[str], names: Iterable[str], where: str) -> None:
    """Refuse what is no pattern, and what does not end on these names in time.

    Args:
        patterns: regular expressions.
        names: of modules; what stands before each point in one is a module too.
        where: the file that holds the patterns.

    Raises:
        InputError: one line.
    """
    given = [*dict.fromkeys(patterns)]
    for pattern in given:
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise InputError(f"not a pattern: {pattern[:80]!r} ({error})", where=where) from error
    doubtful = [
        pattern
        for pattern in given
        if len(pattern) > LONGEST
        or len(REPEATS.findall(pattern)) > FEW
        or ("(" in pattern and REPEATS.search(pattern))
    ]
    if not doubtful:
        return
    modules = {part for name in names for part in _and_above(name)}
    if not all(len(p) <= LONGEST for p in doubtful) or not _end(
        tuple(doubtful), tuple(sorted(modules))
    ):
        slow = max(doubtful, key=lambda p: (len(p) > LONGEST, len(REPEATS.findall(p))))
        raise InputError(
            f"a pattern of module names takes longer than {SECONDS} s to match: {slow[:80]!r}",
            where=where, hint="write it without repetitions inside of repetitions",
        )  # fmt: skip


def _and_above(name: str) -> Iterable[str]:
    """A name, and those of what it is part of."""
    while name:
        yield name
        name = name.rpartition(".")[0]


@functools.lru_cache(maxsize=16)
def _end(patterns: tuple[str, ...], names: tuple[str, ...]) -> bool:
    """Whether the patterns are done with the names in time."""

    def bounded() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))

    tried = subprocess.run(
        [sys.executable, "-I", "-S", "-c", SCRIPT],
        input=json.dumps([patterns, names]),
        text=True,
        capture_output=True,
        preexec_fn=bounded,
        check=False,
    )
    return tried.returncode == 0
