"""Make what the kinds of edit, damage and metric say elsewhere: contracts, and docs/kinds.md.

``make docs`` writes them; ``--check`` exits with 1 when something is stale. Of a contract it makes
the members that list kinds or their parameters, and leaves the others.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from make_config import code, table

from invarlock.damage.kind import Damage
from invarlock.damage.kinds import DAMAGES
from invarlock.edits.kind import EditSpec
from invarlock.edits.kinds import EDITS
from invarlock.edits.scope import SCOPES
from invarlock.metrics.kinds import ASKED, METRICS
from invarlock.records import TEXT

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/kinds.md"
CUSTOM = "custom"  # a subject that the user brings
Schema = dict[str, Any]
# Kinds of metric that other programs have published and reports may name.
PUBLISHED_METRICS = ("bleu", "f1", "rouge")
PUBLISHED_MODES = ("generation", "logprob", "teacher_forced", "classification", "benchmark_harness")
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


def with_parameters() -> dict[str, type[EditSpec]]:
    """The edits that take any."""
    return {name: kind for name, kind in EDITS.items() if kind.limits()}


def edit_metadata(schema: Schema) -> None:
    """Edit types, storage formats, and every parameter with the edits that take it."""
    members = schema["properties"]
    formats = dict.fromkeys(kind.storage_format for kind in EDITS.values())
    members["edit_type"]["enum"] = [*EDITS, CUSTOM]
    for name in ("storage_format", "actual_storage_format"):
        members[name]["enum"] = [*formats, CUSTOM]
    parameters: dict[str, Schema] = {}
    for edit_type, kind in with_parameters().items():
        for name, one in kind.schemas().items():
            # several edits may take one name, each with bounds of its own
            shape = {key: one[key] for key in ("type", "enum") if key in one}
            known = parameters.setdefault(name, {"description": "", **shape})
            known["description"] += ("; " if known["description"] else "") + (
                f"{one['description']} ({edit_type})"
            )
    parameters["label"] = members["parameters"]["properties"]["label"]
    members["parameters"]["properties"] = parameters


def error_metadata(schema: Schema) -> None:
    """The types of damage."""
    schema["properties"]["error_type"]["enum"] = list(DAMAGES)


def scenarios(schema: Schema) -> None:
    """The edits that a scenario can name."""
    generation = schema["$defs"]["scenario"]["properties"]["generation"]
    bare = "|".join([*(name for name in EDITS if name not in with_parameters()), CUSTOM])
    full = "|".join(with_parameters())
    generation["properties"]["edit_spec"]["pattern"] = f"^({bare}|({full}):.+)$"


def tuned_edit_params(schema: Schema) -> None:
    """An entry an edit: its parameters, in the order of its spec string, between what all say."""
    edits = schema["$defs"]["edits"]
    first = next(iter(edits["properties"].values()))["properties"]
    before, after = ("status", "reason", "edit_dir_name"), ("scope", "search")
    edits["properties"] = {
        name: {
            "type": "object",
            "description": summary(kind),
            "additionalProperties": False,
            "properties": {
                **{key: first[key] for key in before},
                **kind.schemas(),
                **{key: first[key] for key in after},
            },
            "required": ["status"],
        }
        for name, kind in with_parameters().items()
    }


def evaluation_report(schema: Schema) -> None:
    """The kinds of metric, and how they obtain outputs."""
    members = schema["properties"]
    kinds = sorted({*METRICS, *PUBLISHED_METRICS})
    members["primary_metric"]["properties"]["kind"]["enum"] = kinds
    modes = dict.fromkeys((*PUBLISHED_MODES, *(kind.mode for kind in METRICS.values())))
    members["evaluation_realism"]["properties"]["mode"]["enum"] = list(modes)


def windows(schema: Schema) -> None:
    """The kinds of windows, and which of them are labelled records."""
    schema["properties"]["kind"]["enum"] = [TEXT, *(kind.windows for kind in ASKED.values())]
    labelled = [kind.windows for kind in ASKED.values() if kind.labelled]
    one = {"const": labelled[0]} if len(labelled) == 1 else {"enum": labelled}
    schema["if"]["properties"]["kind"] = one


CONTRACTS: dict[str, Callable[[Schema], None]] = {
    "edit-metadata": edit_metadata,
    "error-metadata": error_metadata,
    "evaluation-report": evaluation_report,
    "scenarios": scenarios,
    "tuned-edit-params": tuned_edit_params,
    "windows": windows,
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
    for name, change in CONTRACTS.items():
        path = ROOT / f"contracts/{name}.schema.json"
        schema = json.loads(path.read_text())
        change(schema)
        yield path, json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
    yield PAGE, page()


def main() -> int:
    """Write the files, or check them."""
    stale = [path for path, text in made() if not path.is_file() or path.read_text() != text]
    if "--check" in sys.argv[1:]:
        print("\n".join(f"{path.relative_to(ROOT)} is stale: make docs" for path in stale))
        return int(bool(stale))
    for path, text in made():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
