"""Configuration and tokenizer of a GGUF model as the files that its baseline has.

A GGUF file says what llama.cpp needs and no more: activations, flags of the tokenizer, names of
classes are not in it. So the baseline's files are taken, and what the GGUF file says otherwise is
put in their place; whoever compares the two finds exactly that. A tokenizer is compared by its
vocabulary, merges and template: how text is split before that is a name in GGUF, whose rules
llama.cpp has, and shows by the ids that it gives (:mod:`invarlock.run.engine_tokens`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from invarlock.effective_config import CONTEXT, defaults_of
from invarlock.errors import InputError
from invarlock.files import pretty_json, read_json_object, unreadable
from invarlock.formats.gguf.architectures import architecture_of
from invarlock.formats.gguf.conversion import CONTROL, float32, templates_of
from invarlock.formats.gguf.reading import Gguf
from invarlock.modalities import tokens_of_pictures
from invarlock.template_files import DEFAULT, FILE, LEGACY, MORE
from invarlock.template_files import SETTINGS as SETTINGS_FILE

Fields = dict[str, Any]

# Metadata of the architecture -> the fields of config.json that say the same.
SETTINGS = {
    "block_count": ("num_hidden_layers",),
    "embedding_length": ("hidden_size",),
    "feed_forward_length": ("intermediate_size",),
    "expert_count": ("num_local_experts", "num_experts"),
    "expert_used_count": ("num_experts_per_tok",),
    "expert_feed_forward_length": ("moe_intermediate_size",),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
    "attention.head_count": ("num_attention_heads",),
    "attention.head_count_kv": ("num_key_value_heads",),
    "attention.key_length": ("head_dim",),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps",),
    "attention.layer_norm_epsilon": ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"),
    "attention.sliding_window": ("sliding_window",),
    "attention.scale": ("attention_multiplier",),
    "embedding_scale": ("embedding_multiplier",),
    "residual_scale": ("residual_multiplier",),
    "logit_scale": ("logits_scaling", "logit_scale"),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "ssm.conv_kernel": ("linear_conv_kernel_dim",),
    "ssm.state_size": ("linear_key_head_dim",),
    "ssm.group_count": ("linear_num_key_heads",),
    "ssm.time_step_rank": ("linear_num_value_heads",),
    "context_length": ("max_position_embeddings",),
}
TOKEN_IDS = {"bos": "bos_token_id", "eos": "eos_token_id", "padding": "pad_token_id"}
# How positions are stretched, as GGUF and as config.json call it; the others are in tensors.
SCALINGS = {"none": "default", "linear": "linear", "yarn": "yarn"}
STRETCHED = ("linear", "yarn")
ORIGINAL = "original_max_position_embeddings"
# Metadata -> the fields of a rotation that say the same.
STRETCHES = {
    "rope.scaling.factor": "factor",
    "rope.scaling.original_context_length": ORIGINAL,
    "rope.scaling.yarn_beta_fast": "beta_fast",
    "rope.scaling.yarn_beta_slow": "beta_slow",
    "attention.temperature_scale": "llama_4_scaling_beta",
}
# The tensor that holds the factors -> the kind of rope that has them.
FACTORS = {"rope_freqs.weight": "llama3", "rope_factors_long.weight": "longrope"}
RATIO = "rope_freqs.weight"  # of it the configuration has no list, but the numbers that give it
LISTED = {"rope_factors_long.weight": "long_factor", "rope_factors_short.weight": "short_factor"}
CLOSE = 1e-5  # of numbers that converters compute in float32
NORMAL, USER_DEFINED, UNUSED = 1, 4, 5  # tokenizer.ggml.token_type (GGUF specification)
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".safetensors.index.json")
OWN = ("config.json", "tokenizer.json", SETTINGS_FILE, FILE, LEGACY, MORE)
GENERATION = "generation_config.json"
# Metadata by which llama.cpp samples where nobody says otherwise -> the setting that says the same.
SAMPLING = {
    "top_k": "top_k", "top_p": "top_p", "min_p": "min_p", "temp": "temperature",
    "penalty_repeat": "repetition_penalty", "xtc_probability": "xtc_probability",
    "mirostat": "mirostat", "penalty_last_n": "penalty_last_n",
}  # fmt: skip


def write_beside(gguf: Gguf, baseline: Path, folder: Path) -> None:
    """Write the small files of a model into ``folder``, with what only the baseline's folder says.

    Raises:
        InputError: metadata or a file of the baseline is missing or damaged.
    """
    config = read_json_object(baseline / "config.json")
    (folder / "config.json").write_bytes(pretty_json(config_of(gguf, config)))
    if (baseline / "tokenizer.json").is_file():
        document = read_json_object(baseline / "tokenizer.json")
        (folder / "tokenizer.json").write_bytes(
            pretty_json(tokenizer_of(gguf, document, tokens_of_pictures(config)))
        )
    _write_templates(gguf, folder, baseline / SETTINGS_FILE)
    own = {*OWN, *_write_sampling(gguf, baseline, folder)}
    try:
        for path in sorted(baseline.iterdir()):
            if path.name not in own and not path.name.endswith(WEIGHTS):
                os.symlink(path.absolute(), folder / path.name)
    except OSError as error:
        raise unreadable(baseline, error) from error


# --- config.json ------------------------------------------------------------------------------


def config_of(gguf: Gguf, baseline: Mapping[str, Any]) -> Fields:
    """``config.json`` of the model: the baseline's, but for what the metadata say otherwise."""
    config = dict(baseline)
    inner = config.get("text_config")
    # of a model for images and text, GGUF holds the language model
    own: Fields = dict(inner) if isinstance(inner, dict) else config
    if own is not config:
        config["text_config"] = own
    known = architecture_of(gguf)
    if own.get("model_type") not in known.model_types:
        own["model_type"] = known.model_types[0]
    said = [(field, gguf.of_model(key)) for key, fields in SETTINGS.items() for field in fields]
    said = [(field, value) for field, value in (*said, *known.fixed.items()) if value is not None]
    before = own
    if not all(field in own for field, _ in said):
        defaults = defaults_of(baseline)
        before = {**defaults, **(defaults.get("text_config") or {}), **own}
    by_alpha = _base_is_of_alpha(gguf, own)
    for field, value in said:
        if by_alpha and field in CONTEXT:
            continue
        found = _said(before.get(field), value)
        if field in own or before.get(field) not in (None, found):
            own[field] = found
    embedding = gguf.tensors.get("token_embd.weight")
    if embedding is None:
        raise InputError("the model has no token_embd.weight", where=str(gguf.source))
    if own is config or "vocab_size" in own:
        own["vocab_size"] = embedding.shape[0]
    tied = "output.weight" not in gguf.tensors
    for part in (config, own):
        if "tie_word_embeddings" in part or (part is config and not tied):
            part["tie_word_embeddings"] = tied
        for name, field in TOKEN_IDS.items():
            said = gguf.get(f"tokenizer.ggml.{name}_token_id")
            # of several ids that end a text, GGUF holds one
            if (
                said is not None
                and int(said) not in _ids(part.get(field))
                and _ids(part.get(field))
            ):
                part[field] = int(said)
    if not by_alpha:
        _rotation(gguf, own)
    return config


