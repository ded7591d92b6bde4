"""Tuned parameters of clean edits: which numbers stand for ``<edit type>:tuned`` in one model.

``tuned_edit_params.json`` follows ``contracts/tuned-edit-params.schema.json``. An entry holds the
parameters of an edit and, where ``invarlock advanced tune`` made it, the search that led to them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from invarlock.contracts import validate
from invarlock.documents.kinds import ORDER, TUNABLE
from invarlock.errors import ConfigError
from invarlock.files import read_json_object, slug, write_json
from invarlock.scenarios import Scenario

SCHEMA = "tuned_edit_params_v1"
MARK = "tuned"  # an edit_spec "<edit type>:tuned" takes its numbers from the table
SELECTED, SKIPPED = "selected", "skipped"
HINT = (
    "make one: snakemake tune (or invarlock advanced tune), then set tuned_edit_params to the "
    "file it wrote; or leave the scenario out"
)

Entry = Mapping[str, Any]
Edits = Mapping[str, Entry]  # edit type -> entry


class TunedParameters(Struct, frozen=True):
    """The table of ``tuned_edit_params.json``: model id -> edit type -> entry."""

    where: str
    models: Mapping[str, Edits]
    defaults: Edits
    notes: Sequence[str] = ()

    def entry(self, model_id: str, edit_type: str) -> Entry | None:
        """By model id, then by the model's folder name, then from the table's defaults."""
        by_folder = {slug(name): entries for name, entries in self.models.items()}
        for entries in (self.models.get(model_id), by_folder.get(slug(model_id)), self.defaults):
            if entries and edit_type in entries:
                return entries[edit_type]
        return None

    def of_model(self, model_id: str) -> dict[str, Entry]:
        """Every entry that counts for a model, wherever in the table it stands."""
        found = {edit_type: self.entry(model_id, edit_type) for edit_type in TUNABLE}
        return {edit_type: entry for edit_type, entry in found.items() if entry is not None}


def load_tuned(path: Path) -> TunedParameters:
    """Read and check a tuned parameter file.

    Raises:
        InputError: missing, unreadable or not JSON.
        ConfigError: departs from its contract.
    """
    document = read_json_object(path)
    validate(document, "tuned-edit-params", str(path), config=True)
    notes = document["_meta"].get("notes", ())
    return TunedParameters(str(path), document["models"], document.get("defaults", {}), notes)


def read_or_empty(path: Path | None) -> TunedParameters:
    """The table at ``path``; an empty one, which says so, where no such file is there."""
    if path is not None and path.is_file():
        return load_tuned(path)
    return TunedParameters(f"{path}, which is not there" if path else "", {}, {})


def write_tuned(path: Path, tuned: TunedParameters) -> None:
    """Check a table against its contract and write it; equal tables give equal bytes."""
    document = {
        "_meta": {"schema": SCHEMA, "generated_at": None, "notes": list(tuned.notes)},
        "models": tuned.models,
        **({"defaults": tuned.defaults} if tuned.defaults else {}),
    }
    validate(document, "tuned-edit-params", str(path))
    write_json(path, document)


def joined(tables: Iterable[TunedParameters]) -> TunedParameters:
    """One table of several; of two entries of one model and edit type the later one counts."""
    models: dict[str, dict[str, Entry]] = {}
    defaults: dict[str, Entry] = {}
    notes: dict[str, None] = {}
    for table in tables:
        for model_id, entries in table.models.items():
            models.setdefault(model_id, {}).update(entries)
        defaults.update(table.defaults)
        notes.update(dict.fromkeys(table.notes))
    return TunedParameters("", models, defaults, tuple(notes))


def tuned_type(scenario: Scenario) -> str | None:
    """The edit type whose tuned parameters a scenario asks for; None: it asks for none."""
    edit_type, _, rest = (scenario.edit_spec or "").partition(":")
    return edit_type if rest == MARK else None


def resolve_spec(scenario: Scenario, model_id: str, tuned: TunedParameters) -> str:
    """The edit spec string with its numbers, for one model.

    A spec ``<edit type>:tuned`` is looked up in the table; others are returned as they stand.

    Raises:
        ConfigError: the scenario is no edit, or no selected entry exists.
    """
    if scenario.edit_spec is None:
        raise ConfigError(f"scenario {scenario.id} injects an error and has no edit spec")
    edit_type = tuned_type(scenario)
    if edit_type is None:
        return scenario.edit_spec
    wanted = f"scenario {scenario.id} needs tuned {edit_type} parameters for {model_id}"
    entry = tuned.entry(model_id, edit_type)
    if edit_type not in TUNABLE:
        why = "no such edit can be tuned"
    elif entry is None:
        why = "no entry"
    elif entry["status"] != SELECTED:
        why = f"the entry is {entry['status']} ({entry.get('reason', 'no reason given')})"
    else:
        missing = [name for name in ORDER[edit_type] if name not in entry]
        if not missing:
            return spec_of(edit_type, entry)
        why = f"the entry lacks {missing[0]}"
    raise ConfigError(
        f"{wanted}: {why}",
        where=tuned.where,
        expected=f'models."{model_id}".{edit_type} with status "{SELECTED}"',
        hint=HINT,
    )


def spec_of(edit_type: str, entry: Entry) -> str:
    """The edit spec string of an entry that holds all parameters; whole numbers without a point."""
    values = (entry[name] for name in ORDER[edit_type])
    plain = (int(v) if isinstance(v, float) and v.is_integer() else v for v in values)
    return ":".join([edit_type, *map(str, plain)])
