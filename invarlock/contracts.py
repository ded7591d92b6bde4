"""Documents against their contracts, with one-line errors.

What is read is decoded into its struct (:mod:`invarlock.documents`): that is fast, and refuses
what departs. The schemas of ``contracts/`` are generated from the structs; ``jsonschema`` applies
them to what the workflow writes and reads, and finds the words for what decoding refused.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from invarlock import documents
from invarlock.errors import ConfigError, ContractError, InvarlockError
from invarlock.files import read_json_object
from invarlock.shown import shortened

if TYPE_CHECKING:
    from jsonschema import ValidationError

T = TypeVar("T")
MOST_VALUES = 20_000  # values of a document that is looked at with its schema
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


def violations(document: object, name: str) -> list[str]:
    """How ``document`` departs from contract ``name``, as ``/pointer what`` lines, sorted by place.

    Only the first where ``document`` is large; one of that kind is not looked at with its schema.
    """
    module = documents.module(name)
    if module is None:  # the settings, whose contract is made of config.yaml
        return departures(document, load_contract(name))
    try:
        msgspec.convert(document, module.DOCUMENT)
    except msgspec.ValidationError as error:
        if _exceeds(document, MOST_VALUES):
            return [_refusal(error)]
        # Decoding is the stricter one: to it 1.0 is no whole number, for example.
        return departures(document, load_contract(name)) or [_refusal(error)]
    return []


def departures(document: Any, schema: dict[str, Any]) -> list[str]:
    """The same for any schema, by ``jsonschema`` and in full."""
    from invarlock.schemas import validator  # 30 ms, which no verifier pays for what is in order

    found = [one for error in validator(schema).iter_errors(document) for one in _leaves(error)]
    return [_sentence(one) for one in sorted(found, key=lambda e: [*map(str, e.absolute_path)])]


def check(document: object, name: str, where: str, *, config: bool = False) -> None:
    """Refuse a document that cannot be decoded.

    Raises:
        ConfigError: it departs from its contract; with ``config=True`` (something the user wrote).
        ContractError: the same, otherwise (an artefact).
    """
    _refuse(violations(document, name), where, ConfigError if config else ContractError)


def validate(document: object, name: str, where: str, *, config: bool = False) -> None:
    """The same for what the workflow writes and reads, and by ``jsonschema`` as well.

    Raises:
        ConfigError: see :func:`check`.
        ContractError: see :func:`check`.
    """
    found = violations(document, name)
    if not found and not _exceeds(document, MOST_VALUES):
        found = departures(document, load_contract(name))
    _refuse(found, where, ConfigError if config else ContractError)


def decoded(document: object, kind: type[T], where: str) -> T:
    """A document that the workflow reads, as its struct.

    Raises:
        ContractError: see :func:`validate`.
    """
    validate(document, kind.__module__.rpartition(".")[2].replace("_", "-"), where)
    return msgspec.convert(document, kind)


def _refuse(found: list[str], where: str, kind: type[InvarlockError]) -> None:
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise kind(found[0] + more, where=where)


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


_KEY = re.compile(
    r"Object (?:missing required|contains unknown) field `(.*?)`( - at `|$)", re.DOTALL
)


def _refusal(error: msgspec.ValidationError) -> str:
    """What decoding says, as ``/pointer what``; ``*`` stands for a key that it does not name."""
    text, _, place = str(error).partition(" - at `")
    steps = re.findall(r"\.([^.\[`]+)|\[([0-9]+|\.\.\.)\]", place)
    pointer = "".join(f"/{(name or index).replace('...', '*')[:SHOWN]}" for name, index in steps)
    if key := _KEY.match(str(error)):
        name = key[1][:SHOWN]
        if text.startswith("Object missing"):
            return f"{pointer or '/'} lacks the key {name}"
        return f"{pointer}/{name} is not a known key"
    plain = text.replace("`", "")[: 2 * SHOWN]
    return f"{pointer or '/'}: {plain[:1].lower()}{plain[1:]}"


def _leaves(error: ValidationError) -> Iterator[ValidationError]:
    """A departure; of an object that has several forms, those of the one that ``kind`` says."""
    forms: dict[Any, list[ValidationError]] = {}
    for one in error.context or ():
        forms.setdefault(one.relative_schema_path[0], []).append(one)
    meant = [found for found in forms.values() if not any(map(_excludes, found))]
    if len(meant) == 1:
        for one in meant[0]:
            yield from _leaves(one)
    else:
        yield error


def _excludes(error: ValidationError) -> bool:
    """Whether it is not this form that an object has."""
    if [*error.relative_path] == ["kind"]:
        return True
    return not error.relative_path and (error.validator == "type" or error.message == "kind")


def _sentence(error: ValidationError) -> str:
    """``/pointer what``, bounded in length whatever the document holds."""
    pointer = "".join(f"/{str(part)[:SHOWN]}" for part in error.absolute_path) or "/"
    keyword, wanted = error.validator, error.validator_value
    if keyword == "additionalProperties":
        return _unknown_key(error)
    if keyword == "required":
        return f"{pointer} lacks the key {error.message}"
    if keyword in ("anyOf", "oneOf"):
        kinds = [one.validator_value for one in error.context if [*one.relative_path] == ["kind"]]
        if kinds:
            found, known = error.instance["kind"], ", ".join(map(short, kinds))
            return f"{pointer.rstrip('/')}/kind is {short(found)}; expected one of {known}"
        if any(one.validator == "required" and one.message == "kind" for one in error.context):
            return f"{pointer} lacks the key kind"
        return f"{pointer} has none of the forms that are known"
    if keyword == "uniqueItems":
        return f"{pointer} holds a value twice"
    if keyword == "type":
        expected = wanted if isinstance(wanted, str) else " or ".join(wanted)
    elif keyword == "enum":
        expected = "one of " + ", ".join(map(short, wanted))
    elif keyword == "const":
        expected = short(wanted)
    elif keyword in _EXPECTED:
        expected = _EXPECTED[keyword].format(wanted)
    else:
        return f"{pointer}: {error.message[: 2 * SHOWN]}"
    return f"{pointer} is {short(error.instance)}; expected {expected}"


def _unknown_key(error: ValidationError) -> str:
    import difflib  # 5 ms, for errors only

    known = [*error.schema.get("properties", {})]
    key = min(str(key) for key in error.instance if key not in known)[:SHOWN]
    pointer = "".join(f"/{str(part)[:SHOWN]}" for part in (*error.absolute_path, key))
    near = difflib.get_close_matches(key, known, n=1)
    guess = f"did you mean {near[0]}?" if near else f"known: {', '.join(known[:12])}"
    return f"{pointer} is not a known key ({guess})"


def short(value: object) -> str:
    """A value as an error message shows it: a long list or object is replaced by its length."""
    if isinstance(value, list | dict) and len(value) > 4:
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    text = repr(value[: SHOWN + 1] if isinstance(value, str) else value)
    return shortened(text, SHOWN)
