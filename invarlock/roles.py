"""What each tensor of a checkpoint is for: one table per architecture, no guessing by substring.

A role decides what an edit's scope covers and to which family a guard assigns a module.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from msgspec import Struct


class Role(StrEnum):
    """The part a tensor plays in the network."""

    ATTN = "attn"
    FFN = "ffn"
    EXPERT = "expert"
    ROUTER = "router"
    EMBED = "embed"
    HEAD = "head"
    NORM = "norm"
    OTHER = "other"


# Family names under which the guards report; the rest is "other".
FAMILIES = ("attn", "ffn", "expert", "router", "embed", "other")

_LAYER = r"(?:model\.)?layers\.\d+\."
_LLAMA: tuple[tuple[Role, str], ...] = (
    (Role.EMBED, r"(?:model\.)?embed_tokens\.weight"),
    (Role.HEAD, r"lm_head\.(?:weight|bias)"),
    (Role.ATTN, _LAYER + r"self_attn\.[qkvo]_proj\.(?:weight|bias)"),
    (Role.NORM, _LAYER + r"self_attn\.[qk]_norm\.weight"),
    (Role.FFN, _LAYER + r"mlp\.(?:gate|up|down|gate_up)_proj\.(?:weight|bias)"),
    (Role.NORM, _LAYER + r"(?:input|post_attention)_layernorm\.weight"),
    (Role.NORM, r"(?:model\.)?norm\.weight"),
)
# Experts are stored one matrix each (w1, w2, w3) or fused into 3-D tensors.
_MIXTRAL: tuple[tuple[Role, str], ...] = (
    (Role.ROUTER, _LAYER + r"(?:block_sparse_moe|mlp)\.gate\.weight"),
    (Role.EXPERT, _LAYER + r"(?:block_sparse_moe|mlp)\.experts\.\d+\.w[123]\.weight"),
    (Role.EXPERT, _LAYER + r"(?:block_sparse_moe|mlp)\.experts\.(?:gate_up|down)_proj"),
    *_LLAMA,
)
_BLOCK = r"(?:transformer\.)?h\.\d+\."
_GPT2: tuple[tuple[Role, str], ...] = (
    (Role.EMBED, r"(?:transformer\.)?w[tp]e\.weight"),
    (Role.HEAD, r"lm_head\.weight"),
    (Role.ATTN, _BLOCK + r"attn\.(?:c_attn|c_proj)\.(?:weight|bias)"),
    (Role.FFN, _BLOCK + r"mlp\.(?:c_fc|c_proj)\.(?:weight|bias)"),
    (Role.NORM, _BLOCK + r"ln_[12]\.(?:weight|bias)"),
    (Role.NORM, r"(?:transformer\.)?ln_f\.(?:weight|bias)"),
)
_ENCODER = r"(?:bert\.)?encoder\.layer\.\d+\."
_NORM = r"LayerNorm\.(?:weight|bias|gamma|beta)"
_BERT: tuple[tuple[Role, str], ...] = (
    (Role.EMBED, r"(?:bert\.)?embeddings\.(?:word|position|token_type)_embeddings\.weight"),
    (Role.NORM, r"(?:bert\.)?embeddings\." + _NORM),
    (Role.ATTN, _ENCODER + r"attention\.self\.(?:query|key|value)\.(?:weight|bias)"),
    (Role.ATTN, _ENCODER + r"attention\.output\.dense\.(?:weight|bias)"),
    (Role.FFN, _ENCODER + r"(?:intermediate|output)\.dense\.(?:weight|bias)"),
    (Role.NORM, _ENCODER + r"(?:attention\.)?output\." + _NORM),
    (Role.NORM, r"cls\.predictions\.transform\." + _NORM),
    (Role.HEAD, r"cls\.(?:predictions|seq_relationship)\..*"),
)
# Encoder and decoder blocks of one number are one layer.
_STACK = r"(?:encoder|decoder)\."
_SUBLAYER = _STACK + r"block\.\d+\.layer\.\d\."
_T5: tuple[tuple[Role, str], ...] = (
    (Role.EMBED, r"(?:shared|(?:encoder|decoder)\.embed_tokens)\.weight"),
    (Role.EMBED, _SUBLAYER + r"SelfAttention\.relative_attention_bias\.weight"),
    (Role.HEAD, r"lm_head\.weight"),
    (Role.ATTN, _SUBLAYER + r"(?:SelfAttention|EncDecAttention)\.[qkvo]\.weight"),
    (Role.FFN, _SUBLAYER + r"DenseReluDense\.(?:wi|wi_0|wi_1|wo)\.weight"),
    (Role.NORM, _SUBLAYER + r"layer_norm\.weight"),
    (Role.NORM, _STACK + r"final_layer_norm\.weight"),
)


class Architecture(Struct, frozen=True):
    """What the tensor names and configuration keys of one ``model_type`` mean."""

    patterns: tuple[tuple[Role, str], ...]
    head: str = "lm_head.weight"
    tied_by_default: bool = False  # when config.json does not say tie_word_embeddings
    layer_count: str = "num_hidden_layers"  # configuration key
    ffn_output: str = "down_proj"  # the projection that leaves the feed-forward block
    last_norm: str = r"(?:model\.)?norm\.weight"  # pattern of the norm before the head
    other_tables: str = ""  # pattern of embeddings whose rows are positions, not tokens
    conv1d: bool = False  # projections stored (inputs, outputs)


ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture(_LLAMA),  # also Yi
    "mistral": Architecture(_LLAMA),
    "qwen2": Architecture(_LLAMA),
    "qwen3": Architecture(_LLAMA),
    "mixtral": Architecture(_MIXTRAL, ffn_output="w2"),
    "gpt2": Architecture(
        _GPT2, tied_by_default=True, layer_count="n_layer", ffn_output="mlp.c_proj", conv1d=True,
        last_norm=r"(?:transformer\.)?ln_f\.weight", other_tables=r"(?:transformer\.)?wpe\.weight",
    ),
    "bert": Architecture(
        _BERT, head="cls.predictions.decoder.weight", tied_by_default=True,
        ffn_output="output.dense",
        last_norm=r"cls\.predictions\.transform\.LayerNorm\.(?:weight|gamma)",
        other_tables=r"(?:bert\.)?embeddings\.(?:position|token_type)_embeddings\.weight",
    ),
    "t5": Architecture(
        _T5, tied_by_default=True, layer_count="num_layers", ffn_output="wo",
        last_norm=r"decoder\.final_layer_norm\.weight",
        other_tables=_SUBLAYER + r"SelfAttention\.relative_attention_bias\.weight",
    ),
}  # fmt: skip

# Configuration keys that hold a number of layers.
LAYER_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "num_decoder_layers")

_LAYER_NUMBER = re.compile(r"(?:^|\.)(?:layers|layer|block|h)\.(\d+)\.")
_CONV1D = re.compile(_BLOCK + r"(?:attn\.(?:c_attn|c_proj)|mlp\.(?:c_fc|c_proj))\.weight")


@functools.cache
def _compiled(model_type: str) -> tuple[tuple[Role, re.Pattern[str]], ...]:
    known = ARCHITECTURES.get(model_type)
    return tuple((role, re.compile(text)) for role, text in known.patterns) if known else ()


def model_type_of(config: Mapping[str, Any]) -> str:
    """The architecture that ``config`` names, or an empty string."""
    value = config.get("model_type")
    return value if isinstance(value, str) else ""


def architecture_of(config: Mapping[str, Any]) -> Architecture | None:
    """The table of the architecture that ``config`` names; None when there is none."""
    return ARCHITECTURES.get(model_type_of(config))


def is_tied(config: Mapping[str, Any]) -> bool:
    """Whether the output head shares the token embedding's weights, as ``config`` declares."""
    known = architecture_of(config)
    declared = config.get("tie_word_embeddings", known.tied_by_default if known else False)
    return bool(declared)


