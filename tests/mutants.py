"""The checks of the verifier, each with the change of its source that switches it off.

``make mutants`` (``tools/mutants.py``) applies one at a time to a copy of the package and runs
the attacks that name it: without its check an attack has to get through, or reach a later step.
"""

from __future__ import annotations

from mutant_changes import (
    ALL_CLAIMS,
    ALL_EVIDENCE,
    CLAIMS,
    CLI,
    EVIDENCE,
    FILES,
    IDENTITY,
    KEYS,
    MANIFEST,
    MATRIX,
    NO_COMPARE,
    NO_INTERVAL,
    NO_LINTS,
    NO_MANIFEST,
    NO_ORDER,
    NO_PAIRING,
    NO_PARSED,
    NO_POINT,
    NO_RATIO,
    NO_SHARED,
    NO_SIZE,
    NO_SPOKEN,
    NO_TOTAL,
    NO_VERIFY,
    NOT_EXPECTED,
    PACK,
    PROVENANCE,
    REPORT,
    SCENARIOS,
    SUMS,
    TREE,
    VERIFY,
    Change,
    gone,
    never,
)

MUTANTS: dict[str, tuple[Change, ...]] = {
    "open.control": (Change(VERIFY, "if not os.path.lexists(root / name) or", "if False and"),),
    "open.folder": (
        never(CLI, "if not (args.json or args.pack.is_dir()):"),
        never(VERIFY, "if not is_folder:"),
        Change(VERIFY, "if not os.path.lexists(root / name) or", "if False and"),
    ),
    "options.inside": (
        never(CLI, "if any(place.is_relative_to(pack.resolve()) for place in places):"),
    ),
    "options.pin": (never(KEYS, "if not FINGERPRINT.fullmatch(value):"),),
    # --- tree
    "tree.kind": (
        Change(
            TREE,
            '                self._refuse(path, f"is a {_kind(kind)}; only files'
            ' and folders are allowed")\n                return',
            "                return",
        ),
    ),
    "tree.open": (
        Change(
            TREE,
            '            self._refuse(path, f"cannot be read: {error.strerror}")\n'
            "            return",
            "            return",
        ),
    ),
    "tree.follow": (Change(TREE, "FLAGS = os.O_RDONLY | os.O_NOFOLLOW", "FLAGS = os.O_RDONLY"),),
    "tree.opened": (
        Change(
            TREE,
            '            else:\n                self._refuse(path, f"is a {_kind(kind)}; only',
            "            elif False:\n                "
            'self._refuse(path, f"is a {_kind(kind)}; only',
        ),
    ),
    "tree.hidden": (Change(TREE, r'if "\\" in name or not (plain', "if False and not (plain"),),
    "tree.utf8": (Change(TREE, '        return "the name is not UTF-8"', '        return ""'),),
    "tree.folded": (never(TREE, "if other != name:"),),
    "tree.path": (never(TREE, 'if size > MAX_NAME or len(path.encode("utf-8")) > MAX_PATH:'),),
    "tree.depth": (never(TREE, "if depth > MAX_DEPTH:"),),
    "tree.entries": (never(TREE, "if self.entries > MAX_ENTRIES:"),),
    "tree.reports": (Change(TREE, "(self.reports <= MAX_REPORTS, ", "(True, "),),
    "tree.file_size": (NO_SIZE, NO_TOTAL, NO_PARSED),
    "tree.pack_size": (NO_TOTAL,),
    "tree.parsed": (NO_PARSED, NO_TOTAL),
    "tree.values": (Change(TREE, "sum(map(data.count, MARKS)) > MAX_VALUES", "False"),),
    # --- checksums
    "checksums.extra": (gone(VERIFY, "step.findings += lines"),),
    "checksums.mirror": (Change(SUMS, "if mirror in tree.files and (", "if False and ("),),
    "checksums.line": (
        gone(
            SUMS,
            'findings.append(f"{CHECKSUMS}: line {number} is not a digest and a canonical path")',
        ),
    ),
    "checksums.missing": (gone(SUMS, 'findings.append(f"{escape(path)}: is listed and missing")'),),
    "checksums.changed": (never(SUMS, "elif found.sha256 != digests[path]:"),),
    "checksums.control": (
        never(SUMS, "elif path in control:"),
        never(SUMS, "elif found.sha256 != digests[path]:"),
    ),
    "checksums.twice": (never(SUMS, "elif path in digests:"),),
    "checksums.utf8": (
        Change(
            SUMS, 'return {}, [f"{CHECKSUMS}: not UTF-8 at byte {error.start}"]', "return {}, []"
        ),
    ),
    "checksums.bound": (never(VERIFY, "if bound != found.sha256:"),),
    # --- JSON
    "json.duplicate": (never(FILES, "if len(result) < len(pairs):"),),
    "json.constant": (
        Change(FILES, 'raise InputError(f"{name} is not a JSON number", where=where)', "return 0"),
    ),
    "json.overflow": (never(FILES, 'if value in (float("inf"), float("-inf")):'),),
    "json.digits": (never(FILES, "if len(text) > MAX_JSON_DIGITS:"),),
    "json.depth": (Change(FILES, "    _refuse_depth(bare, where)\n", ""),),
    "json.bom": (
        Change(
            FILES,
            '        raise InputError("begins with a byte order mark", '
            'where=where, expected="plain UTF-8")',
            "        data = data[3:]",
        ),
    ),
    "json.utf8": (
        Change(
            FILES, 'data.decode("utf-8"),', 'data.decode(json.detect_encoding(data), "replace"),'
        ),
    ),
    "json.syntax": (
        Change(
            FILES,
            'data.decode("utf-8"),',
            "data.decode()[: json.JSONDecoder().raw_decode(data.decode())[1]],",
        ),
    ),
    "json.surrogate": (never(FILES, 'if b"\\\\ud" in data or b"\\\\uD" in data:'),),
    "json.object": (never(TREE, "if not isinstance(value, dict):"),),
    # --- manifest, signature, keys
    "manifest.object": (
        Change(
            MANIFEST,
            "    if not isinstance(document, dict):\n        return {}, [",
            "    if False:\n        return {}, [",
        ),
    ),
    "manifest.old": (
        Change(MANIFEST, "if found != wanted and isinstance", "if False and isinstance"),
        Change(
            MANIFEST, 'for line in violations(checked, "evidence-pack-manifest")', "for line in ()"
        ),
    ),
    "manifest.contract": (
        Change(
            MANIFEST, 'for line in violations(checked, "evidence-pack-manifest")', "for line in ()"
        ),
    ),
    "manifest.half": (never(MANIFEST, 'if ("path" in reference) != ("digest" in reference):'),),
    "references.path": (
        gone(MANIFEST, 'findings.append(f"{shown}, which is no path of a file of the pack")'),
    ),
    "references.listed": (
        gone(MANIFEST, 'findings.append(f"{shown}, which is missing or not in {CHECKSUMS}")'),
    ),
    "references.digest": (never(MANIFEST, 'elif digest != "sha256:" + tree.files[path].sha256:'),),
    "signature.usable": (
        Change(
            VERIFY,
            '        step.findings.append(f"{sums.SIGNATURE}: is no '
            'usable file")\n        return False',
            "        return True",
        ),
    ),
    "signature.missing": (
        Change(VERIFY, "        step.findings.append(problem)\n    elif", "        pass\n    elif"),
    ),
    "signature.named": (never(VERIFY, 'elif manifest.get("signing_key_fingerprint"):'),),
    "signature.object": (
        Change(
            MANIFEST, 'for line in violations(checked, "evidence-pack-signature")', "for line in ()"
        ),
    ),
    "signature.contract": (
        Change(
            MANIFEST, 'for line in violations(checked, "evidence-pack-signature")', "for line in ()"
        ),
    ),
    "signature.base64": (
        never(MANIFEST, "if not strict or len(signature) != SIGNATURE_BYTES:"),
        never(MANIFEST, "elif not verify_signature(public, manifest, signature):"),
    ),
    "signature.verify": (NO_VERIFY,),
    "signature.bundle": (never(MANIFEST, 'if bundle["signing_key_fingerprint"] != signer:'),),
    "signature.manifest": (never(VERIFY, "if not step.findings and named and named != signer:"),),
    "keys.point": (NO_POINT, NO_VERIFY),
    "keys.canonical": (NO_ORDER, NO_POINT, NO_VERIFY),
    "keys.subgroup": (NO_POINT,),
    "keys.prefix": (
        never(KEYS, "if not der.startswith(prefix) or len(der) != len(prefix) + KEY_BYTES:"),
        Change(KEYS, "return der[len(prefix) :]", "return der[-KEY_BYTES:]"),
    ),
    "keys.stray": (never(KEYS, "if base64.b64encode(der).decode() != body:"),),
    "keys.pem": (
        Change(
            KEYS,
            "match = re.fullmatch(_PEM.format(kind), text)",
            'match = re.search(r"-----\\n(.*)\\n-----", text)',
        ),
    ),
    "signer.pin": (never(VERIFY, "if options.pinned and signer != options.pinned:"),),
    "signer.store": (
        never(VERIFY, "if options.trusted is not None and signer not in options.trusted:"),
    ),
    "store.empty": (never(KEYS, "if not isinstance(document, list) or not document:"),),
    "store.entry": (never(KEYS, "if not FINGERPRINT.fullmatch(value):"),),
    "store.pipe": (
        never(FILES, "if not stat.S_ISREG(os.fstat(handle.fileno()).st_mode):"),
        Change(FILES, "os.open(p, f | os.O_NONBLOCK)", "os.open(p, f)"),
    ),
    "store.size": (Change(KEYS, "read_bytes(path, MAX_TRUST_STORE)", "read_bytes(path)"),),
    # --- scenarios and claims
    "scenarios.object": (Change(SCENARIOS, "return {}, [escape(error)]", "return None, []"),),
    "scenarios.list": (
        Change(SCENARIOS, 'return {}, [f"{SCENARIOS}: /scenarios is no list"]', "return {}, []"),
    ),
    "scenarios.number": (never(SCENARIOS, "if len(entries) > MAX_SCENARIOS:"),),
    "scenarios.twice": (never(SCENARIOS, "elif name in found:"),),
    "scenarios.entry": (
        gone(
            SCENARIOS,
            'problems.append(f"{SCENARIOS}: /scenarios/{index} lacks an id or a strictness")',
        ),
    ),
    "scenarios.metadata": (Change(SCENARIOS, "if document.get(key) != value\n", "if False\n"),),
    "scenarios.boolean": (
        Change(
            SCENARIOS,
            "        or isinstance(document.get(key), bool) != isinstance(value, bool)\n",
            "",
        ),
    ),
    "scenarios.parameters": (
        never(SCENARIOS, 'if ours and ("parameters" in document or CONFIG in tree.files):'),
    ),
    "scenarios.checkpoint": (never(SCENARIOS, "if mine and theirs and mine != theirs:"),),
    "scenarios.needed": (
        Change(SCENARIOS, 'return [f"{name}: is missing"] if needed else []', "return []"),
    ),
    "claims.compare": ALL_CLAIMS,
    "claims.subject": (Change(CLAIMS, '"/subject", VERDICTS)', '"/subject")'),),
    "claims.level": (
        never(CLAIMS, "if LEVELS.index(claimed) > LEVELS.index(claims.evidence_level):"),
    ),
    "claims.spoken": (NO_SPOKEN,),
    "claims.absent": (gone(PACK, "step.findings += result.claims.absent"),),
    "claims.two": (never(CLAIMS, "if len({*map(repr, words.values())}) > 1:"), NO_COMPARE),
    "claims.readme": (Change(CLAIMS, "        if word not in words\n", "        if False\n"),),
    "claims.text": (
        never(CLAIMS, 'if text in tree.files and tree.data(text).partition(b"\\n")[0] != first:'),
    ),
    "claims.number": (
        never(
            CLAIMS,
            "if sum(s.runs or last for s in catalogue.scenarios) * len(models) > MAX_EXPECTED:",
        ),
        *ALL_CLAIMS,
    ),
    "claims.judged": (never(CLAIMS, "if held + tree.outlined > MAX_JUDGED:"),),
    "claims.contract": (
        Change(CLAIMS, '    validate(outcome, "outcome", path)\n', ""),
        *ALL_CLAIMS,
    ),
    "claims.outcomes": (
        Change(
            CLAIMS,
            "            claims.findings.append(escape(error))\n        if held",
            "            del error\n        if held",
        ),
        *ALL_CLAIMS,
    ),
    "claims.folder": ALL_CLAIMS,
    "claims.manifest": (NO_MANIFEST,),
    "verdict.silent": (Change("verdict/records.py", "and silent and not found:", "and False:"),),
    "verdict.asked": (
        Change(
            "verdict/verdict.py",
            'if r.strictness != "informational"]',
            'if r.strictness == "must_pass"]',
        ),
        NO_MANIFEST,
    ),
    "verdict.runs": (
        Change("scenarios.py", "range(1, (last if s.runs is None else s.runs) + 1)", "[last]"),
        NO_MANIFEST,
    ),
    "scenarios.reserved": (never("scenarios.py", "if scenario.id in RESERVED:"),),
    # --- parts that do not belong together
    "identity.same": (
        never(IDENTITY, "if said is not None and found is not None and said != found:"),
        NO_SHARED,
    ),
    "identity.edit": (
        never(IDENTITY, "if isinstance(named, str) and named != done and named in self.types:"),
    ),
    "identity.noop": (
        never(IDENTITY, 'if digest == dig(report, "baseline_ref", "checkpoint_sha256"):'),
    ),
    "identity.subject": (never(IDENTITY, "if before != done:"),),
    "identity.baseline": (never(IDENTITY, "if model is not None and named != model:"),),
    "identity.weights": (never(IDENTITY, "if missing:"),),
    # --- reports
    "report.json": (
        Change(
            REPORT,
            '        result.findings.append(Finding("E601", "malformed", '
            "str(error)))\n        return result",
            "        return result",
        ),
    ),
    "report.schema": (
        Change(
            REPORT,
            "    if wrong:\n        result.findings += ",
            "    if False:\n        result.findings += ",
        ),
        *ALL_EVIDENCE,
        NO_LINTS,
        NOT_EXPECTED,
    ),
    "report.evidence": ALL_EVIDENCE,
    "report.replay": (EVIDENCE,),
    "report.flags": (EVIDENCE, NO_LINTS, NOT_EXPECTED),
    "report.draws": (Change(REPORT, "    if too_much:\n", "    if False:\n"), EVIDENCE, NO_SHARED),
    "report.missing": (
        Change(
            REPORT,
            'return [Finding("E004", "missing", text)] if options.require_replay else []',
            "return []",
        ),
        never(PACK, "if options.replay and result.claims.verdict is None and found:"),
    ),
    "matrix.measured": (Change(MATRIX, "        _measured,\n", ""),),
    "matrix.ratio": (NO_RATIO, EVIDENCE),
    "matrix.interval": (NO_INTERVAL, EVIDENCE),
    "matrix.tokenizer": (Change(MATRIX, "        _tokenizer,\n", ""), EVIDENCE),
    "matrix.pairing": (NO_PAIRING, EVIDENCE),
    "runtime.contract": (
        Change(
            PROVENANCE,
            "    if wrong:\n        result.issues += ",
            "    if False:\n        result.issues += ",
        ),
    ),
    "runtime.rules": (Change(PROVENANCE, "for line in _rules(document)]", "for line in ()]"),),
    "runtime.digest": (never(PROVENANCE, 'if document["report"]["sha256"] != report_sha256:'),),
    "runtime.mode": (never(PROVENANCE, 'if result.declared != document["execution_mode"]:'),),
    "runtime.container": (
        never(PROVENANCE, 'if mode == "container" and document["execution_mode"] != "container":'),
        Change(
            REPORT,
            "lambda: assurance.check(report, _demanded(report, options), shown.verified)",
            "lambda: []",
        ),
    ),
    "runtime.missing": (
        gone(
            PROVENANCE,
            'result.issues.append(("manifest_missing", f"there is no {NAME} beside the report"))',
        ),
    ),
    "expectation.fails": (NOT_EXPECTED,),
    "expectation.passes": (never(PACK, "elif not expected_pass:"),),
}
