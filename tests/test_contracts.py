"""The lines that users see where a document departs from its contract."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import proof_pack_factory as proofs
import pytest
from msgspec import UNSET, UnsetType
from repository_copy import ROOT

from invarlock import documents
from invarlock.contracts import MOST_VALUES, departures, load_contract, violations
from invarlock.documents.fields import ADDED, Open, about, is_added
from invarlock.errors import InputError
from invarlock.files import read_json
from invarlock.schemas import validator

OUTCOME: dict[str, Any] = {
    "schema": "invarlock/outcome-v1",
    "model_id": "acme/tiny",
    "scenario": "noop_clean",
    "run": 1,
    "status": "reported",
    "exit_code": 0,
    "injected": None,
    "detectors_hit": [],
    "detectors_missed": [],
    "windows_sha256": "0" * 64,
    "subject_sha256": "0" * 64,
    "baseline_sha256": "0" * 64,
    "preset_sha256": None,
    "attempt": 1,
    "error": None,
}


@pytest.mark.parametrize(
    ("schema", "document", "line"),
    [
        ({"required": ["a", "b"]}, {"a": 1}, "/ lacks the key b"),
        ({"properties": {"a": {"type": "string"}}}, {"a": 1}, "/a is 1; expected string"),
        ({"type": ["null", "integer"]}, True, "/ is True; expected null or integer"),
        ({"enum": ["x", "y"]}, "z", "/ is 'z'; expected one of 'x', 'y'"),
        ({"const": "v1"}, "v2", "/ is 'v2'; expected 'v1'"),
        (
            {"properties": {"seed": {}}, "additionalProperties": False},
            {"seeds": 1},
            "/seeds is not a known key (did you mean seed?)",
        ),
        (
            {
                "$defs": {"q": {"properties": {"one": {}}, "additionalProperties": False}},
                "properties": {"a": {"$ref": "#/$defs/q"}},
            },
            {"a": {"zzz": 1}},
            "/a/zzz is not a known key (known: one)",
        ),
        ({"minimum": 0}, -1, "/ is -1; expected at least 0"),
        ({"exclusiveMinimum": 0}, 0, "/ is 0; expected more than 0"),
        ({"minItems": 1}, [], "/ is []; expected at least 1 items"),
        ({"maxLength": 1}, "ab", "/ is 'ab'; expected at most 1 characters"),
        ({"uniqueItems": True}, [1, 1.0], "/ holds a value twice"),
        ({"anyOf": [{"type": "null"}]}, 1, "/ has none of the forms that are known"),
        ({"pattern": "^[0-9]$"}, "1\n", "/ is '1\\n'; expected text that matches ^[0-9]$"),
        ({"pattern": r"^\d$"}, "\u0663", "/ is '\u0663'; expected text that matches ^\\d$"),
        ({"type": "string"}, list(range(9)), "/ is a list of 9; expected string"),
    ],
)
def test_lines_say_where_what_and_what_was_expected(
    schema: dict[str, Any], document: object, line: str
) -> None:
    """One line; a pattern ends where the text ends, and its digits are ASCII."""
    assert departures(document, schema) == [line]


def test_every_departure_is_listed_in_the_order_of_its_place() -> None:
    """A document of ordinary size is shown all that is wrong with it at once."""
    schema = {"properties": {"b": {"type": "null"}, "a": {"items": {"type": "null"}}}}
    lines = departures({"b": 1, "a": [1, None, 2]}, schema)
    assert [line.split()[0] for line in lines] == ["/a/0", "/a/2", "/b"]


def test_hostile_documents_give_few_and_short_lines() -> None:
    """A large document that is wrong everywhere is not listed in full; nothing huge is shown."""
    for many in ([0] * (MOST_VALUES + 1), [[0] * 1000] * 100):
        assert violations({**OUTCOME, "detectors_hit": many}, "outcome") == [
            "/detectors_hit/0: expected str, got " + ("int" if many[0] == 0 else "array")
        ]
        assert len(violations({**OUTCOME, "run": 0, "more": many}, "outcome")) == 1
    huge = "x" * 1_000_000
    wrong = ({huge: 1}, {**OUTCOME, "run": huge}, {**OUTCOME, "run": [huge]}, {**OUTCOME, huge: 1})
    for document in wrong:
        assert max(map(len, violations(document, "outcome"))) < 300
        assert max(map(len, violations({**document, "error": [0] * MOST_VALUES}, "outcome"))) < 300


def test_the_published_names_of_contracts(tmp_path: Path) -> None:
    """The files that published pages name: the same manifest, the older one, the flags."""
    name = "evidence_pack_manifest"
    ours, theirs = load_contract(name.replace("_", "-")), load_contract(name)
    assert {k: v for k, v in theirs.items() if k != "$id"} == {
        k: v for k, v in ours.items() if k != "$id"
    }
    older = load_contract("proof_pack_manifest")
    for generation in ("first", "openpgp"):
        proofs.write_contents(tmp_path / generation, generation)
        bound = {} if generation == "first" else {"checksums_sha256_digest": "0" * 64}
        manifest = json.loads(proofs.write_manifest(tmp_path / generation, generation, **bound))
        assert departures(manifest, older) == []
        assert departures(manifest, ours)
        assert departures(manifest | {"format": "evidence-pack-v1"}, older)
    flags = json.loads((ROOT / "contracts/validation_keys.json").read_text())
    assert len(flags) == 12
    known = load_contract("evaluation-report")["properties"]["validation"]
    assert departures(dict.fromkeys(flags, True), known) == []
    assert departures({"another": True}, known)


def test_an_unknown_contract_is_an_error() -> None:
    """A name that is not in the folder of contracts."""
    with pytest.raises(InputError):
        violations({}, "no-such-contract")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({}, ""),
        ({"run": 1.0}, "/run is 1.0; expected integer"),
        ({"run": True}, "/run is True; expected integer"),
        ({"run": "1"}, "/run is '1'; expected integer"),
        ({"run": -0.0}, "/run is -0.0; expected integer"),
        ({"run": 10**30}, ""),
        ({"run": -(10**30)}, f"/run is -{10**30}; expected at least 1"),
        ({"exit_code": None}, ""),
        (
            {"windows_sha256": "0" * 64 + "\n"},
            f"/windows_sha256 is '{'0' * 56}...; expected text that",
        ),
        (
            {"windows_sha256": "\u0660" * 64},
            f"/windows_sha256 is '{chr(0x660) * 56}...; expected text that",
        ),
        ({"detectors_hit": [1, None]}, "/detectors_hit/0 is 1; expected string"),
        ({"detectors_hit": {}}, "/detectors_hit is {}; expected array"),
        ({"status": "fine"}, "/status is 'fine'; expected one of 'crashed',"),
        ({"statu": 1}, "/statu is not a known key (did you mean status?)"),
        ({"": 1}, "/ is not a known key"),
    ],
)
def test_decoding_refuses_what_the_contract_does(change: dict[str, Any], line: str) -> None:
    """Also where Python and JSON differ: whole numbers, booleans, line ends, digits."""
    found = violations(OUTCOME | change, "outcome")
    assert found[0].startswith(line) if line else found == []


WINDOWS: dict[str, Any] = {"schema": "invarlock/windows-v1", "seq_len": 1}


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"kind": "text"}, "/seq_len is 1; expected at least 2"),
        ({"kind": "text", "preview": [{}]}, "/preview/0 lacks the key window_id"),
        ({"kind": "prose"}, "/kind is 'prose'; expected one of 'text', 'records', 'vision_text'"),
        ({}, "/ lacks the key kind"),
    ],
)
def test_of_several_forms_the_one_that_is_meant_is_spoken_of(
    change: dict[str, Any], line: str
) -> None:
    """The kind of a document says it; without one, that is what is wrong."""
    assert line in violations(WINDOWS | change, "windows")


# --- decoding and the contract say the same -------------------------------------------------------

STORED = {
    "category-summary": "tests/packs/v1-pass/results/category_summary.json",
    "evaluation-report": "tests/packs/v1-pass/**/noop_clean/run_1/evaluation.report.json",
    "evidence-pack-manifest": "tests/packs/v1-pass/manifest.json",
    "evidence-pack-signature": "tests/packs/v1-pass/manifest.signature.json",
    "final-verdict": "tests/packs/v1-pass/results/final_verdict.json",
    "guard-signal-summary": "tests/packs/v1-pass/results/guard_signal_summary.json",
    "outcome": "tests/packs/v1-pass/**/noop_clean/run_1/outcome.json",
    "runtime-manifest": "tests/packs/v1-pass/**/noop_clean/run_1/runtime.manifest.json",
    "scenario-signal-summary": "tests/packs/v1-pass/results/scenario_signal_summary.json",
    "scenarios": "tests/packs/v1-pass/metadata/scenarios.json",
    "tuned-edit-params": "scenarios/tuned_edit_params.json",
}
# In the place of any value; what belongs to some other type is wrong wherever one is asked for.
OTHERS: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 1.5, 1.0, -0.0, 10**30, 1e300, "", "x", "x\n", "\u0663"),
    *([], {}, [1], [None], ["x", "x"], {"x": 1}, [[]]),
)


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every value of a document; of a list only the first."""
    yield at, value
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*at, key))
    elif isinstance(value, list) and value:
        yield from places(value[0], (*at, 0))


