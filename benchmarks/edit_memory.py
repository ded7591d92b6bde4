"""Memory and speed of every edit on a seeded random Llama checkpoint of 2 GB in four shards.

    python benchmarks/edit_memory.py [--folder DIR] [--layers 20] [--repeats 3]

Each row is a fresh process. "peak above" is its peak resident memory minus that of an
interpreter that has only imported torch (target: below 600 MB). Seconds begin after the imports.
A copy of the same shards and their SHA-256 is the least that any tool has to do.
"of copy" is an edit's throughput over that one's, by wall clock (target: at least 60 %) and by CPU
time; an edit reads and hashes in one thread while it writes and hashes in another. What writing
costs changes with what the machine did before, by several times on a virtual one: every edit is
compared with a copy made just before it. Medians of ``--repeats`` runs. Nothing here is asserted;
the table is the result. Linux only.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

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


def make_checkpoint(folder: Path, layers: int) -> None:
    """Write the checkpoint tensor by tensor; no model object is made."""
    import torch

    from invarlock.checkpoints import INDEX_NAME
    from invarlock.files import write_json
    from invarlock.shards import ShardEntry, write_shard

    def chunks(name: str, shape: tuple[int, ...]) -> Iterator[bytes]:
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


def measure(task: str, baseline: Path, out: Path) -> dict[str, float]:
    """Run one task in this process: ``torch`` (imports only), ``copy`` or an edit spec."""
    import torch  # noqa: F401

    before, seconds = time.process_time(), time.perf_counter()
    if task == "copy":
        _copy(baseline, out)
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


def table(folder: Path, layers: int, repeats: int) -> None:
    """Make the checkpoint, run every task in its own process and print the rows."""
    baseline, out = folder / "baseline", folder / "out"
    call = [sys.executable, __file__, "--folder", str(folder), "--layers", str(layers), "--task"]

    def run(task: str) -> dict[str, float]:
        done = subprocess.run([*call, task], check=True, capture_output=True, text=True)
        shutil.rmtree(out, ignore_errors=True)
        row: dict[str, float] = json.loads(done.stdout)
        return row

    subprocess.run([*call, "make"], check=True)
    size = sum(p.stat().st_size for p in baseline.glob("*.safetensors")) / 1e6
    floor = run("torch")["peak_mb"]
    print(f"checkpoint: {size:.0f} MB, {SHARDS} shards, {layers} layers, bfloat16")
    print(f"interpreter with torch: {floor:.0f} MB\n")
    heads = ("peak above, MB", "CPU s", "wall s", "copy, wall s", "of copy, wall", "of copy, CPU")
    print(f"{'edit':<26}" + "".join(f"{head:>15}" for head in heads))
    for task in SPECS:
        pairs = [(run("copy"), run(task)) for _ in range(repeats)]
        copy, row = (
            {key: statistics.median(side[key] for side in sides) for key in sides[0]}
            for sides in zip(*pairs, strict=True)
        )
        shares = [f"{100 * copy[key] / row[key]:.0f} %" for key in ("wall", "cpu")]
        times = [f"{row['cpu']:.1f}", f"{row['wall']:.1f}", f"{copy['wall']:.1f}"]
        cells = [f"{row['peak_mb'] - floor:.0f}", *times, *shares]
        print(f"{task:<26}" + "".join(f"{cell:>15}" for cell in cells), flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Memory and speed of every edit.")
    parser.add_argument("--folder", type=Path, help="where 5 GB may be written (default: temp)")
    parser.add_argument("--layers", type=int, default=20, help="88 MB each (default 20: 2 GB)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each (default: 3)")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.task == "make":
        make_checkpoint(args.folder / "baseline", args.layers)
    elif args.task:
        print(json.dumps(measure(args.task, args.folder / "baseline", args.folder / "out")))
    else:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            table(Path(folder), args.layers, args.repeats)


if __name__ == "__main__":
    main()
