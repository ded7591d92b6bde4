"""Load a deployable subject as its backend does, ask it, and record what it is and takes.

Writes deployable_artifact_validation.json, backend_inventory.json, memory_report.json,
load_smoke.json and inference_smoke.json, which packs carry beside the report. Loading, answering
and the baseline's answers each run in a process of their own. A subject with issues is a result:
the exit code is 0, and the verdict of a suite says what is wrong.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from invarlock.cli.measuring import Loading
from invarlock.cli.options import option
from invarlock.errors import ConfigError, InputError
from invarlock.files import read_json_object, write_json

if TYPE_CHECKING:
    from invarlock.checkpoints import Checkpoint

REPORT = "evaluation.report.json"


@dataclass(frozen=True, kw_only=True)
class DeployableOptions(Loading):
    """Options of ``invarlock advanced deployable``."""

    baseline: Path = option(metavar="DIR", help="baseline checkpoint")
    subject: Path = option(metavar="PATH", help="packed subject: a folder, or a file")
    report: Path = option(metavar="FILE", help=f"its {REPORT}, or the folder that holds it")
    out: Path = option(metavar="DIR", help="folder of the five files")
    scenario: str = option("", metavar="JSON", help="the scenario's catalogue entry")


OPTIONS = DeployableOptions


def main(options: DeployableOptions) -> int:
    """Run the command."""
    from invarlock.contracts import validate
    from invarlock.reporting import deployable

    file = options.report / REPORT if options.report.is_dir() else options.report
    report = read_json_object(file)
    found = documents(options, report, _spec(options.scenario))
    for name, document in found.items():
        validate(document, deployable.CONTRACTS[name], str(options.out / name))
    options.out.mkdir(parents=True, exist_ok=True)
    for name, document in found.items():
        write_json(options.out / name, document)
    print(_line(found))
    return 0


def documents(options: DeployableOptions, report: dict[str, Any], spec: str) -> dict[str, Any]:
    """The five documents, by name.

    Args:
        options: what is looked at, and how.
        report: the evaluation of the subject.
        spec: what a backend of ours packed it as; empty where somebody brings it.
    """
    from invarlock.checkpoints import Checkpoint
    from invarlock.formats.packed import quantization_of
    from invarlock.reporting import deployable
    from invarlock.run.smoke import NEW_TOKENS, SmokeJob, in_fresh_process, prompts_of

    baseline = Checkpoint.open(options.baseline)
    _require_text(baseline)
    who = deployable.Identities(
        *(report["provenance"][side]["checkpoint_sha256"] for side in ("baseline", "subject"))
    )
    subject: Checkpoint | None = None
    prompts: list[list[int]] = []
    try:
        subject = Checkpoint.open(options.subject, options.baseline)
    except InputError as error:
        seen: dict[str, Any] = {"error": str(error).splitlines()[0][:300]}
        answered = there = seen
    if subject is not None:
        _require_same(subject, report, options)
        prompts = prompts_of(baseline.folder)
        job = SmokeJob(
            source=str(options.subject),
            beside=str(options.baseline),
            device=options.device,
            dtype=options.dtype,
            threads=options.threads,
            allow_remote_code=options.allow_remote_code,
            prompts=[],
        )
        seen = in_fresh_process(job)
        answered = seen if seen["error"] else in_fresh_process(replace(job, prompts=prompts))
        # in the type that it is stored in, or what it takes would be twice what it has
        plain = replace(job, source=str(options.baseline), dtype=_stored_dtype(baseline))
        there = in_fresh_process(replace(plain, prompts=prompts))
    modules = modules_of(subject) if subject else {}
    packing = (subject.packing() if subject else {}) or {
        "format": subject.form.name if subject else "unknown",
        "title": "",
        "bytes_packed": 0,
        "bytes_dense": 0,
    }
    files = packing["bytes_packed"], _file_bytes(baseline)
    found: dict[str, Any] = {deployable.LOAD: deployable.load_smoke(seen, who)}
    found[deployable.INFERENCE] = deployable.inference_smoke(
        answered, there, prompts, NEW_TOKENS, who
    )
    found[deployable.MEMORY] = deployable.memory_report(answered, there, files, who)
    claim = deployable.claim_of(spec, quantization_of(subject.config) if subject else {}, modules)
    ran: dict[str, Any] = seen.get("ran") or {}
    found[deployable.INVENTORY] = deployable.backend_inventory(
        modules, packing, claim, found, ran, who
    )
    found[deployable.VALIDATION] = deployable.validation(found)
    return found


def modules_of(subject: Checkpoint) -> dict[str, dict[str, Any]]:
    """The packed tensors of a subject, and the matrices of its blocks that are not packed."""
    from invarlock.roles import layer_of
    from invarlock.shards import DTYPES

    found = {
        name: {
            "format": tensor.scheme,
            "packed": True,
            "bits": float(tensor.bits),
            "elements": math.prod(tensor.shape),
            "bytes": tensor.stored_bytes,
        }
        for name, tensor in subject.packed.items()
    }
    for name, info in subject.tensors.items():
        if name not in found and len(info.shape) > 1 and layer_of(name) is not None:
            found[name] = {
                "format": info.dtype,
                "packed": False,
                "bits": 8.0 * DTYPES[info.dtype][0],
                "elements": info.numel,
                "bytes": info.nbytes,
            }
    return found


def _spec(text: str) -> str:
    """What a backend was asked for, by the scenario."""
    generation = json.loads(text)["generation"] if text else {}
    return str(generation["edit_spec"]) if generation.get("kind") == "deployable_edit" else ""


def _require_text(baseline: Checkpoint) -> None:
    """Refuse what does not write text from left to right.

    Raises:
        ConfigError: the metric of this kind of model is another.
    """
    from invarlock.metrics.kinds import DEFAULT, metric_of

    metric = metric_of(baseline.config)
    if metric is not DEFAULT:
        raise ConfigError(
            "a deployable subject is asked to go on with a text, which no model of this kind does",
            where=str(baseline.folder / "config.json"), expected=f"a model measured by"
            f" {DEFAULT.name}", found=metric.name,
        )  # fmt: skip


def _require_same(subject: Checkpoint, report: dict[str, Any], options: DeployableOptions) -> None:
    """Refuse a subject that is not the one of the report.

    By the digests of its files: to compare what they stand for, all of it would be unpacked again.

    Raises:
        InputError: its files are other ones, or it is not packed.
    """
    if not subject.packing():
        raise InputError(
            "the weights are dense", where=str(options.subject),
            expected="weights that a backend has packed", found=subject.form.name,
        )  # fmt: skip
    parts = report["provenance"]["subject"]["checkpoint"] or {}
    if "packed_files" in parts and parts["packed_files"] != subject.stored:
        raise InputError(
            "is not the subject of the report: its files are other ones",
            where=str(options.subject), hint="evaluate it again: invarlock evaluate",
        )  # fmt: skip


def _stored_dtype(checkpoint: Checkpoint) -> str:
    """The type of most of its values."""
    from invarlock.run.loading import DTYPES as KNOWN
    from invarlock.shards import DTYPES

    sizes: dict[str, int] = {}
    for info in checkpoint.tensors.values():
        name = DTYPES[info.dtype][1]
        sizes[name] = sizes.get(name, 0) + info.numel
    most = max(sizes, key=lambda name: sizes[name])
    return most if most in KNOWN else "auto"


def _file_bytes(checkpoint: Checkpoint) -> int:
    return sum((checkpoint.folder / name).stat().st_size for name in checkpoint.shards)


def _line(found: dict[str, Any]) -> str:
    """One line for the person who typed the command."""
    from invarlock.reporting import deployable

    inventory, said = found[deployable.INVENTORY], found[deployable.VALIDATION]
    if said["issues"]:
        return f"{inventory['format']}: not deployable: {'; '.join(said['issues'])}"
    answers, memory = found[deployable.INFERENCE], found[deployable.MEMORY]
    return (
        f"{inventory['title'] or inventory['format']}: loads and answers by {said['backend']}"
        f" {said['backend_version']}; {inventory['stored_bits']:.2f} bits of a weight,"
        f" {inventory['bytes_packed'] / 1e6:.1f} MB (dense {inventory['bytes_dense'] / 1e6:.1f});"
        f" {100 * answers['agreement']:.0f} % of the baseline's tokens,"
        f" {answers['tokens_per_second']} tokens/s"
        + ("" if memory["runtime_memory_reduction_observed"] else "; takes no less memory")
    )
