"""The token that a model expects at the head of every text, where it expects one.

A model that was trained with it reads text without it as the middle of something: perplexities of
Gemma without it are many times what they are with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from invarlock.errors import ConfigError
from invarlock.files import read_json_object
from invarlock.tokenizer_meaning import read_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ADD_BOS = ("auto", "always", "never")
# Models that need the token whether or not the tokenizer's files say that it is added.
_NEED_IT = ("gemma", "recurrent_gemma")  # and what begins so


def begin_token(folder: Path, add_bos: str = "auto") -> int | None:
    """The id that stands at the head of each window; None for none.

    Args:
        folder: a checkpoint with ``tokenizer.json``.
        add_bos: one of ``ADD_BOS``. ``auto``: where the tokenizer puts a token before a text and
            none after it (``tokenizer.json``, or ``add_bos_token`` of ``tokenizer_config.json``,
            which overrules it), and for kinds of models that need it.

    Raises:
        InputError: no readable tokenizer.
        ConfigError: the token is needed or asked for, and neither the tokenizer's settings nor
            ``config.json`` name one.
    """
    if add_bos == "never" or not (folder / "tokenizer.json").is_file():
        return None
    tokenizer = read_tokenizer(folder / "tokenizer.json")
    settings, config = _read(folder / "tokenizer_config.json"), _read(folder / "config.json")
    put = _put_before(tokenizer)
    declared = settings.get("add_bos_token")
    kind = config.get("model_type")
    needed = add_bos == "always" or (isinstance(kind, str) and kind.startswith(_NEED_IT))
    if not needed and (declared is False or (put is None and declared is not True)):
        return None
    named = put if put is not None else _named(tokenizer, settings, config)
    if named is None and needed:
        raise ConfigError(
            "the model has no begin-of-text token",
            where=str(folder),
            expected="bos_token in tokenizer_config.json or bos_token_id in config.json",
            hint="name one there; a workflow with windows.add_bos=never measures without one",
        )
    return named


def _put_before(tokenizer: Tokenizer) -> int | None:
    """The one token that the tokenizer puts before a text; None if it also puts one after it."""
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    whole = tokenizer.encode("a", add_special_tokens=True).ids
    return int(whole[0]) if plain and whole[1:] == plain else None


def _named(
    tokenizer: Tokenizer, settings: Mapping[str, Any], config: Mapping[str, Any]
) -> int | None:
    """The id of the token that the tokenizer's settings name, else the model's."""
    token = settings.get("bos_token")
    if isinstance(token, Mapping):  # with how it is to be matched
        token = token.get("content")
    if isinstance(token, str):
        found: int | None = tokenizer.token_to_id(token)
        if found is not None:
            return found
    text = config.get("text_config")
    for part in (config, text if isinstance(text, Mapping) else {}):
        number = part.get("bos_token_id")
        if type(number) is int and number >= 0:
            return number
    return None


def _read(path: Path) -> Mapping[str, Any]:
    return read_json_object(path) if path.is_file() else {}
