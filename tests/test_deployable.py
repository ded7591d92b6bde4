"""The five records beside a deployable subject: what they show, and every way to lie in them."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pack_factory as packs
import pytest
import report_factory as factory
import warm

from invarlock.contracts import violations
from invarlock.errors import ConfigError
from invarlock.evidence.published import deployable as beside
from invarlock.evidence.tree import read_tree
from invarlock.reporting import deployable
from invarlock.reporting.deployable import (
    CONTRACTS,
    INFERENCE,
    INVENTORY,
    LOAD,
    MEMORY,
    VALIDATION,
    Identities,
)
from invarlock.run.smoke import SmokeJob, in_fresh_process, prompts_of
from invarlock.scenarios import in_class, load_catalogue
from invarlock.verdict.records import make_record
from invarlock.verdict.summaries import edit_artifact_summary

if TYPE_CHECKING:
    from measuring_factory import World

Document = dict[str, Any]
ROOT = Path(__file__).resolve().parent.parent
WHO = Identities("a" * 64, "b" * 64)
RAN: Document = {
    "backend": "llama.cpp",
    "versions": {"gguf": "0.19", "llama-cpp-python": "1.2"},
    "kernels": {"ggml.mul_mat": 2},
    "device": "cpu",
    "detail": {"threads": "1"},
}
PROMPTS = [[1, 2, 3], [4, 5]]
SCHEME = "four bits, groups of 32"


def modules(bits: float = 4, stored: float = 4.5, count: int = 2) -> dict[str, Document]:
    """Packed matrices of 1,024 values each; ``stored`` bits of a value, scales included."""
    return {
        f"model.layers.{n}.mlp.up_proj.weight": {
            "format": SCHEME, "packed": True, "bits": bits, "elements": 1024,
            "bytes": int(1024 * stored / 8),
        }
        for n in range(count)
    }  # fmt: skip


def dense(count: int) -> dict[str, Document]:
    """Matrices of the blocks that are stored in bfloat16."""
    return {
        f"model.layers.{n}.mlp.down_proj.weight": {
            "format": "BF16", "packed": False, "bits": 16.0, "elements": 1024, "bytes": 2048,
        }
        for n in range(count)
    }  # fmt: skip


def packing(held: dict[str, Document]) -> Document:
    """What a report says of these matrices, counted here by hand."""
    packed = [m for m in held.values() if m["packed"]]
    schemes = {
        SCHEME: {
            "bits": packed[0]["bits"], "tensors": len(packed), "elements": 1024 * len(packed),
            "bytes": sum(m["bytes"] for m in packed),
        }
    } if packed else {}  # fmt: skip
    return {
        "format": "gguf", "title": "GGUF", "schemes": schemes,
        "bytes_packed": 100 + sum(m["bytes"] for m in held.values()), "bytes_dense": 4096 * 4,
    }  # fmt: skip


def seen(**changes: Any) -> Document:
    """What a fresh process saw of the subject."""
    answers = [
        {"tokens": [7, 8, 9], "seconds": 0.5, "finite": True, "logits_sha256": "c" * 64,
         "logits_shape": [len(prompt), 50]}
        for prompt in PROMPTS
    ]  # fmt: skip
    found = {
        "error": "", "seconds": 1.5, "dtype": "float32", "missing": [], "unexpected": [],
        "ran": RAN, "reported_bytes": 4000, "resident_bytes": 9000, "peak_bytes": 12000,
        "device_peak_bytes": None, "answers": answers,
    }  # fmt: skip
    return found | changes


def baseline_seen() -> Document:
    """The same of the baseline, which parts from the subject at the last token of the first."""
    found = seen(reported_bytes=10000, ran=RAN | {"backend": "transformers"})
    found["answers"][0]["tokens"] = [7, 8, 1]
    return found


def five(
    held: dict[str, Document] | None = None,
    saw: Document | None = None,
    quantization: Document | None = None,
    spec: str = "",
) -> dict[str, Document]:
    """The five documents as the command writes them."""
    held, saw = modules() if held is None else held, saw or seen()
    there, told = baseline_seen(), packing(held)
    found: dict[str, Document] = {LOAD: deployable.load_smoke(saw, WHO)}
    found[INFERENCE] = deployable.inference_smoke(saw, there, PROMPTS, 3, WHO)
    found[MEMORY] = deployable.memory_report(saw, there, (told["bytes_packed"], 20000), WHO)
    claim = deployable.claim_of(spec, quantization or {}, held)
    found[INVENTORY] = deployable.backend_inventory(
        held, told, claim, found, saw.get("ran") or {}, WHO
    )
    found[VALIDATION] = deployable.validation(found)
    return found


def report(held: dict[str, Document] | None = None) -> Document:
    """The parts of an evaluation that the five are held to."""
    return {
        "meta": {"execution": {**packing(held or modules()), **RAN}},
        "provenance": {
            "baseline": {"checkpoint_sha256": WHO.baseline},
            "subject": {"checkpoint_sha256": WHO.subject},
        },
    }


ENTRY: Document = {"id": "byoe", "generation": {"kind": "edit", "edit_spec": "custom"}}


def said(found: dict[str, Document], told: Document | None = None, entry: Document = ENTRY) -> Any:
    """Every contradiction as a text."""
    return [": ".join(pair) for pair in deployable.contradictions(found, told or report(), entry)]


# --- what they say of a subject ------------------------------------------------------------------


def test_a_sound_subject() -> None:
    """It has no issue; what is counted here by hand stands in the five, which fit contracts."""
    found = five()
    for name, document in found.items():
        assert violations(document, CONTRACTS[name]) == []
    assert said(found) == []
    assert found[VALIDATION]["issues"] == []
    assert found[VALIDATION]["ok"] is True
    assert found[INVENTORY]["stored_bits"] == 4.5
    assert found[INVENTORY]["backend_version"] == "1.2"  # not that of what reads its files
    assert (found[INVENTORY]["claimed_bits"], found[INVENTORY]["claimed_by"]) == (4, "weights")
    assert [row["agreed"] for row in found[INFERENCE]["answers"]] == [2, 3]
    assert found[INFERENCE]["agreement"] == round(5 / 6, 6)
    assert found[INFERENCE]["tokens_per_second"] == 6.0  # six tokens in a second
    assert (found[MEMORY]["reduction_bytes"], found[MEMORY]["reduction_ratio"]) == (6000, 0.6)


@pytest.mark.parametrize(
    ("held", "quantization", "spec", "issue"),
    [
        (modules(16, 16), {"bits": 4}, "", "claims 4 bits (config.json) and stores 16 of a weight"),
        (modules(16, 16), {"load_in_4bit": True}, "", "claims 4 bits (config.json)"),
        (modules(8, 8.5), {}, "llama_cpp:Q2_K", "claims 2 bits (scenario) and stores 8.5"),
        # one of ten matrices is packed: the model is as large as it was
        (modules(count=1) | dense(9), {"quant_method": "gptq", "bits": 4}, "", "claims 4 bits"),
        (
            modules(count=1) | dense(9),
            {"config_groups": {"a": {"weights": {"num_bits": 4}}}},
            "",
            "claims 4 bits (config.json) and stores 14.8",
        ),
        (dense(2), {}, "", "no weight is packed"),
        (modules(8, 4.25), {"load_in_8bit": True}, "", "its bytes hold 4.25 of a weight"),
    ],
)
def test_as_small_as_claimed(
    held: dict[str, Document], quantization: Document, spec: str, issue: str
) -> None:
    """A subject that claims 4 bits and stores 16 is not in order, whoever claims it."""
    found = five(held, quantization=quantization, spec=spec)
    assert any(issue in line for line in found[VALIDATION]["issues"]), found[VALIDATION]["issues"]
    assert found[VALIDATION]["ok"] is False
    assert found[VALIDATION]["packed_quantized_storage"] is False


@pytest.mark.parametrize("stored", [4.0, 4.5, 6.6, 8.0])
def test_scales_are_no_lie(stored: float) -> None:
    """Groups of 16 with a scale and a zero point take 2.6 bits more than a form is called by."""
    assert five(modules(4, stored), quantization={"bits": 4})[VALIDATION]["ok"] is True


@pytest.mark.parametrize(
    ("changes", "issue"),
    [
        ({"error": "exit code 3", "answers": []}, "is not loaded: exit code 3"),
        ({"missing": ["model.norm.weight"]}, "1 missing weights after loading: model.norm.weight"),
        ({"answers": []}, "gives no answer"),
        ({"reported_bytes": None}, "what it takes in memory is not known"),
    ],
)
def test_what_does_not_load_or_answer(changes: Document, issue: str) -> None:
    """Each is an issue in words, and the records still fit their contracts and one another."""
    found = five(saw=seen(**changes))
    assert any(line.startswith(issue) for line in found[VALIDATION]["issues"])
    assert said(found) == []
    for name, document in found.items():
        assert violations(document, CONTRACTS[name]) == []


@pytest.mark.parametrize(
    ("answer", "issue"),
    [
        ({"finite": False}, "logits are no numbers"),
        ({"tokens": [7, 8, 50]}, "answers with tokens above its vocabulary of 50"),
        ({"tokens": [7, 8]}, "ends before 3 tokens"),
    ],
)
def test_answers_that_are_none(answer: Document, issue: str) -> None:
    """Logits that are no numbers, tokens that do not exist, too few of them."""
    saw = seen()
    saw["answers"][1] |= answer
    found = five(saw=saw)
    assert found[VALIDATION]["issues"] == [issue]
    assert said(found) == []


# --- lies: those in one record are rows of attacks_deployable.py ---------------------------------


def test_a_bad_subject_cannot_be_called_good() -> None:
    """That 16 bits are stored is in the inventory; without it the report contradicts."""
    held = modules(16, 16)
    found = five(held, quantization={"bits": 4})
    found[VALIDATION] |= {"ok": True, "issues": [], "packed_quantized_storage": True}
    assert any(line.startswith(f"{VALIDATION}: /ok") for line in said(found, report(held)))
    good = five(modules(4, 4.5), quantization={"bits": 4})
    assert any("/meta/execution" in line for line in said(good, report(held)))


def test_the_scenario_says_what_is_claimed() -> None:
    """A file that claims more bits than its scenario asked for is found."""
    entry = {"id": "x", "generation": {"kind": "deployable_edit", "edit_spec": "llama_cpp:Q4_K_M"}}
    assert said(five(spec="llama_cpp:Q4_K_M"), entry=entry) == []
    found = five(quantization={"bits": 8})
    assert any("/claimed_bits" in line for line in said(found, entry=entry))


@pytest.mark.parametrize("name", CONTRACTS)
def test_each_of_the_five_has_to_be_there(name: str, tmp_path: Path) -> None:
    """In a pack: all five, each by its contract; whole, they pass."""
    folder = tmp_path / "reports/m/s/run_1"
    for file, document in five().items():
        packs.write_json(folder / file, document)
    packs.write_json(folder / "evaluation.report.json", {})
    tree = read_tree(tmp_path)
    assert beside.check_ours(tree, "reports/m/s/run_1/", report(), ENTRY) == []
    packs.write_json(folder / name, five()[name] | {"schema": "invarlock/other-v1"})
    (line,) = beside.check_ours(read_tree(tmp_path), "reports/m/s/run_1/", report(), ENTRY)
    assert line.startswith(f"{name}: ")
    (folder / name).unlink()
    (line,) = beside.check_ours(read_tree(tmp_path), "reports/m/s/run_1/", report(), ENTRY)
    assert line.startswith(f"{name}: ")


# --- the verdict ----------------------------------------------------------------------------


def test_the_verdict_counts_it() -> None:
    """A report that passes is not enough: a deployable subject has to be in order too."""
    catalogue = load_catalogue(ROOT / "scenarios/scenarios.json")
    (plain,) = [s for s in catalogue.select("byoe") if s.id == "byoe"]
    scenario = in_class(plain, "deployable_optimized_subject")
    assert scenario.entry["optimized_deployment_backend"] is True
    evaluation = factory.make_evaluation(scenario, factory.make_report())
    good = replace(evaluation, deployable=five()[VALIDATION])
    bad = replace(evaluation, deployable=five(dense(2))[VALIDATION])
    assert make_record(scenario, good, None).passed
    record = make_record(scenario, bad, None)
    assert (record.passed, record.reasons) == (False, ["not_deployable"])
    assert record.why == "did not pass: not_deployable (no weight is packed)"
    assert "no deployable_artifact_validation.json" in make_record(scenario, evaluation, None).why
    assert make_record(plain, evaluation, None).passed
    row = edit_artifact_summary([scenario], [good])
    assert row["by_scenario"]["byoe"]["load_smoke"] is True
    assert row["deployable_subjects"] == {
        "count": 1, "backends": ["llama.cpp (gguf)"], "all_reload_smokes_passed": True,
        "all_inference_smokes_passed": True,
    }  # fmt: skip
    broken = replace(evaluation, deployable=five(saw=seen(error="x", answers=[]))[VALIDATION])
    said_so = edit_artifact_summary([scenario], [broken])["deployable_subjects"]
    assert said_so["all_reload_smokes_passed"] is False


# --- processes of their own -----------------------------------------------------------------


def job(world: World, source: Path) -> SmokeJob:
    """The prompts, for a checkpoint of the tiny world."""
    return SmokeJob(
        source=str(source), beside=str(world.baseline), device="cpu", dtype="float32", threads=1,
        allow_remote_code=False, prompts=prompts_of(world.baseline)[:2], new_tokens=5,
    )  # fmt: skip


def test_the_library_writes_the_same_tokens(world: World) -> None:
    """What the fresh process answers is what transformers' own generation writes."""
    import torch
    from transformers import AutoModelForCausalLM

    asked = job(world, world.baseline)
    found = in_fresh_process(asked)
    assert found["error"] == ""
    model = AutoModelForCausalLM.from_pretrained(world.baseline, dtype=torch.float32)
    for prompt, answer in zip(asked.prompts, found["answers"], strict=True):
        ids = torch.tensor([prompt])
        wanted = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=5,
            min_new_tokens=5, pad_token_id=0,
        )  # fmt: skip
        assert answer["tokens"] == wanted[0, len(prompt) :].tolist()
        assert answer["finite"]
        assert answer["logits_shape"][0] == len(prompt)
    held = [*model.parameters(), *model.buffers()]
    assert found["reported_bytes"] == sum(tensor.nbytes for tensor in held)


