"""Documents of an exact length in which facts stand where they shall: as deep as wished, and out
of the attention's sight.

A fact is out of sight if more than S + W tokens lie between its last token and the prompt's end,
and its first token is none of the S sinks. Both are counted in the tokens that the model reads,
template included. How deep a fact stands is a share of the prose that is out of sight, so that the
same depths are different places whatever attention sees. Where nothing is out of sight, it is a
share of all prose, and the row says so.

Letters: S sinks, W window.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from allmem.errors import AllMemError
from allmem.evaluation.model import EvaluatedModel, Prompt
from allmem.evaluation.probes.filler import Filler, Piece
from allmem.evaluation.task import Setting
from allmem.prompts import plain_ids

__all__ = ["NoRoomError", "Plant", "Sight", "Tokens", "compose", "insert", "tokens_of"]

SHARE = 0.02
"""By how much a prompt may be shorter than asked for; it is never longer."""
MARGIN = 8
"""Tokens by which a text may shrink or grow where pieces are joined."""
TRIES = 8


class NoRoomError(AllMemError):
    """A prompt is too short for what shall stand in it."""


@dataclass(frozen=True)
class Plant:
    """A sentence to be hidden."""

    text: str
    depth: float
    """Where in the prose that is out of sight: 0 its beginning, 1 its end."""


@dataclass(frozen=True)
class Sight:
    """What attention sees at the end of a prompt."""

    horizon: int
    """Tokens: what is further away is out of sight; 0 if attention sees everything."""
    sinks: int = 0

    @classmethod
    def of(cls, model: EvaluatedModel, setting: Setting) -> Sight:
        """A model's, or what the setting wants facts to be beyond."""
        return cls(
            model.sees if setting.beyond is None else setting.beyond,
            model.sinks if setting.sinks is None else setting.sinks,
        )

    def hides(self, first: int, distance: int) -> bool:
        """Whether something is out of sight.

        Args:
            first: number of its first token.
            distance: tokens behind its last one.
        """
        return self.horizon > 0 and distance > self.horizon and first >= self.sinks


@dataclass(frozen=True)
class Tokens:
    """A prompt as it is read: its text, template included, and where its tokens stand in it."""

    text: str
    begins: list[int]
    """Of every token, its first character."""
    ends: list[int]
    """Of every token, the character behind its last one."""

    def __len__(self) -> int:
        return len(self.ends)

    def span(self, texts: Sequence[str]) -> tuple[int, int]:
        """The first token that any of these texts has a part in, and how many tokens lie behind
        the last one.

        Raises:
            ValueError: if one of them is not there.
        """
        begin = min(self.text.index(text) for text in texts)
        end = max(self.text.rindex(text) + len(text) for text in texts)
        return bisect_right(self.ends, begin), len(self) - bisect_left(self.begins, end)


def tokens_of(tokenizer: Any, prompt: Prompt, setting: Setting) -> Tokens:
    """Where the tokens of a prompt stand.

    Raises:
        AllMemError: if the tokenizer tells it of other tokens than the prompt's.
    """
    text = prompt.text
    if prompt.messages is not None:
        text = tokenizer.apply_chat_template(
            prompt.messages,
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=setting.thinking,
        )
    text += prompt.answer_prefix
    encoded = tokenizer(
        text, add_special_tokens=prompt.messages is None, return_offsets_mapping=True
    )
    if encoded["input_ids"] != prompt.ids:
        raise AllMemError("the tokens of a prompt cannot be placed in its text: they differ")
    # Special tokens that are added to a text have no place in it.
    begins, ends = (
        list(accumulate((span[side] for span in encoded["offset_mapping"]), max)) for side in (0, 1)
    )
    return Tokens(text, begins, ends)


def compose(
    filler: Filler,
    begin: int,
    plants: Sequence[Plant],
    length: int,
    sight: Sight,
    measure: Callable[[str], Tokens],
    between: str,
    slack: int = 0,
) -> str:
    """A document with which a prompt has ``length`` tokens, or a little less.

    Args:
        begin: number of the sentence with which the prose begins.
        measure: the tokens of the longest prompt with a document.
        between: what stands between two sentences.
        slack: by how many tokens the shortest prompt is shorter.

    Raises:
        NoRoomError: if what is hidden does not leave room for prose.
    """
    mark = "¶"
    empty = measure(mark)
    head, tail = empty.span([mark])
    room = length - len(empty)
    budget = room - len(plain_ids(filler.tokenizer, between.join(p.text for p in plants)))
    lowest = length - int(length * SHARE)
    for _ in range(TRIES):
        if budget < 1:
            break
        excerpt = filler.excerpt(begin, budget)
        first = max(0, sight.sinks + MARGIN + slack - head)
        last = budget + tail - sight.horizon - MARGIN - slack if sight.horizon else budget
        if last < first:
            # Nothing is out of sight.
            first, last = 0, budget
        document = insert(excerpt, plants, first, last, between)
        found = len(measure(document))
        if lowest <= found <= length:
            return document
        budget += (length + lowest) // 2 - found
    raise NoRoomError(
        f"a prompt of {length} tokens has no room for {len(plants)} facts and prose between them; "
        "choose a greater length"
    )


def insert(
    pieces: Sequence[Piece], plants: Sequence[Plant], first: int, last: int, between: str
) -> str:
    """Prose with sentences in it, each at the border before the place that is wished for.

    Args:
        first, last: tokens of prose, between which depths are shares: none stands before the one,
            or behind the other.
    """
    borders = list(accumulate((piece.tokens for piece in pieces), initial=0))
    places: dict[int, list[str]] = {}
    for plant in plants:
        wish = first + plant.depth * (last - first)
        place = bisect_right(borders, wish) - 1
        if borders[place] < first:
            place = min(place + 1, len(pieces))
        places.setdefault(place, []).append(plant.text)
    document = ""
    for place in range(len(pieces) + 1):
        for text in places.get(place, ()):
            gap = "" if not document or document[-1].isspace() else between
            document += f"{gap}{text}{between}"
        if place < len(pieces):
            document += pieces[place].text
    return document.rstrip()
