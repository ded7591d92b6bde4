"""The choice of windows: lengths, arms, clusters, order, and what is refused."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from invarlock.checkpoints import tokenizer_digest
from invarlock.errors import ConfigError, InputError
from invarlock.windows import (
    SliceText,
    WindowPlan,
    divided,
    ids_of_others,
    load_encoder,
    long_length,
    make_sliced_windows,
    make_windows,
    read_windows,
    select_windows,
    too_long,
    window_id,
    write_windows,
)

SOURCE = {
    "kind": "local", "name": "t.txt", "version": None, "revision": None, "config": None,
    "split": None, "field": "text", "max_samples": None,
    "files": {"t.txt": {"bytes": 1, "sha256": "0" * 64}},
}  # fmt: skip


def encode(text: str) -> list[int]:
    """One token a character."""
    return [ord(char) for char in text]


def distinct(count: int, length: int) -> list[str]:
    """Documents without a repeated character."""
    return ["".join(chr(300 + i * length + j) for j in range(length)) for i in range(count)]


documents_strategy = st.lists(st.text("abcde", max_size=40), min_size=1, max_size=8)
plans = st.builds(
    WindowPlan, st.integers(2, 5), st.integers(1, 6), st.integers(1, 6), st.integers(0, 99)
)


@settings(max_examples=150, deadline=None)
@given(documents_strategy, plans)
def test_windows_are_exact_distinct_and_from_their_document(
    texts: list[str], plan: WindowPlan
) -> None:
    """Both arms hold the exact counts of distinct, aligned windows of the named document."""
    try:
        preview, final = select_windows(texts, encode, plan)
    except InputError:
        return
    assert (len(preview), len(final)) == (plan.preview, plan.final)
    windows = [*preview, *final]
    assert len({window.window_id for window in windows}) == len(windows)
    for window in windows:
        tokens = encode(texts[int(window.cluster.removeprefix("doc-"))])
        aligned = [tuple(tokens[i : i + plan.seq_len]) for i in range(0, len(tokens), plan.seq_len)]
        assert window.tokens in aligned
        assert len(window.tokens) == plan.seq_len


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 6), st.integers(4, 30), st.integers(0, 99))
def test_capacity_message_is_the_true_capacity(count: int, length: int, seed: int) -> None:
    """Exactly the number of pairs the error names can be had, and not one more."""
    texts, pairs = distinct(count, length), count * (length // 2 // 2)
    preview, final = select_windows(texts, encode, WindowPlan(2, pairs, pairs, seed))
    assert len(preview) == len(final) == pairs
    with pytest.raises(InputError, match=f"found {pairs} for each"):
        select_windows(texts, encode, WindowPlan(2, pairs + 1, 1, seed))


def test_one_pass_takes_one_pair_of_every_document() -> None:
    """As many clusters as possible, and both arms from the same documents."""
    preview, final = select_windows(distinct(6, 40), encode, WindowPlan(4, 6, 6, 3))
    clusters = [window.cluster for window in preview]
    assert sorted(clusters) == [f"doc-{i}" for i in range(6)]
    assert clusters == [window.cluster for window in final]


def test_pairs_are_adjacent_and_arms_alternate() -> None:
    """The windows of a pair touch; every other pair starts in the final arm."""
    preview, final = select_windows(distinct(6, 40), encode, WindowPlan(4, 6, 6, 3))
    for number, (left, right) in enumerate(zip(preview, final, strict=True)):
        first, second = (left, right) if number % 2 == 0 else (right, left)
        assert second.tokens[0] == first.tokens[-1] + 1


def test_a_full_arm_takes_no_more() -> None:
    """Unequal counts are held exactly."""
    preview, final = select_windows(distinct(3, 40), encode, WindowPlan(4, 2, 7, 0))
    assert (len(preview), len(final)) == (2, 7)


def test_the_seed_decides_the_choice() -> None:
    """The same seed gives the same windows, another seed others."""
    texts = distinct(8, 40)
    once, again = (select_windows(texts, encode, WindowPlan(4, 4, 4, 1)) for _ in range(2))
    other = select_windows(texts, encode, WindowPlan(4, 4, 4, 2))
    assert once == again
    assert once != other


def test_documents_are_encoded_only_when_needed() -> None:
    """A request that two documents satisfy encodes two documents."""
    asked: list[str] = []

    def counting(text: str) -> list[int]:
        asked.append(text)
        return encode(text)

    select_windows(distinct(50, 40), counting, WindowPlan(4, 2, 2, 0))
    assert len(asked) == 2


def test_repeated_windows_are_dropped_before_pairing() -> None:
    """Two equal documents count once."""
    text = distinct(1, 16)[0]
    with pytest.raises(InputError, match="found 2 for each"):
        select_windows([text, text], encode, WindowPlan(4, 3, 3, 0))


def test_window_id_is_the_published_digest() -> None:
    """First 16 hex of SHA-256 over little-endian uint32 ids."""
    raw = struct.pack("<3I", 1, 2, 70000)
    assert window_id([1, 2, 70000]) == hashlib.sha256(raw).hexdigest()[:16]


@pytest.mark.parametrize("wrong", [{"seq_len": 1}, {"preview": 0}, {"final": 0}])
def test_an_impossible_plan_names_its_key(wrong: dict[str, int]) -> None:
    """A plan without anything to predict or with an empty arm is a configuration error."""
    with pytest.raises(ConfigError, match=f"windows.{next(iter(wrong))}"):
        WindowPlan(**({"seq_len": 4, "preview": 1, "final": 1, "seed": 0} | wrong))


def test_the_encoder_adds_nothing_and_cuts_nothing(tiny_folder: Path) -> None:
    """Truncation and special tokens of tokenizer.json are ignored; spelled-out ones are text."""
    path = tiny_folder / "tokenizer.json"
    document = json.loads(path.read_text())
    document["truncation"] = {
        "direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0,
    }  # fmt: skip
    path.write_text(json.dumps(document))
    tokens = load_encoder(tiny_folder)("hello <eos>")
    assert len(tokens) == len("hello <eos>")
    assert 256 not in tokens


def test_a_written_file_reads_back(tiny_folder: Path, tmp_path: Path) -> None:
    """windows.json follows its contract and carries the tokenizer's digest."""
    texts = ["".join(f"{i}{j:02d};" for j in range(10)) for i in range(4)]
    document = make_windows(tiny_folder, texts, WindowPlan(8, 3, 3, 5), SOURCE)
    write_windows(tmp_path / "w.json", document)
    read = read_windows(tmp_path / "w.json", tokenizer_digest(tiny_folder))
    assert read.n_documents == 4
    assert read.stride == read.seq_len == 8
    assert [list(w.tokens) for w in read.final] == [w["tokens"] for w in document["final"]]


