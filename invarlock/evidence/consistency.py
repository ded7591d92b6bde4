"""Whether a pack holds what ``build`` would write from the evidence in it.

The evidence is the reports, the outcomes beside them, the scenarios and the pins. From them follow

    step 6  the metadata of each subject                              :func:`check_subjects`
    step 7  verdict, summaries, manifest, README, evidence level      :func:`recompute`
    step 8  outcome, probes and preset of each report, and whatever   :class:`Reports`
            all reports about one model have to hold alike

Each report may be true in itself and still be of another model than its folder says, or stand for
a second scenario; so what two files say of the same thing has to be equal as well. Only packs with
scenarios and outcomes can be held to all of it. Verdicts of packs without them are believed
(``invarlock.evidence.published.believed_verdict``).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec import Struct, field

from invarlock.contracts import check, violations
from invarlock.differences import Difference, differences
from invarlock.documents.fields import is_added
from invarlock.documents.kinds import CUSTOM, ORDER
from invarlock.errors import InputError, InvarlockError
from invarlock.evidence import escape
from invarlock.evidence.findings import UNREADABLE, dig, first_text, number
from invarlock.evidence.layout import (
    CONFIG,
    EDIT_METADATA,
    ERROR_METADATA,
    OUTCOME_NAME,
    README,
    REPEATS,
    REVISIONS,
    SCENARIOS,
    SWEEPS,
    TIMINGS,
    TUNED,
    VERDICT_TEXT,
    Entry,
    ReportPlace,
    baseline_path,
    expects_pass,
    group_of,
    object_in,
    places,
    preset_path,
    stats_path,
)
from invarlock.evidence.manifest import (
    LEVELS,
    VERDICT,
    VERDICTS,
    LevelEvidence,
    evidence_level,
    referenced,
)
from invarlock.evidence.policy_pack import PolicyPack, policy_pack_of
from invarlock.evidence.published import deployable
from invarlock.evidence.tree import MAX_JUDGED, Tree, size_of
from invarlock.files import fingerprint, slug
from invarlock.guards import representation
from invarlock.metrics import ARMS
from invarlock.policy import POLICY_PACK, source_of
from invarlock.reporting.deployable import VALIDATION as DEPLOYABLE_VALIDATION
from invarlock.reporting.runtime_manifest import NAME as RUNTIME_MANIFEST
from invarlock.scenarios import DEPLOYABLE, EVIDENCE_ONLY, FAULT, NOOP, VALIDATION
from invarlock.subject_metadata import (
    artifact_class,
    edit_type,
    member_differences,
    parameter_differences,
    stated_parameters,
    takes_tuned,
)
from invarlock.tuned import SELECTED

if TYPE_CHECKING:
    from invarlock.preset import Preset
    from invarlock.verdict.records import Evaluation

SETTINGS = ("network_mode", "determinism", "repeats")  # in the manifest, and in its parameters
COUNTS = ("clean_reports", "error_injection_reports", "failed_reports")
MAX_DIFFERENCES = 20  # listed of one document
MAX_EXPECTED = 20_000  # evaluations that scenarios, models and runs of one pack can ask for
Report = Mapping[str, Any]
Shapes = dict[str, list[int]]  # of weights, by name


def lines_of(found: Iterator[Difference], source: str) -> Iterator[str]:
    """The differences of one document, escaped, and how many are left out."""
    every = list(found)
    yield from (escape(difference.line(source)) for difference in every[:MAX_DIFFERENCES])
    if len(every) > MAX_DIFFERENCES:
        yield f"and {len(every) - MAX_DIFFERENCES} more differences"


# --- step 6: the metadata of each subject ----------------------------------------------------


def check_subjects(tree: Tree, scenarios: Mapping[str, Entry]) -> list[str]:
    """Findings about the metadata beside the reports of known scenarios."""
    findings = []
    reported = {place.scenario for place in places(tree, OUTCOME_NAME)}
    for place in places(tree):
        entry = scenarios.get(place.scenario or "")
        if entry is not None:
            reported.add(place.scenario)
            findings += [f"{escape(place.folder)}{line}" for line in _subject(tree, place, entry)]
    for name, entry in scenarios.items():
        if artifact_class(entry) == DEPLOYABLE and name not in reported:
            findings.append(f"{SCENARIOS}: deployable scenario {escape(name)} has no report")
    return findings


def _subject(tree: Tree, place: ReportPlace, entry: Entry) -> Iterator[str]:
    """Findings, each beginning with the file name."""
    kind = artifact_class(entry)
    if kind not in (FAULT, VALIDATION, DEPLOYABLE, EVIDENCE_ONLY):
        return
    ours = place.folder + OUTCOME_NAME in tree.files  # packs of runs are complete
    name = ERROR_METADATA if kind == FAULT else EDIT_METADATA
    path = place.folder + name
    if path not in tree.files and path not in tree.refused:
        brought = edit_type(entry) == CUSTOM and kind != DEPLOYABLE
        needed = ours if kind == FAULT else kind != EVIDENCE_ONLY and not brought
        if needed:  # check: scenarios.needed
            yield f"{name}: is missing"
        return
    try:
        metadata = tree.json_object(path)
    except InputError as error:
        yield f"{name}: {escape(error.what)}"
        return
    for found in member_differences(entry, metadata):
        yield f"{name}: {escape(found.line('its scenario says'))}"  # check: scenarios.metadata
    # Published packs name parameters in their own way.
    if ours and ("parameters" in metadata or CONFIG in tree.files):  # check: scenarios.parameters
        for found in parameter_differences(stated_parameters(entry), metadata):
            yield f"{name}: {escape(found.line('its scenario says'))}"
    try:
        report = tree.outline(place.report)
    except InputError:
        report = {}  # the step of the reports says so
    for role in ("baseline", "subject"):
        key = f"{role}_checkpoint_sha256"
        mine = first_text(metadata.get(key))
        theirs = first_text(dig(report, "provenance", role, "checkpoint_sha256"))
        if mine and theirs and mine != theirs:  # check: scenarios.checkpoint
            yield f"{name}: /{key} is not the {role} of the report"
    if report and takes_tuned(entry) and TUNED in tree.files:
        yield from (f"{name}: {line}" for line in _tuned(tree, report, metadata))
    if kind == DEPLOYABLE:
        if not ours:
            yield from deployable.check(tree, place.folder)
        if ours or "modules" in object_in(tree, place.folder + deployable.INVENTORY):
            # check: deployable.records
            yield from deployable.check_ours(tree, place.folder, report, entry)


def _tuned(tree: Tree, report: Report, metadata: Mapping[str, Any]) -> Iterator[str]:
    """Findings on an edit without the tuned parameters, or judged on the search's windows."""
    model, kind = str(dig(report, "meta", "model_id")), str(metadata.get("edit_type"))
    row = dig(object_in(tree, TUNED), "models", model, kind)
    if not isinstance(row, dict) or row.get("status") != SELECTED:
        yield f"{TUNED} has no selected {escape(kind)[:80]} for {escape(model)[:80]}"
        return
    wanted = {name: row.get(name) for name in ORDER.get(kind, ())}
    for found in parameter_differences(wanted, metadata):
        yield escape(found.line(f"{TUNED} says"))
    # A report on windows that chose the parameters would be too good: they were fitted to them.
    judged = dig(report, "provenance", "windows_sha256")
    for name in ("selection", "confirmation"):
        searched = dig(row, "search", name, "windows_sha256")
        if isinstance(searched, str) and searched == judged:
            yield f"the report is judged on the {name} windows of the search in {TUNED}"


