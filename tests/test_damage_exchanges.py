"""Heads, norms, projections and settings that change places: exactly that, and nothing beside."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from checkpoint_factory import make_gpt2, make_varied_llama, weights

from invarlock.checkpoints import Checkpoint
from invarlock.damage.inject import Injected, error_metadata, inject
from invarlock.damage.specs import parse_damage
from invarlock.errors import ConfigError
from invarlock.guards.invariants import check_checkpoint

LAYER = "model.layers.{}.{}.weight"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose heads and norms all differ."""
    return make_varied_llama(tmp_path_factory.mktemp("base") / "model")


def injected(base: Path, out: Path, error_type: str, **parameters: object) -> Injected:
    """Inject with parameters over the defaults; its metadata must be valid."""
    baseline = Checkpoint.open(base)
    done = inject(baseline, parse_damage(error_type, parameters), out, seed=5)
    error_metadata(baseline, done)
    return done


def changed(before: Path, after: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The tensors that differ: old and new."""
    old, new = weights(before), weights(after)
    assert old.keys() == new.keys()
    return {n: (old[n], new[n]) for n in old if not torch.equal(old[n], new[n])}


def heads(matrix: torch.Tensor, folder: Path) -> list[torch.Tensor]:
    """The key and value heads of a projection."""
    config = json.loads((folder / "config.json").read_text())
    return list(matrix.chunk(config["num_key_value_heads"]))


def test_value_heads_move_on_by_one(llama: Path, tmp_path: Path) -> None:
    """Of one layer, two thirds down; as often as there are heads gives the baseline again."""
    injected(llama, tmp_path / "1", "value_heads_shifted")
    ((name, (old, new)),) = changed(llama, tmp_path / "1").items()
    assert name == LAYER.format(2, "self_attn.v_proj")
    before = heads(old, llama)
    assert len(before) > 1
    expected = [before[-1], *before[:-1]]
    assert all(torch.equal(a, b) for a, b in zip(heads(new, llama), expected, strict=True))
    for turn in range(2, len(before) + 1):
        injected(tmp_path / f"{turn - 1}", tmp_path / f"{turn}", "value_heads_shifted")
    assert not changed(llama, tmp_path / f"{len(before)}")


def test_one_head_is_overwritten_in_keys_and_values(llama: Path, tmp_path: Path) -> None:
    """Head 1 is head 0, every other head stays."""
    injected(llama, tmp_path / "out", "kv_head_copied", layer=0)
    differing = changed(llama, tmp_path / "out")
    assert set(differing) == {LAYER.format(0, f"self_attn.{p}_proj") for p in "kv"}
    for old, new in differing.values():
        before, after = heads(old, llama), heads(new, llama)
        expected = [before[0], before[0], *before[2:]]
        assert all(torch.equal(a, b) for a, b in zip(after, expected, strict=True))


def test_gate_and_up_are_exchanged(llama: Path, tmp_path: Path) -> None:
    """Each has the other's values."""
    injected(llama, tmp_path / "out", "gate_up_exchanged", layer=1)
    differing = changed(llama, tmp_path / "out")
    gate, up = (differing[LAYER.format(1, f"mlp.{p}_proj")] for p in ("gate", "up"))
    assert len(differing) == 2
    assert torch.equal(gate[1], up[0])
    assert torch.equal(up[1], gate[0])


def test_a_norm_comes_from_another_layer(llama: Path, tmp_path: Path) -> None:
    """That of the last layer is the first one's."""
    injected(llama, tmp_path / "out", "norm_of_another_layer")
    ((name, (_, new)),) = changed(llama, tmp_path / "out").items()
    assert name == LAYER.format(2, "post_attention_layernorm")
    assert torch.equal(new, weights(llama)[LAYER.format(0, "post_attention_layernorm")])


@pytest.mark.parametrize("pairs", [1, 3])
def test_pairs_of_neurons_are_exchanged_in_every_layer(
    llama: Path, tmp_path: Path, pairs: int
) -> None:
    """The first rows of the up projection change places two by two."""
    injected(llama, tmp_path / "out", "neuron_pairs_exchanged", pairs=pairs)
    differing = changed(llama, tmp_path / "out")
    assert set(differing) == {LAYER.format(i, "mlp.up_proj") for i in range(3)}
    for old, new in differing.values():
        order = [i ^ 1 for i in range(2 * pairs)]
        assert torch.equal(new[: 2 * pairs], old[order])
        assert torch.equal(new[2 * pairs :], old[2 * pairs :])


def test_neurons_that_are_stored_as_columns(tmp_path: Path) -> None:
    """GPT-2 keeps (inputs, outputs)."""
    base = make_gpt2(tmp_path / "base")
    injected(base, tmp_path / "out", "neuron_pairs_exchanged")
    for old, new in changed(base, tmp_path / "out").values():
        assert torch.equal(new[:, :2], old[:, [1, 0]])
        assert torch.equal(new[:, 2:], old[:, 2:])


def test_a_long_context_is_cut(llama: Path, tmp_path: Path) -> None:
    """In the configuration alone, and the invariants name both members."""
    injected(llama, tmp_path / "out", "long_context_setting", cut=2)
    before, after = (json.loads((f / "config.json").read_text()) for f in (llama, tmp_path / "out"))
    assert after.pop("rope_scaling") == {"rope_type": "dynamic", "factor": 4.0}
    assert after.pop("max_position_embeddings") == before.pop("max_position_embeddings") // 2
    before.pop("rope_scaling", None)
    assert after == before
    assert not changed(llama, tmp_path / "out")
    found = check_checkpoint(Checkpoint.open(llama), Checkpoint.open(tmp_path / "out"))
    told = " ".join(f["message"] for f in found if f["severity"] == "fatal")
    assert "dynamic" in told
    assert "max_position_embeddings" in told


@pytest.mark.parametrize("place", ["tokenizer_config.json", "chat_template.jinja"])
def test_a_chat_template_is_lost(llama: Path, tmp_path: Path, place: str) -> None:
    """Wherever it stands; the invariants find that it is gone."""
    base = shutil.copytree(llama, tmp_path / "base")
    (base / "chat_template.jinja").unlink()
    if place.endswith(".jinja"):
        (base / place).write_text("{{ messages }}")
    else:
        (base / place).write_text(json.dumps({"chat_template": "{{ messages }}", "kept": 1}))
    done = injected(base, tmp_path / "out", "chat_template_lost")
    assert done.subject.digest != Checkpoint.open(base).digest()
    if place.endswith(".jinja"):
        assert not (tmp_path / "out" / place).exists()
    else:
        assert json.loads((tmp_path / "out" / place).read_text()) == {"kept": 1}
    found = check_checkpoint(Checkpoint.open(base), Checkpoint.open(tmp_path / "out"))
    assert [f for f in found if f["severity"] == "fatal" and "chat template" in f["message"]]


def test_an_edit_that_was_never_applied(llama: Path, tmp_path: Path) -> None:
    """No weight differs, and the checkpoint is another one all the same."""
    done = injected(llama, tmp_path / "out", "nothing_edited")
    assert not changed(llama, tmp_path / "out")
    assert done.subject.digest != Checkpoint.open(llama).digest()


@pytest.mark.parametrize(
    ("error_type", "parameters", "message"),
    [
        ("long_context_setting", {"cut": 2**20}, "context cannot be cut"),
        ("neuron_pairs_exchanged", {"pairs": 10**6}, "pairs cannot be exchanged"),
        ("value_heads_shifted", {"layer": 9}, "no layer 9"),
        ("norm_of_another_layer", {"other": 9}, "layer 9 has no norm"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    llama: Path, tmp_path: Path, error_type: str, parameters: dict[str, object], message: str
) -> None:
    """Nothing is written."""
    with pytest.raises(ConfigError, match=message):
        injected(llama, tmp_path / "out", error_type, **parameters)
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_chat_template_cannot_lose_it(tmp_path: Path) -> None:
    """The line says where one would stand."""
    with pytest.raises(ConfigError, match=r"no chat template; expected .*tokenizer_config"):
        injected(make_gpt2(tmp_path / "base"), tmp_path / "out", "chat_template_lost")
    assert not (tmp_path / "out").exists()
