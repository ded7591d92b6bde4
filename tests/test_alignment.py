"""Tensors in other spellings, stored once or twice, with rows that pad the vocabulary."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from architecture_factory import ARCHITECTURES, make_architecture
from checkpoint_factory import make_bert, make_llama, make_t5
from safetensors.torch import load_file, save_file

from invarlock.alignment import align
from invarlock.checkpoints import Checkpoint
from invarlock.guards.findings import Failure
from invarlock.guards.invariants import check_checkpoint, tying_state
from invarlock.guards.spectral import weight_modules

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama whose head is the embedding."""
    return make_llama(tmp_path_factory.mktemp("tied") / "baseline")


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a head of its own."""
    return make_llama(tmp_path_factory.mktemp("untied") / "baseline", tied=False)


def changed(
    source: Path, folder: Path, change: Callable[[Tensors], Any] | None = None, **config: Any
) -> Path:
    """A copy with changed tensors (of one shard) and fields of config.json."""
    shutil.copytree(source, folder)
    if change is not None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        tensors = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    document = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(document))
    return folder


def failures(baseline: Path, subject: Path) -> list[Failure]:
    """What the invariants find."""
    return check_checkpoint(Checkpoint.open(baseline), Checkpoint.open(subject))


def severities(baseline: Path, subject: Path) -> dict[str, str]:
    """The severity of each type of finding."""
    return {failure["type"]: failure["severity"] for failure in failures(baseline, subject)}


def statistics(baseline: Path, subject: Path) -> tuple[list[str], list[str]]:
    """Names of the matrices that the spectral guard sees, of the baseline and of the subject."""
    opened = Checkpoint.open(baseline)
    view = align(opened, Checkpoint.open(subject)).subject
    return tuple([m.name for m in weight_modules(c, "cpu")] for c in (opened, view))  # type: ignore[return-value]


def padded(rows: int, value: float | None = None) -> Callable[[Tensors], Any]:
    """More rows for embedding and head: their mean, or one value."""

    def pad(tensors: Tensors) -> None:
        for name in (EMBED, HEAD):
            if name in tensors:
                table = tensors[name]
                row = table.float().mean(0) if value is None else torch.full(table.shape[1:], value)
                more = row.to(table.dtype).expand(rows, -1)
                tensors[name] = torch.cat([table, more])

    return pad


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_saved_again_is_the_same(name: str, tmp_path: Path) -> None:
    """Released names and buffers, loaded and saved by the library: nothing fatal, all aligned."""
    import transformers

    base = make_architecture(name, tmp_path / "a")
    model = getattr(transformers, ARCHITECTURES[name].library).from_pretrained(base, dtype="auto")
    again = tmp_path / "b"
    model.save_pretrained(again)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(base / file, again / file)
    for before, after in ((base, again), (again, base)):
        found = failures(before, after)
        assert [f for f in found if f["severity"] == "fatal"] == []
        one, other = statistics(before, after)
        assert set(other) <= set(one)
        assert not [n for n in set(one) - set(other) if not n.endswith("attn.bias")]


def test_a_head_stored_beside_a_tied_embedding_is_a_note(tied: Path, tmp_path: Path) -> None:
    """Either way round; the spectral guard compares the same matrices."""
    other = changed(tied, tmp_path / "s", lambda t: t.update({HEAD: t[EMBED]}))
    for before, after in ((tied, other), (other, tied)):
        assert severities(before, after) == {"stored_twice": "warning", "weight_tying": "warning"}
        one, two = statistics(before, after)
        assert one == two
    assert tying_state(Checkpoint.open(other)) == "tied_stored"


def test_an_untied_head_equal_to_the_embedding_is_a_note(tied: Path, tmp_path: Path) -> None:
    """Either way round."""
    other = changed(
        tied, tmp_path / "s", lambda t: t.update({HEAD: t[EMBED]}), tie_word_embeddings=False
    )
    for before, after in ((tied, other), (other, tied)):
        assert severities(before, after) == {"stored_twice": "warning", "weight_tying": "warning"}
        one, two = statistics(before, after)
        assert one == two


def test_another_head_beside_a_tied_embedding_is_a_contradiction(
    tied: Path, tmp_path: Path
) -> None:
    """Some loaders tie, others take the stored head."""
    other = changed(tied, tmp_path / "s", lambda t: t.update({HEAD: t[EMBED] + 1}))
    assert severities(tied, other)["weight_tying"] == "fatal"
    said = next(f for f in failures(tied, other) if f["type"] == "weight_tying")
    assert "two loaders would read two models" in said["message"]
    assert tying_state(Checkpoint.open(other)) == "contradictory"


def test_one_differing_element_parts_head_and_embedding(tied: Path, tmp_path: Path) -> None:
    """Equal means every byte."""

    def part(tensors: Tensors) -> None:
        tensors[HEAD] = tensors[EMBED].clone()
        tensors[HEAD][7, 3] += 1

    other = changed(tied, tmp_path / "s", part, tie_word_embeddings=False)
    assert severities(tied, other)["weight_tying"] == "fatal"


def test_a_tied_head_that_is_not_the_old_one_is_fatal(untied: Path, tmp_path: Path) -> None:
    """Two matrices became one."""
    other = changed(untied, tmp_path / "s", lambda t: t.pop(HEAD), tie_word_embeddings=True)
    assert severities(untied, other)["weight_tying"] == "fatal"


def test_an_untied_model_without_its_head_misses_a_tensor(untied: Path, tmp_path: Path) -> None:
    """Loaders would draw one at random."""
    base = changed(untied, tmp_path / "b", lambda t: t.update({HEAD: t[EMBED]}))
    other = changed(base, tmp_path / "s", lambda t: t.pop(HEAD))
    assert severities(base, other)["missing_tensors"] == "fatal"


@pytest.mark.parametrize("model", ["tied", "untied"])
@pytest.mark.parametrize("value", [None, 0.0, 0.5])
@pytest.mark.parametrize("rows", [1, 64])
def test_rows_that_pad_the_vocabulary_are_a_note(
    request: pytest.FixtureRequest, tmp_path: Path, model: str, value: float | None, rows: int
) -> None:
    """Mean rows, zero rows, any rows; put there or taken away."""
    base = request.getfixturevalue(model)
    other = changed(base, tmp_path / "s", padded(rows, value), vocab_size=320 + rows)
    for before, after in ((base, other), (other, base)):
        assert severities(before, after) == {"vocabulary_padded": "warning"}
    # zero rows must not look like a matrix that lost rows
    view = align(Checkpoint.open(base), Checkpoint.open(other)).subject
    assert weight_modules(view, "cpu") == weight_modules(Checkpoint.open(base), "cpu")


def test_rows_of_tokens_cannot_be_taken_away(tied: Path, tmp_path: Path) -> None:
    """One row less than the tokenizer has ids."""
    other = changed(
        tied, tmp_path / "s", lambda t: t.update({EMBED: t[EMBED][:-1]}), vocab_size=319
    )
    assert severities(tied, other) == {"vocabulary_changed": "fatal"}
    assert "ids up to 319" in failures(tied, other)[0]["message"]


def test_rows_that_the_configuration_does_not_count_are_fatal(tied: Path, tmp_path: Path) -> None:
    """Loaders refuse them."""
    other = changed(tied, tmp_path / "s", padded(8))
    assert severities(tied, other) == {"vocabulary_rows": "fatal"}


def test_a_narrower_table_is_another_shape(tied: Path, tmp_path: Path) -> None:
    """Rows may differ in number, not in length."""
    other = changed(tied, tmp_path / "s", lambda t: t.update({EMBED: t[EMBED][:, :8]}))
    assert severities(tied, other)["shape_changed"] == "fatal"


def test_tables_of_an_encoder_and_decoder_are_stored_once_or_several_times(tmp_path: Path) -> None:
    """Older releases of T5 hold the shared table three times."""
    base = make_t5(tmp_path / "a")
    names = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
    tensors = load_file(base / "model.safetensors")
    table = tensors["shared.weight"]

    def store(stored: Tensors) -> None:
        stored.update(dict.fromkeys(names, table))

    other = changed(base, tmp_path / "b", store)
    for before, after in ((base, other), (other, base)):
        assert severities(before, after) == {"stored_twice": "warning"}
        one, two = statistics(before, after)
        assert one == two


def test_buffers_that_loaders_make_anew_are_a_note(tied: Path, tmp_path: Path) -> None:
    """Older tools store the frequencies of the rotation."""
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    other = changed(tied, tmp_path / "s", lambda t: t.update({name: torch.ones(4)}))
    for before, after in ((tied, other), (other, tied)):
        assert severities(before, after) == {"buffers_differ": "warning"}


def test_a_prefix_of_all_names_is_a_spelling(tied: Path, tmp_path: Path) -> None:
    """Saved as the base model, or from inside a wrapper."""

    def strip(tensors: Tensors) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("model.")] = tensors.pop(name)

    other = changed(tied, tmp_path / "s", strip)
    for before, after in ((tied, other), (other, tied)):
        assert severities(before, after) == {"tensors_renamed": "warning"}
        one, two = statistics(before, after)
        assert one == two


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "base_model."])
def test_a_wrapper_in_front_of_all_names_is_no_spelling(
    tied: Path, tmp_path: Path, prefix: str
) -> None:
    """Loaders would not find one tensor, and draw all at random."""

    def wrap(tensors: Tensors) -> None:
        for name in list(tensors):
            tensors[prefix + name] = tensors.pop(name)

    found = severities(tied, changed(tied, tmp_path / "s", wrap))
    assert found["missing_tensors"] == found["extra_tensors"] == "fatal"


def test_older_names_of_a_norm_are_a_spelling(tmp_path: Path) -> None:
    """BERT's first checkpoints call scale and shift gamma and beta."""
    base = make_bert(tmp_path / "a")

    def rename(tensors: Tensors) -> None:
        for name in list(tensors):
            older = name.replace("LayerNorm.weight", "LayerNorm.gamma")
            tensors[older.replace("LayerNorm.bias", "LayerNorm.beta")] = tensors.pop(name)

    other = changed(base, tmp_path / "s", rename)
    for before, after in ((base, other), (other, base)):
        assert severities(before, after) == {"tensors_renamed": "warning"}


