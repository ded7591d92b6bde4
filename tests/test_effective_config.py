"""The configuration as its class resolves it: spellings do not count, every acting field does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hub_configs import LLAMA, OLD, PLAIN, QWEN2

from invarlock.effective_config import OLDER_ROTATION, Weight, contradictions, differences


def saved_again(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What the library's class writes of a configuration that it has read."""
    from transformers import CONFIG_MAPPING

    read = CONFIG_MAPPING[config["model_type"]].from_dict(json.loads(json.dumps(config)))
    read.save_pretrained(folder)
    written: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return written


def weights(baseline: Mapping[str, Any], subject: Mapping[str, Any]) -> dict[str, Weight]:
    """The weight of every difference, by name."""
    return {d.name: d.weight for d in differences(baseline, subject)}


@pytest.mark.parametrize("kind", OLD)
def test_saving_again_changes_nothing(kind: str, tmp_path: Path) -> None:
    """An older configuration of every kind, read and written by the class that loads it."""
    written = saved_again(OLD[kind], tmp_path)
    assert written != OLD[kind]
    # but for loaders from before the newer spelling of the rotation, of which a note tells
    assert {d.weight for d in differences(OLD[kind], written)} <= {Weight.NOTE}
    assert {*weights(OLD[kind], written)} <= {*OLDER_ROTATION}
    assert differences(written, OLD[kind]) == []


@pytest.mark.parametrize("kind", OLD)
def test_defaults_written_out_are_no_change(kind: str) -> None:
    """Everything the class holds, and null where it holds nothing."""
    from transformers import CONFIG_MAPPING

    full = (
        CONFIG_MAPPING[OLD[kind]["model_type"]]
        .from_dict(json.loads(json.dumps(OLD[kind])))
        .to_dict()
    )
    full = json.loads(json.dumps(full, default=str))
    assert not [d for d in differences(OLD[kind], full) if d.weight is not Weight.NOTE]


