"""What builders build with: a tokenizer to measure by, plain text to hide things in, samples.

Lengths are in tokens of the tokenizer that the data is for. A sample's tokens are those of its
document, of question and answer, and of the template around them.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from allmem.data.adapters import conversations
from allmem.data.chat import ChatEncoder
from allmem.data.cleaning import clean_conversation, clean_text
from allmem.data.config import DataConfig, SourceConfig
from allmem.data.conversation import Conversation, Dropped, Message
from allmem.data.readers import BadRow, read_rows
from allmem.errors import AllMemError
from allmem.prompts import BETWEEN, plain_ids, plain_spans
from allmem.schema import build_from

__all__ = ["BuilderBase", "Material", "Measured", "SENTENCE_END"]

SENTENCE_END = re.compile(r"(?<=[.!?])[\"'”’)]*\s+|[。！？…][”’」』]*|\n+")
MARGIN = 24
"""Tokens by which a text may grow when sentences are put into it or joined."""
CHARACTERS_PER_TOKEN = 8
"""More than any tokenizer packs into a token of prose on average."""


class Material:
    """The tokenizer, the seed and the longest sample of one build.

    Args:
        length: the class of the samples; ``None`` for the longest.
    """

    def __init__(self, tokenizer: Any, length: str | None, config: DataConfig) -> None:
        self.tokenizer = tokenizer
        lengths = dict(config.classes)
        self.limit = lengths[length] if length is not None else max(lengths.values())
        self.seed = config.seed
        probe = Conversation((Message("user", "a"), Message("assistant", "a")))
        pieces = ChatEncoder(tokenizer).encode(probe)
        self.overhead = sum(len(piece.ids) for piece in pieces)
        """Tokens of the template."""

    def count(self, text: str) -> int:
        return len(plain_ids(self.tokenizer, text))

    def spans(self, text: str) -> NDArray[np.int64]:
        """[T, 2] first character and end of every token."""
        return np.array(plain_spans(self.tokenizer, text)[1], dtype=np.int64).reshape(-1, 2)

    def head(self, text: str, tokens: int) -> str:
        """The beginning of a text, whole sentences of at most so many tokens."""
        spans = self.spans(text[: tokens * CHARACTERS_PER_TOKEN])
        if len(spans) <= tokens:
            return text[: tokens * CHARACTERS_PER_TOKEN]
        end = int(spans[tokens, 0])
        borders = [m.end() for m in SENTENCE_END.finditer(text, 0, end)]
        return text[: borders[-1] if borders else end]

    def conversations(self, options: dict[str, Any], where: str) -> Iterator[Conversation]:
        """The cleaned conversations of a source of rows; bad ones are passed over."""
        source = build_from(SourceConfig, options, where)
        if source.build is not None:
            raise AllMemError(f"{where}: a builder cannot be the material of another")
        taken = 0
        for number, row in enumerate(read_rows(source), 1):
            if number <= source.skip or isinstance(row, BadRow):
                continue
            if source.take is not None and taken >= source.take:
                return
            taken += 1
            try:
                made = conversations(row.values, source.form, source.fields, source.label, number)
                for conversation in made:
                    yield clean_conversation(conversation)
            except Dropped:
                continue


@dataclass
class BuilderBase:
    """What all builders share: options of length and language, and the final form.

    Raises:
        AllMemError: on a value outside its range.
    """

    language: Literal["en", "zh"] = "en"
    tokens: int | tuple[int, int] | None = None
    """Of a sample, template included; a pair: drawn between the two; default: the class's limit."""
    depth: tuple[float, float] = (0.0, 1.0)
    """Where in the document the answer may stand: 0 its beginning, 1 its end."""
    min_distance: int = 0
    """Tokens that lie at least between the end of what is asked for and the answer: with a window
    of fewer tokens, it is out of sight."""
    text: tuple[dict[str, Any], ...] = ()
    """Sources of plain text to hide things in."""

    kind: ClassVar[str] = ""
    material: Material = field(init=False, repr=False)
    label: str = field(init=False, default="")

    def prepare(self, material: Material, label: str) -> None:
        """Read what is needed; called once, before any sample is made."""
        self.material, self.label = material, label
        low, high = self.depth[0], self.depth[-1]
        if len(self.depth) != 2 or not 0 <= low <= high <= 1:
            raise AllMemError(
                f"builder {self.kind}: depth = {list(self.depth)} must be two numbers "
                "from 0 to 1, the smaller first"
            )
        shortest, longest = self._range()
        if not 0 < shortest <= longest <= material.limit:
            raise AllMemError(
                f"builder {self.kind}: tokens = {self.tokens} must be a length, or two, the "
                f"smaller first, of at most {material.limit} (the length of the class)"
            )
        if self.min_distance and self.min_distance + 100 > shortest:
            raise AllMemError(
                f"builder {self.kind}: min_distance = {self.min_distance} does not fit into "
                f"samples of {shortest} tokens"
            )

    def _range(self) -> tuple[int, int]:
        if self.tokens is None:
            return self.material.limit, self.material.limit
        if isinstance(self.tokens, int):
            return self.tokens, self.tokens
        return self.tokens[0], self.tokens[-1]

    def draw(self, n: int) -> random.Random:
        """The random numbers of sample ``n``."""
        return random.Random(f"{self.material.seed} {self.label} {self.kind} {n}")

    def room(self, rng: random.Random, question: str, answer: str) -> int:
        """Tokens left for the document of a sample."""
        used = self.material.count(BETWEEN + question) + self.material.count(answer)
        return rng.randint(*self._range()) - self.material.overhead - used - MARGIN

    def finish(
        self, n: int, document: str, question: str, answer: str, evidence: list[tuple[int, int]]
    ) -> Conversation:
        """A sample with its measures.

        Args:
            evidence: first character and end of everything in the document that the answer needs.
        """
        starts = self.material.spans(document)[:, 0]
        last = max(end for _, end in evidence)
        after = int((starts >= last).sum())
        asked = self.material.count(BETWEEN + question)
        info = {
            "kind": self.kind,
            "language": self.language,
            "document_tokens": len(starts),
            "depth": [round(float((starts < a).mean()), 4) for a, _ in sorted(evidence)],
            # The template before the answer is left out, so this is a lower bound.
            "distance": after + asked,
        }
        messages = (Message("user", question), Message("assistant", answer))
        return Conversation(messages, document, self.label, str(n), whole=True, info=info)


