"""PEFT adapters: the merged view against what peft itself merges, and execution through peft."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_factory import make_llama, weights, write_tokenizer
from measuring_factory import World, read
from safetensors.torch import load_file, save_file

from invarlock.checkpoints import Checkpoint
from invarlock.errors import InputError, NotACheckpointError
from invarlock.folders import readable_format
from invarlock.guards.block_outputs import block_outputs, stream_ends
from invarlock.guards.invariants import check_checkpoint
from invarlock.model_folder import open_model
from invarlock.run.loading import Target, load_checkpoint

Document = dict[str, Any]
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@contextmanager
def quietly() -> Iterator[None]:
    """peft warns of what these tests mean."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def train(base: Path, out: Path, dtype: torch.dtype | None = None, **config: Any) -> Any:
    """Write an adapter of random matrices beside ``base``; the model that peft makes of it."""
    from transformers import AutoModelForCausalLM

    peft = pytest.importorskip("peft")
    with quietly():
        loaded = AutoModelForCausalLM.from_pretrained(base, dtype=dtype or torch.bfloat16)
        made = peft.get_peft_model(loaded, peft.LoraConfig(**config))
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for name, parameter in made.named_parameters():
                if parameter.requires_grad:
                    noise = torch.randn(parameter.shape, generator=generator) * 0.05
                    scale = 0.02 if "magnitude" in name else 1
                    parameter.add_((noise * scale).to(parameter.dtype))
        made.save_pretrained(out, save_embedding_layers="auto")
    return made


def merged(made: Any) -> dict[str, torch.Tensor]:
    """What ``merge_and_unload`` leaves."""
    with quietly():
        found: dict[str, torch.Tensor] = made.merge_and_unload().state_dict()
    return found


