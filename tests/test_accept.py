"""Differences that a user accepts by name, and edits that were never applied."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import report_factory as factory
import torch
from hypothesis import given
from hypothesis import strategies as st
from measuring_factory import World, change, read

from invarlock.contracts import validate
from invarlock.errors import ConfigError
from invarlock.guards.findings import nothing_edited
from invarlock.guards.invariants_decision import judge, unedited
from invarlock.guards.row_changes import special_ids, tokenizer_of
from invarlock.reporting.render import render_report_markdown
from invarlock.reporting.replay import replay
from invarlock.reporting.signals import pass_reasons
from invarlock.run.accept import check_accept
from invarlock.severity import NOTHING_EDITED
from invarlock.verdict.records import make_record
from invarlock.verdict.verdict import compile_verdict

pytestmark = pytest.mark.usefixtures("in_this_process")

DOWN = "model.layers.1.mlp.down_proj.weight"
LABELS = ("custom", "4bit", "rtn_int4_gs128", "fine_tune")


# --- the decision -----------------------------------------------------------------------------

NAMES = st.sampled_from(["chat_template", "generation_config", "rope_scaling"])
FINDINGS = st.lists(
    st.fixed_dictionaries(
        {
            "type": st.just("x"),
            "severity": st.sampled_from(["fatal", "warning"]),
            "message": st.just("x"),
        },
        optional={"accept": NAMES},
    )
)


@given(FINDINGS, st.sets(NAMES))
def test_exactly_the_named_findings_are_let_through(found: list[Any], names: set[str]) -> None:
    """Brute force: it passes iff every fatal finding has a name that is accepted."""
    block = judge(found, names)
    fatal = [f for f in found if f["severity"] == "fatal"]
    assert block["passed"] == all("accept" in f and f["accept"] in names for f in fatal)
    through = {f["accept"] for f in fatal if f.get("accept") in names}
    assert block.get("accepted", []) == sorted(through)
    summary = block["summary"]
    parts = ("fatal_violations", "warning_violations", "accepted_violations")
    assert sum(summary.get(part, 0) for part in parts) == summary["violations_found"] == len(found)


@given(FINDINGS)
def test_without_a_name_nothing_changes(found: list[Any]) -> None:
    """A report of somebody who accepts nothing says nothing of it."""
    assert "accepted" not in judge(found)
    assert "accepted_violations" not in judge(found)["summary"]


@pytest.mark.parametrize("label", LABELS)
def test_equal_weights_are_no_edit_under_any_label_but_noop(label: str) -> None:
    """And nobody can accept it."""
    parts = {"weights_sha256": "a" * 64}
    (finding,) = nothing_edited(label, parts, dict(parts))
    assert "nothing was edited" in finding["message"]
    assert label in finding["message"]
    assert judge([finding], ["custom", NOTHING_EDITED])["passed"] is False
    assert nothing_edited("noop", parts, parts) == []
    assert nothing_edited(label, parts, {"weights_sha256": "b" * 64}) == []
    assert nothing_edited(label, parts, {"files": {}}) == []  # not read as a checkpoint
    assert nothing_edited(label, parts, None) == []


# --- what a verifier sees -----------------------------------------------------------------------


def relabelled(name: str, **how: Any) -> dict[str, Any]:
    """A report whose subject has the baseline's weights, labelled as an edit."""

    def same(run: dict[str, Any]) -> None:
        run["edit"]["name"] = "4bit"
        run["checkpoint"] = factory.parts("baseline")
        run["meta"]["checkpoint_sha256"] = factory.checkpoint_sha256("baseline")

    return factory.make_report(name, subject=same, **how)


def test_a_report_of_equal_weights_does_not_pass_whatever_its_findings_say() -> None:
    """The judge derives it from the digests of both checkpoints, not from a recorded line."""
    report = relabelled("never_applied")
    assert "invariants_fail" in pass_reasons(report)
    assert unedited(report)
    assert replay(report) == []
    hidden = json.loads(json.dumps(report))
    hidden["invariants"] = judge([])
    hidden["validation"]["invariants_pass"] = True
    assert any("/invariants" in line for line in replay(hidden))