HARMLESS: dict[str, tuple[Mapping[str, Any], dict[str, Any]]] = {
    # a tool that saves newer and older names side by side
    "both spellings of the rotation": (PLAIN, {
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}}),
    "the older name of positions for pictures": (
        {**OLD["qwen2_5_vl"], "rope_scaling": None, "rope_theta": None, "rope_parameters": {
            "type": "mrope", "mrope_section": [16, 24, 24], "rope_theta": 1e6}},
        {"rope_parameters": {
            "rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6}}),
    "older and newer name of it": (
        OLD["phi3"], {"rope_scaling": {
            **OLD["phi3"]["rope_scaling"], "type": "yarn", "rope_type": "longrope"}}),
    "only the newer spelling": (PLAIN, {
        "rope_parameters": {"rope_theta": 10000, "rope_type": "default"}, "rope_theta": None}),
    "the older name of the kind of rotation": (
        {**PLAIN, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"rope_scaling": {"type": "linear", "factor": 2.0}}),
    "head_dim that follows": (PLAIN, {"head_dim": 64}),
    "head_dim null": (PLAIN, {"head_dim": None}),
    "head_dim of a class without it": (QWEN2, {"head_dim": 64}),
    "a window that is not used": (QWEN2, {"sliding_window": None}),
    "another window that is not used": (QWEN2, {"sliding_window": 32768}),
    "layers without window, listed": (QWEN2, {"layer_types": ["full_attention"] * 24}),
    "layers without window, listed for a class that has none": (
        PLAIN, {"layer_types": ["full_attention"] * 16}),
    "positions stretched by nothing": (
        PLAIN, {"rope_scaling": {"rope_type": "linear", "factor": 1.0}}),
    "the newer name of dtype": (PLAIN, {"torch_dtype": None, "dtype": "bfloat16"}),
    "no dtype": (PLAIN, {"torch_dtype": None}),
    "the default rotation in the newer spelling": (
        {**PLAIN, "rope_theta": 10000.0},
        {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}, "rope_theta": None}),
    "code as a loader from a hub names it": (
        {**PLAIN, "auto_map": {"AutoModel": "modeling_x.X"}},
        {"auto_map": {"AutoModel": "org/base--modeling_x.X"}}),
    "no cache": (PLAIN, {"use_cache": False}),
    "a version and a path": (PLAIN, {
        "transformers_version": "5.0.0", "_name_or_path": "/home/me/out",
        "unsloth_version": "2025.1", "unsloth_fixed": True, "model_name": "x"}),
    "attention of the trainer": (PLAIN, {
        "_attn_implementation_autoset": True, "_attn_implementation": "flash_attention_2"}),
    "a number as another type": (PLAIN, {"rope_theta": 10000}),
    "another name of an activation": (PLAIN, {"hidden_act": "swish"}),
    "a default left out": (PLAIN, {"attention_bias": None, "pretraining_tp": None}),
    "an inner size that follows": (OLD["gpt2"], {"n_inner": 3072}),
}  # fmt: skip


@pytest.mark.parametrize("name", HARMLESS)
def test_what_tools_rewrite_is_no_difference(name: str) -> None:
    """Trainers, converters and mergers, in their own spellings."""
    config, changes = HARMLESS[name]
    subject = {k: v for k, v in {**config, **changes}.items() if v is not None}
    assert differences(config, subject) == []


@pytest.mark.parametrize(
    ("config", "changes", "name"),
    [
        (PLAIN, {"attention_dropout": 0.1}, "attention_dropout"),
        (PLAIN, {"initializer_range": 0.01}, "initializer_range"),
        (PLAIN, {"pretraining_tp": 2}, "pretraining_tp"),
        (PLAIN, {"a_tools_own_field": 3}, "a_tools_own_field"),
        (
            {**PLAIN, "architectures": ["LlamaForCausalLM"]},
            {"architectures": ["LlamaForCausalLM", "LlamaModel"]},
            "architectures",
        ),
        (QWEN2, {"max_window_layers": 21}, "max_window_layers"),
        (OLD["gemma2"], {"cache_implementation": None}, "cache_implementation"),
        (OLD["mixtral"], {"router_aux_loss_coef": 0.001}, "router_aux_loss_coef"),
        ({**PLAIN, "dtype": "float16"}, {"dtype": "float32"}, "dtype"),
        (PLAIN, {"torch_dtype": "float16"}, "dtype"),  # servers run it in that
        ({**PLAIN, "auto_map": {"AutoModel": "x.X"}}, {"auto_map": None}, "auto_map"),
        # loaders from before the newer spelling read 10000
        (
            {**PLAIN, "rope_theta": 5e5},
            {"rope_theta": None, "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
            "rope_theta",
        ),
    ],
)
def test_what_no_measured_function_reads_is_a_note(
    config: Mapping[str, Any], changes: Mapping[str, Any], name: str
) -> None:
    """Named, and nothing more."""
    assert weights(config, {**config, **changes}) == {name: Weight.NOTE}


@pytest.mark.parametrize(
    ("config", "changes", "name"),
    [
        (PLAIN, {"max_position_embeddings": 16384}, "max_position_embeddings"),
        # servers choose the class by it
        ({**PLAIN, "architectures": ["LlamaForCausalLM"]}, {"architectures": ["LlamaModel"]},
         "architectures"),
        ({**PLAIN, "architectures": ["LlamaForCausalLM"]}, {"architectures": None},
         "architectures"),
        (PLAIN, {"rope_theta": 20000.0}, "rope_parameters"),
        (PLAIN, {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_parameters"),
        (PLAIN, {"rope_theta": None,  # the same in the newer spelling
                 "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
         "rope_parameters"),
        (LLAMA, {"rope_scaling": None}, "rope_parameters"),
        (PLAIN, {"sliding_window": 4096}, "sliding_window"),  # the class does not declare it
        # nor these, by which servers attend otherwise
        (PLAIN, {"is_causal": False}, "is_causal"),
        (PLAIN, {"dual_chunk_attention_config": {"chunk_size": 8}}, "dual_chunk_attention_config"),
        (PLAIN, {"interleaved_sliding_window": 128}, "interleaved_sliding_window"),
        # code that a loader runs which is allowed to
        (PLAIN, {"auto_map": {"AutoModelForCausalLM": "org/other--modeling_x.X"}}, "auto_map"),
        ({**PLAIN, "auto_map": {"AutoModel": "x.X"}}, {"auto_map": {"AutoModel": "y.X"}},
         "auto_map"),
        (PLAIN, {"rms_norm_eps": 1e-6}, "rms_norm_eps"),
        (PLAIN, {"hidden_act": "gelu"}, "hidden_act"),
        (PLAIN, {"attention_bias": True}, "attention_bias"),
        (OLD["mistral"], {"sliding_window": None}, "sliding_window"),
        ({**OLD["mistral"], "sliding_window": 4096}, {"layer_types": ["full_attention"] * 32},
         "layer_types"),
        (PLAIN, {"rope_scaling": {"rope_type": "dynamic", "factor": 1.0}}, "rope_parameters"),
        (OLD["mixtral"], {"num_experts_per_tok": 1}, "num_experts_per_tok"),
        (QWEN2, {"use_sliding_window": True, "max_window_layers": 12}, "layer_types"),
        (OLD["gemma2"], {"attn_logit_softcapping": None}, "attn_logit_softcapping"),
        (OLD["gemma2"], {"final_logit_softcapping": 20.0}, "final_logit_softcapping"),
        (OLD["gemma2"], {"query_pre_attn_scalar": 224}, "query_pre_attn_scalar"),
        (OLD["gemma3_text"], {"rope_local_base_freq": 20000}, "rope_parameters"),
        (OLD["gemma3_text"], {"sliding_window_pattern": 2}, "layer_types"),
        (OLD["phi"], {"partial_rotary_factor": 0.5}, "rope_parameters"),
        (OLD["phi3"], {"original_max_position_embeddings": 8192},
         "original_max_position_embeddings"),
        (OLD["gpt_neox"], {"use_parallel_residual": False}, "use_parallel_residual"),
        (OLD["gpt_neox"], {"rotary_pct": 0.5}, "rope_parameters"),
        (OLD["gpt2"], {"scale_attn_by_inverse_layer_idx": True},
         "scale_attn_by_inverse_layer_idx"),
        (OLD["opt"], {"do_layer_norm_before": False}, "do_layer_norm_before"),
        (OLD["opt"], {"_remove_final_layer_norm": True}, "_remove_final_layer_norm"),
        (OLD["t5"], {"relative_attention_max_distance": 64}, "relative_attention_max_distance"),
        (OLD["t5"], {"decoder_start_token_id": 2}, "decoder_start_token_id"),
        (OLD["bert"], {"is_decoder": True}, "is_decoder"),
        (OLD["gemma3"], {"text_config": {**OLD["gemma3"]["text_config"], "sliding_window": 512}},
         "sliding_window"),
    ],
)  # fmt: skip
def test_what_acts_is_fatal_and_has_a_name(
    config: Mapping[str, Any], changes: Mapping[str, Any], name: str
) -> None:
    """In the windows or beyond them: it can only be accepted by its name."""
    assert weights(config, {**config, **changes})[name] is Weight.FUNCTION


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "mistral"},
        {"hidden_size": 1024},
        {"num_hidden_layers": 8},
        {"num_attention_heads": 16},
        {"num_key_value_heads": 4},
        {"head_dim": 32},
        {"quantization_config": {"quant_method": "awq"}},
    ],
)
def test_another_network_cannot_be_accepted(changes: Mapping[str, Any]) -> None:
    """The comparison is impossible."""
    (name,) = changes
    assert weights(PLAIN, {**PLAIN, **changes})[name] is Weight.IMPOSSIBLE


@pytest.mark.parametrize(
    ("config", "changes", "name"),
    [
        (PLAIN, {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0},
                 "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}},
         "rope_scaling"),
        (PLAIN, {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "yarn", "factor": 4.0}},
         "rope_scaling"),
        (PLAIN, {"rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"}},
         "rope_theta"),
        (PLAIN, {"rope_scaling": {"type": "linear", "rope_type": "yarn", "factor": 2.0}},
         "rope_scaling"),
        (OLD["gpt2"], {"n_ctx": 2048, "max_position_embeddings": 2048}, "max_position_embeddings"),
        (OLD["gpt2"], {"num_hidden_layers": 6}, "num_hidden_layers"),
        (OLD["gemma2"], {"hidden_act": "relu"}, "hidden_act"),
        (OLD["phi"], {"rope_parameters": {"rope_theta": 1e4, "rope_type": "default",
                                          "partial_rotary_factor": 1.0}},
         "partial_rotary_factor"),
        (QWEN2, {"layer_types": ["sliding_attention"] * 24}, "layer_types"),
        (OLD["gemma3"], {"text_config": {
            **OLD["gemma3"]["text_config"],
            "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e6}},
        }}, "rope_scaling"),
    ],
)  # fmt: skip
def test_a_contradiction_is_said(
    config: Mapping[str, Any], changes: Mapping[str, Any], name: str
) -> None:
    """One file from which two loaders would make two models."""
    subject = {**config, **changes}
    said = [d for d in differences(config, subject) if "two loaders" in d.message]
    assert name in [d.name for d in said]
    assert contradictions(config) == []
    # what the baseline says as well is no difference
    assert not list(differences(subject, {**subject, "use_cache": False}))


