"""GGUF files that are made here: what they hold is the checkpoint, and what is broken is broken."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from gguf_factory import make_folder
from llama_cpp_installed import require_llama_cpp

from invarlock.checkpoints import Checkpoint
from invarlock.errors import InputError
from invarlock.formats.gguf.scales import scales_of
from invarlock.formats.gguf.write import exchange_scales, quantize, write_dense
from invarlock.guards.invariants import check_checkpoint

require_llama_cpp()


def folder_of(place: Path, model: str) -> Path:
    """A small random model whose tokenizer splits text as GPT-2's does."""
    make_folder(place, model)
    document = json.loads((place / "tokenizer.json").read_text())
    document["pre_tokenizer"]["use_regex"] = True
    (place / "tokenizer.json").write_text(json.dumps(document))
    (place / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    (place / "additional_chat_templates").mkdir()
    (place / "additional_chat_templates/tool_use.jinja").write_text("{{ messages[0].role }}?")
    return place


@pytest.mark.parametrize(
    "model",
    [
        "llama",
        "llama biased",
        "qwen3",
        "gemma2",
        "starcoder2",
        "llama mixtral",
        "qwen2moe",
        "qwen35",
    ],
)
def test_a_dense_file_is_the_checkpoint(model: str, tmp_path: Path) -> None:
    """Read back it differs by the rounding to bfloat16 alone, and by no finding."""
    import torch

    baseline = Checkpoint.open(folder_of(tmp_path / "m", model))
    write_dense(baseline, tmp_path / "m.gguf")
    subject = Checkpoint.open(tmp_path / "m.gguf", tmp_path / "m")
    assert list(subject.tensors) == list(baseline.tensors)
    for name in baseline.tensors:
        wanted = baseline.load(name)
        if wanted.dim() > 1 and "conv1d" not in name:  # llama.cpp has filters in float32 alone
            wanted = wanted.to(torch.bfloat16).float()
        assert torch.allclose(subject.load(name).float(), wanted, rtol=0, atol=3e-7), name
    assert not check_checkpoint(baseline, subject)


def test_delta_nets_that_llama_cpp_quantized(tmp_path: Path) -> None:
    """What is written here is what llama.cpp reads: quantized, it says what the model says."""
    import torch
    from transformers import AutoModelForCausalLM

    from invarlock.formats.execution import EngineSettings
    from invarlock.formats.gguf.llama_cpp import LlamaCpp
    from invarlock.formats.gguf.reading import Gguf

    baseline = Checkpoint.open(folder_of(tmp_path / "m", "qwen35"))
    write_dense(baseline, tmp_path / "m.gguf")
    quantize(tmp_path / "m.gguf", tmp_path / "q.gguf", "Q8_0")
    assert check_checkpoint(baseline, Checkpoint.open(tmp_path / "q.gguf", tmp_path / "m")) == []
    ids = list(range(40, 72))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32)
    wanted = model(torch.tensor([ids])).logits[0].detach().numpy()
    for file, near in (("m.gguf", 0.99), ("q.gguf", 0.9)):  # small random models are not robust
        found = LlamaCpp(Gguf(tmp_path / file), EngineSettings("cpu", 1, 64)).logits(ids)
        assert np.corrcoef(found.ravel(), wanted.ravel())[0, 1] > near, file


def test_a_mixture_that_llama_cpp_quantized(tmp_path: Path) -> None:
    """It stacks experts, and drops a dimension of one; what comes back has no finding and runs."""
    from invarlock.formats.execution import EngineSettings
    from invarlock.formats.gguf.llama_cpp import LlamaCpp
    from invarlock.formats.gguf.reading import Gguf

    baseline = Checkpoint.open(folder_of(tmp_path / "m", "qwen2moe"))
    write_dense(baseline, tmp_path / "m.gguf")
    quantize(tmp_path / "m.gguf", tmp_path / "q.gguf", "Q8_0")
    gguf = Gguf(tmp_path / "q.gguf")
    assert gguf.tensors["blk.1.ffn_down_exps.weight"].kind == "Q8_0"
    assert gguf.tensors["blk.1.ffn_gate_inp_shexp.weight"].shape == (64,)
    subject = Checkpoint.open(tmp_path / "q.gguf", tmp_path / "m")
    assert check_checkpoint(baseline, subject) == []
    for name in baseline.tensors:
        near = baseline.load(name).abs().max() / 100
        assert (subject.load(name).float() - baseline.load(name)).abs().max() < near, name
    logits = LlamaCpp(gguf, EngineSettings("cpu", 1, 16)).logits(list(range(40, 50)))
    assert np.isfinite(logits).all()
    exchange_scales(tmp_path / "q.gguf")
    broken = Checkpoint.open(tmp_path / "q.gguf", tmp_path / "m")
    name = "model.layers.1.mlp.experts.2.up_proj.weight"
    assert (broken.load(name).float() - baseline.load(name)).abs().max() > near


def test_quantized_and_broken(tmp_path: Path) -> None:
    """llama.cpp's quantizer packs matrices; exchanged scales are the same numbers elsewhere."""
    from invarlock.formats.gguf.reading import Gguf

    baseline = Checkpoint.open(folder_of(tmp_path / "m", "llama"))
    write_dense(baseline, tmp_path / "m.gguf")
    quantize(tmp_path / "m.gguf", tmp_path / "q.gguf", "Q8_0")
    before = Gguf(tmp_path / "q.gguf").tensors["blk.1.attn_q.weight"]
    assert before.kind == "Q8_0"
    scales, values = scales_of(before.tensor), np.array(before.values())
    subject = Checkpoint.open(tmp_path / "q.gguf", tmp_path / "m")
    packed = [t for t in Gguf(tmp_path / "q.gguf").tensors.values() if t.kind == "Q8_0"]
    largest = max(float(abs(scales_of(each.tensor)).max()) for each in packed)
    for name in baseline.tensors:
        apart = (subject.load(name) - baseline.load(name)).abs().max()
        assert float(apart) < largest, name
    exchange_scales(tmp_path / "q.gguf")
    after = Gguf(tmp_path / "q.gguf").tensors["blk.1.attn_q.weight"]
    assert np.array_equal(np.sort(scales_of(after.tensor), None), np.sort(scales, None))
    assert not np.array_equal(after.values(), values)
    assert not check_checkpoint(baseline, Checkpoint.open(tmp_path / "q.gguf", tmp_path / "m"))


def test_what_cannot_be_made(tmp_path: Path) -> None:
    """One line each, and a form that there is not."""
    baseline = Checkpoint.open(folder_of(tmp_path / "m", "llama"))
    write_dense(baseline, tmp_path / "m.gguf")
    with pytest.raises(InputError, match="no form Q9_9"):
        quantize(tmp_path / "m.gguf", tmp_path / "q.gguf", "Q9_9")
    with pytest.raises(InputError, match="no packed matrix"):
        exchange_scales(tmp_path / "m.gguf")
    (tmp_path / "x.gguf").write_bytes(b"other")
    with pytest.raises(InputError, match=r"does not quantize it: .*magic"):
        quantize(tmp_path / "x.gguf", tmp_path / "q.gguf", "Q8_0")
    document = json.loads((tmp_path / "m/tokenizer.json").read_text())
    document["normalizer"] = {"type": "NFC"}
    (tmp_path / "m/tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match="a tokenizer like this"):
        write_dense(baseline, tmp_path / "n.gguf")