def test_an_accepted_difference_passes_and_is_recorded() -> None:
    """It is in the report, and in the record of the verdict."""
    report = factory.make_accepting(("chat_template",))
    assert pass_reasons(report) == []
    assert report["context"]["accept"] == ["chat_template"]
    assert report["invariants"]["accepted"] == ["chat_template"]
    assert replay(report) == []
    scenario = factory.scenario("quant_8bit_clean")
    evaluation = factory.make_evaluation(scenario, report)
    record = make_record(scenario, evaluation, None)
    assert record.accepted == ["chat_template"]
    manifest = factory.manifest(ids=[scenario.id])
    verdict = compile_verdict(manifest, [evaluation], [evaluation.key])
    validate(json.loads(json.dumps(verdict)), "final-verdict", "test")


def test_what_is_accepted_and_not_found_is_a_note() -> None:
    """It is no reason to fail."""
    report = factory.make_accepting(("chat_template", "generation_config"))
    assert pass_reasons(report) == []


def test_the_same_difference_blocks_where_nobody_accepts_it() -> None:
    """And a record of it has no such member."""
    report = factory.make_accepting(())
    assert pass_reasons(report) == ["invariants_fail"]
    assert "accept" not in report["context"]


@pytest.mark.parametrize("names", [[], ["generation_config"], ["chat_template", "x"]])
def test_a_changed_acceptance_does_not_replay(names: list[str]) -> None:
    """Neither taken away, nor exchanged, nor widened: the run id covers it too."""
    report = factory.make_accepting(("chat_template",))
    report["context"]["accept"] = names
    assert replay(report) != []


# --- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "chat_template",
        "special_tokens",
        "special_token_rows",
        "max_position_embeddings",
        "attention_dropout",
    ],
)
def test_kinds_of_files_and_fields_are_names(world: World, name: str) -> None:
    """Also a field that only the configuration's own class gives (attention_dropout)."""
    check_accept([name], world.baseline, world.baseline, "--accept")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("chat_templates", "chat_template"),
        ("generation-config", "generation_config"),
        ("max_position_embedding", "max_position_embeddings"),
    ],
)
def test_a_slip_is_refused_with_the_name_that_is_meant(world: World, name: str, meant: str) -> None:
    """Before anything is measured."""
    with pytest.raises(ConfigError, match=f"did you mean {meant}"):
        check_accept([name], world.baseline, world.baseline, "--accept")


def test_the_command_refuses_a_slip(world: World, tmp_path: Path, capsys) -> None:
    """Exit 2 and one line."""
    assert world.evaluate(world.baseline, tmp_path / "out", "--accept", "chat_templates") == 2
    assert "did you mean chat_template?" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# --- the command --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def left(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An edited subject whose tokenizer cuts texts on the other side."""
    subject = shutil.copytree(world.baseline, tmp_path_factory.mktemp("left") / "subject")
    noise = torch.Generator().manual_seed(3)

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        old = tensors[DOWN]
        moved = old.float() + torch.randn(old.shape, generator=noise) * 1e-3
        tensors[DOWN] = moved.to(old.dtype)

    change(subject, edit)
    path = subject / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "truncation_side": "left"}))
    return subject


def test_a_difference_is_never_measured_unless_it_is_accepted(
    world: World, left: Path, tmp_path: Path, capsys
) -> None:
    """Rejected first; with its name measured, and the summary line and the report say so."""
    assert world.evaluate(left, tmp_path / "no") == 0
    assert read(tmp_path / "no", "outcome.json")["status"] == "rejected_by_invariants"
    assert world.evaluate(left, tmp_path / "yes", "--accept", "tokenizer_config,pad_token_id") == 0
    report = read(tmp_path / "yes")
    assert pass_reasons(report) == []
    (first, *_) = report["invariants"]["failures"]
    assert "truncation_side was 'right', is 'left'" in first["message"]
    line = capsys.readouterr().out.splitlines()[-1]
    assert "accepted by name: tokenizer_config; accept names what was not found" in line
    files = [report["provenance"][s]["checkpoint"]["files"] for s in ("baseline", "subject")]
    assert files[0].keys() == files[1].keys()
    assert files[0]["tokenizer_config.json"] != files[1]["tokenizer_config.json"]
    found = replay(report)
    assert found == []


