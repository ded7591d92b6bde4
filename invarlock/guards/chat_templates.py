"""Chat templates, compared by what they make of conversations.

Two texts that render every conversation alike are one template; one template is often spelled in
several files, and loaders differ in which they read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

from invarlock.guards.findings import Failure
from invarlock.template_files import DEFAULT, Templates, effective, spellings

ACCEPT = "chat_template"
Tokens = Mapping[str, str]  # bos_token and the like

_USER = {"role": "user", "content": "  What is 2 + 2?\n"}
_SYSTEM = {"role": "system", "content": "Answer in one word."}
_ANSWER = {"role": "assistant", "content": "Four. "}
_THOUGHT = {
    "role": "assistant",
    "content": "<think>\n2 and 2\n</think>\n\nFour.",
    "reasoning_content": "2 and 2",
}
_AGAIN = {"role": "user", "content": "And <b>3 + 3</b>?"}
_CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {
            "id": "call00000",
            "type": "function",
            "function": {"name": "add", "arguments": {"a": 2, "b": 2}},
        }
    ],
}
_RESULT = {"role": "tool", "name": "add", "tool_call_id": "call00000", "content": "4"}
_PARTS = {
    "role": "user",
    "content": [{"type": "text", "text": "What is"}, {"type": "text", "text": " 2 + 2?"}],
}
_DEVELOPER = {"role": "developer", "content": "Answer in digits."}
_CALLS = {
    "role": "assistant",
    "content": "I add.",
    "tool_calls": [
        {
            "id": f"call0000{number}",
            "type": "function",
            "function": {"name": "add", "arguments": f'{{"a": {number}, "b": 2}}'},
        }
        for number in (1, 2)
    ],
}
_RESULTS = [
    {"role": "tool", "name": "add", "tool_call_id": f"call0000{number}", "content": str(number + 2)}
    for number in (1, 2)
]
_TURNS = [
    {"role": role, "content": f"{role} {number}"}
    for number in range(1, 5)
    for role in ("user", "assistant")
]
_TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "number"}, "b": {"type": "number"}},
            "required": ["a", "b"],
        },
    },
}
# What a template may ask for, and what is tried of it; None: left out.
ASKED: Mapping[str, tuple[object, ...]] = {
    "tools": (None, [_TOOL]),
    "documents": (None, [{"title": "Sums", "text": "2 + 2 is 4."}]),
    "enable_thinking": (None, True, False),
    "thinking": (None, True),
    "reasoning_effort": (None, "low", "high"),
}
CONVERSATIONS: Mapping[str, list[dict[str, Any]]] = {
    "a user's question": [_USER],
    "system and user": [_SYSTEM, _USER],
    "several turns": [_SYSTEM, _USER, _ANSWER, _AGAIN],
    "a finished answer": [_USER, _ANSWER],
    "an answer with its reasoning": [_USER, _THOUGHT, _AGAIN],
    "a tool that was called": [_USER, _CALL, _RESULT],
    "two tools that were called": [_SYSTEM, _USER, _CALLS, *_RESULTS, _ANSWER, _AGAIN],
    "a question in parts": [_PARTS],
    "nine turns": [*_TURNS, _AGAIN],
    "a developer's word": [_DEVELOPER, _USER],
    "a system's word in the middle": [_USER, _ANSWER, _SYSTEM, _AGAIN],
    "two questions in a row": [_USER, _AGAIN],
    "a thought at the end": [_USER, _THOUGHT],
}


def check_templates(
    baseline: Path, subject: Path, tokens: tuple[Tokens, Tokens]
) -> Iterator[Failure]:
    """How the chat templates of two checkpoint folders differ.

    Args:
        baseline: folder of the baseline.
        subject: folder of the subject.
        tokens: the special tokens of both, which templates may print.
    """
    old, new = spellings(baseline), spellings(subject)
    before, after = effective(old), effective(new)
    for name in sorted({*before, *after}):
        what = "the chat template" + (f" {name}" if name != DEFAULT else "")
        if name not in after:
            yield _failure(f"{what} is lost")
        elif name not in before:
            yield _failure(f"{what} is new, the baseline has none")
        elif told := first_difference((before[name], after[name]), tokens):
            yield _failure(f"{what} differs: {told}")
        elif before[name].strip() != after[name].strip():
            text = f"{what} has another text; the {len(CONVERSATIONS)} conversations that are tried"
            yield _note(f"{text} come out alike")
    yield from _contradictions(old, new, tokens)


def _contradictions(
    old: Mapping[str, Templates], new: Mapping[str, Templates], tokens: tuple[Tokens, Tokens]
) -> Iterator[Failure]:
    """Spellings of the subject that say otherwise than the one that transformers reads."""
    taken = effective(new)
    for file, templates in new.items():
        for name in sorted(templates.keys() & taken.keys()):
            own = tokens[1], tokens[1]
            told = first_difference((taken[name], templates[name]), own)
            theirs = old.get(file, {}).get(name)
            if told and (theirs is None or first_difference((theirs, templates[name]), tokens)):
                yield _failure(
                    f"two chat templates contradict each other, and loaders differ in which they"
                    f" read: the one in {file} is not that of {next(iter(new))}: {told}"
                )


def first_difference(texts: tuple[str, str], tokens: tuple[Tokens, Tokens]) -> str:
    """The first conversation that two templates render differently; empty where there is none."""
    if texts[0] == texts[1] and tokens[0] == tokens[1]:
        return ""
    for name, messages in CONVERSATIONS.items():
        for settings in _settings(texts):
            one, other = (
                render(text, messages, own, settings)
                for text, own in zip(texts, tokens, strict=True)
            )
            if one != other:
                asked = " with a generation prompt" if settings["add_generation_prompt"] else ""
                return f"{name}{asked} rendered {_near(one, other)}, renders {_near(other, one)}"
    return ""


def _settings(texts: tuple[str, str]) -> Iterator[dict[str, Any]]:
    """With and without a generation prompt, and what else a template asks for by its name."""
    asked = {
        name: values
        for name, values in ASKED.items()
        if any(re.search(rf"\b{name}\b", text) for text in texts)
    }
    for chosen in product(*asked.values()):
        given = {n: v for n, v in zip(asked, chosen, strict=True) if v is not None}
        for prompt in (False, True):
            yield {"add_generation_prompt": prompt, **given}


def render(
    template: str, messages: list[dict[str, Any]], tokens: Tokens, settings: Mapping[str, Any]
) -> str:
    """What transformers' sandboxed environment makes of a conversation, or why it refuses.

    A template that prints the date prints a fixed one.
    """
    from jinja2 import TemplateError
    from transformers.utils import chat_template_utils

    library: Any = chat_template_utils  # whose annotations leave out the second result
    fixed = {"strftime_now": lambda form: "26 Jul 2024", "date_string": "26 Jul 2024"}
    try:
        rendered, _ = library.render_jinja_template(
            conversations=[messages], chat_template=template, **settings, **fixed, **tokens
        )
    except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        return f"refused: {type(error).__name__}"
    except (AttributeError, RecursionError, AssertionError) as error:
        return f"refused: {type(error).__name__}"
    return str(rendered[0])


def _near(text: str, other: str) -> str:
    """A text from a little before the place where another departs from it."""
    same = next((i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), None)
    start = max(0, (min(len(text), len(other)) if same is None else same) - 10)
    piece = text[start : start + 40]
    return ("..." if start else "") + repr(piece) + ("..." if start + 40 < len(text) else "")


def _note(message: str) -> Failure:
    return {"type": "chat_template_changed", "severity": "warning", "message": message}


def _failure(message: str) -> Failure:
    return {
        "type": "chat_template_changed",
        "severity": "fatal",
        "message": message,
        "accept": ACCEPT,
    }
