"""One tokenizer in several spellings is one; a tokenizer that reads any text otherwise is not."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoint_factory import make_llama
from report_factory import Document
from tokenizers import Tokenizer, processors
from tokenizers.models import BPE, Unigram, WordPiece
from tokenizers.pre_tokenizers import Whitespace

from invarlock.tokenizer_meaning import (
    Effect,
    TokenizerDifference,
    differences,
    largest_id,
    probe_texts,
)

Change = Callable[[Document], object]


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a byte-level tokenizer of 320 ids."""
    return make_llama(tmp_path_factory.mktemp("tokenizers") / "baseline")


def changed(baseline: Path, folder: Path, change: Change) -> Path:
    """A copy whose tokenizer.json was changed."""
    shutil.copytree(baseline, folder)
    document = json.loads((folder / "tokenizer.json").read_text())
    change(document)
    (folder / "tokenizer.json").write_text(json.dumps(document))
    return folder


def found(
    baseline: Path, folder: Path, windows: list[list[int]] | None = None
) -> list[TokenizerDifference]:
    """The differences, with windows or without."""
    return differences(baseline, folder, windows or ())


def pairs_as_texts(document: Document) -> None:
    """The older spelling of merges."""
    document["model"]["merges"] = [" ".join(pair) for pair in document["model"]["merges"]]


