"""The table of attacks on the verifier: what it is made of, and how a row is run.

The rows are in ``attacks_<theme>.py``, the table of all is in ``test_attacks.py``; ``make
mutants`` runs each row again with the check that it names switched off (``tools/mutants.py``).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pack_factory as packs
from pack_factory import CLEAN, Document, edit_json

from invarlock.evidence import keys

ROOT = Path(__file__).resolve().parent.parent
# The documented steps and the exit code of each (docs/pack-format.md); "" is a pack that verifies.
CODES = {"": 0, "options": 2, "open": 3, "tree": 6, "manifest": 4, "signature": 5, "checksums": 6,
         "references": 6, "scenarios": 6, "claims": 6, "reports": 7}  # fmt: skip
# As a row's check: none can be off, as nothing is read without it, or the row is about bounds.
NOTHING = "nothing"
SECONDS = 5.0  # processor seconds of any verification
MEMORY = 300 << 20  # bytes of any verification
OUTPUT = 4 << 20  # bytes of any output

VERDICT = "results/final_verdict.json"
SCENARIOS = "metadata/scenarios.json"
REPORT = f"{CLEAN}/evaluation.report.json"
RUNTIME = f"{CLEAN}/runtime.manifest.json"
SIGNATURE = "manifest.signature.json"
STRICT = ("--strict",)


@dataclass
class Lab:
    """What an attack works on: a copy of a good signed pack, and a folder beside it."""

    pack: Path
    key: Path
    scratch: Path
    race: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Attack:
    """One row.

    ``step`` must catch it, by ``check`` (a name that stands in the package, see ``mutants.py``).
    ``by``: who attacks - ``anyone`` without the key; ``publisher``: the manifest, checksums and
    signature are made to fit again; ``binder``: the runtime manifests are bound to the reports
    again before that.
    """

    name: str
    step: str
    check: str
    damage: Callable[[Lab], object]
    by: str = "anyone"
    options: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()

    def inflict(self, lab: Lab) -> None:
        """Damage the copy, and sign it where the attacker can."""
        self.damage(lab)
        if self.by == "publisher":
            packs.relist(lab.pack, lab.key)
        elif self.by == "binder":
            packs.resign(lab.pack, lab.key)


class Outcome(NamedTuple):
    """How one command line ended."""

    code: int
    cpu: float
    memory: int
    output: str
    errors: str
    document: Document | None

    @property
    def steps(self) -> tuple[str, ...]:
        """The steps that found something."""
        found = (self.document or {}).get("steps", [])
        return tuple(step["name"] for step in found if not step["ok"])


class Verifier:
    """A client of ``attack_server.py`` over one source tree of the package."""

    def __init__(self, source: Path = ROOT) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="verifier"))
        self._server = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "attack_server.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=self._folder,
            env=os.environ | {"PYTHONPATH": str(source), "HOME": str(self._folder)},
        )

    def close(self) -> None:
        """End the server."""
        self._server.communicate()
        shutil.rmtree(self._folder)

    def run(self, *words: str, race: object = None, environment: object = ()) -> Outcome:
        """One command line; its JSON result is read where it left one."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        files = {name: str(self._folder / name) for name in ("stdout", "stderr", "json")}
        Path(files["json"]).unlink(missing_ok=True)
        words = tuple(files["json"] if word == "{json}" else word for word in words)
        request = {"words": words, "race": race, "environment": dict(environment), **files}  # type: ignore[call-overload]
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        answer = json.loads(self._server.stdout.readline())
        document = None
        if Path(files["json"]).is_file():
            document = json.loads(Path(files["json"]).read_text())
        return Outcome(
            answer["code"],
            answer["cpu"],
            answer["memory"],
            Path(files["stdout"]).read_text(errors="surrogateescape"),
            Path(files["stderr"]).read_text(errors="surrogateescape"),
            document,
        )

    def verify(self, lab: Lab, options: Sequence[str] = (), environment: object = ()) -> Outcome:
        """``evidence-pack verify`` of the lab's pack, plain, with the JSON in a file."""
        words = ["advanced", "evidence-pack", "verify", str(lab.pack), "--json-out", "{json}"]
        signer = keys.fingerprint(keys.load_signing_key(lab.key).public)
        named = [word.format(scratch=lab.scratch, signer=signer) for word in options]
        return self.run(*words, *named, race=lab.race, environment=environment)


@contextlib.contextmanager
def laboratory(good: Path, key: Path) -> Iterator[Lab]:
    """A fresh copy of the good pack, removed afterwards however odd it has become."""
    folder = Path(tempfile.mkdtemp(prefix="attack"))
    try:
        (folder / "beside").mkdir()
        yield Lab(packs.copy(good, folder / "pack"), key, folder / "beside")
    finally:  # rmtree stumbles over thousands of levels
        subprocess.run(["chmod", "-R", "u+rwx", str(folder)], check=False, capture_output=True)
        subprocess.run(["rm", "-rf", str(folder)], check=True)


# --- damage that many rows share ------------------------------------------------------------


def write(path: str, data: bytes | str = b"x") -> Callable[[Lab], object]:
    """Write a file of the pack, making its folders."""

    def damage(lab: Lab) -> None:
        target = lab.pack / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data.encode() if isinstance(data, str) else data)

    return damage


def member(path: str, value: object) -> Callable[[Document], None]:
    """A change of one member, by ``/``-separated path; None removes it."""

    def change(document: Document) -> None:
        *parts, last = [int(part) if part.isdigit() else part for part in path.split("/")]
        for part in parts:
            document = document[part]  # type: ignore[index]
        if value is None:
            del document[last]  # type: ignore[arg-type]
        else:
            document[last] = value  # type: ignore[index]

    return change


def edit(path: str, change: Callable[[Document], object]) -> Callable[[Lab], object]:
    """Change a JSON file of the pack."""
    return lambda lab: edit_json(lab.pack / path, change)


def claim(change: Callable[[Document], object]) -> Callable[[Lab], object]:
    """Change the manifest and sign it: the publisher claims something else."""
    return lambda lab: packs.relist(lab.pack, lab.key, change)
