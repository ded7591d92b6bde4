"""What two ``config.json`` say to the loader, whatever they spell it like.

Both are read by the configuration class that would load them (transformers' own, of the installed
version), which fills in defaults and turns older spellings into its own; what is compared is the
result. An architecture that the library does not know, or that brings its own code, is compared
as written.

A field's class decides what a difference is. The classes declare what their models read, so a
declared field is taken to change the function unless it is known not to (``TRAINING``,
``RESOLVED``); a field that no class declares is taken not to, unless other loaders are known to
read it (``ACTING``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, cast

from invarlock.differences import short, stated
from invarlock.errors import InputError
from invarlock.files import FLOAT_TAG, canonical_json

Fields = Mapping[str, Any]

# Names, versions, paths, and what only chooses the form of a result.
IGNORED = re.compile(
    r"_name_or_path|model_name|.*_version|_commit_hash|unsloth_fixed|is_local|local_files_only"
    r"|_?attn_implementation(?:_internal|_autoset)?|_experts_implementation"
    r"|_flash_attn_2_enabled|use_cache|output_(?:attentions|hidden_states|router_logits|past)"
    r"|return_dict|architectures|dtype|torch_dtype|auto_map"  # the last four by themselves
)
# What only training, or a head that is not measured, reads.
TRAINING = re.compile(
    r".*(?:dropout|pdrop|layerdrop).*|initializer_range|initializer_factor|init_std|init_device"
    r"|gradient_checkpointing|use_bfloat16|router_(?:aux_loss_coef|z_loss_coef|jitter_noise)"
    r"|summary_.*|problem_type|id2label|label2id|num_labels|task_specific_params|finetuning_task"
    r"|pretraining_tp|chunk_size_feed_forward|slow_but_exact|cache_implementation"
)
# From these the class makes ``layer_types`` and ``sliding_window``, which are compared.
RESOLVED = frozenset(
    {"use_sliding_window", "max_window_layers", "sliding_window_pattern", "no_rope_layer_interval"}
)
# Read by models of some loader although the class may not declare them.
ACTING = re.compile(
    r"sliding_window|attention_window|layer_types|attention_chunk_size|max_position_embeddings"
    r"|original_max_position_embeddings|n_positions|max_seq_len|rope_.*|rotary_.*|use_.*rope"
    r"|partial_rotary_factor|.*logit_softcapping|logit_scale|logits_scaling|.*_multiplier"
    r"|attention_bias|mlp_bias|head_dim|n_inner|hidden_act|hidden_activation|activation_function"
    r"|.*norm_eps(?:ilon)?|is_decoder|is_encoder_decoder|add_cross_attention"
    r"|decoder_start_token_id|quantization_config|scale_decoder_outputs|alibi|no_rope_layers"
    r"|is_causal|use_bidirectional_attention|dual_chunk_attention_config|attn_temperature_tuning"
    r"|interleaved_sliding_window|(?:qkv_|o_|use_)?bias|(?:use_)?qk_(?:layer)?norm"
)
# With another value the tensors have other shapes, or are another network's.
SHAPES = frozenset(
    {
        "model_type", "hidden_size", "n_embd", "d_model", "dim", "word_embed_proj_dim",
        "intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size", "n_inner",
        "ffn_dim", "d_ff", "hidden_dim", "ffn_hidden_size", "num_hidden_layers", "n_layer",
        "n_layers", "num_layers", "num_decoder_layers", "num_attention_heads", "n_head", "n_heads",
        "num_heads", "num_key_value_heads", "num_kv_heads", "head_dim", "d_kv", "kv_lora_rank",
        "q_lora_rank", "num_local_experts", "num_experts", "n_routed_experts", "type_vocab_size",
        "is_encoder_decoder", "quantization_config", "text_config", "vision_config",
    }
)  # fmt: skip
# Judged with the tensors and with the token ids.
ELSEWHERE = frozenset(
    {"vocab_size", "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id"}
)
# The rotation as loaders from before ``rope_parameters`` read it.
OLDER_ROTATION = ("rope_theta", "rope_scaling", "partial_rotary_factor")
TIED = "tie_word_embeddings"
CONTEXT = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")
RELATIVE = "relative_attention_num_buckets"
# Other names under which one config.json may give a field a second time.
SECOND_NAMES = (
    ("hidden_act", "hidden_activation", "activation_function"),
    CONTEXT,
    ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"),
    ("num_attention_heads", "n_head", "n_heads"),
    ("num_hidden_layers", "n_layer", "n_layers"),
    ("hidden_size", "n_embd", "d_model"),
    ("num_key_value_heads", "num_kv_heads", "n_head_kv"),
    ("num_local_experts", "num_experts"),
    ("rope_theta", "rotary_emb_base"),
    ("partial_rotary_factor", "rotary_pct"),
)


class Weight(Enum):
    """What a difference of a field is."""

    IMPOSSIBLE = "impossible"  # the two are not two states of one model
    FUNCTION = "function"  # the loader builds another function
    NOTE = "note"


@dataclass(frozen=True)
class SettingDifference:
    """A field that the loader reads differently from the two files."""

    name: str  # as accepted by name
    weight: Weight
    message: str


@dataclass(frozen=True)
class Effective:
    """The fields as the class resolves them; ``declared`` is None where no class read them."""

    fields: Fields
    declared: frozenset[str] | None = field(default=None)


def differences(baseline: Fields, subject: Fields) -> list[SettingDifference]:
    """How the loader reads ``subject`` otherwise than ``baseline``, the worst first.

    Sizes of the vocabulary, tying and token ids are not among it: they are judged together with
    the tensors and the tokenizer.

    Raises:
        InputError: the class that reads the baseline refuses the subject's.
    """
    if canonical_json(baseline) == canonical_json(subject):
        return []
    kind = baseline.get("model_type")
    if kind != subject.get("model_type"):
        return [
            _difference("model_type", Weight.IMPOSSIBLE, kind, subject.get("model_type")),
            *_contradicted(baseline, subject),
        ]
    found = [
        *_contradicted(baseline, subject),
        *_other_architectures(baseline, subject),
        *_other_code(baseline, subject),
        *_other_dtype(baseline, subject),
        *_older_spelling_lost(baseline, subject),
    ]
    if _read(baseline) == _read(subject):  # no class needs to be asked
        return found
    before = _resolved(baseline)
    after = Effective(_present(subject)) if before.declared is None else _resolved(subject)
    if before.declared is not None and after.declared is None:
        raise InputError("no class reads it", found=str(kind))
    found += _compare(before, after, "")
    if before.declared is None and found:
        text = f"config.json: {kind!r} has no class in the library; fields are compared as written"
        found.append(SettingDifference("model_type", Weight.NOTE, text))
    return sorted(found, key=lambda difference: [*Weight].index(difference.weight))


def value_of(config: Fields, name: str) -> Any:
    """A field of the model or of its text part; what the class takes where none is given."""
    inner = config.get("text_config")
    for part in (config, inner if isinstance(inner, Mapping) else {}):
        if name in part:
            return part[name]
    return defaults_of(config).get(name)


def defaults_of(config: Fields) -> Fields:
    """The fields of the model and of its text part, with what the class takes where none is given;
    none at all where it refuses the values."""
    try:
        resolved = _resolved(config).fields
    except InputError:  # told where the configurations are compared
        return {}
    inner = resolved.get("text_config")
    return {**(inner if isinstance(inner, Mapping) else {}), **resolved}


def text_part_ties(config: Fields) -> bool | None:
    """Whether the text part of a larger model says, or its class takes it, that head and embedding
    are one matrix; None where there is no such part."""
    try:
        inner = _resolved(config).fields.get("text_config")
    except InputError:  # told where the configurations are compared
        inner = config.get("text_config")
    found = inner.get(TIED) if isinstance(inner, Mapping) else None
    return found if isinstance(found, bool) else None


def context_of(config: Fields) -> int | None:
    """Tokens that the file says the model, or its text part, takes at once; None where it does not,
    or where positions are relative, whatever older files state (T5)."""
    inner = config.get("text_config")
    for part in (config, inner if isinstance(inner, Mapping) else {}):
        for name in CONTEXT[:2]:
            if type(tokens := part.get(name)) is int and RELATIVE not in part:
                return tokens
    return None


def _other_architectures(baseline: Fields, subject: Fields) -> list[SettingDifference]:
    """Servers choose the model by these names, the loader by the kind of model."""
    b, s = (config.get("architectures") for config in (baseline, subject))
    before, after = (set(map(str, each or ())) for each in (b, s))
    if before == after:
        return []
    # one that does not name the baseline's class is served as another model, or not at all
    acts = bool(before) and not before <= after
    return [_difference("architectures", Weight.FUNCTION if acts else Weight.NOTE, b, s)]


def _other_code(baseline: Fields, subject: Fields) -> Iterator[SettingDifference]:
    """Loaders that are allowed to take a model's code from where this says."""
    b, s = (code_of(config) for config in (baseline, subject))
    if b != s:
        new = any(b.get(part) != code for part, code in s.items())
        weight = Weight.FUNCTION if new else Weight.NOTE
        yield _difference("auto_map", weight, baseline.get("auto_map"), subject.get("auto_map"))


