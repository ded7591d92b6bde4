"""Measure one checkpoint on the windows: report.json, events.jsonl and guards.safetensors."""

from __future__ import annotations

import argparse
from pathlib import Path

from invarlock.cli.measuring import add_measuring_options
from invarlock.errors import InputError
from invarlock.model_folder import open_model
from invarlock.policy import check_profile, load_policy
from invarlock.run.lease import lease


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of ``invarlock run``."""
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="checkpoint")
    add_measuring_options(parser)


def main(args: argparse.Namespace) -> int:
    """Measure the baseline; a checkpoint that fails its invariants is not a baseline."""
    load_policy(args.tier)
    check_profile(args.profile)
    checkpoint = open_model(args.model)
    from invarlock.run.determinism import seed_everything, set_environment

    set_environment(args.determinism, args.threads, args.allow_network)

    from invarlock.checkpoints import tokenizer_digest
    from invarlock.guards.invariants import check_checkpoint
    from invarlock.run.loading import Target
    from invarlock.run.measure import RunWindows, measure_checkpoint
    from invarlock.run.report import RunSettings, run_report, write_reference, write_run

    windows = RunWindows.read(args.windows, tokenizer_digest(args.model))
    settings = RunSettings(
        model_id=args.model_id or args.model.resolve().name,
        seed=args.seed,
        token_budget=args.token_budget,
        profile=args.profile,
        tier=args.tier,
    )
    determinism = seed_everything(args.determinism, args.threads, args.seed)
    failures = check_checkpoint(checkpoint, checkpoint)
    fatal = [failure for failure in failures if failure["severity"] == "fatal"]
    if fatal:
        raise InputError(f"the checkpoint is damaged: {fatal[0]['message']}", where=str(args.model))
    checkpoint.digest()  # as all that a CPU does: before a device is asked for
    lease(args.device, args.gpus)
    measured = measure_checkpoint(
        checkpoint,
        windows,
        Target(args.device, args.dtype, args.allow_remote_code),
        token_budget=args.token_budget,
        against=None,
    )
    lost = [f for f in measured.loaded_failures if f["severity"] == "fatal"]
    if lost:
        raise InputError(str(lost[0]["message"]), where=str(args.model))
    report = run_report(settings, checkpoint.identity(), windows, failures, measured, determinism)
    write_reference(args.out, measured)
    write_run(args.out, report)
    for phase, seconds in measured.timings.items():
        print(f"{phase}: {seconds} s")
    return 0
