"""Measure a running server by the log-probabilities that it gives of prompts.

vLLM, SGLang and others give of every token of a prompt its log-probability, each in its own way
(:mod:`invarlock.run.server_ways`). That is what the primary metric needs, and all that a server
shows: no weights, no activations, no whole distribution.

Numbers of a server are believed only after a trial: the token that it generates after a prompt has
to get, as a part of a longer prompt, the log-probability that it had when it was generated. A
server that gives those of another position, or none, is refused. Only the host that was named is
asked, redirections and proxies are not followed, and the number of requests is bounded.
"""

from __future__ import annotations

import http.client
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec
import numpy as np

from invarlock import progress
from invarlock.checkpoints import Checkpoint, Identity
from invarlock.errors import ConfigError, InputError, MeasurementError
from invarlock.formats.execution import Described
from invarlock.guards.guard import SERVED
from invarlock.metrics import ARMS
from invarlock.models import SCHEME
from invarlock.run.forward import ArmResult
from invarlock.run.measure import SERVER, Measurement, RunWindows
from invarlock.run.server_ways import OTHERS, OWNERS, WAYS, Answer, Token, Way
from invarlock.run.tasks import task_for
from invarlock.shown import listed
from invarlock.tokenizer_meaning import read_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

KEY = "INVARLOCK_BACKEND_KEY"
TIMEOUT = 300.0  # seconds for one answer
TRIES = 4  # for one answer; a busy server and one that breaks off are asked again
PAUSE = 1.0  # seconds before the second try, twice as long before each further one
BUSY = (408, 425, 429, 500, 502, 503, 504)
LARGEST = 64 << 20  # bytes of an answer
SHOWN = 200  # characters of what a server says
TRIALS = (16, 24)  # tokens of the prompts of the trial
SEARCHED = 8  # longer prompts that are tried where the next token is not one that can be named
AGREEMENT = 0.1  # nats: two passes of a server batch and round differently


class Model(msgspec.Struct):
    """A model that a server has."""

    id: str
    owned_by: str = ""


class Models(msgspec.Struct):
    """An answer of ``/v1/models``."""

    data: list[Model]


@dataclass(frozen=True)
class Address:
    """Where a server is, and which of its models is meant."""

    secure: bool
    host: str
    port: int | None
    path: str  # up to and with /v1
    model: str  # empty: the only one

    @classmethod
    def read(cls, text: str, where: str = "--backend") -> Address:
        """``openai:URL`` or ``openai:URL#MODEL``.

        Args:
            text: as it was given.
            where: the option or setting, for errors.

        Raises:
            ConfigError: anything else, or a password in the URL.
        """
        form = f"{SCHEME}http://HOST:PORT[/v1][#MODEL]"
        try:
            parts = urlsplit(text.removeprefix(SCHEME))
            port = parts.port
        except ValueError as error:
            raise ConfigError(f"not an address: {error}", where=where) from error
        named = text.startswith(SCHEME) and parts.scheme in ("http", "https") and parts.hostname
        if not named or not parts.hostname or parts.query:
            raise ConfigError("not a server", where=where, expected=form, found=text[:80])
        if parts.username or parts.password:
            raise ConfigError(
                "a password in an address ends up in reports", where=where,
                hint=f"give the key in the environment variable {KEY}",
            )  # fmt: skip
        path = parts.path.rstrip("/")
        path = path if path.endswith("/v1") else f"{path}/v1"
        return cls(parts.scheme == "https", parts.hostname, port, path, parts.fragment)

    @property
    def root(self) -> str:
        """The path before /v1."""
        return self.path.removesuffix("/v1")

    @property
    def is_here(self) -> bool:
        """Whether it is this machine, under a name that every machine has for itself."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost" or self.host.endswith(".localhost")

    @property
    def url(self) -> str:
        """As reports name it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = f":{self.port}" if self.port else ""
        return f"http{'s' if self.secure else ''}://{host}{port}{self.path}"


