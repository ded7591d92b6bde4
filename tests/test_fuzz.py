"""Mutated packs and reports: documented exit codes and printable output, whatever is in them.

The same examples every time; ``benchmarks/fuzz.py`` searches for new ones.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from random import Random
from typing import Any

import fuzz_pack
import pytest
from fuzz_pack import FuzzPack
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

ODD: list[Any] = [
    None, True, False, 0, -1, 1, 0.5, -0.0, 1e308, -1e308, 5e-324, 2**53, 2**63, 10**31, 10**40,
    float("nan"), float("inf"), "", "x", "-1", "NaN", "a" * 3000, "\x1b[2J\x07", "\u202e", "\ud800",
    "\u2028", "<script>", "../../etc/passwd", "/etc/passwd", "reports", [], {}, [[]], {"": {}},
    [0] * 300, ["x", 1, None], {"__proto__": 1}, [1e308, -1e308],
]  # fmt: skip
RAW = [b"", b"\xef\xbb\xbf", b"\x00", b"\xff\xfe", b"[" * 5000, b'{"a":' * 70, b"1e999", b"-",
       b"9" * 5000, b'"\\ud800"', b"\\", b'"', b"\r\n", b"{}", b"[]", b"null"]  # fmt: skip
NAMES = [
    "x", ".DS_Store", "__MACOSX/x", "reports/x/evaluation.report.json", "metadata/manifest.json",
    "reports/errors/evaluation.report.json", "a b", "\u00e9", "e\u0301", "\u202egnp.exe", "\x1b[2J",
    "n" * 255, "reports/a/b/c/d/e/f/g/h/i/j/k/l/m/n/x.json", "metadata/scenarios.json.bak",
    "reports/a\nb/evaluation.report.json", "manifest.json.asc", "readme.md",
]  # fmt: skip
FUZZ = settings(
    max_examples=100,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.generate],  # an example is a seed: there is nothing to shrink
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[FuzzPack]]:
    """The packs; every example restores what the one before changed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.delenv("INVARLOCK_ALLOW_UNVERIFIED_PROVENANCE", raising=False)
        yield fuzz_pack.make_packs(tmp_path_factory.mktemp("fuzz"))


# --- mutations ------------------------------------------------------------------------------


def nodes(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every ``(container, key)`` of a document."""
    keys = value if isinstance(value, dict) else range(len(value))
    for key in list(keys):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from nodes(value[key])


def change_members(rng: Random, data: bytes) -> bytes:
    """Replace, remove, repeat, rename or nest one to three members of a JSON document."""
    document = {"": json.loads(data)}
    for _ in range(rng.randint(1, 3)):
        found = list(nodes(document))
        # Long lists would take most draws: half of them choose among the named members.
        among = found if rng.random() < 0.5 else [n for n in found if isinstance(n[1], str)]
        container, key = rng.choice(among or found)
        what = rng.choice(["odd", "odd", "odd", "remove", "repeat", "rename", "nest"])
        value = container[key]
        if what == "remove" and container is not document:
            del container[key]
        elif what == "repeat" and isinstance(container, list):
            container.insert(key, value)
        elif what == "rename" and isinstance(container, dict) and container is not document:
            container[rng.choice(["", "x", "\x1b", "ok", "__class__"])] = container.pop(key)
        elif what == "nest":
            for _ in range(rng.choice([1, 60, 200])):
                value = rng.choice([[value], {"x": value}])
            container[key] = value
        else:
            container[key] = copy.deepcopy(rng.choice(ODD))
    text = json.dumps(document[""])
    if rng.random() < 0.1:  # a duplicate key
        text = text.replace("{", '{"run_id": 1, "run_id": 2, ', 1)
    return text.encode()


def change_bytes(rng: Random, data: bytes) -> bytes:
    """Overwrite, insert, cut or append bytes at one place."""
    at = rng.randint(0, len(data))
    new = rng.choice([*RAW, rng.randbytes(rng.randint(0, 8)), bytes([rng.randrange(256)])])
    end = rng.choice([at, at + len(new), at + len(new), at + 1, len(data)])
    return data[:at] + new + data[end:]


def mutate(rng: Random, path: str, data: bytes) -> bytes:
    """One mutated file."""
    structured = path.endswith(".json") and rng.random() < 0.75
    return (change_members if structured else change_bytes)(rng, data)


# --- properties -----------------------------------------------------------------------------

PACK, RESIGN = st.integers(0, 2), st.booleans()
RANDOM = st.randoms(use_true_random=True)  # seeded by the example


@FUZZ
@given(which=PACK, resign=RESIGN, rng=RANDOM)
def test_a_mutated_file(subjects: list[FuzzPack], which: int, resign: bool, rng: Random) -> None:
    """One or two files changed, re-signed in half of the cases so that later steps are reached."""
    pack = subjects[which]
    paths = rng.sample(sorted(pack.files), rng.randint(1, 2))
    pack.place({path: mutate(rng, path, pack.files[path]) for path in paths}, resign=resign)
    fuzz_pack.check_pack(pack)


@FUZZ
@given(which=PACK, rng=RANDOM)
def test_a_mutated_report(subjects: list[FuzzPack], which: int, rng: Random) -> None:
    """Reports and their runtime manifests, re-signed; every command that reads them."""
    pack = subjects[which]
    report = rng.choice(pack.reports())
    runtime = report.removesuffix(fuzz_pack.REPORT) + fuzz_pack.RUNTIME
    path = rng.choice([report, report, runtime if runtime in pack.files else report])
    pack.place({path: mutate(rng, path, pack.files[path])}, resign=True)
    fuzz_pack.check_pack(pack)
    fuzz_pack.check_report(pack.folder / report)


@settings(FUZZ, max_examples=25)
@given(
    which=PACK,
    resign=RESIGN,
    name=st.sampled_from(NAMES) | st.text(st.characters(codec="utf-8"), max_size=20),
    content=st.sampled_from(RAW),
)
def test_an_odd_name(
    subjects: list[FuzzPack], which: int, resign: bool, name: str, content: bytes
) -> None:
    """A file under a name that is hidden, hostile or far too deep."""
    pack = subjects[which]
    parts = [part for part in name.replace("\0", "").split("/") if part not in ("", ".", "..")]
    path = "/".join(parts)
    folders = {"/".join(parts[:depth]) for depth in range(1, len(parts))}
    blocked = folders & set(pack.files) or any(
        f"{known}/".startswith(path + "/") for known in pack.files
    )
    usable = parts and not blocked and all(len(part.encode()) <= 255 for part in parts)
    pack.place({path: content} if usable else {}, resign=resign)
    fuzz_pack.check_pack(pack)
    fuzz_pack.check_others(pack)


def test_the_packs_are_good(subjects: list[FuzzPack]) -> None:
    """Unchanged, and re-signed, they verify: the mutations above start from there."""
    for pack in subjects:
        pack.restore()
        assert fuzz_pack.check_pack(pack) == 0
        pack.place({"README.md": pack.files["README.md"] + b"\n"}, resign=True)
        assert fuzz_pack.check_pack(pack) == 0
        pack.restore()
        fuzz_pack.check_others(pack)
