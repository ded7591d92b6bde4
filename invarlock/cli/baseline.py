"""Place the pinned baseline checkpoint, checked file by file, and record what it is."""

from __future__ import annotations

import argparse
from pathlib import Path

from invarlock.errors import ConfigError
from invarlock.sources.baseline import Placement, place_baseline, source_of, write_baseline
from invarlock.sources.hub_model import Hub
from invarlock.sources.pins import read_revisions
from invarlock.sources.spec import parse_named_model


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of ``invarlock baseline``."""
    add = parser.add_argument
    add("--model", required=True, metavar="ID[=SOURCE]", help="SOURCE is needed if it is local")
    add("--revisions", required=True, type=Path, metavar="FILE", help="model_revisions.json")
    add(
        "--storage",
        choices=("snapshot_copy", "snapshot_symlink"),
        default="snapshot_copy",
        help="copy the files or link to them (a packaged model is always converted)",
    )
    add("--min-free-gb", type=float, default=1.0, metavar="GB", help="disk that must stay free")
    add("--net", action="store_true", help="allow the download of pinned files")
    add("--allow-pickle", action="store_true", help="allow pickle weights; they are rewritten")
    add("--out", required=True, type=Path, metavar="DIR", help="models/baseline")
    add("--record", required=True, type=Path, metavar="FILE", help="baseline.json")


def main(args: argparse.Namespace) -> int:
    """Build the folder whole or not at all, then write its record."""
    model_id, given = parse_named_model(args.model)
    if not args.min_free_gb >= 0:
        raise ConfigError("--min-free-gb is not a size", found=str(args.min_free_gb))
    pins = read_revisions(args.revisions).models
    if model_id not in pins:
        raise ConfigError(
            f"model {model_id} is not pinned",
            where=str(args.revisions),
            expected="one of " + ", ".join(pins),
        )
    pin = pins[model_id]
    placement = Placement(
        model_id,
        pin,
        source_of(pin, given, model_id),
        args.storage,
        args.min_free_gb,
        args.allow_pickle,
    )
    hub = Hub(args.net, fill="invarlock baseline with --net (snakemake --config net=1)")
    write_baseline(args.record, place_baseline(placement, hub, args.out))
    return 0
