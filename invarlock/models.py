"""The models of a run: which ones, where they come from, and the geometry of their windows."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from invarlock.errors import ConfigError, InputError
from invarlock.files import slug
from invarlock.variables import MODEL_SLOTS

GEOMETRY = ("seq_len", "preview", "final")
LOCAL = "local:"
ELSEWHERE = ("hub:", "package:")
SCHEME = "openai:"  # a running server, which answers as OpenAI's do
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(@\w+)?")

Table = Mapping[str, Any]


@dataclass(frozen=True)
class Model:
    """A model of the run with its geometry."""

    model_id: str
    slug: str
    source: str
    weights_gb: float
    is_measured: bool  # whether weights_gb is this model's, not the default
    seq_len: int
    preview: int
    final: int


def is_elsewhere(name: str) -> bool:
    """Whether a baseline is named that is no folder of this machine: ``hub:`` or ``package:``."""
    return name.startswith(ELSEWHERE) and not Path(name).exists()


def meant_elsewhere(name: str) -> str:
    """What to write where a baseline that is no folder may be a model of the hub; else empty."""
    meant = _REPOSITORY.fullmatch(name) and not Path(name).parent.exists()
    return f"if a model of the hub is meant: hub:{name}" if meant else ""


def slotted(listed: Sequence[str], environment: Mapping[str, str]) -> tuple[list[str], str]:
    """The model list as ``MODEL_1`` to ``MODEL_8`` change it, and the names of those set.

    A variable that is not set keeps the model of its place, an empty one turns the place off, any
    other puts its model there.

    Raises:
        ConfigError: no model is left.
    """
    said = [environment.get(name) for name in MODEL_SLOTS]
    places = zip_longest(listed, said)
    chosen = [own if value is None else value.strip() for own, value in places]
    models = [model for model in chosen if model]
    variables = ", ".join(name for name in MODEL_SLOTS if name in environment)
    if listed and not models:
        raise ConfigError(
            "no model is left",
            where=variables,
            hint="an empty variable turns its place off: unset it",
        )
    return models, variables if models != list(listed) else ""


def resolve_models(
    entries: Sequence[str], suites: Table, geometry: Table, windows: Table, where: Mapping[str, str]
) -> tuple[Model, ...]:
    """The models of ``entries``: ids of ``suites.yaml``, ``hub:`` (also without the word),
    ``package:`` or ``local:``.

    A number of the geometry is taken from ``geometry`` (by model id), else from ``windows`` where
    that is not zero, else from the model's row, else from ``default_geometry``. ``where`` says of a
    key what a line about it names.

    Raises:
        ConfigError: an unknown id, or two models that share a folder name.
        InputError: a folder that is not there.
    """
    found: dict[str, Model] = {}
    for entry in entries:
        model_id, source, row = _row(entry, suites["models"], where["models"])
        own = geometry.get(model_id, {})
        numbers = {**suites["default_geometry"], **row, **_given_windows(windows), **own}
        model = Model(
            model_id, slug(model_id), source, float(numbers["weights_gb"]),
            "weights_gb" in {**row, **own}, **{key: int(numbers[key]) for key in GEOMETRY},
        )  # fmt: skip
        if model.slug in found:
            raise ConfigError(
                f"{model_id} and {found[model.slug].model_id} share the folder name {model.slug}",
                hint="name each model once; run two such models in separate output folders",
            )
        found[model.slug] = model
    known = {model.model_id for model in found.values()} | set(suites["models"])
    for name in geometry:
        one_of("geometry", name, sorted(known), where["geometry"])
    return tuple(found.values())


def one_of(key: str, value: str, known: Sequence[str], where: str, more: str = "") -> None:
    """Refuse a value that is not known, with the nearest that is.

    Raises:
        ConfigError: ``value`` is not in ``known``.
    """
    if value not in known:
        near = difflib.get_close_matches(value, known, n=1)
        raise ConfigError(
            f"/{key} is {value!r}",
            where=where,
            expected="one of " + ", ".join(known) + more,
            hint=f"did you mean {near[0]}?" if near else "",
        )


def _given_windows(windows: Table) -> dict[str, int]:
    return {key: windows[key] for key in GEOMETRY if windows[key]}


def _row(entry: str, table: Table, where: str) -> tuple[str, str, Table]:
    """Model id, source and row of an entry of the model list."""
    if entry.startswith(("/", "./", "../")):  # the published slots take folders as they stand
        entry = LOCAL + entry
    elif entry not in table and _REPOSITORY.fullmatch(entry):
        if Path(entry).is_dir():
            raise ConfigError(
                "/models names a folder, or a repository of the hub", where=where, found=entry,
                hint=f"say which: {LOCAL}{entry} or hub:{entry}",
            )  # fmt: skip
        entry = f"hub:{entry}"
    kind, _, name = entry.partition(":")
    if kind == "local" and name:
        return _local(name, where)
    if kind.islower() and name:  # the kind itself is looked at where sources are parsed
        plain = name.partition("@")[0] if kind == "hub" else name
        ids = {row["source"]: model_id for model_id, row in table.items()}
        model_id = ids.get(f"{kind}:{plain}", plain)
        return model_id, entry, table.get(model_id, {})
    more = ", [hub:]OWNER/NAME[@REVISION], package:NAME, local:FOLDER"
    one_of("models", entry, list(table), where, more)
    return entry, table[entry]["source"], table[entry]


def _local(folder: str, where: str) -> tuple[str, str, Table]:
    if not Path(folder).is_dir():
        raise InputError("/models names no folder", where=where, found=folder)
    name = Path(folder).resolve().name
    files = [f for f in Path(folder).glob("*.safetensors") if f.is_file()]  # a link may be broken
    size = sum(f.stat().st_size for f in files) / 1e9
    return name if name.strip(". ") else "baseline", LOCAL + folder, {"weights_gb": max(0.1, size)}
