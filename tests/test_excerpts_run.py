"""Excerpts from the windows of a real model to its report."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import measuring_factory as measuring
import numpy as np
import pytest
import torch
from checkpoint_factory import make_llama
from conftest import measuring_here
from report_factory import Document
from test_windows import SOURCE
from tokenizers import Tokenizer, decoders, models
from transformers import AutoModelForCausalLM

from invarlock.cli import main
from invarlock.metrics import excerpts
from invarlock.reporting.compare_runs import compare_runs
from invarlock.reporting.replay import replay
from invarlock.run.excerpts import CONTEXT, excerpts_of, texts
from invarlock.run.forward import ArmResult, TopTokens
from invarlock.run.measure import RunWindows
from invarlock.tokenizer_meaning import read_tokenizer
from invarlock.windows import SliceText, WindowPlan, make_sliced_windows, write_windows

# Windows of both arms and tokens of a window, of each slice; the long ones are shown in part.
COUNTS = {"prose": (12, 8, 32), "long": (3, 6, 256)}
NAME = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A baseline, a louder subject, and windows of texts that are packages'."""
    root = tmp_path_factory.mktemp("excerpts")
    baseline = make_llama(root / "baseline", hidden=32, seed=1)
    written = measuring.documents()
    for kind in ("package", "local"):
        source = {**SOURCE, "kind": kind}
        slices = [
            SliceText(name, name, written[i::2], WindowPlan(length, preview, final, 43), source)
            for i, (name, (preview, final, length)) in enumerate(COUNTS.items())
        ]
        write_windows(root / f"{kind}.json", make_sliced_windows(baseline, slices))
    measuring.change(
        shutil.copytree(baseline, root / "subject"),
        lambda tensors: tensors.update({NAME: tensors[NAME] * 3}),
    )
    return root


def evaluate(place: Path, windows: str, out: str, *more: str) -> Document:
    """The report of the subject on these windows."""
    command = ["evaluate", "--baseline", str(place / "baseline")]
    command += ["--subject", str(place / "subject"), "--windows", str(place / windows)]
    command += ["--out", str(place / out), *measuring.SETTINGS, "--tier", "none", *more]
    with measuring_here():
        assert main(command) == 0
    return measuring.read(place / out)


@pytest.fixture(scope="module")
def report(place: Path) -> Document:
    """The report of a text that is no local file."""
    return evaluate(place, "package.json", "out")


def losses(folder: Path, tokens: list[int]) -> list[float]:
    """Of every token but the first, by a plain transformers loop, nats."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        logits = model(torch.tensor([tokens])).logits[0, :-1].double()
    return [float(-row.log_softmax(-1)[t]) for row, t in zip(logits, tokens[1:], strict=True)]


def test_losses_are_those_of_a_plain_loop(place: Path, report: Document) -> None:
    """Token by token in both models; the windows and the stretch of each by brute force."""
    final = json.loads((place / "package.json").read_text())["final"]
    both = {
        window["window_id"]: [losses(place / m, window["tokens"]) for m in ("baseline", "subject")]
        for window in final
    }
    change = {k: (sum(m) - sum(b)) / len(m) for k, (b, m) in both.items()}
    wanted = sorted((k for k in change if change[k] > 0), key=lambda k: -change[k])[:4]
    assert [one["window_id"] for one in report["excerpts"]] == wanted
    assert len(wanted) == 4
    parts = 0
    for one in report["excerpts"]:
        base, mine = both[one["window_id"]]
        start, end = one["before"], one["before"] + len(one["nll"])
        assert one["nll"] == pytest.approx(mine[start:end], abs=1e-4)
        assert one["baseline_nll"] == pytest.approx(base[start:end], abs=1e-4)
        assert end - start == min(len(mine), excerpts.TOKENS)
        grown = [m - b for m, b in zip(mine, base, strict=True)]
        sums = [sum(grown[i : i + end - start]) for i in range(len(grown) - (end - start) + 1)]
        assert sums[start] == pytest.approx(max(sums), abs=1e-3)
        parts += "rest" in one
        if "rest" in one:
            left = math.fsum([*mine[:start], *mine[end:]])
            assert one["rest"]["nll"] == pytest.approx(left, abs=1e-3)
            assert one["rest"]["tokens"] == len(mine) - (end - start)
    assert parts
    assert replay(report) == []


def test_texts_read_as_the_window_does(place: Path, report: Document) -> None:
    """The tokens of an excerpt joined are what the tokenizer makes of the window."""
    windows = json.loads((place / "package.json").read_text())["final"]
    tokens = {window["window_id"]: window["tokens"] for window in windows}
    tokenizer = read_tokenizer(place / "baseline" / "tokenizer.json")
    for one in report["excerpts"]:
        ids = tokens[one["window_id"]][1:]
        start = one["before"]
        whole = tokenizer.decode(ids[: start + len(one["tokens"])], skip_special_tokens=False)
        assert "".join(one["tokens"])
        assert whole.endswith("".join(one["tokens"]))


def test_a_report_made_of_both_runs_is_the_same(place: Path, report: Document) -> None:
    """The subject's run keeps the excerpts, so that its report can be made again."""
    runs = [measuring.read(place / f, "report.json") for f in ("out", "out/baseline")]
    assert compare_runs(*runs, profile="dev")["excerpts"] == report["excerpts"]


