"""llama.cpp as an engine: what it computes is what transformers computes, but for rounding."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from gguf_factory import MODELS, make_folder, write_gguf
from llama_cpp_installed import require_llama_cpp

from invarlock.checkpoints import Checkpoint
from invarlock.errors import MeasurementError
from invarlock.formats.execution import EngineSettings, Written
from invarlock.formats.gguf.reading import Gguf
from invarlock.guards.block_outputs import module_shown
from invarlock.guards.guard import CheckpointRun
from invarlock.guards.invariants import check_engine_tokens
from invarlock.guards.moe import RouterProbe, judge, logits_of
from invarlock.loading_faults import LoadingError
from invarlock.policy import load_policy

require_llama_cpp()

from invarlock.formats.gguf.llama_cpp import LlamaCpp  # noqa: E402

IDS = list(range(40, 88))
CLOSE = 0.01  # of the largest value: keys and values are kept in float16


def engine_of(path: Path, context: int = 64) -> LlamaCpp:
    """The engine for a file, on one thread."""
    return LlamaCpp(Gguf(path), EngineSettings("cpu", 1, context))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama as a folder, and as ``llama.gguf`` beside it."""
    folder = tmp_path_factory.mktemp("llama_cpp") / "llama"
    make_folder(folder)
    write_gguf(folder, folder.with_suffix(".gguf"))
    return folder


@pytest.mark.parametrize("model", sorted(MODELS))
def test_it_computes_what_transformers_computes(model: str, tmp_path: Path) -> None:
    """Logits of every position, and what every block writes, under transformers' names.

    This holds the whole reading of a file to another program's: names, rows, norms, settings.
    """
    import torch

    folder, path = tmp_path / "m", tmp_path / "m.gguf"
    make_folder(folder, model)
    write_gguf(folder, path, model.split()[0], metadata=MODELS[model][2])
    config = json.loads((folder / "config.json").read_text())
    kind = "AutoModelForImageTextToText" if "vision_config" in config else "AutoModelForCausalLM"
    reference = getattr(transformers, kind).from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    wrote: dict[str, np.ndarray] = {}

    def keep(name: str, value: torch.Tensor) -> None:
        wrote[name] = value[0].detach().numpy()

    shown = partial(module_shown, config=config)
    mixture = hasattr(reference.config.get_text_config(), "num_experts_per_tok")
    ends = ("self_attn.o_proj", "linear_attn.out_proj", "mlp.c_proj", "embed_tokens")
    ends += (".mlp",) if mixture else ("mlp.down_proj",)
    for name, module in reference.named_modules():
        if name.endswith("mlp.gate") and mixture:
            module.register_forward_hook(
                lambda m, given, out, n=name: keep(n, logits_of(m, given, out, 1)[None])
            )
        elif name.endswith(ends):
            module.register_forward_hook(lambda _m, _i, out, n=name: keep(n, out))
        if name == shown("model.norm"):
            module.register_forward_pre_hook(lambda _m, given, n=name: keep(n, given[0]))
    wanted = reference(torch.tensor([IDS])).logits[0].detach().numpy()
    engine, seen = engine_of(path), list[Written]()
    plain = engine.logits(IDS)
    with engine.watching(seen.append):
        watched = engine.logits(IDS)
    assert np.array_equal(plain, watched)
    assert abs(plain - wanted).max() < CLOSE * abs(wanted).max()
    # the embedding of Granite is scaled after its module, and llama.cpp shows no other
    lacking = {"model.embed_tokens"} if model == "granite" else set()
    assert {shown(each.name) for each in seen} == set(wrote) - lacking
    assert len(seen) == len(wrote) - len(lacking)
    for each in seen:
        assert each.values.shape == wrote[shown(each.name)].shape
        assert (
            abs(each.values - wrote[shown(each.name)]).max()
            < CLOSE * abs(wrote[shown(each.name)]).max()
        )
        assert each.kind in ("attention", "mixer", "ffn", "embed", "stream", "router")
        assert (each.kind == "mixer") == ("linear_attn" in each.name)
        assert each.mixture == (mixture and each.kind in ("ffn", "router"))


