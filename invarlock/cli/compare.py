"""Compare a subject with its baseline: one command from two models to a verdict.

Baseline run, windows and thresholds are measured once and kept for the next subject. Exit codes: 0
PASS, 1 FAIL, 8 INCONCLUSIVE; 2 are wrong options, 3 is a model or file that cannot be used.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from invarlock.cli.compare_options import MOST_THREADS, CompareOptions
from invarlock.errors import ConfigError
from invarlock.files import slug
from invarlock.output_locks import claimed

OPTIONS = CompareOptions


def main(options: CompareOptions) -> int:
    """Compare, show the verdict, and answer by the exit code."""
    from invarlock.cli.compare_told import document, told
    from invarlock.cli.comparison import Comparison

    if options.threads < 0:
        raise ConfigError("--threads is not a number of threads", found=str(options.threads))
    out = options.out or _fresh(options.name.rpartition("//")[2].replace("/", "-"))
    with claimed("compare", [out]):
        result = Comparison(options, out, options.threads or _cores()).run()
    if options.json:
        print(json.dumps(document(result), sort_keys=True))
    else:
        print(told(result, sys.stdout.isatty()), end="")
    return result.exit_code


def refused(words: Sequence[str], line: str, code: int) -> dict[str, Any]:
    """The document of a comparison that ended before it had a result."""
    from invarlock.cli.compare_told import FORMAT

    return {"format_version": FORMAT, "ok": False, "exit_code": code, "errors": [line]}


def _cores() -> int:
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(MOST_THREADS, count or 1)


def _fresh(subject: str) -> Path:
    """A folder that is not there yet, named after the subject."""
    name = f"compare-{slug(subject or 'subject')}"
    number, folder = 1, Path(name)
    while os.path.lexists(folder):
        number += 1
        folder = Path(f"{name}-{number}")
    return folder
