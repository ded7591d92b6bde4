"""Whether the reports of a pack were judged by the presets that the pack holds.

A report states the thresholds that are not its tier's own. They are believed only as far as the
tier table admits them; here they are also traced: to the preset in the pack, and from the preset
to the statistics of null edits it was derived from. Probes have to follow from their reports.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from invarlock.errors import InvarlockError
from invarlock.evidence import escape
from invarlock.evidence.findings import UNREADABLE, dig
from invarlock.evidence.scenarios_check import OUTCOME_NAME, Place
from invarlock.evidence.tree import Tree
from invarlock.preset import Preset, derive, preset_of
from invarlock.reporting.probes import FILES, probe_of

Report = Mapping[str, Any]


def preset_path(model: str) -> str:
    """Where a pack keeps the preset of a model (its folder name)."""
    return f"metadata/preset.{model}.json"


def stats_path(model: str) -> str:
    """Where a pack keeps the statistics that the preset was derived from."""
    return f"metadata/calibration_stats.{model}.json"


def read_presets(tree: Tree) -> tuple[dict[str, Preset], list[str]]:
    """The presets of a pack by path, and findings: those that do not follow from the statistics
    beside them."""
    presets: dict[str, Preset] = {}
    findings = []
    for path in sorted(tree.files):
        if not path.startswith("metadata/preset.") or not path.endswith(".json"):
            continue
        model = path.removeprefix("metadata/preset.").removesuffix(".json")
        try:
            preset = presets[path] = preset_of(tree.json_object(path), path)
            if stats_path(model) not in tree.files:
                findings.append(f"{escape(path)}: {escape(stats_path(model))} is not in the pack")
                continue
            stats = tree.json_object(stats_path(model))
            if derive(stats, preset.tier, stats_path(model)) != preset.document:
                findings.append(f"{escape(path)}: does not follow from {escape(stats_path(model))}")
        except (InvarlockError, *UNREADABLE) as error:
            findings.append(f"{escape(path)}: {escape(str(error)[:200])}")
    return presets, findings


def check_report(
    tree: Tree, place: Place, report: Report, presets: Mapping[str, Preset]
) -> Iterator[str]:
    """What a report says of its preset, and the probes beside it."""
    yield from _preset(tree, place, report, presets)
    for name in FILES:
        path = place.folder + name
        if path in tree.files and tree.json_object(path) != probe_of(name, report):
            yield f"{name} beside it does not follow from it"


def _preset(
    tree: Tree, place: Place, report: Report, presets: Mapping[str, Preset]
) -> Iterator[str]:
    stated = dig(report, "policy_provenance", "preset_sha256")
    outcome = place.folder + OUTCOME_NAME
    if outcome in tree.files and tree.json_object(outcome).get("preset_sha256") != stated:
        yield f"{OUTCOME_NAME} beside it states another preset"
    path = preset_path(place.folder.split("/")[1])
    if path not in tree.files:
        if stated is not None:
            yield f"the preset it was judged by is not in the pack ({escape(path)})"
        return
    if path not in presets:
        return  # unusable, which is a finding of its own
    preset = presets[path]
    if preset.sha256 != stated:
        yield "it was not judged by the pack's preset"
    elif preset.checkpoint_sha256 != dig(report, "baseline_ref", "checkpoint_sha256"):
        yield "its preset was derived for another baseline"
    elif _from_preset(report) != _overrides(preset):
        yield "/policy_provenance/overrides are not those of its preset"


def _overrides(preset: Preset) -> list[tuple[str, float | str]]:
    return sorted((override.path, override.value) for override in preset.overrides)


def _from_preset(report: Report) -> list[tuple[str, float | str]]:
    return sorted(
        (o["path"], o["value"])
        for o in report["policy_provenance"]["overrides"]
        if str(o["source"]).startswith("preset:")
    )
