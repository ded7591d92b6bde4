"""AutoRound's own format: whole numbers in the layout of GPTQ or of AWQ, called otherwise.

``packing_format`` says which, or in older exports ``backend``: ``auto_round:auto_gptq`` stores zero
points less one, as does what says nothing, ``auto_round`` as they are, and ``auto_round:auto_awq``
packs along the outputs. ``extra_config`` says of single modules, by name or by a pattern found in
it, what else holds for them; 16 bits are dense.

Its exports as plain GPTQ, AWQ or compressed-tensors are read as those.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from invarlock.formats.kind import Inventory
from invarlock.formats.kinds.awq import Awq
from invarlock.formats.kinds.gptq import Gptq
from invarlock.formats.packed import (
    DENSE,
    Packed,
    config_of,
    is_pattern,
    method_of,
    module_of,
    quantization_of,
)
from invarlock.formats.patterns import require_patterns

METHOD = "auto-round"
AS_IS, ONE_LESS, AS_AWQ = "auto_round", "auto_round:auto_gptq", "auto_round:auto_awq"
DENSE_BITS = 16


class _AutoRound(Packed):
    """What both layouts share."""

    title: ClassVar[str] = "AutoRound"
    marks: ClassVar[tuple[str, ...]] = ()  # by its names alone it is GPTQ or AWQ
    formats: ClassVar[Collection[str]]

    def packs(self, config: Mapping[str, Any]) -> bool:
        said = quantization_of(config)
        whole = str(said.get("data_type", "int")).startswith("int")
        named = method_of(config).rpartition("/")[2] == METHOD  # "intel/auto-round" in older ones
        return named and whole and _packing(config) in self.formats

    def dense_because(self, source: Path, config: Mapping[str, Any]) -> str:
        return "" if find_spec("auto_round") else "auto-round not installed"

    def inventory(self, folder: Path) -> Inventory:
        """See :meth:`Format.inventory`."""
        config = config_of(folder)
        names = map(module_of, DENSE.inventory(folder).tensors)
        patterns = filter(is_pattern, _rules(config))
        require_patterns(patterns, names, f"{folder}/config.json")
        return super().inventory(folder)

    def declared(self, module: str, config: Mapping[str, Any]) -> Mapping[str, Any]:
        said, rules = quantization_of(config), _rules(config)
        named = module
        if module not in rules:  # names are looked up, since exports may list every module
            found = (name for name, pattern in _patterns(tuple(rules)) if pattern.search(module))
            named = next(found, "")
        own = rules.get(named)
        return {**said, **own} if isinstance(own, dict) else said

    def leaves_dense(self, module: str, config: Mapping[str, Any]) -> bool:
        bits = self.declared(module, config).get("bits")
        return isinstance(bits, int) and bits >= DENSE_BITS


class AutoRoundGptq(_AutoRound, Gptq):
    """Packed along the inputs."""

    name: ClassVar[str] = "auto_round"
    formats: ClassVar[Collection[str]] = (AS_IS, ONE_LESS)

    def stores_one_less(self, config: Mapping[str, Any]) -> bool:
        return _packing(config) == ONE_LESS


class AutoRoundAwq(_AutoRound, Awq):
    """Packed along the outputs."""

    name: ClassVar[str] = "auto_round_awq"
    formats: ClassVar[Collection[str]] = (AS_AWQ,)


def _packing(config: Mapping[str, Any]) -> str:
    """Which layout it is; empty where it is another one."""
    said = quantization_of(config)
    named = str(said.get("packing_format") or said.get("backend") or ONE_LESS).lower()
    if "awq" in named:
        return AS_AWQ
    if "gptq" in named or named == "auto":
        return ONE_LESS
    return AS_IS if named.startswith(AS_IS) and "compressor" not in named else ""


@functools.lru_cache(maxsize=4)  # of hundreds of modules, each by each
def _patterns(names: tuple[str, ...]) -> list[tuple[str, re.Pattern[str]]]:
    return [(name, re.compile(name)) for name in names if is_pattern(name)]


def _rules(config: Mapping[str, Any]) -> dict[str, Any]:
    """What holds for single modules, by the name or the pattern of it."""
    said = quantization_of(config).get("extra_config")
    return said if isinstance(said, dict) else {}
