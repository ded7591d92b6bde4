"""Transforms of a causal model's weights that leave its function alone, for any block type.

Each takes a :class:`Model`, which is changed in place, and a generator. What is done follows from
the formulas of the block, written down here by hand: the guards know none of it. All arithmetic is
that of the tensors' dtype, float64 in the tests, so that logits move by rounding only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Random = torch.Generator
WEIGHTS = "model.safetensors"


@dataclass
class Model:
    """The tensors and configuration of a checkpoint folder in one file."""

    folder: Path
    config: dict[str, Any] = field(init=False)
    tensors: dict[str, torch.Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.config = json.loads((self.folder / "config.json").read_text())
        self.tensors = load_file(self.folder / WEIGHTS)
        c = self.config
        self.gpt2 = c["model_type"] == "gpt2"
        self.layers = c["n_layer" if self.gpt2 else "num_hidden_layers"]
        self.hidden = c["n_embd" if self.gpt2 else "hidden_size"]
        self.heads = c["n_head" if self.gpt2 else "num_attention_heads"]
        self.kv_heads = c.get("num_key_value_heads") or self.heads
        self.dim = c.get("head_dim") or self.hidden // self.heads
        self.experts = c.get("num_local_experts", 0)
        self.head_norms = "model.layers.0.self_attn.q_norm.weight" in self.tensors
        self.embedding = "wte.weight" if self.gpt2 else "model.embed_tokens.weight"
        self.last_norm = "ln_f" if self.gpt2 else "model.norm"

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding."""
        return "lm_head.weight" not in self.tensors

    def untie(self) -> None:
        """Give the model a head of its own, equal to the embedding."""
        if self.tied:
            self.tensors["lm_head.weight"] = self.tensors[self.embedding].clone()
        self.config["tie_word_embeddings"] = False

    def write(self) -> None:
        """Write tensors and configuration into the folder."""
        (self.folder / "config.json").write_text(json.dumps(self.config))
        kept = {name: tensor.contiguous().clone() for name, tensor in self.tensors.items()}
        save_file(kept, self.folder / WEIGHTS, {"format": "pt"})

    # --- parts: (outputs, inputs) each, whatever the file's shape -----------------------------

    def _place(self, layer: int, part: str) -> tuple[str, int | None]:
        """Name before ".weight" of a dense part, and its third of a fused matrix."""
        if self.gpt2:
            names = {"q": "attn.c_attn", "k": "attn.c_attn", "v": "attn.c_attn",
                     "o": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj"}  # fmt: skip
            return f"h.{layer}.{names[part]}", "qkv".find(part) if part in "qkv" else None
        stem = "self_attn" if part in "qkvo" else "mlp"
        return f"model.layers.{layer}.{stem}.{part}_proj", None

    def _expert(self, layer: int, part: str, expert: int) -> tuple[str, int | slice | None]:
        """Name of an expert's matrix, and its place in a fused tensor."""
        stem = f"model.layers.{layer}.block_sparse_moe.experts.{expert}."
        number = {"gate": "1", "up": "3", "down": "2"}[part]
        if stem + "w1.weight" in self.tensors:
            return f"{stem}w{number}.weight", None
        return f"model.layers.{layer}.mlp.experts.{'down' if part == 'down' else 'gate_up'}_proj", 0

    def get(self, layer: int, part: str, expert: int | None = None) -> torch.Tensor:
        """A copy of a matrix, (outputs, inputs)."""
        if expert is not None:
            name, fused = self._expert(layer, part, expert)
            tensor = self.tensors[name]
            if fused is None:
                return tensor.clone()
            matrix = tensor[expert]
            half = len(matrix) // 2
            return {"gate": matrix[:half], "up": matrix[half:], "down": matrix}[part].clone()
        name, third = self._place(layer, part)
        weight = self.tensors[name + ".weight"]
        weight = weight.T if self.gpt2 else weight
        return (weight if third is None else weight.chunk(3)[third]).clone()

    def put(self, layer: int, part: str, value: torch.Tensor, expert: int | None = None) -> None:
        """Replace a matrix."""
        if expert is not None:
            name, fused = self._expert(layer, part, expert)
            if fused is None:
                self.tensors[name] = value
                return
            matrix = self.tensors[name][expert]
            half = len(matrix) // 2
            {"gate": matrix[:half], "up": matrix[half:], "down": matrix}[part].copy_(value)
            return
        name, third = self._place(layer, part)
        if third is not None:
            thirds = list(self.tensors[name + ".weight"].T.chunk(3))
            thirds[third] = value
            value = torch.cat(thirds)
        self.tensors[name + ".weight"] = value.T.clone() if self.gpt2 else value

    def bias(self, layer: int, part: str) -> torch.Tensor | None:
        """A bias, to be changed in place; None where there is none."""
        name, third = self._place(layer, part)
        found = self.tensors.get(name + ".bias")
        return found if found is None or third is None else found.chunk(3)[third]

    def norm(self, layer: int, which: str) -> str:
        """Name before ".weight" of the norm in front of attention or feed-forward."""
        if self.gpt2:
            return f"h.{layer}.ln_{1 if which == 'attn' else 2}"
        return f"model.layers.{layer}.{'input' if which == 'attn' else 'post_attention'}_layernorm"

    def router(self, layer: int) -> str:
        """Name of a router's matrix."""
        old = f"model.layers.{layer}.block_sparse_moe.gate.weight"
        return old if old in self.tensors else f"model.layers.{layer}.mlp.gate.weight"

    def blocks(self) -> Iterator[tuple[int, int | None]]:
        """Layer and expert of every feed-forward block."""
        for layer in range(self.layers):
            yield from ((layer, e) for e in (range(self.experts) if self.experts else (None,)))

    def read_by(
        self, which: str, layer: int, change: Callable[[torch.Tensor], torch.Tensor]
    ) -> None:
        """Change every matrix behind a norm."""
        if which == "attn":
            for part in "qkv":
                self.put(layer, part, change(self.get(layer, part)))
            return
        for at, expert in self.blocks():
            if at == layer:
                for part in ("up",) if self.gpt2 else ("gate", "up"):
                    self.put(layer, part, change(self.get(layer, part, expert)), expert)
        if self.experts:
            self.tensors[self.router(layer)] = change(self.tensors[self.router(layer)])

    def written(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Change every matrix, bias and table that writes into the stream; columns are vectors."""
        for layer in range(self.layers):
            self.put(layer, "o", change(self.get(layer, "o")))
        for layer, expert in self.blocks():
            self.put(layer, "down", change(self.get(layer, "down", expert)), expert)
        for layer in range(self.layers) if self.gpt2 else ():
            for part in ("o", "down"):
                bias = self.bias(layer, part)
                assert bias is not None
                bias.copy_(change(bias[:, None])[:, 0])
        for name in (self.embedding, *(("wpe.weight",) if self.gpt2 else ())):
            self.tensors[name] = change(self.tensors[name].T).T.clone()


Transform = Callable[[Model, Random], None]


def _normal(random: Random, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=random, dtype=torch.float64)


def _scales(random: Random, count: int) -> torch.Tensor:
    """Positive factors around 1, most within a half and two."""
    return torch.exp(0.4 * _normal(random, count))


def _signed(random: Random, count: int) -> torch.Tensor:
    return _scales(random, count) * _normal(random, count).sign()


def _rotation(random: Random, count: int) -> torch.Tensor:
    return torch.linalg.qr(_normal(random, count, count)).Q


def _order(random: Random, count: int) -> torch.Tensor:
    return torch.randperm(count, generator=random)


# --- norms -------------------------------------------------------------------------------------


def _scale_norm(m: Model, name: str, scale: torch.Tensor) -> None:
    m.tensors[name + ".weight"] = m.tensors[name + ".weight"] / scale
    if m.gpt2:
        m.tensors[name + ".bias"] = m.tensors[name + ".bias"] / scale


def norms_scaled(m: Model, random: Random) -> None:
    """Norm / s and the columns behind it * s (SmoothQuant, AWQ), of either sign."""
    for layer in range(m.layers):
        for which in ("attn", "ffn"):
            scale = _signed(random, m.hidden)
            _scale_norm(m, m.norm(layer, which), scale)
            m.read_by(which, layer, lambda w, s=scale: w * s)
    if not m.tied:
        scale = _signed(random, m.hidden)
        _scale_norm(m, m.last_norm, scale)
        m.tensors["lm_head.weight"] = m.tensors["lm_head.weight"] * scale


def norms_fused(m: Model, random: Random) -> None:
    """All norm weights one, and their biases none, but for the last of a tied model."""
    for layer in range(m.layers):
        for which in ("attn", "ffn"):
            name = m.norm(layer, which)
            if m.gpt2:
                shift = m.tensors[name + ".bias"]
                for part in "qkv" if which == "attn" else ("up",):
                    bias = m.bias(layer, part)
                    assert bias is not None
                    bias.add_(m.get(layer, part) @ shift)
                m.tensors[name + ".bias"] = torch.zeros_like(shift)
            scale = m.tensors[name + ".weight"]
            m.tensors[name + ".weight"] = torch.ones_like(scale)
            m.read_by(which, layer, lambda w, s=scale: w * s)
    if not m.tied:
        scale = m.tensors[m.last_norm + ".weight"]
        _scale_norm(m, m.last_norm, scale)
        m.tensors["lm_head.weight"] = m.tensors["lm_head.weight"] * scale


# --- inside a block ----------------------------------------------------------------------------


def up_and_down_scaled(m: Model, random: Random) -> None:
    """Rows of up * s and columns of down / s, of either sign, in gated blocks."""
    for layer, expert in m.blocks():
        scale = _signed(random, m.get(layer, "up", expert).shape[0])
        m.put(layer, "up", m.get(layer, "up", expert) * scale[:, None], expert)
        m.put(layer, "down", m.get(layer, "down", expert) / scale, expert)


def neurons_permuted(m: Model, random: Random) -> None:
    """The neurons of every feed-forward block in another order."""
    for layer, expert in m.blocks():
        order = _order(random, m.get(layer, "up", expert).shape[0])
        for part in ("up",) if m.gpt2 else ("gate", "up"):
            m.put(layer, part, m.get(layer, part, expert)[order], expert)
        if m.gpt2:
            bias = m.bias(layer, "up")
            assert bias is not None
            bias.copy_(bias[order].clone())
        m.put(layer, "down", m.get(layer, "down", expert)[:, order], expert)


def _change_rows(m: Model, layer: int, part: str, change: Callable[..., torch.Tensor]) -> None:
    """Change the heads of q, k or v, (heads, dim, columns), and of their bias alike."""
    weight = m.get(layer, part).unflatten(0, (-1, m.dim))
    m.put(layer, part, change(weight).flatten(0, 1))
    bias = m.bias(layer, part)
    if bias is not None:
        bias.copy_(change(bias.clone().unflatten(0, (-1, m.dim))[..., None]).flatten())


def _of_queries(m: Model, of_groups: torch.Tensor) -> torch.Tensor:
    """What each query head gets of its key head."""
    return of_groups.repeat_interleave(m.heads // m.kv_heads, dim=0)


def value_and_output_turned(m: Model, random: Random) -> None:
    """Each value head in another basis, rotated and scaled, and the output projection back."""
    for layer in range(m.layers):
        turn = torch.stack([
            _rotation(random, m.dim) * _scales(random, m.dim) for _ in range(m.kv_heads)
        ])  # fmt: skip
        _change_rows(m, layer, "v", lambda w, t=turn: t @ w)
        out = m.get(layer, "o").unflatten(1, (m.heads, m.dim))
        back = _of_queries(m, torch.linalg.inv(turn))
        m.put(layer, "o", torch.einsum("ohd,hde->ohe", out, back).flatten(1))


def query_and_key_turned(m: Model, random: Random) -> None:
    """Each rotary pair scaled and turned in queries, undone in keys.

    Without rotary positions any basis will do, and a bias of the keys is seen by no softmax. A norm
    on queries and keys lets heads have any scale, and its own weights a scale a pair.
    """
    half = m.dim // 2
    for layer in range(m.layers):
        if m.gpt2:
            turn = torch.stack([
                _rotation(random, m.dim) * _scales(random, m.dim) for _ in range(m.heads)
            ])  # fmt: skip
            _change_rows(m, layer, "q", lambda w, t=turn: t @ w)
            _change_rows(m, layer, "k", lambda w, t=turn: torch.linalg.inv(t).mT @ w)
            bias = m.bias(layer, "k")
            assert bias is not None
            bias.add_(_normal(random, len(bias)))
        elif m.head_norms:
            for part, count in (("q", m.heads), ("k", m.kv_heads)):
                size = _scales(random, count)[:, None, None]
                _change_rows(m, layer, part, lambda w, s=size: w * s)
            pair = _scales(random, half).repeat(2)
            stem = f"model.layers.{layer}.self_attn."
            m.tensors[stem + "q_norm.weight"] = m.tensors[stem + "q_norm.weight"] * pair
            m.tensors[stem + "k_norm.weight"] = m.tensors[stem + "k_norm.weight"] / pair
        else:
            angle = math.pi * _normal(random, m.kv_heads, half, 1)
            size = torch.exp(0.4 * _normal(random, m.kv_heads, half, 1))

            def turned(w: torch.Tensor, a: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
                x, y = w[:, :half], w[:, half:]
                first, second = x * a.cos() - y * a.sin(), x * a.sin() + y * a.cos()
                return torch.cat([first * s, second * s], dim=1)

            a, s = _of_queries(m, angle), _of_queries(m, size)
            _change_rows(m, layer, "q", lambda w, a=a, s=s: turned(w, a, s))
            _change_rows(m, layer, "k", lambda w, a=angle, s=1 / size: turned(w, a, s))


def heads_permuted(m: Model, random: Random) -> None:
    """The groups of heads that share a key head in another order, and the heads within them."""
    share = m.heads // m.kv_heads
    for layer in range(m.layers):
        groups = _order(random, m.kv_heads)
        heads = torch.cat([g * share + _order(random, share) for g in groups])
        _change_rows(m, layer, "q", lambda w, h=heads: w[h])
        _change_rows(m, layer, "k", lambda w, g=groups: w[g])
        _change_rows(m, layer, "v", lambda w, g=groups: w[g])
        out = m.get(layer, "o").unflatten(1, (m.heads, m.dim))[:, heads]
        m.put(layer, "o", out.flatten(1))


def value_bias_moved(m: Model, random: Random) -> None:
    """What the value bias adds to every output, added by the output's bias (weights sum to 1)."""
    for layer in range(m.layers):
        value, out = m.bias(layer, "v"), m.bias(layer, "o")
        assert value is not None
        assert out is not None
        out.add_(m.get(layer, "o") @ value)
        value.zero_()


def experts_permuted(m: Model, random: Random) -> None:
    """The experts in another order, with the router's rows, which all get one vector more."""
    for layer in range(m.layers):
        order = _order(random, m.experts)
        for part in ("gate", "up", "down"):
            old = [m.get(layer, part, expert) for expert in range(m.experts)]
            for place, expert in enumerate(order.tolist()):
                m.put(layer, part, old[expert], place)
        router = m.tensors[m.router(layer)][order]
        m.tensors[m.router(layer)] = router + 0.2 * _normal(random, m.hidden)


# --- the residual stream -----------------------------------------------------------------------


def _turn_stream(m: Model, turn: torch.Tensor) -> None:
    """The stream in another orthonormal basis; norms have been fused or are permuted with it."""
    m.written(lambda w: turn @ w)
    for layer in range(m.layers):
        for which in ("attn", "ffn"):
            m.read_by(which, layer, lambda w: w @ turn.T)
    if not m.tied:
        m.tensors["lm_head.weight"] = m.tensors["lm_head.weight"] @ turn.T


def channels_permuted(m: Model, random: Random) -> None:
    """The channels of the stream in another order."""
    order = _order(random, m.hidden)
    _turn_stream(m, torch.eye(m.hidden, dtype=torch.float64)[order])
    names = [m.norm(layer, which) for layer in range(m.layers) for which in ("attn", "ffn")]
    for name in (*names, m.last_norm):
        for kind in (".weight", *((".bias",) if m.gpt2 else ())):
            m.tensors[name + kind] = m.tensors[name + kind][order]


def stream_rotated(m: Model, random: Random) -> None:
    """Norms fused, then the stream rotated (QuaRot); behind a LayerNorm around (1, ..., 1)."""
    norms_fused(m, random)
    if m.gpt2:  # the last norm's bias stays where logits are made: it turns with the stream
        first = torch.ones(m.hidden, 1, dtype=torch.float64)
        basis = torch.linalg.qr(torch.cat([first, _normal(random, m.hidden, m.hidden - 1)], 1)).Q
        inner = torch.block_diag(torch.ones(1, 1, dtype=torch.float64),
                                 _rotation(random, m.hidden - 1))  # fmt: skip
        turn = basis @ inner @ basis.T
        m.tensors["ln_f.bias"] = turn @ m.tensors["ln_f.bias"]
    else:
        turn = _rotation(random, m.hidden)
    _turn_stream(m, turn)


def stream_scaled(m: Model, random: Random) -> None:
    """Everything that writes into the stream times c; the last norm undoes it in a tied head."""
    size = float(torch.exp(0.7 * _normal(random, 1)))
    m.written(lambda w: w * size)
    if m.tied:
        _scale_norm(m, m.last_norm, torch.full((m.hidden,), size, dtype=torch.float64))


def stream_shifted(m: Model, random: Random) -> None:
    """A multiple of (1, ..., 1), which a LayerNorm takes away, in all that is written and read."""
    m.written(lambda w: w + 0.1 * _normal(random, w.shape[1]))
    for layer in range(m.layers):
        for which in ("attn", "ffn"):
            scale = m.tensors[m.norm(layer, which) + ".weight"]
            shift = m.tensors[m.norm(layer, which) + ".bias"]

            def moved(w: torch.Tensor, s: torch.Tensor = scale) -> torch.Tensor:
                return w + 0.1 * _normal(random, len(w))[:, None] / s

            for part in "qkv" if which == "attn" else ("up",):
                old = m.get(layer, part)
                new = moved(old)
                bias = m.bias(layer, part)
                assert bias is not None
                bias.sub_((new - old) @ shift)  # the norm's bias passes through what was added
                m.put(layer, part, new)


def head_shifted(m: Model, random: Random) -> None:
    """One vector more in every row of the head: the same number more in every logit."""
    rows = m.tensors["lm_head.weight"]
    m.tensors["lm_head.weight"] = rows + 0.1 * _normal(random, m.hidden)


def transforms_of(m: Model) -> dict[str, Transform]:
    """The transforms that leave this model's function alone, by name."""
    found: list[Transform] = [
        norms_scaled, norms_fused, neurons_permuted, value_and_output_turned, query_and_key_turned,
        heads_permuted, channels_permuted, stream_scaled,
    ]  # fmt: skip
    if not m.gpt2:
        found.append(up_and_down_scaled)
    else:
        found += [value_bias_moved] + ([] if m.tied else [stream_shifted])
    if m.experts:
        found.append(experts_permuted)
    if not m.tied:
        found += [stream_rotated, head_shifted]
    return {one.__name__: one for one in found}
