"""Pack a baseline by a deployment backend, as the one that serves it would.

What is written is loaded by that backend as it stands: a folder of packed safetensors for
transformers, or a GGUF file for llama.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from invarlock.cli.options import option
from invarlock.deployment import BACKENDS, SCALES, parse_packing_spec
from invarlock.files import write_json


def _forms() -> str:
    return ", ".join(f"{name}:{form}" for name, one in BACKENDS.items() for form in one.forms)


@dataclass(frozen=True, kw_only=True)
class PackWeightsOptions:
    """Options of ``invarlock advanced pack-weights``."""

    baseline: Path = option(metavar="DIR", help="baseline checkpoint")
    spec: str = option(metavar="SPEC", help=f"{_forms()}; with :{SCALES} its scales are exchanged")
    out: Path = option(metavar="DIR", help="folder of the packed model", writes=True)
    metadata: Path = option(metavar="FILE", help="edit_metadata.json to write", writes=True)
    seed: int = option(43, metavar="N", help="seed of the generators (default: 43)", setting="seed")
    threads: int = option(1, metavar="N", help="CPU threads (default: 1)", setting="threads")


OPTIONS = PackWeightsOptions


def main(options: PackWeightsOptions) -> int:
    """Run the command."""
    spec = parse_packing_spec(options.spec)

    from invarlock.run.determinism import seed_everything, set_environment

    set_environment("strict", options.threads, False)
    seed_everything("strict", options.threads, options.seed)

    from invarlock.checkpoints import Checkpoint
    from invarlock.edits.metadata import custom_metadata
    from invarlock.run.pack_weights import pack_weights
    from invarlock.scenarios import DEPLOYABLE

    baseline = Checkpoint.open(options.baseline)
    pack_weights(baseline, spec, options.out)
    subject = Checkpoint.open(options.out, options.baseline)
    document = custom_metadata(baseline, subject, "", DEPLOYABLE, spec)
    write_json(options.metadata, document)
    print(f"{options.spec}: {len(subject.packed)} tensors packed, written to {options.out}")
    return 0
