"""Pin models and texts by revision and by the SHA-256 of every file."""

from __future__ import annotations

import argparse
from pathlib import Path

from invarlock.errors import ConfigError, InputError
from invarlock.files import slug
from invarlock.sources import text
from invarlock.sources.hub_model import Hub
from invarlock.sources.kind import ModelSource
from invarlock.sources.local_model import require_permission
from invarlock.sources.pins import Allow, Pin, Revisions, read_revisions, write_revisions
from invarlock.sources.spec import (
    TextSource,
    parse_named_model,
    parse_text_source,
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of ``invarlock pin``."""
    add = parser.add_argument
    add("--suite", required=True, help="name of the suite, recorded")
    add("--model", required=True, action="append", metavar="ID=SOURCE", help="repeat for more")
    add("--text", required=True, action="append", metavar="SOURCE", help="repeat for more")
    add("--net", action="store_true", help="allow the network (hub sources need it)")
    add("--allow-remote-code", action="store_true", help="allow models with code of their own")
    add("--allow-pickle", action="store_true", help="allow models with pickle weights only")
    add("--out", required=True, type=Path, metavar="FILE", help="state/model_revisions.json")


def main(args: argparse.Namespace) -> int:
    """Write ``model_revisions.json``; nothing is written unless everything could be pinned."""
    models = _models(args.model)
    texts = _texts(args.text)
    hub = Hub(args.net, fill="invarlock pin with --net (snakemake fetch --config net=1)")
    allow = Allow(args.allow_remote_code, args.allow_pickle)
    earlier = Revisions(args.suite, {}, {})
    if args.out.is_file():
        earlier = read_revisions(args.out)
    pins = {
        name: _held(earlier.models.get(name), source, hub, args.out) or source.pin(hub, allow)
        for name, source in models.items()
    }
    for name, pin in pins.items():
        require_permission(pin, allow, name)
        _refuse_moved(args.out, earlier.models.get(name), pin, models[name])
    datasets = {
        name: _held(earlier.datasets.get(name), source, hub, args.out) or text.pin_text(source, hub)
        for name, source in texts.items()
    }
    for name, pin in datasets.items():
        _refuse_moved(args.out, earlier.datasets.get(name), pin, texts[name])
    write_revisions(args.out, Revisions(args.suite, pins, datasets))
    return 0


def _held(pin: Pin | None, source: ModelSource | TextSource, hub: Hub, path: Path) -> Pin | None:
    """The earlier pin of a hub source where the network is off: the hub cannot be asked again.

    Raises:
        InputError: the earlier pin is of another repository or revision.
    """
    if not source.needs_network or hub.net or pin is None:
        return None
    if pin.source["name"] != source.name or source.revision not in (None, pin.revision):
        raise InputError(
            "pinned earlier as another source, and the network is off",
            where=str(path),
            expected=str(source),
            found=f"{pin.source['kind']}:{pin.source['name']}@{pin.revision}",
            hint=f"name that source, or run: {hub.fill}",
        )
    return pin


def _models(words: list[str]) -> dict[str, ModelSource]:
    models: dict[str, ModelSource] = {}
    slugs: dict[str, str] = {}
    for word in words:
        name, source = parse_named_model(word)
        if source is None:
            raise ConfigError("a model without a source", where=word, expected="ID=SOURCE")
        other = slugs.setdefault(slug(name), name)
        if name in models or other != name:
            raise ConfigError(f"models {other} and {name} would share the folder {slug(name)}")
        models[name] = source
    return models


def _texts(words: list[str]) -> dict[str, TextSource]:
    texts: dict[str, TextSource] = {}
    for word in words:
        source = parse_text_source(word)
        if source.dataset_id in texts:
            raise ConfigError("the text is given twice", where=word, found=source.dataset_id)
        texts[source.dataset_id] = source
    return texts


def _refuse_moved(
    path: Path, earlier: Pin | None, pin: Pin, source: ModelSource | TextSource
) -> None:
    """An earlier pin holds until somebody removes it or names another revision.

    Raises:
        InputError: the hub's default branch is at another commit, or a commit has other bytes.
    """
    if earlier is None or earlier.source != pin.source or not source.needs_network:
        return
    if earlier.revision != pin.revision and source.revision is None:
        raise InputError(
            f"the hub has moved on since {source} was pinned",
            where=str(path),
            expected=str(earlier.revision),
            found=str(pin.revision),
            hint=f"remove the file to pin anew, or keep the revision: hub:{source.name}"
            f"@{earlier.revision} (without the network the pinned one is used)",
        )
    changed = sorted(
        name
        for name in earlier.files.keys() & pin.files.keys()
        if earlier.files[name] != pin.files[name]
    )
    if earlier.revision == pin.revision and changed:
        raise InputError(
            f"the hub serves another {changed[0]} for the commit that was pinned",
            where=f"hub:{source.name}@{pin.revision}",
            expected=f"sha256 {earlier.files[changed[0]].sha256}",
            found=pin.files[changed[0]].sha256,
            hint=f"do not trust it; to pin it all the same remove {path}",
        )
