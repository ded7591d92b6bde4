"""Promotion sentinels: do the subjects that a finished run kept still load, measure and verify?

Subjects of a run are evaluated again against its stored baseline run, and the reports are
verified. A subject that was not kept is made again; its digest has to be the one that the run
recorded. What is asked is whether everything works from saved files to a verified report: a FAIL
of the metric is a result (profile dev), and the command ends with 0.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from invarlock import __version__
from invarlock.cli.options import option
from invarlock.errors import ConfigError, InputError, MeasurementError
from invarlock.files import read_json_object, slug
from invarlock.reporting.dashboard import told

MODES = ("all", "saved-model", "public-quant")
EDITS = ("quant_4bit_clean", "prune_clean")
REPORT, VERIFIED = "evaluation.report.json", "verify.json"


@dataclass(frozen=True, kw_only=True)
class SentinelsOptions:
    """Options of ``invarlock advanced sentinels``."""

    run: Path | None = option(
        None, metavar="DIR", help="output folder of a finished run", setting="run"
    )
    model: str = option(
        "", metavar="ID", help="a model of it, by its id or its folder", setting="model"
    )
    mode: str = option(
        "all",
        choices=MODES,
        help="saved-model: evaluate every one; public-quant: evaluate and verify the first; all:"
        " evaluate and verify every one (default)",
        setting="sentinel_mode",
    )
    edit: tuple[str, ...] = option(
        EDITS,
        comma=True,
        metavar="ID[,ID]",
        help=f"scenarios of the run (default: {','.join(EDITS)})",
        setting="sentinel_edits",
    )
    profile: str = option("dev", choices=("dev", "ci", "release"), help="(default: dev)")


OPTIONS = SentinelsOptions


@dataclass(frozen=True)
class FinishedRun:
    """What a run left of one model."""

    out: Path
    folder: Path  # of the model
    values: dict[str, Any]  # the settings in force
    scenarios: dict[str, dict[str, Any]]  # catalogue entries, by id
    meta: dict[str, Any]  # of the baseline's run

    @classmethod
    def open(cls, out: Path, model: str) -> FinishedRun:
        """Look at the records of a run.

        Raises:
            InputError: there is no such run, it lacks the model, or another version made it.
        """
        if not (out / "state/config.json").is_file():
            raise InputError(
                "no run is here", where=str(out), expected="state/config.json of a finished run",
                hint="name its output folder: evidence_pack_runs/SUITE",
            )  # fmt: skip
        there = sorted(p.parent.name for p in out.glob("*/baseline.json"))
        if slug(model) not in there:
            raise InputError(
                f"the run has no model {model}", where=str(out),
                found=", ".join(there) or "no model that is ready",
            )  # fmt: skip
        folder = out / slug(model)
        meta = read_json_object(folder / "runs/baseline/report.json")["meta"]
        if meta.get("invarlock_version") != __version__:
            raise InputError(
                "the baseline was measured by another version",
                where=str(folder / "runs/baseline/report.json"), expected=__version__,
                found=str(meta.get("invarlock_version")), hint="repeat the run with this version",
            )  # fmt: skip
        entries = read_json_object(out / "state/scenarios.json")["scenarios"]
        values = read_json_object(out / "state/config.json")["values"]
        return cls(out, folder, values, {entry["id"]: entry for entry in entries}, meta)

    def metadata(self, edit: str) -> Path:
        """What was done to a subject.

        Raises:
            InputError: the run has no such edit, or has not made it.
        """
        if edit not in self.scenarios:
            raise InputError(
                f"the run has no scenario {edit}", where=str(self.out / "state/scenarios.json"),
                found=", ".join(self.scenarios), hint="name others: sentinel_edits=ID,ID",
            )  # fmt: skip
        path = self.folder / "edits" / edit / "edit_metadata.json"
        if not path.is_file():
            raise InputError(
                "no edit was made for this scenario", where=str(path),
                hint="finish the run, or name a scenario of an edit",
            )  # fmt: skip
        return path


def main(options: SentinelsOptions) -> int:
    """Run the command."""
    if options.run is None or not options.model:
        raise ConfigError(
            "sentinels need a finished run and a model of it",
            hint="snakemake sentinels --config run=DIR model=ID",
        )
    run = FinishedRun.open(options.run, options.model)
    edits = list(options.edit)
    if options.mode == "public-quant":
        edits = [_quantized(edits)]
    places = {edit: run.metadata(edit) for edit in edits}  # all of them before the first
    for edit, metadata in places.items():
        print(_sentinel(options, run, edit, metadata))
    return 0


def _quantized(edits: Sequence[str]) -> str:
    """The edit of the public smoke: the first that quantizes."""
    found = [edit for edit in edits if "quant" in edit]
    if not found:
        raise ConfigError(
            "mode public-quant needs an edit that quantizes", where="--edit",
            found=", ".join(edits),
        )  # fmt: skip
    return found[0]


def _sentinel(options: SentinelsOptions, run: FinishedRun, edit: str, metadata: Path) -> str:
    """Evaluate one subject again and verify the report; what came out, in a line."""
    out = run.out / "sentinels" / run.folder.name / edit
    recorded = read_json_object(metadata)
    with TemporaryDirectory(prefix=".invarlock-", dir=run.out) as room:
        subject, how = _subject(run, edit, recorded, Path(room))
        _command(edit, _evaluate(options, run, edit, metadata, subject, out))
    report = read_json_object(out / REPORT)
    measured = report["provenance"]["subject"]["checkpoint_sha256"]
    if measured != recorded["subject_checkpoint_sha256"]:
        raise _another(edit, str(out / REPORT), recorded, measured)
    done = f"{edit}: {how}, evaluated"
    if options.mode != "saved-model":
        words = ["verify", str(out), "--profile", options.profile, "--out", str(out / VERIFIED)]
        _command(edit, [*words, "--json"])
        done += " and verified"
    return f"{done}; {told(report)}"


def _subject(run: FinishedRun, edit: str, recorded: dict[str, Any], room: Path) -> tuple[Path, str]:
    """The kept subject, or the same made again.

    Raises:
        InputError: it is another one than the run evaluated.
    """
    from invarlock.checkpoints import Checkpoint
    from invarlock.subject_metadata import spec_of_metadata

    kept, how = run.folder / "models" / edit, "kept"
    if not kept.is_dir():
        kept, how = room / edit, "made again"
        words = ["edit", "--baseline", str(run.folder / "models/baseline")]
        words += ["--spec", spec_of_metadata(recorded), "--seed", str(recorded["seed"])]
        if "training" in recorded or "calibration" in recorded:
            words += ["--windows", str(run.folder / "training_windows.json")]
        _command(edit, [*words, "--out", str(kept), "--metadata", str(room / "metadata.json")])
    found = Checkpoint.open(kept).digest()
    if found != recorded["subject_checkpoint_sha256"]:
        raise _another(edit, str(kept), recorded, found)
    return kept, how


def _another(edit: str, where: str, recorded: dict[str, Any], found: object) -> InputError:
    return InputError(
        f"{edit} is not the subject that the run evaluated", where=where,
        expected=str(recorded["subject_checkpoint_sha256"]), found=str(found),
        hint="repeat the run; what it kept was changed, or is made otherwise on this machine",
    )  # fmt: skip


def _evaluate(
    options: SentinelsOptions, run: FinishedRun, edit: str, metadata: Path, subject: Path, out: Path
) -> list[str]:
    """The words of an evaluation as the run made it, but for profile and assurance."""
    values, folder, meta = run.values, run.folder, run.meta
    preset = folder / f"presets/calibrated_preset_{folder.name}.json"
    words = {
        "baseline": folder / "models/baseline",
        "subject": subject,
        "baseline-report": folder / "runs/baseline",
        "windows": folder / "windows.json",
        "edit-metadata": metadata,
        "scenario": json.dumps(run.scenarios[edit], sort_keys=True),
        "model-id": meta["model_id"],
        "device": str(meta["device"]).partition(" ")[0],
        "dtype": meta["dtype"],
        "token-budget": meta["token_budget"],
        "threads": values["threads"],
        "determinism": values["determinism"],
        "seed": values["seed"],
        "tier": values["tier"],
        "replicates": values["bootstrap"]["replicates"],
        "alpha": values["bootstrap"]["alpha"],
        "profile": options.profile,
        "assurance": "off",
        "out": out,
    }
    if preset.is_file():
        words["preset"] = preset
    found = ["evaluate"]
    for name, value in words.items():
        found += [f"--{name}", str(value)]
    return [*found, *(["--allow-remote-code"] if values["allow_remote_code"] else [])]


def _command(edit: str, words: Sequence[str]) -> None:
    """Run a command of this package in a process of its own.

    Raises:
        MeasurementError: it did not end with 0; with its last line.
    """
    command = [sys.executable, "-m", "invarlock", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        raise MeasurementError(
            f"{edit}: invarlock {words[0]} ended with {done.returncode}:"
            f" {(lines or ['nothing was said'])[-1][:300]}"
        )
