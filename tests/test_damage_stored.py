"""Flipped bits, exchanged layers and ids, stale and truncated shards: exactly that, and found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoint_factory import VOCABULARY, make_gpt2, make_llama, make_mixtral, weights
from measuring_factory import World, read
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import BPE, Unigram, WordPiece

from invarlock.checkpoints import Checkpoint, tokenizer_digest
from invarlock.cli import main
from invarlock.contracts import validate
from invarlock.damage.inject import Injected, error_metadata, inject
from invarlock.damage.specs import parse_damage
from invarlock.errors import ConfigError, InputError
from invarlock.evidence.report_verify import ReportOptions, verify_report
from invarlock.guards.invariants import check_checkpoint
from invarlock.reporting.replay import replay

MANIFEST = "runtime.manifest.json"
DOWN = "model.layers.{}.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tied Llama of four layers in three shards, every norm of its own."""
    folder = make_llama(tmp_path_factory.mktemp("base") / "model", layers=4, shards=3)
    for number, shard in enumerate(sorted(folder.glob("*.safetensors"))):
        tensors = load_file(shard)
        for place, name in enumerate(n for n in tensors if "norm" in n):
            tensors[name] += 0.01 * (1 + place + 10 * number)
        save_file(tensors, shard, {"format": "pt"})
    return folder


def injected(base: Path, out: Path, error_type: str, **parameters: object) -> Injected:
    """Inject with parameters over the defaults; its metadata must be valid."""
    baseline = Checkpoint.open(base)
    done = inject(baseline, parse_damage(error_type, parameters), out, seed=5)
    validate(error_metadata(baseline, done), "error-metadata", "error_metadata.json")
    return done


def files(folder: Path) -> dict[str, bytes]:
    """The content of every file of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def changed_files(before: Path, after: Path) -> set[str]:
    """Names of files that differ."""
    old, new = files(before), files(after)
    assert old.keys() == new.keys()
    return {name for name in old if old[name] != new[name]}


# --- bit_flip ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "bit", "top"),
    [(torch.bfloat16, 14, 2**128), (torch.float16, 14, 2**16), (torch.float32, 30, 2**128)],
)
def test_one_bit_of_the_file_changes(
    tmp_path: Path, dtype: torch.dtype, bit: int, top: float
) -> None:
    """The highest exponent bit of a weight below 1 is clear: set, it multiplies the weight."""
    base = make_llama(tmp_path / "base", layers=3)
    save_file(
        {n: t.to(dtype) for n, t in weights(base).items()}, base / "model.safetensors", {"f": "pt"}
    )
    injected(base, tmp_path / "out", "bit_flip")
    before, after = files(base)["model.safetensors"], files(tmp_path / "out")["model.safetensors"]
    differing = [(i, a ^ b) for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
    info = Checkpoint.open(base).tensors[DOWN.format(1)]
    assert differing == [(info.begin + bit // 8, 1 << bit % 8)]  # little-endian, element [0, 0]
    old, new = (weights(f)[DOWN.format(1)][0, 0].double() for f in (base, tmp_path / "out"))
    assert abs(float(old)) < 1
    assert float(new) == float(old) * top


def test_a_bit_flipped_twice_is_the_baseline(llama: Path, tmp_path: Path) -> None:
    """Another element and bit, as named; flipping it again gives every byte back."""
    place = {"projection": "q_proj", "layer": 3, "row": 2, "column": 5, "bit": 9}
    injected(llama, tmp_path / "once", "bit_flip", **place)
    name = "model.layers.3.self_attn.q_proj.weight"
    bits = [weights(f)[name].view(torch.int16) for f in (llama, tmp_path / "once")]
    assert (bits[0] ^ bits[1]).nonzero().tolist() == [[2, 5]]
    assert int((bits[0] ^ bits[1])[2, 5]) == 1 << 9
    injected(tmp_path / "once", tmp_path / "twice", "bit_flip", **place)
    assert files(tmp_path / "twice") == files(llama)


@pytest.mark.parametrize("make", [make_gpt2, make_mixtral])
def test_one_element_of_other_architectures(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    """The feed-forward output of the middle layer; of stacked experts the first one's."""
    base = make(tmp_path / "base")
    (name,) = injected(base, tmp_path / "out", "bit_flip").subject.differing
    assert name.endswith(("c_proj.weight", "down_proj"))
    unequal = (weights(base)[name] != weights(tmp_path / "out")[name]).nonzero().tolist()
    assert unequal == [[0] * weights(base)[name].dim()]


