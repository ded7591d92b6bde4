"""Write the effective scenario manifest of a suite, or list its scenarios."""

from __future__ import annotations

import argparse
from pathlib import Path

from invarlock.errors import ConfigError
from invarlock.files import write_json
from invarlock.scenarios import CATEGORIES, effective_manifest, load_catalogue


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--catalogue", type=Path, required=True, help="scenarios.json")
    parser.add_argument("--suite", required=True, help="suite to select")
    parser.add_argument(
        "--scenario", action="append", default=[], metavar="ID", help="only this one; repeatable"
    )
    parser.add_argument(
        "--category",
        action="append",
        default=[],
        metavar="NAME",
        help=f"only this category ({', '.join(CATEGORIES)}); repeatable",
    )
    parser.add_argument(
        "--runs",
        action="append",
        default=[],
        metavar="CATEGORY=N",
        help="evaluations of each scenario of a category; repeatable",
    )
    parser.add_argument("--out", type=Path, help="file to write")
    parser.add_argument("--list", action="store_true", help="print the selection")


def main(args: argparse.Namespace) -> int:
    """Run the command."""
    if args.out is None and not args.list:
        raise ConfigError("nothing to do", hint="give --out FILE, --list or both")
    catalogue = load_catalogue(args.catalogue)
    selection = catalogue.select(args.suite, args.scenario, args.category)
    if args.list:
        width = max(len(s.id) for s in selection)
        for s in selection:
            made_by = s.edit_spec or s.error_type
            print(f"{s.id:<{width}}  {s.category:<15}  {s.strictness:<13}  {made_by}")
    if args.out is not None:
        runs = dict(_runs(text) for text in args.runs)
        manifest = effective_manifest(catalogue, args.suite, args.scenario, args.category, runs)
        write_json(args.out, manifest)
    return 0


def _runs(text: str) -> tuple[str, int]:
    category, _, number = text.partition("=")
    if category not in CATEGORIES or not number.isdecimal() or int(number) < 1:
        raise ConfigError(
            "is no number of runs", where="--runs", expected="CATEGORY=N", found=text[:60]
        )
    return category, int(number)
