"""A running server as subject: the metric alone, from log-probabilities that are proved first."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import warm
from checkpoint_factory import make_llama
from completion_server import Completions, serving
from measuring_factory import World, change, documents, main_forking, read
from repository_copy import ROOT, link_repository, quiet_environment, snakemake
from settings_factory import refusal, settings

from invarlock.cli import main
from invarlock.config import Settings
from invarlock.errors import ConfigError, InputError, InvarlockError, MeasurementError
from invarlock.evidence.keys import fingerprint, load_signing_key
from invarlock.preflight import doubts, refusals
from invarlock.run import server
from invarlock.run.measure import RunWindows
from invarlock.run.server import Address, Server, measure_server
from invarlock.run.server_ways import Token
from invarlock.workflow import check_settings

Document = dict[str, Any]


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Busy servers are asked again at once."""
    monkeypatch.setattr(server, "PAUSE", 0.0)


@pytest.fixture(scope="module")
def few(world: World, tmp_path_factory: pytest.TempPathFactory) -> RunWindows:
    """Some of the world's windows."""
    path = tmp_path_factory.mktemp("few") / "windows.json"
    document = json.loads(world.windows.read_text())
    for arm in ("preview", "final"):
        document[arm] = document[arm][:6]
    document["counts"] = {"preview": 6, "final": 6}
    path.write_text(json.dumps(document))
    return RunWindows.read(path, None)


def command(world: World, out: Path, backend: str, *more: str) -> list[str]:
    """An evaluation of a server."""
    words = world.command(Path("none"), out, *more)
    at = words.index("--subject")
    return [*words[:at], "--backend", backend, *words[at + 2 :]]


def test_the_losses_are_those_of_the_model(world: World, few: RunWindows) -> None:
    """Token by token those of transformers, with one request a window and few to begin with."""
    completions = Completions(world.baseline)
    with serving(completions) as address:
        asked, measured = measure_server(address, world.baseline, few)
    windows = [*few.content.preview, *few.content.final]
    found = [*measured.arms["preview"].logprob.values(), *measured.arms["final"].logprob.values()]
    for window, mine in zip(windows, found, strict=True):
        ids = torch.tensor([list(window.tokens)])
        with torch.inference_mode():
            rows = completions.model(ids).logits[0].log_softmax(-1)
        wanted = rows[:-1].gather(1, ids[0, 1:, None])[:, 0]
        assert torch.allclose(torch.from_numpy(mine), wanted, atol=1e-5)
    assert len(completions.asked) < len(windows) + 12
    assert asked.asked == len(completions.asked) + 1
    assert completions.asked[-1]["prompt"] == list(windows[-1].tokens)
    assert completions.keys == [None] * len(completions.keys)


REFUSED = {
    "no echo": "no log-probabilities of prompts",
    "generated only": r"found echo: 0 of \d+ tokens, prompt_logprobs: 0 of \d+ tokens, .*HTTP 404",
    "shifted": "not those of the next token",
    "above zero": "above zero, which are none; found 0.5",
    "short": "HTTP 400.*maximum context length",
    "moved": "HTTP 302",
    "page": "does not answer as OpenAI's servers do",
    "always busy": "no answer after 4 tries: HTTP 503",
}


SPOKEN = {
    "": ("echo of /v1/completions", "token ids"),
    "prompt_logprobs": ("prompt_logprobs of /v1/completions", "token ids"),
    "sglang": ("input_token_logprobs of /generate", "token ids"),
}


@pytest.mark.parametrize("way", SPOKEN)
def test_each_server_is_asked_in_its_own_way(
    world: World, few: RunWindows, sharp: Path, way: str
) -> None:
    """The same numbers, whichever it speaks; the report says which."""
    with serving(Completions(sharp, way)) as address:
        measured = measure_server(address, world.baseline, few)[1]
    assert measured.ran is not None
    detail = measured.ran.detail
    assert (detail["way"], detail["prompts"]) == SPOKEN[way]
    with serving(Completions(sharp)) as address:
        plain = measure_server(address, world.baseline, few)[1]
    for arm, found in measured.arms.items():
        for number, row in found.logprob.items():
            assert row == pytest.approx(plain.arms[arm].logprob[number], abs=1e-6)


