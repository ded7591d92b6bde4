"""Measure what null edits change in a baseline: calibration_stats.json, the input of a preset.

The null edits are the baseline itself in smaller batches and 8-bit rounding of all projections.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from invarlock.claims import claimed
from invarlock.cli.measuring import add_arithmetic_options
from invarlock.errors import InputError
from invarlock.files import write_json
from invarlock.model_folder import open_model
from invarlock.run.lease import lease

if TYPE_CHECKING:
    from invarlock.run.calibrate import Calibration


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of ``invarlock advanced calibrate``."""
    add = parser.add_argument
    add("--baseline", type=Path, required=True, metavar="DIR", help="checkpoint")
    add("--windows", type=Path, required=True, nargs="+", metavar="FILE", help="one a seed")
    add("--out", type=Path, required=True, metavar="FILE", help="calibration_stats.json")
    add(
        "--kept",
        type=Path,
        metavar="DIR",
        help="folder where calibrations are kept: one of the same baseline, windows, arithmetic "
        "and code is taken from there",
    )
    add_arithmetic_options(parser)


def main(args: argparse.Namespace) -> int:
    """Write ``calibration_stats.json``."""
    baseline = open_model(args.baseline)
    from invarlock.run.determinism import seed_everything, set_environment

    set_environment(args.determinism, args.threads, args.allow_network)

    from invarlock.checkpoints import tokenizer_digest
    from invarlock.run.calibrate import Calibration, calibrate
    from invarlock.run.loading import Target
    from invarlock.run.measure import RunWindows

    tokenizer = tokenizer_digest(args.baseline)
    plan = Calibration(
        model_id=args.model_id or args.baseline.resolve().name,
        baseline=baseline,
        windows=[RunWindows.read(path, tokenizer) for path in args.windows],
        target=Target(args.device, args.dtype, args.allow_remote_code),
        token_budget=args.token_budget,
    )
    plan.baseline.digest()  # before the device is asked for
    lease(args.device, args.gpus)
    determinism = seed_everything(args.determinism, args.threads, args.seed)
    if args.kept is None:
        stats = calibrate(plan, args.out.parent / "null_edit")
    else:
        stats = _kept_or_measured(args, plan, determinism)
    write_json(args.out, stats)
    print(f"{len(stats['runs'])} runs of {len(stats['null_edits'])} null edits: {args.out}")
    return 0


def _kept_or_measured(
    args: argparse.Namespace, plan: Calibration, determinism: dict[str, Any]
) -> dict[str, Any]:
    """The calibration that is kept, else a new one, which is kept from now on."""
    from invarlock.run.calibrate import calibrate
    from invarlock.run.kept_calibrations import kept, place

    path = place(args.kept, plan, determinism)
    with claimed("advanced calibrate", [path]):  # another run may be measuring the same
        if stats := kept(path):
            print(f"measured for an earlier run: {path}")
            return stats
        stats = calibrate(plan, args.out.parent / "null_edit")
        try:
            write_json(path, stats)
        except InputError as error:
            print(f"invarlock advanced calibrate: warning: not kept: {error}", file=sys.stderr)
        return stats
