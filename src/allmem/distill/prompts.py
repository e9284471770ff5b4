"""Prompts for a student to answer, from files of chats.

Every form of row that ``allmem data build`` reads is read here too; the answer to the last user
turn is left away, and may be missing. A prompt is tokenised as ``allmem.data.chat`` tokenises what
stands before a response, up to the end of the template's generation prompt.

It knows tokenizers and files, not models.
"""

from __future__ import annotations

import dataclasses
import hashlib
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from allmem.data.adapters import conversations
from allmem.data.chat import ChatEncoder, Piece
from allmem.data.config import SourceConfig
from allmem.data.conversation import Conversation, Dropped, Message
from allmem.data.readers import BadRow, Row, read_rows
from allmem.errors import AllMemError
from allmem.schema import check_positive

__all__ = ["LONGEST", "Prompt", "PromptEncoder", "Prompts", "read_prompts"]

LONGEST = 4096
"""Tokens of a prompt: the paper's short samples (section 3.3.1)."""

ANSWER = "ALLMEM-ANSWER"
"""Stands for a response while its prompt is made."""


@dataclass(frozen=True)
class Prompt:
    """What a student is to answer."""

    said: str | list[dict[str, str]]
    """The user's words; all messages, where there are several."""
    ids: list[int]


@dataclass(frozen=True)
class Prompts:
    """Prompts under one chat template."""

    listed: list[Prompt]
    end: int
    """The token that ends a response."""
    thinking: bool = False
    skipped: dict[str, int] = field(default_factory=dict)
    """Why conversations were left out, and how many."""

    def __len__(self) -> int:
        return len(self.listed)

    def part(self, which: slice) -> Prompts:
        """Some of them."""
        return dataclasses.replace(self, listed=self.listed[which])

    def fingerprint(self) -> str:
        """A short hash of all their tokens."""
        digest = hashlib.sha256()
        for prompt in self.listed:
            digest.update(array("q", [len(prompt.ids), *prompt.ids]).tobytes())
        return digest.hexdigest()[:16]


class PromptEncoder(ChatEncoder):
    """Tokenises what stands before a response.

    Args:
        tokenizer: with a chat template.
        thinking: let a template that asks for it (Qwen3) begin with the model's thoughts.

    Raises:
        AllMemError: as ``ChatEncoder``.
    """

    def __init__(self, tokenizer: Any, thinking: bool = False) -> None:
        super().__init__(tokenizer, responses="last")
        self.thinks = thinking
        self.end = self._answered((Message("user", ANSWER),), None)[1].ids[-1]

    def prompt(self, conversation: Conversation) -> Prompt:
        """The prompt of a conversation's last response.

        Raises:
            Dropped: if it has none, or the template refuses or alters the conversation.
        """
        messages = conversation.messages
        if messages and messages[-1].role == "assistant":
            messages = messages[:-1]
        if not messages or messages[-1].role != "user":
            raise Dropped("no_prompt", "the last turn before the answer is not the user's")
        before, _ = self._answered(messages, conversation.document)
        turns = self._turns(dataclasses.replace(conversation, messages=messages))
        text = "".join(piece.text for piece in before)
        whole = self._render(turns, add_generation_prompt=True, enable_thinking=self.thinks)
        if not whole.startswith(text):
            raise Dropped("altered_by_template", "it asks for an answer in another way")
        # Some generation prompts go on where the history shows nothing (DeepSeek's `<think>`).
        rest = self._control_ids(whole[len(text) :]) if len(whole) > len(text) else []
        ids = [i for piece in before for i in piece.ids] + list(rest)
        return Prompt(turns[0]["content"] if len(turns) == 1 else turns, ids)

    def _answered(
        self, messages: Sequence[Message], document: str | None
    ) -> tuple[list[Piece], Piece]:
        """The pieces before a response to these messages, and the response."""
        answer = Message("assistant", ANSWER, ANSWER if self.thinks else "")
        pieces = self.encode(Conversation((*messages, answer), document))
        place = next(i for i, piece in enumerate(pieces) if piece.kind == "response")
        return pieces[:place], pieces[place]


def read_prompts(
    files: Sequence[str],
    tokenizer: Any,
    *,
    thinking: bool = False,
    longest: int = LONGEST,
    limit: int | None = None,
) -> Prompts:
    """Read prompts.

    Args:
        files: files, folders or patterns, as ``allmem data build`` takes them.
        tokenizer: with a chat template.
        thinking: see ``PromptEncoder``.
        longest: prompts of more tokens are skipped.
        limit: stop after so many.

    Raises:
        AllMemError: if a file cannot be read, there is no prompt in any, or the chat template has
            no generation prompt.
    """
    check_positive(longest=longest, limit=limit)
    encoder = PromptEncoder(tokenizer, thinking)
    skipped: Counter[str] = Counter()
    found = (
        prompt
        for file in files
        for row in read_rows(SourceConfig(path=file))
        for prompt in _prompts_of(row, encoder, longest, skipped)
    )
    listed = list(islice(found, limit))
    if not listed:
        reasons = ", ".join(f"{reason} {number}" for reason, number in skipped.items())
        raise AllMemError(
            f"there is no prompt of up to {longest} tokens in {', '.join(files) or 'no file'} "
            f"(skipped: {reasons or 'nothing'})"
        )
    return Prompts(listed, encoder.end, thinking, dict(skipped))


def _prompts_of(
    row: Row | BadRow, encoder: PromptEncoder, longest: int, skipped: Counter[str]
) -> Iterator[Prompt]:
    """The prompts of a row; what is left out is counted."""
    if isinstance(row, BadRow):
        raise AllMemError(f"{row.reason}; mend it or take it out")
    # The adapters look for answers, which a prompt need not have.
    values = {**row.values, "output": ANSWER}
    if isinstance(values.get("prompt"), list):
        values["messages"] = values["prompt"]
    try:
        made = list(conversations(values, None, None, "", row.after.rows))
    except Dropped as verdict:
        skipped[verdict.reason] += 1
        return
    for conversation in made:
        try:
            prompt = encoder.prompt(conversation)
        except Dropped as verdict:
            skipped[verdict.reason] += 1
            continue
        if len(prompt.ids) > longest:
            skipped["too_long"] += 1
            continue
        yield prompt
