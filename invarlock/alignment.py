"""A subject's tensors under the names and in the shapes of its baseline's, where both mean one.

Tools write one model in several ways: with or without the prefix of the base model, with older
names of a norm's vectors, with a tied matrix once or several times, with buffers that follow from
the configuration, with rows that pad the vocabulary to a round number. :func:`align` undoes
these, so that every later comparison is of tensor with tensor; the bytes stay where they are.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from invarlock.checkpoints import Checkpoint
from invarlock.modalities import is_for_more_than_text
from invarlock.roles import Role, architecture_of, is_tied, role_of
from invarlock.shards import JoinedInfo, TensorInfo

if TYPE_CHECKING:
    import torch

# Buffers that follow from the configuration: loaders make them, and leave stored ones unread.
BUFFERS = re.compile(
    r"(?:.*\.)?(?:rotary_emb\.inv_freq|attn\.(?:bias|masked_bias)|attention\.(?:bias|masked_bias)"
    r"|embeddings\.position_ids)"
)
OLDER_NAMES = ((".LayerNorm.gamma", ".LayerNorm.weight"), (".LayerNorm.beta", ".LayerNorm.bias"))
# What training wrappers put in front of all names; loaders do not take it away.
WRAPPERS = ("module", "_orig_mod", "base_model", "_fsdp_wrapped_module", "_forward_module")
# Tables with a row, and vectors with an entry, per token; those of one model may be one matrix.
TOKEN_TABLES = re.compile(
    r"(?:.*\.)?(?:embed_tokens|wte|word_embeddings|shared|embed_in|embed_out|lm_head"
    r"|predictions\.decoder)\.weight"
)
TOKEN_VECTORS = re.compile(r"(?:.*\.)?(?:lm_head|predictions|predictions\.decoder)\.bias")
# The matrices of one expert, where a checkpoint does not have those of all as one tensor.
EXPERTS = re.compile(r"(?P<stem>.*\.experts)\.(?P<expert>\d+)\.(?P<part>gate|up|down)_proj\.weight")
FUSED = re.compile(r"(?P<stem>.*\.experts)\.(?P<parts>gate_up|down)_proj")
HEADS = re.compile(r"(?:.*\.)?(?:lm_head|embed_out|predictions\.decoder)\.weight")


@dataclass(frozen=True)
class Alignment:
    """The subject as the baseline spells it, and what that took; names are the files'."""

    subject: Checkpoint
    renamed: tuple[str, ...]
    buffers: tuple[str, ...]  # stored on one side only
    copies: tuple[str, ...]  # of a matrix that the other side stores once
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    untied: str | None  # of the extra ones, a head of its own where the baseline has none


def align(baseline: Checkpoint, subject: Checkpoint) -> Alignment:
    """The subject's tensors in the baseline's names; what has no counterpart is left out of it.

    A table of more tokens than the baseline's is cut to those of the baseline, whether or not it
    may have more: the invariants guard says.
    """
    given = _experts_as(baseline, _in_names_of(baseline, subject))
    missing = sorted(set(baseline.tensors) - set(given))
    extra = sorted(set(given) - set(baseline.tensors))
    buffers = [name for name in (*missing, *extra) if BUFFERS.fullmatch(name)]
    tensors = {name: info for name, info in given.items() if name in baseline.tensors}
    untied = _head_of_its_own(baseline, subject, given)
    if untied is not None:  # guards hold it against the baseline's embedding
        tensors[untied] = given[untied]
    copies = [name for name in extra if _is_a_copy(subject, given, name)]
    for name in missing:
        twin = _stored_once(baseline, name, given)
        if twin is not None and (ties(subject) or not HEADS.fullmatch(name)):
            tensors[name] = twin
            copies.append(name)
    settled = {*buffers, *copies}
    cut = {name: _cut(name, info, baseline) for name, info in sorted(tensors.items())}
    return Alignment(
        replace(subject, tensors=cut, _digests=_known_digests(subject, cut), _seen={}),
        tuple(sorted({info.name for name, info in given.items() if name != info.name})),
        tuple(buffers),
        tuple(copies),
        tuple(name for name in missing if name not in settled),
        tuple(given[name].name for name in extra if name not in settled),
        None if untied is None else given[untied].name,
    )


@dataclass(frozen=True)
class InNamesOf:
    """The tensors of a baseline by the names that a subject has for them."""

    baseline: Checkpoint
    names: Mapping[str, str]  # the subject's -> the baseline's

    @classmethod
    def subject(cls, baseline: Checkpoint, subject: Checkpoint) -> InNamesOf:
        """As ``subject`` spells them; what it has no counterpart for is left out."""
        given = _in_names_of(baseline, subject)
        return cls(baseline, {i.name: n for n, i in given.items() if n in baseline.tensors})

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """All of them, by the subject's names."""
        return {name: self.baseline.tensors[own] for name, own in self.names.items()}

    def load(self, name: str) -> torch.Tensor:
        """The values of one."""
        return self.baseline.load(self.names[name])


