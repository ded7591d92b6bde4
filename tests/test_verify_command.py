"""``invarlock verify`` and ``advanced runtime-verify``: options, exit codes, output."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pack_factory as packs
import pytest
import report_factory as factory
from attacks import REPORT
from pack_factory import Document
from test_report_verify import CLEAN, RUN, container, runtime

from invarlock.cli import main as cli
from invarlock.contracts import validate
from invarlock.evidence import escape
from invarlock.files import canonical_json

# Members of the published envelope (0.12.1), seen in its output for good, failing and malformed
# reports; readers of it find each of them here with the same type.
PUBLISHED = {
    "/format_version": str,
    "/component": str,
    "/ts": str,
    "/summary/ok": bool,
    "/summary/reason": str,
    "/evaluation_report/count": int,
    "/error/code": str,
    "/error/category": str,
    "/error/recoverable": bool,
    "/error/context/path": str,
    "/results/0/id": str,
    "/results/0/schema_version": str,
    "/results/0/kind": str,
    "/results/0/ok": bool,
    "/results/0/reason": str,
    "/results/0/ratio_vs_baseline": float,
    "/results/0/ci/0": float,
    "/results/0/ci/1": float,
    "/results/0/recompute/family": str,
    "/results/0/recompute/ok": bool,
    "/results/0/recompute/reason": type(None),
    "/results/0/guard_warnings_present": bool,
    "/results/0/warning_count": int,
    "/results/0/verification/runtime_provenance/declared_mode": str,
    "/results/0/verification/runtime_provenance/status": str,
    "/results/0/verification/runtime_provenance/verified": bool,
    "/results/0/verification/runtime_provenance/skipped": bool,
    "/results/0/verification/runtime_provenance/strict_blocking": bool,
    "/results/1/verification/runtime_provenance/issues/0/code": str,
    "/results/1/verification/runtime_provenance/issues/0/message": str,
    "/results/2/kind": str,
    "/results/2/ratio_vs_baseline": type(None),
    "/results/2/ci": type(None),
}


def write(folder: Path, report: Document) -> Path:
    """A report and its manifest in a folder; the report's path."""
    folder.mkdir(parents=True)
    data = canonical_json(report)
    (folder / "evaluation.report.json").write_bytes(data)
    packs.write_json(folder / "runtime.manifest.json", runtime(data))
    return folder / "evaluation.report.json"


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A report that verifies."""
    return write(tmp_path / "good", CLEAN)


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    """A report that contradicts itself."""
    return write(tmp_path / "bad", CLEAN | {"auto": {"tier": "none"}})


def members(value: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """Every member and entry that is no container of others, by pointer."""
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from members(part, f"{at}/{key}")
    else:
        yield at, value


def verify(*words: object) -> int:
    """The exit code, of usage errors too."""
    try:
        return cli(["verify", *map(str, words)])
    except SystemExit as stop:
        return int(stop.code or 0)


def test_the_envelope_has_every_report_and_every_finding(
    good: Path, bad: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--json and --out hold one result a report, each with its own outcome; files hold no time."""
    assert verify(good, bad.parent, "--json", "--out", tmp_path / "v.json") == 1
    document = json.loads(capsys.readouterr().out)
    validate(document, "verify-v1", "printed")
    del document["ts"]
    assert document == json.loads((tmp_path / "v.json").read_text())
    assert [result["ok"] for result in document["results"]] == [True, False]
    assert [result["reason"] for result in document["results"]] == ["ok", "policy_fail"]
    assert document["results"][1]["errors"]
    assert verify(good) == 0
    assert capsys.readouterr().out.startswith("VERIFY OK")


