"""What a pack says about its scenarios: where each report belongs and what was done to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from invarlock.agreement import departures, stated_parameters
from invarlock.errors import InputError
from invarlock.evidence import escape
from invarlock.evidence.findings import dig, first_text, number
from invarlock.evidence.tree import REPORT_NAME, Tree
from invarlock.files import parse_json
from invarlock.reporting.runtime_manifest import NAME as RUNTIME_MANIFEST
from invarlock.tuned import MARK, ORDER, SELECTED

SCENARIOS = "metadata/scenarios.json"
CONFIG = "metadata/config.json"
TUNED = "metadata/tuned_edit_params.json"
MAX_SCENARIOS = 1_000  # of one pack; the published suites have at most about 70
OUTCOME_NAME = "outcome.json"
EDIT_METADATA, ERROR_METADATA = "edit_metadata.json", "error_metadata.json"
EDIT_SCHEMA = "invarlock/evidence-pack-edit-metadata-v1"
ERROR_SCHEMA = "invarlock/error-metadata-v1"
OBSERVED = "observed"  # reports that are neither asked to pass nor to fail
CUSTOM = "custom"  # the edit type of a subject that the user brought: nothing knows its edit
VALIDATION = "validation_subject_checkpoint"
DEPLOYABLE = "deployable_optimized_subject"
FAULT = "fault_injection_fixture"
EVIDENCE_ONLY = "evidence_only_pack"  # reports of a checkpoint that the run did not make
CLASSES = {"error": FAULT, "deployable_edit": DEPLOYABLE, "edit": VALIDATION}
INVENTORY, MEMORY = "backend_inventory.json", "memory_report.json"
# Sidecars of a deployable subject: schema, and the members that must be exactly true.
DEPLOYABLE_SIDECARS = {
    "deployable_artifact_validation.json": (
        "invarlock/deployable-artifact-validation-v1",
        ("ok", "load_smoke", "inference_smoke"),
    ),
    INVENTORY: (
        "invarlock/backend-inventory-v1",
        ("load_smoke", "inference_smoke"),
    ),
    MEMORY: ("invarlock/deployable-memory-report-v1", ("ok",)),
    "load_smoke.json": ("invarlock/deployable-load-smoke-v1", ("ok",)),
    "inference_smoke.json": ("invarlock/deployable-inference-smoke-v1", ("ok",)),
}
Entry = Mapping[str, Any]


@dataclass(frozen=True)
class Place:
    """Where a report lies: ``reports/[<model>/[observed/][errors/]<scenario>/...]``."""

    folder: str  # with a trailing slash
    scenario: str | None
    below_errors: bool
    observed: bool  # neither asked to pass nor to fail: the folder says which it does

    @property
    def report(self) -> str:
        """Path of the report."""
        return self.folder + REPORT_NAME


def place_of(path: str) -> Place:
    """The place of a file ``reports/.../<name>``."""
    folders = path.split("/")[1:-1]
    below_errors = "errors" in folders
    observed = len(folders) > 3 and folders[1] == OBSERVED
    at = 2 if observed else 1
    at += len(folders) > at + 1 and folders[at] == "errors"
    scenario = folders[at] if len(folders) > at and path.count("/") > 2 else None
    return Place(path.rsplit("/", 1)[0] + "/", scenario, below_errors, observed)


def group_of(record: Mapping[str, Any]) -> str:
    """The folder between model and scenario, by the evaluation's record in the verdict.

    Published verifiers know reports that have to pass and reports that have to fail: the latter
    lie below ``errors`` or belong to a ``must_fail`` scenario. A guard that speaks need not make a
    report fail: what is only observed lies where they look up no label and go by the folder.
    """
    passed, strictness = record["passed"], record["strictness"]
    found = strictness == "must_detect" and passed and record["as_expected"]
    if strictness == "informational" or found:
        return f"{OBSERVED}/" if passed else f"{OBSERVED}/errors/"
    return "errors/" if record["category"] == "error_injection" else ""


def places(tree: Tree, name: str = REPORT_NAME) -> list[Place]:
    """The places of every file called ``name`` below ``reports/``, sorted."""
    return [
        place_of(path)
        for path in sorted(tree.files)
        if path.startswith("reports/") and path.endswith("/" + name)
    ]


def read_scenarios(tree: Tree) -> tuple[dict[str, Entry] | None, list[str]]:
    """The scenario entries by id (None: the pack has no scenarios), and findings.

    A file that is there and unusable is a finding, never treated as absent.
    """
    if SCENARIOS not in tree.files:
        return None, []
    try:
        document = tree.json_object(SCENARIOS)
    except InputError as error:
        return {}, [escape(error)]  # check: scenarios.object
    entries = document.get("scenarios")
    if not isinstance(entries, list):
        return {}, [f"{SCENARIOS}: /scenarios is no list"]  # check: scenarios.list
    if len(entries) > MAX_SCENARIOS:  # check: scenarios.number
        return {}, [f"{SCENARIOS}: more than {MAX_SCENARIOS} scenarios"]
    found: dict[str, Entry] = {}
    problems = []
    for index, entry in enumerate(entries):
        name = dig(entry, "id")
        if not isinstance(name, str) or not isinstance(dig(entry, "strictness"), str):
            # check: scenarios.entry
            problems.append(f"{SCENARIOS}: /scenarios/{index} lacks an id or a strictness")
        elif name in found:  # check: scenarios.twice
            problems.append(f"{SCENARIOS}: /scenarios/{index} repeats the id {escape(name)}")
        else:
            found[name] = entry
    return found, problems


def check_json(tree: Tree) -> list[str]:
    """Findings about JSON that has no or more than one reading.

    Reports, and the runtime manifests beside them, have their own step.
    """
    findings = []
    for path in sorted(tree.files):
        folder, _, name = path.rpartition("/")
        beside = name == RUNTIME_MANIFEST and f"{folder}/{REPORT_NAME}" in tree.files
        if name.endswith(".json") and name != REPORT_NAME and not beside:
            try:
                parse_json(tree.data(path), escape(path))
            except InputError as error:
                findings.append(escape(error))
    return findings


def check_metadata(tree: Tree, scenarios: Mapping[str, Entry]) -> list[str]:
    """Findings about the metadata beside the reports of known scenarios."""
    findings = []
    reported = set()
    for place in places(tree):
        entry = scenarios.get(place.scenario or "")
        if entry is None:
            continue
        reported.add(place.scenario)
        findings += [f"{escape(place.folder)}{text}" for text in _metadata(tree, place, entry)]
    for name, entry in scenarios.items():
        if artifact_class(entry) == DEPLOYABLE and name not in reported:
            findings.append(f"{SCENARIOS}: deployable scenario {escape(name)} has no report")
    return findings


def artifact_class(entry: Entry) -> str | None:
    """The class of the subject: as named, else by the kind of generation."""
    named = first_text(entry.get("artifact_class"))
    return named or CLASSES.get(str(dig(entry, "generation", "kind")))


def _edit_type(entry: Entry) -> str | None:
    spec = first_text(dig(entry, "generation", "edit_spec"))
    if spec:
        return spec.split(":", 1)[0]
    failure = first_text(entry.get("failure_class"))
    return failure.rsplit(".", 1)[-1] if failure else None


def takes_tuned(entry: Entry) -> bool:
    """Whether the parameters of a scenario's edit come from the table of tuned ones."""
    spec = first_text(dig(entry, "generation", "edit_spec")) or ""
    return spec.endswith(f":{MARK}")