def test_one_tensor_under_another_name_is_missing(tied: Path, tmp_path: Path) -> None:
    """A name that is not a spelling of the old one."""

    def rename(tensors: Tensors) -> None:
        tensors["model.final.weight"] = tensors.pop("model.norm.weight")

    other = changed(tied, tmp_path / "s", rename)
    assert severities(tied, other) == {"missing_tensors": "fatal", "extra_tensors": "fatal"}


def test_a_view_reads_the_bytes_of_the_file(tied: Path, tmp_path: Path) -> None:
    """Cut tables and aliases are places in the file, and digests are not mixed up."""
    base = changed(tied, tmp_path / "b", lambda t: t.update({HEAD: t[EMBED]}))
    other = changed(tied, tmp_path / "s", padded(8, 0.25), vocab_size=328)
    subject = Checkpoint.open(other)
    whole = subject.tensor_digest(EMBED)
    view = align(Checkpoint.open(base), subject).subject
    expected = load_file(tied / "model.safetensors")[EMBED]
    assert torch.equal(view.load(EMBED), expected)
    assert torch.equal(view.load(HEAD), expected)
    assert view.tensor_digest(HEAD) == Checkpoint.open(tied).tensor_digest(EMBED)
    assert subject.tensor_digest(EMBED) == whole
    assert Checkpoint.open(other).digest() == subject.digest()
