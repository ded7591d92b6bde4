"""A user's own texts and names are read as they are meant; evidence stays strict."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from repository_copy import ROOT
from settings_factory import FILE, SUITES
from snakemake.cli import parse_config
from snakemake.utils import update_config

from invarlock.config import Settings, effective_settings
from invarlock.errors import InputError
from invarlock.files import parse_json
from invarlock.sources.hub_model import Hub
from invarlock.sources.spec import parse_text_source
from invarlock.sources.text import documents, pin_text
from invarlock.windows import WindowPlan, select_windows
from invarlock.written import as_written

LINES = '{"text": "one é", "n": NaN}\r\n{"text": "two", "n": 1, "n": 2}\r\n\r\n{"text": null}\n\n'
HUB = Hub(False, fill="")


def read(path: Path, options: str = "") -> list[str]:
    """The documents of a local file."""
    source = parse_text_source(f"local:{path}{options}")
    return documents(source, pin_text(source, HUB), HUB)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_marks_nan_and_line_ends_change_no_text(tmp_path: Path, encoding: str) -> None:
    """What another field holds, how lines end and how the file begins."""
    (tmp_path / "t.jsonl").write_bytes(LINES.encode(encoding))
    assert read(tmp_path / "t.jsonl") == ["one é", "two", ""]
    (tmp_path / "t.jsonl.gz").write_bytes(gzip.compress(LINES.encode(encoding)))
    assert read(tmp_path / "t.jsonl.gz") == ["one é", "two", ""]
    (tmp_path / "t.txt").write_bytes("a\r\nb\rc\n".encode(encoding))
    assert read(tmp_path / "t.txt") == ["a\nb\nc\n"]


def test_half_a_character_is_replaced(tmp_path: Path) -> None:
    """JSON can spell half a surrogate pair, which no tokenizer takes."""
    (tmp_path / "t.jsonl").write_text('{"text": "a\\ud800b \\ud83d\\ude00"}\n')
    assert read(tmp_path / "t.jsonl") == ["a\ufffdb \U0001f600"]


def test_what_is_no_line_is_named(tmp_path: Path) -> None:
    """The line of the file, and what to do about a whole document."""
    (tmp_path / "t.jsonl").write_text('{"text": "a"}\n{"text": \n')
    with pytest.raises(InputError, match=r"t\.jsonl:2: not a line of JSON"):
        read(tmp_path / "t.jsonl")
    (tmp_path / "t.jsonl").write_text('[\n{"text": "a"}\n]')
    with pytest.raises(InputError, match="one object a line"):
        read(tmp_path / "t.jsonl")


@pytest.mark.parametrize("data", [b"\xef\xbb\xbf{}", b'{"a": NaN}', b'{"a": 1, "a": 2}'])
def test_evidence_is_read_strictly(data: bytes) -> None:
    """The same liberties in a document of ours are refused."""
    with pytest.raises(InputError):
        parse_json(data, "x.json")


@pytest.mark.parametrize("name", ["what?.jsonl", "a?b=c.jsonl", "a?.jsonl?x.jsonl", "plain.jsonl"])
@pytest.mark.parametrize("options", ["", "?field=body", "?field=body&max_samples=1"])
def test_a_question_mark_in_a_name(tmp_path: Path, name: str, options: str) -> None:
    """Options follow the file, whatever its name."""
    field = "body" if options else "text"
    (tmp_path / name).write_text(json.dumps({field: "x"}) + "\n")
    assert read(tmp_path / name, options) == ["x"]
    assert parse_text_source(f"local:{tmp_path}/{name}{options}").name == f"{tmp_path}/{name}"


def test_documents_of_one_window_are_a_text() -> None:
    """They fill both arms alike, in the seed's order, and only where pairs do not suffice."""
    texts = [str(n) * 8 for n in range(10)]

    def encode(text: str) -> list[int]:
        return [1000 * int(text[0]) + n for n in range(len(text))]

    preview, final = select_windows(texts, encode, WindowPlan(8, 5, 5, 43))
    found = [window.cluster for window in (*preview, *final)]
    assert sorted(found) == sorted(f"doc-{n}" for n in range(10))
    assert (len(preview), len(final)) == (5, 5)
    with pytest.raises(InputError, match="found 5 for each"):
        select_windows(texts, encode, WindowPlan(8, 6, 6, 43))
    longer = [*texts, "a" * 16]

    def mixed(text: str) -> list[int]:
        return [9000 + n for n in range(16)] if text[0] == "a" else encode(text)

    preview, final = select_windows(longer, mixed, WindowPlan(8, 1, 1, 43))
    assert {preview[0].cluster, final[0].cluster} == {"doc-10"}


# --- names that look like something else --------------------------------------------------------

WORDS = ("2023_12", "1e5", "007", "yes", "null", "true", "2024-01-01", "0x10", "1_0", "nan", "~")


def spoken(*words: str, file: str = "") -> Settings:
    """The settings as Snakemake reads the words, over a file of settings."""
    given = {**FILE, **(yaml.safe_load(file) or {})}
    said: dict[str, Any] = parse_config(list(words))
    update_config(given, said)
    paths = [ROOT / "config/config.yaml"]
    if file:
        paths.append(Path("mine.yaml"))
        paths[-1].write_text(file)
    return effective_settings(given, FILE, SUITES, {}, said, as_written(paths, words))


@pytest.fixture
def named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders of all these names, and the catalogue."""
    (tmp_path / "scenarios").symlink_to(ROOT / "scenarios")
    for word in (*WORDS, "s"):
        (tmp_path / word).mkdir()
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("named")
@pytest.mark.parametrize("word", WORDS)
def test_a_folder_is_called_what_it_is_called(word: str) -> None:
    """On the command line and in a file of settings, for folders and for words."""
    found = spoken("suite=byoe", f"baseline={word}", "subject=s", f"out={word}/o")
    assert (found.values["baseline"], str(found.out)) == (word, f"{word}/o")
    assert found.models[0].source == f"local:{word}"
    if word in ("null", "~"):  # in YAML nothing, as everywhere in it
        return
    found = spoken("suite=byoe", "subject=s", file=f"baseline: {word}\n")
    assert found.values["baseline"] == word


@pytest.mark.usefixtures("named")
def test_other_types_stay_what_they_are() -> None:
    """Numbers and switches are read as before; a label may be a number."""
    words = ("suite=byoe", "baseline=007", "subject=s", "edit_label=4", "seed=12", "telemetry=true")
    found = spoken(*words, "repeats=2", "text='local:a.txt'")
    assert (found.values["edit_label"], found.values["seed"]) == ("4", 12)
    assert found.values["telemetry"] is True
    assert found.text == "local:a.txt"


@pytest.mark.usefixtures("named")
def test_an_included_file_names_folders_too(tmp_path: Path) -> None:
    """The same in a file that include names."""
    (tmp_path / "more.yaml").write_text("subject: 2023_12\n")
    found = spoken("suite=byoe", "baseline=s", "include=more.yaml")
    assert found.values["subject"] == "2023_12"
