"""``evidence-pack build``: stage beside the target, verify the stage, rename it into place.

Order within the stage: the allow-listed files, README, checksums, manifest, signature. Whatever
goes wrong, the stage is removed; a kill leaves at most a hidden folder ``.<name>.tmp.*``. The
same inputs give the same bytes, signature included.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from invarlock import __version__
from invarlock.errors import ConfigError, InputError
from invarlock.evidence import Code, PackError, consistency
from invarlock.evidence import checksums as sums
from invarlock.evidence import manifest as manifests
from invarlock.evidence.collect import PAGE, Inputs, read_object
from invarlock.evidence.findings import UNREADABLE, first_text
from invarlock.evidence.keys import SigningKey, fingerprint, load_signing_key
from invarlock.evidence.layout import README, ReportPlace, expects_pass, places, read_scenarios
from invarlock.evidence.readme import Summary, render
from invarlock.evidence.result import PackResult, VerifyOptions
from invarlock.evidence.tree import Tree, read_source, read_tree
from invarlock.evidence.verify import verify_pack
from invarlock.files import (
    fsync_directory,
    parse_json,
    sha256_bytes,
    source_date,
    temporary_sibling,
    unwritable,
)
from invarlock.shown import listed
from invarlock.verdict.text import word_of

BUILDER = {"id": "invarlock/evidence-pack@v1", "name": "invarlock", "version": __version__}


@dataclass(frozen=True)
class BuildRequest:
    """What to pack and how. ``signing_key`` None: an unsigned pack, with a warning."""

    out: Path
    inputs: Inputs
    signing_key: Path | None = None
    require_signature: bool = False
    readme: Path | None = None
    profile: str = "dev"
    report_assurance: str = "report"
    release_review: bool = False


@dataclass(frozen=True)
class Built:
    """What was built; ``checked`` is the verification of the finished stage."""

    pack: Path
    verdict: str
    outcome: str | None  # pass, fail or inconclusive; None: a verdict of another version
    evidence_level: str
    signer: str | None
    hashed: int
    reports: int
    warnings: tuple[str, ...]
    checked: PackResult


def build_pack(request: BuildRequest) -> Built:
    """Build one pack; FAIL verdicts are packed like PASS ones.

    Raises:
        ConfigError: the target exists, a key is demanded and none is named, the key can be read
            by others, or a release review is asked for without its conditions (exit 2).
        InputError: the target cannot be written (exit 3).
        PackError: an input or the key is refused (4), or the pack would not verify (7).
    """
    generated_at = _generated_at()
    _check_target(request.out)
    if request.require_signature and request.signing_key is None:
        raise ConfigError("a signature is demanded and no --signing-key is named")
    key = load_signing_key(request.signing_key) if request.signing_key else None
    _check_review(request)
    stage = temporary_sibling(request.out)
    try:
        try:
            stage.mkdir(parents=True)
            digests = {
                path: _copy(source, stage / path, path)
                for path, source in sorted(request.inputs.files.items())
            }
            built = _finish(request, stage, digests, key, generated_at)
            _fsync_tree(stage)
            _put_in_place(stage, request.out)
        finally:  # before the free space is told
            shutil.rmtree(stage, ignore_errors=True)
    except OSError as error:
        sources = request.inputs.files.values()
        size = sum(os.path.getsize(source) for source in sources if os.path.isfile(source))
        raise unwritable(request.out, error, size) from error
    return built


def _check_target(out: Path) -> None:
    empty = out.is_dir() and not out.is_symlink() and not any(out.iterdir())
    if os.path.lexists(out) and not empty:
        raise ConfigError(
            "the pack folder exists and is not overwritten",
            where=str(out),
            hint="remove it or name another",
        )


def _check_review(request: BuildRequest) -> None:
    if not request.release_review:
        return
    verdict = read_object(request.inputs.files[manifests.VERDICT]).get("verdict")
    rules = (
        (request.profile in ("ci", "release"), "--profile ci or release"),
        (request.report_assurance == "strict", "--report-assurance strict"),
        (request.signing_key is not None, "--signing-key"),
        (verdict == "PASS", "the verdict PASS"),
    )
    for holds, what in rules:
        if not holds:
            raise ConfigError(f"--release-review needs {what}")


def _generated_at() -> str | None:
    """The time of SOURCE_DATE_EPOCH; without it a pack carries no time of its own."""
    moment = source_date()
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ") if moment else None


# --- stage ---------------------------------------------------------------------------------


def _copy(source: Path, target: Path, path: str) -> str:
    """Copy one input and return its SHA-256; JSON is decoded strictly before it gets in."""
    data = read_source(source)
    if path.endswith(".json"):
        try:
            document = parse_json(data, str(source))
        except InputError as error:
            raise PackError(Code.MANIFEST, str(error)) from error
        if not isinstance(document, dict) and not path.startswith("results/"):
            raise PackError(Code.MANIFEST, "is not a JSON object", where=str(source))
    return _write(target, data)


def _write(target: Path, data: bytes) -> str:
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target, "xb") as handle:
        handle.write(data)
    target.chmod(0o644)
    return sha256_bytes(data)


def _finish(
    request: BuildRequest,
    stage: Path,
    digests: dict[str, str],
    key: SigningKey | None,
    generated_at: str | None,
) -> Built:
    """Add README, checksums, manifest and signature to a stage, and verify it."""
    tree = read_tree(stage)
    scenarios, _ = read_scenarios(tree)
    unrendered = _add_pages(stage, tree, digests)
    draft = _references(request, digests)
    found = consistency.recompute(tree, draft, scenarios)
    verdict = found.verdict or tree.json_object(manifests.VERDICT)
    level, signer = str(found.evidence_level), fingerprint(key.public) if key else None
    reports = len(places(tree))
    readme = (
        read_source(request.readme)
        if request.readme
        else render(Summary(verdict, level, signer, reports, generated_at))
    )
    first_line = readme.split(b"\n", 1)[0]
    words = {str(verdict.get("verdict")), word_of(verdict)}
    if "PASS" not in words and not any(word.encode() in first_line for word in words):
        raise PackError(
            Code.MANIFEST,
            f"its first line does not say {' or '.join(sorted(words))}",
            where=str(request.readme),
        )
    digests[README] = _write(stage / README, readme)
    listing = sums.render(digests)
    _write(stage / sums.CHECKSUMS, listing)
    members = consistency.manifest_members(tree, digests, scenarios, verdict)
    document = (
        draft
        | members.top
        | {
            "checksums_sha256_digest": sha256_bytes(listing),
            "evidence_level": level,
            "invocation": draft["invocation"] | {"parameters": members.parameters},
            "verification": _counts(places(tree), scenarios)
            | members.verification
            | {
                "policy_profile": request.profile,
                "report_assurance": request.report_assurance,
            },
        }
    )
    if signer:
        document["signing_key_fingerprint"] = signer
    if generated_at:
        document["generated_at"] = generated_at
    data = manifests.render(document)
    _write(stage / sums.MANIFEST, data)
    if key:
        _write(stage / sums.SIGNATURE, manifests.sign(data, key))
    checked = _self_check(request, stage, signer)
    warnings = [] if key else ["the pack is not signed; name a key with --signing-key"]
    return Built(
        pack=request.out,
        verdict=str(verdict.get("verdict")),
        outcome=first_text(verdict.get("outcome")),
        evidence_level=level,
        signer=signer,
        hashed=len(digests),
        reports=reports,
        warnings=(*warnings, *unrendered, *_host_paths(tree, request.inputs)),
        checked=checked,
    )


def _add_pages(stage: Path, tree: Tree, digests: dict[str, str]) -> list[str]:
    """Add the page of each report that has none beside it; what cannot be rendered is said."""
    warnings = []
    for place in places(tree):
        page = place.folder + PAGE
        if page in tree.files:
            continue
        from invarlock.reporting.render import render_report_html

        try:
            text = render_report_html(tree.json_object(place.report))
        except (InputError, *UNREADABLE) as error:  # of another version; the verification says more
            warnings.append(f"{place.report} cannot be rendered: {type(error).__name__}")
            continue
        digests[page] = _write(stage / page, text.encode())
    return warnings


def _references(request: BuildRequest, digests: Mapping[str, str]) -> dict[str, Any]:
    """The members of the manifest on who built the pack and on the digests of its files."""

    def reference(path: str) -> dict[str, str]:
        return {"path": path, "digest": "sha256:" + digests[path]}

    document: dict[str, Any] = {
        "format": manifests.FORMAT,
        "checksums_sha256": sums.CHECKSUMS,
        "builder": BUILDER,
        "invarlock_version": __version__,
        "subject": {"name": "final_verdict", **reference(manifests.VERDICT)},
        "materials": [
            {"name": name, **reference(path)}
            for name, path in sorted(request.inputs.materials.items())
        ],
        "invocation": {},
    }
    if manifests.ENVIRONMENT in digests:
        document["environment"] = reference(manifests.ENVIRONMENT)
    if manifests.SOURCE_REPO in digests:
        document["invocation"]["config_source"] = reference(manifests.SOURCE_REPO)
    return document


def _counts(
    found: Sequence[ReportPlace], scenarios: Mapping[str, Mapping[str, Any]] | None
) -> dict[str, int]:
    """The counts of reports where the verdict, one of another version, does not give them."""
    return {
        "clean_reports": sum(expects_pass(place, scenarios) for place in found),
        "error_injection_reports": sum(place.below_errors for place in found),
        "failed_reports": 0,
    }


def _self_check(request: BuildRequest, stage: Path, signer: str | None) -> PackResult:
    """Refuse a pack that our own verifier would refuse, before it is put in place."""
    checked = verify_pack(
        stage,
        VerifyOptions(
            strict=signer is not None,
            profile=request.profile,
            report_assurance=request.report_assurance,
            pinned=signer,
            allow_unsigned=signer is None,
            pack_whatever_is_true=not request.release_review,
        ),
    )
    wrong = checked.errors or checked.recomputed.absent  # which no strict verification accepts
    if wrong:
        raise PackError(Code.REPORTS, f"the pack would not verify: {listed(wrong, 5, '; ')}")
    checked.pack = str(request.out)
    return checked


def _host_paths(tree: Tree, inputs: Inputs) -> list[str]:
    """Files that name a folder of the building machine, which a published pack must not reveal."""
    sources = os.path.commonpath([os.path.abspath(path) for path in inputs.files.values()])
    folders = sorted({os.path.expanduser("~"), os.getcwd(), sources})
    return [
        f"{path} names the folder {folder}"
        for path, found in sorted(tree.files.items())
        for folder in folders
        if len(folder) > 1  # not "/"
        and found.data is not None
        and any(f"{folder}{end}".encode() in found.data for end in '/"')
    ]


# --- into place ----------------------------------------------------------------------------


def _fsync_tree(stage: Path) -> None:
    for folder, _, names in os.walk(stage):
        for name in names:
            with open(Path(folder) / name, "rb") as handle:
                os.fsync(handle.fileno())
        os.chmod(folder, 0o755)
        fsync_directory(Path(folder))


def _put_in_place(stage: Path, out: Path) -> None:
    """Rename the stage. A folder replaces only an empty folder: that is what rename(2) does."""
    try:
        os.rename(stage, out)
    except OSError as error:
        if os.path.lexists(out):
            raise ConfigError(
                "the pack folder appeared while the pack was built and is not overwritten",
                where=str(out),
            ) from error
        raise
    fsync_directory(out.parent)
