"""Every kind of metric from text to verified page: masked, sequence to sequence, records, mixture.

The models are tiny and random. Two of the four meet the floors of the balanced tier; the others
are judged in tier none, where floors are absent, so that a no-op passes in all of them.
"""

from __future__ import annotations

import functools
import json
import operator
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_factory import make_bert, make_llama, make_mixture, make_t5
from measuring_factory import ARM, SEQ_LEN, World, change, documents, read
from report_factory import make_evaluation, scenario

from invarlock.checkpoints import Checkpoint, tokenizer_digest
from invarlock.cli import main
from invarlock.evidence.report_verify import ReportOptions, verify_report
from invarlock.files import canonical_json, write_json
from invarlock.preset import derive
from invarlock.reporting.render import render_report_html, render_report_markdown
from invarlock.reporting.signals import pass_reasons
from invarlock.run.calibrate import Calibration, calibrate
from invarlock.run.loading import Target
from invarlock.run.measure import RunWindows
from invarlock.verdict.records import make_record
from invarlock.windows import load_encoder

Document = dict[str, Any]
CHOICES = ("x", "y", "z")  # one token each
ROUTER = "model.layers.0.block_sparse_moe.gate.weight"


def texts(_: Path) -> list[Document]:
    """Nonsense."""
    return [{"text": text} for text in documents()]


def records(folder: Path) -> list[Document]:
    """Questions of which the model in ``folder`` answers three of four as labelled."""
    from transformers import AutoModelForCausalLM

    model, encode = AutoModelForCausalLM.from_pretrained(folder).float(), load_encoder(folder)
    ids, found = [encode(choice)[0] for choice in CHOICES], []
    for n in range(420):
        prompt = f"question {n * n}:"
        with torch.no_grad():
            best = int(model(torch.tensor([encode(prompt)])).logits[0, -1, ids].argmax())
        label = best if n % 4 else (best + 1) % 3
        found.append({"prompt": prompt, "choices": list(CHOICES), "answer": label})
    return found


@dataclass(frozen=True)
class Kind:
    """A kind of metric, a model that has it, and what a report of it is tampered with."""

    make: Callable[[Path], Path]
    rows: Callable[[Path], list[Document]]
    windows: tuple[int, int]  # seq_len, windows of an arm
    tier: str
    unit: str  # of the page, where the metric stands
    pointer: str  # of a number that is changed
    suffix: str = ""  # of the text

    @property
    def profile(self) -> str:
        """A report of tier none is for exploring: ci refuses it, however true it is."""
        return "dev" if self.tier == "none" else "ci"


make_causal = functools.partial(make_llama, hidden=32, seed=1)
KINDS = {
    "ppl_mlm": Kind(make_bert, texts, (40, 24), "none", "Ratio", "telemetry/masked_tokens_total"),
    "ppl_seq2seq": Kind(make_t5, texts, (40, 24), "none", "Ratio",
                        "evaluation_windows/final/baseline_nll_sum/3"),
    "accuracy": Kind(make_causal, records, (20, 200), "balanced", "percentage points",
                     "metrics/classification/n_correct", "?metric=accuracy"),
    "ppl_causal": Kind(make_mixture, texts, (SEQ_LEN, ARM), "balanced", "Mixture of experts",
                       "moe/routers/entropy/0"),
}  # fmt: skip


