"""Every architecture of the suites through every edit, every injection and every guard."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from architecture_factory import ARCHITECTURES, LAYERS, Architecture, make_architecture
from checkpoint_factory import weights
from measuring_factory import SETTINGS, read, write_tiny_windows
from safetensors.torch import load_file

from invarlock import contracts
from invarlock.checkpoints import Checkpoint
from invarlock.cli import main
from invarlock.damage.kinds import DAMAGES
from invarlock.edits.kinds import EDITS
from invarlock.pages.reading import evaluated
from invarlock.reporting.replay import replay
from invarlock.reporting.signals import CORE_GUARDS, guard_flags
from invarlock.roles import Role, is_tied, layer_of, role_of
from invarlock.windows import WindowPlan

Document = dict[str, Any]
WHOLE_BLOCK = ("attn", "ffn")
# What a scope means: the parts that were named by hand, and of which layer.
SCOPES: dict[str, tuple[tuple[str, ...], int | None]] = {
    "attn": (("attn",), None),
    "ffn": (("ffn",), None),
    "all": (WHOLE_BLOCK, None),
    "embed": (("embed",), None),
    "ffn@layer=1": (("ffn",), 1),
    "all@layers=1": (WHOLE_BLOCK, 0),
}
EDIT_SPECS = {
    "noop": "noop",
    "quant_rtn": "quant_rtn:4:4:{}",
    "fp8_quant": "fp8_quant:e4m3:{}",
    "magnitude_prune": "magnitude_prune:0.3:{}",
    "lowrank_svd": "lowrank_svd:1:{}",
    "lora_merge": "lora_merge:2:4:{}",
    "fine_tune": "fine_tune:0.01:1:{}",
}
TRAINED = ("lora_merge", "fine_tune")
# What rewrites tensors together means more than matrices, and pruning by importance needs a module
# a matrix, which stacked experts have not: tests/test_rewrites.py, tests/test_training_edits.py.
ELSEWHERE = {"importance_prune", "norm_fuse", "resaved", "rotation", "scale_fold"}


@dataclass(frozen=True)
class Case:
    """One architecture and its folder, never changed."""

    name: str
    folder: Path

    @property
    def windows(self) -> Path:
        """16 + 16 windows of 24 tokens."""
        return self.folder.with_name("windows.json")

    @property
    def made(self) -> Architecture:
        """What is stated about it."""
        return ARCHITECTURES[self.name]


# The causal mask that GPT-2's file holds is the same in every layer; BERT's pooler is no weight of
# the masked model. Nothing that knows roles takes either for a weight.
MASK, POOLER = "h.#.attn.bias", "bert.pooler.dense."


def _first_attention(case: Case) -> set[str]:
    return {case.made.parts["attn"][0].replace("#", "0")}


def _attention(case: Case) -> set[str]:
    return case.made.named("attn")


def _in_layers(pattern: str, *layers: int) -> set[str]:
    return {pattern.replace("#", str(layer)) for layer in layers}


def _vocabulary(case: Case) -> set[str]:
    rows = {case.made.parts["embed"][0], *case.made.vocabulary}
    return rows if case.made.tied else rows | {"lm_head.weight"}


def _token_tables(case: Case) -> set[str]:
    return {case.made.parts["embed"][0]} | (set() if case.made.tied else {"lm_head.weight"})


def _block(case: Case, layer: int) -> set[str]:
    return case.made.named(*case.made.parts, layer=layer)


def _last_shard(case: Case) -> set[str]:
    """The tensors of the last file; of a single file, those of the last layer."""
    shards = sorted(case.folder.glob("*.safetensors"))
    names = set(load_file(shards[-1])) if len(shards) > 1 else _block(case, LAYERS - 1)
    return {n for n in names if not n.startswith(POOLER)} - _in_layers(MASK, LAYERS - 1)


def _leaving(case: Case) -> set[str]:
    """The matrices out of a feed-forward block, every expert's among them."""
    last = ("down_proj", "w2", "mlp.c_proj", "output.dense")
    return {n for n in case.made.named("ffn") if n.removesuffix(".weight").endswith(last)}


