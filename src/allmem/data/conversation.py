"""What every sample is, wherever it came from: a conversation, perhaps about a document.

Readers make them, builders make them, filters judge them, and only ``allmem.data.chat`` turns them
into tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

__all__ = ["ROLES", "Conversation", "Dropped", "Message"]

ROLES = ("system", "user", "assistant")


class Dropped(Exception):  # noqa: N818 (a verdict that is counted, not an error)
    """A sample that is left out, and why: counted by ``reason`` and shown in the build's table."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Message:
    """One turn."""

    role: str
    """``system``, ``user`` or ``assistant``."""
    content: str
    thinking: str = ""
    """What an assistant thought before it answered; templates decide whether it is shown."""


@dataclass(frozen=True)
class Conversation:
    """Turns, and the document that the first user turn is about."""

    messages: tuple[Message, ...]
    document: str | None = None
    """Stands before the first user message, as ``allmem ask`` puts it."""
    source: str = ""
    id: str = ""
    whole: bool = False
    """Whether the sample loses its meaning when it is cut: it is left out instead."""
    info: dict[str, Any] = field(default_factory=dict)
    """JSON-able notes of a builder: kind, depth, distance."""

    @property
    def responses(self) -> tuple[str, ...]:
        return tuple(m.content for m in self.messages if m.role == "assistant")

    def texts(self) -> Iterator[str]:
        """Every text in it, the document first."""
        if self.document:
            yield self.document
        for message in self.messages:
            yield message.content

    def key(self) -> bytes:
        """16 bytes that conversations share if they differ at most in case and white space."""
        digest = hashlib.blake2b(digest_size=16)
        for text in self.texts():
            digest.update(" ".join(text.lower().split()).encode())
            # Between two texts stands a byte that UTF-8 never holds.
            digest.update(b"\xff")
        return digest.digest()