def test_windows_do_not_see_one_another(llama: Path) -> None:
    """The cache is emptied: a window gives the same bits whatever ran before it."""
    engine = engine_of(llama.with_suffix(".gguf"))
    first = engine.logits(IDS)
    engine.logits(IDS[::-1][:9])
    assert list(engine.greedy(IDS[:5], 3))
    assert np.array_equal(engine.logits(IDS), first)
    # what comes later changes nothing: sums are taken in blocks, whose sizes may differ
    assert abs(engine.logits(IDS[:20]) - first[:20]).max() < CLOSE * abs(first).max()


def test_greedy_is_the_most_likely_token(llama: Path) -> None:
    """Each token is the one that a whole pass over everything before it makes most likely."""
    engine = engine_of(llama.with_suffix(".gguf"))
    given = list(IDS[:6])
    for token in engine.greedy(IDS[:6], 8):
        logits = engine.logits(given)[-1]
        assert logits[token] > logits.max() - CLOSE * abs(logits).max()
        given.append(token)
    assert len(given) == 14


def test_tokens_that_it_cannot_run(llama: Path) -> None:
    """Too many, and ids that the model does not have, would end the process in C."""
    engine = engine_of(llama.with_suffix(".gguf"), 8)
    for ids in (list(range(9)), [260], [-1], []):
        with pytest.raises(MeasurementError, match="cannot run"):
            engine.logits(ids)


def test_it_says_what_multiplies(llama: Path, tmp_path: Path) -> None:
    """Matrices by their type and that of the activations; a tied head is one more product."""
    write_gguf(llama, tmp_path / "m.gguf", kind="Q8_0")
    described = engine_of(tmp_path / "m.gguf").describe()
    assert described.backend == "llama.cpp"
    assert described.kernels == {"Q8_0 x Q8_0": 15}
    assert described.versions["llama-cpp-python"]
    assert described.device == "cpu"


