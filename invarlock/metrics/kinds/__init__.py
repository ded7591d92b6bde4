"""The kinds of primary metric, one file each; :data:`METRICS` finds them by looking here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_type_hints

from invarlock.metrics.kind import Metric
from invarlock.records import TEXT
from invarlock.registry import kinds_in
from invarlock.roles import model_type_of

METRICS: Mapping[str, Metric] = {
    name: kind() for name, kind in kinds_in(__name__, Metric, "name").items()
}
DEFAULT = next(kind for kind in METRICS.values() if kind.default)
# Those that are asked for by name, and measured on windows of their own.
ASKED: Mapping[str, Metric] = {n: kind for n, kind in METRICS.items() if kind.windows != TEXT}
BY_WINDOWS: Mapping[str, Metric] = {
    windows: kind.on(windows)
    for kind in ASKED.values()
    for windows in (kind.windows, kind.pictured)
    if windows
}


def members_of(block: str) -> dict[str, Any]:
    """The members of a block of reports that only some kinds have, with their types."""
    found: dict[str, Any] = {}
    for kind in METRICS.values():
        if block in kind.members:
            found |= get_type_hints(kind.members[block], include_extras=True)
    return found


def metric_named(name: object) -> Metric:
    """The kind that a report names; the default where it names none that is known."""
    return METRICS.get(str(name), DEFAULT)


def metric_of(config: Mapping[str, Any]) -> Metric:
    """What a model of this ``config.json`` is trained for."""
    model_type = model_type_of(config)
    return next((kind for kind in METRICS.values() if model_type in kind.model_types), DEFAULT)


def metric_for(config: Mapping[str, Any], windows: str) -> Metric:
    """The kind of the primary metric of a model on windows of a kind."""
    return BY_WINDOWS.get(windows) or metric_of(config)
