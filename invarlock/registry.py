"""Kinds of a thing that are found by looking: each is a class in a module of one package.

A new kind of edit, damage, source, format or metric is a new file in that package and nothing
else: no list has to be kept beside it. The name stands in the class, and two classes cannot have
one name.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType
from typing import TypeVar

T = TypeVar("T")


def kinds_in(package: str, base: type[T], name: str) -> dict[str, type[T]]:
    """The classes of a package's modules that derive from ``base``, sorted by their names.

    Args:
        package: dotted name; its own ``__init__`` may be the caller.
        base: what they derive from.
        name: the attribute that names a kind. A class that does not set it is a step between.

    Raises:
        TypeError: two kinds have one name.
    """
    found: dict[str, type[T]] = {}
    for module in _modules_of(package):
        for kind in vars(module).values():
            if not isinstance(kind, type) or not issubclass(kind, base):
                continue
            # what a module imports from another one is that one's
            if kind.__module__ != module.__name__ or name not in vars(kind):
                continue
            other = found.setdefault(vars(kind)[name], kind)
            if other is not kind:
                raise TypeError(f"{other.__name__} and {kind.__name__} have one {name}")
    return dict(sorted(found.items()))


def _modules_of(package: str) -> list[ModuleType]:
    paths = importlib.import_module(package).__path__
    names = sorted(entry.name for entry in pkgutil.iter_modules(paths))
    return [importlib.import_module(f"{package}.{entry}") for entry in names]
