"""NumPy, loaded by the first use of a function of it.

A pack that holds no windows is verified without it, and importing it takes longer than most other
steps of such a verification. Modules on the path of the verifier import this one, as ``np``.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    import numpy

    value = globals()[name] = getattr(numpy, name)
    return value
