"""Which conversations are left out, and why. Every filter raises ``Dropped`` with its reason.

What can be judged from the text alone stands here; what needs tokens is in ``allmem.data.fitting``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import pairwise

from allmem.data.cleaning import clean_conversation, looks_wrongly_decoded, mend_encoding
from allmem.data.config import FilterConfig, SourceConfig
from allmem.data.conversation import Conversation, Dropped
from allmem.data.readers import Row, read_rows
from allmem.errors import AllMemError

__all__ = ["Filters", "repetition"]

PIECE = 10
"""Characters of a piece in which repetition is counted."""
LONG_ENOUGH = 200
"""Characters below which a text may repeat itself as it likes."""
OVERLAP = 13
"""Words that a sample and a benchmark may not share in a row (GPT-3's decontamination)."""
WORD = re.compile(r"[\u3400-\u9fff]|[^\W_]+")


def repetition(text: str) -> float:
    """Share of a text's pieces of ten characters that occurred in it before."""
    if len(text) < LONG_ENOUGH:
        return 0.0
    pieces = [text[i : i + PIECE] for i in range(len(text) - PIECE + 1)]
    return 1 - len(set(pieces)) / len(pieces)


class Filters:
    """The filters of one build.

    Raises:
        AllMemError: on a broken pattern, or a benchmark file that cannot be read.
    """

    def __init__(self, config: FilterConfig) -> None:
        self.config = config
        try:
            self.refused = [re.compile(pattern) for pattern in config.refuse]
        except re.error as error:
            raise AllMemError(
                f"refuse: {error.pattern!r} is not a regular expression ({error})"
            ) from error
        self.excluded: set[int] = set()
        for path in config.exclude:
            for row in read_rows(SourceConfig(path=path)):
                if isinstance(row, Row):
                    for text in _texts(row.values):
                        self.excluded.update(_sequences(text))

    def __call__(self, conversation: Conversation) -> Conversation:
        """The conversation, mended where asked for.

        Raises:
            Dropped: with the reason.
        """
        _check_turns(conversation)
        config = self.config
        longest = max(map(len, conversation.responses))
        if longest < config.min_response_chars:
            raise Dropped("short_response")
        if config.mojibake != "keep" and any(map(looks_wrongly_decoded, conversation.texts())):
            if config.mojibake == "fix":
                conversation = clean_conversation(conversation, mend_encoding)
            if config.mojibake == "drop" or any(map(looks_wrongly_decoded, conversation.texts())):
                raise Dropped("mojibake")
        if any(repetition(text) > config.max_repetition for text in conversation.responses):
            raise Dropped("repetitive_response")
        for pattern in self.refused:
            if any(pattern.search(text) for text in conversation.texts()):
                raise Dropped("refused_pattern", pattern.pattern)
        if self.excluded and any(
            not self.excluded.isdisjoint(_sequences(text)) for text in conversation.texts()
        ):
            raise Dropped("in_benchmark")
        return conversation


def _check_turns(conversation: Conversation) -> None:
    messages = conversation.messages
    if not any(m.role == "assistant" for m in messages):
        raise Dropped("no_response")
    if messages[-1].role != "assistant":
        raise Dropped("no_response", "the conversation ends with the user")
    if any(m.role == "assistant" and not m.content for m in messages):
        raise Dropped("empty_response")
    if any(m.role == "user" and not m.content for m in messages):
        raise Dropped("empty_prompt")
    talk = [m.role for m in messages if m.role != "system"]
    if talk[0] != "user" or any(a == b for a, b in pairwise(talk)):
        raise Dropped("bad_order", "user and assistant do not take turns")
    if any(m.role == "system" for m in messages[1:]):
        raise Dropped("bad_order", "a system message in the middle")


def _texts(value: object) -> Iterable[str]:
    """Every text in a row, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def _sequences(text: str) -> Iterable[int]:
    words = WORD.findall(text.lower())
    for i in range(len(words) - OVERLAP + 1):
        # Python's own hash of strings differs from run to run; that changes nothing here.
        yield hash(tuple(words[i : i + OVERLAP]))
