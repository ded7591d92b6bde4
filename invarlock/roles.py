"""What each tensor of a checkpoint is for: by the table of its architecture, else by its modules.

A role decides what an edit's scope covers and to which family a guard assigns a module.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from invarlock.architecture import Architecture, Role
from invarlock.module_graph import LAYER_COUNTS, architecture_from_modules

__all__ = [
    "ARCHITECTURES",
    "FAMILIES",
    "LAYER_COUNTS",
    "Architecture",
    "Role",
    "architecture_of",
    "family_of",
    "is_tied",
    "is_token_table",
    "is_transposed",
    "layer_of",
    "model_type_of",
    "role_of",
]


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


_CONV1D = _BLOCK + r"(?:attn\.(?:c_attn|c_proj)|mlp\.(?:c_fc|c_proj))\.weight"

ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture(_LLAMA),  # also Yi
    "mistral": Architecture(_LLAMA),
    "qwen2": Architecture(_LLAMA),
    "qwen3": Architecture(_LLAMA),
    "mixtral": Architecture(_MIXTRAL, ffn_output="w2"),
    "gpt2": Architecture(
        _GPT2, tied_by_default=True, layer_count="n_layer", ffn_output="mlp.c_proj",
        transposed=_CONV1D,
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

_LAYER_NUMBER = re.compile(
    r"(?:^|\.)(?:layers|layer|blocks?|h|attentions|ffns|layer_norm[12])\.(\d+)\."
)


def model_type_of(config: Mapping[str, Any]) -> str:
    """The architecture that ``config`` names, or an empty string."""
    value = config.get("model_type")
    return value if isinstance(value, str) else ""


def architecture_of(config: Mapping[str, Any]) -> Architecture | None:
    """What the names of the architecture mean that ``config`` names; None when nothing says.

    The table where there is one, else what the modules say that the library builds: the first
    such question imports the library, so no light command asks it.
    """
    return ARCHITECTURES.get(model_type_of(config)) or architecture_from_modules(config)


def is_tied(config: Mapping[str, Any]) -> bool:
    """Whether the output head shares the token embedding's weights, as ``config`` declares."""
    known = architecture_of(config)
    declared = config.get("tie_word_embeddings", known.tied_by_default if known else False)
    return bool(declared)


def role_of(tensor_name: str, config: Mapping[str, Any]) -> Role:
    """The role of a tensor; ``Role.OTHER`` for unlisted names and unknown architectures."""
    known = architecture_of(config)
    return Role.OTHER if known is None else known.role_of(tensor_name)


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
    return known is not None and re.fullmatch(known.transposed, tensor_name) is not None
