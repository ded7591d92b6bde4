"""Rows of embeddings and heads: silent for what all rows have in common, loud for what few do."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from checkpoint_factory import make_bert, make_folder, make_llama, make_t5, write_weights
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from invarlock.checkpoints import Checkpoint
from invarlock.damage.inject import inject
from invarlock.damage.specs import parse_damage
from invarlock.guards import row_changes, rows
from invarlock.guards.row_changes import measure_rows, special_ids, token_texts, tokenizer_of
from invarlock.guards.rows import ListedRow, RowTable
from invarlock.policy import load_policy

POLICY = load_policy("balanced").spectral.rows
EMBED, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
# With half of its values removed a row of 24 may stand out by chance, and none of 64 did in 1,500.
N, D = 400, 64
Tensors = Mapping[str, torch.Tensor]
Change = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def seeded(seed: int) -> torch.Generator:
    """A generator of its own."""
    return torch.Generator().manual_seed(seed)


def embedding(seed: int = 0, n: int = N, d: int = D) -> torch.Tensor:
    """Rows as models have them: a common part, unequal directions, unequal lengths."""
    g = seeded(seed)
    spread = torch.linspace(0.5, 2.0, d)
    lengths = 0.6 + 0.8 * torch.rand(n, 1, generator=g)
    return torch.randn(1, d, generator=g) + lengths * spread * torch.randn(n, d, generator=g)


def orthogonal(seed: int, d: int = D) -> torch.Tensor:
    """A random rotation (or reflection)."""
    return torch.linalg.qr(torch.randn(d, d, generator=seeded(seed)))[0]


def folder(path: Path, tensors: Tensors, kind: str = "llama", **config: object) -> Checkpoint:
    """A checkpoint of these tensors alone."""
    shutil.rmtree(path, ignore_errors=True)
    plain = {name: tensor.contiguous() for name, tensor in tensors.items()}
    return Checkpoint.open(make_folder(path, {"model_type": kind, **config}, plain))


def measured(root: Path, before: Tensors, after: Tensors, kind: str = "llama") -> list[RowTable]:
    """The records of two sets of tensors; they hold no contradiction and survive JSON."""
    tables = measure_rows(
        folder(root / "baseline", before, kind), folder(root / "subject", after, kind)
    )
    assert rows.contradictions(tables) == []
    assert rows.from_json(json.loads(json.dumps(rows.to_json(tables)))) == tables
    return tables


def found(tables: list[RowTable]) -> dict[str, int]:
    """Rows that are findings, by table."""
    return {f["module"]: f["rows"] for f in rows.findings(rows.judge(tables, POLICY))}


def rounded_to(bits: int, weight: torch.Tensor) -> torch.Tensor:
    """Symmetric round to nearest, one scale a row."""
    scale = weight.abs().amax(dim=1, keepdim=True) / (2 ** (bits - 1) - 1)
    return (weight / scale.clamp_min(1e-12)).round() * scale


def pruned(share: float, weight: torch.Tensor) -> torch.Tensor:
    """The smallest values of the whole matrix removed."""
    least = weight.abs().flatten().kthvalue(max(1, int(weight.numel() * share))).values
    return weight.where(weight.abs() > least, 0.0)


HARMLESS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "none": lambda w: w,
    "bf16": lambda w: w.bfloat16().float(),
    "fp16": lambda w: w.half().float(),
    "8 bit": lambda w: rounded_to(8, w),
    "4 bit": lambda w: rounded_to(4, w),
    "fp8": lambda w: w.to(torch.float8_e4m3fn).float(),
    "pruned 0.1": lambda w: pruned(0.1, w),
    "pruned 0.3": lambda w: pruned(0.3, w),
    "pruned 0.5": lambda w: pruned(0.5, w),
}
COMMON: dict[str, Callable[[int, torch.Tensor], torch.Tensor]] = {
    "same": lambda _, w: w,
    "rotated": lambda seed, w: w @ orthogonal(seed),
    "permuted": lambda seed, w: w[:, torch.randperm(D, generator=seeded(seed))],
    "scaled": lambda seed, w: (0.1 + seed % 7) * w,
    "shifted": lambda seed, w: w + torch.randn(1, D, generator=seeded(seed)),
    "rotated, scaled and shifted": lambda seed, w: (
        3 * w @ orthogonal(seed) + torch.randn(1, D, generator=seeded(seed))
    ),
}
# The rows chosen (indices), in the whole table.
DAMAGE: dict[str, Change] = {
    "exchanged": lambda w, i: w[i.roll(1)],
    "rotated": lambda w, i: w[i] @ orthogonal(99),
    "copied": lambda w, i: w[:1].expand(len(i), -1),
    "zeroed": lambda w, i: torch.zeros(len(i), w.shape[1]),
    "sign flipped": lambda w, i: -w[i],
    "drawn again": lambda w, i: torch.randn(len(i), w.shape[1], generator=seeded(98)),
}


def damaged(weight: torch.Tensor, change: Change, index: torch.Tensor) -> torch.Tensor:
    """The table with the chosen rows changed."""
    result = weight.clone()
    result[index] = change(weight, index)
    return result


# --- what leaves the function alone, or nearly ------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(HARMLESS)), st.sampled_from(sorted(COMMON)), st.integers(0, 999))
def test_harmless_edits_under_any_common_transform_are_silent(
    tmp_path_factory: pytest.TempPathFactory, edit: str, common: str, seed: int
) -> None:
    """Any rotation, permutation, scale or shift, with rounding or pruning on top."""
    before = embedding(seed)
    after = HARMLESS[edit](COMMON[common](seed + 1, before))
    root = tmp_path_factory.mktemp("harmless")
    assert found(measured(root, {EMBED: before}, {EMBED: after})) == {}


def test_a_copy_has_not_moved_at_all(tmp_path: Path) -> None:
    """Exact zeros, and nothing to list."""
    [table] = measured(tmp_path, {EMBED: embedding()}, {EMBED: embedding()})
    assert (table.typical, table.above, table.listed) == (0.0, (), ())
    assert (table.rows, table.transform) == (N, "shift")


def test_frequent_rows_may_move_more_than_others(tmp_path: Path) -> None:
    """Fine-tuning moves what its text uses, and leaves the rest of an untied embedding."""
    before = embedding()
    after = before.clone()
    steps = torch.linspace(0.0, 0.3, 100)[:, None]
    after[:100] += steps * 1.2 * torch.randn(100, D, generator=seeded(5)) / 1.5
    assert found(measured(tmp_path, {EMBED: before}, {EMBED: after})) == {}


@pytest.mark.parametrize("tied", [False, True])
def test_a_norm_folded_into_the_head_is_silent(tmp_path: Path, tied: bool) -> None:
    """The head changes a lot, channel by channel, and is turned with the stream as well."""
    norm = torch.exp(torch.randn(D, generator=seeded(3)))
    turn, table = orthogonal(4), embedding()
    head = table if tied else embedding(9)
    before = {EMBED: table, NORM: norm} | ({} if tied else {HEAD: head})
    after = {EMBED: table @ turn, HEAD: (head * norm) @ turn, NORM: torch.ones(D)}
    assert found(measured(tmp_path, before, after)) == {}
    index = torch.tensor([17, 203])
    after[HEAD] = damaged(after[HEAD], DAMAGE["exchanged"], index)
    assert found(measured(tmp_path, before, after)) == {HEAD: 2}


def test_a_head_stored_beside_an_equal_embedding_is_silent(tmp_path: Path) -> None:
    """It is held against the embedding that the baseline's head is."""
    before = {EMBED: embedding(), NORM: torch.full((D,), 2.0)}
    assert found(measured(tmp_path, before, {**before, HEAD: embedding()})) == {}
    assert [t.name for t in measured(tmp_path, before, before)] == [EMBED]
    assert found(measured(tmp_path, before, {**before, HEAD: embedding().roll(1, 0)})) != {}


