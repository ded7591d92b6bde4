"""The search for tuned clean-edit parameters: what is chosen, its log, and the command."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from checkpoint_factory import make_llama
from measuring_factory import SETTINGS, write_tiny_windows
from repository_copy import ROOT, invarlock

from invarlock.cli import main, parser_of, tune
from invarlock.cli.options import parsed
from invarlock.cli.tune_search import Bench, search
from invarlock.edits import specs as edit_specs
from invarlock.edits.specs import CANDIDATES
from invarlock.errors import ConfigError
from invarlock.files import read_json_object, sha256_file
from invarlock.tuned import (
    TunedParameters,
    load_tuned,
    spec_of,
    write_tuned,
)
from invarlock.windows import WindowPlan, ids_of_others, read_windows

PUBLISHED = ROOT / "scenarios" / "tuned_edit_params.json"
STRONG, WEAK = "0.9:all", "0.02:ffn"
Document = dict[str, Any]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a baseline, and four disjoint sets of windows."""
    root = tmp_path_factory.mktemp("tune")
    make_llama(root / "baseline", hidden=32, seed=1)
    others: list[Path] = []
    for seed, name in ((43, "judged"), (47, "training"), (48, "selection"), (49, "confirmation")):
        plan = WindowPlan(32, 10, 10, seed, ids_of_others(others, 32))
        write_tiny_windows(root / "baseline", root / f"{name}.json", plan)
        others.append(root / f"{name}.json")
    return root


def words(root: Path, out: Path, *more: str, **files: str) -> list[str]:
    """Options of the command in tier none, which has no floors."""
    found = ["--baseline", str(root / "baseline"), "--out", str(out), "--tier", "none"]
    for name in ("selection", "confirmation", "judged"):
        found += [f"--{name}-windows", str(root / f"{files.get(name, name)}.json")]
    return [*found, *SETTINGS, *more]


def bench(root: Path, stage: Path, *more: str, **files: str) -> Bench:
    """What the command makes of its options."""
    given = words(root, stage / "unused.json", "--edits", "quant_rtn", *more, **files)
    args = parser_of("advanced tune").parse_args(given)
    return tune.bench_of(parsed(tune.TuneOptions, args), stage)


def trying(monkeypatch: pytest.MonkeyPatch, edit_type: str, *specs: str) -> None:
    """Let a search try these."""
    monkeypatch.setattr(edit_specs, "CANDIDATES", {**CANDIDATES, edit_type: specs})


def divergence(mine: Bench, spec: str) -> float:
    """Mean KL of a candidate on the confirmation windows, with no limit in force."""
    with pytest.MonkeyPatch.context() as patch:
        trying(patch, "magnitude_prune", spec)
        assert search("magnitude_prune", mine)["status"] == "selected"
    report = read_json_object(mine.stage / "evaluation" / "evaluation.report.json")
    return float(report["distribution"]["kl"]["mean"])


def log(entry: Mapping[str, Any]) -> list[tuple[str, str | None, str]]:
    """What was tried: parameters, windows, result."""
    rows = entry["search"]["candidates"]
    return [(r["spec"].partition(":")[2], r["windows"], r["result"]) for r in rows]


