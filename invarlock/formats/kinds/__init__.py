"""The formats of checkpoints, one file each; ``formats`` finds them by looking here."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from typing import Any

from invarlock.formats.kind import Format
from invarlock.registry import kinds_in


@functools.cache  # at first use: formats that pack weights into others' files import those
def formats() -> list[Format]:
    """All formats, the one that is meant of several in a folder first."""
    found = kinds_in(__name__, Format, "name").values()
    return sorted((kind() for kind in found), key=lambda form: form.order)


def format_of(names: Collection[str]) -> Format | None:
    """The format of the weights among these files; None where none is known."""
    return next((form for form in formats() if not form.inside and form.files(names)), None)


def as_configured(form: Format, config: Mapping[str, Any]) -> Format:
    """The format that packs its weights into files of ``form``, where ``config.json`` names one."""
    return next((f for f in formats() if f.inside == form.name and f.packs(config)), form)
