"""Edited folders: what is written, what stays as it was, and what leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoint_factory import make_folder, make_gpt2, make_llama, make_mixtral, weights

from invarlock.checkpoints import Checkpoint
from invarlock.cli import main
from invarlock.edits.apply import apply_edit
from invarlock.edits.kinds import quant_rtn
from invarlock.edits.kinds.quant_rtn import round_to_nearest_
from invarlock.edits.specs import parse_edit_spec
from invarlock.errors import ConfigError, InputError
from invarlock.roles import Role, family_of, layer_of, role_of

SPECS = [
    "noop",
    "quant_rtn:8:0:all",
    "fp8_quant:e4m3:ffn",
    "magnitude_prune:0.25:attn",
    "lowrank_svd:3:ffn@layer=1",
    "quant_rtn:4:8:embed",
]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of three shards."""
    return make_llama(tmp_path_factory.mktemp("base") / "model", shards=3)


def edit(baseline: Path, spec: str, out: Path) -> int:
    """Run the command as a user does."""
    words = ["edit", "--baseline", str(baseline), "--spec", spec, "--out", str(out)]
    return main([*words, "--metadata", str(out.parent / "edit_metadata.json")])


def contents(folder: Path) -> dict[str, bytes]:
    """Every file's bytes."""
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def test_shards_and_order_are_kept(llama: Path, tmp_path: Path) -> None:
    """Each tensor stays in its file at its place, and each file keeps its length."""
    edit(llama, "quant_rtn:8:0:all", tmp_path / "out")
    before, after = Checkpoint.open(llama), Checkpoint.open(tmp_path / "out")
    assert before.shards == after.shards
    assert {n: i.file for n, i in before.tensors.items()} == {
        n: i.file for n, i in after.tensors.items()
    }
    for shard in before.shards:
        order = [
            sorted((i.begin, n) for n, i in c.tensors.items() if i.file == shard)
            for c in (before, after)
        ]
        assert [n for _, n in order[0]] == [n for _, n in order[1]]


def test_untouched_files_are_the_same_file(llama: Path, tmp_path: Path) -> None:
    """Shards without a target, tokenizer and settings are hard links of the baseline's."""
    edit(llama, "lowrank_svd:3:ffn@layer=1", tmp_path / "out")
    linked = {p.name for p in (tmp_path / "out").iterdir() if p.samefile(llama / p.name)}
    assert {"config.json", "tokenizer.json", "model.safetensors.index.json"} <= linked
    assert "model-00001-of-00003.safetensors" in linked
    assert "model-00003-of-00003.safetensors" not in linked


def test_links_fall_back_to_copies(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the file system cannot link, the bytes are copied."""

    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    edit(llama, "noop", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(llama)
    assert not (tmp_path / "out/config.json").samefile(llama / "config.json")


def test_links_follow_symbolic_links(llama: Path, tmp_path: Path) -> None:
    """A baseline of symbolic links (a hub cache) gives a subject of real files."""
    (tmp_path / "snapshot").mkdir()
    for path in llama.iterdir():
        (tmp_path / "snapshot" / path.name).symlink_to(path)
    edit(tmp_path / "snapshot", "noop", tmp_path / "out")
    assert not any(p.is_symlink() for p in (tmp_path / "out").iterdir())


def test_stale_weights_and_hidden_files_are_left_behind(tmp_path: Path) -> None:
    """Weights in another form would still be the baseline's, so they are not carried over."""
    base = make_llama(tmp_path / "base", layers=1, hidden=8)
    for name in ("pytorch_model.bin", "consolidated.safetensors", ".snakemake_timestamp"):
        (base / name).write_bytes(b"x")
    (base / "LICENSE").write_text("terms")
    edit(base, "quant_rtn:8:0:all", tmp_path / "out")
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "LICENSE",
    }  # fmt: skip


@pytest.mark.parametrize("spec", SPECS)
def test_a_rerun_gives_the_same_bytes(llama: Path, tmp_path: Path, spec: str) -> None:
    """Every file and the metadata, whatever the number of threads."""
    results = []
    threads = torch.get_num_threads()
    for count in (1, 2):
        torch.set_num_threads(count)
        edit(llama, spec, tmp_path / "out")
        metadata = (tmp_path / "edit_metadata.json").read_bytes()
        results.append(contents(tmp_path / "out") | {"metadata": metadata})
    torch.set_num_threads(threads)
    assert results[0] == results[1]