# --- layer_swap ----------------------------------------------------------------------------


def test_two_layers_are_exchanged(llama: Path, tmp_path: Path) -> None:
    """Every tensor of the two middle layers is its namesake's, and no other tensor changes."""
    done = injected(llama, tmp_path / "out", "layer_swap")
    assert done.damage.parameters() == {"layer": 2, "other": 1}
    before, after = weights(llama), weights(tmp_path / "out")
    for name in before:
        twin = name.replace(".1.", ".x.").replace(".2.", ".1.").replace(".x.", ".2.")
        assert torch.equal(after[name], before[twin]), name
        assert (name in done.subject.differing) == (twin != name), name


def test_exchanging_twice_gives_the_baseline(llama: Path, tmp_path: Path) -> None:
    """Byte for byte, in every file."""
    injected(llama, tmp_path / "once", "layer_swap", layer=0, other=3)
    assert changed_files(llama, tmp_path / "once")
    injected(tmp_path / "once", tmp_path / "twice", "layer_swap", layer=3, other=0)
    assert files(tmp_path / "twice") == files(llama)


# --- tokenizer_swap ------------------------------------------------------------------------


def save_tokenizer(folder: Path, kind: str) -> None:
    """A tokenizer of thirty pieces and an unknown token, in one of the formats."""
    pieces = ["[UNK]", *(f"p{i}" for i in range(30))]
    ids = {piece: i for i, piece in enumerate(pieces)}
    model = {
        "BPE": lambda: BPE(ids, [], unk_token="[UNK]"),
        "WordPiece": lambda: WordPiece(ids, unk_token="[UNK]"),
        "Unigram": lambda: Unigram([(p, -float(i)) for i, p in enumerate(pieces)], unk_id=0),
    }[kind]()
    Tokenizer(model).save(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("kind", ["BPE", "WordPiece", "Unigram"])
def test_exactly_two_ids_change_and_are_found(tmp_path: Path, kind: str) -> None:
    """As the tokenizers library reads it; the weights stay; the invariants see it."""
    base = make_llama(tmp_path / "base")
    save_tokenizer(base, kind)
    done = injected(base, tmp_path / "out", "tokenizer_swap")
    assert done.damage.parameters() == {"first": 15, "second": 16}
    assert changed_files(base, tmp_path / "out") == {"tokenizer.json"}
    before, after = (
        Tokenizer.from_file(str(f / "tokenizer.json")).get_vocab() for f in (base, tmp_path / "out")
    )
    moved = {piece: (before[piece], after[piece]) for piece in before if before != after}
    moved = {piece: ids for piece, ids in moved.items() if ids[0] != ids[1]}
    assert moved == {"p14": (15, 16), "p15": (16, 15)}
    found = check_checkpoint(Checkpoint.open(base), Checkpoint.open(tmp_path / "out"))
    assert [(f["type"], f["severity"]) for f in found] == [("tokenizer_mismatch", "fatal")]
    injected(tmp_path / "out", tmp_path / "twice", "tokenizer_swap")
    assert tokenizer_digest(tmp_path / "twice") == tokenizer_digest(base)


def test_named_ids_are_exchanged(tmp_path: Path) -> None:
    """One given, the other by default; nothing else moves in a trained tokenizer."""
    base = make_llama(tmp_path / "base")
    done = injected(base, tmp_path / "out", "tokenizer_swap", second=VOCABULARY - 1)
    first = done.damage.parameters()["first"]
    vocabularies = [
        json.loads((f / "tokenizer.json").read_text())["model"]["vocab"]
        for f in (base, tmp_path / "out")
    ]
    moved = {i for t, i in vocabularies[0].items() if vocabularies[1][t] != i}
    assert moved == {first, VOCABULARY - 1}


# --- stale_shard ---------------------------------------------------------------------------


def test_only_the_shard_is_stale(llama: Path, tmp_path: Path) -> None:
    """The last shard's tensors are as before training; the other shards are the same files."""
    done = injected(llama, tmp_path / "out", "stale_shard")
    shard = str(done.damage.parameters()["shard"])
    assert shard == "model-00003-of-00003.safetensors"
    assert changed_files(llama, tmp_path / "out") == {shard}
    before, after = load_file(llama / shard), load_file(tmp_path / "out" / shard)
    assert before.keys() == after.keys() == set(done.subject.differing)
    for name, tensor in after.items():
        assert (tensor.shape, tensor.dtype) == (before[name].shape, before[name].dtype)
        if "norm" in name:
            assert torch.equal(tensor, torch.ones_like(tensor))
        else:
            assert float(tensor.float().std()) == pytest.approx(0.02, rel=0.15)
            assert abs(float(tensor.float().mean())) < 0.003


def test_the_configurations_initializer_range_and_the_seed_count(
    llama: Path, tmp_path: Path
) -> None:
    """Its standard deviation; another seed, other draws; biases begin at zero."""
    base = shutil.copytree(llama, tmp_path / "base")
    config = json.loads((base / "config.json").read_text()) | {"initializer_range": 0.5}
    (base / "config.json").write_text(json.dumps(config))
    done = injected(base, tmp_path / "out", "stale_shard", shard="model-00001-of-00003.safetensors")
    after = weights(tmp_path / "out")
    name = "model.embed_tokens.weight"
    assert name in done.subject.differing
    assert float(after[name].float().std()) == pytest.approx(0.5, rel=0.05)
    inject(Checkpoint.open(base), done.damage, tmp_path / "other", seed=6)
    assert not torch.equal(weights(tmp_path / "other")[name], after[name])
    gpt2 = make_gpt2(tmp_path / "gpt2")
    injected(gpt2, tmp_path / "gpt2_out", "stale_shard", fraction=1.0)
    biases = [t for n, t in weights(tmp_path / "gpt2_out").items() if n.endswith("c_fc.bias")]
    assert biases
    assert not any(bias.any() for bias in biases)


@pytest.mark.parametrize("value", ["wide", True, [0.02], 0, -1])
def test_an_initializer_range_that_is_none_is_named(
    value: object, llama: Path, tmp_path: Path
) -> None:
    """One line; a null counts as absent."""
    base = shutil.copytree(llama, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"initializer_range": value}))
    with pytest.raises(InputError, match=r"config\.json: /initializer_range .*expected a number"):
        injected(base, tmp_path / "out", "stale_shard")
    (base / "config.json").write_text(json.dumps(config | {"initializer_range": None}))
    injected(base, tmp_path / "out", "stale_shard")
    config.pop("initializer_range", None)
    (base / "config.json").write_text(json.dumps(config))
    injected(base, tmp_path / "absent", "stale_shard")
    assert changed_files(tmp_path / "out", tmp_path / "absent") <= {"config.json"}


