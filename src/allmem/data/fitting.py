"""From pieces to a sample of at most so many tokens. What the assistant said is never cut away.

The document gives way first, then the longest of the users' messages; system messages, the
template and the responses stay. A sample whose responses are too long by themselves is left out,
or, if asked for, loses the end of its last response together with the token that ends the turn: a
student that saw it would learn to stop in the middle of a sentence.

Letters: T tokens of the sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from allmem.data.chat import Piece
from allmem.data.conversation import Dropped
from allmem.prompts import plain_spans

__all__ = ["KEPT", "Sample", "fit", "to_sample"]

KEPT = 16
"""Tokens that a document or a user's message keeps at least, where it has them: with less there
is nothing left to answer."""


@dataclass(frozen=True)
class Sample:
    """Tokens of one conversation."""

    ids: NDArray[np.int32]
    """[T]"""
    response: NDArray[np.bool_]
    """[T] whether the token is the assistant's to write."""
    source: str = ""
    id: str = ""
    cut: bool = False

    def __len__(self) -> int:
        return len(self.ids)


def to_sample(
    pieces: Sequence[Piece], source: str = "", ident: str = "", cut: bool = False
) -> Sample:
    """Join pieces.

    Raises:
        Dropped: if no token is the assistant's.
    """
    ids = np.fromiter((i for piece in pieces for i in piece.ids), dtype=np.int32)
    response = np.repeat(
        [piece.kind == "response" for piece in pieces], [len(piece.ids) for piece in pieces]
    )
    if not response.any():
        raise Dropped("no_response_tokens")
    return Sample(ids, response, source, ident, cut)


def fit(
    pieces: Sequence[Piece],
    limit: int,
    tokenizer: Any,
    cut: Literal["middle", "left"] = "middle",
    long_response: Literal["skip", "cut"] = "skip",
) -> list[Piece]:
    """The same pieces with at most ``limit`` tokens in all.

    Args:
        tokenizer: the one that made them; needed to cut between characters, of which some are
            several tokens.
        cut: where text is taken from: the ``middle`` of the document, or its beginning (``left``).

    Raises:
        Dropped: if the responses leave too little room.
    """
    pieces = list(pieces)
    excess = sum(len(piece.ids) for piece in pieces) - limit
    if excess <= 0:
        return pieces
    for kind in ("document", "prompt"):
        places = [i for i, piece in enumerate(pieces) if piece.kind == kind]
        for i in sorted(places, key=lambda i: -len(pieces[i].ids)):
            take = min(excess, len(pieces[i].ids) - KEPT)
            if take > 0:
                shorter = _without(pieces[i], take, tokenizer, cut)
                excess -= len(pieces[i].ids) - len(shorter.ids)
                pieces[i] = shorter
            if excess <= 0:
                return pieces
    if long_response == "skip":
        raise Dropped("response_too_long")
    last = max(i for i, piece in enumerate(pieces) if piece.kind == "response")
    # Nothing follows a response that was broken off.
    excess -= sum(len(piece.ids) for piece in pieces[last + 1 :])
    response = pieces[last]
    # One token more: the end of the turn goes in any case.
    kept = len(response.ids) - max(excess, 1)
    if kept < KEPT:
        raise Dropped("response_too_long", "the turns before the last are")
    return [*pieces[:last], _head(response, kept, tokenizer)]


def _without(piece: Piece, take: int, tokenizer: Any, cut: str) -> Piece:
    """A piece without at least ``take`` tokens, cut between characters."""
    borders = _borders(piece, tokenizer)
    first = 0 if cut == "left" else (len(piece.ids) - take) // 2
    begin = int(borders[borders <= first].max())
    # Characters of several tokens can make the hole a little wider than asked for.
    later = borders[borders >= begin + take]
    end = int(later.min()) if len(later) else len(piece.ids)
    ids = piece.ids[:begin] + piece.ids[end:]
    return Piece(piece.kind, ids, _say(ids, tokenizer))


def _head(piece: Piece, kept: int, tokenizer: Any) -> Piece:
    borders = _borders(piece, tokenizer)
    end = int(borders[borders <= kept].max())
    ids = piece.ids[:end]
    return Piece(piece.kind, ids, _say(ids, tokenizer))


def _say(ids: list[int], tokenizer: Any) -> str:
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def _borders(piece: Piece, tokenizer: Any) -> NDArray[np.int64]:
    """Places between tokens that are places between characters, 0 and the end among them."""
    if piece.kind == "response":
        # It may hold control tokens; borders are found by what decodes to whole characters.
        return np.array(_whole_character_borders(piece.ids, tokenizer))
    return _text_borders(tokenizer, piece.text)


@lru_cache(maxsize=4)
def _text_borders(tokenizer: Any, text: str) -> NDArray[np.int64]:
    spans = np.array(plain_spans(tokenizer, text)[1]).reshape(-1, 2)
    clean = np.flatnonzero(spans[1:, 0] >= spans[:-1, 1]) + 1
    return np.concatenate([[0], clean, [len(spans)]])


def _whole_character_borders(ids: list[int], tokenizer: Any) -> list[int]:
    """Borders near the end only would do, but responses are short."""
    return [
        i
        for i in range(len(ids) + 1)
        if i == 0 or "\ufffd" not in _say(ids[max(i - 8, 0) : i], tokenizer)[-1:]
    ]
