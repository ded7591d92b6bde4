"""Generation settings of two checkpoints, compared as a loader resolves them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from invarlock.differences import stated
from invarlock.files import read_json_object
from invarlock.guards.findings import Failure
from invarlock.guards.padding import read_where_it_pads

NAME = "generation_config.json"
ACCEPT = "generation_config"
IGNORED = ("transformers_version", "_from_model_config")
# What a setting means that is left out (documented defaults of transformers' GenerationConfig).
DEFAULTS: Mapping[str, object] = {
    "max_length": 20, "min_length": 0, "do_sample": False, "num_beams": 1, "num_beam_groups": 1,
    "num_return_sequences": 1, "early_stopping": False, "use_cache": True, "temperature": 1.0,
    "top_k": 50, "top_p": 1.0, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0,
    "diversity_penalty": 0.0, "repetition_penalty": 1.0, "encoder_repetition_penalty": 1.0,
    "length_penalty": 1.0, "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0,
    "renormalize_logits": False, "remove_invalid_values": False, "output_scores": False,
    "output_attentions": False, "output_hidden_states": False, "output_logits": False,
    "return_dict_in_generate": False, "token_healing": False, "low_memory": False,
}  # fmt: skip
# Generation starts from a text: where one side leaves this out, as training tools do, nothing is
# generated otherwise.
BEGINNING = "bos_token_id"
PADDING = "pad_token_id"  # training tools take one, or another
SPEED = ("use_cache",)  # trainers turn it off: the same text, later
TOKEN_IDS = ("eos_token_id",)  # one, or any of several


def check_generation(baseline: Path, subject: Path) -> list[Failure]:
    """How the effective generation settings of two checkpoint folders differ."""
    before, after = effective(baseline), effective(subject)
    changed = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
    padding = before.get(PADDING), after.get(PADDING)
    read = read_where_it_pads(subject, *padding, after) if PADDING in changed else ""
    notes = [
        n
        for n in changed
        if n in SPEED
        or (n == PADDING and not read)
        or (n == BEGINNING and None in (before.get(n), after.get(n)))
    ]
    found: list[Failure] = []
    for names, severity in ((sorted({*changed} - {*notes}), "fatal"), (notes, "warning")):
        if names:
            told = ", ".join(f"{n} was {_value(before, n)}, is {_value(after, n)}" for n in names)
            if PADDING in names and read:
                told += f"; as padding, {read}"
            failure: Failure = {
                "type": "generation_config_changed",
                "severity": severity,
                "message": f"generation settings: {told}",
            }
            found.append(failure | ({"accept": ACCEPT} if severity == "fatal" else {}))
    return found


def effective(folder: Path) -> dict[str, object]:
    """The settings that are not their defaults; without a file those that config.json gives."""
    path = folder / NAME
    stated = read_json_object(path) if path.is_file() else _derived(folder)
    settings: dict[str, object] = {}
    for name, value in stated.items():
        if name in TOKEN_IDS and value is not None:
            ids = value if isinstance(value, list) else [value]
            settings[name] = sorted(set(ids), key=str)
        elif value is not None and name not in IGNORED and not _is_default(name, value):
            settings[name] = value
    return settings


def _is_default(name: str, value: object) -> bool:
    return name in DEFAULTS and value == DEFAULTS[name]


def _derived(folder: Path) -> dict[str, Any]:
    """What transformers makes of a checkpoint without generation settings."""
    from transformers import AutoConfig, GenerationConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, OSError, KeyError):  # not a model of the library: what it declares itself
        config = read_json_object(folder / "config.json")
        return {name: config.get(name) for name in (*TOKEN_IDS, BEGINNING, PADDING)}
    return dict(GenerationConfig.from_model_config(config).to_dict())


def _value(settings: Mapping[str, object], name: str) -> str:
    """A value for people; what is left out is its default."""
    value = settings.get(name, DEFAULTS.get(name))
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return stated(value)
