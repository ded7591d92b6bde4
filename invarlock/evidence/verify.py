"""``evidence-pack verify``: numbered steps, deny by default, every finding listed.

    open        the folder, manifest.json and checksums.sha256 are there            exit 3
    1 tree      regular files and folders with usable names, within limits          exit 6
    2 manifest  strict JSON, contract, code rules                                   exit 4
    3 signature Ed25519 over the manifest's bytes, the key, the signer              exit 5
    4 checksums every file is listed once and unchanged                             exit 6
    5 references the manifest's references are listed files with their digests      exit 6
    6 scenarios all JSON is strict, the scenarios usable, metadata agrees with them  exit 6
    7 claims    verdict, summaries and evidence level are what the files give       exit 6
    8 reports   runtime manifests, check matrix, replay, expectations               exit 7

Nothing that the manifest says is used before step 3 has passed. Steps 4 to 7 are all taken
before the exit; step 8 only when they passed. The exit code is the smallest of the failed steps'.
The bytes that are hashed in step 1 are the bytes that every later step parses.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from invarlock.counts import counted
from invarlock.evidence import ALLOW_UNSIGNED, Code, PackError, consistency, escape
from invarlock.evidence import checksums as sums
from invarlock.evidence import manifest as manifests
from invarlock.evidence.layout import (
    PACK,
    REPEATS,
    SCENARIOS,
    TIMINGS,
    Entry,
    check_json,
    places,
    read_scenarios,
    run_path,
)
from invarlock.evidence.result import PackResult, Step, VerifyOptions
from invarlock.evidence.tree import Tree, read_tree

VERDICT_CLAIM = "verdict, summaries and expectations of the scenarios"
SUITE = "that the scenarios are all of the suite they name"
REPEATS_CLAIM = "how the repeats came out: their reports are not in the pack"
TIMES = "how long jobs took, beyond what the runtime manifests say of their phases"
RUNS = "what the baselines' report.json record beyond what the reports repeat of them"
PAGES = "pages for people: README.md below its first line, evaluation.html, evaluation.md"


def verify_pack(root: Path, options: VerifyOptions) -> PackResult:
    """Verify the pack in folder ``root``; every problem of the pack is in the result."""
    result = PackResult(escape(root), options)
    _verify(root, result)
    return result.bounded()


def _verify(root: Path, result: PackResult) -> None:
    tree = open_pack(root, result)
    if tree is None:
        return
    manifest = read_manifest(tree, result)
    if manifest is None or not _signature(tree, manifest, result):
        return
    # Up to here nothing in the pack may be trusted, so the first finding ends the verification.
    # From here on the manifest counts, and the steps run on to report everything that is wrong.
    listed = check_listed(tree, manifest, result)
    check_references(tree, manifest, listed, result)
    scenarios = _scenarios(tree, result)
    _claims(tree, manifest, listed, scenarios, result)
    # The replay of the reports is the expensive part; a pack that has failed is not worth it.
    if not result.errors:
        # with numpy, which a pack that has failed before never needs
        from invarlock.evidence.pack_reports import check_reports

        check_reports(tree, scenarios, result)


# --- steps 0 to 3: nothing is believed yet --------------------------------------------------


def open_pack(root: Path, result: PackResult) -> Tree | None:
    """Take steps 0 and 1; return None where the later steps have no files to look at."""
    opened = Step(0, "open", Code.INCOMPLETE)
    try:
        is_folder = stat.S_ISDIR(os.stat(root).st_mode)
    except OSError:
        is_folder = False
    if not is_folder:  # check: open.folder
        opened.findings.append(f"{escape(root)}: is not a folder")
    else:
        below = os.path.lexists(root / PACK / sums.MANIFEST)  # the folder of a run
        hint = f"; the pack is the folder {PACK} in it, name that" if below else ""
        opened.findings += [
            f"{name}: is missing{hint}"
            for name in (sums.MANIFEST, sums.CHECKSUMS)
            if not os.path.lexists(root / name) or (root / name).is_dir()
        ]  # check: open.control
    result.steps.append(opened)
    if opened.findings:
        return None
    step = Step(1, "tree", Code.INTEGRITY)
    result.steps.append(step)
    try:
        tree = read_tree(root)
    except PackError as error:
        step.findings.append(escape(error))
        return None
    result.tree = tree
    step.findings += tree.findings
    step.note = (
        f"{counted(len(tree.files), 'file')}, "
        f"{counted(sum(f.size for f in tree.files.values()), 'byte')}"
    )
    if any(name not in tree.files for name in (sums.MANIFEST, sums.CHECKSUMS)):
        return None  # a link or the like in place of a control file, which is a finding
    return tree


def read_manifest(
    tree: Tree, result: PackResult, wanted: str = manifests.FORMAT
) -> Mapping[str, Any] | None:
    """Take step 2 and return the manifest, or None where it is refused."""
    step = Step(2, "manifest", Code.MANIFEST)
    result.steps.append(step)
    document, step.findings = manifests.read_manifest(tree.data(sums.MANIFEST), wanted)
    step.note = f"format {wanted}"
    return None if step.findings else document


def _signature(tree: Tree, manifest: Mapping[str, Any], result: PackResult) -> bool:
    """Take step 3 and return whether the manifest may be used."""
    step = Step(3, "signature", Code.SIGNATURE)
    result.steps.append(step)
    if sums.SIGNATURE in tree.refused:
        step.findings.append(f"{sums.SIGNATURE}: is no usable file")  # check: signature.usable
        return False
    if sums.SIGNATURE not in tree.files:
        return unsigned(f"{sums.SIGNATURE}: is missing; the pack is not signed", manifest, result)
    signer, step.findings = manifests.read_signature(
        tree.data(sums.MANIFEST), tree.data(sums.SIGNATURE)
    )
    named = manifest.get("signing_key_fingerprint")
    if not step.findings and named and named != signer:  # check: signature.manifest
        step.findings.append(f"{sums.MANIFEST}: /signing_key_fingerprint is not {signer}")
    if step.findings:
        return False
    return expect_signer((signer,), result)


def unsigned(problem: str, manifest: Mapping[str, Any], result: PackResult) -> bool:
    """End step 3 of an unsigned pack and return whether the user allows one."""
    step, options = result.steps[-1], result.options
    result.authenticity = "unsigned"
    wanted = options.pinned or options.trusted is not None or options.public_keys
    if not options.allow_unsigned or options.strict or wanted:
        # earlier published versions only warned, so people expect to get at its contents
        strict = " and without --strict" if options.strict else ""
        hint = "" if wanted else f"; to look at it all the same: {ALLOW_UNSIGNED}=1{strict}"
        step.findings.append(problem + hint)  # check: signature.missing
    elif manifest.get("signing_key_fingerprint"):  # check: signature.named
        step.findings.append(f"{problem}, although its manifest names a signer")
    else:
        result.warnings.append(problem)
        step.note = "none, and that is allowed here"
    return not step.findings


def expect_signer(signers: Sequence[str], result: PackResult) -> bool:
    """End step 3 of a good signature and return whether the user expects its signer."""
    step, options = result.steps[-1], result.options
    signer = options.pinned if options.pinned in signers else signers[0]
    result.signer = signer
    result.authenticity = "unpinned"
    if options.pinned and signer != options.pinned:  # check: signer.pin
        step.findings.append(f"the signer is {signer}; expected {options.pinned}")
    # check: signer.store
    if options.trusted is not None and signer not in options.trusted:
        step.findings.append(
            f"the signer {signer} is not in the trust store {escape(options.trust_store)}"
        )
    if options.pinned or options.trusted is not None or options.public_keys:
        result.authenticity = "mismatch" if step.findings else "pinned"
    else:
        result.warnings.append(
            "nobody said whose signature to expect; name it with --expected-fingerprint"
        )
    step.note = f"{signer} ({result.authenticity})"
    return not step.findings


# --- steps 4 to 7: integrity ----------------------------------------------------------------


def check_listed(
    tree: Tree,
    manifest: Mapping[str, Any],
    result: PackResult,
    control: sums.Names = sums.CONTROL_FILES,
) -> Mapping[str, str]:
    """Take step 4 and return the listed digests by path.

    Args:
        control: files that the checksums need not list.
    """
    step = Step(4, "checksums", Code.INTEGRITY)
    result.steps.append(step)
    found = tree.files[sums.CHECKSUMS]
    bound = manifest.get("checksums_sha256_digest", found.sha256)  # the oldest packs have none
    if bound != found.sha256:  # check: checksums.bound
        step.findings.append(
            f"{sums.CHECKSUMS}: has been changed; expected sha256 {bound}; found {found.sha256}"
        )
    listed, problems = sums.parse(tree.data(sums.CHECKSUMS), control)
    changed, extra = sums.compare(tree, listed, control)
    step.findings += problems + changed
    lines = [f"{escape(path)}: is not listed in {sums.CHECKSUMS}" for path in extra]
    if result.options.strict:
        step.findings += lines  # check: checksums.extra
    else:
        result.warnings += lines
    step.note = counted(len(listed), "file")
    return listed


def check_references(
    tree: Tree, manifest: Mapping[str, Any], listed: Mapping[str, str], result: PackResult
) -> None:
    """Step 5."""
    step = Step(5, "references", Code.INTEGRITY)
    result.steps.append(step)
    step.findings += manifests.check_references(manifest, tree, listed)
    step.note = counted(len(manifests.references(manifest)), "reference")


def _scenarios(tree: Tree, result: PackResult) -> Mapping[str, Entry] | None:
    step = Step(6, "scenarios", Code.INTEGRITY)
    result.steps.append(step)
    step.findings += check_json(tree)
    scenarios, problems = read_scenarios(tree)
    step.findings += [line for line in problems if line not in step.findings]
    if scenarios is None:
        step.note = f"no {SCENARIOS}: every report is judged by its folder"
        return None
    step.findings += consistency.check_subjects(tree, scenarios)
    step.note = f"{counted(len(scenarios), 'scenario')}, metadata agrees"
    return scenarios


def _claims(
    tree: Tree,
    manifest: Mapping[str, Any],
    listed: Mapping[str, str],
    scenarios: Mapping[str, Entry] | None,
    result: PackResult,
) -> None:
    step = Step(7, "claims", Code.INTEGRITY)
    result.steps.append(step)
    results = result.recomputed = consistency.recompute(
        tree, manifest, scenarios, reports_follow=not result.options.skip_verify
    )
    step.findings += results.findings
    step.findings += consistency.check_repeats(tree)
    step.findings += consistency.check_timings(tree)
    # check: claims.manifest
    step.findings += consistency.check_manifest(tree, manifest, listed, scenarios, results.verdict)
    if REPEATS in tree.files:
        result.believed.append(REPEATS_CLAIM)
    if TIMINGS in tree.files:
        result.believed.append(TIMES)
    if any(run_path(place.model) in tree.files for place in places(tree)):
        result.believed.append(RUNS)
    level = f"evidence level {results.evidence_level}"
    if results.verdict is not None:
        result.replayed.append(VERDICT_CLAIM)
        result.believed += [SUITE, PAGES, *consistency.left_to_belief(results.verdict)]
        step.note = f"verdict {result.word} recomputed, {level}"
    else:
        result.believed.append(f"{VERDICT_CLAIM} ({results.why_believed})")
        step.note = f"verdict {escape(result.verdict)} not re-checked, {level}"
