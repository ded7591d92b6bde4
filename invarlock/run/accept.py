"""Names by which a user may accept a finding of the files, or of rows of special tokens.

A name that no finding can have is a slip that would be noticed after a measurement, if at all.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from invarlock.errors import ConfigError, InputError
from invarlock.files import read_json_object
from invarlock.guards.rows import SPECIAL_ROWS
from invarlock.shipped_files import SHIPPED
from invarlock.tokenizer_meaning import ACCEPTABLE


def check_accept(names: Sequence[str], baseline: Path, subject: Path, where: str) -> None:
    """Refuse a name that is neither a kind of shipped files nor a field of the configurations.

    Args:
        names: what the user accepts.
        baseline: checkpoint folder; what cannot be read is refused elsewhere.
        subject: the same.
        where: the setting or option, for the message.

    Raises:
        ConfigError: names the nearest name that there is.
    """
    kinds = (*SHIPPED, *ACCEPTABLE, SPECIAL_ROWS)
    known = {*kinds, *_stated(baseline), *_stated(subject)}
    if not {*names} <= known:  # rarely: resolving takes seconds
        known |= {*_resolved(baseline), *_resolved(subject)}
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), n=1)
            raise ConfigError(
                f"accept names {name}, and no finding can have that name",
                where=where,
                expected=f"any of {', '.join(kinds)}, or a field of config.json",
                hint=f"did you mean {near[0]}?" if near else "remove it",
            )


def _stated(folder: Path) -> set[str]:
    try:
        return {*_fields(read_json_object(folder / "config.json"))}
    except InputError:
        return set()


def _resolved(folder: Path) -> set[str]:
    """The fields with the defaults of the configuration's own class."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, OSError, KeyError):
        return set()
    return {*_fields(config.to_dict())}


def _fields(config: Mapping[Any, Any], inside: str = "") -> Iterator[str]:
    """Names of fields, of inner sections by themselves and with the section's name before."""
    for name, value in config.items():
        if not isinstance(name, str):  # of a map of labels
            continue
        yield from (name, f"{inside}{name}")
        if isinstance(value, Mapping):
            yield from _fields(value, f"{inside}{name}.")
