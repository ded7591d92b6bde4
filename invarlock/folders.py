"""What a folder is that was named as a checkpoint and holds none: one line, with what to do.

People hand over adapters, pointers of git-lfs, caches whose files are elsewhere, the state of a
training, files of other frameworks. Each is known by its names and first bytes, without a library
and without reading the weights. Every command that opens a checkpoint comes by here.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from invarlock.errors import InputError, NotACheckpointError
from invarlock.files import unreadable
from invarlock.formats.kind import INDEX_NAME, SINGLE_NAME, Format
from invarlock.formats.kinds import format_of
from invarlock.shown import listed

CONFIG_NAME = "config.json"
ADAPTER_NAME = "adapter_config.json"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
# Files that are part of a model, by how their names end: a broken one breaks the model.
MODEL_SUFFIXES = (".safetensors", ".json", ".txt", ".model", ".jinja", ".gguf", *PICKLE_SUFFIXES)
POINTERS = {
    b"version https://git-lfs.github.com/spec/": ("a git-lfs pointer", "git lfs pull"),
    b"# xet version": ("a git-xet pointer", "git xet install, then git lfs pull"),
}
POINTER_BYTES = 1024  # git-lfs calls no larger file a pointer
# What a file that is called .safetensors begins with when it is something else.
OTHER_CONTENT = {
    b"GGUF": "a GGUF file",
    b"PK\x03\x04": "a zip archive, as torch.save writes it",
    b"\x80\x02": "a pickle, as torch.save writes it",
    b"\x1f\x8b": "a gzip file",
    b"<": "a web page or other markup",
}
UNFINISHED = ("*.incomplete", "*.part", "*.partial", "*.crdownload", "*.aria2")
LISTED = 4  # names in a line


def refuse_broken_files(folder: Path) -> None:
    """Refuse what is no folder, an empty one, and one with pointers or links in place of files.

    Raises:
        InputError: the system refuses to read it.
        NotACheckpointError: what it is, and what to do.
    """
    if os.path.isfile(folder) and named_file(folder):
        _refuse_content(folder)
        return
    if not os.path.isdir(folder):
        raise no_folder(folder)
    names = names_of(folder)
    if not names:
        raise NotACheckpointError(
            "the folder is empty", where=str(folder), hint="copy or download the checkpoint again"
        )
    for name in (n for n in names if n.lower().endswith(MODEL_SUFFIXES)):
        path = folder / name
        if path.is_symlink() and not path.exists():
            raise _dangling(path)
        if path.is_file():
            _refuse_content(path)


def readable_format(folder: Path, allowed: Collection[str] = ()) -> Format:
    """The format of a checkpoint's weights.

    A folder that lacks the files a checkpoint begins with, or holds an adapter beside, is refused.

    Args:
        folder: what was named.
        allowed: the permissions that are given (``Format.switch``).

    Raises:
        NotACheckpointError: what it holds instead, and what to do.
    """
    names = names_of(folder)
    form = format_of(names)
    ready = form is not None and (CONFIG_NAME in names or not form.configured)
    whole = ready
    whole = whole and form is not None and (not form.switch or form.switch in allowed)
    if ADAPTER_NAME in names and (form is None or form.configured):
        raise _adapter(folder, whole)
    if form is not None and whole:
        return form
    for look in (_misspelt, _format, _unfinished, _below, _lacking):
        found = look(folder, names)
        if found is not None:
            raise found
    raise AssertionError("unreachable")


def named_file(path: Path) -> bool:
    """Whether a file alone is a model of some format, by its name."""
    form = format_of([path.name])
    return form is not None and not form.configured


def names_of(folder: Path) -> list[str]:
    """The names in a folder, sorted; of a file, its own.

    Raises:
        InputError: the system refuses to read it.
    """
    if os.path.isfile(folder):
        return [Path(folder).name]
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise unreadable(folder, error) from error


# --- no folder, or files that are not there ---------------------------------------------------


def no_folder(path: Path) -> InputError:
    """The line for a path that is no folder: nothing, a link to nothing, or a file."""
    if path.is_symlink() and not path.exists():
        return NotACheckpointError(
            "is a link that points nowhere", where=str(path), found=os.readlink(path),
            hint="name the folder itself",
        )  # fmt: skip
    try:
        path.stat()
    except FileNotFoundError:
        return NotACheckpointError(
            "no such checkpoint folder", where=str(path), hint=_path_of(path)
        )
    except OSError as error:
        found = unreadable(path, error)
        found.__cause__ = error
        return found
    name = path.name.lower()
    hint = "name the folder that holds config.json and the weights"
    if name.endswith((".zip", ".tar", ".tgz", ".tar.gz", ".tar.zst", ".7z", ".nemo")):
        hint = "unpack it and name the folder"
    elif name.endswith((*PICKLE_SUFFIXES, ".safetensors")):
        hint = f"name the folder that holds it: {shlex.quote(str(path.parent))}"
    return NotACheckpointError(
        "is a file, not a folder", where=str(path), expected="a checkpoint folder", hint=hint
    )


def _path_of(url: Path) -> str:
    """What to name in place of a file's URL, of which Path has joined the slashes."""
    scheme, _, path = str(url).partition(":")
    if scheme.lower() != "file":
        return ""
    return f"name the path, not a URL: {shlex.quote(unquote(path))}"


