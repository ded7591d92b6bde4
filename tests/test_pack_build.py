"""Keys and building: what gets into a pack, that it is atomic, and what is refused."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pack_factory as packs
import pytest
import report_factory as factory

from invarlock.cli import main as cli
from invarlock.errors import ConfigError
from invarlock.evidence import PackError, keys
from invarlock.evidence import build as building
from invarlock.evidence.collect import from_run
from invarlock.evidence.manifest import LevelEvidence, evidence_level


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A suite whose verdict is PASS."""
    return packs.write_suite(tmp_path_factory.mktemp("suite") / "out")


# --- keys -----------------------------------------------------------------------------------


def test_keygen_makes_a_private_file(tmp_path: Path) -> None:
    """The private key is 119 bytes of PEM with mode 0600, whatever the umask."""
    old = os.umask(0)
    try:
        key = packs.new_key(tmp_path / "a" / "pack.pem")
    finally:
        os.umask(old)
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert len(key.read_bytes()) == 119
    public = keys.parse_public_pem((key.parent / "pack.pub.pem").read_text())
    assert public == keys.load_signing_key(key).public


def test_keygen_mode_is_set_when_the_file_is_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No moment exists at which the key's file has another mode than 0600."""
    modes = []
    real = os.open

    def spy(path: str, flags: int, mode: int = 0o777, **kw: int) -> int:
        if flags & os.O_CREAT:
            modes.append((mode, bool(flags & os.O_EXCL)))
        return real(path, flags, mode, **kw)

    monkeypatch.setattr(os, "open", spy)
    packs.new_key(tmp_path / "pack.pem")
    assert modes[0] == (0o600, True)


@pytest.mark.parametrize("existing", ["pack.pem", "pack.pub.pem"])
def test_keygen_never_overwrites(tmp_path: Path, existing: str) -> None:
    """An existing private or public key is left as it is, and nothing else is written."""
    (tmp_path / existing).write_text("mine")
    assert cli(["advanced", "evidence-pack", "keygen", "--out", str(tmp_path / "pack.pem")]) == 2
    assert packs.snapshot(tmp_path) == {existing: b"mine"}


def test_keygen_if_missing_keeps_the_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--if-missing keeps a key that is there, says so, and restores its public half."""
    words = [
        "advanced",
        "evidence-pack",
        "keygen",
        "--out",
        str(tmp_path / "k.pem"),
        "--if-missing",
    ]
    assert cli(words) == 0
    before = packs.snapshot(tmp_path)
    (tmp_path / "k.pub.pem").unlink()
    assert cli(words) == 0
    assert packs.snapshot(tmp_path) == before
    assert "kept" in capsys.readouterr().out


@pytest.mark.parametrize("command", [["advanced", "evidence-pack", "keygen"], ["keygen"]])
@pytest.mark.parametrize("option", [[], ["--out"]])
def test_the_key_is_named_by_its_path_alone_or_by_an_option(
    tmp_path: Path, command: list[str], option: list[str]
) -> None:
    """``keygen PATH``, as published, and ``keygen --out PATH`` make the same two files."""
    assert cli([*command, *option, str(tmp_path / "k.pem")]) == 0
    assert sorted(packs.snapshot(tmp_path)) == ["k.pem", "k.pub.pem"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "no private key is named; expected PATH, or --out FILE"),
        (["a.pem", "--out", "b.pem"], "two private keys are named; expected PATH, or --out FILE"),
    ],
)
def test_keygen_wants_one_path(
    words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """None, or two different ones: one line, exit 2."""
    assert cli(["keygen", *words]) == 2
    assert line in capsys.readouterr().err


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_key_that_others_can_read_is_refused(suite: Path, tmp_path: Path, mode: int) -> None:
    """Group or other permission on the signing key: exit 2 and no pack."""
    key = packs.new_key(tmp_path / "pack.pem")
    key.chmod(mode)
    assert packs.build(suite, tmp_path / "pack", key=key) == 2
    assert not (tmp_path / "pack").exists()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no key",
        "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
        "\xff",
    ],
)
def test_what_is_no_private_key_is_refused(tmp_path: Path, text: str) -> None:
    """Anything but one PKCS#8 PEM block of Ed25519: exit 4."""
    path = tmp_path / "k.pem"
    path.write_bytes(text.encode("latin-1"))
    path.chmod(0o600)
    with pytest.raises(PackError) as caught:
        keys.load_signing_key(path)
    assert caught.value.exit_code == 4


def test_the_secret_is_not_shown(tmp_path: Path) -> None:
    """A key's repr names its fingerprint and no secret byte."""
    key = keys.load_signing_key(packs.new_key(tmp_path / "k.pem"))
    assert repr(key) == f"SigningKey({keys.fingerprint(key.public)})"


# --- contents -------------------------------------------------------------------------------


