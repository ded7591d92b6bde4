"""Make GGUF files: of a dense checkpoint in bfloat16, quantized by llama.cpp, and broken ones."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from invarlock.errors import InputError
from invarlock.files import read_json_object
from invarlock.formats.gguf.architectures import ARCHITECTURES, EXPERT, FILTERS, Architecture
from invarlock.formats.gguf.conversion import CONTROL, PRE_TOKENIZERS
from invarlock.formats.gguf.scales import SCALES, scale_bytes
from invarlock.formats.gguf.small_files import SETTINGS, TOKEN_IDS
from invarlock.template_files import effective, spellings

if TYPE_CHECKING:
    from gguf import GGUFWriter


ERROR = 4  # level of a line of llama.cpp's log (ggml_log_level)
NORMAL = 1  # tokenizer.ggml.token_type
KINDS = ("weight", "bias")
_EXPERT = re.compile(r"(?<=\.experts\.)\d+(?=\.)")


def write_dense(baseline: Any, out: Path) -> None:
    """Write a dense checkpoint as a GGUF file: matrices in bfloat16, vectors in float32.

    Args:
        baseline: a :class:`invarlock.checkpoints.Checkpoint` of an architecture of the table.
        out: the file.

    Raises:
        InputError: the architecture, a tensor or the tokenizer has no place in GGUF here.
    """
    import numpy as np
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import quantize as packed

    where = str(baseline.folder)
    config: Mapping[str, Any] = baseline.config
    kind = str(config.get("model_type"))
    found = [name for name, known in ARCHITECTURES.items() if kind in known.model_types]
    if not found:
        raise InputError(
            f"a model of the type {kind} cannot be written as GGUF here", where=where,
            expected=", ".join(t for known in ARCHITECTURES.values() for t in known.model_types),
        )  # fmt: skip
    architecture = found[0]
    known = ARCHITECTURES[architecture]
    writer = GGUFWriter(out, architecture)
    counts = _Said(architecture, baseline.folder, _settings_of(config))
    for name, value in counts.settings.items():
        _add(writer, f"{architecture}.{name}", value)
    _write_tokenizer(writer, baseline.folder)
    for stored, parts in _stored(known, baseline).items():
        loaded = [baseline.load(name).float().numpy() for name in parts]
        values = np.stack(loaded) if EXPERT in str(known.name_of(stored)) else loaded[0]
        values = known.as_stored(stored, values)
        if order := known.order_of(counts, stored, values.shape):
            values = np.ascontiguousarray(order.as_stored(values))
        # llama.cpp has filters in float32 alone
        plain = values.ndim == 1 or stored.endswith(FILTERS)
        kept = GGMLQuantizationType.F32 if plain else GGMLQuantizationType.BF16
        writer.add_tensor(stored, packed(values, kept), raw_dtype=kept)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _stored(known: Architecture, baseline: Any) -> dict[str, list[str]]:
    """The names that GGUF has for a checkpoint's tensors -> those tensors: one, or all experts'."""
    parts = [f"{top}.{kind}" for top in ("token_embd", "output_norm", "output") for kind in KINDS]
    layers = {int(n.split(".")[2]) for n in baseline.tensors if n.startswith("model.layers.")}
    parts += [f"blk.{n}.{part}.{kind}" for n in layers for part in known.block for kind in KINDS]
    parts += [f"blk.{n}.{rest}" for n in layers for rest in known.whole]
    names = {name: part for part in parts if (name := known.name_of(part)) is not None}
    found: dict[str, dict[int, str]] = {}
    for name in sorted(baseline.tensors):
        if name == "lm_head.weight" and baseline.config.get("tie_word_embeddings"):
            continue
        of_expert = _EXPERT.search(name)
        stored = names.get(_EXPERT.sub(EXPERT, name))
        if stored is None:
            raise InputError(f"tensor {name} has no place in GGUF", where=str(baseline.folder))
        found.setdefault(stored, {})[int(of_expert[0]) if of_expert else 0] = name
    return {stored: [each[n] for n in sorted(each)] for stored, each in found.items()}


@dataclass(frozen=True)
class _Said:
    """What a file will say of its model."""

    architecture: str
    source: Path
    settings: Mapping[str, Any]

    def of_model(self, key: str) -> Any:
        """Metadata value of ``key`` of the architecture, or None."""
        return self.settings.get(key)


def _settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata of the architecture."""
    said = {}
    for key, fields in SETTINGS.items():
        value = next((config[f] for f in fields if config.get(f) is not None), None)
        if value is not None:
            said[key] = value
    heads = int(config["num_attention_heads"])
    size = int(config.get("head_dim") or int(config["hidden_size"]) // heads)
    rope = config.get("rope_parameters") or {}
    rope = rope.get("full_attention", rope)
    said["attention.key_length"] = said["attention.value_length"] = size
    said["rope.dimension_count"] = int(size * float(rope.get("partial_rotary_factor", 1.0)))
    said["rope.freq_base"] = float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0)
    if "mrope_section" in rope:
        said["rope.dimension_sections"] = [*rope["mrope_section"], 0]
    if values := config.get("linear_num_value_heads"):
        said["ssm.inner_size"] = int(values) * int(config["linear_value_head_dim"])
        said["full_attention_interval"] = config["layer_types"].index("full_attention") + 1
    stretched = rope.get("rope_type", "default")
    if stretched != "default":
        raise InputError(
            "positions that are stretched cannot be written as GGUF here", found=str(stretched)
        )
    return said | {"vocab_size": int(config["vocab_size"])}


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, list):
        writer.add_array(key, value)
    else:
        write = writer.add_float32 if isinstance(value, float) else writer.add_uint32
        write(key, value)


