"""Measure what null edits change in a baseline: calibration_stats.json, the input of a preset.

The null edits are the baseline itself in smaller batches and 8-bit rounding of all projections.
With null-sweep or ve-sweep: propose values of a tier from finished runs.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from invarlock.cli import sweep
from invarlock.cli.measuring import Arithmetic
from invarlock.cli.options import option
from invarlock.counts import counted
from invarlock.errors import InputError
from invarlock.files import write_json
from invarlock.model_folder import open_model
from invarlock.output_locks import claimed
from invarlock.run.lease import lease

if TYPE_CHECKING:
    from invarlock.run.calibrate import Calibration


@dataclass(frozen=True, kw_only=True)
class CalibrateOptions(Arithmetic):
    """Options of ``invarlock advanced calibrate``."""

    baseline: Path = option(metavar="DIR", help="checkpoint")
    windows: tuple[Path, ...] = option(metavar="FILE", help="one a seed")
    out: Path = option(metavar="FILE", help="calibration_stats.json", writes=True)
    kept: Path | None = option(
        None,
        metavar="DIR",
        help="folder where calibrations are kept: one of the same baseline, windows, arithmetic "
        "and code is taken from there",
    )


OPTIONS = CalibrateOptions
ACTIONS = sweep.ACTIONS


def main(options: CalibrateOptions) -> int:
    """Write ``calibration_stats.json``."""
    baseline = open_model(options.baseline)
    from invarlock.run.determinism import seed_everything, set_environment

    set_environment(options.determinism, options.threads, options.allow_network)

    from invarlock.checkpoints import tokenizer_digest
    from invarlock.run.calibrate import Calibration, calibrate
    from invarlock.run.kept_calibrations import place
    from invarlock.run.measure import RunWindows

    tokenizer = tokenizer_digest(options.baseline)
    plan = Calibration(
        model_id=options.name_of(options.baseline),
        baseline=baseline,
        windows=[RunWindows.read(path, tokenizer) for path in options.windows],
        target=options.target(),
        token_budget=options.token_budget,
    )
    plan.baseline.digest()  # before the device is asked for
    lease(options.device, options.gpus)
    determinism = seed_everything(options.determinism, options.threads, options.seed)
    if options.kept is None:
        stats = calibrate(plan, options.out.parent / "null_edit")
    else:
        stats = _kept_or_measured(place(options.kept, plan, determinism), options.out, plan)
    write_json(options.out, stats)
    runs, edits = counted(len(stats["runs"]), "run"), counted(len(stats["null_edits"]), "null edit")
    print(f"{runs} of {edits}: {options.out}")
    return 0


def _kept_or_measured(path: Path, out: Path, plan: Calibration) -> dict[str, Any]:
    """The calibration that is kept at ``path``, else a new one, which is kept from now on."""
    from invarlock.run.calibrate import calibrate
    from invarlock.run.kept_calibrations import kept

    with claimed("advanced calibrate", [path]):  # another run may be measuring the same
        if stats := kept(path):
            print(f"measured for an earlier run: {path}")
            return stats
        stats = calibrate(plan, out.parent / "null_edit")
        try:
            write_json(path, stats)
        except InputError as error:
            print(f"invarlock advanced calibrate: warning: not kept: {error}", file=sys.stderr)
        return stats
