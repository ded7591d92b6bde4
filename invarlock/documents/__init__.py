"""The documents that are written and read, one module each, as structs.

``invarlock/documents/<name>.py`` holds the document of ``contracts/<name>.schema.json``: its
``DOCUMENT`` is the struct, its ``TITLE`` and documentation head the contract. A new document is a
new module and nothing else; ``make docs`` writes its contract.
"""

from __future__ import annotations

import importlib
from types import ModuleType

SHARED = ("fields", "guards", "kinds")  # modules of parts


def names() -> list[str]:
    """The names of all documents, as their contracts have them."""
    import pkgutil

    found = sorted(entry.name for entry in pkgutil.iter_modules(__path__))
    return [name.replace("_", "-") for name in found if name not in SHARED]


def module(name: str) -> ModuleType:
    """The module of a document.

    Raises:
        ModuleNotFoundError: no such document.
    """
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
