"""Make keys, build, inspect and verify evidence packs."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from invarlock.cli.output import printing
from invarlock.counts import counted
from invarlock.errors import ConfigError, InputError, InvarlockError
from invarlock.evidence import Code, PackError, escape, keys
from invarlock.policy import PROFILES

if TYPE_CHECKING:
    from invarlock.evidence.result import PackResult

ASSURANCE = ("off", "report", "strict")
ALLOW_UNVERIFIED = "INVARLOCK_ALLOW_UNVERIFIED_PROVENANCE"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-commands."""
    commands = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    _configure_keygen(commands.add_parser("keygen", help="make an Ed25519 key pair"))
    _configure_build(commands.add_parser("build", help="build a pack"))
    _configure_inspect(commands.add_parser("inspect", help="show what a pack is"))
    _configure_verify(commands.add_parser("verify", help="verify a pack"))


def _configure_keygen(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="FILE", help="private key to write, mode 0600")
    add("--public", type=Path, metavar="FILE", help="public key to write (STEM.pub.pem beside it)")
    add("--if-missing", action="store_true", help="keep a key that is there, and say so")
    add("--json", action="store_true", help="print one JSON object")


def _configure_build(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("out", type=Path, metavar="OUT", help="folder of the pack; must not exist")
    add("--run-dir", type=Path, metavar="DIR", help="a suite's output folder: pack all of it")
    add("--final-verdict", type=Path, metavar="FILE", help="final_verdict.json")
    add(
        "--report",
        type=Path,
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="evaluation.report.json files, each beside its runtime manifest",
    )
    add("--source-repo", type=Path, metavar="FILE", help="source_repo.json")
    add("--environment", type=Path, metavar="FILE", help="environment.json")
    add("--material", action="append", default=[], metavar="NAME=PATH", help="a further input")
    add("--analysis", type=Path, nargs="*", default=[], metavar="FILE", help="analyze's documents")
    add("--readme", type=Path, metavar="FILE", help="README instead of the generated one")
    add("--signing-key", type=Path, metavar="FILE", help="Ed25519 private key (keygen)")
    add("--require-signature", action="store_true", help="refuse to build an unsigned pack")
    add("--profile", choices=PROFILES, default="dev", help="profile of the check before packing")
    add("--report-assurance", choices=ASSURANCE, default="report", help="assurance of that check")
    add(
        "--release-review",
        action="store_true",
        help="demand profile ci or release, strict assurance, a key and the verdict PASS",
    )
    add("--json", action="store_true", help="print one JSON object")


def _configure_inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pack", type=Path, metavar="PACK", help="folder of the pack")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _configure_verify(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_verification(parser)
    add("--replay", action="store_true", help="evidence that is missing for the replay fails")
    add(
        "--report-assurance",
        choices=ASSURANCE,
        default="report",
        help="strict: container runs with the full claim; report: where a report claims it",
    )
    add(
        "--profile",
        choices=PROFILES,
        default="dev",
        help="dev: an honest FAIL is in order; ci, release: controls that failed fail",
    )
    add_signers(parser)


def add_verification(parser: argparse.ArgumentParser) -> None:
    """Declare what every verification of a pack takes: see :func:`verify_and_print`."""
    add = parser.add_argument
    add("pack", type=Path, metavar="PACK", help="folder of the pack")
    add("--strict", action="store_true", help="files that are not in the checksums fail")
    add("--skip-verify", action="store_true", help="leave the reports out")
    add("--json", action="store_true", help="print one JSON object")
    add("--json-out", type=Path, metavar="FILE", help="write it to a file outside the pack")


def add_signers(parser: argparse.ArgumentParser) -> None:
    """Declare the options that :func:`signers` reads."""
    add = parser.add_argument
    add("--expected-fingerprint", metavar="F", help="the signer must be sha256:...")
    add("--trust-store", type=Path, metavar="FILE", help="the signer must be in this file")


def main(args: argparse.Namespace) -> int:
    """Run the sub-command."""
    actions = {"keygen": _keygen, "build": _build, "inspect": _inspect, "verify": _verify}
    return actions[args.action](args)


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


def _keygen(args: argparse.Namespace) -> int:
    public = args.public or keys.default_public_path(args.out)
    kept = args.if_missing and os.path.lexists(args.out)
    if kept:
        key = keys.load_signing_key(args.out)
        signer = keys.fingerprint(key.public)
        if not os.path.lexists(public):
            keys.write_public(public, key.public)
    else:
        signer = keys.generate(args.out, public)
    if args.json:
        _print_json(
            {
                "format_version": "evidence-pack-keygen-v1",
                "ok": True,
                "algorithm": "ed25519",
                "created": not kept,
                "private_key": str(args.out),
                "public_key": str(public),
                "signing_key_fingerprint": signer,
            }
        )
    else:
        what = "kept the signing key that is there" if kept else "made a signing key"
        print(f"{what}: {args.out} ({signer})")
    return 0


# --- build ----------------------------------------------------------------------------------


def _build(args: argparse.Namespace) -> int:
    from invarlock.evidence import collect
    from invarlock.evidence.build import BuildRequest, build_pack
    from invarlock.evidence.manifest import ENVIRONMENT, SOURCE_REPO

    if args.run_dir is not None:
        if args.report or args.final_verdict:
            raise ConfigError("--run-dir names the verdict and the reports itself")
        if not args.run_dir.is_dir():
            raise InputError("is not a folder", where=str(args.run_dir))
        inputs = collect.from_run(args.run_dir)
    elif not args.report or not args.final_verdict:
        raise ConfigError("name --run-dir, or both --final-verdict and --report")
    else:
        inputs = collect.from_reports(args.report, args.final_verdict)
    inputs.replace(SOURCE_REPO, args.source_repo)
    inputs.replace(ENVIRONMENT, args.environment)
    for text in args.material:
        name, separator, path = text.partition("=")
        if not separator or not path:
            raise ConfigError(
                "not a material", where="--material", expected="NAME=PATH", found=text
            )
        inputs.add_material(name, Path(path))
    for path in args.analysis:
        inputs.add_analysis(path)
    built = build_pack(
        BuildRequest(
            out=args.out,
            inputs=inputs,
            signing_key=args.signing_key,
            require_signature=args.require_signature,
            readme=args.readme,
            profile=args.profile,
            report_assurance=args.report_assurance,
            release_review=args.release_review,
        )
    )
    warnings = [*built.warnings, *built.checked.warnings]
    if args.json:
        _print_json(
            {
                "format_version": "evidence-pack-build-v1",
                "pack": str(args.out),
                "ok": True,
                "warnings": warnings,
                "errors": [],
                "verdict": built.verdict,
                "outcome": built.outcome,
                "reports": {"total": built.reports},
                "verify": built.checked.envelope,
                "profile": args.profile,
                "report_assurance": args.report_assurance,
                "release_review": args.release_review,
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
        f"{args.out}: verdict {escape(word_of(vars(built)))}, {built.reports} reports, "
        f"{built.hashed} files, evidence level {built.evidence_level}, {signed}"
    )
    return 0


# --- inspect and verify ---------------------------------------------------------------------


def _inspect(args: argparse.Namespace) -> int:
    from invarlock.evidence.inspect import inspect_pack

    result, document = inspect_pack(args.pack)
    with printing():
        _print_inspected(args, result, document)
    return result.exit_code


def _print_inspected(
    args: argparse.Namespace, result: PackResult, document: dict[str, Any]
) -> None:
    if args.json:
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


def _verify(args: argparse.Namespace) -> int:
    from invarlock.evidence.result import VerifyOptions
    from invarlock.evidence.verify import verify_pack

    pinned, trusted, store = signers(args)
    options = VerifyOptions(
        strict=args.strict,
        replay=args.replay,
        skip_verify=args.skip_verify,
        profile=args.profile,
        report_assurance=args.report_assurance,
        pinned=pinned,
        trusted=trusted,
        trust_store=str(store) if store else None,
        allow_unsigned=allows_unverified(),
    )
    return verify_and_print(args, lambda: verify_pack(args.pack, options))


def allows_unverified() -> bool:
    """Whether the environment turns a missing signature into a warning."""
    return os.environ.get(ALLOW_UNVERIFIED, "").lower() in ("1", "true", "yes", "on")


def verify_and_print(args: argparse.Namespace, verify: Callable[[], PackResult]) -> int:
    """Verify ``args.pack``, write and print the result as the options say; the exit code."""
    if args.json_out is not None:
        _refuse_inside(args.json_out, args.pack)
        with contextlib.suppress(OSError):  # what cannot be replaced is said when it is written
            if args.json_out.is_file():  # an older result is not that of a pack that has none
                args.json_out.unlink()
    if not (args.json or args.pack.is_dir()):  # check: open.folder
        what = "is a file; unpack it and name the folder"
        raise PackError(
            Code.INCOMPLETE,
            what if args.pack.is_file() else "is not a folder",
            where=escape(args.pack),
        )
    result = verify()
    document = result.to_json()
    if args.json_out is not None:
        _write_outside(args.json_out, document)
    with printing():
        if args.json:
            _print_json(document)
        else:
            _print_steps(result)
            _print_outcome(result)
    return result.exit_code


def signers(args: argparse.Namespace) -> tuple[str | None, frozenset[str] | None, Path | None]:
    """The pin and the trust store. A named store holds beside a pin; the store under the user's
    configuration folder is used only where nothing is named, so that it never widens a pin."""
    pinned = None
    if args.expected_fingerprint is not None:
        pinned = keys.normal_fingerprint(args.expected_fingerprint, "--expected-fingerprint")
    store = args.trust_store
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
        print(f"NOT VERIFIED (exit {result.exit_code}): {findings}")
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
