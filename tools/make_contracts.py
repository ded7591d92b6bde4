"""Make contracts/*.schema.json from the structs of the documents.

``make docs`` writes them; ``--check`` exits with 1 when one is stale. The contract of the settings
is not among them: tools/make_config.py makes it from config/config.yaml.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from generated import write_or_check

from invarlock import documents
from invarlock.evidence.manifest import OLD_FORMAT

ROOT = Path(__file__).resolve().parent.parent
DRAFT = "https://json-schema.org/draft/2020-12/schema"
ID = "https://invarlock.invalid/contracts/{}.schema.json"
REF = "#/$defs/"
FORM = "Which of the forms this is."
Schema = dict[str, Any]


class Contract:
    """The schema of one document: what msgspec says of its struct, in the shape people read."""

    def __init__(self, document: Any) -> None:
        (self.whole,), self.parts = msgspec.json.schema_components([document])
        self.used = Counter(_references([self.whole, self.parts]))
        self.kept: dict[str, Schema] = {}

    def schema(self) -> Schema:
        """An object that is used once stands in its place, others under ``$defs``."""
        whole = self.tidy(self.whole)
        return whole | ({"$defs": self.kept} if self.kept else {})

    def tidy(self, part: Schema) -> Schema:
        """The schema of one value."""
        if "$ref" in part:
            return self.referred(part["$ref"].removeprefix(REF), part)
        if "anyOf" in part:
            return _described(part, self.union([self.tidy(one) for one in part["anyOf"]]))
        found = {key: value for key, value in part.items() if key != "title"}
        if "pattern" in found:  # the end of a text, as JSON Schema says it
            found["pattern"] = found["pattern"].replace(r"\Z", "$")
        if len(found.get("enum", ())) == 1:
            found["const"] = found.pop("enum")[0]
        if "properties" in found:
            found["properties"] = {n: self.tidy(one) for n, one in found["properties"].items()}
            for one in found["properties"].values():
                one.setdefault("description", FORM)  # a tag, which msgspec adds by itself
        for key in ("items", "additionalProperties"):
            if isinstance(found.get(key), dict):
                found[key] = self.tidy(found[key])
        if "propertyNames" in found:
            found["propertyNames"] = self.tidy({"type": "string", **found["propertyNames"]})
        return found

    def referred(self, name: str, part: Schema) -> Schema:
        """An object, with what a field says about it in the place of what its class says."""
        if self.used[name] == 1:
            return _described(part, self.tidy(self.parts[name]))
        if name not in self.kept:
            self.kept[name] = {}  # it may hold itself
            self.kept[name] = self.tidy(self.parts[name])
        return _described(part, {"$ref": REF + name})

    @staticmethod
    def union(options: list[Schema]) -> Schema:
        """One of several types; ``type`` lists them where none has restrictions but one."""
        plain = [one for one in options if set(one) == {"type"}]
        others = [one for one in options if set(one) != {"type"}]
        if len(others) > 1 or any(not isinstance(one.get("type"), str) for one in others):
            return {"anyOf": options}
        return {**(others[0] if others else {}), "type": [one["type"] for one in others + plain]}


def _described(part: Schema, found: Schema) -> Schema:
    return found | ({"description": part["description"]} if "description" in part else {})


def _references(part: Any) -> Iterator[str]:
    """The names that a schema refers to, as often as it does."""
    if isinstance(part, dict):
        if "$ref" in part:
            yield part["$ref"].removeprefix(REF)
        part = [value for key, value in part.items() if key != "discriminator"]
    if isinstance(part, list):
        for value in part:
            yield from _references(value)


def contract(name: str) -> Schema:
    """The contract of a document."""
    module = documents.module(name)
    assert module is not None
    head = {"$schema": DRAFT, "$id": ID.format(name), "title": module.TITLE}
    said = " ".join((module.__doc__ or "").replace("``", "").split())
    return {**head, **Contract(module.DOCUMENT).schema(), "description": said}


def published() -> Iterator[tuple[str, Any]]:
    """Contracts under the names by which people of published versions look for them."""
    manifest = contract("evidence-pack-manifest")
    name = "evidence_pack_manifest.schema"
    yield name, manifest | {"$id": ID.format("evidence_pack_manifest")}
    older = json.loads(json.dumps(manifest))
    older |= {"$id": ID.format("proof_pack_manifest"), "title": "manifest.json of a proof pack"}
    older["description"] = "Signed statement of the older format, which is read and never written."
    older["properties"]["format"]["const"] = OLD_FORMAT
    older["required"].remove("checksums_sha256_digest")  # its first generation has none
    yield "proof_pack_manifest.schema", older
    report = contract("evaluation-report")
    yield "validation_keys", sorted(report["properties"]["validation"]["properties"])


def made() -> Iterator[tuple[Path, str]]:
    """Every file and what it has to say."""
    files = [(f"{name}.schema", contract(name)) for name in documents.names()]
    for name, document in (*files, *published()):
        text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
        yield ROOT / f"contracts/{name}.json", text


if __name__ == "__main__":
    sys.exit(write_or_check(made()))
