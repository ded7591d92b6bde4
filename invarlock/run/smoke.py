"""Load one checkpoint in a process of its own, by its backend, and let it write a few tokens.

What a test of the same process shows may come from what was loaded before; what serves a model
begins with nothing. A job comes as JSON on standard input; what was seen is written as JSON.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from invarlock.errors import InputError, InvarlockError
from invarlock.files import canonical_json, read_json_object, write_bytes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from invarlock.run.loading import Loaded

# What is asked: a fact, code, a list, and a sentence that goes on. Fixed, so that runs compare.
PROMPTS = (
    "The capital of France is",
    "def add(a, b):\n    return",
    "Monday, Tuesday, Wednesday,",
    "Once upon a time there was a",
)
NEW_TOKENS = 16


@dataclass(frozen=True)
class SmokeJob:
    """What a fresh process loads, and what it asks the model."""

    source: str  # folder or file
    beside: str  # folder of the baseline
    device: str
    dtype: str
    threads: int
    allow_remote_code: bool
    prompts: list[list[int]]  # token ids; none: only loaded
    new_tokens: int = NEW_TOKENS


def in_fresh_process(job: SmokeJob) -> dict[str, Any]:
    """Do the job in a new process; ``error`` of the result is empty where it ended well.

    A backend may end the process by a signal; that is a finding about the subject, not a failure
    of this one.
    """
    with TemporaryDirectory(prefix="invarlock-") as folder:
        out = Path(folder) / "smoke.json"
        done = subprocess.run(
            [sys.executable, "-m", "invarlock.run.smoke", str(out)],
            input=json.dumps(asdict(job)), capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode == 0:
            return read_json_object(out)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    ended = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
    return {"error": (lines[-1] if lines else ended)[:300]}


def prompts_of(folder: Path) -> list[list[int]]:
    """The ids of the prompts by the tokenizer of a folder, without special tokens.

    Raises:
        InputError: the tokenizer cannot be read.
    """
    from invarlock.tokenizer_meaning import read_tokenizer

    tokenizer = read_tokenizer(folder / "tokenizer.json")
    return [list(tokenizer.encode(text, add_special_tokens=False).ids) for text in PROMPTS]


def smoke(job: SmokeJob) -> dict[str, Any]:
    """Load, ask, and say what was seen and what it took."""
    import torch
    import transformers

    from invarlock.checkpoints import Checkpoint
    from invarlock.metrics.kinds import metric_of
    from invarlock.run.loading import Target, load_checkpoint

    torch.set_num_threads(job.threads)
    checkpoint = Checkpoint.open(Path(job.source), Path(job.beside))
    metric = metric_of(checkpoint.config)
    _ = transformers.__version__  # imported before memory is looked at
    before, started = _status("VmRSS"), time.perf_counter()
    target = Target(job.device, job.dtype, job.allow_remote_code)
    context = max(map(len, job.prompts), default=0) + job.new_tokens
    loaded = load_checkpoint(checkpoint, target, context, metric.adapter)
    seconds = time.perf_counter() - started
    answers = [_answer(loaded, prompt, job.new_tokens) for prompt in job.prompts]
    ran = asdict(loaded.describe())
    return {
        "error": "",
        "seconds": round(seconds, 3),
        "dtype": loaded.dtype,
        "missing": loaded.missing,
        "unexpected": loaded.unexpected,
        "ran": ran,
        "reported_bytes": _held(loaded, checkpoint.source, checkpoint.shards),
        "resident_bytes": max(_status("VmRSS") - before, 0),
        "peak_bytes": _status("VmHWM"),
        "device_peak_bytes": torch.cuda.max_memory_allocated()
        if loaded.device.startswith("cuda")
        else None,
        "answers": answers,
    }


def _held(loaded: Loaded, source: Path, shards: Sequence[str]) -> int:
    """Bytes of parameters and buffers; an engine maps the files as they are."""
    if loaded.engine is not None:
        place = source if source.is_dir() else source.parent
        return sum((place / name).stat().st_size for name in shards)
    tensors = [*loaded.model.parameters(), *loaded.model.buffers()]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def _answer(loaded: Loaded, prompt: Sequence[int], count: int) -> dict[str, Any]:
    """Logits of a prompt, and the most likely tokens after it."""
    import numpy as np

    logits = _logits(loaded, prompt)
    started = time.perf_counter()
    tokens = list(_greedy(loaded, prompt, count))
    return {
        "tokens": tokens,
        "seconds": round(time.perf_counter() - started, 3),
        "finite": bool(np.isfinite(logits).all()),
        "logits_sha256": hashlib.sha256(np.ascontiguousarray(logits, "<f4").tobytes()).hexdigest(),
        "logits_shape": list(logits.shape),
    }


def _logits(loaded: Loaded, prompt: Sequence[int]) -> NDArray[np.float32]:
    """Logits of every position: (tokens, vocabulary)."""
    import numpy as np
    import torch

    if loaded.engine is not None:
        return loaded.engine.logits(prompt)
    ids = torch.tensor([list(prompt)], device=loaded.model.device)
    with torch.inference_mode():
        found: torch.Tensor = loaded.model(input_ids=ids).logits
    return np.asarray(found[0].float().cpu().numpy(), dtype=np.float32)


def _greedy(loaded: Loaded, prompt: Sequence[int], count: int) -> Iterator[int]:
    """The ``count`` most likely tokens; no setting of generation changes them or ends early."""
    import torch

    if loaded.engine is not None:
        yield from loaded.engine.greedy(prompt, count)
        return
    ids = torch.tensor([list(prompt)], device=loaded.model.device)
    kept = None
    with torch.inference_mode():
        for _ in range(count):
            out = loaded.model(input_ids=ids, past_key_values=kept, use_cache=True)
            kept = out.past_key_values
            ids = out.logits[:, -1:].argmax(dim=-1)
            yield int(ids)


def _status(name: str) -> int:
    """A line of /proc/self/status in bytes; 0 where the system has none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    found = next((line.split()[1] for line in lines if line.startswith(f"{name}:")), "0")
    return int(found) * 1024


def main() -> int:
    """Do the job on standard input."""
    job = SmokeJob(**json.load(sys.stdin))

    from invarlock.run.determinism import seed_everything, set_environment

    set_environment("strict", job.threads, False)
    seed_everything("strict", job.threads, 0)
    try:
        found = smoke(job)
    except (InvarlockError, RuntimeError, OSError, MemoryError) as error:
        print(f"{error}".splitlines()[0] if str(error) else type(error).__name__, file=sys.stderr)
        return error.exit_code if isinstance(error, InputError) else 1
    write_bytes(Path(sys.argv[1]), canonical_json(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
