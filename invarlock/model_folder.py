"""Open a folder that somebody brings as a model: what it is, if it cannot be measured.

The files are read by :mod:`invarlock.checkpoints`; here it is asked whether their content is what
a measurement needs: dense weights under the model's own names, a language model, a tokenizer.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shlex
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from invarlock.checkpoints import Checkpoint
from invarlock.errors import InputError, NotACheckpointError
from invarlock.folders import LISTED
from invarlock.formats.execution import require_package
from invarlock.formats.kinds import formats
from invarlock.formats.packed import (
    MODELOPT_FILE,
    QUANTIZED,
    Packed,
    config_of,
    method_of,
    quantization_of,
    said_in,
)
from invarlock.library_classes import CAUSAL, LANGUAGE_MODELS, classes_of, reads_images
from invarlock.roles import ARCHITECTURES, model_type_of
from invarlock.shown import listed

# What other ways of packing weights add to a tensor's name, and what reads it.
PACKED = {
    ".codebooks": ("AQLM", "transformers with aqlm"),
    ".W_q": ("HQQ", "hqq itself or vLLM (transformers 5.23 does not)"),
    ".weight._data": ("quanto", "transformers with optimum-quanto"),
    ".centroids": ("VPTQ", "transformers with vptq"),
}
DENSE = ["F64", "F32", "F16", "BF16"]
# What wraps a model puts its own word before every name of a tensor.
WRAPPERS = {
    "_orig_mod.": "torch.compile",
    "_fsdp_wrapped_module.": "FSDP",
    "_forward_module.": "Lightning",
    "base_model.model.": "PEFT",
    "module.": "DataParallel",
}
UNMERGED = (".lora_A.", ".lora_B.", ".base_layer.")
SLOW_TOKENIZERS = ("tokenizer.model", "spiece.model", "tekken.json", "vocab.json", "vocab.txt")
# Ends of class names in config.json's architectures.
OTHER_HEADS = ("Classification", "ForQuestionAnswering", "ForMultipleChoice", "RewardModel")


def open_model(
    folder: Path, baseline: Path | None = None, allowed: Collection[str] = ()
) -> Checkpoint:
    """The checkpoint in ``folder``, if it can be measured; ``baseline`` is what it came from, and
    ``allowed`` are the permissions that are given.

    Raises:
        NotACheckpointError: it cannot: what it is, and what to do.
        InputError: its files are damaged.
    """
    checkpoint = Checkpoint.open(folder, baseline, allowed)
    if not checkpoint.form.packed:
        _refuse_packed(checkpoint)
    elif isinstance(checkpoint.form, Packed):
        _refuse_mixed(checkpoint)
    _refuse_names(checkpoint)
    refuse_architecture(checkpoint.config, folder)
    names = os.listdir(checkpoint.folder)
    if "tokenizer.json" not in names:
        raise no_tokenizer(str(folder), names, baseline)
    for package in checkpoint.form.packages:
        require_package(
            package.module, package.extra, f"{checkpoint.form.title} models", str(folder)
        )
    return checkpoint


def refuse_unusable(
    folder: Path, baseline: Path | None = None, allowed: Collection[str] = ()
) -> None:
    """Refuse what cannot be measured, but not damage: that is a finding of the measurement.

    Raises:
        NotACheckpointError: see :func:`open_model`.
        InputError: the system refuses to read the folder.
    """
    try:
        open_model(folder, baseline, allowed)
    except NotACheckpointError:
        raise
    except InputError as error:
        if isinstance(error.__cause__, OSError):
            raise


def _refuse_packed(checkpoint: Checkpoint) -> None:
    """Refuse packed weights of a format that is not read, or that ``config.json`` does not name."""
    key = next((k for k in QUANTIZED if isinstance(checkpoint.config.get(k), dict)), None)
    said = quantization_of(checkpoint.config)
    more = (said.get(key) for key in ("quant_algo", "packing_format"))
    method = " ".join(str(word) for word in (method_of(checkpoint.config), *more) if word)
    mark = next((m for m in PACKED for n in checkpoint.tensors if n.endswith(m)), None)
    other = _not_dense(checkpoint)
    if mark is None and not other:
        if key is not None:
            raise _left(key, checkpoint)
        _refuse_modelopt(checkpoint)
        return
    what, reader = PACKED.get(mark or "", (method or "quantized", ""))
    if mark is None and key is None:
        found = f"{other[0]} of {checkpoint.tensors[other[0]].dtype}"
        raise NotACheckpointError(
            f"the weights are packed, and config.json does not say how{_as_which(checkpoint)}",
            where=str(checkpoint.folder), found=found,
            hint="copy the config.json that was written with them, with its quantization_config",
        )  # fmt: skip
    raise NotACheckpointError(
        f"the weights are packed ({what}), which is not read here", where=str(checkpoint.folder),
        expected="dense weights (bfloat16, float16 or float32)",
        hint=(f"{reader} would read them; " if reader else "")
        + "name the dense checkpoint they were packed from, or dequantize them and save that",
    )  # fmt: skip


def _refuse_mixed(checkpoint: Checkpoint) -> None:
    """Refuse weights that are not packed as ``config.json`` says, all or some."""
    assert isinstance(checkpoint.form, Packed)
    other = _not_dense(checkpoint)
    title = checkpoint.form.title
    none = checkpoint.form.packs_none(config_of(checkpoint.folder))
    if not checkpoint.packed and not other and not none:
        _refuse_modelopt(checkpoint)
        said = (k for k in QUANTIZED if isinstance(checkpoint.config.get(k), dict))
        raise _left(next(said), checkpoint)
    if other:
        what = "some of the weights are" if checkpoint.packed else "the weights are"
        raise NotACheckpointError(
            f"{what} not packed as config.json says ({title}){_as_which(checkpoint)}",
            where=str(checkpoint.folder),
            found=listed([f"{n} of {checkpoint.tensors[n].dtype}" for n in other], LISTED),
            hint="copy the files of one checkpoint, and none of another",
        )  # fmt: skip


def _not_dense(checkpoint: Checkpoint) -> list[str]:
    """Tensors that are no weights of a model as they stand, by their type or their names."""
    marks = tuple(mark for form in formats() if isinstance(form, Packed) for mark in form.marks)
    return [
        name
        for name, info in checkpoint.tensors.items()
        if name not in checkpoint.packed
        and (name.endswith(marks) or (len(info.shape) > 1 and info.dtype not in DENSE))
    ]


def _as_which(checkpoint: Checkpoint) -> str:
    """The other formats whose tensors some are, by their names."""
    others = [form for form in formats() if isinstance(form, Packed) and form != checkpoint.form]
    titles = [
        form.title
        for form in others
        if any(name.endswith(form.marks) for name in _not_dense(checkpoint))
    ]
    return f", but look like {' or '.join(titles)}" if titles else ""


def _left(key: str, checkpoint: Checkpoint) -> NotACheckpointError:
    method = method_of(checkpoint.config) or "of no method"
    stored = sorted({info.dtype for info in checkpoint.tensors.values()})
    return NotACheckpointError(
        f"a {key} ({method}) is left in config.json, but the weights are dense"
        f" ({', '.join(stored)}), and loaders would treat them as packed",
        where=str(checkpoint.folder / "config.json"), hint=f"remove {key} from config.json",
    )  # fmt: skip


def _refuse_modelopt(checkpoint: Checkpoint) -> None:
    """Refuse ModelOpt's own file beside dense weights."""
    path = checkpoint.folder / MODELOPT_FILE
    method = said_in(path).get("quant_algo") if path.is_file() else None
    if method:
        raise NotACheckpointError(
            f"{MODELOPT_FILE} ({method}) is left beside dense weights, and servers would treat"
            " them as packed", where=str(checkpoint.folder), hint=f"remove {MODELOPT_FILE}",
        )  # fmt: skip


