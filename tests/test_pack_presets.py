"""Packs with a preset: every report of the model was judged by it, and all were judged alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pack_factory as packs
import pytest
import report_factory as factory
from pack_factory import MODEL, Document, edit_json
from test_preset import stats

from invarlock.cli import main
from invarlock.evidence.result import VerifyOptions
from invarlock.evidence.verify import PAGES, SUITE, verify_pack
from invarlock.metrics.bootstrap import PLAIN
from invarlock.metrics.perplexity import Bootstrap
from invarlock.preset import derive, preset_of
from invarlock.reporting.evaluation import evaluation_report
from invarlock.reporting.runs import Comparison
from invarlock.verdict.records import Evaluation

RATIOS = {"noop_clean": 1.0, "quant_8bit_clean": 1.004, "prune_50pct_stress": 1.6}
CLEAN = ("noop_clean", "quant_8bit_clean")
STATS = {**stats(), "checkpoint_sha256": factory.checkpoint_sha256("baseline")}
PRESET = preset_of(derive(STATS, "balanced", "stats"), "preset")
OTHER = preset_of(derive({**STATS, "device": "cuda"}, "balanced", "stats"), "other")


def judged_by(stated: dict[str, str]) -> Callable[[list[Evaluation]], None]:
    """A change of a suite: reports and outcomes judged by the preset, but for those named."""

    def change(evaluations: list[Evaluation]) -> None:
        for index, evaluation in enumerate(evaluations):
            name = evaluation.scenario
            scenario = factory.scenario(name)
            preset = {"none": None, "other": OTHER}.get(stated.get(name, ""), PRESET)
            how: Document = {}
            if preset is not None:
                how = {"overrides": preset.overrides, "preset_sha256": preset.sha256}
            report = factory.make_report(name, RATIOS[name], **how)
            if stated.get(name) in OTHER_BOOTSTRAPS:
                report = other_bootstrap(name, OTHER_BOOTSTRAPS[stated[name]], how)
            sha256 = None if preset is None else preset.sha256
            evaluations[index] = factory.make_evaluation(scenario, report, preset_sha256=sha256)

    return change


OTHER_BOOTSTRAPS = {
    "bootstrap": Bootstrap(1201, 0.05, 7),
    "method": Bootstrap(1200, 0.05, 7, PLAIN),
}


def other_bootstrap(name: str, bootstrap: Bootstrap, how: Document) -> Document:
    """An honest report whose interval is not found like those of the others."""
    ratio = factory.math.log(RATIOS[name])
    comparison = Comparison(
        factory.BASELINE,
        factory.run_report(name, ratio),
        bootstrap,
        "dev",
        shift=factory.token_shift(ratio),
        preset_sha256=how["preset_sha256"],
    )
    return factory.plain(evaluation_report(comparison, PRESET.policy()))


def refused(folder: Path, stated: dict[str, str], change: Callable[[Path], object]) -> bool:
    """Whether ``build``, which verifies what it made, refuses a suite with the preset."""
    out = packs.write_suite(folder / "out", tuple(RATIOS), judged_by(stated))
    packs.write_json(out / MODEL / "presets" / f"calibrated_preset_{MODEL}.json", PRESET.document)
    packs.write_json(out / MODEL / "presets" / "calibration_stats.json", STATS)
    change(out)
    return packs.build(out, folder / "pack", key=packs.new_key(folder / "pack.pem")) != 0


def test_a_pack_whose_reports_were_judged_by_its_preset_verifies(tmp_path: Path) -> None:
    """Preset, statistics, reports and outcomes fit; what stays believed is said once."""
    assert not refused(tmp_path, {}, lambda out: None)
    result = verify_pack(tmp_path / "pack", VerifyOptions())
    assert result.exit_code == 0
    claims = [line for line in result.believed if line not in (SUITE, PAGES)]
    assert all(line.endswith("(of 3 reports)") for line in claims if "no scenario" not in line)
    assert not any("preset" in line for line in result.believed)


OUTCOME = {"preset_sha256": OTHER.sha256}
FORGED: dict[str, tuple[dict[str, str], Callable[[Path], object], str]] = {
    "one by the tier": ({"prune_50pct_stress": "none"}, lambda p: None, "not judged by the pack's"),
    "one by another": ({"quant_8bit_clean": "other"}, lambda p: None, "not judged by the pack's"),
    "one by fewer draws": ({"quant_8bit_clean": "bootstrap"}, lambda p: None, "its bootstrap"),
    "one by another method": ({"quant_8bit_clean": "method"}, lambda p: None, "its bootstrap"),
    "another outcome": (
        {},
        lambda p: edit_json(
            next(p.rglob("quant_8bit_clean/run_1/outcome.json")), lambda d: d.update(OUTCOME)
        ),
        "states another preset",
    ),
    "an impossible mean": (
        {},
        lambda p: edit_json(
            p / MODEL / "presets" / f"calibrated_preset_{MODEL}.json",
            lambda d: d["null_statistics"]["drift"]["edits"]["noop"].update(mean=1000.0, sd=1e3),
        ),
        "of no null edit",
    ),
}


@pytest.mark.parametrize("name", FORGED)
def test_other_thresholds_are_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """Clean edits cannot be judged by looser thresholds than damage."""
    stated, change, words = FORGED[name]
    assert refused(tmp_path, stated, change)
    assert words in capsys.readouterr().err


def test_reports_without_a_preset_share_their_policy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two tiers in one pack: both reports are true, and they do not belong together."""

    def change(evaluations: list[Evaluation]) -> None:
        name = "quant_8bit_clean"
        factory.replace(evaluations, name, factory.make_report(name, 1.004, tier="aggressive"))

    out = packs.write_suite(tmp_path / "out", tuple(RATIOS), change)
    assert packs.build(out, tmp_path / "pack", key=packs.new_key(tmp_path / "pack.pem")) != 0
    assert "its policy is not that of the others" in capsys.readouterr().err


