"""Single tokens as text and as bytes, for log-probabilities."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Any

__all__ = ["Spelling", "finite"]

BYTE = re.compile("<0x([0-9A-F]{2})>")
"""How SentencePiece's vocabularies spell single bytes."""

LEAST = -9999.0
"""What OpenAI's API says of a token that cannot be: JSON has no infinity."""


def finite(logprob: float | None) -> float:
    """A log-probability as JSON can hold it."""
    return LEAST if logprob is None else max(logprob, LEAST)


class Spelling:
    """How a tokenizer's tokens are written."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def bytes(self, token: int) -> list[int] | None:
        """UTF-8, of a part of a character too; ``None`` if the vocabulary does not tell."""
        text = self._tokenizer.decode([token])
        if "\ufffd" not in text:
            return list(text.encode())
        word = self._tokenizer.convert_ids_to_tokens(token) or ""
        if single := BYTE.fullmatch(word):
            return [int(single[1], 16)]
        if word and all(letter in self._byte_letters for letter in word):
            return [self._byte_letters[letter] for letter in word]
        return None

    def text(self, token: int) -> str:
        """The token's text; of a part of a character its bytes, as ``bytes:\\xf0\\x9f``."""
        text = self._tokenizer.decode([token])
        if "\ufffd" not in text or (raw := self.bytes(token)) is None:
            return text
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    @cached_property
    def _byte_letters(self) -> dict[str, int]:
        """What byte-level vocabularies (GPT-2's and those after it) write for each byte."""
        from transformers.convert_slow_tokenizer import bytes_to_unicode

        return {letter: byte for byte, letter in bytes_to_unicode().items()}
