"""Tasks: labels as pure functions, losses that are the model's own, records judged right."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from checkpoint_factory import VOCABULARY, make_bert, make_llama, make_t5
from hypothesis import given, settings
from hypothesis import strategies as st

from invarlock.documents.windows import Record, Window
from invarlock.errors import ConfigError, InputError
from invarlock.metrics.kinds import METRICS
from invarlock.metrics.kinds.accuracy import Answered, asked, continuation
from invarlock.metrics.kinds.ppl_mlm import Masking, draws, masked
from invarlock.records import encode_record, parse_record, record_id
from invarlock.run.forward import Keep, batches, logits_function, merge, run_batch
from invarlock.run.loading import Target, load_model
from invarlock.run.tasks import Task, task_for
from invarlock.windows import window_id

CPU32 = Target("cpu", "float32")
MASKING = Masking(4, frozenset(range(5)), np.arange(5, VOCABULARY))
MAKERS = {"ppl_mlm": make_bert, "ppl_seq2seq": make_t5, "ppl_causal": make_llama}


def window(rng: np.random.Generator, length: int = 40) -> Window:
    """A window of random tokens that are not special."""
    tokens = tuple(rng.integers(5, VOCABULARY, length).tolist())
    return Window(window_id(tokens), "doc-0", tokens)


def some_windows(count: int, seed: int = 0, length: int = 40) -> list[Window]:
    """Seeded windows."""
    rng = np.random.default_rng(seed)
    return [window(rng, length) for _ in range(count)]


def content(kind: str = "text", seed: int = 43) -> SimpleNamespace:
    """What a task asks of windows."""
    return SimpleNamespace(kind=kind, seed=seed)


def run(model, examples, budget: int = 200):
    """All examples through a model."""
    probe = {name: torch.tensor([ids]) for name, ids in examples[0].start(8).inputs.items()}
    logits = logits_function(model, probe)
    rows = batches(examples, range(len(examples)), budget)
    return merge(run_batch(logits, examples, mine, Keep(), "cpu") for mine in rows)


# --- masked language models -------------------------------------------------------------------


def test_masks_do_not_depend_on_the_other_windows() -> None:
    """Any order and any subset of the windows gives each the same labels."""
    windows = some_windows(12)
    task = Task(METRICS["ppl_mlm"], partial(masked, MASKING, 7))
    names = [w.window_id for w in windows]
    once = dict(zip(names, task.examples(windows), strict=True))
    np.random.seed(1)  # a global generator plays no part
    for other in (windows[::-1], windows[3:5], windows[:1]):
        assert task.examples(other) == [once[w.window_id] for w in other]


def test_seed_and_content_decide_the_masks() -> None:
    """Another seed or another window gives other masks."""
    first, second = some_windows(2)
    assert masked(MASKING, 1, first).positions != masked(MASKING, 2, first).positions
    assert masked(MASKING, 1, first).positions != masked(MASKING, 1, second).positions


def test_draws_are_the_documented_hash() -> None:
    """The numbers of a position are fixed for good, whatever the platform."""
    words = hashlib.blake2b(b"43:0011223344556677:5", digest_size=24).digest()
    expected = [int.from_bytes(words[i : i + 8], "little") / 2**64 for i in (0, 8, 16)]
    assert draws(43, "0011223344556677", 5) == pytest.approx(expected, abs=1e-15)
    assert expected[0] == pytest.approx(0.6958644075705611)


def test_rates_are_those_of_the_paper() -> None:
    """15 % chosen; of those 80 % masked, 10 % random, 10 % kept: within 5 standard deviations."""
    windows = some_windows(400, length=100)
    examples = [masked(MASKING, 43, w) for w in windows]
    chosen = sum(len(e.positions) for e in examples)
    shown = [
        (e.inputs["input_ids"][p], token)
        for e in examples
        for p, token in zip(e.positions, e.targets, strict=True)
    ]
    mask = sum(now == 4 for now, _ in shown)
    kept = sum(now == was for now, was in shown)
    for found, n, p in ((chosen, 40_000, 0.15), (mask, chosen, 0.8), (kept, chosen, 0.1)):
        # a random token is the right one once in 315, which the bound has room for
        assert abs(found - n * p) < 5 * math.sqrt(n * p * (1 - p)), (found, n, p)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=12), st.integers(0, 2**70))
def test_special_tokens_stay_and_something_is_masked(tokens: list[int], seed: int) -> None:
    """Only ordinary tokens are predicted, at least one, and no other position changes."""
    one = Window(window_id(tokens), "doc-0", tuple(tokens))
    if all(token < 5 for token in tokens):
        with pytest.raises(InputError, match="special tokens only"):
            masked(MASKING, seed, one)
        return
    example = masked(MASKING, seed, one)
    assert len(example.positions) >= 1
    assert [tokens[p] for p in example.positions] == list(example.targets)
    assert min(example.targets) >= 5
    for position, (now, was) in enumerate(zip(example.inputs["input_ids"], tokens, strict=True)):
        assert now == was or (position in example.positions and (now == 4 or now >= 5))


def test_masked_losses_are_the_models_own(tmp_path: Path) -> None:
    """The summed loss of a window is the library's mean loss with labels, times their number."""
    folder = make_bert(tmp_path / "bert")
    windows = some_windows(7)
    task = task_for(folder, content())
    assert (task.metric.name, task.metric.adapter) == ("ppl_mlm", "hf_mlm")
    loaded = load_model(folder, CPU32, task.metric.adapter)
    assert (loaded.missing, loaded.unexpected) == ([], [])  # pooler and sentence head are not meant
    examples = task.examples(windows)
    result = run(loaded.model, examples)
    for i, example in enumerate(examples):
        labels = torch.full((1, 40), -100)
        labels[0, example.positions] = torch.tensor(example.targets)
        ids = torch.tensor([example.inputs["input_ids"]])
        own = float(loaded.model(input_ids=ids, labels=labels).loss)
        assert result.nll_sum[i] == pytest.approx(own * len(example.positions), rel=1e-5)
        assert len(result.logprob[i]) == len(example.positions)


