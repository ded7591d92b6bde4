"""Derive a preset: thresholds for one baseline from what null edits do to it."""

from __future__ import annotations

import argparse
from pathlib import Path

from invarlock.files import read_json_object, write_json, write_text
from invarlock.preset import derive, to_yaml


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of ``invarlock advanced preset``."""
    add = parser.add_argument
    add("--stats", type=Path, required=True, metavar="FILE", help="calibration_stats.json")
    add("--tier", default="balanced", help="tier whose thresholds it changes (default: balanced)")
    add("--out-yaml", type=Path, required=True, metavar="FILE", help="preset to write, YAML")
    add("--out-json", type=Path, required=True, metavar="FILE", help="the same content as JSON")


def main(args: argparse.Namespace) -> int:
    """Write both files, and say what changed."""
    document = derive(read_json_object(args.stats), args.tier, str(args.stats))
    write_text(args.out_yaml, to_yaml(document))
    write_json(args.out_json, document)
    for row in document["derivation"]:
        name = row["statistic"] + (f" {row['family']}" if row["family"] else "")
        null = row["null_bound"]
        bound = "the null edits say nothing" if null is None else f"bound {null:.4g}"
        print(f"{name}: {row['direction']} {row['tier_value']:.4g} -> {row['value']:.4g} ({bound})")
    for name in document["clipped"]:
        print(f"warning: {name}: null edits may exceed the largest threshold that the tier admits")
    return 0
