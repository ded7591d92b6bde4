"""What a pack claims as a whole: verdict, summaries and evidence level, recomputed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from invarlock.errors import InputError, InvarlockError
from invarlock.evidence import escape, spoken_of
from invarlock.evidence.findings import dig, first_text
from invarlock.evidence.manifest import (
    LEVELS,
    VERDICT,
    VERDICTS,
    Evidence,
    evidence_level,
    referenced,
)
from invarlock.evidence.scenarios_check import (
    EDIT_METADATA,
    ERROR_METADATA,
    OUTCOME_NAME,
    SCENARIOS,
    Entry,
    Place,
    group_of,
    places,
)
from invarlock.evidence.tree import MAX_JUDGED, Tree, size_of
from invarlock.files import parse_json, slug
from invarlock.reporting.runtime_manifest import NAME as RUNTIME_MANIFEST

README = "README.md"
REVISIONS = "metadata/model_revisions.json"
SWEEP = "results/guard_value_all_guard_probe_sweep.json"
# Members of records that verdicts of earlier versions do not have.
ADDED = ("baseline_sha256", "subject_sha256")
MAX_DIFFERENCES = 20  # listed of one document
MAX_EXPECTED = 20_000  # evaluations that scenarios, models and runs of one pack can ask for
_RUN = re.compile(r"run_([1-9][0-9]{0,5})")


@dataclass
class Claims:
    """The recomputed claims; ``verdict`` is None where the pack does not hold what it needs."""

    recorded: str | None = None
    verdict: Mapping[str, Any] | None = None
    why_believed: str = ""
    absent: list[str] = field(default_factory=list)  # what a believed verdict speaks of
    evidence_level: str | None = None
    records: dict[str, Mapping[str, Any]] = field(default_factory=dict)  # by report folder
    documents: dict[str, object] = field(default_factory=dict)  # recomputed, by path in the pack
    findings: list[str] = field(default_factory=list)


def check(
    tree: Tree,
    manifest: Mapping[str, Any],
    scenarios: Mapping[str, Entry] | None,
    *,
    reports_follow: bool = True,
) -> Claims:
    """Recompute verdict, summaries and evidence level; findings where the pack claims otherwise.

    ``reports_follow``: a later step refuses runtime manifests that are missing or unusable, and
    says so; the level that they cost is no finding of its own then.

    The verdict can be recomputed when the pack holds its scenarios and an outcome beside every
    report (packs of published versions hold no outcomes).
    """
    claims = Claims()
    recorded = _recorded(tree, claims)
    claims.recorded = first_text(*(document.get("verdict") for document in recorded.values()))
    _recompute(tree, scenarios, claims)
    if claims.verdict is not None:
        claims.findings += _compare(tree, recorded, claims)  # check: claims.compare
    elif not claims.findings:
        for path, document in recorded.items():
            spoken = spoken_of.check(tree, document)
            # check: claims.spoken
            claims.findings += [f"{path}: {line}" for line in spoken.wrong]
            claims.absent += [f"{path}: {line}" for line in spoken.absent]
    tree.outlines.clear()  # what follows reads each report in full
    claims.findings += _first_line(tree, claims)  # check: claims.readme
    claims.evidence_level = level(tree, manifest, scenarios, claims.verdict)
    claimed = manifest.get("evidence_level")
    told = reports_follow and any(_mode(tree, place) is None for place in places(tree))
    if claimed not in LEVELS or told:
        return claims
    # check: claims.level
    if LEVELS.index(claimed) > LEVELS.index(claims.evidence_level):
        claims.findings.append(
            f"manifest.json: /evidence_level is {claimed}; "
            f"the pack supports {claims.evidence_level}"
        )
    return claims


# --- verdict -------------------------------------------------------------------------------


def _recorded(tree: Tree, claims: Claims) -> dict[str, Mapping[str, Any]]:
    """The verdicts that a pack holds, by path; they have to say the same word."""
    found: dict[str, Mapping[str, Any]] = {}
    for path in VERDICTS:
        if path in tree.files:
            try:
                found[path] = tree.json_object(path)
            except InputError as error:
                claims.findings.append(escape(error))
    words = {path: document.get("verdict") for path, document in found.items()}
    if len({*map(repr, words.values())}) > 1:  # check: claims.two
        said = ", ".join(f"{path} {_short(word)}" for path, word in words.items())
        claims.findings.append(f"two verdicts that differ: {said}")
    return found


def _recompute(tree: Tree, scenarios: Mapping[str, Entry] | None, claims: Claims) -> None:
    outcomes = places(tree, OUTCOME_NAME)
    if scenarios is None or not outcomes:
        claims.why_believed = f"no {SCENARIOS}" if scenarios is None else "no outcome.json"
        return
    from invarlock.scenarios import expected_evaluations, parse_catalogue
    from invarlock.verdict.guard_value import guard_value
    from invarlock.verdict.summaries import documents
    from invarlock.verdict.verdict import compile_verdict, judge_all

    with_outcome = {place.folder for place in outcomes}
    for place in places(tree):
        if place.folder not in with_outcome:
            claims.findings.append(f"{escape(place.report)}: has no {OUTCOME_NAME} beside it")
    evaluations, held = [], 0
    for place in outcomes:
        try:
            evaluation = _evaluation(tree, place, scenarios)
            evaluations.append(evaluation)
            held += size_of(evaluation.outcome) + size_of(evaluation.metadata)
        except InvarlockError as error:
            claims.findings.append(escape(error))  # check: claims.outcomes
        if held + tree.outlined > MAX_JUDGED:  # check: claims.judged
            claims.findings.append(f"reports/: more than {MAX_JUDGED} values to be judged")
            break
    if claims.findings:
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
        claims.documents = {f"results/{name}.json": value for name, value in found.items()}
        if SWEEP in tree.files:
            judged = judge_all(catalogue.scenarios, evaluations)
            claims.documents[SWEEP] = guard_value(catalogue.scenarios, evaluations, judged)
    except InvarlockError as error:
        claims.findings.append(escape(error))
        return
    verdict = json.loads(json.dumps(verdict))  # tuples become lists, as in the file
    claims.verdict = verdict
    by_key = {(r["model"], r["name"], r["run_num"]): r for r in verdict["records"]}
    for place, evaluation in zip(outcomes, evaluations, strict=True):
        record = by_key[evaluation.key]
        claims.records[place.folder] = record
        if place.folder != (wanted := _folder(record)):  # check: claims.folder
            claims.findings.append(
                f"{escape(place.folder)}{OUTCOME_NAME}: belongs to another folder; "
                f"expected {escape(wanted)}"
            )


def _folder(record: Mapping[str, Any]) -> str:
    """The folder of an evaluation in a pack, with a trailing slash."""
    model, scenario, run = slug(record["model"]), record["name"], record["run_num"]
    return f"reports/{model}/{group_of(record)}{scenario}/run_{run}/"


def _evaluation(tree: Tree, place: Place, scenarios: Mapping[str, Entry]) -> Any:
    """The evaluation in a folder; InvarlockError when it is not where it belongs."""
    from invarlock.contracts import validate
    from invarlock.verdict.records import MEASURED, Evaluation, canonical_path

    path = place.folder + OUTCOME_NAME
    outcome = tree.json_object(path)
    validate(outcome, "outcome", path)  # check: claims.contract
    key = outcome["model_id"], outcome["scenario"], outcome["run"]
    if outcome["scenario"] not in scenarios:
        raise InputError("names a scenario that the pack does not hold", where=path)
    report = None
    if outcome["status"] in MEASURED:
        report = tree.outline(place.report)
    names = (place.folder + name for name in (EDIT_METADATA, ERROR_METADATA))
    metadata = next((tree.json_object(name) for name in names if name in tree.files), None)
    return Evaluation(*key, report, outcome, canonical_path(*key), metadata)


def _pinned_models(tree: Tree) -> set[str]:
    """The model ids of ``model_revisions.json``: each of them has to be judged."""
    if REVISIONS not in tree.files:
        return set()
    models = tree.json_object(REVISIONS).get("models")
    return {name for name in models if isinstance(name, str)} if isinstance(models, dict) else set()


def _compare(
    tree: Tree, recorded: Mapping[str, Mapping[str, Any]], claims: Claims
) -> Iterator[str]:
    """Where the recorded verdict, its summaries and its text depart from the recomputed one."""
    from invarlock.verdict.text import first_line

    verdict = claims.verdict or {}
    documents: list[tuple[str, object, object]] = [
        (path, recorded.get(path, {}), verdict) for path in {VERDICT: None, **recorded}
    ]
    for path, computed in claims.documents.items():
        if path in tree.files:
            try:
                stored = parse_json(tree.data(path), path)
            except InputError as error:
                yield escape(error)
            else:
                documents.append((path, stored, json.loads(json.dumps(computed))))
    for path, stored, computed in documents:
        lines = list(differences("", stored, computed))
        for line in lines[:MAX_DIFFERENCES]:
            yield f"{path}: {line}"
        if len(lines) > MAX_DIFFERENCES:
            yield f"{path}: and {len(lines) - MAX_DIFFERENCES} more differences"
    text = "results/final_verdict.txt"
    first = first_line(verdict).encode()
    # only what it claims: the layout of the table is free to change between versions
    # check: claims.text
    if text in tree.files and tree.data(text).partition(b"\n")[0] != first:
        yield f"{text}: does not begin with the recomputed verdict"


def differences(pointer: str, stored: object, computed: object) -> Iterator[str]:
    """Where a stored document departs from the recomputed one, as ``/pointer ...`` lines."""
    if isinstance(stored, dict) and isinstance(computed, dict):
        for key in sorted({*stored, *computed}):
            at = f"{pointer}/{escape(key)[:60]}"
            if key in ADDED and key not in stored:
                continue
            if key not in stored or key not in computed:
                yield f"{at} is {'missing' if key in computed else 'not known'}"
            else:
                yield from differences(at, stored[key], computed[key])
    elif isinstance(stored, list) and isinstance(computed, list) and len(stored) == len(computed):
        for index, (mine, other) in enumerate(zip(stored, computed, strict=True)):
            yield from differences(f"{pointer}/{index}", mine, other)
    elif type(stored) is not type(computed) or stored != computed:
        yield f"{pointer or '/'} is {_short(stored)}; the reports give {_short(computed)}"


def _short(value: object) -> str:
    text = escape(repr(value)[:200])
    return text if len(text) <= 60 else text[:57] + "..."


def _first_line(tree: Tree, claims: Claims) -> list[str]:
    """The README must not say PASS above a FAIL (or the other way round).

    Above an inconclusive verdict it may say FAIL too, which is the published word for it.
    """
    from invarlock.verdict.text import word_of

    verdict = dig(claims.verdict, "verdict") or claims.recorded
    found = tree.files.get(README)
    if found is None or not found.data or not verdict:
        return []
    words = {str(verdict)} | ({word_of(claims.verdict)} if claims.verdict else set())
    line = found.data.split(b"\n", 1)[0].decode("ascii", "replace")
    return [
        f"{README}: its first line says {word}; the verdict is {escape(' or '.join(sorted(words)))}"
        for word in re.findall(r"\b(?:PASS|FAIL|INCONCLUSIVE)\b", line)
        if word not in words
    ]


# --- evidence level ------------------------------------------------------------------------


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
        Evidence(
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


def expects_pass(place: Place, scenarios: Mapping[str, Entry] | None) -> bool:
    """Whether a report has to pass: by its scenario where that says so, else by its folder."""
    entry = (scenarios or {}).get(place.scenario or "")
    strictness = None if entry is None or place.observed else entry["strictness"]
    if strictness in ("must_pass", "must_fail"):
        return bool(strictness == "must_pass")
    return not place.below_errors


def _mode(tree: Tree, place: Place) -> object:
    """The execution mode of a report's runtime manifest; None where it is missing or unusable."""
    try:
        return tree.json_object(place.folder + RUNTIME_MANIFEST).get("execution_mode")
    except InputError:
        return None