@pytest.mark.parametrize("kind", ["a_model_of_tomorrow", None])
def test_an_unknown_kind_is_compared_as_written(kind: str | None) -> None:
    """Every value counts, null is absent, and a note says how it was compared."""
    config = {"model_type": kind, "hidden_size": 8, "window": 4, "gate": None, "dropout": 0.1}
    same = {k: v for k, v in config.items() if v is not None or k == "model_type"}
    assert differences(config, {**same, "transformers_version": "9"}) == []
    assert weights(config, {**config, "window": 8}) == {
        "window": Weight.FUNCTION,
        "model_type": Weight.NOTE,
    }
    assert weights(config, {**config, "dropout": 0.0})["dropout"] is Weight.NOTE


def test_values_that_the_class_refuses_are_one_line() -> None:
    """The library's own reason, without its layout."""
    from invarlock.errors import InputError

    with pytest.raises(InputError, match=r"LlamaConfig refuses it: .*num_hidden_layers"):
        differences(PLAIN, {**PLAIN, "num_hidden_layers": "two"})


def test_a_rotation_of_a_part_that_older_loaders_do_not_find_is_told() -> None:
    """Models for images too state it in the part that reads text."""
    text = {k: v for k, v in LLAMA.items() if k not in ("rope_theta", "rope_scaling")}
    older = {"rope_theta": LLAMA["rope_theta"], "rope_scaling": LLAMA["rope_scaling"]}
    newer = {"rope_parameters": {"rope_theta": LLAMA["rope_theta"], **LLAMA["rope_scaling"]}}
    before, after = ({"model_type": "llava", "text_config": text | rope} for rope in (older, newer))
    assert weights(before, after) == {"rope_theta": Weight.NOTE}
    assert weights(after, before) == {}


