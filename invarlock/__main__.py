"""Run the command line: ``python -m invarlock``, and the script ``invarlock``."""

from __future__ import annotations

import gc


def main() -> int:
    """The command line, with the collector of cycles at rest before and after it.

    Modules and parsed JSON hardly have any. To look for them while modules are loaded, and again
    in all that is left at the end, takes a third of the time of a short command.
    """
    gc.set_threshold(100_000)
    from invarlock.cli import main as command_line

    try:
        return command_line()
    finally:
        gc.freeze()  # the system takes back what is left at once


if __name__ == "__main__":
    raise SystemExit(main())
