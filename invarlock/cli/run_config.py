"""The configuration file of ``invarlock run -c``: one model, one text, and how it is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from invarlock.errors import ConfigError, InputError
from invarlock.files import read_bytes
from invarlock.models import one_of
from invarlock.written import BAD_YAML

PRESETS = Path(__file__).resolve().parents[2] / "config" / "presets" / "causal_lm"
# Members by the section they stand in, and the kind of value; a mapping is a section.
MEMBERS: Mapping[str, Mapping[str, type]] = {
    "": {"model": dict, "dataset": dict, "run": dict},
    "model": {"id": str, "name": str, "device": str, "dtype": str},
    "dataset": {"provider": str, "seq_len": int, "windows": dict},
    "dataset/windows": {"preview": int, "final": int, "seed": int},
    "run": {
        "profile": str, "tier": str, "determinism": str, "seed": int, "threads": int,
        "token_budget": int, "net": bool, "allow_remote_code": bool,
    },
}  # fmt: skip
NEEDED = ("model/id", "dataset/provider", "dataset/seq_len",
          "dataset/windows/preview", "dataset/windows/final")  # fmt: skip
# Texts by their published short names.
PROVIDERS = {
    "wikitext2": "hub:Salesforce/wikitext?config=wikitext-2-raw-v1&split=train&field=text",
}
SEED = 43


@dataclass(frozen=True)
class RunConfig:
    """A configuration file, by pointer: ``model/id`` and so on; what is not there is absent."""

    values: Mapping[str, Any]

    @property
    def source(self) -> str:
        """Where the model comes from; OWNER/NAME is a repository of the hub."""
        given = str(self.values["model/id"])
        return given if given.partition(":")[0].islower() and ":" in given else f"hub:{given}"

    @property
    def name(self) -> str:
        """The model's name in reports."""
        own = str(self.values.get("model/name", ""))
        return own or self.source.partition(":")[2].partition("@")[0].rstrip("/").rpartition("/")[2]

    @property
    def text(self) -> str:
        """Where the text comes from."""
        provider = str(self.values["dataset/provider"])
        return PROVIDERS.get(provider, provider)

    @property
    def options(self) -> dict[str, Any]:
        """The options of ``invarlock run`` that it sets."""
        found = {name: self.values.get(f"run/{name}") for name in MEMBERS["run"] if name != "net"}
        found |= {name: self.values.get(f"model/{name}") for name in ("device", "dtype")}
        return {name: value for name, value in found.items() if value is not None}


def read_run_config(path: Path) -> RunConfig:
    """Read and check the file.

    Raises:
        InputError: missing or unreadable.
        ConfigError: an unknown member (the nearest is named), one of another kind, or one lacking.
    """
    if not path.is_file():
        presets = ", ".join(sorted(p.name for p in PRESETS.glob("*.yaml")))
        hint = f"presets in config/presets/causal_lm: {presets}" if presets else ""
        raise InputError("no such file", where=str(path), hint=hint)
    try:
        document = yaml.safe_load(read_bytes(path))
    except BAD_YAML as error:
        raise InputError("not YAML", where=str(path), found=str(error).splitlines()[0]) from error
    values: dict[str, Any] = {}
    _read(document, "", path, values)
    for pointer in NEEDED:
        if pointer not in values:
            raise ConfigError(f"/{pointer} is missing", where=str(path))
    return RunConfig(values)


def _read(section: object, at: str, path: Path, values: dict[str, Any]) -> None:
    if not isinstance(section, Mapping):
        raise ConfigError(f"/{at} is no section", where=str(path), expected=", ".join(MEMBERS[at]))
    for key, value in section.items():
        pointer = f"{at}/{key}" if at else str(key)
        one_of(pointer, str(key), list(MEMBERS[at]), str(path))
        kind = MEMBERS[at][key]
        if kind is dict:
            _read(value, pointer, path, values)
        elif type(value) is not kind:
            raise ConfigError(
                f"/{pointer} is {value!r}",
                where=str(path),
                expected=f"a value of type {kind.__name__}",
            )
        else:
            values[pointer] = value