def written(folder: Path, target: Path) -> dict:
    """A small valid windows document."""
    texts = [chr(97 + i) * 2 + "0123456789" * 3 for i in range(4)]
    document = make_windows(folder, texts, WindowPlan(4, 2, 2, 0), SOURCE)
    write_windows(target, document)
    return document


def test_windows_of_another_tokenizer_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    """The tokenizer digest of the windows must be the checkpoint's."""
    written(tiny_folder, tmp_path / "w.json")
    path = tiny_folder / "tokenizer.json"
    document = json.loads(path.read_text())
    document["added_tokens"][0]["content"] = "<end>"
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match="another tokenizer"):
        read_windows(tmp_path / "w.json", tokenizer_digest(tiny_folder))


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda d: d["final"][0]["tokens"].__setitem__(0, 9), "does not fit its tokens"),
        (lambda d: d["final"][0]["tokens"].append(9), "not seq_len long"),
        (lambda d: d["final"].append(d["preview"][0]) or d["counts"].update(final=3), "twice"),
        (lambda d: d["preview"].pop(), "/counts/preview"),
        (lambda d: d.update(extra=1), "not a known key"),
    ],
)
def test_a_changed_file_is_refused(damage, line: str, tiny_folder: Path, tmp_path: Path) -> None:
    """A token, a count or a window that was changed by hand is noticed."""
    document = written(tiny_folder, tmp_path / "w.json")
    damage(document)
    (tmp_path / "w.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=line):
        read_windows(tmp_path / "w.json")


def test_tokens_outside_the_vocabulary_are_refused(tiny_folder: Path) -> None:
    """A tokenizer larger than the model's embedding does not belong to it."""
    config = json.loads((tiny_folder / "config.json").read_text())
    (tiny_folder / "config.json").write_text(json.dumps(config | {"vocab_size": 10}))
    with pytest.raises(InputError, match="does not belong to the model"):
        make_windows(tiny_folder, ["abcdefghijklmnop"], WindowPlan(8, 1, 1, 0), SOURCE)


@settings(max_examples=100, deadline=None)
@given(documents_strategy, plans, st.integers(0, 99))
def test_excluded_windows_are_never_chosen(texts: list[str], plan: WindowPlan, seed: int) -> None:
    """What one choice took, another seed does not take again; without text left it says so."""
    try:
        taken = {w.window_id for arm in select_windows(texts, encode, plan) for w in arm}
        apart = WindowPlan(plan.seq_len, 1, 1, seed, frozenset(taken))
        arms = select_windows(texts, encode, apart)
    except InputError:
        return
    assert taken.isdisjoint(w.window_id for arm in arms for w in arm)


def test_a_file_says_what_was_excluded(tiny_folder: Path, tmp_path: Path) -> None:
    """The number and digest of the ids, each once; nothing where none were."""
    texts = ["".join(f"{i}{j:02d};" for j in range(20)) for i in range(4)]
    paths = [tmp_path / name for name in ("a.json", "b.json")]
    documents = []
    for path in paths:
        others = ids_of_others([p for p in paths for _ in range(2) if p.is_file()], 8)
        documents.append(make_windows(tiny_folder, texts, WindowPlan(8, 3, 3, 5, others), SOURCE))
        write_windows(path, documents[-1])
    first, second = (sorted(w["window_id"] for w in d["preview"] + d["final"]) for d in documents)
    listed = json.dumps(first, separators=(",", ":")).encode()
    assert "excluded" not in documents[0]
    assert documents[1]["excluded"] == {
        "windows": 6,
        "ids_sha256": hashlib.sha256(listed).hexdigest(),
    }
    assert set(first).isdisjoint(second)


@pytest.mark.parametrize("bos", [None, 1])
def test_what_lies_in_a_long_window_is_kept_apart(
    tiny_folder: Path, tmp_path: Path, bos: int | None
) -> None:
    """Training text is no part of a long window that is judged, wherever in it it would begin."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    texts = ["".join(f"{a}{b}{i}" for a in letters for b in letters[:4]) for i in range(10, 22)]
    plan = WindowPlan(16, 3, 5, 5, bos=bos)
    first = SliceText("prose", "prose", texts, plan, SOURCE)
    long = replace(first, name="long", plan=replace(plan, seq_len=100))
    path = tmp_path / "w.json"
    write_windows(path, make_sliced_windows(tiny_folder, [first, long]))
    judged = read_windows(path)
    head = 0 if bos is None else 1
    covered = {
        window.tokens[begin : begin + 16 - head]
        for window in (*judged.preview, *judged.final)
        for begin in range(head, len(window.tokens) - 16 + head + 1)
    }

    def shared(excluded: frozenset[str]) -> int:
        apart = replace(plan, preview=16, final=16, seed=9, excluded=excluded)
        arms = select_windows(texts, load_encoder(tiny_folder), apart)
        return sum(window.tokens[head:] in covered for arm in arms for window in arm)

    by_name = frozenset(w.window_id for w in (*judged.preview, *judged.final))
    assert shared(by_name) > 0
    assert shared(ids_of_others([path], 16, bos)) == 0


def test_windows_of_another_length_cannot_be_excluded(tiny_folder: Path, tmp_path: Path) -> None:
    """The same text would have another id: nothing would be kept apart."""
    written(tiny_folder, tmp_path / "w.json")
    with pytest.raises(ConfigError, match=r"another length cannot be excluded.*found 4"):
        ids_of_others([tmp_path / "w.json"], 5)


def test_windows_longer_than_the_context_are_refused(tiny_folder: Path) -> None:
    """The context of the model bounds seq_len."""
    with pytest.raises(ConfigError, match="at most 128"):
        make_windows(tiny_folder, ["a" * 999], WindowPlan(129, 1, 1, 0), SOURCE)


@pytest.mark.parametrize(
    ("config", "context"),
    [
        ({"max_position_embeddings": 128}, 128),
        ({"n_positions": 64, "n_ctx": 32}, 64),
        ({"text_config": {"max_position_embeddings": 32}}, 32),
        ({"text_config": {"hidden_size": 32}}, None),
        ({"n_positions": 32, "relative_attention_num_buckets": 8}, None),
    ],
)
def test_a_context_may_be_that_of_the_language_model(
    config: dict[str, object], context: int | None
) -> None:
    """Also by older names; where none is stated, nothing is refused."""
    refused = [n for n in (32, 33, 64, 65, 128, 129) if too_long(Path("m"), config, n)]
    assert refused == [n for n in (32, 33, 64, 65, 128, 129) if context and n > context]


# --- slices -------------------------------------------------------------------------------------


def slices_of(**lengths: int) -> list[SliceText]:
    """Slices of their own texts of 12 documents, 3 preview and 5 final windows of these lengths."""
    texts = [f"{chr(97 + i) * 3} {j} " * 40 for i in range(12) for j in range(1)]
    return [
        SliceText(name, name, [f"{name} {t}" for t in texts], WindowPlan(n, 3, 5, 5), SOURCE)
        for name, n in lengths.items()
    ]


def test_slices_stand_in_their_order_and_name_their_documents(
    tiny_folder: Path, tmp_path: Path
) -> None:
    """Each with its length and counts; documents of two texts are never taken for one."""
    path = tmp_path / "windows.json"
    write_windows(path, make_sliced_windows(tiny_folder, slices_of(prose=16, code=16, long=64)))
    found = read_windows(path)
    assert [(part.name, part.seq_len) for part in found.of_slices] == [
        ("prose", 16),
        ("code", 16),
        ("long", 64),
    ]
    assert [len(w.tokens) for w in found.final] == [16] * 10 + [64] * 5
    texts = [window.cluster.partition("/")[0] for window in found.preview]
    assert texts == ["prose"] * 3 + ["code"] * 3 + ["long"] * 3
    assert (found.seq_len, found.counts.preview, found.counts.final) == (16, 9, 15)


def test_slices_of_one_text_share_its_documents(tiny_folder: Path) -> None:
    """So that long and short windows of a document are one cluster of the whole."""
    (first,) = slices_of(prose=16)
    long = replace(first, name="long", plan=replace(first.plan, seq_len=64))
    document = make_sliced_windows(tiny_folder, [first, long])
    assert {w["cluster"].partition("/")[0] for w in document["final"]} == {"prose"}


def test_no_window_is_in_two_slices(tiny_folder: Path) -> None:
    """Two slices of the same text take different windows of it."""
    (first,) = slices_of(prose=16)
    document = make_sliced_windows(tiny_folder, [first, replace(first, name="again")])
    ids = [w["window_id"] for arm in ("preview", "final") for w in document[arm]]
    assert len(set(ids)) == len(ids) == 16


def test_a_slice_that_could_not_pass_is_refused_when_it_is_cut(tiny_folder: Path) -> None:
    """Of fewer than 5 documents nothing is known of how they differ; one text alone has no slice
    to be judged."""
    first, second = slices_of(prose=16, code=16)
    few = replace(second, documents=second.documents[:4])
    with pytest.raises(InputError, match=r"slice code: .* too few documents.*at least 5.*found 4"):
        make_sliced_windows(tiny_folder, [first, few], min_documents=5)
    assert make_sliced_windows(tiny_folder, [few], min_documents=5)["counts"] == {
        "preview": 3,
        "final": 5,
    }


def test_the_line_about_too_little_text_names_the_slice(tiny_folder: Path) -> None:
    """And its numbers."""
    first, second = slices_of(prose=16, code=16)
    short = replace(second, plan=replace(second.plan, final=4000))
    with pytest.raises(InputError, match=r"slice code: too few windows of 16 tokens"):
        make_sliced_windows(tiny_folder, [first, short])


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["slices"][1]["counts"].update(final=6),
        lambda d: d["slices"][1].update(seq_len=17),
        lambda d: d["slices"][1].update(name="prose"),
        lambda d: d["slices"].reverse(),
        lambda d: d["slices"].pop(),
    ],
)
def test_slices_that_do_not_fit_their_windows_are_refused(
    change: object, tiny_folder: Path, tmp_path: Path
) -> None:
    """Counts, lengths and names."""
    document = make_sliced_windows(tiny_folder, slices_of(prose=16, long=64))
    change(document)  # type: ignore[operator]
    path = tmp_path / "windows.json"
    path.write_text(json.dumps(document))
    with pytest.raises(InputError):
        read_windows(path)


@given(st.integers(0, 500), st.integers(1, 9))
def test_windows_are_divided_evenly(windows: int, parts: int) -> None:
    """All of them, and no part has two more than another."""
    found = divided(windows, parts)
    assert sum(found) == windows
    assert max(found) - min(found) <= 1


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({"max_position_embeddings": 8192}, 1024),
        ({"max_position_embeddings": 514}, 512),
        ({"n_positions": 768}, 768),
        ({}, None),
    ],
)
def test_a_long_window_is_as_long_as_the_context(
    config: dict[str, int], wanted: int | None, tmp_path: Path
) -> None:
    """In steps of 64, and at most what is asked for."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert long_length(tmp_path, 1024) == wanted
