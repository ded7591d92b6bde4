"""Records with pictures, from file to verified report, on tiny models for images and text."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from checkpoint_factory import make_llama, weights, write_weights
from measuring_factory import SETTINGS, documents, read

from invarlock.cli import main
from invarlock.errors import InputError
from invarlock.files import sha256_bytes
from invarlock.pictures import MAX_PIXELS, decoded
from invarlock.sources.spec import parse_text_source
from invarlock.windows import read_windows

pytest.importorskip("PIL", reason="pillow reads the pictures")
from picture_factory import (
    make_idefics3,
    make_llava,
    picture,
    picture_records,
    write_picture_records,
)

pytestmark = pytest.mark.usefixtures("in_this_process")
TEXT = "local:q.jsonl?metric=accuracy&image=image"
VALUES = "language_model.model.layers.0.self_attn.v_proj.weight"
DOWN = "language_model.model.layers.1.mlp.down_proj.weight"


def cut(text: str = TEXT, out: str = "w.json", model: str = "m") -> int:
    """Pin a text and cut 14 and 20 windows of it, in the current folder."""
    pin = ["pin", "--suite", "s", "--model", f"acme/tiny=local:{model}", "--text", text]
    if (code := main([*pin, "--out", "r.json"])) != 0:
        return code
    words = ["windows", "--tokenizer", model, "--text", text, "--revisions", "r.json"]
    words += ["--seq-len", "40", "--preview", "14", "--final", "20", "--seed", "5"]
    return main([*words, "--out", out])


def run(model: str = "m", windows: str = "w.json", out: str = "run") -> int:
    """Measure a baseline."""
    return main(["run", "--model", model, "--windows", windows, "--out", out, *SETTINGS])


def evaluate(subject: str, *more: str) -> dict:
    """The report of a subject against the run, without floors."""
    words = ["evaluate", "--baseline", "m", "--subject", subject, "--baseline-report", "run"]
    words += ["--windows", "w.json", "--out", f"{subject}-out", "--tier", "none", *more]
    assert main([*words, *SETTINGS]) == 0
    return read(Path(f"{subject}-out"))


@pytest.fixture(scope="module")
def made(in_this_process: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny LLaVA, forty records, windows of them and a run."""
    root = tmp_path_factory.mktemp("pictures")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        make_llava(root / "m", seed=3)
        write_picture_records(root / "q.jsonl", 40)
        assert cut() == 0
        assert run() == 0
    return root


