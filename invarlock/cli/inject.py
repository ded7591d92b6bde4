"""Make a deliberately damaged copy of a baseline checkpoint: a control that must be caught."""

from __future__ import annotations

import argparse
from pathlib import Path

from invarlock.checkpoints import Checkpoint
from invarlock.damage.kinds import DAMAGES
from invarlock.damage.specs import parse_damage
from invarlock.errors import ConfigError, InputError
from invarlock.files import parse_json, write_json


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
        "--error-type", required=True, metavar="T", help="one of " + ", ".join(DAMAGES)
    )
    parser.add_argument(
        "--parameters",
        default="{}",
        metavar="JSON",
        help="object of parameters over the published defaults, such as '{\"factor\": 10}'",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of the damaged checkpoint; replaced when it exists",
    )
    parser.add_argument(
        "--metadata", type=Path, required=True, metavar="FILE", help="error_metadata.json to write"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of the draws (default 0)"
    )


def main(args: argparse.Namespace) -> int:
    """Parse the parameters, look at the baseline, then damage a copy."""
    damage = parse_damage(args.error_type, _parameters(args.parameters))
    baseline = Checkpoint.open(args.baseline)

    from invarlock.damage.inject import error_metadata, inject

    injected = inject(baseline, damage, args.out, args.seed)
    document = error_metadata(baseline, injected)
    write_json(args.metadata, document)
    count = len(injected.subject.differing)
    files = "".join(f", {name} changed" for name in injected.subject.files)
    print(f"{args.error_type}: {count} tensors damaged{files}, written to {args.out}")
    return 0


def _parameters(text: str) -> dict[str, object]:
    try:
        value = parse_json(text.encode(), "--parameters")
    except InputError as error:
        raise ConfigError(error.what, where="--parameters", expected="a JSON object") from error
    if not isinstance(value, dict):
        raise ConfigError("not a JSON object", where="--parameters", found=text[:60])
    return value