def code_of(settings: Fields) -> dict[str, str]:
    """What ``auto_map`` names, whichever repository a loader has put in front of it."""
    named = settings.get("auto_map")
    return {
        str(part): re.sub(r"[^\s'\"]+--", "", str(code))
        for part, code in (named.items() if isinstance(named, Mapping) else ())
    }


def _other_dtype(baseline: Fields, subject: Fields) -> Iterator[SettingDifference]:
    """The dtype that servers run a model in, which both are not measured in."""
    b, s = (stated_dtype(config) for config in (baseline, subject))
    if b and s and b != s:
        message = f"config.json: dtype was {b}, is {s}: servers run the subject in it"
        yield SettingDifference("dtype", Weight.NOTE, message)


def stated_dtype(config: Fields) -> str:
    """The dtype that ``config.json`` names; empty where it names none."""
    named = config.get("dtype") or config.get("torch_dtype") or ""
    return str(named).removeprefix("torch.")


def _older_spelling_lost(baseline: Fields, subject: Fields) -> Iterator[SettingDifference]:
    """A rotation that the subject gives in ``rope_parameters`` alone, and the baseline not.

    Loaders from before that field take their defaults for it, and say nothing.
    """
    part, theirs = (_language_part(config) for config in (subject, baseline))
    given = [name for name in OLDER_ROTATION if theirs.get(name) is not None]
    if not given or not part.get("rope_parameters") or all(part.get(n) is not None for n in given):
        return
    try:
        now, older, before = map(
            _read_rotation, (subject, _before_it(subject), _before_it(baseline))
        )
    except InputError:  # told where the two are compared
        return
    if now == older or now != before:
        return
    text = (
        f"config.json: {', '.join(given)} stood by itself and is in rope_parameters alone: loaders"
        " from before transformers 5 take their default instead, and say nothing; give both"
    )
    yield SettingDifference(given[0], Weight.NOTE, text)