def test_tgi_is_asked_in_text(sharp: Path) -> None:
    """It takes no token ids, names those that it read, and gives numbers only where it is told to
    when it starts."""
    completions = Completions(sharp, "tgi")
    ids = completions.tokenizer.encode("the state of the union " * 6).ids
    with serving(completions) as address:
        asked = Server(Address.read(address), tokenizer=completions.tokenizer)
        asked.choose()
        asked.prove(ids)
        assert (asked.way.name, asked.as_ids) == ("prefill", False)
        assert asked.logprobs(ids) == pytest.approx(completions.rows(ids)[1][1:-1], abs=1e-5)
        letters = [completions.tokenizer.token_to_id(letter) for letter in "the"]
        with pytest.raises(InputError, match="cuts a text into other tokens"):
            asked.logprobs(letters + ids)
        completions.way = "tgi without prefill"
        with pytest.raises(InputError, match="TGI with --enable-prefill-logprobs"):
            asked.prove(ids)


def test_a_refusal_names_the_server_and_what_reads_its_file(sharp: Path) -> None:
    """By what the server calls itself."""
    completions = Completions(sharp, "generated only")
    completions.owner = "llamacpp"
    ids = completions.tokenizer.encode("the state of the union " * 6).ids
    with serving(completions) as address:
        asked = Server(Address.read(address), tokenizer=completions.tokenizer)
        asked.choose()
        with pytest.raises(InputError, match=r"llama-server gives no.*the \.gguf file"):
            asked.prove(ids)


def test_a_way_that_names_no_model_is_for_one_model(world: World, sharp: Path) -> None:
    """``/generate`` of a server with several would answer for whichever it likes."""
    completions = Completions(sharp, "sglang")
    completions.names = ["one", "two"]
    ids = completions.tokenizer.encode("the state of the union " * 6).ids
    with serving(completions) as address:
        asked = Server(Address.read(f"{address}#two"), tokenizer=completions.tokenizer)
        asked.choose()
        with pytest.raises(InputError, match="gives no log-probabilities of prompts") as caught:
            asked.prove(ids)
    assert "input_token_logprobs" not in str(caught.value)


@pytest.fixture(scope="module")
def sharp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that is sure of what it says, unlike a random one."""
    folder = make_llama(tmp_path_factory.mktemp("sharp") / "model", hidden=32, tied=False)
    return change(folder, lambda t: t.update({"lm_head.weight": t["lm_head.weight"] * 40}))


@pytest.mark.parametrize("way", REFUSED)
def test_what_a_server_lacks_is_one_line(
    world: World, few: RunWindows, sharp: Path, way: str
) -> None:
    """Also one whose numbers are those of another position, as llama-cpp-python's are."""
    with (
        serving(Completions(sharp, way)) as address,
        pytest.raises((InputError, MeasurementError), match=REFUSED[way]) as caught,
    ):
        measure_server(address, world.baseline, few)
    assert "\n" not in str(caught.value)


def test_a_busy_server_is_asked_again(world: World, few: RunWindows) -> None:
    """And a server that is not there is told of in one line."""
    completions = Completions(world.baseline, "busy")
    with serving(completions) as address:
        measured = measure_server(address, world.baseline, few)[1]
    assert len(measured.arms["final"].logprob) == 6
    with pytest.raises(MeasurementError, match=r"no answer after 4 tries.*is the server running"):
        measure_server(address, world.baseline, few)


def test_text_is_checked_token_by_token(world: World) -> None:
    """Where only text is taken, the server's tokens have to be the baseline's."""
    completions = Completions(world.baseline, "text")
    text = "the state of the union is a message to the people and to the congress"
    ids = completions.tokenizer.encode(text).ids
    with serving(completions) as address:
        asked = Server(Address.read(address), tokenizer=completions.tokenizer)
        asked.choose()
        asked.prove(ids)
        assert not asked.as_ids
        asked.require_text([ids])
        by_text = asked.logprobs(ids)
        asked.as_ids, completions.way = True, ""
        assert by_text == pytest.approx(asked.logprobs(ids), abs=1e-6)
        asked.as_ids = False
        letters = [completions.tokenizer.token_to_id(letter) for letter in "the"]
        with pytest.raises(InputError, match="as text alone, and 1 of 2 windows"):
            asked.require_text([ids, letters])
        with pytest.raises(InputError, match="cuts a text into other tokens"):
            asked._require_tokens(ids, [Token(0, None, w) for w in ("the", " state", "x")])


