"""Join tables of tuned clean-edit parameters, or take the entries of some models out of them."""

from __future__ import annotations

import argparse
from pathlib import Path

from invarlock.tuned import TunedParameters, joined, load_tuned, write_tuned


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of ``invarlock advanced tuned-params``."""
    add = parser.add_argument
    add(
        "--tables",
        type=Path,
        required=True,
        nargs="+",
        metavar="FILE",
        help="tuned_edit_params.json files; of two entries for the same edit the later counts",
    )
    add(
        "--model",
        action="append",
        default=[],
        metavar="ID",
        help="only what counts for this model; repeatable (default: everything)",
    )
    add("--out", type=Path, required=True, metavar="FILE", help="tuned_edit_params.json to write")


def main(args: argparse.Namespace) -> int:
    """Write the table."""
    table = joined(load_tuned(path) for path in args.tables)
    if args.model:
        models = {model_id: table.of_model(model_id) for model_id in args.model}
        table = TunedParameters("", models, {}, table.notes)
    write_tuned(args.out, table)
    return 0
