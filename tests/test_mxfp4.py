"""MXFP4 experts, as gpt-oss ships them: a small random one, packed here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from causal_models import make_causal
from checkpoint_factory import weights, write_weights

from invarlock.checkpoints import Checkpoint
from invarlock.errors import InputError
from invarlock.guards.invariants import check_checkpoint, check_loaded
from invarlock.model_folder import open_model
from invarlock.run.loading import Target, load_model

VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
EXPERTS = "model.layers.0.mlp.experts"


def pack_matrix(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Blocks and scales of matrices (experts, columns, rows), rounded to the nearest."""
    experts, columns, rows = matrix.shape
    groups = matrix.float().transpose(1, 2).reshape(experts, rows, columns // 32, 32)
    largest = groups.abs().amax(-1).clamp(min=2.0**-100)
    powers = (largest / 6).log2().ceil()
    scaled = groups / powers.exp2().unsqueeze(-1)
    table = torch.tensor(VALUES)
    codes = (scaled.abs().unsqueeze(-1) - table).abs().argmin(-1) + 8 * (scaled < 0)
    blocks = codes[..., 0::2] + 16 * codes[..., 1::2]
    return blocks.to(torch.uint8), (powers + 127).to(torch.uint8)


def pack(source: Path, folder: Path) -> Path:
    """Pack the experts of a gpt-oss model."""
    shutil.copytree(source, folder)
    packed: dict[str, torch.Tensor] = {}
    for name, value in weights(source).items():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            packed[f"{name}_blocks"], packed[f"{name}_scales"] = pack_matrix(value)
        else:
            packed[name] = value
    for path in folder.glob("*.safetensors"):
        path.unlink()
    write_weights(folder, packed)
    config = json.loads((folder / "config.json").read_text())
    kept = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "lm_head"]
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": kept}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gpt-oss model of 64 columns, in bfloat16."""
    folder = make_causal("gpt_oss", tmp_path_factory.mktemp("dense") / "model")
    stored = {name: tensor.bfloat16() for name, tensor in weights(folder).items()}
    write_weights(folder, stored)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    return folder


@pytest.fixture(scope="module")
def packed(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with packed experts."""
    return pack(dense, tmp_path_factory.mktemp("packed") / "model")


def test_values_are_fp4_numbers_times_a_power_of_two(dense: Path, packed: Path) -> None:
    """Number by number, the other way round than they are stored."""
    subject, stored = open_model(packed, dense), weights(packed)
    for name in (f"{EXPERTS}.gate_up_proj", f"{EXPERTS}.down_proj"):
        blocks, scales = stored[f"{name}_blocks"], stored[f"{name}_scales"]
        found = subject.load(name)
        assert found.shape == weights(dense)[name].shape
        experts, columns, rows = found.shape
        for expert in range(experts):
            for column in range(0, columns, 7):
                for row in range(0, rows, 5):
                    byte = int(blocks[expert, row, column // 32, column % 32 // 2])
                    code = byte >> 4 if column % 2 else byte & 15
                    power = 2.0 ** (int(scales[expert, row, column // 32]) - 127)
                    value = (-1 if code & 8 else 1) * VALUES[code & 7] * power
                    assert float(found[expert, column, row]) == value
        near = (found.float() - weights(dense)[name].float()).norm()
        assert near < 0.2 * weights(dense)[name].float().norm()
    assert list(subject.packing()["schemes"]) == ["MXFP4, groups of 32"]


def test_a_whole_subject_has_no_finding(dense: Path, packed: Path) -> None:
    assert check_checkpoint(Checkpoint.open(dense), open_model(packed, dense)) == []


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_what_runs_holds_these_values(packed: Path, dtype: str) -> None:
    """transformers unpacks the same numbers; the experts count as what multiplies."""
    subject = Checkpoint.open(packed)
    loaded = load_model(subject, Target("cpu", dtype))
    assert check_loaded(loaded.missing, loaded.unexpected) == []
    held = dict(loaded.model.named_parameters())
    assert {str(parameter.dtype) for parameter in held.values()} == {f"torch.{dtype}"}
    assert len(subject.packed) == 4
    for name in subject.packed:
        assert torch.equal(held[name].bfloat16(), subject.load(name)), name
    loaded.model(torch.arange(5).view(1, 5))
    said = loaded.describe()
    assert said.detail["weights"] == f"unpacked into dense {dtype} when loaded"
    assert said.kernels["transformers.models.gpt_oss.modeling_gpt_oss.GptOssExperts"] == 2


Stored = dict[str, torch.Tensor]


def change(folder: Path, edit: Callable[[Stored], object]) -> Path:
    """Change the stored tensors of a folder."""
    stored = weights(folder)
    edit(stored)
    (folder / "model.safetensors").unlink()
    write_weights(folder, stored)
    return folder


def filled(value: int) -> Callable[[Stored], object]:
    """The first power is another."""

    def edit(stored: Stored) -> None:
        stored[f"{EXPERTS}.down_proj_scales"].view(-1)[0] = value

    return edit


@pytest.mark.parametrize(
    ("value", "kind"), [(255, "non_finite_tensor"), (0, "packing")], ids=["no number", "nothing"]
)
def test_damage_rejects(dense: Path, packed: Path, tmp_path: Path, value: int, kind: str) -> None:
    folder = change(shutil.copytree(packed, tmp_path / "subject"), filled(value))
    (found,) = check_checkpoint(Checkpoint.open(dense), open_model(folder, dense))
    assert (found["type"], found["severity"]) == (kind, "fatal")
    assert f"{EXPERTS}.down_proj" in found["message"]


@pytest.mark.parametrize("part", ["blocks", "scales"])
def test_a_part_that_is_missing_is_one_line(packed: Path, tmp_path: Path, part: str) -> None:
    folder = shutil.copytree(packed, tmp_path / "subject")
    change(folder, lambda s: s.pop(f"{EXPERTS}.down_proj_{part}"))
    with pytest.raises(InputError, match=f"without {EXPERTS}.down_proj_{part}"):
        open_model(folder)


@pytest.mark.parametrize(
    "other", [lambda t: t[..., :1].clone(), lambda t: t.half()], ids=["sizes", "types"]
)
def test_parts_of_other_sizes_and_types_are_one_line(
    packed: Path, tmp_path: Path, other: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    folder = shutil.copytree(packed, tmp_path / "subject")
    name = f"{EXPERTS}.down_proj_scales"
    change(folder, lambda s: s.update({name: other(s[name])}))
    with pytest.raises(InputError, match="do not fit together") as caught:
        open_model(folder)
    assert "\n" not in str(caught.value)
