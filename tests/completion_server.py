"""A server on loopback that answers ``/v1/completions`` with the numbers of a real small model."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

Answer = dict[str, Any]


class Completions:
    """What is answered, and what was asked.

    ``way``: as which server it speaks, or how it goes wrong; empty: as vLLM does with ``echo``.
    """

    def __init__(self, folder: Path, way: str = "") -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.way = way
        self.asked: list[Answer] = []
        self.keys: list[str | None] = []
        self.names = ["small"]
        self.owner = ""

    def answer(self, path: str, body: Answer) -> tuple[int, Answer]:
        """Status and document."""
        if path == "/generate" and self.way in GENERATE:
            return GENERATE[self.way](self, body)
        if path != "/v1/completions" or self.way in ("tgi", "tgi without prefill"):
            return 404, {"detail": "Not Found"}
        return self.complete(body)

    def rows(self, ids: list[int]) -> tuple[list[int], list[float | None]]:
        """Tokens of a prompt with the one after it, and the log-probability of each."""
        with torch.inference_mode():
            rows = self.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        every = [*ids, int(rows[-1].argmax())]
        return every, [None, *(float(rows[n - 1, every[n]]) for n in range(1, len(every)))]

    def models(self) -> Answer:
        """``/v1/models``."""
        return {"data": [{"id": name, "owned_by": self.owner} for name in self.names]}

    def word(self, token: int) -> str:
        """What it spells."""
        return str(self.tokenizer.decode([token], skip_special_tokens=False))

    def sglang(self, body: Answer) -> tuple[int, Answer]:
        """``/generate`` of SGLang."""
        if "input_ids" not in body:
            return 400, {"error": {"message": "Either text or input_ids should be provided."}}
        every, numbers = self.rows(body["input_ids"])
        said = [[value, token, None] for value, token in zip(numbers, every, strict=True)]
        meta = {"output_token_logprobs": said[-1:], "completion_tokens": 1}
        if body.get("logprob_start_len") == 0:
            meta["input_token_logprobs"] = said[:-1]
        return 200, {"text": self.word(every[-1]), "meta_info": meta}

    def tgi(self, body: Answer) -> tuple[int, Answer]:
        """``/generate`` of TGI."""
        if not isinstance(body.get("inputs"), str):
            return 422, {"error": "missing field `inputs`", "error_type": "Input validation error"}
        every, numbers = self.rows(self.tokenizer.encode(body["inputs"]).ids)
        said: list[Answer] = [
            {"id": token, "text": self.word(token), "logprob": value}
            for value, token in zip(numbers, every, strict=True)
        ]
        asked = body["parameters"]["decoder_input_details"] and self.way == "tgi"
        details = {
            "finish_reason": "length", "generated_tokens": 1,
            "prefill": said[:-1] if asked else [], "tokens": [{**said[-1], "special": False}],
        }  # fmt: skip
        return 200, {"generated_text": said[-1]["text"], "details": details}

    def complete(self, body: Answer) -> tuple[int, Answer]:
        """``/v1/completions``."""
        prompt = body["prompt"]
        if self.way == "text" and not isinstance(prompt, str):
            return 422, {"error": "prompt: Input should be a valid string\nline two"}
        if self.way == "busy" and len(self.asked) % 2:
            return 503, {"error": "busy"}
        if self.way == "always busy":
            return 503, {"error": "busy"}
        if self.way == "no echo":
            return 200, {"choices": [{"text": "x", "logprobs": None}]}
        if self.way == "short" and len(prompt) > 30:
            return 400, {"error": {"message": "This model's maximum context length is 30 tokens"}}
        ids = self.tokenizer.encode(prompt).ids if isinstance(prompt, str) else list(prompt)
        with torch.inference_mode():
            rows = self.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        drawn = int(rows[-1].argmax())
        every = [*ids, drawn]
        shift = 0 if self.way == "shifted" else 1  # llama-cpp-python takes the token's own row
        numbers = [None, *(float(rows[n - shift, every[n]]) for n in range(1, len(ids)))]
        numbers.append(float(rows[-1, drawn]))
        if self.way == "above zero" and len(ids) > 30:
            numbers[9] = 0.5
        words = [self.tokenizer.decode([i], skip_special_tokens=False) for i in every]
        logprobs: Answer = {"token_logprobs": numbers, "tokens": words}
        generated_only = self.way in ("generated only", "prompt_logprobs", "sglang")
        if generated_only or not body.get("echo"):
            logprobs = {"token_logprobs": numbers[-1:], "tokens": words[-1:]}
        choice = {"text": "".join(words), "logprobs": logprobs}
        if self.way == "prompt_logprobs" and "prompt_logprobs" in body:
            places: list[Answer | None] = [None]
            for n in range(1, len(ids)):  # the token itself, after the likeliest
                likeliest = int(rows[n - 1].argmax())
                places.append({
                    str(token): {
                        "logprob": float(rows[n - 1, token]), "rank": 1, "decoded_token": "x",
                    }
                    for token in (likeliest, ids[n])
                })  # fmt: skip
            choice["prompt_logprobs"] = places
        return 200, {"choices": [choice]}


GENERATE = {
    "sglang": Completions.sglang, "tgi": Completions.tgi, "tgi without prefill": Completions.tgi,
}  # fmt: skip


@contextmanager
def serving(completions: Completions) -> Iterator[str]:
    """The address of the server, which runs inside the block."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version: ClassVar[str] = "HTTP/1.1"

        def _answer(self, status: int, document: object) -> None:
            data = document if isinstance(document, bytes) else json.dumps(document).encode()
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "http://127.0.0.1:9/elsewhere")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            completions.keys.append(self.headers.get("Authorization"))
            if completions.way == "moved":
                self._answer(302, b"")
            elif completions.way == "page":
                self._answer(200, b"<html>hello</html>")
            else:
                self._answer(200, completions.models())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            completions.keys.append(self.headers.get("Authorization"))
            completions.asked.append(body)
            self._answer(*completions.answer(self.path, body))

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"openai:http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
