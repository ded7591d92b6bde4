"""Roles from the modules that the library builds, against what was stated by hand."""

from __future__ import annotations

import pytest
from architecture_factory import ARCHITECTURES, LAYERS
from causal_models import small_config

from invarlock import roles
from invarlock.architecture import Architecture, Role
from invarlock.module_graph import architecture_from_modules, describe, meta_model

_A = "model.layers.1.self_attn."
_QKVO = tuple(f"{_A}{p}_proj.weight" for p in "qkvo")
_MLP = tuple(f"model.layers.1.mlp.{p}_proj.weight" for p in ("gate", "up", "down"))
_NORMS = ("model.layers.1.input_layernorm.weight", "model.norm.weight")
# Tensors of one layer and around it by role, as the released files name them.
STATED: dict[str, dict[Role, tuple[str, ...]]] = {
    "gemma": {Role.EMBED: ("model.embed_tokens.weight",), Role.ATTN: _QKVO, Role.FFN: _MLP,
              Role.NORM: _NORMS},
    "phi": {Role.ATTN: (*_QKVO[:3], f"{_A}dense.weight", f"{_A}dense.bias"),
            Role.FFN: ("model.layers.1.mlp.fc1.weight", "model.layers.1.mlp.fc2.weight"),
            Role.NORM: ("model.final_layernorm.weight",), Role.HEAD: ("lm_head.weight",)},
    "opt": {Role.EMBED: ("model.decoder.embed_tokens.weight",
                         "model.decoder.embed_positions.weight"),
            Role.ATTN: ("model.decoder.layers.1.self_attn.out_proj.weight",),
            Role.FFN: ("model.decoder.layers.1.fc1.weight", "model.decoder.layers.1.fc2.weight"),
            Role.NORM: ("model.decoder.layers.1.final_layer_norm.weight",)},
    "gpt_neox": {Role.EMBED: ("gpt_neox.embed_in.weight",), Role.HEAD: ("embed_out.weight",),
                 Role.ATTN: ("gpt_neox.layers.1.attention.query_key_value.weight",
                             "gpt_neox.layers.1.attention.dense.weight"),
                 Role.FFN: ("gpt_neox.layers.1.mlp.dense_h_to_4h.weight",
                            "gpt_neox.layers.1.mlp.dense_4h_to_h.bias")},
    "falcon": {Role.ATTN: ("transformer.h.1.self_attention.query_key_value.weight",),
               Role.FFN: ("transformer.h.1.mlp.dense_4h_to_h.weight",)},
    "olmo2": {Role.ATTN: _QKVO, Role.FFN: _MLP, Role.NORM: (f"{_A}q_norm.weight",)},
    "starcoder2": {Role.ATTN: _QKVO, Role.FFN: ("model.layers.1.mlp.c_fc.weight",
                                                "model.layers.1.mlp.c_proj.weight")},
    "granite": {Role.ATTN: _QKVO, Role.FFN: _MLP},
    "cohere": {Role.ATTN: _QKVO, Role.FFN: _MLP, Role.NORM: _NORMS},
    "glm": {Role.ATTN: _QKVO, Role.FFN: ("model.layers.1.mlp.gate_up_proj.weight",)},
    "deepseek_v3": {Role.ATTN: (f"{_A}q_a_proj.weight", f"{_A}kv_a_proj_with_mqa.weight",
                                f"{_A}kv_b_proj.weight", f"{_A}o_proj.weight"),
                    Role.ROUTER: ("model.layers.1.mlp.gate.weight",),
                    Role.EXPERT: ("model.layers.1.mlp.experts.0.gate_proj.weight",
                                  "model.layers.1.mlp.experts.3.down_proj.weight",
                                  "model.layers.1.mlp.experts.gate_up_proj"),
                    Role.FFN: ("model.layers.1.mlp.shared_experts.up_proj.weight",)},
    "qwen3_moe": {Role.ATTN: _QKVO, Role.ROUTER: ("model.layers.1.mlp.gate.weight",),
                  Role.EXPERT: ("model.layers.1.mlp.experts.gate_up_proj",)},
    "lfm2_moe": {Role.ATTN: (*_QKVO[:3], f"{_A}out_proj.weight"),
                 Role.MIXER: ("model.layers.0.conv.in_proj.weight",),
                 Role.EXPERT: ("model.layers.1.feed_forward.experts.down_proj",)},
    "gpt_oss": {Role.ATTN: _QKVO, Role.ROUTER: ("model.layers.1.mlp.router.weight",),
                Role.EXPERT: ("model.layers.1.mlp.experts.gate_up_proj",
                              "model.layers.1.mlp.experts.down_proj"),
                Role.OTHER: ("model.layers.1.mlp.experts.gate_up_proj_bias", f"{_A}sinks")},
    "mamba": {Role.MIXER: tuple(f"backbone.layers.1.mixer.{p}_proj.weight"
                                for p in ("in", "x", "dt", "out")),
              Role.OTHER: ("backbone.layers.1.mixer.A_log",
                           "backbone.layers.1.mixer.conv1d.weight"),
              Role.NORM: ("backbone.layers.1.norm.weight", "backbone.norm_f.weight")},
    # beside the blocks, maps between copies of the stream
    "gemma3n_text": {Role.OTHER: ("model.layers.1.altup.correction_coefs.weight",),
                     Role.FFN: (*_MLP, "model.layers.1.per_layer_input_gate.weight"),
                     Role.ATTN: _QKVO},
    # its decoder says that it takes sound, and has the table of the tokens
    "whisper": {Role.EMBED: ("model.decoder.embed_tokens.weight",),
                Role.ATTN: ("model.decoder.layers.1.self_attn.q_proj.weight",),
                Role.FFN: ("model.decoder.layers.1.fc1.weight",)},
    "gemma3": {Role.FFN: tuple(n.replace("model.", "model.language_model.", 1) for n in _MLP),
               Role.OTHER: ("model.vision_tower.encoder.layers.1.mlp.fc1.weight",)},
    "jamba": {Role.MIXER: ("model.layers.0.mamba.in_proj.weight",),
              Role.NORM: ("model.layers.0.mamba.dt_layernorm.weight",)},
}  # fmt: skip
OUTPUTS = {
    "gemma": ("down_proj", "o_proj"), "phi": ("fc2", "dense"), "opt": ("fc2", "out_proj"),
    "gpt_neox": ("dense_4h_to_h", "dense"), "starcoder2": ("c_proj", "o_proj"),
    "gpt_oss": ("down_proj", "o_proj"), "mamba": ("out_proj", "out_proj"),
}  # fmt: skip


