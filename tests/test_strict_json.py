"""Strict JSON: what is refused, and that the quick way to look at numbers misses nothing."""

from __future__ import annotations

import json
from typing import Any, NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from invarlock.errors import InputError
from invarlock.files import (
    MAX_JSON_DEPTH,
    MAX_JSON_DIGITS,
    canonical_json,
    fingerprint,
    parse_json,
)


def look_at_everything(data: bytes) -> Any:
    """The same rules, plainly: every object, number and constant is looked at, then the depth."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) < len(pairs):
            raise ValueError("duplicate key")
        return dict(pairs)

    def refuse(name: str) -> NoReturn:
        raise ValueError(name)

    def finite(text: str) -> float:
        if float(text) in (float("inf"), float("-inf")):
            raise ValueError("overflow")
        return float(text)

    def bounded(text: str) -> int:
        if len(text) > MAX_JSON_DIGITS:
            raise ValueError("digits")
        return int(text)

    if data.startswith(b"\xef\xbb\xbf"):
        raise ValueError("byte order mark")
    value = json.loads(
        data.decode(),
        object_pairs_hook=unique,
        parse_constant=refuse,
        parse_float=finite,
        parse_int=bounded,
    )
    json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is no character
    if depth(value) > MAX_JSON_DEPTH:
        raise ValueError("depth")
    return value


def depth(value: Any) -> int:
    """Levels of nesting."""
    if isinstance(value, (list, dict)):
        members = value.values() if isinstance(value, dict) else value
        return 1 + max(map(depth, members), default=0)
    return 0


NUMBERS = st.sampled_from(
    [
        "0",
        "-1",
        "1.5",
        "1e5",
        "1E5",
        "1e-400",
        "1e308",
        "1e309",
        "-1e999",
        "1e+400",
        "1E+0999",
        "0.1e99",
        "1e100",
        "123e98",
    ]
    + ["9" * n for n in (31, 32, 33, 40, 310, 400)]
    + ["-" + "9" * 31, "-" + "9" * 32, "0." + "1" * 40, "1" * 20 + "." + "1" * 20 + "e300"]
    + ["9" * 309 + ".5", "9" * 308 + ".5", "NaN", "Infinity", "-Infinity", "01", "1.", "+1"]
)
STRINGS = st.text(
    st.sampled_from('\\"[]{}eE+0123456789 \n\u00e9\U0001f600'), max_size=12
) | st.sampled_from(["0" * 64, "deadbeefe999", "1e999", '\\"[[[', "\\\\"])
# Colons, which are counted to find keys that stand twice, written in each way.
COLONS = st.sampled_from(['"a"', '"a:"', '":"', '"\\u003a"', '"\\u003A"', '"\\\\u003a"'])
SPELLED = STRINGS.map(json.dumps) | COLONS
TEXTS = st.recursive(
    NUMBERS | SPELLED | st.sampled_from(["null", "true", "false"]),
    lambda inner: (
        st.lists(inner, max_size=4).map(lambda items: "[" + ",".join(items) + "]")
        | st.lists(st.tuples(SPELLED, inner), max_size=4).map(
            lambda pairs: "{" + ", ".join(f"{key}: {value}" for key, value in pairs) + "}"
        )
    ),
    max_leaves=12,
)


@st.composite
def documents(draw: st.DrawFn) -> bytes:
    """JSON, nested more deeply at times, with a byte removed, doubled or replaced at times."""
    data = draw(TEXTS).encode()
    levels = draw(st.sampled_from([0, 0, 0, 60, MAX_JSON_DEPTH, MAX_JSON_DEPTH + 1]))
    data = b"[" * levels + data + b"]" * levels
    at = draw(st.integers(0, len(data)))
    other = draw(st.sampled_from([b"", b"", b"\\", b'"', b"[", b"}", b"\xff", b"\x00"]))
    return data[:at] + other + data[at + draw(st.integers(0, 1)) * bool(other) :]


@settings(max_examples=1500, deadline=None)
@given(documents())
def test_nothing_gets_past_the_quick_look(data: bytes) -> None:
    """The same documents are accepted, with the same content, as when everything is looked at."""
    try:
        expected = look_at_everything(data)
    except ValueError:
        with pytest.raises(InputError):
            parse_json(data, "x")
    else:
        assert repr(parse_json(data, "x")) == repr(expected)  # repr tells 1 from 1.0 and from true


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "b": 2, "a": 3}', "duplicate key 'a'"),
        ('{"a": "\\u003a", "a": 3}', "duplicate key 'a'"),
        ('{"a": 1, "\\u0061": "::"}', "duplicate key 'a'"),
        ("[NaN]", "NaN is not a JSON number"),
        ("[-Infinity]", "-Infinity is not a JSON number"),
        ("[1e999]", "1e999 overflows a double"),
        ("[" + "9" * 33 + "]", "an integer of 33 digits"),
        ("[" + "9" * 5000 + "]", "an integer of 5000 digits"),
        ("[" * 65 + "]" * 65, "nested deeper than 64 levels"),
        ("[" * 100_000, "nested deeper than 64 levels"),
        ('{"a":' * 100_000, "nested deeper than 64 levels"),
        ("[1,]", "not JSON: "),
        ("\ufeff{}", "byte order mark"),
        ("", "not JSON: "),
    ],
)
def test_the_line_says_what_is_wrong(text: str, message: str) -> None:
    """One line with the file and the reason."""
    with pytest.raises(InputError) as caught:
        parse_json(text.encode(), "file.json")
    assert str(caught.value).startswith("file.json: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "data", [b"\xff", "é".encode("latin-1"), b'"\xed\xa0\x80"', b"\xff\xfe[\0]\0"]
)
def test_what_is_not_utf_8_is_refused(data: bytes) -> None:
    """Other encodings, and surrogates written as UTF-8."""
    with pytest.raises(InputError, match="not UTF-8 at byte"):
        parse_json(data, "x")


@settings(max_examples=500, deadline=None)
@given(documents(), documents())
def test_fingerprints_tell_apart_what_its_json_does(one: bytes, other: bytes) -> None:
    """Equal exactly where the canonical texts are, an integer beyond 64 bits included."""
    try:
        found = [look_at_everything(data) for data in (one, other)]
    except ValueError:
        return
    for a, b in ((found[0], found[1]), (found[0], look_at_everything(b" " + one))):
        same = canonical_json(a) == canonical_json(b)
        assert (fingerprint(a) == fingerprint(b)) == same
    assert fingerprint([1]) != fingerprint([1.0]) != fingerprint([True])