@pytest.fixture(scope="module")
def searched(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Document:
    """The entry of a search."""
    return search("quant_rtn", bench(tiny, tmp_path_factory.mktemp("searched")))


# --- the search -------------------------------------------------------------------------------


def test_the_first_that_passes_twice_is_selected(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure and a candidate that does not fit come before it, the rest is not tried."""
    limit = divergence(bench(tiny, tmp_path / "look"), "0.3:all")
    trying(monkeypatch, "magnitude_prune", STRONG, "0.1:ffn@layer=7", WEAK, "0.01:ffn")
    mine = bench(tiny, tmp_path / "stage", "--kl-mean-max", str(limit))
    entry = search("magnitude_prune", mine)
    assert log(entry) == [
        (STRONG, "selection", "failed"),
        ("0.1:ffn@layer=7", None, "not_applicable"),
        (WEAK, "selection", "passed"),
        (WEAK, "confirmation", "passed"),
    ]
    assert entry["status"] == "selected"
    assert spec_of("magnitude_prune", entry) == f"magnitude_prune:{WEAK}"
    found = entry["search"]
    assert found["candidates"][0]["reasons"] == ["distribution_fail"]
    for row in found["candidates"][2:]:
        assert row["interval"][0] <= row["ratio"] <= row["interval"][1]
        assert (row["decision"], row["reasons"], row["guards"]) == ("pass", [], [])
    for name in ("selection", "confirmation"):
        path = tiny / f"{name}.json"
        assert found[name]["windows_sha256"] == sha256_file(path)
        assert found[name]["seed"] == read_windows(path).seed
    assert found["excluded"]["windows"] == 20


def test_what_is_not_confirmed_is_not_selected(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its divergence on one set and on the other: chosen there, refused here."""
    there = divergence(bench(tiny, tmp_path / "a"), "0.3:all")
    swapped = {"selection": "confirmation", "confirmation": "selection"}
    here = divergence(bench(tiny, tmp_path / "b", **swapped), "0.3:all")
    files = swapped if there < here else {}  # the set with the smaller one chooses
    limit = str((there + here) / 2)
    trying(monkeypatch, "magnitude_prune", "0.3:all", WEAK)
    mine = bench(tiny, tmp_path / "stage", "--kl-mean-max", limit, **files)
    entry = search("magnitude_prune", mine)
    assert log(entry) == [
        ("0.3:all", "selection", "passed"),
        ("0.3:all", "confirmation", "failed"),
        (WEAK, "selection", "passed"),
        (WEAK, "confirmation", "passed"),
    ]
    assert entry["sparsity"] == 0.02

    trying(monkeypatch, "magnitude_prune", "0.3:all")
    entry = search("magnitude_prune", mine)
    assert entry["status"] == "skipped"
    assert "none of 1 candidates passes on both" in entry["reason"]
    assert "1 passed on the selection windows alone" in entry["reason"]
    assert "sparsity" not in entry


def test_a_model_that_no_candidate_fits_is_skipped(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is measured, and the reason says why."""
    trying(monkeypatch, "quant_rtn", "4:5:ffn")
    entry = search("quant_rtn", bench(tiny, tmp_path / "stage"))
    assert entry["status"] == "skipped"
    assert "group_size 5 does not divide" in entry["reason"]
    write_tuned(tmp_path / "t.json", TunedParameters("", {"m": {"quant_rtn": entry}}, {}))


def test_training_edits_learn_from_their_own_windows(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log names the windows; they are kept apart from both sets."""
    trying(monkeypatch, "fine_tune", "0.0001:1:ffn")
    training = tiny / "training.json"
    mine = bench(tiny, tmp_path / "stage", "--training-windows", str(training))
    entry = search("fine_tune", mine)
    assert (entry["status"], entry["learning_rate"], entry["steps"]) == ("selected", 0.0001, 1)
    assert entry["search"]["training_windows_sha256"] == sha256_file(training)
    assert entry["search"]["excluded"]["windows"] == 40


@pytest.mark.parametrize(
    ("more", "files", "line"),
    [
        ([], {"confirmation": "selection"}, "20 of the selection windows are also among those of"),
        ([], {"judged": "confirmation"}, "20 of the confirmation windows are also among those to"),
        (["--training-windows", "selection"], {}, "20 of the selection windows are also among"),
        ([], {"confirmation": "reseeded"}, "selection and confirmation windows have one seed"),
    ],
)
def test_windows_that_are_not_disjoint_are_refused(
    tiny: Path, tmp_path: Path, more: list[str], files: dict[str, str], line: str
) -> None:
    """What is chosen on the windows it is judged on shows nothing."""
    document = json.loads((tiny / "confirmation.json").read_text()) | {"seed": 48}
    (tiny / "reseeded.json").write_text(json.dumps(document))
    given = [str(tiny / "selection.json") if word == "selection" else word for word in more]
    with pytest.raises(ConfigError, match=line):
        bench(tiny, tmp_path, *given, **files).require_disjoint()


# --- the command ------------------------------------------------------------------------------


def test_the_command_keeps_other_entries_and_repeats(
    tiny: Path, tmp_path: Path, searched: Document
) -> None:
    """--update keeps every other entry; two searches, in two processes, find the same."""
    kept = {"status": "selected", "rank": 32, "scope": "ffn", "edit_dir_name": "svd"}
    replaced = {"status": "skipped", "reason": "old"}
    models = {"acme/other": {"lowrank_svd": kept}, "acme/tiny": {"quant_rtn": replaced}}
    write_tuned(tmp_path / "old.json", TunedParameters("", models, {"lowrank_svd": kept}, ["why"]))
    out = tmp_path / "out" / "tuned.json"
    more = ("--edits", "quant_rtn", "--update", str(tmp_path / "old.json"))
    done = invarlock("advanced", "tune", *words(tiny, out, *more))
    assert done.returncode == 0, done.stderr
    assert "quant_rtn: selected: candidate 1, the first that passes on both" in done.stdout
    assert [path.name for path in out.parent.iterdir()] == ["tuned.json"]
    table = load_tuned(out)
    assert table.models["acme/tiny"] == {"quant_rtn": searched}
    assert table.models["acme/other"] == {"lowrank_svd": kept}
    assert table.defaults == {"lowrank_svd": kept}
    assert table.notes == ["why", tune.NOTE]
    assert spec_of("quant_rtn", table.models["acme/tiny"]["quant_rtn"]) == "quant_rtn:4:32:ffn"


@pytest.mark.parametrize(
    ("more", "code", "line"),
    [
        (["--edits", "fine_tune"], 2, "fine_tune is trained, and there is no text to train on"),
        (["--edits", "quant_rtn", "--update", "nowhere.json"], 3, "nowhere.json: no such file"),
        (["--edits", "quant_rtn", "--selection-run", "nowhere"], 3, "no run of the baseline"),
        (["--edits", "quant_rtn", "--alpha", "2"], 2, "--alpha is not a probability"),
        (["--edits", "quant_rtn", "--tier", "good"], 2, "good"),
    ],
)
def test_what_cannot_be_searched_is_one_line(
    tiny: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    code: int,
    line: str,
) -> None:
    """Before anything is measured."""
    assert main(["advanced", "tune", *words(tiny, tmp_path / "t.json", *more)]) == code
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_edit_that_is_none_is_refused(tiny: Path, tmp_path: Path) -> None:
    """The parser lists what can be tuned."""
    with pytest.raises(SystemExit) as caught:
        main(["advanced", "tune", *words(tiny, tmp_path / "t.json", "--edits", "noop")])
    assert caught.value.code == 2
