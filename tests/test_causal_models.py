"""Causal classes that no table names, through edits, damage, the guards and a pack.

All classes of the library: ``benchmarks/architectures.py``.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from architecture_sweep import sweep

CLASSES = (
    "gemma", "phi", "opt", "gpt_neox", "falcon", "olmo", "starcoder2", "granite", "cohere", "glm",
    "deepseek_v3", "gpt_oss", "mamba",
    "moshi",  # its embedding has a row that config.json does not count
    "prophetnet",  # its blocks see more than the tokens of a window
)  # fmt: skip


@pytest.mark.parametrize("model_type", CLASSES)
def test_a_class_without_table_goes_through(
    in_this_process: None, tmp_path: Path, key: Path, model_type: str
) -> None:
    """Edits hit matrices, a copy is the baseline to every guard, a lost block and lost ranks are
    found, and the signed pack of it all is verified with every report judged again."""
    assert sweep(model_type, tmp_path / model_type, key) == ""
