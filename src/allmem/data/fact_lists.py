"""Short rows that only a memory can answer: facts in a list, and the same facts again.

    Anna: 4812            The facts of a row, one per person, then perhaps some prose, then all of
    Bob: 9930             them again in another order. What is learned are the digits of those
    ...                   that are older than the window by then. Nothing else of a row can be
    Bob: 9930             known, so every learned token asks the memory.
    Anna: 4812

Plain text and not chats: a small pretrained model continues such a list by itself. Some names are
kept for held-out rows. Row number i is a function of the seed and i alone.

Letters: T tokens of a row.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from allmem.data.labels import IGNORED
from allmem.data.made_rows import HELD_OUT, Prose, as_row, check_lengths, names_for
from allmem.errors import AllMemError
from allmem.prompts import plain_ids, plain_spans, start_ids
from allmem.schema import check_positive

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FactLists", "FactWriter"]


@dataclass(frozen=True)
class FactLists:
    """What such rows look like.

    Raises:
        AllMemError: on a value outside its range, naming the value and the remedy.
    """

    counts: tuple[int, ...] = (16,)
    """Facts of a row, drawn from these."""
    digits: int = 4
    """Of a number."""
    forms: tuple[str, ...] = ("{name}: {number}\n",)
    """Of a fact; one is drawn per row."""
    gaps: tuple[int, ...] = (0,)
    """Tokens of prose between the facts and the questions, drawn from these."""
    scattered: tuple[int, ...] = (0,)
    """Tokens of prose between two facts, drawn from these."""
    prose: str | None = None
    """A text file; default: a novel that ships with allmem."""
    learn_prose: bool = False
    """Whether prose is learned too, so that memories that recall do no harm elsewhere."""

    def __post_init__(self) -> None:
        check_positive(digits=self.digits)
        check_lengths(0, counts=self.counts, gaps=self.gaps, scattered=self.scattered)
        if not self.forms:
            raise AllMemError("forms is empty; name at least one")
        for count in self.counts:
            if not 2 <= count <= HELD_OUT:
                raise AllMemError(f"counts: {count} must lie between 2 and {HELD_OUT}")
        for form in self.forms:
            if form.count("{name}") != 1 or form.count("{number}") != 1:
                raise AllMemError(f"forms: {form!r} must hold {{name}} and {{number}} once each")


class FactWriter:
    """Makes rows.

    Args:
        window: W; answers count where the fact is older.
        held_out: draw from the names that training never sees.
    """

    def __init__(
        self,
        facts: FactLists,
        tokenizer: Any,
        window: int,
        seed: int = 0,
        held_out: bool = False,
    ) -> None:
        self.facts, self.tokenizer, self.window = facts, tokenizer, window
        self.seed, self.held_out = seed, held_out
        self.names = names_for(held_out)
        self.prose = Prose(tokenizer, facts.prose)

    @property
    def identity(self) -> str:
        """Everything that was chosen, in words."""
        return f"{self.facts} beyond {self.window}, seed {self.seed}"

    def row(self, number: int) -> dict[str, Tensor]:
        """Row ``number``: ``input_ids``, ``labels``, ``position_ids``, [T] each.

        Raises:
            AllMemError: if no answer of it is older than the window.
        """
        facts = self.facts
        draw = random.Random(f"{self.seed} {self.held_out} facts {number}")
        form = draw.choice(facts.forms)
        written = []
        for name in draw.sample(self.names, draw.choice(facts.counts)):
            value = "".join(str(draw.randrange(10)) for _ in range(facts.digits))
            written.append(self._fact(form, name, value))
        between = draw.choice(facts.scattered)
        ids, ends = start_ids(self.tokenizer), []
        labels = [IGNORED] * len(ids)

        def write_prose(length: int) -> None:
            prose = self._prose(draw, length)
            ids.extend(prose)
            labels.extend(prose if facts.learn_prose else [IGNORED] * len(prose))

        for tokens, _ in written:
            write_prose(between)
            ids += tokens
            labels += [IGNORED] * len(tokens)
            ends.append(len(ids))
        write_prose(draw.choice(facts.gaps))
        answers = 0
        for i in draw.sample(range(len(written)), len(written)):
            tokens, asked = written[i]
            # From the window of the first of these tokens no token of the fact is seen.
            old = len(ids) - ends[i] >= self.window
            here = [t if old and a else IGNORED for t, a in zip(tokens, asked, strict=True)]
            answers += sum(label != IGNORED for label in here)
            labels += here
            ids += tokens
        if answers == 0:
            raise AllMemError(
                f"a row of {len(ids)} tokens has no fact older than the window of {self.window}; "
                "give more facts, a longer gap, or a smaller window"
            )
        return as_row(ids, labels)

    def _fact(self, form: str, name: str, value: str) -> tuple[list[int], list[bool]]:
        """The tokens of a fact, and which of them are the number."""
        text = form.format(name=name, number=value)
        ids, spans = plain_spans(self.tokenizer, text)
        begin = text.index(value)
        return ids, [
            first < begin + len(value) and last > begin and text[first:last].strip() != ""
            for first, last in spans
        ]

    def _prose(self, draw: random.Random, length: int) -> list[int]:
        """A stretch of prose that ends a line."""
        if length == 0:
            return []
        # The stretch is drawn whole and its last token replaced.
        return [*self.prose.excerpt(draw, length)[:-1], *self._line_end]

    @cached_property
    def _line_end(self) -> list[int]:
        return plain_ids(self.tokenizer, "\n")

    @property
    def longest(self) -> int:
        """Tokens that a row may have, about."""
        facts = self.facts
        forms = (len(self._fact(form, "Kimberly", "0" * facts.digits)[0]) for form in facts.forms)
        most = max(facts.counts)
        return most * (2 * max(forms) + max(facts.scattered)) + max(facts.gaps) + 1
