"""Invariants guard: what must be the same in baseline and subject, before a model exists.

Identity is judged by meaning: the configuration as its class resolves it, the tokenizer by the
ids it gives, tensors whatever their spelling and storage. Reads only the safetensors headers,
``config.json``, ``tokenizer.json`` and (for non-finite values and copies) the tensors one at a
time, so that a checkpoint that cannot be loaded has already been judged. A second look after
loading reports parameters that were not initialized from the file and tensors that were not used.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from invarlock import effective_config, tokenizer_meaning
from invarlock.alignment import (
    Alignment,
    InNamesOf,
    align,
    head_and_embedding,
    is_token_table,
    of_language_model,
    ties,
)
from invarlock.checkpoints import Checkpoint, TensorInfo, tokenizer_digest
from invarlock.counts import counted
from invarlock.differences import stated
from invarlock.effective_config import (
    Weight,
    text_part_ties,
    token_ids,
    value_of,
)
from invarlock.errors import InputError, NotACheckpointError
from invarlock.files import read_json_object
from invarlock.formats.execution import Engine
from invarlock.guards.findings import Failure
from invarlock.guards.shipped import check_shipped
from invarlock.guards.tokenizer_settings import check_around
from invarlock.modalities import tokens_of_pictures
from invarlock.roles import LAYER_COUNTS, architecture_of, layer_of
from invarlock.shipped_files import file_digests
from invarlock.shown import listed

WORDS = {
    "tied": "tied",
    "tied_stored": "tied and stored twice",
    "untied": "untied",
    "untied_equal": "untied but equal",
    "headless": "untied without a head",
}
TIED = "tie_word_embeddings"
# Kinds of model whose positions are counted from the id that pads.
COUNT_PADDING = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "longformer")
# Layers that draft several tokens ahead for a server: no pass of the model itself runs them, and
# loaders leave them unread. They have names of their own, or are counted after the last layer.
DRAFTING = re.compile(r"(?:.*\.)?mtp(?:_[a-z]+)?\..*")
DRAFTING_COUNT = "num_nextn_predict_layers"
LISTED = 5  # names given in a message; the count is always complete


def _failure(kind: str, message: str, severity: str = "fatal") -> Failure:
    return {"type": kind, "severity": severity, "message": message}


def _names(names: Sequence[str]) -> str:
    return listed(names, LISTED)


def open_subject(
    folder: Path, baseline: Path | None = None, allowed: Collection[str] = ()
) -> tuple[Checkpoint | None, list[Failure]]:
    """The subject, or what is wrong with its files if they cannot be read as a checkpoint.

    Args:
        folder: the subject, a folder or a file.
        baseline: the folder of its baseline, where there is one.
        allowed: the permissions that are given.

    Raises:
        InputError: the folder holds no checkpoint, or the system refuses to read it.
    """
    try:
        subject = Checkpoint.open(folder, baseline, allowed)
        tokenizer_digest(subject.folder)
        file_digests(subject.folder)
    except InputError as error:
        if isinstance(error, NotACheckpointError) or isinstance(error.__cause__, OSError):
            raise
        place = Path(error.where).name if error.where != str(folder) else ""
        # no path: it is of this machine
        told = InputError(error.what, where=place, expected=error.expected, found=error.found)
        return None, [_failure("unreadable_checkpoint", str(told))]
    return subject, []


def check_checkpoint(
    baseline: Checkpoint,
    subject: Checkpoint,
    windows: Iterable[Sequence[int]] = (),
    tensors: bool = True,
) -> list[Failure]:
    """Every difference that matters between the two folders, most basic first.

    Args:
        baseline, subject: both, as they are stored.
        windows: token ids that the baseline's tokenizer made: what it spells with them is among
            the texts on which the tokenizers are compared.
        tensors: whether they are compared and read, too, beside the small files; that takes as
            long as their bytes do.
    """
    if baseline.folder == subject.folder:  # every comparison would be of a thing with itself
        return [*_check_layers(subject), *_check_rows(subject), *_check_finite(subject)]
    aligned = align(baseline, subject) if tensors else None
    return [
        *_check_config(baseline, subject),
        *([*_check_tensors(baseline, aligned), *_check_layers(subject)] if aligned else ()),
        *_check_tokenizer(baseline, subject, windows),
        *(_check_rows(subject) if aligned else ()),
        *_check_vocabulary(baseline, subject),
        *(_check_values(baseline, subject, aligned) if aligned else ()),
        *check_shipped(
            baseline.folder, subject.folder, subject.read_files, subject.form.configured
        ),
    ]


def _check_values(baseline: Checkpoint, subject: Checkpoint, aligned: Alignment) -> list[Failure]:
    return [
        *_check_tying(baseline, subject, aligned.untied),
        *_check_stated_ties(baseline, subject),
        *_check_finite(subject),
        *_check_packing(baseline, subject),
    ]


def rejected(
    baseline: Path, subject: Path, accepted: Collection[str], allowed: Collection[str] = ()
) -> str:
    """What of a subject's small files refuses it, whatever is measured of it; empty where nothing
    does. It costs a fraction of a second: tensors are not looked at.

    Args:
        baseline, subject: the folders; the subject may be a file.
        accepted: names by which findings are accepted.
        allowed: the permissions that are given.

    Raises:
        InputError: one of them cannot be opened.
    """
    opened, failures = open_subject(subject, baseline, allowed)
    if opened is not None:
        failures = check_checkpoint(Checkpoint.open(baseline), opened, tensors=False)
    told = [
        f["message"]
        for f in failures
        if f["severity"] == "fatal" and f.get("accept") not in accepted
    ]
    more = f" (and {counted(len(told) - 1, 'more', 'more')})" if len(told) > 1 else ""
    return f"{told[0]}{more}" if told else ""


def reads_alike(failures: Sequence[Failure]) -> bool:
    """Whether, by these findings, the subject's tokenizer gives every text the baseline's ids."""
    return not any(failure["type"] == "tokenizer_mismatch" for failure in failures)


def _check_config(baseline: Checkpoint, subject: Checkpoint) -> list[Failure]:
    try:
        found = effective_config.differences(baseline.settings, subject.settings)
    except InputError as error:
        return [_failure("config_unreadable", f"config.json: {error.what}")]
    failures = []
    for difference in found:
        failure = _failure(
            "config_changed",
            difference.message,
            "warning" if difference.weight is Weight.NOTE else "fatal",
        )
        if difference.weight is Weight.FUNCTION:
            failure["accept"] = difference.name
        failures.append(failure)
    return [*failures, *_check_token_ids(baseline, subject)]


def _check_token_ids(baseline: Checkpoint, subject: Checkpoint) -> list[Failure]:
    """The ids that begin, end and pad a text, as ids: one in a list is that one."""
    found = []
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if baseline.config.get(name) == subject.config.get(name):
            continue
        given = [value_of(checkpoint.config, name) for checkpoint in (baseline, subject)]
        before, after = (token_ids(value) for value in given)
        if before == after:
            continue
        # windows hold no padding, and most tools choose their own
        padding = name == "pad_token_id" and subject.config.get("model_type") not in COUNT_PADDING
        harmless = padding or (not after and name == "bos_token_id")
        if name == "eos_token_id":  # generation reads its own file first; servers take all of both
            stops = [_generation_ids(side.folder, name) for side in (baseline, subject)]
            if not after:
                harmless = bool(stops[1]) and stops[1] == (stops[0] or before)
            elif stops[0] == stops[1]:
                harmless = bool(stops[0]) and before | stops[0] == after | stops[1]
        text = f"config.json: {name} was {stated(given[0])}, is {stated(given[1])}"
        failure = _failure("config_changed", text, "warning" if harmless else "fatal")
        found.append(failure if harmless else {**failure, "accept": name})
    return found


def _generation_ids(folder: Path, name: str) -> frozenset[int]:
    path = folder / "generation_config.json"
    try:
        return token_ids(read_json_object(path).get(name)) if path.is_file() else frozenset()
    except InputError:  # it is looked at, and told, where the files that ship are compared
        return frozenset()


def _check_tensors(baseline: Checkpoint, aligned: Alignment) -> list[Failure]:
    found: list[Failure] = []
    subject = aligned.subject
    for kind, given, verb in (
        ("missing_tensors", aligned.missing, "missing"),
        ("extra_tensors", aligned.extra, "new"),
    ):
        drafting = [name for name in given if _drafts(name, baseline)]
        if drafting:
            text = (
                f"{counted(len(drafting), 'tensor', 'tensors')} of layers that draft tokens ahead,"
                f" which the model itself does not run: {verb}: {_names(drafting)}"
            )
            found.append(_failure("drafting_layers", text, severity="warning"))
        kept = [name for name in given if name not in drafting]
        if verb == "missing" and subject.form.language_only:
            language = of_language_model(kept, baseline)
            if other := [name for name in kept if name not in language]:
                text = (
                    f"{counted(len(other), 'tensor')} of what reads pictures"
                    f" {'is' if len(other) == 1 else 'are'} not in this format: the language model"
                    f" alone is judged: {_names(other)}"
                )
                found.append(_failure("language_model_only", text, severity="warning"))
            kept = [name for name in kept if name in language]
        if kept:
            text = f"{counted(len(kept), 'tensor is', 'tensors are')} {verb}: {_names(kept)}"
            failure = _failure(kind, text)
            # a head that was trained: meant or not, it is held against what was the head before
            found.append(failure | ({"accept": TIED} if kept == [aligned.untied] else {}))
    # of a GGUF the names are this program's, not the file's
    renamed = () if subject.form.language_only else aligned.renamed
    for kind, names, one, several in (
        ("tensors_renamed", renamed, "tensor has another spelling of its name",
         "tensors have another spelling of their name"),
        ("buffers_differ", aligned.buffers, "buffer, which loaders make anew, is in one only",
         "buffers, which loaders make anew, are in one only"),
        ("stored_twice", aligned.copies, "tensor equal in bytes to another is in one only",
         "tensors equal in bytes to another are in one only"),
    ):  # fmt: skip
        if names:
            text = f"{counted(len(names), one, several)}: {_names(names)}"
            found.append(_failure(kind, text, severity="warning"))
    both = sorted(set(baseline.tensors) & set(subject.tensors))
    for name in both:
        b, s = baseline.tensors[name], subject.tensors[name]
        rows_apart = is_token_table(name, baseline.config) and b.shape[1:] == s.shape[1:]
        if b.shape != s.shape and not rows_apart:
            found.append(
                _failure("shape_changed", f"{name}: shape was {list(b.shape)}, is {list(s.shape)}")
            )
    types = [
        n
        for n in both
        if baseline.tensors[n].dtype != subject.tensors[n].dtype and n not in subject.packed
    ]
    if types:
        b, s = baseline.tensors[types[0]], subject.tensors[types[0]]
        found.append(
            _failure(
                "dtype_changed",
                f"{counted(len(types), 'tensor')} changed type ({b.dtype} to {s.dtype}): "
                f"{_names(types)}",
                severity="warning",
            )
        )
    return found


def _layers_of(checkpoint: Checkpoint) -> int:
    """How many layers ``config.json`` declares; 0 where it does not say."""
    counts = [n for k in LAYER_COUNTS if isinstance(n := checkpoint.config.get(k), int)]
    # of stacks that are run several times, num_hidden_layers counts the runs
    stack = checkpoint.config.get("num_layers_per_stack")
    return stack if isinstance(stack, int) else max(counts, default=0)


def _drafts(name: str, checkpoint: Checkpoint) -> bool:
    """Whether a tensor is of a layer that drafts tokens for a server."""
    if DRAFTING.fullmatch(name):
        return True
    more, declared = checkpoint.config.get(DRAFTING_COUNT), _layers_of(checkpoint)
    layer = layer_of(name)
    if not isinstance(more, int) or not declared or layer is None:
        return False
    return declared <= layer < declared + more


def _check_layers(subject: Checkpoint) -> list[Failure]:
    declared = _layers_of(subject)
    own = (name for name in subject.tensors if not _drafts(name, subject))
    layers = {layer for name in own if (layer := layer_of(name)) is not None}
    if not declared or not layers or layers == set(range(declared)):
        return []
    return [
        _failure(
            "layer_count",
            f"config.json declares {declared} layers, the tensors hold {len(layers)}",
        )
    ]


def _check_tokenizer(
    baseline: Checkpoint, subject: Checkpoint, windows: Iterable[Sequence[int]]
) -> list[Failure]:
    kinds = {
        tokenizer_meaning.Effect.OTHER_IDS: ("tokenizer_mismatch", "fatal"),
        tokenizer_meaning.Effect.OTHER_FILE: ("tokenizer_changed", "fatal"),
        tokenizer_meaning.Effect.NOTE: ("tokenizer_settings", "warning"),
    }
    found = []
    for difference in tokenizer_meaning.differences(baseline.folder, subject.folder, windows):
        failure = _failure(kinds[difference.effect][0], difference.message)
        failure["severity"] = kinds[difference.effect][1]
        if difference.effect is tokenizer_meaning.Effect.OTHER_FILE:
            failure["accept"] = difference.name
        found.append(failure)
    return found


def _check_rows(subject: Checkpoint) -> list[Failure]:
    declared = _vocabulary_size(subject)
    known = architecture_of(subject.config)
    more = known.more_rows if known else 0
    # the embedding of a class that adds rows has them, and its head may or may not
    admitted = (declared, declared + more) if isinstance(declared, int) else (declared,)
    return [
        _failure(
            "vocabulary_rows",
            f"{name} has {_rows(tensor)} rows, config.json declares {declared} tokens",
        )
        for name, tensor in subject.tensors.items()
        if is_token_table(name, subject.config) and _rows(tensor) not in admitted
    ]


def _rows(tensor: TensorInfo) -> int:
    return tensor.shape[0] if tensor.shape else 0  # a number has none


def _check_vocabulary(baseline: Checkpoint, subject: Checkpoint) -> list[Failure]:
    """Rows that no token of the tokenizer reads may come and go."""
    before, after = (_vocabulary_size(checkpoint) for checkpoint in (baseline, subject))
    # a file of the language model alone may end before the tokens that stand for pictures
    without = tokens_of_pictures(baseline.config) if subject.form.language_only else frozenset()
    largest, own = (
        tokenizer_meaning.largest_id(side.folder, without) for side in (baseline, subject)
    )
    if tokenizer_digest(baseline.folder) != tokenizer_digest(subject.folder):
        held = isinstance(after, int)
        fitted = (largest or 0) < _number(before)
        if own is not None and held and fitted and own >= _number(after):
            text = f"the tokenizer has ids up to {own}, and config.json declares {after} tokens"
            return [_failure("vocabulary_changed", f"{text}: an id has no row")]
    if before == after:
        return []
    text = f"config.json: vocab_size was {before}, is {after}"
    if not isinstance(after, int) or largest is None or largest >= after:
        return [_failure("vocabulary_changed", f"{text}, the tokenizer has ids up to {largest}")]
    own = own or largest
    if own > largest:
        text += f"; the baseline's tokenizer has ids up to {largest}, the subject's up to {own}"
        text += ": the rows that differ are of new tokens, or of none"
    else:
        text += f"; the tokenizer has ids up to {largest}, so the rows that differ are of no token"
    return [_failure("vocabulary_padded", text, severity="warning")]


def _number(size: object) -> int:
    return size if isinstance(size, int) else 0


def _vocabulary_size(checkpoint: Checkpoint) -> object:
    return value_of(checkpoint.config, "vocab_size")


def tying_state(checkpoint: Checkpoint) -> str:
    """How embedding and head belong together.

    ``tied``; ``tied_stored`` (a head with the same bytes is stored, too); ``untied_equal`` (a head
    of its own with the same bytes); ``untied``; ``contradictory`` (declared to be tied, but
    another head is stored: some loaders tie, others take the head); ``headless`` (not tied, and no
    head is stored).
    """
    head, table = head_and_embedding(checkpoint)
    tied = ties(checkpoint)
    if head is None:
        return "headless" if value_of(checkpoint.config, TIED) is False else "tied"
    equal = table is not None and checkpoint.tensor_digest(head) == checkpoint.tensor_digest(table)
    if tied and not equal:
        # transformers 5 leaves such a head its own; loaders before it go by the text part
        return "untied" if text_part_ties(checkpoint.config) is False else "contradictory"
    if tied:
        return "tied_stored"
    return "untied_equal" if equal else "untied"


def _check_tying(baseline: Checkpoint, subject: Checkpoint, untied: str | None) -> list[Failure]:
    before, after = tying_state(baseline), tying_state(subject)
    if before == after or {before, after} == {"untied", "untied_equal"}:
        return []
    if after == "contradictory":
        text = (
            f"config.json ties head and embedding, but the stored {head_and_embedding(subject)[0]} "
            "is another matrix: two loaders would read two models"
        )
        return [_failure("weight_tying", text)]
    if after == "headless":
        text = "config.json unties head and embedding, and no head is stored: loaders invent one"
        return [_failure("weight_tying", text)]
    one_matrix = {"tied", "tied_stored", "untied_equal"}
    before = "tied" if before == "contradictory" else before  # as the loader read it
    harmless = {before, after} <= one_matrix
    text = f"embedding and head were {WORDS[before]}, are {WORDS[after]}"
    failure = _failure("weight_tying", text, severity="warning" if harmless else "fatal")
    return [failure | ({"accept": TIED} if untied is not None else {})]


def _check_stated_ties(baseline: Checkpoint, subject: Checkpoint) -> list[Failure]:
    """What a model and its text part say of head and embedding, and whether a loader minds."""
    before, after = (_stated_ties(checkpoint.config) for checkpoint in (baseline, subject))
    if before == after or None in after or after[0] == after[1]:
        return []
    text = f"config.json: {TIED} is {after[0]}, text_config.{TIED} {after[1]}"
    state = tying_state(subject)
    if state in ("tied_stored", "untied_equal") or (state == "untied" and after[0]):
        text += f"; the stored {head_and_embedding(subject)[0]} is the head of either"
        return [_failure("config_changed", text, "warning")]
    text += ": two loaders would read two models"
    return [_failure("config_changed", text) | {"accept": TIED}]


def _stated_ties(config: Mapping[str, Any]) -> tuple[object, object]:
    inner = config.get("text_config")
    return config.get(TIED), inner.get(TIED) if isinstance(inner, Mapping) else None


def _check_finite(subject: Checkpoint) -> list[Failure]:
    import torch

    found: list[Failure] = []
    # servers run the subject in the dtype that it names, whatever it is measured in
    narrow = effective_config.stated_dtype(subject.config) == "float16"
    for name in sorted(subject.tensors):
        tensor = subject.load(name)
        if not tensor.is_floating_point():
            continue
        values = tensor.float() if tensor.element_size() == 1 else tensor
        if not tensor.numel():
            continue
        # min and max together see NaN and both infinities in one pass, without a mask
        ends = torch.stack(values.aminmax())
        if not torch.isfinite(ends).all():
            bad = int((~torch.isfinite(values)).sum())
            found.append(
                _failure(
                    "non_finite_tensor",
                    f"{name} holds {counted(bad, 'value that is', 'values that are')} not finite",
                )
            )
        elif narrow and ends.abs().max() > torch.finfo(torch.float16).max:
            text = f"{name} holds values that are infinite in float16, which config.json names"
            found.append(_failure("non_finite_tensor", text))
    return found


def _check_packing(baseline: Checkpoint, subject: Checkpoint) -> list[Failure]:
    """What the format itself finds wrong with how the weights are packed."""
    form, source = subject.form, subject.source
    own = InNamesOf.subject(baseline, subject)
    return [
        *(_failure("packing", text) for text in form.faults(source, own)),
        *(_failure("packing", text, "warning") for text in form.notes(source, baseline.folder)),
    ]


def check_engine_tokens(
    engine: Engine, folder: Path, windows: Iterable[Sequence[int]]
) -> list[Failure]:
    """Whether what runs the model reads text as its tokenizer does, and ends it where it does.

    Args:
        engine: what runs the model.
        folder: with the tokenizer and the settings that the engine is held to.
        windows: token ids, of whose texts the ids have to be the same; of others that are hard to
            read they may differ, which is told.
    """
    found: list[Failure] = []
    told = tokenizer_meaning.other_ids(folder, engine.tokenize, windows)
    if told is not None:
        text = f"{engine.name} gives other ids than the tokenizer to {told}"
        found.append({**_failure("tokenizer_mismatch", text), "accept": "tokenizer"})
    elif told := tokenizer_meaning.other_ids(folder, engine.tokenize, (), probes=True):
        text = f"{engine.name} gives other ids than the tokenizer to rare texts, {told}"
        found.append(_failure("tokenizer_settings", text, "warning"))
    around = engine.around()
    if around is None or not (folder / tokenizer_meaning.NAME).is_file():
        return found
    tokens = tokenizer_meaning.read_tokenizer(folder / tokenizer_meaning.NAME)
    named = [[str(tokens.id_to_token(i)) for i in ids] for ids in (around.before, around.after)]
    found += check_around(folder, engine.name, named)
    stops = _generation_ids(folder, "eos_token_id")
    stops = stops or token_ids(value_of(read_json_object(folder / "config.json"), "eos_token_id"))
    added = {*tokens.get_added_tokens_decoder()}  # backends end at those that look like an end
    for ids, words in (
        (stops - around.ends, "does not end a text at {}, where generation ends"),
        (around.ends - stops - added, "ends a text at {}, which is an ordinary token"),
    ):
        if ids:
            which = _names([f"{tokens.id_to_token(i)} ({i})" for i in sorted(ids)])
            failure = _failure("generation_config_changed", f"{engine.name} {words.format(which)}")
            found.append({**failure, "accept": "generation_config"})
    return found


def check_loaded(
    missing: Sequence[str], unexpected: Sequence[str], dense_because: str = ""
) -> list[Failure]:
    """After loading: parameters left at random values, tensors nobody read, and which kernels run.

    Args:
        missing: parameters that no tensor was for.
        unexpected: tensors that no parameter was for.
        dense_because: why dense kernels run packed weights, where they do.
    """
    found: list[Failure] = []
    if dense_because:
        found.append(
            _failure(
                "dense_kernels",
                f"weights judged: dequantized; kernels judged: dense, not those that will serve"
                f" ({dense_because})",
                severity="warning",
            )
        )
    if missing:
        found.append(
            _failure(
                "not_initialized",
                f"{counted(len(missing), 'parameter was', 'parameters were')} not in the "
                f"checkpoint: {_names(sorted(missing))}",
            )
        )
    if unexpected:
        found.append(
            _failure(
                "unused_tensors",
                f"{counted(len(unexpected), 'tensor was', 'tensors were')} not used: "
                f"{_names(sorted(unexpected))}",
                severity="warning",
            )
        )
    return found
