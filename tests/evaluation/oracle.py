"""A model that answers every probe by looking things up in its prompt: in all of it, or in what
attention would see. It draws its guesses, so that what it cannot see scores what a guess is worth.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from typing import Any

from allmem.data.builders.key_value import LINES, QUESTIONS
from allmem.data.builders.phrases import ALL, SUBJECTS
from allmem.evaluation.model import Completion, EvaluatedModel, Prompt
from allmem.evaluation.probes.competencies import CLASSES
from allmem.reading import Sampling

Solver = Callable[[str, str, random.Random], str | None]


class Oracle(EvaluatedModel):
    """Full attention for ``window = 0``."""

    def __init__(self, tokenizer: Any, window: int = 0, sinks: int = 0, blind: bool = True) -> None:
        self.label = "oracle"
        self.tokenizer = tokenizer
        self.sees, self.sinks = (window + sinks, sinks) if window else (0, 0)
        self.window, self.blind = window, blind

    def identity(self) -> dict[str, Any]:
        return {}

    def complete(
        self, prompts: Sequence[Prompt], sampling: Sampling, numbers: Sequence[int]
    ) -> list[Completion]:
        return [self._one(*pair) for pair in zip(prompts, numbers, strict=True)]

    def _one(self, prompt: Prompt, number: int) -> Completion:
        assert prompt.ids is not None
        seen = self.tokenizer.decode(prompt.ids)
        if self.window and self.blind:
            parts = (prompt.ids[: self.sinks], prompt.ids[-self.window :])
            seen = " … ".join(self.tokenizer.decode(part) for part in parts)
        # What is asked is always known: only facts can be out of sight.
        paragraphs = prompt.text.split("\n\n")
        rng = random.Random(number)
        for question in (paragraphs[-1], paragraphs[1]):
            for solve in SOLVERS:
                found = solve(question, seen, rng)
                if found is not None:
                    return Completion(found, len(prompt.ids), 1, True)
        raise AssertionError(f"no solver for {paragraphs[-1]!r}")


def pattern(template: str, **known: str) -> str:
    """A regular expression for a sentence with blanks; what is known is filled in."""
    text = re.escape(template)
    for name in ("name", "value", "key"):
        blank = re.escape("{" + name + "}")
        text = text.replace(blank, re.escape(known[name]) if name in known else f"(?P<{name}>.+?)")
    return text


def subject(question: str, seen: str, rng: random.Random) -> str | None:
    for language, subjects in SUBJECTS.items():
        for one in subjects:
            # The plain question would take what the others add for part of a name.
            for which in ("asks_all", "asks_latest", "asks"):
                asked = re.fullmatch(pattern(getattr(one, which)), question)
                if asked is None:
                    continue
                told = [
                    (m.start(), m["value"])
                    for form in {one.states, one.changes}
                    for m in re.finditer(pattern(form, name=asked["name"]), seen)
                    if len(m["value"]) < 30
                ]
                values = [value for _, value in sorted(told)]
                if not values:
                    return str(rng.randrange(10_000, 100_000))
                if which == "asks_all":
                    return ALL[language].join(dict.fromkeys(values))
                return values[-1 if which == "asks_latest" else 0]
    return None


def pair(question: str, seen: str, rng: random.Random) -> str | None:
    asked = re.fullmatch(pattern(QUESTIONS["en"]), question)
    if asked is None:
        return None
    found = re.search(pattern(LINES["en"].strip(), key=asked["key"]), seen)
    return found["value"] if found else str(rng.randrange(10_000, 100_000))


def order(question: str, seen: str, rng: random.Random) -> str | None:
    asked = re.fullmatch(r"Of (.+?) and (.+?), who (.+) first in the text\?", question)
    if asked is None:
        return None
    names = asked.groups()[:2]
    told = [seen.find(f"{name} {asked[3]}.") for name in names]
    if max(told) < 0:
        return rng.choice(names)
    # One that is out of sight was before the one that is seen.
    return names[told.index(min(told))]


def label(question: str, seen: str, rng: random.Random) -> str | None:
    asked = re.search(r"label of a new entry: (\w+)\?", question)
    if asked is None:
        return None
    kind = next(words.split() for words in CLASSES.values() if asked[1] in words.split())
    told = re.findall(r"Entry: (\w+)\. Label: (\w+)\.", seen)
    labels = [label for thing, label in told if thing in kind]
    return labels[0] if labels else "nothing"


def bells(question: str, seen: str, rng: random.Random) -> str | None:
    rung = re.findall(r"The bell of (\w+) rang\.", seen)
    if asked := re.match(r"Of (.+): the bell of which city rang most often", question):
        cities = asked[1].split(", ")
        rng.shuffle(cities)
        return max(cities, key=rung.count)
    if asked := re.match(r"How many times did the bell of (\w+) ring", question):
        return str(rung.count(asked[1]) or rng.randint(1, 9))
    return None


def apprentice(question: str, seen: str, rng: random.Random) -> str | None:
    asked = re.match(r"In which city did the present apprentice of (.+) grow up", question)
    if asked is None:
        return None
    names = re.findall(rf"he apprentice of {re.escape(asked[1])} is (.+?)\.", seen)
    homes = dict(re.findall(r"(\w+ \w+) grew up in (\w+)\.", seen))
    return homes.get(names[-1], "nowhere") if names else "nowhere"


SOLVERS: tuple[Solver, ...] = (subject, pair, order, label, bells, apprentice)
