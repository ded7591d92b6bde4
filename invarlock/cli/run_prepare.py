"""What ``invarlock run -c`` makes before it measures: pins, checkpoint and windows."""

from __future__ import annotations

from dataclasses import replace

from invarlock.cli import baseline, pin, windows
from invarlock.cli.run import RunOptions
from invarlock.cli.run_config import SEED, RunConfig
from invarlock.policy import check_profile, load_policy


def prepare(options: RunOptions, config: RunConfig) -> RunOptions:
    """Pin, place and cut what the configuration names, by the commands that do so."""
    out, values = options.out, config.values
    options = replace(options, **{"model_id": config.name, **config.options})
    load_policy(options.tier)
    check_profile(options.profile)
    net = options.allow_network or bool(values.get("run/net"))
    pins, named = out / "model_revisions.json", f"{config.name}={config.source}"
    pin.main(
        pin.PinOptions(
            suite="run",
            model=(named,),
            text=(config.text,),
            net=net,
            allow_remote_code=options.allow_remote_code,
            out=pins,
        )
    )
    folder, cut = out / "model", out / "windows.json"
    baseline.main(
        baseline.BaselineOptions(
            model=named, revisions=pins, net=net, out=folder, record=out / "baseline.json"
        )
    )
    windows.main(
        windows.WindowsOptions(
            tokenizer=folder,
            text=config.text,
            revisions=pins,
            seq_len=values["dataset/seq_len"],
            preview=values["dataset/windows/preview"],
            final=values["dataset/windows/final"],
            seed=values.get("dataset/windows/seed", SEED),
            net=net,
            out=cut,
        )
    )
    return replace(options, model=folder, windows=cut)
