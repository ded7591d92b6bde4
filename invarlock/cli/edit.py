"""Make an edited copy of a baseline checkpoint, tensor by tensor, and say what was edited.

lora_merge and fine_tune are trained on the windows of a file first.

With ``--spec custom --subject DIR`` nothing is made: what differs in a folder that you bring is
described.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from invarlock.checkpoints import Checkpoint
from invarlock.cli.measuring import add_model_options
from invarlock.edits.kind import TrainedEdit
from invarlock.edits.kinds import EDITS
from invarlock.edits.scope import SCOPES
from invarlock.edits.specs import parse_edit_spec
from invarlock.errors import ConfigError
from invarlock.files import write_json
from invarlock.model_folder import open_model

if TYPE_CHECKING:
    from invarlock.edits.apply import Trained


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
        help=", ".join(kind.form() for kind in EDITS.values())
        + f" (docs/kinds.md); scope is {', '.join(SCOPES)}, optionally with @layer=K or @layers=K",
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
    parser.add_argument("--subject", type=Path, metavar="DIR", help="your folder (spec custom)")
    parser.add_argument(
        "--label",
        default="",
        help="what was done to it (spec custom); without it noop where no weight differs",
    )
    parser.add_argument(
        "--windows", type=Path, metavar="FILE", help="windows to train on (lora_merge, fine_tune)"
    )
    add_model_options(parser.add_argument_group("training (lora_merge, fine_tune); and the seed"))


def main(args: argparse.Namespace) -> int:
    """Parse the spec, look at the baseline, then edit: torch is loaded only for the last."""
    if (args.spec == "custom") != (args.subject is not None) or (args.out is None) != (
        args.subject is not None
    ):
        raise ConfigError("--spec custom goes with --subject, every other spec with --out")
    if args.subject:
        return _describe(args)
    spec = parse_edit_spec(args.spec)
    if isinstance(spec, TrainedEdit) != (args.windows is not None):
        raise ConfigError(
            "windows to train on go with lora_merge and fine_tune, and with no other edit",
            where=args.spec,
            found="--windows" if args.windows else "no --windows",
        )
    baseline = Checkpoint.open(args.baseline)
    trained = _train(args, baseline, spec) if isinstance(spec, TrainedEdit) else None

    from invarlock.edits.apply import apply_edit
    from invarlock.edits.metadata import edit_metadata

    edited = apply_edit(baseline, spec, args.out, args.seed, trained)
    write_json(args.metadata, edit_metadata(baseline, edited))
    print(f"{args.spec}: {len(edited.targets)} tensors edited, written to {args.out}")
    return 0


def _train(args: argparse.Namespace, baseline: Checkpoint, spec: TrainedEdit) -> Trained:
    """Train on the windows, in a process that is set up as for a measurement."""
    from invarlock.run.determinism import seed_everything, set_environment
    from invarlock.run.lease import lease

    set_environment(args.determinism, args.threads, args.allow_network)
    lease(args.device, args.gpus)

    from invarlock.run.loading import Target
    from invarlock.run.train import Training, train

    seed_everything(args.determinism, args.threads, args.seed)
    target = Target(args.device, args.dtype, args.allow_remote_code)
    trained = train(baseline, spec, Training(args.windows, target, args.token_budget, args.seed))
    for number, step in enumerate(trained.losses, 1):
        print(f"step {number}: loss {step['before']:.6g} before, {step['after']:.6g} after")
    return trained


def _describe(args: argparse.Namespace) -> int:
    """Write the metadata of a folder that the user brings."""
    from invarlock.edits.metadata import custom_metadata
    from invarlock.guards.findings import label_of

    baseline, subject = open_model(args.baseline), open_model(args.subject, args.baseline)
    if subject.config != baseline.config:
        from invarlock.run.loading import check_loadable

        # said here, in seconds: the baseline would be measured before anybody loads the subject
        check_loadable(args.subject, args.allow_remote_code)
    label = label_of(args.label, baseline.parts(), subject.parts())
    write_json(args.metadata, custom_metadata(baseline, subject, label))
    print(f"{label}: {len(subject.tensors)} tensors compared with {args.baseline}")
    return 0