def test_a_tokenizer_without_a_mask_is_refused(tmp_path: Path) -> None:
    """One line says what is missing and where."""
    folder = make_bert(tmp_path / "bert")
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace("[MASK]", "[MUSK]"))
    with pytest.raises(InputError, match="no mask token"):
        task_for(folder, content())


# --- sequence to sequence ----------------------------------------------------------------------


def test_sequence_to_sequence_losses_are_the_models_own(tmp_path: Path) -> None:
    """The second half is predicted from the first; the decoder's shift is the model's."""
    folder = make_t5(tmp_path / "t5")
    windows = [*some_windows(4), *some_windows(3, seed=1, length=31)]
    task = task_for(folder, content())
    assert (task.metric.name, task.metric.adapter) == ("ppl_seq2seq", "hf_seq2seq")
    loaded = load_model(folder, CPU32, task.metric.adapter)
    assert (loaded.missing, loaded.unexpected) == ([], [])
    result = run(loaded.model, task.examples(windows))
    for i, one in enumerate(windows):
        half = len(one.tokens) // 2
        source, target = torch.tensor([one.tokens[:half]]), torch.tensor([one.tokens[half:]])
        own = float(loaded.model(input_ids=source, labels=target).loss)
        assert result.nll_sum[i] == pytest.approx(own * target.shape[1], rel=1e-5)
        assert result.n_tokens()[i] == len(one.tokens) - half


def test_a_model_without_a_start_token_is_refused(tmp_path: Path) -> None:
    """Nothing is invented for the decoder's first token."""
    folder = make_t5(tmp_path / "t5")
    path = folder / "config.json"
    document = json.loads(path.read_text())
    document.pop("decoder_start_token_id")
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match="decoder_start_token_id"):
        task_for(folder, content())


@pytest.mark.parametrize("metric", MAKERS)
def test_logits_are_made_only_where_they_count(metric: str, tmp_path: Path) -> None:
    """The head of each kind of model gives its logits, so that it is run in chunks."""
    folder = MAKERS[metric](tmp_path / "m")
    task = task_for(folder, content())
    assert task.metric.name == metric
    model = load_model(folder, CPU32, task.metric.adapter).model
    example = task.examples(some_windows(1))[0]
    probe = {name: torch.tensor([ids]) for name, ids in example.start(8).inputs.items()}
    assert logits_function(model, probe).__name__ == "by_chunks"


# --- labelled records --------------------------------------------------------------------------


