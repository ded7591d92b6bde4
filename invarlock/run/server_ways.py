"""The ways in which servers give log-probabilities of the tokens of a prompt: one row each.

A row says where a request goes, what it holds and where the numbers lie in the answer:

    echo               ``/v1/completions``, as OpenAI's servers once did: vLLM, SGLang
    prompt_logprobs    a member of the same request: vLLM, also where it is told not to echo
    input_token_logprobs   ``/generate`` of SGLang
    prefill            ``/generate`` of TGI, started with ``--enable-prefill-logprobs``; text alone

What a server answers is believed by nobody here: see :mod:`invarlock.run.server`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, NamedTuple, Protocol

import msgspec

Prompt = str | list[int]
LONGEST = 12  # digits of a token id


class Token(NamedTuple):
    """A token as a server speaks of it."""

    logprob: float | None
    id: int | None = None
    text: str | None = None


class Answer(Protocol):
    """What a server says of a prompt."""

    def prompt(self, ids: Sequence[int]) -> list[Token]:
        """Its tokens, where the server says anything of them; ``ids`` are those it should have."""

    def generated(self) -> Token | None:
        """The token after it."""


class Entry(msgspec.Struct):
    """What vLLM says of a token at a place."""

    logprob: float
    decoded_token: str | None = None


class Logprobs(msgspec.Struct):
    """``logprobs`` of a choice."""

    token_logprobs: list[float | None] = []
    tokens: list[str] = []

    def rows(self) -> list[Token]:
        """A token each."""
        pairs = zip_longest(self.token_logprobs, self.tokens)
        return [Token(value, None, text) for value, text in pairs]


class Choice(msgspec.Struct):
    """One completion."""

    logprobs: Logprobs | None = None
    prompt_logprobs: list[dict[str, Entry] | None] | None = None


class Completion(msgspec.Struct):
    """An answer of ``/v1/completions``."""

    choices: list[Choice]

    def _rows(self) -> list[Token]:
        found = self.choices[0].logprobs if self.choices else None
        return found.rows() if found else []

    def prompt(self, ids: Sequence[int]) -> list[Token]:
        return self._rows()

    def generated(self) -> Token | None:
        return next(iter(self._rows()), None)


class PromptCompletion(Completion):
    """The same with vLLM's own member: at each place the prompt's token and the likeliest."""

    def prompt(self, ids: Sequence[int]) -> list[Token]:
        found = self.choices[0].prompt_logprobs if self.choices else None
        return [_of_place(row or {}, i) for row, i in zip(found or [], ids, strict=False)]


def _of_place(row: dict[str, Entry], wanted: int) -> Token:
    """The prompt's own token; where it is not there, the first, which is another."""
    name = str(wanted) if str(wanted) in row else next(iter(row), "")
    if not (name.isdecimal() and len(name) <= LONGEST):
        return Token(None)
    return Token(row[name].logprob, int(name), row[name].decoded_token)


Row = tuple[float | None, int, str | None]


class Meta(msgspec.Struct):
    """``meta_info`` of SGLang."""

    input_token_logprobs: list[Row] | None = None
    output_token_logprobs: list[Row] | None = None


class Generated(msgspec.Struct):
    """An answer of SGLang's ``/generate``."""

    meta_info: Meta

    def prompt(self, ids: Sequence[int]) -> list[Token]:
        return [Token(*row) for row in self.meta_info.input_token_logprobs or []]

    def generated(self) -> Token | None:
        return next((Token(*row) for row in self.meta_info.output_token_logprobs or []), None)


class Prefilled(msgspec.Struct):
    """A token of TGI."""

    id: int
    text: str
    logprob: float | None = None


class Details(msgspec.Struct):
    """``details`` of TGI."""

    prefill: list[Prefilled] = []
    tokens: list[Prefilled] = []


class Detailed(msgspec.Struct):
    """An answer of TGI's ``/generate``."""

    details: Details | None = None

    def prompt(self, ids: Sequence[int]) -> list[Token]:
        rows = self.details.prefill if self.details else []
        return [Token(row.logprob, row.id, row.text) for row in rows]

    def generated(self) -> Token | None:
        rows = self.details.tokens if self.details else []
        return next((Token(row.logprob, row.id, row.text) for row in rows), None)


@dataclass(frozen=True)
class Way:
    """How a server is asked."""

    name: str
    path: str
    answer: type[Answer]
    body: Callable[[str, Prompt, bool], dict[str, Any]]  # model, prompt, whether of the prompt too
    ids: bool = True  # whether a prompt can be token ids
    text: bool = True  # whether it can be text
    names_model: bool = True  # where not, the server has to have one alone


def _completion(model: str, prompt: Prompt) -> dict[str, Any]:
    """As OpenAI's servers take it; some generate a token in any case."""
    return {"model": model, "prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": 1}


def _echo(model: str, prompt: Prompt, whole: bool) -> dict[str, Any]:
    return {**_completion(model, prompt), "echo": whole}


def _prompt_logprobs(model: str, prompt: Prompt, whole: bool) -> dict[str, Any]:
    return {**_completion(model, prompt), **({"prompt_logprobs": 1} if whole else {})}


def _sglang(model: str, prompt: Prompt, whole: bool) -> dict[str, Any]:
    return {
        "input_ids": prompt,
        "sampling_params": {"temperature": 0, "max_new_tokens": 1},
        "return_logprob": True,
        **({"logprob_start_len": 0} if whole else {}),
    }


def _tgi(model: str, prompt: Prompt, whole: bool) -> dict[str, Any]:
    wanted = {"details": True, "decoder_input_details": whole}
    return {"inputs": prompt, "parameters": {"max_new_tokens": 1, "do_sample": False, **wanted}}


# The first that a server knows, and that stands the trial, is taken.
WAYS = (
    Way("echo", "/v1/completions", Completion, _echo),
    Way("prompt_logprobs", "/v1/completions", PromptCompletion, _prompt_logprobs, text=False),
    Way("input_token_logprobs", "/generate", Generated, _sglang, text=False, names_model=False),
    Way("prefill", "/generate", Detailed, _tgi, ids=False, names_model=False),
)
# What servers call themselves in ``owned_by`` of /v1/models: their name, and what to do where they
# give nothing.
OWNERS = {
    "vllm": ("vLLM", "is it told to give no log-probabilities?"),
    "sglang": ("SGLang", "is it told to give no log-probabilities?"),
    "llamacpp": ("llama-server", "name the .gguf file that it serves, which llama.cpp runs too"),
}
OTHERS = "vLLM, SGLang, and TGI with --enable-prefill-logprobs give them; llama-server does not"
