"""Conversations and texts to token ids, outside of the event loop: a book takes seconds.

One thread does all of it, with a tokenizer of its own. Tokenizers are switched between parsing
control tokens and not, so that two threads with one of them could parse those in a user's text.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from allmem.prompts import ConversationPrompt, start_ids

__all__ = ["Encoder"]


class Encoder:
    """Turns prompts into token ids.

    Args:
        tokenizer: copied.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = copy.deepcopy(tokenizer)
        self._thread = ThreadPoolExecutor(1, "allmem-encoder")

    async def conversation(
        self,
        messages: Sequence[tuple[str, str]],
        *,
        answer: bool,
        continued: bool,
        options: Mapping[str, Any],
    ) -> list[int]:
        """See ``ConversationPrompt.ids``."""

        def encode() -> list[int]:
            prompt = ConversationPrompt(self._tokenizer)
            return prompt.ids(messages, answer=answer, continued=continued, options=options)

        return await self._run(encode)

    async def text(self, text: str, begin: bool) -> list[int]:
        """A text to be continued. It is the whole input, as it stands: control tokens in it are
        meant.

        Args:
            begin: with what the tokenizer puts before every text.
        """

        def encode() -> list[int]:
            start = start_ids(self._tokenizer) if begin else []
            return start + self._tokenizer(text, add_special_tokens=False)["input_ids"]

        return await self._run(encode)

    async def _run(self, encode: Callable[[], list[int]]) -> list[int]:
        return await asyncio.get_running_loop().run_in_executor(self._thread, encode)
