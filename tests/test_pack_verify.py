"""A table of ways to tamper with a pack, each naming the exit code that must catch it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pack_factory as packs
import pytest
from pack_factory import CLEAN, DAMAGE, edit_json

from invarlock.contracts import validate
from invarlock.evidence import checksums, escape, keys, tree
from invarlock.evidence.result import VerifyOptions
from invarlock.evidence.verify import verify_pack


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The publisher's key."""
    return packs.new_key(tmp_path_factory.mktemp("key") / "pack.pem")


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory, key: Path) -> Path:
    """A signed pack that verifies; never changed."""
    folder = tmp_path_factory.mktemp("packs")
    assert packs.build(packs.write_suite(folder / "out"), folder / "pack", key=key) == 0
    return folder / "pack"


@pytest.fixture
def pack(signed: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return packs.copy(signed, tmp_path / "pack")


def code(pack: Path, **options: object) -> int:
    """The exit code of a verification."""
    return verify_pack(pack, VerifyOptions(**options)).exit_code  # type: ignore[arg-type]


# --- without the key: every byte counts -----------------------------------------------------


def test_every_file_changed_by_one_byte_is_caught(pack: Path) -> None:
    """One flipped bit anywhere: manifest 4 or 5, signature 5, everything else 6."""
    allowed = {"manifest.json": {4, 5}, "manifest.signature.json": {5}}
    for path in sorted(packs.snapshot(pack)):
        data = (pack / path).read_bytes()
        place = len(data) // 2
        changed = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        (pack / path).write_bytes(changed)
        assert code(pack) in allowed.get(path, {6}), path
        (pack / path).write_bytes(data)
    assert code(pack, strict=True, replay=True) == 0


def test_every_byte_of_the_manifest_is_signed(pack: Path) -> None:
    """Even white space: the signature is over the raw bytes."""
    data = (pack / "manifest.json").read_bytes()
    for changed in (data + b"\n", data.rstrip(b"\n"), data.replace(b": ", b":", 1)):
        (pack / "manifest.json").write_bytes(changed)
        assert code(pack) == 5


Damage = Callable[[Path], object]
WITHOUT_KEY: dict[str, tuple[int, Damage]] = {
    "no manifest": (3, lambda p: (p / "manifest.json").unlink()),
    "no checksums": (3, lambda p: (p / "checksums.sha256").unlink()),
    "no signature": (5, lambda p: (p / "manifest.signature.json").unlink()),
    "no file": (6, lambda p: (p / CLEAN / "outcome.json").unlink()),
    "link to a file": (6, lambda p: (p / "x").symlink_to(p / "README.md")),
    "dangling link": (6, lambda p: (p / "x").symlink_to(p / "nowhere")),
    "link to a folder": (6, lambda p: (p / "x").symlink_to("/")),
    "pipe": (6, lambda p: os.mkfifo(p / "reports" / "evaluation.report.json")),
    "manifest is a link": (6, lambda p: swap_for_link(p, "manifest.json")),
    "report is a link": (6, lambda p: swap_for_link(p, f"{CLEAN}/evaluation.report.json")),
    "signature is a link": (5, lambda p: swap_for_link(p, "manifest.signature.json")),
    "manifest is a pipe": (6, lambda p: swap_for_pipe(p / "manifest.json")),
    "name not UTF-8": (6, lambda p: open(os.fsencode(p) + b"/\xff", "w").close()),
    "name with a line feed": (6, lambda p: (p / "a\nb").write_text("")),
    "names equal when folded": (6, lambda p: (p / "readme.MD").write_text("")),
    "forged mirror": (6, lambda p: (p / "metadata/manifest.json").write_text("{}")),
    "manifest is no JSON": (4, lambda p: (p / "manifest.json").write_text("{")),
    "manifest with a BOM": (4, lambda p: prefix(p / "manifest.json", b"\xef\xbb\xbf")),
    "manifest is a list": (4, lambda p: (p / "manifest.json").write_text("[]")),
    "older format": (
        4,
        lambda p: edit_json(p / "manifest.json", set_to("format", "proof-pack-v1")),
    ),
    "too deep": (4, lambda p: (p / "manifest.json").write_text("[" * 100_000)),
    "signature is no JSON": (5, lambda p: (p / "manifest.signature.json").write_text("{}")),
}


def swap_for_link(pack: Path, name: str) -> None:
    """Put a link to the same bytes in place of a file."""
    target = (pack / name).rename(pack.parent / "elsewhere")
    (pack / name).symlink_to(target)


def swap_for_pipe(path: Path) -> None:
    """Put a pipe in place of a file: opening it for reading would hang."""
    path.unlink()
    os.mkfifo(path)


def prefix(path: Path, data: bytes) -> None:
    """Put bytes in front of a file."""
    path.write_bytes(data + path.read_bytes())


def set_to(field: str, value: object) -> Callable[[packs.Document], object]:
    """A change of one member, by dotted path."""

    def change(document: packs.Document) -> None:
        *path, last = field.split(".")
        for name in path:
            document = document[name]
        document[last] = value

    return change


@pytest.mark.parametrize("name", WITHOUT_KEY)
def test_tampering_without_the_key_is_caught(pack: Path, name: str) -> None:
    """Whoever alters the folder without the key gets the code of the first step that fails."""
    wanted, damage = WITHOUT_KEY[name]
    damage(pack)
    result = verify_pack(pack, VerifyOptions())
    assert result.exit_code == wanted, result.errors
    assert result.errors


def test_an_extra_file_fails_only_in_strict_mode(pack: Path) -> None:
    """A file that nobody listed is a warning, and a failure with --strict; no name is exempt."""
    (pack / ".DS_Store").write_text("x")
    (pack / "__MACOSX").mkdir()
    (pack / "__MACOSX/more").write_text("x")
    result = verify_pack(pack, VerifyOptions())
    assert result.exit_code == 0
    assert sum("not listed" in warning for warning in result.warnings) == 2
    assert code(pack, strict=True) == 6


def test_an_extra_report_is_verified_too(pack: Path) -> None:
    """A report that nobody listed cannot slip into the set of reports."""
    (pack / "reports/extra").mkdir()
    (pack / "reports/extra/evaluation.report.json").write_text("{}")
    assert code(pack) in (6, 7)


def test_an_identical_mirror_is_fine(pack: Path) -> None:
    """Copies of the control files under metadata/ need no listing."""
    for name in checksums.CONTROL_FILES:
        (pack / "metadata" / name).write_bytes((pack / name).read_bytes())
    assert code(pack, strict=True) == 0


def test_a_pack_below_a_folder_called_errors_is_fine(pack: Path, tmp_path: Path) -> None:
    """Only the path inside the pack decides what a report has to show."""
    (tmp_path / "errors").mkdir()
    assert code(packs.copy(pack, tmp_path / "errors" / "pack")) == 0


# --- signer ---------------------------------------------------------------------------------


def test_another_key_is_noticed_only_when_pinned(pack: Path, key: Path, tmp_path: Path) -> None:
    """Anyone can sign; a pin or a trust store says who may."""
    mine = keys.fingerprint(keys.load_signing_key(key).public)
    packs.resign(pack, packs.new_key(tmp_path / "other.pem"))
    assert packs.verify(pack) == 0
    assert packs.verify(pack, "--expected-fingerprint", mine) == 5
    store = tmp_path / "store.json"
    packs.write_json(
        store, {"trusted_signers": [{"fingerprint": mine.upper().replace("SHA", "sha")}]}
    )
    assert packs.verify(pack, "--trust-store", str(store)) == 5


def test_pin_and_named_store_both_hold(pack: Path, key: Path, tmp_path: Path) -> None:
    """A pin is not widened by a store, and a store is not widened by a pin."""
    mine = keys.fingerprint(keys.load_signing_key(key).public)
    packs.write_json(tmp_path / "others.json", ["sha256:" + "0" * 64])
    packs.write_json(tmp_path / "mine.json", [mine])
    pin, store = ("--expected-fingerprint", mine), "--trust-store"
    assert packs.verify(pack, *pin, store, str(tmp_path / "mine.json")) == 0
    assert packs.verify(pack, *pin, store, str(tmp_path / "others.json")) == 5
    other = ("--expected-fingerprint", "sha256:" + "0" * 64)
    assert packs.verify(pack, *other, store, str(tmp_path / "mine.json")) == 5


def test_the_ambient_store_never_widens_a_pin(
    pack: Path, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user's own store holds when nothing is named, and not beside a pin."""
    monkeypatch.setenv("HOME", str(tmp_path))
    mine = keys.fingerprint(keys.load_signing_key(key).public)
    packs.write_json(keys.default_trust_store(), [mine])
    assert packs.verify(pack) == 0
    assert packs.verify(pack, "--expected-fingerprint", "sha256:" + "0" * 64) == 5
    packs.write_json(keys.default_trust_store(), ["sha256:" + "0" * 64])
    assert packs.verify(pack) == 5
    assert packs.verify(pack, "--expected-fingerprint", mine) == 0


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '["sha256:12"]', "[1]", '{"fingerprints": 3}', "["]
)
def test_an_unusable_trust_store_is_a_usage_error(pack: Path, tmp_path: Path, text: str) -> None:
    """Empty, malformed or missing: exit 2, before the pack is looked at."""
    (tmp_path / "store.json").write_text(text)
    assert packs.verify(pack, "--trust-store", str(tmp_path / "store.json")) == 2
    assert packs.verify(pack, "--trust-store", str(tmp_path / "missing.json")) == 2