def test_what_ends_the_process_is_a_finding(world: World, tmp_path: Path) -> None:
    """A subject that cannot be loaded gives a line, and ends nothing here."""
    (tmp_path / "config.json").write_text("{}")
    found = in_fresh_process(job(world, tmp_path))
    assert found.keys() == {"error"}
    assert found["error"]


def needs(module: str) -> None:
    """Skip where an optional package is missing, but fail where CI is set."""
    if importlib.util.find_spec(module) is None:
        assert not os.environ.get("CI"), f"CI is set and {module} is not installed"
        pytest.skip(f"{module} is not installed")


def invarlock(*words: object) -> subprocess.CompletedProcess[str]:
    """A command, forked."""
    command = [warm.python(), "-m", "invarlock", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small baseline, and nf4 weights that bitsandbytes made of it, whole and broken."""
    needs("bitsandbytes")
    from checkpoint_factory import make_llama

    root = tmp_path_factory.mktemp("packed")
    make_llama(root / "base", hidden=64, seed=1)
    for name, spec in (("nf4", "bitsandbytes:nf4"), ("bad", "bitsandbytes:nf4:scales_damaged")):
        done = invarlock(
            "advanced", "pack-weights", "--baseline", root / "base", "--spec", spec,
            "--out", root / name, "--metadata", root / f"{name}.json",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    return root


def test_packing_by_a_backend(packed: Path) -> None:
    """The metadata say what was made; damage leaves names, shapes and types, and no value."""
    from invarlock.checkpoints import Checkpoint

    metadata = json.loads((packed / "nf4.json").read_text())
    assert violations(metadata, "edit-metadata") == []
    assert metadata["artifact_class"] == "deployable_optimized_subject"
    assert (metadata["edit_type"], metadata["parameters"]) == ("bitsandbytes", {"form": "nf4"})
    assert (metadata["backend"], metadata["packed_quantized_storage"]) == ("bitsandbytes", True)
    base, good, bad = (Checkpoint.open(packed / name) for name in ("base", "nf4", "bad"))
    assert good.tensors.keys() == bad.tensors.keys() == base.tensors.keys()
    for name in good.packed:
        plain, whole, broken = (c.load(name).float() for c in (base, good, bad))
        error = float((whole - plain).norm() / plain.norm())
        assert error < 0.15 < float((broken - plain).norm() / plain.norm()), name
    assert (packed / "nf4/tokenizer.json").read_bytes() == (
        packed / "base/tokenizer.json"
    ).read_bytes()


def test_dense_weights_are_no_deployable_subject(packed: Path) -> None:
    """One line, and nothing is written."""
    done = invarlock(
        "edit", "--spec", "custom", "--baseline", packed / "base", "--subject", packed / "base",
        "--artifact-class", "deployable_optimized_subject", "--metadata", packed / "no.json",
    )  # fmt: skip
    assert done.returncode == 3
    assert "its weights are dense" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (packed / "no.json").exists()


def test_backends_are_chosen() -> None:
    """Scenarios of the lane are asked for, by backend; a suite without them is as it was."""
    from settings_factory import settings

    plain = [s.id for s in settings(suite="deployable").scenarios]
    some = settings(suite="deployable", deploy_backends=["bitsandbytes"])
    kept = [s for s in some.scenarios if s.is_packed_by_backend]
    assert kept
    assert {s.edit_type for s in kept} == {"bitsandbytes"}
    assert len(some.scenarios) < len(plain)
    assert some.narrowed
    with pytest.raises(ConfigError, match="deploy_backends leaves none"):
        settings(suite="deployable", deploy_backends=["vllm"], scenarios=["deployable_nf4"])
