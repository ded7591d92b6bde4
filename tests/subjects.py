"""Subjects as people really make them, from a dense Llama-shaped checkpoint folder.

Each maker changes a copy of the baseline's folder in place. What has to come out of an evaluation
stands in ``test_cases.py``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

WEIGHTS = "model.safetensors"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
VALUE, OUTPUT = "self_attn.v_proj", "self_attn.o_proj"
READERS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", VALUE),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}


@dataclass
class Subject:
    """A folder that is being changed: its tensors and ``config.json``, written when it is done."""

    folder: Path
    config: dict[str, Any] = field(init=False)
    tensors: dict[str, torch.Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.config = json.loads((self.folder / "config.json").read_text())
        self.tensors = load_file(self.folder / WEIGHTS)

    @property
    def heads(self) -> tuple[int, int, int]:
        """Attention heads, heads of keys and values, and their width."""
        count = self.config["num_attention_heads"]
        return count, self.config["num_key_value_heads"], self.config["hidden_size"] // count

    def of(self, layer: int, name: str) -> torch.Tensor:
        """The weight of a layer, as float32."""
        return self.tensors[f"model.layers.{layer}.{name}.weight"].float()

    def set(self, layer: int, name: str, weight: torch.Tensor) -> None:
        """Another weight of a layer, in the dtype of the one before."""
        full = f"model.layers.{layer}.{name}.weight"
        self.tensors[full] = weight.to(self.tensors[full].dtype).contiguous()

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


def _folded(subject: Subject, scale_of: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Each norm divided by a scale of it, and the columns of what reads it multiplied."""
    for layer, norm, readers in _norms(subject):
        weight = subject.of(layer, norm)
        scale = scale_of(weight)
        subject.set(layer, norm, weight / scale)
        for name in readers:
            subject.set(layer, name, subject.of(layer, name) * scale)
    subject.write()


def _norms(subject: Subject) -> Iterator[tuple[int, str, tuple[str, ...]]]:
    for layer in range(subject.config["num_hidden_layers"]):
        yield from ((layer, norm, readers) for norm, readers in READERS.items())


def scales_folded(subject: Subject) -> None:
    """Random scales moved from norms into what reads them, as SmoothQuant and AWQ move theirs."""
    random = torch.Generator().manual_seed(11)
    _folded(subject, lambda norm: torch.exp(0.7 * torch.randn(norm.shape, generator=random)))


def norms_fused(subject: Subject) -> None:
    """Norm weights all one, what they were in the maps behind them."""
    _folded(subject, lambda norm: norm)


def value_heads_rotated(subject: Subject) -> None:
    """Each value head in another basis, and the columns of the output projection that read it."""
    heads, groups, width = subject.heads
    for layer in range(subject.config["num_hidden_layers"]):
        value = subject.of(layer, VALUE).view(groups, width, -1)
        output = subject.of(layer, OUTPUT).view(-1, groups, heads // groups, width)
        random = torch.Generator().manual_seed(layer)
        basis, _ = torch.linalg.qr(torch.randn(groups, width, width, generator=random))
        subject.set(layer, VALUE, (basis @ value).flatten(0, 1))
        subject.set(layer, OUTPUT, torch.einsum("ogrw,gvw->ogrv", output, basis).flatten(1))
    subject.write()


def pruned_by_input(subject: Subject) -> None:
    """Of each row the tenth that matters least: by size times the scale of the norm before."""
    for layer, norm, readers in _norms(subject):
        size = subject.of(layer, norm).abs()
        for name in readers:
            weight = subject.of(layer, name)
            least = (weight.abs() * size).argsort(1)[:, : weight.shape[1] // 10]
            subject.set(layer, name, weight.scatter(1, least, 0.0))
    subject.write()


def value_heads_shifted(subject: Subject) -> None:
    """The value heads of one layer in each other's places, what reads them not."""
    layer = subject.config["num_hidden_layers"] * 2 // 3
    _, groups, width = subject.heads
    shifted = subject.of(layer, VALUE).view(groups, width, -1).roll(1, 0)
    subject.set(layer, VALUE, shifted.flatten(0, 1))
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
