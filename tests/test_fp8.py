"""FP8 weights with scales of blocks: ours against transformers' own, and where that is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from checkpoint_factory import make_llama, weights, write_weights

from invarlock.checkpoints import Checkpoint
from invarlock.errors import InputError
from invarlock.guards.invariants import check_checkpoint, check_loaded
from invarlock.model_folder import open_model
from invarlock.run.loading import Target, load_model

LARGEST = 448.0  # of E4M3
MODULE = "model.layers.0.mlp.gate_proj"


def pack(
    source: Path, folder: Path, block: Sequence[int] | None, end: str = "weight_scale_inv"
) -> Path:
    """Pack the matrices of a Llama in FP8, but for its head."""
    shutil.copytree(source, folder)
    packed: dict[str, torch.Tensor] = {}
    for name, value in weights(source).items():
        if not name.endswith("_proj.weight"):
            packed[name] = value
            continue
        rows, columns = value.shape
        high, wide = block or value.shape
        scales = torch.empty(-(-rows // high), -(-columns // wide))
        numbers = torch.empty(value.shape)
        for i in range(scales.shape[0]):
            for j in range(scales.shape[1]):
                part = slice(i * high, (i + 1) * high), slice(j * wide, (j + 1) * wide)
                scales[i, j] = value[part].float().abs().max() / LARGEST
                numbers[part] = value[part].float() / scales[i, j]
        packed[name] = numbers.to(torch.float8_e4m3fn)
        packed[name.removesuffix("weight") + end] = scales if block else scales.view(())
    for path in folder.glob("*.safetensors"):
        path.unlink()
    write_weights(folder, packed)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
        "weight_block_size": list(block) if block else None,
        "modules_to_not_convert": ["lm_head"],
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with a head of its own."""
    return make_llama(tmp_path_factory.mktemp("dense") / "model", hidden=64, tied=False)


