"""Windows and runs of masked, sequence-to-sequence and record tasks, from file to report."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from checkpoint_factory import make_bert, make_llama, make_t5

from invarlock.checkpoints import Checkpoint
from invarlock.cli import main
from invarlock.errors import InputError
from invarlock.policy import load_policy
from invarlock.run.loading import Target
from invarlock.run.measure import Measurement, RunWindows, measure_checkpoint
from invarlock.run.report import RunSettings, run_report
from invarlock.windows import WindowPlan, make_windows, read_windows, write_windows

CPU32 = Target("cpu", "float32")
SETTINGS = RunSettings("acme/tiny", 43, 128, "dev", "balanced")


def measure(folder: Path, windows: RunWindows, against=None, budget: int = 128) -> Measurement:
    """One run."""
    checkpoint = Checkpoint.open(folder)
    return measure_checkpoint(checkpoint, windows, CPU32, token_budget=budget, against=against)


def report(folder: Path, windows: RunWindows, measured: Measurement):
    """Its run report."""
    identity, policy = Checkpoint.open(folder).identity(), load_policy("balanced")
    return run_report(SETTINGS, identity, windows, [], measured, {}, policy)


def write_records(path: Path, count: int = 24) -> list[dict]:
    """Labelled records: every third an exact answer, the others choices of unequal length."""
    records: list[dict] = []
    for i in range(count):
        one = {"prompt": f"question {i} of the state:", "cluster": f"topic-{i % 4}", "extra": i}
        if i % 3 == 0:
            records.append(one | {"answer": " the"})
        else:
            choices = [" peace", " the people and the law", f" trade {i}"]
            records.append(one | {"choices": choices, "answer": i // 3 % 3, "id": f"q{i}"})
    lines = "".join(json.dumps(record) + "\n\n" for record in records)
    path.write_bytes(gzip.compress(lines.encode()) if path.suffix == ".gz" else lines.encode())
    return records


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder with a tiny Llama; pins a text and cuts windows from it by command line."""
    monkeypatch.chdir(tmp_path)
    make_llama(tmp_path / "m", seed=3)

    def cut(text: str, *more: str) -> int:
        pinned = ["pin", "--suite", "s", "--model", "acme/tiny=local:m", "--text", text]
        assert main([*pinned, "--out", "r.json"]) == 0
        words = {"--seq-len": "40", "--preview": "8", "--final": "12", "--seed": "5"}
        words |= dict(zip(more[::2], more[1::2], strict=True))
        options = [part for item in words.items() for part in item]
        sources = ["--tokenizer", "m", "--text", text, "--revisions", "r.json", "--out", "w.json"]
        return main(["windows", *sources, *options])

    return cut


@pytest.mark.parametrize("name", ["q.jsonl", "q.jsonl.gz"])
def test_records_become_windows(name: str, place, tmp_path: Path) -> None:
    """Every chosen record is one of the file's, with its label, id and cluster, in one arm only."""
    records = write_records(tmp_path / name)
    assert place(f"local:{name}?metric=accuracy") == 0
    found = read_windows(tmp_path / "w.json")
    assert (found.kind, len(found.preview), len(found.final)) == ("records", 8, 12)
    chosen = [*found.preview, *found.final]
    assert len({one.window_id for one in chosen}) == 20
    for one in chosen:
        line = int(one.record.removeprefix("q"))
        number = line if one.record.startswith("q") else (line - 1) // 2  # blank lines count
        assert one.cluster == records[number]["cluster"]
        assert len(one.answers) == len(records[number].get("choices", [0]))
        assert one.label == (records[number]["answer"] if len(one.answers) > 1 else 0)


def test_the_seed_decides_the_records(place, tmp_path: Path) -> None:
    """The same seed gives the same bytes, another seed other arms; equal records count once."""
    write_records(tmp_path / "q.jsonl")
    text, seen = "local:q.jsonl?metric=accuracy", []
    for seed in ("5", "5", "6"):
        assert place(text, "--seed", seed) == 0
        seen.append((tmp_path / "w.json").read_bytes())
    assert seen[0] == seen[1]
    assert json.loads(seen[0])["final"] != json.loads(seen[2])["final"]
    line = json.dumps({"prompt": "a question", "answer": " the"}) + "\n"
    (tmp_path / "q.jsonl").write_text(line * 40)
    assert place(text) == 3


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"prompt": "a"}', ("q.jsonl:3", "unlabelled")),
        ('{"text": "a"}', ("q.jsonl:3", "without a prompt")),
        ("{", ("q.jsonl:3", "JSON")),
        (json.dumps({"prompt": "law " * 60, "answer": " a"}), ("q.jsonl:3", "at most 40 tokens")),
    ],
)
def test_a_bad_record_is_named_by_line(line: str, words, place, tmp_path: Path, capsys) -> None:
    """One line with file and line number, exit 3, no windows."""
    good = json.dumps({"prompt": "a question", "answer": " the"})
    (tmp_path / "q.jsonl").write_text(f"{good}\n\n{line}\n")
    assert place("local:q.jsonl?metric=accuracy") == 3
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert all(word in said for word in words), said
    assert not (tmp_path / "w.json").exists()


