"""What keeps a run from ever giving an answer, as far as settings and folders show it beforehand.

Everything is looked at before the first job, in a dry run too, and every finding is one line. What
cannot be read yet (a model of the hub that is not pinned) is left to the job that reads it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from invarlock.checkpoints import Checkpoint
from invarlock.config import Settings
from invarlock.deployment import BACKENDS
from invarlock.edits.specs import parse_edit_spec
from invarlock.errors import ConfigError, InputError, InvarlockError, MeasurementError
from invarlock.evidence.policy_pack import read_policy_pack
from invarlock.evidence.tree import MAX_JUDGED, MAX_PARSED, MAX_REPORTS
from invarlock.files import read_json_object
from invarlock.formats.kinds.pickle import Pickle
from invarlock.guards.guard import NO_WEIGHTS
from invarlock.metrics.kinds import ASKED, metric_of
from invarlock.model_folder import is_in_library, open_model
from invarlock.models import Model
from invarlock.policy import load_policy
from invarlock.reporting.assurance import require_strict_settings
from invarlock.roles import ARCHITECTURES, layer_of, model_type_of
from invarlock.scenarios import CUSTOM_SPEC, NOOP
from invarlock.sources.local_model import check_folder
from invarlock.sources.pins import Allow
from invarlock.sources.spec import TextSource, parse_model_source, parse_slices
from invarlock.sources.text import look_at_local_text
from invarlock.windows import too_long


def refusals(
    settings: Settings, container: bool, judged: bool, away: bool = False
) -> list[InvarlockError]:
    """Everything that keeps the run from an answer, one line each; empty where nothing does.

    Args:
        settings: the effective configuration.
        container: whether a profile runs the rules in the image.
        judged: whether evaluations are judged, not only made ready.
        away: whether jobs run on other machines.
    """
    found = [*_folders(settings), *_backends(settings), *_server(settings, container, away)]
    if judged:
        found += [*_host(settings, container), *_floors(settings), *_policy_pack(settings)]
    return found


def doubts(settings: Settings, away: bool = False) -> list[InvarlockError]:
    """What keeps the windows from being cut as they are asked for, or a server from being asked; a
    dry run may go on without.

    The text may still be on its way when a run is planned, as downloads and disk may.
    """
    return [*_text(settings), *_contexts(settings), *([] if away else _answer(settings))]


def _policy_pack(settings: Settings) -> Iterator[InvarlockError]:
    """The policy pack, whose signature, bounds and tier have to hold."""
    if path := settings.value("policy_pack"):
        try:
            read_policy_pack(Path(path)).require_tier(settings.value("tier"))
        except InvarlockError as error:
            yield error


# --- folders ------------------------------------------------------------------------------------


def _folders(settings: Settings) -> Iterator[InvarlockError]:
    """The folders that the user names: baseline or models, and the subject."""
    values = settings.values
    allow = Allow(bool(values["allow_remote_code"]), bool(values["allow_pickle_checkpoints"]))
    for model in settings.models:
        folder = local_folder(model)
        if folder is None:
            continue
        try:
            config = check_folder(folder, allow)
            yield from _roles(settings, model, model_type_of(config))
            yield from _edits(settings, model, config)
        except InvarlockError as error:
            yield error
    if values["subject"]:
        baseline = local_folder(settings.models[0]) if settings.models else None
        allowed = (Pickle.switch,) if allow.pickle else ()
        try:
            subject = open_model(Path(values["subject"]), baseline, allowed)
            if subject.form.language_only and any(
                source.image for source in parse_slices(settings.text).values()
            ):
                yield ConfigError(
                    f"{subject.form.title} models are run on text alone, and the records of text"
                    " have pictures",
                    where=settings.where("text"), hint="name a text without pictures",
                )  # fmt: skip
        except InvarlockError as error:
            yield error


def will_fail(settings: Settings) -> str:
    """What of the subject's files refuses it, whatever a run would measure; empty where nothing
    shows, or the baseline is elsewhere."""
    values = settings.values
    baseline = local_folder(settings.models[0]) if settings.models else None
    if not values["subject"] or baseline is None:
        return ""
    from invarlock.guards.invariants import rejected

    allowed = (Pickle.switch,) if values["allow_pickle_checkpoints"] else ()
    return rejected(baseline, Path(values["subject"]), values["accept"], allowed)


def _edits(settings: Settings, model: Model, config: Mapping[str, Any]) -> Iterator[ConfigError]:
    """Edits that are not spelled right, or that no model of this kind can be edited by."""
    problems: dict[str, str] = {}
    for scenario in settings.scenarios:
        text = settings.edit_specs.get((model.slug, scenario.id))
        if scenario.is_packed_by_backend or text == CUSTOM_SPEC:
            continue
        if not isinstance(text, str):  # an error is said when it is needed
            continue
        try:
            problem = parse_edit_spec(text).unsuited(config)
        except ConfigError as error:
            yield error
            continue
        if problem:
            problems[scenario.id] = problem
    rest = [s.id for s in settings.scenarios if s.id not in problems]
    if problems:
        yield ConfigError(
            f"{next(iter(problems.values()))}; concerned: {', '.join(problems)}",
            where=f"{model.source.removeprefix('local:')}/config.json",
            hint=f"leave them out: scenarios={','.join(rest)}" if rest else "",
        )


def _backends(settings: Settings) -> Iterator[InputError]:
    """Backends that scenarios of the deployable lane are packed by and that are not installed."""
    asked = {str(s.edit_type) for s in settings.scenarios if s.is_packed_by_backend}
    there = {name for name in asked if find_spec(BACKENDS[name].module) is not None}
    rest = ",".join(sorted(there))
    for name in sorted(asked - there):
        yield InputError(
            f"scenarios are packed by {name}, and the package {BACKENDS[name].module} is not"
            " installed",
            where=settings.where("catalogue"),
            hint=f'pip install "invarlock[{BACKENDS[name].extra}]"'
            + (f", or leave it out: deploy_backends={rest}" if rest else ""),
        )


def _server(settings: Settings, container: bool, away: bool) -> Iterator[ConfigError]:
    """A running server that jobs cannot reach, or of which more is claimed than it shows."""
    values = settings.values
    if not values["backend"]:
        return
    from invarlock.run.server import Address

    where = settings.where("backend")
    if container:
        yield ConfigError(
            "a running server is asked over the network, which what runs in the image does not get",
            where=where, hint="leave out the container profile, and allow_host_execution: true",
        )  # fmt: skip
    elif values["assurance"] == "strict":
        yield ConfigError(
            f"strict assurance is about weights too: {NO_WEIGHTS}", where=where,
            hint="assurance=off, or name the folder that is served: subject=DIR",
        )  # fmt: skip
    elif away and Address.read(values["backend"], where).is_here:
        yield ConfigError(
            "jobs run on other machines, to each of which this address is its own", where=where,
            expected="the name of the machine that serves", found=values["backend"],
        )  # fmt: skip


def _answer(settings: Settings) -> Iterator[InvarlockError]:
    """A running server that does not answer, or has not the model."""
    if not settings.values["backend"]:
        return
    from invarlock.run.server import Address, Server

    try:
        Server(Address.read(settings.values["backend"], settings.where("backend"))).choose()
    except MeasurementError as error:  # nothing was measured yet
        yield InputError(error.what, where=error.where, hint=error.hint)
    except InvarlockError as error:
        yield error


def local_folder(model: Model) -> Path | None:
    """The folder that a model is taken from; None where it comes from elsewhere."""
    return parse_model_source(model.source).folder


def _contexts(settings: Settings) -> Iterator[ConfigError]:
    """Windows that are longer than a local model's context."""
    for model in settings.models:
        folder = local_folder(model)
        if folder and (error := too_long(folder, _config_of(folder), model.seq_len)):
            yield error


