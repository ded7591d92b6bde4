"""Memory and speed of every edit on a Llama checkpoint of 2 GB in four shards.

    python benchmarks/edit_memory.py [--folder DIR] [--layers 20] [--repeats 5] [--model DIR]
        [--only SPEC ...] [--before DIR]

Its values are seeded random ones; with ``--model`` those of a checkpoint, tiled. ``--before``
names a checkout of another version, with which every edit is made too, in the same run. Digests of
the baseline stand recorded, as after the job that placed it; "all hashed" is without.

Each row is a fresh process. "peak above" is its peak resident memory minus that of an
interpreter that has only imported torch (target: below 600 MB). Seconds begin after the imports.
A copy of the same shards and their SHA-256 is the least that any tool has to do.
"of copy" is an edit's throughput over that one's, by wall clock (target: at least 60 %) and by CPU
time; an edit reads and hashes in one thread while it writes and hashes in another. What writing
costs changes with what the machine did before, by several times on a virtual one: every round has
one copy and all edits in an order of its own. Medians of ``--repeats`` rounds, of shares those of
the rounds. Nothing here is asserted; the table is the result. Linux only.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from invarlock.digests import SETTLED, SWITCH

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).resolve().parents[1]
HIDDEN, INNER, HEADS, KV_HEADS, VOCABULARY = 2048, 5632, 32, 4, 32000
SHARDS = 4
SPECS = (
    "noop",
    "quant_rtn:8:0:all",
    "quant_rtn:4:64:all",
    "quant_rtn:8:0:embed",
    "fp8_quant:e4m3:all",
    "fp8_quant:e5m2:all",
    "magnitude_prune:0.5:all",
    "magnitude_prune:0.5:embed",
    "lowrank_svd:32:ffn",
    "lowrank_svd:512:ffn@layer=0",
)


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of an untied Llama, in model order."""
    small = HIDDEN // HEADS * KV_HEADS
    result: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(layers):
        for name, shape in {
            "input_layernorm": (HIDDEN,),
            "self_attn.q_proj": (HIDDEN, HIDDEN),
            "self_attn.k_proj": (small, HIDDEN),
            "self_attn.v_proj": (small, HIDDEN),
            "self_attn.o_proj": (HIDDEN, HIDDEN),
            "post_attention_layernorm": (HIDDEN,),
            "mlp.gate_proj": (INNER, HIDDEN),
            "mlp.up_proj": (INNER, HIDDEN),
            "mlp.down_proj": (HIDDEN, INNER),
        }.items():
            result[f"model.layers.{layer}.{name}.weight"] = shape
    return result | {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)}


def make_checkpoint(folder: Path, layers: int, model: Path | None = None) -> None:
    """Write the checkpoint tensor by tensor; no model object is made.

    Values are those of the matrices of ``model``, over and over, or seeded random ones.
    """
    import torch

    from invarlock.checkpoints import INDEX_NAME
    from invarlock.files import write_json
    from invarlock.shards import ShardEntry, write_shard

    tiles = _values(model) if model else None

    def chunks(name: str, shape: tuple[int, ...]) -> Iterator[bytes]:
        if tiles is not None:
            needed = math.prod(shape)
            begin = zlib.crc32(name.encode()) % len(tiles)
            at = torch.arange(begin, begin + needed).remainder_(len(tiles))
            yield tiles[at].view(torch.int16).numpy().tobytes()
            return
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        for start in range(0, shape[0], 1024):
            block = (min(1024, shape[0] - start), *shape[1:])
            values = torch.randn(block, generator=generator).mul_(0.02).bfloat16()
            yield values.view(torch.int16).numpy().tobytes()

    folder.mkdir(parents=True)
    wanted = shapes(layers)
    total = sum(2 * rows * (rest[0] if rest else 1) for rows, *rest in wanted.values())
    entries: list[list[ShardEntry]] = [[] for _ in range(SHARDS)]
    position = 0
    for name, shape in wanted.items():
        entry = ShardEntry(name, "BF16", shape, lambda n=name, s=shape: chunks(n, s))  # type: ignore[misc]
        entries[position * SHARDS // total].append(entry)
        position += entry.nbytes
    weight_map = {}
    for number, mine in enumerate(entries, 1):
        file = f"model-{number:05d}-of-{SHARDS:05d}.safetensors"
        write_shard(folder / file, mine, {"format": "pt"})
        weight_map |= {entry.name: file for entry in mine}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(folder / INDEX_NAME, index)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": False,
    }
    write_json(folder / "config.json", config)


def _values(model: Path) -> torch.Tensor:
    """The first 64 million numbers of a checkpoint's matrices, bfloat16."""
    import torch

    from invarlock.checkpoints import Checkpoint

    checkpoint = Checkpoint.open(model)
    matrices = [name for name, info in checkpoint.tensors.items() if len(info.shape) == 2]
    values = torch.cat([checkpoint.load(name).reshape(-1).bfloat16() for name in matrices])
    return values[: 1 << 26]