def test_rows_beyond_the_baseline_are_counted_and_judged_by_nothing(tmp_path: Path) -> None:
    """A vocabulary padded by mean rows, and one that was cut."""
    before = embedding()
    padded = torch.cat([before, before.mean(dim=0, keepdim=True).expand(64, -1)])
    tables = measured(tmp_path, {EMBED: before}, {EMBED: padded})
    assert [(t.rows, t.baseline_only, t.subject_only) for t in tables] == [(N, 0, 64)]
    assert found(tables) == {}
    tables = measured(tmp_path, {EMBED: padded}, {EMBED: before})
    assert [(t.rows, t.baseline_only, t.subject_only) for t in tables] == [(N, 64, 0)]
    assert found(tables) == {}


# --- damage -----------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(sorted(DAMAGE)),
    st.sampled_from(sorted(COMMON)),
    st.integers(2, N // 4),
    st.integers(0, 999),
)
def test_damaged_rows_are_counted_and_named_under_any_common_transform(
    tmp_path_factory: pytest.TempPathFactory, kind: str, common: str, count: int, seed: int
) -> None:
    """From two rows to a quarter of them: as many as were damaged, and none that was not."""
    before = embedding(seed)
    # row 0 is what is copied, and stays
    index = 1 + torch.randperm(N - 1, generator=seeded(seed))[:count]
    after = COMMON[common](seed + 1, damaged(before, DAMAGE[kind], index))
    tables = measured(tmp_path_factory.mktemp("d"), {EMBED: before}, {EMBED: after})
    [judged] = rows.judge(tables, POLICY)
    # rows that happen to lie close to what replaced them may count as unchanged
    assert count - count // 20 <= judged["rows"] <= count
    assert {row["row"] for row in judged["listed"]} <= set(index.tolist())


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(HARMLESS)), st.integers(2, N // 4), st.integers(0, 999))
def test_exchanged_rows_are_found_under_rounding_and_pruning(
    tmp_path_factory: pytest.TempPathFactory, edit: str, count: int, seed: int
) -> None:
    """Noise of all rows does not hide what some of them hold now."""
    before = embedding(seed)
    index = torch.randperm(N, generator=seeded(seed))[:count]
    after = HARMLESS[edit](damaged(before, DAMAGE["exchanged"], index))
    tables = measured(tmp_path_factory.mktemp("d"), {EMBED: before}, {EMBED: after})
    assert found(tables)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.86, 1.0])