@pytest.fixture
def place(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That folder as the current one."""
    monkeypatch.chdir(made)
    return made


@pytest.fixture
def fresh(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The model and the records alone, to be changed."""
    for name in ("m", "p"):
        shutil.copytree(made / name, tmp_path / name)
    shutil.copy(made / "q.jsonl", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_pictures_are_named_by_their_bytes_and_kept_beside_the_windows(place: Path) -> None:
    """Every digest is a file of that content, and no path of the records is left."""
    found = read_windows(Path("w.json"))
    assert found.kind == "vision_text"
    rows = [*found.preview, *found.final]
    kept = {path.name for path in Path("w.pictures").iterdir()}
    assert kept == {row.image for row in rows} | {f.sha256 for f in found.processor.values()}
    assert all(sha256_bytes(Path("w.pictures", name).read_bytes()) == name for name in kept)
    assert {row.image for row in rows} <= {sha256_bytes(picture(n)) for n in range(40)}
    assert "p/" not in json.dumps(json.loads(Path("w.json").read_text())["final"])
    assert len({(row.prompt, row.answers, row.label) for row in rows}) < len(rows)


def test_losses_are_those_of_the_library(place: Path) -> None:
    """The processor and the model of the library, called by hand on the files of the records."""
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained("m").eval()
    processor = AutoProcessor.from_pretrained("m")
    report, rows = read(Path("run"), "report.json"), picture_records(40)
    by_picture = {sha256_bytes(picture(n)): n for n in range(40)}
    for record, nll in zip(
        read_windows(Path("w.json")).final,
        report["evaluation_windows"]["final"]["nll_sum"],
        strict=True,
    ):
        number = by_picture[record.image]
        asked = processor(
            text="<image>" + str(rows[number]["prompt"]),
            images=Image.open(Path("p", f"{number}.png")),
            return_tensors="pt",
            add_special_tokens=False,
        )
        answer = torch.tensor([record.answers[record.label]])
        ids = torch.cat([asked["input_ids"], answer], dim=1)
        with torch.no_grad():
            logits = model(input_ids=ids, pixel_values=asked["pixel_values"]).logits
        at = torch.log_softmax(logits[0, -answer.shape[1] - 1 : -1], dim=-1)
        expected = -float(at.gather(1, answer.T).sum())
        assert nll == pytest.approx(expected, rel=1e-4)


def test_a_noop_passes_and_the_report_is_rebuilt_from_its_evidence(place: Path) -> None:
    """The kind of windows and the processor are stated; a changed answer is found."""
    shutil.copytree("m", "noop", dirs_exist_ok=True)
    report = evaluate("noop", "--edit-label", "noop")
    assert report["primary_metric"]["decision"] == "pass"
    assert report["representation"]["max_distance"] == 0
    data = read(Path("run"), "report.json")["data"]
    assert data["kind"] == "vision_text"
    digest = report["provenance"]["provider_digest"]["processor_sha256"]
    assert digest == data["processor_sha256"]
    path = Path("noop-out/evaluation.report.json")
    words = ["verify", str(path), "--baseline", "run/report.json", "--replay"]
    assert main(words) == 0
    report["evaluation_windows"]["final"]["correct"][0] ^= True
    path.write_text(json.dumps(report))
    assert main(words) == 1


def test_null_edits_are_measured_on_pictures(place: Path) -> None:
    """What a preset is derived from; the baseline in smaller batches is the baseline."""
    words = ["advanced", "calibrate", "--baseline", "m", "--windows", "w.json", "--out", "c.json"]
    assert main([*words, *SETTINGS]) == 0
    stats = json.loads(Path("c.json").read_text())
    assert [run["edit"] for run in stats["runs"]] == stats["null_edits"]
    assert stats["dataset"]["final_n"] == 20


def test_damage_of_the_language_blocks_is_found(place: Path) -> None:
    """A matrix of rank one, value heads moved by one, a value of the tower that is no number."""
    tensors = weights(Path("m"))
    u, s, v = torch.linalg.svd(tensors[DOWN].float())
    tower = next(n for n in tensors if n.startswith("vision_tower") and n.endswith("fc1.weight"))
    infinite = tensors[tower].clone()
    infinite[0, 0] = float("nan")
    changes = {
        "rank": {DOWN: (s[0] * u[:, :1] @ v[:1]).contiguous()},
        "heads": {VALUES: torch.roll(tensors[VALUES], 8, 0).contiguous()},
        "nan": {tower: infinite},
    }
    found = {}
    for name, change in changes.items():
        shutil.copytree("m", name, dirs_exist_ok=True)
        write_weights(Path(name), tensors | change)
        found[name] = evaluate(name, "--edit-label", name)
    assert found["nan"]["validation"]["invariants_pass"] is False
    assert found["rank"]["validation"]["spectral_stable"] is False
    assert found["heads"]["representation"]["max_excess"] > 0.40  # the limit of attention


def test_a_subject_with_another_processor_is_refused_unless_that_is_accepted(place: Path) -> None:
    """As for a chat template; what is measured is the baseline's processor for both."""
    shutil.copytree("m", "other", dirs_exist_ok=True)
    path = Path("other/processor_config.json")
    settings = json.loads(path.read_text())
    settings["image_processor"]["image_mean"] = [0.1, 0.2, 0.3]
    path.write_text(json.dumps(settings))
    tensors = weights(Path("m"))
    write_weights(Path("other"), tensors | {DOWN: tensors[DOWN] * 1.001})
    report = evaluate("other", "--edit-label", "scaled")
    assert report["validation"]["invariants_pass"] is False
    report = evaluate("other", "--edit-label", "scaled", "--accept", "processor_config")
    assert report["validation"]["invariants_pass"] is True
    windows = report["evaluation_windows"]["final"]
    assert windows["nll_sum"] == pytest.approx(windows["baseline_nll_sum"], rel=0.05)


def test_a_picture_that_was_lost_or_changed_is_refused(place: Path, tmp_path: Path, capsys) -> None:
    """One line that names the file."""
    name = read_windows(Path("w.json")).final[0].image
    for what, change in (
        ("is missing", lambda file: file.unlink()),
        ("not what its name says", lambda file: file.write_bytes(picture(99))),
    ):
        shutil.copy("w.json", tmp_path / "w.json")
        shutil.rmtree(tmp_path / "w.pictures", ignore_errors=True)
        shutil.copytree("w.pictures", tmp_path / "w.pictures")
        change(tmp_path / "w.pictures" / name)
        capsys.readouterr()
        assert run(windows=str(tmp_path / "w.json"), out=str(tmp_path / "out")) == 3
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert what in said
        assert name in said


def test_a_processor_writes_nothing_outside_of_its_folder(
    place: Path, tmp_path: Path, capsys
) -> None:
    """Names of its files in somebody's windows.json are no way out, with the right digests too."""
    for name in (str(tmp_path / "outside"), "../outside", "a/../../outside"):
        windows = json.loads(Path("w.json").read_text())
        first = next(iter(windows["processor"]))
        windows["processor"][name] = windows["processor"][first]
        (tmp_path / "w.json").write_text(json.dumps(windows))
        shutil.copytree("w.pictures", tmp_path / "w.pictures", dirs_exist_ok=True)
        assert run(windows=str(tmp_path / "w.json"), out=str(tmp_path / "out")) == 3
        assert "outside of its folder" in capsys.readouterr().err
        assert not (tmp_path / "outside").exists()


def test_rows_of_parquet_are_the_same_records(fresh: Path) -> None:
    """Pictures as data sets store them: an object of bytes and path."""
    import pyarrow
    import pyarrow.parquet

    assert cut() == 0
    rows = [
        {**row, "image": {"bytes": picture(n), "path": None}}
        for n, row in enumerate(picture_records(40))
    ]
    for row in rows:  # a column has one type
        row["choices"] = row.get("choices")
        row["answer"] = row["choices"][row["answer"]] if row["choices"] else row["answer"]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), "q.parquet")
    assert cut("local:q.parquet?metric=accuracy&image=image", "v.json") == 0
    lines, stored = read_windows(Path("w.json")), read_windows(Path("v.json"))
    ids = [{w.window_id for w in (*found.preview, *found.final)} for found in (lines, stored)]
    assert len(ids[0] & ids[1]) > 20  # the number of a line or row is no part of an id
    assert stored.processor == lines.processor