class Measured:
    """Plain text in memory, from which excerpts of a number of tokens are drawn."""

    def __init__(self, material: Material, sources: tuple[dict[str, Any], ...], where: str) -> None:
        self.material = material
        self.texts: list[str] = []
        for i, options in enumerate(sources, 1):
            for one in material.conversations(options, f"{where}, text {i}"):
                body = one.document or "\n\n".join(one.texts())
                if body:
                    self.texts.append(clean_text(body))
        if not self.texts:
            raise AllMemError(
                f"{where}: there is no text to hide anything in; give text: [{{path: ...}}]"
            )
        self.weights = [len(text) for text in self.texts]

    def excerpt(self, rng: random.Random, tokens: int) -> str:
        """Whole sentences of at most so many tokens, from one text if it is long enough."""
        parts: list[str] = []
        while tokens > 0:
            text = rng.choices(self.texts, self.weights)[0]
            begin = rng.randrange(max(1, len(text) - tokens * CHARACTERS_PER_TOKEN // 2))
            if begin:
                found = SENTENCE_END.search(text, begin)
                begin = found.end() if found and found.end() < len(text) else 0
            part = self.material.head(text[begin:], tokens).strip()
            if not part:
                break
            parts.append(part)
            left = tokens - self.material.count(part) - 2
            # What is left after the end of a text is filled from another.
            tokens = left if left > tokens // 20 else 0
        return "\n\n".join(parts)
