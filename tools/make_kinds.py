"""Make what the kinds of edit, damage and metric say elsewhere: data/kinds.json, docs/kinds.md.

``make docs`` writes them; ``--check`` exits with 1 when something is stale. The contracts are made
of the first, see tools/make_contracts.py.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from generated import write_or_check
from make_config import code, table

from invarlock.damage.kind import Damage
from invarlock.damage.kinds import DAMAGES
from invarlock.edits.kinds import EDITS
from invarlock.edits.scope import SCOPES
from invarlock.metrics.kinds import ASKED, METRICS
from invarlock.records import TEXT

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/kinds.md"
DATA = ROOT / "invarlock/data/kinds.json"
Schema = dict[str, Any]
HEAD = """# Kinds of edit, damage and metric

Made by `make docs` from the classes in `invarlock/edits/kinds`, `invarlock/damage/kinds` and
`invarlock/metrics/kinds`; a test fails when it is stale. A new kind is a class in one of these
folders and nothing else.
"""
EDIT_HEAD = """
## Edits

`invarlock edit --spec SPEC`, and `edit_spec` of a scenario. *scope* is {scopes},
optionally with `@layer=K` or `@layers=K`. *Tried when tuned*: what `invarlock advanced tune` tries
on a model, in this order.
"""
DAMAGE_HEAD = """
## Damage

`invarlock inject --error-type TYPE --parameters JSON`, and `error_type` with `env` of a scenario.
Values are the published ones; -1, 0 or nothing leaves a value to the model or the mode.
"""
METRIC_HEAD = """
## Metrics

What is measured on the windows, and held against the baseline: what the model is trained for, or
what the text source asks for (`?metric=NAME`).
"""


def kinds() -> Schema:
    """What documents say of the kinds, for those who cannot import these."""
    return {
        "edits": {
            name: {
                "about": summary(kind),
                "storage_format": kind.storage_format,
                **({"keeps_weights": True} if kind.keeps_weights else {}),
                **({"tunable": True} if kind.candidates else {}),
                "parameters": kind.schemas(),
                **({"scoped": True} if "scope" in kind.types() else {}),
            }
            for name, kind in EDITS.items()
        },
        "damage": list(DAMAGES),
        "scopes": list(SCOPES),
        # what windows of this kind are made of
        "windows": {
            TEXT: TEXT,
            **{kind.windows: "records" if kind.labelled else TEXT for kind in ASKED.values()},
            **{kind.pictured: "pictured" for kind in ASKED.values() if kind.pictured},
        },
    }


def summary(kind: type) -> str:
    """The first line of a class's documentation."""
    return (inspect.getdoc(kind) or "").partition("\n")[0].replace("``", "")


def edits_page() -> Iterator[str]:
    """A section an edit."""
    yield EDIT_HEAD.format(scopes=", ".join(f"`{name}`" for name in SCOPES))
    for name, kind in EDITS.items():
        yield from (f"### `{name}`", "", inspect.getdoc(kind) or "", "", f"Spec: `{kind.form()}`")
        limits = kind.limits().items()
        if limits:
            rows = [(code(n), str(one), one.about) for n, one in limits]
            yield from ("", *table("parameter | admitted | meaning", rows))
        if kind.candidates:
            yield from ("", "Tried when tuned: " + ", ".join(map(code, kind.candidates)) + ".")
        yield ""


def damage_page() -> Iterator[str]:
    """A section a damage."""
    yield DAMAGE_HEAD
    for name, kind in DAMAGES.items():
        yield from (f"### `{name}`", "", inspect.getdoc(kind) or "")
        fields = dataclasses.fields(kind)
        if fields:
            rows = [(code(f.name), _value(f.default), admitted(kind, f.name)) for f in fields]
            yield from ("", *table("parameter | published | admitted", rows))
        yield ""


def _value(default: object) -> str:
    return code(json.dumps(default)) if isinstance(default, bool) else code(default)


def admitted(kind: type[Damage], name: str) -> str:
    """What a parameter of a damage may be."""
    default = getattr(kind(), name)
    if isinstance(default, bool):
        return "true or false"
    expected = kind().admits(name, default)[1]
    return "text" if expected == "one of " + str(default) else expected


def metrics_page() -> Iterator[str]:
    """A section a metric."""
    yield METRIC_HEAD
    for name, kind in METRICS.items():
        models = ", ".join(map(code, kind.model_types)) + " models"
        models = "every model that no other kind names" if kind.default else models
        rows = [
            ("of", code(f"?metric={name}") if name in ASKED else models),
            ("loaded by", code(kind.loader)),
            ("compared by", f"{kind.noun}, {kind.direction} is better"),
            ("decided by", f"{kind.bound} bound of the interval"),
            ("limits", code(kind.limits) + " of the tier"),
        ]
        yield from (f"### `{name}`", "", inspect.getdoc(type(kind)) or "", "")
        yield from (*table("what | is", rows), "")


def page() -> str:
    """The whole page."""
    text = "\n".join([HEAD, *edits_page(), *damage_page(), *metrics_page()])
    return text.replace("``", "`").replace("\n\n\n", "\n\n").strip() + "\n"


def made() -> Iterator[tuple[Path, str]]:
    """Every file and what it has to say."""
    yield DATA, json.dumps(kinds(), indent=2, ensure_ascii=False) + "\n"
    yield PAGE, page()


if __name__ == "__main__":
    sys.exit(write_or_check(made()))
