"""Which tensors of a block work together: what stands behind which norm, and what undoes what.

Roles say what a tensor is for; here stands which norm a matrix reads through, and which of them
make one head or one neuron. Guards multiply these tensors, and edits rewrite them together.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from invarlock.roles import model_type_of


@dataclass(frozen=True)
class Wiring:
    """The tensors of a block; names below the block's own, without ".weight"."""

    block: str  # pattern of what stands before the names
    attn_norm: str
    query: tuple[str, ...]  # q, k, v; or one that holds the three of them
    out: str
    ffn_norm: str
    layer_norm: bool = False  # the norm takes the mean away
    ffn: tuple[str, ...] = ()  # gate, up, down; or up, down


_RMS = Wiring(
    r"(?:model\.)?layers\.\d+\.",
    "input_layernorm",
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.o_proj",
    "post_attention_layernorm",
    ffn=("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
)
_GPT2 = Wiring(
    r"(?:transformer\.)?h\.\d+\.",
    "ln_1",
    ("attn.c_attn",),
    "attn.c_proj",
    "ln_2",
    layer_norm=True,
    ffn=("mlp.c_fc", "mlp.c_proj"),
)
# Only model types whose norms and order of blocks are known: a product with a wrong norm is none.
WIRINGS: dict[str, Wiring] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "mixtral"), _RMS),
    "gpt2": _GPT2,
}

EXPERT = re.compile(r"((?:block_sparse_moe|mlp)\.experts)\.(\d+)\.w([123])\.weight")
FUSED_EXPERTS = re.compile(r"((?:block_sparse_moe|mlp)\.experts)\.(gate_up|down)_proj")
ROUTER = re.compile(r"((?:block_sparse_moe|mlp)\.gate)\.weight")


class Heads(NamedTuple):
    """How the rows of a block's projections form heads."""

    queries: int  # how many
    groups: int  # how many of keys and values
    width: int  # of each


def heads_of(config: Mapping[str, Any], inputs: int, values: int) -> Heads | None:
    """The heads of attention; None where they do not follow from configuration and shapes.

    Args:
        config: ``config.json``.
        inputs: of the output projection.
        values: rows of the value projection.
    """
    count = int(config.get("num_attention_heads") or config.get("n_head") or 0)
    width = int(config.get("head_dim") or 0) or (inputs // count if count else 0)
    if width < 1 or count < 1 or inputs != count * width:
        return None
    if values % width or not values or count % (values // width):
        return None
    return Heads(count, values // width, width)


def scales_freely(config: Mapping[str, Any], gated: bool) -> bool:
    """Whether a positive scale of a neuron's input can be undone behind it: a gate stands beside
    it, or it is a ReLU."""
    return gated or config.get("hidden_act", config.get("activation_function")) == "relu"


def wiring_of(config: Mapping[str, Any]) -> Wiring | None:
    """The wiring of the architecture that ``config`` names; None where it is not known."""
    return WIRINGS.get(model_type_of(config))