def test_a_malformed_pin_is_a_usage_error(pack: Path) -> None:
    """A pin is sha256: and 64 hex digits."""
    assert packs.verify(pack, "--expected-fingerprint", "sha256:12") == 2


def test_an_unsigned_pack_fails(pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless the published variable allows it, and never strictly or with a named signer."""
    (pack / "manifest.signature.json").unlink()
    edit_json(pack / "manifest.json", lambda m: m.pop("signing_key_fingerprint"))
    assert packs.verify(pack) == 5
    monkeypatch.setenv("INVARLOCK_ALLOW_UNVERIFIED_PROVENANCE", "1")
    assert packs.verify(pack) == 0
    assert packs.verify(pack, "--strict") == 5
    assert packs.verify(pack, "--expected-fingerprint", "sha256:" + "0" * 64) == 5


@pytest.mark.parametrize(
    "change",
    [
        set_to("algorithm", "none"),
        set_to("signature.value", ""),
        set_to("signature.value", "A" * 87 + "=" + "\n"),
        set_to("signing_key_fingerprint", "sha256:" + "0" * 64),
        set_to("public_key.value", keys.public_pem(bytes(32))),
        set_to("public_key.value", keys.public_pem(b"\xee" + b"\xff" * 31)),
        set_to("public_key.value", "-----BEGIN PUBLIC KEY-----\n\n-----END PUBLIC KEY-----\n"),
    ],
)
def test_a_forged_signature_file_is_refused(
    pack: Path, change: Callable[[packs.Document], object]
) -> None:
    """Weak keys, other algorithms, loose base64 and foreign fingerprints: exit 5."""
    edit_json(pack / "manifest.signature.json", change)
    assert code(pack) == 5


# --- the command ----------------------------------------------------------------------------


def test_usage_errors_exit_2_and_a_missing_pack_3(pack: Path, tmp_path: Path) -> None:
    """A missing pack is incomplete (3); a result inside the pack is a usage error (2)."""
    assert packs.verify(tmp_path / "nothing") == 3
    assert packs.verify(pack / "README.md") == 3
    for inside in (pack / "v.json", pack / "reports" / ".." / "v.json"):
        assert packs.verify(pack, "--json-out", str(inside)) == 2
    (tmp_path / "door").symlink_to(pack)
    assert packs.verify(pack, "--json-out", str(tmp_path / "door" / "v.json")) == 2
    with pytest.raises(SystemExit) as caught:
        packs.verify(pack, "--report-assurance", "some")
    assert caught.value.code == 2


def test_the_json_result_follows_its_contract(
    pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--json and --json-out give one document with every step, for good and bad packs."""
    assert packs.verify(pack, "--json", "--json-out", str(tmp_path / "v.json")) == 0
    good = json.loads(capsys.readouterr().out)
    assert good == json.loads((tmp_path / "v.json").read_text())
    validate(good, "evidence-pack-verify", "good")
    validate(good["verify"], "verify-v1", "good")
    assert [step["number"] for step in good["steps"]] == list(range(9))
    (pack / "README.md").unlink()
    assert packs.verify(pack, "--json") == 6
    bad = json.loads(capsys.readouterr().out)
    validate(bad, "evidence-pack-verify", "bad")
    assert bad["errors"] == ["README.md: is listed and missing"]


def test_hostile_names_are_escaped(pack: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No byte of a name reaches the terminal unescaped."""
    (pack / "\x1b[2J\u202eevil").write_text("x")
    assert packs.verify(pack) == 6
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\u202e" not in out
    assert "\\x1b[2J\\u202eevil" in out
    assert escape("\ud800\n") == "\\ud800\\n"


def test_all_findings_of_a_step_are_listed(pack: Path) -> None:
    """Two changed files and a missing one make three findings."""
    for name in ("README.md", f"{CLEAN}/evaluation.html"):
        (pack / name).write_text("changed")
    (pack / DAMAGE / "outcome.json").unlink()
    result = verify_pack(pack, VerifyOptions())
    changed = next(step for step in result.steps if step.name == "checksums")
    assert len(changed.findings) == 3


@pytest.mark.parametrize(
    ("limit", "value"),
    [("MAX_FILES", 5), ("MAX_DEPTH", 2), ("MAX_FILE", 100), ("MAX_PACK", 1000), ("MAX_PARSED", 99)],
)
def test_limits_are_enforced(
    pack: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    """Count, depth and sizes of a pack are bounded: exit 6."""
    monkeypatch.setattr(tree, limit, value)
    assert code(pack) == 6


def test_inspect_checks_the_signature(
    pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """inspect says whether the signature is valid, and fails when it is not."""
    from invarlock.cli import main as cli

    words = ["advanced", "evidence-pack", "inspect", str(pack), "--json"]
    assert cli(words) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["signature"]["valid"] is True
    assert shown["strict_ready"] is True
    prefix(pack / "manifest.json", b" ")
    assert cli(words) == 5
    shown = json.loads(capsys.readouterr().out)
    assert (shown["signature"]["present"], shown["signature"]["valid"]) == (True, False)
    assert shown["strict_ready"] is False


# --- checksums ------------------------------------------------------------------------------

D = "0" * 64


@pytest.mark.parametrize(
    "line",
    [f"{D}  a/b", f"{D} *a/b", f"{D}  ./a/b", f"{'A' * 64}  a b", f"{D}  a", "", f"{D}  \u2028"],
)
def test_tolerated_checksum_lines(line: str) -> None:
    """What published packs contain is read."""
    digests, problems = checksums.parse(f"{line}\n\n".encode())
    assert problems == []
    assert len(digests) == bool(line)


@pytest.mark.parametrize(
    "line",
    [f"{D} a", f"{D}\ta", f"# {D}  a", f" {D}  a", f"{D}  /a", f"{D}  a/../b", f"{D}  a//b",
     f"{D}  ../a", f"{D}  a\\b", f"{D[:-1]}  a", f"{D}  a/", f"{D}  manifest.json",
     f"SHA256 (a) = {D}", f"{D}  ././a", f"{D}  a\n{D}  ./a"],
)  # fmt: skip
def test_refused_checksum_lines(line: str) -> None:
    """Anything else that has more than one reading is refused."""
    _, problems = checksums.parse(line.encode())
    assert problems


def test_checksums_work_with_sha256sum(pack: Path) -> None:
    """The file is what ``sha256sum --check`` reads."""
    import subprocess

    command = ["sha256sum", "--check", "--strict", "--quiet", "checksums.sha256"]
    assert subprocess.run(command, cwd=pack, check=False).returncode == 0


def test_the_example_in_the_format_page_is_true(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page's own few lines of Python verify the first links of a real pack."""
    page = (Path(__file__).parent.parent / "docs" / "pack-format.md").read_text()
    code = page.split("```python\n")[1].split("```")[0]
    pack.rename(tmp_path / "PACK")
    monkeypatch.chdir(tmp_path)
    exec(code, {})