def _said(baseline: object, value: Any) -> Any:
    """The metadata's value, in the baseline's spelling where they are one number."""
    if isinstance(value, list):
        one = {*map(_plain, value)} - {0}  # layers that have none of it
        value = one.pop() if len(one) == 1 and not isinstance(baseline, list) else value
    if isinstance(value, float) and isinstance(baseline, int | float):
        return baseline if float32(baseline) == float32(value) else float32(value)
    return baseline if value == baseline else value


def _plain(value: object) -> object:
    return float32(value) if isinstance(value, float) else value


def _ids(value: object) -> list[object]:
    return list(value) if isinstance(value, list) else [] if value is None else [value]


def _rotation(gguf: Gguf, config: Fields) -> None:
    """Base and stretching of the rotary positions, wherever the baseline states them."""
    places = [config]
    for name in ("rope_parameters", "rope_scaling"):
        stated = config.get(name)
        if isinstance(stated, dict):
            own: Fields = dict(stated)
            config[name] = own
            full = own.get("full_attention")  # where layers rotate by their kind
            if isinstance(full, dict):
                own["full_attention"] = full = dict(full)
                own = full
            places.append(own)
    theta = gguf.of_model("rope.freq_base")
    if theta is not None and not any("rope_theta" in place for place in places):
        config["rope_theta"] = float32(theta)  # the baseline has the default of its class
    for place in places:
        if theta is not None and "rope_theta" in place:
            place["rope_theta"] = _said(place["rope_theta"], theta)
    by_tensor = next((k for tensor, k in FACTORS.items() if tensor in gguf.tensors), None)
    stretched = SCALINGS.get(str(gguf.of_model("rope.scaling.type"))) in STRETCHED
    if len(places) == 1 and (by_tensor or stretched):
        config["rope_scaling"] = {"rope_type": "default"}  # the baseline says nothing of it
        places.append(config["rope_scaling"])
    for place in places[1:]:
        key = "rope_type" if "rope_type" in place else "type"
        before = str(place.get(key, "default"))
        kind = by_tensor or SCALINGS.get(str(gguf.of_model("rope.scaling.type") or "none"), before)
        if kind != before and (before, kind) != ("mrope", "default"):
            place[key] = kind
        sections = gguf.of_model("rope.dimension_sections")
        if sections is not None and "mrope_section" in place:  # the fourth is of no direction
            place["mrope_section"] = _said(place["mrope_section"], list(sections)[:3])
        for said, field in STRETCHES.items():
            value = gguf.of_model(said)
            needed = field in ("factor", ORIGINAL) and kind in STRETCHED
            if value is not None and (field in place or needed):
                place[field] = _said(place.get(field), value)
        _factors(gguf, config, places, place)