def built(model_type: str) -> Architecture:
    """The architecture of a small configuration, as its ``config.json`` gives it."""
    found = architecture_from_modules(small_config(model_type).to_dict())
    assert found is not None
    return found


@pytest.mark.parametrize("model_type", STATED)
def test_tensors_have_the_roles_that_were_stated(model_type: str) -> None:
    """Files' names and, where they differ, the model's."""
    found = built(model_type)
    for role, names in STATED[model_type].items():
        assert {name: found.role_of(name) for name in names} == dict.fromkeys(names, role)


@pytest.mark.parametrize("model_type", OUTPUTS)
def test_the_projections_that_leave_blocks(model_type: str) -> None:
    """Of the feed-forward block, and of attention."""
    found, (feed_forward, attention) = built(model_type), OUTPUTS[model_type]
    assert found.ffn_output == feed_forward
    assert found.attn_outputs == (attention,)


def test_the_form_in_which_matrices_are_stored() -> None:
    """gpt-oss multiplies from the other side than DeepSeek; Conv1D does everywhere."""
    stack = "model.layers.0.mlp.experts.gate_up_proj"
    assert roles.is_transposed(stack, small_config("gpt_oss").to_dict())
    assert not roles.is_transposed(stack, small_config("deepseek_v3").to_dict())
    assert roles.is_transposed(
        "transformer.h.0.mlp.c_fc.weight", small_config("openai-gpt").to_dict()
    )


def test_whether_the_head_is_the_embedding() -> None:
    """As the class has it where config.json does not say."""
    assert built("gemma").tied_by_default
    assert not built("gpt_neox").tied_by_default
    assert built("gpt_neox").head == "embed_out.weight"


def test_a_table_of_tokens_is_one_by_every_name_that_it_has() -> None:
    """In the files of Gemma 3 it stands elsewhere than in the model, where guards watch it."""
    config = small_config("gemma3").to_dict()
    for prefix in ("language_model.model", "model.language_model"):
        assert roles.is_token_table(f"{prefix}.embed_tokens.weight", config)


def test_rows_that_a_class_adds_to_the_embedding() -> None:
    """Beyond vocab_size: eight for pictures, one for silence; a padded file of others has none."""
    assert [built(name).more_rows for name in ("mllama", "moshi", "gemma")] == [8, 1, 0]


def test_no_model_is_built_of_what_the_library_lacks() -> None:
    """A kind without causal class, and one whose values are impossible."""
    assert architecture_from_modules({"model_type": "nosuch"}) is None
    assert architecture_from_modules({"model_type": "vit"}) is None
    assert architecture_from_modules({"model_type": "opt", "num_attention_heads": 7}) is None


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3", "mixtral", "gpt2"])
def test_modules_agree_with_the_tables(name: str) -> None:
    """Both ways to the roles give the parts that were stated for the released files."""
    made = ARCHITECTURES[name]
    config = {**made.config, "model_type": name}
    model = meta_model(config)
    found = describe(model)
    for part, stated in made.parts.items():
        for tensor in (pattern.replace("#", str(LAYERS - 1)) for pattern in stated):
            if part == "other":
                continue
            by_table = roles.role_of(tensor, config)
            assert found.role_of(tensor) is by_table, tensor
