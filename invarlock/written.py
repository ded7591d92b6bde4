"""Settings as they were written, where YAML or a command line read them as another type."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from invarlock.contracts import load_contract
from invarlock.errors import ConfigError
from invarlock.files import read_bytes

# What PyYAML raises: its own, Python's on impossible dates and numbers, and on deep nesting.
BAD_YAML = (yaml.YAMLError, ValueError, RecursionError)
SLICE_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")
ONE, LONG = "text", "long"  # name of a text that has none; slice of long windows


INCLUDE = "!include "  # what the tag of YAML becomes: this and the name of the file


class _Loader(yaml.SafeLoader):
    """YAML with the tag ``!include FILE``, which becomes a text that says so."""


def _tag(loader: Any, node: yaml.ScalarNode) -> str:
    return f"{INCLUDE}{loader.construct_scalar(node)}"


_Loader.add_constructor("!include", _tag)


def take_tags() -> None:
    """Let snakemake read the tag too; its files are read by PyYAML's full loader."""
    yaml.FullLoader.add_constructor("!include", _tag)


def read_yaml(path: Path, where: str = "") -> Any:
    """A file of settings, ``!include`` as a text.

    Raises:
        ConfigError: it is not YAML.
        InputError: it cannot be read.
    """
    try:
        return yaml.load(read_bytes(path), Loader=_Loader)
    except BAD_YAML as error:
        raise ConfigError(
            "is not YAML", where=where or str(path), found=" ".join(str(error).split())
        ) from error


def as_written(files: Iterable[Path], words: Iterable[str]) -> dict[str, str]:
    """Settings of YAML files, and over them of ``key=value`` words, as they are spelled.

    YAML and the command line read ``2023_12``, ``1e5``, ``007``, ``yes`` and dates as values of
    other types, which no longer say what was written.
    """
    found: dict[str, str] = {}
    for path in files:
        found |= spelled(read_bytes(path))
    for word in words:
        key, _, text = word.partition("=")
        if text[:1] not in ("'", '"'):  # quotes of YAML are no part of the text
            found[key] = text
        else:
            found.pop(key, None)
    return found


def spelled(data: bytes) -> dict[str, str]:
    """The plain values of a YAML document as they are spelled; none where it is no mapping."""
    try:
        document = yaml.load(data, Loader=yaml.BaseLoader)
    except yaml.YAMLError:  # said where the values are read
        return {}
    pairs = document.items() if isinstance(document, dict) else ()
    return {str(key): value for key, value in pairs if isinstance(value, str)}


def texts(document: Mapping[str, Any], written: Mapping[str, str]) -> dict[str, Any]:
    """The settings whose type is text (or a list of texts), as written where they were read as
    something else; an empty value stays one."""
    kinds = load_contract("config")["properties"]
    found = dict(document)
    for key, value in document.items():
        kind = kinds.get(key, {}).get("type")
        plain = value is not None and not isinstance(value, str | Mapping | list)
        if plain and kind in ("string", "array") and key in written:
            found[key] = written[key]
    return found


def listed(value: Any) -> Any:
    """``A,B`` as the list that it stands for."""
    if not isinstance(value, str):
        return value
    return [word.strip() for word in value.split(",") if word.strip()]


def split_slices(text: str) -> dict[str, str]:
    """Source strings by name of the slice: ``NAME=SOURCE,NAME=SOURCE``, or one source.

    A comma that no name and ``=`` follow belongs to a source.

    Raises:
        ConfigError: a name that is given twice, or that other slices have.
    """
    name, equals, _ = text.partition("=")
    if not equals or not SLICE_NAME.fullmatch(name):
        return {ONE: text}
    parts = re.split(rf",\s*(?={SLICE_NAME.pattern}=)", text)
    found: dict[str, str] = {}
    for part in parts:
        name, _, source = part.strip().partition("=")
        if name in found or name == LONG:
            raise ConfigError(
                f"slice {name} is given twice" if name in found else f"no text is named {LONG}",
                where=text,
                expected="NAME=SOURCE,NAME=SOURCE, each name once",
                hint="" if name in found else "long_context asks for long windows",
            )
        found[name] = source
    return found
