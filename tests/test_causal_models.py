"""Causal classes that no table names, through edits, damage, a run and the guards.

All classes of the library: ``benchmarks/architectures.py``.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from architecture_sweep import sweep

CLASSES = (
    "gemma", "phi", "opt", "gpt_neox", "falcon", "olmo", "starcoder2", "granite", "cohere", "glm",
    "deepseek_v3", "gpt_oss", "mamba",
)  # fmt: skip


@pytest.mark.parametrize("model_type", CLASSES)
def test_a_class_without_table_goes_through(
    in_this_process: None, tmp_path: Path, model_type: str
) -> None:
    """Edits hit matrices, a copy is the baseline to every guard, a hundredfold matrix is found."""
    assert sweep(model_type, tmp_path / model_type) == ""
