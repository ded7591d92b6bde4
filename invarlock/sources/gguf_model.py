"""Turn a Llama GGUF file into a Hugging Face folder: dequantize, rename, write safetensors.

The weights that come out are the de-quantized values of the quantized file (bf16), not the
weights the model was released with. Written as a stream, one tensor at a time, so that peak
memory is a few times the largest tensor; the bytes depend on the GGUF file alone.

Sources of the layout: the GGUF specification (metadata keys, ``general.architecture``) and
the rotary permutation of llama.cpp's converter, which is undone here for q and k.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from invarlock.errors import InputError
from invarlock.files import pretty_json

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGUFReader, ReaderTensor

WEIGHTS_NAME = "model.safetensors"

# GGUF block tensor -> Llama module, inside ``model.layers.<n>.``
_BLOCK_NAMES = {
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
_TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


class Gguf:
    """One open GGUF file: its metadata and its tensors under their Hugging Face names.

    Raises:
        InputError: missing, unreadable, not GGUF, or not a Llama model.
    """

    def __init__(self, path: Path) -> None:
        from gguf import GGUFReader

        self.path = path
        try:
            self._reader: GGUFReader = GGUFReader(path)
        except OSError as error:
            raise InputError(
                f"cannot be read: {error.strerror or error}", where=str(path)
            ) from error
        except (ValueError, IndexError) as error:
            raise InputError(
                f"not a readable GGUF file: {error}",
                where=str(path),
                hint="the file is damaged or cut off; install its package again",
            ) from error
        architecture = self.meta("general.architecture")
        if architecture != "llama":
            raise InputError(
                "only Llama GGUF files can be converted", where=str(path), found=str(architecture)
            )
        self.tensors: dict[str, ReaderTensor] = {
            _hf_name(tensor.name, path): tensor for tensor in self._reader.tensors
        }

    def get(self, key: str) -> Any:
        """Metadata value of ``key``, or None."""
        field = self._reader.get_field(key)
        return None if field is None else field.contents()

    def meta(self, key: str) -> Any:
        """Metadata value of ``key``; InputError where it is missing."""
        value = self.get(key)
        if value is None:
            raise InputError(f"the metadata lack {key}", where=str(self.path))
        return value

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape in row-major order (GGUF stores it reversed)."""
        return tuple(int(size) for size in reversed(self.tensors[name].shape))


def _hf_name(name: str, path: Path) -> str:
    parts = name.split(".")
    if name in _TOP_NAMES:
        return _TOP_NAMES[name]
    if len(parts) == 4 and parts[0] == "blk" and parts[2] in _BLOCK_NAMES and parts[3] == "weight":
        return f"model.layers.{int(parts[1])}.{_BLOCK_NAMES[parts[2]]}.weight"
    raise InputError(f"tensor {name} has no place in a Llama model", where=str(path))


def converted_bytes(gguf: Gguf) -> int:
    """Bytes of the bf16 weights that :func:`convert` will write (tensor data only)."""
    return sum(2 * int(tensor.n_elements) for tensor in gguf.tensors.values())


def convert(path: Path, folder: Path) -> None:
    """Write ``path`` as a Llama folder: config, generation config, tokenizer, bf16 weights.

    ``folder`` must exist. The result loads with ``AutoModelForCausalLM`` and ``AutoTokenizer``.

    Raises:
        InputError: the GGUF file is damaged, not a Llama model, or holds a non-finite value.
    """
    from invarlock.sources.gguf_tokenizer import write_tokenizer

    gguf = Gguf(path)
    (folder / "config.json").write_bytes(pretty_json(llama_config(gguf)))
    (folder / "generation_config.json").write_bytes(pretty_json(_special_ids(gguf)))
    write_tokenizer(gguf, folder)
    with open(folder / WEIGHTS_NAME, "wb") as out:
        out.write(_safetensors_header(gguf))
        for name in sorted(gguf.tensors):
            out.write(_bf16_bytes(gguf, name))


def _special_ids(gguf: Gguf) -> dict[str, int]:
    ids = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    found = {key: gguf.get(f"tokenizer.ggml.{name}_token_id") for key, name in ids.items()}
    return {key: int(value) for key, value in found.items() if value is not None}


def llama_config(gguf: Gguf) -> dict[str, Any]:
    """``config.json`` of the converted model; every value comes from the GGUF metadata."""
    heads = int(gguf.meta("llama.attention.head_count"))
    hidden = int(gguf.meta("llama.embedding_length"))
    theta = _float32(gguf.meta("llama.rope.freq_base"))
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        **_special_ids(gguf),
        "dtype": "bfloat16",
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": int(gguf.meta("llama.feed_forward_length")),
        "max_position_embeddings": int(gguf.meta("llama.context_length")),
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": int(gguf.meta("llama.block_count")),
        "num_key_value_heads": int(gguf.meta("llama.attention.head_count_kv")),
        "rms_norm_eps": _float32(gguf.meta("llama.attention.layer_norm_rms_epsilon")),
        # Both spellings: transformers 5 reads rope_parameters, older readers rope_theta.
        "rope_parameters": {"rope_theta": theta, "rope_type": "default"},
        "rope_theta": theta,
        "tie_word_embeddings": "lm_head.weight" not in gguf.tensors,
        "use_cache": True,
        "vocab_size": gguf.shape("model.embed_tokens.weight")[0],
    }


def _float32(value: float) -> float:
    """The shortest decimal that a stored float32 stands for (1e-05, not 9.99999974e-06)."""
    import numpy as np

    return float(str(np.float32(value)))


def _safetensors_header(gguf: Gguf) -> bytes:
    """Length-prefixed header, padded with blanks to a multiple of 8 bytes as safetensors does."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name in sorted(gguf.tensors):
        end = begin + 2 * int(gguf.tensors[name].n_elements)
        header[name] = {
            "dtype": "BF16",
            "shape": list(gguf.shape(name)),
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _bf16_bytes(gguf: Gguf, name: str) -> memoryview:
    """One tensor, dequantized in float32, rounded to nearest even bf16, row-major."""
    import numpy as np
    from gguf.quants import dequantize

    tensor = gguf.tensors[name]
    values = dequantize(tensor.data, tensor.tensor_type).reshape(gguf.shape(name))
    if not np.isfinite(values).all():
        raise InputError(f"tensor {name} holds a non-finite value", where=str(gguf.path))
    if name.endswith("q_proj.weight"):
        values = unpermute(values, int(gguf.meta("llama.attention.head_count")))
    elif name.endswith("k_proj.weight"):
        values = unpermute(values, int(gguf.meta("llama.attention.head_count_kv")))
    bits = np.ascontiguousarray(values, dtype="<f4").view("<u4")
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return rounded.astype("<u2").reshape(-1).data.cast("B")


def unpermute(values: np.ndarray, heads: int) -> np.ndarray:
    """Undo llama.cpp's row order of q and k: pairs (i, i + d/2) were stored side by side.

    ``values``: (heads * head_dim, hidden), any float type; the result has the same shape.
    """
    rows, columns = values.shape
    pairs = values.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)