# --- packs of named reports -----------------------------------------------------------------------


def test_the_published_build_line_finds_the_preset_of_a_suite(tmp_path: Path) -> None:
    """``build OUT --final-verdict V --source-repo S --environment E --material model_revisions=M
    --report R... --signing-key K``, and nothing else, on reports that a preset judged."""
    out = packs.write_suite(tmp_path / "out", CLEAN, judged_by({}))
    presets = out / MODEL / "presets"
    packs.write_json(presets / f"calibrated_preset_{MODEL}.json", PRESET.document)
    packs.write_json(presets / f"calibrated_preset_{MODEL}_2.json", OTHER.document)
    packs.write_json(presets / "calibration_stats.json", STATS)
    reports = sorted(out.glob(f"{MODEL}/reports/*/run_1/evaluation.report.json"))
    key = packs.new_key(tmp_path / "key.pem")
    words = ["advanced", "evidence-pack", "build", str(tmp_path / "pack")]
    words += ["--final-verdict", str(out / "reports/final_verdict.json")]
    words += ["--material", f"model_revisions={out / 'state/model_revisions.json'}"]
    for report in reports:
        words += ["--report", str(report)]
    words += ["--signing-key", str(key)]
    assert main(words) == 0
    kept = tmp_path / "pack/metadata"
    for number in range(1, len(CLEAN) + 1):
        preset = json.loads((kept / f"preset.report-00{number}.json").read_text())
        assert preset == PRESET.document
        assert json.loads((kept / f"calibration_stats.report-00{number}.json").read_text()) == STATS


def test_a_preset_of_other_thresholds_is_not_taken(tmp_path: Path) -> None:
    """What lies beside the report is taken by its digest, never by its name."""
    out = packs.write_suite(tmp_path / "out", tuple(RATIOS), judged_by({}))
    packs.write_json(out / MODEL / "presets" / f"calibrated_preset_{MODEL}.json", OTHER.document)
    [report] = out.glob(f"{MODEL}/reports/noop_clean/run_1/evaluation.report.json")
    words = ["advanced", "evidence-pack", "build", str(tmp_path / "pack"), "--final-verdict"]
    words += [str(out / "reports/final_verdict.json"), "--report", str(report)]
    assert main(words) == 7
    assert not (tmp_path / "pack").exists()


def evidence_only(folder: Path, change: Callable[[Any], object]) -> Path:
    """A folder of reports made elsewhere, with scenarios of the class for them and no metadata."""
    out = packs.write_suite(folder / "out", CLEAN, judged_by({}))
    packs.write_json(out / MODEL / "presets" / f"calibrated_preset_{MODEL}.json", PRESET.document)
    packs.write_json(out / MODEL / "presets/calibration_stats.json", STATS)

    def classed(manifest: Any) -> None:
        for entry in manifest["scenarios"]:
            entry["artifact_class"] = "evidence_only_pack"
        change(manifest)

    edit_json(out / "state/scenarios.json", classed)
    for metadata in out.glob(f"{MODEL}/**/edit_metadata.json"):
        metadata.unlink()  # no checkpoint was made that it could speak of
    words = ["verdict", "--scenarios", str(out / "state/scenarios.json"), "--evaluation"]
    words += [
        str(path.parent) for path in sorted(out.glob(f"{MODEL}/reports/*/run_1/outcome.json"))
    ]
    words += ["--out-dir", str(out / "reports"), "--analysis-dir", str(out / "analysis")]
    assert main(words) == 0
    return out


def test_evidence_alone_is_packed_without_metadata(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Reports of checkpoints that no run made; where a scenario says that one was, it is asked."""
    key = packs.new_key(tmp_path / "key.pem")
    alone = evidence_only(tmp_path / "alone", lambda manifest: None)
    assert packs.build(alone, tmp_path / "pack", key=key) == 0
    result = verify_pack(tmp_path / "pack", VerifyOptions())
    assert result.exit_code == 0

    def made(manifest: Any) -> None:
        manifest["scenarios"][1]["artifact_class"] = "validation_subject_checkpoint"

    assert packs.build(evidence_only(tmp_path / "made", made), tmp_path / "no", key=key) != 0
    assert "edit_metadata.json" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
