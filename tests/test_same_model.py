"""One model in other files, measured and verified end to end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from checkpoint_factory import make_llama
from measuring_factory import ARM, SEQ_LEN, World, change, read, write_tiny_windows
from report_factory import Document

from invarlock.evidence.report_verify import ReportOptions, verify_report
from invarlock.files import canonical_json
from invarlock.reporting.replay import replay
from invarlock.reporting.signals import pass_reasons
from invarlock.windows import WindowPlan

pytestmark = pytest.mark.usefixtures("in_this_process")

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
PADDED = 2  # rows: of 320 random ones, more would take a share of every prediction


def configure(folder: Path, **fields: object) -> None:
    """Change fields of config.json."""
    document = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps(document))


def store_head(tensors: Document) -> None:
    """The embedding a second time."""
    tensors[HEAD] = tensors[EMBED].clone()


def pad(tensors: Document) -> None:
    """Mean rows behind the last token."""
    table = tensors[EMBED]
    more = table.float().mean(0).to(table.dtype).expand(PADDED, -1)
    tensors[EMBED] = torch.cat([table, more]).contiguous()


def saved_again(folder: Path) -> None:
    """Model and tokenizer loaded and saved by the library."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def subject(world: World, folder: Path, name: str) -> Path:
    """The baseline as some tool would write it."""
    shutil.copytree(world.baseline, folder)
    match name:
        case "saved again":
            saved_again(folder)
        case "head stored too":
            change(folder, store_head)
        case "untied":
            change(folder, store_head)
            configure(folder, tie_word_embeddings=False)
        case "padded":
            change(folder, pad)
            configure(folder, vocab_size=320 + PADDED)
        case "ids":
            configure(folder, eos_token_id=[1], bos_token_id=None)
    return folder


def verified(report: Document) -> list[str]:
    """What a full verification in profile ci finds."""
    options = ReportOptions("ci", "report", "host", require_replay=True)
    result = verify_report(canonical_json(report), None, "x", options)
    assert result.replayed
    return [finding.message for finding in result.findings]


@pytest.mark.parametrize("name", ["saved again", "head stored too", "untied", "padded", "ids"])
def test_one_model_in_other_files_passes(world: World, tmp_path: Path, name: str) -> None:
    """Measured, compared module by module, with notes at most; the report verifies."""
    folder = subject(world, tmp_path / "subject", name)
    assert world.evaluate(folder, tmp_path / "out") == 0
    report = read(tmp_path / "out")
    assert {f["severity"] for f in report["invariants"]["failures"]} <= {"warning"}
    assert report["validation"]["invariants_pass"] is True
    assert pass_reasons(report) == []
    ratio = report["primary_metric"]["ratio_vs_baseline"]
    assert ratio == (pytest.approx(1.0, abs=0.02) if name == "padded" else 1.0)
    assert replay(report) == []
    assert verified(report) == []
    # one tokenizer, by what it means; the bytes of the folder have a digest of their own
    assert report["meta"]["tokenizer_hash"] == report["baseline_ref"]["tokenizer_hash"]
    digests = [report[key]["checkpoint_sha256"] for key in ("meta", "baseline_ref")]
    assert digests[0] != digests[1]


@pytest.mark.parametrize("damaged", [False, True])
def test_a_trained_head_is_held_against_the_embedding_that_was_the_head(
    world: World, tmp_path: Path, damaged: bool
) -> None:
    """PEFT unties one that it saves whole. Accepted by one name it is measured and judged."""

    def train(tensors: Document) -> None:
        table = tensors[EMBED].float()
        noise = torch.randn(table.shape, generator=torch.Generator().manual_seed(3))
        head = table + 1e-3 * table.std() * noise
        if damaged:
            head[[200, 201]] = head[[201, 200]]
        tensors[HEAD] = head.to(tensors[EMBED].dtype)

    folder = shutil.copytree(world.baseline, tmp_path / "subject")
    change(folder, train)
    configure(folder, tie_word_embeddings=False)
    assert world.evaluate(folder, tmp_path / "refused") == 0
    assert pass_reasons(read(tmp_path / "refused")) != []
    assert world.evaluate(folder, tmp_path / "out", "--accept", "tie_word_embeddings") == 0
    report = read(tmp_path / "out")
    assert report["invariants"]["passed"] is True
    assert report["invariants"]["accepted"] == ["tie_word_embeddings"]
    tables = {t["name"]: t for t in report["spectral"]["row_tables"]}
    assert tables[HEAD]["rows"] == 320
    assert report["spectral"]["passed"] is not damaged
    assert pass_reasons(report) == (["spectral_fail"] if damaged else [])
    assert ("token_rows" in str(report["spectral"])) is damaged
    assert replay(report) == []
    assert damaged or verified(report) == []


def test_a_vocabulary_without_its_padding_passes(tmp_path: Path) -> None:
    """The baseline's most likely tokens may be rows that the subject no longer has."""
    world = World(tmp_path)
    make_llama(world.baseline, hidden=32, seed=1)
    folder = shutil.copytree(world.baseline, tmp_path / "trimmed")
    change(world.baseline, pad)
    configure(world.baseline, vocab_size=320 + PADDED)
    write_tiny_windows(world.baseline, world.windows, WindowPlan(SEQ_LEN, ARM, ARM, 43))
    from invarlock.cli import main

    assert main(world.fresh(folder, tmp_path / "out")) == 0
    report = read(tmp_path / "out")
    assert [f["type"] for f in report["invariants"]["failures"]] == ["vocabulary_padded"]
    assert report["distribution"]["evaluated"] is True
    assert 0 < report["distribution"]["kl"]["mean"] < 0.02
    assert pass_reasons(report) == []
    assert verified(report) == []


def test_another_tokenizer_keeps_its_own_digest(world: World, tmp_path: Path) -> None:
    """A rejected subject is not said to have the baseline's tokenizer."""
    folder = shutil.copytree(world.baseline, tmp_path / "subject")
    document = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = document["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (folder / "tokenizer.json").write_text(json.dumps(document))
    assert world.evaluate(folder, tmp_path / "out") == 0
    report = read(tmp_path / "out")
    found = [f["type"] for f in report["invariants"]["failures"]]
    assert found == ["tokenizer_mismatch", "unnamed_noop"]  # the worst first
    assert report["meta"]["tokenizer_hash"] != report["baseline_ref"]["tokenizer_hash"]
    assert replay(report) == []
