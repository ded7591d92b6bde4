"""What a verification touches: every file of the pack once, and no library before its time."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pack_factory as packs
import pytest
from repository_copy import ROOT

# Prints what was opened by which name, and which libraries were loaded, after the command.
WATCHED = """
import json, os, sys
opened = []
sys.addaudithook(lambda event, args: event == "open" and opened.append(os.fsdecode(args[0])))
from invarlock.cli import main
code = main(["advanced", "evidence-pack", *sys.argv[1:]])
loaded = [name for name in ("numpy", "torch", "yaml") if name in sys.modules]
print("\\n" + json.dumps({"code": code, "opened": opened, "loaded": loaded}))
"""


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A signed pack."""
    folder = tmp_path_factory.mktemp("pack")
    out = packs.write_suite(folder / "out")
    assert packs.build(out, folder / "pack", key=packs.new_key(folder / "k.pem")) == 0
    return folder / "pack"


def watch(*words: str | Path) -> dict[str, Any]:
    """Run a command and see what it opened and loaded."""
    command = [sys.executable, "-c", WATCHED, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("options", [("verify", "--strict", "--replay"), ("inspect",)])
def test_every_file_is_opened_once(pack: Path, options: tuple[str, ...]) -> None:
    """Folders and files are opened by their name in the folder above, each exactly once; nothing
    is opened by a path into the pack."""
    found = watch(options[0], pack, *options[1:])
    assert found["code"] == 0
    assert [path for path in found["opened"] if path.startswith(str(pack))] == [str(pack)]
    names = Counter(path.name for path in pack.rglob("*"))
    opened = Counter(name for name in found["opened"] if "/" not in name)
    assert {name: opened[name] for name in names} == names


def test_a_pack_that_is_refused_early_needs_no_numpy(pack: Path, tmp_path: Path) -> None:
    """NumPy is loaded only once the signature is known to be in order."""
    copy = packs.copy(pack, tmp_path / "pack")
    (copy / "manifest.signature.json").write_text("{}")
    found = watch("verify", copy)
    assert (found["code"], "numpy" in found["loaded"]) == (5, False)
    assert "numpy" in watch("verify", pack)["loaded"]