def test_most_rows_exchanged_are_found_although_the_others_are_few(
    tmp_path: Path, share: float
) -> None:
    """There is no limit that grows with the damage itself."""
    index = torch.randperm(N, generator=seeded(1))[: int(share * N)]
    after = damaged(embedding(), DAMAGE["exchanged"], index)
    [count] = found(measured(tmp_path, {EMBED: embedding()}, {EMBED: after})).values()
    assert 0.8 * share * N <= count <= share * N


def test_two_special_rows_that_are_nearly_alike_are_found(tmp_path: Path) -> None:
    """They change little, and hold each other's content to the bit."""
    before = embedding()
    before[2] = before[1] + 0.25 * (before[3] - before.mean(dim=0))
    after = damaged(before, DAMAGE["exchanged"], torch.tensor([1, 2]))
    for turned in (after, after @ orthogonal(8)):
        tables = measured(tmp_path, {EMBED: before}, {EMBED: turned})
        [judged] = rows.judge(tables, POLICY)
        assert judged["limit"] > judged["largest"]
        assert [(row["row"], row["closest"]) for row in judged["listed"]] in (
            [(1, 2), (2, 1)],
            [(2, 1), (1, 2)],
        )


def test_rows_that_were_equal_before_cannot_be_told_apart(tmp_path: Path) -> None:
    """Unused tokens often share one row: no noise makes one of them another's."""
    before = embedding()
    before[5:17] = before[5]
    assert found(measured(tmp_path, {EMBED: before}, {EMBED: rounded_to(4, before)})) == {}


def test_changes_are_what_the_definition_says(tmp_path: Path) -> None:
    """Brute force, in float64, for one damaged table."""
    before, index = embedding(), torch.arange(40, 60)
    after = damaged(rounded_to(4, before), DAMAGE["rotated"], index)
    [table] = measured(tmp_path, {EMBED: before}, {EMBED: after})
    b, s = before.double(), after.double()
    unit = (b - b.mean(dim=0)).norm(dim=1)
    shift = (s - b).median(dim=0).values
    change = (s - shift - b).norm(dim=1) / unit.clamp_min(float(unit.median()) / 2)
    assert table.typical == pytest.approx(float(change.median()), rel=1e-4)
    counts = [int((change > rows.edge_of(k)).sum()) for k in range(1, rows.STEPS + 1)]
    assert list(table.above) == counts[: len(table.above)]
    assert sum(counts) == sum(table.above)
    worst = change.argsort(descending=True)[: rows.LISTED]
    assert [row.row for row in table.listed[: rows.LISTED]] == worst.tolist()
    distances = torch.cdist(s[worst] - shift, b)
    distances[range(len(worst)), worst] = math.inf
    assert [r.nearest for r in table.listed[: rows.LISTED]] == distances.argmin(dim=1).tolist()


