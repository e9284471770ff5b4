"""What rows that are made as they are read have in common: who makes them, prose to put between
what is asked, and which names are kept for held-out rows.

Row number i of a writer is a function of its seed and i alone.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from allmem.documents import LEARNED, load_book, read_document
from allmem.errors import AllMemError
from allmem.prompts import plain_ids

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["HELD_OUT", "NAMES", "Prose", "RowWriter", "as_row", "check_lengths", "names_for"]


def _words(text: str) -> list[str]:
    return text.split()


NAMES = _words(
    "Anna Bob Carl David Emma Frank George Henry Jack Kate Laura Mark Nina Oliver Peter Robert "
    "Sarah Thomas Victor William Alice Daniel Edward Grace Helen James John Mary Paul Simon Susan "
    "Tony Adam Ben Chris Eric Ian Jane Kevin Lisa Martin Michael Nick Oscar Philip Rachel Richard "
    "Sam Steve Tim Tom Walter Amy Charlie Diana Emily Fred Harry Jim Joe Julia Karen Leo Lucy Max "
    "Rose Ruth Ryan Sophie Stephen Matthew Andrew Anthony Brian Jason Joseph Jennifer Linda Nancy "
    "Patricia Barbara Betty Sandra Donna Carol Michelle Kimberly Jessica"
)
HELD_OUT = 24
"""The first so many names occur in held-out rows alone."""


def names_for(held_out: bool) -> list[str]:
    """The names of held-out rows, or those of all others."""
    return NAMES[:HELD_OUT] if held_out else NAMES[HELD_OUT:]


class RowWriter(Protocol):
    """Makes rows without an end."""

    @property
    def longest(self) -> int:
        """Tokens that a row may have, about."""
        ...

    @property
    def identity(self) -> str:
        """Everything that was chosen, in words."""
        ...

    def row(self, number: int) -> dict[str, Tensor]:
        """Row ``number``: ``input_ids``, ``labels``, ``position_ids``, [T] each."""
        ...


def as_row(ids: Sequence[int], labels: Sequence[int]) -> dict[str, Tensor]:
    """A row of one document; ids and labels [T]."""
    import torch

    return {
        "input_ids": torch.tensor(ids),
        "labels": torch.tensor(labels),
        "position_ids": torch.arange(len(ids)),
    }


def check_lengths(least: int, **values: Sequence[int]) -> None:
    """Refuse empty lists of lengths, and lengths below ``least``.

    Raises:
        AllMemError: naming the list and the value.
    """
    for name, lengths in values.items():
        if not lengths:
            raise AllMemError(f"{name} is empty; name at least one")
        for length in lengths:
            if length < least:
                raise AllMemError(f"{name}: {length} must be {least} or more")


class Prose:
    """The tokens of a text, without its numbers and lines.

    Args:
        name: a text file; ``None`` for a novel that ships with allmem.
        held_out: the last tenth alone; else all before it, or with ``None`` everything.
    """

    def __init__(self, tokenizer: Any, name: str | None, held_out: bool | None = None) -> None:
        self.tokenizer, self.name, self.held_out = tokenizer, name, held_out

    @cached_property
    def ids(self) -> list[int]:
        """[tokens]."""
        text = load_book(LEARNED) if self.name is None else read_document(self.name)
        # Numbers would be told from the facts by chance alone.
        ids = plain_ids(self.tokenizer, re.sub(r"[0-9\n]+", " ", text))
        cut = len(ids) - len(ids) // 10
        return ids if self.held_out is None else ids[cut:] if self.held_out else ids[:cut]

    def excerpt(self, draw: random.Random, length: int) -> list[int]:
        """So many tokens in a row.

        Raises:
            AllMemError: if the text has no more than that.
        """
        if length == 0:
            return []
        if length >= len(self.ids):
            raise AllMemError(
                f"{self.name or 'the novel'} has {len(self.ids)} tokens, too few for stretches of "
                f"{length}; name a longer text, or ask for shorter ones"
            )
        begin = draw.randrange(len(self.ids) - length)
        return self.ids[begin : begin + length]