def _config_of(folder: Path | None) -> dict[str, Any]:
    """``config.json`` of a local model; empty where there is none to be read."""
    path = folder / "config.json" if folder else None
    try:
        return read_json_object(path) if path and path.is_file() else {}
    except InputError:  # said with the folder
        return {}


def _roles(settings: Settings, model: Model, kind: str) -> Iterator[ConfigError]:
    """Edits by scope and damage by role need to know what tensors are for."""
    if kind in ARCHITECTURES or is_in_library(kind):
        return
    needing = [
        s.id
        for s in settings.scenarios
        if s.is_error or (s.is_edit and s.edit_spec not in (CUSTOM_SPEC, NOOP))
    ]
    rest = [s.id for s in settings.scenarios if s.id not in needing]
    if needing:
        yield ConfigError(
            f"model_type {kind!r} has no role table and no model in transformers, and these"
            f" scenarios need one of them: {', '.join(needing)}",
            where=f"{model.source.removeprefix('local:')}/config.json",
            expected=", ".join(ARCHITECTURES),
            hint=f"leave them out: scenarios={','.join(rest)}" if rest else "",
        )


# --- text ---------------------------------------------------------------------------------------


def _text(settings: Settings) -> Iterator[InvarlockError]:
    """A local text that is not there, empty, of one document, or shorter than its windows."""
    try:
        sources = parse_slices(settings.text)
    except InvarlockError as error:
        yield error
        return
    for name, source in sources.items():
        if source.kind == "local":
            yield from _local_text(settings, source, len(sources), name)


