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

    ``way``: how the server goes wrong; empty: as vLLM does.
    """

    def __init__(self, folder: Path, way: str = "") -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.way = way
        self.asked: list[Answer] = []
        self.keys: list[str | None] = []
        self.names = ["small"]

    def complete(self, body: Answer) -> tuple[int, Answer]:
        """Status and document."""
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
        if self.way == "generated only" or not body["echo"]:
            logprobs = {"token_logprobs": numbers[-1:], "tokens": words[-1:]}
        return 200, {"choices": [{"text": "".join(words), "logprobs": logprobs}]}


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
                self._answer(200, {"data": [{"id": name} for name in completions.names]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            completions.keys.append(self.headers.get("Authorization"))
            completions.asked.append(body)
            self._answer(*completions.complete(body))

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