def test_private_text_stays_out(place: Path) -> None:
    """auto leaves out what is a file of this machine; off and on do what they say."""
    more = ("--baseline-report", str(place / "local" / "baseline"))
    private = evaluate(place, "local.json", "local")
    assert "excerpts" not in private
    shown = evaluate(place, "local.json", "shown", "--excerpts", "on", *more)
    assert len(shown["excerpts"]) == 4
    assert {k: v for k, v in shown.items() if k != "excerpts"} == private
    kept = ("--baseline-report", str(place / "out" / "baseline"))
    assert "excerpts" not in evaluate(place, "package.json", "off", "--excerpts", "off", *kept)
    for name in ("local", "off"):
        for file in ("report.json", "evaluation.report.json"):
            assert '"tokens":["' not in (place / name / file).read_text().replace(" ", "")


def test_a_window_that_lost_its_numbers_is_no_excerpt(place: Path) -> None:
    """Losses that are NaN or infinite are left to the metric, which calls them degraded."""
    windows = RunWindows.read(place / "package.json", None)
    counts = [len(window.tokens) - 1 for window in windows.arm("final")]
    starts = np.cumsum([0, *counts])
    size = int(starts[-1])
    correct = np.full(size, -1.0, np.float32)
    empty = np.zeros((size, 1), np.int32)
    base = TopTokens(starts.tolist(), empty[:, 0], empty, empty.astype(np.float16), correct)
    final = ArmResult()
    for row, n in enumerate(counts):
        final.logprob[row] = np.full(n, -1.0 - row / 10, np.float32)
    final.logprob[13][3], final.logprob[12][0] = np.nan, -np.inf
    final.nll_sum = {row: -float(found.sum()) for row, found in final.logprob.items()}
    found = excerpts_of("on", windows, place / "baseline", base, final)
    scored = [window.window_id for window in windows.arm("final")]
    assert [scored.index(one["window_id"]) for one in found] == [11, 10, 9, 8]
    json.dumps(found, allow_nan=False)


# --- texts of tokens ----------------------------------------------------------------------------


def byte_level() -> Tokenizer:
    """A token a byte, as byte-level tokenizers spell them."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in shown]
    spelled = {b: chr(b) for b in shown} | {b: chr(256 + i) for i, b in enumerate(hidden)}
    tokenizer = Tokenizer(models.BPE({spelled[b]: b for b in range(256)}, []))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


TEXT = "naïve 日本\n👩‍🚀 ok"


@pytest.mark.parametrize("start", [0, 3, 9, CONTEXT + 1])
def test_bytes_are_shown_as_the_characters_they_make(start: int) -> None:
    """Whatever stretch is shown: a character is the text of its last byte, and no byte is lost."""
    data = TEXT.encode()
    found = texts(byte_level(), [*data], start)
    ends = {len(TEXT[: i + 1].encode()) - 1: c for i, c in enumerate(TEXT)}
    assert found == [ends.get(i, "") for i in range(start, len(data))]


def test_bytes_that_are_no_character_are_replaced() -> None:
    """A broken sequence inside, and one that the stretch ends in."""
    assert texts(byte_level(), [*b"a\xff\xfeb"], 0) == ["a", "", "", "\ufffd\ufffdb"]
    assert texts(byte_level(), [*"日".encode()[:2]], 0)[-1] == "\ufffd"


def test_a_token_is_cut_and_a_rewriting_decoder_does_not_matter() -> None:
    """A text of a thousand spaces, and a decoder that changes what it has said before."""
    long = Tokenizer(models.WordLevel({"x" * 1000: 0, "a": 1, "##b": 2}, unk_token="a"))
    (cut,) = texts(long, [0], 0)
    assert (len(cut), cut[-1]) == (excerpts.CHARACTERS, "…")
    long.decoder = decoders.WordPiece(cleanup=True)
    pieces = Tokenizer(models.WordLevel({"do": 0, "n't": 1, ".": 2}, unk_token="do"))
    pieces.decoder = decoders.WordPiece(cleanup=True)
    assert "".join(texts(pieces, [0, 1, 2], 0)).replace(" ", "") == "don't."