def record(prompt, answers, label: int = 0) -> Record:
    """A record as tokens."""
    prompt, answers = tuple(prompt), tuple(map(tuple, answers))
    return Record(record_id(prompt, answers, label), "c", "r", prompt, answers, label)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny random Llama."""
    return load_model(make_llama(tmp_path_factory.mktemp("tasks") / "m", seed=3), CPU32).model


def token_logprob(model, tokens) -> torch.Tensor:
    """Log-probabilities after each token, in float64, one sequence at a time."""
    with torch.inference_mode():
        return torch.log_softmax(model(input_ids=torch.tensor([tokens])).logits[0].double(), -1)


def test_an_exact_answer_is_what_greedy_decoding_gives(model) -> None:
    """Right answers are made by decoding token by token; a changed last token is wrong."""
    rng = np.random.default_rng(2)
    records, expected = [], []
    for length, n in itertools.product((3, 5), (1, 2, 4)):
        prompt = rng.integers(0, VOCABULARY, length).tolist()
        tokens = list(prompt)
        for _ in range(n):
            tokens.append(int(token_logprob(model, tokens)[-1].argmax()))
        answer = tokens[length:]
        records += [record(prompt, [answer]), record(prompt, [[*answer[:-1], answer[-1] ^ 1]])]
        expected += [True, False]
    assert answered(model, records) == expected


def answered(model, records) -> list[bool]:
    """Whether the model gets each record right."""
    examples = [asked(one) for one in records]
    right = run(model, examples)
    wrong, owners = METRICS["accuracy"].others(records, asked)
    lost = run(model, wrong).nll_sum if wrong else {}
    return [
        Answered(
            right.nll_sum[i],
            right.top1[i].tolist() == list(example.targets),
            [lost[j] for j, owner in enumerate(owners) if owner == i],
        ).correct
        for i, example in enumerate(examples)
    ]


def test_a_choice_is_right_when_it_is_the_most_likely(model) -> None:
    """Brute force over all choices, of unequal lengths, with every label."""
    rng = np.random.default_rng(4)
    for _ in range(6):
        prompt = rng.integers(0, VOCABULARY, 4).tolist()
        choices = [rng.integers(0, VOCABULARY, n).tolist() for n in (1, 2, 2, 1)]
        totals = []
        for choice in choices:
            rows = token_logprob(model, [*prompt, *choice])[len(prompt) - 1 :]
            totals.append(sum(float(rows[i, token]) for i, token in enumerate(choice)))
        best = max(range(4), key=totals.__getitem__)
        found = answered(model, [record(prompt, choices, label) for label in range(4)])
        assert found == [label == best for label in range(4)]


@pytest.mark.parametrize(
    ("case", "correct"),
    [
        (Answered(1.0, False, [1.5, 2.0]), True),
        (Answered(1.0, True, [1.0, 2.0]), False),  # a tie is wrong
        (Answered(1.0, True, []), True),
        (Answered(1.0, False, []), False),
        (Answered(math.nan, True, []), False),
        (Answered(1.0, True, [math.nan]), False),
    ],
)
def test_what_counts_as_right(case: Answered, correct: bool) -> None:
    """Ties and losses that are not numbers are never right."""
    assert case.correct is correct


def test_an_answer_is_predicted_from_its_prompt() -> None:
    """The last prompt token predicts the first answer token; no more is run than needed."""
    example = continuation([7, 8, 9], [1, 2])
    assert example.inputs == {"input_ids": [7, 8, 9, 1]}
    assert list(example.positions) == [2, 3]
    assert list(example.targets) == [1, 2]


@pytest.mark.parametrize("maker", [make_bert, make_t5])
def test_records_need_a_causal_model(maker, tmp_path: Path) -> None:
    """Other models do not continue a prompt."""
    with pytest.raises(ConfigError, match="need a causal"):
        task_for(maker(tmp_path / "m"), content("records"))


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ({"prompt": "a"}, "unlabelled record"),
        ({"prompt": "a", "choices": ["b", "c"]}, "unlabelled record"),
        ({"prompt": "a", "answer": None}, "unlabelled record"),
        ({"answer": "b"}, "without a prompt"),
        ({"prompt": "a", "answer": 3}, "not a text"),
        ({"prompt": "a", "answer": 2, "choices": ["b", "c"]}, "none of the choices"),
        ({"prompt": "a", "answer": True, "choices": ["b", "c"]}, "none of the choices"),
        ({"prompt": "a", "answer": "d", "choices": ["b", "c"]}, "none of the choices"),
        ({"prompt": "a", "answer": 0, "choices": ["b"]}, "not two texts"),
        ({"prompt": "a", "answer": 0, "choices": ["b", "b"]}, "given twice"),
        (["a"], "not an object"),
    ],
)
def test_a_record_that_cannot_be_judged_is_refused(value: object, line: str) -> None:
    """One line that names file and line of the record."""
    with pytest.raises(InputError, match=line) as caught:
        parse_record(value, "q.jsonl:7", 7)
    assert str(caught.value).startswith("q.jsonl:7: ")
    assert "\n" not in str(caught.value)


def test_answers_are_given_by_index_or_text() -> None:
    """Both forms of a labelled choice mean the same record."""
    texts = {"prompt": "a", "choices": ["b", "c"], "id": "x", "cluster": "k"}
    by_index = parse_record({**texts, "answer": 1}, "f:1", 1)
    assert by_index == parse_record({**texts, "answer": "c"}, "f:1", 1)
    assert (by_index.record, by_index.cluster, by_index.label) == ("x", "k", 1)
    plain = parse_record({"prompt": "a", "answer": "b"}, "f:9", 9)
    assert (plain.record, plain.cluster, plain.answers) == ("9", "record-9", ("b",))


def test_long_and_empty_records_are_refused() -> None:
    """The limit is that of the windows; an answer must have a token."""
    labelled = parse_record({"prompt": "abc", "answer": "de"}, "f:1", 1)
    assert encode_record(labelled, lambda text: list(text.encode()), 5).length == 5
    with pytest.raises(InputError, match=r"f:1.*at most 4 tokens"):
        encode_record(labelled, lambda text: list(text.encode()), 4)
    with pytest.raises(InputError, match="without a token"):
        encode_record(labelled, lambda text: [], 9)
