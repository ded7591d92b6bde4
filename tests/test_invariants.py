"""Invariants guard: each planted difference is found, and harmless ones are not."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from checkpoint_factory import make_gpt2, make_llama, make_t5, write_tokenizer
from safetensors.torch import load_file, save_file

from invarlock.checkpoints import Checkpoint
from invarlock.guards.invariants import check_checkpoint, check_loaded, tying_state
from invarlock.guards.invariants_decision import judge

DOWN = "model.layers.0.mlp.down_proj.weight"
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture(scope="module")
def baseline(tmp_path_factory):
    """A tiny Llama with a tied head."""
    return make_llama(tmp_path_factory.mktemp("invariants") / "baseline")


@pytest.fixture
def subject(baseline, tmp_path):
    """A copy of it, to be damaged."""
    return shutil.copytree(baseline, tmp_path / "subject")


def edit_config(folder, **changes):
    """Change fields of config.json; None removes one."""
    config = json.loads((folder / "config.json").read_text()) | changes
    kept = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))


def edit_tensors(folder, change):
    """Change the dict of tensors of the only shard in place."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def found(baseline, subject):
    """(type, severity) of every failure."""
    failures = check_checkpoint(Checkpoint.open(baseline), Checkpoint.open(subject))
    return [(failure["type"], failure["severity"]) for failure in failures]


def message(baseline, subject, kind):
    """The message of the first failure of a type."""
    failures = check_checkpoint(Checkpoint.open(baseline), Checkpoint.open(subject))
    return next(str(f["message"]) for f in failures if f["type"] == kind)


def test_a_copy_has_no_failures(baseline, subject):
    """A no-op is clean."""
    assert found(baseline, subject) == []


def test_the_baseline_against_itself_has_no_failures(baseline):
    """What `invarlock run` asks."""
    assert found(baseline, baseline) == []


def test_other_values_are_not_the_invariants_business(baseline, subject):
    """An edit that changes finite values changes no invariant."""
    edit_tensors(subject, lambda t: t.update({DOWN: t[DOWN] * 2}))
    assert found(baseline, subject) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_act", "gelu"),
        ("rms_norm_eps", 1e-3),
        ("num_attention_heads", 4),
        ("head_dim", 4),
        ("rope_parameters", {"rope_theta": 5e5, "rope_type": "default"}),
        ("eos_token_id", 7),
        ("sliding_window", 8),
        ("model_type", "mistral"),
    ],
)
def test_a_changed_configuration_is_named(baseline, subject, key, value):
    """A field that changes what the weights mean is fatal, and said with both values."""
    edit_config(subject, **{key: value})
    assert ("config_changed", "fatal") in found(baseline, subject)
    assert key in message(baseline, subject, "config_changed")


@pytest.mark.parametrize(
    "changes",
    [
        {"torch_dtype": "float32"},
        {"torch_dtype": None, "dtype": "bfloat16"},
        {"transformers_version": "5.23.0"},
        {"_name_or_path": "/somewhere/else"},
        {"use_cache": False},
    ],
)
def test_a_harmless_configuration_is_not_reported(baseline, subject, changes):
    """What saving a model again rewrites does not change the weights' meaning."""
    edit_config(subject, **changes)
    assert found(baseline, subject) == []


def test_reordered_configuration_is_not_reported(baseline, subject):
    """The order of keys and the indentation say nothing."""
    config = json.loads((subject / "config.json").read_text())
    (subject / "config.json").write_text(json.dumps(dict(reversed(config.items())), indent=8))
    assert found(baseline, subject) == []