# name: block, how the scales are called, what it is called, why dense kernels run it
KINDS: dict[str, tuple[Sequence[int] | None, str, str, str]] = {
    "blocks": ((32, 32), "weight_scale_inv", "FP8 E4M3, blocks of 32x32", ""),
    "a scale": (None, "weight_scale_inv", "FP8 E4M3, one scale", ""),
    # of 192 rows in two blocks transformers makes two of 96
    "uneven": ((128, 128), "weight_scale_inv", "FP8 E4M3, blocks of 128x128", "do not divide"),
    "uneven too": ((40, 24), "weight_scale_inv", "FP8 E4M3, blocks of 40x24", "do not divide"),
    "other name": (None, "weight_scale", "FP8 E4M3, one scale", "does not read weight_scale"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_numbers_times_their_scale(dense: Path, tmp_path: Path, kind: str) -> None:
    """Number by number, and no finding in what the invariants look at."""
    block, end, called, _ = KINDS[kind]
    folder = pack(dense, tmp_path / "subject", block, end)
    subject, stored = open_model(folder, dense), weights(folder)
    numbers = stored[f"{MODULE}.weight"].float()
    scales = stored[f"{MODULE}.{end}"].view(-1, 1) if block is None else stored[f"{MODULE}.{end}"]
    high, wide = block or numbers.shape
    expected = torch.tensor(
        [
            [float(numbers[i, j] * scales[i // high, j // wide]) for j in range(numbers.shape[1])]
            for i in range(numbers.shape[0])
        ]
    )
    assert torch.equal(subject.load(f"{MODULE}.weight"), expected.bfloat16())
    assert list(subject.packing()["schemes"]) == [called]
    assert check_checkpoint(Checkpoint.open(dense), subject) == []


@pytest.mark.parametrize("kind", KINDS)
def test_what_runs_holds_these_values(dense: Path, tmp_path: Path, kind: str) -> None:
    """By transformers' unpacking where it is right, and by ours where it is not; reports say."""
    block, end, _, because = KINDS[kind]
    subject = open_model(pack(dense, tmp_path / "subject", block, end), dense)
    for dtype in ("bfloat16", "float32"):
        loaded = load_model(subject, Target("cpu", dtype))
        assert check_loaded(loaded.missing, loaded.unexpected) == []
        held = dict(loaded.model.named_parameters())
        assert {str(parameter.dtype) for parameter in held.values()} == {f"torch.{dtype}"}
        loaded.model(torch.arange(5).view(1, 5))
        for name in subject.packed:
            assert torch.equal(held[name].bfloat16(), subject.load(name)), name
        said = loaded.describe().detail
        assert because in said.get("because", "")
        assert bool(because) == ("because" in said)
        if not because:
            assert said["weights"] == f"unpacked into dense {dtype} when loaded"
            assert said["activations"].startswith("as they are")


Stored = dict[str, torch.Tensor]


def change(folder: Path, edit: Callable[[Stored], object]) -> Path:
    """Change the stored tensors of a folder."""
    stored = weights(folder)
    edit(stored)
    (folder / "model.safetensors").unlink()
    write_weights(folder, stored)
    return folder


def filled(name: str, value: float) -> Callable[[Stored], object]:
    """The first number of a tensor is another."""

    def edit(stored: Stored) -> None:
        stored[name].view(-1)[0] = value

    return edit


FINDINGS: dict[str, tuple[Callable[[Stored], object], str, str]] = {
    "not a number": (
        filled(f"{MODULE}.weight_scale_inv", torch.nan), "non_finite_tensor", MODULE),
    "zero": (filled(f"{MODULE}.weight_scale_inv", 0.0), "packing", MODULE),
    "activations": (
        lambda s: s.update({f"{MODULE}.activation_scale": torch.zeros(())}),
        "packing",
        f"{MODULE}.activation_scale",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FINDINGS)
def test_damage_rejects(dense: Path, tmp_path: Path, case: str) -> None:
    edit, kind, words = FINDINGS[case]
    folder = change(pack(dense, tmp_path / "subject", (32, 32)), edit)
    (found,) = check_checkpoint(Checkpoint.open(dense), open_model(folder, dense))
    assert (found["type"], found["severity"]) == (kind, "fatal")
    assert words in found["message"]


UNREADABLE: dict[str, tuple[Callable[[Stored], object], object, str]] = {
    "no scales": (lambda s: s.pop(f"{MODULE}.weight_scale_inv"), [32, 32], "has no scales"),
    "other blocks": (lambda s: None, [64, 64], "a scale for each block"),
    "scales of another type": (
        lambda s: s.update({n: t.long() for n, t in s.items() if n.endswith("_inv")}),
        [32, 32],
        "no type that scales have",
    ),
    "no blocks": (lambda s: None, None, "one scale"),
    "no sizes": (lambda s: None, "128x128", "weight_block_size"),
    "sizes of nothing": (lambda s: None, [0, 128], "weight_block_size"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_parts_that_do_not_fit_are_one_line(dense: Path, tmp_path: Path, case: str) -> None:
    edit, size, words = UNREADABLE[case]
    folder = change(pack(dense, tmp_path / "subject", (32, 32)), edit)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["weight_block_size"] = size
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError) as caught:
        open_model(folder, dense)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def static(dense: Path, folder: Path, end: str, scale: float = 0.05) -> Path:
    """A subject whose file says by which scale the activations of each product are rounded."""
    block = None if end == "input_scale" else (32, 32)
    pack(dense, folder, block, "weight_scale" if block is None else "weight_scale_inv")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["activation_scheme"] = "static"
    (folder / "config.json").write_text(json.dumps(config))

    def edit(stored: Stored) -> None:
        for name in [n for n in stored if n.endswith("_proj.weight")]:
            stored[name.removesuffix("weight") + end] = torch.tensor(scale)

    return change(folder, edit)


@pytest.mark.parametrize("end", ["input_scale", "activation_scale"])
def test_activations_are_rounded_by_the_scale_that_is_stored(
    dense: Path, tmp_path: Path, end: str
) -> None:
    """As FP8 kernels do, each product of the numbers of E4M3 times the scale; beyond 448 is cut."""
    folder = static(dense, tmp_path / "subject", end)
    subject = Checkpoint.open(folder)
    assert check_checkpoint(Checkpoint.open(dense), subject) == []
    for dtype in ("bfloat16", "float32"):
        loaded = load_model(subject, Target("cpu", dtype))
        assert check_loaded(loaded.missing, loaded.unexpected) == []
        assert "14 products" in loaded.describe().detail["activations"]
        layer = loaded.model.model.layers[1].mlp.up_proj
        inputs = torch.tensor([0.0, 0.011, -0.4, 3.3, 22.5, -22.3, 900.0, 1e-5] * 8)
        inputs = inputs.to(layer.weight.dtype)
        numbers = (inputs.float() / 0.05).clamp(-448, 448).to(torch.float8_e4m3fn).float()
        assert numbers.max() == 448
        rounded = (numbers * torch.tensor(0.05)).to(inputs.dtype)
        expected = torch.nn.functional.linear(rounded, layer.weight)
        assert torch.equal(layer(inputs), expected)
        assert not torch.equal(torch.nn.functional.linear(inputs, layer.weight), expected)
        head = loaded.model.lm_head  # packed no more than rounded
        assert torch.equal(head(inputs), torch.nn.functional.linear(inputs, head.weight))


def test_scales_of_activations_that_cannot_be_meant_reject(dense: Path, tmp_path: Path) -> None:
    """One that is lacking, several for one product, none that is a positive number."""
    name = f"{MODULE}.activation_scale"
    cases: dict[str, Callable[[Stored], object]] = {
        "have no scale, by which": lambda stored: stored.pop(name),
        "have 2 scales": lambda stored: stored.update({name: torch.ones(2)}),
        "no positive number": lambda stored: stored.update({name: torch.tensor(-1.0)}),
    }
    for number, (words, edit) in enumerate(cases.items()):
        folder = static(dense, tmp_path / f"subject{number}", "activation_scale")
        found = check_checkpoint(Checkpoint.open(dense), Checkpoint.open(change(folder, edit)))
        assert [f["severity"] for f in found] == ["fatal"], words
        assert words in found[0]["message"].replace("has no scale", "have no scale")


def test_scales_of_caches_that_nothing_here_reads_are_told(dense: Path, tmp_path: Path) -> None:
    """A warning: what a server rounds by them is not judged."""
    folder = pack(dense, tmp_path / "subject", (32, 32))
    name = "model.layers.0.self_attn.k_scale"
    change(folder, lambda stored: stored.update({name: torch.tensor(1.0)}))
    (found,) = check_checkpoint(Checkpoint.open(dense), Checkpoint.open(folder))
    assert found["severity"] == "warning"
    assert "those scales are not judged" in found["message"]
