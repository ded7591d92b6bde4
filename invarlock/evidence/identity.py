"""Whether the files of a pack are about the same things: models, runs, scenarios and modules.

Each report may be true in itself and still be of another model than its folder says, or stand
for a second scenario. Only packs with outcomes can be held to it; published ones have none.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from invarlock.contracts import violations
from invarlock.errors import InputError
from invarlock.evidence import escape
from invarlock.evidence.claims import REVISIONS
from invarlock.evidence.findings import dig, first_text, number
from invarlock.evidence.scenarios_check import CONFIG, CUSTOM, OUTCOME_NAME, Entry, Place, places
from invarlock.evidence.tree import Tree
from invarlock.scenarios import NOOP
from invarlock.verdict.repeats import SCHEMA, contradictions, in_manifest

# A member of the outcome, and where the report beside it says the same.
SAME = (
    ("model_id", "meta/model_id"),
    ("model_id", "baseline_ref/model_id"),
    ("baseline_sha256", "baseline_ref/checkpoint_sha256"),
    ("windows_sha256", "provenance/windows_sha256"),
    ("subject_sha256", "meta/checkpoint_sha256"),
)
REPEATS = "results/analysis/determinism_repeats.json"
SETTINGS = ("network_mode", "determinism", "repeats")  # in the manifest, and in its parameters
Report = Mapping[str, Any]
Shapes = dict[str, list[int]]  # of weights, by name


@dataclass
class Identities:
    """What the reports of a pack were about, so far."""

    tree: Tree
    scenarios: Mapping[str, Entry]
    types: set[str | None] = field(init=False)  # what any scenario of the pack does
    subjects: dict[tuple[str, str], str] = field(default_factory=dict)  # (model, digest) -> type
    baselines: dict[str, tuple[object, Shapes]] = field(default_factory=dict)  # by model folder

    def __post_init__(self) -> None:
        self.types = {*map(_done, self.scenarios.values())} - {None, NOOP, CUSTOM}

    def check(self, place: Place, report: Report | None) -> Iterator[str]:
        """What in a report, or in the outcome beside it, belongs to something else.

        ``report``: None where it is malformed, which is a finding of its own.
        """
        path = place.folder + OUTCOME_NAME
        if report is None or path not in self.tree.files:
            return
        outcome = self.tree.json_object(path)
        for mine, theirs in SAME:
            said, found = outcome.get(mine), dig(report, *theirs.split("/"))
            # check: identity.same
            if said is not None and found is not None and said != found:
                yield f"/{theirs} is {escape(found)[:80]}; {OUTCOME_NAME} says {escape(said)[:80]}"
        done = _done(self.scenarios.get(str(outcome.get("scenario"))))
        if done is not None and done != CUSTOM:
            yield from self._subject(place, report, done)
        yield from self._baseline(place, report)

    def _subject(self, place: Place, report: Report, done: str) -> Iterator[str]:
        """A checkpoint is the result of one edit or damage; of the no-op alone the baseline."""
        named = dig(report, "edit", "name")
        # check: identity.edit
        if isinstance(named, str) and named != done and named in self.types:
            yield f"/edit/name is {escape(named)}; its scenario is {escape(done)}"
        digest = dig(report, "meta", "checkpoint_sha256")
        if not isinstance(digest, str) or done == NOOP:
            return
        # check: identity.noop
        if digest == dig(report, "baseline_ref", "checkpoint_sha256"):
            yield f"its subject is the baseline, although its scenario is {escape(done)}"
        before = self.subjects.setdefault((place.folder.split("/")[1], digest), done)
        if before != done:  # check: identity.subject
            yield f"its subject, of scenario {escape(done)}, is also that of {escape(before)}"

    def _baseline(self, place: Place, report: Report) -> Iterator[str]:
        """The baseline is the one that the pack describes, and all its weights were looked at."""
        folder = place.folder.split("/")[1]
        if folder not in self.baselines:
            self.baselines[folder] = _described(self.tree, f"metadata/baseline.{folder}.json")
        model, weights = self.baselines[folder]
        named = dig(report, "baseline_ref", "model_id")
        if model is not None and named != model:  # check: identity.baseline
            yield f"/baseline_ref/model_id is not that of metadata/baseline.{escape(folder)}.json"
        listed = dig(report, "spectral", "modules", "name")
        if not isinstance(listed, list):
            return  # a subject that was not run
        yield from _rows_left_out(report, weights)
        missing = weights.keys() - {str(name).partition("[")[0] for name in listed}
        if missing:  # check: identity.weights
            yield (
                f"/spectral/modules leaves out {len(missing)} of {len(weights)} weights of the"
                f" baseline, {escape(min(missing))[:80]} first"
            )


def _rows_left_out(report: Report, weights: Shapes) -> Iterator[str]:
    """Every embedding has been looked at row by row, all the rows of it that the baseline has."""
    from invarlock.guards.rows import MIN_ROWS  # with numpy, which a wrong signature never needs

    tables = dig(report, "spectral", "row_tables")
    counted = {
        str(dig(table, "name")): (number(dig(table, "rows")), number(dig(table, "baseline_only")))
        for table in (tables if isinstance(tables, list) else ())
    }
    columns = [dig(report, "spectral", "modules", key) for key in ("name", "family")]
    if not all(isinstance(column, list) for column in columns):
        return
    for name, family in zip(*columns, strict=False):
        shape = weights.get(str(name), [])
        if family != "embed" or len(shape) != 2 or shape[0] < MIN_ROWS:
            continue
        if sum(part or 0 for part in counted.get(str(name), ())) != shape[0]:
            yield f"/spectral/row_tables does not hold all {shape[0]} rows of {escape(name)[:80]}"


def _done(entry: Entry | None) -> str | None:
    """What a scenario does to the baseline: its edit type or error type."""
    spec = dig(entry, "generation", "edit_spec")
    name = (
        spec.partition(":")[0] if isinstance(spec, str) else dig(entry, "generation", "error_type")
    )
    return name if isinstance(name, str) else None


def _described(tree: Tree, path: str) -> tuple[object, Shapes]:
    """Model id, and shape by name of the matrices (and stacks of them) of a baseline; None, empty
    where nothing in the pack says them."""
    document = _object(tree, path)
    tensors = document.get("tensors")
    return document.get("model_id"), {
        name: shape
        for name, tensor in (tensors.items() if isinstance(tensors, dict) else ())
        if isinstance(shape := dig(tensor, "shape"), list)
        and len(shape) in (2, 3)
        and all(isinstance(size, int) for size in shape)
        and str(dig(tensor, "dtype")).startswith(("F", "BF"))
    }


def _object(tree: Tree, path: str) -> dict[str, Any]:
    """A JSON object of the pack; empty where it is not there (if it is no JSON, step 6 says so)."""
    try:
        return tree.json_object(path)
    except InputError:
        return {}


def repeated(tree: Tree, listed: Collection[str]) -> dict[str, Any]:
    """What the manifest repeats of files of its pack: the settings, the pins, the list of files."""
    values, models = _object(tree, CONFIG).get("values"), _object(tree, REVISIONS).get("models")
    found: dict[str, Any] = {
        "artifacts": sorted(path for path in listed if not path.startswith("reports/"))
    }
    if isinstance(values, dict):
        found["network_mode"] = "online" if values.get("net") == 1 else "offline"
        if REPEATS not in tree.files:  # else it is the comparison that says both
            found |= {"determinism": str(values.get("determinism")), "repeats": 0}
    if isinstance(models, dict) and models:
        names = sorted(models)
        texts = {
            key: {name: first_text(dig(models, name, key)) for name in names}
            for key in ("revision", "license")
        }
        found |= {
            "model_list": names,
            # a local folder has no revision; published verifiers want a string
            "models": [{"model_id": n, "revision": texts["revision"][n] or ""} for n in names],
            "model_licenses": {name: text for name, text in texts["license"].items() if text},
        }
    return found


def check_manifest(
    tree: Tree, manifest: Mapping[str, Any], listed: Collection[str], verdict: Mapping[str, Any]
) -> Iterator[str]:
    """What the manifest says departs from the recomputed verdict or from the files it repeats."""
    yield from _departures(manifest, repeated(tree, listed), "the files of the pack")
    asked = {record["model"] for record in verdict["records"]} | {*verdict["missing"]["by_model"]}
    for model in manifest.get("models") or []:
        name = dig(model, "model_id")
        if name is not None and name not in asked:
            yield f"manifest.json: /models names {escape(name)[:80]}, which no scenario was run on"
    suite = manifest.get("suite")
    if suite is not None and suite != verdict["suite"]:
        yield f"manifest.json: /suite is {escape(suite)[:80]}; the scenarios are of another suite"
    for name in ("clean_reports", "error_injection_reports", "failed_reports"):
        stated = dig(manifest, "verification", name)
        if stated is not None and stated != verdict["counts"][name]:
            yield (
                f"manifest.json: /verification/{name} is {stated}; "
                f"the reports give {verdict['counts'][name]}"
            )


def _departures(
    manifest: Mapping[str, Any], wanted: Mapping[str, object], source: str
) -> Iterator[str]:
    for name, value in wanted.items():
        for at in ("", "/invocation/parameters"):
            stated = dig(manifest, *at.split("/")[1:], name)
            if stated is not None and stated != value:
                yield f"manifest.json: {at}/{name} is not that of {source}"


def check_repeats(tree: Tree, manifest: Mapping[str, Any]) -> Iterator[str]:
    """What the comparison of repeats says that is impossible, or that the manifest says otherwise.

    The repeats themselves are not in a pack: how they came out is believed.
    """
    if REPEATS not in tree.files:
        return
    try:
        document = tree.json_object(REPEATS)
    except InputError:
        return  # step 6 has said so
    if document.get("schema") != SCHEMA and not places(tree, OUTCOME_NAME):
        return  # of a published version, which has another shape and says nothing
    wrong = violations(document, "determinism-repeats")
    if not wrong:
        wrong = contradictions(document)
        yield from _departures(manifest, in_manifest(document), REPEATS)
    yield from (f"{REPEATS}: {escape(line)}" for line in wrong)


def lenient(verdict: Mapping[str, Any]) -> Iterator[str]:
    """What a PASS leaves to belief, because the scenarios of the pack do not ask for it."""
    records = verdict["records"]
    if verdict["verdict"] != "PASS":
        return
    if all(record["strictness"] in ("must_pass", "informational") for record in records):
        yield "that damage would be noticed: no scenario has to fail or be detected"
    for record in records:
        clean = record["category"] in ("clean", "custom")
        if clean and record["strictness"] != "must_pass" and not record["passed"]:
            at = f"{escape(record['model'])} {escape(record['name'])} run_{record['run_num']}"
            yield f"that {at} is in order: it did not pass, and its scenario does not ask for it"