def _language_part(config: Fields) -> Fields:
    inner = config.get("text_config")
    return inner if isinstance(inner, Mapping) else config


def _before_it(config: Fields) -> Fields:
    """A configuration as loaders from before ``rope_parameters`` see it."""
    inner = config.get("text_config")
    seen = {k: v for k, v in config.items() if k != "rope_parameters"}
    return seen | ({"text_config": _before_it(inner)} if isinstance(inner, Mapping) else {})


def _read_rotation(config: Fields) -> object:
    return _language_part(_resolved(config).fields).get("rope_parameters")


def _read(config: Fields) -> bytes:
    """What is given of the fields that any loader reads."""
    given = {k: v for k, v in config.items() if not IGNORED.fullmatch(k)}
    return canonical_json(given)


def token_ids(value: object) -> frozenset[int]:
    """The ids of a ``*_token_id`` field: one, a list, or none."""
    items = value if isinstance(value, list | tuple) else [value]
    return frozenset(item for item in items if isinstance(item, int))


def _resolved(config: Fields) -> Effective:
    """The fields as the installed library's class for ``model_type`` makes them.

    Raises:
        InputError: the class refuses the values.
    """
    import transformers
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING

    library_log: Any = transformers.utils.logging
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        return Effective(_present(config))
    made = cast(Any, CONFIG_MAPPING[kind])
    level = library_log.get_verbosity()
    library_log.set_verbosity_error()
    try:  # the class works on the dictionaries it is given
        resolved = made.from_dict(_with_infinities(config)).to_dict()
    except (StrictDataclassError, ValueError, TypeError, LookupError, AttributeError) as error:
        cause = " ".join(str(error).split())
        raise InputError(f"{made.__name__} refuses it: {cause}") from error
    finally:
        library_log.set_verbosity(level)
    return Effective(resolved, _declared(kind) | (set(resolved) - set(config)))


