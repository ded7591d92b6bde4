"""GGUF files made from folders, as llama.cpp's converter lays them out; names by the package."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from invarlock.checkpoints import Checkpoint

# The settings that graphs ask for: field of config.json -> method of the package's writer.
SETTINGS = {
    "num_hidden_layers": "add_block_count",
    "hidden_size": "add_embedding_length",
    "intermediate_size": "add_feed_forward_length",
    "num_attention_heads": "add_head_count",
    "num_key_value_heads": "add_head_count_kv",
    "head_dim": ("add_key_length", "add_value_length"),
    "rms_norm_eps": "add_layer_norm_rms_eps",
    "norm_epsilon": "add_layer_norm_eps",
    "layer_norm_eps": "add_layer_norm_eps",
    "max_position_embeddings": "add_context_length",
    "sliding_window": "add_sliding_window",
    "attn_logit_softcapping": "add_attn_logit_softcapping",
    "final_logit_softcapping": "add_final_logit_softcapping",
    "attention_multiplier": "add_attention_scale",
    "embedding_multiplier": "add_embedding_scale",
    "residual_multiplier": "add_residual_scale",
    "logits_scaling": "add_logit_scale",
    "num_local_experts": "add_expert_count",
    "num_experts": "add_expert_count",
    "num_experts_per_tok": "add_expert_used_count",
    "moe_intermediate_size": "add_expert_feed_forward_length",
    "shared_expert_intermediate_size": "add_expert_shared_feed_forward_length",
}
TURNED = ("llama", "mistral3", "granite", "smollm3", "arcee")
Change = Callable[[str, np.ndarray], np.ndarray]


def write_gguf(
    folder: Path,
    path: Path,
    arch: str = "llama",
    *,
    kind: str = "F32",
    change: Change = lambda _name, values: values,
    merge: Callable[[list[np.ndarray]], np.ndarray] = np.stack,
    drop: Collection[str] = (),
    metadata: Mapping[str, Any] | None = None,
    split: int = 0,
    tokens: list[str] | None = None,
    special_type: int = 3,
    extra: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write the checkpoint in ``folder`` as ``path``.

    Args:
        folder: config.json, tokenizer.json and dense weights.
        path: of the file; of a split model, the name without its numbers.
        arch: as GGUF calls it.
        kind: the type of matrices, by the package's own quantizer.
        change: what is done to a tensor on the way, by its name in the folder.
        merge: how the matrices of all experts become one tensor.
        drop: tensors of the folder that are left out.
        metadata: further settings of the architecture: name -> number, string, truth value or
            several numbers.
        split: tensors of a part; 0: one file.
        tokens: other ones than the tokenizer's.
        special_type: how GGUF types the added ones (3: control, 1: ordinary).
        extra: further tensors, by GGUF's names.
    """
    import gguf

    checkpoint = Checkpoint.open(folder)
    config = checkpoint.config
    config = {**config, **config.get("text_config", {})}
    writer = gguf.GGUFWriter(path, arch, split_max_tensors=split)
    for field, methods in SETTINGS.items():
        for method in (methods,) if isinstance(methods, str) else methods:
            if config.get(field) is not None:
                getattr(writer, method)(config[field])
    rope = config.get("rope_parameters") or {}
    theta = rope.get("rope_theta") or rope.get("full_attention", {}).get("rope_theta")
    writer.add_rope_freq_base(theta or config.get("rope_theta", 10000.0))
    heads = config["num_attention_heads"]
    size = config.get("head_dim") or config["hidden_size"] // heads
    if heads_of_keys := config.get("linear_num_key_heads"):
        heads_of_values = config["linear_num_value_heads"]
        writer.add_ssm_conv_kernel(config["linear_conv_kernel_dim"])
        writer.add_ssm_state_size(config["linear_key_head_dim"])
        writer.add_ssm_group_count(heads_of_keys)
        writer.add_ssm_time_step_rank(heads_of_values)
        writer.add_ssm_inner_size(heads_of_values * config["linear_value_head_dim"])
    writer.add_rope_dimension_count(int(size * rope.get("partial_rotary_factor", 1.0)))
    _write_tokenizer(writer, folder, tokens, special_type)
    for key, value in (metadata or {}).items():
        writers = {str: writer.add_string, float: writer.add_float32, bool: writer.add_bool,
                   list: writer.add_array}  # fmt: skip
        writers.get(type(value), writer.add_uint32)(key.format(arch=arch), value)
    names = gguf.get_tensor_name_map(
        next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == arch), config["num_hidden_layers"]
    )
    experts: dict[str, list[np.ndarray]] = {}  # by the name that the converter has for all of one
    for name in checkpoint.tensors:
        if name in drop or (name == "lm_head.weight" and config.get("tie_word_embeddings")):
            continue
        values = change(name, checkpoint.load(name).float().numpy().copy())
        merged = as_converted(name)
        if re.search(r"\.experts\.\d", name):
            experts.setdefault(merged, []).append(values)
            if len(experts[merged]) < _experts(config):
                continue
            # names sort 10 before 2, of which there are none
            values = merge(experts[merged])
        if name.endswith("experts.gate_up_proj"):  # of all experts, as one
            gates, values = np.split(values, 2, axis=1)
            as_kind = gguf.GGMLQuantizationType[kind]
            stored = names.get_name(merged.replace("gate_up_proj", "gate_proj"))
            packed = gguf.quants.quantize(np.ascontiguousarray(gates), as_kind)
            writer.add_tensor(f"{stored}.weight", packed, raw_dtype=as_kind)
            merged = merged.replace("gate_up_proj", "up_proj.weight")
        elif name.endswith("experts.down_proj"):
            merged += ".weight"
        if ".linear_attn." in name:
            values, merged = of_delta_net(merged, values, config)
        stored = names.get_name(merged, try_suffixes=(".weight", ".bias"))
        if stored is None:
            continue
        if arch in TURNED and ("q_proj" in name or "k_proj" in name):
            of = heads if "q_proj" in name else config["num_key_value_heads"]
            halves = values.reshape(of, 2, values.shape[0] // of // 2, -1)
            values = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)
        shifted = name.endswith("norm.weight") and "linear_attn" not in name
        if arch.startswith(("gemma", "qwen35")) and shifted:
            values = values + 1
        plain = values.ndim == 1 or "conv1d" in name
        as_kind = gguf.GGMLQuantizationType["F32" if plain else kind]
        writer.add_tensor(stored, gguf.quants.quantize(values, as_kind), raw_dtype=as_kind)
    for name, values in (extra or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def of_delta_net(
    name: str, values: np.ndarray, config: Mapping[str, Any]
) -> tuple[np.ndarray, str]:
    """What the converter makes of a tensor of Qwen3.5's delta nets, and how it calls it: the heads
    of values, of which each key has some one after the other, lie side by side by their number."""
    keys, heads = config["linear_num_key_heads"], config["linear_num_value_heads"]
    before = 2 * keys * config["linear_key_head_dim"]
    column = "out_proj" in name
    if column:
        values = values.T
    if "A_log" in name:
        values = -np.exp(values)
    if "conv1d" in name:
        values = values.squeeze(1)
    first = before if "conv1d" in name or "in_proj_qkv" in name else 0
    own = values[first:]
    if "norm" not in name:
        size = len(own) // heads
        own = np.concatenate(
            [own[(key * heads // keys + n) * size :][:size]
             for n in range(heads // keys) for key in range(keys)]
        )  # fmt: skip
    values = np.concatenate([values[:first], own])
    name = name.replace("dt_bias", "dt_proj.bias")
    return np.ascontiguousarray(values.T if column else values), name


def as_converted(name: str) -> str:
    """The name that the converter looks up: of a language model alone, and of all its experts."""
    name = name.removeprefix("language_model.").replace("model.language_model.", "model.")
    mixtral = re.fullmatch(r"model\.(.*)\.block_sparse_moe\.experts\.[^.]+(\.w\d.*)", name)
    if mixtral:
        return f"{mixtral[1]}.feed_forward.experts{mixtral[2]}"
    return re.sub(r"\.experts\.[^.]+\.", ".experts.", name)


def _experts(config: Mapping[str, Any]) -> int:
    return int(config.get("num_local_experts") or config["num_experts"])


def _write_tokenizer(
    writer: Any, folder: Path, tokens: list[str] | None, special_type: int
) -> None:
    document = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = {index: token for token, index in document["model"]["vocab"].items()}
    special = {each["id"]: each["content"] for each in document["added_tokens"]}
    given = tokens or [(vocabulary | special)[i] for i in range(len(vocabulary | special))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(given)
    types = {i: 5 for i, token in enumerate(given) if token.startswith("[PAD")}  # unused
    types |= dict.fromkeys(special, special_type)
    writer.add_token_types([types.get(i, 1) for i in range(len(given))])
    writer.add_token_merges([" ".join(pair) for pair in document["model"].get("merges", [])])
    writer.add_eos_token_id(given.index("<eos>") if "<eos>" in given else len(given) - 1)
    writer.add_add_bos_token(False)


_SEES = {"depth": 1, "hidden_size": 32, "out_hidden_size": 64, "num_heads": 2,
         "intermediate_size": 48, "patch_size": 4}  # fmt: skip
_DELTA = {
    "num_hidden_layers": 4,
    "head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [2, 1, 1],
        "partial_rotary_factor": 0.25,
    },
}
_MIXED = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
          "shared_expert_intermediate_size": 64}  # fmt: skip
# Small models of the architectures that are read: general.architecture -> configuration class and
# what it is given beside the sizes, and the metadata that its graph needs.
MODELS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama": ("LlamaConfig", {"tie_word_embeddings": True}, {}),
    "llama mistral": ("MistralConfig", {"head_dim": 32, "sliding_window": None}, {}),
    "llama biased": ("LlamaConfig", {"attention_bias": True}, {}),
    "mistral3": ("Ministral3Config", {"head_dim": 16, "rope_parameters": {
                 "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "beta_fast": 16.0,
                 "beta_slow": 2.0, "mscale": 1.0, "mscale_all_dim": 1.0,
                 "original_max_position_embeddings": 32, "llama_4_scaling_beta": 0.25}}, {
                 "{arch}.rope.scaling.type": "yarn", "{arch}.rope.scaling.factor": 4.0,
                 "{arch}.rope.scaling.original_context_length": 32,
                 "{arch}.rope.scaling.yarn_beta_fast": 16.0,
                 "{arch}.rope.scaling.yarn_beta_slow": 2.0,
                 "{arch}.rope.scaling.yarn_log_multiplier": 1.0,
                 "{arch}.attention.temperature_scale": 0.25}),
    "qwen2": ("Qwen2Config", {}, {}),
    "qwen3": ("Qwen3Config", {"head_dim": 32, "tie_word_embeddings": True}, {}),
    "llama mixtral": ("MixtralConfig", {"num_local_experts": 4, "sliding_window": None}, {}),
    "qwen2moe": ("Qwen2MoeConfig", {"num_experts": 5, "num_experts_per_tok": 2,
                 "moe_intermediate_size": 32, "shared_expert_intermediate_size": 96}, {}),
    "qwen3moe": ("Qwen3MoeConfig", {"num_experts": 4, "num_experts_per_tok": 3, "head_dim": 32,
                 "moe_intermediate_size": 32, "norm_topk_prob": True}, {}),
    "olmoe": ("OlmoeConfig", {"num_experts": 4, "num_experts_per_tok": 2,
              "num_key_value_heads": 4}, {}),
    "qwen35": ("Qwen3_5TextConfig", _DELTA, {"{arch}.full_attention_interval": 4,
               "{arch}.rope.dimension_sections": [2, 1, 1, 0]}),
    "qwen35 pictured": ("Qwen3_5Config", {**_DELTA, "linear_num_value_heads": 2, "vision_config": {
                        **_SEES, "num_position_embeddings": 16}}, {
                        "{arch}.full_attention_interval": 4,
                        "{arch}.rope.dimension_sections": [2, 1, 1, 0]}),
    "qwen35moe": ("Qwen3_5MoeTextConfig", {**_DELTA, **_MIXED}, {
                  "{arch}.full_attention_interval": 4,
                  "{arch}.rope.dimension_sections": [2, 1, 1, 0]}),
    "qwen35moe pictured": ("Qwen3_5MoeConfig", {**_DELTA, **_MIXED, "vision_config": {
                           **_SEES, "num_position_embeddings": 16}}, {
                           "{arch}.full_attention_interval": 4,
                           "{arch}.rope.dimension_sections": [2, 1, 1, 0]}),
    "gemma": ("GemmaConfig", {"head_dim": 16, "num_key_value_heads": 1,
              "tie_word_embeddings": True}, {}),
    "gemma2": ("Gemma2Config", {"head_dim": 16, "query_pre_attn_scalar": 16,
               "tie_word_embeddings": True}, {}),
    "gemma3": ("Gemma3TextConfig", {"head_dim": 16, "query_pre_attn_scalar": 16,
               "sliding_window": 64, "tie_word_embeddings": True}, {}),
    "gemma3 pictured": ("Gemma3Config", {"head_dim": 16, "query_pre_attn_scalar": 16,
                        "sliding_window": 64, "tie_word_embeddings": True, "vision_config": {
                            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
                            "num_attention_heads": 2, "image_size": 28, "patch_size": 14}}, {}),
    "qwen2vl": ("Qwen2_5_VLConfig", {"vision_config": _SEES, "rope_parameters": {
                "rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}}, {
                "{arch}.rope.dimension_sections": [2, 3, 3, 0]}),
    "qwen3vl": ("Qwen3VLConfig", {"head_dim": 32, "vision_config": {
                **_SEES, "deepstack_visual_indexes": [0], "num_position_embeddings": 16}}, {
                "{arch}.rope.dimension_sections": [6, 5, 5, 0],
                "{arch}.n_deepstack_layers": 1}),
    "phi3": ("Phi3Config", {"pad_token_id": 0, "sliding_window": 64}, {}),
    "olmo2": ("Olmo2Config", {}, {}),
    "glm4": ("Glm4Config", {"head_dim": 16, "pad_token_id": 0, "attention_bias": True}, {}),
    "ernie4_5": ("Ernie4_5Config", {"head_dim": 16}, {}),
    "seed_oss": ("SeedOssConfig", {"head_dim": 32, "attention_bias": True}, {}),
    "hunyuan-dense": ("HunYuanDenseV1Config", {"head_dim": 16, "tie_word_embeddings": True}, {}),
    "exaone4": ("Exaone4Config", {"head_dim": 16, "sliding_window": None,
                "layer_types": ["full_attention"] * 2}, {}),
    "arcee": ("ArceeConfig", {}, {}),
    "granite": ("GraniteConfig", {"attention_multiplier": 0.2, "embedding_multiplier": 3.0,
                "residual_multiplier": 0.5, "logits_scaling": 2.0}, {}),
    "smollm3": ("SmolLM3Config", {"num_hidden_layers": 4, "pad_token_id": 0}, {}),
    "starcoder2": ("Starcoder2Config", {"use_bias": True}, {}),
    "stablelm": ("StableLmConfig", {"use_qkv_bias": True}, {}),
}  # fmt: skip
MERGES = [("t", "h"), ("th", "e"), ("i", "n")]


def make_folder(folder: Path, model: str = "llama", seed: int = 0) -> None:
    """Save a small random model with a tokenizer of bytes and a few merges.

    Norms, biases and everything else that starts at a constant are random, too.
    """
    import torch
    import transformers
    from conftest import byte_tokenizer

    class_name, given, _ = MODELS[model]
    settings = {
        "vocab_size": 260, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
        "bos_token_id": None, "eos_token_id": 259, "tie_word_embeddings": False, **given,
    }  # fmt: skip
    if seen := settings.pop("vision_config", None):
        both = {key: settings[key] for key in ("tie_word_embeddings", "eos_token_id")}
        settings = {"text_config": settings, "vision_config": seen, **both}
    config = getattr(transformers, class_name)(**settings)
    torch.manual_seed(seed)
    kind = transformers.AutoModelForImageTextToText if seen else transformers.AutoModelForCausalLM
    made = kind.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.dim() == 1 or "conv1d" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
            else:
                parameter.normal_(0, 0.15)
    made.save_pretrained(folder)
    document: Any = byte_tokenizer()
    vocabulary = {t: i for t, i in document["model"]["vocab"].items() if i < 256}
    vocabulary |= {"".join(pair): 256 + n for n, pair in enumerate(MERGES)}
    document["model"] |= {"vocab": vocabulary, "merges": [list(pair) for pair in MERGES]}
    document["added_tokens"] = [{**document["added_tokens"][0], "id": 259}]
    (folder / "tokenizer.json").write_text(json.dumps(document))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>"})
    )
