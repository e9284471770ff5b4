"""Text made plain: what cleaning changes, it changes in every text alike and in silence; what it
cannot mend it reports.
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Callable

from allmem.data.conversation import Conversation, Message
from allmem.data.readers import needed

__all__ = ["clean_conversation", "clean_text", "looks_wrongly_decoded", "mend_encoding"]

CONTROL = re.compile(
    # C0 and C1 without tab and newline, zero-width no-break space, line separators, noncharacters.
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff\u2028\u2029\ufffe\uffff]"
)
LINE_ENDS = re.compile(r"\r\n?|\u0085")
TRAILING = re.compile(r"[ \t\u3000\u00a0]+$", re.MULTILINE)
BLANK_LINES = re.compile(r"\n{4,}")
LOST = re.compile("\ufffd|锟斤拷|烫烫烫")
"""Replacement characters, and what is left of Chinese text that was decoded and encoded twice."""

SUSPICIOUS = 2.0
"""Signs of a wrong encoding per thousand characters from which a text counts as broken. Two, not
one: prose with accents and curly quotes has false alarms."""
JUDGED = 20_000
"""Characters that are looked at: an encoding is wrong everywhere or nowhere."""


def clean_text(text: str) -> str:
    """NFC, one kind of line end, no control characters, no space at the ends of lines and text, at
    most two blank lines in a row. Indentation stays: it means something in code."""
    text = LINE_ENDS.sub("\n", text)
    text = CONTROL.sub("", unicodedata.normalize("NFC", text))
    text = TRAILING.sub("", text)
    return BLANK_LINES.sub("\n\n\n", text).strip()


def looks_wrongly_decoded(text: str) -> bool:
    """Whether a text is mojibake: UTF-8 read as Latin-1, or characters lost for good."""
    head = text[:JUDGED]
    if not head or head.isascii():
        return False
    badness: Callable[[str], int] = needed("ftfy.badness", "ftfy").badness
    signs = badness(head) + len(LOST.findall(head))
    return signs * 1000 / len(head) >= SUSPICIOUS and signs > 1


def mend_encoding(text: str) -> str:
    """Undo a wrong decoding where that is possible."""
    return needed("ftfy", "ftfy").fix_encoding(text)


def clean_conversation(
    conversation: Conversation, change: Callable[[str], str] = clean_text
) -> Conversation:
    """A conversation with every text in it changed."""
    document = conversation.document
    return dataclasses.replace(
        conversation,
        document=change(document) or None if document else None,
        messages=tuple(
            Message(m.role, change(m.content), change(m.thinking) if m.thinking else "")
            for m in conversation.messages
        ),
    )
