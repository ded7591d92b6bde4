"""Whether a subject was made as its scenario says, by what its metadata states."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from invarlock.errors import InputError
from invarlock.tuned import MARK, ORDER

# Values by which a scenario leaves a parameter of damage to the model or to the injector's mode.
LEFT_OPEN = (-1, 0, "")


def stated_parameters(entry: Mapping[str, Any]) -> dict[str, object]:
    """What the catalogue entry itself says of its edit (the scope too) or damage, by name.

    Empty for an edit whose numbers are tuned, and for a subject that the user brings.
    """
    made = entry.get("generation")
    made = made if isinstance(made, dict) else {}
    env, spec = made.get("env"), made.get("edit_spec")
    if isinstance(env, dict):
        return {k: v for k, v in env.items() if isinstance(v, bool) or v not in LEFT_OPEN}
    edit_type, *values = spec.split(":") if isinstance(spec, str) else [""]
    return {} if values == [MARK] else dict(zip(ORDER.get(edit_type, ()), values, strict=False))


def departures(
    wanted: Mapping[str, object], metadata: Mapping[str, Any]
) -> Iterator[tuple[str, object, object]]:
    """Every parameter that the metadata lacks or states otherwise: where, wanted, found."""
    parameters = metadata.get("parameters")
    found = dict(parameters) if isinstance(parameters, dict) else {}
    found |= {"scope": metadata.get("scope")}
    for name, value in wanted.items():
        if name not in found or not _same(value, found[name]):
            yield "scope" if name == "scope" else f"parameters/{name}", value, found.get(name)


def _same(wanted: object, found: object) -> bool:
    """Whether two values are equal; a spec states its numbers as text."""
    if isinstance(wanted, bool) or isinstance(found, bool):
        return wanted is found
    if isinstance(wanted, str) and isinstance(found, int | float):
        try:
            return float(wanted) == found
        except ValueError:
            return False
    return wanted == found


def check_subject_metadata(
    entry: Mapping[str, Any], metadata: Mapping[str, Any], where: str
) -> None:
    """Refuse a subject that was made otherwise than its scenario says.

    Args:
        entry: the catalogue entry; what it does not say is not compared.
        metadata: ``edit_metadata.json`` or ``error_metadata.json`` of the subject.
        where: the name of that file.

    Raises:
        InputError: another artifact class, edit, damage or parameter, or damage that was not done.
    """
    made = entry.get("generation", {})
    wanted: dict[str, object] = {"artifact_class": entry.get("artifact_class")}
    if made.get("kind") == "error":
        wanted |= {"error_type": made.get("error_type"), "injected": True}
    elif made.get("kind") == "edit":
        wanted |= {"edit_type": str(made.get("edit_spec")).partition(":")[0]}
        wanted |= {"optimized_deployment_backend": entry.get("optimized_deployment_backend")}
    wrong = [
        (key, value, metadata.get(key))
        for key, value in wanted.items()
        if value is not None and metadata.get(key) != value
    ]
    for key, value, found in wrong or departures(stated_parameters(entry), metadata):
        raise InputError(
            f"/{key} is not that of scenario {entry['id']}", where=where,
            expected=repr(value), found=repr(found)[:60],
            hint="remove the subject, and the workflow makes it again",
        )  # fmt: skip
