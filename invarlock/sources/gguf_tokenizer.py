"""Build ``tokenizer.json`` from the vocabulary and merges that a GGUF file carries.

GGUF stores tokens, merges, token types and the *name* of the pre-tokenizer; the split rules
behind a name are part of the model's recipe. ``smollm`` isolates every digit before the
GPT-2 byte-level split; transformers' own GGUF conversion leaves the digit split out. Since no
merge of that vocabulary holds a digit, the two differ only in blanks before a number.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from invarlock.errors import InputError
from invarlock.files import pretty_json

if TYPE_CHECKING:
    from invarlock.sources.gguf_model import Gguf

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
