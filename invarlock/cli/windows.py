"""Cut the evaluation windows from the pinned text with the baseline's tokenizer."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from invarlock.errors import ConfigError
from invarlock.sources.hub_model import Hub
from invarlock.sources.pins import Pin, read_revisions
from invarlock.sources.spec import TextSource, parse_text_source
from invarlock.sources.text import documents, labelled_records
from invarlock.windows import (
    WindowPlan,
    ids_of_others,
    make_record_windows,
    make_windows,
    write_windows,
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of ``invarlock windows``."""
    add = parser.add_argument
    add("--tokenizer", required=True, type=Path, metavar="DIR", help="folder of the baseline")
    add("--text", required=True, metavar="SOURCE", help="the text, as it was pinned")
    add("--revisions", required=True, type=Path, metavar="FILE", help="model_revisions.json")
    add(
        "--seq-len", required=True, type=int, metavar="N", help="tokens of a window (records: most)"
    )
    add("--preview", required=True, type=int, metavar="N", help="windows of the preview arm")
    add("--final", required=True, type=int, metavar="N", help="windows of the final arm")
    add("--seed", required=True, type=int, metavar="N", help="seed of the choice")
    add(
        "--exclude",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="windows.json files whose windows are not chosen",
    )
    add("--net", action="store_true", help="allow the download of pinned files")
    add("--out", required=True, type=Path, metavar="FILE", help="windows.json")


def main(args: argparse.Namespace) -> int:
    """Write ``windows.json``."""
    source = parse_text_source(args.text)
    others = ids_of_others(args.exclude, args.seq_len)
    plan = WindowPlan(args.seq_len, args.preview, args.final, args.seed, others)
    pins = read_revisions(args.revisions).datasets
    if source.dataset_id not in pins:
        raise ConfigError(
            f"text {source.dataset_id} is not pinned",
            where=str(args.revisions),
            expected="one of " + ", ".join(pins),
        )
    pin = pins[source.dataset_id]
    hub = Hub(args.net, fill="invarlock pin with --net (snakemake --config net=1)")
    recorded = recorded_source(source, pin)
    if source.metric == "accuracy":
        records = labelled_records(source, pin, hub)
        document = make_record_windows(args.tokenizer, records, plan, recorded)
    else:
        texts = documents(source, pin, hub)
        document = make_windows(args.tokenizer, texts, plan, recorded)
    write_windows(args.out, document)
    return 0


def recorded_source(source: TextSource, pin: Pin) -> dict[str, Any]:
    """What ``windows.json`` says of the text it was cut from."""
    return {
        "kind": source.kind,
        "name": pin.source["name"],
        "version": pin.source.get("version"),
        "revision": pin.revision,
        "config": pin.config,
        "split": pin.split,
        "field": source.field,
        "max_samples": source.max_samples,
        "files": {name: digest.to_json() for name, digest in sorted(pin.files.items())},
    }
