"""Make an edited copy of a baseline checkpoint, tensor by tensor, and say what was edited.

lora_merge and fine_tune are trained on the windows of a file first, importance_prune weighs inputs
on them.

With ``--spec custom --subject DIR`` nothing is made: what differs in a folder that you bring is
described.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from invarlock.checkpoints import Checkpoint
from invarlock.cli.measuring import Loading, Permissions
from invarlock.cli.options import option
from invarlock.counts import counted
from invarlock.edits.kind import TextEdit, TrainedEdit
from invarlock.edits.kinds import EDITS
from invarlock.edits.kinds.importance_prune import ImportancePrune
from invarlock.edits.scope import SCOPES
from invarlock.edits.specs import FROM_TEXT, parse_edit_spec
from invarlock.errors import ConfigError, InputError
from invarlock.files import write_json
from invarlock.model_folder import open_model
from invarlock.scenarios import DEPLOYABLE, VALIDATION

if TYPE_CHECKING:
    from invarlock.edits.apply import FromText


@dataclass(frozen=True, kw_only=True)
class EditOptions(Loading, Permissions):
    """Options of ``invarlock edit``."""

    titles: ClassVar = {Loading: "where a text goes through the model; and the seed"}
    baseline: Path = option(metavar="DIR", help="folder with config.json and safetensors weights")
    spec: str = option(
        metavar="SPEC",
        help=", ".join(kind.form() for kind in EDITS.values())
        + f" (docs/kinds.md); scope is {', '.join(SCOPES)}, optionally with @layer=K or @layers=K",
    )
    out: Path | None = option(
        None,
        metavar="DIR",
        help="folder of the edited checkpoint; replaced when it exists",
        writes=True,
    )
    metadata: Path = option(metavar="FILE", help="edit_metadata.json to write", writes=True)
    subject: Path | None = option(
        None, metavar="PATH", help="your folder, or file of a format that is one (spec custom)"
    )
    label: str = option(
        "",
        help="what was done to it (spec custom); without it noop where no weight differs",
    )
    artifact_class: str = option(
        "",
        choices=("", VALIDATION, DEPLOYABLE),
        help=f"what it is for (spec custom; default: {VALIDATION})",
        setting="artifact_class",
    )
    windows: Path | None = option(
        None, metavar="FILE", help="windows of a text for " + ", ".join(FROM_TEXT)
    )


OPTIONS = EditOptions


def main(options: EditOptions) -> int:
    """Parse the spec, look at the baseline, then edit: torch is loaded only for the last."""
    if options.spec == "custom" and options.subject and not options.out:
        return _describe(options, options.subject)
    if options.spec == "custom" or options.subject or not options.out:
        raise ConfigError("--spec custom goes with --subject, every other spec with --out")
    spec = parse_edit_spec(options.spec)
    if isinstance(spec, TextEdit) != (options.windows is not None):
        raise ConfigError(
            f"windows of a text go with {', '.join(FROM_TEXT)}, and with no other edit",
            where=options.spec,
            found="--windows" if options.windows else "no --windows",
        )
    baseline = Checkpoint.open(options.baseline)
    given = None
    if isinstance(spec, TextEdit) and options.windows:
        given = _from_text(options, options.windows, baseline, spec)

    from invarlock.edits.apply import apply_edit
    from invarlock.edits.metadata import edit_metadata

    edited = apply_edit(baseline, spec, options.out, options.seed, given)
    write_json(options.metadata, edit_metadata(baseline, edited))
    print(
        f"{options.spec}: {counted(len(edited.targets), 'tensor')} edited, written to {options.out}"
    )
    return 0


def _from_text(
    options: EditOptions, windows: Path, baseline: Checkpoint, spec: TextEdit
) -> FromText:
    """Send the windows through the model, in a process that is set up as for a measurement."""
    from invarlock.run.determinism import seed_everything, set_environment
    from invarlock.run.lease import lease

    set_environment(options.determinism, options.threads, options.allow_network)
    lease(options.device, options.gpus)

    from invarlock.run.importance import calibrate
    from invarlock.run.train import Training, train

    seed_everything(options.determinism, options.threads, options.seed)
    training = Training(windows, options.target(), options.token_budget, options.seed)
    if isinstance(spec, ImportancePrune):
        return calibrate(baseline, spec, training)
    assert isinstance(spec, TrainedEdit)
    trained = train(baseline, spec, training)
    for number, step in enumerate(trained.losses, 1):
        print(f"step {number}: loss {step['before']:.6g} before, {step['after']:.6g} after")
    return trained


def _describe(options: EditOptions, folder: Path) -> int:
    """Write the metadata of a folder that the user brings."""
    from invarlock.edits.metadata import custom_metadata
    from invarlock.guards.findings import label_of

    baseline = open_model(options.baseline)
    subject = open_model(folder, options.baseline, options.allowed)
    if subject.config != baseline.config:
        from invarlock.run.loading import check_loadable

        # said here, in seconds: the baseline would be measured before anybody loads the subject
        check_loadable(subject.folder, options.allow_remote_code)
    label = label_of(options.label, baseline.parts(), subject.parts())
    kind = options.artifact_class or VALIDATION
    if kind == DEPLOYABLE and not subject.packing():
        raise InputError(
            f"is of class {DEPLOYABLE}, and its weights are dense", where=str(folder),
            expected="weights that a backend has packed", found=subject.form.name,
            hint=f"name the packed checkpoint, or leave out artifact_class={DEPLOYABLE}",
        )  # fmt: skip
    write_json(options.metadata, custom_metadata(baseline, subject, label, kind))
    print(f"{label}: {counted(len(subject.tensors), 'tensor')} compared with {options.baseline}")
    return 0
