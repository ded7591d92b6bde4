"""Invariants guard: each planted difference is found, and harmless ones are not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from checkpoint_factory import make_gpt2, make_llama, make_t5
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


def renumber(tensors):
    """Layer 1 under the number 2: as many as declared, with a gap."""
    for name in [n for n in tensors if ".layers.1." in n]:
        tensors[name.replace(".1.", ".2.")] = tensors.pop(name)


def without_layer_1(tensors):
    """The tensors of one layer are lost."""
    for name in [n for n in tensors if ".1." in n]:
        del tensors[name]


def more_rows(tensors):
    """Rows without a declared token."""
    tensors[EMBED] = torch.cat([tensors[EMBED], tensors[EMBED][:4]])


# what was planted -> (change of the tensors, all findings, a part of the first one's message)
PLANTED = {
    "other values": (lambda t: t.update({DOWN: t[DOWN] * 2}), [], ""),
    "largest finite values": (lambda t: t[DOWN].fill_(torch.finfo(torch.bfloat16).max), [], ""),
    "a tensor less": (lambda t: t.pop(DOWN), [("missing_tensors", "fatal")], DOWN),
    "a tensor more": (
        lambda t: t.update({"model.adapter.weight": torch.ones(2, 2)}),
        [("extra_tensors", "fatal")],
        "model.adapter.weight",
    ),
    "another shape": (
        lambda t: t.update({DOWN: t[DOWN][:-1].contiguous()}),
        [("shape_changed", "fatal")],
        "[16, 48], is [15, 48]",
    ),
    "stored wider": (
        lambda t: t.update({DOWN: t[DOWN].float()}), [("dtype_changed", "warning")], DOWN
    ),
    "a lost layer": (
        without_layer_1,
        [("missing_tensors", "fatal"), ("layer_count", "fatal")],
        "9 tensors are missing: ",
    ),
    "a gap between layers": (
        renumber,
        [("missing_tensors", "fatal"), ("extra_tensors", "fatal"), ("layer_count", "fatal")],
        " and 4 more",
    ),
    "rows without a token": (more_rows, [("vocabulary_rows", "fatal")], "324 rows"),
    "NaN in a norm": (
        lambda t: t["model.norm.weight"].fill_(float("nan")),
        [("non_finite_tensor", "fatal")],
        "holds 16 values",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", PLANTED)
def test_a_difference_of_the_tensors_is_named(baseline, subject, case):
    """Exactly these findings, each said with what differs; an edit of finite values is none."""
    change, expected, words = PLANTED[case]
    assert found(baseline, subject) == found(baseline, baseline) == []
    edit_tensors(subject, change)
    assert found(baseline, subject) == expected
    if expected:
        assert words in message(baseline, subject, expected[0][0])


def test_layers_are_counted_in_gpt2(tmp_path):
    """The architecture whose configuration calls them n_layer."""
    baseline, subject = make_gpt2(tmp_path / "a"), make_gpt2(tmp_path / "b")
    edit_tensors(subject, without_layer_1)
    assert ("layer_count", "fatal") in found(baseline, subject)


def test_layers_are_counted_in_t5(tmp_path):
    """The decoder may be deeper than the encoder; its last block is missed when it is lost."""
    baseline, subject = make_t5(tmp_path / "a"), make_t5(tmp_path / "b")
    assert found(baseline, subject) == []
    edit_tensors(subject, lambda t: [t.pop(n) for n in list(t) if n.startswith("decoder.block.2.")])
    assert ("layer_count", "fatal") in found(baseline, subject)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda path: path.unlink(), "tokenizer_mismatch"),
        (lambda path: path.write_text(without_a_merge(path)), "tokenizer_changed"),
    ],
)
def test_another_tokenizer_is_fatal(baseline, subject, change, kind):
    """It reads the same text as other tokens, or none at all."""
    change(subject / "tokenizer.json")
    assert (kind, "fatal") in found(baseline, subject)


def without_a_merge(path):
    """The text of a tokenizer without its last merge."""
    document = json.loads(path.read_text())
    document["model"]["merges"].pop()
    return json.dumps(document)


def test_a_larger_declared_vocabulary_is_seen(baseline, subject):
    """The table kept its rows, the configuration did not keep its number."""
    edit_config(subject, vocab_size=321)
    kinds = {kind for kind, _ in found(baseline, subject)}
    assert kinds == {"vocabulary_padded", "vocabulary_rows"}


def test_broken_tying_is_fatal(baseline, subject):
    """A head of its own in a model whose head was the embedding."""
    edit_config(subject, tie_word_embeddings=False)
    edit_tensors(subject, lambda t: t.update({HEAD: t[EMBED] + 1}))
    assert ("weight_tying", "fatal") in found(baseline, subject)
    assert "tied, are untied" in message(baseline, subject, "weight_tying")


@pytest.mark.parametrize("written", [False, None])
def test_an_untied_model_without_a_head_is_fatal(baseline, subject, written):
    """Saved as untied, or with the member left out, and the head was never stored."""
    config = json.loads((subject / "config.json").read_text())
    config["tie_word_embeddings"] = written
    kept = {key: value for key, value in config.items() if value is not None}
    (subject / "config.json").write_text(json.dumps(kept))
    assert ("weight_tying", "fatal") in found(baseline, subject)
    assert "no head is stored" in message(baseline, subject, "weight_tying")
    assert found(subject, shutil.copytree(subject, subject.parent / "again")) == []


def drafting(folder, name, **config):
    """A layer more, which drafts tokens for a server."""
    edit_config(folder, **config)
    layer = "model.layers.1."
    edit_tensors(
        folder,
        lambda t: t.update({n.replace(layer, name): t[n] * 2 for n in [*t] if layer in n}),
    )


DRAFTING = {
    "counted after the last": ("model.layers.2.", {"num_nextn_predict_layers": 1}),
    "by a name": ("mtp.layers.0.", {}),
    "by a name inside": ("model.mtp_layers.0.", {}),
    "by both": ("model.mtp_layers.0.", {"num_nextn_predict_layers": 1}),
}


@pytest.mark.parametrize("case", DRAFTING)
@pytest.mark.parametrize("lost", [False, True])
def test_layers_that_draft_tokens_may_be_lost(baseline, subject, tmp_path, case, lost):
    """No pass of the model runs them, and loaders that save leave them out: noted, no more."""
    name, config = DRAFTING[case]
    first = shutil.copytree(baseline, tmp_path / "with")
    drafting(first, name, **config)
    if lost:
        edit_config(subject, **config)
    else:
        drafting(subject, name, **config)
    assert found(first, subject) == ([("drafting_layers", "warning")] if lost else [])
    assert found(first, first) == []


def test_a_layer_too_many_is_still_fatal(baseline, subject):
    """One that no member of the configuration speaks of."""
    drafting(subject, "model.layers.2.")
    assert {("extra_tensors", "fatal"), ("layer_count", "fatal")} <= {*found(baseline, subject)}


@pytest.mark.parametrize(
    ("before", "after", "severity"),
    [
        (1, [1, 5], "warning"),  # what generation reads, both of them, is the same
        ([1, 5], 5, "warning"),
        (5, 1, "warning"),
        (1, 7, "fatal"),  # servers would end at 7, too
    ],
)
def test_an_end_of_text_that_generation_reads_elsewhere(
    baseline, subject, tmp_path, before, after, severity
):
    """Trainers set it to that of the tokenizer; the list beside is what ends a text."""
    first = shutil.copytree(baseline, tmp_path / "first")
    for folder, value in ((first, before), (subject, after)):
        edit_config(folder, eos_token_id=value)
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 5]}))
    assert found(first, subject) == [("config_changed", severity)]


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


@pytest.mark.parametrize(("dtype", "value", "fatal"), [
    ("float16", 1e5, True), ("float16", 6e4, False), ("bfloat16", 1e5, False), (None, 1e5, False),
])  # fmt: skip
def test_a_value_that_the_named_dtype_cannot_hold(baseline, subject, dtype, value, fatal):
    """Measured in bfloat16 it is a number; servers take the dtype that is named."""

    def enlarge(tensors):
        tensors["model.norm.weight"][0] = value

    edit_tensors(subject, enlarge)
    edit_config(subject, torch_dtype=dtype)
    kinds = {kind for kind, _ in found(baseline, subject)}
    assert ("non_finite_tensor" in kinds) is fatal


def test_the_same_checkpoint_in_shards_is_clean(baseline, tmp_path):
    """How tensors are spread over files is no difference."""
    assert found(baseline, make_llama(tmp_path / "b", shards=3)) == []


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


# --- config.json: which differences block, which can be accepted, and by which name -------------

GENERATION = {"eos_token_id": [1], "bos_token_id": 0}


@pytest.mark.parametrize(
    ("changes", "generation", "expected"),
    [
        ({"eos_token_id": [1]}, None, {}),
        ({"eos_token_id": [1, 1]}, None, {}),
        ({"bos_token_id": "null"}, None, {"config_changed": ("warning", None)}),
        ({"pad_token_id": 1}, None, {"config_changed": ("warning", None)}),
        ({"eos_token_id": "null"}, GENERATION, {"config_changed": ("warning", None)}),
        ({"eos_token_id": "null"}, None, {"config_changed": ("fatal", "eos_token_id")}),
        (
            {"eos_token_id": "null"},
            {},
            {
                "config_changed": ("fatal", "eos_token_id"),
                "generation_config_changed": ("warning", None),  # an empty file more
            },
        ),
        ({"eos_token_id": [1, 5]}, None, {"config_changed": ("fatal", "eos_token_id")}),
        ({"eos_token_id": 5}, GENERATION, {"config_changed": ("fatal", "eos_token_id")}),
        ({"bos_token_id": 5}, None, {"config_changed": ("fatal", "bos_token_id")}),
    ],
)
def test_token_ids_are_compared_as_ids(baseline, subject, changes, generation, expected):
    """A list of one is that one; a lost end of text stops no generation, unless told elsewhere."""
    config = json.loads((subject / "config.json").read_text())
    config |= {key: None if value == "null" else value for key, value in changes.items()}
    (subject / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (subject / "generation_config.json").write_text(json.dumps(generation))
    failures = check_checkpoint(Checkpoint.open(baseline), Checkpoint.open(subject))
    assert {f["type"]: (f["severity"], f.get("accept")) for f in failures} == expected


def test_a_difference_that_leaves_the_comparison_possible_has_a_name(baseline, subject):
    """By which it can be accepted; one that does not has none."""
    edit_config(subject, max_position_embeddings=1024, num_attention_heads=4)
    failures = check_checkpoint(Checkpoint.open(baseline), Checkpoint.open(subject))
    accepted = {f["message"].split()[1]: f.get("accept") for f in failures}
    assert accepted["max_position_embeddings"] == "max_position_embeddings"
    assert accepted["num_attention_heads"] is None


def test_a_setting_beyond_the_windows_is_fatal(baseline, subject):
    """No window is long enough to show it."""
    rope = {"rope_theta": 10000.0, "rope_type": "default"}
    scaling = {"rope_type": "dynamic", "factor": 4.0}
    edit_config(subject, rope_parameters=rope, rope_scaling=scaling, max_position_embeddings=256)
    failures = check_checkpoint(Checkpoint.open(baseline), Checkpoint.open(subject))
    names = {f.get("accept") for f in failures if f["severity"] == "fatal"}
    assert names == {"max_position_embeddings", "rope_parameters", "rope_scaling"}
    assert any("two loaders" in f["message"] for f in failures)


def test_values_that_no_class_takes_are_one_finding(baseline, subject):
    """Said before anything is loaded, in the library's words."""
    edit_config(subject, num_hidden_layers="two")
    failures = check_checkpoint(Checkpoint.open(baseline), Checkpoint.open(subject))
    assert ("config_unreadable", "fatal") in [(f["type"], f["severity"]) for f in failures]


