"""What each architecture of GGUF is in transformers: names of tensors, and how values are stored.

llama.cpp's converter renames tensors, and changes some values: rows of the query and key
projections are put into another order where rotation takes neighbouring pairs, heads of the values
of gated delta nets where several share a key, one is added to the weights of Gemma's norms, which
its own code adds when it runs, and decay is stored as the number that the graph multiplies by. All
of it is undone here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from invarlock.errors import InputError, NotACheckpointError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from invarlock.formats.gguf.reading import Gguf, Stored

TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
# Of a block, inside ``model.layers.N.``
BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_NORMS_OF_HEADS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_NORMS_AROUND = {
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_GEMMA = {**BLOCK, **_NORMS_AROUND, "ffn_norm": "pre_feedforward_layernorm"}
# Where the number of an expert stands in the name of its matrix: GGUF stores those of all as one.
EXPERT = "{expert}"
_EXPERTS = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": f"mlp.experts.{EXPERT}.gate_proj",
    "ffn_up_exps": f"mlp.experts.{EXPERT}.up_proj",
    "ffn_down_exps": f"mlp.experts.{EXPERT}.down_proj",
}
# The same where a checkpoint has those of all experts as one tensor, gates before what they open:
# the rest of a stored name -> the rest of the model's, and which part of that it is.
_FUSED = {
    "ffn_gate_exps.weight": ("mlp.experts.gate_up_proj", 0),
    "ffn_up_exps.weight": ("mlp.experts.gate_up_proj", 1),
    "ffn_down_exps.weight": ("mlp.experts.down_proj", 0),
}
_SHARED_EXPERT = {
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
_MIXTRAL = {
    "ffn_gate_inp": "block_sparse_moe.gate",
    "ffn_gate_exps": f"block_sparse_moe.experts.{EXPERT}.w1",
    "ffn_up_exps": f"block_sparse_moe.experts.{EXPERT}.w3",
    "ffn_down_exps": f"block_sparse_moe.experts.{EXPERT}.w2",
}
# The delta nets of Qwen3.5 in place of attention in most layers.
_DELTA_NET = {
    "attn_qkv": "linear_attn.in_proj_qkv",
    "attn_gate": "linear_attn.in_proj_z",
    "ssm_alpha": "linear_attn.in_proj_a",
    "ssm_beta": "linear_attn.in_proj_b",
    "ssm_conv1d": "linear_attn.conv1d",
    "ssm_norm": "linear_attn.norm",
    "ssm_out": "linear_attn.out_proj",
}
# What is no weight or bias of a module: the rest of a stored name -> the rest of the model's.
_DECAYS = {"ssm_a": "linear_attn.A_log", "ssm_dt.bias": "linear_attn.dt_bias"}
# Axis along which heads of values lie, and whether those of queries and keys lie before them.
_OF_VALUE_HEADS = {
    "attn_qkv.weight": (0, True), "ssm_conv1d.weight": (0, True), "attn_gate.weight": (0, False),
    "ssm_alpha.weight": (0, False), "ssm_beta.weight": (0, False), "ssm_a": (0, False),
    "ssm_dt.bias": (0, False), "ssm_out.weight": (1, False),
}  # fmt: skip
FILTERS = "ssm_conv1d.weight"  # stored without the dimension of their one channel
# Matrices of one row, which quantizers store as vectors.
ONE_ROW = ("ffn_gate_inp_shexp.weight",)
# Factors of the rotation, which follow from config.json.
FACTORS = re.compile(r"rope_(?:freqs|factors_long|factors_short)\.weight|blk\.\d+\.attn_rot_embd.*")
_REST = re.compile(r"blk\.(?P<layer>\d+)\.(?P<rest>.+)")
_NAME = re.compile(r"(?:blk\.(?P<layer>\d+)\.)?(?P<part>\w+)\.(?P<kind>weight|bias)")


class Counts(Protocol):
    """A GGUF model, as far as its numbers of heads go."""

    @property
    def architecture(self) -> str:
        """``general.architecture``."""

    @property
    def source(self) -> Path:
        """What was named."""

    def of_model(self, key: str) -> Any:
        """Metadata value of ``key`` of the architecture, or None."""


@dataclass(frozen=True)
class Architecture:
    """One value of ``general.architecture``."""

    model_types: tuple[str, ...]  # of config.json; the first where a baseline has another
    block: Mapping[str, str] = field(default_factory=lambda: BLOCK)
    turned: bool = False  # rows of query and key projections are in llama.cpp's order
    shifted: bool = False  # one is added to the weights of norms
    whole: Mapping[str, str] = field(default_factory=dict)  # names without .weight or .bias
    # How checkpoints may have experts otherwise: see ``_FUSED``.
    fused: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    # Settings that the graph does not ask for: it computes as if they were these.
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def tensors_of(self, gguf: Gguf, fused: bool) -> Iterator[tuple[str, tuple[Stored, ...]]]:
        """The tensors of a model by the names that it has for them, each with the stored ones that
        it is made of, along their second dimension where these are several.

        One that is none of the model keeps its name. What follows from the configuration is left
        out.

        Args:
            gguf: the model.
            fused: whether the checkpoint has the matrices of all experts as one tensor.
        """
        parts: dict[str, dict[int, Stored]] = {}
        for stored in gguf.tensors.values():
            rest = _REST.fullmatch(stored.name)
            if FACTORS.fullmatch(stored.name):
                continue
            if fused and rest and rest["rest"] in self.fused:
                name, place = self.fused[rest["rest"]]
                parts.setdefault(f"model.layers.{int(rest['layer'])}.{name}", {})[place] = stored
                continue
            for name, own in self._tensors_of(stored):
                yield name, (own,)
        for name, each in parts.items():
            yield name, tuple(each[place] for place in sorted(each))

    def _tensors_of(self, stored: Stored) -> Iterator[tuple[str, Stored]]:
        """What a stored tensor holds: itself, or one matrix of each expert."""
        name = self.name_of(stored.name) or stored.name
        if EXPERT in name:
            for number, own in enumerate(stored.experts()):
                yield name.replace(EXPERT, str(number)), own
        elif stored.name.endswith(FILTERS) and len(stored.shape) == 2:
            yield name, stored.as_filters()
        elif stored.name.endswith(ONE_ROW) and len(stored.shape) == 1:
            yield name, stored.as_row()
        else:
            yield name, stored

    def name_of(self, stored: str) -> str | None:
        """The name that the model has for a stored tensor; None where it is no tensor of it.

        Of one that holds all experts, :data:`EXPERT` stands for their number.
        """
        rest = _REST.fullmatch(stored)
        if rest and rest["rest"] in self.whole:
            return f"model.layers.{int(rest['layer'])}.{self.whole[rest['rest']]}"
        found = _NAME.fullmatch(stored)
        if found is None:
            return None
        layer, part, kind = found["layer"], found["part"], found["kind"]
        name = TOP.get(part) if layer is None else self.block.get(part)
        if name is None:
            return None
        return f"{name}.{kind}" if layer is None else f"model.layers.{int(layer)}.{name}.{kind}"

    def order_of(self, gguf: Counts, name: str, shape: Sequence[int]) -> Order | None:
        """How rows or columns of a stored tensor are put in the model's order; None: they are.

        Args:
            gguf: what says how many heads the model has.
            name: of the stored tensor.
            shape: its shape, row-major.

        Raises:
            InputError: the metadata lack numbers of heads, or these do not divide the tensor.
        """
        import numpy as np

        if self.turned and re.fullmatch(r"blk\.\d+\.attn_[qk]\.(weight|bias)", name):
            key = "attention.head_count" + ("" if ".attn_q." in name else "_kv")
            return Order(unpermute(np.arange(shape[0]), heads(gguf, key)), 0)
        rest = _REST.fullmatch(name)
        if not self.whole or rest is None or rest["rest"] not in _OF_VALUE_HEADS:
            return None
        axis, others = _OF_VALUE_HEADS[rest["rest"]]
        keys, values, size = (
            int(gguf.of_model(f"ssm.{key}") or 0)
            for key in ("group_count", "time_step_rank", "state_size")
        )
        before = 2 * keys * size if others else 0
        left = shape[axis] - before
        if not 0 < keys <= values or values % keys or left <= 0 or left % values:
            raise InputError(
                f"{name} has no heads of values as the metadata count them",
                where=str(gguf.source), found=f"{list(shape)}, {keys} keys, {values} values",
            )  # fmt: skip
        own = np.arange(before, shape[axis]).reshape(values // keys, keys, -1).swapaxes(0, 1)
        return Order(np.concatenate([np.arange(before), own.ravel()]), axis)

    def of_model(self, name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Stored values as the model has them, element by element."""
        import numpy as np

        if self.whole and name.endswith(".ssm_a"):
            with np.errstate(invalid="ignore", divide="ignore"):  # told as not finite
                return np.log(-values)
        return values - self._shift_of(name)

    def as_stored(self, name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Undo :meth:`of_model`."""
        import numpy as np

        if self.whole and name.endswith(".ssm_a"):
            return -np.exp(values)
        if name.endswith(FILTERS):
            values = values[:, 0]
        return values + self._shift_of(name)

    def _shift_of(self, name: str) -> np.float32:
        import numpy as np

        own = name.endswith("norm.weight") and not name.endswith("ssm_norm.weight")
        return np.float32(self.shifted and own)


@dataclass(frozen=True)
class Order:
    """Where the rows, or columns, of the model lie in a stored tensor."""

    index: NDArray[np.int64]
    axis: int

    def of_model(self, values: NDArray[Any]) -> NDArray[Any]:
        """Stored values in the model's order."""
        return values.take(self.index, self.axis)

    def as_stored(self, values: NDArray[Any]) -> NDArray[Any]:
        """Undo :meth:`of_model`."""
        return values.take(self.index.argsort(), self.axis)


ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture(("llama", "mistral", "mixtral"), {**BLOCK, **_MIXTRAL}, turned=True),
    "mistral3": Architecture(("ministral3",), turned=True),
    "qwen2": Architecture(("qwen2",)),
    "qwen2moe": Architecture(
        ("qwen2_moe",), {**BLOCK, **_EXPERTS, **_SHARED_EXPERT}, fixed={"norm_topk_prob": False}
    ),
    "qwen2vl": Architecture(("qwen2_5_vl_text", "qwen2_vl_text", "qwen2_5_vl", "qwen2_vl")),
    "qwen3": Architecture(("qwen3",), {**BLOCK, **_NORMS_OF_HEADS}),
    "qwen3moe": Architecture(
        ("qwen3_moe",), {**BLOCK, **_NORMS_OF_HEADS, **_EXPERTS}, fixed={"norm_topk_prob": True}
    ),
    "qwen3vl": Architecture(("qwen3_vl_text",), {**BLOCK, **_NORMS_OF_HEADS}),
    "qwen35": Architecture(
        ("qwen3_5_text",),
        {
            **BLOCK,
            **_NORMS_OF_HEADS,
            **_DELTA_NET,
            "post_attention_norm": "post_attention_layernorm",
        },
        shifted=True,
        whole=_DECAYS,
    ),
    "qwen35moe": Architecture(
        ("qwen3_5_moe_text",),
        {
            **BLOCK,
            **_NORMS_OF_HEADS,
            **_DELTA_NET,
            **_EXPERTS,
            **_SHARED_EXPERT,
            "post_attention_norm": "post_attention_layernorm",
        },
        shifted=True,
        whole=_DECAYS,
        fused=_FUSED,
    ),
    "gemma": Architecture(("gemma",), shifted=True),
    "gemma2": Architecture(("gemma2",), _GEMMA, shifted=True),
    "gemma3": Architecture(("gemma3_text",), {**_GEMMA, **_NORMS_OF_HEADS}, shifted=True),
    "phi3": Architecture(
        ("phi3",), {**BLOCK, "attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
    ),
    "olmo2": Architecture(("olmo2",), {**BLOCK, **_NORMS_OF_HEADS, **_NORMS_AROUND}),
    "olmoe": Architecture(
        ("olmoe",), {**BLOCK, **_NORMS_OF_HEADS, **_EXPERTS}, fixed={"norm_topk_prob": False}
    ),
    "glm4": Architecture(
        ("glm4",),
        {
            **BLOCK,
            "ffn_up": "mlp.gate_up_proj",
            "post_attention_norm": "post_self_attn_layernorm",
            "post_ffw_norm": "post_mlp_layernorm",
        },
    ),
    "ernie4_5": Architecture(("ernie4_5",)),
    "seed_oss": Architecture(
        ("seed_oss",), {**BLOCK, "post_attention_norm": "post_attention_layernorm"}
    ),
    "hunyuan-dense": Architecture(
        ("hunyuan_v1_dense",),
        {
            **BLOCK,
            "attn_q_norm": "self_attn.query_layernorm",
            "attn_k_norm": "self_attn.key_layernorm",
        },
    ),
    "exaone4": Architecture(("exaone4",), {**BLOCK, **_NORMS_OF_HEADS, **_NORMS_AROUND}),
    "arcee": Architecture(("arcee",), turned=True),
    "granite": Architecture(("granite",), turned=True),
    "smollm3": Architecture(("smollm3",), turned=True),
    "starcoder2": Architecture(
        ("starcoder2",), {**BLOCK, "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}
    ),
    "stablelm": Architecture(("stablelm",)),
}


def architecture_of(gguf: Gguf) -> Architecture:
    """The row of the table for a model.

    Raises:
        NotACheckpointError: it has none, or its tensors are stored in a way that is not read.
    """
    found = ARCHITECTURES.get(gguf.architecture)
    if found is None:
        raise NotACheckpointError(
            f"is a GGUF model of the architecture {gguf.architecture}, whose tensors are not read"
            " here",
            where=str(gguf.source), expected=", ".join(ARCHITECTURES),
            hint="name the checkpoint that it was made from",
        )  # fmt: skip
    return found


def heads(gguf: Counts, key: str) -> int:
    """A number of heads, which is one for all layers.

    Raises:
        InputError: it is missing, or layers have several.
    """
    value = gguf.of_model(key)
    if value is None:
        value = gguf.of_model("attention.head_count")
    several = {int(each) for each in (value if isinstance(value, list) else [value or 0])}
    if len(several) != 1 or not min(several) > 0:
        raise InputError(
            f"{gguf.architecture}.{key} is not one number of heads", where=str(gguf.source),
            found=str(value),
        )  # fmt: skip
    return several.pop()


def unpermute(values: np.ndarray, heads: int) -> np.ndarray:
    """Undo llama.cpp's row order of q and k: pairs (i, i + d/2) were stored side by side.

    ``values``: (heads * head_dim, ...), any type; the result has the same shape.
    """
    rows = values.shape[0]
    pairs = values.reshape(heads, rows // heads // 2, 2, -1)
    return pairs.swapaxes(1, 2).reshape(values.shape)