@dataclass
class Server:
    """A server that answers as OpenAI's does."""

    address: Address
    model: str = ""
    asked: int = 0  # requests so far
    way: Way = WAYS[0]
    as_ids: bool = True  # whether prompts go as token ids
    alone: bool = True  # whether it has one model
    owner: str = ""  # what the server calls itself
    tokenizer: Tokenizer | None = field(default=None, repr=False)

    @property
    def where(self) -> str:
        """For errors."""
        return self.address.url

    def choose(self) -> None:
        """Find out which model is meant.

        Raises:
            InputError: the server has several, or not the one that was named.
        """
        models = self._ask("GET", "/v1/models", None, Models).data
        names = [model.id for model in models]
        self.alone, self.owner = len(names) == 1, models[0].owned_by if models else ""
        self.model = self.address.model or (names[0] if len(names) == 1 else "")
        if self.model not in names:
            raise InputError(
                f"has no model {self.model}" if self.model else "has several models",
                where=self.where, found=listed(names, 5) or "none",
                hint="name one: --backend openai:URL#MODEL",
            )  # fmt: skip

    def prove(self, ids: Sequence[int]) -> None:
        """Find out in which way the server gives numbers, and whether they are those of the next
        token.

        Args:
            ids: of a text; its first tokens are sent.

        Raises:
            InputError: the server gives no log-probabilities of prompts, or wrong ones.
        """
        wrong: _WrongError | None = None
        lacking: dict[str, str] = {}
        for way, as_ids in _tries(self.alone):
            self.way, self.as_ids = way, as_ids
            try:
                for length in TRIALS:
                    self._try(ids, length)
            except _WrongError as error:
                wrong = wrong or error
            except _LacksError as error:
                lacking.setdefault(way.name, error.short)
            else:
                return
        if wrong:
            raise wrong
        name, hint = OWNERS.get(self.owner, ("", OTHERS))
        tried = ", ".join(f"{way}: {short}" for way, short in lacking.items())
        raise InputError(
            f"{name} gives no log-probabilities of prompts".strip(), where=self.where,
            found=tried, hint=hint,
        )  # fmt: skip

    def _try(self, ids: Sequence[int], length: int) -> None:
        for count in range(length, min(length + SEARCHED, len(ids))):
            start = list(ids[:count])
            found = self._answer(start, whole=False).generated()
            if found is None or found.logprob is None:
                break
            named = [found.id] if found.id is not None else self._ids_of(found.text or "")
            longer = [*start, *named]
            if len(named) != 1 or not (self._survives(start) and self._survives(longer)):
                continue
            again = self.logprobs(longer)[-1]
            if abs(again - found.logprob) > AGREEMENT:
                raise _WrongError(
                    "gives log-probabilities of prompts that are not those of the next token: a"
                    f" token had {found.logprob:.3f} when it was generated and {again:.3f} in a"
                    " prompt",
                    where=self.where, hint="serve the model with vLLM or SGLang",
                )  # fmt: skip
            return
        raise _LacksError("no generated token to compare", where=self.where)

    def logprobs(self, ids: Sequence[int]) -> list[float]:
        """Log-probabilities of all tokens of a prompt but the first, nats.

        Raises:
            InputError: the server gives none, or read other tokens.
            MeasurementError: it does not answer.
        """
        found = self._answer(ids, whole=True).prompt(ids)
        if any(token.id is not None for token in found):  # tokens that differ may also be fewer
            self._require_tokens(ids, found)
        values = [token.logprob for token in found[1 : len(ids)]]
        given = [value for value in values if value is not None]
        if len(given) < len(ids) - 1:
            raise _LacksError(
                "gives no log-probabilities of the tokens of a prompt", where=self.where,
                expected=str(len(ids) - 1), found=str(len(given)),
                short=f"{len(given)} of {len(ids) - 1} tokens",
            )  # fmt: skip
        above = next((value for value in given if value > 0), None)
        if above is not None:
            raise InputError(
                "gives log-probabilities above zero, which are none", where=self.where,
                found=f"{above:g}",
            )  # fmt: skip
        self._require_tokens(ids, found)
        return given

    def require_text(self, windows: Sequence[Sequence[int]]) -> None:
        """Refuse windows that come back as other tokens where only text can be sent.

        Raises:
            InputError: there are some.
        """
        odd = sum(not self._survives(ids) for ids in windows)
        if odd:
            raise InputError(
                f"takes prompts as text alone, and {odd} of {len(windows)} windows, cut from a"
                " longer text, are other tokens as texts of their own", where=self.where,
                hint="use a server that takes token ids, such as vLLM or SGLang",
            )  # fmt: skip

    def _survives(self, ids: Sequence[int]) -> bool:
        """Whether a prompt reaches the server as these tokens."""
        return self.as_ids or self._ids_of(self._text(ids)) == list(ids)

    def _text(self, ids: Sequence[int]) -> str:
        assert self.tokenizer is not None
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))

    def _ids_of(self, text: str) -> list[int]:
        assert self.tokenizer is not None
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def _require_tokens(self, ids: Sequence[int], tokens: Sequence[Token]) -> None:
        """The server's tokens, by their ids; of a text without ids by what they spell, where parts
        of a character say nothing."""
        for wanted, token in zip(ids, tokens, strict=False):
            spelt, read = self._text([wanted]), token.text or ""
            other = spelt.strip() != read.strip() and "\ufffd" not in spelt and not self.as_ids
            if other if token.id is None else token.id != wanted:
                raise _WrongError(
                    "cuts a text into other tokens than the baseline's tokenizer",
                    where=self.where, expected=repr(spelt.strip()), found=repr(read)[:SHOWN],
                )  # fmt: skip

    def _answer(self, ids: Sequence[int], whole: bool) -> Answer:
        """What the server says of a prompt, or only of the token that it generates after it."""
        prompt: list[int] | str = list(ids) if self.as_ids else self._text(ids)
        body = self.way.body(self.model, prompt, whole)
        answer: Answer = self._ask("POST", self.way.path, body, self.way.answer)
        return answer

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None, kind: type[Any]) -> Any:
        """One answer, after :data:`TRIES` tries at most."""
        data = None if body is None else json.dumps(body).encode()
        told = ""
        for number in range(TRIES):
            if number:
                time.sleep(PAUSE * 2 ** (number - 1))
            try:
                status, answer = self._send(method, f"{self.address.root}{path}", data)
            except (OSError, http.client.HTTPException) as error:
                told = str(error) or type(error).__name__
                continue
            if status == 200:
                try:
                    return msgspec.json.decode(answer, type=kind)
                except msgspec.DecodeError as error:
                    raise _LacksError(
                        f"{path} does not answer as OpenAI's servers do: {error}",
                        where=self.where, short="another answer",
                    ) from error  # fmt: skip
            told = f"HTTP {status}: {_line(answer)}"
            if status not in BUSY:
                raise _LacksError(
                    f"{path} refuses the request ({told})", where=self.where, short=f"HTTP {status}"
                )
        if told.startswith("HTTP 500"):  # what some servers say of requests that they cannot read
            raise _LacksError(f"{path} fails ({told})", where=self.where, short="HTTP 500")
        raise MeasurementError(
            f"no answer after {TRIES} tries: {told}",
            where=self.where,
            hint="is the server running?",
        )

    def _send(self, method: str, path: str, data: bytes | None) -> tuple[int, bytes]:
        self.asked += 1
        made = http.client.HTTPSConnection if self.address.secure else http.client.HTTPConnection
        connection = made(self.address.host, self.address.port, timeout=TIMEOUT)
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key := os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {key}"
        try:
            connection.request(method, path, data, headers)
            answer = connection.getresponse()
            content = answer.read(LARGEST + 1)
        finally:
            connection.close()
        if len(content) > LARGEST:
            raise InputError("answers with too much", where=self.where, expected=f"{LARGEST} bytes")
        return answer.status, content