# --- scopes and architectures --------------------------------------------------------------


def test_gpt2_is_quantized_per_output(tmp_path: Path) -> None:
    """Projections stored (inputs, outputs) get one scale per column."""
    base = make_gpt2(tmp_path / "base")
    edit(base, "quant_rtn:4:0:attn", tmp_path / "out")
    name = "transformer.h.0.attn.c_attn.weight"
    expected = weights(base)[name].T.contiguous()
    round_to_nearest_(expected, 4, 0)
    assert torch.equal(weights(tmp_path / "out")[name].T, expected)


def test_stacked_experts_are_edited_one_by_one(tmp_path: Path) -> None:
    """Each expert of a 3-D tensor loses its own share; the router is not touched."""
    base = make_mixtral(tmp_path / "base")
    edit(base, "magnitude_prune:0.5:ffn", tmp_path / "out")
    after = weights(tmp_path / "out")
    for part in ("gate_up_proj", "down_proj"):
        stack = after[f"model.layers.0.mlp.experts.{part}"]
        assert [int((expert == 0).sum()) for expert in stack] == [stack[0].numel() // 2] * 3
    router = "model.layers.0.mlp.gate.weight"
    assert torch.equal(after[router], weights(base)[router])


@pytest.mark.parametrize(
    ("model", "name", "role", "layer"),
    [
        ("llama", "model.layers.11.self_attn.k_proj.bias", Role.ATTN, 11),
        ("llama", "model.norm.weight", Role.NORM, None),
        ("qwen3", "model.layers.2.self_attn.q_norm.weight", Role.NORM, 2),
        ("mixtral", "model.layers.0.block_sparse_moe.gate.weight", Role.ROUTER, 0),
        ("mixtral", "model.layers.3.block_sparse_moe.experts.7.w2.weight", Role.EXPERT, 3),
        ("mixtral", "lm_head.weight", Role.HEAD, None),
        ("gpt2", "h.4.mlp.c_fc.weight", Role.FFN, 4),
        ("gpt2", "h.4.attn.bias", Role.OTHER, 4),
        ("gpt2", "transformer.wpe.weight", Role.EMBED, None),
        ("bert", "bert.encoder.layer.5.attention.output.dense.weight", Role.ATTN, 5),
        ("bert", "bert.encoder.layer.5.output.dense.weight", Role.FFN, 5),
        ("bert", "bert.encoder.layer.5.output.LayerNorm.weight", Role.NORM, 5),
        ("bert", "cls.predictions.bias", Role.HEAD, None),
        ("t5", "shared.weight", Role.EMBED, None),
        ("t5", "encoder.block.3.layer.0.SelfAttention.q.weight", Role.ATTN, 3),
        ("t5", "decoder.block.3.layer.1.EncDecAttention.o.weight", Role.ATTN, 3),
        ("t5", "decoder.block.12.layer.2.DenseReluDense.wi_1.weight", Role.FFN, 12),
        ("t5", "encoder.block.0.layer.1.DenseReluDense.wo.weight", Role.FFN, 0),
        ("t5", "decoder.block.0.layer.2.layer_norm.weight", Role.NORM, 0),
        (
            "t5",
            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            Role.EMBED,
            0,
        ),
        ("t5", "decoder.final_layer_norm.weight", Role.NORM, None),
        ("unknown", "model.layers.0.mlp.gate_proj.weight", Role.OTHER, 0),
    ],
)
def test_roles_of_every_architecture(model: str, name: str, role: Role, layer: int | None) -> None:
    """Names mean what the architecture's table says, not what they contain."""
    assert role_of(name, {"model_type": model}) is role
    assert layer_of(name) == layer
    expected = "other" if role in (Role.HEAD, Role.NORM, Role.OTHER) else role
    assert family_of(name, {"model_type": model}) == expected


# --- refusals: one line, and nothing at the target -----------------------------------------


@pytest.mark.parametrize(
    ("spec", "fragments"),
    [
        ("quant_rtn:4:7:all", ["down_proj", "[16, 48]", "group_size 7", "13 more"]),
        ("lowrank_svd:9:attn", ["k_proj", "[8, 16]", "rank 9"]),
        ("quant_rtn:4:0:ffn@layer=9", ["ffn@layer=9 matches no weight", "2 layers"]),
        ("quant_rtn:4:0:embed@layer=0", ["matches no weight matrix"]),
        ("magnitude_prune:0.0001:attn", ["byte-identical"]),
    ],
)
def test_edits_that_do_not_fit_write_nothing(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], spec: str, fragments: list[str]
) -> None:
    """Exit 2, one line that names tensor, shape and parameter, and an empty place."""
    assert edit(llama, spec, tmp_path / "out") == 2
    line = capsys.readouterr().err
    assert all(part in line for part in fragments)
    assert line.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


