"""Edits that are trained: against plain torch, inside their scope, from their seed and text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from checkpoint_factory import (
    VOCABULARY,
    make_bert,
    make_llama,
    make_mixture,
    make_t5,
    save_model,
    weights,
    write_tokenizer,
)
from measuring_factory import change, write_tiny_windows
from repository_copy import invarlock

from invarlock.checkpoints import Checkpoint
from invarlock.cli import main
from invarlock.contracts import violations
from invarlock.edits.apply import Edited, Trained, apply_edit
from invarlock.edits.kinds.lora_merge import LoraMerge
from invarlock.edits.metadata import edit_metadata
from invarlock.edits.specs import parse_edit_spec
from invarlock.edits.stream import tensor_seed
from invarlock.errors import ConfigError, InputError, MeasurementError
from invarlock.roles import Role, role_of
from invarlock.run.loading import Target
from invarlock.run.train import BATCH_WINDOWS, Training, train
from invarlock.windows import WindowPlan, read_windows

HALF = BATCH_WINDOWS // 2  # windows of each arm that make exactly one step's batch


def make_gpt2(folder: Path) -> Path:
    """A GPT-2 of two layers with the factory's tokenizer; its projections are stored transposed."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=64, initializer_range=0.2
    )
    save_model(GPT2LMHeadModel(config), folder)
    write_tokenizer(folder)
    return folder


MAKE = {
    "llama": make_llama,
    "gpt2": make_gpt2,
    "bert": make_bert,
    "t5": make_t5,
    "mixtral": make_mixture,
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory):
    """A tiny float32 checkpoint of an architecture, and windows that make one batch beside it."""
    made: dict[str, Path] = {}

    def get(architecture: str) -> Path:
        if architecture not in made:
            folder = tmp_path_factory.mktemp(architecture) / "model"
            MAKE[architecture](folder)
            change(folder, lambda t: t.update({k: v.float() for k, v in t.items()}))
            plan = WindowPlan(32, HALF, HALF, 5)
            write_tiny_windows(folder, folder.parent / "windows.json", plan)
            made[architecture] = folder
        return made[architecture]

    return get


def trained(folder: Path, spec: str, *, seed: int = 3, budget: int = 1024) -> Trained:
    """What ``spec`` learns from the windows beside ``folder``."""
    target = Target("cpu", "float32")
    training = Training(folder.parent / "windows.json", target, budget, seed)
    return train(Checkpoint.open(folder), parse_edit_spec(spec), training)  # type: ignore[arg-type]


def edited(folder: Path, spec: str, out: Path, seed: int = 3) -> Edited:
    """The edited checkpoint in ``out``."""
    made = trained(folder, spec, seed=seed)
    return apply_edit(Checkpoint.open(folder), parse_edit_spec(spec), out, seed, made)


