"""Find parameters of clean edits for one model: the most compressing edit that still passes.

Candidates are chosen on selection windows, and a chosen one has to pass on confirmation windows
too. Neither may hold a window that scenarios are judged on.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from invarlock.cli.evaluate import common_job
from invarlock.cli.judging import add_judging_options, check_judging_options
from invarlock.cli.measuring import add_arithmetic_options
from invarlock.edits.specs import CANDIDATES, TRAINED
from invarlock.errors import ConfigError, InputError
from invarlock.files import temporary_sibling
from invarlock.model_folder import open_model
from invarlock.policy import check_profile
from invarlock.run.container import detect
from invarlock.run.lease import lease
from invarlock.tuned import TunedParameters, joined, read_or_empty, write_tuned

if TYPE_CHECKING:
    from invarlock.cli.tune_search import Bench

NOTE = "Found by invarlock advanced tune; see search of each entry."


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of ``invarlock advanced tune``."""
    add = parser.add_argument
    add("--baseline", type=Path, required=True, metavar="DIR", help="baseline checkpoint")
    known = ", ".join(CANDIDATES)
    add("--edits", required=True, nargs="+", choices=CANDIDATES, metavar="TYPE", help=known)
    for name in ("selection", "confirmation"):
        add(f"--{name}-windows", type=Path, required=True, metavar="FILE", help="windows.json")
        add(
            f"--{name}-run",
            type=Path,
            metavar="DIR",
            help="folder of invarlock run on the baseline (default: measured first)",
        )
    add(
        "--judged-windows",
        type=Path,
        required=True,
        nargs="+",
        metavar="FILE",
        help="windows that scenarios are judged on: none of the others may be among them",
    )
    add("--training-windows", type=Path, metavar="FILE", help="what training edits learn from")
    add(
        "--update",
        type=Path,
        metavar="FILE",
        help="a table whose other entries are kept; it may be the one that is written",
    )
    add("--out", type=Path, required=True, metavar="FILE", help="tuned_edit_params.json")
    add("--profile", default="dev", help="dev, ci or release (default: dev)")
    add("--tier", default="balanced", help="tier of the policy (default: balanced)")
    add_judging_options(parser)
    add_arithmetic_options(parser)


def main(args: argparse.Namespace) -> int:
    """Search each edit type and write the table."""
    check_profile(args.profile)
    check_judging_options(args)
    open_model(args.baseline)
    if args.update and not args.update.is_file():
        raise InputError("no such file", where=str(args.update))
    trained = [e for e in args.edits if e in TRAINED]
    if trained and not args.training_windows:
        raise ConfigError(
            f"{trained[0]} is trained, and there is no text to train on",
            hint="--training-windows FILE; cut it with invarlock windows --exclude",
        )
    for run in (args.selection_run, args.confirmation_run):
        if run and not (run / "report.json").is_file():
            raise InputError("no run of the baseline is there", where=str(run))
    others = read_or_empty(args.update)

    from invarlock.run.determinism import set_environment

    set_environment(args.determinism, args.threads, args.allow_network)
    lease(args.device, args.gpus)

    from invarlock.cli.tune_search import search

    stage = temporary_sibling(args.out)
    bench = bench_of(args, stage)
    bench.require_disjoint()
    try:
        for edit_type in args.edits:
            entry = search(edit_type, bench)
            print(f"{edit_type}: {entry['status']}: {entry['reason']}", flush=True)
            found = TunedParameters("", {bench.job.model_id: {edit_type: entry}}, {}, [NOTE])
            others = joined([others, found])
            write_tuned(args.out, others)  # each at once: a search takes long
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return 0


def bench_of(args: argparse.Namespace, stage: Path) -> Bench:
    """What the options describe; ``stage`` is a folder for what is thrown away."""
    from invarlock.checkpoints import Checkpoint, tokenizer_digest
    from invarlock.cli.tune_search import CONFIRMATION, SELECTION, Bench, WindowFile
    from invarlock.windows import ids_of_others

    tokenizer = tokenizer_digest(args.baseline)
    files = (
        WindowFile.read(name, path, run or stage / name, tokenizer)
        for name, path, run in (
            (SELECTION, args.selection_windows, args.selection_run),
            (CONFIRMATION, args.confirmation_windows, args.confirmation_run),
        )
    )
    selection, confirmation = files
    apart = [*args.judged_windows, *filter(None, [args.training_windows])]
    return Bench(
        job=common_job(args, detect(None)),
        baseline=Checkpoint.open(args.baseline),
        selection=selection,
        confirmation=confirmation,
        kept_apart=ids_of_others(apart, selection.content.seq_len),
        training=args.training_windows,
        stage=stage,
    )
