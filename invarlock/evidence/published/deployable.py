"""The sidecars of a deployable subject: an edit that was packed for another program to load.

Packs hold five of them beside such a report. Those that published versions made say that they are
in order, and are held to that. Ours (:mod:`invarlock.reporting.deployable`) may say that they are
not, which the verdict counts; they are held to one another and to the report.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from invarlock.contracts import violations
from invarlock.errors import InputError
from invarlock.evidence import escape
from invarlock.evidence.findings import dig, number
from invarlock.evidence.tree import Tree
from invarlock.reporting import deployable as ours

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


def check_ours(
    tree: Tree, folder: str, report: Mapping[str, Any], entry: Mapping[str, Any]
) -> list[str]:
    """Findings about the five sidecars that a run of ours wrote beside a report.

    Args:
        tree: the pack.
        folder: of the report.
        report: its outline; empty where it cannot be read.
        entry: the scenario.
    """
    documents: dict[str, Mapping[str, Any]] = {}
    found = []
    for name in ours.FORMATS:
        document, problem = _read(tree, folder + name)
        wrong = [problem] if problem else violations(document, ours.CONTRACTS[name])
        found += [f"{name}: {escape(line)}" for line in wrong[:1]]
        documents[name] = document
    if found:
        return found
    return [f"{n}: {escape(line)}" for n, line in ours.contradictions(documents, report, entry)]


def check(tree: Tree, folder: str) -> list[str]:
    """Findings about the five sidecars of a published version in a folder of the pack."""
    found = []
    documents: dict[str, Mapping[str, Any]] = {}
    for name, (schema, true) in DEPLOYABLE_SIDECARS.items():
        document, problem = _read(tree, folder + name)
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


def _read(tree: Tree, path: str) -> tuple[Mapping[str, Any], str]:
    try:
        return tree.json_object(path), ""
    except InputError as error:
        return {}, escape(error.what)
