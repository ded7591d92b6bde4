"""Attacks with JSON that has no or more than one reading, in every kind of file that holds any."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pack_factory as packs
from attacks import NOTHING, REPORT, RUNTIME, SCENARIOS, SIGNATURE, VERDICT, Attack, Lab
from pack_factory import CLEAN

from invarlock.evidence import keys

Change = Callable[[bytes], bytes]


def first(text: bytes) -> Change:
    """Put a member in front of an object's others."""
    return lambda data: b"{" + text + b", " + data[1:]


def twice(data: bytes) -> bytes:
    """Put the first member of an object in it a second time, with another value."""
    name = next(iter(json.loads(data)))
    return first(json.dumps(name).encode() + b": 0")(data)


# Each with the check that must refuse it.
ODD: dict[str, tuple[str, Change]] = {
    "duplicate keys": ("json.duplicate", twice),
    "NaN": ("json.constant", first(b'"x": NaN')),
    "minus infinity": ("json.constant", first(b'"x": -Infinity')),
    "1e999": ("json.overflow", first(b'"x": 1e999')),
    "integer of 5,000 digits": ("json.digits", first(b'"x": ' + b"9" * 5000)),
    "integer of 40 digits": ("json.digits", first(b'"x": -' + b"9" * 40)),
    "100 levels": ("json.depth", first(b'"x": ' + b"[" * 100 + b"]" * 100)),
    "depth 100,000": ("json.depth", first(b'"x": ' + b"[" * 100_000 + b"]" * 100_000)),
    "BOM": (NOTHING, lambda data: b"\xef\xbb\xbf" + data),
    "UTF-16": (NOTHING, lambda data: data.decode().encode("utf-16-be")),
    "UTF-16 with a BOM": (NOTHING, lambda data: data.decode().encode("utf-16")),
    "broken UTF-8": (NOTHING, first(b'"x": "\xff"')),
    "lone surrogate": ("json.surrogate", first(b'"x": "\\ud800"')),
    "lone surrogate in a key": ("json.surrogate", first(b'"\\uDFFF": 1')),
    "open string": (NOTHING, lambda data: data + b'"'),
    "two documents": (NOTHING, lambda data: data + data),
    "nothing": (NOTHING, lambda data: b""),
    "a run of quotes": (NOTHING, lambda data: b"[" * 65 + b'"' * 200_000),
}  # fmt: skip
# The file of each kind, and the step that reads it first.
FILES = {
    "manifest.json": "manifest",
    SIGNATURE: "signature",
    SCENARIOS: "scenarios",
    RUNTIME: "reports",
    f"{CLEAN}/outcome.json": "scenarios",
    f"{CLEAN}/edit_metadata.json": "scenarios",
    VERDICT: "scenarios",
    REPORT: "claims",
}


def rewrite(path: str, change: Change) -> Callable[[Lab], object]:
    """Change the bytes of a file; the publisher signs what comes of it where that is possible."""

    def damage(lab: Lab) -> None:
        target = lab.pack / path
        target.write_bytes(change(target.read_bytes()))
        if path == "manifest.json":
            packs.sign_bytes(lab.pack, lab.key)
        elif path != SIGNATURE:
            packs.relist(lab.pack, lab.key)

    return damage


def store(lab: Lab, name: str = "store.json") -> Path:
    """A trust store beside the pack that names its signer."""
    signer = keys.fingerprint(keys.load_signing_key(lab.key).public)
    packs.write_json(lab.scratch / name, {"trusted_signers": [signer]})
    return lab.scratch / name


def odd_store(change: Change) -> Callable[[Lab], object]:
    """A trust store with odd JSON."""

    def damage(lab: Lab) -> None:
        path = store(lab)
        path.write_bytes(change(path.read_bytes()))

    return damage


def values(number: int) -> bytes:
    """JSON of many small values: it takes far more memory than it has bytes."""
    return b"[" + b'{"a":1},' * number + b"0]"


def full(lab: Lab) -> None:
    """As much JSON as the limits admit."""
    for index in range(5):
        (lab.pack / f"metadata/x{index}.json").write_bytes(values(240_000).ljust(16 << 20))
    (lab.pack / "metadata/wide.json").write_bytes(
        b'"' + "\U0001f600".encode() + b"x" * 14_000_000 + b'"'
    )


TRUSTED = ("--trust-store", "{scratch}/store.json")
ELSE_UNKNOWN = {(RUNTIME, "lone surrogate")}  # a member that the same step knows for odd, too
ROWS = [
    *(Attack(f"{path.rpartition('/')[2]}: {name}", step,
             NOTHING if (path, name) in ELSE_UNKNOWN else check, rewrite(path, change))
      for path, step in FILES.items() for name, (check, change) in ODD.items()),
    *(Attack(f"trust store: {name}", "options", check, odd_store(change), options=TRUSTED)
      for name, (check, change) in ODD.items()),
    *(Attack(f"{path.rpartition('/')[2]} is a list", step, check,
             rewrite(path, lambda data: b"[]"))
      for path, step, check in (("manifest.json", "manifest", "manifest.object"),
                                (SIGNATURE, "signature", "signature.contract"),
                                (SCENARIOS, "scenarios", "scenarios.object"),
                                (REPORT, "claims", "json.object"))),
]  # fmt: skip
HARMLESS = [Attack("as much JSON as may be", "", "", full, "publisher")]
