"""The architectures of the suites as small checkpoints: real configuration, released tensor names.

Every field is that of the named model with sizes divided; the weights are seeded noise. Which
tensor plays which part is stated here by hand, so that the role tables of the package have
something to disagree with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from checkpoint_factory import VOCABULARY, write_tokenizer, write_weights

LAYERS = 2
BYTES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

LLAMA = {
    "embed": ("model.embed_tokens.weight",),
    "attn": tuple(f"model.layers.#.self_attn.{p}_proj.weight" for p in "qkvo"),
    "ffn": tuple(f"model.layers.#.mlp.{p}_proj.weight" for p in ("gate", "up", "down")),
    "head": ("lm_head.weight",),
    "norm": (
        "model.layers.#.input_layernorm.weight",
        "model.layers.#.post_attention_layernorm.weight",
        "model.norm.weight",
    ),
}
TIED = {**LLAMA, "head": ()}
MIXTURE = {
    **{part: LLAMA[part] for part in ("embed", "attn", "head", "norm")},
    "router": ("model.layers.#.block_sparse_moe.gate.weight",),
    "ffn": tuple(
        f"model.layers.#.block_sparse_moe.experts.{expert}.{w}.weight"
        for expert in range(8)
        for w in ("w1", "w2", "w3")
    ),
}
FUSED = {
    **MIXTURE,
    "router": ("model.layers.#.mlp.gate.weight",),
    "ffn": ("model.layers.#.mlp.experts.gate_up_proj", "model.layers.#.mlp.experts.down_proj"),
}
GPT2 = {
    "embed": ("wte.weight", "wpe.weight"),
    "attn": ("h.#.attn.c_attn.weight", "h.#.attn.c_proj.weight"),
    "ffn": ("h.#.mlp.c_fc.weight", "h.#.mlp.c_proj.weight"),
    "norm": ("h.#.ln_1.weight", "h.#.ln_2.weight", "ln_f.weight"),
    "other": (
        *(f"h.#.{p}.bias" for p in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")),
        *("h.#.ln_1.bias", "h.#.ln_2.bias", "ln_f.bias"),
        "h.#.attn.bias",  # the causal mask, which the released file holds
    ),
}
_BLOCK = "bert.encoder.layer.#."
_BERT_NORMS = ("attention.output.LayerNorm", "output.LayerNorm")
BERT = {
    "embed": tuple(
        f"bert.embeddings.{p}_embeddings.weight" for p in ("word", "position", "token_type")
    ),
    "attn": (
        *(f"{_BLOCK}attention.self.{p}.weight" for p in ("query", "key", "value")),
        f"{_BLOCK}attention.output.dense.weight",
    ),
    "ffn": (f"{_BLOCK}intermediate.dense.weight", f"{_BLOCK}output.dense.weight"),
    "norm": (
        *(f"{_BLOCK}{norm}.weight" for norm in _BERT_NORMS),
        "bert.embeddings.LayerNorm.weight",
        "cls.predictions.transform.LayerNorm.weight",
    ),
    "head": ("cls.predictions.transform.dense.weight", "cls.seq_relationship.weight"),
    "other": (
        *(f"{_BLOCK}attention.self.{p}.bias" for p in ("query", "key", "value")),
        *(f"{_BLOCK}{p}.dense.bias" for p in ("attention.output", "intermediate", "output")),
        *(f"{_BLOCK}{norm}.bias" for norm in _BERT_NORMS),
        "bert.embeddings.LayerNorm.bias",
        *("bert.pooler.dense.weight", "bert.pooler.dense.bias"),
        *("cls.predictions.transform.dense.bias", "cls.predictions.transform.LayerNorm.bias"),
        *("cls.predictions.bias", "cls.seq_relationship.bias"),
    ),
}


@dataclass(frozen=True)
class Architecture:
    """One model of the suites, scaled down.

    ``parts`` names the tensors of each part, "#" standing for a layer; matrices and norm weights
    have a part, biases are ``other``. ``first_ffn`` and ``last_ffn`` are the matrices into and out
    of the first (expert's) feed-forward block, ``attn_out`` the one out of an attention block.
    """

    model: str  # whose configuration it is
    library: str  # class that builds it, and before "ForX" its configuration's
    config: Mapping[str, Any]
    parts: Mapping[str, tuple[str, ...]]
    first_ffn: str
    last_ffn: str
    attn_out: str = "model.layers.#.self_attn.o_proj.weight"
    shards: int = 1
    vocabulary: tuple[str, ...] = ()  # further tensors with a row per token

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding."""
        return not any(name.startswith("lm_head") for name in self.parts.get("head", ()))

    def named(self, *parts: str, layer: int | None = None) -> set[str]:
        """The tensors of these parts, of one layer or of the whole model."""
        patterns = [pattern for part in parts for pattern in self.parts.get(part, ())]
        layers = range(LAYERS) if layer is None else (layer,)
        blocks = {p.replace("#", str(n)) for p in patterns if "#" in p for n in layers}
        return blocks | ({p for p in patterns if "#" not in p} if layer is None else set())


_SIZES = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": LAYERS}
_EIGHTS = {**_SIZES, "num_attention_heads": 4, "num_key_value_heads": 1}
_LAST = "model.layers.#.mlp.down_proj.weight"
_FIRST = "model.layers.#.mlp.gate_proj.weight"
_MIXTRAL = {
    **_EIGHTS, "intermediate_size": 112, "num_local_experts": 8, "num_experts_per_tok": 2,
    "sliding_window": None, "output_router_logits": False, "router_aux_loss_coef": 0.02,
    "rope_theta": 1e6, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    "max_position_embeddings": 512,
}  # fmt: skip

ARCHITECTURES = {
    "llama": Architecture(
        "meta-llama/Llama-3.2-1B", "LlamaForCausalLM",
        {**_EIGHTS, "intermediate_size": 128, "head_dim": 8, "tie_word_embeddings": True,
         "rms_norm_eps": 1e-5, "max_position_embeddings": 512,
         "rope_parameters": {
             "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0,
             "high_freq_factor": 4.0, "original_max_position_embeddings": 64}},
        TIED, _FIRST, _LAST,
    ),
    "mistral": Architecture(
        "mistralai/Mistral-7B-v0.1", "MistralForCausalLM",
        {**_EIGHTS, "intermediate_size": 112, "sliding_window": 16, "rms_norm_eps": 1e-5,
         "rope_theta": 10000.0, "tie_word_embeddings": False, "max_position_embeddings": 512},
        LLAMA, _FIRST, _LAST, shards=2,
    ),
    "yi": Architecture(
        "01-ai/Yi-34B", "LlamaForCausalLM",
        {**_SIZES, "hidden_size": 56, "num_attention_heads": 7, "num_key_value_heads": 1,
         "intermediate_size": 160, "rope_theta": 5e6, "rms_norm_eps": 1e-5, "pad_token_id": 0,
         "tie_word_embeddings": False, "max_position_embeddings": 256},
        LLAMA, _FIRST, _LAST, shards=7,
    ),
    "qwen2": Architecture(
        "Qwen/Qwen2.5-14B", "Qwen2ForCausalLM",
        {**_SIZES, "hidden_size": 40, "num_attention_heads": 5, "num_key_value_heads": 1,
         "intermediate_size": 108, "use_sliding_window": False, "sliding_window": 2048,
         "max_window_layers": LAYERS, "rope_theta": 1e6, "rms_norm_eps": 1e-5,
         "tie_word_embeddings": False, "max_position_embeddings": 2048},
        {**LLAMA, "other": tuple(f"model.layers.#.self_attn.{p}_proj.bias" for p in "qkv")},
        _FIRST, _LAST, shards=8,
    ),
    "qwen3": Architecture(
        "Qwen/Qwen3-0.6B", "Qwen3ForCausalLM",
        {**_SIZES, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
         "intermediate_size": 96, "attention_bias": False, "use_sliding_window": False,
         "max_window_layers": LAYERS, "rope_theta": 1e6, "rms_norm_eps": 1e-6,
         "tie_word_embeddings": True, "max_position_embeddings": 640},
        {**TIED, "norm": (*TIED["norm"], "model.layers.#.self_attn.q_norm.weight",
                          "model.layers.#.self_attn.k_norm.weight")},
        _FIRST, _LAST,
    ),
    "qwen3-untied": Architecture(
        "Qwen/Qwen3-8B", "Qwen3ForCausalLM",
        {**_EIGHTS, "head_dim": 8, "intermediate_size": 96, "attention_bias": False,
         "rope_theta": 1e6, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
         "max_position_embeddings": 640},
        {**LLAMA, "norm": (*LLAMA["norm"], "model.layers.#.self_attn.q_norm.weight",
                           "model.layers.#.self_attn.k_norm.weight")},
        _FIRST, _LAST, shards=5,
    ),
    "mixtral": Architecture(
        "mistralai/Mixtral-8x7B-v0.1", "MixtralForCausalLM", _MIXTRAL, MIXTURE,
        "model.layers.#.block_sparse_moe.experts.0.w1.weight",
        "model.layers.#.block_sparse_moe.experts.0.w2.weight", shards=3,
    ),
    "mixtral-fused": Architecture(
        "mistralai/Mixtral-8x7B-v0.1", "MixtralForCausalLM", _MIXTRAL, FUSED,
        "model.layers.#.mlp.experts.gate_up_proj", "model.layers.#.mlp.experts.down_proj",
    ),
    "gpt2": Architecture(
        "openai-community/gpt2", "GPT2LMHeadModel",
        {"vocab_size": VOCABULARY, "n_positions": 64, "n_embd": 32, "n_layer": LAYERS, "n_head": 4,
         "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5},
        GPT2, "h.#.mlp.c_fc.weight", "h.#.mlp.c_proj.weight", "h.#.attn.c_proj.weight",
    ),
    "bert": Architecture(
        "google-bert/bert-base-uncased", "BertForPreTraining",
        {**_SIZES, "num_attention_heads": 4, "intermediate_size": 128, "type_vocab_size": 2,
         "max_position_embeddings": 64, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
         "pad_token_id": 0},
        BERT, f"{_BLOCK}intermediate.dense.weight", f"{_BLOCK}output.dense.weight",
        f"{_BLOCK}attention.output.dense.weight", shards=2, vocabulary=("cls.predictions.bias",),
    ),
}  # fmt: skip


def make_architecture(name: str, folder: Path) -> Path:
    """The folder of ``ARCHITECTURES[name]`` as it would be downloaded; returns ``folder``."""
    import transformers

    made = ARCHITECTURES[name]
    prefix = made.library.partition("For")[0].removesuffix("LMHeadModel")
    config = getattr(transformers, f"{prefix}Config")(
        **made.config, bos_token_id=0, eos_token_id=1, dtype="bfloat16"
    )
    config.architectures = [made.library]
    torch.manual_seed(7)
    model = getattr(transformers, made.library)(config)
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    noise = torch.Generator().manual_seed(7)
    tensors: dict[str, torch.Tensor] = {}
    for key, weight in model.state_dict().items():
        drawn = torch.randn(weight.shape, generator=noise) * 0.2
        for stored, part in _released(name, key, drawn if weight.dim() > 1 else 1 + drawn / 4):
            tensors[stored] = part.to(torch.bfloat16).contiguous()
    if name == "gpt2":
        for layer in range(LAYERS):
            tensors[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 64, 64).tril().bfloat16()
    write_weights(folder, tensors, made.shards)
    write_tokenizer(folder, BYTES if name == "bert" else ("<s>", "</s>"))
    return folder


def _released(name: str, key: str, weight: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """A tensor of the library's model under the names that the released files use."""
    if key in ("lm_head.weight", "cls.predictions.decoder.weight") and ARCHITECTURES[name].tied:
        return []
    if key == "cls.predictions.decoder.bias":  # the library's second name of cls.predictions.bias
        return []
    if name == "gpt2":
        return [(key.removeprefix("transformer."), weight)]
    if name != "mixtral" or ".mlp." not in key:
        return [(key, weight)]
    stem = key.replace(".mlp.", ".block_sparse_moe.")
    if not stem.endswith("_proj"):
        return [(stem, weight)]
    stem, _, last = stem.rpartition(".")
    found = []
    for expert, matrix in enumerate(weight):
        halves = matrix.chunk(2) if last == "gate_up_proj" else (matrix,)
        for w, part in zip(("w1", "w3") if len(halves) == 2 else ("w2",), halves, strict=True):
            found.append((f"{stem}.{expert}.{w}.weight", part))
    return found
