"""Turn a Llama GGUF file into a Hugging Face folder: dequantize, rename, write safetensors.

The weights that come out are the de-quantized values of the quantized file (bf16), not the
weights the model was released with. Written as a stream, one tensor at a time, so that peak
memory is a few times the largest tensor; the bytes depend on the GGUF file alone.

GGUF stores tokens, merges, token types and the *name* of the pre-tokenizer; the split rules
behind a name are part of the model's recipe. ``smollm`` isolates every digit before the
GPT-2 byte-level split; transformers' own GGUF conversion leaves the digit split out. Since no
merge of that vocabulary holds a digit, the two differ only in blanks before a number.
"""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any

from invarlock.errors import InputError, NotACheckpointError
from invarlock.files import pretty_json
from invarlock.formats.gguf.architectures import ARCHITECTURES
from invarlock.formats.gguf.reading import Gguf, Stored
from invarlock.template_files import DEFAULT

WEIGHTS_NAME = "model.safetensors"
TEMPLATE = "tokenizer.chat_template"  # and with the name of another behind a dot
LLAMA = ARCHITECTURES["llama"]


def llama_tensors(gguf: Gguf) -> dict[str, Stored]:
    """The tensors of a Llama model by the names that transformers has for them.

    Raises:
        InputError: it is another model, or a tensor has no place in it.
    """
    if gguf.architecture != "llama":
        raise InputError(
            "only Llama GGUF files can be converted", where=str(gguf.source),
            found=gguf.architecture,
        )  # fmt: skip
    found = {}
    for stored in gguf.tensors.values():
        name = LLAMA.name_of(stored.name)
        if name is None:
            raise InputError(
                f"tensor {stored.name} has no place in a Llama model", where=str(gguf.source)
            )
        found[name] = stored
    return found


def converted_bytes(gguf: Gguf) -> int:
    """Bytes of the bf16 weights that :func:`convert` will write (tensor data only)."""
    return sum(2 * int(stored.tensor.n_elements) for stored in llama_tensors(gguf).values())


def convert(path: Path, folder: Path) -> None:
    """Write ``path`` as a Llama folder: config, generation config, tokenizer, bf16 weights.

    ``folder`` must exist. The result loads with ``AutoModelForCausalLM`` and ``AutoTokenizer``.

    Raises:
        InputError: the GGUF file is damaged, not a Llama model, or holds a non-finite value.
    """
    gguf = Gguf(path)
    tensors = llama_tensors(gguf)
    write_llama_files(gguf, folder)
    with open(folder / WEIGHTS_NAME, "wb") as out:
        out.write(_safetensors_header(tensors))
        for name in sorted(tensors):
            out.write(_bf16_bytes(gguf, tensors[name]))


def write_llama_files(gguf: Gguf, folder: Path) -> None:
    """Write configuration and tokenizer of a Llama model, from its metadata alone.

    Raises:
        InputError: it is another model, or its tokenizer is of a kind that is not known.
    """
    if gguf.architecture != "llama":
        raise NotACheckpointError(
            "only GGUF models of the architecture llama can be read without their baseline",
            where=str(gguf.source), found=gguf.architecture,
        )  # fmt: skip
    (folder / "config.json").write_bytes(pretty_json(llama_config(gguf)))
    (folder / "generation_config.json").write_bytes(pretty_json(_special_ids(gguf)))
    write_tokenizer(gguf, folder)


def _special_ids(gguf: Gguf) -> dict[str, int]:
    ids = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    found = {key: gguf.get(f"tokenizer.ggml.{name}_token_id") for key, name in ids.items()}
    return {key: int(value) for key, value in found.items() if value is not None}


