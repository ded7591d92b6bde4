"""What leaves the function alone leaves the statistics alone by which guards block."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import pytest
import torch
from architecture_factory import make_architecture
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transforms import WEIGHTS, Model, transforms_of

from invarlock.checkpoints import Checkpoint
from invarlock.guards import operators, rmt
from invarlock.guards.operators import MATRIX, Operator, OperatorStats, measure_weights
from invarlock.guards.representation import GramProbe, distance
from invarlock.guards.row_changes import measure_rows
from invarlock.guards.spectral import change, judge
from invarlock.policy import load_policy

# grouped heads, tied or not; biases of q, k, v; norms on q and k; both spellings of experts; Conv1D
MODELS = (
    "llama", "llama-untied", "mistral", "yi", "qwen2", "qwen3", "qwen3-untied", "mixtral",
    "mixtral-fused", "gpt2", "gpt2-untied",
)  # fmt: skip
# float32 of the guard, and the residual at which its iteration ends, squared
ROUNDING = 2e-4
# of the largest logit: transformers computes RMSNorm in float32 whatever the model's dtype
LOGITS = 2e-5
# of a Gram distance, whose sketch is kept in float16
GRAM = 2e-3
BALANCED = load_policy("balanced")
POLICY = BALANCED.spectral
IDS = torch.arange(24).reshape(2, 12) * 13 % 320


@dataclass
class Baseline:
    """A tiny model with what its transforms must not move."""

    folder: Path

    @cached_property
    def operators(self) -> list[Operator]:
        """What the guard judges."""
        return measure_weights(Checkpoint.open(self.folder), "cpu").operators

    @cached_property
    def seen(self) -> Seen:
        """What the model computes."""
        return watched(self.folder)


@dataclass
class Seen:
    """A forward pass, and what the guards that watch it saw."""

    logits: torch.Tensor  # without their mean over the vocabulary, which no probability sees
    activations: list[rmt.Activation]
    grams: GramProbe


def watched(folder: Path) -> Seen:
    """A pass in float64."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float64, experts_implementation="eager"
    ).eval()
    config = json.loads((folder / "config.json").read_text())
    edges, grams = rmt.ActivationProbe(), GramProbe()
    at = model, config, len(IDS)
    with torch.no_grad(), edges.watching(*at), grams.watching(*at):
        logits = model(IDS).logits
    return Seen(logits - logits.mean(dim=-1, keepdim=True), edges.activations, grams)


