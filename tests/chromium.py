"""A headless Chromium for tests, driven over its DevTools pipe; needs nothing but the browser.

Messages are JSON objects, each ended by a zero byte, on two pipes that the browser knows as
file descriptors 3 and 4.
"""

from __future__ import annotations

import base64
import json
import os
import re
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # nothing leaves this machine
    "--remote-debugging-pipe",
)
PATIENCE = 90  # seconds for one answer; a busy machine is slow
EVENTS = ("Network.requestWillBeSent", "Network.webSocketCreated", "Network.loadingFailed",
          "Log.entryAdded", "Runtime.consoleAPICalled", "Page.javascriptDialogOpening")  # fmt: skip
Answer = dict[str, Any]


def find() -> str | None:
    """The browser's path, None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One browser process with one page."""

    def __init__(self, path: str, profile: Path, *flags: str) -> None:
        theirs_in, self._to = os.pipe()
        self._from, theirs_out = os.pipe()
        command = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
        words = [path, *FLAGS, *flags, f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(
            ["bash", "-c", command, "bash", *words],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._number = 0
        self._rest = b""
        self._session = ""
        self.events: list[Answer] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        answer = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = answer["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        """End the browser."""
        os.close(self._to)  # a browser whose pipe closes ends itself
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._from)

    def _message(self) -> Answer:
        until = time.monotonic() + PATIENCE
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._from], [], [], max(0.0, until - time.monotonic()))
            chunk = os.read(self._from, 1 << 20) if ready else b""
            if not chunk:
                raise TimeoutError("Chromium ended or does not answer")
            self._rest += chunk
        message, self._rest = self._rest.split(b"\0", 1)
        found: Answer = json.loads(message)
        if found.get("method") in EVENTS:
            self.events.append(found)
        return found

    def call(self, method: str, **params: Any) -> Answer:
        """Call a method of the protocol and wait for its answer."""
        self._number += 1
        body: Answer = {"id": self._number, "method": method, "params": params}
        if self._session:
            body["sessionId"] = self._session
        os.write(self._to, json.dumps(body).encode() + b"\0")
        while (answer := self._message()).get("id") != self._number:
            pass
        assert "error" not in answer, f"{method}: {answer['error']}"
        result: Answer = answer["result"]
        return result

    def open(self, page: Path, width: int = 1280, media: str = "screen") -> list[Answer]:
        """Open a file at a width (CSS px) and wait until it has loaded; returns what happened."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900,
                  deviceScaleFactor=1, mobile=False)  # fmt: skip
        self.call("Emulation.setEmulatedMedia", media=media)
        self.events.clear()
        self.call("Page.navigate", url=page.as_uri())
        while self._message().get("method") != "Page.loadEventFired":
            pass
        self.evaluate("document.fonts.ready.then(() => 1)")  # a round trip after the load
        return list(self.events)

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page; its content policy does not hold for this."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True,
                           awaitPromise=True)  # fmt: skip
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def pdf_pages(self) -> list[bytes]:
        """The page objects of the page as PDF (A4)."""
        found = self.call("Page.printToPDF", paperWidth=8.27, paperHeight=11.69)
        return re.findall(rb"/Type\s*/Page\b", base64.b64decode(found["data"]))


def logged_addresses(log: Path) -> list[str]:
    """Addresses of the requests that pages made, from a network log of Chromium.

    What the browser asks for on its own behalf has no page as its initiator.
    """
    text = log.read_text(encoding="utf-8")
    found = json.loads(text if text.rstrip().endswith("}") else text.rstrip().rstrip(",") + "]}")
    started = found["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    begun = [e.get("params", {}) for e in found["events"] if e["type"] == started]
    return [str(p["url"]) for p in begun if p.get("initiator") not in (None, "not an origin")]


def requests(events: list[Answer]) -> list[str]:
    """Addresses of everything that was requested, in order."""
    found = []
    for event in events:
        params = event["params"]
        if event["method"] == "Network.requestWillBeSent":
            found.append(str(params["request"]["url"]))
        elif event["method"] == "Network.webSocketCreated":
            found.append(str(params["url"]))
    return found
