"""Subjects as people make them, through the workflow, on the real model: what comes out of each.

Slow (some half an hour on two cores), so that only ``make cases`` runs it. One output folder serves
all subjects: the baseline is measured once, and no verdict of an earlier subject may stay.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import subjects
from repository_copy import link_repository, snakemake

pytestmark = pytest.mark.cases


class Passes(NamedTuple):
    """A PASS, with these types of note."""

    notes: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()


class Blocked(NamedTuple):
    """No PASS: the guard that speaks, and words that the verdict or the report holds."""

    guard: str
    words: tuple[str, ...]
    settings: tuple[str, ...] = ()


class Refused(NamedTuple):
    """One line before the first job, in a dry run too, with these words."""

    words: tuple[str, ...]


MEASURED_ONCE = "out/*/runs/baseline/report.json"
CASES: dict[str, Passes | Blocked | Refused] = {
    "scales_folded": Passes(),
    "norms_fused": Passes(),
    "value_heads_rotated": Passes(),
    "pruned_by_input": Passes(),
    "resaved_by_transformers": Passes(),
    "resaved_as_float16": Passes(("dtype_changed",)),
    "tied_head_stored_too": Passes(("stored_twice",)),
    "untied_equal_head": Passes(("weight_tying",)),
    "vocabulary_padded": Passes(("vocabulary_padded",)),
    "ids_in_another_spelling": Passes(("config_changed",)),
    "token_rows_exchanged": Blocked("spectral", ("4915 of 49152",)),
    "two_special_rows_exchanged": Blocked("spectral", ("2 of 49152",)),
    "value_heads_shifted": Blocked("representation", ("model.layers.20",)),
    "long_context_setting": Blocked("invariants", ("rope_scaling", "max_position_embeddings")),
    "chat_template_lost": Blocked("invariants", ("chat template",)),
    "generation_config_empty": Blocked("invariants", ("generation_config.json",)),
    "edit_never_applied": Blocked("invariants", ("nothing was edited",), ("edit_label=4bit",)),
    "quantization_config_left": Refused(("quantization_config", "remove")),
    "lfs_pointer": Refused(("git lfs pull",)),
    "dangling_link": Refused(("link", "model.safetensors")),
    "tokenizer_missing": Refused(("tokenizer", "baseline")),
}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder, whose output folder keeps the measured baseline."""
    return link_repository(tmp_path_factory.mktemp("cases") / "repository")


def judged(repository: Path, baseline: Path, subject: Path, *words: str) -> Any:
    """A run of the byoe suite on two folders."""
    config = ("suite=byoe", f"baseline={baseline}", f"subject={subject}", "out=out", "accept=[]")
    command = ("suite", "--profile", "profiles/cpu", *words[:1])
    return snakemake(repository, *command, config=(*config, *words[1:]), timeout=None)


def verdict(repository: Path) -> dict[str, Any]:
    """The verdict of the last subject."""
    found: dict[str, Any] = json.loads((repository / "out/reports/final_verdict.json").read_text())
    return found


def of_subject(found: dict[str, Any]) -> dict[str, Any]:
    """What the verdict says of the user's subject, beside the controls."""
    (record,) = (r for r in found["records"] if r["name"] == "byoe")
    return record


def report(repository: Path) -> dict[str, Any]:
    """The report of the last subject."""
    (path,) = repository.glob("out/*/reports/byoe/run_1/evaluation.report.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.mark.parametrize("name", CASES)
def test_a_subject_comes_out_as_it_has_to(
    repository: Path, smollm2: Path, tmp_path: Path, name: str
) -> None:
    """Harmless ones pass, damage is named, and what cannot be read is refused at once."""
    subject = subjects.make(getattr(subjects, name), smollm2, tmp_path / "subject")
    expected = CASES[name]
    if isinstance(expected, Refused):
        for dry in ("-n", "--printshellcmds"):
            done = judged(repository, smollm2, subject, dry)
            assert done.returncode in (2, 3), done.stderr
            line = done.stderr.strip().splitlines()[-1]
            assert all(word in line for word in expected.words), done.stderr
        assert not (repository / "out/reports/final_verdict.json").exists()
        return
    measured = [(path, path.stat().st_mtime) for path in repository.glob(MEASURED_ONCE)]
    done = judged(repository, smollm2, subject, "--quiet", *expected.settings)
    shutil.rmtree(subject)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [(path, path.stat().st_mtime) for path, _ in measured] == measured
    found, stated = verdict(repository), report(repository)
    kinds = {failure["type"] for failure in stated["invariants"]["failures"]}
    if isinstance(expected, Passes):
        assert found["verdict"] == "PASS", of_subject(found)["why"]
        assert set(expected.notes) <= kinds
        return
    assert (found["verdict"], found["outcome"]) == ("FAIL", "fail")
    assert of_subject(found)["guard_flags"][expected.guard] is True
    told = (repository / "out/reports/final_verdict.txt").read_text() + json.dumps(stated)
    assert all(word in told for word in expected.words)