def test_a_checkpoint_saved_again_by_transformers_is_clean(baseline, tmp_path):
    """Load and save_pretrained, the way most edited checkpoints are made, changes nothing."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(baseline, dtype="auto")
    folder = tmp_path / "saved"
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(baseline / name, folder / name)
    assert found(baseline, folder) == []


OLD_ROPE = {"rope_theta": 10000.0, "rope_scaling": None}
NEW_ROPE = {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (OLD_ROPE, {**NEW_ROPE, "rope_theta": None}),
        ({**OLD_ROPE, **NEW_ROPE}, {**NEW_ROPE, "rope_theta": None}),
        ({"head_dim": None}, {"head_dim": 8}),
    ],
)
def test_another_spelling_of_the_same_configuration_is_clean(tmp_path, before, after):
    """Releases of transformers differ in how they write what stays the same."""
    baseline, subject = make_llama(tmp_path / "a"), make_llama(tmp_path / "b")
    edit_config(baseline, **before)
    edit_config(subject, **{**before, **after})
    assert found(baseline, subject) == []


def test_another_rotation_in_another_spelling_is_found(tmp_path):
    """rope_theta 10,000 in the old spelling and 500,000 in the new one are not the same."""
    baseline, subject = make_llama(tmp_path / "a"), make_llama(tmp_path / "b")
    edit_config(baseline, **OLD_ROPE)
    edit_config(subject, rope_parameters={"rope_theta": 500000.0, "rope_type": "default"})
    assert ("config_changed", "fatal") in found(baseline, subject)


def test_a_missing_tensor_is_fatal_and_named(baseline, subject):
    """One tensor less."""
    edit_tensors(subject, lambda t: t.pop(DOWN))
    assert found(baseline, subject) == [("missing_tensors", "fatal")]
    assert DOWN in message(baseline, subject, "missing_tensors")


def test_many_missing_tensors_are_counted(baseline, subject):
    """The count is complete where the list is cut."""
    names = [n for n in load_file(subject / "model.safetensors") if ".mlp." in n] + [EMBED]
    edit_tensors(subject, lambda t: [t.pop(n) for n in names])
    text = message(baseline, subject, "missing_tensors")
    assert text.startswith("7 tensors are missing: ")
    assert text.endswith(" and 2 more")


def test_an_extra_tensor_is_fatal(baseline, subject):
    """One tensor more."""
    edit_tensors(subject, lambda t: t.update({"model.adapter.weight": torch.ones(2, 2)}))
    assert found(baseline, subject) == [("extra_tensors", "fatal")]


def test_a_changed_shape_is_fatal(baseline, subject):
    """A matrix with one row less, both shapes said."""
    edit_tensors(subject, lambda t: t.update({DOWN: t[DOWN][:-1].contiguous()}))
    assert found(baseline, subject) == [("shape_changed", "fatal")]
    assert "[16, 48], is [15, 48]" in message(baseline, subject, "shape_changed")


def test_a_changed_type_is_a_warning(baseline, subject):
    """The same values stored wider do not block."""
    edit_tensors(subject, lambda t: t.update({DOWN: t[DOWN].float()}))
    assert found(baseline, subject) == [("dtype_changed", "warning")]


def test_a_lost_layer_is_counted(baseline, subject):
    """Tensors of one layer while config.json declares two."""
    edit_tensors(subject, lambda t: [t.pop(n) for n in list(t) if ".layers.1." in n])
    assert found(baseline, subject) == [("missing_tensors", "fatal"), ("layer_count", "fatal")]


def test_a_gap_between_layers_is_a_wrong_count(baseline, subject):
    """As many layers as declared, but numbered 0 and 2."""

    def renumber(tensors):
        for name in [n for n in tensors if ".layers.1." in n]:
            tensors[name.replace(".1.", ".2.")] = tensors.pop(name)

    edit_tensors(subject, renumber)
    assert ("layer_count", "fatal") in found(baseline, subject)


def test_layers_are_counted_in_gpt2(tmp_path):
    """The architecture whose configuration calls them n_layer."""
    baseline, subject = make_gpt2(tmp_path / "a"), make_gpt2(tmp_path / "b")
    edit_tensors(subject, lambda t: [t.pop(n) for n in list(t) if ".h.1." in n])
    assert ("layer_count", "fatal") in found(baseline, subject)


def test_layers_are_counted_in_t5(tmp_path):
    """The decoder may be deeper than the encoder; its last block is missed when it is lost."""
    baseline, subject = make_t5(tmp_path / "a"), make_t5(tmp_path / "b")
    assert found(baseline, subject) == []
    edit_tensors(subject, lambda t: [t.pop(n) for n in list(t) if n.startswith("decoder.block.2.")])
    assert ("layer_count", "fatal") in found(baseline, subject)


def test_another_tokenizer_is_fatal(baseline, subject):
    """Another tokenizer.json reads the same text as other tokens."""
    document = json.loads((subject / "tokenizer.json").read_text())
    document["model"]["merges"] = document["model"]["merges"][:-1]
    (subject / "tokenizer.json").write_text(json.dumps(document))
    assert ("tokenizer_changed", "fatal") in found(baseline, subject)


def test_a_tokenizer_that_is_gone_is_fatal(baseline, subject):
    """No tokenizer is not the baseline's tokenizer."""
    (subject / "tokenizer.json").unlink()
    assert found(baseline, subject) == [("tokenizer_mismatch", "fatal")]


def test_a_tokenizer_written_otherwise_is_the_same(baseline, subject):
    """Content decides, not the layout of the file."""
    document = json.loads((subject / "tokenizer.json").read_text())
    (subject / "tokenizer.json").write_text(json.dumps(document, indent=3, sort_keys=True))
    assert found(baseline, subject) == []


