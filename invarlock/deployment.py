"""The deployment backends that can pack a baseline here, and what each of their forms claims.

    bitsandbytes:nf4    llama_cpp:Q4_K_M    llama_cpp:Q8_0:scales_damaged

A spec names the backend, the form and, for a subject that has to fail, what is broken afterwards.
What the backends do with a model is in :mod:`invarlock.run.pack_weights`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from invarlock.errors import ConfigError

SCALES = "scales_damaged"  # the scales of one matrix are exchanged, so that all shapes still fit


@dataclass(frozen=True)
class Backend:
    """A program that packs weights and runs them."""

    module: str  # as Python imports it
    extra: str  # of invarlock that installs it
    forms: Mapping[str, int]  # -> bits of a weight, as people call the form
    single_file: bool = False  # whether it writes one file, else a folder


BACKENDS: dict[str, Backend] = {
    "bitsandbytes": Backend("bitsandbytes", "bitsandbytes", {"int8": 8, "nf4": 4}),
    "llama_cpp": Backend(
        "llama_cpp",
        "gguf",
        {"Q8_0": 8, "Q6_K": 6, "Q5_K_M": 5, "Q4_K_M": 4, "Q4_0": 4, "Q3_K_M": 3, "Q2_K": 2},
        single_file=True,
    ),
    "torchao": Backend("torchao", "torchao", {"int8": 8}),
}


@dataclass(frozen=True)
class PackingSpec:
    """What a deployable subject is made by."""

    backend: str
    form: str
    damage: str = ""

    @property
    def bits(self) -> int:
        """What the form claims of a weight."""
        return BACKENDS[self.backend].forms[self.form]


def parse_packing_spec(text: str) -> PackingSpec:
    """The packing that ``text`` asks for.

    Raises:
        ConfigError: unknown backend, form or damage.
    """
    name, *rest = text.split(":")
    backend = BACKENDS.get(name)
    if backend is None:
        raise _unknown("a backend", name, BACKENDS, text)
    if not 1 <= len(rest) <= 2:
        raise ConfigError(
            "not a complete packing", where=text, expected=f"{name}:FORM or {name}:FORM:{SCALES}"
        )
    if rest[0] not in backend.forms:
        raise _unknown(f"a form of {name}", rest[0], backend.forms, text)
    if rest[1:] not in ([], [SCALES]):
        raise _unknown("a damage", rest[1], {SCALES: 0}, text)
    return PackingSpec(name, *rest)


def _unknown(what: str, found: str, known: Mapping[str, object], where: str) -> ConfigError:
    import difflib  # for errors only

    near = difflib.get_close_matches(found, known, n=1)
    guess = f"did you mean {near[0]}? " if near else ""
    return ConfigError(
        f"{found!r} is not {what}", where=where, hint=f"{guess}known: {', '.join(known)}"
    )
