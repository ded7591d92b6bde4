"""What a model has to predict: its inputs, the positions that count and the right tokens.

Every label is a pure function of the windows' seed, the window's id and the position, so that
order, batches and other windows change nothing.

* causal: every token but the first from those before it;
* masked: 15 % of the tokens, of which 80 % are replaced by the mask token, 10 % by a random one
  and 10 % stay (Devlin et al., NAACL 2019, 3.1);
* sequence to sequence: the second half of the window from the first, which the encoder reads;
  the decoder reads the right tokens, shifted (teacher forcing);
* accuracy: an answer's tokens after its prompt. An exact answer is right when every token of it
  is the most likely one, which is when greedy decoding gives it; a choice is right when its
  total log-probability is above that of every other (a tie is wrong).
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from invarlock.errors import ConfigError, InputError
from invarlock.files import read_json_object
from invarlock.records import Record
from invarlock.roles import metric_of
from invarlock.windows import Window, WindowSet

ADAPTERS = {
    "ppl_causal": "hf_causal",
    "ppl_mlm": "hf_mlm",
    "ppl_seq2seq": "hf_seq2seq",
    "accuracy": "hf_causal",
}
MASKED = 0.15  # probability of a position to be predicted
REPLACED, RANDOM = 0.8, 0.1  # of those: by the mask token, by any token; the rest stays
MASK_TOKENS = ("[MASK]", "<mask>")


@dataclass(frozen=True)
class Example:
    """One window as the model sees it; the last of ``inputs`` has the length of the logits."""

    inputs: Mapping[str, Sequence[int]]  # argument of the model -> token ids
    positions: Sequence[int]  # rows of the logits that predict
    targets: Sequence[int]  # the right token of each

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of every input; examples of one shape can share a batch."""
        return tuple(map(len, self.inputs.values()))

    def start(self, tokens: int) -> dict[str, list[int]]:
        """The inputs, cut after ``tokens``."""
        return {name: list(ids[:tokens]) for name, ids in self.inputs.items()}


@dataclass(frozen=True)
class Masking:
    """What masking needs to know of a tokenizer."""

    mask_id: int
    special: frozenset[int]  # never masked, never put in
    ordinary: NDArray[np.int64]  # ids a random replacement is drawn from

    @classmethod
    def of(cls, folder: Path, vocabulary: int) -> Masking:
        """From the added tokens of ``tokenizer.json``.

        Raises:
            InputError: it has no mask token.
        """
        path = folder / "tokenizer.json"
        added = read_json_object(path).get("added_tokens", [])
        masks = [token["id"] for token in added if token["content"] in MASK_TOKENS]
        if not masks:
            raise InputError(
                "a masked-language model whose tokenizer has no mask token",
                where=str(path),
                expected=" or ".join(MASK_TOKENS) + " among added_tokens",
            )
        special = frozenset(token["id"] for token in added if token["special"])
        ordinary = np.setdiff1d(np.arange(vocabulary), list(special))
        return cls(masks[0], special | {masks[0]}, ordinary)


@dataclass(frozen=True)
class Task:
    """What is predicted in one run."""

    metric: str
    seed: int
    masking: Masking | None = None
    decoder_start: int | None = None

    @property
    def adapter(self) -> str:
        """Name of the kind of model in reports."""
        return ADAPTERS[self.metric]

    def examples(self, windows: Sequence[Window] | Sequence[Record]) -> list[Example]:
        """One example a window; of a record, its right answer.

        Raises:
            InputError: a window that has nothing to mask.
        """
        return [self._example(window) for window in windows]

    def _example(self, window: Window | Record) -> Example:
        if isinstance(window, Record):
            return continuation(window.prompt, window.answers[window.label])
        tokens = window.tokens
        if self.masking is not None:
            return masked(self.masking, self.seed, window)
        if self.decoder_start is not None:
            half = len(tokens) // 2
            source, target = tokens[:half], tokens[half:]
            inputs = {"input_ids": source, "decoder_input_ids": (self.decoder_start, *target[:-1])}
            return Example(inputs, range(len(target)), target)
        return Example({"input_ids": tokens}, range(len(tokens) - 1), tokens[1:])


def metric_for(config: Mapping[str, Any], content: WindowSet) -> str:
    """The kind of the primary metric of a model on these windows."""
    return "accuracy" if content.kind == "records" else metric_of(config)