def replaced(document: Any, at: tuple[Any, ...], value: Any) -> Any:
    """The document with another value at one place."""
    if not at:
        return value
    copied = document.copy()
    copied[at[0]] = replaced(document[at[0]], at[1:], value)
    return copied


def changed(document: Any, draw: random.Random) -> Iterator[Any]:
    """The document with one value changed: all of a kind at some places."""
    found = list(places(document))
    for at, value in draw.sample(found, min(len(found), 20)):
        others = [*OTHERS]
        if isinstance(value, str):
            others += [value + "\n", " " + value, value.upper()]
        if isinstance(value, int | float):
            others += [-value, value + 1, str(value), bool(value), float(value)]
        if isinstance(value, list):
            others += [value + value, value[:-1], [*value, None]]
        if isinstance(value, dict):
            others += [{k: v for k, v in value.items() if k != gone} for gone in [*value][:9]]
            others += [value | {"more": 1}, value | {"": None}]
        yield from (replaced(document, at, other) for other in others)


@pytest.mark.parametrize("name", STORED)
def test_decoding_and_the_contract_agree(name: str) -> None:
    """On stored documents, which both accept, and on these with one value changed."""
    document = read_json(next(ROOT.glob(STORED[name])))
    schema = validator(load_contract(name))
    assert violations(document, name) == []
    assert schema.is_valid(document)
    accepted = 0
    for other in changed(document, random.Random(name)):
        agreed = schema.is_valid(other)
        accepted += agreed
        assert (violations(other, name) == []) is agreed
    assert accepted