def _head_of_its_own(
    baseline: Checkpoint, subject: Checkpoint, given: Mapping[str, TensorInfo]
) -> str | None:
    """The name of a head that the subject unties from the embedding, which was both before."""
    known = architecture_of(baseline.config)
    head, table = head_and_embedding(baseline)
    if known is None or head is not None or table is None or ties(subject):
        return None
    if known.head not in given or _is_a_copy(subject, given, known.head):
        return None
    return known.head


def _known_digests(subject: Checkpoint, cut: Mapping[str, TensorInfo]) -> dict[str, str]:
    """The digests that were taken under the files' names, of tensors that were not cut."""
    known = subject._digests
    whole = {name: info for name, info in cut.items() if subject.tensors.get(info.name) == info}
    return {name: known[info.name] for name, info in whole.items() if info.name in known}


def is_token_table(name: str, config: Mapping[str, Any]) -> bool:
    """Whether a tensor has a row, or an entry, for every token."""
    return bool(
        (TOKEN_TABLES.fullmatch(name) or TOKEN_VECTORS.fullmatch(name))
        and (role_of(name, config) in (Role.EMBED, Role.HEAD) or not architecture_of(config))
    )


def of_language_model(names: Collection[str], checkpoint: Checkpoint) -> set[str]:
    """Those of a checkpoint's tensors that are of its language model: all where it is nothing else,
    else the head, and what stands beside the token embedding or below."""
    if not is_for_more_than_text(checkpoint.config):
        return {*names}
    head, beside = _language_model(checkpoint)
    return {name for name in names if name == head or name.startswith(beside)}


def _language_model(checkpoint: Checkpoint) -> tuple[str | None, str]:
    """The name of the head, and what the names of all else of a language model begin with."""
    head, table = head_and_embedding(checkpoint)
    return head, re.sub(r"[^.]+\.weight", "", table or "")


def head_and_embedding(checkpoint: Checkpoint) -> tuple[str | None, str | None]:
    """The names of the stored output head and of the token embedding."""
    tables = [name for name in checkpoint.tensors if TOKEN_TABLES.fullmatch(name)]
    head = next((name for name in tables if HEADS.fullmatch(name)), None)
    # where there are several, the one that the others are tied to
    embeddings = sorted(set(tables) - {head}, key=lambda name: not name.endswith("shared.weight"))
    return head, next((name for name in embeddings if not HEADS.fullmatch(name)), None)


def ties(checkpoint: Checkpoint) -> bool:
    """Whether loaders use the embedding as the output head, whatever else is stored."""
    declared = checkpoint.config.get("tie_word_embeddings")
    if declared is not None:
        return bool(declared)
    return is_tied(checkpoint.config) or head_and_embedding(checkpoint)[0] is None


def _in_names_of(baseline: Checkpoint, subject: Checkpoint) -> dict[str, TensorInfo]:
    """The subject's tensors by the baseline's names where a name differs in its spelling only."""
    plain = {_current(name): name for name in baseline.tensors}
    if subject.form.language_only and is_for_more_than_text(baseline.config):
        return _within(baseline, subject)
    given = {plain.get(_current(name), name): info for name, info in subject.tensors.items()}
    if len(given) < len(subject.tensors):  # two spellings of one name: leave them to be told
        return dict(subject.tensors)
    missing = set(baseline.tensors) - set(given)
    extra = [name for name in given if name not in baseline.tensors]
    for shorter, longer in ((missing, extra), (extra, missing)):
        prefixes = {n.partition(".")[0] for n in longer if n.partition(".")[2] in {*shorter}}
        if len(prefixes) == 1 and not prefixes.intersection(WRAPPERS):
            (prefix,) = prefixes
            return {_moved(name, f"{prefix}.", missing, baseline): i for name, i in given.items()}
    return given


