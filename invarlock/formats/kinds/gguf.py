"""Turn a Llama GGUF file into a Hugging Face folder: dequantize, rename, write safetensors.

The weights that come out are the de-quantized values of the quantized file (bf16), not the
weights the model was released with. Written as a stream, one tensor at a time, so that peak
memory is a few times the largest tensor; the bytes depend on the GGUF file alone.

Sources of the layout: the GGUF specification (metadata keys, ``general.architecture``) and
the rotary permutation of llama.cpp's converter, which is undone here for q and k.

GGUF stores tokens, merges, token types and the *name* of the pre-tokenizer; the split rules
behind a name are part of the model's recipe. ``smollm`` isolates every digit before the
GPT-2 byte-level split; transformers' own GGUF conversion leaves the digit split out. Since no
merge of that vocabulary holds a digit, the two differ only in blanks before a number.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from invarlock.errors import InputError
from invarlock.files import pretty_json
from invarlock.formats.kind import Format

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGUFReader, ReaderTensor

WEIGHTS_NAME = "model.safetensors"
SMALL_FILES_BYTES = 16 << 20  # bytes set aside for tokenizer and configuration of a conversion


class GgufFile(Format):
    """One ``.gguf`` file of a Llama model, with its tokenizer; only as a package carries it."""

    name: ClassVar[str] = "gguf"
    order: ClassVar[int] = 90
    packed: ClassVar[bool] = True
    in_folders: ClassVar[bool] = False
    opened: ClassVar[bool] = False

    def files(self, names: Collection[str]) -> set[str]:
        return {name for name in names if name.endswith(".gguf")}

    def convert(self, paths: Mapping[str, Path], folder: Path) -> None:
        for path in paths.values():
            convert(path, folder)

    def converted_bytes(self, paths: Mapping[str, Path], stored: int) -> int:
        return sum(converted_bytes(Gguf(path)) for path in paths.values()) + SMALL_FILES_BYTES


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


_CONTROL = 3  # tokenizer.ggml.token_type of control tokens (GGUF specification)
_BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}
_DIGITS = {"type": "Digits", "individual_digits": True}
PRE_TOKENIZERS: dict[str, dict[str, Any]] = {
    "gpt-2": _BYTE_LEVEL,
    "smollm": {"type": "Sequence", "pretokenizers": [_DIGITS, _BYTE_LEVEL]},
}


def write_tokenizer(gguf: Gguf, folder: Path) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json`` into ``folder``.

    Raises:
        InputError: not a byte-level BPE vocabulary, or a pre-tokenizer we do not know.
    """
    tokens: list[str] = gguf.meta("tokenizer.ggml.tokens")
    (folder / "tokenizer.json").write_bytes(pretty_json(_tokenizer(gguf, tokens)))
    (folder / "tokenizer_config.json").write_bytes(pretty_json(_tokenizer_config(gguf, tokens)))


def _tokenizer(gguf: Gguf, tokens: list[str]) -> dict[str, Any]:
    where = str(gguf.path)
    if gguf.meta("tokenizer.ggml.model") != "gpt2":
        raise InputError("only byte-level BPE vocabularies can be converted", where=where)
    pre = gguf.get("tokenizer.ggml.pre") or "gpt-2"
    if pre not in PRE_TOKENIZERS:
        known = ", ".join(sorted(PRE_TOKENIZERS))
        raise InputError("unknown pre-tokenizer", where=where, expected=known, found=str(pre))
    types: list[int] = gguf.meta("tokenizer.ggml.token_type")
    special = [index for index, kind in enumerate(types) if kind == _CONTROL]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": index,
                "content": tokens[index],
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for index in special
        ],
        "normalizer": None,
        "pre_tokenizer": PRE_TOKENIZERS[pre],
        "post_processor": None,
        "decoder": {**_BYTE_LEVEL, "add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": [merge.split(" ", 1) for merge in gguf.meta("tokenizer.ggml.merges")],
        },
    }


def _tokenizer_config(gguf: Gguf, tokens: list[str]) -> dict[str, Any]:
    config: dict[str, Any] = {
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": int(gguf.meta("llama.context_length")),
        # Read tokenizer.json as it stands; a GPT-2 class would put its own split rules in.
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    names = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
    for ggml, name in names.items():
        index = gguf.get(f"tokenizer.ggml.{ggml}_token_id")
        if index is not None:
            config[f"{name}_token"] = tokens[int(index)]
    template = gguf.get("tokenizer.chat_template")
    if template is not None:
        config["chat_template"] = template
    return config