# --- step 7: verdict, summaries, README, evidence level --------------------------------------


class Recomputed(Struct):
    """The results of a pack; ``verdict`` is None where the pack does not hold what it needs."""

    recorded: str | None = None
    verdict: Mapping[str, Any] | None = None
    why_believed: str = "what it follows from does not hold"
    absent: list[str] = field(default_factory=list)  # what a believed verdict speaks of
    evidence_level: str | None = None
    records: dict[str, Mapping[str, Any]] = field(default_factory=dict)  # by report folder
    documents: dict[str, object] = field(default_factory=dict)  # by path in the pack
    findings: list[str] = field(default_factory=list)


def recompute(
    tree: Tree,
    manifest: Mapping[str, Any],
    scenarios: Mapping[str, Entry] | None,
    *,
    reports_follow: bool = True,
) -> Recomputed:
    """Verdict, summaries and evidence level; findings where the pack says otherwise.

    ``reports_follow``: a later step refuses runtime manifests that are missing or unusable, and
    says so; the level that they cost is no finding of its own then.

    The verdict can be recomputed when the pack holds its scenarios and an outcome beside every
    report (packs of published versions hold no outcomes).
    """
    results = Recomputed()
    recorded = _recorded(tree, results)
    results.recorded = first_text(*(document.get("verdict") for document in recorded.values()))
    _judge_again(tree, scenarios, results)
    if results.verdict is not None:
        results.findings += _compare(tree, recorded, results)  # check: claims.compare
    elif not results.findings:
        # with the guards and numpy, which a pack with a wrong signature never needs
        from invarlock.evidence.published import believed_verdict

        for path, document in recorded.items():
            spoken = believed_verdict.check(tree, document)
            # check: claims.spoken
            results.findings += [f"{path}: {line}" for line in spoken.wrong]
            results.absent += [f"{path}: {line}" for line in spoken.absent]
    tree.outlines.clear()  # what follows reads each report in full
    results.findings += _readme(tree, results)  # check: claims.readme
    results.evidence_level = level(tree, manifest, scenarios, results.verdict)
    # A level below the one that the pack supports is the publisher's caution and no finding.
    stated = manifest.get("evidence_level")
    told = reports_follow and any(_mode(tree, place) is None for place in places(tree))
    if stated not in LEVELS or told:
        return results
    if LEVELS.index(stated) > LEVELS.index(results.evidence_level):  # check: claims.level
        results.findings.append(
            f"manifest.json: /evidence_level is {stated}; "
            f"the pack supports {results.evidence_level}"
        )
    return results