def _refuse_content(path: Path) -> None:
    """Refuse a pointer in place of a file, and weights that are something else by their bytes."""
    try:
        size = path.stat().st_size
        shard = path.name.endswith(".safetensors")
        if size > POINTER_BYTES and not shard:
            return
        with open(path, "rb") as handle:
            start = handle.read(48)
    except OSError as error:
        raise unreadable(path, error) from error
    for mark, (what, command) in POINTERS.items():
        if start.startswith(mark) and size <= POINTER_BYTES:
            raise NotACheckpointError(
                f"is {what}, not the file itself", where=str(path), found=f"{size} bytes",
                hint=f"run: {command} (in the folder), or download the file",
            )  # fmt: skip
    for mark, what in OTHER_CONTENT.items():
        # a header is JSON after eight bytes of its length, which may be any
        if shard and start[8:9] != b"{" and start.startswith(mark):
            raise NotACheckpointError(
                f"is {what}, not a safetensors file", where=str(path),
                hint="download it again, or save the weights with save_pretrained",
            )  # fmt: skip


def _dangling(path: Path) -> InputError:
    target = os.readlink(path)
    hint = "copy the file that it pointed to, or fetch it again"
    if "blobs/" in target:  # as a snapshot in the hub's cache links to its files
        repository = next((p for p in path.absolute().parts if p.startswith("models--")), "")
        name = "/".join(repository.split("--")[1:]) or "OWNER/NAME"
        hint = f"fetch it again: hf download {name}, or copy the folder with its files: cp -rL"
    return NotACheckpointError(
        "is a link that points nowhere", where=str(path), found=target, hint=hint
    )


# --- something else ---------------------------------------------------------------------------


def _adapter(folder: Path, beside: bool) -> InputError:
    try:
        config: Any = json.loads((folder / ADAPTER_NAME).read_bytes())
    except (OSError, ValueError):
        config = {}
    config = config if isinstance(config, dict) else {}
    base, kind = config.get("base_model_name_or_path"), config.get("peft_type")
    of = f" ({kind})" if isinstance(kind, str) else ""
    of += f" of {base}" if isinstance(base, str) and base else ""
    if beside:
        return NotACheckpointError(
            f"holds two models: full weights, and a PEFT adapter{of} that loaders with peft"
            " would read instead",
            where=str(folder),
            hint=f"if it is merged, remove {ADAPTER_NAME} and adapter_model.*; else remove the"
            " weights and merge it",
        )
    return NotACheckpointError(
        f"is a PEFT adapter{of} without adapter_model.safetensors", where=str(folder),
        found=listed([n for n in names_of(folder) if n.startswith("adapter_model")], LISTED),
        hint="copy or download that file too, or save the adapter with safe_serialization=True",
    )  # fmt: skip


def _misspelt(folder: Path, names: Sequence[str]) -> InputError | None:
    """A file whose name differs by its letters' case alone."""
    for wanted in (CONFIG_NAME, INDEX_NAME, SINGLE_NAME):
        for name in names:
            if name.lower() == wanted and wanted not in names:
                return NotACheckpointError(
                    f"no {wanted}", where=str(folder), found=name, hint=f"call it {wanted}"
                )
    return None


@dataclass(frozen=True)
class _Format:
    """A way to keep models that is not read here, known by one of its files."""

    marks: tuple[str, ...]  # patterns of names
    what: str
    hint: str  # {folder}: the folder


_ORIGINAL = "take the repository's model*.safetensors, config.json and tokenizer.json instead"
_OTHER_FRAMEWORK = "save the model as safetensors with the framework that wrote it"
FORMATS = (
    _Format(
        ("consolidated*.pth", "consolidated*.safetensors", "params.json"),
        "the original format of Llama or Mistral",
        f"{_ORIGINAL}, or convert it with transformers' convert_*_weights_to_hf.py",
    ),
    _Format(
        ("zero_to_fp32.py", "global_step*", "zero_pp_rank_*", "*_model_states.pt"),
        "the state of a DeepSpeed training",
        "gather it: python zero_to_fp32.py . MODEL --safe_serialization (in the folder that holds"
        " that file), and add config.json and the tokenizer",
    ),
    _Format(
        ("*.distcp", ".metadata", "pytorch_model_fsdp_*", "distributed_checkpoint"),
        "the shards of a distributed training (FSDP)",
        "gather them: accelerate merge-weights {folder} MODEL, and add config.json and the"
        " tokenizer",
    ),
    _Format(
        ("mp_rank_*", "iter_[0-9]*", "latest_checkpointed_iteration.txt", "model_optim_rng.pt"),
        "a checkpoint of Megatron-LM",
        "convert it with Megatron's own tool (tools/checkpoint/convert.py)",
    ),
    _Format(
        ("*.gguf",), "the part of a GGUF model that reads images",
        "name the file of the language model beside it",
    ),
    _Format(("model_index.json",), "a diffusers pipeline", "name the folder of a language model"),
    _Format(("*.onnx", "onnx"), "an ONNX model", _OTHER_FRAMEWORK),
    _Format(("tf_model*.h5", "saved_model.pb"), "a TensorFlow model", _OTHER_FRAMEWORK),
    _Format(("flax_model*.msgpack",), "a Flax model", _OTHER_FRAMEWORK),
    _Format(("weights*.npz",), "an MLX model", _OTHER_FRAMEWORK),
    _Format(("openvino_*.xml",), "an OpenVINO model", _OTHER_FRAMEWORK),
    _Format(("*.engine", "rank*.safetensors"), "a TensorRT-LLM model", _OTHER_FRAMEWORK),
)  # fmt: skip