def library_model(folder: Path) -> torch.nn.Module:
    """The model as the library loads it, in float32."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def all_windows(folder: Path) -> torch.Tensor:
    """The tokens of every window beside ``folder``, which are one batch."""
    content = read_windows(folder.parent / "windows.json")
    return torch.tensor([window.tokens for window in (*content.preview, *content.final)])


# --- against plain torch ----------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "mixtral"])
def test_fine_tune_is_adamw_on_the_librarys_own_loss(checkpoint, tmp_path, architecture) -> None:
    """Two steps by hand give the same weights, also where loading fuses the experts."""
    folder = checkpoint(architecture)
    edited(folder, "fine_tune:0.003:2:ffn", tmp_path / "out")
    model = library_model(folder)
    tokens = all_windows(folder)
    marks = (".mlp.experts.", ".mlp.gate_proj.", ".mlp.up_proj.", ".mlp.down_proj.")
    chosen = [p for name, p in model.named_parameters() if any(mark in name for mark in marks)]
    assert len(chosen) == {"llama": 6, "mixtral": 4}[architecture]
    model.requires_grad_(False)
    for parameter in chosen:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(chosen, lr=0.003, weight_decay=0.0)
    for _ in range(2):
        optimizer.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
    model.save_pretrained(tmp_path / "by_hand")
    before, mine = weights(folder), weights(tmp_path / "out")
    by_hand = weights(tmp_path / "by_hand")
    moved = [name for name in mine if not torch.equal(mine[name], before[name])]
    assert {role_of(name, {"model_type": architecture}) for name in moved} <= {
        Role.FFN,
        Role.EXPERT,
    }
    for name in moved:
        assert torch.allclose(mine[name], by_hand[name], atol=2e-5), name
        assert (mine[name] - before[name]).abs().max() > 0.002


@pytest.mark.parametrize(("architecture", "scope"), [("llama", "attn"), ("gpt2", "all")])
def test_lora_is_the_low_rank_update_that_autograd_trains(
    checkpoint, tmp_path, architecture, scope
) -> None:
    """W + alpha/rank B A, with A drawn, B from zero, and both trained through the merged weight."""
    folder, rank, alpha = checkpoint(architecture), 2, 6.0
    edited(folder, f"lora_merge:{rank}:{alpha}:{scope}", tmp_path / "out", seed=9)
    before, after = weights(folder), weights(tmp_path / "out")
    model, tokens = library_model(folder), all_windows(folder)
    transposed = architecture == "gpt2"
    names = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(names) == 8
    factors = {}
    for name in names:
        outputs, inputs = before[name].mT.shape if transposed else before[name].shape
        generator = torch.Generator().manual_seed(tensor_seed(9, name))
        first = torch.randn((rank, inputs), generator=generator) / inputs**0.5
        factors[name] = (first.requires_grad_(), torch.zeros((outputs, rank), requires_grad=True))

    def update(name: str) -> torch.Tensor:
        first, second = factors[name]
        delta = alpha / rank * second @ first
        return delta.T if transposed else delta

    optimizer = torch.optim.AdamW(
        [leaf for pair in factors.values() for leaf in pair],
        lr=LoraMerge.learning_rate,
        weight_decay=0.0,
    )
    for _ in range(LoraMerge.steps):
        merged = {name: before[name] + update(name) for name in names}
        given = {"input_ids": tokens, "labels": tokens}
        optimizer.zero_grad()
        torch.func.functional_call(model, merged, (), given).loss.backward()
        optimizer.step()
    for name in names:
        delta = after[name] - before[name]
        assert torch.allclose(delta, update(name), atol=2e-5), name
        singular = torch.linalg.svdvals(delta.double())
        assert singular[rank] < 1e-3 * singular[0]
        assert singular[rank - 1] > 0


def test_a_smaller_token_budget_trains_the_same(checkpoint) -> None:
    """A step that goes through the model window by window has the gradient of the whole batch."""
    folder = checkpoint("llama")
    whole, parts = (trained(folder, "fine_tune:0.01:1:all", budget=b) for b in (1024, 1))
    for name, tensor in whole.tensors.items():
        assert torch.allclose(tensor, parts.tensors[name], atol=1e-5), name
    assert whole.losses[0]["before"] == pytest.approx(parts.losses[0]["before"], rel=1e-6)


# --- every architecture -----------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["lora_merge:2:8:ffn", "fine_tune:0.002:3:attn"])
@pytest.mark.parametrize("architecture", MAKE)
def test_the_loss_falls_and_only_the_scope_changes(
    checkpoint, tmp_path, architecture, spec
) -> None:
    """Causal, masked and sequence to sequence; the subject loads, and the metadata is true."""
    folder = checkpoint(architecture)
    result = edited(folder, spec, tmp_path / "out")
    document = edit_metadata(Checkpoint.open(folder), result)
    assert violations(document, "edit-metadata") == []
    assert isinstance(result.given, Trained)
    assert all(step["after"] < step["before"] for step in result.given.losses)
    before, after = weights(folder), weights(tmp_path / "out")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    # an expert that no token was sent to stays as it was
    assert moved == set(result.subject.written) - set(document["unchanged_tensors"])  # type: ignore[call-overload]
    roles = {role_of(name, {"model_type": architecture}) for name in moved}
    wanted = {Role.EXPERT} if architecture == "mixtral" else {Role.FFN}
    assert roles == ({Role.ATTN} if spec.endswith("attn") else wanted)
    assert all(after[name].dtype == before[name].dtype for name in before)
    rank = torch.linalg.matrix_rank
    if spec.startswith("lora"):
        deltas = [after[n] - before[n] for n in moved]
        assert all(int(rank(d, rtol=1e-3).max()) <= 2 for d in deltas)


def test_low_precision_weights_are_trained_in_float32(tmp_path) -> None:
    """A bfloat16 checkpoint stays bfloat16; steps far below its rounding still add up."""
    folder = make_llama(tmp_path / "model")
    write_tiny_windows(folder, tmp_path / "windows.json", WindowPlan(32, HALF, HALF, 5))
    made = trained(folder, "fine_tune:0.0001:1:ffn@layer=1")
    before = weights(folder)
    assert sorted(made.tensors) == [n for n in sorted(before) if ".layers.1.mlp." in n]
    assert all(tensor.dtype == torch.bfloat16 for tensor in made.tensors.values())
    assert made.record["dtype"] == "float32"
    small = trained(folder, "fine_tune:0.00002:40:ffn@layer=1").tensors
    # no single step of 2e-5 reaches half a rounding step of an entry of 0.1; all of them do
    name = "model.layers.1.mlp.up_proj.weight"
    large = before[name].abs() > 0.0625
    assert bool(large.any())
    assert float((small[name] != before[name])[large].float().mean()) > 0.5


# --- seeds and text ---------------------------------------------------------------------------


def test_the_seed_decides_the_bytes(checkpoint, tmp_path) -> None:
    """The same seed gives the same file, another one another update."""
    folder = checkpoint("llama")
    digests = [
        edited(folder, "lora_merge:2:8:all", tmp_path / str(i), seed).subject.digest
        for i, seed in enumerate((3, 3, 4))
    ]
    assert digests[0] == digests[1] != digests[2]
    first, again = ((tmp_path / n / "model.safetensors").read_bytes() for n in "01")
    assert first == again


def test_the_order_of_windows_comes_from_the_seed(checkpoint, tmp_path) -> None:
    """With more windows than a step takes, seeds learn from others; all are used in turn."""
    folder = make_llama(tmp_path / "model", seed=1)
    write_tiny_windows(folder, tmp_path / "windows.json", WindowPlan(32, 4, 4, 5))
    losses = [
        [step["before"] for step in trained(folder, "fine_tune:1e-9:3:attn", seed=s).losses]
        for s in (1, 2)
    ]
    assert losses[0][0] != losses[1][0]
    for run in losses:  # eight windows are two batches; the third step begins again
        assert run[2] == pytest.approx(run[0], abs=1e-6)
        assert run[1] != run[0]


def test_the_command_trains_and_says_so(checkpoint, tmp_path) -> None:
    """The whole command, twice in processes of their own: what it prints, writes and repeats."""
    folder = checkpoint("llama")
    words = ["edit", "--baseline", folder, "--device", "cpu"]
    words += ["--spec", "fine_tune:0.0005:3:all", "--windows", folder.parent / "windows.json"]
    for run in "ab":
        out = ["--out", tmp_path / run, "--metadata", tmp_path / f"{run}.json", "--seed", "7"]
        done = invarlock(*words, *out)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
    assert done.stdout.count("step ") == 3
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    document = json.loads((tmp_path / "a.json").read_text())
    training = document["training"]
    assert (training["optimizer"], training["steps"]) == ("adamw", 3)
    assert (training["learning_rate"], document["seed"]) == (0.0005, 7)
    assert training["windows"]["windows"] == 2 * HALF
    assert len(training["losses"]) == 3
    assert document["edit_semantics"] == "external_subject_validation_edit"
    assert Checkpoint.open(tmp_path / "a").digest() == document["subject_checkpoint_sha256"]


# --- pruning by importance --------------------------------------------------------------------


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize(
    ("architecture", "layer", "norm", "name"),
    [
        ("llama", "model.layers.0", "post_attention_layernorm", "mlp.up_proj.weight"),
        ("gpt2", "transformer.h.0", "ln_2", "mlp.c_fc.weight"),
    ],
)
def test_the_least_of_each_row_goes_by_what_the_norm_before_it_gives(
    checkpoint, tmp_path, architecture, layer, norm, name
) -> None:
    """By the command; the inputs by hand are the outputs of the norm in front of the matrix."""
    folder = checkpoint(architecture)
    words = ["edit", "--baseline", folder, "--spec", "importance_prune:0.25:ffn", "--out"]
    words += [tmp_path / "out", "--metadata", tmp_path / "m.json", "--device", "cpu"]
    words += ["--windows", folder.parent / "windows.json"]
    assert main([str(word) for word in words]) == 0
    document = json.loads((tmp_path / "m.json").read_text())
    assert document["calibration"]["windows"]["windows"] == BATCH_WINDOWS
    seen: list[torch.Tensor] = []
    model = library_model(folder)
    keep = lambda _, given, out: seen.append(out.flatten(0, 1))  # noqa: E731
    model.get_submodule(f"{layer}.{norm}").register_forward_hook(keep)
    with torch.no_grad():
        model(all_windows(folder))
    before, after = weights(folder), weights(tmp_path / "out")
    old, new = before[f"{layer}.{name}"], after[f"{layer}.{name}"]
    old, new = (old.T, new.T) if architecture == "gpt2" else (old, new)
    importance = old.abs() * seen[0].norm(dim=0)
    count = old.shape[1] // 4
    least = importance.topk(count, dim=1, largest=False).indices
    assert torch.equal(new, old.scatter(1, least, 0.0))


@pytest.mark.usefixtures("in_this_process")
def test_fused_experts_show_no_inputs(checkpoint, tmp_path, capsys) -> None:
    """The library stacks them into one parameter: which is one line."""
    folder = checkpoint("mixtral")
    words = ["edit", "--baseline", folder, "--spec", "importance_prune:0.1:ffn", "--out"]
    words += [tmp_path / "out", "--metadata", tmp_path / "m.json", "--device", "cpu"]
    words += ["--windows", folder.parent / "windows.json"]
    assert main([str(word) for word in words]) == 2
    assert "cannot be measured" in capsys.readouterr().err


# --- what is refused --------------------------------------------------------------------------


def test_windows_go_with_training_and_with_nothing_else(checkpoint, tmp_path, capsys) -> None:
    """Before torch is loaded, and before a file is written."""
    folder = checkpoint("llama")
    common = ["edit", "--baseline", str(folder), "--out", str(tmp_path / "out"), "--metadata"]
    common += [str(tmp_path / "m.json"), "--spec"]
    windows = ["--windows", str(folder.parent / "windows.json")]
    assert main([*common, "fine_tune:0.1:1:ffn"]) == 2
    assert "go with fine_tune, importance_prune, lora_merge" in capsys.readouterr().err
    assert main([*common, "noop", *windows]) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_rank_above_a_dimension_is_refused(checkpoint) -> None:
    """The tensor is named."""
    with pytest.raises(ConfigError, match=r"k_proj.*rank 9 is larger than its smaller dimension"):
        trained(checkpoint("llama"), "lora_merge:9:8:attn")


def copy_of(folder: Path, target: Path, edit) -> Path:
    """A changed copy of a checkpoint with its windows beside it."""
    import shutil

    shutil.copytree(folder, target / "model")
    shutil.copy(folder.parent / "windows.json", target)
    return change(target / "model", edit)


def test_a_tensor_that_the_model_does_not_hold_is_named(checkpoint, tmp_path) -> None:
    """A checkpoint with a layer more than its configuration says."""
    name = "model.layers.{}.mlp.up_proj.weight"
    more = copy_of(
        checkpoint("llama"),
        tmp_path,
        lambda t: t.update({name.format(2): t[name.format(1)].clone()}),
    )
    with pytest.raises(ConfigError, match=r"layers\.2\.mlp\.up_proj\.weight cannot be trained"):
        trained(more, "fine_tune:0.1:1:ffn")


def test_a_checkpoint_that_lacks_a_tensor_is_not_trained(checkpoint, tmp_path) -> None:
    """The library would begin with random weights there."""
    name = "model.layers.1.self_attn.k_proj.weight"
    less = copy_of(checkpoint("llama"), tmp_path, lambda t: t.pop(name))
    with pytest.raises(InputError, match=f"lacks the model's tensor {name}"):
        trained(less, "fine_tune:0.1:1:ffn")


def test_weights_that_are_not_finite_are_named(checkpoint, tmp_path) -> None:
    """NaN in a target is said before training; elsewhere it makes the loss no number."""
    name = "model.layers.1.mlp.up_proj.weight"
    bad = copy_of(checkpoint("llama"), tmp_path, lambda t: t[name].view(-1)[0].fill_(float("nan")))
    with pytest.raises(InputError, match=f"tensor {name}: the weights hold NaN"):
        trained(bad, "fine_tune:0.1:1:ffn")
    with pytest.raises(MeasurementError, match="not a finite number"):
        trained(bad, "fine_tune:0.1:1:attn")


def test_changing_no_byte_is_an_error(tmp_path) -> None:
    """A learning rate far below the rounding of bfloat16 leaves no subject behind."""
    folder = make_llama(tmp_path / "model")
    write_tiny_windows(folder, tmp_path / "windows.json", WindowPlan(32, HALF, HALF, 5))
    with pytest.raises(ConfigError, match="byte-identical"):
        edited(folder, "fine_tune:1e-12:1:ffn", tmp_path / "out")
    assert not (tmp_path / "out").exists()