@dataclass(frozen=True)
class Case(World):
    """A measured baseline of one kind, a copy of it and a damaged subject, both evaluated."""

    metric: str

    @property
    def kind(self) -> Kind:
        """What is special to it."""
        return KINDS[self.metric]

    def cut(self, path: Path, seed: int, windows: tuple[int, int]) -> Path:
        """Windows as the command line cuts them."""
        text, pinned = f"local:{self.root}/text.jsonl{self.kind.suffix}", self.root / "pins.json"
        if not pinned.is_file():
            source = ("--model", f"acme/tiny=local:{self.baseline}", "--text", text)
            assert main(["pin", "--suite", "s", *source, "--out", str(pinned)]) == 0
        words = ["windows", "--tokenizer", str(self.baseline), "--text", text]
        words += ["--revisions", str(pinned), "--seq-len", str(windows[0])]
        words += ["--preview", str(windows[1]), "--final", str(windows[1])]
        assert main([*words, "--seed", str(seed), "--out", str(path)]) == 0
        return path

    def judged(self, subject: str, *more: str) -> Document:
        """The report of a subject folder, evaluated in the tier of the kind."""
        out = self.root / f"{subject} out"
        assert self.evaluate(self.root / subject, out, "--tier", self.kind.tier, *more) == 0
        return read(out)

    def preset(self) -> Path:
        """The preset of the baseline, by windows of three other seeds."""
        torch.set_num_threads(1)  # as a run has it
        tokenizer = tokenizer_digest(self.baseline)
        cuts = [self.cut(self.root / f"{s}.json", s, (self.kind.windows[0], 16)) for s in (4, 5, 6)]
        windows = [RunWindows.read(cut, tokenizer) for cut in cuts]
        target, baseline = Target("cpu", "float32", False), Checkpoint.open(self.baseline)
        plan = Calibration("acme/tiny", baseline, windows, target, 512)
        path, stats = self.root / "preset.json", calibrate(plan, self.root / "null")
        write_json(path, derive(stats, self.kind.tier, "stats"))
        return path


def damage(tensors: Document) -> None:
    """Noise as large as the weights on every matrix but the routers."""
    generator = torch.Generator().manual_seed(5)
    for name in sorted(tensors):
        weight = tensors[name].float()
        if weight.dim() == 2 and not name.endswith("gate.weight"):
            noise = weight.std() * torch.randn(weight.shape, generator=generator)
            tensors[name] = (weight + noise).to(tensors[name].dtype)


@pytest.fixture(scope="module", params=KINDS)
def case(
    request: pytest.FixtureRequest,
    in_this_process: None,
    tmp_path_factory: pytest.TempPathFactory,
) -> Case:
    """From text and checkpoint to two reports; the damaged one is judged by a preset."""
    root = tmp_path_factory.mktemp(request.param)
    found = Case(root, request.param)
    found.kind.make(found.baseline)
    rows = "".join(json.dumps(row) + "\n" for row in found.kind.rows(found.baseline))
    (root / "text.jsonl").write_text(rows)
    found.cut(found.windows, 43, found.kind.windows)
    shutil.copytree(found.baseline, root / "noop")
    words = ("--tier", found.kind.tier, "--edit-label", "noop")
    change(shutil.copytree(found.baseline, root / "damaged"), damage)
    # the first evaluation measures the baseline; the others take its run
    assert main(found.fresh(root / "noop", root / "noop out", *words)) == 0
    (root / "noop out" / "baseline").rename(found.run)
    found.judged("damaged", "--preset", str(found.preset()))
    return found


def findings(report: Document, profile: str) -> list[str]:
    """What a full verification of a report without its manifest finds; it has to be replayed."""
    options = ReportOptions(profile, "report", "host", require_replay=True)
    result = verify_report(canonical_json(report), None, "x", options)
    assert result.replayed
    return [f.message for f in result.findings]


def only_its_gates(lines: list[str]) -> bool:
    """The report is true: what is found is that it does not pass."""
    return bool(lines) and all("cert_lints" in line for line in lines)


def test_a_noop_is_exactly_the_baseline(case: Case) -> None:
    """Ratio 1 or 0 points, no shift of any prediction, and every gate of the tier holds."""
    report = read(case.root / "noop out")
    metric = report["primary_metric"]
    same = 0.0 if case.metric == "accuracy" else 1.0
    assert (metric["kind"], metric["ratio_vs_baseline"]) == (case.metric, same)
    assert metric["display_ci"] == [same, same]
    assert metric["drift"]["ratio"] == 1.0
    assert report["distribution"]["kl"] == {"mean": 0.0, "p99": 0.0, "max": 0.0}
    assert pass_reasons(report) == []
    assert findings(report, case.kind.profile) == []
    words = ["--profile", case.kind.profile, "--runtime-provenance", "host", "--replay"]
    assert main(["verify", str(case.root / "noop out"), *words]) == 0
    flags = {name: value for name, value in report["validation"].items() if name[:3] == "moe"}
    mixture = {"moe_observed": True, "moe_identity_ok": True}
    assert flags == (mixture if case.metric == "ppl_causal" else {})


