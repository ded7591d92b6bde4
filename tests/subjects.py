"""Subjects as people really make them, from a dense Llama-shaped checkpoint folder.

Each maker changes a copy of the baseline's folder in place. What has to come out of an evaluation
stands in ``test_cases.py``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

WEIGHTS = "model.safetensors"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@dataclass
class Subject:
    """A folder that is being changed: its tensors and ``config.json``, written when it is done."""

    folder: Path
    config: dict[str, Any] = field(init=False)
    tensors: dict[str, torch.Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.config = json.loads((self.folder / "config.json").read_text())
        self.tensors = load_file(self.folder / WEIGHTS)

    def update(self, name: str, **changes: object) -> None:
        """Set keys of a JSON file of the folder; None removes a key."""
        path = self.folder / name
        document = (json.loads(path.read_text()) if path.exists() else {}) | changes
        kept = {key: value for key, value in document.items() if value is not None}
        path.write_text(json.dumps(kept, indent=1))

    def write(self) -> None:
        """Write what was changed of weights and configuration."""
        (self.folder / "config.json").write_text(json.dumps(self.config, indent=1))
        save_file(self.tensors, self.folder / WEIGHTS, metadata={"format": "pt"})


Maker = Callable[[Subject], None]


def make(maker: Maker, baseline: Path, out: Path) -> Path:
    """A subject of the baseline in a new folder ``out``."""
    shutil.copytree(baseline, out, ignore=shutil.ignore_patterns(".*", "READY"))
    subject = Subject(out)
    maker(subject)
    return out


def _saved_again(subject: Subject, dtype: torch.dtype | str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(subject.folder, dtype=dtype)
    tokenizer = AutoTokenizer.from_pretrained(subject.folder)
    for path in subject.folder.iterdir():
        path.unlink()
    model.save_pretrained(subject.folder)
    tokenizer.save_pretrained(subject.folder)


def resaved_by_transformers(subject: Subject) -> None:
    """Loaded and saved, in the dtype of the file."""
    _saved_again(subject, "auto")


def resaved_as_float16(subject: Subject) -> None:
    """Loaded and saved as float16."""
    _saved_again(subject, torch.float16)


def tied_head_stored_too(subject: Subject) -> None:
    """A head with the embedding's bytes beside a configuration that ties them."""
    subject.tensors[HEAD] = subject.tensors[EMBEDDING].clone()
    subject.write()


def untied_equal_head(subject: Subject) -> None:
    """An untied head with the embedding's bytes."""
    subject.config["tie_word_embeddings"] = False
    tied_head_stored_too(subject)


def vocabulary_padded(subject: Subject) -> None:
    """64 rows more, each the mean of all, as resizing an embedding makes them."""
    table = subject.tensors[EMBEDDING]
    rows = table.float().mean(0, keepdim=True).expand(64, -1).to(table.dtype)
    subject.tensors[EMBEDDING] = torch.cat([table, rows]).contiguous()
    subject.config["vocab_size"] += 64
    subject.write()


def ids_in_another_spelling(subject: Subject) -> None:
    """The end of text as a list of one, no beginning of text: as trainers write them."""
    subject.config["eos_token_id"] = [subject.config["eos_token_id"]]
    subject.config["bos_token_id"] = None
    subject.write()


def token_rows_exchanged(subject: Subject) -> None:
    """A tenth of the embedding's rows in each other's places, no token of the first 200."""
    table = subject.tensors[EMBEDDING].clone()
    order = torch.randperm(len(table) - 200, generator=torch.Generator().manual_seed(5))
    rows = order[: len(table) // 10] + 200
    table[rows] = subject.tensors[EMBEDDING][rows.roll(1)]
    subject.tensors[EMBEDDING] = table
    subject.write()


def two_special_rows_exchanged(subject: Subject) -> None:
    """The rows of two control tokens in each other's places."""
    table = subject.tensors[EMBEDDING].clone()
    table[[1, 2]] = table[[2, 1]]
    subject.tensors[EMBEDDING] = table
    subject.write()


def long_context_setting(subject: Subject) -> None:
    """Settings that act only beyond the length of a window."""
    subject.config["rope_scaling"] = {"rope_type": "dynamic", "factor": 4.0}
    subject.config["max_position_embeddings"] = 256
    subject.write()


def chat_template_lost(subject: Subject) -> None:
    """No chat template, and a beginning-of-text token added to every text."""
    subject.update("tokenizer_config.json", chat_template=None, add_bos_token=True)
    (subject.folder / "chat_template.jinja").unlink(missing_ok=True)


def generation_config_empty(subject: Subject) -> None:
    """A file of no bytes, as a full disk leaves it."""
    (subject.folder / "generation_config.json").write_text("")


def edit_never_applied(subject: Subject) -> None:
    """The baseline's weights under another version of the library."""
    subject.config["transformers_version"] = "5.0.0"
    subject.write()


def quantization_config_left(subject: Subject) -> None:
    """Dense weights whose configuration says that they are packed."""
    weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
    subject.config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "dense",
        "quantization_status": "frozen",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }
    subject.write()


def lfs_pointer(subject: Subject) -> None:
    """What a clone without git-lfs leaves in place of the weights."""
    oid = "0" * 64
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize 269060552\n"
    (subject.folder / WEIGHTS).write_text(text)


def dangling_link(subject: Subject) -> None:
    """A folder of a cache without the blobs that it links to."""
    (subject.folder / WEIGHTS).unlink()
    (subject.folder / WEIGHTS).symlink_to("../../blobs/" + "0" * 64)


def tokenizer_missing(subject: Subject) -> None:
    """Weights and configuration only."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (subject.folder / name).unlink(missing_ok=True)