def test_patterns_mean_the_same_to_everyone() -> None:
    """Classes such as ``\\d`` differ between Python and the standard; ``$`` ends a contract's."""

    def patterns(part: Any) -> Iterator[str]:
        if isinstance(part, dict):
            yield from [part["pattern"]] if isinstance(part.get("pattern"), str) else []
            part = list(part.values())
        if isinstance(part, list):
            for value in part:
                yield from patterns(value)

    found = {one for name in documents.names() for one in patterns(load_contract(name))}
    assert found
    assert not [one for one in found if "\\" in one or not one.startswith("^") or one[-1] != "$"]


class Inner(Open):
    """A part of a document."""

    new: Annotated[int | UnsetType, about("of a later version"), ADDED] = UNSET
    old: Annotated[int | UnsetType, about("of every version")] = UNSET


class Outer(Open):
    """A document."""

    part: Annotated[Inner | UnsetType | None, about("one")] = UNSET
    parts: list[Inner] | UnsetType = UNSET
    named: dict[str, Inner] | UnsetType = UNSET


@pytest.mark.parametrize("place", ["/part", "/parts/3", "/named/new"])
def test_a_member_is_added_where_its_struct_says_so(place: str) -> None:
    """And nowhere else, whatever its name."""
    assert is_added(Outer, f"{place}/new")
    others = (place, f"{place}/old", f"{place}/other", f"{place}/new/new", "/new", "")
    assert not any(is_added(Outer, other) for other in others)