def test_a_pack_verifies_and_holds_only_the_allow_list(
    suite: Path, key: Path, tmp_path: Path
) -> None:
    """A signed pack passes strict replay; no weights, run reports or events are in it."""
    assert packs.build(suite, tmp_path / "pack", "--require-signature", key=key) == 0
    assert packs.verify(tmp_path / "pack", "--strict", "--replay") == 0
    names = {Path(path).name for path in packs.snapshot(tmp_path / "pack")}
    assert not names & {"model.safetensors", "report.json", "events.jsonl", "pack.pem"}
    assert f"{packs.DAMAGE}/error_metadata.json" in packs.snapshot(tmp_path / "pack")


def test_a_pack_of_a_run_holds_what_was_recorded_beside_the_reports(
    key: Path, tmp_path: Path
) -> None:
    """Re-checks, pages, the baseline's run and the times: verified with replay, and removed by a
    build that finds one wrong."""
    out = packs.add_records(packs.write_suite(tmp_path / "out"))
    assert packs.build(out, tmp_path / "pack", key=key) == 0
    held = packs.snapshot(tmp_path / "pack")
    for folder in (packs.CLEAN, packs.STRESS, packs.DAMAGE):
        assert {f"{folder}/verify.json", f"{folder}/evaluation.html"} <= set(held)
    assert f"reports/{packs.MODEL}/baseline/report.json" in held
    assert "results/analysis/evaluation_optimization_summary.json" in held
    assert not any(str(tmp_path).encode() in data for data in held.values())
    assert packs.verify(tmp_path / "pack", "--strict", "--replay") == 0
    wrong = next(out.rglob("verify.json"))
    packs.edit_json(wrong, lambda d: d["results"][0].update(passes=None))
    assert packs.build(out, tmp_path / "other", key=key) == 7


def test_named_reports_get_their_pages(key: Path, tmp_path: Path) -> None:
    """`build --report` packs the page that lies beside a report, and makes one where none does."""
    out = packs.write_suite(tmp_path / "out")
    report = next(out.rglob("quant_8bit_clean/run_1")) / "evaluation.report.json"
    verdict = tmp_path / "final_verdict.json"
    packs.write_json(verdict, {"verdict": "PASS"})
    build = ["advanced", "evidence-pack", "build"]
    words = ["--report", str(report), "--final-verdict", str(verdict), "--signing-key", str(key)]
    page = "reports/report-001/evaluation.html"
    assert packs.cli([*build, str(tmp_path / "beside"), *words]) == 0
    assert (tmp_path / "beside" / page).read_text() == "<p>report</p>\n"
    (report.parent / "evaluation.html").unlink()
    assert packs.cli([*build, str(tmp_path / "made"), *words]) == 0
    assert "<html" in (tmp_path / "made" / page).read_text()
    assert packs.verify(tmp_path / "made", "--strict") == 0


