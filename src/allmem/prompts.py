"""How text becomes tokens for a model: its chat template, cut so that a part can be read before the
next one is known.

A template is rendered once with placeholders for what is not known yet, and cut at them. Every
piece is tokenised by itself, always the same way, so that reading a document first and a question
later gives the tokens that both give together. What a user or a document says is never parsed for
control tokens: an ``<|im_end|>`` in a book is ten characters of text and does not end a turn.

It knows tokenizers, not models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from allmem.errors import AllMemError, first_line

__all__ = [
    "ChatPrompts",
    "DocumentPrompt",
    "check_question",
    "plain_ids",
    "plain_spans",
    "start_ids",
]

_DOCUMENT, _QUESTION, _ANSWER, _SYSTEM = (f"ALLMEM-{i}-PLACE" for i in range(4))

BETWEEN = "\n\n"
"""What stands between a document and the question about it."""


def plain_ids(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a text that somebody wrote: no control tokens are added or parsed."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def plain_spans(tokenizer: Any, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """The same tokens, and of each its first character and its end."""
    encoded = tokenizer(
        text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
    )
    return encoded["input_ids"], encoded["offset_mapping"]


def start_ids(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before every text: its BOS token, or nothing."""
    return [i for i in tokenizer("")["input_ids"] if i == tokenizer.bos_token_id]


def _control_ids(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a piece of a template."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=False)["input_ids"]


def _render(tokenizer: Any, messages: list[dict[str, str]], thinking: bool) -> str:
    try:
        # Templates that know no `enable_thinking` ignore it.
        return tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=thinking
        )
    except Exception as error:
        # Templates raise errors of their own (jinja2's) for roles and orders that they refuse.
        raise AllMemError(
            f"the tokenizer's chat template refused the conversation: {first_line(error)}"
        ) from error


def _cut(text: str, places: Sequence[str]) -> list[str]:
    """The pieces of a rendered template around the placeholders, which must stand in this order."""
    pieces = []
    for place in places:
        before, found, text = text.partition(place)
        if not found:
            raise AllMemError(
                "the tokenizer's chat template does not show every message as it is; "
                "use `allmem generate` with a prompt of your own"
            )
        pieces.append(before)
    return [*pieces, text]


def check_question(text: str) -> None:
    """Refuse an empty question, before a document is read for it.

    Raises:
        AllMemError: if there is nothing but space.
    """
    if not text.strip():
        raise AllMemError("the question is empty; ask something")


@dataclass(frozen=True)
class DocumentPrompt:
    """A prompt with a document and a question, in two parts.

    Args:
        tokenizer: with a chat template: document and question become one user turn; without one:
            the document, then "Question: ... Answer:".
        thinking: let a template that asks for it (Qwen3) begin with the model's thoughts.
    """

    tokenizer: Any
    thinking: bool = False

    @property
    def stop(self) -> str | None:
        """Text at which an answer ends: without a template a model knows no end of turn."""
        return None if self.tokenizer.chat_template else "\n"

    def _pieces(self) -> list[str]:
        message = {"role": "user", "content": _DOCUMENT + BETWEEN + _QUESTION}
        return _cut(_render(self.tokenizer, [message], self.thinking), [_DOCUMENT, _QUESTION])

    def document(self, text: str) -> list[int]:
        """Tokens up to the end of the document."""
        if not self.tokenizer.chat_template:
            return start_ids(self.tokenizer) + plain_ids(self.tokenizer, text)
        return _control_ids(self.tokenizer, self._pieces()[0]) + plain_ids(self.tokenizer, text)

    def question(self, text: str) -> list[int]:
        """Tokens from the end of the document to the beginning of the answer.

        Raises:
            AllMemError: if the question is empty.
        """
        check_question(text)
        if not self.tokenizer.chat_template:
            return plain_ids(self.tokenizer, f"{BETWEEN}Question: {text.strip()}\nAnswer:")
        _, between, after = self._pieces()
        return [
            *plain_ids(self.tokenizer, between + text),
            *_control_ids(self.tokenizer, after),
        ]


@dataclass(frozen=True)
class ChatPrompts:
    """The turns of a growing conversation, each as the tokens that are new in it.

    Raises:
        AllMemError: if the tokenizer has no chat template.
    """

    tokenizer: Any
    system: str | None = None
    thinking: bool = False

    def __post_init__(self) -> None:
        if not self.tokenizer.chat_template:
            raise AllMemError(
                "the tokenizer has no chat template, so the model was not trained to chat; "
                "use `allmem generate`, or the model's instruct version"
            )

    def _beginning(self) -> list[dict[str, str]]:
        return [] if self.system is None else [{"role": "system", "content": _SYSTEM}]

    def first(self, text: str) -> list[int]:
        """Everything up to the first answer."""
        user = {"role": "user", "content": _QUESTION}
        rendered = _render(self.tokenizer, [*self._beginning(), user], self.thinking)
        if self.system is None:
            before, after = _cut(rendered, [_QUESTION])
            ids = _control_ids(self.tokenizer, before)
        else:
            beginning, between, after = _cut(rendered, [_SYSTEM, _QUESTION])
            ids = [
                *_control_ids(self.tokenizer, beginning),
                *plain_ids(self.tokenizer, self.system),
                *_control_ids(self.tokenizer, between),
            ]
        return [*ids, *plain_ids(self.tokenizer, text), *_control_ids(self.tokenizer, after)]

    def next(self, text: str) -> list[int]:
        """From the end of an answer, its end-of-turn token not yet read, to the beginning of the
        next."""
        messages = [
            *self._beginning(),
            {"role": "user", "content": _DOCUMENT},
            {"role": "assistant", "content": _ANSWER},
            {"role": "user", "content": _QUESTION},
        ]
        rendered = _render(self.tokenizer, messages, self.thinking)
        _, _, between, after = _cut(rendered, [_DOCUMENT, _ANSWER, _QUESTION])
        return [
            *_control_ids(self.tokenizer, between),
            *plain_ids(self.tokenizer, text),
            *_control_ids(self.tokenizer, after),
        ]
