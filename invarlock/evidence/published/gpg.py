"""OpenPGP signatures of older packs, checked by the real ``gpg`` in a keyring of its own.

The keyring is an empty folder of mode 0700 that goes away afterwards; it holds the public keys
that the caller names and nothing else. No agent is started, no network is asked, and nothing of
the user's keyring, options or trust is read. Only what gpg says on its status channel counts.
"""

from __future__ import annotations

import resource
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from invarlock.errors import ConfigError, InputError
from invarlock.evidence import escape
from invarlock.files import read_bytes

NAME = "manifest.json.asc"
MAX_KEY_FILE = 1 << 20  # bytes of one file of public keys
TIMEOUT = 20  # seconds of one call
CPU_TIME = 2  # seconds of processor time of one call; a hostile signature unpacks to gigabytes
ARMOUR = b"-----BEGIN PGP SIGNATURE-----"
HASHES = {"8": "SHA256", "9": "SHA384", "10": "SHA512", "11": "SHA224"}  # RFC 4880, 9.4
BINARY = "00"  # signature class: over the bytes as they are
# Status words that refuse a signature although gpg may call it valid, and what they mean.
REFUSED = {
    "BADSIG": "is not one of these bytes",
    "EXPSIG": "has expired",
    "EXPKEYSIG": "is by a key that has expired",
    "REVKEYSIG": "is by a key that was revoked",
}


def check_signature(
    message: bytes, signature: bytes, keys: Sequence[Path]
) -> tuple[list[str], list[str]]:
    """The fingerprints that signed (primary keys, then signing keys) and every reason to refuse.

    Every signature in the file has to be good.

    Raises:
        ConfigError: a file of public keys cannot be used (exit 2).
    """
    program = shutil.which("gpg")
    if program is None:
        return [], [f"{NAME}: cannot be verified: gpg is not installed"]
    if not signature.startswith(ARMOUR):
        return [], [f"{NAME}: is no armored OpenPGP signature"]
    with tempfile.TemporaryDirectory(prefix="invarlock-gpg-") as name:
        home = Path(name)
        for number, key in enumerate(keys):
            _import(program, home, key, home / f"key.{number}")
        (home / "message").write_bytes(message)
        (home / "signature").write_bytes(signature)
        code, status = _run(program, home, "--verify", "signature", "message")
    return read_status(code, status)


def _run(program: str, home: Path, *words: str) -> tuple[int, bytes]:
    """One call of gpg; its exit code and what its status channel says."""
    quiet = ("--batch", "--no-tty", "--no-options", "--no-autostart", "--disable-dirmngr")
    command = (program, "--homedir", ".", *quiet, "--trust-model", "always", "--status-fd", "1")
    try:
        done = subprocess.run(
            [*command, *words],
            cwd=home,
            env={"PATH": str(Path(program).parent), "LC_ALL": "C", "HOME": ".", "GNUPGHOME": "."},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TIMEOUT,
            check=False,
            preexec_fn=_limit,  # a system call; we start no threads
        )
    except subprocess.TimeoutExpired:
        return 124, b""
    return done.returncode, done.stdout


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_TIME, CPU_TIME))


def _import(program: str, home: Path, source: Path, copy: Path) -> None:
    try:
        copy.write_bytes(read_bytes(source, MAX_KEY_FILE))
    except InputError as error:
        raise ConfigError(str(error)) from error  # exit 2: unusable, like any other option
    # its exit code also says that no agent answers, as below a folder with a long name
    _, status = _run(program, home, "--import", copy.name)
    if not any(words[0] == "IMPORT_OK" for words in _lines(status)):
        raise ConfigError(
            "holds no OpenPGP public key that gpg can use",
            where=f"--public-key {source}",
            expected="what gpg --export --armor KEY writes",
        )


def _lines(status: bytes) -> list[list[str]]:
    """The words of each status line."""
    lines = status.decode("utf-8", "replace").split("\n")
    return [line.split(" ")[1:] for line in lines if line.startswith("[GNUPG:] ")]


def _groups(lines: Sequence[list[str]]) -> Iterator[dict[str, list[str]]]:
    """The status words of each signature, with their arguments."""
    group: dict[str, list[str]] | None = None
    for word, *rest in lines:
        if word == "NEWSIG":
            if group is not None:
                yield group
            group = {}
        elif group is not None:
            group[word] = rest
    if group is not None:
        yield group


def read_status(code: int, status: bytes) -> tuple[list[str], list[str]]:
    """Who signed, and every reason to refuse, from gpg's exit code and status lines."""
    primary, signing, findings = [], [], []
    for group in _groups(_lines(status)):
        problem = _problem(group)
        if problem:
            findings.append(f"{NAME}: a signature {problem}")
        else:
            valid = group["VALIDSIG"]
            primary.append(valid[9])
            signing.append(valid[0])
    if not findings and (code or not primary):
        findings.append(f"{NAME}: gpg found no signature of manifest.json in it (exit {code})")
    return [] if findings else [*primary, *signing], findings


def _problem(group: dict[str, list[str]]) -> str:
    """Why a signature is refused; empty when it is good."""
    for word, meaning in REFUSED.items():
        if word in group:
            return f"{meaning} ({escape(' '.join(group[word][:1]))})"
    if "NO_PUBKEY" in group:
        key = escape(" ".join(group["NO_PUBKEY"][:1]))
        return f"is by key {key}, which no --public-key holds"
    valid = group.get("VALIDSIG", [])
    if "GOODSIG" not in group or len(valid) < 10:
        return "could not be checked by gpg"
    if valid[7] not in HASHES or valid[8] != BINARY:
        return (
            f"is of class {escape(valid[8])} with digest {escape(valid[7])}; "
            f"expected class {BINARY} and a digest of the SHA-2 family"
        )
    return ""