CASES: dict[str, Document] = {
    "LoRA": {"r": 4, "lora_alpha": 12, "target_modules": ALL},
    "rsLoRA": {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "up_proj"],
               "use_rslora": True},
    "DoRA": {"r": 4, "lora_alpha": 6, "target_modules": ALL, "use_dora": True},
    "patterns": {"r": 4, "lora_alpha": 8, "target_modules": r".*\.(q_proj|down_proj)",
                 "rank_pattern": {r"layers\.1\.self_attn\.q_proj": 2, "down_proj": 6},
                 "alpha_pattern": {r"layers\.0\.mlp\.down_proj": 3}},
    "all linear": {"r": 2, "target_modules": "all-linear"},
    "layers": {"r": 2, "target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1]},
    "saved whole": {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["norm", "lm_head"]},
    "embedding": {"r": 4, "lora_alpha": 12, "target_modules": ["q_proj", "embed_tokens"]},
    "embedding and DoRA": {"r": 4, "target_modules": ["embed_tokens", "lm_head"],
                           "use_dora": True},
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "f32"])
@pytest.mark.parametrize("case", CASES)
def test_the_view_is_what_peft_merges(case: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Every tensor of the merged view, bit for bit, in the type that the baseline is stored in."""
    base = make_llama(tmp_path / "base", tied=False)
    if dtype is torch.float32:
        weights = load_file(base / "model.safetensors")
        save_file({n: t.float() for n, t in weights.items()}, base / "model.safetensors")
    wanted = merged(train(base, tmp_path / "adapter", dtype, **CASES[case]))
    subject = Checkpoint.open(tmp_path / "adapter", base)
    baseline = Checkpoint.open(base)
    assert subject.tensors.keys() == baseline.tensors.keys()
    changed = 0
    for name in subject.tensors:
        assert torch.equal(subject.load(name), wanted[name]), name
        changed += not torch.equal(subject.load(name), baseline.load(name))
    assert changed == len(subject.packed)
    assert changed > 0
    assert [f["message"] for f in check_checkpoint(baseline, subject) if f["type"] == "packing"
            and f["severity"] == "fatal"] == []  # fmt: skip


@pytest.mark.parametrize("dora", [False, True])
def test_matrices_that_are_stored_the_other_way(dora: bool, tmp_path: Path) -> None:
    """GPT-2 keeps (inputs, outputs), and biases of the base may be trained too."""
    from transformers import GPT2Config, GPT2LMHeadModel

    base, sizes = tmp_path / "base", {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
    torch.manual_seed(0)
    made = GPT2LMHeadModel(GPT2Config(vocab_size=320, bos_token_id=0, eos_token_id=1, **sizes))
    made.to(torch.bfloat16).save_pretrained(base)
    write_tokenizer(base)
    config = {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True, "bias": "all"}
    wanted = merged(train(base, tmp_path / "adapter", use_dora=dora, r=3, **config))
    subject = Checkpoint.open(tmp_path / "adapter", base)
    names = {n.removeprefix("transformer."): t for n, t in wanted.items()}
    for name in subject.tensors:
        assert torch.equal(subject.load(name), names[name.removeprefix("transformer.")]), name
    assert any(name.endswith("c_attn.bias") for name in subject.packed)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A small Llama."""
    return make_llama(tmp_path / "base")


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    """A LoRA adapter of it."""
    train(base, tmp_path / "adapter", r=4, target_modules=["q_proj", "v_proj"])
    return tmp_path / "adapter"


@pytest.mark.parametrize("more", [{}, {"use_dora": True, "modules_to_save": ["norm"]}])
def test_peft_executes_it_and_nothing_is_merged(base: Path, adapter: Path, more: Document) -> None:
    """The logits are those of peft's own model; layers keep the baseline's matrices."""
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    if more:
        train(base, adapter, r=4, target_modules=["q_proj", "o_proj", "down_proj"], **more)
    subject = open_model(adapter, base)
    loaded = load_checkpoint(subject, Target("cpu", "float32"), 16)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    ids = torch.arange(2, 40)[None]
    with torch.inference_mode():
        ours = loaded.model(ids).logits
        without = plain(ids).logits
        theirs = peft.PeftModel.from_pretrained(plain, adapter)(ids).logits
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, without)
    layer = loaded.model.model.layers[0].self_attn.q_proj
    assert not layer.merged
    config = subject.config  # hooks find what they find in the baseline
    for found in (block_outputs, stream_ends):
        assert [p.name for p in found(loaded.model, config)] == [
            p.name for p in found(AutoModelForCausalLM.from_pretrained(base), config)
        ]
    described = loaded.describe()
    assert described.versions["peft"] == peft.__version__
    assert (loaded.missing, loaded.unexpected) == ([], [])