def test_a_pack_has_a_time_only_where_it_is_given(
    suite: Path, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time of SOURCE_DATE_EPOCH."""
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    assert packs.build(suite, tmp_path / "a", key=key) == 0
    assert "generated_at" not in json.loads((tmp_path / "a/manifest.json").read_text())
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    assert packs.build(suite, tmp_path / "c", key=key) == 0
    manifest = json.loads((tmp_path / "c/manifest.json").read_text())
    assert manifest["generated_at"] == "1970-01-02T00:00:00Z"


def test_the_manifest_repeats_settings_pins_and_files(
    suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a run recorded of itself stands in the manifest; no folder of a machine does."""
    assert packs.build(suite, tmp_path / "pack") == 0
    assert "names the folder" not in capsys.readouterr().err
    manifest = json.loads((tmp_path / "pack/manifest.json").read_text())
    settings = {"network_mode": "offline", "determinism": "strict", "repeats": 0}
    assert manifest["invocation"]["parameters"].items() >= (settings | {"suite": "smoke"}).items()
    model = factory.MODEL
    assert manifest.items() >= (settings | {"model_list": [model]}).items()
    assert manifest["model_licenses"] == {model: "mit"}
    assert manifest["models"] == [{"model_id": model, "revision": ""}]
    listed = (tmp_path / "pack/checksums.sha256").read_text().splitlines()
    paths = [line.partition("  ")[2] for line in listed]
    assert manifest["artifacts"] == [path for path in paths if not path.startswith("reports/")]
    assert {"README.md", "metadata/config.json"} < set(manifest["artifacts"]) < set(paths)
    assert {"run_dir", "generated_at", "determinism_repeats"}.isdisjoint(manifest)


def test_a_comparison_that_is_none_is_refused(
    suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An analysis of another shape: one line about the pack that would not verify."""
    (tmp_path / "determinism_repeats.json").write_text('{"requested": 2}')
    analysis = ("--analysis", str(tmp_path / "determinism_repeats.json"))
    assert packs.build(suite, tmp_path / "pack", *analysis) == 7
    assert "would not verify: results/analysis/determinism_repeats" in capsys.readouterr().err


@pytest.mark.parametrize("change", [packs.harmless_stress, packs.failed_clean])
def test_a_fail_verdict_is_packed_and_says_so(key: Path, tmp_path: Path, change: object) -> None:
    """FAIL is packed, first in the README; it verifies as an honest record, not in profile ci."""
    out = packs.write_suite(tmp_path / "out", change=change)  # type: ignore[arg-type]
    pack = tmp_path / "pack"
    assert packs.build(out, pack, key=key) == 0
    assert "FAIL" in (pack / "README.md").read_text().splitlines()[0]
    assert packs.verify(pack, "--strict", "--replay") == 0
    assert packs.verify(pack, "--profile", "ci") == 7


def test_no_key_gives_a_warning_or_an_error(
    suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a key the pack is unsigned with a warning; --require-signature refuses."""
    assert packs.build(suite, tmp_path / "a", "--require-signature") == 2
    assert not (tmp_path / "a").exists()
    assert packs.build(suite, tmp_path / "b") == 0
    assert "not signed" in capsys.readouterr().err
    assert not (tmp_path / "b/manifest.signature.json").exists()


def named(pack: Path, verdict: Path, *reports: Path, key: Path | None = None) -> int:
    """``evidence-pack build`` of named reports; the exit code."""
    words = ["advanced", "evidence-pack", "build", str(pack), "--final-verdict", str(verdict)]
    signing = ["--signing-key", str(key)] if key else []
    return cli([*words, "--report", *map(str, reports), *signing])


def test_named_reports_are_packed_as_published(key: Path, tmp_path: Path) -> None:
    """--report makes reports/report-NNN; the verdict is then only believed."""
    suite = packs.write_suite(tmp_path / "out", ["noop_clean"])
    pack, verdict = tmp_path / "pack", suite / "reports/final_verdict.json"
    report = suite / packs.MODEL / "reports/noop_clean/run_1/evaluation.report.json"
    assert named(pack, verdict, report, key=key) == 0
    assert (pack / "reports/report-001/runtime.manifest.json").is_file()
    assert packs.verify(pack, "--strict") == 0
    assert packs.verify(pack, "--replay") == 7
    assert cli(["gate", str(pack)]) == 7


def test_a_verdict_about_other_evaluations_is_not_packed(
    suite: Path, key: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The verdict of one model beside the reports of another, of fewer or of more: exit 7."""
    reports = sorted(suite.rglob("evaluation.report.json"))
    verdict, other = suite / "reports/final_verdict.json", tmp_path / "verdict.json"
    document = json.loads(verdict.read_text())
    for record in document["records"]:
        record["model"] = "acme/huge-llama"
    packs.write_json(other, document)
    assert named(tmp_path / "a", other, *reports, key=key) == 7
    assert "does not speak of reports/report-001" in capsys.readouterr().err
    for index, chosen in enumerate((reports[:2], [*reports, reports[0]])):
        for signing in (key, None):
            assert named(tmp_path / f"{index}", verdict, *chosen, key=signing) == 7
    assert not (tmp_path / "a").exists()
    packs.write_json(other, {"verdict": "PASS"})  # says nothing that could be compared
    assert named(tmp_path / "b", other, *reports[:1], key=key) in (0, 7)


def test_source_and_environment_are_referenced(suite: Path, key: Path, tmp_path: Path) -> None:
    """They are packed and referenced; a pack of host runs stays at medium."""
    packs.write_json(tmp_path / "repo.json", {"commit": "0" * 40})
    packs.write_json(tmp_path / "env.json", {"python_version": "3.11"})
    options = ("--source-repo", str(tmp_path / "repo.json"))
    options += ("--environment", str(tmp_path / "env.json"))  # type: ignore[assignment]
    assert packs.build(suite, tmp_path / "pack", *options, key=key) == 0
    manifest = json.loads((tmp_path / "pack/manifest.json").read_text())
    assert manifest["environment"]["path"] == "metadata/environment.json"
    assert manifest["invocation"]["config_source"]["path"] == "metadata/source_repo.json"
    assert manifest["evidence_level"] == "medium"


def test_evidence_level_table() -> None:
    """high needs everything; a failed report or a host run caps it at medium; nothing is low."""
    full = LevelEvidence(True, True, 1, 0, True, True, True)
    assert evidence_level(full) == "high"
    caps = [{"failed_reports": 1}, {"has_source": False}, {"has_environment": False}]
    for change in [*caps, {"all_container": False}]:
        assert evidence_level(LevelEvidence(**{**vars(full), **change})) == "medium"
    for change in [{"has_subject": False}, {"bound": False}, {"clean_reports": 0}]:
        assert evidence_level(LevelEvidence(**{**vars(full), **change})) == "low"


# --- refusals and atomicity -----------------------------------------------------------------


def test_an_existing_pack_is_refused(suite: Path, tmp_path: Path) -> None:
    """A folder with content, a file or a link at the target: exit 2, untouched."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    before = packs.snapshot(tmp_path)
    for name in ("full", "file", "link"):
        assert packs.build(suite, tmp_path / name) == 2
    assert packs.snapshot(tmp_path) == before


def test_an_empty_folder_is_replaced(suite: Path, tmp_path: Path) -> None:
    """An empty folder at the target is no obstacle."""
    (tmp_path / "pack").mkdir()
    assert packs.build(suite, tmp_path / "pack") == 0


@pytest.mark.parametrize("step", ["_finish", "_fsync_tree", "_put_in_place", "_self_check"])
def test_a_failure_leaves_nothing(
    suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Whatever step fails, neither a pack nor its stage is left."""

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(building, step, fail)
    assert packs.build(suite, tmp_path / "pack") == 3
    assert list(tmp_path.iterdir()) == []


def test_a_pack_that_appears_while_another_is_built_stays(
    suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two builds past the claim of the command, which makes the later one wait: the first pack
    to be put in place is whole, the other build is refused and leaves nothing."""
    request = building.BuildRequest(tmp_path / "pack", from_run(suite))
    finish = building._finish

    def overtaken(*words: object) -> building.Built:
        monkeypatch.setattr(building, "_finish", finish)
        building.build_pack(request)
        return finish(*words)  # type: ignore[arg-type]

    monkeypatch.setattr(building, "_finish", overtaken)
    with pytest.raises(ConfigError, match="appeared while the pack was built") as caught:
        building.build_pack(request)
    assert caught.value.exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["pack"]
    monkeypatch.setenv("INVARLOCK_ALLOW_UNVERIFIED_PROVENANCE", "1")
    assert packs.verify(tmp_path / "pack") == 0


def test_a_report_that_contradicts_itself_is_not_packed(tmp_path: Path) -> None:
    """The stage is verified before it becomes a pack: exit 7, nothing written."""
    out = packs.write_suite(tmp_path / "out")
    report = out / packs.MODEL / "reports/quant_8bit_clean/run_1/evaluation.report.json"
    packs.edit_json(report, lambda r: r["primary_metric"].update(ratio_vs_baseline=1.0))
    packs.rebind(out)
    assert packs.build(out, tmp_path / "pack") == 7
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("name", "code"),
    [("manifest", 4), ("manifest.signature", 4), ("environment", 4), ("..", 4), ("a/b", 4)],
)
def test_reserved_material_names_are_refused(
    suite: Path, tmp_path: Path, name: str, code: int
) -> None:
    """A material can take neither a control file's name nor that of another input."""
    packs.write_json(tmp_path / "m.json", {})
    options = ["--environment", str(tmp_path / "m.json"), "--material", f"{name}={tmp_path}/m.json"]
    assert packs.build(suite, tmp_path / "pack", *options) == code


@pytest.mark.parametrize(
    ("where", "text"),
    [
        (f"{packs.MODEL}/reports/noop_clean/run_1/outcome.json", None),
        (f"{packs.MODEL}/reports/noop_clean/run_1/runtime.manifest.json", None),
        ("reports/final_verdict.json", None),
        ("state/scenarios.json", None),
        (f"{packs.MODEL}/baseline.json", '{"a": 1, "a": 2}'),
        (f"{packs.MODEL}/baseline.json", "[]"),
        ("state/model_revisions.json", '{"a": NaN}'),
    ],
)
def test_missing_or_unusable_inputs_are_refused(
    tmp_path: Path, where: str, text: str | None
) -> None:
    """Every file that has to be there is, and is strict JSON: else exit 4 and no pack."""
    out = packs.write_suite(tmp_path / "out")
    if text is None:
        (out / where).unlink()
    else:
        (out / where).write_text(text)
    assert packs.build(out, tmp_path / "pack") == 4
    assert not (tmp_path / "pack").exists()


def test_release_review_needs_its_conditions(suite: Path, tmp_path: Path, key: Path) -> None:
    """--release-review without profile, assurance and key is a usage error."""
    assert packs.build(suite, tmp_path / "pack", "--release-review", key=key) == 2


def test_a_readme_must_not_hide_a_fail(tmp_path: Path) -> None:
    """One's own README has to say FAIL in its first line, too."""
    out = packs.write_suite(tmp_path / "out", change=packs.failed_clean)
    (tmp_path / "mine.md").write_text("# All fine\n")
    assert packs.build(out, tmp_path / "pack", "--readme", str(tmp_path / "mine.md")) == 4
