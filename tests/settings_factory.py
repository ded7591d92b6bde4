"""Settings of the shipped files with something else on the command line, for tests."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml
from repository_copy import ROOT

from invarlock.config import Settings, effective_settings
from invarlock.errors import ConfigError, InvarlockError

FILE: dict[str, Any] = yaml.safe_load((ROOT / "config/config.yaml").read_text())
SUITES: dict[str, Any] = yaml.safe_load((ROOT / "config/suites.yaml").read_text())
SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
MISTRAL = "mistralai/Mistral-7B-v0.1"


def settings(
    environment: dict[str, str] | None = None,
    suites: dict[str, Any] | None = None,
    **given: object,
) -> Settings:
    """The settings of the shipped files with ``given`` on the command line."""
    return effective_settings(
        {**copy.deepcopy(FILE), **given}, FILE, suites or SUITES, environment or {}
    )


def refusal(expected: type[InvarlockError] = ConfigError, **given: Any) -> str:
    """The one line with which the settings are refused."""
    with pytest.raises(expected) as caught:
        settings(**given)
    assert "\n" not in str(caught.value)
    return str(caught.value)
