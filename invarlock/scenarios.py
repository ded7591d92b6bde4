"""The scenario catalogue: which edits and damages a suite holds and what each has to show.

``scenarios/scenarios.json`` follows ``contracts/scenarios.schema.json``. An id may stand more
than once as long as no suite holds it twice (the same control with other parameters). What was
selected is written to ``state/scenarios.json`` - the effective manifest - and everything
downstream reads only that. Nothing is ever added to a selection.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from invarlock.deployment import parse_packing_spec
from invarlock.documents.fields import Category, Strictness
from invarlock.documents.kinds import EDITS
from invarlock.errors import ConfigError
from invarlock.files import read_json_object

CATALOGUE_SCHEMA = "evidence_pack_scenarios_v1"
CATEGORIES = ("clean", "stress", "error_injection", "custom")
RESERVED = ("errors", "observed")  # folders of a pack that stand between model and scenario
NOOP = "noop"  # the edit that changes no byte
UNCHANGED = {name for name, kind in EDITS.items() if kind.get("keeps_weights")}
CUSTOM_SPEC = "custom"  # edit_spec of the subject that the user brings
# Classes of subjects.
VALIDATION = "validation_subject_checkpoint"  # dense, made to be measured
DEPLOYABLE = "deployable_optimized_subject"  # what a backend serves
FAULT = "fault_injection_fixture"
EVIDENCE_ONLY = "evidence_only_pack"  # evaluated elsewhere: the run has no checkpoint of it


@dataclass(frozen=True)
class Scenario:
    """One control: what is done to the checkpoint and what the evaluation must show.

    ``kind`` is ``edit`` (``edit_spec`` is set) or ``error`` (``error_type`` is set);
    ``entry`` is the catalogue entry itself.
    """

    id: str
    suites: tuple[str, ...]
    category: Category
    strictness: Strictness
    intent: str
    primary_guard: str
    kind: str
    edit_spec: str | None
    error_type: str | None
    parameters: Mapping[str, Any]
    catastrophic_required: bool
    primary_guard_required: bool
    exact_ratio: float | None
    detectors_any_of: tuple[Mapping[str, Any], ...]
    detectors_all_of: tuple[Mapping[str, Any], ...]
    artifact_class: str
    runs: int | None  # evaluations of it; None: as many as of any other
    entry: Mapping[str, Any] = field(repr=False)

    @property
    def text(self) -> str:
        """The catalogue entry as JSON."""
        return json.dumps(dict(self.entry), sort_keys=True)

    @property
    def is_control(self) -> bool:
        """Whether it is there to be refused, so that a part of the windows may be enough: not
        where the metric has to find it acceptable."""
        passes = ("primary_metric_acceptable", "preview_final_drift_acceptable")
        kept = any(
            detector.get("flag") in passes and detector.get("expected") is not False
            for detector in (*self.detectors_any_of, *self.detectors_all_of)
        )
        return self.category in ("stress", "error_injection") and not kept

    @property
    def is_edit(self) -> bool:
        """Whether ``invarlock edit`` makes the subject (or the user brings it)."""
        return self.kind == "edit"

    @property
    def is_packed_by_backend(self) -> bool:
        """Whether a deployment backend makes the subject (``invarlock advanced pack-weights``)."""
        return self.kind == "deployable_edit"

    @property
    def is_deployable(self) -> bool:
        """Whether the subject has to load and answer, and to be as small as claimed."""
        return self.artifact_class == DEPLOYABLE

    @property
    def is_error(self) -> bool:
        """Whether ``invarlock inject`` makes the subject."""
        return self.kind == "error"

    @property
    def edit_type(self) -> str | None:
        """The edit's name, the part of ``edit_spec`` before the first colon."""
        return self.edit_spec.split(":", 1)[0] if self.edit_spec else None

    @property
    def is_noop(self) -> bool:
        """Whether the subject's bytes equal the baseline's."""
        return self.edit_type == NOOP

    @property
    def label(self) -> str:
        """What an evaluation says was done to the subject; empty where the user brings it."""
        return label_of_entry(self.entry)

    @property
    def requirements(self) -> Mapping[str, Any]:
        """The ``requirements`` object of the entry (detectors included)."""
        found: Mapping[str, Any] = self.entry["requirements"]
        return found


def label_of_entry(entry: Mapping[str, Any]) -> str:
    """What a catalogue entry does to the baseline; empty where the user brings the subject.

    A checkpoint whose weights all stay is a no-op, whatever was done around them.
    """
    made = entry.get("generation", {})
    done = str(made.get("edit_spec", "")).partition(":")[0] or str(made.get("error_type", ""))
    return "" if done == CUSTOM_SPEC else NOOP if done in UNCHANGED else done


