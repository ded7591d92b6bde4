"""Cut the evaluation windows from the pinned text with the baseline's tokenizer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from msgspec import to_builtins

from invarlock.begin_of_text import ADD_BOS, begin_token
from invarlock.cli.options import option
from invarlock.documents.model_revisions import PinnedText
from invarlock.errors import ConfigError, InputError
from invarlock.files import sha256_bytes
from invarlock.metrics import ARMS, MIN_DOCUMENTS
from invarlock.pictures import Processor, keep
from invarlock.sources.hub_model import Hub
from invarlock.sources.pins import read_revisions
from invarlock.sources.spec import TextSource, parse_slices
from invarlock.sources.text import documents, labelled_records
from invarlock.windows import (
    SliceText,
    WindowPlan,
    divided,
    ids_of_others,
    load_encoder,
    long_length,
    make_record_windows,
    make_sliced_windows,
    make_windows,
    select_windows,
    write_windows,
)
from invarlock.written import LONG


@dataclass(frozen=True, kw_only=True)
class WindowsOptions:
    """Options of ``invarlock windows``."""

    tokenizer: Path = option(metavar="DIR", help="folder of the baseline")
    text: str = option(
        metavar="SOURCE",
        help="the text, as it was pinned; of several slices NAME=SOURCE,NAME=SOURCE",
        setting="text",
    )
    revisions: Path = option(metavar="FILE", help="model_revisions.json")
    seq_len: int = option(metavar="N", help="tokens of a window (records: most)")
    preview: int = option(metavar="N", help="warm-up windows, which the guards are calibrated on")
    final: int = option(metavar="N", help="scored windows, which decide")
    seed: int = option(metavar="N", help="seed of the choice", setting="windows.seed")
    long: int = option(0, metavar="N", help="of the scored windows, so many long ones; 0: none")
    long_seq_len: int = option(
        4096, metavar="N", help="most tokens of a long window; fewer where the model's context ends"
    )
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
    sources = parse_slices(options.text)
    bos = begin_token(options.tokenizer, options.add_bos)
    others = ids_of_others(options.exclude, options.seq_len, bos)
    plan = WindowPlan(options.seq_len, options.preview, options.final, options.seed, others, bos)
    pins = read_revisions(options.revisions).datasets
    hub = Hub(options.net, fill="invarlock pin with --net (snakemake --config net=1)")
    texts = [
        _Text(name, source, _pin_of(source, pins, options.revisions))
        for name, source in sources.items()
    ]
    first = texts[0]
    if first.source.labelled:
        records = labelled_records(first.source, first.pin, hub)
        kind, processor = first.source.windows, None
        if first.source.image:
            processor = Processor(options.tokenizer)
        document = make_record_windows(
            options.tokenizer, records, plan, first.recorded, kind, processor
        )
        if processor is not None:  # before the file that names them
            chosen = {row["image"] for arm in ARMS for row in document[arm]}
            pictures = (record.picture for record in records if record.picture is not None)
            keep(options.out, (p for p in pictures if sha256_bytes(p) in chosen), processor.files())
    else:
        document = _of_texts(options, plan, texts, hub)
    write_windows(options.out, document)
    return 0


@dataclass(frozen=True)
class _Text:
    """One of the texts, by its name."""

    name: str
    source: TextSource
    pin: PinnedText

    @property
    def recorded(self) -> dict[str, Any]:
        return recorded_source(self.source, self.pin)


def _pin_of(source: TextSource, pins: Mapping[str, PinnedText], where: Path) -> PinnedText:
    if source.dataset_id not in pins:
        raise ConfigError(
            f"text {source.dataset_id} is not pinned",
            where=str(where),
            expected="one of " + ", ".join(pins),
        )
    return pins[source.dataset_id]


def _of_texts(
    options: WindowsOptions, plan: WindowPlan, texts: Sequence[_Text], hub: Hub
) -> dict[str, Any]:
    """``windows.json`` of documents: of slices where there are several texts, or long windows."""
    read = {text.name: documents(text.source, text.pin, hub) for text in texts}
    first, kind = texts[0], texts[0].source.windows
    long = _long(options, plan, first, read[first.name])
    if len(texts) == 1 and long is None:
        return make_windows(options.tokenizer, read[first.name], plan, first.recorded, kind)
    arms = {
        arm: divided(getattr(plan, arm) - (getattr(long.plan, arm) if long else 0), len(texts))
        for arm in ("preview", "final")
    }
    slices = [
        SliceText(
            name=text.name,
            text=text.name,
            documents=read[text.name],
            plan=replace(plan, preview=arms["preview"][i], final=arms["final"][i]),
            source=text.recorded,
        )
        for i, text in enumerate(texts)
    ]
    slices += [long] if long else []
    return make_sliced_windows(options.tokenizer, slices, kind, MIN_DOCUMENTS)


def _long(
    options: WindowsOptions, plan: WindowPlan, text: _Text, read: Sequence[str]
) -> SliceText | None:
    """The slice of long windows; None, and a line that says why, where there can be none."""
    length = long_length(options.tokenizer, options.long_seq_len)
    if options.long == 0:
        return None
    if length is None or length <= plan.seq_len:
        print(f"no long windows: the model's context is no longer than {plan.seq_len} tokens")
        return None
    few = WindowPlan(length, math.ceil(options.long / 3), options.long, plan.seed, bos=plan.bos)
    if 2 * few.preview > plan.preview or 2 * few.final > plan.final:
        print("no long windows: there would be fewer others")
        return None
    try:
        _, final = select_windows(read, load_encoder(options.tokenizer), few)
    except InputError as error:
        print(f"no long windows: {error}")
        return None
    found = len({window.cluster for window in final})
    if found < MIN_DOCUMENTS:  # nothing could pass
        print(f"no long windows: they would be of {found} documents, {MIN_DOCUMENTS} are needed")
        return None
    return SliceText(LONG, text.name, read, few, text.recorded)


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