def _recorded(tree: Tree, results: Recomputed) -> dict[str, Mapping[str, Any]]:
    """Read the verdicts of a pack, by path; verdicts of different words are a finding."""
    found: dict[str, Mapping[str, Any]] = {}
    for path in VERDICTS:
        if path in tree.files:
            try:
                found[path] = tree.json_object(path)
            except InputError as error:
                results.findings.append(escape(error))
    words = {path: document.get("verdict") for path, document in found.items()}
    if len({*map(repr, words.values())}) > 1:  # check: claims.two
        said = ", ".join(f"{path} {escape(repr(word))[:60]}" for path, word in words.items())
        results.findings.append(f"two verdicts that differ: {said}")
    return found


def _judge_again(tree: Tree, scenarios: Mapping[str, Entry] | None, results: Recomputed) -> None:
    outcomes = places(tree, OUTCOME_NAME)
    if scenarios is None or not outcomes:
        results.why_believed = f"no {SCENARIOS}" if scenarios is None else "no outcome.json"
        return
    from invarlock.scenarios import expected_evaluations, parse_catalogue
    from invarlock.verdict.guard_value import guard_value
    from invarlock.verdict.summaries import documents
    from invarlock.verdict.verdict import compile_verdict, judge_all

    with_outcome = {place.folder for place in outcomes}
    for place in places(tree):
        if place.folder not in with_outcome:
            results.findings.append(f"{escape(place.report)}: has no {OUTCOME_NAME} beside it")
    evaluations, held = [], 0
    for place in outcomes:
        try:
            evaluation = _evaluation(tree, place, scenarios)
            evaluations.append(evaluation)
            beside = evaluation.outcome, evaluation.metadata, evaluation.deployable
            held += sum(map(size_of, beside))
        except InvarlockError as error:
            results.findings.append(escape(error))  # check: claims.outcomes
        if held + tree.outlined > MAX_JUDGED:  # check: claims.judged
            results.findings.append(f"reports/: more than {MAX_JUDGED} values to be judged")
            break
    if results.findings:
        return
    try:
        document = tree.json_object(SCENARIOS)
        catalogue = parse_catalogue(document, SCENARIOS)
        models = {evaluation.model for evaluation in evaluations} | _pinned_models(tree)
        runs = {e.run for e in evaluations}
        last = max(runs, default=0)
        # check: claims.number
        if sum(s.runs or last for s in catalogue.scenarios) * len(models) > MAX_EXPECTED:
            raise InputError(f"more than {MAX_EXPECTED} evaluations are asked for", where=SCENARIOS)
        expected = expected_evaluations(catalogue.scenarios, models, runs)
        verdict = compile_verdict(document, evaluations, expected)
        found = documents(verdict, catalogue.scenarios, evaluations)
        results.documents = {f"results/{name}.json": value for name, value in found.items()}
        if sweeps := [path for path in SWEEPS if path in tree.files]:
            judged = judge_all(catalogue.scenarios, evaluations)
            value = guard_value(catalogue.scenarios, evaluations, judged)
            results.documents |= dict.fromkeys(sweeps, value)
    except InvarlockError as error:
        results.findings.append(escape(error))
        return
    verdict = json.loads(json.dumps(verdict))  # tuples become lists, as in the file
    results.verdict = verdict
    by_key = {(r["model"], r["name"], r["run_num"]): r for r in verdict["records"]}
    for place, evaluation in zip(outcomes, evaluations, strict=True):
        record = by_key[evaluation.key]
        results.records[place.folder] = record
        if place.folder != (wanted := _folder(record)):  # check: claims.folder
            results.findings.append(
                f"{escape(place.folder)}{OUTCOME_NAME}: belongs to another folder; "
                f"expected {escape(wanted)}"
            )


