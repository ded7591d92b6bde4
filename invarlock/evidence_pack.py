"""Evidence packs: what ``invarlock advanced evidence-pack`` does, as functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from invarlock.errors import ConfigError, InputError
from invarlock.evidence import PackError, collect, keys
from invarlock.evidence.build import BuildRequest, Built, build_pack
from invarlock.evidence.inspect import inspect_pack
from invarlock.evidence.manifest import ENVIRONMENT, SOURCE_REPO
from invarlock.evidence.result import PackResult, VerifyOptions
from invarlock.evidence.verify import verify_pack
from invarlock.policy import ASSURANCE, check_profile, one_of

__all__ = ["Built", "PackError", "PackResult", "build", "inspect", "keygen", "verify"]


def keygen(private: Path, public: Path | None = None) -> str:
    """Make an Ed25519 key pair; files that are there are never replaced.

    Args:
        private: file of the private key, mode 0600.
        public: file of the public key; None: ``STEM.pub.pem`` beside it.

    Returns:
        the fingerprint, ``sha256:`` and 64 hex digits.

    Raises:
        ConfigError: one of the files exists.
        InputError: they cannot be written.
    """
    return keys.generate(private, public or keys.default_public_path(private))


def build(
    out: Path,
    *,
    run_dir: Path | None = None,
    reports: Sequence[Path] = (),
    final_verdict: Path | None = None,
    source_repo: Path | None = None,
    environment: Path | None = None,
    materials: Mapping[str, Path] = MappingProxyType({}),
    analyses: Sequence[Path] = (),
    readme: Path | None = None,
    signing_key: Path | None = None,
    require_signature: bool = False,
    profile: str = "dev",
    report_assurance: str = "report",
    release_review: bool = False,
) -> Built:
    """Build a pack of a suite's output folder, or of reports and their verdict.

    The pack is verified before it appears under its name; the same inputs give the same bytes.

    Args:
        out: folder of the pack; must not exist.
        run_dir: a suite's output folder; nothing else is named then but what replaces its files.
        reports: ``evaluation.report.json`` files, each beside its runtime manifest.
        final_verdict: ``final_verdict.json``.
        source_repo: ``source_repo.json``.
        environment: ``environment.json``.
        materials: further inputs, by the names they get in the manifest.
        analyses: documents of ``invarlock advanced analyze``.
        readme: README instead of the generated one.
        signing_key: Ed25519 private key; None: the pack is not signed.
        require_signature: refuse to build an unsigned pack.
        profile: of the check before packing: ``dev``, ``ci`` or ``release``.
        report_assurance: of that check: ``off``, ``report`` or ``strict``.
        release_review: demand profile ci or release, strict assurance, a key and the verdict PASS.

    Returns:
        what was built; ``checked`` is its verification.

    Raises:
        ConfigError: the target exists, or the words do not go together (exit code 2).
        InputError: the target cannot be written (3).
        PackError: an input or the key is refused (4), or the pack would not verify (7).
    """
    _check(profile, report_assurance)
    if run_dir is not None:
        if reports or final_verdict:
            raise ConfigError(
                "a run's folder names the verdict and the reports itself", where=str(run_dir)
            )
        if not run_dir.is_dir():
            raise InputError("is not a folder", where=str(run_dir))
        inputs = collect.from_run(run_dir)
    elif not reports or not final_verdict:
        raise ConfigError(
            "neither a run's folder nor reports and their verdict are named",
            expected="--run-dir, or both --final-verdict and --report",
        )
    else:
        inputs = collect.from_reports(reports, final_verdict)
    inputs.replace(SOURCE_REPO, source_repo)
    inputs.replace(ENVIRONMENT, environment)
    for name, path in materials.items():
        inputs.add_material(name, path)
    collect.add_presets(inputs, reports)
    for document in analyses:
        inputs.add_analysis(document)
    return build_pack(
        BuildRequest(
            out=out,
            inputs=inputs,
            signing_key=signing_key,
            require_signature=require_signature,
            readme=readme,
            profile=profile,
            report_assurance=report_assurance,
            release_review=release_review,
        )
    )


def verify(
    pack: Path,
    *,
    strict: bool = False,
    replay: bool = False,
    skip_verify: bool = False,
    profile: str = "dev",
    report_assurance: str = "report",
    expected_fingerprint: str | None = None,
    trust_store: Path | None = None,
    allow_unsigned: bool = False,
) -> PackResult:
    """Verify a pack offline; everything that is wrong with it is in the result.

    Neither the environment nor a trust store that is not named is looked at.

    Args:
        pack: folder of the pack.
        strict: files that are not in the checksums fail.
        replay: evidence that is missing for the replay fails.
        skip_verify: leave the reports out.
        profile: ``dev``: an honest FAIL is in order; ``ci``, ``release``: controls that failed
            fail.
        report_assurance: ``strict``: container runs with the full claim; ``report``: where a report
            claims it; ``off``.
        expected_fingerprint: the signer must be this one.
        trust_store: the signer must be in this file.
        allow_unsigned: a missing signature is a warning; never with ``strict``.

    Returns:
        ``exit_code`` and ``errors`` say what was found; ``to_json()`` is the document that
        ``--json`` prints.

    Raises:
        ConfigError: an unknown word, no fingerprint, or no usable trust store.
        InputError: the trust store cannot be read.
    """
    _check(profile, report_assurance)
    pinned = None
    if expected_fingerprint is not None:
        pinned = keys.normal_fingerprint(expected_fingerprint, "expected_fingerprint")
    demands = VerifyOptions(
        strict=strict,
        replay=replay,
        skip_verify=skip_verify,
        profile=profile,
        report_assurance=report_assurance,
        pinned=pinned,
        trusted=keys.read_trust_store(trust_store) if trust_store else None,
        trust_store=str(trust_store) if trust_store else None,
        allow_unsigned=allow_unsigned,
    )
    return verify_pack(pack, demands)


def inspect(pack: Path) -> dict[str, Any]:
    """What a pack is, its integrity and its signature, without the replay of its reports.

    Args:
        pack: folder of the pack.

    Returns:
        the document that ``evidence-pack inspect --json`` prints.
    """
    return inspect_pack(pack)[1]


def _check(profile: str, report_assurance: str) -> None:
    """What is misspelt must not weaken a verification."""
    check_profile(profile)
    one_of(report_assurance, ASSURANCE, "report assurance")