def test_embedding_rows_must_be_the_vocabulary(baseline, subject):
    """Rows without a declared token."""

    def more_rows(tensors):
        tensors[EMBED] = torch.cat([tensors[EMBED], tensors[EMBED][:4]])

    edit_tensors(subject, more_rows)
    assert found(baseline, subject) == [("vocabulary_rows", "fatal")]
    assert "324 rows" in message(baseline, subject, "vocabulary_rows")


def test_a_larger_declared_vocabulary_is_seen(baseline, subject):
    """The table kept its rows, the configuration did not keep its number."""
    edit_config(subject, vocab_size=321)
    assert {kind for kind, _ in found(baseline, subject)} == {
        "vocabulary_padded",
        "vocabulary_rows",
    }


def test_broken_tying_is_fatal(baseline, subject):
    """A head of its own in a model whose head was the embedding."""
    edit_config(subject, tie_word_embeddings=False)
    edit_tensors(subject, lambda t: t.update({HEAD: t[EMBED] + 1}))
    assert ("weight_tying", "fatal") in found(baseline, subject)
    assert "tied, are untied" in message(baseline, subject, "weight_tying")


def test_new_tying_is_fatal(tmp_path):
    """An untied head that was replaced by the embedding."""
    baseline = make_llama(tmp_path / "a", tied=False)
    subject = make_llama(tmp_path / "b", tied=False)
    edit_config(subject, tie_word_embeddings=True)
    edit_tensors(subject, lambda t: t.pop(HEAD))
    assert ("weight_tying", "fatal") in found(baseline, subject)


def test_tying_states(tmp_path):
    """Shared, separate, and separate with the same content."""
    tied, untied = make_llama(tmp_path / "a"), make_llama(tmp_path / "b", tied=False)
    equal = make_llama(tmp_path / "c", tied=False)
    edit_tensors(equal, lambda t: t.update({HEAD: t[EMBED].clone()}))
    states = [tying_state(Checkpoint.open(folder)) for folder in (tied, untied, equal)]
    assert states == ["tied", "untied", "untied_equal"]


def test_an_edited_head_of_an_untied_model_is_allowed(tmp_path):
    """Quantizing one of two separate tables breaks no tying."""
    baseline = make_llama(tmp_path / "a", tied=False)
    edit_tensors(baseline, lambda t: t.update({HEAD: t[EMBED].clone()}))
    subject = shutil.copytree(baseline, tmp_path / "b")
    edit_tensors(subject, lambda t: t.update({HEAD: t[HEAD] * 1.01}))
    assert found(baseline, subject) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_one_value_that_is_not_finite_is_found(baseline, subject, value, dtype):
    """A single NaN or infinity in any storage type, with its tensor and count."""

    def plant(tensors):
        tensors[DOWN] = tensors[DOWN].to(dtype)
        tensors[DOWN][3, 5] = value

    edit_tensors(subject, plant)
    assert ("non_finite_tensor", "fatal") in found(baseline, subject)
    assert message(baseline, subject, "non_finite_tensor") == (
        f"{DOWN} holds 1 value that is not finite"
    )


def test_largest_finite_values_are_finite(baseline, subject):
    """Large is not infinite: that is another guard's question."""
    edit_tensors(subject, lambda t: t[DOWN].fill_(torch.finfo(torch.bfloat16).max))
    assert found(baseline, subject) == []


def test_nan_in_a_norm_is_found(baseline, subject):
    """Vectors are looked at, too."""
    edit_tensors(subject, lambda t: t["model.norm.weight"].fill_(float("nan")))
    assert found(baseline, subject) == [("non_finite_tensor", "fatal")]
    assert "holds 16 values" in message(baseline, subject, "non_finite_tensor")


def test_the_same_checkpoint_in_shards_is_clean(baseline, tmp_path):
    """How tensors are spread over files is no difference."""
    assert found(baseline, make_llama(tmp_path / "b", shards=3)) == []


def test_a_retrained_tokenizer_of_the_same_text_is_clean(baseline, subject):
    """The digest is of the content."""
    write_tokenizer(subject)
    assert found(baseline, subject) == []


def test_decision_follows_the_worst_finding():
    """Nothing: allow; a warning: monitor; one fatal finding: block."""
    warning, fatal = check_loaded([], ["a"]), check_loaded(["b"], ["a"])
    assert [judge(f)["decision"] for f in ([], warning, fatal)] == ["allow", "monitor", "block"]
    assert [judge(f)["passed"] for f in ([], warning, fatal)] == [True, True, False]
    assert [judge(f)["status"] for f in ([], warning, fatal)] == ["ok", "warn", "fail"]
    assert judge(fatal)["summary"] == {
        "violations_found": 2,
        "fatal_violations": 1,
        "warning_violations": 1,
    }