def measure(task: str, baseline: Path, out: Path) -> dict[str, float]:
    """Run one task in this process: ``torch`` (imports only), ``copy`` or an edit spec."""
    import torch  # noqa: F401

    before, seconds = time.process_time(), time.perf_counter()
    if task == "copy":
        _copy(baseline, out)
    elif task == "digest":
        from invarlock.checkpoints import Checkpoint

        Checkpoint.open(baseline).digest()
    elif task != "torch":
        from invarlock.checkpoints import Checkpoint
        from invarlock.edits.apply import apply_edit
        from invarlock.edits.metadata import edit_metadata
        from invarlock.edits.specs import parse_edit_spec

        before, seconds = time.process_time(), time.perf_counter()
        checkpoint = Checkpoint.open(baseline)
        edit_metadata(checkpoint, apply_edit(checkpoint, parse_edit_spec(task), out))
    status = Path("/proc/self/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return {
        "cpu": time.process_time() - before,
        "wall": time.perf_counter() - seconds,
        "peak_mb": int(peak.split()[1]) / 1000,
    }


def _copy(baseline: Path, out: Path) -> None:
    from invarlock.files import sha256_file

    out.mkdir()
    for path in sorted(baseline.glob("*.safetensors")):
        shutil.copyfile(path, out / path.name)
        sha256_file(out / path.name)


def table(folder: Path, args: argparse.Namespace) -> None:
    """Make the checkpoint, run every task in its own process and print the rows."""
    baseline, out = folder / "baseline", folder / "out"
    call = [sys.executable, __file__, "--folder", str(folder), "--task"]

    def run(task: str, version: Path = ROOT, hashed: bool = False) -> dict[str, float]:
        env = os.environ | {"PYTHONPATH": str(version), "XDG_CACHE_HOME": str(folder / "cache")}
        if hashed:
            env |= {SWITCH: "none"}
        elif task not in ("copy", "torch", "digest"):
            run("digest")  # again where a hard link to a shard has changed its state
        done = subprocess.run([*call, task], check=True, capture_output=True, text=True, env=env)
        shutil.rmtree(out, ignore_errors=True)
        row: dict[str, float] = json.loads(done.stdout)
        return row

    make_checkpoint(baseline, args.layers, args.model)
    time.sleep(SETTLED + 1)
    size = sum(p.stat().st_size for p in baseline.glob("*.safetensors")) / 1e6
    floor = run("torch")["peak_mb"]
    print(f"checkpoint: {size:.0f} MB, {SHARDS} shards, {args.layers} layers, bfloat16")
    print(f"interpreter with torch: {floor:.0f} MB\n")
    heads = ("peak above, MB", "CPU s", "wall s", "copy, wall s", "of copy, wall", "of copy, CPU")
    versions = {"": (ROOT, False), ", all hashed": (ROOT, True)}
    if args.before:
        versions[", before"] = (args.before.resolve(), True)
    rounds: list[dict[str, dict[str, float]]] = []
    order = random.Random(43)
    for number in range(args.repeats):
        tasks = [("copy", "")] + [(spec, version) for spec in args.only for version in versions]
        order.shuffle(tasks)
        rounds.append({spec + at: run(spec, *versions[at]) for spec, at in tasks})
        print(f"round {number + 1} of {args.repeats}", file=sys.stderr)
    heads = ("peak above, MB", "CPU s", "wall s", "of copy, CPU", "range", "of copy, wall")
    print(f"{'edit':<36}" + "".join(f"{head:>16}" for head in heads))
    for task in ["copy", *(spec + version for spec in args.only for version in versions)]:
        middle = {key: statistics.median(r[task][key] for r in rounds) for key in rounds[0][task]}
        shares = {
            key: sorted(100 * r["copy"][key] / r[task][key] for r in rounds)
            for key in ("cpu", "wall")
        }
        cells = [f"{middle['peak_mb'] - floor:.0f}", f"{middle['cpu']:.2f}"]
        cells += [f"{middle['wall']:.2f}", f"{statistics.median(shares['cpu']):.0f} %"]
        cells += [f"{shares['cpu'][0]:.0f} - {shares['cpu'][-1]:.0f}"]
        cells += [f"{statistics.median(shares['wall']):.0f} %"]
        print(f"{task:<36}" + "".join(f"{cell:>16}" for cell in cells), flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Memory and speed of every edit.")
    parser.add_argument("--folder", type=Path, help="where 5 GB may be written (default: temp)")
    parser.add_argument("--layers", type=int, default=20, help="88 MB each (default 20: 2 GB)")
    parser.add_argument("--repeats", type=int, default=5, help="rounds (default: 5)")
    parser.add_argument("--model", type=Path, help="a checkpoint whose values are tiled")
    parser.add_argument("--only", nargs="+", default=list(SPECS), help="edits (default: all)")
    parser.add_argument("--before", type=Path, help="a checkout of another version")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.task:
        print(json.dumps(measure(args.task, args.folder / "baseline", args.folder / "out")))
    else:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            table(Path(folder), args)


if __name__ == "__main__":
    main()