# What an injection with its published parameters hits; `ve_mlp_scale_skew` draws one of them.
HIT: dict[str, Callable[[Case], set[str]]] = {
    "nan_injection": _first_attention,
    "inf_injection": _first_attention,
    "shape_mismatch": _vocabulary,
    "missing_tensors": lambda case: _block(case, LAYERS - 1),
    "extreme_quant": lambda case: case.made.named("attn", "ffn", "router", "embed", "head"),
    "scale_explosion": lambda case: _in_layers(case.made.first_ffn, 0),
    "rank_collapse": _attention,
    "norm_collapse": _attention,
    "weight_tying_break": lambda case: {
        "cls.predictions.decoder.weight" if case.name == "bert" else "lm_head.weight"
    },
    "rank1_projection": lambda case: _in_layers(case.made.last_ffn, 1),
    "bit_flip": lambda case: _in_layers(case.made.last_ffn, 1),
    "layer_swap": lambda case: (
        (_block(case, 0) | _block(case, 1)) - _in_layers(MASK, *range(LAYERS))
    ),
    "tokenizer_swap": lambda _: {"tokenizer.json"},
    "token_rows_exchanged": _token_tables,
    "stale_shard": _last_shard,
    "truncated_shard": lambda case: {sorted(case.folder.glob("*.safetensors"))[-1].name},
    "rmt_norm_noise": _attention,
    "spectral_moderate_scale": lambda case: _in_layers(case.made.attn_out, *range(LAYERS)),
    "ve_mlp_scale_skew": _leaving,
}
# Not every architecture has their parts; test_damage_exchanges.py shows what they hit where it has.
NOT_EVERYWHERE = {
    "value_heads_shifted", "kv_head_copied", "gate_up_exchanged", "norm_of_another_layer",
    "neuron_pairs_exchanged", "long_context_setting", "chat_template_lost", "nothing_edited",
}  # fmt: skip


