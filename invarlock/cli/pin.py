"""Pin models and texts by revision and by the SHA-256 of every file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from invarlock.cli.options import option
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


@dataclass(frozen=True, kw_only=True)
class PinOptions:
    """Options of ``invarlock pin``."""

    suite: str = option(help="name of the suite, recorded", setting="suite")
    model: tuple[str, ...] = option(repeated=True, metavar="ID=SOURCE", help="repeat for more")
    text: tuple[str, ...] = option(repeated=True, metavar="SOURCE", help="repeat for more")
    net: bool = option(False, help="allow the network (hub sources need it)")
    allow_remote_code: bool = option(
        False, help="allow models with code of their own", setting="allow_remote_code"
    )
    allow_pickle: bool = option(
        False, help="allow models with pickle weights only", setting="allow_pickle_checkpoints"
    )
    out: Path = option(metavar="FILE", help="state/model_revisions.json", writes=True)


OPTIONS = PinOptions


def main(options: PinOptions) -> int:
    """Write ``model_revisions.json``; nothing is written unless everything could be pinned."""
    models = _models(options.model)
    texts = _texts(options.text)
    hub = Hub(options.net, fill="invarlock pin with --net (snakemake fetch --config net=1)")
    allow = Allow(options.allow_remote_code, options.allow_pickle)
    earlier = Revisions(options.suite, {}, {})
    if options.out.is_file():
        earlier = read_revisions(options.out)
    pins = {
        name: _held(earlier.models.get(name), source, hub, options.out) or source.pin(hub, allow)
        for name, source in models.items()
    }
    for name, pin in pins.items():
        require_permission(pin, allow, name)
        _refuse_moved(options.out, earlier.models.get(name), pin, models[name])
    datasets = {
        name: _held(earlier.datasets.get(name), source, hub, options.out)
        or text.pin_text(source, hub)
        for name, source in texts.items()
    }
    for name, pin in datasets.items():
        _refuse_moved(options.out, earlier.datasets.get(name), pin, texts[name])
    write_revisions(options.out, Revisions(options.suite, pins, datasets))
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


def _models(words: Sequence[str]) -> dict[str, ModelSource]:
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


def _texts(words: Sequence[str]) -> dict[str, TextSource]:
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
