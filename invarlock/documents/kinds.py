"""What documents say of the kinds of edit and damage, as types.

Read from ``invarlock/data/kinds.json``, which ``make docs`` makes of the kinds: to import these
takes longer than to verify a pack.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from msgspec import Meta

from invarlock.deployment import BACKENDS
from invarlock.documents.fields import about, matches
from invarlock.files import read_json_object

KINDS = read_json_object(Path(__file__).resolve().parent.parent / "data/kinds.json")
EDITS: dict[str, dict[str, Any]] = KINDS["edits"]
WITH_PARAMETERS = {name: kind for name, kind in EDITS.items() if kind["parameters"]}
TUNABLE = {name: kind for name, kind in EDITS.items() if kind.get("tunable")}  # by a search
# The values of a spec string, in its order.
ORDER: dict[str, tuple[str, ...]] = {
    name: (*kind["parameters"], *(["scope"] if kind.get("scoped") else []))
    for name, kind in EDITS.items()
}
ORDER |= dict.fromkeys(BACKENDS, ("form", "damage"))
CUSTOM = "custom"  # a subject that the user brings
_BOUNDS = {"minimum": "ge", "maximum": "le", "exclusiveMinimum": "gt"}


def parameter_type(parameter: dict[str, Any], *, bounded: bool = True) -> Any:
    """The type of one parameter of an edit, from its schema."""
    if "enum" in parameter:
        return Literal[tuple(parameter["enum"])]
    plain = int if parameter["type"] == "integer" else float
    bounds = {_BOUNDS[key]: value for key, value in parameter.items() if key in _BOUNDS}
    return Annotated[plain, Meta(**bounds)] if bounds and bounded else plain


def every_parameter() -> dict[str, Any]:
    """Each parameter of any edit, without bounds, since several edits may take one name."""
    said: dict[str, str] = {}
    types: dict[str, Any] = {}
    for edit_type, kind in WITH_PARAMETERS.items():
        for name, one in kind["parameters"].items():
            more = f"{one['description']} ({edit_type})"
            said[name] = f"{said[name]}; {more}" if name in said else more
            types.setdefault(name, parameter_type(one, bounded=False))
    return {name: Annotated[one, about(said[name])] for name, one in types.items()}


if TYPE_CHECKING:
    EditType: TypeAlias = str
    StorageFormat: TypeAlias = str
    DamageType: TypeAlias = str
    EditSpecText: TypeAlias = str
    Scope: TypeAlias = str
else:
    EditType = Literal[(*EDITS, *BACKENDS, CUSTOM)]
    StorageFormat = Literal[
        (*dict.fromkeys(kind["storage_format"] for kind in EDITS.values()), CUSTOM)
    ]
    DamageType = Literal[tuple(KINDS["damage"])]
    _BARE = "|".join([*(name for name in EDITS if name not in WITH_PARAMETERS), CUSTOM])
    EditSpecText = Annotated[str, matches(f"^({_BARE}|({'|'.join(WITH_PARAMETERS)}):.+)$")]
    Scope = Annotated[str, matches(rf"^({'|'.join(KINDS['scopes'])})(@layers?=[0-9]+)?$")]
