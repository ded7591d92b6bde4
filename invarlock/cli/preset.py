"""Derive a preset: thresholds for one baseline from what null edits do to it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from invarlock.cli.options import option
from invarlock.contracts import validate
from invarlock.files import read_json_object, write_json, write_text
from invarlock.preset import STATS_CONTRACT, derive, to_yaml


@dataclass(frozen=True, kw_only=True)
class PresetOptions:
    """Options of ``invarlock advanced preset``."""

    stats: Path = option(metavar="FILE", help="calibration_stats.json")
    tier: str = option(
        "balanced", help="tier whose thresholds it changes (default: balanced)", setting="tier"
    )
    out_yaml: Path = option(metavar="FILE", help="preset to write, YAML", writes=True)
    out_json: Path = option(metavar="FILE", help="the same content as JSON", writes=True)


OPTIONS = PresetOptions


def main(options: PresetOptions) -> int:
    """Write both files, and say what changed."""
    stats = read_json_object(options.stats)
    validate(stats, STATS_CONTRACT, str(options.stats))
    document = derive(stats, options.tier, str(options.stats))
    write_text(options.out_yaml, to_yaml(document))
    write_json(options.out_json, document)
    for row in document["derivation"]:
        name = row["statistic"] + (f" {row['family']}" if row["family"] else "")
        null = row["null_bound"]
        bound = "the null edits say nothing" if null is None else f"bound {null:.4g}"
        print(f"{name}: {row['direction']} {row['tier_value']:.4g} -> {row['value']:.4g} ({bound})")
    for name in document["clipped"]:
        print(f"warning: {name}: null edits may exceed the largest threshold that the tier admits")
    return 0