def test_a_table_is_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is that of a block; the result does not depend on its size."""
    after = damaged(embedding(), DAMAGE["exchanged"], torch.tensor([3, 390, 77]))
    whole = measured(tmp_path, {EMBED: embedding()}, {EMBED: after})
    monkeypatch.setattr(row_changes, "BLOCK_ELEMENTS", 7 * D)
    parts = measured(tmp_path, {EMBED: embedding()}, {EMBED: after})
    assert [row.row for row in parts[0].listed] == [row.row for row in whole[0].listed]
    assert parts[0].above == whole[0].above


# --- situations that people report ------------------------------------------------------------


def shards_exchanged(parts: int, weight: torch.Tensor) -> torch.Tensor:
    """The first and the last of so many parts in each other's place."""
    shards = list(weight.chunk(parts))
    shards[0], shards[-1] = shards[-1], shards[0]
    return torch.cat(shards)


# The table as it was, and how many of its rows are found at least and at most.
SITUATIONS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], float, int]] = {
    "two models of a merge added the same tokens in another order": (
        lambda w: torch.cat([w[:-5], w[-5:].roll(-1, 0)]), 5, 5),
    "the last rows are the initializer's: resized before an adapter was merged": (
        lambda w: torch.cat([w[:-3], 0.02 * torch.randn(3, D, generator=seeded(6))]), 3, 3),
    "two of two tensor-parallel parts of the vocabulary change places": (
        lambda w: shards_exchanged(2, w), 0.8 * N, N),
    "two of four": (lambda w: shards_exchanged(4, w), 0.8 * N / 2, N),
    "a converter that leaves out the padding row moves all others up": (
        lambda w: w.roll(1, 0), 0.8 * N, N),
}  # fmt: skip


@pytest.mark.parametrize("name", SITUATIONS)
def test_what_people_report_is_found(tmp_path: Path, name: str) -> None:
    """Rows that stand in another place than their tokens."""
    change, least, most = SITUATIONS[name]
    [count] = found(measured(tmp_path, {EMBED: embedding()}, {EMBED: change(embedding())})).values()
    assert least <= count <= most


# --- other tables, other architectures --------------------------------------------------------

WTE, WPE = "transformer.wte.weight", "transformer.wpe.weight"


def gpt2() -> dict[str, torch.Tensor]:
    """Token and position table; the latter has fewer rows than a rotation needs."""
    return {WTE: embedding(1), WPE: embedding(2, n=40)}


def test_positions_beyond_the_windows_are_looked_at_too(tmp_path: Path) -> None:
    """Rows 30 and 31 of 40; they are no tokens and have no text."""
    after = gpt2()
    after[WPE] = damaged(after[WPE], DAMAGE["exchanged"], torch.tensor([30, 31]))
    tables = measured(tmp_path, gpt2(), after, "gpt2")
    [finding] = rows.findings(rows.judge(tables, POLICY))
    assert (finding["type"], finding["module"], finding["rows"]) == ("table_rows", WPE, 2)
    assert [row["token"] for row in finding["listed"]] == [None, None]


def test_a_short_table_turns_with_the_tokens(tmp_path: Path) -> None:
    """40 rows do not give a rotation of 24 channels; the embedding's is theirs."""
    order = torch.randperm(D, generator=seeded(3))
    after = {name: table[:, order] for name, table in gpt2().items()}
    tables = measured(tmp_path, gpt2(), after, "gpt2")
    assert found(tables) == {}
    assert {table.transform for table in tables} == {"rotation"}
    after[WPE] = damaged(after[WPE], DAMAGE["sign flipped"], torch.tensor([39]))
    assert found(measured(tmp_path, gpt2(), after, "gpt2")) == {WPE: 1}