def test_an_embedding_that_is_one_number(tmp_path: Path) -> None:
    """It has no rows to be counted."""
    for name in ("b", "s"):
        make_llama(tmp_path / name, tied=False)
    head = "lm_head.weight"
    file = tmp_path / "s/model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, head: tensors[head].view(-1)[0].clone()}, file)
    found = check_checkpoint(Checkpoint.open(tmp_path / "b"), Checkpoint.open(tmp_path / "s"))
    assert f"{head} has 0 rows" in " ".join(failure["message"] for failure in found)


def test_new_tokens_are_told_once_and_their_rows_as_theirs(baseline: Path, subject: Path) -> None:
    """Two special tokens behind the vocabulary, with rows to a multiple of 64: one name accepts."""
    document = json.loads((subject / "tokenizer.json").read_text())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    document["added_tokens"] += [
        {"id": 320 + number, "content": content, "special": True, **flags}
        for number, content in enumerate(("<think>", "</think>"))
    ]
    (subject / "tokenizer.json").write_text(json.dumps(document))
    settings = json.loads((subject / "tokenizer_config.json").read_text())
    settings["extra_special_tokens"] = ["<think>", "</think>"]
    (subject / "tokenizer_config.json").write_text(json.dumps(settings))
    edit_config(subject, vocab_size=384)
    edit_tensors(
        subject, lambda t: t.update({EMBED: torch.cat([t[EMBED], t[EMBED][:64]]).contiguous()})
    )
    failures = check_checkpoint(Checkpoint.open(baseline), Checkpoint.open(subject))
    assert [f["accept"] for f in failures if f["severity"] == "fatal"] == ["added_tokens"]
    (rows,) = (f["message"] for f in failures if f["type"] == "vocabulary_padded")
    assert "up to 319, the subject's up to 321: the rows that differ are of new tokens" in rows
    # one that tokenizer.json does not have is nowhere else told
    settings["extra_special_tokens"].append("<|other|>")
    (subject / "tokenizer_config.json").write_text(json.dumps(settings))
    failures = check_checkpoint(Checkpoint.open(baseline), Checkpoint.open(subject))
    assert {f["accept"] for f in failures if f["severity"] == "fatal"} == {
        "added_tokens", "special_tokens",
    }  # fmt: skip