def test_of_one_file_the_last_layers_are_stale(tmp_path: Path) -> None:
    """A quarter of five layers, rounded up, is two; embedding and final norm stay."""
    base = make_llama(tmp_path / "base", layers=5)
    done = injected(base, tmp_path / "out", "stale_shard")
    matrices = {n for n in weights(base) if ".layers.3." in n or ".layers.4." in n}
    assert set(done.subject.differing) == {n for n in matrices if "norm" not in n}


def test_a_donor_gives_its_own_tensors(llama: Path, tmp_path: Path) -> None:
    """However the donor is sharded; all other tensors are the baseline's."""
    donor = make_llama(tmp_path / "donor", layers=4, seed=9)
    done = injected(llama, tmp_path / "out", "stale_shard", donor=str(donor))
    before, theirs, after = weights(llama), weights(donor), weights(tmp_path / "out")
    shard = load_file(llama / "model-00003-of-00003.safetensors").keys()
    for name in before:
        assert torch.equal(after[name], (theirs if name in shard else before)[name]), name
    assert set(done.subject.differing) == set(shard)


# --- truncated_shard -----------------------------------------------------------------------


def entry(error_type: str) -> str:
    """A catalogue entry for an injection that the invariants must find."""
    detectors = [{"kind": "invariants_status", "allowed": ["fail", "error"]}]
    generation = {"kind": "error", "error_type": error_type, "env": {}}
    requirements = {"detectors_any_of": detectors, "detectors_all_of": []}
    return json.dumps({"id": error_type, "generation": generation, "requirements": requirements})


