"""What the metadata of a subject has to say, by the scenario that the subject was made for.

``evaluate`` refuses a subject whose ``edit_metadata.json`` or ``error_metadata.json`` says anything
else, and so does the verification of a pack.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from invarlock.differences import ABSENT, Difference, differences
from invarlock.documents.kinds import ORDER
from invarlock.errors import InputError
from invarlock.scenarios import DEPLOYABLE, FAULT, VALIDATION
from invarlock.tuned import MARK

EDIT_SCHEMA = "invarlock/evidence-pack-edit-metadata-v1"
ERROR_SCHEMA = "invarlock/error-metadata-v1"
CLASSES = {"error": FAULT, "deployable_edit": DEPLOYABLE, "edit": VALIDATION}
# Values by which a scenario leaves a parameter of damage to the model or to the injector's mode.
LEFT_OPEN = (-1, 0, "")
# Members of which a subject that is evaluated outside a suite says nothing.
OF_PACKS = ("schema", "packed_quantized_storage")
Entry = Mapping[str, Any]


def artifact_class(entry: Entry) -> str | None:
    """The class of a scenario's subject: as named, else by the kind of its generation."""
    named, made = entry.get("artifact_class"), _generation(entry)
    return named if isinstance(named, str) and named else CLASSES.get(str(made.get("kind")))


def edit_type(entry: Entry) -> str | None:
    """The edit of a scenario; published catalogues may name it only in the class of failure."""
    spec, failure = _generation(entry).get("edit_spec"), entry.get("failure_class")
    if isinstance(spec, str) and spec:
        return spec.partition(":")[0]
    return failure.rpartition(".")[2] if isinstance(failure, str) and failure else None


def takes_tuned(entry: Entry) -> bool:
    """Whether the parameters of a scenario's edit come from the table of tuned ones."""
    return str(_generation(entry).get("edit_spec")).endswith(f":{MARK}")


def wanted_metadata(entry: Entry) -> dict[str, object]:
    """The members that the metadata of a scenario's subject has, but for the parameters."""
    kind = artifact_class(entry)
    if kind == FAULT:
        error_type = _generation(entry).get("error_type")
        return {"schema": ERROR_SCHEMA, "artifact_class": kind, "error_type": error_type,
                "injected": True}  # fmt: skip
    wanted: dict[str, object] = {"schema": EDIT_SCHEMA, "artifact_class": kind}
    if kind in (VALIDATION, DEPLOYABLE):
        backend = kind == DEPLOYABLE
        wanted |= {"edit_type": edit_type(entry), "optimized_deployment_backend": backend}
        if backend or edit_type(entry) == "quant_rtn":
            wanted["packed_quantized_storage"] = backend
    return wanted


def member_differences(entry: Entry, metadata: Mapping[str, Any]) -> Iterator[Difference]:
    """Where the members of a subject's metadata are not those of its scenario."""
    wanted = wanted_metadata(entry)
    return differences({key: metadata[key] for key in wanted if key in metadata}, wanted)


def stated_parameters(entry: Entry) -> dict[str, object]:
    """What the catalogue entry itself says of its edit (the scope too) or damage, by name.

    Empty for an edit whose numbers are tuned, and for a subject that the user brings.
    """
    made = _generation(entry)
    env, spec = made.get("env"), made.get("edit_spec")
    if isinstance(env, dict):
        return {k: v for k, v in env.items() if isinstance(v, bool) or v not in LEFT_OPEN}
    edit, *values = spec.split(":") if isinstance(spec, str) else [""]
    return {} if values == [MARK] else dict(zip(ORDER.get(edit, ()), values, strict=False))


def spec_of_metadata(metadata: Mapping[str, Any]) -> str:
    """The spec string by which an edit was made that ``edit_metadata.json`` describes."""
    edit, parameters = str(metadata["edit_type"]), metadata["parameters"]
    values = {**parameters, "scope": metadata["scope"]}
    found = (values[name] for name in ORDER.get(edit, ()))
    plain = (int(v) if isinstance(v, float) and v.is_integer() else v for v in found)
    return ":".join([edit, *map(str, plain)])


def parameter_differences(
    wanted: Mapping[str, object], metadata: Mapping[str, Any]
) -> Iterator[Difference]:
    """Every parameter that the metadata lacks or states otherwise."""
    parameters = metadata.get("parameters")
    found = dict(parameters) if isinstance(parameters, dict) else {}
    if "scope" in metadata:
        found["scope"] = metadata["scope"]
    for name, value in wanted.items():
        if name not in found or not _same(value, found[name]):
            at = "/scope" if name == "scope" else f"/parameters/{name}"
            yield Difference(at, found.get(name, ABSENT), value)


def check_subject_metadata(entry: Entry, metadata: Mapping[str, Any], where: str) -> None:
    """Refuse a subject that was made otherwise than its scenario says.

    Args:
        entry: the catalogue entry; what it does not say is not compared.
        metadata: ``edit_metadata.json`` or ``error_metadata.json`` of the subject.
        where: the name of that file.

    Raises:
        InputError: another artifact class, edit, damage or parameter, or damage that was not done.
    """
    wrong = [d for d in member_differences(entry, metadata) if d.pointer[1:] not in OF_PACKS]
    for pointer, found, value in wrong or parameter_differences(stated_parameters(entry), metadata):
        raise InputError(
            f"{pointer} is not that of scenario {entry['id']}", where=where,
            expected=repr(value), found="nothing" if found is ABSENT else repr(found)[:60],
            hint="remove the subject, and the workflow makes it again",
        )  # fmt: skip


def _generation(entry: Entry) -> Mapping[str, Any]:
    made = entry.get("generation")
    return made if isinstance(made, Mapping) else {}


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
