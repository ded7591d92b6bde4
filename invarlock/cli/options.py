"""A command's options as one record: a frozen dataclass whose fields say everything once.

From the fields come the parser, the value that the command gets, and the words that a rule of the
workflow passes. Records that share options inherit them; what a class declares itself comes first.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NamedTuple, Protocol, TypeVar, get_args, get_origin, get_type_hints

Options = TypeVar("Options")


class ReadsSettings(Protocol):
    """What a setting's name stands for: the effective configuration."""

    def value(self, name: str) -> Any:
        """The value of ``key`` or ``section.key``."""


def option(
    default: Any = dataclasses.MISSING,
    *,
    help: str | None = None,
    metavar: str | None = None,
    choices: Iterable[str] | None = None,
    setting: str = "",
    unless: str = "",
    comma: bool = False,
    repeated: bool = False,
    positional: bool = False,
    writes: bool = False,
    also: Sequence[str] = (),
) -> Any:
    """A field that is an option, named and typed like the field.

    A field of type ``bool`` is a switch, with a ``--no-`` form where it is on by default; a tuple
    takes one word or more, none where it is empty by default.

    Args:
        default: the value without the option; left out: the option is required.
        help: its line in ``--help``.
        metavar: what stands for the value there.
        choices: the only values.
        setting: the setting of ``config/config.yaml`` that the workflow passes.
        unless: the setting that the workflow passes the switch without.
        comma: a tuple is written as A,B: sorted, each once.
        repeated: a tuple is written as the option again and again.
        positional: the value stands without a name.
        writes: the command makes this file or folder; it claims it before it starts.
        also: other spellings of its name, such as ``-o``.
    """
    shown = {"help": help, "metavar": metavar, "choices": choices}
    marks = {"setting": setting, "unless": unless, "comma": comma, "repeated": repeated}
    place = {"positional": positional, "writes": writes, "also": tuple(also)}
    return dataclasses.field(default=default, metadata={**shown, **marks, **place})


class _Option(NamedTuple):
    """A field of a record, as the functions below need it."""

    name: str
    kind: Any  # str, int, float, bool or Path: of the value, or of each value of a tuple
    several: bool
    field: dataclasses.Field[Any]
    owner: type

    @property
    def flag(self) -> str:
        return self.name if self.positional else "--" + self.name.replace("_", "-")

    @property
    def positional(self) -> bool:
        return bool(self.field.metadata["positional"])

    @property
    def writes(self) -> bool:
        return bool(self.field.metadata["writes"])

    @property
    def required(self) -> bool:
        return self.field.default is dataclasses.MISSING


def _options(record: type) -> tuple[_Option, ...]:
    """The options of a record: its own, then those of its bases in their order."""
    return _options_of(record)  # apart: type checkers take a record for what has no hash


@functools.cache  # a plan of thousands of jobs asks for the words of each
def _options_of(record: type) -> tuple[_Option, ...]:
    found: list[_Option] = []
    kinds, fields = get_type_hints(record), {f.name: f for f in dataclasses.fields(record)}
    for owner in record.__mro__:
        for name in vars(owner).get("__annotations__", {}):
            if name not in fields:
                continue
            kind, several = kinds[name], get_origin(kinds[name]) is tuple
            if several or isinstance(kind, UnionType):  # tuple[X, ...] or X | None
                kind = get_args(kind)[0]
            if get_origin(kind) is Literal:  # of texts; choices says which
                kind = str
            found.append(_Option(name, kind, several, fields.pop(name), owner))
    return tuple(found)


