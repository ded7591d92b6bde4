"""Every causal model that the installed library builds, small: configurations and checkpoints.

A configuration is the class's own with its sizes made small by what their keys are called, so
that a class which the library adds tomorrow needs no line here. The weights are the library's
seeded initial ones with noise on vectors.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from checkpoint_factory import VOCABULARY, save_model, write_tokenizer

HIDDEN, HEADS, KV_HEADS, HEAD, INNER, EXPERTS = 32, 4, 2, 8, 64, 4
POSITIONS = 256

# The first pattern that the whole key matches decides its value; None leaves the default.
SIZES: tuple[tuple[str, int | None], ...] = (
    (r".*(?:vocab_size|vocabulary_size|n_words|vocab_sizes?)(?:_per_layer_input)?", VOCABULARY),
    (r"(?:pad|unk|decoder_start|sep|cls|mask)_token_id|pad_index|unk_index|mask_index", 0),
    (r"bos_token_id|bos_index", 0),
    (r"eos_token_id|eos_index", 1),
    (r"(?:max_position_embeddings|n_positions|n_ctx|max_seq_len|max_sequence_length"
     r"|max_target_positions|max_source_positions|context_length"
     r"|original_max_position_embeddings|block_size)", POSITIONS),
    (r"(?:hidden_size|d_model|n_embd|n_embed|dim|emb_dim|embed_dim|model_dim|embedding_size"
     r"|attention_hidden_size|lru_width|decoder_hidden_size|word_embed_proj_dim"
     r"|hidden_dim|embedding_dim|cross_attention_hidden_size|adapter_in_dim|adapter_input_size"
     r"|adapter_out_dim|hidden_size_global)", HIDDEN),
    (r"(?:num_key_value_heads|num_kv_heads|n_kv_heads|multi_query_group_num|swa_num_key_value_heads"
     r"|num_global_key_value_heads)", KV_HEADS),
    (r"(?:num_attention_heads|n_heads?|num_heads|decoder_attention_heads|encoder_attention_heads"
     r"|num_decoder_attention_heads|num_encoder_attention_heads|swa_num_attention_heads"
     r"|attention_heads)", HEADS),
    (r"(?:head_dim|v_head_dim|qk_nope_head_dim|qk_rope_head_dim|attention_head_size"
     r"|global_head_dim|swa_head_dim|swa_v_head_dim|d_kv|linear_key_head_dim"
     r"|linear_value_head_dim|rotary_dim|index_head_dim|dim_head)", HEAD),
    (r"(?:(?:\w*_)?intermediate_size|n_inner|d_ff|ffn_dim|decoder_ffn_dim|encoder_ffn_dim"
     r"|feed_forward_size|intermediate_dim|ffn_hidden_size|dim_ff|intermediate_size_mlp)", INNER),
    (r"(?:num_local_experts|n_routed_experts|num_experts|moe_num_experts|n_experts)", EXPERTS),
    (r"(?:num_experts_per_tok(?:en)?|moe_top_k|moe_k|top_k_experts|num_experts_per_token)", 2),
    (r"(?:n_group|topk_group|num_expert_group|n_shared_experts|moe_num_shared_experts"
     r"|num_shared_experts)", 1),
    (r"first_k_dense_replace|num_dense_layers|moe_layer_start_index", 1),
    (r"(?:q_lora_rank|kv_lora_rank|o_lora_rank|qk_lora_rank|time_step_rank)", 16),
    (r"(?:linear_num_key_heads|linear_num_value_heads)", KV_HEADS),
    (r"(?:state_size|ssm_state_size|mamba_d_state|mamba_state_dim)", 8),
    (r"(?:n_groups|mamba_n_groups|n_mamba_groups|mamba_ngroups)", 1),
)  # fmt: skip
LAYERS = re.compile(
    r"(?:num_hidden_layers|n_layers?|num_layers|(?:num_)?(?:de|en)coder_layers|num_blocks|depth"
    r"|num_hidden_groups)"
)
# What a class asks for that its keys do not say, by model type.
EXTRA: dict[str, dict[str, Any]] = {
    "blt": {"encoder_hash_byte_group_vocab": 500},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "dbrx": {"attn_config": {"kv_n_heads": KV_HEADS, "clip_qkv": 8.0, "rope_theta": 1e4}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "deepseek_v4": {"o_groups": 2},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "hunyuan_v1_dense": {"head_dim": HEAD},
    "hunyuan_v1_moe": {"head_dim": HEAD},
    "jamba": {"mamba_dt_rank": 16, "attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "ministral": {"head_dim": HEAD},
    "nemotron_h": {"mamba_num_heads": 8, "mamba_head_dim": 8},
    "nemotron": {"num_key_value_heads": KV_HEADS},
    "reformer": {"is_decoder": True, "axial_pos_shape": [16, 16], "axial_pos_embds_dim": [16, 16]},
    "bamba": {"mamba_n_heads": 8, "mamba_d_head": 8},
    "granitemoehybrid": {"mamba_n_heads": 8, "mamba_d_head": 8,
                         "layer_types": ["mamba", "attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "qwen4_exp_text": {"indexer_n_heads": HEADS, "indexer_kv_heads": 1, "indexer_head_dim": HEAD,
                       "indexer_budget": 64, "indexer_compress_ratio": 4},
    "xmod": {"default_language": "en_XX"},
    # the shared block reads the stream and the embedding, twice the width
    "zamba": {"attention_hidden_size": 2 * HIDDEN, "attention_head_dim": 2 * HIDDEN // HEADS,
              "layers_block_type": ["hybrid", "hybrid"]},
    "zamba2": {"attention_hidden_size": 2 * HIDDEN, "attention_head_dim": 2 * HIDDEN // HEADS,
               "n_mamba_heads": 8, "mamba_headdim": 8},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip


def causal_types() -> dict[str, str]:
    """Model type -> causal class, every class of a configuration once."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    found: dict[tuple[str, str], str] = {}
    for model_type, class_name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items():
        found.setdefault((CONFIG_MAPPING_NAMES[model_type], class_name), model_type)
    return {model_type: class_name for (_, class_name), model_type in found.items()}


