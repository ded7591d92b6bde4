"""One GGUF model by several programs on the same text: numbers and cost, as a Markdown table.

    python benchmarks/engines.py --baseline DIR --windows FILE [--count 12] [--page FILE] GGUF ...

Rows: plain loops over transformers, of the baseline and of the dense view of each file; what
this project measures, guards and all; and llama.cpp by its own binding, with the divergence from
the baseline's bfloat16 weights as a GGUF file that ``llama-perplexity --kl-divergence`` takes. One
process, one thread, one window after another. With --page the table goes between its markers there.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
BEGIN, END = "<!-- engines: begin -->", "<!-- engines: end -->"
Logits = Callable[[Sequence[int]], NDArray[np.float32]]


@dataclass
class Row:
    """What one program gave of one model."""

    what: str
    perplexity: float
    divergence: float | None  # nats a token, from the same program's run of the baseline
    cpu: float  # seconds per 1,000 tokens that went through the model
    note: str = ""


def logprobs(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Of every token at every position, in float64."""
    x = logits.astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    x -= np.log(np.exp(x).sum(axis=1, keepdims=True))
    return x


def passed(
    what: str, run: Logits, windows: Sequence[Sequence[int]], reference: Logits | None
) -> Row:
    """Perplexity, full divergence from another model, and CPU seconds of the pass alone."""
    run(windows[0])  # the first call allocates
    losses, apart, seconds = [], [], 0.0
    for ids in windows:
        started = time.process_time()
        logits = run(ids)
        seconds += time.process_time() - started
        mine = logprobs(logits[:-1])
        losses += list(-mine[np.arange(len(ids) - 1), ids[1:]])
        if reference is not None:
            theirs = logprobs(reference(ids)[:-1])
            apart += list((np.exp(theirs) * (theirs - mine)).sum(axis=1))
    tokens = sum(map(len, windows))
    mean = float(np.mean(apart)) if apart else None
    return Row(what, float(np.exp(np.mean(losses))), mean, 1000 * seconds / tokens)


def torch_loop(folder: Path, weights: Path | None, dtype: str) -> Logits:
    """Transformers' model, with the effective weights of a GGUF file where one is given."""
    import torch
    from transformers import AutoModelForCausalLM

    from invarlock.checkpoints import Checkpoint
    from invarlock.loading_faults import quiet

    quiet()
    kind = getattr(torch, dtype)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=kind, local_files_only=True).eval()
    if weights is not None:
        held = Checkpoint.open(weights, folder)
        model.load_state_dict({n: held.load(n).to(kind) for n in held.tensors}, strict=False)

    def run(ids: Sequence[int]) -> NDArray[np.float32]:
        with torch.inference_mode():
            found: NDArray[np.float32] = model(torch.tensor([list(ids)])).logits[0].float().numpy()
        return found

    return run


def binding_loop(path: Path, length: int) -> Logits:
    """llama.cpp by the class of its Python binding, as its documentation calls it."""
    from llama_cpp import Llama

    llama = Llama(
        str(path), n_ctx=length, n_batch=length, n_threads=1, n_threads_batch=1,
        logits_all=True, verbose=False,
    )  # fmt: skip

    def run(ids: Sequence[int]) -> NDArray[np.float32]:
        llama.reset()
        llama.eval(list(ids))
        found: NDArray[np.float32] = np.array(llama.scores[: len(ids)])
        return found

    return run


def measured(baseline: Path, files: Sequence[Path], windows: Path, count: int) -> Iterator[Row]:
    """What this project records, with all guards, of the baseline and of each file."""
    from invarlock.checkpoints import Checkpoint, tokenizer_digest
    from invarlock.run.loading import Target
    from invarlock.run.measure import RunWindows, measure_checkpoint

    place = Path(tempfile.mkdtemp(prefix="invarlock-engines-")) / "windows.json"
    document = json.loads(windows.read_text())
    for arm in ("preview", "final"):
        document[arm] = document[arm][:count]
    document["counts"] = {"preview": count, "final": count}
    document.pop("slices", None)
    place.write_text(json.dumps(document))
    read = RunWindows.read(place, tokenizer_digest(baseline))
    against = None
    tokens = sum(len(ids) for ids in read.token_ids())
    for path in (baseline, *files):
        checkpoint = Checkpoint.open(path, None if path == baseline else baseline)
        started = time.process_time()
        found = measure_checkpoint(
            checkpoint, read, Target("cpu", "auto"), token_budget=4096, against=against
        )
        seconds = time.process_time() - started
        final = found.arms["final"]
        losses = np.sum(final.losses()) / np.sum(final.n_tokens())
        kl = None if against is None else float(np.concatenate(list(final.kl.values())).mean())
        what = f"this project, {'the baseline' if path == baseline else path.stem}"
        yield Row(what, float(np.exp(losses)), kl, 1000 * seconds / tokens, "guards and all")
        against = against or found.reference_arrays()


def table(rows: Sequence[Row]) -> Iterator[str]:
    """The rows as Markdown."""
    yield "| what ran | perplexity | divergence from the baseline, nats | CPU s per 1,000 tokens |"
    yield "|---|---|---|---|"
    for row in rows:
        apart = "-" if row.divergence is None else f"{row.divergence:.4f}"
        what = row.what + (f" ({row.note})" if row.note else "")
        yield f"| {what} | {row.perplexity:.3f} | {apart} | {row.cpu:.2f} |"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("gguf", type=Path, nargs="+")
    parser.add_argument("--baseline", type=Path, required=True)
    parser.add_argument("--windows", type=Path, required=True)
    parser.add_argument("--count", type=int, default=12, help="windows of each arm")
    parser.add_argument("--page", type=Path)
    args = parser.parse_args()

    import torch

    from invarlock.checkpoints import Checkpoint
    from invarlock.formats.gguf.write import write_dense

    torch.set_num_threads(1)
    final = json.loads(args.windows.read_text())["final"][: args.count]
    windows = [window["tokens"] for window in final]
    length = max(map(len, windows))
    rows = list(measured(args.baseline, args.gguf, args.windows, args.count))
    plain = torch_loop(args.baseline, None, "float32")
    rows.append(passed("transformers, the baseline, float32", plain, windows, None))
    with tempfile.TemporaryDirectory() as place:
        dense = Path(place) / "dense.gguf"
        write_dense(Checkpoint.open(args.baseline), dense)
        reference = binding_loop(dense, length)
        rows.append(passed("llama.cpp, the baseline in bfloat16", reference, windows, None))
        apart = []
        for path in args.gguf:
            view = passed(
                f"transformers, dense view of {path.stem}, float32",
                torch_loop(args.baseline, path, "float32"), windows, plain,
            )  # fmt: skip
            engine = passed(
                f"llama.cpp, {path.stem}", binding_loop(path, length), windows, reference
            )
            rows += [view, engine]
            change = engine.perplexity / view.perplexity - 1
            apart.append(f"{path.stem} {100 * change:+.2f} %")
    lines = [
        f"{len(windows)} windows of at most {length} tokens, one thread. Perplexity by llama.cpp"
        f" against that of the dense view of the same file: {'; '.join(apart)}.",
        "",
        *table(rows),
    ]
    print("\n".join(lines))
    if args.page:
        from results_page import place as placed

        from invarlock.files import write_text

        head = "## One model by several programs"
        write_text(
            args.page,
            placed(args.page.read_text(), "\n".join([BEGIN, head, "", *lines, END])),
        )


if __name__ == "__main__":
    main()