def with_rows(world: World, folder: Path, rows: dict[int, int | None]) -> Path:
    """A subject in which rows of the embedding are trained anew (None), or are other rows."""
    subject = shutil.copytree(world.baseline, folder)

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        table = tensors["model.embed_tokens.weight"]
        before, noise = table.clone(), torch.Generator().manual_seed(5)
        for row, other in rows.items():
            new = torch.randn(table[row].shape, generator=noise) * before.float().std()
            table[row] = new.to(table.dtype) if other is None else before[other]

    change(subject, edit)
    return subject


def test_rows_of_special_tokens_that_were_trained_can_be_accepted(
    world: World, tmp_path: Path, capsys
) -> None:
    """Refused until then; the report, the page and the record of the verdict say so."""
    special = sorted(special_ids(tokenizer_of(world.baseline)))
    subject = with_rows(world, tmp_path / "subject", {special[0]: None})
    assert world.evaluate(subject, tmp_path / "no") == 0
    refused = read(tmp_path / "no")
    assert pass_reasons(refused) == ["spectral_fail"]
    assert "special tokens, to be accepted as special_token_rows" in render_report_markdown(refused)
    assert replay(refused) == []
    assert world.evaluate(subject, tmp_path / "yes", "--accept", "special_token_rows") == 0
    report = read(tmp_path / "yes")
    assert pass_reasons(report) == []
    assert report["spectral"]["accepted"] == ["special_token_rows"]
    assert "accepted by name: special_token_rows" in capsys.readouterr().out.splitlines()[-1]
    page = render_report_markdown(report)
    assert "all are special tokens, accepted by name: special_token_rows" in page
    assert "to be accepted" not in page
    assert replay(report) == []
    del report["context"]["accept"]
    assert replay(report) != []


def test_other_rows_are_not_accepted_with_them(world: World, tmp_path: Path) -> None:
    """An ordinary row beside a special one, or special tokens that took each other's place."""
    first, second, *_ = sorted(special_ids(tokenizer_of(world.baseline)))
    ordinary = next(i for i in range(40, 60))
    for name, rows in (
        ("beside", {first: None, ordinary: None}),
        ("exchanged", {first: second, second: first}),
    ):
        subject = with_rows(world, tmp_path / name, rows)
        out = tmp_path / f"out-{name}"
        assert world.evaluate(subject, out, "--accept", "special_token_rows") == 0
        report = read(out)
        assert pass_reasons(report) == ["spectral_fail"], name
        assert "accepted" not in report["spectral"]


def test_an_edit_that_was_never_applied_is_named(world: World, tmp_path: Path, capsys) -> None:
    """Identical weights and another version in config.json, said to be 4 bits."""
    subject = shutil.copytree(world.baseline, tmp_path / "subject")
    path = subject / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "transformers_version": "5.0.0"}))
    assert world.evaluate(subject, tmp_path / "out", "--edit-label", "4bit") == 0
    report = read(tmp_path / "out")
    assert "invariants_pass" in {k for k, v in report["validation"].items() if not v}
    assert report["invariants"]["failures"][-1]["type"] == NOTHING_EDITED
    assert "nothing was edited" in render_report_markdown(report)
    assert "nothing was edited" in capsys.readouterr().out.splitlines()[-1]
    assert replay(report) == []


def test_damage_that_was_never_done_is_no_detection() -> None:
    """A control has to be caught by what it does, and not by doing nothing."""
    report = relabelled("layer_swap")
    scenario = factory.scenario("layer_swap", "full")
    record = make_record(scenario, factory.make_evaluation(scenario, report), None)
    assert (record.injected, record.as_expected) == (False, False)


def test_without_a_label_equal_weights_are_a_noop_and_it_is_said(
    world: World, tmp_path: Path
) -> None:
    """No claim is made, so none is refused; any label that claims an edit is."""
    subject = shutil.copytree(world.baseline, tmp_path / "subject")
    assert world.evaluate(subject, tmp_path / "out") == 0
    report = read(tmp_path / "out")
    assert report["edit"]["name"] == "noop"
    assert [f["type"] for f in report["invariants"]["failures"]] == ["unnamed_noop"]
    assert pass_reasons(report) == []
    assert replay(report) == []
    assert world.evaluate(subject, tmp_path / "claimed", "--edit-label", "custom") == 0
    assert pass_reasons(read(tmp_path / "claimed")) != []