def _folder(record: Mapping[str, Any]) -> str:
    """The folder of an evaluation in a pack, with a trailing slash."""
    model, scenario, run = slug(record["model"]), record["name"], record["run_num"]
    return f"reports/{model}/{group_of(record)}{scenario}/run_{run}/"


def _evaluation(tree: Tree, place: ReportPlace, scenarios: Mapping[str, Entry]) -> Evaluation:
    """Read the evaluation in a folder.

    Raises:
        InvarlockError: its outcome does not fit its contract, the scenarios or the folder.
    """
    from invarlock.verdict import MEASURED
    from invarlock.verdict.records import Evaluation, canonical_path

    path = place.folder + OUTCOME_NAME
    outcome = tree.json_object(path)
    check(outcome, "outcome", path)  # check: claims.contract
    key = outcome["model_id"], outcome["scenario"], outcome["run"]
    if outcome["scenario"] not in scenarios:
        raise InputError("names a scenario that the pack does not hold", where=path)
    report = None
    if outcome["status"] in MEASURED:
        report = tree.outline(place.report)
    names = (place.folder + name for name in (EDIT_METADATA, ERROR_METADATA))
    metadata = next((tree.json_object(name) for name in names if name in tree.files), None)
    name = place.folder + DEPLOYABLE_VALIDATION
    deployable = tree.json_object(name) if name in tree.files else None
    return Evaluation(*key, report, outcome, canonical_path(*key), metadata, deployable)


def _pinned_models(tree: Tree) -> set[str]:
    """The model ids of ``model_revisions.json``: each of them has to be judged."""
    if REVISIONS not in tree.files:
        return set()
    models = tree.json_object(REVISIONS).get("models")
    return {name for name in models if isinstance(name, str)} if isinstance(models, dict) else set()


def _compare(
    tree: Tree, recorded: Mapping[str, Mapping[str, Any]], results: Recomputed
) -> Iterator[str]:
    """Where the recorded verdict, its summaries and its text depart from the recomputed one."""
    from invarlock.reporting.documents.final_verdict import FinalVerdict
    from invarlock.verdict.text import first_line

    verdict = results.verdict or {}
    documents: list[tuple[str, object, object]] = [
        (path, recorded.get(path, {}), verdict) for path in {VERDICT: None, **recorded}
    ]
    for path, computed in results.documents.items():
        if path in tree.files:
            try:
                stored = tree.json(path)
            except InputError as error:
                yield escape(error)
            else:
                documents.append((path, stored, json.loads(json.dumps(computed))))
    may_lack = partial(is_added, FinalVerdict)
    for path, stored, computed in documents:
        found = differences(stored, computed, may_lack=may_lack)
        yield from (f"{path}: {line}" for line in lines_of(found, "the reports give"))
    first = first_line(verdict).encode()
    # only what it claims: the layout of the table is free to change between versions
    stated = tree.data(VERDICT_TEXT).partition(b"\n")[0] if VERDICT_TEXT in tree.files else first
    if stated != first:  # check: claims.text
        yield f"{VERDICT_TEXT}: does not begin with the recomputed verdict"


def _readme(tree: Tree, results: Recomputed) -> list[str]:
    """The README must not say PASS above a FAIL (or the other way round).

    Above an inconclusive verdict it may say FAIL too, which is the published word for it.
    """
    verdict = dig(results.verdict, "verdict") or results.recorded
    found = tree.files.get(README)
    if found is None or not found.data or not verdict:
        return []
    words = {str(verdict)}
    if results.verdict:
        from invarlock.verdict.text import word_of

        words.add(word_of(results.verdict))
    line = found.data.split(b"\n", 1)[0].decode("ascii", "replace")
    return [
        f"{README}: its first line says {word}; the verdict is {escape(' or '.join(sorted(words)))}"
        for word in re.findall(r"\b(?:PASS|FAIL|INCONCLUSIVE)\b", line)
        if word not in words
    ]


