"""Texts to tokens, and prompts that do not fit, exactly as lm-eval's ``HFLM`` does it (0.4.13,
``lm_eval/models/huggingface.py`` and ``TemplateLM._encode_pair``): a score depends on it.
"""

from __future__ import annotations

from typing import Any

from allmem.errors import AllMemError

__all__ = [
    "chat_text",
    "encode_pair",
    "encode_prompt",
    "shortened_text",
    "until",
    "without_beginning",
]


def encode_pair(tokenizer: Any, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Tokens of a context and of what follows it.

    Spaces at the end of the context belong to the continuation, and both are tokenised together
    and then cut where the context alone ends.
    """
    if not context:
        return _without_context(tokenizer, continuation)
    bare = context.rstrip()
    continuation = context[len(bare) :] + continuation
    whole = _encode(tokenizer, bare + continuation)
    # A context of spaces alone has no tokens of its own.
    first = len(_encode(tokenizer, bare))
    return whole[:first], whole[first:]


def encode_prompt(tokenizer: Any, text: str) -> list[int]:
    """Tokens of a prompt.

    The beginning-of-text token comes as the tokenizer has it, unless the text brings it along.
    """
    brings = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
    return list(tokenizer(text, **({"add_special_tokens": False} if brings else {}))["input_ids"])


def without_beginning(ids: list[int], longest: int | None) -> tuple[list[int], int]:
    """The last ``longest`` tokens of a prompt, and how many were left out in front.

    Raises:
        AllMemError: if there is no room for a prompt.
    """
    if longest is None or len(ids) <= longest:
        return ids, 0
    if longest <= 0:
        raise AllMemError(
            "the answer alone takes all tokens that the model was made for; allow a shorter one "
            "(--max-new-tokens)"
        )
    return ids[-longest:], len(ids) - longest


def shortened_text(tokenizer: Any, ids: list[int]) -> str:
    """The text of a prompt that lost its beginning, in no more tokens when it is read again: a
    character that was cut may be several then."""
    text = tokenizer.decode(ids)
    first = 0
    while len(encode_prompt(tokenizer, text)) > len(ids) and first < len(ids):
        first += 1
        text = tokenizer.decode(ids[first:])
    return text


def chat_text(tokenizer: Any, messages: list[dict[str, str]], thinking: bool) -> str:
    """A conversation as a model reads it; without the system's words where its template refuses
    them."""
    from jinja2.exceptions import TemplateError

    def render(history: list[dict[str, str]]) -> str:
        return tokenizer.apply_chat_template(
            history, tokenize=False, add_generation_prompt=True, enable_thinking=thinking
        )

    try:
        return render(messages)
    except TemplateError:
        return render([message for message in messages if message["role"] != "system"])


def until(text: str, stops: tuple[str, ...]) -> str:
    """A text up to the first of the texts that end it."""
    for stop in stops:
        text = text.split(stop, maxsplit=1)[0] if stop else text
    return text


def _encode(tokenizer: Any, text: str) -> list[int]:
    start = tokenizer.decode(_first_token(tokenizer))
    brings = bool(start) and text.startswith(start)
    return list(tokenizer.encode(text, **({"add_special_tokens": False} if brings else {})))


def _without_context(tokenizer: Any, continuation: str) -> tuple[list[int], list[int]]:
    ids = list(tokenizer.encode(continuation, add_special_tokens=False))
    first = _first_token(tokenizer)
    return (ids[:1], ids[1:]) if ids and ids[0] == first else ([first], ids)


def _first_token(tokenizer: Any) -> int:
    """The token that every text begins with, or stands for nothing before it."""
    if tokenizer.bos_token_id is not None:
        return tokenizer.bos_token_id
    return tokenizer.eos_token_id