def role_of(tensor_name: str, config: Mapping[str, Any]) -> Role:
    """The role of a tensor; ``Role.OTHER`` for unlisted names and unknown architectures."""
    for role, pattern in _compiled(model_type_of(config)):
        if pattern.fullmatch(tensor_name):
            return role
    return Role.OTHER


def family_of(tensor_name: str, config: Mapping[str, Any]) -> str:
    """The guards' family of a tensor: its role if that is in ``FAMILIES``, else ``other``."""
    role = role_of(tensor_name, config)
    return role.value if role.value in FAMILIES else "other"


def is_token_table(tensor_name: str, config: Mapping[str, Any]) -> bool:
    """Whether a tensor is an embedding with one row per token."""
    known = architecture_of(config)
    return (
        known is not None
        and role_of(tensor_name, config) is Role.EMBED
        and re.fullmatch(known.other_tables, tensor_name) is None
    )


def layer_of(tensor_name: str) -> int | None:
    """The transformer block a tensor belongs to, counted from 0; None outside the blocks."""
    match = _LAYER_NUMBER.search(tensor_name)
    return int(match.group(1)) if match else None


def is_transposed(tensor_name: str, config: Mapping[str, Any]) -> bool:
    """Whether a matrix is stored (inputs, outputs), as GPT-2's, instead of (outputs, inputs)."""
    known = architecture_of(config)
    return known is not None and known.conv1d and _CONV1D.fullmatch(tensor_name) is not None