def _with_infinities(value: Any) -> Any:
    """A copy with the numbers that JSON has no word for."""
    if isinstance(value, Mapping):
        tagged = value.get(FLOAT_TAG) if len(value) == 1 else None
        if isinstance(tagged, str):
            return float(tagged)
        return {key: _with_infinities(item) for key, item in value.items()}
    return [_with_infinities(item) for item in value] if isinstance(value, list) else value


def _declared(kind: str) -> frozenset[str]:
    """Fields that the class declares beside those of every configuration."""
    from transformers import CONFIG_MAPPING, PreTrainedConfig

    if kind not in CONFIG_MAPPING:
        return frozenset()
    common = cast(Any, PreTrainedConfig).__dataclass_fields__
    return frozenset(cast(Any, CONFIG_MAPPING[kind]).__dataclass_fields__) - frozenset(common)


def _present(config: Fields) -> dict[str, Any]:
    return {key: value for key, value in config.items() if value is not None}


def _compare(before: Effective, after: Effective, inside: str) -> Iterator[SettingDifference]:
    """Every field that differs; ``inside`` names the part of a model of several."""
    for name in sorted({*before.fields, *after.fields}):
        b, s = before.fields.get(name), after.fields.get(name)
        if isinstance(b, Mapping) and isinstance(s, Mapping) and name.endswith("_config"):
            kind = str(b.get("model_type"))
            declared = None if before.declared is None else _declared(kind)
            yield from _compare(Effective(b, declared), Effective(s, declared), f"{name}.")
            continue
        b, s = _implied(name, b, before.fields), _implied(name, s, after.fields)
        if name in ELSEWHERE or IGNORED.fullmatch(name) or _plain(name, b) == _plain(name, s):
            continue
        if name.startswith("_") and name not in (before.declared or ()):
            continue  # the library's own notes
        weight = _weight(name, before, after)
        yield _difference(name, weight, b, s, inside)


def _weight(name: str, before: Effective, after: Effective) -> Weight:
    if name in SHAPES:
        return Weight.IMPOSSIBLE
    if TRAINING.fullmatch(name):
        return Weight.NOTE
    if name in RESOLVED and before.declared is not None:
        return Weight.NOTE
    if name == "sliding_window" and _all_layers_see_everything(before, after):
        return Weight.NOTE
    known = before.declared is None or name in before.declared | (after.declared or frozenset())
    return Weight.FUNCTION if known or ACTING.fullmatch(name) else Weight.NOTE


def _all_layers_see_everything(before: Effective, after: Effective) -> bool:
    """Whether no layer has a window, so that its length says nothing."""
    kinds = [side.fields.get("layer_types") for side in (before, after)]
    return all(kind and set(kind) == {"full_attention"} for kind in kinds)


def _implied(name: str, value: Any, fields: Fields) -> Any:
    """What models take where a field is not given, and the class leaves that to them."""
    hidden, heads = fields.get("hidden_size"), fields.get("num_attention_heads")
    if value is None and name == "head_dim" and isinstance(hidden, int) and heads:
        return hidden // int(heads)
    if value is None and name == "n_inner" and isinstance(fields.get("n_embd"), int):
        return 4 * int(fields["n_embd"])
    if name == "layer_types" and isinstance(value, list) and {*value} == {"full_attention"}:
        # as where nothing is said, unless a window is
        return value if fields.get("sliding_window") else None
    return value


def _plain(name: str, value: Any) -> Any:
    """A value without its spelling: tuples are lists, absent entries of a table are none."""
    if isinstance(value, Mapping):
        items = {str(k): _plain(str(k), v) for k, v in value.items() if v is not None}
        if "rope_type" in items or "type" in items:  # the older name of the kind of rotation
            kind = items.pop("type", None) or items["rope_type"]
            items["rope_type"] = _current_kind(kind, items)
        if items.get("rope_type") == "linear" and items.get("factor") == 1:  # stretched by nothing
            items = {**items, "rope_type": "default"}
            items.pop("factor")
        return items
    if isinstance(value, list | tuple):
        return [_plain("", item) for item in value]
    if isinstance(value, str) and re.search("act", name):
        return {"swish": "silu", "gelu_pytorch_tanh": "gelu_new"}.get(value, value)
    return value