def test_which_model_and_which_key(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The only model, or the one that is named; the key goes to the server and nowhere else."""
    completions = Completions(world.baseline)
    completions.names = ["one", "two"]
    monkeypatch.setenv("INVARLOCK_BACKEND_KEY", "sesame")
    with serving(completions) as address:
        with pytest.raises(InputError, match="several models; found one, two"):
            Server(Address.read(address)).choose()
        with pytest.raises(InputError, match="has no model three"):
            Server(Address.read(f"{address}/v1#three")).choose()
        chosen = Server(Address.read(f"{address}/v1/#two"))
        chosen.choose()
    assert chosen.model == "two"
    assert set(completions.keys) == {"Bearer sesame"}
    assert "sesame" not in repr(chosen)


@pytest.mark.parametrize(
    "text",
    ["http://h", "openai:ftp://h", "openai:", "openai:http://", "openai:http://u:p@h",
     "openai:http://h:x", "openai:http://h/v1?key=1"],
)  # fmt: skip
def test_what_is_no_address(text: str) -> None:
    """One line, before anything is measured."""
    with pytest.raises(ConfigError) as caught:
        Address.read(text)
    assert "u:p" not in str(caught.value)


def test_a_server_never_passes(world: World, tmp_path: Path, capsys: Any) -> None:
    """With nothing found it is inconclusive, by the metric alone; the report says so, verified."""
    with serving(Completions(world.baseline)) as address:
        assert main_forking(command(world, tmp_path / "out", address)) == 0
    report = read(tmp_path / "out")
    assert report["assurance"]["outcome"] == "inconclusive"
    assert report["assurance"]["report_local_verdict"] == "fail"
    assert report["primary_metric"]["decision"] == "pass"
    assert report["primary_metric"]["ratio_vs_baseline"] == pytest.approx(1, abs=1e-4)
    for name in ("invariants", "spectral", "rmt", "representation", "variance", "distribution"):
        assert report[name]["evaluated"] is False
        assert "no weights" in report[name]["reason"]
    assert report["context"]["runs"] == "server"
    ran = report["meta"]["execution"]
    assert (ran["format"], ran["backend"], ran["detail"]["model"]) == ("server", "openai", "small")
    manifest = json.loads((tmp_path / "out/runtime.manifest.json").read_text())
    assert '"allow_network": true' in json.dumps(manifest)
    # read back and judged again
    assert main(["verify", str(tmp_path / "out/evaluation.report.json"), "--profile", "dev"]) == 0
    told = capsys.readouterr().out
    assert "metric only" in told  # of the evaluation
    assert "outcome=inconclusive replayed=yes" in told


def test_a_server_of_a_worse_model_fails(
    world: World, sharp: Path, tmp_path: Path, capsys: Any
) -> None:
    """What is measured and bad stays bad."""
    with serving(Completions(sharp)) as address:
        assert main_forking(command(world, tmp_path / "out", address)) == 0
    assert read(tmp_path / "out")["assurance"]["outcome"] == "fail"
    assert "FAIL" in capsys.readouterr().out


def test_what_does_not_go_together(world: World, tmp_path: Path, capsys: Any) -> None:
    """Subject and backend, neither, and a strict claim."""
    for words, line in (
        (world.command(world.baseline, tmp_path / "o", "--backend", "openai:http://h"), "both"),
        (command(world, tmp_path / "o", "openai:http://h", "--assurance", "strict", "--profile",
                 "ci"), "strict assurance is about weights too"),
        (command(world, tmp_path / "o", "http://h"), "not a server"),
    ):  # fmt: skip
        assert main(words) == InvarlockError.exit_code + 1
        assert line in capsys.readouterr().err


# --- as the subject of a suite, and of a comparison -----------------------------------------------


@dataclass(frozen=True)
class Desk:
    """A baseline, a text and a key, as a user has them."""

    root: Path

    def compare(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A comparison of the baseline, started in the folder."""
        home = {"XDG_CACHE_HOME": str(self.root / "cache"), "PYTHONPATH": str(ROOT)}
        return subprocess.run(
            [warm.python(), "-m", "invarlock", "compare", "base", *words, "--text", "text.jsonl",
             "--device", "cpu", "--threads", "1"],
            cwd=self.root, env=quiet_environment() | home, capture_output=True, text=True,
            check=False,
        )  # fmt: skip


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """On a tiny model."""
    root = tmp_path_factory.mktemp("desk")
    make_llama(root / "base", hidden=32, seed=1)
    rows = [json.dumps({"text": text}) + "\n" for text in documents()]
    (root / "text.jsonl").write_text("".join(rows))
    assert main(["keygen", str(root / "key.pem")]) == 0
    return Desk(root)


def verified(pack: Path, key: Path, capsys: Any) -> str:
    """What a strict verification with replay says of a signed pack, with its signer pinned."""
    words = ["advanced", "evidence-pack", "verify", str(pack), "--strict", "--replay"]
    signer = fingerprint(load_signing_key(key).public)
    assert main([*words, "--expected-fingerprint", signer]) == 0, capsys.readouterr().out
    return str(capsys.readouterr().out)


def test_a_suite_takes_a_server_and_its_pack_verifies(
    desk: Desk, tmp_path: Path, capsys: Any
) -> None:
    """From the settings to a signed pack: inconclusive, with nothing said of files or weights; a
    repeated command asks the server for nothing."""
    repository = link_repository(tmp_path / "repository")
    completions = Completions(desk.root / "base")
    with serving(completions) as address:
        config = (
            "suite=byoe", f"baseline={desk.root / 'base'}", f"backend={address}", "out=out",
            f"text=local:{desk.root / 'text.jsonl'}", "scenarios=byoe", "calibrations=",
            "calibration={seeds: 3, windows: 8}", f"signing_key={desk.root / 'key.pem'}",
            "windows={seq_len: 140, preview: 180, final: 180, seed: 43}",
        )  # fmt: skip
        done = snakemake(repository, "pack", "verify_pack", "--cores", "1", config=config)
        assert done.returncode == 0, done.stderr[-3000:]
        asked = len(completions.asked)
        assert asked < 2 * 180 + 20
        again = snakemake(repository, "pack", "--cores", "1", config=config)
        assert "Nothing to be done" in again.stderr
        assert len(completions.asked) == asked
    out = repository / "out"
    assert "VERIFIED: verdict INCONCLUSIVE" in verified(
        out / "evidence_pack", desk.root / "key.pem", capsys
    )
    told = (out / "reports/final_verdict.txt").read_text()
    assert "VERDICT: INCONCLUSIVE" in told
    assert "evaluate the folder or file that the server loads" in told
    assert "windows.preview" not in told
    folder = out / "base/reports/byoe/run_1"
    assert not (folder / "edit_metadata.json").exists()
    page = (folder / "evaluation.md").read_text()
    assert "(model small) gave as log-probabilities of the text, and no weights" in page
    assert "bits" not in page
    assert "Judged by these weights" not in page
    assert "Subject checkpoint" not in page
    assert page.count("What to do |\n| --- | --- | --- |\n| Only losses were seen") == 1
    assert "A check that decides had no evidence" not in page
    assert main(["gate", str(folder / "evaluation.report.json")]) == 8


@pytest.mark.parametrize(("worse", "code", "word"), [(False, 8, "inconclusive"), (True, 1, "fail")])
def test_a_comparison_with_a_server(
    desk: Desk, sharp: Path, capsys: Any, worse: bool, code: int, word: str
) -> None:
    """Exit code, lines, and a pack that verifies."""
    with serving(Completions(sharp if worse else desk.root / "base")) as address:
        done = desk.compare(address, "--quick", "--out", word, "--pack", "key.pem")
    assert done.returncode == code, done.stderr
    assert done.stdout.startswith(f"{word.upper()}: {address} against base")
    assert re.search(
        r"judged +what the server at http://127\S+/v1 \(model small\) gave", done.stdout
    )
    wanted = "open the page, it says where\n" if worse else "next +evaluate the folder or file"
    assert re.search(wanted, done.stdout)
    assert read(desk.root / word)["assurance"]["outcome"] == word
    pack = desk.root / word / "evidence_pack"
    assert f"VERIFIED: verdict {word.upper()}" in verified(pack, desk.root / "key.pem", capsys)


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (("openai:ftp://h",), 2, "SUBJECT: not a server"),
        (("openai:http://127.0.0.1:9", "--accept", "chat_template"), 2, "--accept is about files"),
        (("openai:http://127.0.0.1:9", "--quick"), 3, "is the server running?"),
    ],
)
def test_a_comparison_refuses_before_it_measures(
    desk: Desk, words: tuple[str, ...], code: int, line: str
) -> None:
    """Exit code 1 would be a verdict."""
    done = desk.compare(*words)
    assert (done.returncode, done.stdout) == (code, "")
    assert line in done.stderr
    assert len(done.stderr.splitlines()) == 1