def _base_is_of_alpha(gguf: Gguf, config: Fields) -> bool:
    """Whether the file's base is that of a rotation that ``alpha`` stretches, which llama.cpp has
    no name for: base * alpha ** (d / (d - 2)) for heads of d (HunYuan). Converters state another
    context with it."""
    rope = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    alpha, base = rope.get("alpha"), rope.get("rope_theta", config.get("rope_theta"))
    found = gguf.of_model("rope.freq_base")
    if not (isinstance(alpha, int | float) and isinstance(base, int | float) and found):
        return False
    size = _head_size(config)
    wanted = float(base) * float(alpha) ** (size / (size - 2))
    if not math.isclose(wanted, found, rel_tol=CLOSE) or gguf.tensors.keys() & FACTORS.keys():
        return False
    return SCALINGS.get(str(gguf.of_model("rope.scaling.type") or "none")) == "default"


def _head_size(config: Fields) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _factors(gguf: Gguf, config: Fields, places: Sequence[Fields], place: Fields) -> None:
    """The factors of each frequency that are stored, where they are not those of ``place``."""
    for tensor, field in LISTED.items():
        if tensor in gguf.tensors and field in place:
            values = [float(value) for value in gguf.tensors[tensor].values().ravel()]
            place[field] = (
                _said(place[field], values) if _differ(place[field], values) else place[field]
            )
    if RATIO in gguf.tensors and place.get("rope_type", place.get("type")) == FACTORS[RATIO]:
        base = next((each["rope_theta"] for each in places if "rope_theta" in each), 10000.0)
        try:
            wanted = llama3_factors(place, float(base), _head_size(config))
        except (KeyError, TypeError, ZeroDivisionError):
            return  # what the class says of such a configuration is told
        values = gguf.tensors[RATIO].values().ravel().tolist()
        if _differ(wanted, values):
            place["frequency_factors"] = values


def llama3_factors(rope: Mapping[str, Any], base: float, size: int) -> list[float]:
    """What divides each of the ``size / 2`` frequencies of a head: 1 for those that turn often
    within the original context, ``factor`` for those that hardly turn, between them both in
    proportion (transformers, ``_compute_llama3_parameters``, as a quotient).

    Raises:
        KeyError: the configuration lacks one of the four numbers.
    """
    factor, low, high = (
        float(rope[key]) for key in ("factor", "low_freq_factor", "high_freq_factor")
    )
    context = float(rope["original_max_position_embeddings"])
    found = []
    for pair in range(0, size, 2):
        turns = context / (2 * math.pi * base ** (pair / size))
        share = min(max((turns - low) / (high - low), 0.0), 1.0)
        found.append(1 / ((1 - share) / factor + share))
    return found


def _differ(wanted: object, values: Sequence[float]) -> bool:
    """Whether numbers are other than a configuration's, but for their rounding."""
    if not isinstance(wanted, list) or len(wanted) != len(values):
        return True
    return not all(
        isinstance(a, int | float) and math.isclose(a, b, rel_tol=CLOSE)
        for a, b in zip(wanted, values, strict=True)
    )


# --- tokenizer --------------------------------------------------------------------------------


