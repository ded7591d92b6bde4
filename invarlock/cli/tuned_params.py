"""Join tables of tuned clean-edit parameters, or take the entries of some models out of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from invarlock.cli.options import option
from invarlock.tuned import TunedParameters, joined, load_tuned, write_tuned


@dataclass(frozen=True, kw_only=True)
class TunedParamsOptions:
    """Options of ``invarlock advanced tuned-params``."""

    tables: tuple[Path, ...] = option(
        metavar="FILE",
        help="tuned_edit_params.json files; of two entries for the same edit the later counts",
    )
    model: tuple[str, ...] = option(
        (),
        repeated=True,
        metavar="ID",
        help="only what counts for this model; repeatable (default: everything)",
    )
    out: Path = option(metavar="FILE", help="tuned_edit_params.json to write", writes=True)


OPTIONS = TunedParamsOptions


def main(options: TunedParamsOptions) -> int:
    """Write the table."""
    table = joined(load_tuned(path) for path in options.tables)
    if options.model:
        models = {model_id: table.of_model(model_id) for model_id in options.model}
        table = TunedParameters("", models, {}, table.notes)
    write_tuned(options.out, table)
    return 0