def _format(folder: Path, names: Sequence[str]) -> InputError | None:
    if {"snapshots", "blobs"} <= set(names):
        return NotACheckpointError(
            "is a repository's folder of the hub's cache, not a snapshot", where=str(folder),
            hint=f"name one of its snapshots: {listed(_folders(folder / 'snapshots'), LISTED)}",
        )  # fmt: skip
    if INDEX_NAME in names or SINGLE_NAME in names:
        return None  # weights are there; only config.json is missing
    for form in FORMATS:
        found = [n for mark in form.marks for n in names if fnmatchcase(n, mark)]
        if found:
            return NotACheckpointError(
                f"holds {form.what}, which is not read here", where=str(folder),
                found=listed(found, LISTED), hint=form.hint.format(folder=shlex.quote(str(folder))),
            )  # fmt: skip
    return None


def _unfinished(folder: Path, names: Sequence[str]) -> InputError | None:
    """A download that was interrupted, here or where the hub's client keeps unfinished files."""
    kept = folder / ".cache/huggingface/download"
    loading = [*names, *(os.listdir(kept) if kept.is_dir() else [])]
    found = [n for mark in UNFINISHED for n in loading if fnmatchcase(n, mark)]
    if not found:
        return None
    return NotACheckpointError(
        "a download was not finished", where=str(folder), found=listed(found, LISTED),
        hint="repeat it: hf download OWNER/NAME --local-dir DIR goes on where it stopped",
    )  # fmt: skip


def _folders(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return [shlex.quote(str(folder / n)) for n in names_of(folder) if (folder / n).is_dir()]


def _below(folder: Path, names: Sequence[str]) -> InputError | None:
    """Checkpoints one level below, as Trainer and archives leave them."""
    if CONFIG_NAME in names and any(n.endswith(".safetensors") for n in names):
        return None
    found = [
        n
        for n in sorted(names, key=lambda n: [int(d) for d in re.findall(r"\d+", n)])
        if (folder / n / CONFIG_NAME).is_file()
        and any((folder / n / w).is_file() for w in (INDEX_NAME, SINGLE_NAME))
    ]
    if not found:
        return None
    return NotACheckpointError(
        "holds no checkpoint itself, but folders that do", where=str(folder),
        found=listed(found, LISTED),
        hint=f"name one of them: {shlex.quote(str(folder / found[-1]))}",
    )  # fmt: skip


def _lacking(folder: Path, names: Sequence[str]) -> InputError | None:
    """Neither: the configuration or the weights are simply not there."""
    if CONFIG_NAME not in names:
        return NotACheckpointError(
            "the checkpoint folder has no config.json", where=str(folder),
            hint="copy the one of the model it was made from",
        )  # fmt: skip
    tensors = [n for n in names if n.endswith(".safetensors")]
    if tensors:
        alone = len(tensors) == 1
        return NotACheckpointError(
            f"neither {SINGLE_NAME} nor {INDEX_NAME}", where=str(folder),
            found=listed(tensors, LISTED),
            hint=f"call it {SINGLE_NAME}" if alone else "add the index that lists the shards",
        )  # fmt: skip
    states = ("training_args", "optimizer", "scheduler", "rng_state")
    pickles = [n for n in names if n.endswith(PICKLE_SUFFIXES) and not n.startswith(states)]
    if pickles:
        return NotACheckpointError(
            "only pickle weights (" + listed(pickles, LISTED) + "), which can run code when loaded",
            where=str(folder), expected=SINGLE_NAME,
            hint="allow them with --allow-pickle (allow_pickle_checkpoints: true), or convert the"
            " checkpoint to safetensors: load it where you trust it, and save it with"
            " save_pretrained",
        )  # fmt: skip
    return NotACheckpointError(
        "no weights in the folder", where=str(folder), expected=f"{SINGLE_NAME} or {INDEX_NAME}",
        hint="copy or download them again",
    )  # fmt: skip