def task_for(folder: Path, content: WindowSet) -> Task:
    """The task of a checkpoint on these windows: by architecture, or accuracy on records.

    Raises:
        ConfigError: labelled records for a model that does not continue a text.
        InputError: no mask token, or no ``decoder_start_token_id``, where one is needed.
    """
    config = read_json_object(folder / "config.json")
    metric = metric_for(config, content)
    if metric == "accuracy" and metric_of(config) != "ppl_causal":
        raise ConfigError(
            "labelled records need a causal language model",
            where=str(folder),
            found=metric_of(config).removeprefix("ppl_"),
        )
    if metric == "ppl_mlm":
        masking = Masking.of(folder, int(config["vocab_size"]))
        return Task(metric, content.seed, masking=masking)
    if metric == "ppl_seq2seq":
        return Task(metric, content.seed, decoder_start=_decoder_start(config, folder))
    return Task(metric, content.seed)


def _decoder_start(config: Mapping[str, Any], folder: Path) -> int:
    start = config.get("decoder_start_token_id")
    if not isinstance(start, int):
        where = str(folder / "config.json")
        raise InputError("no decoder_start_token_id", where=where, expected="a token id")
    return start


def draws(seed: int, window_id: str, position: int) -> tuple[float, float, float]:
    """Three numbers, uniform on [0, 1), of one position: BLAKE2b, 53 bits each."""
    text = f"{seed}:{window_id}:{position}".encode()
    words = struct.unpack("<3Q", hashlib.blake2b(text, digest_size=24).digest())
    first, second, third = ((word >> 11) / 2**53 for word in words)
    return first, second, third


def masked(masking: Masking, seed: int, window: Window) -> Example:
    """The window with its masks; the position nearest to being chosen where none is.

    Raises:
        InputError: every token is special.
    """
    candidates = {
        position: draws(seed, window.window_id, position)
        for position, token in enumerate(window.tokens)
        if token not in masking.special
    }
    if not candidates:
        raise InputError("a window of special tokens only", where=f"window {window.window_id}")
    chosen = [p for p, (first, _, _) in candidates.items() if first < MASKED]
    chosen = chosen or [min(candidates, key=candidates.__getitem__)]
    shown = list(window.tokens)
    for position in chosen:
        _, what, which = candidates[position]
        if what < REPLACED:
            shown[position] = masking.mask_id
        elif what < REPLACED + RANDOM:
            shown[position] = int(masking.ordinary[int(which * len(masking.ordinary))])
    return Example({"input_ids": shown}, chosen, [window.tokens[p] for p in chosen])


def continuation(prompt: Sequence[int], answer: Sequence[int]) -> Example:
    """The answer's tokens, each from the prompt and the answer's tokens before it."""
    positions = range(len(prompt) - 1, len(prompt) + len(answer) - 1)
    return Example({"input_ids": [*prompt, *answer[:-1]]}, positions, answer)


def commonest_shape(examples: Sequence[Example]) -> list[int]:
    """Indices of the examples of the shape that most have, the first such of equals."""
    shapes = [example.shape for example in examples]
    most = max(shapes, key=shapes.count)
    return [i for i, shape in enumerate(shapes) if shape == most]


def wrong_answers(
    windows: Sequence[Window] | Sequence[Record],
) -> tuple[list[Example], list[int]]:
    """The choices of records that are not the right ones, and the index of each one's record."""
    owned = [
        (continuation(record.prompt, answer), index)
        for index, record in enumerate(windows)
        if isinstance(record, Record)
        for number, answer in enumerate(record.answers)
        if number != record.label
    ]
    return [example for example, _ in owned], [index for _, index in owned]


@dataclass(frozen=True)
class Answered:
    """What a model made of a record: its loss on the right answer and on the other choices."""

    right_nll: float  # nats
    greedy: bool  # every token of the right answer is the most likely one
    wrong_nll: Sequence[float]  # nats; empty: exact match

    @property
    def correct(self) -> bool:
        """Whether the record counts; a loss that is not a number never does."""
        if not math.isfinite(self.right_nll):
            return False
        if not self.wrong_nll:
            return self.greedy
        return all(self.right_nll < other for other in self.wrong_nll)
