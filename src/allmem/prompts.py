"""How text becomes tokens for a model: its chat template, cut so that a part can be read before the
next one is known.

A template is rendered once with placeholders for what is not known yet, and cut at them. Every
piece is tokenised by itself, always the same way, so that reading a document first and a question
later gives the tokens that both give together. What a user or a document says is never parsed for
control tokens: an ``<|im_end|>`` in a book is ten characters of text and does not end a turn.

It knows tokenizers, not models.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from allmem.errors import AllMemError, first_line

__all__ = [
    "ChatPrompts",
    "ConversationPrompt",
    "DocumentPrompt",
    "check_question",
    "plain_ids",
    "plain_spans",
    "start_ids",
]

_DOCUMENT, _QUESTION, _ANSWER, _SYSTEM = (f"ALLMEM-{i}-PLACE" for i in range(4))

PLACE = re.compile("ALLMEM-([0-9]+)-PLACE")
NOT_SHOWN = (
    "the tokenizer's chat template does not show every message as it is; give a prompt of your own "
    "(`allmem generate`, /v1/completions)"
)

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


def _render(
    tokenizer: Any,
    messages: list[dict[str, str]],
    options: Mapping[str, Any],
    *,
    answer: bool = True,
) -> str:
    """A conversation by the template, with the beginning of an answer or without.

    Args:
        options: for the template; what it does not know, such as `enable_thinking`, it ignores.
    """
    try:
        return tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=answer, **options
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
            raise AllMemError(NOT_SHOWN)
        pieces.append(before)
    return [*pieces, text]


def _check_template(tokenizer: Any) -> None:
    if not tokenizer.chat_template:
        raise AllMemError(
            "the tokenizer has no chat template, so the model was not trained to chat; let it "
            "continue a text (`allmem generate`, /v1/completions), or use its instruct version"
        )


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
        rendered = _render(self.tokenizer, [message], {"enable_thinking": self.thinking})
        return _cut(rendered, [_DOCUMENT, _QUESTION])

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
        _check_template(self.tokenizer)

    def _beginning(self) -> list[dict[str, str]]:
        return [] if self.system is None else [{"role": "system", "content": _SYSTEM}]

    def first(self, text: str) -> list[int]:
        """Everything up to the first answer."""
        user = {"role": "user", "content": _QUESTION}
        messages = [*self._beginning(), user]
        rendered = _render(self.tokenizer, messages, {"enable_thinking": self.thinking})
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
        rendered = _render(self.tokenizer, messages, {"enable_thinking": self.thinking})
        _, _, between, after = _cut(rendered, [_DOCUMENT, _ANSWER, _QUESTION])
        return [
            *_control_ids(self.tokenizer, between),
            *plain_ids(self.tokenizer, text),
            *_control_ids(self.tokenizer, after),
        ]


THOUGHTS = re.compile("(</?think>)")
"""Between these templates look for what an assistant thought, to leave it out of earlier turns."""

MARKS = 8
"""Looked for in one message."""

LEFT, RIGHT = "\n ", "   \n\n\n"
STRIPPED = (None, "\n", "")
"""What a template strips from a message's ends: all space, line breaks, nothing. ``LEFT`` keeps 0,
1, 2 characters of it, ``RIGHT`` 0, 3, 6: any sum of both tells each."""


@dataclass(frozen=True)
class ConversationPrompt:
    """A whole conversation at once, as a server is sent it.

    The template never sees what was said: it is rendered with placeholders, and once more with
    space around them, which shows whether it strips messages.

    Raises:
        AllMemError: if the tokenizer has no chat template.
    """

    tokenizer: Any

    def __post_init__(self) -> None:
        _check_template(self.tokenizer)

    def ids(
        self,
        messages: Sequence[tuple[str, str]],
        *,
        answer: bool = True,
        continued: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """The tokens of a conversation.

        Args:
            messages: roles and what they say.
            answer: end with the beginning of an answer.
            continued: end within the last message, for the model to go on with it.
            options: for the template, such as ``enable_thinking``.

        Raises:
            AllMemError: if the template refuses the conversation, or if an option is none of it.
        """
        options = options or {}
        own = inspect.signature(self.tokenizer.apply_chat_template).parameters
        if taken := sorted(set(options) & set(own)):
            raise AllMemError(f"{taken[0]!r} is not an option of the chat template; leave it out")
        said, shown, spaced = _with_places(messages)
        answer = answer and not continued
        pieces, found = _cut_anywhere(_render(self.tokenizer, shown, options, answer=answer))
        wide, again = _cut_anywhere(_render(self.tokenizer, spaced, options, answer=answer))
        # A template may leave out thoughts, and nothing else.
        needed = [place for place, (_, thought) in enumerate(said) if not thought]
        if not (found == again == sorted(set(found)) and set(needed) <= set(found)):
            raise AllMemError(NOT_SHOWN)
        kept = [len(more) - len(bare) for more, bare in zip(wide, pieces, strict=True)]
        ids = []
        for i, place in enumerate(found):
            text = said[place][0]
            text = text.lstrip(STRIPPED[kept[i] % 3]).rstrip(STRIPPED[min(kept[i + 1] // 3, 2)])
            ids += _control_ids(self.tokenizer, pieces[i]) + plain_ids(self.tokenizer, text)
        return ids if continued else ids + _control_ids(self.tokenizer, pieces[-1])


def _cut_anywhere(text: str) -> tuple[list[str], list[int]]:
    """The pieces of a rendered template around its places, and which places these are."""
    parts = PLACE.split(text)
    return parts[::2], [int(number) for number in parts[1::2]]


def _with_places(
    messages: Sequence[tuple[str, str]],
) -> tuple[list[tuple[str, bool]], list[dict[str, str]], list[dict[str, str]]]:
    """Messages with placeholders for what they say.

    Returns:
        By the number of a place the text and whether it may be a thought; the messages; the
        messages with space around the placeholders.
    """
    said: list[tuple[str, bool]] = []
    shown, padded = [], []
    for role, content in messages:
        parts = THOUGHTS.split(content, MARKS) if role == "assistant" else [content]
        spaced = list(parts)
        # Every second part is one of the marks.
        for i in range(0, len(parts), 2):
            place = f"ALLMEM-{len(said)}-PLACE"
            said.append((parts[i], i < len(parts) - 1))
            parts[i], spaced[i] = place, LEFT + place + RIGHT
        shown.append({"role": role, "content": "".join(parts)})
        padded.append({"role": role, "content": "".join(spaced)})
    return said, shown, padded
