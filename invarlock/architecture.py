"""What an architecture's tensor names mean: the form that tables and module graphs share."""

from __future__ import annotations

import functools
import re
from enum import StrEnum

from msgspec import Struct


class Role(StrEnum):
    """The part a tensor plays in the network."""

    ATTN = "attn"
    MIXER = "mixer"  # what mixes tokens through a state or a convolution, in attention's place
    FFN = "ffn"
    EXPERT = "expert"
    ROUTER = "router"
    EMBED = "embed"
    HEAD = "head"
    NORM = "norm"
    OTHER = "other"


class Architecture(Struct, frozen=True):
    """What the tensor names and configuration keys of one architecture mean."""

    patterns: tuple[tuple[Role, str], ...]
    head: str = "lm_head.weight"
    tied_by_default: bool = False  # when config.json does not say tie_word_embeddings
    layer_count: str = "num_hidden_layers"  # configuration key
    ffn_output: str = "down_proj"  # the projection that leaves the feed-forward block
    attn_outputs: tuple[str, ...] = ("o_proj", "c_proj", "output.dense", "o")
    last_norm: str = r"(?:model\.)?norm\.weight"  # pattern of the norm before the head
    other_tables: str = ""  # pattern of embeddings whose rows are positions, not tokens
    more_rows: int = 0  # of the token embedding, beyond vocab_size: classes that add some
    transposed: str = ""  # pattern of matrices stored (inputs, outputs)

    def role_of(self, tensor_name: str) -> Role:
        """The role of a tensor; ``Role.OTHER`` for a name that no pattern matches whole."""
        for role, pattern in _compiled(self.patterns):
            if pattern.fullmatch(tensor_name):
                return role
        return Role.OTHER


@functools.cache
def _compiled(patterns: tuple[tuple[Role, str], ...]) -> tuple[tuple[Role, re.Pattern[str]], ...]:
    return tuple((role, re.compile(text)) for role, text in patterns)
