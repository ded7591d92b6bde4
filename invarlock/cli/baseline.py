"""Place the pinned baseline checkpoint, checked file by file, and record what it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from invarlock.cli.options import option
from invarlock.errors import ConfigError
from invarlock.sources.baseline import Placement, Storage, place_baseline, source_of, write_baseline
from invarlock.sources.hub_model import Hub
from invarlock.sources.pins import read_revisions
from invarlock.sources.spec import parse_named_model


@dataclass(frozen=True, kw_only=True)
class BaselineOptions:
    """Options of ``invarlock baseline``."""

    model: str = option(metavar="ID[=SOURCE]", help="SOURCE is needed if it is local")
    revisions: Path = option(metavar="FILE", help="model_revisions.json")
    storage: Storage = option(
        "snapshot_copy",
        choices=get_args(Storage),
        help="copy the files or link to them (a packaged model is always converted)",
        setting="baseline_storage",
    )
    min_free_gb: float = option(1.0, metavar="GB", help="disk that must stay free")
    net: bool = option(False, help="allow the download of pinned files")
    allow_pickle: bool = option(
        False,
        help="allow pickle weights; they are rewritten",
        setting="allow_pickle_checkpoints",
    )
    out: Path = option(metavar="DIR", help="models/baseline", writes=True)
    record: Path = option(metavar="FILE", help="baseline.json", writes=True)


OPTIONS = BaselineOptions


def main(options: BaselineOptions) -> int:
    """Build the folder whole or not at all, then write its record."""
    model_id, given = parse_named_model(options.model)
    if not options.min_free_gb >= 0:
        raise ConfigError("--min-free-gb is not a size", found=str(options.min_free_gb))
    pins = read_revisions(options.revisions).models
    if model_id not in pins:
        raise ConfigError(
            f"model {model_id} is not pinned",
            where=str(options.revisions),
            expected="one of " + ", ".join(pins),
        )
    pin = pins[model_id]
    placement = Placement(
        model_id,
        pin,
        source_of(pin, given, model_id),
        options.storage,
        options.min_free_gb,
        options.allow_pickle,
    )
    hub = Hub(options.net, fill="invarlock baseline with --net (snakemake --config net=1)")
    write_baseline(options.record, place_baseline(placement, hub, options.out))
    return 0
