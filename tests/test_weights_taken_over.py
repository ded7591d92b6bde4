"""Statistics of weights that are the baseline's: taken from its report, equal to measured ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_factory import make_gpt2, make_llama, make_mixtral, weights, write_weights

from invarlock.alignment import align
from invarlock.checkpoints import Checkpoint
from invarlock.guards.operators import Known, Weights, measure_weights
from invarlock.guards.spectral import (
    from_table,
    operators_from_table,
    operators_to_table,
    to_table,
)

BLOCK = "model.layers.1."  # there is a tenth block, whose name begins alike
FIRST = "model.layers.0.mlp.up_proj.weight"
Tensors = dict[str, torch.Tensor]


def recorded(weights: Weights) -> list[dict[str, list[Any]]]:
    """As a report holds it."""
    return [to_table(weights.modules), operators_to_table(weights.operators)]


def known(folder: Path) -> Known:
    """A baseline with what its report holds."""
    checkpoint = Checkpoint.open(folder)
    modules, operators = recorded(measure_weights(checkpoint, "cpu"))
    return Known(checkpoint, Weights(from_table(modules), operators_from_table(operators)))


def wrong(baseline: Known) -> Known:
    """The same with other numbers in the first block, so that one sees where they come from."""

    def other(one: Any) -> Any:
        more = one.stats._replace(sigma_max=one.stats.sigma_max + 1)
        return one._replace(stats=more) if ".0." in one.name else one

    modules, operators = baseline.weights
    changed = Weights([*map(other, modules)], [*map(other, operators)])
    return baseline._replace(weights=changed)


def rewrite(folder: Path, edit: Callable[[Tensors], object]) -> None:
    """Change tensors of a folder."""
    tensors = weights(folder)
    edit(tensors)
    write_weights(folder, tensors)


def scaled(name: str) -> Callable[[Tensors], None]:
    """An edit of one tensor that keeps its direction out of reach of rounding."""

    def edit(tensors: Tensors) -> None:
        tensors[name][0] *= 3

    return edit


def of_llama(folder: Path) -> Path:
    """Eleven blocks, untied."""
    return make_llama(folder, layers=11, tied=False)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (of_llama, f"{BLOCK}mlp.down_proj.weight"),
        (of_llama, f"{BLOCK}self_attn.k_proj.weight"),
        (of_llama, f"{BLOCK}input_layernorm.weight"),
        (of_llama, "model.embed_tokens.weight"),
        (of_llama, "model.norm.weight"),
        (of_llama, "lm_head.weight"),
        (make_gpt2, "transformer.h.1.mlp.c_fc.weight"),
        (make_mixtral, "model.layers.0.mlp.experts.down_proj"),
        (make_mixtral, "model.layers.0.mlp.gate.weight"),
    ],
)
def test_what_is_recorded_is_what_measuring_all_would_record(
    make: Callable[[Path], Path], name: str, tmp_path: Path
) -> None:
    """Wherever the edit is: in a block, in front of all, behind all."""
    baseline = known(make(tmp_path / "baseline"))
    subject = make(tmp_path / "subject")
    rewrite(subject, scaled(name))
    mine = Checkpoint.open(subject)
    whole = recorded(measure_weights(mine, "cpu"))
    assert whole != recorded(baseline.weights)
    assert recorded(measure_weights(mine, "cpu", baseline)) == whole


def test_unchanged_blocks_are_taken_over(tmp_path: Path) -> None:
    """And only those."""
    baseline = wrong(known(of_llama(tmp_path / "baseline")))
    rewrite(subject := of_llama(tmp_path / "subject"), scaled(f"{BLOCK}mlp.up_proj.weight"))
    found = {m.name: m for m in measure_weights(Checkpoint.open(subject), "cpu", baseline).modules}
    before = {m.name: m for m in baseline.weights.modules}
    own = {name for name in found if found[name] != before[name]}
    assert f"{BLOCK}mlp.up_proj.weight" in own
    assert all(name.startswith(BLOCK) for name in own)


@pytest.mark.parametrize("what", ["nothing", "config", "embedding", "tensor"])
def test_all_is_measured(what: str, tmp_path: Path) -> None:
    """Of the control; where the configuration gives weights another meaning; where what all blocks
    share has changed; where tensors are there on one side only."""
    baseline = wrong(known(of_llama(tmp_path / "baseline")))
    subject = of_llama(tmp_path / "subject")
    if what == "embedding":
        rewrite(subject, scaled("model.embed_tokens.weight"))
    elif what == "tensor":
        rewrite(subject, lambda tensors: tensors.pop(f"{BLOCK}mlp.up_proj.weight"))
    elif what == "config":
        rewrite(subject, scaled(f"{BLOCK}mlp.up_proj.weight"))
        config = json.loads((subject / "config.json").read_text())
        config |= {"num_attention_heads": 4, "head_dim": 4, "num_key_value_heads": 2}
        (subject / "config.json").write_text(json.dumps(config))
    mine = Checkpoint.open(subject)
    found = measure_weights(mine, "cpu", baseline)
    assert recorded(found) == recorded(measure_weights(mine, "cpu"))
    assert {m.name: m for m in found.modules}[FIRST] not in baseline.weights.modules


def test_a_subject_in_other_names_is_compared_under_the_baselines(tmp_path: Path) -> None:
    """Digests taken under the file's names belong to the same bytes under the baseline's."""
    baseline = known(of_llama(tmp_path / "baseline"))
    subject = of_llama(tmp_path / "subject")

    def renamed(tensors: Tensors) -> None:
        tensors[f"{BLOCK}mlp.up_proj.weight"] *= 3
        moved = {name.removeprefix("model."): tensors.pop(name) for name in list(tensors)}
        tensors.update(moved)

    rewrite(subject, renamed)
    given = Checkpoint.open(subject)
    given.digest()
    mine = align(baseline.checkpoint, given).subject
    assert mine.tensors.keys() == baseline.checkpoint.tensors.keys()
    whole = recorded(measure_weights(mine, "cpu"))
    assert recorded(measure_weights(mine, "cpu", baseline)) == whole
    plain = Checkpoint.open(tmp_path / "baseline")
    same = {n for n in mine.tensors if mine.tensor_digest(n) == plain.tensor_digest(n)}
    assert {*mine.tensors} - same == {f"{BLOCK}mlp.up_proj.weight"}
