"""Invariants guard: what must be the same in baseline and subject, before a model exists.

Reads only the safetensors headers, ``config.json``, ``tokenizer.json`` and (for non-finite
values and tying) the tensors one at a time, so that a checkpoint that cannot be loaded has
already been judged. A second look after loading reports parameters that were not initialized
from the file and tensors that were not used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from invarlock.checkpoints import Checkpoint, tokenizer_digest
from invarlock.errors import InputError
from invarlock.folders import NotACheckpointError
from invarlock.guards.invariants_decision import Failure
from invarlock.roles import LAYER_COUNTS, is_tied, layer_of, role_of

# Configuration fields that change what the weights mean. Anything else (dtype, names of
# classes, generation defaults) may differ between a baseline and a re-saved subject.
FIXED_CONFIG = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "vocab_size",
    "tie_word_embeddings",
    "rope_parameters",
    "rms_norm_eps",
    "layer_norm_eps",
    "layer_norm_epsilon",
    "sliding_window",
    "num_local_experts",
    "num_experts",
    "num_experts_per_tok",
    "n_layer",
    "n_head",
    "n_embd",
    "d_model",
    "d_kv",
    "d_ff",
    "num_layers",
    "num_decoder_layers",
    "num_heads",
    "relative_attention_num_buckets",
    "relative_attention_max_distance",
    "feed_forward_proj",
    "bos_token_id",
    "eos_token_id",
    "decoder_start_token_id",
)
DEFAULT_ROPE_THETA = 10_000.0  # where config.json gives none
LISTED = 5  # names given in a message; the count is always complete


def _failure(kind: str, message: str, severity: str = "fatal") -> Failure:
    return {"type": kind, "severity": severity, "message": message}


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def open_subject(folder: Path) -> tuple[Checkpoint | None, list[Failure]]:
    """The subject, or what is wrong with its files if they cannot be read as a checkpoint.

    Raises:
        InputError: the folder holds no checkpoint, or the system refuses to read it.
    """
    try:
        subject = Checkpoint.open(folder)
        tokenizer_digest(folder)
    except InputError as error:
        if isinstance(error, NotACheckpointError) or isinstance(error.__cause__, OSError):
            raise
        place = Path(error.where).name if error.where != str(folder) else ""
        # no path: it is of this machine
        told = InputError(error.what, where=place, expected=error.expected, found=error.found)
        return None, [_failure("unreadable_checkpoint", str(told))]
    return subject, []


def check_checkpoint(baseline: Checkpoint, subject: Checkpoint) -> list[Failure]:
    """Every difference that matters between the two folders, most basic first."""
    return [
        *_check_config(baseline.config, subject.config),
        *_check_tensors(baseline, subject),
        *_check_layers(subject),
        *_check_vocabulary(baseline, subject),
        *_check_tying(baseline, subject),
        *_check_finite(subject),
    ]


def _check_config(baseline: Mapping[str, Any], subject: Mapping[str, Any]) -> list[Failure]:
    before, after = _meaning(baseline), _meaning(subject)
    return [
        _failure("config_changed", f"config.json: {k} was {before[k]!r}, is {after[k]!r}")
        for k in before
        if before[k] != after[k]
    ]


def _meaning(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fixed fields in one spelling, defaults written out, as saving a model again does.

    Older configurations hold ``rope_theta`` and ``rope_scaling``, newer ones
    ``rope_parameters``; heads that are not given follow from those that are.
    """
    meaning = {key: config.get(key) for key in FIXED_CONFIG}
    heads, hidden = config.get("num_attention_heads"), config.get("hidden_size")
    if meaning["num_key_value_heads"] is None:
        meaning["num_key_value_heads"] = heads
    if meaning["head_dim"] is None and isinstance(heads, int) and isinstance(hidden, int):
        meaning["head_dim"] = hidden // heads if heads else None
    meaning["tie_word_embeddings"] = is_tied(config)
    given = config.get("rope_parameters") or config.get("rope_scaling")
    rope = dict(given) if isinstance(given, Mapping) else {}
    rope["rope_type"] = rope.pop("type", None) or rope.get("rope_type", "default")
    rope.setdefault("rope_theta", config.get("rope_theta", DEFAULT_ROPE_THETA))
    meaning["rope_parameters"] = rope
    return meaning


