"""Make an edited copy of a baseline checkpoint, tensor by tensor, and say what was edited."""

from __future__ import annotations

import argparse
from pathlib import Path

from invarlock.checkpoints import Checkpoint
from invarlock.edits.specs import parse_edit_spec
from invarlock.files import write_json


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--baseline",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder with config.json and safetensors weights",
    )
    parser.add_argument(
        "--spec",
        required=True,
        metavar="SPEC",
        help="noop, quant_rtn:<bits>:<group_size>:<scope>, "
        "fp8_quant:<e4m3|e5m2>:<scope>, magnitude_prune:<sparsity>:<scope> or "
        "lowrank_svd:<rank>:<scope>; scope is ffn, attn, all or embed, "
        "optionally with @layer=K or @layers=K",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of the edited checkpoint; replaced when it exists",
    )
    parser.add_argument(
        "--metadata", type=Path, required=True, metavar="FILE", help="edit_metadata.json to write"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of the edit's draws (default 0)"
    )


def main(args: argparse.Namespace) -> int:
    """Parse the spec, look at the baseline, then edit: torch is loaded only for the last."""
    spec = parse_edit_spec(args.spec)
    baseline = Checkpoint.open(args.baseline)

    from invarlock.edits.apply import apply_edit
    from invarlock.edits.metadata import edit_metadata

    edited = apply_edit(baseline, spec, args.out, args.seed)
    write_json(args.metadata, edit_metadata(baseline, edited))
    print(f"{args.spec}: {len(edited.targets)} tensors edited, written to {args.out}")
    return 0