def test_labelled_records_are_json_lines(place, tmp_path: Path, capsys) -> None:
    """A text file cannot hold them, and there is no other metric to ask for."""
    (tmp_path / "t.txt").write_text("text")
    assert place("local:t.txt?metric=accuracy") == 2
    assert "JSON lines" in capsys.readouterr().err
    assert main(["windows", "--tokenizer", "m", "--text", "local:t.txt?metric=f1",
                 "--revisions", "r.json", "--out", "w.json", "--seq-len", "9", "--preview", "1",
                 "--final", "1", "--seed", "1"]) == 2  # fmt: skip
    assert "auto or accuracy" in capsys.readouterr().err


def test_a_changed_record_is_refused(place, tmp_path: Path) -> None:
    """Label and tokens are part of a record's id."""
    write_records(tmp_path / "q.jsonl")
    assert place("local:q.jsonl?metric=accuracy") == 0
    path = tmp_path / "w.json"
    document = json.loads(path.read_text())
    row = next(r for r in document["final"] if len(r["answers"]) > 1)
    row["label"] = (row["label"] + 1) % 3
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match="does not fit the tokens"):
        read_windows(path)
    row["label"] = 3
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match="names no answer"):
        read_windows(path)


def test_a_run_of_records_says_which_are_right(place, tmp_path: Path) -> None:
    """The report holds losses of the right answers, and correctness by batch-independent rules."""
    write_records(tmp_path / "q.jsonl")
    assert place("local:q.jsonl?metric=accuracy") == 0
    windows, folder = RunWindows.read(tmp_path / "w.json", None), tmp_path / "m"
    measured = measure(folder, windows)
    written = report(folder, windows, measured)
    assert (written["meta"]["metric"], written["meta"]["adapter"]) == ("accuracy", "hf_causal")
    assert written["data"]["kind"] == "records"
    for arm in ("preview", "final"):
        rows, records = written["evaluation_windows"][arm], windows.arm(arm)
        assert rows["token_counts"] == [len(r.answers[r.label]) for r in records]
        assert rows["clusters"] == [r.cluster for r in records]
        assert {type(answer) for answer in rows["correct"]} == {bool}
        assert len(rows["correct"]) == len(records)
    answers = {answer for arm in measured.columns.values() for answer in arm["correct"]}
    assert answers == {False, True}
    one_by_one = measure(folder, windows, measured.reference_arrays(), budget=1)
    assert one_by_one.columns == measured.columns
    np.testing.assert_allclose(
        one_by_one.arms["final"].losses(), measured.arms["final"].losses(), rtol=1e-5
    )
    np.testing.assert_allclose(one_by_one.arms["final"].joined("kl"), 0, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "metric", "adapter", "tokens"),
    [(make_bert, "ppl_mlm", "hf_mlm", None), (make_t5, "ppl_seq2seq", "hf_seq2seq", 16)],
)
def test_a_run_of_another_kind_of_model(make, metric, adapter, tokens, tmp_path: Path) -> None:
    """Baseline and subject are measured alike, by any batch size, with all of the guards."""
    folder = make(tmp_path / "m")
    rng = np.random.default_rng(1)
    texts = ["".join(rng.choice(list("etaoin "), 300)) for _ in range(12)]
    source = dict.fromkeys(("version", "revision", "config", "split", "max_samples"))
    source |= {"kind": "local", "name": "t.txt", "field": "text"}
    source["files"] = {"t.txt": {"bytes": 1, "sha256": "0" * 64}}
    document = make_windows(folder, texts, WindowPlan(32, 12, 12, 43), source)
    write_windows(tmp_path / "w.json", document)
    windows = RunWindows.read(tmp_path / "w.json", None)
    baseline = measure(folder, windows)
    written = report(folder, windows, baseline)
    assert (written["meta"]["metric"], written["meta"]["adapter"]) == (metric, adapter)
    assert "correct" not in written["evaluation_windows"]["final"]
    assert baseline.loaded_failures == []
    counts = baseline.arms["final"].n_tokens()
    assert counts == [tokens] * 12 if tokens else 1 <= min(counts) < max(counts) < 32
    subject = measure(folder, windows, baseline.reference_arrays(), budget=50)
    losses = subject.arms["final"].losses()
    np.testing.assert_allclose(losses, baseline.arms["final"].losses(), rtol=1e-5)
    assert {a.layer for a in baseline.activations} >= {0, 1, None}
    assert set(baseline.records["spectral"]["modules"]["family"]) >= {"attn", "ffn", "embed"}