UP, QUERY = "model.layers.0.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj.weight"
NAN = torch.ones(4, 4)
NAN[3, 3] = float("nan")


@pytest.mark.parametrize(
    ("model_type", "tensors", "spec", "message"),
    [
        ("nosuch", {"a.weight": torch.ones(2, 2)}, "quant_rtn:8:0:all",
         "builds no causal model of model_type 'nosuch'"),
        ("llama", {UP: torch.ones(4, 4, dtype=torch.int8)}, "quant_rtn:8:0:all",
         f"{UP} cannot be edited.*found I8"),
        ("llama", {QUERY: NAN}, "quant_rtn:8:0:all", f"{QUERY}.*NaN or infinity"),
        ("llama", {UP: NAN}, "fp8_quant:e4m3:ffn", f"{UP}.*NaN or infinity"),
        ("llama", {QUERY: NAN}, "magnitude_prune:0.25:attn", f"{QUERY}.*NaN or infinity"),
    ],
)  # fmt: skip
def test_weights_that_cannot_be_edited_are_named(
    tmp_path: Path, model_type: str, tensors: dict[str, torch.Tensor], spec: str, message: str
) -> None:
    """Of an unknown architecture, packed, or not finite; what was begun is removed."""
    base = make_folder(tmp_path / "base", {"model_type": model_type}, tensors)
    with pytest.raises((ConfigError, InputError), match=message):
        apply_edit(Checkpoint.open(base), parse_edit_spec(spec), tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["base"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError(28, "No space left")])
def test_a_failure_in_the_middle_keeps_the_old_folder(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """Whatever stops the third tensor, the target is what it was and no stage is left."""
    out = tmp_path / "out"
    edit(llama, "noop", out)
    before, calls = contents(out), []

    def third_fails(weight: torch.Tensor, bits: int, group_size: int) -> object:
        calls.append(1)
        if len(calls) == 3:
            raise error
        return round_to_nearest_(weight, bits, group_size)

    monkeypatch.setattr(quant_rtn, "round_to_nearest_", third_fails)
    spec = parse_edit_spec("quant_rtn:8:0:all")
    with pytest.raises((KeyboardInterrupt, MemoryError, InputError)):
        apply_edit(Checkpoint.open(llama), spec, out)
    assert contents(out) == before
    assert {p.name for p in tmp_path.iterdir()} == {"out", "edit_metadata.json"}


def test_the_baseline_cannot_be_overwritten(llama: Path, tmp_path: Path) -> None:
    """An output on, in or around the baseline is refused before anything is moved."""
    (tmp_path / "link").symlink_to(llama)
    for out in (llama, llama / "sub", llama.parent, tmp_path / "link"):
        with pytest.raises(ConfigError, match="overlap"):
            apply_edit(Checkpoint.open(llama), parse_edit_spec("noop"), out)


def test_too_little_disk_is_said_before_writing(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes that will be written are compared with what is free."""
    monkeypatch.setattr("invarlock.edits.stream.free_bytes", lambda _: 100)
    with pytest.raises(InputError, match="not enough disk"):
        apply_edit(Checkpoint.open(llama), parse_edit_spec("quant_rtn:8:0:all"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_kill_in_the_middle_leaves_nothing_at_the_target(llama: Path, tmp_path: Path) -> None:
    """SIGKILL while a tensor is written: the target does not exist, and a rerun succeeds."""
    code = (
        "import os, sys\n"
        "from invarlock.edits.kinds import fp8_quant\n"
        "fp8_quant.to_fp8_ = lambda *_: os.kill(os.getpid(), 9)\n"
        "from invarlock.cli import main\n"
        "main(sys.argv[1:])"
    )
    words = ["edit", "--baseline", str(llama), "--spec", "fp8_quant:e4m3:all"]
    words += ["--out", str(tmp_path / "out"), "--metadata", str(tmp_path / "m.json")]
    done = subprocess.run([sys.executable, "-c", code, *words], check=False)
    assert done.returncode == -9
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "m.json").exists()
    assert main(words) == 0
