"""Standard output, whose reader may go away without a change of how a command ends."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator


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
