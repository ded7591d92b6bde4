"""A running server as subject: the metric alone, from log-probabilities that are proved first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_factory import make_llama
from completion_server import Completions, serving
from measuring_factory import World, change, read

from invarlock.cli import main
from invarlock.errors import ConfigError, InputError, InvarlockError, MeasurementError
from invarlock.run import server
from invarlock.run.measure import RunWindows
from invarlock.run.server import Address, Server, measure_server

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
    "generated only": "no log-probabilities of the tokens of a prompt",
    "shifted": "not those of the next token",
    "above zero": "above zero, which are none; found 0.5",
    "short": "HTTP 400.*maximum context length",
    "moved": "HTTP 302",
    "page": "does not answer as OpenAI's servers do",
    "always busy": "no answer after 4 tries: HTTP 503",
}


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
            asked._require_tokens(ids, ["the", " state", "x", *["y"] * len(ids)])


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
        assert main(command(world, tmp_path / "out", address)) == 0
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
        assert main(command(world, tmp_path / "out", address)) == 0
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
