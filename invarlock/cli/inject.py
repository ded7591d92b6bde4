"""Make a deliberately damaged copy of a baseline checkpoint: a control that must be caught."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from invarlock.checkpoints import Checkpoint
from invarlock.cli.options import option
from invarlock.counts import counted
from invarlock.damage.kinds import DAMAGES
from invarlock.damage.specs import parse_damage
from invarlock.errors import ConfigError, InputError
from invarlock.files import parse_json, write_json


@dataclass(frozen=True, kw_only=True)
class InjectOptions:
    """Options of ``invarlock inject``."""

    baseline: Path = option(metavar="DIR", help="folder with config.json and safetensors weights")
    error_type: str = option(metavar="T", help="one of " + ", ".join(DAMAGES))
    parameters: str = option(
        "{}",
        metavar="JSON",
        help="object of parameters over the published defaults, such as '{\"factor\": 10}'",
    )
    out: Path = option(
        metavar="DIR", help="folder of the damaged checkpoint; replaced when it exists", writes=True
    )
    metadata: Path = option(metavar="FILE", help="error_metadata.json to write", writes=True)
    seed: int = option(0, metavar="N", help="seed of the draws (default 0)", setting="seed")


OPTIONS = InjectOptions


def main(options: InjectOptions) -> int:
    """Parse the parameters, look at the baseline, then damage a copy."""
    damage = parse_damage(options.error_type, _parameters(options.parameters))
    baseline = Checkpoint.open(options.baseline)

    from invarlock.damage.inject import error_metadata, inject

    injected = inject(baseline, damage, options.out, options.seed)
    document = error_metadata(baseline, injected)
    write_json(options.metadata, document)
    count = len(injected.subject.differing)
    files = "".join(f", {name} changed" for name in injected.subject.files)
    print(
        f"{options.error_type}: {counted(count, 'tensor')} damaged{files}, written to {options.out}"
    )
    return 0


def _parameters(text: str) -> dict[str, object]:
    try:
        value = parse_json(text.encode(), "--parameters")
    except InputError as error:
        raise ConfigError(error.what, where="--parameters", expected="a JSON object") from error
    if not isinstance(value, dict):
        raise ConfigError("not a JSON object", where="--parameters", found=text[:60])
    return value
