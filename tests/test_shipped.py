"""What ships beside the weights: one table, one digest, and a comparison by meaning."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from checkpoint_factory import make_llama, save_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from invarlock.checkpoints import Checkpoint
from invarlock.edits.apply import apply_edit
from invarlock.edits.specs import parse_edit_spec
from invarlock.guards.chat_templates import first_difference
from invarlock.guards.generation_settings import effective
from invarlock.guards.invariants import check_checkpoint
from invarlock.guards.invariants_decision import judge
from invarlock.guards.shipped import check_shipped
from invarlock.shipped_files import SHIPPED, file_digests, kind_of, shipped_files
from invarlock.sources.kinds.local import pin_folder

TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] | trim }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
TOOLS = "{% if tools %}{{ tools | length }} tools{% endif %}" + TEMPLATE
GENERATION = {"eos_token_id": [1, 7, 9], "bos_token_id": 0, "temperature": 0.6, "top_p": 0.9}
END = {
    "__type": "AddedToken", "content": "</s>", "special": True, "lstrip": False, "rstrip": False,
    "normalized": False, "single_word": False,
}  # fmt: skip
SETTINGS = {"chat_template": TEMPLATE, "pad_token": "</s>", "add_bos_token": False}


def put(folder: Path, name: str, content: object) -> None:
    """Write text, or a dict over the JSON that is there (None removes a key); None: no file."""
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    if content is None:
        path.unlink(missing_ok=True)
    elif isinstance(content, dict):
        old = json.loads(path.read_text()) if path.is_file() else {}
        kept = {k: v for k, v in (old | content).items() if v is not None}
        path.write_text(json.dumps(kept))
    else:
        path.write_text(str(content))


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat model with everything that ships."""
    folder = make_llama(tmp_path_factory.mktemp("shipped") / "baseline")
    put(folder, "tokenizer_config.json", SETTINGS)
    put(folder, "generation_config.json", GENERATION)
    put(folder, "additional_chat_templates/unused.jinja", None)
    put(folder, "vocab.json", {"a": 1, "b": 2})
    return folder