def tokenizer_of(gguf: Gguf, baseline: Fields, elsewhere: Collection[int] = ()) -> Fields:
    """``tokenizer.json`` of the model: the baseline's, but for the vocabulary that GGUF holds.

    Args:
        gguf: the model.
        baseline: the content of the baseline's ``tokenizer.json``.
        elsewhere: ids that stand for pictures, which a file of the language model may end before.
    """
    tokens: Sequence[str] = gguf.meta("tokenizer.ggml.tokens")
    last = [each for each in baseline.get("added_tokens") or () if int(each["id"]) in elsewhere]
    types: Sequence[int] = gguf.get("tokenizer.ggml.token_type") or ()
    document = dict(baseline)
    document["model"] = model = dict(document.get("model") or {})
    added = [dict(each) for each in document.get("added_tokens") or ()]
    # one of an ordinary type is read letter by letter where it stands in a text
    added = [each for each in added if not _is_ordinary(types, int(each["id"]))]
    special = {int(each["id"]): each for each in added}
    pieces = model.get("vocab")
    if isinstance(pieces, dict):
        before = {int(index): token for token, index in pieces.items() if int(index) not in special}
        model["vocab"] = {
            token: index for index, token in sorted(_vocabulary(before, tokens).items())
        }
        known = {*before, *special}
        for index in range(len(tokens)):
            kind = types[index] if index < len(types) else NORMAL
            if index in known or kind == UNUSED:
                continue
            if kind in (CONTROL, USER_DEFINED):
                added.append(_added(index, tokens[index], kind == CONTROL))
            else:
                model["vocab"][tokens[index]] = index
        # the library wants the added ones that are part of the vocabulary in it, too
        for token, index in pieces.items():
            if int(index) in special and int(index) < len(tokens):
                model["vocab"][_text(token, tokens[int(index)])] = int(index)
    elif isinstance(pieces, list):  # of pieces with scores, in the order of their ids
        model["vocab"] = [
            [_text(piece, tokens[index]), score]
            for index, (piece, score) in enumerate(pieces)
            if index < len(tokens)
        ]
    document["added_tokens"] = [
        {**each, "content": _text(each["content"], tokens[int(each["id"])])}
        for each in added
        if int(each["id"]) < len(tokens)
    ] + [each for each in last if int(each["id"]) >= len(tokens)]
    merges = gguf.get("tokenizer.ggml.merges")
    if merges is not None and "merges" in model:
        own = [tuple(merge.split(" ", 1)) for merge in merges]
        if own != [_pair(merge) for merge in model["merges"]]:
            model["merges"] = [list(pair) for pair in own]
    return document


def _is_ordinary(types: Sequence[int], index: int) -> bool:
    return index < len(types) and types[index] in (NORMAL, UNUSED)


def _vocabulary(before: Mapping[int, str], tokens: Sequence[str]) -> dict[int, str]:
    return {i: _text(token, tokens[i]) for i, token in before.items() if i < len(tokens)}


def _text(before: str, own: str) -> str:
    """A token of the file, in the baseline's spelling: blanks may be written in two ways."""
    return before if before.replace("\u2581", " ") == own.replace("\u2581", " ") else own


def _pair(merge: Any) -> tuple[str, ...]:
    return tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge)


def _added(index: int, token: str, special: bool) -> Fields:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": index, "content": token, **flags, "special": special}


def _write_sampling(gguf: Gguf, baseline: Path, folder: Path) -> list[str]:
    """The generation settings where the file has some of its own; the names of what was written."""
    given = {field: gguf.get(f"general.sampling.{key}") for key, field in SAMPLING.items()}
    given = {field: value for field, value in given.items() if value is not None}
    if not given:
        return []
    path = baseline / GENERATION
    if path.is_file():
        stated = read_json_object(path)
    else:  # then loaders take the ids that end a text from the model's
        config = read_json_object(baseline / "config.json")
        stated = {name: config[name] for name in TOKEN_IDS.values() if name in config}
    said = {field: _said(stated.get(field), value) for field, value in given.items()}
    (folder / GENERATION).write_bytes(pretty_json(stated | said))
    return [GENERATION]


def _write_templates(gguf: Gguf, folder: Path, settings: Path) -> None:
    """The chat templates of the file, in place of all that the baseline has."""
    for name, text in templates_of(gguf).items():
        path = folder / (FILE if name == DEFAULT else f"{MORE}/{name}.jinja")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    if settings.is_file():
        stated = read_json_object(settings)
        stated.pop("chat_template", None)
        (folder / settings.name).write_bytes(pretty_json(stated))