def _current_kind(kind: object, rope: Fields) -> object:
    """The name that transformers 5 has for a kind of rotation; it leaves older ones beside it."""
    if kind == "mrope":  # the usual one, with a position for each direction of a picture
        return "default"
    return "longrope" if kind in ("su", "yarn") and "long_factor" in rope else kind


def _difference(name: str, weight: Weight, b: Any, s: Any, inside: str = "") -> SettingDifference:
    if isinstance(b, Mapping) and isinstance(s, Mapping):
        keys = sorted(k for k in {*b, *s} if b.get(k) != s.get(k))
        b, s = ({k: side[k] for k in keys if k in side} for side in (b, s))
    message = f"config.json: {inside}{name} was {stated(b)}, is {stated(s)}"
    return SettingDifference(name, weight, message)


def _contradicted(baseline: Fields, subject: Fields) -> Iterator[SettingDifference]:
    """Contradictions of the subject that the baseline does not have."""
    known = set(contradictions(baseline))
    for name, text in contradictions(subject):
        if (name, text) not in known:
            message = f"config.json: {text}: two loaders would read two models"
            weight = Weight.NOTE if name == "dtype" else Weight.FUNCTION
            yield SettingDifference(name, weight, message)


def contradictions(config: Fields, inside: str = "") -> list[tuple[str, str]]:
    """Fields that one ``config.json`` gives twice and differently, with what it says."""
    found = [*_contradicting_rotations(config, inside)]
    pairs = [(a, b) for names in SECOND_NAMES for a in names[:1] for b in names[1:]]
    for one, other in (*pairs, ("dtype", "torch_dtype")):
        b, s = config.get(one), config.get(other)
        if b is not None and s is not None and _plain(one, b) != _plain(other, s):
            found.append((one, f"{inside}{one} is {short(b)}, {inside}{other} {short(s)}"))
    kinds = config.get("layer_types")
    windows = isinstance(kinds, list) and "sliding_attention" in kinds
    if windows and config.get("use_sliding_window") is False:
        text = f"{inside}layer_types names sliding layers, {inside}use_sliding_window is False"
        found.append(("layer_types", text))
    for key, value in config.items():
        if key.endswith("_config") and isinstance(value, Mapping) and not inside:
            found += contradictions(value, f"{key}.")
    return found


def _contradicting_rotations(config: Fields, inside: str) -> Iterator[tuple[str, str]]:
    new, old = config.get("rope_parameters"), config.get("rope_scaling")
    for name, rope in (("rope_parameters", new), ("rope_scaling", old)):
        if not isinstance(rope, Mapping):
            continue
        kinds = [rope.get(key) for key in ("type", "rope_type")]
        if all(kinds) and len({str(_current_kind(kind, rope)) for kind in kinds}) == 2:
            yield name, f"{inside}{name}: type is {kinds[0]!r}, rope_type {kinds[1]!r}"
    if not isinstance(new, Mapping):
        return
    nested = [part for part in new.values() if isinstance(part, Mapping)]
    whole = new.get("full_attention") if nested else new
    if not isinstance(whole, Mapping):
        return
    for name in ("rope_theta", "partial_rotary_factor"):
        top, within = config.get(name), whole.get(name)
        if top is not None and within is not None and top != within:
            yield name, f"{inside}{name} is {top!r}, {inside}rope_parameters has {within!r}"
    if "rope_scaling" not in config:
        return
    other = _rotation(old if isinstance(old, Mapping) else {})
    if _rotation(whole) != other:
        text = f"{short(old)}, {inside}rope_parameters {short(dict(whole))}"
        yield "rope_scaling", f"{inside}rope_scaling is {text}"


def _rotation(rope: Fields) -> dict[str, Any]:
    """How positions are scaled, without the base frequency, which has its own field."""
    kept = dict(_plain("", rope))
    kept.setdefault("rope_type", "default")
    for name in ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings"):
        kept.pop(name, None)
    return kept