def edit_config(adapter: Path, **changes: object) -> None:
    """Other values in adapter_config.json."""
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(adapter: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Other tensors."""
    path = adapter / "adapter_model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    edit(tensors)
    save_file(tensors, path)


Q0 = "base_model.model.model.layers.0.self_attn.q_proj"
REFUSED: dict[str, tuple[Callable[[Path], object], type[InputError], str]] = {
    "another kind": (lambda a: edit_config(a, peft_type="IA3"), NotACheckpointError, "kind IA3"),
    "prompt": (lambda a: edit_config(a, peft_type="PROMPT_TUNING"), NotACheckpointError,
               "kind PROMPT_TUNING"),
    "pissa": (lambda a: edit_config(a, init_lora_weights="pissa"), NotACheckpointError,
              "baseline's own weights"),
    "unknown": (lambda a: edit_config(a, layer_replication=[[0, 2]]), NotACheckpointError,
                "layer_replication"),
    "code": (lambda a: edit_config(a, megatron_config={"x": 1}, megatron_core="antigravity"),
             NotACheckpointError, "megatron_config"),
    "rank": (lambda a: edit_config(a, r=8), InputError, "another rank"),
    "no rank": (lambda a: edit_config(a, r=0), InputError, "not a LoRA configuration"),
    "pattern": (lambda a: edit_config(a, rank_pattern={"(": 2}), InputError, "not a pattern"),
    "endless": (lambda a: edit_config(a, target_modules="(.*)*x"), InputError, "takes longer"),
    "endless rank": (lambda a: edit_config(a, rank_pattern={"(.*)*x": 2}), InputError,
                     "takes longer"),
    "half": (lambda a: edit_weights(a, lambda t: t.pop(f"{Q0}.lora_B.weight")), InputError,
             "a part of the adapter"),
    "magnitude": (lambda a: edit_config(a, use_dora=True), InputError, "and a magnitude"),
    "other layers": (
        lambda a: edit_weights(a, lambda t: t.update({
            n.replace("layers.0", "layers.7"): t.pop(n) for n in list(t) if "layers.0" in n})),
        NotACheckpointError, "layers.7.self_attn.q_proj, which is not there"),
    "cut off": (lambda a: (a / "adapter_model.safetensors").write_bytes(
        (a / "adapter_model.safetensors").read_bytes()[:-8]), InputError, "adapter_model"),
    "not of an adapter": (
        lambda a: edit_weights(a, lambda t: t.update({"lora_A.weight": torch.ones(2)})),
        InputError, "no tensor of a LoRA adapter"),
}  # fmt: skip


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_read_is_one_line(case: str, base: Path, adapter: Path) -> None:
    """Other kinds of adapters, damaged ones, and what would do more than is read."""
    damage, kind, words = REFUSED[case]
    damage(adapter)
    with pytest.raises(InputError) as caught:
        Checkpoint.open(adapter, base)
    assert type(caught.value) is kind
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_adapter_of_another_model_is_refused(adapter: Path, tmp_path: Path) -> None:
    """By its shapes, whatever it is called; another name alone is a note."""
    other = make_llama(tmp_path / "other", hidden=32)
    edit_config(adapter, base_model_name_or_path=str(other))
    with pytest.raises(NotACheckpointError, match=r"adapter of another model.*16 x 16.*32 x 32"):
        Checkpoint.open(adapter, other)
    base = tmp_path / "base"
    edit_config(adapter, base_model_name_or_path="org/somebody-else")
    found = check_checkpoint(Checkpoint.open(base), Checkpoint.open(adapter, base))
    assert [(f["type"], f["severity"]) for f in found] == [("packing", "warning")]
    assert "names somebody-else as its model" in found[0]["message"]


def test_an_adapter_needs_its_baseline(adapter: Path) -> None:
    """It is no model, and a folder with both stays two models."""
    with pytest.raises(NotACheckpointError, match="read beside a baseline alone"):
        Checkpoint.open(adapter)
    shutil.copy(adapter.parent / "base/model.safetensors", adapter)
    shutil.copy(adapter.parent / "base/config.json", adapter)
    with pytest.raises(NotACheckpointError, match="holds two models"):
        readable_format(adapter)


def test_one_matrix_for_embedding_and_head_is_two_models(tmp_path: Path) -> None:
    """Merged, an adapter of it changes the head too; beside the layers it does not."""
    base = make_llama(tmp_path / "base", tied=True)
    for module in ("embed_tokens", "lm_head"):
        out = tmp_path / module
        train(base, out, r=2, target_modules=["q_proj", module])
        with pytest.raises(NotACheckpointError, match="one matrix for embedding and head"):
            Checkpoint.open(out, base)


@pytest.mark.parametrize("tied", [True, False])
def test_a_resized_vocabulary_is_named_with_a_way_to_merge_it(tmp_path: Path, tied: bool) -> None:
    """The adapter holds larger tables; peft's own loader guesses their rows by the tokenizer."""
    from transformers import AutoModelForCausalLM

    peft = pytest.importorskip("peft")
    base = make_llama(tmp_path / "base", tied=tied)
    out, target = tmp_path / "adapter", tmp_path / "merged"
    with quietly():
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
        model.resize_token_embeddings(384)
        made = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"]))
        made.save_pretrained(out, save_embedding_layers=True)
    with pytest.raises(NotACheckpointError, match="384 tokens, the baseline has 320") as caught:
        Checkpoint.open(out, base)
    program = caught.value.hint.partition("python -c '")[2].partition("'")[0]
    with quietly():
        exec(program.replace("MERGED", str(target)))
    assert weights(target)["model.embed_tokens.weight"].shape[0] == 384


def test_what_the_configuration_says_and_the_file_lacks(base: Path, adapter: Path) -> None:
    """peft would make the missing matrices anew, or leave out what it is not told of."""

    def faults(**changes: object) -> list[str]:
        edit_config(adapter, **changes)
        found = check_checkpoint(Checkpoint.open(base), Checkpoint.open(adapter, base))
        return [f["message"] for f in found if f["severity"] == "fatal"]

    assert faults() == []
    (lacking,) = faults(target_modules=["q_proj", "v_proj", "o_proj"])
    assert "no weights for: model.layers.0.self_attn.o_proj, model.layers.1" in lacking
    (stray,) = faults(target_modules=["q_proj"])
    assert "does not target" in stray
    assert "layers.0.self_attn.v_proj" in stray
    assert "norm is saved" in faults(target_modules=["q_proj", "v_proj"],
                                     modules_to_save=["norm"])[0]  # fmt: skip


def test_small_files_are_the_baselines_but_for_the_adapters_own(base: Path, adapter: Path) -> None:
    """A chat template of the adapter's is what ships; so is its tokenizer."""
    (base / "generation_config.json").write_text("{}")
    (base / "README.md").write_text("of the baseline")
    plain = Checkpoint.open(adapter, base)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (plain.folder / name).read_bytes() == (base / name).read_bytes()
    assert not (plain.folder / "README.md").exists()
    assert not (plain.folder / "adapter_config.json").exists()
    (adapter / "chat_template.jinja").write_text("{{ messages }}")
    with_template = Checkpoint.open(adapter, base)
    assert (with_template.folder / "chat_template.jinja").read_text() == "{{ messages }}"
    assert (with_template.folder / "tokenizer_config.json").exists()
    found = check_checkpoint(Checkpoint.open(base), with_template)
    assert any("chat_template" in str(f) for f in found)
    (adapter / "tokenizer.json").write_bytes((base / "tokenizer.json").read_bytes())
    own = Checkpoint.open(adapter, base)
    assert not (own.folder / "tokenizer_config.json").exists()  # the adapter ships none
    assert plain.digest() != with_template.digest() != own.digest()


def test_what_is_not_trained_is_the_baseline(base: Path, tmp_path: Path) -> None:
    """B is zero at the start: every weight is byte for byte the baseline's, -0.0 too."""
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    weights = load_file(base / "model.safetensors")
    weights["model.layers.0.self_attn.q_proj.weight"][0, :4] = -0.0
    save_file(weights, base / "model.safetensors")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    made = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    made.save_pretrained(tmp_path / "zero")
    subject, baseline = Checkpoint.open(tmp_path / "zero", base), Checkpoint.open(base)
    for name in baseline.tensors:
        assert subject.tensor_digest(name) == baseline.tensor_digest(name)


def test_an_evaluation_of_an_adapter(world: World, tmp_path: Path) -> None:
    """From the command line: weights by the merged view, execution by peft, and both are told."""
    pytest.importorskip("peft")
    train(world.baseline, tmp_path / "adapter", r=4, lora_alpha=4, target_modules=ALL)
    edit_weights(
        tmp_path / "adapter",
        lambda t: t.update({n: v * 1e-3 for n, v in t.items() if "lora_B" in n}),
    )
    assert world.evaluate(tmp_path / "adapter", tmp_path / "out") == 0
    ran = read(tmp_path / "out")["meta"]["execution"]
    assert (ran["format"], ran["backend"]) == ("peft", "transformers")
    assert ran["schemes"]["LoRA, rank 4"]["tensors"] == 14
    assert "peft" in ran["versions"]
    report = read(tmp_path / "out")
    assert report["primary_metric"]["invalid"] is False
    assert 0.999 < report["primary_metric"]["ratio_vs_baseline"] < 1.001
    assert report["spectral"]["evaluated"] is True
    assert report["assurance"]["outcome"] == "pass"
