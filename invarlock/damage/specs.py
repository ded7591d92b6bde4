"""The damage that can be asked for: a name and parameters made into a frozen record."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping

from invarlock.damage.kind import Damage, Value
from invarlock.damage.kinds import DAMAGES
from invarlock.errors import ConfigError


def parse_damage(error_type: str, parameters: Mapping[str, object]) -> Damage:
    """The injector ``error_type`` with ``parameters`` over its defaults.

    Raises:
        ConfigError: unknown injector, unknown parameter, wrong type or value out of range.
    """
    kind = DAMAGES.get(error_type)
    if kind is None:
        raise ConfigError(
            f"{error_type!r} is not an error type", hint=_suggest(error_type, list(DAMAGES))
        )
    fields = {field.name: field for field in dataclasses.fields(kind)}
    values: dict[str, Value] = {}
    for name, value in parameters.items():
        where = f"{error_type}: {name}"
        if name not in fields:
            raise ConfigError("not a parameter", where=where, hint=_suggest(name, list(fields)))
        values[name] = _typed(value, str(fields[name].type), where)
    return kind(**values)


def _typed(value: object, wanted: str, where: str) -> Value:
    if isinstance(value, int) and not isinstance(value, bool) and wanted in ("int", "float"):
        return value if wanted == "int" else float(value)
    if isinstance(value, bool | float | str) and type(value).__name__ == wanted:
        return value
    raise ConfigError("wrong type", where=where, expected=wanted, found=repr(value))


def _suggest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f"did you mean {near[0]}?"
    return "known: " + ", ".join(known) if known else "it takes no parameters"