@pytest.fixture(scope="module", params=ARCHITECTURES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """The checkpoint of one architecture."""
    root = tmp_path_factory.mktemp(request.param)
    found = Case(request.param, make_architecture(request.param, root / "model"))
    write_tiny_windows(found.folder, found.windows, WindowPlan(24, 16, 16, 43))
    return found


def changed(before: Path, after: Path) -> set[str]:
    """Names of tensors whose bytes differ, or that only one of the folders has."""
    a, b = weights(before), weights(after)
    shared = {n for n in a.keys() & b.keys() if a[n].shape == b[n].shape}
    same = {n for n in shared if torch.equal(a[n].view(torch.int16), b[n].view(torch.int16))}
    return (a.keys() | b.keys()) - same


def metadata_of(words: list[str], out: Path) -> Document:
    """Run `edit` or `inject` as a user does; the metadata it wrote beside ``out``."""
    path = out.with_name(f"{out.name}.json")
    assert main([*words, "--out", str(out), "--metadata", str(path)]) == 0
    document: Document = json.loads(path.read_text())
    return document


# --- roles ----------------------------------------------------------------------------------


def test_every_tensor_has_the_part_that_was_stated(case: Case) -> None:
    """Roles, layers and tying of the released names; experts are a role of their own."""
    checkpoint = Checkpoint.open(case.folder)
    parts = {name: part for part in case.made.parts for name in case.made.named(part)}
    assert set(parts) == set(checkpoint.tensors)
    expert = {Role.EXPERT} if "mixtral" in case.name else {Role.FFN}
    for name, info in checkpoint.tensors.items():
        role = role_of(name, checkpoint.config)
        if parts[name] == "ffn":
            assert {role} == expert, name
        elif parts[name] != "other":
            assert role.value == parts[name], name
        else:  # biases and buffers: whatever their role, no edit takes them for a matrix
            assert len(info.shape) in (1, 4) or "pooler" in name, name
    assert {layer_of(n) for n in checkpoint.tensors} == {None, *range(LAYERS)}
    assert is_tied(checkpoint.config) is case.made.tied
    assert len(checkpoint.shards) == case.made.shards


# --- edits ----------------------------------------------------------------------------------


def test_no_edit_and_no_injection_is_left_out() -> None:
    """The tables of this file are those of the package."""
    assert EDIT_SPECS.keys() | ELSEWHERE == EDITS.keys()
    assert HIT.keys() | NOT_EVERYWHERE == DAMAGES.keys()
    assert not HIT.keys() & NOT_EVERYWHERE


@pytest.mark.parametrize("edit_type", EDIT_SPECS)
def test_an_edit_changes_what_its_scope_means(
    case: Case, in_this_process: None, tmp_path: Path, edit_type: str
) -> None:
    """Exactly the matrices stated, with their coverage; the rest bit-identical; true digests."""
    sizes = {name: tensor.numel() for name, tensor in weights(case.folder).items()}
    form = EDIT_SPECS[edit_type]
    for number, (scope, (parts, layer)) in enumerate(SCOPES.items()):
        out = tmp_path / str(number)
        words = ["edit", "--baseline", str(case.folder), "--spec", form.format(scope)]
        if edit_type in TRAINED:
            words += ["--windows", str(case.windows), "--device", "cpu", "--dtype", "float32"]
        metadata = metadata_of(words, out)
        expected = set() if edit_type == "noop" else case.made.named(*parts, layer=layer)
        assert set(metadata["edited_tensors"]) == expected, scope
        assert changed(case.folder, out) == expected - set(metadata["unchanged_tensors"]), scope
        edited = sum(sizes[name] for name in expected)
        assert metadata["coverage"] == {
            "edited_tensors": len(expected),
            "edited_params": edited,
            "total_params": sum(sizes.values()),
            "coverage_ratio": edited / sum(sizes.values()),
        }, scope
        assert contracts.violations(metadata, "edit-metadata") == []
        before, after = Checkpoint.open(case.folder), Checkpoint.open(out)
        assert metadata["baseline_checkpoint_sha256"] == before.digest()
        assert metadata["subject_checkpoint_sha256"] == after.digest()
        for name, digest in metadata["edited_tensors"].items():
            assert after.tensor_digest(name) == digest, name


def test_an_edited_embedding_is_the_head_where_they_are_tied(case: Case, tmp_path: Path) -> None:
    """Edited once, and what the library loads as the head is the edited or the old matrix."""
    import transformers

    metadata_of(
        ["edit", "--baseline", str(case.folder), "--spec", "quant_rtn:3:0:embed"], tmp_path / "out"
    )
    model = getattr(transformers, case.made.library).from_pretrained(tmp_path / "out")
    first = case.made.parts["embed"][0]
    before, after = weights(case.folder), weights(tmp_path / "out")
    head = model.get_output_embeddings().weight
    if case.made.tied:
        assert torch.equal(head, after[first])
        assert not torch.equal(head, before[first])
    else:
        assert torch.equal(head, before["lm_head.weight"])


# --- damage ---------------------------------------------------------------------------------


@pytest.mark.parametrize("error_type", HIT)
def test_an_injection_hits_what_was_stated(case: Case, tmp_path: Path, error_type: str) -> None:
    """The published parameters find their targets in every architecture; the metadata is true."""
    out = tmp_path / "out"
    words = ["inject", "--baseline", str(case.folder), "--error-type", error_type]
    metadata = metadata_of(words, out)
    assert contracts.violations(metadata, "error-metadata") == []
    settings = [json.loads((folder / "config.json").read_text()) for folder in (case.folder, out)]
    differing = {k for k in settings[1] if settings[0].get(k) != settings[1][k]}
    assert set(metadata["changed_config_keys"]) == differing
    targets, expected = set(metadata["targets"]), HIT[error_type](case)
    if error_type == "ve_mlp_scale_skew":
        assert len(targets) == 1
        assert targets <= expected
    elif error_type == "truncated_shard":
        assert expected == {n for n in targets if n.endswith(".safetensors")}
    else:
        assert targets == expected
    if metadata["changed_files"]:
        same = {
            p.name for p in case.folder.iterdir() if p.read_bytes() == (out / p.name).read_bytes()
        }
        assert {p.name for p in case.folder.iterdir()} - same == expected
    else:
        assert changed(case.folder, out) == targets
    if error_type != "truncated_shard":
        assert metadata["subject_checkpoint_sha256"] == Checkpoint.open(out).digest()


# --- guards ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(case: Case, in_this_process: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the baseline's run and the reports of a copy and of two damaged subjects."""
    root = tmp_path_factory.mktemp(f"{case.name}-measured")
    windows = ["--windows", str(case.windows), *SETTINGS]
    assert main(["run", "--model", str(case.folder), "--out", str(root / "run"), *windows]) == 0
    metadata_of(["edit", "--baseline", str(case.folder), "--spec", "noop"], root / "noop")
    for error_type in ("scale_explosion", "nan_injection"):
        words = ["inject", "--baseline", str(case.folder), "--error-type", error_type]
        metadata_of(words, root / error_type)
    for subject in ("noop", "scale_explosion", "nan_injection"):
        words = ["evaluate", "--baseline", str(case.folder), "--subject", str(root / subject)]
        words += ["--baseline-report", str(root / "run"), "--out", str(root / f"{subject} report")]
        words += ["--edit-label", subject]
        assert main([*words, *windows]) == 0
    return root


def test_reports_follow_their_contracts_and_replay(measured: Path) -> None:
    """Report, manifest and outcome of every subject."""
    for folder in measured.glob("* report"):
        for name, contract in {
            "evaluation.report.json": "evaluation-report",
            "runtime.manifest.json": "runtime-manifest",
            "outcome.json": "outcome",
        }.items():
            contracts.validate(read(folder, name), contract, name)
        assert replay(read(folder)) == []


def test_a_copy_is_exactly_the_baseline_to_every_guard(case: Case, measured: Path) -> None:
    """Ratio 1 to the last bit; every guard has measured and found nothing."""
    report = read(measured / "noop report")
    assert report["primary_metric"]["ratio_vs_baseline"] == 1.0
    assert report["primary_metric"]["kind"] == ("ppl_mlm" if case.name == "bert" else "ppl_causal")
    assert [name for name in CORE_GUARDS if not evaluated(report, name)] == []
    assert report["spectral"]["summary"]["max_abs_log_ratio"] == 0.0
    assert report["rmt"]["max_edge_ratio"] == 1.0
    assert not any(guard_flags(report).values())
    stacks = {name: t for name, t in weights(case.folder).items() if t.dim() in (2, 3)}
    labels = {
        n: [n] if t.dim() == 2 else [f"{n}[{i}]" for i in range(8)] for n, t in stacks.items()
    }
    assert report["spectral"]["modules"]["name"] == sorted(itertools.chain(*labels.values()))


def test_a_planted_damage_is_found(case: Case, measured: Path) -> None:
    """A first projection a hundred times too large, by its spectrum; of BERT, whose wiring is not
    known, the block that it moved is named and does not block. One NaN, before anything."""
    report = read(measured / "scale_explosion report")
    if case.name == "bert":
        assert report["representation"]["kinds"]["ffn"]["excess"] > 0.4
        assert report["representation"]["decision"] == "monitor"
    else:
        assert guard_flags(report)["spectral"]
    nan = measured / "nan_injection report"
    assert read(nan, "outcome.json")["status"] == "rejected_by_invariants"
    assert guard_flags(read(nan))["invariants"]


def test_routers_are_probed_where_there_are_some(case: Case, measured: Path) -> None:
    """One router a layer with its eight experts, two of them a token; none elsewhere."""
    report = read(measured / "noop report")
    if "mixtral" not in case.name:
        assert "moe" not in report
        return
    routers = report["moe"]["routers"]
    assert len(routers["layer"]) == LAYERS
    assert report["moe"]["top_k"] == 2


def test_both_layouts_of_the_experts_are_the_same_model(
    in_this_process: None, tmp_path: Path
) -> None:
    """One matrix each or stacked: the library computes the same losses from either."""
    losses = []
    for name in ("mixtral", "mixtral-fused"):
        folder = make_architecture(name, tmp_path / name)
        write_tiny_windows(folder, tmp_path / "windows.json", WindowPlan(24, 16, 16, 43))
        words = ["run", "--model", str(folder), "--windows", str(tmp_path / "windows.json")]
        assert main([*words, "--out", str(tmp_path / f"{name} run"), *SETTINGS]) == 0
        losses.append(read(tmp_path / f"{name} run", "report.json")["evaluation_windows"])
    assert losses[0] == losses[1]