def test_a_limit_that_is_none_has_two_spellings(tmp_path: Path) -> None:
    """Python writes Infinity, the newest library an object; another limit acts."""
    from transformers import BambaConfig, Mamba2Config

    from invarlock.files import read_json_object

    for made in (Mamba2Config, BambaConfig):
        made().save_pretrained(tmp_path)
        newer = read_json_object(tmp_path / "config.json")
        limits = json.dumps(newer).replace('{"__float__": "Infinity"}', "Infinity")
        assert "Infinity" in limits
        (tmp_path / "config.json").write_text(limits)
        older = read_json_object(tmp_path / "config.json")
        assert differences(older, {**newer, "use_cache": False}) == []
        assert weights(older, {**newer, "time_step_limit": [0.0, 1.0]}) == {
            "time_step_limit": Weight.FUNCTION
        }


def test_long_values_are_cut_to_what_differs() -> None:
    """A table of rotation factors says the entry, and a list its beginning."""
    config = OLD["phi3"]
    scaling = {**config["rope_scaling"], "short_factor": [1.1] * 48}
    (difference,) = differences(config, {**config, "rope_scaling": scaling})
    assert "short_factor" in difference.message
    assert "long_factor" not in difference.message
    assert len(difference.message) < 200


TINY = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4,
    "d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 2, "num_heads": 4, "head_dim": 8,
    "num_local_experts": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "decoder_start_token_id": 0, "max_position_embeddings": 64, "n_positions": 64,
}  # fmt: skip


