"""What verifying a pack leaves unloaded, and what counts brackets in it."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from invarlock.errors import InputError
from invarlock.files import MAX_JSON_DEPTH, parse_json

PACK = Path(__file__).parent / "packs/v1-pass"
UNUSED = ("difflib", "jsonschema", "lzma", "shutil", "subprocess")
# The command as the script runs it; what is loaded is told after it.
PROGRAM = f"""
import sys
from invarlock.__main__ import main
assert main() == 0
print(*sorted(set({UNUSED}) & set(sys.modules)), file=sys.stderr)
"""


def test_verify_loads_nothing_that_it_does_not_use() -> None:
    """Each takes longer to load than a step of the verification; numpy is needed to replay."""
    words = ["advanced", "evidence-pack", "verify", str(PACK), "--replay"]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, check=True
    )
    assert done.stderr.split() == []
    assert "VERIFIED" in done.stdout


@given(st.lists(st.sampled_from("[]{}"), max_size=200).map("".join))
@example("[" * MAX_JSON_DEPTH + "]" * MAX_JSON_DEPTH)
@example("[" * (MAX_JSON_DEPTH + 1) + "]" * (MAX_JSON_DEPTH + 1))
@example("[{" * (MAX_JSON_DEPTH // 2) + "}]" * (MAX_JSON_DEPTH // 2))
@example("{[" * (MAX_JSON_DEPTH // 2) + "[]" + "]}" * (MAX_JSON_DEPTH // 2))
@example("[" * MAX_JSON_DEPTH)
@example("[" * (MAX_JSON_DEPTH + 1))
def test_depth_is_that_of_counting_brackets(text: str) -> None:
    """Whatever the brackets are: too deep is refused as such, and nothing else is."""
    steps = itertools.accumulate(1 if c in "[{" else -1 for c in text)
    with pytest.raises(InputError) as refused:
        parse_json(text.encode() + b"x", "x")  # never JSON, so that it is refused in any case
    deep = max(steps, default=0) > MAX_JSON_DEPTH
    assert ("nested deeper" in str(refused.value)) == deep
