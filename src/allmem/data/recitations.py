"""Rows that say a stretch of prose twice: whatever stood there, a memory is asked for it.

    The text:
    It was a fine evening in ...      Once it is known which words are being said again, every
    (perhaps other prose)             next one stands in the first copy, and nowhere else that
    The text again:                   attention sees. So nearly every token of the second copy
    It was a fine evening in ...      asks the memory.

A pretrained model continues a text that repeats by itself (induction), so it can teach this. The
copies begin and end anywhere. Row number i is a function of the seed and i alone.

Letters: T tokens of a row.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from allmem.data.labels import IGNORED
from allmem.data.made_rows import Prose, as_row, check_lengths
from allmem.errors import AllMemError
from allmem.prompts import plain_ids, start_ids

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Recitations", "Reciter"]

FIRST, AGAIN = "The text:\n", "\nThe text again:\n"


@dataclass(frozen=True)
class Recitations:
    """What such rows look like.

    Raises:
        AllMemError: on a value outside its range, naming the value and the remedy.
    """

    lengths: tuple[int, ...] = (160,)
    """Tokens of what is said twice, drawn from these."""
    gaps: tuple[int, ...] = (0,)
    """Tokens of other prose between the two, drawn from these."""
    cue: int = 8
    """Tokens of the second copy that are not learned: nobody knows which words come again until
    some of them were said."""
    prose: str | None = None
    """A text file; default: a novel that ships with allmem."""

    def __post_init__(self) -> None:
        check_lengths(0, gaps=self.gaps)
        if self.cue < 1:
            raise AllMemError(f"cue = {self.cue} must be 1 or more")
        check_lengths(self.cue + 1, lengths=self.lengths)


class Reciter:
    """Makes rows.

    Args:
        window: W; a token counts where its first copy is older.
        held_out: of the last tenth of the prose, which no other row is made of.
    """

    def __init__(
        self,
        recitations: Recitations,
        tokenizer: Any,
        window: int,
        seed: int = 0,
        held_out: bool = False,
    ) -> None:
        self.recitations, self.tokenizer, self.window = recitations, tokenizer, window
        self.seed, self.held_out = seed, held_out
        self.prose = Prose(tokenizer, recitations.prose, held_out)
        self.before = [*start_ids(tokenizer), *plain_ids(tokenizer, FIRST)]
        self.between = plain_ids(tokenizer, AGAIN)
        shortest = min(recitations.lengths) + min(recitations.gaps) + len(self.between)
        if shortest < window:
            raise AllMemError(
                f"a recitation of {min(recitations.lengths)} tokens with {min(recitations.gaps)} "
                f"of prose behind it stands within the window of {window}; make either longer, or "
                "the window smaller"
            )

    @property
    def identity(self) -> str:
        """Everything that was chosen, in words."""
        return f"{self.recitations} beyond {self.window}, seed {self.seed}"

    @property
    def longest(self) -> int:
        """Tokens that a row may have."""
        said = 2 * max(self.recitations.lengths) + max(self.recitations.gaps)
        return len(self.before) + len(self.between) + said

    def row(self, number: int) -> dict[str, Tensor]:
        """Row ``number``: ``input_ids``, ``labels``, ``position_ids``, [T] each."""
        chosen = self.recitations
        draw = random.Random(f"{self.seed} {self.held_out} recitations {number}")
        said = self.prose.excerpt(draw, draw.choice(chosen.lengths))
        other = self.prose.excerpt(draw, draw.choice(chosen.gaps))
        unlearned = [*self.before, *said, *other, *self.between, *said[: chosen.cue]]
        learned = said[chosen.cue :]
        return as_row([*unlearned, *learned], [IGNORED] * len(unlearned) + learned)