class _LacksError(InputError):
    """The server does not take a request, or gives no numbers; another way may do."""

    def __init__(self, what: str, *, short: str = "", **more: str) -> None:
        super().__init__(what, **more)
        self.short = short or what


class _WrongError(InputError):
    """The server gives wrong numbers, or reads other tokens."""


def _tries(alone: bool) -> Iterator[tuple[Way, bool]]:
    """Each way, and whether with token ids: those first."""
    for way in WAYS:
        if way.names_model or alone:
            yield from (
                (way, as_ids) for as_ids in (True, False) if (way.ids, way.text)[not as_ids]
            )


def _line(answer: bytes) -> str:
    """What an answer says, in one line that a terminal can show."""
    text = " ".join(answer.decode(errors="replace").split())
    return "".join(c if c.isprintable() else "?" for c in text)[:SHOWN] or "nothing"


def identity_of(server: Server, baseline: Checkpoint) -> Identity:
    """What a report says of a subject that only a server holds: what it was called there."""
    named = {"model": server.model, "url": server.address.url}
    return Identity(
        baseline.config, {"server": named}, None, None,
        {"format": SERVED, "title": "running server"},
    )  # fmt: skip


def measure_server(text: str, baseline: Path, windows: RunWindows) -> tuple[Server, Measurement]:
    """Ask a server for the log-probabilities of all windows.

    Args:
        text: ``openai:URL``.
        baseline: the folder whose tokenizer cut the windows.
        windows: of text.

    Raises:
        ConfigError: the windows are of another kind.
        InputError, MeasurementError: see :class:`Server`.
    """
    task = task_for(baseline, windows.content, windows.pictures)
    if task.metric.name != "ppl_causal":
        raise ConfigError(
            "a server is measured on windows of text, by perplexity", found=task.metric.name
        )
    server = Server(Address.read(text), tokenizer=read_tokenizer(baseline / "tokenizer.json"))
    server.choose()
    examples = {arm: task.examples(windows.arm(arm)) for arm in ARMS}
    prompts = [[int(i) for i in e.inputs["input_ids"]] for arm in ARMS for e in examples[arm]]
    server.prove(max(prompts, key=len))
    server.require_text(prompts)
    arms = {}
    progress.expect(len(prompts), sum(map(len, prompts)))
    for arm in ARMS:
        found = ArmResult()
        for number, example in enumerate(examples[arm]):
            values = server.logprobs([int(i) for i in example.inputs["input_ids"]])
            row = np.array([values[p] for p in example.positions], dtype=np.float32)
            found.logprob[number] = row
            found.nll_sum[number] = -float(row.astype(np.float64).sum())
            progress.done(1, len(values) + 1)
        arms[arm] = found
    detail = {
        "url": server.address.url,
        "model": server.model,
        "prompts": "token ids" if server.as_ids else "text",
        "way": f"{server.way.name} of {server.way.path}",
    }
    return server, Measurement(
        dtype="unknown",
        device=SERVER,
        records={},
        activations=[],
        arms=arms,
        loaded_failures=[],
        loaded_sha256="",
        ran=Described("openai", {}, {}, SERVER, detail),
    )
