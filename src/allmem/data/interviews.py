"""Chats about a document that hides facts in prose: it is read once, then asked about turn by turn.

    user       ... a page of a novel, and somewhere in it: The locker of Anna Reed is 4812. ...
               What is the number of Anna Reed's locker?
    assistant  The locker of Anna Reed is 4812.
    user       And ...

Asked for are facts that are older than the window when the answer begins. The sentences are not
those of the probes (``allmem.data.builders.phrases``), and names of held-out rows occur in no
other. Row number i is a function of the seed and i alone.

Letters: T tokens of a row.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from allmem.data.chat import ChatEncoder
from allmem.data.conversation import Conversation, Message
from allmem.data.labels import IGNORED
from allmem.data.made_rows import HELD_OUT, Prose, as_row, check_lengths, names_for
from allmem.errors import AllMemError
from allmem.prompts import plain_spans

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Interviewer", "Interviews", "Planted"]


def _words(text: str) -> list[str]:
    return text.split()


class Topic(NamedTuple):
    """One thing that is said of somebody and asked for."""

    says: str
    asks: str
    values: str
    """What kind of value: a key of ``VALUES``."""


TOPICS = (
    Topic("The locker of {name} is {value}.", "What is the locker of {name}?", "number"),
    Topic("{name} lives at {value} Mill Road.", "Where does {name} live?", "number"),
    Topic("The ticket of {name} has the code {value}.", "What code has {name}'s ticket?", "number"),
    Topic("{name} won {value} points.", "How many points did {name} win?", "number"),
    Topic("The account of {name} ends in {value}.", "How does {name}'s account end?", "number"),
    Topic("{name} can be called at {value}.", "At what number can {name} be called?", "number"),
    Topic("{name} moved to {value}.", "To which place did {name} move?", "place"),
    Topic("{name} studied in {value}.", "Where did {name} study?", "place"),
    Topic("The sister of {name} lives in {value}.", "Where does {name}'s sister live?", "place"),
    Topic("{name} bought {value}.", "What did {name} buy?", "thing"),
    Topic("{name} lost {value} in the garden.", "What did {name} lose in the garden?", "thing"),
    Topic("On the desk of {name} lies {value}.", "What lies on the desk of {name}?", "thing"),
    Topic("{name} works as {value}.", "What is {name}'s work?", "work"),
    Topic("The father of {name} was {value}.", "What was {name}'s father?", "work"),
    Topic("The best friend of {name} is {value}.", "Who is the best friend of {name}?", "person"),
    Topic("{name} was taught by {value}.", "By whom was {name} taught?", "person"),
    Topic("The door of {name} is painted {value}.", "How is {name}'s door painted?", "colour"),
    Topic("{name} always wears {value}.", "What colour does {name} always wear?", "colour"),
)
SURNAMES = _words(
    "Reed Carter Hughes Barnes Cole Foster Grant Hayes Jordan Keller Lane Mason Nash Owens Parker "
    "Quinn Rhodes Shaw Tate Vaughn Walsh York Bishop Chambers Dawson Ellis Fletcher Gibson Holt"
)
FRIENDS = _words(
    "Abigail Bernard Clara Dominic Esther Felix Gloria Harold Irene Julian Lydia Marcus Nora Otis "
    "Phoebe Roland Stella Theodore Ursula Vincent Winifred Agnes Conrad Daphne Edgar Flora"
)
VALUES = {
    "place": _words(
        "Paris Boston Vienna Madrid Chicago Dublin Prague Cairo Toronto Oslo Denver Naples Sydney "
        "Berlin Moscow Athens Houston Warsaw Delhi Geneva Seattle Munich Lima Tokyo Milan Zurich"
    ),
    "thing": [
        f"a {a} {b}"
        for a in ("red", "wooden", "golden", "heavy", "new", "long", "white")
        for b in _words("lamp hat bicycle clock piano rope kettle mirror coat knife basket guitar")
    ],
    "work": [
        f"a {work}"
        for work in _words(
            "baker doctor farmer judge pilot sailor teacher painter lawyer miner nurse tailor "
            "plumber writer soldier singer dentist hunter butcher carpenter clerk porter"
        )
    ],
    "colour": _words("red blue green yellow white black brown grey orange purple pink silver gold"),
}

MEASURED = 8
"""Rows whose longest stands for all."""


@dataclass(frozen=True)
class Interviews:
    """What such rows look like.

    Raises:
        AllMemError: on a value outside its range, naming the value and the remedy.
    """

    counts: tuple[int, ...] = (6,)
    """Facts of a document, all of them asked for; drawn from these."""
    scattered: tuple[int, ...] = (32,)
    """Tokens of prose before every fact, drawn from these."""
    gaps: tuple[int, ...] = (64,)
    """Tokens of prose behind the last one, drawn from these."""
    digits: tuple[int, ...] = (3, 4, 5)
    """Of numbers, drawn from these."""
    values_only: bool = False
    """Learn what was asked for alone, and not the sentence around it."""
    prose: str | None = None
    """A text file; default: a novel that ships with allmem."""

    def __post_init__(self) -> None:
        check_lengths(0, scattered=self.scattered, gaps=self.gaps)
        check_lengths(1, counts=self.counts, digits=self.digits)
        if max(self.counts) > HELD_OUT:
            raise AllMemError(
                f"counts: {max(self.counts)} must be at most {HELD_OUT}, the names that are kept "
                "for held-out rows"
            )


class Planted(NamedTuple):
    """A fact of a document, and the question about it."""

    asks: str
    says: str
    value: str
    begin: int
    """Of the sentence in the document, in characters."""


class Interviewer:
    """Makes rows.

    Args:
        tokenizer: with a chat template, for rows.
        window: W; an answer counts where its fact is older.
        held_out: draw from the names that training never sees.
    """

    def __init__(
        self,
        interviews: Interviews,
        tokenizer: Any,
        window: int,
        seed: int = 0,
        held_out: bool = False,
    ) -> None:
        self.interviews, self.tokenizer, self.window = interviews, tokenizer, window
        self.seed, self.held_out = seed, held_out
        self.names = names_for(held_out)
        self.prose = Prose(tokenizer, interviews.prose, held_out)

    @property
    def identity(self) -> str:
        """Everything that was chosen, in words."""
        return f"{self.interviews} beyond {self.window}, seed {self.seed}"

    @cached_property
    def encoder(self) -> ChatEncoder:
        """Of conversations."""
        return ChatEncoder(self.tokenizer)

    @cached_property
    def longest(self) -> int:
        """Tokens that a row may have, about: the longest of some, and their prose at its most."""
        chosen = self.interviews
        widest = Interviews(
            (max(chosen.counts),),
            (max(chosen.scattered),),
            (max(chosen.gaps),),
            (max(chosen.digits),),
            prose=chosen.prose,
        )
        writer = Interviewer(widest, self.tokenizer, 1, self.seed, self.held_out)
        return max(len(writer.row(i)["input_ids"]) for i in range(MEASURED))

    def row(self, number: int) -> dict[str, Tensor]:
        """Row ``number``: ``input_ids``, ``labels``, ``position_ids``, [T] each.

        Raises:
            AllMemError: if no fact of it is older than the window, or the tokenizer's chat template
                cannot be used.
        """
        document, facts = self.interview(number)
        messages = [
            message
            for fact in facts
            for message in (Message("user", fact.asks), Message("assistant", fact.says))
        ]
        ids: list[int] = []
        labels: list[int] = []
        ends: list[int] = []
        asked = 0
        for piece in self.encoder.encode(Conversation(tuple(messages), document)):
            learned = [False] * len(piece.ids)
            if piece.kind == "document":
                ends = [len(ids) + end for end in self._ends(piece.text, facts)]
            if piece.kind == "response" and len(ids) - ends[asked] >= self.window:
                learned = self._learned(facts[asked], len(piece.ids))
            asked += piece.kind == "response"
            labels += [i if yes else IGNORED for i, yes in zip(piece.ids, learned, strict=True)]
            ids += piece.ids
        if all(label == IGNORED for label in labels):
            raise AllMemError(
                f"an interview of {len(ids)} tokens has no fact older than the window of "
                f"{self.window}; give more facts, longer gaps, or a smaller window"
            )
        return as_row(ids, labels)

    def interview(self, number: int) -> tuple[str, list[Planted]]:
        """The document of row ``number``, and its facts in the order in which they are asked
        for."""
        draw = random.Random(f"{self.seed} {self.held_out} interviews {number}")
        document, facts = self._document(draw)
        draw.shuffle(facts)
        return document, facts

    def _document(self, draw: random.Random) -> tuple[str, list[Planted]]:
        chosen = self.interviews
        text, facts = "", []
        scattered = draw.choice(chosen.scattered)
        for name in draw.sample(self.names, draw.choice(chosen.counts)):
            topic = draw.choice(TOPICS)
            # Some have one name and some two.
            full = name if draw.random() < 0.5 else f"{name} {draw.choice(SURNAMES)}"
            value = self._value(draw, topic.values)
            text += self._prose(draw, scattered)
            says = topic.says.format(name=full, value=value)
            facts.append(Planted(topic.asks.format(name=full), says, value, len(text)))
            text += f"{says} "
        text += self._prose(draw, draw.choice(chosen.gaps))
        return text.strip(), facts

    def _value(self, draw: random.Random, kind: str) -> str:
        if kind == "number":
            digits = draw.choice(self.interviews.digits)
            return str(draw.randrange(10 ** (digits - 1), 10**digits))
        if kind == "person":
            return f"{draw.choice(FRIENDS)} {draw.choice(SURNAMES)}"
        return draw.choice(VALUES[kind])

    def _prose(self, draw: random.Random, length: int) -> str:
        text = self.tokenizer.decode(self.prose.excerpt(draw, length)).strip()
        return f"{text} " if text else ""

    def _learned(self, fact: Planted, tokens: int) -> list[bool]:
        """Which tokens of an answer are learned."""
        if not self.interviews.values_only:
            return [True] * tokens
        spans = plain_spans(self.tokenizer, fact.says)[1]
        begin = fact.says.index(fact.value)
        end = begin + len(fact.value)
        inside = [first < end and last > begin for first, last in spans]
        # Behind the sentence stands what ends the turn.
        return [*inside, *[False] * (tokens - len(inside))]

    def _ends(self, document: str, facts: list[Planted]) -> list[int]:
        """Of every fact, how many of the document's tokens there are up to its end."""
        spans = plain_spans(self.tokenizer, document)[1]
        return [sum(first < fact.begin + len(fact.says) for first, _ in spans) for fact in facts]