def add_options(parser: argparse.ArgumentParser, record: type) -> None:
    """Declare the options of a record: first what is required; what a base declares under its
    heading, where ``titles``, an attribute of the record, has one."""
    groups: dict[type, argparse._ActionsContainer] = {
        base: parser.add_argument_group(title)
        for base, title in getattr(record, "titles", {}).items()
    }
    for o in sorted(_options(record), key=lambda o: not o.required):
        given = {k: o.field.metadata[k] for k in ("help", "metavar", "choices")}
        given = {key: value for key, value in given.items() if value is not None}
        add = groups.get(o.owner, parser).add_argument
        names = (o.flag, *o.field.metadata["also"])
        if o.kind is bool:
            switch = argparse.BooleanOptionalAction if o.field.default is True else "store_true"
            add(*names, action=switch, default=o.field.default, **given)
            continue
        if o.positional:
            given |= {} if o.required else {"nargs": "?", "default": o.field.default}
        else:
            # argparse adds further words to the default, which must not be a tuple
            default = None if o.several and not o.field.metadata["comma"] else o.field.default
            given |= {"required": True} if o.required else {"default": default}
        if o.field.metadata["comma"]:
            add(*names, type=_names, **given)
        elif o.field.metadata["repeated"]:
            add(*names, type=o.kind, action="append", **given)
        elif o.several:
            number = "+" if o.required else "*"
            add(*names, type=o.kind, nargs=number, action="extend", **given)
        else:
            add(*names, type=o.kind, **given)


def _names(text: str) -> tuple[str, ...]:
    """``A,B`` as sorted names, each once."""
    return tuple(sorted({word.strip() for word in text.split(",") if word.strip()}))


def parsed(record: type[Options], args: argparse.Namespace) -> Options:
    """The record that a command line says."""
    found = {o.name: getattr(args, o.name) for o in _options(record)}
    given = {name: value for name, value in found.items() if value is not None}
    return record(**{n: tuple(v) if isinstance(v, list) else v for n, v in given.items()})


def outputs(options: Any) -> list[Path]:
    """The files and folders that a command with these options makes."""
    values = [getattr(options, o.name) for o in _options(type(options)) if o.writes]
    return [value for value in values if value is not None]


def shared(whole: Any, record: type) -> dict[str, Any]:
    """The values of the options that another record has too."""
    names = [f.name for f in dataclasses.fields(record)]
    return {name: getattr(whole, name) for name in names if hasattr(whole, name)}


def to_json(record: Any) -> dict[str, Any]:
    """A record as JSON holds it: paths as text."""
    values = {f.name: getattr(record, f.name) for f in dataclasses.fields(record)}
    return {name: str(v) if isinstance(v, Path) else v for name, v in values.items()}


def from_json(record: type[Options], document: dict[str, Any]) -> Options:
    """The record that :func:`to_json` wrote."""
    values = dict(document)
    for o in _options(record):
        value = values[o.name]
        if value is not None:
            values[o.name] = tuple(map(o.kind, value)) if o.several else o.kind(value)
    return record(**values)


def words(record: type, settings: ReadsSettings, *names: str, **given: object) -> str:
    """The words of a command line that settings, and what is ``given``, say of its options.

    Empty values are left out.

    Args:
        record: the record of the command.
        settings: values for the options that name a setting.
        names: only these options; none: every option that names a setting.
        given: values of options that a job has for itself; they win over settings.
    """
    found: list[str] = []
    for o in _options(record):
        marks = o.field.metadata
        if o.name in given:
            value = given.pop(o.name)
        elif names and o.name not in names:
            continue
        elif marks["setting"]:
            value = settings.value(marks["setting"])
        elif marks["unless"]:
            value = not settings.value(marks["unless"])
        else:
            continue
        if value is True:
            found.append(o.flag)
        elif o.several:
            texts = [str(v) for v in value] if isinstance(value, Sequence) else []
            if marks["comma"]:
                texts = [",".join(texts)] if texts else []
            if marks["repeated"]:
                found += [f"{o.flag} {shlex.quote(text)}" for text in texts]
            elif texts:
                found.append(shlex.join([o.flag, *texts]))
        elif value is not None and value is not False and value != "":
            found.append(f"{o.flag} {shlex.quote(str(value))}")
    if given:
        raise TypeError(f"{record.__name__} has no option {', '.join(given)}")
    return " ".join(found)
