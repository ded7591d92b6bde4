"""The table of every scenario in docs/results.md, from a verdict to the page."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pack_factory as packs
import pytest
import report_factory as factory
from repository_copy import ROOT, program

from invarlock.cli.verdict import write_verdict
from invarlock.files import write_json

IDS = (*packs.IDS, "rmt_norm_noise")
TOLD = (*("noop_clean", "lora_rank8_stress", "spectral_moderate_scale", "rmt_norm_noise_strong"),
        "spectral_moderate_scale_attn_l31_o_s105")  # fmt: skip


@pytest.fixture(scope="module")
def table() -> ModuleType:
    """The tool as a module."""
    return program("tools/catalogue_table.py")


def test_the_numbers_are_those_of_the_verdict(table: ModuleType, tmp_path: Path) -> None:
    """Every evaluation is a row with its ratio, who spoke and what came of it."""
    run = packs.write_suite(tmp_path / "out", IDS, packs.failed_clean)
    verdict = json.loads((run / "reports/final_verdict.json").read_text())
    text = table.part(run)
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert len(rows) == len(verdict["records"]) == len(IDS)
    for row, record in zip(rows, verdict["records"], strict=True):
        cells = [cell.strip() for cell in row.strip("|").split(" | ")]
        assert cells[0] == f"`{record['name']}`"
        assert cells[1] == record["category"]
        required = record["name"] == "rmt_norm_noise"
        assert cells[2] == ("informational, guard" if required else record["strictness"])
        ratio = record["ratio_vs_baseline"]
        assert cells[4].startswith("-" if ratio is None else f"{ratio:.4f}")
        assert ("**not as expected**" in cells[6]) == (not record["as_expected"])
        for guard in ("invariants", "spectral", "rmt", "primary_metric"):
            assert (guard in cells[5].split(", ")) == record["guard_flags"][guard]
    assert "verdict\nFAIL" in text
    detected = verdict["detection"]["invariants"]
    assert f"invariants {detected['detected']} of {detected['total']} (" in text
    assert "clean_all_pass: " in text


def informational(table: ModuleType, out: Path, probe: float) -> tuple[str, dict[str, list[str]]]:
    """The part, and its rows by scenario; the spectral probe's ratio is ``probe``."""
    evaluations = []
    for scenario in factory.catalogue().select("smoke-all", TOLD):
        report = factory.expected_report(scenario)
        if scenario.id == "spectral_moderate_scale":
            report = factory.make_report(scenario.id, probe, scale={factory.DOWN + ".weight": 1.5})
        evaluations.append(factory.make_evaluation(scenario, report))
    manifest = factory.manifest("smoke-all", TOLD)
    write_json(out / "state/scenarios.json", manifest)
    keys = tuple(e.key for e in evaluations)
    write_verdict(manifest, evaluations, keys, out / "reports", out / "analysis")
    text = table.part(out)
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    return text, {cells[0].strip("`"): cells for cells in rows}


def test_what_is_informational_is_told_as_the_verdict_takes_it(
    table: ModuleType, tmp_path: Path
) -> None:
    """A required guard is marked, a control is no signal, and a probe that fails is not fine."""
    text, rows = informational(table, tmp_path / "good", 1.03)
    assert rows["spectral_moderate_scale"][2::4] == ["informational, guard", "hit"]
    assert rows["rmt_norm_noise_strong"][2::4] == ["informational", "hit"]
    assert rows["lora_rank8_stress"][6] == "missed"
    assert rows["spectral_moderate_scale_attn_l31_o_s105"][6] == "control held"
    assert "negative controls aside: 2 of 3." in text
    text, rows = informational(table, tmp_path / "bad", 1.5)
    assert rows["spectral_moderate_scale"][6].startswith("**not as expected**: spectral spoke")
    assert "negative controls aside: 1 of 3." in text


def test_the_page_says_what_the_tool_says(table: ModuleType) -> None:
    """The words over the published table are those of the tool."""
    page = " ".join(table.PAGE.read_text().split())
    words = table.HEAD.partition("*Asked for*")[2].partition("\n\n")[0]
    assert " ".join(words.split()) in page


def test_tuned_edits_show_their_numbers(table: ModuleType, tmp_path: Path) -> None:
    """A tuned spec is shown as it was used: from the metadata of the edit."""
    folder = tmp_path / "acme__m/edits/prune_clean"
    folder.mkdir(parents=True)
    metadata = {"parameters": {"sparsity": 0.08}, "scope": "ffn"}
    (folder / "edit_metadata.json").write_text(json.dumps(metadata))
    (scenario,) = table.load_catalogue(ROOT / "scenarios/scenarios.json").select(
        "subset", ["prune_clean"]
    )
    record = {"model": "acme/m", "name": "prune_clean"}
    assert table.what(tmp_path, record, scenario) == "magnitude_prune:0.08:ffn"


def test_only_the_part_between_the_markers_changes(table: ModuleType) -> None:
    """It is put at the end at first, replaced later, and survives a new page."""
    first = f"{table.BEGIN}\none\n{table.END}"
    page = table.place("# Results\n", first)
    assert page == f"# Results\n\n{first}\n"
    second = f"{table.BEGIN}\ntwo \\1\n{table.END}"
    assert table.place(page, second) == f"# Results\n\n{second}\n"
    assert table.kept(page, "# New\n") == f"# New\n\n{first}\n"
    assert table.kept("# Old\n", "# New\n") == "# New\n"
