"""Perplexity of a sequence-to-sequence model."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from invarlock.errors import InputError
from invarlock.metrics.kind import Example, ToExample
from invarlock.metrics.kinds.perplexity import Perplexity

if TYPE_CHECKING:
    from invarlock.documents.windows import Window
    from invarlock.pictures import Pictures


class PplSeq2Seq(Perplexity):
    """Perplexity of a sequence-to-sequence model: the second half of a window from the first.

    The encoder reads the first half; the decoder reads the right tokens, shifted (teacher forcing).
    """

    name: ClassVar[str] = "ppl_seq2seq"
    model_types: ClassVar[tuple[str, ...]] = ("t5",)
    adapter: ClassVar[str] = "hf_seq2seq"
    loader: ClassVar[str] = "AutoModelForSeq2SeqLM"
    loss_type: ClassVar[str] = "seq2seq"
    flows: ClassVar[bool] = True
    one_piece: ClassVar[bool] = False

    def reader(
        self, folder: Path, config: Mapping[str, Any], seed: int, pictures: Pictures | None = None
    ) -> ToExample:
        start = config.get("decoder_start_token_id")
        if not isinstance(start, int):
            where = str(folder / "config.json")
            raise InputError("no decoder_start_token_id", where=where, expected="a token id")
        return partial(halves, start)

    def predicted(self, length: int) -> float:
        return length - length // 2


def halves(decoder_start: int, window: Window) -> Example:
    """The second half of a window from the first."""
    half = len(window.tokens) // 2
    source, target = window.tokens[:half], window.tokens[half:]
    inputs = {"input_ids": source, "decoder_input_ids": (decoder_start, *target[:-1])}
    return Example(inputs, range(len(target)), target)