def _check_tensors(baseline: Checkpoint, subject: Checkpoint) -> list[Failure]:
    found: list[Failure] = []
    missing = sorted(set(baseline.tensors) - set(subject.tensors))
    extra = sorted(set(subject.tensors) - set(baseline.tensors))
    if missing:
        found.append(
            _failure("missing_tensors", f"{len(missing)} tensors are missing: {_names(missing)}")
        )
    if extra:
        found.append(_failure("extra_tensors", f"{len(extra)} tensors are new: {_names(extra)}"))
    both = sorted(set(baseline.tensors) & set(subject.tensors))
    for name in both:
        b, s = baseline.tensors[name], subject.tensors[name]
        if b.shape != s.shape:
            found.append(
                _failure("shape_changed", f"{name}: shape was {list(b.shape)}, is {list(s.shape)}")
            )
    types = [n for n in both if baseline.tensors[n].dtype != subject.tensors[n].dtype]
    if types:
        b, s = baseline.tensors[types[0]], subject.tensors[types[0]]
        found.append(
            _failure(
                "dtype_changed",
                f"{len(types)} tensors changed type ({b.dtype} to {s.dtype}): {_names(types)}",
                severity="warning",
            )
        )
    return found


def _check_layers(subject: Checkpoint) -> list[Failure]:
    counts = [n for k in LAYER_COUNTS if isinstance(n := subject.config.get(k), int)]
    declared = max(counts, default=0)
    layers = {layer for name in subject.tensors if (layer := layer_of(name)) is not None}
    if not declared or not layers or layers == set(range(declared)):
        return []
    return [
        _failure(
            "layer_count",
            f"config.json declares {declared} layers, the tensors hold {len(layers)}",
        )
    ]


def _check_vocabulary(baseline: Checkpoint, subject: Checkpoint) -> list[Failure]:
    found: list[Failure] = []
    before, after = tokenizer_digest(baseline.folder), tokenizer_digest(subject.folder)
    if before != after:
        found.append(
            _failure(
                "tokenizer_mismatch",
                f"tokenizer.json differs: baseline {_short(before)}, subject {_short(after)}",
            )
        )
    declared = subject.config.get("vocab_size")
    for name, tensor in subject.tensors.items():
        is_table = role_of(name, subject.config) in ("embed", "head") and len(tensor.shape) == 2
        if is_table and _is_token_table(name) and tensor.shape[0] != declared:
            found.append(
                _failure(
                    "tokenizer_mismatch",
                    f"{name} has {tensor.shape[0]} rows, config.json declares {declared} tokens",
                )
            )
    return found


def _is_token_table(name: str) -> bool:
    parts = ("embed_tokens", "wte", "word_embeddings", "shared", "lm_head")
    return any(part in name for part in parts)


def _short(digest: str | None) -> str:
    return digest[:12] if digest else "none"


def tying_state(checkpoint: Checkpoint) -> str:
    """``tied``, ``untied`` or ``untied_equal`` (a separate head with the embedding's content)."""
    head = next((n for n in checkpoint.tensors if n.endswith("lm_head.weight")), None)
    if checkpoint.config.get("tie_word_embeddings", head is None):
        return "tied"
    if head is None:
        return "tied"
    table = next(
        (
            n
            for n in checkpoint.tensors
            if role_of(n, checkpoint.config) == "embed" and _is_token_table(n)
        ),
        None,
    )
    equal = table is not None and checkpoint.tensor_digest(head) == checkpoint.tensor_digest(table)
    return "untied_equal" if equal else "untied"


def _check_tying(baseline: Checkpoint, subject: Checkpoint) -> list[Failure]:
    before, after = tying_state(baseline), tying_state(subject)
    if before == after or {before, after} == {"untied", "untied_equal"}:
        return []
    return [_failure("weight_tying", f"embedding and head were {before}, are {after}")]


def _check_finite(subject: Checkpoint) -> list[Failure]:
    import torch

    found: list[Failure] = []
    for name in sorted(subject.tensors):
        tensor = subject.load(name)
        if not tensor.is_floating_point():
            continue
        values = tensor.float() if tensor.element_size() == 1 else tensor
        # min and max together see NaN and both infinities in one pass, without a mask
        if tensor.numel() and not torch.isfinite(torch.stack(values.aminmax())).all():
            bad = int((~torch.isfinite(values)).sum())
            found.append(
                _failure("non_finite_tensor", f"{name} holds {bad} values that are not finite")
            )
    return found


def check_loaded(missing: Sequence[str], unexpected: Sequence[str]) -> list[Failure]:
    """After loading: parameters left at random values, and tensors nobody read."""
    found: list[Failure] = []
    if missing:
        found.append(
            _failure(
                "not_initialized",
                f"{len(missing)} parameters were not in the checkpoint: {_names(sorted(missing))}",
            )
        )
    if unexpected:
        found.append(
            _failure(
                "unused_tensors",
                f"{len(unexpected)} tensors were not used: {_names(sorted(unexpected))}",
                severity="warning",
            )
        )
    return found