def _read(tree: Tree, path: str) -> tuple[Mapping[str, Any], str]:
    try:
        return tree.json_object(path), ""
    except InputError as error:
        error.where = ""
        return {}, escape(error.what)


def _metadata(tree: Tree, place: Place, entry: Entry) -> list[str]:
    """Findings, each beginning with the file name."""
    kind, edit_type = artifact_class(entry), _edit_type(entry)
    ours = place.folder + OUTCOME_NAME in tree.files
    if kind == FAULT:
        name, wanted = (
            ERROR_METADATA,
            {
                "schema": ERROR_SCHEMA,
                "artifact_class": kind,
                "error_type": dig(entry, "generation", "error_type"),
                "injected": True,
            },
        )
        needed = ours  # published packs carry no error metadata
    elif kind in (VALIDATION, DEPLOYABLE):
        backend = kind == DEPLOYABLE
        name, wanted = (
            EDIT_METADATA,
            {
                "schema": EDIT_SCHEMA,
                "artifact_class": kind,
                "edit_type": edit_type,
                "optimized_deployment_backend": backend,
            },
        )
        if backend or edit_type == "quant_rtn":
            wanted["packed_quantized_storage"] = backend
        needed = edit_type != CUSTOM
    elif kind == EVIDENCE_ONLY:
        name, wanted = EDIT_METADATA, {"schema": EDIT_SCHEMA, "artifact_class": kind}
        needed = False
    else:
        return []
    path = place.folder + name
    if path not in tree.files and path not in tree.refused:
        return [f"{name}: is missing"] if needed else []  # check: scenarios.needed
    document, problem = _read(tree, path)
    if problem:
        return [f"{name}: {problem}"]
    found = []
    for key, value in wanted.items():
        stated = document.get(key)
        if type(stated) is not type(value) or stated != value:  # check: scenarios.metadata
            shown = escape(repr(stated))[:80]
            found.append(f"{name}: /{key} is {shown}; expected {value!r}")
    # Published packs name parameters in their own way; packs of runs are complete.
    # check: scenarios.parameters
    if ours and ("parameters" in document or CONFIG in tree.files):
        stated = stated_parameters(entry)
        found += [f"{name}: {_departure(*words)}" for words in departures(stated, document)]
    found += _same_checkpoints(tree, place, name, document)
    if takes_tuned(entry) and TUNED in tree.files:
        found += [f"{name}: {text}" for text in _tuned(tree, place, document)]
    return found + (sidecars(tree, place) if kind == DEPLOYABLE else [])


