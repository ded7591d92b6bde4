"""Cut the evaluation windows from the pinned text with the baseline's tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec import to_builtins

from invarlock.begin_of_text import ADD_BOS, begin_token
from invarlock.cli.options import option
from invarlock.documents.model_revisions import PinnedText
from invarlock.errors import ConfigError
from invarlock.sources.hub_model import Hub
from invarlock.sources.pins import read_revisions
from invarlock.sources.spec import TextSource, parse_text_source
from invarlock.sources.text import documents, labelled_records
from invarlock.windows import (
    WindowPlan,
    ids_of_others,
    make_record_windows,
    make_windows,
    write_windows,
)


@dataclass(frozen=True, kw_only=True)
class WindowsOptions:
    """Options of ``invarlock windows``."""

    tokenizer: Path = option(metavar="DIR", help="folder of the baseline")
    text: str = option(metavar="SOURCE", help="the text, as it was pinned", setting="text")
    revisions: Path = option(metavar="FILE", help="model_revisions.json")
    seq_len: int = option(metavar="N", help="tokens of a window (records: most)")
    preview: int = option(metavar="N", help="warm-up windows, which the guards are calibrated on")
    final: int = option(metavar="N", help="scored windows, which decide")
    seed: int = option(metavar="N", help="seed of the choice", setting="windows.seed")
    add_bos: str = option(
        "auto",
        choices=ADD_BOS,
        help="whether each window begins with the model's begin-of-text token",
        setting="windows.add_bos",
    )
    exclude: tuple[Path, ...] = option(
        (), metavar="FILE", help="windows.json files whose windows are not chosen"
    )
    net: bool = option(False, help="allow the download of pinned files")
    out: Path = option(metavar="FILE", help="windows.json", writes=True)


OPTIONS = WindowsOptions


def main(options: WindowsOptions) -> int:
    """Write ``windows.json``."""
    source = parse_text_source(options.text)
    bos = begin_token(options.tokenizer, options.add_bos)
    others = ids_of_others(options.exclude, options.seq_len, bos)
    plan = WindowPlan(options.seq_len, options.preview, options.final, options.seed, others, bos)
    pins = read_revisions(options.revisions).datasets
    if source.dataset_id not in pins:
        raise ConfigError(
            f"text {source.dataset_id} is not pinned",
            where=str(options.revisions),
            expected="one of " + ", ".join(pins),
        )
    pin = pins[source.dataset_id]
    hub = Hub(options.net, fill="invarlock pin with --net (snakemake --config net=1)")
    recorded = recorded_source(source, pin)
    if source.labelled:
        records = labelled_records(source, pin, hub)
        document = make_record_windows(options.tokenizer, records, plan, recorded, source.windows)
    else:
        texts = documents(source, pin, hub)
        document = make_windows(options.tokenizer, texts, plan, recorded, source.windows)
    write_windows(options.out, document)
    return 0


def recorded_source(source: TextSource, pin: PinnedText) -> dict[str, Any]:
    """What ``windows.json`` says of the text it was cut from."""
    return {
        "kind": source.kind,
        "name": pin.source.name,
        "version": pin.source.version or None,
        "revision": pin.revision,
        "config": pin.config,
        "split": pin.split,
        "field": source.field,
        "max_samples": source.max_samples,
        "files": to_builtins(dict(sorted(pin.files.items()))),
    }
