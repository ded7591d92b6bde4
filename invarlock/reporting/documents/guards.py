"""What documents say of the guards, as types, from the registry."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from msgspec import defstruct

from invarlock.documents.fields import Closed
from invarlock.reporting.signals import CORE_GUARDS, FLAG_BLOCKS

if TYPE_CHECKING:
    PrimaryGuard: TypeAlias = str
    GateFlag: TypeAlias = str
else:
    PrimaryGuard = Literal[CORE_GUARDS]  # the metric among them
    GateFlag = Literal[tuple(FLAG_BLOCKS)]


def each(name: str, member: Any, about: str, guards: Sequence[str] = CORE_GUARDS) -> Any:
    """An object with a member of one type for each guard, the core ones and the metric if not
    said otherwise."""
    fields = [(guard, member) for guard in guards]
    return defstruct(name, fields, bases=(Closed,), namespace={"__doc__": about})
