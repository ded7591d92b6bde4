"""Folders that hold no checkpoint that is read here: one line, what they are and what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from checkpoint_factory import make_llama
from conftest import write_tiny_folder
from safetensors.torch import load_file, save_file

from invarlock.checkpoints import Checkpoint
from invarlock.cli import evaluate, main
from invarlock.errors import InputError, NotACheckpointError
from invarlock.guards.invariants import open_subject
from invarlock.model_folder import open_model, refuse_architecture, refuse_unusable

Change = Callable[[Path], object]
WEIGHTS = "model.safetensors"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 9\n"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with a tokenizer, in one file."""
    return make_llama(tmp_path_factory.mktemp("whole") / "model")


def only(*names: str) -> Change:
    """Nothing but these (empty) files, or folders where a name ends so."""

    def change(folder: Path) -> None:
        for path in folder.iterdir():
            path.unlink()
        for name in names:
            if name.endswith("/"):
                (folder / name).mkdir(parents=True)
            else:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_text("{}")

    return change


def without_weights(*names: str) -> Change:
    """The configuration and tokenizer, and these files in place of the weights."""

    def change(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        for name in names:
            (folder / name).write_text("{}")

    return change


def config(**changes: object) -> Change:
    """Other values in config.json."""

    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def tensors(rename: Callable[[str], str], dtype: torch.dtype | None = None) -> Change:
    """The weights under other names, and of another type."""

    def change(folder: Path) -> None:
        loaded = load_file(folder / WEIGHTS)
        made = {rename(n): t.to(dtype) if dtype else t for n, t in loaded.items()}
        save_file(made, folder / WEIGHTS)

    return change


def pointer(name: str) -> Change:
    """A file of git-lfs that was not fetched."""
    return lambda folder: (folder / name).write_bytes(POINTER)


def _dangling(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to("../../blobs/" + "0" * 64)


def _adapter(folder: Path, kind: str = "LORA") -> None:
    only("adapter_model.safetensors")(folder)
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": kind, "base_model_name_or_path": "org/base"})
    )


def _nested(folder: Path) -> None:
    for step in (500, 1500):
        (folder / f"checkpoint-{step}").mkdir()
        for name in ("config.json", WEIGHTS):
            shutil.copyfile(folder / name, folder / f"checkpoint-{step}" / name)
    for path in [p for p in folder.iterdir() if p.is_file()]:
        path.unlink()


# what was done -> (how, words of the line)
OTHER: dict[str, tuple[Change, list[str]]] = {
    "empty": (only(), ["is empty", "copy or download"]),
    "pointer of the weights": (pointer(WEIGHTS), [WEIGHTS, "git-lfs pointer", "git lfs pull"]),
    "pointer of the tokenizer": (pointer("tokenizer.json"), ["tokenizer.json", "git lfs pull"]),
    "dangling link": (_dangling, ["points nowhere", "blobs/", "hf download", "cp -rL"]),
    "adapter": (_adapter, ["PEFT adapter (LoRA) of org/base", "subject", "merge_and_unload"]),
    "adapter of another kind": (partial(_adapter, kind="IA3"), ["kind IA3", "merge_and_unload"]),
    "adapter without weights": (
        lambda f: [_adapter(f), (f / "adapter_model.safetensors").rename(f / "adapter_model.bin")],
        ["without adapter_model.safetensors", "adapter_model.bin", "safe_serialization"],
    ),
    "adapter beside": (
        lambda f: (f / "adapter_config.json").write_text("{}"),
        ["two models", "remove adapter_config.json"],
    ),
    "part of a gguf": (without_weights("mmproj-m-f16.gguf"), ["reads images", "beside it"]),
    "gguf in disguise": (lambda f: (f / WEIGHTS).write_bytes(b"GGUF" + bytes(60)), ["a GGUF file"]),
    "web page": (lambda f: (f / WEIGHTS).write_text("<!DOCTYPE html><html>"), ["a web page"]),
    "pickle in disguise": (
        lambda f: torch.save({}, f / WEIGHTS),
        ["a zip archive, as torch.save writes it", "save_pretrained"],
    ),
    "original Llama": (
        only("params.json", "consolidated.00.pth", "tokenizer.model"),
        ["original format of Llama", "convert_"],
    ),
    "DeepSpeed": (
        without_weights("zero_to_fp32.py", "latest"),
        ["DeepSpeed", "python zero_to_fp32.py", "--safe_serialization"],
    ),
    "DeepSpeed shards": (
        only("global_step500/mp_rank_00_model_states.pt"),
        ["DeepSpeed", "zero_to_fp32.py"],
    ),
    "FSDP": (only("__0_0.distcp", ".metadata"), ["FSDP", "accelerate merge-weights"]),
    "Megatron": (only("mp_rank_00/model_optim_rng.pt"), ["Megatron-LM"]),
    "ONNX": (without_weights("model.onnx"), ["an ONNX model"]),
    "TensorFlow": (without_weights("tf_model.h5"), ["a TensorFlow model"]),
    "Flax": (without_weights("flax_model.msgpack"), ["a Flax model"]),
    "diffusers": (only("model_index.json", "unet/"), ["diffusers"]),
    "case of a name": (
        lambda f: (f / "config.json").rename(f / "Config.json"),
        ["no config.json", "found Config.json", "call it config.json"],
    ),
    "cache of a repository": (only("snapshots/abc/x", "blobs/", "refs/"), ["snapshots/abc"]),
    "unfinished": (without_weights(f"{WEIGHTS}.incomplete"), ["not finished", "hf download"]),
    "unfinished elsewhere": (
        only("config.json", ".cache/huggingface/download/abc.incomplete"),
        ["not finished"],
    ),
    "one level below": (_nested, ["folders that do", "checkpoint-1500"]),
    "no configuration": (lambda f: (f / "config.json").unlink(), ["no config.json", "copy"]),
    "only pickles": (without_weights("pytorch_model.bin"), ["only pickle", "save_pretrained"]),
    "another name": (without_weights("weights.safetensors"), [f"call it {WEIGHTS}"]),
    "no weights": (without_weights("training_args.bin"), ["no weights"]),
}
# Whole checkpoints that cannot be measured.
UNUSABLE: dict[str, tuple[Change, list[str]]] = {
    "left quantization": (
        config(quantization_config={"quant_method": "compressed-tensors", "format": "dense"}),
        ["compressed-tensors", "dense", "remove quantization_config"],
    ),
    "left by ModelOpt": (
        lambda f: (f / "hf_quant_config.json").write_text(
            json.dumps({"quantization": {"quant_algo": "FP8", "exclude_modules": ["lm_head"]}})
        ),
        ["hf_quant_config.json (FP8)", "dense", "remove"],
    ),
    "AQLM": (
        lambda f: (
            config(quantization_config={"quant_method": "aqlm"})(f),
            tensors(lambda n: n.replace("q_proj.weight", "q_proj.codebooks"))(f),
        ),
        ["packed (AQLM)", "transformers with aqlm", "dequantize"],
    ),
    "HQQ": (
        lambda f: (
            config(quantization_config={"quant_method": "hqq"})(f),
            tensors(lambda n: n.replace("q_proj.weight", "q_proj.W_q"), torch.uint8)(f),
        ),
        ["packed (HQQ)", "hqq itself or vLLM", "transformers 5.23 does not"],
    ),
    "GPTQ of another layout": (
        lambda f: (
            config(quantization_config={"quant_method": "gptq", "checkpoint_format": "marlin"})(f),
            tensors(lambda n: n.replace("q_proj.weight", "q_proj.qweight"), torch.int32)(f),
        ),
        ["packed (gptq)", "not read here", "dequantize"],
    ),
    "GPTQ without a word": (
        tensors(lambda n: n.replace("q_proj.weight", "q_proj.qweight"), torch.int32),
        ["config.json does not say how", "look like AWQ or GPTQ", "quantization_config"],
    ),
    "bitsandbytes without a word": (
        tensors(lambda n: n.replace("q_proj.weight", "q_proj.SCB")),
        ["config.json does not say how", "look like bitsandbytes"],
    ),
    "8 bits": (
        lambda f: (
            config(quantization_config={"quant_method": "quark"})(f),
            tensors(lambda n: n, torch.float8_e4m3fn)(f),
        ),
        ["packed (quark)", "not read here"],
    ),
    "other bits than it says": (
        lambda f: (
            config(quantization_config={"quant_method": "mxfp4"})(f),
            tensors(lambda n: n, torch.float8_e4m3fn)(f),
        ),
        ["not packed as config.json says", "MXFP4", "F8_E4M3"],
    ),
    "compiled": (tensors(lambda n: f"_orig_mod.{n}"), ["_orig_mod.", "torch.compile"]),
    "wrapped by PEFT": (tensors(lambda n: f"base_model.model.{n}"), ["PEFT", "names"]),
    "unmerged": (
        tensors(lambda n: n.replace("q_proj.weight", "q_proj.lora_A.weight")),
        ["not merged", "merge_and_unload"],
    ),
    "classifier": (
        config(architectures=["LlamaForSequenceClassification"]),
        ["LlamaForSequenceClassification", "labels or scores", "a language model"],
    ),
    "a classifier of images": (
        config(architectures=["ViTForImageClassification"], model_type="vit"),
        ["ViTForImageClassification", "labels or scores", "a language model"],
    ),
    "unknown architecture": (config(model_type="nonesuch"), ["'nonesuch' is not supported"]),
    "no architecture": (config(model_type=None), ["no model_type"]),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), ["no tokenizer.json", "cp "]),
}


