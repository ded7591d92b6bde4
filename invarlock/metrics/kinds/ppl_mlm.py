"""Perplexity of a masked language model: which tokens are masked, and by what.

Every label is a pure function of the windows' seed, the window's id and the position, so that
order, batches and other windows change nothing. 15 % of the tokens are predicted, of which 80 %
are replaced by the mask token, 10 % by a random one and 10 % stay (Devlin et al., NAACL 2019, 3.1).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from msgspec import UNSET, Struct, UnsetType

from invarlock.documents.fields import Count, Open, about
from invarlock.errors import InputError
from invarlock.files import read_json_object
from invarlock.metrics.kind import Block, Example, ToExample
from invarlock.metrics.kinds.perplexity import Perplexity

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from invarlock.documents.windows import Window
    from invarlock.pictures import Pictures
else:
    from invarlock import numpy_on_use as np

MASKED = 0.15  # probability of a position to be predicted
REPLACED, RANDOM = 0.8, 0.1  # of those: by the mask token, by any token; the rest stays
MASK_TOKENS = ("[MASK]", "<mask>")


class MaskedTelemetry(Open):
    """The counts of a telemetry that are a masked model's."""

    masked_tokens_total: Annotated[
        Count | UnsetType, about("masked tokens of all windows; masked models only")
    ] = UNSET


class PplMlm(Perplexity):
    """Perplexity of a masked language model: the masked tokens from all others."""

    name: ClassVar[str] = "ppl_mlm"
    model_types: ClassVar[tuple[str, ...]] = ("bert",)
    adapter: ClassVar[str] = "hf_mlm"
    loader: ClassVar[str] = "AutoModelForMaskedLM"
    loss_type: ClassVar[str] = "mlm"
    exact: ClassVar[bool] = False
    members: ClassVar[Mapping[str, type[Open]]] = {
        **Perplexity.members,
        "telemetry": MaskedTelemetry,
    }

    def reader(
        self, folder: Path, config: Mapping[str, Any], seed: int, pictures: Pictures | None = None
    ) -> ToExample:
        return partial(masked, Masking.of(folder, int(config["vocab_size"])), seed)

    def predicted(self, length: int) -> float:
        return MASKED * length

    def lints(self) -> list[Block]:
        return [{"type": "gte", "path": "telemetry.masked_tokens_total", "value": 1}]

    def telemetry(self, tokens: Mapping[str, int]) -> Block:
        found = {f"masked_tokens_{arm}": n for arm, n in tokens.items()}
        return {**found, "masked_tokens_total": sum(tokens.values())}


class Masking(Struct, frozen=True):
    """What masking needs to know of a tokenizer."""

    mask_id: int
    special: frozenset[int]  # never masked, never put in
    ordinary: NDArray[np.int64]  # ids a random replacement is drawn from

    @classmethod
    def of(cls, folder: Path, vocabulary: int) -> Masking:
        """From the added tokens of ``tokenizer.json``.

        Raises:
            InputError: it has no mask token.
        """
        path = folder / "tokenizer.json"
        added = read_json_object(path).get("added_tokens", [])
        masks = [token["id"] for token in added if token["content"] in MASK_TOKENS]
        if not masks:
            raise InputError(
                "a masked-language model whose tokenizer has no mask token",
                where=str(path),
                expected=" or ".join(MASK_TOKENS) + " among added_tokens",
            )
        special = frozenset(token["id"] for token in added if token["special"])
        ordinary = np.setdiff1d(np.arange(vocabulary), list(special))
        return cls(masks[0], special | {masks[0]}, ordinary)


def draws(seed: int, window_id: str, position: int) -> tuple[float, float, float]:
    """Three numbers, uniform on [0, 1), of one position: BLAKE2b, 53 bits each."""
    text = f"{seed}:{window_id}:{position}".encode()
    import hashlib

    words = struct.unpack("<3Q", hashlib.blake2b(text, digest_size=24).digest())
    first, second, third = ((word >> 11) / 2**53 for word in words)
    return first, second, third


def masked(masking: Masking, seed: int, window: Window) -> Example:
    """The window with its masks; the position nearest to being chosen where none is.

    Raises:
        InputError: every token is special.
    """
    candidates = {
        position: draws(seed, window.window_id, position)
        for position, token in enumerate(window.tokens)
        if token not in masking.special
    }
    if not candidates:
        raise InputError("a window of special tokens only", where=f"window {window.window_id}")
    chosen = [p for p, (first, _, _) in candidates.items() if first < MASKED]
    chosen = chosen or [min(candidates, key=candidates.__getitem__)]
    shown = list(window.tokens)
    for position in chosen:
        _, what, which = candidates[position]
        if what < REPLACED:
            shown[position] = masking.mask_id
        elif what < REPLACED + RANDOM:
            shown[position] = int(masking.ordinary[int(which * len(masking.ordinary))])
    return Example({"input_ids": shown}, chosen, [window.tokens[p] for p in chosen])