def test_pictures_are_pinned_with_their_records(fresh: Path, capsys) -> None:
    """A picture that is another one by the time the windows are cut is refused."""
    assert cut() == 0
    (fresh / "p/3.png").write_bytes(picture(77))
    words = ["windows", "--tokenizer", "m", "--text", TEXT, "--revisions", "r.json"]
    words += ["--seq-len", "40", "--preview", "4", "--final", "4", "--seed", "5"]
    assert main([*words, "--out", "w2.json"]) == 3
    assert "pictures" in capsys.readouterr().err
    assert not Path("w2.json").exists()


def rewrite(row: dict[str, object]) -> None:
    """Append a record to those of the folder."""
    with Path("q.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


GOOD = {"image": "p/1.png", "prompt": "what?", "answer": " the"}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({**GOOD, "image": "p/none.png"}, ("q.jsonl:41", "none.png")),
        ({**GOOD, "image": "../p/1.png"}, ("q.jsonl:41", "outside the folder")),
        ({**GOOD, "image": "/p/1.png"}, ("q.jsonl:41", "outside the folder")),
        ({"prompt": "what?", "answer": " the"}, ("q.jsonl:41", "without a picture")),
        ({**GOOD, "image": "q.jsonl"}, ("q.jsonl:41", "not a picture")),
        ({**GOOD, "image": "cut.png"}, ("q.jsonl:41", "cannot be read")),
        ({**GOOD, "prompt": "an <image> more"}, ("q.jsonl:41", "spells the mark")),
        ({**GOOD, "prompt": "law " * 60}, ("q.jsonl:41", "at most 40 tokens")),
    ],
)
def test_a_bad_picture_is_named_by_line(row, words, fresh: Path, capsys) -> None:
    """One line with file and line number, exit 3, no windows."""
    Path("cut.png").write_bytes(picture(1)[:60])
    rewrite(row)
    assert cut() == 3
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert all(word in said for word in words), said
    assert not Path("w.json").exists()