@pytest.fixture
def subject(baseline: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(baseline, tmp_path / "subject")


def blocking(baseline: Path, subject: Path) -> set[str]:
    """The names by which the fatal findings could be accepted."""
    found = check_shipped(baseline, subject)
    return {str(f.get("accept")) for f in found if f["severity"] == "fatal"}


# --- one table, one digest --------------------------------------------------------------------

FILES = {
    "chat_template.jinja": TEMPLATE,
    "chat_template.json": '{"chat_template": "x"}',
    "additional_chat_templates/tool_use.jinja": TOOLS,
    "custom_generate/generate.py": "def generate(): pass",
    "generation_config.json": '{"eos_token_id": 1}',
    "tokenizer_config.json": '{"padding_side": "left"}',
    "special_tokens_map.json": '{"pad_token": "<s>"}',
    "added_tokens.json": "{}",
    "vocab.json": '{"a": 2}',
    "merges.txt": "#version: 0.2\na b\n",
    "tokenizer.model": "\x00\x01",
    "spiece.model": "\x00",
    "preprocessor_config.json": "{}",
    "processor_config.json": "{}",
}


@pytest.mark.parametrize("name", FILES)
def test_every_shipped_file_is_pinned_and_in_the_digest(subject: Path, name: str) -> None:
    """Adding or changing any of them changes the pin of a baseline and the digest of a subject."""
    before, pinned = Checkpoint.open(subject).digest(), pin_folder(subject).files
    put(subject, name, None)
    put(subject, name, FILES[name])
    after = Checkpoint.open(subject).digest()
    assert before != after
    assert pin_folder(subject).files.get(name) != pinned.get(name)
    assert file_digests(subject)[name] == pin_folder(subject).files[name].sha256


def test_python_ships_only_where_a_configuration_names_it(subject: Path) -> None:
    """A stray script is nothing that a loader reads."""
    put(subject, "modeling_tiny.py", "print()")
    assert "modeling_tiny.py" not in shipped_files(subject)
    put(subject, "tokenizer_config.json", {"auto_map": {"AutoTokenizer": "x"}})
    assert "modeling_tiny.py" in shipped_files(subject)


def test_an_edit_ships_what_its_baseline_ships(baseline: Path, subject: Path, tmp_path) -> None:
    """Templates in a folder of their own too."""
    put(subject, "additional_chat_templates/tool_use.jinja", TOOLS)
    apply_edit(Checkpoint.open(subject), parse_edit_spec("quant_rtn:8:16:ffn"), tmp_path / "out", 1)
    assert file_digests(tmp_path / "out") == file_digests(subject)
    assert check_shipped(subject, tmp_path / "out") == []


def test_a_copy_of_a_tied_head_is_no_weight_of_its_own(baseline: Path, subject: Path) -> None:
    """Stored beside the embedding it is listed: the digest differs, the weights do not."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(subject / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, subject / "model.safetensors", {"format": "pt"})
    one, other = Checkpoint.open(baseline).parts(), Checkpoint.open(subject).parts()
    assert other["copies"] == {"lm_head.weight": "model.embed_tokens.weight"}
    assert one["weights_sha256"] == other["weights_sha256"]
    assert Checkpoint.open(baseline).digest() != Checkpoint.open(subject).digest()


# --- harmless ---------------------------------------------------------------------------------

SPELLINGS: dict[str, dict[str, object]] = {
    "template in a file of its own": {
        "chat_template.jinja": TEMPLATE,
        "tokenizer_config.json": {"chat_template": None},
    },
    "template in two places": {"chat_template.jinja": TEMPLATE},
    "template with a remark": {"chat_template.jinja": TEMPLATE + "{# by hand #}"},
    "template in a list": {
        "tokenizer_config.json": {"chat_template": [{"name": "default", "template": TEMPLATE}]}
    },
    "padding where generation needs it": {"tokenizer_config.json": {"padding_side": "left"}},
    "texts cut off later": {"tokenizer_config.json": {"model_max_length": 10**30}},
    "no cache": {"generation_config.json": {"use_cache": False}},
    "ids in another order": {"generation_config.json": {"eos_token_id": [9, 1, 7]}},
    "defaults spelled out": {
        "generation_config.json": {"do_sample": False, "top_k": 50, "num_beams": 1}
    },
    "version of another library": {"generation_config.json": {"transformers_version": "4.1"}},
    "no begin-of-text id": {"generation_config.json": {"bos_token_id": None}},
    "class of another version": {"tokenizer_config.json": {"tokenizer_class": "TokenizersBackend"}},
    "special tokens in a map too": {"special_tokens_map.json": {"eos_token": "</s>"}},
    "a token as an object": {
        "tokenizer_config.json": {"eos_token": END}
    },
    "vocabulary left out": {"vocab.json": None},
    "vocabulary in another layout": {"vocab.json": '{"b": 2,\n "a": 1}'},
    "what training leaves": {"training_args.bin": "x", "README.md": "x", ".gitattributes": "x"},
}  # fmt: skip


@pytest.mark.parametrize("case", SPELLINGS)
def test_another_spelling_blocks_nothing(baseline: Path, subject: Path, case: str) -> None:
    """What means the same may be noted, and never refuses a subject."""
    for name, content in SPELLINGS[case].items():
        put(subject, name, content)
    assert blocking(baseline, subject) == set()


@pytest.mark.parametrize("lacks", ["baseline", "subject"])
def test_a_padding_token_that_one_side_lacks_blocks_nothing(
    baseline: Path, subject: Path, tmp_path: Path, lacks: str
) -> None:
    """Training tools take the end of text for it; what is read is never padded."""
    other = shutil.copytree(baseline, tmp_path / "other")
    put(other, "tokenizer_config.json", {"pad_token": None})
    pair = (other, subject) if lacks == "baseline" else (subject, other)
    assert blocking(*pair) == set()
    assert "pad_token" in str(check_shipped(*pair))


# The token that pads, what a template writes, and the words of the reason; none: only a note.
PADS = {
    "a special token that nothing is written with": ("<|reserved|>", TEMPLATE, ""),
    "the end of text": ("</s>", TEMPLATE, ""),
    "the beginning of text": ("<s>", "", "put around texts"),
    "an ordinary token": ("the", TEMPLATE, "no special token"),
    "what a chat is written with": ("<|reserved|>", TEMPLATE + "<|reserved|>", "template"),
}


@pytest.mark.parametrize("case", PADS)
@pytest.mark.parametrize("was", ["<|pad|>", None])
def test_another_padding_token_blocks_where_a_text_may_hold_it(
    baseline: Path, tmp_path: Path, case: str, was: str | None
) -> None:
    """Unsloth, Axolotl and others take one that is not the baseline's."""
    token, template, reason = PADS[case]
    one = shutil.copytree(baseline, tmp_path / "one")
    document = json.loads((one / "tokenizer.json").read_text())
    ids = document["model"]["vocab"]
    flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    for content in ("<|pad|>", "<|reserved|>"):
        ids[content] = len(ids)
        row = {"id": ids[content], "content": content, "special": True, **flags}
        document["added_tokens"].append(row)
    put(one, "tokenizer.json", document)
    put(one, "tokenizer_config.json", {"chat_template": template, "pad_token": was})
    put(one, "generation_config.json", {"pad_token_id": ids.get(was)})
    other = shutil.copytree(one, tmp_path / "other")
    put(other, "tokenizer_config.json", {"pad_token": token})
    put(other, "generation_config.json", {"pad_token_id": ids[token]})
    assert blocking(one, other) == ({"special_tokens", "generation_config"} if reason else set())
    found = [f["message"] for f in check_shipped(one, other)]
    assert len(found) == 2
    assert all(reason in message for message in found)


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_garbled_template_beside_another_padding_id_is_a_finding(
    baseline: Path, subject: Path, name: str
) -> None:
    """What cannot be read is told as that, and ends nothing."""
    (subject / name).write_bytes(b'{"\xff\xfe')
    put(subject, "generation_config.json", {"pad_token_id": 1})
    document = json.loads((subject / "tokenizer.json").read_text())
    put(subject, "tokenizer.json", document | {"truncation": None})
    failures = check_checkpoint(Checkpoint.open(baseline), Checkpoint.open(subject))
    assert any(f"{name} cannot be read" in f["message"] for f in failures)


def test_models_that_begin_an_answer_by_padding_keep_theirs(baseline: Path, tmp_path: Path) -> None:
    """T5 does, and RoBERTa counts positions from it."""
    one = shutil.copytree(baseline, tmp_path / "one")
    config = {"architectures": ["T5ForConditionalGeneration"]}
    put(one, "config.json", config)
    put(one, "generation_config.json", {"pad_token_id": 0})
    other = shutil.copytree(one, tmp_path / "other")
    put(other, "generation_config.json", {"pad_token_id": 1})
    assert blocking(one, other) == {"generation_config"}


def test_a_checkpoint_that_transformers_saved_again_blocks_nothing(
    baseline: Path, tmp_path: Path
) -> None:
    """Loaded and saved by the installed version, template and settings move between files."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    save_model(AutoModelForCausalLM.from_pretrained(baseline, dtype="auto"), tmp_path / "saved")
    AutoTokenizer.from_pretrained(baseline).save_pretrained(tmp_path / "saved")
    assert file_digests(baseline) != file_digests(tmp_path / "saved")
    assert blocking(baseline, tmp_path / "saved") == set()


def test_settings_that_only_config_json_gives_are_those_that_a_loader_saves(
    baseline: Path, tmp_path: Path
) -> None:
    """Without a file the baseline means what transformers derives, which it then writes."""
    from transformers import AutoModelForCausalLM

    plain = shutil.copytree(baseline, tmp_path / "plain")
    put(plain, "generation_config.json", None)
    saved = shutil.copytree(plain, tmp_path / "saved")
    save_model(AutoModelForCausalLM.from_pretrained(plain, dtype="auto"), saved)
    assert (saved / "generation_config.json").is_file()
    assert effective(plain) == effective(saved)


def test_padding_that_generation_needs_may_not_be_lost(baseline: Path, subject: Path) -> None:
    """Of several texts at once, answers would follow the padding."""
    put(subject, "tokenizer_config.json", {"padding_side": "left"})
    assert blocking(subject, baseline) == {"tokenizer_config"}


def test_another_text_of_a_template_is_told(baseline: Path, subject: Path) -> None:
    """No conversation tried shows it; another might."""
    put(subject, "chat_template.jinja", TEMPLATE + "{% if messages | length > 50 %}!{% endif %}")
    (note,) = (f for f in check_shipped(baseline, subject) if "has another text" in f["message"])
    assert note["severity"] == "warning"


def test_vocabulary_files_that_older_loaders_write_are_a_note(
    baseline: Path, subject: Path
) -> None:
    """A library of before saves them from the same tokenizer, whatever ends lines in Unicode."""
    tokenizer = json.loads((subject / "tokenizer.json").read_text())
    model = tokenizer["model"]
    model["vocab"] |= {"\u2028": 9000, "\x85": 9001, "\u2028\x85": 9002}
    model["merges"].append(["\u2028", "\x85"])
    put(subject, "tokenizer.json", tokenizer)
    put(baseline_without := subject, "vocab.json", None)
    saved = shutil.copytree(baseline_without, subject.with_name("saved"))
    put(saved, "vocab.json", json.dumps(model["vocab"]))
    put(saved, "merges.txt", "#version: 0.2\n" + "\n".join(map(" ".join, model["merges"])) + "\n")
    assert blocking(baseline_without, saved) == set()
    put(saved, "vocab.json", {"the": 3})
    assert blocking(baseline_without, saved) == {"tokenizer_files"}


def test_weights_beside_those_that_are_judged_are_told(baseline: Path, subject: Path) -> None:
    """Copied from the baseline too: they are not what was edited."""
    (subject / "consolidated.safetensors").write_bytes(b"x")
    both = shutil.copytree(subject, subject.with_name("both"))
    (both / "pytorch_model.bin").write_bytes(b"x")
    (both / "training_args.bin").write_bytes(b"x")
    (note,) = check_shipped(subject, both)
    assert (note["type"], note["severity"]) == ("other_weights", "warning")
    assert note["message"].endswith(": consolidated.safetensors, pytorch_model.bin")


def test_what_older_loaders_refuse_is_told(baseline: Path, subject: Path) -> None:
    """A class of tokenizers that they do not know."""
    put(subject, "tokenizer_config.json", {"tokenizer_class": "TokenizersBackend"})
    assert "before transformers 5 refuse it" in str(check_shipped(baseline, subject))


# --- damage -----------------------------------------------------------------------------------

DAMAGE: dict[str, tuple[dict[str, object], set[str]]] = {
    "template lost": ({"tokenizer_config.json": {"chat_template": None}}, {"chat_template"}),
    "template of another tool": (
        {"chat_template.jinja": "{% for m in messages %}### {{ m['content'] }}\n{% endfor %}"},
        {"chat_template"},
    ),
    "white space kept": (
        {"tokenizer_config.json": {"chat_template": TEMPLATE.replace(" | trim", "")}},
        {"chat_template"},
    ),
    "no generation prompt": (
        {"tokenizer_config.json": {"chat_template": TEMPLATE.replace("assistant\n", "")}},
        {"chat_template"},
    ),
    "a long conversation cut": (
        {"tokenizer_config.json": {
            "chat_template": TEMPLATE.replace("in messages", "in messages[-4:]")}},
        {"chat_template"},
    ),
    "a question in parts forgotten": (
        {"tokenizer_config.json": {
            "chat_template": TEMPLATE.replace("m['content']", "(m['content'] is string)")}},
        {"chat_template"},
    ),
    "a role refused": (
        {"tokenizer_config.json": {"chat_template": "{% if messages[0]['role'] == 'developer' %}"
            "{{ raise_exception('no') }}{% endif %}" + TEMPLATE}},
        {"chat_template"},
    ),
    "effort forgotten": (
        {"tokenizer_config.json": {"chat_template": TEMPLATE +
            "{% if reasoning_effort == 'high' %}!{% endif %}"}},
        {"chat_template"},
    ),
    "tools forgotten": ({"additional_chat_templates/tool_use.jinja": TOOLS}, {"chat_template"}),
    "another template only where older loaders look": (
        {
            "chat_template.jinja": TEMPLATE,
            "tokenizer_config.json": {"chat_template": TEMPLATE.replace("assistant", "model")},
        },
        {"chat_template"},
    ),
    "template that does not compile": ({"chat_template.jinja": "{% for"}, {"chat_template"}),
    "begin-of-text switched on": (
        {"tokenizer_config.json": {"add_bos_token": True}}, {"tokenizer_config"},
    ),
    "end-of-text switched on": (
        {"tokenizer_config.json": {"add_eos_token": True}}, {"tokenizer_config"},
    ),
    "cut off on the other side": (
        {"tokenizer_config.json": {"truncation_side": "left"}}, {"tokenizer_config"},
    ),
    "a space before every text, as older loaders put it": (
        {"tokenizer_config.json": {"add_prefix_space": True}}, {"tokenizer_config"},
    ),
    "a class of the library that splits otherwise": (
        {"tokenizer_config.json": {"tokenizer_class": "Qwen2Tokenizer"}},
        {"tokenizer_config", "special_tokens"},  # and has tokens of its own
    ),
    "code of a tokenizer": (
        {"tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["x--y.Z", None]}}},
        {"remote_code"},
    ),
    "code that generates": (
        {"custom_generate/generate.py": "def generate(): pass"}, {"remote_code"},
    ),
    "shorter texts": ({"tokenizer_config.json": {"model_max_length": 64}}, {"tokenizer_config"}),
    "end of text of the base model": (
        {"tokenizer_config.json": {"eos_token": "<s>"}}, {"special_tokens"},
    ),
    "padding token of a training tool": (
        {"tokenizer_config.json": {"pad_token": "<s>"}}, {"special_tokens"},
    ),
    "padding token only in the map": (
        {"special_tokens_map.json": {"pad_token": "<s>"}}, {"special_tokens"},
    ),
    "a word made special": (
        {"tokenizer_config.json": {"additional_special_tokens": ["the"]}}, {"special_tokens"},
    ),
    "one end-of-text id of three": (
        {"generation_config.json": {"eos_token_id": 1}}, {"generation_config"},
    ),
    "no end-of-text id": (
        {"generation_config.json": {"eos_token_id": None}}, {"generation_config"},
    ),
    "settings lost": ({"generation_config.json": None}, {"generation_config"}),
    "sampling otherwise": ({"generation_config.json": {"temperature": 1.5}}, {"generation_config"}),
    "settings empty": ({"generation_config.json": ""}, {"generation_config"}),
    "settings cut off": ({"generation_config.json": '{"eos_token_id": [1'}, {"generation_config"}),
    "settings that are a list": ({"generation_config.json": "[]"}, {"generation_config"}),
    "tokenizer settings cut off": ({"tokenizer_config.json": "{"}, {"tokenizer_config"}),
    "template empty": ({"chat_template.jinja": " \n"}, {"chat_template"}),
    "map empty": ({"special_tokens_map.json": ""}, {"special_tokens"}),
    "another vocabulary for other loaders": ({"vocab.json": {"a": 7}}, {"tokenizer_files"}),
    "other merges for other loaders": ({"merges.txt": "#version: 0.2\nx y\n"}, {"tokenizer_files"}),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGE)
def test_a_difference_blocks_until_it_is_accepted_by_its_name(
    baseline: Path, subject: Path, case: str
) -> None:
    """Each by the name of its kind, and by no other."""
    files, names = DAMAGE[case]
    for name, content in files.items():
        put(subject, name, content)
    found = check_checkpoint(Checkpoint.open(baseline), Checkpoint.open(subject))
    fatal = {f.get("accept") for f in found if f["severity"] == "fatal"}
    assert fatal == names
    assert judge(found)["passed"] is False
    assert judge(found, [n for n in SHIPPED if n not in names])["passed"] is False
    accepted = judge(found, [*names])
    assert (accepted["passed"], accepted["accepted"]) == (True, sorted(names))


def test_a_template_that_the_baseline_has_not_is_a_difference_too(
    baseline: Path, subject: Path
) -> None:
    """A base model that was made a chat model."""
    put(baseline_without := subject, "tokenizer_config.json", {"chat_template": None})
    assert blocking(baseline_without, baseline) == {"chat_template"}


def test_a_file_that_is_broken_on_both_sides_is_no_difference(subject: Path, tmp_path) -> None:
    """The subject ships what the baseline ships."""
    put(subject, "generation_config.json", "")
    assert check_shipped(subject, shutil.copytree(subject, tmp_path / "copy")) == []


def test_a_broken_file_of_the_baseline_is_said(baseline: Path, subject: Path) -> None:
    """It can be compared with nothing."""
    put(subject, "generation_config.json", "")
    (finding,) = check_shipped(subject, baseline)
    assert finding["message"] == "the baseline's generation_config.json cannot be read: it is empty"


def test_messages_name_both_values_and_no_place(baseline: Path, subject: Path) -> None:
    """Reports are compared between machines."""
    put(subject, "generation_config.json", {"eos_token_id": 1})
    put(subject, "tokenizer_config.json", {"truncation_side": "left"})
    told = [f["message"] for f in check_shipped(baseline, subject)]
    assert "generation settings: eos_token_id was [1, 7, 9], is 1" in told
    assert "tokenizer settings: truncation_side was 'right', is 'left'" in told
    assert not any(str(folder) in message for folder in (baseline, subject) for message in told)


def test_a_template_that_prints_the_date_is_the_same_every_day() -> None:
    """The clock is not the template's."""
    dated = "{{ strftime_now('%d %b %Y') }}{{ messages[0]['content'] }}"
    assert first_difference((dated, dated + "{# #}"), ({}, {})) == ""


@pytest.mark.parametrize("token", ["bos_token", "eos_token"])
def test_a_template_is_rendered_with_the_special_tokens(token: str) -> None:
    """The same text prints another token on the other side."""
    text = "{{ " + token + " }}{{ messages[0]['content'] }}"
    assert first_difference((text, text), ({token: "<a>"}, {token: "<b>"})) != ""


VALUES: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 99), st.floats(0, 2), st.lists(st.integers(0, 9))
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(["eos_token_id", "top_k", "top_p", "foo"]), VALUES))
def test_settings_differ_exactly_where_their_meaning_does(
    tmp_path: Path, stated: dict[str, Any]
) -> None:
    """Any key, any value: a file against itself is silent, and against another layout too."""
    for name, text in (("a", json.dumps(stated)), ("b", json.dumps(stated, indent=3))):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "generation_config.json").write_text(text)
    assert effective(tmp_path / "a") == effective(tmp_path / "b")
    changed = {**stated, "min_p": 0.37}
    (tmp_path / "b" / "generation_config.json").write_text(json.dumps(changed))
    assert effective(tmp_path / "a") != effective(tmp_path / "b")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors", "x.txt"])