def test_the_verdict_asks_for_no_change_in_the_unit_of_the_kind(case: Case) -> None:
    """A difference of 0 points is as exact as a ratio of 1; a damaged model is not exact."""
    noop = scenario("noop_clean")
    judged = {
        name: make_record(noop, make_evaluation(noop, read(case.root / f"{name} out")), None)
        for name in ("noop", "damaged")
    }
    assert not judged["noop"].reasons
    assert "ratio_not_exact" in judged["damaged"].reasons
    assert judged["noop"].metric == case.metric


def test_a_damaged_subject_is_reported_truly(case: Case) -> None:
    """By the thresholds of a preset; the spectral guard speaks, and the replay agrees."""
    report = read(case.root / "damaged out")
    assert report["primary_metric"]["kind"] == case.metric
    assert report["distribution"]["flips"]["count"] > 0
    assert report["validation"]["spectral_stable"] is False
    assert only_its_gates(findings(report, "dev"))
    paths = {override["path"] for override in report["policy_provenance"]["overrides"]}
    assert "rmt.epsilon.attn" in paths
    # how the blocks of BERT and T5 are wired is not known: their matrices are judged by rank alone
    assert ("spectral.tau.attn" in paths) is (case.metric in {"ppl_causal", "accuracy"})
    assert ("drift.max" in paths) is (case.metric != "accuracy")  # in points: the tier's own
    if case.metric == "accuracy":
        metric, counts = report["primary_metric"], report["metrics"]["classification"]
        correct = report["evaluation_windows"]["final"]["correct"]
        assert (counts["n_correct"], counts["n_total"]) == (sum(correct), len(correct))
        assert metric["final"] == counts["n_correct"] / counts["n_total"]
        assert metric["ratio_vs_baseline"] < -10
        assert metric["decision"] == "fail"


@pytest.mark.parametrize("name", ["noop", "damaged"])
def test_the_pages_speak_of_the_kind(case: Case, name: str) -> None:
    """HTML and Markdown of both reports, in the unit of the metric."""
    report = read(case.root / f"{name} out")
    for page in (render_report_html(report), render_report_markdown(report)):
        assert case.kind.unit in page
        assert ("percentage points" in page) is (case.metric == "accuracy")
        assert ("Mixture of experts" in page) is (case.metric == "ppl_causal")


@pytest.mark.parametrize("name", ["noop", "damaged"])
def test_a_changed_number_is_found(case: Case, name: str) -> None:
    """One number that only this kind has, or that its metric is computed from."""
    report = read(case.root / f"{name} out")
    *path, last = (int(p) if p.isdigit() else p for p in case.kind.pointer.split("/"))
    functools.reduce(operator.getitem, path, report)[last] += 1
    assert findings(report, "dev") != []


@pytest.mark.parametrize("case", ["ppl_causal"], indirect=True)
@pytest.mark.parametrize("factor", [40.0, 0.0], ids=["decided", "blind"])
def test_a_collapsed_router_fails_the_mixture(case: Case, factor: float) -> None:
    """Logits so large that one expert takes all, or none at all: each token then takes the same."""
    name = f"router {factor}"
    change(shutil.copytree(case.baseline, case.root / name), lambda t: t[ROUTER].mul_(factor))
    report = case.judged(name)
    assert report["validation"]["moe_observed"] is True
    assert report["validation"]["moe_identity_ok"] is False
    assert "moe_fail" in pass_reasons(report)
    assert only_its_gates(findings(report, "dev"))