@dataclass(frozen=True)
class Catalogue:
    """A loaded catalogue or effective manifest; scenarios in file order."""

    where: str
    document: Mapping[str, Any] = field(repr=False)
    scenarios: tuple[Scenario, ...]

    @property
    def suites(self) -> tuple[str, ...]:
        """Every suite that some scenario names, sorted."""
        return tuple(sorted({name for s in self.scenarios for name in s.suites}))

    @property
    def ids(self) -> tuple[str, ...]:
        """The scenario ids in file order, each once."""
        return tuple(dict.fromkeys(s.id for s in self.scenarios))

    def select(
        self, suite: str, ids: Sequence[str] = (), categories: Sequence[str] = ()
    ) -> tuple[Scenario, ...]:
        """The scenarios of ``suite``, narrowed to ``ids`` and ``categories`` where given.

        Catalogue order; nothing that was not asked for is added.

        Raises:
            ConfigError: unknown suite, id or category, or nothing left.
        """
        if suite not in self.suites:
            raise _unknown("suite", suite, self.suites, self.where)
        members = [s for s in self.scenarios if suite in s.suites]
        known = [s.id for s in members]
        for wanted in ids:
            if wanted not in known:
                raise self._unknown_scenario(wanted, suite, known)
        for wanted in categories:
            if wanted not in CATEGORIES:
                raise _unknown("scenario category", wanted, CATEGORIES, self.where)
        chosen = tuple(
            s
            for s in members
            if (not ids or s.id in ids) and (not categories or s.category in categories)
        )
        if not chosen:
            raise ConfigError(
                f"no scenario of suite {suite} is in category {', '.join(categories)}",
                where=self.where,
                hint=f"suite {suite} has: {', '.join(known)}",
            )
        return chosen

    def _unknown_scenario(self, wanted: str, suite: str, known: Sequence[str]) -> ConfigError:
        elsewhere = sorted({n for s in self.scenarios if s.id == wanted for n in s.suites})
        if elsewhere:
            return ConfigError(
                f"scenario {wanted} is not in suite {suite}",
                where=self.where,
                hint=f"it belongs to {', '.join(elsewhere)}; {suite} has: {', '.join(known)}",
            )
        return _unknown("scenario", wanted, known, self.where, f" of suite {suite}")


def _unknown(what: str, wanted: str, known: Sequence[str], where: str, of: str = "") -> ConfigError:
    import difflib

    near = difflib.get_close_matches(wanted, known, n=1)
    guess = f"did you mean {near[0]}? " if near else ""
    return ConfigError(
        f"{wanted!r} is not a {what}{of}", where=where, hint=f"{guess}known: {', '.join(known)}"
    )


def load_catalogue(path: Path) -> Catalogue:
    """Read and check ``scenarios.json`` (or an effective ``state/scenarios.json``).

    Raises:
        InputError: missing, unreadable or not JSON.
        ConfigError: departs from its contract, or a suite holds one id twice.
    """
    from invarlock.contracts import validate

    document = read_json_object(path)
    validate(document, "scenarios", str(path), config=True)
    catalogue = parse_catalogue(document, str(path))
    for scenario in catalogue.scenarios:
        if scenario.artifact_class == EVIDENCE_ONLY:
            raise ConfigError(
                f"scenario {scenario.id} is of class {EVIDENCE_ONLY}: a run has no subject of it to"
                " measure",
                where=str(path),
                hint="judge the reports that were made elsewhere with invarlock verdict, and pack"
                " their folder: invarlock advanced evidence-pack build OUT --run-dir DIR",
            )
    return catalogue


def parse_catalogue(document: Mapping[str, Any], where: str) -> Catalogue:
    """Like :func:`load_catalogue` for a document already read."""
    from invarlock.contracts import check

    check(document, "scenarios", where, config=True)
    scenarios = tuple(_scenario(entry) for entry in document["scenarios"])
    seen: set[tuple[str, str]] = set()
    for scenario in scenarios:
        _check_class(scenario, where)
        if scenario.id in RESERVED:  # check: scenarios.reserved
            raise ConfigError(
                f"{scenario.id} is no id of a scenario: a pack has a folder of that name",
                where=where,
            )
        for suite in scenario.suites:
            if (scenario.id, suite) in seen:
                raise ConfigError(
                    f"scenario {scenario.id} stands twice in suite {suite}", where=where
                )
            seen.add((scenario.id, suite))
    return Catalogue(where=where, document=document, scenarios=scenarios)