def test_what_others_compare_is_not_in_the_table(name: str) -> None:
    """Configuration, tokenizer and weights have their own places."""
    assert kind_of(name) is None


# --- processors -------------------------------------------------------------------------------

IMAGES = {
    "image_processor_type": "CLIPImageProcessor", "do_resize": True, "image_mean": [0.5, 0.5, 0.5],
    "size": {"shortest_edge": 28}, "resample": 3, "processor_class": "LlavaProcessor",
}  # fmt: skip
WHOLE = {"processor_class": "LlavaProcessor", "patch_size": 14}
OWN, BOTH = "preprocessor_config.json", "processor_config.json"
FAST = {"image_processor_type": "CLIPImageProcessorFast", "default_to_square": True, "device": None}


def processor(folder: Path, own: object = None, whole: object = None) -> Path:
    """A model for images too, with these settings in the older and in the newer place."""
    put(folder, "config.json", {"vision_config": {"model_type": "clip_vision_model"}})
    for name, content in ((OWN, own), (BOTH, whole)):
        put(folder, name, None)
        put(folder, name, None if content is None else json.dumps(content))
    return folder


PROCESSORS: dict[str, tuple[object, object, set[str]]] = {
    "in one file, as the newer library saves it": (
        None, {**WHOLE, "image_processor": IMAGES}, set(),
    ),
    "a class that computes the same": ({**IMAGES, **FAST}, WHOLE, set()),
    "in both places alike": (IMAGES, {**WHOLE, "image_processor": IMAGES}, set()),
    "in both places, not alike": (
        {**IMAGES, "resample": 2}, {**WHOLE, "image_processor": IMAGES}, {"processor_config"},
    ),
    "another mean": ({**IMAGES, "image_mean": [0, 0, 0]}, WHOLE, {"processor_config"}),
    "another mean in the newer place": (
        None, {**WHOLE, "image_processor": {**IMAGES, "image_mean": [0, 0, 0]}},
        {"processor_config"},
    ),
    "one more setting": ({**IMAGES, "do_normalize": False}, WHOLE, {"processor_config"}),
    "another size of patches": (IMAGES, {**WHOLE, "patch_size": 7}, {"processor_config"}),
    "images forgotten": (None, WHOLE, {"processor_config"}),
    "lost": (None, None, {"processor_config"}),
    "code": (
        {**IMAGES, "auto_map": {"AutoImageProcessor": "x--y.Z"}}, WHOLE,
        {"remote_code"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", PROCESSORS)
def test_processors_are_compared_wherever_they_are_kept(
    baseline: Path, tmp_path: Path, case: str
) -> None:
    """What a library moves is the same; what it would compute otherwise blocks."""
    own, whole, names = PROCESSORS[case]
    before = processor(shutil.copytree(baseline, tmp_path / "before"), IMAGES, WHOLE)
    after = processor(shutil.copytree(baseline, tmp_path / "after"), own, whole)
    assert blocking(before, after) == names


def test_a_model_for_text_needs_no_processor(baseline: Path, subject: Path) -> None:
    """What a tokenizer's repository left there."""
    put(baseline_with := shutil.copytree(baseline, subject.with_name("with")), OWN, IMAGES)
    assert blocking(baseline_with, subject) == set()
    assert "which a model for text does not need" in str(check_shipped(baseline_with, subject))