def small_config(model_type: str, layers: int = 2) -> Any:
    """A small configuration of a model type."""
    from transformers import AutoConfig

    default = AutoConfig.for_model(model_type)
    return _small(default, layers, EXTRA.get(model_type, {}))


def _small(default: Any, layers: int, extra: Mapping[str, Any]) -> Any:
    # what differs from layer to layer (per_layer_config) is asked of a layer only, and is left out
    subs = {k: v for k, v in vars(default).items() if hasattr(v, "to_dict")}
    said = [k for k in default.to_dict() if k not in _per_layer(default) and hasattr(default, k)]
    plain = {k: getattr(default, k) for k in said}
    counts = {v for k, v in plain.items() if LAYERS.fullmatch(k) and isinstance(v, int)}
    changes: dict[str, Any] = {}
    for key, value in plain.items():
        new = _sized(key, value, counts, layers)
        if new is not None:
            changes[key] = new
    if changes.get("num_attention_heads") and plain.get("num_attention_heads") == plain.get(
        "num_key_value_heads"
    ):
        changes["num_key_value_heads"] = HEADS
    changes |= {
        k: _small(v, layers, EXTRA.get(v.model_type, {})).to_dict() for k, v in subs.items()
    }
    changes |= extra
    return type(default)(**changes)


def _per_layer(config: Any) -> set[str]:
    """Keys whose value differs between layers."""
    own = config.to_dict().get("per_layer_config") or {}
    return {"per_layer_config", *(key for layer in own.values() for key in layer)}


def _sized(key: str, value: Any, counts: set[int], layers: int) -> Any:
    """The small value of one key; None where the default stays."""
    if isinstance(value, bool):
        return None
    if LAYERS.fullmatch(key) and isinstance(value, int):
        return layers
    if isinstance(value, list) and len(value) in counts:
        distinct = list(dict.fromkeys(map(_hashable, value)))
        kept = [v for v in value if _hashable(v) in distinct]
        if 1 < len(distinct) <= layers:
            first = [next(v for v in value if _hashable(v) == d) for d in distinct]
            return copy.deepcopy((first * layers)[:layers])
        return kept[:layers]
    if isinstance(value, int) or value is None:
        for pattern, size in SIZES:
            if re.fullmatch(pattern, key):
                if value is None and not key.endswith("token_id"):
                    return None
                return size
    if isinstance(value, list) and key.endswith("token_id"):
        return 1
    return None


def _hashable(value: Any) -> Any:
    return repr(value)


def small_model(model_type: str, layers: int = 2) -> Any:
    """The causal model of a small configuration, seeded, with noise on vectors."""
    import transformers

    config = small_config(model_type, layers)
    torch.manual_seed(7)
    model = transformers.AutoModelForCausalLM.from_config(config)
    noise = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1 and parameter.is_floating_point():
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=noise))
    return model.eval()


def make_causal(model_type: str, folder: Path, layers: int = 2) -> Path:
    """The folder of a small causal model with a tokenizer; returns ``folder``."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    folder.mkdir(parents=True, exist_ok=True)
    model = small_model(model_type, layers)
    save_model(model, folder)
    if model.config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        # of the section for text alone the library builds no causal model
        whole = small_config(model_type, layers)
        whole.architectures, whole.dtype = [type(model).__name__], model.config.dtype
        whole.save_pretrained(folder)
    # a class that others read as a masked model needs the token
    write_tokenizer(folder, ("<s>", "</s>", *(["[MASK]"] if model_type == "bert" else [])))
    return folder
