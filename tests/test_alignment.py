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
from gguf_factory import make_folder
from safetensors.torch import load_file, save_file

from invarlock.alignment import align
from invarlock.checkpoints import Checkpoint
from invarlock.guards.findings import Failure
from invarlock.guards.invariants import check_checkpoint, tying_state
from invarlock.guards.operators import measure_weights

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


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT."""
    return make_bert(tmp_path_factory.mktemp("bert") / "baseline")


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny T5."""
    return make_t5(tmp_path_factory.mktemp("t5") / "baseline")


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
    return tuple([m.name for m in measure_weights(c, "cpu").modules] for c in (opened, view))  # type: ignore[return-value]


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


def two_heads(tensors: Tensors) -> None:
    """A head that differs from the embedding by one element."""
    tensors[HEAD] = tensors[EMBED].clone()
    tensors[HEAD][7, 3] += 1


def renamed(change: Callable[[str], str]) -> Callable[[Tensors], Any]:
    """Every tensor under another name."""

    def rename(tensors: Tensors) -> None:
        for name in list(tensors):
            tensors[change(name)] = tensors.pop(name)

    return rename


# Model, change, fields of config.json, what is found.
NOTES: dict[str, tuple[str, Callable[[Tensors], Any], dict[str, Any], set[str]]] = {
    "a head stored beside a tied embedding": (
        "tied", lambda t: t.update({HEAD: t[EMBED]}), {}, {"stored_twice", "weight_tying"}),
    "an untied head equal to the embedding": (
        "tied", lambda t: t.update({HEAD: t[EMBED]}), {"tie_word_embeddings": False},
        {"stored_twice", "weight_tying"}),
    "frequencies of the rotation, which loaders make anew": (
        "tied", lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}),
        {}, {"buffers_differ"}),
    "saved as the base model, or from inside a wrapper": (
        "tied", renamed(lambda name: name.removeprefix("model.")), {}, {"tensors_renamed"}),
    "BERT's first names of scale and shift": (
        "bert", renamed(lambda name: name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta")), {}, {"tensors_renamed"}),
    "a shared table that older releases of T5 hold three times": (
        "t5", lambda t: t.update(dict.fromkeys(
            ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"), t["shared.weight"])),
        {}, {"stored_twice"}),
}  # fmt: skip


@pytest.mark.parametrize("name", NOTES)
def test_other_spellings_are_a_note(
    request: pytest.FixtureRequest, tmp_path: Path, name: str
) -> None:
    """Either way round; the spectral guard compares the same matrices."""
    model, change, config, found = NOTES[name]
    base = request.getfixturevalue(model)
    other = changed(base, tmp_path / "s", change, **config)
    for before, after in ((base, other), (other, base)):
        assert severities(before, after) == dict.fromkeys(found, "warning")
        one, two = statistics(before, after)
        assert one == two


# The same; a tensor that is missing would be drawn at random.
FATAL: dict[str, tuple[str, Callable[[Tensors], Any], dict[str, Any], set[str]]] = {
    "one element parts head and embedding": (
        "tied", two_heads, {"tie_word_embeddings": False}, {"weight_tying", "extra_tensors"}),
    "a tied head that is not the old one": (
        "untied", lambda t: t.pop(HEAD), {"tie_word_embeddings": True},
        {"weight_tying", "missing_tensors"}),
    "one row less than the tokenizer has ids": (
        "tied", lambda t: t.update({EMBED: t[EMBED][:-1]}), {"vocab_size": 319},
        {"vocabulary_changed"}),
    "rows that the configuration does not count": (
        "tied", padded(8), {}, {"vocabulary_rows"}),
    "a narrower table": (
        "tied", lambda t: t.update({EMBED: t[EMBED][:, :8]}), {}, {"shape_changed"}),
    "one tensor under another name": (
        "tied", renamed(lambda name: name.replace("model.norm", "model.final")), {},
        {"missing_tensors", "extra_tensors"}),
    **{f"a wrapper {prefix} in front of all names": (
        "tied", renamed(lambda name, prefix=prefix: prefix + name), {},  # type: ignore[misc]
        {"missing_tensors", "extra_tensors"})
       for prefix in ("module.", "_orig_mod.", "base_model.")},
}  # fmt: skip


@pytest.mark.parametrize("name", FATAL)
def test_other_tensors_are_fatal(request: pytest.FixtureRequest, tmp_path: Path, name: str) -> None:
    """What a loader would read as another model, or not at all."""
    model, change, config, found = FATAL[name]
    base = request.getfixturevalue(model)
    told = severities(base, changed(base, tmp_path / "s", change, **config))
    assert {kind for kind, severity in told.items() if severity == "fatal"} == found


def test_another_head_beside_a_tied_embedding_is_a_contradiction(
    tied: Path, tmp_path: Path
) -> None:
    """Some loaders tie, others take the stored head."""
    other = changed(tied, tmp_path / "s", lambda t: t.update({HEAD: t[EMBED] + 1}))
    assert severities(tied, other)["weight_tying"] == "fatal"
    said = next(f for f in failures(tied, other) if f["type"] == "weight_tying")
    assert "two loaders would read two models" in said["message"]
    assert tying_state(Checkpoint.open(other)) == "contradictory"


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Mistral 3, whose files say nothing of head and embedding, as its hub's do: the class
    of the whole ties them, that of the text part does not, and a head is stored."""
    import transformers

    folder = tmp_path_factory.mktemp("seeing") / "baseline"
    sizes: Any = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
                  "num_attention_heads": 2, "head_dim": 16}  # fmt: skip
    text = {**sizes, "model_type": "mistral", "vocab_size": 320, "num_key_value_heads": 1}
    vision = {**sizes, "model_type": "pixtral", "image_size": 28, "patch_size": 14}
    config = transformers.Mistral3Config(
        text_config=text, vision_config=vision, image_token_index=10, tie_word_embeddings=False
    )
    transformers.Mistral3ForConditionalGeneration(config).save_pretrained(folder)
    document = json.loads((folder / "config.json").read_text())
    for part in (document, document["text_config"]):
        part.pop("tie_word_embeddings", None)
    (folder / "config.json").write_text(json.dumps(document))
    return folder


def test_a_head_beside_a_text_part_that_ties_nothing_is_no_contradiction(
    seeing: Path, tmp_path: Path
) -> None:
    """What the library writes of it: it says that both are one, and leaves the head its own."""
    import transformers

    model = transformers.AutoModelForImageTextToText.from_pretrained(seeing, dtype="auto")
    model.save_pretrained(tmp_path / "again")
    written = json.loads((tmp_path / "again/config.json").read_text())
    ties = written["tie_word_embeddings"], written["text_config"]["tie_word_embeddings"]
    assert ties == (True, False)
    again = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "again")
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)
    assert tying_state(Checkpoint.open(seeing)) == "untied"
    (said,) = failures(seeing, tmp_path / "again")
    assert (said["severity"], "is the head of either" in said["message"]) == ("warning", True)
    assert failures(tmp_path / "again", seeing) == []


@pytest.mark.parametrize(
    ("whole", "text", "stored", "fatal"),
    [
        (True, False, "own", False),
        (True, False, "copy", False),
        (True, False, "none", True),
        (False, True, "own", True),
        (False, True, "copy", False),
    ],
)
def test_what_a_model_and_its_text_part_say_of_the_head(
    seeing: Path, tmp_path: Path, whole: bool, text: bool, stored: str, fatal: bool
) -> None:
    """One program goes by the whole, another by the part: it matters where a head is not stored,
    or would be left unread."""
    head, embedding = "language_model.lm_head.weight", "language_model.model.embed_tokens.weight"
    wanted: dict[str, Callable[[Tensors], object]] = {
        "own": lambda tensors: None,
        "copy": lambda tensors: tensors.update({head: tensors[embedding]}),
        "none": lambda tensors: tensors.pop(head),
    }
    base = changed(seeing, tmp_path / "b", wanted[stored])
    part = json.loads((base / "config.json").read_text())["text_config"]
    said = {"tie_word_embeddings": whole, "text_config": {**part, "tie_word_embeddings": text}}
    other = changed(base, tmp_path / "s", **said)
    told = [f for f in failures(base, other) if f.get("accept") == "tie_word_embeddings"]
    assert bool(told) == fatal
    assert all("two loaders would read two models" in failure["message"] for failure in told)


def fused(tensors: Tensors) -> None:
    """The experts of a small Qwen3.5 as one tensor of all, as they are published."""
    stems = {name.rpartition(".experts.")[0] for name in tensors if ".experts." in name}
    for stem in sorted(stems):
        own = {
            part: torch.stack([tensors.pop(f"{stem}.experts.{n}.{part}_proj.weight")
                               for n in range(4)])
            for part in ("gate", "up", "down")
        }  # fmt: skip
        tensors[f"{stem}.experts.gate_up_proj"] = torch.cat([own["gate"], own["up"]], 1)
        tensors[f"{stem}.experts.down_proj"] = own["down"]


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small mixture whose experts are one tensor, and the same one by one, which the library
    loads alike; tools that quantize write the latter."""
    import transformers

    folder = tmp_path_factory.mktemp("experts")
    make_folder(folder / "apart", "qwen35moe")
    changed(folder / "apart", folder / "one", fused)
    found = {name: folder / name for name in ("one", "apart")}
    load, ids = transformers.AutoModelForCausalLM.from_pretrained, torch.arange(20)[None]
    logits = [load(path, dtype="auto")(ids).logits for path in found.values()]
    assert torch.equal(*logits)
    return found


@pytest.mark.parametrize(("before", "after"), [("one", "apart"), ("apart", "one")])
def test_experts_as_one_tensor_or_one_by_one(
    experts: dict[str, Path], tmp_path: Path, before: str, after: str
) -> None:
    """The same model, whichever the library wrote; each tensor is compared with its own."""
    told = severities(experts[before], experts[after])
    assert set(told.values()) <= {"warning"}, told
    base = Checkpoint.open(experts[before])
    view = align(base, Checkpoint.open(experts[after])).subject
    assert view.tensors.keys() == base.tensors.keys()
    for name in base.tensors:
        assert torch.equal(view.load(name), base.load(name)), name
        assert view.tensor_digest(name) == base.tensor_digest(name), name
    assert measure_weights(view, "cpu") == measure_weights(base, "cpu")


@pytest.mark.parametrize("before", ["one", "apart"])
def test_an_expert_that_was_changed_or_lost(
    experts: dict[str, Path], tmp_path: Path, before: str
) -> None:
    """What differs is in the one tensor, or the one matrix; one expert too few is told."""
    after = "apart" if before == "one" else "one"
    part = "model.layers.1.mlp.experts"
    apart = after == "apart"

    def doubled(tensors: Tensors) -> None:
        if apart:
            tensors[f"{part}.2.up_proj.weight"] *= 2
        else:
            tensors[f"{part}.gate_up_proj"][2, 32:] *= 2

    def lost(tensors: Tensors) -> None:
        if apart:
            tensors.pop(f"{part}.3.up_proj.weight")
        else:
            tensors[f"{part}.gate_up_proj"] = tensors[f"{part}.gate_up_proj"][:3]

    base = Checkpoint.open(experts[before])
    other = changed(experts[after], tmp_path / "doubled", doubled)
    view = align(base, Checkpoint.open(other)).subject
    differ = [name for name in base.tensors if not torch.equal(view.load(name), base.load(name))]
    wanted = f"{part}.gate_up_proj" if apart else f"{part}.2.up_proj.weight"
    assert differ == [wanted]
    fewer = changed(experts[after], tmp_path / "lost", lost)
    assert severities(experts[before], fewer)["missing_tensors"] == "fatal"


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
    assert measure_weights(view, "cpu") == measure_weights(Checkpoint.open(base), "cpu")


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
