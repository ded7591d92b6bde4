"""The lines that users see where a document departs from its contract."""

from __future__ import annotations

from typing import Any

import pytest

from invarlock.contracts import MOST_VALUES, departures, violations
from invarlock.errors import InputError

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
