"""Make an edited copy of a baseline checkpoint, tensor by tensor, and say what was edited.

With ``--spec custom --subject DIR`` nothing is made: what differs in a folder that you bring is
described.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from invarlock.checkpoints import Checkpoint
from invarlock.edits.specs import parse_edit_spec
from invarlock.errors import ConfigError
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
        metavar="DIR",
        help="folder of the edited checkpoint; replaced when it exists",
    )
    parser.add_argument(
        "--metadata", type=Path, required=True, metavar="FILE", help="edit_metadata.json to write"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of the edit's draws (default 0)"
    )
    parser.add_argument("--subject", type=Path, metavar="DIR", help="your folder (spec custom)")
    parser.add_argument("--label", default="custom", help="what was done to it (spec custom)")


def main(args: argparse.Namespace) -> int:
    """Parse the spec, look at the baseline, then edit: torch is loaded only for the last."""
    if (args.spec == "custom") != (args.subject is not None) or (args.out is None) != (
        args.subject is not None
    ):
        raise ConfigError("--spec custom goes with --subject, every other spec with --out")
    if args.subject:
        return _describe(args)
    spec = parse_edit_spec(args.spec)
    baseline = Checkpoint.open(args.baseline)

    from invarlock.edits.apply import apply_edit
    from invarlock.edits.metadata import edit_metadata

    edited = apply_edit(baseline, spec, args.out, args.seed)
    write_json(args.metadata, edit_metadata(baseline, edited))
    print(f"{args.spec}: {len(edited.targets)} tensors edited, written to {args.out}")
    return 0


def _describe(args: argparse.Namespace) -> int:
    """Write the metadata of a folder that the user brings."""
    from invarlock.edits.metadata import custom_metadata

    baseline, subject = Checkpoint.open(args.baseline), Checkpoint.open(args.subject)
    document = custom_metadata(baseline, subject, args.label)
    write_json(args.metadata, document)
    print(f"{args.label}: {len(subject.tensors)} tensors compared with {args.baseline}")
    return 0