ADDS_NOTHING = {
    "type": "TemplateProcessing",
    "single": [{"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {},
}
BEGINS = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, *ADDS_NOTHING["single"]],
    "pair": ADDS_NOTHING["pair"],
    "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def sequence(document: Document) -> None:
    """The pre-tokenizer inside two sequences of one."""
    inner = {"type": "Sequence", "pretokenizers": [document["pre_tokenizer"]]}
    document["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [inner]}


SPELLINGS: dict[str, Change] = {
    "merges as texts": pairs_as_texts,
    "a post-processor that adds nothing": lambda d: d.update(post_processor=ADDS_NOTHING),
    "a post-processor for offsets": lambda d: d.update(post_processor=BYTES),
    "fields of the decoder without effect": lambda d: d["decoder"].update(
        add_prefix_space=False, trim_offsets=False, use_regex=False
    ),
    "a pre-tokenizer that trims offsets": lambda d: d["pre_tokenizer"].update(trim_offsets=False),
    "a pre-tokenizer in sequences": sequence,
    "an empty normalizer": lambda d: d.update(normalizer={"type": "Sequence", "normalizers": []}),
    "defaults left out": lambda d: [
        d["model"].pop(key) for key in ("dropout", "fuse_unk", "byte_fallback", "ignore_merges")
    ],
    "vocabulary in another order": lambda d: d["model"].update(
        vocab=dict(sorted(d["model"]["vocab"].items()))
    ),
    "no dropout as a number": lambda d: d["model"].update(dropout=0.0),
    "absent fields": lambda d: [d.pop(key) for key in ("truncation", "padding", "normalizer")],
    "added tokens in the vocabulary, too": lambda d: d["model"]["vocab"].update(
        {token["content"]: token["id"] for token in d["added_tokens"]}
    ),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_another_spelling_is_the_same_tokenizer(baseline: Path, tmp_path: Path, name: str) -> None:
    """What tools write differently and every text is read alike with."""
    assert found(baseline, changed(baseline, tmp_path / "s", SPELLINGS[name])) == []


@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("truncation", {"direction": "Right", "max_length": 8, "strategy": "LongestFirst",
                        "stride": 0}),
        ("padding", {"strategy": {"Fixed": 16}, "direction": "Left", "pad_to_multiple_of": None,
                     "pad_id": 1, "pad_type_id": 0, "pad_token": "</s>"}),
    ],
)  # fmt: skip
def test_truncation_and_padding_are_a_note(
    baseline: Path, tmp_path: Path, key: str, value: Any, direction: int
) -> None:
    """Trainers leave them behind; windows are cut without them."""
    other = changed(baseline, tmp_path / "s", lambda d: d.update({key: value}))
    (note,) = found(*(baseline, other)[::direction])
    assert (note.effect, note.name) == (Effect.NOTE, key)
    assert key in note.message


def test_a_copy_needs_no_library(
    baseline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another layout of the same content is settled before tokenizers is imported."""
    other = changed(baseline, tmp_path / "s", lambda d: None)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert found(baseline, other) == []


def exchange(document: Document) -> None:
    """Two tokens exchanged."""
    vocabulary = document["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]


def exchange_specials(document: Document) -> None:
    """Begin and end of text exchanged."""
    one, two = document["added_tokens"]
    one["content"], two["content"] = two["content"], one["content"]
    vocabulary = document["model"]["vocab"]
    vocabulary["<s>"], vocabulary["</s>"] = vocabulary["</s>"], vocabulary["<s>"]


OTHER: dict[str, Change] = {
    "two tokens exchanged": exchange,
    "two special tokens exchanged": exchange_specials,
    "lower case": lambda d: d.update(normalizer={"type": "Lowercase"}),
    "composed letters": lambda d: d.update(normalizer={"type": "NFKC"}),
    "a space put in front": lambda d: d["pre_tokenizer"].update(add_prefix_space=True),
    "a begin of text added": lambda d: d.update(post_processor=BEGINS),
    "a special token that eats space": lambda d: d["added_tokens"][1].update(lstrip=True),
    "no merge at all": lambda d: d["model"].update(merges=[]),
}


@pytest.mark.parametrize("name", OTHER)
def test_other_ids_are_said_with_an_example(baseline: Path, tmp_path: Path, name: str) -> None:
    """Whatever part of the file makes them."""
    worst = found(baseline, changed(baseline, tmp_path / "s", OTHER[name]))[0]
    assert worst.effect is Effect.OTHER_IDS, name
    assert "tokenizer.json: " in worst.message
    assert " was " in worst.message


def test_the_last_merge_is_another_tokenizer(baseline: Path, tmp_path: Path) -> None:
    """Even where no text of the probe uses it: the merges are compared, too."""
    worst = found(baseline, changed(baseline, tmp_path / "s", lambda d: d["model"]["merges"].pop()))
    assert worst[0].effect in (Effect.OTHER_IDS, Effect.OTHER_FILE)


def test_a_text_of_the_windows_shows_what_the_probe_does_not(tmp_path: Path) -> None:
    """A merge of a word that only the windows hold."""
    pieces = ["q", "z", "x", "j", "qz", "qzx", "qzxj", "[UNK]"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    merges = [("q", "z"), ("qz", "x"), ("qzx", "j")]
    for name, kept in (("a", merges), ("b", merges[:-1])):
        (tmp_path / name).mkdir()
        model = BPE(vocabulary, kept, unk_token="[UNK]")
        Tokenizer(model).save(str(tmp_path / name / "tokenizer.json"))
    without = found(tmp_path / "a", tmp_path / "b")
    assert [d.effect for d in without] == [Effect.OTHER_FILE]
    worst = found(tmp_path / "a", tmp_path / "b", [[6, 6, 0]])[0]
    assert worst.effect is Effect.OTHER_IDS
    assert "qzxj" in worst.message


def test_a_token_that_is_new_can_be_accepted_by_name(baseline: Path, tmp_path: Path) -> None:
    """A tool's own padding token, behind the vocabulary: every text keeps its ids."""
    token = {"id": 320, "content": "<|pad|>", "special": True, "normalized": False}
    token |= {"single_word": False, "lstrip": False, "rstrip": False}
    other = changed(baseline, tmp_path / "s", lambda d: d["added_tokens"].append(token))
    (difference,) = found(baseline, other)
    assert (difference.effect, difference.name) == (Effect.OTHER_FILE, "added_tokens")
    assert "'<|pad|>' (320)" in difference.message
    assert found(other, baseline)[0].effect is Effect.OTHER_IDS  # and cannot be taken away


def test_a_token_that_is_no_longer_special_is_said(baseline: Path, tmp_path: Path) -> None:
    """It is decoded into answers: with the same ids, and not the same."""
    other = changed(baseline, tmp_path / "s", lambda d: d["added_tokens"][1].update(special=False))
    assert {d.name for d in found(baseline, other)} == {"tokenizer"}


@pytest.mark.parametrize("text", ["{}", "[]", '{"model": {"type": "Nonesuch"}}', '"x"'])
def test_a_file_that_is_no_tokenizer_is_another(baseline: Path, tmp_path: Path, text: str) -> None:
    """JSON, but nothing that the library reads; the line names no path of this machine."""
    shutil.copytree(baseline, tmp_path / "s")
    (tmp_path / "s/tokenizer.json").write_text(text)
    (difference,) = found(baseline, tmp_path / "s")
    assert difference.effect is Effect.OTHER_IDS
    assert "not a readable tokenizer" in difference.message
    assert str(tmp_path) not in difference.message


def test_tokenizers_of_other_kinds_are_compared(tmp_path: Path) -> None:
    """Scores of a unigram model, the prefix of a word-piece model."""
    pieces = [("<unk>", 0.0), ("a", -1.0), ("b", -2.0), ("ab", -2.5)]
    for name, model in (
        ("unigram", Unigram(pieces, unk_id=0)),
        ("scores", Unigram([*pieces[:3], ("ab", -9.0)], unk_id=0)),
        ("words", WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]")),
        ("prefix", WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]",
                             continuing_subword_prefix="@@")),
    ):  # fmt: skip
        tokenizer = Tokenizer(model)
        tokenizer.pre_tokenizer = Whitespace()
        (tmp_path / name).mkdir()
        tokenizer.save(str(tmp_path / name / "tokenizer.json"))
    assert found(tmp_path / "unigram", tmp_path / "scores", [[3]])[0].effect is Effect.OTHER_IDS
    assert found(tmp_path / "words", tmp_path / "prefix")
    assert found(tmp_path / "unigram", tmp_path / "words")[0].effect is Effect.OTHER_IDS