def test_readers_of_the_published_envelope_find_what_they_read(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every published member is there with its type; ours only adds."""
    failing = write(tmp_path / "failing", CLEAN)
    (tmp_path / "failing" / "runtime.manifest.json").unlink()
    (tmp_path / "malformed.json").write_text('{"schema_version": "v1"}')
    assert verify(good, failing, tmp_path / "malformed.json", "--json") == 2
    found = dict(members(json.loads(capsys.readouterr().out)))
    assert {name: type(found.get(name, ...)) for name in PUBLISHED} == PUBLISHED


def test_exit_codes(good: Path, bad: Path, tmp_path: Path) -> None:
    """0 ok, 1 policy, 2 malformed or missing, 3 typed error in profiles ci and release."""
    (tmp_path / "no.json").write_text("{}")
    (tmp_path / "text").write_text("{")
    assert verify(good) == verify(good.parent) == 0
    assert verify(good, "--runtime-provenance", "container") == 1
    assert verify(good, "--assurance", "strict") == 1
    assert verify(bad) == 1
    assert verify(bad, "--profile", "ci") == verify(bad, "--profile", "release") == 3
    assert verify(tmp_path / "no.json", bad, "--profile", "ci") == 2
    assert verify(tmp_path / "text") == 2  # published: 1, although its reason says malformed
    for unusable in (tmp_path / "missing.json", tmp_path):
        assert verify(good, unusable) == 2


@pytest.mark.parametrize(
    "words",
    [
        ("--profile", "weak"),
        ("--assurance", "some"),
        ("--runtime-provenance", "none"),
        ("--warning-policy", "ignore"),
        ("--tolerance", "nan"),
        ("--tolerance", "-1"),
        ("--tolerance", "much"),
        ("--baseline", "/nowhere"),
        ("--unknown",),
    ],
    ids=" ".join,
)
def test_values_that_nothing_knows_are_usage_errors(words: tuple[str, ...], good: Path) -> None:
    """Exit 2; published: an unknown profile is the weakest, an unknown assurance crashes."""
    assert verify(good, *words) == 2


EARLY = (
    ("verify",),
    ("verify", "{scratch}/missing.json"),
    ("verify", "{pack}", "--tolerance", "7"),
    ("verify", "{pack}", "--profile", "weak"),
    ("verify", "{report}", "--baseline", "/nowhere"),
    ("verify", "{report}", "--out", "/proc/x/y"),
    ("advanced", "evidence-pack", "verify"),
    ("advanced", "evidence-pack", "verify", "{pack}", "--expected-fingerprint", "x"),
    ("advanced", "evidence-pack", "verify", "{pack}", "--trust-store", "/nowhere"),
    ("advanced", "evidence-pack", "verify", "{pack}", "--json-out", "{pack}/v.json"),
    ("advanced", "evidence-pack", "verify", "{pack}", "--json-out", "/proc/v.json"),
    ("advanced", "evidence-pack", "verify", "{pack}", "--report-assurance", "some"),
    ("advanced", "evidence-pack", "verify", "{scratch}/missing"),
    ("advanced", "evidence-pack", "verify", "{report}"),
    ("advanced", "evidence-pack", "inspect"),
    ("advanced", "evidence-pack", "inspect", "{scratch}/missing"),
    ("advanced", "evidence-pack", "build", "{scratch}/new"),
    ("advanced", "evidence-pack", "build", "{pack}", "--run-dir", "{scratch}"),
    ("advanced", "evidence-pack", "keygen", "--out", "{report}"),
    ("advanced", "proof-pack", "verify"),
    ("advanced", "proof-pack", "verify", "{pack}"),
    ("advanced", "proof-pack", "verify", "{pack}", "--expected-fingerprint", "ABCD"),
    ("advanced", "runtime-verify", "--report", "{report}"),
    ("advanced", "runtime-verify", "--report", "{scratch}/missing", "--manifest", "{report}"),
)


@pytest.mark.parametrize("words", EARLY, ids=" ".join)
def test_json_says_what_the_line_says(
    words: tuple[str, ...], signed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever a command ends with: one object on standard output, with its code and its reason."""
    names = {"pack": signed, "scratch": tmp_path, "report": signed / REPORT}
    command = [word.format(**names) for word in words]
    try:
        code = cli([*command, "--json"])
    except SystemExit as stop:
        code = int(stop.code or 0)
    shown = capsys.readouterr()
    assert code != 0
    document = json.loads(shown.out)
    assert len(shown.out.splitlines()) == 1
    assert document["exit_code"] == code
    contracts = {"verify-v1": "verify-v1", "evidence-pack-verify-v1": "evidence-pack-verify"}
    if contract := contracts.get(document["format_version"]):
        validate(document, contract, "output")
    if document["format_version"] == "verify-v1":
        assert document["summary"] == {"ok": False, "reason": "malformed"}
        lines = [document["error"]["context"]["message"]]
    else:
        assert document["ok"] is False
        lines = document.get("errors") or document["issues"]
    assert all(lines)
    if shown.err:
        assert any(line in escape(shown.err) for line in lines)


def test_a_time_that_is_none_is_a_usage_error(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SOURCE_DATE_EPOCH fixes ``ts``."""
    for epoch, code in (("0", 0), ("x", 2), ("1e9", 2), ("9" * 30, 2)):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)
        assert verify(good, "--json") == code


def test_host_provenance_demands_no_manifest(good: Path) -> None:
    """A report alone."""
    good.with_name("runtime.manifest.json").unlink()
    assert verify(good) == 1
    assert verify(good, "--runtime-provenance", "host") == 0


def test_the_baseline_is_a_run_or_a_report(good: Path, tmp_path: Path) -> None:
    """Every member that a report repeats of the run; a folder may hold that or a report."""
    packs.write_json(tmp_path / "base" / "report.json", RUN)
    assert verify(good, "--baseline", tmp_path / "base") == 0
    assert verify(good, "--baseline", tmp_path / "base", "--profile", "ci") == 0
    assert verify(good, "--baseline", good.parent) == 0
    other = factory.plain(RUN)
    other["evaluation_windows"]["final"]["nll_sum"][0] += 1.0
    packs.write_json(tmp_path / "base" / "report.json", other)
    assert verify(good, "--baseline", tmp_path / "base" / "report.json") == 1
    assert verify(good, "--baseline", tmp_path / "base", "--profile", "ci") == 3
    packs.write_json(tmp_path / "base" / "report.json", {"schema": RUN["schema"]})
    assert verify(good, "--baseline", tmp_path / "base" / "report.json") == 1
    packs.write_json(tmp_path / "base" / "report.json", {})
    assert verify(good, "--baseline", tmp_path / "base" / "report.json") == 1


def test_dev_asks_for_the_truth_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A true FAIL verifies in profile dev and says FAIL; ci and release refuse it."""
    for name, report in (("bad", factory.make_report("prune", 1.6)),
                         ("rejected", factory.make_rejected())):  # fmt: skip
        path = write(tmp_path / name, report)
        capsys.readouterr()
        assert verify(path) == 0
        assert capsys.readouterr().out.splitlines()[0].endswith(" mode=host-bypass says=FAIL")
        assert verify(path, "--json") == 0
        assert json.loads(capsys.readouterr().out)["results"][0]["passes"] is False
        assert verify(path, "--profile", "ci") == verify(path, "--profile", "release")
        assert verify(path, "--profile", "ci") in (1, 3)
        assert cli(["gate", str(path)]) == 1


def test_the_tolerance_is_of_recomputed_numbers(tmp_path: Path) -> None:
    """A point that departs a little is a mismatch, or within what was asked for."""
    report = factory.plain(CLEAN)
    report["primary_metric"]["analysis_point_final"] *= 1 + 1e-7
    path = write(tmp_path / "r", report)
    assert verify(path) == 1
    assert verify(path, "--tolerance", "1e-5") == 0


def test_guard_warnings_fail_when_asked(tmp_path: Path) -> None:
    """--warning-policy fail and --fail-on-warnings are the same."""
    spread = {factory.DOWN: 0.81}  # a scale is proposed, and does not help
    path = write(tmp_path / "r", factory.make_report("quant_8bit_clean", 1.004, spread=spread))
    assert verify(path) == verify(path, "--warning-policy", "pass") == 0
    assert verify(path, "--warning-policy", "fail") == 1
    assert verify(path, "--fail-on-warnings") == 1


# --- runtime-verify -------------------------------------------------------------------------


def check(report: Path, manifest: Path, *words: str) -> int:
    """``advanced runtime-verify``; the exit code."""
    named = ["--report", str(report), "--manifest", str(manifest)]
    return cli(["advanced", "runtime-verify", *named, *words])


def test_runtime_verify(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A container run that is bound to the report; the manifest may have any name."""
    manifest = good.with_name("other.json")
    packs.write_json(manifest, container(good.read_bytes()))
    assert check(good, manifest, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {
        "format_version": "runtime-verify-v1",
        "ok": True,
        "exit_code": 0,
        "errors": [],
        "report": str(good),
        "manifest": str(manifest),
    }
    assert check(good, manifest) == 0
    assert capsys.readouterr().out == f"RUNTIME OK {good}\n"


def test_runtime_verify_lists_every_error(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A host run, another report, nothing usable: exit 1, and what is wrong."""
    host, other = good.with_name("runtime.manifest.json"), good.with_name("other.json")
    assert check(good, host) == 1
    packs.write_json(other, container(b"other", ref="invarlock@sha256:" + "b" * 64))
    assert check(good, other, "--json") == 1
    assert len(json.loads(capsys.readouterr().out.splitlines()[-1])["errors"]) == 2
    (good.parent / "text").write_text("\x1b[")
    text, missing = good.parent / "text", good.parent / "missing"
    for report, manifest in ((text, host), (good, text), (missing, host), (good, missing)):
        assert check(report, manifest, "--json") == 1
        assert len(json.loads(capsys.readouterr().out)["errors"]) == 1
    with pytest.raises(SystemExit) as caught:
        cli(["advanced", "runtime-verify", "--report", str(good)])
    assert caught.value.code == 2
