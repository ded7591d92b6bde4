"""What puts determinism in force, in a process of its own: libraries read it once."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

PROGRAM = """
import json, sys
from invarlock.run.determinism import seed_everything, set_environment
set_environment(sys.argv[1], 1, network=False)
said = seed_everything(sys.argv[1], 1, 3)
compiler = "torch._inductor" in sys.modules
import torch
import torch._inductor.config
print(json.dumps({
    "said": said["torch"]["deterministic_algorithms"],
    "mode": torch.get_deterministic_debug_mode(),
    "inductor": torch._inductor.config.deterministic,
    "compiler": compiler,
}))
"""


@pytest.mark.parametrize(("level", "mode"), [("strict", 2), ("throughput", 0)])
def test_strict_is_in_force_in_torch_and_its_compiler(level: str, mode: int) -> None:
    """An operation without a deterministic kernel raises (2), and so it is where code is compiled;
    the compiler is not imported for that."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, level], capture_output=True, text=True, check=True
    )
    strict = level == "strict"
    expected = {"said": strict, "mode": mode, "inductor": strict, "compiler": False}
    assert json.loads(done.stdout) == expected