def _departure(key: str, wanted: object, found: object) -> str:
    shown = [escape(text)[:80] for text in (key, repr(found), repr(wanted))]
    return "/{} is {}; its scenario says {}".format(*shown)


def _same_checkpoints(
    tree: Tree, place: Place, name: str, metadata: Mapping[str, Any]
) -> list[str]:
    """The metadata and the report are about the same two checkpoints."""
    try:
        report = tree.outline(place.report)
    except InputError:
        return []  # the step of the reports says so
    found = []
    for role in ("baseline", "subject"):
        key = f"{role}_checkpoint_sha256"
        mine = first_text(metadata.get(key))
        theirs = first_text(dig(report, "provenance", role, "checkpoint_sha256"))
        if mine and theirs and mine != theirs:  # check: scenarios.checkpoint
            found.append(f"{name}: /{key} is not the {role} of the report")
    return found


def _tuned(tree: Tree, place: Place, metadata: Mapping[str, Any]) -> Iterator[str]:
    """The edit has the parameters of the table, and is judged on none of the search's windows."""
    try:
        table, report = tree.json_object(TUNED), tree.outline(place.report)
    except InputError:
        return  # other steps say so
    model, kind = str(dig(report, "meta", "model_id")), str(metadata.get("edit_type"))
    row = dig(table, "models", model, kind)
    if not isinstance(row, dict) or row.get("status") != SELECTED:
        yield f"{TUNED} has no selected {escape(kind)[:80]} for {escape(model)[:80]}"
        return
    for key, _, found in departures({k: row.get(k) for k in ORDER.get(kind, ())}, metadata):
        yield f"/{key} is {escape(repr(found))[:80]}, which is not that of {TUNED}"
    judged = dig(report, "provenance", "windows_sha256")
    for name in ("selection", "confirmation"):
        searched = dig(row, "search", name, "windows_sha256")
        if isinstance(searched, str) and searched == judged:
            yield f"the report is judged on the {name} windows of the search in {TUNED}"


def sidecars(tree: Tree, place: Place) -> list[str]:
    """Findings about the five sidecars of a deployable subject."""
    found = []
    documents: dict[str, Mapping[str, Any]] = {}
    for name, (schema, true) in DEPLOYABLE_SIDECARS.items():
        document, problem = _read(tree, place.folder + name)
        wrong = [key for key in true if document.get(key) is not True]
        if problem or document.get("schema") != schema or wrong:
            found.append(f"{name}: {problem or 'schema or ' + ', '.join(true) + ' do not hold'}")
        else:
            documents[name] = document
            found += [f"{name}: {line}" for line in _stated(document)]
    inventory, memory = (documents.get(name) for name in (INVENTORY, MEMORY))
    if inventory is not None:
        found += [f"{INVENTORY}: {line}" for line in _inventory(inventory)]
    if memory is not None:
        found += [f"{MEMORY}: {line}" for line in _memory(memory)]
    return found


def _stated(document: Mapping[str, Any]) -> Iterator[str]:
    """Members that a sidecar need not have and that say that something went wrong."""
    for name in ("ok", "all_logits_finite", "loaded_from_saved_checkpoint"):
        if name in document and document[name] is not True:
            yield f"/{name} is {escape(document[name])[:80]}; expected true"
    if document.get("issues"):
        yield "/issues is not empty"


def _bytes(value: object) -> bool:
    """Whether a value is a number of bytes that something can have; true is no number."""
    known = number(value)
    return known is not None and known > 0 and known == int(known)


def _inventory(document: Mapping[str, Any]) -> Iterator[str]:
    """What the quantized model consists of, and how many bytes it takes."""
    if not _bytes(dig(document, "memory_footprint", "reported_bytes")):
        yield "/memory_footprint/reported_bytes is no number of bytes above 0"
    modules = document.get("quantized_module_count")
    if type(modules) is not int or modules < 0:
        yield "/quantized_module_count is no number of modules"
    if not isinstance(document.get("quantized_module_types"), list):
        yield "/quantized_module_types is no list"


def _memory(document: Mapping[str, Any]) -> Iterator[str]:
    """Bytes before and after, where they are stated: positive, and the difference is theirs."""
    before, after = (f"{which}_reported_bytes" for which in ("baseline", "quantized"))
    sizes = [name for name in (before, after) if name in document]
    wrong = [name for name in sizes if not _bytes(document[name])]
    yield from (f"/{name} is no number of bytes above 0" for name in wrong)
    reduction, ratio = (number(document.get(f"reduction_{what}")) for what in ("bytes", "ratio"))
    if len(sizes) == 2 and not wrong:
        saved = document[before] - document[after]
        if reduction is not None and reduction != saved:
            yield f"/reduction_bytes is {reduction:g}; the two sizes differ by {saved}"
    else:
        saved = reduction
    if (
        saved is not None
        and saved <= 0
        and document.get("runtime_memory_reduction_observed") is True
    ):
        yield "/runtime_memory_reduction_observed is true, and nothing was saved"
    if ratio is not None and not ratio < 1:
        yield f"/reduction_ratio is {ratio:g}; nothing that is left has no bytes"