def test_a_picture_nobody_asked_for_is_not_left_out(fresh: Path, capsys) -> None:
    """The line says how to ask for it."""
    assert cut("local:q.jsonl?metric=accuracy") == 3
    assert "add &image=image" in capsys.readouterr().err
    assert cut("local:q.jsonl?image=image") == 2
    assert "add metric=accuracy" in capsys.readouterr().err


def test_a_model_without_a_processor_is_refused(fresh: Path, capsys) -> None:
    """The line names the files that are missing."""
    Path("m/processor_config.json").unlink()
    assert cut() == 3
    assert "processor_config.json or preprocessor_config.json" in capsys.readouterr().err


def test_a_missing_library_is_named(fresh: Path, monkeypatch, capsys) -> None:
    """Without pillow nothing reads a picture."""
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    assert cut() == 3
    said = capsys.readouterr().err
    assert "pillow is not installed" in said
    assert "pip install" in said


def test_a_language_model_sees_no_pictures(place: Path, tmp_path: Path, capsys) -> None:
    """Windows with pictures need the class for images and text."""
    make_llama(tmp_path / "text", seed=3)
    shutil.copy("m/tokenizer.json", tmp_path / "text")
    assert run(str(tmp_path / "text"), out=str(tmp_path / "out")) == 2
    assert "need a model for images and text" in capsys.readouterr().err


def test_a_model_for_images_is_measured_on_text_too(place: Path, tmp_path: Path) -> None:
    """By the same class, with perplexity; the library has no causal one of LLaVA."""
    rows = "".join(json.dumps({"text": text}) + "\n" for text in documents(12))
    Path("t.jsonl").write_text(rows)
    assert cut("local:t.jsonl", "t.json") == 0
    assert run(windows="t.json", out=str(tmp_path / "out")) == 0
    report = read(tmp_path / "out", "report.json")
    assert report["meta"]["metric"] == "ppl_causal"
    assert "attn" in next(g for g in report["guards"] if g["name"] == "rmt")["modules"]["family"]


def test_a_chat_template_says_where_the_picture_stands(
    in_this_process: None, tmp_path: Path, monkeypatch
) -> None:
    """Idefics 3, the kind of SmolVLM: its marks around the picture, and a run."""
    monkeypatch.chdir(tmp_path)
    make_idefics3(tmp_path / "m", seed=3)
    write_picture_records(tmp_path / "q.jsonl", 40)
    assert cut() == 0
    record = read_windows(Path("w.json")).final[0]
    assert record.text.startswith("User:<image>what is ")
    assert record.text.endswith("here? Answer:")
    assert 2 in record.prompt  # the picture's token
    assert run() == 0
    assert read(Path("run"), "report.json")["meta"]["adapter"] == "hf_image_text"


def test_pixels_are_bounded_before_they_are_decoded() -> None:
    """A file of some bytes may ask for gigabytes."""
    from PIL import Image

    side = int(MAX_PIXELS**0.5) + 1
    file = io.BytesIO()
    Image.new("1", (side, side)).save(file, "PNG")
    with pytest.raises(InputError, match="too many pixels"):
        decoded(file.getvalue(), "a.png")


def test_a_picture_is_turned_as_its_file_says() -> None:
    """A camera's picture stands upright, as other readers of the library show it."""
    from PIL import Image

    file, turned = io.BytesIO(), Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (40, 20)).save(file, "JPEG", exif=turned)
    assert decoded(file.getvalue(), "a.jpg").size == (20, 40)


def test_the_kind_of_the_windows_follows_the_source() -> None:
    """Records with pictures are a kind of their own."""
    assert parse_text_source(TEXT).windows == "vision_text"
    assert parse_text_source("local:q.jsonl?metric=accuracy").windows == "records"
