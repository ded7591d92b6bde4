"""A small hub on loopback: the API paths that pinning and downloading use, and nothing else."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

REVISION = "a" * 40
MOVED = "b" * 40


class Fault(NamedTuple):
    """What goes wrong with one request for a file: an HTTP status, or the end after some bytes."""

    status: int = 0
    cut: int = 0


@dataclass
class Repo:
    """A repository of one commit; ``wrong`` replaces the bytes served for a file.

    ``faults`` of a file are used up one by one by the requests for its bytes. ``down`` is a status
    that every question to the API gets, ``answers`` the commit that the API names for any other.
    """

    files: dict[str, bytes]
    revision: str = REVISION
    gated: bool | str = False
    private: bool = False
    tags: list[str] = field(default_factory=list)
    wrong: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    down: int = 0
    answers: str = ""

    def info(self, name: str) -> dict[str, object]:
        """The answer of ``/api/models/<name>?blobs=true``."""
        siblings = []
        for file, data in sorted(self.files.items()):
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            row: dict[str, object] = {"rfilename": file, "size": len(data), "blobId": blob}
            if file.endswith((".safetensors", ".parquet")):
                sha = hashlib.sha256(data).hexdigest()
                row["lfs"] = {"sha256": sha, "size": len(data), "pointerSize": 134}
            siblings.append(row)
        return {
            "_id": "1",
            "id": name,
            "sha": self.answers or self.revision,
            "gated": self.gated,
            "private": self.private,
            "tags": self.tags,
            "cardData": {"license": "apache-2.0"},
            "siblings": siblings,
        }


@contextmanager
def serve(repos: dict[str, Repo]) -> Iterator[tuple[str, list[str]]]:
    """Serve ``repos`` (``owner/name`` or ``datasets/owner/name``); yields (address, requests)."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Stay quiet."""

        def do_HEAD(self) -> None:
            """Answer without a body."""
            self._answer()

        def do_GET(self) -> None:
            """Answer with the body."""
            self._answer()

        def do_POST(self) -> None:
            """``paths-info``: which of the asked paths exist."""
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            self._answer(body)

        def _answer(self, body: bytes = b"") -> None:
            path = unquote(urlsplit(self.path).path).strip("/")
            begin = self.headers.get("Range", "")
            asked.append(f"{self.command} {path} {begin}".strip())
            fault = planned(repos, path) if self.command == "GET" else None
            status, headers, data = answer(repos, path, body)
            if status == 200 and begin:
                first = int(begin.removeprefix("bytes=").partition("-")[0])
                headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
                status, data = 206, data[first:]
            if fault is not None and fault.status:
                status, headers, data = fault.status, {}, b""
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data if fault is None else data[: fault.cut])
            self.close_connection = fault is not None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


Answer = tuple[int, dict[str, str], bytes]


def planned(repos: dict[str, Repo], path: str) -> Fault | None:
    """The next planned fault of the file that ``path`` asks for."""
    for name, repo in repos.items():
        if path.startswith(f"{name}/resolve/"):
            faults = repo.faults.get(path.removeprefix(f"{name}/resolve/").partition("/")[2])
            return faults.pop(0) if faults else None
    return None


def answer(repos: dict[str, Repo], path: str, body: bytes) -> Answer:
    """Status, headers and body for one path."""
    api = path.startswith("api/")
    plain = path.removeprefix("api/").removeprefix("models/")
    name = next((n for n in repos if (plain + "/").startswith(n + "/")), None)
    if name is None:
        return 404, {"X-Error-Code": "RepoNotFound"}, b""
    repo, rest = repos[name], plain.removeprefix(name).strip("/").split("/", 2)
    if len(rest) > 1 and rest[1] != repo.revision and not (api and repo.answers):
        return 404, {"X-Error-Code": "RevisionNotFound"}, b""
    if api and repo.down:
        return repo.down, {}, b""
    if api:
        return _api(repo, name, rest, body)
    file = rest[2] if len(rest) == 3 else ""
    if file not in repo.files:
        headers = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": repo.revision}
        return 404, headers, b""
    data = repo.wrong.get(file, repo.files[file])
    etag = hashlib.sha256(repo.files[file]).hexdigest()
    return 200, {"ETag": f'"{etag}"', "X-Repo-Commit": repo.revision}, data


def _api(repo: Repo, name: str, rest: list[str], body: bytes) -> Answer:
    headers = {"Content-Type": "application/json"}
    if rest[0] in ("", "revision"):
        return 200, headers, json.dumps(repo.info(name.removeprefix("datasets/"))).encode()
    rows = [
        {"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
        for file, data in sorted(repo.files.items())
    ]
    if rest[0] == "paths-info":
        wanted = json.loads(body)["paths"] if body.startswith(b"{") else _form(body)
        rows = [row for row in rows if row["path"] in wanted]
    else:
        rows = _children(rows, rest[2] + "/" if len(rest) == 3 else "")
    return 200, headers, json.dumps(rows).encode()


def _children(rows: list[dict[str, object]], folder: str) -> list[dict[str, object]]:
    """The files directly in ``folder`` and the folders directly in it."""
    names = {str(row["path"]): row for row in rows if str(row["path"]).startswith(folder)}
    inner = {folder + name.removeprefix(folder).split("/")[0] for name in names}
    directory = {"type": "directory", "oid": "0" * 40, "size": 0}
    return [names.get(name, {**directory, "path": name}) for name in sorted(inner)]


def _form(body: bytes) -> list[str]:
    from urllib.parse import parse_qs

    return parse_qs(body.decode()).get("paths", [])
