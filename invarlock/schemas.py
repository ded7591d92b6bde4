"""``jsonschema`` as the standard has it, and as strict as decoding is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from jsonschema import Draft202012Validator, ValidationError
from jsonschema.validators import extend


def validator(schema: dict[str, Any]) -> Any:
    """What applies a schema to documents."""
    return _Validator(schema)


def _pattern(_: Any, pattern: str, instance: object, __: Any) -> Iterator[ValidationError]:
    """``$`` is the end of the text and digits are ASCII, which Python says in other words."""
    if isinstance(instance, str):
        ending = re.sub(r"(?<!\\)\$$", r"\\Z", pattern)
        if not re.search(ending, instance, re.ASCII):
            yield ValidationError("does not match")


def _required(_: Any, keys: list[str], instance: object, __: Any) -> Iterator[ValidationError]:
    """The message is the key that is missing, and nothing else."""
    if isinstance(instance, dict):
        yield from (ValidationError(key) for key in keys if key not in instance)


def _one_of(_: Any, known: list[Any], instance: object, __: Any) -> Iterator[ValidationError]:
    """Equal and of one type: 1.0 is not 1."""
    if not any(type(one) is type(instance) and one == instance for one in known):
        yield ValidationError("is none of them")


def _equal(_: Any, wanted: object, instance: object, schema: Any) -> Iterator[ValidationError]:
    return _one_of(_, [wanted], instance, schema)


def _whole(_: Any, value: object) -> bool:
    """A number without a point: 1.0 is none."""
    return isinstance(value, int) and not isinstance(value, bool)


def _list(_: Any, value: object) -> bool:
    return isinstance(value, list | tuple)


_Validator = extend(
    Draft202012Validator,
    {"pattern": _pattern, "required": _required, "enum": _one_of, "const": _equal},
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine_many(
        {"integer": _whole, "array": _list}
    ),
)