def _check_class(scenario: Scenario, where: str) -> None:
    """Refuse a class that the way of making the subject cannot give."""
    brought = scenario.edit_spec == CUSTOM_SPEC
    possible = {
        "edit": (VALIDATION, *((DEPLOYABLE,) if brought else ())),
        "deployable_edit": (DEPLOYABLE,),
        "error": (FAULT,),
    }[scenario.kind]
    if scenario.artifact_class not in (EVIDENCE_ONLY, *possible):
        raise ConfigError(
            f"scenario {scenario.id} is of class {scenario.artifact_class}, which its generation"
            f" ({scenario.kind} {scenario.edit_spec or scenario.error_type}) does not make",
            where=where,
            expected=" or ".join(possible),
            hint="deployable_edit packs by a backend; edit_spec custom is what you bring",
        )
    if scenario.is_packed_by_backend:
        parse_packing_spec(str(scenario.edit_spec))


def _scenario(entry: Mapping[str, Any]) -> Scenario:
    generation, needs = entry["generation"], entry["requirements"]
    return Scenario(
        id=entry["id"],
        suites=tuple(entry["suites"]),
        category=entry["category"],
        strictness=entry.get("judged_as", entry["strictness"]),
        intent=entry["intent"],
        primary_guard=entry["primary_guard"],
        kind=generation["kind"],
        edit_spec=generation.get("edit_spec"),
        error_type=generation.get("error_type"),
        parameters=generation.get("env", {}),
        catastrophic_required=needs["catastrophic_required"],
        primary_guard_required=needs["primary_guard_required"],
        exact_ratio=needs.get("exact_ratio"),
        detectors_any_of=tuple(needs["detectors_any_of"]),
        detectors_all_of=tuple(needs["detectors_all_of"]),
        artifact_class=entry["artifact_class"],
        runs=entry.get("runs"),
        entry=entry,
    )


def effective_manifest(
    catalogue: Catalogue,
    suite: str,
    ids: Sequence[str] = (),
    categories: Sequence[str] = (),
    runs: Mapping[str, int] | None = None,
    artifact_class: str = "",
) -> dict[str, Any]:
    """The document of ``state/scenarios.json``: only what was selected, and how.

    ``runs``: evaluations of each scenario by category (``custom`` counts as ``clean``);
    ``artifact_class``: of the subject that the user brings.

    Raises:
        ConfigError: see :meth:`Catalogue.select`.
    """
    selected = catalogue.select(suite, ids, categories)
    chosen = [in_class(scenario, artifact_class) for scenario in selected]
    narrowed = bool(ids or categories)
    meta = {key: value for key, value in catalogue.document["_meta"].items() if key != "notes"} | {
        "applied_suite": suite,
        "scenario_ids_filter": [s.id for s in chosen] if narrowed else None,
    }
    return {
        "schema": CATALOGUE_SCHEMA,
        "schema_version": catalogue.document["schema_version"],
        "_meta": meta,
        "scenarios": [_labelled(s, runs or {}) for s in chosen],
    }


def _labelled(scenario: Scenario, runs: Mapping[str, int]) -> dict[str, Any]:
    """The entry as it goes into a pack, where published verifiers read ``strictness`` too.

    They know two outcomes, and the latest of them wants a ``must_detect`` report to pass. So damage
    that has to be found is labelled ``must_fail``; ``judged_as`` says what the verdict asks.
    """
    entry = dict(scenario.entry)
    number = runs.get("clean" if scenario.category == "custom" else scenario.category)
    if number is not None:
        entry["runs"] = number
    if scenario.strictness == "must_detect":
        entry |= {"strictness": "must_fail", "judged_as": "must_detect"}
    return entry


def in_class(scenario: Scenario, artifact_class: str) -> Scenario:
    """The scenario of the user's subject, in the class that the user says; any other as it is."""
    if not artifact_class or scenario.edit_spec != CUSTOM_SPEC:
        return scenario
    packed = artifact_class == DEPLOYABLE
    entry = dict(scenario.entry) | {
        "artifact_class": artifact_class,
        "optimized_deployment_backend": packed,
    }
    return replace(scenario, artifact_class=artifact_class, entry=entry)


def expected_evaluations(
    scenarios: Iterable[Scenario], models: Iterable[str], runs: Iterable[int]
) -> tuple[tuple[str, str, int], ...]:
    """Every (model, scenario, run) that a verdict has to see; sorted by model, then as listed.

    As many runs as a scenario states, or else from 1 to the last there is: the one that went well
    is not all of them. ``runs``: the numbers of those that are there.
    """
    there = set(runs)
    there |= set(range(1, max(there, default=0) + 1))  # check: verdict.runs
    numbers = [(s.id, sorted(there) if s.runs is None else range(1, s.runs + 1)) for s in scenarios]
    return tuple((m, s, n) for m in sorted(set(models)) for s, of in numbers for n in of)
