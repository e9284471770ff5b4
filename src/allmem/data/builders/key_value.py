"""Recall without prose: lines that tie keys to values, and the question for one of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from allmem.data.builders.material import BuilderBase, Material
from allmem.data.conversation import Conversation
from allmem.errors import AllMemError

__all__ = ["KeyValue"]

LINES = {"en": "The value of {key} is {value}.\n", "zh": "{key}的值是{value}。\n"}
QUESTIONS = {"en": "What is the value of {key}?", "zh": "{key}的值是多少？"}
LETTERS = "bcdfghjklmnpqrstvwz"
VOWELS = "aeiou"


@dataclass
class KeyValue(BuilderBase):
    """As many lines as fit; keys are made-up words, values numbers of five digits."""

    kind: ClassVar[str] = "key_value"

    def prepare(self, material: Material, label: str) -> None:
        super().prepare(material, label)
        if self.text:
            raise AllMemError("builder key_value: text is of no use, documents are made up")
        probe = LINES[self.language].format(key="bacedofugi", value=12345)
        self.line_tokens = max(1, material.count(probe))

    def sample(self, n: int) -> Conversation:
        rng = self.draw(n)

        def word() -> str:
            return "".join(rng.choice(LETTERS) + rng.choice(VOWELS) for _ in range(4))

        question = QUESTIONS[self.language]
        room = self.room(rng, question.format(key="bacedofugi"), "12345")
        most = max(2, room // self.line_tokens * 2)
        keys = list(dict.fromkeys(word() for _ in range(most)))
        values = [str(v) for v in rng.sample(range(10_000, 100_000), len(keys))]
        template = LINES[self.language]
        lines = [template.format(key=k, value=v) for k, v in zip(keys, values, strict=True)]
        starts = self.material.spans("".join(lines))[:, 0]
        if len(starts) > room:
            whole, size, end = 0, 0, int(starts[room])
            while whole < len(lines) and size + len(lines[whole]) <= end:
                size += len(lines[whole])
                whole += 1
            lines = lines[: max(1, whole)]
        low, high = (round(d * (len(lines) - 1)) for d in self.depth)
        # Lines at the end that lie within the distance cannot be asked for.
        near = -(-self.min_distance // max(1, self.line_tokens - 2))
        last = min(high, len(lines) - 1 - near)
        if last < low:
            raise AllMemError(
                f"builder key_value: no line at depth {list(self.depth)} is {self.min_distance} "
                "tokens away from the answer; lower min_distance or depth"
            )
        asked = rng.randint(low, last)
        begin = sum(map(len, lines[:asked]))
        document = "".join(lines).rstrip()
        span = (begin, begin + len(lines[asked].rstrip()))
        return self.finish(n, document, question.format(key=keys[asked]), values[asked], [span])