def level(
    tree: Tree,
    manifest: Mapping[str, Any],
    scenarios: Mapping[str, Entry] | None,
    verdict: Mapping[str, Any] | None,
) -> str:
    """The evidence level that the files of a pack support.

    Where the verdict cannot be recomputed, reports that have to pass count as passing here:
    whether they do is the last step of ``verify``, which fails the pack if not.
    """
    found = places(tree)
    if verdict is not None:
        clean = verdict["counts"]["clean_reports"]
        failed = verdict["counts"]["failed_reports"]
    else:
        clean = sum(expects_pass(place, scenarios) for place in found)
        failed = 0
    return evidence_level(
        LevelEvidence(
            has_subject=referenced(
                manifest,
                "/subject",
                VERDICTS,  # check: claims.subject
            ),
            bound=True,
            clean_reports=clean,
            failed_reports=failed,
            has_source=referenced(manifest, "/invocation/config_source"),
            has_environment=referenced(manifest, "/environment"),
            all_container=all(_mode(tree, place) == "container" for place in found),
        )
    )


def _mode(tree: Tree, place: ReportPlace) -> object:
    """The execution mode of a report's runtime manifest; None where it is missing or unusable."""
    return object_in(tree, place.folder + RUNTIME_MANIFEST).get("execution_mode")


def left_to_belief(verdict: Mapping[str, Any]) -> Iterator[str]:
    """What nobody has shown although the verdict is PASS: the scenarios do not ask for it."""
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


# --- step 7: the manifest --------------------------------------------------------------------


class ManifestMembers(NamedTuple):
    """The members of a manifest that say again what other files of its pack say."""

    top: dict[str, Any]
    parameters: dict[str, Any]  # /invocation/parameters
    verification: dict[str, Any]  # /verification


def manifest_members(
    tree: Tree,
    listed: Collection[str],
    scenarios: Mapping[str, Entry] | None,
    verdict: Mapping[str, Any],
) -> ManifestMembers:
    """What ``build`` writes into a manifest; one that is verified may leave any of it out.

    ``listed``: the paths in ``checksums.sha256``.
    """
    found: dict[str, Any] = {
        "artifacts": sorted(path for path in listed if not path.startswith("reports/")),
    }
    values, models = object_in(tree, CONFIG).get("values"), object_in(tree, REVISIONS).get("models")
    if suite := first_text(verdict.get("suite")):
        found["suite"] = suite
    if isinstance(values, dict):
        found["network_mode"] = "online" if values.get("net") == 1 else "offline"
        if REPEATS not in tree.files:  # else it is the comparison that says both
            found |= {"determinism": str(values.get("determinism")), "repeats": 0}
    found |= _repeats_members(tree)
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
    parameters: dict[str, Any] = {"scenario_ids": sorted(scenarios)} if scenarios else {}
    parameters |= {name: found[name] for name in ("suite", *SETTINGS) if name in found}
    counts = {n: v for n in COUNTS if (v := dig(verdict, "counts", n)) is not None}
    return ManifestMembers(found, parameters, counts)


def _repeats_members(tree: Tree) -> dict[str, Any]:
    repeats = object_in(tree, REPEATS)
    if not repeats or violations(repeats, "determinism-repeats"):  # the verification says so
        return {}
    from invarlock.verdict.repeats import in_manifest  # with the guards and numpy

    return in_manifest(repeats)


def check_manifest(
    tree: Tree,
    manifest: Mapping[str, Any],
    listed: Collection[str],
    scenarios: Mapping[str, Entry] | None,
    verdict: Mapping[str, Any] | None,
) -> Iterator[str]:
    """What the manifest says that the other files of the pack do not say.

    ``verdict``: the recomputed one; without it only the comparison of repeats is looked at.
    """
    if verdict is None:
        repeats = _repeats_members(tree)
        settings = {name: repeats[name] for name in SETTINGS if name in repeats}
        wanted = ManifestMembers(repeats, settings, {})
    else:
        wanted = manifest_members(tree, listed, scenarios, verdict)
        wanted.top.setdefault("suite", None)
        asked = {r["model"] for r in verdict["records"]} | {*verdict["missing"]["by_model"]}
        for model in manifest.get("models") or []:
            name = dig(model, "model_id")
            if name is not None and name not in asked:
                yield f"manifest.json: /models names {escape(name)[:80]}, which was not judged"
    pointers = ("", "/invocation/parameters", "/verification")
    for pointer, members in zip(pointers, wanted, strict=True):
        stated = dig(manifest, *pointer.split("/")[1:]) or {}
        for name in members.keys() & stated.keys():
            found = differences(stated[name], members[name], pointer=f"{pointer}/{name}")
            yield from (f"manifest.json: {line}" for line in lines_of(found, "the files give"))


