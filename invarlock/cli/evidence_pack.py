"""Make keys, build, inspect and verify evidence packs."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from invarlock.cli.options import option
from invarlock.cli.output import printing
from invarlock.counts import counted
from invarlock.errors import ConfigError, InputError, InvarlockError
from invarlock.evidence import ALLOW_UNSIGNED, Code, PackError, escape, keys
from invarlock.policy import ASSURANCE, PROFILES

if TYPE_CHECKING:
    from invarlock.evidence.result import PackResult


@dataclass(frozen=True, kw_only=True)
class KeygenOptions:
    """Options of ``invarlock advanced evidence-pack keygen``."""

    path: Path | None = option(
        None, positional=True, metavar="PATH", help="private key to write, mode 0600", writes=True
    )
    out: Path | None = option(None, metavar="FILE", help="the same as PATH", writes=True)
    public: Path | None = option(
        None, metavar="FILE", help="public key to write (STEM.pub.pem beside it)", writes=True
    )
    if_missing: bool = option(False, help="keep a key that is there, and say so")
    json: bool = option(False, help="print one JSON object")

    @property
    def private(self) -> Path:
        """The private key, by whichever of its two options names it.

        Raises:
            ConfigError: neither names one, or each names another.
        """
        named = {path for path in (self.path, self.out) if path is not None}
        if len(named) != 1:
            raise ConfigError(
                "two private keys are named" if named else "no private key is named",
                expected="PATH, or --out FILE",
            )
        return named.pop()


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """Options of ``invarlock advanced evidence-pack build``."""

    out: Path = option(
        positional=True, metavar="OUT", help="folder of the pack; must not exist", writes=True
    )
    run_dir: Path | None = option(
        None, metavar="DIR", help="a suite's output folder: pack all of it"
    )
    final_verdict: Path | None = option(None, metavar="FILE", help="final_verdict.json")
    report: tuple[Path, ...] = option(
        (),
        metavar="FILE",
        help="evaluation.report.json files, each beside its runtime manifest",
    )
    source_repo: Path | None = option(None, metavar="FILE", help="source_repo.json")
    environment: Path | None = option(None, metavar="FILE", help="environment.json")
    material: tuple[str, ...] = option(
        (), repeated=True, metavar="NAME=PATH", help="a further input"
    )
    analysis: tuple[Path, ...] = option((), metavar="FILE", help="analyze's documents")
    readme: Path | None = option(None, metavar="FILE", help="README instead of the generated one")
    signing_key: Path | None = option(None, metavar="FILE", help="Ed25519 private key (keygen)")
    require_signature: bool = option(False, help="refuse to build an unsigned pack")
    profile: str = option("dev", choices=PROFILES, help="profile of the check before packing")
    report_assurance: str = option("report", choices=ASSURANCE, help="assurance of that check")
    release_review: bool = option(
        False, help="demand profile ci or release, strict assurance, a key and the verdict PASS"
    )
    json: bool = option(False, help="print one JSON object")


@dataclass(frozen=True, kw_only=True)
class InspectOptions:
    """Options of ``invarlock advanced evidence-pack inspect``."""

    pack: Path = option(positional=True, metavar="PACK", help="folder of the pack")
    json: bool = option(False, help="print one JSON object")


@dataclass(frozen=True, kw_only=True)
class VerificationOptions(InspectOptions):
    """What every verification of a pack takes: see :func:`verify_and_print`."""

    strict: bool = option(False, help="files that are not in the checksums fail")
    skip_verify: bool = option(False, help="leave the reports out")
    json_out: Path | None = option(
        None, metavar="FILE", help="write it to a file outside the pack", writes=True
    )


@dataclass(frozen=True, kw_only=True)
class SignerOptions:
    """What :func:`signers` reads."""

    expected_fingerprint: str | None = option(
        None, metavar="F", help="the signer must be sha256:..."
    )
    trust_store: Path | None = option(
        None, metavar="FILE", help="the signer must be in this file", setting="trust_store"
    )


@dataclass(frozen=True, kw_only=True)
class VerifyPackOptions(SignerOptions, VerificationOptions):
    """Options of ``invarlock advanced evidence-pack verify``."""

    replay: bool = option(
        False, help="evidence that is missing for the replay fails", setting="verify_replay"
    )
    report_assurance: str = option(
        "report",
        choices=ASSURANCE,
        help="strict: container runs with the full claim; report: where a report claims it",
        setting="verify_assurance",
    )
    profile: str = option(
        "dev",
        choices=PROFILES,
        help="dev: an honest FAIL is in order; ci, release: controls that failed fail",
        setting="verify_profile",
    )
    baseline: Path | None = option(
        None,
        metavar="FILE",
        help="the baseline's run (report.json), which every report has to be of",
        setting="verify_baseline",
    )


def refused(words: Sequence[str], line: str, code: int) -> dict[str, Any]:
    """The document of a sub-command that ended before it had a result."""
    from invarlock.evidence.inspect import FORMAT as INSPECT
    from invarlock.evidence.result import FORMAT as VERIFY

    action = next(iter(words), "")
    if action == "verify":
        return refused_pack(words, line, code, VERIFY)
    failed = {"ok": False, "exit_code": code, "errors": [escape(line)]}
    if action == "inspect":
        return {"format_version": INSPECT, "issues": failed["errors"], **failed}
    return {"format_version": f"evidence-pack-{escape(action)}-v1", **failed}


def refused_pack(words: Sequence[str], line: str, code: int, form: str) -> dict[str, Any]:
    """The result of a verification whose options or whose pack could not be used."""
    from invarlock.evidence.result import PackResult, Step, VerifyOptions

    known = {Code.USAGE: "options", Code.INCOMPLETE: "open"}
    asked = VerifyOptions(
        strict="--strict" in words,
        replay="--replay" in words,
        skip_verify="--skip-verify" in words,
    )
    named = next((word for word in words[1:] if not word.startswith("-")), "")
    result = PackResult(escape(named), asked, format=form)
    step = Step(0, known.get(code, "options"), Code.USAGE, [escape(line)])  # type: ignore[call-overload]
    result.steps.append(step)
    return result.bounded().to_json() | {"exit_code": code}


def _print_json(document: dict[str, Any]) -> None:
    print(json.dumps(document, sort_keys=True, allow_nan=False))


# --- keygen ---------------------------------------------------------------------------------


def _keygen(options: KeygenOptions) -> int:
    private = options.private
    public = options.public or keys.default_public_path(private)
    kept = options.if_missing and os.path.lexists(private)
    if kept:
        key = keys.load_signing_key(private)
        signer = keys.fingerprint(key.public)
        if not os.path.lexists(public):
            keys.write_public(public, key.public)
    else:
        signer = keys.generate(private, public)
    if options.json:
        _print_json(
            {
                "format_version": "evidence-pack-keygen-v1",
                "ok": True,
                "algorithm": "ed25519",
                "created": not kept,
                "private_key": str(private),
                "public_key": str(public),
                "signing_key_fingerprint": signer,
            }
        )
    else:
        what = "kept the signing key that is there" if kept else "made a signing key"
        print(f"{what}: {private} ({signer})")
    return 0


# --- build ----------------------------------------------------------------------------------


def _build(options: BuildOptions) -> int:
    from invarlock import evidence_pack

    materials: dict[str, Path] = {}
    for text in options.material:
        name, separator, path = text.partition("=")
        if not separator or not path:
            raise ConfigError(
                "not a material", where="--material", expected="NAME=PATH", found=text
            )
        if materials.get(name, Path(path)).resolve() != Path(path).resolve():
            raise PackError(Code.MANIFEST, f"a repeated material name: {name!r}")
        materials[name] = Path(path)
    built = evidence_pack.build(
        options.out,
        run_dir=options.run_dir,
        reports=options.report,
        final_verdict=options.final_verdict,
        source_repo=options.source_repo,
        environment=options.environment,
        materials=materials,
        analyses=options.analysis,
        readme=options.readme,
        signing_key=options.signing_key,
        require_signature=options.require_signature,
        profile=options.profile,
        report_assurance=options.report_assurance,
        release_review=options.release_review,
    )
    warnings = [*built.warnings, *built.checked.warnings]
    if options.json:
        _print_json(
            {
                "format_version": "evidence-pack-build-v1",
                "pack": str(options.out),
                "ok": True,
                "warnings": warnings,
                "errors": [],
                "verdict": built.verdict,
                "outcome": built.outcome,
                "reports": {"total": built.reports},
                "verify": built.checked.envelope,
                "profile": options.profile,
                "report_assurance": options.report_assurance,
                "release_review": options.release_review,
                "evidence_level": built.evidence_level,
                "files": {
                    "hashed": built.hashed,
                    "manifest": "manifest.json",
                    "checksums": "checksums.sha256",
                },
                "signature": {
                    "present": built.signer is not None,
                    "file": "manifest.signature.json" if built.signer else None,
                    "signer_fingerprint": built.signer,
                },
            }
        )
        return 0
    for warning in warnings:
        print(f"warning: {escape(warning)}", file=sys.stderr)
    from invarlock.verdict.text import word_of

    signed = f"signed by {built.signer}" if built.signer else "not signed"
    print(
        f"{options.out}: verdict {escape(word_of(vars(built)))}, {built.reports} reports, "
        f"{built.hashed} files, evidence level {built.evidence_level}, {signed}"
    )
    return 0


# --- inspect and verify ---------------------------------------------------------------------


def _inspect(options: InspectOptions) -> int:
    from invarlock.evidence.inspect import inspect_pack

    result, document = inspect_pack(options.pack)
    with printing():
        _print_inspected(options, result, document)
    return result.exit_code


def _print_inspected(options: InspectOptions, result: PackResult, document: dict[str, Any]) -> None:
    if options.json:
        _print_json(document)
    else:
        _print_steps(result)
        reports, signature = document["reports"], document["signature"]
        state = "valid" if signature["valid"] else "INVALID" if signature["present"] else "none"
        print(
            f"{result.pack}: verdict {escape(result.word)}, {counted(reports['total'], 'report')} "
            f"({reports['clean']} have to pass), evidence level {document['evidence_level']}, "
            f"signature {state}, strict-ready: {'yes' if document['strict_ready'] else 'no'}"
        )


def _verify(options: VerifyPackOptions) -> int:
    from invarlock.evidence.result import VerifyOptions
    from invarlock.evidence.verify import verify_pack

    pinned, trusted, store = signers(options)
    demands = VerifyOptions(
        strict=options.strict,
        replay=options.replay,
        skip_verify=options.skip_verify,
        profile=options.profile,
        report_assurance=options.report_assurance,
        pinned=pinned,
        trusted=trusted,
        trust_store=str(store) if store else None,
        allow_unsigned=allows_unverified(),
        baseline=_baseline(options.baseline),
    )
    return verify_and_print(options, lambda: verify_pack(options.pack, demands))


def _baseline(path: Path | None) -> dict[str, Any] | None:
    from invarlock.files import read_json_object

    try:
        return read_json_object(path) if path else None
    except InputError as error:
        raise ConfigError(str(error)) from error  # exit 2: unusable, like any other option


def allows_unverified() -> bool:
    """Whether the environment turns a missing signature into a warning."""
    return os.environ.get(ALLOW_UNSIGNED, "").lower() in ("1", "true", "yes", "on")


def verify_and_print(options: VerificationOptions, verify: Callable[[], PackResult]) -> int:
    """Verify the pack, write and print the result as the options say; the exit code."""
    if options.json_out is not None:
        _refuse_inside(options.json_out, options.pack)
        with contextlib.suppress(OSError):  # what cannot be replaced is said when it is written
            if options.json_out.is_file():  # an older result is not that of a pack that has none
                options.json_out.unlink()
    if not (options.json or options.pack.is_dir()):  # check: open.folder
        what = "is a file; unpack it and name the folder"
        raise PackError(
            Code.INCOMPLETE,
            what if options.pack.is_file() else "is not a folder",
            where=escape(options.pack),
        )
    result = verify()
    document = result.to_json()
    if options.json_out is not None:
        _write_outside(options.json_out, document)
    with printing():
        if options.json:
            _print_json(document)
        else:
            _print_steps(result)
            _print_outcome(result)
    return result.exit_code


def signers(options: SignerOptions) -> tuple[str | None, frozenset[str] | None, Path | None]:
    """The pin and the trust store. A named store holds beside a pin; the store under the user's
    configuration folder is used only where nothing is named, so that it never widens a pin."""
    pinned = None
    if options.expected_fingerprint is not None:
        pinned = keys.normal_fingerprint(options.expected_fingerprint, "--expected-fingerprint")
    store = options.trust_store
    if store is None and pinned is None and os.path.lexists(keys.default_trust_store()):
        store = keys.default_trust_store()
    if store is None:
        return pinned, None, None
    try:
        return pinned, keys.read_trust_store(store), store
    except InputError as error:
        raise ConfigError(str(error)) from error  # exit 2: unusable, like any other option


def _refuse_inside(path: Path, pack: Path) -> None:
    # the name itself is what a write replaces, wherever a link of that name points to
    places = (path.resolve(), path.parent.resolve() / path.name)
    if any(place.is_relative_to(pack.resolve()) for place in places):  # check: options.inside
        raise ConfigError("--json-out lies inside the pack", where=str(path))


def _write_outside(path: Path, document: dict[str, Any]) -> None:
    from invarlock.files import write_json

    try:
        write_json(path, document)
    except InvarlockError as error:
        raise ConfigError(str(error)) from error


def _print_steps(result: PackResult) -> None:
    for step in result.steps:
        if step.number == 0 and not step.findings:
            continue
        skipped = step.name == "reports" and result.options.skip_verify
        state = "FAIL" if step.findings else "-" if skipped else "ok"
        print(f"{step.number} {step.name:<10} {state:<4} {escape(step.note)}".rstrip())
        for finding in step.findings:
            print(f"    {escape(finding)}")
    for warning in result.warnings:
        print(f"warning: {escape(warning)}")


def _print_outcome(result: PackResult) -> None:
    for name, claims in (("replayed", result.replayed), ("not re-checked", result.believed)):
        for claim in claims:
            print(f"{name}: {escape(claim)}")
    if result.exit_code:
        findings = counted(len(result.errors), "finding")
        meaning = Code(result.exit_code).meaning
        print(f"NOT VERIFIED (exit {result.exit_code}, {meaning}): {findings}")
        return
    signer = f"signed by {result.signer}" if result.signer else "not signed"
    level = result.recomputed.evidence_level
    shown = f", evidence level {level}" if level else ""
    believed = "" if result.recomputed.verdict else " (not re-checked)"
    left_out = ", reports not looked at" if result.options.skip_verify else ""
    print(
        f"VERIFIED: verdict {escape(result.word)}{believed}{shown}{left_out}, {signer} "
        f"({result.authenticity})"
    )


ACTIONS = {
    "keygen": (KeygenOptions, _keygen, "make an Ed25519 key pair"),
    "build": (BuildOptions, _build, "build a pack"),
    "inspect": (InspectOptions, _inspect, "show what a pack is"),
    "verify": (VerifyPackOptions, _verify, "verify a pack"),
}