@pytest.mark.parametrize("case", OTHER)
def test_what_is_no_checkpoint_is_named(whole: Path, tmp_path: Path, case: str) -> None:
    """Every reader of checkpoints says the same line, and none takes it for damage of an edit."""
    change, words = OTHER[case]
    change(shutil.copytree(whole, tmp_path / "subject"))
    with pytest.raises(NotACheckpointError) as caught:
        Checkpoint.open(tmp_path / "subject")
    line = str(caught.value)
    assert "\n" not in line
    assert all(word in line for word in words), line
    for reader in (open_subject, open_model, refuse_unusable):
        with pytest.raises(NotACheckpointError) as again:
            reader(tmp_path / "subject")
        assert str(again.value) == line


@pytest.mark.parametrize("case", UNUSABLE)
def test_what_cannot_be_measured_is_named(whole: Path, tmp_path: Path, case: str) -> None:
    """A checkpoint by its files that is none to measure."""
    change, words = UNUSABLE[case]
    change(shutil.copytree(whole, tmp_path / "subject"))
    with pytest.raises(NotACheckpointError) as caught:
        refuse_unusable(tmp_path / "subject", whole)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("name", ["m.safetensors", "m.tar.gz", "m"])
def test_a_file_is_no_folder(tmp_path: Path, name: str) -> None:
    """What to name instead depends on the file."""
    (tmp_path / name).write_text("x")
    words = {"m.safetensors": str(tmp_path), "m.tar.gz": "unpack"}
    with pytest.raises(NotACheckpointError, match="is a file, not a folder") as caught:
        Checkpoint.open(tmp_path / name)
    assert words.get(name, "config.json") in str(caught.value)


