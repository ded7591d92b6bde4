"""Measure one checkpoint on the windows: report.json, events.jsonl and guards.safetensors."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from invarlock.cli.measuring import MeasuringOptions
from invarlock.cli.options import option
from invarlock.cli.run_config import read_run_config
from invarlock.errors import ConfigError, InputError
from invarlock.model_folder import open_model
from invarlock.policy import check_profile, load_policy
from invarlock.reporting.telemetry import telemetry_wanted
from invarlock.run.lease import lease


@dataclass(frozen=True, kw_only=True)
class RunOptions(MeasuringOptions):
    """Options of ``invarlock run``."""

    model: Path | None = option(None, metavar="DIR", help="checkpoint")
    windows: Path | None = option(None, metavar="FILE", help="windows.json")  # type: ignore[assignment]
    config: Path | None = option(
        None,
        metavar="FILE",
        also=("-c",),
        help="run configuration (config/presets/causal_lm/*.yaml) in place of --model and "
        "--windows: both are made in OUT; what it sets wins over options",
    )


OPTIONS = RunOptions


def main(options: RunOptions) -> int:
    """Measure the baseline; a checkpoint that fails its invariants is not a baseline."""
    if options.config is not None:
        if options.model is not None or options.windows is not None:
            raise ConfigError("--config names the model and the text itself")
        # by name: what is pinned and cut is no part of what a rule's run does (``code_digest``)
        prepare = import_module("invarlock.cli.run_prepare").prepare
        options = prepare(options, read_run_config(options.config))
    if options.model is None or options.windows is None:
        raise ConfigError("no model and windows are named", expected="--model and --windows, or -c")
    policy = load_policy(options.tier)
    check_profile(options.profile)
    checkpoint = open_model(options.model)
    from invarlock.run.determinism import seed_everything, set_environment

    set_environment(options.determinism, options.threads, options.allow_network)

    from invarlock.checkpoints import tokenizer_digest
    from invarlock.guards.invariants import check_checkpoint
    from invarlock.run.hidden_states import Place
    from invarlock.run.measure import RunWindows, measure_checkpoint
    from invarlock.run.report import RunSettings, run_report, write_reference, write_run

    windows = RunWindows.read(options.windows, tokenizer_digest(options.model))
    settings = RunSettings(
        model_id=options.name_of(options.model),
        seed=options.seed,
        token_budget=options.token_budget,
        profile=options.profile,
        tier=options.tier,
        telemetry=options.telemetry or telemetry_wanted(os.environ),
    )
    determinism = seed_everything(options.determinism, options.threads, options.seed)
    failures = check_checkpoint(checkpoint, checkpoint)
    fatal = [failure for failure in failures if failure["severity"] == "fatal"]
    if fatal:
        raise InputError(
            f"the checkpoint is damaged: {fatal[0]['message']}", where=str(options.model)
        )
    checkpoint.digest()  # as all that a CPU does: before a device is asked for
    lease(options.device, options.gpus)
    measured = measure_checkpoint(
        checkpoint,
        windows,
        options.target(),
        token_budget=options.token_budget,
        against=None,
        keep=Place(options.out, checkpoint.digest(), options.hidden_states_mb * 10**6),
    )
    lost = [f for f in measured.loaded_failures if f["severity"] == "fatal"]
    if lost:
        raise InputError(str(lost[0]["message"]), where=str(options.model))
    identity = checkpoint.identity()
    report = run_report(settings, identity, windows, failures, measured, determinism, policy)
    write_reference(options.out, measured)
    write_run(options.out, report)
    for phase, seconds in measured.timings.items():
        print(f"{phase}: {seconds} s")
    return 0