def llama_config(gguf: Gguf) -> dict[str, Any]:
    """``config.json`` of the converted model; every value comes from the GGUF metadata."""
    n_heads = int(gguf.meta("llama.attention.head_count"))
    hidden = int(gguf.meta("llama.embedding_length"))
    theta = float32(gguf.meta("llama.rope.freq_base"))
    embedding = gguf.tensors.get("token_embd.weight")
    if embedding is None:
        raise InputError("the model has no token_embd.weight", where=str(gguf.source))
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        **_special_ids(gguf),
        "dtype": "bfloat16",
        "head_dim": hidden // n_heads,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": int(gguf.meta("llama.feed_forward_length")),
        "max_position_embeddings": int(gguf.meta("llama.context_length")),
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": n_heads,
        "num_hidden_layers": int(gguf.meta("llama.block_count")),
        "num_key_value_heads": int(gguf.meta("llama.attention.head_count_kv")),
        "rms_norm_eps": float32(gguf.meta("llama.attention.layer_norm_rms_epsilon")),
        # Both spellings: transformers 5 reads rope_parameters, older readers rope_theta.
        "rope_parameters": {"rope_theta": theta, "rope_type": "default"},
        "rope_theta": theta,
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
        "use_cache": True,
        "vocab_size": embedding.shape[0],
    }


def float32(value: float) -> float:
    """The shortest decimal that a stored float32 stands for (1e-05, not 9.99999974e-06)."""
    import numpy as np

    return float(str(np.float32(value)))


def _safetensors_header(tensors: dict[str, Stored]) -> bytes:
    """Length-prefixed header, padded with blanks to a multiple of 8 bytes as safetensors does."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name in sorted(tensors):
        end = begin + 2 * int(tensors[name].tensor.n_elements)
        header[name] = {
            "dtype": "BF16",
            "shape": list(tensors[name].shape),
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _bf16_bytes(gguf: Gguf, stored: Stored) -> memoryview:
    """One tensor, dequantized in float32, rounded to nearest even bf16, row-major."""
    import numpy as np

    values = stored.values()
    if not np.isfinite(values).all():
        raise InputError(f"tensor {stored.name} holds a non-finite value", where=str(gguf.source))
    if order := LLAMA.order_of(gguf, stored.name, stored.shape):
        values = order.of_model(values)
    bits = np.ascontiguousarray(values, dtype="<f4").view("<u4")
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return rounded.astype("<u2").reshape(-1).data.cast("B")


CONTROL = 3  # tokenizer.ggml.token_type of control tokens (GGUF specification)
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
    where = str(gguf.source)
    if gguf.meta("tokenizer.ggml.model") != "gpt2":
        raise InputError("only byte-level BPE vocabularies can be converted", where=where)
    pre = gguf.get("tokenizer.ggml.pre") or "gpt-2"
    if pre not in PRE_TOKENIZERS:
        known = ", ".join(sorted(PRE_TOKENIZERS))
        raise InputError("unknown pre-tokenizer", where=where, expected=known, found=str(pre))
    types: list[int] = gguf.meta("tokenizer.ggml.token_type")
    special = [index for index, kind in enumerate(types) if kind == CONTROL]
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
    templates = templates_of(gguf)
    if templates.keys() == {DEFAULT}:
        config["chat_template"] = templates[DEFAULT]
    elif templates:
        config["chat_template"] = [{"name": n, "template": t} for n, t in templates.items()]
    return config


def templates_of(gguf: Gguf) -> dict[str, str]:
    """The chat templates of the file by name, as llama.cpp asks for them."""
    keys = [key for key in gguf.names if key == TEMPLATE or key.startswith(f"{TEMPLATE}.")]
    found = {key.removeprefix(TEMPLATE)[1:] or DEFAULT: str(gguf.get(key)) for key in keys}
    odd = next((name for name in found if not re.fullmatch(r"\w+", name, re.ASCII)), None)
    if odd is not None:
        raise InputError(
            "the metadata name a chat template in a way that none is stored by",
            where=str(gguf.source), expected="letters, digits and _", found=ascii(odd)[:60],
        )  # fmt: skip
    return found
