"""Find parameters of clean edits for one model: the most compressing edit that still passes.

Candidates are chosen on selection windows, and a chosen one has to pass on confirmation windows
too. Neither may hold a window that scenarios are judged on.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from invarlock.cli.judging import Judging
from invarlock.cli.measuring import Arithmetic
from invarlock.cli.options import option
from invarlock.edits.specs import CANDIDATES, TRAINED
from invarlock.errors import ConfigError, InputError
from invarlock.files import temporary_sibling
from invarlock.model_folder import open_model
from invarlock.run.lease import lease
from invarlock.tuned import TunedParameters, joined, read_or_empty, write_tuned

if TYPE_CHECKING:
    from invarlock.cli.tune_search import Bench

RUN_HELP = "folder of invarlock run on the baseline (default: measured first)"
NOTE = "Found by invarlock advanced tune; see search of each entry."


@dataclass(frozen=True, kw_only=True)
class TuneOptions(Judging, Arithmetic):
    """Options of ``invarlock advanced tune``."""

    baseline: Path = option(metavar="DIR", help="baseline checkpoint")
    edits: tuple[str, ...] = option(
        choices=tuple(CANDIDATES), metavar="TYPE", help=", ".join(CANDIDATES)
    )
    selection_windows: Path = option(metavar="FILE", help="windows.json")
    selection_run: Path | None = option(None, metavar="DIR", help=RUN_HELP)
    confirmation_windows: Path = option(metavar="FILE", help="windows.json")
    confirmation_run: Path | None = option(None, metavar="DIR", help=RUN_HELP)
    judged_windows: tuple[Path, ...] = option(
        metavar="FILE",
        help="windows that scenarios are judged on: none of the others may be among them",
    )
    training_windows: Path | None = option(
        None, metavar="FILE", help="what training edits learn from"
    )
    update: Path | None = option(
        None,
        metavar="FILE",
        help="a table whose other entries are kept; it may be the one that is written",
    )
    out: Path = option(metavar="FILE", help="tuned_edit_params.json", writes=True)


OPTIONS = TuneOptions


def main(options: TuneOptions) -> int:
    """Search each edit type and write the table."""
    options.check_judging()
    open_model(options.baseline)
    if options.update and not options.update.is_file():
        raise InputError("no such file", where=str(options.update))
    trained = [e for e in options.edits if e in TRAINED]
    if trained and not options.training_windows:
        raise ConfigError(
            f"{trained[0]} is trained, and there is no text to train on",
            hint="--training-windows FILE; cut it with invarlock windows --exclude",
        )
    for run in (options.selection_run, options.confirmation_run):
        if run and not (run / "report.json").is_file():
            raise InputError("no run of the baseline is there", where=str(run))
    others = read_or_empty(options.update)

    from invarlock.run.determinism import set_environment

    set_environment(options.determinism, options.threads, options.allow_network)
    lease(options.device, options.gpus)

    from invarlock.cli.tune_search import search

    stage = temporary_sibling(options.out)
    bench = bench_of(options, stage)
    bench.require_disjoint()
    try:
        for edit_type in options.edits:
            entry = search(edit_type, bench)
            print(f"{edit_type}: {entry['status']}: {entry['reason']}", flush=True)
            found = TunedParameters("", {bench.model_id: {edit_type: entry}}, {}, [NOTE])
            others = joined([others, found])
            write_tuned(options.out, others)  # each at once: a search takes long
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return 0


def bench_of(options: TuneOptions, stage: Path) -> Bench:
    """What the options describe; ``stage`` is a folder for what is thrown away."""
    from invarlock.checkpoints import Checkpoint, tokenizer_digest
    from invarlock.cli.tune_search import CONFIRMATION, SELECTION, Bench, WindowFile
    from invarlock.windows import ids_of_others

    tokenizer = tokenizer_digest(options.baseline)
    files = (
        WindowFile.read(name, path, run or stage / name, tokenizer)
        for name, path, run in (
            (SELECTION, options.selection_windows, options.selection_run),
            (CONFIRMATION, options.confirmation_windows, options.confirmation_run),
        )
    )
    selection, confirmation = files
    apart = [*options.judged_windows, *filter(None, [options.training_windows])]
    return Bench(
        options=options,
        baseline=Checkpoint.open(options.baseline),
        selection=selection,
        confirmation=confirmation,
        kept_apart=ids_of_others(apart, selection.content.seq_len, selection.content.bos),
        stage=stage,
    )