def tiny(kind: str, **changes: Any) -> Any:
    """A configuration of the class with small sizes, in the fields that it declares."""
    from transformers import CONFIG_MAPPING

    made = CONFIG_MAPPING[kind]
    names = set(made.__dataclass_fields__)
    return made(**{k: v for k, v in {**TINY, **changes}.items() if k in names or k in changes})


def logits(config: Any, state: Any = None) -> tuple[Any, Any]:
    """What a model of this configuration gives, with these weights or seeded ones."""
    import torch
    import transformers

    from invarlock.metrics.kinds import metric_of

    torch.manual_seed(3)
    loader = metric_of({"model_type": config.model_type}).loader
    model = getattr(transformers, loader).from_config(config, attn_implementation="sdpa").eval()
    model.load_state_dict(state or model.state_dict())
    ids = torch.arange(3, 19).view(1, -1)
    more = {"decoder_input_ids": ids} if config.model_type == "t5" else {}
    with torch.no_grad():
        return model(input_ids=ids, **more).logits, model.state_dict()


SUPPORTED = ("llama", "mistral", "mixtral", "qwen2", "qwen3", "gpt2", "bert", "t5")
ANOTHER: dict[str, Any] = {"summary_type": "last", "summary_activation": "tanh"}


@pytest.mark.parametrize("kind", SUPPORTED)
def test_fields_that_are_only_noted_do_not_change_the_function(kind: str) -> None:
    """Every declared field of every supported class that a finding would not block, tried."""
    import torch
    from transformers import CONFIG_MAPPING

    from invarlock.effective_config import IGNORED, TRAINING

    plain = tiny(kind)
    before, state = logits(plain)
    tried = []
    for name in CONFIG_MAPPING[kind].__dataclass_fields__:
        if not (IGNORED.fullmatch(name) or TRAINING.fullmatch(name)):
            continue
        value = getattr(plain, name, None)
        other = ANOTHER.get(name)
        if isinstance(value, bool):
            other = not value
        elif isinstance(value, float):
            other = value + 0.25
        elif isinstance(value, int):
            other = value + 1
        if other is None or name in ("return_dict", "chunk_size_feed_forward"):
            continue  # names and versions; the form of the result; a divisor of the length
        after, _ = logits(tiny(kind, **{name: other}), state)
        assert torch.equal(before, after), name
        tried.append(name)
    assert len(tried) >= 4


def test_every_supported_kind_is_among_the_tried() -> None:
    """A new architecture has to be tried as well."""
    from invarlock.roles import ARCHITECTURES

    assert set(SUPPORTED) == set(ARCHITECTURES) <= set(OLD)
