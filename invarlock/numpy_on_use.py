"""NumPy, loaded by the first use of a function of it.

To import it takes a third of the time in which a pack is verified whose judgement needs none of
it. Modules on the path of the verifier import this one instead, as ``np``.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    import numpy

    value = globals()[name] = getattr(numpy, name)
    return value
