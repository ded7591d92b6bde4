"""The documents that are written and read, one module each, as structs.

``<name>.py``, here or in ``invarlock/reporting/documents`` where it names guards, holds the
document of ``contracts/<name>.schema.json``: its ``DOCUMENT`` is the struct, its ``TITLE`` and its
documentation head the contract. A new document is a new module and nothing else; ``make docs``
writes its contract.
"""

from __future__ import annotations

import functools
import importlib
from importlib.util import find_spec
from types import ModuleType

PACKAGES = (__name__, "invarlock.reporting.documents")


def names() -> list[str]:
    """The names of all documents, as their contracts have them."""
    import pkgutil

    found = [
        f"{package}.{entry.name}"
        for package in PACKAGES
        for entry in pkgutil.iter_modules(importlib.import_module(package).__path__)
    ]
    return sorted(
        name.rpartition(".")[2].replace("_", "-")
        for name in found
        if hasattr(importlib.import_module(name), "DOCUMENT")
    )


@functools.cache
def module(name: str) -> ModuleType | None:
    """The module of a document; None where no struct has this name."""
    for package in PACKAGES:
        path = f"{package}.{name.replace('-', '_')}"
        if find_spec(path):
            return importlib.import_module(path)
    return None