def test_a_token_type_folded_into_the_words_is_silent(tmp_path: Path) -> None:
    """Tables that are summed may pass a vector to each other."""
    prefix = "bert.embeddings."
    words, places = f"{prefix}word_embeddings.weight", f"{prefix}position_embeddings.weight"
    before = {words: embedding(1), places: embedding(2, n=60)}
    vector = torch.randn(1, D, generator=seeded(4))
    after = {words: before[words] + vector, places: before[places] - vector}
    assert found(measured(tmp_path, before, after, "bert")) == {}


@pytest.mark.parametrize("make", [make_llama, make_bert, make_t5])
def test_every_kind_of_model_has_its_tables_looked_at(
    tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    """As the library writes them: what has at least 16 rows and stands for something."""
    base = make(tmp_path / "base")
    tables = measure_rows(Checkpoint.open(base), Checkpoint.open(base))
    names = {table.name: table.kind for table in tables}
    assert {
        make_llama: {EMBED: "token"},
        make_bert: {
            "bert.embeddings.word_embeddings.weight": "token",
            "bert.embeddings.position_embeddings.weight": "other",
        },
        make_t5: {
            "shared.weight": "token",
            **{
                f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight": "other"
                for stack in ("encoder", "decoder")
            },
        },
    }[make] == names


def test_the_catalogued_damage_is_found_and_named(tmp_path: Path) -> None:
    """A tenth of the vocabulary, with the text of its tokens."""
    base = make_llama(tmp_path / "base", tied=False)
    damage = parse_damage("token_rows_exchanged", {})
    inject(Checkpoint.open(base), damage, tmp_path / "out", 1)
    tables = measure_rows(Checkpoint.open(base), Checkpoint.open(tmp_path / "out"))
    judged = rows.judge(tables, POLICY)
    assert [(j["module"], j["rows"]) for j in judged] == [(HEAD, 32), (EMBED, 32)]
    before, after = (load_file(f / "model.safetensors") for f in (base, tmp_path / "out"))
    differ = (before[EMBED] != after[EMBED]).any(dim=1).nonzero().squeeze(1).tolist()
    assert len(differ) == 32
    assert min(differ) >= 32
    assert differ == (before[HEAD] != after[HEAD]).any(dim=1).nonzero().squeeze(1).tolist()
    for table in judged:
        assert {row["row"] for row in table["listed"]} <= set(differ)
        assert all(row["token"] for row in table["listed"])


# --- words and records ------------------------------------------------------------------------


def test_token_texts_are_printable_and_short(tmp_path: Path) -> None:
    """Whatever a vocabulary holds: a line of a terminal stays a line."""
    vocabulary = {"\u0120the": 0, "\u2581und": 1, "a\nb\x1b[31m": 2, "\u202eabc": 3, "x" * 99: 4}
    document = {
        "model": {"vocab": vocabulary},
        "added_tokens": [
            {"id": 5, "content": "<|end|>", "special": True},
            {"id": 6},
            {"id": 7, "special": "yes"},
            7,
        ],
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    texts = token_texts(tokenizer_of(tmp_path), range(9))
    assert texts[0] == " the"
    assert texts[1] == " und"
    assert texts[5] == "<|end|>"
    assert special_ids(tokenizer_of(tmp_path)) == {5}
    assert texts[2] == "a\\nb\\x1b[31m"
    assert texts[3] == "\\u202eabc"
    assert len(texts[4]) == 40
    assert set(texts) == {0, 1, 2, 3, 4, 5}
    unigram = {"model": {"vocab": [["<unk>", 0.0], ["\u2581a", -1.0], [], "b"]}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(unigram))
    assert token_texts(tokenizer_of(tmp_path), [0, 1, 2, 3, 99]) == {0: "<unk>", 1: " a"}
    assert token_texts(tokenizer_of(tmp_path / "nowhere"), [0]) == {}


def table(**changes: object) -> RowTable:
    """A record of 100 rows of which three changed."""
    listed = tuple(
        ListedRow(i, f"t{i}", c, 9, "t9", 2.0) for i, c in ((7, 1.2), (3, 1.1), (5, 0.3))
    )
    plain = RowTable(
        "e", "embed", "token", 100, 0, 0, "shift", 0.01, (3, 3, 3, 3, 3, 2, *[2] * 15, 1, 1), listed
    )
    return plain._replace(**changes)


def test_limits_and_counts_are_known_answers() -> None:
    """factor times the median, within its limits, rounded up to a step of the counts."""
    assert [rows.limit_of(t, POLICY) for t in (0.0, 0.1, 0.12, 0.2, 0.3, 9.0)] == [
        0.4, 0.4, 0.45, 0.7, 1.05, 1.1,
    ]  # fmt: skip
    assert rows.contradictions([table()]) == []
    [finding] = rows.findings(rows.judge([table()], POLICY))
    assert finding["rows"] == 2
    assert rows.sentence(finding) == (
        "e: 2 of 100 token rows changed far beyond the others (limit 0.40, half of all within"
        " 0.01): 7 't7', 3 't3'"
    )
    moved = table(listed=(*table().listed[:2], ListedRow(5, "t5", 0.3, 9, "t9", 0.0)))
    [finding] = rows.findings(rows.judge([moved], POLICY))
    assert finding["rows"] == 3
    assert rows.sentence(finding, 3).endswith("5 't5' (now closest to 9 't9')")
    assert rows.sentence(finding, 1).endswith("7 't7' and 2 more")


def test_only_rows_of_special_tokens_that_stayed_their_own_have_a_name() -> None:
    """Each of them known: one more than is listed is not."""
    three = tuple(ListedRow(i, f"<{i}>", 1.2 - i / 100, 9, "t9", 2.0, True) for i in range(3))
    known = table(above=(3,) * 24, listed=three)
    (finding,) = rows.findings(rows.judge([known], POLICY))
    assert finding["accept"] == rows.SPECIAL_ROWS
    assert rows.sentence(finding).endswith(
        "2 '<2>'; all are special tokens, to be accepted as special_token_rows"
    )
    assert rows.from_json(rows.to_json([known])) == [known]
    for other in (
        known._replace(listed=(*three[:2], three[2]._replace(special=False))),
        known._replace(listed=(*three[:2], three[2]._replace(nearest_change=0.1))),
        known._replace(above=(4,) * 24),
    ):
        (finding,) = rows.findings(rows.judge([other], POLICY))
        assert "accept" not in finding
        assert "special tokens" not in rows.sentence(finding)


@pytest.mark.parametrize(
    "change",
    [
        {"above": ()},
        {"above": (3, 3, 3, 3, 3, 2, *[2] * 15, 1, 2)},
        {"above": (2, 2, 2, 2, 2, 2, *[2] * 15, 1, 1)},
        {"above": (*table().above, 0)},
        {"above": (99,)},
        {"rows": 7},
        {"typical": 0.9},
        {"typical": -0.1},
        {"typical": math.nan},
        {"subject_only": -1},
        {"kind": "nothing"},
        {"listed": ()},
        {"listed": table().listed[1:]},
        {"listed": table().listed[::-1]},
        {"listed": (table().listed[0]._replace(change=0.2), *table().listed[1:])},
        {"listed": (table().listed[0]._replace(row=100), *table().listed[1:])},
        {"listed": (table().listed[0]._replace(nearest=100), *table().listed[1:])},
        {"listed": (table().listed[0], *table().listed[:2])},
    ],
    ids=str,
)
def test_a_record_that_contradicts_itself_is_refused(change: dict[str, object]) -> None:
    """Counts, median and listed rows hold each other."""
    assert rows.contradictions([table(**change)]) != []


def test_a_checkpoint_whose_rows_were_rewritten_by_hand(tmp_path: Path) -> None:
    """The same through files of several shards and bfloat16, as they are stored."""
    base = make_llama(tmp_path / "base", shards=3)
    tensors = {k: v for f in sorted(base.glob("*.safetensors")) for k, v in load_file(f).items()}
    subject = shutil.copytree(base, tmp_path / "subject")
    tensors[EMBED][[50, 60]] = tensors[EMBED][[60, 50]]
    write_weights(subject, tensors, 3)
    assert found(measure_rows(Checkpoint.open(base), Checkpoint.open(subject))) == {EMBED: 2}