def _local_text(
    settings: Settings, source: TextSource, slices: int, name: str
) -> Iterator[InvarlockError]:
    """One local text, that has its share of the windows."""
    where = settings.text if slices == 1 else f"{name}={source}"
    try:
        look = look_at_local_text(source)
    except InvarlockError as error:
        yield error
        return
    text, tier = not source.labelled, settings.values["tier"]
    if look.documents == 1 and text and load_policy(tier).enforce_guards:
        yield InputError(
            "the text is one document, and an interval needs at least two: nothing could pass",
            where=where,
            hint="write one document a line as JSON (.jsonl), or explore with tier: none",
        )
    for model in settings.models:
        arms = model.preview // slices, model.final // slices
        tokens = model.seq_len * sum(arms)
        if look.bytes is not None and text and look.bytes < tokens:
            yield InputError(
                f"the text has fewer bytes than the windows of {model.model_id} have tokens",
                where=where,
                expected=f"{tokens} tokens: {arms[0]} preview and {arms[1]} final windows"
                f" of {model.seq_len}",
                found=f"{look.bytes} bytes",
                hint="lower windows.preview, windows.final or windows.seq_len, or give more text",
            )


# --- how it is measured and judged ----------------------------------------------------------------


def _host(settings: Settings, container: bool) -> Iterator[InvarlockError]:
    values = settings.values
    hint = "take the container profile: --profile profiles/container"
    if not values["allow_host_execution"] and not container:
        yield ConfigError(
            "host execution is not allowed, and this profile runs on the host",
            where=settings.where("allow_host_execution"),
            hint=f"{hint}, or allow_host_execution: true",
        )  # fmt: skip
    if values["assurance"] == "strict":
        try:
            require_strict_settings(values["profile"], values["tier"])
        except ConfigError as error:
            yield error
        if not container:
            yield ConfigError(
                "strict assurance needs the image, and this profile runs on the host",
                where=settings.where("assurance"), hint=f"{hint}, or assurance: off",
            )  # fmt: skip


