"""The edits that can be asked for: ``type:parameter:...:scope`` parsed into a frozen record."""

from __future__ import annotations

import difflib

from invarlock.checkpoints import Checkpoint
from invarlock.counts import counted
from invarlock.edits.kind import EditSpec, TextEdit
from invarlock.edits.kinds import EDITS
from invarlock.edits.scope import Scope, parse_scope
from invarlock.errors import ConfigError
from invarlock.roles import layer_of

# What a search tries, by edit type, and the edits for which a text goes through the model.
CANDIDATES = {name: kind.candidates for name, kind in EDITS.items() if kind.candidates}
FROM_TEXT = tuple(name for name, kind in EDITS.items() if issubclass(kind, TextEdit))
IN_MEMORY = tuple(name for name, kind in EDITS.items() if kind.in_memory)


def parse_edit_spec(text: str) -> EditSpec:
    """The edit that ``text`` asks for, such as ``quant_rtn:4:64:ffn@layer=3``.

    Raises:
        ConfigError: unknown edit, wrong number of parameters, or a value out of range.
    """
    edit_type, *values = text.split(":")
    kind = EDITS.get(edit_type)
    if kind is None:
        near = difflib.get_close_matches(edit_type, EDITS, n=1)
        hint = f"did you mean {near[0]}?" if near else "known: " + ", ".join(EDITS)
        raise ConfigError(f"{edit_type!r} is not an edit", where=text, hint=hint)
    types = kind.types()
    if len(values) != len(types):
        hint = "resolve tuned parameters first" if "tuned" in values else ""
        found = counted(len(values), "parameter")
        raise ConfigError(
            "not a complete edit", where=text, expected=kind.form(), found=found, hint=hint
        )
    parsed: dict[str, int | float | str | Scope] = {}
    for (name, wanted), value in zip(types.items(), values, strict=True):
        parsed[name] = _value(wanted, value, f"{text}: {name}")
    return kind(**parsed)


def _value(wanted: type, text: str, where: str) -> int | float | str | Scope:
    if wanted is Scope:
        return parse_scope(text, where)
    try:
        if wanted is int:
            return int(text)
        return float(text) if wanted is float else text
    except ValueError:
        expected = "a whole number" if wanted is int else "a number"
        raise ConfigError(
            "not a number", where=where, expected=expected, found=repr(text)
        ) from None


def candidates(edit_type: str, baseline: Checkpoint) -> list[str]:
    """The spec strings that a search for tuned parameters tries on one model, in order."""
    layers = {layer_of(name) for name in baseline.tensors} - {None}
    middle = (len(layers) - 1) // 2 if layers else 0
    return [f"{edit_type}:{values.format(middle=middle)}" for values in CANDIDATES[edit_type]]
