"""Which files of a model folder ship with it, beside configuration, tokenizer and weights.

One table: what a loader, a chat server or a converter reads. Pins, checkpoint digests, copies
of a checkpoint and the comparison of two checkpoints all ask here.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

from invarlock.files import read_bytes, sha256_file

# Name by which a user accepts a difference -> patterns of the files that it covers.
SHIPPED = {
    "chat_template": (
        "chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja",
    ),
    "generation_config": ("generation_config.json",),
    "tokenizer_config": ("tokenizer_config.json",),
    "special_tokens": ("special_tokens_map.json", "added_tokens.json"),
    "tokenizer_files": (
        "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "tokenizer.model.v*",
        "spiece.model", "sentencepiece*.model", "source.spm", "target.spm", "*.tiktoken",
        "tekken.json",
    ),
    "processor_config": (
        "processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json",
    ),
    # only where a configuration names it, but for what loaders look for by its name
    "remote_code": ("*.py", "custom_generate/*.py"),
}  # fmt: skip
FOLDERS = ("additional_chat_templates", "custom_generate")  # the only ones with shipped files
CODE = "remote_code"
NAMELESS = "custom_generate/"
# What training, version control and people leave beside a checkpoint and no loader reads.
UNREAD = (
    ".*", "README*", "LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*", "*.md", "*.log", "*.png",
    "*.jpg", "*.pdf", "*.yml", "*.yaml", "training_args.bin", "optimizer.*", "scheduler.*",
    "rng_state*", "scaler.pt", "trainer_state.json", "trainer_log.jsonl", "*_results.json",
    "edit_metadata.json", "error_metadata.json",
)  # fmt: skip


def kind_of(name: str) -> str | None:
    """The row of the table that a file belongs to; None where it does not ship."""
    return next(
        (kind for kind, patterns in SHIPPED.items() if _matches(name, patterns)),
        None,
    )


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(
        fnmatchcase(name, pattern) and name.count("/") == pattern.count("/") for pattern in patterns
    )


def is_unread(name: str) -> bool:
    """Whether nothing that loads or serves a model reads a file of this name."""
    return _matches(name, UNREAD)


def chosen(names: Iterable[str], remote_code: bool) -> set[str]:
    """Those of the names (with ``/`` for a folder) that ship; Python only with ``remote_code``, or
    where nothing has to name it."""
    kinds = {name: kind_of(name) for name in names}
    code = {n for n, k in kinds.items() if k == CODE and not n.startswith(NAMELESS)}
    return {n for n, kind in kinds.items() if kind and (remote_code or n not in code)}


def names_in(folder: Path) -> set[str]:
    """Files of a model folder and of the folders in it that hold shipped files; links that lead
    nowhere too, for whoever reads them to say so."""
    inner = [folder / name for name in FOLDERS if (folder / name).is_dir()]
    return {
        str(path.relative_to(folder))
        for place in (folder, *inner)
        for path in place.iterdir()
        if not path.is_dir()
    }


def shipped_files(folder: Path) -> dict[str, Path]:
    """The shipped files of a model folder by name, sorted."""
    names = chosen(names_in(folder), _names_code(folder))
    return {name: folder / name for name in sorted(names)}


def file_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of the bytes of every shipped file, by name.

    Raises:
        InputError: a file cannot be read.
    """
    return {name: sha256_file(path) for name, path in shipped_files(folder).items()}


def _names_code(folder: Path) -> bool:
    """Whether a configuration names Python code; one that is garbled may do so too."""
    files = (folder / name for name in ("config.json", "tokenizer_config.json"))
    return any(b'"auto_map"' in read_bytes(path) for path in files if path.is_file())