@pytest.mark.parametrize("error_type", ["truncated_shard", "tokenizer_swap"])
def test_an_evaluation_rejects_it_with_a_report_that_replays(
    world: World, in_this_process: None, tmp_path: Path, error_type: str
) -> None:
    """Injected, evaluated and verified by the commands: detected, by the invariants, not run."""
    metadata, out = tmp_path / "error_metadata.json", tmp_path / "out"
    words = ["inject", "--baseline", str(world.baseline), "--error-type", error_type]
    words += ["--out", str(tmp_path / "subject"), "--metadata", str(metadata)]
    assert main(words) == 0
    more = ("--scenario", entry(error_type), "--edit-metadata", str(metadata))
    assert world.evaluate(tmp_path / "subject", out, *more) == 0
    outcome, report = read(out, "outcome.json"), read(out)
    assert (outcome["status"], outcome["exit_code"]) == ("rejected_by_invariants", 0)
    assert outcome["injected"] is True
    assert outcome["detectors_hit"] == ["invariants_status=fail|error"]
    assert outcome["subject_sha256"] == read(tmp_path, metadata.name)["subject_checkpoint_sha256"]
    kinds = {"truncated_shard": "unreadable_checkpoint", "tokenizer_swap": "tokenizer_mismatch"}
    assert report["invariants"]["failures"][0]["type"] == kinds[error_type]
    assert replay(report) == []
    assert str(tmp_path) not in (out / "evaluation.report.json").read_text()
    data, manifest = ((out / f).read_bytes() for f in ("evaluation.report.json", MANIFEST))
    verified = verify_report(data, manifest, "x", ReportOptions(require_replay=True))
    assert verified.replayed
    assert {finding.kind for finding in verified.findings} == {"policy"}


def test_an_unreadable_baseline_is_no_finding_about_the_subject(
    world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The same damage on the other side: exit 3, one line, no outcome."""
    injected(world.baseline, tmp_path / "damaged", "truncated_shard")
    words = ["--baseline", str(tmp_path / "damaged"), "--subject", str(world.baseline)]
    words += ["--windows", str(world.windows), "--out", str(tmp_path / "out")]
    words += ["--baseline-report", str(world.run), "--device", "cpu", "--dtype", "float32"]
    assert main(["evaluate", *words]) == 3
    assert "the shard is truncated" in capfd.readouterr().err
    assert not (tmp_path / "out" / "outcome.json").exists()


LAST = "model-00003-of-00003.safetensors"


def test_the_truncated_files_are_named_by_what_is_in_them(llama: Path, tmp_path: Path) -> None:
    """Two cuts have two digests, neither the baseline's; the other shards are linked."""
    digests = {Checkpoint.open(llama).digest()}
    for missing in (1, 512):
        done = injected(llama, tmp_path / str(missing), "truncated_shard", missing_bytes=missing)
        assert changed_files(llama, tmp_path / str(missing)) == {LAST}
        digests.add(done.subject.digest)
        assert files(llama)[LAST][:-missing] == files(tmp_path / str(missing))[LAST]
        assert done.change.cut
    assert len(digests) == 3


def test_the_same_revision_is_not_stale(llama: Path, tmp_path: Path) -> None:
    """A donor with the baseline's own bytes damages nothing, and the injection fails."""
    with pytest.raises(ConfigError, match="byte-identical"):
        injected(llama, tmp_path / "out", "stale_shard", donor=str(llama))
    other = make_llama(tmp_path / "wide", layers=4, hidden=32)
    with pytest.raises(InputError, match="of another shape"):
        injected(llama, tmp_path / "out", "stale_shard", donor=str(other))
