"""Whether tests that need llama.cpp run: skipped where it is missing, but not where CI is set."""

from __future__ import annotations

import importlib.util
import os

import pytest


def require_llama_cpp() -> None:
    """Skip a module whose tests need it; under CI a missing one fails instead.

    A machine that cannot build it (no compiler, no sdist) says so with ``INVARLOCK_NO_BACKENDS``.
    """
    if importlib.util.find_spec("llama_cpp") is not None:
        return
    if os.environ.get("CI") and not os.environ.get("INVARLOCK_NO_BACKENDS"):
        pytest.fail("CI is set and llama-cpp-python is not installed: make backends", pytrace=False)
    pytest.skip("llama-cpp-python is not installed: make backends", allow_module_level=True)
