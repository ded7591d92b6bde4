"""The JSON contracts of ``contracts/``: find, load and apply them, with one-line errors."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from jsonschema_rs import Draft202012Validator, ValidationError

from invarlock.errors import ConfigError, ContractError, InvarlockError
from invarlock.files import read_json_object

MOST_VALUES = 20_000  # values of a document of which every departure is listed
SHOWN = 60  # characters of a value or key in an error
_PACKAGE = Path(__file__).resolve().parent
# Installed packages carry the contracts inside; a checkout has them at its top level.
CONTRACTS_DIR = next(
    (p for p in (_PACKAGE / "contracts", _PACKAGE.parent / "contracts") if p.is_dir()),
    _PACKAGE / "contracts",
)


@functools.cache
def load_contract(name: str) -> dict[str, Any]:
    """The contract ``contracts/<name>.schema.json``.

    Raises:
        InputError: no such contract.
    """
    return read_json_object(CONTRACTS_DIR / f"{name}.schema.json")


@functools.cache
def _validator(name: str) -> Draft202012Validator:
    return Draft202012Validator(load_contract(name))


def violations(document: object, name: str) -> list[str]:
    """How ``document`` departs from contract ``name``, as ``/pointer what`` lines."""
    return departures(document, load_contract(name), _validator(name))


def departures(
    document: Any, schema: dict[str, Any], validator: Draft202012Validator | None = None
) -> list[str]:
    """The same for any schema, sorted by place; only the first where ``document`` is large,
    since the library collects all of them before it gives one."""
    validator = validator or Draft202012Validator(schema)
    if validator.is_valid(document):
        return []
    if _exceeds(document, MOST_VALUES):
        try:
            validator.validate(document)
        except ValidationError as error:
            return [_sentence(error, schema)]
    errors = sorted(validator.iter_errors(document), key=lambda e: [*map(str, e.instance_path)])
    return [_sentence(error, schema) for error in errors]


def _exceeds(document: object, most: int) -> bool:
    """Whether a document holds more than ``most`` values."""
    todo, seen = [document], 0
    while todo and seen <= most:
        value = todo.pop()
        seen += 1
        if isinstance(value, dict | list):
            if len(value) > most:
                return True
            todo += value.values() if isinstance(value, dict) else value
    return seen > most


def validate(document: object, name: str, where: str, *, config: bool = False) -> None:
    """Refuse a document that departs from its contract.

    Raises:
        ConfigError: with ``config=True`` (something the user wrote).
        ContractError: otherwise (an artefact).
    """
    found = violations(document, name)
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        kind: type[InvarlockError] = ConfigError if config else ContractError
        raise kind(found[0] + more, where=where)


# What is expected, in the words of our errors; other keywords are shown in the library's words.
_EXPECTED = {
    "minimum": "at least {}",
    "maximum": "at most {}",
    "exclusiveMinimum": "more than {}",
    "exclusiveMaximum": "less than {}",
    "minItems": "at least {} items",
    "maxItems": "at most {} items",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "pattern": "text that matches {}",
}


def _sentence(error: ValidationError, schema: dict[str, Any]) -> str:
    """``/pointer what``, bounded in length whatever the document holds."""
    pointer = "".join(f"/{str(part)[:SHOWN]}" for part in error.instance_path) or "/"
    keyword, wanted = error.kind.name, error.kind.value
    if keyword == "additionalProperties":
        return _unknown_key(error, wanted, schema)
    if keyword == "required":
        return f"{pointer} lacks the key {wanted}"
    if keyword in ("anyOf", "oneOf"):
        return f"{pointer} has none of the forms that are known"
    if keyword == "uniqueItems":
        return f"{pointer} holds a value twice"
    if keyword == "type":
        expected = " or ".join(wanted)
    elif keyword == "enum":
        expected = "one of " + ", ".join(map(short, wanted))
    elif keyword == "const":
        expected = short(wanted)
    elif keyword in _EXPECTED:
        expected = _EXPECTED[keyword].format(wanted)
    else:
        return f"{pointer}: {error.message[: 2 * SHOWN]}"
    return f"{pointer} is {short(error.instance)}; expected {expected}"


def _unknown_key(error: ValidationError, unexpected: list[str], schema: dict[str, Any]) -> str:
    import difflib  # 5 ms, for errors only

    around: Any = schema
    for step in error.schema_path[:-1]:
        around = around[step]
    known = [*around.get("properties", {})]
    key = min(unexpected)[:SHOWN]
    pointer = "".join(f"/{str(part)[:SHOWN]}" for part in (*error.instance_path, key))
    near = difflib.get_close_matches(key, known, n=1)
    guess = f"did you mean {near[0]}?" if near else f"known: {', '.join(known[:12])}"
    return f"{pointer} is not a known key ({guess})"


def short(value: object) -> str:
    """A value as an error message shows it: a long list or object is replaced by its length."""
    if isinstance(value, list | dict) and len(value) > 4:
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    text = repr(value[: SHOWN + 1] if isinstance(value, str) else value)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