def check_repeats(tree: Tree) -> Iterator[str]:
    """What the comparison of repeats says that is impossible.

    The repeats themselves are not in a pack: how they came out is believed.
    """
    document = object_in(tree, REPEATS)
    if REPEATS not in tree.files or not document:
        return
    from invarlock.verdict.repeats import SCHEMA, contradictions  # with the guards and numpy

    if document.get("schema") != SCHEMA and not places(tree, OUTCOME_NAME):
        return  # of a published version, which has another shape and says nothing
    wrong = violations(document, "determinism-repeats") or contradictions(document)
    yield from (f"{REPEATS}: {escape(line)}" for line in wrong)


def check_timings(tree: Tree) -> Iterator[str]:
    """What the summary of times says that the times of the reports do not give.

    Of a published version it has another shape, and says nothing here.
    """
    outcomes = places(tree, OUTCOME_NAME)
    if TIMINGS not in tree.files or not outcomes:
        return
    from invarlock.verdict.timings import contradictions

    document = object_in(tree, TIMINGS)
    phases = [
        dig(object_in(tree, place.folder + RUNTIME_MANIFEST), "context", "timings_seconds")
        for place in outcomes
    ]
    wrong = violations(document, "evaluation-optimization-summary")
    try:
        wrong = wrong or list(contradictions(document, phases))  # check: claims.timings
    except UNREADABLE as error:  # sums beyond what a number holds
        wrong = [f"the times cannot be added up: {error}"]
    yield from (f"{TIMINGS}: {escape(line)}" for line in wrong)


# --- step 8: reports, and what lies beside them ----------------------------------------------

# A member of the outcome, and where the report beside it says the same.
OUTCOME_MEMBERS = (
    ("model_id", "meta/model_id"),
    ("model_id", "baseline_ref/model_id"),
    ("baseline_sha256", "baseline_ref/checkpoint_sha256"),
    ("windows_sha256", "provenance/windows_sha256"),
    ("subject_sha256", "meta/checkpoint_sha256"),
)