def test_a_pair_of_texts_is_encoded_too(baseline: Path, tmp_path: Path) -> None:
    """What is put between two texts is part of what is added around a text."""
    between = {**ADDS_NOTHING, "special_tokens": BEGINS["special_tokens"]}
    first, second = ADDS_NOTHING["pair"]
    between["pair"] = [first, {"SpecialToken": {"id": "<s>", "type_id": 0}}, second]
    other = changed(baseline, tmp_path / "s", lambda d: d.update(post_processor=between))
    assert found(baseline, other)[0].effect is Effect.OTHER_IDS


def test_a_post_processor_written_by_the_library_is_judged_by_its_effect(
    baseline: Path, tmp_path: Path
) -> None:
    """The same begin of text, added by two kinds of post-processor."""
    one = changed(baseline, tmp_path / "a", lambda d: d.update(post_processor=BEGINS))
    tokenizer = Tokenizer.from_file(str(baseline / "tokenizer.json"))
    inner = processors.TemplateProcessing("<s> $A", "$A $B:1", [("<s>", 0)])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(), inner])
    two = shutil.copytree(baseline, tmp_path / "b")
    tokenizer.save(str(two / "tokenizer.json"))
    assert not [d for d in found(one, two) if d.effect is not Effect.NOTE]


def test_the_probe_holds_what_tokenizers_treat_apart() -> None:
    """Scripts, digits, white space, control characters, characters beyond the first plane."""
    text = "".join(probe_texts())
    samples = "\u00e9\u041f\u03b1\u05dc\u0645\u0926\u0e2a\u4e16\uff76\uc548\U0001f44d"
    samples += "\u200d\x00\x1b\t\n\r\u00a0\u3000\u0967\u0660"
    assert [sample for sample in samples if sample not in text] == []
    assert len(probe_texts()) == len(set(probe_texts())) > 60


def test_the_largest_id_counts_added_tokens(baseline: Path, tmp_path: Path) -> None:
    """Of the file, not of the model alone; nothing without a tokenizer."""
    assert largest_id(baseline) == 319
    assert largest_id(tmp_path) is None


RESERVED = {
    "id": 320, "content": "<|reserved|>", "special": True,
    **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False),
}  # fmt: skip


def test_a_token_that_is_new_changes_no_other_text(baseline: Path, tmp_path: Path) -> None:
    """A padding token of a training tool is told as one more, also where a text tried holds it."""

    def pad(document: Document) -> None:
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        token = {"id": 320, "content": "<pad>", "special": True, **flags}
        document["added_tokens"].append(token)

    assert any("<pad>" in text for text in probe_texts())
    (one,) = found(baseline, changed(baseline, tmp_path / "subject", pad))
    assert (one.effect, one.name) == (Effect.OTHER_FILE, "added_tokens")
    # a window that holds it is another text
    tokenizer = Tokenizer.from_file(str(baseline / "tokenizer.json"))
    window = tokenizer.encode("a<pad>b", add_special_tokens=False).ids
    assert Effect.OTHER_IDS in {d.effect for d in found(baseline, tmp_path / "subject", [window])}


def test_a_reserved_token_may_get_another_name(baseline: Path, tmp_path: Path) -> None:
    """Trainers write over the ones that a vocabulary keeps free; whatever holds either is another
    text."""
    one = changed(baseline, tmp_path / "one", lambda d: d["added_tokens"].append(RESERVED))
    other = changed(
        baseline,
        tmp_path / "other",
        lambda d: d["added_tokens"].append(RESERVED | {"content": "<think>"}),
    )
    (told,) = found(one, other)
    assert (told.effect, told.name) == (Effect.OTHER_FILE, "added_tokens")
    assert "1 special token has another name: '<|reserved|>' is '<think>' (320)" in told.message
    window = Tokenizer.from_file(str(one / "tokenizer.json")).encode("a<|reserved|>b").ids
    assert Effect.OTHER_IDS in {d.effect for d in found(one, other, [window])}
    # a template that still writes the old name would have it read letter by letter
    (tmp_path / "other/chat_template.jinja").write_text("<|reserved|>{{ messages[0].content }}")
    assert Effect.OTHER_IDS in {d.effect for d in found(one, other)}
    (tmp_path / "other/chat_template.jinja").unlink()
    # and settings would add it once more
    (tmp_path / "other/special_tokens_map.json").write_text('{"pad_token": "<|reserved|>"}')
    assert Effect.OTHER_IDS in {d.effect for d in found(one, other)}
    # an ordinary token that is gone is no name
    other = changed(
        baseline,
        tmp_path / "third",
        lambda d: d["added_tokens"].append(RESERVED | {"content": "<think>", "special": False}),
    )
    assert Effect.OTHER_IDS in {d.effect for d in found(one, other)}
