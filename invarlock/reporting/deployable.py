"""The five records beside the report of a deployable subject: made, and held to one another.

``deployable_artifact_validation.json`` says in one word what the other four show; every word of it
is recomputed from them here, by the command that writes it and by the verification of a pack.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from invarlock.deployment import parse_packing_spec
from invarlock.errors import ConfigError
from invarlock.scenarios import DEPLOYABLE
from invarlock.shown import listed

VALIDATION = "deployable_artifact_validation.json"
INVENTORY, MEMORY = "backend_inventory.json", "memory_report.json"
LOAD, INFERENCE = "load_smoke.json", "inference_smoke.json"
# File -> name and version of its format, in the order in which they are written.
FORMATS = {
    LOAD: "invarlock/deployable-load-smoke-v1",
    INFERENCE: "invarlock/deployable-inference-smoke-v1",
    MEMORY: "invarlock/deployable-memory-report-v1",
    INVENTORY: "invarlock/backend-inventory-v1",
    VALIDATION: "invarlock/deployable-artifact-validation-v1",
}
CONTRACTS = {
    LOAD: "load-smoke",
    INFERENCE: "inference-smoke",
    MEMORY: "memory-report",
    INVENTORY: "backend-inventory",
    VALIDATION: "deployable-artifact-validation",
}
# What scales, zero points and matrices left in more bits may add to the bits that are claimed. The
# most that a common form adds is 2.6 (groups of 16 with a scale and a zero point); a checkpoint
# that stores 16 exceeds it whatever it claims.
OVERHEAD_BITS = 4.0
DENSE_BITS = 16.0
MAX_NAMES = 3  # of tensors in a line
Record = Mapping[str, Any]


class Claim(NamedTuple):
    """Bits of a weight that a subject is said to have, and who says so."""

    bits: float | None
    by: str


class Identities(NamedTuple):
    """The digests of what was compared."""

    baseline: str
    subject: str | None


# --- making them ------------------------------------------------------------------------------


def claim_of(spec: str, quantization: Record, modules: Mapping[str, Record]) -> Claim:
    """The bits that are claimed: by a scenario, else by ``config.json``, else by the weights.

    Args:
        spec: what a backend of ours was asked for; empty where it packed nothing.
        quantization: the part of ``config.json`` about it.
        modules: the inventory.
    """
    if spec:
        return Claim(float(parse_packing_spec(spec).bits), "scenario")
    stated = _stated_bits(quantization)
    if stated is not None:
        return Claim(stated, "config.json")
    weights: dict[float, int] = {}
    for module in modules.values():
        if module["packed"]:
            weights[module["bits"]] = weights.get(module["bits"], 0) + module["elements"]
    return Claim(max(weights, key=lambda bits: weights[bits], default=None), "weights")


def _stated_bits(quantization: Record) -> float | None:
    """What ``quantization_config`` calls the bits of a weight, by any of its names."""
    if quantization.get("load_in_4bit") is True:
        return 4.0
    if quantization.get("load_in_8bit") is True:
        return 8.0
    groups = quantization.get("config_groups")
    parts = [quantization, quantization.get("weight_config"), quantization.get("quant_config")]
    for group in groups.values() if isinstance(groups, Mapping) else ():
        parts.append(group.get("weights") if isinstance(group, Mapping) else None)
    found = [
        float(part[name])
        for part in parts
        if isinstance(part, Mapping)
        for name in ("bits", "w_bit", "num_bits", "nbits")
        if type(part.get(name)) in (int, float) and part[name] > 0
    ]
    return min(found, default=None)


def stored_bits(modules: Mapping[str, Record]) -> float | None:
    """Bits that a weight of the matrices in the inventory takes, scales included."""
    elements = sum(module["elements"] for module in modules.values())
    stored = sum(module["bytes"] for module in modules.values())
    return round(8 * stored / elements, 4) if elements else None


def load_smoke(seen: Record, who: Identities) -> dict[str, Any]:
    """``load_smoke.json`` of what a fresh process saw (:mod:`invarlock.run.smoke`)."""
    ran, failed = seen.get("ran") or {}, bool(seen["error"])
    lost = {name: list(seen.get(name, ())) for name in ("missing", "unexpected")}
    return {
        "schema": FORMATS[LOAD],
        "ok": not failed and not any(lost.values()),
        "subject_checkpoint_sha256": who.subject,
        "backend": ran.get("backend"),
        "backend_version": _version(ran),
        "device": ran.get("device"),
        "dtype": seen.get("dtype"),
        "loaded_from_saved_checkpoint": not failed,
        "load_time_quantization_override": False,
        **lost,
        "seconds": seen.get("seconds"),
        "error": seen["error"],
    }


def _version(ran: Record) -> str | None:
    """The version of the package that the backend is called by; else of the first that ran."""
    versions = ran.get("versions") or {}
    named = _plain(ran.get("backend"))
    found = (version for name, version in versions.items() if _plain(name).startswith(named))
    return next(found, None) or next(iter(versions.values()), None)


def _plain(name: object) -> str:
    """Letters and digits of a name: the package of llama.cpp is llama-cpp-python."""
    return "".join(filter(str.isalnum, str(name)))


def inference_smoke(
    seen: Record, baseline: Record, prompts: Sequence[Sequence[int]], count: int, who: Identities
) -> dict[str, Any]:
    """``inference_smoke.json`` of what subject and baseline answered, each in its own process."""
    mine, theirs = seen.get("answers") or [], baseline.get("answers") or []
    error = seen["error"] or (baseline["error"] and f"the baseline: {baseline['error']}")
    rows = [
        {
            "prompt": list(prompt),
            "baseline": list(there["tokens"]),
            "subject": list(here["tokens"]),
            "agreed": agreed(there["tokens"], here["tokens"]),
            "logits_finite": here["finite"],
        }
        for prompt, here, there in zip(prompts, mine, theirs, strict=False)
    ]
    first = mine[0] if mine else {}
    shape = list(first.get("logits_shape", ()))
    document = {
        "schema": FORMATS[INFERENCE],
        "subject_checkpoint_sha256": who.subject,
        "new_tokens": count,
        "vocabulary": shape[1] if shape else None,
        "answers": rows,
        "agreement": _agreement(rows, count),
        "all_logits_finite": bool(rows) and all(row["logits_finite"] for row in rows),
        "logits_sha256": first.get("logits_sha256"),
        "logits_shape": shape,
        "tokens_per_second": _speed(mine, count),
        "baseline_tokens_per_second": _speed(theirs, count),
        "error": error,
    }
    return document | {"ok": not _of_answers(document)}


def agreed(one: Sequence[int], two: Sequence[int]) -> int:
    """How many tokens are the same before the first other one."""
    same = [a == b for a, b in zip(one, two, strict=False)]
    return same.index(False) if False in same else len(same)


def _agreement(rows: Sequence[Record], count: int) -> float | None:
    asked = count * len(rows)
    return round(sum(row["agreed"] for row in rows) / asked, 6) if asked else None


def _speed(answers: Sequence[Record], count: int) -> float | None:
    seconds = sum(answer["seconds"] for answer in answers)
    return round(count * len(answers) / seconds, 2) if seconds else None


def memory_report(
    seen: Record, baseline: Record, files: tuple[int, int], who: Identities
) -> dict[str, Any]:
    """``memory_report.json``; ``files``: bytes of the weights of subject and baseline."""
    sides = {"subject": (seen, files[0]), "baseline": (baseline, files[1])}
    names = ("reported_bytes", "resident_bytes", "peak_bytes", "device_peak_bytes")
    taken = {
        side: {"file_bytes": size, **{name: found.get(name) for name in names}}
        for side, (found, size) in sides.items()
    }
    before, after = (taken[side]["reported_bytes"] for side in ("baseline", "subject"))
    return {
        "schema": FORMATS[MEMORY],
        "subject_checkpoint_sha256": who.subject,
        "measurement_method": "reported: parameters and buffers of the loaded model, or the files"
        " that an engine maps; resident: growth of a fresh process that loads and answers",
        **taken,
        "baseline_reported_bytes": before,
        "quantized_reported_bytes": after,
        **_reduction(before, after),
    }


def _reduction(before: int | None, after: int | None) -> dict[str, object]:
    """What less memory the subject takes, as far as both sizes are known."""
    if not before or not after:
        return {
            "ok": False,
            "reduction_bytes": None,
            "reduction_ratio": None,
            "runtime_memory_reduction_observed": False,
        }
    return {
        "ok": True,
        "reduction_bytes": before - after,
        "reduction_ratio": round((before - after) / before, 6),
        "runtime_memory_reduction_observed": before > after,
    }


def backend_inventory(
    modules: Mapping[str, Record],
    packing: Record,
    claim: Claim,
    others: Mapping[str, Record],
    ran: Record,
    who: Identities,
) -> dict[str, Any]:
    """``backend_inventory.json``.

    Args:
        modules: the packed tensors and the matrices of the blocks.
        packing: as reports state it (``Checkpoint.packing``).
        claim: bits of a weight that are claimed.
        others: the documents that are there already, by name.
        ran: what ran, as a fresh process describes it; empty where nothing did.
        who: what was compared.
    """
    packed = [module for module in modules.values() if module["packed"]]
    return {
        "schema": FORMATS[INVENTORY],
        "backend": ran.get("backend"),
        "backend_version": _version(ran),
        **{name: dict(ran.get(name) or {}) for name in ("versions", "kernels", "detail")},
        "device": ran.get("device"),
        "format": packing["format"],
        "title": packing["title"],
        "baseline_checkpoint_sha256": who.baseline,
        "subject_checkpoint_sha256": who.subject,
        "load_smoke": others[LOAD]["ok"],
        "inference_smoke": others[INFERENCE]["ok"],
        "quantized_module_count": len(packed),
        "quantized_module_types": sorted({module["format"] for module in packed}),
        "modules": dict(sorted(modules.items())),
        "claimed_bits": claim.bits,
        "claimed_by": claim.by,
        "stored_bits": stored_bits(modules),
        "bytes_packed": packing["bytes_packed"],
        "bytes_dense": packing["bytes_dense"],
        "memory_footprint": {"reported_bytes": others[MEMORY]["quantized_reported_bytes"] or 0},
    }


def validation(documents: Mapping[str, Record]) -> dict[str, Any]:
    """``deployable_artifact_validation.json``: what the other four show."""
    inventory = documents[INVENTORY]
    found = list(issues(documents))
    return {
        "schema": FORMATS[VALIDATION],
        "ok": not found,
        "artifact_class": DEPLOYABLE,
        **{name: inventory[name] for name in (
            "backend", "backend_version", "format", "baseline_checkpoint_sha256",
            "subject_checkpoint_sha256", "load_smoke", "inference_smoke",
        )},
        "packed_quantized_storage": not list(_of_storage(inventory)),
        "runtime_memory_reduction_observed": documents[MEMORY][
            "runtime_memory_reduction_observed"
        ],
        "issues": found,
    }  # fmt: skip


# --- what is wrong with a subject ---------------------------------------------------------------


def issues(documents: Mapping[str, Record]) -> Iterator[str]:
    """What is wrong with the subject, by the four documents that show it."""
    load, memory = documents[LOAD], documents[MEMORY]
    if load["error"]:
        yield f"is not loaded: {load['error']}"
    for name in ("missing", "unexpected"):
        if load[name]:
            names = listed(load[name], MAX_NAMES)
            yield f"{len(load[name])} {name} weights after loading: {names}"
    yield from _of_answers(documents[INFERENCE])
    if not memory["ok"]:
        yield "what it takes in memory is not known"
    yield from _of_storage(documents[INVENTORY])


def _of_answers(document: Record) -> list[str]:
    """What is wrong with the answers."""
    if document["error"] or not document["answers"]:
        return [f"gives no answer: {document['error'] or 'nothing was asked'}"]
    found = []
    if not all(row["logits_finite"] for row in document["answers"]):
        found.append("logits are no numbers")
    size, count = document["vocabulary"] or 0, document["new_tokens"]
    if any(len(row["subject"]) != count for row in document["answers"]):
        found.append(f"ends before {count} tokens")
    if any(token >= size for row in document["answers"] for token in row["subject"]):
        found.append(f"answers with tokens above its vocabulary of {size}")
    return found


def _of_storage(inventory: Record) -> Iterator[str]:
    """Whether as few bits are stored as are claimed."""
    claimed, stored = inventory["claimed_bits"], inventory["stored_bits"]
    if claimed is None or stored is None:
        yield "no weight is packed"
        return
    most = claimed + OVERHEAD_BITS
    if stored > most or stored >= DENSE_BITS:
        yield (
            f"claims {claimed:g} bits ({inventory['claimed_by']}) and stores {stored:.3g} of a"
            f" weight; at most {most:g} with scales"
        )
    if stored < claimed * 0.9:
        yield f"claims {claimed:g} bits, and its bytes hold {stored:.3g} of a weight"
    if inventory["bytes_packed"] >= inventory["bytes_dense"]:
        yield (
            f"its files take {inventory['bytes_packed']} bytes, and dense weights"
            f" {inventory['bytes_dense']}"
        )


# --- whether the five hold together ---------------------------------------------------------------


def contradictions(
    documents: Mapping[str, Record], report: Record, entry: Record
) -> Iterator[tuple[str, str]]:
    """(file, line) for everything that the five say against one another or the report.

    Args:
        documents: all five, each valid by its contract.
        report: ``evaluation.report.json``; empty where it cannot be read.
        entry: the scenario.
    """
    inventory, memory = documents[INVENTORY], documents[MEMORY]
    load, answers = documents[LOAD], documents[INFERENCE]
    for side in ("baseline", "subject"):
        member = f"{side}_checkpoint_sha256"
        stated = _member(report, "provenance", side, "checkpoint_sha256")
        for name, document in documents.items():
            if member in document and report and document[member] != stated:
                yield name, f"/{member} is not the {side} of the report"
    yield from ((INVENTORY, line) for line in _inventory(inventory, report, entry))
    for name, value in (("load_smoke", load["ok"]), ("inference_smoke", answers["ok"])):
        if inventory[name] is not value:
            yield INVENTORY, f"/{name} is not that of {name}.json"
    for name in ("backend", "backend_version", "device"):
        if load["ok"] and load[name] != inventory[name]:
            yield LOAD, f"/{name} is not that of {INVENTORY}"
    if load["ok"] is not (
        not load["error"] and not load["missing"] and not load["unexpected"]
        and load["loaded_from_saved_checkpoint"]
    ):  # fmt: skip
        yield LOAD, "/ok is not what it says of loading"
    yield from ((MEMORY, line) for line in _memory(memory, inventory))
    yield from ((INFERENCE, line) for line in _answers(answers))
    wanted, found = validation(documents), documents[VALIDATION]
    for name, value in wanted.items():
        if found[name] != value:
            yield VALIDATION, f"/{name} is not what the other four give: {value!r:.120}"


def _inventory(document: Record, report: Record, entry: Record) -> Iterator[str]:
    packed = {n: m for n, m in document["modules"].items() if m["packed"]}
    if document["quantized_module_count"] != len(packed):
        yield f"/quantized_module_count is not {len(packed)}"
    types = sorted({m["format"] for m in packed.values()})
    if document["quantized_module_types"] != types:
        yield f"/quantized_module_types is not {', '.join(types)[:120]}"
    if document["stored_bits"] != stored_bits(document["modules"]):
        yield "/stored_bits is not what its modules take"
    for name, module in document["modules"].items():
        if module["bytes"] * 8 < module["elements"] * module["bits"] * 0.99:
            yield f"/modules/{name}: {module['bytes']} bytes cannot hold its values"
            break
    if sum(m["bytes"] for m in packed.values()) > document["bytes_packed"]:
        yield "/bytes_packed is less than its modules take"
    spec = _member(entry, "generation", "edit_spec")
    if _member(entry, "generation", "kind") == "deployable_edit":
        try:
            claim = float(parse_packing_spec(str(spec)).bits)
        except ConfigError:
            claim = math.nan
        if (document["claimed_bits"], document["claimed_by"]) != (claim, "scenario"):
            yield "/claimed_bits is not what the scenario asks for"
    yield from _against(document, packed, _member(report, "meta", "execution"))


def _against(document: Record, packed: Mapping[str, Record], execution: object) -> Iterator[str]:
    """Where the inventory is not that of the model that was evaluated."""
    if not isinstance(execution, Mapping) and not document["modules"]:
        return  # neither the evaluation nor this could open it, which is an issue
    if not isinstance(execution, Mapping):
        yield "the report says nothing of packed weights (/meta/execution)"
        return
    ran = ("backend", "versions", "kernels", "device") if "backend" in execution else ()
    ran = ran if document["load_smoke"] else ()
    for name in ("format", "title", "bytes_packed", "bytes_dense", *ran):
        if document[name] != execution.get(name):
            yield f"/{name} is not that of the report, /meta/execution"
    schemes: dict[str, dict[str, Any]] = {}
    for module in packed.values():
        empty = {"bits": module["bits"], "tensors": 0, "elements": 0, "bytes": 0}
        row = schemes.setdefault(module["format"], empty)
        row["tensors"] += 1
        row["elements"] += module["elements"]
        row["bytes"] += module["bytes"]
    if schemes != execution.get("schemes"):
        yield "/modules do not add up to /meta/execution/schemes of the report"


def _memory(document: Record, inventory: Record) -> Iterator[str]:
    for side, name in (("baseline", "baseline"), ("subject", "quantized")):
        if document[f"{name}_reported_bytes"] != document[side]["reported_bytes"]:
            yield f"/{name}_reported_bytes is not /{side}/reported_bytes"
    if document["subject"]["file_bytes"] != inventory["bytes_packed"]:
        yield f"/subject/file_bytes is not /bytes_packed of {INVENTORY}"
    held = inventory["memory_footprint"]["reported_bytes"]
    if (document["quantized_reported_bytes"] or 0) != held:
        yield f"/quantized_reported_bytes is not that of {INVENTORY}"
    sizes = (document[f"{name}_reported_bytes"] for name in ("baseline", "quantized"))
    for name, value in _reduction(*sizes).items():
        if document[name] != value:
            yield f"/{name} is not what its sizes give"


def _answers(document: Record) -> Iterator[str]:
    rows = document["answers"]
    for index, row in enumerate(rows):
        if row["agreed"] != agreed(row["baseline"], row["subject"]):
            yield f"/answers/{index}/agreed is not what its tokens give"
    if document["agreement"] != _agreement(rows, document["new_tokens"]):
        yield "/agreement is not what its answers give"
    finite = bool(rows) and all(row["logits_finite"] for row in rows)
    if document["all_logits_finite"] is not finite:
        yield "/all_logits_finite is not what its answers say"
    if document["ok"] is not (not _of_answers(document)):
        yield "/ok is not what its answers give"


def _member(document: object, *path: str) -> Any:
    """A member by its path; None where there is none."""
    for name in path:
        document = document.get(name) if isinstance(document, Mapping) else None
    return document