def _write_tokenizer(writer: GGUFWriter, folder: Path) -> None:
    document = read_json_object(folder / "tokenizer.json")
    settings = read_json_object(folder / "tokenizer_config.json")
    model = document.get("model") or {}
    splits = _splitter(document.get("pre_tokenizer"))
    pre = next((n for n, known in PRE_TOKENIZERS.items() if splits == _splitter(known)), None)
    if model.get("type") != "BPE" or pre is None or document.get("normalizer") is not None:
        raise InputError(
            "a tokenizer like this cannot be written as GGUF here", where=str(folder),
            expected=f"a byte-level BPE that splits text as one of {', '.join(PRE_TOKENIZERS)}",
        )  # fmt: skip
    special = {int(t["id"]): str(t["content"]) for t in document.get("added_tokens") or ()}
    tokens = {int(index): str(token) for token, index in model["vocab"].items()} | special
    listed = [tokens.get(index, f"[PAD{index}]") for index in range(max(tokens) + 1)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(listed)
    writer.add_token_types([CONTROL if i in special else NORMAL for i in range(len(listed))])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in model["merges"]])
    writer.add_add_bos_token(False)
    config = read_json_object(folder / "config.json")
    for name, field in TOKEN_IDS.items():
        given = config.get(field)
        given = given[0] if isinstance(given, list) and given else given
        if isinstance(given, int):
            writer.add_uint32(f"tokenizer.ggml.{name}_token_id", given)
    unknown = next((i for i, t in tokens.items() if t == settings.get("unk_token")), None)
    if unknown is not None:
        writer.add_unk_token_id(unknown)
    templates = effective(spellings(folder))
    if templates:
        writer.add_chat_template([{"name": n, "template": t} for n, t in templates.items()])


def _splitter(part: Any) -> Any:
    """A pre-tokenizer without what has no effect on how text is split."""
    if not isinstance(part, dict):
        return part
    inner: Sequence[Any] | None = part.get("pretokenizers")
    if inner is not None:
        return [_splitter(each) for each in inner]
    return {k: v for k, v in part.items() if k != "trim_offsets"}


def quantize(dense: Path, out: Path, form: str) -> None:
    """Quantize a GGUF file by llama.cpp's own quantizer, in one thread.

    Args:
        dense: what is quantized; packed values are unpacked first.
        out: the file.
        form: as llama.cpp calls it, such as Q4_K_M.

    Raises:
        InputError: it has no such form, or refuses the file.
    """
    import llama_cpp.llama_cpp as binding

    said: list[str] = []

    def log(level: int, text: bytes, _data: object) -> None:
        if level == ERROR:
            said.append(text.decode(errors="replace"))

    on_log = binding.llama_log_callback(log)
    number = getattr(binding, f"LLAMA_FTYPE_MOSTLY_{form}", None)
    if number is None:
        raise InputError(f"llama.cpp has no form {form}", where=str(dense))
    options = binding.llama_model_quantize_default_params()
    options.ftype, options.nthread, options.allow_requantize = number, 1, True
    binding.llama_log_set(on_log, ctypes.c_void_p(0))
    try:
        code = binding.llama_model_quantize(
            str(dense).encode(), str(out).encode(), ctypes.byref(options)
        )
    finally:
        _LOGS.append(on_log)
    if code:
        told = said[0].strip()[:200] if said else f"code {code}"
        raise InputError(f"llama.cpp does not quantize it: {told}", where=str(dense))


_LOGS: list[Any] = []  # C keeps the pointers


def exchange_scales(path: Path) -> None:
    """Turn the scales of every packed matrix of the blocks by half their number, in place.

    Shapes, types and finiteness stay: only what the weights stand for is another.

    Raises:
        InputError: no packed matrix has scales of its own.
    """
    import numpy as np
    from gguf import GGUFReader

    reader = GGUFReader(path, "r+")
    turned = 0
    for tensor in reader.tensors:
        if tensor.name.startswith("blk.") and tensor.tensor_type.name in SCALES:
            for part in scale_bytes(tensor):
                flat = np.array(part).reshape(-1, part.shape[-1])
                part[...] = np.roll(flat, len(flat) // 2, axis=0).reshape(part.shape)
            turned += 1
    if not turned:
        raise InputError("no packed matrix has scales of its own", where=str(path))
    reader.data.flush()
