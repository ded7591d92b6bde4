"""The JSON contracts of ``contracts/``: find, load and apply them, with one-line errors."""

from __future__ import annotations

import difflib
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from invarlock.errors import ConfigError, ContractError, InvarlockError
from invarlock.files import read_json_object

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError

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
    """Every way ``document`` departs from contract ``name``, as ``/pointer what`` lines."""
    from jsonschema import Draft202012Validator

    validator = Draft202012Validator(load_contract(name))
    errors = sorted(validator.iter_errors(document), key=lambda e: [str(p) for p in e.path])
    return [_sentence(error) for error in errors]


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


def _sentence(error: ValidationError) -> str:
    pointer = "".join(f"/{part}" for part in error.absolute_path)
    schema: Any = error.schema
    wanted: Any = error.validator_value
    if error.validator == "additionalProperties" and isinstance(error.instance, dict):
        known = list(schema.get("properties", {}))
        unknown = sorted(set(error.instance) - set(known))
        if unknown:
            near = difflib.get_close_matches(unknown[0], known, n=1)
            guess = f" (did you mean {near[0]}?)" if near else f" (known: {', '.join(known[:12])})"
            return f"{pointer}/{unknown[0]} is not a known key{guess}"
    if error.validator == "required" and isinstance(error.instance, dict):
        missing = [key for key in wanted if key not in error.instance]
        return f"{pointer or '/'} lacks the key {missing[0]}" if missing else error.message
    if error.validator == "enum":
        return f"{pointer or '/'} is {_short(error.instance)}; expected one of " + ", ".join(
            _short(value) for value in wanted
        )
    if error.validator == "type":
        wanted = " or ".join(wanted) if isinstance(wanted, list) else wanted
        return f"{pointer or '/'} is {_short(error.instance)}; expected {wanted}"
    return f"{pointer or '/'}: {error.message[:200]}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