def served(desk: Desk, **given: Any) -> Settings:
    """The settings of a suite with a server."""
    words = {"suite": "byoe", "baseline": str(desk.root / "base"), "backend": "openai:http://h"}
    return settings(text=f"local:{desk.root / 'text.jsonl'}", **{**words, **given})


def test_what_does_not_go_with_the_setting(desk: Desk) -> None:
    """One line each, before any job."""
    base = str(desk.root / "base")
    here = {"suite": "byoe", "baseline": base, "backend": "openai:http://h"}
    assert "/subject does not go with /backend" in refusal(**here, subject=base)
    assert "/accept does not go with /backend" in refusal(**here, accept=["chat_template"])
    kind = "deployable_optimized_subject"
    assert "/artifact_class does not go with /backend" in refusal(**here, artifact_class=kind)
    assert "/backend has no effect with suite smoke" in refusal(backend="openai:http://h")
    with pytest.raises(ConfigError, match=r"--config: not a server.*found http://h") as caught:
        check_settings(served(desk, backend="http://h"), container=False)
    assert "\n" not in str(caught.value)


def test_jobs_that_cannot_reach_a_server(desk: Desk) -> None:
    """In the image there is no network; on a cluster every node has a loopback of its own."""
    mine = served(desk, backend="openai:http://localhost:8000")
    assert [str(e) for e in refusals(mine, False, True)] == []
    assert [str(e) for e in refusals(served(desk), False, True, away=True)] == []
    for line, found in (
        ("does not get; leave out the container profile", refusals(mine, True, True)),
        ("to each of which this address is its own", refusals(mine, False, True, away=True)),
        ("strict assurance is about weights too",
         refusals(served(desk, assurance="strict", profile="ci"), False, False)),
    ):  # fmt: skip
        assert any(line in str(error) for error in found), [str(e) for e in found]


def test_a_server_is_asked_before_the_baseline_is_measured(desk: Desk) -> None:
    """It has to be there and to have the model, where jobs run on this machine."""
    with serving(Completions(desk.root / "base")) as address:
        assert doubts(served(desk, backend=address)) == []
        (error,) = doubts(served(desk, backend=f"{address}#other"))
        assert "has no model other; found small" in str(error)
    (error,) = doubts(served(desk, backend=address))
    assert isinstance(error, InputError)
    assert doubts(served(desk, backend=address), away=True) == []


def test_a_server_that_goes_away_is_no_result(world: World, tmp_path: Path, capsys: Any) -> None:
    """Nothing is recorded of the subject, and a second start asks again."""
    with serving(Completions(world.baseline)) as address:
        pass
    words = command(world, tmp_path / "out", address, "--record-failure")
    assert main(words) == MeasurementError.exit_code
    assert "is the server running?" in capsys.readouterr().err
    assert not (tmp_path / "out/outcome.json").exists()
