"""Perplexity of a causal language model: every token but the first from those before it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from invarlock.metrics.kind import Example, ToExample
from invarlock.metrics.kinds.perplexity import Perplexity

if TYPE_CHECKING:
    from invarlock.documents.windows import Window
    from invarlock.pictures import Pictures


class PplCausal(Perplexity):
    """Perplexity of a causal language model: every token but the first from those before it."""

    name: ClassVar[str] = "ppl_causal"
    default: ClassVar[bool] = True
    adapter: ClassVar[str] = "hf_causal"
    loader: ClassVar[str] = "AutoModelForCausalLM"
    loss_type: ClassVar[str] = "causal"
    flows: ClassVar[bool] = True

    def reader(
        self, folder: Path, config: Mapping[str, Any], seed: int, pictures: Pictures | None = None
    ) -> ToExample:
        return shifted

    def predicted(self, length: int) -> float:
        return length - 1


def shifted(window: Window) -> Example:
    """Each token of a window predicts the next one."""
    tokens = window.tokens
    return Example({"input_ids": tokens}, range(len(tokens) - 1), tokens[1:])
