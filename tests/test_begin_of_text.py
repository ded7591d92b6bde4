"""The begin-of-text token: when it is added, and where it stands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from checkpoint_factory import write_tokenizer
from tokenizers import Tokenizer
from tokenizers.processors import ByteLevel, Sequence, TemplateProcessing

from invarlock.begin_of_text import begin_token
from invarlock.errors import ConfigError
from invarlock.records import LabelledRecord
from invarlock.windows import (
    WindowPlan,
    ids_of_others,
    load_encoder,
    make_record_windows,
    make_windows,
    read_windows,
    write_windows,
)

BOS, EOS = 0, 1  # of write_tokenizer
SOURCE = {
    "kind": "local", "name": "t.txt", "version": None, "revision": None, "config": None,
    "split": None, "field": "text", "max_samples": None,
    "files": {"t.txt": {"bytes": 1, "sha256": "0" * 64}},
}  # fmt: skip
TEXTS = ["".join(f"{chr(97 + i)}{j:03d};" for j in range(30)) for i in range(6)]


def folder_with(
    folder: Path, template: str = "", settings: dict[str, Any] | None = None, **config: Any
) -> Path:
    """A folder whose tokenizer puts the tokens of ``template`` around a text."""
    write_tokenizer(folder)
    if template:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.post_processor = TemplateProcessing(
            single=template, special_tokens=[("<s>", BOS), ("</s>", EOS)]
        )
        tokenizer.save(str(folder / "tokenizer.json"))
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    return folder


@pytest.mark.parametrize(
    ("template", "settings", "config", "found"),
    [
        ("", None, {}, None),  # a named token alone is not added
        ("<s> $A", None, {}, BOS),
        ("</s> $A", None, {}, EOS),  # OPT's
        ("<s> $A </s>", None, {}, None),  # BERT's
        ("$A </s>", None, {}, None),  # T5's
        ("<s> $A", {"add_bos_token": False}, {}, None),
        ("", {"add_bos_token": True, "bos_token": "</s>"}, {}, EOS),
        ("", {"add_bos_token": True, "bos_token": {"content": "<s>"}}, {}, BOS),
        ("", {"add_bos_token": True}, {"bos_token_id": 7}, 7),
        ("", {"add_bos_token": True}, {}, None),  # of none
        ("", {}, {"model_type": "gemma3", "text_config": {"bos_token_id": 2}}, 2),
        ("", {"add_bos_token": False}, {"model_type": "gemma", "bos_token_id": 2}, 2),
    ],
)
def test_auto_adds_what_the_tokenizer_adds_and_what_gemma_needs(
    tmp_path: Path, template: str, settings: Any, config: dict[str, Any], found: int | None
) -> None:
    """By the template, by what the settings declare, and by the kind of model."""
    assert begin_token(folder_with(tmp_path, template, settings, **config)) == found


def test_a_template_among_other_steps_counts(tmp_path: Path) -> None:
    """Llama 3 puts its token by the second of two post-processors."""
    folder = folder_with(tmp_path)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    template = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    tokenizer.post_processor = Sequence([ByteLevel(trim_offsets=False), template])
    tokenizer.save(str(folder / "tokenizer.json"))
    assert begin_token(folder) == BOS


def test_always_never_and_none_to_add(tmp_path: Path) -> None:
    """What the user says goes; a token that nothing names cannot be added."""
    folder = folder_with(tmp_path, "<s> $A")
    assert begin_token(folder, "never") is None
    folder = folder_with(tmp_path)
    assert begin_token(folder, "always") == BOS
    folder = folder_with(tmp_path, settings={})
    with pytest.raises(ConfigError, match=r"no begin-of-text token.*add_bos=never"):
        begin_token(folder, "always")
    with pytest.raises(ConfigError, match="no begin-of-text token"):
        begin_token(folder_with(tmp_path, settings={}, model_type="gemma2"))


def test_every_window_begins_with_it(tmp_path: Path) -> None:
    """A window keeps its length, loses a token of text, and the file says which token it is."""
    folder, path = folder_with(tmp_path), tmp_path / "w.json"
    document = make_windows(folder, TEXTS, WindowPlan(8, 4, 4, 5, bos=BOS), SOURCE)
    write_windows(path, document)
    read = read_windows(path)
    assert (read.seq_len, read.stride, read.bos) == (8, 7, BOS)
    encode = load_encoder(folder)
    for window in (*read.preview, *read.final):
        text = list(encode(TEXTS[int(window.cluster.removeprefix("doc-"))]))
        cut = [text[i : i + 7] for i in range(0, len(text) - 6, 7)]
        assert window.tokens[0] == BOS
        assert list(window.tokens[1:]) in cut
    with pytest.raises(ConfigError, match=r"another head.*expected no begin.*found 0"):
        ids_of_others([path], 8)
    assert len(ids_of_others([path], 8, BOS)) == 8


def test_a_file_without_it_is_as_before(tmp_path: Path) -> None:
    """No key, and text from one end of a window to the other."""
    document = make_windows(folder_with(tmp_path), TEXTS, WindowPlan(8, 2, 2, 5), SOURCE)
    assert "bos_token_id" not in document
    assert document["stride"] == 8


def test_every_prompt_begins_with_it(tmp_path: Path) -> None:
    """Answers do not."""
    records = [LabelledRecord(text, ("yes",), 0, text[:2], text[:2], "t") for text in TEXTS]
    plan = WindowPlan(400, 2, 2, 5, bos=BOS)
    document = make_record_windows(folder_with(tmp_path), records, plan, SOURCE, "records")
    for record in (*document["preview"], *document["final"]):
        assert record["prompt"].count(BOS) == 1
        assert record["prompt"][0] == BOS
        assert BOS not in record["answers"][0]
