"""A small hub, a working folder with a cache of its own, and the command line between them."""

from __future__ import annotations

import io
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import warm
from conftest import write_tiny_folder
from hub_server import Repo, serve

TEXT = "hub:o/d?config=en&split=validation"
CARD = b"""---
configs:
- config_name: en
  data_files:
  - split: validation
    path: en/val-*.parquet
---
"""


@dataclass
class World:
    """A running hub, a working folder with its own cache, and the command line."""

    folder: Path
    address: str
    model: Repo
    data: Repo
    asked: list[str]

    def run(self, *words: str) -> tuple[int, str]:
        """Exit code and stderr of one command; it loads what speaks with the hub itself."""
        home = {"HF_HOME": str(self.folder / "hf"), "HF_ENDPOINT": self.address}
        root = str(Path(__file__).resolve().parent.parent)
        done = subprocess.run(
            [warm.python(), "-m", "invarlock", *words],
            cwd=self.folder,
            env={**os.environ, **home, "PYTHONPATH": root, "NO_PROXY": "127.0.0.1"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return done.returncode, done.stderr

    def pin(
        self, *extra: str, source: str = "hub:o/m", text: str = "local:t.txt"
    ) -> tuple[int, str]:
        """Pin the model with the network on."""
        words = ["--suite", "s", "--model", f"o/m={source}", "--text", text, "--out", "r.json"]
        return self.run("pin", *words, "--net", *extra)

    def baseline(self, *extra: str) -> tuple[int, str]:
        """Place the pinned model."""
        words = ["--revisions", "r.json", "--out", "b", "--record", "b.json"]
        return self.run("baseline", "--model", "o/m", *words, "--min-free-gb", "0", *extra)


@contextmanager
def open_world(folder: Path) -> Iterator[World]:
    """Serve one public model and one public data set to the working folder ``folder``."""
    import pyarrow
    from pyarrow import parquet

    write_tiny_folder(folder / "source")
    files = {path.name: path.read_bytes() for path in (folder / "source").iterdir()}
    model = Repo(files | {"pytorch_model.bin": b"pickle", "README.md": b"hello"})
    table, rows = io.BytesIO(), ["".join(f"{i}{j:02d};" for j in range(40)) for i in range(4)]
    parquet.write_table(pyarrow.table({"text": rows}), table)
    data = Repo({"README.md": CARD, "en/val-00000.parquet": table.getvalue()})
    (folder / "t.txt").write_text("hello")
    with serve({"o/m": model, "datasets/o/d": data}) as (address, asked):
        yield World(folder, address, model, data, asked)