class Reports:
    """The reports of a pack, one after another, against each other and the files beside them."""

    def __init__(self, tree: Tree, scenarios: Mapping[str, Entry]) -> None:
        self.tree, self.scenarios = tree, scenarios
        self.done = {*map(_done, scenarios.values())} - {None, NOOP, CUSTOM}
        self.subjects: dict[tuple[str, str], str] = {}  # (model folder, digest) -> edit or damage
        self.baselines: dict[str, _Baseline] = {}  # by model folder
        self.findings: list[str] = []  # about presets
        self.presets: dict[str, Preset] = {}
        for path in sorted(tree.files):
            if path.startswith("metadata/preset.") and path.endswith(".json"):
                self._read_preset(path)

    def check(self, place: ReportPlace, report: Report | None) -> Iterator[str]:
        """What in a report, or beside it, belongs to something else.

        ``report``: None where it is malformed, which is a finding of its own.
        """
        if report is None:
            return
        if place.scenario is not None:
            baseline = self._baseline(place.model)
            parts = _parts_alike(report).items()
            # check: identity.shared
            yield from (
                f"E006 its {name} is not that of the others"
                for name, value in parts
                if baseline.alike.setdefault(name, value) != value
            )
        if place.folder + OUTCOME_NAME in self.tree.files:
            yield from self._outcome(place, report)
        try:
            yield from self._beside(place, report)
        except (InvarlockError, *UNREADABLE) as error:
            yield f"its preset, policy pack or probes cannot be read: {escape(str(error)[:200])}"

    def _outcome(self, place: ReportPlace, report: Report) -> Iterator[str]:
        outcome = self.tree.json_object(place.folder + OUTCOME_NAME)
        for mine, theirs in OUTCOME_MEMBERS:
            said, found = outcome.get(mine), dig(report, *theirs.split("/"))
            # check: identity.same
            if said is not None and found is not None and said != found:
                yield f"/{theirs} is {escape(found)[:80]}; {OUTCOME_NAME} says {escape(said)[:80]}"
        done = _done(self.scenarios.get(str(outcome.get("scenario"))))
        if done is not None and done != CUSTOM:
            yield from self._subject(place, report, done)
        baseline = self._baseline(place.model)
        named = dig(report, "baseline_ref", "model_id")
        if baseline.model_id is not None and named != baseline.model_id:  # check: identity.baseline
            yield f"/baseline_ref/model_id is not that of {escape(baseline_path(place.model))}"
        yield from _weights_left_out(report, baseline.weights)

    def _subject(self, place: ReportPlace, report: Report, done: str) -> Iterator[str]:
        """A checkpoint is the result of one edit or damage; of the no-op alone the baseline."""
        named = dig(report, "edit", "name")
        # check: identity.edit
        if isinstance(named, str) and named != done and named in self.done:
            yield f"/edit/name is {escape(named)}; its scenario is {escape(done)}"
        digest = dig(report, "meta", "checkpoint_sha256")
        if not isinstance(digest, str) or done == NOOP:
            return
        # check: identity.noop
        if digest == dig(report, "baseline_ref", "checkpoint_sha256"):
            yield f"its subject is the baseline, although its scenario is {escape(done)}"
        before = self.subjects.setdefault((place.model, digest), done)
        if before != done:  # check: identity.subject
            yield f"its subject, of scenario {escape(done)}, is also that of {escape(before)}"

    def _baseline(self, model: str) -> _Baseline:
        if model not in self.baselines:
            self.baselines[model] = _Baseline.of(object_in(self.tree, baseline_path(model)))
        return self.baselines[model]

    def _read_preset(self, path: str) -> None:
        """A preset has to follow from the statistics beside it."""
        from invarlock.preset import derive, preset_of

        stats = stats_path(path.removeprefix("metadata/preset.").removesuffix(".json"))
        try:
            preset = self.presets[path] = preset_of(self.tree.json_object(path), path)
            if stats not in self.tree.files:
                self.findings.append(f"{escape(path)}: {escape(stats)} is not in the pack")
            elif derive(self.tree.json_object(stats), preset.tier, stats) != preset.document:
                self.findings.append(f"{escape(path)}: does not follow from {escape(stats)}")
        except (InvarlockError, *UNREADABLE) as error:
            self.findings.append(f"{escape(path)}: {escape(str(error)[:200])}")

    def _beside(self, place: ReportPlace, report: Report) -> Iterator[str]:
        """The thresholds of a report are those of the preset in the pack, its probes its own."""
        from invarlock.reporting.probes import FILES, probe_of

        overlay = self._policy_pack(place, report)
        yield from self._preset(place, report, overlay)
        yield from _policy_pack_applied(report, overlay)
        for name in FILES:
            path = place.folder + name
            if path in self.tree.files and self.tree.json_object(path) != probe_of(name, report):
                yield f"{name} beside it does not follow from it"

    def _policy_pack(self, place: ReportPlace, report: Report) -> PolicyPack | None:
        """The policy pack beside a report, whose signature and bounds hold.

        Raises:
            InvarlockError: they do not, or there is none and the report names one.
        """
        path = place.folder + POLICY_PACK
        if path in self.tree.files:
            return policy_pack_of(self.tree.json_object(path), POLICY_PACK)
        if dig(report, "policy_provenance", "policy_pack") is not None:
            raise InputError("the policy pack that it names is not beside it", where=POLICY_PACK)
        return None

    def _preset(
        self, place: ReportPlace, report: Report, overlay: PolicyPack | None
    ) -> Iterator[str]:
        stated = dig(report, "policy_provenance", "preset_sha256")
        outcome = place.folder + OUTCOME_NAME
        if (
            outcome in self.tree.files
            and self.tree.json_object(outcome).get("preset_sha256") != stated
        ):
            yield f"{OUTCOME_NAME} beside it states another preset"
        path = preset_path(place.model)
        if path not in self.tree.files:
            if stated is not None:
                yield f"the preset it was judged by is not in the pack ({escape(path)})"
            return
        if path not in self.presets:
            return  # unusable, which is a finding of its own
        preset = self.presets[path]
        replaced = {override.path for override in overlay.overrides} if overlay else set()
        wanted = sorted((o.path, o.value) for o in preset.overrides if o.path not in replaced)
        if preset.sha256 != stated:
            yield "it was not judged by the pack's preset"
        elif preset.checkpoint_sha256 != dig(report, "baseline_ref", "checkpoint_sha256"):
            yield "its preset was derived for another baseline"
        elif wanted != sorted(
            (o["path"], o["value"])
            for o in report["policy_provenance"]["overrides"]
            if str(o["source"]).startswith("preset:")
        ):
            yield "/policy_provenance/overrides are not those of its preset"


