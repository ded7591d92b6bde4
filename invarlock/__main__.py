"""Run the command line: ``python -m invarlock``, and the script ``invarlock``."""

from __future__ import annotations

import gc


def main() -> int:
    """The command line, loaded with the collector of cycles at rest.

    Modules and parsed JSON hardly have any; to look for them while both are loaded takes a quarter
    of the time of a short command.
    """
    gc.set_threshold(100_000)
    from invarlock.cli import main as command_line

    return command_line()


if __name__ == "__main__":
    raise SystemExit(main())