def _refuse_names(checkpoint: Checkpoint) -> None:
    unmerged = sorted(n for n in checkpoint.tensors if any(part in n for part in UNMERGED))
    if unmerged:
        raise NotACheckpointError(
            f"an adapter is not merged: {len(unmerged)} of the tensors are its own",
            where=str(checkpoint.folder), found=listed(unmerged, LISTED),
            hint="save what merge_and_unload() returns",
        )  # fmt: skip
    for prefix, wrapper in WRAPPERS.items():
        wrapped = sorted(n for n in checkpoint.tensors if f".{n}".find(f".{prefix}") >= 0)
        if wrapped:
            raise NotACheckpointError(
                f"the tensors carry the prefix {prefix} of {wrapper}, so that no model finds them",
                where=str(checkpoint.folder), found=wrapped[0],
                hint="save the model that is wrapped, or take the prefix out of the names",
            )  # fmt: skip


def refuse_architecture(config: Mapping[str, Any], folder: Path) -> None:
    """Refuse what is no language model, by what ``config.json`` says of itself.

    An architecture that the role table lacks is measured if it says that it predicts the next
    token and the library (or code of its own) has it: by the name of its class, or because the
    class is the one that the library takes for it, also with images.

    Raises:
        NotACheckpointError: names what is supported.
    """
    kind, where = model_type_of(config), str(folder / "config.json")
    classes = config.get("architectures")
    classes = [c for c in classes if isinstance(c, str)] if isinstance(classes, list) else []
    heads = [c for c in classes if c.endswith(OTHER_HEADS)]
    if heads:
        raise NotACheckpointError(
            f"is {heads[0]}: its head gives labels or scores, and what is measured predicts tokens",
            where=where, expected="a language model, or one for images and text",
        )  # fmt: skip
    causal = "auto_map" in config or any(c.endswith(LANGUAGE_MODELS) for c in classes)
    if kind in ARCHITECTURES or (kind and causal and ("auto_map" in config or is_in_library(kind))):
        return
    if kind and (classes_of(CAUSAL).get(kind) in classes or reads_images(config)):
        return
    raise NotACheckpointError(
        f"the architecture {kind!r} is not supported" if kind else "no model_type", where=where,
        expected=", ".join(ARCHITECTURES) + ", or another whose class ends in ForCausalLM",
        found=", ".join(classes) or "no architectures",
    )  # fmt: skip


@functools.cache
def is_in_library(kind: str) -> bool:
    """Whether transformers has a model of that name, or is not here to be asked.

    By its folders: to import its tables is to import torch, which takes seconds before every run.
    """
    library = importlib.util.find_spec("transformers")
    if library is None or library.origin is None:
        return True
    models = Path(library.origin).parent / "models"
    known = {p.name.replace("_", "") for p in models.iterdir() if p.is_dir() and p.name[0] != "_"}
    plain = kind.replace("_", "").replace("-", "")
    return any(plain.startswith(name) for name in known)


def no_tokenizer(
    where: str, names: Collection[str] = (), baseline: Path | None = None
) -> InputError:
    """The line for a model without a fast tokenizer, among whose files ``names`` are."""
    slow = [name for name in SLOW_TOKENIZERS if name in names]
    if baseline is not None:
        source, target = shlex.quote(str(baseline)), shlex.quote(where)
        hint = f"copy the baseline's: cp {source}/tokenizer* {target}"
    else:
        hint = "save the tokenizer with a fast (tokenizers) backend into the folder"
    return NotACheckpointError(
        "no tokenizer.json", where=where, found=listed(slow, LISTED), hint=hint
    )
