"""The forgetting curve: what is left of facts after more and more chunks of other text.

The facts stand at the beginning. With no chunk behind it the last one has just left the window;
then come 1, 2, 4 ... chunks, as far as the length reaches. Every document begins with the one
before, so that the text is read once and asked about on the way.

Letters: C chunk.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from allmem.errors import AllMemError
from allmem.evaluation.model import EvaluatedModel
from allmem.evaluation.probes.base import (
    BETWEEN,
    LENGTHS,
    Cell,
    Probe,
    Question,
    Script,
    Sheet,
    count,
    measuring_tokenizer,
)
from allmem.evaluation.probes.cast import Cast
from allmem.evaluation.probes.composing import MARGIN, Sight, tokens_of
from allmem.evaluation.probes.filler import Filler, load_filler
from allmem.evaluation.task import Example, Setting, Task
from allmem.prompts import plain_ids, plain_spans

__all__ = ["TASKS", "Forgetting"]

FACTS = 2
FACTOR, QUICK_FACTOR = 2, 4
"""Between one number of chunks and the next."""
CHUNK = 256
"""Tokens where a model has no chunk of its own."""


class Forgetting(Probe):
    """``probes/forgetting``: recall by the number of chunks read since."""

    name = "probes/forgetting"
    shared = FACTS

    def examples(self, setting: Setting, model: EvaluatedModel) -> Iterator[Example]:
        filler = load_filler(measuring_tokenizer(model), "en", setting)
        length = max(setting.lengths or LENGTHS)
        chunk = (model.chunk if setting.chunk is None else setting.chunk) or CHUNK
        for i in range(count(setting, self.shared)):
            name = f"en-{length}-{chunk}-{i}"
            cast = Cast(random.Random(f"{setting.seed} {self.name} {name}"), "en", filler)
            script = self.script(cast, {}, setting)
            sheet = _nested(cast, script, filler, length, chunk, model, setting)
            cell: Cell = {"language": "en", "length": length}
            yield self.example(name, sheet, model, setting, filler, cell)

    def script(self, cast: Cast, cell: Cell, setting: Setting) -> Script:
        questions = []
        for _ in range(FACTS):
            fact = cast.fact(kinds=("number",))
            asks = fact.subject.asks.format(name=fact.name)
            sentences = tuple(fact.stated)
            questions.append(Question(asks, fact.values, sentences, fact.prefix, room=12))
        return Script((), questions)


def _nested(
    cast: Cast,
    script: Script,
    filler: Filler,
    length: int,
    chunk: int,
    model: EvaluatedModel,
    setting: Setting,
) -> Sheet:
    """The facts with 0, 1, 2, 4 ... chunks behind them, each asked for after each."""
    between, sight = BETWEEN[cast.language], Sight.of(model, setting)
    facts = between.join(text for question in script.questions for text in question.evidence)
    alone = Sheet(cast.language, (facts,), ())
    prompts = [
        tokens_of(model.tokenizer, alone.prompt(question, model, setting), setting)
        for question in script.questions
    ]
    longest = max(map(len, prompts))
    first, tail = min(prompts, key=len).span([facts])
    begin = cast.rng.randrange(len(filler.pieces))
    # The sinks are seen for ever: the facts stand behind them.
    before = "".join(
        piece.text for piece in filler.excerpt(begin, max(0, sight.sinks + MARGIN - first))
    )
    # So much that the last fact has just left the window.
    least = max(0, sight.horizon + MARGIN - tail) if sight.horizon else 0
    room = length - longest - len(plain_ids(model.tokenizer, before)) - MARGIN
    if least > room:
        raise AllMemError(
            f"the model sees {sight.horizon} tokens: facts do not leave its sight in {length}; "
            "choose a greater length or a smaller window"
        )
    steps, factor = [0], QUICK_FACTOR if setting.quick else FACTOR
    while least + (more := max(1, factor * steps[-1])) * chunk <= room:
        steps.append(more)
    counts = [least + step * chunk for step in steps]
    excerpt = filler.excerpt(begin + len(filler.pieces) // 2, counts[-1])
    told = _beginnings(model.tokenizer, "".join(piece.text for piece in excerpt), counts)
    return Sheet(
        cast.language,
        tuple(f"{before}{between}{facts}{between}{text}".strip() for text in told),
        tuple(
            replace(question, document=i, cell={"chunks": step})
            for i, step in enumerate(steps)
            for question in script.questions
        ),
    )


def _beginnings(tokenizer: Any, text: str, counts: Sequence[int]) -> list[str]:
    """The first so many tokens of a text, for each of several numbers."""
    ends = [0, *(end for _, end in plain_spans(tokenizer, text)[1])]
    return [text[: ends[min(n, len(ends) - 1)]] for n in counts]


TASKS: dict[str, Callable[[], Task]] = {"probes/forgetting": Forgetting}