@cache
def baseline(name: str) -> Baseline:
    """A model of the architecture factory in float64, with norms that round nothing off."""
    root = Path(tempfile.mkdtemp(prefix="transforms"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    architecture = name if name == "qwen3-untied" else name.removesuffix("-untied")
    folder = make_architecture(architecture, root / "made")
    out = root / "baseline"
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns("*.safetensors*"))
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    random = torch.Generator().manual_seed(3)
    for key, tensor in tensors.items():
        wide = tensor.double()
        if key.endswith(".bias") and wide.dim() == 1:  # the factory's are about 1
            wide = 0.3 * torch.randn(wide.shape, generator=random, dtype=torch.float64)
        tensors[key] = wide
    save_file(tensors, out / WEIGHTS, {"format": "pt"})
    config = json.loads((out / "config.json").read_text())
    config |= {"dtype": "float64"}
    config |= {key: 1e-14 for key in ("rms_norm_eps", "layer_norm_epsilon") if key in config}
    (out / "config.json").write_text(json.dumps(config))
    if name != architecture:
        model = Model(out)
        model.untie()
        model.write()
    return Baseline(out)


def transformed(base: Baseline, names: list[str], seed: int, out: Path) -> Path:
    """The baseline after these transforms, in a new folder."""
    shutil.copytree(base.folder, out)
    model = Model(out)
    random = torch.Generator().manual_seed(seed)
    for name in names:
        transforms_of(model)[name](model, random)
    model.write()
    return out


def moved(before: OperatorStats, after: OperatorStats) -> float:
    """How far the numbers moved that can block."""
    ratios = [a / b for a, b in zip(after, before, strict=True) if b]
    return max([abs(change(before, after)), *(abs(ratio - 1) for ratio in ratios)])


def require_silent(
    base: Baseline, subject: Path, logits: float = LOGITS, gram: float = GRAM
) -> None:
    """Logits and every number that can block moved by rounding only, and nothing blocks."""
    now = watched(subject)
    far = (now.logits - base.seen.logits).abs().max() / base.seen.logits.abs().max()
    assert float(far) < logits
    require_equal_activations(base.seen, now, gram)
    after = measure_weights(Checkpoint.open(subject), "cpu").operators
    assert [o.name for o in after] == [o.name for o in base.operators]
    off = {b.name: moved(b.stats, s.stats) for b, s in zip(base.operators, after, strict=True)}
    assert max(off.values()) < ROUNDING, max(off.items(), key=lambda item: item[1])
    tables = measure_rows(Checkpoint.open(base.folder), Checkpoint.open(subject))
    block = judge(base.operators, after, POLICY, tables)
    assert (block["passed"], block["decision"]) == (True, "allow"), block["violations"]


def require_equal_activations(before: Seen, now: Seen, gram: float) -> None:
    """Edge risks and Gram matrices of both passes are the same, and neither guard blocks."""
    edges = {a.name: a for a in before.activations}
    assert sorted(edges) == [a.name for a in now.activations]
    off = {a.name: abs(a.edge / edges[a.name].edge - 1) for a in now.activations}
    assert max(off.values()) < ROUNDING, max(off.items(), key=lambda item: item[1])
    assert {"attn", "embed", "other"} < {a.family for a in now.activations}
    found = rmt.judge(before.activations, now.activations, BALANCED.rmt)
    assert (found["passed"], found["decision"]) == (True, "allow"), found["epsilon_violations"]
    kept = before.grams.arrays()
    far = {key: distance(kept[key], after) for key, after in now.grams.arrays().items()}
    assert far.keys() == kept.keys()
    assert max(far.values()) < gram, max(far.items(), key=lambda item: item[1])


CASES = [(name, one) for name in MODELS for one in transforms_of(Model(baseline(name).folder))]


@pytest.mark.parametrize(("name", "transform"), CASES)
def test_each_transform_leaves_everything_alone_that_can_block(name, transform, tmp_path):
    """One transform: everything that can block moves by rounding, and the weights do move."""
    base = baseline(name)
    subject = transformed(base, [transform], 11, tmp_path / "subject")
    before, after = load_file(base.folder / WEIGHTS), load_file(subject / WEIGHTS)
    assert any(not torch.equal(before[key], after[key]) for key in before)
    require_silent(base, subject)


@pytest.mark.parametrize("name", MODELS)
@settings(
    max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_composed_transforms_leave_everything_alone_that_can_block(name, data):
    """Any composition: every statistic that can block moves by rounding, and the guards pass."""
    base = baseline(name)
    known = sorted(transforms_of(Model(base.folder)))
    names = data.draw(st.lists(st.sampled_from(known), min_size=2, max_size=6))
    seed = data.draw(st.integers(0, 2**32 - 1))
    with tempfile.TemporaryDirectory() as folder:
        subject = transformed(base, names, seed, Path(folder) / "subject")
        require_silent(base, subject)


@pytest.mark.parametrize("name", MODELS)
def test_every_matrix_belongs_to_an_operator(name):
    """No matrix of a known architecture is judged by its rank alone."""
    rest = [o.name for o in baseline(name).operators if o.kind == MATRIX]
    assert rest == []


@pytest.mark.parametrize("name", ["llama-untied", "mixtral"])
def test_nothing_blocks_where_the_wiring_is_not_known(name, monkeypatch, tmp_path):
    """Matrices of their own move by a lot, and none becomes zero or of rank one by a transform."""
    base = baseline(name)
    subject = transformed(base, sorted(transforms_of(Model(base.folder))), 17, tmp_path / "subject")
    monkeypatch.setattr(operators, "wiring_of", lambda config: None)
    before, after = (measure_weights(Checkpoint.open(f), "cpu").operators
                     for f in (base.folder, subject))  # fmt: skip
    assert {o.kind for o in before} == {MATRIX}
    assert max(abs(change(b.stats, s.stats)) for b, s in zip(before, after, strict=True)) > 0.1
    tables = measure_rows(Checkpoint.open(base.folder), Checkpoint.open(subject))
    block = judge(before, after, POLICY, tables)
    assert (block["passed"], block["caps_applied"]) == (True, 0), block["violations"]


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "mixtral"])
def test_a_scaled_part_moves_an_operator(name, tmp_path):
    """Half as much again of one part of one layer is no change of parametrization, and shows; but
    for queries and keys in front of a norm, which takes it away."""
    base = baseline(name)
    made = Model(base.folder)
    expert = 1 if made.experts else None
    parts = [(part, None) for part in "qkvo"]
    parts += [(part, expert) for part in (("up", "down") if made.gpt2 else ("gate", "up", "down"))]
    for part, place in parts:
        folder = tmp_path / part
        shutil.copytree(base.folder, folder)
        model = Model(folder)
        model.put(1, part, 1.5 * model.get(1, part, place), place)
        model.write()
        after = measure_weights(Checkpoint.open(folder), "cpu").operators
        off = max(moved(b.stats, s.stats) for b, s in zip(base.operators, after, strict=True))
        hidden = part in "qk" and made.head_norms
        assert (off < ROUNDING) if hidden else (off > 0.05), (part, off)


def test_the_real_model_is_left_alone_too(smollm2, tmp_path):
    """SmolLM2 stored as float32: folds, turned heads and all orders changed at once."""
    plain, turned = tmp_path / "plain", tmp_path / "turned"
    for folder in (plain, turned):
        shutil.copytree(smollm2, folder)
        model = Model(folder)
        model.config["dtype"] = "float32"
        model.tensors = {name: tensor.double() for name, tensor in model.tensors.items()}
        if folder is turned:
            random, known = torch.Generator().manual_seed(5), transforms_of(model)
            # its norms add 1e-5 before the root, which a scaled stream would feel
            for name in sorted(known.keys() - {"stream_scaled"}):
                known[name](model, random)
        model.tensors = {name: tensor.float() for name, tensor in model.tensors.items()}
        model.write()
    # what was stored as float32 is not quite the same function
    require_silent(Baseline(plain), turned, logits=1e-3, gram=0.01)


@pytest.mark.parametrize("value", [2.6e37, 3e38])
@pytest.mark.parametrize(
    ("name", "tensor"),
    [("llama", "mlp.up_proj"), ("llama", "self_attn.v_proj"), ("qwen3", "self_attn.k_proj")],
)
def test_a_flipped_exponent_is_found_wherever_it_is(name, tensor, value, tmp_path):
    """The value is finite, and its square is not in float32."""
    folder = make_architecture(name, tmp_path / "made")
    before = measure_weights(Checkpoint.open(folder), "cpu").operators
    file = next(f for f in sorted(folder.glob("*.safetensors")))
    tensors = load_file(file)
    hit = next(key for key in tensors if f"{tensor}.weight" in key)
    tensors[hit].view(-1)[7] = value
    save_file(tensors, file, {"format": "pt"})
    after = measure_weights(Checkpoint.open(folder), "cpu").operators
    assert judge(before, after, POLICY)["decision"] == "block"