def _experts_as(baseline: Checkpoint, given: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """The matrices of experts as one tensor of all, or one by one, as the baseline has them.

    Libraries read both and write either: of all as ``gate_up_proj``, (experts, 2 * inner, hidden),
    gates first, and ``down_proj``, (experts, hidden, inner). What does not fit together stays as it
    is, and is told as missing and new.
    """
    found = dict(given)
    separate: dict[str, dict[tuple[int, str], str]] = {}
    for name, info in given.items():
        if name in baseline.tensors:
            continue
        if fused := FUSED.fullmatch(name):
            apart = _of_each_expert(baseline, fused["stem"], fused["parts"].split("_"), info)
            found = {k: v for k, v in found.items() if k != name or not apart} | apart
        if one := EXPERTS.fullmatch(name):
            separate.setdefault(one["stem"], {})[int(one["expert"]), one["part"]] = name
    for stem, names in separate.items():
        count = len(names) // 3
        for whole, parts in (("gate_up_proj", ("gate", "up")), ("down_proj", ("down",))):
            wanted = baseline.tensors.get(f"{stem}.{whole}")
            own = [names.get((n, part)) for n in range(count) for part in parts]
            infos = [given[name] for name in own if name is not None]
            shapes = {(info.dtype, info.shape) for info in infos}
            if wanted is None or len(infos) < len(own) or len(shapes) != 1:
                continue
            ((dtype, (rows, columns)),) = shapes
            if wanted.shape != (count, rows * len(parts), columns):
                continue
            found = {name: info for name, info in found.items() if name not in own}
            found[f"{stem}.{whole}"] = JoinedInfo(
                infos[0].name, dtype, wanted.shape, infos[0].file, 0,
                sum(info.nbytes for info in infos), tuple(infos),
            )  # fmt: skip
    return found


def _of_each_expert(
    baseline: Checkpoint, stem: str, parts: Sequence[str], info: TensorInfo
) -> dict[str, TensorInfo]:
    """The places of each expert's matrices in a tensor of all, by the baseline's names; none where
    it has others, or where the tensor has no place of its own."""
    if type(info) is not TensorInfo or len(info.shape) != 3:
        return {}
    count, rows, columns = info.shape
    names = [f"{stem}.{n}.{part}_proj.weight" for n in range(count) for part in parts]
    shape, size = (rows // len(parts), columns), info.nbytes // len(names)
    if any(n not in baseline.tensors or baseline.tensors[n].shape != shape for n in names):
        return {}
    return {
        name: replace(
            info, shape=shape, begin=info.begin + n * size, end=info.begin + (n + 1) * size
        )
        for n, name in enumerate(names)
    }


def _within(baseline: Checkpoint, subject: Checkpoint) -> dict[str, TensorInfo]:
    """The tensors of a language model by the names that a larger model has for them."""
    (head, beside), (own_head, own) = map(_language_model, (baseline, subject))
    return {
        head or name if name == own_head else re.sub(f"^{re.escape(own)}", beside, name): info
        for name, info in subject.tensors.items()
    }


def _current(name: str) -> str:
    for older, newer in OLDER_NAMES:
        name = name.replace(older, newer)
    return name


def _moved(name: str, prefix: str, missing: set[str], baseline: Checkpoint) -> str:
    """``name`` with or without the prefix, whichever the baseline has."""
    if name in baseline.tensors:
        return name
    return next((n for n in (prefix + name, name.removeprefix(prefix)) if n in missing), name)


def _is_a_copy(subject: Checkpoint, given: Mapping[str, TensorInfo], name: str) -> bool:
    """Whether another token table of the subject has the bytes of this one."""
    others = (other for other in given if other != name and _alike(given[other], given[name]))
    return any(
        subject.tensor_digest(given[other].name) == subject.tensor_digest(given[name].name)
        for other in others
        if _same_kind(other, name)
    )


def _stored_once(
    baseline: Checkpoint, name: str, given: Mapping[str, TensorInfo]
) -> TensorInfo | None:
    """What the subject stores of a table that the baseline stores several times."""
    for other in baseline.tensors:
        if other == name or other not in given or not _same_kind(other, name):
            continue
        if not _alike(baseline.tensors[other], baseline.tensors[name]):
            continue
        if baseline.tensor_digest(other) == baseline.tensor_digest(name):
            return given[other]
    return None


def _alike(one: TensorInfo, other: TensorInfo) -> bool:
    return (one.dtype, one.shape) == (other.dtype, other.shape)


def _same_kind(one: str, other: str) -> bool:
    return any(k.fullmatch(one) and k.fullmatch(other) for k in (TOKEN_TABLES, TOKEN_VECTORS))


def _cut(name: str, info: TensorInfo, baseline: Checkpoint) -> TensorInfo:
    """The rows of a token table that the baseline has, too."""
    held = baseline.tensors.get(name) or baseline.tensors[str(head_and_embedding(baseline)[1])]
    wanted = held.shape
    if (
        not is_token_table(name, baseline.config)
        or info.shape[1:] != wanted[1:]
        or info.shape[0] <= wanted[0]
    ):
        return info
    end = info.begin + info.nbytes // info.shape[0] * wanted[0]
    return replace(info, shape=wanted, end=end)