def _floors(settings: Settings) -> Iterator[InvarlockError]:
    """What of the tier's floors these settings cannot reach, with numbers that would do."""
    values = settings.values
    policy = load_policy(values["tier"])
    tier = f"tier {policy.tier}"
    explore = "or explore with tier: none, which has no floors"
    bootstrap = values["bootstrap"]
    if bootstrap["replicates"] < policy.coverage.replicates:
        yield ConfigError(
            f"bootstrap.replicates is below the floor of {tier}: nothing could pass",
            where=settings.where("bootstrap"), expected=f"at least {policy.coverage.replicates}",
            found=str(bootstrap["replicates"]),
            hint=f"bootstrap={{replicates: {policy.coverage.replicates}}}, {explore}",
        )  # fmt: skip
    if bootstrap["alpha"] > policy.coverage.alpha:
        yield ConfigError(
            f"bootstrap.alpha is above that of {tier}: nothing could pass",
            where=settings.where("bootstrap"), expected=f"at most {policy.coverage.alpha}",
            found=str(bootstrap["alpha"]),
        )  # fmt: skip
    asked = ASKED.get(next(iter(parse_slices(settings.text).values())).metric)
    for model in settings.models:
        kind = asked or metric_of(_config_of(local_folder(model)))
        short = kind.shortage((model.preview, model.final), model.seq_len, policy)
        if short is not None:
            yield ConfigError(
                f"the windows of {model.model_id} are below the floors of {tier}:"
                " nothing could pass",
                where=settings.where("windows"), expected=short.expected, found=short.found,
                hint=f"windows={short.windows}, {explore}",
            )  # fmt: skip


# --- the pack -------------------------------------------------------------------------------------


# What an evaluation adds to a pack, measured on models of 2 to 30 layers: values that its verdict
# is recomputed from, of the report and of each matrix in the subject's metadata; bytes that are
# parsed, of the report, of each matrix and of each window in it. Slices add a block each, and to
# each window the name of its slice, twice.
VALUES, VALUES_OF_MATRIX, VALUES_OF_SLICE = 1600, 7, 52
BYTES, BYTES_OF_MATRIX, BYTES_OF_WINDOW = 22_000, 262, 89
BYTES_OF_SLICE, BYTES_OF_NAME = 1_100, 33


def size_of_pack(settings: Settings) -> Iterator[InvarlockError]:
    """A pack that no verifier would read: its limits are those of ``invarlock.evidence.tree``.

    What needs no pack (evaluations, the verdict, tables) may be larger.
    """
    runs = sum(len(settings.runs(scenario)) for scenario in settings.scenarios)
    slices = _slices(settings)
    of_window = BYTES_OF_WINDOW + (BYTES_OF_NAME if slices else 0)
    values = parsed = 0
    for model in settings.models:
        matrices = _matrices(settings, model)
        values += runs * (VALUES + VALUES_OF_MATRIX * matrices + VALUES_OF_SLICE * slices)
        windows = model.preview + model.final
        parsed += runs * (BYTES + BYTES_OF_MATRIX * matrices + BYTES_OF_SLICE * slices)
        parsed += runs * of_window * windows
    evaluations = runs * len(settings.models)
    for what, total, most in (
        ("values to be judged", values, MAX_JUDGED),
        ("reports", evaluations, MAX_REPORTS),
        ("bytes of JSON", parsed, MAX_PARSED),
    ):
        if total > most:
            yield ConfigError(
                f"the pack of {evaluations} evaluations would be too large to be verified",
                where=settings.where("runs"), expected=f"at most {most} {what}",
                found=f"about {total}",
                hint=f"about {most * evaluations // total} evaluations fit: lower runs, choose"
                " fewer models or scenarios, or make several runs, each with an out of its own",
            )  # fmt: skip
            return


def _slices(settings: Settings) -> int:
    """Slices of a report at most; 0 where the windows have none."""
    try:
        texts = len(parse_slices(settings.text))
    except InvarlockError:  # said with the text
        return 0
    long = settings.long_windows.final > 0
    return texts + long if texts > 1 or long else 0


def _matrices(settings: Settings, model: Model) -> int:
    """Matrices of a model's blocks, as far as it is here: of a folder, or as it was placed."""
    folder, record = local_folder(model), settings.out / model.slug / "baseline.json"
    shapes: dict[str, int] = {}
    try:
        if folder is not None:
            shapes = {n: len(i.shape) for n, i in Checkpoint.open(folder).tensors.items()}
        elif record.is_file():
            tensors = read_json_object(record)["tensors"]
            shapes = {name: len(tensor["shape"]) for name, tensor in tensors.items()}
    except InputError:  # said with the folder
        pass
    return sum(n > 1 and layer_of(name) is not None for name, n in shapes.items())