def test_damage_is_left_to_the_invariants(whole: Path, tmp_path: Path) -> None:
    """A truncated shard is a finding about a subject, and refused where somebody names it."""
    subject = shutil.copytree(whole, tmp_path / "subject")
    data = (subject / WEIGHTS).read_bytes()
    (subject / WEIGHTS).write_bytes(data[:-9])
    refuse_unusable(subject)
    with pytest.raises(InputError, match="truncated"):
        open_model(subject)


def test_a_refused_subject_leaves_no_earlier_results(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Reports of the subject before lie in the folder: none is there after the refusal."""
    base, bad, out = (tmp_path / name for name in ("base", "bad", "out"))
    write_tiny_folder(base)
    write_tiny_folder(bad)
    pointer(WEIGHTS)(bad)
    out.mkdir()
    names = ("outcome.json", "evaluation.report.json", "evaluation.html", "verify.json")
    for name in names:
        (out / name).write_text("{}")
    (out / "mine.txt").write_text("kept")
    words = ["evaluate", "--baseline", str(base), "--subject", str(bad), "--out", str(out)]
    words += ["--windows", str(tmp_path / "none.json")]
    assert main([*words, "--profile", "nope"]) == 2  # misspelt: nothing is touched
    assert all((out / name).is_file() for name in names)
    assert main(words) == 3
    first = capfd.readouterr().err.splitlines()[-1]
    assert "git lfs pull" in first
    assert sorted(p.name for p in out.iterdir()) == [".refused.json", "mine.txt"]
    # a scheduler's next attempt says the same and looks at nothing
    shutil.rmtree(base)
    assert main([*words, "--attempt", "2"]) == 3
    assert capfd.readouterr().err.strip() == f"{first} (not tried again)"
    assert main(words) == 3  # somebody who repeats the command is answered anew
    assert "no such checkpoint folder" in capfd.readouterr().err


def test_only_a_refused_request_is_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results that somebody removed under a measurement say nothing against its next attempt."""
    base, out = tmp_path / "base", tmp_path / "out"
    write_tiny_folder(base)
    words = ["evaluate", "--baseline", str(base), "--subject", str(base), "--out", str(out)]
    words += ["--windows", str(base / "config.json")]  # never read here
    out.mkdir()
    monkeypatch.setattr(evaluate, "_supervise", lambda job, seconds: (0, ""))  # and wrote nothing
    assert main(words) == 3
    assert list(out.iterdir()) == []


def test_a_class_that_the_library_takes_for_a_causal_one_is_measured(tmp_path: Path) -> None:
    """Whatever its name ends in: Gemma 3 for images too, Reformer; not a class of another kind."""
    for kind, name in (
        ("gemma3", "Gemma3ForConditionalGeneration"),
        ("reformer", "ReformerModelWithLMHead"),
        ("bert-generation", "BertGenerationDecoder"),
    ):
        refuse_architecture({"model_type": kind, "architectures": [name]}, tmp_path)
        with pytest.raises(NotACheckpointError, match="is not supported"):
            refuse_architecture({"model_type": "clip", "architectures": [name]}, tmp_path)