def test_a_file_that_it_does_not_load(
    llama: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its own last word is the line, and nothing is printed beside it."""
    write_gguf(llama, tmp_path / "m.gguf", metadata={"tokenizer.ggml.pre": "of-tomorrow"})
    with pytest.raises(LoadingError, match="of-tomorrow") as caught:
        engine_of(tmp_path / "m.gguf")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_it_reads_text_as_the_tokenizer_does(llama: Path, tmp_path: Path) -> None:
    """The vocabulary alone does not say how text is split; ids of texts do."""
    path = llama.with_suffix(".gguf")
    kept = Checkpoint.open(path, llama)  # its small files go with it
    assert check_engine_tokens(engine_of(path), kept.folder, [[72, 70], [5, 6, 7], IDS]) == []
    fewer = tmp_path / "fewer"
    make_folder(fewer)
    document = json.loads((fewer / "tokenizer.json").read_text())
    document["model"]["merges"] = []
    (fewer / "tokenizer.json").write_text(json.dumps(document))
    merged = [document["model"]["vocab"]["the"]]
    (found,) = check_engine_tokens(engine_of(path), fewer, [merged, [72]])
    assert found["type"] == "tokenizer_mismatch"
    assert found["severity"] == "fatal"
    assert found["accept"] == "tokenizer"
    assert "1 of 2 texts: 'the' is" in found["message"]


BOS = {"tokenizer.ggml.bos_token_id": 72}
# What the file says otherwise than its baseline -> the finding, its severity and its name.
OTHERWISE: dict[str, tuple[dict[str, Any], str, str]] = {
    "a begin of text": (
        {**BOS, "tokenizer.ggml.add_bos_token": True}, "puts i before a text", "tokenizer_config"),
    "an end of text": (
        {"tokenizer.ggml.add_eos_token": True}, "puts <eos> after a text", "tokenizer_config"),
    "another end": (
        {"tokenizer.ggml.eos_token_id": 72}, "ends a text at i (72)", "generation_config"),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHERWISE)
def test_what_it_does_around_a_text_is_what_the_baseline_does(
    llama: Path, tmp_path: Path, case: str
) -> None:
    """Whether a token is put before or after, and where generation ends."""
    metadata, words, name = OTHERWISE[case]
    write_gguf(llama, tmp_path / "m.gguf", metadata=metadata)
    (found,) = check_engine_tokens(engine_of(tmp_path / "m.gguf"), llama, [[72, 70]])
    assert words in found["message"]
    assert (found["severity"], found["accept"]) == ("fatal", name)


def test_every_end_that_generation_has_is_one(llama: Path, tmp_path: Path) -> None:
    """GGUF holds one id; of the list beside a baseline, it has to know the others too."""
    folder = shutil.copytree(llama, tmp_path / "ends")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [259, 72]}))
    (found,) = check_engine_tokens(engine_of(llama.with_suffix(".gguf")), folder, [[72, 70]])
    assert "does not end a text at i (72)" in found["message"]
    assert (found["severity"], found["accept"]) == ("fatal", "generation_config")


def test_a_begin_of_text_that_the_settings_ask_for_is_right(llama: Path, tmp_path: Path) -> None:
    """Declared beside the tokenizer, whether or not the tokenizer itself does it."""
    path = tmp_path / "m.gguf"
    write_gguf(llama, path, metadata={**BOS, "tokenizer.ggml.add_bos_token": True})
    folder = shutil.copytree(llama, tmp_path / "declared")
    settings = folder / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"add_bos_token": True}))
    assert check_engine_tokens(engine_of(path), folder, [[72, 70]]) == []


def test_texts_that_no_window_holds_are_told(llama: Path, tmp_path: Path) -> None:
    """Another way to split text, which shows in digits alone."""
    folder = shutil.copytree(llama, tmp_path / "digits")
    document = json.loads((folder / "tokenizer.json").read_text())
    document["model"]["vocab"]["22"] = 258
    document["model"]["merges"][2] = ["2", "2"]
    (folder / "tokenizer.json").write_text(json.dumps(document))
    write_gguf(folder, tmp_path / "m.gguf", metadata={"tokenizer.ggml.pre": "smollm"})
    engine = engine_of(tmp_path / "m.gguf")
    (found,) = check_engine_tokens(engine, folder, [[72, 70]])
    assert found["severity"] == "warning"
    assert "rare texts" in found["message"]


# --- packed weights and mixtures --------------------------------------------------------------


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1"])
@pytest.mark.parametrize("model", ["llama", "qwen2moe"])
def test_packed_weights_run_on_any_processor(model: str, kind: str, tmp_path: Path) -> None:
    """Whatever kernels a processor has: some of llama.cpp's end the process (AMX)."""
    folder, packed, dense = tmp_path / "m", tmp_path / "packed.gguf", tmp_path / "dense.gguf"
    make_folder(folder, model)
    write_gguf(folder, packed, model, kind=kind)
    effective = Checkpoint.open(packed, folder)
    write_gguf(
        folder, dense, model, change=lambda name, _: effective.load(name).float().numpy().copy()
    )
    plain, wanted = (engine_of(path).logits(IDS) for path in (packed, dense))
    # what multiplies packed weights is rounded to 8 bits, and a token may go to other experts
    assert np.median(abs(plain - wanted)) < CLOSE * abs(wanted).max()
    assert np.corrcoef(plain.ravel(), wanted.ravel())[0, 1] > 0.995


@pytest.mark.parametrize("model", ["llama mixtral", "qwen2moe", "qwen3moe", "olmoe", "qwen35moe"])
def test_routers_are_seen_as_in_transformers(model: str, tmp_path: Path) -> None:
    """Names, tokens, experts per token, entropy and shares are those of the dense model."""
    import torch

    folder, path = tmp_path / "m", tmp_path / "m.gguf"
    make_folder(folder, model)
    write_gguf(folder, path, model.split()[0], metadata=MODELS[model][2])
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    baseline, subject, engine = RouterProbe(), RouterProbe(), engine_of(path)
    windows = [IDS, IDS[::-1]]
    with baseline.attach(reference, Checkpoint.open(folder).config), torch.no_grad():
        for window in windows:
            reference(torch.tensor([window]))
    run = CheckpointRun(Checkpoint.open(path, folder), None, "cpu", ["a", "b"], engine=engine)
    with subject.attached(run):
        for window in windows:
            engine.logits(window)
    assert subject.top_k == baseline.top_k > 1
    wanted, found = baseline.results(), subject.results()
    assert len(found) == reference.config.num_hidden_layers
    for b, s in zip(wanted, found, strict=True):
        assert (s.name, s.layer, s.tokens) == (b.name, b.layer, b.tokens)
        assert s.entropy == pytest.approx(b.entropy, rel=0.01)
        assert s.utilization == pytest.approx(b.utilization, abs=0.02)
    block = judge(wanted, found, load_policy("balanced").moe, baseline.top_k)
    assert block["passed"], block["violations"]
