"""What a command makes: files and folders that it claims, and standard output, whose reader may go
away without a change of how the command ends."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

# Options, by the name of their value, that say where a command writes.
OUTPUTS = (
    *("out", "out_dir", "out_json", "out_yaml", "analysis_dir", "metadata", "record"),
    *("junit", "json_out", "public"),
)


def outputs_of(options: object) -> list[Path]:
    """The files and folders that a command line asks for."""
    values = (getattr(options, name, None) for name in OUTPUTS)
    return [value for value in values if isinstance(value, Path)]


@contextlib.contextmanager
def printing() -> Iterator[None]:
    """Print a result, and keep the exit code when the reader closes the pipe early.

    In ``verify ... | head`` the result is known before it is printed, so that a broken pipe says
    nothing about it.
    """
    try:
        yield
    except BrokenPipeError:
        flush_output()


def flush_output() -> None:
    """Flush standard output; what cannot be written any more is dropped.

    Otherwise Python tries once more when it ends, and ends with a code of its own.
    """
    if sys.stdout is None:  # closed before we were started
        return
    try:
        sys.stdout.flush()
    except OSError:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