def _policy_pack_applied(report: Report, overlay: PolicyPack | None) -> Iterator[str]:
    """A report names the policy pack beside it, is of its tier, and takes all its values."""
    named = dig(report, "policy_provenance", "policy_pack")
    if overlay is None:
        return
    if named != overlay.named:
        yield f"/policy_provenance/policy_pack is not the one in {POLICY_PACK} beside it"
        return
    if dig(report, "auto", "tier") != overlay.document["tier"]:
        yield "its policy pack is for another tier"
    source = source_of(overlay.sha256)
    stated = report["policy_provenance"]["overrides"]
    found = sorted((o["path"], o["value"]) for o in stated if o["source"] == source)
    if found != sorted((o.path, o.value) for o in overlay.overrides):
        yield "/policy_provenance/overrides are not those of its policy pack"


def _done(entry: Entry | None) -> str | None:
    """What a scenario does to the baseline: its edit type or error type."""
    spec = dig(entry, "generation", "edit_spec")
    name = (
        spec.partition(":")[0] if isinstance(spec, str) else dig(entry, "generation", "error_type")
    )
    return name if isinstance(name, str) else None


class _Baseline(Struct):
    """What a pack says of one model's baseline, and what its reports hold alike so far."""

    model_id: object  # None where nothing in the pack says it
    weights: Shapes  # matrices and stacks of them
    alike: dict[str, str]  # digests of parts, by name

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> _Baseline:
        """From ``metadata/baseline.MODEL.json``, empty where there is none."""
        tensors, digest = document.get("tensors"), document.get("checkpoint_sha256")
        weights = {
            name: shape
            for name, tensor in (tensors.items() if isinstance(tensors, dict) else ())
            if isinstance(shape := dig(tensor, "shape"), list)
            and len(shape) in (2, 3)
            and all(isinstance(size, int) for size in shape)
            and str(dig(tensor, "dtype")).startswith(("F", "BF"))
        }
        alike = {"baseline checkpoint": fingerprint(digest)} if digest else {}
        return cls(document.get("model_id"), weights, alike)


def _weights_left_out(report: Report, weights: Shapes) -> Iterator[str]:
    """Findings where the spectral guard left out a weight of the baseline."""
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
    """Findings where the row check left out an embedding, or rows of one that the baseline has."""
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


def _parts_alike(report: Report) -> dict[str, str]:
    """Digests of what all reports about one model in one pack must hold alike, by name: their
    baseline run, and how they were judged. A rejected subject's report has no windows."""
    bootstrap = dig(report, "context", "bootstrap")
    early = dig(report, "context", "early_decision", "levels")
    if isinstance(early, list) and isinstance(bootstrap, Mapping):  # of all its looks together
        bootstrap = {**bootstrap, "alpha": float(f"{math.fsum(early):.12g}")}
    parts = {
        "baseline run": dig(report, "baseline_ref", "run_id"),
        "baseline checkpoint": dig(report, "baseline_ref", "checkpoint_sha256"),
        "windows file": dig(report, "provenance", "windows_sha256"),
        "vocabulary": dig(report, "vocabulary"),
        "text": dig(report, "dataset", "source"),
        "slices": dig(report, "dataset", "slices"),
        "policy": dig(report, "auto", "policy_digest"),
        "bootstrap": bootstrap
        and {k: dig(bootstrap, k) for k in ("replicates", "alpha", "seed", "method")},
    }
    windows = report.get("evaluation_windows")
    for arm in ARMS:
        columns = [
            dig(windows, arm, column)
            for column in ("window_ids", "clusters", "token_counts", "baseline_nll_sum")
        ]
        # of a look the windows are held to those of the baseline's run
        if early is None and all(isinstance(column, list) and column for column in columns):
            parts[f"{arm} windows and baseline losses"] = columns
    for guard, member in (
        ("spectral", "modules"),
        ("spectral", "operators"),
        ("rmt", "modules"),
        ("variance", "modules"),
    ):
        table = dig(report, guard, member)
        if isinstance(table, Mapping) and "baseline_name" not in table:
            columns = [
                key
                for key in table
                if key in ("name", "family", "layer", "kind") or key.startswith("baseline_")
            ]
            what = "statistics" if member == "modules" else f"{member}' statistics"
            parts[f"baseline {guard} {what}"] = [table[key] for key in sorted(columns)]
    blocks = dig(report, "representation", "blocks")
    if isinstance(blocks, Mapping) and "baseline_name" not in blocks:
        parts["blocks of the baseline"] = [dig(blocks, key) for key in representation.HEAD]
    return {name: fingerprint(value) for name, value in parts.items() if value is not None}
